//! A listener's socket and thread, from the start to the end, whatever it speaks.

use std::mem;
use std::net::SocketAddr;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, ThreadId};

use super::ListenOptions;
use super::net::Endpoint;
use super::server::{Protocol, Server};
use super::sockets::bind;
use crate::error::{Error, Result, Status, bail};
use crate::event::Event;
use crate::sync::lock;

/// A bound address and the thread that serves it.
pub(super) struct Service {
    address: SocketAddr,
    control: Arc<Control>,
    thread: Mutex<Option<JoinHandle<()>>>,
    thread_id: ThreadId,
    /// The process that has the thread; a forked child has only its memory.
    process: u32,
}

/// What the service and its thread both hold.
pub(super) struct Control {
    /// Wakes the thread.
    pub(super) waker: Event,
    pub(super) stop: AtomicBool,
    pub(super) running: AtomicBool,
}

impl Service {
    /// Binds, and starts the thread with the protocol that is made for the address.
    pub(super) fn start<P: Protocol>(
        thread_name: &str,
        options: &ListenOptions,
        protocol: impl FnOnce(SocketAddr) -> P,
    ) -> Result<Self> {
        let listener = bind(options).map_err(|e| {
            let asked = Endpoint(&options.host, options.port);
            e.context(format_args!("cannot listen on {asked}"))
        })?;
        let address = listener
            .local_addr()
            .map_err(|e| Error::from_io("cannot read the address that was bound", &e))?;
        let control = Arc::new(Control {
            waker: Event::new()
                .map_err(|e| Error::from_io("side channel: cannot make an eventfd", &e))?,
            stop: AtomicBool::new(false),
            running: AtomicBool::new(true),
        });
        let protocol = protocol(address);
        let server = Server::new(listener, address, control.clone(), options, protocol);
        let thread = crate::threads::spawn(thread_name, move || server.run())?;
        if !address.ip().to_canonical().is_loopback() {
            log::warn!(
                "the side channel listens on {address}, which is not loopback: \
                 whoever can connect to it can read this engine's metadata"
            );
        }
        Ok(Service {
            address,
            control,
            thread_id: thread.thread().id(),
            thread: Mutex::new(Some(thread)),
            process: process::id(),
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// False after a shutdown, and in a forked child.
    pub(super) fn is_running(&self) -> bool {
        self.control.running.load(Ordering::Acquire)
            && !self.control.stop.load(Ordering::Acquire)
            && !self.in_forked_child()
    }

    pub(super) fn check_running(&self) -> Result<()> {
        if !self.is_running() {
            bail!(
                Status::InvalidState,
                "the side channel on {} does not run any more",
                self.address
            );
        }
        Ok(())
    }

    /// Stops the thread and waits for its end. Any number of times, from any thread.
    pub(super) fn shutdown(&self) {
        if self.in_forked_child() {
            // There is no thread here to stop, and waking it would wake the parent's. The handle
            // must not be touched: joining would wait for ever.
            if let Ok(mut thread) = self.thread.try_lock() {
                mem::forget(thread.take());
            }
            return;
        }
        self.control.stop.store(true, Ordering::Release);
        self.control.waker.set();
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

    fn in_forked_child(&self) -> bool {
        process::id() != self.process
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shutdown();
    }
}
