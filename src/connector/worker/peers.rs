//! The engines that this rank deals with: who is known, who is being met, who is lost.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::handshake::Task;
use super::link::{Link, Purpose};
use crate::connector::PeerAddress;
use crate::error::{Error, Status};

/// Names an entry: what is needed of which engine.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    pub purpose: Purpose,
    pub engine_id: String,
}

/// The shortest and the longest time for which a peer that was lost again is left alone. The first time
/// costs nothing: it may just have been restarted.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Who waits for a handshake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Waiting {
    /// A receive of this id: pull, or the registration of a push.
    Receive(String),
    /// A push of this id.
    Push(String),
    /// Word that nothing is wanted of this request of the other engine's.
    Farewell { remote_id: String },
}

enum State {
    /// Hands are being shaken.
    Shaking { attempt: u64, waiting: Vec<Waiting> },
    /// Ready.
    Linked(Arc<Link>),
    /// It has published anew: hands are shaken again when what moves over the old link is at rest.
    Renewing(Renewing),
    /// Lost: fails fast. The link is kept while transfers are coming to rest.
    Lost(Option<Arc<Link>>),
}

struct Renewing {
    link: Arc<Link>,
    /// The peer was lost meanwhile: nothing more goes over the link.
    lost: bool,
    registration: u64,
    waiting: Vec<Waiting>,
    since: Instant,
}

struct Peer {
    state: State,
    address: PeerAddress,
    last_active: Instant,
    /// Transfers under way.
    running: usize,
    /// Another engine answers at its address now.
    replaced: bool,
    /// The next loss is punished with this; and until when this one is.
    back_off: Duration,
    not_before: Instant,
}

/// What a request gets that wants a peer.
pub(super) enum Wanted {
    /// Here it is.
    Link(Arc<Link>),
    /// It was noted, and will be told; the handshake is to be started if there is one.
    Later(Option<Task>),
    /// Not now.
    Refused(Error),
}

#[derive(Default)]
pub(super) struct Peers {
    by_key: HashMap<Key, Peer>,
    attempts: u64,
}

impl Peers {
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Gets a link with a peer, or arranges for one. `registration` is the least count of published
    /// payloads that the link must be for.
    pub(super) fn want(
        &mut self,
        key: &Key,
        address: &PeerAddress,
        registration: u64,
        waiting: Option<Waiting>,
        now: Instant,
        unload: &mut Vec<Arc<Link>>,
    ) -> Wanted {
        self.attempts += 1;
        let attempt = self.attempts;
        let peer = self.by_key.entry(key.clone()).or_insert_with(|| Peer {
            state: State::Lost(None),
            address: address.clone(),
            last_active: now,
            running: 0,
            replaced: false,
            back_off: Duration::ZERO,
            not_before: now,
        });
        peer.last_active = now;
        match &mut peer.state {
            State::Linked(link) if link.registration >= registration => {
                return Wanted::Link(link.clone());
            }
            // It has registered its memory anew since.
            State::Linked(link) if peer.running > 0 => {
                peer.address = address.clone();
                peer.state = State::Renewing(Renewing {
                    link: link.clone(),
                    lost: false,
                    registration,
                    waiting: waiting.into_iter().collect(),
                    since: now,
                });
                return Wanted::Later(None);
            }
            State::Linked(link) => peer.state = State::Lost(Some(link.clone())),
            // A heartbeat goes out meanwhile: blocks are kept for those who wait.
            State::Renewing(r) if waiting.is_none() && !r.lost => {
                return Wanted::Link(r.link.clone());
            }
            State::Renewing(r) => {
                r.registration = r.registration.max(registration);
                r.waiting.extend(waiting);
                return Wanted::Later(None);
            }
            State::Shaking { waiting: list, .. } => {
                list.extend(waiting);
                return Wanted::Later(None);
            }
            State::Lost(_) => {}
        }
        if peer.running > 0 {
            return Wanted::Refused(Error::new(
                Status::PeerLost,
                format!(
                    "engine \"{}\" is lost; {} transfers with it are coming to rest",
                    key.engine_id, peer.running
                ),
            ));
        }
        let left = peer.not_before.saturating_duration_since(now);
        if !left.is_zero() {
            return Wanted::Refused(Error::new(
                Status::PeerLost,
                format!(
                    "engine \"{}\" was lost repeatedly; it is left alone for {} ms more",
                    key.engine_id,
                    left.as_millis()
                ),
            ));
        }
        if let State::Lost(Some(link)) = &peer.state {
            unload.push(link.clone());
        }
        peer.address = address.clone();
        peer.state = State::Shaking {
            attempt,
            waiting: waiting.into_iter().collect(),
        };
        Wanted::Later(Some(Task {
            key: key.clone(),
            attempt,
            address: address.clone(),
            registration,
        }))
    }

    /// The link with a peer, if there is one.
    pub(super) fn link(&self, key: &Key) -> Option<Arc<Link>> {
        match self.by_key.get(key).map(|p| &p.state) {
            Some(State::Linked(link)) => Some(link.clone()),
            Some(State::Renewing(r)) if !r.lost => Some(r.link.clone()),
            _ => None,
        }
    }

    /// The handshake with a peer that has published anew, if nothing moves over the old link any more.
    pub(super) fn renew(&mut self, key: &Key, unload: &mut Vec<Arc<Link>>) -> Option<Task> {
        let peer = self.by_key.get_mut(key).filter(|p| p.running == 0)?;
        let State::Renewing(r) = &mut peer.state else {
            return None;
        };
        self.attempts += 1;
        let task = Task {
            key: key.clone(),
            attempt: self.attempts,
            address: peer.address.clone(),
            registration: r.registration,
        };
        unload.push(r.link.clone());
        peer.state = State::Shaking {
            attempt: task.attempt,
            waiting: std::mem::take(&mut r.waiting),
        };
        Some(task)
    }

    /// Those who have waited for longer than `limit` for transfers over an old link to come to rest. From
    /// then on the peer counts as lost.
    pub(super) fn waited_too_long(
        &mut self,
        limit: Duration,
        now: Instant,
    ) -> Vec<(Key, Vec<Waiting>)> {
        let mut out = Vec::new();
        for (key, peer) in &mut self.by_key {
            if let State::Renewing(r) = &mut peer.state {
                if now.saturating_duration_since(r.since) > limit {
                    out.push((key.clone(), std::mem::take(&mut r.waiting)));
                    peer.state = State::Lost(Some(r.link.clone()));
                }
            }
        }
        out
    }

    /// A handshake has ended well. Those who waited for it; `None` if nobody wants it any more.
    pub(super) fn linked(
        &mut self,
        task: &Task,
        link: Arc<Link>,
        now: Instant,
    ) -> Option<Vec<Waiting>> {
        let waiting = self.answered(task)?;
        let place = (link.address.host.clone(), link.address.port);
        for (key, peer) in &mut self.by_key {
            if key.purpose != task.key.purpose {
                continue;
            }
            if key.engine_id == task.key.engine_id {
                peer.state = State::Linked(link.clone());
                peer.last_active = now;
                peer.replaced = false;
            } else if (&peer.address.host, peer.address.port) == (&place.0, place.1) {
                log::info!(
                    "engine \"{}\" at {}:{} has been replaced by \"{}\"",
                    key.engine_id,
                    place.0,
                    place.1,
                    task.key.engine_id
                );
                peer.replaced = true;
            }
        }
        Some(waiting)
    }

    /// A handshake has failed: those who waited for it. The next request tries again.
    pub(super) fn failed(&mut self, task: &Task, now: Instant) -> Vec<Waiting> {
        let waiting = self.answered(task).unwrap_or_default();
        if let Some(peer) = self.by_key.get_mut(&task.key) {
            if matches!(peer.state, State::Shaking { attempt, .. } if attempt == task.attempt) {
                peer.state = State::Lost(None);
                // Kept only for as long as it has something to remember.
                if peer.back_off.is_zero() || now > peer.not_before + BACK_OFF.1 {
                    self.by_key.remove(&task.key);
                }
            }
        }
        waiting
    }

    fn answered(&mut self, task: &Task) -> Option<Vec<Waiting>> {
        match &mut self.by_key.get_mut(&task.key)?.state {
            State::Shaking { attempt, waiting } if *attempt == task.attempt => {
                Some(std::mem::take(waiting))
            }
            _ => None,
        }
    }

    /// A transfer with a peer has begun.
    pub(super) fn begin(&mut self, key: &Key) {
        if let Some(peer) = self.by_key.get_mut(key) {
            peer.running += 1;
        }
    }

    /// A transfer with a peer is over.
    pub(super) fn end(&mut self, key: &Key, now: Instant) {
        if let Some(peer) = self.by_key.get_mut(key) {
            peer.running = peer.running.saturating_sub(1);
            peer.last_active = now;
        }
    }

    /// A peer is gone: what is wanted of it fails at once until hands have been shaken again.
    pub(super) fn lost(&mut self, key: &Key, now: Instant) {
        let Some(peer) = self.by_key.get_mut(key) else {
            return;
        };
        match &mut peer.state {
            State::Linked(link) => peer.state = State::Lost(Some(link.clone())),
            State::Renewing(r) if !r.lost => r.lost = true,
            _ => return,
        }
        // One that has been well for long enough begins anew.
        if now > peer.not_before + BACK_OFF.1 {
            peer.back_off = Duration::ZERO;
        }
        peer.not_before = now + peer.back_off;
        peer.back_off = (peer.back_off * 2).clamp(BACK_OFF.0, BACK_OFF.1);
        log::warn!(
            "engine \"{}\" is lost; the next request shakes hands again",
            key.engine_id
        );
    }

    /// Forgets peers that nobody has wanted for `ttl`, that have been replaced, or that are lost and have
    /// nothing to remember. The links to unload.
    pub(super) fn evict(
        &mut self,
        ttl: Option<Duration>,
        busy: impl Fn(&Key) -> bool,
        now: Instant,
    ) -> Vec<Arc<Link>> {
        let mut unload = Vec::new();
        self.by_key.retain(|key, peer| {
            if peer.running > 0 || matches!(peer.state, State::Shaking { .. } | State::Renewing(_))
            {
                return true;
            }
            let idle = now.saturating_duration_since(peer.last_active);
            let stale = ttl.is_some_and(|ttl| idle > ttl) && !busy(key);
            let forgotten = now > peer.not_before + BACK_OFF.1;
            let replaced = peer.replaced && !busy(key);
            match &mut peer.state {
                State::Linked(link) if stale || replaced => {
                    log::info!("engine \"{}\" is let go", key.engine_id);
                    unload.push(link.clone());
                    false
                }
                State::Lost(link) => {
                    unload.extend(link.take());
                    !forgotten
                }
                _ => true,
            }
        });
        unload
    }

    /// Forgets all: the links to unload.
    pub(super) fn drain(&mut self) -> Vec<Arc<Link>> {
        let peers = self.by_key.drain();
        peers
            .filter_map(|(_, peer)| match peer.state {
                State::Linked(link) | State::Lost(Some(link)) => Some(link),
                State::Renewing(r) => Some(r.link),
                _ => None,
            })
            .collect()
    }
}

#[cfg(test)]
#[path = "peers_test.rs"]
mod tests;
