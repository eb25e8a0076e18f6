//! What an agent tells its peers, as bytes.
//!
//! | field | bytes | |
//! |---|---|---|
//! | magic | 8 | `KVFLOCAL` |
//! | version | u16 | [`VERSION`] |
//! | flags | u16 | bit 0: whole (the ranges are all there are); bit 1: connection info follows |
//! | name | u16, then UTF-8 | name of the agent |
//! | boot id | 16 | of the host, `/proc/sys/kernel/random/boot_id` |
//! | network namespace | u64 | inode of `/proc/self/ns/net` |
//! | PID namespace | u64 | inode of `/proc/self/ns/pid` |
//! | instance | 16 | random per agent; names its socket |
//! | knock, answer | 16 + 16 | only with connection info: the secrets of the handshake |
//! | count | u32 | of ranges |
//! | ranges | count × (u64, u64) | start and length, ascending, neither touching nor overlapping |
//! | check | u64 | FNV-1a of everything before |
//!
//! Integers are little-endian. Decoding is strict: what is not exactly this is refused as
//! [`Status::PeerIncompatible`]. The check is against damage and mix-ups; it is no protection against
//! somebody who forges metadata, who could only name ranges of a process that he can read anyway.

use super::bytes::{MAX_NAME, Reader, put_name};
use super::host::{HostId, Token};
use super::ranges::Span;
use crate::checksum::fnv1a;
use crate::error::{Error, Result, Status, bail};

const MAGIC: &[u8; 8] = b"KVFLOCAL";
/// Version of the format and of the protocol on the socket.
pub(super) const VERSION: u16 = 1;
const WHOLE: u16 = 1;
const CONNECTION: u16 = 2;
/// Most ranges in one blob. Neighbouring registrations are merged, so real caches have hundreds.
const MAX_RANGES: usize = 1 << 20;

/// The secrets that prove both ends of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Secrets {
    pub knock: Token,
    pub answer: Token,
}

/// Decoded metadata.
pub(super) struct Metadata {
    pub name: String,
    pub host: HostId,
    pub instance: Token,
    /// Absent from partial metadata without connection info.
    pub secrets: Option<Secrets>,
    /// Whether `ranges` are all that the agent has registered, or an addition.
    pub whole: bool,
    pub ranges: Vec<Span>,
}

impl Metadata {
    pub fn encode(&self) -> Result<Vec<u8>> {
        if self.ranges.len() > MAX_RANGES {
            bail!(
                Status::ResourceExhausted,
                "{} separate ranges do not fit into metadata, which holds {MAX_RANGES}",
                self.ranges.len()
            );
        }
        let mut out =
            Vec::with_capacity(128 + MAX_NAME.min(self.name.len()) + self.ranges.len() * 16);
        let whole = if self.whole { WHOLE } else { 0 };
        let connection = if self.secrets.is_some() {
            CONNECTION
        } else {
            0
        };
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(whole | connection).to_le_bytes());
        put_name(&mut out, &self.name);
        out.extend_from_slice(&self.host.boot);
        out.extend_from_slice(&self.host.net_ns.to_le_bytes());
        out.extend_from_slice(&self.host.pid_ns.to_le_bytes());
        out.extend_from_slice(&self.instance);
        if let Some(secrets) = &self.secrets {
            out.extend_from_slice(&secrets.knock);
            out.extend_from_slice(&secrets.answer);
        }
        out.extend_from_slice(&(self.ranges.len() as u32).to_le_bytes());
        for span in &self.ranges {
            out.extend_from_slice(&span.start.to_le_bytes());
            out.extend_from_slice(&span.len().to_le_bytes());
        }
        let check = fnv1a(&out);
        out.extend_from_slice(&check.to_le_bytes());
        Ok(out)
    }

    pub fn decode(bytes: &[u8]) -> Result<Metadata> {
        let short = || incompatible(format!("it ends early, after {} bytes", bytes.len()));
        let mut reader = Reader::new(bytes);
        let magic: [u8; 8] = reader.array().ok_or_else(short)?;
        if magic != *MAGIC {
            return Err(incompatible(
                "it was not made by the local transport of kvferry".to_string(),
            ));
        }
        let version = reader.u16().ok_or_else(short)?;
        if version != VERSION {
            return Err(incompatible(format!(
                "it has version {version}; this library understands {VERSION}"
            )));
        }
        // The version comes first, so that a later one may check in another way.
        let (body, check) = bytes
            .split_at_checked(bytes.len().saturating_sub(8))
            .ok_or_else(short)?;
        if Reader::new(check).u64() != Some(fnv1a(body)) {
            return Err(incompatible(format!(
                "its {} bytes are damaged or incomplete",
                bytes.len()
            )));
        }
        decode_body(body).ok_or_else(|| incompatible("its content is malformed".to_string()))
    }
}

/// Everything but the check, from the magic on; `None` when something is not as it must be.
fn decode_body(body: &[u8]) -> Option<Metadata> {
    let mut reader = Reader::new(body);
    reader.take(MAGIC.len() + 2)?;
    let flags = reader.u16()?;
    if flags & !(WHOLE | CONNECTION) != 0 {
        return None;
    }
    let name = reader.name()?.to_string();
    let host = HostId {
        boot: reader.array()?,
        net_ns: reader.u64()?,
        pid_ns: reader.u64()?,
    };
    let instance = reader.array()?;
    let secrets = match flags & CONNECTION {
        0 => None,
        _ => Some(Secrets {
            knock: reader.array()?,
            answer: reader.array()?,
        }),
    };
    let count = usize::try_from(reader.u32()?).ok()?;
    // Comparing with what is there bounds the allocation before it is made.
    if count > MAX_RANGES || reader.rest().len() != count * 16 {
        return None;
    }
    let mut ranges: Vec<Span> = Vec::with_capacity(count);
    for _ in 0..count {
        let start = reader.u64()?;
        let end = start.checked_add(reader.u64()?)?;
        if end == start || ranges.last().is_some_and(|last| start <= last.end) {
            return None;
        }
        ranges.push(Span { start, end });
    }
    Some(Metadata {
        name,
        host,
        instance,
        secrets,
        whole: flags & WHOLE != 0,
        ranges,
    })
}

fn incompatible(why: String) -> Error {
    Error::new(
        Status::PeerIncompatible,
        format!("the metadata cannot be loaded: {why}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(secrets: bool, ranges: usize) -> Metadata {
        Metadata {
            name: "prefill-0 ü".to_string(),
            host: HostId {
                boot: [3; 16],
                net_ns: 4_026_531_840,
                pid_ns: 5,
            },
            instance: [9; 16],
            secrets: secrets.then_some(Secrets {
                knock: [1; 16],
                answer: [2; 16],
            }),
            whole: !secrets,
            ranges: (0..ranges as u64)
                .map(|i| Span {
                    start: i * 0x1000,
                    end: i * 0x1000 + 0xfff,
                })
                .collect(),
        }
    }

    fn refused(bytes: &[u8]) -> Error {
        let error = Metadata::decode(bytes).err().expect("accepted");
        assert_eq!(error.status(), Status::PeerIncompatible);
        error
    }

    /// Puts the right check behind bytes that were tampered with.
    fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
        let body = bytes.len() - 8;
        let check = fnv1a(&bytes[..body]);
        bytes[body..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        for (secrets, ranges) in [(true, 0), (false, 1), (true, 1000)] {
            let written = sample(secrets, ranges);
            let read = Metadata::decode(&written.encode().unwrap()).unwrap();
            assert_eq!(read.name, written.name);
            assert_eq!(read.host, written.host);
            assert_eq!(read.instance, written.instance);
            assert!(read.secrets == written.secrets);
            assert_eq!(read.whole, written.whole);
            assert_eq!(read.ranges, written.ranges);
        }
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_refused() {
        let good = sample(true, 3).encode().unwrap();
        for len in 0..good.len() {
            refused(&good[..len]);
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            refused(&bad);
        }
        let mut longer = good.clone();
        longer.push(0);
        refused(&longer);
    }

    #[test]
    fn a_later_version_is_named() {
        let mut bytes = sample(true, 0).encode().unwrap();
        bytes[8..10].copy_from_slice(&7u16.to_le_bytes());
        let error = refused(&bytes);
        assert!(error.message().contains("version 7"), "{error}");
        assert!(error.message().contains("understands 1"), "{error}");
    }

    #[test]
    fn tampering_with_a_valid_check_is_refused_or_harmless() {
        // The bounded stand-in for the fuzz target: mutated blobs whose check is right again.
        let good = sample(true, 5).encode().unwrap();
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = move |n: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % n as u64) as usize
        };
        for _ in 0..20_000 {
            let mut bad = good.clone();
            for _ in 0..1 + next(4) {
                match next(3) {
                    0 => {
                        let at = next(bad.len());
                        bad[at] = next(256) as u8;
                    }
                    1 => bad.truncate(16 + next(bad.len() - 15)),
                    _ => {
                        let at = next(bad.len());
                        let bytes = vec![next(256) as u8; next(20)];
                        bad.splice(at..at, bytes);
                    }
                }
            }
            if let Ok(read) = Metadata::decode(&sealed(bad)) {
                assert!(super::super::bytes::is_name(&read.name));
                assert!(read.ranges.windows(2).all(|w| w[0].end < w[1].start));
                assert!(read.ranges.iter().all(|r| r.start < r.end));
            }
        }
    }

    #[test]
    fn a_count_beyond_the_bytes_allocates_nothing() {
        let mut bytes = sample(false, 0).encode().unwrap();
        let count = bytes.len() - 12;
        bytes[count..count + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        refused(&sealed(bytes));
    }
}
