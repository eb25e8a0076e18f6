//! What the first transfer to a peer takes in memory: everything that is allocated between having the
//! peer's metadata and its first posted byte, for a cache of 160 regions of 40,960 pages on either side.
//! 6.5 million pages, of which nothing is kept one by one, so it must stay far below a megabyte.
//!
//! A program of its own, since the allocator that counts is the whole process's.

#[path = "queue/support.rs"]
mod support;

use std::alloc::{GlobalAlloc, Layout as Shape, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use kvferry::agent::Agent;
use kvferry::layout::*;
use kvferry::memory::{MemDesc, MemKind};
use kvferry::plan::*;
use kvferry::queue::*;
use support::{agent, eventually, next, script, told};

/// Counts bytes that are allocated now, and the most that ever were since [`Counting::begin`].
struct Counting {
    live: AtomicUsize,
    peak: AtomicUsize,
}

impl Counting {
    fn add(&self, bytes: usize) {
        let live = self.live.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(live, Ordering::Relaxed);
    }

    /// Begins to count; returns what is allocated already.
    fn begin(&self) -> usize {
        let live = self.live.load(Ordering::Relaxed);
        self.peak.store(live, Ordering::Relaxed);
        live
    }

    fn peak_above(&self, before: usize) -> usize {
        self.peak.load(Ordering::Relaxed) - before
    }
}

// SAFETY: hands everything to the system's allocator. What grows counts as new and old for a moment,
// as it may be for the allocator, too.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, shape: Shape) -> *mut u8 {
        self.add(shape.size());
        // SAFETY: as the caller promised us.
        unsafe { System.alloc(shape) }
    }

    unsafe fn dealloc(&self, at: *mut u8, shape: Shape) {
        self.live.fetch_sub(shape.size(), Ordering::Relaxed);
        // SAFETY: as the caller promised us.
        unsafe { System.dealloc(at, shape) }
    }
}

#[global_allocator]
static MEMORY: Counting = Counting {
    live: AtomicUsize::new(0),
    peak: AtomicUsize::new(0),
};

const REGIONS: u64 = 160;
const PAGES: u64 = 40_960;
const PAGE: u64 = 8192;
const ROW: u64 = PAGES * PAGE;
const LIMIT: usize = 1_000_000;

/// Address space for all regions, registered; none of it is ever touched.
fn address_space(agent: &Agent) -> u64 {
    let (any, rw) = (std::ptr::null_mut(), libc::PROT_READ | libc::PROT_WRITE);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at a place of the system's choice.
    let base = unsafe { libc::mmap(any, (REGIONS * ROW) as usize, rw, flags, -1, 0) };
    assert!(base != libc::MAP_FAILED);
    let desc = MemDesc {
        addr: base as u64,
        len: REGIONS * ROW,
        device: 0,
    };
    agent.register(MemKind::Dram, &[desc.into()], &[]).unwrap();
    base as u64
}

/// 80 layers with K and V in regions of their own.
fn layout(base: u64) -> Layout {
    let shape = DenseShape {
        kv_heads: 4,
        k_head_size: 64,
        v_head_size: 64,
        elem_bytes: 2,
        order: PageOrder::Hnd,
        kv: KvPlacement::Regions,
    };
    let mut builder = LayoutBuilder::new(Parallel::default());
    let group = builder.attention(GroupKind::Full, 16, 1);
    for layer in 0..REGIONS / 2 {
        let span = |i| Span::host(base + (2 * layer + i) * ROW, PAGES);
        let spans = [span(0), span(1)];
        builder.dense(group, layer as u32, shape, &spans).unwrap();
    }
    builder.finish().unwrap()
}

#[test]
fn a_first_transfer_needs_no_megabyte() {
    let (sink, source) = (agent("test", "sink"), agent("test", "source"));
    let (mine, theirs) = (address_space(&sink), address_space(&source));
    let metadata = source.metadata().unwrap();
    let bytes = layout(theirs).encode().unwrap();
    script(&sink, &[("hold", "1")]);
    for blocks in [1u64, 118, 2048] {
        // No two are neighbours on both sides.
        let walk =
            |step: u64| -> Vec<u32> { (0..blocks).map(|i| (i * step % PAGES) as u32).collect() };
        let (local, remote) = (walk(12_373), walk(28_019));
        let posts = told(&sink, "posts");

        let before = MEMORY.begin();
        let peer = sink.add_remote(&metadata).unwrap();
        let remotes = [Layout::decode(&bytes).unwrap()];
        let plan = Plan::build(&layout(mine), &remotes, &PlanOptions::default()).unwrap();
        let planned = MEMORY.peak_above(before);
        // One slice, so that what comes after the first post is not counted.
        let one = QueueOptions {
            slices_in_flight: 1,
            ..QueueOptions::default()
        };
        let queue = Queue::create(sink.clone(), one).unwrap();
        let groups = [GroupBlocks::new(&local, &remote)];
        let ticket = queue
            .submit(&Submission {
                plan: &plan,
                agents: &[&peer],
                request: Request {
                    groups: &groups,
                    tokens: None,
                },
                guards: &[],
                notification: None,
                deadline: None,
            })
            .unwrap();
        eventually("the first post", || told(&sink, "posts") > posts);
        let posted = MEMORY.peak_above(before);

        println!("{blocks} blocks: {planned} bytes to have a plan, {posted} to the first post");
        assert!(posted < LIMIT, "{posted} bytes for {blocks} blocks");
        queue.cancel(ticket).unwrap();
        assert_eq!(next(&queue).ticket, ticket);
        sink.remove_remote(&peer).unwrap();
    }
    // Without the counting itself this would prove nothing.
    let before = MEMORY.begin();
    let large = vec![1u8; 3 * LIMIT];
    assert!(MEMORY.peak_above(before) >= large.len());
}
