//! Frames on the socket of the local transport: anything may come.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let frames = kvferry::transport::local::count_frames(bytes);
    // A frame has a length of four bytes and a kind.
    assert!(frames * 5 <= bytes.len());
});
