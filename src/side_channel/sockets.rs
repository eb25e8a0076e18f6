//! Where the protocols that run over TCP listen.

use std::net::TcpListener;
use std::os::fd::AsRawFd;

use super::ListenOptions;
use crate::error::{Error, Result, Status, bail};
use crate::net::{self, Deadline};

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
