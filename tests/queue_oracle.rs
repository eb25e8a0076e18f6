//! The content oracle through the queue: simulated prefill ranks with known content, every decode rank
//! an agent with a queue of its own (or every prefill rank, when they push), and every byte of all
//! ranks compared afterwards. Over the transport for tests, the built-in one, and NIXL.

mod common;
#[path = "nixl_support/mod.rs"]
mod nixl_support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::cases::*;
use common::sim::*;
use common::verify::*;
use kvferry::agent::Agent;
use kvferry::memory::{MemDesc, MemKind, RegDesc};
use kvferry::plan::*;
use kvferry::queue::*;
use kvferry::transport::AgentOptions;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const LIMIT: Duration = Duration::from_secs(120);
const MESSAGE: &[u8] = b"request 1 is read";

/// Agents for the ranks of both engines, used again from case to case: a NIXL agent takes a while to
/// make.
struct Agents {
    transport: &'static str,
    p: Vec<Arc<Agent>>,
    d: Vec<Arc<Agent>>,
}

impl Agents {
    fn new(transport: &'static str) -> Agents {
        Agents {
            transport,
            p: Vec::new(),
            d: Vec::new(),
        }
    }

    fn at_least(&mut self, p: usize, d: usize) {
        let make = |kind: &str, i: usize| {
            let options = AgentOptions {
                name: nixl_support::unique(&format!("{kind}{i}")),
                transport: self.transport.into(),
                nixl_library: nixl_support::library(),
                ..AgentOptions::default()
            };
            Arc::new(Agent::create(&options).expect("an agent"))
        };
        (self.p.len()..p).for_each(|i| self.p.push(make("p", i)));
        (self.d.len()..d).for_each(|i| self.d.push(make("d", i)));
    }

    /// Random delays and orders, another for each case.
    fn shake(&self, seed: u64) {
        if self.transport == "test" {
            for (i, agent) in self.p.iter().chain(&self.d).enumerate() {
                let delay = (seed >> (i % 8)) % 300;
                let script = [
                    ("delay_us".to_owned(), delay.to_string()),
                    ("reorder".to_owned(), (seed | 1).to_string()),
                ];
                agent.create_backend("test", &script).expect("the script");
            }
        }
    }
}

/// The whole memory of a rank, registered for as long as this lives.
struct Registered<'a>(&'a Agent, RegDesc);

impl<'a> Registered<'a> {
    fn new(agent: &'a Agent, rank: &Rank) -> Self {
        let desc = MemDesc {
            addr: rank.memory.as_ptr() as u64,
            len: rank.memory.len() as u64,
            device: 0,
        };
        agent
            .register(MemKind::Dram, &[desc.into()], &[])
            .expect("registering");
        Registered(agent, desc.into())
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let done = self
            .0
            .deregister(MemKind::Dram, std::slice::from_ref(&self.1), &[]);
        if !std::thread::panicking() {
            done.expect("deregistering");
        }
    }
}

/// What is in a rank's memory now; transfers write behind the compiler's back.
fn now(rank: &Rank) -> Vec<u8> {
    let memory = rank.memory.iter();
    // SAFETY: every byte is in the vector.
    memory
        .map(|b| unsafe { std::ptr::read_volatile(b) })
        .collect()
}

/// Loads the metadata of all `others` into an agent; their names.
fn meet(agent: &Agent, others: &[Arc<Agent>]) -> Vec<String> {
    others
        .iter()
        .map(|other| {
            // It may be known with the memory of the last case.
            let _ = agent.remove_remote(other.name());
            let metadata = other.metadata().expect("metadata");
            agent.add_remote(&metadata).expect("loading metadata")
        })
        .collect()
}

/// Runs a case in one direction, all acting ranks at once, each on a queue of its own.
fn run(case: &Case, agents: &mut Agents, direction: Direction, options: QueueOptions) {
    let pull = direction == Direction::Pull;
    let mut p = Engine::new(&case.model, &case.p, 1000);
    for (g, list) in case.lists.iter().enumerate() {
        p.fill(g, &list.p, list.p_first);
    }
    let d = Engine::new(&case.model, &case.d, 2000);
    let (want, bytes) = expected(&p, &d, &case.lists);
    let before: Vec<Vec<u8>> = p.ranks.iter().map(|r| r.memory.clone()).collect();

    agents.at_least(p.ranks.len(), d.ranks.len());
    let (p_agents, d_agents) = (&agents.p[..p.ranks.len()], &agents.d[..d.ranks.len()]);
    let mut kept: Vec<Registered<'_>> = Vec::new();
    for (agents, ranks) in [(p_agents, &p.ranks), (d_agents, &d.ranks)] {
        kept.extend(agents.iter().zip(ranks).map(|(a, r)| Registered::new(a, r)));
    }

    let (mine, theirs) = if pull { (&d, &p) } else { (&p, &d) };
    let (my_agents, their_agents) = if pull {
        (d_agents, p_agents)
    } else {
        (p_agents, d_agents)
    };
    let blocks = request(&case.lists, case.told, pull);
    let tokens = match case.told {
        Told::Tokens(n) => Some(n),
        _ => None,
    };
    let plan_options = PlanOptions {
        direction,
        ..case.options
    };
    let mut running = Vec::new();
    let mut messages = vec![0; theirs.ranks.len()];
    for (rank, agent) in mine.ranks.iter().zip(my_agents) {
        let plan = Plan::build(&rank.layout, &theirs.layouts(), &plan_options).expect("a plan");
        let names = meet(agent, their_agents);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let queue = Queue::create(agent.clone(), options).expect("a queue");
        let ticket = queue
            .submit(&Submission {
                plan: &plan,
                agents: &names,
                request: Request {
                    groups: &blocks,
                    tokens,
                },
                notification: Some(MESSAGE),
                deadline: None,
                guards: &[],
            })
            .expect("a ticket");
        for (count, peer) in messages.iter_mut().zip(plan.peers()) {
            *count += usize::from(peer.role != PeerRole::Idle);
        }
        running.push((queue, ticket));
    }

    let mut moved = 0;
    for (queue, ticket) in &running {
        assert!(queue.wait(LIMIT), "no completion");
        let done = queue.poll(2);
        assert_eq!(done.len(), 1);
        assert_eq!(done[0].ticket, *ticket);
        done[0].result.as_ref().expect("success");
        assert!(
            done[0].not_notified.is_empty(),
            "{:?}",
            done[0].not_notified
        );
        let r = &done[0].record;
        assert_eq!(r.bytes, r.total_bytes);
        moved += r.bytes;
    }
    for (i, want) in want.iter().enumerate() {
        same("consumer", i, &now(&d.ranks[i]), want).unwrap();
    }
    for (i, before) in before.iter().enumerate() {
        same("producer", i, &now(&p.ranks[i]), before).unwrap();
    }
    assert_eq!(moved, bytes, "bytes that were wanted");
    for ((agent, count), peer) in their_agents.iter().zip(messages).zip(0..) {
        let (begin, mut got) = (Instant::now(), Vec::new());
        while got.len() < count {
            assert!(
                begin.elapsed() < LIMIT,
                "{} of {count} messages to {peer}",
                got.len()
            );
            got.extend(agent.notifications(&[]).expect("notifications"));
        }
        assert!(got.iter().all(|n| n.payload == MESSAGE));
        assert_eq!(got.len(), count, "messages to peer {peer}");
    }
}

/// Slices of all sizes.
fn queue_options() -> impl Strategy<Value = QueueOptions> {
    (1..3000u64, 1..80usize, 1..6usize).prop_map(|(bytes, descriptors, flying)| QueueOptions {
        slice_bytes: bytes,
        slice_descriptors: descriptors,
        slices_in_flight: flying,
        ..QueueOptions::default()
    })
}

fn random_topologies(transport: &'static str, cases: u32, sizes: u32) {
    let agents = std::cell::RefCell::new(Agents::new(transport));
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    };
    let strategy = (case(sizes), queue_options(), any::<u64>());
    let done = TestRunner::new(config).run(&strategy, |(case, options, seed)| {
        let agents = &mut *agents.borrow_mut();
        for direction in [Direction::Pull, Direction::Push] {
            agents.shake(seed);
            run(&case, agents, direction, options);
        }
        Ok(())
    });
    if let Err(e) = done {
        panic!("{e}");
    }
}

#[test]
fn random_topologies_late_and_out_of_order() {
    random_topologies("test", 60, 4);
}

#[test]
fn random_topologies_over_the_built_in_transport() {
    random_topologies("local", 40, 4);
}

#[test]
fn random_topologies_over_nixl() {
    if nixl_support::have_nixl() {
        random_topologies("nixl", 24, 3);
    }
}
