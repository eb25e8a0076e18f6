//! Fetching what other engines hold: a receive from the engine step that asks for it to the report.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::link::{Link, Purpose};
use super::peers::{Key, Waiting, Wanted};
use super::stats::{Kind, RecordKind, RequestRecord, Times};
use super::submission;
use super::thread::Core;
use super::written::Early;
use crate::clock::monotonic_ns;
use crate::connector::Mode;
use crate::connector::step::Receive;
use crate::connector::wire::Notification;
use crate::error::{Error, Result, Status, bail};
use crate::memory::MemKind;
use crate::queue::{Completion, Record, Submission, Ticket};

/// A producer that keeps blocks until a stated time is not read from when that is so near: for the clocks'
/// difference, which is measured, and for the read.
const EXPIRY_MARGIN: f64 = 5.0;

/// How far a receive has come.
pub(super) enum Stage {
    /// Being looked at for the first time.
    Arrived,
    /// Waits for a handshake.
    Waiting,
    /// Waits for room in the queue.
    Backlog,
    /// Bytes move.
    Moving(Ticket),
    /// Push: the producer writes. Agents that have said that they are through, and how many there are.
    Written {
        from: HashSet<String>,
        wanted: u32,
        deadline: Instant,
    },
}

/// A receive that is not over.
pub(super) struct Receiving {
    pub what: Receive,
    pub stage: Stage,
    pub link: Option<Arc<Link>>,
    /// Push: agents that said that they had written it before they were told where by this rank.
    pub early: HashSet<String>,
    canceled: bool,
    times: Times,
}

impl Receiving {
    fn new(what: Receive) -> Self {
        Receiving {
            what,
            stage: Stage::Arrived,
            link: None,
            early: HashSet::new(),
            canceled: false,
            times: Times::now(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.what.local.iter().all(Vec::is_empty)
    }
}

/// All receives.
#[derive(Default)]
pub(super) struct Receives {
    pub by_id: HashMap<String, Receiving>,
    by_ticket: HashMap<Ticket, String>,
    backlog: VecDeque<String>,
    pub early: Early,
}

impl Receives {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Receives whose producer writes.
    pub(super) fn written(&self) -> usize {
        let written = |r: &&Receiving| matches!(r.stage, Stage::Written { .. });
        self.by_id.values().filter(written).count()
    }

    /// Whether a receive waits for this handshake.
    pub(super) fn waits_for(&self, id: &str, key: &Key) -> bool {
        let waits = |r: &Receiving| {
            matches!(r.stage, Stage::Waiting) && r.what.peer.engine_id == key.engine_id
        };
        self.by_id.get(id).is_some_and(waits)
    }

    /// Engines that something is wanted of.
    pub(super) fn engines(&self) -> HashSet<String> {
        let engines = self.by_id.values().map(|r| r.what.peer.engine_id.clone());
        engines.collect()
    }
}

impl Core {
    /// A receive is asked for.
    pub(super) fn receive(&mut self, what: Receive) {
        if !what.awaited && what.local.iter().all(Vec::is_empty) {
            return self.let_go(&what);
        }
        let now = Instant::now();
        let id = what.request_id.clone();
        if self.receives.by_id.contains_key(&id) {
            log::warn!(
                "request \"{id}\" is being received already; asked for again, it is ignored"
            );
            return;
        }
        let lease = self.shared.options.lease;
        // Without a time, which is longer ago than there is a clock, nothing is taken to be kept.
        if let Some(since) = now.checked_sub(Duration::from_nanos(what.waited_ns)) {
            let (engine_id, remote_id) = (&what.peer.engine_id, &what.remote_request_id);
            self.estimates.heard(engine_id, remote_id, lease, since);
        }
        let mut receiving = Receiving::new(what);
        receiving.early = self.receives.early.take(&id);
        self.receives.by_id.insert(id.clone(), receiving);
        self.resume(&id);
    }

    /// Nothing is wanted of a request, and its producer is told. This is not reported and so has no hold on
    /// the id here: the engine may be using it again when the handshake is done.
    fn let_go(&mut self, what: &Receive) {
        if self.shared.options.mode == Mode::Push {
            // Who writes learns it by not being registered with.
            return;
        }
        let remote_id = what.remote_request_id.clone();
        let waiting = Some(Waiting::Farewell {
            remote_id: remote_id.clone(),
        });
        match self.want(Purpose::Transfer, &what.peer, what.registration, waiting) {
            Wanted::Later(_) => {}
            Wanted::Refused(e) => not_let_go(&remote_id, &e),
            Wanted::Link(link) => self.tell_done(&link, &remote_id),
        }
    }

    /// A receive is asked for and called off in one breath.
    pub(super) fn decline(&mut self, what: Receive) {
        let id = what.request_id.clone();
        self.receives.by_id.insert(id.clone(), Receiving::new(what));
        let why = "the request was cancelled before its producer was told";
        self.fail(&id, Error::new(Status::Canceled, why));
    }

    /// Goes on with a receive that may have what it waited for.
    pub(super) fn resume(&mut self, id: &str) {
        let Some(r) = self.receives.by_id.get(id) else {
            return;
        };
        let purpose = match self.shared.options.mode {
            Mode::Pull => Purpose::Transfer,
            Mode::Push => Purpose::Notify,
        };
        let (address, registration) = (r.what.peer.clone(), r.what.registration);
        let waiting = Some(Waiting::Receive(id.to_owned()));
        match self.want(purpose, &address, registration, waiting) {
            Wanted::Later(_) => self.set_stage(id, Stage::Waiting),
            Wanted::Refused(e) => self.fail(id, e),
            Wanted::Link(link) => {
                if let Some(r) = self.receives.by_id.get_mut(id) {
                    r.link = Some(link.clone());
                }
                let done = match purpose {
                    Purpose::Transfer => self.start_read(id, &link),
                    Purpose::Notify => self.register(id, &link),
                };
                if let Err(e) = done {
                    self.fail(id, e);
                }
            }
        }
    }

    /// A receive that a panic has left where it began ends as failed.
    pub(super) fn answer_if_lost(&mut self, id: &str) {
        let lost = |r: &Receiving| matches!(r.stage, Stage::Arrived);
        if self.receives.by_id.get(id).is_some_and(lost) {
            self.fail(id, Error::new(Status::Internal, "a panic in the worker"));
        }
    }

    pub(super) fn set_stage(&mut self, id: &str, stage: Stage) {
        if let Some(r) = self.receives.by_id.get_mut(id) {
            r.stage = stage;
        }
    }

    /// Hands a receive to the queue, or says that there is nothing to read.
    fn start_read(&mut self, id: &str, link: &Arc<Link>) -> Result<()> {
        let Some(r) = self.receives.by_id.get(id) else {
            return Ok(());
        };
        if r.is_empty() {
            let remote_id = r.what.remote_request_id.clone();
            self.tell_done(link, &remote_id);
            self.finish(id, Ok(()), &Record::default());
            return Ok(());
        }
        self.check_expiry(&r.what, link, Instant::now(), EXPIRY_MARGIN)?;
        let parts = submission::pull(link, &r.what)?;
        let notification =
            Notification::done(r.what.remote_request_id.clone(), submission::readers(link))
                .encode()?;
        let agents: Vec<&str> = link.ranks.iter().map(|r| r.agent.as_str()).collect();
        let submitted = self.queue.submit(&Submission {
            plan: parts.plan,
            agents: &agents,
            request: parts.request(&parts.groups()),
            guards: &parts.guards,
            notification: Some(&notification),
            deadline: Some(self.shared.options.transfer_timeout),
        });
        match submitted {
            Ok(ticket) => {
                let key = key_of(&r.what);
                self.peers.begin(&key);
                self.receives.by_ticket.insert(ticket, id.to_owned());
                if let Some(r) = self.receives.by_id.get_mut(id) {
                    r.stage = Stage::Moving(ticket);
                    r.times.queued_ns = monotonic_ns();
                }
                Ok(())
            }
            Err(e) if e.status() == Status::Busy => {
                self.receives.backlog.push_back(id.to_owned());
                self.set_stage(id, Stage::Backlog);
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// There may be room in the queue again.
    pub(super) fn retry(&mut self) {
        for _ in 0..self.receives.backlog.len() {
            let Some(id) = self.receives.backlog.pop_front() else {
                return;
            };
            let waits = |r: &Receiving| matches!(r.stage, Stage::Backlog);
            if !self.receives.by_id.get(&id).is_some_and(waits) {
                // Cancelled meanwhile; the id may be another request's.
                continue;
            }
            self.set_stage(&id, Stage::Arrived);
            self.safely("a receive", |core| core.resume(&id));
            self.answer_if_lost(&id);
            if self.receives.backlog.back() == Some(&id) {
                return;
            }
        }
    }

    /// Refuses blocks that their producer may have given up. With a lease word it is the word that tells,
    /// after the read.
    fn check_expiry(&self, what: &Receive, link: &Link, now: Instant, margin: f64) -> Result<()> {
        if let Some(expiry) = what.expiry {
            let left = expiry - link.clock_offset - monotonic_ns() as f64 / 1e9;
            if left.is_nan() || left <= margin {
                bail!(
                    Status::Expired,
                    "the blocks are kept for {left:.3} s more, and {margin} s are needed"
                );
            }
        } else if submission::word_of(link, what).is_none() {
            let until = self
                .estimates
                .until(&what.peer.engine_id, &what.remote_request_id);
            let late = until.is_none_or(|until| now >= until);
            if late {
                bail!(
                    Status::Expired,
                    "the lease of a producer without lease words may have ended"
                );
            }
        }
        Ok(())
    }

    /// A read is over.
    pub(super) fn read(&mut self, done: Completion) {
        let Some(id) = self.receives.by_ticket.remove(&done.ticket) else {
            return;
        };
        let Some(r) = self.receives.by_id.get(&id) else {
            return;
        };
        let (key, link, canceled) = (key_of(&r.what), r.link.clone(), r.canceled);
        let now = Instant::now();
        self.peers.end(&key, now);
        let remote_id = r.what.remote_request_id.clone();
        // The queue tells the producer when all bytes are in, whatever is thought of them here.
        let told = done.result.is_ok();
        let result = match (&link, done.result) {
            (Some(link), Ok(())) => self.check_expiry(&r.what, link, now, 0.0),
            (_, other) => other,
        };
        for (agent, e) in &done.not_notified {
            self.not_told(agent, e);
        }
        if let (Some(link), Err(e)) = (&link, &result) {
            if self.is_lost(link, e) {
                self.lose(&key, link, now);
            } else if canceled && !told {
                self.tell_done(link, &remote_id);
            }
        }
        self.renew(&key);
        self.finish(&id, result, &done.record);
    }

    /// A peer is gone.
    pub(super) fn lose(&mut self, key: &Key, link: &Link, now: Instant) {
        self.estimates.lost(link, now);
        self.peers.lost(key, now);
    }

    /// Whether a failure means that hands have to be shaken again.
    pub(super) fn is_lost(&self, link: &Link, e: &Error) -> bool {
        let known = |agent: &str| self.agent.check_remote(agent, MemKind::Dram, &[]);
        match e.status() {
            Status::PeerLost | Status::NotRegistered | Status::NotFound => true,
            Status::Backend => link
                .ranks
                .iter()
                .any(|rank| matches!(known(&rank.agent), Ok(false) | Err(_))),
            _ => false,
        }
    }

    /// A receive is no longer wanted.
    pub(super) fn cancel(&mut self, id: &str) {
        let Some(r) = self.receives.by_id.get_mut(id) else {
            return;
        };
        match r.stage {
            Stage::Moving(ticket) => {
                r.canceled = true;
                if let Err(e) = self.queue.cancel(ticket) {
                    log::debug!("cancelling request \"{id}\": {e}");
                }
            }
            // Nobody can stop the producer: over when it is through, or when it has had its time.
            Stage::Written { .. } => r.canceled = true,
            // Nothing moves. What is left to do is to tell the producer, once that is possible.
            Stage::Arrived | Stage::Waiting | Stage::Backlog => {
                let canceled = Error::new(Status::Canceled, "the request was cancelled");
                let what = r.what.clone();
                self.fail(id, canceled);
                self.let_go(&what);
            }
        }
    }

    /// A receive has failed with nothing under way.
    pub(super) fn fail(&mut self, id: &str, e: Error) {
        self.finish(id, Err(e), &Record::default());
    }

    /// Reports a receive and forgets it.
    pub(super) fn finish(&mut self, id: &str, result: Result<()>, record: &Record) {
        let Some(r) = self.receives.by_id.remove(id) else {
            return;
        };
        if self.shared.options.mode == Mode::Push {
            self.receives.early.ended(id, Instant::now());
        }
        let peer = &r.what.peer.engine_id;
        if result.is_ok() {
            // After a failure it stays: the same request may be asked for again, and is no younger then.
            self.estimates.forget(peer, &r.what.remote_request_id);
        }
        let shared = self.shared.clone();
        let names = (id, &peer[..]);
        let kind = RecordKind::Receive;
        let ended = RequestRecord::of(kind, names, r.times, &result, record);
        shared.stats.record(ended);
        match &result {
            Ok(()) => {
                if record.bytes > 0 {
                    shared.stats.transfer(record);
                }
                if r.what.awaited {
                    shared.outbox.received(id);
                }
            }
            Err(e) => {
                match e.status() {
                    Status::Canceled => {}
                    // Counted as a handshake.
                    _ if r.link.is_none() => {}
                    _ => shared.stats.count(Kind::FailedTransfers),
                }
                log::log!(
                    match e.status() {
                        Status::Canceled => log::Level::Debug,
                        _ => log::Level::Warn,
                    },
                    "request \"{id}\" of engine \"{peer}\": {e}"
                );
                if r.what.awaited {
                    let blocks = match &r.what.local[..] {
                        [only] => &only[..],
                        _ => &[],
                    };
                    shared.outbox.failed(id, blocks);
                }
            }
        }
    }

    /// Tells all ranks that wait for it that this rank is done with a request.
    pub(super) fn tell_done(&mut self, link: &Link, remote_id: &str) {
        let message = Notification::done(remote_id, submission::readers(link)).encode();
        let message = match message {
            Ok(message) => message,
            Err(e) => return log::warn!("{e}"),
        };
        for rank in link.listeners() {
            if let Err(e) = self.agent.notify(&rank.agent, &message, None) {
                self.not_told(&rank.agent, &e);
            }
        }
    }

    pub(super) fn not_told(&mut self, agent: &str, e: &Error) {
        self.shared.stats.count(Kind::FailedNotifications);
        if self.once.first(agent, "not told") {
            log::warn!("agent \"{agent}\" could not be told; its lease frees the blocks: {e}");
        }
    }
}

/// A producer could not be told that nothing is wanted of it.
pub(super) fn not_let_go(remote_id: &str, e: &Error) {
    log::debug!("request \"{remote_id}\" is not let go, its lease frees it: {e}");
}

pub(super) fn key_for(purpose: Purpose, engine_id: &str) -> Key {
    Key {
        purpose,
        engine_id: engine_id.to_owned(),
    }
}

fn key_of(what: &Receive) -> Key {
    key_for(Purpose::Transfer, &what.peer.engine_id)
}
