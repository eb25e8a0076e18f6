//! Starting threads in somebody else's process.

use std::thread::{Builder, JoinHandle};

use crate::error::{Error, Result, Status};

/// Signals that a thread raises by what it does itself, and the profilers' timer. Blocking the former
/// would turn a fault handler into a bare kill.
const KEPT: [libc::c_int; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGPROF,
];

/// Starts a thread that takes no signals meant for the process: the host program's handlers keep
/// running on the host program's threads. Names longer than 15 bytes are cut by the system.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    // SAFETY: sigset_t is plain data for which all zeroes is a valid (empty) value on Linux.
    let (mut blocked, mut before): (libc::sigset_t, libc::sigset_t) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    // SAFETY: both sets live on this stack for the whole of the calls; only this thread's mask is
    // changed, and it is restored below. The new thread inherits the mask of its maker.
    unsafe {
        libc::sigfillset(&mut blocked);
        for signal in KEPT {
            libc::sigdelset(&mut blocked, signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &blocked, &mut before);
    }
    let thread = Builder::new().name(name.to_owned()).spawn(body);
    // SAFETY: `before` was filled in above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut()) };
    thread.map_err(|e| {
        Error::new(
            Status::ResourceExhausted,
            format!("cannot start the thread {name}: {e}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_leave_the_signals_to_the_host() {
        let mask = spawn("kvf-test", || {
            // SAFETY: a null new set only reads the mask into the zeroed, live `now`.
            unsafe {
                let mut now: libc::sigset_t = std::mem::zeroed();
                libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), &mut now);
                [libc::SIGTERM, libc::SIGCHLD, libc::SIGSEGV, libc::SIGPROF]
                    .map(|s| libc::sigismember(&now, s))
            }
        })
        .unwrap()
        .join()
        .unwrap();
        assert_eq!(mask, [1, 1, 0, 0]);
    }
}
