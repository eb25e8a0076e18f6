//! The rules of sessions, batches and limits, without sockets and with a clock of the tests' own.

use super::super::wire::*;
use super::*;

struct Fixture {
    service: Service,
    now: Instant,
}

impl Fixture {
    fn new(limits: Limits, publishing: Publishing) -> Self {
        let options = Options {
            events: publishing != Publishing::Off,
            policy: crate::block_pool::Policy::Lru,
            ..Options::new(11, true)
        };
        Fixture {
            service: Service::new(limits, &options, publishing, true).unwrap(),
            now: Instant::now(),
        }
    }

    fn ask(&mut self, pool: &str, session: &str, kind: Kind) -> Answer {
        let request = Request {
            pool: pool.to_owned(),
            session: session.to_owned(),
            operation: Some(Operation { kind: Some(kind) }),
        };
        let reply = self
            .service
            .handle(&request.encode_to_vec(), self.now)
            .encode_to_vec();
        Reply::decode(&reply[..]).unwrap().result.unwrap()
    }

    fn open(&mut self, session: &str) -> Pong {
        let kind = Kind::Ping(Ping {
            open: true,
            ..Ping::default()
        });
        match self.ask("", session, kind) {
            Answer::Pong(pong) => pong,
            other => panic!("{other:?}"),
        }
    }

    fn allocate(&mut self, session: &str, request: &str, n: u32) -> Vec<u32> {
        ids(self.ask("", session, allocate(request, n)))
    }

    fn free(&mut self) -> u64 {
        match self.ask("", "", Kind::GetStats(GetStats {})) {
            Answer::Stats(stats) => stats.free,
            other => panic!("{other:?}"),
        }
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.service.tick(self.now);
    }
}

fn fixture() -> Fixture {
    Fixture::new(Limits::default(), Publishing::Off)
}

fn allocate(request: &str, n: u32) -> Kind {
    Kind::Allocate(Allocate {
        request_id: request.to_owned(),
        num_blocks: n,
        ..Allocate::default()
    })
}

fn up_to(request: &str, n: u32) -> Kind {
    Kind::Allocate(Allocate {
        request_id: request.to_owned(),
        num_blocks: n,
        up_to: true,
        ..Allocate::default()
    })
}

fn free(block_ids: &[u32]) -> Kind {
    Kind::FreeBlocksById(FreeBlocksById {
        block_ids: block_ids.to_vec(),
        unpin: false,
    })
}

fn free_request(id: &str) -> Kind {
    Kind::Free(Free {
        request_id: id.to_owned(),
    })
}

fn cache(block_ids: &[u32], hashes: &[u8]) -> Kind {
    Kind::CacheFullBlocks(Box::new(CacheFullBlocks {
        block_ids: block_ids.to_vec(),
        content: Some(BlockContent {
            hashes: hashes.to_vec(),
            hash_length: 1,
            block_size: 4,
            ..BlockContent::default()
        }),
        ..CacheFullBlocks::default()
    }))
}

fn batch(kinds: Vec<Kind>, stop_on_error: bool) -> Kind {
    let operations = kinds.into_iter().map(|kind| Operation { kind: Some(kind) });
    Kind::Batch(Batch {
        operations: operations.collect(),
        stop_on_error,
    })
}

fn open_pool(num_blocks: u32) -> Kind {
    Kind::OpenPool(OpenPool {
        num_blocks,
        ..OpenPool::default()
    })
}

#[track_caller]
fn ids(answer: Answer) -> Vec<u32> {
    match answer {
        Answer::Blocks(blocks) => blocks.block_ids,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn code(answer: Answer) -> Code {
    match answer {
        Answer::Error(e) => {
            assert!(!e.message.is_empty());
            e.code()
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn replies(answer: Answer) -> Vec<Answer> {
    match answer {
        Answer::Batch(batch) => batch
            .replies
            .into_iter()
            .map(|r| r.result.unwrap())
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_silent_client_held_comes_back_and_nothing_else() {
    let mut f = fixture();
    f.open("a");
    f.open("b");
    let of_a = f.allocate("a", "", 2);
    f.allocate("a", "r", 3);
    f.allocate("b", "", 1);
    let touch = Kind::Touch(Touch {
        block_ids: vec![of_a[0]],
        request_id: String::new(),
    });
    assert_eq!(f.ask("", "b", touch), Answer::Done(Done {}));
    assert_eq!(f.free(), 4);
    f.pass(29);
    // A sign of life of one of them.
    f.ask("", "b", Kind::Ping(Ping::default()));
    assert_eq!(f.free(), 4);
    f.pass(2);
    // b still holds its own block and one of a's.
    assert_eq!(f.free(), 8);
    assert_eq!(code(f.ask("", "a", allocate("", 1))), Code::NotFound);
    assert_eq!(f.ask("", "b", free(&[of_a[0]])), Answer::Done(Done {}));
    f.pass(31);
    assert_eq!(f.free(), 10);
}

#[test]
fn a_session_ends_with_its_process() {
    let mut f = fixture();
    let mut child = std::process::Command::new("cat")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    // The name, `(cat)`, has no space.
    let start = stat.split(' ').nth(21).unwrap().parse().unwrap();
    let mut open = |session: &str, pid_start| {
        let ping = Ping {
            open: true,
            pid: child.id(),
            pid_start,
            ..Ping::default()
        };
        match f.ask("", session, Kind::Ping(ping)) {
            Answer::Pong(pong) => pong.pid_watched,
            other => panic!("{other:?}"),
        }
    };
    assert!(open("a", start));
    // Another process with this number: nothing to go by.
    assert!(!open("b", start + 1));
    f.allocate("a", "", 4);
    f.allocate("b", "", 4);
    f.pass(0);
    assert_eq!(f.free(), 2);
    child.kill().unwrap();
    child.wait().unwrap();
    // Somebody who opens it before anybody has looked gets a new one.
    assert!(!f.open("a").resumed);
    assert_eq!(f.free(), 6);
}

#[test]
fn a_session_that_was_silent_for_too_long_is_not_resumed() {
    let mut f = fixture();
    f.open("a");
    f.allocate("a", "", 4);
    f.now += Duration::from_secs(31);
    assert!(!f.open("a").resumed);
    assert_eq!(f.free(), 10);
}

#[test]
fn a_pause_of_the_server_ends_no_session() {
    let mut f = fixture();
    f.open("a");
    f.allocate("a", "", 4);
    f.now += Duration::from_secs(100);
    f.service.stood_still(Duration::from_secs(100), f.now);
    f.pass(29);
    assert_eq!(f.free(), 6);
    f.pass(2);
    assert_eq!(f.free(), 10);
}

#[test]
fn a_pool_stays_while_a_session_holds_something_of_it() {
    let mut f = fixture();
    f.open("a");
    f.open("b");
    f.ask("p", "a", open_pool(9));
    let held = ids(f.ask("p", "b", allocate("", 3)));
    f.ask("", "a", Kind::CloseSession(CloseSession {}));
    assert_eq!(f.ask("p", "b", free(&held)), Answer::Done(Done {}));
    f.ask("", "b", Kind::CloseSession(CloseSession {}));
    assert_eq!(
        code(f.ask("p", "", Kind::GetStats(GetStats {}))),
        Code::NotFound
    );
}

#[test]
fn sessions_are_opened_resumed_and_closed() {
    let mut f = fixture();
    assert_eq!(
        code(f.ask("", "a", Kind::Ping(Ping::default()))),
        Code::NotFound
    );
    assert_eq!(code(f.ask("", "a", allocate("", 1))), Code::NotFound);
    let first = f.open("a");
    assert!(!first.resumed);
    assert_eq!(first.timeout_ms, 30_000);
    f.allocate("a", "", 2);
    let again = f.open("a");
    assert!(again.resumed);
    assert_eq!(again.epoch, first.epoch);
    let close = || Kind::CloseSession(CloseSession {});
    assert_eq!(
        f.ask("", "a", close()),
        Answer::Freed(Freed { num_blocks: 2 })
    );
    assert_eq!(f.free(), 10);
    assert_eq!(code(f.ask("", "a", close())), Code::NotFound);
    assert_eq!(code(f.ask("", "", close())), Code::InvalidArgument);
    // Without a session blocks stay held until they are freed, by anybody without one.
    let ids = f.allocate("", "", 3);
    f.pass(1_000_000);
    assert_eq!(f.free(), 7);
    assert_eq!(f.ask("", "", free(&ids)), Answer::Done(Done {}));
}

#[test]
fn nobody_gives_back_what_is_anothers() {
    let mut f = fixture();
    f.open("a");
    f.open("b");
    let of_a = f.allocate("a", "", 2);
    let of_request = f.allocate("a", "r", 1);
    assert_eq!(code(f.ask("", "b", free(&of_a))), Code::NotAllowed);
    assert_eq!(code(f.ask("", "", free(&of_a))), Code::NotAllowed);
    assert_eq!(code(f.ask("", "a", free(&of_request))), Code::NotAllowed);
    assert_eq!(code(f.ask("", "b", free_request("r"))), Code::NotFound);
    // The first is a's own, the second is free: nothing happens to either.
    assert_eq!(
        code(f.ask("", "a", free(&[of_a[0], 9]))),
        Code::InvalidState
    );
    assert_eq!(
        code(f.ask("", "a", free(&[of_a[0], of_a[0]]))),
        Code::InvalidState
    );
    assert_eq!(
        code(f.ask("", "a", free(&[of_a[0], 0]))),
        Code::InvalidArgument
    );
    assert_eq!(code(f.ask("", "a", free(&[11]))), Code::InvalidArgument);
    assert_eq!(f.free(), 7);
    assert_eq!(f.ask("", "a", free(&of_a)), Answer::Done(Done {}));
    assert_eq!(
        f.ask("", "a", free_request("r")),
        Answer::Freed(Freed { num_blocks: 1 })
    );
    assert_eq!(f.free(), 10);
}

#[test]
fn a_request_grows_and_goes_back_from_its_end() {
    let mut f = fixture();
    f.open("a");
    assert_eq!(ids(f.ask("", "a", up_to("r", 3))), [1, 2, 3]);
    assert_eq!(ids(f.ask("", "a", up_to("r", 5))), [4, 5]);
    assert!(ids(f.ask("", "a", up_to("r", 5))).is_empty());
    assert_eq!(
        code(f.ask("", "a", up_to("r", 12))),
        Code::ResourceExhausted
    );
    f.ask("", "a", cache(&[1, 2, 3, 4, 5], b"12345"));
    assert_eq!(
        f.ask("", "a", free_request("r")),
        Answer::Freed(Freed { num_blocks: 5 })
    );
    let all = Kind::GetAllFreeBlocks(GetAllFreeBlocks { limit: 0 });
    // Cached blocks go to the end of the queue, the last of the prompt first.
    assert_eq!(ids(f.ask("", "a", all)), [6, 7, 8, 9, 10, 5, 4, 3, 2, 1]);
    // What is found is the request's, and so the rest is all that has to be allocated.
    let find = Kind::GetCachedBlock(Box::new(GetCachedBlock {
        hashes: b"123x".to_vec(),
        hash_length: 1,
        touch: true,
        request_id: "s".to_owned(),
        ..GetCachedBlock::default()
    }));
    let step = replies(f.ask("", "a", batch(vec![find, up_to("s", 4)], false)));
    let Answer::CachedBlocks(found) = &step[0] else {
        panic!("{step:?}")
    };
    assert_eq!(
        (found.num_hashes, &found.block_ids[..]),
        (3, &[1, 2, 3][..])
    );
    assert_eq!(ids(step[1].clone()), [6]);
    assert_eq!(
        f.ask("", "a", free_request("s")),
        Answer::Freed(Freed { num_blocks: 4 })
    );
}

#[test]
fn the_operations_of_a_batch_stand_by_themselves() {
    let mut f = fixture();
    let ops = || {
        vec![
            allocate("", 4),
            allocate("", 7),
            allocate("", 6),
            batch(vec![], false),
        ]
    };
    let r = replies(f.ask("", "", batch(ops(), false)));
    assert_eq!(ids(r[0].clone()), [1, 2, 3, 4]);
    assert_eq!(code(r[1].clone()), Code::ResourceExhausted);
    assert_eq!(ids(r[2].clone()), [5, 6, 7, 8, 9, 10]);
    assert_eq!(code(r[3].clone()), Code::InvalidArgument);
    f.ask("", "", free(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]));
    // What came before the failure is not undone, what comes behind it is not done.
    let r = replies(f.ask("", "", batch(ops(), true)));
    assert_eq!(r.len(), 4);
    assert_eq!(code(r[1].clone()), Code::ResourceExhausted);
    assert_eq!(code(r[2].clone()), Code::Canceled);
    assert_eq!(code(r[3].clone()), Code::Canceled);
    assert_eq!(f.free(), 6);
    let many = vec![Kind::Ping(Ping::default()); MAX_BATCH + 1];
    assert_eq!(
        code(f.ask("", "", batch(many, false))),
        Code::InvalidArgument
    );
}

#[test]
fn an_answer_is_bounded_for_a_whole_batch() {
    let limits = Limits {
        blocks_per_call: 12,
        ..Limits::default()
    };
    let mut f = Fixture::new(limits, Publishing::Off);
    assert_eq!(
        code(f.ask("", "", allocate("", 13))),
        Code::ResourceExhausted
    );
    assert_eq!(
        code(f.ask("", "", allocate("", u32::MAX))),
        Code::ResourceExhausted
    );
    let all = || Kind::GetAllFreeBlocks(GetAllFreeBlocks { limit: 0 });
    let r = replies(f.ask("", "", batch(vec![all(), all(), all()], false)));
    let lens: Vec<usize> = r.into_iter().map(|a| ids(a).len()).collect();
    assert_eq!(lens, [10, 2, 0]);
    let look = Kind::GetCachedBlock(Box::new(GetCachedBlock {
        hashes: vec![0; 7],
        hash_length: 1,
        groups: vec![0, 1],
        ..GetCachedBlock::default()
    }));
    assert_eq!(code(f.ask("", "", look)), Code::ResourceExhausted);
}

#[test]
fn pools_are_shared_by_name_and_end_with_their_last_session() {
    let mut f = fixture();
    f.open("a");
    f.open("b");
    assert_eq!(code(f.ask("p", "a", allocate("", 1))), Code::NotFound);
    assert_eq!(code(f.ask("p", "", open_pool(9))), Code::InvalidArgument);
    assert_eq!(f.ask("p", "a", open_pool(9)), Answer::Done(Done {}));
    assert_eq!(code(f.ask("p", "b", open_pool(8))), Code::Mismatch);
    for _ in 0..2 {
        assert_eq!(f.ask("p", "b", open_pool(9)), Answer::Done(Done {}));
    }
    f.ask("p", "a", allocate("", 3));
    f.ask("p", "b", allocate("", 3));
    f.ask("p", "", allocate("", 1));
    let stats = |f: &mut Fixture| match f.ask("p", "", Kind::GetStats(GetStats {})) {
        Answer::Stats(stats) => Some((stats.free, stats.sessions)),
        _ => None,
    };
    assert_eq!(stats(&mut f), Some((1, 3)));
    f.ask("", "a", Kind::CloseSession(CloseSession {}));
    assert_eq!(stats(&mut f), Some((4, 2)));
    f.ask("", "b", Kind::CloseSession(CloseSession {}));
    assert_eq!(stats(&mut f), None);
    // A new pool of that name has nothing of the old one: also what nobody's session held is gone.
    f.open("c");
    f.ask("p", "c", open_pool(9));
    assert_eq!(stats(&mut f), Some((8, 1)));
    assert_eq!(code(f.ask("p", "", free(&[7]))), Code::InvalidState);
    // The server's own pool stays.
    assert_eq!(f.free(), 10);
}

#[test]
fn sessions_pools_and_blocks_are_bounded() {
    let limits = Limits {
        sessions: 2,
        pools: 2,
        blocks: 30,
        ..Limits::default()
    };
    let mut f = Fixture::new(limits, Publishing::Off);
    f.open("a");
    f.open("b");
    let open = Kind::Ping(Ping {
        open: true,
        ..Ping::default()
    });
    assert_eq!(code(f.ask("", "c", open.clone())), Code::ResourceExhausted);
    assert_eq!(
        code(f.ask("p", "a", open_pool(20))),
        Code::ResourceExhausted
    );
    assert_eq!(f.ask("p", "a", open_pool(19)), Answer::Done(Done {}));
    assert_eq!(code(f.ask("q", "a", open_pool(1))), Code::ResourceExhausted);
    let long = "x".repeat(MAX_NAME + 1);
    assert_eq!(code(f.ask("", &long, open)), Code::InvalidArgument);
    assert_eq!(code(f.ask(&long, "a", open_pool(1))), Code::InvalidArgument);
    let long = "x".repeat(super::super::MAX_REQUEST_ID + 1);
    assert_eq!(
        code(f.ask("", "a", allocate(&long, 1))),
        Code::InvalidArgument
    );
    let patient = Kind::Ping(Ping {
        open: true,
        timeout_ms: u64::MAX,
        ..Ping::default()
    });
    assert_eq!(code(f.ask("", "a", patient)), Code::InvalidArgument);
}

#[test]
fn published_events_are_numbered_and_end_with_the_pool() {
    let mut f = Fixture::new(Limits::default(), Publishing::Publish);
    let published = |f: &mut Fixture| -> Vec<EventBatch> {
        let read = |p: Published| {
            let batch = EventBatch::decode(&p.body[..]).unwrap();
            assert_eq!(batch.pool, p.topic);
            batch
        };
        f.service.take_published().into_iter().map(read).collect()
    };
    let blocks = f.allocate("", "", 2);
    assert_eq!(published(&mut f), []);
    f.ask("", "", cache(&blocks[..1], b"x"));
    // One batch for one request, however many operations it has.
    let evict = Kind::EvictBlocks(EvictBlocks {
        block_ids: blocks.clone(),
    });
    f.ask("", "", batch(vec![cache(&blocks[1..], b"y"), evict], false));
    let got = published(&mut f);
    assert_eq!(got.iter().map(|b| b.sequence).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(
        got.iter().map(|b| b.events.len()).collect::<Vec<_>>(),
        [1, 3]
    );
    assert_eq!(
        code(f.ask("", "", Kind::TakeEvents(TakeEvents {}))),
        Code::NotSupported
    );
    let Answer::Stats(stats) = f.ask("", "", Kind::GetStats(GetStats {})) else {
        panic!()
    };
    assert_eq!(stats.event_sequence, 2);
    f.open("a");
    let mut open = OpenPool {
        num_blocks: 4,
        ..OpenPool::default()
    };
    open.set_events(Events::Publish);
    f.ask("p", "a", Kind::OpenPool(open));
    f.ask("", "a", Kind::CloseSession(CloseSession {}));
    let last = published(&mut f);
    assert_eq!((&*last[0].pool, last[0].sequence), ("p", 1));
    assert_eq!(
        last[0].events[0].kind,
        Some(event::Kind::Cleared(Cleared {}))
    );
}

#[test]
fn what_cannot_be_read_is_answered() {
    let mut f = fixture();
    let mut answer = |bytes: &[u8]| {
        let now = Instant::now();
        Reply::decode(&f.service.handle(bytes, now).encode_to_vec()[..])
            .unwrap()
            .result
            .unwrap()
    };
    // Nothing; an unknown operation (field 999 of Operation); a broken length; no protobuf at all.
    for bytes in [
        &b""[..],
        b"\x1a\x03\xba\x3e\x00",
        b"\x1a\x7f\x01",
        b"\xff\xff\xff\xff\xff",
        b"GET / HTTP/1.1",
    ] {
        assert_eq!(code(answer(bytes)), Code::InvalidArgument, "{bytes:?}");
    }
    // Operations without their content.
    let mut f = fixture();
    for kind in [
        Kind::CacheFullBlocks(Box::default()),
        Kind::CachePartialBlock(Box::default()),
        Kind::AnnounceBlocks(Box::default()),
    ] {
        assert_eq!(code(f.ask("", "", kind)), Code::InvalidArgument);
    }
    assert_eq!(f.free(), 10);
}

#[test]
fn metrics_name_every_pool() {
    let mut f = fixture();
    f.open("a");
    f.ask("p", "a", open_pool(5));
    f.ask("p", "a", allocate("", 2));
    f.ask("", "a", allocate("", 99));
    let Answer::Metrics(metrics) = f.ask("", "", Kind::GetMetrics(GetMetrics {})) else {
        panic!()
    };
    for line in [
        "kv_cache_server_sessions 1",
        "kv_cache_server_errors_total 1",
        "kv_cache_server_pool_free_blocks{pool=\"default\"} 10",
        "kv_cache_server_pool_free_blocks{pool=\"p\"} 2",
        "kv_cache_server_pool_allocated_blocks_total{pool=\"p\"} 2",
        "# TYPE kv_cache_server_pool_free_blocks gauge",
    ] {
        assert!(
            metrics.text.lines().any(|l| l == line),
            "{line} in\n{}",
            metrics.text
        );
    }
    assert_eq!(
        f.ask("", "", Kind::Shutdown(Shutdown {})),
        Answer::Done(Done {})
    );
    assert!(f.service.is_stopping());
    let mut f = Fixture::new(
        Limits {
            shutdown: false,
            ..Limits::default()
        },
        Publishing::Off,
    );
    assert_eq!(
        code(f.ask("", "", Kind::Shutdown(Shutdown {}))),
        Code::NotAllowed
    );
    assert!(!f.service.is_stopping());
}
