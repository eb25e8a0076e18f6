//! An engine that hands have been shaken with, and the agents that were loaded for it.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::agent::Agent;
use crate::connector::PeerAddress;
use crate::error::{Result, Status, bail};
use crate::plan::{PeerRole, Plan};
use crate::sync::lock;

/// What a link is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Purpose {
    /// Bytes: the peer's geometry is checked against ours, and a plan made.
    Transfer,
    /// Messages only: a consumer that is written to never touches the producer's memory.
    Notify,
}

/// A rank of a peer engine.
#[derive(Clone, Debug)]
pub(super) struct Rank {
    pub pp: u32,
    pub tp: u32,
    /// The name of its agent.
    pub agent: String,
    /// Address and number of its lease words, if it has any.
    pub lease_table: Option<(u64, u64)>,
}

/// A peer engine, ready for use.
#[derive(Debug)]
pub(super) struct Link {
    pub address: PeerAddress,
    /// In the order of the plan's peers.
    pub ranks: Vec<Rank>,
    /// There is none for messages only.
    pub plan: Option<Plan>,
    /// For each of our groups the index of the peer's list of block ids.
    pub groups: Vec<u32>,
    /// The peer's monotonic clock less ours, in seconds.
    pub clock_offset: f64,
    /// How many ranks of our engine tell each of its ranks that they are done.
    pub consumers: u32,
    /// The peer's count of published payloads that this handshake was for.
    pub registration: u64,
}

impl Link {
    /// The ranks that wait to hear from this rank.
    pub(super) fn listeners(&self) -> impl Iterator<Item = &Rank> {
        let idle = |i: usize| {
            let plan = self.plan.as_ref();
            plan.is_some_and(|p| p.peers()[i].role == PeerRole::Idle)
        };
        let ranks = self.ranks.iter().enumerate();
        ranks.filter(move |(i, _)| !idle(*i)).map(|(_, r)| r)
    }
}

/// Which agents are loaded for whom. Handshakes load them on their own threads; two engines that claim
/// to have the same agent must not take it from each other.
#[derive(Default)]
pub(super) struct Names {
    inside: Mutex<Claims>,
}

#[derive(Default)]
struct Claims {
    /// The worker is closing: nothing more is to be loaded.
    closed: bool,
    by_agent: HashMap<String, Claim>,
}

/// Whose agent it is.
#[derive(Default)]
struct Claim {
    engine_id: String,
    host: String,
    port: u16,
    /// How many links have it.
    links: usize,
}

impl Names {
    /// Loads the metadata of an engine's rank, and takes the agent's name for it.
    pub(super) fn load(
        &self,
        agent: &Agent,
        metadata: &[u8],
        peer: &PeerAddress,
    ) -> Result<String> {
        let mut claims = lock(&self.inside);
        if claims.closed {
            bail!(Status::InvalidState, "the worker is closing");
        }
        // Before it is loaded: the transport would take an agent that says so for the one it knows.
        let name = agent.metadata_name(metadata)?;
        if let Some(claim) = claims.by_agent.get(&name) {
            let same_place = (&claim.host, claim.port) == (&peer.host, peer.port);
            if claim.engine_id != peer.engine_id && !same_place {
                bail!(
                    Status::PeerIncompatible,
                    "agent \"{name}\" is that of engine \"{}\" at {}:{} already",
                    claim.engine_id,
                    claim.host,
                    claim.port
                );
            }
        }
        let name = agent.add_remote(metadata)?;
        let claim = claims.by_agent.entry(name.clone()).or_default();
        // Of the same engine, or of one that has come back at its address under another id.
        claim.engine_id.clone_from(&peer.engine_id);
        claim.host.clone_from(&peer.host);
        claim.port = peer.port;
        claim.links += 1;
        Ok(name)
    }

    /// Gives agents back; those that nobody needs any more are forgotten.
    pub(super) fn unload<'a>(&self, agent: &Agent, names: impl Iterator<Item = &'a str>) {
        let mut claims = lock(&self.inside);
        for name in names {
            let Some(claim) = claims.by_agent.get_mut(name) else {
                continue;
            };
            claim.links -= 1;
            if claim.links > 0 {
                continue;
            }
            claims.by_agent.remove(name);
            // The transport may have given it up itself, when it was lost.
            if let Err(e) = agent.remove_remote(name) {
                log::debug!("forgetting agent \"{name}\": {e}");
            }
        }
    }

    /// From here on nothing is loaded.
    pub(super) fn close(&self) {
        lock(&self.inside).closed = true;
    }
}
