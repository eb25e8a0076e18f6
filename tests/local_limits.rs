//! What the local transport holds of the process: descriptors and threads. One test in a process of
//! its own, because others would open and close theirs meanwhile.

mod local_support;

use std::os::fd::OwnedFd;
use std::time::Duration;

use kvferry::error::Status;
use kvferry::transport::{self, Op, Progress};
use local_support::puppet::{self, Puppet};
use local_support::*;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// The only test, so that the harness has no other thread to count. In a puppet it is the puppet.
#[test]
fn puppet_main() {
    if std::env::var("KVF_PUPPET").is_ok() {
        return puppet::main();
    }
    nothing_is_left_behind();
    running_out_of_descriptors_is_survived();
}

/// Everything that an agent can open, over and over.
fn nothing_is_left_behind() {
    let owner = Puppet::start("owner", 4 << 20);
    let target = Buffer::new(4 << 20);
    let round = |i: u32| {
        let mut with = options("reader");
        with.copy_threads = 3;
        if i % 3 == 0 {
            with.progress = Progress::Caller;
        }
        let reader = transport::create(&with).unwrap();
        let neighbour = agent("neighbour");
        register(&*reader, &[target.whole()]);
        reader.add_remote(&owner.metadata).unwrap();
        reader.add_remote(&neighbour.metadata().unwrap()).unwrap();
        let (local, remote) = ([target.whole()], [owner.part(0, 4 << 20)]);
        let read = transfer(&*reader, Op::Read, &local, &remote, "owner").unwrap();
        read.post(Some(b"done")).unwrap();
        reader.notify("neighbour", b"hello", None).unwrap();
        match i % 4 {
            0 => reader.close().unwrap(),
            1 => reader.remove_remote("owner").unwrap(),
            2 => drop(neighbour),
            // The transfer is the last to go.
            _ => drop(reader),
        }
    };
    round(0);
    let before = (descriptors(), threads());
    for i in 0..200 {
        round(i);
    }
    eventually("all threads are gone", || threads() == before.1);
    assert_eq!((descriptors(), threads()), before);
    // No thread before there is an agent, one with it, the copying ones with the first copy.
    let mut with = options("lazy");
    with.copy_threads = 3;
    let lazy = transport::create(&with).unwrap();
    assert_eq!(threads(), before.1 + 1);
    register(&*lazy, &[target.whole()]);
    lazy.add_remote(&owner.metadata).unwrap();
    copy(
        &*lazy,
        Op::Read,
        &[target.part(0, 4096)],
        &[owner.part(0, 4096)],
        "owner",
    );
    assert_eq!(threads(), before.1 + 1);
    copy(
        &*lazy,
        Op::Read,
        &[target.whole()],
        &[owner.part(0, 4 << 20)],
        "owner",
    );
    assert_eq!(threads(), before.1 + 3);
    lazy.close().unwrap();
    eventually("all threads are gone", || threads() == before.1);
}

fn running_out_of_descriptors_is_survived() {
    let reader = agent("reader");
    let mut caller = Puppet::start("caller", 4096);
    let metadata = puppet::hex(&reader.metadata().unwrap());
    assert_eq!(caller.tell(&format!("add {metadata}")), "reader");
    reader.add_remote(&caller.metadata).unwrap();
    let mut hoard: Vec<OwnedFd> = Vec::new();
    let zero: OwnedFd = std::fs::File::open("/dev/zero").unwrap().into();
    let error = loop {
        match zero.try_clone() {
            Ok(fd) => hoard.push(fd),
            Err(e) => break e,
        }
        assert!(hoard.len() < 2_000_000, "there is no limit to reach");
    };
    assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
    fails(
        transport::create(&options("one too many")),
        Status::ResourceExhausted,
        &["too many"],
    );
    fails(
        reader.connect("caller", &[]),
        Status::ResourceExhausted,
        &["caller"],
    );
    // A caller waits until there is room again; nothing spins or breaks meanwhile.
    caller.hint("connect reader");
    let before = cpu_time();
    std::thread::sleep(Duration::from_millis(500));
    assert!(cpu_time() - before < Duration::from_millis(250), "it spins");
    hoard.clear();
    assert_eq!(caller.answer(), "ok");
    reader.connect("caller", &[]).unwrap();
    caller.end();
}

fn cpu_time() -> Duration {
    let mut spec = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a live timespec is filled.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut spec) };
    Duration::new(spec.tv_sec as u64, spec.tv_nsec as u32)
}
