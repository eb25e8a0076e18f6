//! Runs: how block lists merge, and what is refused.

use kvferry::error::{Result, Status};
use kvferry::layout::*;
use kvferry::plan::*;

/// One layer, four heads, blocks of `tokens`, 100 pages.
fn layout(order: PageOrder, tokens: u32, kernel_blocks: u32) -> Layout {
    let mut b = LayoutBuilder::new(Parallel::default());
    let g = b.attention(GroupKind::Full, tokens, kernel_blocks);
    let shape = DenseShape {
        kv_heads: 4,
        k_head_size: 8,
        v_head_size: 8,
        elem_bytes: 2,
        order,
        kv: KvPlacement::Cells,
    };
    b.dense(g, 0, shape, &[Span::host(1 << 20, 100)]).unwrap();
    b.finish().unwrap()
}

fn plan(local: &Layout, remote: &Layout) -> Plan {
    let options = PlanOptions {
        uneven_blocks: true,
        ..PlanOptions::default()
    };
    Plan::build(local, std::slice::from_ref(remote), &options).unwrap()
}

fn runs(plan: &Plan, local: &[u32], remote: &[u32], tokens: Option<u64>) -> Result<Runs> {
    plan.runs(&Request {
        groups: &[GroupBlocks::new(local, remote)],
        tokens,
    })
}

fn refused(result: Result<Runs>, status: Status, message: &str) {
    let error = result.unwrap_err();
    assert_eq!((error.status(), error.message()), (status, message));
}

#[test]
fn order_does_not_matter() {
    let plan = plan(
        &layout(PageOrder::Hnd, 16, 1),
        &layout(PageOrder::Hnd, 16, 1),
    );
    let forward = runs(&plan, &[3, 4, 5, 6], &[10, 11, 12, 13], None).unwrap();
    let mixed = runs(&plan, &[5, 3, 6, 4], &[12, 10, 13, 11], None).unwrap();
    assert_eq!(forward.stats().ranges, 1);
    assert_eq!(forward.expand().unwrap(), mixed.expand().unwrap());
    // Descending on one side only: nothing is contiguous.
    let crossed = runs(&plan, &[3, 4, 5, 6], &[13, 12, 11, 10], None).unwrap();
    assert_eq!(crossed.stats().ranges, 4);
    // A gap on either side ends a run.
    let gaps = runs(&plan, &[3, 4, 6, 7], &[10, 11, 12, 14], None).unwrap();
    assert_eq!(gaps.stats().ranges, 3);
}

#[test]
fn token_major_blocks_of_unequal_size_merge_within_and_across_pages() {
    let (large, small) = (layout(PageOrder::Nhd, 32, 1), layout(PageOrder::Nhd, 16, 1));
    let plan = plan(&large, &small);
    // Local blocks 7 and 8 are the bytes of remote blocks 20 to 23, without a gap.
    let one = runs(&plan, &[7, 8], &[20, 21, 22, 23], None).unwrap();
    assert_eq!((one.stats().ranges_before, one.stats().ranges), (4, 1));
    // A jump in the middle of local block 8.
    let two = runs(&plan, &[7, 8], &[20, 21, 22, 40], None).unwrap();
    assert_eq!(two.stats().ranges, 2);
    // A jump between the local blocks.
    let two = runs(&plan, &[7, 9], &[20, 21, 22, 23], None).unwrap();
    assert_eq!(two.stats().ranges, 2);
}

#[test]
fn pages_of_one_block_merge() {
    let (local, remote) = (layout(PageOrder::Hnd, 64, 4), layout(PageOrder::Hnd, 16, 1));
    let plan = plan(&local, &remote);
    let one = runs(&plan, &[5], &[20, 21, 22, 23], None).unwrap();
    assert_eq!((one.stats().ranges_before, one.stats().ranges), (4, 1));
}

#[test]
fn merging_never_bridges_padding() {
    let padded = |page_stride| {
        let mut l = layout(PageOrder::Hnd, 16, 1);
        l.regions[0].page_stride = page_stride;
        l
    };
    let len = padded(1 << 20).regions[0].page_len;
    let plan = plan(&padded(len + 64), &padded(len));
    assert_eq!(
        runs(&plan, &[3, 4], &[10, 11], None)
            .unwrap()
            .stats()
            .ranges,
        2
    );
}

#[test]
fn ids_are_checked() {
    let plan = plan(
        &layout(PageOrder::Hnd, 32, 2),
        &layout(PageOrder::Hnd, 32, 1),
    );
    let invalid = Status::InvalidArgument;
    assert!(runs(&plan, &[49], &[99], None).is_ok());
    refused(
        runs(&plan, &[50], &[99], None),
        invalid,
        "group 0: local block 50 of 50 blocks",
    );
    refused(
        runs(&plan, &[49], &[100], None),
        invalid,
        "group 0: remote block 100 of 100 blocks",
    );
    refused(
        runs(&plan, &[4, 1, 4], &[1, 2, 3], None),
        invalid,
        "local block 4 occurs twice (group 0)",
    );
    // The same source twice is no harm.
    assert!(runs(&plan, &[4, 1], &[3, 3], None).is_ok());
    let none = plan.runs(&Request {
        groups: &[],
        tokens: None,
    });
    refused(none, invalid, "block ids for 0 groups, and the plan has 1");
}

#[test]
fn counts_that_do_not_fit() {
    let mismatch = Status::Mismatch;
    let even = plan(
        &layout(PageOrder::Hnd, 16, 1),
        &layout(PageOrder::Hnd, 16, 1),
    );
    refused(
        runs(&even, &[1, 2, 3], &[4, 5], None),
        mismatch,
        "group 0: 3 local blocks of 16 tokens against 2 remote blocks of 16, which end after 2 of the \
         former",
    );
    refused(
        runs(&even, &[1, 2, 3], &[4, 5], Some(32)),
        mismatch,
        "group 0: 3 local blocks of 16 tokens from block 0, where 32 tokens are 2 blocks",
    );
    refused(
        runs(&even, &[1], &[], None),
        mismatch,
        "group 0: 1 local blocks of 16 tokens against 0 remote blocks of 16, which end after 0 of the \
         former",
    );
    // The producer's list may not begin later than the consumer's.
    let late = GroupBlocks {
        local: &[1, 2],
        remote: &[5],
        local_first: Some(0),
        remote_first: Some(1),
    };
    refused(
        even.runs(&Request {
            groups: &[late],
            tokens: None,
        }),
        mismatch,
        "group 0: local blocks are tokens 0..32, remote blocks only 16..32",
    );
    // Nor end a whole block earlier.
    let early = GroupBlocks {
        local_first: Some(0),
        remote_first: Some(0),
        ..late
    };
    refused(
        even.runs(&Request {
            groups: &[early],
            tokens: None,
        }),
        mismatch,
        "group 0: local blocks are tokens 0..32, remote blocks only 0..16",
    );
    let beyond = GroupBlocks {
        local_first: Some(u32::MAX),
        ..late
    };
    assert!(
        even.runs(&Request {
            groups: &[beyond],
            tokens: None
        })
        .is_err()
    );
}

#[test]
fn what_lists_cannot_say_must_be_stated() {
    let plan = plan(
        &layout(PageOrder::Hnd, 16, 1),
        &layout(PageOrder::Hnd, 24, 1),
    );
    let error = runs(&plan, &[1], &[2, 3], None).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument);
    // 40 tokens: the third local block has 8 tokens of the second remote one.
    let some = runs(&plan, &[1], &[2, 3], Some(40)).unwrap();
    assert_eq!(
        some.coverage()[0],
        Coverage {
            first: 32,
            end: 48,
            missing_head: 0,
            missing_tail: 0
        }
    );
}

#[test]
fn windows_may_lack_what_has_left_them() {
    let windowed = |window, tokens| {
        let mut l = layout(PageOrder::Hnd, tokens, 1);
        l.groups[0].kind = GroupKind::SlidingWindow;
        l.groups[0].window = window;
        l
    };
    let plan = plan(&windowed(24, 32), &windowed(24, 16));
    // 80 tokens with a window of 24 need tokens from 56 on. The producer has 48..80, the consumer's
    // two blocks are 32..96.
    let some = runs(&plan, &[1, 2], &[5, 6], Some(80)).unwrap();
    let coverage = Coverage {
        first: 48,
        end: 80,
        missing_head: 16,
        missing_tail: 16,
    };
    assert_eq!(some.coverage()[0], coverage);
    assert_eq!(some.stats().bytes, 32 * 4 * 32);
    // With 64..80 only, tokens 56..64 would be missing.
    let error = runs(&plan, &[1, 2], &[6], Some(80)).unwrap_err();
    assert_eq!(
        error.message(),
        "group 0: local blocks are tokens 32..96, remote blocks only 64..80"
    );
}

#[test]
fn expand_is_bounded() {
    // Cell by cell with tiny cells: 2^20 ranges a page.
    let page = |row_stride: u64, head_stride: u64| {
        let mut b = LayoutBuilder::new(Parallel::default());
        let g = b.attention(GroupKind::Full, 1024, 1);
        let r = b.region(Span::host(0, 100).of(1 << 20));
        b.part(Part {
            group: g,
            region: r,
            layer: 0,
            role: Role::K,
            offset: 0,
            heads_total: 1024,
            head_first: 0,
            head_count: 1024,
            head_stride,
            rows: 1024,
            row_stride,
            cell_bytes: 1,
            elem_bytes: 1,
        });
        b.finish().unwrap()
    };
    let plan = plan(&page(1, 1024), &page(1024, 1));
    let ids: Vec<u32> = (0..17).collect();
    let all = runs(&plan, &ids, &ids, None).unwrap();
    assert_eq!(all.stats().ranges, 17 << 20);
    assert_eq!(
        all.expand().unwrap_err().status(),
        Status::ResourceExhausted
    );
    // In slices it works all the same.
    let (mut local, mut remote) = (Vec::new(), Vec::new());
    let mut cursor = Cursor::default();
    assert_eq!(
        all.fill(
            &plan.batches()[0],
            &mut cursor,
            1000,
            &mut local,
            &mut remote
        ),
        1000
    );
    // Head 0, token 999: at 999 in a local page, at 999 × 1024 in a remote one.
    assert_eq!(
        (local[999].addr, remote[999].addr, local[999].len),
        (999, 999 << 10, 1)
    );
}

trait Of {
    fn of(self, page_len: u64) -> Region;
}

impl Of for Span {
    fn of(self, page_len: u64) -> Region {
        Region {
            base: self.base,
            page_stride: page_len,
            page_len,
            page_count: self.page_count,
            mem: self.mem,
            device: self.device,
        }
    }
}
