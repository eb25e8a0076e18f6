//! Any bytes as a script for a server without sockets: requests as they come, well-formed ones with any
//! content, and well-formed ones with a byte changed, of several sessions on two small pools.
//!
//! Whatever the script is, every request has a reply that can be read, no fault of the server is ever
//! the answer, and when all sessions are over everything that they held is back. The fuzzer uses it
//! (fuzz/fuzz_targets/pool_server_request.rs), and a test with random bytes.

use std::time::{Duration, Instant};

use kvferry::block_pool::Options;
use kvferry::pool_server::wire::operation::Kind;
use kvferry::pool_server::wire::reply::Result as Answer;
use kvferry::pool_server::wire::*;
use kvferry::pool_server::{Limits, Publishing, Service};
use prost::Message;

/// The script, read from its front; behind its end are zeroes.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    fn below(&mut self, n: u8) -> u8 {
        self.byte() % n
    }

    fn flag(&mut self) -> bool {
        self.byte() % 2 == 1
    }

    fn bytes(&mut self) -> &'a [u8] {
        let len = usize::from(self.below(40)).min(self.0.len());
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    /// Blocks, a few of which there are not.
    fn ids(&mut self) -> Vec<u32> {
        self.bytes().iter().map(|&id| u32::from(id % 24)).collect()
    }

    fn word(&mut self) -> u32 {
        match self.below(8) {
            0 => u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()]),
            _ => self.below(20).into(),
        }
    }

    fn request_id(&mut self) -> String {
        match self.below(4) {
            0 => String::new(),
            n => n.to_string(),
        }
    }

    fn content(&mut self) -> Option<BlockContent> {
        (self.below(20) != 19).then(|| BlockContent {
            hash_length: self.below(4).into(),
            hashes: self.bytes().to_vec(),
            group: self.below(3).into(),
            block_size: self.word(),
            parent: self.bytes().to_vec(),
            tokens: vec![7; self.below(9).into()],
            tag: 9,
        })
    }

    fn kind(&mut self) -> Kind {
        match self.below(22) {
            0 => Kind::Ping(Ping {
                open: self.flag(),
                timeout_ms: self.word().into(),
                pid: self.word(),
                pid_start: self.word().into(),
            }),
            1 => Kind::OpenPool(OpenPool {
                num_blocks: 20,
                enable_caching: self.flag(),
                policy: self.below(5).into(),
                fraction: f64::from(self.below(4)) / 2.0,
                events: self.below(4).into(),
                tolerate_null: self.flag(),
                event_bytes: self.word().into(),
            }),
            2 => Kind::CloseSession(CloseSession {}),
            3..=6 => Kind::Allocate(Allocate {
                request_id: self.request_id(),
                num_blocks: self.word(),
                after: self.word(),
                up_to: self.flag(),
            }),
            7 => Kind::Free(Free {
                request_id: self.request_id(),
            }),
            8 | 9 => Kind::FreeBlocksById(FreeBlocksById {
                block_ids: self.ids(),
                unpin: self.flag(),
            }),
            10 => Kind::Touch(Touch {
                block_ids: self.ids(),
                request_id: self.request_id(),
            }),
            11 => Kind::GetCachedBlock(Box::new(GetCachedBlock {
                hash_length: self.below(4).into(),
                hashes: self.bytes().to_vec(),
                groups: self.ids(),
                touch: self.flag(),
                request_id: self.request_id(),
            })),
            12 | 13 => Kind::CacheFullBlocks(Box::new(CacheFullBlocks {
                block_ids: self.ids(),
                content: self.content(),
                first: self.word(),
                mask: self.bytes().to_vec(),
            })),
            14 => Kind::CachePartialBlock(Box::new(CachePartialBlock {
                block_id: self.below(24).into(),
                content: self.content(),
                num_tokens: self.word(),
                replace: self.flag(),
            })),
            15 => Kind::AnnounceBlocks(Box::new(AnnounceBlocks {
                content: self.content(),
            })),
            16 => Kind::MoveBlockHashes(MoveBlockHashes {
                from: self.below(24).into(),
                to: self.below(24).into(),
            }),
            17 => Kind::EvictBlocks(EvictBlocks {
                block_ids: self.ids(),
            }),
            18 => Kind::GetBlocks(GetBlocks {
                block_ids: self.ids(),
                keys: self.flag(),
            }),
            19 => Kind::TakeReused(TakeReused { limit: self.word() }),
            20 => Kind::Batch(Batch {
                operations: (0..self.below(8))
                    .map(|_| Operation {
                        kind: (self.below(9) != 8).then(|| self.simple()),
                    })
                    .collect(),
                stop_on_error: self.flag(),
            }),
            _ => self.simple(),
        }
    }

    /// One that is no batch, so that scripts end.
    fn simple(&mut self) -> Kind {
        match self.below(9) {
            0 => Kind::GetStats(GetStats {}),
            1 => Kind::GetAllFreeBlocks(GetAllFreeBlocks { limit: self.word() }),
            2 => Kind::TakeEvents(TakeEvents {}),
            3 => Kind::ResetPrefixCache(ResetPrefixCache {}),
            4 => Kind::GetMetrics(GetMetrics {}),
            5 => Kind::Shutdown(Shutdown {}),
            6 => Kind::Batch(Batch::default()),
            7 => Kind::Allocate(Allocate {
                request_id: self.request_id(),
                num_blocks: self.word(),
                ..Default::default()
            }),
            _ => Kind::Free(Free {
                request_id: self.request_id(),
            }),
        }
    }
}

/// Runs a script.
pub fn check(script: &[u8]) {
    let mut script = Script(script);
    let mut service = small_service();
    let mut now = Instant::now();
    // Whether somebody without a session may hold something: that does not come back.
    let mut nobodys = false;
    while !script.0.is_empty() {
        let mut bytes = match script.below(16) {
            0 => {
                now += Duration::from_secs(script.byte().into());
                service.tick(now);
                continue;
            }
            1 => script.bytes().to_vec(),
            _ => {
                let session = ["a", "b", "c", "d", "e"][usize::from(script.below(5))];
                let pool = ["", "", "other", "third"][usize::from(script.below(4))];
                request(pool, session, script.kind())
            }
        };
        if script.below(8) == 7 && !bytes.is_empty() {
            let at = usize::from(script.byte()) % bytes.len();
            match script.flag() {
                true => bytes[at] ^= script.byte(),
                false => bytes.truncate(at),
            }
        }
        nobodys |= Request::decode(&bytes[..]).is_ok_and(|r| r.session.is_empty());
        answer(&mut service, &bytes, now);
        for published in service.take_published() {
            EventBatch::decode(&published.body[..]).expect("events can be read");
        }
    }
    // A day is the longest that a session can ask for.
    now += Duration::from_secs(24 * 60 * 60 + 1);
    service.tick(now);
    let metrics = service.metrics();
    assert!(
        metrics.contains("kv_cache_server_sessions 0\n"),
        "all sessions are over"
    );
    assert!(
        !metrics.contains("pool=\"other\""),
        "and their pools with them"
    );
    let Answer::Stats(stats) = answer(
        &mut service,
        &request("", "", Kind::GetStats(GetStats {})),
        now,
    ) else {
        panic!("no numbers")
    };
    assert!(nobodys || stats.free == 19, "{stats:?}");
}

fn small_service() -> Service {
    let options = Options {
        events: true,
        ..Options::new(20, true)
    };
    let limits = Limits {
        blocks_per_call: 64,
        sessions: 4,
        pools: 3,
        blocks: 70,
        ..Limits::default()
    };
    Service::new(limits, &options, Publishing::Publish, true).expect("it is valid")
}

fn request(pool: &str, session: &str, kind: Kind) -> Vec<u8> {
    Request {
        pool: pool.to_owned(),
        session: session.to_owned(),
        operation: Some(Operation { kind: Some(kind) }),
    }
    .encode_to_vec()
}

fn answer(service: &mut Service, request: &[u8], now: Instant) -> Answer {
    let reply = Reply::decode(&service.handle(request, now).encode_to_vec()[..])
        .expect("a reply can be read");
    let answer = reply.result.expect("a reply says something");
    let parts = match &answer {
        Answer::Batch(batch) => batch
            .replies
            .iter()
            .filter_map(|r| r.result.as_ref())
            .collect(),
        one => vec![one],
    };
    for one in parts {
        assert!(
            !matches!(one, Answer::Error(e) if e.code() == Code::Internal),
            "{one:?} to {:?}",
            Request::decode(request)
        );
    }
    answer
}
