//! A request on both sides, by pull: vLLM's behaviours S3 to S16 as tables.

use std::time::Duration;

use kvferry::connector::scheduler::{Finish, Finished, Keep, SchedulerOptions};
use kvferry::connector::step::{Hold, Receive, Step};
use kvferry::connector::{LEASE_SLOTS, LeaseRef, PeerAddress};
use serde_json::{Value, json};

use crate::support::*;

fn prefill_engine() -> PeerAddress {
    PeerAddress {
        engine_id: "prefill".into(),
        host: "p-host".into(),
        port: 5700,
        tp_size: 2,
        pp_size: 1,
        dcp_size: 1,
    }
}

/// A receive of request `d` from request `p`.
fn expected(local: &[&[u32]], first: &[u32], remote: &[&[u32]], awaited: bool) -> Receive {
    let lists = |of: &[&[u32]]| of.iter().map(|ids| ids.to_vec()).collect();
    Receive {
        request_id: "d".into(),
        peer: prefill_engine(),
        remote_request_id: "p".into(),
        local: lists(local),
        local_first: first.to_vec(),
        remote: lists(remote),
        tokens: 40,
        awaited,
        expiry: None,
        lease: None,
        registration: 0,
        waited_ns: 0,
    }
}

/// S3: prompt, cached, what can be loaded.
#[test]
fn a_decoder_loads_the_prompt_that_it_has_not_cached() {
    let e = Engine::pull();
    e.add("d", &from_producer("p", "[[1, 2, 3]]", 40), 40);
    for (prompt, computed, tokens) in [
        (40, 0, 40),
        (40, 16, 24),
        (40, 39, 1),
        (40, 40, 0),
        (40, 48, 0),
        (0, 0, 0),
    ] {
        assert_eq!(
            e.half.match_tokens("d", prompt, computed),
            tokens,
            "{prompt} {computed}"
        );
        assert_eq!(
            e.half.match_tokens("d", prompt, computed),
            tokens,
            "no side effects"
        );
    }
    assert_eq!(e.half.match_tokens("somebody else", 40, 0), 0);
    assert!(e.step().receives.is_empty());
}

/// S4, S9: the list as allocated, the partial last block too; once.
#[test]
fn a_load_is_staged_once() {
    let e = Engine::pull();
    e.add("d", &from_producer("p", "[[1, 2, 3]]", 40), 40);
    assert!(e.allocated("d", &[(&[7, 8, 9], 0)], 40));
    let receive = expected(&[&[7, 8, 9]], &[0], &[&[1, 2, 3]], true);
    assert_eq!(e.step().receives, [receive]);
    assert_eq!(e.half.stats().receiving, 1);
    // Preempted and scheduled again: nothing to load, nothing staged.
    assert_eq!(e.half.match_tokens("d", 40, 0), 0);
    assert!(!e.allocated("d", &[(&[7, 8, 9], 0)], 0));
    assert!(e.step().receives.is_empty());
    e.half.received(["d"]);
    assert_eq!(e.half.stats().receiving, 0);
    let end = e.finished("d", Finish::Stop, &[&[7, 8, 9, 10]], 50);
    assert_eq!(end, Finished::default());
    assert!(e.is_empty() && is_idle(&e.step()));
}

/// Where nothing else says until when the blocks are kept, the workers count from the arrival.
#[test]
fn a_load_says_how_long_it_has_waited() {
    let e = Engine::pull();
    e.add("d", &from_producer("p", "[[1, 2, 3]]", 40), 40);
    e.step();
    e.wait(Duration::from_secs(25));
    e.allocated("d", &[(&[7, 8, 9], 0)], 40);
    assert_eq!(e.step().receives[0].waited_ns, 25 * SECOND);
}

/// S5: with the whole prompt cached, the producer is only told.
#[test]
fn a_full_hit_lets_the_producer_go() {
    let e = Engine::pull();
    e.add("d", &from_producer("p", "[[1, 2, 3]]", 40), 40);
    assert!(e.allocated("d", &[], 0));
    let step = e.step();
    assert_eq!(step.receives, [expected(&[], &[], &[&[1, 2, 3]], false)]);
    assert!(
        step.heartbeats.is_empty(),
        "the lease is not needed any more"
    );
    assert_eq!(e.half.stats().receiving, 0);
    e.finished("d", Finish::Length, &[&[7, 8, 9]], 41);
    assert!(e.is_empty());
}

/// S6: the cached blocks are not fetched, and it is said how many they are.
#[test]
fn a_partial_hit_fetches_the_rest() {
    let e = Engine::pull();
    e.add("d", &from_producer("p", "[[1, 2, 3]]", 40), 40);
    assert_eq!(e.half.match_tokens("d", 40, 16), 24);
    e.allocated("d", &[(&[8, 9], 1)], 24);
    assert_eq!(
        e.step().receives,
        [expected(&[&[8, 9]], &[1], &[&[1, 2, 3]], true)]
    );
}

/// S14, S15: a hybrid with a window of 32 and drafts; on the decoder...
#[test]
fn groups_are_clipped_by_the_decoder() {
    let e = Engine::new(SchedulerOptions {
        groups: vec![FULL, window(32), state(2)],
        clip: true,
        ..options()
    });
    e.add(
        "d",
        &from_producer("p", "[[1, 2, 3, 4, 5], [13, 14, 15], [20]]", 40),
        80,
    );
    let full: &[u32] = &[32, 33, 34, 35];
    let windowed: &[u32] = &[41, 42, 43, 44];
    let slots: &[u32] = &[50, 51, 52];
    e.allocated("d", &[(full, 1), (windowed, 1), (slots, 4)], 64);
    assert_eq!(
        e.step().receives,
        [expected(
            &[full, &[42, 43, 44], &[50]],
            &[1, 2, 4],
            &[&[1, 2, 3, 4, 5], &[13, 14, 15], &[20]],
            true
        )]
    );
}

/// ... and on the producer; null blocks at the front of a window fall away.
#[test]
fn groups_are_clipped_by_the_producer() {
    let groups = vec![FULL, window(32), state(2)];
    let lists: [&[u32]; 3] = [
        &[1, 2, 3, 4, 5],
        &[0, 0, 13, 14, 15],
        &[0, 0, 19, 20, 21, 22],
    ];
    for (clip, expected) in [
        (true, json!([[1, 2, 3, 4, 5], [13, 14, 15], [20]])),
        (false, json!(lists)),
    ] {
        let e = Engine::new(SchedulerOptions {
            groups: groups.clone(),
            clip,
            ..options()
        });
        e.add("p", TO_PRODUCER, 80);
        let end = e.finished("p", Finish::Length, &lists, 80);
        assert_eq!(params(&end)["remote_block_ids"], expected);
    }
}

fn params(end: &Finished) -> Value {
    serde_json::from_str(end.params.as_ref().unwrap()).unwrap()
}

/// S7: vLLM's keys, exactly, and the lease word.
#[test]
fn a_producer_keeps_what_it_has_finished() {
    let since = now_us();
    let e = Engine::new(SchedulerOptions {
        tp_size: 4,
        pp_size: 2,
        dcp_size: 2,
        ..options()
    });
    assert_eq!(e.add("p", TO_PRODUCER, 40), 0);
    assert_eq!(e.half.match_tokens("p", 40, 0), 0);
    assert!(!e.allocated("p", &[(&[1, 2, 3], 0)], 0));
    e.allocated("p", &[(&[1, 2, 3], 0)], 0);
    let step = e.step();
    assert_eq!(step.in_batch, ["p"], "once a step");
    e.wait(Duration::from_secs(2));
    let end = e.finished("p", Finish::Length, &[&[1, 2, 3]], 40);
    assert_eq!(end.keep, Keep::UntilSent);
    let mut given = params(&end);
    let lease = take_lease(&mut given, since);
    assert_eq!(lease.slot, 0);
    let expected = json!({
        "do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [[1, 2, 3]],
        "remote_engine_id": "me", "remote_request_id": "p", "remote_host": "my-host",
        "remote_port": 5600, "tp_size": 4, "dcp_size": 2, "pp_size": 2, "remote_num_tokens": 40,
        "remote_blocks_expiry_time": null, "transfer_mode": "pull",
    });
    assert_eq!(given, expected);
    // Half a second of the lease has gone when the workers hear of it.
    e.wait(Duration::from_millis(500));
    let hold = Hold {
        request_id: "p".into(),
        remaining_ns: 30 * SECOND - SECOND / 2,
        lease: Some(lease),
    };
    let step = e.step();
    assert_eq!(
        (step.holds, step.clock_ns),
        (vec![hold], 1002 * SECOND + SECOND / 2)
    );
    assert_eq!((e.half.stats().requests, e.half.stats().holds), (0, 1));
    e.half.sent(["p", "unknown"]);
    assert!(e.is_empty());
    // The slot's next use has another generation.
    e.add("q", TO_PRODUCER, 40);
    let end = e.finished("q", Finish::Stop, &[&[4]], 10);
    let next = take_lease(&mut params(&end), since);
    assert_eq!(next.slot, 0);
    assert!(next.generation > lease.generation);
}

/// A request without blocks gives parameters, and keeps nothing.
#[test]
fn nothing_computed_is_nothing_kept() {
    let e = Engine::pull();
    for (id, blocks) in [("none", &[][..]), ("empty", &[&[][..]][..])] {
        e.add(id, TO_PRODUCER, 40);
        let end = e.finished(id, Finish::Length, blocks, 0);
        assert_eq!(end.keep, Keep::No);
        let p = params(&end);
        assert_eq!(p["remote_block_ids"], json!(blocks));
        assert_eq!(
            (&p["remote_num_tokens"], &p["do_remote_prefill"]),
            (&json!(0), &json!(true))
        );
        assert!(p.get("kvferry_lease").is_none());
        assert!(e.is_empty() && is_idle(&e.step()));
    }
}

/// The workers wait for a lease of what was in a batch: that none will follow is said.
#[test]
fn nothing_kept_is_forgotten() {
    let e = Engine::pull();
    e.add("p", TO_PRODUCER, 40);
    e.allocated("p", &[(&[1, 2, 3], 0)], 0);
    assert_eq!(e.step().in_batch, ["p"]);
    assert_eq!(e.finished("p", Finish::Stop, &[&[]], 0).keep, Keep::No);
    let step = e.step();
    assert_eq!((step.forget, step.holds.len()), (vec!["p".to_owned()], 0));
}

/// S8: how it ended, whether it is kept.
#[test]
fn only_what_ends_by_itself_is_kept() {
    for (how, kept) in [
        (Finish::Length, true),
        (Finish::Stop, true),
        (Finish::Abort, false),
        (Finish::Error, false),
    ] {
        let e = Engine::pull();
        e.add("p", TO_PRODUCER, 40);
        e.allocated("p", &[(&[1, 2, 3], 0)], 0);
        e.step();
        let end = e.finished("p", how, &[&[1, 2, 3]], 40);
        assert_eq!(
            (end.keep == Keep::UntilSent, end.params.is_some()),
            (kept, kept),
            "{how:?}"
        );
        let step = e.step();
        assert_eq!(
            step.forget,
            if kept { vec![] } else { vec!["p".to_owned()] }
        );
        assert_eq!(step.holds.len(), usize::from(kept));
        e.half.sent(["p"]);
        assert!(e.is_empty());
    }
}

/// S10: rejected by the serving layer, or aborted while it waited for blocks.
#[test]
fn an_abort_before_scheduling_lets_the_producer_go() {
    let e = Engine::pull();
    e.add("d", &from_producer("p", "[[1, 2, 3]]", 40), 40);
    assert_eq!(e.finished("d", Finish::Abort, &[], 0), Finished::default());
    let step = e.step();
    assert_eq!(step.receives, [expected(&[], &[], &[&[1, 2, 3]], false)]);
    assert!(step.cancel.is_empty() && step.heartbeats.is_empty());
    assert!(e.is_empty() && is_idle(&e.step()));
}

/// Between allocation and the step: nobody has begun to read.
#[test]
fn an_abort_before_the_step_reads_nothing() {
    let e = Engine::pull();
    for id in ["other", "d"] {
        e.add(id, &from_producer("p", "[[1, 2, 3]]", 40), 40);
        e.allocated(id, &[(&[7, 8, 9], 0)], 40);
    }
    let end = e.finished("d", Finish::Abort, &[&[7, 8, 9]], 40);
    assert_eq!(
        end,
        Finished {
            keep: Keep::UntilReceived,
            params: None
        }
    );
    let step = e.step();
    assert_eq!(step.receives[1], expected(&[], &[], &[&[1, 2, 3]], true));
    assert_eq!(step.receives[0].local, [[7, 8, 9]]);
    assert!(step.cancel.is_empty());
    e.half.received(["d", "other"]);
    e.finished("other", Finish::Stop, &[&[7, 8, 9]], 40);
    assert!(e.is_empty());
}

/// While it is being received: the workers are told to stop, and will report it.
#[test]
fn an_abort_while_receiving_cancels() {
    let e = Engine::pull();
    e.add("d", &from_producer("p", "[[1, 2, 3]]", 40), 40);
    e.allocated("d", &[(&[7, 8, 9], 0)], 40);
    e.step();
    let end = e.finished("d", Finish::Abort, &[&[7, 8, 9]], 40);
    assert_eq!(
        end,
        Finished {
            keep: Keep::UntilReceived,
            params: None
        }
    );
    let step = e.step();
    assert_eq!(step.cancel, ["d"]);
    assert_eq!(
        Step {
            cancel: vec![],
            ..step.clone()
        },
        Step {
            clock_ns: step.clock_ns,
            ..Step::default()
        }
    );
    e.half.received(["d"]);
    assert!(e.is_empty() && is_idle(&e.step()));
}

/// After it: nothing to stop.
#[test]
fn an_abort_after_receiving_is_an_end() {
    let e = Engine::pull();
    e.add("d", &from_producer("p", "[[1, 2, 3]]", 40), 40);
    e.allocated("d", &[(&[7, 8, 9], 0)], 40);
    e.step();
    e.half.received(["d"]);
    assert_eq!(
        e.finished("d", Finish::Abort, &[&[7]], 40),
        Finished::default()
    );
    assert!(e.is_empty() && is_idle(&e.step()));
}

/// S16: backoff, prompt, tokens that the producer drops, tokens that the consumer loads.
#[test]
fn both_sides_leave_the_last_tokens_to_the_decoder() {
    for (backoff, prompt, drop, load) in [
        (0, 40, 0, 40),
        (1, 40, 1, 39),
        (3, 40, 3, 37),
        (3, 4, 3, 1),
        (3, 3, 0, 3),
        (1, 1, 0, 1),
    ] {
        let e = Engine::new(SchedulerOptions {
            backoff_tokens: backoff,
            ..options()
        });
        assert_eq!(e.add("p", TO_PRODUCER, prompt), drop, "{backoff} {prompt}");
        e.add("d", &from_producer("p", "[[1, 2, 3]]", 40), prompt);
        assert_eq!(
            e.half.match_tokens("d", prompt, 0),
            load,
            "{backoff} {prompt}"
        );
        // Once only, and not for a request that loads nothing on the decoder.
        let again = r#"{"do_remote_decode": true, "_p_side_truncated": true}"#;
        assert_eq!(e.add("again", again, prompt), 0);
        assert_eq!(
            e.half
                .add("logprobs", TO_PRODUCER.as_bytes(), prompt, false)
                .unwrap(),
            0
        );
    }
}

/// What a router may get wrong. The request is then computed here, and nothing else happens.
#[test]
fn unusable_parameters_make_a_request_local() {
    let whole: Value = serde_json::from_str(&from_producer("p", "[[1, 2, 3]]", 40)).unwrap();
    let mut cases = vec![
        "null".to_owned(),
        "{}".into(),
        "".into(),
        "[]".into(),
        "{".into(),
        "\u{1}".into(),
    ];
    for (key, value) in [
        ("remote_engine_id", json!(null)),
        ("remote_engine_id", json!(7)),
        ("remote_request_id", json!("")),
        ("remote_engine_id", json!("pre\0fill")),
        ("remote_request_id", json!("\0")),
        ("remote_host", json!("h\0")),
        ("remote_host", json!(null)),
        ("remote_host", json!("h".repeat(2000))),
        ("remote_port", json!(70000)),
        ("remote_port", json!(-1)),
        ("remote_block_ids", json!([])),
        ("remote_block_ids", json!(null)),
        ("remote_block_ids", json!([[1, -2]])),
        ("remote_block_ids", json!([[1, 4294967296u64]])),
        ("remote_block_ids", json!([[1], 2])),
        ("remote_block_ids", json!(vec![vec![1]; 65])),
        ("remote_block_ids", json!("1,2")),
        ("tp_size", json!(0)),
        ("tp_size", json!(1 << 20)),
        ("pp_size", json!(2.5)),
        ("do_remote_prefill", json!("yes")),
        ("kvferry_lease", json!([65536, 1])),
        ("kvferry_lease", json!([1])),
    ] {
        let mut broken = whole.clone();
        broken[key] = value;
        cases.push(broken.to_string());
    }
    for case in cases {
        let e = Engine::pull();
        assert_eq!(e.add("d", &case, 40), 0);
        assert_eq!(e.half.match_tokens("d", 40, 0), 0, "{case}");
        e.allocated("d", &[(&[7, 8, 9], 0)], 0);
        assert_eq!(
            e.finished("d", Finish::Stop, &[&[7, 8, 9]], 50),
            Finished::default()
        );
        let step = e.step();
        assert!(step.receives.is_empty() && step.holds.is_empty(), "{case}");
        assert!(e.is_empty(), "{case}");
    }
}

/// More finished requests than lease words.
#[test]
fn without_a_free_word_blocks_are_kept_all_the_same() {
    let e = Engine::pull();
    for i in 0..LEASE_SLOTS + 2 {
        let id = i.to_string();
        e.add(&id, TO_PRODUCER, 40);
        let end = e.finished(&id, Finish::Length, &[&[1]], 16);
        assert_eq!(end.keep, Keep::UntilSent);
        assert_eq!(params(&end).get("kvferry_lease").is_some(), i < LEASE_SLOTS);
    }
    assert_eq!(e.half.stats().leases, u64::from(LEASE_SLOTS));
    let holds = e.step().holds;
    assert_eq!(holds.iter().filter(|h| h.lease.is_none()).count(), 2);
    let ids: Vec<String> = holds.into_iter().map(|h| h.request_id).collect();
    e.half.sent(ids.iter().map(String::as_str));
    assert!(e.is_empty());
}

#[test]
fn the_producers_lease_word_is_passed_on() {
    let e = Engine::pull();
    let mut p: Value = serde_json::from_str(&from_producer("p", "[[1]]", 16)).unwrap();
    p["kvferry_lease"] = json!([17, 5]);
    p["remote_registration_generation"] = json!(8);
    e.add("d", &p.to_string(), 16);
    e.allocated("d", &[(&[7], 0)], 16);
    let receive = e.step().receives.remove(0);
    assert_eq!(
        receive.lease,
        Some(LeaseRef {
            slot: 17,
            generation: 5
        })
    );
    assert_eq!(receive.registration, 8);
}

#[test]
fn a_wrong_number_of_groups_is_an_error() {
    let e = Engine::pull();
    e.add("p", TO_PRODUCER, 40);
    let two = blocks(&[(&[1], 0), (&[2], 0)]);
    let error = e.half.finished("p", Finish::Length, &two, 16).unwrap_err();
    assert_eq!(
        error.message(),
        "blocks of 2 groups; there are 1 transfer groups"
    );
    assert_eq!(e.half.stats().requests, 1, "nothing has changed");
}
