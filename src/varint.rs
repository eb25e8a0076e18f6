//! Numbers in bytes: unsigned LEB128 of at most 64 bits, in its shortest form only, so that a record
//! made of them has exactly one encoding. Used by what kvferry serialises for itself: layouts, and the
//! steps of the connector.

use crate::error::{Error, Result, Status, bail};

/// Appends.
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub(crate) fn numbers<const N: usize>(&mut self, values: [u64; N]) {
        for value in values {
            self.number(value);
        }
    }

    /// Text or other bytes, with their length in front.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }
}

/// Reads from the front. Every error is [`Status::PeerIncompatible`] or, for a number that is too
/// large for its field, [`Status::InvalidArgument`], and says at which byte.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], at: usize) -> Self {
        Reader { bytes, at }
    }

    /// Nothing may follow.
    pub(crate) fn end(&self) -> Result<()> {
        if self.at != self.bytes.len() {
            bail!(
                Status::PeerIncompatible,
                "{} bytes after the end",
                self.bytes.len() - self.at
            );
        }
        Ok(())
    }

    /// The next `len` bytes as they are.
    pub(crate) fn raw(&mut self, len: usize, name: &str) -> Result<&'a [u8]> {
        let Some(bytes) = self.bytes[self.at..].get(..len) else {
            bail!(
                Status::PeerIncompatible,
                "ends within {name}, at byte {}",
                self.bytes.len()
            );
        };
        self.at += len;
        Ok(bytes)
    }

    /// Text with its length in front, of at least 1 and at most `max` bytes.
    pub(crate) fn text(&mut self, max: usize, name: &str) -> Result<&'a str> {
        let start = self.at;
        let len = self.number(name)?;
        if !(1..=max as u64).contains(&len) {
            bail!(
                Status::PeerIncompatible,
                "{name} at byte {start} has {len} bytes; 1 to {max} are allowed"
            );
        }
        std::str::from_utf8(self.raw(len as usize, name)?).map_err(|e| {
            Error::new(
                Status::PeerIncompatible,
                format!("{name} at byte {start} is not UTF-8: {e}"),
            )
        })
    }

    pub(crate) fn number(&mut self, name: &str) -> Result<u64> {
        let start = self.at;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let Some(&byte) = self.bytes.get(self.at) else {
                bail!(
                    Status::PeerIncompatible,
                    "ends within {name}, at byte {}",
                    self.at
                );
            };
            self.at += 1;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    bail!(
                        Status::PeerIncompatible,
                        "{name} at byte {start} is not in its shortest form"
                    );
                }
                return Ok(value);
            }
        }
        bail!(
            Status::PeerIncompatible,
            "{name} at byte {start} has more than 64 bits"
        )
    }

    pub(crate) fn small(&mut self, name: &str) -> Result<u32> {
        let start = self.at;
        let value = self.number(name)?;
        u32::try_from(value).map_err(|_| {
            Error::invalid(format!(
                "{name} {value} at byte {start} has more than 32 bits"
            ))
        })
    }

    /// How many elements follow. Checked against what the remaining bytes could hold, when each takes
    /// at least `bytes_each`, before anything is allocated for them.
    pub(crate) fn count(&mut self, name: &str, max: usize, bytes_each: usize) -> Result<usize> {
        let count = self.number(name)?;
        let room = ((self.bytes.len() - self.at) / bytes_each).min(max) as u64;
        if count > room {
            bail!(
                Status::PeerIncompatible,
                "{count} {name}, where at most {room} can follow"
            );
        }
        Ok(count as usize)
    }

    /// A counted list.
    pub(crate) fn list<T>(
        &mut self,
        name: &str,
        max: usize,
        bytes_each: usize,
        mut one: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let count = self.count(name, max, bytes_each)?;
        let mut out = Vec::with_capacity(count);
        for i in 0..count {
            out.push(one(self).map_err(|e| e.context(format_args!("{name}[{i}]")))?);
        }
        Ok(out)
    }
}
