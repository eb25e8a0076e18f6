//! S11: heartbeats, from admission until the KV is in.

use std::time::Duration;

use kvferry::connector::scheduler::Finish;
use serde_json::{Value, json};

use crate::support::*;

/// Ids that a step's heartbeats name, by engine.
fn beats(e: &Engine) -> Vec<(String, Vec<String>)> {
    let beats = e.step().heartbeats.into_iter();
    beats
        .map(|b| (b.peer.engine_id, b.remote_request_ids))
        .collect()
}

fn of(engine: &str, ids: &[&str]) -> (String, Vec<String>) {
    (engine.into(), ids.iter().map(|&i| i.into()).collect())
}

fn from(engine: &str, request: &str) -> String {
    let mut p: Value = serde_json::from_str(&from_producer(request, "[[1]]", 16)).unwrap();
    p["remote_engine_id"] = json!(engine);
    p.to_string()
}

#[test]
fn they_begin_with_admission_and_keep_time() {
    let e = Engine::pull();
    assert!(beats(&e).is_empty());
    e.add("d1", &from("A", "p1"), 16);
    e.add("d2", &from("A", "p2"), 16);
    e.add("d3", &from("B", "p3"), 16);
    let both = [of("A", &["p1", "p2"]), of("B", &["p3"])];
    assert_eq!(beats(&e), both);
    e.wait(Duration::from_millis(4999));
    assert!(beats(&e).is_empty(), "a sixth of 30 s is not over");
    e.wait(Duration::from_millis(1));
    assert_eq!(beats(&e), both);
    // What comes in between is named at once, alone: a router may have held it back for long.
    e.wait(Duration::from_secs(1));
    e.add("d4", &from("A", "p4"), 16);
    assert_eq!(beats(&e), [of("A", &["p4"])]);
    e.add("d5", &from("C", "p5"), 16);
    e.add("gone", &from("C", "p6"), 16);
    e.add("gone, too", &from("D", "p7"), 16);
    for id in ["gone", "gone, too"] {
        e.finished(id, Finish::Abort, &[], 0);
    }
    assert_eq!(beats(&e), [of("C", &["p5"])]);
    assert!(beats(&e).is_empty());
    e.wait(Duration::from_secs(4));
    assert_eq!(
        beats(&e),
        [
            of("A", &["p1", "p2", "p4"]),
            of("B", &["p3"]),
            of("C", &["p5"])
        ]
    );
}

#[test]
fn they_end_with_the_receive_or_the_request() {
    let e = Engine::pull();
    for (id, p) in [("d1", "p1"), ("d2", "p2"), ("d3", "p3"), ("d4", "p2")] {
        e.add(id, &from("A", p), 16);
    }
    e.step();
    let after = |change: &dyn Fn()| {
        change();
        e.wait(Duration::from_secs(5));
        beats(&e)
    };
    assert_eq!(after(&|| e.half.received(["d1"])), [of("A", &["p2", "p3"])]);
    // Two requests here want the same one there.
    let end = |id| drop(e.finished(id, Finish::Abort, &[], 0));
    assert_eq!(after(&|| end("d2")), [of("A", &["p2", "p3"])]);
    assert_eq!(after(&|| end("d4")), [of("A", &["p3"])]);
    assert_eq!(after(&|| end("d3")), []);
    end("d1");
    assert!(e.is_empty());
}

/// Key, value: enough to fetch with or not, but not to send heartbeats with.
#[test]
fn they_need_all_coordinates() {
    for (key, beaten) in [
        ("remote_engine_id", false),
        ("remote_request_id", false),
        ("remote_host", false),
        ("remote_port", false),
        ("tp_size", false),
        ("pp_size", true),
        ("dcp_size", true),
        ("remote_block_ids", true),
    ] {
        let e = Engine::pull();
        let mut p: Value = serde_json::from_str(&from("A", "p1")).unwrap();
        p[key] = json!(null);
        e.add("d", &p.to_string(), 16);
        assert_eq!(!beats(&e).is_empty(), beaten, "{key}");
    }
    // Those for a producer, and the next turn's fetch, send none.
    let e = Engine::pull();
    e.add("p", TO_PRODUCER, 16);
    let mut turn: Value = serde_json::from_str(&from("A", "p1")).unwrap();
    turn["do_remote_prefill"] = json!(false);
    turn["do_remote_decode"] = json!(true);
    e.add("turn", &turn.to_string(), 16);
    assert!(beats(&e).is_empty());
}

#[test]
fn an_engine_that_moved_is_addressed_where_it_is() {
    let e = Engine::pull();
    e.add("d1", &from("A", "p1"), 16);
    let mut moved: Value = serde_json::from_str(&from("A", "p2")).unwrap();
    moved["remote_port"] = json!("5900");
    e.add("d2", &moved.to_string(), 16);
    assert_eq!(e.step().heartbeats[0].peer.port, 5900);
}
