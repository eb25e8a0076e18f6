//! The worked examples of docs/plan.md, with addresses worked out by hand.
//!
//! Most are the examples by which vLLM's NixlConnector was specified for this project, so they also
//! say that the same bytes move as there. Common to all, unless said otherwise: two layers, head size
//! 16 of 2 bytes for K and for V, blocks of 16 tokens, head-major with K and V in each cell: a head of
//! a block is a slab of 16 × (16 + 16) × 2 = 1024 bytes. Region `i` begins at `i << 32`.

use kvferry::error::Result;
use kvferry::layout::*;
use kvferry::memory::MemKind;
use kvferry::plan::*;

const REGION: u64 = 1 << 32;

fn shape(kv_heads: u32) -> DenseShape {
    DenseShape {
        kv_heads,
        k_head_size: 16,
        v_head_size: 16,
        elem_bytes: 2,
        order: PageOrder::Hnd,
        kv: KvPlacement::Cells,
    }
}

fn span(region: u64) -> Span {
    Span::host(region * REGION, 32)
}

/// Two layers with heads, blocks of `tokens`.
fn dense(parallel: Parallel, kv_heads: u32, tokens: u32) -> Layout {
    let mut b = LayoutBuilder::new(parallel);
    let g = b.attention(GroupKind::Full, tokens, 1);
    b.dense(g, 0, shape(kv_heads), &[span(0)]).unwrap();
    b.dense(g, 1, shape(kv_heads), &[span(1)]).unwrap();
    b.finish().unwrap()
}

fn engine(tp: u32, kv_heads: u32, tokens: u32) -> Vec<Layout> {
    (0..tp)
        .map(|r| dense(Parallel::tp(r, tp), kv_heads, tokens))
        .collect()
}

/// One layer of MLA: a page is 2048 bytes.
fn mla(parallel: Parallel) -> Layout {
    let mut b = LayoutBuilder::new(parallel);
    let g = b.attention(GroupKind::Mla, 16, 1);
    let shape = LatentShape {
        size: 64,
        elem_bytes: 2,
        role: Role::LATENT,
    };
    b.latent(g, 0, shape, span(0)).unwrap();
    b.finish().unwrap()
}

fn pull(local: &Layout, remotes: &[Layout]) -> Plan {
    Plan::build(local, remotes, &PlanOptions::default()).unwrap()
}

fn runs(plan: &Plan, groups: &[(&[u32], &[u32])], tokens: Option<u64>) -> Result<Runs> {
    let groups: Vec<GroupBlocks> = groups.iter().map(|(d, p)| GroupBlocks::new(d, p)).collect();
    plan.runs(&Request {
        groups: &groups,
        tokens,
    })
}

/// The ranges as (peer, from, to), cut into pieces of `unit` bytes and sorted.
fn pieces(runs: &Runs, unit: u64) -> Vec<(u32, u64, u64)> {
    let mut out = Vec::new();
    for r in runs.expand().unwrap() {
        assert_eq!(r.len % unit, 0, "{r:?} in pieces of {unit}");
        out.extend((0..r.len / unit).map(|i| (r.peer, r.remote + i * unit, r.local + i * unit)));
    }
    out.sort_unstable();
    out
}

/// The same pieces in each of two regions.
fn twice(pieces: &[(u32, u64, u64)]) -> Vec<(u32, u64, u64)> {
    let mut out: Vec<_> = pieces
        .iter()
        .flat_map(|&(peer, from, to)| [(peer, from, to), (peer, from + REGION, to + REGION)])
        .collect();
    out.sort_unstable();
    out
}

fn roles(plan: &Plan) -> Vec<(PeerRole, u32)> {
    plan.peers().iter().map(|p| (p.role, p.notifiers)).collect()
}

const TRANSFER: PeerRole = PeerRole::Transfer;
const NOTIFY: PeerRole = PeerRole::NotifyOnly;
const IDLE: PeerRole = PeerRole::Idle;

#[test]
fn equal_tp() {
    let plan = pull(&engine(1, 4, 16)[0], &engine(1, 4, 16));
    assert_eq!(plan.lanes().len(), 2);
    let runs = runs(&plan, &[(&[3, 4], &[1, 2])], None).unwrap();
    assert_eq!(
        pieces(&runs, 4096),
        twice(&[(0, 4096, 12288), (0, 8192, 16384)])
    );
    // The two blocks follow each other on both sides: one range per layer.
    assert_eq!(
        runs.stats(),
        RunStats {
            bytes: 4 * 4096,
            ranges_before: 4,
            ranges: 2
        }
    );
    assert_eq!(roles(&plan), [(TRANSFER, 1)]);
}

#[test]
fn decode_tp_above_prefill_tp() {
    let p = engine(1, 4, 16);
    for (rank, offset) in [(0, 0), (1, 2048)] {
        let plan = pull(&dense(Parallel::tp(rank, 2), 4, 16), &p);
        let runs = runs(&plan, &[(&[3, 4], &[1, 2])], None).unwrap();
        let want = [(0, 4096 + offset, 6144), (0, 8192 + offset, 8192)];
        assert_eq!(pieces(&runs, 2048), twice(&want));
        assert_eq!(roles(&plan), [(TRANSFER, 2)]);
    }
}

#[test]
fn decode_tp_below_prefill_tp() {
    let plan = pull(&engine(1, 4, 16)[0], &engine(2, 4, 16));
    let runs = runs(&plan, &[(&[3, 4], &[1, 2])], None).unwrap();
    let want = [
        (0, 2048, 12288),
        (0, 4096, 16384),
        (1, 2048, 14336),
        (1, 4096, 18432),
    ];
    assert_eq!(pieces(&runs, 2048), twice(&want));
    assert_eq!(roles(&plan), [(TRANSFER, 1), (TRANSFER, 1)]);
}

#[test]
fn tp_4_to_tp_2() {
    let p = engine(4, 8, 16);
    let plan = pull(&dense(Parallel::tp(1, 2), 8, 16), &p);
    assert_eq!(
        roles(&plan),
        [(IDLE, 1), (IDLE, 1), (TRANSFER, 1), (TRANSFER, 1)]
    );
    let heads: Vec<_> = plan
        .shares()
        .iter()
        .map(|s| (s.peer, s.role, s.head_first, s.head_count))
        .collect();
    let want = [
        (2, Role::K, 4, 2),
        (2, Role::V, 4, 2),
        (3, Role::K, 6, 2),
        (3, Role::V, 6, 2),
    ];
    assert!(
        want.iter().all(|w| heads.contains(w)) && heads.len() == 4,
        "{heads:?}"
    );
    let runs = runs(&plan, &[(&[3], &[1])], None).unwrap();
    assert_eq!(
        pieces(&runs, 2048),
        twice(&[(2, 2048, 12288), (3, 2048, 14336)])
    );
}

#[test]
fn fewer_kv_heads_than_ranks() {
    // Two heads: a decode rank of four has one of them.
    let p = engine(1, 2, 16);
    for (rank, offset) in [(0, 0), (1, 0), (2, 1024), (3, 1024)] {
        let plan = pull(&dense(Parallel::tp(rank, 4), 2, 16), &p);
        let runs = runs(&plan, &[(&[3], &[1])], None).unwrap();
        assert_eq!(pieces(&runs, 1024), twice(&[(0, 2048 + offset, 3072)]));
        assert_eq!(roles(&plan), [(TRANSFER, 4)]);
    }
    // Duplicates on both sides: each reads the rank that it faces.
    let p = engine(4, 2, 16);
    for rank in 0..8 {
        let plan = pull(&dense(Parallel::tp(rank, 8), 2, 16), &p);
        let read: Vec<usize> = (0..4)
            .filter(|i| plan.peers()[*i].role == TRANSFER)
            .collect();
        assert_eq!(read, [rank as usize / 2]);
        assert_eq!(plan.peers()[rank as usize / 2].notifiers, 2);
    }
    // Duplicates on the producer only: each head is read once, the others are told.
    let plan = pull(&engine(1, 2, 16)[0], &p);
    assert_eq!(
        roles(&plan),
        [(TRANSFER, 1), (NOTIFY, 1), (TRANSFER, 1), (NOTIFY, 1)]
    );
    let runs = runs(&plan, &[(&[3], &[1])], None).unwrap();
    assert_eq!(
        pieces(&runs, 1024),
        twice(&[(0, 1024, 6144), (2, 1024, 7168)])
    );
}

#[test]
fn mla_is_read_from_one_rank() {
    let engine = |tp: u32| {
        (0..tp)
            .map(|r| mla(Parallel::tp(r, tp)))
            .collect::<Vec<_>>()
    };
    assert_eq!(roles(&pull(&engine(2)[1], &engine(1))), [(TRANSFER, 2)]);
    assert_eq!(
        roles(&pull(&engine(1)[0], &engine(2))),
        [(TRANSFER, 1), (NOTIFY, 1)]
    );
    let four = engine(4);
    assert_eq!(
        roles(&pull(&engine(2)[0], &four)),
        [(TRANSFER, 1), (NOTIFY, 1), (IDLE, 1), (IDLE, 1)]
    );
    let plan = pull(&engine(2)[1], &four);
    assert_eq!(
        roles(&plan),
        [(IDLE, 1), (IDLE, 1), (TRANSFER, 1), (NOTIFY, 1)]
    );
    let runs = runs(&plan, &[(&[3], &[1])], None).unwrap();
    assert_eq!(pieces(&runs, 2048), [(2, 2048, 6144)]);
    assert!(runs.moves_bytes(2) && !runs.moves_bytes(3));
}

#[test]
fn partial_prefix_hit() {
    let plan = pull(&engine(1, 4, 16)[0], &engine(1, 4, 16));
    let some = runs(&plan, &[(&[5], &[1, 2, 3])], None).unwrap();
    assert_eq!(pieces(&some, 4096), twice(&[(0, 12288, 20480)]));
    assert_eq!(some.coverage()[0].first..some.coverage()[0].end, 32..48);
    // A full hit moves nothing; the producer is still to be notified.
    let none = runs(&plan, &[(&[], &[1, 2, 3])], None).unwrap();
    assert_eq!(none.stats(), RunStats::default());
    assert!(!none.moves_bytes(0));
}

#[test]
fn local_blocks_twice_as_large() {
    let plan = pull(&engine(1, 4, 32)[0], &engine(1, 4, 16));
    let all = runs(&plan, &[(&[3, 5], &[1, 2, 4])], None).unwrap();
    // A local head is 2048 bytes: the first remote block fills its first half.
    let want: Vec<_> = [(4096, 24576), (8192, 24576 + 1024), (16384, 40960)]
        .iter()
        .flat_map(|(from, to)| (0..4).map(move |h| (0, from + h * 1024, to + h * 2048)))
        .collect();
    assert_eq!(pieces(&all, 1024), twice(&want));
    assert_eq!(all.coverage()[0].missing_tail, 16);
    // With the first 32 tokens cached, the last block gets what belongs there.
    let hit = runs(&plan, &[(&[5], &[1, 2, 4])], None).unwrap();
    let want: Vec<_> = (0..4)
        .map(|h| (0, 16384 + h * 1024, 40960 + h * 2048))
        .collect();
    assert_eq!(pieces(&hit, 1024), twice(&want));
}

#[test]
fn remote_blocks_twice_as_large() {
    let plan = pull(&engine(1, 4, 16)[0], &engine(1, 4, 32));
    // 48 tokens, of which 16 are cached: local blocks 1 and 2 of the request.
    let some = runs(&plan, &[(&[7, 9], &[1, 4])], Some(48)).unwrap();
    let want: Vec<_> = [(8192 + 1024, 7 * 4096), (4 * 8192, 9 * 4096)]
        .iter()
        .flat_map(|(from, to)| (0..4).map(move |h| (0, from + h * 2048, to + h * 1024)))
        .collect();
    assert_eq!(pieces(&some, 1024), twice(&want));
    // Without the number of tokens it cannot be known which half of block 4 was meant.
    let error = runs(&plan, &[(&[7, 9], &[1, 4])], None).unwrap_err();
    assert!(
        error.message().contains("state the number of tokens"),
        "{error}"
    );
}

#[test]
fn a_block_of_several_kernel_blocks() {
    let local = |kernel_blocks| {
        let mut b = LayoutBuilder::new(Parallel::default());
        let g = b.attention(GroupKind::Full, 16 * kernel_blocks, kernel_blocks);
        b.dense(g, 0, shape(4), &[span(0)]).unwrap();
        b.finish().unwrap()
    };
    // Local block 2 is pages 6, 7 and 8; remote blocks are pages.
    let plan = pull(&local(3), &[local(1)]);
    let runs = runs(&plan, &[(&[2], &[5, 1, 2])], None).unwrap();
    let want = [
        (0, 4096, 7 * 4096),
        (0, 8192, 8 * 4096),
        (0, 5 * 4096, 6 * 4096),
    ];
    assert_eq!(pieces(&runs, 4096), want);
    assert_eq!(runs.stats().ranges, 2);
}

#[test]
fn sliding_window_over_the_same_pages() {
    let layout = || {
        let mut b = LayoutBuilder::new(Parallel::default());
        let full = b.attention(GroupKind::Full, 16, 1);
        let window = b.group(Group {
            kind: GroupKind::SlidingWindow,
            tokens_per_block: 16,
            kernel_blocks: 1,
            window: 32,
            format: 0,
        });
        for (layer, group, region) in [(0, full, 0), (1, window, 0), (2, full, 1), (3, window, 1)] {
            b.dense(group, layer, shape(4), &[span(region)]).unwrap();
        }
        b.finish().unwrap()
    };
    let plan = pull(&layout(), &[layout()]);
    let lists: [(&[u32], &[u32]); 2] = [(&[3, 4, 5, 6], &[1, 2, 3, 4]), (&[7, 8, 9], &[5, 6, 7])];
    let all = runs(&plan, &lists, Some(64)).unwrap();
    let want: Vec<_> = (0..7)
        .map(|i| (0, (1 + i) * 4096, (3 + i) * 4096))
        .collect();
    assert_eq!(pieces(&all, 4096), twice(&want));
    // The groups draw from one pool, so a local block cannot be in both.
    let clash: [(&[u32], &[u32]); 2] = [(&[3], &[1]), (&[3], &[5])];
    let error = runs(&plan, &clash, None).unwrap_err();
    assert!(
        error
            .message()
            .contains("local block 3 occurs twice (group 0, 1)"),
        "{error}"
    );
}

/// Attention pages and states over the same memory; conv x 32, B 8, C 8 channels of 3 rows, and four
/// heads of 128 bytes of recurrent state.
fn hybrid(rank: u32, tp: u32) -> Layout {
    let mut b = LayoutBuilder::new(Parallel::tp(rank, tp));
    let attention = b.attention(GroupKind::Full, 16, 1);
    let state = b.state_group();
    b.dense(attention, 0, shape(4), &[span(0)]).unwrap();
    let sub = |units| SubProjection {
        units,
        channels_per_unit: 1,
    };
    let shape = StateShape {
        conv: vec![sub(32), sub(8), sub(8)],
        conv_rows: 3,
        conv_elem_bytes: 2,
        conv_order: ConvOrder::ChannelsFirst,
        ssm_heads: 4,
        ssm_head_bytes: 128,
        ssm_elem_bytes: 2,
    };
    b.state(
        state,
        1,
        &shape,
        Span {
            page_stride: 4096 / u64::from(tp),
            ..span(0)
        },
    )
    .unwrap();
    b.finish().unwrap()
}

#[test]
fn mamba_hybrid() {
    let lists: [(&[u32], &[u32]); 2] = [(&[3], &[1]), (&[5], &[4])];
    let of_state = |plan: &Plan, peer| {
        let runs = runs(plan, &lists, None).unwrap();
        let mut all: Vec<_> = runs
            .expand()
            .unwrap()
            .iter()
            .filter(|r| r.peer == peer && plan.lanes()[r.lane as usize].group == 1)
            .map(|r| (r.len, r.remote, r.local))
            .collect();
        all.sort_by_key(|r| r.1);
        all
    };
    // Alike on both sides, the three sub-projections and the state are one piece.
    let plan = pull(&hybrid(0, 1), &[hybrid(0, 1)]);
    assert_eq!(of_state(&plan, 0), [(192 + 48 + 48 + 512, 16384, 20480)]);
    // Decode TP 2, rank 1: its half of each. Its own pages are 2048 bytes apart.
    let plan = pull(&hybrid(1, 2), &[hybrid(0, 1)]);
    let want = [
        (96, 16480, 10240),
        (24, 16600, 10336),
        (24, 16648, 10360),
        (256, 16928, 10384),
    ];
    assert_eq!(of_state(&plan, 0), want);
    // Decode TP 1 from prefill TP 2: what comes from rank 1.
    let plan = pull(&hybrid(0, 1), &[hybrid(0, 2), hybrid(1, 2)]);
    let want = [
        (96, 8192, 20576),
        (24, 8288, 20696),
        (24, 8312, 20744),
        (256, 8336, 21024),
    ];
    assert_eq!(of_state(&plan, 1), want);
}

#[test]
fn states_are_never_trimmed() {
    let plan = pull(&hybrid(0, 1), &[hybrid(0, 1)]);
    let error = runs(&plan, &[(&[3], &[1, 2]), (&[5], &[4, 6])], None).unwrap_err();
    assert_eq!(
        error.message(),
        "group 1: state blocks: local 1, remote 2; states are never trimmed"
    );
}

#[test]
fn decode_context_parallelism() {
    let engine = |tp: u32, dcp: u32| -> Vec<Layout> {
        (0..tp)
            .map(|r| mla(Parallel::tp(r, tp).with_dcp(dcp, 0)))
            .collect()
    };
    let blocks = |runs: &Runs| -> Vec<(u32, u64, u64)> {
        pieces(runs, 2048)
            .iter()
            .map(|(p, from, to)| (*p, from / 2048, to / 2048))
            .collect()
    };
    // A block id of the producer is two blocks of tokens, one on each rank.
    let plan = pull(&engine(1, 1)[0], &engine(2, 2));
    assert_eq!(roles(&plan), [(TRANSFER, 1), (TRANSFER, 1)]);
    let all = runs(&plan, &[(&[1, 2, 3, 4, 5, 6], &[1, 2, 3])], Some(96)).unwrap();
    assert_eq!(
        blocks(&all),
        [
            (0, 1, 1),
            (0, 2, 3),
            (0, 3, 5),
            (1, 1, 2),
            (1, 2, 4),
            (1, 3, 6)
        ]
    );
    let hit = runs(&plan, &[(&[3, 4, 5, 6], &[1, 2, 3])], Some(96)).unwrap();
    assert_eq!(blocks(&hit), [(0, 2, 3), (0, 3, 5), (1, 2, 4), (1, 3, 6)]);
    // The other way round each decode rank takes every other block.
    for (rank, want) in [
        (0, [(0, 1, 1), (0, 3, 2), (0, 5, 3)]),
        (1, [(0, 2, 1), (0, 4, 2), (0, 6, 3)]),
    ] {
        let plan = pull(&engine(2, 2)[rank], &engine(1, 1));
        assert_eq!(roles(&plan), [(TRANSFER, 2)]);
        let all = runs(&plan, &[(&[1, 2, 3], &[1, 2, 3, 4, 5, 6])], Some(96)).unwrap();
        assert_eq!(blocks(&all), want);
    }
    // Both spread, unequally: a rank reads those whose share is a part of its own.
    let plan = pull(&engine(2, 2)[1], &engine(4, 4));
    assert_eq!(
        roles(&plan),
        [(IDLE, 1), (TRANSFER, 1), (IDLE, 1), (TRANSFER, 1)]
    );
}

#[test]
fn head_major_from_token_major() {
    // One layer, two heads, four tokens, cells of 4 bytes, K and V in regions of their own.
    let layout = |order| {
        let mut b = LayoutBuilder::new(Parallel::default());
        let g = b.attention(GroupKind::Full, 4, 1);
        let shape = DenseShape {
            kv_heads: 2,
            k_head_size: 2,
            v_head_size: 2,
            elem_bytes: 2,
            order,
            kv: KvPlacement::Regions,
        };
        b.dense(g, 0, shape, &[span(0), span(1)]).unwrap();
        b.finish().unwrap()
    };
    let plan = pull(&layout(PageOrder::Hnd), &[layout(PageOrder::Nhd)]);
    let runs = runs(&plan, &[(&[2], &[1])], None).unwrap();
    // Remote page 1 begins at 32, local page 2 at 64. Remote [token][head], local [head][token].
    let mut want = Vec::new();
    for token in 0..4 {
        for head in 0..2 {
            want.push((0, 32 + (token * 2 + head) * 4, 64 + (head * 4 + token) * 4));
        }
    }
    assert_eq!(pieces(&runs, 4), twice(&want));
    assert_eq!(runs.stats().ranges, 16);
}

#[test]
fn layers_packed_in_a_row_are_one_lane() {
    // Three layers of 4096 bytes side by side in each row.
    let layout = || {
        let mut b = LayoutBuilder::new(Parallel::default());
        let g = b.attention(GroupKind::Full, 16, 1);
        for layer in 0..3 {
            let span = Span {
                base: u64::from(layer) * 4096,
                page_stride: 3 * 4096,
                ..span(0)
            };
            b.dense(g, layer, shape(4), &[span]).unwrap();
        }
        b.finish().unwrap()
    };
    let plan = pull(&layout(), &[layout()]);
    // K and V of three layers, six parts, are one contiguous piece per block.
    assert_eq!((plan.lanes_before_merging(), plan.lanes().len()), (6, 1));
    let runs = runs(&plan, &[(&[3, 4, 9], &[1, 2, 3])], None).unwrap();
    assert_eq!(
        runs.stats(),
        RunStats {
            bytes: 9 * 4096,
            ranges_before: 3,
            ranges: 2
        }
    );
}

#[test]
fn push() {
    let options = PlanOptions {
        direction: Direction::Push,
        ..PlanOptions::default()
    };
    let plan = |local: &Layout, remotes: &[Layout]| Plan::build(local, remotes, &options).unwrap();
    let lists = |plan: &Plan| {
        let groups = [GroupBlocks::new(&[1, 2, 3], &[5])];
        let runs = plan
            .runs(&Request {
                groups: &groups,
                tokens: None,
            })
            .unwrap();
        let mut out: Vec<_> = runs
            .expand()
            .unwrap()
            .iter()
            .map(|r| (r.peer, r.local, r.remote, r.len))
            .collect();
        out.sort_unstable();
        out.truncate(plan.peers().len());
        out
    };
    // Prefill TP 1 to decode TP 2: its two halves of block 3. The consumer lists the tail.
    let one = plan(&engine(1, 4, 16)[0], &engine(2, 4, 16));
    assert_eq!(roles(&one), [(TRANSFER, 1), (TRANSFER, 1)]);
    assert_eq!(lists(&one)[0], (0, 12288, 10240, 2048));
    let heard = lists(&one);
    assert!(
        heard.contains(&(0, 12288 + REGION, 10240 + REGION, 2048)),
        "{heard:?}"
    );
    // Prefill TP 2 to decode TP 1: both write, each its half.
    for (rank, to) in [(0, 20480), (1, 22528)] {
        let two = plan(&engine(2, 4, 16)[rank], &engine(1, 4, 16));
        assert_eq!(roles(&two), [(TRANSFER, 2)]);
        assert_eq!(lists(&two), [(0, 6144, to, 2048)]);
    }
    // Replicas: only the rank that the consumer faces writes.
    let replicas: Vec<Layout> = (0..2).map(|r| mla(Parallel::tp(r, 2))).collect();
    let target = [mla(Parallel::default())];
    assert_eq!(roles(&plan(&replicas[0], &target)), [(TRANSFER, 1)]);
    assert_eq!(roles(&plan(&replicas[1], &target)), [(IDLE, 1)]);
    // A block that would be written twice is on the remote side here.
    let twice = [GroupBlocks::new(&[1, 2], &[5, 5])];
    let error = one
        .runs(&Request {
            groups: &twice,
            tokens: None,
        })
        .unwrap_err();
    assert_eq!(error.message(), "remote block 5 occurs twice (group 0)");
}

#[test]
fn an_engines_own_lanes() {
    let side = SideGeometry {
        tokens_per_block: 16,
        kernel_blocks: 1,
        block_count: 100,
        dcp_size: 1,
        dcp_interleave: 0,
        pool: 0,
    };
    let mut b = PlanBuilder::new(Direction::Pull);
    let group = b.group(GroupGeometry::new(GroupKind::Full, 0, side, side, false).unwrap());
    let peer = b.peer(Peer {
        tp_rank: 0,
        pp_rank: 0,
        role: TRANSFER,
        notifiers: 1,
    });
    let at = |base, mem, device| LaneSide {
        base,
        stride: 256,
        sub_stride: 0,
        mem,
        device,
    };
    let lane = Lane {
        peer,
        group,
        local_shard: 0,
        remote_shard: 0,
        local: at(0x1000, MemKind::Vram, 3),
        remote: at(0x9000, MemKind::Dram, 0),
        len: 64,
        inner: [
            Inner::ONCE,
            Inner {
                count: 2,
                local_stride: 128,
                remote_stride: 64,
            },
        ],
    };
    b.lane(lane);
    // A second kind of memory goes into a transfer of its own.
    b.lane(Lane {
        local: at(0x8000, MemKind::Dram, 0),
        inner: [Inner::ONCE; 2],
        ..lane
    });
    let plan = b.finish().unwrap();
    assert_eq!(plan.batches().len(), 2);
    let groups = [GroupBlocks::new(&[2], &[1])];
    let runs = plan
        .runs(&Request {
            groups: &groups,
            tokens: None,
        })
        .unwrap();
    let mut got: Vec<_> = runs
        .expand()
        .unwrap()
        .iter()
        .map(|r| (r.local, r.remote, r.len))
        .collect();
    got.sort_unstable();
    assert_eq!(
        got,
        [
            (0x1200, 0x9100, 64),
            (0x1280, 0x9140, 64),
            (0x8200, 0x9100, 64)
        ]
    );
    let (mut local, mut remote) = (Vec::new(), Vec::new());
    let vram = plan
        .batches()
        .iter()
        .find(|b| b.local_mem == MemKind::Vram)
        .unwrap();
    assert_eq!(
        runs.fill(vram, &mut Cursor::default(), 10, &mut local, &mut remote),
        2
    );
    assert_eq!((local[0].device, remote[0].device), (3, 0));
}

#[test]
fn a_plan_explains_itself() {
    let plan = pull(&dense(Parallel::tp(1, 2), 8, 16), &engine(4, 8, 16));
    let text = plan.describe();
    for line in [
        "rank 1 of 2 reads from an engine of TP 4",
        "peer 0 (tp_rank 0): idle",
        "peer 2 (tp_rank 2): transfer, heard from by 1 local ranks",
        "group 0: K of 2 layers, heads 4..6 of 8",
        "group 0: V of 2 layers, heads 6..8 of 8",
        "group 0: 2 lanes; a pair is 2 copies, 4096 bytes",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    let docs = include_str!("../docs/plan.md");
    assert!(docs.contains(&text), "docs/plan.md does not quote\n{text}");
    let json: serde_json::Value = serde_json::from_str(&plan.describe_json()).unwrap();
    assert_eq!(json["direction"], "pull");
    assert_eq!(json["local"]["tp_size"], 2);
    assert_eq!(json["peers"][3]["role"], "transfer");
    assert_eq!(json["peers"][3]["shares"][0]["head_first"], 6);
    assert_eq!(json["lanes"].as_array().unwrap().len(), plan.lanes().len());
    assert_eq!(json["lanes"][0]["len"], 2048);
    assert_eq!(json["groups"][0]["kind"], "full attention");
}
