//! What `kv_cache_server` does with a message, without the sockets: bytes in, bytes out.
//!
//! | file | idea |
//! |---|---|
//! | `service` | [`Service`]: all pools and sessions; a request's bytes to a reply's bytes |
//! | `operation` | one operation on one pool |
//! | `session`, `holdings`, `process` | who holds what, and how it comes back when they end |
//! | `pool` | one pool: who has opened it, what becomes of its events |
//! | `convert`, [`wire`] | the messages of proto/kv_cache.proto, and the words of the block pool |
//! | `metrics` | numbers as text for Prometheus |
//!
//! The block pool counts how often a block is held, and not by whom. This room does: every hold belongs
//! to a session, so that it can be given back when its client dies, and nobody gives back what is
//! somebody else's. Time comes in as an argument, and sockets, signals and files stay in the program
//! (`src/bin/kv_cache_server`), so that all of it can be tested and fuzzed as plain functions. It uses
//! [`crate::block_pool`] and the words.

mod convert;
mod holdings;
mod metrics;
mod operation;
mod pool;
mod process;
mod service;
mod session;
pub mod wire;

use std::time::Duration;

pub(crate) use convert::{content, error_of, event_batch, open_pool, pool_stats};
pub use pool::Publishing;
pub(crate) use process::Process;
pub use service::{Published, Service};

/// The name of the pool that the server starts with, and of requests that name none.
pub const DEFAULT_POOL: &str = "default";
/// Longest name of a pool or a session in bytes.
pub const MAX_NAME: usize = 128;
/// Longest request id in bytes.
pub const MAX_REQUEST_ID: usize = 256;
/// Most operations of a batch.
pub const MAX_BATCH: usize = 4096;

/// Holds of one session in one pool. A client that counts up for ever is stopped here.
const MAX_HOLDS: usize = 1 << 24;
/// Requests of one session in one pool that hold something.
const MAX_REQUESTS: usize = 1 << 16;
/// Keys of one block.
const MAX_KEYS: usize = 256;
/// Reused blocks that wait for somebody to ask for them.
const MAX_REUSED: usize = 1 << 20;

/// What clients can make the server spend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest request in bytes. The socket enforces it; here it is only told to clients.
    pub request_bytes: usize,
    /// Most block ids in the answer to one request.
    pub blocks_per_call: usize,
    /// Most sessions at a time.
    pub sessions: usize,
    /// Most pools at a time.
    pub pools: usize,
    /// Most blocks of all pools together.
    pub blocks: u64,
    /// Silence after which a session ends, when its client does not say.
    pub session_timeout: Duration,
    /// The longest silence that a client can ask for.
    pub max_session_timeout: Duration,
    /// Whether a client may shut the server down.
    pub shutdown: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            request_bytes: 4 << 20,
            blocks_per_call: 1 << 20,
            sessions: 1024,
            pools: 64,
            blocks: 1 << 25,
            session_timeout: Duration::from_secs(30),
            max_session_timeout: Duration::from_secs(24 * 60 * 60),
            shutdown: true,
        }
    }
}
