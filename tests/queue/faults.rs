//! Failures, deadlines and cancellation, in every phase of a request.
//!
//! The script lets the tests stop the world: while `hold` is set nothing completes, and while
//! `stubborn` is set a cancelled transfer still lands, as NIXL's do. What must *not* happen is shown
//! with a canary: see [`World::send_canary`].

use std::time::{Duration, Instant};

use kvferry::error::Status;
use kvferry::plan::{Direction, PeerRole};
use kvferry::queue::*;

use crate::support::*;

const NOTIFY: fn(&mut Submission<'_>) = |s| s.notification = Some(b"read");

/// Overwrites the sink, gives whatever might still be on its way the chance to land, and looks.
#[track_caller]
fn nothing_lands_any_more(world: &World, queue: &Queue) {
    world.mine.fill(|i| pattern(77, i));
    let poisoned = world.mine.read();
    script(&world.sink, &[("hold", "0"), ("delay_us", "0")]);
    assert!(world.until_canary(queue).is_empty(), "completed twice");
    assert_eq!(told(&world.sink, "flying"), 0);
    same(
        "the sink after the completion",
        &world.mine.read(),
        &poisoned,
    );
}

#[track_caller]
fn nobody_heard(world: &World) {
    for source in &world.sources {
        assert!(heard(source).is_empty());
    }
}

#[test]
fn a_failed_post_stops_the_request_and_waits_for_the_rest() {
    let world = World::new("test", Shape::default());
    script(
        &world.sink,
        &[("hold", "1"), ("stubborn", "1"), ("fail_post", "4")],
    );
    let queue = world.queue(fine());
    let before = world.mine.read();
    // Two sources, two rows, three pages apart: 12 posts, if all went well.
    let (local, remote) = ([1, 3, 5], [6, 8, 10]);
    let ticket = world.submit(&queue, (&local, &remote), NOTIFY).unwrap();
    eventually("three posts", || told(&world.sink, "posts") == 3);
    // Three are under way and cannot be stopped: no completion, and no other post.
    assert!(world.until_canary(&queue).is_empty());
    assert_eq!(told(&world.sink, "flying"), 3);
    same("held", &world.mine.read(), &before);
    script(&world.sink, &[("hold", "0")]);
    let done = next(&queue);
    // Posts take turns: the first page of both sources, and the second of the first one.
    let mut want = world.expected(&before, &local[..1], &remote[..1], 2);
    let page = world.shape.page;
    let (row, mine) = (world.shape.blocks * page, world.theirs[0].read());
    want[3 * page..4 * page].copy_from_slice(&mine[8 * page..9 * page]);
    // `expected` fills the first page of all rows; the second rows have not had their turn.
    for r in [1, 3] {
        let at = r * row + page;
        want[at..at + page].copy_from_slice(&before[at..at + page]);
    }
    same("what was under way has landed", &world.mine.read(), &want);
    assert_eq!(done.ticket, ticket);
    assert_eq!(done.record.bytes, 0, "a cancelled slice is not counted");
    assert_eq!(done.record.total_bytes, 12 * 32);
    failed(done, Status::Backend, &[&world.names[1], "post fails"]);
    assert_eq!(
        told(&world.sink, "posts"),
        3,
        "nothing was posted after the failure"
    );
    nobody_heard(&world);
    nothing_lands_any_more(&world, &queue);
}

#[test]
fn every_post_may_be_the_one_that_fails() {
    let world = World::new("test", Shape::default());
    let queue = world.queue(fine());
    let (local, remote) = ([1, 3, 5], [6, 8, 10]);
    for n in 1..=13u32 {
        for how in ["fail_post", "fail_transfer"] {
            script(
                &world.sink,
                &[(how, &n.to_string()), ("reorder", "3"), ("delay_us", "50")],
            );
            world.submit(&queue, (&local, &remote), NOTIFY).unwrap();
            let done = next(&queue);
            assert_eq!(told(&world.sink, "flying"), 0, "all have come to rest");
            if n <= 12 {
                failed(done, Status::Backend, &["the script said", "source-"]);
                nobody_heard(&world);
            } else {
                assert_eq!(status(&done), Status::Ok);
                assert_eq!(heard(&world.sources[0]), [b"read"]);
                assert_eq!(heard(&world.sources[1]), [b"read"]);
            }
            // What is left of the script is used up, so that the next round begins anew.
            script(&world.sink, &[(how, "0")]);
        }
    }
    nothing_lands_any_more(&world, &queue);
}

#[test]
fn one_rank_that_fails_stops_the_others_and_the_request_fails_once() {
    let shape = Shape {
        sources: 4,
        ..Shape::default()
    };
    let world = World::with("test", shape, Direction::Pull, &[PeerRole::NotifyOnly]);
    script(
        &world.sink,
        &[("hold", "1"), ("stubborn", "1"), ("fail_transfer", "1")],
    );
    // Longer in the queue than one slice each.
    let queue = world.queue(QueueOptions {
        slice_descriptors: 1,
        slices_in_flight: 4,
        ..QueueOptions::default()
    });
    world
        .submit(&queue, (&[0, 2, 4], &[0, 2, 4]), NOTIFY)
        .unwrap();
    eventually("four posts", || told(&world.sink, "posts") == 4);
    // The first one fails; the thread may see some of the others end before it sees that.
    script(&world.sink, &[("hold", "0")]);
    let done = next(&queue);
    let posts = told(&world.sink, "posts") as u64;
    assert!(posts < 8, "{posts} of 24 were posted");
    assert!(done.record.bytes < posts * 32);
    failed(done, Status::Backend, &[&world.names[0], "transfer fails"]);
    nobody_heard(&world);
    nothing_lands_any_more(&world, &queue);
}

#[test]
fn a_cancel_that_takes_effect_late_is_waited_for() {
    let world = World::new("test", Shape::default());
    script(&world.sink, &[("hold", "1"), ("stubborn", "1")]);
    let queue = world.queue(QueueOptions::default());
    let before = world.mine.read();
    let want = world.expected(&before, &[1, 3], &[6, 8], 2);
    let ticket = world.submit(&queue, (&[1, 3], &[6, 8]), NOTIFY).unwrap();
    eventually("both posts", || told(&world.sink, "flying") == 2);
    queue.cancel(ticket).unwrap();
    assert!(
        world.until_canary(&queue).is_empty(),
        "bytes may still land"
    );
    assert!(
        world.until_canary(&queue).is_empty(),
        "bytes may still land"
    );
    same("held", &world.mine.read(), &before);
    script(&world.sink, &[("hold", "0")]);
    let done = next(&queue);
    same("they did land", &world.mine.read(), &want);
    failed(done, Status::Canceled, &["cancelled"]);
    nobody_heard(&world);
    nothing_lands_any_more(&world, &queue);
}

#[test]
fn a_cancel_that_takes_effect_at_once() {
    let world = World::new("test", Shape::default());
    script(&world.sink, &[("hold", "1")]);
    let queue = world.queue(fine());
    let before = world.mine.read();
    let ticket = world.submit(&queue, (&[1, 3], &[6, 8]), NOTIFY).unwrap();
    eventually("four posts", || told(&world.sink, "posts") == 4);
    queue.cancel(ticket).unwrap();
    let done = next(&queue);
    assert_eq!((done.ticket, done.record.bytes), (ticket, 0));
    failed(done, Status::Canceled, &[]);
    same("the sink", &world.mine.read(), &before);
    assert_eq!(told(&world.sink, "posts"), 4);
    nobody_heard(&world);
    nothing_lands_any_more(&world, &queue);
}

#[test]
fn cancelled_before_it_began() {
    // The thread is busy posting something endless while request and cancel are both sent, or not:
    // either way the request ends once and is either through or cancelled.
    let world = World::new("test", Shape::default());
    let queue = world.queue(fine());
    for _ in 0..300 {
        let ticket = world.send(&queue, &[1, 3], &[6, 8]);
        queue.cancel(ticket).unwrap();
        let done = next(&queue);
        assert_eq!(done.ticket, ticket);
        assert!(matches!(status(&done), Status::Ok | Status::Canceled));
        if done.record.planned_ns == 0 {
            assert_eq!(told(&world.sink, "flying"), 0);
        }
    }
    nothing_lands_any_more(&world, &queue);
}

#[test]
fn cancelling_what_is_over_and_what_never_was() {
    let world = World::new("test", Shape::default());
    let queue = world.queue(QueueOptions::default());
    for unknown in [0, 1, u64::MAX] {
        let error = queue.cancel(unknown).unwrap_err();
        assert_eq!(error.status(), Status::NotFound);
        assert!(error.message().contains(&unknown.to_string()), "{error}");
    }
    let ticket = world.send(&queue, &[1], &[1]);
    assert!(queue.wait(LIMIT));
    queue.cancel(ticket).unwrap();
    assert_eq!(
        status(&next(&queue)),
        Status::Ok,
        "over before it was cancelled"
    );
    queue.cancel(ticket).unwrap();
    assert!(world.until_canary(&queue).is_empty());
    let other = world.send(&queue, &[1], &[1]);
    assert!(other > ticket);
    assert_eq!(status(&next(&queue)), Status::Ok, "another one's cancel");
    assert_eq!(
        queue.cancel(other + 1).unwrap_err().status(),
        Status::NotFound
    );
}

#[test]
fn the_first_reason_is_the_one_reported() {
    let world = World::new("test", Shape::default());
    script(
        &world.sink,
        &[("hold", "1"), ("stubborn", "1"), ("fail_post", "2")],
    );
    let queue = world.queue(fine());
    let ticket = world.send(&queue, &[1, 3], &[6, 8]);
    eventually("the first post", || told(&world.sink, "posts") == 1);
    assert!(world.until_canary(&queue).is_empty());
    queue.cancel(ticket).unwrap();
    assert!(world.until_canary(&queue).is_empty());
    script(&world.sink, &[("hold", "0")]);
    failed(next(&queue), Status::Backend, &["post fails"]);
}

fn within(limit: Duration) -> impl Fn(&mut Submission<'_>) {
    move |s| {
        s.deadline = Some(limit);
        s.notification = Some(b"read");
    }
}

#[test]
fn a_deadline_that_has_passed_before_anything_is_done() {
    let world = World::new("test", Shape::default());
    let queue = world.queue(QueueOptions::default());
    let before = world.mine.read();
    world
        .submit(&queue, (&[1], &[1]), within(Duration::ZERO))
        .unwrap();
    let done = next(&queue);
    assert_eq!((done.record.planned_ns, done.record.slices), (0, 0));
    failed(done, Status::Timeout, &["deadline of 0 ms", "before"]);
    assert_eq!(told(&world.sink, "posts"), 0);
    same("the sink", &world.mine.read(), &before);
    nobody_heard(&world);
}

#[test]
fn a_deadline_that_passes_while_bytes_move_and_others_go_on() {
    let world = World::new("test", Shape::default());
    script(&world.sink, &[("hold", "1")]);
    let queue = world.queue(fine());
    let before = world.mine.read();
    let other = world.send(&queue, &[20], &[20]);
    eventually("four posts", || told(&world.sink, "posts") == 4);
    let limit = Duration::from_millis(30);
    let late = world
        .submit(&queue, (&[1, 3], &[6, 8]), within(limit))
        .unwrap();
    let done = next(&queue);
    assert_eq!(done.ticket, late);
    assert!(done.record.finished_ns >= 30_000_000, "not before its time");
    let begun = done.record.planned_ns > 0;
    let how_far = if begun { "0 of 256 bytes" } else { "before" };
    failed(done, Status::Timeout, &["30 ms", how_far]);
    same("the sink", &world.mine.read(), &before);
    nobody_heard(&world);
    script(&world.sink, &[("hold", "0")]);
    let done = next(&queue);
    assert_eq!((done.ticket, status(&done)), (other, Status::Ok));
}

#[test]
fn a_deadline_that_passes_while_nothing_can_be_stopped() {
    let world = World::new("test", Shape::default());
    script(&world.sink, &[("hold", "1"), ("stubborn", "1")]);
    let queue = world.queue(QueueOptions::default());
    let want = world.expected(&world.mine.read(), &[1, 3], &[6, 8], 2);
    let mut limit = Duration::from_millis(10);
    loop {
        let begin = Instant::now();
        let blocks: (&[u32], &[u32]) = (&[1, 3], &[6, 8]);
        world.submit(&queue, blocks, within(limit)).unwrap();
        eventually("both posts", || {
            told(&world.sink, "flying") == 2 || begin.elapsed() > limit
        });
        std::thread::sleep(limit.saturating_sub(begin.elapsed()));
        if told(&world.sink, "flying") == 2 {
            break;
        }
        // The machine is so busy that the time was over before. Once more, with more of it.
        script(&world.sink, &[("hold", "0")]);
        next(&queue);
        script(&world.sink, &[("hold", "1")]);
        limit *= 2;
    }
    assert!(
        world.until_canary(&queue).is_empty(),
        "bytes may still land"
    );
    script(&world.sink, &[("hold", "0")]);
    let done = next(&queue);
    same("they did land", &world.mine.read(), &want);
    failed(done, Status::Timeout, &[]);
    nobody_heard(&world);
    nothing_lands_any_more(&world, &queue);
}

#[test]
fn a_deadline_far_away_never_comes() {
    let world = World::new("test", Shape::default());
    let queue = world.queue(QueueOptions::default());
    for limit in [Duration::MAX, Duration::from_secs(1 << 40)] {
        world.submit(&queue, (&[1], &[1]), within(limit)).unwrap();
        assert_eq!(status(&next(&queue)), Status::Ok);
    }
}

#[test]
fn a_peer_that_vanishes_and_comes_back() {
    let world = World::new("test", Shape::default());
    script(&world.sink, &[("hold", "1")]);
    let queue = world.queue(fine());
    let (both, both_remote) = ([1, 3], [6, 8]);
    world.submit(&queue, (&both, &both_remote), NOTIFY).unwrap();
    eventually("four posts", || told(&world.sink, "posts") == 4);
    script(&world.sink, &[("lose", &world.names[1]), ("hold", "0")]);
    failed(next(&queue), Status::PeerLost, &[&world.names[1]]);
    nobody_heard(&world);
    // Gone is gone, until it is back.
    world.send(&queue, &both, &both_remote);
    failed(next(&queue), Status::PeerLost, &[&world.names[1]]);
    script(&world.sink, &[("find", &world.names[1])]);
    let want = world.expected(&world.mine.read(), &both, &both_remote, 2);
    world.submit(&queue, (&both, &both_remote), NOTIFY).unwrap();
    assert_eq!(status(&next(&queue)), Status::Ok);
    same("the sink", &world.mine.read(), &want);
    assert_eq!(heard(&world.sources[1]), [b"read"]);
}

#[test]
fn a_peer_whose_agent_is_destroyed() {
    let world = World::new("test", Shape::default());
    script(&world.sink, &[("hold", "1")]);
    let queue = world.queue(QueueOptions::default());
    world.send(&queue, &[1], &[1]);
    eventually("both posts", || told(&world.sink, "posts") == 2);
    world.sources[0].close().unwrap();
    script(&world.sink, &[("hold", "0")]);
    failed(next(&queue), Status::PeerLost, &[&world.names[0]]);
    nothing_lands_any_more(&world, &queue);
}

#[test]
fn the_agent_destroyed_under_its_queue() {
    for transport in ["test", "local"] {
        let world = World::new(transport, Shape::default());
        if transport == "test" {
            script(&world.sink, &[("hold", "1"), ("stubborn", "1")]);
        }
        let queue = world.queue(fine());
        let before = world.mine.read();
        let mut tickets: Vec<Ticket> = (0..3)
            .map(|_| world.send(&queue, &[1, 3], &[6, 8]))
            .collect();
        if transport == "test" {
            eventually("posts", || told(&world.sink, "posts") == 12);
        }
        world.sink.close().unwrap();
        while !tickets.is_empty() {
            let done = next(&queue);
            let at = tickets.iter().position(|t| *t == done.ticket);
            tickets.remove(at.expect("one completion each"));
            match transport {
                "test" => failed(done, Status::Canceled, &["destroyed"]),
                // It may have been through before.
                _ => assert!(
                    matches!(
                        status(&done),
                        Status::Ok | Status::Canceled | Status::InvalidState
                    ),
                    "{:?}",
                    done.result
                ),
            }
        }
        if transport == "test" {
            same("the sink", &world.mine.read(), &before);
        }
        world.send(&queue, &[1], &[1]);
        failed(next(&queue), Status::InvalidState, &["destroyed"]);
        queue.close(Duration::from_secs(5)).unwrap();
    }
}
