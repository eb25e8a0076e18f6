//! What the pool promises besides the order of blocks: refusals and their messages, statistics,
//! bounded events, long hashes, sizes.

use kvferry::block_pool::{
    BlockPool, CacheFull, CachePartial, Event, MAX_BLOCKS, Options, Policy, Stored,
};
use kvferry::error::{Error, Status};

fn pool(blocks: u32) -> BlockPool {
    let options = Options {
        events: true,
        ..Options::new(blocks, true)
    };
    BlockPool::new(&options).unwrap()
}

fn allocate(pool: &mut BlockPool, n: usize) -> Vec<u32> {
    let mut ids = vec![0; n];
    pool.allocate(None, &mut ids).unwrap();
    ids
}

/// Caches blocks as the first ones of a prompt whose hashes begin with `seed`.
fn cache(pool: &mut BlockPool, blocks: &[u32], seed: u8) -> Vec<u8> {
    let hashes: Vec<u8> = (0..blocks.len() as u8)
        .flat_map(|i| [seed, i, 9, 9])
        .collect();
    pool.cache_full(&CacheFull {
        blocks,
        hashes: &hashes,
        hash_len: 4,
        block_size: 16,
        ..CacheFull::default()
    })
    .unwrap();
    hashes
}

/// The status, after a look at the message: it names the value at fault.
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, part: &str) -> Status {
    let e = result.unwrap_err();
    assert!(e.message().contains(part), "no {part:?} in: {e}");
    e.status()
}

#[test]
fn options_out_of_range_are_refused() {
    for blocks in [0, MAX_BLOCKS + 1, u32::MAX] {
        let made = BlockPool::new(&Options::new(blocks, true)).map(|_| ());
        assert_eq!(refused(made, &blocks.to_string()), Status::InvalidArgument);
    }
    for f in [0.0, -0.5, 1.000001, f64::NAN, f64::INFINITY] {
        for policy in [
            Policy::Windowed { fraction: f },
            Policy::Elastic { limit: f },
        ] {
            let options = Options {
                policy,
                ..Options::new(10, true)
            };
            let made = BlockPool::new(&options).map(|_| ());
            assert_eq!(refused(made, &format!("{f}")), Status::InvalidArgument);
        }
    }
}

#[test]
fn refusals_name_what_is_wrong() {
    use Status::{InvalidArgument, InvalidState, Mismatch, ResourceExhausted};
    let mut p = pool(10);
    let ids = allocate(&mut p, 4);
    let mut out = [0; 6];
    assert_eq!(
        refused(p.allocate(None, &mut out), "6 blocks: 5 of 9"),
        ResourceExhausted
    );
    assert_eq!(
        refused(p.allocate(Some(10), &mut out[..1]), "no block 10"),
        InvalidArgument
    );
    assert_eq!(
        refused(p.free(&[ids[0], 10]), "no block 10"),
        InvalidArgument
    );
    assert_eq!(refused(p.free(&[ids[0], 0]), "null block"), InvalidArgument);
    let twice = [ids[1], ids[0], ids[1]];
    let name = format!("block {} is free already", ids[1]);
    assert_eq!(refused(p.free(&twice), &name), InvalidState);
    assert_eq!(
        refused(p.touch(&[ids[0], 99]), "no block 99"),
        InvalidArgument
    );
    assert_eq!(refused(p.touch(&[0]), "null block"), InvalidArgument);
    assert_eq!(refused(p.ref_count(0), "null block"), InvalidArgument);
    for id in &ids {
        assert_eq!(p.ref_count(*id).unwrap(), 1, "nothing was changed");
    }

    cache(&mut p, &ids[..2], 1);
    let again = CacheFull {
        blocks: &ids[..1],
        hashes: &[7; 4],
        hash_len: 4,
        block_size: 16,
        ..CacheFull::default()
    };
    assert_eq!(
        refused(p.cache_full(&again), "16 tokens already"),
        InvalidState
    );
    let bad = |change: fn(&mut CacheFull<'static>)| {
        let mut what = CacheFull {
            blocks: &[3],
            hashes: &[7; 4],
            hash_len: 4,
            block_size: 16,
            ..CacheFull::default()
        };
        change(&mut what);
        what
    };
    for (what, part, status) in [
        (
            bad(|w| w.blocks = &[3, 4]),
            "2 blocks but 1 hashes",
            Mismatch,
        ),
        (bad(|w| w.hash_len = 3), "4 bytes are not", Mismatch),
        (
            bad(|w| w.hash_len = 0),
            "a hash of 0 bytes",
            InvalidArgument,
        ),
        (bad(|w| w.mask = &[1, 1]), "a mask of 2", Mismatch),
        (bad(|w| w.tokens = &[1; 15]), "15 tokens", Mismatch),
        (
            bad(|w| w.parent = &[0; 256]),
            "a hash of 256 bytes",
            InvalidArgument,
        ),
        (
            bad(|w| w.first = u32::MAX / 4),
            "too long to be counted",
            InvalidArgument,
        ),
        (
            // So long that not even 64 bits count it.
            bad(|w| {
                w.blocks = &[3, 4, 5];
                w.hashes = &[7; 12];
                w.first = u32::MAX;
                w.block_size = u32::MAX;
            }),
            "too long to be counted",
            InvalidArgument,
        ),
        (bad(|w| w.blocks = &[10]), "no block 10", InvalidArgument),
    ] {
        assert_eq!(refused(p.cache_full(&what), part), status);
    }
    assert_eq!(
        refused(p.lookup_chain(&[1; 8], 4, &[0], &mut out), "room for 6"),
        Mismatch
    );
    assert_eq!(
        refused(
            p.lookup(&[], &[0], &mut out[..1]),
            "room for 1 blocks, but 0"
        ),
        Mismatch
    );
    assert_eq!(
        refused(p.lookup(&[1], &[], &mut []), "no groups"),
        InvalidArgument
    );
    assert_eq!(
        refused(p.move_keys(ids[0], ids[1]), "cached already"),
        InvalidState
    );

    let mut plain = BlockPool::new(&Options::new(4, false)).unwrap();
    let full = CacheFull {
        blocks: &[1],
        hashes: &[1],
        hash_len: 1,
        ..CacheFull::default()
    };
    assert_eq!(
        refused(plain.cache_full(&full), "without a prefix cache"),
        InvalidState
    );
    assert!(!plain.lookup(&[1], &[0], &mut out[..1]).unwrap());
}

#[test]
fn a_pool_of_the_null_block_alone_works() {
    let mut p = pool(1);
    assert_eq!((p.num_blocks(), p.num_free(), p.usage()), (1, 0, 0.0));
    assert!(p.allocate(None, &mut [0]).is_err());
    p.allocate(None, &mut []).unwrap();
    assert!(p.reset());
}

#[test]
fn counters_count() {
    let mut p = pool(101);
    let ids = allocate(&mut p, 20);
    assert_eq!(ids, (1..=20).collect::<Vec<_>>(), "one run, ascending");
    let hashes = cache(&mut p, &ids, 1);
    let back: Vec<u32> = ids.iter().rev().copied().collect();
    p.free(&back).unwrap();
    let mut out = vec![0; 20];
    assert_eq!(p.acquire_chain(&hashes, 4, &[0], &mut out).unwrap(), 20);
    assert_eq!(out, ids);
    assert!(!p.lookup(&[5; 4], &[0], &mut out[..1]).unwrap());
    let mut strange = hashes[..8].to_vec();
    strange.extend([5; 8]);
    assert_eq!(p.lookup_chain(&strange, 4, &[0], &mut out[..4]).unwrap(), 2);
    p.evict(&ids[..3]).unwrap();
    assert!(p.allocate(None, &mut [0; 200]).is_err());
    let s = p.stats();
    assert_eq!((s.blocks, s.free), (101, 80));
    assert_eq!(
        (s.allocations, s.allocated_blocks, s.allocated_runs),
        (1, 20, 1)
    );
    assert_eq!(
        (s.refused_allocations, s.freed_blocks, s.revived_blocks),
        (1, 20, 20)
    );
    // 20 and their chain's end is no miss; 1 miss; 2 hits and a miss.
    assert_eq!((s.lookups, s.hits), (20 + 1 + 3, 20 + 2));
    assert_eq!((s.stored_keys, s.removed_keys), (20, 3));
    assert_eq!((s.cached_blocks, s.cached_keys), (17, 17));
    assert_eq!((s.resets, s.lost_events), (0, 0));
}

#[test]
fn events_that_nobody_takes_are_bounded_and_the_loss_is_told() {
    let options = Options {
        events: true,
        event_bytes: 4096,
        ..Options::new(50, true)
    };
    let mut p = BlockPool::new(&options).unwrap();
    for round in 0..200 {
        let ids = allocate(&mut p, 10);
        cache(&mut p, &ids, round as u8);
        p.free(&ids).unwrap();
    }
    let lost = p.stats().lost_events;
    let batch = p.take_events();
    assert!(
        lost > 0 && batch.lost() == lost,
        "{lost} and {}",
        batch.lost()
    );
    // Every event is there or counted: one per call, one per key that was evicted.
    assert_eq!(batch.len() as u64 + lost, 200 + p.stats().removed_keys);
    let again = p.take_events();
    assert_eq!((again.len(), again.lost()), (0, 0), "told once");
}

#[test]
fn the_memory_of_events_can_be_used_again() {
    let mut p = pool(20);
    let ids = allocate(&mut p, 2);
    let mut batch = Default::default();
    cache(&mut p, &ids, 1);
    p.swap_events(&mut batch);
    assert_eq!(batch.len(), 1);
    p.evict(&ids).unwrap();
    p.swap_events(&mut batch);
    let removed: Vec<u32> = batch
        .iter()
        .map(|e| match e {
            Event::Removed { hash, group } => u32::from(hash[1]) + group,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(removed, [0, 1]);
    p.swap_events(&mut batch);
    assert!(batch.is_empty());
}

#[test]
fn announcing_changes_nothing_but_the_events() {
    let mut p = pool(20);
    let before = p.stats();
    let said = Stored {
        hashes: &[1, 2, 3, 4],
        hash_len: 2,
        tokens: &[1, 2, 3, 4, 5, 6],
        block_size: 3,
        group: 2,
        tag: 77,
        ..Stored::default()
    };
    p.announce(&said).unwrap();
    p.announce(&Stored::default()).unwrap();
    let batch = p.take_events();
    assert_eq!(batch.iter().collect::<Vec<_>>(), [Event::Stored(said)]);
    assert_eq!(p.stats(), before);
}

#[test]
fn keys_differ_in_every_byte_in_length_and_in_group() {
    let mut p = pool(400);
    let ids = allocate(&mut p, 399);
    let mut next = ids.iter();
    // For each length a hash, and one that differs from it in one byte, at each place.
    let mut all: Vec<(Vec<u8>, u32)> = Vec::new();
    for len in [1usize, 8, 16, 17, 31, 32, 33, 40, 41, 64] {
        all.push((vec![0; len], 0));
        all.push((vec![0; len], 1));
        for at in 0..len {
            let mut hash = vec![0; len];
            hash[at] = 1;
            all.push((hash, 0));
        }
    }
    let mut known = Vec::new();
    for (hash, group) in &all {
        let Some(&block) = next.next() else { break };
        p.cache_partial(&CachePartial {
            block,
            hash,
            group: *group,
            num_tokens: 1,
            ..CachePartial::default()
        })
        .unwrap();
        known.push((hash, *group, block));
    }
    assert!(known.len() > 290, "{}", known.len());
    for (hash, group, block) in known {
        let mut out = [0];
        assert!(p.lookup(hash, &[group], &mut out).unwrap());
        assert_eq!(out, [block], "{hash:?} in {group}");
    }
}

#[test]
fn the_index_grows_with_secondary_keys() {
    let mut p = pool(8);
    let block = allocate(&mut p, 1)[0];
    for i in 0..1000u32 {
        p.cache_partial(&CachePartial {
            block,
            hash: &i.to_be_bytes(),
            num_tokens: 1,
            ..CachePartial::default()
        })
        .unwrap();
    }
    assert_eq!((p.stats().cached_keys, p.stats().cached_blocks), (1000, 1));
    let hashes: Vec<u8> = (0..1000u32).flat_map(u32::to_be_bytes).collect();
    let mut out = vec![0; 1000];
    assert_eq!(p.lookup_chain(&hashes, 4, &[0], &mut out).unwrap(), 1000);
    assert!(out.iter().all(|&id| id == block));
    p.evict(&[block]).unwrap();
    assert_eq!(p.stats().cached_keys, 0);
    assert_eq!(p.take_events().len(), 2000);
}
