//! The thread: everything that happens to a worker happens here, one thing after the other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::handshake::{Context, Handshakes, Task};
use super::heartbeat::Estimates;
use super::leases::Leases;
use super::link::{Link, Purpose};
use super::outbox::Once;
use super::peers::{Key, Peers, Waiting, Wanted};
use super::push::Pushes;
use super::receive::{Receives, not_let_go};
use super::stats::Kind;
use super::{Cache, Shared, still_moving};
use crate::agent::Agent;
use crate::connector::step::Step;
use crate::connector::{Mode, PeerAddress};
use crate::error::{Error, Result, Status};
use crate::queue::{Completion, Queue};

/// What the thread is told.
pub(super) enum Input {
    /// The KV cache is registered.
    Cache(Arc<Cache>),
    /// An engine step.
    Step(Box<Step>),
    /// The engine is about to look for results: look for messages.
    Nudge,
    /// A transfer is over.
    Done(Box<Completion>),
    /// A handshake is over.
    Shaken(Box<Task>, Box<Result<Link>>),
    /// Stop, after at most this long.
    Close(Duration),
}

/// How often messages are looked for: while blocks are kept or awaited, while that may begin at any
/// time, and otherwise.
const LOOKS: [Duration; 3] = [
    Duration::from_millis(1),
    Duration::from_millis(10),
    Duration::from_millis(100),
];
/// How long an estimate of a lease that is over is remembered.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// How often it is looked for what is old.
const SWEEP: Duration = Duration::from_secs(1);

/// A time that every clock can count to.
const LONGEST_DRAIN: Duration = Duration::from_secs(86_400);

/// All of a worker's state.
pub(super) struct Core {
    pub shared: Arc<Shared>,
    pub agent: Arc<Agent>,
    pub queue: Queue,
    pub context: Arc<Context>,
    pub handshakes: Handshakes,
    pub peers: Peers,
    pub leases: Leases,
    pub receives: Receives,
    pub estimates: Estimates,
    pub pushes: Pushes,
    pub once: Once,
    pub cache: Option<Arc<Cache>>,
    pub inbox: Receiver<Input>,
    pub swept: Instant,
}

/// Tells those who wait that the thread has ended.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.outbox.end();
    }
}

impl Core {
    pub(super) fn run(mut self) -> Result<()> {
        // However this thread ends, nobody waits for it any longer.
        let _ending = Ending(self.shared.clone());
        loop {
            match self.inbox.recv_timeout(self.nap()) {
                Ok(Input::Close(drain)) => return self.close(drain),
                Ok(input) => self.take(input),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.close(Duration::ZERO),
            }
            while let Ok(input) = self.inbox.try_recv() {
                if let Input::Close(drain) = input {
                    return self.close(drain);
                }
                self.take(input);
            }
            self.shared.nudged.store(false, Ordering::Release);
            self.safely("messages", |core| core.hear());
            self.safely("timers", |core| core.tick(Instant::now()));
            self.publish();
        }
    }

    /// A panic, a fault of ours, costs the request at hand and nothing else.
    pub(super) fn safely(&mut self, what: &str, body: impl FnOnce(&mut Core)) {
        if catch_unwind(AssertUnwindSafe(|| body(self))).is_err() {
            log::error!("a panic in the connector's worker, at {what}; please report it");
        }
    }

    fn nap(&self) -> Duration {
        let look = if self.leases.held() > 0 || self.receives.written() > 0 || self.pushes.any() {
            LOOKS[0]
        } else if self.leases.known() > 0 || self.shared.options.mode == Mode::Push {
            LOOKS[1]
        } else {
            LOOKS[2]
        };
        match self.leases.next_due() {
            Some(due) => look.min(due.saturating_duration_since(Instant::now())),
            None => look,
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Cache(cache) => self.cache = Some(cache),
            Input::Step(step) => self.step(*step),
            Input::Done(done) => self.safely("a completion", |core| core.done(*done)),
            Input::Shaken(task, result) => {
                self.handshakes.over();
                self.safely("a handshake", |core| core.shaken(&task, *result));
            }
            Input::Nudge | Input::Close(_) => {}
        }
    }

    fn step(&mut self, step: Step) {
        let now = Instant::now();
        // First: an id that is forgotten may be in use again in the same step.
        for id in &step.forget {
            self.leases.forget(id);
        }
        for id in step.in_batch {
            self.leases.in_batch(id);
        }
        for hold in step.holds {
            self.safely("a hold", |core| {
                let id = hold.request_id.clone();
                if core.leases.arm(hold, now) {
                    core.shared.outbox.sent(&id);
                }
            });
        }
        for push in step.pushes {
            self.safely("a push", |core| core.push(push));
        }
        for receive in step.receives {
            let id = receive.request_id.clone();
            self.safely("a receive", |core| core.receive(receive));
            self.answer_if_lost(&id);
        }
        for registration in step.registrations {
            let id = registration.request_id.clone();
            // A producer that has been told where to write cannot be stopped: it is not told then.
            let canceled = step.cancel.contains(&id);
            self.safely("a registration", |core| match canceled {
                true => core.decline(registration),
                false => core.receive(registration),
            });
            self.answer_if_lost(&id);
        }
        for id in &step.cancel {
            self.safely("a cancellation", |core| core.cancel(id));
        }
        for heartbeat in step.heartbeats {
            self.safely("a heartbeat", |core| core.send_heartbeat(&heartbeat));
        }
    }

    /// Gets a link with a peer, or has a handshake made.
    pub(super) fn want(
        &mut self,
        purpose: Purpose,
        address: &PeerAddress,
        registration: u64,
        waiting: Option<Waiting>,
    ) -> Wanted {
        let Some(cache) = self.cache.clone() else {
            return Wanted::Refused(Error::new(
                Status::InvalidState,
                "the KV cache has not been registered",
            ));
        };
        let key = Key {
            purpose,
            engine_id: address.engine_id.clone(),
        };
        let mut unload = Vec::new();
        let now = Instant::now();
        let wanted = self
            .peers
            .want(&key, address, registration, waiting, now, &mut unload);
        self.unload(&unload, now);
        if let Wanted::Later(Some(task)) = &wanted {
            self.handshakes.start(task.clone(), cache);
        }
        wanted
    }

    /// Nothing moves with a peer any more: if it has published anew, now is the time to shake hands.
    pub(super) fn renew(&mut self, key: &Key) {
        let mut unload = Vec::new();
        let task = self.peers.renew(key, &mut unload);
        self.unload(&unload, Instant::now());
        if let (Some(task), Some(cache)) = (task, self.cache.clone()) {
            self.handshakes.start(task, cache);
        }
    }

    fn shaken(&mut self, task: &Task, result: Result<Link>) {
        let now = Instant::now();
        let (waiting, outcome) = match result {
            Ok(link) => {
                self.estimates.linked(&link);
                let link = Arc::new(link);
                match self.peers.linked(task, link.clone(), now) {
                    Some(waiting) => (waiting, Ok(link)),
                    None => return self.context.unload(&link),
                }
            }
            Err(e) => {
                self.shared.stats.count(Kind::FailedHandshakes);
                if self.once.first(&task.key.engine_id, "handshake") {
                    log::warn!("{e}");
                }
                (self.peers.failed(task, now), Err(e))
            }
        };
        self.tell(&task.key, waiting, &outcome);
    }

    /// Those who have waited for this peer go on, or fail.
    fn tell(&mut self, key: &Key, waiting: Vec<Waiting>, outcome: &Result<Arc<Link>>) {
        for waiter in waiting {
            // Its id may have come to name another request meanwhile.
            let stale = match &waiter {
                Waiting::Receive(id) => !self.receives.waits_for(id, key),
                Waiting::Push(id) => !self.pushes.waits_for(id, key),
                Waiting::Farewell { .. } => false,
            };
            if stale {
                continue;
            }
            self.safely("a request that waited", |core| match (&waiter, outcome) {
                (Waiting::Receive(id), Ok(_)) => core.resume(id),
                (Waiting::Receive(id), Err(e)) => core.fail(id, e.clone()),
                (Waiting::Push(id), Ok(_)) => core.resume_push(id),
                (Waiting::Push(id), Err(e)) => core.drop_push(id, e),
                (Waiting::Farewell { remote_id }, Ok(link)) => core.tell_done(link, remote_id),
                (Waiting::Farewell { remote_id }, Err(e)) => not_let_go(remote_id, e),
            });
            if let Waiting::Receive(id) = &waiter {
                self.answer_if_lost(id);
            }
        }
    }

    fn done(&mut self, done: Completion) {
        if !self.pushed(&done) {
            self.read(done);
        }
        self.retry();
    }

    fn tick(&mut self, now: Instant) {
        for expired in self.leases.expire(now) {
            self.lease_over(&expired);
        }
        if now.saturating_duration_since(self.swept) < SWEEP {
            return;
        }
        self.swept = now;
        self.give_up_receives(now);
        self.receives.early.forget_old(now);
        let limit = self.shared.options.transfer_timeout;
        let why = "the peer has published anew, and transfers with it do not come to rest";
        for (key, waiting) in self.peers.waited_too_long(limit, now) {
            self.tell(&key, waiting, &Err(Error::new(Status::PeerLost, why)));
        }
        self.estimates.prune(REMEMBERED, now);
        // Sooner than the consumer does, so that nothing is written to where it no longer waits.
        let patience = self.shared.options.registration_timeout * 3 / 4;
        self.pushes.registrations.forget_older_than(patience, now);
        let busy = self.receives.engines();
        let ttl = self.shared.options.engine_ttl;
        let unload = self
            .peers
            .evict(ttl, |key| busy.contains(&key.engine_id), now);
        self.unload(&unload, now);
    }

    /// Links that nothing uses any more.
    fn unload(&mut self, links: &[Arc<Link>], now: Instant) {
        for link in links {
            self.estimates.lost(link, now);
            self.context.unload(link);
        }
    }

    /// Shows what there is, and then what has become of requests.
    fn publish(&self) {
        let s = &self.shared.state;
        s.receives.store(self.receives.len(), Ordering::Release);
        s.holds.store(self.leases.held(), Ordering::Release);
        s.peers.store(self.peers.len(), Ordering::Release);
        s.handshakes
            .store(self.handshakes.outstanding(), Ordering::Release);
        s.pushes.store(self.pushes.len(), Ordering::Release);
        s.early.store(self.receives.early.len(), Ordering::Release);
        self.shared.outbox.publish();
    }

    /// Ends everything: transfers first, then what they need.
    fn close(&mut self, drain: Duration) -> Result<()> {
        self.handshakes.stop();
        let closed = self.queue.close(drain);
        while let Ok(input) = self.inbox.try_recv() {
            if let Input::Done(done) = input {
                self.safely("a completion", |core| core.done(*done));
            } else if let Input::Shaken(_, result) = input {
                self.handshakes.over();
                result.iter().for_each(|link| self.context.unload(link));
            }
        }
        let (inbox, context) = (self.inbox.clone(), self.context.clone());
        let until = Instant::now() + drain.max(Duration::from_millis(100)).min(LONGEST_DRAIN);
        // A handshake that is slower than that unloads what it has loaded, when it ends.
        while self.handshakes.running() > 0 {
            match inbox.recv_deadline(until) {
                Ok(Input::Shaken(_, result)) => {
                    self.handshakes.over();
                    result.iter().for_each(|link| context.unload(link));
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        self.leases.end();
        let links = self.peers.drain();
        if !still_moving(&closed) {
            links.iter().for_each(|link| self.context.unload(link));
        }
        self.publish();
        closed
    }
}
