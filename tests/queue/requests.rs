//! What a request that goes well does, and what is refused or found wrong before bytes move.

use std::time::Duration;

use kvferry::error::Status;
use kvferry::plan::*;
use kvferry::queue::*;

use crate::support::*;

#[test]
fn all_bytes_of_all_ranks_then_one_completion() {
    for direction in [Direction::Pull, Direction::Push] {
        let shape = Shape {
            sources: 3,
            ..Shape::default()
        };
        let world = World::with("test", shape, direction, &[]);
        script(&world.sink, &[("reorder", "7"), ("delay_us", "300")]);
        let queue = world.queue(fine());
        let (local, remote) = ([5, 2, 40, 41, 63], [1, 9, 30, 31, 0]);
        let mine = world.mine.read();
        let theirs: Vec<Vec<u8>> = world.theirs.iter().map(|m| m.read()).collect();
        let want = world.expected(&mine, &local, &remote, 3);
        let ticket = world.send(&queue, &local, &remote);
        let done = next(&queue);
        assert_eq!((done.ticket, status(&done)), (ticket, Status::Ok));
        if direction == Direction::Pull {
            same("the sink", &world.mine.read(), &want);
            for (i, theirs) in theirs.iter().enumerate() {
                same("a source", &world.theirs[i].read(), theirs);
            }
        } else {
            same("the sink", &world.mine.read(), &mine);
            for (s, theirs) in theirs.iter().enumerate() {
                let want = pushed(&world, s, &mine, theirs, &local, &remote);
                same("a source", &world.theirs[s].read(), &want);
            }
        }
        let r = &done.record;
        // Three sources, two rows each, five pages of 32 bytes; pages 40 and 41 are neighbours of 30
        // and 31.
        let pages = 3 * 2 * 5;
        assert_eq!((r.bytes, r.total_bytes), (pages * 32, pages * 32));
        assert_eq!((r.descriptors_before, r.descriptors), (pages, 3 * 2 * 4));
        assert_eq!(r.slices, 3 * 2 * 4, "one descriptor a slice");
        assert_eq!(r.backend, "test");
        assert!(0 < r.submitted_ns && 0 < r.planned_ns);
        assert!(r.planned_ns <= r.posted_ns && r.posted_ns <= r.finished_ns);
        assert!(
            r.finished_ns >= 300_000,
            "no earlier than the script lets it"
        );
        assert!(world.until_canary(&queue).is_empty(), "once only");
    }
}

/// What source `s` holds when the sink has written to it.
fn pushed(w: &World, s: usize, mine: &[u8], theirs: &[u8], l: &[u32], r: &[u32]) -> Vec<u8> {
    let mut want = theirs.to_vec();
    let (page, row) = (w.shape.page, w.shape.blocks * w.shape.page);
    for i in 0..w.shape.rows {
        for (l, r) in l.iter().zip(r) {
            let from = (s * w.shape.rows + i) * row + *l as usize * page;
            let to = i * row + *r as usize * page;
            want[to..to + page].copy_from_slice(&mine[from..from + page]);
        }
    }
    want
}

#[test]
fn the_notification_comes_after_all_bytes_and_to_all_that_wait_for_it() {
    let others = [PeerRole::NotifyOnly, PeerRole::Idle];
    let world = World::with("test", Shape::default(), Direction::Pull, &others);
    script(&world.sink, &[("hold", "1")]);
    let queue = world.queue(QueueOptions::default());
    let before = world.mine.read();
    let want = world.expected(&before, &[3], &[4], 2);
    let notify = |s: &mut Submission<'_>| s.notification = Some(b"read");
    let ticket = world.submit(&queue, (&[3], &[4]), notify).unwrap();
    eventually("both posts", || told(&world.sink, "flying") == 2);
    assert!(world.until_canary(&queue).is_empty());
    for source in &world.sources {
        assert!(heard(source).is_empty(), "bytes are still to come");
    }
    script(&world.sink, &[("hold", "0")]);
    // The producer reads its messages before the completion is looked at: with the message, the
    // bytes must be there.
    let mut first = Vec::new();
    eventually("the message", || {
        first = heard(&world.sources[0]);
        !first.is_empty()
    });
    same("when the producer hears", &world.mine.read(), &want);
    let done = next(&queue);
    assert_eq!((done.ticket, status(&done)), (ticket, Status::Ok));
    assert!(done.not_notified.is_empty());
    assert_eq!(first, [b"read"]);
    assert_eq!(heard(&world.sources[1]), [b"read"]);
    assert_eq!(heard(&world.sources[2]), [b"read"], "notify only");
    assert!(heard(&world.sources[3]).is_empty(), "idle");
}

#[test]
fn without_a_notification_nobody_hears_and_an_empty_one_is_one() {
    let world = World::new("test", Shape::default());
    let queue = world.queue(QueueOptions::default());
    world.send(&queue, &[0], &[0]);
    assert_eq!(status(&next(&queue)), Status::Ok);
    assert!(heard(&world.sources[0]).is_empty());
    let empty = |s: &mut Submission<'_>| s.notification = Some(b"");
    world.submit(&queue, (&[0], &[0]), empty).unwrap();
    assert_eq!(status(&next(&queue)), Status::Ok);
    assert_eq!(heard(&world.sources[0]), [b""]);
}

#[test]
fn a_request_without_blocks_only_notifies() {
    let world = World::new("test", Shape::default());
    let queue = world.queue(QueueOptions::default());
    let before = world.mine.read();
    let notify = |s: &mut Submission<'_>| s.notification = Some(b"free");
    world.submit(&queue, (&[], &[1, 2]), notify).unwrap();
    let done = next(&queue);
    assert_eq!(status(&done), Status::Ok);
    assert_eq!((done.record.total_bytes, done.record.slices), (0, 0));
    assert_eq!((done.record.posted_ns, &done.record.backend[..]), (0, ""));
    assert_eq!(heard(&world.sources[0]), [b"free"]);
    assert_eq!(heard(&world.sources[1]), [b"free"]);
    same("the sink", &world.mine.read(), &before);
}

#[test]
fn a_peer_that_cannot_be_notified_does_not_fail_the_request() {
    let others = [PeerRole::NotifyOnly, PeerRole::NotifyOnly];
    let world = World::with("test", Shape::default(), Direction::Pull, &others);
    script(&world.sink, &[("lose", &world.names[2])]);
    let queue = world.queue(QueueOptions::default());
    let want = world.expected(&world.mine.read(), &[8, 1], &[1, 8], 2);
    let notify = |s: &mut Submission<'_>| s.notification = Some(b"read");
    world.submit(&queue, (&[8, 1], &[1, 8]), notify).unwrap();
    let done = next(&queue);
    assert_eq!(status(&done), Status::Ok);
    same("the sink", &world.mine.read(), &want);
    assert_eq!(done.not_notified.len(), 1);
    let (name, error) = &done.not_notified[0];
    assert_eq!((name, error.status()), (&world.names[2], Status::PeerLost));
    for i in [0, 1, 3] {
        assert_eq!(heard(&world.sources[i]), [b"read"], "peer {i}");
    }
}

#[test]
fn a_notification_that_is_the_callers_own_until_then_may_change_afterwards() {
    let world = World::new("test", Shape::default());
    script(&world.sink, &[("hold", "1")]);
    let queue = world.queue(QueueOptions::default());
    let want = world.expected(&world.mine.read(), &[3, 4], &[5, 6], 2);
    let (mut local, mut remote, mut text) = (vec![3, 4], vec![5, 6], b"one".to_vec());
    let notify = |s: &mut Submission<'_>| s.notification = Some(b"one");
    world.submit(&queue, (&local, &remote), notify).unwrap();
    local.fill(60);
    remote.fill(61);
    text.fill(b'x');
    script(&world.sink, &[("hold", "0")]);
    assert_eq!(status(&next(&queue)), Status::Ok);
    same("the sink", &world.mine.read(), &want);
    assert_eq!(heard(&world.sources[0]), [b"one"]);
}

#[test]
fn what_can_be_seen_at_a_glance_is_refused() {
    let world = World::new("test", Shape::default());
    let queue = world.queue(QueueOptions::default());
    let refused = |change: &dyn Fn(&mut Submission<'_>), parts: &[&str]| {
        let error = world
            .submit(&queue, (&[1], &[1]), |s| change(s))
            .unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument, "{error}");
        for part in parts {
            assert!(error.message().contains(part), "{part} is not in {error}");
        }
    };
    refused(&|s| s.agents = &["one"], &["1 agents", "2 peers"]);
    refused(&|s| s.agents = &["one", ""], &["peer 1", "no agent"]);
    refused(&|s| s.request.groups = &[], &["0 groups", "has 1"]);
    let large = vec![0; (16 << 20) + 1];
    let error = {
        let agents: Vec<&str> = world.names.iter().map(String::as_str).collect();
        let submission = Submission {
            plan: &world.plan,
            agents: &agents,
            request: Request {
                groups: &[GroupBlocks::new(&[1], &[1])],
                tokens: None,
            },
            notification: Some(&large),
            deadline: None,
            guards: &[],
        };
        queue.submit(&submission).unwrap_err()
    };
    assert!(error.message().contains("16777217 bytes"), "{error}");
    let stats = queue.stats();
    assert_eq!((stats.submitted, stats.refused), (0, 0));
    assert!(!queue.wait(Duration::ZERO));
}

#[test]
fn what_is_wrong_with_the_ids_is_named_in_the_completion_and_others_go_on() {
    let world = World::new("test", Shape::default());
    let queue = world.queue(QueueOptions::default());
    let before = world.mine.read();
    let want = world.expected(&before, &[1], &[2], 2);
    let duplicate = world.send(&queue, &[7, 9, 7], &[1, 2, 3]);
    let beyond = world.send(&queue, &[1], &[64]);
    let counts = world.send(&queue, &[1, 2, 3], &[1]);
    let good = world.send(&queue, &[1], &[2]);
    let tokens = world.submit(&queue, (&[1], &[1]), |s| s.request.tokens = Some(0));
    let mut done: Vec<Completion> = (0..5).map(|_| next(&queue)).collect();
    let mut take = |ticket| {
        let at = done.iter().position(|d| d.ticket == ticket);
        done.swap_remove(at.expect("its completion"))
    };
    let fails = |d, status, parts| failed(d, status, parts);
    fails(
        take(duplicate),
        Status::InvalidArgument,
        &["block 7 ", "twice"],
    );
    fails(take(beyond), Status::InvalidArgument, &["remote block 64"]);
    fails(take(counts), Status::Mismatch, &["3 local", "1 remote"]);
    fails(take(tokens.unwrap()), Status::Mismatch, &["0 tokens"]);
    assert_eq!(status(&take(good)), Status::Ok);
    same("the sink", &world.mine.read(), &want);
}

#[test]
fn an_agent_that_is_not_known_is_named() {
    let world = World::new("test", Shape::default());
    let queue = world.queue(QueueOptions::default());
    let before = world.mine.read();
    let unknown = |s: &mut Submission<'_>| {
        s.agents = &["nobody", "no one"];
        s.notification = Some(b"read");
    };
    world.submit(&queue, (&[1], &[1]), unknown).unwrap();
    failed(next(&queue), Status::NotFound, &["nobody"]);
    same("the sink", &world.mine.read(), &before);
    assert!(heard(&world.sources[0]).is_empty());
}

#[test]
fn memory_that_is_not_registered_any_more_is_one_failed_request() {
    let world = World::new("test", Shape::default());
    let queue = world.queue(QueueOptions::default());
    let theirs = [world.theirs[1].desc().into()];
    let kind = kvferry::memory::MemKind::Dram;
    world.sources[1].deregister(kind, &theirs, &[]).unwrap();
    world.send(&queue, &[1], &[1]);
    failed(next(&queue), Status::NotRegistered, &[&world.names[1]]);
    register(&world.sources[1], kind, &world.theirs[1]);
    world.send(&queue, &[1], &[1]);
    assert_eq!(status(&next(&queue)), Status::Ok);
}

#[test]
fn figures_add_up() {
    let world = World::new("test", Shape::default());
    let queue = world.queue(fine());
    let mut bytes = 0;
    for i in 0..10u32 {
        world.send(&queue, &[i, i + 20], &[i, i + 1]);
        let done = next(&queue);
        assert_eq!(status(&done), Status::Ok);
        bytes += done.record.bytes;
    }
    world.until_canary(&queue);
    let stats = queue.stats();
    // Two sources, two rows, two pages each, never neighbours on both sides.
    assert_eq!(bytes, 10 * 2 * 2 * 2 * 32);
    assert_eq!(
        (stats.submitted, stats.succeeded, stats.failed),
        (11, 10, 1)
    );
    assert_eq!((stats.running, stats.unpolled, stats.refused), (0, 0, 0));
    assert_eq!((stats.bytes, stats.descriptors), (bytes, 80));
    assert_eq!((stats.descriptors_before, stats.slices), (80, 80));
    assert!(stats.thread_cpu_ns > 0);
}
