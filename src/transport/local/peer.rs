//! A remote agent as this one knows it, and the connection to it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::frame::{Frame, MAX_HANDSHAKE, first};
use super::host::{Presence, Token};
use super::metadata::{Secrets, VERSION};
use super::ranges::Span;
use super::registry::{Claim, Registry, Touch};
use super::runs::Run;
use super::socket::{self, Credentials, poll, watch};
use super::vm;
use crate::error::{Error, Result, Status, bail};
use crate::sync::lock;
use crate::transport::{Notification, Op};

/// How long connecting may take, from the first packet to the proof that memory can be read.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long a message may wait for the receiver to take earlier ones.
const SEND_LIMIT: Duration = Duration::from_secs(1);
/// Messages that a slow receiver has not taken are kept up to this size before senders wait.
const MAX_PENDING: usize = 1 << 20;

/// A remote agent.
pub(super) struct Peer {
    pub name: String,
    pub instance: Token,
    /// The ranges that its metadata names.
    pub known: Arc<Registry>,
    pub reach: Reach,
    lost: AtomicBool,
    why: Mutex<Option<Error>>,
}

/// How to get at a peer.
pub(super) enum Reach {
    /// It is in this process.
    Here(Arc<Presence>),
    /// It is in another one.
    There(Outbound),
}

/// The way to a peer in another process.
pub(super) struct Outbound {
    secrets: Secrets,
    /// Held while connecting, so that several threads make one connection.
    connecting: Mutex<()>,
    link: Mutex<Option<Arc<Link>>>,
}

/// A connection that has been proved by both ends.
pub(super) struct Link {
    fd: OwnedFd,
    pub pid: u32,
    pidfd: Option<OwnedFd>,
    outbox: Mutex<Outbox>,
    /// Whether the outbox holds something, for a look without its lock.
    pending: AtomicBool,
}

/// Bytes that the socket has not taken yet.
#[derive(Default)]
struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

/// What connecting needs of the agent that connects.
pub(super) struct Caller<'a> {
    pub name: &'a str,
    /// Called while waiting: serves the agent's own peers where no thread does, and answers how long
    /// to sleep at most, or why to give up.
    pub meanwhile: &'a dyn Fn() -> Result<Duration>,
}

impl Peer {
    pub fn new(name: String, instance: Token, known: Arc<Registry>, reach: Reach) -> Peer {
        Peer {
            name,
            instance,
            known,
            reach,
            lost: AtomicBool::new(false),
            why: Mutex::default(),
        }
    }

    /// A peer in another process, not connected yet.
    pub fn there(name: String, instance: Token, known: Arc<Registry>, secrets: Secrets) -> Peer {
        let outbound = Outbound {
            secrets,
            connecting: Mutex::default(),
            link: Mutex::default(),
        };
        Peer::new(name, instance, known, Reach::There(outbound))
    }

    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// An error once the peer is lost.
    pub fn check(&self) -> Result<()> {
        if !self.is_lost() {
            return Ok(());
        }
        let why = lock(&self.why).clone();
        Err(why.unwrap_or_else(|| self.lost_because("the connection has ended")))
    }

    /// Marks the peer as lost for good and ends the connection. The first reason stays.
    pub fn lose(&self, why: &str) -> Error {
        let error = lock(&self.why)
            .get_or_insert_with(|| self.lost_because(why))
            .clone();
        self.lost.store(true, Ordering::Release);
        if let Reach::There(outbound) = &self.reach {
            if let Some(link) = lock(&outbound.link).take() {
                socket::shutdown(&link.fd);
            }
        }
        error
    }

    fn lost_because(&self, why: &str) -> Error {
        Error::new(
            Status::PeerLost,
            format!(
                "agent \"{}\" is lost ({why}); load its metadata again to go on with it",
                self.name
            ),
        )
    }

    /// The connection, if there is one.
    pub fn link(&self) -> Option<Arc<Link>> {
        match &self.reach {
            Reach::Here(_) => None,
            Reach::There(outbound) => lock(&outbound.link).clone(),
        }
    }

    /// Connects if need be; `None` for a peer in this process. The flag says that it is new.
    pub fn connect(&self, caller: &Caller<'_>) -> Result<(Option<Arc<Link>>, bool)> {
        self.check()?;
        let Reach::There(outbound) = &self.reach else {
            return Ok((None, false));
        };
        if let Some(link) = lock(&outbound.link).clone() {
            return Ok((Some(link), false));
        }
        let _one_at_a_time = lock(&outbound.connecting);
        if let Some(link) = lock(&outbound.link).clone() {
            return Ok((Some(link), false));
        }
        self.check()?;
        let link = Arc::new(self.open(&outbound.secrets, caller)?);
        *lock(&outbound.link) = Some(link.clone());
        // Somebody may have given the peer up meanwhile, and found no link to end.
        if self.is_lost() {
            lock(&outbound.link).take();
            self.check()?;
        }
        Ok((Some(link), true))
    }

    /// Connects and proves both ends.
    fn open(&self, secrets: &Secrets, caller: &Caller<'_>) -> Result<Link> {
        let deadline = Instant::now() + CONNECT_LIMIT;
        let fd =
            socket::connect(&self.instance, CONNECT_LIMIT).map_err(|e| match e.raw_os_error() {
                Some(libc::ECONNREFUSED | libc::ENOENT) => {
                    self.lose("nobody listens on its socket any more")
                }
                _ => Error::from_io(format!("connecting to agent \"{}\"", self.name), &e),
            })?;
        let owner = self.identify(&fd)?;
        let pidfd = socket::peer_pidfd(&fd, owner.pid).map_err(|e| match e.raw_os_error() {
            Some(libc::ESRCH) => self.lose("its process has ended"),
            _ => Error::from_io(format!("watching process {}", owner.pid), &e),
        })?;
        let link = Link {
            fd,
            pid: owner.pid,
            pidfd,
            outbox: Mutex::default(),
            pending: AtomicBool::new(false),
        };
        let hello = Frame::Hello {
            version: VERSION,
            knock: secrets.knock,
            name: caller.name,
        };
        // A refusal may have come, and the connection been ended, before this: what can be read tells.
        let _ = link.send(hello.encode(), Duration::ZERO);
        let address = self.await_welcome(&link, secrets, caller, deadline)?;
        self.probe(&link, secrets, address)?;
        Ok(link)
    }

    /// Who listens at the other end, if it is somebody to talk to.
    fn identify(&self, fd: &OwnedFd) -> Result<Credentials> {
        let owner = socket::credentials(fd)
            .map_err(|e| Error::from_io(format!("asking who agent \"{}\" is", self.name), &e))?;
        let me = socket::effective_uid();
        if owner.uid != me && owner.uid != 0 && me != 0 {
            bail!(
                Status::PermissionDenied,
                "agent \"{}\" runs as user {} and this process as user {me}; the local transport \
                 works between processes of one user",
                self.name,
                owner.uid
            );
        }
        if owner.pid == 0 {
            bail!(
                Status::PeerIncompatible,
                "agent \"{}\" runs in a PID namespace that this process cannot see; run both in one \
                 (docker: --pid=container:..., Kubernetes: shareProcessNamespace)",
                self.name
            );
        }
        Ok(owner)
    }

    /// Waits for the answer to the hello; returns where the owner keeps it in memory.
    fn await_welcome(
        &self,
        link: &Link,
        secrets: &Secrets,
        caller: &Caller<'_>,
        deadline: Instant,
    ) -> Result<u64> {
        let mut received = Vec::new();
        let mut buffer = [0u8; 512];
        loop {
            match first(&received, MAX_HANDSHAKE) {
                Ok(Some((Frame::Welcome { answer, address }, _))) => {
                    if answer != secrets.answer {
                        bail!(
                            Status::PeerIncompatible,
                            "the process that answers for agent \"{}\" is not the one that made its \
                             metadata",
                            self.name
                        );
                    }
                    return Ok(address);
                }
                Ok(Some((Frame::Refused { status, reason }, _))) => {
                    let status = Status::from_code(status)
                        .filter(|status| *status != Status::Ok)
                        .unwrap_or(Status::PeerIncompatible);
                    bail!(status, "agent \"{}\" refuses: {reason}", self.name);
                }
                Ok(None) => {}
                Ok(Some(_)) => bail!(
                    Status::PeerIncompatible,
                    "agent \"{}\" did not answer the handshake as it should",
                    self.name
                ),
                Err(bad) => bail!(
                    Status::PeerIncompatible,
                    "agent \"{}\" answered with {bad}",
                    self.name
                ),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!(
                    Status::Timeout,
                    "agent \"{}\" (process {}) did not answer within {} s; it may be stopped, or \
                     not be making calls while it has no progress thread",
                    self.name,
                    link.pid,
                    CONNECT_LIMIT.as_secs()
                );
            }
            let slice = (caller.meanwhile)()?.min(left);
            if link.ended(Some(slice)) {
                return Err(self.lose("its process has ended"));
            }
            match socket::receive(&link.fd, &mut buffer) {
                Ok(0) => return Err(self.lose("it ended the connection")),
                Ok(n) => received.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(self.lose("it ended the connection")),
            }
        }
    }

    /// Reads the answer once more, from the owner's memory. That shows that the process behind the
    /// socket is the one whose memory will be touched, and it shows now, not in the first transfer,
    /// whether the kernel permits it.
    fn probe(&self, link: &Link, secrets: &Secrets, address: u64) -> Result<()> {
        let mut seen: Token = [0; 16];
        let run = Run {
            local: seen.as_mut_ptr() as u64,
            remote: address,
            len: seen.len() as u64,
        };
        if address.checked_add(run.len).is_none() {
            bail!(
                Status::PeerIncompatible,
                "agent \"{}\" named an impossible address",
                self.name
            );
        }
        // SAFETY: `seen` is a live array of that length, and nothing else uses it.
        let copied = unsafe { vm::copy(Op::Read, link.pid, &[run], &mut vm::Scratch::default()) };
        copied.map_err(
            |stop| match vm::explain(stop, Op::Read, &self.called(link)) {
                error if error.status() == Status::PeerLost => self.lose("its process has ended"),
                error => error,
            },
        )?;
        if seen != secrets.answer {
            bail!(
                Status::PeerIncompatible,
                "process {} answers for agent \"{}\", but its memory is not that agent's",
                link.pid,
                self.name
            );
        }
        Ok(())
    }

    /// Agent and process, for messages.
    pub fn called(&self, link: &Link) -> String {
        format!("agent \"{}\" (process {})", self.name, link.pid)
    }

    /// Sends a message over `link`, which is `None` for a peer in this process. The flag says that a
    /// part of it waits for the service.
    pub fn send(&self, link: Option<&Link>, from: &str, payload: &[u8]) -> Result<bool> {
        match (&self.reach, link) {
            (Reach::Here(presence), _) => {
                let message = Notification {
                    from: from.to_string(),
                    payload: payload.to_vec(),
                };
                presence
                    .inbox
                    .deliver_within(message, SEND_LIMIT)
                    .map_err(|e| e.context(format!("sending to agent \"{}\"", self.name)))?;
                Ok(false)
            }
            (Reach::There(_), Some(link)) => {
                match link.send(Frame::Notification(payload).encode(), SEND_LIMIT) {
                    Ok(waiting) => Ok(waiting),
                    Err(e) if e.status() == Status::Busy => {
                        Err(e.context(format!("sending to {}", self.called(link))))
                    }
                    Err(_) => Err(self.lose("it ended the connection")),
                }
            }
            (Reach::There(_), None) => Err(self.lost_because("there is no connection")),
        }
    }

    /// Claims remote ranges: they must be in the metadata, and, for a peer in this process, must be
    /// registered there at this moment.
    pub fn claim<I: Iterator<Item = Span>>(
        &self,
        touch: Touch,
        spans: impl Fn() -> I,
    ) -> Result<Vec<Claim>> {
        let mut claims = vec![self.known.claim(touch, spans())?];
        if let Reach::Here(presence) = &self.reach {
            if !claims[0].is_of(&presence.registry) {
                claims.push(presence.registry.claim(touch, spans())?);
            }
        }
        Ok(claims)
    }
}

impl Link {
    /// Whether the process at the other end has ended or the connection has; waits at most `limit`
    /// for that or for something to read.
    fn ended(&self, limit: Option<Duration>) -> bool {
        let events = if limit.is_some() { libc::POLLIN } else { 0 };
        let mut fds = [
            watch(self.fd.as_raw_fd(), events),
            watch(self.pidfd_raw(), libc::POLLIN),
        ];
        match poll(&mut fds, limit.or(Some(Duration::ZERO))) {
            // What came before the end may still be read, so hanging up alone does not count when
            // there is something to read.
            Ok(n) if n > 0 => {
                let readable = fds[0].revents & libc::POLLIN != 0;
                let hung_up = fds[0].revents & (libc::POLLHUP | libc::POLLERR) != 0;
                !readable && (hung_up || fds[1].revents != 0)
            }
            _ => false,
        }
    }

    /// Whether the peer is certainly gone. Costs a system call of well under a microsecond, and is
    /// asked around every batch: the kernel addresses processes by number, and a number can be given
    /// to another process as soon as this one is gone.
    pub fn is_dead(&self) -> bool {
        self.ended(None)
    }

    pub fn raw(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// Negative when there is none, which poll(2) passes over.
    pub fn pidfd_raw(&self) -> i32 {
        self.pidfd.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    pub fn has_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// Takes a frame for sending, whole or not at all: an error of `Busy` means that none of it was
    /// taken. The flag says that a part of it is left for [`Link::flush`].
    fn send(&self, frame: Vec<u8>, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        let mut outbox = lock(&self.outbox);
        loop {
            outbox.drain(&self.fd)?;
            if outbox.waiting() == 0 || outbox.waiting() + frame.len() <= MAX_PENDING {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!(
                    Status::Busy,
                    "the receiver has not taken {} bytes of earlier messages",
                    outbox.waiting()
                );
            }
            let mut fds = [watch(self.raw(), libc::POLLOUT)];
            // A failure shows in the next attempt to send.
            let _ = poll(&mut fds, Some(left));
        }
        outbox.append(frame);
        outbox.drain(&self.fd)?;
        let waiting = outbox.waiting() > 0;
        self.pending.store(waiting, Ordering::Release);
        Ok(waiting)
    }

    /// Sends what is left, as far as the socket takes it. Does not wait, not even for another thread
    /// that is sending: that one goes on with what is left.
    pub fn flush(&self) -> Result<()> {
        if let Ok(mut outbox) = self.outbox.try_lock() {
            outbox.drain(&self.fd)?;
            self.pending.store(outbox.waiting() > 0, Ordering::Release);
        }
        Ok(())
    }

    /// Gives what is left until `deadline` to leave, and ends the connection.
    pub fn end(&self, deadline: Instant) {
        while self.has_pending() && self.flush().is_ok() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let _ = poll(&mut [watch(self.raw(), libc::POLLOUT)], Some(left));
        }
        socket::shutdown(&self.fd);
    }

    /// Reads what the owner sent although it has nothing to say: the end of the stream, mostly.
    pub fn listen(&self) -> Option<&'static str> {
        let mut buffer = [0u8; 16];
        match socket::receive(&self.fd, &mut buffer) {
            Ok(0) => Some("it ended the connection"),
            Ok(_) => Some("it broke the protocol"),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => None,
            Err(_) => Some("it ended the connection"),
        }
    }
}

impl Outbox {
    fn waiting(&self) -> usize {
        self.bytes.len() - self.sent
    }

    fn append(&mut self, frame: Vec<u8>) {
        if self.waiting() == 0 {
            self.bytes = frame;
        } else {
            self.bytes.drain(..self.sent);
            self.bytes.extend_from_slice(&frame);
        }
        self.sent = 0;
    }

    fn drain(&mut self, fd: &OwnedFd) -> Result<()> {
        while self.sent < self.bytes.len() {
            match socket::send(fd, &self.bytes[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(Error::from_io("sending", &e)),
            }
        }
        *self = Outbox::default();
        Ok(())
    }
}
