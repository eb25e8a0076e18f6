//! Blocks of a KV cache: who holds which, what can be evicted, and where known prefixes are.
//!
//! | file | idea |
//! |---|---|
//! | `pool` | [`BlockPool`]: allocate, free, touch; what can be asked |
//! | `cache` | its other half: look-ups, caching, evicting, resetting |
//! | `queue` | blocks, reference counts, and the free queue in eviction order |
//! | `window`, `runs`, `bits` | the windowed policy, the runs it chooses from, the sets behind them |
//! | `index`, `table`, `key` | the prefix index |
//! | `events`, `stats` | what the outside hears |
//!
//! The semantics are those of the block pool of vLLM 0.32: ids from 0, block 0 the *null block* that
//! is never allocated; free blocks in a queue whose order is the order of eviction; a freed block goes
//! to the front of it when it holds nothing that could be hit, and to its end when it does; several
//! blocks may hold the same content. With [`Policy::Lru`] the same calls give the same ids in the
//! same order and the same events. [`Policy::Windowed`] differs only in which blocks an allocation
//! gets. What vLLM's pool lets pass in silence (a double free, say) is an error here, and an
//! operation that fails has changed nothing.
//!
//! Every operation takes an array of blocks, costs O(1) per block (windowed: and O(log n) per run),
//! and allocates no memory once the pool has grown to its load. This room uses [`crate::error`] and
//! nothing else of the library, and a pool is a plain value: sharing it is up to its owner.

mod bits;
mod cache;
mod events;
mod index;
mod key;
mod memory;
mod pool;
mod queue;
mod runs;
mod stats;
mod table;
mod window;

pub use cache::{CacheFull, CachePartial};
pub use events::{Event, EventBatch, Stored};
pub use pool::{BlockPool, MAX_BLOCKS, MAX_HASH, NULL_BLOCK, Options, Policy};
pub use queue::{HASHED, Node};
pub use stats::Stats;

/// No entry, no run.
const NONE: u32 = u32::MAX;
