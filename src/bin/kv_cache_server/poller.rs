//! Many descriptors to wait for, in one call whose cost does not depend on how many there are.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use kvferry::error::{Error, Result};

/// How many ready ones are told at once; the others are told next time.
const AT_ONCE: usize = 64;

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    pub read: bool,
    pub write: bool,
}

impl Interest {
    pub const READ: Interest = Interest {
        read: true,
        write: false,
    };
}

/// epoll(7), level-triggered. A descriptor that is closed leaves it by itself.
pub struct Poller {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Poller {
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> Result<Self> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(Error::os("cannot make an epoll descriptor"));
        }
        Ok(Poller {
            // SAFETY: `fd` was just opened, and nothing else owns it.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
            events: vec![libc::epoll_event { events: 0, u64: 0 }; AT_ONCE],
        })
    }

    /// Waits for this one, too, and tells it by this number.
    ///
    /// # Errors
    /// `EPERM` for what cannot be waited for, as files; the system's.
    pub fn add(&self, fd: RawFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, interest)
    }

    /// Waits for something else.
    ///
    /// # Errors
    /// The system's.
    pub fn change(&self, fd: RawFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, interest)
    }

    fn control(&self, what: i32, fd: RawFd, token: u64, interest: Interest) -> io::Result<()> {
        let mut events = 0;
        if interest.read {
            events |= libc::EPOLLIN;
        }
        if interest.write {
            events |= libc::EPOLLOUT;
        }
        let mut event = libc::epoll_event {
            events: events as u32,
            u64: token,
        };
        // SAFETY: the struct lives for the call.
        match unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), what, fd, &mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits for at most so long, and puts the numbers of those that are ready, or have failed, into
    /// `ready`.
    ///
    /// # Errors
    /// The system's.
    pub fn wait(&mut self, limit: Duration, ready: &mut Vec<u64>) -> Result<()> {
        ready.clear();
        // Rounded up: nothing is gained by waking up just before the time.
        let ms = limit.as_micros().div_ceil(1000);
        // SAFETY: the pointer and the length are of one live slice, which is ours to be written to.
        let n = unsafe {
            libc::epoll_wait(
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                AT_ONCE as i32,
                i32::try_from(ms).unwrap_or(i32::MAX),
            )
        };
        match usize::try_from(n) {
            Ok(n) => ready.extend(self.events[..n].iter().map(|e| e.u64)),
            Err(_) => {
                let e = io::Error::last_os_error();
                if e.kind() != io::ErrorKind::Interrupted {
                    return Err(Error::from_io("cannot wait for the sockets", &e));
                }
            }
        }
        Ok(())
    }
}
