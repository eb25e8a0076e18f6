//! Push: the producer writes.

use std::time::Duration;

use kvferry::agent::Agent;
use kvferry::connector::Mode;
use kvferry::connector::step::{Push, Step};

use super::support::*;

fn engines(p_tp: u32, d_tp: u32, model: &[GroupModel]) -> (Engine, Engine) {
    engines_over("local", p_tp, d_tp, model)
}

fn engines_over(
    transport: &'static str,
    p_tp: u32,
    d_tp: u32,
    model: &[GroupModel],
) -> (Engine, Engine) {
    let make = |id, tp| {
        let recipe = Recipe::new(transport, id, model, style(model, tp, 32, 4));
        recipe
            .change(|o| {
                o.mode = Mode::Push;
                o.registration_timeout = Duration::from_secs(30);
            })
            .start()
    };
    (make("p", p_tp), make("d", d_tp))
}

/// The consumer registers.
fn register(d: &Engine, id: &str, p: &Engine, lists: &[Lists]) {
    let registration = d.receive_of(id, p, "unused", lists);
    d.step(&Step {
        registrations: vec![registration],
        ..Step::default()
    });
}

/// The producer finishes.
fn finish(p: &mut Engine, id: &str, lists: &[Lists], tokens: u64, slot: u32, remaining: Duration) {
    p.keep(id, lists, lease(slot, 1), remaining);
    p.step(&Step {
        pushes: vec![Push {
            request_id: id.into(),
            blocks: lists.iter().map(|l| l.p.clone()).collect(),
            tokens,
        }],
        ..Step::default()
    });
}

#[test]
fn in_either_order_for_all_pairs_of_sizes() {
    for (model, p_tp, d_tp) in [
        (dense(4), 1, 1),
        (dense(4), 2, 1),
        (dense(4), 1, 2),
        (mla(), 1, 2),
        (mla(), 2, 1),
        (two_groups(4), 1, 1),
    ] {
        let (mut p, d) = engines(p_tp, d_tp, &model);
        let groups = model.len();
        for (n, first) in ["producer", "consumer"].into_iter().enumerate() {
            let at = 10 * n as u32;
            let list = |add: u32| Lists {
                p: vec![at + 3 + add, at + 1 + add, at + 5 + add],
                d: vec![at + 7 + add, at + 4 + add, at + 9 + add],
                ..Lists::default()
            };
            let lists: Vec<Lists> = (0..groups).map(|g| list(10 * g as u32)).collect();
            // Each engine has given the same request an ending of its own.
            let (there, here) = (format!("r{n}-0123abcd"), format!("r{n}-89EFabcd"));
            let (mut want, mut done) = (Vec::new(), false);
            for side in [first, if n == 0 { "consumer" } else { "producer" }] {
                match side {
                    "producer" => finish(&mut p, &there, &lists, 12, n as u32, LEASE),
                    _ => register(&d, &here, &p, &lists),
                }
                if !done {
                    done = true;
                    for (g, l) in lists.iter().enumerate() {
                        p.sim.fill(g, &l.p, 0);
                    }
                    want = with_memory_of(&p, &d, &lists).0;
                }
            }
            d.received(&here);
            p.sent(&there);
            check(&d, &want);
        }
        p.at_rest(1);
        d.at_rest(1);
        assert_eq!(p.stat(0, "transfer_duration"), 2);
    }
}

/// A producer writes to all ranks of a consumer when it has heard one of them: what it says of that may be
/// with another rank before that one's step is.
#[test]
fn a_rank_whose_step_comes_late() {
    let (mut p, d) = engines(1, 2, &dense(4));
    let lists = lists(&[3, 1], &[7, 4], 0);
    // The second rank also knows the producer already, or does not.
    for (n, id) in ["r0", "r1"].into_iter().enumerate() {
        finish(&mut p, id, &lists, 8, n as u32, LEASE);
        let (want, _) = with_memory_of(&p, &d, &lists);
        let step = Step {
            registrations: vec![d.receive_of(id, &p, "unused", &lists)],
            ..Step::default()
        };
        let step = step.encode();
        d.ranks[0].worker.step(&step).unwrap();
        p.sent(id);
        assert_eq!(next(&d.ranks[0].worker).received, [id]);
        eventually("to be heard", || d.ranks[1].worker.state().early == 1);
        d.ranks[1].worker.step(&step).unwrap();
        assert_eq!(next(&d.ranks[1].worker).received, [id]);
        assert_eq!(d.ranks[1].worker.state().early, 0);
        check(&d, &want);
    }
    // Nothing of a request that is over counts for another one of its name.
    p.agent().notify(d.agent().name(), b"r1:1", None).unwrap();
    eventually("a late message", || {
        d.stat(0, "num_notifications_after_expiry") > 0
    });
    d.at_rest(1);
}

#[test]
fn a_prefix_that_the_consumer_has() {
    let (mut p, d) = engines(1, 1, &dense(4));
    let lists = lists(&[3, 1, 5, 6], &[7, 4], 2);
    finish(&mut p, "r", &lists, 14, 0, LEASE);
    let (want, _) = with_memory_of(&p, &d, &lists);
    register(&d, "r", &p, &lists);
    d.received("r");
    p.sent("r");
    check(&d, &want);
}

#[test]
fn what_nobody_registers_for_is_freed_by_its_lease() {
    let (mut p, d) = engines(1, 1, &dense(4));
    let list = lists(&[3], &[7], 0);
    finish(&mut p, "r", &list, 4, 0, Duration::from_millis(200));
    p.sent("r");
    assert_eq!(p.stat(0, "num_kv_expired_reqs"), 1);
    // Too late.
    register(&d, "r", &p, &list);
    eventually("a link", || {
        d.worker().state().handshakes == 0 && d.worker().state().peers == 1
    });
    assert!(d.worker().poll().is_empty());
    p.at_rest(0);
}

#[test]
fn a_producer_that_never_writes_is_waited_for_so_long_and_no_longer() {
    let model = dense(4);
    let d = Recipe::new("local", "d", &model, style(&model, 1, 32, 4))
        .change(|o| {
            o.mode = Mode::Push;
            o.registration_timeout = Duration::from_millis(300);
        })
        .start();
    let (p, _) = engines(1, 1, &model);
    register(&d, "r", &p, &lists(&[3], &[7], 0));
    assert!(d.failed("r")[0].starts_with("timeout"));
    // Registered and called off in one step: the producer never hears of it.
    let registration = d.receive_of("s", &p, "unused", &lists(&[3], &[7], 0));
    d.step(&Step {
        registrations: vec![registration],
        cancel: vec!["s".into()],
        ..Step::default()
    });
    assert!(d.failed("s")[0].starts_with("canceled"));
    // A full hit has nothing to be written.
    let mut hit = d.receive_of("t", &p, "unused", &lists(&[3], &[], 1));
    hit.awaited = false;
    d.receive(hit);
    d.at_rest(1);
}

/// Says something to `p` and waits until it has been heard, and with it all that was said before.
fn say(from: &Agent, p: &Engine, messages: &[&[u8]]) {
    let name = from.add_remote(&p.agent().metadata().unwrap()).unwrap();
    for message in messages {
        from.notify(&name, message, None).unwrap();
    }
    let before = p.worker().state().early;
    let unknown = format!("{}:1", unique("unknown"));
    from.notify(&name, unknown.as_bytes(), None).unwrap();
    eventually("to be heard", || p.worker().state().early > before);
}

/// The other ranks of a consumer say the same as its first one, and later. It must not be taken for another
/// request of the same name, whose blocks would be written to where the first one's were.
#[test]
fn what_a_second_rank_says_of_a_request_that_is_written() {
    let (mut p, d) = engines(1, 2, &dense(4));
    let list = lists(&[3, 1], &[7, 4], 0);
    finish(&mut p, "r-0123abcd", &list, 8, 0, LEASE);
    register(&d, "r-89efabcd", &p, &list);
    d.received("r-89efabcd");
    p.sent("r-0123abcd");
    for rank in &d.ranks {
        say(&rank.agent, &p, &[]);
    }
    let before = d.memories();
    let other = lists(&[20, 21], &[7, 4], 0);
    finish(
        &mut p,
        "r-77777777",
        &other,
        8,
        1,
        Duration::from_millis(300),
    );
    p.sent("r-77777777");
    check(&d, &before);
    // Under the ids that were used before it is a request of its own.
    finish(&mut p, "r-0123abcd", &other, 8, 2, LEASE);
    let (want, _) = with_memory_of(&p, &d, &other);
    register(&d, "r-89efabcd", &p, &other);
    d.received("r-89efabcd");
    p.sent("r-0123abcd");
    check(&d, &want);
    p.at_rest(1);
}

/// Nobody has to tell a producer that writes that it is through; somebody may all the same.
#[test]
fn a_request_that_somebody_calls_done_is_not_waited_with() {
    let (mut p, _d) = engines(1, 1, &dense(4));
    let stranger = agent("local", "stranger");
    let list = lists(&[3], &[7], 0);
    // Before it was finished: the blocks are free when it is.
    p.step(&Step {
        in_batch: vec!["r".into()],
        ..Step::default()
    });
    say(&stranger, &p, &[b"r:1"]);
    finish(&mut p, "r", &list, 4, 0, LEASE);
    p.sent("r");
    p.at_rest(0);
    // And after.
    finish(&mut p, "s", &list, 4, 1, LEASE);
    say(&stranger, &p, &[b"s:1"]);
    p.sent("s");
    p.at_rest(0);
}

#[test]
fn blocks_that_are_being_written_are_kept_whatever_is_said_of_them() {
    let (mut p, d) = engines_over("test", 1, 1, &dense(4));
    let stranger = agent("test", "stranger");
    let list = lists(&[3], &[7], 0);
    script(p.agent(), &[("hold", "1")]);
    register(&d, "r", &p, &list);
    finish(&mut p, "r", &list, 4, 0, LEASE);
    eventually("a write under way", || flying(p.agent()) > 0);
    say(&stranger, &p, &[b"r:1"]);
    assert_eq!(p.worker().state().holds, 1);
    assert!(p.worker().poll().is_empty());
    script(p.agent(), &[("hold", "0")]);
    p.sent("r");
    d.received("r");
}

#[test]
fn what_cannot_be_written_is_freed_by_its_lease() {
    let (mut p, d) = engines(1, 1, &dense(4));
    // The consumer names a block that it does not have.
    let mut list = lists(&[3], &[7], 0);
    list[0].d[0] = 1_000_000;
    register(&d, "r", &p, &list);
    list[0].d.clear();
    finish(&mut p, "r", &list, 4, 0, Duration::from_secs(1));
    p.sent("r");
    assert_eq!(p.stat(0, "num_failed_transfers"), 1);
    // And one that is not there when hands are to be shaken.
    d.listener.shutdown();
    let (mut q, _) = engines(1, 1, &dense(4));
    register(&d, "s", &q, &lists(&[3], &[7], 0));
    finish(
        &mut q,
        "s",
        &lists(&[3], &[7], 0),
        4,
        0,
        Duration::from_secs(1),
    );
    q.sent("s");
    assert_eq!(q.stat(0, "num_failed_handshakes"), 1);
    q.at_rest(0);
}

#[test]
fn producers_of_several_stages_are_refused_at_the_start() {
    let options = kvferry::connector::worker::WorkerOptions {
        mode: Mode::Push,
        engine_id: "p".into(),
        parallel: kvferry::layout::Parallel {
            pp_size: 2,
            ..Default::default()
        },
        ..Default::default()
    };
    let refused = kvferry::connector::worker::Worker::create(agent("local", "p"), options);
    let e = refused.err().expect("refused");
    assert_eq!(e.status(), kvferry::error::Status::NotSupported);
    assert!(e.message().contains("pipeline stages"), "{e}");
}
