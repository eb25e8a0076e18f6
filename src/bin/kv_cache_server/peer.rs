//! One connection: bytes to messages, and what is on its way back. Nothing here waits.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Instant;

use kvferry::error::{Error, Result, Status};
use kvferry::zmtp::{Decoder, Event, Limits, Stream, greeting, pong, ready};

use crate::poller::Interest;

/// While more than this waits to be sent, nothing more is read: whoever does not fetch its replies
/// gets no further ones.
const AHEAD: usize = 256 << 10;
/// Sent bytes that are kept in front of others before these are moved.
const SENT: usize = 1 << 20;

/// A message, frame by frame.
pub type Message = Vec<Vec<u8>>;

/// A connection, and what is kept of it.
pub struct Peer {
    stream: Stream,
    decoder: Decoder,
    /// Types of sockets that may be at the other end.
    types: &'static [&'static str],
    /// Received, but not looked at yet.
    input: Vec<u8>,
    /// To be sent, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    pub since: Instant,
}

impl Peer {
    /// Greets as a socket of this type.
    pub fn new(
        stream: Stream,
        limits: Limits,
        own_type: &str,
        types: &'static [&'static str],
    ) -> Self {
        Peer {
            stream,
            decoder: Decoder::new(limits),
            types,
            input: Vec::new(),
            out: [greeting(), ready(own_type)].concat(),
            sent: 0,
            since: Instant::now(),
        }
    }

    pub fn fd(&self) -> RawFd {
        self.stream.as_fd().as_raw_fd()
    }

    /// Whether it has said that it speaks the protocol.
    pub fn is_ready(&self) -> bool {
        self.decoder.is_ready()
    }

    /// What to wait for.
    pub fn interest(&self) -> Interest {
        Interest {
            read: self.may_read(),
            write: self.waiting() > 0,
        }
    }

    /// Bytes that wait to be sent.
    pub fn waiting(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Puts this behind what waits to be sent.
    pub fn put(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Sends and receives what can be without waiting, and gives every message to `hear`, which writes
    /// its answer behind what is given to it.
    ///
    /// # Errors
    /// The connection is over, or what came is not the protocol.
    pub fn advance(
        &mut self,
        scratch: &mut [u8],
        hear: &mut impl FnMut(Message, &mut Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        self.catch_up(hear)?;
        if !self.may_read() {
            return Ok(());
        }
        match self.stream.receive(scratch) {
            Ok(0) => return Err(closed()),
            Ok(n) => self.take_in(&scratch[..n], hear)?,
            Err(e) if is_for_later(&e) => {}
            Err(e) => return Err(Error::from_io("the connection broke", &e)),
        }
        self.catch_up(hear)
    }

    /// Sends what there is room for.
    ///
    /// # Errors
    /// The connection is over.
    pub fn flush(&mut self) -> Result<()> {
        while self.waiting() > 0 {
            match self.stream.send(&self.out[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(Error::from_io("the connection broke", &e)),
            }
        }
        if self.waiting() == 0 {
            self.out.clear();
            self.out.shrink_to(SENT);
            self.sent = 0;
        } else if self.sent >= SENT {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }

    fn may_read(&self) -> bool {
        self.input.is_empty() && self.waiting() <= AHEAD
    }

    /// Sends, and looks at what was left over, in turns, as far as there is room.
    fn catch_up(
        &mut self,
        hear: &mut impl FnMut(Message, &mut Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        loop {
            self.flush()?;
            if self.input.is_empty() || self.waiting() > AHEAD {
                return Ok(());
            }
            let left = std::mem::take(&mut self.input);
            self.take_in(&left, hear)?;
        }
    }

    fn take_in(
        &mut self,
        mut bytes: &[u8],
        hear: &mut impl FnMut(Message, &mut Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        while !bytes.is_empty() {
            if self.waiting() > AHEAD {
                self.input.extend_from_slice(bytes);
                break;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(self.decoder.missing()));
            bytes = rest;
            match self.decoder.push(now)? {
                Some(Event::Message(frames)) => hear(frames, &mut self.out)?,
                Some(Event::Ping(context)) => self.out.extend(pong(&context)),
                Some(Event::Ready(kind)) if !self.types.contains(&&*kind) => {
                    return Err(Error::new(
                        Status::PeerIncompatible,
                        format!("its socket is a {kind:?}, and not one of {:?}", self.types),
                    ));
                }
                Some(Event::Ready(_)) | None => {}
            }
        }
        Ok(())
    }
}

fn closed() -> Error {
    Error::new(Status::PeerLost, "it closed the connection")
}

fn is_for_later(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
