//! The built-in transport: host memory of processes on one host, no library needed.
//!
//! | module | what it is |
//! |---|---|
//! | `endpoint` | the [`Transport`]: checks arguments, knows peers, opens and closes |
//! | `transfer` | prepared lists and transfers: their stages, figures, cost |
//! | `runs` | pure: pairs of ranges become runs, runs become batches |
//! | `copiers` | the threads that copy batches |
//! | `vm` | process_vm_readv and process_vm_writev, and what their errors mean |
//! | `registry`, `ranges` | which memory may be touched, and when no longer |
//! | `peer` | a remote agent and the connection to it |
//! | `service`, `inbox` | answering peers, and the messages that have arrived |
//! | `metadata`, `frame`, `bytes` | pure: what leaves the process, encoded and decoded |
//! | `socket`, `host`, `tracers` | the operating system: sockets, identity, ptrace permission |
//!
//! # How bytes move
//! Within one process with memcpy, across processes with `process_vm_readv` and `process_vm_writev`
//! in batches, always by the thread that posts (with `copy_threads` above one, helpers join in). So
//! a post returns when the transfer is over, and the owner of remote memory takes no part in it.
//!
//! # Who may touch what
//! The kernel decides per process: same user, or privileged. Within that, a transfer touches only
//! ranges that both sides have registered: remote ranges are checked against the owner's metadata,
//! local ones against the own registrations. Registering refuses what is not mapped. Deregistering,
//! and closing, wait until no copy *of this process* touches the ranges any more, and later batches
//! of running transfers fail. A reader in another process is not told: an owner that deregisters
//! memory must know, from its own protocol, that nobody reads it any more (NIXL is the same there).
//! The device number of host memory is a NUMA hint and is not compared.
//!
//! # Peers
//! The first use of a peer connects to its abstract Unix socket. Each side asks the kernel who the
//! other one is (`SO_PEERCRED`), the connecting side shows a secret from the metadata, and the owner
//! shows another one, which is then read from its memory too: so the process behind the socket is the
//! one whose memory is touched, and a kernel that forbids it says so on connecting. The connection
//! and a process descriptor tell when the peer ends; it is then *lost*, with every transfer to it, and
//! stays so until its metadata is loaded again. A restarted agent of the same name is another
//! instance, told apart by a random number.
//!
//! # Threads
//! One thread per agent sleeps until a peer wants something (`Progress::Thread` and, as there is
//! nothing to spin for, `Progress::Spin`); with `Progress::Caller` there is none, and peers are
//! answered during `notifications`, `wait_for_notification`, `state` and while connecting. After a
//! fork the child cannot use the parent's agents: calls answer
//! [`crate::error::Status::InvalidState`], dropping them is harmless.

use std::sync::Arc;

use super::{AgentOptions, Transport};
use crate::error::Result;

mod bytes;
mod copiers;
mod endpoint;
mod frame;
mod host;
mod inbox;
mod metadata;
mod peer;
mod ranges;
mod registry;
mod runs;
mod service;
mod socket;
mod tracers;
mod transfer;
mod vm;

/// The only backend, and the plugin that it is made from.
const BACKEND: &str = "local";

/// Makes a local endpoint.
///
/// Of the options it uses `name`, `progress`, `telemetry`, `copy_threads` (1 to 64), `drain_timeout`
/// and `backends`, where only `local` with the parameter `copy_threads` exists.
pub fn create(options: &AgentOptions) -> Result<Arc<dyn Transport>> {
    Ok(Arc::new(endpoint::Endpoint::new(options)?))
}

/// What metadata of the local transport says, for people and for fuzzing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataInfo {
    /// Name of the agent.
    pub agent: String,
    /// Whether it says how to connect.
    pub connection_info: bool,
    /// Whether it names all registered ranges, or an addition to those known.
    pub whole: bool,
    /// Start and length of each range, ascending.
    pub ranges: Vec<(u64, u64)>,
}

/// Decodes metadata without loading it. Bytes that are not exactly metadata of this transport are
/// [`crate::error::Status::PeerIncompatible`].
pub fn inspect_metadata(metadata: &[u8]) -> Result<MetadataInfo> {
    let decoded = metadata::Metadata::decode(metadata)?;
    let ranges = decoded.ranges.iter().map(|span| (span.start, span.len()));
    Ok(MetadataInfo {
        ranges: ranges.collect(),
        connection_info: decoded.secrets.is_some(),
        whole: decoded.whole,
        agent: decoded.name,
    })
}

/// Decodes bytes as the socket's frames, as many as are complete and good. For fuzzing.
#[doc(hidden)]
pub fn count_frames(bytes: &[u8]) -> usize {
    let (mut rest, mut count) = (bytes, 0);
    while let Ok(Some((_, used))) = frame::first(rest, frame::MAX_FRAME) {
        rest = &rest[used..];
        count += 1;
    }
    count
}
