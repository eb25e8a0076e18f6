//! Stock vLLM's bytes: the handshake payload, the handshake request, the notifications, the hash by which
//! two engines tell that they are of a kind, and how many ranks talk to how many. `docs/wire.md` is the
//! protocol for people who implement it elsewhere.
//!
//! Every decoder here takes bytes from strangers. It is strict (types, required keys, nothing behind the
//! end), bounded (the constants of this module, checked before anything is allocated), says what is
//! wrong and where, with [`Status::PeerIncompatible`](crate::error::Status), and never panics. Every
//! encoder writes what stock vLLM's would, byte for byte.

mod compat;
mod map;
mod metadata;
mod notification;
mod payload;
mod ranks;

pub use crate::side_channel::zmq::message::{Clock, Request};
pub use compat::{CONNECTOR_VERSION, CompatFactors, SpeculativeFactors};
pub use metadata::AgentMetadata;
pub use notification::{Notification, PushRegistration};
pub use payload::Payload;
pub use ranks::{Sizes, consumer_count, handshake_ranks, push_done_count};

/// Most bytes of a handshake payload.
pub const MAX_PAYLOAD: usize = 64 << 20;
/// Most regions of a rank.
pub const MAX_REGIONS: usize = 65_536;
/// Most layers of a rank, over all regions.
pub const MAX_LAYERS: usize = 65_536;
/// Longest name: of a layer, a layout, an attention backend, a key.
pub const MAX_NAME: usize = 1024;
/// Most keys of a map, known and unknown.
pub const MAX_KEYS: usize = 256;
/// Most bytes of a notification.
pub const MAX_NOTIFICATION: usize = 8 << 20;
/// Most requests in a heartbeat.
pub const MAX_HEARTBEAT: usize = 65_536;
/// Most transfer groups in a push registration.
pub const MAX_GROUPS: usize = 1024;
/// Most block ids in a push registration, over all groups.
pub const MAX_BLOCKS: usize = 1 << 20;
/// Most lease words of a rank.
pub const MAX_LEASE_WORDS: u64 = 1 << 24;
/// Most ranks along one axis.
pub const MAX_RANKS: u32 = 65_536;
