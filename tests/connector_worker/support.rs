//! Simulated engines with real workers: every rank has memory with known content, an agent, a worker, and
//! each engine a side channel that serves its ranks.
#![allow(dead_code, reason = "each file uses its part")]

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kvferry::agent::Agent;
use kvferry::connector::geometry::{Content as KvContent, HeadShape, KvCache, KvTensor, SlabOrder};
use kvferry::connector::step::{Heartbeat, Hold, Receive, Step};
use kvferry::connector::worker::{Results, Worker, WorkerOptions, WorkerState};
use kvferry::connector::{LeaseRef, PeerAddress};
use kvferry::layout::{GroupKind, KvPlacement, PageOrder, Parallel};
use kvferry::memory::{MemDesc, MemKind};
use kvferry::side_channel::{self, ListenOptions, SideChannel};
use kvferry::transport::AgentOptions;

pub use crate::common::sim::{Content, Engine as Sim, EngineStyle, GroupModel, GroupStyle};
pub use crate::common::verify::{Lists, expected, same};
use crate::nixl_support;

/// Longer than anything may take, even on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Waits for a condition.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

pub fn unique(name: &str) -> String {
    nixl_support::unique(name)
}

pub fn agent(transport: &str, name: &str) -> Arc<Agent> {
    let options = AgentOptions {
        name: unique(name),
        transport: transport.into(),
        nixl_library: nixl_support::library(),
        ..AgentOptions::default()
    };
    Arc::new(Agent::create(&options).expect("an agent"))
}

/// Changes the script of an agent on the transport for tests.
pub fn script(agent: &Agent, params: &[(&str, &str)]) {
    let own = |(k, v): &(&str, &str)| (k.to_string(), v.to_string());
    let params: Vec<(String, String)> = params.iter().map(own).collect();
    agent.create_backend("test", &params).expect("the script");
}

/// How many transfers of an agent on the transport for tests are under way.
pub fn flying(agent: &Agent) -> usize {
    figure(agent, "flying")
}

/// How many peers' metadata it is loading.
pub fn loading(agent: &Agent) -> usize {
    figure(agent, "loading")
}

fn figure(agent: &Agent, name: &str) -> usize {
    let info = agent.backend_info("test").expect("backend information");
    let found = info.params.iter().find(|(key, _)| key == name);
    found.expect("the number").1.parse().expect("a number")
}

/// A model with one group of full attention.
pub fn dense(heads: u32) -> Vec<GroupModel> {
    vec![group(GroupKind::Full, 0, 0..3, heads_of(heads))]
}

/// A model whose latent every rank has whole.
pub fn mla() -> Vec<GroupModel> {
    let latent = Content::Latent { size: 24, elem: 2 };
    vec![group(GroupKind::Mla, 0, 0..3, latent)]
}

/// A model with full attention and a sliding window, each with block tables and memory of its own.
pub fn two_groups(heads: u32) -> Vec<GroupModel> {
    vec![
        group(GroupKind::Full, 0, 0..2, heads_of(heads)),
        group(GroupKind::SlidingWindow, 8, 2..4, heads_of(heads)),
    ]
}

fn heads_of(heads: u32) -> Content {
    Content::Heads {
        heads,
        k: 8,
        v: 8,
        elem: 2,
    }
}

fn group(
    kind: GroupKind,
    window: u32,
    layers: std::ops::Range<u32>,
    content: Content,
) -> GroupModel {
    GroupModel {
        kind,
        window,
        layers: layers.collect(),
        content,
        over: None,
    }
}

/// An engine's shape: its ranks, blocks, and tokens of a block.
pub fn style(model: &[GroupModel], tp: u32, blocks: u32, tokens: u32) -> EngineStyle {
    let group = GroupStyle::new(tokens, PageOrder::Hnd, KvPlacement::Cells);
    EngineStyle::tp(tp, blocks, vec![group; model.len()])
}

/// One rank's agent and worker.
pub struct RankRig {
    pub worker: Worker,
    pub agent: Arc<Agent>,
}

/// An engine. Workers end before the memory that they read and write.
pub struct Engine {
    pub ranks: Vec<RankRig>,
    pub listener: Arc<dyn SideChannel>,
    pub id: String,
    pub sim: Sim,
    clock: Instant,
}

/// What engines are made of.
#[derive(Clone)]
pub struct Recipe {
    pub transport: &'static str,
    pub id: String,
    pub model: Vec<GroupModel>,
    pub style: EngineStyle,
    pub options: WorkerOptions,
    pub port: u16,
}

impl Recipe {
    pub fn new(
        transport: &'static str,
        id: &str,
        model: &[GroupModel],
        style: EngineStyle,
    ) -> Self {
        Recipe {
            transport,
            id: unique(id),
            model: model.to_vec(),
            style,
            options: WorkerOptions::default(),
            port: 0,
        }
    }

    pub fn change(mut self, change: impl FnOnce(&mut WorkerOptions)) -> Self {
        change(&mut self.options);
        self
    }

    pub fn start(&self) -> Engine {
        let sim = Sim::new(&self.model, &self.style, 1000);
        let listener = listen(self.port);
        let mut ranks = Vec::new();
        let mut payloads = Vec::new();
        for rank in &sim.ranks {
            let agent = agent(self.transport, &self.id);
            let options = WorkerOptions {
                engine_id: self.id.clone(),
                parallel: Parallel::tp(rank.tp_rank, self.style.tp),
                side_channel: ("127.0.0.1".into(), listener.local_addr().port()),
                ..self.options.clone()
            };
            let worker = Worker::create(agent.clone(), options).expect("a worker");
            let cache = kv_cache(&sim, rank.tp_rank as usize, &self.options);
            worker.register_kv(&cache).expect("registering");
            let key = side_channel::Rank {
                pp: 0,
                tp: rank.tp_rank,
            };
            payloads.push((key, worker.payload().expect("a payload")));
            ranks.push(RankRig { worker, agent });
        }
        listener.replace_ranks(payloads).expect("serving");
        Engine {
            ranks,
            listener,
            id: self.id.clone(),
            sim,
            clock: Instant::now(),
        }
    }
}

pub fn listen(port: u16) -> Arc<dyn SideChannel> {
    let options = ListenOptions {
        port,
        ..ListenOptions::default()
    };
    side_channel::listen("zmq", &options, Vec::new()).expect("a listener")
}

/// What vLLM would say about this rank's memory.
pub fn kv_cache(sim: &Sim, rank: usize, options: &WorkerOptions) -> KvCache {
    let layout = &sim.ranks[rank].layout;
    let mut tensors = Vec::new();
    for (g, model) in sim.model.iter().enumerate() {
        for layer in &model.layers {
            let part = layout
                .parts
                .iter()
                .find(|p| p.layer == *layer && p.group as usize == g)
                .expect("a part");
            let region = layout.regions[part.region as usize];
            let (content, elem_bytes) = match &model.content {
                Content::Heads { k, v, elem, .. } => {
                    let shape = HeadShape {
                        k_size: *k,
                        v_size: *v,
                        total: 0,
                    };
                    (KvContent::Heads(shape), *elem)
                }
                Content::Latent { size, elem } => (KvContent::Latent(*size), *elem),
                Content::State(_) => unreachable!("not used here"),
            };
            tensors.push(KvTensor {
                layer: format!("model.layers.{layer}.attn"),
                group: g as u32,
                content,
                address: region.base,
                storage: MemDesc {
                    addr: region.base,
                    len: 0,
                    device: 0,
                },
                mem: MemKind::Dram,
                dims: Vec::new(),
                elem_bytes,
                page_bytes: 0,
                num_blocks: 0,
            });
        }
    }
    let mla = matches!(sim.model[0].content, Content::Latent { .. });
    KvCache {
        tensors,
        groups: layout.groups.clone(),
        num_blocks: sim.style.blocks.into(),
        blocks_per_logical: 1,
        block_tokens: sim.style.groups[0].tokens_per_page,
        layout: "LBHNC".into(),
        attn_backend: "TEST".into(),
        kv_heads: match sim.model[0].content {
            Content::Heads { heads, .. } => heads,
            _ => 1,
        },
        mla,
        slab: SlabOrder::Cells,
        mode: options.mode,
        hybrid: sim.model.len() > 1,
        pcp_size: 1,
    }
}

impl Engine {
    pub fn tp(&self) -> u32 {
        self.sim.style.tp
    }

    pub fn address(&self) -> PeerAddress {
        PeerAddress {
            engine_id: self.id.clone(),
            host: "127.0.0.1".into(),
            port: self.listener.local_addr().port(),
            tp_size: self.tp(),
            pp_size: 1,
            dcp_size: 1,
        }
    }

    /// Gives a step to all ranks, as bytes.
    pub fn step(&self, step: &Step) {
        let bytes = step.encode();
        for rank in &self.ranks {
            rank.worker.step(&bytes).expect("a step");
        }
    }

    /// Writes a request's content, and keeps its blocks.
    pub fn keep(
        &mut self,
        id: &str,
        lists: &[Lists],
        lease: Option<LeaseRef>,
        remaining: Duration,
    ) {
        for (g, list) in lists.iter().enumerate() {
            self.sim.fill(g, &list.p, list.p_first);
        }
        self.step(&Step {
            in_batch: vec![id.into()],
            ..Step::default()
        });
        self.hold(id, lease, remaining);
    }

    pub fn hold(&self, id: &str, lease: Option<LeaseRef>, remaining: Duration) {
        self.step(&Step {
            clock_ns: self.clock.elapsed().as_nanos() as u64,
            holds: vec![Hold {
                request_id: id.into(),
                remaining_ns: remaining.as_nanos() as u64,
                lease,
            }],
            ..Step::default()
        });
    }

    /// A receive from `peer`, as its scheduler half would make it.
    pub fn receive_of(&self, id: &str, peer: &Engine, remote_id: &str, lists: &[Lists]) -> Receive {
        Receive {
            request_id: id.into(),
            peer: peer.address(),
            remote_request_id: remote_id.into(),
            local: lists.iter().map(|l| l.d.clone()).collect(),
            remote: lists.iter().map(|l| l.p.clone()).collect(),
            local_first: lists.iter().map(|l| l.d_first as u32).collect(),
            tokens: 0,
            awaited: true,
            expiry: None,
            lease: None,
            registration: 0,
            waited_ns: 0,
        }
    }

    pub fn receive(&self, receive: Receive) {
        self.step(&Step {
            receives: vec![receive],
            ..Step::default()
        });
    }

    pub fn heartbeat(&self, peer: &Engine, ids: &[&str]) {
        self.step(&Step {
            heartbeats: vec![Heartbeat {
                peer: peer.address(),
                remote_request_ids: ids.iter().map(|id| (*id).into()).collect(),
            }],
            ..Step::default()
        });
    }

    /// Polls all ranks until each has reported something of this kind about a request; what they
    /// reported, by rank. Nothing else may be reported meanwhile.
    #[track_caller]
    pub fn next(&self) -> Vec<Results> {
        let ranks = self.ranks.iter();
        ranks.map(|rank| next(&rank.worker)).collect()
    }

    #[track_caller]
    pub fn received(&self, id: &str) {
        for (i, r) in self.next().into_iter().enumerate() {
            assert_eq!(r.received, [id], "rank {i}");
            let why = || self.ranks[i].worker.take_records_json();
            assert!(r.failed.is_empty(), "rank {i}: {r:?}\n{}", why());
            assert!(r.sent.is_empty() && r.failed_blocks.is_empty());
        }
    }

    #[track_caller]
    pub fn sent(&self, id: &str) {
        for (i, r) in self.next().into_iter().enumerate() {
            assert_eq!(r.sent, [id], "rank {i}");
            assert!(r.received.is_empty());
        }
    }

    /// A pair of engines of one rank each, with a small dense model.
    pub fn pair(transport: &'static str) -> (Engine, Engine) {
        Engine::pair_with(transport, |_| {})
    }

    pub fn pair_with(transport: &'static str, change: fn(&mut WorkerOptions)) -> (Engine, Engine) {
        let model = dense(2);
        let make = |id| {
            let recipe = Recipe::new(transport, id, &model, style(&model, 1, 32, 4));
            recipe.change(change).start()
        };
        (make("p"), make("d"))
    }

    pub fn worker(&self) -> &Worker {
        &self.ranks[0].worker
    }

    pub fn agent(&self) -> &Arc<Agent> {
        &self.ranks[0].agent
    }

    pub fn cancel(&self, id: &str) {
        self.step(&Step {
            cancel: vec![id.into()],
            ..Step::default()
        });
    }

    /// What the failure of a request was, on each rank.
    #[track_caller]
    pub fn failed(&self, id: &str) -> Vec<String> {
        let check = |(i, r): (usize, Results)| {
            assert_eq!(r.failed, [id], "rank {i}");
            assert_eq!(r.received, [id], "rank {i}");
            let records = self.ranks[i].worker.take_records();
            let record = records.iter().rfind(|r| r.request_id == id);
            let record = record.expect("a record");
            format!("{}: {}", record.status.name(), record.message)
        };
        self.next().into_iter().enumerate().map(check).collect()
    }

    /// Nothing is under way or remembered, but for this many peers, and what has been said of requests
    /// that are not known.
    #[track_caller]
    pub fn at_rest(&self, peers: usize) {
        for rank in &self.ranks {
            eventually("rest", || {
                let state = rank.worker.state();
                let want = WorkerState {
                    peers,
                    early: state.early,
                    ..WorkerState::default()
                };
                state == want
            });
            assert!(rank.worker.poll().is_empty());
        }
    }

    /// What is in the ranks' memory now; transfers write behind the compiler's back.
    pub fn memories(&self) -> Vec<Vec<u8>> {
        let ranks = self.sim.ranks.iter();
        ranks.map(|rank| volatile(&rank.memory)).collect()
    }

    pub fn stat(&self, rank: usize, key: &str) -> usize {
        let text = self.ranks[rank].worker.take_stats();
        let all: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        all[key].as_array().map_or(0, Vec::len)
    }
}

fn volatile(memory: &[u8]) -> Vec<u8> {
    // SAFETY: every byte is in the slice.
    let read = |b: &u8| unsafe { std::ptr::read_volatile(b) };
    memory.iter().map(read).collect()
}

#[track_caller]
pub fn next(worker: &Worker) -> Results {
    let mut found = Results::default();
    eventually("a result", || {
        found = worker.poll();
        !found.is_empty()
    });
    found
}

/// Whether a descriptor becomes readable within `limit`.
pub fn readable(fd: std::os::fd::RawFd, limit: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one live entry.
    let n = unsafe { libc::poll(&raw mut poll, 1, limit.as_millis() as i32) };
    assert!(n >= 0, "{}", std::io::Error::last_os_error());
    n == 1 && poll.revents & libc::POLLIN != 0
}

/// Tells a child process from where leases count.
pub const LEASES_SINCE: &str = "KVF_TEST_LEASES_SINCE";

/// A generation that is younger than every engine of this program and its children.
pub fn leases_since() -> u64 {
    static SINCE: OnceLock<u64> = OnceLock::new();
    const HOUR: u64 = 3_600_000_000;
    *SINCE.get_or_init(|| match std::env::var(LEASES_SINCE) {
        Ok(given) => given.parse().expect("a number"),
        Err(_) => now_us() + HOUR,
    })
}

/// One that every engine takes for new. Generations are counted from [`leases_since`].
pub fn lease(slot: u32, generation: u64) -> Option<LeaseRef> {
    let generation = leases_since() + generation;
    Some(LeaseRef { slot, generation })
}

/// One that a scheduler half gives now.
pub fn lease_of_now(slot: u32) -> Option<LeaseRef> {
    let generation = now_us();
    Some(LeaseRef { slot, generation })
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("a clock that is set").as_micros() as u64
}

/// Lists of one group.
pub fn lists(p: &[u32], d: &[u32], d_first: u64) -> Vec<Lists> {
    vec![Lists {
        p: p.to_vec(),
        d: d.to_vec(),
        p_first: 0,
        d_first,
    }]
}

/// Compares the consumer's memory with what it must be.
#[track_caller]
pub fn check(d: &Engine, want: &[Vec<u8>]) {
    for (i, (got, want)) in d.memories().iter().zip(want).enumerate() {
        if let Err(e) = same("consumer", i, got, want) {
            panic!("{e}");
        }
    }
}

pub const LEASE: Duration = Duration::from_secs(30);

/// A request from `p` to `d`: what `lists` says, and nothing else, and both sides are told once.
#[track_caller]
pub fn round_trip(p: &mut Engine, d: &Engine, n: u64, lists: &[Lists], tokens: u64) {
    let (there, here) = (format!("P-{n}:x"), format!("D-{n}"));
    p.keep(&there, lists, lease(n as u32, 1), LEASE);
    let (want, _) = with_memory_of(p, d, lists);
    let mut receive = d.receive_of(&here, p, &there, lists);
    receive.lease = lease(n as u32, 1);
    receive.tokens = tokens;
    d.receive(receive);
    d.received(&here);
    p.sent(&there);
    check(d, &want);
}

/// What the consumer's memory must be afterwards, from what it is now.
pub fn with_memory_of(p: &Engine, d: &Engine, lists: &[Lists]) -> (Vec<Vec<u8>>, u64) {
    let mut now = Sim::new(&d.sim.model, &d.sim.style, 0);
    for (rank, memory) in now.ranks.iter_mut().zip(d.memories()) {
        rank.memory.copy_from_slice(&memory);
    }
    expected(&p.sim, &now, lists)
}
