//! Unequal block sizes: head by head to the right place at once, against whole pages and re-arranging
//! them in place afterwards.
//!
//! The producer has blocks of 16 tokens, the consumer of 32 (or 64): head-major pages, so that a head's
//! tokens are a *slab* on the producer and half (a quarter) of one on the consumer. Direct: a
//! descriptor for each slab. Whole: a descriptor for each page, laid into the consumer's page one behind
//! the other; when a slice is in, each page goes through a scratch page of its size and comes back in
//! order. Slices are what a queue would post; both take turns, and the ratio is the median of the rounds'
//! own ratios.
//!
//! `cargo bench --bench unequal_blocks [-- local|nixl]`; `KVF_TEST_NIXL` names libnixl_capi.so.

use std::time::Instant;

use kvferry::agent::{Agent, Transfer};
use kvferry::memory::{MemDesc, MemKind};
use kvferry::transport::{Op, TransferOptions, TransferState};

#[path = "support/pair.rs"]
mod pair;
use pair::*;

const HEADS: u64 = 8;
const ROUNDS: usize = 9;
/// Bytes of a round, and what a slice has at most.
const BYTES: u64 = 192 << 20;
const SLICE: (u64, usize) = (8 << 20, 1024);

fn main() {
    if serves_as_source() {
        return;
    }
    for transport in transports() {
        let sink = agent(transport, "sink");
        let local = window(&sink, 2);
        let source = Source::start(transport);
        let peer = sink.add_remote(&source.metadata).expect("loading metadata");
        println!("\n{transport}, two processes: GB/s, medians of {ROUNDS} rounds");
        println!(
            "{:>9} {:>6} | {:>8} {:>8} {:>14} | whole / direct",
            "slab", "ratio", "direct", "whole", "of it moving"
        );
        for slab in [512, 1024, 2048, 4096, 8192, 16384] {
            for ratio in [2, 4] {
                row(&Case {
                    sink: &sink,
                    peer: &peer,
                    local,
                    remote: source.base,
                    slab,
                    ratio,
                });
            }
        }
    }
}

struct Case<'a> {
    sink: &'a Agent,
    peer: &'a str,
    local: u64,
    remote: u64,
    slab: u64,
    /// Producer's blocks in one of the consumer's.
    ratio: u64,
}

/// One descriptor: where to, where from, bytes.
type Copy3 = (u64, u64, u64);

impl Case<'_> {
    fn page(&self) -> u64 {
        self.slab * HEADS
    }

    /// The producer's pages, in an order in which none follows its neighbour.
    fn pages(&self) -> impl Iterator<Item = (u64, u64)> {
        let count = BYTES / self.page();
        let step = (count / 3) | 1;
        (0..count).map(move |i| (i, i * step % count))
    }

    fn direct(&self) -> Vec<Copy3> {
        let mut out = Vec::new();
        for (to, from) in self.pages() {
            let big = self.local + to / self.ratio * self.ratio * self.page();
            for head in 0..HEADS {
                let at = big + (head * self.ratio + to % self.ratio) * self.slab;
                out.push((
                    at,
                    self.remote + from * self.page() + head * self.slab,
                    self.slab,
                ));
            }
        }
        out
    }

    fn whole(&self) -> Vec<Copy3> {
        let page = self.page();
        let pair = |(to, from)| (self.local + to * page, self.remote + from * page, page);
        self.pages().map(pair).collect()
    }

    /// Puts the slabs of one of the consumer's pages into their places.
    fn rearrange(&self, page: u64, scratch: &mut [u8]) {
        let (slab, ratio) = (self.slab as usize, self.ratio as usize);
        // SAFETY: the page is inside the window, and no transfer is under way.
        let page = unsafe { std::slice::from_raw_parts_mut(page as *mut u8, scratch.len()) };
        scratch.copy_from_slice(page);
        for (from, bytes) in scratch.chunks_exact(slab).enumerate() {
            let (block, head) = (from / HEADS as usize, from % HEADS as usize);
            let to = (head * ratio + block) * slab;
            page[to..to + slab].copy_from_slice(bytes);
        }
    }
}

/// What one post has at most, of a list that is cut where a consumer's page ends.
fn slices(list: &[Copy3], unit: usize) -> impl Iterator<Item = &[Copy3]> {
    let by_bytes = (SLICE.0 / list[0].2) as usize;
    let len = by_bytes.min(SLICE.1) / unit * unit;
    list.chunks(len.max(unit))
}

fn post(case: &Case<'_>, slice: &[Copy3]) -> Transfer {
    let side = |pick: fn(&Copy3) -> u64| -> Vec<MemDesc> {
        let desc = |c| MemDesc {
            addr: pick(c),
            len: c.2,
            device: 0,
        };
        slice.iter().map(desc).collect()
    };
    let (to, from) = (side(|c| c.0), side(|c| c.1));
    let transfer = case
        .sink
        .create_transfer(
            Op::Read,
            (MemKind::Dram, &to),
            (MemKind::Dram, &from),
            case.peer,
            TransferOptions::default(),
        )
        .expect("a transfer");
    let mut state = transfer.post(None).expect("posting");
    while state == TransferState::InProgress {
        std::thread::yield_now();
        state = transfer.state().expect("its state");
    }
    transfer
}

fn row(case: &Case<'_>) {
    let (direct, whole) = (case.direct(), case.whole());
    let big = case.page() * case.ratio;
    let mut scratch = vec![0; big as usize];
    let (mut times, mut ratios) = ([vec![], vec![], vec![]], vec![]);
    for round in 0..=ROUNDS {
        let begin = Instant::now();
        for slice in slices(&direct, HEADS as usize * case.ratio as usize) {
            post(case, slice);
        }
        let straight = begin.elapsed().as_secs_f64();
        let (begin, mut moving) = (Instant::now(), 0.0);
        for slice in slices(&whole, case.ratio as usize) {
            post(case, slice);
            let begin = Instant::now();
            for first in slice.chunks(case.ratio as usize) {
                case.rearrange(first[0].0, &mut scratch);
            }
            moving += begin.elapsed().as_secs_f64();
        }
        let around = begin.elapsed().as_secs_f64();
        if round > 0 {
            // The first round connects and touches the pages.
            for (list, time) in times.iter_mut().zip([straight, around, moving]) {
                list.push(time);
            }
            ratios.push(around / straight);
        }
    }
    let [straight, around, moving] = times.map(median);
    let rate = |seconds: f64| BYTES as f64 / seconds / 1e9;
    println!(
        "{:>9} {:>6} | {:>8.2} {:>8.2} {:>13.0}% | {:.2}",
        case.slab,
        case.ratio,
        rate(straight),
        rate(around),
        moving / around * 100.0,
        median(ratios)
    );
}
