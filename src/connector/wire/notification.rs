//! The short messages that ranks send each other over the transport.
//!
//! | bytes | from | to | says |
//! |---|---|---|---|
//! | `ID:N` | consumer, pull | producer | one of the `N` ranks that read from you is done with your request `ID` |
//! | `ID:N` | producer, push | consumer | one of my `N` ranks has written its part of your request `ID` |
//! | `HB:ID,ID,…` | consumer | producer | keep these requests of yours |
//! | `PUSH_REG:` and a map | consumer, push | producer | write my request there |

use super::map::{fits, list, read_map, require, size_of};
use super::{MAX_BLOCKS, MAX_GROUPS, MAX_HEARTBEAT, MAX_NOTIFICATION, MAX_RANKS};
use crate::connector::{MAX_ENGINE_ID, MAX_REQUEST_ID};
use crate::error::{Error, Result, Status, bail};
use crate::msgpack::{Reader, Writer};

const HEARTBEAT: &str = "HB:";
const PUSH_REGISTRATION: &str = "PUSH_REG:";

/// A message between two ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notification {
    /// `ID:N`. Pull: a read-done, `count` is how many consumer ranks will say so to this producer rank.
    /// Push: a push-done, `count` is the producer's TP size.
    Done {
        /// The receiver's id of the request. It may have colons in it: the last one counts.
        request_id: String,
        /// 1 or more.
        count: u32,
    },
    /// `HB:ID,ID,…`: the receiver's ids of requests that are still wanted. An id with a comma in it
    /// arrives as several, which nobody knows: it cannot be kept alive.
    Heartbeat(Vec<String>),
    /// `PUSH_REG:` and a map.
    PushRegistration(Box<PushRegistration>),
}

/// Where a consumer wants a request written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushRegistration {
    /// The consumer's id of the request.
    pub request_id: String,
    /// The consumer.
    pub decode_engine_id: String,
    /// Its side channel.
    pub decode_host: String,
    /// The port of it.
    pub decode_port: u16,
    /// Its TP size.
    pub decode_tp_size: u32,
    /// Logical blocks to write, per transfer group: those that its prefix cache did not have.
    pub local_block_ids: Vec<Vec<u32>>,
    /// The producer, as the router named it; empty where a peer did not send it, as for what follows.
    pub remote_engine_id: String,
    /// Its side channel.
    pub remote_host: String,
    /// The port of it; 0 where it was not sent.
    pub remote_port: u16,
    /// Its TP size; 1 where it was not sent.
    pub remote_tp_size: u32,
    /// Its pipeline stages; 1 where it was not sent.
    pub remote_pp_size: u32,
}

impl Notification {
    /// A [`Notification::Done`].
    pub fn done(request_id: impl Into<String>, count: u32) -> Self {
        Notification::Done {
            request_id: request_id.into(),
            count,
        }
    }

    /// The bytes, as stock vLLM sends them.
    ///
    /// # Errors
    /// `InvalidArgument` for what a receiver would read as something else, or refuse.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let bytes = match self {
            Notification::Done { request_id, count } => {
                id_fits(request_id)?;
                let prefixes = [HEARTBEAT, PUSH_REGISTRATION];
                if *count == 0 || prefixes.iter().any(|p| request_id.starts_with(p)) {
                    return Err(Error::invalid(format!(
                        "{request_id:?}:{count} would not be understood as the end of a request"
                    )));
                }
                format!("{request_id}:{count}").into_bytes()
            }
            Notification::Heartbeat(ids) => {
                fits("requests of a heartbeat", ids.len(), MAX_HEARTBEAT)?;
                if ids.is_empty() {
                    return Err(Error::invalid("a heartbeat for no request"));
                }
                ids.iter().try_for_each(|id| id_fits(id))?;
                format!("{HEARTBEAT}{}", ids.join(",")).into_bytes()
            }
            Notification::PushRegistration(registration) => {
                [PUSH_REGISTRATION.as_bytes(), &registration.encode()?].concat()
            }
        };
        fits("bytes of a notification", bytes.len(), MAX_NOTIFICATION)?;
        Ok(bytes)
    }

    /// Understands a message. It never panics, and allocates no more than the message is long, by a small
    /// factor.
    ///
    /// # Errors
    /// `PeerIncompatible`, with what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Self::read(bytes).map_err(|e| e.context(format_args!("notification {}", Shown(bytes))))
    }

    fn read(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_NOTIFICATION {
            bail!(
                Status::PeerIncompatible,
                "{} bytes are more than {MAX_NOTIFICATION}",
                bytes.len()
            );
        }
        if let Some(map) = bytes.strip_prefix(PUSH_REGISTRATION.as_bytes()) {
            let registration = PushRegistration::decode(map)?;
            return Ok(Notification::PushRegistration(Box::new(registration)));
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|e| Error::new(Status::PeerIncompatible, format!("not UTF-8: {e}")))?;
        if let Some(ids) = text.strip_prefix(HEARTBEAT) {
            return heartbeat(ids);
        }
        let Some((request_id, count)) = text.rsplit_once(':') else {
            bail!(Status::PeerIncompatible, "no colon and no known beginning");
        };
        check_id(request_id)?;
        Ok(Notification::done(request_id, number(count)?))
    }
}

fn heartbeat(text: &str) -> Result<Notification> {
    let mut ids = Vec::new();
    // Stock vLLM passes over what it does not know, an empty id too.
    for id in text.split(',').filter(|id| !id.is_empty()) {
        check_id(id)?;
        if ids.len() == MAX_HEARTBEAT {
            bail!(
                Status::PeerIncompatible,
                "more than {MAX_HEARTBEAT} requests"
            );
        }
        ids.push(id.to_owned());
    }
    Ok(Notification::Heartbeat(ids))
}

/// Decimal digits and nothing else: no sign, no space.
fn number(text: &str) -> Result<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(0) => bail!(
            Status::PeerIncompatible,
            "a count of 0 would never be reached"
        ),
        Ok(n) if digits => Ok(n),
        _ => bail!(
            Status::PeerIncompatible,
            "what follows the last colon is not a decimal number below 2^32"
        ),
    }
}

fn check_id(id: &str) -> Result<()> {
    if id.is_empty() || id.len() > MAX_REQUEST_ID {
        bail!(
            Status::PeerIncompatible,
            "a request id of {} bytes; 1 to {MAX_REQUEST_ID} make one",
            id.len()
        );
    }
    Ok(())
}

fn id_fits(id: &str) -> Result<()> {
    if id.is_empty() {
        return Err(Error::invalid("an empty request id"));
    }
    fits("bytes of a request id", id.len(), MAX_REQUEST_ID)
}

/// The beginning of a message, fit for a log.
struct Shown<'a>(&'a [u8]);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const MOST: usize = 64;
        let start = &self.0[..self.0.len().min(MOST)];
        write!(f, "\"{}\"", start.escape_ascii())?;
        if self.0.len() > MOST {
            write!(f, "… ({} bytes)", self.0.len())?;
        }
        Ok(())
    }
}

/// The keys of the map in the order in which stock vLLM writes them. A producer needs the first six.
const KEYS: [&str; 11] = [
    "request_id",
    "decode_engine_id",
    "decode_host",
    "decode_port",
    "decode_tp_size",
    "local_block_ids",
    "remote_engine_id",
    "remote_host",
    "remote_port",
    "remote_tp_size",
    "remote_pp_size",
];
const REQUIRED: usize = 6;

impl PushRegistration {
    /// The map, without what stands before it.
    fn encode(&self) -> Result<Vec<u8>> {
        id_fits(&self.request_id)?;
        for (what, text) in [
            ("decode_engine_id", &self.decode_engine_id),
            ("decode_host", &self.decode_host),
            ("remote_engine_id", &self.remote_engine_id),
            ("remote_host", &self.remote_host),
        ] {
            fits(what, text.len(), MAX_ENGINE_ID)?;
        }
        for (what, ranks) in [
            ("decode_tp_size", self.decode_tp_size),
            ("remote_tp_size", self.remote_tp_size),
            ("remote_pp_size", self.remote_pp_size),
        ] {
            if !(1..=MAX_RANKS).contains(&ranks) {
                return Err(Error::invalid(format!(
                    "{what}: {ranks} is not in 1 to {MAX_RANKS}"
                )));
            }
        }
        fits("transfer groups", self.local_block_ids.len(), MAX_GROUPS)?;
        fits(
            "block ids",
            self.local_block_ids.iter().map(Vec::len).sum(),
            MAX_BLOCKS,
        )?;
        let mut w = Writer::default();
        w.map(KEYS.len());
        for key in KEYS {
            w.str(key);
            self.put(key, &mut w);
        }
        Ok(w.into_bytes())
    }

    fn put(&self, key: &str, w: &mut Writer) {
        match key {
            "request_id" => w.str(&self.request_id),
            "decode_engine_id" => w.str(&self.decode_engine_id),
            "decode_host" => w.str(&self.decode_host),
            "decode_port" => w.uint(self.decode_port.into()),
            "decode_tp_size" => w.uint(self.decode_tp_size.into()),
            "local_block_ids" => {
                w.array(self.local_block_ids.len());
                for ids in &self.local_block_ids {
                    w.array(ids.len());
                    ids.iter().for_each(|id| w.uint((*id).into()));
                }
            }
            "remote_engine_id" => w.str(&self.remote_engine_id),
            "remote_host" => w.str(&self.remote_host),
            "remote_port" => w.uint(self.remote_port.into()),
            "remote_tp_size" => w.uint(self.remote_tp_size.into()),
            _ => w.uint(self.remote_pp_size.into()),
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let mut found = PushRegistration {
            request_id: String::new(),
            decode_engine_id: String::new(),
            decode_host: String::new(),
            decode_port: 0,
            decode_tp_size: 1,
            local_block_ids: Vec::new(),
            remote_engine_id: String::new(),
            remote_host: String::new(),
            remote_port: 0,
            remote_tp_size: 1,
            remote_pp_size: 1,
        };
        let seen = read_map(bytes, MAX_NOTIFICATION, &KEYS, |r, key| found.take(key, r))?;
        require(&KEYS[..REQUIRED], &seen)?;
        Ok(found)
    }

    fn take(&mut self, key: &str, r: &mut Reader) -> Result<()> {
        match key {
            "request_id" => {
                self.request_id = r.str(MAX_REQUEST_ID)?.to_owned();
                check_id(&self.request_id)?;
            }
            "decode_engine_id" => self.decode_engine_id = r.str(MAX_ENGINE_ID)?.to_owned(),
            "decode_host" => self.decode_host = r.str(MAX_ENGINE_ID)?.to_owned(),
            "decode_port" => self.decode_port = port(r)?,
            "decode_tp_size" => self.decode_tp_size = size_of(r)?,
            "local_block_ids" => self.local_block_ids = blocks(r)?,
            "remote_engine_id" => self.remote_engine_id = r.str(MAX_ENGINE_ID)?.to_owned(),
            "remote_host" => self.remote_host = r.str(MAX_ENGINE_ID)?.to_owned(),
            "remote_port" => self.remote_port = port(r)?,
            "remote_tp_size" => self.remote_tp_size = size_of(r)?,
            _ => self.remote_pp_size = size_of(r)?,
        }
        Ok(())
    }

    /// Whether this registration is for the producer's request of this id: the ids are the same, or are
    /// once the random ending that each engine gives them, a dash and eight hexadecimal digits, is off.
    pub fn is_for(&self, request_id: &str) -> bool {
        self.base() == Self::base_of(request_id)
    }

    /// What is the same in both engines' ids of the request.
    pub(crate) fn base(&self) -> &str {
        Self::base_of(&self.request_id)
    }

    /// A request id without the ending that an engine gave it.
    pub(crate) fn base_of(id: &str) -> &str {
        match id.rsplit_once('-') {
            Some((base, end)) if end.len() == 8 && end.bytes().all(|b| b.is_ascii_hexdigit()) => {
                base
            }
            _ => id,
        }
    }
}

fn port(r: &mut Reader) -> Result<u16> {
    Ok(r.uint(u16::MAX.into())? as u16)
}

fn blocks(r: &mut Reader) -> Result<Vec<Vec<u32>>> {
    let mut left = MAX_BLOCKS;
    let groups = r.array(MAX_GROUPS)?;
    list(r, groups, |r| {
        let n = r.array(left)?;
        left -= n;
        list(r, n, |r| Ok(r.uint(u32::MAX.into())? as u32))
    })
}
