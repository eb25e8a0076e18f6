//! Ids: which can be used, and when again.

use std::time::Duration;

use kvferry::connector::Mode;
use kvferry::connector::scheduler::{Finish, Keep, Scheduler, SchedulerOptions};
use kvferry::error::Status;

use crate::support::*;

fn from_p() -> String {
    from_producer("p", "[[1, 2, 3]]", 40)
}

/// The id cannot be used now, and the attempt has changed nothing.
#[track_caller]
fn taken(e: &Engine, id: &str, part: &str) {
    let before = e.half.stats();
    for params in [from_p(), TO_PRODUCER.to_owned()] {
        let error = e.half.add(id, params.as_bytes(), 40, true).unwrap_err();
        assert_eq!(error.status(), Status::InvalidState);
        assert!(error.message().contains(part), "{error}");
    }
    assert_eq!(e.half.stats(), before);
}

#[test]
fn an_id_that_is_being_received_is_taken() {
    for mode in [Mode::Pull, Mode::Push] {
        let e = Engine::new(SchedulerOptions { mode, ..options() });
        e.add("d", &from_p(), 40);
        e.allocated("d", &[(&[7, 8, 9], 0)], 40);
        taken(&e, "d", "request \"d\" is still being received");
        e.step();
        taken(&e, "d", "still being received");
        let end = e.finished("d", Finish::Abort, &[&[7, 8, 9]], 0);
        assert_eq!(end.keep, Keep::UntilReceived);
        assert_eq!(e.half.stats().receiving, 1, "until it is reported");
        taken(&e, "d", "free when it has been reported as received");
        e.step();
        taken(&e, "d", "still being received");
        e.half.received(["d"]);
        // Free: a whole new life.
        e.add("d", &from_p(), 40);
        assert_eq!(e.half.match_tokens("d", 40, 0), 40);
        e.allocated("d", &[(&[4, 5, 6], 0)], 40);
        assert_eq!(e.half.stats().receiving, 1);
        let step = e.step();
        let lists = [step.receives, step.registrations].concat();
        assert_eq!((lists[0].local.len(), lists.len()), (1, 1));
        assert!(step.cancel.is_empty());
        e.half.received(["d"]);
        e.finished("d", Finish::Stop, &[&[4, 5, 6]], 50);
        assert!(e.is_empty());
    }
}

#[test]
fn an_id_whose_blocks_are_kept_is_taken() {
    let e = Engine::pull();
    e.add("p", TO_PRODUCER, 40);
    e.finished("p", Finish::Length, &[&[1, 2, 3]], 40);
    taken(&e, "p", "the blocks of a request \"p\" are still kept");
    e.step();
    taken(&e, "p", "free when it has been reported as sent");
    e.half.sent(["p"]);
    e.add("p", TO_PRODUCER, 40);
    e.finished("p", Finish::Length, &[&[4]], 16);
    assert_eq!(e.step().holds.len(), 1);
    e.half.sent(["p"]);
    assert!(e.is_empty());
}

/// The workers report it before they hear that it is to be stopped: by then it is another request's id.
#[test]
fn a_cancellation_does_not_outlive_its_request() {
    let e = Engine::new(SchedulerOptions {
        mode: Mode::Push,
        registration_timeout: Duration::from_secs(10),
        ..options()
    });
    for given_up in [false, true] {
        for id in ["other", "d"] {
            e.add(id, &from_p(), 40);
            e.allocated(id, &[(&[7, 8, 9], 0)], 40);
        }
        e.step();
        if given_up {
            e.wait(Duration::from_secs(10));
            assert_eq!(e.step().cancel, ["other", "d"]);
        }
        for id in ["other", "d"] {
            e.finished(id, Finish::Abort, &[&[7, 8, 9]], 0);
        }
        e.half.received(["d"]);
        e.add("d", &from_p(), 40);
        e.allocated("d", &[(&[4, 5, 6], 0)], 40);
        let step = e.step();
        let others: &[&str] = if given_up { &[] } else { &["other"] };
        assert_eq!(step.cancel, others);
        assert_eq!(step.registrations.len(), 1);
        e.half.received(["d", "other"]);
        e.finished("d", Finish::Stop, &[&[4, 5, 6]], 50);
        assert!(e.is_empty());
    }
}

/// An engine that says an end twice must not free blocks for that.
#[test]
fn an_end_can_be_said_again() {
    let e = Engine::pull();
    e.add("d", &from_p(), 40);
    e.allocated("d", &[(&[7, 8, 9], 0)], 40);
    e.add("p", TO_PRODUCER, 40);
    for _ in 0..2 {
        let end = e.finished("d", Finish::Abort, &[&[7, 8, 9]], 0);
        assert_eq!(end.keep, Keep::UntilReceived);
        let end = e.finished("p", Finish::Stop, &[&[1]], 16);
        assert_eq!(end.keep, Keep::UntilSent);
    }
    assert_eq!(e.step().holds.len(), 1);
    e.half.received(["d"]);
    e.half.sent(["p"]);
    assert_eq!(e.finished("d", Finish::Abort, &[], 0).keep, Keep::No);
    assert_eq!(e.finished("p", Finish::Abort, &[], 0).keep, Keep::No);
    assert!(e.is_empty());
}

/// Workers take what they are to forget before what is in a batch.
#[test]
fn an_aborted_producer_leaves_its_id() {
    let e = Engine::pull();
    e.add("p", TO_PRODUCER, 40);
    e.allocated("p", &[(&[1], 0)], 0);
    e.finished("p", Finish::Abort, &[&[1]], 0);
    let step = e.step();
    assert_eq!((step.forget.len(), step.in_batch.len()), (1, 0));
    for _ in 0..2 {
        e.add("p", TO_PRODUCER, 40);
        e.allocated("p", &[(&[1], 0)], 0);
        e.finished("p", Finish::Abort, &[&[1]], 0);
    }
    e.add("p", TO_PRODUCER, 40);
    e.allocated("p", &[(&[2], 0)], 0);
    let step = e.step();
    assert_eq!((step.forget.len(), step.in_batch.len()), (2, 1));
}

/// An engine that adds one twice: the second time counts.
#[test]
fn an_id_that_waits_can_be_added_anew() {
    let e = Engine::pull();
    e.add("d", &from_p(), 40);
    e.add("d", TO_PRODUCER, 40);
    assert_eq!(e.half.match_tokens("d", 40, 0), 0);
    assert_eq!(e.half.stats().heartbeats, 0);
    e.finished("d", Finish::Abort, &[], 0);
    assert!(e.is_empty());
}

#[test]
fn no_id_has_a_nul() {
    let e = Engine::pull();
    let error = e.half.add("a\0b", TO_PRODUCER.as_bytes(), 40, true);
    let error = error.unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument);
    assert_eq!(error.message(), r#"request_id "a\0b" contains a NUL"#);
    assert!(e.is_empty());
    for (bad, part) in [
        (
            SchedulerOptions {
                engine_id: "m\0e".into(),
                ..options()
            },
            r#"engine_id "m\0e" contains a NUL"#,
        ),
        (
            SchedulerOptions {
                host: "\0".into(),
                ..options()
            },
            r#"host "\0" contains a NUL"#,
        ),
    ] {
        let error = Scheduler::create(bad).err().unwrap();
        assert_eq!(error.status(), Status::InvalidArgument);
        assert_eq!(error.message(), part);
    }
}
