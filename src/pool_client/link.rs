//! Requests and replies over one connection.

use std::time::{Duration, Instant};

use prost::Message;

use super::outcome;
use crate::error::{Error, Result, Status, bail};
use crate::net::Deadline;
use crate::pool_server::wire::operation::Kind;
use crate::pool_server::wire::reply::Result as Answer;
use crate::pool_server::wire::{Operation, Ping, Reply, Request};
use crate::zmtp::{Address, Connection, Limits, Stream, put_frame_head};

/// Between two attempts to connect, while nobody listens.
const AGAIN: Duration = Duration::from_millis(5);
/// The longest reply, over all its frames.
const MAX_REPLY: usize = 1 << 30;

/// A connection, and what every request of a client says.
pub(super) struct Link {
    at: Address,
    /// As the caller wrote it.
    address: String,
    /// There is none before the first call, and after a failure.
    connection: Option<Connection>,
    /// The pool and the session, and the operation of the latest call.
    request: Request,
    timeout: Duration,
    /// Longest request that the server takes; zero until it has said so.
    limit: u64,
    /// Why it is of no use any more.
    dead: Option<Error>,
    /// The bytes of the last request, for their memory.
    bytes: Vec<u8>,
}

impl Link {
    /// Connects with the first call.
    pub(super) fn new(address: &str, pool: &str, session: &str, timeout: Duration) -> Result<Self> {
        Ok(Link {
            at: Address::parse(address)?,
            address: address.to_owned(),
            connection: None,
            request: Request {
                pool: pool.to_owned(),
                session: session.to_owned(),
                operation: None,
            },
            timeout,
            limit: 0,
            dead: None,
            bytes: Vec::new(),
        })
    }

    pub(super) fn set_limit(&mut self, bytes: u64) {
        self.limit = bytes;
    }

    /// The same link as new, also if it was dead: what became of the call that failed is not asked for.
    pub(super) fn renew(&mut self, timeout: Duration) {
        if self.dead.take().is_some() {
            self.connection = None;
        }
        self.timeout = timeout;
    }

    /// A sign of life. It changes nothing, so one that gets no answer leaves nothing in doubt: the next
    /// call connects again.
    pub(super) fn ping(&mut self, patience: Duration) -> Result<()> {
        let timeout = std::mem::replace(&mut self.timeout, patience);
        let answer = match self.dead {
            // Whoever has got no answer is still there until it says that it is not.
            Some(_) => Link::new(&self.address, "", &self.request.session, patience)
                .and_then(|mut fresh| fresh.call(Kind::Ping(Ping::default()))),
            None => self
                .call(Kind::Ping(Ping::default()))
                .inspect_err(|_| self.dead = None),
        };
        self.timeout = timeout;
        answer.map(drop)
    }

    /// One operation.
    pub(super) fn call(&mut self, kind: Kind) -> Result<Answer> {
        self.exchange(kind)?
    }

    /// One round trip: whether there was one, and what it came to.
    pub(super) fn exchange(&mut self, kind: Kind) -> Result<Result<Answer>> {
        if let Some(e) = &self.dead {
            bail!(
                Status::InvalidState,
                "an earlier call failed ({e}), and what became of it is not known: connect again"
            );
        }
        self.encode(kind)?;
        let deadline = Deadline::after(self.timeout);
        let reply = self.round_trip(&deadline).map_err(|e| match e.status() {
            Status::Timeout => Error::new(
                Status::Timeout,
                format!(
                    "no answer from {} within {:?}: {}",
                    self.address,
                    self.timeout,
                    e.message()
                ),
            ),
            _ => e.context(&self.address),
        });
        if let Err(e) = &reply {
            self.connection = None;
            self.dead = Some(e.clone());
        }
        Ok(outcome(reply?))
    }

    /// The bytes of a request: an empty frame, and the message.
    fn encode(&mut self, kind: Kind) -> Result<()> {
        self.request.operation = Some(Operation { kind: Some(kind) });
        let len = self.request.encoded_len();
        if self.limit != 0 && len as u64 > self.limit {
            return Err(Error::invalid(format!(
                "a request of {len} bytes: the server takes {} (--max-message)",
                self.limit
            )));
        }
        self.bytes.clear();
        put_frame_head(&mut self.bytes, 0, true);
        put_frame_head(&mut self.bytes, len, false);
        self.request
            .encode(&mut self.bytes)
            .map_err(|e| Error::new(Status::Internal, format!("a request: {e}")))
    }

    fn round_trip(&mut self, deadline: &Deadline) -> Result<Reply> {
        let connection = match &mut self.connection {
            Some(connection) if !connection.is_over() => connection,
            // A server that has ended since the last call may be there again. Nothing has been sent.
            slot => slot.insert(connect(&self.at, deadline)?),
        };
        connection.send(&self.bytes, deadline)?;
        let frames = connection.message(deadline)?;
        match &frames[..] {
            [empty, reply] if empty.is_empty() => Reply::decode(&reply[..]).map_err(|e| {
                Error::new(
                    Status::PeerIncompatible,
                    format!("what was sent cannot be read: {e}"),
                )
            }),
            _ => bail!(
                Status::PeerIncompatible,
                "an answer of {} frames, or without the empty one",
                frames.len()
            ),
        }
    }
}

/// Connects to whoever listens there, now or before the time is over.
fn connect(at: &Address, deadline: &Deadline) -> Result<Connection> {
    let limits = Limits {
        bytes: MAX_REPLY,
        frames: 2,
    };
    let attempt = || {
        let stream = Stream::connect(at, deadline)?;
        Connection::greet(stream, limits, "REQ", &["ROUTER", "REP"], deadline)
    };
    loop {
        match attempt() {
            // Nobody is there, or somebody who is just leaving.
            Err(e) if e.status() == Status::PeerLost => {
                let again = Instant::now() + AGAIN;
                if again >= deadline.at {
                    return Err(Error::new(Status::Timeout, e.message()));
                }
                std::thread::sleep(AGAIN);
            }
            other => return other,
        }
    }
}
