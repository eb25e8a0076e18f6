//! Transfers over a real NIXL between two agents of one process.

mod nixl_support;
use nixl_support::*;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvferry::error::Status;
use kvferry::memory::{MemDesc, MemKind, StridedDesc};
use kvferry::transport::{
    Descs, Op, Progress, Side, SyncMode, TransferOptions, TransferState, Transport,
};

const BLOCK: usize = 4096;

#[test]
fn read_and_write_move_the_bytes() {
    if !have_nixl() {
        return;
    }
    let p = pair(64 * BLOCK);
    let t = p.direct(Op::Read, BLOCK, 3 * BLOCK);
    assert_eq!(status(t.state()), Status::NotPosted);
    run(&t).expect("read");
    assert_eq!(t.state().expect("done"), TransferState::Done);
    let (mine, theirs) = (p.a_mem.bytes(), p.b_mem.bytes());
    assert_eq!(mine[BLOCK..4 * BLOCK], theirs[BLOCK..4 * BLOCK]);
    assert!(
        mine[..BLOCK]
            .iter()
            .chain(&mine[4 * BLOCK..])
            .all(|b| *b == 0),
        "and no others"
    );
    assert_eq!(t.backend().expect("backend"), "UCX");

    // Zeros go the other way, and only where they were sent.
    run(&p.direct(Op::Write, 10 * BLOCK, BLOCK)).expect("write");
    let expected: Vec<u8> = (0..64 * BLOCK)
        .map(|i| {
            if (10 * BLOCK..11 * BLOCK).contains(&i) {
                0
            } else {
                pattern(1)(i)
            }
        })
        .collect();
    assert_eq!(p.b_mem.bytes(), expected);
}

#[test]
fn prepared_lists_are_picked_from_by_index() {
    if !have_nixl() {
        return;
    }
    let n = 100;
    let p = pair(n * BLOCK);
    let (local, remote) = (
        p.local_list(&p.a_mem.blocks(BLOCK)),
        p.remote_list(&p.b_mem.blocks(BLOCK)),
    );
    assert_eq!((local.len(), remote.len()), (n, n));
    let (to, from): (Vec<i32>, Vec<i32>) = (0..40)
        .map(|i| ((i * 7 + 3) % n as i32, (i * 13 + 5) % n as i32))
        .unzip();
    for skip_merge in [false, true] {
        let options = TransferOptions {
            skip_merge,
            ..TransferOptions::default()
        };
        let t =
            p.a.make_transfer(Op::Read, &*local, &to, &*remote, &from, options)
                .expect("make");
        run(&t).expect("read");
    }
    let (mine, theirs) = (p.a_mem.bytes(), p.b_mem.bytes());
    for (to, from) in to.iter().zip(&from) {
        let (to, from) = (*to as usize * BLOCK, *from as usize * BLOCK);
        assert_eq!(mine[to..to + BLOCK], theirs[from..from + BLOCK]);
    }
    for block in (0..n).filter(|b| !to.contains(&(*b as i32))) {
        assert!(
            mine[block * BLOCK..][..BLOCK].iter().all(|b| *b == 0),
            "block {block}"
        );
    }
    // Merging is seen in telemetry below; an unmerged list of neighbours moves the same bytes.
}

#[test]
fn strided_rows_stand_for_their_ranges() {
    if !have_nixl() {
        return;
    }
    let p = pair(64 * BLOCK);
    // Every other block, in two rows.
    let rows = |d: MemDesc| {
        let row = StridedDesc {
            addr: d.addr,
            len: BLOCK as u64,
            device: 0,
            stride: 2 * BLOCK as u64,
            count: 16,
        };
        [
            row,
            StridedDesc {
                addr: d.addr + 32 * BLOCK as u64,
                ..row
            },
        ]
    };
    let local = p.a.prepare(
        Side::Local,
        MemKind::Dram,
        Descs::Strided(&rows(p.a_mem.all())),
        &[],
    );
    let remote = Side::Remote(&p.b_name);
    let remote = p.a.prepare(
        remote,
        MemKind::Dram,
        Descs::Strided(&rows(p.b_mem.all())),
        &[],
    );
    let (local, remote) = (local.expect("local"), remote.expect("remote"));
    assert_eq!((local.len(), remote.len()), (32, 32));
    // Number 17 is the second of the second row: block 34. Number 2 is block 4.
    let none = TransferOptions::default();
    let t =
        p.a.make_transfer(Op::Read, &*local, &[17], &*remote, &[2], none)
            .expect("make");
    run(&t).expect("read");
    let (mine, theirs) = (p.a_mem.bytes(), p.b_mem.bytes());
    assert_eq!(mine[34 * BLOCK..35 * BLOCK], theirs[4 * BLOCK..5 * BLOCK]);
    assert_eq!(
        mine.iter().filter(|b| **b != 0).count(),
        theirs[4 * BLOCK..5 * BLOCK]
            .iter()
            .filter(|b| **b != 0)
            .count()
    );
}

#[test]
fn a_transfer_can_be_posted_again_and_sees_new_bytes() {
    if !have_nixl() {
        return;
    }
    let p = pair(4 * BLOCK);
    let t = p.direct(Op::Read, 0, BLOCK);
    let back = p.direct(Op::Write, 2 * BLOCK, BLOCK);
    for _ in 0..50 {
        run(&t).expect("read");
        run(&back).expect("write");
    }
    assert_eq!(p.a_mem.bytes()[..BLOCK], p.b_mem.bytes()[..BLOCK]);
    assert!(
        p.b_mem.bytes()[2 * BLOCK..3 * BLOCK]
            .iter()
            .all(|b| *b == 0)
    );
}

#[test]
fn notifications_come_after_the_bytes_and_name_their_sender() {
    if !have_nixl() {
        return;
    }
    let p = pair(8 * BLOCK);
    let options = TransferOptions {
        notification: Some(b"first \xff\0bytes"),
        ..Default::default()
    };
    let t = p.direct_with(Op::Read, 0, BLOCK, options);
    run(&t).expect("read");
    let got = messages(&p.b, 1);
    assert_eq!(
        (got[0].from.as_str(), &got[0].payload[..]),
        (p.a_name.as_str(), &b"first \xff\0bytes"[..])
    );
    // Posted again it sends the same, unless told otherwise; empty is a message too.
    run(&t).expect("again");
    assert_eq!(messages(&p.b, 1)[0].payload, b"first \xff\0bytes");
    t.post(Some(b"")).expect("post");
    finish(&t).expect("third");
    assert_eq!(messages(&p.b, 1)[0].payload, b"");

    for i in 0..100u32 {
        p.b.notify(&p.a_name, &i.to_le_bytes(), None)
            .expect("notify");
    }
    let got: Vec<_> = messages(&p.a, 100).into_iter().map(|n| n.payload).collect();
    let expected: Vec<_> = (0..100u32).map(|i| i.to_le_bytes().to_vec()).collect();
    assert_eq!(got, expected, "in order");
    p.b.notify(&p.a_name, b"by name", Some("UCX"))
        .expect("notify");
    assert_eq!(messages(&p.a, 1)[0].payload, b"by name");
    p.a.notify(&p.a_name, b"to myself", None).expect("notify");
    assert_eq!(messages(&p.a, 1)[0].payload, b"to myself");
    let e = fail(p.a.notify("nobody", b"x", None));
    assert!(
        e.status() == Status::NotFound && e.message().contains("nobody"),
        "{e}"
    );
}

#[test]
fn waiting_for_a_notification_ends_with_it_or_with_the_limit() {
    if !have_nixl() {
        return;
    }
    let p = pair(BLOCK);
    let begin = Instant::now();
    p.a.wait_for_notification(Duration::from_millis(50))
        .expect("wait");
    assert!(begin.elapsed() >= Duration::from_millis(50));
    assert!(p.a.notifications(&[]).expect("none").is_empty());
    std::thread::scope(|scope| {
        scope.spawn(|| p.b.notify(&p.a_name, b"now", None).expect("notify"));
        p.a.wait_for_notification(LIMIT).expect("wait");
    });
    let got = p.a.notifications(&[]).expect("one");
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].payload, b"now");
}

#[test]
fn loopback_moves_bytes_within_an_agent() {
    if !have_nixl() {
        return;
    }
    let name = unique("alone");
    let a = agent(&name);
    let (from, to) = (
        Buffer::new(8 * BLOCK, pattern(3)),
        Buffer::zeroed(8 * BLOCK),
    );
    a.register(MemKind::Dram, &from.reg(), &[])
        .expect("register");
    a.register(MemKind::Dram, &to.reg(), &[]).expect("register");
    let prepare = |side, b: &Buffer| {
        a.prepare(side, MemKind::Dram, Descs::Flat(&b.blocks(BLOCK)), &[])
            .expect("prepare")
    };
    let (local, remote) = (
        prepare(Side::Local, &to),
        prepare(Side::Remote(&name), &from),
    );
    let indices: Vec<i32> = (0..8).collect();
    let options = TransferOptions {
        notification: Some(b"done"),
        ..Default::default()
    };
    let t = a
        .make_transfer(Op::Read, &*local, &indices, &*remote, &indices, options)
        .expect("make");
    run(&t).expect("read");
    assert_eq!(to.bytes(), from.bytes());
    assert_eq!(messages(&a, 1)[0].from, name);
    assert!(
        a.check_remote(&name, MemKind::Dram, &[to.at(5, 6)])
            .expect("check")
    );
    a.connect(&name, &[]).expect("connect");
}

#[test]
fn telemetry_and_cost_are_there_when_asked_for() {
    if !have_nixl() {
        return;
    }
    let p = pair_with(16 * BLOCK, |o| o.telemetry = true);
    let (local, remote) = (
        p.local_list(&p.a_mem.blocks(BLOCK)),
        p.remote_list(&p.b_mem.blocks(BLOCK)),
    );
    let make = |skip_merge| {
        let options = TransferOptions {
            skip_merge,
            ..TransferOptions::default()
        };
        let i: Vec<i32> = (0..16).collect();
        p.a.make_transfer(Op::Read, &*local, &i, &*remote, &i, options)
            .expect("make")
    };
    for (skip_merge, descriptors) in [(false, 1), (true, 16)] {
        let t = make(skip_merge);
        assert_eq!(status(t.telemetry()), Status::NoTelemetry, "not posted");
        assert!(t.cost().expect("cost").duration_us >= 0);
        run(&t).expect("read");
        let telemetry = t.telemetry().expect("telemetry");
        assert_eq!(telemetry.total_bytes, 16 * BLOCK as u64);
        assert_eq!(telemetry.descriptors, descriptors);
        assert!(telemetry.start_time_us > 0);
        assert!(telemetry.transfer_duration_us >= telemetry.post_duration_us);
    }
    let without = pair(BLOCK);
    let t = without.direct(Op::Read, 0, BLOCK);
    run(&t).expect("read");
    let e = fail(t.telemetry());
    assert!(
        e.status() == Status::NoTelemetry && e.message().contains("not enabled"),
        "{e}"
    );
}

#[test]
fn every_sync_and_progress_mode_serves_many_threads() {
    if !have_nixl() {
        return;
    }
    for sync in [SyncMode::ReadWrite, SyncMode::Strict, SyncMode::None] {
        for progress in [Progress::Thread, Progress::Caller] {
            many_threads(sync, progress);
        }
    }
}

fn many_threads(sync: SyncMode, progress: Progress) {
    const THREADS: usize = 6;
    const ROUNDS: usize = 40;
    let p = pair_with(THREADS * 4 * BLOCK, |o| {
        o.sync_mode = sync;
        o.progress = progress;
    });
    let received = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let p = &p;
                scope.spawn(move || {
                    let at = |i: usize| thread * 4 + i;
                    let (l, r) = (p.a_mem.blocks(BLOCK), p.b_mem.blocks(BLOCK));
                    for round in 0..ROUNDS {
                        let local = p.local_list(&l[at(0)..at(4)]);
                        let remote = p.remote_list(&r[at(0)..at(4)]);
                        let note = format!("{thread}/{round}");
                        let options = TransferOptions {
                            notification: Some(note.as_bytes()),
                            ..Default::default()
                        };
                        let t = p.a.make_transfer(
                            Op::Read,
                            &*local,
                            &[0, 3],
                            &*remote,
                            &[0, 3],
                            options,
                        );
                        let t = t.expect("make");
                        drop((local, remote));
                        t.post(None).expect("post");
                        // In Caller mode nobody else answers the first connection.
                        let _ = p.a.notifications(&[]).expect("progress");
                        finish(&t).expect("read");
                    }
                })
            })
            .collect();
        let mut received = Vec::new();
        wait("all messages", || {
            received.extend(p.b.notifications(&[]).expect("notifications"));
            p.a.notifications(&[]).expect("notifications");
            (received.len() == THREADS * ROUNDS).then_some(())
        });
        for worker in workers {
            worker.join().expect("no thread fails");
        }
        received
    });
    let mut notes: Vec<_> = received.into_iter().map(|n| n.payload).collect();
    notes.sort();
    let mut expected: Vec<_> = (0..THREADS)
        .flat_map(|t| (0..ROUNDS).map(move |r| format!("{t}/{r}").into_bytes()))
        .collect();
    expected.sort();
    assert_eq!(notes, expected);
    let (mine, theirs) = (p.a_mem.bytes(), p.b_mem.bytes());
    for block in 0..THREADS * 4 {
        let range = block * BLOCK..(block + 1) * BLOCK;
        match block % 4 {
            0 | 3 => assert_eq!(mine[range.clone()], theirs[range], "block {block}"),
            _ => assert!(mine[range].iter().all(|b| *b == 0), "block {block}"),
        }
    }
    p.a.close().expect("close");
    p.b.close().expect("close");
}

#[test]
fn one_transfer_shared_by_threads_is_posted_once_at_a_time() {
    if !have_nixl() {
        return;
    }
    let p = pair(64 * BLOCK);
    let t = p.direct(Op::Read, 0, 64 * BLOCK);
    let posted = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut posted = 0;
                    for _ in 0..500 {
                        match t.post(None) {
                            Ok(_) => posted += 1,
                            Err(e) => assert_eq!(e.status(), Status::RepostActive, "{e}"),
                        }
                        t.state().expect("state");
                    }
                    posted
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|w| w.join().expect("joins"))
            .sum::<u32>()
    });
    assert!(posted > 0);
    finish(&t).expect("the last");
    assert_eq!(p.a_mem.bytes(), p.b_mem.bytes());
}

#[test]
fn state_does_not_wait_for_a_post_in_another_thread() {
    if !have_nixl() {
        return;
    }
    // Thousands of single reads on one host run inside the call, for milliseconds.
    let (n, size) = (16_384, 8192);
    let p = pair(n * size);
    let (local, remote) = (
        p.local_list(&p.a_mem.blocks(size)),
        p.remote_list(&p.b_mem.blocks(size)),
    );
    let indices: Vec<i32> = (0..n as i32).collect();
    let options = TransferOptions {
        skip_merge: true,
        ..Default::default()
    };
    let t =
        p.a.make_transfer(Op::Read, &*local, &indices, &*remote, &indices, options)
            .expect("make");
    run(&t).expect("connects");
    let (mut polls, mut longest) = (0u32, Duration::ZERO);
    let post = std::thread::scope(|scope| {
        let poster = scope.spawn(|| {
            let begin = Instant::now();
            t.post(None).expect("post");
            begin.elapsed()
        });
        while !poster.is_finished() {
            let begin = Instant::now();
            t.state().expect("state");
            longest = longest.max(begin.elapsed());
            polls += 1;
        }
        poster.join().expect("joins")
    });
    finish(&t).expect("read");
    assert_eq!(p.a_mem.bytes(), p.b_mem.bytes());
    // Two cores and other tests beside this one: far more polls than waiting would allow.
    assert!(
        polls > 20,
        "{polls} polls during a post of {post:?}, the longest {longest:?}"
    );
}

#[test]
fn dropping_transfers_under_way_is_safe() {
    if !have_nixl() {
        return;
    }
    let p = pair(256 * BLOCK);
    for round in 0..200 {
        let options = TransferOptions {
            notification: Some(b"dropped"),
            ..Default::default()
        };
        let t = p.direct_with(Op::Read, (round % 256) * BLOCK, BLOCK, options);
        t.post(None).expect("post");
        drop(t);
    }
    p.a.close().expect("comes to rest");
    assert_eq!(
        p.a_mem.bytes()[..200 * BLOCK],
        p.b_mem.bytes()[..200 * BLOCK]
    );
    // Each went on to its end, and told so.
    assert_eq!(messages(&p.b, 200).len(), 200);
}

#[test]
fn a_cancelled_transfer_says_so_once_it_is_at_rest() {
    if !have_nixl() {
        return;
    }
    // Over TCP the peer has to send the bytes, and this one moves only when it is told to.
    let p = pair_with(64 * BLOCK, |o| {
        let tcp = ("engine_config".to_string(), "TLS=tcp".to_string());
        o.backends = Some(vec![("UCX".into(), vec![tcp])]);
        o.progress = Progress::Caller;
    });
    let t = p.direct(Op::Read, 0, 64 * BLOCK);
    let finish = || {
        wait("the end", || {
            p.b.notifications(&[]).expect("progress");
            match t.state() {
                Ok(TransferState::InProgress) => None,
                other => Some(other),
            }
        })
    };
    assert_eq!(status(t.cancel()), Status::NotPosted);
    for _ in 0..3 {
        let posted = t.post(None).expect("post");
        assert_eq!(posted, TransferState::InProgress);
        t.cancel().expect("cancel");
        let state = t.state().expect("not at rest");
        assert_eq!(state, TransferState::InProgress);
        assert_eq!(status(t.post(None)), Status::RepostActive);
        assert_eq!(fail(finish()).status(), Status::Canceled);
        assert_eq!(status(t.state()), Status::Canceled, "and stays so");
    }
    // It may be posted again, and a finished one is not undone.
    t.post(None).expect("again");
    assert_eq!(finish().expect("read"), TransferState::Done);
    assert_eq!(p.a_mem.bytes(), p.b_mem.bytes());
    t.cancel().expect("too late");
    assert_eq!(t.state().expect("done"), TransferState::Done);
}

#[test]
fn lists_and_transfers_outlive_the_agent_handle() {
    if !have_nixl() {
        return;
    }
    let p = pair(8 * BLOCK);
    let (local, remote) = (
        p.local_list(&p.a_mem.blocks(BLOCK)),
        p.remote_list(&p.b_mem.blocks(BLOCK)),
    );
    let none = TransferOptions::default();
    let t =
        p.a.make_transfer(Op::Read, &*local, &[1], &*remote, &[1], none)
            .expect("make");
    let Pair {
        a, b, a_mem, b_mem, ..
    } = p;
    drop(a);
    run(&t).expect("read");
    assert_eq!(
        a_mem.bytes()[BLOCK..2 * BLOCK],
        b_mem.bytes()[BLOCK..2 * BLOCK]
    );
    drop((local, remote));
    run(&t).expect("read");
    drop(t);
    drop(b);
}

#[test]
fn a_closed_agent_refuses_work() {
    if !have_nixl() {
        return;
    }
    let p = pair(8 * BLOCK);
    let list = p.local_list(&p.a_mem.blocks(BLOCK));
    let t = p.direct(Op::Read, 0, BLOCK);
    p.a.close().expect("close");
    p.a.close().expect("twice");
    let a: &Arc<dyn Transport> = &p.a;
    assert_eq!(status(t.post(None)), Status::InvalidState);
    assert_eq!(status(a.metadata()), Status::InvalidState);
    assert_eq!(status(a.notifications(&[])), Status::InvalidState);
    assert_eq!(
        status(a.register(MemKind::Dram, &p.a_mem.reg(), &[])),
        Status::InvalidState
    );
    assert_eq!(status(a.notify(&p.b_name, b"", None)), Status::InvalidState);
    let none = TransferOptions::default();
    assert_eq!(
        status(a.make_transfer(Op::Read, &*list, &[0], &*list, &[0], none)),
        Status::InvalidState
    );
}
