//! All pools and sessions of a server.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use prost::Message;

use super::convert;
use super::metrics;
use super::operation::{Context, freed, take_room};
use super::pool::{Pool, Publishing};
use super::process::Process;
use super::session::Session;
use super::wire::operation::Kind;
use super::wire::reply::Result as Answer;
use super::wire::{self, Pong, Reply};
use super::{DEFAULT_POOL, Limits, MAX_BATCH, MAX_NAME};
use crate::block_pool::Options;
use crate::error::{Error, Result, Status, bail};

/// A message for the subscribers of a pool's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The pool's name: the topic.
    pub topic: String,
    /// An encoded [`wire::EventBatch`].
    pub body: Vec<u8>,
}

/// What the server has done since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) requests: u64,
    pub(super) operations: u64,
    pub(super) errors: u64,
    pub(super) malformed: u64,
    pub(super) sessions_opened: u64,
    pub(super) sessions_expired: u64,
    pub(super) published: u64,
}

/// The server without its sockets.
pub struct Service {
    limits: Limits,
    /// Tells this run from others.
    epoch: u64,
    /// Whether there is anybody to publish events to.
    can_publish: bool,
    pub(super) pools: HashMap<String, Pool>,
    /// By name; the empty one is that of clients that did not say who they are.
    pub(super) sessions: HashMap<String, Session>,
    published: Vec<Published>,
    pub(super) counters: Counters,
    stopping: bool,
}

impl Service {
    /// A server with one pool, named [`DEFAULT_POOL`].
    ///
    /// # Errors
    /// As for [`crate::block_pool::BlockPool::new`], and [`Status::ResourceExhausted`] for more blocks
    /// than the limits allow.
    pub fn new(
        limits: Limits,
        pool: &Options,
        publishing: Publishing,
        can_publish: bool,
    ) -> Result<Self> {
        let mut service = Service {
            limits,
            epoch: crate::clock::realtime_ns(),
            can_publish,
            pools: HashMap::new(),
            sessions: HashMap::from([(String::new(), Session::default())]),
            published: Vec::new(),
            counters: Counters::default(),
            stopping: false,
        };
        service.add_pool(DEFAULT_POOL, pool, publishing)?;
        Ok(service)
    }

    /// Adds a pool that stays until the server ends.
    ///
    /// # Errors
    /// As for [`Service::new`]; [`Status::InvalidArgument`] for a name that is empty, taken or too long.
    pub fn add_pool(&mut self, name: &str, o: &Options, publishing: Publishing) -> Result<()> {
        check_name(name, "pool")?;
        if name.is_empty() || self.pools.contains_key(name) {
            return Err(Error::invalid(format!(
                "the pool's name {name:?} is empty or taken"
            )));
        }
        let pool = self.new_pool(o, publishing, true)?;
        self.pools.insert(name.to_owned(), pool);
        Ok(())
    }

    /// Answers one request. Whatever the bytes are, there is an answer.
    pub fn handle(&mut self, request: &[u8], now: Instant) -> Reply {
        self.counters.requests += 1;
        // A fault of ours costs this request and nothing else: pools are consistent at every step
        // (`crate::sync` relies on the same).
        let answer = catch_unwind(AssertUnwindSafe(|| self.answer(request, now)));
        let answer = answer.unwrap_or_else(|_| {
            Err(Error::new(
                Status::Internal,
                "a fault of the server; its log has more",
            ))
        });
        self.reply(answer)
    }

    /// The answer to a message that is not even one frame.
    pub fn refuse(&mut self, why: &str) -> Reply {
        self.counters.requests += 1;
        self.counters.malformed += 1;
        self.reply(Err(Error::invalid(why)))
    }

    /// Ends the sessions that are over. To be called about once a second.
    pub fn tick(&mut self, now: Instant) {
        let over: Vec<(String, &str)> = self
            .sessions
            .iter()
            .filter_map(|(name, s)| Some((name.clone(), s.is_over(now)?)))
            .collect();
        for (name, why) in over {
            self.expire(&name, why);
        }
    }

    /// The server itself has stood still, and has heard nobody: that silence is not its clients'.
    pub fn stood_still(&mut self, time: Duration, now: Instant) {
        for session in self.sessions.values_mut() {
            session.pardon(time, now);
        }
    }

    /// Events for the subscribers, in their order.
    pub fn take_published(&mut self) -> Vec<Published> {
        std::mem::take(&mut self.published)
    }

    /// Numbers as text for Prometheus.
    pub fn metrics(&self) -> String {
        metrics::text(self)
    }

    /// Whether a client has asked the server to end.
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// The limits that it was given.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Sessions that have opened a pool, or hold something of it.
    pub(super) fn users_of(&self, pool: &str) -> usize {
        let uses = |s: &&Session| s.opened.contains(pool) || s.holds(pool);
        self.sessions.values().filter(uses).count()
    }

    fn answer(&mut self, request: &[u8], now: Instant) -> Result<Answer> {
        let request = wire::Request::decode(request).map_err(|e| {
            self.counters.malformed += 1;
            Error::invalid(format!("the request cannot be read: {e}"))
        })?;
        check_name(&request.pool, "pool")?;
        check_name(&request.session, "session")?;
        let pool = match &*request.pool {
            "" => DEFAULT_POOL,
            name => name,
        };
        let Some(kind) = request.operation.and_then(|o| o.kind) else {
            return Err(no_operation());
        };
        // Whoever opens a session may be another than the one that had it.
        let opens = matches!(&kind, Kind::Ping(ping) if ping.open);
        if let Some(session) = self.sessions.get_mut(&request.session)
            && !opens
        {
            session.seen(now);
        }
        let mut room = self.limits.blocks_per_call;
        let mut scope = Scope {
            pool,
            session: &request.session,
            room: &mut room,
            now,
        };
        let answer = match kind {
            Kind::Batch(batch) => self.batch(batch, &mut scope),
            kind => self.one(&kind, &mut scope),
        };
        self.publish(pool);
        answer
    }

    /// Carries out the operations of a batch, each by itself.
    fn batch(&mut self, batch: wire::Batch, scope: &mut Scope<'_>) -> Result<Answer> {
        let n = batch.operations.len();
        if n > MAX_BATCH {
            bail!(
                Status::InvalidArgument,
                "a batch of {n} operations: it can have {MAX_BATCH}"
            );
        }
        let mut answers = Vec::with_capacity(n);
        let mut rest = &batch.operations[..];
        while let Some((first, others)) = rest.split_first() {
            let plain = rest
                .iter()
                .map_while(|o| o.kind.as_ref().filter(|k| is_plain(k)));
            match (plain.clone().count(), &first.kind) {
                (0, Some(Kind::Batch(_))) => {
                    answers.push(Err(Error::invalid("a batch cannot hold another batch")));
                }
                (0, Some(kind)) => answers.push(self.one(kind, scope)),
                (0, None) => answers.push(Err(no_operation())),
                _ => self.many(plain, batch.stop_on_error, scope, &mut answers),
            }
            if batch.stop_on_error && answers.last().is_some_and(Result::is_err) {
                break;
            }
            rest = batch.operations.get(answers.len()..).unwrap_or(others);
        }
        let failed = answers.len().saturating_sub(1);
        answers.resize_with(n, || {
            Err(Error::new(
                Status::Canceled,
                format!("operation {failed} of the batch failed"),
            ))
        });
        let replies = answers.into_iter().map(|a| self.reply(a)).collect();
        Ok(Answer::Batch(wire::BatchReply { replies }))
    }

    /// Carries out operations on one pool, with one look-up for all.
    fn many<'a>(
        &mut self,
        kinds: impl Iterator<Item = &'a Kind> + Clone,
        stop_on_error: bool,
        scope: &mut Scope<'_>,
        answers: &mut Vec<Result<Answer>>,
    ) {
        let before = answers.len();
        let found = self.with_pool(scope, 0, |context| {
            for kind in kinds.clone() {
                answers.push(context.run(kind));
                if stop_on_error && answers.last().is_some_and(Result::is_err) {
                    break;
                }
            }
        });
        if let Err(e) = found {
            let all = kinds.map(|_| Err(e.clone()));
            answers.extend(all.take(if stop_on_error { 1 } else { usize::MAX }));
        }
        self.counters.operations += (answers.len() - before) as u64;
    }

    fn one(&mut self, kind: &Kind, scope: &mut Scope<'_>) -> Result<Answer> {
        self.counters.operations += 1;
        match kind {
            Kind::Ping(m) => self.ping(m, scope),
            Kind::GetMetrics(_) => {
                let text = self.metrics();
                take_room(scope.room, text.len() / 4)?;
                Ok(Answer::Metrics(wire::Metrics { text }))
            }
            Kind::Shutdown(_) => self.shut_down(),
            Kind::CloseSession(_) => {
                if scope.session.is_empty() {
                    return Err(Error::invalid("the request names no session to close"));
                }
                self.known_session(scope.session)?;
                Ok(freed(self.end_session(scope.session)))
            }
            Kind::OpenPool(m) => self.open_pool(m, scope),
            kind => self.on_pool(kind, scope),
        }
    }

    fn on_pool(&mut self, kind: &Kind, scope: &mut Scope<'_>) -> Result<Answer> {
        let sessions = match kind {
            Kind::GetStats(_) => self.users_of(scope.pool),
            _ => 0,
        };
        self.with_pool(scope, sessions, |context| context.run(kind))?
    }

    /// Does something with the pool and the session of a request.
    fn with_pool<T>(
        &mut self,
        scope: &mut Scope<'_>,
        sessions: usize,
        body: impl FnOnce(&mut Context<'_>) -> T,
    ) -> Result<T> {
        let Some(session) = self.sessions.get_mut(scope.session) else {
            return Err(no_session(scope.session));
        };
        let Some(pool) = self.pools.get_mut(scope.pool) else {
            bail!(Status::NotFound, "there is no pool {:?}", scope.pool);
        };
        if !session.held.contains_key(scope.pool) {
            session
                .held
                .insert(scope.pool.to_owned(), Default::default());
        }
        let Some(held) = session.held.get_mut(scope.pool) else {
            bail!(Status::Internal, "holdings that were just made are gone");
        };
        let result = body(&mut Context {
            pool: &mut *pool,
            held: &mut *held,
            name: scope.pool,
            epoch: self.epoch,
            sessions,
            room: scope.room,
        });
        // Who holds something of a pool keeps it, as if it had opened it.
        if pool.can_end()
            && !scope.session.is_empty()
            && !held.is_empty()
            && !session.opened.contains(scope.pool)
        {
            session.opened.insert(scope.pool.to_owned());
            pool.opened();
        }
        Ok(result)
    }

    fn ping(&mut self, m: &wire::Ping, scope: &Scope<'_>) -> Result<Answer> {
        let mut resumed = false;
        if m.open {
            resumed = self.open_session(m, scope)?;
        }
        let session = self.known_session(scope.session)?;
        Ok(Answer::Pong(Pong {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: self.epoch,
            timeout_ms: session.timeout().as_millis() as u64,
            resumed,
            pid_watched: session.is_watched(),
            max_request_bytes: self.limits.request_bytes as u64,
        }))
    }

    /// Makes a session, or gives new terms to one that is alive. Returns whether it was alive.
    fn open_session(&mut self, m: &wire::Ping, scope: &Scope<'_>) -> Result<bool> {
        if scope.session.is_empty() {
            return Err(Error::invalid("the request names no session to open"));
        }
        let timeout = match m.timeout_ms {
            0 => self.limits.session_timeout,
            ms => Duration::from_millis(ms),
        };
        if timeout > self.limits.max_session_timeout {
            bail!(
                Status::InvalidArgument,
                "a session timeout of {timeout:?}: it is at most {:?}",
                self.limits.max_session_timeout
            );
        }
        let process = Process {
            pid: m.pid,
            start: m.pid_start,
        };
        // Only what can be seen from here can be watched: the number may be that of another host's
        // or container's process.
        let process = (m.pid != 0 && process.is_seen()).then_some(process);
        // One that is over and that no tick has seen yet is not alive either: what it held must not
        // become the next one's.
        self.end_if_over(scope.session, scope.now);
        if let Some(session) = self.sessions.get_mut(scope.session) {
            session.renew(timeout, process, scope.now);
            return Ok(true);
        }
        // The nameless one is not counted.
        if self.sessions.len() > self.limits.sessions {
            bail!(
                Status::ResourceExhausted,
                "{} sessions are open, and no more are allowed",
                self.sessions.len() - 1
            );
        }
        self.counters.sessions_opened += 1;
        self.sessions.insert(
            scope.session.to_owned(),
            Session::new(timeout, process, scope.now),
        );
        Ok(false)
    }

    fn open_pool(&mut self, m: &wire::OpenPool, scope: &Scope<'_>) -> Result<Answer> {
        if scope.session.is_empty() {
            return Err(Error::invalid(
                "a pool is opened by a session, and the request names none",
            ));
        }
        self.known_session(scope.session)?;
        let options = convert::pool_options(m)?;
        let publishing = match wire::Events::try_from(m.events) {
            Ok(wire::Events::Off) => Publishing::Off,
            Ok(wire::Events::Take) => Publishing::Take,
            Ok(wire::Events::Publish) if self.can_publish => Publishing::Publish,
            Ok(wire::Events::Publish) => bail!(
                Status::NotSupported,
                "this server publishes no events: it was started without an events address"
            ),
            Err(_) => return Err(Error::invalid(format!("events {}: it is 0 to 2", m.events))),
        };
        if let Some(pool) = self.pools.get(scope.pool) {
            pool.check_same(scope.pool, &options, publishing)?;
        } else {
            let pool = self.new_pool(&options, publishing, false)?;
            self.pools.insert(scope.pool.to_owned(), pool);
        }
        if let Some(pool) = self.pools.get_mut(scope.pool)
            && let Some(session) = self.sessions.get_mut(scope.session)
            && session.opened.insert(scope.pool.to_owned())
        {
            pool.opened();
        }
        Ok(Answer::Done(wire::Done {}))
    }

    fn shut_down(&mut self) -> Result<Answer> {
        if !self.limits.shutdown {
            bail!(
                Status::NotAllowed,
                "this server is not shut down by its clients"
            );
        }
        self.stopping = true;
        Ok(Answer::Done(wire::Done {}))
    }

    fn end_if_over(&mut self, name: &str, now: Instant) {
        if let Some(why) = self.sessions.get(name).and_then(|s| s.is_over(now)) {
            self.expire(name, why);
        }
    }

    fn expire(&mut self, name: &str, why: &str) {
        let blocks = self.end_session(name);
        self.counters.sessions_expired += 1;
        log::warn!("session {name:?} is over, {why}: {blocks} holds are given back");
    }

    /// Gives back what a session holds, and closes its pools. Returns the number of holds.
    fn end_session(&mut self, name: &str) -> usize {
        let Some(mut session) = self.sessions.remove(name) else {
            return 0;
        };
        let mut count = 0;
        for (name, held) in &mut session.held {
            let Some(pool) = self.pools.get_mut(name) else {
                continue;
            };
            for ids in held.take_all() {
                count += ids.len();
                if let Err(e) = pool.blocks.free(&ids) {
                    log::error!("pool {name:?} does not take back what was held of it: {e}");
                }
            }
        }
        for name in &session.opened {
            if self.pools.get_mut(name).is_some_and(Pool::left) {
                self.end_pool(name);
            }
        }
        count
    }

    fn end_pool(&mut self, name: &str) {
        let Some(pool) = self.pools.remove(name) else {
            return;
        };
        // Sessions that hold something of it have it open; what is left is that of the nameless one.
        for session in self.sessions.values_mut() {
            session.held.remove(name);
        }
        if let Some(last) = pool.publish_end(name, self.epoch) {
            self.push_published(&last);
        }
    }

    fn new_pool(&self, options: &Options, publishing: Publishing, stays: bool) -> Result<Pool> {
        if self.pools.len() >= self.limits.pools {
            bail!(
                Status::ResourceExhausted,
                "there are {} pools, and no more are allowed",
                self.pools.len()
            );
        }
        let blocks = |p: &Pool| u64::from(p.blocks.num_blocks());
        let used: u64 = self.pools.values().map(blocks).sum();
        if used + u64::from(options.blocks) > self.limits.blocks {
            bail!(
                Status::ResourceExhausted,
                "{} more blocks: all pools together have {used}, and can have {}",
                options.blocks,
                self.limits.blocks
            );
        }
        Pool::new(options, publishing, stays)
    }

    /// Puts a pool's events where the sockets take them.
    fn publish(&mut self, name: &str) {
        let epoch = self.epoch;
        let pool = self.pools.get_mut(name);
        if let Some(batch) = pool.and_then(|p| p.publish(name, epoch)) {
            self.push_published(&batch);
        }
    }

    fn push_published(&mut self, batch: &wire::EventBatch) {
        self.counters.published += 1;
        self.published.push(Published {
            topic: batch.pool.clone(),
            body: batch.encode_to_vec(),
        });
    }

    fn known_session(&self, name: &str) -> Result<&Session> {
        self.sessions.get(name).ok_or_else(|| no_session(name))
    }

    fn reply(&mut self, answer: Result<Answer>) -> Reply {
        let result = answer.unwrap_or_else(|e| {
            self.counters.errors += 1;
            convert::failure(&e)
        });
        Reply {
            result: Some(result),
        }
    }
}

/// What all operations of a request have in common.
struct Scope<'a> {
    pool: &'a str,
    session: &'a str,
    /// Block ids that the reply may still have.
    room: &'a mut usize,
    now: Instant,
}

/// Whether an operation is on the request's pool alone, and needs to know nothing beyond that.
fn is_plain(kind: &Kind) -> bool {
    !matches!(
        kind,
        Kind::Ping(_)
            | Kind::OpenPool(_)
            | Kind::CloseSession(_)
            | Kind::GetMetrics(_)
            | Kind::GetStats(_)
            | Kind::Shutdown(_)
            | Kind::Batch(_)
    )
}

fn check_name(name: &str, what: &str) -> Result<()> {
    if name.len() > MAX_NAME {
        return Err(Error::invalid(format!(
            "a {what}'s name of {} bytes: it can have {MAX_NAME}",
            name.len()
        )));
    }
    Ok(())
}

fn no_operation() -> Error {
    Error::invalid("the request has no operation, or one that this server does not know")
}

fn no_session(name: &str) -> Error {
    Error::new(
        Status::NotFound,
        format!(
            "session {name:?} is not open: it never was, or it has ended and what it held is given back"
        ),
    )
}

#[cfg(test)]
#[path = "service_test.rs"]
mod tests;
