//! The background thread: plan and block ids in, completions out.
//!
//! An engine's model thread must not wait for a transfer to be posted: on one host a post can run the
//! whole copy, and thousands of descriptors take milliseconds to post on any network. So it hands a
//! request over ([`Queue::submit`], about a microsecond) and looks for completions when it has time
//! ([`Queue::poll`]). The thread turns block ids into ranges, posts them in slices, polls, notifies the
//! producer when all bytes are in, and reports.
//!
//! ```text
//! engine thread          queue thread
//!   submit ── channel ──▶ waiting ──▶ moving ──────────▶ notifying ──▶ completion
//!   poll  ◀── outbox ──                │  ▲                              ▲
//!                                      │  └ slices of all requests,      │
//!                                      │    turn and turn about          │
//!                                      └ failure, deadline, cancel ──▶ resting
//! ```
//!
//! What it guarantees:
//! - A request completes once, with one status, whatever number of ranks it reads from. A failure is
//!   reported after all its other transfers have come to rest: blocks are never reported free while
//!   bytes may still land in them.
//! - The notification goes out only after all bytes are in and all guards have been found to hold, and not
//!   at all if the request fails.
//! - One request's failure, deadline or size does not hold up the others.
//! - A queue that is full says [`Status::Busy`]; nothing spins and nothing is lost.
//!
//! In files: `job` is one request's life, `slicer` cuts ranges into slices, `pace` says how large, `guards`
//! are conditions on what was read, `outbox` holds completions, `worker` is the thread, `cuda` its device
//! context.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};

use crate::agent::{Agent, MAX_NOTIFICATION};
use crate::error::{Error, Result, Status, bail};
use crate::plan::{PeerRole, Plan, Request};
use crate::sync::{lock, read, write};
use crate::threads;

mod cuda;
mod guards;
mod job;
mod outbox;
mod pace;
mod slicer;
mod worker;

pub use guards::{Guard, MAX_GUARDS};

use job::{Job, OwnedRequest};
use outbox::Outbox;
use worker::{Command, Sink, Worker};

/// Names a submitted request. Never zero, never used twice by one queue.
pub type Ticket = u64;

/// How a queue works. All zero is the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueOptions {
    /// Requests that may be outstanding: submitted, and their completions not yet polled. 0 is 4,096.
    pub capacity: usize,
    /// Bytes that one post moves at most. Smaller slices let requests take turns more often; larger
    /// ones cost fewer posts. 0 is 8 MiB, and up to 64 MiB for a request that is alone in the queue,
    /// while the transport takes posts quickly.
    pub slice_bytes: u64,
    /// Descriptors that one post has at most. 0 is 1,024, and up to 8,192 in the same case.
    pub slice_descriptors: usize,
    /// Slices of one request that may be under way at the same time. 0 is 4.
    pub slices_in_flight: usize,
}

impl QueueOptions {
    /// The limits of slices are left as they are: see `pace`.
    fn with_defaults(self) -> QueueOptions {
        let or = |value: usize, default: usize| if value == 0 { default } else { value };
        QueueOptions {
            capacity: or(self.capacity, 4096),
            slices_in_flight: or(self.slices_in_flight, 4),
            ..self
        }
    }
}

/// A request to hand over. All of it is copied.
#[derive(Clone, Copy, Debug)]
pub struct Submission<'a> {
    /// What goes where.
    pub plan: &'a Plan,
    /// For each of [`Plan::peers`] the name of its agent, as
    /// [`Agent::add_remote`](crate::agent::Agent::add_remote) returned it. May be empty for peers that
    /// are idle.
    pub agents: &'a [&'a str],
    /// Block ids.
    pub request: Request<'a>,
    /// Looked at after all bytes are in and before any peer is notified; see [`Guard`].
    pub guards: &'a [Guard],
    /// Sent to each peer that is not idle when all bytes are in.
    pub notification: Option<&'a [u8]>,
    /// The request fails with [`Status::Timeout`] if it is not through by then.
    pub deadline: Option<Duration>,
}

/// What became of a request.
#[derive(Clone, Debug)]
pub struct Completion {
    /// The ticket that [`Queue::submit`] returned.
    pub ticket: Ticket,
    /// How it ended. With `Ok` every byte is in place; with an error any part of the destination
    /// blocks may have been written. Either way nothing will be written any more.
    pub result: Result<()>,
    /// Peers that could not be notified although all bytes are in: they keep their blocks until their
    /// lease ends.
    pub not_notified: Vec<(String, Error)>,
    /// Figures.
    pub record: Record,
}

/// Figures of one request. Times are in nanoseconds since it was submitted; 0 is "did not get there".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// When it was submitted, in nanoseconds of the monotonic clock.
    pub submitted_ns: u64,
    /// When its ranges were known.
    pub planned_ns: u64,
    /// When its first slice was posted.
    pub posted_ns: u64,
    /// When its last transfer came to rest and its peers were notified.
    pub finished_ns: u64,
    /// Bytes that arrived.
    pub bytes: u64,
    /// Bytes that were asked for.
    pub total_bytes: u64,
    /// Ranges before neighbouring blocks were merged.
    pub descriptors_before: u64,
    /// Ranges after merging.
    pub descriptors: u64,
    /// Posts.
    pub slices: u64,
    /// The backend of the first post; empty if there was none.
    pub backend: String,
}

/// Figures of a queue since it was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Requests accepted.
    pub submitted: u64,
    /// Requests that ended well.
    pub succeeded: u64,
    /// Requests that ended with an error, cancelled ones included.
    pub failed: u64,
    /// Requests that were refused because the queue was full.
    pub refused: u64,
    /// Requests that are accepted and not through.
    pub running: u64,
    /// Completions that wait to be polled.
    pub unpolled: u64,
    /// Bytes that arrived.
    pub bytes: u64,
    /// Ranges before merging.
    pub descriptors_before: u64,
    /// Ranges after merging.
    pub descriptors: u64,
    /// Posts.
    pub slices: u64,
    /// CPU time of the queue's thread in nanoseconds.
    pub thread_cpu_ns: u64,
}

/// Counters that the thread and callers share.
#[derive(Default)]
struct Counters {
    submitted: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
    bytes: AtomicU64,
    descriptors_before: AtomicU64,
    descriptors: AtomicU64,
    slices: AtomicU64,
    thread_cpu_ns: AtomicU64,
}

struct Shared {
    options: QueueOptions,
    outbox: Outbox,
    counters: Counters,
    /// Submitted and not polled.
    outstanding: AtomicUsize,
}

/// A background thread that runs transfers of one agent. May be used from any thread, and only in the
/// process that created it: threads do not survive a fork.
pub struct Queue {
    commands: Sender<Command>,
    shared: Arc<Shared>,
    next_ticket: AtomicU64,
    /// Whether requests are accepted. Held for reading while one is sent and for writing while the
    /// queue is closed, so that whatever is accepted lies in front of the command to close.
    open: RwLock<bool>,
    thread: Mutex<Option<JoinHandle<Result<()>>>>,
    /// A child that drops its copy must not wait for a thread that it does not have.
    owner: u32,
    /// So that the agent is not closed on the queue's thread, which would make [`Queue::close`] wait
    /// for as long as the agent likes.
    _agent: Arc<Agent>,
}

impl Queue {
    /// Starts a queue on an agent.
    pub fn create(agent: Arc<Agent>, options: QueueOptions) -> Result<Queue> {
        Queue::start(agent, options, None)
    }

    /// Starts a queue that gives each completion to a function instead of keeping it to be polled. The
    /// function is called on the queue's thread and should do no more than pass it on.
    pub fn create_with_sink(
        agent: Arc<Agent>,
        options: QueueOptions,
        sink: impl Fn(Completion) + Send + 'static,
    ) -> Result<Queue> {
        Queue::start(agent, options, Some(Box::new(sink)))
    }

    fn start(agent: Arc<Agent>, options: QueueOptions, sink: Option<Sink>) -> Result<Queue> {
        let shared = Arc::new(Shared {
            options: options.with_defaults(),
            outbox: Outbox::new()?,
            counters: Counters::default(),
            outstanding: AtomicUsize::new(0),
        });
        let (commands, inbox) = unbounded();
        let worker = Worker::new(agent.clone(), shared.clone(), inbox, sink);
        let thread = threads::spawn("kvf-queue", move || worker.run())?;
        Ok(Queue {
            commands,
            shared,
            next_ticket: AtomicU64::new(1),
            open: RwLock::new(true),
            thread: Mutex::new(Some(thread)),
            owner: std::process::id(),
            _agent: agent,
        })
    }

    /// Hands a request over and returns at once. What is wrong with the block ids shows in the
    /// completion; only what can be seen at a glance is refused here.
    ///
    /// # Errors
    /// `Busy`: as many requests as the queue holds are outstanding; poll. `InvalidArgument`: the
    /// number of agents or groups is not the plan's, a peer that is not idle has no agent.
    /// `InvalidState`: the queue is closed, or belongs to another process (before a fork).
    pub fn submit(&self, submission: &Submission<'_>) -> Result<Ticket> {
        check(submission)?;
        if self.is_foreign() {
            bail!(
                Status::InvalidState,
                "the queue belongs to process {}; make one after the fork",
                self.owner
            );
        }
        let open = read(&self.open);
        if !*open {
            bail!(Status::InvalidState, "the queue is closed");
        }
        let capacity = self.shared.options.capacity;
        let place = |n: usize| (n < capacity).then_some(n + 1);
        let outstanding = &self.shared.outstanding;
        if outstanding
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, place)
            .is_err()
        {
            self.shared.counters.refused.fetch_add(1, Ordering::Relaxed);
            bail!(
                Status::Busy,
                "{capacity} requests are outstanding; poll before submitting more"
            );
        }
        let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        let job = Job::new(ticket, OwnedRequest::copy(submission), Instant::now());
        self.shared
            .counters
            .submitted
            .fetch_add(1, Ordering::Relaxed);
        if self.commands.send(Command::Run(Box::new(job))).is_err() {
            outstanding.fetch_sub(1, Ordering::AcqRel);
            self.shared
                .counters
                .submitted
                .fetch_sub(1, Ordering::Relaxed);
            bail!(Status::InvalidState, "the queue's thread has ended");
        }
        drop(open);
        Ok(ticket)
    }

    /// Takes up to `max` completions, oldest first. Never blocks.
    pub fn poll(&self, max: usize) -> Vec<Completion> {
        let taken = self.shared.outbox.take(max);
        self.shared
            .outstanding
            .fetch_sub(taken.len(), Ordering::AcqRel);
        taken
    }

    /// Blocks until there is a completion to poll, or the time is over, or the queue is closed and
    /// none can come any more. Returns whether there is one.
    pub fn wait(&self, limit: Duration) -> bool {
        self.shared.outbox.wait(limit)
    }

    /// Asks a request to stop. It completes with [`Status::Canceled`] once it has come to rest, or as
    /// it would have if it was through already. Harmless on one that has completed.
    ///
    /// # Errors
    /// `NotFound` for a ticket that this queue has not given out.
    pub fn cancel(&self, ticket: Ticket) -> Result<()> {
        if ticket == 0 || ticket >= self.next_ticket.load(Ordering::Relaxed) {
            bail!(Status::NotFound, "ticket {ticket} is not one of this queue");
        }
        // A closed queue has nothing left to cancel.
        let _ = self.commands.send(Command::Cancel(ticket));
        Ok(())
    }

    /// Figures since the queue was created.
    pub fn stats(&self) -> QueueStats {
        let c = &self.shared.counters;
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let (submitted, succeeded, failed) = (get(&c.submitted), get(&c.succeeded), get(&c.failed));
        QueueStats {
            submitted,
            succeeded,
            failed,
            refused: get(&c.refused),
            running: submitted.saturating_sub(succeeded + failed),
            unpolled: self.shared.outbox.len() as u64,
            bytes: get(&c.bytes),
            descriptors_before: get(&c.descriptors_before),
            descriptors: get(&c.descriptors),
            slices: get(&c.slices),
            thread_cpu_ns: get(&c.thread_cpu_ns),
        }
    }

    /// A file descriptor that is readable while there are completions to poll. It belongs to the
    /// queue: wait on it (`poll`, `epoll`), do not read or close it.
    pub fn event_fd(&self) -> std::os::fd::RawFd {
        self.shared.outbox.fd()
    }

    /// Ends the thread. No more requests are accepted; those that were are carried out for up to `drain`; then what is
    /// left is cancelled and waited for, for as long again but at least 100 ms. Completions can be
    /// polled afterwards. Harmless when repeated.
    ///
    /// # Errors
    /// `Timeout` if something was still moving at the end of that: its completion never comes, and
    /// its blocks must not be used before the agent has been closed without error.
    pub fn close(&self, drain: Duration) -> Result<()> {
        if self.is_foreign() {
            return Ok(());
        }
        let mut thread = lock(&self.thread);
        let Some(handle) = thread.take() else {
            return Ok(());
        };
        let mut open = write(&self.open);
        *open = false;
        let _ = self.commands.send(Command::Close(drain));
        drop(open);
        match handle.join() {
            Ok(result) => result,
            Err(_) => bail!(Status::Internal, "the queue's thread panicked"),
        }
    }
}

impl Queue {
    /// Whether this is a copy in a forked child.
    fn is_foreign(&self) -> bool {
        std::process::id() != self.owner
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.is_foreign() {
            // No lock is taken here: the thread may have held any of them when the process forked.
            // A thread that is not there cannot be joined or detached, and the channel's last sender
            // would wake it under a lock of the channel's own.
            let thread = self.thread.get_mut();
            std::mem::forget(thread.unwrap_or_else(PoisonError::into_inner).take());
            std::mem::forget(self.commands.clone());
        } else if let Err(e) = self.close(Duration::ZERO) {
            log::warn!("closing a queue: {e}");
        }
    }
}

fn check(submission: &Submission<'_>) -> Result<()> {
    let peers = submission.plan.peers();
    if submission.agents.len() != peers.len() {
        return Err(Error::invalid(format!(
            "{} agents for a plan with {} peers",
            submission.agents.len(),
            peers.len()
        )));
    }
    let nameless = peers.iter().zip(submission.agents);
    if let Some(i) = nameless
        .into_iter()
        .position(|(p, a)| p.role != PeerRole::Idle && a.is_empty())
    {
        return Err(Error::invalid(format!(
            "peer {i} is not idle and has no agent"
        )));
    }
    let groups = submission.plan.groups().len();
    if submission.request.groups.len() != groups {
        return Err(Error::invalid(format!(
            "block ids for {} groups, and the plan has {groups}",
            submission.request.groups.len()
        )));
    }
    check_guards(submission)?;
    if let Some(n) = submission
        .notification
        .filter(|n| n.len() > MAX_NOTIFICATION)
    {
        return Err(Error::invalid(format!(
            "notification has {} bytes, more than {MAX_NOTIFICATION}",
            n.len()
        )));
    }
    Ok(())
}

fn check_guards(submission: &Submission<'_>) -> Result<()> {
    let guards = submission.guards;
    if guards.len() > MAX_GUARDS {
        return Err(Error::invalid(format!(
            "{} guards, more than {MAX_GUARDS}",
            guards.len()
        )));
    }
    for (i, guard) in guards.iter().enumerate() {
        match submission.agents.get(guard.peer as usize) {
            Some(name) if !name.is_empty() => {}
            Some(_) => {
                return Err(Error::invalid(format!(
                    "guard {i}: peer {} has no agent",
                    guard.peer
                )));
            }
            None => {
                return Err(Error::invalid(format!(
                    "guard {i}: peer {} of {}",
                    guard.peer,
                    submission.agents.len()
                )));
            }
        }
    }
    Ok(())
}
