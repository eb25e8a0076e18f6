//! Which of a request's blocks are exchanged.
//!
//! Full attention needs them all. A sliding window needs those that it can still reach: the engine has
//! given out blocks for the whole sequence and takes the others back later. Of a state group only the slot of the running state
//! means anything: those before it are superseded, those behind it hold drafts. Both sides clip alike, so
//! that their lists can be paired from the end.

use super::RequestBlocks;
use super::options::{SchedulerOptions, TransferGroup};
use crate::connector::params::MAX_BLOCKS;
use crate::error::{Error, Result};
use crate::layout::GroupKind;

/// The exchanged blocks of each group, and where they begin in the request's block table.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Clipped {
    pub(super) ids: Vec<Vec<u32>>,
    pub(super) first: Vec<u32>,
}

/// Copies what is exchanged. As many groups as the options have, and no more blocks than parameters can
/// name: so whatever was accepted fits into a step.
pub(super) fn clip(options: &SchedulerOptions, groups: &[RequestBlocks<'_>]) -> Result<Clipped> {
    if groups.len() != options.groups.len() {
        return Err(Error::invalid(format!(
            "blocks of {} groups; there are {} transfer groups",
            groups.len(),
            options.groups.len()
        )));
    }
    let mut out = Clipped::default();
    for (blocks, group) in groups.iter().zip(&options.groups) {
        let (skipped, ids) = match options.clip {
            true => exchanged(group, blocks.ids),
            false => (0, blocks.ids),
        };
        out.ids.push(ids.to_vec());
        // A list shorter than 2^32 blocks lies wholly below that index, by the engine's own table.
        out.first.push(blocks.first.saturating_add(skipped as u32));
    }
    let blocks: usize = out.ids.iter().map(Vec::len).sum();
    if blocks > MAX_BLOCKS {
        return Err(Error::invalid(format!(
            "{blocks} blocks of one request are to be exchanged; at most {MAX_BLOCKS} can be"
        )));
    }
    Ok(out)
}

/// How many blocks are left out at the front, and those that stay.
fn exchanged<'a>(group: &TransferGroup, ids: &'a [u32]) -> (usize, &'a [u32]) {
    match group.kind {
        GroupKind::SlidingWindow => {
            // One more than the window fills, since it need not begin with a block.
            let most = group.window.div_ceil(group.tokens_per_block) as usize + 1;
            let skipped = ids.len().saturating_sub(most);
            (skipped, &ids[skipped..])
        }
        GroupKind::State if !ids.is_empty() => {
            // The running state's slot is there even before the draft slots are.
            let drafts = (group.scratch_blocks as usize).min(ids.len() - 1);
            let at = ids.len() - drafts - 1;
            (at, &ids[at..=at])
        }
        _ => (0, ids),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(kind: GroupKind, window: u32, scratch_blocks: u32) -> TransferGroup {
        TransferGroup {
            kind,
            tokens_per_block: 16,
            window,
            scratch_blocks,
        }
    }

    /// Windows, drafts and lists as in vLLM's tables (wire.md 5.5).
    #[test]
    fn what_each_kind_exchanges() {
        use GroupKind::{Full, Mla, SlidingWindow, State};
        let ids: Vec<u32> = (10..20).collect();
        let cases = [
            (Full, 0, 0, 10, 10..20),
            (Mla, 0, 0, 10, 10..20),
            (SlidingWindow, 32, 0, 10, 17..20),
            (SlidingWindow, 33, 0, 10, 16..20),
            (SlidingWindow, 1, 0, 10, 18..20),
            (SlidingWindow, 1024, 0, 10, 10..20),
            (SlidingWindow, 32, 0, 2, 10..12),
            (SlidingWindow, 32, 0, 0, 0..0),
            (State, 0, 0, 10, 19..20),
            (State, 0, 2, 10, 17..18),
            (State, 0, 2, 3, 10..11),
            (State, 0, 2, 2, 10..11),
            (State, 0, 2, 1, 10..11),
            (State, 0, 2, 0, 0..0),
        ];
        for (kind, window, scratch, len, expected) in cases {
            let (skipped, got) = exchanged(&group(kind, window, scratch), &ids[..len]);
            let expected: Vec<u32> = expected.collect();
            assert_eq!(got, expected, "{kind:?} {window} {scratch} {len}");
            assert!(got.is_empty() || got[0] == ids[skipped]);
        }
    }

    #[test]
    fn the_first_block_moves_with_the_cut() {
        let options = SchedulerOptions {
            groups: vec![
                group(GroupKind::Full, 0, 0),
                group(GroupKind::SlidingWindow, 16, 0),
            ],
            clip: true,
            ..SchedulerOptions::default()
        };
        let blocks = RequestBlocks {
            ids: &[5, 6, 7],
            first: 4,
        };
        let clipped = clip(&options, &[blocks, blocks]).unwrap();
        assert_eq!(clipped.ids, [vec![5, 6, 7], vec![6, 7]]);
        assert_eq!(clipped.first, [4, 5]);
        let whole = SchedulerOptions {
            clip: false,
            ..options
        };
        assert_eq!(clip(&whole, &[blocks, blocks]).unwrap().first, [4, 4]);
        let e = clip(&whole, &[blocks]).unwrap_err();
        assert_eq!(
            e.message(),
            "blocks of 1 groups; there are 2 transfer groups"
        );
    }
}
