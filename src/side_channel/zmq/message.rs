//! What the frames of the handshake say: the question, and the clock behind the answer.

use crate::error::{Result, Status, bail};
use crate::msgpack::{Reader, Writer};
use crate::side_channel::Rank;

/// The first element of a question.
pub const MAGIC: &[u8] = b"get_meta_msg";

/// Most bytes of a question's body. A real one has some twenty.
pub const MAX_REQUEST: usize = 256;

/// A question: an array of the magic and two rank numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Whose metadata.
    pub rank: Rank,
    /// Whether it began with [`MAGIC`] as binary data. Stock vLLM answers also when it did not.
    pub magic: bool,
}

impl Request {
    /// The bytes that stock vLLM sends.
    pub fn encode(rank: Rank) -> Vec<u8> {
        let mut w = Writer::default();
        w.array(3);
        w.bin(MAGIC);
        w.uint(rank.pp.into());
        w.uint(rank.tp.into());
        w.into_bytes()
    }

    /// Reads a question.
    ///
    /// # Errors
    /// `PeerIncompatible`, with what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_REQUEST {
            bail!(
                Status::PeerIncompatible,
                "{} bytes are more than {MAX_REQUEST}",
                bytes.len()
            );
        }
        let mut r = Reader::new(bytes);
        match r.array(3)? {
            3 => {}
            n => bail!(Status::PeerIncompatible, "an array of {n}, not 3"),
        }
        let before = r.remaining();
        r.skip()?;
        let word = &bytes[bytes.len() - before..bytes.len() - r.remaining()];
        let mut number = |what| {
            r.uint(u32::MAX.into())
                .map(|n| n as u32)
                .map_err(|e| e.context(what))
        };
        let rank = Rank {
            pp: number("the pipeline rank")?,
            tp: number("the tensor-parallel rank")?,
        };
        r.finish()?;
        let magic = Reader::new(word).bin(MAX_REQUEST).is_ok_and(|w| w == MAGIC);
        Ok(Request { rank, magic })
    }
}

/// The listener's monotonic clock, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clock(pub f64);

impl Clock {
    /// CLOCK_MONOTONIC of now: the clock in which leases are stated.
    pub fn now() -> Self {
        Clock(crate::clock::monotonic_ns() as f64 / 1e9)
    }

    /// The bytes that stock vLLM sends.
    pub fn encode(self) -> Vec<u8> {
        let mut w = Writer::default();
        w.float(self.0);
        w.into_bytes()
    }

    /// Reads a clock: a float, or an integer.
    ///
    /// # Errors
    /// `PeerIncompatible` for anything else, and for a float that is no time.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader::new(bytes);
        let seconds = r.number().map_err(|e| e.context("the clock"))?;
        r.finish().map_err(|e| e.context("the clock"))?;
        if !seconds.is_finite() {
            bail!(Status::PeerIncompatible, "the clock says {seconds}");
        }
        Ok(Clock(seconds))
    }
}
