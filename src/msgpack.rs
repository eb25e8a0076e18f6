//! MessagePack, value by value, for bytes that come from strangers.
//!
//! A [`Reader`] looks at the type and the length of each value before anything is allocated, takes
//! exactly the type that it is asked for, and never reads or allocates more than the bytes that are
//! there can justify. What is wrong is said with the place, by whoever calls (`Error::context`).

use rmp::{Marker, encode};

use crate::error::{Error, Result, Status, bail};

/// Reads one value after the other from a slice.
pub(crate) struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Reader { data, at: 0 }
    }

    /// Bytes that have not been read.
    pub(crate) fn remaining(&self) -> usize {
        self.data.len() - self.at
    }

    /// Makes sure that nothing follows.
    pub(crate) fn finish(self) -> Result<()> {
        if self.remaining() > 0 {
            bail!(
                Status::PeerIncompatible,
                "{} bytes follow the end, at byte {}",
                self.remaining(),
                self.at
            );
        }
        Ok(())
    }

    /// An integer from 0 to `max`.
    pub(crate) fn uint(&mut self, max: u64) -> Result<u64> {
        let value = self.int()?;
        match u64::try_from(value) {
            Ok(value) if value <= max => Ok(value),
            _ => bail!(Status::PeerIncompatible, "{value} is not in 0 to {max}"),
        }
    }

    /// An integer of any kind, wide enough for all of them.
    pub(crate) fn int(&mut self) -> Result<i128> {
        Ok(match self.marker("an integer")? {
            Marker::FixPos(v) => v.into(),
            Marker::FixNeg(v) => v.into(),
            Marker::U8 => self.be::<1>()?[0].into(),
            Marker::U16 => u16::from_be_bytes(self.be()?).into(),
            Marker::U32 => u32::from_be_bytes(self.be()?).into(),
            Marker::U64 => u64::from_be_bytes(self.be()?).into(),
            Marker::I8 => i8::from_be_bytes(self.be()?).into(),
            Marker::I16 => i16::from_be_bytes(self.be()?).into(),
            Marker::I32 => i32::from_be_bytes(self.be()?).into(),
            Marker::I64 => i64::from_be_bytes(self.be()?).into(),
            other => return Err(unexpected("an integer", other)),
        })
    }

    /// A float or an integer.
    pub(crate) fn number(&mut self) -> Result<f64> {
        match self.peek("a number")? {
            Marker::F64 => {
                self.at += 1;
                Ok(f64::from_be_bytes(self.be()?))
            }
            Marker::F32 => {
                self.at += 1;
                Ok(f32::from_be_bytes(self.be()?).into())
            }
            _ => Ok(self.int()? as f64),
        }
    }

    /// A string of at most `max` bytes.
    pub(crate) fn str(&mut self, max: usize) -> Result<&'a str> {
        let len = match self.marker("a string")? {
            Marker::FixStr(n) => n.into(),
            Marker::Str8 => self.be::<1>()?[0].into(),
            Marker::Str16 => u16::from_be_bytes(self.be()?).into(),
            Marker::Str32 => u32::from_be_bytes(self.be()?),
            other => return Err(unexpected("a string", other)),
        };
        let bytes = self.bytes(len, max, "a string")?;
        std::str::from_utf8(bytes).map_err(|e| {
            Error::new(
                Status::PeerIncompatible,
                format!("a string is not UTF-8: {e}"),
            )
        })
    }

    /// Binary data of at most `max` bytes.
    pub(crate) fn bin(&mut self, max: usize) -> Result<&'a [u8]> {
        let len = match self.marker("binary data")? {
            Marker::Bin8 => self.be::<1>()?[0].into(),
            Marker::Bin16 => u16::from_be_bytes(self.be()?).into(),
            Marker::Bin32 => u32::from_be_bytes(self.be()?),
            other => return Err(unexpected("binary data", other)),
        };
        self.bytes(len, max, "binary data")
    }

    /// The head of an array of at most `max` elements; so many values follow.
    pub(crate) fn array(&mut self, max: usize) -> Result<usize> {
        let len = match self.marker("an array")? {
            Marker::FixArray(n) => n.into(),
            Marker::Array16 => u16::from_be_bytes(self.be()?).into(),
            Marker::Array32 => u32::from_be_bytes(self.be()?),
            other => return Err(unexpected("an array", other)),
        };
        self.count(len, 1, max, "an array")
    }

    /// The head of a map of at most `max` entries; so many pairs of values follow.
    pub(crate) fn map(&mut self, max: usize) -> Result<usize> {
        let len = match self.marker("a map")? {
            Marker::FixMap(n) => n.into(),
            Marker::Map16 => u16::from_be_bytes(self.be()?).into(),
            Marker::Map32 => u32::from_be_bytes(self.be()?),
            other => return Err(unexpected("a map", other)),
        };
        self.count(len, 2, max, "a map")
    }

    /// Whether the next value is nil, which is read then.
    pub(crate) fn nil(&mut self) -> Result<bool> {
        let nil = self.peek("a value")? == Marker::Null;
        self.at += usize::from(nil);
        Ok(nil)
    }

    /// Reads one value of any type, with everything in it. However deep it is, this takes no stack.
    pub(crate) fn skip(&mut self) -> Result<()> {
        let mut values: u64 = 1;
        while values > 0 {
            values -= 1;
            let bytes = match self.marker("a value")? {
                Marker::Null | Marker::True | Marker::False => 0,
                Marker::FixPos(_) | Marker::FixNeg(_) => 0,
                Marker::U8 | Marker::I8 => 1,
                Marker::U16 | Marker::I16 => 2,
                Marker::U32 | Marker::I32 | Marker::F32 => 4,
                Marker::U64 | Marker::I64 | Marker::F64 => 8,
                Marker::FixStr(n) => n.into(),
                Marker::Str8 | Marker::Bin8 => self.be::<1>()?[0].into(),
                Marker::Str16 | Marker::Bin16 => u16::from_be_bytes(self.be()?).into(),
                Marker::Str32 | Marker::Bin32 => u32::from_be_bytes(self.be()?),
                // The type of an extension is one more byte.
                Marker::FixExt1 => 2,
                Marker::FixExt2 => 3,
                Marker::FixExt4 => 5,
                Marker::FixExt8 => 9,
                Marker::FixExt16 => 17,
                Marker::Ext8 => u32::from(self.be::<1>()?[0]) + 1,
                Marker::Ext16 => u32::from(u16::from_be_bytes(self.be()?)) + 1,
                Marker::Ext32 => u32::from_be_bytes(self.be()?).saturating_add(1),
                head => {
                    let inside = match head {
                        Marker::FixArray(n) => n.into(),
                        Marker::Array16 => u16::from_be_bytes(self.be()?).into(),
                        Marker::Array32 => u32::from_be_bytes(self.be()?).into(),
                        Marker::FixMap(n) => 2 * u64::from(n),
                        Marker::Map16 => 2 * u64::from(u16::from_be_bytes(self.be()?)),
                        Marker::Map32 => 2 * u64::from(u32::from_be_bytes(self.be()?)),
                        other => return Err(unexpected("a value", other)),
                    };
                    // Each needs a byte; so the sum stays small too.
                    values += inside;
                    if values > self.remaining() as u64 {
                        return Err(cut_short("a value"));
                    }
                    0
                }
            };
            self.take(bytes as usize, "a value")?;
        }
        Ok(())
    }

    fn peek(&self, what: &str) -> Result<Marker> {
        match self.data.get(self.at) {
            Some(byte) => Ok(Marker::from_u8(*byte)),
            None => Err(cut_short(what)),
        }
    }

    fn marker(&mut self, what: &str) -> Result<Marker> {
        let marker = self.peek(what)?;
        self.at += 1;
        Ok(marker)
    }

    fn be<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut value = [0; N];
        value.copy_from_slice(self.take(N, "a number or a length")?);
        Ok(value)
    }

    fn bytes(&mut self, len: u32, max: usize, what: &str) -> Result<&'a [u8]> {
        if len as usize > max {
            bail!(
                Status::PeerIncompatible,
                "{what} of {len} bytes is longer than {max}"
            );
        }
        self.take(len as usize, what)
    }

    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8]> {
        if len > self.remaining() {
            return Err(cut_short(what));
        }
        let bytes = &self.data[self.at..self.at + len];
        self.at += len;
        Ok(bytes)
    }

    /// A count that the bytes that are left can hold, so that it is fit to allocate by.
    fn count(&self, len: u32, each: usize, max: usize, what: &str) -> Result<usize> {
        let len = len as usize;
        if len > max {
            bail!(
                Status::PeerIncompatible,
                "{what} of {len} entries is longer than {max}"
            );
        }
        if len > self.remaining() / each {
            return Err(cut_short(what));
        }
        Ok(len)
    }
}

fn unexpected(wanted: &str, found: Marker) -> Error {
    let found = match found {
        Marker::Null => "nil",
        Marker::True | Marker::False => "a boolean",
        Marker::FixPos(_) | Marker::U8 | Marker::U16 | Marker::U32 | Marker::U64 => "an integer",
        Marker::FixNeg(_) | Marker::I8 | Marker::I16 | Marker::I32 | Marker::I64 => "an integer",
        Marker::F32 | Marker::F64 => "a float",
        Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => "a string",
        Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => "binary data",
        Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => "an array",
        Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => "a map",
        Marker::Reserved => "the byte c1, which means nothing",
        _ => "an extension",
    };
    Error::new(
        Status::PeerIncompatible,
        format!("expected {wanted}, found {found}"),
    )
}

fn cut_short(what: &str) -> Error {
    Error::new(
        Status::PeerIncompatible,
        format!("the bytes end where {what} should be, or inside it"),
    )
}

/// Writes one value after the other, each in its shortest form.
#[derive(Default)]
pub(crate) struct Writer(Vec<u8>);

// Writing into a Vec cannot fail, so the results say nothing.
impl Writer {
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub(crate) fn uint(&mut self, value: u64) {
        let _ = encode::write_uint(&mut self.0, value);
    }

    pub(crate) fn int(&mut self, value: i64) {
        let _ = encode::write_sint(&mut self.0, value);
    }

    pub(crate) fn float(&mut self, value: f64) {
        let _ = encode::write_f64(&mut self.0, value);
    }

    pub(crate) fn nil(&mut self) {
        let _ = encode::write_nil(&mut self.0);
    }

    /// A string shorter than 4 GiB.
    pub(crate) fn str(&mut self, value: &str) {
        let _ = encode::write_str(&mut self.0, value);
    }

    /// Bytes, fewer than 4 Gi.
    pub(crate) fn bin(&mut self, value: &[u8]) {
        let _ = encode::write_bin(&mut self.0, value);
    }

    /// The head of an array; `len` values have to follow.
    pub(crate) fn array(&mut self, len: usize) {
        let _ = encode::write_array_len(&mut self.0, len as u32);
    }

    /// The head of a map; `len` pairs of values have to follow.
    pub(crate) fn map(&mut self, len: usize) {
        let _ = encode::write_map_len(&mut self.0, len as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<T>(result: Result<T>) -> String {
        let e = result.err().expect("refused");
        assert_eq!(e.status(), Status::PeerIncompatible);
        e.message().to_owned()
    }

    #[test]
    fn integers_of_every_width() {
        let cases: [(&[u8], i128); 12] = [
            (&[0x00], 0),
            (&[0x7f], 127),
            (&[0xff], -1),
            (&[0xe0], -32),
            (&[0xcc, 0xff], 255),
            (&[0xcd, 1, 0], 256),
            (&[0xce, 0, 1, 0, 0], 65536),
            (
                &[0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
                u64::MAX as i128,
            ),
            (&[0xd0, 0x80], -128),
            (&[0xd1, 0x80, 0], -32768),
            (&[0xd2, 0x80, 0, 0, 0], i32::MIN as i128),
            (&[0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0], i64::MIN as i128),
        ];
        for (bytes, expected) in cases {
            let mut r = Reader::new(bytes);
            assert_eq!(r.int().unwrap(), expected);
            r.finish().unwrap();
            for end in 0..bytes.len() {
                refused(Reader::new(&bytes[..end]).int());
            }
        }
        assert!(refused(Reader::new(&[0xff]).uint(9)).contains("-1"));
        assert!(refused(Reader::new(&[10]).uint(9)).contains("10 is not in 0 to 9"));
    }

    #[test]
    fn the_type_is_the_one_that_was_asked_for() {
        let float = [0xcb, 0x40, 0x24, 0, 0, 0, 0, 0, 0];
        assert!(refused(Reader::new(&float).int()).contains("found a float"));
        assert_eq!(Reader::new(&float).number().unwrap(), 10.0);
        assert_eq!(Reader::new(&[10]).number().unwrap(), 10.0);
        assert!(refused(Reader::new(b"\xa1x").bin(9)).contains("found a string"));
        assert!(refused(Reader::new(b"\xc4\x01x").str(9)).contains("found binary"));
        assert!(refused(Reader::new(b"\x80").array(9)).contains("found a map"));
        assert!(refused(Reader::new(b"\xc1").skip()).contains("c1"));
        assert!(refused(Reader::new(b"\xa2\xc3\x28").str(9)).contains("UTF-8"));
    }

    #[test]
    fn lengths_are_checked_before_they_are_believed() {
        let huge: [&[u8]; 4] = [
            b"\xdb\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
            b"\xdd\xff\xff\xff\xff",
            b"\xdf\xff\xff\xff\xff",
        ];
        for (i, bytes) in huge.into_iter().enumerate() {
            for (max, says) in [(usize::MAX, "end"), (10, "longer than 10")] {
                let mut r = Reader::new(bytes);
                let message = match i {
                    0 => refused(r.str(max)),
                    1 => refused(r.bin(max)),
                    2 => refused(r.array(max)),
                    _ => refused(r.map(max)),
                };
                assert!(message.contains(says), "{message}");
            }
            refused(Reader::new(bytes).skip());
        }
        // A map of one needs two more bytes.
        refused(Reader::new(b"\x81\x01").map(9));
    }

    #[test]
    fn skipping_takes_one_whole_value() {
        let values: [&[u8]; 12] = [
            b"\xc0",
            b"\xc3",
            b"\x05",
            b"\xcb\0\0\0\0\0\0\0\0",
            b"\xa3abc",
            b"\xc4\x02ab",
            b"\xd4\x01a",
            b"\xc7\x03\x01abc",
            b"\xd8\x01aaaaaaaaaaaaaaaa",
            b"\x93\x01\x92\x02\x03\xa1a",
            b"\x82\xa1a\x90\xa1b\x81\x01\x02",
            b"\xdc\0\x02\x01\x02",
        ];
        for value in values {
            let bytes = [value, b"\x2a"].concat();
            let mut r = Reader::new(&bytes);
            r.skip().unwrap();
            assert_eq!(r.uint(99).unwrap(), 42, "{value:x?}");
            for end in 0..value.len() {
                refused(Reader::new(&value[..end]).skip());
            }
        }
    }

    #[test]
    fn depth_costs_nothing() {
        let mut bytes = vec![0x91; 1 << 20];
        refused(Reader::new(&bytes).skip());
        bytes.push(0xc0);
        Reader::new(&bytes).skip().unwrap();
    }
}
