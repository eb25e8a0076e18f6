//! What the tests of the queue share: memory that transfers write behind the compiler's back, a small
//! world of one reading rank and a few sources, and ways to know that something has happened without
//! looking at a clock.
#![allow(dead_code)] // Each test program uses its part.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kvferry::agent::Agent;
use kvferry::error::{Result, Status};
use kvferry::layout::GroupKind;
use kvferry::memory::{MemDesc, MemKind};
use kvferry::plan::*;
use kvferry::queue::*;
use kvferry::transport::AgentOptions;

/// Longer than anything may take, even on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Waits for a condition.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// A name that no other test of this process uses.
pub fn unique(name: &str) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{name}-{}-{count}", std::process::id())
}

/// A byte that depends on a seed and on where it is.
pub fn pattern(seed: u64, at: usize) -> u8 {
    let mixed = (at as u64 ^ seed.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

/// Memory that is read and written by address, as transfers do it.
pub struct Memory {
    first: *mut u8,
    len: usize,
}

// SAFETY: the bytes are only accessed one at a time, as volatile; tests that race would see wrong
// bytes, which is what they look for.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    pub fn new(len: usize, seed: u64) -> Memory {
        let bytes: Box<[u8]> = (0..len).map(|i| pattern(seed, i)).collect();
        let first = Box::into_raw(bytes).cast::<u8>();
        Memory { first, len }
    }

    pub fn addr(&self) -> u64 {
        self.first as u64
    }

    pub fn desc(&self) -> MemDesc {
        MemDesc {
            addr: self.addr(),
            len: self.len as u64,
            device: 0,
        }
    }

    pub fn read(&self) -> Vec<u8> {
        // SAFETY: inside the box.
        (0..self.len)
            .map(|i| unsafe { std::ptr::read_volatile(self.first.add(i)) })
            .collect()
    }

    pub fn fill(&self, byte: impl Fn(usize) -> u8) {
        for i in 0..self.len {
            // SAFETY: inside the box.
            unsafe { std::ptr::write_volatile(self.first.add(i), byte(i)) };
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let bytes = std::ptr::slice_from_raw_parts_mut(self.first, self.len);
        // SAFETY: what `new` made; the agents that knew it have been closed before.
        drop(unsafe { Box::from_raw(bytes) });
    }
}

pub fn agent(transport: &str, name: &str) -> Arc<Agent> {
    let options = AgentOptions {
        name: unique(name),
        transport: transport.into(),
        ..AgentOptions::default()
    };
    Arc::new(Agent::create(&options).expect("an agent"))
}

/// Changes the script of an agent on the transport for tests.
pub fn script(agent: &Agent, params: &[(&str, &str)]) {
    let params: Vec<(String, String)> = params
        .iter()
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .collect();
    agent.create_backend("test", &params).expect("the script");
}

/// A number from what the transport for tests tells about itself.
pub fn told(agent: &Agent, what: &str) -> usize {
    let info = agent.backend_info("test").expect("backend information");
    let found = info.params.iter().find(|(key, _)| key == what);
    found.expect("the number").1.parse().expect("a number")
}

/// The posts so far: peer and bytes.
pub fn posts(agent: &Agent) -> Vec<(String, u64)> {
    let info = agent.backend_info("test").expect("backend information");
    let posts = info.params.into_iter().filter(|(key, _)| key == "post");
    posts
        .map(|(_, post)| {
            let (peer, bytes) = post.split_once(' ').expect("two words");
            (peer.to_owned(), bytes.parse().expect("a number"))
        })
        .collect()
}

/// How large a [`World`] is.
#[derive(Clone, Copy)]
pub struct Shape {
    pub sources: usize,
    pub rows: usize,
    pub blocks: usize,
    pub page: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Shape {
            sources: 2,
            rows: 2,
            blocks: 64,
            page: 32,
        }
    }
}

/// One rank that reads, or writes, and the ranks at the other end. Each of those has a few rows of
/// pages, and the rank a row for each row of each of them; block `r` of all rows of a peer corresponds
/// to block `l` of its rows here.
pub struct World {
    pub shape: Shape,
    pub sink: Arc<Agent>,
    pub sources: Vec<Arc<Agent>>,
    pub mine: Arc<Memory>,
    pub theirs: Vec<Arc<Memory>>,
    pub plan: Plan,
    pub names: Vec<String>,
}

impl World {
    pub fn new(transport: &str, shape: Shape) -> World {
        World::with(transport, shape, Direction::Pull, &[])
    }

    /// A world in which the last peers hold nothing that is wanted, and have these roles.
    pub fn with(transport: &str, shape: Shape, direction: Direction, others: &[PeerRole]) -> World {
        let row = shape.blocks * shape.page;
        let sink = agent(transport, "sink");
        let mine = Arc::new(Memory::new(shape.sources * shape.rows * row, 1));
        register(&sink, MemKind::Dram, &mine);
        let mut builder = PlanBuilder::new(direction);
        let geometry = builder.group(geometry(shape.blocks));
        let (mut sources, mut theirs, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for s in 0..shape.sources + others.len() {
            let role = s
                .checked_sub(shape.sources)
                .map_or(PeerRole::Transfer, |i| others[i]);
            let source = agent(transport, "source");
            let peer = builder.peer(peer(role));
            let memory = Arc::new(Memory::new(shape.rows * row, 100 + s as u64));
            register(&source, MemKind::Dram, &memory);
            names.push(sink.add_remote(&source.metadata().unwrap()).unwrap());
            for r in (0..shape.rows).filter(|_| role == PeerRole::Transfer) {
                let local = mine.addr() + ((s * shape.rows + r) * row) as u64;
                let remote = memory.addr() + (r * row) as u64;
                builder.lane(lane(
                    peer,
                    geometry,
                    shape.page,
                    local,
                    remote,
                    MemKind::Dram,
                ));
            }
            sources.push(source);
            theirs.push(memory);
        }
        World {
            shape,
            sink,
            sources,
            mine,
            theirs,
            plan: builder.finish().unwrap(),
            names,
        }
    }

    pub fn queue(&self, options: QueueOptions) -> Queue {
        Queue::create(self.sink.clone(), options).expect("a queue")
    }

    /// A submission of these pairs of blocks, to be changed by the caller.
    pub fn submit(
        &self,
        queue: &Queue,
        blocks: (&[u32], &[u32]),
        change: impl FnOnce(&mut Submission<'_>),
    ) -> Result<Ticket> {
        let agents: Vec<&str> = self.names.iter().map(String::as_str).collect();
        let groups = [GroupBlocks::new(blocks.0, blocks.1)];
        let mut submission = Submission {
            plan: &self.plan,
            agents: &agents,
            request: Request {
                groups: &groups,
                tokens: None,
            },
            notification: None,
            deadline: None,
            guards: &[],
        };
        change(&mut submission);
        queue.submit(&submission)
    }

    /// Submits pairs of blocks.
    #[track_caller]
    pub fn send(&self, queue: &Queue, local: &[u32], remote: &[u32]) -> Ticket {
        self.submit(queue, (local, remote), |_| {})
            .expect("a ticket")
    }

    /// A request that is found to be wrong before it moves anything. What the thread was told before
    /// has been seen by it when this one completes, and every request that it had then has had a turn.
    #[track_caller]
    pub fn send_canary(&self, queue: &Queue) -> Ticket {
        let beyond = [self.shape.blocks as u32];
        self.send(queue, &beyond, &beyond)
    }

    /// Lets a canary through, and returns what completed before it.
    #[track_caller]
    pub fn until_canary(&self, queue: &Queue) -> Vec<Completion> {
        let canary = self.send_canary(queue);
        let mut before = Vec::new();
        loop {
            let done = next(queue);
            if done.ticket == canary {
                assert_eq!(status(&done), Status::InvalidArgument, "the canary");
                return before;
            }
            before.push(done);
        }
    }

    /// What the sink's memory is when these blocks of the first `sources` sources have been read.
    pub fn expected(
        &self,
        before: &[u8],
        local: &[u32],
        remote: &[u32],
        sources: usize,
    ) -> Vec<u8> {
        let mut want = before.to_vec();
        let (page, row) = (self.shape.page, self.shape.blocks * self.shape.page);
        for s in 0..sources {
            let theirs = self.theirs[s].read();
            for r in 0..self.shape.rows {
                for (l, f) in local.iter().zip(remote) {
                    let to = (s * self.shape.rows + r) * row + *l as usize * page;
                    let from = r * row + *f as usize * page;
                    want[to..to + page].copy_from_slice(&theirs[from..from + page]);
                }
            }
        }
        want
    }
}

pub fn register(agent: &Agent, kind: MemKind, memory: &Memory) {
    agent
        .register(kind, &[memory.desc().into()], &[])
        .expect("registering");
}

pub fn geometry(blocks: usize) -> GroupGeometry {
    let side = SideGeometry {
        tokens_per_block: 1,
        kernel_blocks: 1,
        block_count: blocks as u64,
        dcp_size: 1,
        dcp_interleave: 1,
        pool: 0,
    };
    GroupGeometry::new(GroupKind::Full, 0, side, side, false).unwrap()
}

pub fn peer(role: PeerRole) -> Peer {
    Peer {
        tp_rank: 0,
        pp_rank: 0,
        role,
        notifiers: 1,
    }
}

/// A row of pages on both sides.
pub fn lane(peer: u32, group: u32, page: usize, local: u64, remote: u64, mem: MemKind) -> Lane {
    let side = |base, mem| LaneSide {
        base,
        stride: page as u64,
        sub_stride: 0,
        mem,
        device: 0,
    };
    Lane {
        peer,
        group,
        local_shard: 0,
        remote_shard: 0,
        local: side(local, mem),
        remote: side(remote, MemKind::Dram),
        len: page as u64,
        inner: [Inner::ONCE; 2],
    }
}

pub fn status(completion: &Completion) -> Status {
    completion
        .result
        .as_ref()
        .map_or_else(|e| e.status(), |()| Status::Ok)
}

/// The next completion.
#[track_caller]
pub fn next(queue: &Queue) -> Completion {
    assert!(queue.wait(LIMIT), "no completion within {LIMIT:?}");
    queue.poll(1).pop().expect("a completion")
}

/// A completion that must be an error, and its message.
#[track_caller]
pub fn failed(completion: Completion, status: Status, parts: &[&str]) {
    let Err(error) = completion.result else {
        panic!("ticket {} should have failed", completion.ticket);
    };
    assert_eq!(error.status(), status, "{error}");
    for part in parts {
        assert!(
            error.message().contains(part),
            "{part:?} is not in: {error}"
        );
    }
}

/// What an agent has been told so far.
pub fn heard(agent: &Agent) -> Vec<Vec<u8>> {
    let messages = agent.notifications(&[]).expect("notifications");
    messages.into_iter().map(|n| n.payload).collect()
}

/// Many small slices under way at once.
pub fn fine() -> QueueOptions {
    QueueOptions {
        slice_descriptors: 1,
        ..QueueOptions::default()
    }
}

/// Compares memories, and says where they first differ.
#[track_caller]
pub fn same(what: &str, got: &[u8], want: &[u8]) {
    assert_eq!(got.len(), want.len(), "{what}");
    if let Some(at) = got.iter().zip(want).position(|(a, b)| a != b) {
        let wrong = got.iter().zip(want).filter(|(a, b)| a != b).count();
        panic!(
            "{what}: byte {at} is {}, not {}; {wrong} of {} differ",
            got[at],
            want[at],
            want.len()
        );
    }
}
