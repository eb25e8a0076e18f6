//! The content oracle: known content in simulated prefill ranks, a plan run through memcpy, every byte
//! of the simulated decode ranks compared.
//!
//! First the named cases, each small enough to work out by hand, then random topologies.

mod common;

use common::cases::*;
use common::sim::*;
use common::verify::*;
use kvferry::layout::{ConvOrder, GroupKind, KvPlacement};
use kvferry::plan::PlanOptions;
use proptest::prelude::*;

fn dense(heads: u32, layers: u32) -> GroupModel {
    GroupModel {
        kind: GroupKind::Full,
        window: 0,
        layers: (0..layers).collect(),
        content: Content::Heads {
            heads,
            k: 3,
            v: 2,
            elem: 2,
        },
        over: None,
    }
}

fn mla(layers: u32) -> GroupModel {
    GroupModel {
        kind: GroupKind::Mla,
        content: Content::Latent { size: 9, elem: 2 },
        ..dense(1, layers)
    }
}

fn mamba(layers: &[u32]) -> GroupModel {
    GroupModel {
        kind: GroupKind::State,
        window: 0,
        layers: layers.to_vec(),
        content: Content::State(StateModel {
            conv: vec![(8, 2), (4, 1), (4, 1)],
            rows: 3,
            conv_elem: 2,
            ssm_heads: 4,
            ssm_head_bytes: 20,
        }),
        over: None,
    }
}

fn style(tokens: u32) -> GroupStyle {
    GroupStyle::new(tokens, HND, KvPlacement::Cells)
}

/// 40 tokens, of which the consumer has none.
fn run(model: &[GroupModel], p: EngineStyle, d: EngineStyle) {
    let lists = lists(model, &p, &d, 40, 0, 1);
    for merge_lanes in [true, false] {
        let options = PlanOptions {
            merge_lanes,
            ..PlanOptions::default()
        };
        check(model, &p, &d, &lists, Told::Tokens(40), options).unwrap();
    }
}

fn tp(size: u32, groups: &[GroupStyle]) -> EngineStyle {
    EngineStyle::tp(size, 40, groups.to_vec())
}

#[test]
fn tensor_parallel_sizes_in_every_combination() {
    for heads in [1, 2, 4, 8] {
        for p in [1, 2, 4, 8] {
            for d in [1, 2, 4, 8] {
                run(&[dense(heads, 2)], tp(p, &[style(4)]), tp(d, &[style(4)]));
            }
        }
    }
}

#[test]
fn sizes_of_which_neither_divides_the_other() {
    run(&[dense(6, 2)], tp(3, &[style(4)]), tp(2, &[style(4)]));
    run(&[dense(6, 2)], tp(2, &[style(4)]), tp(3, &[style(4)]));
    run(&[mla(2)], tp(3, &[style(4)]), tp(2, &[style(4)]));
    run(&[mla(2)], tp(2, &[style(4)]), tp(3, &[style(4)]));
}

#[test]
fn every_arrangement_against_every_other() {
    for (p_order, d_order) in [(HND, HND), (NHD, NHD), (HND, NHD), (NHD, HND)] {
        for p_kv in PLACEMENTS {
            for d_kv in PLACEMENTS {
                for (p_tp, d_tp) in [(1, 1), (2, 1), (1, 2)] {
                    let p = GroupStyle::new(4, p_order, p_kv);
                    let d = GroupStyle::new(4, d_order, d_kv);
                    run(&[dense(4, 2)], tp(p_tp, &[p]), tp(d_tp, &[d]));
                }
            }
        }
    }
}

#[test]
fn slabs_are_moved_whole_and_split_by_head() {
    let slabs = GroupStyle::new(4, HND, KvPlacement::Slabs);
    for (p, d) in [(1, 1), (4, 2), (2, 4), (1, 8), (8, 1)] {
        run(&[dense(4, 2)], tp(p, &[slabs]), tp(d, &[slabs]));
    }
}

#[test]
fn block_sizes_one_of_which_divides_the_other() {
    for (p, d) in [(4, 8), (8, 4), (2, 8), (1, 8), (8, 1)] {
        for order in [HND, NHD] {
            for (p_tp, d_tp) in [(1, 1), (2, 1), (1, 2)] {
                let p = GroupStyle::new(p, order, KvPlacement::Cells);
                let d = GroupStyle::new(d, order, KvPlacement::Cells);
                run(&[dense(4, 2)], tp(p_tp, &[p]), tp(d_tp, &[d]));
                run(&[mla(2)], tp(p_tp, &[p]), tp(d_tp, &[d]));
            }
        }
    }
}

#[test]
fn kernel_blocks_per_block() {
    for (p, d) in [
        ((4, 2), (4, 2)),
        ((4, 4), (4, 1)),
        ((4, 1), (4, 3)),
        ((2, 4), (8, 1)),
        ((8, 2), (2, 4)),
    ] {
        let make = |(tokens, pages)| GroupStyle {
            pages_per_block: pages,
            ..style(tokens)
        };
        run(&[dense(4, 2)], tp(2, &[make(p)]), tp(1, &[make(d)]));
        run(&[mla(1)], tp(1, &[make(p)]), tp(2, &[make(d)]));
    }
}

#[test]
fn layers_packed_in_a_row() {
    let packed = GroupStyle {
        packed: true,
        padding: 5,
        ..style(4)
    };
    let padded = GroupStyle {
        padding: 3,
        ..style(4)
    };
    run(&[dense(4, 3)], tp(2, &[packed]), tp(2, &[packed]));
    run(&[dense(4, 3)], tp(2, &[packed]), tp(1, &[padded]));
    run(&[dense(4, 3)], tp(1, &[padded]), tp(2, &[packed]));
    run(&[mla(3)], tp(1, &[packed]), tp(2, &[packed]));
}

#[test]
fn regions_of_their_own_for_each_head() {
    for kv in PLACEMENTS.into_iter().chain([KvPlacement::Slabs]) {
        let plain = GroupStyle::new(4, HND, kv);
        let by_head = GroupStyle {
            by_head: true,
            ..plain
        };
        for (p, d) in [(plain, by_head), (by_head, plain), (by_head, by_head)] {
            for (p_tp, d_tp) in [(2, 2), (2, 1), (1, 2), (8, 2), (2, 8)] {
                run(&[dense(4, 2)], tp(p_tp, &[p]), tp(d_tp, &[d]));
            }
        }
    }
}

#[test]
fn mixed_mla_and_dense() {
    let model = [
        mla(2),
        GroupModel {
            layers: vec![2, 3],
            ..dense(4, 0)
        },
    ];
    run(
        &model,
        tp(4, &[style(4), style(4)]),
        tp(2, &[style(4), style(8)]),
    );
    run(
        &model,
        tp(1, &[style(4), style(4)]),
        tp(4, &[style(4), style(4)]),
    );
}

#[test]
fn windowed_groups_with_their_own_block_tables() {
    for kind in [GroupKind::SlidingWindow, GroupKind::ChunkedLocal] {
        let windowed = GroupModel {
            kind,
            window: 10,
            layers: vec![1, 3],
            ..dense(4, 0)
        };
        let full = GroupModel {
            layers: vec![0, 2],
            ..dense(4, 0)
        };
        let overlaid = GroupModel {
            over: Some(0),
            ..windowed.clone()
        };
        for model in [[full.clone(), windowed], [full, overlaid]] {
            for (p, d) in [(1, 1), (2, 1), (1, 2)] {
                run(
                    &model,
                    tp(p, &[style(4), style(4)]),
                    tp(d, &[style(4), style(4)]),
                );
            }
            run(
                &model,
                tp(1, &[style(4), style(4)]),
                tp(1, &[style(8), style(8)]),
            );
            run(
                &model,
                tp(1, &[style(8), style(8)]),
                tp(1, &[style(4), style(4)]),
            );
        }
    }
}

#[test]
fn mamba_hybrids_with_unequal_tp() {
    for (p, d) in [(1, 1), (2, 1), (1, 2), (4, 2), (2, 4)] {
        let attention = dense(4, 2);
        let state = mamba(&[2, 3]);
        let overlaid = GroupModel {
            over: Some(0),
            ..state.clone()
        };
        for model in [[attention.clone(), state], [attention, overlaid]] {
            let s = GroupStyle {
                pages_per_block: 2,
                ..style(4)
            };
            run(&model, tp(p, &[s, s]), tp(d, &[s, s]));
        }
    }
}

#[test]
fn convolution_state_in_either_order() {
    let rows_first = GroupStyle {
        conv_order: ConvOrder::RowsFirst,
        ..style(1)
    };
    for (p, d) in [(1, 1), (2, 1), (1, 2)] {
        run(&[mamba(&[0, 1])], tp(p, &[rows_first]), tp(d, &[style(1)]));
        run(&[mamba(&[0, 1])], tp(p, &[style(1)]), tp(d, &[rows_first]));
        run(
            &[mamba(&[0, 1])],
            tp(p, &[rows_first]),
            tp(d, &[rows_first]),
        );
    }
}

#[test]
fn decode_context_parallelism() {
    let with = |tp_size: u32, dcp: u32, interleave: u32, tokens: u32| EngineStyle {
        dcp,
        interleave,
        ..tp(tp_size, &[style(tokens)])
    };
    for (p, d) in [
        (with(2, 2, 0, 4), with(1, 1, 0, 4)),
        (with(1, 1, 0, 4), with(2, 2, 0, 4)),
        (with(2, 2, 0, 4), with(2, 1, 0, 4)),
        (with(4, 4, 0, 4), with(2, 2, 0, 4)),
        (with(2, 2, 0, 4), with(4, 4, 0, 4)),
        (with(2, 2, 1, 4), with(1, 1, 0, 4)),
        (with(2, 2, 2, 4), with(1, 1, 0, 8)),
        (with(4, 4, 1, 4), with(2, 2, 2, 8)),
        (with(4, 2, 0, 4), with(4, 2, 0, 4)),
        (with(4, 2, 2, 4), with(4, 2, 2, 8)),
    ] {
        run(&[mla(2)], p, d);
    }
    // Heads shared by several ranks: those that share them split the tokens.
    run(&[dense(2, 2)], with(4, 2, 0, 4), with(2, 1, 0, 4));
    run(&[dense(2, 2)], with(2, 1, 0, 4), with(8, 4, 1, 4));
    run(&[dense(1, 2)], with(4, 4, 0, 4), with(4, 2, 0, 4));
}

#[test]
fn pipeline_stages() {
    let staged = |pp| EngineStyle {
        pp,
        ..tp(2, &[style(4)])
    };
    run(&[dense(4, 4)], staged(2), staged(1));
    run(&[dense(4, 4)], staged(1), staged(2));
    run(&[dense(4, 4)], staged(2), staged(4));
}

#[test]
fn partial_prefix_hits() {
    let model = [
        dense(4, 2),
        GroupModel {
            over: None,
            ..mamba(&[2])
        },
    ];
    for (p_tokens, d_tokens) in [(4, 4), (4, 8), (8, 4)] {
        let p = tp(2, &[style(p_tokens), style(p_tokens)]);
        let d = tp(1, &[style(d_tokens), style(d_tokens)]);
        for tokens in [1, 16, 37, 40] {
            for cached in [0, 8, 16, 32, 40] {
                if cached > tokens {
                    continue;
                }
                let lists = lists(&model, &p, &d, tokens, cached, 1);
                for told in [Told::Tokens(tokens), Told::Firsts] {
                    check(&model, &p, &d, &lists, told, PlanOptions::default()).unwrap();
                }
                // Where the consumer's blocks are not smaller, the lists alone say it.
                if d_tokens >= p_tokens {
                    check(
                        &model,
                        &p,
                        &d,
                        &lists,
                        Told::Nothing,
                        PlanOptions::default(),
                    )
                    .unwrap();
                }
            }
        }
    }
}

#[test]
fn uneven_block_sizes_when_allowed() {
    let model = [dense(2, 1)];
    let (p, d) = (tp(1, &[style(6)]), tp(2, &[style(4)]));
    let lists = lists(&model, &p, &d, 40, 8, 1);
    let options = PlanOptions {
        uneven_blocks: true,
        ..PlanOptions::default()
    };
    check(&model, &p, &d, &lists, Told::Tokens(40), options).unwrap();
    let refused = check(
        &model,
        &p,
        &d,
        &lists,
        Told::Tokens(40),
        PlanOptions::default(),
    );
    assert!(
        refused
            .unwrap_err()
            .contains("local 4, remote 6: neither divides the other")
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_topologies(case in case(4)) {
        let done = check(&case.model, &case.p, &case.d, &case.lists, case.told, case.options);
        prop_assert!(done.is_ok(), "{}", done.unwrap_err());
    }
}
