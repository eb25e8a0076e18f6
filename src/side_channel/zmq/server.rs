//! The listener's side of one connection.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Ranks;
use super::message::{Clock, MAX_REQUEST, Request};
use crate::error::Error;
use crate::side_channel::server::{self, GRACE};
use crate::sync::lock;
use crate::zmtp::{self, Decoder, Event, Limits};

/// How much one client is sent in one turn.
const SEND_BUDGET: usize = 256 << 10;

/// How many reads of one client one turn does. A question takes seven.
const READ_BUDGET: usize = 64;

/// What is read at once: more than a question has.
const SCRATCH: usize = 512;

/// A question has two frames. A few more are looked at, so that the log can say what is wrong.
const LIMITS: Limits = Limits {
    bytes: MAX_REQUEST,
    frames: 8,
};

/// What clients do wrong. Each is logged once per listener: a client can repeat itself.
#[derive(Clone, Copy)]
enum Fault {
    Protocol,
    Socket,
    Envelope,
    Request,
    Magic,
    Rank,
}

/// Answers questions from the ranks' metadata.
pub(super) struct Protocol {
    pub(super) address: SocketAddr,
    pub(super) ranks: Arc<Ranks>,
    pub(super) timeout: Duration,
}

impl server::Protocol for Protocol {
    type Client = Client;

    fn admit(&self, stream: TcpStream, from: SocketAddr, now: Instant) -> Client {
        // Answers are written in pieces, and their clock should not wait. Without this it only does.
        let _ = stream.set_nodelay(true);
        let hello = [zmtp::greeting(), zmtp::ready("ROUTER")].concat();
        Client {
            stream,
            from,
            address: self.address,
            ranks: self.ranks.clone(),
            decoder: Decoder::new(LIMITS),
            out: VecDeque::from([Arc::new(hello)]),
            offset: 0,
            sent: 0,
            since: now,
            timeout: self.timeout,
            deadline: Some(now + self.timeout),
            answered: false,
        }
    }
}

pub(super) struct Client {
    stream: TcpStream,
    from: SocketAddr,
    address: SocketAddr,
    ranks: Arc<Ranks>,
    decoder: Decoder,
    /// What is to be sent, and how much of the first of it has been. Metadata is shared, not copied.
    out: VecDeque<Arc<Vec<u8>>>,
    offset: usize,
    /// Bytes sent since `since`.
    sent: usize,
    since: Instant,
    timeout: Duration,
    /// Set from the first byte of a question to the last byte of its answer.
    deadline: Option<Instant>,
    answered: bool,
}

impl Client {
    /// False when the connection is to be closed.
    fn send(&mut self) -> bool {
        let mut budget = SEND_BUDGET;
        while let Some(first) = self.out.front() {
            if budget == 0 {
                return true;
            }
            let stop = first.len().min(self.offset + budget);
            // `write` on a TcpStream is send(2) with MSG_NOSIGNAL.
            match self.stream.write(&first[self.offset..stop]) {
                Ok(0) => return false,
                Ok(n) => {
                    self.offset += n;
                    self.sent += n;
                    budget -= n;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return e.kind() == ErrorKind::WouldBlock,
            }
            if self.offset == first.len() {
                self.out.pop_front();
                self.offset = 0;
            }
        }
        true
    }

    /// Reads until a question has to be answered, or nothing more is there. False when the connection
    /// is to be closed.
    fn receive(&mut self) -> bool {
        let mut scratch = [0; SCRATCH];
        for _ in 0..READ_BUDGET {
            if !self.out.is_empty() {
                return true;
            }
            let want = self.decoder.missing().min(SCRATCH);
            let n = match self.stream.read(&mut scratch[..want]) {
                Ok(0) => return false,
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return e.kind() == ErrorKind::WouldBlock,
            };
            match self.decoder.push(&scratch[..n]) {
                Ok(None) => {}
                Ok(Some(event)) => {
                    if !self.take(event) {
                        return false;
                    }
                }
                Err(e) => {
                    self.complain(Fault::Protocol, "cut off", &e);
                    return false;
                }
            }
        }
        true
    }

    fn take(&mut self, event: Event) -> bool {
        match event {
            Event::Ready(kind) => {
                if !["REQ", "DEALER", "ROUTER"].contains(&kind.as_str()) {
                    self.complain(
                        Fault::Socket,
                        "cut off",
                        &format!("its socket is a {kind:?}"),
                    );
                    return false;
                }
            }
            Event::Ping(context) => self.out.push_back(Arc::new(zmtp::pong(&context))),
            Event::Message(frames) => self.answer(&frames),
        }
        true
    }

    /// A client that cannot be understood gets an empty answer, over which it fails at once instead of
    /// waiting; unless it did not say where an answer begins, as a REQ socket does with an empty frame.
    fn answer(&mut self, frames: &[Vec<u8>]) {
        let rank = match frames {
            [empty, body] if empty.is_empty() => Request::decode(body),
            [empty, ..] if empty.is_empty() => Err(Error::invalid(format!(
                "a question of {} frames, not 2",
                frames.len()
            ))),
            _ => {
                let what = "a message that does not begin with an empty frame";
                return self.complain(Fault::Envelope, "dropped", &what);
            }
        };
        let metadata = match rank {
            Ok(request) => {
                if !request.magic {
                    self.complain(
                        Fault::Magic,
                        "answered nevertheless",
                        &"not \"get_meta_msg\"",
                    );
                }
                let found = lock(&self.ranks.served).get(&request.rank).cloned();
                if found.is_none() {
                    self.complain(Fault::Rank, "answered with nothing", &request.rank);
                }
                found
            }
            Err(e) => {
                self.complain(Fault::Request, "answered with nothing", &e.message());
                None
            }
        };
        self.reply(metadata.unwrap_or_default());
    }

    fn reply(&mut self, metadata: Arc<Vec<u8>>) {
        let mut head = zmtp::message(&[b""]);
        head[0] = zmtp::frame_head(0, true)[0];
        head.extend(zmtp::frame_head(metadata.len(), true));
        self.out.push_back(Arc::new(head));
        if !metadata.is_empty() {
            self.out.push_back(metadata);
        }
        let clock = zmtp::message(&[&Clock::now().encode()]);
        self.out.push_back(Arc::new(clock));
        (self.since, self.sent) = (Instant::now(), 0);
        self.deadline = Some(self.since + self.timeout);
        self.answered = true;
    }

    fn complain(&self, fault: Fault, done: &str, what: &dyn std::fmt::Display) {
        if self.ranks.first_time(fault as u32) {
            log::warn!(
                "side channel on {}: a client at {} was {done}: {what} (the next of this kind are not logged)",
                self.address,
                self.from
            );
        }
    }

    /// The time runs while the client is not ready, or is in a question or its answer.
    fn set_deadline(&mut self) {
        let busy = !self.decoder.is_ready() || self.decoder.is_inside() || !self.out.is_empty();
        self.deadline = match self.deadline {
            _ if !busy => None,
            None => Some(Instant::now() + self.timeout),
            running => running,
        };
    }
}

impl server::Client for Client {
    fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Nothing is read from a client that does not take its answer.
    fn events(&self) -> libc::c_short {
        if self.out.is_empty() {
            libc::POLLIN
        } else {
            libc::POLLOUT
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn since(&self) -> Instant {
        self.since
    }

    fn advance(&mut self) -> bool {
        let open = self.send() && (!self.out.is_empty() || self.receive() && self.send());
        self.set_deadline();
        open
    }

    /// It has its answer, or has not asked for a while.
    fn is_spare(&self, now: Instant) -> bool {
        let idle = self.out.is_empty() && !self.decoder.is_inside();
        idle && (self.answered || now >= self.since + GRACE)
    }

    fn rate(&self, now: Instant) -> f64 {
        let time = now.saturating_duration_since(self.since);
        self.sent as f64 / time.as_secs_f64()
    }

    fn will_be_late(&self, now: Instant) -> bool {
        let out: usize = self.out.iter().map(|part| part.len()).sum();
        let time = self
            .deadline
            .map_or(self.timeout, |at| at.saturating_duration_since(now));
        self.rate(now) * time.as_secs_f64() < (out - self.offset) as f64
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Ends the connection even where a forked child holds a copy of the descriptor.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}
