//! Push, the producer's side: consumers that wait for requests which are not finished here.
//!
//! Anybody can send a registration, and it is kept until its request is finished: so what is kept is
//! bounded, for each sender and for all. Each rank of a consumer says the same to each of our ranks; it is
//! kept once. When a request has been matched, the words of the ranks that are later still must not be
//! taken for another one: there may be another, under the same id without its ending, and its blocks would
//! be written to where the first one's were.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::connector::wire::PushRegistration;

/// Most registrations of one agent that wait for their requests, and the most bytes of their block lists. A
/// consumer's registrations name each of its blocks once, and no rank has so many.
const OF_ONE: Usage = Usage {
    count: 8192,
    bytes: 64 << 20,
};
/// Of all agents together.
const OF_ALL: Usage = Usage {
    count: 65_536,
    bytes: 256 << 20,
};
/// Most matched registrations that are remembered.
const MATCHED: usize = 4096;
/// Most agents that are remembered for one of them: more ranks than any consumer has.
const RANKS: usize = 1024;

/// How much waits.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Usage {
    pub count: usize,
    pub bytes: usize,
}

impl Usage {
    fn with(self, bytes: usize) -> Usage {
        Usage {
            count: self.count + 1,
            bytes: self.bytes + bytes,
        }
    }

    fn without(self, bytes: usize) -> Usage {
        Usage {
            count: self.count.saturating_sub(1),
            bytes: self.bytes.saturating_sub(bytes),
        }
    }

    fn is_within(self, limit: Usage) -> bool {
        self.count <= limit.count && self.bytes <= limit.bytes
    }
}

/// A consumer that waits.
struct Entry {
    registration: PushRegistration,
    /// Who has said so; the first one answers for the memory.
    from: Vec<String>,
    since: Instant,
    bytes: usize,
}

/// A consumer and its id of a request.
type Name = (String, String);

fn name_of(r: &PushRegistration) -> Name {
    (r.decode_engine_id.clone(), r.request_id.clone())
}

/// All that wait, and the last that no longer do.
#[derive(Default)]
pub(super) struct Registrations {
    /// By the request's id without its ending.
    waiting: HashMap<String, Vec<Entry>>,
    used: HashMap<String, Usage>,
    all: Usage,
    /// Who has said so.
    matched: HashMap<Name, HashSet<String>>,
    /// Oldest first.
    matched_order: VecDeque<(Name, Instant)>,
}

impl Registrations {
    /// Whether this rank of a consumer says what another one has said, of a request that has been
    /// matched since.
    pub(super) fn is_repeated(&mut self, from: &str, registration: &PushRegistration) -> bool {
        let name = name_of(registration);
        let Some(said) = self.matched.get_mut(&name) else {
            return false;
        };
        // The same rank says it again: a request of its own, under an id that was used before.
        if said.contains(from) || said.len() >= RANKS {
            self.matched.remove(&name);
            return false;
        }
        said.insert(from.to_owned())
    }

    /// A registration has been matched without having waited.
    pub(super) fn matched(&mut self, from: &str, registration: &PushRegistration, now: Instant) {
        self.remember(registration, [from.to_owned()], now);
    }

    /// Keeps a registration until its request is finished. If there is no room, how much of whom waits.
    pub(super) fn keep(
        &mut self,
        from: &str,
        registration: PushRegistration,
        now: Instant,
    ) -> Result<(), Usage> {
        if self.is_another_ranks(from, &registration) {
            return Ok(());
        }
        let bytes = size_of(&registration);
        let used = self.used.get(from).copied().unwrap_or_default();
        let (one, all) = (used.with(bytes), self.all.with(bytes));
        if !one.is_within(OF_ONE) {
            return Err(used);
        }
        if !all.is_within(OF_ALL) {
            return Err(self.all);
        }
        self.used.insert(from.to_owned(), one);
        self.all = all;
        let list = self.waiting.entry(registration.base().to_owned());
        list.or_default().push(Entry {
            registration,
            from: vec![from.to_owned()],
            since: now,
            bytes,
        });
        Ok(())
    }

    /// Whether a rank says what is kept already. A rank that says it twice means it anew: what it said
    /// before is dropped.
    fn is_another_ranks(&mut self, from: &str, registration: &PushRegistration) -> bool {
        let name = name_of(registration);
        let Some(list) = self.waiting.get_mut(registration.base()) else {
            return false;
        };
        let Some(at) = list.iter().position(|e| name_of(&e.registration) == name) else {
            return false;
        };
        let said = &mut list[at].from;
        if said.iter().any(|who| who == from) {
            self.take_at(registration.base(), at);
            return false;
        }
        if said.len() < RANKS {
            said.push(from.to_owned());
        }
        true
    }

    /// The consumer that waits for a request of this id, the same one rather than one that is the same
    /// without its ending.
    pub(super) fn take(&mut self, request_id: &str, now: Instant) -> Option<PushRegistration> {
        let base = PushRegistration::base_of(request_id);
        let list = self.waiting.get(base)?;
        let exact = list
            .iter()
            .position(|e| e.registration.request_id == request_id);
        let entry = self.take_at(base, exact.unwrap_or(0))?;
        self.remember(&entry.registration, entry.from, now);
        Some(entry.registration)
    }

    fn take_at(&mut self, base: &str, at: usize) -> Option<Entry> {
        let list = self.waiting.get_mut(base)?;
        if at >= list.len() {
            return None;
        }
        let entry = list.remove(at);
        if list.is_empty() {
            self.waiting.remove(base);
        }
        self.give_back(&entry);
        Some(entry)
    }

    fn give_back(&mut self, entry: &Entry) {
        self.all = self.all.without(entry.bytes);
        let Some(first) = entry.from.first() else {
            return;
        };
        if let Some(used) = self.used.get_mut(first) {
            *used = used.without(entry.bytes);
            if used.count == 0 {
                self.used.remove(first);
            }
        }
    }

    fn remember(
        &mut self,
        registration: &PushRegistration,
        from: impl IntoIterator<Item = String>,
        now: Instant,
    ) {
        let name = name_of(registration);
        if let Some(said) = self.matched.get_mut(&name) {
            return said.extend(from);
        }
        while self.matched_order.len() >= MATCHED {
            if let Some((oldest, _)) = self.matched_order.pop_front() {
                self.matched.remove(&oldest);
            }
        }
        self.matched_order.push_back((name.clone(), now));
        self.matched.insert(name, from.into_iter().collect());
    }

    /// Forgets what is older than `age`: nothing is written to where nobody waits any more.
    pub(super) fn forget_older_than(&mut self, age: Duration, now: Instant) {
        let old = |since: Instant| now.saturating_duration_since(since) >= age;
        let mut dropped = Vec::new();
        self.waiting.retain(|_, list| {
            for entry in std::mem::take(list) {
                let to = if old(entry.since) {
                    &mut dropped
                } else {
                    &mut *list
                };
                to.push(entry);
            }
            !list.is_empty()
        });
        dropped.iter().for_each(|entry| self.give_back(entry));
        while self.matched_order.front().is_some_and(|(_, at)| old(*at)) {
            if let Some((name, _)) = self.matched_order.pop_front() {
                self.matched.remove(&name);
            }
        }
    }

    /// How much waits.
    #[cfg(test)]
    fn usage(&self) -> Usage {
        self.all
    }
}

/// Bytes that a registration takes here, about.
fn size_of(r: &PushRegistration) -> usize {
    let texts = [
        &r.request_id,
        &r.decode_engine_id,
        &r.decode_host,
        &r.remote_engine_id,
        &r.remote_host,
    ];
    let texts: usize = texts.iter().map(|t| t.len()).sum();
    let lists = r.local_block_ids.iter();
    let lists: usize = lists
        .map(|ids| size_of_val(&ids[..]) + size_of_val(ids))
        .sum();
    std::mem::size_of::<Entry>() + texts + lists
}

#[cfg(test)]
#[path = "registrations_test.rs"]
mod tests;
