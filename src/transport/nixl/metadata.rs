//! NIXL's metadata as bytes: checked before NIXL sees it, sealed against damage, spliced.
//!
//! NIXL serialises with `nixlSerDes` (its `src/utils/serdes`): the word `nixlSerDes|`, then fields
//! of a fixed tag, a native-endian 64-bit length, that many bytes, and `|`. One agent's metadata is
//!
//! ```text
//! Agent <name>  Conns <count: u64>  count × (t <backend> c <connection info>)
//! "" MemSection  nixlSecElms <count: u64>
//! count × (bknd <backend>  nixlDList nixlSDList  t <kind: i32>  n <count: u64>
//!          count × "" <address, length, device: 3 × u64, then the backend's key>)
//! ```
//!
//! NIXL 1.5 trusts what it reads: it indexes an array by the memory kind, and hands connection info
//! and keys to UCX, which does not know their lengths. So the outer form is checked here in full.
//! What is inside the two opaque fields only their backend understands; damage there is caught by a
//! seal that kvferry appends to what it sends: NIXL ignores what follows its last field, so sealed
//! metadata loads in any NIXL agent, and unsealed metadata of such agents loads here. The seal is
//! no protection against malice, which the channel has to keep out.

use crate::checksum::fnv1a;
use crate::error::{Error, Result, Status};
use crate::memory::{MemDesc, MemKind};

const MAGIC: &[u8] = b"nixlSerDes|";
const SEAL: &[u8] = b"kvferry-fnv64:";
const SEAL_LEN: usize = SEAL.len() + 8;

/// What the check found.
#[derive(Debug, PartialEq, Eq)]
pub struct Outline<'a> {
    /// The agent's name.
    pub agent: &'a str,
    /// Backends with connection info.
    pub connections: Vec<&'a str>,
    /// Number of memory ranges over all sections.
    pub ranges: usize,
    /// Where the memory section begins.
    sections_at: usize,
    /// The bytes that NIXL is to see: without the seal.
    pub body: &'a [u8],
}

/// Checks metadata from a peer. Every byte of the outer form is accounted for.
pub fn check(bytes: &[u8]) -> Result<Outline<'_>> {
    let body = unseal(bytes)?;
    let mut r = Reader { body, at: 0 };
    if !body.starts_with(MAGIC) {
        return Err(bad(0, "this is not NIXL metadata"));
    }
    r.at = MAGIC.len();
    let agent = r.text("Agent", "agent name")?;
    let count = r.number("Conns")?;
    let mut connections = Vec::new();
    for _ in 0..count {
        connections.push(r.text("t", "backend name")?);
        if r.field("c")?.is_empty() {
            return Err(bad(r.at, "connection info is empty"));
        }
    }
    let sections_at = r.at;
    if r.field("")? != b"MemSection" {
        return Err(bad(sections_at, "the memory section is missing"));
    }
    let sections = r.number("nixlSecElms")?;
    let mut ranges = 0usize;
    for _ in 0..sections {
        ranges += r.section()?;
    }
    if r.at != body.len() {
        return Err(bad(
            r.at,
            &format!("{} bytes follow the end", body.len() - r.at),
        ));
    }
    Ok(Outline {
        agent,
        connections,
        ranges,
        sections_at,
        body,
    })
}

/// Appends the seal.
pub fn seal(mut body: Vec<u8>) -> Vec<u8> {
    let sum = fnv1a(&body);
    body.extend_from_slice(SEAL);
    body.extend_from_slice(&sum.to_le_bytes());
    body
}

/// The metadata without its seal; an error if there is one that does not fit.
fn unseal(bytes: &[u8]) -> Result<&[u8]> {
    let Some(at) = bytes.len().checked_sub(SEAL_LEN) else {
        return Ok(bytes);
    };
    let (body, tail) = bytes.split_at(at);
    let Some(sum) = tail.strip_prefix(SEAL) else {
        return Ok(bytes);
    };
    if sum != fnv1a(body).to_le_bytes() {
        return Err(bad(
            at,
            "the checksum does not fit: the bytes were damaged on the way",
        ));
    }
    Ok(body)
}

/// Connection info of the first, memory sections of the second: what NIXL's C++ API calls partial
/// metadata with connection info, which its C API cannot ask for.
pub fn splice(connections: &[u8], sections: &[u8]) -> Result<Vec<u8>> {
    let (head, tail) = (check(connections)?, check(sections)?);
    let mut out = head.body[..head.sections_at].to_vec();
    out.extend_from_slice(&tail.body[tail.sections_at..]);
    Ok(out)
}

fn bad(at: usize, why: &str) -> Error {
    Error::new(
        Status::PeerIncompatible,
        format!("metadata, byte {at}: {why}"),
    )
}

struct Reader<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8]> {
        let rest = &self.body[self.at..];
        if len > rest.len() {
            let have = rest.len();
            return Err(bad(
                self.at,
                &format!("{what} needs {len} bytes and there are {have}"),
            ));
        }
        self.at += len;
        Ok(&rest[..len])
    }

    /// One field with this tag.
    fn field(&mut self, tag: &str) -> Result<&'a [u8]> {
        let start = self.at;
        if self.take(tag.len(), "a tag")? != tag.as_bytes() {
            return Err(bad(start, &format!("the tag {tag:?} is missing")));
        }
        let mut len = [0; 8];
        len.copy_from_slice(self.take(8, "a length")?);
        let len = usize::try_from(u64::from_ne_bytes(len)).unwrap_or(usize::MAX);
        let value = self.take(len, "a field")?;
        if self.take(1, "a separator")? != b"|" {
            return Err(bad(self.at - 1, "the separator is missing"));
        }
        Ok(value)
    }

    /// A field that holds a name: UTF-8, not empty, without NUL, since it crosses as a C string.
    fn text(&mut self, tag: &str, what: &str) -> Result<&'a str> {
        let at = self.at;
        let text = std::str::from_utf8(self.field(tag)?)
            .map_err(|_| bad(at, &format!("the {what} is not UTF-8")))?;
        if text.is_empty() || text.contains('\0') {
            return Err(bad(
                at,
                &format!("the {what} {text:?} is empty or has a NUL"),
            ));
        }
        Ok(text)
    }

    fn number(&mut self, tag: &str) -> Result<u64> {
        let at = self.at;
        match <[u8; 8]>::try_from(self.field(tag)?) {
            Ok(bytes) => Ok(u64::from_ne_bytes(bytes)),
            Err(_) => Err(bad(at, &format!("{tag} is not a 64-bit number"))),
        }
    }

    /// One memory section; returns its number of ranges.
    fn section(&mut self) -> Result<usize> {
        let backend = self.text("bknd", "backend name")?;
        let at = self.at;
        if self.field("nixlDList")? != b"nixlSDList" {
            return Err(bad(at, "the section is not a list of registrations"));
        }
        let at = self.at;
        let kind = <[u8; 4]>::try_from(self.field("t")?)
            .map_err(|_| bad(at, "the memory kind is not a 32-bit number"))?;
        let kind = u32::from_ne_bytes(kind);
        if MemKind::from_code(kind).is_err() {
            return Err(bad(at, &format!("memory kind {kind} is not known")));
        }
        let at = self.at;
        let count = self.number("n")?;
        if count == 0 || count > i32::MAX as u64 {
            return Err(bad(at, &format!("a section of {count} ranges")));
        }
        for _ in 0..count {
            self.range(backend)?;
        }
        Ok(count as usize)
    }

    fn range(&mut self, backend: &str) -> Result<()> {
        let at = self.at;
        let field = self.field("")?;
        let (numbers, key) = field
            .split_at_checked(24)
            .ok_or_else(|| bad(at, &format!("a range of {} bytes", field.len())))?;
        let number = |i: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&numbers[8 * i..8 * i + 8]);
            u64::from_ne_bytes(bytes)
        };
        let range = MemDesc {
            addr: number(0),
            len: number(1),
            device: number(2),
        };
        range.end().map_err(|e| bad(at, e.message()))?;
        // UCX reads a key without asking for its length. Other backends may need none.
        if key.is_empty() && backend == "UCX" {
            return Err(bad(at, "a range has no key"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(tag: &str, value: &[u8]) -> Vec<u8> {
        let mut out = tag.as_bytes().to_vec();
        out.extend_from_slice(&(value.len() as u64).to_ne_bytes());
        out.extend_from_slice(value);
        out.push(b'|');
        out
    }

    fn range(addr: u64, len: u64) -> Vec<u8> {
        let mut out = Vec::new();
        for n in [addr, len, 0] {
            out.extend_from_slice(&n.to_ne_bytes());
        }
        out.extend_from_slice(b"key");
        out
    }

    fn sample(name: &[u8], kind: u32, ranges: &[Vec<u8>], conns: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(field("Agent", name));
        out.extend(field("Conns", &(conns.len() as u64).to_ne_bytes()));
        for (backend, info) in conns {
            out.extend(field("t", backend.as_bytes()));
            out.extend(field("c", info));
        }
        out.extend(field("", b"MemSection"));
        out.extend(field(
            "nixlSecElms",
            &u64::from(!ranges.is_empty()).to_ne_bytes(),
        ));
        if !ranges.is_empty() {
            out.extend(field("bknd", b"UCX"));
            out.extend(field("nixlDList", b"nixlSDList"));
            out.extend(field("t", &kind.to_ne_bytes()));
            out.extend(field("n", &(ranges.len() as u64).to_ne_bytes()));
            for r in ranges {
                out.extend(field("", r));
            }
        }
        out
    }

    fn good() -> Vec<u8> {
        sample(
            b"peer",
            0,
            &[range(4096, 8192), range(1 << 40, 1)],
            &[("UCX", b"address")],
        )
    }

    #[test]
    fn good_metadata_is_understood() {
        let bytes = good();
        let outline = check(&bytes).expect("good");
        assert_eq!(outline.agent, "peer");
        assert_eq!(outline.connections, ["UCX"]);
        assert_eq!(outline.ranges, 2);
        assert_eq!(outline.body, bytes);
        let sealed = seal(bytes.clone());
        assert_eq!(check(&sealed).expect("sealed").body, bytes);
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = good();
        for len in 0..bytes.len() {
            let e = check(&bytes[..len]).expect_err("truncated");
            assert_eq!(e.status(), Status::PeerIncompatible, "{len}");
        }
        let sealed = seal(bytes.clone());
        for len in (0..sealed.len()).filter(|len| *len != bytes.len()) {
            assert!(check(&sealed[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn every_flipped_bit_of_sealed_metadata_is_noticed() {
        let sealed = seal(good());
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn what_nixl_would_trust_is_refused() {
        let conns: &[(&str, &[u8])] = &[("UCX", b"address")];
        let ok = range(4096, 1);
        for (why, bytes) in [
            ("kind", sample(b"peer", 5, std::slice::from_ref(&ok), conns)),
            (
                "kind",
                sample(b"peer", u32::MAX, std::slice::from_ref(&ok), conns),
            ),
            ("wraps", sample(b"peer", 0, &[range(u64::MAX, 2)], conns)),
            (
                "no key",
                sample(b"peer", 0, &[range(1, 1)[..24].to_vec()], conns),
            ),
            ("a range of", sample(b"peer", 0, &[vec![0; 23]], conns)),
            (
                "UTF-8",
                sample(b"pe\xffer", 0, std::slice::from_ref(&ok), conns),
            ),
            (
                "NUL",
                sample(b"pe\0er", 0, std::slice::from_ref(&ok), conns),
            ),
            ("empty", sample(b"", 0, std::slice::from_ref(&ok), conns)),
            (
                "empty",
                sample(b"peer", 0, std::slice::from_ref(&ok), &[("UCX", b"")]),
            ),
            ("follow", [good(), b"x".to_vec()].concat()),
        ] {
            let e = check(&bytes).expect_err(why);
            assert!(e.message().contains(why), "{why}: {}", e.message());
        }
    }

    #[test]
    fn counts_beyond_the_bytes_end_quickly() {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(field("Agent", b"peer"));
        bytes.extend(field("Conns", &u64::MAX.to_ne_bytes()));
        assert!(check(&bytes).is_err());
        let mut bytes = MAGIC.to_vec();
        bytes.extend(b"Agent");
        bytes.extend(u64::MAX.to_ne_bytes());
        assert!(check(&bytes).is_err());
    }

    #[test]
    fn splicing_takes_connections_from_one_and_sections_from_the_other() {
        let ranges = [range(4096, 8192)];
        let connections = sample(b"peer", 0, &[], &[("UCX", b"address")]);
        let sections = sample(b"peer", 0, &ranges, &[]);
        let whole = sample(b"peer", 0, &ranges, &[("UCX", b"address")]);
        assert_eq!(splice(&connections, &sections).expect("good parts"), whole);
    }

    #[test]
    fn the_hash_is_fnv1a() {
        // From the reference test vectors.
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
