//! The device's context on the queue's thread, with a driver library that writes down what it is asked.
//!
//! The environment names the driver and belongs to the process, so each test runs itself again as a
//! child with its own environment.

#[path = "queue/support.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use kvferry::error::Status;
use kvferry::memory::MemKind;
use kvferry::plan::*;
use kvferry::queue::*;

use support::*;

const LIBRARY: &str = "KVF_CUDA_LIBRARY";
const LOG: &str = "KVF_TEST_CUDA_LOG";

/// Every call with the time and the thread. Device 7 does not exist; 8 has no context to give.
const DRIVER: &str = r#"
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void note(const char *call, long argument) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    FILE *file = fopen(getenv("KVF_TEST_CUDA_LOG"), "a");
    if (!file) abort();
    fprintf(file, "%lld %ld %s %ld\n", t.tv_sec * 1000000000LL + t.tv_nsec,
            syscall(SYS_gettid), call, argument);
    fclose(file);
}
int cuInit(unsigned flags) { note("init", flags); return 0; }
int cuDeviceGet(int *device, int ordinal) {
    note("device", ordinal);
    if (ordinal == 7) return 101;
    *device = ordinal + 50;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    note("retain", device);
    if (device == 58) return 2;
    *context = (void *)(long)(device + 1000);
    return 0;
}
int cuDevicePrimaryCtxRelease_v2(int device) { note("release", device); return 0; }
int cuCtxSetCurrent(void *context) { note("current", (long)context); return 0; }
"#;

/// A driver that lacks what is needed.
const HOLLOW: &str = "int cuInit(unsigned flags) { return 0; }\n";

fn build(name: &str, text: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let stem = unique(name);
    let (source, library) = (
        folder.join(format!("{stem}.c")),
        folder.join(format!("{stem}.so")),
    );
    std::fs::write(&source, text).unwrap();
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let built = Command::new(&compiler)
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .output()
        .unwrap_or_else(|e| panic!("these tests need a C compiler, {compiler}: {e}"));
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    library
}

/// Runs the named test again, with this driver; what the driver wrote down. In the child, `None`.
fn with_driver(test: &str, driver: &Path) -> Option<Vec<Call>> {
    if std::env::var_os(LOG).is_some() {
        return None;
    }
    let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique("calls"));
    std::fs::write(&log, "").unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(LIBRARY, driver)
        .env(LOG, &log)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
    assert!(
        child.status.success() && text.contains("1 passed"),
        "{text}"
    );
    Some(calls(&log))
}

#[derive(Debug)]
struct Call {
    ns: u64,
    thread: u64,
    name: String,
    argument: u64,
}

fn calls(log: &Path) -> Vec<Call> {
    let text = std::fs::read_to_string(log).unwrap();
    text.lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |i: usize| words[i].parse().unwrap();
            Call {
                ns: number(0),
                thread: number(1),
                name: words[2].to_owned(),
                argument: number(3),
            }
        })
        .collect()
}

fn brief(calls: &[Call]) -> Vec<(&str, u64)> {
    calls.iter().map(|c| (&c.name[..], c.argument)).collect()
}

/// A world whose sink has pages on several devices, all of them host memory in truth: a plan for each
/// device.
struct Devices {
    world: World,
    memory: Vec<Arc<Memory>>,
    plans: Vec<Plan>,
}

impl Devices {
    fn new(devices: &[u64]) -> Devices {
        let shape = Shape {
            sources: 1,
            rows: 1,
            ..Shape::default()
        };
        let world = World::new("test", shape);
        script(&world.sink, &[("vram", "1")]);
        let (mut memory, mut plans) = (Vec::new(), Vec::new());
        for device in devices {
            let pages = Arc::new(Memory::new(shape.blocks * shape.page, 500 + device));
            let range = kvferry::memory::MemDesc {
                device: *device,
                ..pages.desc()
            };
            world
                .sink
                .register(MemKind::Vram, &[range.into()], &[])
                .unwrap();
            let mut builder = PlanBuilder::new(Direction::Pull);
            let group = builder.group(geometry(shape.blocks));
            let peer = builder.peer(peer(PeerRole::Transfer));
            let (local, remote) = (pages.addr(), world.theirs[0].addr());
            let mut lane = lane(peer, group, shape.page, local, remote, MemKind::Vram);
            lane.local.device = *device;
            builder.lane(lane);
            plans.push(builder.finish().unwrap());
            memory.push(pages);
        }
        Devices {
            world,
            memory,
            plans,
        }
    }

    fn send(&self, queue: &Queue, plan: usize, blocks: &[u32]) -> Completion {
        let groups = [GroupBlocks::new(blocks, blocks)];
        let submission = Submission {
            plan: &self.plans[plan],
            agents: &[&self.world.names[0]],
            request: Request {
                groups: &groups,
                tokens: None,
            },
            notification: None,
            deadline: None,
            guards: &[],
        };
        let ticket = queue.submit(&submission).unwrap();
        let done = next(queue);
        assert_eq!(done.ticket, ticket);
        done
    }

    /// Whether the pages have arrived.
    fn arrived(&self, plan: usize, blocks: &[u32]) -> bool {
        let (got, want) = (self.memory[plan].read(), self.world.theirs[0].read());
        let page = self.world.shape.page;
        blocks.iter().all(|b| {
            let at = *b as usize * page..(*b as usize + 1) * page;
            got[at.clone()] == want[at]
        })
    }

    /// A request without GPU memory.
    fn host_works(&self, queue: &Queue) {
        self.world.send(queue, &[1], &[1]);
        assert_eq!(status(&next(queue)), Status::Ok);
    }
}

#[test]
fn the_context_is_current_before_the_post_and_let_go_at_the_end() {
    let name = "the_context_is_current_before_the_post_and_let_go_at_the_end";
    if let Some(calls) = with_driver(name, &build("driver", DRIVER)) {
        let got = brief(&calls);
        let (init, rest) = (got[0], &got[1..]);
        assert_eq!(init, ("init", 0));
        let want = [
            // Two requests on device 0, then device 1, and back.
            ("device", 0),
            ("retain", 50),
            ("current", 1050),
            ("device", 1),
            ("retain", 51),
            ("current", 1051),
            ("current", 1050),
            // The end of the queue.
            ("current", 0),
        ];
        assert_eq!(rest[..want.len()], want);
        let mut released = rest[want.len()..].to_vec();
        released.sort_unstable();
        assert_eq!(released, [("release", 50), ("release", 51)]);
        return;
    }
    let devices = Devices::new(&[0, 1]);
    let queue = devices.world.queue(fine());
    let log = PathBuf::from(std::env::var_os(LOG).unwrap());
    devices.host_works(&queue);
    assert!(calls(&log).is_empty(), "no GPU memory, no driver");
    let thread = thread();
    for (plan, blocks, context) in [
        (0, [2, 4], 1050),
        (0, [6, 8], 1050),
        (1, [2, 4], 1051),
        (0, [10, 12], 1050),
    ] {
        let done = devices.send(&queue, plan, &blocks);
        assert_eq!(status(&done), Status::Ok, "{:?}", done.result);
        assert!(devices.arrived(plan, &blocks));
        let calls = calls(&log);
        let current = calls.iter().rfind(|c| c.name == "current").unwrap();
        assert_eq!(current.argument, context);
        let posted = done.record.submitted_ns + done.record.posted_ns;
        assert!(
            current.ns < posted,
            "current {} ns, posted {posted} ns",
            current.ns
        );
        assert!(calls.iter().all(|c| c.thread == thread), "{calls:?}");
    }
    queue.close(LIMIT).unwrap();
}

/// The id of the only queue's thread.
fn thread() -> u64 {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = entry.unwrap().path();
        if std::fs::read_to_string(path.join("comm")).is_ok_and(|n| n.trim() == "kvf-queue") {
            found.push(path.file_name().unwrap().to_str().unwrap().parse().unwrap());
        }
    }
    assert_eq!(found.len(), 1);
    found[0]
}

#[test]
fn a_device_that_cannot_be_had_fails_its_requests_only() {
    let name = "a_device_that_cannot_be_had_fails_its_requests_only";
    if let Some(calls) = with_driver(name, &build("driver", DRIVER)) {
        let got = brief(&calls);
        assert_eq!(got.iter().filter(|c| c.0 == "init").count(), 1);
        let released: Vec<_> = got.iter().filter(|c| c.0 == "release").collect();
        assert_eq!(
            released,
            [&("release", 50)],
            "what was not retained is not released"
        );
        return;
    }
    let devices = Devices::new(&[0, 7, 8, 1 << 40]);
    let queue = devices.world.queue(QueueOptions::default());
    let good = |i| {
        let done = devices.send(&queue, 0, &[i]);
        assert_eq!(status(&done), Status::Ok);
        assert!(devices.arrived(0, &[i]));
    };
    good(1);
    failed(
        devices.send(&queue, 1, &[1]),
        Status::Backend,
        &["cuDeviceGet", "device 7", "101"],
    );
    good(2);
    let retain = ["cuDevicePrimaryCtxRetain", "device 8", "CUresult 2"];
    failed(devices.send(&queue, 2, &[1]), Status::Backend, &retain);
    let large = ["1099511627776", "ordinal"];
    failed(
        devices.send(&queue, 3, &[1]),
        Status::InvalidArgument,
        &large,
    );
    good(3);
    devices.host_works(&queue);
    assert!(!devices.arrived(1, &[1]) && !devices.arrived(2, &[1]));
    queue.close(LIMIT).unwrap();
}

#[test]
fn a_driver_that_is_not_there_fails_requests_with_gpu_memory_only() {
    let name = "a_driver_that_is_not_there_fails_requests_with_gpu_memory_only";
    if with_driver(name, Path::new("/nowhere/libcuda.so.1")).is_some() {
        return;
    }
    let devices = Devices::new(&[0]);
    let queue = devices.world.queue(QueueOptions::default());
    for _ in 0..2 {
        let done = devices.send(&queue, 0, &[1]);
        failed(
            done,
            Status::NoBackend,
            &["/nowhere/libcuda.so.1", "GPU memory"],
        );
        devices.host_works(&queue);
    }
    assert!(!devices.arrived(0, &[1]));
}

#[test]
fn a_driver_that_lacks_a_function_is_told() {
    let name = "a_driver_that_lacks_a_function_is_told";
    if with_driver(name, &build("hollow", HOLLOW)).is_some() {
        return;
    }
    let devices = Devices::new(&[0]);
    let queue = devices.world.queue(QueueOptions::default());
    failed(
        devices.send(&queue, 0, &[1]),
        Status::NoBackend,
        &["cuDeviceGet"],
    );
    devices.host_works(&queue);
}
