//! What a round trip to kv_cache_server costs, next to a bare ZeroMQ REQ/REP echo of as many bytes.
//!
//!     cargo bench --bench pool_server
//!
//! Server and echo are processes of their own on Unix sockets; all are asked in turns, some hundred
//! times each, so that what else the machine does falls on all alike. *Server* is the library's client:
//! making the message, the round trip, reading the reply. *Server, libzmq* is what a program with
//! ZeroMQ's own library has, with messages that were made before, as the echo's are: the other end is
//! all that differs from the echo. *In process* is the same step on a pool without a server.

use std::collections::VecDeque;
use std::hint::black_box;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kvferry::block_pool::{BlockPool, CacheFull, Options};
use kvferry::pool_client::{ClientOptions, PoolClient};
use kvferry::pool_server::wire::operation::Kind;
use kvferry::pool_server::wire::reply::Result as Answer;
use kvferry::pool_server::wire::*;
use prost::Message;

#[path = "../tests/pool_server/support.rs"]
#[allow(dead_code)]
mod support;
use support::{Place, Server};

const BLOCKS: u32 = 100_000;
const HASH: usize = 32;
/// Blocks of a prompt, and the part of it that is found in the cache.
const PROMPT: u32 = 128;
const PREFIX: u32 = 64;
/// Requests that decode, and those of them that get a new block in a step.
const DECODING: u64 = 256;
const GROWING: u64 = 16;
/// Prompts that are held.
const RUNNING: u64 = 64;
const ROUNDS: usize = 60;
const PER_ROUND: usize = 100;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, flag, address, bytes] = &args[..]
        && flag == "--echo"
    {
        return echo(address, bytes.parse().expect("a number"));
    }
    println!("| one round trip | bytes out, back | | p50 µs | p99 µs | a second |");
    println!("|---|---|---|---|---|---|");
    compare("ping", |_| vec![Kind::Ping(Ping::default())]);
    let what = "a step: 16 of 256 requests grow by a block, one ends";
    compare(what, growing);
    compare("the same, and a prompt comes and one goes", |n| {
        let mut ops = growing(n);
        ops.extend(prompt(n));
        ops
    });
    in_process();
}

/// What a step asks for when 256 requests run, with 16 tokens to a block: every sixteenth gets a block,
/// and one that has got sixteen ends.
fn growing(n: u64) -> Vec<Kind> {
    let name = |i: u64| format!("growing-{}", i % DECODING);
    let grow = |i| {
        Kind::Allocate(Allocate {
            request_id: name(n * GROWING + i),
            num_blocks: 1,
            ..Default::default()
        })
    };
    let mut ops: Vec<Kind> = (0..GROWING).map(grow).collect();
    if n >= DECODING {
        ops.push(Kind::Free(Free {
            request_id: name(n),
        }));
    }
    ops
}

/// A prompt of which half is cached: look up, allocate the rest, cache it; and an old one ends.
fn prompt(n: u64) -> Vec<Kind> {
    let request_id = format!("prompt-{n}");
    let mut ops = vec![
        Kind::GetCachedBlock(Box::new(GetCachedBlock {
            hashes: hashes(n),
            hash_length: HASH as u32,
            groups: vec![0],
            touch: true,
            request_id: request_id.clone(),
        })),
        Kind::Allocate(Allocate {
            request_id,
            num_blocks: PROMPT,
            up_to: true,
            ..Default::default()
        }),
    ];
    if n >= RUNNING {
        ops.push(Kind::Free(Free {
            request_id: format!("prompt-{}", n - RUNNING),
        }));
    }
    ops
}

/// Those of the prefix are the same for all.
fn hashes(n: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(PROMPT as usize * HASH);
    for i in 0..u64::from(PROMPT) {
        let own = if i < u64::from(PREFIX) { 0 } else { n + 1 };
        let mut hash = [i as u8; HASH];
        hash[..8].copy_from_slice(&own.to_le_bytes());
        out.extend(hash);
    }
    out
}

/// The shared prefix enters the cache.
fn warm_up(client: &PoolClient) {
    let take = Kind::Allocate(Allocate {
        num_blocks: PREFIX,
        ..Default::default()
    });
    let Answer::Blocks(blocks) = client.call(take).unwrap() else {
        panic!("no blocks")
    };
    let content = BlockContent {
        hashes: hashes(0)[..PREFIX as usize * HASH].to_vec(),
        hash_length: HASH as u32,
        block_size: 16,
        ..Default::default()
    };
    let cache = CacheFullBlocks {
        block_ids: blocks.block_ids,
        content: Some(content),
        ..Default::default()
    };
    client.call(Kind::CacheFullBlocks(Box::new(cache))).unwrap();
}

fn compare(what: &str, step: impl Fn(u64) -> Vec<Kind>) {
    let server = Server::start(&[&BLOCKS.to_string(), "--enable-caching", "true"]);
    let client = PoolClient::connect(&ClientOptions {
        address: server.listening(),
        ..ClientOptions::default()
    })
    .unwrap();
    warm_up(&client);
    let mut n = 0;
    let mut run = || {
        let ops = step(n);
        n += 1;
        let start = Instant::now();
        let answers = client.batch(ops, false).unwrap();
        let took = micros(start.elapsed());
        for answer in &answers {
            assert!(answer.is_ok(), "{answer:?}");
        }
        (took, answers)
    };
    // Until as many requests run as ever will.
    let mut last = Vec::new();
    for _ in 0..=2 * DECODING {
        last = run().1;
    }
    let (out, back) = sizes(step(2 * DECODING), last);
    let echo = Echo::start(out, back);
    let mut stranger = Stranger::connect(&server.listening());
    for n in 0..=2 * DECODING {
        stranger.ask(step(n));
    }
    let mut m = 2 * DECODING;
    let mut ask = || {
        m += 1;
        stranger.ask(step(m))
    };
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        times[0].extend((0..PER_ROUND).map(|_| echo.ask()));
        times[1].extend((0..PER_ROUND).map(|_| run().0));
        times[2].extend((0..PER_ROUND).map(|_| ask()));
    }
    let p50 = times.each_ref().map(|t| percentile(t, 50));
    for (name, times) in ["echo", "server", "server, libzmq"].into_iter().zip(&times) {
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        println!(
            "| {what} | {out}, {back} | {name} | {:.1} | {:.1} | {:.0} |",
            percentile(times, 50),
            percentile(times, 99),
            1e6 / mean
        );
    }
    println!(
        "| | | medians / the echo's | **{:.2}**, {:.2} | | |",
        p50[1] / p50[0],
        p50[2] / p50[0]
    );
}

/// Bytes of the request and of its reply.
fn sizes(ops: Vec<Kind>, answers: Vec<Result<Answer, kvferry::error::Error>>) -> (usize, usize) {
    let request = request(batch(ops));
    let replies = answers.into_iter().map(|answer| Reply {
        result: answer.ok(),
    });
    let mut replies: Vec<Reply> = replies.collect();
    let reply = match replies.len() {
        1 => replies.remove(0),
        _ => Reply {
            result: Some(Answer::Batch(BatchReply { replies })),
        },
    };
    (request.encoded_len(), reply.encoded_len())
}

/// As the library's client makes it: a single operation is no batch.
fn batch(mut ops: Vec<Kind>) -> Kind {
    if ops.len() == 1 {
        return ops.remove(0);
    }
    let operations = ops.into_iter().map(|kind| Operation { kind: Some(kind) });
    Kind::Batch(Batch {
        operations: operations.collect(),
        ..Default::default()
    })
}

fn request(kind: Kind) -> Request {
    Request {
        // As long as the library's own are.
        session: "s".repeat(40),
        operation: Some(Operation { kind: Some(kind) }),
        ..Default::default()
    }
}

fn percentile(times: &[f64], p: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() - 1) * p / 100]
}

/// A client with ZeroMQ's own library.
struct Stranger(zmq::Socket);

impl Stranger {
    fn connect(address: &str) -> Self {
        let socket = zmq::Context::new().socket(zmq::REQ).unwrap();
        socket.set_linger(0).unwrap();
        socket.connect(address).unwrap();
        let mut stranger = Stranger(socket);
        stranger.ask(vec![Kind::Ping(Ping {
            open: true,
            timeout_ms: 3_600_000,
            ..Default::default()
        })]);
        stranger
    }

    fn ask(&mut self, ops: Vec<Kind>) -> f64 {
        let message = request(batch(ops)).encode_to_vec();
        let start = Instant::now();
        self.0.send(message, 0).unwrap();
        let reply = self.0.recv_msg(0).unwrap();
        let took = micros(start.elapsed());
        match Reply::decode(&reply[..]).unwrap().result.unwrap() {
            Answer::Error(e) => panic!("{e:?}"),
            Answer::Batch(all) => {
                for reply in all.replies {
                    assert!(!matches!(reply.result, Some(Answer::Error(_))), "{reply:?}");
                }
            }
            _ => {}
        }
        took
    }
}

/// A process that answers whatever it is sent with as many bytes as it was told.
struct Echo {
    socket: zmq::Socket,
    message: Vec<u8>,
    child: Child,
    _place: Place,
}

impl Echo {
    fn start(out: usize, back: usize) -> Self {
        let place = Place::new();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--echo", &place.address(), &back.to_string()])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let socket = zmq::Context::new().socket(zmq::REQ).unwrap();
        socket.set_linger(0).unwrap();
        socket.connect(&place.address()).unwrap();
        let echo = Echo {
            socket,
            message: vec![7; out],
            child,
            _place: place,
        };
        for _ in 0..100 {
            echo.ask();
        }
        echo
    }

    fn ask(&self) -> f64 {
        let start = Instant::now();
        self.socket.send(&self.message[..], 0).unwrap();
        black_box(self.socket.recv_msg(0).unwrap());
        micros(start.elapsed())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn echo(address: &str, bytes: usize) {
    let socket = zmq::Context::new().socket(zmq::REP).unwrap();
    socket.bind(address).unwrap();
    let reply = vec![7; bytes];
    loop {
        black_box(socket.recv_msg(0).unwrap());
        socket.send(&reply[..], 0).unwrap();
    }
}

fn micros(d: Duration) -> f64 {
    d.as_secs_f64() * 1e6
}

/// The largest of the steps on a pool in this process.
fn in_process() {
    let mut pool = BlockPool::new(&Options::new(BLOCKS, true)).unwrap();
    let mut prefix = [0; PREFIX as usize];
    pool.allocate(None, &mut prefix).unwrap();
    let shared = hashes(0);
    pool.cache_full(&CacheFull {
        blocks: &prefix,
        hashes: &shared[..PREFIX as usize * HASH],
        hash_len: HASH,
        block_size: 16,
        ..CacheFull::default()
    })
    .unwrap();
    let mut running = VecDeque::new();
    let mut grown = VecDeque::new();
    let mut times = Vec::new();
    for n in 0..(ROUNDS * PER_ROUND) as u64 {
        let hashes = hashes(n);
        let mut blocks = vec![0; PROMPT as usize];
        let mut new = [0; GROWING as usize];
        let start = Instant::now();
        for one in new.chunks_mut(1) {
            pool.allocate(None, one).unwrap();
        }
        if grown.len() as u64 == DECODING {
            let old: [u32; GROWING as usize] = grown.pop_front().unwrap();
            pool.free(&old).unwrap();
        }
        let hits = pool
            .acquire_chain(&hashes, HASH, &[0], &mut blocks)
            .unwrap();
        pool.allocate(None, &mut blocks[hits..]).unwrap();
        if running.len() as u64 == RUNNING {
            let mut old: Vec<u32> = running.pop_front().unwrap();
            old.reverse();
            pool.free(&old).unwrap();
        }
        times.push(micros(start.elapsed()));
        running.push_back(blocks);
        grown.push_back(new);
    }
    println!(
        "| the last step, in process | | pool | {:.1} | {:.1} | |",
        percentile(&times, 50),
        percentile(&times, 99)
    );
}
