//! The loop: requests in, replies and events out, on one thread and sockets that do not block.
//!
//! Nobody is waited for. Whoever does not fetch its replies is not listened to until it does, and
//! whoever does not fetch its events loses some, and sees the gap.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvferry::error::{Error, Result};
use kvferry::pool_server::{Published, Service};
use kvferry::zmtp::{Limits, Stream, message, put_frame_head};
use prost::Message as _;

use crate::endpoint::{Bound, bind};
use crate::peer::{Message, Peer};
use crate::poller::{Interest, Poller};
use crate::settings::Settings;
use crate::signals::Signals;

/// How often sessions are looked at.
const TICK: Duration = Duration::from_millis(500);
/// A tick that is later than this means that the process was stopped, or had no processor.
const STOOD_STILL: Duration = Duration::from_secs(2);
/// How long a connection may take to say what it speaks.
const GREETING: Duration = Duration::from_secs(10);
/// When the server ends: it goes after so long a silence, and after so much time in any case.
const QUIET: Duration = Duration::from_millis(100);
const DRAIN: Duration = Duration::from_secs(5);
/// Bytes of events that a slow listener can be behind.
const EVENTS_AHEAD: usize = 16 << 20;
/// How many newcomers are let in before others have their turn.
const NEWCOMERS: usize = 64;
/// Received at once.
const SCRATCH: usize = 64 << 10;
/// Frames of a request: the empty one and the message. A few more get an answer that says so.
const FRAMES: usize = 16;
/// A listener subscribes to a pool, or to all. How many times, and how long a name, is enough.
const SUBSCRIPTIONS: usize = 1024;
const TOPIC: usize = 256;

/// Numbers of what is waited for; connections have those from [`FIRST`] on, listeners those below.
const SIGNAL: u64 = 0;
const STDIN: u64 = 1;
const LISTENERS: u64 = 2;
const FIRST: u64 = 1 << 32;

/// What connects to one of the places.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Requests,
    Events,
}

struct Client {
    peer: Peer,
    /// What it wants to hear; `None` for those that ask.
    topics: Option<Vec<Vec<u8>>>,
    /// What is waited for.
    interest: Interest,
}

/// The sockets.
pub struct Front {
    service: Arc<Mutex<Service>>,
    poller: Poller,
    bound: Vec<(Kind, Bound)>,
    /// Whether newcomers are waited for.
    listening: bool,
    clients: HashMap<u64, Client>,
    next: u64,
    /// As many as there are descriptors for.
    most_clients: usize,
    longest: usize,
    /// Standard input is looked at, and its end is the server's.
    exit_with_stdin: bool,
    scratch: Vec<u8>,
}

impl Front {
    /// Binds all sockets.
    ///
    /// # Errors
    /// As for [`bind`].
    pub fn open(s: &Settings, service: Arc<Mutex<Service>>, most_clients: usize) -> Result<Self> {
        let to = |address: &str| bind(address, s.socket_mode, s.allow_remote);
        let mut bound = Vec::new();
        for address in &s.endpoints {
            bound.push((Kind::Requests, to(address)?));
        }
        if let Some(address) = &s.events {
            bound.push((Kind::Events, to(address)?));
        }
        Ok(Front {
            service,
            poller: Poller::new()?,
            bound,
            listening: false,
            clients: HashMap::new(),
            next: FIRST,
            most_clients,
            longest: s.limits.request_bytes,
            exit_with_stdin: s.exit_with_stdin,
            scratch: vec![0; SCRATCH],
        })
    }

    /// What listens where.
    pub fn addresses(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.bound.iter().map(|(kind, b)| {
            let what = match kind {
                Kind::Requests => "listening",
                Kind::Events => "events",
            };
            (what, &*b.address)
        })
    }

    /// Answers until a signal, a client or the end of its input ends it; then what is in flight, and returns.
    ///
    /// # Errors
    /// A fault of the system's.
    pub fn serve(mut self, signals: &Signals) -> Result<()> {
        let add = |fd, token| self.poller.add(fd, token, Interest::READ);
        add(signals.fd(), SIGNAL).map_err(|e| Error::from_io("cannot wait for signals", &e))?;
        if self.exit_with_stdin {
            let doing = "cannot wait for the end of the input (--exit-with-stdin)";
            add(libc::STDIN_FILENO, STDIN).map_err(|e| Error::from_io(doing, &e))?;
        }
        self.listen()?;
        let mut ready = Vec::new();
        let mut next_tick = Instant::now() + TICK;
        loop {
            let left = next_tick.saturating_duration_since(Instant::now());
            self.poller.wait(left, &mut ready)?;
            self.allow_for_pause(&mut next_tick);
            let mut told = false;
            for &token in &ready {
                told |= match token {
                    SIGNAL => true,
                    STDIN => input_has_ended(),
                    _ => {
                        self.turn(token);
                        false
                    }
                };
            }
            if told || self.service().is_stopping() {
                return self.end();
            }
            self.allow_for_pause(&mut next_tick);
            let now = Instant::now();
            if now >= next_tick {
                self.with_service(|service| service.tick(now));
                self.clients
                    .retain(|_, c| c.peer.is_ready() || now < c.peer.since + GREETING);
                self.listen()?;
                next_tick = now + TICK;
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
    fn end(mut self) -> Result<()> {
        log::info!("ending: answering what is in flight");
        // Those that have connected are in; nobody else finds the way.
        for (_, bound) in &self.bound {
            bound.hide();
        }
        for i in 0..self.bound.len() {
            self.accept(i);
        }
        for (_, bound) in &mut self.bound {
            bound.close();
        }
        let deadline = Instant::now() + DRAIN;
        let mut ready = Vec::new();
        while Instant::now() < deadline {
            self.poller.wait(QUIET, &mut ready)?;
            // The signal, or the end of the input, stays ready.
            ready.retain(|&token| token >= FIRST);
            if ready.is_empty() && self.clients.values().all(|c| c.peer.waiting() == 0) {
                break;
            }
            for &token in &ready {
                self.turn(token);
            }
        }
        Ok(())
    }

    /// Waits for newcomers, again if there was no room for them.
    fn listen(&mut self) -> Result<()> {
        if !self.listening {
            self.watch_listeners(Interest::READ)?;
            self.listening = true;
        }
        Ok(())
    }

    fn watch_listeners(&self, interest: Interest) -> Result<()> {
        for (token, (_, bound)) in (LISTENERS..).zip(&self.bound) {
            let Some(fd) = bound.fd() else { continue };
            let result = match self.poller.change(fd, token, interest) {
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                    self.poller.add(fd, token, interest)
                }
                other => other,
            };
            result.map_err(|e| Error::from_io("cannot wait for connections", &e))?;
        }
        Ok(())
    }

    /// Does what can be done for one that is ready.
    fn turn(&mut self, token: u64) {
        if token < FIRST {
            return self.accept((token - LISTENERS) as usize);
        }
        let Some(client) = self.clients.get_mut(&token) else {
            return;
        };
        let result = match &mut client.topics {
            Some(topics) => client.peer.advance(&mut self.scratch, &mut |frames, _| {
                subscribe(topics, &frames)
            }),
            None => {
                let mut service = self.service.lock().unwrap_or_else(PoisonError::into_inner);
                let now = Instant::now();
                let result = client.peer.advance(&mut self.scratch, &mut |frames, out| {
                    answer(&mut service, &frames, now, out);
                    Ok(())
                });
                let published = service.take_published();
                drop(service);
                self.after(token, result);
                return self.publish(published);
            }
        };
        self.after(token, result);
    }

    /// Waits for what a client is ready for next, or forgets it.
    fn after(&mut self, token: u64, result: Result<()>) {
        let Some(client) = self.clients.get_mut(&token) else {
            return;
        };
        let interest = client.peer.interest();
        let result = result.and_then(|()| {
            if interest == client.interest {
                return Ok(());
            }
            client.interest = interest;
            let changed = self.poller.change(client.peer.fd(), token, interest);
            changed.map_err(|e| Error::from_io("cannot wait for it", &e))
        });
        if let Err(e) = result {
            log::debug!("a connection is over: {e}");
            self.clients.remove(&token);
        }
    }

    fn accept(&mut self, which: usize) {
        for _ in 0..NEWCOMERS {
            let (kind, bound) = &self.bound[which];
            let kind = *kind;
            match bound.accept() {
                Ok(Some(_)) if self.clients.len() >= self.most_clients => {
                    log::warn!("{} connections, and no room for more", self.clients.len());
                    return self.pause();
                }
                Ok(Some(stream)) => self.admit(kind, stream),
                Ok(None) => return,
                Err(e) => {
                    log::warn!("a connection cannot be accepted: {e}");
                    return self.pause();
                }
            }
        }
    }

    /// Lets newcomers wait in the kernel's queue until the next tick: without, they would be ready all
    /// the time.
    fn pause(&mut self) {
        let nothing = Interest {
            read: false,
            write: false,
        };
        match self.watch_listeners(nothing) {
            Ok(()) => self.listening = false,
            Err(e) => log::error!("{e}"),
        }
    }

    fn admit(&mut self, kind: Kind, stream: Stream) {
        let limits = |bytes| Limits {
            bytes,
            frames: FRAMES,
        };
        let (peer, topics) = match kind {
            Kind::Requests => {
                let limits = limits(self.longest);
                (
                    Peer::new(stream, limits, "ROUTER", &["REQ", "DEALER", "ROUTER"]),
                    None,
                )
            }
            Kind::Events => {
                let limits = limits(TOPIC + 1);
                (
                    Peer::new(stream, limits, "PUB", &["SUB", "XSUB"]),
                    Some(Vec::new()),
                )
            }
        };
        let token = self.next;
        let client = Client {
            interest: peer.interest(),
            peer,
            topics,
        };
        match self.poller.add(client.peer.fd(), token, client.interest) {
            Ok(()) => {
                self.next += 1;
                self.clients.insert(token, client);
                self.turn(token);
            }
            Err(e) => log::warn!("a connection cannot be waited for: {e}"),
        }
    }

    /// Runs something with the service, and publishes what came of it.
    fn with_service(&mut self, body: impl FnOnce(&mut Service)) {
        let published = {
            let mut service = self.service();
            body(&mut service);
            service.take_published()
        };
        self.publish(published);
    }

    fn publish(&mut self, published: Vec<Published>) {
        for Published { topic, body } in published {
            let bytes = message(&[topic.as_bytes(), &body]);
            let wants = |c: &Client| {
                let mut topics = c.topics.iter().flatten();
                topics.any(|t| topic.as_bytes().starts_with(t))
                    // One that is too far behind gets nothing, and sees the gap.
                    && (c.peer.waiting() == 0 || c.peer.waiting() + bytes.len() <= EVENTS_AHEAD)
            };
            let all = self.clients.iter().filter(|(_, c)| wants(c));
            let all: Vec<u64> = all.map(|(token, _)| *token).collect();
            for token in all {
                let sent = self.clients.get_mut(&token).map(|client| {
                    client.peer.put(&bytes);
                    client.peer.flush()
                });
                self.after(token, sent.unwrap_or(Ok(())));
            }
        }
    }

    fn service(&self) -> MutexGuard<'_, Service> {
        self.service.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether nothing more will come; what comes is of no interest.
fn input_has_ended() -> bool {
    match io::stdin().read(&mut [0; 256]) {
        Ok(n) => n == 0,
        Err(e) => !matches!(
            e.kind(),
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
        ),
    }
}

/// Puts the answer to a message behind what is to be sent.
fn answer(service: &mut Service, frames: &Message, now: Instant, out: &mut Vec<u8>) {
    let reply = match &frames[..] {
        [delimiter, request] if delimiter.is_empty() => service.handle(request, now),
        _ => service.refuse(
            "a request is an empty frame, which a REQ socket sends by itself, and one more",
        ),
    };
    put_frame_head(out, 0, true);
    put_frame_head(out, reply.encoded_len(), false);
    // Fails only where there is no room, and here there always is.
    let _ = reply.encode(out);
}

/// A listener's wish: 1 and what topics are to begin with, or 0 to hear no more of them.
fn subscribe(topics: &mut Vec<Vec<u8>>, frames: &Message) -> Result<()> {
    match &frames[..] {
        [wish] if wish.first() == Some(&1) && topics.len() < SUBSCRIPTIONS => {
            topics.push(wish[1..].to_vec());
            Ok(())
        }
        [wish] if wish.first() == Some(&0) => {
            if let Some(i) = topics.iter().position(|t| *t == wish[1..]) {
                topics.swap_remove(i);
            }
            Ok(())
        }
        _ => Err(Error::invalid("no subscription, or one too many")),
    }
}
