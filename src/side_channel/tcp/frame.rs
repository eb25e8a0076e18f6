//! One message on the wire: a 4-byte big-endian length, then that many bytes.

use std::fmt;
use std::io::{self, ErrorKind, Read};

use crate::error::{Error, Result, Status, bail};

/// The length of the prefix, in bytes.
pub const HEADER: usize = 4;

/// The most a message can carry: what the prefix can count.
pub const MAX_PAYLOAD: usize = u32::MAX as usize;

/// How much is read in one go, so that the reader's caller can look at the clock in between
/// however fast the bytes come.
const STEP: usize = 1 << 20;

/// The message that carries `payload`, in the payload's own allocation where that can grow.
///
/// # Errors
/// `InvalidArgument` when the payload is longer than [`MAX_PAYLOAD`], `ResourceExhausted` without
/// memory.
pub fn encode(mut payload: Vec<u8>) -> Result<Vec<u8>> {
    let Ok(length) = u32::try_from(payload.len()) else {
        return Err(Error::invalid(format!(
            "{} bytes do not fit a message of at most {MAX_PAYLOAD}",
            payload.len()
        )));
    };
    if payload.try_reserve_exact(HEADER).is_err() {
        bail!(
            Status::ResourceExhausted,
            "no memory for a message of {length} bytes"
        );
    }
    payload.splice(..0, length.to_be_bytes());
    Ok(payload)
}

/// What one step of a [`MessageReader`] has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The message is whole.
    Complete,
    /// Bytes came, and there may be more at once.
    Advanced,
    /// There is nothing to read now.
    WouldBlock,
}

/// Reads one message from a source that may stop at any byte and go on later.
///
/// The announced length is checked before anything is allocated, and memory is taken as the bytes
/// come: a peer that announces much and sends little costs little. Bytes after the message are
/// not read.
#[derive(Debug)]
pub struct MessageReader {
    max: usize,
    header: [u8; HEADER],
    header_read: usize,
    /// Known, and known to be within `max`, once the header is whole.
    length: Option<usize>,
    payload: Vec<u8>,
}

impl MessageReader {
    /// A reader of one message whose payload has at most `max` bytes.
    pub fn new(max: usize) -> Self {
        MessageReader {
            max,
            header: [0; HEADER],
            header_read: 0,
            length: None,
            payload: Vec::new(),
        }
    }

    /// Reads what can be had, at most about a mebibyte.
    ///
    /// # Errors
    /// `PeerIncompatible` when the announced length exceeds the limit; `PeerLost` when the source
    /// ends or the connection breaks first; `ResourceExhausted` without memory; otherwise the
    /// source's own error. The message has what came and what was due.
    pub fn step(&mut self, source: &mut impl Read) -> Result<Step> {
        let Some(length) = self.length else {
            return self.step_header(source);
        };
        let left = length - self.payload.len();
        if left == 0 {
            return Ok(Step::Complete);
        }
        let before = self.payload.len();
        // Appends without filling first, keeps what came before an error, and reports rather than
        // aborts when there is no memory.
        let outcome = source
            .take(left.min(STEP) as u64)
            .read_to_end(&mut self.payload);
        match outcome {
            _ if self.payload.len() == length => Ok(Step::Complete),
            Ok(1..) => Ok(Step::Advanced),
            // A failure is reported although bytes came before it: a socket tells it only once.
            Err(e) if e.kind() == ErrorKind::WouldBlock && self.payload.len() > before => {
                Ok(Step::Advanced)
            }
            outcome => self.without_bytes(outcome),
        }
    }

    fn step_header(&mut self, source: &mut impl Read) -> Result<Step> {
        let outcome = source.read(&mut self.header[self.header_read..]);
        let Ok(n @ 1..) = outcome else {
            return self.without_bytes(outcome);
        };
        self.header_read += n;
        if self.header_read < HEADER {
            return Ok(Step::Advanced);
        }
        let length = u32::from_be_bytes(self.header) as usize;
        if length > self.max {
            bail!(
                Status::PeerIncompatible,
                "a message of {length} bytes is announced, {} are allowed",
                self.max
            );
        }
        self.length = Some(length);
        Ok(if length == 0 {
            Step::Complete
        } else {
            Step::Advanced
        })
    }

    /// What it means that a read brought nothing.
    fn without_bytes(&self, outcome: io::Result<usize>) -> Result<Step> {
        match outcome {
            Ok(_) => bail!(Status::PeerLost, "the connection ended after {self}"),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(Step::WouldBlock),
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(Step::Advanced),
            Err(e) => Err(Error::from_io(
                format_args!("the connection broke after {self}"),
                &e,
            )),
        }
    }

    /// The payload of a complete message; before that, what there is of it.
    pub fn into_payload(self) -> Vec<u8> {
        self.payload
    }
}

/// How far it has come, such as `2 of 4 length bytes` or `10 of 100 bytes`.
impl fmt::Display for MessageReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.length {
            Some(length) => write!(f, "{} of {length} bytes", self.payload.len()),
            None => write!(f, "{} of {HEADER} length bytes", self.header_read),
        }
    }
}
