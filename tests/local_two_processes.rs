//! The local transport between two real processes.

mod local_support;

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvferry::error::Status;
use kvferry::memory::MemKind;
use kvferry::transport::{self, Op, Progress, Transfer, TransferState};
use local_support::puppet::{self, Puppet};
use local_support::*;

#[test]
fn puppet_main() {
    puppet::main();
}

/// Scattered pages in both directions, by content, with one and with two copying threads.
#[test]
fn scattered_pages_arrive_where_they_belong() {
    const PAGE: usize = 8192;
    const PAGES: usize = 2000;
    let mut puppet = Puppet::start("owner", PAGE * PAGES);
    for threads in [1, 2] {
        let mut options = options("reader");
        options.copy_threads = threads;
        let agent = transport::create(&options).unwrap();
        assert_eq!(agent.add_remote(&puppet.metadata).unwrap(), "owner");
        let target = Buffer::new(PAGE * PAGES);
        register(&*agent, &[target.whole()]);
        let mut random = Random(7 + u64::from(threads));
        let (to, from) = (random.shuffled(PAGES), random.shuffled(PAGES));
        let local: Vec<_> = to
            .iter()
            .map(|&i| target.part(i as usize * PAGE, PAGE))
            .collect();
        let remote: Vec<_> = from
            .iter()
            .map(|&i| puppet.part(i as usize * PAGE, PAGE))
            .collect();
        copy(&*agent, Op::Read, &local, &remote, "owner");
        for (&l, &r) in to.iter().zip(&from) {
            let (l, r) = (l as usize * PAGE, r as usize * PAGE);
            let expected: Vec<u8> = (0..PAGE).map(|i| pattern(1, r + i)).collect();
            assert_eq!(&target.bytes()[l..l + PAGE], expected, "page at {l}");
        }
        // And back to other places: the owner must see every byte.
        let seed = 40 + u64::from(threads);
        let source = Buffer::filled(PAGE * PAGES, seed);
        register(&*agent, &[source.whole()]);
        let local: Vec<_> = (0..PAGES).map(|i| source.part(i * PAGE, PAGE)).collect();
        copy(&*agent, Op::Write, &local, &remote, "owner");
        for (i, &r) in from.iter().enumerate() {
            let question = format!("holds {} {PAGE} {seed} {}", r as usize * PAGE, i * PAGE);
            assert_eq!(puppet.tell(&question), "true");
        }
        agent.close().unwrap();
        assert_eq!(puppet.tell("fill 1"), "ok");
    }
    puppet.end();
}

#[test]
fn messages_arrive_after_the_bytes_and_in_order() {
    const LEN: usize = 1 << 20;
    let mut puppet = Puppet::start("receiver", LEN);
    let agent = agent("sender");
    agent.add_remote(&puppet.metadata).unwrap();
    let source = Buffer::filled(LEN, 77);
    register(&*agent, &[source.whole()]);
    let (local, remote) = ([source.whole()], [puppet.part(0, LEN)]);
    let write = transfer(&*agent, Op::Write, &local, &remote, "receiver").unwrap();
    agent.notify("receiver", &[0, 255, 10], None).unwrap();
    write.post(Some(b"bytes are in")).unwrap();
    for i in 0..50u8 {
        agent.notify("receiver", &[i], None).unwrap();
    }
    let numbers: String = (0..50u8).map(|i| format!(" sender:{i:02x}")).collect();
    let expected = format!(
        "sender:00ff0a sender:{}{numbers}",
        puppet::hex(b"bytes are in")
    );
    assert_eq!(puppet.tell("take 52"), expected);
    assert_eq!(puppet.tell(&format!("holds 0 {LEN} 77 0")), "true");
    // The other way round, with a message that does not fit into the socket in one go.
    let own = puppet::hex(&agent.metadata().unwrap());
    assert_eq!(puppet.tell(&format!("add {own}")), "sender");
    let long = "5a".repeat(3 << 20);
    assert_eq!(puppet.tell(&format!("notify sender {long}")), "ok");
    assert_eq!(puppet.tell("notify sender 01"), "ok");
    let came = take(&*agent, 2);
    assert_eq!(came[0].payload, vec![0x5a; 3 << 20]);
    assert_eq!(
        (&came[1].from[..], &came[1].payload[..]),
        ("receiver", &[1u8][..])
    );
    agent.close().unwrap();
    puppet.end();
}

/// Posts over and over until the peer is lost, and returns the error.
fn until_lost(transfer: &dyn Transfer) -> kvferry::error::Error {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Err(e) = transfer.post(None) {
            return e;
        }
        assert!(Instant::now() < deadline, "the peer is not missed");
    }
}

#[test]
fn a_killed_peer_is_lost_and_nothing_else_is() {
    const LEN: usize = 4 << 20;
    let (mut victim, mut bystander) = (Puppet::start("victim", LEN), Puppet::start("other", LEN));
    let agent = agent("reader");
    let target = Buffer::new(2 * LEN);
    register(&*agent, &[target.whole()]);
    agent.add_remote(&victim.metadata).unwrap();
    agent.add_remote(&bystander.metadata).unwrap();
    let read = |puppet: &Puppet, offset: usize| {
        let (local, remote) = ([target.part(offset, LEN)], [puppet.part(0, LEN)]);
        transfer(&*agent, Op::Read, &local, &remote, &puppet.name).unwrap()
    };
    let (doomed, unharmed) = (read(&victim, 0), read(&bystander, LEN));
    doomed.post(None).unwrap();
    assert_eq!(target.bytes()[LEN - 1], pattern(1, LEN - 1));
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| until_lost(&*doomed));
        let other = scope.spawn(|| {
            while !ended.load(Ordering::Acquire) {
                assert_eq!(unharmed.post(None).unwrap(), TransferState::Done);
            }
        });
        victim.kill();
        let error = reading.join().unwrap();
        ended.store(true, Ordering::Release);
        assert_eq!(error.status(), Status::PeerLost, "{error}");
        assert!(error.message().contains("\"victim\""), "{error}");
        other.join().unwrap();
    });
    fails(doomed.state(), Status::PeerLost, &["\"victim\""]);
    fails(
        agent.notify("victim", b"", None),
        Status::PeerLost,
        &["\"victim\""],
    );
    fails(
        agent.connect("victim", &[]),
        Status::PeerLost,
        &["\"victim\""],
    );
    assert!(!agent.check_remote("victim", MemKind::Dram, &[]).unwrap());
    // The old metadata again: accepted, but nobody is there.
    agent.add_remote(&victim.metadata).unwrap();
    fails(
        agent.connect("victim", &[]),
        Status::PeerLost,
        &["\"victim\""],
    );
    // A successor of the same name.
    let successor = Puppet::start("victim", LEN);
    agent.add_remote(&successor.metadata).unwrap();
    fails(doomed.post(None), Status::PeerLost, &["\"victim\""]);
    assert_eq!(read(&successor, 0).post(None).unwrap(), TransferState::Done);
    agent.notify("other", b"still here", None).unwrap();
    let expected = format!("reader:{}", puppet::hex(b"still here"));
    assert_eq!(bystander.tell("take 1"), expected);
}

/// The loss is noticed without any call, also when a forked child keeps all connections open, and by
/// a reader that is a process of its own.
#[test]
fn a_killed_peer_is_missed_although_its_child_holds_the_connection() {
    let mut owner = Puppet::start("owner", 1 << 20);
    let agent = agent("watcher");
    agent.add_remote(&owner.metadata).unwrap();
    agent.connect("owner", &[]).unwrap();
    let mut reader = Puppet::start("reader", 1 << 20);
    let metadata = puppet::hex(&owner.metadata);
    assert_eq!(reader.tell(&format!("add {metadata}")), "owner");
    assert_eq!(reader.tell("connect owner"), "ok");
    reader.hint(&format!("read_on owner {} {}", owner.memory.addr, 1 << 20));
    let child: i32 = owner.tell("linger").parse().unwrap();
    assert!(agent.check_remote("owner", MemKind::Dram, &[]).unwrap());
    owner.kill();
    eventually("the owner is missed", || {
        !agent.check_remote("owner", MemKind::Dram, &[]).unwrap()
    });
    assert_eq!(reader.answer(), "PeerLost");
    // Nobody answers on the inherited socket, and that is known at once.
    agent.add_remote(&owner.metadata).unwrap();
    let start = Instant::now();
    fails(
        agent.connect("owner", &[]),
        Status::PeerLost,
        &["\"owner\""],
    );
    assert!(start.elapsed() < Duration::from_secs(4));
    // SAFETY: kill takes integers only; the child waits in pause until now.
    unsafe { libc::kill(child, libc::SIGKILL) };
}

#[test]
fn an_orderly_end_is_noticed_too() {
    let mut owner = Puppet::start("owner", 4096);
    let agent = agent("watcher");
    agent.add_remote(&owner.metadata).unwrap();
    agent.connect("owner", &[]).unwrap();
    assert_eq!(owner.tell("close"), "ok");
    eventually("the owner is missed", || {
        !agent.check_remote("owner", MemKind::Dram, &[]).unwrap()
    });
    fails(
        agent.notify("owner", b"", None),
        Status::PeerLost,
        &["\"owner\""],
    );
    owner.end();
}

/// Copying needs nothing of the owner, connecting and messages do, and neither waits for ever.
#[test]
fn a_stopped_peer_can_be_read_and_holds_nobody_for_ever() {
    let mut owner = Puppet::start("owner", 1 << 20);
    let agent = agent("reader");
    let target = Buffer::new(1 << 20);
    register(&*agent, &[target.whole()]);
    agent.add_remote(&owner.metadata).unwrap();
    agent.connect("owner", &[]).unwrap();
    owner.signal(libc::SIGSTOP);
    copy(
        &*agent,
        Op::Read,
        &[target.whole()],
        &[owner.part(0, 1 << 20)],
        "owner",
    );
    assert_eq!(target.bytes()[777], pattern(1, 777));
    let mut sent = 0u32;
    let message = vec![7u8; 100_000];
    let error = loop {
        let mut message = message.clone();
        message[..4].copy_from_slice(&sent.to_le_bytes());
        match agent.notify("owner", &message, None) {
            Ok(()) => sent += 1,
            Err(e) => break e,
        }
        assert!(sent < 1000, "a stopped peer takes messages without end");
    };
    assert_eq!(error.status(), Status::Busy, "{error}");
    let late = local_support::agent("late");
    late.add_remote(&owner.metadata).unwrap();
    let start = Instant::now();
    fails(
        late.connect("owner", &[]),
        Status::Timeout,
        &["\"owner\"", "5 s"],
    );
    assert!(start.elapsed() < Duration::from_secs(20));
    owner.signal(libc::SIGCONT);
    // What was taken arrives, whole and in order; what was refused does not.
    agent.notify("owner", b"end", None).unwrap();
    let came = owner.tell(&format!("take {}", sent + 1));
    let came: Vec<&str> = came.split(' ').collect();
    for (i, message) in came[..sent as usize].iter().enumerate() {
        let start = format!("reader:{}", puppet::hex(&(i as u32).to_le_bytes()));
        assert!(message.starts_with(&start), "message {i}");
        assert_eq!(message.len(), "reader:".len() + 200_000);
    }
    assert_eq!(
        came[sent as usize],
        format!("reader:{}", puppet::hex(b"end"))
    );
    late.connect("owner", &[]).unwrap();
}

#[test]
fn memory_that_is_gone_is_named() {
    let mut owner = Puppet::start("owner", 1 << 20);
    let agent = agent("reader");
    let target = Buffer::new(1 << 20);
    register(&*agent, &[target.whole()]);
    agent.add_remote(&owner.metadata).unwrap();
    // A page in the middle, so that the copy stops after some bytes.
    let page = (owner.memory.addr + 500_000) & !4095;
    assert_eq!(owner.tell(&format!("unmap {page}")), "0");
    let (local, remote) = ([target.whole()], [owner.part(0, 1 << 20)]);
    let read = transfer(&*agent, Op::Read, &local, &remote, "owner").unwrap();
    let left = owner.memory.addr + (1 << 20) - page;
    let place = format!("{left} bytes at {page:#x}");
    fails(
        read.post(None),
        Status::NotRegistered,
        &["\"owner\"", &place, "readable"],
    );
    let before = (page - owner.memory.addr) as usize;
    assert!((0..before).all(|i| target.bytes()[i] == pattern(1, i)));
    assert!(target.bytes()[before..].iter().all(|&b| b == 0));
    // The rest of it, and the peer, are as good as before.
    copy(
        &*agent,
        Op::Read,
        &[target.part(0, 4096)],
        &[owner.part(0, 4096)],
        "owner",
    );
    // The puppet cannot free what it does not have any more.
    owner.kill();
}

#[test]
fn agents_without_a_thread_answer_during_their_calls() {
    let mut other = Puppet::start_as("other", 4096, |command| {
        command.env("KVF_PUPPET_CALLER", "1");
    });
    let mut mine = options("mine");
    mine.progress = Progress::Caller;
    let agent = transport::create(&mine).unwrap();
    let target = Buffer::new(4096);
    register(&*agent, &[target.whole()]);
    agent.add_remote(&other.metadata).unwrap();
    let own = puppet::hex(&agent.metadata().unwrap());
    assert_eq!(other.tell(&format!("add {own}")), "mine");
    // Both connect to each other at the same time: each answers while it waits. The other one then
    // waits for a message, so that it goes on answering if it was done first.
    other.hint("connect mine");
    other.hint("take 1");
    agent.connect("other", &[]).unwrap();
    let whole = [other.part(0, 4096)];
    copy(&*agent, Op::Read, &[target.whole()], &whole, "other");
    assert!((0..4096).all(|i| target.bytes()[i] == pattern(1, i)));
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| take(&*agent, 1));
        assert_eq!(other.answer(), "ok");
        agent.notify("other", b"x", None).unwrap();
        assert_eq!(other.answer(), "mine:78");
        assert_eq!(other.tell("notify mine 0102"), "ok");
        assert_eq!(serving.join().unwrap()[0].payload, [1, 2]);
    });
    other.end();
}

#[test]
fn a_forked_child_is_told_and_does_no_harm() {
    let mut owner = Puppet::start("owner", 64 << 10);
    let agent = agent("reader");
    agent.add_remote(&owner.metadata).unwrap();
    agent.connect("owner", &[]).unwrap();
    assert_eq!(owner.tell("fork"), "0");
    // The parent's agent, its thread and its connections are untouched.
    agent.notify("owner", b"after the fork", None).unwrap();
    let expected = format!("reader:{}", puppet::hex(b"after the fork"));
    assert_eq!(owner.tell("take 1"), expected);
    owner.end();
}

/// Another user gets a refusal that says why, from either side. Only root can play this.
#[test]
fn other_users_are_refused() {
    use std::os::unix::process::CommandExt;
    // SAFETY: geteuid has no arguments and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("not root: cannot start a process of another user");
        return;
    }
    let directory = std::env::temp_dir().join(format!("kvferry-users-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let binary = directory.join("puppet");
    // The other user may not be able to reach the build folder.
    std::fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    let start = |name: &str, uid: u32| {
        let mut command = Command::new(&binary);
        command.uid(uid).gid(uid).current_dir("/");
        Puppet::start_with(command, name, 4096)
    };
    let (mut one, mut two) = (start("one", 65_533), start("two", 65_534));
    let (first, second) = (puppet::hex(&one.metadata), puppet::hex(&two.metadata));
    assert_eq!(one.tell(&format!("add {second}")), "two");
    assert_eq!(one.tell("connect two"), "PermissionDenied");
    // Root may read from both, and the service of the refused one goes on.
    let agent = agent("root");
    for puppet in [&one, &two] {
        agent.add_remote(&puppet.metadata).unwrap();
        let target = Buffer::new(4096);
        register(&*agent, &[target.whole()]);
        copy(
            &*agent,
            Op::Read,
            &[target.whole()],
            &[puppet.part(0, 4096)],
            &puppet.name,
        );
        assert_eq!(target.bytes()[99], pattern(1, 99));
    }
    // Their own look at root's agent passes; it is the service that refuses them.
    let roots = puppet::hex(&agent.metadata().unwrap());
    assert_eq!(one.tell(&format!("add {roots}")), "root");
    assert_eq!(one.tell("connect root"), "PermissionDenied");
    assert_eq!(two.tell(&format!("add {first}")), "one");
    one.end();
    two.end();
    std::fs::remove_dir_all(directory).unwrap();
}
