//! The pool: allocating, freeing and touching blocks.

use super::events::EventBatch;
use super::index::Index;
use super::queue::{Chain, HASHED, Node, Queue, WATCHED};
use super::stats::Stats;
use super::window::Window;
use crate::error::{Error, Result, Status, bail};

/// Most blocks a pool can have.
pub const MAX_BLOCKS: u32 = 1 << 24;
/// Longest hash in bytes.
pub const MAX_HASH: usize = 255;
/// The block that stands for "no block" in block tables. It is never allocated, freed or cached.
pub const NULL_BLOCK: u32 = 0;

/// Bytes of events kept when the options do not say.
const EVENT_BYTES: usize = 64 << 20;

/// Which free blocks an allocation gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// The first of the queue, as vLLM does.
    Lru,
    /// Of the oldest `fraction` of the queue (at least as many as are asked for) the smallest run
    /// of adjacent ids that fits, or else the longest ones; in the order of their ids.
    Windowed {
        /// Greater than 0, at most 1.
        fraction: f64,
    },
    /// The same, of the oldest part of the queue that has proved long enough to find a run that
    /// fits, and that is never more than `limit` of it (or than what is asked for).
    Elastic {
        /// Greater than 0, at most 1.
        limit: f64,
    },
}

impl Policy {
    /// The best that is known (docs/block-pool.md has the figures): elastic where there is a prefix
    /// cache to be careful of, the whole queue where there is none.
    pub fn of_choice(caching: bool, blocks: u32) -> Self {
        if caching {
            Policy::Elastic {
                limit: Self::limit_of_choice(blocks),
            }
        } else {
            Policy::Windowed { fraction: 1.0 }
        }
    }

    /// The policy with this name (one of [`Policy::NAMES`]). A fraction of 0 is its default in
    /// a pool of `blocks`.
    pub fn named(name: &str, fraction: f64, caching: bool, blocks: u32) -> Result<Self> {
        let or = |default| {
            if fraction == 0.0 { default } else { fraction }
        };
        Ok(match (name, caching) {
            ("lru", _) => Policy::Lru,
            ("windowed", true) => Policy::Windowed { fraction: or(0.1) },
            ("windowed", false) | ("default", false) => Policy::Windowed { fraction: or(1.0) },
            ("elastic", false) => Policy::Elastic { limit: or(1.0) },
            ("elastic", true) | ("default", true) => Policy::Elastic {
                limit: or(Self::limit_of_choice(blocks)),
            },
            _ => {
                return Err(Error::invalid(format!(
                    "policy {name:?}: it is one of {}",
                    Self::NAMES.join(", ")
                )));
            }
        })
    }

    /// What [`Policy::named`] knows, in the order of their numbers outside.
    pub const NAMES: [&str; 4] = ["default", "lru", "windowed", "elastic"];

    /// The limit of an elastic window with a prefix cache: some 1,100 blocks of a pool of so many, for
    /// it has to reach over a number of requests, and these do not grow with the pool.
    pub fn limit_of_choice(blocks: u32) -> f64 {
        (1100.0 / f64::from(blocks.max(1))).clamp(0.02, 0.12)
    }
}

/// How to make a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Number of blocks, the null block included; 1 to [`MAX_BLOCKS`].
    pub blocks: u32,
    /// Whether there is a prefix index.
    pub caching: bool,
    /// Which free blocks an allocation gets.
    pub policy: Policy,
    /// Whether events are recorded.
    pub events: bool,
    /// Bytes of events that are kept for [`BlockPool::take_events`]. When more would be needed, all
    /// are thrown away, and the next batch says how many those were.
    pub event_bytes: usize,
    /// Frees and touches pass over the null block instead of refusing it. Block tables with gaps
    /// (sliding windows) can then be given as they are.
    pub tolerate_null: bool,
}

impl Options {
    /// The defaults: [`Policy::of_choice`]; no events; the null block is refused.
    pub fn new(blocks: u32, caching: bool) -> Self {
        Options {
            blocks,
            caching,
            policy: Policy::of_choice(caching, blocks),
            events: false,
            event_bytes: EVENT_BYTES,
            tolerate_null: false,
        }
    }
}

/// A fixed number of blocks with reference counts, a free queue in eviction order, and a prefix
/// index. Not shared between threads by itself; put it behind a lock.
pub struct BlockPool {
    pub(super) queue: Queue,
    pub(super) window: Option<Window>,
    pub(super) index: Option<Index>,
    pub(super) events: Option<EventBatch>,
    pub(super) event_bytes: usize,
    pub(super) stats: Stats,
    tolerate_null: bool,
    /// Watched blocks that were handed out again; see [`BlockPool::take_reused`].
    pub(super) reused: Vec<u32>,
}

impl BlockPool {
    /// A pool whose blocks are all free, in the order of their ids.
    ///
    /// # Errors
    /// A number of blocks or a fraction out of range; no memory.
    pub fn new(options: &Options) -> Result<Self> {
        if !(1..=MAX_BLOCKS).contains(&options.blocks) {
            return Err(Error::invalid(format!(
                "a pool of {} blocks: it can have 1 to {MAX_BLOCKS}",
                options.blocks
            )));
        }
        let mut queue = Queue::new(options.blocks)?;
        let window = match options.policy {
            Policy::Lru => None,
            Policy::Windowed { fraction } => Some((fraction, false)),
            Policy::Elastic { limit } => Some((limit, true)),
        };
        if let Some((fraction, _)) = window
            && !(fraction > 0.0 && fraction <= 1.0)
        {
            return Err(Error::invalid(format!(
                "a window of {fraction} of the free blocks: it is greater than 0 and at most 1"
            )));
        }
        let window = window.map(|(fraction, elastic)| Window::new(&mut queue, fraction, elastic));
        Ok(BlockPool {
            window: window.transpose()?,
            queue,
            index: options
                .caching
                .then(|| Index::new(options.blocks))
                .transpose()?,
            events: options.events.then(EventBatch::default),
            event_bytes: options.event_bytes,
            stats: Stats {
                blocks: options.blocks.into(),
                ..Stats::default()
            },
            tolerate_null: options.tolerate_null,
            reused: Vec::new(),
        })
    }

    /// Takes `out.len()` free blocks, each then held once, and forgets what they had cached.
    ///
    /// With [`Policy::Lru`] in the order of eviction, with the others in the order of their ids.
    /// With `after`, the last block of a request that grows, they give first the candidates that
    /// follow it without a gap.
    ///
    /// # Errors
    /// [`Status::ResourceExhausted`] if fewer are free: nothing is changed, nothing written.
    pub fn allocate(&mut self, after: Option<u32>, out: &mut [u32]) -> Result<()> {
        if let Some(id) = after {
            self.known(id)?;
        }
        if out.len() > self.num_free() as usize {
            self.stats.refused_allocations += 1;
            bail!(
                Status::ResourceExhausted,
                "cannot allocate {} blocks: {} of {} are free",
                out.len(),
                self.num_free(),
                self.num_blocks() - 1
            );
        }
        if out.is_empty() {
            return Ok(());
        }
        let flags = match &mut self.window {
            None => self.queue.pop_front(out),
            Some(window) => window.allocate(&mut self.queue, after, out),
        };
        self.stats.allocations += 1;
        self.stats.allocated_blocks += out.len() as u64;
        self.stats.allocated_runs += 1 + out.windows(2).filter(|w| w[1] != w[0] + 1).count() as u64;
        if flags & (HASHED | WATCHED) != 0 {
            self.reuse(out);
        }
        Ok(())
    }

    /// Gives back one reference of each block, which may appear several times. Those that nobody
    /// holds any more become free, in this order: in front of the queue without cached content, at
    /// its end with it. Give the last block of a prompt first, so that prefixes are evicted from
    /// their ends.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] for an unknown block or the null block, [`Status::InvalidState`]
    /// for one that is free: nothing is changed.
    pub fn free(&mut self, ids: &[u32]) -> Result<()> {
        let (first, last) = self.release(ids, HASHED)?;
        self.queue.prepend(first);
        self.queue.append(last);
        self.settle(first);
        self.stats.freed_blocks += u64::from(first.len + last.len);
        Ok(())
    }

    /// Like [`BlockPool::free`], for blocks that somebody still reads, without holding them, until
    /// they are handed out again: all go to the end of the queue, and [`BlockPool::take_reused`]
    /// tells when they were.
    ///
    /// # Errors
    /// As for [`BlockPool::free`].
    pub fn unpin(&mut self, ids: &[u32]) -> Result<()> {
        let (first, last) = self.release(ids, 0)?;
        debug_assert_eq!(first.len, 0);
        for &id in ids.iter().filter(|&&id| id != NULL_BLOCK) {
            self.queue.nodes[id as usize].flags |= WATCHED;
        }
        self.queue.append(last);
        self.settle(Chain::EMPTY);
        self.stats.freed_blocks += u64::from(last.len);
        Ok(())
    }

    /// Holds each block once more, which may appear several times; free ones leave the queue.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] for an unknown block or the null block: nothing is changed.
    pub fn touch(&mut self, ids: &[u32]) -> Result<()> {
        let room = u32::MAX - u32::try_from(ids.len()).unwrap_or(u32::MAX);
        for &id in ids {
            match self.queue.nodes.get(id as usize) {
                Some(node) if id < self.num_blocks() && id != NULL_BLOCK => {
                    if node.refs > room {
                        bail!(
                            Status::ResourceExhausted,
                            "block {id} is held {} times",
                            node.refs
                        );
                    }
                }
                _ if id == NULL_BLOCK && self.tolerate_null => {}
                _ => return Err(self.refused(id)),
            }
        }
        let before = self.num_free();
        match &mut self.window {
            Some(window) => window.touch(&mut self.queue, ids),
            None => self.queue.touch(ids),
        }
        // The null block is not counted, however often it was passed over.
        self.queue.nodes[NULL_BLOCK as usize].refs = 1;
        self.stats.revived_blocks += u64::from(before - self.num_free());
        Ok(())
    }

    /// Number of blocks, the null block included.
    pub fn num_blocks(&self) -> u32 {
        self.queue.sentinel()
    }

    /// Number of blocks that can be allocated.
    pub fn num_free(&self) -> u32 {
        self.queue.free()
    }

    /// The part of the blocks that is held, from 0 to 1; the null block does not count.
    pub fn usage(&self) -> f64 {
        match self.num_blocks() - 1 {
            0 => 0.0,
            usable => 1.0 - f64::from(self.num_free()) / f64::from(usable),
        }
    }

    /// How many times a block is held.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] for an unknown block or the null block, which is not counted.
    pub fn ref_count(&self, id: u32) -> Result<u32> {
        self.countable(id)?;
        Ok(self.queue.nodes[id as usize].refs)
    }

    /// Whether a holder may write to a block: it is held once, and nothing of it is cached.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] for an unknown block.
    pub fn is_writable(&self, id: u32) -> Result<bool> {
        self.known(id)?;
        let node = &self.queue.nodes[id as usize];
        Ok(id != NULL_BLOCK && node.refs == 1 && node.flags & HASHED == 0)
    }

    /// The blocks as they stand in memory, and behind them the sentinel, through which the queue is
    /// circular. They keep their place for as long as there is the pool.
    pub fn nodes(&self) -> &[Node] {
        &self.queue.nodes
    }

    /// The free blocks in eviction order.
    pub fn free_blocks(&self) -> impl Iterator<Item = u32> + '_ {
        self.queue.iter()
    }

    /// Blocks given to [`BlockPool::unpin`] that have been handed out since, or lost their content
    /// to a reset; in that order.
    pub fn take_reused(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.reused)
    }

    /// Like [`BlockPool::take_reused`], as many as there is room for. Returns how many were written;
    /// the others stay.
    pub fn drain_reused(&mut self, out: &mut [u32]) -> usize {
        let n = out.len().min(self.reused.len());
        out[..n].copy_from_slice(&self.reused[..n]);
        self.reused.drain(..n);
        n
    }

    /// How many [`BlockPool::drain_reused`] could give.
    pub(crate) fn num_reused(&self) -> usize {
        self.reused.len()
    }

    /// The events since the last call; none if the pool does not record them.
    pub fn take_events(&mut self) -> EventBatch {
        self.events.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Like [`BlockPool::take_events`], into a batch whose memory is used again.
    pub fn swap_events(&mut self, batch: &mut EventBatch) {
        batch.reset();
        if let Some(events) = &mut self.events {
            std::mem::swap(events, batch);
        }
    }

    /// Counters and current numbers.
    pub fn stats(&self) -> Stats {
        let index = self.index.as_ref();
        Stats {
            free: self.num_free().into(),
            cached_blocks: index.map_or(0, |i| i.cached_blocks().into()),
            cached_keys: index.map_or(0, |i| i.cached_keys() as u64),
            ..self.stats
        }
    }

    /// Gives back one reference of each block and links those that become free: with a flag of
    /// `last` in the second chain, without in the first (`last` zero: all in the second).
    fn release(&mut self, ids: &[u32], last: u32) -> Result<(Chain, Chain)> {
        let blocks = self.num_blocks();
        let nodes = &mut self.queue.nodes[..];
        let (mut front, mut back) = (Chain::EMPTY, Chain::EMPTY);
        for (i, &id) in ids.iter().enumerate() {
            if id == NULL_BLOCK && self.tolerate_null {
                continue;
            }
            if id == NULL_BLOCK || id >= blocks || nodes[id as usize].refs == 0 {
                // What was counted down is counted up again; links of held blocks mean nothing.
                for &id in ids[..i].iter().filter(|&&id| id != NULL_BLOCK) {
                    nodes[id as usize].refs += 1;
                }
                return Err(self.refused(id));
            }
            let node = &mut nodes[id as usize];
            node.refs -= 1;
            if node.refs == 0 {
                let chain = if last == 0 || node.flags & last != 0 {
                    &mut back
                } else {
                    &mut front
                };
                chain.push(nodes, id);
            }
        }
        Ok((front, back))
    }

    fn settle(&mut self, prepended: Chain) {
        if let Some(window) = &mut self.window {
            window.prepended(&mut self.queue, prepended);
            window.settle(&mut self.queue);
        }
    }

    /// Blocks are handed out: what they had cached goes, and who watches them is told.
    fn reuse(&mut self, ids: &[u32]) {
        for (i, &id) in ids.iter().enumerate() {
            if let Some(index) = &self.index {
                // What the next ones wait for: the entry first, then the slot that it names.
                ids.get(i + 8).inspect(|&&id| index.prefetch_entry(id));
                ids.get(i + 4).inspect(|&&id| index.prefetch_slot(id));
            }
            let flags = self.queue.nodes[id as usize].flags;
            if flags & WATCHED != 0 {
                self.reused.push(id);
                self.queue.nodes[id as usize].flags &= !WATCHED;
            }
            if flags & HASHED != 0 {
                self.drop_keys(id);
            }
        }
    }

    /// Where events go, with room made by force if need be.
    pub(super) fn event_log(&mut self) -> Option<&mut EventBatch> {
        let events = self.events.as_mut()?;
        events.make_room(self.event_bytes, &mut self.stats);
        Some(events)
    }

    /// Refuses ids that no block has.
    pub(super) fn known(&self, id: u32) -> Result<()> {
        if id >= self.num_blocks() {
            return Err(self.refused(id));
        }
        Ok(())
    }

    /// Refuses ids that no block has, and the null block.
    pub(super) fn countable(&self, id: u32) -> Result<()> {
        if id == NULL_BLOCK || id >= self.num_blocks() {
            return Err(self.refused(id));
        }
        Ok(())
    }

    /// Why a block cannot be what it was said to be: unknown, the null block, or free.
    #[cold]
    fn refused(&self, id: u32) -> Error {
        if id >= self.num_blocks() {
            return Error::invalid(format!(
                "there is no block {id}: the pool has {} (0 to {})",
                self.num_blocks(),
                self.num_blocks() - 1
            ));
        }
        if id == NULL_BLOCK {
            return Error::invalid("block 0 is the null block, which nobody holds");
        }
        Error::new(
            Status::InvalidState,
            format!("block {id} is free already, or is given back more often than it is held"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_do_not_wrap_around() {
        let mut pool = BlockPool::new(&Options::new(4, true)).unwrap();
        let mut id = [0];
        pool.allocate(None, &mut id).unwrap();
        // As if it had been touched so often, which would take a while.
        pool.queue.nodes[id[0] as usize].refs = u32::MAX - 1;
        let e = pool.touch(&[id[0], id[0]]).unwrap_err();
        assert_eq!(e.status(), Status::ResourceExhausted);
        assert!(e.message().contains("held 4294967294 times"), "{e}");
        pool.touch(&id).unwrap();
        assert_eq!(pool.ref_count(id[0]).unwrap(), u32::MAX);
        assert!(pool.touch(&id).is_err());
    }
}
