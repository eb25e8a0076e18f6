//! The thread of a listener, whatever it speaks: every client on non-blocking sockets and one poll(2).
//!
//! Nothing here waits for a client. One turn of the loop gives each ready client a bounded amount
//! of work, so a turn is short whatever the clients do, and so is a shutdown.
//!
//! # More clients than `max_connections`
//!
//! A newcomer takes the place of the client that loses least by it:
//! 1. the oldest of those that lose nothing ([`Client::is_spare`]); else
//! 2. the slowest of those that have had 250 ms, when at its rate it would not be done by its
//!    deadline anyway, or when every client has had 250 ms.
//!
//! In the remaining case newcomers wait in the kernel's queue, for at most 250 ms, until the youngest
//! has had its time. Silent and crawling clients cannot shut out the others in either case.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::ListenOptions;
use super::net::{self, pollfd};
use super::service::Control;

/// How many newcomers one turn takes in.
const ACCEPT_BUDGET: usize = 64;

/// How long a client is safe from being displaced by a newcomer.
pub(super) const GRACE: Duration = Duration::from_millis(250);

/// How long to leave the queue alone when the system has no descriptor or memory to accept with.
const BACKOFF: Duration = Duration::from_millis(100);

/// What a listener speaks: makes a client of each connection.
pub(super) trait Protocol: Send + 'static {
    type Client: Client + Send;

    fn admit(&self, stream: TcpStream, from: SocketAddr, now: Instant) -> Self::Client;
}

/// One connection that is being served.
pub(super) trait Client {
    fn stream(&self) -> &TcpStream;

    /// What to wait for.
    fn events(&self) -> libc::c_short;

    /// When it is cut off.
    fn deadline(&self) -> Option<Instant>;

    /// Since when it has been served what it is served now.
    fn since(&self) -> Instant;

    /// Does what can be done without waiting. False when the connection is to be closed.
    fn advance(&mut self) -> bool;

    /// Whether it has all that it asked for.
    fn is_spare(&self, now: Instant) -> bool;

    /// Bytes per second that it takes; for clients that are of age.
    fn rate(&self, now: Instant) -> f64;

    /// Whether, at its rate, the client will not have everything at its deadline.
    fn will_be_late(&self, now: Instant) -> bool;

    /// Whether a newcomer may take its place.
    fn is_of_age(&self, now: Instant) -> bool {
        now >= self.since() + GRACE
    }
}

pub(super) struct Server<P: Protocol> {
    listener: TcpListener,
    address: SocketAddr,
    control: Arc<Control>,
    protocol: P,
    max_connections: usize,
    /// Oldest first.
    clients: Vec<P::Client>,
    /// Set while accepting fails.
    retry_at: Option<Instant>,
}

impl<P: Protocol> Server<P> {
    pub(super) fn new(
        listener: TcpListener,
        address: SocketAddr,
        control: Arc<Control>,
        options: &ListenOptions,
        protocol: P,
    ) -> Self {
        Server {
            listener,
            address,
            control,
            protocol,
            max_connections: options.max_connections,
            clients: Vec::new(),
            retry_at: None,
        }
    }

    /// Serves until `Control::stop`.
    pub(super) fn run(mut self) {
        let mut fds = Vec::new();
        while !self.control.stop.load(Ordering::Acquire) {
            self.turn(&mut fds);
        }
    }

    fn turn(&mut self, fds: &mut Vec<libc::pollfd>) {
        let now = Instant::now();
        self.clients
            .retain(|c| c.deadline().is_none_or(|at| at > now));

        // A queue that is not to be taken from is left out (-1): it would be ready all the time.
        let closed_until = self.closed_until(now);
        let queue = closed_until.map_or(self.listener.as_raw_fd(), |_| -1);
        fds.clear();
        fds.push(pollfd(self.control.waker.as_raw_fd(), libc::POLLIN));
        fds.push(pollfd(queue, libc::POLLIN));
        fds.extend(self.clients.iter().map(interest));

        let deadlines = self.clients.iter().filter_map(Client::deadline);
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
            self.control.waker.clear();
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
        let of_age = self.clients.iter().map(|c| c.since() + GRACE);
        of_age.filter(|at| *at > now).min()
    }

    /// The client that loses least when a newcomer takes its place, if there is one. The module's
    /// documentation has the rule.
    fn to_displace(&self, now: Instant) -> Option<usize> {
        if let Some(lingering) = self.clients.iter().position(|c| c.is_spare(now)) {
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
                Ok((stream, from)) => {
                    self.retry_at = None;
                    self.admit(stream, from, now);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if concerns_one_connection(&e) => {}
                Err(e) => return self.back_off(&e, now),
            }
        }
    }

    fn admit(&mut self, stream: TcpStream, from: SocketAddr, now: Instant) {
        if self.clients.len() >= self.max_connections {
            if let Some(i) = self.to_displace(now) {
                self.clients.remove(i);
            }
        }
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let mut client = self.protocol.admit(stream, from, now);
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
        self.clients.retain(|c| !c.is_spare(now));
    }
}

impl<P: Protocol> Drop for Server<P> {
    fn drop(&mut self) {
        // SAFETY: takes no pointers; the descriptor belongs to `listener`, which is still open.
        // Closing alone would leave the port taken for as long as a forked child holds a copy.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        self.control.running.store(false, Ordering::Release);
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

fn interest(client: &impl Client) -> libc::pollfd {
    pollfd(client.stream().as_raw_fd(), client.events())
}
