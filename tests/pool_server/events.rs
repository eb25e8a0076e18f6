//! Events on the PUB socket: complete, in their order, and enough to know what the pool has.

use std::collections::HashMap;

use kvferry::block_pool::Options;
use kvferry::pool_client::{ClientOptions, PoolClient};
use kvferry::pool_server::wire::{
    self, EventBatch, event, operation::Kind, reply::Result as Answer,
};
use prost::Message;

use super::support::{DEADLINE, Place, Raw, Server, until};
use super::{Random, allocate, blocks, stats};

const BLOCKS: u32 = 60;

fn options(address: &str, pool: &str) -> ClientOptions {
    ClientOptions {
        address: address.to_owned(),
        pool: pool.to_owned(),
        create: Some(Options {
            events: true,
            ..Options::new(BLOCKS, true)
        }),
        publish: true,
        timeout: DEADLINE,
        ..ClientOptions::default()
    }
}

fn cache(block: u32, hash: u8) -> Kind {
    Kind::CacheFullBlocks(Box::new(wire::CacheFullBlocks {
        block_ids: vec![block],
        content: Some(wire::BlockContent {
            hashes: vec![hash],
            hash_length: 1,
            block_size: 4,
            tokens: vec![1, 2, 3, u32::MAX],
            parent: b"parent".to_vec(),
            tag: u64::MAX,
            ..Default::default()
        }),
        ..Default::default()
    }))
}

/// How many blocks have each key, from events alone.
#[derive(Default)]
struct Listener {
    known: HashMap<(Vec<u8>, u32), usize>,
    sequence: u64,
}

impl Listener {
    fn hear(&mut self, batch: &EventBatch) {
        assert_eq!(batch.sequence, self.sequence + 1, "none is left out");
        assert_eq!(batch.lost, 0);
        self.sequence = batch.sequence;
        for e in &batch.events {
            match e.kind.as_ref().unwrap() {
                event::Kind::Stored(c) => {
                    assert_eq!((&c.parent[..], c.tag), (&b"parent"[..], u64::MAX));
                    assert_eq!(c.tokens, [1, 2, 3, u32::MAX]);
                    for hash in c.hashes.chunks(c.hash_length as usize) {
                        *self.known.entry((hash.to_vec(), c.group)).or_default() += 1;
                    }
                }
                event::Kind::Removed(key) => {
                    let key = (key.hash.clone(), key.group);
                    let n = self.known.get_mut(&key).expect("what goes was there");
                    *n -= 1;
                    if *n == 0 {
                        self.known.remove(&key);
                    }
                }
                event::Kind::Cleared(_) => self.known.clear(),
            }
        }
    }
}

/// What the pool itself says.
fn keys(client: &PoolClient) -> HashMap<(Vec<u8>, u32), usize> {
    let ask = Kind::GetBlocks(wire::GetBlocks {
        block_ids: (0..BLOCKS).collect(),
        keys: true,
    });
    let Answer::BlockStates(states) = client.call(ask).unwrap() else {
        panic!()
    };
    let mut all = HashMap::new();
    for key in states.blocks.into_iter().flat_map(|b| b.keys) {
        *all.entry((key.hash, key.group)).or_default() += 1;
    }
    all
}

#[test]
fn a_listener_knows_what_the_pool_has() {
    let events = Place::new();
    let server = Server::start(&["--events-path", &events.address()]);
    let clients: Vec<PoolClient> = (0..2)
        .map(|_| PoolClient::connect(&options(&server.listening(), "p")).unwrap())
        .collect();
    // Longer by a letter: its topic begins with that of the other.
    let other = PoolClient::connect(&options(&server.listening(), "pp")).unwrap();
    let socket = zmq::Context::new().socket(zmq::SUB).unwrap();
    socket.set_rcvtimeo(DEADLINE.as_millis() as i32).unwrap();
    socket.set_rcvhwm(0).unwrap();
    socket.connect(&server.address("events")).unwrap();
    socket.set_subscribe(b"p").unwrap();
    // Subscribed once the first batch of the other pool arrives.
    let block = blocks(other.call(allocate(1)).unwrap())[0];
    let mut hash = 0;
    until("the subscription has arrived", || {
        hash = (hash + 1) % 200;
        let evict = Kind::EvictBlocks(wire::EvictBlocks {
            block_ids: vec![block],
        });
        other.batch(vec![evict, cache(block, hash)], true).unwrap();
        socket.poll(zmq::POLLIN, 1).unwrap() > 0
    });
    std::thread::scope(|scope| {
        for (i, client) in clients.iter().enumerate() {
            scope.spawn(move || {
                let mut random = Random(77 + i as u64);
                for _ in 0..400 {
                    let Ok(answer) = client.call(allocate(1 + random.below(9) as u32)) else {
                        continue;
                    };
                    let ids = blocks(answer);
                    let ops = ids
                        .iter()
                        .map(|&id| cache(id, random.below(12) as u8))
                        .collect();
                    client.batch(ops, false).unwrap();
                    if random.below(9) == 0 {
                        let evict = wire::EvictBlocks {
                            block_ids: ids.clone(),
                        };
                        client.call(Kind::EvictBlocks(evict)).unwrap();
                    }
                    let free = wire::FreeBlocksById {
                        block_ids: ids,
                        unpin: false,
                    };
                    client.call(Kind::FreeBlocksById(free)).unwrap();
                    if random.below(20) == 0 {
                        client
                            .call(Kind::ResetPrefixCache(wire::ResetPrefixCache {}))
                            .unwrap();
                    }
                }
            });
        }
    });
    let last = stats(&clients[0]).event_sequence;
    assert!(last > 400, "{last}");
    let mut listener = Listener::default();
    while listener.sequence < last {
        let frames = socket
            .recv_multipart(0)
            .expect("all that was published arrives");
        let batch = EventBatch::decode(&frames[1][..]).unwrap();
        assert_eq!(batch.pool.as_bytes(), frames[0]);
        assert_eq!(batch.epoch, clients[0].epoch());
        if batch.pool == "p" {
            listener.hear(&batch);
        }
    }
    let keys = keys(&clients[0]);
    assert!(!keys.is_empty());
    assert_eq!(listener.known, keys);
}

#[test]
fn a_listener_that_is_too_slow_sees_a_gap_and_holds_up_nobody() {
    let events = Place::new();
    let server = Server::start(&["--events-path", &events.address()]);
    let client = PoolClient::connect(&options(&server.listening(), "p")).unwrap();
    let mut slow = Raw::connect(&server.address("events"), "SUB");
    slow.send(&kvferry::zmtp::message(&[b"\x01p"]));
    let announce = |tokens: u32| {
        let content = wire::BlockContent {
            hashes: vec![1],
            hash_length: 1,
            block_size: tokens,
            tokens: vec![7; tokens as usize],
            ..Default::default()
        };
        client
            .call(Kind::AnnounceBlocks(Box::new(wire::AnnounceBlocks {
                content: Some(content),
            })))
            .unwrap();
    };
    assert!(matches!(slow.event(), kvferry::zmtp::Event::Ready(_)));
    until("the subscription has arrived", || {
        announce(1);
        slow.has_more()
    });
    let next = |slow: &mut Raw| {
        let frames = slow.message();
        EventBatch::decode(&frames[1][..]).unwrap().sequence
    };
    let mut first = 0;
    while slow.has_more() {
        first = next(&mut slow);
    }
    // Each is 3.6 MB.
    const LARGE: u32 = 900_000;
    for _ in 0..20 {
        announce(LARGE);
    }
    let last = stats(&client).event_sequence;
    let mut heard = vec![first];
    // What waited for it, up to the gap; then the newest again.
    while heard.windows(2).all(|w| w[1] == w[0] + 1) {
        assert!(*heard.last().unwrap() < last, "{heard:?}");
        if heard.len() == 5 {
            announce(LARGE);
        }
        heard.push(next(&mut slow));
    }
    assert!(
        heard.len() > 4 && *heard.last().unwrap() > last,
        "{heard:?}"
    );
}

#[test]
fn a_server_without_an_events_address_publishes_nothing() {
    let server = Server::start(&[]);
    let e = PoolClient::connect(&options(&server.listening(), "p"))
        .err()
        .unwrap();
    assert_eq!(e.status(), kvferry::error::Status::NotSupported);
}
