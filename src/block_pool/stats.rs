//! Counters.

/// What a pool has done since it was made, and what it holds. Counters only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
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
    /// Runs of adjacent ids they came in. `allocated_blocks / allocated_runs` is the mean length.
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
    /// Events thrown away because nobody took them; see [`super::Options::event_bytes`].
    pub lost_events: u64,
}
