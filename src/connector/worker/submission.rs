//! A request of the connector's as the queue takes it: block lists in the plan's order, states paired,
//! guards. Pure functions.

use super::WorkerOptions;
use super::link::Link;
use crate::connector::step::{Push, Receive};
use crate::connector::wire::PushRegistration;
use crate::error::{Result, Status, bail};
use crate::layout::GroupKind;
use crate::plan::{GroupBlocks, PeerRole, Plan, Request};
use crate::queue::Guard;

/// Bytes of a lease word.
const WORD: u64 = 8;

/// What a submission borrows.
pub(super) struct Parts<'a> {
    pub plan: &'a Plan,
    local: Vec<&'a [u32]>,
    remote: Vec<&'a [u32]>,
    /// Where the lists of this side begin, if that is known.
    local_first: Option<&'a [u32]>,
    tokens: Option<u64>,
    pub guards: Vec<Guard>,
}

impl<'a> Parts<'a> {
    pub(super) fn groups(&self) -> Vec<GroupBlocks<'a>> {
        let lists = self.local.iter().zip(&self.remote).enumerate();
        lists
            .map(|(g, (local, remote))| GroupBlocks {
                local,
                remote,
                local_first: self.local_first.map(|first| first[g]),
                remote_first: None,
            })
            .collect()
    }

    pub(super) fn request<'b>(&self, groups: &'b [GroupBlocks<'b>]) -> Request<'b> {
        Request {
            groups,
            tokens: self.tokens,
        }
    }
}

/// A receive: the local lists are the consumer's.
pub(super) fn pull<'a>(link: &'a Link, what: &'a Receive) -> Result<Parts<'a>> {
    let (plan, mut local, mut remote) = lists(link, &what.local, &what.remote)?;
    pair_states(plan, &mut local, &mut remote);
    Ok(Parts {
        plan,
        local,
        remote,
        local_first: (what.local_first.len() == what.local.len()).then_some(&what.local_first),
        tokens: (what.tokens > 0).then_some(what.tokens),
        guards: guards(link, what)?,
    })
}

/// A push: the remote lists are the consumer's.
pub(super) fn push<'a>(
    link: &'a Link,
    what: &'a Push,
    to: &'a PushRegistration,
) -> Result<Parts<'a>> {
    let (plan, mut local, mut remote) = lists(link, &what.blocks, &to.local_block_ids)?;
    pair_states(plan, &mut remote, &mut local);
    Ok(Parts {
        plan,
        local,
        remote,
        local_first: None,
        tokens: (what.tokens > 0).then_some(what.tokens),
        guards: Vec::new(),
    })
}

type Lists<'a> = (&'a Plan, Vec<&'a [u32]>, Vec<&'a [u32]>);

/// The lists of both sides by our groups.
fn lists<'a>(link: &'a Link, local: &'a [Vec<u32>], remote: &'a [Vec<u32>]) -> Result<Lists<'a>> {
    let Some(plan) = &link.plan else {
        bail!(Status::Internal, "a link without a plan");
    };
    let groups = plan.groups().len();
    if local.len() != groups {
        bail!(
            Status::Mismatch,
            "{} lists of local blocks for {groups} groups",
            local.len()
        );
    }
    let mut theirs = Vec::with_capacity(groups);
    for index in &link.groups {
        match remote.get(*index as usize) {
            Some(list) => theirs.push(&list[..]),
            None => bail!(
                Status::Mismatch,
                "{} lists of remote blocks for {groups} groups",
                remote.len()
            ),
        }
    }
    Ok((plan, local.iter().map(|ids| &ids[..]).collect(), theirs))
}

/// States are paired one to one. A producer that lists more of them means its last ones; a consumer
/// that lists one more has its running state first.
fn pair_states<'a>(plan: &Plan, consumer: &mut [&'a [u32]], producer: &mut [&'a [u32]]) {
    for (g, (c, p)) in plan.groups().iter().zip(consumer.iter_mut().zip(producer)) {
        if g.kind != GroupKind::State {
            continue;
        }
        if p.len() > c.len() {
            *p = &p[p.len() - c.len()..];
        } else if c.len() == p.len() + 1 {
            *c = &c[..p.len()];
        }
    }
}

/// How many ranks of our engine tell a rank of the producer's that they are done: what the plan says,
/// or where that differs between ranks or cannot be told, what stock vLLM's rule says.
pub(super) fn readers(link: &Link) -> u32 {
    let Some(plan) = &link.plan else {
        return link.consumers;
    };
    let waiting = plan.peers().iter().filter(|p| p.role != PeerRole::Idle);
    let mut numbers = waiting.map(|p| p.notifiers);
    match numbers.next() {
        Some(n) if n > 0 && numbers.all(|other| other == n) => n,
        _ => link.consumers,
    }
}

/// Index and limit of the lease word of a receive, if the producer has one on every rank that is read.
pub(super) fn word_of(link: &Link, what: &Receive) -> Option<(u64, u64)> {
    let lease = what.lease?;
    let slot = u64::from(lease.slot);
    let plan = link.plan.as_ref()?;
    let read = plan.peers().iter().zip(&link.ranks);
    let has_word = |table: Option<(u64, u64)>| table.is_some_and(|(_, words)| slot < words);
    let all = read
        .filter(|(peer, _)| peer.role == PeerRole::Transfer)
        .all(|(_, rank)| has_word(rank.lease_table));
    all.then_some((slot, lease.generation.saturating_mul(2)))
}

/// The lease word of each rank that is read must be low when all bytes are in.
fn guards(link: &Link, what: &Receive) -> Result<Vec<Guard>> {
    let (Some((slot, limit)), Some(plan)) = (word_of(link, what), &link.plan) else {
        return Ok(Vec::new());
    };
    let mut out = Vec::new();
    for (i, (peer, rank)) in plan.peers().iter().zip(&link.ranks).enumerate() {
        let Some((base, _)) = rank.lease_table.filter(|_| peer.role == PeerRole::Transfer) else {
            continue;
        };
        let Some(addr) = base.checked_add(slot * WORD) else {
            bail!(
                Status::PeerIncompatible,
                "the lease words of rank (pp {}, tp {}) at {base:#x} wrap around",
                rank.pp,
                rank.tp
            );
        };
        out.push(Guard {
            peer: i as u32,
            addr,
            limit,
        });
    }
    Ok(out)
}

/// What a consumer tells the ranks of a producer that is to write.
pub(super) fn registration(options: &WorkerOptions, what: &Receive) -> Result<PushRegistration> {
    let (host, port) = &options.side_channel;
    if host.is_empty() || *port == 0 {
        bail!(
            Status::InvalidState,
            "the worker was not told its engine's side channel, by which a producer finds it"
        );
    }
    Ok(PushRegistration {
        request_id: what.request_id.clone(),
        decode_engine_id: options.engine_id.clone(),
        decode_host: host.clone(),
        decode_port: *port,
        decode_tp_size: options.parallel.tp_size,
        local_block_ids: what.local.clone(),
        remote_engine_id: what.peer.engine_id.clone(),
        remote_host: what.peer.host.clone(),
        remote_port: what.peer.port,
        remote_tp_size: what.peer.tp_size,
        remote_pp_size: what.peer.pp_size,
    })
}
