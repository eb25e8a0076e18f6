//! SIGTERM and SIGINT as something to wait for.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use kvferry::error::{Error, Result};

/// A descriptor that is readable once one of them has come.
pub struct Signals(File);

impl Signals {
    /// Keeps both from ending the process. To be called before there is any other thread: a new one
    /// inherits what is blocked.
    ///
    /// # Errors
    /// No descriptor.
    pub fn block() -> Result<Self> {
        // SAFETY: sigset_t is plain data; the set lives for all calls; the mask changed is this
        // thread's.
        let fd = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGTERM);
            libc::sigaddset(&mut set, libc::SIGINT);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(Error::os("cannot wait for signals"));
        }
        // SAFETY: just opened, and nothing else owns it.
        Ok(Signals(unsafe { File::from_raw_fd(fd) }))
    }

    /// The descriptor.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
