//! Tells the server now and then that its client is there.

use std::sync::{Arc, Condvar, Mutex, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::link::Link;
use crate::error::{Result, Status};
use crate::sync::lock;
use crate::threads::spawn;

/// Between two signs of life, at least and at most.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(60);
/// How long one may take; whoever ends the client, or calls meanwhile, waits for it.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Shared {
    stop: Mutex<bool>,
    stopped: Condvar,
}

/// A thread that pings until it is stopped.
pub(super) struct Heartbeat {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Heartbeat {
    /// Signs of life over the client's own connection, whenever that is not in use; and when it is,
    /// the server hears of the client anyway.
    pub(super) fn start(link: Arc<Mutex<Option<Link>>>, interval: Duration) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let interval = interval.clamp(SHORTEST, LONGEST);
        let theirs = Arc::clone(&shared);
        let thread = spawn("kvf-pool-beat", move || beat(&theirs, &link, interval))?;
        Ok(Heartbeat {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Ends the thread, and waits for it: a ping that comes after the end of the session would be
    /// answered with an error.
    pub(super) fn stop(&self) {
        *lock(&self.shared.stop) = true;
        self.shared.stopped.notify_all();
        if let Some(thread) = lock(&self.thread).take() {
            // It has no result, and a panic in it has been reported where it happened.
            let _ = thread.join();
        }
    }
}

fn beat(shared: &Shared, link: &Mutex<Option<Link>>, interval: Duration) {
    while !waited(shared, interval) {
        let mut link = match link.try_lock() {
            Ok(link) => link,
            Err(TryLockError::Poisoned(link)) => link.into_inner(),
            Err(TryLockError::WouldBlock) => continue,
        };
        let Some(link) = &mut *link else { return };
        match link.ping(PATIENCE) {
            Ok(()) => {}
            Err(e) if e.status() == Status::NotFound => {
                log::warn!("the session has ended: {e}");
                return;
            }
            Err(e) => log::debug!("no sign of life: {e}"),
        }
    }
}

/// Waits for the next time; whether it was stopped instead.
fn waited(shared: &Shared, interval: Duration) -> bool {
    let stop = lock(&shared.stop);
    let (stop, _) = shared
        .stopped
        .wait_timeout_while(stop, interval, |stop| !*stop)
        .unwrap_or_else(PoisonError::into_inner);
    *stop
}
