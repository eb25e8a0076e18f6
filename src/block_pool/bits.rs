//! A set of small integers that finds neighbours: a tree of 64-bit words.
//!
//! Level 0 has a bit for each member; each level above has a bit for each word below that is not
//! zero. A set over 100,000 values is three levels and 12.7 kB, so it stays in the first-level
//! cache, and every operation reads at most one word per level on the way up and on the way down.

use super::memory::filled;
use crate::error::Result;

/// A set of integers below a bound fixed at creation.
pub(super) struct BitSet {
    /// All levels, the members first and the single top word last.
    words: Vec<u64>,
    /// Where each level begins in `words`, and one end more.
    starts: Vec<usize>,
}

impl BitSet {
    /// The empty set of integers below `bound`.
    pub(super) fn new(bound: usize) -> Result<Self> {
        let mut starts = vec![0];
        let mut total = 0;
        let mut bits = bound.max(1);
        loop {
            let words = bits.div_ceil(64);
            total += words;
            starts.push(total);
            if words == 1 {
                break;
            }
            bits = words;
        }
        Ok(BitSet {
            words: filled(total, 0, "the run index")?,
            starts,
        })
    }

    /// Adds a member; one that is there already stays.
    pub(super) fn insert(&mut self, value: u32) {
        let mut i = value as usize;
        for level in 0..self.starts.len() - 1 {
            let word = &mut self.words[self.starts[level] + i / 64];
            let was_empty = *word == 0;
            *word |= 1 << (i % 64);
            if !was_empty {
                return;
            }
            i /= 64;
        }
    }

    /// Removes a member; one that is not there is ignored.
    pub(super) fn remove(&mut self, value: u32) {
        let mut i = value as usize;
        for level in 0..self.starts.len() - 1 {
            let word = &mut self.words[self.starts[level] + i / 64];
            *word &= !(1 << (i % 64));
            if *word != 0 {
                return;
            }
            i /= 64;
        }
    }

    /// Whether a value is a member. Values outside the bound are not.
    pub(super) fn contains(&self, value: u32) -> bool {
        let i = value as usize;
        i / 64 < self.starts[1] && self.words[i / 64] >> (i % 64) & 1 == 1
    }

    /// The smallest member that is at least `value`.
    pub(super) fn at_least(&self, value: u32) -> Option<u32> {
        let mut i = value as usize;
        for level in 0..self.starts.len() - 1 {
            let (start, end) = (self.starts[level], self.starts[level + 1]);
            if i / 64 >= end - start {
                return None;
            }
            let word = self.words[start + i / 64] & (u64::MAX << (i % 64));
            if word != 0 {
                let found = i / 64 * 64 + word.trailing_zeros() as usize;
                return Some(self.down(level, found, |w| w.trailing_zeros()));
            }
            i = i / 64 + 1;
        }
        None
    }

    /// The largest member that is at most `value`.
    pub(super) fn at_most(&self, value: u32) -> Option<u32> {
        let mut i = (value as usize).min(self.starts[1] * 64 - 1);
        for level in 0..self.starts.len() - 1 {
            let word = self.words[self.starts[level] + i / 64] & (u64::MAX >> (63 - i % 64));
            if word != 0 {
                let found = i / 64 * 64 + 63 - word.leading_zeros() as usize;
                return Some(self.down(level, found, |w| 63 - w.leading_zeros()));
            }
            if i < 64 {
                return None;
            }
            i = i / 64 - 1;
        }
        None
    }

    /// The largest member.
    pub(super) fn last(&self) -> Option<u32> {
        self.at_most(u32::MAX)
    }

    /// Walks from a set bit at `level` to a member, taking the bit that `pick` names in each word.
    fn down(&self, level: usize, mut i: usize, pick: impl Fn(u64) -> u32) -> u32 {
        for level in (0..level).rev() {
            i = i * 64 + pick(self.words[self.starts[level] + i]) as usize;
        }
        i as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn agrees_with_a_sorted_set() {
        for bound in [1u32, 2, 63, 64, 65, 4096, 4097, 300_000] {
            let mut set = BitSet::new(bound as usize).unwrap();
            let mut model = BTreeSet::new();
            let mut x = 0x9e37_79b9_7f4a_7c15u64 ^ u64::from(bound);
            let mut random = || {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                (x >> 20) as u32 % bound
            };
            for step in 0..4000 {
                let v = random();
                // Fuller in the first half, emptier in the second, down to nothing.
                if (random() % 3 != 0) == (step < 2000) {
                    set.insert(v);
                    model.insert(v);
                } else {
                    set.remove(v);
                    model.remove(&v);
                }
                let q = random();
                assert_eq!(set.contains(q), model.contains(&q));
                assert_eq!(set.at_least(q), model.range(q..).next().copied());
                assert_eq!(set.at_most(q), model.range(..=q).next_back().copied());
                assert_eq!(set.last(), model.last().copied());
            }
            for v in std::mem::take(&mut model) {
                set.remove(v);
            }
            assert_eq!(
                (set.last(), set.at_least(0), set.at_most(bound)),
                (None, None, None)
            );
        }
    }
}
