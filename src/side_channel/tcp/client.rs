//! The client of the `tcp` side channel.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;

use super::frame::{MessageReader, Step};
use crate::error::{Error, Result, Status, bail};
use crate::side_channel::RequestOptions;
use crate::side_channel::net::{self, Deadline, Endpoint};

/// See [`crate::side_channel::request`]. One deadline covers all of it.
pub(in crate::side_channel) fn request(
    host: &str,
    port: u16,
    options: &RequestOptions,
) -> Result<Vec<u8>> {
    let peer = Endpoint(host, port);
    let deadline = Deadline::after(options.timeout);
    net::resolve(host, port, &deadline)
        .and_then(|addrs| connect(&addrs, &deadline))
        .and_then(|stream| read_message(&stream, options.max_message, &deadline))
        .map_err(|e| e.context(format_args!("side channel at {peer}")))
}

/// The first connection that succeeds. Each address has its share of the time that is left, so
/// that one that swallows packets does not hide the next.
fn connect(addrs: &[SocketAddr], deadline: &Deadline) -> Result<TcpStream> {
    let mut failures: Vec<Error> = Vec::new();
    for (i, addr) in addrs.iter().enumerate() {
        let share = deadline.remaining() / (addrs.len() - i) as u32;
        if share.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(addr, share) {
            Ok(stream) if !connected_to_itself(&stream) => return Ok(stream),
            Ok(_) => failures.push(Error::new(
                Status::PeerLost,
                format!("{addr}: nobody listens there"),
            )),
            Err(e) => failures.push(connect_error(addr, &e)),
        }
    }
    if deadline.remaining().is_zero() {
        bail!(
            Status::Timeout,
            "no connection within {:?}",
            deadline.allowed
        );
    }
    let status = failures.last().map_or(Status::PeerLost, Error::status);
    let each: Vec<_> = failures.iter().map(Error::message).collect();
    bail!(status, "cannot connect: {}", each.join("; "))
}

/// Linux lets a socket whose own port happens to be the one it asks for connect to itself.
fn connected_to_itself(stream: &TcpStream) -> bool {
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(a), Ok(b)) if a == b)
}

fn connect_error(addr: &SocketAddr, e: &io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown => Error::new(Status::PeerLost, format!("{addr}: {e}")),
        _ => Error::from_io(addr, e),
    }
}

fn read_message(stream: &TcpStream, max: usize, deadline: &Deadline) -> Result<Vec<u8>> {
    stream
        .set_nonblocking(true)
        .map_err(|e| Error::from_io("cannot make the socket non-blocking", &e))?;
    let mut message = MessageReader::new(max);
    loop {
        // The clock is looked at after every step, so that neither a peer that drips nor one that
        // never pauses can go past the deadline.
        match message.step(&mut { stream })? {
            Step::Complete => return Ok(message.into_payload()),
            _ if deadline.remaining().is_zero() => bail!(
                Status::Timeout,
                "{message} came within {:?}",
                deadline.allowed
            ),
            Step::Advanced => {}
            Step::WouldBlock => {
                let mut fds = [net::pollfd(stream.as_raw_fd(), libc::POLLIN)];
                net::poll(&mut fds, Some(deadline.at))
                    .map_err(|e| Error::from_io("cannot wait for the answer", &e))?;
            }
        }
    }
}
