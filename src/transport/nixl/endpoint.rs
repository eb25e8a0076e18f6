//! One NIXL agent and what kvferry keeps beside it.
//!
//! Prepared lists and transfers hold an [`Arc`] of the endpoint, so the NIXL agent is destroyed
//! after everything that points into it. The methods are spread over the files of this room by
//! subject; each locks as little as NIXL needs.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockWriteGuard, TryLockError};
use std::time::{Duration, Instant};

use super::backends::BackendTable;
use super::ffi;
use super::notifications::Inbox;
use super::objects::c_string;
use super::regions::Registry;
use super::request::Request;
use crate::error::{Error, Result, Status, bail};
use crate::sync::{lock, read};
use crate::transport::{AgentOptions, Progress, SyncMode, TransferState};

/// How often the progress thread looks at its workers when no event wakes it.
///
/// NIXL's thread sleeps in poll(2) on UCX's event descriptors with this as its timeout. Not all of
/// UCX's transports raise events, so it bounds how late a peer's first request can be answered.
const DEFAULT_PROGRESS_DELAY: Duration = Duration::from_millis(2);

/// How often NIXL's metadata listener looks for connections: the period of its Python API.
const LISTENER_DELAY_US: u64 = 100_000;

const DEFAULT_DRAIN: Duration = Duration::from_secs(5);

/// One agent's endpoint.
pub struct Endpoint {
    pub(super) agent: ffi::Agent,
    pub(super) name: String,
    pub(super) backends: BackendTable,
    pub(super) registry: Registry,
    pub(super) inbox: Mutex<Inbox>,
    pub(super) worker_threads: u32,
    /// Whether NIXL's metadata listener runs; without it, nothing is sent to addresses either.
    pub(super) listens: bool,
    /// In the modes in which calls come one at a time, what makes them do so.
    serial: Option<Mutex<()>>,
    /// Held for reading while a request is made or posted, for writing while memory or a peer that
    /// requests may point to is taken away.
    gate: RwLock<()>,
    /// Posted transfers that may be under way, and some that were; those whose handle was dropped
    /// live on here alone until they have come to rest.
    active: Mutex<Vec<Arc<Request>>>,
    /// How many in `active` have lost their handle.
    orphans: AtomicUsize,
    closed: AtomicBool,
    drain_timeout: Duration,
    /// The process that made the agent; a forked child must not touch NIXL's threads and sockets.
    process: u32,
}

// SAFETY: the agent pointer is an opaque handle to a C++ object whose calls NIXL locks itself, or
// which `serial` serialises; nothing in it is tied to a thread.
unsafe impl Send for Endpoint {}
// SAFETY: as above.
unsafe impl Sync for Endpoint {}

impl Endpoint {
    /// Makes the NIXL agent. The library is open and its plugin folder settled.
    pub fn new(options: &AgentOptions) -> Result<Endpoint> {
        if options.name.is_empty() {
            bail!(Status::InvalidArgument, "the agent's name is empty");
        }
        let name = c_string("agent name", &options.name)?;
        let (sync, serial) = match options.sync_mode {
            SyncMode::Default | SyncMode::ReadWrite => (ffi::SYNC_RW, None),
            SyncMode::Strict => (ffi::SYNC_STRICT, Some(Mutex::new(()))),
            SyncMode::None => (ffi::SYNC_NONE, Some(Mutex::new(()))),
        };
        let config = ffi::AgentConfig {
            enable_prog_thread: options.progress != Progress::Caller,
            enable_listen_thread: options.listen_port.is_some(),
            listen_port: options.listen_port.map_or(0, i32::from),
            thread_sync: sync,
            num_workers: 1,
            pthr_delay_us: progress_delay_us(options),
            lthr_delay_us: LISTENER_DELAY_US,
            capture_telemetry: options.telemetry,
        };
        let mut agent = ptr::null_mut();
        // SAFETY: the name and the configuration are valid for the call and copied by it.
        let code =
            unsafe { ffi::nixl_capi_create_configured_agent(name.as_ptr(), &config, &mut agent) };
        if code != ffi::SUCCESS || agent.is_null() {
            let listener = match options.listen_port {
                Some(port) => format!("; it was to listen on port {port}, which may be taken"),
                None => String::new(),
            };
            bail!(
                Status::Backend,
                "NIXL could not make the agent {:?} (code {code}){listener}",
                options.name
            );
        }
        Ok(Endpoint {
            agent,
            name: options.name.clone(),
            backends: BackendTable::default(),
            registry: Registry::default(),
            inbox: Mutex::new(Inbox::default()),
            worker_threads: options.worker_threads,
            listens: options.listen_port.is_some(),
            serial,
            gate: RwLock::new(()),
            active: Mutex::new(Vec::new()),
            orphans: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            drain_timeout: options.drain_timeout.unwrap_or(DEFAULT_DRAIN),
            process: std::process::id(),
        })
    }

    /// An error once the endpoint is closed.
    pub fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            bail!(Status::InvalidState, "the agent {:?} is closed", self.name);
        }
        Ok(())
    }

    /// Makes a call into NIXL, alone if the sync mode says so.
    pub fn call<R>(&self, f: impl FnOnce(ffi::Agent) -> R) -> R {
        let _alone = self.serial.as_ref().map(|m| lock(m));
        f(self.agent)
    }

    /// Makes a call into NIXL unless another thread is in one and calls must come alone.
    pub fn try_call<R>(&self, f: impl FnOnce(ffi::Agent) -> R) -> Option<R> {
        let _alone = match &self.serial {
            Some(serial) => match serial.try_lock() {
                Ok(guard) => Some(guard),
                Err(TryLockError::Poisoned(e)) => Some(e.into_inner()),
                Err(TryLockError::WouldBlock) => return None,
            },
            None => None,
        };
        Some(f(self.agent))
    }

    /// Keeps memory and peers in place while a request that may point to them is made or posted.
    pub fn pin(&self) -> impl Drop + '_ {
        read(&self.gate)
    }

    /// Waits until no call is making or posting requests and none of the transfers picked by
    /// `concerned` is under way; nothing of that kind begins while the guard is held.
    pub fn quiesce(
        &self,
        doing: &str,
        concerned: impl Fn(&Request) -> bool,
    ) -> Result<RwLockWriteGuard<'_, ()>> {
        let deadline = Instant::now() + self.drain_timeout;
        loop {
            // Polled before the gate is shut: finding out why a transfer failed passes the gate.
            self.poll_active(&concerned);
            // Never waits in line: a waiting writer would hold up every reader behind it.
            let guard = match self.gate.try_write() {
                Ok(guard) => Some(guard),
                Err(TryLockError::Poisoned(e)) => Some(e.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            };
            if let Some(guard) = guard {
                let busy = |r: &Arc<Request>| concerned(r) && r.may_be_under_way();
                if !self.lock_active().iter().any(busy) {
                    return Ok(guard);
                }
            }
            if Instant::now() >= deadline {
                bail!(
                    Status::Busy,
                    "{doing}: transfers that use it are still under way after {:?}",
                    self.drain_timeout
                );
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Polls the posted transfers picked by `concerned`.
    fn poll_active(&self, concerned: impl Fn(&Request) -> bool) {
        let under_way = |r: &&Arc<Request>| concerned(r) && r.may_be_under_way();
        let posted: Vec<_> = self
            .lock_active()
            .iter()
            .filter(under_way)
            .cloned()
            .collect();
        for request in posted {
            let _ = request.state(self);
        }
    }

    fn lock_active(&self) -> MutexGuard<'_, Vec<Arc<Request>>> {
        lock(&self.active)
    }

    /// Remembers a transfer that was posted and is under way.
    pub fn track(&self, request: &Arc<Request>) {
        let mut active = self.lock_active();
        if request.set_tracked(true) {
            return;
        }
        if active.len() == active.capacity() {
            // Forget those at rest before growing, so that the list stays as long as the number of
            // transfers under way, and this costs next to nothing per post.
            active.retain(|r| r.may_be_under_way() || r.is_orphan() || !r.set_tracked(false));
            let spare = active.len().max(64);
            active.reserve(spare);
        }
        active.push(request.clone());
    }

    /// Takes over a transfer whose handle was dropped while it was under way.
    pub fn adopt(&self, request: &Arc<Request>) {
        let mut active = self.lock_active();
        request.set_orphan();
        if !request.set_tracked(true) {
            active.push(request.clone());
        }
        self.orphans.fetch_add(1, Ordering::AcqRel);
    }

    /// Releases dropped transfers that have come to rest. Cheap when there are none.
    pub fn reap(&self) {
        if self.orphans.load(Ordering::Acquire) == 0 {
            return;
        }
        let orphans: Vec<_> = self
            .lock_active()
            .iter()
            .filter(|r| r.is_orphan())
            .cloned()
            .collect();
        for request in orphans {
            if !matches!(request.state(self), Ok(TransferState::InProgress)) {
                let mut active = self.lock_active();
                let before = active.len();
                active.retain(|r| !Arc::ptr_eq(r, &request));
                let found = active.len() < before;
                drop(active);
                if found {
                    request.release(self);
                    self.orphans.fetch_sub(1, Ordering::AcqRel);
                }
            }
        }
    }

    /// Refuses new work and waits for what is under way.
    pub fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        match self.quiesce("closing", |_| true) {
            Ok(guard) => {
                drop(guard);
                self.reap();
                Ok(())
            }
            Err(_) => Err(Error::new(
                Status::Timeout,
                format!(
                    "the agent {:?} still has transfers under way after {:?}; it stays in memory",
                    self.name, self.drain_timeout
                ),
            )),
        }
    }
}

/// The timeout of NIXL's progress thread; 0 makes it spin.
fn progress_delay_us(options: &AgentOptions) -> u64 {
    match options.progress {
        Progress::Spin => 0,
        Progress::Thread | Progress::Caller => {
            let delay = options.progress_delay.unwrap_or(DEFAULT_PROGRESS_DELAY);
            // NIXL stores it in an int, and waits whole milliseconds, at least one.
            (delay.as_micros().clamp(1, i32::MAX as u128)) as u64
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // A forked child has the memory but not the threads. What NIXL would do to shut down
            // belongs to the parent.
            return;
        }
        self.closed.store(true, Ordering::Release);
        if let Err(e) = self.close() {
            log::warn!("{}", e.message());
            return;
        }
        // Finished transfers that nobody released; their handles are gone, or we would not be here.
        for request in self.lock_active().drain(..).collect::<Vec<_>>() {
            request.release(self);
        }
        self.backends.clear();
        // SAFETY: the agent was made by `new` and is destroyed only here; every list and request
        // held an `Arc` of this endpoint and has been released.
        let code = unsafe { ffi::nixl_capi_destroy_agent(self.agent) };
        if code != ffi::SUCCESS {
            log::warn!(
                "NIXL failed to destroy the agent {:?} (code {code})",
                self.name
            );
        }
    }
}
