//! The listener's thread: every client on non-blocking sockets and one poll(2).
//!
//! Nothing here waits for a client. One turn of the loop gives each ready client a bounded amount
//! of work, so a turn is short whatever the clients do, and so is a shutdown.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::Shared;
use crate::side_channel::ListenOptions;
use crate::side_channel::net::{self, pollfd};

/// How much one client is sent, and how much of what it sent is thrown away, in one turn.
const SEND_BUDGET: usize = 256 << 10;
const DISCARD_BUDGET: usize = 64 << 10;

/// A client that sends more than this is cut off.
const DISCARD_LIMIT: usize = 1 << 20;

/// How many newcomers one turn takes in.
const ACCEPT_BUDGET: usize = 64;

/// How long a client is safe from being displaced by a newcomer.
const GRACE: Duration = Duration::from_millis(250);

/// What a client takes in this time says nothing about its rate: the sockets' buffers take it,
/// whether the client reads or not.
const SETTLE: Duration = Duration::from_millis(50);

/// How long to leave the queue alone when the system has no descriptor or memory to accept with.
const BACKOFF: Duration = Duration::from_millis(100);

pub(super) struct Server {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
    max_connections: usize,
    timeout: Duration,
    /// Oldest first.
    clients: Vec<Client>,
    /// Set while accepting fails.
    retry_at: Option<Instant>,
}

impl Server {
    pub(super) fn new(
        listener: TcpListener,
        address: SocketAddr,
        shared: Arc<Shared>,
        options: &ListenOptions,
    ) -> Self {
        Server {
            listener,
            address,
            shared,
            max_connections: options.max_connections,
            timeout: options.timeout,
            clients: Vec::new(),
            retry_at: None,
        }
    }

    /// Serves until `Shared::stop`.
    pub(super) fn run(mut self) {
        let mut fds = Vec::new();
        while !self.shared.stop.load(Ordering::Acquire) {
            self.turn(&mut fds);
        }
    }

    fn turn(&mut self, fds: &mut Vec<libc::pollfd>) {
        let now = Instant::now();
        self.clients.retain(|c| c.deadline > now);

        // A queue that is not to be taken from is left out (-1): it would be ready all the time.
        let closed_until = self.closed_until(now);
        let queue = closed_until.map_or(self.listener.as_raw_fd(), |_| -1);
        fds.clear();
        fds.push(pollfd(self.shared.waker.fd(), libc::POLLIN));
        fds.push(pollfd(queue, libc::POLLIN));
        fds.extend(self.clients.iter().map(Client::interest));

        let deadlines = self.clients.iter().map(|c| c.deadline);
        if let Err(e) = net::poll(fds, deadlines.chain(closed_until).min()) {
            // Out of memory, or the descriptor limit was lowered below what is open.
            log::warn!(
                "side channel on {}: cannot wait for {} clients, cutting them: {e}",
                self.address,
                self.clients.len()
            );
            self.clients.clear();
            thread::sleep(BACKOFF);
            return;
        }
        if fds[0].revents != 0 {
            self.shared.waker.clear();
        }
        let mut ready = fds[2..].iter().map(|fd| fd.revents != 0);
        self.clients
            .retain_mut(|c| !ready.next().unwrap_or(false) || c.advance());
        if fds[1].revents != 0 {
            self.accept();
        }
    }

    /// Until when newcomers are to wait in the kernel's queue; `None` when one can be taken now.
    fn closed_until(&self, now: Instant) -> Option<Instant> {
        if let Some(at) = self.retry_at.filter(|at| *at > now) {
            return Some(at);
        }
        if self.clients.len() < self.max_connections || self.to_displace(now).is_some() {
            return None;
        }
        // The answer may change when the next client comes of age; then it will be asked again.
        let of_age = self.clients.iter().map(|c| c.since + GRACE);
        of_age.filter(|at| *at > now).min()
    }

    /// The client that loses least when a newcomer takes its place, if there is one. The module's
    /// documentation has the rule.
    fn to_displace(&self, now: Instant) -> Option<usize> {
        if let Some(lingering) = self.clients.iter().position(Client::is_sent) {
            return Some(lingering);
        }
        let (i, slowest) = self
            .clients
            .iter()
            .enumerate()
            .filter(|(_, c)| c.is_of_age(now))
            .min_by(|(_, a), (_, b)| a.rate(now).total_cmp(&b.rate(now)))?;
        let youngest = self.clients.last()?;
        (slowest.will_be_late(now) || youngest.is_of_age(now)).then_some(i)
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPT_BUDGET {
            let now = Instant::now();
            if self.closed_until(now).is_some() {
                return;
            }
            match self.listener.accept() {
                Ok((stream, _)) => {
                    self.retry_at = None;
                    self.admit(stream, now);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if concerns_one_connection(&e) => {}
                Err(e) => return self.back_off(&e, now),
            }
        }
    }

    fn admit(&mut self, stream: TcpStream, now: Instant) {
        if self.clients.len() >= self.max_connections {
            if let Some(i) = self.to_displace(now) {
                self.clients.remove(i);
            }
        }
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let mut client = Client {
            stream,
            message: self.shared.message().clone(),
            sent: 0,
            settled: 0,
            discarded: 0,
            since: now,
            deadline: now + self.timeout,
        };
        // Most messages fit the socket's buffer, and are gone before the client is polled.
        if client.advance() {
            self.clients.push(client);
        }
    }

    /// Out of descriptors or memory. The queue stays ready, so without a pause this would spin.
    fn back_off(&mut self, e: &io::Error, now: Instant) {
        if self.retry_at.is_none() {
            log::warn!(
                "side channel on {}: cannot accept a client, trying again every {BACKOFF:?}: {e}",
                self.address
            );
        }
        self.retry_at = Some(now + BACKOFF);
        // Those that only linger hold descriptors that others can use.
        self.clients.retain(|c| !c.is_sent());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SAFETY: takes no pointers; the descriptor belongs to `listener`, which is still open.
        // Closing alone would leave the port taken for as long as a forked child holds a copy.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        self.shared.running.store(false, Ordering::Release);
    }
}

/// Whether accept(2) has reported the failure of the connection it took from the queue, rather
/// than a condition that stays.
fn concerns_one_connection(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(
            libc::EINTR
                | libc::ECONNABORTED
                | libc::EPERM
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EOPNOTSUPP
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENONET
        )
    )
}

struct Client {
    stream: TcpStream,
    message: Arc<Vec<u8>>,
    sent: usize,
    /// What had been sent at [`SETTLE`].
    settled: usize,
    discarded: usize,
    since: Instant,
    deadline: Instant,
}

impl Client {
    fn is_sent(&self) -> bool {
        self.sent == self.message.len()
    }

    /// What to wait for: room for the message, then the client's end of the stream.
    fn interest(&self) -> libc::pollfd {
        let events = if self.is_sent() {
            libc::POLLIN
        } else {
            libc::POLLOUT
        };
        pollfd(self.stream.as_raw_fd(), events)
    }

    fn is_of_age(&self, now: Instant) -> bool {
        now >= self.since + GRACE
    }

    /// Bytes per second since [`SETTLE`]; for clients that are of age.
    fn rate(&self, now: Instant) -> f64 {
        let time = now.saturating_duration_since(self.since + SETTLE);
        (self.sent - self.settled) as f64 / time.as_secs_f64()
    }

    /// Whether, at its rate, the client will not have the whole message at its deadline.
    fn will_be_late(&self, now: Instant) -> bool {
        let left = (self.message.len() - self.sent) as f64;
        let time = self.deadline.saturating_duration_since(now);
        self.rate(now) * time.as_secs_f64() < left
    }

    /// Does what can be done without waiting. False when the connection is to be closed.
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

    fn send(&mut self) -> bool {
        let stop = self.message.len().min(self.sent + SEND_BUDGET);
        while self.sent < stop {
            // `write` on a TcpStream is send(2) with MSG_NOSIGNAL: a client that has gone is an
            // error here, not a SIGPIPE for the host program.
            match self.stream.write(&self.message[self.sent..stop]) {
                Ok(0) => return false,
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        if self.since.elapsed() < SETTLE {
            self.settled = self.sent;
        }
        true
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

impl Drop for Client {
    fn drop(&mut self) {
        // Ends the connection even where a forked child holds a copy of the descriptor. It fails
        // when the client has gone already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
