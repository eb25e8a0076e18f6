//! The client: what stock vLLM does with a REQ socket.

use super::message::{Clock, Request};
use crate::clock::monotonic_ns;
use crate::error::{Error, Result, Status, bail};
use crate::net::{Deadline, Endpoint};
use crate::side_channel::{Answer, ClockSample, Rank, RequestOptions, check_request};
use crate::zmtp::{self, Address, Connection, Limits, Stream};

/// Frames of an answer: the empty one, the metadata, the clock.
const ANSWER_FRAMES: usize = 3;

/// Room for what is not metadata in an answer.
const MAX_CLOCK: usize = 16;

/// A connection to a listener, over which the ranks of an engine are asked one after the other.
pub struct Session {
    connection: Connection,
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
            let stream = Stream::connect(&Address::Tcp(host.to_owned(), port), deadline)?;
            let limits = Limits {
                bytes: options.max_message.saturating_add(MAX_CLOCK),
                frames: ANSWER_FRAMES,
            };
            let peers = ["ROUTER", "REP"];
            Ok(Session {
                connection: Connection::greet(stream, limits, "REQ", &peers, deadline)?,
                peer: peer.clone(),
                options: options.clone(),
                best: None,
                broken: false,
            })
        };
        open().map_err(|e: Error| e.context(format_args!("side channel at {peer}")))
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
        self.connection.send(&question, deadline)?;
        let frames = self.connection.message(deadline)?;
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
