//! Layouts that cannot be planned: each refusal names the field and both values.

use kvferry::error::Status;
use kvferry::layout::*;
use kvferry::memory::MemKind;
use kvferry::plan::*;

fn shape() -> DenseShape {
    DenseShape {
        kv_heads: 8,
        k_head_size: 64,
        v_head_size: 64,
        elem_bytes: 2,
        order: PageOrder::Hnd,
        kv: KvPlacement::Cells,
    }
}

struct Model {
    group: Group,
    shape: DenseShape,
    layers: u32,
}

fn model() -> Model {
    let group = Group {
        kind: GroupKind::Full,
        tokens_per_block: 16,
        kernel_blocks: 1,
        window: 0,
        format: 0,
    };
    Model {
        group,
        shape: shape(),
        layers: 2,
    }
}

impl Model {
    fn on(&self, parallel: Parallel) -> Layout {
        let mut b = LayoutBuilder::new(parallel);
        let g = b.group(self.group);
        for layer in 0..self.layers {
            b.dense(
                g,
                layer,
                self.shape,
                &[Span::host(u64::from(layer) << 32, 10)],
            )
            .unwrap();
        }
        b.finish().unwrap()
    }

    fn one(&self) -> Layout {
        self.on(Parallel::default())
    }
}

fn refused(local: &Layout, remotes: &[Layout], status: Status, message: &str) {
    for direction in [Direction::Pull, Direction::Push] {
        let options = PlanOptions {
            direction,
            ..PlanOptions::default()
        };
        let error = Plan::build(local, remotes, &options).unwrap_err();
        assert_eq!(error.status(), status, "{error}");
        if direction == Direction::Pull {
            assert_eq!(error.message(), message);
        }
    }
}

/// The local side is `model()`, the remote one a change of it.
fn mismatch(change: impl Fn(&mut Model), message: &str) {
    let mut other = model();
    change(&mut other);
    refused(&model().one(), &[other.one()], Status::Mismatch, message);
}

#[test]
fn shapes_that_differ() {
    mismatch(
        |m| m.shape.k_head_size = 128,
        "group 0, layer 0, K: head size: local 64, remote 128",
    );
    mismatch(
        |m| m.shape.v_head_size = 32,
        "group 0, layer 0, V: head size: local 64, remote 32",
    );
    mismatch(
        |m| m.shape.elem_bytes = 1,
        "group 0, layer 0, K: element size in bytes: local 2, remote 1",
    );
    mismatch(
        |m| m.shape.kv_heads = 4,
        "group 0, layer 0, K: number of heads: local 8, remote 4",
    );
    mismatch(|m| m.group.format = 7, "group 0: format: local 0, remote 7");
    mismatch(
        |m| m.group.kind = GroupKind::Mla,
        "group 0: kind: local full attention, remote MLA",
    );
    mismatch(
        |m| m.group.tokens_per_block = 24,
        "group 0: tokens per kernel block: local 16, remote 24: neither divides the other",
    );
    mismatch(
        |m| (m.group.tokens_per_block, m.group.kernel_blocks) = (24, 3),
        "group 0: tokens per block id: local 16, remote 24: neither divides the other",
    );
}

#[test]
fn layer_counts() {
    mismatch(
        |m| m.layers = 1,
        "layer counts: group 0, layer 1, K is on the local consumer and on no rank given of the \
         producer",
    );
    mismatch(
        |m| m.layers = 3,
        "layer counts: group 0, layer 2, K is on the remote producer and not on the local consumer",
    );
}

/// A hybrid model; the layers of each group in the order of the groups.
fn grouped(groups: &[(GroupKind, &[u32])]) -> Layout {
    let mut b = LayoutBuilder::new(Parallel::default());
    for (kind, layers) in groups {
        let window = if *kind == GroupKind::Full { 0 } else { 512 };
        let g = b.group(Group {
            kind: *kind,
            window,
            ..model().group
        });
        for layer in *layers {
            b.dense(
                g,
                *layer,
                shape(),
                &[Span::host(u64::from(*layer) << 32, 10)],
            )
            .unwrap();
        }
    }
    b.finish().unwrap()
}

#[test]
fn groups_in_another_order() {
    const FULL: GroupKind = GroupKind::Full;
    const WINDOW: GroupKind = GroupKind::SlidingWindow;
    refused(
        &grouped(&[(FULL, &[0, 3]), (WINDOW, &[1, 2])]),
        &[grouped(&[(WINDOW, &[1, 2]), (FULL, &[0, 3])])],
        Status::Mismatch,
        "layer 0, K is in group 0 (full attention) of the local engine and in group 1 (full attention) \
         of the remote one: list the groups of both in the same order",
    );
    // Of one kind, only the layers tell.
    refused(
        &grouped(&[(WINDOW, &[0, 1]), (WINDOW, &[2, 3])]),
        &[grouped(&[(WINDOW, &[2, 3]), (WINDOW, &[0, 1])])],
        Status::Mismatch,
        "layer 0, K is in group 0 (sliding window) of the local engine and in group 1 (sliding \
         window) of the remote one: list the groups of both in the same order",
    );
    refused(
        &grouped(&[(WINDOW, &[0, 1]), (WINDOW, &[2, 3])]),
        &[grouped(&[(WINDOW, &[0, 3]), (WINDOW, &[2, 1])])],
        Status::Mismatch,
        "layer counts: group 0, layer 1, K is on the local consumer and on no rank given of the \
         producer, which has that layer in group 1",
    );
}

#[test]
fn windows_and_group_counts() {
    let windowed = |window| {
        let mut m = model();
        (m.group.kind, m.group.window) = (GroupKind::SlidingWindow, window);
        m.one()
    };
    refused(
        &windowed(512),
        &[windowed(1024)],
        Status::Mismatch,
        "group 0: window: local 512, remote 1024",
    );
    let mut two = model().one();
    two.groups.push(two.groups[0]);
    refused(
        &two,
        &[model().one()],
        Status::Mismatch,
        "number of groups: local 2, remote 1",
    );
}

#[test]
fn pages_without_a_byte_exact_mapping() {
    let slabs = |tokens, kv| {
        let mut m = model();
        m.group.tokens_per_block = tokens;
        m.shape.kv = kv;
        m.one()
    };
    refused(
        &slabs(16, KvPlacement::Slabs),
        &[slabs(32, KvPlacement::Slabs)],
        Status::Mismatch,
        "group 0, layer 0, KV: tokens per kernel block: local 16, remote 32, in pieces of 16; both \
         layouts move pages whole (rows 1), so there is no byte-exact mapping",
    );
    // One side knows the order of its K, the other moves K whole.
    let known = slabs(16, KvPlacement::Planes);
    let mut whole = known.clone();
    for p in &mut whole.parts {
        (p.rows, p.cell_bytes, p.row_stride) = (1, p.cell_bytes * 16, 0);
    }
    refused(
        &known,
        &[whole],
        Status::Mismatch,
        "group 0, layer 0, K: rows: the local layout states where each token is and the remote one \
         moves pages whole, so there is no byte-exact mapping",
    );
}

#[test]
fn state_rows() {
    let state = |conv_rows| {
        let mut b = LayoutBuilder::new(Parallel::default());
        let g = b.state_group();
        let shape = StateShape {
            conv: vec![SubProjection {
                units: 8,
                channels_per_unit: 1,
            }],
            conv_rows,
            conv_elem_bytes: 2,
            conv_order: ConvOrder::ChannelsFirst,
            ssm_heads: 4,
            ssm_head_bytes: 64,
            ssm_elem_bytes: 4,
        };
        b.state(g, 5, &shape, Span::host(0, 10)).unwrap();
        b.finish().unwrap()
    };
    refused(
        &state(3),
        &[state(4)],
        Status::Mismatch,
        "group 0, layer 5, conv 0: rows of state: local 3, remote 4",
    );
}

#[test]
fn ranks_that_are_missing() {
    let m = model();
    let p: Vec<Layout> = (0..4).map(|r| m.on(Parallel::tp(r, 4))).collect();
    // Rank 0 of a decode engine of four needs rank 0 only.
    let d = m.on(Parallel::tp(0, 4));
    assert!(Plan::build(&d, &p[..1], &PlanOptions::default()).is_ok());
    let error = Plan::build(&d, &p[1..], &PlanOptions::default()).unwrap_err();
    assert_eq!(
        error.message(),
        "group 0, layer 0, K: heads 0..2 are to come from tp_rank 0 of the remote engine, whose layout \
         is not among those given"
    );
    // A subset says the same of notifications as the whole.
    let all = Plan::build(&d, &p, &PlanOptions::default()).unwrap();
    let one = Plan::build(&d, &p[..1], &PlanOptions::default()).unwrap();
    assert_eq!(all.peers()[0], one.peers()[0]);
    // Unusual ranges: nothing can be said of ranks that are not given.
    let odd = |first, count| {
        let mut l = m.one();
        l.parallel = Parallel::tp(first / 3, 3);
        for part in &mut l.parts {
            (part.head_first, part.head_count) = (first, count);
        }
        l
    };
    let error =
        Plan::build(&m.one(), &[odd(0, 3), odd(3, 3)], &PlanOptions::default()).unwrap_err();
    assert_eq!(
        error.message(),
        "group 0, layer 0, K: no rank given holds head 6"
    );
    let plan = Plan::build(
        &m.one(),
        &[odd(0, 3), odd(3, 3), odd(6, 2)],
        &PlanOptions::default(),
    )
    .unwrap();
    assert!(plan.peers().iter().all(|p| p.role == PeerRole::Transfer));
    let push = PlanOptions {
        direction: Direction::Push,
        ..PlanOptions::default()
    };
    let error = Plan::build(&odd(3, 3), &[m.one()], &push).unwrap_err();
    assert!(
        error
            .message()
            .contains("heads 3..6 of 8 are not the usual share"),
        "{error}"
    );
}

#[test]
fn engines_that_are_not_one() {
    let m = model();
    let tp = |r, n| m.on(Parallel::tp(r, n));
    refused(&m.one(), &[], Status::InvalidArgument, "no remote layouts");
    refused(
        &m.one(),
        &[tp(0, 2), tp(1, 4)],
        Status::Mismatch,
        "remotes[1]: tp_size 4, and 2 in remotes[0]",
    );
    refused(
        &m.one(),
        &[tp(0, 2), tp(0, 2)],
        Status::InvalidArgument,
        "remotes[1]: tp_rank 0 and pp_rank 0 are given twice",
    );
}

#[test]
fn layouts_that_are_not_sound() {
    let mut bad = model().one();
    bad.parts[1].region = 9;
    refused(
        &bad,
        &[model().one()],
        Status::InvalidArgument,
        "local layout: parts[1]: region 9 of 2 regions",
    );
    refused(
        &model().one(),
        &[bad],
        Status::InvalidArgument,
        "remotes[0]: parts[1]: region 9 of 2 regions",
    );
}

#[test]
fn lanes_of_ones_own_are_checked() {
    let side = SideGeometry {
        tokens_per_block: 16,
        kernel_blocks: 1,
        block_count: 1000,
        dcp_size: 1,
        dcp_interleave: 0,
        pool: 0,
    };
    let at = LaneSide {
        base: 0,
        stride: 64,
        sub_stride: 0,
        mem: MemKind::Dram,
        device: 0,
    };
    let lane = Lane {
        peer: 0,
        group: 0,
        local_shard: 0,
        remote_shard: 0,
        local: at,
        remote: at,
        len: 64,
        inner: [Inner::ONCE; 2],
    };
    let finish = |lane: Lane| {
        let mut b = PlanBuilder::new(Direction::Pull);
        b.group(GroupGeometry::new(GroupKind::Full, 0, side, side, false).unwrap());
        b.peer(Peer {
            tp_rank: 0,
            pp_rank: 0,
            role: PeerRole::Transfer,
            notifiers: 0,
        });
        b.lane(lane);
        b.finish().map(drop)
    };
    assert!(finish(lane).is_ok());
    let none = Inner {
        count: 0,
        ..Inner::ONCE
    };
    for (bad, message) in [
        (Lane { peer: 1, ..lane }, "lanes[0]: peer 1 of 1 peers"),
        (Lane { group: 2, ..lane }, "lanes[0]: group 2 of 1 groups"),
        (Lane { len: 0, ..lane }, "lanes[0]: len is 0"),
        (
            Lane {
                remote_shard: 1,
                ..lane
            },
            "lanes[0]: remote_shard 1 of 1 shares",
        ),
        (
            Lane {
                inner: [none; 2],
                ..lane
            },
            "lanes[0]: inner count is 0",
        ),
        (
            Lane {
                local: LaneSide {
                    base: u64::MAX - 999 * 64 - 63,
                    ..at
                },
                ..lane
            },
            "lanes[0]: local base 0xffffffffffff0600, stride 64, sub_stride 0 and len 64 reach beyond \
             the address space over 1000 pages",
        ),
    ] {
        assert_eq!(finish(bad).unwrap_err().message(), message);
    }
    let odd = SideGeometry {
        kernel_blocks: 3,
        ..side
    };
    let error = GroupGeometry::new(GroupKind::Full, 0, odd, side, false).unwrap_err();
    assert_eq!(
        error.message(),
        "local kernel_blocks 3 does not divide tokens_per_block 16"
    );
}

#[test]
fn figures_of_ones_own_lanes_do_not_overflow() {
    let side = SideGeometry {
        tokens_per_block: 16,
        kernel_blocks: 1,
        block_count: 10,
        dcp_size: 1,
        dcp_interleave: 0,
        pool: 0,
    };
    let at = LaneSide {
        base: 0,
        stride: 0,
        sub_stride: 0,
        mem: MemKind::Dram,
        device: 0,
    };
    let mut b = PlanBuilder::new(Direction::Pull);
    let group = b.group(GroupGeometry::new(GroupKind::Full, 0, side, side, false).unwrap());
    let peer = b.peer(Peer {
        tp_rank: 0,
        pp_rank: 0,
        role: PeerRole::Transfer,
        notifiers: 0,
    });
    // The same eight bytes, many times over.
    let over = Inner {
        count: u32::MAX,
        ..Inner::ONCE
    };
    let (local_shard, remote_shard) = (0, 0);
    b.lane(Lane {
        peer,
        group,
        local_shard,
        remote_shard,
        local: at,
        remote: at,
        len: 8,
        inner: [over; 2],
    });
    let plan = b.finish().unwrap();
    let groups = [GroupBlocks::new(&[1, 2], &[3, 4])];
    let runs = plan
        .runs(&Request {
            groups: &groups,
            tokens: None,
        })
        .unwrap();
    assert_eq!(runs.stats().bytes, u64::MAX);
    assert_eq!(
        runs.expand().unwrap_err().status(),
        Status::ResourceExhausted
    );
    assert!(plan.describe().contains("18446744073709551615 bytes"));
}

#[test]
fn hostile_sizes_are_given_up_on_soon() {
    // Thousands of ranks, all alike: each could face any of the others.
    let many = |rank| {
        let mut b = LayoutBuilder::new(Parallel::tp(rank, MAX_RANKS));
        let g = b.attention(GroupKind::Mla, 16, 1);
        let shape = LatentShape {
            size: 8,
            elem_bytes: 2,
            role: Role::LATENT,
        };
        b.latent(g, 0, shape, Span::host(0, 10)).unwrap();
        b.finish().unwrap()
    };
    let started = std::time::Instant::now();
    let plan = Plan::build(&many(7), &[many(7)], &PlanOptions::default()).unwrap();
    assert_eq!(plan.peers()[0].role, PeerRole::Transfer);
    // Each layer another number of heads: no two layers are alike.
    let parallel = Parallel::tp(0, MAX_RANKS);
    let mut b = LayoutBuilder::new(parallel);
    let g = b.attention(GroupKind::Full, 1, 1);
    for layer in 0..5_000 {
        let r = b.region(Region {
            base: 0,
            page_stride: 1,
            page_len: 1,
            page_count: 1,
            mem: MemKind::Dram,
            device: 0,
        });
        b.part(Part {
            group: g,
            region: r,
            layer,
            role: Role::K,
            offset: 0,
            heads_total: 1 + layer,
            head_first: 0,
            head_count: 1,
            head_stride: 1,
            rows: 1,
            row_stride: 1,
            cell_bytes: 1,
            elem_bytes: 1,
        });
    }
    let odd = b.finish().unwrap();
    let error = Plan::build(&odd, std::slice::from_ref(&odd), &PlanOptions::default()).unwrap_err();
    assert_eq!(error.status(), Status::ResourceExhausted, "{error}");
    assert!(started.elapsed().as_secs() < 20);
}
