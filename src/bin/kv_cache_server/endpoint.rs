//! Where the server listens.
//!
//! A socket file may be left over from a server that is gone, or belong to one that is live, or be no
//! socket at all. So it is looked at first: a socket that nobody listens on is taken over, a live one
//! is refused, and anything else is left alone. A name in Linux's abstract socket space, which goes
//! with its process and leaves no file, keeps two servers that start together apart.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use kvferry::error::{Error, Result, Status};
use kvferry::zmtp::{Address, Stream};
use sha2::{Digest, Sha256};

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A place that is listened at.
pub struct Bound {
    /// As clients connect to it.
    pub address: String,
    /// `None` once it is closed.
    listener: Option<Listener>,
    file: Option<PathBuf>,
    /// Held, not listened on.
    _claim: Option<UnixListener>,
}

impl Bound {
    /// The next connection, if there is one.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub fn accept(&self) -> io::Result<Option<Stream>> {
        let stream = match &self.listener {
            None => return Ok(None),
            Some(Listener::Unix(l)) => l.accept().and_then(|(s, _)| Stream::unix(s)),
            Some(Listener::Tcp(l)) => l.accept().and_then(|(s, _)| Stream::tcp(s)),
        };
        match stream {
            Ok(stream) => Ok(Some(stream)),
            Err(e) => match e.raw_os_error() {
                Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Err(e),
                // There is none, or the one that there was has gone: the next turn sees the others.
                _ => Ok(None),
            },
        }
    }

    /// What to wait for.
    pub fn fd(&self) -> Option<RawFd> {
        self.listener.as_ref().map(|l| match l {
            Listener::Unix(l) => l.as_raw_fd(),
            Listener::Tcp(l) => l.as_raw_fd(),
        })
    }

    /// Removes the socket file, so that nobody else connects.
    pub fn hide(&self) {
        // It may be gone already.
        if let Some(file) = &self.file {
            let _ = fs::remove_file(file);
        }
    }

    /// Ends the listening. Those who are connected stay.
    pub fn close(&mut self) {
        self.listener = None;
    }
}

/// Listens at a place.
///
/// # Errors
/// [`Status::Busy`] for a place that is taken, [`Status::NotAllowed`] for one that other hosts could
/// reach, unless that is wanted.
pub fn bind(text: &str, mode: u32, allow_remote: bool) -> Result<Bound> {
    let failed = |e: io::Error| match e.kind() {
        ErrorKind::AddrInUse => Error::new(Status::Busy, format!("{text} is taken")),
        _ => Error::from_io(format_args!("cannot listen on {text}"), &e),
    };
    let mut bound = Bound {
        address: text.to_owned(),
        listener: None,
        file: None,
        _claim: None,
    };
    let unix = |listener: UnixListener| {
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Some(Listener::Unix(listener)))
    };
    match Address::parse(text)? {
        Address::File(path) => {
            bound._claim = Some(claim(&path)?);
            take_over(&path)?;
            bound.listener = unix(UnixListener::bind(&path).map_err(failed)?)?;
            let permissions = fs::Permissions::from_mode(mode);
            fs::set_permissions(&path, permissions).map_err(|e| {
                Error::from_io(format_args!("permissions of {}", path.display()), &e)
            })?;
            bound.address = format!("ipc://{}", path.display());
            bound.file = Some(path);
        }
        Address::Name(name) => {
            let at = SocketAddr::from_abstract_name(name).map_err(failed)?;
            bound.listener = unix(UnixListener::bind_addr(&at).map_err(failed)?)?;
        }
        Address::Tcp(host, port) => {
            check_local(text.trim_start_matches("tcp://"), allow_remote)?;
            let host = match &*host {
                "*" => "0.0.0.0",
                host => host.trim_start_matches('[').trim_end_matches(']'),
            };
            let listener = TcpListener::bind((host, port)).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            // Where the port was left open, this is the one that was given.
            bound.address = format!("tcp://{}", listener.local_addr().map_err(failed)?);
            bound.listener = Some(Listener::Tcp(listener));
        }
    }
    Ok(bound)
}

/// Refuses an address that other hosts can reach.
///
/// # Errors
/// [`Status::NotAllowed`], and [`Status::InvalidArgument`] for what is no address.
pub fn check_local(place: &str, allow_remote: bool) -> Result<()> {
    let Some((host, port)) = place.rsplit_once(':') else {
        return Err(Error::invalid(format!("{place:?} is not HOST:PORT")));
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let local = match host.parse::<IpAddr>() {
        Ok(ip) => ip.is_loopback(),
        Err(_) if host == "*" => false,
        // A name is local if all that it stands for is.
        Err(_) => (host, port.parse().unwrap_or(0))
            .to_socket_addrs()
            .is_ok_and(|mut all| all.all(|a| a.ip().is_loopback())),
    };
    if local {
        return Ok(());
    }
    if !allow_remote {
        return Err(Error::new(
            Status::NotAllowed,
            format!(
                "{place} can be reached by other hosts, and nobody is asked who he is: \
                 use 127.0.0.1, or --allow-remote if that is wanted"
            ),
        ));
    }
    log::warn!("{place} can be reached by other hosts, and nobody is asked who he is");
    Ok(())
}

/// Keeps other servers from this file for as long as the result lives.
fn claim(path: &Path) -> Result<UnixListener> {
    let parent = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let parent = fs::canonicalize(parent)
        .map_err(|e| Error::from_io(format_args!("the folder of {}", path.display()), &e))?;
    let whole = parent.join(path.file_name().unwrap_or_default());
    let mut name = b"kvferry.kv_cache_server.".to_vec();
    // A path may be longer than a socket's name.
    name.extend(&Sha256::digest(whole.as_os_str().as_encoded_bytes())[..16]);
    let address = SocketAddr::from_abstract_name(name);
    let address = address.map_err(|e| Error::from_io("a name for the socket", &e))?;
    UnixListener::bind_addr(&address).map_err(|e| match e.kind() {
        ErrorKind::AddrInUse => live(path),
        _ => Error::from_io(format_args!("cannot claim {}", path.display()), &e),
    })
}

/// Removes a socket file that nobody listens on.
fn take_over(path: &Path) -> Result<()> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::from_io(path.display(), &e)),
    };
    if !kind.is_socket() {
        return Err(Error::new(
            Status::Busy,
            format!(
                "{} is there, and is no socket: it is left alone",
                path.display()
            ),
        ));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(live(path)),
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
            log::warn!(
                "{} is left over from a server that is gone: taken over",
                path.display()
            );
            fs::remove_file(path).map_err(|e| Error::from_io(path.display(), &e))
        }
        Err(e) => Err(Error::from_io(
            format_args!("cannot tell whether anybody listens on {}", path.display()),
            &e,
        )),
    }
}

fn live(path: &Path) -> Error {
    Error::new(
        Status::Busy,
        format!(
            "a live server listens on {}: stop it, or give this one another --socket-path",
            path.display()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_local() {
        for local in ["127.0.0.1:1", "127.8.9.1:*", "[::1]:80", "localhost:5"] {
            check_local(local, false).unwrap();
        }
        for remote in ["0.0.0.0:1", "*:1", "[::]:1", "192.0.2.1:80", "eth0:5"] {
            let e = check_local(remote, false).unwrap_err();
            assert_eq!(e.status(), Status::NotAllowed, "{remote}");
            check_local(remote, true).unwrap();
        }
        assert!(check_local("127.0.0.1", true).is_err());
    }
}
