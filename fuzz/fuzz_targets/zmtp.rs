//! The decoder of ZeroMQ's protocol, given a stream in pieces of any size: nothing panics, it never wants
//! nothing, and what it says does not depend on the pieces.
#![no_main]

use kvferry::zmtp::{Decoder, Event, Limits};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits {
    bytes: 512,
    frames: 4,
};

/// All that the stream says before it ends or breaks the protocol.
fn events(mut stream: &[u8], mut piece: impl FnMut() -> usize) -> (Vec<Event>, bool) {
    let mut decoder = Decoder::new(LIMITS);
    let mut events = Vec::new();
    while !stream.is_empty() {
        assert!(decoder.missing() > 0);
        let n = piece().clamp(1, decoder.missing()).min(stream.len());
        match decoder.push(&stream[..n]) {
            Ok(event) => events.extend(event),
            Err(_) => return (events, false),
        }
        stream = &stream[n..];
    }
    for event in &events {
        if let Event::Message(frames) = event {
            assert!(frames.len() <= LIMITS.frames);
            assert!(frames.iter().map(Vec::len).sum::<usize>() <= LIMITS.bytes);
        }
    }
    (events, true)
}

// A greeting that is accepted is put in front of half the streams: a fuzzer does not guess it.
fuzz_target!(|input: (bool, Vec<u8>, Vec<u8>)| {
    let (greeted, cuts, rest) = input;
    let mut stream = Vec::new();
    if greeted {
        stream = kvferry::zmtp::greeting();
        stream.extend(kvferry::zmtp::ready("REQ"));
    }
    stream.extend(rest);
    let mut cuts = cuts.into_iter().cycle();
    let whole = events(&stream, || usize::MAX);
    let pieces = events(&stream, || cuts.next().map_or(1, usize::from));
    assert_eq!(whole, pieces);
});
