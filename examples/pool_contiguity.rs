//! How many byte ranges a KV transfer needs, by allocation policy of the block pools on both sides.
//!
//!     cargo run --release --example pool_contiguity [requests] [seeds]
//!
//! A prefill pool and a decode pool serve multi-turn chat sessions. Each request takes what it can
//! from the prefix caches, allocates the rest on the prefill side, is computed, gets blocks on the
//! decode side, is transferred (that is where ranges are counted: adjacent on both sides merge),
//! decodes block by block, and gives everything back in reverse order, as vLLM does. Time is
//! simulated; the load keeps both pools under pressure. The pools are the real ones.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use kvferry::block_pool::{BlockPool, CacheFull, Options, Policy};

const BLOCK: usize = 16;
const HASH: usize = 16;

/// A small generator with a seed, so that every policy sees the same requests.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    /// Lengths with a long tail: the median, and about three times it at one standard deviation.
    fn length(&mut self, median: f64, spread: f64) -> usize {
        let normal = (0..12).map(|_| self.unit()).sum::<f64>() - 6.0;
        (median * (normal * spread).exp()).clamp(1.0, 16_000.0) as usize
    }
}

/// What is said in a session: each turn's new prompt tokens and answer tokens.
struct Session {
    /// Which of the shared system prompts it begins with, and that one's length.
    system: (u64, usize),
    id: u64,
    turns: Vec<(usize, usize)>,
    pauses: Vec<f64>,
}

impl Session {
    fn new(id: u64, random: &mut Random) -> Self {
        let which = (random.unit().powi(2) * 24.0) as u64;
        let turns = 1 + random.exponential(5.0) as usize;
        Session {
            system: (which, 256 + (which as usize * 977) % 2048),
            id,
            turns: (0..turns)
                .map(|_| (random.length(220.0, 1.0), random.length(180.0, 0.8)))
                .collect(),
            pauses: (0..turns).map(|_| 2.0 + random.exponential(40.0)).collect(),
        }
    }

    /// Tokens before the answer of a turn.
    fn prompt(&self, turn: usize) -> usize {
        let said: usize = self.turns[..turn].iter().map(|(p, a)| p + a).sum();
        self.system.1 + said + self.turns[turn].0
    }

    /// The hashes of the first `blocks` blocks: shared while they are the system prompt only.
    fn hashes(&self, blocks: usize) -> Vec<u8> {
        let shared = self.system.1 / BLOCK;
        let mut out = Vec::with_capacity(blocks * HASH);
        for i in 0..blocks {
            let owner = if i < shared {
                self.system.0
            } else {
                1 << 32 | self.id
            };
            out.extend_from_slice(&owner.to_le_bytes());
            out.extend_from_slice(&(i as u64).to_le_bytes());
        }
        out
    }
}

/// One request in flight.
struct Flight {
    session: usize,
    turn: usize,
    prefill: Vec<u32>,
    decode: Vec<u32>,
    cached: usize,
    tokens: usize,
    end: usize,
}

#[derive(PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
enum Event {
    Arrive { session: usize, turn: usize },
    Prefilled(usize),
    Transferred(usize),
    Decoded(usize),
}

#[derive(Default, Clone, Copy)]
struct Outcome {
    transfers: u64,
    blocks: u64,
    runs: u64,
    alone: u64,
    prompt_blocks: u64,
    hit_blocks: u64,
    decode_hits: u64,
}

struct Simulation {
    prefill: BlockPool,
    decode: BlockPool,
    caching: bool,
    sessions: Vec<Session>,
    flights: Vec<Flight>,
    agenda: BinaryHeap<Reverse<(u64, u64, Event)>>,
    order: u64,
    now: u64,
    waiting_prefill: VecDeque<(usize, usize)>,
    waiting_decode: VecDeque<usize>,
    outcome: Outcome,
}

impl Simulation {
    fn at(&mut self, seconds: f64, event: Event) {
        self.order += 1;
        let when = self.now + (seconds * 1e6) as u64;
        self.agenda.push(Reverse((when, self.order, event)));
    }

    fn run(&mut self) {
        while let Some(Reverse((when, _, event))) = self.agenda.pop() {
            self.now = when;
            match event {
                Event::Arrive { session, turn } => self.waiting_prefill.push_back((session, turn)),
                Event::Prefilled(flight) => self.prefilled(flight),
                Event::Transferred(flight) => self.transferred(flight),
                Event::Decoded(flight) => self.decoded(flight),
            }
            while let Some(&(session, turn)) = self.waiting_prefill.front() {
                if !self.start(session, turn) {
                    break;
                }
                self.waiting_prefill.pop_front();
            }
            while let Some(&flight) = self.waiting_decode.front() {
                if !self.transfer(flight) {
                    break;
                }
                self.waiting_decode.pop_front();
            }
        }
    }

    /// Gets the blocks of a prompt: what is cached, and the rest new.
    fn admit(pool: &mut BlockPool, hashes: &[u8], blocks: usize) -> Option<(Vec<u32>, usize)> {
        let mut ids = vec![0; blocks];
        // The last token is always computed, so a prompt is never a hit as a whole.
        let known = (hashes.len() / HASH).min(blocks - 1);
        let hits = pool
            .acquire_chain(&hashes[..known * HASH], HASH, &[0], &mut ids[..known])
            .unwrap();
        if pool
            .allocate(hits.checked_sub(1).map(|i| ids[i]), &mut ids[hits..])
            .is_err()
        {
            ids.truncate(hits);
            ids.reverse();
            pool.free(&ids).unwrap();
            return None;
        }
        Some((ids, hits))
    }

    fn start(&mut self, session: usize, turn: usize) -> bool {
        let s = &self.sessions[session];
        let tokens = s.prompt(turn);
        let hashes = s.hashes(tokens / BLOCK);
        let blocks = tokens.div_ceil(BLOCK);
        let Some((ids, hits)) = Self::admit(&mut self.prefill, &hashes, blocks) else {
            return false;
        };
        self.outcome.prompt_blocks += blocks as u64;
        self.outcome.hit_blocks += hits as u64;
        if self.caching {
            cache(&mut self.prefill, &ids, &hashes, hits, tokens / BLOCK);
        }
        let end = tokens + self.sessions[session].turns[turn].1;
        let flight = self.flights.len();
        self.flights.push(Flight {
            session,
            turn,
            prefill: ids,
            decode: Vec::new(),
            cached: tokens / BLOCK,
            tokens,
            end,
        });
        self.at(
            0.03 + (blocks - hits) as f64 * BLOCK as f64 / 12_000.0,
            Event::Prefilled(flight),
        );
        true
    }

    fn prefilled(&mut self, flight: usize) {
        self.waiting_decode.push_back(flight);
    }

    fn transfer(&mut self, flight: usize) -> bool {
        let f = &self.flights[flight];
        let hashes = self.sessions[f.session].hashes(f.tokens / BLOCK);
        let Some((ids, hits)) = Self::admit(&mut self.decode, &hashes, f.prefill.len()) else {
            return false;
        };
        let mut pairs: Vec<_> = ids[hits..]
            .iter()
            .copied()
            .zip(f.prefill[hits..].iter().copied())
            .collect();
        pairs.sort_unstable();
        let joined = |a: &(u32, u32), b: &(u32, u32)| b.0 == a.0 + 1 && b.1 == a.1 + 1;
        let breaks = pairs.windows(2).filter(|w| !joined(&w[0], &w[1])).count();
        let alone = (0..pairs.len())
            .filter(|&i| {
                (i == 0 || !joined(&pairs[i - 1], &pairs[i]))
                    && (i + 1 == pairs.len() || !joined(&pairs[i], &pairs[i + 1]))
            })
            .count();
        self.outcome.transfers += 1;
        self.outcome.decode_hits += hits as u64;
        self.outcome.blocks += pairs.len() as u64;
        self.outcome.runs += 1 + breaks as u64;
        self.outcome.alone += alone as u64;
        let f = &mut self.flights[flight];
        f.decode = ids;
        if self.caching {
            cache(&mut self.decode, &f.decode, &hashes, hits, f.cached);
        }
        self.at(
            0.005 + pairs.len() as f64 * 0.0001,
            Event::Transferred(flight),
        );
        true
    }

    fn transferred(&mut self, flight: usize) {
        let f = &mut self.flights[flight];
        let mut ids = std::mem::take(&mut f.prefill);
        ids.reverse();
        self.prefill.free(&ids).unwrap();
        self.at(0.02 * BLOCK as f64, Event::Decoded(flight));
    }

    /// One block's worth of tokens has been decoded.
    fn decoded(&mut self, flight: usize) {
        let f = &mut self.flights[flight];
        f.tokens = (f.tokens + BLOCK).min(f.end);
        let mut next = [0];
        let grown = f.tokens.div_ceil(BLOCK) <= f.decode.len()
            || self
                .decode
                .allocate(f.decode.last().copied(), &mut next)
                .map(|()| f.decode.push(next[0]))
                .is_ok();
        let full = (f.tokens / BLOCK).min(f.decode.len());
        if self.caching && full > f.cached {
            let hashes = self.sessions[f.session].hashes(full);
            cache(&mut self.decode, &f.decode, &hashes, f.cached, full);
            f.cached = full;
        }
        // A request that cannot grow is cut short: good enough here, and rare.
        if grown && f.tokens < f.end {
            self.at(0.02 * BLOCK as f64, Event::Decoded(flight));
            return;
        }
        let mut ids = std::mem::take(&mut f.decode);
        let (session, turn) = (f.session, f.turn + 1);
        ids.reverse();
        self.decode.free(&ids).unwrap();
        if turn < self.sessions[session].turns.len() {
            let pause = self.sessions[session].pauses[turn];
            self.at(pause, Event::Arrive { session, turn });
        }
    }
}

fn cache(pool: &mut BlockPool, ids: &[u32], hashes: &[u8], from: usize, to: usize) {
    pool.cache_full(&CacheFull {
        blocks: &ids[from..to],
        hashes: &hashes[from * HASH..to * HASH],
        hash_len: HASH,
        first: from as u32,
        block_size: BLOCK as u32,
        ..CacheFull::default()
    })
    .unwrap();
}

fn simulate(
    blocks: u32,
    caching: bool,
    policies: [Policy; 2],
    requests: usize,
    seed: u64,
) -> Outcome {
    let mut random = Random(seed);
    let mut sessions = Vec::new();
    let mut total = 0;
    while total < requests {
        let s = Session::new(sessions.len() as u64, &mut random);
        total += s.turns.len();
        sessions.push(s);
    }
    let pool = |policy| {
        BlockPool::new(&Options {
            policy,
            ..Options::new(blocks, caching)
        })
        .unwrap()
    };
    let mut simulation = Simulation {
        prefill: pool(policies[0]),
        decode: pool(policies[1]),
        caching,
        flights: Vec::new(),
        agenda: BinaryHeap::new(),
        order: 0,
        now: 0,
        waiting_prefill: VecDeque::new(),
        waiting_decode: VecDeque::new(),
        outcome: Outcome::default(),
        sessions,
    };
    // The rate that the pool can take, so that pools of all sizes are under the same pressure.
    let rate = f64::from(blocks) / 20_000.0 * 1.2;
    let mut when = 0.0;
    for session in 0..simulation.sessions.len() {
        when += random.exponential(1.0 / rate);
        simulation.at(when, Event::Arrive { session, turn: 0 });
    }
    simulation.run();
    simulation.outcome
}

fn main() {
    let mut args = std::env::args()
        .skip(1)
        .map(|a| a.parse().expect("a number"));
    let requests = args.next().unwrap_or(4000);
    let seeds = args.next().unwrap_or(3) as u64;
    let w = |fraction| Policy::Windowed { fraction };
    let e = |limit| Policy::Elastic { limit };
    let lru = Policy::Lru;
    let with_cache = |default: Policy| {
        [
            ("LRU", [lru; 2]),
            ("windowed 0.05", [w(0.05); 2]),
            ("windowed 0.1", [w(0.1); 2]),
            ("windowed 0.2", [w(0.2); 2]),
            ("windowed 0.3", [w(0.3); 2]),
            ("elastic 0.05", [e(0.05); 2]),
            ("elastic 0.1", [e(0.1); 2]),
            ("default", [default; 2]),
            ("elastic 0.15", [e(0.15); 2]),
            ("elastic 0.2", [e(0.2); 2]),
            ("elastic 0.5", [e(0.5); 2]),
            ("elastic 1", [e(1.0); 2]),
            ("default to LRU", [default, lru]),
            ("LRU to default", [lru, default]),
        ]
    };
    let without = [
        ("LRU", [lru; 2]),
        ("windowed 0.1", [w(0.1); 2]),
        ("windowed 1 (default)", [w(1.0); 2]),
        ("elastic 1", [e(1.0); 2]),
        ("default to LRU", [w(1.0), lru]),
        ("LRU to default", [lru, w(1.0)]),
    ];
    println!(
        "{:>7} {:>8} {:>22} {:>10} {:>8} {:>8} {:>9} {:>9} {:>9}",
        "blocks",
        "caching",
        "policy",
        "blocks/tr",
        "runs/tr",
        "alone %",
        "fewer",
        "hit %",
        "decode %"
    );
    for (blocks, caching) in [
        (20_000, true),
        (8_000, true),
        (20_000, false),
        (8_000, false),
    ] {
        let mut base = 0.0;
        let cached = with_cache(Policy::of_choice(true, blocks));
        let policies = if caching { &cached[..] } else { &without[..] };
        for &(name, policies) in policies {
            let all: Vec<Outcome> = (0..seeds)
                .map(|s| simulate(blocks, caching, policies, requests, 1 + s))
                .collect();
            let sum = |f: fn(&Outcome) -> u64| all.iter().map(f).sum::<u64>() as f64;
            let transfers = sum(|o| o.transfers);
            let runs = sum(|o| o.runs) / transfers;
            if base == 0.0 {
                base = runs;
            }
            println!(
                "{blocks:>7} {:>8} {name:>22} {:>10.1} {runs:>8.2} {:>8.1} {:>8.1}x {:>9.2} {:>9.2}",
                if caching { "on" } else { "off" },
                sum(|o| o.blocks) / transfers,
                100.0 * sum(|o| o.alone) / sum(|o| o.blocks),
                base / runs,
                100.0 * sum(|o| o.hit_blocks) / sum(|o| o.prompt_blocks),
                100.0 * sum(|o| o.decode_hits) / sum(|o| o.prompt_blocks),
            );
        }
    }
}
