//! Frames on the socket: `u32` length of what follows, `u8` kind, body.
//!
//! A connection is opened by the agent that wants to reach the other one, and carries:
//!
//! | kind | direction | body |
//! |---|---|---|
//! | 1 hello | to the owner, first | version u16, the owner's knock (16), name of the caller |
//! | 2 welcome | from the owner, once | the owner's answer (16), address at which it lies (u64) |
//! | 3 refused | from the owner, once, then the end | status i32, UTF-8 text |
//! | 4 notification | to the owner, any number | the message |
//!
//! Integers are little-endian. Anything else ends the connection.

use super::bytes::{Reader, is_name, put_name};
use super::host::Token;
use super::inbox::MAX_PAYLOAD;
use super::metadata::VERSION;

/// Longest frame of a handshake, without its length.
pub(super) const MAX_HANDSHAKE: usize = 2048;
/// Longest frame at all, without its length.
pub(super) const MAX_FRAME: usize = 1 + MAX_PAYLOAD;
/// Longest text of a refusal.
const MAX_REASON: usize = 1024;

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const REFUSED: u8 = 3;
const NOTIFICATION: u8 = 4;

/// One frame, borrowed from the bytes that were received.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    Hello {
        version: u16,
        knock: Token,
        name: &'a str,
    },
    Welcome {
        answer: Token,
        address: u64,
    },
    Refused {
        status: i32,
        reason: &'a str,
    },
    Notification(&'a [u8]),
}

/// Why bytes are not a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadFrame {
    /// The length that it claims, and the longest that is allowed here.
    Length(usize, usize),
    /// A kind that does not exist.
    Kind(u8),
    /// The body of this kind is malformed.
    Body(u8),
}

impl std::fmt::Display for BadFrame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BadFrame::Length(len, max) => {
                write!(f, "a frame of {len} bytes where 1 to {max} are allowed")
            }
            BadFrame::Kind(kind) => write!(f, "a frame of the unknown kind {kind}"),
            BadFrame::Body(kind) => write!(f, "a malformed frame of kind {kind}"),
        }
    }
}

/// The first frame of `bytes` and how long it is, or `None` while it is not complete. `longest` is
/// looked at as soon as the length is there, so that nobody waits for, or stores, a frame that will
/// be refused.
pub(super) fn first(bytes: &[u8], longest: usize) -> Result<Option<(Frame<'_>, usize)>, BadFrame> {
    let mut reader = Reader::new(bytes);
    let Some(len) = reader.u32() else {
        return Ok(None);
    };
    let len = len as usize;
    if len == 0 || len > longest {
        return Err(BadFrame::Length(len, longest));
    }
    let Some(content) = reader.take(len) else {
        return Ok(None);
    };
    let kind = content[0];
    let frame = decode(kind, &content[1..])?;
    Ok(Some((frame, 4 + len)))
}

fn decode(kind: u8, body: &[u8]) -> Result<Frame<'_>, BadFrame> {
    let mut reader = Reader::new(body);
    let frame = match kind {
        NOTIFICATION => return Ok(Frame::Notification(body)),
        HELLO => hello(&mut reader),
        WELCOME => welcome(&mut reader),
        REFUSED => refused(&mut reader),
        _ => return Err(BadFrame::Kind(kind)),
    };
    match frame {
        Some(frame) if reader.rest().is_empty() => Ok(frame),
        _ => Err(BadFrame::Body(kind)),
    }
}

fn hello<'a>(reader: &mut Reader<'a>) -> Option<Frame<'a>> {
    let version = reader.u16()?;
    if version != VERSION {
        // What follows is another version's business; the number is enough for a clear answer.
        reader.take(reader.rest().len())?;
        return Some(Frame::Hello {
            version,
            knock: [0; 16],
            name: "",
        });
    }
    Some(Frame::Hello {
        version,
        knock: reader.array()?,
        name: reader.name()?,
    })
}

fn welcome<'a>(reader: &mut Reader<'a>) -> Option<Frame<'a>> {
    Some(Frame::Welcome {
        answer: reader.array()?,
        address: reader.u64()?,
    })
}

fn refused<'a>(reader: &mut Reader<'a>) -> Option<Frame<'a>> {
    let status = reader.i32()?;
    let text = reader.take(reader.rest().len())?;
    if text.len() > MAX_REASON {
        return None;
    }
    Some(Frame::Refused {
        status,
        reason: std::str::from_utf8(text).ok()?,
    })
}

impl Frame<'_> {
    /// The frame as bytes. Notifications are at most [`MAX_PAYLOAD`] long.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0u8; 4];
        match self {
            Frame::Hello {
                version,
                knock,
                name,
            } => {
                debug_assert!(is_name(name));
                out.push(HELLO);
                out.extend_from_slice(&version.to_le_bytes());
                out.extend_from_slice(knock);
                put_name(&mut out, name);
            }
            Frame::Welcome { answer, address } => {
                out.push(WELCOME);
                out.extend_from_slice(answer);
                out.extend_from_slice(&address.to_le_bytes());
            }
            Frame::Refused { status, reason } => {
                out.push(REFUSED);
                out.extend_from_slice(&status.to_le_bytes());
                let mut end = reason.len().min(MAX_REASON);
                while !reason.is_char_boundary(end) {
                    end -= 1;
                }
                out.extend_from_slice(&reason.as_bytes()[..end]);
            }
            Frame::Notification(payload) => {
                out.reserve_exact(1 + payload.len());
                out.push(NOTIFICATION);
                out.extend_from_slice(payload);
            }
        }
        let len = (out.len() - 4) as u32;
        out[..4].copy_from_slice(&len.to_le_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<Frame<'static>> {
        vec![
            Frame::Hello {
                version: VERSION,
                knock: [4; 16],
                name: "decode",
            },
            Frame::Welcome {
                answer: [5; 16],
                address: 0x7fff_0000_1234,
            },
            Frame::Refused {
                status: -11,
                reason: "go away",
            },
            Frame::Notification(b""),
            Frame::Notification(b"\x00\xff not text"),
        ]
    }

    #[test]
    fn frames_come_back_one_by_one() {
        let all: Vec<u8> = frames().iter().flat_map(Frame::encode).collect();
        let mut rest = &all[..];
        for expected in frames() {
            let (frame, used) = first(rest, MAX_FRAME).unwrap().unwrap();
            assert_eq!(frame, expected);
            rest = &rest[used..];
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn an_incomplete_frame_waits() {
        for frame in frames() {
            let bytes = frame.encode();
            for len in 0..bytes.len() {
                assert_eq!(first(&bytes[..len], MAX_FRAME), Ok(None));
            }
        }
    }

    #[test]
    fn what_is_not_a_frame_is_refused() {
        let bad = |bytes: &[u8]| first(bytes, 100).unwrap_err();
        assert_eq!(bad(&[0, 0, 0, 0]), BadFrame::Length(0, 100));
        assert_eq!(bad(&[101, 0, 0, 0]), BadFrame::Length(101, 100));
        assert_eq!(bad(&[1, 0, 0, 0, 9]), BadFrame::Kind(9));
        assert_eq!(bad(&[1, 0, 0, 0, HELLO]), BadFrame::Body(HELLO));
        let mut long = frames()[1].encode();
        long.push(0);
        long[0] += 1;
        assert_eq!(bad(&long), BadFrame::Body(WELCOME));
        let nul = Frame::Hello {
            version: VERSION,
            knock: [0; 16],
            name: "x",
        };
        let mut nul = nul.encode();
        *nul.last_mut().unwrap() = 0;
        assert_eq!(bad(&nul), BadFrame::Body(HELLO));
    }

    #[test]
    fn another_version_is_recognised() {
        let bytes = [5, 0, 0, 0, HELLO, 2, 0, 0xaa, 0xbb];
        let (frame, _) = first(&bytes, 100).unwrap().unwrap();
        assert!(matches!(frame, Frame::Hello { version: 2, .. }));
    }

    #[test]
    fn random_bytes_do_no_harm() {
        let mut seed = 0x0dd0_beef_1234_5678u64;
        let mut next = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for _ in 0..50_000 {
            let len = (next() % 64) as usize;
            let mut bytes: Vec<u8> = (0..len).map(|_| next() as u8).collect();
            // Half of them with a plausible length, to get past the first check.
            if next() % 2 == 0 && len >= 5 {
                bytes[..4].copy_from_slice(&((len - 4) as u32).to_le_bytes());
                bytes[4] = (next() % 6) as u8;
            }
            if let Ok(Some((frame, used))) = first(&bytes, MAX_HANDSHAKE) {
                assert!(used <= bytes.len());
                if !matches!(frame, Frame::Hello { version, .. } if version != VERSION) {
                    assert_eq!(frame.encode(), bytes[..used]);
                }
            }
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let reason = "ü".repeat(MAX_REASON);
        let bytes = Frame::Refused {
            status: -1,
            reason: &reason,
        }
        .encode();
        assert!(matches!(
            first(&bytes, MAX_HANDSHAKE),
            Ok(Some((Frame::Refused { .. }, _)))
        ));
    }
}
