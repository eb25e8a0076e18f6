//! What this rank keeps for readers: which requests, until when, and how many readers are through.
//!
//! A request's blocks are free again when enough readers have said that they are done, or when the lease
//! ends. Both end it here, and in one order that matters: the lease word is raised *first*, then the
//! request is reported as sent, then the engine uses the blocks again. So a reader that finds the word
//! low after its last byte knows that the blocks were the request's until then.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::agent::Agent;
use crate::clock;
use crate::connector::step::Hold;
use crate::connector::{LEASE_SLOTS, LeaseRef};
use crate::error::Result;
use crate::memory::{MemDesc, MemKind};

/// The words by which readers tell whether they read in time, in registered memory.
///
/// Generations are times ([`LeaseRef::generation`]), and all words begin with the time at which the table
/// was made. So a lease that this engine gave in a former life has ended as far as any reader can see,
/// although the engine may have the same id now, and the table the same place.
///
/// That takes two things of the clocks: that of the engine's scheduler must not be behind this rank's by
/// more than the time between the making of the table and the first lease, or its leases look over until it
/// has caught up ([`Leases::arm`] says so); nor ahead by more than the time between its last lease and the
/// making of the table in the next life. In one machine there is one clock, and it would have to be set.
pub(super) struct LeaseTable {
    agent: Arc<Agent>,
    words: Box<[AtomicU64]>,
}

impl LeaseTable {
    pub(super) fn new(agent: Arc<Agent>) -> Result<Self> {
        Self::since(agent, clock::realtime_us())
    }

    /// One whose words say that all generations up to this one have ended.
    fn since(agent: Arc<Agent>, generation: u64) -> Result<Self> {
        let first = || AtomicU64::new(generation.saturating_mul(2));
        let words: Box<[AtomicU64]> = (0..LEASE_SLOTS).map(|_| first()).collect();
        let table = LeaseTable { agent, words };
        table
            .agent
            .register(MemKind::Dram, &[table.range().into()], &[])
            .map_err(|e| e.context("registering the lease words"))?;
        Ok(table)
    }

    fn range(&self) -> MemDesc {
        MemDesc {
            addr: self.words.as_ptr().addr() as u64,
            len: size_of_val(&*self.words) as u64,
            device: 0,
        }
    }

    /// Address and number of words, as peers are told.
    pub(super) fn place(&self) -> (u64, u64) {
        (self.range().addr, u64::from(LEASE_SLOTS))
    }

    /// A word only ever grows, whatever is asked of it. What it was.
    fn raise(&self, slot: u32, value: u64) -> u64 {
        let word = self.words.get(slot as usize);
        word.map_or(0, |word| word.fetch_max(value, Ordering::AcqRel))
    }

    /// What the word says if it says that the lease is over already, and goes on saying so.
    fn arm(&self, lease: LeaseRef) -> Option<u64> {
        let value = lease.generation.saturating_mul(2) - 1;
        let before = self.raise(lease.slot, value);
        (before > value).then_some(before)
    }

    fn end(&self, lease: LeaseRef) {
        let _ = self.raise(lease.slot, lease.generation.saturating_mul(2));
    }
}

impl Drop for LeaseTable {
    /// Every lease has ended, also for whoever reads the memory after it has been given back.
    fn drop(&mut self) {
        for word in &self.words {
            word.store(u64::MAX, Ordering::Release);
        }
        // The agent may have been closed before.
        let _ = self
            .agent
            .deregister(MemKind::Dram, &[self.range().into()], &[]);
    }
}

/// A kept request.
struct Held {
    deadline: Instant,
    lease: Option<LeaseRef>,
    /// This rank itself is sending the blocks: they are kept until that has come to rest.
    busy: bool,
}

/// Readers that are through with a request.
#[derive(Clone, Copy, Default)]
struct Readers {
    seen: u32,
    /// The largest number that any of them has named.
    wanted: u32,
}

/// What a read-done came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ReadDone {
    /// Nobody knows the request, or no longer.
    Unknown,
    /// More readers are to come, or the request has not been finished yet.
    Counted,
    /// It was the last one. The request is to be reported as sent.
    Complete,
}

/// A lease that has run out.
pub(super) struct Expired {
    pub request_id: String,
    /// Readers that were through before.
    pub readers: u32,
    /// This rank is sending the blocks: the lease ends when that has come to rest.
    pub busy: bool,
}

/// All that this rank keeps.
pub(super) struct Leases {
    table: Arc<LeaseTable>,
    /// How far a heartbeat extends a lease.
    extension: Duration,
    /// Requests that were scheduled here and may get a lease.
    batch: HashSet<String>,
    held: HashMap<String, Held>,
    /// When to look at which lease. An entry may be older than its lease's last extension, or outlive
    /// it; it is then put back, or dropped.
    due: BinaryHeap<Reverse<(Instant, String)>>,
    readers: HashMap<String, Readers>,
    /// Requests whose readers were through before their lease came.
    early: HashSet<String>,
    /// It was said that leases come too late.
    warned: bool,
}

impl Leases {
    pub(super) fn new(table: Arc<LeaseTable>, lease: Duration) -> Self {
        Leases {
            table,
            extension: lease * 2 / 3,
            batch: HashSet::new(),
            held: HashMap::new(),
            due: BinaryHeap::new(),
            readers: HashMap::new(),
            early: HashSet::new(),
            warned: false,
        }
    }

    /// Requests that are kept.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Whether a request is kept.
    pub(super) fn is_held(&self, request_id: &str) -> bool {
        self.held.contains_key(request_id)
    }

    /// Requests for which a read-done may come.
    pub(super) fn known(&self) -> usize {
        self.held.len() + self.batch.len()
    }

    /// A request was scheduled; a lease may follow.
    pub(super) fn in_batch(&mut self, request_id: String) {
        if !self.held.contains_key(&request_id) {
            self.batch.insert(request_id);
        }
    }

    /// No lease will follow.
    pub(super) fn forget(&mut self, request_id: &str) {
        self.batch.remove(request_id);
        self.early.remove(request_id);
        if !self.held.contains_key(request_id) {
            self.readers.remove(request_id);
        }
    }

    /// Keeps a request from now on; whether it is over at once, since its readers are through already.
    pub(super) fn arm(&mut self, hold: Hold, now: Instant) -> bool {
        self.batch.remove(&hold.request_id);
        // An engine that uses an id again before it was reported: the earlier blocks are given up.
        if let Some(before) = self.held.remove(&hold.request_id) {
            before.lease.inspect(|lease| self.table.end(*lease));
            self.readers.remove(&hold.request_id);
        }
        if self.early.remove(&hold.request_id) {
            self.readers.remove(&hold.request_id);
            hold.lease.inspect(|lease| self.table.end(*lease));
            return true;
        }
        if let Some(lease) = hold.lease {
            self.arm_word(lease, &hold.request_id);
        }
        let remaining = Duration::from_nanos(hold.remaining_ns);
        let deadline = now.checked_add(remaining).unwrap_or(now + MOST);
        self.due.push(Reverse((deadline, hold.request_id.clone())));
        self.held.insert(
            hold.request_id,
            Held {
                deadline,
                lease: hold.lease,
                busy: false,
            },
        );
        false
    }

    /// A lease whose word is above it already is kept all the same; its readers will find it over.
    fn arm_word(&mut self, lease: LeaseRef, request_id: &str) {
        let Some(word) = self.table.arm(lease) else {
            return;
        };
        if !std::mem::replace(&mut self.warned, true) {
            log::warn!(
                "request \"{request_id}\" has generation {} of lease word {}, which stands at {word}: the \
                 clock of the engine's scheduler is behind this rank's, or was set back. Until it has \
                 caught up, all readers find their leases over",
                lease.generation,
                lease.slot
            );
        }
    }

    /// A reader is through, and says that there are `wanted` of them. They may disagree: blocks are
    /// kept until as many as the largest number have said so, and at the longest until the lease ends.
    pub(super) fn read_done(&mut self, request_id: &str, wanted: u32) -> ReadDone {
        let held = self.held.contains_key(request_id);
        if !held && !self.batch.contains(request_id) {
            return ReadDone::Unknown;
        }
        let readers = self.readers.entry(request_id.to_owned()).or_default();
        readers.seen = readers.seen.saturating_add(1);
        readers.wanted = readers.wanted.max(wanted);
        if readers.seen < readers.wanted {
            return ReadDone::Counted;
        }
        // Whoever says so: this rank itself is not through with the blocks.
        if self.held.get(request_id).is_some_and(|held| held.busy) {
            return ReadDone::Counted;
        }
        if !held {
            // The request may still be running, whatever the reader says: it is over when it has finished
            // and its lease comes, not before.
            self.early.insert(request_id.to_owned());
            return ReadDone::Counted;
        }
        self.complete(request_id);
        ReadDone::Complete
    }

    /// Ends a lease, and says whether there was one or might have been.
    pub(super) fn complete(&mut self, request_id: &str) -> bool {
        self.readers.remove(request_id);
        let batched = self.batch.remove(request_id);
        let Some(held) = self.held.remove(request_id) else {
            return batched;
        };
        held.lease.inspect(|lease| self.table.end(*lease));
        true
    }

    /// Extends the leases of requests that are still wanted.
    pub(super) fn heartbeat(&mut self, request_ids: &[String], now: Instant) {
        for id in request_ids {
            if let Some(held) = self.held.get_mut(id) {
                held.deadline = held.deadline.max(now + self.extension);
            }
        }
    }

    /// Whether a request is kept. If so it stays until [`Leases::release`], past the end of its lease.
    pub(super) fn seize(&mut self, request_id: &str) -> bool {
        let held = self.held.get_mut(request_id);
        held.map(|held| held.busy = true).is_some()
    }

    /// Lets the lease end when its time has come.
    pub(super) fn release(&mut self, request_id: &str) {
        if let Some(held) = self.held.get_mut(request_id) {
            held.busy = false;
            self.due
                .push(Reverse((held.deadline, request_id.to_owned())));
        }
    }

    /// When to look again.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((at, _))| *at)
    }

    /// Ends the leases whose time has come.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Expired> {
        let mut out = Vec::new();
        while self.due.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Some(Reverse((_, id))) = self.due.pop() else {
                break;
            };
            match self.held.get(&id) {
                Some(held) if held.deadline > now => self.due.push(Reverse((held.deadline, id))),
                Some(held) if held.busy => out.push(Expired {
                    request_id: id,
                    readers: 0,
                    busy: true,
                }),
                Some(_) => {
                    let readers = self.readers.get(&id).map_or(0, |r| r.seen);
                    self.complete(&id);
                    out.push(Expired {
                        request_id: id,
                        readers,
                        busy: false,
                    });
                }
                None => {}
            }
        }
        out
    }

    /// Ends all leases.
    pub(super) fn end(&mut self) {
        for held in self.held.drain().map(|(_, held)| held) {
            held.lease.inspect(|lease| self.table.end(*lease));
        }
    }
}

/// For times that no clock can count to.
const MOST: Duration = Duration::from_secs(365 * 86_400);

#[cfg(test)]
#[path = "leases_test.rs"]
mod tests;
