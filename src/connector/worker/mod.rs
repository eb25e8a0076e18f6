//! The half that lives in each rank.
//!
//! An engine hands a [`Worker`] the bytes that its scheduler half has made, once per step
//! ([`Worker::step`]), and asks what has become of requests ([`Worker::poll`]). Both return at once: one
//! background thread owns all state, and everything happens there, one thing after the other.
//!
//! ```text
//!  engine's thread                  worker's thread                        others
//!    step ───── channel ───────▶ receives ── plan, blocks, guards ──▶ queue's thread
//!    poll ◀──── outbox ◀──────── leases   ◀── completions ──────────     (transfers)
//!                                pushes   ── whom to meet ──────────▶ handshake threads
//!                                peers    ◀── links ────────────────     (side channel)
//!                                         ◀── messages ── agent
//! ```
//!
//! # What it guarantees
//!
//! - A request is reported once, and as received only when every byte is in place and was its own: where
//!   the producer is kvferry the lease word proves that ([`LeaseRef`](super::LeaseRef)); with a producer
//!   that has no such words a lease is estimated, from when the request entered this engine and from
//!   the heartbeats it sent. The estimate takes it that the producer's lease is as long as ours, and
//!   that the router did not hold the request back.
//! - It is reported as failed only when nothing will be written into its blocks any more. (A producer that
//!   *writes* cannot be stopped from here: push is as safe as its timeout is long.)
//! - Blocks that are kept are reported as sent when all readers are through or the lease has ended, and
//!   the lease word is raised before that.
//! - Whatever peers and routers send ends as a failed request or a dropped message, said once.
//! - Everything that waits has a deadline.
//!
//! # In files
//!
//! `thread` is the loop, `receive` a receive's life, `submission` what the queue gets, `leases` what is
//! kept, `heartbeat` what others are asked to keep, `push` (with `registrations`) and `written` the two
//! sides of a producer that writes, `notify` messages, `peers` who is known, `handshake` how they become
//! known, `link` what that gives, `stats` and `outbox` what comes out.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};

use super::Mode;
use super::geometry::{self, KvCache};
use super::step::Step;
use super::wire::Payload;
use crate::agent::Agent;
use crate::error::{Result, Status, bail};
use crate::memory::RegDesc;
use crate::queue::Queue;
use crate::sync::lock;
use crate::threads;

mod handshake;
mod hash;
mod heartbeat;
mod leases;
mod link;
mod notify;
mod options;
mod outbox;
mod peers;
mod push;
mod receive;
mod registrations;
mod stats;
mod submission;
mod thread;
mod written;

pub use options::WorkerOptions;
pub use outbox::Results;
pub use stats::{RecordKind, RequestRecord};

use handshake::{Context, Handshakes};
use leases::{LeaseTable, Leases};
use link::Names;
use outbox::Outbox;
use stats::Stats;
use thread::{Core, Input};

/// How much there is of everything, as the thread last saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerState {
    /// Receives that are not over.
    pub receives: usize,
    /// Requests that are kept.
    pub holds: usize,
    /// Requests that wait to be written or are being written.
    pub pushes: usize,
    /// Peer engines that are known.
    pub peers: usize,
    /// Handshakes under way.
    pub handshakes: usize,
    /// Push: requests that a producer says to have written, and that no step has named yet. Forgotten
    /// after a minute.
    pub early: usize,
}

#[derive(Default)]
struct StateCells {
    receives: AtomicUsize,
    holds: AtomicUsize,
    pushes: AtomicUsize,
    peers: AtomicUsize,
    handshakes: AtomicUsize,
    early: AtomicUsize,
}

/// The KV cache, once it is registered.
struct Cache {
    local: geometry::Local,
    hash: String,
}

/// What the thread and callers share.
struct Shared {
    options: Arc<WorkerOptions>,
    outbox: Outbox,
    stats: Stats,
    state: StateCells,
    /// Whether the thread has been asked to look for messages and has not done so.
    nudged: AtomicBool,
}

/// One rank's half of the connector. May be used from any thread, and only in the process that created
/// it: threads do not survive a fork.
pub struct Worker {
    shared: Arc<Shared>,
    inputs: Sender<Input>,
    thread: Mutex<Option<JoinHandle<Result<()>>>>,
    agent: Arc<Agent>,
    table: Arc<LeaseTable>,
    cache: OnceLock<Arc<Cache>>,
    registering: Mutex<()>,
    owner: u32,
}

impl Worker {
    /// Starts a worker on an agent, whose messages it takes from then on.
    ///
    /// # Errors
    /// `InvalidArgument` for options out of range; `NotSupported` for a combination that is not
    /// offered, with the way out; `ResourceExhausted` without threads.
    pub fn create(agent: Arc<Agent>, options: WorkerOptions) -> Result<Worker> {
        options.check()?;
        let options = Arc::new(options);
        let table = Arc::new(LeaseTable::new(agent.clone())?);
        let shared = Arc::new(Shared {
            options: options.clone(),
            outbox: Outbox::new()?,
            stats: Stats::default(),
            state: StateCells::default(),
            nudged: AtomicBool::new(false),
        });
        let (inputs, inbox) = unbounded();
        let sink = inputs.clone();
        let queue = Queue::create_with_sink(agent.clone(), options.queue, move |done| {
            let _ = sink.send(Input::Done(Box::new(done)));
        })?;
        let context = Arc::new(Context {
            agent: agent.clone(),
            names: Arc::new(Names::default()),
            options: options.clone(),
            stop: AtomicBool::new(false),
        });
        let core = Core {
            shared: shared.clone(),
            agent: agent.clone(),
            queue,
            handshakes: Handshakes::new(context.clone(), inputs.clone()),
            context,
            peers: Default::default(),
            leases: Leases::new(table.clone(), options.lease),
            receives: Default::default(),
            estimates: Default::default(),
            pushes: Default::default(),
            once: Default::default(),
            cache: None,
            inbox,
            swept: Instant::now(),
        };
        let thread = threads::spawn("kvf-worker", move || core.run())?;
        Ok(Worker {
            shared,
            inputs,
            thread: Mutex::new(Some(thread)),
            agent,
            table,
            cache: OnceLock::new(),
            registering: Mutex::new(()),
            owner: std::process::id(),
        })
    }

    /// Registers the KV cache: works out its regions, registers their memory with the agent. Once.
    ///
    /// # Errors
    /// As [`geometry::local`] and [`Agent::register`]; `InvalidState` the second time, and when the
    /// worker is closed.
    pub fn register_kv(&self, cache: &KvCache) -> Result<()> {
        self.check_process()?;
        let _one_at_a_time = lock(&self.registering);
        if self.cache.get().is_some() {
            bail!(Status::InvalidState, "the KV cache is registered already");
        }
        if lock(&self.thread).is_none() {
            bail!(Status::InvalidState, "the worker is closed");
        }
        let options = &self.shared.options;
        let local = geometry::local(cache, options.parallel)?;
        self.register_memory(&local)?;
        let hash = match &options.compat_hash {
            Some(hash) => hash.clone(),
            None => hash::of(cache, options.mode),
        };
        let cache = Arc::new(Cache { local, hash });
        let _ = self.cache.set(cache.clone());
        let _ = self.inputs.send(Input::Cache(cache));
        Ok(())
    }

    /// Registers all ranges or none.
    fn register_memory(&self, local: &geometry::Local) -> Result<()> {
        for (i, m) in local.memory.iter().enumerate() {
            let range: RegDesc = m.range.into();
            if let Err(e) = self.agent.register(m.mem, &[range], &[]) {
                deregister(&self.agent, &local.memory[..i]);
                return Err(e.context("registering the KV cache"));
            }
        }
        Ok(())
    }

    /// Which side moves the bytes.
    pub fn mode(&self) -> Mode {
        self.shared.options.mode
    }

    /// What this rank answers to handshakes, for the engine's side channel to serve.
    ///
    /// # Errors
    /// `InvalidState` before [`Worker::register_kv`].
    pub fn payload(&self) -> Result<Vec<u8>> {
        let Some(cache) = self.cache.get() else {
            bail!(Status::InvalidState, "the KV cache has not been registered");
        };
        let mut metadata = cache.local.metadata.clone();
        metadata
            .engine_id
            .clone_from(&self.shared.options.engine_id);
        metadata.agent_metadata = self.agent.metadata()?;
        metadata.lease_table = Some(self.table.place());
        Payload::new(cache.hash.clone(), &metadata)?.encode()
    }

    /// Takes the bytes of an engine step, and returns at once.
    ///
    /// # Errors
    /// `PeerIncompatible` for bytes that are none; `InvalidState` when the worker is closed.
    pub fn step(&self, bytes: &[u8]) -> Result<()> {
        let step = Step::decode(bytes)?;
        self.take_step(step)
    }

    /// [`Worker::step`] with the step itself.
    pub fn take_step(&self, step: Step) -> Result<()> {
        self.check_process()?;
        if self.inputs.send(Input::Step(Box::new(step))).is_err() {
            bail!(Status::InvalidState, "the worker is closed");
        }
        Ok(())
    }

    /// What has become of requests since the last call. Never blocks.
    pub fn poll(&self) -> Results {
        if self.check_process().is_ok() && !self.shared.nudged.swap(true, Ordering::AcqRel) {
            let _ = self.inputs.send(Input::Nudge);
        }
        let mut results = self.shared.outbox.take();
        results.has_stats = self.shared.stats.any();
        results
    }

    /// Blocks until there is something to poll, or the time is over; whether there is. For engines
    /// that have nothing else to do.
    pub fn wait(&self, limit: Duration) -> bool {
        self.shared.outbox.wait(limit)
    }

    /// A descriptor that is readable while there is something to poll. It belongs to the worker: do not
    /// read or close it.
    pub fn event_fd(&self) -> RawFd {
        self.shared.outbox.fd()
    }

    /// Figures since the last call, as a JSON object of lists by vLLM's names; `{}` if there are none.
    pub fn take_stats(&self) -> String {
        self.shared.stats.take_json()
    }

    /// Records of the requests that are over since the last call, the last few thousand at most.
    pub fn take_records(&self) -> Vec<RequestRecord> {
        self.shared.stats.take_records()
    }

    /// The same as JSON, one object per line.
    pub fn take_records_json(&self) -> String {
        stats::lines(&self.take_records())
    }

    /// How much there is of everything.
    pub fn state(&self) -> WorkerState {
        let get = |n: &AtomicUsize| n.load(Ordering::Acquire);
        let s = &self.shared.state;
        WorkerState {
            receives: get(&s.receives),
            holds: get(&s.holds),
            pushes: get(&s.pushes),
            peers: get(&s.peers),
            handshakes: get(&s.handshakes),
            early: get(&s.early),
        }
    }

    /// Ends the worker. Transfers are carried out for up to `drain`, then cancelled; peers are
    /// forgotten, leases end, memory is deregistered. Bounded, and harmless when repeated.
    ///
    /// # Errors
    /// `Timeout` if bytes were still moving at the end of that: as [`Queue::close`]. Peers and memory
    /// then stay known to the agent, until it has ended.
    pub fn close(&self, drain: Duration) -> Result<()> {
        if std::process::id() != self.owner {
            return Ok(());
        }
        let Some(thread) = lock(&self.thread).take() else {
            return Ok(());
        };
        let _ = self.inputs.send(Input::Close(drain));
        let result = match thread.join() {
            Ok(result) => result,
            Err(_) => bail!(Status::Internal, "the worker's thread panicked"),
        };
        // After whoever is registering now: what is registered later than this is refused.
        let _one_at_a_time = lock(&self.registering);
        match self.cache.get() {
            // Taking memory away from under the hardware is worse than leaving it.
            _ if still_moving(&result) => {}
            Some(cache) => deregister(&self.agent, &cache.local.memory),
            None => {}
        }
        result
    }

    fn check_process(&self) -> Result<()> {
        if std::process::id() != self.owner {
            bail!(
                Status::InvalidState,
                "the worker belongs to process {}; make one after the fork",
                self.owner
            );
        }
        Ok(())
    }
}

/// Whether a queue was closed while bytes of it were moving.
fn still_moving(closed: &Result<()>) -> bool {
    matches!(closed, Err(e) if e.status() == Status::Timeout)
}

fn deregister(agent: &Agent, memory: &[geometry::Memory]) {
    for m in memory {
        let range: RegDesc = m.range.into();
        // The agent may have been closed before.
        if let Err(e) = agent.deregister(m.mem, &[range], &[]) {
            log::debug!("deregistering the KV cache: {e}");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::process::id() != self.owner {
            // As for a queue: the thread is not there, and a lock may be held for ever.
            let thread = self.thread.get_mut();
            std::mem::forget(thread.unwrap_or_else(PoisonError::into_inner).take());
            std::mem::forget(self.inputs.clone());
            std::mem::forget(self.table.clone());
        } else if let Err(e) = self.close(Duration::ZERO) {
            log::warn!("closing a worker: {e}");
        }
    }
}
