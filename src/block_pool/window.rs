//! The windowed policies: which free blocks an allocation gets, when transfers matter.
//!
//! The candidates are the oldest part of the queue, its *window*; they are kept as runs of adjacent
//! ids. An allocation takes the smallest run that fits, or else the longest ones, and so leaves few
//! and long runs to the transfer that will move the blocks. Only what the queue was about to evict
//! anyway is ever taken, which is why the prefix cache hardly suffers.
//!
//! The window is a prefix of the queue. A *fixed* one is always the same part of the queue: each
//! block that enters or leaves the queue moves its end by at most one. An *elastic* one has that part
//! as its limit and is only as long as it has to be: an allocation that finds no run that fits makes
//! it longer, step by step, and every allocation makes it a little shorter again, so that in the long
//! run it moves by a fraction of what is allocated. It evicts older content than a fixed window does
//! for the same number of runs. Adjacent blocks enter and leave in one step, as a run.

use super::queue::{Chain, IN_WINDOW, Queue};
use super::runs::{Run, RunSet};
use crate::error::Result;

/// One is this many parts.
const ONE: u64 = 1 << 32;

/// By which part of an allocation an elastic window becomes longer in one step; on simulated sessions,
/// from a sixteenth to all of it the results differ little.
const STEP: u32 = 4;
/// By which part it becomes shorter again. The less the fewer runs, and down to this hardly more hits are
/// lost for it.
const SHRINK: u32 = 16;
/// The shortest step, so that small allocations do not look for a run after every block.
const SHORTEST_STEP: u32 = 8;

/// The candidates of a windowed policy.
pub(super) struct Window {
    runs: RunSet,
    /// The last block of the window; the sentinel when the window is empty.
    last: u32,
    /// Number of blocks in the window.
    len: u32,
    /// Which part of the queue the window is, or is at most, in units of 1 / `ONE`.
    share: u64,
    elastic: bool,
    /// The runs of the allocation under way; kept to be filled again.
    picked: Vec<Run>,
}

/// Collects ids that come one by one into runs, as long as they are adjacent.
struct Gather(Option<Run>);

impl Gather {
    /// Adds an id, and gives back the run before it if the id does not belong to it.
    fn push(&mut self, id: u32) -> Option<Run> {
        match &mut self.0 {
            Some(run) if id == run.start + run.len => run.len += 1,
            Some(run) if id + 1 == run.start => {
                run.start = id;
                run.len += 1;
            }
            _ => return self.0.replace(Run { start: id, len: 1 }),
        }
        None
    }
}

impl Window {
    /// The window over a queue, with a fraction in (0, 1].
    pub(super) fn new(queue: &mut Queue, fraction: f64, elastic: bool) -> Result<Self> {
        let mut window = Window {
            runs: RunSet::new(queue.nodes.len())?,
            last: queue.sentinel(),
            len: 0,
            // At least one part: a fixed window is never empty while something is free.
            share: ((fraction * ONE as f64).ceil() as u64).clamp(1, ONE),
            elastic,
            picked: Vec::new(),
        };
        window.settle(queue);
        Ok(window)
    }

    /// Blocks of the queue that belong to a fixed window, and that an elastic one may have.
    fn limit(&self, queue: &Queue) -> u32 {
        // At most the number of free blocks, which is 32 bits.
        (u64::from(queue.free()) * self.share).div_ceil(ONE) as u32
    }

    /// Brings the window to its share of the queue, or below it.
    pub(super) fn settle(&mut self, queue: &mut Queue) {
        let limit = self.limit(queue);
        if self.len > limit {
            self.shrink(queue, limit);
        } else if !self.elastic {
            self.grow(queue, limit);
        }
    }

    /// Makes the window long enough for an allocation.
    fn stretch(&mut self, queue: &mut Queue, blocks: u32) {
        if self.elastic {
            let limit = self.limit(queue);
            let step = (blocks / STEP).max(SHORTEST_STEP);
            while self.len < limit && self.runs.best_fit(blocks).is_none() {
                self.grow(queue, limit.min(self.len + step));
            }
        }
        self.grow(queue, blocks);
    }

    fn grow(&mut self, queue: &mut Queue, target: u32) {
        let mut gather = Gather(None);
        while self.len < target {
            self.last = queue.next(self.last);
            queue.nodes[self.last as usize].flags |= IN_WINDOW;
            self.len += 1;
            if let Some(run) = gather.push(self.last) {
                self.runs.insert(run);
            }
        }
        if let Some(run) = gather.0 {
            self.runs.insert(run);
        }
    }

    fn shrink(&mut self, queue: &mut Queue, target: u32) {
        let mut gather = Gather(None);
        while self.len > target {
            let id = self.last;
            queue.nodes[id as usize].flags &= !IN_WINDOW;
            self.last = queue.prev(id);
            self.len -= 1;
            if let Some(run) = gather.push(id) {
                self.runs.remove(run);
            }
        }
        if let Some(run) = gather.0 {
            self.runs.remove(run);
        }
    }

    /// A chain has been put in front of the queue, and with that into the window.
    pub(super) fn prepended(&mut self, queue: &mut Queue, chain: Chain) {
        if chain.len == 0 {
            return;
        }
        if self.len == 0 {
            self.last = chain.last;
        }
        self.len += chain.len;
        let mut gather = Gather(None);
        let mut id = chain.first;
        for _ in 0..chain.len {
            let node = &mut queue.nodes[id as usize];
            node.flags |= IN_WINDOW;
            let next = node.next;
            if let Some(run) = gather.push(id) {
                self.runs.insert(run);
            }
            id = next;
        }
        if let Some(run) = gather.0 {
            self.runs.insert(run);
        }
    }

    /// Takes free blocks out of the queue wherever they are: those of `ids` whose `refs` is zero.
    /// Gives every one of `ids` a reference.
    pub(super) fn touch(&mut self, queue: &mut Queue, ids: &[u32]) {
        let mut gather = Gather(None);
        for &id in ids {
            let node = &mut queue.nodes[id as usize];
            node.refs += 1;
            if node.refs > 1 {
                continue;
            }
            if node.flags & IN_WINDOW != 0
                && let Some(run) = {
                    self.forget(queue, id);
                    gather.push(id)
                }
            {
                self.runs.remove(run);
            }
            queue.unlink(id);
        }
        if let Some(run) = gather.0 {
            self.runs.remove(run);
        }
        self.settle(queue);
    }

    /// Takes `out.len()` blocks, which must be there, gives each one reference, and returns the
    /// union of their flags. With `after`, first those that follow this block without a gap.
    pub(super) fn allocate(
        &mut self,
        queue: &mut Queue,
        after: Option<u32>,
        out: &mut [u32],
    ) -> u32 {
        let mut missing = out.len() as u32;
        let mut filled = 0;
        let mut flags = 0;
        if let Some(run) = after.and_then(|id| self.runs.starting_at(id + 1)) {
            let run = Run {
                start: run.start,
                len: run.len.min(missing),
            };
            self.runs.remove(run);
            flags |= self.hand_out(queue, run, &mut out[..run.len as usize]);
            filled = run.len as usize;
            missing -= run.len;
        }
        self.stretch(queue, missing);
        self.pick(missing);
        let picked = std::mem::take(&mut self.picked);
        for &run in &picked {
            let end = filled + run.len as usize;
            flags |= self.hand_out(queue, run, &mut out[filled..end]);
            filled = end;
        }
        self.picked = picked;
        if self.elastic {
            let shorter = self.len.saturating_sub(out.len() as u32 / SHRINK);
            self.shrink(queue, shorter);
        }
        self.settle(queue);
        flags
    }

    /// Chooses runs of `missing` blocks together, in the order of their ids, and takes them out of
    /// the run index.
    fn pick(&mut self, mut missing: u32) {
        self.picked.clear();
        while missing > 0 {
            let Some(run) = self.runs.best_fit(missing).or_else(|| self.runs.longest()) else {
                debug_assert!(false, "the window is smaller than its length says");
                return;
            };
            // The later part of a longer run: where a freed request lies in it, these are the last
            // blocks of its prefix, and what comes before them can still be hit.
            let len = run.len.min(missing);
            let run = Run {
                start: run.start + run.len - len,
                len,
            };
            self.runs.remove(run);
            self.picked.push(run);
            missing -= len;
        }
        self.picked.sort_unstable();
    }

    fn hand_out(&mut self, queue: &mut Queue, run: Run, out: &mut [u32]) -> u32 {
        let mut flags = 0;
        for (slot, id) in out.iter_mut().zip(run.start..) {
            *slot = id;
            self.forget(queue, id);
            queue.unlink(id);
            let node = &mut queue.nodes[id as usize];
            node.refs = 1;
            flags |= node.flags;
        }
        flags
    }

    /// A block of the window is about to be unlinked; its run is dealt with by the caller.
    fn forget(&mut self, queue: &mut Queue, id: u32) {
        queue.nodes[id as usize].flags &= !IN_WINDOW;
        if self.last == id {
            self.last = queue.prev(id);
        }
        self.len -= 1;
    }
}
