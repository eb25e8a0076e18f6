//! Metadata of NIXL agents: anything may come, and what is accepted must be in order.
//!
//! What begins like metadata gets further, so the bytes are tried as they are and behind NIXL's first
//! word.
#![no_main]

use kvferry::transport::nixl::inspect_metadata;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    look(bytes);
    look(&[b"nixlSerDes|", bytes].concat());
});

fn look(bytes: &[u8]) {
    if let Ok(outline) = inspect_metadata(bytes) {
        assert!(bytes.starts_with(outline.body));
        assert!(!outline.agent.is_empty() && !outline.agent.contains('\0'));
        // Each range takes at least its three numbers.
        assert!(outline.ranges * 24 <= bytes.len());
    }
}
