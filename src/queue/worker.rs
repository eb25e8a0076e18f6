//! The thread: takes requests, gives each its turn, sleeps when there is nothing to do.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::cuda::Contexts;
use super::guards::Words;
use super::job::{Job, Step, Tools};
use super::slicer::Slice;
use super::{Completion, Shared, Ticket};
use crate::agent::Agent;
use crate::clock::thread_cpu_ns;
use crate::error::{Error, Result, Status, bail};

pub(super) enum Command {
    Run(Box<Job>),
    Cancel(Ticket),
    /// Carry out what there is for this long, then stop.
    Close(Duration),
}

/// Rounds without progress in which the thread only yields, before it sleeps between looks: a
/// same-host copy or an RDMA read of a few blocks is over by then.
const EAGER_ROUNDS: u32 = 200;
/// The shortest and the longest sleep between looks. In between it is a share of how long nothing has
/// moved, so that what takes long is looked at seldom and noticed late by a small part of its time.
const NAPS: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(1));
const NAP_SHARE: u32 = 16;
/// How long cancelled transfers get to come to rest when the queue is closed without a drain time.
const LEAST_REST: Duration = Duration::from_millis(100);

/// Where completions go that nobody polls for.
pub(super) type Sink = Box<dyn Fn(Completion) + Send>;

pub(super) struct Worker {
    agent: Arc<Agent>,
    shared: Arc<Shared>,
    inbox: Receiver<Command>,
    #[allow(
        clippy::vec_box,
        reason = "jobs are large, and are taken out of the middle in their order"
    )]
    jobs: Vec<Box<Job>>,
    slice: Slice,
    closing: Option<Closing>,
    sink: Option<Sink>,
}

#[derive(Clone, Copy)]
struct Closing {
    cancel_at: Instant,
    give_up_at: Instant,
    canceled: bool,
}

/// A time in which nothing moves.
struct Lull {
    since: Instant,
    rounds: u32,
}

impl Lull {
    fn begin() -> Self {
        Lull {
            since: Instant::now(),
            rounds: 0,
        }
    }
}

/// Tells the callers that the thread has ended.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.outbox.end();
    }
}

impl Worker {
    pub(super) fn new(
        agent: Arc<Agent>,
        shared: Arc<Shared>,
        inbox: Receiver<Command>,
        sink: Option<Sink>,
    ) -> Self {
        Worker {
            agent,
            shared,
            inbox,
            jobs: Vec::new(),
            slice: Slice::default(),
            closing: None,
            sink,
        }
    }

    pub(super) fn run(mut self) -> Result<()> {
        // However this thread ends, nobody waits for it any longer.
        let _ending = Ending(self.shared.clone());
        // Made here: a current context belongs to the thread.
        let mut contexts = Contexts::new();
        let mut words = Words::new(self.agent.clone());
        let mut lull = Lull::begin();
        loop {
            self.receive(&lull);
            if let Some(result) = self.close_step() {
                if result.is_err() {
                    // Bytes still move; releasing a device's last context would pull it from under them.
                    std::mem::forget(contexts);
                }
                words.end();
                return result;
            }
            if self.round(&mut contexts, &mut words) {
                lull = Lull::begin();
            } else {
                lull.rounds = lull.rounds.saturating_add(1);
            }
        }
    }

    /// Takes what has been sent; waits for it when there is nothing else to do.
    fn receive(&mut self, lull: &Lull) {
        if self.jobs.is_empty() && self.closing.is_none() {
            self.publish_cpu_time();
            match self.inbox.recv() {
                Ok(command) => self.obey(command),
                // The queue is gone without a word: it forked, or its owner panicked.
                Err(_) => self.obey(Command::Close(Duration::ZERO)),
            }
        } else if lull.rounds > EAGER_ROUNDS {
            let nap = (lull.since.elapsed() / NAP_SHARE).clamp(NAPS.0, NAPS.1);
            match self.inbox.recv_timeout(nap) {
                Ok(command) => self.obey(command),
                Err(RecvTimeoutError::Timeout) => {}
                // Already closing; there is nobody to hear from.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(nap),
            }
        } else if lull.rounds > 0 {
            std::thread::yield_now();
        }
        while let Ok(command) = self.inbox.try_recv() {
            self.obey(command);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Run(job) => self.jobs.push(job),
            Command::Cancel(ticket) => {
                if let Some(job) = self.jobs.iter_mut().find(|j| j.ticket == ticket) {
                    job.fail(Error::new(Status::Canceled, "the request was cancelled"));
                }
            }
            Command::Close(drain) => {
                let now = Instant::now();
                let rest = drain.max(LEAST_REST);
                // A drain time that no clock can count to is "as long as it takes".
                let far = now + Duration::from_secs(365 * 86_400);
                let cancel_at = now.checked_add(drain).unwrap_or(far);
                let give_up_at = cancel_at.checked_add(rest).unwrap_or(far);
                self.closing = Some(Closing {
                    cancel_at,
                    give_up_at,
                    canceled: false,
                });
            }
        }
    }

    /// One step of every job; whether anything moved on.
    fn round(&mut self, contexts: &mut Contexts, words: &mut Words) -> bool {
        let mut moved = false;
        let mut i = 0;
        while i < self.jobs.len() {
            let mut tools = Tools {
                agent: &self.agent,
                options: &self.shared.options,
                alone: self.jobs.len() == 1,
                contexts,
                words,
                slice: &mut self.slice,
            };
            match self.jobs[i].step(&mut tools) {
                Step::Waiting => i += 1,
                Step::Moved => {
                    moved = true;
                    i += 1;
                }
                Step::Finished(completion) => {
                    moved = true;
                    self.jobs.remove(i);
                    self.report(*completion);
                }
            }
        }
        moved
    }

    fn report(&self, completion: Completion) {
        let c = &self.shared.counters;
        let r = &completion.record;
        let outcome = if completion.result.is_ok() {
            &c.succeeded
        } else {
            &c.failed
        };
        outcome.fetch_add(1, Ordering::Relaxed);
        c.bytes.fetch_add(r.bytes, Ordering::Relaxed);
        c.descriptors_before
            .fetch_add(r.descriptors_before, Ordering::Relaxed);
        c.descriptors.fetch_add(r.descriptors, Ordering::Relaxed);
        c.slices.fetch_add(r.slices, Ordering::Relaxed);
        self.publish_cpu_time();
        let Some(sink) = &self.sink else {
            return self.shared.outbox.put(completion);
        };
        self.shared.outstanding.fetch_sub(1, Ordering::AcqRel);
        // Unwind safety: nothing of ours is in its hands.
        if catch_unwind(AssertUnwindSafe(|| sink(completion))).is_err() {
            log::error!("the function that takes a queue's completions panicked");
        }
    }

    /// What closing asks for now; the thread's result when it is over.
    fn close_step(&mut self) -> Option<Result<()>> {
        let mut closing = self.closing?;
        let now = Instant::now();
        if self.jobs.is_empty() {
            return Some(Ok(()));
        }
        if now >= closing.cancel_at && !closing.canceled {
            for job in &mut self.jobs {
                job.fail(Error::new(Status::Canceled, "the queue was closed"));
            }
            closing.canceled = true;
            self.closing = Some(closing);
        } else if now >= closing.give_up_at {
            return Some(self.give_up());
        }
        None
    }

    fn give_up(&self) -> Result<()> {
        bail!(
            Status::Timeout,
            "{} requests were still moving bytes when the queue was closed",
            self.jobs.len()
        )
    }

    fn publish_cpu_time(&self) {
        self.shared
            .counters
            .thread_cpu_ns
            .store(thread_cpu_ns(), Ordering::Relaxed);
    }
}
