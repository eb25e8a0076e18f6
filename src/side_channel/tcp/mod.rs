//! The `tcp` side channel.
//!
//! # Protocol
//!
//! One message per connection, from the listener to the client:
//!
//! ```text
//! offset  bytes   what
//! 0       4       length of the payload, unsigned, big-endian
//! 4       length  payload: the metadata, uninterpreted
//! ```
//!
//! 1. The client connects and sends nothing.
//! 2. The listener sends the message at once and half-closes its side (a FIN follows the last
//!    byte).
//! 3. The client has the message when it has `4 + length` bytes; it need not wait for the end of
//!    the stream, and ignores what follows. It closes.
//! 4. The listener closes when the client has closed or half-closed, or its time is over.
//!
//! The listener understands nothing a client sends, so there is nothing to get wrong: bytes from
//! a client are read only to be thrown away, after the message has been handed to the kernel. They
//! have to be: closing a TCP socket with unread bytes sends a reset, and a reset can overtake
//! and destroy the end of the message on its way. A client that sends more than 1 MiB is cut off.
//! A client may half-close its side at any time; it is served all the same.
//!
//! An end of the stream before `4 + length` bytes means that the listener went away or cut the
//! client off: at its deadline, at its connection limit, or when it shut down. The client reports
//! a lost peer, and may ask again.
//!
//! # More clients than `max_connections`
//!
//! A newcomer takes the place of the client that loses least by it:
//! 1. the one that was sent its whole message longest ago and only lingers; else
//! 2. the slowest of those that have had 250 ms, when at its rate it would not be done by its
//!    deadline anyway, or when every client has had 250 ms.
//!
//! The rate is bytes per second, not counting the first 50 ms: the sockets' buffers take those
//! bytes whether the client reads or not. In the remaining case newcomers wait in the kernel's
//! queue, for at most 250 ms, until the youngest has had its time.
//!
//! Metadata of usual size fits the socket's buffer whole, so that (1) always applies and no client
//! is ever cut short. Silent and crawling clients cannot shut out the others in either case.

use std::mem;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle, ThreadId};

use super::net::{self, Deadline, Endpoint, Waker};
use super::{ListenOptions, SideChannel};
use crate::error::{Error, Result, Status, bail};
use crate::sync::lock;

mod client;
pub mod frame;
mod server;

pub(super) use client::request;

/// Connections that the kernel completes before the thread has taken them; the kernel's own limit
/// (net.core.somaxconn) applies as well.
const BACKLOG: libc::c_int = 1024;

/// A listener of kind `tcp`: see the [module](self) for the protocol.
pub struct TcpSideChannel {
    address: SocketAddr,
    max_message: usize,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    thread_id: ThreadId,
    /// The process that has the thread; a forked child has only its memory.
    process: u32,
}

/// What the object and its thread both hold.
struct Shared {
    /// The whole message, prefix included. Every client being served holds a reference to the one
    /// it got, never a copy.
    message: Mutex<Arc<Vec<u8>>>,
    waker: Waker,
    stop: AtomicBool,
    running: AtomicBool,
}

impl Shared {
    fn message(&self) -> MutexGuard<'_, Arc<Vec<u8>>> {
        lock(&self.message)
    }
}

impl TcpSideChannel {
    /// Binds, and starts the thread. See [`super::listen`], which has checked the options.
    pub(super) fn listen(options: &ListenOptions, metadata: Vec<u8>) -> Result<Self> {
        let message = encode(metadata, options.max_message)?;
        let listener = bind(options).map_err(|e| {
            let asked = Endpoint(&options.host, options.port);
            e.context(format_args!("cannot listen on {asked}"))
        })?;
        let address = listener
            .local_addr()
            .map_err(|e| Error::from_io("cannot read the address that was bound", &e))?;
        let shared = Arc::new(Shared {
            message: Mutex::new(Arc::new(message)),
            waker: Waker::new()?,
            stop: AtomicBool::new(false),
            running: AtomicBool::new(true),
        });
        let server = server::Server::new(listener, address, shared.clone(), options);
        let thread = crate::threads::spawn("kvf-side-tcp", move || server.run())?;
        if !address.ip().to_canonical().is_loopback() {
            log::warn!(
                "the side channel listens on {address}, which is not loopback: \
                 whoever can connect to it can read this engine's metadata"
            );
        }
        Ok(TcpSideChannel {
            address,
            max_message: options.max_message,
            shared,
            thread_id: thread.thread().id(),
            thread: Mutex::new(Some(thread)),
            process: process::id(),
        })
    }

    fn in_forked_child(&self) -> bool {
        process::id() != self.process
    }
}

impl SideChannel for TcpSideChannel {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn local_addr(&self) -> SocketAddr {
        self.address
    }

    fn set_metadata(&self, metadata: Vec<u8>) -> Result<()> {
        if !self.is_running() {
            bail!(
                Status::InvalidState,
                "the side channel on {} does not run any more",
                self.address
            );
        }
        let message = Arc::new(encode(metadata, self.max_message)?);
        // The old message is freed after the lock has been given back: it may be large.
        let old = mem::replace(&mut *self.shared.message(), message);
        drop(old);
        Ok(())
    }

    fn is_running(&self) -> bool {
        self.shared.running.load(Ordering::Acquire)
            && !self.shared.stop.load(Ordering::Acquire)
            && !self.in_forked_child()
    }

    fn shutdown(&self) {
        if self.in_forked_child() {
            // There is no thread here to stop, and waking it would wake the parent's. The handle
            // must not be touched: joining would wait for ever.
            if let Ok(mut thread) = self.thread.try_lock() {
                mem::forget(thread.take());
            }
            return;
        }
        self.shared.stop.store(true, Ordering::Release);
        self.shared.waker.wake();
        if thread::current().id() == self.thread_id {
            // Called by a log sink on the thread itself, which stops when it returns.
            return;
        }
        // Held while joining, so that a second caller returns no earlier than the first.
        let mut thread = lock(&self.thread);
        if let Some(thread) = thread.take() {
            // An error is a panic that the thread has ended with; its sockets are closed.
            let _ = thread.join();
        }
    }
}

impl Drop for TcpSideChannel {
    fn drop(&mut self) {
        self.shutdown();
    }
}

fn encode(metadata: Vec<u8>, max_message: usize) -> Result<Vec<u8>> {
    if metadata.len() > max_message {
        return Err(Error::invalid(format!(
            "metadata of {} bytes is longer than max_message, {max_message}",
            metadata.len()
        )));
    }
    frame::encode(metadata)
}

/// Binds the first address of the host that this machine has. Any other failure is final: an
/// address further down the list would be another service than the one that was asked for.
fn bind(options: &ListenOptions) -> Result<TcpListener> {
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
