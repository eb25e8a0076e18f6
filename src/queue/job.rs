//! One request's life.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cuda::Contexts;
use super::guards::{Guard, Word, Words};
use super::pace::Pace;
use super::slicer::{Slice, Slicer};
use super::{Completion, QueueOptions, Record, Submission, Ticket};
use crate::agent::{Agent, Transfer};
use crate::clock::monotonic_ns;
use crate::error::{Error, Result, Status};
use crate::memory::MemKind;
use crate::plan::{Batch, Direction, GroupBlocks, PeerRole, Plan, Request, Runs};
use crate::transport::{Op, TransferOptions, TransferState};

/// A submission with its own copy of everything.
pub(super) struct OwnedRequest {
    plan: Plan,
    agents: Vec<String>,
    /// All block ids, one list after the other: local, then remote of each group.
    ids: Vec<u32>,
    groups: Vec<Lists>,
    tokens: Option<u64>,
    guards: Vec<Guard>,
    notification: Option<Vec<u8>>,
    deadline: Option<Duration>,
}

#[derive(Clone, Copy)]
struct Lists {
    local_len: usize,
    remote_len: usize,
    local_first: Option<u32>,
    remote_first: Option<u32>,
}

impl OwnedRequest {
    pub(super) fn copy(s: &Submission<'_>) -> Self {
        let total = s
            .request
            .groups
            .iter()
            .map(|g| g.local.len() + g.remote.len())
            .sum();
        let mut ids = Vec::with_capacity(total);
        for g in s.request.groups {
            ids.extend_from_slice(g.local);
            ids.extend_from_slice(g.remote);
        }
        let lists = |g: &GroupBlocks<'_>| Lists {
            local_len: g.local.len(),
            remote_len: g.remote.len(),
            local_first: g.local_first,
            remote_first: g.remote_first,
        };
        OwnedRequest {
            plan: s.plan.clone(),
            agents: s.agents.iter().map(|a| (*a).to_owned()).collect(),
            ids,
            groups: s.request.groups.iter().map(lists).collect(),
            tokens: s.request.tokens,
            guards: s.guards.to_vec(),
            notification: s.notification.map(<[u8]>::to_vec),
            deadline: s.deadline,
        }
    }

    fn runs(&self) -> Result<Runs> {
        let mut rest = &self.ids[..];
        let mut take = |n: usize| {
            let (taken, left) = rest.split_at(n);
            rest = left;
            taken
        };
        let groups: Vec<GroupBlocks<'_>> = self
            .groups
            .iter()
            .map(|g| GroupBlocks {
                local: take(g.local_len),
                remote: take(g.remote_len),
                local_first: g.local_first,
                remote_first: g.remote_first,
            })
            .collect();
        self.plan.runs(&Request {
            groups: &groups,
            tokens: self.tokens,
        })
    }
}

/// What the thread lends to a job while it works on it.
pub(super) struct Tools<'a> {
    pub agent: &'a Agent,
    pub options: &'a QueueOptions,
    /// Whether there is no other request.
    pub alone: bool,
    pub contexts: &'a mut Contexts,
    pub words: &'a mut Words,
    /// Memory that is used again from slice to slice.
    pub slice: &'a mut Slice,
}

/// What a step came to.
pub(super) enum Step {
    /// Nothing to do but wait.
    Waiting,
    /// Something moved on.
    Moved,
    /// It is over.
    Finished(Box<Completion>),
}

/// A posted slice.
struct Flying {
    transfer: Transfer,
    bytes: u64,
    /// Index of the peer.
    peer: u32,
    /// Where it goes, if it is a guard that is being read.
    word: Option<Word>,
}

/// A request from its submission to its completion.
pub(super) struct Job {
    pub ticket: Ticket,
    request: OwnedRequest,
    submitted: Instant,
    deadline: Option<Instant>,
    runs: Option<Arc<Runs>>,
    slicers: Vec<Slicer>,
    /// Whose turn it is among the slicers, so that all ranks are read from at once.
    turn: usize,
    pace: Pace,
    flying: Vec<Flying>,
    /// The first thing that went wrong. From then on nothing is posted.
    failure: Option<Error>,
    /// Whether all guards have been posted.
    guarded: bool,
    record: Record,
}

impl Job {
    pub(super) fn new(ticket: Ticket, request: OwnedRequest, now: Instant) -> Self {
        Job {
            ticket,
            submitted: now,
            deadline: request.deadline.and_then(|d| now.checked_add(d)),
            guarded: request.guards.is_empty(),
            request,
            runs: None,
            slicers: Vec::new(),
            turn: 0,
            pace: Pace::new(),
            flying: Vec::new(),
            failure: None,
            record: Record {
                submitted_ns: monotonic_ns(),
                ..Record::default()
            },
        }
    }

    /// Stops the request: nothing more is posted, what is under way is asked to stop.
    pub(super) fn fail(&mut self, error: Error) {
        if self.failure.is_some() {
            return;
        }
        self.failure = Some(error);
        self.slicers.clear();
        for f in &self.flying {
            if let Err(e) = f.transfer.cancel() {
                log::debug!("ticket {}: cancelling a slice: {e}", self.ticket);
            }
        }
    }

    /// [`Job::advance`], with a panic made into a failure of this request: the others go on.
    pub(super) fn step(&mut self, tools: &mut Tools<'_>) -> Step {
        // Unwind safety: each field is consistent after every statement of `advance`; a slice that was
        // being filled is filled anew by whoever uses it next.
        match catch_unwind(AssertUnwindSafe(|| self.advance(tools))) {
            Ok(step) => step,
            Err(_) => {
                self.fail(Error::new(
                    Status::Internal,
                    "a panic while the request was carried out",
                ));
                Step::Waiting
            }
        }
    }

    /// Does a little: looks at what is under way, posts at most one slice.
    fn advance(&mut self, tools: &mut Tools<'_>) -> Step {
        let mut moved = self.look(tools.words);
        if self.failure.is_none() && !self.is_through() && self.is_late() {
            self.fail(self.late());
            moved = true;
        }
        if self.failure.is_none() && self.runs.is_none() {
            if let Err(e) = self.prepare() {
                self.fail(e);
            }
            moved = true;
        }
        if self.failure.is_none()
            && !self.slicers.is_empty()
            && self.flying.len() < tools.options.slices_in_flight
        {
            if let Err(e) = self.post_one(tools) {
                self.fail(e);
            }
            moved = true;
        }
        if self.failure.is_none() && self.is_in() && !self.guarded {
            match self.post_guards(tools) {
                Ok(posted) => moved |= posted,
                Err(e) => self.fail(e),
            }
        }
        if self.flying.is_empty() && (self.failure.is_some() || self.is_through()) {
            return Step::Finished(Box::new(self.finish(tools.agent)));
        }
        if moved { Step::Moved } else { Step::Waiting }
    }

    /// Whether all bytes are in.
    fn is_in(&self) -> bool {
        self.runs.is_some() && self.record.bytes == self.record.total_bytes
    }

    /// Whether all bytes are in and all guards hold: it is too late for a deadline then.
    fn is_through(&self) -> bool {
        self.is_in() && self.guarded && self.flying.is_empty()
    }

    fn is_late(&self) -> bool {
        self.deadline.is_some_and(|d| Instant::now() >= d)
    }

    /// Takes out the slices that have come to rest; whether there were any.
    fn look(&mut self, words: &mut Words) -> bool {
        let before = self.flying.len();
        let mut failure = None;
        let (record, agents) = (&mut self.record, &self.request.agents);
        self.flying.retain(|f| match f.transfer.state() {
            Ok(TransferState::InProgress) => true,
            Ok(TransferState::Done) => {
                record.bytes += f.bytes;
                if let Some(Err(e)) = f.word.as_ref().map(|w| words.verdict(w)) {
                    failure.get_or_insert_with(|| with_peer(e, &agents[f.peer as usize]));
                }
                false
            }
            Err(e) => {
                f.word.as_ref().inspect(|w| words.give_back(w));
                failure.get_or_insert_with(|| with_peer(e, &agents[f.peer as usize]));
                false
            }
        });
        if let Some(e) = failure {
            self.fail(e);
        }
        self.flying.len() != before
    }

    fn prepare(&mut self) -> Result<()> {
        let runs = self.request.runs()?;
        let stats = runs.stats();
        self.record.total_bytes = stats.bytes;
        self.record.descriptors_before = stats.ranges_before;
        self.record.descriptors = stats.ranges;
        self.record.planned_ns = self.elapsed_ns();
        let batches = self.request.plan.batches().iter().enumerate();
        self.slicers = batches
            .filter(|(i, _)| runs.batch_stats(*i).ranges > 0)
            .map(|(_, b)| Slicer::new(*b))
            .collect();
        self.runs = Some(Arc::new(runs));
        Ok(())
    }

    /// Posts the next slice of the slicer whose turn it is.
    fn post_one(&mut self, tools: &mut Tools<'_>) -> Result<()> {
        let Some(runs) = self.runs.clone() else {
            return Ok(());
        };
        let limits = self.pace.limits(tools.options, tools.alone);
        self.turn %= self.slicers.len();
        let slicer = &mut self.slicers[self.turn];
        if !slicer.fill(&runs, limits, tools.slice) {
            self.slicers.remove(self.turn);
            return Ok(());
        }
        let batch = slicer.batch;
        self.turn += 1;
        let name = &self.request.agents[batch.peer as usize];
        let transfer = self
            .create(tools, &batch, name)
            .map_err(|e| with_peer(e, name))?;
        if self.record.slices == 0 {
            self.record.posted_ns = self.elapsed_ns();
            self.record.backend = transfer.backend().unwrap_or_default();
        }
        self.record.slices += 1;
        let begin = Instant::now();
        let state = transfer.post(None);
        self.pace.posted(begin.elapsed());
        let bytes = tools.slice.bytes;
        match state {
            Ok(TransferState::Done) => self.record.bytes += bytes,
            Ok(TransferState::InProgress) => self.flying.push(Flying {
                transfer,
                bytes,
                peer: batch.peer,
                word: None,
            }),
            Err(e) => return Err(with_peer(e, name)),
        }
        Ok(())
    }

    fn create(&self, tools: &mut Tools<'_>, batch: &Batch, name: &str) -> Result<Transfer> {
        if let Some(device) = gpu(batch, tools.slice) {
            tools.contexts.enter(device)?;
        }
        let op = match self.request.plan.direction() {
            Direction::Pull => Op::Read,
            Direction::Push => Op::Write,
        };
        tools.agent.create_transfer(
            op,
            (batch.local_mem, &tools.slice.local),
            (batch.remote_mem, &tools.slice.remote),
            name,
            TransferOptions::default(),
        )
    }

    /// All bytes are in: asks the peers whether they may be used. False if there is no room for that now.
    fn post_guards(&mut self, tools: &mut Tools<'_>) -> Result<bool> {
        if !tools.words.has(self.request.guards.len())? {
            return Ok(false);
        }
        for guard in &self.request.guards {
            let name = &self.request.agents[guard.peer as usize];
            let (transfer, word) = tools
                .words
                .read(guard, name)
                .map_err(|e| with_peer(e, name))?;
            match transfer.post(None) {
                // Whether it is done already is seen when it is looked at next, with the others.
                Ok(_) => self.flying.push(Flying {
                    transfer,
                    bytes: 0,
                    peer: guard.peer,
                    word: Some(word),
                }),
                Err(e) => {
                    tools.words.give_back(&word);
                    return Err(with_peer(e, name));
                }
            }
        }
        self.guarded = true;
        Ok(true)
    }

    /// Everything has come to rest: tells the peers, and the caller.
    fn finish(&mut self, agent: &Agent) -> Completion {
        let failure = self.failure.take();
        let not_notified = match failure {
            None => self.notify(agent),
            Some(_) => Vec::new(),
        };
        self.record.finished_ns = self.elapsed_ns();
        Completion {
            ticket: self.ticket,
            result: failure.map_or(Ok(()), Err),
            not_notified,
            record: std::mem::take(&mut self.record),
        }
    }

    fn notify(&self, agent: &Agent) -> Vec<(String, Error)> {
        let Some(payload) = &self.request.notification else {
            return Vec::new();
        };
        let peers = self.request.plan.peers().iter().zip(&self.request.agents);
        peers
            .filter(|(peer, _)| peer.role != PeerRole::Idle)
            .filter_map(|(_, name)| {
                let e = agent.notify(name, payload, None).err()?;
                log::warn!(
                    "ticket {}: \"{name}\" could not be notified: {e}",
                    self.ticket
                );
                Some((name.clone(), e))
            })
            .collect()
    }

    fn late(&self) -> Error {
        let limit = self.request.deadline.unwrap_or_default().as_millis();
        let progress = match self.runs {
            None => "before the request was begun".to_owned(),
            Some(_) => format!(
                "with {} of {} bytes in place",
                self.record.bytes, self.record.total_bytes
            ),
        };
        Error::new(
            Status::Timeout,
            format!("the deadline of {limit} ms has passed {progress}"),
        )
    }

    fn elapsed_ns(&self) -> u64 {
        // Never 0, which means "did not get there".
        (self.submitted.elapsed().as_nanos() as u64).max(1)
    }
}

fn with_peer(e: Error, name: &str) -> Error {
    e.context(format_args!("transfer with \"{name}\""))
}

/// The device whose context a post needs, if this side's memory is on one.
fn gpu(batch: &Batch, slice: &Slice) -> Option<u64> {
    let device = slice.local.first().map(|d| d.device);
    device.filter(|_| batch.local_mem == MemKind::Vram)
}
