//! Keeping requests alive on other engines, and knowing until when they are kept where no word tells.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::link::{Link, Purpose};
use super::peers::Wanted;
use super::thread::Core;
use crate::connector::Mode;
use crate::connector::step::Heartbeat;
use crate::connector::wire::{self, Notification};

/// Until when producers without lease words keep requests at the least, by engine and their id.
///
/// Counted is from when the request entered this engine, be it by the first heartbeat, which the scheduler
/// half orders with the next step, or by how long the receive says that it has waited since: the producer had
/// finished it no later than that. How long before nobody here knows: what a router holds back for long is
/// read too late without a word to tell; see the room's documentation.
///
/// What was heard of before an engine was lost says nothing of one that has come back under the same id.
#[derive(Default)]
pub(super) struct Estimates {
    known: HashMap<(String, String), Estimate>,
    /// Engines that were lost or let go: when, and their agents by then.
    lost: HashMap<String, (Instant, Vec<String>)>,
}

struct Estimate {
    heard: Instant,
    until: Instant,
}

impl Estimates {
    /// A request is heard of, perhaps for the first time, and has been here since then.
    pub(super) fn heard(&mut self, engine_id: &str, id: &str, lease: Duration, since: Instant) {
        self.known
            .entry((engine_id.to_owned(), id.to_owned()))
            .or_insert(Estimate {
                heard: since,
                until: since + lease,
            });
    }

    pub(super) fn until(&self, engine_id: &str, id: &str) -> Option<Instant> {
        let key = (engine_id.to_owned(), id.to_owned());
        self.known.get(&key).map(|e| e.until)
    }

    /// A heartbeat was sent. A lease that is over is not brought back.
    fn extend(&mut self, engine_id: &str, ids: &[&String], by: Duration, now: Instant) {
        for id in ids {
            let key = (engine_id.to_owned(), (*id).clone());
            if let Some(known) = self.known.get_mut(&key).filter(|e| e.until > now) {
                known.until = known.until.max(now + by);
            }
        }
    }

    pub(super) fn forget(&mut self, engine_id: &str, id: &str) {
        self.known.remove(&(engine_id.to_owned(), id.to_owned()));
    }

    /// An engine is lost, or let go. The first time counts, until hands have been shaken again.
    pub(super) fn lost(&mut self, link: &Link, now: Instant) {
        let agents = || link.ranks.iter().map(|r| r.agent.clone()).collect();
        let engine_id = link.address.engine_id.clone();
        self.lost
            .entry(engine_id)
            .or_insert_with(|| (now, agents()));
    }

    /// Hands have been shaken. If the engine has other agents than when it was lost it is another one,
    /// which has never kept what was heard of before.
    pub(super) fn linked(&mut self, link: &Link) {
        let Some((at, before)) = self.lost.remove(&link.address.engine_id) else {
            return;
        };
        if link.ranks.iter().map(|r| &r.agent).eq(&before) {
            return;
        }
        for ((engine_id, _), known) in &mut self.known {
            if *engine_id == link.address.engine_id && known.heard < at {
                known.until = known.heard;
            }
        }
    }

    /// Forgets what has been over for so long: longer than any router repeats a request, since one that is
    /// forgotten and named again would look new.
    pub(super) fn prune(&mut self, age: Duration, now: Instant) {
        self.known.retain(|_, known| known.until + age > now);
        self.lost.retain(|_, (at, _)| *at + age > now);
    }
}

impl Core {
    /// Extends leases on another engine. The first time shakes hands.
    pub(super) fn send_heartbeat(&mut self, heartbeat: &Heartbeat) {
        let now = Instant::now();
        let engine_id = &heartbeat.peer.engine_id;
        let lease = self.shared.options.lease;
        for id in &heartbeat.remote_request_ids {
            self.estimates.heard(engine_id, id, lease, now);
        }
        let purpose = match self.shared.options.mode {
            Mode::Pull => Purpose::Transfer,
            Mode::Push => Purpose::Notify,
        };
        let Wanted::Link(link) = self.want(purpose, &heartbeat.peer, 0, None) else {
            return;
        };
        // An id with a comma would arrive as two others.
        let ids = heartbeat.remote_request_ids.iter();
        let ids: Vec<&String> = ids.filter(|id| !id.contains(',')).collect();
        for some in ids.chunks(wire::MAX_HEARTBEAT) {
            let message = Notification::Heartbeat(some.iter().map(|id| (*id).clone()).collect());
            if let Ok(message) = message.encode() {
                if self.tell_all(&link, &message) {
                    self.estimates.extend(engine_id, some, lease * 2 / 3, now);
                }
            }
        }
    }

    /// Whether all ranks could be told.
    fn tell_all(&self, link: &Link, message: &[u8]) -> bool {
        let mut all = true;
        for rank in &link.ranks {
            if let Err(e) = self.agent.notify(&rank.agent, message, None) {
                log::debug!("agent \"{}\" could not be told: {e}", rank.agent);
                all = false;
            }
        }
        all
    }
}
