//! The reader of `tcp` side-channel messages, against what the protocol prescribes.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/side_channel/oracle.rs"]
mod oracle;

// First what governs the run (the limit, and how the stream is cut up), then the stream itself.
fuzz_target!(|input: (u32, Vec<u8>, &[u8])| {
    let (max, cuts, wire) = input;
    oracle::check(wire, max as usize, &cuts);
});
