//! How long blocks are kept, and that nothing that was kept too short is taken for good.

use std::time::{Duration, Instant};

use kvferry::connector::step::Step;

use super::support::*;

const LISTS: (&[u32], &[u32]) = (&[3, 4, 9], &[7, 8, 2]);

fn three() -> Vec<Lists> {
    lists(LISTS.0, LISTS.1, 0)
}

fn now_s() -> f64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a live timespec is filled.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

fn pass(time: Duration) {
    let begin = Instant::now();
    eventually("time to pass", || begin.elapsed() >= time);
}

#[test]
fn heartbeats_keep_a_request_alive_and_the_first_one_shakes_hands() {
    let (mut p, d) = Engine::pair("local");
    assert_eq!(d.worker().state().peers, 0);
    d.heartbeat(&p, &["nothing"]);
    eventually("a link", || {
        let state = d.worker().state();
        (state.peers, state.handshakes) == (1, 0)
    });
    let short = Duration::from_secs(2);
    p.keep("kept", &three(), lease(1, 1), short);
    p.keep("left", &lists(&[1], &[1], 0), lease(2, 1), short);
    // An id with a comma cannot be named; it disturbs no other.
    d.heartbeat(&p, &["kept", "le,ft", "unknown"]);
    p.sent("left");
    assert_eq!(p.stat(0, "num_kv_expired_reqs"), 1);
    pass(short / 2);
    assert_eq!(p.worker().state().holds, 1, "extended");
    let (want, _) = with_memory_of(&p, &d, &three());
    let mut receive = d.receive_of("D", &p, "kept", &three());
    receive.lease = lease(1, 1);
    d.receive(receive);
    d.received("D");
    p.sent("kept");
    check(&d, &want);
}

#[test]
fn a_lease_that_has_ended_is_refused_by_its_word() {
    for transport in ["local", "test"] {
        let (mut p, d) = Engine::pair(transport);
        p.keep("gone", &three(), lease(5, 3), Duration::from_millis(1));
        p.sent("gone");
        let word_is = format!("word is {}", 2 * lease(5, 3).unwrap().generation);
        let mut receive = d.receive_of("D", &p, "gone", &three());
        receive.lease = lease(5, 3);
        d.receive(receive.clone());
        let why = d.failed("D");
        assert!(
            why[0].contains("expired") && why[0].contains(&word_is),
            "{why:?}"
        );
        assert_eq!(d.stat(0, "num_failed_transfers"), 1);
        // The slot's next use is another lease.
        p.keep("next", &three(), lease(5, 4), LEASE);
        receive.request_id = "D2".into();
        receive.remote_request_id = "next".into();
        receive.lease = lease(5, 4);
        d.receive(receive);
        d.received("D2");
        p.sent("next");
        // Nobody was told of the first read.
        assert_eq!(p.stat(0, "num_notifications_after_expiry"), 0);
        d.at_rest(1);
        p.at_rest(0);
    }
}

#[test]
fn blocks_that_are_used_again_during_the_read_are_never_reported_as_received() {
    let (mut p, d) = Engine::pair("test");
    round_trip(&mut p, &d, 1, &three(), 0);
    script(d.agent(), &[("hold", "1")]);
    p.keep("P", &three(), lease(7, 1), Duration::from_millis(300));
    let mut receive = d.receive_of("D", &p, "P", &three());
    receive.lease = lease(7, 1);
    d.receive(receive);
    eventually("a read under way", || flying(d.agent()) > 0);
    p.sent("P");
    // The producer's blocks are somebody else's now, and that is what the reader gets.
    script(d.agent(), &[("hold", "0")]);
    let why = d.failed("D");
    assert!(why[0].starts_with("expired"), "{why:?}");
    round_trip(&mut p, &d, 2, &three(), 0);
    d.at_rest(1);
}

#[test]
fn without_a_word_a_lease_is_estimated() {
    let short = |o: &mut kvferry::connector::worker::WorkerOptions| {
        o.lease = Duration::from_secs(2);
    };
    let (mut p, d) = Engine::pair_with("test", short);
    p.keep("in time", &three(), None, LEASE);
    d.receive(d.receive_of("D1", &p, "in time", &three()));
    d.received("D1");
    p.sent("in time");
    script(d.agent(), &[("hold", "1")]);
    p.keep("late", &three(), None, LEASE);
    d.receive(d.receive_of("D2", &p, "late", &three()));
    eventually("a read under way", || flying(d.agent()) > 0);
    pass(Duration::from_millis(2100));
    script(d.agent(), &[("hold", "0")]);
    let why = d.failed("D2");
    assert!(
        why[0].contains("without lease words may have ended"),
        "{why:?}"
    );
    d.at_rest(1);
}

/// A request that has queued here for as long as its lease, and for which no heartbeat went out.
#[test]
fn the_estimate_counts_the_time_in_the_queue() {
    let (mut p, d) = Engine::pair("local");
    for (n, waited, good) in [(1, LEASE - LEASE / 10, true), (2, LEASE, false)] {
        let (there, here) = (format!("P{n}"), format!("D{n}"));
        p.keep(&there, &three(), None, LEASE);
        let mut receive = d.receive_of(&here, &p, &there, &three());
        receive.waited_ns = waited.as_nanos() as u64;
        d.receive(receive);
        if good {
            d.received(&here);
            p.sent(&there);
        } else {
            let why = d.failed(&here);
            assert!(why[0].contains("may have ended"), "{why:?}");
        }
    }
}

#[test]
fn blocks_kept_until_a_stated_time_are_not_read_close_to_it() {
    let (mut p, d) = Engine::pair("local");
    for (n, (left, good)) in [
        (100.0, true),
        (4.0, false),
        (-1.0, false),
        (f64::NAN, false),
    ]
    .into_iter()
    .enumerate()
    {
        let (there, here) = (format!("P{n}"), format!("D{n}"));
        p.keep(&there, &three(), None, LEASE);
        let mut receive = d.receive_of(&here, &p, &there, &three());
        receive.expiry = Some(now_s() + left);
        // Not a number does not get through the bytes of a step; to the worker itself it is over.
        let step = Step {
            receives: vec![receive],
            ..Step::default()
        };
        d.worker().take_step(step).unwrap();
        if good {
            d.received(&here);
            p.sent(&there);
        } else {
            assert!(d.failed(&here)[0].starts_with("expired"));
        }
    }
}

#[test]
fn a_reader_may_be_through_before_the_lease_comes() {
    let (mut p, d) = Engine::pair("local");
    p.sim.fill(0, LISTS.0, 0);
    p.step(&Step {
        in_batch: vec!["P".into(), "Q".into()],
        ..Step::default()
    });
    let mut receive = d.receive_of("D", &p, "P", &three());
    receive.lease = lease(0, 1);
    d.receive(receive);
    d.received("D");
    // The reader is through and has said so, but the request may still be running: it is reported when it
    // has finished, and at once then.
    p.hold("P", lease(0, 1), LEASE);
    p.sent("P");
    p.step(&Step {
        forget: vec!["Q".into()],
        ..Step::default()
    });
    p.at_rest(0);
}

/// A request is aborted and its id used again, and both are said in one step.
#[test]
fn an_id_that_is_forgotten_can_be_in_a_batch_again() {
    let (mut p, d) = Engine::pair("local");
    p.sim.fill(0, LISTS.0, 0);
    p.step(&Step {
        forget: vec!["P".into()],
        in_batch: vec!["P".into()],
        ..Step::default()
    });
    d.receive(d.receive_of("D", &p, "P", &three()));
    d.received("D");
    // The reader was through before the lease came, and that was counted.
    p.hold("P", None, LEASE);
    p.sent("P");
    p.at_rest(0);
}
