//! S19, S20: the turns of a conversation. The decoder pins its blocks; the next prefill fetches them.

use std::time::Duration;

use kvferry::connector::LeaseRef;
use kvferry::connector::scheduler::{Finish, Finished, Keep, SchedulerOptions};
use kvferry::connector::step::Hold;
use serde_json::{Value, json};

use crate::support::*;

fn engine(threshold: u64) -> Engine {
    Engine::new(SchedulerOptions {
        bidirectional: true,
        recompute_threshold: threshold,
        ..options()
    })
}

/// What a decoder gave back for the turn before.
fn next_turn(tokens: u64) -> Value {
    json!({
        "do_remote_prefill": false, "do_remote_decode": true, "remote_block_ids": [[1, 2, 3, 4, 5]],
        "remote_engine_id": "decode", "remote_request_id": "d", "remote_host": "d-host",
        "remote_port": 5800, "tp_size": 1, "remote_num_tokens": tokens,
        "remote_blocks_expiry_time": 1234.5, "kvferry_lease": [3, 9],
    })
}

/// Threshold, tokens at the decoder, prompt, cached here; tokens to fetch.
#[test]
fn the_next_prefill_fetches_what_it_lacks() {
    for (threshold, there, prompt, cached, tokens) in [
        (0, 80, 100, 0, 80),
        (0, 80, 60, 0, 60),
        (0, 80, 100, 79, 1),
        (0, 80, 100, 80, 0),
        (0, 80, 100, 96, 0),
        (64, 80, 100, 0, 80),
        (64, 80, 100, 16, 64),
        (64, 80, 100, 17, 0),
        (64, 63, 100, 0, 0),
        (64, 0, 100, 0, 0),
    ] {
        let e = engine(threshold);
        e.add("p", &next_turn(there).to_string(), prompt);
        let got = e.half.match_tokens("p", prompt, cached);
        assert_eq!(got, tokens, "{threshold} {there} {prompt} {cached}");
    }
}

#[test]
fn a_next_turn_is_a_receive_and_then_a_hold() {
    let e = engine(0);
    e.add("p", &next_turn(80).to_string(), 100);
    assert!(e.allocated("p", &[(&[7, 8, 9, 10], 1)], 64));
    let step = e.step();
    assert_eq!(step.in_batch, ["p"]);
    assert!(step.heartbeats.is_empty());
    let receive = &step.receives[0];
    assert_eq!(receive.expiry, Some(1234.5));
    assert_eq!(
        receive.lease,
        Some(LeaseRef {
            slot: 3,
            generation: 9
        })
    );
    assert_eq!((receive.tokens, receive.awaited), (80, true));
    assert_eq!(
        (&receive.local, &receive.local_first),
        (&vec![vec![7, 8, 9, 10]], &vec![1])
    );
    assert_eq!(receive.remote, [[1, 2, 3, 4, 5]]);
    // Scheduled after the load; preempted and scheduled again: no second read.
    e.half.received(["p"]);
    assert!(!e.allocated("p", &[(&[11, 12], 5)], 0));
    assert_eq!(e.half.match_tokens("p", 100, 0), 0);
    assert!(e.step().receives.is_empty());
    let end = e.finished("p", Finish::Length, &[&[6, 7, 8, 9, 10, 11, 12]], 100);
    assert_eq!(end.keep, Keep::UntilSent);
    assert_eq!(e.step().holds.len(), 1);
}

/// Not worth fetching: the decoder is told that it can let go.
#[test]
fn a_skipped_fetch_lets_the_decoder_go() {
    let e = engine(64);
    e.add("p", &next_turn(32).to_string(), 100);
    assert_eq!(e.half.match_tokens("p", 100, 0), 0);
    assert!(e.allocated("p", &[(&[7, 8, 9], 0)], 0));
    let step = e.step();
    assert!(step.receives[0].local.is_empty() && !step.receives[0].awaited);
}

/// Without the option on this engine the decoder's blocks are not looked at.
#[test]
fn without_the_option_a_turn_is_a_prefill() {
    let e = Engine::pull();
    e.add("p", &next_turn(80).to_string(), 100);
    assert_eq!(e.half.match_tokens("p", 100, 0), 0);
    assert!(!e.allocated("p", &[(&[7, 8, 9], 0)], 0));
    let step = e.step();
    assert!(step.receives.is_empty());
    assert_eq!(step.in_batch, ["p"]);
}

#[test]
fn a_decoder_pins_its_blocks() {
    let since = now_us();
    let e = engine(64);
    e.add("d", &from_producer("p", "[[1, 2, 3]]", 40), 40);
    e.allocated("d", &[(&[7, 8, 9], 0)], 40);
    assert_eq!(e.step().in_batch, ["d"]);
    e.half.received(["d"]);
    let end = e.finished("d", Finish::Stop, &[&[7, 8, 9, 10]], 60);
    assert_eq!(end.keep, Keep::UntilSent);
    let mut params: Value = serde_json::from_str(end.params.as_ref().unwrap()).unwrap();
    let lease = take_lease(&mut params, since);
    assert_eq!(
        params,
        json!({
            "do_remote_prefill": false, "do_remote_decode": true, "remote_block_ids": [[7, 8, 9, 10]],
            "remote_engine_id": "me", "remote_request_id": "d", "remote_host": "my-host",
            "remote_port": 5600, "tp_size": 1, "dcp_size": 1, "pp_size": 1, "remote_num_tokens": 60,
            "remote_blocks_expiry_time": 1480.0, "transfer_mode": "pull",
        })
    );
    e.wait(Duration::from_secs(1));
    let hold = Hold {
        request_id: "d".into(),
        remaining_ns: 479 * SECOND,
        lease: Some(lease),
    };
    assert_eq!(e.step().holds, [hold]);
    e.half.sent(["d"]);
    assert!(e.is_empty());
}

#[test]
fn an_aborted_decoder_pins_nothing() {
    let e = engine(64);
    e.add("d", &from_producer("p", "[[1, 2, 3]]", 40), 40);
    e.allocated("d", &[(&[7, 8, 9], 0)], 40);
    e.step();
    e.half.received(["d"]);
    assert_eq!(
        e.finished("d", Finish::Abort, &[&[7, 8, 9]], 40),
        Finished::default()
    );
    let step = e.step();
    assert_eq!(step.forget, ["d"]);
    assert!(e.is_empty());
}

/// A next turn that ends while it is being fetched.
#[test]
fn an_aborted_turn_stops_its_fetch() {
    let e = engine(0);
    e.add("p", &next_turn(80).to_string(), 100);
    e.allocated("p", &[(&[7, 8], 0)], 80);
    e.step();
    let end = e.finished("p", Finish::Abort, &[&[7, 8]], 0);
    assert_eq!(
        end,
        Finished {
            keep: Keep::UntilReceived,
            params: None
        }
    );
    let step = e.step();
    assert_eq!(
        (step.cancel, step.forget),
        (vec!["p".to_owned()], vec!["p".to_owned()])
    );
    e.half.received(["p"]);
    assert!(e.is_empty());
}
