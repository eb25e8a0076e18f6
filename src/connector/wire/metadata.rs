//! What a rank says about itself: the inner map of the handshake.

use super::map::{fits, list, opt, read_map, require, u32_of};
use super::{MAX_LAYERS, MAX_LEASE_WORDS, MAX_NAME, MAX_PAYLOAD, MAX_REGIONS};
use crate::connector::MAX_ENGINE_ID;
use crate::error::{Error, Result, Status, bail};
use crate::msgpack::{Reader, Writer};

/// What one rank tells the ranks of other engines about itself: the map that vLLM calls
/// `NixlAgentMetadata` (connector version 14, vLLM 0.32), and what kvferry adds to it. `R` is the number
/// of regions.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct AgentMetadata {
    /// The engine's id.
    pub engine_id: String,
    /// The transport agent's own metadata, opaque.
    pub agent_metadata: Vec<u8>,
    /// Address of block 0 of each region.
    pub base_addrs: Vec<u64>,
    /// Device of the memory.
    pub device_id: u64,
    /// Kernel blocks in the pool.
    pub num_blocks: u64,
    /// Bytes of one kernel block in each region.
    pub block_lens: Vec<u64>,
    /// Bytes between the starts of consecutive kernel blocks in each region.
    pub block_strides: Vec<u64>,
    /// Physical order in a block, such as `LBHNC`.
    pub kv_cache_layout: String,
    /// Tokens of one kernel block.
    pub block_size: u32,
    /// Bytes of convolution and of recurrent state on this rank; zeros without Mamba.
    pub ssm_sizes: (u64, u64),
    /// Name of the first attention backend.
    pub attn_backend_name: String,
    /// Kernel blocks per logical block.
    pub blocks_per_logical: u32,
    /// Kernel blocks of each region; `None` is `num_blocks` for all.
    pub region_num_blocks: Option<Vec<u64>>,
    /// Transfer group of each region, -1 where several share it.
    pub region_group_ids: Option<Vec<i64>>,
    /// First layer in each region.
    pub region_names: Option<Vec<String>>,
    /// `VRAM` or `DRAM` for each region.
    pub region_mem_types: Option<Vec<String>>,
    /// Decode-context-parallel size.
    pub dcp_size: u32,
    /// Prefill-context-parallel size.
    pub pcp_size: u32,
    /// Page bytes of a replicated short-convolution state.
    pub ple_block_len: Option<u64>,
    /// Layers of each region, where listed.
    pub region_members: Vec<Vec<String>>,
    /// Offset and bytes of layers inside packed block rows.
    pub packed_member_layouts: Vec<(String, (u64, u64))>,
    /// kvferry only (key `kvferry_lease_table`): address and number of 64-bit lease words in host
    /// memory; see [`LeaseRef`](crate::connector::LeaseRef).
    pub lease_table: Option<(u64, u64)>,
}

/// The keys of the map in the order in which stock vLLM writes them, and the one that kvferry adds.
/// The first twelve have to be there.
const KEYS: [&str; 22] = [
    "engine_id",
    "agent_metadata",
    "kv_caches_base_addr",
    "device_id",
    "num_blocks",
    "block_lens",
    "block_strides",
    "kv_cache_layout",
    "block_size",
    "ssm_sizes",
    "attn_backend_name",
    "physical_blocks_per_logical_kv_block",
    "region_num_blocks",
    "region_group_ids",
    "region_names",
    "region_mem_types",
    "dcp_size",
    "pcp_size",
    "ple_block_len",
    "region_members",
    "packed_member_layouts",
    "kvferry_lease_table",
];
const REQUIRED: usize = 12;
const STOCK: usize = 21;

impl AgentMetadata {
    /// The map as stock vLLM writes it: all its keys, defaults too, in its order. The lease table follows
    /// when there is one.
    ///
    /// # Errors
    /// `InvalidArgument` for what [`AgentMetadata::decode`] would refuse for its size.
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.check()?;
        let mut w = Writer::default();
        let keys = if self.lease_table.is_some() {
            KEYS.len()
        } else {
            STOCK
        };
        w.map(keys);
        for key in &KEYS[..keys] {
            w.str(key);
            self.put(key, &mut w);
        }
        let bytes = w.into_bytes();
        fits("agent metadata", bytes.len(), MAX_PAYLOAD)?;
        Ok(bytes)
    }

    fn put(&self, key: &str, w: &mut Writer) {
        match key {
            "engine_id" => w.str(&self.engine_id),
            "agent_metadata" => w.bin(&self.agent_metadata),
            "kv_caches_base_addr" => put_uints(w, &self.base_addrs),
            "device_id" => w.uint(self.device_id),
            "num_blocks" => w.uint(self.num_blocks),
            "block_lens" => put_uints(w, &self.block_lens),
            "block_strides" => put_uints(w, &self.block_strides),
            "kv_cache_layout" => w.str(&self.kv_cache_layout),
            "block_size" => w.uint(self.block_size.into()),
            "ssm_sizes" => put_pair(w, self.ssm_sizes),
            "attn_backend_name" => w.str(&self.attn_backend_name),
            "physical_blocks_per_logical_kv_block" => w.uint(self.blocks_per_logical.into()),
            "region_num_blocks" => put_opt(w, &self.region_num_blocks, |w, v| put_uints(w, v)),
            "region_group_ids" => put_opt(w, &self.region_group_ids, |w, ids| {
                w.array(ids.len());
                ids.iter().for_each(|id| w.int(*id));
            }),
            "region_names" => put_opt(w, &self.region_names, |w, v| put_strs(w, v)),
            "region_mem_types" => put_opt(w, &self.region_mem_types, |w, v| put_strs(w, v)),
            "dcp_size" => w.uint(self.dcp_size.into()),
            "pcp_size" => w.uint(self.pcp_size.into()),
            "ple_block_len" => put_opt(w, &self.ple_block_len, |w, v| w.uint(*v)),
            "region_members" => {
                w.array(self.region_members.len());
                self.region_members
                    .iter()
                    .for_each(|names| put_strs(w, names));
            }
            "packed_member_layouts" => {
                w.map(self.packed_member_layouts.len());
                for (layer, place) in &self.packed_member_layouts {
                    w.str(layer);
                    put_pair(w, *place);
                }
            }
            _ => put_opt(w, &self.lease_table, |w, v| put_pair(w, *v)),
        }
    }

    /// Reads the map. Its keys may come in any order; unknown ones are passed over; of the known ones
    /// the first twelve have to be there, and none may come twice.
    ///
    /// What the values mean for a transfer (lengths that agree, regions that exist) is for the geometry
    /// to judge.
    ///
    /// # Errors
    /// `PeerIncompatible`, with the key and what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Self::read(bytes).map_err(|e| e.context("agent metadata"))
    }

    fn read(bytes: &[u8]) -> Result<Self> {
        let mut found = AgentMetadata {
            dcp_size: 1,
            pcp_size: 1,
            ..Default::default()
        };
        let seen = read_map(bytes, MAX_PAYLOAD, &KEYS, |r, key| found.take(key, r))?;
        require(&KEYS[..REQUIRED], &seen)?;
        Ok(found)
    }

    fn take(&mut self, key: &str, r: &mut Reader) -> Result<()> {
        match key {
            "engine_id" => self.engine_id = r.str(MAX_ENGINE_ID)?.to_owned(),
            "agent_metadata" => self.agent_metadata = r.bin(MAX_PAYLOAD)?.to_vec(),
            "kv_caches_base_addr" => self.base_addrs = uints(r)?,
            "device_id" => self.device_id = r.uint(u64::MAX)?,
            "num_blocks" => self.num_blocks = r.uint(u64::MAX)?,
            "block_lens" => self.block_lens = uints(r)?,
            "block_strides" => self.block_strides = uints(r)?,
            "kv_cache_layout" => self.kv_cache_layout = r.str(MAX_NAME)?.to_owned(),
            "block_size" => self.block_size = u32_of(r)?,
            "ssm_sizes" => self.ssm_sizes = pair(r)?,
            "attn_backend_name" => self.attn_backend_name = r.str(MAX_NAME)?.to_owned(),
            "physical_blocks_per_logical_kv_block" => self.blocks_per_logical = u32_of(r)?,
            "region_num_blocks" => self.region_num_blocks = opt(r, uints)?,
            "region_group_ids" => self.region_group_ids = opt(r, group_ids)?,
            "region_names" => self.region_names = opt(r, |r| strs(r, MAX_REGIONS))?,
            "region_mem_types" => self.region_mem_types = opt(r, |r| strs(r, MAX_REGIONS))?,
            "dcp_size" => self.dcp_size = u32_of(r)?,
            "pcp_size" => self.pcp_size = u32_of(r)?,
            "ple_block_len" => self.ple_block_len = opt(r, |r| r.uint(u64::MAX))?,
            "region_members" => self.region_members = members(r)?,
            "packed_member_layouts" => self.packed_member_layouts = packed(r)?,
            _ => self.lease_table = opt(r, lease_table)?,
        }
        Ok(())
    }

    /// What decoding would refuse for its size is not to be sent either.
    fn check(&self) -> Result<()> {
        let lists = [
            ("kv_caches_base_addr", self.base_addrs.len()),
            ("block_lens", self.block_lens.len()),
            ("block_strides", self.block_strides.len()),
            (
                "region_num_blocks",
                self.region_num_blocks.as_ref().map_or(0, Vec::len),
            ),
            (
                "region_group_ids",
                self.region_group_ids.as_ref().map_or(0, Vec::len),
            ),
            (
                "region_names",
                self.region_names.as_ref().map_or(0, Vec::len),
            ),
            (
                "region_mem_types",
                self.region_mem_types.as_ref().map_or(0, Vec::len),
            ),
            ("region_members", self.region_members.len()),
        ];
        for (key, len) in lists {
            fits(key, len, MAX_REGIONS)?;
        }
        let layers: usize = self.region_members.iter().map(Vec::len).sum();
        fits("layers in region_members", layers, MAX_LAYERS)?;
        fits(
            "packed_member_layouts",
            self.packed_member_layouts.len(),
            MAX_LAYERS,
        )?;
        fits("engine_id", self.engine_id.len(), MAX_ENGINE_ID)?;
        fits("agent_metadata", self.agent_metadata.len(), MAX_PAYLOAD)?;
        let names = self
            .region_names
            .iter()
            .chain(&self.region_mem_types)
            .flatten();
        let names = names.chain(self.region_members.iter().flatten());
        let names = names.chain(self.packed_member_layouts.iter().map(|(name, _)| name));
        for name in names.chain([&self.kv_cache_layout, &self.attn_backend_name]) {
            fits("a name", name.len(), MAX_NAME)?;
        }
        match self.lease_table {
            Some(table) if !is_table(table) => {
                Err(Error::invalid(format!("kvferry_lease_table {table:x?}")))
            }
            _ => Ok(()),
        }
    }
}

fn uints(r: &mut Reader) -> Result<Vec<u64>> {
    let n = r.array(MAX_REGIONS)?;
    list(r, n, |r| r.uint(u64::MAX))
}

fn group_ids(r: &mut Reader) -> Result<Vec<i64>> {
    let n = r.array(MAX_REGIONS)?;
    list(r, n, |r| {
        let id = r.int()?;
        i64::try_from(id).map_err(|_| {
            Error::new(
                Status::PeerIncompatible,
                format!("{id} is no transfer group"),
            )
        })
    })
}

fn strs(r: &mut Reader, max: usize) -> Result<Vec<String>> {
    let n = r.array(max)?;
    list(r, n, |r| r.str(MAX_NAME).map(str::to_owned))
}

fn pair(r: &mut Reader) -> Result<(u64, u64)> {
    match r.array(2)? {
        2 => Ok((r.uint(u64::MAX)?, r.uint(u64::MAX)?)),
        n => bail!(Status::PeerIncompatible, "{n} numbers, not 2"),
    }
}

fn members(r: &mut Reader) -> Result<Vec<Vec<String>>> {
    let mut left = MAX_LAYERS;
    let n = r.array(MAX_REGIONS)?;
    list(r, n, |r| {
        let names = strs(r, left)?;
        left -= names.len();
        Ok(names)
    })
}

fn packed(r: &mut Reader) -> Result<Vec<(String, (u64, u64))>> {
    let n = r.map(MAX_LAYERS)?;
    list(r, n, |r| {
        let layer = r.str(MAX_NAME)?;
        let place = pair(r).map_err(|e| e.context(layer))?;
        Ok((layer.to_owned(), place))
    })
}

fn lease_table(r: &mut Reader) -> Result<(u64, u64)> {
    let table = pair(r)?;
    if !is_table(table) {
        bail!(
            Status::PeerIncompatible,
            "{} words at {:#x} are no table of lease words",
            table.1,
            table.0
        );
    }
    Ok(table)
}

/// Whether so many 64-bit words can be at this address.
fn is_table((address, words): (u64, u64)) -> bool {
    let end = words.checked_mul(8).and_then(|n| address.checked_add(n));
    words <= MAX_LEASE_WORDS && address % 8 == 0 && end.is_some()
}

fn put_uints(w: &mut Writer, values: &[u64]) {
    w.array(values.len());
    values.iter().for_each(|v| w.uint(*v));
}

fn put_strs(w: &mut Writer, values: &[String]) {
    w.array(values.len());
    values.iter().for_each(|v| w.str(v));
}

fn put_pair(w: &mut Writer, (a, b): (u64, u64)) {
    w.array(2);
    w.uint(a);
    w.uint(b);
}

fn put_opt<T>(w: &mut Writer, value: &Option<T>, put: impl FnOnce(&mut Writer, &T)) {
    match value {
        Some(value) => put(w, value),
        None => w.nil(),
    }
}
