//! Completions on their way to the caller, with two ways to be woken for them.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::Completion;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::sync::lock;

pub(super) struct Outbox {
    inside: Mutex<Inside>,
    ready: Condvar,
    /// Readable exactly while there are items.
    event: Event,
}

#[derive(Default)]
struct Inside {
    items: VecDeque<Completion>,
    /// Nothing more will be put in.
    ended: bool,
}

impl Outbox {
    pub(super) fn new() -> Result<Self> {
        let event = Event::new()
            .map_err(|e| Error::from_io("creating the queue's event descriptor", &e))?;
        Ok(Outbox {
            inside: Mutex::default(),
            ready: Condvar::new(),
            event,
        })
    }

    pub(super) fn put(&self, completion: Completion) {
        let mut inside = lock(&self.inside);
        if inside.items.is_empty() {
            self.event.set();
        }
        inside.items.push_back(completion);
        drop(inside);
        self.ready.notify_all();
    }

    /// Says that nothing more will be put in, so that nobody waits for it.
    pub(super) fn end(&self) {
        lock(&self.inside).ended = true;
        self.ready.notify_all();
    }

    pub(super) fn take(&self, max: usize) -> Vec<Completion> {
        let items = &mut lock(&self.inside).items;
        if items.is_empty() || max == 0 {
            return Vec::new();
        }
        let n = max.min(items.len());
        let taken = items.drain(..n).collect();
        if items.is_empty() {
            self.event.clear();
        }
        taken
    }

    /// Waits until there is something to take, or never will be; whether there is.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let inside = lock(&self.inside);
        let nothing = |inside: &mut Inside| inside.items.is_empty() && !inside.ended;
        let waited = self.ready.wait_timeout_while(inside, limit, nothing);
        let (inside, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !inside.items.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.inside).items.len()
    }

    pub(super) fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}
