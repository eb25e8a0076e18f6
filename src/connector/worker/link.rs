//! An engine that hands have been shaken with, and the agents that were loaded for it.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

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
///
/// No lock is held while the transport loads or forgets an agent, which may take long: a name is claimed
/// first, and one that is being forgotten is waited for by whoever wants it again.
#[derive(Default)]
pub(super) struct Names {
    inside: Mutex<Claims>,
    /// An agent has been forgotten.
    forgotten: Condvar,
}

#[derive(Default)]
struct Claims {
    /// The worker is closing: nothing more is to be loaded.
    closed: bool,
    by_agent: HashMap<String, Claim>,
}

/// Whose agent it is.
struct Claim {
    owner: Owner,
    /// How many links have it, or are being made with it.
    links: usize,
    /// The transport knows it.
    loaded: bool,
    /// The transport is about to forget it.
    leaving: bool,
}

#[derive(Clone)]
struct Owner {
    engine_id: String,
    host: String,
    port: u16,
}

impl Owner {
    fn of(peer: &PeerAddress) -> Self {
        Owner {
            engine_id: peer.engine_id.clone(),
            host: peer.host.clone(),
            port: peer.port,
        }
    }

    /// The same engine, or one that has come back at its address under another id.
    fn may_become(&self, other: &Owner) -> bool {
        self.engine_id == other.engine_id || (&self.host, self.port) == (&other.host, other.port)
    }
}

/// The longest that one agent may take to be forgotten, for those who want it again.
const FORGETTING: Duration = Duration::from_secs(60);

impl Names {
    /// Loads the metadata of an engine's rank, and takes the agent's name for it.
    pub(super) fn load(
        &self,
        agent: &Agent,
        metadata: &[u8],
        peer: &PeerAddress,
    ) -> Result<String> {
        // Before it is loaded: the transport would take an agent that says so for the one it knows.
        let name = agent.metadata_name(metadata)?;
        let owner = Owner::of(peer);
        self.claim(&name, &owner)?;
        let loaded = agent.add_remote(metadata).and_then(|got| {
            if got != name {
                let _ = agent.remove_remote(&got);
                bail!(
                    Status::Internal,
                    "agent \"{name}\" was loaded under the name \"{got}\""
                );
            }
            self.is_loaded(&name, owner)
        });
        if loaded.is_err() {
            self.unload(agent, std::iter::once(&name[..]));
        }
        loaded.map(|()| name)
    }

    /// Counts a link that will have this agent, unless it is another engine's.
    fn claim(&self, name: &str, owner: &Owner) -> Result<()> {
        let leaving = |all: &mut Claims| all.by_agent.get(name).is_some_and(|c| c.leaving);
        let claims = lock(&self.inside);
        let waited = self
            .forgotten
            .wait_timeout_while(claims, FORGETTING, leaving);
        let (mut claims, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            bail!(
                Status::Timeout,
                "agent \"{name}\" was to be forgotten, and has not been after {FORGETTING:?}"
            );
        }
        check_open(&claims)?;
        let Some(claim) = claims.by_agent.get_mut(name) else {
            let claim = Claim {
                owner: owner.clone(),
                links: 1,
                loaded: false,
                leaving: false,
            };
            claims.by_agent.insert(name.to_owned(), claim);
            return Ok(());
        };
        if !claim.owner.may_become(owner) {
            bail!(
                Status::PeerIncompatible,
                "agent \"{name}\" is that of engine \"{}\" at {}:{} already",
                claim.owner.engine_id,
                claim.owner.host,
                claim.owner.port
            );
        }
        claim.links += 1;
        Ok(())
    }

    fn is_loaded(&self, name: &str, owner: Owner) -> Result<()> {
        let mut claims = lock(&self.inside);
        if let Some(claim) = claims.by_agent.get_mut(name) {
            claim.loaded = true;
            claim.owner = owner;
        }
        check_open(&claims)
    }

    /// Gives agents back; those that nobody needs any more are forgotten.
    pub(super) fn unload<'a>(&self, agent: &Agent, names: impl Iterator<Item = &'a str>) {
        for name in names {
            if !self.give_back(name) {
                continue;
            }
            // The transport may have given it up itself, when it was lost.
            if let Err(e) = agent.remove_remote(name) {
                log::debug!("forgetting agent \"{name}\": {e}");
            }
            lock(&self.inside).by_agent.remove(name);
            self.forgotten.notify_all();
        }
    }

    /// One link less has it; whether the transport is to forget it now.
    fn give_back(&self, name: &str) -> bool {
        let claims = &mut lock(&self.inside).by_agent;
        let Some(claim) = claims.get_mut(name) else {
            return false;
        };
        claim.links = claim.links.saturating_sub(1);
        if claim.links > 0 || claim.leaving {
            return false;
        }
        claim.leaving = claim.loaded;
        if !claim.loaded {
            claims.remove(name);
            return false;
        }
        true
    }

    /// From here on nothing is loaded; what is being loaded is forgotten again.
    pub(super) fn close(&self) {
        lock(&self.inside).closed = true;
    }
}

fn check_open(claims: &Claims) -> Result<()> {
    if claims.closed {
        bail!(Status::InvalidState, "the worker is closing");
    }
    Ok(())
}
