//! Answering peers: accepts connections, takes messages, notices who is gone.
//!
//! All of it happens in [`Service::turn`], which sleeps in poll(2). A thread of the agent does
//! nothing but take turns; without one (`Progress::Caller`) the calls of the agent take them.
//!
//! A connection that does anything it should not is dropped with a line in the log, and so costs the
//! others nothing: every read is bounded, a frame is refused by its length before it is stored, a
//! caller that says nothing is dropped after [`HELLO_LIMIT`], and of those that have not introduced
//! themselves only [`MAX_STRANGERS`] are kept.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::frame::{Frame, MAX_FRAME, MAX_HANDSHAKE, first};
use super::host::{HostId, Presence, Process};
use super::metadata::VERSION;
use super::peer::{Link, Peer};
use super::socket::{self, Credentials, poll, watch};
use crate::error::Status;
use crate::event::Event;
use crate::sync::lock;
use crate::transport::Notification;

/// How long a caller may take to say who it is.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// Callers that have not said yet who they are; the oldest makes room.
const MAX_STRANGERS: usize = 64;
/// Connections of peers.
const MAX_CALLERS: usize = 4096;
/// What is read of one connection before the others have their turn.
const MAX_READ: usize = 1 << 20;
/// How long no connection is accepted after the process has run out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the service shares with the rest of the agent.
pub(super) struct State {
    pub presence: Arc<Presence>,
    pub host: HostId,
    /// This agent as its own peer.
    pub own: Arc<Peer>,
    pub peers: Mutex<HashMap<String, Arc<Peer>>>,
    /// Rung when the service should look around.
    pub bell: Arc<Event>,
    pub closed: AtomicBool,
    /// The process that made the agent.
    pub process: u32,
    /// Whether a thread takes the turns.
    pub threaded: bool,
    /// `None` once closed.
    pub service: Mutex<Option<Service>>,
}

/// The listening socket and the connections of those who called.
pub(super) struct Service {
    listener: UnixListener,
    callers: Vec<Caller>,
    accept_after: Option<Instant>,
    buffer: Vec<u8>,
}

/// One connection that a peer has made.
struct Caller {
    fd: OwnedFd,
    who: Credentials,
    /// Its agent's name, once it has introduced itself.
    name: Option<String>,
    since: Instant,
    received: Vec<u8>,
    /// Whether a complete message waits for room in the inbox.
    held_up: bool,
}

/// Why a connection ends: quietly, or with a line in the log.
enum End {
    Quiet,
    Fault(String),
}

impl State {
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether this is the process that made the agent, and not one forked from it. In a forked one
    /// locks may be held by threads that it does not have, and the sockets are its parent's.
    pub fn is_at_home(&self) -> bool {
        std::process::id() == self.process
    }

    /// Takes a turn unless somebody else is at it. Returns whether it did.
    pub fn drive(&self, limit: Duration) -> bool {
        if self.threaded {
            return false;
        }
        match self.service.try_lock() {
            Ok(mut service) => {
                if let Some(service) = service.as_mut() {
                    service.turn(self, Some(limit));
                }
                true
            }
            Err(_) => false,
        }
    }

    /// What the thread does until the agent is closed.
    pub fn serve(&self) {
        while !self.is_closed() {
            match lock(&self.service).as_mut() {
                Some(service) => service.turn(self, None),
                None => return,
            }
        }
    }

    fn links(&self) -> Vec<(Arc<Peer>, Arc<Link>)> {
        lock(&self.peers)
            .values()
            .filter_map(|peer| Some((peer.clone(), peer.link()?)))
            .collect()
    }
}

impl Service {
    pub fn new(listener: UnixListener) -> Service {
        Service {
            listener,
            callers: Vec::new(),
            accept_after: None,
            buffer: vec![0; 64 << 10],
        }
    }

    /// Sleeps until something happens, at most `limit`, and deals with it.
    fn turn(&mut self, state: &State, limit: Option<Duration>) {
        self.resume(state);
        let now = Instant::now();
        if self.accept_after.is_some_and(|after| now >= after) {
            self.accept_after = None;
        }
        let links = state.links();
        let mut fds = self.watched(state, &links);
        if let Err(e) = poll(&mut fds, self.patience(now, limit)) {
            log::warn!("local transport: waiting for peers: {e}");
            std::thread::sleep(Duration::from_millis(10));
            return;
        }
        let ready = |i: usize| fds[i].revents;
        if ready(0) != 0 {
            state.bell.clear();
        }
        let (callers, of_links) = (2..2 + self.callers.len(), 2 + self.callers.len());
        for (i, (peer, link)) in links.iter().enumerate() {
            watch_over(
                peer,
                link,
                ready(of_links + 2 * i),
                ready(of_links + 2 * i + 1),
            );
        }
        let heard: Vec<bool> = callers.map(|i| ready(i) != 0).collect();
        self.hear(state, &heard);
        if ready(1) != 0 {
            self.accept();
        }
    }

    /// Goes on with messages that found the inbox full.
    fn resume(&mut self, state: &State) {
        if self.callers.iter().any(|c| c.held_up) && state.presence.inbox.has_room() {
            let none = vec![false; self.callers.len()];
            self.callers.iter_mut().for_each(|c| c.held_up = false);
            self.hear(state, &none);
        }
    }

    /// Everything to wait for: bell, listener, callers, and two entries per link.
    fn watched(&self, state: &State, links: &[(Arc<Peer>, Arc<Link>)]) -> Vec<libc::pollfd> {
        let mut fds = Vec::with_capacity(2 + self.callers.len() + 2 * links.len());
        fds.push(watch(state.bell.as_raw_fd(), libc::POLLIN));
        let listener = match self.accept_after {
            None => self.listener.as_raw_fd(),
            Some(_) => -1,
        };
        fds.push(watch(listener, libc::POLLIN));
        for caller in &self.callers {
            // One that is held up is left alone altogether: even without asking for events, poll
            // would report its hanging up again and again.
            let fd = if caller.held_up {
                -1
            } else {
                caller.fd.as_raw_fd()
            };
            fds.push(watch(fd, libc::POLLIN));
        }
        for (_, link) in links {
            let out = if link.has_pending() { libc::POLLOUT } else { 0 };
            fds.push(watch(link.raw(), libc::POLLIN | out));
            fds.push(watch(link.pidfd_raw(), libc::POLLIN));
        }
        fds
    }

    /// How long to sleep: until the limit, or until somebody's time is over.
    fn patience(&self, now: Instant, limit: Option<Duration>) -> Option<Duration> {
        let strangers = self.callers.iter().filter(|c| c.name.is_none());
        let ends = strangers.map(|c| c.since + HELLO_LIMIT);
        let soonest = ends.chain(self.accept_after).min();
        let soonest = soonest.map(|at| at.saturating_duration_since(now));
        [limit, soonest].into_iter().flatten().min()
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream.into()),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(e) => match e.raw_os_error() {
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => {
                        if self.accept_after.is_none() {
                            log::warn!("local transport: a peer has to wait: {e}");
                        }
                        self.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
                        return;
                    }
                    // The peer has given up already, or a signal came.
                    _ => continue,
                },
            }
        }
    }

    /// Takes a new connection in, if its user may call.
    fn admit(&mut self, fd: OwnedFd) {
        let Ok(who) = socket::credentials(&fd) else {
            return;
        };
        let me = socket::effective_uid();
        if who.uid != me && who.uid != 0 {
            let reason = format!("it runs as user {me} and serves that user and root only");
            refuse(&fd, Status::PermissionDenied, &reason);
            log::warn!(
                "local transport: process {} of user {} was refused",
                who.pid,
                who.uid
            );
            return;
        }
        if self.callers.len() >= MAX_CALLERS {
            let reason = format!("it has {MAX_CALLERS} connections already");
            refuse(&fd, Status::ResourceExhausted, &reason);
            return;
        }
        let stranger = |c: &Caller| c.name.is_none();
        if self.callers.iter().filter(|c| stranger(c)).count() >= MAX_STRANGERS {
            // They are in the order of their arrival.
            if let Some(oldest) = self.callers.iter().position(stranger) {
                self.callers
                    .remove(oldest)
                    .fault("it did not say who it is, and others wait");
            }
        }
        self.callers.push(Caller {
            fd,
            who,
            name: None,
            since: Instant::now(),
            received: Vec::new(),
            held_up: false,
        });
    }

    /// Listens to those callers that are ready, and lets go of those that are done.
    fn hear(&mut self, state: &State, ready: &[bool]) {
        let now = Instant::now();
        let buffer = &mut self.buffer;
        let mut ready = ready.iter();
        self.callers.retain_mut(|caller| {
            let ready = ready.next().copied().unwrap_or(false);
            let mut end = caller.hear(state, ready, buffer).err();
            if end.is_none() && caller.name.is_none() && now >= caller.since + HELLO_LIMIT {
                end = Some(End::Fault("it did not say who it is".to_string()));
            }
            match end {
                None => true,
                Some(End::Quiet) => {
                    caller.leave();
                    false
                }
                Some(End::Fault(why)) => {
                    caller.fault(&why);
                    false
                }
            }
        });
    }

    /// Ends all connections, so that peers notice even when a forked child has them open too.
    pub fn end(&mut self) {
        for caller in &mut self.callers {
            caller.leave();
        }
        self.callers.clear();
    }
}

impl Caller {
    /// Reads what there is and deals with every complete frame.
    fn hear(&mut self, state: &State, ready: bool, buffer: &mut [u8]) -> Result<(), End> {
        let mut budget = MAX_READ;
        let mut more = ready;
        while more && budget > 0 {
            match socket::receive(&self.fd, buffer) {
                Ok(0) => {
                    self.digest(state)?;
                    // What is held up is taken later; the end is seen again then.
                    return if self.held_up {
                        Ok(())
                    } else {
                        Err(End::Quiet)
                    };
                }
                Ok(n) => {
                    self.received.extend_from_slice(&buffer[..n]);
                    budget = budget.saturating_sub(n);
                    more = n == buffer.len();
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(_) => return Err(End::Quiet),
            }
            // A length is refused as soon as it is known, however much else is on its way.
            self.digest(state)?;
            if self.held_up {
                return Ok(());
            }
        }
        self.digest(state)
    }

    fn digest(&mut self, state: &State) -> Result<(), End> {
        let received = std::mem::take(&mut self.received);
        let mut used = 0;
        let result = loop {
            if self.name.is_some() && !state.presence.inbox.has_room() {
                let more = first(&received[used..], MAX_FRAME);
                self.held_up = matches!(more, Ok(Some(_)));
                break Ok(());
            }
            let longest = match self.name {
                Some(_) => MAX_FRAME,
                None => MAX_HANDSHAKE,
            };
            match first(&received[used..], longest) {
                Ok(None) => break Ok(()),
                Ok(Some((frame, len))) => {
                    used += len;
                    if let Err(end) = self.take(state, frame) {
                        break Err(end);
                    }
                }
                Err(bad) => break Err(End::Fault(format!("it sent {bad}"))),
            }
        };
        self.received = received;
        self.received.drain(..used);
        if self.received.is_empty() {
            // One long message should not hold its memory for as long as the connection lasts.
            self.received.shrink_to(MAX_READ);
        }
        result
    }

    fn take(&mut self, state: &State, frame: Frame<'_>) -> Result<(), End> {
        match (frame, &self.name) {
            (
                Frame::Hello {
                    version,
                    knock,
                    name,
                },
                None,
            ) => self.welcome(state, version, &knock, name),
            (Frame::Notification(payload), Some(name)) => {
                state.presence.inbox.deliver(Notification {
                    from: name.clone(),
                    payload: payload.to_vec(),
                });
                Ok(())
            }
            _ => Err(End::Fault("it sent a frame out of turn".to_string())),
        }
    }

    fn welcome(
        &mut self,
        state: &State,
        version: u16,
        knock: &[u8; 16],
        name: &str,
    ) -> Result<(), End> {
        if version != VERSION {
            let why = format!("it speaks version {version} of the protocol, here it is {VERSION}");
            refuse(&self.fd, Status::PeerIncompatible, &why);
            return Err(End::Fault(why));
        }
        if *knock != state.presence.knock {
            let why = "the caller does not hold its metadata";
            refuse(&self.fd, Status::PeerIncompatible, why);
            return Err(End::Fault(why.to_string()));
        }
        // Before the answer: the caller tries to read as soon as it has it.
        lock(&Process::current().tracers).admit(self.who.pid);
        self.name = Some(name.to_string());
        let welcome = Frame::Welcome {
            answer: *state.presence.answer,
            address: state.presence.answer.as_ptr() as u64,
        }
        .encode();
        // The socket is fresh, so there is room for these few bytes.
        match socket::send(&self.fd, &welcome) {
            Ok(n) if n == welcome.len() => Ok(()),
            _ => Err(End::Quiet),
        }
    }

    fn leave(&mut self) {
        socket::shutdown(&self.fd);
        if self.name.take().is_some() {
            lock(&Process::current().tracers).dismiss(self.who.pid);
        }
    }

    fn fault(&mut self, why: &str) {
        log::warn!(
            "local transport: dropped a connection of process {}: {why}",
            self.who.pid
        );
        self.leave();
    }
}

/// Tells a caller why it is turned away. It may not listen; that is its business.
fn refuse(fd: &OwnedFd, status: Status, reason: &str) {
    let refusal = Frame::Refused {
        status: status as i32,
        reason,
    };
    let _ = socket::send(fd, &refusal.encode());
}

/// Deals with what happened on the connection to a peer.
fn watch_over(peer: &Peer, link: &Link, stream: libc::c_short, process: libc::c_short) {
    if process != 0 {
        peer.lose("its process has ended");
        return;
    }
    if stream & libc::POLLOUT != 0 && link.flush().is_err() {
        peer.lose("it ended the connection");
        return;
    }
    if stream & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) != 0 {
        if let Some(why) = link.listen() {
            peer.lose(why);
        }
    }
}
