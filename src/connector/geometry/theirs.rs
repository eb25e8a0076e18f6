//! A peer rank: what it says about itself, checked, and the content laid over its regions.

use std::collections::HashMap;

use super::content::{Arrangement, state_parts};
use super::kv::SlabOrder;
use super::model::{LayerContent, Model, Target};
use super::order::PhysicalOrder;
use super::own::{has_state, slot_group};
use super::{Local, Peer, SHARED};
use crate::connector::wire::AgentMetadata;
use crate::error::{Error, Result, Status, bail};
use crate::layout::{Group, GroupKind, MAX_REGIONS, Parallel, Part, Region, Role};
use crate::memory::MemKind;

/// Most tokens of a kernel block that are believed.
const MAX_BLOCK_TOKENS: u32 = 1 << 20;

/// Like [`bail!`] with [`Status::PeerIncompatible`].
macro_rules! refuse {
    ($($message:tt)+) => { bail!(Status::PeerIncompatible, $($message)+) };
}

/// See [`super::peer`].
pub(super) fn peer(local: &Local, metadata: &AgentMetadata, at: Parallel) -> Result<Peer> {
    made(local, metadata, at).map_err(|e| {
        // Whatever step it was, it was the peer's numbers that could not be used.
        Error::new(Status::PeerIncompatible, e.message().to_owned())
    })
}

fn made(local: &Local, metadata: &AgentMetadata, at: Parallel) -> Result<Peer> {
    let model = &local.model;
    check_lists(metadata)?;
    let parallel = parallel(model, metadata, at)?;
    let how = arrangement(model, metadata)?;
    let groups = groups(model, metadata)?;
    check_state(model, metadata, &parallel)?;
    let homes = Homes {
        model,
        metadata,
        parallel: &parallel,
        order: how.order,
    }
    .find()?;
    let order_of_groups = match_groups(local, metadata, &homes)?;
    let packed = packed(model, metadata);
    let layout = model.lay_out(&Target {
        parallel,
        how,
        groups,
        regions: regions(local, metadata, &homes)?,
        homes,
        name: &|i| region_name(metadata, i),
        packed,
        loose: has_state(&model.groups),
    })?;
    Ok(Peer {
        layout,
        groups: order_of_groups,
    })
}

fn region_name(metadata: &AgentMetadata, region: usize) -> String {
    match metadata.region_names.as_ref().and_then(|n| n.get(region)) {
        Some(name) => name.clone(),
        None => "not named".to_owned(),
    }
}

/// Lengths of lists, and numbers that cannot be.
fn check_lists(m: &AgentMetadata) -> Result<()> {
    let count = m.base_addrs.len();
    if count == 0 || count > MAX_REGIONS {
        refuse!("kv_caches_base_addr has {count} entries, not 1 to {MAX_REGIONS}");
    }
    let members = (!m.region_members.is_empty()).then_some(m.region_members.len());
    for (name, len) in [
        ("block_lens", Some(m.block_lens.len())),
        ("block_strides", Some(m.block_strides.len())),
        (
            "region_num_blocks",
            m.region_num_blocks.as_ref().map(Vec::len),
        ),
        (
            "region_group_ids",
            m.region_group_ids.as_ref().map(Vec::len),
        ),
        ("region_names", m.region_names.as_ref().map(Vec::len)),
        (
            "region_mem_types",
            m.region_mem_types.as_ref().map(Vec::len),
        ),
        ("region_members", members),
    ] {
        if let Some(len) = len.filter(|len| *len != count) {
            refuse!("{name} has {len} entries, and kv_caches_base_addr {count}");
        }
    }
    for (i, (len, stride)) in m.block_lens.iter().zip(&m.block_strides).enumerate() {
        if *len == 0 || stride < len {
            refuse!(
                "block_strides of region {i} ({}): {stride}, and block_lens is {len}",
                region_name(m, i)
            );
        }
    }
    let ppl = u64::from(m.blocks_per_logical);
    if ppl == 0 || m.num_blocks == 0 || m.num_blocks % ppl != 0 {
        refuse!(
            "num_blocks {} is not a multiple of physical_blocks_per_logical_kv_block {ppl}",
            m.num_blocks
        );
    }
    if m.block_size == 0 || u64::from(m.block_size) * ppl > MAX_BLOCK_TOKENS.into() {
        refuse!(
            "block_size {} with physical_blocks_per_logical_kv_block {ppl}",
            m.block_size
        );
    }
    if let Some(n) = m.ple_block_len {
        refuse!("ple_block_len {n}: short-convolution state is not supported");
    }
    Ok(())
}

/// The peer's place in its engine, and whether ours can face it.
fn parallel(model: &Model, m: &AgentMetadata, at: Parallel) -> Result<Parallel> {
    let mine = &model.parallel;
    if m.dcp_size != at.dcp_size {
        refuse!(
            "dcp_size: {} in its metadata, {} in the request",
            m.dcp_size,
            at.dcp_size
        );
    }
    let (l, r) = (mine.dcp_size, m.dcp_size);
    if l == 0 || r == 0 || (l % r != 0 && r % l != 0) {
        refuse!("dcp_size: {l} here, {r} there; one has to divide the other");
    }
    if has_state(&model.groups) && l != r {
        refuse!("dcp_size: {l} here, {r} there; with recurrent state they have to be equal");
    }
    let (lp, rp) = (model.pcp_size, m.pcp_size.max(1));
    if rp > 1 && r != 1 && r != rp {
        refuse!(
            "pcp_size {rp} and dcp_size {r} there; context-parallel ranks have to be all of them"
        );
    }
    if (lp > 1 && l == 1 && r > 1) || (rp > 1 && r == 1 && l > 1) {
        refuse!(
            "pcp_size: {lp} here with dcp_size {l}, {rp} there with dcp_size {r}; copies of all tokens \
             cannot be paired with shares of them"
        );
    }
    super::ranks::ratio(mine.tp_size, at.tp_size)?;
    let parallel = Parallel {
        dcp_rank: at.tp_rank % r,
        dcp_interleave: mine.dcp_interleave,
        ..at
    };
    parallel.validate()?;
    Ok(parallel)
}

/// How the peer arranges its blocks.
fn arrangement(model: &Model, m: &AgentMetadata) -> Result<Arrangement> {
    let mine = model.how;
    let order = if m.kv_cache_layout == model.layout {
        mine.order
    } else {
        PhysicalOrder::from_name(&m.kv_cache_layout)?
    };
    let slab = slab_of(model, &m.attn_backend_name);
    let heads = model.layers.iter().any(|l| match &l.content {
        LayerContent::Attention(a) => a.cells.heads.is_some(),
        LayerContent::State(_) => false,
    });
    let unknown = slab == SlabOrder::Opaque || mine.slab == SlabOrder::Opaque;
    if heads && unknown && m.attn_backend_name != model.attn_backend {
        refuse!(
            "attn_backend_name: {:?} here, {:?} there, and the order inside a head of a block is not known",
            model.attn_backend,
            m.attn_backend_name
        );
    }
    if heads && order != mine.order && unknown {
        refuse!(
            "kv_cache_layout: {} here, {} there, and the order inside a head of a block is not known",
            model.layout,
            m.kv_cache_layout
        );
    }
    if heads && slab == SlabOrder::Halves && order.is_token_major() {
        refuse!(
            "kv_cache_layout {} with attn_backend_name {:?}, which keeps K and V of a head in halves",
            m.kv_cache_layout,
            m.attn_backend_name
        );
    }
    if heads && unknown && m.block_size != model.block_tokens {
        refuse!(
            "block_size: {} here, {} there, and the order inside a head of a block is not known",
            model.block_tokens,
            m.block_size
        );
    }
    Ok(Arrangement { order, slab })
}

/// The order inside a head of a block by which a backend is known: vLLM's CPU backend has halves, the
/// others cells.
fn slab_of(model: &Model, backend: &str) -> SlabOrder {
    match (model.how.slab, backend) {
        (slab, name) if name == model.attn_backend => slab,
        (SlabOrder::Opaque, _) => SlabOrder::Opaque,
        (_, "CPU_ATTN") => SlabOrder::Halves,
        (_, "") => SlabOrder::Opaque,
        _ => SlabOrder::Cells,
    }
}

/// The peer's block sizes. It states one for all groups; that its groups are to each other as ours
/// follows from the model.
fn groups(model: &Model, m: &AgentMetadata) -> Result<Vec<Group>> {
    let mine = u64::from(model.block_tokens) * u64::from(model.blocks_per_logical);
    let theirs = u64::from(m.block_size) * u64::from(m.blocks_per_logical);
    let one = |g: &Group| {
        let tokens = u64::from(g.tokens_per_block) * theirs;
        let fits = g.kind == GroupKind::State
            || tokens % mine == 0
                && (tokens / mine) % u64::from(m.blocks_per_logical) == 0
                && tokens / mine <= MAX_BLOCK_TOKENS.into();
        if !fits {
            refuse!(
                "block_size: blocks of {theirs} tokens there and {mine} here, where a group has blocks of {} \
                 tokens",
                g.tokens_per_block
            );
        }
        Ok(Group {
            tokens_per_block: (tokens / mine) as u32,
            kernel_blocks: m.blocks_per_logical,
            ..*g
        })
    };
    model.groups.iter().map(one).collect()
}

/// The peer's state must have the sizes that follow from ours.
fn check_state(model: &Model, m: &AgentMetadata, at: &Parallel) -> Result<()> {
    let expected = match &model.state {
        None => (0, 0),
        Some(sizes) => {
            let base = no_part();
            state_parts(sizes, model.parallel.tp_size, at.tp_rank, at.tp_size, &base)?
                .1
                .bytes()
        }
    };
    if m.ssm_sizes != expected {
        refuse!(
            "ssm_sizes: {:?} there, and {expected:?} follows from {:?} here with tp_size {} here and {} \
             there",
            m.ssm_sizes,
            model.state.as_ref().map_or((0, 0), |s| s.bytes()),
            model.parallel.tp_size,
            at.tp_size
        );
    }
    Ok(())
}

fn no_part() -> Part {
    Part {
        group: 0,
        region: 0,
        layer: 0,
        role: Role::SSM,
        offset: 0,
        heads_total: 1,
        head_first: 0,
        head_count: 1,
        head_stride: 0,
        rows: 1,
        row_stride: 0,
        cell_bytes: 1,
        elem_bytes: 1,
    }
}

/// Which of the peer's regions each layer is in.
struct Homes<'a> {
    model: &'a Model,
    metadata: &'a AgentMetadata,
    parallel: &'a Parallel,
    order: PhysicalOrder,
}

impl Homes<'_> {
    fn find(&self) -> Result<Vec<Vec<usize>>> {
        let staged = self.parallel.pp_size > 1 || self.model.parallel.pp_size > 1;
        if !self.metadata.region_members.is_empty() {
            self.by_member()
        } else if staged {
            self.by_name()
        } else {
            self.by_place()
        }
    }

    /// Regions that a slot has on the peer.
    fn count(&self, slot: usize) -> Result<usize> {
        let layer = self.model.layers.iter().find(|l| l.slot == slot);
        match layer {
            Some(layer) => layer.region_count(self.parallel, self.order),
            None => Ok(1),
        }
    }

    fn counts(&self) -> Result<Vec<usize>> {
        (0..self.model.slots.len()).map(|s| self.count(s)).collect()
    }

    /// Both lists are of the whole model: they correspond one to one.
    fn by_place(&self) -> Result<Vec<Vec<usize>>> {
        let counts = self.counts()?;
        let (theirs, expected) = (self.metadata.base_addrs.len(), counts.iter().sum::<usize>());
        if theirs != expected {
            refuse!(
                "kv_caches_base_addr: {theirs} regions there, and {expected} follow from {} here",
                self.model
                    .slots
                    .iter()
                    .map(|s| s.regions.len())
                    .sum::<usize>()
            );
        }
        let mut next = 0;
        let mut of_slot = Vec::with_capacity(counts.len());
        for (slot, count) in self.model.slots.iter().zip(counts) {
            for region in next..next + count {
                self.check_name(region, &slot.name)?;
            }
            of_slot.push((next..next + count).collect::<Vec<_>>());
            next += count;
        }
        Ok(self.of_layers(|slot| of_slot[slot].clone()))
    }

    fn check_name(&self, region: usize, mine: &str) -> Result<()> {
        match self.metadata.region_names.as_ref().map(|n| &n[region]) {
            Some(theirs) if theirs != mine => {
                refuse!("region_names[{region}]: {mine:?} here, {theirs:?} there")
            }
            _ => Ok(()),
        }
    }

    /// One side is a pipeline stage: regions are found by the name of their first layer.
    fn by_name(&self) -> Result<Vec<Vec<usize>>> {
        let Some(names) = &self.metadata.region_names else {
            refuse!(
                "region_names is missing, which pipeline stages need (pp_size {} here, {} there)",
                self.model.parallel.pp_size,
                self.parallel.pp_size
            );
        };
        let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
        for (i, name) in names.iter().enumerate() {
            places.entry(name).or_default().push(i);
        }
        let counts = self.counts()?;
        let mut of_slot = Vec::with_capacity(counts.len());
        for (slot, count) in self.model.slots.iter().zip(counts) {
            let found = places.remove(slot.name.as_str()).unwrap_or_default();
            // A stage of the peer has some of our layers; a whole peer has all of them.
            let absent = found.is_empty() && self.parallel.pp_size > 1;
            if found.len() != count && !absent {
                refuse!(
                    "region_names: {:?} names {} regions there, {count} expected",
                    slot.name,
                    found.len()
                );
            }
            of_slot.push(found);
        }
        if self.model.parallel.pp_size == 1 {
            self.no_surplus(places.keys().min().copied())?;
        }
        Ok(self.of_layers(|slot| of_slot[slot].clone()))
    }

    /// The peer says which layers are in which region.
    fn by_member(&self) -> Result<Vec<Vec<usize>>> {
        let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
        for (i, members) in self.metadata.region_members.iter().enumerate() {
            for name in members {
                places.entry(name).or_default().push(i);
            }
        }
        let mut homes = Vec::with_capacity(self.model.layers.len());
        for layer in &self.model.layers {
            let found = places.remove(layer.name.as_str()).unwrap_or_default();
            let expected = layer.region_count(self.parallel, self.order)?;
            let absent = found.is_empty() && self.parallel.pp_size > 1;
            if found.len() != expected && !absent {
                refuse!(
                    "region_members: {:?} is in {} regions there, {expected} expected",
                    layer.name,
                    found.len()
                );
            }
            homes.push(found);
        }
        if self.model.parallel.pp_size == 1 {
            self.no_surplus(places.keys().min().copied())?;
        }
        Ok(homes)
    }

    fn no_surplus(&self, layer: Option<&str>) -> Result<()> {
        match layer {
            Some(layer) => refuse!("region_names: {layer:?} is there and not here"),
            None => Ok(()),
        }
    }

    fn of_layers(&self, of_slot: impl Fn(usize) -> Vec<usize>) -> Vec<Vec<usize>> {
        self.model.layers.iter().map(|l| of_slot(l.slot)).collect()
    }
}

/// Finds the peer's number of each of our groups, from regions that belong to one group on both sides.
fn match_groups(local: &Local, m: &AgentMetadata, homes: &[Vec<usize>]) -> Result<Vec<u32>> {
    let model = &local.model;
    let count = model.groups.len();
    let same: Vec<u32> = (0..count as u32).collect();
    let (Some(theirs), Some(mine)) = (&m.region_group_ids, &local.metadata.region_group_ids) else {
        return Ok(same);
    };
    let mut found: Vec<Option<u32>> = vec![None; count];
    for (layer, home) in model
        .layers
        .iter()
        .zip(homes)
        .filter(|(_, h)| !h.is_empty())
    {
        let slot = &model.slots[layer.slot];
        let (l, r) = (slot_group(mine, &slot.regions), slot_group(theirs, home));
        if r < SHARED || r >= count as i64 {
            refuse!(
                "region_group_ids of {:?}: {r}, and there are {count} groups",
                slot.name
            );
        }
        let one_sided = (l == SHARED) != (r == SHARED);
        let known = found[layer.group as usize];
        let differs = l != SHARED && known.is_some_and(|k| i64::from(k) != r);
        // Told layer by layer, it does not matter what shares a region.
        if one_sided && m.region_members.is_empty() || !one_sided && differs {
            refuse!(
                "region_group_ids of {:?}: {l} here, {r} there{}",
                slot.name,
                known.map_or(String::new(), |k| format!(
                    ", where group {l} was {k} before"
                ))
            );
        }
        if l != SHARED && r != SHARED {
            found[layer.group as usize] = Some(r as u32);
        }
    }
    // What only shared regions have keeps its number, if no other group has taken it.
    for (g, slot) in found.iter_mut().enumerate() {
        slot.get_or_insert(g as u32);
    }
    let out: Vec<u32> = found.into_iter().flatten().collect();
    let mut sorted = out.clone();
    sorted.sort_unstable();
    if sorted != same {
        refuse!(
            "region_group_ids: {theirs:?} there, {mine:?} here; groups do not correspond one to one"
        );
    }
    Ok(out)
}

/// Where layers are in rows that the peer moves whole.
fn packed(model: &Model, m: &AgentMetadata) -> Vec<Option<(u64, u64)>> {
    let said: HashMap<&str, (u64, u64)> = m
        .packed_member_layouts
        .iter()
        .map(|(name, place)| (name.as_str(), *place))
        .collect();
    model
        .layers
        .iter()
        .map(|l| said.get(l.name.as_str()).copied())
        .collect()
}

/// The peer's regions.
fn regions(local: &Local, m: &AgentMetadata, homes: &[Vec<usize>]) -> Result<Vec<Region>> {
    let own = &local.layout.regions;
    let mut mine: Vec<Option<MemKind>> = vec![None; m.base_addrs.len()];
    for (layer, home) in local.model.layers.iter().zip(homes) {
        let kind = own[local.model.slots[layer.slot].regions[0]].mem;
        home.iter().for_each(|r| mine[*r] = Some(kind));
    }
    let mut out = Vec::with_capacity(m.base_addrs.len());
    for (i, &base) in m.base_addrs.iter().enumerate() {
        let mem = match m.region_mem_types.as_ref().map(|t| t[i].as_str()) {
            Some("DRAM") => MemKind::Dram,
            Some("VRAM") => MemKind::Vram,
            Some(other) => refuse!("region_mem_types[{i}]: {other:?} is neither DRAM nor VRAM"),
            None => mine[i].unwrap_or(MemKind::Dram),
        };
        out.push(Region {
            base,
            page_stride: m.block_strides[i],
            page_len: m.block_lens[i],
            page_count: m.region_num_blocks.as_ref().map_or(m.num_blocks, |n| n[i]),
            mem,
            device: if mem == MemKind::Dram { 0 } else { m.device_id },
        });
    }
    Ok(out)
}
