//! Where the server listens.
//!
//! libzmq removes whatever file is at the place of an `ipc://` socket, also one that a live server is
//! listening on, which from then on nobody can reach. So here it is looked at first: a socket that
//! nobody listens on is taken over, a live one is refused, and anything else is left alone. A name in
//! Linux's abstract socket space, which goes with its process and leaves no file, keeps two servers
//! that start together apart.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, ToSocketAddrs};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use kvferry::error::{Error, Result, Status};
use sha2::{Digest, Sha256};

/// A place that a socket is bound to.
pub struct Bound {
    /// As clients connect to it.
    pub address: String,
    file: Option<PathBuf>,
    /// Held, not listened on.
    _claim: Option<UnixListener>,
}

impl Bound {
    /// Removes the socket file, so that nobody else connects. Those who are connected stay.
    pub fn hide(&self) {
        // It may be gone already.
        if let Some(file) = &self.file {
            let _ = fs::remove_file(file);
        }
    }
}

/// Binds a socket. A path alone stands for `ipc://PATH`.
///
/// # Errors
/// [`Status::Busy`] for a place that is taken, [`Status::NotAllowed`] for one that other hosts could
/// reach, unless that is wanted.
pub fn bind(socket: &zmq::Socket, address: &str, mode: u32, allow_remote: bool) -> Result<Bound> {
    let address = match address.starts_with('/') {
        true => format!("ipc://{address}"),
        false => address.to_owned(),
    };
    let mut bound = Bound {
        address: address.clone(),
        file: None,
        _claim: None,
    };
    if let Some(place) = address.strip_prefix("tcp://") {
        check_local(place, allow_remote)?;
    } else if let Some(path) = address.strip_prefix("ipc://") {
        if path.is_empty() || path == "*" {
            return Err(Error::invalid(format!("{address} names no file")));
        }
        if !path.starts_with('@') {
            bound._claim = Some(claim(Path::new(path))?);
            take_over(Path::new(path))?;
            bound.file = Some(path.into());
        }
    } else {
        return Err(Error::invalid(format!(
            "{address} is neither ipc://FILE nor tcp://HOST:PORT"
        )));
    }
    socket.bind(&address).map_err(|e| match e {
        zmq::Error::EADDRINUSE => Error::new(Status::Busy, format!("{address} is taken")),
        e => Error::new(Status::Io, format!("cannot listen on {address}: {e}")),
    })?;
    if let Some(file) = &bound.file {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(file, permissions)
            .map_err(|e| Error::from_io(format_args!("permissions of {}", file.display()), &e))?;
    }
    // Where the port was left open, this is the one that was given.
    if let Ok(Ok(actual)) = socket.get_last_endpoint() {
        bound.address = actual.trim_end_matches('\0').to_owned();
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
        // A name (or, to libzmq, an interface) is local if all that it stands for is.
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
