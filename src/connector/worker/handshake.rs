//! Shaking hands: asking the ranks of an engine for their metadata, one after the other, and making of
//! them a [`Link`].
//!
//! Each step trusts what it gets no more than the steps before have shown: first the hash, by which two
//! engines are of a kind; then the engine's id, which the router has named; then the geometry, from which
//! the plan is made; and only then is any of it loaded into the transport. What was loaded by a
//! handshake that fails is unloaded again.

use crossbeam_channel::Sender;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::link::{Link, Names, Purpose, Rank};
use super::peers::Key;
use super::thread::Input;
use super::{Cache, WorkerOptions};
use crate::agent::Agent;
use crate::connector::geometry;
use crate::connector::wire::{self, AgentMetadata, Payload, Sizes};
use crate::connector::{Mode, PeerAddress};
use crate::error::{Error, Result, Status, bail};
use crate::layout::Parallel;
use crate::plan::{Direction, Plan, PlanOptions};
use crate::queue::MAX_GUARDS;
use crate::side_channel::{self, RequestOptions, zmq::Session};
use crate::threads;

/// Handshakes that may be under way at the same time.
const MOST_AT_ONCE: usize = 4;
/// How long all questions of a handshake may take together, unless one alone may take longer.
const LONGEST: Duration = Duration::from_secs(60);

/// One handshake to be made.
#[derive(Clone)]
pub(super) struct Task {
    pub key: Key,
    /// Tells this handshake from others with the same peer.
    pub attempt: u64,
    pub address: PeerAddress,
    pub registration: u64,
}

/// What all handshakes need.
pub(super) struct Context {
    pub agent: Arc<Agent>,
    pub names: Arc<Names>,
    pub options: Arc<WorkerOptions>,
    pub stop: AtomicBool,
}

/// Makes handshakes, a few at a time, on threads that live as long as there are any to make.
pub(super) struct Handshakes {
    context: Arc<Context>,
    results: Sender<Input>,
    waiting: VecDeque<(Task, Arc<Cache>)>,
    running: usize,
}

impl Handshakes {
    pub(super) fn new(context: Arc<Context>, results: Sender<Input>) -> Self {
        Handshakes {
            context,
            results,
            waiting: VecDeque::new(),
            running: 0,
        }
    }

    /// Handshakes that are under way or wait for their turn.
    pub(super) fn outstanding(&self) -> usize {
        self.running + self.waiting.len()
    }

    /// Handshakes that are under way.
    pub(super) fn running(&self) -> usize {
        self.running
    }

    pub(super) fn start(&mut self, task: Task, cache: Arc<Cache>) {
        self.waiting.push_back((task, cache));
        self.fill();
    }

    /// A handshake is over.
    pub(super) fn over(&mut self) {
        self.running = self.running.saturating_sub(1);
        self.fill();
    }

    /// Nothing more is started; what is under way unloads what it has loaded.
    pub(super) fn stop(&mut self) {
        self.context.stop.store(true, Ordering::Release);
        self.context.names.close();
        self.waiting.clear();
    }

    fn fill(&mut self) {
        while self.running < MOST_AT_ONCE {
            let Some((task, cache)) = self.waiting.pop_front() else {
                return;
            };
            let (context, results) = (self.context.clone(), self.results.clone());
            let named = task.clone();
            let started = threads::spawn("kvf-handshake", move || {
                let mut report = Report {
                    task: Some(task),
                    context: context.clone(),
                    results,
                };
                let Some(task) = report.task.clone() else {
                    return;
                };
                let result = context.shake(&task, &cache);
                report.send(result);
            });
            self.running += 1;
            if let Err(e) = started {
                // To be answered like any other failure, in its turn.
                let _ = self
                    .results
                    .send(Input::Shaken(Box::new(named), Box::new(Err(e))));
            }
        }
    }
}

/// Sees to it that a handshake is answered, also if it panics, and that its link is not left over when
/// nobody takes the answer.
struct Report {
    task: Option<Task>,
    context: Arc<Context>,
    results: Sender<Input>,
}

impl Report {
    fn send(&mut self, result: Result<Link>) {
        let Some(task) = self.task.take() else {
            return;
        };
        let answer = Input::Shaken(Box::new(task), Box::new(result));
        if let Err(unsent) = self.results.send(answer) {
            if let Input::Shaken(_, result) = unsent.0 {
                result.iter().for_each(|link| self.context.unload(link));
            }
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.send(Err(Error::new(
            Status::Internal,
            "a panic during the handshake",
        )));
    }
}

/// What a rank of a peer has said, checked.
struct Told {
    pp: u32,
    tp: u32,
    metadata: AgentMetadata,
    geometry: Option<geometry::Peer>,
}

impl Context {
    pub(super) fn unload(&self, link: &Link) {
        let names = link.ranks.iter().map(|r| r.agent.as_str());
        self.names.unload(&self.agent, names);
    }

    fn shake(&self, task: &Task, cache: &Cache) -> Result<Link> {
        self.link(task, cache).map_err(|e| {
            e.context(format_args!(
                "handshake with engine \"{}\" at {}:{}",
                task.address.engine_id, task.address.host, task.address.port
            ))
        })
    }

    fn link(&self, task: &Task, cache: &Cache) -> Result<Link> {
        let address = &task.address;
        let mine = &cache.local.layout.parallel;
        let ours = Sizes {
            tp: mine.tp_size,
            dcp: mine.dcp_size,
        };
        let theirs = Sizes {
            tp: address.tp_size,
            dcp: address.dcp_size,
        };
        let tp_ranks = wire::handshake_ranks(ours, mine.tp_rank, theirs)?;
        let consumers = match self.options.mode {
            Mode::Pull => wire::consumer_count(ours, theirs)?,
            Mode::Push => 1,
        };
        let (told, clock_offset) = self.ask(task, cache, &tp_ranks)?;
        let (plan, groups) = match task.key.purpose {
            Purpose::Transfer => {
                let (plan, groups) = self.plan(cache, &told)?;
                (Some(plan), groups)
            }
            Purpose::Notify => (None, Vec::new()),
        };
        Ok(Link {
            address: address.clone(),
            ranks: self.load(&told, address)?,
            plan,
            groups,
            clock_offset,
            consumers,
            registration: task.registration,
        })
    }

    /// Asks the ranks in stock's order, and judges each answer before the next question.
    fn ask(&self, task: &Task, cache: &Cache, tp_ranks: &[u32]) -> Result<(Vec<Told>, f64)> {
        let address = &task.address;
        let options = RequestOptions {
            timeout: self.options.handshake_timeout,
            max_message: wire::MAX_PAYLOAD,
            ..RequestOptions::default()
        };
        let ranks = address.pp_size as usize * tp_ranks.len();
        if ranks > MAX_GUARDS {
            bail!(
                Status::PeerIncompatible,
                "{ranks} ranks to shake hands with, more than {MAX_GUARDS}"
            );
        }
        let begun = Instant::now();
        let mut bytes = 0;
        let mut session = Session::connect(&address.host, address.port, &options)?;
        let mut told = Vec::new();
        for pp in 0..address.pp_size {
            for &tp in tp_ranks {
                if self.stop.load(Ordering::Acquire) {
                    bail!(Status::Canceled, "the worker is closing");
                }
                if begun.elapsed() > LONGEST.max(self.options.handshake_timeout) {
                    bail!(Status::Timeout, "not through after {LONGEST:?}");
                }
                let answer = session.ask(side_channel::Rank { pp, tp })?;
                bytes += answer.metadata.len();
                if bytes > wire::MAX_PAYLOAD {
                    bail!(
                        Status::PeerIncompatible,
                        "its ranks have said {bytes} bytes, more than {}",
                        wire::MAX_PAYLOAD
                    );
                }
                let one = self
                    .judge(task, cache, (pp, tp), &answer.metadata)
                    .map_err(|e| e.context(format_args!("rank (pp {pp}, tp {tp})")))?;
                told.push(one);
            }
        }
        let offset = session.best_clock().map_or(0.0, |sample| sample.offset);
        Ok((told, offset))
    }

    fn judge(
        &self,
        task: &Task,
        cache: &Cache,
        (pp, tp): (u32, u32),
        bytes: &[u8],
    ) -> Result<Told> {
        let payload = Payload::decode(bytes)?;
        if self.options.enforce_compat {
            payload.check_hash(&cache.hash)?;
        }
        let metadata = payload.metadata()?;
        let address = &task.address;
        if metadata.engine_id != address.engine_id {
            bail!(
                Status::PeerIncompatible,
                "it is engine \"{}\", and the router has named \"{}\"",
                metadata.engine_id,
                address.engine_id
            );
        }
        let geometry = match task.key.purpose {
            Purpose::Notify => None,
            Purpose::Transfer => {
                let at = Parallel {
                    tp_rank: tp,
                    tp_size: address.tp_size,
                    pp_rank: pp,
                    pp_size: address.pp_size,
                    dcp_size: address.dcp_size,
                    ..Parallel::default()
                };
                Some(geometry::peer(&cache.local, &metadata, at)?)
            }
        };
        Ok(Told {
            pp,
            tp,
            metadata,
            geometry,
        })
    }

    fn plan(&self, cache: &Cache, told: &[Told]) -> Result<(Plan, Vec<u32>)> {
        let peers: Vec<&geometry::Peer> = told.iter().filter_map(|t| t.geometry.as_ref()).collect();
        let groups = peers.first().map(|p| p.groups.clone()).unwrap_or_default();
        if let Some(i) = peers.iter().position(|p| p.groups != groups) {
            bail!(
                Status::PeerIncompatible,
                "its rank {} numbers the groups {:?}, and its first one {groups:?}",
                told[i].tp,
                peers[i].groups
            );
        }
        let layouts: Vec<_> = peers.iter().map(|p| p.layout.clone()).collect();
        let options = PlanOptions {
            direction: match self.options.mode {
                Mode::Pull => Direction::Pull,
                Mode::Push => Direction::Push,
            },
            ..PlanOptions::default()
        };
        Ok((
            Plan::build(&cache.local.layout, &layouts, &options)?,
            groups,
        ))
    }

    /// Loads all ranks or none.
    fn load(&self, told: &[Told], address: &PeerAddress) -> Result<Vec<Rank>> {
        let mut ranks: Vec<Rank> = Vec::with_capacity(told.len());
        for t in told {
            let loaded = self
                .names
                .load(&self.agent, &t.metadata.agent_metadata, address);
            let name = match loaded {
                Ok(name) => name,
                Err(e) => {
                    self.names
                        .unload(&self.agent, ranks.iter().map(|r| r.agent.as_str()));
                    return Err(e.context(format_args!("rank (pp {}, tp {})", t.pp, t.tp)));
                }
            };
            let twice = ranks.iter().any(|r| r.agent == name);
            ranks.push(Rank {
                pp: t.pp,
                tp: t.tp,
                agent: name,
                lease_table: t.metadata.lease_table,
            });
            if twice {
                self.names
                    .unload(&self.agent, ranks.iter().map(|r| r.agent.as_str()));
                bail!(
                    Status::PeerIncompatible,
                    "rank (pp {}, tp {}) has the agent of another rank",
                    t.pp,
                    t.tp
                );
            }
        }
        Ok(ranks)
    }
}
