//! The listener's side of one connection.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::side_channel::server;
use crate::sync::lock;

/// How much one client is sent, and how much of what it sent is thrown away, in one turn.
const SEND_BUDGET: usize = 256 << 10;
const DISCARD_BUDGET: usize = 64 << 10;

/// A client that sends more than this is cut off.
const DISCARD_LIMIT: usize = 1 << 20;

/// What a client takes in this time says nothing about its rate: the sockets' buffers take it,
/// whether the client reads or not.
const SETTLE: Duration = Duration::from_millis(50);

/// Hands every client the message of the moment.
pub(super) struct Protocol {
    /// The whole message, prefix included. Every client being served holds a reference to the one
    /// it got, never a copy.
    pub(super) message: Arc<Mutex<Arc<Vec<u8>>>>,
    pub(super) timeout: Duration,
}

impl server::Protocol for Protocol {
    type Client = Client;

    fn admit(&self, stream: TcpStream, _from: SocketAddr, now: Instant) -> Client {
        Client {
            stream,
            message: lock(&self.message).clone(),
            sent: 0,
            settled: 0,
            discarded: 0,
            since: now,
            deadline: now + self.timeout,
        }
    }
}

pub(super) struct Client {
    stream: TcpStream,
    message: Arc<Vec<u8>>,
    sent: usize,
    /// What had been sent at [`SETTLE`].
    settled: usize,
    discarded: usize,
    since: Instant,
    deadline: Instant,
}

impl Client {
    fn is_sent(&self) -> bool {
        self.sent == self.message.len()
    }

    fn send(&mut self) -> bool {
        let stop = self.message.len().min(self.sent + SEND_BUDGET);
        while self.sent < stop {
            // `write` on a TcpStream is send(2) with MSG_NOSIGNAL: a client that has gone is an
            // error here, not a SIGPIPE for the host program.
            match self.stream.write(&self.message[self.sent..stop]) {
                Ok(0) => return false,
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        if self.since.elapsed() < SETTLE {
            self.settled = self.sent;
        }
        true
    }

    /// Throws away what the client has sent; see the protocol for why.
    fn discard(&mut self) -> bool {
        let mut scratch = [0; 8 << 10];
        let mut budget = DISCARD_BUDGET;
        while budget > 0 && self.discarded <= DISCARD_LIMIT {
            match self.stream.read(&mut scratch) {
                Ok(0) => return false,
                Ok(n) => {
                    self.discarded += n;
                    budget = budget.saturating_sub(n);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return e.kind() == ErrorKind::WouldBlock,
            }
        }
        self.discarded <= DISCARD_LIMIT
    }
}

impl server::Client for Client {
    fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Room for the message, then the client's end of the stream.
    fn events(&self) -> libc::c_short {
        if self.is_sent() {
            libc::POLLIN
        } else {
            libc::POLLOUT
        }
    }

    fn deadline(&self) -> Option<Instant> {
        Some(self.deadline)
    }

    fn since(&self) -> Instant {
        self.since
    }

    fn advance(&mut self) -> bool {
        if !self.is_sent() {
            if !self.send() {
                return false;
            }
            if !self.is_sent() {
                return true;
            }
            if self.stream.shutdown(Shutdown::Write).is_err() {
                return false;
            }
        }
        self.discard()
    }

    /// It was sent its message and only lingers.
    fn is_spare(&self, _now: Instant) -> bool {
        self.is_sent()
    }

    /// Since [`SETTLE`].
    fn rate(&self, now: Instant) -> f64 {
        let time = now.saturating_duration_since(self.since + SETTLE);
        (self.sent - self.settled) as f64 / time.as_secs_f64()
    }

    fn will_be_late(&self, now: Instant) -> bool {
        let left = (self.message.len() - self.sent) as f64;
        let time = self.deadline.saturating_duration_since(now);
        self.rate(now) * time.as_secs_f64() < left
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Ends the connection even where a forked child holds a copy of the descriptor. It fails
        // when the client has gone already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
