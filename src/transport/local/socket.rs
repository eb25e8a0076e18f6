//! Abstract Unix sockets, credentials and poll(2).
//!
//! Names are in the abstract namespace: such a socket leaves no file behind when its process is
//! killed, needs no writable directory and no length-limited path, and works in a read-only
//! container. It has no file permissions, but those would only say what `SO_PEERCRED` says more
//! precisely, and both sides ask for that. It does not cross network namespaces; the metadata carries
//! the namespace so that this can be told in plain words.
//!
//! Every descriptor is close-on-exec from birth.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use super::host::{Token, hex};

/// Connections that may wait to be accepted.
const BACKLOG: libc::c_int = 128;

/// The name under which an instance listens.
fn socket_name(instance: &Token) -> String {
    format!("kvferry/local/{}", hex(instance))
}

/// Listens for an instance; the socket does not block.
pub(super) fn listen(instance: &Token) -> io::Result<UnixListener> {
    let address = SocketAddr::from_abstract_name(socket_name(instance))?;
    let listener = UnixListener::bind_addr(&address)?;
    // The library's own choice is as many as the system allows; a bounded queue makes a peer that
    // does not answer known sooner.
    // SAFETY: listen() takes integers only; calling it again changes the length of the queue.
    check(unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connects to an instance; waits at most `limit` for a place in its queue. The socket does not
/// block afterwards.
pub(super) fn connect(instance: &Token, limit: Duration) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: socket() takes integers only.
    let fd = check(unsafe { libc::socket(libc::AF_UNIX, flags, 0) })?;
    // SAFETY: `fd` is fresh from the kernel and owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let timeout = libc::timeval {
        tv_sec: limit.as_secs().min(3600) as libc::time_t,
        // Zero would mean "for ever".
        tv_usec: (limit.subsec_micros() as libc::suseconds_t).max(1),
    };
    // connect() on a Unix socket whose queue is full waits as long as the send timeout says.
    // SAFETY: the option value is a timeval, and its size is given.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDTIMEO,
            (&raw const timeout).cast(),
            mem::size_of_val(&timeout) as libc::socklen_t,
        )
    })?;
    let (address, len) = abstract_address(socket_name(instance).as_bytes());
    // SAFETY: the address is a sockaddr_un, of which `len` bytes are filled.
    check(unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), len) })?;
    set_nonblocking(&fd)?;
    Ok(fd)
}

/// A sockaddr_un for an abstract name, and how much of it counts.
fn abstract_address(name: &[u8]) -> (libc::sockaddr_un, libc::socklen_t) {
    // SAFETY: sockaddr_un is plain old data, for which zero is a value.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    // The first byte stays zero: that is what makes the name abstract.
    for (slot, &byte) in address.sun_path.iter_mut().skip(1).zip(name) {
        *slot = byte as libc::c_char;
    }
    let used = name.len().min(address.sun_path.len() - 1);
    let len = mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + used;
    (address, len as libc::socklen_t)
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let mut on: libc::c_int = 1;
    // SAFETY: FIONBIO reads one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONBIO, &raw mut on) })?;
    Ok(())
}

/// Who is at the other end, as this process sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Credentials {
    /// Zero when the process is not visible from this PID namespace.
    pub pid: u32,
    pub uid: u32,
}

/// The credentials of the process that connected or listens at the other end.
pub(super) fn credentials(fd: &impl AsRawFd) -> io::Result<Credentials> {
    // SAFETY: ucred is plain old data, for which zero is a value.
    let mut cred: libc::ucred = unsafe { mem::zeroed() };
    let mut len = mem::size_of_val(&cred) as libc::socklen_t;
    // SAFETY: the buffer is a ucred, and its size is given.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut len,
        )
    })?;
    Ok(Credentials {
        pid: u32::try_from(cred.pid).unwrap_or(0),
        uid: cred.uid,
    })
}

/// The user that the kernel takes this process for.
pub(super) fn effective_uid() -> u32 {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

/// A descriptor that becomes readable when the process at the other end has ended; `None` where the
/// kernel does not offer one. An error of `ESRCH` means that it has ended already.
///
/// The end of the stream would not do alone: a child that the peer has forked keeps the stream open.
pub(super) fn peer_pidfd(fd: &OwnedFd, pid: u32) -> io::Result<Option<OwnedFd>> {
    /// linux/socket.h, since Linux 6.5: names the process itself and not its number.
    const SO_PEERPIDFD: libc::c_int = 77;
    let mut pidfd: libc::c_int = -1;
    let mut len = mem::size_of_val(&pidfd) as libc::socklen_t;
    // SAFETY: the buffer is an int, and its size is given.
    let rc = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut pidfd).cast(),
            &raw mut len,
        )
    };
    if rc != 0 {
        // SAFETY: pidfd_open takes integers only.
        let rc = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        match libc::c_int::try_from(rc) {
            Ok(new) if new >= 0 => pidfd = new,
            _ => {
                let e = io::Error::last_os_error();
                return match e.raw_os_error() {
                    Some(libc::ESRCH | libc::EMFILE | libc::ENFILE) => Err(e),
                    // An old kernel, or a seccomp filter: the end of the stream has to do.
                    _ => Ok(None),
                };
            }
        }
    }
    if pidfd < 0 {
        return Ok(None);
    }
    // SAFETY: the kernel has just made this descriptor for us (close-on-exec).
    Ok(Some(unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Sends what fits; `WouldBlock` when nothing does. Never raises SIGPIPE.
pub(super) fn send(fd: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    loop {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: pointer and length are those of a live slice.
        let n = unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
        match usize::try_from(n) {
            Ok(n) => return Ok(n),
            Err(_) => {
                let e = io::Error::last_os_error();
                if e.kind() != io::ErrorKind::Interrupted {
                    return Err(e);
                }
            }
        }
    }
}

/// Receives what is there; 0 is the end of the stream, `WouldBlock` when there is nothing yet.
pub(super) fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let len = buffer.len();
        // SAFETY: pointer and length are those of a live, writable slice.
        let n = unsafe {
            libc::recv(
                fd.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                len,
                libc::MSG_DONTWAIT,
            )
        };
        match usize::try_from(n) {
            Ok(n) => return Ok(n),
            Err(_) => {
                let e = io::Error::last_os_error();
                if e.kind() != io::ErrorKind::Interrupted {
                    return Err(e);
                }
            }
        }
    }
}

/// Ends the stream in both directions, also for processes that have inherited the descriptor.
pub(super) fn shutdown(fd: &OwnedFd) {
    // SAFETY: shutdown takes integers only. It fails only where there is nothing to end.
    unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_RDWR) };
}

/// An entry for [`poll`]; a negative descriptor is passed over.
pub(super) fn watch(fd: RawFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd {
        fd,
        events,
        revents: 0,
    }
}

/// Waits until a descriptor is ready or the time is over; `None` is for ever. Interruption counts as
/// the end of the time.
pub(super) fn poll(fds: &mut [libc::pollfd], limit: Option<Duration>) -> io::Result<usize> {
    let spec = limit.map(|limit| libc::timespec {
        tv_sec: limit.as_secs().min(1 << 30) as libc::time_t,
        tv_nsec: limit.subsec_nanos() as libc::c_long,
    });
    let spec = spec.as_ref().map_or(std::ptr::null(), |s| s as *const _);
    // SAFETY: pointer and length are those of a live slice; `spec` is null or points to a live
    // timespec; a null signal mask leaves the mask alone.
    let n = unsafe {
        libc::ppoll(
            fds.as_mut_ptr(),
            fds.len() as libc::nfds_t,
            spec,
            std::ptr::null(),
        )
    };
    match usize::try_from(n) {
        Ok(n) => Ok(n),
        Err(_) => {
            let e = io::Error::last_os_error();
            if e.kind() == io::ErrorKind::Interrupted {
                fds.iter_mut().for_each(|fd| fd.revents = 0);
                return Ok(0);
            }
            Err(e)
        }
    }
}

fn check(rc: libc::c_int) -> io::Result<libc::c_int> {
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(rc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::local::host::random_token;

    #[test]
    fn two_ends_know_each_other() {
        let instance = random_token().unwrap();
        let listener = listen(&instance).unwrap();
        let near = connect(&instance, Duration::from_secs(5)).unwrap();
        let far: OwnedFd = listener.accept().unwrap().0.into();
        // SAFETY: getuid has no arguments and cannot fail.
        let uid = unsafe { libc::getuid() };
        let me = Credentials {
            pid: std::process::id(),
            uid,
        };
        assert_eq!(credentials(&near).unwrap(), me);
        assert_eq!(credentials(&far).unwrap(), me);
        let pidfd = peer_pidfd(&near, me.pid).unwrap().unwrap();
        let mut fds = [
            watch(pidfd.as_raw_fd(), libc::POLLIN),
            watch(far.as_raw_fd(), libc::POLLIN),
        ];
        assert_eq!(poll(&mut fds, Some(Duration::ZERO)).unwrap(), 0);
        send(&near, b"hello").unwrap();
        assert_eq!(poll(&mut fds, None).unwrap(), 1);
        let mut buffer = [0u8; 16];
        assert_eq!(receive(&far, &mut buffer).unwrap(), 5);
        shutdown(&near);
        assert_eq!(receive(&far, &mut buffer).unwrap(), 0);
        assert!(send(&far, b"x").is_err());
        drop(listener);
        let gone = connect(&instance, Duration::from_secs(5)).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_full_queue_does_not_hold_up_for_ever() {
        let instance = random_token().unwrap();
        let _listener = listen(&instance).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match connect(&instance, Duration::from_millis(20)) {
                Ok(fd) => waiting.push(fd),
                Err(e) => break e,
            }
            assert!(waiting.len() < 20_000, "the queue has no end");
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
