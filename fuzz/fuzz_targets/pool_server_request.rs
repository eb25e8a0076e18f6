//! Requests to kv_cache_server: bytes as they come, and well-formed operations with any content, of
//! several sessions on two small pools. Every one has a reply that can be read; no fault of the server
//! is ever the answer; and when all sessions are over, everything that they held is back.
#![no_main]

use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use kvferry::block_pool::Options;
use kvferry::pool_server::wire::operation::Kind;
use kvferry::pool_server::wire::reply::Result as Answer;
use kvferry::pool_server::wire::*;
use kvferry::pool_server::{Limits, Publishing, Service};
use libfuzzer_sys::fuzz_target;
use prost::Message;

#[derive(Arbitrary, Debug)]
enum Input {
    Bytes(Vec<u8>),
    /// Who (one of three), on which pool (one of two), what.
    Valid(u8, bool, Vec<Op>, bool),
    Later(u8),
}

#[derive(Arbitrary, Debug)]
enum Op {
    Open(u16),
    OpenPool { caching: bool, events: u8, null: bool },
    Close,
    Allocate { request: u8, n: u8, after: u8, up_to: bool },
    Free { request: u8 },
    FreeIds { ids: Vec<u8>, unpin: bool },
    Touch { ids: Vec<u8>, request: u8 },
    Find { hashes: Vec<u8>, len: u8, groups: Vec<u8>, touch: bool, request: u8 },
    Cache { ids: Vec<u8>, hashes: Vec<u8>, len: u8, first: u32, size: u32, mask: Vec<u8>, tokens: u8 },
    Partial { id: u8, hashes: Vec<u8>, tokens: u32, replace: bool },
    Move(u8, u8),
    Evict(Vec<u8>),
    Ask(u8, Vec<u8>),
}

fn wide(ids: &[u8]) -> Vec<u32> {
    ids.iter().map(|&id| u32::from(id % 24)).collect()
}

fn name(request: u8) -> String {
    match request % 4 {
        0 => String::new(),
        n => n.to_string(),
    }
}

fn content(hashes: Vec<u8>, len: u8, size: u32, tokens: usize) -> Option<BlockContent> {
    Some(BlockContent {
        hashes,
        hash_length: len.into(),
        block_size: size,
        tokens: vec![7; tokens],
        ..Default::default()
    })
}

fn kind(op: Op) -> Kind {
    match op {
        Op::Open(ms) => Kind::Ping(Ping {
            open: true,
            timeout_ms: ms.into(),
            ..Default::default()
        }),
        Op::OpenPool { caching, events, null } => Kind::OpenPool(OpenPool {
            num_blocks: 20,
            enable_caching: caching,
            events: (events % 4).into(),
            tolerate_null: null,
            ..Default::default()
        }),
        Op::Close => Kind::CloseSession(CloseSession {}),
        Op::Allocate { request, n, after, up_to } => Kind::Allocate(Allocate {
            request_id: name(request),
            num_blocks: n.into(),
            after: after.into(),
            up_to,
        }),
        Op::Free { request } => Kind::Free(Free { request_id: name(request) }),
        Op::FreeIds { ids, unpin } => Kind::FreeBlocksById(FreeBlocksById { block_ids: wide(&ids), unpin }),
        Op::Touch { ids, request } => Kind::Touch(Touch { block_ids: wide(&ids), request_id: name(request) }),
        Op::Find { hashes, len, groups, touch, request } => Kind::GetCachedBlock(Box::new(GetCachedBlock {
            hashes,
            hash_length: len.into(),
            groups: wide(&groups),
            touch,
            request_id: name(request),
        })),
        Op::Cache { ids, hashes, len, first, size, mask, tokens } => {
            Kind::CacheFullBlocks(Box::new(CacheFullBlocks {
                block_ids: wide(&ids),
                content: content(hashes, len, size, tokens.into()),
                first,
                mask,
            }))
        }
        Op::Partial { id, hashes, tokens, replace } => {
            let len = hashes.len() as u8;
            Kind::CachePartialBlock(Box::new(CachePartialBlock {
                block_id: id.into(),
                content: content(hashes, len, 4, 0),
                num_tokens: tokens,
                replace,
            }))
        }
        Op::Move(from, to) => Kind::MoveBlockHashes(MoveBlockHashes { from: from.into(), to: to.into() }),
        Op::Evict(ids) => Kind::EvictBlocks(EvictBlocks { block_ids: wide(&ids) }),
        Op::Ask(what, ids) => match what % 7 {
            0 => Kind::GetStats(GetStats {}),
            1 => Kind::GetAllFreeBlocks(GetAllFreeBlocks { limit: ids.len() as u32 }),
            2 => Kind::GetBlocks(GetBlocks { block_ids: wide(&ids), keys: true }),
            3 => Kind::TakeReused(TakeReused { limit: ids.len() as u32 }),
            4 => Kind::TakeEvents(TakeEvents {}),
            5 => Kind::ResetPrefixCache(ResetPrefixCache {}),
            _ => Kind::GetMetrics(GetMetrics {}),
        },
    }
}

fn check(bytes: &[u8]) -> Answer {
    let reply = Reply::decode(bytes).expect("a reply can be read");
    let answer = reply.result.expect("a reply says something");
    let all = match &answer {
        Answer::Batch(batch) => batch.replies.iter().filter_map(|r| r.result.as_ref()).collect(),
        one => vec![one],
    };
    for one in all {
        assert!(!matches!(one, Answer::Error(e) if e.code() == Code::Internal), "{one:?}");
    }
    answer
}

fn request(pool: &str, session: &str, kind: Kind) -> Vec<u8> {
    Request {
        pool: pool.to_owned(),
        session: session.to_owned(),
        operation: Some(Operation { kind: Some(kind) }),
    }
    .encode_to_vec()
}

fuzz_target!(|inputs: Vec<Input>| {
    let options = Options {
        events: true,
        ..Options::new(20, true)
    };
    let limits = Limits {
        blocks_per_call: 64,
        sessions: 4,
        pools: 3,
        blocks: 100,
        ..Limits::default()
    };
    let mut service = Service::new(limits, &options, Publishing::Publish, true).expect("it is valid");
    let mut now = Instant::now();
    // Whether somebody without a session may hold something: that does not come back.
    let mut nobodys = false;
    for input in inputs {
        match input {
            Input::Bytes(bytes) => {
                nobodys |= Request::decode(&bytes[..]).is_ok_and(|r| r.session.is_empty());
                check(&service.handle(&bytes, now));
            }
            Input::Valid(who, other, ops, stop_on_error) => {
                let operations = ops.into_iter().map(|op| Operation { kind: Some(kind(op)) });
                let batch = Kind::Batch(Batch {
                    operations: operations.collect(),
                    stop_on_error,
                });
                // Always of a session: what belongs to nobody does not come back.
                let session = ["a", "b", "c"][usize::from(who % 3)];
                let pool = if other { "other" } else { "" };
                check(&service.handle(&request(pool, session, batch), now));
            }
            Input::Later(seconds) => {
                now += Duration::from_secs(seconds.into());
                service.tick(now);
            }
        }
        for published in service.take_published() {
            EventBatch::decode(&published.body[..]).expect("events can be read");
        }
    }
    // A day is the most that a session can ask for.
    service.tick(now + Duration::from_secs(24 * 60 * 60 + 1));
    assert!(service.metrics().contains("kv_cache_server_sessions 0\n"), "all sessions are over");
    let Answer::Stats(stats) = check(&service.handle(&request("", "", Kind::GetStats(GetStats {})), now))
    else {
        panic!("no numbers")
    };
    assert!(nobodys || stats.free == 19, "{stats:?}");
});
