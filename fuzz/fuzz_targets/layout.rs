//! Layouts from a peer: whatever the decoder accepts is sound, has that one encoding, and can be
//! planned with and expanded without overflow.
#![no_main]

use kvferry::layout::Layout;
use kvferry::plan::{Direction, GroupBlocks, Plan, PlanOptions, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(layout) = Layout::decode(bytes) else {
        return;
    };
    assert_eq!(layout.encode().expect("what decodes is sound"), bytes);
    for direction in [Direction::Pull, Direction::Push] {
        let options = PlanOptions {
            direction,
            uneven_blocks: true,
            ..PlanOptions::default()
        };
        let Ok(plan) = Plan::build(&layout, std::slice::from_ref(&layout), &options) else {
            continue;
        };
        // The first and the last block of each group, on both sides.
        let lists: Vec<[u32; 2]> = plan
            .groups()
            .iter()
            .map(|g| [0, g.local.block_count.saturating_sub(1) as u32])
            .collect();
        let groups: Vec<GroupBlocks> = lists.iter().map(|l| GroupBlocks::new(l, l)).collect();
        if let Ok(runs) = plan.runs(&Request {
            groups: &groups,
            tokens: None,
        }) {
            let _ = runs.stats();
            if runs.stats().ranges < 1 << 16 {
                let _ = runs.expand();
            }
        }
    }
});
