//! From an engine's tensors to regions, and from a rank's regions to a [`Layout`].
//!
//! Two engines that exchange KV tell each other only *where* things are: a list of regions, each a base
//! address, a block length and a block stride ([`AgentMetadata`]). *What* the blocks hold is never on
//! the wire; each side takes it that the other serves the same model in the same way. So there is one
//! description of the content, made of the local tensors, and it is laid over the local regions
//! ([`local`]) and over every peer's ([`peer`]). What comes out on both sides is a [`Layout`], from which
//! [`Plan`](crate::plan::Plan) makes copies.
//!
//! All of this computes; nothing here reads memory or talks to anybody.

/// Ends a function: the peer and we cannot be brought together.
macro_rules! refuse {
    ($($message:tt)+) => {
        $crate::error::bail!($crate::error::Status::PeerIncompatible, $($message)+)
    };
}

mod content;
mod homes;
mod kv;
mod model;
mod order;
mod own;
mod regions;
mod theirs;
mod view;

pub use kv::{Content, HeadShape, KvCache, KvTensor, MAX_DIMS, SlabOrder, StateKind, StateSizes};
pub use order::{PhysicalOrder, natural};

use super::wire::AgentMetadata;
use crate::error::Result;
use crate::layout::{Layout, Parallel};
use crate::memory::{MemDesc, MemKind};

/// Group number of a region that layers of several groups share.
pub const SHARED: i64 = -1;

/// Memory to register with the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The range.
    pub range: MemDesc,
    /// Kind of memory.
    pub mem: MemKind,
}

/// One rank's own cache.
#[derive(Clone, Debug)]
pub struct Local {
    /// Where everything is.
    pub layout: Layout,
    /// What peers are told; `engine_id`, `agent_metadata` and `lease_table` are left for the worker.
    pub metadata: AgentMetadata,
    /// What to register: each allocation once.
    pub memory: Vec<Memory>,
    model: model::Model,
}

/// A peer rank's cache.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where everything is. Its groups are in *our* order.
    pub layout: Layout,
    /// For each of our groups the index of the peer's list of block ids for it. Nearly always
    /// `0, 1, 2, …`; engines may number the groups of one model differently.
    pub groups: Vec<u32>,
}

/// Regions, registrations and layout of this rank.
///
/// # Errors
/// `InvalidArgument`, naming the layer and the field, for tensors that cannot be what they are said to
/// be; `NotSupported` for arrangements that are not known.
pub fn local(cache: &KvCache, parallel: Parallel) -> Result<Local> {
    own::local(cache, parallel)
}

/// The layout of a peer rank, from what it says about itself and what we know about the model.
///
/// `at` is the rank that was asked for; `at.dcp_rank` and `at.dcp_interleave` are filled in.
///
/// # Errors
/// `PeerIncompatible`, naming the field and both values, for anything on which the two sides differ so
/// that bytes could not be mapped exactly, and for metadata that contradicts itself.
pub fn peer(local: &Local, metadata: &AgentMetadata, at: Parallel) -> Result<Peer> {
    theirs::peer(local, metadata, at)
}
