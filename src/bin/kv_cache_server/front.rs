//! The loop: requests in, replies and events out.
//!
//! The front is a ROUTER, so that a client that never fetches its reply, or sends what it likes, holds
//! up nobody: what cannot be delivered is dropped.

use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvferry::error::{Error, Result, Status};
use kvferry::pool_server::{Published, Service};

use crate::endpoint::{Bound, bind};
use crate::settings::Settings;
use crate::signals::Signals;

/// How often sessions are looked at.
const TICK: Duration = Duration::from_millis(500);
/// A tick that is later than this means that the process was stopped, or had no processor.
const STOOD_STILL: Duration = Duration::from_secs(2);
/// Requests between two looks at the clock and the signals.
const BURST: usize = 256;
/// When the server ends: it goes after so long a silence, and after so much time in any case.
const QUIET: Duration = Duration::from_millis(100);
const DRAIN: Duration = Duration::from_secs(5);
/// Replies and events that may still be under way then.
const LINGER_MS: i32 = 2000;
/// Event batches that a slow subscriber can be behind; what is more it loses, and sees a gap. A batch
/// can be megabytes.
const EVENTS_AHEAD: i32 = 1000;
/// Replies that wait for one client; what is more is dropped. A client that waits for each has one.
const REPLIES_AHEAD: i32 = 64;
/// Frames of a message that are kept: the sender, the delimiter, the request, and one too many.
const FRAMES: usize = 4;

/// The sockets.
pub struct Front {
    service: Arc<Mutex<Service>>,
    requests: zmq::Socket,
    events: Option<zmq::Socket>,
    /// Standard input is looked at, and its end is the server's.
    exit_with_stdin: bool,
    // Behind the sockets: it waits for them to be closed and their messages to be sent.
    _context: zmq::Context,
    // Behind that: libzmq removes the socket files when it closes a listener, and until then nobody
    // else may have one in their place.
    bound: Vec<Bound>,
    events_bound: Option<Bound>,
}

impl Front {
    /// Binds all sockets.
    ///
    /// # Errors
    /// As for [`bind`].
    pub fn open(s: &Settings, service: Arc<Mutex<Service>>) -> Result<Self> {
        let context = zmq::Context::new();
        let requests = context.socket(zmq::ROUTER).map_err(failed)?;
        requests.set_linger(LINGER_MS).map_err(failed)?;
        requests.set_sndhwm(REPLIES_AHEAD).map_err(failed)?;
        // The identity and the delimiter are frames, too; i64::MAX is no limit anyway.
        let longest = i64::try_from(s.limits.request_bytes).unwrap_or(i64::MAX);
        requests.set_maxmsgsize(longest.max(256)).map_err(failed)?;
        let to = |socket: &zmq::Socket, address: &str| {
            bind(socket, address, s.socket_mode, s.allow_remote)
        };
        let mut bound = Vec::new();
        for address in &s.endpoints {
            bound.push(to(&requests, address)?);
        }
        let (mut events, mut events_bound) = (None, None);
        if let Some(address) = &s.events {
            let socket = context.socket(zmq::PUB).map_err(failed)?;
            socket.set_sndhwm(EVENTS_AHEAD).map_err(failed)?;
            socket.set_linger(LINGER_MS).map_err(failed)?;
            events_bound = Some(to(&socket, address)?);
            events = Some(socket);
        }
        Ok(Front {
            service,
            requests,
            events,
            exit_with_stdin: s.exit_with_stdin,
            _context: context,
            bound,
            events_bound,
        })
    }

    /// What listens where.
    pub fn addresses(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let requests = self.bound.iter().map(|b| ("listening", &*b.address));
        let events = self.events_bound.iter().map(|b| ("events", &*b.address));
        requests.chain(events)
    }

    /// Answers until a signal, a client or the end of its input ends it; then what is in flight, and returns.
    ///
    /// # Errors
    /// A fault of the sockets.
    pub fn serve(self, signals: &Signals) -> Result<()> {
        let mut next_tick = Instant::now() + TICK;
        loop {
            let left = next_tick.saturating_duration_since(Instant::now());
            let mut items = [
                self.requests.as_poll_item(zmq::POLLIN),
                zmq::PollItem::from_fd(signals.fd(), zmq::POLLIN),
                zmq::PollItem::from_fd(libc::STDIN_FILENO, zmq::POLLIN),
            ];
            let watched = if self.exit_with_stdin { 3 } else { 2 };
            wait(&mut items[..watched], left)?;
            self.allow_for_pause(&mut next_tick);
            let mut told = items[1].is_readable();
            if self.exit_with_stdin && (items[2].is_readable() || items[2].is_error()) {
                // Nobody has anything to say here; but what is said is not the end.
                told |= std::io::stdin()
                    .read(&mut [0; 256])
                    .map_or(true, |n| n == 0);
            }
            if items[0].is_readable() {
                self.answer_waiting()?;
            }
            if told || self.service().is_stopping() {
                return self.end();
            }
            self.allow_for_pause(&mut next_tick);
            if Instant::now() >= next_tick {
                self.with_events(|service| service.tick(Instant::now()));
                next_tick = Instant::now() + TICK;
            }
        }
    }

    /// After a pause of this process, its clients' signs of life are still to be read.
    fn allow_for_pause(&self, next_tick: &mut Instant) {
        let now = Instant::now();
        let late = now.saturating_duration_since(*next_tick);
        if late > STOOD_STILL {
            log::warn!("the server stood still for {late:?}");
            self.service().stood_still(late + TICK, now);
            *next_tick = now + TICK;
        }
    }

    /// Lets nobody else in, and answers what is on its way.
    fn end(self) -> Result<()> {
        log::info!("ending: answering what is in flight");
        // Not unbound: libzmq would close the accepted connections with their listener, and what they
        // have sent would be lost.
        for bound in self.bound.iter().chain(&self.events_bound) {
            bound.hide();
        }
        let deadline = Instant::now() + DRAIN;
        while Instant::now() < deadline {
            let mut items = [self.requests.as_poll_item(zmq::POLLIN)];
            wait(&mut items, QUIET)?;
            if !items[0].is_readable() {
                break;
            }
            self.answer_waiting()?;
        }
        Ok(())
    }

    /// Answers the requests that are there.
    fn answer_waiting(&self) -> Result<()> {
        for _ in 0..BURST {
            let Some(mut frames) = self.receive()? else {
                return Ok(());
            };
            let reply = self.with_events(|service| match &frames[1..] {
                [delimiter, request] if delimiter.is_empty() => {
                    service.handle(request, Instant::now())
                }
                _ => service.refuse(
                    "a request is an empty frame, which a REQ socket sends by itself, and one more",
                ),
            });
            let parts = [frames.swap_remove(0), zmq::Message::new(), reply.into()];
            match self.requests.send_multipart(parts, zmq::DONTWAIT) {
                // A client that has gone, or that does not fetch its replies.
                Ok(()) | Err(zmq::Error::EAGAIN | zmq::Error::EHOSTUNREACH) => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Ok(())
    }

    /// A message: who sent it, and the first frames of it.
    fn receive(&self) -> Result<Option<Vec<zmq::Message>>> {
        let mut frames = Vec::with_capacity(FRAMES);
        loop {
            let mut frame = zmq::Message::new();
            match self.requests.recv(&mut frame, zmq::DONTWAIT) {
                Ok(()) => {}
                Err(zmq::Error::EAGAIN | zmq::Error::EINTR) if frames.is_empty() => {
                    return Ok(None);
                }
                Err(zmq::Error::EINTR) => continue,
                Err(e) => return Err(failed(e)),
            }
            let more = frame.get_more();
            if frames.len() < FRAMES {
                frames.push(frame);
            }
            if !more {
                return Ok(Some(frames));
            }
        }
    }

    /// Runs something with the service, and publishes what came of it.
    fn with_events<T>(&self, body: impl FnOnce(&mut Service) -> T) -> T {
        let (out, published) = {
            let mut service = self.service();
            (body(&mut service), service.take_published())
        };
        if let Some(socket) = &self.events {
            for Published { topic, body } in published {
                // To subscribers that are too far behind nothing is sent; they see the gap.
                if let Err(e) = socket.send_multipart([topic.into_bytes(), body], zmq::DONTWAIT) {
                    log::error!("events could not be published: {e}");
                }
            }
        }
        out
    }

    fn service(&self) -> MutexGuard<'_, Service> {
        self.service.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wait(items: &mut [zmq::PollItem<'_>], limit: Duration) -> Result<()> {
    // Rounded up: nothing is gained by waking up just before the time.
    let ms = limit.as_micros().div_ceil(1000);
    match zmq::poll(items, i64::try_from(ms).unwrap_or(i64::MAX)) {
        Ok(_) | Err(zmq::Error::EINTR) => Ok(()),
        Err(e) => Err(failed(e)),
    }
}

fn failed(e: zmq::Error) -> Error {
    Error::new(Status::Io, format!("the sockets failed: {e}"))
}
