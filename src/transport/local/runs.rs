//! From pairs of ranges to what is copied: runs, cut into batches.
//!
//! Neighbouring pairs that are contiguous on both sides become one run. Long runs are then cut, and
//! runs grouped, into batches of bounded size: a batch is what one thread copies without looking up,
//! so its size bounds how long cancelling and deregistering wait, and lets threads share evenly.

use super::ranges::Span;
use super::vm::IOV_MAX;
use crate::error::{Error, Result, Status};
use crate::memory::MemDesc;

/// Largest batch. Beyond a megabyte or so a bigger one is no faster: one system call is spread over
/// hundreds of microseconds of copying already.
const MAX_BATCH: u64 = 4 << 20;
/// Smallest batch that is worth handing to another thread.
const MIN_BATCH: u64 = 256 << 10;
/// Most batches that long runs are cut into, so that a plan stays small however much it moves.
const MAX_CUTS: u64 = 1 << 16;
/// How many batches each thread should get, so that none waits long for the last one.
const BATCHES_PER_THREAD: u64 = 8;

/// One contiguous copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    pub local: u64,
    pub remote: u64,
    pub len: u64,
}

impl Run {
    /// The local or the remote addresses.
    pub fn side(&self, local: bool) -> Span {
        let start = if local { self.local } else { self.remote };
        Span {
            start,
            end: start + self.len,
        }
    }
}

/// Joins pairs into runs, in the order in which they come.
#[derive(Default)]
pub(super) struct Merger {
    runs: Vec<Run>,
    pairs: usize,
}

impl Merger {
    pub fn with_capacity(pairs: usize) -> Merger {
        Merger {
            runs: Vec::with_capacity(pairs),
            pairs: 0,
        }
    }

    /// Adds the next pair; lengths must agree.
    #[inline]
    pub fn push(&mut self, local: MemDesc, remote: MemDesc) -> Result<()> {
        if local.len != remote.len {
            return Err(unequal(self.pairs, local, remote));
        }
        self.pairs += 1;
        match self.runs.last_mut() {
            Some(last)
                if last.local + last.len == local.addr && last.remote + last.len == remote.addr =>
            {
                last.len += local.len;
            }
            _ => self.runs.push(Run {
                local: local.addr,
                remote: remote.addr,
                len: local.len,
            }),
        }
        Ok(())
    }

    /// Cuts what was pushed into batches for so many threads.
    pub fn finish(self, threads: usize) -> Plan {
        Plan::new(self.runs, threads)
    }
}

#[cold]
fn unequal(pair: usize, local: MemDesc, remote: MemDesc) -> Error {
    Error::new(
        Status::Mismatch,
        format!(
            "pair {pair}: the local range at {:#x} has {} bytes, the remote one at {:#x} has {}",
            local.addr, local.len, remote.addr, remote.len
        ),
    )
}

/// All of one transfer.
#[derive(Debug)]
pub(super) struct Plan {
    /// After cutting; never longer than a batch.
    runs: Vec<Run>,
    /// Where each batch ends in `runs`.
    ends: Vec<usize>,
    pub bytes: u64,
    /// Runs before cutting.
    pub descriptors: u64,
}

impl Plan {
    fn new(merged: Vec<Run>, threads: usize) -> Plan {
        let descriptors = merged.len() as u64;
        let bytes = merged
            .iter()
            .fold(0u64, |sum, run| sum.saturating_add(run.len));
        let limit = batch_limit(bytes, threads);
        let runs = cut(merged, limit);
        let mut ends = Vec::new();
        let (mut size, mut first) = (0, 0);
        for (i, run) in runs.iter().enumerate() {
            if i > first && (size + run.len > limit || i - first == IOV_MAX) {
                ends.push(i);
                (size, first) = (0, i);
            }
            size += run.len;
        }
        if !runs.is_empty() {
            ends.push(runs.len());
        }
        Plan {
            runs,
            ends,
            bytes,
            descriptors,
        }
    }

    pub fn batches(&self) -> usize {
        self.ends.len()
    }

    /// The runs of one batch.
    pub fn batch(&self, i: usize) -> &[Run] {
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.runs[start..self.ends[i]]
    }

    /// The addresses of all runs on one side.
    pub fn spans(&self, local: bool) -> impl Iterator<Item = Span> + '_ {
        self.runs.iter().map(move |run| run.side(local))
    }
}

fn batch_limit(bytes: u64, threads: usize) -> u64 {
    if threads < 2 {
        return MAX_BATCH.max(bytes / MAX_CUTS);
    }
    let share = bytes / (threads as u64 * BATCHES_PER_THREAD);
    // Whole pages, so that two threads do not meet inside one.
    (share.clamp(MIN_BATCH, MAX_BATCH).max(bytes / MAX_CUTS) + 4095) & !4095
}

/// Cuts runs that are longer than a batch.
fn cut(merged: Vec<Run>, limit: u64) -> Vec<Run> {
    if merged.iter().all(|run| run.len <= limit) {
        return merged;
    }
    let mut runs = Vec::with_capacity(merged.len() + 16);
    for run in merged {
        let mut done = 0;
        while done < run.len {
            let len = (run.len - done).min(limit);
            runs.push(Run {
                local: run.local + done,
                remote: run.remote + done,
                len,
            });
            done += len;
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desc(addr: u64, len: u64) -> MemDesc {
        MemDesc {
            addr,
            len,
            device: 0,
        }
    }

    fn plan(pairs: &[(u64, u64, u64)], threads: usize) -> Plan {
        let mut merger = Merger::with_capacity(pairs.len());
        for &(local, remote, len) in pairs {
            merger.push(desc(local, len), desc(remote, len)).unwrap();
        }
        merger.finish(threads)
    }

    /// The runs of all batches, joined again where they continue each other.
    fn joined(plan: &Plan) -> Vec<(u64, u64, u64)> {
        let mut joined: Vec<(u64, u64, u64)> = Vec::new();
        for run in (0..plan.batches()).flat_map(|i| plan.batch(i)) {
            match joined.last_mut() {
                Some((l, r, n)) if *l + *n == run.local && *r + *n == run.remote => *n += run.len,
                _ => joined.push((run.local, run.remote, run.len)),
            }
        }
        joined
    }

    #[test]
    fn neighbours_on_both_sides_merge() {
        let one = plan(&[(0, 100, 10), (10, 110, 5), (15, 115, 5)], 1);
        assert_eq!((one.descriptors, one.bytes), (1, 20));
        let local_only = plan(&[(0, 100, 10), (10, 200, 10)], 1);
        assert_eq!(local_only.descriptors, 2);
        let swapped = plan(&[(10, 110, 10), (0, 100, 10)], 1);
        assert_eq!(swapped.descriptors, 2);
    }

    #[test]
    fn unequal_lengths_are_named() {
        let mut merger = Merger::default();
        merger.push(desc(0, 8), desc(64, 8)).unwrap();
        let error = merger.push(desc(8, 8), desc(72, 9)).unwrap_err();
        assert_eq!(error.status(), Status::Mismatch);
        for part in ["pair 1", "8 bytes", "has 9"] {
            assert!(error.message().contains(part), "{error}");
        }
    }

    #[test]
    fn batches_hold_every_byte_once_and_keep_their_bounds() {
        let pairs = [
            (0, 50_000_000, 3),
            (1000, 60_000_000, 9_000_001),
            (20_000_000, 5, 70_000),
        ];
        for threads in [1, 2, 5] {
            let plan = plan(&pairs, threads);
            assert_eq!(joined(&plan), pairs);
            for i in 0..plan.batches() {
                let size: u64 = plan.batch(i).iter().map(|run| run.len).sum();
                assert!(size <= MAX_BATCH && !plan.batch(i).is_empty());
            }
        }
    }

    #[test]
    fn a_batch_fits_one_system_call() {
        let pairs: Vec<_> = (0..5000u64).map(|i| (i * 100, i * 200, 7)).collect();
        let plan = plan(&pairs, 1);
        assert_eq!(plan.batches(), 5);
        assert!((0..5).all(|i| plan.batch(i).len() <= IOV_MAX));
    }

    #[test]
    fn two_threads_get_enough_to_share() {
        let one_run = plan(&[(0, 1 << 40, 64 << 20)], 2);
        assert!(one_run.batches() >= 16);
        let small = plan(&[(0, 1 << 40, 64 << 10)], 2);
        assert_eq!(small.batches(), 1);
        assert_eq!(plan(&[], 2).batches(), 0);
        let vast = plan(&[(0, 1 << 50, 1 << 47), (1 << 48, 1 << 51, 1 << 47)], 2);
        assert!(vast.runs.len() <= 1 << 17);
    }
}
