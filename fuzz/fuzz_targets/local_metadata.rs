//! Metadata of the local transport: anything may come, and what is accepted must be in order.
//!
//! Damage is caught by a check at the end of the bytes, which a fuzzer would never get past; so the
//! bytes are tried as they are, and once more with the right check behind them.
#![no_main]

use kvferry::transport::local::inspect_metadata;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    look(bytes);
    // FNV-1a, as the table of fields says.
    let check = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    look(&[bytes, &check.to_le_bytes()].concat());
});

fn look(bytes: &[u8]) {
    if let Ok(info) = inspect_metadata(bytes) {
        assert!(!info.agent.is_empty() && !info.agent.contains('\0'));
        assert!(
            info.ranges
                .iter()
                .all(|(start, len)| *len > 0 && start.checked_add(*len).is_some())
        );
        assert!(info.ranges.windows(2).all(|w| w[0].0 + w[0].1 < w[1].0));
    }
}
