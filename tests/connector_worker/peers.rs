//! Peers that come, go, come back, and are forgotten.

use std::time::Duration;

use kvferry::connector::step::Receive;
use kvferry::connector::worker::WorkerOptions;

use super::support::*;

fn two() -> Vec<Lists> {
    lists(&[3, 4], &[7, 8], 0)
}

fn recipe(transport: &'static str, id: &str, change: fn(&mut WorkerOptions)) -> Recipe {
    let model = dense(2);
    Recipe::new(transport, id, &model, style(&model, 1, 32, 4)).change(change)
}

#[test]
fn a_peer_that_is_not_there() {
    let d = recipe("local", "d", |_| {}).start();
    let p = recipe("local", "p", |_| {}).start();
    p.listener.shutdown();
    for n in 0..3 {
        let id = format!("D{n}");
        d.receive(d.receive_of(&id, &p, "P", &two()));
        let why = d.failed(&id);
        assert!(why[0].contains("handshake with engine"), "{why:?}");
        assert_eq!(d.stat(0, "num_failed_handshakes"), 1);
    }
    // Nothing was to be fetched: nobody waits for it.
    let mut receive = d.receive_of("quiet", &p, "P", &lists(&[3], &[], 1));
    receive.awaited = false;
    d.receive(receive);
    d.at_rest(0);
}

#[test]
fn many_requests_share_one_handshake() {
    let (mut p, d) = Engine::pair("local");
    for n in 0..20u32 {
        p.keep(
            &format!("P{n}"),
            &lists(&[n + 1], &[n + 1], 0),
            lease(n, 1),
            LEASE,
        );
    }
    for n in 0..20 {
        let list = lists(&[n + 1], &[n + 1], 0);
        let mut receive = d.receive_of(&format!("D{n}"), &p, &format!("P{n}"), &list);
        receive.lease = lease(n, 1);
        d.receive(receive);
    }
    let (mut received, mut sent) = (Vec::new(), Vec::new());
    eventually("all of them", || {
        received.extend(d.worker().poll().received);
        sent.extend(p.worker().poll().sent);
        (received.len(), sent.len()) == (20, 20)
    });
    d.at_rest(1);
    p.at_rest(0);
}

#[test]
fn a_peer_that_comes_back_under_another_id() {
    for transport in ["local", "test"] {
        let d = recipe(transport, "d", |_| {}).start();
        let mut p = recipe(transport, "p", |_| {}).start();
        round_trip(&mut p, &d, 1, &two(), 0);
        let port = p.listener.local_addr().port();
        p.listener.shutdown();
        drop(p);
        let mut again = recipe(transport, "p", |_| {});
        again.port = port;
        let mut p = again.start();
        round_trip(&mut p, &d, 2, &two(), 0);
        // The old one is forgotten.
        d.at_rest(1);
        round_trip(&mut p, &d, 3, &two(), 0);
    }
}

#[test]
fn a_peer_that_comes_back_under_the_same_id() {
    for transport in ["local", "test"] {
        let d = recipe(transport, "d", |_| {}).start();
        let mut first = recipe(transport, "p", |_| {});
        let mut p = first.start();
        round_trip(&mut p, &d, 1, &two(), 0);
        first.port = p.listener.local_addr().port();
        p.listener.shutdown();
        drop(p);
        let mut p = first.start();
        // The link is that of the dead one: one request finds out.
        p.keep("lost", &two(), lease(9, 1), LEASE);
        let mut receive = d.receive_of("lost", &p, "lost", &two());
        receive.lease = lease(9, 1);
        d.receive(receive);
        d.failed("lost");
        round_trip(&mut p, &d, 2, &two(), 0);
        d.at_rest(1);
    }
}

/// A request of an engine's former life: its blocks are another's now, under the same engine id, at the same
/// address, perhaps under the same lease word.
#[test]
fn leases_of_a_former_life_are_over() {
    for transport in ["local", "test"] {
        let d = recipe(transport, "d", |_| {}).start();
        let mut recipe = recipe(transport, "p", |_| {});
        let mut p = recipe.start();
        let old = lease_of_now(9);
        p.keep("P", &two(), old, LEASE);
        recipe.port = p.listener.local_addr().port();
        p.listener.shutdown();
        drop(p);
        let mut p = recipe.start();
        let stale = |id: &str| {
            let mut receive = d.receive_of(id, &p, "P", &two());
            receive.lease = old;
            receive
        };
        d.receive(stale("D1"));
        assert!(d.failed("D1")[0].starts_with("expired"), "{transport}");
        let (again, other) = (stale("D2"), d.receive_of("D3", &p, "new", &two()));
        let new = lease_of_now(9);
        p.keep("new", &two(), new, LEASE);
        d.receive(again);
        assert!(d.failed("D2")[0].starts_with("expired"), "{transport}");
        d.receive(Receive {
            lease: new,
            ..other
        });
        d.received("D3");
        p.sent("new");
        d.at_rest(1);
    }
}

/// Without lease words it is the time that tells whether blocks are still kept, and that was the time of an
/// engine that is dead: the one that has taken its place never kept them.
#[test]
fn what_a_dead_engine_kept_is_not_read_from_the_one_that_has_its_id() {
    let d = recipe("test", "d", |_| {}).start();
    let mut first = recipe("test", "p", |_| {});
    let mut p = first.start();
    round_trip(&mut p, &d, 1, &two(), 0);
    // Heard of while the first one lived.
    d.heartbeat(&p, &["kept"]);
    first.port = p.listener.local_addr().port();
    p.listener.shutdown();
    drop(p);
    let mut p = first.start();
    d.receive(d.receive_of("finds out", &p, "any", &two()));
    d.failed("finds out");
    d.receive(d.receive_of("late", &p, "kept", &two()));
    let why = d.failed("late");
    assert!(why[0].starts_with("expired"), "{why:?}");
    // What is heard of now is the new one's.
    p.keep("fresh", &two(), None, LEASE);
    let (want, _) = with_memory_of(&p, &d, &two());
    d.receive(d.receive_of("fresh", &p, "fresh", &two()));
    d.received("fresh");
    p.sent("fresh");
    check(&d, &want);
}

#[test]
fn a_peer_that_is_lost_again_and_again_is_left_alone_for_a_while() {
    let (mut p, d) = Engine::pair("test");
    round_trip(&mut p, &d, 1, &two(), 0);
    p.keep("P", &two(), lease(9, 1), LEASE);
    let name = p.agent().name().to_owned();
    let mut why = String::new();
    for n in 0..3 {
        // Loading its metadata anew makes it found again.
        script(d.agent(), &[("lose", &name)]);
        let id = format!("D{n}");
        let mut receive = d.receive_of(&id, &p, "P", &two());
        receive.lease = lease(9, 1);
        if n > 0 {
            // With a fresh link, so that it is lost in the middle.
            script(d.agent(), &[("hold", "1")]);
            d.receive(receive);
            let mut results = d.worker().poll();
            eventually("a read under way, or a refusal", || {
                let more = d.worker().poll();
                results.failed.extend(more.failed);
                results.received.extend(more.received);
                flying(d.agent()) > 0 || !results.failed.is_empty()
            });
            script(d.agent(), &[("lose", &name), ("hold", "0")]);
            eventually("a failure", || {
                let more = d.worker().poll();
                results.failed.extend(more.failed);
                !results.failed.is_empty()
            });
        } else {
            d.receive(receive);
            d.failed(&id);
        }
        why = d.worker().take_records_json();
    }
    assert!(why.contains("is left alone"), "{why}");
    eventually("the end of that", || {
        script(d.agent(), &[("find", &name)]);
        let mut receive = d.receive_of("after", &p, "P", &two());
        receive.lease = lease(9, 1);
        d.receive(receive);
        let results = next(d.worker());
        results.failed.is_empty()
    });
    p.sent("P");
    d.at_rest(1);
}

#[test]
fn a_peer_that_nobody_wants_is_forgotten() {
    let d = recipe("local", "d", |o| {
        o.engine_ttl = Some(Duration::from_millis(300));
    })
    .start();
    let mut p = recipe("local", "p", |_| {}).start();
    round_trip(&mut p, &d, 1, &two(), 0);
    d.at_rest(0);
    let known = d
        .agent()
        .check_remote(p.agent().name(), kvferry::memory::MemKind::Dram, &[]);
    assert!(!matches!(known, Ok(true)));
    round_trip(&mut p, &d, 2, &two(), 0);
}

#[test]
fn a_peer_that_has_registered_anew_is_met_anew() {
    let (mut p, d) = Engine::pair("local");
    round_trip(&mut p, &d, 1, &two(), 0);
    p.listener.shutdown();
    // The link does for what it was for ...
    round_trip(&mut p, &d, 2, &two(), 0);
    // ... and not for what has been published since.
    let mut receive = d.receive_of("D", &p, "P", &two());
    receive.registration = 1;
    d.receive(receive);
    assert!(d.failed("D")[0].contains("handshake with engine"));
    d.at_rest(0);
}

/// The link is in use when a request comes that needs a newer one: it waits, and is kept alive meanwhile.
#[test]
fn a_peer_that_registers_anew_while_it_is_read_from() {
    let (mut p, d) = Engine::pair("test");
    round_trip(&mut p, &d, 1, &two(), 0);
    script(d.agent(), &[("hold", "1")]);
    p.keep("P", &two(), lease(8, 1), LEASE);
    let mut receive = d.receive_of("old", &p, "P", &two());
    receive.lease = lease(8, 1);
    d.receive(receive);
    eventually("a read under way", || flying(d.agent()) > 0);
    let (soon, later) = (Duration::from_secs(1), Duration::from_millis(1200));
    let other = lists(&[10, 11], &[12, 13], 0);
    p.keep("Q", &other, lease(9, 1), soon);
    p.hold("clock", None, later);
    let mut receive = d.receive_of("new", &p, "Q", &other);
    receive.lease = lease(9, 1);
    receive.registration = 1;
    d.receive(receive);
    d.heartbeat(&p, &["Q"]);
    // Q's lease would have ended before.
    p.sent("clock");
    assert!(d.worker().poll().is_empty());
    assert_eq!(d.worker().state().receives, 2);
    assert_eq!(d.worker().state().handshakes, 0);
    script(d.agent(), &[("hold", "0")]);
    let mut received = Vec::new();
    eventually("both", || {
        let results = d.worker().poll();
        assert!(results.failed.is_empty(), "{results:?}");
        received.extend(results.received);
        received.len() == 2
    });
    assert_eq!(received, ["old", "new"]);
    let mut sent = Vec::new();
    eventually("both", || {
        sent.extend(p.worker().poll().sent);
        sent.len() == 2
    });
    d.at_rest(1);
    p.at_rest(0);
}

/// What takes long in the transport holds nobody else up.
#[test]
fn a_peer_that_loads_slowly_is_waited_for_by_its_own_requests_only() {
    let (mut p, d) = Engine::pair("test");
    let mut q = recipe("test", "q", |_| {}).start();
    round_trip(&mut p, &d, 1, &two(), 0);
    script(d.agent(), &[("hold_load", "1")]);
    q.keep("Q", &lists(&[10], &[12], 0), lease(9, 1), LEASE);
    let mut receive = d.receive_of("slow", &q, "Q", &lists(&[10], &[12], 0));
    receive.lease = lease(9, 1);
    d.receive(receive);
    // Answers, and then its metadata is being loaded.
    eventually("a handshake", || loading(d.agent()) == 1);
    // The worker lets p's agent go, since it has published anew, and begins to load it again.
    p.keep("P", &two(), lease(8, 1), LEASE);
    let mut receive = d.receive_of("anew", &p, "P", &two());
    receive.lease = lease(8, 1);
    receive.registration = 1;
    d.receive(receive);
    eventually("another handshake", || loading(d.agent()) == 2);
    assert_eq!(d.worker().state().receives, 2);
    script(d.agent(), &[("hold_load", "0")]);
    p.sent("P");
    q.sent("Q");
    let mut received = Vec::new();
    eventually("both", || {
        received.extend(d.worker().poll().received);
        received.len() == 2
    });
    d.at_rest(2);
}

#[test]
fn an_engine_that_reads_from_two_at_once() {
    let (mut p, d) = Engine::pair("local");
    let mut q = recipe("local", "q", |_| {}).start();
    for n in 0..4 {
        round_trip(&mut p, &d, 2 * n + 1, &two(), 0);
        round_trip(&mut q, &d, 2 * n + 2, &two(), 0);
    }
    d.at_rest(2);
}
