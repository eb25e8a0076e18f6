//! Runs of adjacent block ids, found by length.
//!
//! A run is known by its first block. Runs of the same length hang in a list through the array
//! `runs`; one [`BitSet`] has the first blocks, so that the run around a block is found, another the
//! lengths that exist, so that the smallest one that fits and the longest are. Everything is
//! O(log₆₄ n) per run, however long the run is, and nothing is allocated after creation.

use super::NONE;
use super::bits::BitSet;
use super::memory::filled;
use crate::error::Result;

/// Adjacent block ids.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Run {
    pub(super) start: u32,
    pub(super) len: u32,
}

/// What is kept at the first block of a run.
#[derive(Clone, Copy)]
struct Node {
    len: u32,
    /// Neighbours in the circular list of runs of the same length.
    prev: u32,
    next: u32,
}

/// A set of blocks, seen as maximal runs.
pub(super) struct RunSet {
    nodes: Vec<Node>,
    /// First of the list of each length; [`NONE`] if there is none.
    heads: Vec<u32>,
    starts: BitSet,
    lengths: BitSet,
}

impl RunSet {
    /// The empty set, for ids below `bound`.
    pub(super) fn new(bound: usize) -> Result<Self> {
        Ok(RunSet {
            nodes: filled(
                bound,
                Node {
                    len: 0,
                    prev: NONE,
                    next: NONE,
                },
                "the run index",
            )?,
            heads: filled(bound + 1, NONE, "the run index")?,
            starts: BitSet::new(bound)?,
            lengths: BitSet::new(bound + 1)?,
        })
    }

    /// Adds blocks, none of which is in the set, and joins them with their neighbours.
    pub(super) fn insert(&mut self, run: Run) {
        let mut whole = run;
        if let Some(left) = run
            .start
            .checked_sub(1)
            .and_then(|before| self.around(before))
        {
            self.unlink(left.start);
            whole = Run {
                start: left.start,
                len: left.len + run.len,
            };
        }
        let after = run.start + run.len;
        if self.starts.contains(after) {
            whole.len += self.nodes[after as usize].len;
            self.unlink(after);
            self.starts.remove(after);
        }
        if whole.start == run.start {
            self.starts.insert(run.start);
        }
        self.link(whole);
    }

    /// Removes blocks, all of which are in the set.
    pub(super) fn remove(&mut self, run: Run) {
        let Some(whole) = self.around(run.start) else {
            debug_assert!(false, "block {} is in no run", run.start);
            return;
        };
        self.unlink(whole.start);
        let left = run.start - whole.start;
        let right = whole.len - left - run.len;
        if left > 0 {
            self.link(Run {
                start: whole.start,
                len: left,
            });
        } else {
            self.starts.remove(whole.start);
        }
        if right > 0 {
            let start = run.start + run.len;
            self.starts.insert(start);
            self.link(Run { start, len: right });
        }
    }

    /// The run that begins at this block.
    pub(super) fn starting_at(&self, start: u32) -> Option<Run> {
        self.starts.contains(start).then(|| Run {
            start,
            len: self.nodes[start as usize].len,
        })
    }

    /// The smallest run of at least `len` blocks; of several the one that has been there for longest.
    pub(super) fn best_fit(&self, len: u32) -> Option<Run> {
        self.lengths.at_least(len).map(|len| Run {
            start: self.heads[len as usize],
            len,
        })
    }

    /// The longest run; of several the one that has been there for longest.
    pub(super) fn longest(&self) -> Option<Run> {
        self.lengths.last().map(|len| Run {
            start: self.heads[len as usize],
            len,
        })
    }

    /// The run that a block lies in.
    fn around(&self, block: u32) -> Option<Run> {
        let start = self.starts.at_most(block)?;
        let len = self.nodes[start as usize].len;
        (block - start < len).then_some(Run { start, len })
    }

    /// Puts a run at the end of the list of its length.
    fn link(&mut self, run: Run) {
        let Run { start, len } = run;
        let head = self.heads[len as usize];
        if head == NONE {
            self.nodes[start as usize] = Node {
                len,
                prev: start,
                next: start,
            };
            self.lengths.insert(len);
            self.heads[len as usize] = start;
        } else {
            let tail = self.nodes[head as usize].prev;
            self.nodes[start as usize] = Node {
                len,
                prev: tail,
                next: head,
            };
            self.nodes[head as usize].prev = start;
            self.nodes[tail as usize].next = start;
        }
    }

    /// Takes a run out of the list of its length.
    fn unlink(&mut self, start: u32) {
        let Node { len, prev, next } = self.nodes[start as usize];
        if next == start {
            self.heads[len as usize] = NONE;
            self.lengths.remove(len);
            return;
        }
        self.nodes[prev as usize].next = next;
        self.nodes[next as usize].prev = prev;
        if self.heads[len as usize] == start {
            self.heads[len as usize] = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn maximal(members: &BTreeSet<u32>) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for &b in members {
            match runs.last_mut() {
                Some(r) if r.start + r.len == b => r.len += 1,
                _ => runs.push(Run { start: b, len: 1 }),
            }
        }
        runs
    }

    #[test]
    fn agrees_with_runs_counted_from_scratch() {
        const BOUND: u32 = 300;
        let mut set = RunSet::new(BOUND as usize).unwrap();
        let mut members = BTreeSet::new();
        let mut x = 88172645463325252u64;
        let mut random = |n: u32| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 20) as u32 % n
        };
        for step in 0..20_000 {
            let start = random(BOUND);
            let len = 1 + random(12).min(BOUND - start - 1);
            let ids = start..start + len;
            if ids.clone().all(|b| !members.contains(&b)) && (step / 500) % 3 != 2 {
                set.insert(Run { start, len });
                members.extend(ids);
            } else if ids.clone().all(|b| members.contains(&b)) {
                set.remove(Run { start, len });
                members.retain(|b| !ids.contains(b));
            }
            let runs = maximal(&members);
            let n = 1 + random(20);
            assert_eq!(
                set.best_fit(n).map(|r| r.len),
                runs.iter().map(|r| r.len).filter(|&l| l >= n).min()
            );
            assert_eq!(
                set.longest().map(|r| r.len),
                runs.iter().map(|r| r.len).max()
            );
            for r in [set.best_fit(n), set.longest()].into_iter().flatten() {
                assert!(runs.contains(&r), "{r:?} is a run");
            }
            for b in 0..BOUND {
                assert_eq!(
                    set.around(b),
                    runs.iter()
                        .copied()
                        .find(|r| b - r.start.min(b) < r.len && b >= r.start)
                );
            }
        }
    }
}
