//! Push, the consumer's side: a receive that the producer writes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::link::{Link, Purpose};
use super::receive::{Receiving, Stage, key_for};
use super::submission;
use super::thread::Core;
use crate::connector::Mode;
use crate::connector::wire::{self, Notification};
use crate::error::{Error, Result, Status, bail};
use crate::queue::Record;

/// Most requests, and most agents for each, that are remembered before or behind their time.
const REMEMBERED: usize = 16_384;
const AGENTS: usize = 1024;
/// How long they are remembered: ranks of one engine are not so far apart.
const APART: Duration = Duration::from_secs(60);

/// What producers have said of requests that are not known here yet. All ranks of a consumer register,
/// and a producer writes to all when it has heard one: what it says may be here before this rank's step is.
#[derive(Default)]
pub(super) struct Early {
    said: HashMap<String, (HashSet<String>, Instant)>,
    /// Requests that are over: what is said of them is late, and not of another one to come.
    over: HashMap<String, Instant>,
}

impl Early {
    /// Remembers what an agent says; false if it is not to be.
    pub(super) fn hear(&mut self, id: &str, from: &str, now: Instant) -> bool {
        if self.over.contains_key(id) {
            return false;
        }
        if self.said.len() >= REMEMBERED && !self.said.contains_key(id) {
            return false;
        }
        let (agents, _) = self
            .said
            .entry(id.to_owned())
            .or_insert_with(|| (HashSet::new(), now));
        agents.len() < AGENTS && agents.insert(from.to_owned())
    }

    pub(super) fn len(&self) -> usize {
        self.said.len()
    }

    /// What was said of a request that is known now.
    pub(super) fn take(&mut self, id: &str) -> HashSet<String> {
        self.said
            .remove(id)
            .map(|(agents, _)| agents)
            .unwrap_or_default()
    }

    pub(super) fn ended(&mut self, id: &str, now: Instant) {
        if self.over.len() < REMEMBERED {
            self.over.insert(id.to_owned(), now);
        }
    }

    pub(super) fn forget_old(&mut self, now: Instant) {
        let young = |since: Instant| now.saturating_duration_since(since) < APART;
        self.said.retain(|_, (_, since)| young(*since));
        self.over.retain(|_, since| young(*since));
    }
}

impl Core {
    /// Push: tells the producer where to write.
    pub(super) fn register(&mut self, id: &str, link: &Arc<Link>) -> Result<()> {
        let Some(r) = self.receives.by_id.get(id) else {
            return Ok(());
        };
        if r.is_empty() {
            self.finish(id, Ok(()), &Record::default());
            return Ok(());
        }
        let options = &self.shared.options;
        let registration = submission::registration(options, &r.what)?;
        let message = Notification::PushRegistration(Box::new(registration)).encode()?;
        let parallel = self.cache.as_ref().map(|c| c.local.layout.parallel);
        let my_tp = parallel.map_or(1, |p| p.tp_size);
        let wanted = wire::push_done_count(my_tp, r.what.peer.tp_size, r.what.peer.pp_size);
        let deadline = Instant::now() + options.registration_timeout;
        let of_this_peer = |from: &String| link.ranks.iter().any(|rank| rank.agent == *from);
        let from: HashSet<String> = r
            .early
            .iter()
            .filter(|f| of_this_peer(f))
            .cloned()
            .collect();
        if from.len() as u64 >= u64::from(wanted) {
            // Another rank of ours has been quicker, and the producer has written to all.
            self.finish(id, Ok(()), &Record::default());
            return Ok(());
        }
        // Before they are told: the answer may be quick.
        let stage = Stage::Written {
            from,
            wanted,
            deadline,
        };
        self.set_stage(id, stage);
        let mut told = 0;
        for rank in &link.ranks {
            match self.agent.notify(&rank.agent, &message, None) {
                Ok(()) => told += 1,
                Err(e) => self.not_told(&rank.agent, &e),
            }
        }
        if told == 0 {
            let key = key_for(Purpose::Notify, &link.address.engine_id);
            self.peers.lost(&key, Instant::now());
            bail!(Status::PeerLost, "no rank of the producer could be told");
        }
        Ok(())
    }

    /// Push: a rank of the producer has written its part. Whether the request is one of ours.
    pub(super) fn written(&mut self, from: &str, id: &str) -> bool {
        let push = self.shared.options.mode == Mode::Push;
        let Some(r) = self.receives.by_id.get_mut(id) else {
            return false;
        };
        let Stage::Written {
            from: seen, wanted, ..
        } = &mut r.stage
        else {
            return push && r.early.len() < AGENTS && r.early.insert(from.to_owned());
        };
        let one_of_them = |l: &Arc<Link>| l.ranks.iter().any(|rank| rank.agent == from);
        if !r.link.as_ref().is_some_and(one_of_them) {
            if self.once.first(from, "not a producer") {
                log::warn!(
                    "agent \"{from}\" says that it wrote \"{id}\", which is not its request"
                );
            }
            return true;
        }
        seen.insert(from.to_owned());
        if seen.len() as u64 >= u64::from(*wanted) {
            self.finish(id, Ok(()), &Record::default());
        }
        true
    }

    /// Gives up what has waited too long for a producer that writes.
    pub(super) fn give_up_receives(&mut self, now: Instant) {
        let late =
            |r: &Receiving| matches!(r.stage, Stage::Written { deadline, .. } if now >= deadline);
        let late: Vec<String> = self
            .receives
            .by_id
            .iter()
            .filter(|(_, r)| late(r))
            .map(|(id, _)| id.clone())
            .collect();
        for id in late {
            let why = "the producer has not written it in time";
            self.fail(&id, Error::new(Status::Timeout, why));
        }
    }
}
