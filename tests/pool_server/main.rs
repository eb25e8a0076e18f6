//! `kv_cache_server` as a process: what it answers, how it starts and ends, whose blocks come back.

mod client;
mod events;
mod lifetime;
mod oracle;
mod requests;
mod sessions;
mod support;

use kvferry::pool_client::{ClientOptions, PoolClient};
use kvferry::pool_server::wire;
use kvferry::pool_server::wire::operation::Kind;
use kvferry::pool_server::wire::reply::Result as Answer;

fn connect(address: &str) -> PoolClient {
    PoolClient::connect(&ClientOptions {
        address: address.to_owned(),
        timeout: support::DEADLINE,
        ..ClientOptions::default()
    })
    .expect("the server answers")
}

fn stats(client: &PoolClient) -> wire::Stats {
    match client.call(Kind::GetStats(wire::GetStats {})).unwrap() {
        Answer::Stats(stats) => *stats,
        other => panic!("{other:?}"),
    }
}

fn allocate(n: u32) -> Kind {
    Kind::Allocate(wire::Allocate {
        num_blocks: n,
        ..wire::Allocate::default()
    })
}

fn blocks(answer: Answer) -> Vec<u32> {
    match answer {
        Answer::Blocks(blocks) => blocks.block_ids,
        other => panic!("{other:?}"),
    }
}

/// Numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 20) % n as u64) as usize
    }
}
