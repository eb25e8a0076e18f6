//! What the `tcp` protocol says about a byte stream, told apart from how the reader does it. Shared
//! by the mutational test and the fuzz target.

use std::io::{self, ErrorKind, Read};

use kvferry::error::Status;
use kvferry::side_channel::tcp::frame::{MessageReader, Step};

/// Gives out `wire` in the pieces that `cuts` prescribes, over and over: 0 is a pause, 1 an
/// interruption, any other value the most bytes of one read. Two gaps never follow each other, so
/// that every stream comes to its end.
struct Pieces<'a> {
    wire: &'a [u8],
    at: usize,
    cuts: &'a [u8],
    turn: usize,
    gap: bool,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let cut = self.cuts.get(self.turn % self.cuts.len().max(1)).copied();
        self.turn += 1;
        let piece = match cut {
            Some(gap @ (0 | 1)) if !self.gap => {
                self.gap = true;
                return Err(if gap == 0 {
                    ErrorKind::WouldBlock.into()
                } else {
                    ErrorKind::Interrupted.into()
                });
            }
            Some(n) => usize::from(n.max(1)),
            None => usize::MAX,
        };
        self.gap = false;
        let n = piece.min(buf.len()).min(self.wire.len() - self.at);
        buf[..n].copy_from_slice(&self.wire[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// Reads `wire` as one message of at most `max` bytes and panics when the outcome is not the one
/// that the protocol prescribes.
pub fn check(wire: &[u8], max: usize, cuts: &[u8]) {
    let mut source = Pieces {
        wire,
        at: 0,
        cuts,
        turn: 0,
        gap: false,
    };
    let mut reader = MessageReader::new(max);
    let outcome = loop {
        match reader.step(&mut source) {
            Ok(Step::Complete) => break Ok(()),
            Ok(_) => {}
            Err(e) => break Err(e),
        }
    };
    let came = wire.len().saturating_sub(4);
    let due = wire
        .first_chunk::<4>()
        .map(|h| u32::from_be_bytes(*h) as usize);
    let said = |e: &kvferry::error::Error, words: &[String]| {
        for word in words {
            assert!(e.message().contains(word), "{e} lacks {word}");
        }
    };
    match (due, outcome) {
        (None, Err(e)) => {
            assert_eq!(e.status(), Status::PeerLost);
            said(&e, &[format!("{} of 4 length bytes", wire.len())]);
        }
        (Some(due), Err(e)) if due > max => {
            assert_eq!(e.status(), Status::PeerIncompatible);
            said(&e, &[due.to_string(), max.to_string()]);
            assert_eq!(
                source.at, 4,
                "nothing is read of a message that is too long"
            );
            assert_eq!(reader.into_payload().capacity(), 0);
        }
        (Some(due), Err(e)) => {
            assert!(came < due, "whole, but: {e}");
            assert_eq!(e.status(), Status::PeerLost);
            said(&e, &[format!("{came} of {due} bytes")]);
            // Memory follows what came, not what was announced.
            assert!(reader.into_payload().capacity() <= 2 * came + 4096);
        }
        (Some(due), Ok(())) => {
            assert!(due <= max && due <= came);
            assert_eq!(source.at, 4 + due, "not a byte is read past the message");
            assert_eq!(reader.into_payload(), wire[4..4 + due]);
        }
        (None, Ok(())) => panic!("a message out of {} bytes", wire.len()),
    }
}
