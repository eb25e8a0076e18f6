//! Many requests at a time: whose turn it is, how many there may be, and many threads.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvferry::error::Status;
use kvferry::plan::*;
use kvferry::queue::*;

use crate::support::*;

/// A world in which one request can be told from another by the peer that it reads from: the plan
/// reads from the first source, the second plan from the other one, whose name comes with it.
fn two_plans() -> (World, Plan, String) {
    two_plans_of(4096)
}

fn two_plans_of(blocks: usize) -> (World, Plan, String) {
    let world = World::new(
        "test",
        Shape {
            sources: 1,
            rows: 1,
            blocks,
            page: 16,
        },
    );
    let other = World::new("test", world.shape);
    // The other world's source is made known to this world's sink.
    let name = world.sink.add_remote(&other.sources[0].metadata().unwrap());
    let mut builder = PlanBuilder::new(Direction::Pull);
    let group = builder.group(geometry(blocks));
    let peer = builder.peer(peer(PeerRole::Transfer));
    let (local, remote) = (world.mine.addr(), other.theirs[0].addr());
    let kind = kvferry::memory::MemKind::Dram;
    builder.lane(lane(peer, group, 16, local, remote, kind));
    let plan = builder.finish().unwrap();
    let name = name.unwrap();
    // The other source and its memory stay.
    let mut world = world;
    world.sources.extend(other.sources.iter().cloned());
    world.theirs.extend(other.theirs.iter().cloned());
    (world, plan, name)
}

fn send_with(queue: &Queue, plan: &Plan, peer: &str, ids: &[u32]) -> Ticket {
    let groups = [GroupBlocks::new(ids, ids)];
    let submission = Submission {
        plan,
        agents: &[peer],
        request: Request {
            groups: &groups,
            tokens: None,
        },
        notification: None,
        deadline: None,
        guards: &[],
    };
    queue.submit(&submission).expect("a ticket")
}

/// Even ids, so that nothing merges.
fn apart(n: u32, from: u32) -> Vec<u32> {
    (0..n).map(|i| from + 2 * i).collect()
}

#[test]
fn a_huge_request_lets_small_ones_have_their_turns() {
    let (world, second, name) = two_plans();
    script(&world.sink, &[("hold", "1")]);
    let queue = world.queue(fine());
    // 1,500 slices, and then 8 for each of three small ones; 4 of each fly, and wait for each other.
    let huge = send_with(&queue, &world.plan, &world.names[0], &apart(1500, 0));
    eventually("the huge one's slices", || told(&world.sink, "flying") == 4);
    let small: Vec<Ticket> = (0..3)
        .map(|i| send_with(&queue, &second, &name, &apart(8, 3001 + 20 * i)))
        .collect();
    eventually("all slices", || told(&world.sink, "flying") == 16);
    script(&world.sink, &[("hold", "0")]);
    let order: Vec<Ticket> = (0..4)
        .map(|_| {
            let done = next(&queue);
            assert_eq!(status(&done), Status::Ok);
            done.ticket
        })
        .collect();
    assert_eq!(order[3], huge, "{order:?}");
    assert!(small.iter().all(|t| order[..3].contains(t)), "{order:?}");
    let posts = posts(&world.sink);
    assert_eq!(posts.len(), 1524);
    // From here on every round posts one slice of each: four rounds for what the small ones have left.
    let rest = &posts[16..];
    let last = rest.iter().rposition(|(peer, _)| *peer == name).unwrap();
    let between = rest[..last].iter().filter(|(peer, _)| *peer != name);
    let between = between.count();
    assert!(
        between <= 5,
        "{between} slices of the huge one came between"
    );
}

#[test]
fn slices_are_small_when_requests_take_turns() {
    const SMALL: u64 = 1024 * 16;
    let (world, second, name) = two_plans_of(1 << 17);
    script(&world.sink, &[("hold", "1")]);
    // One slice of each at a time, of the sizes that the queue chooses by itself.
    let queue = world.queue(QueueOptions {
        slices_in_flight: 1,
        ..QueueOptions::default()
    });
    let huge = send_with(&queue, &world.plan, &world.names[0], &apart(50_000, 0));
    eventually("its first slice", || told(&world.sink, "flying") == 1);
    let other = send_with(&queue, &second, &name, &apart(5_000, 110_001));
    eventually("a slice of each", || told(&world.sink, "flying") == 2);
    script(&world.sink, &[("hold", "0")]);
    for ticket in [other, huge] {
        let done = next(&queue);
        assert_eq!((done.ticket, status(&done)), (ticket, Status::Ok));
    }
    let posts = posts(&world.sink);
    let last = posts.iter().rposition(|(peer, _)| *peer == name).unwrap();
    assert!(posts[..=last].iter().all(|(_, bytes)| *bytes <= SMALL));
    assert!(posts.iter().all(|(_, bytes)| *bytes <= 8 * SMALL));
    assert_eq!(posts.iter().map(|p| p.1).sum::<u64>(), 55_000 * 16);
}

#[test]
fn a_stuck_huge_request_holds_back_nothing() {
    let (world, second, name) = two_plans();
    script(&world.sink, &[("hold", "1")]);
    let queue = world.queue(fine());
    let huge = send_with(&queue, &world.plan, &world.names[0], &apart(1000, 0));
    eventually("as many slices as may fly", || {
        told(&world.sink, "flying") == 4
    });
    assert!(world.until_canary(&queue).is_empty());
    assert_eq!(told(&world.sink, "posts"), 4, "and not one more");
    let small = send_with(&queue, &second, &name, &apart(2, 3001));
    eventually("the small one's slices", || {
        told(&world.sink, "flying") == 6
    });
    let posts = posts(&world.sink);
    assert_eq!(posts.len(), 6);
    assert!(posts[4..].iter().all(|(peer, _)| *peer == name));
    script(&world.sink, &[("hold", "0")]);
    let done = next(&queue);
    assert_eq!((done.ticket, status(&done)), (small, Status::Ok));
    let done = next(&queue);
    assert_eq!((done.ticket, status(&done)), (huge, Status::Ok));
}

#[test]
fn the_ranks_of_one_request_take_turns() {
    let shape = Shape {
        sources: 4,
        rows: 1,
        ..Shape::default()
    };
    let world = World::new("test", shape);
    let queue = world.queue(fine());
    world.send(&queue, &apart(8, 0), &apart(8, 0));
    assert_eq!(status(&next(&queue)), Status::Ok);
    let posts = posts(&world.sink);
    assert_eq!(posts.len(), 32);
    for round in posts.chunks(4) {
        let peers: HashSet<&String> = round.iter().map(|(peer, _)| peer).collect();
        assert_eq!(peers.len(), 4, "each rank once: {round:?}");
    }
}

#[test]
fn slices_are_no_larger_than_asked_for() {
    let world = World::new(
        "test",
        Shape {
            sources: 1,
            rows: 1,
            blocks: 256,
            page: 64,
        },
    );
    let all: Vec<u32> = (0..256).collect();
    let even = apart(100, 0);
    for (ids, options, posts_wanted) in [
        // One range of 16 KiB, cut.
        (&all, (1000, 8), 17),
        // Six ranges of 64 bytes to 400.
        (&even, (400, 100), 17),
        (&even, (1 << 20, 7), 15),
        (&even, (63, 7), 102),
        (&even, (1, 1), 6400),
        (&even, (64, 1), 100),
    ] {
        let queue = world.queue(QueueOptions {
            slice_bytes: options.0,
            slice_descriptors: options.1,
            ..QueueOptions::default()
        });
        world.mine.fill(|i| pattern(5, i));
        let want = world.expected(&world.mine.read(), ids, ids, 1);
        let before = told(&world.sink, "posts");
        world.send(&queue, ids, ids);
        let done = next(&queue);
        assert_eq!(status(&done), Status::Ok);
        same("the sink", &world.mine.read(), &want);
        assert_eq!(done.record.slices, posts_wanted, "{options:?}");
        assert_eq!(told(&world.sink, "posts") - before, posts_wanted as usize);
        let posts = posts(&world.sink);
        let fresh = &posts[posts.len() - (posts_wanted as usize).min(4096)..];
        assert!(
            fresh.iter().all(|(_, bytes)| *bytes <= options.0),
            "{options:?}"
        );
    }
}

#[test]
fn capacity_is_kept_to_and_comes_back() {
    let world = World::new("test", Shape::default());
    script(&world.sink, &[("hold", "1")]);
    let queue = world.queue(QueueOptions {
        capacity: 3,
        ..QueueOptions::default()
    });
    let tickets: Vec<Ticket> = (0..3).map(|i| world.send(&queue, &[i], &[i])).collect();
    let busy = || {
        let error = world.submit(&queue, (&[9], &[9]), |_| {}).unwrap_err();
        assert_eq!(error.status(), Status::Busy);
        assert!(error.message().contains("3 requests"), "{error}");
    };
    busy();
    busy();
    queue.cancel(tickets[1]).unwrap();
    assert!(queue.wait(LIMIT));
    busy(); // What has not been polled still counts.
    let stats = queue.stats();
    assert_eq!((stats.submitted, stats.refused, stats.failed), (3, 3, 1));
    assert_eq!((stats.running, stats.unpolled), (2, 1));
    assert!(queue.poll(0).is_empty());
    busy();
    assert_eq!(status(&next(&queue)), Status::Canceled);
    let fourth = world.send(&queue, &[9], &[9]);
    assert!(tickets.iter().all(|t| *t < fourth), "never used twice");
    busy();
    script(&world.sink, &[("hold", "0")]);
    let mut done = Vec::new();
    eventually("all to end", || {
        done.extend(queue.poll(usize::MAX));
        done.len() == 3
    });
    for _ in 0..3 {
        world.send(&queue, &[9], &[9]);
    }
    busy();
    assert_eq!(queue.stats().refused, 6);
}

#[test]
fn many_threads_submit_cancel_and_poll_at_once() {
    const THREADS: usize = 4;
    const EACH: usize = 150;
    let shape = Shape {
        sources: 2,
        rows: 1,
        blocks: THREADS * EACH,
        page: 16,
    };
    let world = World::new("test", shape);
    script(&world.sink, &[("reorder", "11")]);
    let queue = world.queue(QueueOptions {
        capacity: 32,
        ..fine()
    });
    let before = world.mine.read();
    let submitted: Mutex<Vec<(Ticket, u32)>> = Mutex::default();
    let done: Mutex<Vec<Completion>> = Mutex::default();
    let (refused, polled) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for t in 0..THREADS {
            let (world, queue, submitted, refused) = (&world, &queue, &submitted, &refused);
            scope.spawn(move || {
                for i in 0..EACH {
                    let id = (t * EACH + i) as u32;
                    let ticket = loop {
                        match world.submit(queue, (&[id], &[id]), |_| {}) {
                            Ok(ticket) => break ticket,
                            Err(e) => assert_eq!(e.status(), Status::Busy, "{e}"),
                        }
                        refused.fetch_add(1, Ordering::Relaxed);
                        std::thread::yield_now();
                    };
                    if i % 7 == 0 {
                        queue.cancel(ticket).unwrap();
                    }
                    submitted.lock().unwrap().push((ticket, id));
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                while polled.load(Ordering::Relaxed) < THREADS * EACH {
                    if queue.wait(std::time::Duration::from_millis(1)) {
                        let some = queue.poll(5);
                        polled.fetch_add(some.len(), Ordering::Relaxed);
                        done.lock().unwrap().extend(some);
                    }
                }
            });
        }
    });
    let (submitted, done) = (submitted.into_inner().unwrap(), done.into_inner().unwrap());
    let tickets: HashSet<Ticket> = submitted.iter().map(|s| s.0).collect();
    let completed: HashSet<Ticket> = done.iter().map(|d| d.ticket).collect();
    assert_eq!(tickets.len(), THREADS * EACH, "no ticket twice");
    assert_eq!(done.len(), THREADS * EACH, "no completion twice");
    assert_eq!(tickets, completed);
    let stats = queue.stats();
    assert_eq!(stats.submitted as usize, THREADS * EACH);
    assert_eq!(stats.refused as usize, refused.into_inner());
    assert_eq!((stats.running, stats.unpolled), (0, 0));
    // Every block is there if its own request says so.
    let ok: HashSet<Ticket> = done
        .iter()
        .filter(|d| d.result.is_ok())
        .map(|d| d.ticket)
        .collect();
    assert_eq!(stats.succeeded as usize, ok.len());
    let through: Vec<u32> = submitted
        .iter()
        .filter(|s| ok.contains(&s.0))
        .map(|s| s.1)
        .collect();
    let want = world.expected(&before, &through, &through, 2);
    let (got, row) = (world.mine.read(), shape.blocks * 16);
    for id in through {
        for s in 0..2 {
            let at = s * row + id as usize * 16;
            same("a block", &got[at..at + 16], &want[at..at + 16]);
        }
    }
}
