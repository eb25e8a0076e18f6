//! Bad input, bad metadata and bad order, each a status with a message that names the value.

mod nixl_support;
use nixl_support::*;

use std::sync::Arc;

use kvferry::error::{Error, Status};
use kvferry::memory::{MemDesc, MemKind, RegDesc, StridedDesc};
use kvferry::transport::nixl::probe;
use kvferry::transport::{
    Descs, MetadataStore, Op, PreparedList, Side, SyncMode, TransferOptions, Transport,
};

const BLOCK: usize = 4096;

fn expect(error: Error, status: Status, named: &str) {
    assert_eq!(error.status(), status, "{error}");
    assert!(
        error.message().contains(named),
        "{named:?} is not in: {error}"
    );
}

#[test]
fn bad_arguments_are_statuses_that_name_the_value() {
    if !have_nixl() {
        return;
    }
    let p = pair(16 * BLOCK);
    let (a, dram) = (&p.a, MemKind::Dram);
    let none = TransferOptions::default();
    let (local, remote) = (
        p.local_list(&p.a_mem.blocks(BLOCK)),
        p.remote_list(&p.b_mem.blocks(BLOCK)),
    );
    let make =
        |li: &[i32], ri: &[i32]| fail(a.make_transfer(Op::Read, &*local, li, &*remote, ri, none));
    expect(make(&[16], &[0]), Status::InvalidArgument, "16");
    expect(make(&[0, 1], &[0, -3]), Status::InvalidArgument, "-3");
    expect(
        make(&[i32::MIN], &[0]),
        Status::InvalidArgument,
        "-2147483648",
    );
    expect(
        make(&[0, 1], &[0]),
        Status::Mismatch,
        "2 local indices against 1",
    );
    expect(make(&[], &[]), Status::InvalidArgument, "no local indices");
    let swapped = a.make_transfer(Op::Read, &*remote, &[0], &*local, &[0], none);
    assert_eq!(status(swapped), Status::InvalidArgument);
    let both_local = a.make_transfer(Op::Read, &*local, &[0], &*local, &[0], none);
    assert_eq!(status(both_local), Status::InvalidArgument);
    let foreign =
        p.b.make_transfer(Op::Read, &*local, &[0], &*remote, &[0], none);
    expect(fail(foreign), Status::InvalidArgument, &p.b_name);
    let unknown = TransferOptions {
        backends: &["NOPE"],
        ..none
    };
    let e = fail(a.make_transfer(Op::Read, &*local, &[0], &*remote, &[0], unknown));
    expect(e, Status::NotFound, "NOPE");

    // Lengths that differ pair by pair, in lists and directly.
    let uneven = p.local_list(&[p.a_mem.at(0, 100), p.a_mem.at(BLOCK, BLOCK)]);
    let e = fail(a.make_transfer(Op::Read, &*uneven, &[1, 0], &*remote, &[0, 1], none));
    expect(e, Status::Mismatch, "pair 1: 100 local bytes against 4096");
    let direct = |l: &[MemDesc], r: &[MemDesc], peer: &str| {
        fail(a.create_transfer(Op::Write, (dram, l), (dram, r), peer, none))
    };
    let (l, r) = (p.a_mem.at(0, 64), p.b_mem.at(0, 64));
    let longer = MemDesc { len: 65, ..r };
    expect(
        direct(&[l], &[longer], &p.b_name),
        Status::Mismatch,
        "64 local bytes against 65",
    );
    expect(
        direct(&[l, l], &[r], &p.b_name),
        Status::Mismatch,
        "2 local ranges against 1",
    );
    expect(
        direct(&[], &[], &p.b_name),
        Status::InvalidArgument,
        "no ranges",
    );
    expect(direct(&[l], &[r], "stranger"), Status::NotFound, "stranger");
    expect(direct(&[l], &[r], "a\0b"), Status::InvalidArgument, "NUL");

    // Ranges outside what was registered, here and there, and ranges that wrap around.
    let beyond = |d: MemDesc| MemDesc {
        addr: d.addr + 16 * BLOCK as u64 - 32,
        ..d
    };
    expect(
        direct(&[beyond(l)], &[r], &p.b_name),
        Status::NotRegistered,
        "64 bytes",
    );
    expect(
        direct(&[l], &[beyond(r)], &p.b_name),
        Status::NotRegistered,
        &p.b_name,
    );
    let huge = |d: MemDesc| MemDesc {
        len: u64::MAX - 8,
        ..d
    };
    expect(
        direct(&[huge(l)], &[huge(r)], &p.b_name),
        Status::InvalidArgument,
        "wraps",
    );
    let side = |side, d: &[MemDesc]| fail(a.prepare(side, dram, Descs::Flat(d), &[]));
    let theirs = Side::Remote(&p.b_name);
    expect(
        side(Side::Local, &[l, beyond(l)]),
        Status::NotRegistered,
        "number 1",
    );
    expect(
        side(theirs, &[r, r, beyond(r), r]),
        Status::NotRegistered,
        "number 2",
    );
    expect(side(theirs, &[huge(r)]), Status::InvalidArgument, "wraps");
    expect(side(theirs, &[]), Status::InvalidArgument, "no ranges");
    expect(
        side(Side::Remote("stranger"), &[r]),
        Status::NotFound,
        "stranger",
    );
    expect(
        side(Side::Remote(""), &[r]),
        Status::InvalidArgument,
        "empty",
    );
    let vram = a.prepare(theirs, MemKind::Vram, Descs::Flat(&[r]), &[]);
    assert_eq!(status(vram), Status::NotRegistered);
    let row = StridedDesc {
        addr: l.addr,
        len: 8,
        device: 0,
        stride: u64::MAX,
        count: 3,
    };
    let e = fail(a.prepare(Side::Local, dram, Descs::Strided(&[row]), &[]));
    expect(e, Status::InvalidArgument, "wraps");
    let e = fail(a.prepare(Side::Local, dram, Descs::Flat(&[l]), &["NOPE"]));
    expect(e, Status::NotFound, "NOPE");
    let other_device = MemDesc { device: 9, ..l };
    expect(
        side(Side::Local, &[other_device]),
        Status::NotRegistered,
        "device 9",
    );
}

#[test]
fn registrations_are_checked() {
    if !have_nixl() {
        return;
    }
    let a = agent(&unique("a"));
    let memory = Buffer::zeroed(8 * BLOCK);
    let dram = MemKind::Dram;
    let reg = |d: MemDesc| vec![RegDesc::from(d)];
    let d = memory.at(0, BLOCK);
    expect(
        fail(a.register(dram, &[], &[])),
        Status::InvalidArgument,
        "no ranges",
    );
    expect(
        fail(a.register(dram, &reg(MemDesc { len: 0, ..d }), &[])),
        Status::InvalidArgument,
        "empty",
    );
    let wraps = MemDesc { len: u64::MAX, ..d };
    expect(
        fail(a.register(dram, &reg(wraps), &[])),
        Status::InvalidArgument,
        "wraps",
    );
    expect(
        fail(a.register(dram, &reg(d), &["NOPE"])),
        Status::NotFound,
        "NOPE",
    );
    expect(
        fail(a.register(MemKind::File, &reg(d), &[])),
        Status::NoBackend,
        "FILE",
    );
    expect(
        fail(a.register(MemKind::Object, &reg(d), &["UCX"])),
        Status::NotSupported,
        "OBJECT",
    );
    expect(
        fail(a.deregister(dram, &reg(d), &[])),
        Status::NotRegistered,
        "not registered",
    );
    // Without a GPU, host memory is not GPU memory.
    assert_eq!(
        status(a.register(MemKind::Vram, &reg(d), &[])),
        Status::Backend
    );

    a.register(dram, &reg(d), &[]).expect("register");
    let part = MemDesc { len: 16, ..d };
    expect(
        fail(a.deregister(dram, &reg(part), &[])),
        Status::NotRegistered,
        "16 bytes",
    );
    let twice = [reg(d), reg(d)].concat();
    expect(
        fail(a.deregister(dram, &twice, &[])),
        Status::NotRegistered,
        "1 time(s)",
    );
    a.register(dram, &reg(d), &["UCX"]).expect("a second time");
    a.deregister(dram, &twice, &[]).expect("both");
    expect(
        fail(a.deregister(dram, &reg(d), &[])),
        Status::NotRegistered,
        "not registered",
    );
    let e = fail(a.query_memory(dram, &reg(d), "UCX"));
    expect(e, Status::NotSupported, "UCX");
    expect(
        fail(a.query_memory(dram, &reg(d), "NOPE")),
        Status::NotFound,
        "NOPE",
    );
}

#[test]
fn lists_in_deregistered_memory_are_refused() {
    if !have_nixl() {
        return;
    }
    let p = pair(16 * BLOCK);
    let extra = Buffer::zeroed(16 * BLOCK);
    p.a.register(MemKind::Dram, &extra.reg(), &[])
        .expect("register");
    let blocks = extra.blocks(BLOCK);
    let (void, fine) = (p.local_list(&blocks), p.local_list(&p.a_mem.blocks(BLOCK)));
    let remote = p.remote_list(&p.b_mem.blocks(BLOCK));
    let make = |list: &Arc<dyn PreparedList>| {
        p.a.make_transfer(
            Op::Read,
            &**list,
            &[3],
            &*remote,
            &[3],
            TransferOptions::default(),
        )
    };
    let made = make(&void).expect("still registered");
    p.a.deregister(MemKind::Dram, &extra.reg(), &[])
        .expect("deregister");
    expect(fail(make(&void)), Status::NotRegistered, "deregistered");
    expect(fail(made.post(None)), Status::NotRegistered, "deregistered");
    assert_eq!(status(made.cost()), Status::NotRegistered);
    run(&make(&fine).expect("untouched")).expect("read");
    // Registering the same memory again does not revive what pointed to the old registration.
    p.a.register(MemKind::Dram, &extra.reg(), &[])
        .expect("again");
    assert_eq!(status(make(&void)), Status::NotRegistered);
    run(&make(&p.local_list(&blocks)).expect("new list")).expect("read");
}

#[test]
fn peers_come_and_go() {
    if !have_nixl() {
        return;
    }
    let p = pair(16 * BLOCK);
    let a = &p.a;
    expect(
        fail(a.remove_remote("stranger")),
        Status::NotFound,
        "stranger",
    );
    expect(
        fail(a.connect("stranger", &[])),
        Status::NotFound,
        "stranger",
    );
    expect(
        fail(a.add_remote(&a.metadata().expect("own"))),
        Status::InvalidArgument,
        &p.a_name,
    );
    expect(
        fail(a.remove_remote(&p.a_name)),
        Status::InvalidArgument,
        &p.a_name,
    );
    assert!(
        !a.check_remote("stranger", MemKind::Dram, &[])
            .expect("check")
    );
    assert!(
        a.check_remote(&p.b_name, MemKind::Dram, &[])
            .expect("check")
    );
    assert!(
        a.check_remote(&p.b_name, MemKind::Dram, &[p.b_mem.at(5, 10)])
            .expect("check")
    );
    assert!(
        !a.check_remote(&p.b_name, MemKind::Dram, &[p.a_mem.at(5, 10)])
            .expect("check")
    );
    a.connect(&p.b_name, &[]).expect("connect");
    a.connect(&p.b_name, &["UCX"]).expect("connect");

    let (local, remote) = (
        p.local_list(&p.a_mem.blocks(BLOCK)),
        p.remote_list(&p.b_mem.blocks(BLOCK)),
    );
    let make = |remote: &Arc<dyn PreparedList>| {
        a.make_transfer(
            Op::Read,
            &*local,
            &[0],
            &**remote,
            &[0],
            TransferOptions::default(),
        )
    };
    let made = make(&remote).expect("make");
    let theirs = p.b.metadata().expect("metadata");
    assert_eq!(a.add_remote(&theirs).expect("the same again"), p.b_name);
    run(&made).expect("is still good");
    a.remove_remote(&p.b_name).expect("remove");
    expect(fail(made.post(None)), Status::PeerLost, &p.b_name);
    expect(fail(make(&remote)), Status::PeerLost, &p.b_name);
    expect(
        fail(a.notify(&p.b_name, b"x", None)),
        Status::NotFound,
        &p.b_name,
    );
    // Loaded again, it is another peer to what was made before.
    a.add_remote(&theirs).expect("load");
    assert_eq!(status(make(&remote)), Status::PeerLost);
    assert_eq!(status(made.post(None)), Status::PeerLost);
    run(&make(&p.remote_list(&p.b_mem.blocks(BLOCK))).expect("make")).expect("read");
    assert_eq!(p.a_mem.bytes()[..BLOCK], p.b_mem.bytes()[..BLOCK]);
}

#[test]
fn partial_metadata_adds_up() {
    if !have_nixl() {
        return;
    }
    let (a_name, b_name) = (unique("a"), unique("b"));
    let (a, b) = (agent(&a_name), agent(&b_name));
    let (one, two, mine) = (
        Buffer::new(BLOCK, pattern(1)),
        Buffer::new(BLOCK, pattern(2)),
        Buffer::zeroed(BLOCK),
    );
    for memory in [&one, &two] {
        b.register(MemKind::Dram, &memory.reg(), &[])
            .expect("register");
    }
    a.register(MemKind::Dram, &mine.reg(), &[])
        .expect("register");
    let partial = |memory: &Buffer, connection| {
        b.partial_metadata(MemKind::Dram, &memory.reg(), connection, &[])
    };
    let covered = |memory: &Buffer| {
        a.check_remote(&b_name, MemKind::Dram, &[memory.all()])
            .expect("check")
    };

    let e = fail(a.add_remote(&partial(&one, false).expect("partial")));
    expect(e, Status::NotFound, &b_name);
    a.add_remote(&partial(&one, true).expect("partial"))
        .expect("load");
    assert!(covered(&one) && !covered(&two));
    a.add_remote(&partial(&two, false).expect("partial"))
        .expect("load");
    assert!(covered(&one) && covered(&two));
    for memory in [&one, &two] {
        let (l, r) = ([mine.all()], [memory.all()]);
        let (l, r) = ((MemKind::Dram, &l[..]), (MemKind::Dram, &r[..]));
        let t = a
            .create_transfer(Op::Read, l, r, &b_name, TransferOptions::default())
            .expect("make");
        run(&t).expect("read");
        assert_eq!(mine.bytes(), memory.bytes());
    }
    // Of all registered memory, with connections: the same bytes as the whole.
    let all: Vec<RegDesc> = {
        let mut all = [one.reg(), two.reg()].concat();
        all.sort_by_key(|d| d.range.addr);
        all
    };
    let whole = b.metadata().expect("whole");
    assert_eq!(
        b.partial_metadata(MemKind::Dram, &all, true, &[])
            .expect("partial"),
        whole
    );
    assert_eq!(
        b.partial_metadata(MemKind::Dram, &all, true, &["UCX"])
            .expect("partial"),
        whole
    );
    let connections = b
        .partial_metadata(MemKind::Dram, &[], true, &[])
        .expect("connections");
    let c = agent(&unique("c"));
    assert_eq!(c.add_remote(&connections).expect("load"), b_name);
    assert!(
        !c.check_remote(&b_name, MemKind::Dram, &[one.all()])
            .expect("check")
    );
    let e = fail(b.partial_metadata(MemKind::Dram, &mine.reg(), true, &[]));
    expect(e, Status::NotRegistered, "not registered");
}

#[test]
fn damaged_metadata_is_refused_and_does_no_harm() {
    if !have_nixl() {
        return;
    }
    let p = pair(BLOCK);
    let reader = agent(&unique("reader"));
    let good = p.b.metadata().expect("metadata");
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut cases: Vec<Vec<u8>> = vec![Vec::new(), b"nixlSerDes|".to_vec(), vec![0; 1 << 16]];
    for len in (0..good.len()).step_by(7) {
        cases.push(good[..len].to_vec());
    }
    for _ in 0..2000 {
        let mut bytes = good.clone();
        for _ in 0..=next() % 4 {
            let at = next() as usize % bytes.len();
            bytes[at] = bytes[at].wrapping_add(1 + (next() % 255) as u8);
        }
        cases.push(bytes);
        cases.push((0..next() % 300).map(|_| next() as u8).collect());
    }
    for bytes in cases {
        // One length is whole metadata that has lost its seal, which NIXL agents do not have.
        if good.starts_with(&bytes) && good[bytes.len()..].starts_with(b"kvferry-fnv64:") {
            continue;
        }
        let e = fail(reader.add_remote(&bytes));
        assert_eq!(e.status(), Status::PeerIncompatible, "{e}");
    }
    assert_eq!(
        reader.add_remote(&good).expect("the good one still loads"),
        p.b_name
    );
}

#[test]
fn metadata_by_address_goes_through_listeners() {
    if !have_nixl() {
        return;
    }
    let port = free_port();
    let (a_name, b_name) = (unique("a"), unique("b"));
    let mut o = options(&b_name);
    o.listen_port = Some(port);
    let b = kvferry::transport::create(&o).expect("an agent");
    let mut o = options(&a_name);
    o.listen_port = Some(free_port());
    let a = kvferry::transport::create(&o).expect("an agent");
    let (mine, theirs) = (Buffer::zeroed(BLOCK), Buffer::new(BLOCK, pattern(5)));
    a.register(MemKind::Dram, &mine.reg(), &[])
        .expect("register");
    b.register(MemKind::Dram, &theirs.reg(), &[])
        .expect("register");
    let to = MetadataStore::Address {
        host: "localhost",
        port,
    };
    let knows = |who: &Arc<dyn Transport>, whom: &str| {
        wait("metadata", || {
            who.check_remote(whom, MemKind::Dram, &[])
                .expect("check")
                .then_some(())
        });
    };
    a.fetch_metadata(&b_name, to, None).expect("fetch");
    knows(&a, &b_name);
    a.send_metadata(to).expect("send");
    knows(&b, &a_name);
    let (l, r) = ([mine.all()], [theirs.all()]);
    let (l, r) = ((MemKind::Dram, &l[..]), (MemKind::Dram, &r[..]));
    run(&a
        .create_transfer(Op::Read, l, r, &b_name, TransferOptions::default())
        .expect("make"))
    .expect("read");
    assert_eq!(mine.bytes(), theirs.bytes());
    a.invalidate_metadata(to).expect("invalidate");
    wait("forgetting", || {
        (!b.check_remote(&a_name, MemKind::Dram, &[]).expect("check")).then_some(())
    });
    a.send_partial_metadata(MemKind::Dram, &mine.reg(), true, &[], to, None)
        .expect("send");
    wait("ranges", || {
        b.check_remote(&a_name, MemKind::Dram, &[mine.all()])
            .expect("check")
            .then_some(())
    });

    let deaf = agent(&unique("deaf"));
    let e = fail(deaf.send_metadata(to));
    expect(e, Status::InvalidState, "listen port");
    expect(
        fail(a.fetch_metadata(&b_name, to, Some("label"))),
        Status::NotSupported,
        "label",
    );
    let e = fail(a.send_partial_metadata(MemKind::Dram, &mine.reg(), true, &[], to, Some("l")));
    expect(e, Status::NotSupported, "\"l\"");
    assert_eq!(
        status(a.send_metadata(MetadataStore::Central)),
        Status::NotSupported
    );
    let nowhere = MetadataStore::Address {
        host: "no.such.host.invalid",
        port,
    };
    expect(
        fail(a.send_metadata(nowhere)),
        Status::NotFound,
        "no.such.host.invalid",
    );
    let zero = MetadataStore::Address {
        host: "localhost",
        port: 0,
    };
    expect(
        fail(a.send_metadata(zero)),
        Status::InvalidArgument,
        "port 0",
    );
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.local_addr().expect("address").port()
}

#[test]
fn agents_and_backends_are_checked() {
    if !have_nixl() {
        return;
    }
    expect(
        fail(kvferry::transport::create(&options(""))),
        Status::InvalidArgument,
        "empty",
    );
    expect(
        fail(kvferry::transport::create(&options("a\0b"))),
        Status::InvalidArgument,
        "NUL",
    );
    let mut o = options(&unique("a"));
    o.backends = Some(vec![("NOPE".into(), Vec::new())]);
    expect(
        fail(kvferry::transport::create(&o)),
        Status::NotFound,
        "NOPE",
    );
    o.backends = Some(vec![(
        "UCX".into(),
        vec![("engine_config".into(), "TLS=nonsense".into())],
    )]);
    expect(
        fail(kvferry::transport::create(&o)),
        Status::Backend,
        "TLS=nonsense",
    );

    o.backends = Some(Vec::new());
    o.worker_threads = 2;
    let bare = kvferry::transport::create(&o).expect("no backends");
    assert!(bare.backends().is_empty());
    assert_eq!(status(bare.metadata()), Status::NoBackend);
    assert_eq!(status(bare.notifications(&[])), Status::NoBackend);
    let memory = Buffer::zeroed(BLOCK);
    assert_eq!(
        status(bare.register(MemKind::Dram, &memory.reg(), &[])),
        Status::NoBackend
    );
    assert!(
        bare.plugins()
            .expect("plugins")
            .contains(&"UCX".to_string())
    );
    let info = bare.plugin_info("UCX").expect("plugin");
    assert!(
        info.kinds.contains(&MemKind::Dram) && info.params.iter().any(|(k, _)| k == "num_workers")
    );
    expect(fail(bare.plugin_info("NOPE")), Status::NotFound, "NOPE");
    expect(fail(bare.backend_info("UCX")), Status::NotFound, "UCX");
    let nul = [("a\0".to_string(), String::new())];
    expect(
        fail(bare.create_backend("UCX", &nul)),
        Status::InvalidArgument,
        "NUL",
    );
    bare.create_backend("UCX", &[]).expect("create");
    expect(
        fail(bare.create_backend("UCX", &[])),
        Status::InvalidArgument,
        "UCX",
    );
    assert_eq!(bare.backends(), ["UCX"]);
    let info = bare.backend_info("UCX").expect("backend");
    assert!(
        info.params
            .contains(&("num_threads".to_string(), "2".to_string())),
        "{info:?}"
    );
}

#[test]
fn storage_backends_know_their_files() {
    if !have_nixl() {
        return;
    }
    let mut o = options(&unique("posix"));
    o.backends = Some(vec![
        ("UCX".into(), Vec::new()),
        ("POSIX".into(), Vec::new()),
    ]);
    o.sync_mode = SyncMode::Strict;
    let a = match kvferry::transport::create(&o) {
        Ok(a) => a,
        // Where the kernel offers no asynchronous I/O, the plugin cannot be made.
        Err(e) => return expect(e, Status::Backend, "POSIX"),
    };
    let name = o.name.clone();
    let path = std::env::temp_dir().join(unique("kvferry-posix"));
    std::fs::write(&path, vec![0u8; BLOCK]).expect("a file");
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .expect("open");
    use std::os::fd::AsRawFd;
    let range = MemDesc {
        addr: 0,
        len: BLOCK as u64,
        device: file.as_raw_fd() as u64,
    };
    let named = RegDesc {
        range,
        meta: path.to_string_lossy().into_owned().into_bytes(),
    };
    let missing = RegDesc {
        range,
        meta: b"/no/such/file".to_vec(),
    };
    let answers = a
        .query_memory(MemKind::File, &[named.clone(), missing], "POSIX")
        .expect("query");
    assert!(
        answers[0].as_ref().is_some_and(|p| !p.is_empty()),
        "{answers:?}"
    );
    assert_eq!(answers[1], None);

    let memory = Buffer::new(BLOCK, pattern(9));
    a.register(MemKind::Dram, &memory.reg(), &[])
        .expect("register");
    a.register(MemKind::File, std::slice::from_ref(&named), &["POSIX"])
        .expect("register");
    let (l, r) = ([memory.all()], [range]);
    let (l, r) = ((MemKind::Dram, &l[..]), (MemKind::File, &r[..]));
    let t = a
        .create_transfer(Op::Write, l, r, &name, TransferOptions::default())
        .expect("make");
    assert_eq!(t.backend().expect("backend"), "POSIX");
    run(&t).expect("write");
    assert_eq!(std::fs::read(&path).expect("read"), memory.bytes());
    a.deregister(MemKind::File, &[named], &[])
        .expect("deregister");
    a.deregister(MemKind::Dram, &memory.reg(), &[])
        .expect("deregister from both");
    std::fs::remove_file(path).expect("clean up");
}

#[test]
fn a_process_has_one_nixl() {
    if !have_nixl() {
        return;
    }
    let first = agent(&unique("first"));
    let report = probe(None);
    let path = report.path.clone().expect("a path");
    assert!(path.is_file() && report.found_by.is_some() && report.error.is_none());
    let mut o = options(&unique("second"));
    o.nixl_library = Some("/somewhere/else/libnixl_capi.so".into());
    let e = fail(kvferry::transport::create(&o));
    expect(e, Status::InvalidState, "/somewhere/else/libnixl_capi.so");
    assert!(probe(o.nixl_library.as_deref()).error.is_some());
    o.nixl_library = Some(path.to_string_lossy().into_owned());
    kvferry::transport::create(&o).expect("the same one");
    o.name = unique("third");
    o.nixl_plugin_dir = Some(std::env::temp_dir().to_string_lossy().into_owned());
    let e = fail(kvferry::transport::create(&o));
    assert_eq!(e.status(), Status::InvalidState, "{e}");
    drop(first);
}
