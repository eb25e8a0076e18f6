//! Which leases on other engines are to be extended, and when.
//!
//! A request is in here from the moment it enters the engine, so that its blocks are kept while it queues,
//! until its KV is in or it has ended. Its first heartbeat goes out with the next step, since a router may
//! have held it back until its lease is nearly over; and since the workers count from there where a
//! producer has no lease words. From then on it has the rhythm of all.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::connector::PeerAddress;
use crate::connector::params::Remote;
use crate::connector::step::Heartbeat;

/// Most requests in one heartbeat: some megabytes, whatever they are called.
const MOST_IDS: usize = 4096;

#[derive(Debug)]
pub(super) struct Heartbeats {
    period_ns: u64,
    /// When all are due.
    due_ns: u64,
    peers: BTreeMap<String, Peer>,
    /// This engine's request: engine and request there.
    of_request: HashMap<String, (String, String)>,
    /// This engine's requests that have just come in. With the first one for an engine the handshake
    /// begins, too, while it is still queueing.
    fresh: Vec<String>,
}

#[derive(Debug)]
struct Peer {
    address: PeerAddress,
    /// Requests there, and how many requests here want each.
    requests: BTreeMap<String, u32>,
}

impl Heartbeats {
    pub(super) fn new(period_ns: u64) -> Self {
        Heartbeats {
            period_ns,
            due_ns: 0,
            peers: BTreeMap::new(),
            of_request: HashMap::new(),
            fresh: Vec::new(),
        }
    }

    /// Begins to extend the lease of a request's KV; it is none of those that are extended already.
    pub(super) fn start(&mut self, id: &str, remote: &Remote) {
        let engine = &remote.peer.engine_id;
        let peer = self.peers.entry(engine.clone()).or_insert_with(|| Peer {
            address: remote.peer.clone(),
            requests: BTreeMap::new(),
        });
        // The newest word about where an engine is found is the best.
        if peer.address != remote.peer {
            peer.address = remote.peer.clone();
        }
        *peer.requests.entry(remote.request_id.clone()).or_default() += 1;
        self.fresh.push(id.to_owned());
        self.of_request
            .insert(id.to_owned(), (engine.clone(), remote.request_id.clone()));
    }

    /// Ends it; harmless if there was none.
    pub(super) fn stop(&mut self, id: &str) {
        let Some((engine, request)) = self.of_request.remove(id) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&engine) else {
            return;
        };
        if let Some(wanted) = peer.requests.get_mut(&request) {
            *wanted -= 1;
            if *wanted == 0 {
                peer.requests.remove(&request);
            }
        }
        if peer.requests.is_empty() {
            self.peers.remove(&engine);
        }
    }

    /// Those that are due.
    pub(super) fn take(&mut self, now_ns: u64) -> Vec<Heartbeat> {
        let fresh = std::mem::take(&mut self.fresh);
        if self.peers.is_empty() {
            return Vec::new();
        }
        if now_ns >= self.due_ns {
            self.due_ns = now_ns + self.period_ns;
            let all = self.peers.values();
            return all.flat_map(|p| p.beats(p.requests.keys())).collect();
        }
        let mut of_peers: BTreeMap<&String, BTreeSet<&String>> = BTreeMap::new();
        for (engine, request) in fresh.iter().filter_map(|id| self.of_request.get(id)) {
            of_peers.entry(engine).or_default().insert(request);
        }
        let mut out = Vec::new();
        for (engine, requests) in of_peers {
            if let Some(peer) = self.peers.get(engine) {
                out.extend(peer.beats(requests.into_iter()));
            }
        }
        out
    }

    pub(super) fn requests(&self) -> usize {
        self.of_request.len()
    }

    pub(super) fn peers(&self) -> usize {
        self.peers.len()
    }
}

impl Peer {
    /// In pieces that fit into any step.
    fn beats<'a>(&self, ids: impl Iterator<Item = &'a String>) -> Vec<Heartbeat> {
        let ids: Vec<&String> = ids.collect();
        let some = ids.chunks(MOST_IDS);
        some.map(|ids| Heartbeat {
            peer: self.address.clone(),
            remote_request_ids: ids.iter().map(|&id| id.clone()).collect(),
        })
        .collect()
    }
}
