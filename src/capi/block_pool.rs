//! Block pool: allocating, freeing and touching blocks.

use std::sync::{Arc, Mutex};

use once_cell::sync::Lazy;

use super::guard::guard;
use super::handle::Table;
use super::input::{Plain, bounded, flag, nonzero, options, out};
use super::logging;
use super::status::kvf_status;
use crate::block_pool::{BlockPool, HASHED, Node, Options, Policy, Stats};
use crate::error::{Error, Result};
use crate::sync::lock;

/// A fixed number of KV-cache blocks, with reference counts, a free queue in eviction order,
/// and an index of cached prefixes. All zero is the null handle.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct kvf_block_pool {
    /// Opaque. Zero is null.
    pub id: u64,
}

/// The best that is known: `KVF_POLICY_ELASTIC` where there is a prefix cache to be careful of,
/// `KVF_POLICY_WINDOWED` over the whole queue where there is none.
pub const KVF_POLICY_DEFAULT: u32 = 0;
/// An allocation gets the first blocks of the free queue, as in vLLM.
pub const KVF_POLICY_LRU: u32 = 1;
/// It gets, of a fixed part of the queue, the smallest run of adjacent ids that fits, or else
/// the longest ones; in the order of their ids. Few, long runs make few byte ranges of a
/// transfer.
pub const KVF_POLICY_WINDOWED: u32 = 2;
/// The same, of the oldest part of the queue that has proved long enough, up to a limit.
pub const KVF_POLICY_ELASTIC: u32 = 3;

/// Most ids in one call. A longer array is taken for a mistake.
pub const KVF_BLOCK_POOL_MAX_IDS: u64 = 67_108_864;

/// How to make a pool. Start from `kvf_block_pool_options_default()` and set `blocks`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_block_pool_options {
    /// `sizeof(kvf_block_pool_options)`.
    pub struct_size: u32,
    /// Number of blocks, 1 to 16,777,216. Their ids are 0 to `blocks - 1`. Block 0 is the null
    /// block: it stands for "no block" in block tables and is never allocated.
    pub blocks: u32,
    /// `KVF_POLICY_…`.
    pub policy: u32,
    /// 1: there is an index of cached prefixes.
    pub caching: u8,
    /// 1: events are recorded.
    pub events: u8,
    /// 1: frees and touches pass over the null block instead of refusing it.
    pub tolerate_null: u8,
    /// Zero.
    pub reserved: u8,
    /// The part of the free queue that the policy chooses from, greater than 0 and at most 1;
    /// 0 is a good one: without caching 1; with it 0.1 (windowed), or 1,100 of `blocks`, but not
    /// less than 0.02 and not more than 0.12 (elastic).
    pub fraction: f64,
    /// Bytes of events that are kept until they are taken; 0 is 64 MiB. When more would be
    /// needed all are thrown away, and the next list says how many those were.
    pub event_bytes: u64,
}

// SAFETY: integers and a floating-point number only.
unsafe impl Plain for kvf_block_pool_options {
    const FIRST_SIZE: usize = 32;
}

/// What a pool has done since it was made, and what it holds. Counters only grow.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_block_pool_stats {
    /// Blocks, the null block included.
    pub blocks: u64,
    /// Blocks that can be allocated now.
    pub free: u64,
    /// Blocks with an entry in the prefix index.
    pub cached_blocks: u64,
    /// Different keys (hash and group) in the prefix index.
    pub cached_keys: u64,
    /// Allocations that succeeded, those of no blocks excepted.
    pub allocations: u64,
    /// Allocations that were refused because too few blocks were free.
    pub refused_allocations: u64,
    /// Blocks handed out.
    pub allocated_blocks: u64,
    /// Runs of adjacent ids they came in.
    pub allocated_runs: u64,
    /// Blocks that went back to the queue.
    pub freed_blocks: u64,
    /// Blocks of the queue that were taken out of it by a touch.
    pub revived_blocks: u64,
    /// Hashes looked up; a chain counts up to and including the first that misses.
    pub lookups: u64,
    /// Those that were found in every group asked for.
    pub hits: u64,
    /// Keys entered into the prefix index.
    pub stored_keys: u64,
    /// Keys removed from it, except by a reset.
    pub removed_keys: u64,
    /// Successful resets.
    pub resets: u64,
    /// Events thrown away because nobody took them.
    pub lost_events: u64,
}

impl From<Stats> for kvf_block_pool_stats {
    fn from(s: Stats) -> Self {
        kvf_block_pool_stats {
            blocks: s.blocks,
            free: s.free,
            cached_blocks: s.cached_blocks,
            cached_keys: s.cached_keys,
            allocations: s.allocations,
            refused_allocations: s.refused_allocations,
            allocated_blocks: s.allocated_blocks,
            allocated_runs: s.allocated_runs,
            freed_blocks: s.freed_blocks,
            revived_blocks: s.revived_blocks,
            lookups: s.lookups,
            hits: s.hits,
            stored_keys: s.stored_keys,
            removed_keys: s.removed_keys,
            resets: s.resets,
            lost_events: s.lost_events,
        }
    }
}

/// Something of the block is in the prefix index.
pub const KVF_BLOCK_CACHED: u32 = 1;

/// A block as it stands in the memory of its pool; see `kvf_block_pool_nodes()`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_block_node {
    /// The block before it in the free queue. Means nothing while the block is held.
    pub prev: u32,
    /// The block behind it.
    pub next: u32,
    /// How many times it is held.
    pub refs: u32,
    /// `KVF_BLOCK_CACHED`, and bits that mean nothing outside.
    pub flags: u32,
}

const _: () = assert!(
    size_of::<kvf_block_node>() == size_of::<Node>()
        && std::mem::offset_of!(Node, prev) == 0
        && std::mem::offset_of!(Node, next) == 4
        && std::mem::offset_of!(Node, refs) == 8
        && std::mem::offset_of!(Node, flags) == 12
        && KVF_BLOCK_CACHED == HASHED
);

static POOLS: Lazy<Table<Mutex<BlockPool>>> = Lazy::new(|| Table::new(9, "block pool"));

/// Runs `body` with the pool behind a handle, alone.
pub(super) fn with<T>(
    pool: kvf_block_pool,
    body: impl FnOnce(&mut BlockPool) -> Result<T>,
) -> Result<T> {
    body(&mut lock(&*POOLS.get(pool.id)?))
}

/// Makes a pool whose blocks are all free. A pool of 100,000 blocks takes 3 MB, with caching
/// 12 MB.
///
/// @param options  Not NULL: a pool has no default size.
/// @param pool     Receives the handle; end it with `kvf_block_pool_destroy()`. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_block_pool_create(
    options: *const kvf_block_pool_options,
    pool: *mut kvf_block_pool,
) -> kvf_status {
    guard(|| {
        logging::init();
        // SAFETY: the caller's contract, here and in every block below of this file.
        let (options, pool) = unsafe { (pool_options(options)?, out(pool, "pool")?) };
        let made = Arc::new(Mutex::new(BlockPool::new(&options)?));
        pool.write(kvf_block_pool {
            id: POOLS.insert(made)?,
        });
        Ok(())
    })
}

/// Ends a pool. Calls under way in other threads come to their end first. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn kvf_block_pool_destroy(pool: kvf_block_pool) -> kvf_status {
    guard(|| POOLS.remove(pool.id).map(drop))
}

/// Takes `len` free blocks, each then held once, and forgets what they had cached.
///
/// @param ids  Receives `len` ids: with `KVF_POLICY_LRU` in eviction order, else ascending.
/// @return `KVF_ERR_RESOURCE_EXHAUSTED` if fewer are free: nothing is changed. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_block_pool_allocate(
    pool: kvf_block_pool,
    ids: *mut u32,
    len: usize,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let ids = unsafe { outputs(ids, len, "ids") }?;
        with(pool, |p| p.allocate(None, ids))
    })
}

/// The same for a request that grows: if the policy allows, first the blocks that follow its
/// last one without a gap.
///
/// @param after  The request's last block. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_block_pool_allocate_after(
    pool: kvf_block_pool,
    after: u32,
    ids: *mut u32,
    len: usize,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let ids = unsafe { outputs(ids, len, "ids") }?;
        with(pool, |p| p.allocate(Some(after), ids))
    })
}

/// Gives back one reference of each block; one may appear several times. Those that nobody
/// holds any more become free, in this order: in front of the queue without cached content, at
/// its end with it. Give the last block of a prompt first, so that prefixes are evicted from
/// their ends.
///
/// @return `KVF_ERR_INVALID_STATE` for a block that is free already (or appears more often than
///         it is held), `KVF_ERR_INVALID_ARGUMENT` for an unknown one or the null block:
///         nothing is changed. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_block_pool_free(
    pool: kvf_block_pool,
    ids: *const u32,
    len: usize,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let ids = unsafe { inputs(ids, len, "ids") }?;
        with(pool, |p| p.free(ids))
    })
}

/// Like `kvf_block_pool_free()`, for blocks that somebody still reads, without holding them,
/// until they are handed out again: all go to the end of the queue, and
/// `kvf_block_pool_take_reused()` tells when they were. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_block_pool_unpin(
    pool: kvf_block_pool,
    ids: *const u32,
    len: usize,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let ids = unsafe { inputs(ids, len, "ids") }?;
        with(pool, |p| p.unpin(ids))
    })
}

/// Holds each block once more; one may appear several times. Free ones leave the queue.
///
/// @return `KVF_ERR_INVALID_ARGUMENT` for an unknown block or the null block: nothing is
///         changed. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_block_pool_touch(
    pool: kvf_block_pool,
    ids: *const u32,
    len: usize,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let ids = unsafe { inputs(ids, len, "ids") }?;
        with(pool, |p| p.touch(ids))
    })
}

/// How many times each block is held.
///
/// @param counts  Receives `len` numbers.
/// @return `KVF_ERR_INVALID_ARGUMENT` for an unknown block or the null block. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_block_pool_ref_counts(
    pool: kvf_block_pool,
    ids: *const u32,
    len: usize,
    counts: *mut u32,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (ids, counts) = unsafe { (inputs(ids, len, "ids")?, outputs(counts, len, "counts")?) };
        with(pool, |p| {
            let known: Vec<u32> = ids
                .iter()
                .map(|&id| p.ref_count(id))
                .collect::<Result<_>>()?;
            counts.copy_from_slice(&known);
            Ok(())
        })
    })
}

/// Whether a holder may write to a block: it is held once, and nothing of it is cached.
///
/// @param writable  Receives 1 or 0. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_block_pool_is_writable(
    pool: kvf_block_pool,
    id: u32,
    writable: *mut u8,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let writable = unsafe { out(writable, "writable") }?;
        writable.write(with(pool, |p| p.is_writable(id))?.into());
        Ok(())
    })
}

/// Number of blocks that can be allocated.
///
/// @param free  Receives it. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_block_pool_num_free(
    pool: kvf_block_pool,
    free: *mut u32,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let free = unsafe { out(free, "free") }?;
        free.write(with(pool, |p| Ok(p.num_free()))?);
        Ok(())
    })
}

/// The free blocks in eviction order.
///
/// @param ids       Receives the first `capacity` of them, or fewer if there are fewer.
/// @param num_free  Receives how many there are. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_block_pool_free_blocks(
    pool: kvf_block_pool,
    ids: *mut u32,
    capacity: usize,
    num_free: *mut usize,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (ids, num_free) =
            unsafe { (outputs(ids, capacity, "ids")?, out(num_free, "num_free")?) };
        num_free.write(with(pool, |p| {
            ids.iter_mut()
                .zip(p.free_blocks())
                .for_each(|(slot, id)| *slot = id);
            Ok(p.num_free() as usize)
        })?);
        Ok(())
    })
}

/// Where the blocks of a pool are in memory, for a program that asks about them more often than
/// it calls. `blocks` nodes, that of the null block first, and behind them one more: its `next`
/// is the first free block, its `prev` the last, its `refs` how many there are; the queue is
/// circular through it.
///
/// Never write to them. Read them while no call on this pool is under way, and not after it
/// was destroyed.
///
/// @param nodes  Receives the address. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_block_pool_nodes(
    pool: kvf_block_pool,
    nodes: *mut *const kvf_block_node,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let nodes = unsafe { out(nodes, "nodes") }?;
        nodes.write(with(pool, |p| Ok(p.nodes().as_ptr().cast()))?);
        Ok(())
    })
}

/// Blocks given to `kvf_block_pool_unpin()` that have been handed out since, or lost their
/// content to a reset; in that order, each once.
///
/// @param ids    Receives up to `capacity` of them.
/// @param taken  Receives how many were written; call again while it is `capacity`. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_block_pool_take_reused(
    pool: kvf_block_pool,
    ids: *mut u32,
    capacity: usize,
    taken: *mut usize,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (ids, taken) = unsafe { (outputs(ids, capacity, "ids")?, out(taken, "taken")?) };
        taken.write(with(pool, |p| Ok(p.drain_reused(ids)))?);
        Ok(())
    })
}

/// Counters and current numbers.
///
/// @param stats  Receives them. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_block_pool_stats_get(
    pool: kvf_block_pool,
    stats: *mut kvf_block_pool_stats,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let stats = unsafe { out(stats, "stats") }?;
        stats.write(with(pool, |p| Ok(p.stats()))?.into());
        Ok(())
    })
}

/// Ids from C.
///
/// # Safety
/// As for [`bounded`].
pub(super) unsafe fn inputs<'a>(ptr: *const u32, len: usize, what: &str) -> Result<&'a [u32]> {
    // SAFETY: the same contract.
    unsafe { bounded(ptr, len, KVF_BLOCK_POOL_MAX_IDS as usize, what) }
}

/// Where ids go. Values that C has not written yet are never read.
///
/// # Safety As for [`bounded`], and the memory may be written to and is used by nobody else
/// during the call.
pub(super) unsafe fn outputs<'a>(ptr: *mut u32, len: usize, what: &str) -> Result<&'a mut [u32]> {
    // SAFETY: the same contract; this is for its checks.
    if unsafe { bounded(ptr.cast_const(), len, KVF_BLOCK_POOL_MAX_IDS as usize, what) }?.is_empty()
    {
        return Ok(&mut []);
    }
    // SAFETY: checked just now; writable and unaliased by contract. What the memory holds came from
    // outside, and any 32 bits are a value.
    Ok(unsafe { std::slice::from_raw_parts_mut(ptr, len) })
}

/// # Safety
/// As for [`options`].
pub(super) unsafe fn pool_options(ptr: *const kvf_block_pool_options) -> Result<Options> {
    if ptr.is_null() {
        return Err(Error::invalid(
            "options is NULL, but a pool has no default size",
        ));
    }
    // SAFETY: by contract.
    let o = unsafe { options(ptr, "options") }?;
    if o.reserved != 0 {
        return Err(Error::invalid(format!(
            "options.reserved is {}",
            o.reserved
        )));
    }
    let caching = flag(o.caching, "options.caching")?;
    let defaults = Options::new(o.blocks, caching);
    let Some(name) = Policy::NAMES.get(o.policy as usize) else {
        return Err(Error::invalid(format!(
            "options.policy is {}; it is 0 to 3",
            o.policy
        )));
    };
    let policy = Policy::named(name, o.fraction, caching, o.blocks)?;
    Ok(Options {
        policy,
        events: flag(o.events, "options.events")?,
        tolerate_null: flag(o.tolerate_null, "options.tolerate_null")?,
        event_bytes: nonzero(o.event_bytes).map_or(defaults.event_bytes, |n| n as usize),
        ..defaults
    })
}
