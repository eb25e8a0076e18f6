//! What the engine has to hear at its next step.

use std::collections::HashSet;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::event::Event;
use crate::sync::lock;

/// What became of requests since the last look. Each request is reported once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Results {
    /// Requests whose kept blocks are free: all readers are through, or the lease has ended.
    pub sent: Vec<String>,
    /// Requests whose receive is over, well or not. Their blocks are the engine's again.
    pub received: Vec<String>,
    /// Those of `received` that failed: nothing in their blocks may be used.
    pub failed: Vec<String>,
    /// Local block ids of failed requests, where the model has one group and an id says which block
    /// is meant.
    pub failed_blocks: Vec<u32>,
    /// Whether there are figures to take.
    pub has_stats: bool,
}

impl Results {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.sent.is_empty() && self.received.is_empty()
    }
}

/// Reports are noted one by one and published together, after the counts of what there is
/// ([`super::WorkerState`]): whoever has heard that a request is over does not find it counted.
pub(super) struct Outbox {
    noted: Mutex<Results>,
    inside: Mutex<Results>,
    filled: Condvar,
    /// Readable exactly while there is something inside.
    event: Event,
    /// Nothing more will be put in.
    ended: AtomicBool,
}

impl Outbox {
    pub(super) fn new() -> Result<Self> {
        Ok(Outbox {
            noted: Mutex::default(),
            inside: Mutex::default(),
            filled: Condvar::new(),
            event: Event::new()
                .map_err(|e| Error::from_io("creating the worker's event descriptor", &e))?,
            ended: AtomicBool::new(false),
        })
    }

    pub(super) fn sent(&self, request_id: &str) {
        lock(&self.noted).sent.push(request_id.to_owned());
    }

    pub(super) fn received(&self, request_id: &str) {
        lock(&self.noted).received.push(request_id.to_owned());
    }

    pub(super) fn failed(&self, request_id: &str, blocks: &[u32]) {
        let mut noted = lock(&self.noted);
        noted.received.push(request_id.to_owned());
        noted.failed.push(request_id.to_owned());
        noted.failed_blocks.extend_from_slice(blocks);
    }

    /// Lets the engine see what has been noted.
    pub(super) fn publish(&self) {
        let noted = std::mem::take(&mut *lock(&self.noted));
        if noted.is_empty() {
            return;
        }
        let mut inside = lock(&self.inside);
        if inside.is_empty() {
            self.event.set();
        }
        inside.sent.extend(noted.sent);
        inside.received.extend(noted.received);
        inside.failed.extend(noted.failed);
        inside.failed_blocks.extend(noted.failed_blocks);
        drop(inside);
        self.filled.notify_all();
    }

    pub(super) fn take(&self) -> Results {
        let mut inside = lock(&self.inside);
        if !inside.is_empty() {
            self.event.clear();
        }
        std::mem::take(&mut inside)
    }

    pub(super) fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Says that nothing more will be put in, so that nobody waits for it.
    pub(super) fn end(&self) {
        let _inside = lock(&self.inside);
        self.ended.store(true, Ordering::Release);
        self.filled.notify_all();
    }

    /// Waits until there is something to take, or never will be; whether there is.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let inside = lock(&self.inside);
        let waited = self.filled.wait_timeout_while(inside, limit, |r| {
            r.is_empty() && !self.ended.load(Ordering::Acquire)
        });
        let (inside, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !inside.is_empty()
    }
}

/// Says things once: a peer that sends nonsense sends it often.
#[derive(Default)]
pub(super) struct Once {
    said: HashSet<(String, &'static str)>,
}

impl Once {
    /// Most things that are remembered; after that they are said again.
    const MOST: usize = 4096;

    /// Whether this kind of thing has not been said about this peer.
    pub(super) fn first(&mut self, peer: &str, kind: &'static str) -> bool {
        if self.said.len() >= Self::MOST {
            self.said.clear();
        }
        self.said.insert((peer.to_owned(), kind))
    }
}
