//! The end of a worker, in whatever state it is.

use std::time::Duration;

use kvferry::connector::worker::{Worker, WorkerOptions};
use kvferry::error::Status;
use kvferry::memory::{MemDesc, MemKind};

use super::support::*;

fn two() -> Vec<Lists> {
    lists(&[3, 4], &[7, 8], 0)
}

fn options() -> WorkerOptions {
    WorkerOptions {
        engine_id: "e".into(),
        ..WorkerOptions::default()
    }
}

#[test]
fn a_worker_that_has_no_cache() {
    let (p, _) = Engine::pair("local");
    let worker = Worker::create(agent("local", "half"), options()).unwrap();
    assert_eq!(worker.payload().unwrap_err().status(), Status::InvalidState);
    let receive = p.receive_of("D", &p, "P", &two());
    let step = kvferry::connector::step::Step {
        receives: vec![receive],
        ..Default::default()
    };
    worker.take_step(step).unwrap();
    assert_eq!(next(&worker).failed, ["D"]);
    worker.close(Duration::ZERO).unwrap();
    worker.close(Duration::ZERO).unwrap();
    let closed = worker.take_step(Default::default()).unwrap_err();
    assert_eq!(closed.status(), Status::InvalidState);
    assert!(worker.poll().is_empty());
}

#[test]
fn options_that_cannot_be() {
    type Change = fn(&mut WorkerOptions);
    let bad: [(&str, Change); 5] = [
        ("engine_id", |o| o.engine_id.clear()),
        ("compat_hash", |o| o.compat_hash = Some("A".repeat(64))),
        ("lease", |o| o.lease = Duration::ZERO),
        ("handshake_timeout", |o| {
            o.handshake_timeout = Duration::ZERO
        }),
        ("transfer_timeout", |o| o.transfer_timeout = Duration::MAX),
    ];
    let agent = agent("local", "options");
    for (field, change) in bad {
        let mut o = options();
        change(&mut o);
        let e = Worker::create(agent.clone(), o).err().expect(field);
        assert_eq!(e.status(), Status::InvalidArgument);
        assert!(e.message().contains(field), "{e}");
    }
}

#[test]
fn in_the_middle_of_everything() {
    let (mut p, d) = Engine::pair_with("test", |o| {
        o.handshake_timeout = Duration::from_millis(300);
    });
    round_trip(&mut p, &d, 1, &two(), 0);
    p.keep("P", &two(), lease(9, 1), LEASE);
    script(d.agent(), &[("hold", "1")]);
    let mut receive = d.receive_of("D", &p, "P", &two());
    receive.lease = lease(9, 1);
    d.receive(receive.clone());
    eventually("a read under way", || flying(d.agent()) > 0);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    receive.request_id = "waits".into();
    receive.peer.engine_id = "silent".into();
    receive.peer.port = silent.local_addr().unwrap().port();
    d.receive(receive);
    eventually("a handshake", || d.worker().state().handshakes == 1);
    d.worker().close(Duration::ZERO).unwrap();
    assert_eq!(flying(d.agent()), 0);
    let left = d.worker().poll();
    assert!(left.received.contains(&"D".to_owned()) && left.failed.contains(&"D".to_owned()));
    // A producer that ends takes its leases with it.
    p.worker().close(Duration::ZERO).unwrap();
    assert_eq!(p.worker().state(), Default::default());
}

#[test]
fn memory_is_left_alone_while_bytes_move_that_cannot_be_stopped() {
    let (mut p, d) = Engine::pair("test");
    round_trip(&mut p, &d, 1, &two(), 0);
    script(d.agent(), &[("hold", "1"), ("stubborn", "1")]);
    p.keep("P", &two(), lease(9, 1), LEASE);
    let mut receive = d.receive_of("D", &p, "P", &two());
    receive.lease = lease(9, 1);
    d.receive(receive);
    eventually("a read under way", || flying(d.agent()) > 0);
    let e = d.worker().close(Duration::ZERO).unwrap_err();
    assert_eq!(e.status(), Status::Timeout);
    // The peer is known, and so is every range.
    let known = |agent: &str| d.agent().check_remote(agent, MemKind::Dram, &[]);
    assert_eq!(known(p.agent().name()), Ok(true));
    let witness = agent("test", "witness");
    let name = witness.add_remote(&d.agent().metadata().unwrap()).unwrap();
    for tensor in kv_cache(&d.sim, 0, &WorkerOptions::default()).tensors {
        let range = MemDesc {
            len: 1,
            ..tensor.storage
        };
        let there = witness.check_remote(&name, MemKind::Dram, &[range]);
        assert_eq!(there, Ok(true), "{}", tensor.layer);
    }
    script(d.agent(), &[("hold", "0")]);
}

#[test]
fn a_closed_worker_registers_nothing() {
    let (p, _) = Engine::pair("test");
    let worker = Worker::create(agent("test", "closed"), options()).unwrap();
    worker.close(Duration::ZERO).unwrap();
    let cache = kv_cache(&p.sim, 0, &WorkerOptions::default());
    let e = worker.register_kv(&cache).unwrap_err();
    assert_eq!(e.status(), Status::InvalidState);
    assert!(e.message().contains("closed"), "{e}");
}

#[test]
fn a_child_leaves_its_parents_worker_alone() {
    let (mut p, d) = Engine::pair("local");
    round_trip(&mut p, &d, 1, &two(), 0);
    // SAFETY: the child only calls what is under test and ends without unwinding.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let refused = d.worker().take_step(Default::default());
        let fine = refused.is_err_and(|e| e.status() == Status::InvalidState)
            && d.worker().close(Duration::ZERO).is_ok();
        drop(d);
        // SAFETY: ends the child, and nothing of it runs.
        unsafe { libc::_exit(i32::from(!fine)) };
    }
    let mut status = 0;
    eventually("the child's end", || {
        // SAFETY: our own child.
        unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) == child }
    });
    assert_eq!(status, 0);
    round_trip(&mut p, &d, 2, &two(), 0);
}
