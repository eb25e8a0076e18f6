//! The bytes of a [`Step`].
//!
//! ```text
//! version  sections  clock_ns
//! receives       count  receive...                        bit 0 of sections
//! holds          count  id flags remaining_ns [lease]     bit 1
//! in_batch       count  id...                             bit 2
//! forget         count  id...                             bit 3
//! cancel         count  id...                             bit 4
//! heartbeats     count  peer count id...                  bit 5
//! registrations  count  receive...                        bit 6
//! pushes         count  id tokens count blocks...         bit 7
//!
//! receive  id flags peer id  count (first blocks)...  count blocks...  tokens registration
//!          [expiry: 8 bytes, little-endian double] [lease] [waited_ns]
//! peer     engine_id host port tp_size pp_size dcp_size
//! blocks   count id...      each as its distance from the one expected, which is the one before plus
//!                           one, at first 0; as 2d for d >= 0 and -2d - 1 for d < 0
//! lease    slot generation
//! ```
//!
//! `version` and `sections` are bytes, every other number is an unsigned LEB128, texts have their length
//! in front. Sections that are empty are left out, so that a step in which nothing happens has about ten
//! bytes, and consecutive block ids take one byte each. As with layouts there is exactly one encoding of
//! a step, the decoder accepts nothing else and allocates no more than the bytes before it can fill.

use super::{Heartbeat, Hold, Push, Receive, Step};
use crate::connector::{LeaseRef, MAX_ENGINE_ID, MAX_REQUEST_ID, PeerAddress, check_ranks};
use crate::error::{Error, Result, Status, bail};
use crate::layout::MAX_GROUPS;
use crate::varint::{Reader, Writer};

/// The form that this library writes and reads.
pub const VERSION: u8 = 1;
/// Longest step, in bytes.
pub const MAX_ENCODED: usize = 64 << 20;

const AWAITED: u32 = 1;
const EXPIRY: u32 = 2;
const LEASE: u32 = 4;
const WAITED: u32 = 8;

/// Least bytes that one record takes.
const LEAST_RECEIVE: usize = 16;
const LEAST_ID: usize = 2;

impl Step {
    /// The bytes. What they say is only readable again if every field is within the bounds that the
    /// decoder checks; the scheduler half sees to that where values come in.
    pub fn encode(&self) -> Vec<u8> {
        let lens = [
            self.receives.len(),
            self.holds.len(),
            self.in_batch.len(),
            self.forget.len(),
            self.cancel.len(),
            self.heartbeats.len(),
            self.registrations.len(),
            self.pushes.len(),
        ];
        let sections = (0..8).fold(0, |bits, i| bits | u8::from(lens[i] > 0) << i);
        let mut w = Writer(Vec::with_capacity(self.size_hint()));
        w.0.extend([VERSION, sections]);
        w.number(self.clock_ns);
        section(&mut w, &self.receives, write_receive);
        section(&mut w, &self.holds, write_hold);
        section(&mut w, &self.in_batch, write_id);
        section(&mut w, &self.forget, write_id);
        section(&mut w, &self.cancel, write_id);
        section(&mut w, &self.heartbeats, write_heartbeat);
        section(&mut w, &self.registrations, write_receive);
        section(&mut w, &self.pushes, write_push);
        w.0
    }

    /// Enough for most steps, so that bytes are rarely moved while they are written.
    fn size_hint(&self) -> usize {
        let ids = |lists: &[Vec<u32>]| lists.iter().map(|l| l.len() * 2).sum::<usize>();
        let receive = |r: &Receive| 256 + ids(&r.local) + ids(&r.remote);
        let receives: usize = self.receives.iter().map(receive).sum();
        let registrations: usize = self.registrations.iter().map(receive).sum();
        let pushes: usize = self.pushes.iter().map(|p| 64 + ids(&p.blocks)).sum();
        let beats: usize = self
            .heartbeats
            .iter()
            .map(|h| h.remote_request_ids.len())
            .sum();
        let names = self.holds.len() + self.in_batch.len() + self.forget.len() + self.cancel.len();
        16 + receives + registrations + pushes + (beats + names) * 64
    }

    /// Reads a step. Any error is [`Status::PeerIncompatible`] and says at which byte.
    pub fn decode(bytes: &[u8]) -> Result<Step> {
        decode(bytes)
            .map_err(|e| Error::new(Status::PeerIncompatible, e.message()).context("engine step"))
    }
}

fn section<T>(w: &mut Writer, items: &[T], one: impl Fn(&mut Writer, &T)) {
    if !items.is_empty() {
        list(w, items, one);
    }
}

fn list<T>(w: &mut Writer, items: &[T], one: impl Fn(&mut Writer, &T)) {
    w.number(items.len() as u64);
    for item in items {
        one(w, item);
    }
}

pub(super) fn write_id(w: &mut Writer, id: &String) {
    w.bytes(id.as_bytes());
}

fn write_peer(w: &mut Writer, p: &PeerAddress) {
    w.bytes(p.engine_id.as_bytes());
    w.bytes(p.host.as_bytes());
    w.numbers([
        p.port.into(),
        p.tp_size.into(),
        p.pp_size.into(),
        p.dcp_size.into(),
    ]);
}

fn write_blocks(w: &mut Writer, ids: &[u32]) {
    w.number(ids.len() as u64);
    let mut expected = 0i64;
    for &id in ids {
        let distance = i64::from(id) - expected;
        w.number(((distance << 1) ^ (distance >> 63)) as u64);
        expected = i64::from(id) + 1;
    }
}

fn write_lease(w: &mut Writer, lease: LeaseRef) {
    w.numbers([lease.slot.into(), lease.generation]);
}

pub(super) fn write_receive(w: &mut Writer, r: &Receive) {
    debug_assert_eq!(r.local.len(), r.local_first.len());
    write_id(w, &r.request_id);
    let set = |on: bool, bit: u32| if on { u64::from(bit) } else { 0 };
    w.number(
        set(r.awaited, AWAITED)
            | set(r.expiry.is_some(), EXPIRY)
            | set(r.lease.is_some(), LEASE)
            | set(r.waited_ns > 0, WAITED),
    );
    write_peer(w, &r.peer);
    write_id(w, &r.remote_request_id);
    w.number(r.local.len() as u64);
    for (i, ids) in r.local.iter().enumerate() {
        w.number(r.local_first.get(i).copied().unwrap_or(0).into());
        write_blocks(w, ids);
    }
    list(w, &r.remote, |w, ids| write_blocks(w, ids));
    w.numbers([r.tokens, r.registration]);
    if let Some(expiry) = r.expiry {
        w.0.extend(expiry.to_le_bytes());
    }
    if let Some(lease) = r.lease {
        write_lease(w, lease);
    }
    if r.waited_ns > 0 {
        w.number(r.waited_ns);
    }
}

pub(super) fn write_hold(w: &mut Writer, h: &Hold) {
    write_id(w, &h.request_id);
    w.number(if h.lease.is_some() { LEASE.into() } else { 0 });
    w.number(h.remaining_ns);
    if let Some(lease) = h.lease {
        write_lease(w, lease);
    }
}

pub(super) fn write_heartbeat(w: &mut Writer, h: &Heartbeat) {
    write_peer(w, &h.peer);
    list(w, &h.remote_request_ids, write_id);
}

pub(super) fn write_push(w: &mut Writer, p: &Push) {
    write_id(w, &p.request_id);
    w.number(p.tokens);
    list(w, &p.blocks, |w, ids| write_blocks(w, ids));
}

fn decode(bytes: &[u8]) -> Result<Step> {
    if bytes.len() > MAX_ENCODED {
        bail!(
            Status::PeerIncompatible,
            "{} bytes, more than {MAX_ENCODED}",
            bytes.len()
        );
    }
    let &[version, sections, ..] = bytes else {
        bail!(
            Status::PeerIncompatible,
            "{} bytes are too few",
            bytes.len()
        );
    };
    if version != VERSION {
        bail!(
            Status::PeerIncompatible,
            "version {version}; this library reads {VERSION}"
        );
    }
    let mut r = Reader::new(bytes, 2);
    let r = &mut r;
    let step = Step {
        clock_ns: r.number("clock_ns")?,
        receives: read_section(r, sections, 0, "receives", LEAST_RECEIVE, read_receive)?,
        holds: read_section(r, sections, 1, "holds", LEAST_ID + 2, read_hold)?,
        in_batch: read_section(r, sections, 2, "in_batch", LEAST_ID, read_id)?,
        forget: read_section(r, sections, 3, "forget", LEAST_ID, read_id)?,
        cancel: read_section(r, sections, 4, "cancel", LEAST_ID, read_id)?,
        heartbeats: read_section(r, sections, 5, "heartbeats", 10, read_heartbeat)?,
        registrations: read_section(r, sections, 6, "registrations", LEAST_RECEIVE, read_receive)?,
        pushes: read_section(r, sections, 7, "pushes", LEAST_ID + 2, read_push)?,
    };
    r.end()?;
    Ok(step)
}

fn read_section<'a, T>(
    r: &mut Reader<'a>,
    sections: u8,
    bit: u8,
    name: &str,
    bytes_each: usize,
    one: impl FnMut(&mut Reader<'a>) -> Result<T>,
) -> Result<Vec<T>> {
    if sections >> bit & 1 == 0 {
        return Ok(Vec::new());
    }
    let items = r.list(name, MAX_ENCODED, bytes_each, one)?;
    if items.is_empty() {
        bail!(
            Status::PeerIncompatible,
            "{name} is said to be there and is empty"
        );
    }
    Ok(items)
}

fn read_id(r: &mut Reader<'_>) -> Result<String> {
    read_text(r, MAX_REQUEST_ID, "request id")
}

/// Texts of steps come out of the library as C strings.
fn read_text(r: &mut Reader<'_>, max: usize, name: &str) -> Result<String> {
    let text = r.text(max, name)?;
    if text.contains('\0') {
        bail!(Status::PeerIncompatible, "{name} {text:?} contains a NUL");
    }
    Ok(text.to_owned())
}

fn read_peer(r: &mut Reader<'_>) -> Result<PeerAddress> {
    let peer = PeerAddress {
        engine_id: read_text(r, MAX_ENGINE_ID, "engine_id")?,
        host: read_text(r, MAX_ENGINE_ID, "host")?,
        port: port(r.small("port")?)?,
        tp_size: r.small("tp_size")?,
        pp_size: r.small("pp_size")?,
        dcp_size: r.small("dcp_size")?,
    };
    check_ranks(&peer)?;
    Ok(peer)
}

fn port(value: u32) -> Result<u16> {
    u16::try_from(value).map_err(|_| Error::invalid(format!("port {value} is more than 65535")))
}

fn read_blocks(r: &mut Reader<'_>) -> Result<Vec<u32>> {
    let count = r.count("blocks", MAX_ENCODED, 1)?;
    let mut ids = Vec::with_capacity(count);
    let mut expected = 0i64;
    for i in 0..count {
        let coded = r.number("block")?;
        let distance = (coded >> 1) as i64 ^ -((coded & 1) as i64);
        let Ok(id) = u32::try_from(expected.saturating_add(distance)) else {
            bail!(
                Status::PeerIncompatible,
                "blocks[{i}] is {expected} + {distance}"
            );
        };
        ids.push(id);
        expected = i64::from(id) + 1;
    }
    Ok(ids)
}

fn read_lease(r: &mut Reader<'_>) -> Result<LeaseRef> {
    let lease = LeaseRef {
        slot: r.small("slot")?,
        generation: r.number("generation")?,
    };
    lease.check()?;
    Ok(lease)
}

fn read_flags(r: &mut Reader<'_>, known: u32) -> Result<u32> {
    let flags = r.small("flags")?;
    if flags & !known != 0 {
        bail!(
            Status::PeerIncompatible,
            "flags {flags:#x}, of which {known:#x} are known"
        );
    }
    Ok(flags)
}

fn read_receive(r: &mut Reader<'_>) -> Result<Receive> {
    let request_id = read_id(r)?;
    let flags = read_flags(r, AWAITED | EXPIRY | LEASE | WAITED)?;
    let peer = read_peer(r)?;
    let remote_request_id = read_id(r)?;
    let groups = r.count("local", MAX_GROUPS, 2)?;
    let (mut local, mut local_first) = (Vec::with_capacity(groups), Vec::with_capacity(groups));
    for _ in 0..groups {
        local_first.push(r.small("local_first")?);
        local.push(read_blocks(r)?);
    }
    Ok(Receive {
        request_id,
        peer,
        remote_request_id,
        local,
        local_first,
        remote: r.list("remote", MAX_GROUPS, 1, read_blocks)?,
        tokens: r.number("tokens")?,
        registration: r.number("registration")?,
        awaited: flags & AWAITED != 0,
        expiry: (flags & EXPIRY != 0).then(|| read_expiry(r)).transpose()?,
        lease: (flags & LEASE != 0).then(|| read_lease(r)).transpose()?,
        waited_ns: match flags & WAITED {
            0 => 0,
            _ => read_waited(r)?,
        },
    })
}

fn read_waited(r: &mut Reader<'_>) -> Result<u64> {
    match r.number("waited_ns")? {
        0 => bail!(
            Status::PeerIncompatible,
            "waited_ns is said to be there and is 0"
        ),
        ns => Ok(ns),
    }
}

fn read_expiry(r: &mut Reader<'_>) -> Result<f64> {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(r.raw(8, "expiry")?);
    let seconds = f64::from_le_bytes(bytes);
    if !seconds.is_finite() {
        bail!(Status::PeerIncompatible, "expiry is {seconds}");
    }
    Ok(seconds)
}

fn read_hold(r: &mut Reader<'_>) -> Result<Hold> {
    let request_id = read_id(r)?;
    let flags = read_flags(r, LEASE)?;
    Ok(Hold {
        request_id,
        remaining_ns: r.number("remaining_ns")?,
        lease: (flags != 0).then(|| read_lease(r)).transpose()?,
    })
}

fn read_heartbeat(r: &mut Reader<'_>) -> Result<Heartbeat> {
    Ok(Heartbeat {
        peer: read_peer(r)?,
        remote_request_ids: r.list("remote_request_ids", MAX_ENCODED, LEAST_ID, read_id)?,
    })
}

fn read_push(r: &mut Reader<'_>) -> Result<Push> {
    Ok(Push {
        request_id: read_id(r)?,
        tokens: r.number("tokens")?,
        blocks: r.list("blocks", MAX_GROUPS, 1, read_blocks)?,
    })
}
