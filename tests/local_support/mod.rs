//! What the tests of the local transport share: agents, buffers with known content, and puppets,
//! which are agents in other processes that do what the test tells them.
#![allow(dead_code)] // Each test binary uses a part.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvferry::error::Status;
use kvferry::memory::{MemDesc, MemKind, RegDesc};
use kvferry::transport::{
    self, AgentOptions, Descs, Notification, Op, Progress, Side, Transfer, TransferOptions,
    TransferState, Transport,
};

pub mod puppet;

/// Longer than anything may take, even on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

pub fn options(name: &str) -> AgentOptions {
    AgentOptions {
        name: name.to_string(),
        transport: "local".to_string(),
        telemetry: true,
        ..AgentOptions::default()
    }
}

pub fn agent(name: &str) -> Arc<dyn Transport> {
    transport::create(&options(name)).unwrap()
}

pub fn range(addr: u64, len: u64) -> MemDesc {
    MemDesc {
        addr,
        len,
        device: 0,
    }
}

/// Memory that is addressed by number, as a transfer does it.
pub struct Buffer {
    bytes: Vec<u8>,
}

impl Buffer {
    pub fn new(len: usize) -> Buffer {
        Buffer {
            bytes: vec![0; len],
        }
    }

    pub fn filled(len: usize, seed: u64) -> Buffer {
        let mut buffer = Buffer::new(len);
        buffer.fill(seed);
        buffer
    }

    pub fn fill(&mut self, seed: u64) {
        for (i, byte) in self.bytes.iter_mut().enumerate() {
            *byte = pattern(seed, i);
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn addr(&self) -> u64 {
        self.bytes.as_ptr() as u64
    }

    pub fn whole(&self) -> MemDesc {
        range(self.addr(), self.bytes.len() as u64)
    }

    pub fn part(&self, offset: usize, len: usize) -> MemDesc {
        range(self.addr() + offset as u64, len as u64)
    }
}

/// A byte that depends on seed and place.
pub fn pattern(seed: u64, i: usize) -> u8 {
    let mixed = (i as u64 ^ seed.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

pub fn register(agent: &dyn Transport, ranges: &[MemDesc]) {
    let descs: Vec<RegDesc> = ranges.iter().map(|&r| r.into()).collect();
    agent.register(MemKind::Dram, &descs, &[]).unwrap();
}

/// Makes a transfer from two arrays.
pub fn transfer(
    agent: &dyn Transport,
    op: Op,
    local: &[MemDesc],
    remote: &[MemDesc],
    peer: &str,
) -> kvferry::error::Result<Arc<dyn Transfer>> {
    agent.create_transfer(
        op,
        (MemKind::Dram, local),
        (MemKind::Dram, remote),
        peer,
        TransferOptions::default(),
    )
}

/// Makes it, posts it, and checks that it is done.
pub fn copy(agent: &dyn Transport, op: Op, local: &[MemDesc], remote: &[MemDesc], peer: &str) {
    let transfer = transfer(agent, op, local, remote, peer).unwrap();
    assert_eq!(transfer.post(None).unwrap(), TransferState::Done);
    assert_eq!(transfer.state().unwrap(), TransferState::Done);
}

/// The status of a call that must fail.
pub fn fails<T>(result: kvferry::error::Result<T>, status: Status, parts: &[&str]) {
    let error = result.err().expect("it should have failed");
    assert_eq!(error.status(), status, "{error}");
    for part in parts {
        assert!(
            error.message().contains(part),
            "{part:?} is not in: {error}"
        );
    }
}

/// Waits until so many messages have come.
pub fn take(agent: &dyn Transport, count: usize) -> Vec<Notification> {
    let deadline = Instant::now() + LIMIT;
    let mut messages = Vec::new();
    while messages.len() < count {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(
            !left.is_zero(),
            "{} of {count} messages came",
            messages.len()
        );
        agent.wait_for_notification(left).unwrap();
        messages.extend(agent.notifications(&[]).unwrap());
    }
    messages
}

/// Waits for a condition.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Numbers without end, from xorshift64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn shuffled(&mut self, n: usize) -> Vec<i32> {
        let mut all: Vec<i32> = (0..n as i32).collect();
        for i in (1..n).rev() {
            all.swap(i, self.below(i + 1));
        }
        all
    }
}
