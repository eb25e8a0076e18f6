//! P1, P2, P10, P11: the producer writes.

use std::time::Duration;

use kvferry::connector::Mode;
use kvferry::connector::scheduler::{Finish, Finished, Keep, Scheduler, SchedulerOptions};
use kvferry::connector::step::Push;
use kvferry::error::Status;
use serde_json::{Value, json};

use crate::support::*;

fn push() -> SchedulerOptions {
    SchedulerOptions {
        mode: Mode::Push,
        ..options()
    }
}

/// What a router tells a push decoder: where the producer is, known before the prefill ends.
const COORDINATES: &str = r#"{"do_remote_prefill": true, "do_remote_decode": false,
    "remote_engine_id": "prefill", "remote_request_id": "x", "remote_host": "p-host",
    "remote_port": 5700, "tp_size": 2, "pp_size": 2}"#;

#[test]
fn a_consumer_registers_its_blocks() {
    let e = Engine::new(push());
    e.add("d", COORDINATES, 40);
    assert_eq!(e.half.match_tokens("d", 40, 16), 24);
    assert!(e.allocated("d", &[(&[8, 9], 1)], 24));
    assert!(e.half.has_pending());
    let step = e.step();
    assert!(!e.half.has_pending());
    assert!(step.receives.is_empty());
    let r = &step.registrations[0];
    assert_eq!(
        (r.request_id.as_str(), r.remote_request_id.as_str()),
        ("d", "x")
    );
    assert_eq!((&r.local, &r.local_first), (&vec![vec![8, 9]], &vec![1]));
    assert_eq!((r.peer.tp_size, r.peer.pp_size, r.awaited), (2, 2, true));
    // Scheduled again.
    assert!(!e.allocated("d", &[(&[8, 9], 1)], 0));
    assert!(e.step().registrations.is_empty());
    e.half.received(["d"]);
    assert_eq!(
        e.finished("d", Finish::Stop, &[&[7, 8, 9]], 50),
        Finished::default()
    );
    assert!(e.is_empty());
}

#[test]
fn a_producer_offers_what_it_keeps() {
    let e = Engine::new(SchedulerOptions {
        groups: vec![FULL, window(16)],
        clip: true,
        ..push()
    });
    e.add("p", TO_PRODUCER, 40);
    e.allocated("p", &[(&[1, 2, 3], 0), (&[4, 5, 6], 0)], 0);
    assert_eq!(e.step().in_batch, ["p"]);
    let end = e.finished("p", Finish::Length, &[&[1, 2, 3], &[4, 5, 6]], 40);
    assert_eq!(end.keep, Keep::UntilSent);
    let params: Value = serde_json::from_str(end.params.as_ref().unwrap()).unwrap();
    assert_eq!(params["transfer_mode"], json!("push"));
    assert!(
        params.get("remote_blocks_expiry_time").is_none(),
        "stock leaves it out"
    );
    let step = e.step();
    let offer = Push {
        request_id: "p".into(),
        blocks: vec![vec![1, 2, 3], vec![5, 6]],
        tokens: 40,
    };
    assert_eq!((step.pushes, step.holds.len()), (vec![offer], 1));
    assert!(
        e.half.has_pending(),
        "until it is written or its lease is over"
    );
    e.half.sent(["p"]);
    assert!(!e.half.has_pending());
    assert!(e.is_empty());
}

#[test]
fn a_full_hit_registers_nothing() {
    let e = Engine::new(push());
    e.add("d", COORDINATES, 40);
    assert!(e.allocated("d", &[], 0));
    let step = e.step();
    assert!(step.registrations.is_empty());
    assert!(step.receives[0].local.is_empty() && !step.receives[0].awaited);
    e.finished("d", Finish::Stop, &[], 0);
    assert!(e.is_empty() && is_idle(&e.step()));
}

/// Registered and then aborted, before or after the step: the workers stop it and report it.
#[test]
fn an_aborted_registration_is_cancelled() {
    for stepped in [false, true] {
        let e = Engine::new(push());
        e.add("d", COORDINATES, 40);
        e.allocated("d", &[(&[8, 9], 1)], 24);
        if stepped {
            e.step();
        }
        let end = e.finished("d", Finish::Abort, &[&[7, 8, 9]], 0);
        assert_eq!(end.keep, Keep::UntilReceived);
        let step = e.step();
        assert_eq!(step.cancel, ["d"]);
        assert_eq!(step.registrations.len(), usize::from(!stepped));
        e.half.received(["d"]);
        assert!(e.is_empty());
    }
}

#[test]
fn a_registration_is_given_up_in_time() {
    let e = Engine::new(SchedulerOptions {
        registration_timeout: Duration::from_secs(10),
        ..push()
    });
    for (i, id) in ["a", "b", "c"].into_iter().enumerate() {
        e.add(id, COORDINATES, 40);
        e.allocated(id, &[(&[i as u32], 0)], 40);
        e.wait(Duration::from_secs(1));
    }
    e.half.received(["b"]);
    e.step();
    e.wait(Duration::from_millis(6999));
    assert!(e.step().cancel.is_empty());
    e.wait(Duration::from_millis(1));
    assert_eq!(e.step().cancel, ["a"]);
    e.wait(Duration::from_secs(60));
    assert_eq!(e.step().cancel, ["c"]);
    assert!(e.step().cancel.is_empty());
    e.half.received(["a", "c"]);
    for id in ["a", "b", "c"] {
        e.finished(id, Finish::Error, &[], 0);
    }
    assert!(e.is_empty());
}

#[test]
fn a_request_id_of_the_producer_can_be_missing() {
    let e = Engine::new(push());
    let without = COORDINATES.replace(r#""remote_request_id": "x","#, "");
    e.add("d", &without, 40);
    e.allocated("d", &[(&[8], 0)], 40);
    assert_eq!(e.step().registrations[0].remote_request_id, "d");
}

#[test]
fn turns_are_for_pull() {
    let both = SchedulerOptions {
        bidirectional: true,
        ..push()
    };
    let e = Scheduler::create(both).err().unwrap();
    assert_eq!(e.status(), Status::NotSupported);
}
