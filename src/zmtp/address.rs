//! Where a socket listens, as ZeroMQ writes it.

use std::path::PathBuf;

use crate::error::{Error, Result};

/// Longest name of a Unix socket; `sun_path` has 108 bytes, one of them for the end.
const MAX_NAME: usize = 107;

/// A place to listen at or to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket file: `ipc://FILE`, or the absolute path alone.
    File(PathBuf),
    /// A name without a file, as Linux has them: `ipc://@NAME`. Without the `@`.
    Name(Vec<u8>),
    /// `tcp://HOST:PORT`. For a listener, `*` is every address, and as a port whichever is free (0).
    Tcp(String, u16),
}

impl Address {
    /// Reads one.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn parse(text: &str) -> Result<Self> {
        if let Some(place) = text.strip_prefix("tcp://") {
            return tcp(place);
        }
        let name = match text.strip_prefix("ipc://") {
            Some(name) => name,
            None if text.starts_with('/') => text,
            None => {
                return Err(Error::invalid(format!(
                    "{text:?} is neither ipc://FILE nor tcp://HOST:PORT"
                )));
            }
        };
        if matches!(name, "" | "*" | "@") || name.contains('\0') {
            return Err(Error::invalid(format!("{text:?} names no file")));
        }
        if name.len() > MAX_NAME {
            return Err(Error::invalid(format!(
                "{text}: the name of a socket has at most {MAX_NAME} bytes, and this {}",
                name.len()
            )));
        }
        Ok(match name.strip_prefix('@') {
            Some(name) => Address::Name(name.into()),
            None => Address::File(name.into()),
        })
    }
}

fn tcp(place: &str) -> Result<Address> {
    let parts = place.rsplit_once(':');
    let port = parts.and_then(|(_, port)| match port {
        "*" => Some(0),
        port => port.parse().ok(),
    });
    match (parts, port) {
        (Some((host, _)), Some(port)) if !host.is_empty() => Ok(Address::Tcp(host.into(), port)),
        _ => Err(Error::invalid(format!("{place:?} is not HOST:PORT"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let tcp = |host: &str, port| Address::Tcp(host.to_owned(), port);
        for (text, address) in [
            ("ipc:///tmp/a.sock", Address::File("/tmp/a.sock".into())),
            ("/tmp/a.sock", Address::File("/tmp/a.sock".into())),
            ("ipc://a.sock", Address::File("a.sock".into())),
            ("ipc://@a", Address::Name(b"a".into())),
            ("tcp://[::1]:80", tcp("[::1]", 80)),
            ("tcp://*:*", tcp("*", 0)),
            ("tcp://host.example:0", tcp("host.example", 0)),
        ] {
            assert_eq!(Address::parse(text), Ok(address));
        }
        let long = format!("ipc://{}", "x".repeat(MAX_NAME + 1));
        for text in [
            "",
            "a.sock",
            "ipc://",
            "ipc://*",
            "ipc://@",
            "ipc://a\0b",
            &long,
            "tcp://",
            "tcp://a",
            "tcp://:1",
            "tcp://a:",
            "tcp://a:65536",
            "tcp://a:-1",
            "http://x",
            "inproc://x",
        ] {
            assert!(Address::parse(text).is_err(), "{text:?}");
        }
    }
}
