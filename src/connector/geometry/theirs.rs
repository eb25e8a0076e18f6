//! A peer rank: what it says about itself, checked, and the content laid over its regions.

use std::collections::HashMap;

use super::content::{Arrangement, state_parts};
use super::homes::{Homes, match_groups};
use super::kv::SlabOrder;
use super::model::{LayerContent, Model, Target};
use super::order::PhysicalOrder;
use super::own::has_state;
use super::{Local, Peer};
use crate::connector::wire::{AgentMetadata, Sizes, handshake_ranks};
use crate::error::{Error, Result, Status};
use crate::layout::{Group, GroupKind, MAX_REGIONS, Parallel, Part, Region, Role};
use crate::memory::MemKind;

/// Most tokens of a kernel block that are believed.
const MAX_BLOCK_TOKENS: u32 = 1 << 20;

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
    let sizes = |p: &Parallel| Sizes {
        tp: p.tp_size,
        dcp: p.dcp_size,
    };
    handshake_ranks(sizes(mine), mine.tp_rank, sizes(&at))?;
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
