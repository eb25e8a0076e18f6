//! The books, and what both modes do alike.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use super::clip::{Clipped, clip};
use super::heartbeats::Heartbeats;
use super::leases::Leases;
use super::load::Load;
use super::options::SchedulerOptions;
use super::serve::Served;
use super::{Finish, Finished, Keep, RequestBlocks, SchedulerStats};
use crate::connector::params::{Params, Remote};
use crate::connector::step::Step;
use crate::connector::step::codec::MAX_ENCODED;
use crate::connector::{LeaseRef, MAX_REQUEST_ID, Mode};
use crate::error::{Error, Result, Status, bail};

/// Everything behind the lock.
pub(super) struct State {
    pub(super) options: SchedulerOptions,
    /// Of the side channel, as other engines are told.
    pub(super) port: u16,
    pub(super) requests: HashMap<String, Request>,
    /// Requests that are being received and have not ended.
    pub(super) receiving: usize,
    /// Those that have ended meanwhile, and will be reported.
    pub(super) leaving: HashSet<String>,
    /// Blocks kept for readers, with their lease words.
    pub(super) holds: HashMap<String, Option<LeaseRef>>,
    pub(super) leases: Leases,
    pub(super) heartbeats: Heartbeats,
    /// What the next step will say. Holds have their deadline where the step has the time that is left.
    pub(super) step: Step,
    /// Counts steps, to tell what is in `step` from what the workers know already.
    pub(super) step_number: u64,
    /// Push: when to give up on registrations, earliest first.
    pub(super) deadlines: BTreeMap<Deadline, String>,
    pub(super) deadlines_made: u64,
    /// Handshake payloads published.
    pub(super) published: u64,
}

/// A time in nanoseconds, and a number that makes it unique.
pub(super) type Deadline = (u64, u64);

/// A request that has parameters.
#[derive(Debug)]
pub(super) struct Request {
    /// As the router gave them; the flags change as vLLM changes them in its copy.
    pub(super) params: Params,
    /// Whom to ask. Taken out when the transfer is staged.
    pub(super) remote: Option<Remote>,
    /// When it entered the engine.
    pub(super) entered_ns: u64,
    /// The step in which it was last said to be in a batch.
    pub(super) batched: Option<u64>,
    /// The transfer that the engine waits for.
    pub(super) load: Option<Load>,
    pub(super) deadline: Option<Deadline>,
}

/// The parameters of a request that has some. What cannot be read is logged and makes it a local one, so
/// that a router's mistake costs a request its shortcut and nothing else.
pub(super) fn readable(id: &str, params: &[u8]) -> Option<Params> {
    if matches!(params.trim_ascii(), b"" | b"null" | b"{}") {
        return None;
    }
    let read = match id.len() {
        1..=MAX_REQUEST_ID => Params::from_json(params),
        n => Err(Error::invalid(format!(
            "its id has {n} bytes; 1 to {MAX_REQUEST_ID} are allowed"
        ))),
    };
    match read {
        Ok(params) => Some(params),
        Err(e) => {
            log::warn!(
                "request {}: {}; it is computed here",
                short(id),
                short(e.message())
            );
            None
        }
    }
}

/// Enough of a text from outside for a log line.
fn short(text: &str) -> String {
    const MOST: usize = 200;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl State {
    pub(super) fn new(options: SchedulerOptions) -> State {
        State {
            port: options.port,
            heartbeats: Heartbeats::new(nanoseconds(options.heartbeat)),
            options,
            requests: HashMap::new(),
            receiving: 0,
            leaving: HashSet::new(),
            holds: HashMap::new(),
            leases: Leases::default(),
            step: Step::default(),
            step_number: 0,
            deadlines: BTreeMap::new(),
            deadlines_made: 0,
            published: 0,
        }
    }

    pub(super) fn add(
        &mut self,
        id: &str,
        mut params: Params,
        prompt: u64,
        reads_cache: bool,
        now: u64,
    ) -> Result<u64> {
        self.check_free(id)?;
        self.heartbeats.stop(id);
        if self.options.mode == Mode::Push && params.remote_request_id.is_none() {
            // The producer finds the request by this engine's id; only a heartbeat would say the other.
            params.remote_request_id = Some(id.to_owned());
        }
        let remote = params.take_remote();
        let asks =
            params.do_remote_prefill || (params.do_remote_decode && self.options.bidirectional);
        if asks && remote.is_none() && !params.remote_block_ids.is_empty() {
            log::warn!(
                "request {}: kv_transfer_params name blocks, but not all of remote_engine_id, \
                 remote_request_id, remote_host and remote_port; it is computed here",
                short(id)
            );
        }
        if let (true, Some(remote), Some(_)) = (params.do_remote_prefill, &remote, params.tp_size) {
            self.heartbeats.start(id, remote);
        }
        let drop = match params.do_remote_decode && !params.p_side_truncated && reads_cache {
            true => self.backoff(prompt),
            false => 0,
        };
        let request = Request {
            params,
            remote,
            entered_ns: now,
            batched: None,
            load: None,
            deadline: None,
        };
        self.requests.insert(id.to_owned(), request);
        Ok(drop)
    }

    /// Refuses an id that is still to be reported. The report could not be told from that of the new
    /// request, which would run on blocks that are being written to, or lose its own.
    fn check_free(&self, id: &str) -> Result<()> {
        let load = self.requests.get(id).and_then(|r| r.load);
        if load.is_some() || self.leaving.contains(id) {
            bail!(
                Status::InvalidState,
                "request \"{id}\" is still being received; its id is free when it has been reported as \
                 received"
            );
        }
        if self.holds.contains_key(id) {
            bail!(
                Status::InvalidState,
                "the blocks of a request \"{id}\" are still kept; its id is free when it has been \
                 reported as sent"
            );
        }
        Ok(())
    }

    /// Trailing prompt tokens that the producer leaves to the consumer.
    pub(super) fn backoff(&self, prompt: u64) -> u64 {
        let n = self.options.backoff_tokens;
        if prompt > n { n } else { 0 }
    }

    pub(super) fn match_tokens(&self, id: &str, prompt: u64, computed: u64) -> u64 {
        let Some(request) = self.requests.get(id) else {
            return 0;
        };
        let there = match self.can_fetch(request) {
            false => 0,
            true if request.params.do_remote_prefill => prompt - self.backoff(prompt),
            true => return self.next_turn(request, prompt, computed),
        };
        there.saturating_sub(computed)
    }

    /// Whether the request's KV is to be fetched and it is known where from.
    pub(super) fn can_fetch(&self, request: &Request) -> bool {
        let p = &request.params;
        request.remote.is_some()
            && (self.options.mode == Mode::Push || !p.remote_block_ids.is_empty())
            && (p.do_remote_prefill || self.is_next_turn(p))
    }

    pub(super) fn build_step(&mut self, now: u64) -> Vec<u8> {
        self.give_up(now);
        let mut step = std::mem::take(&mut self.step);
        self.step_number += 1;
        step.clock_ns = now;
        for hold in &mut step.holds {
            hold.remaining_ns = hold.remaining_ns.saturating_sub(now);
        }
        step.heartbeats.extend(self.heartbeats.take(now));
        let bytes = step.encode();
        if bytes.len() <= MAX_ENCODED {
            return bytes;
        }
        let rest = step.cut(MAX_ENCODED);
        self.carry_over(rest, now);
        step.encode()
    }

    /// What did not fit begins the next step. Nobody has heard of it: it may still be changed.
    fn carry_over(&mut self, mut rest: Step, now: u64) {
        for hold in &mut rest.holds {
            hold.remaining_ns = hold.remaining_ns.saturating_add(now);
        }
        let list = match self.options.mode {
            Mode::Pull => &rest.receives,
            Mode::Push => &rest.registrations,
        };
        for (index, receive) in list.iter().enumerate().filter(|(_, r)| r.awaited) {
            let request = self.requests.get_mut(&receive.request_id);
            if let Some(load) = request.and_then(|r| r.load.as_mut()) {
                (load.step, load.index) = (self.step_number, index);
            }
        }
        self.step = rest;
    }

    pub(super) fn finished(
        &mut self,
        id: &str,
        how: Finish,
        groups: &[RequestBlocks<'_>],
        computed_tokens: u64,
        now: u64,
    ) -> Result<Finished> {
        if !self.requests.contains_key(id) {
            return Ok(self.finished_before(id));
        }
        let blocks = match groups {
            [] => Clipped::default(),
            _ => clip(&self.options, groups)?,
        };
        let Some(mut request) = self.requests.remove(id) else {
            return Ok(Finished::default());
        };
        self.heartbeats.stop(id);
        if request.params.do_remote_prefill {
            self.decline(id, &mut request);
            return Ok(Finished::default());
        }
        let producer = request.params.do_remote_decode;
        let batched = request.batched;
        let keep = match self.end_load(id, request) {
            true => Keep::UntilReceived,
            false => Keep::No,
        };
        let ended = Finished { keep, params: None };
        if !producer && !self.options.bidirectional {
            return Ok(ended);
        }
        let kept = matches!(how, Finish::Length | Finish::Stop);
        let empty = blocks.ids.iter().all(Vec::is_empty);
        if !kept || (empty && batched.is_some()) {
            self.forget(id, batched);
        }
        if !kept {
            return Ok(ended);
        }
        Ok(self.hold(id, producer, blocks.ids, computed_tokens, now))
    }

    /// Nobody's, or one that has ended and is said to end again: what was answered then still holds.
    fn finished_before(&self, id: &str) -> Finished {
        let keep = match (self.leaving.contains(id), self.holds.contains_key(id)) {
            (true, _) => Keep::UntilReceived,
            (_, true) => Keep::UntilSent,
            _ => Keep::No,
        };
        Finished { keep, params: None }
    }

    /// No lease will follow. Workers take what they are to forget first, so that an id can be used again
    /// in the same step.
    fn forget(&mut self, id: &str, batched: Option<u64>) {
        if batched == Some(self.step_number) {
            self.step.in_batch.retain(|other| other != id);
        }
        self.step.forget.push(id.to_owned());
    }

    pub(super) fn served(&mut self, served: Served) {
        self.port = served.port;
        self.published += served.changed;
    }

    pub(super) fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            requests: self.requests.len() as u64,
            receiving: (self.receiving + self.leaving.len()) as u64,
            holds: self.holds.len() as u64,
            leases: self.leases.in_use() as u64,
            heartbeats: self.heartbeats.requests() as u64,
            peers: self.heartbeats.peers() as u64,
        }
    }
}
