//! Cuts the ranges of one batch into slices small enough for one post.

use crate::memory::MemDesc;
use crate::plan::{Batch, Cursor, Runs};

/// What one post may have at most.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub bytes: u64,
    pub descriptors: usize,
}

/// One side and the other, the i-th with the i-th.
#[derive(Default)]
pub(super) struct Slice {
    pub local: Vec<MemDesc>,
    pub remote: Vec<MemDesc>,
    pub bytes: u64,
}

impl Slice {
    fn clear(&mut self) {
        self.local.clear();
        self.remote.clear();
        self.bytes = 0;
    }
}

/// How far one batch has been cut up.
pub(super) struct Slicer {
    pub batch: Batch,
    cursor: Cursor,
    /// Ranges that were taken from the runs and not yet given out, from `next` on.
    local: Vec<MemDesc>,
    remote: Vec<MemDesc>,
    next: usize,
}

impl Slicer {
    pub(super) fn new(batch: Batch) -> Self {
        Slicer {
            batch,
            cursor: Cursor::default(),
            local: Vec::new(),
            remote: Vec::new(),
            next: 0,
        }
    }

    /// Fills the next slice; false if there is nothing left.
    pub(super) fn fill(&mut self, runs: &Runs, limits: Limits, slice: &mut Slice) -> bool {
        slice.clear();
        while slice.local.len() < limits.descriptors && slice.bytes < limits.bytes {
            if self.next == self.local.len() && !self.refill(runs, limits.descriptors) {
                break;
            }
            let (local, remote) = (&mut self.local[self.next], &mut self.remote[self.next]);
            let room = limits.bytes - slice.bytes;
            // A range is cut only if it would not fit into a slice of its own.
            if local.len > room && local.len <= limits.bytes {
                break;
            }
            let len = local.len.min(room);
            slice.local.push(MemDesc { len, ..*local });
            slice.remote.push(MemDesc { len, ..*remote });
            slice.bytes += len;
            if len == local.len {
                self.next += 1;
            } else {
                for side in [local, remote] {
                    side.addr += len;
                    side.len -= len;
                }
            }
        }
        !slice.local.is_empty()
    }

    fn refill(&mut self, runs: &Runs, max: usize) -> bool {
        self.local.clear();
        self.remote.clear();
        self.next = 0;
        runs.fill(
            &self.batch,
            &mut self.cursor,
            max,
            &mut self.local,
            &mut self.remote,
        ) > 0
    }
}

#[cfg(test)]
#[path = "slicer_test.rs"]
mod tests;
