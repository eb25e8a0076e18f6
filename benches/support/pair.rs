//! What benchmarks between two processes share: agents, a large address space backed by a window of
//! memory, and the other process, which is this program once more.
#![allow(dead_code)] // Each benchmark uses a part.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kvferry::agent::Agent;
use kvferry::memory::{MemDesc, MemKind};
use kvferry::transport::AgentOptions;

/// What is mapped over and over; more than the caches hold.
pub const WINDOW: usize = 256 << 20;

/// The transports named on the command line, or all; without NIXL that is said, and it is left out.
pub fn transports() -> Vec<&'static str> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let names: Vec<&String> = args
        .iter()
        .filter(|a| !a.starts_with('-') && !a.contains('='))
        .collect();
    let mut chosen = vec!["local", "nixl"];
    chosen.retain(|t| names.is_empty() || names.iter().any(|n| n == t));
    if chosen.contains(&"nixl") {
        if let Some(why) = kvferry::transport::nixl::probe(library().as_deref()).error {
            println!("no NIXL: {why}");
            chosen.retain(|t| *t != "nixl");
        }
    }
    chosen
}

fn library() -> Option<String> {
    std::env::var("KVF_TEST_NIXL")
        .ok()
        .filter(|v| !v.is_empty())
}

pub fn agent(transport: &str, name: &str) -> Agent {
    Agent::create(&AgentOptions {
        name: format!("{name}-{}", std::process::id()),
        transport: transport.into(),
        nixl_library: library(),
        ..AgentOptions::default()
    })
    .expect("an agent")
}

/// A window without repetition.
pub fn window(agent: &Agent, byte: u8) -> u64 {
    memory(agent, byte, WINDOW)
}

/// Registered address space of this length, backed by one window.
pub fn memory(agent: &Agent, byte: u8, len: usize) -> u64 {
    let (any, rw) = (std::ptr::null_mut(), libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: new mappings at places of the system's choice, and then inside the first of them.
    unsafe {
        let fd = libc::memfd_create(c"kvferry-bench".as_ptr(), 0);
        assert!(fd >= 0 && libc::ftruncate(fd, WINDOW as i64) == 0);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let base = libc::mmap(any, len, libc::PROT_NONE, flags, -1, 0);
        assert!(base != libc::MAP_FAILED);
        for at in (0..len).step_by(WINDOW) {
            let flags = libc::MAP_SHARED | libc::MAP_FIXED;
            let here = libc::mmap(base.add(at), WINDOW.min(len - at), rw, flags, fd, 0);
            assert!(here != libc::MAP_FAILED);
        }
        std::ptr::write_bytes(base.cast::<u8>(), byte, WINDOW.min(len));
        libc::close(fd);
        let desc = MemDesc {
            addr: base as u64,
            len: len as u64,
            device: 0,
        };
        agent
            .register(MemKind::Dram, &[desc.into()], &[])
            .expect("registering");
        base as u64
    }
}

/// The process that has the memory to be read.
pub struct Source {
    child: Child,
    pub base: u64,
    pub metadata: Vec<u8>,
}

impl Source {
    /// With a plain window.
    pub fn start(transport: &str) -> Source {
        Source::start_with(transport, WINDOW)
    }

    pub fn start_with(transport: &str, len: usize) -> Source {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--source", transport, &len.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("another process");
        let mut line = String::new();
        let out = child.stdout.take().expect("its output");
        BufReader::new(out).read_line(&mut line).expect("a line");
        let (base, hex) = line.trim().split_once(' ').expect("two words");
        let metadata = (0..hex.len() / 2)
            .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex"))
            .collect();
        Source {
            base: base.parse().expect("an address"),
            child,
            metadata,
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Is the source, if this process was started as one: prints where its memory is and how to reach it,
/// and stays until the pipe closes.
pub fn serves_as_source() -> bool {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [flag, transport, len] = &args[..] else {
        return false;
    };
    if flag != "--source" {
        return false;
    }
    let agent = agent(transport, "source");
    let base = memory(&agent, 1, len.parse().expect("a length"));
    let metadata = agent.metadata().expect("metadata");
    let metadata: String = metadata.iter().map(|b| format!("{b:02x}")).collect();
    println!("{base} {metadata}");
    std::io::stdout().flush().expect("the pipe");
    let (gone, closed) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_line(&mut String::new());
        let _ = gone.send(());
    });
    while closed.recv_timeout(Duration::from_millis(5))
        == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
    {
        let _ = agent.notifications(&[]);
    }
    true
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
