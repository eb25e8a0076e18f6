//! What workers take from the process, and that nothing of it is left behind. A program of its own, with
//! one test, since threads and descriptors belong to the whole process.

#[path = "common/mod.rs"]
mod common;
#[path = "nixl_support/mod.rs"]
mod nixl_support;
#[path = "connector_worker/support.rs"]
mod support;

use std::fs;
use std::time::Duration;

use support::*;

fn threads() -> Vec<String> {
    let name = |id: String| fs::read_to_string(format!("/proc/self/task/{id}/comm")).ok();
    fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|entry| name(entry.unwrap().file_name().into_string().unwrap()))
        .filter(|name| name.starts_with("kvf-"))
        .collect()
}

fn open_fds() -> usize {
    // The listing itself holds one.
    fs::read_dir("/proc/self/fd").unwrap().count() - 1
}

#[test]
fn threads_descriptors_and_peers_are_given_back() {
    assert!(threads().is_empty());
    let mut before = None;
    for round in 0..4 {
        let (mut p, d) = Engine::pair("local");
        for n in 0..5 {
            round_trip(&mut p, &d, n, &lists(&[3, 4], &[7, 8], 0), 0);
        }
        // Something that waits for ever, as far as anybody knows.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut receive = d.receive_of("D", &p, "P", &lists(&[3], &[7], 0));
        receive.peer.engine_id = "silent".into();
        receive.peer.port = silent.local_addr().unwrap().port();
        d.receive(receive);
        eventually("a handshake", || d.worker().state().handshakes == 1);
        p.keep("kept", &lists(&[3], &[7], 0), lease(40, 1), LEASE);
        d.worker().close(Duration::ZERO).unwrap();
        let name = p.agent().name().to_owned();
        let known = d
            .agent()
            .check_remote(&name, kvferry::memory::MemKind::Dram, &[]);
        assert!(!matches!(known, Ok(true)), "the peer is forgotten");
        drop(silent);
        drop((p, d));
        eventually("all threads to end", || threads().is_empty());
        if round == 0 {
            before = Some(open_fds());
        }
        assert_eq!(Some(open_fds()), before, "round {round}");
    }
}
