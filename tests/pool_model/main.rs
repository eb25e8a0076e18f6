//! Random operations, compared step by step with a naive model: results, statuses, the order of the
//! free queue, counts, keys, events. Misuse is drawn too, and must change nothing.

mod capi;
mod model;
#[path = "../pool_server/support.rs"]
#[allow(dead_code)]
mod process;
mod server;
mod subject;

use capi::CPool;
use kvferry::block_pool::{BlockPool, Options, Policy};
use model::{Full, Key, Model};
use proptest::prelude::*;
use server::ServedPool;
use subject::Subject;

/// Numbers are drawn without knowledge of the state; see `ids` for how they become blocks.
#[derive(Clone, Debug)]
enum Op {
    Allocate {
        n: u32,
        after: Option<u32>,
    },
    /// The last so many blocks of what one allocation gave, as an engine does.
    FreeTail {
        n: u32,
    },
    Free {
        picks: Vec<u32>,
    },
    Unpin {
        picks: Vec<u32>,
    },
    Touch {
        picks: Vec<u32>,
    },
    Chain {
        from: u32,
        n: u32,
        groups: Vec<u32>,
        touch: bool,
    },
    CacheFull {
        picks: Vec<u32>,
        from: u32,
        group: u32,
        mask: u32,
        tokens: u32,
    },
    CachePartial {
        pick: u32,
        hash: u32,
        group: u32,
        tokens: u32,
        replace: bool,
    },
    Move {
        from: u32,
        to: u32,
    },
    Evict {
        picks: Vec<u32>,
    },
    FreeAll,
    Reset,
}

fn picks() -> impl Strategy<Value = Vec<u32>> {
    proptest::collection::vec(any::<u32>(), 0..8)
}

fn op() -> impl Strategy<Value = Op> {
    let n = any::<u32>();
    prop_oneof![
        6 => (0u32..14, proptest::option::of(n)).prop_map(|(n, after)| Op::Allocate { n, after }),
        4 => (1u32..14).prop_map(|n| Op::FreeTail { n }),
        2 => picks().prop_map(|picks| Op::Free { picks }),
        1 => picks().prop_map(|picks| Op::Unpin { picks }),
        3 => picks().prop_map(|picks| Op::Touch { picks }),
        3 => (n, 0u32..6, proptest::collection::vec(0u32..GROUPS, 1..3), any::<bool>())
            .prop_map(|(from, n, groups, touch)| Op::Chain { from, n, groups, touch }),
        6 => (picks(), n, 0u32..GROUPS, n, n)
            .prop_map(|(picks, from, group, mask, tokens)| Op::CacheFull { picks, from, group, mask, tokens }),
        3 => (n, n, 0u32..GROUPS, 1u32..30, any::<bool>())
            .prop_map(|(pick, hash, group, tokens, replace)| Op::CachePartial { pick, hash, group, tokens, replace }),
        1 => (n, n).prop_map(|(from, to)| Op::Move { from, to }),
        1 => picks().prop_map(|picks| Op::Evict { picks }),
        1 => Just(Op::FreeAll),
        1 => Just(Op::Reset),
    ]
}

/// One of few hashes, short and long ones.
fn hash(number: u32, len: usize) -> Vec<u8> {
    let mut hash = vec![0xa5; len];
    hash[len - 1] = (number % HASHES) as u8;
    hash
}

/// So few that blocks often share a key.
const HASHES: u32 = 5;
const GROUPS: u32 = 2;

/// Mostly short ones; 32 bytes is what an entry of the index has room for.
fn hash_len(number: u32) -> usize {
    [2, 2, 2, 2, 2, 32, 33, 70][number as usize % 8]
}

/// Mostly blocks that are held (with `held`) or any; now and then one that cannot be meant.
fn ids(model: &Model, picks: &[u32], held: bool) -> Vec<u32> {
    let blocks = model.refs.len() as u32;
    let all: Vec<u32> = (1..blocks)
        .filter(|&b| !held || model.refs[b as usize] > 0)
        .collect();
    picks
        .iter()
        .map(|&p| match p % 97 {
            0 => blocks + (p >> 8) % 2,
            1 => u32::MAX,
            2 | 3 => 0,
            4 => (p >> 8) % blocks,
            _ if all.is_empty() => (p >> 8) % blocks,
            _ => all[(p >> 8) as usize % all.len()],
        })
        .collect()
}

fn step<S: Subject>(pool: &mut S, model: &mut Model, op: &Op) {
    match op {
        Op::Allocate { n, after } => {
            // The null block is nothing to go on from: to the server it means none.
            let after = after.and_then(|a| ids(model, &[a], true).first().copied());
            let after = after.filter(|&id| id != 0);
            let got = pool.allocate(*n as usize, after);
            model.allocate(*n as usize, after, got.as_deref().map_err(|e| *e));
        }
        Op::FreeTail { n } => {
            let held = (1..model.refs.len() as u32)
                .rev()
                .filter(|&b| model.refs[b as usize] > 0);
            let ids: Vec<u32> = held.take(*n as usize).collect();
            assert_eq!(pool.free(&ids), model.free(&ids, false));
        }
        Op::Free { picks } => {
            let ids = ids(model, picks, true);
            assert_eq!(pool.free(&ids), model.free(&ids, false), "{ids:?}");
        }
        Op::Unpin { picks } => {
            let ids = ids(model, picks, true);
            assert_eq!(pool.unpin(&ids), model.free(&ids, true), "{ids:?}");
        }
        Op::Touch { picks } => {
            let ids = ids(model, picks, false);
            assert_eq!(pool.touch(&ids), model.touch(&ids), "{ids:?}");
        }
        Op::Chain {
            from,
            n,
            groups,
            touch,
        } => {
            let hashes: Vec<_> = (0..*n)
                .map(|i| hash(from / 8 + i, hash_len(*from)))
                .collect();
            let expected = model.chain(&hashes, groups);
            assert_eq!(pool.chain(&hashes, groups, *touch), expected);
            if *touch {
                model.touch(&expected).unwrap();
            }
        }
        Op::CacheFull {
            picks,
            from,
            group,
            mask,
            tokens,
        } => {
            let blocks = ids(model, picks, tokens % 8 != 0);
            let n = blocks.len() as u32;
            let what = Full {
                hashes: (0..n)
                    .map(|i| hash(from / 8 + i, hash_len(*from)))
                    .collect(),
                group: *group,
                first: from % 3,
                block_size: 4,
                mask: if mask % 4 == 0 {
                    (0..n).map(|i| (mask >> (8 + i) & 1) as u8).collect()
                } else {
                    vec![]
                },
                parent: if from % 3 == 0 {
                    vec![]
                } else {
                    hash(from / 8 + 7, hash_len(*from))
                },
                tokens: match tokens % 9 {
                    0 => vec![],
                    1 => vec![1],
                    _ => (0..n * 4).map(|i| tokens ^ i).collect(),
                },
                tag: u64::from(*tokens) << 7,
                blocks,
            };
            assert_eq!(pool.cache_full(&what), model.cache_full(&what), "{what:?}");
        }
        Op::CachePartial {
            pick,
            hash: h,
            group,
            tokens,
            replace,
        } => {
            let id = ids(model, &[*pick], true)[0];
            let key: Key = (hash(h / 8, hash_len(*h)), *group);
            assert_eq!(
                pool.cache_partial(id, &key, *tokens, *replace),
                model.cache_partial(id, key, *tokens, *replace)
            );
        }
        Op::Move { from, to } => {
            let picked = ids(model, &[*from, *to], false);
            assert_eq!(
                pool.move_keys(picked[0], picked[1]),
                model.move_keys(picked[0], picked[1])
            );
        }
        Op::Evict { picks } => {
            let ids = ids(model, picks, false);
            assert_eq!(pool.evict(&ids), model.evict(&ids));
        }
        Op::FreeAll => {
            let ids: Vec<u32> = (1..model.refs.len() as u32)
                .flat_map(|b| std::iter::repeat_n(b, model.refs[b as usize] as usize))
                .collect();
            assert_eq!(pool.free(&ids), Ok(()));
            model.free(&ids, false).unwrap();
        }
        Op::Reset => assert_eq!(pool.reset(), model.reset()),
    }
}

fn compare<S: Subject>(pool: &mut S, model: &mut Model) {
    assert_eq!(pool.free_blocks(), model.queue);
    assert_eq!(pool.events(), std::mem::take(&mut model.events));
    assert_eq!(pool.reused(), std::mem::take(&mut model.reused));
    for id in 0..model.refs.len() as u32 {
        let keys = &model.keys[id as usize];
        let refs = model.refs[id as usize];
        assert_eq!(&pool.keys(id), keys, "keys of {id}");
        let tokens = (!keys.is_empty()).then_some(model.tokens[id as usize]);
        assert_eq!(pool.cached_tokens(id), tokens, "tokens of {id}");
        assert_eq!(pool.writable(id), id != 0 && refs == 1 && keys.is_empty());
        if id != 0 {
            assert_eq!(pool.refs(id), refs, "references of {id}");
        }
    }
    for (len, number, group) in [2, 32, 33, 70]
        .into_iter()
        .flat_map(|len| (0..HASHES).flat_map(move |h| (0..GROUPS).map(move |g| (len, h, g))))
    {
        let key = (hash(number, len), group);
        let found: Vec<u32> = model.find(&key).into_iter().collect();
        assert_eq!(
            pool.chain(&[key.0], &[group], false),
            found,
            "hash {number} of {len} bytes"
        );
    }
    let stats = pool.stats();
    assert_eq!(stats.free, model.queue.len() as u64);
    assert_eq!(stats.cached_keys, model.map.len() as u64);
    assert_eq!(
        stats.cached_blocks,
        model.keys.iter().filter(|k| !k.is_empty()).count() as u64
    );
    let usable = model.refs.len() - 1;
    let used = usable - model.queue.len();
    let usage = if usable == 0 {
        0.0
    } else {
        used as f64 / usable as f64
    };
    assert!((pool.usage() - usage).abs() < 1e-12);
}

fn run<S: Subject>(options: &Options, ops: &[Op]) {
    let mut pool = S::make(options);
    let mut model = Model::new(
        options.blocks,
        options.caching,
        options.policy,
        options.tolerate_null,
    );
    compare(&mut pool, &mut model);
    for op in ops {
        step(&mut pool, &mut model, op);
        compare(&mut pool, &mut model);
    }
}

fn options() -> impl Strategy<Value = Options> {
    // Fractions that are exact in binary, so that the model's arithmetic is.
    let fraction = prop_oneof![
        Just(1.0),
        Just(0.5),
        Just(0.25),
        Just(0.125),
        Just(1.0 / 64.0)
    ];
    let policy = (0..3, fraction).prop_map(|(kind, f)| match kind {
        0 => Policy::Lru,
        1 => Policy::Windowed { fraction: f },
        _ => Policy::Elastic { limit: f },
    });
    let blocks = prop_oneof![1 => 1u32..6, 3 => 6u32..90];
    (blocks, prop::bool::weighted(0.8), policy, any::<bool>()).prop_map(
        |(blocks, caching, policy, tolerate_null)| Options {
            policy,
            events: true,
            tolerate_null,
            ..Options::new(blocks, caching)
        },
    )
}

fn config() -> ProptestConfig {
    // Failures are shrunk and shown with their seed; nothing is written next to the sources.
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(400);
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn rust_pool_agrees_with_the_model(
        options in options(),
        ops in proptest::collection::vec(op(), 1..120),
    ) {
        run::<BlockPool>(&options, &ops);
    }

    #[test]
    fn c_pool_agrees_with_the_model(
        options in options(),
        ops in proptest::collection::vec(op(), 1..120),
    ) {
        run::<CPool>(&options, &ops);
    }
}

/// Fewer of them: every step is some fifty round trips.
fn config_of_server() -> ProptestConfig {
    let config = config();
    ProptestConfig {
        cases: config.cases.div_ceil(8),
        ..config
    }
}

proptest! {
    #![proptest_config(config_of_server())]

    #[test]
    fn served_pool_agrees_with_the_model(
        options in options(),
        ops in proptest::collection::vec(op(), 1..120),
    ) {
        run::<ServedPool>(&options, &ops);
    }
}
