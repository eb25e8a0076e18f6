//! The `zmq` side channel: the handshake of vLLM's NIXL connector.
//!
//! # Protocol
//!
//! The listener is what ZeroMQ calls a ROUTER socket, bound; the client a REQ socket, connected. Over a
//! connection the client asks for one rank after the other:
//!
//! ```text
//! question   [empty] [body]              body: MessagePack array of bin "get_meta_msg", pp rank, tp rank
//! answer     [empty] [metadata] [clock]  clock: MessagePack float64, CLOCK_MONOTONIC in seconds
//! ```
//!
//! The clock is read when the answer is made, so that the client learns how the two clocks stand to each
//! other: it takes the reading to be from the middle between question and answer.
//!
//! What a client gets that asks for something else, or otherwise:
//!
//! | sent | answer |
//! |---|---|
//! | another word than `get_meta_msg`, or as a string | the metadata, as from stock vLLM |
//! | a rank without metadata | an empty metadata frame and the clock |
//! | a body that is no such array, or more frames | the same |
//! | a message that does not begin with an empty frame | none: it is dropped |
//! | no ZeroMQ, another mechanism than NULL, a socket of another type, a message too long | the connection ends |
//!
//! Stock vLLM's client fails at once on an empty metadata frame (it cannot decode it), and would wait for its
//! timeout otherwise. Each of these is logged once per listener.
//!
//! # Without libzmq
//!
//! The wire protocol is spoken by [`crate::zmtp`]: an engine lives in this process, and libzmq aborts the
//! process when descriptors run out, has no limit on connections, does not survive a fork, and tells a
//! client nothing when nobody listens. The loop of `tcp` serves it. The tests have libzmq at the other end.
//!
//! A client may stay connected and silent; it makes room first when there are more than
//! [`ListenOptions::max_connections`]. [`ListenOptions::timeout`] is for getting ready, and for each
//! question from its first byte to the last byte of the answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::service::Service;
use super::{ListenOptions, Rank, SideChannel, check_length};
use crate::error::{Error, Result};
use crate::sync::lock;

mod client;
pub mod message;
mod server;

pub use client::Session;
pub(super) use client::request;

/// The most ranks that a listener has metadata for.
pub const MAX_RANKS: usize = 65_536;

/// A listener of kind `zmq`: see the [module](self) for the protocol.
pub struct ZmqSideChannel {
    service: Service,
    max_message: usize,
    ranks: Arc<Ranks>,
}

/// What is served, and which faults of clients have been logged.
#[derive(Default)]
struct Ranks {
    /// Never an empty one: that says that there is none.
    served: Mutex<BTreeMap<Rank, Arc<Vec<u8>>>>,
    logged: AtomicU32,
}

impl Ranks {
    /// Whether this kind of fault has not been seen before.
    fn first_time(&self, kind: u32) -> bool {
        self.logged.fetch_or(1 << kind, Ordering::Relaxed) & (1 << kind) == 0
    }
}

impl ZmqSideChannel {
    /// Binds, and starts the thread. See [`super::listen`], which has checked the options.
    pub(super) fn listen(options: &ListenOptions, metadata: Vec<u8>) -> Result<Self> {
        check_length(&metadata, options.max_message)?;
        let ranks = Arc::new(Ranks::default());
        set(&mut lock(&ranks.served), Rank::default(), metadata);
        let served = ranks.clone();
        let service = Service::start("kvf-side-zmq", options, |address| server::Protocol {
            address,
            ranks: served,
            timeout: options.timeout,
        })?;
        Ok(ZmqSideChannel {
            service,
            max_message: options.max_message,
            ranks,
        })
    }
}

impl SideChannel for ZmqSideChannel {
    fn name(&self) -> &'static str {
        "zmq"
    }

    fn local_addr(&self) -> SocketAddr {
        self.service.address()
    }

    /// Empty metadata is none.
    fn set_rank_metadata(&self, rank: Rank, metadata: Vec<u8>) -> Result<()> {
        self.service.check_running()?;
        check_length(&metadata, self.max_message).map_err(|e| e.context(rank))?;
        let mut served = lock(&self.ranks.served);
        if served.len() >= MAX_RANKS && !served.contains_key(&rank) {
            return Err(Error::invalid(format!("more than {MAX_RANKS} ranks")));
        }
        let old = set(&mut served, rank, metadata);
        // What was served may be large: it is freed after the lock has been given back.
        drop(served);
        drop(old);
        Ok(())
    }

    fn replace_ranks(&self, ranks: Vec<(Rank, Vec<u8>)>) -> Result<()> {
        self.service.check_running()?;
        if ranks.len() > MAX_RANKS {
            return Err(Error::invalid(format!(
                "{} ranks are more than {MAX_RANKS}",
                ranks.len()
            )));
        }
        let mut all = BTreeMap::new();
        let mut listed = std::collections::BTreeSet::new();
        for (rank, metadata) in ranks {
            check_length(&metadata, self.max_message).map_err(|e| e.context(rank))?;
            if !listed.insert(rank) {
                return Err(Error::invalid(format!("{rank} is listed twice")));
            }
            set(&mut all, rank, metadata);
        }
        let old = std::mem::replace(&mut *lock(&self.ranks.served), all);
        drop(old);
        Ok(())
    }

    fn is_running(&self) -> bool {
        self.service.is_running()
    }

    fn shutdown(&self) {
        self.service.shutdown();
    }
}

fn set(
    served: &mut BTreeMap<Rank, Arc<Vec<u8>>>,
    rank: Rank,
    metadata: Vec<u8>,
) -> Option<Arc<Vec<u8>>> {
    if metadata.is_empty() {
        served.remove(&rank)
    } else {
        served.insert(rank, Arc::new(metadata))
    }
}
