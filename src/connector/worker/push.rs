//! Push, the producer's side: finished requests meet the registrations of their consumers, in either
//! order, and are written to them.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use super::leases::Expired;
use super::link::{Link, Purpose};
use super::peers::{Key, Waiting, Wanted};
use super::registrations::Registrations;
use super::stats::{Kind, RecordKind, RequestRecord, Times};
use super::submission;
use super::thread::Core;
use crate::clock::monotonic_ns;
use crate::connector::step::Push;
use crate::connector::wire::{Notification, PushRegistration};
use crate::connector::{Mode, PeerAddress, check_ranks};
use crate::error::{Error, Result, Status};
use crate::plan::PeerRole;
use crate::queue::{Completion, Record, Submission, Ticket};

/// A finished request.
struct Pushing {
    what: Push,
    /// Where it goes, once that is known.
    to: Option<PushRegistration>,
    ticket: Option<Ticket>,
    times: Times,
}

/// All pushes.
#[derive(Default)]
pub(super) struct Pushes {
    by_id: HashMap<String, Pushing>,
    by_ticket: HashMap<Ticket, String>,
    /// Those whose consumer is not known, by their id without its ending.
    alone: HashMap<String, HashSet<String>>,
    /// Consumers whose request is not finished.
    pub registrations: Registrations,
    backlog: Vec<String>,
}

impl Pushes {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether messages are waited for.
    pub(super) fn any(&self) -> bool {
        !self.by_id.is_empty()
    }

    /// Whether a push waits for this handshake.
    pub(super) fn waits_for(&self, id: &str, key: &Key) -> bool {
        let waits =
            |p: &Pushing| p.ticket.is_none() && p.to.as_ref().map(key_of).as_ref() == Some(key);
        self.by_id.get(id).is_some_and(waits)
    }

    fn insert(&mut self, what: Push, to: Option<PushRegistration>) {
        let id = what.request_id.clone();
        self.remove(&id);
        if to.is_none() {
            let base = PushRegistration::base_of(&id).to_owned();
            self.alone.entry(base).or_default().insert(id.clone());
        }
        let pushing = Pushing {
            what,
            to,
            ticket: None,
            times: Times::now(),
        };
        self.by_id.insert(id, pushing);
    }

    fn remove(&mut self, id: &str) -> Option<Pushing> {
        let removed = self.by_id.remove(id)?;
        self.not_alone(id);
        Some(removed)
    }

    fn not_alone(&mut self, id: &str) {
        let base = PushRegistration::base_of(id);
        if let Some(ids) = self.alone.get_mut(base) {
            ids.remove(id);
            if ids.is_empty() {
                self.alone.remove(base);
            }
        }
    }

    /// Gives a registration to a request that waits for one: its id.
    fn matched(&mut self, registration: &PushRegistration) -> Option<String> {
        let ids = self.alone.get(registration.base())?;
        let exact = ids.get(&registration.request_id);
        let id = exact.or_else(|| ids.iter().next())?.clone();
        self.not_alone(&id);
        self.by_id.get_mut(&id)?.to = Some(registration.clone());
        Some(id)
    }
}

impl Core {
    /// A request is finished; it goes out when its consumer is known.
    pub(super) fn push(&mut self, what: Push) {
        let id = what.request_id.clone();
        if !self.leases.is_held(&id) {
            log::debug!("request \"{id}\" is over already; it is not written");
            return;
        }
        let to = self.pushes.registrations.take(&id, Instant::now());
        let matched = to.is_some();
        self.pushes.insert(what, to);
        if matched {
            self.resume_push(&id);
        }
    }

    /// A consumer says where it wants a request.
    pub(super) fn registered(&mut self, from: &str, registration: PushRegistration) {
        if self.shared.options.mode != Mode::Push {
            if self.once.first(from, "push registration") {
                log::warn!("agent \"{from}\" registers for a push, and this engine is read from");
            }
            return;
        }
        if let Err(e) = check_ranks(&address_of(&registration)) {
            if self.once.first(from, "malformed") {
                log::warn!("agent \"{from}\" registers for a push: {e}");
            }
            return;
        }
        let now = Instant::now();
        let pushes = &mut self.pushes;
        if pushes.registrations.is_repeated(from, &registration) {
            return;
        }
        if let Some(id) = pushes.matched(&registration) {
            pushes.registrations.matched(from, &registration, now);
            return self.resume_push(&id);
        }
        let id = registration.request_id.clone();
        if let Err(full) = pushes.registrations.keep(from, registration, now) {
            if self.once.first(from, "too many registrations") {
                log::warn!(
                    "agent \"{from}\" registers \"{id}\" for a push: there is no room, {} registrations of \
                     {} bytes wait for their requests; it is dropped, as are others like it, and its \
                     consumer will give up",
                    full.count,
                    full.bytes
                );
            }
        }
    }

    /// Goes on with a push that may have what it waited for.
    pub(super) fn resume_push(&mut self, id: &str) {
        // One that is being written has been resumed already, for another waiter of the same name.
        let waits = |p: &&Pushing| p.ticket.is_none();
        let push = self.pushes.by_id.get(id).filter(waits);
        let Some(to) = push.and_then(|p| p.to.as_ref()) else {
            return;
        };
        let address = address_of(to);
        let waiting = Some(Waiting::Push(id.to_owned()));
        match self.want(Purpose::Transfer, &address, 0, waiting) {
            Wanted::Later(_) => {}
            Wanted::Refused(e) => self.drop_push(id, &e),
            Wanted::Link(link) => {
                if let Err(e) = self.write(id, &link) {
                    self.drop_push(id, &e);
                }
            }
        }
    }

    fn write(&mut self, id: &str, link: &Link) -> Result<()> {
        let Some(p) = self.pushes.by_id.get(id) else {
            return Ok(());
        };
        let Some(to) = &p.to else {
            return Ok(());
        };
        if p.ticket.is_some() {
            return Ok(());
        }
        if !self.leases.seize(id) {
            return Err(Error::new(Status::Expired, "the lease is over"));
        }
        let submitted = self.submit_push(&p.what, to, link);
        match submitted {
            Ok(ticket) => {
                self.peers.begin(&key_of(to));
                self.pushes.by_ticket.insert(ticket, id.to_owned());
                if let Some(p) = self.pushes.by_id.get_mut(id) {
                    p.ticket = Some(ticket);
                    p.times.queued_ns = monotonic_ns();
                }
                Ok(())
            }
            Err(e) => {
                self.leases.release(id);
                if e.status() != Status::Busy {
                    return Err(e);
                }
                self.pushes.backlog.push(id.to_owned());
                Ok(())
            }
        }
    }

    fn submit_push(&self, what: &Push, to: &PushRegistration, link: &Link) -> Result<Ticket> {
        let parts = submission::push(link, what, to)?;
        let tp_size = self.shared.options.parallel.tp_size;
        let notification = Notification::done(to.request_id.clone(), tp_size).encode()?;
        let agents: Vec<&str> = link.ranks.iter().map(|r| r.agent.as_str()).collect();
        self.queue.submit(&Submission {
            plan: parts.plan,
            agents: &agents,
            request: parts.request(&parts.groups()),
            guards: &[],
            notification: Some(&notification),
            deadline: Some(self.shared.options.transfer_timeout),
        })
    }

    /// A transfer is over; whether it was a push.
    pub(super) fn pushed(&mut self, done: &Completion) -> bool {
        let Some(id) = self.pushes.by_ticket.remove(&done.ticket) else {
            return false;
        };
        self.leases.release(&id);
        let now = Instant::now();
        let push = self.pushes.remove(&id);
        push.iter()
            .for_each(|p| self.record(p, &done.result, &done.record));
        let to = push.and_then(|p| p.to);
        let key = to.as_ref().map(key_of);
        let link = key.as_ref().and_then(|key| self.peers.link(key));
        key.iter().for_each(|key| self.peers.end(key, now));
        match &done.result {
            Ok(()) => {
                if let (Some(link), Some(to)) = (&link, &to) {
                    self.tell_others(link, to);
                }
                if done.record.bytes > 0 {
                    self.shared.stats.transfer(&done.record);
                }
                if self.leases.complete(&id) {
                    self.shared.outbox.sent(&id);
                }
            }
            Err(e) => {
                self.shared.stats.count(Kind::FailedTransfers);
                log::warn!("writing request \"{id}\": {e}; its lease frees it");
                if let (Some(link), Some(key)) = (link, &key) {
                    if self.is_lost(&link, e) {
                        self.peers.lost(key, now);
                    }
                }
            }
        }
        key.iter().for_each(|key| self.renew(key));
        for id in std::mem::take(&mut self.pushes.backlog) {
            self.resume_push(&id);
        }
        true
    }

    /// A consumer waits for as many ranks as there are, also for one that had nothing to write since
    /// another has the same (the latent of MLA).
    fn tell_others(&mut self, link: &Link, to: &PushRegistration) {
        let tp_size = self.shared.options.parallel.tp_size;
        let Ok(message) = Notification::done(to.request_id.clone(), tp_size).encode() else {
            return;
        };
        let peers = link.plan.iter().flat_map(|plan| plan.peers());
        for (peer, rank) in peers.zip(&link.ranks) {
            if peer.role == PeerRole::Idle {
                if let Err(e) = self.agent.notify(&rank.agent, &message, None) {
                    self.not_told(&rank.agent, &e);
                }
            }
        }
    }

    /// A push will not be: its lease frees the blocks.
    pub(super) fn drop_push(&mut self, id: &str, e: &Error) {
        if let Some(push) = self.pushes.remove(id) {
            log::warn!("request \"{id}\" is not written: {e}; its lease frees it");
            self.record(&push, &Err(e.clone()), &Record::default());
        }
    }

    fn record(&self, push: &Pushing, result: &Result<()>, record: &Record) {
        let to = push.to.as_ref();
        let engine_id = to.map_or("", |to| &to.decode_engine_id[..]);
        let names = (&push.what.request_id[..], engine_id);
        let ended = RequestRecord::of(RecordKind::Push, names, push.times, result, record);
        self.shared.stats.record(ended);
    }

    /// Somebody else has ended the lease: nothing is written any more.
    pub(super) fn forget_push(&mut self, id: &str) {
        self.pushes.remove(id);
    }

    /// The time of a lease has come.
    pub(super) fn lease_over(&mut self, expired: &Expired) {
        let id = &expired.request_id;
        if expired.busy {
            // It ends when the bytes have come to rest.
            let ticket = self.pushes.by_id.get(id).and_then(|p| p.ticket);
            if let Some(Err(e)) = ticket.map(|t| self.queue.cancel(t)) {
                log::debug!("cancelling the push of \"{id}\": {e}");
            }
            return;
        }
        self.pushes.remove(id);
        self.shared.stats.count(Kind::Expired);
        log::warn!(
            "the lease of request \"{id}\" has ended; {} readers were through before",
            expired.readers
        );
        self.shared.outbox.sent(id);
    }
}

fn address_of(to: &PushRegistration) -> PeerAddress {
    PeerAddress {
        engine_id: to.decode_engine_id.clone(),
        host: to.decode_host.clone(),
        port: to.decode_port,
        tp_size: to.decode_tp_size,
        pp_size: 1,
        dcp_size: 1,
    }
}

fn key_of(to: &PushRegistration) -> Key {
    Key {
        purpose: Purpose::Transfer,
        engine_id: to.decode_engine_id.clone(),
    }
}
