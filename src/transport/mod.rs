//! Moving bytes: what every transport offers, and the transports.
//!
//! A [`Transport`] is one agent's endpoint. It is made by [`create`], shared by the agent, its
//! prepared lists and its transfers, and closed when the last of them is gone, so that nothing ever
//! points into a transport that is not there any more. All methods take `&self` and may be called
//! from any thread at any time.
//!
//! Backends are named by strings; an empty list of names means "whichever serves this memory". To
//! port kvferry to another transfer library, implement the three traits here and add a line to
//! [`create`].

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::memory::{MemDesc, MemKind, RegDesc, StridedDesc};

pub mod local;
pub mod nixl;
pub mod scripted;

/// Names and values, in the order in which the transport gave them.
pub type Params = Vec<(String, String)>;

/// What an agent is created with. Which fields a transport uses is documented with each.
#[derive(Clone, Debug, Default)]
pub struct AgentOptions {
    /// Name by which peers know this agent; not empty, no NUL.
    pub name: String,
    /// `nixl`, `local`, or `test` (see [`scripted`]).
    pub transport: String,
    /// `nixl`: path of `libnixl_capi.so`, before every other place that is searched.
    pub nixl_library: Option<String>,
    /// `nixl`: folder of the backend plugins; by default the one beside the library.
    pub nixl_plugin_dir: Option<String>,
    /// Backends to create at once; `None` is the transport's default (`UCX` for `nixl`).
    pub backends: Option<Vec<(String, Params)>>,
    /// Who answers peers while the caller is busy elsewhere.
    pub progress: Progress,
    /// How long the progress thread sleeps when nothing wakes it; `None` is the
    /// transport's choice (2 ms for `nixl`).
    pub progress_delay: Option<Duration>,
    /// `nixl`: port of NIXL's own metadata listener; `None` is no listener.
    pub listen_port: Option<u16>,
    /// `nixl`: worker threads of backends that can have several; 0 is the backend's default.
    pub worker_threads: u32,
    /// `nixl`: how NIXL locks. Every mode is safe to use from many threads.
    pub sync_mode: SyncMode,
    /// Whether transfers record [`Telemetry`].
    pub telemetry: bool,
    /// `local`: threads that copy, the caller's included; 0 is 1.
    pub copy_threads: u32,
    /// How long closing waits for transfers under way to come to rest; `None` is 5 s.
    pub drain_timeout: Option<Duration>,
}

/// Who drives a transport forward when no call is being made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Progress {
    /// A thread that sleeps until a peer wants something.
    #[default]
    Thread,
    /// Nobody: peers are answered only during calls, above all while polling notifications.
    Caller,
    /// `nixl`: a thread that never sleeps. Lowest latency, one core.
    Spin,
}

/// How NIXL serialises calls from several threads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SyncMode {
    /// The transport's choice, which is [`SyncMode::ReadWrite`].
    #[default]
    Default,
    /// NIXL does not lock; kvferry holds a lock of its own around each call instead.
    None,
    /// One call at a time.
    Strict,
    /// Posting and polling side by side, changes one at a time.
    ReadWrite,
}

/// A backend or plugin: its parameters and the memory kinds that it serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendInfo {
    /// Parameter names with their values (of a backend) or defaults (of a plugin).
    pub params: Params,
    /// Memory kinds that it can register.
    pub kinds: Vec<MemKind>,
}

/// Whose memory a prepared list describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side<'a> {
    /// This agent's, as the local side of transfers.
    Local,
    /// A remote agent's, or this agent's own name for transfers within it (loopback).
    Remote(&'a str),
}

/// Ranges as they come from the caller.
#[derive(Clone, Copy, Debug)]
pub enum Descs<'a> {
    /// One range each.
    Flat(&'a [MemDesc]),
    /// Rows of equal ranges, numbered row by row.
    Strided(&'a [StridedDesc]),
}

/// Direction of a transfer, seen from the agent that posts it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Op {
    /// Remote to local.
    Read = 0,
    /// Local to remote.
    Write = 1,
}

/// What a transfer is doing. Failure is an error, not a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum TransferState {
    /// All bytes are where they belong.
    Done = 0,
    /// Posted and under way.
    InProgress = 1,
}

/// Choices for making a transfer.
#[derive(Clone, Copy, Debug, Default)]
pub struct TransferOptions<'a> {
    /// Sent to the remote agent when all bytes have arrived.
    pub notification: Option<&'a [u8]>,
    /// Backends that may be used; empty is any.
    pub backends: &'a [&'a str],
    /// `nixl`: leave adjacent descriptors as they are.
    pub skip_merge: bool,
}

/// A message from a remote agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Name of the agent that sent it.
    pub from: String,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// Figures of one finished or running transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Telemetry {
    /// When it was posted, in microseconds of the monotonic clock.
    pub start_time_us: u64,
    /// Time spent inside post, in microseconds.
    pub post_duration_us: u64,
    /// From post to completion, in microseconds.
    pub transfer_duration_us: u64,
    /// Bytes moved.
    pub total_bytes: u64,
    /// Descriptors, after any merging.
    pub descriptors: u64,
}

/// An estimate of how long a transfer will take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Expected duration in microseconds.
    pub duration_us: i64,
    /// How far off that may be, in microseconds.
    pub error_margin_us: i64,
    /// How it was arrived at; 0 is the backend's analytical model.
    pub method: u32,
}

/// Where metadata is sent to or fetched from.
#[derive(Clone, Copy, Debug)]
pub enum MetadataStore<'a> {
    /// The listener of one peer.
    Address {
        /// Host name or address.
        host: &'a str,
        /// Port of the listener.
        port: u16,
    },
    /// The central store that the transport is configured for.
    Central,
}

/// One agent's endpoint.
pub trait Transport: Send + Sync {
    /// `nixl`, `local` or `test`.
    fn name(&self) -> &'static str;

    /// Backends that could be created.
    fn plugins(&self) -> Result<Vec<String>>;
    /// Parameters and memory kinds of a plugin before it is made into a backend.
    fn plugin_info(&self, plugin: &str) -> Result<BackendInfo>;
    /// Makes a backend. A second one of the same name is an error.
    fn create_backend(&self, plugin: &str, params: &[(String, String)]) -> Result<()>;
    /// Backends that exist, in the order of their creation.
    fn backends(&self) -> Vec<String>;
    /// Parameters and memory kinds of a backend.
    fn backend_info(&self, backend: &str) -> Result<BackendInfo>;

    /// Makes ranges available for transfers, with the named backends or all that serve the kind.
    fn register(&self, kind: MemKind, descs: &[RegDesc], backends: &[&str]) -> Result<()>;
    /// Takes them back. Ranges must be those that were registered.
    fn deregister(&self, kind: MemKind, descs: &[RegDesc], backends: &[&str]) -> Result<()>;
    /// What a backend knows about each range (a file's size, say); `None` where it knows nothing.
    fn query_memory(
        &self,
        kind: MemKind,
        descs: &[RegDesc],
        backend: &str,
    ) -> Result<Vec<Option<Params>>>;

    /// Everything a peer needs to reach this agent and its registered memory.
    fn metadata(&self) -> Result<Vec<u8>>;
    /// The same for some ranges only, with or without how to connect.
    fn partial_metadata(
        &self,
        kind: MemKind,
        descs: &[RegDesc],
        connection_info: bool,
        backends: &[&str],
    ) -> Result<Vec<u8>>;
    /// The name of the agent that metadata are of. Loads nothing.
    fn metadata_name(&self, metadata: &[u8]) -> Result<String>;
    /// Loads a peer's metadata; returns the peer's name. Partial metadata adds to what is known.
    fn add_remote(&self, metadata: &[u8]) -> Result<String>;
    /// Forgets a peer and disconnects from it.
    fn remove_remote(&self, remote: &str) -> Result<()>;
    /// Whether metadata of a peer is loaded and covers the ranges.
    fn check_remote(&self, remote: &str, kind: MemKind, descs: &[MemDesc]) -> Result<bool>;
    /// Connects now instead of with the first transfer.
    fn connect(&self, remote: &str, backends: &[&str]) -> Result<()>;
    /// Sends this agent's metadata.
    fn send_metadata(&self, to: MetadataStore<'_>) -> Result<()>;
    /// Sends part of this agent's metadata. The label names it in a central store.
    fn send_partial_metadata(
        &self,
        kind: MemKind,
        descs: &[RegDesc],
        connection_info: bool,
        backends: &[&str],
        to: MetadataStore<'_>,
        label: Option<&str>,
    ) -> Result<()>;
    /// Asks for a peer's metadata; it is there when [`Transport::check_remote`] says so.
    fn fetch_metadata(
        &self,
        remote: &str,
        from: MetadataStore<'_>,
        label: Option<&str>,
    ) -> Result<()>;
    /// Tells a peer or the central store that this agent's metadata is void.
    fn invalidate_metadata(&self, at: MetadataStore<'_>) -> Result<()>;

    /// Prepares ranges to be picked from by index.
    fn prepare(
        &self,
        side: Side<'_>,
        kind: MemKind,
        descs: Descs<'_>,
        backends: &[&str],
    ) -> Result<Arc<dyn PreparedList>>;
    /// Makes a transfer of `local[local_indices[i]]` from or to `remote[remote_indices[i]]`.
    /// Both lists must come from this transport.
    fn make_transfer(
        &self,
        op: Op,
        local: &dyn PreparedList,
        local_indices: &[i32],
        remote: &dyn PreparedList,
        remote_indices: &[i32],
        options: TransferOptions<'_>,
    ) -> Result<Arc<dyn Transfer>>;
    /// Makes a transfer from two arrays of equal shape.
    fn create_transfer(
        &self,
        op: Op,
        local: (MemKind, &[MemDesc]),
        remote: (MemKind, &[MemDesc]),
        remote_agent: &str,
        options: TransferOptions<'_>,
    ) -> Result<Arc<dyn Transfer>>;

    /// Sends a message to a peer, by the named backend or any that can.
    fn notify(&self, remote: &str, payload: &[u8], backend: Option<&str>) -> Result<()>;
    /// Takes all messages that have arrived, in order per sender. Drives progress.
    fn notifications(&self, backends: &[&str]) -> Result<Vec<Notification>>;
    /// Blocks until a message may have arrived, or the time is over; never longer than `limit`.
    fn wait_for_notification(&self, limit: Duration) -> Result<()>;

    /// Stops what can be stopped and waits for the rest, at most the drain timeout.
    ///
    /// After `Ok`, no transfer of this agent touches memory any more. After an error of status
    /// [`crate::error::Status::Timeout`] some may; the transport then stays in memory for good
    /// rather than be freed under a running copy. Called once, by the agent, before it lets go.
    fn close(&self) -> Result<()>;
}

/// Ranges prepared for picking by index. Keeps its transport alive.
pub trait PreparedList: Send + Sync {
    /// Number of ranges.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// For the transport that made it.
    fn as_any(&self) -> &dyn Any;
}

/// One transfer. Keeps its transport and lists alive. Dropping one that is under way is safe: the
/// transport goes on owning it until it has come to rest.
pub trait Transfer: Send + Sync {
    /// Starts it; `notification` replaces the one given when it was made. A transfer that has
    /// finished may be posted again.
    fn post(&self, notification: Option<&[u8]>) -> Result<TransferState>;
    /// Where it stands; never blocks on a post that another thread is in. An error is final until
    /// the next post and means that no byte moves any more.
    fn state(&self) -> Result<TransferState>;
    /// Asks it to stop. It has come to rest when [`Transfer::state`] is no longer in progress; a
    /// transfer that was stopped then answers [`crate::error::Status::Canceled`].
    fn cancel(&self) -> Result<()>;
    /// Figures of the last post.
    fn telemetry(&self) -> Result<Telemetry>;
    /// An estimate before posting.
    fn cost(&self) -> Result<Cost>;
    /// The backend that carries it.
    fn backend(&self) -> Result<String>;
}

/// Makes the endpoint that the options ask for. Nothing falls back to another transport.
pub fn create(options: &AgentOptions) -> Result<Arc<dyn Transport>> {
    match options.transport.as_str() {
        "nixl" => nixl::create(options),
        "local" => local::create(options),
        scripted::NAME => scripted::create(options),
        other => Err(Error::invalid(format!(
            "transport \"{other}\" is not known; there are \"nixl\", \"local\", and \"test\" for tests"
        ))),
    }
}
