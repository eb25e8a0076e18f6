//! Clients that are killed: whatever they were doing, no block is lost.

use std::process::{Child, Command, Stdio};

use kvferry::block_pool::Options;
use kvferry::error::Status;
use kvferry::pool_client::{ClientOptions, PoolClient};
use kvferry::pool_server::wire::{self, operation::Kind, reply::Result as Answer};

use super::support::{DEADLINE, Server, until};
use super::{Random, allocate, connect, stats};

const ENV_ADDRESS: &str = "KVF_TEST_CHURN_ADDRESS";
const ENV_SEED: &str = "KVF_TEST_CHURN_SEED";
const BLOCKS: u64 = 400;

/// Not a test by itself: the client process of the soak below, which runs until it is killed.
#[test]
fn churn() {
    let Ok(address) = std::env::var(ENV_ADDRESS) else {
        return;
    };
    let mut random = Random(std::env::var(ENV_SEED).unwrap().parse::<u64>().unwrap() | 1);
    let shared = connect(&address);
    let own = PoolClient::connect(&ClientOptions {
        address,
        pool: format!("own-{}", std::process::id()),
        create: Some(Options::new(50, true)),
        timeout: DEADLINE,
        ..ClientOptions::default()
    })
    .unwrap();
    let mut held = [Vec::new(), Vec::new()];
    loop {
        let which = random.below(2);
        work([&shared, &own][which], &mut held[which], &mut random);
    }
}

/// One batch of what engines do, on any pool.
fn work(client: &PoolClient, held: &mut Vec<u32>, random: &mut Random) {
    let request = format!("request {}", random.below(5));
    let hashes: Vec<u8> = (0..random.below(6) as u8)
        .map(|i| i + random.below(3) as u8)
        .collect();
    let mut ops = vec![
        allocate(random.below(6) as u32),
        Kind::Allocate(wire::Allocate {
            request_id: request.clone(),
            num_blocks: random.below(12) as u32,
            up_to: true,
            ..Default::default()
        }),
        Kind::GetCachedBlock(Box::new(wire::GetCachedBlock {
            hashes,
            hash_length: 1,
            touch: true,
            request_id: request.clone(),
            ..Default::default()
        })),
    ];
    if random.below(3) == 0 {
        ops.push(Kind::Free(wire::Free {
            request_id: request,
        }));
    }
    let gone = held.split_off(held.len() - random.below(held.len() + 1));
    ops.push(Kind::FreeBlocksById(wire::FreeBlocksById {
        block_ids: gone,
        unpin: false,
    }));
    let n = random.below(held.len() + 1).min(4);
    ops.push(Kind::CacheFullBlocks(Box::new(wire::CacheFullBlocks {
        block_ids: held[..n].to_vec(),
        content: Some(wire::BlockContent {
            hashes: (0..n as u8).collect(),
            hash_length: 1,
            block_size: 4,
            ..Default::default()
        }),
        ..Default::default()
    })));
    let answers = client.batch(ops, false).unwrap();
    for (i, answer) in answers.into_iter().enumerate() {
        match answer {
            // What belongs to no request has to be given back by its ids.
            Ok(Answer::Blocks(taken)) if i == 0 => held.extend(taken.block_ids),
            Ok(_) => {}
            // The pool is full; or nothing was held for the request; or the block was cached before.
            Err(e) => assert!(
                matches!(
                    e.status(),
                    Status::ResourceExhausted | Status::NotFound | Status::InvalidState
                ),
                "{e}"
            ),
        }
    }
    if let Ok(Answer::Blocks(more)) = client.call(allocate(random.below(3) as u32)) {
        held.extend(more.block_ids);
    }
}

struct Client(Child);

impl Client {
    fn start(address: &str, seed: usize) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sessions::churn", "--nocapture"])
            .env(ENV_ADDRESS, address)
            .env(ENV_SEED, seed.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Client(child)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn no_block_is_lost_when_clients_are_killed() {
    let server = Server::start(&[&BLOCKS.to_string(), "--enable-caching", "true"]);
    let address = server.listening();
    let watcher = connect(&address);
    let mut random = Random(0xdead);
    let mut clients: Vec<Client> = (0..3).map(|i| Client::start(&address, 1000 + i)).collect();
    let rounds: usize = std::env::var("KVF_SOAK_KILLS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(20);
    for round in 0..rounds {
        // Not before they have done something, and then in the middle of anything.
        let target = stats(&watcher).allocated_blocks + 20 + random.below(300) as u64;
        until("clients work", || {
            stats(&watcher).allocated_blocks >= target
        });
        for client in &mut clients {
            assert!(
                client.0.try_wait().unwrap().is_none(),
                "a client has failed"
            );
        }
        let victim = random.below(clients.len());
        clients[victim] = Client::start(&address, round);
    }
    clients.clear();
    // Long before the grace period (30 s) is over: their processes are gone, and that is seen.
    until("all blocks are free", || stats(&watcher).free == BLOCKS - 1);
    let Answer::Metrics(metrics) = watcher.call(Kind::GetMetrics(wire::GetMetrics {})).unwrap()
    else {
        panic!()
    };
    let text = metrics.text;
    assert!(text.contains("\nkv_cache_server_sessions 1\n"), "{text}");
    assert!(
        !text.contains("pool=\"own-"),
        "their own pools are gone, too:\n{text}"
    );
    // Nothing is left that would make a reset impossible.
    let reset = watcher
        .call(Kind::ResetPrefixCache(wire::ResetPrefixCache {}))
        .unwrap();
    assert_eq!(reset, Answer::Reset(wire::Reset { done: true }));
}
