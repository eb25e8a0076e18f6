//! `kv_transfer_params`: what travels with a request through the router, as JSON.
//!
//! The keys and their meaning are vLLM's, so that either engine may be a stock one; kvferry adds
//! `kvferry_lease`. Routers and proxies pass the object on and may add to it, so unknown keys are
//! ignored, a `null` is the same as a key that is not there, and a duplicate key counts with its last
//! value, as in Python. Everything else is checked, since it comes from outside: types, ranges, lengths.

use std::borrow::Cow;
use std::fmt;

use serde_core::de::{
    Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::{LeaseRef, MAX_ENGINE_ID, MAX_REQUEST_ID, Mode, PeerAddress, check_sizes};
use crate::error::{self, Error};
use crate::layout::MAX_GROUPS;

/// Longest text that is looked at, in bytes.
pub const MAX_JSON: usize = 64 << 20;
/// Most block ids in the parameters of one request.
pub const MAX_BLOCKS: usize = 1 << 20;

/// The parameters of one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Params {
    /// The KV is to be fetched from the engine that is named below.
    pub do_remote_prefill: bool,
    /// The KV is to be kept after the request has finished, for another engine to fetch.
    pub do_remote_decode: bool,
    /// Logical block ids of the other engine, per transfer group. Empty: there are none.
    pub remote_block_ids: Vec<Vec<u32>>,
    /// The other engine.
    pub remote_engine_id: Option<String>,
    /// Its id of the request.
    pub remote_request_id: Option<String>,
    /// Host of its side channel.
    pub remote_host: Option<String>,
    /// Port of its side channel.
    pub remote_port: Option<u16>,
    /// Its transfer ranks.
    pub tp_size: Option<u32>,
    /// Its decode-context-parallel size.
    pub dcp_size: Option<u32>,
    /// Its pipeline stages.
    pub pp_size: Option<u32>,
    /// Tokens whose KV is in its blocks.
    pub remote_num_tokens: u64,
    /// Until when it keeps the blocks, in seconds of its monotonic clock; `None` when a lease that
    /// heartbeats extend says so.
    pub remote_blocks_expiry_time: Option<f64>,
    /// Who moves the bytes: `pull` or `push`.
    pub transfer_mode: Option<String>,
    /// How many handshake payloads its ranks had published; 0 is "not stated".
    pub remote_registration_generation: u64,
    /// The word that tells whether the blocks are still kept.
    pub kvferry_lease: Option<LeaseRef>,
    /// Set by the connector in the engine's copy: the transfer has been started already.
    pub remote_blocks_processed: bool,
    /// Set by the connector in the engine's copy: trailing prompt tokens have been dropped already.
    pub p_side_truncated: bool,
}

/// Whom to ask for a request's KV.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The engine.
    pub peer: PeerAddress,
    /// Its id of the request.
    pub request_id: String,
}

impl Params {
    /// Reads them. The error says which key is not acceptable and where.
    pub fn from_json(json: &[u8]) -> error::Result<Params> {
        if json.len() > MAX_JSON {
            return Err(Error::invalid(format!(
                "kv_transfer_params have {} bytes, more than {MAX_JSON}",
                json.len()
            )));
        }
        let invalid = |e: serde_json::Error| Error::invalid(format!("kv_transfer_params: {e}"));
        let mut reader = serde_json::Deserializer::from_slice(json);
        let params = reader.deserialize_map(ParamsVisitor).map_err(invalid)?;
        reader.end().map_err(invalid)?;
        Ok(params)
    }

    /// Whom to ask, taken out of them: `None` unless engine, request, host and port are all named. Sizes
    /// that are not stated are 1.
    pub fn take_remote(&mut self) -> Option<Remote> {
        let port = self.remote_port.filter(|_| self.names_remote())?;
        Some(Remote {
            peer: PeerAddress {
                engine_id: self.remote_engine_id.take()?,
                host: self.remote_host.take()?,
                port,
                tp_size: self.tp_size.unwrap_or(1),
                pp_size: self.pp_size.unwrap_or(1),
                dcp_size: self.dcp_size.unwrap_or(1),
            },
            request_id: self.remote_request_id.take()?,
        })
    }

    fn names_remote(&self) -> bool {
        let texts = [
            &self.remote_engine_id,
            &self.remote_request_id,
            &self.remote_host,
        ];
        self.remote_port.is_some() && texts.into_iter().all(Option::is_some)
    }

    /// Writes what a producer gives to the other side: vLLM's keys in vLLM's order, then ours.
    /// A stock push producer leaves the expiry out, and so does this.
    pub fn to_json(&self, mode: Mode) -> String {
        let ids: usize = self.remote_block_ids.iter().map(Vec::len).sum();
        let mut out = Object(String::with_capacity(512 + 7 * ids));
        out.key("do_remote_prefill").flag(self.do_remote_prefill);
        out.key("do_remote_decode").flag(self.do_remote_decode);
        out.key("remote_block_ids").groups(&self.remote_block_ids);
        out.key("remote_engine_id")
            .text(self.remote_engine_id.as_deref());
        out.key("remote_request_id")
            .text(self.remote_request_id.as_deref());
        out.key("remote_host").text(self.remote_host.as_deref());
        out.key("remote_port")
            .number(self.remote_port.map(u64::from));
        out.key("tp_size").number(self.tp_size.map(u64::from));
        out.key("dcp_size").number(self.dcp_size.map(u64::from));
        out.key("pp_size").number(self.pp_size.map(u64::from));
        out.key("remote_num_tokens")
            .number(Some(self.remote_num_tokens));
        if mode == Mode::Pull {
            out.key("remote_blocks_expiry_time")
                .seconds(self.remote_blocks_expiry_time);
        }
        out.key("transfer_mode").text(self.transfer_mode.as_deref());
        if self.remote_registration_generation > 0 {
            let generation = self.remote_registration_generation;
            out.key("remote_registration_generation")
                .number(Some(generation));
        }
        if let Some(lease) = self.kvferry_lease {
            out.key("kvferry_lease").lease(lease);
        }
        out.0.push('}');
        out.0
    }

    fn set<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "do_remote_prefill" => self.do_remote_prefill = flag(map)?,
            "do_remote_decode" => self.do_remote_decode = flag(map)?,
            "_remote_blocks_processed" => self.remote_blocks_processed = flag(map)?,
            "_p_side_truncated" => self.p_side_truncated = flag(map)?,
            "remote_block_ids" => {
                self.remote_block_ids = map.next_value::<Option<Groups>>()?.unwrap_or_default().0;
            }
            "remote_engine_id" => self.remote_engine_id = text(map, MAX_ENGINE_ID)?,
            "remote_request_id" => self.remote_request_id = text(map, MAX_REQUEST_ID)?,
            "remote_host" => self.remote_host = text(map, MAX_ENGINE_ID)?,
            "transfer_mode" => self.transfer_mode = text(map, MAX_ENGINE_ID)?,
            "remote_port" => self.remote_port = map.next_value::<Option<Port>>()?.map(|p| p.0),
            "tp_size" => self.tp_size = map.next_value()?,
            "dcp_size" => self.dcp_size = map.next_value()?,
            "pp_size" => self.pp_size = map.next_value()?,
            "remote_num_tokens" => self.remote_num_tokens = number(map)?,
            "remote_registration_generation" => {
                self.remote_registration_generation = number(map)?;
            }
            "remote_blocks_expiry_time" => self.remote_blocks_expiry_time = map.next_value()?,
            "kvferry_lease" => {
                let lease = map.next_value::<Option<(u32, u64)>>()?;
                self.kvferry_lease = lease.map(|(slot, generation)| LeaseRef { slot, generation });
            }
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }

    /// What one key alone cannot show.
    fn check(&self) -> error::Result<()> {
        let blocks: usize = self.remote_block_ids.iter().map(Vec::len).sum();
        if blocks > MAX_BLOCKS {
            return Err(Error::invalid(format!(
                "remote_block_ids has {blocks} ids, more than {MAX_BLOCKS}"
            )));
        }
        if self.names_remote() {
            let size = |n: Option<u32>| n.unwrap_or(1);
            check_sizes(size(self.tp_size), size(self.pp_size), size(self.dcp_size))?;
        }
        if let Some(lease) = self.kvferry_lease {
            lease.check()?;
        }
        Ok(())
    }
}

fn flag<'de, A: MapAccess<'de>>(map: &mut A) -> Result<bool, A::Error> {
    Ok(map.next_value::<Option<bool>>()?.unwrap_or(false))
}

fn number<'de, A: MapAccess<'de>>(map: &mut A) -> Result<u64, A::Error> {
    Ok(map.next_value::<Option<u64>>()?.unwrap_or(0))
}

/// An empty text names nothing.
fn text<'de, A: MapAccess<'de>>(map: &mut A, max: usize) -> Result<Option<String>, A::Error> {
    let text = map
        .next_value::<Option<String>>()?
        .filter(|t| !t.is_empty());
    match &text {
        Some(t) if t.len() > max => Err(A::Error::custom(format_args!(
            "a text of {} bytes, more than {max}",
            t.len()
        ))),
        // No engine that has a C interface can be called that, nor know such a request.
        Some(t) if t.contains('\0') => Err(A::Error::custom("a text with a NUL in it")),
        _ => Ok(text),
    }
}

struct ParamsVisitor;

impl<'de> Visitor<'de> for ParamsVisitor {
    type Value = Params;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Params, A::Error> {
        let mut params = Params::default();
        while let Some(Key(key)) = map.next_key()? {
            params
                .set(&key, &mut map)
                .map_err(|e| A::Error::custom(format_args!("{key}: {e}")))?;
        }
        params.check().map_err(|e| A::Error::custom(e.message()))?;
        Ok(params)
    }
}

/// A key, where it lies if that can be.
struct Key<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(KeyVisitor).map(Key)
    }
}

struct KeyVisitor;

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(key))
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(key.to_owned()))
    }
}

/// Lists of block ids, one for each group. A flat list is that of the only group.
#[derive(Default)]
struct Groups(Vec<Vec<u32>>);

impl<'de> Deserialize<'de> for Groups {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(GroupsVisitor).map(Groups)
    }
}

struct GroupsVisitor;

impl<'de> Visitor<'de> for GroupsVisitor {
    type Value = Vec<Vec<u32>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of block ids for each group")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let first = match list.next_element::<IdOrList>()? {
            None => return Ok(Vec::new()),
            Some(IdOrList::Id(id)) => {
                let mut ids = vec![id];
                while let Some(id) = list.next_element()? {
                    ids.push(id);
                }
                return Ok(vec![ids]);
            }
            Some(IdOrList::List(ids)) => ids,
        };
        let mut groups = vec![first];
        while let Some(ids) = list.next_element()? {
            if groups.len() == MAX_GROUPS {
                return Err(A::Error::custom(format_args!(
                    "more than {MAX_GROUPS} groups"
                )));
            }
            groups.push(ids);
        }
        Ok(groups)
    }
}

enum IdOrList {
    Id(u32),
    List(Vec<u32>),
}

impl<'de> Deserialize<'de> for IdOrList {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(IdOrListVisitor)
    }
}

struct IdOrListVisitor;

impl<'de> Visitor<'de> for IdOrListVisitor {
    type Value = IdOrList;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a block id or a list of them")
    }

    fn visit_u64<E: serde_core::de::Error>(self, id: u64) -> Result<IdOrList, E> {
        let id = u32::try_from(id);
        id.map(IdOrList::Id)
            .map_err(|_| E::custom("a block id has more than 32 bits"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<IdOrList, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = list.next_element()? {
            ids.push(id);
        }
        Ok(IdOrList::List(ids))
    }
}

/// A port, which some routers carry as text.
struct Port(u16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(PortVisitor).map(Port)
    }
}

struct PortVisitor;

impl Visitor<'_> for PortVisitor {
    type Value = u16;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a port, 0 to 65535")
    }

    fn visit_u64<E: serde_core::de::Error>(self, port: u64) -> Result<u16, E> {
        u16::try_from(port).map_err(|_| E::custom(format_args!("port {port} is more than 65535")))
    }

    fn visit_str<E: serde_core::de::Error>(self, port: &str) -> Result<u16, E> {
        port.parse()
            .map_err(|_| E::custom("a text that is no port"))
    }
}

/// An object being written.
struct Object(String);

impl Object {
    fn key(&mut self, name: &str) -> &mut Self {
        self.0
            .push_str(if self.0.is_empty() { "{\"" } else { ", \"" });
        self.0.push_str(name);
        self.0.push_str("\": ");
        self
    }

    fn flag(&mut self, on: bool) {
        self.0.push_str(if on { "true" } else { "false" });
    }

    fn null(&mut self) {
        self.0.push_str("null");
    }

    fn digits(&mut self, mut value: u64) {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (value % 10) as u8;
            value /= 10;
            if value == 0 {
                break;
            }
        }
        self.0.extend(digits[at..].iter().map(|&d| char::from(d)));
    }

    fn number(&mut self, value: Option<u64>) {
        match value {
            Some(value) => self.digits(value),
            None => self.null(),
        }
    }

    fn text(&mut self, text: Option<&str>) {
        match text {
            Some(text) => self.0.push_str(&serde_json::Value::from(text).to_string()),
            None => self.null(),
        }
    }

    /// In the shortest form that reads back as the same double.
    fn seconds(&mut self, value: Option<f64>) {
        match value.and_then(serde_json::Number::from_f64) {
            Some(value) => self.0.push_str(&value.to_string()),
            None => self.null(),
        }
    }

    fn groups(&mut self, groups: &[Vec<u32>]) {
        self.list(groups, |out, ids| {
            out.list(ids, |out, &id| out.digits(id.into()));
        });
    }

    fn list<T>(&mut self, items: &[T], one: impl Fn(&mut Self, &T)) {
        self.0.push('[');
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.0.push_str(", ");
            }
            one(self, item);
        }
        self.0.push(']');
    }

    fn lease(&mut self, lease: LeaseRef) {
        self.list(&[lease.slot.into(), lease.generation], |out, &n| {
            out.digits(n)
        });
    }
}
