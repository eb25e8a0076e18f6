//! What the side channel takes from the process, and what it leaves behind: descriptors, threads,
//! memory, processor time, signals, the log. A program of its own, one test at a time, since all of
//! these belong to the whole process.

#[path = "side_channel/support.rs"]
#[allow(dead_code)]
mod support;

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use kvferry::side_channel::zmq::Session;
use kvferry::side_channel::{self, ListenOptions, Rank, RequestOptions};

use support::*;

/// The log so far.
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Sink;

impl log::Log for Sink {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }
    fn log(&self, record: &log::Record) {
        let line = format!("{} {}", record.level(), record.args());
        LOG.lock().unwrap().push(line);
    }
    fn flush(&self) {}
}

/// Keeps the other tests out, and starts a new log.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    static LOGGER: OnceLock<()> = OnceLock::new();
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    LOGGER.get_or_init(|| {
        log::set_logger(&Sink).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
    });
    LOG.lock().unwrap().clear();
    guard
}

fn logged(word: &str) -> usize {
    let log = LOG.lock().unwrap();
    log.iter().filter(|line| line.contains(word)).count()
}

#[track_caller]
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "still waiting: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn open_fds() -> usize {
    // The listing itself holds one.
    fs::read_dir("/proc/self/fd").unwrap().count() - 1
}

/// The ids of the library's threads. Those of the test harness come and go.
fn our_threads() -> Vec<String> {
    fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|id| {
            fs::read_to_string(format!("/proc/self/task/{id}/comm"))
                .is_ok_and(|name| name.starts_with("kvf-"))
        })
        .collect()
}

/// The processor time of the library's only thread.
struct CpuClock(File);

impl CpuClock {
    fn new() -> Self {
        // A thread gives itself its name, some time after it was started.
        wait_until("the thread has its name", || our_threads().len() == 1);
        let id = our_threads().remove(0);
        CpuClock(File::open(format!("/proc/self/task/{id}/schedstat")).unwrap())
    }

    fn read(&mut self) -> Duration {
        let mut stat = String::new();
        self.0.rewind().unwrap();
        self.0.read_to_string(&mut stat).unwrap();
        Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
    }

    fn used_during(&mut self, span: Duration) -> Duration {
        let before = self.read();
        std::thread::sleep(span);
        self.read() - before
    }
}

fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<usize>().unwrap() * 1024
}

#[test]
fn nothing_is_left_behind() {
    let _alone = alone();
    let round = || {
        let channel = listen(pattern(LARGE));
        let address = channel.local_addr();
        let silent: Vec<_> = (0..5).map(|_| connect(address)).collect();
        request(address).unwrap();
        assert_eq!(our_threads().len(), 1, "for any number of clients");
        let short = |host, max_message| {
            let options = RequestOptions {
                timeout: Duration::from_millis(20),
                max_message,
                ..Default::default()
            };
            side_channel::request("tcp", host, address.port(), &options)
        };
        short("127.0.0.1", 1).unwrap_err();
        let _ = short("localhost", LARGE);
        request(server_of(b"\0\0\0\x05h")).unwrap_err();
        channel.set_metadata(vec![1]).unwrap();
        drop(silent);
        channel.shutdown();
        request(address).unwrap_err();
    };
    round();
    let before = open_fds();
    for _ in 0..10 {
        round();
    }
    // The fake servers' threads and a look-up that outlived its request may still be ending.
    wait_until("descriptors are closed", || open_fds() == before);
    wait_until("threads have ended", || our_threads().is_empty());
}

/// The same for `zmq`, whose clients may stay.
#[test]
fn nothing_of_zmq_is_left_behind() {
    let _alone = alone();
    let round = || {
        let channel = side_channel::listen("zmq", &patient(), pattern(LARGE).to_vec()).unwrap();
        let address = channel.local_addr();
        let ask = |tp| {
            let options = RequestOptions {
                timeout: PATIENCE,
                rank: Rank { pp: 0, tp },
                ..Default::default()
            };
            side_channel::request("zmq", "127.0.0.1", address.port(), &options)
        };
        let silent: Vec<_> = (0..5).map(|_| connect(address)).collect();
        assert!(ask(0).unwrap().metadata == pattern(LARGE));
        ask(1).unwrap_err();
        let session = Session::connect("127.0.0.1", address.port(), &RequestOptions::default());
        assert_eq!(our_threads().len(), 1, "for any number of clients");
        channel.replace_ranks(Vec::new()).unwrap();
        drop(silent);
        channel.shutdown();
        drop(session);
        ask(0).unwrap_err();
    };
    round();
    let before = open_fds();
    for _ in 0..10 {
        round();
    }
    wait_until("descriptors are closed", || open_fds() == before);
    wait_until("threads have ended", || our_threads().is_empty());
}

/// A client that repeats a fault does not fill the log; the first says who and what.
#[test]
fn each_fault_of_zmq_clients_is_logged_once() {
    let _alone = alone();
    let channel = side_channel::listen("zmq", &patient(), b"hello".to_vec()).unwrap();
    let port = channel.local_addr().port();
    for _ in 0..5 {
        let mut stranger = connect(channel.local_addr());
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        count_to_end(&stranger);
        for tp in [3, 4] {
            let options = RequestOptions {
                rank: Rank { pp: 0, tp },
                ..Default::default()
            };
            side_channel::request("zmq", "127.0.0.1", port, &options).unwrap_err();
        }
    }
    assert_eq!(logged("WARN"), 2);
    assert_eq!(logged("does not speak ZeroMQ: it began with \"GET"), 1);
    assert_eq!(logged("rank (pp 0, tp 3)"), 1);
    assert_eq!(
        logged(&format!(
            "side channel on 127.0.0.1:{port}: a client at 127.0.0.1:"
        )),
        2
    );
}

#[test]
fn failing_to_listen_leaves_nothing_behind() {
    let _alone = alone();
    let channel = listen(b"");
    let before = open_fds();
    let taken = ListenOptions {
        port: channel.local_addr().port(),
        ..patient()
    };
    for _ in 0..10 {
        assert!(side_channel::listen("tcp", &taken, Vec::new()).is_err());
    }
    assert_eq!(open_fds(), before);
    wait_until("there is only the first", || our_threads().len() == 1);
}

#[test]
fn clients_share_one_copy_of_the_metadata() {
    let _alone = alone();
    let channel = listen(pattern(LARGE));
    let before = resident_bytes();
    let clients: Vec<_> = (0..8).map(|_| connect(channel.local_addr())).collect();
    for mut client in &clients {
        client.read_exact(&mut [0; 4]).unwrap();
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < LARGE / 2, "{grown} bytes for 8 clients");
}

#[test]
fn an_idle_listener_costs_nothing() {
    let _alone = alone();
    let channel = listen(pattern(LARGE));
    // Idle also means: clients that do nothing, on either side of the whole message.
    let _silent: Vec<_> = (0..20).map(|_| connect(channel.local_addr())).collect();
    request(channel.local_addr()).unwrap();
    let used = CpuClock::new().used_during(Duration::from_millis(500));
    assert!(used < Duration::from_millis(5), "{used:?} in 500 ms");
}

/// Connected and ready clients of `zmq` too: nothing turns while they are silent.
#[test]
fn an_idle_zmq_listener_costs_nothing() {
    let _alone = alone();
    let channel = side_channel::listen("zmq", &patient(), b"hello".to_vec()).unwrap();
    let port = channel.local_addr().port();
    let mut sessions: Vec<_> = (0..20)
        .map(|_| Session::connect("127.0.0.1", port, &RequestOptions::default()).unwrap())
        .collect();
    let used = CpuClock::new().used_during(Duration::from_millis(500));
    assert!(used < Duration::from_millis(5), "{used:?} in 500 ms");
    for session in &mut sessions {
        assert_eq!(session.ask(Rank::default()).unwrap().metadata, b"hello");
    }
}

#[test]
fn a_silent_client_is_cut_at_its_deadline() {
    let _alone = alone();
    let options = ListenOptions {
        timeout: Duration::from_millis(100),
        ..Default::default()
    };
    for len in [10, LARGE] {
        let channel = listen_with(&options, pattern(len));
        let before = open_fds();
        let silent: Vec<_> = (0..5).map(|_| connect(channel.local_addr())).collect();
        for mut client in &silent {
            // It is being served.
            client.read_exact(&mut [0; 4]).unwrap();
        }
        wait_until("the listener closes its ends", || {
            open_fds() == before + silent.len()
        });
        for client in silent {
            let got = count_to_end(&client);
            assert_eq!(got == len, len == 10, "{got} of {len}");
        }
    }
}

/// An unconnected socket: while descriptors are scarce none can be made.
fn socket() -> OwnedFd {
    // SAFETY: takes no pointers, and nothing else owns what it returns.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    }
}

fn connect_socket(socket: OwnedFd, to: SocketAddr) -> std::net::TcpStream {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes([127, 0, 0, 1]),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: the address is a live struct of the size that is given.
    let rc = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        )
    };
    assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
    socket.into()
}

/// Puts the limit on open descriptors back.
struct FewDescriptors(libc::rlimit);

impl FewDescriptors {
    fn new(n: u64) -> Self {
        let mut before = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: both structs live for their calls.
        unsafe {
            assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut before), 0);
            let few = libc::rlimit {
                rlim_cur: n,
                ..before
            };
            assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &few), 0);
        }
        FewDescriptors(before)
    }
}

impl Drop for FewDescriptors {
    fn drop(&mut self) {
        // SAFETY: the struct lives for the call.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &self.0) };
    }
}

#[test]
fn without_descriptors_clients_wait_and_the_listener_neither_spins_nor_dies() {
    let _alone = alone();
    for kind in side_channel::KINDS {
        without_descriptors(kind);
        LOG.lock().unwrap().clear();
    }
}

fn without_descriptors(kind: &str) {
    let channel = side_channel::listen(kind, &patient(), b"hello".to_vec()).unwrap();
    let sockets = [socket(), socket()];
    let mut clock = CpuClock::new();
    let limit = FewDescriptors::new(200);
    let mut fill = Vec::new();
    let full = loop {
        match File::open("/dev/null") {
            Ok(file) => fill.push(file),
            Err(e) => break e,
        }
    };
    assert_eq!(full.raw_os_error(), Some(libc::EMFILE));

    let clients = sockets.map(|s| connect_socket(s, channel.local_addr()));
    wait_until("accepting fails", || logged("cannot accept") > 0);
    let used = clock.used_during(Duration::from_millis(500));
    assert!(used < Duration::from_millis(50), "{used:?} in 500 ms");
    assert!(channel.is_running());
    drop(fill);
    drop(limit);
    for mut client in clients {
        // It is served: zmq greets.
        match kind {
            "tcp" => assert_eq!(read_message(&client), b"hello"),
            _ => client.read_exact(&mut [0; 64]).unwrap(),
        }
    }
    let warnings = logged("cannot accept");
    assert!(warnings <= 2, "{warnings} warnings for one shortage");
    let port = channel.local_addr().port();
    let answer = side_channel::request(kind, "127.0.0.1", port, &RequestOptions::default());
    assert_eq!(answer.unwrap().metadata, b"hello");
}

/// The Rust runtime ignores SIGPIPE, the C programs that load this library do not.
#[test]
fn a_client_that_vanishes_raises_no_signal() {
    let _alone = alone();
    // SAFETY: only the disposition changes; it is put back below.
    let before = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let channel = listen(pattern(LARGE));
    for _ in 0..20 {
        let mut client = connect(channel.local_addr());
        client.write_all(b"?").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();
        drop(client);
    }
    assert_eq!(request(channel.local_addr()).unwrap(), pattern(LARGE));
    channel.shutdown();
    // SAFETY: as above.
    unsafe { libc::signal(libc::SIGPIPE, before) };
}

/// Engines fork. A child that lives on keeps neither the port nor a client's connection, and
/// nothing it does to its copy concerns the parent.
#[test]
fn a_forked_child_has_no_part_in_it() {
    let _alone = alone();
    let mut options = at("127.0.7.5");
    let channel = listen_with(&options, pattern(LARGE));
    options.port = channel.local_addr().port();
    let mut client = connect(channel.local_addr());
    client.read_exact(&mut [0; 4]).unwrap();

    let (hold, held) = (pipe(), pipe());
    // SAFETY: the child does nothing but read atomics, make system calls and leave by _exit; it
    // neither allocates nor takes a lock that another thread may hold.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let was_running = channel.is_running();
        channel.shutdown();
        // SAFETY: one byte is written from and read to live memory; _exit runs no destructors.
        unsafe {
            libc::write(held.1.as_raw_fd(), [was_running as u8].as_ptr().cast(), 1);
            libc::close(hold.1.as_raw_fd());
            libc::read(hold.0.as_raw_fd(), [0u8].as_mut_ptr().cast(), 1);
            libc::_exit(0);
        }
    }
    drop(held.1);
    let mut said = [9];
    File::from(held.0).read_exact(&mut said).unwrap();
    assert_eq!(said, [0], "it does not run in the child");

    assert!(channel.is_running());
    assert_eq!(request(channel.local_addr()).unwrap(), pattern(LARGE));
    channel.shutdown();
    assert!(count_to_end(&client) < LARGE, "the end reaches the client");
    let again = listen_with(&options, b"again");
    assert_eq!(request(again.local_addr()).unwrap(), b"again");

    drop(hold.1);
    // SAFETY: `child` is ours and has not been waited for; no status is asked for.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for the two descriptors, which nothing else owns.
    unsafe {
        assert_eq!(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    }
}

#[test]
fn descriptors_do_not_survive_an_exec() {
    let _alone = alone();
    let channel = listen(pattern(LARGE));
    let mut client = connect(channel.local_addr());
    client.read_exact(&mut [0; 4]).unwrap();
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let target = target.to_string_lossy();
        if target.starts_with("socket:") || target.contains("eventfd") {
            let fd = entry.file_name().to_string_lossy().into_owned();
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
            let flags = info.lines().find(|l| l.starts_with("flags:")).unwrap();
            let flags = flags.rsplit('\t').next().unwrap();
            let flags = i32::from_str_radix(flags, 8).unwrap();
            assert_ne!(flags & libc::O_CLOEXEC, 0, "{fd} is {target}");
        }
    }
}

#[test]
fn reachable_listeners_are_announced_once() {
    let _alone = alone();
    let hosts = ["127.0.0.1", "localhost", "::1", "::ffff:127.0.0.1"];
    for host in &hosts[..if has_ipv6() { 4 } else { 2 }] {
        listen_with(&at(host), b"");
    }
    assert_eq!(logged("WARN"), 0);
    let channel = listen_with(&at("0.0.0.0"), b"hello");
    let port = channel.local_addr().port();
    for _ in 0..3 {
        assert_eq!(request(([127, 0, 0, 1], port).into()).unwrap(), b"hello");
        channel.set_metadata(b"hello".to_vec()).unwrap();
    }
    assert_eq!(logged("WARN"), 1);
    assert_eq!(logged(&format!("0.0.0.0:{port}")), 1);
}
