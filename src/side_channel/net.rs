//! What the protocols of this room share: deadlines, waiting, names and threads.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::error::{Result, Status, bail};
use crate::threads::spawn;

/// A point in time and how long it was away when it was set, for messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    pub(super) at: Instant,
    pub(super) allowed: Duration,
}

impl Deadline {
    /// `allowed` has been checked against `MAX_TIMEOUT`, so the sum cannot overflow.
    pub(super) fn after(allowed: Duration) -> Self {
        Deadline {
            at: Instant::now() + allowed,
            allowed,
        }
    }

    pub(super) fn remaining(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }
}

/// A host and a port for messages, in the form that can be pasted: IPv6 gets its brackets.
pub(super) struct Endpoint<'a>(pub(super) &'a str, pub(super) u16);

impl fmt::Display for Endpoint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = bare(self.0);
        if host.contains(':') {
            write!(f, "[{host}]:{}", self.1)
        } else {
            write!(f, "{host}:{}", self.1)
        }
    }
}

/// The host without the square brackets that URLs put round IPv6 addresses.
fn bare(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host)
}

/// An entry for [`poll`]; a negative descriptor is skipped by the kernel.
pub(super) fn pollfd(fd: RawFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd {
        fd,
        events,
        revents: 0,
    }
}

/// poll(2) until something happens or `until` has come; without `until`, for ever. A signal does
/// not end it.
pub(super) fn poll(fds: &mut [libc::pollfd], until: Option<Instant>) -> io::Result<()> {
    loop {
        let timeout = match until {
            None => -1,
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                // Rounded up: a fraction of a millisecond rounded down to 0 would spin.
                let ms = left.as_nanos().div_ceil(1_000_000);
                i32::try_from(ms).unwrap_or(i32::MAX)
            }
        };
        // SAFETY: the pointer and the count are those of one live, exclusively borrowed slice.
        let n = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
        if n >= 0 {
            return Ok(());
        }
        let e = io::Error::last_os_error();
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(e);
        }
    }
}

/// How many name look-ups may hang at once. Each holds a thread until the resolver gives up.
const MAX_LOOKUPS: usize = 16;

static LOOKUPS: AtomicUsize = AtomicUsize::new(0);

/// The addresses of a host, at least one, within the deadline. Addresses are parsed on the spot.
/// Names go to the system's resolver on a thread of their own, since it cannot be interrupted.
pub(super) fn resolve(host: &str, port: u16, deadline: &Deadline) -> Result<Vec<SocketAddr>> {
    let host = bare(host);
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let ticket = Lookup::start(host)?;
    let (answer, answered) = mpsc::channel();
    let name = host.to_owned();
    let thread = spawn("kvf-resolve", move || {
        let _ticket = ticket;
        let found = (name.as_str(), port).to_socket_addrs();
        // Nobody listens any more once the deadline has passed.
        let _ = answer.send(found.map(Iterator::collect::<Vec<_>>));
    })?;
    let found = match answered.recv_timeout(deadline.remaining()) {
        Ok(found) => found,
        Err(RecvTimeoutError::Timeout) => bail!(
            Status::Timeout,
            "host {host:?} did not resolve within {:?}",
            deadline.allowed
        ),
        Err(RecvTimeoutError::Disconnected) => bail!(
            Status::Internal,
            "the look-up of host {host:?} ended without an answer"
        ),
    };
    // It has sent its answer and is about to end; nothing is left running behind a success.
    let _ = thread.join();
    match found {
        Ok(addrs) if !addrs.is_empty() => Ok(addrs),
        Ok(_) => bail!(Status::NotFound, "host {host:?} has no address"),
        Err(e) => bail!(Status::NotFound, "host {host:?} does not resolve: {e}"),
    }
}

/// One of the [`MAX_LOOKUPS`] places, given back when the look-up ends, however late.
struct Lookup;

impl Lookup {
    fn start(host: &str) -> Result<Self> {
        let taken = LOOKUPS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
            (n < MAX_LOOKUPS).then_some(n + 1)
        });
        match taken {
            Ok(_) => Ok(Lookup),
            Err(n) => bail!(
                Status::ResourceExhausted,
                "cannot look up host {host:?}: {n} earlier look-ups are still waiting for the resolver"
            ),
        }
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        LOOKUPS.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_can_be_pasted() {
        assert_eq!(Endpoint("10.0.0.1", 80).to_string(), "10.0.0.1:80");
        assert_eq!(Endpoint("::1", 80).to_string(), "[::1]:80");
        assert_eq!(Endpoint("[::1]", 80).to_string(), "[::1]:80");
        assert_eq!(Endpoint("a.example", 80).to_string(), "a.example:80");
    }

    #[test]
    fn addresses_need_no_resolver() {
        let past = Deadline::after(Duration::ZERO);
        for (host, expected) in [
            ("127.0.0.1", "127.0.0.1:7"),
            ("[::1]", "[::1]:7"),
            ("::", "[::]:7"),
        ] {
            let expected: SocketAddr = expected.parse().unwrap();
            assert_eq!(resolve(host, 7, &past).unwrap(), [expected]);
        }
    }

    #[test]
    fn hanging_lookups_are_bounded_and_their_places_come_back() {
        // Places are taken for as long as the tickets live; other tests may hold a few.
        let mut tickets = Vec::new();
        let refused = loop {
            match Lookup::start("host.example") {
                Ok(ticket) => tickets.push(ticket),
                Err(e) => break e,
            }
            assert!(tickets.len() <= MAX_LOOKUPS);
        };
        assert_eq!(refused.status(), Status::ResourceExhausted);
        assert!(refused.message().contains("host.example"));
        drop(tickets.pop());
        assert!(Lookup::start("host.example").is_ok());
    }
}
