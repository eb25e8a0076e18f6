//! What the block pool costs in one process: nanoseconds per block, by operation and batch size, in a
//! pool of 100,000 blocks.
//!
//!     cargo bench --bench pool [filter]
//!
//! Every operation is timed together with nothing else: the batches that undo it are outside the
//! clock. *churned* pools have been through random allocations and frees, so that neighbours in the
//! queue lie far apart in memory, as they do in an engine after a while; *fresh* ones have not.
//! A figure is the median over rounds; a round times 4,096 blocks or more.

use std::hint::black_box;

use kvferry::block_pool::{BlockPool, CacheFull, Options, Policy};
use kvferry::capi::block_pool::*;

const BLOCKS: u32 = 100_000;
const HASH: usize = 32;
const ROUNDS: usize = 41;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (((self.0 >> 32) * u64::from(n)) >> 32) as u32
    }

    fn shuffle(&mut self, ids: &mut [u32]) {
        for i in (1..ids.len()).rev() {
            ids.swap(i, self.below(i as u32 + 1) as usize);
        }
    }
}

/// Hashes as good as real ones: spread over all bits, different for every number.
fn hashes(first: u64, count: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(count * HASH);
    for i in 0..count as u64 {
        let mut x = first + i;
        for _ in 0..HASH / 8 {
            x = (x ^ (x >> 31))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .wrapping_add(0x1234_5678_9abc_def1);
            out.extend_from_slice(&(x ^ (x >> 29)).to_le_bytes());
        }
    }
    out
}

/// A pool of which half is free, in a random order if it is churned, with cached content if asked.
struct Bench {
    pool: BlockPool,
    held: Vec<u32>,
    next_hash: u64,
    random: Random,
}

impl Bench {
    fn new(policy: Policy, caching: bool, churned: bool) -> Self {
        let mut pool = BlockPool::new(&Options {
            policy,
            ..Options::new(BLOCKS, caching)
        })
        .unwrap();
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        let mut all = vec![0; BLOCKS as usize - 1];
        pool.allocate(None, &mut all).unwrap();
        if churned {
            random.shuffle(&mut all);
        }
        let held = all.split_off(all.len() / 2);
        all.reverse();
        pool.free(&all).unwrap();
        Bench {
            pool,
            held,
            next_hash: 1,
            random,
        }
    }

    fn allocate(&mut self, n: usize) -> Vec<u32> {
        let mut ids = vec![0; n];
        self.pool.allocate(None, &mut ids).unwrap();
        ids
    }

    fn cache(&mut self, ids: &[u32]) -> Vec<u8> {
        let hashes = hashes(self.next_hash << 20, ids.len());
        self.next_hash += 1;
        cache(&mut self.pool, ids, &hashes);
        hashes
    }

    /// Caches everything that is free, so that each allocation evicts.
    fn cache_free(&mut self) {
        let mut ids = self.allocate(self.pool.num_free() as usize);
        self.cache(&ids);
        ids.reverse();
        self.pool.free(&ids).unwrap();
    }
}

fn cache(pool: &mut BlockPool, blocks: &[u32], hashes: &[u8]) {
    pool.cache_full(&CacheFull {
        blocks,
        hashes,
        hash_len: HASH,
        block_size: 16,
        ..CacheFull::default()
    })
    .unwrap();
}

/// The median of the rounds, in nanoseconds per block. `round` returns the time of `blocks` blocks.
fn median(blocks: usize, mut round: impl FnMut() -> f64) -> f64 {
    let mut times: Vec<f64> = (0..ROUNDS).map(|_| round() / blocks as f64).collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

/// What this thread has used of the processor, in nanoseconds: the machine may have other things to
/// do.
fn thread_time() -> f64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `t` may be written.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 * 1e9 + t.tv_nsec as f64
}

/// The time of a call for each batch.
fn timed<T>(batches: impl Iterator<Item = T>, mut call: impl FnMut(T)) -> f64 {
    let start = thread_time();
    for batch in batches {
        call(batch);
    }
    thread_time() - start
}

/// The same half-free pool behind a handle of `kvferry.h`.
struct CBench {
    handle: kvf_block_pool,
    held: Vec<u32>,
}

impl CBench {
    fn new(policy: u32, caching: bool) -> Self {
        // SAFETY: all zero is a value of the struct.
        let mut options: kvf_block_pool_options = unsafe { std::mem::zeroed() };
        options.struct_size = size_of::<kvf_block_pool_options>() as u32;
        (options.blocks, options.policy, options.caching) = (BLOCKS, policy, caching.into());
        let mut handle = kvf_block_pool { id: 0 };
        // SAFETY: both are valid.
        assert_eq!(unsafe { kvf_block_pool_create(&options, &mut handle) }, 0);
        let mut all = vec![0; BLOCKS as usize - 1];
        let mut bench = CBench {
            handle,
            held: Vec::new(),
        };
        bench.allocate(&mut all);
        Random(0x2545_f491_4f6c_dd1d).shuffle(&mut all);
        bench.held = all.split_off(all.len() / 2);
        bench.free(&all);
        bench
    }

    fn allocate(&self, out: &mut [u32]) {
        // SAFETY: the array is valid, here and below.
        let code = unsafe { kvf_block_pool_allocate(self.handle, out.as_mut_ptr(), out.len()) };
        assert_eq!(code, 0);
    }

    fn free(&self, ids: &[u32]) {
        // SAFETY: as above.
        let code = unsafe { kvf_block_pool_free(self.handle, ids.as_ptr(), ids.len()) };
        assert_eq!(code, 0);
    }

    fn touch(&self, ids: &[u32]) {
        // SAFETY: as above.
        let code = unsafe { kvf_block_pool_touch(self.handle, ids.as_ptr(), ids.len()) };
        assert_eq!(code, 0);
    }
}

/// Allocate, free and touch of held blocks through C, churned.
fn through_c(policy: u32, caching: bool, n: usize, total: usize) -> [f64; 3] {
    let b = CBench::new(policy, caching);
    let mut ids = vec![0; total];
    let allocate = median(total, || {
        let t = timed(ids.chunks_exact_mut(n), |out| b.allocate(out));
        b.free(&ids);
        t
    });
    let free = median(total, || {
        b.allocate(&mut ids);
        timed(ids.chunks_exact(n), |batch| b.free(batch))
    });
    let touch = median(total, || {
        let ids = &b.held[..total];
        let t = timed(ids.chunks_exact(n), |batch| b.touch(batch));
        b.free(ids);
        t
    });
    assert_eq!(kvf_block_pool_destroy(b.handle), 0);
    [allocate, free, touch]
}

type Measure = fn(&mut Bench, usize, usize) -> f64;

fn allocate(b: &mut Bench, n: usize, total: usize) -> f64 {
    let mut ids = vec![0; total];
    median(total, || {
        let t = timed(ids.chunks_exact_mut(n), |out| {
            b.pool.allocate(None, out).unwrap()
        });
        b.pool.free(&ids).unwrap();
        t
    })
}

/// Each block handed out loses its content.
fn allocate_evicting(b: &mut Bench, n: usize, total: usize) -> f64 {
    b.cache_free();
    let mut ids = vec![0; total];
    median(total, || {
        let t = timed(ids.chunks_exact_mut(n), |out| {
            b.pool.allocate(None, out).unwrap()
        });
        b.cache(&ids);
        b.pool.free(&ids).unwrap();
        t
    })
}

fn free(b: &mut Bench, n: usize, total: usize) -> f64 {
    median(total, || {
        let ids = b.allocate(total);
        timed(ids.chunks_exact(n), |batch| b.pool.free(batch).unwrap())
    })
}

fn free_hashed(b: &mut Bench, n: usize, total: usize) -> f64 {
    b.cache_free();
    median(total, || {
        let mut ids = b.allocate(total);
        b.cache(&ids);
        ids.reverse();
        timed(ids.chunks_exact(n), |batch| b.pool.free(batch).unwrap())
    })
}

fn touch_free(b: &mut Bench, n: usize, total: usize) -> f64 {
    b.cache_free();
    let all: Vec<u32> = b.pool.free_blocks().collect();
    median(total, || {
        // A part of the queue from its middle, as a prefix hit is.
        let from = b.random.below((all.len() - total) as u32) as usize;
        let ids = &all[from..from + total];
        let t = timed(ids.chunks_exact(n), |batch| b.pool.touch(batch).unwrap());
        b.pool.free(ids).unwrap();
        t
    })
}

fn touch_held(b: &mut Bench, n: usize, total: usize) -> f64 {
    let from = b.random.below((b.held.len() - total) as u32) as usize;
    let ids = b.held[from..from + total].to_vec();
    median(total, || {
        let t = timed(ids.chunks_exact(n), |batch| b.pool.touch(batch).unwrap());
        b.pool.free(&ids).unwrap();
        t
    })
}

fn lookup(b: &mut Bench, n: usize, total: usize, known: bool) -> f64 {
    let ids = b.allocate(b.pool.num_free() as usize);
    let hashes = b.cache(&ids);
    let mut out = vec![0; n];
    median(total, || {
        let from = b.random.below((ids.len() - total) as u32) as usize;
        let mut wanted = hashes[from * HASH..(from + total) * HASH].to_vec();
        if !known {
            // The first of each chain is not known, so each call is one miss.
            wanted.iter_mut().for_each(|byte| *byte ^= 0x55);
        }
        let mut found = 0;
        let t = timed(wanted.chunks_exact(n * HASH), |chain| {
            found += b.pool.lookup_chain(chain, HASH, &[0], &mut out).unwrap();
        });
        assert_eq!(found, if known { total } else { 0 });
        black_box(&out);
        t
    })
}

fn lookup_hit(b: &mut Bench, n: usize, total: usize) -> f64 {
    lookup(b, n, total, true)
}

/// A miss ends a chain, so this is per call and not per block.
fn lookup_miss(b: &mut Bench, _: usize, total: usize) -> f64 {
    lookup(b, 1, total, false)
}

fn cache_full(b: &mut Bench, n: usize, total: usize) -> f64 {
    let mut salt = 1 << 50;
    median(total, || {
        let ids = b.allocate(total);
        salt += total as u64;
        let hashes = hashes(salt, total);
        let t = timed(
            ids.chunks_exact(n).zip(hashes.chunks_exact(n * HASH)),
            |(ids, hashes)| {
                cache(&mut b.pool, ids, hashes);
            },
        );
        b.pool.free(&ids).unwrap();
        t
    })
}

fn main() {
    let filter = std::env::args()
        .skip(1)
        .find(|a| !a.starts_with('-'))
        .unwrap_or_default();
    let operations: [(&str, bool, Measure); 10] = [
        ("allocate, caching off", false, allocate),
        ("allocate, caching on, nothing cached", true, allocate),
        ("allocate, evicting", true, allocate_evicting),
        ("free, nothing cached", true, free),
        ("free, cached", true, free_hashed),
        ("touch, free blocks", true, touch_free),
        ("touch, held blocks", true, touch_held),
        ("look up a chain, hits", true, lookup_hit),
        ("look up, a miss", true, lookup_miss),
        ("cache full blocks", true, cache_full),
    ];
    println!(
        "{:<38} {:>9} {:>8} {:>8} {:>8}",
        "ns per block", "", "n = 1", "n = 16", "n = 512"
    );
    for (policy_name, policy) in [("lru", Some(Policy::Lru)), ("default", None)] {
        for churned in [false, true] {
            for (name, caching, measure) in operations {
                let state = if churned { "churned" } else { "fresh" };
                let title = format!("{policy_name} {state}: {name}");
                if !title.contains(&filter) {
                    continue;
                }
                let row: Vec<f64> = [1, 16, 512]
                    .iter()
                    .map(|&n| {
                        let policy = policy.unwrap_or(Policy::of_choice(caching, BLOCKS));
                        measure(
                            &mut Bench::new(policy, caching, churned),
                            n,
                            4096.max(n * 16),
                        )
                    })
                    .collect();
                println!(
                    "{title:<48} {:>8.1} {:>8.1} {:>8.1}",
                    row[0], row[1], row[2]
                );
            }
        }
    }
    for (title, policy, caching) in [
        ("c lru, caching on", KVF_POLICY_LRU, true),
        ("c default, caching on", KVF_POLICY_DEFAULT, true),
        ("c default, caching off", KVF_POLICY_DEFAULT, false),
    ] {
        if !title.contains(&filter) {
            continue;
        }
        let columns = [1, 16, 512].map(|n| through_c(policy, caching, n, 4096.max(n * 16)));
        for (i, what) in ["allocate", "free", "touch, held blocks"]
            .iter()
            .enumerate()
        {
            let title = format!("{title}: {what}");
            let [a, b, c] = columns.map(|column| column[i]);
            println!("{title:<48} {a:>8.1} {b:>8.1} {c:>8.1}");
        }
    }
}
