//! Push: the producer writes. The consumer registers the blocks that it has for a request, the producer's
//! workers match that with the blocks of the finished request, whichever comes first.

use super::state::State;
use crate::connector::Mode;
use crate::connector::step::Push;

impl State {
    /// Tells the workers which blocks of a finished request can be written to its consumer.
    pub(super) fn offer(&mut self, id: &str, blocks: &[Vec<u32>], tokens: u64) {
        if self.options.mode == Mode::Push {
            self.step.pushes.push(Push {
                request_id: id.to_owned(),
                blocks: blocks.to_vec(),
                tokens,
            });
        }
    }

    /// Ends registrations that nobody has answered in time, so that the engine hears of them as failed.
    pub(super) fn give_up(&mut self, now: u64) {
        while let Some(first) = self.deadlines.first_entry() {
            if first.key().0 > now {
                break;
            }
            let id = first.remove();
            if let Some(request) = self.requests.get_mut(&id) {
                request.deadline = None;
                if let Some(load) = &mut request.load {
                    load.stopped = true;
                }
            }
            log::warn!(
                "request {id}: no producer has written its blocks within {:?}",
                self.options.registration_timeout
            );
            self.step.cancel.push(id);
        }
    }

    /// Engines stop stepping when they have no request to run; while blocks are kept for a write or a
    /// registration is on its way they must not.
    pub(super) fn has_pending(&self) -> bool {
        self.options.mode == Mode::Push
            && !(self.holds.is_empty() && self.step.registrations.is_empty())
    }
}
