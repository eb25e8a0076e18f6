//! Worked examples: what stock vLLM moves, byte for byte, and what we move besides.
//!
//! Common to all, unless said otherwise: two layers, head size 16 of two bytes for K and for V, blocks of 16
//! tokens, so that a head of a block is 1024 bytes. The producer has 6 blocks, the consumer 8, and 32 tokens
//! in blocks 1, 2 go to blocks 3, 4.

use crate::fixture::*;
use kvferry::connector::Mode;
use kvferry::connector::geometry::*;
use kvferry::plan::PeerRole::{Idle, NotifyOnly, Transfer};
use kvferry::plan::{Plan, PlanOptions};

const BLOCKS: [Lists; 1] = [(&[3, 4], &[1, 2], 0)];

/// What rank `d` moves in the common request.
fn common(us: &Engine, d: u32, them: &Engine) -> Vec<[u64; 4]> {
    in_each_region(&plan(us, d, them).0, &BLOCKS, 32)
}

#[test]
fn equal_tp() {
    let (p, d) = (dense(1, 4, 6), dense(1, 4, 8));
    assert_eq!(common(&d, 0, &p), [[0, 4096, 12288, 8192]]);
    assert_eq!(heard(&plan(&d, 0, &p).0), [(0, Transfer, 1)]);
}

#[test]
fn decode_tp_above_prefill_tp() {
    let (p, d) = (dense(1, 4, 6), dense(2, 4, 8));
    assert_eq!(
        common(&d, 0, &p),
        [[0, 4096, 6144, 2048], [0, 8192, 8192, 2048]]
    );
    assert_eq!(
        common(&d, 1, &p),
        [[0, 6144, 6144, 2048], [0, 10240, 8192, 2048]]
    );
    assert_eq!(heard(&plan(&d, 1, &p).0), [(0, Transfer, 2)]);
}

#[test]
fn decode_tp_below_prefill_tp() {
    let (p, d) = (dense(2, 4, 6), dense(1, 4, 8));
    let want = [
        [0, 2048, 12288, 2048],
        [1, 2048, 14336, 2048],
        [0, 4096, 16384, 2048],
        [1, 4096, 18432, 2048],
    ];
    assert_eq!(common(&d, 0, &p), want);
    assert_eq!(
        heard(&plan(&d, 0, &p).0),
        [(0, Transfer, 1), (1, Transfer, 1)]
    );
}

#[test]
fn fewer_heads_than_ranks() {
    let (p, d) = (dense(1, 2, 6), dense(4, 2, 8));
    for (rank, head) in [(0, 0), (1, 0), (2, 1), (3, 1)] {
        let at = 2048 + head * 1024;
        let want = [[0, at, 3072, 1024], [0, at + 2048, 4096, 1024]];
        assert_eq!(common(&d, rank, &p), want);
    }
    assert_eq!(heard(&plan(&d, 2, &p).0), [(0, Transfer, 4)]);

    let p = dense(2, 2, 6);
    for (rank, from) in [(0, 0), (1, 0), (2, 1), (3, 1)] {
        assert_eq!(common(&d, rank, &p), [[from, 1024, 3072, 2048]]);
    }
    assert_eq!(heard(&plan(&d, 3, &p).0), [(1, Transfer, 2)]);

    let (p, d) = (dense(4, 2, 6), dense(8, 2, 8));
    for rank in 0..8 {
        assert_eq!(
            common(&d, rank, &p),
            [[u64::from(rank) / 2, 1024, 3072, 2048]]
        );
    }
}

/// Stock refuses this: a producer whose ranks share heads and a consumer with fewer ranks. Every head is
/// read from the first rank that has it.
#[test]
fn duplicated_heads_are_read_once() {
    let (p, d) = (dense(4, 2, 6), dense(1, 2, 8));
    let want = [
        [0, 1024, 6144, 1024],
        [2, 1024, 7168, 1024],
        [0, 2048, 8192, 1024],
        [2, 2048, 9216, 1024],
    ];
    assert_eq!(common(&d, 0, &p), want);
    let told = [
        (0, Transfer, 1),
        (1, NotifyOnly, 1),
        (2, Transfer, 1),
        (3, NotifyOnly, 1),
    ];
    assert_eq!(heard(&plan(&d, 0, &p).0), told);
}

#[test]
fn latents() {
    let whole = |from| [[from, 2048, 6144, 4096]];
    assert_eq!(common(&mla(1, 1, 8), 0, &mla(1, 1, 6)), whole(0));
    for rank in 0..2 {
        assert_eq!(common(&mla(2, 1, 8), rank, &mla(1, 1, 6)), whole(0));
    }
    assert_eq!(
        heard(&plan(&mla(2, 1, 8), 0, &mla(1, 1, 6)).0),
        [(0, Transfer, 2)]
    );
    assert_eq!(common(&mla(1, 1, 8), 0, &mla(2, 1, 6)), whole(0));
    let told = heard(&plan(&mla(1, 1, 8), 0, &mla(2, 1, 6)).0);
    assert_eq!(told, [(0, Transfer, 1), (1, NotifyOnly, 1)]);
    for (rank, from) in [(0, 0), (1, 2)] {
        assert_eq!(common(&mla(2, 1, 8), rank, &mla(4, 1, 6)), whole(from));
    }
    let told = heard(&plan(&mla(2, 1, 8), 1, &mla(4, 1, 6)).0);
    assert_eq!(told, [(2, Transfer, 1), (3, NotifyOnly, 1)]);
}

#[test]
fn a_prefix_hit() {
    let (p, d) = (dense(1, 4, 6), dense(1, 4, 8));
    let plan = plan(&d, 0, &p).0;
    assert_eq!(
        in_each_region(&plan, &[(&[5], &[1, 2, 3], 2)], 48),
        [[0, 12288, 20480, 4096]]
    );
    assert!(moved(&plan, &[(&[], &[1, 2, 3], 3)], 48).is_empty());
}

/// Where stock moves whole blocks of 16 and puts their heads in order afterwards, each head goes to its
/// place.
#[test]
fn blocks_of_16_to_32() {
    let d = Engine {
        tokens: 32,
        ..dense(1, 4, 8)
    };
    let plan = plan(&d, 0, &dense(1, 4, 6)).0;
    let mut want = Vec::new();
    for (block, half, from) in [(3, 0, 1), (3, 1, 2), (5, 0, 4)] {
        for head in 0..4 {
            let to = block * 8192 + head * 2048 + half * 1024;
            want.push([0, from * 4096 + head * 1024, to, 1024]);
        }
    }
    want.sort_unstable_by_key(|m| m[2]);
    assert_eq!(in_each_region(&plan, &[(&[3, 5], &[1, 2, 4], 0)], 48), want);
    // With the first 32 tokens cached, block 4 alone: by token, not by place in the list.
    let hit = in_each_region(&plan, &[(&[5], &[1, 2, 4], 1)], 48);
    assert_eq!(hit, want[8..]);
}

/// Stock cannot do any of these.
#[test]
fn other_block_sizes() {
    // The producer's blocks are the larger.
    let p = Engine {
        tokens: 32,
        ..dense(1, 1, 6)
    };
    let plan0 = plan(&dense(1, 1, 8), 0, &p).0;
    let got = in_each_region(&plan0, &[(&[3, 5, 6], &[1, 2], 0)], 48);
    assert_eq!(got, [[0, 2048, 3072, 1024], [0, 3072, 5120, 2048]]);
    // Decode TP below prefill TP besides: head 0 from rank 0, head 1 from rank 1.
    let d = Engine {
        tokens: 32,
        ..dense(1, 2, 8)
    };
    let plan1 = plan(&d, 0, &dense(2, 2, 6)).0;
    let got = in_each_region(&plan1, &[(&[3], &[1, 2], 0)], 32);
    assert_eq!(got, [[0, 1024, 12288, 2048], [1, 1024, 14336, 2048]]);
}

#[test]
fn windows_over_the_same_tensors() {
    let engine = |blocks| Engine {
        cache: |e, _| e.of(&[Group0::Full, Group0::Window], 4),
        ..dense(1, 4, blocks)
    };
    let (p, d) = (engine(10), engine(12));
    let told = d.metadata(0, 0);
    assert_eq!(told.region_group_ids, Some(vec![-1, -1]));
    assert_eq!(
        told.region_names,
        Some(vec!["layers.0".into(), "layers.2".into()])
    );
    let lists: [Lists; 2] = [
        (&[3, 4, 5, 6], &[1, 2, 3, 4], 0),
        (&[7, 8, 9], &[5, 6, 7], 1),
    ];
    let got = in_each_region(&plan(&d, 0, &p).0, &lists, 64);
    // Seven pairs, all of which follow each other.
    assert_eq!(got, [[0, 4096, 12288, 7 * 4096]]);
}

#[test]
fn windows_in_tensors_of_their_own() {
    let engine = |blocks| Engine {
        cache: |e, _| {
            let kinds = [Group0::Full, Group0::Window];
            let tensor = |n: u64| {
                e.tensor(
                    &format!("layers.{n}"),
                    n as u32 % 2,
                    kinds[n as usize % 2],
                    n,
                )
            };
            e.cache(&kinds, (0..4).map(tensor).collect())
        },
        ..dense(1, 4, blocks)
    };
    let (p, d) = (engine(10), engine(12));
    assert_eq!(d.metadata(0, 0).region_group_ids, Some(vec![0, 1, 0, 1]));
    let lists: [Lists; 2] = [
        (&[3, 4, 5, 6], &[1, 2, 3, 4], 0),
        (&[7, 8, 9], &[5, 6, 7], 1),
    ];
    let got = moved(&plan(&d, 0, &p).0, &lists, 64);
    let want: Vec<[u64; 6]> = (0..4)
        .map(|n| match n % 2 {
            0 => [0, n, 4096, n, 12288, 4 * 4096],
            _ => [0, n, 5 * 4096, n, 7 * 4096, 3 * 4096],
        })
        .collect();
    assert_eq!(got, want);
}

#[test]
fn recurrent_state() {
    let engine = |tp, blocks| Engine {
        cache: |e, _| e.of(&[Group0::Full, Group0::State], 2),
        ..dense(tp, 4, blocks)
    };
    assert_eq!(engine(1, 6).metadata(0, 0).ssm_sizes, (288, 512));
    assert_eq!(engine(2, 6).metadata(0, 0).ssm_sizes, (144, 256));
    let lists: [Lists; 2] = [(&[3], &[1], 0), (&[5], &[4], 0)];
    let state = |moves: Vec<[u64; 6]>, page: u64| -> Vec<[u64; 4]> {
        let of = |m: &&[u64; 6]| m[4] >= 5 * page;
        moves
            .iter()
            .filter(of)
            .map(|m| [m[0], m[2], m[4], m[5]])
            .collect()
    };
    // Four pieces that follow each other on both sides: 192, 48, 48 and 512 bytes.
    let same = moved(&plan(&engine(1, 8), 0, &engine(1, 6)).0, &lists, 16);
    assert_eq!(same[0], [0, 0, 4096, 0, 12288, 4096]);
    assert_eq!(state(same, 4096), [[0, 16384, 20480, 800]]);

    let up = moved(&plan(&engine(2, 8), 1, &engine(1, 6)).0, &lists, 16);
    let want = [
        [0, 16480, 10240, 96],
        [0, 16600, 10336, 24],
        [0, 16648, 10360, 24],
        [0, 16928, 10384, 256],
    ];
    assert_eq!(state(up, 2048), want);

    let down = moved(&plan(&engine(1, 8), 0, &engine(2, 6)).0, &lists, 16);
    let from_1: Vec<_> = state(down, 4096)
        .into_iter()
        .filter(|m| m[0] == 1)
        .collect();
    let want = [
        [1, 8192, 20576, 96],
        [1, 8288, 20696, 24],
        [1, 8312, 20744, 24],
        [1, 8336, 21024, 256],
    ];
    assert_eq!(from_1, want);
}

#[test]
fn context_parallel_ranks() {
    let pairs = |us: &Engine, rank, them: &Engine, lists: Lists, tokens| -> Vec<(u64, u64, u64)> {
        let moves = in_each_region(&plan(us, rank, them).0, &[lists], tokens);
        let blocks = |m: &[u64; 4]| {
            assert_eq!((m[1] % 2048, m[2] % 2048, m[3] % 2048), (0, 0, 0));
            let one = |i| (m[0], m[1] / 2048 + i, m[2] / 2048 + i);
            (0..m[3] / 2048).map(one).collect::<Vec<_>>()
        };
        moves.iter().flat_map(blocks).collect()
    };
    let (p, d) = (mla(2, 2, 6), mla(1, 1, 8));
    let all = pairs(&d, 0, &p, (&[1, 2, 3, 4, 5, 6], &[1, 2, 3], 0), 96);
    assert_eq!(
        all,
        [
            (0, 1, 1),
            (1, 1, 2),
            (0, 2, 3),
            (1, 2, 4),
            (0, 3, 5),
            (1, 3, 6)
        ]
    );
    let rest = pairs(&d, 0, &p, (&[3, 4, 5, 6], &[1, 2, 3], 2), 96);
    assert_eq!(rest, [(0, 2, 3), (1, 2, 4), (0, 3, 5), (1, 3, 6)]);
    assert_eq!(
        heard(&plan(&d, 0, &p).0),
        [(0, Transfer, 1), (1, Transfer, 1)]
    );

    let (p, d) = (mla(1, 1, 8), mla(2, 2, 6));
    for rank in 0..2 {
        let got = pairs(&d, rank, &p, (&[1, 2, 3], &[1, 2, 3, 4, 5, 6], 0), 96);
        let first = u64::from(rank) + 1;
        assert_eq!(got, [(0, first, 1), (0, first + 2, 2), (0, first + 4, 3)]);
    }
    assert_eq!(heard(&plan(&d, 0, &p).0), [(0, Transfer, 2)]);
}

#[test]
fn push() {
    let push = |tp, blocks| Engine {
        mode: Mode::Push,
        ..dense(tp, 4, blocks)
    };
    let lists: [Lists; 1] = [(&[1, 2, 3], &[5, 6, 7], 0)];
    // One writes to two: each gets its half of every block.
    let plan0 = Plan::build(
        &push(1, 6).local(0, 0).layout,
        &[0, 1].map(|r| {
            let them = push(2, 8);
            let mine = push(1, 6).local(0, 0);
            peer(&mine, &them.metadata(r, 0), them.parallel(r, 0))
                .unwrap()
                .layout
        }),
        &PlanOptions {
            direction: kvferry::plan::Direction::Push,
            ..PlanOptions::default()
        },
    )
    .unwrap();
    let mut want: Vec<[u64; 4]> = Vec::new();
    for i in 0..3 {
        for rank in 0..2 {
            want.push([rank, 10240 + i * 2048, 4096 + i * 4096 + rank * 2048, 2048]);
        }
    }
    assert_eq!(in_each_region(&plan0, &lists, 48), want);
    assert_eq!(heard(&plan0), [(0, Transfer, 1), (1, Transfer, 1)]);
    // Two write to one, which waits for both.
    for (rank, at) in [(0, 20480), (1, 22528)] {
        let plan = plan(&push(2, 6), rank, &push(1, 8)).0;
        let want: Vec<[u64; 4]> = (0..3)
            .map(|i| [0, at + i * 4096, 2048 + i * 2048, 2048])
            .collect();
        assert_eq!(in_each_region(&plan, &lists, 48), want);
        assert_eq!(heard(&plan), [(0, Transfer, 2)]);
    }
}

/// Each head in a region of its own; stock exchanges these only between equal tensor-parallel sizes.
#[test]
fn regions_by_head() {
    let by_head = |tp, blocks| Engine {
        layout: "LHBNC",
        ..dense(tp, 4, blocks)
    };
    let (p, d) = (by_head(1, 6), by_head(2, 8));
    assert_eq!(d.metadata(0, 0).base_addrs.len(), 4);
    assert_eq!(p.metadata(0, 0).base_addrs.len(), 8);
    let got = moved(&plan(&d, 1, &p).0, &BLOCKS, 32);
    // Heads 2 and 3 of the producer, each 6 blocks behind the last; ours 8.
    let head = |layer, h: u64| {
        [
            0,
            layer,
            (2 + h) * 6144 + 1024,
            layer,
            h * 8192 + 3072,
            2048,
        ]
    };
    assert_eq!(got, [head(0, 0), head(0, 1), head(1, 0), head(1, 1)]);
    // Against the usual order: stock asks for equal ones.
    let got = moved(&plan(&d, 1, &dense(1, 4, 6)).0, &BLOCKS, 32);
    let block = |layer, h: u64, i: u64| {
        let from = (1 + i) * 4096 + (2 + h) * 1024;
        [0, layer, from, layer, h * 8192 + (3 + i) * 1024, 1024]
    };
    let want: Vec<_> = (0..2)
        .flat_map(|l| (0..2).flat_map(move |h| (0..2).map(move |i| block(l, h, i))))
        .collect();
    assert_eq!(got, want);
}

/// Engines may number the groups of one model differently. It shows where regions are not shared.
#[test]
fn groups_in_another_order() {
    fn apart(e: &Engine, order: [u32; 2]) -> KvCache {
        let kinds = [Group0::Full, Group0::Window];
        let tensor = |n: u64| {
            let group = order[n as usize % 2];
            e.tensor(&format!("layers.{n}"), group, kinds[n as usize % 2], n)
        };
        let kinds = order.map(|g| kinds[g as usize]);
        e.cache(&kinds, (0..4).map(tensor).collect())
    }
    let d = Engine {
        cache: |e, _| apart(e, [0, 1]),
        ..dense(1, 4, 12)
    };
    let p = Engine {
        cache: |e, _| apart(e, [1, 0]),
        ..dense(1, 4, 10)
    };
    assert_eq!(p.metadata(0, 0).region_group_ids, Some(vec![1, 0, 1, 0]));
    let (plan, peers) = plan(&d, 0, &p);
    assert_eq!(peers[0].groups, [1, 0]);
    let theirs: [&[u32]; 2] = [&[5, 6, 7], &[1, 2, 3, 4]];
    let lists: Vec<Lists> = [(&[3, 4, 5, 6][..], 0), (&[7, 8, 9][..], 1)]
        .into_iter()
        .zip(&peers[0].groups)
        .map(|((ours, first), theirs_at)| (ours, theirs[*theirs_at as usize], first))
        .collect();
    let got = moved(&plan, &lists, 64);
    assert_eq!(got[0], [0, 0, 4096, 0, 12288, 4 * 4096]);
    assert_eq!(got[1], [0, 1, 5 * 4096, 1, 7 * 4096, 3 * 4096]);
    assert_eq!(got.len(), 4);
}

/// A stage of a producer has some of the layers; regions are found by name.
#[test]
fn pipeline_stages() {
    fn stage(e: &Engine, pp_rank: u32) -> KvCache {
        let each = 4 / e.pp;
        let layers = (0..each).map(|n| {
            let layer = pp_rank * each + n;
            e.tensor(&format!("layers.{layer}"), 0, Group0::Full, n.into())
        });
        e.cache(&[Group0::Full], layers.collect())
    }
    let p = Engine {
        pp: 2,
        cache: stage,
        ..dense(1, 4, 6)
    };
    let d = Engine {
        cache: stage,
        ..dense(1, 4, 8)
    };
    let mine = d.local(0, 0);
    let stages = [0, 1].map(|s| {
        peer(&mine, &p.metadata(0, s), p.parallel(0, s))
            .unwrap()
            .layout
    });
    let plan = Plan::build(&mine.layout, &stages, &PlanOptions::default()).unwrap();
    let got = moved(&plan, &BLOCKS, 32);
    let want: Vec<_> = (0..4).map(|l| [0, l % 2, 4096, l, 12288, 8192]).collect();
    assert_eq!(got, want);

    // Push: the second stage writes its two layers to the regions of the same names.
    let (p, d) = (
        Engine {
            mode: Mode::Push,
            ..p
        },
        Engine {
            mode: Mode::Push,
            ..d
        },
    );
    let mine = p.local(0, 1);
    let whole = peer(&mine, &d.metadata(0, 0), d.parallel(0, 0))
        .unwrap()
        .layout;
    let options = PlanOptions {
        direction: kvferry::plan::Direction::Push,
        ..PlanOptions::default()
    };
    let plan = Plan::build(&mine.layout, &[whole], &options).unwrap();
    let got = moved(&plan, &[(&[1, 2], &[3, 4], 0)], 32);
    assert_eq!(
        got,
        [[0, 2, 12288, 0, 4096, 8192], [0, 3, 12288, 1, 4096, 8192]]
    );
}

/// Block rows of latents are told as one region; a stage finds its layers by what is told of each.
#[test]
fn rows_of_latents() {
    fn rows(e: &Engine, pp_rank: u32) -> KvCache {
        let each = u64::from(4 / e.pp);
        let (page, row) = (2048, 2048 * each);
        let tensor = |n: u64| {
            let name = format!("layers.{}", u64::from(pp_rank) * each + n);
            let mut t = e.tensor(&name, 0, Group0::Latent, 0);
            t.address += n * page;
            t.storage.len = row * e.blocks;
            t.dims = vec![(e.blocks, row), (16, 128), (64, 2)];
            t
        };
        e.cache(&[Group0::Latent], (0..each).map(tensor).collect())
    }
    let d = Engine {
        mode: Mode::Push,
        layout: "BLHNC",
        cache: rows,
        ..mla(1, 1, 8)
    };
    let p = Engine { pp: 2, ..d.clone() };
    let told = d.metadata(0, 0);
    assert_eq!(
        (told.block_lens, told.block_strides),
        (vec![8192], vec![8192])
    );
    assert_eq!(
        told.packed_member_layouts[3],
        ("layers.3".into(), (6144, 2048))
    );
    assert_eq!(told.region_members[0].len(), 4);
    let mine = p.local(0, 1);
    assert_eq!(mine.metadata.block_lens, [2048, 2048]);
    let whole = peer(&mine, &d.metadata(0, 0), d.parallel(0, 0))
        .unwrap()
        .layout;
    let options = PlanOptions {
        direction: kvferry::plan::Direction::Push,
        ..PlanOptions::default()
    };
    let plan = Plan::build(&mine.layout, &[whole], &options).unwrap();
    let got = moved(&plan, &[(&[1], &[3], 0)], 16);
    // Both layers in one go: they follow each other on both sides.
    assert_eq!(got, [[0, 0, 3 * 8192 + 4096, 0, 4096, 4096]]);
}

#[test]
fn halves_against_cells() {
    let halves = |blocks| Engine {
        cache: |e, _| KvCache {
            slab: SlabOrder::Halves,
            attn_backend: "CPU_ATTN".into(),
            ..e.of(&[Group0::Full], 2)
        },
        ..dense(1, 1, blocks)
    };
    let got = in_each_region(
        &plan(&halves(8), 0, &dense(1, 1, 6)).0,
        &[(&[3], &[1], 0)],
        16,
    );
    // Token t has its K at 64 t there; here all K, of 32 bytes each, come before all V.
    let mut want: Vec<[u64; 4]> = (0..16)
        .flat_map(|t| {
            let there = 1024 + t * 64;
            [
                [0, there, 3072 + t * 32, 32],
                [0, there + 32, 3072 + 512 + t * 32, 32],
            ]
        })
        .collect();
    want.sort_unstable_by_key(|m| m[2]);
    assert_eq!(got, want);
    let roles: Vec<_> = heard(&plan(&halves(8), 0, &halves(6)).0)
        .iter()
        .map(|h| h.1)
        .collect();
    assert!(!roles.contains(&Idle));
    assert_eq!(common(&halves(8), 0, &halves(6)), [[0, 1024, 3072, 2048]]);
}
