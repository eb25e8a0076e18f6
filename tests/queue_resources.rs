//! What a queue takes from the process, and what it leaves behind: threads, descriptors, processor
//! time, and copies in forked children. A program of its own, one test at a time, since all of these
//! belong to the whole process.

#[path = "queue/support.rs"]
mod support;

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvferry::error::Status;
use kvferry::queue::*;

use support::*;

/// Keeps the other tests out.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    // A joined thread leaves the kernel's list a moment later.
    eventually("the last test's threads to end", || threads().is_empty());
    alone
}

/// The ids of the queues' threads.
fn threads() -> Vec<String> {
    fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|id| {
            fs::read_to_string(format!("/proc/self/task/{id}/comm"))
                .is_ok_and(|name| name.trim() == "kvf-queue")
        })
        .collect()
}

/// The id of the only queue's thread, once it has given itself its name.
fn thread() -> String {
    let mut found = Vec::new();
    eventually("one thread", || {
        found = threads();
        found.len() == 1
    });
    found.remove(0)
}

fn open_fds() -> usize {
    // The listing itself holds one.
    fs::read_dir("/proc/self/fd").unwrap().count() - 1
}

/// Nanoseconds on a processor, and how often the thread went to sleep or was woken.
fn activity(thread: &str) -> (u64, String) {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).unwrap();
    let status = fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
    let switches = status.lines().filter(|l| l.contains("ctxt_switches"));
    let ns = stat.split(' ').next().unwrap().parse().unwrap();
    (ns, switches.collect::<Vec<_>>().join(" "))
}

fn is_asleep(thread: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().trim().starts_with('S')
}

#[test]
fn a_thread_belongs_to_its_queue() {
    let _alone = alone();
    let world = World::new("test", Shape::default());
    assert!(threads().is_empty(), "none before there is a queue");
    let queue = world.queue(QueueOptions::default());
    eventually("a thread", || threads().len() == 1);
    let other = world.queue(QueueOptions::default());
    eventually("two threads", || threads().len() == 2);
    world.send(&queue, &[1], &[1]);
    queue.close(Duration::ZERO).unwrap();
    eventually("one thread to end", || threads().len() == 1);
    script(&world.sink, &[("hold", "1")]);
    world.send(&other, &[1], &[1]);
    drop(other);
    eventually("the other one to end", || threads().is_empty());
}

#[test]
fn a_stuck_transfer_keeps_no_thread() {
    let _alone = alone();
    let world = World::new("test", Shape::default());
    script(&world.sink, &[("hold", "1"), ("stubborn", "1")]);
    let queue = world.queue(QueueOptions::default());
    world.send(&queue, &[1], &[1]);
    eventually("the posts", || told(&world.sink, "flying") == 2);
    assert_eq!(
        queue.close(Duration::ZERO).unwrap_err().status(),
        Status::Timeout
    );
    eventually("its thread to end", || threads().is_empty());
}

#[test]
fn an_idle_queue_sleeps() {
    let _alone = alone();
    let world = World::new("test", Shape::default());
    let idle = world.queue(QueueOptions::default());
    let thread = thread();
    for used in [false, true] {
        if used {
            world.send(&idle, &[1], &[1]);
            assert_eq!(status(&next(&idle)), Status::Ok);
        }
        let mut before = activity(&thread);
        eventually("the thread to fall asleep", || {
            let last = std::mem::replace(&mut before, activity(&thread));
            is_asleep(&thread) && last == before
        });
        // Meanwhile another queue of the same agent is busy for a third of a second.
        let busy = world.queue(QueueOptions::default());
        script(&world.sink, &[("delay_us", "3000")]);
        for _ in 0..100 {
            world.send(&busy, &[1], &[1]);
            assert_eq!(status(&next(&busy)), Status::Ok);
        }
        script(&world.sink, &[("delay_us", "0")]);
        assert_eq!(activity(&thread), before, "used: {used}");
    }
}

#[test]
fn waiting_for_a_slow_transfer_costs_little() {
    let _alone = alone();
    let world = World::new("test", Shape::default());
    script(&world.sink, &[("delay_us", "400000")]);
    let queue = world.queue(QueueOptions::default());
    let thread = thread();
    let (before, _) = activity(&thread);
    world.send(&queue, &[1], &[1]);
    assert_eq!(status(&next(&queue)), Status::Ok);
    let used = Duration::from_nanos(activity(&thread).0 - before);
    println!("{used:?} of processor time for 400 ms of waiting");
    assert!(
        used < Duration::from_millis(100),
        "{used:?}: that is spinning"
    );
}

#[test]
fn nothing_is_left_open() {
    let _alone = alone();
    let world = World::new("test", Shape::default());
    let once = || {
        let queue = world.queue(QueueOptions::default());
        world.send(&queue, &[1], &[1]);
        world.send_canary(&queue);
        queue.close(LIMIT).unwrap();
        assert_eq!(queue.poll(10).len(), 2);
    };
    once();
    let before = open_fds();
    for _ in 0..50 {
        once();
    }
    assert_eq!(open_fds(), before);
    eventually("the threads to end", || threads().is_empty());
}

#[test]
fn signals_are_left_to_the_hosts_threads() {
    let _alone = alone();
    let world = World::new("test", Shape::default());
    let _queue = world.queue(QueueOptions::default());
    let thread = thread();
    let status = fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
    let blocked = status
        .lines()
        .find_map(|l| l.strip_prefix("SigBlk:"))
        .unwrap();
    let blocked = u64::from_str_radix(blocked.trim(), 16).unwrap();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGCHLD, libc::SIGALRM] {
        assert!(blocked & 1 << (signal - 1) != 0, "signal {signal}");
    }
}

/// Runs `child` in a forked child, which must end by itself with its result as exit code.
fn in_child(child: impl FnOnce() -> i32) {
    // SAFETY: the child calls only what is tested here, and _exit.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(101);
        // SAFETY: ends the child without running the harness's handlers.
        unsafe { libc::_exit(code) };
    }
    let mut code = 0;
    let begin = std::time::Instant::now();
    loop {
        // SAFETY: our own child and a valid place.
        match unsafe { libc::waitpid(pid, &mut code, libc::WNOHANG) } {
            0 if begin.elapsed() < LIMIT => std::thread::sleep(Duration::from_millis(1)),
            0 => {
                // SAFETY: our own child.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                panic!("the child hangs");
            }
            _ => break,
        }
    }
    assert!(libc::WIFEXITED(code), "the child died: {code:#x}");
    assert_eq!(libc::WEXITSTATUS(code), 0);
}

#[test]
fn a_forked_child_does_not_hang_and_harms_nothing() {
    let _alone = alone();
    let world = World::new("test", Shape::default());
    for held in [false, true] {
        let queue = world.queue(QueueOptions::default());
        if held {
            script(&world.sink, &[("hold", "1")]);
        }
        let ticket = world.send(&queue, &[1], &[1]);
        if held {
            eventually("the posts", || told(&world.sink, "flying") == 2);
        } else {
            assert!(queue.wait(LIMIT));
        }
        let mut queue = Some(queue);
        in_child(|| {
            let queue = queue.take().unwrap();
            let Err(error) = world.submit(&queue, (&[1], &[1]), |_| {}) else {
                return 1;
            };
            if error.status() != Status::InvalidState || !error.message().contains("process") {
                return 2;
            }
            if queue.close(Duration::MAX).is_err() || queue.close(Duration::ZERO).is_err() {
                return 3;
            }
            drop(queue);
            0
        });
        // The parent's goes on.
        let queue = queue.unwrap();
        script(&world.sink, &[("hold", "0")]);
        let done = next(&queue);
        assert_eq!((done.ticket, status(&done)), (ticket, Status::Ok));
    }
}

#[test]
fn a_child_that_forks_while_the_queue_is_busy() {
    let _alone = alone();
    let world = World::new("test", Shape::default());
    let queue = world.queue(QueueOptions::default());
    let sent: Vec<Ticket> = (0..2000).map(|_| world.send(&queue, &[1], &[1])).collect();
    let mut queue = Some(queue);
    for _ in 0..20 {
        in_child(|| {
            // The parent's thread may hold any lock of the queue's.
            drop(queue.take());
            0
        });
    }
    let queue = queue.unwrap();
    for ticket in sent {
        assert_eq!(next(&queue).ticket, ticket);
    }
}
