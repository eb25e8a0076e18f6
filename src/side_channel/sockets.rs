//! Sockets of the protocols that run over TCP: where to listen, whom to connect to.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use super::ListenOptions;
use super::net::{self, Deadline};
use crate::error::{Error, Result, Status, bail};

/// Connections that the kernel completes before the thread has taken them; the kernel's own limit
/// (net.core.somaxconn) applies as well.
const BACKLOG: libc::c_int = 1024;

/// Binds the first address of the host that this machine has. Any other failure is final: an
/// address further down the list would be another service than the one that was asked for.
pub(super) fn bind(options: &ListenOptions) -> Result<TcpListener> {
    let deadline = Deadline::after(options.timeout);
    let mut absent = Vec::new();
    for address in net::resolve(&options.host, options.port, &deadline)? {
        // Sets SO_REUSEADDR, so that a restart need not wait for old connections to age away,
        // and close-on-exec, here and on what is accepted.
        match TcpListener::bind(address) {
            Ok(listener) => return prepare(listener),
            Err(e) => match e.raw_os_error() {
                Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT) => {
                    absent.push(format!("{address}: {e}"))
                }
                Some(libc::EADDRINUSE) => bail!(Status::Busy, "{address} is in use: {e}"),
                _ => return Err(Error::from_io(address, &e)),
            },
        }
    }
    Err(Error::invalid(format!(
        "no address of this machine: {}",
        absent.join("; ")
    )))
}

fn prepare(listener: TcpListener) -> Result<TcpListener> {
    listener
        .set_nonblocking(true)
        .map_err(|e| Error::from_io("cannot make the socket non-blocking", &e))?;
    // SAFETY: takes no pointers; the descriptor belongs to `listener`, which outlives the call.
    // Listening again only widens the queue, which the standard library leaves at 128.
    if unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) } != 0 {
        return Err(Error::os("cannot widen the queue of connections"));
    }
    Ok(listener)
}

/// The first connection that succeeds. Each address has its share of the time that is left, so
/// that one that swallows packets does not hide the next.
pub(super) fn connect(addrs: &[SocketAddr], deadline: &Deadline) -> Result<TcpStream> {
    let mut failures: Vec<Error> = Vec::new();
    for (i, addr) in addrs.iter().enumerate() {
        let share = deadline.remaining() / (addrs.len() - i) as u32;
        if share.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(addr, share) {
            Ok(stream) if !connected_to_itself(&stream) => return Ok(stream),
            Ok(_) => failures.push(Error::new(
                Status::PeerLost,
                format!("{addr}: nobody listens there"),
            )),
            Err(e) => failures.push(connect_error(addr, &e)),
        }
    }
    if deadline.remaining().is_zero() {
        bail!(
            Status::Timeout,
            "no connection within {:?}",
            deadline.allowed
        );
    }
    let status = failures.last().map_or(Status::PeerLost, Error::status);
    let each: Vec<_> = failures.iter().map(Error::message).collect();
    bail!(status, "cannot connect: {}", each.join("; "))
}

/// Linux lets a socket whose own port happens to be the one it asks for connect to itself.
fn connected_to_itself(stream: &TcpStream) -> bool {
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(a), Ok(b)) if a == b)
}

fn connect_error(addr: &SocketAddr, e: &io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown => Error::new(Status::PeerLost, format!("{addr}: {e}")),
        _ => Error::from_io(addr, e),
    }
}
