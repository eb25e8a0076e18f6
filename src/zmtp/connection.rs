//! One connection from the side that asks, with somebody who waits for the answer.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};

use super::{Decoder, Event, Limits, Stream, greeting, pong, ready};
use crate::error::{Error, Result, Status, bail};
use crate::net::{self, Deadline};

/// How much is received in one go, so that the clock is looked at in between.
const STEP: usize = 64 << 10;

/// A connection that is waited for.
pub(crate) struct Connection {
    stream: Stream,
    decoder: Decoder,
    /// What has been received; `taken..filled` has not been looked at yet.
    buffer: Vec<u8>,
    taken: usize,
    filled: usize,
}

impl Connection {
    /// Greets as a socket of this type, and waits until the peer, of one of `peers`, is ready.
    ///
    /// # Errors
    /// `PeerIncompatible` for a peer that speaks something else, or is another kind of socket; `Timeout`;
    /// `PeerLost`.
    pub(crate) fn greet(
        stream: Stream,
        limits: Limits,
        socket_type: &str,
        peers: &[&str],
        deadline: &Deadline,
    ) -> Result<Self> {
        let mut connection = Connection {
            stream,
            decoder: Decoder::new(limits),
            buffer: vec![0; STEP],
            taken: 0,
            filled: 0,
        };
        let hello = [greeting(), ready(socket_type)].concat();
        connection.send(&hello, deadline)?;
        match connection.receive(deadline)? {
            Event::Ready(kind) if peers.contains(&&*kind) => Ok(connection),
            Event::Ready(kind) => bail!(
                Status::PeerIncompatible,
                "its socket is a {kind:?}, which answers no questions"
            ),
            _ => bail!(Status::PeerIncompatible, "it did not say READY"),
        }
    }

    /// Sends all of it.
    ///
    /// # Errors
    /// `Timeout`; `PeerLost`.
    pub(crate) fn send(&mut self, mut bytes: &[u8], deadline: &Deadline) -> Result<()> {
        while !bytes.is_empty() {
            match self.stream.send(bytes) {
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

    /// The next message, frame by frame. A PING is answered on the way.
    ///
    /// # Errors
    /// `Timeout`; `PeerLost`; `PeerIncompatible`.
    pub(crate) fn message(&mut self, deadline: &Deadline) -> Result<Vec<Vec<u8>>> {
        // Whoever asks has to wait: looking first would be in vain.
        if self.taken == self.filled {
            self.wait(libc::POLLIN, deadline)?;
        }
        loop {
            match self.receive(deadline)? {
                Event::Message(frames) => return Ok(frames),
                Event::Ping(context) => self.send(&pong(&context), deadline)?,
                Event::Ready(_) => {}
            }
        }
    }

    /// Whether the peer has closed it and nothing is left to be received.
    pub(crate) fn is_over(&self) -> bool {
        self.taken == self.filled && self.stream.is_over()
    }

    fn receive(&mut self, deadline: &Deadline) -> Result<Event> {
        let mut received = false;
        loop {
            while self.taken < self.filled {
                let end = self.filled.min(self.taken + self.decoder.missing());
                let event = self.decoder.push(&self.buffer[self.taken..end])?;
                self.taken = end;
                if let Some(event) = event {
                    return Ok(event);
                }
            }
            // Looked at after every piece, so that a peer that never pauses does not go past it either.
            if received && deadline.remaining().is_zero() {
                return Err(late(deadline));
            }
            match self.stream.receive(&mut self.buffer) {
                Ok(0) => bail!(Status::PeerLost, "it closed the connection"),
                Ok(n) => {
                    (self.taken, self.filled) = (0, n);
                    received = true;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.wait(libc::POLLIN, deadline)?,
                Err(e) => return Err(lost(&e)),
            }
        }
    }

    fn wait(&self, events: libc::c_short, deadline: &Deadline) -> Result<()> {
        let mut fds = [net::pollfd(self.stream.as_fd().as_raw_fd(), events)];
        net::poll(&mut fds, Some(deadline.at))
            .map_err(|e| Error::from_io("cannot wait for the peer", &e))?;
        if fds[0].revents == 0 {
            return Err(late(deadline));
        }
        Ok(())
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
