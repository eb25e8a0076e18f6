//! A pool in a `kv_cache_server`, from the client's side: one call is one round trip, and a batch of
//! operations is one call.
//!
//! A client has a session with the server. It lives as long as the client does: a thread of its own
//! tells the server now and then that it is there, and where both are on one host the server also
//! watches the process. When the session has ended (the process was stopped for too long, or the
//! server was started again) every call is [`Status::NotFound`], and what the client held is not its
//! own any more.
//!
//! A call that gets no answer in time ends the client: whether it was carried out is not known, and
//! only the end of the session makes it not matter. It uses [`crate::pool_server`] for the messages.

mod heartbeat;
mod link;

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::block_pool;
use crate::error::{Error, Result, Status, bail};
use crate::pool_server::wire::operation::Kind;
use crate::pool_server::wire::reply::Result as Answer;
use crate::pool_server::wire::{self, Operation};
use crate::pool_server::{MAX_NAME, Process, error_of, open_pool};
use crate::sync::lock;
use heartbeat::Heartbeat;
use link::Link;

/// Where a server listens unless it is told otherwise.
pub const DEFAULT_ADDRESS: &str = "ipc:///tmp/kv_cache.sock";

/// The longest time that may be given to a call or a session.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a client that ends waits for the server to take everything back.
const FAREWELL: Duration = Duration::from_secs(1);

/// How to connect.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// `ipc://FILE` or `tcp://HOST:PORT`.
    pub address: String,
    /// The pool's name; empty: the one that the server was started with.
    pub pool: String,
    /// The session's name; empty: one that nobody else has. Whoever gives the name of a session that is
    /// alive goes on with it, and with what it holds.
    pub session: String,
    /// The pool to make, if there is none of that name; without, there must be one.
    pub create: Option<block_pool::Options>,
    /// With `create`: the events are published by the server, and not kept to be taken.
    pub publish: bool,
    /// How long a call may take.
    pub timeout: Duration,
    /// How long the server keeps what a silent client holds; zero: as the server likes.
    pub session_timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            address: DEFAULT_ADDRESS.to_owned(),
            pool: String::new(),
            session: String::new(),
            create: None,
            publish: false,
            timeout: Duration::from_secs(10),
            session_timeout: Duration::ZERO,
        }
    }
}

/// A connection to a server, with a session. Every method may be called from any thread; calls come
/// one after the other.
pub struct PoolClient {
    /// `None` once it is closed, and while it is being dropped in a forked child.
    link: Arc<Mutex<Option<Link>>>,
    heartbeat: Option<Heartbeat>,
    /// The process that made it: its threads and sockets do not follow a fork.
    pid: u32,
    epoch: u64,
}

impl PoolClient {
    /// Connects, opens the session, and makes or joins the pool.
    ///
    /// # Errors
    /// [`Status::Timeout`] if there is no answer; [`Status::NotFound`] if there is no such pool and none
    /// to make; [`Status::Mismatch`] if there is such a pool with
    /// other options; whatever else the server says.
    pub fn connect(options: &ClientOptions) -> Result<Self> {
        check(options)?;
        let session = match &*options.session {
            "" => unique_name(),
            name => name.to_owned(),
        };
        let process = Process::own();
        let (at, timeout) = (&options.address, options.timeout);
        let mut link = Link::new(at, &options.pool, &session, timeout)?;
        let pong = link.call(Kind::Ping(wire::Ping {
            open: true,
            timeout_ms: options.session_timeout.as_millis() as u64,
            pid: process.map_or(0, |p| p.pid),
            pid_start: process.map_or(0, |p| p.start),
        }))?;
        let Answer::Pong(pong) = pong else {
            return Err(unexpected());
        };
        link.set_limit(pong.max_request_bytes);
        // From here on the session is there: dropping the client ends it.
        let beat = Duration::from_millis(pong.timeout_ms) / 3;
        let mut client = PoolClient {
            heartbeat: None,
            pid: std::process::id(),
            epoch: pong.epoch,
            link: Arc::new(Mutex::new(Some(link))),
        };
        client.heartbeat = Some(Heartbeat::start(Arc::clone(&client.link), beat)?);
        if let Some(pool) = &options.create {
            let events = match (pool.events, options.publish) {
                (false, _) => wire::Events::Off,
                (true, false) => wire::Events::Take,
                (true, true) => wire::Events::Publish,
            };
            client.call(Kind::OpenPool(open_pool(pool, events)))?;
        } else {
            // A pool that is not there is better known now.
            client.call(Kind::GetStats(wire::GetStats {}))?;
        }
        Ok(client)
    }

    /// Tells this run of the server from others.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// One operation.
    ///
    /// # Errors
    /// What the server says; [`Status::Timeout`] if it says nothing, after which the client is of no
    /// use; [`Status::InvalidState`] for a client that is closed, or of another process.
    pub fn call(&self, kind: Kind) -> Result<Answer> {
        self.exchange(kind)?
    }

    /// Several operations in one round trip, with nobody else's between them; the outcome of each.
    ///
    /// # Errors
    /// As for [`PoolClient::call`], but not for what a single operation came to.
    pub fn batch(&self, mut kinds: Vec<Kind>, stop_on_error: bool) -> Result<Vec<Result<Answer>>> {
        let n = kinds.len();
        if n == 1
            && let Some(only) = kinds.pop()
        {
            return Ok(vec![self.exchange(only)?]);
        }
        let operations = kinds.into_iter().map(|kind| Operation { kind: Some(kind) });
        let batch = wire::Batch {
            operations: operations.collect(),
            stop_on_error,
        };
        let Answer::Batch(answer) = self.call(Kind::Batch(batch))? else {
            return Err(unexpected());
        };
        if answer.replies.len() != n {
            bail!(
                Status::PeerIncompatible,
                "{n} operations but {} replies",
                answer.replies.len()
            );
        }
        Ok(answer.replies.into_iter().map(outcome).collect())
    }

    /// Ends the session: what it holds goes back. Repeating it is harmless.
    ///
    /// # Errors
    /// The server did not answer: then it takes everything back by itself.
    pub fn close(&self) -> Result<()> {
        if self.is_foreign() {
            return Ok(());
        }
        if let Some(beat) = &self.heartbeat {
            beat.stop();
        }
        let Some(mut link) = lock(&self.link).take() else {
            return Ok(());
        };
        // Also after a call without an answer: it was to be undone, and this is what undoes it.
        link.renew(FAREWELL);
        match link.call(Kind::CloseSession(wire::CloseSession {})) {
            Err(e) if e.status() != Status::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// One round trip: whether there was one, and what it came to.
    fn exchange(&self, kind: Kind) -> Result<Result<Answer>> {
        if self.is_foreign() {
            bail!(
                Status::InvalidState,
                "the client belongs to process {}, and this is {}: connect again after a fork",
                self.pid,
                std::process::id()
            );
        }
        match &mut *lock(&self.link) {
            Some(link) => link.exchange(kind),
            None => bail!(Status::InvalidState, "the client has been closed"),
        }
    }

    /// Whether this is a copy in a forked child.
    fn is_foreign(&self) -> bool {
        self.pid != std::process::id()
    }
}

impl Drop for PoolClient {
    fn drop(&mut self) {
        if self.is_foreign() {
            // The sockets are the parent's, and the threads behind them are not here.
            std::mem::forget(std::mem::take(&mut self.link));
            std::mem::forget(self.heartbeat.take());
            return;
        }
        // The server will find out by itself.
        if let Err(e) = self.close() {
            log::debug!("a pool's server did not say goodbye: {e}");
        }
    }
}

/// What a reply says.
fn outcome(reply: wire::Reply) -> Result<Answer> {
    match reply.result {
        Some(Answer::Error(e)) => Err(error_of(e)),
        Some(answer) => Ok(answer),
        None => Err(unexpected()),
    }
}

/// A reply of the wrong kind: a server of another version.
pub(crate) fn unexpected() -> Error {
    Error::new(
        Status::PeerIncompatible,
        "the server's reply is none to this operation: its version is another",
    )
}

fn check(options: &ClientOptions) -> Result<()> {
    for (name, what) in [(&options.pool, "pool"), (&options.session, "session")] {
        if name.len() > MAX_NAME {
            return Err(Error::invalid(format!(
                "a {what}'s name of {} bytes: it can have {MAX_NAME}",
                name.len()
            )));
        }
    }
    if options.timeout.is_zero() || options.timeout > MAX_TIMEOUT {
        return Err(Error::invalid(format!(
            "a timeout of {:?}: it is more than zero and at most {MAX_TIMEOUT:?}",
            options.timeout
        )));
    }
    Ok(())
}

fn unique_name() -> String {
    // Seeded by the system for each process; the counter inside makes each one differ.
    let random = || RandomState::new().hash_one(0);
    format!("{}-{:016x}{:016x}", std::process::id(), random(), random())
}
