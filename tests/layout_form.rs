//! Layouts: what validation refuses, and the serialised form.

use kvferry::error::Status;
use kvferry::layout::*;
use proptest::prelude::*;

fn dense() -> DenseShape {
    DenseShape {
        kv_heads: 8,
        k_head_size: 128,
        v_head_size: 64,
        elem_bytes: 2,
        order: PageOrder::Nhd,
        kv: KvPlacement::Halves,
    }
}

/// A hybrid with every kind of part.
fn sample() -> Layout {
    let mut b = LayoutBuilder::new(Parallel::tp(3, 4).with_dcp(2, 4));
    let full = b.attention(GroupKind::Full, 16, 2);
    let window = b.group(Group {
        kind: GroupKind::SlidingWindow,
        tokens_per_block: 32,
        kernel_blocks: 1,
        window: 4096,
        format: 3,
    });
    let mla = b.attention(GroupKind::Mla, 64, 1);
    let state = b.state_group();
    b.dense(full, 0, dense(), &[Span::host(0x7f00_0000_0000, 2048)])
        .unwrap();
    let two = DenseShape {
        kv: KvPlacement::Regions,
        ..dense()
    };
    b.dense(
        window,
        1,
        two,
        &[Span::host(1 << 40, 100), Span::host(2 << 40, 100)],
    )
    .unwrap();
    let latent = LatentShape {
        size: 576,
        elem_bytes: 1,
        role: Role::LATENT,
    };
    b.latent(mla, 2, latent, Span::host(3 << 40, 500)).unwrap();
    let shape = StateShape {
        conv: vec![
            SubProjection {
                units: 64,
                channels_per_unit: 1,
            },
            SubProjection {
                units: 2,
                channels_per_unit: 16,
            },
        ],
        conv_rows: 3,
        conv_elem_bytes: 2,
        conv_order: ConvOrder::RowsFirst,
        ssm_heads: 8,
        ssm_head_bytes: 256,
        ssm_elem_bytes: 4,
    };
    b.state(state, 3, &shape, Span::host(4 << 40, 7)).unwrap();
    b.finish().unwrap()
}

#[test]
fn the_serialised_form_is_what_it_is_said_to_be() {
    let mut b = LayoutBuilder::new(Parallel::tp(1, 2));
    let g = b.attention(GroupKind::Mla, 16, 1);
    let latent = LatentShape {
        size: 8,
        elem_bytes: 2,
        role: Role::LATENT,
    };
    b.latent(g, 5, latent, Span::host(0x1000, 3)).unwrap();
    let want = [
        b"KVFL".as_slice(),
        &[1],                                            // version
        &[1, 2, 0, 1, 0, 1, 0],                          // parallel
        &[1, 0x80, 0x20, 0x80, 2, 0x80, 2, 3, 0, 0],     // one region: 4096, 256, 256, 3, DRAM, 0
        &[1, 3, 16, 1, 0, 0],                            // one group: MLA, 16, 1
        &[1, 0, 0, 5, 3, 0, 1, 0, 1, 16, 16, 16, 16, 2], // one part
    ]
    .concat();
    assert_eq!(b.finish().unwrap().encode().unwrap(), want);
}

#[test]
fn it_comes_back_as_it_was() {
    let layout = sample();
    let bytes = layout.encode().unwrap();
    assert_eq!(Layout::decode(&bytes).unwrap(), layout);
    // 80 layers of K and V in one region each: the form stays small.
    let mut b = LayoutBuilder::new(Parallel::tp(0, 8));
    let g = b.attention(GroupKind::Full, 16, 1);
    for layer in 0..80 {
        let span = Span::host(0x7f00_0000_0000 + (u64::from(layer) << 30), 40_960);
        b.dense(g, layer, dense(), &[span]).unwrap();
    }
    let large = b.finish().unwrap();
    assert!(large.encode().unwrap().len() < 6000);
    assert_eq!(Layout::decode(&large.encode().unwrap()).unwrap(), large);
}

fn refused(bytes: &[u8], message: &str) {
    let error = Layout::decode(bytes).unwrap_err();
    assert_eq!(error.status(), Status::PeerIncompatible);
    assert_eq!(error.message(), format!("serialised layout: {message}"));
}

#[test]
fn the_decoder_is_strict() {
    let good = sample().encode().unwrap();
    refused(b"", "does not begin with KVFL");
    refused(b"KVFM\x01", "does not begin with KVFL");
    refused(b"KVFL\x02", "version 2; this library reads 1");
    refused(
        b"KVFL\x81\x00",
        "version at byte 4 is not in its shortest form",
    );
    refused(
        b"KVFL\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
        "version at byte 4 has more than 64 bits",
    );
    refused(
        b"KVFL\x01\x00\x01\x00\x01\x00\x80",
        "ends within dcp_size, at byte 11",
    );
    let mut long = good.clone();
    long.push(0);
    refused(&long, "1 bytes after the end");
    // A count is believed only as far as the bytes behind it can go.
    let head = b"KVFL\x01\x00\x01\x00\x01\x00\x01\x00";
    let count = [head.as_slice(), &[0xff, 0xff, 0x03], &[1; 60]].concat();
    refused(&count, "65535 regions, where at most 10 can follow");
    let wide = [
        head.as_slice(),
        &[0],
        &[1, 0x80, 0x80, 0x80, 0x80, 0x10, 1, 1, 0, 0],
    ]
    .concat();
    refused(
        &wide,
        "groups[0]: kind 4294967296 at byte 14 has more than 32 bits",
    );
    // What decodes must also be sound.
    let mut unsound = sample();
    unsound.parallel.tp_rank = 4;
    assert!(unsound.encode().is_err());
    let mut bytes = good.clone();
    bytes[5] = 4;
    refused(&bytes, "tp_rank 4 is not below tp_size 4");
    for end in 0..good.len() {
        assert!(Layout::decode(&good[..end]).is_err(), "cut at {end}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Changed bytes: refused, or another sound layout with that very encoding; and whatever is
    /// accepted can be planned with, which must not overflow.
    #[test]
    fn mutations(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3), 1..6)) {
        let mut bytes = sample().encode().unwrap();
        for (at, byte, how) in changes {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => drop(bytes.remove(at)),
            }
        }
        match Layout::decode(&bytes) {
            Err(e) => prop_assert_eq!(e.status(), Status::PeerIncompatible),
            Ok(layout) => {
                prop_assert_eq!(layout.encode().unwrap(), bytes);
                let options = kvferry::plan::PlanOptions::default();
                let _ = kvferry::plan::Plan::build(&layout, std::slice::from_ref(&layout), &options);
                let _ = kvferry::plan::Plan::build(&sample(), &[layout], &options);
            }
        }
    }

    #[test]
    fn noise(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Layout::decode(&[b"KVFL\x01".as_slice(), &bytes].concat());
    }
}

fn invalid(change: impl Fn(&mut Layout), message: &str) {
    let mut layout = sample();
    change(&mut layout);
    let error = layout.validate().unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument);
    assert_eq!(error.message(), message);
}

/// Regions: 0 Halves, 1 and 2 K and V, 3 MLA, 4 state. Parts: 0, 1 K and V; 2, 3 K and V; 4 latent;
/// 5, 6 conv; 7 SSM. Rank 3 of 4 holds two of eight heads.
#[test]
fn validation_names_the_field() {
    invalid(
        |l| l.parallel.tp_size = 0,
        "tp_size 0 is not within 1 and 65536",
    );
    invalid(
        |l| l.parallel.dcp_rank = 2,
        "dcp_rank 2 is not below dcp_size 2",
    );
    invalid(
        |l| l.parallel.dcp_interleave = 5,
        "groups[0]: dcp_interleave 5 does not divide tokens_per_block 16",
    );
    invalid(|l| l.regions[1].page_len = 0, "regions[1]: page_len is 0");
    invalid(
        |l| l.regions[1].page_count = 0,
        "regions[1]: page_count 0 is not within 1 and 4294967295",
    );
    invalid(
        |l| l.regions[1].page_stride = 100,
        "regions[1]: page_stride 100 is smaller than page_len 16384",
    );
    invalid(
        |l| l.regions[3].base = u64::MAX - 500 * 64 * 576 + 1,
        "regions[3]: base 0xfffffffffee6c000 with 500 pages of page_stride 36864 wraps around",
    );
    invalid(
        |l| l.groups[1].tokens_per_block = 0,
        "groups[1]: tokens_per_block is 0",
    );
    invalid(
        |l| l.groups[0].kernel_blocks = 3,
        "groups[0]: kernel_blocks 3 does not divide tokens_per_block 16",
    );
    invalid(
        |l| l.groups[2].window = 9,
        "groups[2]: window 9 in a group of kind MLA",
    );
    invalid(
        |l| l.groups[3].tokens_per_block = 2,
        "groups[3]: tokens_per_block 2 and kernel_blocks 1 must both be 1 in a state group",
    );
    invalid(|l| l.parts[4].group = 4, "parts[4]: group 4 of 4 groups");
    invalid(|l| l.parts[4].region = 5, "parts[4]: region 5 of 5 regions");
    invalid(|l| l.parts[0].head_count = 0, "parts[0]: head_count is 0");
    invalid(
        |l| l.parts[0].head_first = 7,
        "parts[0]: head_first 7 and head_count 2 exceed heads_total 8",
    );
    invalid(
        |l| l.parts[0].head_first = u32::MAX,
        "parts[0]: head_first 4294967295 and head_count 2 exceed heads_total 8",
    );
    invalid(
        |l| l.parts[0].elem_bytes = 3,
        "parts[0]: elem_bytes 3 does not divide cell_bytes 256",
    );
    invalid(
        |l| l.parts[0].rows = 5,
        "parts[0]: rows 5 is neither 1 nor the 8 tokens of a page",
    );
    invalid(
        |l| l.parts[0].head_stride = 255,
        "parts[0]: head_stride 255 and row_stride 768 make cells of 256 bytes overlap",
    );
    invalid(
        |l| l.parts[4].offset = 1,
        "parts[4]: offset 1 and 36864 bytes exceed page_len 36864 of region 3",
    );
    invalid(
        |l| l.parts[0].row_stride = u64::MAX,
        "parts[0]: 8 strides of 18446744073709551615 bytes wrap around",
    );
    // V of layer 0 moved onto its K.
    invalid(
        |l| l.parts[1].offset = 128,
        "parts[1] (offset 128) lies on top of parts[0] (offset 0) in region 0",
    );
    invalid(
        |l| l.parts[2].layer = 0,
        "parts[2]: K of layer 0 is in group 1, and in group 0 by parts[0]",
    );
    invalid(
        |l| l.parts[1].role = Role::K,
        "parts[1]: head 6 of K of layer 0 is also in parts[0]",
    );
}

#[test]
fn shards_are_dealt_in_order() {
    assert_eq!(
        (0..4).map(|r| shard(8, 4, r).unwrap()).collect::<Vec<_>>(),
        [(0, 2), (2, 2), (4, 2), (6, 2)]
    );
    assert_eq!(
        (0..4).map(|r| shard(2, 4, r).unwrap()).collect::<Vec<_>>(),
        [(0, 1), (0, 1), (1, 1), (1, 1)]
    );
    assert_eq!(
        shard(6, 4, 0).unwrap_err().message(),
        "heads 6 and tp_size 4: neither divides the other"
    );
    assert!(shard(8, 4, 4).is_err() && shard(0, 4, 0).is_err());
}

#[test]
fn builders_say_what_is_wrong() {
    let mut b = LayoutBuilder::new(Parallel::tp(0, 3));
    let g = b.attention(GroupKind::Full, 16, 1);
    let span = Span::host(0, 10);
    let error = b.dense(g, 0, dense(), &[span]).unwrap_err();
    assert_eq!(
        error.message(),
        "heads 8 and tp_size 3: neither divides the other"
    );
    let mut b = LayoutBuilder::new(Parallel::default());
    assert_eq!(
        b.dense(0, 0, dense(), &[span]).unwrap_err().message(),
        "group 0 of 0 groups"
    );
    let g = b.attention(GroupKind::Full, 16, 1);
    let error = b.dense(g, 4, dense(), &[span, span]).unwrap_err();
    assert_eq!(error.message(), "layer 4: 2 regions for K and V, 1 wanted");
    let huge = DenseShape {
        k_head_size: u32::MAX,
        ..dense()
    };
    assert_eq!(
        b.dense(g, 0, huge, &[span]).unwrap_err().message(),
        "K cell of 8589934590 bytes is too large"
    );
}
