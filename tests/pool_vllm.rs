//! The same calls give the same blocks in the same order, and the same events, as vLLM's own pool:
//! traces of it, recorded by scripts/record_pool_trace.py (which describes their format), played
//! again.

use std::fmt::Write as _;
use std::path::Path;

use kvferry::block_pool::{
    BlockPool, CacheFull, CachePartial, Event, NULL_BLOCK, Options, Policy, Stored,
};

/// Any 32 bytes that differ from hash to hash.
fn hash(number: u32) -> [u8; 32] {
    let mut bytes = [0x5a; 32];
    bytes[14..18].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn number(hash: &[u8]) -> u32 {
    u32::from_le_bytes(hash[14..18].try_into().unwrap())
}

/// `.`, or numbers and ranges separated by commas.
fn numbers(text: &str) -> Vec<u32> {
    let mut out = Vec::new();
    for part in text.split(',').filter(|p| *p != ".") {
        match part.split_once('-') {
            None => out.push(part.parse().unwrap()),
            Some((a, b)) => {
                let (a, b): (u32, u32) = (a.parse().unwrap(), b.parse().unwrap());
                if a <= b {
                    out.extend(a..=b)
                } else {
                    out.extend((b..=a).rev())
                }
            }
        }
    }
    out
}

fn ranges(numbers: &[u32]) -> String {
    let mut out: Vec<String> = Vec::new();
    let mut i = 0;
    while i < numbers.len() {
        let step = numbers
            .get(i + 1)
            .map_or(0, |n| i64::from(*n) - i64::from(numbers[i]));
        let mut j = i;
        while step.abs() == 1
            && j + 1 < numbers.len()
            && i64::from(numbers[j + 1]) - i64::from(numbers[j]) == step
        {
            j += 1;
        }
        out.push(if i == j {
            numbers[i].to_string()
        } else {
            format!("{}-{}", numbers[i], numbers[j])
        });
        i = j + 1;
    }
    if out.is_empty() {
        ".".into()
    } else {
        out.join(",")
    }
}

/// Zero or one hash.
fn optional(text: &str) -> Vec<u8> {
    numbers(text)
        .first()
        .map(|&n| hash(n).to_vec())
        .unwrap_or_default()
}

fn hashes(text: &str) -> Vec<u8> {
    numbers(text).into_iter().flat_map(hash).collect()
}

fn event_line(event: Event<'_>) -> String {
    let parent = |s: &Stored<'_>| {
        if s.parent.is_empty() {
            ".".into()
        } else {
            number(s.parent).to_string()
        }
    };
    match event {
        Event::Cleared => "> cleared".into(),
        Event::Removed { hash, group } => format!("> removed {group} {}", number(hash)),
        Event::Stored(s) => format!(
            "> stored {} {} {} {} {}",
            s.group,
            s.block_size,
            parent(&s),
            ranges(&s.each_hash().map(number).collect::<Vec<_>>()),
            ranges(s.tokens),
        ),
    }
}

fn state_line(pool: &BlockPool, what: &str) -> String {
    let mut line = what.to_string();
    let blocks = NULL_BLOCK + 1..pool.num_blocks();
    match what {
        "queue" => write!(line, " {}", ranges(&pool.free_blocks().collect::<Vec<_>>())).unwrap(),
        "refs" => {
            for id in blocks.filter(|&id| pool.ref_count(id).unwrap() > 0) {
                write!(line, " {id}:{}", pool.ref_count(id).unwrap()).unwrap();
            }
        }
        _ => {
            for id in blocks {
                for (i, (key, group)) in pool.keys(id).unwrap().iter().enumerate() {
                    let key = format!("{}.{group}", number(key));
                    match i {
                        0 => write!(
                            line,
                            " {id}:{key}.{}",
                            pool.cached_tokens(id).unwrap().unwrap()
                        ),
                        _ => write!(line, ":{key}"),
                    }
                    .unwrap();
                }
            }
        }
    }
    line
}

/// Makes the call of a line and returns the line with our result.
fn call(pool: &mut BlockPool, line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let n = |i: usize| words[i].parse::<u32>().unwrap();
    match words[0] {
        "get" => {
            let mut out = vec![0; n(1) as usize];
            match pool.allocate(None, &mut out) {
                Ok(()) => format!("get {} = {}", words[1], ranges(&out)),
                Err(_) => format!("get {} !", words[1]),
            }
        }
        "free" => pool
            .free(&numbers(words[1]))
            .map(|()| line.to_string())
            .unwrap(),
        "touch" => pool
            .touch(&numbers(words[1]))
            .map(|()| line.to_string())
            .unwrap(),
        "unpin" => pool
            .unpin(&numbers(words[1]))
            .map(|()| line.to_string())
            .unwrap(),
        "evict" => pool
            .evict(&numbers(words[1]))
            .map(|()| line.to_string())
            .unwrap(),
        "move" => pool
            .move_keys(n(1), n(2))
            .map(|()| line.to_string())
            .unwrap(),
        "writable" => format!(
            "writable {} = {}",
            n(1),
            u8::from(pool.is_writable(n(1)).unwrap())
        ),
        "reset" => format!("reset = {}", u8::from(pool.reset())),
        "look" => {
            let groups = numbers(words[2]);
            let mut out = vec![0; groups.len()];
            match pool.lookup(&hash(n(1)), &groups, &mut out).unwrap() {
                true => format!("look {} {} = {}", words[1], words[2], ranges(&out)),
                false => format!("look {} {} -", words[1], words[2]),
            }
        }
        "full" => {
            let mask: Vec<u8> = match words[7] {
                "." => vec![],
                bits => bits.bytes().map(|b| b - b'0').collect(),
            };
            let what = CacheFull {
                group: n(1),
                first: n(2),
                block_size: n(3),
                parent: &optional(words[4]),
                blocks: &numbers(words[5]),
                hashes: &hashes(words[6]),
                hash_len: 32,
                mask: &mask,
                tokens: &numbers(words[8]),
                tag: 0,
            };
            pool.cache_full(&what).map(|()| line.to_string()).unwrap()
        }
        "part" => {
            let what = CachePartial {
                block: n(1),
                hash: &hash(n(2)),
                group: n(3),
                num_tokens: n(4),
                replace: n(5) == 1,
                block_size: n(6),
                parent: &optional(words[7]),
                tokens: &numbers(words[8]),
                tag: 0,
            };
            pool.cache_partial(&what)
                .map(|()| line.to_string())
                .unwrap()
        }
        other => panic!("what is {other}?"),
    }
}

/// Plays a trace and returns how many calls and events were compared.
fn play(name: &str) -> (usize, usize) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/pool_traces")
        .join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    let mut lines = text.lines().enumerate().peekable();
    let (_, first) = lines.next().unwrap();
    let words: Vec<u32> = first
        .split(' ')
        .skip(1)
        .map(|w| w.parse().unwrap())
        .collect();
    let mut pool = BlockPool::new(&Options {
        policy: Policy::Lru,
        events: true,
        // Stock counts the null block up and down like any other.
        tolerate_null: true,
        ..Options::new(words[0], words[1] == 1)
    })
    .unwrap();
    let (mut calls, mut events) = (0, 0);
    while let Some((at, line)) = lines.next() {
        let at = at + 1;
        if ["queue", "refs", "keys"].contains(&line.split(' ').next().unwrap()) {
            let what = line.split(' ').next().unwrap();
            assert_eq!(state_line(&pool, what), line, "{name}:{at}");
            continue;
        }
        assert_eq!(call(&mut pool, line), line, "{name}:{at}");
        calls += 1;
        let batch = pool.take_events();
        let ours: Vec<String> = batch.iter().map(event_line).collect();
        let mut theirs = Vec::new();
        while let Some((_, event)) = lines.next_if(|(_, l)| l.starts_with('>')) {
            theirs.push(event);
        }
        assert_eq!(ours, theirs, "{name}:{at} {line}");
        events += ours.len();
    }
    (calls, events)
}

/// What each trace has at least, so that an empty one is noticed.
fn check(name: &str, least_calls: usize, least_events: usize) {
    let (calls, events) = play(name);
    assert!(calls >= least_calls, "{name} has {calls} calls only");
    assert!(events >= least_events, "{name} has {events} events only");
}

#[test]
fn random_calls_give_what_vllm_gives() {
    check("random-cached.txt", 1500, 600);
    check("random-tiny.txt", 700, 300);
    check("random-uncached.txt", 500, 0);
}

#[test]
fn sessions_give_what_vllm_gives() {
    check("sessions-full.txt", 1000, 600);
    check("sessions-window.txt", 1000, 600);
    check("sessions-uncached.txt", 500, 0);
}
