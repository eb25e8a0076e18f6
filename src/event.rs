//! A descriptor that is readable while something is the case: for threads that sleep in poll(2) and for
//! event loops of programs.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

/// An eventfd, since writing to it can neither block nor raise SIGPIPE.
#[derive(Debug)]
pub(crate) struct Event(File);

impl Event {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened, and nothing else owns it.
        Ok(Event(unsafe { File::from_raw_fd(fd) }))
    }

    /// Makes it readable.
    pub(crate) fn set(&self) {
        // Fails only when the counter is at its limit, and then the descriptor is readable anyway.
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }

    /// Makes it unreadable again.
    pub(crate) fn clear(&self) {
        // Fails only when it is unreadable already.
        let _ = (&self.0).read(&mut [0u8; 8]);
    }
}

impl AsRawFd for Event {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_readable_from_set_to_clear() {
        let event = Event::new().unwrap();
        let readable = || {
            let mut fd = libc::pollfd {
                fd: event.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one live entry.
            let n = unsafe { libc::poll(&raw mut fd, 1, 0) };
            n == 1
        };
        assert!(!readable());
        event.set();
        event.set();
        assert!(readable());
        event.clear();
        assert!(!readable());
        event.clear();
        assert!(!readable());
    }
}
