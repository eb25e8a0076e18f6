//! Guards: words of the peers that are looked at between the last byte and the notification. And
//! completions that go to a function.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use kvferry::error::Status;
use kvferry::memory::MemKind;
use kvferry::queue::*;

use crate::support::*;

/// A world whose sources have a word each, with this value.
fn guarded_world(transport: &str, value: u64) -> (World, Vec<Memory>) {
    let world = World::new(transport, Shape::default());
    let words: Vec<Memory> = world.sources.iter().map(|_| Memory::new(8, 0)).collect();
    for (source, word) in world.sources.iter().zip(&words) {
        set(word, value);
        register(source, MemKind::Dram, word);
        world.sink.add_remote(&source.metadata().unwrap()).unwrap();
    }
    (world, words)
}

fn set(word: &Memory, value: u64) {
    word.fill(|i| value.to_ne_bytes()[i]);
}

fn guards(words: &[Memory], limit: u64) -> Vec<Guard> {
    let guard = |(i, w): (usize, &Memory)| Guard {
        peer: i as u32,
        addr: w.addr(),
        limit,
    };
    words.iter().enumerate().map(guard).collect()
}

fn send(world: &World, queue: &Queue, guards: &[Guard]) -> Ticket {
    let agents: Vec<&str> = world.names.iter().map(String::as_str).collect();
    let groups = [kvferry::plan::GroupBlocks::new(&[1, 3], &[4, 6])];
    let submission = Submission {
        plan: &world.plan,
        agents: &agents,
        request: kvferry::plan::Request {
            groups: &groups,
            tokens: None,
        },
        notification: Some(b"read"),
        deadline: None,
        guards,
    };
    queue.submit(&submission).expect("a ticket")
}

#[test]
fn a_word_below_its_limit_lets_a_request_pass() {
    for transport in ["local", "test"] {
        let (world, words) = guarded_world(transport, 6);
        let queue = world.queue(QueueOptions::default());
        let before = world.mine.read();
        // More requests than the queue has words for, so that words are used again.
        for _ in 0..3 {
            for _ in 0..1000 {
                send(&world, &queue, &guards(&words, 7));
            }
            for _ in 0..1000 {
                assert_eq!(status(&next(&queue)), Status::Ok);
            }
        }
        let want = world.expected(&before, &[1, 3], &[4, 6], 2);
        same(transport, &world.mine.read(), &want);
        for source in &world.sources {
            let mut count = 0;
            eventually("all notifications", || {
                count += heard(source).len();
                count == 3000
            });
        }
    }
}

#[test]
fn a_word_at_its_limit_fails_the_request_and_nobody_is_told() {
    for transport in ["local", "test"] {
        let (world, words) = guarded_world(transport, 6);
        let queue = world.queue(QueueOptions::default());
        set(&words[1], 7);
        send(&world, &queue, &guards(&words, 7));
        let done = next(&queue);
        assert_eq!(done.record.bytes, done.record.total_bytes);
        failed(
            done,
            Status::Expired,
            &[&world.names[1], "word is 7", "below 7"],
        );
        // What is sent to the sources later arrives later.
        send(&world, &queue, &guards(&words, 8));
        assert_eq!(status(&next(&queue)), Status::Ok);
        for source in &world.sources {
            let mut all = Vec::new();
            eventually("the second notification", || {
                all.extend(heard(source));
                !all.is_empty()
            });
            assert_eq!(all, [b"read"]);
        }
    }
}

#[test]
fn words_are_read_after_the_last_byte() {
    let (world, words) = guarded_world("test", 6);
    script(&world.sink, &[("hold", "1")]);
    let queue = world.queue(fine());
    send(&world, &queue, &guards(&words, 7));
    eventually("as many slices as may fly", || {
        posts(&world.sink).len() == 4
    });
    assert!(world.until_canary(&queue).is_empty());
    assert!(posts(&world.sink).iter().all(|(_, bytes)| *bytes > 8));
    // Raised while bytes are still to come: too late for this request.
    set(&words[0], 8);
    script(&world.sink, &[("hold", "0")]);
    failed(next(&queue), Status::Expired, &[&world.names[0]]);
    let all = posts(&world.sink);
    let first = all.iter().position(|(_, bytes)| *bytes == 8);
    assert_eq!(first, Some(all.len() - 2), "{all:?}");
}

#[test]
fn a_request_can_be_stopped_while_words_are_read() {
    for deadline in [false, true] {
        let (world, words) = guarded_world("test", 6);
        let queue = world.queue(QueueOptions::default());
        script(&world.sink, &[("delay_us", "20000")]);
        let ticket = send(&world, &queue, &guards(&words, 7));
        eventually("the words' posts", || {
            let words = posts(&world.sink).iter().filter(|p| p.1 == 8).count();
            if words > 0 {
                script(&world.sink, &[("hold", "1")]);
            }
            words == 2
        });
        assert!(world.until_canary(&queue).is_empty(), "not through yet");
        if deadline {
            queue.close(Duration::ZERO).unwrap();
        } else {
            queue.cancel(ticket).unwrap();
        }
        failed(next(&queue), Status::Canceled, &[]);
        assert_eq!(told(&world.sink, "flying"), 0);
    }
}

#[test]
fn guards_that_cannot_be_read_fail_their_request() {
    let (world, words) = guarded_world("test", 6);
    let queue = world.queue(QueueOptions::default());
    let elsewhere = Memory::new(8, 0);
    send(&world, &queue, &guards(&[elsewhere], 7));
    assert!(next(&queue).result.is_err());
    // Its words came back.
    for _ in 0..10 {
        send(&world, &queue, &guards(&words, 7));
        assert_eq!(status(&next(&queue)), Status::Ok);
    }
    let mut bad = guards(&words, 7);
    bad[1].peer = 2;
    let agents: Vec<&str> = world.names.iter().map(String::as_str).collect();
    let groups = [kvferry::plan::GroupBlocks::new(&[1], &[4])];
    let refused = |guards: &[Guard]| {
        let submission = Submission {
            plan: &world.plan,
            agents: &agents,
            request: kvferry::plan::Request {
                groups: &groups,
                tokens: None,
            },
            notification: None,
            deadline: None,
            guards,
        };
        queue.submit(&submission).unwrap_err().message().to_owned()
    };
    assert_eq!(refused(&bad), "guard 1: peer 2 of 2");
    let many = vec![guards(&words, 7)[0]; MAX_GUARDS + 1];
    assert_eq!(refused(&many), "1025 guards, more than 1024");
}

#[test]
fn completions_go_to_a_function() {
    let world = World::new("test", Shape::default());
    let (sender, receiver) = mpsc::channel();
    let panics = Arc::new(AtomicUsize::new(0));
    let (options, counted) = (
        QueueOptions {
            capacity: 1,
            ..QueueOptions::default()
        },
        panics.clone(),
    );
    let queue = Queue::create_with_sink(world.sink.clone(), options, move |done| {
        sender.send(done.ticket).expect("a receiver");
        if counted.fetch_add(1, Ordering::Relaxed) == 0 {
            panic!("for the test");
        }
    })
    .unwrap();
    // One at a time: a completion that has been handed over is not outstanding, even if the function
    // panicked.
    for _ in 0..3 {
        let ticket = world.send(&queue, &[1], &[2]);
        assert_eq!(receiver.recv_timeout(LIMIT), Ok(ticket));
        eventually("room", || {
            world.submit(&queue, (&[9999], &[9999]), |_| {}).is_ok()
        });
        receiver.recv_timeout(LIMIT).unwrap();
    }
    assert!(queue.poll(10).is_empty());
    queue.close(Duration::ZERO).unwrap();
    assert_eq!(panics.load(Ordering::Relaxed), 6);
}
