//! What the queue costs: the engine's thread for a submit and its polls, and the queue's own thread for
//! a gigabyte and when idle.
//!
//! A request has 118, 512 or 2,048 blocks in 160 regions of pages of 8 KiB: a model of 80 layers with K
//! and V apart. Its blocks lie in a row on both sides, or scattered so that nothing merges. Source and
//! sink are two processes. Memory is a window of 256 MiB on either side that is mapped over
//! and over, so that the largest request (2.7 GB) needs no such machine; more than the caches hold.
//!
//! `cargo bench --bench queue [-- local|nixl slice_descriptors=N slice_bytes=N]`; `KVF_TEST_NIXL` names
//! libnixl_capi.so. Without NIXL only the built-in transport is measured, and that is said.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvferry::error::Status;
use kvferry::layout::GroupKind;
use kvferry::memory::MemKind;
use kvferry::plan::*;
use kvferry::queue::*;

#[path = "support/pair.rs"]
mod pair;
use pair::*;

const REGIONS: u64 = 160;
const PAGE: u64 = 8192;
const POOL: u64 = 4096;
const ROW: u64 = POOL * PAGE;
const LEN: usize = (REGIONS * ROW) as usize;

fn main() {
    if serves_as_source() {
        return;
    }
    for transport in transports() {
        measure(transport);
    }
}

/// What is given as `slice_descriptors=N` and `slice_bytes=N`; else the defaults.
fn options() -> QueueOptions {
    let given = |name: &str| {
        std::env::args().find_map(|arg| arg.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
    };
    QueueOptions {
        slice_descriptors: given("slice_descriptors").unwrap_or(0),
        slice_bytes: given("slice_bytes").unwrap_or(0) as u64,
        ..QueueOptions::default()
    }
}

fn plan(local: u64, remote: u64) -> Plan {
    let side = SideGeometry {
        tokens_per_block: 16,
        kernel_blocks: 1,
        block_count: POOL,
        dcp_size: 1,
        dcp_interleave: 16,
        pool: 0,
    };
    let mut builder = PlanBuilder::new(Direction::Pull);
    let group = GroupGeometry::new(GroupKind::Full, 0, side, side, false).expect("a group");
    let group = builder.group(group);
    let peer = builder.peer(Peer {
        tp_rank: 0,
        pp_rank: 0,
        role: PeerRole::Transfer,
        notifiers: 1,
    });
    for i in 0..REGIONS {
        let side = |base: u64| LaneSide {
            base: base + i * ROW,
            stride: PAGE,
            sub_stride: 0,
            mem: MemKind::Dram,
            device: 0,
        };
        builder.lane(Lane {
            peer,
            group,
            local_shard: 0,
            remote_shard: 0,
            local: side(local),
            remote: side(remote),
            len: PAGE,
            inner: [Inner::ONCE; 2],
        });
    }
    builder.finish().expect("a plan")
}

/// Ids in a row, or such that no two are neighbours on both sides.
fn ids(n: u64, scattered: bool) -> (Vec<u32>, Vec<u32>) {
    if !scattered {
        return ((0..n as u32).collect(), (7..7 + n as u32).collect());
    }
    // A walk over the pool whose step has no factor in common with its size visits each id once.
    let walk = |step: u64| (0..n).map(|i| (i * step % POOL) as u32).collect();
    (walk(1237), walk(2801))
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_nanos() as f64 / 1000.0
}

fn measure(transport: &str) {
    let sink = Arc::new(agent(transport, "sink"));
    let local = memory(&sink, 2, LEN);
    let source = Source::start_with(transport, LEN);
    let name = sink.add_remote(&source.metadata).expect("loading metadata");
    let plan = plan(local, source.base);
    let queue = Queue::create(sink.clone(), options()).expect("a queue");
    println!("\n{transport}, two processes");
    println!(
        "{:>6} {:>10} | {:>9} {:>10} {:>10} | {:>9} {:>8} {:>8} {:>11}",
        "blocks",
        "order",
        "submit us",
        "empty poll",
        "last poll",
        "in all ms",
        "GB/s",
        "posts",
        "CPU s/GB"
    );
    for blocks in [118, 512, 2048] {
        for scattered in [false, true] {
            let (l, r) = ids(blocks, scattered);
            let groups = [GroupBlocks::new(&l, &r)];
            let submission = Submission {
                plan: &plan,
                agents: &[&name],
                request: Request {
                    groups: &groups,
                    tokens: None,
                },
                notification: Some(b"0123456789abcdef:1"),
                deadline: None,
                guards: &[],
            };
            row(&queue, &submission, blocks, scattered);
        }
    }
    idle(&queue);
}

fn row(queue: &Queue, submission: &Submission<'_>, blocks: u64, scattered: bool) {
    // Submitting costs the same whatever becomes of the request, so most samples are of requests that
    // are late from the start. The thread sleeps again before the next, so that waking it is counted.
    let late = Submission {
        deadline: Some(Duration::ZERO),
        ..*submission
    };
    let mut submits = Vec::new();
    for _ in 0..300 {
        std::thread::sleep(Duration::from_micros(200));
        let begin = Instant::now();
        queue.submit(&late).expect("a ticket");
        submits.push(micros(begin));
        assert_eq!(
            take(queue).result.expect_err("late").status(),
            Status::Timeout
        );
    }
    let repeat = (4096 / blocks).clamp(3, 15);
    let (mut empty, mut last, mut all, mut slices) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let (cpu, mut bytes) = (queue.stats().thread_cpu_ns, 0);
    for _ in 0..repeat {
        let begin = Instant::now();
        queue.submit(submission).expect("a ticket");
        let done = loop {
            let look = Instant::now();
            let mut done = queue.poll(16);
            let took = micros(look);
            if let Some(done) = done.pop() {
                last.push(took);
                break done;
            }
            empty.push(took);
            // The engine has other things to do.
            queue.wait(Duration::from_millis(1));
        };
        all.push(micros(begin) / 1000.0);
        done.result.as_ref().expect("success");
        bytes += done.record.bytes;
        slices = done.record.slices;
    }
    let (cpu, gb) = (queue.stats().thread_cpu_ns - cpu, bytes as f64 / 1e9);
    let ms = median(all);
    println!(
        "{blocks:>6} {:>10} | {:>9.2} {:>10.2} {:>10.2} | {ms:>9.1} {:>8.2} {slices:>8} {:>11.3}",
        if scattered { "scattered" } else { "contiguous" },
        median(submits),
        median(empty),
        median(last),
        (blocks * REGIONS * PAGE) as f64 / ms / 1e6,
        cpu as f64 / 1e9 / gb,
    );
}

fn take(queue: &Queue) -> Completion {
    assert!(queue.wait(Duration::from_secs(60)), "no completion");
    queue.poll(1).remove(0)
}

/// Processor time of the queue's thread over a second of nothing.
fn idle(queue: &Queue) {
    let thread = std::fs::read_dir("/proc/self/task")
        .expect("threads")
        .map(|entry| entry.expect("a thread").path())
        .find(|path| {
            std::fs::read_to_string(path.join("comm")).is_ok_and(|n| n.trim() == "kvf-queue")
        })
        .expect("the queue's thread");
    let now = || {
        let stat = std::fs::read_to_string(thread.join("schedstat")).expect("schedstat");
        stat.split(' ')
            .next()
            .map(|n| n.parse::<u64>().expect("a number"))
    };
    std::thread::sleep(Duration::from_millis(100));
    let before = now();
    std::thread::sleep(Duration::from_secs(1));
    let used = now().unwrap_or(0) - before.unwrap_or(0);
    println!(
        "idle: {used} ns of processor time in a second, {} requests before",
        queue.stats().submitted
    );
}
