//! Receives that are no longer wanted, at each stage.

use std::net::TcpListener;
use std::time::Duration;

use kvferry::connector::step::{Receive, Step};

use super::support::*;

fn two() -> Vec<Lists> {
    lists(&[3, 4], &[7, 8], 0)
}

#[test]
fn while_hands_are_being_shaken() {
    let (p, d) = Engine::pair_with("local", |o| {
        o.handshake_timeout = Duration::from_millis(500);
    });
    // Takes calls and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut receive = d.receive_of("D", &p, "P", &two());
    receive.peer.port = silent.local_addr().unwrap().port();
    d.receive(receive);
    eventually("a handshake", || d.worker().state().handshakes == 1);
    d.cancel("D");
    let why = d.failed("D");
    assert!(why[0].starts_with("canceled"), "{why:?}");
    // What remains is to tell the producer, which is not there; nobody hears of that.
    d.at_rest(0);
}

/// What remains of a cancelled receive is word to its producer, who may be long in answering. Meanwhile the
/// engine has heard of the end and may use the id again, with the same producer or another.
#[test]
fn an_id_is_free_when_it_was_reported() {
    let (mut p, d) = Engine::pair_with("test", |o| {
        o.handshake_timeout = Duration::from_millis(500);
    });
    round_trip(&mut p, &d, 1, &two(), 0);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut receive = d.receive_of("D", &p, "P", &two());
    receive.peer.port = silent.local_addr().unwrap().port();
    receive.peer.engine_id = "silent".into();
    d.receive(receive.clone());
    eventually("a handshake", || d.worker().state().handshakes == 1);
    d.cancel("D");
    assert!(d.failed("D")[0].starts_with("canceled"));
    assert_eq!(d.worker().state().receives, 0);
    // Another producer's, which moves while the handshake with the first one fails.
    script(d.agent(), &[("hold", "1")]);
    p.keep("P", &two(), lease(9, 1), LEASE);
    let mut other = d.receive_of("D", &p, "P", &two());
    other.lease = lease(9, 1);
    d.receive(other);
    eventually("a read under way", || flying(d.agent()) > 0);
    assert_eq!(d.worker().state().handshakes, 1);
    eventually("the end of the handshake", || {
        d.worker().state().handshakes == 0
    });
    assert!(d.worker().poll().is_empty());
    script(d.agent(), &[("hold", "0")]);
    d.received("D");
    p.sent("P");
    d.at_rest(1);
    // The same producer's: it waits for the same handshake, and ends with it, once.
    for _ in 0..2 {
        d.receive(receive.clone());
        d.cancel("D");
        assert!(d.failed("D")[0].starts_with("canceled"));
    }
    d.receive(receive);
    assert!(d.failed("D")[0].contains("handshake"));
    d.at_rest(1);
}

#[test]
fn while_bytes_move() {
    let (mut p, d) = Engine::pair("test");
    round_trip(&mut p, &d, 1, &two(), 0);
    script(d.agent(), &[("hold", "1")]);
    p.keep("P", &two(), lease(9, 1), LEASE);
    let mut receive = d.receive_of("D", &p, "P", &two());
    receive.lease = lease(9, 1);
    d.receive(receive);
    eventually("a read under way", || flying(d.agent()) > 0);
    d.cancel("D");
    assert!(d.failed("D")[0].starts_with("canceled"));
    // The producer may free its blocks.
    p.sent("P");
    script(d.agent(), &[("hold", "0")]);
    d.at_rest(1);
    p.at_rest(0);
}

#[test]
fn while_bytes_move_that_cannot_be_stopped() {
    let (mut p, d) = Engine::pair("test");
    round_trip(&mut p, &d, 1, &two(), 0);
    script(d.agent(), &[("hold", "1"), ("stubborn", "1")]);
    p.keep("P", &two(), lease(9, 1), LEASE);
    let mut receive = d.receive_of("D", &p, "P", &two());
    receive.lease = lease(9, 1);
    d.receive(receive);
    eventually("a read under way", || flying(d.agent()) > 0);
    d.cancel("D");
    // Something that the worker and its queue do later is done, and the request is not.
    let mut bad = d.receive_of("canary", &p, "P", &two());
    bad.local[0][0] = 1_000_000;
    d.receive(bad);
    d.failed("canary");
    assert_eq!(d.worker().state().receives, 1);
    script(d.agent(), &[("hold", "0")]);
    assert!(d.failed("D")[0].starts_with("canceled"));
    p.sent("P");
    d.at_rest(1);
}

/// The producer has no lease words, and the read ends well, but after the estimate of the lease and after it
/// was called off: the producer is told by the queue, and must not be told again.
#[test]
fn too_late_and_read_too_late() {
    let (mut p, d) = Engine::pair_with("test", |o| o.lease = Duration::from_millis(500));
    round_trip(&mut p, &d, 1, &two(), 0);
    script(d.agent(), &[("hold", "1")]);
    p.keep("P", &two(), None, LEASE);
    d.receive(d.receive_of("D", &p, "P", &two()));
    eventually("a read under way", || flying(d.agent()) > 0);
    d.hold("clock", None, Duration::from_secs(1));
    d.sent("clock");
    // Keeps the worker busy while the read ends, so that it hears of the cancellation first.
    let mut nonsense = d.receive_of("", &p, "P", &[]);
    nonsense.awaited = false;
    nonsense.local = vec![vec![1]; 2];
    nonsense.local_first = vec![0; 2];
    let nonsense = |n: u32| Receive {
        request_id: format!("nonsense {n}"),
        ..nonsense.clone()
    };
    d.step(&Step {
        receives: (0..20_000).map(nonsense).collect(),
        cancel: vec!["D".into()],
        ..Step::default()
    });
    script(d.agent(), &[("hold", "0")]);
    d.failed("D");
    p.sent("P");
    // What the worker has said to p comes before this.
    p.keep("last", &two(), lease(9, 1), LEASE);
    let mut last = d.receive_of("last", &p, "last", &lists(&[3], &[], 1));
    last.lease = lease(9, 1);
    d.receive(last);
    d.received("last");
    p.sent("last");
    assert_eq!(p.stat(0, "num_notifications_after_expiry"), 0);
}

#[test]
fn before_it_was_asked_for_and_after_it_was_over() {
    let (mut p, d) = Engine::pair("local");
    d.cancel("never");
    round_trip(&mut p, &d, 1, &two(), 0);
    d.cancel("D-1");
    round_trip(&mut p, &d, 2, &two(), 0);
    // Aborted before the step: the producer is told, the engine hears that it is over, nothing is read.
    p.keep("P", &two(), lease(9, 1), LEASE);
    let before = d.memories();
    let mut receive = d.receive_of("D", &p, "P", &lists(&[3, 4], &[], 0));
    receive.awaited = true;
    d.receive(receive);
    d.received("D");
    p.sent("P");
    check(&d, &before);
    d.at_rest(1);
}
