//! Random topologies and requests for the content oracle.

#![allow(dead_code)] // Each test uses its part.

use super::sim::*;
use super::verify::*;
use kvferry::layout::{ConvOrder, GroupKind, KvPlacement, PageOrder};
use kvferry::plan::PlanOptions;
use proptest::prelude::*;

pub const HND: PageOrder = PageOrder::Hnd;
pub const NHD: PageOrder = PageOrder::Nhd;
pub const PLACEMENTS: [KvPlacement; 4] = [
    KvPlacement::Regions,
    KvPlacement::Planes,
    KvPlacement::Halves,
    KvPlacement::Cells,
];

/// A random arrangement of one group on one engine.
fn group_style() -> impl Strategy<Value = GroupStyle> {
    (
        0..4u32,
        1..4u32,
        any::<bool>(),
        0..4usize,
        any::<bool>(),
        0..4u32,
        any::<bool>(),
        0..4u32,
    )
        .prop_map(
            |(tokens, pages_per_block, hnd, kv, channels, padding, packed, by_head)| GroupStyle {
                tokens_per_page: 1 << tokens,
                pages_per_block,
                order: if hnd { HND } else { NHD },
                kv: PLACEMENTS[kv],
                conv_order: if channels {
                    ConvOrder::ChannelsFirst
                } else {
                    ConvOrder::RowsFirst
                },
                padding,
                packed,
                by_head: by_head == 3,
            },
        )
}

/// A random group: kind, heads, sizes, number of layers, whether over the first, styles on both sides.
fn group() -> impl Strategy<Value = (GroupModel, bool, GroupStyle, GroupStyle)> {
    let sizes = (0..4u32, 1..4u32, 1..4u32, 1..3u32, 1..4u32, 1..12u32);
    (
        0..5usize,
        sizes,
        any::<bool>(),
        group_style(),
        group_style(),
    )
        .prop_map(|(kind, (heads, k, v, elem, layers, window), over, p, d)| {
            let heads = 1 << heads;
            let kind = GroupKind::ALL[kind];
            let content = match kind {
                GroupKind::Mla => Content::Latent { size: k, elem },
                GroupKind::State => Content::State(StateModel {
                    conv: vec![(heads * 2, k), (heads, v)],
                    rows: layers + 1,
                    conv_elem: elem,
                    ssm_heads: heads,
                    ssm_head_bytes: k + v,
                }),
                _ => Content::Heads { heads, k, v, elem },
            };
            let window = if kind.is_windowed() { window } else { 0 };
            let layers = (0..layers).collect();
            (
                GroupModel {
                    kind,
                    window,
                    layers,
                    content,
                    over: None,
                },
                over,
                p,
                d,
            )
        })
}

/// Two engines, and a request from one to the other.
#[derive(Debug)]
pub struct Case {
    pub model: Vec<GroupModel>,
    pub p: EngineStyle,
    pub d: EngineStyle,
    pub lists: Vec<Lists>,
    pub told: Told,
    pub options: PlanOptions,
}

/// Gives layers their numbers, lays groups over the first where that fits, and keeps decode context
/// parallelism within what the heads allow.
fn assemble(
    groups: Vec<(GroupModel, bool, GroupStyle, GroupStyle)>,
    (p_tp, d_tp, p_dcp, d_dcp): (u32, u32, u32, u32),
    (p_turn, d_turn): (u32, u32),
    (tokens, cached): (u64, u64),
    (firsts, merge_lanes): (bool, bool),
) -> Case {
    let mut model: Vec<GroupModel> = Vec::new();
    let (mut p_groups, mut d_groups): (Vec<GroupStyle>, Vec<GroupStyle>) = Default::default();
    let mut next = 0;
    for (i, (mut m, over, mut p, mut d)) in groups.into_iter().enumerate() {
        m.layers.iter_mut().for_each(|l| *l += next);
        next += m.layers.len() as u32;
        if i > 0 && over && model[0].kind != GroupKind::State {
            // Same pages, so the same block shape, one region per layer, and no more layers than there
            // are below; and a state cannot span pages between which other layers lie.
            (p.tokens_per_page, p.pages_per_block) = p_groups[0].shape();
            (d.tokens_per_page, d.pages_per_block) = d_groups[0].shape();
            let fits = |own: &GroupStyle, below: &GroupStyle| {
                own.kv != KvPlacement::Regions
                    && !own.by_head
                    && !(m.kind == GroupKind::State && below.packed && below.pages_per_block > 1)
            };
            let enough = m.layers.len() <= model[0].layers.len();
            if enough && fits(&p, &p_groups[0]) && fits(&d, &d_groups[0]) {
                m.over = Some(0);
            }
        }
        model.push(m);
        p_groups.push(p);
        d_groups.push(d);
    }
    // Ranks that hold the same heads can split tokens; ranks that hold different ones cannot.
    let most = model
        .iter()
        .map(|m| match m.content {
            Content::Heads { heads, .. } => heads,
            _ => 1,
        })
        .max()
        .unwrap_or(1);
    let dcp = |tp: u32, wish: u32| (1 << wish).min((tp / most).max(1));
    // The turn must divide every block.
    let turn = |groups: &[GroupStyle], wish: u32| match wish {
        0 => 0,
        n => groups
            .iter()
            .map(|g| g.tokens_per_page)
            .min()
            .unwrap_or(1)
            .min(1 << (n - 1)),
    };
    let engine = |tp, dcp, turn, groups| EngineStyle {
        tp,
        pp: 1,
        dcp,
        interleave: turn,
        blocks: 90,
        groups,
    };
    let p = engine(
        1 << p_tp,
        dcp(1 << p_tp, p_dcp),
        turn(&p_groups, p_turn),
        p_groups,
    );
    let d = engine(
        1 << d_tp,
        dcp(1 << d_tp, d_dcp),
        turn(&d_groups, d_turn),
        d_groups,
    );
    let told = if firsts {
        Told::Firsts
    } else {
        Told::Tokens(tokens)
    };
    let lists = lists(&model, &p, &d, tokens, cached.min(tokens), 2);
    let options = PlanOptions {
        merge_lanes,
        uneven_blocks: true,
        ..PlanOptions::default()
    };
    Case {
        model,
        p,
        d,
        lists,
        told,
        options,
    }
}

/// Random topologies; tensor-parallel sizes are powers of two below two to the `sizes`.
pub fn case(sizes: u32) -> impl Strategy<Value = Case> {
    (
        prop::collection::vec(group(), 1..4),
        (0..sizes, 0..sizes, 0..3u32, 0..3u32),
        (0..4u32, 0..4u32),
        (1..30u64, 0..30u64),
        (any::<bool>(), any::<bool>()),
    )
        .prop_map(|(groups, sizes, turns, tokens, flags)| {
            assemble(groups, sizes, turns, tokens, flags)
        })
}
