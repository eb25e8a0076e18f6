//! Completions on their way to the caller, with two ways to be woken for them.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::Completion;
use crate::error::{Error, Result};
use crate::sync::lock;

pub(super) struct Outbox {
    inside: Mutex<Inside>,
    ready: Condvar,
    /// Readable exactly while there are items.
    event: OwnedFd,
}

#[derive(Default)]
struct Inside {
    items: VecDeque<Completion>,
    /// Nothing more will be put in.
    ended: bool,
}

impl Outbox {
    pub(super) fn new() -> Result<Self> {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(Error::os("creating the queue's event descriptor"));
        }
        // SAFETY: a new descriptor that nobody else has.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Outbox {
            inside: Mutex::default(),
            ready: Condvar::new(),
            event,
        })
    }

    pub(super) fn put(&self, completion: Completion) {
        let mut inside = lock(&self.inside);
        if inside.items.is_empty() {
            self.signal();
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
            self.clear();
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

    // The counter goes between 0 and 1 under the lock, so neither call can fail.

    fn signal(&self) {
        let one = 1u64;
        // SAFETY: an open descriptor and 8 readable bytes.
        unsafe { libc::write(self.event.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: an open descriptor and 8 writable bytes.
        unsafe { libc::read(self.event.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}
