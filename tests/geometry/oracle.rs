//! The oracle of content for geometry: random engines as tensors, through regions and metadata to layouts
//! on both sides, to plans, to copies, and every byte compared.
//!
//! The simulator's own layouts are thrown away: what is planned with are [`local`]'s and [`peer`]'s.

use crate::common::sim::*;
use crate::common::verify::*;
use kvferry::connector::Mode;
use kvferry::connector::geometry::{self, *};
use kvferry::layout::{ConvOrder, GroupKind, KvPlacement, PageOrder, Parallel, Region};
use kvferry::memory::{MemDesc, MemKind};
use kvferry::plan::{Direction, PlanOptions};
use proptest::prelude::*;

/// How an engine of the test arranges its blocks.
fn layout_name(style: &GroupStyle) -> &'static str {
    match (style.by_head, style.packed, style.order) {
        (true, ..) => "LHBNC",
        (false, true, _) => "BLHNC",
        (false, false, PageOrder::Hnd) => "LBHNC",
        (false, false, PageOrder::Nhd) => "LBNHC",
    }
}

/// The tensor of a layer, by its definition in the layout's name.
fn tensor(engine: &Engine, rank: &Rank, group: usize, layer: u32) -> KvTensor {
    let model = &engine.model[group];
    let style = &engine.style.groups[group];
    let of_layer = |p: &&kvferry::layout::Part| (p.group, p.layer) == (group as u32, layer);
    let regions: Vec<Region> = rank
        .layout
        .parts
        .iter()
        .filter(of_layer)
        .map(|p| rank.layout.regions[p.region as usize])
        .collect();
    let first = regions[0];
    let tokens = u64::from(style.tokens_per_page);
    let blocks = first.page_count;
    let mut out = KvTensor {
        layer: format!("model.layers.{layer}.attn"),
        group: group as u32,
        content: geometry::Content::Latent(0),
        address: first.base,
        storage: MemDesc {
            addr: rank.memory.as_ptr() as u64,
            len: rank.memory.len() as u64,
            device: 0,
        },
        mem: MemKind::Dram,
        dims: Vec::new(),
        elem_bytes: 1,
        page_bytes: 0,
        num_blocks: 0,
    };
    match &model.content {
        crate::common::sim::Content::Heads { heads, k, v, elem } => {
            let held = u64::from((heads / engine.style.tp).max(1));
            let cell = u64::from((k + v) * elem);
            let (head, row) = match (style.by_head, style.order) {
                (true, _) => (first.page_stride * blocks, cell),
                (false, PageOrder::Hnd) => (tokens * cell, cell),
                (false, PageOrder::Nhd) => (cell, held * cell),
            };
            out.content = geometry::Content::Heads(HeadShape {
                k_size: *k,
                v_size: *v,
                total: *heads,
            });
            out.elem_bytes = *elem;
            out.dims = vec![
                (blocks, first.page_stride),
                (held, head),
                (tokens, row),
                (cell / u64::from(*elem), (*elem).into()),
            ];
        }
        crate::common::sim::Content::Latent { size, elem } => {
            let cell = u64::from(size * elem);
            out.elem_bytes = *elem;
            out.dims = vec![
                (blocks, first.page_stride),
                (tokens, cell),
                ((*size).into(), (*elem).into()),
            ];
        }
        crate::common::sim::Content::State(s) => {
            let tp = engine.style.tp;
            let channels: Vec<u32> = s.conv.iter().map(|(u, c)| u * c / tp).collect();
            out.content = geometry::Content::State(StateSizes {
                conv_channels: channels,
                conv_rows: s.rows,
                conv_elem_bytes: s.conv_elem,
                ssm_heads: s.ssm_heads / tp,
                ssm_head_bytes: s.ssm_head_bytes,
                ssm_elem_bytes: 1,
            });
            out.page_bytes = first.page_stride;
        }
    }
    out
}

/// What the engine of a rank knows.
fn cache(engine: &Engine, rank: &Rank) -> KvCache {
    let style = &engine.style.groups[0];
    let mut tensors = Vec::new();
    for (group, model) in engine.model.iter().enumerate() {
        for layer in &model.layers {
            tensors.push(tensor(engine, rank, group, *layer));
        }
    }
    // The order of registration means nothing.
    tensors.reverse();
    let halves = style.kv == KvPlacement::Halves;
    KvCache {
        tensors,
        groups: rank.layout.groups.clone(),
        num_blocks: engine.style.blocks.into(),
        blocks_per_logical: style.pages_per_block,
        block_tokens: style.tokens_per_page,
        layout: layout_name(style).into(),
        attn_backend: if halves { "CPU_ATTN" } else { "FLASH_ATTN" }.into(),
        kv_heads: 1,
        mla: false,
        slab: match halves {
            true => SlabOrder::Halves,
            false => SlabOrder::Cells,
        },
        mode: Mode::Pull,
        hybrid: true,
        pcp_size: 1,
    }
}

fn described(engine: &Engine) -> Result<Vec<Local>, String> {
    let one = |r: &Rank| {
        local(&cache(engine, r), r.layout.parallel).map_err(|e| format!("rank {}: {e}", r.tp_rank))
    };
    engine.ranks.iter().map(one).collect()
}

/// Gives the ranks of the side that plans its own layouts, and the others' those that it makes of their
/// metadata.
fn describe(direction: Direction, p: &mut Engine, d: &mut Engine) -> Result<(), String> {
    let (mine, theirs) = match direction {
        Direction::Pull => (d, p),
        Direction::Push => (p, d),
    };
    let (ours, others) = (described(mine)?, described(theirs)?);
    for (rank, local) in mine.ranks.iter_mut().zip(&ours) {
        rank.layout = local.layout.clone();
    }
    for (rank, told) in theirs.ranks.iter_mut().zip(&others) {
        let at: Parallel = rank.layout.parallel;
        let layouts: Vec<_> = ours
            .iter()
            .map(|mine| peer(mine, &told.metadata, at).map(|p| p.layout))
            .collect::<Result<_, _>>()
            .map_err(|e| format!("peer {}: {e}", at.tp_rank))?;
        // All ranks of an engine must see a peer alike.
        if layouts.iter().any(|l| *l != layouts[0]) {
            return Err(format!("rank {} is seen differently", at.tp_rank));
        }
        rank.layout = layouts[0].clone();
    }
    Ok(())
}

#[derive(Debug)]
struct Case {
    model: Vec<GroupModel>,
    p: EngineStyle,
    d: EngineStyle,
    tokens: u64,
    cached: u64,
}

/// A side: tensor-parallel size, arrangement, order of K and V, tokens, pages of a block, padding.
type Side = (u32, usize, bool, u32, u32, u32);

fn style((_, order, halves, tokens, pages, padding): Side, state: bool) -> GroupStyle {
    // State needs pages of one length, side by side with nothing.
    let order = if state { 0 } else { order };
    let page_order = if order == 1 {
        PageOrder::Nhd
    } else {
        PageOrder::Hnd
    };
    let kv = match halves && order != 1 {
        true => KvPlacement::Halves,
        false => KvPlacement::Cells,
    };
    GroupStyle {
        pages_per_block: pages,
        // Only pages without holes can have padding between them.
        padding: if order == 0 || order == 3 { padding } else { 0 },
        by_head: order == 2,
        packed: order == 3,
        conv_order: ConvOrder::ChannelsFirst,
        ..GroupStyle::new(1 << tokens, page_order, kv)
    }
}

fn case() -> impl Strategy<Value = Case> {
    let side = || (0..4u32, 0..4usize, any::<bool>(), 0..4u32, 1..4u32, 0..3u32);
    let sizes = (0..4u32, 1..4u32, 1..4u32, 1..3u32, 1..4u32);
    (
        (0..4usize, sizes, any::<bool>(), 1..12u32),
        (side(), side()),
        (0..3u32, 0..3u32),
        (1..30u64, 0..30u64),
    )
        .prop_map(
            |((kind, sizes, second, window), (p, d), dcp, (tokens, cached))| {
                let (heads, k, v, elem, layers) = sizes;
                // 0: heads, 1: heads and windows over them, 2: latent, 3: heads and state over them.
                let state = kind == 3;
                let content = match kind {
                    2 => crate::common::sim::Content::Latent { size: k, elem },
                    3 => crate::common::sim::Content::Heads {
                        heads: 8,
                        k: 4,
                        v: 4,
                        elem: 2,
                    },
                    _ => crate::common::sim::Content::Heads {
                        heads: 1 << heads,
                        k,
                        v,
                        elem,
                    },
                };
                let group =
                    |kind, window, layers: std::ops::Range<u32>, content, over| GroupModel {
                        kind,
                        window,
                        layers: layers.collect(),
                        content,
                        over,
                    };
                let first = if kind == 2 {
                    GroupKind::Mla
                } else {
                    GroupKind::Full
                };
                let mut model = vec![group(first, 0, 0..layers, content.clone(), None)];
                let more = layers..layers + layers.min(2);
                if kind == 1 {
                    let windowed = match second {
                        true => GroupKind::SlidingWindow,
                        false => GroupKind::ChunkedLocal,
                    };
                    // The simulator lays nothing over heads that lie apart.
                    let apart = p.1 == 2 || d.1 == 2;
                    model.push(group(
                        windowed,
                        window,
                        more,
                        content,
                        (!apart).then_some(0),
                    ));
                } else if state {
                    let content = crate::common::sim::Content::State(StateModel {
                        conv: vec![(8, 1), (16, 1)],
                        rows: 2,
                        conv_elem: 1,
                        ssm_heads: 8,
                        ssm_head_bytes: 4,
                    });
                    model.push(group(GroupKind::State, 0, more, content, Some(0)));
                }
                let engine = |side: Side, wish: u32| {
                    let (tp, most) = (1 << side.0, if kind == 2 { 1 } else { 1 << heads });
                    let dcp = if state {
                        1
                    } else {
                        (1 << wish).min((tp / most).max(1))
                    };
                    let style = style(side, state);
                    // What has no heads is by head in name only.
                    let style = GroupStyle {
                        by_head: style.by_head && kind != 2,
                        ..style
                    };
                    EngineStyle {
                        dcp,
                        ..EngineStyle::tp(tp, 90, vec![style; model.len()])
                    }
                };
                Case {
                    p: engine(p, dcp.0),
                    d: engine(d, dcp.1),
                    model,
                    tokens,
                    cached,
                }
            },
        )
}

proptest! {
    #[test]
    fn every_byte_arrives(case in case()) {
        let Case { model, p, d, tokens, cached } = &case;
        let lists = lists(model, p, d, *tokens, *cached.min(tokens), 2);
        let options = PlanOptions { uneven_blocks: true, ..PlanOptions::default() };
        let done = check_with(model, p, d, &lists, Told::Firsts, options, describe);
        prop_assert!(done.is_ok(), "{}", done.unwrap_err());
    }
}
