//! The request-level protocol between a prefill and a decode engine: who keeps which blocks for whom
//! and for how long, who fetches them, and what happens when something goes wrong.
//!
//! An engine has one [`scheduler`] half, in the process that schedules requests, and a [`worker`] half
//! in each rank. What passes between them is one opaque byte string per engine step ([`step`]), so that
//! an engine in any language can carry it. What passes between *engines* is what stock vLLM's
//! `NixlConnector` says ([`wire`]), so that either side of a running fleet can be changed over alone.
//!
//! ```text
//!   prefill engine (producer)                             decode engine (consumer)
//!  ┌──────────────────────────┐  kv_transfer_params (HTTP) ┌──────────────────────────┐
//!  │ scheduler half           │ ─────── via router ──────▶ │ scheduler half           │
//!  │   keeps blocks, lease    │ ◀── handshake (ZeroMQ) ─── │   matches, heartbeats    │
//!  └──────────┬───────────────┘                          │ └──────────┬───────────────┘
//!             │ step bytes                               │            │ step bytes
//!  ┌──────────▼───────────────┐                          │ ┌──────────▼───────────────┐
//!  │ worker half, each rank   │ ◀═══ READ of blocks ═════╪ │ worker half, each rank   │
//!  │   leases, counts readers │ ◀─ "read-done", "HB" ────┘ │   handshake, plan, queue │
//!  └──────────────────────────┘                            └──────────────────────────┘
//! ```
//!
//! # In files
//!
//! [`params`] is `kv_transfer_params`, [`wire`] the handshake and the notifications, [`step`] the bytes
//! between the halves, [`geometry`] turns tensors into regions and regions into a
//! [`Layout`](crate::layout::Layout), [`scheduler`] and [`worker`] are the two halves.

pub mod geometry;
pub mod params;
pub mod scheduler;
pub mod step;
pub mod wire;
pub mod worker;

use crate::error::{Result, Status, bail};
use crate::layout::MAX_RANKS;

/// Longest request id, in bytes.
pub const MAX_REQUEST_ID: usize = 1024;
/// Longest engine id or host name, in bytes.
pub const MAX_ENGINE_ID: usize = 1024;
/// Words in the lease table of a producer rank: requests that can be kept with a [`LeaseRef`] at the
/// same time. More than that are kept without one.
pub const LEASE_SLOTS: u32 = 65_536;

/// Which side moves the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u32)]
pub enum Mode {
    /// The consumer reads from the producer.
    #[default]
    Pull = 0,
    /// The producer writes to the consumer.
    Push = 1,
}

impl Mode {
    /// `pull` or `push`, as it stands in `kv_transfer_params` and in the compatibility hash.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Pull => "pull",
            Mode::Push => "push",
        }
    }
}

/// Where an engine's side channel is, and how many ranks it serves.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddress {
    /// The engine's id; a restarted engine usually has another one, and may have the same.
    pub engine_id: String,
    /// Host of its side channel.
    pub host: String,
    /// Port of its side channel.
    pub port: u16,
    /// Its tensor-parallel (transfer) ranks.
    pub tp_size: u32,
    /// Its pipeline stages.
    pub pp_size: u32,
    /// Its decode-context-parallel size.
    pub dcp_size: u32,
}

/// Refuses numbers of ranks that no engine has: each rank is asked for its handshake.
pub(crate) fn check_ranks(peer: &PeerAddress) -> Result<()> {
    check_sizes(peer.tp_size, peer.pp_size, peer.dcp_size)
}

fn check_sizes(tp_size: u32, pp_size: u32, dcp_size: u32) -> Result<()> {
    for (name, size) in [
        ("tp_size", tp_size),
        ("pp_size", pp_size),
        ("dcp_size", dcp_size),
    ] {
        if !(1..=MAX_RANKS).contains(&size) {
            bail!(
                Status::PeerIncompatible,
                "{name} {size}; it is 1 to {MAX_RANKS}"
            );
        }
    }
    Ok(())
}

/// Names the word in a producer rank's memory by which a consumer makes sure, after a read, that the
/// blocks it read were still kept for it: see [`worker`]. Known to kvferry only; stock vLLM passes it on
/// unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRef {
    /// Index of the word in each rank's table.
    pub slot: u32,
    /// Which use of the slot this is. The word is `2 * generation - 1` while the blocks are kept and
    /// `2 * generation` or more once they are not; it may be less before the rank has heard of the
    /// lease, when the blocks are kept as well.
    ///
    /// Generations are times, in microseconds since 1970: what an engine gives out after a restart is
    /// above all that it gave out before, also under the same engine id, and the words of its ranks
    /// start above that. Such a number, and twice it, stays below 2^53 until the year 2112, so that
    /// JSON readers that make doubles of all numbers pass it on whole.
    pub generation: u64,
}

impl LeaseRef {
    /// Refuses what no table has: a slot beyond [`LEASE_SLOTS`], a generation whose words would not
    /// fit into 64 bits.
    pub(crate) fn check(self) -> Result<()> {
        if self.slot >= LEASE_SLOTS || !(1..=u64::MAX / 2).contains(&self.generation) {
            bail!(
                Status::PeerIncompatible,
                "lease slot {} of {LEASE_SLOTS}, generation {}",
                self.slot,
                self.generation
            );
        }
        Ok(())
    }
}
