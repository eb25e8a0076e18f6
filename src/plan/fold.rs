//! Making lanes few and long.
//!
//! A part yields a copy per head and token. Where the two sides are arranged alike, most of that is
//! one contiguous piece. Two rules find it, applied until nothing changes:
//!
//! - *within a lane*, a repetition whose step on both sides is just the length joins the length, and
//!   two repetitions that continue each other become one;
//! - *between lanes*, two that are alike and lie one behind the other on both sides (K and V of a cell,
//!   layers packed in a row) become one of their joint length.

use super::{Inner, Lane, LaneSide};

/// A lane with what is needed to know whether its neighbour is in the same registration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draft {
    pub lane: Lane,
    /// Region indices, local and remote.
    pub regions: (u32, u32),
    /// Whether each region has one page only. Such regions may touch by chance; regions of several
    /// pages that interleave are always parts of one allocation.
    pub single_page: (bool, bool),
}

/// Folds all drafts; the order of the result is by peer, group and local address.
pub(super) fn fold(mut drafts: Vec<Draft>, merge: bool) -> Vec<Lane> {
    drafts.iter_mut().for_each(|d| shrink(&mut d.lane));
    if merge {
        loop {
            let before = drafts.len();
            drafts = merge_neighbours(drafts);
            if drafts.len() == before {
                break;
            }
            // A longer copy may now be as long as a step.
            drafts.iter_mut().for_each(|d| shrink(&mut d.lane));
        }
    }
    drafts.into_iter().map(|d| d.lane).collect()
}

/// Applies the first rule until nothing changes. Afterwards unused repetitions are
/// [`Inner::ONCE`] and come first.
fn shrink(lane: &mut Lane) {
    for i in &mut lane.inner {
        if i.count == 1 {
            *i = Inner::ONCE;
        }
    }
    loop {
        // The smaller step innermost, so that ranges come out in ascending order.
        lane.inner
            .sort_by_key(|i| (i.count > 1, std::cmp::Reverse(i.local_stride)));
        let [outer, inner] = lane.inner;
        let joins =
            |i: Inner| i.count > 1 && (i.local_stride, i.remote_stride) == (lane.len, lane.len);
        let continues = |step: u64, by: u64| by.checked_mul(inner.count.into()) == Some(step);
        if joins(inner) {
            lane.len *= u64::from(inner.count);
            lane.inner[1] = Inner::ONCE;
        } else if joins(outer) {
            lane.len *= u64::from(outer.count);
            lane.inner[0] = Inner::ONCE;
        } else if outer.count > 1
            && continues(outer.local_stride, inner.local_stride)
            && continues(outer.remote_stride, inner.remote_stride)
            && outer.count.checked_mul(inner.count).is_some()
        {
            lane.inner = [
                Inner::ONCE,
                Inner {
                    count: outer.count * inner.count,
                    ..inner
                },
            ];
        } else {
            return;
        }
    }
}

/// Applies the second rule once, to chains of any length.
fn merge_neighbours(mut drafts: Vec<Draft>) -> Vec<Draft> {
    let key = |d: &Draft| {
        (
            d.lane.peer,
            d.lane.group,
            d.lane.local.base,
            d.lane.remote.base,
        )
    };
    if !drafts.is_sorted_by_key(key) {
        drafts.sort_unstable_by_key(key);
    }
    let mut out: Vec<Draft> = Vec::with_capacity(drafts.len());
    for next in drafts {
        match out.last_mut() {
            Some(last) if follows(last, &next) => {
                last.lane.len += next.lane.len;
                last.regions = next.regions;
            }
            _ => out.push(next),
        }
    }
    out
}

/// Whether `b` begins where `a` ends on both sides, and is otherwise alike.
fn follows(a: &Draft, b: &Draft) -> bool {
    let (x, y) = (&a.lane, &b.lane);
    let side = |p: &LaneSide, q: &LaneSide| {
        p.base.checked_add(x.len) == Some(q.base)
            && (p.stride, p.sub_stride, p.mem, p.device)
                == (q.stride, q.sub_stride, q.mem, q.device)
    };
    let together = |ra: u32, rb: u32, single: bool| ra == rb || !single;
    (x.peer, x.group, x.local_shard, x.remote_shard)
        == (y.peer, y.group, y.local_shard, y.remote_shard)
        && x.inner == y.inner
        && side(&x.local, &y.local)
        && side(&x.remote, &y.remote)
        && together(a.regions.0, b.regions.0, a.single_page.0 || b.single_page.0)
        && together(a.regions.1, b.regions.1, a.single_page.1 || b.single_page.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemKind;

    fn lane(len: u64, inner: [(u32, u64, u64); 2]) -> Lane {
        let side = LaneSide {
            base: 0,
            stride: 4096,
            sub_stride: 0,
            mem: MemKind::Dram,
            device: 0,
        };
        Lane {
            peer: 0,
            group: 0,
            local_shard: 0,
            remote_shard: 0,
            local: side,
            remote: side,
            len,
            inner: inner.map(|(count, local_stride, remote_stride)| Inner {
                count,
                local_stride,
                remote_stride,
            }),
        }
    }

    #[test]
    fn a_contiguous_page_becomes_one_copy() {
        // Four heads of eight tokens of 16 bytes, head-major on both sides.
        let mut l = lane(16, [(4, 128, 128), (8, 16, 16)]);
        shrink(&mut l);
        assert_eq!((l.len, l.copies()), (512, 1));
    }

    #[test]
    fn unequal_page_sizes_leave_one_copy_per_head() {
        // The local page holds twice the tokens, so its heads are twice as far apart.
        let mut l = lane(16, [(4, 256, 128), (8, 16, 16)]);
        shrink(&mut l);
        assert_eq!((l.len, l.copies()), (128, 4));
    }

    #[test]
    fn head_major_against_token_major_stays_cell_by_cell() {
        let mut l = lane(16, [(4, 128, 16), (8, 16, 64)]);
        shrink(&mut l);
        assert_eq!((l.len, l.copies()), (16, 32));
    }

    #[test]
    fn repetitions_that_continue_each_other_become_one() {
        // Cells of 16 bytes with gaps, evenly spaced over both directions on both sides.
        let mut l = lane(16, [(4, 256, 192), (8, 32, 24)]);
        shrink(&mut l);
        assert_eq!(
            l.inner,
            [
                Inner::ONCE,
                Inner {
                    count: 32,
                    local_stride: 32,
                    remote_stride: 24
                }
            ]
        );
    }

    #[test]
    fn neighbours_merge_only_within_one_allocation() {
        let mut second = lane(16, [(1, 0, 0), (1, 0, 0)]);
        second.local.base = 16;
        second.remote.base = 16;
        let drafts = |single| {
            [(lane(16, [(1, 0, 0), (1, 0, 0)]), 0), (second, 1)]
                .map(|(lane, r)| Draft {
                    lane,
                    regions: (r, r),
                    single_page: (single, single),
                })
                .to_vec()
        };
        assert_eq!(fold(drafts(false), true).len(), 1);
        assert_eq!(fold(drafts(false), false).len(), 2);
        assert_eq!(fold(drafts(true), true).len(), 2);
    }

    #[test]
    fn neighbours_that_step_differently_stay_apart() {
        let once = [(1, 0, 0), (1, 0, 0)];
        let first = lane(16, once);
        let mut second = lane(16, once);
        (second.local.base, second.remote.base) = (16, 16);
        let count = |second: Lane| {
            let draft = |lane| Draft {
                lane,
                regions: (0, 0),
                single_page: (false, false),
            };
            fold(vec![draft(first), draft(second)], true).len()
        };
        assert_eq!(count(second), 1);
        for change in [
            |l: &mut Lane| l.remote.stride = 8192,
            |l: &mut Lane| l.local.sub_stride = 16,
            |l: &mut Lane| l.remote.base = 32,
            |l: &mut Lane| l.remote.device = 1,
            |l: &mut Lane| l.remote_shard = 1,
            |l: &mut Lane| l.peer = 1,
        ] {
            let mut other = second;
            change(&mut other);
            assert_eq!(count(other), 2);
        }
    }
}
