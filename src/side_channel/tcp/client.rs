//! The client of the `tcp` side channel.

use std::net::TcpStream;
use std::os::fd::AsRawFd;

use super::frame::{MessageReader, Step};
use crate::error::{Error, Result, Status, bail};
use crate::net::{self, Deadline, Endpoint};
use crate::side_channel::RequestOptions;

/// See [`crate::side_channel::request`]. One deadline covers all of it.
pub(in crate::side_channel) fn request(
    host: &str,
    port: u16,
    options: &RequestOptions,
) -> Result<Vec<u8>> {
    let peer = Endpoint(host, port);
    let deadline = Deadline::after(options.timeout);
    net::resolve(host, port, &deadline)
        .and_then(|addrs| net::connect(&addrs, &deadline))
        .and_then(|stream| read_message(&stream, options.max_message, &deadline))
        .map_err(|e| e.context(format_args!("side channel at {peer}")))
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
