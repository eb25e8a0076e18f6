//! S12, S13: the listener that gives the ranks' handshake payloads away.

use std::time::Duration;

use kvferry::connector::scheduler::{Finish, Scheduler, SchedulerOptions};
use kvferry::error::{Result, Status};
use kvferry::side_channel::{Answer, Rank, RequestOptions, request};
use serde_json::Value;

use crate::support::*;

fn local() -> SchedulerOptions {
    SchedulerOptions {
        host: "127.0.0.1".into(),
        port: 0,
        state_registrations: true,
        ..options()
    }
}

fn payload(pp: u32, tp: u32, data: &[u8]) -> (Rank, Vec<u8>) {
    (Rank { pp, tp }, data.to_vec())
}

fn ask(half: &Scheduler, pp: u32, tp: u32) -> Result<Answer> {
    let (host, port) = half.address();
    let options = RequestOptions {
        rank: Rank { pp, tp },
        timeout: Duration::from_secs(30),
        ..RequestOptions::default()
    };
    request("zmq", &host, port, &options)
}

/// Parameters of a request that finishes now.
fn params(half: &Scheduler) -> Value {
    half.add("p", TO_PRODUCER.as_bytes(), 16, true).unwrap();
    let end = half.finished("p", Finish::Length, &blocks(&[(&[1], 0)]), 16);
    half.sent(["p"]);
    serde_json::from_str(&end.unwrap().params.unwrap()).unwrap()
}

#[test]
fn each_rank_is_served_its_own() {
    let half = Scheduler::create(local()).unwrap();
    assert_eq!(half.address(), ("127.0.0.1".to_owned(), 0));
    half.serve(vec![
        payload(0, 0, b"zero"),
        payload(0, 1, b"one"),
        payload(1, 0, b"stage"),
    ])
    .unwrap();
    for (pp, tp, data) in [(0, 0, "zero"), (0, 1, "one"), (1, 0, "stage")] {
        let answer = ask(&half, pp, tp).unwrap();
        assert_eq!(answer.metadata, data.as_bytes());
        // One host has one monotonic clock.
        let clock = answer.clock.unwrap();
        assert!(clock.offset.abs() <= clock.rtt.as_secs_f64(), "{clock:?}");
    }
    assert_eq!(ask(&half, 1, 1).unwrap_err().status(), Status::NotFound);
    let told = params(&half);
    assert_eq!(told["remote_port"], half.address().1);
    assert_eq!(told["remote_registration_generation"], 3);
}

#[test]
fn payloads_can_change() {
    let half = Scheduler::create(local()).unwrap();
    half.serve(vec![payload(0, 0, b"old"), payload(0, 1, b"same")])
        .unwrap();
    let port = half.address().1;
    half.serve(vec![payload(0, 0, b"new"), payload(0, 1, b"same")])
        .unwrap();
    assert_eq!(half.address().1, port);
    assert_eq!(ask(&half, 0, 0).unwrap().metadata, b"new");
    assert_eq!(
        params(&half)["remote_registration_generation"],
        3,
        "two, and one that changed"
    );
    let twice = half
        .serve(vec![payload(0, 0, b"a"), payload(0, 0, b"b")])
        .unwrap_err();
    assert_eq!(twice.status(), Status::InvalidArgument);
    assert_eq!(ask(&half, 0, 0).unwrap().metadata, b"new");
}

#[test]
fn the_port_is_free_again_afterwards() {
    let half = Scheduler::create(local()).unwrap();
    half.serve(vec![payload(0, 0, b"x")]).unwrap();
    let port = half.address().1;
    let taken = Scheduler::create(SchedulerOptions { port, ..local() }).unwrap();
    let e = taken.serve(vec![payload(0, 0, b"y")]).unwrap_err();
    assert_eq!(e.status(), Status::Busy, "{e}");
    drop(half);
    taken.serve(vec![payload(0, 0, b"y")]).unwrap();
    assert_eq!(ask(&taken, 0, 0).unwrap().metadata, b"y");
}
