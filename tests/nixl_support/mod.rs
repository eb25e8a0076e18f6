//! What the NIXL tests share: agents on a real NIXL, buffers, and waiting for conditions.
//!
//! `KVF_TEST_NIXL` names libnixl_capi.so; without it the usual search decides. Where there is no
//! NIXL the tests fail, unless `KVF_TEST_NO_NIXL=1` says that this is known.

#![allow(dead_code, reason = "each test program uses a part")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kvferry::error::{Error, Result, Status};
use kvferry::memory::{MemDesc, MemKind, RegDesc};
use kvferry::transport::{
    AgentOptions, Descs, Notification, Op, PreparedList, Progress, Side, Transfer, TransferOptions,
    TransferState, Transport,
};

pub const LIMIT: Duration = Duration::from_secs(20);

/// Whether to run at all: true with NIXL, false where its absence is announced, else a failure.
pub fn have_nixl() -> bool {
    let report = kvferry::transport::nixl::probe(library().as_deref());
    match report.error {
        None => true,
        Some(_) if std::env::var_os("KVF_TEST_NO_NIXL").is_some_and(|v| v == "1") => false,
        Some(why) => panic!(
            "these tests need NIXL; set KVF_TEST_NIXL to the path of libnixl_capi.so, or \
             KVF_TEST_NO_NIXL=1 to do without them. {why}"
        ),
    }
}

pub fn library() -> Option<String> {
    std::env::var("KVF_TEST_NIXL")
        .ok()
        .filter(|v| !v.is_empty())
}

/// A name that no other test uses.
pub fn unique(name: &str) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!(
        "{name}-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

pub fn options(name: &str) -> AgentOptions {
    AgentOptions {
        name: name.into(),
        transport: "nixl".into(),
        nixl_library: library(),
        ..AgentOptions::default()
    }
}

pub fn agent(name: &str) -> Arc<dyn Transport> {
    kvferry::transport::create(&options(name)).expect("an agent")
}

pub fn status<T>(result: Result<T>) -> Status {
    match result {
        Ok(_) => Status::Ok,
        Err(e) => e.status(),
    }
}

pub fn fail<T>(result: Result<T>) -> Error {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(e) => e,
    }
}

/// Memory that stays where it is.
pub struct Buffer(Box<[u8]>);

impl Buffer {
    pub fn new(len: usize, fill: impl Fn(usize) -> u8) -> Buffer {
        Buffer((0..len).map(fill).collect())
    }
    pub fn zeroed(len: usize) -> Buffer {
        Buffer::new(len, |_| 0)
    }
    pub fn all(&self) -> MemDesc {
        self.at(0, self.0.len())
    }
    pub fn at(&self, offset: usize, len: usize) -> MemDesc {
        assert!(offset + len <= self.0.len());
        MemDesc {
            addr: self.0.as_ptr() as u64 + offset as u64,
            len: len as u64,
            device: 0,
        }
    }
    pub fn reg(&self) -> Vec<RegDesc> {
        vec![self.all().into()]
    }
    /// What is in it now; read as volatile, since transfers write behind the compiler's back.
    pub fn bytes(&self) -> Vec<u8> {
        // SAFETY: every byte is in the box.
        self.0
            .iter()
            .map(|b| unsafe { std::ptr::read_volatile(b) })
            .collect()
    }
    pub fn blocks(&self, size: usize) -> Vec<MemDesc> {
        (0..self.0.len() / size)
            .map(|i| self.at(i * size, size))
            .collect()
    }
}

/// A byte that depends on where it is and on a seed.
pub fn pattern(seed: usize) -> impl Fn(usize) -> u8 {
    move |i| ((i.wrapping_mul(2_654_435_761) >> 7) as u8) ^ (seed as u8).wrapping_mul(91)
}

/// Polls until the condition gives something.
pub fn wait<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(
            begin.elapsed() < LIMIT,
            "{what} did not happen within {LIMIT:?}"
        );
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Waits for the end of a transfer.
pub fn finish(transfer: &Arc<dyn Transfer>) -> Result<()> {
    wait("the end of a transfer", || match transfer.state() {
        Ok(TransferState::InProgress) => None,
        Ok(TransferState::Done) => Some(Ok(())),
        Err(e) => Some(Err(e)),
    })
}

/// Posts and waits.
pub fn run(transfer: &Arc<dyn Transfer>) -> Result<()> {
    match transfer.post(None)? {
        TransferState::Done => Ok(()),
        TransferState::InProgress => finish(transfer),
    }
}

/// The next messages of an agent.
pub fn messages(agent: &Arc<dyn Transport>, count: usize) -> Vec<Notification> {
    let mut got = Vec::new();
    wait("a message", || {
        got.extend(agent.notifications(&[]).expect("notifications"));
        (got.len() >= count).then(|| std::mem::take(&mut got))
    })
}

/// Two agents that know each other and have a registered buffer each.
pub struct Pair {
    pub a: Arc<dyn Transport>,
    pub b: Arc<dyn Transport>,
    pub a_name: String,
    pub b_name: String,
    pub a_mem: Buffer,
    pub b_mem: Buffer,
}

pub fn pair_with(len: usize, change: impl Fn(&mut AgentOptions)) -> Pair {
    let (a_name, b_name) = (unique("a"), unique("b"));
    let make = |name: &str| {
        let mut options = options(name);
        change(&mut options);
        kvferry::transport::create(&options).expect("an agent")
    };
    let (a, b) = (make(&a_name), make(&b_name));
    let (a_mem, b_mem) = (Buffer::zeroed(len), Buffer::new(len, pattern(1)));
    a.register(MemKind::Dram, &a_mem.reg(), &[])
        .expect("register");
    b.register(MemKind::Dram, &b_mem.reg(), &[])
        .expect("register");
    assert_eq!(
        a.add_remote(&b.metadata().expect("metadata"))
            .expect("load"),
        b_name
    );
    assert_eq!(
        b.add_remote(&a.metadata().expect("metadata"))
            .expect("load"),
        a_name
    );
    Pair {
        a,
        b,
        a_name,
        b_name,
        a_mem,
        b_mem,
    }
}

pub fn pair(len: usize) -> Pair {
    pair_with(len, |o| o.progress = Progress::Thread)
}

impl Pair {
    /// A transfer between equal offsets of both buffers, seen from `a`.
    pub fn direct(&self, op: Op, offset: usize, len: usize) -> Arc<dyn Transfer> {
        self.direct_with(op, offset, len, TransferOptions::default())
    }

    pub fn direct_with(
        &self,
        op: Op,
        offset: usize,
        len: usize,
        options: TransferOptions<'_>,
    ) -> Arc<dyn Transfer> {
        let (l, r) = (self.a_mem.at(offset, len), self.b_mem.at(offset, len));
        let (l, r) = ((MemKind::Dram, &[l][..]), (MemKind::Dram, &[r][..]));
        self.a
            .create_transfer(op, l, r, &self.b_name, options)
            .expect("a transfer")
    }

    pub fn local_list(&self, descs: &[MemDesc]) -> Arc<dyn PreparedList> {
        self.a
            .prepare(Side::Local, MemKind::Dram, Descs::Flat(descs), &[])
            .expect("local list")
    }

    pub fn remote_list(&self, descs: &[MemDesc]) -> Arc<dyn PreparedList> {
        let side = Side::Remote(&self.b_name);
        self.a
            .prepare(side, MemKind::Dram, Descs::Flat(descs), &[])
            .expect("remote list")
    }
}
