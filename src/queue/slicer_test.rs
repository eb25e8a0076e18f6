//! Slices put together are what the runs expand to, and none is larger than it may be.

use proptest::prelude::*;

use super::*;
use crate::layout::GroupKind;
use crate::memory::MemKind;
use crate::plan::*;

const BLOCKS: u64 = 60;

/// Lanes of one batch: page length, gap between pages on either side, copies per page.
type Lanes = Vec<(u64, u64, u64, u32)>;

fn plan(lanes: &Lanes) -> Plan {
    let side = SideGeometry {
        tokens_per_block: 1,
        kernel_blocks: 1,
        block_count: BLOCKS,
        dcp_size: 1,
        dcp_interleave: 1,
        pool: 0,
    };
    let mut builder = PlanBuilder::new(Direction::Pull);
    let group = GroupGeometry::new(GroupKind::Full, 0, side, side, false).unwrap();
    let group = builder.group(group);
    let peer = builder.peer(Peer {
        tp_rank: 0,
        pp_rank: 0,
        role: PeerRole::Transfer,
        notifiers: 1,
    });
    for (i, (len, local_gap, remote_gap, copies)) in lanes.iter().enumerate() {
        let side = |far: u64, gap: u64| LaneSide {
            base: (far << 40) + ((i as u64) << 32),
            stride: len * u64::from(*copies) + gap,
            sub_stride: 0,
            mem: MemKind::Dram,
            device: far,
        };
        let twice = Inner {
            count: *copies,
            local_stride: *len,
            remote_stride: *len,
        };
        builder.lane(Lane {
            peer,
            group,
            local_shard: 0,
            remote_shard: 0,
            local: side(1, *local_gap),
            remote: side(2, *remote_gap),
            len: *len,
            inner: [Inner::ONCE, twice],
        });
    }
    builder.finish().unwrap()
}

/// All slices of the only batch.
fn slices(runs: &Runs, limits: Limits) -> Vec<Slice> {
    let mut slicer = Slicer::new(runs.plan().batches()[0]);
    let mut out = Vec::new();
    loop {
        let mut slice = Slice::default();
        if !slicer.fill(runs, limits, &mut slice) {
            // Once done it stays done.
            assert!(!slicer.fill(runs, limits, &mut slice));
            assert!(slice.local.is_empty() && slice.bytes == 0);
            return out;
        }
        out.push(slice);
    }
}

/// Checks slices against what the runs expand to, and returns how many there are.
fn check(lanes: &Lanes, local: &[u32], remote: &[u32], limits: Limits) -> usize {
    let plan = plan(lanes);
    let groups = [GroupBlocks::new(local, remote)];
    let request = Request {
        groups: &groups,
        tokens: None,
    };
    let runs = plan.runs(&request).unwrap();
    let slices = slices(&runs, limits);
    let mut whole = runs.expand().unwrap().into_iter();
    let mut rest: Option<Range> = None;
    for slice in &slices {
        assert_eq!(slice.local.len(), slice.remote.len());
        assert!(!slice.local.is_empty() && slice.local.len() <= limits.descriptors);
        let bytes: u64 = slice.local.iter().map(|d| d.len).sum();
        assert_eq!(slice.bytes, bytes);
        assert!(bytes <= limits.bytes);
        for (l, r) in slice.local.iter().zip(&slice.remote) {
            // The next piece of the range that is being eaten up.
            let mut range = rest
                .take()
                .or_else(|| whole.next())
                .expect("more than there is");
            assert_eq!((l.addr, r.addr), (range.local, range.remote));
            assert_eq!((l.device, r.device), (1, 2));
            assert_eq!(l.len, r.len);
            assert!(0 < l.len && l.len <= range.len);
            if l.len < range.len {
                assert!(range.len > limits.bytes, "cut without need");
                range.local += l.len;
                range.remote += l.len;
                range.len -= l.len;
                rest = Some(range);
            }
        }
    }
    assert!(
        rest.is_none() && whole.next().is_none(),
        "less than there is"
    );
    slices.len()
}

const LOOSE: Limits = Limits {
    bytes: u64::MAX,
    descriptors: usize::MAX,
};

#[test]
fn one_slice_holds_all_if_it_may() {
    let lanes = vec![(100, 0, 0, 1), (50, 10, 0, 2)];
    assert_eq!(check(&lanes, &[1, 2, 5], &[8, 9, 1], LOOSE), 1);
    assert_eq!(check(&lanes, &[], &[], LOOSE), 0);
}

#[test]
fn a_huge_range_is_cut_and_others_are_not() {
    // All blocks in a row: one range of 6,000 bytes.
    let all: Vec<u32> = (0..60).collect();
    let limits = |bytes, descriptors| Limits { bytes, descriptors };
    assert_eq!(check(&vec![(100, 0, 0, 1)], &all, &all, limits(1000, 8)), 6);
    assert_eq!(check(&vec![(100, 0, 0, 1)], &all, &all, limits(999, 8)), 7);
    assert_eq!(check(&vec![(100, 0, 0, 1)], &all, &all, limits(1, 8)), 6000);
    // 60 ranges of 100 bytes: two fit into 299, and none is cut to fill up the rest.
    assert_eq!(check(&vec![(100, 1, 0, 1)], &all, &all, limits(299, 8)), 30);
    assert_eq!(check(&vec![(100, 1, 0, 1)], &all, &all, limits(1000, 7)), 9);
    // The most that numbers can hold.
    let far = vec![(1 << 31, 0, 0, 1)];
    assert_eq!(check(&far, &[0], &[1], limits((1 << 31) - 1, 1)), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn slices_put_together_are_the_whole(
        lanes in prop::collection::vec((1..40u64, 0..2u64, 0..2u64, 1..4u32), 1..4),
        order in Just((0..BLOCKS as u32).collect::<Vec<u32>>()).prop_shuffle(),
        (from, n, in_a_row) in (0..60usize, 0..60usize, any::<bool>()),
        (bytes, descriptors) in (1..300u64, 1..20usize),
    ) {
        let n = n.min(60 - from);
        let local: Vec<u32> = if in_a_row { (0..n as u32).collect() } else { order[..n].to_vec() };
        let remote: Vec<u32> = if in_a_row {
            (from as u32..(from + n) as u32).collect()
        } else {
            order[from..from + n].to_vec()
        };
        check(&lanes, &local, &remote, Limits { bytes, descriptors });
    }
}
