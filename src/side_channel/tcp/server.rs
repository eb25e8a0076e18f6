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

/// What a client takes in this time, and until its sockets' buffers are full, says nothing about its
/// rate: the buffers take it, whether the client reads or not. Time alone would not do: a listener that
/// gets no processor in it fills them later.
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
            settled: None,
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
    /// What had been sent, and when, as the client last had to be waited for within [`SETTLE`], or first
    /// after it.
    settled: Option<(usize, Instant)>,
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
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.settle();
                    break;
                }
                Err(_) => return false,
            }
        }
        true
    }

    fn settle(&mut self) {
        if self.settled.is_none() || self.since.elapsed() < SETTLE {
            self.settled = Some((self.sent, Instant::now()));
        }
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

    /// Of a client that has not been waited for yet, since it came.
    fn rate(&self, now: Instant) -> f64 {
        let (sent, since) = self.settled.unwrap_or((0, self.since));
        let time = now.saturating_duration_since(since);
        (self.sent - sent) as f64 / time.as_secs_f64().max(1e-3)
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::server::Client as _;
    use super::*;

    /// The listener gets no processor for a second after a client has come, and only then fills the
    /// sockets' buffers: a client that does not read has no rate all the same.
    #[test]
    fn a_silent_client_has_no_rate_however_late_it_is_served() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let age = Duration::from_secs(1);
        let mut client = Client {
            stream,
            message: Arc::new(vec![7; 64 << 20]),
            sent: 0,
            settled: None,
            discarded: 0,
            since: Instant::now() - age,
            deadline: Instant::now() + Duration::from_secs(60),
        };
        while client.settled.is_none() {
            assert!(client.advance());
        }
        assert!(client.sent > 0 && !client.is_sent());
        let now = Instant::now() + age;
        assert_eq!(client.rate(now), 0.0);
        assert!(client.will_be_late(now));
        // One that reads has one.
        let full = client.sent;
        let mut got = vec![0; full];
        { &silent }.read_exact(&mut got).unwrap();
        while client.sent == full {
            assert!(client.advance());
        }
        assert!(client.rate(Instant::now() + age) > 0.0);
    }
}
