//! NIXL between processes: what works, and what a peer that stops, dies or comes back looks like.

mod nixl_support;
use nixl_support::*;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvferry::error::{Error, Status};
use kvferry::memory::{MemDesc, MemKind};
use kvferry::transport::{
    AgentOptions, Op, Progress, Transfer, TransferOptions, TransferState, Transport,
};

const MEMORY: usize = 16 << 20;
const SEED: usize = 7;
const ENV_CHILD: &str = "KVF_TEST_CHILD";
const ENV_TRANSPORT: &str = "KVF_TEST_CHILD_UCX_TLS";

/// Options of an agent that uses only these UCX transports; empty is UCX's choice.
fn options_over(name: &str, tls: &str) -> AgentOptions {
    let params = match tls {
        "" => Vec::new(),
        tls => vec![("engine_config".to_string(), format!("TLS={tls}"))],
    };
    AgentOptions {
        backends: Some(vec![("UCX".into(), params)]),
        drain_timeout: Some(Duration::from_millis(300)),
        ..options(name)
    }
}

/// Not a test of its own: what the other process does, when it is the other process. It registers
/// memory with a known pattern, tells its metadata and the address of the memory, and from then on
/// answers each message with the sum of the bytes in its memory, until its input ends.
#[test]
fn other_process() {
    let Ok(name) = std::env::var(ENV_CHILD) else {
        return;
    };
    let tls = std::env::var(ENV_TRANSPORT).unwrap_or_default();
    let agent = kvferry::transport::create(&options_over(&name, &tls)).expect("an agent");
    let memory = Buffer::new(MEMORY, pattern(SEED));
    agent
        .register(MemKind::Dram, &memory.reg(), &[])
        .expect("register");
    println!(
        "\nTELL {} {}",
        memory.all().addr,
        hex(&agent.metadata().expect("metadata"))
    );
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("a line");
    agent.add_remote(&unhex(line.trim())).expect("load");
    println!("\nREADY");
    std::thread::spawn(|| {
        let mut rest = String::new();
        let _ = std::io::stdin().read_line(&mut rest);
        std::process::exit(0);
    });
    loop {
        agent
            .wait_for_notification(Duration::from_secs(1))
            .expect("wait");
        for message in agent.notifications(&[]).expect("notifications") {
            let sum: u64 = memory.bytes().iter().map(|b| u64::from(*b)).sum();
            agent
                .notify(&message.from, sum.to_string().as_bytes(), None)
                .expect("answer");
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = |i: usize| u8::from_str_radix(&text[i..i + 2], 16).expect("hex");
    (0..text.len()).step_by(2).map(digits).collect()
}

struct Other {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    memory: MemDesc,
    metadata: Vec<u8>,
}

impl Other {
    fn start(name: &str, tls: &str) -> Other {
        let mut child = Command::new(std::env::current_exe().expect("exe"))
            .args([
                "--exact",
                "other_process",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(ENV_CHILD, name)
            .env(ENV_TRANSPORT, tls)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the other process");
        let input = child.stdin.take().expect("piped");
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let told = line_with(&mut output, "TELL ");
        let (addr, metadata) = told.split_once(' ').expect("two words");
        let memory = MemDesc {
            addr: addr.parse().expect("number"),
            len: MEMORY as u64,
            device: 0,
        };
        Other {
            child,
            input,
            output,
            memory,
            metadata: unhex(metadata),
        }
    }

    fn tell(&mut self, metadata: &[u8]) {
        writeln!(self.input, "{}", hex(metadata)).expect("the other process reads");
        line_with(&mut self.output, "READY");
    }

    fn signal(&self, signal: i32) {
        // SAFETY: sends a signal to our own child, which has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.child.wait().expect("waited for");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn line_with(output: &mut impl BufRead, prefix: &str) -> String {
    let mut line = String::new();
    while output.read_line(&mut line).expect("readable") > 0 {
        if let Some(rest) = line.trim_end().strip_prefix(prefix) {
            return rest.to_string();
        }
        line.clear();
    }
    panic!("the other process ended before it said {prefix}");
}

struct Here {
    agent: Arc<dyn Transport>,
    memory: Buffer,
    peer: String,
}

fn here(other: &mut Other, peer: &str, tls: &str) -> Here {
    let agent = kvferry::transport::create(&options_over(&unique("here"), tls)).expect("an agent");
    let memory = Buffer::zeroed(MEMORY);
    agent
        .register(MemKind::Dram, &memory.reg(), &[])
        .expect("register");
    assert_eq!(agent.add_remote(&other.metadata).expect("load"), peer);
    other.tell(&agent.metadata().expect("metadata"));
    Here {
        agent,
        memory,
        peer: peer.to_string(),
    }
}

impl Here {
    fn transfer(&self, op: Op, other: &Other, at: usize, len: usize) -> Arc<dyn Transfer> {
        let far = MemDesc {
            addr: other.memory.addr + at as u64,
            len: len as u64,
            device: 0,
        };
        let (l, r) = ([self.memory.at(at, len)], [far]);
        let (l, r) = ((MemKind::Dram, &l[..]), (MemKind::Dram, &r[..]));
        let none = TransferOptions::default();
        self.agent
            .create_transfer(op, l, r, &self.peer, none)
            .expect("a transfer")
    }
}

fn expected() -> Vec<u8> {
    (0..MEMORY).map(pattern(SEED)).collect()
}

#[test]
fn bytes_and_messages_cross_between_processes() {
    if !have_nixl() {
        return;
    }
    for tls in ["", "tcp"] {
        let name = unique("other");
        let mut other = Other::start(&name, tls);
        let here = here(&mut other, &name, tls);
        run(&here.transfer(Op::Read, &other, 0, MEMORY)).expect("read");
        assert_eq!(here.memory.bytes(), expected(), "over {tls:?}");

        // What is written there is seen there.
        let from = here.memory.at(0, 4096);
        // SAFETY: the range lies in our buffer, and no transfer is under way.
        unsafe { std::ptr::write_bytes(from.addr as *mut u8, 0x55, 4096) };
        run(&here.transfer(Op::Write, &other, 0, 4096)).expect("write");
        here.agent.notify(&name, b"sum", None).expect("notify");
        let answer = messages(&here.agent, 1).remove(0);
        assert_eq!(answer.from, name);
        let all = expected();
        let sum: u64 = all[4096..].iter().map(|b| u64::from(*b)).sum::<u64>() + 0x55 * 4096;
        assert_eq!(answer.payload, sum.to_string().into_bytes(), "over {tls:?}");
    }
}

#[test]
fn a_stopped_peer_leaves_transfers_under_way_and_nothing_is_freed_under_them() {
    if !have_nixl() {
        return;
    }
    let name = unique("other");
    let mut other = Other::start(&name, "tcp");
    let here = here(&mut other, &name, "tcp");
    run(&here.transfer(Op::Read, &other, 0, 4096)).expect("connects");

    // Over TCP the peer has to take part. While it is stopped, nothing can finish.
    other.signal(libc::SIGSTOP);
    let kept = here.transfer(Op::Read, &other, 0, MEMORY / 2);
    let cancelled = here.transfer(Op::Read, &other, MEMORY / 2, MEMORY / 4);
    let dropped = here.transfer(Op::Read, &other, 3 * MEMORY / 4, MEMORY / 4);
    for t in [&kept, &cancelled, &dropped] {
        assert_eq!(t.post(None).expect("post"), TransferState::InProgress);
    }
    assert_eq!(status(kept.post(None)), Status::RepostActive);
    cancelled.cancel().expect("cancel");
    drop(dropped);
    assert_eq!(
        cancelled.state().expect("not at rest"),
        TransferState::InProgress
    );
    assert_eq!(
        kept.state().expect("not at rest"),
        TransferState::InProgress
    );
    let e = fail(here.agent.remove_remote(&name));
    assert!(
        e.status() == Status::Busy && e.message().contains(&name),
        "{e}"
    );
    assert_eq!(
        status(
            here.agent
                .deregister(MemKind::Dram, &here.memory.reg(), &[])
        ),
        Status::Busy
    );

    other.signal(libc::SIGCONT);
    assert_eq!(fail(finish(&cancelled)).status(), Status::Canceled);
    finish(&kept).expect("read");
    // The dropped one too comes to rest, and only then can its memory go.
    wait("deregistration", || {
        here.agent
            .deregister(MemKind::Dram, &here.memory.reg(), &[])
            .ok()
    });
    assert_eq!(here.memory.bytes(), expected());
    here.agent
        .remove_remote(&name)
        .expect("nothing uses it any more");
    assert!(
        !here
            .agent
            .check_remote(&name, MemKind::Dram, &[])
            .expect("check")
    );
    here.agent.close().expect("close");
}

#[test]
fn closing_over_a_stopped_peer_times_out_and_frees_nothing() {
    if !have_nixl() {
        return;
    }
    let name = unique("other");
    let mut other = Other::start(&name, "tcp");
    let here = here(&mut other, &name, "tcp");
    run(&here.transfer(Op::Read, &other, 0, 4096)).expect("connects");
    other.signal(libc::SIGSTOP);
    let t = here.transfer(Op::Read, &other, 0, MEMORY);
    assert_eq!(t.post(None).expect("post"), TransferState::InProgress);
    let begin = Instant::now();
    assert_eq!(status(here.agent.close()), Status::Timeout);
    assert!(begin.elapsed() < LIMIT);
    let Here { agent, memory, .. } = here;
    drop((t, agent));
    // The agent lives on, with the transfer, so the buffer must as well.
    std::mem::forget(memory);
    other.signal(libc::SIGCONT);
}

/// Kills the peer with a transfer under way, and once more without; every transfer must end in an
/// error, and the peer's successor must be reachable under the same name.
fn dies_and_comes_back(tls: &str) {
    let name = unique("other");
    let mut other = Other::start(&name, tls);
    let here = here(&mut other, &name, tls);
    run(&here.transfer(Op::Read, &other, 0, MEMORY)).expect("read");
    let remote = kvferry::transport::Side::Remote(&name);
    let descs = [other.memory];
    let descs = kvferry::transport::Descs::Flat(&descs);
    let list = here
        .agent
        .prepare(remote, MemKind::Dram, descs, &[])
        .expect("prepare");

    other.signal(libc::SIGSTOP);
    let under_way = here.transfer(Op::Read, &other, 0, MEMORY);
    let state = under_way.post(None);
    other.kill();
    let begin = Instant::now();
    let ended = match state {
        Ok(TransferState::InProgress) => finish(&under_way),
        Ok(TransferState::Done) => Ok(()),
        Err(e) => Err(e),
    };
    if tls == "tcp" {
        // Without TCP's part of the work by the peer, the bytes cannot have arrived.
        expect_lost(fail(ended), &name);
    }
    eprintln!(
        "{tls:?}: noticed {:?} after the death of the peer",
        begin.elapsed()
    );

    // Posting to the dead fails, at once or when the connection is found to be broken.
    let again = here.transfer(Op::Read, &other, 0, MEMORY);
    expect_lost(fail(run(&again)), &name);
    expect_lost(fail(again.post(None)), &name);
    expect_lost(fail(here.agent.notify(&name, b"anyone?", None)), &name);

    // The successor has other memory; what was prepared for the dead one is void.
    here.agent.remove_remote(&name).expect("remove");
    let mut successor = Other::start(&name, tls);
    assert_eq!(
        here.agent.add_remote(&successor.metadata).expect("load"),
        name
    );
    successor.tell(&here.agent.metadata().expect("metadata"));
    let none = TransferOptions::default();
    let local = here.agent.prepare(
        kvferry::transport::Side::Local,
        MemKind::Dram,
        kvferry::transport::Descs::Flat(&[here.memory.all()]),
        &[],
    );
    let local = local.expect("local");
    let e = fail(
        here.agent
            .make_transfer(Op::Read, &*local, &[0], &*list, &[0], none),
    );
    assert_eq!(e.status(), Status::PeerLost, "{e}");
    run(&here.transfer(Op::Read, &successor, 0, MEMORY)).expect("read from the successor");
    assert_eq!(here.memory.bytes(), expected());
    here.agent.close().expect("close");
}

fn expect_lost(error: Error, name: &str) {
    assert!(
        error.status() == Status::PeerLost && error.message().contains(name),
        "{error}"
    );
}

#[test]
fn a_killed_peer_over_tcp_is_an_error_and_its_successor_is_reachable() {
    if have_nixl() {
        dies_and_comes_back("tcp");
    }
}

#[test]
fn a_killed_peer_on_this_host_is_an_error_and_its_successor_is_reachable() {
    if have_nixl() {
        dies_and_comes_back("");
    }
}

#[test]
fn an_idle_agent_costs_next_to_nothing_and_still_answers() {
    if !have_nixl() {
        return;
    }
    let name = unique("other");
    let mut other = Other::start(&name, "");
    let here = here(&mut other, &name, "");
    run(&here.transfer(Op::Read, &other, 0, 4096)).expect("connects");
    let span = Duration::from_secs(3);
    let before = cpu_of(other.child.id());
    std::thread::sleep(span);
    let used = cpu_of(other.child.id()) - before;
    let share = used.as_secs_f64() / span.as_secs_f64();
    eprintln!(
        "an idle process with an agent used {:.2} % of a core",
        share * 100.0
    );
    // It also waits for notifications in a thread, which looks every millisecond.
    assert!(share < 0.05, "{:.2} %", share * 100.0);
    run(&here.transfer(Op::Read, &other, 4096, 4096)).expect("answers reads");
    here.agent.notify(&name, b"sum", None).expect("notify");
    messages(&here.agent, 1);
}

/// User and system time of all threads of a process.
fn cpu_of(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let fields: Vec<&str> = stat[stat.rfind(')').expect("a name") + 2..]
        .split(' ')
        .collect();
    // Fields 14 and 15 of proc(5), counted from the third.
    let ticks: u64 =
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    // SAFETY: asks for a constant.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
    Duration::from_micros(ticks * 1_000_000 / per_second)
}

#[test]
fn a_peer_that_polls_itself_answers_while_it_polls() {
    if !have_nixl() {
        return;
    }
    let p = pair_with(4096, |o| o.progress = Progress::Caller);
    let t = p.direct(Op::Read, 0, 4096);
    t.post(None).expect("post");
    wait("the read", || {
        p.b.notifications(&[]).expect("progress");
        (t.state().expect("state") == TransferState::Done).then_some(())
    });
    assert_eq!(p.a_mem.bytes(), p.b_mem.bytes());
}
