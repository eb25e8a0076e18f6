//! Metadata exchange: how one engine gets the bytes that describe another engine's agent, before
//! any transport connects the two.
//!
//! A [`SideChannel`] is a listener that hands the same metadata to every client that asks;
//! [`request`] is the client. What the bytes mean is no concern of this room. Which protocol is
//! spoken is chosen by name, and nothing falls back in silence:
//!
//! | kind | protocol |
//! |---|---|
//! | `tcp` | one length-prefixed message per connection, see [`tcp`] |
//! | `zmq` | the handshake of vLLM's NIXL connector: metadata per rank, and a clock; see [`zmq`] |
//!
//! # In files
//!
//! `server` is the loop over the clients of a listener and `service` its thread, `sockets` is where
//! it listens; a protocol adds what it says.
//!
//! Metadata is not secret from anyone who can connect, and it is not authenticated. A listener is
//! therefore bound to loopback unless the caller names another address, and says so in the log
//! when the address can be reached from other hosts.
//!
//! # Threads and processes
//!
//! Everything here may be called from any thread. A listener owns one thread, which ends with it.
//! The thread does not follow a `fork`: in a child, [`SideChannel::is_running`] is false, and
//! shutting down or dropping the child's copy leaves the parent's listener as it is. Descriptors
//! do not survive an `exec`.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};

mod server;
mod service;
mod sockets;
pub mod tcp;
pub mod zmq;

/// The longest time that may be given to one client or one request: a day. Longer ones are more
/// likely to be a sentinel or a wrong unit than a wish.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// The most connections a listener can be told to serve at once.
pub const MAX_CONNECTIONS: usize = 65_536;

/// The names that [`listen`] and [`request`] know.
pub const KINDS: &[&str] = &["tcp", "zmq"];

/// Whose metadata: a rank of the engine by its pipeline stage and its place in it. Where an engine
/// has one rank, or the protocol knows of none, it is (0, 0), the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank {
    /// Pipeline stage.
    pub pp: u32,
    /// Tensor-parallel rank in it.
    pub tp: u32,
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank (pp {}, tp {})", self.pp, self.tp)
    }
}

/// What a listener answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The metadata.
    pub metadata: Vec<u8>,
    /// How the listener's clock stands to ours, where the protocol tells: `zmq` does.
    pub clock: Option<ClockSample>,
}

/// One reading of another process's monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClockSample {
    /// From the question to the answer. Of several samples the one with the least is the best.
    pub rtt: Duration,
    /// Their clock less ours, in seconds, taken to have been read half-way. CLOCK_MONOTONIC, which
    /// on one host is the same for all.
    pub offset: f64,
}

/// A listener that gives its metadata to every client that asks for it.
///
/// Dropping the last reference shuts it down.
pub trait SideChannel: Send + Sync {
    /// The kind of the channel, as given to [`listen`].
    fn name(&self) -> &'static str;

    /// The address it listens on. Where port 0 was asked for, the port is the one that was given.
    fn local_addr(&self) -> SocketAddr;

    /// Replaces the metadata of rank (0, 0): [`SideChannel::set_rank_metadata`].
    ///
    /// # Errors
    /// As there.
    fn set_metadata(&self, metadata: Vec<u8>) -> Result<()> {
        self.set_rank_metadata(Rank::default(), metadata)
    }

    /// Replaces the metadata of one rank. Clients that ask (`tcp`: connect) from now on get the new
    /// bytes; one that is being served gets the old ones to their end, never a mixture.
    ///
    /// # Errors
    /// `InvalidArgument` when the metadata is longer than [`ListenOptions::max_message`] or than
    /// the protocol can carry, or the protocol knows no such rank; `InvalidState` after
    /// [`SideChannel::shutdown`].
    fn set_rank_metadata(&self, rank: Rank, metadata: Vec<u8>) -> Result<()>;

    /// Replaces the metadata of all ranks at once: those that are not listed have none from now on.
    ///
    /// # Errors
    /// As [`SideChannel::set_rank_metadata`], and `InvalidArgument` for a rank that is listed twice;
    /// then nothing has changed.
    fn replace_ranks(&self, ranks: Vec<(Rank, Vec<u8>)>) -> Result<()>;

    /// Whether clients are being served. False after a shutdown, and in a forked child.
    fn is_running(&self) -> bool;

    /// Stops serving, cuts the clients that are being served, frees the port and joins the
    /// thread. No client can hold it up. Calling it again, or from several threads, is harmless:
    /// each call returns when the work is done.
    fn shutdown(&self);
}

/// How to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// An IPv4 or IPv6 address (square brackets are allowed) or a host name. The default is
    /// `127.0.0.1`. A host name is bound at the first of its addresses that this machine has.
    pub host: String,
    /// The port; 0, the default, lets the system choose.
    pub port: u16,
    /// The longest metadata that may be set, in bytes. Default: 64 MiB.
    pub max_message: usize,
    /// How many clients are served at once, 1 to [`MAX_CONNECTIONS`]. Default: 256. What happens
    /// to more of them is the protocol's to say.
    pub max_connections: usize,
    /// How long one client may take, from its connection to its end, at most
    /// [`MAX_TIMEOUT`]. It also bounds the look-up of a host name. Default: 5 s.
    pub timeout: Duration,
}

impl Default for ListenOptions {
    fn default() -> Self {
        ListenOptions {
            host: "127.0.0.1".to_owned(),
            port: 0,
            max_message: DEFAULT_MAX_MESSAGE,
            max_connections: 256,
            timeout: DEFAULT_TIMEOUT,
        }
    }
}

/// How to ask for metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestOptions {
    /// How long the whole request may take: name look-up, connection and every byte of the
    /// answer. More than zero, at most [`MAX_TIMEOUT`]. Default: 5 s.
    pub timeout: Duration,
    /// The longest answer that is accepted, in bytes. Default: 64 MiB.
    pub max_message: usize,
    /// Whose metadata to ask for. `tcp` knows (0, 0), the default, only.
    pub rank: Rank,
}

impl Default for RequestOptions {
    fn default() -> Self {
        RequestOptions {
            timeout: DEFAULT_TIMEOUT,
            max_message: DEFAULT_MAX_MESSAGE,
            rank: Rank::default(),
        }
    }
}

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_MAX_MESSAGE: usize = 64 << 20;

/// Starts a listener of this kind (see [`KINDS`]) that serves `metadata`, which may be empty.
///
/// # Errors
/// `InvalidArgument` for an unknown kind, an option out of range, metadata that is too long or an
/// address that this machine does not have; `NotFound` for a host name without an address; `Busy`
/// when the port is taken; `PermissionDenied` when this user may not have it; `Timeout` when the
/// name look-up takes longer than [`ListenOptions::timeout`]; `ResourceExhausted` without
/// descriptors or threads.
pub fn listen(
    kind: &str,
    options: &ListenOptions,
    metadata: Vec<u8>,
) -> Result<Arc<dyn SideChannel>> {
    check_host(&options.host)?;
    check_timeout(options.timeout)?;
    if !(1..=MAX_CONNECTIONS).contains(&options.max_connections) {
        return Err(Error::invalid(format!(
            "max_connections {} is not in 1 to {MAX_CONNECTIONS}",
            options.max_connections
        )));
    }
    match kind {
        "tcp" => Ok(Arc::new(tcp::TcpSideChannel::listen(options, metadata)?)),
        "zmq" => Ok(Arc::new(zmq::ZmqSideChannel::listen(options, metadata)?)),
        other => Err(unknown_kind(other)),
    }
}

/// Asks the listener of this kind at `host` and `port` for its metadata. It tries once: whether
/// and when to repeat is the caller's decision.
///
/// `host` is an address or a host name. When a name has several addresses they are tried in turn,
/// each with its share of the time that is left. A name is looked up on a thread of its own, since
/// the system's resolver cannot be interrupted: when it exceeds the timeout, that thread stays
/// until the resolver returns.
///
/// # Errors
/// Every message names the host and the port. `Timeout` when the time is over; `PeerLost` when
/// nobody listens there, the host is unreachable, or the connection ends before the whole message
/// came; `PeerIncompatible` when the peer announces more than [`RequestOptions::max_message`];
/// `NotFound` for a host name without an address, or a rank without metadata; `InvalidArgument` for an
/// unknown kind, port 0 or an option out of range; `ResourceExhausted` without memory, descriptors or
/// threads.
pub fn request(kind: &str, host: &str, port: u16, options: &RequestOptions) -> Result<Answer> {
    check_request(host, port, options)?;
    match kind {
        "tcp" if options.rank != Rank::default() => Err(Error::invalid(format!(
            "{}: a side channel of kind tcp has the metadata of one rank only, {}",
            options.rank,
            Rank::default()
        ))),
        "tcp" => Ok(Answer {
            metadata: tcp::request(host, port, options)?,
            clock: None,
        }),
        "zmq" => zmq::request(host, port, options),
        other => Err(unknown_kind(other)),
    }
}

fn check_request(host: &str, port: u16, options: &RequestOptions) -> Result<()> {
    check_host(host)?;
    check_timeout(options.timeout)?;
    if port == 0 {
        return Err(Error::invalid(format!(
            "port 0 of {host:?} cannot be connected to"
        )));
    }
    Ok(())
}

fn check_length(metadata: &[u8], max_message: usize) -> Result<()> {
    if metadata.len() > max_message {
        return Err(Error::invalid(format!(
            "metadata of {} bytes is longer than max_message, {max_message}",
            metadata.len()
        )));
    }
    Ok(())
}

fn unknown_kind(kind: &str) -> Error {
    Error::invalid(format!(
        "side channel kind {kind:?} is not known; there is: {}",
        KINDS.join(", ")
    ))
}

fn check_host(host: &str) -> Result<()> {
    // 253 is the longest host name there is; an IPv6 address with a zone is shorter.
    if host.is_empty() || host.len() > 255 || host.contains('\0') {
        return Err(Error::invalid(format!(
            "host {:?} ({} bytes) is neither an address nor a host name; \
             127.0.0.1 is loopback, 0.0.0.0 every IPv4 interface",
            host.chars().take(64).collect::<String>(),
            host.len()
        )));
    }
    Ok(())
}

fn check_timeout(timeout: Duration) -> Result<()> {
    if timeout.is_zero() || timeout > MAX_TIMEOUT {
        return Err(Error::invalid(format!(
            "timeout {timeout:?} is not more than zero and at most {MAX_TIMEOUT:?}"
        )));
    }
    Ok(())
}
