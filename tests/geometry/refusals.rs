//! What is refused, and that the message names the field and both values.

use crate::fixture::*;
use kvferry::connector::geometry::*;
use kvferry::connector::wire::AgentMetadata;
use kvferry::error::Status;
use kvferry::layout::Parallel;
use kvferry::memory::MemKind;
use kvferry::plan::{Plan, PlanOptions};
use proptest::prelude::*;

/// A change to a sound peer, and what the message has to contain.
type Lie = (
    fn(&mut AgentMetadata, &mut Parallel),
    &'static [&'static str],
);

fn hybrid(tp: u32) -> Engine {
    Engine {
        cache: |e, _| e.of(&[Group0::Full, Group0::State], 2),
        ..dense(tp, 4, 8)
    }
}

fn refused(name: &str, us: &Engine, them: &Engine, lies: &[Lie]) {
    let mine = us.local(0, 0);
    let (told, at) = (them.metadata(0, 0), them.parallel(0, 0));
    peer(&mine, &told, at).unwrap_or_else(|e| panic!("{name}: sound metadata: {e}"));
    for (i, (lie, says)) in lies.iter().enumerate() {
        let (mut told, mut at) = (told.clone(), at);
        lie(&mut told, &mut at);
        let error = match peer(&mine, &told, at) {
            Err(e) => e,
            Ok(_) => panic!("{name}, lie {i} ({says:?}): accepted"),
        };
        assert_eq!(
            error.status(),
            Status::PeerIncompatible,
            "{name}, lie {i}: {error}"
        );
        for word in *says {
            assert!(
                error.message().contains(word),
                "{name}, lie {i}: no {word:?} in: {error}"
            );
        }
    }
}

#[test]
fn lists_that_contradict_each_other() {
    let lies: &[Lie] = &[
        (
            |m, _| m.base_addrs.clear(),
            &["kv_caches_base_addr", "0 entries"],
        ),
        (
            |m, _| m.block_lens.truncate(1),
            &["block_lens has 1", "kv_caches_base_addr 2"],
        ),
        (
            |m, _| m.block_strides.push(1),
            &["block_strides has 3", "2"],
        ),
        (
            |m, _| m.region_num_blocks = Some(vec![6]),
            &["region_num_blocks has 1"],
        ),
        (
            |m, _| m.region_group_ids = Some(vec![]),
            &["region_group_ids has 0"],
        ),
        (
            |m, _| m.region_names = Some(vec!["layers.0".into()]),
            &["region_names has 1"],
        ),
        (
            |m, _| m.region_mem_types = Some(vec![]),
            &["region_mem_types has 0"],
        ),
        (
            |m, _| m.region_members = vec![vec![]],
            &["region_members has 1"],
        ),
        (
            |m, _| m.block_strides[1] = 4095,
            &["block_strides of region 1 (layers.1): 4095", "4096"],
        ),
        (|m, _| m.block_lens[0] = 0, &["block_lens is 0"]),
        (
            |m, _| m.blocks_per_logical = 0,
            &["physical_blocks_per_logical_kv_block 0"],
        ),
        (
            |m, _| m.blocks_per_logical = 4,
            &["num_blocks 6", "physical_blocks_per_logical_kv_block 4"],
        ),
        (|m, _| m.num_blocks = 0, &["num_blocks 0"]),
        (|m, _| m.block_size = 0, &["block_size 0"]),
        (|m, _| m.block_size = u32::MAX, &["block_size 4294967295"]),
    ];
    refused("lists", &dense(1, 4, 8), &dense(1, 4, 6), lies);
}

#[test]
fn addresses_and_lengths_that_cannot_be() {
    let lies: &[Lie] = &[
        (
            |m, _| m.base_addrs[1] = u64::MAX - 4096,
            &["regions[1]", "wraps around"],
        ),
        (
            |m, _| m.block_strides[0] = u64::MAX,
            &["regions[0]", "wraps around"],
        ),
        (
            |m, _| m.region_num_blocks = Some(vec![6, u64::MAX]),
            &["page_count 18446744073709551615"],
        ),
        (
            |m, _| m.region_num_blocks = Some(vec![0, 6]),
            &["page_count 0"],
        ),
        (
            |m, _| m.block_lens[0] = 2048,
            &["block_lens of region 0 (layers.0): 2048", "4096"],
        ),
        (
            |m, _| {
                m.block_lens = vec![u64::MAX; 2];
                m.block_strides = vec![u64::MAX; 2];
            },
            &["block_lens of region 0", "18446744073709551615"],
        ),
        (
            |m, _| m.region_mem_types = Some(vec!["VRAM".into(), "FILE".into()]),
            &["FILE"],
        ),
    ];
    refused("addresses", &dense(1, 4, 8), &dense(1, 4, 6), lies);
}

#[test]
fn engines_that_do_not_fit() {
    let lies: &[Lie] = &[
        (
            |m, _| m.kv_cache_layout = "XYZ".into(),
            &["kv_cache_layout \"XYZ\""],
        ),
        // Token-major blocks are told by the same lengths: that is mapped. Rows of heads are one region.
        (
            |m, _| m.kv_cache_layout = "LHBNC".into(),
            &["2 regions there", "8 follow from 2"],
        ),
        (
            |m, _| m.attn_backend_name = "".into(),
            &["attn_backend_name: \"TEST\" here, \"\" there"],
        ),
        (|m, _| m.base_addrs.truncate(1), &["block_lens has 2"]),
        (
            |m, _| m.region_names = Some(vec!["layers.0".into(), "layers.2".into()]),
            &["region_names[1]: \"layers.1\" here, \"layers.2\" there"],
        ),
        (
            |m, _| m.region_group_ids = Some(vec![0, -1]),
            &["region_group_ids of \"layers.1\": 0 here, -1"],
        ),
        (
            |m, _| m.region_group_ids = Some(vec![0, 7]),
            &["region_group_ids of \"layers.1\": 7", "1 groups"],
        ),
        (
            |m, _| m.region_group_ids = Some(vec![-2, 0]),
            &["region_group_ids of \"layers.0\": -2"],
        ),
        (
            |m, _| m.ssm_sizes = (1, 2),
            &["ssm_sizes: (1, 2) there", "(0, 0)"],
        ),
        (|m, _| m.ple_block_len = Some(7), &["ple_block_len 7"]),
        (|m, _| m.dcp_size = 2, &["dcp_size: 2 in its metadata, 1"]),
        (|m, _| m.pcp_size = 2, &[]),
        (|_, p| p.tp_size = 0, &["TP 0 and DCP 1"]),
        (|_, p| (p.tp_rank, p.tp_size) = (2, 2), &["tp_rank 2"]),
        // Twice the ranks have half the heads each.
        (
            |_, p| p.tp_size = 2,
            &[
                "block_lens of region 0 (layers.0): 4096, and 2048",
                "2 of 4 heads",
            ],
        ),
        (
            |m, _| m.block_size = 32,
            &["block_lens of region 0", "4096, and 8192", "32 tokens"],
        ),
        (|m, _| m.block_size = 12, &["block_lens"]),
    ];
    // Prefill context parallelism of copies is no obstacle between engines without shares.
    let lies: Vec<Lie> = lies.iter().copied().filter(|l| !l.1.is_empty()).collect();
    refused("engines", &dense(1, 4, 8), &dense(1, 4, 6), &lies);

    let sizes = |tp| dense(tp, 6, 8);
    refused(
        "tp",
        &sizes(2),
        &sizes(1),
        &[(|_, p| p.tp_size = 3, &["TP sizes 2 and 3"])],
    );
    let regions: Lie = (
        |m, _| {
            m.base_addrs.truncate(1);
            m.block_lens.truncate(1);
            m.block_strides.truncate(1);
            m.region_num_blocks = None;
            m.region_group_ids = None;
            m.region_names = None;
            m.region_mem_types = None;
        },
        &["kv_caches_base_addr: 1 regions there, and 2 follow from 2 here"],
    );
    refused("count", &dense(1, 4, 8), &dense(1, 4, 6), &[regions]);
}

#[test]
fn context_parallelism() {
    let lies: &[Lie] = &[
        (
            |m, p| (m.dcp_size, p.dcp_size, p.tp_size) = (3, 3, 3),
            &["DCP sizes 2 and 3"],
        ),
        (|m, _| m.pcp_size = 4, &["pcp_size 4 and dcp_size 2"]),
        (
            |m, p| (m.pcp_size, m.dcp_size, p.dcp_size) = (2, 1, 1),
            &["pcp_size: 1 here with dcp_size 2, 2 there with dcp_size 1"],
        ),
    ];
    refused("dcp", &mla(2, 2, 8), &mla(2, 2, 6), lies);
    let lie: Lie = (
        |m, p| (m.dcp_size, p.dcp_size, p.tp_size) = (2, 2, 2),
        &["dcp_size: 1 here, 2 there", "recurrent state"],
    );
    refused("state", &hybrid(1), &hybrid(1), &[lie]);
}

#[test]
fn states() {
    let lies: &[Lie] = &[
        (
            |m, _| m.ssm_sizes = (144, 256),
            &["ssm_sizes: (144, 256) there", "(288, 512)"],
        ),
        (
            |_, p| p.tp_size = 2,
            &["ssm_sizes: (288, 512) there, and (144, 256)"],
        ),
        (
            |_, p| p.tp_size = 32,
            &["ssm_sizes: 8 channels", "tp_size 32"],
        ),
        // Blocks too short for the heads that follow from ours.
        (|m, _| m.block_lens[0] = 4000, &["4096", "4000"]),
    ];
    refused("states", &hybrid(1), &hybrid(1), lies);
    // And a peer that has none.
    let mine = hybrid(1).local(0, 0);
    let e = peer(&mine, &dense(1, 4, 6).metadata(0, 0), Parallel::default()).unwrap_err();
    assert!(e.message().contains("ssm_sizes: (0, 0) there"), "{e}");
}

/// Where the order inside a head is not known, a head of a block can only be moved whole.
#[test]
fn heads_of_unknown_order() {
    let opaque = |tp| Engine {
        cache: |e, _| KvCache {
            slab: SlabOrder::Opaque,
            ..e.of(&[Group0::Full], 2)
        },
        ..dense(tp, 4, 8)
    };
    let lies: &[Lie] = &[
        (
            |m, _| m.attn_backend_name = "OTHER".into(),
            &["attn_backend_name: \"TEST\" here, \"OTHER\" there"],
        ),
        (
            |m, _| m.kv_cache_layout = "LBNHC".into(),
            &["kv_cache_layout: LBHNC here, LBNHC there"],
        ),
        (
            |m, _| (m.block_size, m.block_lens) = (8, vec![2048; 2]),
            &["block_size: 16 here, 8 there"],
        ),
    ];
    refused("opaque", &opaque(1), &opaque(1), lies);
    // Heads are still dealt out.
    let moves = in_each_region(&plan(&opaque(2), 1, &opaque(1)).0, &[(&[3], &[1], 0)], 16);
    assert_eq!(moves, [[0, 6144, 6144, 2048]]);
}

/// Rows that hold more than is known of can only be exchanged for rows of the same shape.
#[test]
fn rows_of_unknown_shape() {
    let padded = |tp| Engine {
        cache: |e, _| {
            let mut t = e.tensor("layers.0", 0, Group0::Full, 0);
            let (h, page) = (u64::from(e.heads / e.tp), e.page());
            t.page_bytes = page + 64;
            t.dims = vec![(e.blocks, page + 64), (h, 1024), (16, 64), (32, 2)];
            e.cache(&[Group0::Full], vec![t])
        },
        ..dense(tp, 4, 8)
    };
    let mine = padded(1).local(0, 0);
    assert_eq!(mine.metadata.block_lens, [4160]);
    let same = peer(&mine, &padded(1).metadata(0, 0), Parallel::tp(0, 1));
    assert!(same.is_ok());
    let e = peer(&mine, &padded(2).metadata(0, 0), Parallel::tp(0, 2)).unwrap_err();
    assert_eq!(e.status(), Status::PeerIncompatible);
    assert!(
        e.message().contains("4 heads") && e.message().contains("2 heads"),
        "{e}"
    );
}

/// Tensors that cannot be what they are said to be.
#[test]
fn our_own_mistakes() {
    type Mistake = (fn(&mut KvCache), Status, &'static [&'static str]);
    let bad: &[Mistake] = &[
        (
            |c| c.tensors.clear(),
            Status::InvalidArgument,
            &["tensors is 0"],
        ),
        (
            |c| c.groups.clear(),
            Status::InvalidArgument,
            &["groups is 0"],
        ),
        (
            |c| c.num_blocks = 0,
            Status::InvalidArgument,
            &["num_blocks is 0"],
        ),
        (
            |c| c.num_blocks = 1 << 40,
            Status::InvalidArgument,
            &["num_blocks 1099511627776"],
        ),
        (
            |c| c.blocks_per_logical = 0,
            Status::InvalidArgument,
            &["blocks_per_logical is 0"],
        ),
        (
            |c| c.blocks_per_logical = 3,
            Status::InvalidArgument,
            &["tokens_per_block 16", "3"],
        ),
        (
            |c| c.layout = "HND".into(),
            Status::NotSupported,
            &["\"HND\""],
        ),
        (
            |c| c.kv_heads = 0,
            Status::InvalidArgument,
            &["kv_heads is 0"],
        ),
        (
            |c| c.tensors[1].layer = "layers.0".into(),
            Status::InvalidArgument,
            &["\"layers.0\" occurs twice"],
        ),
        (
            |c| c.tensors[0].group = 1,
            Status::InvalidArgument,
            &["\"layers.0\"", "group 1 of 1 groups"],
        ),
        (
            |c| c.tensors[0].elem_bytes = 0,
            Status::InvalidArgument,
            &["elem_bytes is 0"],
        ),
        (
            |c| c.tensors[0].page_bytes = 100,
            Status::InvalidArgument,
            &["page_bytes 100"],
        ),
        (
            |c| c.tensors[0].address = 5,
            Status::InvalidArgument,
            &["do not fit the allocation"],
        ),
        (
            |c| c.tensors[0].storage.len = 100,
            Status::InvalidArgument,
            &["100 bytes"],
        ),
        (
            |c| c.tensors[0].storage.addr = u64::MAX,
            Status::InvalidArgument,
            &["\"layers.0\""],
        ),
        (
            |c| (c.tensors[0].address, c.tensors[0].storage.addr) = (u64::MAX - 8, u64::MAX - 8),
            Status::InvalidArgument,
            &["\"layers.0\"", "wraps around"],
        ),
        (
            |c| c.tensors[0].dims = vec![(6, 1)],
            Status::InvalidArgument,
            &["4096"],
        ),
        (
            |c| c.tensors[0].dims = vec![(5, 4096), (4, 1024), (16, 64), (32, 2)],
            Status::InvalidArgument,
            &["shape has 5 blocks, and the pool 6"],
        ),
        (
            |c| c.tensors[0].dims = vec![(6, 4096), (2, 1024), (16, 64), (32, 2)],
            Status::InvalidArgument,
            &["shape has 2 heads", "4"],
        ),
        (
            |c| c.tensors[0].dims = vec![(6, 4096), (4, 1024), (16, 64), (32, 4)],
            Status::NotSupported,
            &["4 bytes apart"],
        ),
        (
            |c| c.tensors[0].dims = vec![(1 << 50, 1); 4],
            Status::InvalidArgument,
            &["too large"],
        ),
        (
            |c| c.tensors[0].dims = vec![(6, 100), (4, 1024), (16, 64), (32, 2)],
            Status::InvalidArgument,
            &["4096 bytes 100 bytes apart"],
        ),
        (
            |c| c.tensors[0].content = Content::State(StateSizes::default()),
            Status::InvalidArgument,
            &["content state in group 0 of kind full attention"],
        ),
        (
            |c| {
                c.tensors[1].address = c.tensors[0].address;
                c.tensors[1].storage = c.tensors[0].storage;
                c.tensors[1].mem = MemKind::Vram;
            },
            Status::InvalidArgument,
            &["VRAM", "DRAM"],
        ),
    ];
    let sound = dense(1, 4, 6);
    for (i, (mistake, status, says)) in bad.iter().enumerate() {
        let mut cache = (sound.cache)(&sound, 0);
        mistake(&mut cache);
        let e = match local(&cache, Parallel::default()) {
            Err(e) => e,
            Ok(_) => panic!("mistake {i} ({says:?}): accepted"),
        };
        assert_eq!(e.status(), *status, "mistake {i}: {e}");
        for word in *says {
            assert!(
                e.message().contains(word),
                "mistake {i}: no {word:?} in: {e}"
            );
        }
    }
    let e = local(&(sound.cache)(&sound, 0), Parallel::tp(0, 3)).unwrap_err();
    assert!(
        e.message().contains("heads 4") || e.message().contains("4 and tp_size 3"),
        "{e}"
    );
}

#[test]
fn states_of_known_families() {
    let of = |kind, channels, ssm: &[u32]| StateSizes::of(kind, [channels, 3], 2, ssm, 4);
    let channels = |s: StateSizes| s.conv_channels;
    assert_eq!(
        channels(of(StateKind::Mamba1, 64, &[64, 16]).unwrap()),
        [64]
    );
    assert_eq!(
        channels(of(StateKind::Mamba2, 48, &[4, 8, 8]).unwrap()),
        [32, 8, 8]
    );
    assert_eq!(
        channels(of(StateKind::Gdn, 80, &[4, 12, 8]).unwrap()),
        [16, 16, 48]
    );
    let gdn = of(StateKind::Gdn, 80, &[4, 12, 8]).unwrap();
    assert_eq!(gdn.bytes(), (80 * 3 * 2, 4 * 12 * 8 * 4));
    for (kind, n, ssm) in [
        (StateKind::Mamba1, 64, &[32u32, 16][..]),
        (StateKind::Mamba2, 32, &[4, 8, 8]),
        (StateKind::Mamba2, 33, &[4, 8, 8]),
        (StateKind::Gdn, 40, &[4, 12, 8]),
        (StateKind::Gdn, 40, &[]),
        (StateKind::Gdn, 40, &[u32::MAX, u32::MAX, u32::MAX]),
    ] {
        let e = of(kind, n, ssm).unwrap_err();
        assert!(e.message().contains(&format!("{ssm:?}")), "{e}");
    }
    let e = StateSizes::stated(&[3, 4], [8, 3], 2, &[1, 1], 4).unwrap_err();
    assert!(
        e.message().contains("[3, 4] are 7") && e.message().contains('8'),
        "{e}"
    );
}

/// Numbers that a peer that means harm would try.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(u64::MAX - 4096),
        Just(u64::from(u32::MAX)),
        0..64u64,
        (0..64u32).prop_map(|n| 1 << n),
        any::<u64>(),
    ]
}

/// One change to metadata.
fn change() -> impl Strategy<Value = (usize, usize, u64)> {
    (0..16usize, 0..4usize, number())
}

fn apply(m: &mut AgentMetadata, at: &mut Parallel, (field, index, n): (usize, usize, u64)) {
    let put = |list: &mut Vec<u64>| {
        if let Some(slot) = list.get_mut(index) {
            *slot = n;
        }
    };
    match field {
        0 => put(&mut m.base_addrs),
        1 => put(&mut m.block_lens),
        2 => put(&mut m.block_strides),
        3 => m.region_num_blocks.iter_mut().for_each(put),
        4 => m.num_blocks = n,
        5 => m.block_size = n as u32,
        6 => m.blocks_per_logical = n as u32,
        7 => (m.dcp_size, at.dcp_size) = (n as u32, n as u32),
        8 => m.pcp_size = n as u32,
        9 => at.tp_size = n as u32,
        10 => at.tp_rank = n as u32,
        11 => m.ssm_sizes.0 = n,
        12 => m.region_group_ids = Some(vec![n as i64; m.base_addrs.len()]),
        13 => m.packed_member_layouts.push(("layers.0".into(), (n, n))),
        14 => {
            let layouts = ["LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC"];
            m.kv_cache_layout = layouts[n as usize % 6].into();
        }
        _ => m.base_addrs.resize((n % 70_000) as usize, 4096),
    }
}

proptest! {
    /// Whatever a peer says, it is refused or it is a layout that can be planned with or is refused then.
    #[test]
    fn random_numbers_do_no_harm(kind in 0..3usize, changes in prop::collection::vec(change(), 1..4)) {
        let engine = [dense(2, 4, 8), mla(2, 2, 8), hybrid(2)][kind].clone();
        let mine = engine.local(0, 0);
        let (mut told, mut at) = (engine.metadata(0, 0), engine.parallel(0, 0));
        for c in changes {
            apply(&mut told, &mut at, c);
        }
        match peer(&mine, &told, at) {
            Err(e) => prop_assert_eq!(e.status(), Status::PeerIncompatible, "{}", e),
            Ok(them) => drop(Plan::build(&mine.layout, &[them.layout], &PlanOptions::default())),
        }
    }
}
