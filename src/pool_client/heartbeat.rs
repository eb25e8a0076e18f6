//! Tells the server now and then that its client is there.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::link::Link;
use crate::error::{Result, Status};
use crate::pool_server::wire::Ping;
use crate::pool_server::wire::operation::Kind;
use crate::sync::lock;
use crate::threads::spawn;

/// Between two signs of life, at least and at most.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(60);
/// How long one may take; whoever ends the client waits for it.
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
    pub(super) fn start(
        context: &zmq::Context,
        address: &str,
        session: &str,
        interval: Duration,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let interval = interval.clamp(SHORTEST, LONGEST);
        let (context, address, session) = (context.clone(), address.to_owned(), session.to_owned());
        let theirs = Arc::clone(&shared);
        let thread = spawn("kvf-pool-beat", move || {
            beat(&theirs, &context, &address, &session, interval);
        })?;
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

fn beat(shared: &Shared, context: &zmq::Context, address: &str, session: &str, interval: Duration) {
    // A socket of its own: the client's may be busy with a call. It is made again after a failure.
    let mut link = None;
    while !waited(shared, interval) {
        let open = || Link::open(context, address, "", session, PATIENCE);
        let result = match link.take() {
            Some(link) => Ok(link),
            None => open(),
        };
        let result = result.and_then(|mut open: Link| {
            let answer = open.call(Kind::Ping(Ping::default()));
            if !open.is_dead() {
                link = Some(open);
            }
            answer
        });
        match result {
            Ok(_) => {}
            Err(e) if e.status() == Status::NotFound => {
                log::warn!("the session with {address} has ended: {e}");
                return;
            }
            Err(e) => log::debug!("no sign of life from {address}: {e}"),
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
