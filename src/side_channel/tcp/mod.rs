//! The `tcp` side channel.
//!
//! # Protocol
//!
//! One message per connection, from the listener to the client:
//!
//! ```text
//! offset  bytes   what
//! 0       4       length of the payload, unsigned, big-endian
//! 4       length  payload: the metadata, uninterpreted
//! ```
//!
//! 1. The client connects and sends nothing.
//! 2. The listener sends the message at once and half-closes its side (a FIN follows the last
//!    byte).
//! 3. The client has the message when it has `4 + length` bytes; it need not wait for the end of
//!    the stream, and ignores what follows. It closes.
//! 4. The listener closes when the client has closed or half-closed, or its time is over.
//!
//! The listener understands nothing a client sends, so there is nothing to get wrong: bytes from
//! a client are read only to be thrown away, after the message has been handed to the kernel. They
//! have to be: closing a TCP socket with unread bytes sends a reset, and a reset can overtake
//! and destroy the end of the message on its way. A client that sends more than 1 MiB is cut off.
//! A client may half-close its side at any time; it is served all the same.
//!
//! An end of the stream before `4 + length` bytes means that the listener went away or cut the
//! client off: at its deadline, at its connection limit, or when it shut down. The client reports
//! a lost peer, and may ask again.
//!
//! # More clients than `max_connections`
//!
//! A newcomer takes the place of the client that was sent its whole message longest ago and only
//! lingers, else of the slowest, by a rule that leaves each client 250 ms. The rate is bytes per
//! second, not counting the first 50 ms and what comes before the client has to be waited for: the
//! sockets' buffers take those bytes whether the client reads or not. Metadata of usual size fits the socket's buffer whole, so that no client is ever cut
//! short.

use std::mem;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use super::service::Service;
use super::{ListenOptions, Rank, SideChannel};
use crate::error::{Error, Result};
use crate::sync::lock;

mod client;
pub mod frame;
mod server;

pub(super) use client::request;

/// A listener of kind `tcp`: see the [module](self) for the protocol.
pub struct TcpSideChannel {
    service: Service,
    max_message: usize,
    message: Arc<Mutex<Arc<Vec<u8>>>>,
}

impl TcpSideChannel {
    /// Binds, and starts the thread. See [`super::listen`], which has checked the options.
    pub(super) fn listen(options: &ListenOptions, metadata: Vec<u8>) -> Result<Self> {
        let message = encode(metadata, options.max_message)?;
        let message = Arc::new(Mutex::new(Arc::new(message)));
        let protocol = server::Protocol {
            message: message.clone(),
            timeout: options.timeout,
        };
        Ok(TcpSideChannel {
            service: Service::start("kvf-side-tcp", options, |_| protocol)?,
            max_message: options.max_message,
            message,
        })
    }
}

impl SideChannel for TcpSideChannel {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn local_addr(&self) -> SocketAddr {
        self.service.address()
    }

    fn set_rank_metadata(&self, rank: Rank, metadata: Vec<u8>) -> Result<()> {
        self.service.check_running()?;
        if rank != Rank::default() {
            return Err(Error::invalid(format!(
                "{rank}: a side channel of kind tcp has the metadata of one rank only, {}",
                Rank::default()
            )));
        }
        let message = Arc::new(encode(metadata, self.max_message)?);
        // The old message is freed after the lock has been given back: it may be large.
        let old = mem::replace(&mut *lock(&self.message), message);
        drop(old);
        Ok(())
    }

    fn replace_ranks(&self, ranks: Vec<(Rank, Vec<u8>)>) -> Result<()> {
        let count = ranks.len();
        let Ok([(rank, metadata)]) = <[_; 1]>::try_from(ranks) else {
            return Err(Error::invalid(format!(
                "{count} ranks: a side channel of kind tcp has the metadata of one"
            )));
        };
        self.set_rank_metadata(rank, metadata)
    }

    fn is_running(&self) -> bool {
        self.service.is_running()
    }

    fn shutdown(&self) {
        self.service.shutdown();
    }
}

fn encode(metadata: Vec<u8>, max_message: usize) -> Result<Vec<u8>> {
    super::check_length(&metadata, max_message)?;
    frame::encode(metadata)
}
