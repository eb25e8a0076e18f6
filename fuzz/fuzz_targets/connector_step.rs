//! Engine steps: whatever the decoder accepts has that one encoding.
#![no_main]

use kvferry::connector::step::Step;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(step) = Step::decode(bytes) {
        assert_eq!(step.encode(), bytes);
    }
});
