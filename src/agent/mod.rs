//! One rank's endpoint: registrations, remote agents, notifications, direct transfers.
//!
//! An [`Agent`] puts in front of a [`Transport`] what is the same for all of them: arguments are
//! checked before anything is touched, messages that one caller waits for are kept apart from those
//! of another, and closing is orderly. It is direct and thread-safe: each call does its work on the
//! caller's thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Result, Status, bail};
use crate::memory::{MemDesc, MemKind, RegDesc};
use crate::sync::lock;
use crate::transport::{
    self, AgentOptions, BackendInfo, Cost, Descs, MetadataStore, Notification, Op, Params,
    PreparedList, Side, Telemetry, TransferOptions, TransferState, Transport,
};

mod mapped;

/// Longest name of an agent, in bytes.
pub const MAX_NAME: usize = 1024;
/// Largest notification, in bytes.
pub const MAX_NOTIFICATION: usize = 16 << 20;
/// Largest metadata that is looked at, in bytes.
pub const MAX_METADATA: usize = 1 << 30;

/// One rank's endpoint. Closed by [`Agent::close`], or else when dropped.
pub struct Agent {
    name: String,
    shared: Arc<Shared>,
    /// Messages that arrived while somebody waited for another one.
    inbox: Mutex<VecDeque<Notification>>,
}

/// What an agent's lists and transfers need of it.
struct Shared {
    transport: Arc<dyn Transport>,
    closed: AtomicBool,
}

impl Shared {
    fn open(&self) -> Result<&dyn Transport> {
        if self.closed.load(Ordering::Acquire) {
            bail!(Status::InvalidState, "the agent has been destroyed");
        }
        Ok(&*self.transport)
    }

    /// Why a transfer failed when its agent was closed under it: to the transport that may look
    /// like a lost peer, which would send the caller looking in the wrong place.
    fn explain(&self, e: Error) -> Error {
        if self.closed.load(Ordering::Acquire) && e.status() != Status::Canceled {
            let why = format!("the agent has been destroyed: {}", e.message());
            return Error::new(Status::InvalidState, why);
        }
        e
    }
}

/// Which messages a caller wants.
#[derive(Clone, Copy, Debug, Default)]
pub struct NotificationFilter<'a> {
    /// Only from this agent; `None` is from any.
    pub from: Option<&'a str>,
    /// Only those that begin with these bytes.
    pub prefix: &'a [u8],
}

impl NotificationFilter<'_> {
    fn wants(&self, n: &Notification) -> bool {
        self.from.is_none_or(|from| from == n.from) && n.payload.starts_with(self.prefix)
    }
}

impl Agent {
    /// Makes an agent.
    pub fn create(options: &AgentOptions) -> Result<Agent> {
        check_name("agent name", &options.name)?;
        let transport = transport::create(options)?;
        let shared = Arc::new(Shared {
            transport,
            closed: AtomicBool::new(false),
        });
        Ok(Agent {
            name: options.name.clone(),
            shared,
            inbox: Mutex::default(),
        })
    }

    /// The name by which peers know this agent.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its transport.
    pub fn transport(&self) -> &'static str {
        self.shared.transport.name()
    }

    /// Ends the agent: every later call fails with [`Status::InvalidState`], transfers under way
    /// are stopped or waited for. Harmless when repeated. See [`Transport::close`] for the status
    /// [`Status::Timeout`].
    pub fn close(&self) -> Result<()> {
        if self.shared.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.shared.transport.close()
    }

    /// Plugins that could become backends.
    pub fn plugins(&self) -> Result<Vec<String>> {
        self.shared.open()?.plugins()
    }

    /// Parameters and memory kinds of a plugin.
    pub fn plugin_info(&self, plugin: &str) -> Result<BackendInfo> {
        self.shared.open()?.plugin_info(plugin)
    }

    /// Makes a backend of a plugin.
    pub fn create_backend(&self, plugin: &str, params: &[(String, String)]) -> Result<()> {
        self.shared.open()?.create_backend(plugin, params)
    }

    /// Backends that exist.
    pub fn backends(&self) -> Result<Vec<String>> {
        Ok(self.shared.open()?.backends())
    }

    /// Parameters and memory kinds of a backend.
    pub fn backend_info(&self, backend: &str) -> Result<BackendInfo> {
        self.shared.open()?.backend_info(backend)
    }

    /// Makes ranges available for transfers. Either all are registered or none.
    pub fn register(&self, kind: MemKind, descs: &[RegDesc], backends: &[&str]) -> Result<()> {
        let transport = self.shared.open()?;
        check_ranges(descs.iter().map(|d| &d.range), kind)?;
        if kind == MemKind::Dram {
            mapped::check(descs.iter().map(|d| &d.range))?;
        }
        transport.register(kind, descs, backends)
    }

    /// Takes registered ranges back.
    pub fn deregister(&self, kind: MemKind, descs: &[RegDesc], backends: &[&str]) -> Result<()> {
        let transport = self.shared.open()?;
        check_ranges(descs.iter().map(|d| &d.range), kind)?;
        transport.deregister(kind, descs, backends)
    }

    /// What a backend knows about each range.
    pub fn query_memory(
        &self,
        kind: MemKind,
        descs: &[RegDesc],
        backend: &str,
    ) -> Result<Vec<Option<Params>>> {
        self.shared.open()?.query_memory(kind, descs, backend)
    }

    /// Everything that a peer needs to reach this agent and its registered memory.
    pub fn metadata(&self) -> Result<Vec<u8>> {
        self.shared.open()?.metadata()
    }

    /// Metadata of some ranges only; with no ranges and connection information, how to connect.
    pub fn partial_metadata(
        &self,
        kind: MemKind,
        descs: &[RegDesc],
        connection_info: bool,
        backends: &[&str],
    ) -> Result<Vec<u8>> {
        self.shared
            .open()?
            .partial_metadata(kind, descs, connection_info, backends)
    }

    /// The name of the agent that metadata are of. Loads nothing.
    pub fn metadata_name(&self, metadata: &[u8]) -> Result<String> {
        let transport = self.shared.open()?;
        check_metadata(metadata)?;
        transport.metadata_name(metadata)
    }

    /// Loads a peer's metadata and returns the peer's name.
    pub fn add_remote(&self, metadata: &[u8]) -> Result<String> {
        let transport = self.shared.open()?;
        check_metadata(metadata)?;
        transport.add_remote(metadata)
    }

    /// Forgets a peer and disconnects from it.
    pub fn remove_remote(&self, remote: &str) -> Result<()> {
        self.shared.open()?.remove_remote(remote)
    }

    /// Whether metadata of a peer is loaded and covers the ranges.
    pub fn check_remote(&self, remote: &str, kind: MemKind, descs: &[MemDesc]) -> Result<bool> {
        self.shared.open()?.check_remote(remote, kind, descs)
    }

    /// Connects to a peer now instead of with the first transfer.
    pub fn connect(&self, remote: &str, backends: &[&str]) -> Result<()> {
        self.shared.open()?.connect(remote, backends)
    }

    /// Sends this agent's metadata.
    pub fn send_metadata(&self, to: MetadataStore<'_>) -> Result<()> {
        self.shared.open()?.send_metadata(to)
    }

    /// Sends part of this agent's metadata.
    pub fn send_partial_metadata(
        &self,
        kind: MemKind,
        descs: &[RegDesc],
        connection_info: bool,
        backends: &[&str],
        to: MetadataStore<'_>,
        label: Option<&str>,
    ) -> Result<()> {
        let transport = self.shared.open()?;
        transport.send_partial_metadata(kind, descs, connection_info, backends, to, label)
    }

    /// Asks for a peer's metadata; it has arrived when [`Agent::check_remote`] says so.
    pub fn fetch_metadata(
        &self,
        remote: &str,
        from: MetadataStore<'_>,
        label: Option<&str>,
    ) -> Result<()> {
        self.shared.open()?.fetch_metadata(remote, from, label)
    }

    /// Tells a peer or the central store that this agent's metadata is void.
    pub fn invalidate_metadata(&self, at: MetadataStore<'_>) -> Result<()> {
        self.shared.open()?.invalidate_metadata(at)
    }

    /// Sends a message to a peer.
    pub fn notify(&self, remote: &str, payload: &[u8], backend: Option<&str>) -> Result<()> {
        let transport = self.shared.open()?;
        check_notification(payload)?;
        transport.notify(remote, payload, backend)
    }

    /// Takes all messages that have arrived, in order per sender. Drives progress.
    pub fn notifications(&self, backends: &[&str]) -> Result<Vec<Notification>> {
        let transport = self.shared.open()?;
        // The inbox is held meanwhile: another thread that fetches later ones must not put them
        // in before these are out.
        let mut inbox = lock(&self.inbox);
        let fresh = transport.notifications(backends)?;
        if inbox.is_empty() {
            return Ok(fresh);
        }
        let mut all: Vec<_> = inbox.drain(..).collect();
        all.extend(fresh);
        Ok(all)
    }

    /// How many messages wait to be taken. Drives progress.
    pub fn notification_count(&self) -> Result<usize> {
        let transport = self.shared.open()?;
        let mut inbox = lock(&self.inbox);
        inbox.extend(transport.notifications(&[])?);
        Ok(inbox.len())
    }

    /// Takes the first message that the filter wants, waiting for it if need be; all others stay.
    /// A zero limit only looks. [`Status::Timeout`] when there is none in time.
    pub fn wait_notification(
        &self,
        filter: NotificationFilter<'_>,
        limit: Duration,
    ) -> Result<Notification> {
        let deadline = Instant::now().checked_add(limit);
        loop {
            let transport = self.shared.open()?;
            {
                let mut inbox = lock(&self.inbox);
                inbox.extend(transport.notifications(&[])?);
                if let Some(i) = inbox.iter().position(|n| filter.wants(n)) {
                    if let Some(found) = inbox.remove(i) {
                        return Ok(found);
                    }
                }
            }
            // In slices, so that a waiter sees the agent close and what another thread put aside.
            let slice = Duration::from_millis(20);
            let left = match deadline {
                Some(d) => d.saturating_duration_since(Instant::now()),
                None => slice,
            };
            if left.is_zero() {
                bail!(
                    Status::Timeout,
                    "no notification{} within {} ms",
                    filter
                        .from
                        .map(|f| format!(" from \"{f}\""))
                        .unwrap_or_default(),
                    limit.as_millis()
                );
            }
            transport.wait_for_notification(left.min(slice))?;
        }
    }

    /// Prepares ranges to be picked from by index.
    pub fn prepare(
        &self,
        side: Side<'_>,
        kind: MemKind,
        descs: Descs<'_>,
        backends: &[&str],
    ) -> Result<List> {
        let transport = self.shared.open()?;
        check_descs(descs, kind)?;
        let inner = transport.prepare(side, kind, descs, backends)?;
        Ok(List {
            inner,
            shared: self.shared.clone(),
        })
    }

    /// Makes a transfer between ranges picked from two lists of this agent.
    pub fn make_transfer(
        &self,
        op: Op,
        (local, local_indices): (&List, &[i32]),
        (remote, remote_indices): (&List, &[i32]),
        options: TransferOptions<'_>,
    ) -> Result<Transfer> {
        let transport = self.shared.open()?;
        check_options(&options)?;
        for (what, list) in [("local", local), ("remote", remote)] {
            if !Arc::ptr_eq(&list.shared, &self.shared) {
                return Err(Error::invalid(format!(
                    "the {what} list belongs to another agent"
                )));
            }
        }
        check_indices(local_indices, local.len(), "local")?;
        check_indices(remote_indices, remote.len(), "remote")?;
        if local_indices.len() != remote_indices.len() {
            bail!(
                Status::Mismatch,
                "{} local indices against {} remote ones",
                local_indices.len(),
                remote_indices.len()
            );
        }
        let inner = transport
            .make_transfer(
                op,
                &*local.inner,
                local_indices,
                &*remote.inner,
                remote_indices,
                options,
            )
            .map_err(|e| self.shared.explain(e))?;
        Ok(Transfer {
            inner,
            shared: self.shared.clone(),
        })
    }

    /// Makes a transfer between two arrays of ranges, the i-th with the i-th.
    pub fn create_transfer(
        &self,
        op: Op,
        local: (MemKind, &[MemDesc]),
        remote: (MemKind, &[MemDesc]),
        remote_agent: &str,
        options: TransferOptions<'_>,
    ) -> Result<Transfer> {
        let transport = self.shared.open()?;
        check_options(&options)?;
        check_descs(Descs::Flat(local.1), local.0).map_err(|e| e.context("local side"))?;
        check_descs(Descs::Flat(remote.1), remote.0).map_err(|e| e.context("remote side"))?;
        if local.1.len() != remote.1.len() {
            bail!(
                Status::Mismatch,
                "{} local ranges against {} remote ones",
                local.1.len(),
                remote.1.len()
            );
        }
        if let Some(i) = local
            .1
            .iter()
            .zip(remote.1)
            .position(|(l, r)| l.len != r.len)
        {
            bail!(
                Status::Mismatch,
                "pair {i}: {} bytes locally against {} remotely",
                local.1[i].len,
                remote.1[i].len
            );
        }
        let inner = transport
            .create_transfer(op, local, remote, remote_agent, options)
            .map_err(|e| self.shared.explain(e))?;
        Ok(Transfer {
            inner,
            shared: self.shared.clone(),
        })
    }
}

fn check_metadata(metadata: &[u8]) -> Result<()> {
    if metadata.is_empty() {
        return Err(Error::invalid("metadata is empty"));
    }
    if metadata.len() > MAX_METADATA {
        return Err(Error::invalid(format!(
            "metadata has {} bytes, more than {MAX_METADATA}",
            metadata.len()
        )));
    }
    Ok(())
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Err(e) = self.close() {
            log::warn!("closing agent \"{}\": {e}", self.name);
        }
    }
}

/// Ranges prepared for picking by index; belongs to the agent that made it.
pub struct List {
    inner: Arc<dyn PreparedList>,
    shared: Arc<Shared>,
}

impl List {
    /// Number of ranges.
    pub fn len(&self) -> usize {
        self.inner.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One transfer; belongs to the agent that made it. Dropping it while it is under way is safe.
pub struct Transfer {
    inner: Arc<dyn transport::Transfer>,
    shared: Arc<Shared>,
}

impl Transfer {
    /// Starts it, or starts it again. `notification` replaces the one given when it was made.
    pub fn post(&self, notification: Option<&[u8]>) -> Result<TransferState> {
        self.shared.open()?;
        if let Some(payload) = notification {
            check_notification(payload)?;
        }
        self.inner
            .post(notification)
            .map_err(|e| self.shared.explain(e))
    }

    /// Where it stands. An error is final and means that no byte moves any more.
    pub fn state(&self) -> Result<TransferState> {
        self.inner.state().map_err(|e| self.shared.explain(e))
    }

    /// Asks it to stop; it has come to rest when [`Transfer::state`] is no longer in progress.
    pub fn cancel(&self) -> Result<()> {
        self.inner.cancel()
    }

    /// Figures of the last post.
    pub fn telemetry(&self) -> Result<Telemetry> {
        self.inner.telemetry()
    }

    /// An estimate before posting.
    pub fn cost(&self) -> Result<Cost> {
        self.shared.open()?;
        self.inner.cost()
    }

    /// The backend that carries it.
    pub fn backend(&self) -> Result<String> {
        self.shared.open()?;
        self.inner.backend()
    }

    /// Whether it may be let go: asks it to stop if it is under way, and then answers
    /// [`Status::Busy`] until it has come to rest.
    pub fn settle(&self) -> Result<()> {
        match self.state() {
            Ok(TransferState::InProgress) => {
                self.cancel()?;
                match self.state() {
                    Ok(TransferState::InProgress) => bail!(
                        Status::Busy,
                        "the transfer is still moving bytes; it was asked to stop, release it later"
                    ),
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}

fn check_name(what: &str, name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::invalid(format!("{what} is empty")));
    }
    if name.len() > MAX_NAME {
        return Err(Error::invalid(format!(
            "{what} has {} bytes, more than {MAX_NAME}",
            name.len()
        )));
    }
    if name.contains('\0') {
        return Err(Error::invalid(format!("{what} {name:?} contains a NUL")));
    }
    Ok(())
}

fn check_notification(payload: &[u8]) -> Result<()> {
    if payload.len() > MAX_NOTIFICATION {
        return Err(Error::invalid(format!(
            "notification has {} bytes, more than {MAX_NOTIFICATION}",
            payload.len()
        )));
    }
    Ok(())
}

fn check_options(options: &TransferOptions<'_>) -> Result<()> {
    options.notification.map_or(Ok(()), check_notification)
}

/// Whether a length of zero means something for this kind: a whole file or object.
fn zero_length_allowed(kind: MemKind) -> bool {
    matches!(kind, MemKind::Block | MemKind::Object | MemKind::File)
}

fn check_ranges<'a>(
    ranges: impl ExactSizeIterator<Item = &'a MemDesc>,
    kind: MemKind,
) -> Result<()> {
    if ranges.len() == 0 {
        return Err(Error::invalid("the array of ranges is empty"));
    }
    for (i, r) in ranges.enumerate() {
        check_range(i, r, kind)?;
    }
    Ok(())
}

fn check_range(i: usize, r: &MemDesc, kind: MemKind) -> Result<()> {
    if r.len == 0 && !zero_length_allowed(kind) {
        return Err(Error::invalid(format!(
            "range {i} at {:#x} has length 0",
            r.addr
        )));
    }
    r.end().map_err(|e| e.context(format_args!("range {i}")))?;
    Ok(())
}

fn check_descs(descs: Descs<'_>, kind: MemKind) -> Result<()> {
    match descs {
        Descs::Flat(flat) => check_ranges(flat.iter(), kind),
        Descs::Strided(rows) => {
            if rows.is_empty() {
                return Err(Error::invalid("the array of strided ranges is empty"));
            }
            let mut total = 0u64;
            for (i, row) in rows.iter().enumerate() {
                if row.count == 0 {
                    return Err(Error::invalid(format!("strided range {i} has count 0")));
                }
                let last = (row.count - 1)
                    .checked_mul(row.stride)
                    .and_then(|offset| row.addr.checked_add(offset));
                let Some(last) = last else {
                    return Err(Error::invalid(format!(
                        "strided range {i}: {} times {} bytes from {:#x} wraps around",
                        row.count, row.stride, row.addr
                    )));
                };
                check_range(
                    i,
                    &MemDesc {
                        addr: last,
                        len: row.len,
                        device: row.device,
                    },
                    kind,
                )?;
                total = total.saturating_add(row.count);
            }
            if total > i32::MAX as u64 {
                return Err(Error::invalid(format!(
                    "{total} ranges are more than an index can count"
                )));
            }
            Ok(())
        }
    }
}

fn check_indices(indices: &[i32], len: usize, what: &str) -> Result<()> {
    if indices.is_empty() {
        return Err(Error::invalid(format!(
            "the array of {what} indices is empty"
        )));
    }
    // As unsigned numbers, negative ones are larger than any list. The largest of all is found many
    // at a time; the first that is wrong is looked for only when there is one.
    let largest = indices.iter().fold(0, |max, &i| (i as u32).max(max));
    if (largest as usize) < len {
        return Ok(());
    }
    let wrong = indices
        .iter()
        .enumerate()
        .find(|&(_, &i)| i as u32 as usize >= len);
    let (at, index) = wrong.unwrap_or((0, &indices[0]));
    Err(Error::invalid(format!(
        "{what} index {index} (at position {at}) is outside the list of {len}"
    )))
}
