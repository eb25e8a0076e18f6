//! Messages that have arrived and wait to be taken.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::error::{Result, Status, bail};
use crate::event::Event;
use crate::sync::lock;
use crate::transport::Notification;

/// Longest message.
pub(super) const MAX_PAYLOAD: usize = 16 << 20;
/// An inbox that holds this much takes no more until it has been emptied; senders then wait.
const MAX_BYTES: usize = 64 << 20;
/// What a message costs apart from its bytes, so that empty messages are bounded too.
const OVERHEAD: usize = 64;

/// The inbox of one agent.
pub(super) struct Inbox {
    inner: Mutex<Inner>,
    /// Told when something has arrived or the inbox was closed.
    arrived: Condvar,
    /// Told when the inbox was emptied or closed.
    emptied: Condvar,
    /// Rung when something arrives, for an agent that sleeps in poll(2) and not on `arrived`.
    bell: Option<Arc<Event>>,
}

#[derive(Default)]
struct Inner {
    queue: VecDeque<Notification>,
    bytes: usize,
    closed: bool,
}

impl Inner {
    fn has_room(&self) -> bool {
        self.bytes < MAX_BYTES
    }
}

impl Inbox {
    pub fn new(bell: Option<Arc<Event>>) -> Inbox {
        Inbox {
            inner: Mutex::default(),
            arrived: Condvar::new(),
            emptied: Condvar::new(),
            bell,
        }
    }

    /// Whether the next message would be taken.
    pub fn has_room(&self) -> bool {
        let inner = lock(&self.inner);
        inner.has_room() || inner.closed
    }

    /// Takes a message from the socket. The caller has looked whether there is room.
    pub fn deliver(&self, message: Notification) {
        let mut inner = lock(&self.inner);
        if !inner.closed {
            self.accept(&mut inner, message);
        }
    }

    /// Takes a message from an agent of the same process; waits at most `limit` for room.
    pub fn deliver_within(&self, message: Notification, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut inner = lock(&self.inner);
        loop {
            if inner.closed {
                bail!(Status::PeerLost, "the receiving agent was closed");
            }
            if inner.has_room() {
                self.accept(&mut inner, message);
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!(
                    Status::Busy,
                    "the receiver holds {} messages of {} bytes and takes none",
                    inner.queue.len(),
                    inner.bytes
                );
            }
            inner = match self.emptied.wait_timeout(inner, left) {
                Ok((inner, _)) => inner,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn accept(&self, inner: &mut Inner, message: Notification) {
        inner.bytes += message.payload.len() + message.from.len() + OVERHEAD;
        inner.queue.push_back(message);
        self.arrived.notify_all();
        if let Some(bell) = &self.bell {
            bell.set();
        }
    }

    /// Takes everything; the flag says whether senders were being held up.
    pub fn take(&self) -> (Vec<Notification>, bool) {
        let mut inner = lock(&self.inner);
        let was_full = !inner.has_room();
        inner.bytes = 0;
        self.emptied.notify_all();
        (std::mem::take(&mut inner.queue).into(), was_full)
    }

    pub fn is_empty(&self) -> bool {
        lock(&self.inner).queue.is_empty()
    }

    /// Waits until something is there, at most `limit`.
    pub fn wait(&self, limit: Duration) {
        let deadline = Instant::now().checked_add(limit);
        let mut inner = lock(&self.inner);
        while inner.queue.is_empty() && !inner.closed {
            // A limit beyond the clock's range is for ever; wake now and then costs nothing.
            let left = deadline.map_or(Duration::from_secs(3600), |d| {
                d.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                return;
            }
            inner = match self.arrived.wait_timeout(inner, left) {
                Ok((inner, _)) => inner,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Takes no more messages and wakes everybody who waits. What has arrived can still be taken.
    pub fn close(&self) {
        lock(&self.inner).closed = true;
        self.arrived.notify_all();
        self.emptied.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: usize) -> Notification {
        Notification {
            from: "a".to_string(),
            payload: vec![7; len],
        }
    }

    #[test]
    fn a_full_inbox_holds_senders_up_until_it_is_emptied() {
        let inbox = Inbox::new(None);
        while inbox.has_room() {
            inbox.deliver(message(MAX_PAYLOAD));
        }
        let error = inbox
            .deliver_within(message(1), Duration::ZERO)
            .unwrap_err();
        assert_eq!(error.status(), Status::Busy);
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| inbox.deliver_within(message(1), Duration::from_secs(10)));
            let (messages, was_full) = inbox.take();
            assert!(was_full && messages.len() == 4);
            sender.join().unwrap().unwrap();
        });
        assert_eq!(inbox.take().0, [message(1)]);
    }

    #[test]
    fn waiting_ends_with_the_message_and_with_closing() {
        let inbox = Inbox::new(None);
        inbox.wait(Duration::ZERO);
        std::thread::scope(|scope| {
            scope.spawn(|| inbox.wait(Duration::MAX));
            inbox.deliver(message(0));
        });
        assert_eq!(inbox.take().0.len(), 1);
        std::thread::scope(|scope| {
            scope.spawn(|| inbox.wait(Duration::MAX));
            inbox.close();
        });
        let error = inbox
            .deliver_within(message(0), Duration::MAX.min(Duration::from_secs(9)))
            .unwrap_err();
        assert_eq!(error.status(), Status::PeerLost);
    }
}
