//! A transfer that the engine waits for, from the blocks for it to the report.

use super::RequestBlocks;
use super::clip::{Clipped, clip};
use super::state::{Request, State, nanoseconds};
use crate::connector::Mode;
use crate::connector::params::{Params, Remote};
use crate::connector::step::Receive;
use crate::error::Result;

/// The transfer that the engine waits for: in which step it stands, and there at which index.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) step: u64,
    pub(super) index: usize,
    /// The workers have been told to stop it.
    pub(super) stopped: bool,
}

impl State {
    pub(super) fn allocated(
        &mut self,
        id: &str,
        groups: &[RequestBlocks<'_>],
        external_tokens: u64,
        now: u64,
    ) -> Result<bool> {
        let Some(request) = self.requests.get_mut(id) else {
            return Ok(false);
        };
        let local = match external_tokens {
            0 => Clipped::default(),
            _ => clip(&self.options, groups)?,
        };
        // A consumer that keeps its blocks for the next turn becomes a producer then.
        if (request.params.do_remote_decode || self.options.bidirectional)
            && request.batched != Some(self.step_number)
        {
            request.batched = Some(self.step_number);
            self.step.in_batch.push(id.to_owned());
        }
        let p = &self.requests[id].params;
        if !(p.do_remote_prefill || self.is_next_turn(p)) {
            return Ok(false);
        }
        let fetch = self.can_fetch(&self.requests[id]);
        if fetch {
            let awaited = external_tokens > 0;
            self.stage(id, local, awaited, now);
            if awaited && self.options.mode == Mode::Push {
                self.watch(id, now);
            }
        }
        if let Some(request) = self.requests.get_mut(id) {
            request.params.do_remote_prefill = false;
            request.params.remote_blocks_processed = true;
        }
        Ok(true)
    }

    /// Puts a transfer into the step that is being made. If nothing is missing here, the producer is only
    /// told that its blocks are not needed.
    fn stage(&mut self, id: &str, local: Clipped, awaited: bool, now: u64) {
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        let Some(remote) = request.remote.take() else {
            return;
        };
        let mut receive = receive(id, remote, &mut request.params, local, awaited);
        if awaited {
            receive.waited_ns = now.saturating_sub(request.entered_ns);
        }
        let list = match (self.options.mode, awaited) {
            (Mode::Push, true) => &mut self.step.registrations,
            _ => &mut self.step.receives,
        };
        if awaited {
            self.receiving += 1;
            request.load = Some(Load {
                step: self.step_number,
                index: list.len(),
                stopped: false,
            });
        } else {
            self.heartbeats.stop(id);
        }
        list.push(receive);
    }

    /// Push: begins to wait for a registration.
    fn watch(&mut self, id: &str, now: u64) {
        let timeout = nanoseconds(self.options.registration_timeout);
        self.deadlines_made += 1;
        let deadline = (now.saturating_add(timeout), self.deadlines_made);
        self.deadlines.insert(deadline, id.to_owned());
        if let Some(request) = self.requests.get_mut(id) {
            request.deadline = Some(deadline);
        }
    }

    pub(super) fn received(&mut self, id: &str) {
        self.heartbeats.stop(id);
        let mut stopped = self.leaving.remove(id);
        if let Some(request) = self.requests.get_mut(id) {
            if let Some(load) = request.load.take() {
                self.receiving -= 1;
                stopped |= load.stopped;
            }
            if let Some(deadline) = request.deadline.take() {
                self.deadlines.remove(&deadline);
            }
        }
        if stopped {
            // A cancellation that has not gone out would meet the next request of that name.
            self.step.cancel.retain(|other| other != id);
        }
    }

    /// The request ends before its KV was asked for: its producer need not wait.
    pub(super) fn decline(&mut self, id: &str, request: &mut Request) {
        if self.can_fetch(request) {
            if let Some(remote) = request.remote.take() {
                let nothing = Clipped::default();
                let told = receive(id, remote, &mut request.params, nothing, false);
                self.step.receives.push(told);
            }
        }
    }

    /// The engine no longer wants what it waits for. Whether it did.
    pub(super) fn end_load(&mut self, id: &str, request: Request) -> bool {
        if let Some(deadline) = request.deadline {
            self.deadlines.remove(&deadline);
        }
        let Some(load) = request.load else {
            return false;
        };
        self.receiving -= 1;
        self.leaving.insert(id.to_owned());
        let pending = load.step == self.step_number && self.options.mode == Mode::Pull;
        match self.step.receives.get_mut(load.index) {
            // The workers have not heard of it: there is nothing to read and nothing to stop.
            Some(receive) if pending => {
                receive.local.clear();
                receive.local_first.clear();
            }
            _ if !load.stopped => self.step.cancel.push(id.to_owned()),
            _ => {}
        }
        true
    }
}

/// A transfer, or word to the producer that there will be none. Takes the producer's blocks out of the
/// parameters.
fn receive(
    id: &str,
    remote: Remote,
    params: &mut Params,
    local: Clipped,
    awaited: bool,
) -> Receive {
    Receive {
        request_id: id.to_owned(),
        peer: remote.peer,
        remote_request_id: remote.request_id,
        local: local.ids,
        local_first: local.first,
        remote: std::mem::take(&mut params.remote_block_ids),
        tokens: params.remote_num_tokens,
        awaited,
        expiry: params.remote_blocks_expiry_time,
        lease: params.kvferry_lease,
        registration: params.remote_registration_generation,
        waited_ns: 0,
    }
}
