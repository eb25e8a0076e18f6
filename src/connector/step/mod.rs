//! What the scheduler half tells the worker halves: one byte string per engine step.
//!
//! The same bytes go to every rank of the engine. They are versioned and decoded strictly and within
//! bounds, because a fleet may carry them between machines. [`codec`] has the form.

pub mod codec;
mod cut;

use super::{LeaseRef, PeerAddress};

/// Everything that one engine step asks of a worker. All empty is nothing to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// The scheduler's monotonic clock when the step was built, in nanoseconds.
    pub clock_ns: u64,
    /// Requests whose blocks are to be fetched, or whose producer is only to be told.
    pub receives: Vec<Receive>,
    /// Finished requests whose blocks are kept for a reader from now on.
    pub holds: Vec<Hold>,
    /// Requests of this engine, as a producer, that were scheduled: a lease may follow for them.
    pub in_batch: Vec<String>,
    /// Requests for which no lease will follow after all.
    pub forget: Vec<String>,
    /// Receives that are no longer wanted. They end as failed, once they have come to rest; their
    /// producers are told that they may free their blocks.
    pub cancel: Vec<String>,
    /// Leases on other engines to extend.
    pub heartbeats: Vec<Heartbeat>,
    /// Push, consumer: blocks that wait to be written, for the producer to know.
    pub registrations: Vec<Receive>,
    /// Push, producer: finished requests whose blocks can be written once their consumer is known.
    pub pushes: Vec<Push>,
}

/// A request whose KV another engine holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Receive {
    /// This engine's id of the request.
    pub request_id: String,
    /// Who has it.
    pub peer: PeerAddress,
    /// The other engine's id of the request.
    pub remote_request_id: String,
    /// Logical block ids to fill, per transfer group: those that the prefix cache did not have. All
    /// empty: nothing is fetched and the producer is only told that it may free its blocks.
    pub local: Vec<Vec<u32>>,
    /// Logical block ids of the producer, per transfer group: the whole request, as clipped by it.
    pub remote: Vec<Vec<u32>>,
    /// Per transfer group, the index of the first of the listed local blocks in the request's block
    /// table: how many blocks lie before it, cached, clipped or out of the window. As many entries
    /// as `local` has.
    pub local_first: Vec<u32>,
    /// Tokens whose KV the producer holds; 0 is "not stated".
    pub tokens: u64,
    /// Whether the engine waits for the request to be reported as received (or failed). If not it is
    /// never reported.
    pub awaited: bool,
    /// When the producer stops keeping the blocks, in seconds of *its* monotonic clock; `None` when
    /// it keeps them by a lease that heartbeats extend.
    pub expiry: Option<f64>,
    /// The producer's lease word, if it has one.
    pub lease: Option<LeaseRef>,
    /// How often ranks of the producer had published a handshake payload when it finished the request
    /// (vLLM 0.33's `remote_registration_generation`); 0 is "not stated". A larger number than the one
    /// that the last handshake with this peer was for means that the handshake has to be done again.
    pub registration: u64,
    /// How long ago the request entered this engine, in nanoseconds, when it was put into the step: its
    /// producer had finished it no later than that. Of use where no word and no deadline tells until when
    /// the blocks are kept.
    pub waited_ns: u64,
}

/// A finished request whose blocks are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// This engine's id of the request.
    pub request_id: String,
    /// How long, counted from [`Step::clock_ns`], in nanoseconds.
    pub remaining_ns: u64,
    /// The word that says so to readers; `None` when all were in use.
    pub lease: Option<LeaseRef>,
}

/// Requests of one other engine that are still wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Who keeps them.
    pub peer: PeerAddress,
    /// The other engine's ids of the requests.
    pub remote_request_ids: Vec<String>,
}

/// Push, producer: a finished request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    /// This engine's id of the request.
    pub request_id: String,
    /// Its logical block ids per transfer group, clipped.
    pub blocks: Vec<Vec<u32>>,
    /// Tokens whose KV they hold.
    pub tokens: u64,
}
