//! The wire format: by hand, and by mutation.

use std::io::{self, Read};

use kvferry::error::Status;
use kvferry::side_channel::tcp::frame::{self, MessageReader, Step};

use crate::oracle;

#[test]
fn a_message_is_its_length_and_its_bytes() {
    assert_eq!(frame::encode(Vec::new()).unwrap(), b"\0\0\0\0");
    assert_eq!(
        frame::encode(b"hello".to_vec()).unwrap(),
        b"\0\0\0\x05hello"
    );
    let long = frame::encode(vec![7; 0x01_02_03]).unwrap();
    assert_eq!(long[..5], [0, 1, 2, 3, 7]);
    assert_eq!(long.len(), 4 + 0x01_02_03);
}

#[test]
fn boundaries() {
    for cuts in [&[][..], &[1], &[2], &[0, 2], &[3, 1, 0, 255]] {
        for wire in [
            &b""[..],
            b"\0",
            b"\0\0\0",
            b"\0\0\0\0",
            b"\0\0\0\0extra",
            b"\0\0\0\x03abc",
            b"\0\0\0\x03abcd",
            b"\0\0\0\x03ab",
            b"\0\0\0\x04abcd",
            b"\xff\xff\xff\xffabcd",
        ] {
            for max in [0, 3, usize::MAX] {
                oracle::check(wire, max, cuts);
            }
        }
    }
}

/// A payload of several steps of the reader, and one that promises more than it brings.
#[test]
fn long_messages() {
    let payload: Vec<u8> = (0..3_000_001u32).map(|i| (i * 7) as u8).collect();
    let mut wire = frame::encode(payload).unwrap();
    oracle::check(&wire, 3_000_001, &[]);
    oracle::check(&wire, 3_000_001, &[255, 0]);
    oracle::check(&wire, 3_000_000, &[]);
    wire[0] = 0xf0;
    oracle::check(&wire, usize::MAX, &[]);
}

/// A socket tells of its failure once, and reads as ended from then on.
#[test]
fn a_failure_after_bytes_is_not_lost() {
    struct Breaks(u8);
    impl Read for Breaks {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.0 += 1;
            match self.0 {
                1 => buf[..4].copy_from_slice(b"\0\0\0\x64"),
                2 => buf[..3].copy_from_slice(b"abc"),
                3 => return Err(io::ErrorKind::ConnectionReset.into()),
                _ => return Ok(0),
            }
            Ok(if self.0 == 1 { 4 } else { 3 })
        }
    }
    let (mut reader, mut source) = (MessageReader::new(100), Breaks(0));
    let e = loop {
        match reader.step(&mut source) {
            Ok(step) => assert_ne!(step, Step::Complete),
            Err(e) => break e,
        }
    };
    assert_eq!(e.status(), Status::PeerLost);
    assert!(e.message().contains("reset"), "{e}");
    assert!(e.message().contains("3 of 100 bytes"), "{e}");
}

/// xorshift64: the cases are the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

#[test]
fn mutated_messages() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..20_000 {
        let payload = (0..random.below(600)).map(|i| i as u8).collect();
        let mut wire = frame::encode(payload).unwrap();
        for _ in 0..random.below(4) {
            let at = random.below(wire.len().max(1));
            match random.below(5) {
                0 => wire.truncate(at),
                1 => wire.extend_from_slice(&b"more and more"[..random.below(14)]),
                2 => wire.insert(at, random.below(256) as u8),
                3 if !wire.is_empty() => wire[at] = random.below(256) as u8,
                _ => {
                    let edges = [0, 1, 255, 256, 0x7fff_ffff, 0x8000_0000, u32::MAX];
                    let length = edges[random.below(edges.len())];
                    for (byte, edge) in wire.iter_mut().zip(length.to_be_bytes()) {
                        *byte = edge;
                    }
                }
            }
        }
        let max = [0, 100, 599, 64 << 20, usize::MAX][random.below(5)];
        let cuts: Vec<u8> = (0..random.below(6))
            .map(|_| random.below(256) as u8 >> random.below(8))
            .collect();
        oracle::check(&wire, max, &cuts);
    }
}
