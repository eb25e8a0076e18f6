//! A client: what it has opened and holds, and when it counts as gone.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::holdings::Holdings;
use super::process::Process;

/// When a session ends by itself.
struct Lease {
    timeout: Duration,
    last_seen: Instant,
    process: Option<Process>,
}

/// One client, or (without a lease) all those that did not say who they are.
#[derive(Default)]
pub(super) struct Session {
    lease: Option<Lease>,
    /// Pools that it has opened.
    pub(super) opened: BTreeSet<String>,
    /// What it holds, by pool.
    pub(super) held: HashMap<String, Holdings>,
}

impl Session {
    /// A session that ends after this long a silence, or with this process.
    pub(super) fn new(timeout: Duration, process: Option<Process>, now: Instant) -> Self {
        let mut session = Session::default();
        session.renew(timeout, process, now);
        session
    }

    /// New terms for a session that is alive.
    pub(super) fn renew(&mut self, timeout: Duration, process: Option<Process>, now: Instant) {
        self.lease = Some(Lease {
            timeout,
            last_seen: now,
            process,
        });
    }

    /// Its client has been heard of.
    pub(super) fn seen(&mut self, now: Instant) {
        if let Some(lease) = &mut self.lease {
            lease.last_seen = now;
        }
    }

    /// It has been silent for so long through no fault of its client's.
    pub(super) fn pardon(&mut self, time: Duration, now: Instant) {
        if let Some(lease) = &mut self.lease {
            lease.last_seen = lease
                .last_seen
                .checked_add(time)
                .map_or(now, |t| t.min(now));
        }
    }

    /// Silence after which it ends; zero: never.
    pub(super) fn timeout(&self) -> Duration {
        self.lease.as_ref().map_or(Duration::ZERO, |l| l.timeout)
    }

    /// Whether its client's process is watched.
    pub(super) fn is_watched(&self) -> bool {
        self.lease.as_ref().is_some_and(|l| l.process.is_some())
    }

    /// Why it is over, if it is.
    pub(super) fn is_over(&self, now: Instant) -> Option<&'static str> {
        let lease = self.lease.as_ref()?;
        if lease.process.is_some_and(Process::has_ended) {
            return Some("its process has ended");
        }
        (now.saturating_duration_since(lease.last_seen) > lease.timeout)
            .then_some("nothing was heard of it")
    }

    /// Whether it holds something of a pool.
    pub(super) fn holds(&self, pool: &str) -> bool {
        self.held.get(pool).is_some_and(|h| !h.is_empty())
    }
}
