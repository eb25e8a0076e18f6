//! NVIDIA NIXL: RDMA, NVLink, shared memory and TCP, by way of its C API.
//!
//! | file | what it is |
//! |---|---|
//! | `ffi` | declarations of the C functions that are called |
//! | `search`, `library` | finding and opening `libnixl_capi.so`, once per process |
//! | `objects` | owners of the C objects |
//! | `endpoint` | the agent: locks, transfers under way, the end |
//! | `backends` | plugins and backends by name |
//! | `regions`, `registration` | what is registered, and registering |
//! | `metadata`, `peers` | metadata as bytes, and the agents that it makes reachable |
//! | `lists`, `request` | prepared lists, making transfers, and the life of one |
//! | `notifications` | messages |
//!
//! **What NIXL leaves to its user** and is done here: a list or transfer keeps its agent alive;
//! lists in memory that was deregistered are refused; memory and peers are not taken away under
//! transfers that use them; a dropped or cancelled transfer is polled to its end before it is
//! released; metadata is checked before NIXL reads it; a failure gets a status that says what to do.
//!
//! **Waiting.** Deregistering memory, removing a peer and closing wait for the transfers concerned, at
//! most the drain timeout, and answer `Busy` (closing: `Timeout`) if they are not at rest by then.
//!
//! **A lost peer.** Its transfers and messages answer `PeerLost` from then on, also when it comes
//! back: the broken connection stays until the peer is removed and its new metadata is loaded.
//! Lists and transfers made before that stay void.
//!
//! **The metadata listener** of `listen_port` is NIXL's own. It listens on every interface, trusts
//! what it reads, and none of the checks of `metadata` stand before it: for closed networks only.
//!
//! **Options.** All of [`AgentOptions`] but `copy_threads`. [`Progress::Thread`] is NIXL's own
//! progress thread, asleep until UCX raises an event; `progress_delay` bounds how late it notices
//! what raises none. With [`Progress::Caller`] a peer's first transfer or message makes way only
//! while this agent's notifications are polled. With [`SyncMode::Strict`] and [`SyncMode::None`] a
//! post holds up every call of the agent but the state of a transfer.
//!
//! [`AgentOptions`]: super::AgentOptions
//! [`Progress::Thread`]: super::Progress::Thread
//! [`Progress::Caller`]: super::Progress::Caller
//! [`SyncMode::Strict`]: super::SyncMode::Strict
//! [`SyncMode::None`]: super::SyncMode::None

use std::sync::Arc;
use std::time::Duration;

use super::{
    AgentOptions, BackendInfo, Descs, MetadataStore, Notification, Op, Params, PreparedList, Side,
    Transfer, TransferOptions, Transport,
};
use crate::error::Result;
use crate::memory::{MemDesc, MemKind, RegDesc};

mod backends;
mod endpoint;
mod ffi;
mod library;
mod lists;
mod metadata;
mod notifications;
mod objects;
mod peers;
mod regions;
mod registration;
mod request;
mod search;

pub use library::{Attempt, LibraryReport, probe};
pub use metadata::{Outline, check as inspect_metadata};

/// The backend of an agent whose options name none.
const DEFAULT_BACKEND: &str = "UCX";

/// Makes a NIXL endpoint: opens the library if need be, makes the agent and its backends.
///
/// Errors: [`NoBackend`](crate::error::Status::NoBackend) without a NIXL library that can be used,
/// with every place that was looked at; [`InvalidState`](crate::error::Status::InvalidState) when
/// another library or plugin folder is in use; [`NotFound`](crate::error::Status::NotFound) for an
/// unknown backend; [`Backend`](crate::error::Status::Backend) when NIXL fails.
pub fn create(options: &AgentOptions) -> Result<Arc<dyn Transport>> {
    let report = library::load(options.nixl_library.as_deref())?;
    library::settle_plugin_dir(options.nixl_plugin_dir.as_deref())?;
    let endpoint = endpoint::Endpoint::new(options)?;
    match &options.backends {
        Some(backends) => {
            for (name, params) in backends {
                endpoint.create_backend(name, params)?;
            }
        }
        None => endpoint.create_backend(DEFAULT_BACKEND, &Params::new())?,
    }
    log::debug!(
        "NIXL agent {:?} with {} from {:?}",
        options.name,
        endpoint.backends.names().join(", "),
        report.path
    );
    Ok(Arc::new(Nixl(Arc::new(endpoint))))
}

/// The transport: a handle to an endpoint that its lists and transfers share.
struct Nixl(Arc<endpoint::Endpoint>);

impl Transport for Nixl {
    fn name(&self) -> &'static str {
        "nixl"
    }
    fn plugins(&self) -> Result<Vec<String>> {
        self.0.plugins()
    }
    fn plugin_info(&self, plugin: &str) -> Result<BackendInfo> {
        self.0.plugin_info(plugin)
    }
    fn create_backend(&self, plugin: &str, params: &[(String, String)]) -> Result<()> {
        self.0.create_backend(plugin, params)
    }
    fn backends(&self) -> Vec<String> {
        self.0.backends.names()
    }
    fn backend_info(&self, backend: &str) -> Result<BackendInfo> {
        self.0.backend_info(backend)
    }
    fn register(&self, kind: MemKind, descs: &[RegDesc], backends: &[&str]) -> Result<()> {
        self.0.register(kind, descs, backends)
    }
    fn deregister(&self, kind: MemKind, descs: &[RegDesc], backends: &[&str]) -> Result<()> {
        self.0.deregister(kind, descs, backends)
    }
    fn query_memory(
        &self,
        kind: MemKind,
        descs: &[RegDesc],
        backend: &str,
    ) -> Result<Vec<Option<Params>>> {
        self.0.query_memory(kind, descs, backend)
    }
    fn metadata(&self) -> Result<Vec<u8>> {
        self.0.metadata()
    }
    fn partial_metadata(
        &self,
        kind: MemKind,
        descs: &[RegDesc],
        connection_info: bool,
        backends: &[&str],
    ) -> Result<Vec<u8>> {
        self.0
            .partial_metadata(kind, descs, connection_info, backends)
    }
    fn metadata_name(&self, metadata: &[u8]) -> Result<String> {
        Ok(metadata::check(metadata)?.agent.to_owned())
    }
    fn add_remote(&self, metadata: &[u8]) -> Result<String> {
        self.0.add_remote(metadata)
    }
    fn remove_remote(&self, remote: &str) -> Result<()> {
        self.0.remove_remote(remote)
    }
    fn check_remote(&self, remote: &str, kind: MemKind, descs: &[MemDesc]) -> Result<bool> {
        self.0.check_remote(remote, kind, descs)
    }
    fn connect(&self, remote: &str, backends: &[&str]) -> Result<()> {
        self.0.connect(remote, backends)
    }
    fn send_metadata(&self, to: MetadataStore<'_>) -> Result<()> {
        self.0.send_metadata(to)
    }
    fn send_partial_metadata(
        &self,
        kind: MemKind,
        descs: &[RegDesc],
        connection_info: bool,
        backends: &[&str],
        to: MetadataStore<'_>,
        label: Option<&str>,
    ) -> Result<()> {
        self.0
            .send_partial_metadata(kind, descs, connection_info, backends, to, label)
    }
    fn fetch_metadata(
        &self,
        remote: &str,
        from: MetadataStore<'_>,
        label: Option<&str>,
    ) -> Result<()> {
        self.0.fetch_metadata(remote, from, label)
    }
    fn invalidate_metadata(&self, at: MetadataStore<'_>) -> Result<()> {
        self.0.invalidate_metadata(at)
    }
    fn prepare(
        &self,
        side: Side<'_>,
        kind: MemKind,
        descs: Descs<'_>,
        backends: &[&str],
    ) -> Result<Arc<dyn PreparedList>> {
        Ok(Arc::new(self.0.prepare(side, kind, descs, backends)?))
    }
    fn make_transfer(
        &self,
        op: Op,
        local: &dyn PreparedList,
        local_indices: &[i32],
        remote: &dyn PreparedList,
        remote_indices: &[i32],
        options: TransferOptions<'_>,
    ) -> Result<Arc<dyn Transfer>> {
        let sides = ((local, local_indices), (remote, remote_indices));
        Ok(Arc::new(
            self.0.make_transfer(op, sides.0, sides.1, options)?,
        ))
    }
    fn create_transfer(
        &self,
        op: Op,
        local: (MemKind, &[MemDesc]),
        remote: (MemKind, &[MemDesc]),
        remote_agent: &str,
        options: TransferOptions<'_>,
    ) -> Result<Arc<dyn Transfer>> {
        Ok(Arc::new(self.0.create_transfer(
            op,
            local,
            remote,
            remote_agent,
            options,
        )?))
    }
    fn notify(&self, remote: &str, payload: &[u8], backend: Option<&str>) -> Result<()> {
        self.0.notify(remote, payload, backend)
    }
    fn notifications(&self, backends: &[&str]) -> Result<Vec<Notification>> {
        self.0.notifications(backends)
    }
    fn wait_for_notification(&self, limit: Duration) -> Result<()> {
        self.0.wait_for_notification(limit)
    }
    fn close(&self) -> Result<()> {
        self.0.close()
    }
}
