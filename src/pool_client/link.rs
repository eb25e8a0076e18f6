//! Requests and replies over one socket.

use std::time::Duration;

use prost::Message;

use super::outcome;
use crate::error::{Error, Result, Status, bail};
use crate::pool_server::wire::operation::Kind;
use crate::pool_server::wire::reply::Result as Answer;
use crate::pool_server::wire::{Operation, Reply, Request};

/// A REQ socket, and what every request of a client says.
pub(super) struct Link {
    socket: zmq::Socket,
    address: String,
    pool: String,
    session: String,
    timeout: Duration,
    /// Longest request that the server takes; zero until it has said so.
    limit: u64,
    /// Why it is of no use any more.
    dead: Option<Error>,
    /// The bytes of the last request, for their memory.
    bytes: Vec<u8>,
}

impl Link {
    /// A socket that connects when there is somebody.
    pub(super) fn open(
        context: &zmq::Context,
        address: &str,
        pool: &str,
        session: &str,
        timeout: Duration,
    ) -> Result<Self> {
        let doing = |e| failed(&format!("cannot connect to {address}"), e);
        let socket = context.socket(zmq::REQ).map_err(doing)?;
        socket.set_linger(0).map_err(doing)?;
        socket.connect(address).map_err(doing)?;
        let mut link = Link {
            socket,
            address: address.to_owned(),
            pool: pool.to_owned(),
            session: session.to_owned(),
            timeout,
            limit: 0,
            dead: None,
            bytes: Vec::new(),
        };
        link.set_timeout(timeout)?;
        Ok(link)
    }

    pub(super) fn set_timeout(&mut self, timeout: Duration) -> Result<()> {
        self.timeout = timeout;
        // At most a day; and never 0, which would not wait at all.
        let ms = (timeout.as_millis() as i32).max(1);
        let doing = |e| failed("cannot set a timeout", e);
        self.socket.set_sndtimeo(ms).map_err(doing)?;
        self.socket.set_rcvtimeo(ms).map_err(doing)
    }

    pub(super) fn set_limit(&mut self, bytes: u64) {
        self.limit = bytes;
    }

    /// Whether an earlier call got no answer.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.is_some()
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
        let request = Request {
            pool: self.pool.clone(),
            session: self.session.clone(),
            operation: Some(Operation { kind: Some(kind) }),
        };
        self.bytes.clear();
        request
            .encode(&mut self.bytes)
            .map_err(|e| Error::new(Status::Internal, format!("a request: {e}")))?;
        if self.limit != 0 && self.bytes.len() as u64 > self.limit {
            return Err(Error::invalid(format!(
                "a request of {} bytes: the server takes {} (--max-message)",
                self.bytes.len(),
                self.limit
            )));
        }
        let reply = self.round_trip();
        Ok(outcome(reply.inspect_err(|e| self.dead = Some(e.clone()))?))
    }

    fn round_trip(&self) -> Result<Reply> {
        self.repeat(|| self.socket.send(&self.bytes[..], 0))?;
        let reply = self.repeat(|| self.socket.recv_msg(0))?;
        Reply::decode(&reply[..]).map_err(|e| {
            Error::new(
                Status::PeerIncompatible,
                format!("what {} sent cannot be read: {e}", self.address),
            )
        })
    }

    /// Signals that the host program handles do not end a call.
    fn repeat<T>(&self, mut body: impl FnMut() -> zmq::Result<T>) -> Result<T> {
        loop {
            match body() {
                Err(zmq::Error::EINTR) => {}
                Err(zmq::Error::EAGAIN) => bail!(
                    Status::Timeout,
                    "no answer from {} within {:?}",
                    self.address,
                    self.timeout
                ),
                other => return other.map_err(|e| failed(&self.address, e)),
            }
        }
    }
}

/// An error of libzmq.
pub(super) fn failed(doing: &str, e: zmq::Error) -> Error {
    match e {
        zmq::Error::EINVAL | zmq::Error::EPROTONOSUPPORT => Error::invalid(format!(
            "{doing}: {e}; an address is ipc://FILE or tcp://HOST:PORT"
        )),
        e => Error::from_io(doing, &std::io::Error::from_raw_os_error(e.to_raw())),
    }
}
