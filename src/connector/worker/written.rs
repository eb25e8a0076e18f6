//! Push, the consumer's side: a receive that the producer writes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use super::link::{Link, Purpose};
use super::receive::{Receiving, Stage, key_for};
use super::submission;
use super::thread::Core;
use crate::connector::wire::{self, Notification};
use crate::error::{Error, Result, Status, bail};
use crate::queue::Record;

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
        // Before they are told: the answer may be quick.
        self.set_stage(
            id,
            Stage::Written {
                from: HashSet::new(),
                wanted,
                deadline,
            },
        );
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
        let Some(r) = self.receives.by_id.get_mut(id) else {
            return false;
        };
        let Stage::Written {
            from: seen, wanted, ..
        } = &mut r.stage
        else {
            return false;
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
