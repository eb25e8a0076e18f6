//! Which rank serves which heads to whom.
//!
//! The rule is one for all cases. The ranks of both engines are laid side by side over the same
//! width, so that consumer `d` of `D` faces producer `d * P / D` of `P`. A head is taken from the
//! rank that holds it and comes first when counting from the one that is faced, wrapping around. So
//! sharded heads come from their only holder, replicated ones are read once, and the consumers of
//! replicated ones spread over the producers.

use crate::layout::Part;

/// A rank that holds some heads of a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    /// Index among the layouts that were given; `None` if this rank's layout was not given and its
    /// heads are known from the rule by which the others hold theirs.
    pub given: Option<u32>,
    /// Its tensor-parallel rank.
    pub tp_rank: u32,
    /// Its share of the tokens.
    pub shard: u32,
    /// First head.
    pub first: u32,
    /// Number of heads.
    pub count: u32,
}

/// Heads to take from a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Take {
    /// Index of the holder.
    pub holder: usize,
    /// First head.
    pub first: u32,
    /// Number of heads.
    pub count: u32,
}

/// Which rank of an engine of `size` ranks is faced by rank `rank` of one of `of`.
pub(super) fn facing(rank: u32, of: u32, size: u32) -> u32 {
    (u64::from(rank) * u64::from(size) / u64::from(of)) as u32
}

/// Chooses a holder with share `shard` for each of the heads `first..first + count`, adding to
/// `takes`. `size` is the tensor-parallel size of the holders' engine. `Err` is a head that nobody
/// holds.
pub(super) fn choose(
    (first, count): (u32, u32),
    holders: &[Holder],
    shard: Option<u32>,
    faced: u32,
    size: u32,
    takes: &mut Vec<Take>,
) -> Result<(), u32> {
    let mut head = first;
    let end = first + count;
    while head < end {
        let best = holders
            .iter()
            .enumerate()
            .filter(|(_, h)| h.first <= head && head - h.first < h.count)
            .filter(|(_, h)| shard.is_none_or(|s| s == h.shard))
            .min_by_key(|(_, h)| (h.tp_rank + size - faced) % size);
        let Some((holder, h)) = best else {
            return Err(head);
        };
        let until = end.min(h.first + h.count);
        takes.push(Take {
            holder,
            first: head,
            count: until - head,
        });
        head = until;
    }
    Ok(())
}

/// The heads of some parts of one role of one rank, as few ranges as possible.
pub(super) fn head_ranges<'a>(parts: impl Iterator<Item = &'a Part>) -> Vec<(u32, u32)> {
    let mut out: Vec<(u32, u32)> = Vec::with_capacity(1);
    for p in parts {
        match out.last_mut() {
            Some(last) if last.0 + last.1 == p.head_first => last.1 += p.head_count,
            _ => out.push((p.head_first, p.head_count)),
        }
    }
    out
}

/// What rank `other` of `size` holds, if `rank` holds `(first, count)` of `total` heads by the usual
/// rule: equal shares in order, and if there are fewer shares than ranks, neighbours hold the same.
/// `None` if it does not.
pub(super) fn by_rule(
    (first, count): (u32, u32),
    total: u32,
    rank: u32,
    size: u32,
    other: u32,
) -> Option<(u32, u32)> {
    if total % count != 0 {
        return None;
    }
    let shares = total / count;
    if shares > size || size % shares != 0 {
        return None;
    }
    let share_of = |r: u32| facing(r, size, shares) * count;
    (share_of(rank) == first).then(|| (share_of(other), count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(total: u32, size: u32) -> Vec<Holder> {
        (0..size)
            .map(|r| {
                let (first, count) = crate::layout::shard(total, size, r).unwrap();
                Holder {
                    given: Some(r),
                    tp_rank: r,
                    shard: 0,
                    first,
                    count,
                }
            })
            .collect()
    }

    /// The ranks that consumer `d` of `size` reads from, with the heads it takes there.
    fn reads(total: u32, p: u32, size: u32, d: u32) -> Vec<(u32, u32, u32)> {
        let holders = engine(total, p);
        let want = crate::layout::shard(total, size, d).unwrap();
        let mut takes = Vec::new();
        choose(want, &holders, None, facing(d, size, p), p, &mut takes).unwrap();
        takes
            .iter()
            .map(|t| (holders[t.holder].tp_rank, t.first, t.count))
            .collect()
    }

    #[test]
    fn sharded_heads_come_from_their_holders() {
        assert_eq!(reads(8, 4, 2, 0), [(0, 0, 2), (1, 2, 2)]);
        assert_eq!(reads(8, 4, 2, 1), [(2, 4, 2), (3, 6, 2)]);
        assert_eq!(reads(8, 2, 4, 3), [(1, 6, 2)]);
    }

    #[test]
    fn duplicates_are_read_once_and_from_the_rank_that_is_faced() {
        // Two heads: ranks 0 and 1 hold the first, 2 and 3 the second.
        assert_eq!(reads(2, 4, 1, 0), [(0, 0, 1), (2, 1, 1)]);
        assert_eq!(reads(2, 4, 4, 1), [(1, 0, 1)]);
        assert_eq!(reads(2, 4, 8, 5), [(2, 1, 1)]);
        // Replicated on all.
        assert_eq!(reads(1, 4, 2, 1), [(2, 0, 1)]);
        assert_eq!(reads(1, 2, 4, 3), [(1, 0, 1)]);
    }

    #[test]
    fn a_head_that_nobody_holds_is_named() {
        let mut holders = engine(8, 4);
        holders.remove(1);
        assert_eq!(
            choose((0, 4), &holders, None, 0, 4, &mut Vec::new()),
            Err(2)
        );
    }

    #[test]
    fn the_usual_rule_is_recognised() {
        for (total, size) in [(8, 4), (2, 8), (1, 4), (16, 16)] {
            for r in 0..size {
                let own = crate::layout::shard(total, size, r).unwrap();
                for other in 0..size {
                    let theirs = crate::layout::shard(total, size, other).unwrap();
                    assert_eq!(by_rule(own, total, r, size, other), Some(theirs));
                }
            }
        }
        assert_eq!(by_rule((0, 3), 8, 0, 4, 1), None);
        assert_eq!(by_rule((2, 2), 8, 0, 4, 1), None);
    }
}
