//! A connected socket, over TCP or on this host.

use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;

use super::Address;
use crate::error::{Error, Result, Status};
use crate::net::{self, Deadline};

/// A socket that does not block, closes on exec, and raises no signal.
#[derive(Debug)]
pub enum Stream {
    /// Of this host.
    Unix(UnixStream),
    /// Of any host.
    Tcp(TcpStream),
}

impl Stream {
    /// Connects, to whoever listens there now.
    ///
    /// # Errors
    /// `PeerLost` when nobody does, or has no room in its queue; `Timeout`; what the system says.
    pub(crate) fn connect(address: &Address, deadline: &Deadline) -> Result<Self> {
        let unix = |name: &[u8]| match connect_unix(name) {
            Ok(stream) => Ok(Stream::Unix(stream)),
            Err(e) => Err(match e.raw_os_error() {
                Some(libc::ENOENT | libc::ECONNREFUSED | libc::EAGAIN) => {
                    Error::new(Status::PeerLost, format!("nobody takes connections: {e}"))
                }
                _ => Error::from_io("cannot connect", &e),
            }),
        };
        match address {
            Address::File(path) => unix(path.as_os_str().as_bytes()),
            Address::Name(name) => unix(&[b"\0", &name[..]].concat()),
            Address::Tcp(host, port) => {
                let found = net::resolve(host, *port, deadline)?;
                let stream = net::connect(&found, deadline)?;
                Self::tcp(stream).map_err(|e| Error::from_io("cannot set up the socket", &e))
            }
        }
    }

    /// One that was accepted, or connected.
    ///
    /// # Errors
    /// The system's.
    pub fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        keep_alive(&stream)?;
        Ok(Stream::Tcp(stream))
    }

    /// One that was accepted.
    ///
    /// # Errors
    /// The system's.
    pub fn unix(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Stream::Unix(stream))
    }

    /// Sends what there is room for.
    ///
    /// # Errors
    /// `WouldBlock` for no room; the system's.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let fd = self.as_fd().as_raw_fd();
        // SAFETY: the pointer and the length are of one live slice; the descriptor is open.
        let n = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Receives what is there; nothing at all means that the peer has closed.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there yet; the system's.
    pub fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&*stream).read(bytes),
            Stream::Tcp(stream) => (&*stream).read(bytes),
        }
    }

    /// Whether the peer has closed, or the connection has broken, and nothing is left to be received.
    pub(crate) fn is_over(&self) -> bool {
        let mut byte = 0u8;
        // SAFETY: one byte, which lives for the call; the descriptor is open.
        let n = unsafe {
            let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
            libc::recv(self.as_fd().as_raw_fd(), (&raw mut byte).cast(), 1, flags)
        };
        let waits = |e: io::Error| {
            matches!(
                e.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            )
        };
        n == 0 || (n < 0 && !waits(io::Error::last_os_error()))
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Tcp(stream) => stream.as_fd(),
        }
    }
}

/// The standard library's waits when the listener's queue is full, for as long as the listener likes.
fn connect_unix(name: &[u8]) -> io::Result<UnixStream> {
    // SAFETY: all zeroes is a valid value of this plain struct.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    if name.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    let len = std::mem::offset_of!(libc::sockaddr_un, sun_path) + name.len();
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened, and nothing else owns it.
    let stream = unsafe { UnixStream::from_raw_fd(fd) };
    // SAFETY: the struct lives for the call, and `len` is no more than its size.
    match unsafe { libc::connect(fd, (&raw const address).cast(), len as libc::socklen_t) } {
        0 => Ok(stream),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A host that has gone without a word is noticed, after hours.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int that lives for the call.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_KEEPALIVE,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_stream_tells_when_its_peer_has_gone() {
        let (a, b) = UnixStream::pair().unwrap();
        let (a, b) = (Stream::unix(a).unwrap(), Stream::unix(b).unwrap());
        assert!(!a.is_over());
        b.send(b"x").unwrap();
        drop(b);
        assert!(!a.is_over(), "there is something to be received");
        assert_eq!(a.receive(&mut [0; 9]).unwrap(), 1);
        assert!(a.is_over());
        let e = a.send(b"x").unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_listener_without_room_is_not_waited_for() {
        let name = format!("kvferry.test.{}", std::process::id());
        let at = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&at).unwrap();
        // SAFETY: takes no pointers. Room for one connection and no more.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
        let address = Address::parse(&format!("ipc://@{name}")).unwrap();
        let deadline = Deadline::after(Duration::from_secs(60));
        let mut held = Vec::new();
        let e = loop {
            match Stream::connect(&address, &deadline) {
                Ok(stream) => held.push(stream),
                Err(e) => break e,
            }
            assert!(held.len() < 100);
        };
        assert_eq!((e.status(), held.is_empty()), (Status::PeerLost, false));
        drop(listener);
        let e = Stream::connect(&address, &deadline).unwrap_err();
        assert_eq!(e.status(), Status::PeerLost);
    }
}
