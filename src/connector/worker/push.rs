//! Push, the producer's side: finished requests meet the registrations of their consumers, in either
//! order, and are written to them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::leases::Expired;
use super::link::{Link, Purpose};
use super::peers::{Key, Waiting, Wanted};
use super::stats::Kind;
use super::submission;
use super::thread::Core;
use crate::connector::step::Push;
use crate::connector::wire::{Notification, PushRegistration};
use crate::connector::{Mode, PeerAddress, check_ranks};
use crate::error::{Error, Result, Status};
use crate::plan::PeerRole;
use crate::queue::{Completion, Submission, Ticket};

/// Most registrations that wait for their request.
const MAX_REGISTRATIONS: usize = 65_536;

/// A finished request.
struct Pushing {
    what: Push,
    /// Where it goes, once that is known.
    to: Option<PushRegistration>,
    ticket: Option<Ticket>,
}

/// All pushes.
#[derive(Default)]
pub(super) struct Pushes {
    by_id: HashMap<String, Pushing>,
    by_ticket: HashMap<Ticket, String>,
    /// Consumers whose request is not finished, with when they came.
    registrations: HashMap<String, (PushRegistration, Instant)>,
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

    pub(super) fn forget_older_than(&mut self, age: Duration, now: Instant) {
        self.registrations
            .retain(|_, (_, since)| now.saturating_duration_since(*since) < age);
    }

    fn matching_registration(&mut self, request_id: &str) -> Option<PushRegistration> {
        let key = match self.registrations.contains_key(request_id) {
            true => request_id.to_owned(),
            false => {
                let mut all = self.registrations.iter();
                all.find(|(_, (r, _))| r.is_for(request_id))?.0.clone()
            }
        };
        self.registrations.remove(&key).map(|(r, _)| r)
    }

    fn matching_request(&self, registration: &PushRegistration) -> Option<String> {
        let waits = |p: &Pushing| p.to.is_none();
        let exact = self.by_id.get(&registration.request_id);
        if exact.is_some_and(waits) {
            return Some(registration.request_id.clone());
        }
        let mut all = self.by_id.iter();
        all.find(|(id, p)| waits(p) && registration.is_for(id))
            .map(|(id, _)| id.clone())
    }
}

impl Core {
    /// A request is finished; it goes out when its consumer is known.
    pub(super) fn push(&mut self, what: Push) {
        let id = what.request_id.clone();
        let to = self.pushes.matching_registration(&id);
        let matched = to.is_some();
        self.pushes.by_id.insert(
            id.clone(),
            Pushing {
                what,
                to,
                ticket: None,
            },
        );
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
        if let Some(id) = self.pushes.matching_request(&registration) {
            if let Some(p) = self.pushes.by_id.get_mut(&id) {
                p.to = Some(registration);
            }
            self.resume_push(&id);
        } else if self.pushes.registrations.len() < MAX_REGISTRATIONS {
            let id = registration.request_id.clone();
            let entry = (registration, Instant::now());
            self.pushes.registrations.insert(id, entry);
        } else if self.once.first(from, "too many registrations") {
            log::warn!("{MAX_REGISTRATIONS} push registrations wait for their requests");
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
        let to = self.pushes.by_id.remove(&id).and_then(|p| p.to);
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
        if self.pushes.by_id.remove(id).is_some() {
            log::warn!("request \"{id}\" is not written: {e}; its lease frees it");
        }
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
        self.pushes.by_id.remove(id);
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
