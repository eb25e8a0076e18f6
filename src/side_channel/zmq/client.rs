//! The client: what stock vLLM does with a REQ socket.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use super::message::{Clock, Request};
use super::zmtp::{self, Decoder, Event, Limits};
use crate::clock::monotonic_ns;
use crate::error::{Error, Result, Status, bail};
use crate::side_channel::net::{self, Deadline, Endpoint};
use crate::side_channel::sockets::connect;
use crate::side_channel::{Answer, ClockSample, Rank, RequestOptions, check_request};

/// How much is read in one go, so that the clock is looked at in between.
const STEP: usize = 256 << 10;

/// Frames of an answer: the empty one, the metadata, the clock.
const ANSWER_FRAMES: usize = 3;

/// Room for what is not metadata in an answer.
const MAX_CLOCK: usize = 16;

/// A connection to a listener, over which the ranks of an engine are asked one after the other.
pub struct Session {
    stream: TcpStream,
    decoder: Decoder,
    peer: String,
    options: RequestOptions,
    best: Option<ClockSample>,
    /// After a failure nobody knows what the next bytes would be.
    broken: bool,
}

impl Session {
    /// Connects. [`RequestOptions::timeout`] is for this, and then for each question anew;
    /// [`RequestOptions::rank`] is of no account.
    ///
    /// # Errors
    /// As [`crate::side_channel::request`].
    pub fn connect(host: &str, port: u16, options: &RequestOptions) -> Result<Self> {
        check_request(host, port, options)?;
        Self::connect_within(host, port, options, &Deadline::after(options.timeout))
    }

    fn connect_within(
        host: &str,
        port: u16,
        options: &RequestOptions,
        deadline: &Deadline,
    ) -> Result<Self> {
        let peer = Endpoint(host, port).to_string();
        let open = || {
            let addrs = net::resolve(host, port, deadline)?;
            let stream = connect(&addrs, deadline)?;
            stream
                .set_nonblocking(true)
                .and_then(|()| stream.set_nodelay(true))
                .map_err(|e| Error::from_io("cannot set up the socket", &e))?;
            let mut session = Session {
                stream,
                decoder: Decoder::new(Limits {
                    bytes: options.max_message.saturating_add(MAX_CLOCK),
                    frames: ANSWER_FRAMES,
                }),
                peer: peer.clone(),
                options: options.clone(),
                best: None,
                broken: false,
            };
            session.greet(deadline)?;
            Ok(session)
        };
        open().map_err(|e: Error| e.context(format_args!("side channel at {peer}")))
    }

    fn greet(&mut self, deadline: &Deadline) -> Result<()> {
        let hello = [zmtp::greeting(), zmtp::ready("REQ")].concat();
        self.send(&hello, deadline)?;
        match self.receive(deadline)? {
            Event::Ready(kind) if kind == "ROUTER" || kind == "REP" => Ok(()),
            Event::Ready(kind) => bail!(
                Status::PeerIncompatible,
                "its socket is a {kind:?}, which answers no questions"
            ),
            _ => bail!(Status::PeerIncompatible, "it did not say READY"),
        }
    }

    /// Asks for the metadata of one rank.
    ///
    /// # Errors
    /// As [`crate::side_channel::request`]: `NotFound` when the listener has nothing for this rank,
    /// after which others can be asked. After any other error the session is of no more use.
    pub fn ask(&mut self, rank: Rank) -> Result<Answer> {
        self.ask_within(rank, &Deadline::after(self.options.timeout))
    }

    fn ask_within(&mut self, rank: Rank, deadline: &Deadline) -> Result<Answer> {
        let answer = self.exchange(rank, deadline);
        if let Err(e) = &answer {
            self.broken |= e.status() != Status::NotFound;
        }
        answer.map_err(|e| e.context(format_args!("side channel at {}: {rank}", self.peer)))
    }

    /// The sample of the clock with the least round trip so far.
    pub fn best_clock(&self) -> Option<ClockSample> {
        self.best
    }

    fn exchange(&mut self, rank: Rank, deadline: &Deadline) -> Result<Answer> {
        if self.broken {
            bail!(Status::InvalidState, "an earlier question has failed");
        }
        let question = zmtp::message(&[b"", &Request::encode(rank)]);
        let sent = monotonic_ns();
        self.send(&question, deadline)?;
        let frames = loop {
            match self.receive(deadline)? {
                Event::Message(frames) => break frames,
                Event::Ping(context) => self.send(&zmtp::pong(&context), deadline)?,
                Event::Ready(_) => {}
            }
        };
        let received = monotonic_ns();
        let count = frames.len();
        let Ok([empty, metadata, clock]) = <[Vec<u8>; ANSWER_FRAMES]>::try_from(frames) else {
            bail!(
                Status::PeerIncompatible,
                "an answer of {count} frames instead of an empty one, the metadata and the clock"
            );
        };
        if !empty.is_empty() {
            bail!(
                Status::PeerIncompatible,
                "an answer without the empty frame"
            );
        }
        if metadata.len() > self.options.max_message {
            bail!(
                Status::PeerIncompatible,
                "metadata of {} bytes is longer than {}",
                metadata.len(),
                self.options.max_message
            );
        }
        let clock = sample(Clock::decode(&clock)?, sent, received);
        if self.best.is_none_or(|best| clock.rtt < best.rtt) {
            self.best = Some(clock);
        }
        if metadata.is_empty() {
            bail!(Status::NotFound, "the listener has nothing for it");
        }
        Ok(Answer {
            metadata,
            clock: Some(clock),
        })
    }

    fn send(&mut self, mut bytes: &[u8], deadline: &Deadline) -> Result<()> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.wait(libc::POLLOUT, deadline)?
                }
                Err(e) => return Err(lost(&e)),
            }
        }
        Ok(())
    }

    fn receive(&mut self, deadline: &Deadline) -> Result<Event> {
        let mut scratch = vec![0; STEP.min(self.options.max_message.max(64))];
        loop {
            let want = self.decoder.missing().min(scratch.len());
            match self.stream.read(&mut scratch[..want]) {
                Ok(0) => bail!(Status::PeerLost, "it closed the connection"),
                Ok(n) => {
                    if let Some(event) = self.decoder.push(&scratch[..n])? {
                        return Ok(event);
                    }
                    if deadline.remaining().is_zero() {
                        return Err(late(deadline));
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.wait(libc::POLLIN, deadline)?,
                Err(e) => return Err(lost(&e)),
            }
        }
    }

    fn wait(&self, events: libc::c_short, deadline: &Deadline) -> Result<()> {
        if deadline.remaining().is_zero() {
            return Err(late(deadline));
        }
        let mut fds = [net::pollfd(self.stream.as_raw_fd(), events)];
        net::poll(&mut fds, Some(deadline.at))
            .map_err(|e| Error::from_io("cannot wait for the listener", &e))
    }
}

/// One question over a connection of its own, all within [`RequestOptions::timeout`].
pub(in crate::side_channel) fn request(
    host: &str,
    port: u16,
    options: &RequestOptions,
) -> Result<Answer> {
    let deadline = Deadline::after(options.timeout);
    Session::connect_within(host, port, options, &deadline)?.ask_within(options.rank, &deadline)
}

fn sample(theirs: Clock, sent: u64, received: u64) -> ClockSample {
    let rtt = std::time::Duration::from_nanos(received.saturating_sub(sent));
    let half_way = sent as f64 / 1e9 + rtt.as_secs_f64() / 2.0;
    ClockSample {
        rtt,
        offset: theirs.0 - half_way,
    }
}

fn late(deadline: &Deadline) -> Error {
    Error::new(
        Status::Timeout,
        format!("no answer within {:?}", deadline.allowed),
    )
}

fn lost(e: &io::Error) -> Error {
    Error::from_io("the connection broke", e)
}
