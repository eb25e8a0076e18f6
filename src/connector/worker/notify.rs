//! Messages from other ranks. Anybody may send anything: what is not understood is dropped, and said
//! once.

use std::time::Instant;

use super::leases::ReadDone;
use super::stats::Kind;
use super::thread::Core;
use crate::connector::Mode;
use crate::connector::wire::Notification;

impl Core {
    /// Takes the messages that have arrived.
    pub(super) fn hear(&mut self) {
        let messages = match self.agent.notifications(&[]) {
            Ok(messages) => messages,
            Err(e) => {
                if self.once.first("", "no messages") {
                    log::error!("the worker cannot look for messages: {e}");
                }
                return;
            }
        };
        for message in messages {
            self.safely("a message", |core| {
                core.understand(&message.from, &message.payload);
            });
        }
    }

    fn understand(&mut self, from: &str, payload: &[u8]) {
        match Notification::parse(payload) {
            Ok(Notification::Heartbeat(ids)) => self.leases.heartbeat(&ids, Instant::now()),
            Ok(Notification::Done { request_id, count }) => {
                self.done_by(from, &request_id, count);
            }
            Ok(Notification::PushRegistration(registration)) => {
                self.registered(from, *registration);
            }
            Err(e) => {
                if self.once.first(from, "malformed") {
                    log::warn!("from agent \"{from}\": {e}; it is dropped, as are others like it");
                }
            }
        }
    }

    /// A rank is through with a request: one that it has read, or one that it has written here.
    fn done_by(&mut self, from: &str, request_id: &str, count: u32) {
        if self.written(from, request_id) {
            return;
        }
        match self.leases.read_done(request_id, count) {
            ReadDone::Counted => {}
            ReadDone::Complete => {
                self.forget_push(request_id);
                self.shared.outbox.sent(request_id);
            }
            // The step that asks for it may be on its way.
            ReadDone::Unknown
                if self.shared.options.mode == Mode::Push
                    && self.receives.early.hear(request_id, from, Instant::now()) => {}
            ReadDone::Unknown => {
                self.shared.stats.count(Kind::LateNotifications);
                if self.once.first(from, "late") {
                    log::warn!(
                        "agent \"{from}\" is done with request \"{request_id}\", which is not kept \
                         here, or no longer"
                    );
                }
            }
        }
    }
}
