//! How fast the local transport moves bytes between two real processes, against NIXL/UCX, the bare
//! system call and memcpy, in one run:
//!
//! ```text
//! cargo bench --bench local_copy            # all sizes
//! cargo bench --bench local_copy -- 256 9   # 256 MiB per side, 9 rounds
//! ```
//!
//! NIXL is taken from where it is found, or from `KVF_TEST_NIXL`; without one its rows are left out. It
//! runs twice: with its progress thread spinning, which is its own default, and without one.
//!
//! A child process owns the source. Every variant copies the same scattered blocks; the variants
//! take turns within a round, so that a change of the machine's mood hits all of them, and the table
//! shows medians over the rounds and the ratio to the bare call within this run. All memory is
//! touched beforehand.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvferry::memory::{MemDesc, MemKind};
use kvferry::transport::{
    self, AgentOptions, Op, Progress, Transfer, TransferOptions, TransferState, Transport,
};

const OWNER: &str = "KVF_BENCH_OWNER";

fn main() {
    if let Ok(len) = std::env::var(OWNER) {
        return own(len.parse().unwrap());
    }
    let numbers: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let mebibytes = numbers.first().copied().unwrap_or(256);
    let rounds = numbers.get(1).copied().unwrap_or(9);
    let len = mebibytes << 20;

    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(OWNER, len.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut hello = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut hello)
        .unwrap();
    let words: Vec<&str> = hello.split_whitespace().collect();
    let source: u64 = words[0].parse().unwrap();
    let metadata = unhex(words[1]);
    let nixl_metadata = words.get(2).map(|w| unhex(w));
    let bench = Bench {
        pid: child.id() as i32,
        source,
        target: touched(len),
        same_process: touched(len),
        metadata,
        nixl_metadata,
        rounds,
    };

    println!("{mebibytes} MiB, {rounds} rounds, {} cores", cores());
    println!("| blocks | what | GB/s | of bare |");
    println!("|---|---|---|---|");
    for (name, block) in [("8 KiB", 8 << 10), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20)] {
        bench.blocks(name, block);
    }
    bench.small();
    drop(child.stdin.take());
    child.wait().unwrap();
}

/// The child: owns memory until its input ends.
fn own(len: usize) {
    let memory = touched(len);
    let range = range(memory.as_ptr() as u64, len as u64);
    let mut agents = vec![agent("owner", 1)];
    agents.extend(nixl_agent("owner", Progress::Thread));
    print!("{}", memory.as_ptr() as u64);
    for agent in &agents {
        agent.register(MemKind::Dram, &[range.into()], &[]).unwrap();
        print!(" {}", hex(&agent.metadata().unwrap()));
    }
    println!();
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read(&mut [0]);
    for agent in agents {
        agent.close().unwrap();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap();
    (0..text.len() / 2).map(byte).collect()
}

/// An agent over NIXL, if there is one on this machine.
fn nixl_agent(name: &str, progress: Progress) -> Option<Arc<dyn Transport>> {
    let made = transport::create(&AgentOptions {
        name: name.to_string(),
        transport: "nixl".to_string(),
        nixl_library: std::env::var("KVF_TEST_NIXL").ok(),
        progress,
        ..AgentOptions::default()
    });
    made.map_err(|e| eprintln!("no rows for NIXL: {e}")).ok()
}

struct Bench {
    pid: i32,
    source: u64,
    target: Vec<u8>,
    same_process: Vec<u8>,
    metadata: Vec<u8>,
    nixl_metadata: Option<Vec<u8>>,
    rounds: usize,
}

/// A way to copy all blocks once.
type Variant<'a> = (&'static str, Box<dyn FnMut() + 'a>);

impl Bench {
    fn blocks(&self, name: &str, block: usize) {
        let count = self.target.len() / block;
        let (to, from) = (shuffled(count, 1), shuffled(count, 2));
        let at = |base: u64, indices: &[usize]| -> Vec<MemDesc> {
            indices
                .iter()
                .map(|i| range(base + (i * block) as u64, block as u64))
                .collect()
        };
        let target = self.target.as_ptr() as u64;
        let (local, remote) = (at(target, &to), at(self.source, &from));
        let here = at(self.same_process.as_ptr() as u64, &from);

        let (one, _a) = self.transfer(1, &local, &remote, Op::Read);
        let (two, _b) = self.transfer(2, &local, &remote, Op::Read);
        let (write, _c) = self.transfer(1, &local, &remote, Op::Write);
        let without = self.nixl(Progress::Caller, &local, &remote);
        let pid = self.pid;
        let mut variants: Vec<Variant> = vec![
            (
                "bare process_vm_readv",
                Box::new(|| bare(pid, &local, &remote)),
            ),
            ("local read", Box::new(|| post(&*one))),
            ("local read, 2 threads", Box::new(|| post(&*two))),
            (
                "bare readv, 2 threads",
                Box::new(|| bare_two(pid, &local, &remote)),
            ),
            ("local write", Box::new(|| post(&*write))),
            ("memcpy in one process", Box::new(|| memcpy(&local, &here))),
        ];
        if let Some((t, _)) = &without {
            variants.push(("NIXL/UCX, no progress thread", Box::new(|| post(&**t))));
        }
        let bytes = (count * block) as f64;
        let rates = self.rates(&mut variants, bytes);
        table(name, &variants, &rates);
        println!(
            "| {name} | gain of the second thread | | {:.2} |",
            rates[2] / rates[1]
        );
        drop(variants);
        drop(without);
        // By itself: its thread takes a core from whatever else is measured.
        if let Some((spinning, _agent)) = self.nixl(Progress::Spin, &local, &remote) {
            let mut variants: Vec<Variant> = vec![
                (
                    "bare process_vm_readv, beside NIXL's thread",
                    Box::new(|| bare(pid, &local, &remote)),
                ),
                ("NIXL/UCX, as it comes", Box::new(|| post(&*spinning))),
            ];
            let rates = self.rates(&mut variants, bytes);
            table(name, &variants, &rates);
        }
    }

    /// GB/s of each variant, the median of rounds in which they take turns.
    fn rates(&self, variants: &mut [Variant], bytes: f64) -> Vec<f64> {
        let mut times = vec![Vec::new(); variants.len()];
        for round in 0..=self.rounds {
            for (times, (_, run)) in times.iter_mut().zip(variants.iter_mut()) {
                let start = Instant::now();
                run();
                // The first round warms up.
                if round > 0 {
                    times.push(start.elapsed());
                }
            }
        }
        let rate = |t: &Vec<Duration>| bytes / median(t).as_secs_f64() / 1e9;
        times.iter().map(rate).collect()
    }

    /// Microseconds of single calls.
    fn small(&self) {
        let target = self.target.as_ptr() as u64;
        println!("\n| blocks of 8 KiB | make, µs | post, µs |\n|---|---|---|");
        for count in [1usize, 160, 18_880] {
            let count = count.min(self.target.len() / 8192);
            let at = |base: u64, seed| -> Vec<MemDesc> {
                let all = shuffled(self.target.len() / 8192, seed);
                all[..count]
                    .iter()
                    .map(|i| range(base + (i * 8192) as u64, 8192))
                    .collect()
            };
            let (local, remote) = (at(target, 3), at(self.source, 4));
            let agent = self.reader(1);
            let descs = transport::Descs::Flat;
            let kind = MemKind::Dram;
            let left = agent
                .prepare(transport::Side::Local, kind, descs(&local), &[])
                .unwrap();
            let right = agent
                .prepare(transport::Side::Remote("owner"), kind, descs(&remote), &[])
                .unwrap();
            let indices: Vec<i32> = (0..count as i32).collect();
            let (mut makes, mut posts) = (Vec::new(), Vec::new());
            for _ in 0..(200_000 / count).clamp(11, 2000) {
                let start = Instant::now();
                let made = agent
                    .make_transfer(
                        Op::Read,
                        &*left,
                        &indices,
                        &*right,
                        &indices,
                        TransferOptions::default(),
                    )
                    .unwrap();
                makes.push(start.elapsed());
                let start = Instant::now();
                post(&*made);
                posts.push(start.elapsed());
            }
            let micros = |times: &[Duration]| median(times).as_secs_f64() * 1e6;
            println!(
                "| {count} | {:.1} | {:.1} |",
                micros(&makes),
                micros(&posts)
            );
        }
    }

    /// A read over NIXL of the same ranges.
    fn nixl(
        &self,
        progress: Progress,
        local: &[MemDesc],
        remote: &[MemDesc],
    ) -> Option<(Arc<dyn Transfer>, Arc<dyn Transport>)> {
        let metadata = self.nixl_metadata.as_ref()?;
        let agent = nixl_agent("reader", progress)?;
        assert_eq!(agent.add_remote(metadata).unwrap(), "owner");
        let whole = range(self.target.as_ptr() as u64, self.target.len() as u64);
        agent.register(MemKind::Dram, &[whole.into()], &[]).unwrap();
        let (local, remote) = ((MemKind::Dram, local), (MemKind::Dram, remote));
        let options = TransferOptions::default();
        let transfer = agent.create_transfer(Op::Read, local, remote, "owner", options);
        Some((transfer.unwrap(), agent))
    }

    fn reader(&self, threads: u32) -> Arc<dyn Transport> {
        let agent = agent("reader", threads);
        assert_eq!(agent.add_remote(&self.metadata).unwrap(), "owner");
        let whole = range(self.target.as_ptr() as u64, self.target.len() as u64);
        agent.register(MemKind::Dram, &[whole.into()], &[]).unwrap();
        agent
    }

    fn transfer(
        &self,
        threads: u32,
        local: &[MemDesc],
        remote: &[MemDesc],
        op: Op,
    ) -> (Arc<dyn Transfer>, Arc<dyn Transport>) {
        let agent = self.reader(threads);
        let (local, remote) = ((MemKind::Dram, local), (MemKind::Dram, remote));
        let options = TransferOptions::default();
        let transfer = agent.create_transfer(op, local, remote, "owner", options);
        (transfer.unwrap(), agent)
    }
}

fn agent(name: &str, copy_threads: u32) -> Arc<dyn Transport> {
    transport::create(&AgentOptions {
        name: name.to_string(),
        transport: "local".to_string(),
        progress: Progress::Thread,
        copy_threads,
        ..AgentOptions::default()
    })
    .unwrap()
}

/// Rows with rates and their ratios to the first.
fn table(name: &str, variants: &[Variant], rates: &[f64]) {
    for ((what, _), rate) in variants.iter().zip(rates) {
        println!("| {name} | {what} | {rate:.2} | {:.2} |", rate / rates[0]);
    }
}

fn post(transfer: &dyn Transfer) {
    let mut state = transfer.post(None).unwrap();
    while state == TransferState::InProgress {
        state = transfer.state().unwrap();
    }
}

/// What there is to beat: 1,024 pieces a call and nothing else.
fn bare(pid: i32, local: &[MemDesc], remote: &[MemDesc]) {
    let pieces = |ranges: &[MemDesc]| -> Vec<libc::iovec> {
        ranges
            .iter()
            .map(|r| libc::iovec {
                iov_base: r.addr as *mut libc::c_void,
                iov_len: r.len as usize,
            })
            .collect()
    };
    for (local, remote) in local.chunks(1024).zip(remote.chunks(1024)) {
        let wanted: u64 = local.iter().map(|r| r.len).sum();
        let (mut local, mut remote) = (pieces(local), pieces(remote));
        let mut done = 0;
        while done < wanted {
            // SAFETY: the pieces are inside the benchmark's own buffer, which nothing else uses.
            let n = unsafe {
                libc::process_vm_readv(
                    pid,
                    local.as_ptr(),
                    local.len() as libc::c_ulong,
                    remote.as_ptr(),
                    remote.len() as libc::c_ulong,
                    0,
                )
            };
            assert!(n > 0, "{}", std::io::Error::last_os_error());
            done += n as u64;
            skip(&mut local, n as usize);
            skip(&mut remote, n as usize);
        }
    }
}

fn skip(pieces: &mut Vec<libc::iovec>, mut n: usize) {
    let whole = pieces
        .iter()
        .take_while(|p| {
            let fits = p.iov_len <= n;
            n -= if fits { p.iov_len } else { 0 };
            fits
        })
        .count();
    pieces.drain(..whole);
    if let Some(first) = pieces.first_mut() {
        first.iov_base = first.iov_base.wrapping_byte_add(n);
        first.iov_len -= n;
    }
}

fn bare_two(pid: i32, local: &[MemDesc], remote: &[MemDesc]) {
    let half = local.len() / 2;
    std::thread::scope(|scope| {
        scope.spawn(|| bare(pid, &local[..half], &remote[..half]));
        bare(pid, &local[half..], &remote[half..]);
    });
}

fn memcpy(local: &[MemDesc], remote: &[MemDesc]) {
    for (to, from) in local.iter().zip(remote) {
        // SAFETY: both ranges are inside two different buffers of the benchmark.
        unsafe {
            std::ptr::copy_nonoverlapping(
                from.addr as *const u8,
                to.addr as *mut u8,
                to.len as usize,
            );
        }
    }
}

fn range(addr: u64, len: u64) -> MemDesc {
    MemDesc {
        addr,
        len,
        device: 0,
    }
}

/// Memory of which every page exists.
fn touched(len: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; len];
    bytes.iter_mut().step_by(4096).for_each(|b| *b = 1);
    bytes
}

fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ seed;
    let mut all: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        all.swap(i, (state % (i as u64 + 1)) as usize);
    }
    all
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2]
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, |n| n.get())
}
