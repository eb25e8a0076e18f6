//! The endpoint: what the rest of kvferry sees of an agent with the local transport.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::BACKEND;
use super::bytes::{MAX_NAME, is_name};
use super::copiers::{Copiers, MAX_THREADS};
use super::host::{HostId, Presence, Process, hex, random_token};
use super::inbox::{Inbox, MAX_PAYLOAD};
use super::metadata::{Metadata, Secrets};
use super::peer::{Caller, Link, Peer, Reach};
use super::ranges::{RangeSet, Span};
use super::registry::Registry;
use super::service::{Service, State};
use super::socket;
use super::transfer::{Copy, List, Speed};
use crate::error::{Error, Result, Status, bail};
use crate::event::Event;
use crate::mapped::{Access, Mapped};
use crate::memory::{MemDesc, MemKind, RegDesc};
use crate::sync::lock;
use crate::transport::{
    AgentOptions, BackendInfo, Descs, MetadataStore, Notification, Op, Params, PreparedList,
    Progress, Side, Transfer, TransferOptions, Transport,
};

/// How long closing and deregistering wait for copies, unless the options say otherwise.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// For ever, as far as clocks can add it up.
const MAX_DRAIN: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long closing waits at most for peers to take messages that are on their way.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);

/// The endpoint as the agent holds it.
pub(super) struct Endpoint {
    core: Arc<Core>,
}

/// What the endpoint, its lists and its transfers share.
pub(super) struct Core {
    pub state: Arc<State>,
    pub copiers: Copiers,
    pub speed: Speed,
    pub telemetry: bool,
    drain: Duration,
    closing: Mutex<Closing>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// How far closing has come.
#[derive(Default)]
struct Closing {
    done: bool,
}

impl Endpoint {
    pub fn new(options: &AgentOptions) -> Result<Endpoint> {
        if !is_name(&options.name) {
            bail!(
                Status::InvalidArgument,
                "agent name {:?}: 1 to {MAX_NAME} bytes without NUL are allowed",
                options.name.chars().take(64).collect::<String>()
            );
        }
        let threads = copy_threads(options)?;
        let threaded = options.progress != Progress::Caller;
        let failed =
            |e: std::io::Error| Error::from_io(format!("creating agent \"{}\"", options.name), &e);
        let bell = Arc::new(Event::new().map_err(failed)?);
        let presence = Arc::new(Presence {
            name: options.name.clone(),
            instance: random_token()?,
            knock: random_token()?,
            answer: Box::new(random_token()?),
            registry: Arc::new(Registry::new(format!("agent \"{}\"", options.name))),
            inbox: Inbox::new((!threaded).then(|| bell.clone())),
        });
        let listener = socket::listen(&presence.instance).map_err(failed)?;
        let own = Peer::new(
            presence.name.clone(),
            presence.instance,
            presence.registry.clone(),
            Reach::Here(presence.clone()),
        );
        let state = Arc::new(State {
            host: HostId::here(),
            own: Arc::new(own),
            peers: Mutex::default(),
            bell,
            closed: AtomicBool::new(false),
            process: Process::current().pid(),
            threaded,
            service: Mutex::new(Some(Service::new(listener))),
            presence,
        });
        let mut thread = None;
        if threaded {
            let state = state.clone();
            thread = Some(crate::threads::spawn("kvf-local", move || state.serve())?);
        }
        Process::current().announce(&state.presence);
        let core = Core {
            state,
            copiers: Copiers::new(threads),
            speed: Speed::new(),
            telemetry: options.telemetry,
            drain: options
                .drain_timeout
                .unwrap_or(DRAIN_TIMEOUT)
                .min(MAX_DRAIN),
            closing: Mutex::default(),
            thread: Mutex::new(thread),
        };
        Ok(Endpoint {
            core: Arc::new(core),
        })
    }
}

/// The number of copying threads, from the option or the parameter of the backend.
fn copy_threads(options: &AgentOptions) -> Result<usize> {
    let mut threads = options.copy_threads as usize;
    for (name, params) in options.backends.iter().flatten() {
        check_backend(name)?;
        for (key, value) in params {
            match (key.as_str(), value.parse()) {
                ("copy_threads", Ok(n)) => threads = n,
                ("copy_threads", Err(_)) => bail!(
                    Status::InvalidArgument,
                    "copy_threads of backend \"{BACKEND}\" is \"{value}\", which is no number"
                ),
                _ => bail!(
                    Status::InvalidArgument,
                    "backend \"{BACKEND}\" has no parameter \"{key}\"; it has \"copy_threads\""
                ),
            }
        }
    }
    if threads > MAX_THREADS {
        bail!(
            Status::InvalidArgument,
            "copy_threads is {threads}; at most {MAX_THREADS} are allowed"
        );
    }
    Ok(threads.max(1))
}

fn check_backend(name: &str) -> Result<()> {
    if name != BACKEND {
        bail!(
            Status::NotFound,
            "backend \"{name}\" does not exist; the local transport has \"{BACKEND}\""
        );
    }
    Ok(())
}

/// Every named backend must exist; none named is any.
pub(super) fn check_backends(names: &[&str]) -> Result<()> {
    names.iter().try_for_each(|name| check_backend(name))
}

fn check_kind(kind: MemKind) -> Result<()> {
    if kind != MemKind::Dram {
        bail!(
            Status::NotSupported,
            "the local transport moves DRAM only, not {}; use the transport \"nixl\" for it",
            kind.name()
        );
    }
    Ok(())
}

pub(super) fn check_payload(payload: &[u8]) -> Result<()> {
    if payload.len() > MAX_PAYLOAD {
        bail!(
            Status::InvalidArgument,
            "a notification of {} bytes; at most {MAX_PAYLOAD} are allowed",
            payload.len()
        );
    }
    Ok(())
}

fn spans<'a>(ranges: impl Iterator<Item = &'a MemDesc>) -> Result<Vec<Span>> {
    ranges.map(Span::of).collect()
}

fn spans_of(descs: &[RegDesc]) -> Result<Vec<Span>> {
    spans(descs.iter().map(|desc| &desc.range))
}

fn no_metadata_server() -> Error {
    Error::new(
        Status::NotSupported,
        "the local transport does not exchange metadata by itself; carry the bytes of \
         metadata() over a side channel",
    )
}

impl Core {
    pub fn registry(&self) -> &Arc<Registry> {
        &self.state.presence.registry
    }

    /// An error in any process but the one that made the agent.
    pub fn at_home(&self) -> Result<()> {
        if !self.state.is_at_home() {
            bail!(
                Status::InvalidState,
                "agent \"{}\" was created in process {} and cannot be used in process {}; create \
                 agents after forking",
                self.state.presence.name,
                self.state.process,
                std::process::id()
            );
        }
        Ok(())
    }

    /// Whether calls make sense: the agent is open, and this is the process that made it.
    pub fn usable(&self) -> Result<()> {
        self.at_home()?;
        if self.state.is_closed() {
            bail!(
                Status::InvalidState,
                "agent \"{}\" is closed",
                self.state.presence.name
            );
        }
        Ok(())
    }

    fn peer(&self, name: &str) -> Result<Arc<Peer>> {
        if name == self.state.presence.name {
            return Ok(self.state.own.clone());
        }
        lock(&self.state.peers).get(name).cloned().ok_or_else(|| {
            Error::new(
                Status::NotFound,
                format!("agent \"{name}\" is not known; load its metadata first"),
            )
        })
    }

    /// The connection to a peer, made now if there is none; `None` for one in this process.
    pub fn connect(&self, peer: &Peer) -> Result<(Option<Arc<Link>>, bool)> {
        let meanwhile = || {
            self.usable()?;
            // Two agents that both answer only during calls may be connecting to each other.
            if self.state.drive(Duration::ZERO) {
                return Ok(Duration::from_millis(1));
            }
            Ok(Duration::from_millis(50))
        };
        let made = peer.connect(&Caller {
            name: &self.state.presence.name,
            meanwhile: &meanwhile,
        })?;
        if made.1 {
            self.state.bell.set();
        }
        Ok(made)
    }

    pub fn send(&self, peer: &Peer, link: Option<&Link>, payload: &[u8]) -> Result<()> {
        if peer.send(link, &self.state.presence.name, payload)? {
            self.state.bell.set();
        }
        Ok(())
    }

    /// See [`Transport::close`]. May be called any number of times, from any thread.
    fn close(&self) -> Result<()> {
        if !self.state.is_at_home() {
            // A forked child has neither the threads nor, for certain, usable locks.
            return Ok(());
        }
        let mut closing = lock(&self.closing);
        if closing.done {
            return Ok(());
        }
        let deadline = Instant::now() + self.drain;
        self.state.closed.store(true, Ordering::Release);
        let presence = &self.state.presence;
        Process::current().withdraw(&presence.instance);
        let why = format!("agent \"{}\" was closed", presence.name);
        let quiet = presence
            .registry
            .close(Error::new(Status::PeerLost, why), deadline);
        presence.inbox.close();
        self.state.bell.set();
        if let Some(thread) = lock(&self.thread).take() {
            // It never blocks but in poll, which the bell ends.
            let _ = thread.join();
        }
        if let Some(mut service) = lock(&self.state.service).take() {
            service.end();
        }
        let farewell = Instant::now() + FAREWELL_LIMIT.min(self.drain);
        for (_, peer) in lock(&self.state.peers).drain() {
            if let Some(link) = peer.link() {
                link.end(farewell);
            }
            peer.lose("this agent was closed");
        }
        self.copiers.close(quiet.is_ok());
        closing.done = quiet.is_ok();
        quiet
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if self.state.is_at_home() {
            // No transfer can be under way: each holds the core.
            if let Err(e) = self.close() {
                log::warn!("local transport: {e}");
            }
            return;
        }
        // In a forked child the threads do not exist, and waiting for or detaching them is undefined.
        self.copiers.abandon();
        let thread = self.thread.get_mut();
        let thread = thread.unwrap_or_else(std::sync::PoisonError::into_inner);
        mem::forget(thread.take());
    }
}

impl Transport for Endpoint {
    fn name(&self) -> &'static str {
        BACKEND
    }

    fn plugins(&self) -> Result<Vec<String>> {
        Ok(vec![BACKEND.to_string()])
    }

    fn plugin_info(&self, plugin: &str) -> Result<BackendInfo> {
        check_backend(plugin)?;
        Ok(BackendInfo {
            params: vec![("copy_threads".to_string(), "1".to_string())],
            kinds: vec![MemKind::Dram],
        })
    }

    fn create_backend(&self, plugin: &str, _params: &[(String, String)]) -> Result<()> {
        check_backend(plugin)?;
        bail!(
            Status::NotAllowed,
            "backend \"{BACKEND}\" exists already: the local transport is created with it"
        );
    }

    fn backends(&self) -> Vec<String> {
        vec![BACKEND.to_string()]
    }

    fn backend_info(&self, backend: &str) -> Result<BackendInfo> {
        check_backend(backend)?;
        let threads = self.core.copiers.threads().to_string();
        Ok(BackendInfo {
            params: vec![("copy_threads".to_string(), threads)],
            kinds: vec![MemKind::Dram],
        })
    }

    fn register(&self, kind: MemKind, descs: &[RegDesc], backends: &[&str]) -> Result<()> {
        self.core.usable()?;
        check_backends(backends)?;
        check_kind(kind)?;
        let spans = spans_of(descs)?;
        let mut mapped = Mapped::now();
        let mut checked = Vec::with_capacity(spans.len());
        for span in spans {
            let mut access = mapped.access(span.start, span.end);
            if matches!(access, Access::Missing(_)) {
                // The list is read piece by piece; mappings that changed meanwhile may have hidden
                // this one.
                mapped = Mapped::now();
                access = mapped.access(span.start, span.end);
            }
            match access {
                Access::ReadWrite => checked.push((span, true)),
                Access::ReadOnly => checked.push((span, false)),
                Access::Missing(at) => bail!(
                    Status::InvalidArgument,
                    "{} bytes at {:#x} cannot be registered: there is no readable memory at {at:#x}",
                    span.len(),
                    span.start
                ),
            }
        }
        self.core.registry().add(&checked)
    }

    fn deregister(&self, kind: MemKind, descs: &[RegDesc], backends: &[&str]) -> Result<()> {
        self.core.usable()?;
        check_backends(backends)?;
        check_kind(kind)?;
        let deadline = Instant::now() + self.core.drain;
        self.core.registry().remove(&spans_of(descs)?, deadline)
    }

    fn query_memory(
        &self,
        kind: MemKind,
        descs: &[RegDesc],
        backend: &str,
    ) -> Result<Vec<Option<Params>>> {
        self.core.usable()?;
        check_backend(backend)?;
        check_kind(kind)?;
        // Nothing is known of memory but whether it is registered.
        let registered = |span| self.core.registry().covers(&[span]).then(Params::new);
        Ok(spans_of(descs)?.into_iter().map(registered).collect())
    }

    fn metadata(&self) -> Result<Vec<u8>> {
        self.core.usable()?;
        self.encode(true, true, self.core.registry().merged())
    }

    fn partial_metadata(
        &self,
        kind: MemKind,
        descs: &[RegDesc],
        connection_info: bool,
        backends: &[&str],
    ) -> Result<Vec<u8>> {
        self.core.usable()?;
        check_backends(backends)?;
        check_kind(kind)?;
        let mut chosen = RangeSet::default();
        for span in spans_of(descs)? {
            if !self.core.registry().covers(&[span]) {
                bail!(
                    Status::NotRegistered,
                    "{} bytes at {:#x} are not registered and cannot be told to peers",
                    span.len(),
                    span.start
                );
            }
            chosen.insert(span, true);
        }
        chosen.settle();
        self.encode(false, connection_info, chosen.merged().to_vec())
    }

    fn metadata_name(&self, metadata: &[u8]) -> Result<String> {
        Ok(Metadata::decode(metadata)?.name)
    }

    fn add_remote(&self, metadata: &[u8]) -> Result<String> {
        self.core.usable()?;
        let metadata = Metadata::decode(metadata)?;
        let state = &self.core.state;
        if metadata.name == state.presence.name {
            bail!(
                Status::InvalidArgument,
                "the metadata is of an agent called \"{}\", which is this agent's own name",
                metadata.name
            );
        }
        self.check_host(&metadata)?;
        let mut peers = lock(&state.peers);
        match peers.get(&metadata.name) {
            Some(peer) if peer.instance == metadata.instance && !peer.is_lost() => {
                if metadata.whole {
                    peer.known.replace(&metadata.ranges);
                } else {
                    let added: Vec<_> = metadata.ranges.iter().map(|&s| (s, true)).collect();
                    peer.known.add(&added)?;
                }
                Ok(metadata.name)
            }
            other => {
                let peer = new_peer(&metadata)?;
                if let Some(other) = other {
                    other.lose("another instance has taken its name");
                }
                peers.insert(metadata.name.clone(), Arc::new(peer));
                Ok(metadata.name)
            }
        }
    }

    fn remove_remote(&self, remote: &str) -> Result<()> {
        self.core.usable()?;
        match lock(&self.core.state.peers).remove(remote) {
            Some(peer) => {
                if let Some(link) = peer.link() {
                    // What has been sent is delivered as far as the socket takes it at once.
                    let _ = link.flush();
                }
                peer.lose("it was removed");
                Ok(())
            }
            None => bail!(Status::NotFound, "agent \"{remote}\" is not known"),
        }
    }

    fn check_remote(&self, remote: &str, kind: MemKind, descs: &[MemDesc]) -> Result<bool> {
        self.core.usable()?;
        let Ok(peer) = self.core.peer(remote) else {
            return Ok(false);
        };
        let spans = spans(descs.iter())?;
        let served = kind == MemKind::Dram || spans.is_empty();
        Ok(served && !peer.is_lost() && peer.known.covers(&spans))
    }

    fn connect(&self, remote: &str, backends: &[&str]) -> Result<()> {
        self.core.usable()?;
        check_backends(backends)?;
        let peer = self.core.peer(remote)?;
        self.core.connect(&peer).map(|_| ())
    }

    fn send_metadata(&self, _to: MetadataStore<'_>) -> Result<()> {
        Err(no_metadata_server())
    }

    fn send_partial_metadata(
        &self,
        _kind: MemKind,
        _descs: &[RegDesc],
        _connection_info: bool,
        _backends: &[&str],
        _to: MetadataStore<'_>,
        _label: Option<&str>,
    ) -> Result<()> {
        Err(no_metadata_server())
    }

    fn fetch_metadata(
        &self,
        _remote: &str,
        _from: MetadataStore<'_>,
        _label: Option<&str>,
    ) -> Result<()> {
        Err(no_metadata_server())
    }

    fn invalidate_metadata(&self, _at: MetadataStore<'_>) -> Result<()> {
        Err(no_metadata_server())
    }

    fn prepare(
        &self,
        side: Side<'_>,
        kind: MemKind,
        descs: Descs<'_>,
        backends: &[&str],
    ) -> Result<Arc<dyn PreparedList>> {
        self.core.usable()?;
        check_backends(backends)?;
        check_kind(kind)?;
        let peer = match side {
            Side::Local => None,
            Side::Remote(name) => {
                let peer = self.core.peer(name)?;
                peer.check()?;
                Some(peer)
            }
        };
        Ok(Arc::new(List::new(self.core.clone(), peer, descs)?))
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
        self.core.usable()?;
        let (local, remote) = ((local, local_indices), (remote, remote_indices));
        Ok(Arc::new(Copy::picked(
            &self.core, op, local, remote, options,
        )?))
    }

    fn create_transfer(
        &self,
        op: Op,
        local: (MemKind, &[MemDesc]),
        remote: (MemKind, &[MemDesc]),
        remote_agent: &str,
        options: TransferOptions<'_>,
    ) -> Result<Arc<dyn Transfer>> {
        self.core.usable()?;
        check_kind(local.0)?;
        check_kind(remote.0)?;
        let peer = self.core.peer(remote_agent)?;
        let copy = Copy::direct(&self.core, op, local.1, remote.1, peer, options)?;
        Ok(Arc::new(copy))
    }

    fn notify(&self, remote: &str, payload: &[u8], backend: Option<&str>) -> Result<()> {
        self.core.usable()?;
        backend.map_or(Ok(()), check_backend)?;
        check_payload(payload)?;
        let peer = self.core.peer(remote)?;
        let (link, _) = self.core.connect(&peer)?;
        self.core.send(&peer, link.as_deref(), payload)
    }

    fn notifications(&self, backends: &[&str]) -> Result<Vec<Notification>> {
        self.core.usable()?;
        check_backends(backends)?;
        let state = &self.core.state;
        state.drive(Duration::ZERO);
        let (messages, was_full) = state.presence.inbox.take();
        if was_full {
            // Senders were held up; the service should listen to them again.
            state.bell.set();
        }
        Ok(messages)
    }

    fn wait_for_notification(&self, limit: Duration) -> Result<()> {
        self.core.usable()?;
        let state = &self.core.state;
        let inbox = &state.presence.inbox;
        if state.threaded {
            inbox.wait(limit);
            return Ok(());
        }
        let deadline = Instant::now().checked_add(limit);
        loop {
            let left = deadline.map_or(Duration::from_secs(3600), |d| {
                d.saturating_duration_since(Instant::now())
            });
            if !inbox.is_empty() || left.is_zero() || state.is_closed() {
                return Ok(());
            }
            if !state.drive(left) {
                // Another thread is at it, and may leave at any time.
                inbox.wait(left.min(Duration::from_millis(10)));
            }
        }
    }

    fn close(&self) -> Result<()> {
        self.core.close()
    }
}

impl Endpoint {
    fn encode(&self, whole: bool, connection_info: bool, ranges: Vec<Span>) -> Result<Vec<u8>> {
        let state = &self.core.state;
        let secrets = Secrets {
            knock: state.presence.knock,
            answer: *state.presence.answer,
        };
        Metadata {
            name: state.presence.name.clone(),
            host: state.host,
            instance: state.presence.instance,
            secrets: connection_info.then_some(secrets),
            whole,
            ranges,
        }
        .encode()
    }

    /// Refuses metadata of an agent that cannot be reached, and says why not.
    fn check_host(&self, metadata: &Metadata) -> Result<()> {
        let (here, there) = (&self.core.state.host, &metadata.host);
        if here.boot != there.boot {
            bail!(
                Status::PeerIncompatible,
                "agent \"{}\" is on another host (boot id {}, here {}); the local transport serves \
                 one host, use \"nixl\" between hosts",
                metadata.name,
                hex(&there.boot),
                hex(&here.boot)
            );
        }
        if here.net_ns != there.net_ns {
            bail!(
                Status::PeerIncompatible,
                "agent \"{}\" is in another network namespace ({}, here {}), which its socket does \
                 not cross; run both containers in one (docker: --network=container:..., \
                 Kubernetes: one pod or hostNetwork)",
                metadata.name,
                there.net_ns,
                here.net_ns
            );
        }
        Ok(())
    }
}

fn new_peer(metadata: &Metadata) -> Result<Peer> {
    let Some(secrets) = metadata.secrets else {
        bail!(
            Status::NotFound,
            "the metadata of agent \"{}\" says nothing on how to connect, and that is not known \
             from before; load metadata with connection info first",
            metadata.name
        );
    };
    let (name, instance) = (metadata.name.clone(), metadata.instance);
    let known = Arc::new(Registry::new(format!("agent \"{name}\"")));
    known.replace(&metadata.ranges);
    Ok(match Process::current().find(&instance) {
        Some(presence) => Peer::new(name, instance, known, Reach::Here(presence)),
        None => Peer::there(name, instance, known, secrets),
    })
}
