//! The local transport between agents of one process, and what it answers to wrong use.

mod local_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvferry::error::Status;
use kvferry::memory::{MemDesc, MemKind, RegDesc, StridedDesc};
use kvferry::transport::{
    self, Descs, MetadataStore, Op, Progress, Side, Transfer, TransferOptions, TransferState,
    Transport,
};
use local_support::*;

/// Two agents that know each other, each with registered memory.
fn pair(len: usize) -> (Arc<dyn Transport>, Buffer, Arc<dyn Transport>, Buffer) {
    let (a, b) = (agent("a"), agent("b"));
    let (mine, theirs) = (Buffer::new(len), Buffer::filled(len, 3));
    register(&*a, &[mine.whole()]);
    register(&*b, &[theirs.whole()]);
    assert_eq!(a.add_remote(&b.metadata().unwrap()).unwrap(), "b");
    assert_eq!(b.add_remote(&a.metadata().unwrap()).unwrap(), "a");
    (a, mine, b, theirs)
}

fn flat<'a>(
    agent: &dyn Transport,
    side: Side<'a>,
    ranges: &[MemDesc],
) -> Arc<dyn transport::PreparedList> {
    agent
        .prepare(side, MemKind::Dram, Descs::Flat(ranges), &[])
        .unwrap()
}

fn make(
    agent: &dyn Transport,
    op: Op,
    local: &dyn transport::PreparedList,
    l: &[i32],
    remote: &dyn transport::PreparedList,
    r: &[i32],
) -> kvferry::error::Result<Arc<dyn Transfer>> {
    agent.make_transfer(op, local, l, remote, r, TransferOptions::default())
}

/// A transfer that takes long: the same memory over and over.
fn endless(agent: &dyn Transport, mine: &Buffer, theirs: &Buffer, peer: &str) -> Arc<dyn Transfer> {
    let (local, remote) = (
        [mine.whole()].repeat(40_000),
        [theirs.whole()].repeat(40_000),
    );
    transfer(agent, Op::Read, &local, &remote, peer).unwrap()
}

#[test]
fn pages_picked_by_index_are_read_and_written() {
    const PAGE: usize = 512;
    const PAGES: usize = 300;
    let (a, mut mine, _b, theirs) = pair(PAGE * PAGES);
    let row = |buffer: &Buffer| StridedDesc {
        addr: buffer.addr(),
        len: PAGE as u64,
        device: 0,
        stride: PAGE as u64,
        count: PAGES as u64,
    };
    let pages: Vec<MemDesc> = (0..PAGES).map(|i| mine.part(i * PAGE, PAGE)).collect();
    let local = flat(&*a, Side::Local, &pages);
    // One row in two pieces, so that the numbering across rows is seen too.
    let (mut low, mut high) = (row(&theirs), row(&theirs));
    low.count = 100;
    high.count = 200;
    high.addr += 100 * PAGE as u64;
    let remote = a
        .prepare(
            Side::Remote("b"),
            MemKind::Dram,
            Descs::Strided(&[low, high]),
            &[],
        )
        .unwrap();
    assert_eq!((local.len(), remote.len()), (PAGES, PAGES));
    let mut random = Random(99);
    let (l, r) = (random.shuffled(PAGES), random.shuffled(PAGES));
    let read = make(&*a, Op::Read, &*local, &l, &*remote, &r).unwrap();
    fails(read.state(), Status::NotPosted, &[]);
    assert_eq!(read.post(None).unwrap(), TransferState::Done);
    let page = |buffer: &Buffer, i: i32| buffer.bytes()[i as usize * PAGE..][..PAGE].to_vec();
    for (&l, &r) in l.iter().zip(&r) {
        assert_eq!(page(&mine, l), page(&theirs, r));
    }
    // The same lists the other way, only some of the pages, and posted twice.
    let before = theirs.bytes().to_vec();
    let write = make(&*a, Op::Write, &*local, &[5, 7], &*remote, &[150, 99]).unwrap();
    for seed in [10, 11] {
        mine.fill(seed);
        assert_eq!(write.post(None).unwrap(), TransferState::Done);
        assert_eq!(page(&theirs, 150), page(&mine, 5));
        assert_eq!(page(&theirs, 99), page(&mine, 7));
    }
    let changed: Vec<usize> = (0..PAGES)
        .filter(|i| before[i * PAGE..][..PAGE] != theirs.bytes()[i * PAGE..][..PAGE])
        .collect();
    assert_eq!(changed, [99, 150]);
}

#[test]
fn an_agent_can_copy_within_its_own_memory() {
    let a = agent("a");
    let buffer = Buffer::filled(4096, 5);
    register(&*a, &[buffer.whole()]);
    let before = buffer.bytes().to_vec();
    // Overlapping on purpose: bytes move as if through a third place.
    let (to, from) = ([buffer.part(100, 2000)], [buffer.part(0, 2000)]);
    let (local, remote) = (
        flat(&*a, Side::Local, &to),
        flat(&*a, Side::Remote("a"), &from),
    );
    let loopback = make(&*a, Op::Read, &*local, &[0], &*remote, &[0]).unwrap();
    assert_eq!(loopback.post(Some(b"moved")).unwrap(), TransferState::Done);
    assert_eq!(buffer.bytes()[100..2100], before[..2000]);
    assert_eq!(buffer.bytes()[2100..], before[2100..]);
    let message = &take(&*a, 1)[0];
    assert_eq!(
        (&message.from[..], &message.payload[..]),
        ("a", &b"moved"[..])
    );
    assert!(a.check_remote("a", MemKind::Dram, &to).unwrap());
    a.connect("a", &[]).unwrap();
}

#[test]
fn messages_keep_their_order_and_their_bytes() {
    let (a, mine, b, theirs) = pair(4096);
    let messages: Vec<Vec<u8>> = (0..200u32).map(|i| vec![i as u8; i as usize * 7]).collect();
    for message in &messages {
        a.notify("b", message, None).unwrap();
    }
    let came: Vec<Vec<u8>> = take(&*b, 200).into_iter().map(|m| m.payload).collect();
    assert_eq!(came, messages);
    // The message of a transfer, and one given for a single post.
    let options = TransferOptions {
        notification: Some(b"default"),
        ..TransferOptions::default()
    };
    let (local, remote) = ([mine.whole()], [theirs.whole()]);
    let (local, remote) = ((MemKind::Dram, &local[..]), (MemKind::Dram, &remote[..]));
    let read = a
        .create_transfer(Op::Read, local, remote, "b", options)
        .unwrap();
    read.post(None).unwrap();
    read.post(Some(b"other")).unwrap();
    read.post(None).unwrap();
    let came: Vec<Vec<u8>> = take(&*b, 3).into_iter().map(|m| m.payload).collect();
    assert_eq!(came, [&b"default"[..], b"other", b"default"]);
    let long = vec![1; (16 << 20) + 1];
    fails(
        a.notify("b", &long, None),
        Status::InvalidArgument,
        &["16777217", "16777216"],
    );
    fails(
        read.post(Some(&long)),
        Status::InvalidArgument,
        &["16777217"],
    );
    a.notify("b", &long[..16 << 20], None).unwrap();
    assert_eq!(take(&*b, 1)[0].payload.len(), 16 << 20);
}

#[test]
fn waiting_wakes_with_the_message_in_every_progress_mode() {
    for progress in [Progress::Thread, Progress::Caller, Progress::Spin] {
        let mut options = options("waiter");
        options.progress = progress;
        let waiter = transport::create(&options).unwrap();
        let sender = agent("sender");
        sender.add_remote(&waiter.metadata().unwrap()).unwrap();
        let start = Instant::now();
        waiter
            .wait_for_notification(Duration::from_millis(20))
            .unwrap();
        assert!(start.elapsed() >= Duration::from_millis(20), "{progress:?}");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| take(&*waiter, 1));
            // Whether it waits already or not, it must not sleep through this.
            sender.notify("waiter", b"wake", None).unwrap();
            assert_eq!(waiting.join().unwrap()[0].payload, b"wake");
        });
    }
}

#[test]
fn a_peer_that_takes_no_messages_holds_nobody_for_ever() {
    let (a, _, b, _) = pair(4096);
    let message = vec![0u8; 8 << 20];
    let mut sent = 0;
    let refused = loop {
        match a.notify("b", &message, None) {
            Ok(()) => sent += 1,
            Err(e) => break e,
        }
        assert!(sent < 100, "the inbox has no end");
    };
    assert_eq!(refused.status(), Status::Busy, "{refused}");
    assert_eq!(take(&*b, sent).len(), sent);
    a.notify("b", b"again", None).unwrap();
    assert_eq!(take(&*b, 1)[0].payload, b"again");
}

#[test]
fn wrong_arguments_are_named() {
    let (a, mine, _b, theirs) = pair(4096);
    use Status::*;
    let here = || mine.part(0, 64);
    let there = || theirs.part(0, 64);
    let try_copy = |l: &[MemDesc], r: &[MemDesc]| transfer(&*a, Op::Read, l, r, "b");

    fails(
        try_copy(&[here()], &[there(), there()]),
        Mismatch,
        &["1 local", "2 remote"],
    );
    fails(try_copy(&[], &[]), InvalidArgument, &["no ranges"]);
    let short = mine.part(64, 63);
    fails(
        try_copy(&[here(), short], &[there(), there()]),
        Mismatch,
        &["pair 1", "63 bytes", "has 64"],
    );
    let outside = range(mine.addr() + 4090, 7);
    let address = format!("7 bytes at {:#x}", outside.addr);
    fails(
        try_copy(&[outside], &[theirs.part(0, 7)]),
        NotRegistered,
        &[&address, "\"a\""],
    );
    let outside = range(theirs.addr() - 1, 64);
    let address = format!("64 bytes at {:#x}", outside.addr);
    fails(
        try_copy(&[here()], &[outside]),
        NotRegistered,
        &[&address, "\"b\""],
    );
    let zero = mine.part(0, 0);
    fails(
        try_copy(&[zero], &[theirs.part(0, 0)]),
        InvalidArgument,
        &["length of 0"],
    );
    let wrap = range(u64::MAX - 3, 8);
    fails(
        try_copy(&[wrap], &[theirs.part(0, 8)]),
        InvalidArgument,
        &["wraps around"],
    );
    let unknown = transfer(&*a, Op::Read, &[here()], &[there()], "nobody");
    fails(unknown, NotFound, &["\"nobody\""]);

    let kinds = a.create_transfer(
        Op::Read,
        (MemKind::Vram, &[here()]),
        (MemKind::Dram, &[there()]),
        "b",
        TransferOptions::default(),
    );
    fails(kinds, NotSupported, &["VRAM"]);
    let descs = [RegDesc::from(here())];
    fails(
        a.register(MemKind::File, &descs, &[]),
        NotSupported,
        &["FILE"],
    );
    fails(
        a.register(MemKind::Dram, &descs, &["UCX"]),
        NotFound,
        &["\"UCX\"", "\"local\""],
    );
    let nowhere = [RegDesc::from(range(0x1000, 32))];
    fails(
        a.register(MemKind::Dram, &nowhere, &[]),
        InvalidArgument,
        &["0x1000"],
    );
    fails(
        a.deregister(MemKind::Dram, &descs, &[]),
        NotRegistered,
        &["64 bytes"],
    );
    let part = a.partial_metadata(MemKind::Dram, &nowhere, true, &[]);
    fails(part, NotRegistered, &["0x1000"]);

    let local = flat(&*a, Side::Local, &[here(), mine.part(64, 64)]);
    let remote = flat(&*a, Side::Remote("b"), &[there()]);
    let pick = |l: &[i32], r: &[i32]| make(&*a, Op::Read, &*local, l, &*remote, r);
    fails(
        pick(&[0, 2], &[0, 0]),
        InvalidArgument,
        &["local index 2", "position 1", "2 ranges"],
    );
    fails(
        pick(&[0], &[-1]),
        InvalidArgument,
        &["remote index -1", "1 ranges"],
    );
    fails(pick(&[0], &[0, 0]), Mismatch, &["1 local", "2 remote"]);
    let swapped = make(&*a, Op::Read, &*remote, &[0], &*local, &[0]);
    fails(swapped, InvalidArgument, &["local side"]);
    let foreign = agent("foreign");
    let stolen = make(&*foreign, Op::Read, &*local, &[0], &*remote, &[0]);
    fails(stolen, InvalidArgument, &["another agent"]);

    let row = |addr, len, stride, count| StridedDesc {
        addr,
        len,
        device: 0,
        stride,
        count,
    };
    let rows = |row| a.prepare(Side::Local, MemKind::Dram, Descs::Strided(&[row]), &[]);
    fails(
        rows(row(mine.addr(), 64, 64, 65)),
        NotRegistered,
        &["64 bytes"],
    );
    fails(
        rows(row(mine.addr(), 64, u64::MAX, 3)),
        InvalidArgument,
        &["wrap"],
    );
    fails(
        rows(row(mine.addr(), 8, 0, u64::MAX)),
        InvalidArgument,
        &["2147483647"],
    );
    assert_eq!(rows(row(mine.addr(), 64, 0, 1000)).unwrap().len(), 1000);
    assert_eq!(rows(row(mine.addr(), 64, 0, 0)).unwrap().len(), 0);

    fails(a.create_backend("local", &[]), NotAllowed, &["exists"]);
    fails(a.create_backend("UCX", &[]), NotFound, &["UCX"]);
    fails(a.notify("nobody", b"", None), NotFound, &["nobody"]);
    fails(a.notify("b", b"", Some("UCX")), NotFound, &["UCX"]);
    fails(a.connect("nobody", &[]), NotFound, &["nobody"]);
    fails(a.remove_remote("nobody"), NotFound, &["nobody"]);
    fails(
        a.add_remote(&a.metadata().unwrap()),
        InvalidArgument,
        &["own name"],
    );
    fails(
        a.send_metadata(MetadataStore::Central),
        NotSupported,
        &["side channel"],
    );

    let mut bad = options("");
    fails(transport::create(&bad), InvalidArgument, &["name"]);
    bad.name = "x\0y".to_string();
    fails(transport::create(&bad), InvalidArgument, &["name"]);
    bad = options("x");
    bad.copy_threads = 65;
    fails(transport::create(&bad), InvalidArgument, &["65", "64"]);
    bad = options("x");
    bad.backends = Some(vec![("UCX".to_string(), vec![])]);
    fails(transport::create(&bad), NotFound, &["UCX"]);
    let with = |key: &str, value: &str| {
        let mut options = options("x");
        let params = vec![(key.to_string(), value.to_string())];
        options.backends = Some(vec![("local".to_string(), params)]);
        transport::create(&options)
    };
    fails(with("threads", "2"), InvalidArgument, &["threads"]);
    fails(with("copy_threads", "two"), InvalidArgument, &["two"]);
    let info = with("copy_threads", "2")
        .unwrap()
        .backend_info("local")
        .unwrap();
    assert_eq!(info.params, [("copy_threads".to_string(), "2".to_string())]);
    assert_eq!(info.kinds, [MemKind::Dram]);
}

#[test]
fn read_only_memory_can_be_read_but_not_written() {
    let (a, mine, b, _) = pair(4096);
    // SAFETY: a fresh mapping, unmapped at the end of the test when no agent uses it.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(page, libc::MAP_FAILED);
    let constant = [range(page as u64, 4096)];
    register(&*b, &constant);
    a.add_remote(&b.metadata().unwrap()).unwrap();
    copy(&*a, Op::Read, &[mine.whole()], &constant, "b");
    assert!(mine.bytes().iter().all(|&byte| byte == 0));
    let write = transfer(&*a, Op::Write, &[mine.whole()], &constant, "b");
    fails(write, Status::NotAllowed, &["read-only", "\"b\""]);
    // From prepared lists, which do not know yet what they are for.
    let local = flat(&*b, Side::Local, &constant);
    let remote = flat(&*b, Side::Remote("a"), &[mine.whole()]);
    let into = make(&*b, Op::Read, &*local, &[0], &*remote, &[0]);
    fails(into, Status::NotAllowed, &["read-only"]);
    assert!(make(&*b, Op::Write, &*local, &[0], &*remote, &[0]).is_ok());
    b.deregister(MemKind::Dram, &[constant[0].into()], &[])
        .unwrap();
    // SAFETY: the mapping from above.
    unsafe { libc::munmap(page, 4096) };
}

#[test]
fn what_the_owner_takes_back_is_not_touched_any_more() {
    let (a, mine, b, theirs) = pair(8192);
    let local = flat(&*a, Side::Local, &[mine.whole()]);
    let remote = flat(&*a, Side::Remote("b"), &[theirs.whole()]);
    let made = make(&*a, Op::Read, &*local, &[0], &*remote, &[0]).unwrap();
    made.post(None).unwrap();
    // The peer's memory: its metadata still names it, but it is in this process and asked itself.
    b.deregister(MemKind::Dram, &[theirs.whole().into()], &[])
        .unwrap();
    fails(made.post(None), Status::NotRegistered, &["\"b\""]);
    fails(made.state(), Status::NotRegistered, &["\"b\""]);
    let again = make(&*a, Op::Read, &*local, &[0], &*remote, &[0]);
    fails(again, Status::NotRegistered, &["\"b\""]);
    register(&*b, &[theirs.whole()]);
    assert_eq!(made.post(None).unwrap(), TransferState::Done);
    // The own memory.
    a.deregister(MemKind::Dram, &[mine.whole().into()], &[])
        .unwrap();
    fails(made.post(None), Status::NotRegistered, &["\"a\""]);
    let known = a.query_memory(MemKind::Dram, &[mine.whole().into()], "local");
    assert_eq!(known.unwrap(), [None]);
    register(&*a, &[mine.whole()]);
    let known = a.query_memory(MemKind::Dram, &[mine.whole().into()], "local");
    assert_eq!(known.unwrap(), [Some(vec![])]);
    // New metadata of the peer that does not name the memory any more.
    b.deregister(MemKind::Dram, &[theirs.whole().into()], &[])
        .unwrap();
    let empty = b.metadata().unwrap();
    register(&*b, &[theirs.whole()]);
    a.add_remote(&empty).unwrap();
    assert!(
        !a.check_remote("b", MemKind::Dram, &[theirs.whole()])
            .unwrap()
    );
    fails(made.post(None), Status::NotRegistered, &["\"b\""]);
    // A part of it, added to what is known.
    let half = [theirs.part(0, 4096).into()];
    let part = b
        .partial_metadata(MemKind::Dram, &half, false, &[])
        .unwrap();
    assert_eq!(a.add_remote(&part).unwrap(), "b");
    assert!(
        a.check_remote("b", MemKind::Dram, &[theirs.part(0, 4096)])
            .unwrap()
    );
    copy(
        &*a,
        Op::Read,
        &[mine.part(0, 4096)],
        &[theirs.part(0, 4096)],
        "b",
    );
    fails(made.post(None), Status::NotRegistered, &["\"b\""]);
    let stranger = agent("stranger");
    fails(
        stranger.add_remote(&part),
        Status::NotFound,
        &["connection info"],
    );
    let connection = b.partial_metadata(MemKind::Dram, &[], true, &[]).unwrap();
    assert_eq!(stranger.add_remote(&connection).unwrap(), "b");
    assert_eq!(stranger.add_remote(&part).unwrap(), "b");
    assert!(
        stranger
            .check_remote("b", MemKind::Dram, &[theirs.part(0, 4096)])
            .unwrap()
    );
}

#[test]
fn deregistering_waits_for_the_copy_that_is_inside() {
    let (a, mine, b, theirs) = pair(2 << 20);
    let made = endless(&*a, &mine, &theirs, "b");
    std::thread::scope(|scope| {
        let posting = scope.spawn(|| made.post(None));
        eventually("the copy runs", || {
            made.telemetry().is_ok_and(|t| t.total_bytes > 0)
        });
        b.deregister(MemKind::Dram, &[theirs.whole().into()], &[])
            .unwrap();
        // From here on the memory belongs to its owner alone: what is written to it stays, and the
        // copy must come to an end by itself.
        fails(posting.join().unwrap(), Status::NotRegistered, &["\"b\""]);
    });
}

#[test]
fn a_transfer_says_what_it_is_doing_and_stops_when_told() {
    for threads in [1, 2] {
        let (_, _, b, theirs) = pair(2 << 20);
        let mut with = options("canceller");
        with.copy_threads = threads;
        let a = transport::create(&with).unwrap();
        let mine = Buffer::new(2 << 20);
        register(&*a, &[mine.whole()]);
        a.add_remote(&b.metadata().unwrap()).unwrap();
        let made = endless(&*a, &mine, &theirs, "b");
        made.cancel().unwrap(); // Nothing to stop yet.
        std::thread::scope(|scope| {
            let posting = scope.spawn(|| made.post(Some(b"never sent")));
            eventually("it is under way", || {
                made.state()
                    .is_ok_and(|state| state == TransferState::InProgress)
            });
            fails(made.post(None), Status::RepostActive, &[]);
            eventually("bytes move", || made.telemetry().unwrap().total_bytes > 0);
            made.cancel().unwrap();
            fails(
                posting.join().unwrap(),
                Status::Canceled,
                &["canceled after"],
            );
        });
        fails(made.state(), Status::Canceled, &[]);
        let figures = made.telemetry().unwrap();
        assert!(figures.total_bytes > 0 && figures.total_bytes < 40_000u64 * (2 << 20));
        assert_eq!(figures.descriptors, 40_000);
        assert!(b.notifications(&[]).unwrap().is_empty());
        // A cancel that came too late does not hit the next post.
        let short = transfer(&*a, Op::Read, &[mine.whole()], &[theirs.whole()], "b").unwrap();
        short.post(None).unwrap();
        short.cancel().unwrap();
        assert_eq!(short.post(None).unwrap(), TransferState::Done);
        assert_eq!(mine.bytes(), theirs.bytes());
    }
}

#[test]
fn figures_are_those_of_the_transfer() {
    let (a, mine, b, theirs) = pair(8192);
    let local: Vec<MemDesc> = (0..8).map(|i| mine.part(i * 1024, 1024)).collect();
    let mut remote: Vec<MemDesc> = (0..8).map(|i| theirs.part(i * 1024, 1024)).collect();
    remote.swap(6, 7);
    let made = transfer(&*a, Op::Read, &local, &remote, "b").unwrap();
    fails(made.telemetry(), Status::NoTelemetry, &["not been posted"]);
    assert_eq!(made.backend().unwrap(), "local");
    let cost = made.cost().unwrap();
    assert!(cost.duration_us > 0 && cost.error_margin_us > 0 && cost.method == 0);
    made.post(None).unwrap();
    let figures = made.telemetry().unwrap();
    // Six pages in one run, and the two that were swapped.
    assert_eq!((figures.total_bytes, figures.descriptors), (8192, 3));
    assert!(figures.start_time_us > 0);
    assert!(figures.post_duration_us <= figures.transfer_duration_us);
    let mut silent = options("silent");
    silent.telemetry = false;
    let silent = transport::create(&silent).unwrap();
    register(&*silent, &[mine.whole()]);
    silent.add_remote(&b.metadata().unwrap()).unwrap();
    let made = transfer(&*silent, Op::Read, &local, &remote, "b").unwrap();
    made.post(None).unwrap();
    fails(
        made.telemetry(),
        Status::NoTelemetry,
        &["not enabled", "silent"],
    );
}

#[test]
fn agents_end_in_any_order() {
    let (a, mine, b, theirs) = pair(2 << 20);
    let made = transfer(&*a, Op::Read, &[mine.whole()], &[theirs.whole()], "b").unwrap();
    made.post(None).unwrap();
    // The owner closes: its memory is its own again.
    b.close().unwrap();
    b.close().unwrap();
    fails(b.metadata(), Status::InvalidState, &["closed"]);
    fails(made.post(None), Status::PeerLost, &["\"b\"", "closed"]);
    fails(a.notify("b", b"", None), Status::PeerLost, &["\"b\""]);
    // Another one of its name: not the same, until its metadata is loaded.
    let second = agent("b");
    register(&*second, &[theirs.whole()]);
    fails(made.post(None), Status::PeerLost, &[]);
    a.add_remote(&second.metadata().unwrap()).unwrap();
    fails(made.post(None), Status::PeerLost, &["taken its name"]);
    copy(&*a, Op::Read, &[mine.whole()], &[theirs.whole()], "b");
    // The handle goes first; the transfer keeps what it needs.
    let kept = transfer(&*a, Op::Read, &[mine.whole()], &[theirs.whole()], "b").unwrap();
    let list = flat(&*a, Side::Local, &[mine.whole()]);
    drop(a);
    assert_eq!(kept.post(None).unwrap(), TransferState::Done);
    drop(list);
    drop(second);
    drop(kept);
}

#[test]
fn closing_stops_a_running_transfer() {
    let (a, mine, _b, theirs) = pair(2 << 20);
    let made = endless(&*a, &mine, &theirs, "b");
    std::thread::scope(|scope| {
        let posting = scope.spawn(|| made.post(None));
        eventually("the copy runs", || {
            made.telemetry().is_ok_and(|t| t.total_bytes > 0)
        });
        a.close().unwrap();
        fails(posting.join().unwrap(), Status::Canceled, &["closed"]);
    });
    fails(made.state(), Status::Canceled, &[]);
    fails(made.post(None), Status::InvalidState, &["closed"]);
}

#[test]
fn removing_a_peer_ends_its_transfers() {
    let (a, mine, b, theirs) = pair(4096);
    let made = transfer(&*a, Op::Read, &[mine.whole()], &[theirs.whole()], "b").unwrap();
    a.remove_remote("b").unwrap();
    fails(made.post(None), Status::PeerLost, &["removed"]);
    assert!(!a.check_remote("b", MemKind::Dram, &[]).unwrap());
    a.add_remote(&b.metadata().unwrap()).unwrap();
    assert!(
        a.check_remote("b", MemKind::Dram, &[theirs.whole()])
            .unwrap()
    );
    copy(&*a, Op::Read, &[mine.whole()], &[theirs.whole()], "b");
    assert_eq!(mine.bytes(), theirs.bytes());
}

/// Everything at once, from many threads: copies that are checked, messages that are counted, memory
/// that comes and goes, agents that open and close.
#[test]
fn many_threads_do_not_disturb_each_other() {
    const PAGE: usize = 16 << 10;
    let mut with = options("hub");
    with.copy_threads = 3;
    let hub = transport::create(&with).unwrap();
    let owner = agent("owner");
    let source = Buffer::filled(PAGE * 64, 12);
    let restless = Buffer::filled(PAGE, 13);
    register(&*owner, &[source.whole(), restless.whole()]);
    hub.add_remote(&owner.metadata().unwrap()).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for worker in 0..4u64 {
            let (hub, source) = (&hub, &source);
            scope.spawn(move || {
                let mut random = Random(worker + 1);
                let mut target = Buffer::new(PAGE * 64);
                register(&**hub, &[target.whole()]);
                for round in 0..30 {
                    target.fill(round);
                    let order = random.shuffled(64);
                    let from: Vec<_> = order
                        .iter()
                        .map(|&i| source.part(i as usize * PAGE, PAGE))
                        .collect();
                    let to: Vec<_> = (0..64).map(|i| target.part(i * PAGE, PAGE)).collect();
                    let made = transfer(&**hub, Op::Read, &to, &from, "owner").unwrap();
                    made.post(Some(&worker.to_le_bytes())).unwrap();
                    for (i, &page) in order.iter().enumerate() {
                        let expected = &source.bytes()[page as usize * PAGE..][..PAGE];
                        assert_eq!(&target.bytes()[i * PAGE..][..PAGE], expected);
                    }
                }
                hub.deregister(MemKind::Dram, &[target.whole().into()], &[])
                    .unwrap();
            });
        }
        let (owner, restless, over, hub) = (&owner, &restless, &over, &hub);
        let churn = scope.spawn(move || {
            let mut visitors = 0;
            while !over.load(Ordering::Acquire) {
                let whole = [restless.whole().into()];
                owner.deregister(MemKind::Dram, &whole, &[]).unwrap();
                register(&**owner, &[restless.whole()]);
                visitors += 1;
                let visitor = agent(&format!("visitor {visitors}"));
                visitor.add_remote(&owner.metadata().unwrap()).unwrap();
                hub.add_remote(&visitor.metadata().unwrap()).unwrap();
                hub.notify(&format!("visitor {visitors}"), b"hello", None)
                    .unwrap();
                assert_eq!(take(&*visitor, 1)[0].from, "hub");
            }
        });
        let messages = take(&**owner, 4 * 30);
        let count = |worker: u64| {
            let payload = worker.to_le_bytes();
            messages.iter().filter(|m| m.payload == payload).count()
        };
        assert_eq!((0..4).map(count).collect::<Vec<_>>(), [30; 4]);
        over.store(true, Ordering::Release);
        churn.join().unwrap();
    });
}

#[test]
fn foreign_bytes_are_never_metadata() {
    let (a, _, b, _) = pair(4096);
    let good = b.metadata().unwrap();
    let mut random = Random(0x5eed);
    for _ in 0..20_000 {
        let mut bad = good.clone();
        match random.below(3) {
            0 => {
                bad = (0..random.below(200))
                    .map(|_| random.next() as u8)
                    .collect()
            }
            1 => bad.truncate(random.below(good.len())),
            _ => {
                let at = random.below(bad.len());
                bad[at] ^= 1 << random.below(8);
            }
        }
        fails(a.add_remote(&bad), Status::PeerIncompatible, &["metadata"]);
    }
    // And after all that, the peer is what it was.
    a.notify("b", b"still here", None).unwrap();
    assert_eq!(take(&*b, 1)[0].payload, b"still here");
}

#[test]
fn metadata_of_another_host_is_refused_by_name() {
    let (a, _, b, _) = pair(4096);
    // The documented layout: magic 8, version 2, flags 2, name 2 + 1, then the boot id and the
    // network namespace; FNV-1a at the end.
    let forge = |at: usize| {
        let mut bytes = b.metadata().unwrap();
        bytes[at] ^= 0xff;
        let body = bytes.len() - 8;
        let check = bytes[..body]
            .iter()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, &byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
            });
        bytes[body..].copy_from_slice(&check.to_le_bytes());
        bytes
    };
    fails(
        a.add_remote(&forge(15)),
        Status::PeerIncompatible,
        &["another host", "\"b\""],
    );
    fails(
        a.add_remote(&forge(31)),
        Status::PeerIncompatible,
        &["network namespace", "\"b\""],
    );
    let info = transport::local::inspect_metadata(&b.metadata().unwrap()).unwrap();
    assert_eq!(
        (&info.agent[..], info.ranges.len(), info.whole),
        ("b", 1, true)
    );
}
