//! Waiting, the event descriptor, closing and dropping.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use kvferry::error::Status;
use kvferry::queue::*;

use crate::support::*;

/// Whether poll(2) finds the descriptor readable within a time.
fn readable(fd: RawFd, limit: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid entry.
    let n = unsafe { libc::poll(&mut poll, 1, limit.as_millis() as i32) };
    assert!(n >= 0, "{}", std::io::Error::last_os_error());
    n == 1 && poll.revents & libc::POLLIN != 0
}

/// Waits for a completion that never comes, and is told so at once.
#[track_caller]
fn let_go(queue: &Queue) {
    let begin = Instant::now();
    assert!(!queue.wait(LIMIT));
    assert!(begin.elapsed() < LIMIT, "waited for nothing");
}

#[test]
fn the_descriptor_is_readable_exactly_while_there_are_completions() {
    let world = World::new("test", Shape::default());
    let queue = world.queue(QueueOptions::default());
    let fd = queue.event_fd();
    let now = Duration::ZERO;
    assert!(!readable(fd, now));
    for round in 0..20 {
        world.send(&queue, &[1], &[1]);
        world.send(&queue, &[2], &[2]);
        assert!(readable(fd, LIMIT));
        eventually("both", || queue.stats().unpolled == 2);
        assert!(readable(fd, now) && readable(fd, now), "level, not edge");
        assert_eq!(queue.poll(1).len(), 1);
        assert!(readable(fd, now), "round {round}: one is left");
        assert!(queue.wait(now));
        assert_eq!(queue.poll(10).len(), 1);
        assert!(!readable(fd, now), "round {round}: none is left");
        assert!(!queue.wait(now));
        assert!(queue.poll(10).is_empty());
        assert!(!readable(fd, now));
    }
}

#[test]
fn a_sleeper_is_woken_whichever_way_it_sleeps() {
    let world = World::new("test", Shape::default());
    script(&world.sink, &[("hold", "1")]);
    let queue = world.queue(QueueOptions::default());
    world.send(&queue, &[1], &[1]);
    let begin = Instant::now();
    assert!(!queue.wait(Duration::from_millis(5)));
    assert!(begin.elapsed() >= Duration::from_millis(5));
    std::thread::scope(|scope| {
        let by_wait = scope.spawn(|| queue.wait(Duration::MAX));
        let by_wait_too = scope.spawn(|| queue.wait(LIMIT));
        let by_poll = scope.spawn(|| readable(queue.event_fd(), LIMIT));
        script(&world.sink, &[("hold", "0")]);
        assert!(by_wait.join().unwrap());
        assert!(by_wait_too.join().unwrap());
        assert!(by_poll.join().unwrap());
    });
    assert_eq!(status(&next(&queue)), Status::Ok);
}

#[test]
fn closing_with_time_carries_out_what_was_accepted() {
    let world = World::new("test", Shape::default());
    script(&world.sink, &[("delay_us", "1000")]);
    let queue = world.queue(fine());
    let want = world.expected(&world.mine.read(), &[1, 3, 5], &[2, 4, 6], 2);
    let tickets: Vec<Ticket> = (0..6)
        .map(|_| world.send(&queue, &[1, 3, 5], &[2, 4, 6]))
        .collect();
    queue.close(LIMIT).unwrap();
    let done = queue.poll(100);
    let mut ended: Vec<Ticket> = done.iter().map(|d| d.ticket).collect();
    ended.sort_unstable();
    assert_eq!(ended, tickets);
    assert!(done.iter().all(|d| d.result.is_ok()), "{done:?}");
    same("the sink", &world.mine.read(), &want);
}

#[test]
fn closing_without_time_cancels_and_says_so() {
    let world = World::new("test", Shape::default());
    script(&world.sink, &[("hold", "1")]);
    let queue = world.queue(QueueOptions::default());
    let before = world.mine.read();
    for i in 0..5 {
        let notify = |s: &mut Submission<'_>| s.notification = Some(b"read");
        world.submit(&queue, (&[i], &[i]), notify).unwrap();
    }
    queue.close(Duration::ZERO).unwrap();
    let done = queue.poll(100);
    assert_eq!(done.len(), 5);
    for done in done {
        failed(done, Status::Canceled, &["closed"]);
    }
    assert!(heard(&world.sources[0]).is_empty());
    script(&world.sink, &[("hold", "0")]);
    assert_eq!(told(&world.sink, "flying"), 0);
    same("the sink", &world.mine.read(), &before);
}

#[test]
fn a_transfer_that_cannot_be_stopped_is_abandoned_within_the_bound() {
    let world = World::new("test", Shape::default());
    script(&world.sink, &[("hold", "1"), ("stubborn", "1")]);
    let queue = world.queue(QueueOptions {
        capacity: 2,
        ..QueueOptions::default()
    });
    let before = world.mine.read();
    world.send(&queue, &[1], &[1]);
    eventually("both posts", || told(&world.sink, "flying") == 2);
    let canary = world.send_canary(&queue);
    let begin = Instant::now();
    let error = queue.close(Duration::from_millis(150)).unwrap_err();
    let took = begin.elapsed();
    assert_eq!(error.status(), Status::Timeout);
    assert!(error.message().contains("1 request"), "{error}");
    assert!(
        took >= Duration::from_millis(300),
        "{took:?}: two times 150 ms"
    );
    assert!(took < Duration::from_secs(20), "{took:?}");
    let done = queue.poll(100);
    assert_eq!(done.len(), 1, "the stuck one never completes");
    assert_eq!(done[0].ticket, canary);
    let_go(&queue);
    same("the sink", &world.mine.read(), &before);
    // Its place is never free again; that is not what a caller must be told.
    for _ in 0..3 {
        let error = world.submit(&queue, (&[2], &[2]), |_| {}).unwrap_err();
        assert_eq!(error.status(), Status::InvalidState, "{error}");
    }
    // The agent knows what to do with it.
    world.sink.close().unwrap();
    world.mine.fill(|i| pattern(9, i));
    let poisoned = world.mine.read();
    drop(queue);
    same("the sink", &world.mine.read(), &poisoned);
}

#[test]
fn closing_waits_at_least_a_little_for_cancelled_transfers() {
    let world = World::new("test", Shape::default());
    script(&world.sink, &[("delay_us", "50000"), ("stubborn", "1")]);
    let queue = world.queue(QueueOptions::default());
    let want = world.expected(&world.mine.read(), &[1], &[1], 2);
    world.send(&queue, &[1], &[1]);
    eventually("both posts", || told(&world.sink, "posts") == 2);
    // No time to drain, but the transfers cannot be stopped and need 50 ms.
    queue.close(Duration::ZERO).unwrap();
    let done = next(&queue);
    same("the sink", &world.mine.read(), &want);
    // On a machine so busy that closing came late they were through before.
    if done.result.is_err() {
        failed(done, Status::Canceled, &["closed"]);
    }
}

#[test]
fn what_works_on_a_closed_queue() {
    let world = World::new("test", Shape::default());
    let queue = world.queue(QueueOptions::default());
    let ticket = world.send(&queue, &[1], &[1]);
    queue.close(LIMIT).unwrap();
    queue.close(Duration::ZERO).unwrap();
    let error = world.submit(&queue, (&[1], &[1]), |_| {}).unwrap_err();
    assert_eq!(error.status(), Status::InvalidState);
    assert!(error.message().contains("closed"), "{error}");
    queue.cancel(ticket).unwrap();
    assert_eq!(
        queue.cancel(ticket + 1).unwrap_err().status(),
        Status::NotFound
    );
    assert!(queue.wait(Duration::MAX));
    assert!(readable(queue.event_fd(), Duration::ZERO));
    let stats = queue.stats();
    assert_eq!(
        (stats.submitted, stats.succeeded, stats.unpolled),
        (1, 1, 1)
    );
    let done = queue.poll(10).remove(0);
    assert_eq!((done.ticket, status(&done)), (ticket, Status::Ok));
    let_go(&queue);
    assert!(!readable(queue.event_fd(), Duration::ZERO));
}

#[test]
fn whoever_waits_when_the_queue_is_closed_is_let_go() {
    let world = World::new("test", Shape::default());
    let queue = world.queue(QueueOptions::default());
    std::thread::scope(|scope| {
        scope.spawn(|| let_go(&queue));
        queue.close(Duration::ZERO).unwrap();
    });
}

#[test]
fn what_is_accepted_while_another_thread_closes_completes() {
    let world = World::new("test", Shape::default());
    for _ in 0..40 {
        let queue = world.queue(QueueOptions::default());
        let accepted: usize = std::thread::scope(|scope| {
            let submitting: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let (begin, mut accepted) = (Instant::now(), 0);
                        loop {
                            assert!(begin.elapsed() < LIMIT, "the queue never closes");
                            match world.submit(&queue, (&[1], &[1]), |_| {}) {
                                Ok(_) => accepted += 1,
                                Err(e) if e.status() == Status::InvalidState => return accepted,
                                Err(e) => assert_eq!(e.status(), Status::Busy, "{e}"),
                            }
                        }
                    })
                })
                .collect();
            eventually("some requests", || queue.stats().submitted > 3);
            queue.close(LIMIT).unwrap();
            submitting.into_iter().map(|t| t.join().unwrap()).sum()
        });
        let done = queue.poll(usize::MAX);
        assert_eq!(done.len(), accepted, "none is lost");
        let stats = queue.stats();
        assert_eq!((stats.submitted as usize, stats.running), (accepted, 0));
        assert!(done.iter().all(|d| d.result.is_ok()));
    }
}

#[test]
fn cancelling_still_works_while_the_queue_drains() {
    let world = World::new("test", Shape::default());
    script(&world.sink, &[("hold", "1")]);
    let queue = world.queue(QueueOptions::default());
    let ticket = world.send(&queue, &[1], &[1]);
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| queue.close(Duration::MAX));
        eventually("the queue to be closed", || {
            let refused = world.submit(&queue, (&[], &[]), |_| {});
            refused.is_err_and(|e| e.status() == Status::InvalidState)
        });
        queue.cancel(ticket).unwrap();
        closing.join().unwrap().unwrap();
    });
    let done = queue.poll(usize::MAX);
    let done = done.into_iter().find(|d| d.ticket == ticket);
    failed(
        done.expect("its completion"),
        Status::Canceled,
        &["the request was"],
    );
}

#[test]
fn dropping_a_queue_with_work_under_way() {
    for stubborn in ["0", "1"] {
        let world = World::new("test", Shape::default());
        script(&world.sink, &[("hold", "1"), ("stubborn", stubborn)]);
        let queue = world.queue(QueueOptions::default());
        let before = world.mine.read();
        world.send(&queue, &[1], &[1]);
        eventually("both posts", || told(&world.sink, "flying") == 2);
        drop(queue);
        same("the sink", &world.mine.read(), &before);
        // The agent is as it was, and another queue may have it.
        script(&world.sink, &[("hold", "0"), ("stubborn", "0")]);
        let queue = world.queue(QueueOptions::default());
        world.send(&queue, &[2], &[2]);
        assert_eq!(status(&next(&queue)), Status::Ok);
    }
}

#[test]
fn two_queues_on_one_agent() {
    let world = World::new("test", Shape::default());
    script(&world.sink, &[("reorder", "5"), ("delay_us", "20")]);
    let (one, two) = (world.queue(fine()), world.queue(fine()));
    let want = world.expected(&world.mine.read(), &[1, 3, 5, 7], &[2, 4, 6, 8], 2);
    for _ in 0..20 {
        world.send(&one, &[1, 3], &[2, 4]);
        world.send(&two, &[5, 7], &[6, 8]);
        assert_eq!(status(&next(&one)), Status::Ok);
        assert_eq!(status(&next(&two)), Status::Ok);
    }
    same("the sink", &world.mine.read(), &want);
}
