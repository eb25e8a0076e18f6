//! The agent room over the scripted transport: what is the same for every transport.

use std::sync::Arc;
use std::time::Duration;

use kvferry::agent::{Agent, NotificationFilter};
use kvferry::error::{Result, Status};
use kvferry::memory::{MemDesc, MemKind, RegDesc, StridedDesc};
use kvferry::transport::{AgentOptions, Descs, Op, Side, TransferOptions, TransferState};

fn agent(name: &str) -> Agent {
    let options = AgentOptions {
        name: name.to_owned(),
        transport: "test".to_owned(),
        ..AgentOptions::default()
    };
    Agent::create(&options).unwrap()
}

fn script(agent: &Agent, key: &str, value: &str) {
    agent
        .create_backend("test", &[(key.to_owned(), value.to_owned())])
        .unwrap();
}

fn desc(memory: &[u8], offset: usize, len: usize) -> MemDesc {
    assert!(offset + len <= memory.len());
    MemDesc {
        addr: memory.as_ptr() as u64 + offset as u64,
        len: len as u64,
        device: 0,
    }
}

fn register(agent: &Agent, memory: &[u8]) {
    let all = RegDesc::from(desc(memory, 0, memory.len()));
    agent.register(MemKind::Dram, &[all], &[]).unwrap();
}

fn status<T>(r: Result<T>) -> Status {
    r.err().map_or(Status::Ok, |e| e.status())
}

/// Two agents that know each other, each with registered memory.
struct Pair {
    a: Agent,
    b: Agent,
    mine: Vec<u8>,
    theirs: Vec<u8>,
}

fn pair(tag: &str) -> Pair {
    let (a, b) = (agent(&format!("{tag}-a")), agent(&format!("{tag}-b")));
    let mine = vec![0u8; 4096];
    let theirs: Vec<u8> = (0..4096u32).map(|i| (i * 7 % 251) as u8 + 1).collect();
    register(&a, &mine);
    register(&b, &theirs);
    assert_eq!(a.add_remote(&b.metadata().unwrap()).unwrap(), b.name());
    assert_eq!(b.add_remote(&a.metadata().unwrap()).unwrap(), a.name());
    Pair { a, b, mine, theirs }
}

#[test]
fn names_are_checked() {
    for name in ["", "with\0nul", &"x".repeat(1025)] {
        let options = AgentOptions {
            name: name.to_owned(),
            transport: "test".to_owned(),
            ..AgentOptions::default()
        };
        assert_eq!(status(Agent::create(&options)), Status::InvalidArgument);
    }
    let options = AgentOptions {
        name: "n".into(),
        transport: "carrier pigeon".into(),
        ..Default::default()
    };
    let e = Agent::create(&options).err().unwrap();
    assert!(e.message().contains("carrier pigeon"), "{e}");
}

#[test]
fn bad_ranges_are_refused_before_the_transport_sees_them() {
    let a = agent("ranges");
    let memory = vec![0u8; 64];
    let good = desc(&memory, 0, 64);
    let cases = [
        (vec![], "empty"),
        (vec![MemDesc { len: 0, ..good }], "length 0"),
        (
            vec![MemDesc {
                len: u64::MAX,
                ..good
            }],
            "wraps around",
        ),
        (
            vec![
                good,
                MemDesc {
                    addr: 16,
                    len: 8,
                    device: 0,
                },
            ],
            "range 1 at 0x10",
        ),
    ];
    for (descs, expected) in cases {
        let regs: Vec<RegDesc> = descs.into_iter().map(RegDesc::from).collect();
        let e = a.register(MemKind::Dram, &regs, &[]).unwrap_err();
        assert_eq!(e.status(), Status::InvalidArgument);
        assert!(e.message().contains(expected), "{e}");
    }
}

#[test]
fn strided_rows_that_cannot_be_are_refused() {
    let p = pair("strided");
    let row = |count, stride| StridedDesc {
        addr: p.mine.as_ptr() as u64,
        len: 8,
        device: 0,
        stride,
        count,
    };
    for bad in [
        row(0, 8),
        row(u64::MAX, 8),
        row(2, u64::MAX),
        row(1 << 40, 0),
    ] {
        let r =
            p.a.prepare(Side::Local, MemKind::Dram, Descs::Strided(&[bad]), &[]);
        assert_eq!(status(r), Status::InvalidArgument, "{bad:?}");
    }
    let list = p.a.prepare(
        Side::Local,
        MemKind::Dram,
        Descs::Strided(&[row(3, 16), row(2, 8)]),
        &[],
    );
    assert_eq!(list.unwrap().len(), 5);
}

#[test]
fn indices_pick_what_they_say() {
    let p = pair("indices");
    let blocks = |m: &[u8]| (0..64).map(|i| desc(m, i * 64, 64)).collect::<Vec<_>>();
    let (l, r) = (blocks(&p.mine), blocks(&p.theirs));
    let local =
        p.a.prepare(Side::Local, MemKind::Dram, Descs::Flat(&l), &[])
            .unwrap();
    let remote =
        p.a.prepare(
            Side::Remote(p.b.name()),
            MemKind::Dram,
            Descs::Flat(&r),
            &[],
        )
        .unwrap();
    let none = TransferOptions::default();
    let make = |li: &[i32], ri: &[i32]| {
        p.a.make_transfer(Op::Read, (&local, li), (&remote, ri), none)
    };
    for (li, ri, expected) in [
        (&[64][..], &[0][..], Status::InvalidArgument),
        (&[0], &[-1], Status::InvalidArgument),
        (&[i32::MIN], &[0], Status::InvalidArgument),
        (&[], &[], Status::InvalidArgument),
        (&[0, 1], &[0], Status::Mismatch),
    ] {
        assert_eq!(status(make(li, ri)), expected, "{li:?} {ri:?}");
    }
    let t = make(&[3, 0], &[10, 63]).unwrap();
    assert_eq!(status(t.state()), Status::NotPosted);
    assert_eq!(t.post(None).unwrap(), TransferState::Done);
    let mut expected = vec![0u8; 4096];
    expected[192..256].copy_from_slice(&p.theirs[640..704]);
    expected[0..64].copy_from_slice(&p.theirs[4032..4096]);
    assert!(p.mine == expected);
    assert_eq!(
        status(p.b.make_transfer(Op::Read, (&local, &[0]), (&remote, &[0]), none)),
        Status::InvalidArgument,
        "lists of another agent"
    );
}

#[test]
fn a_transfer_under_way_is_not_let_go() {
    let p = pair("settle");
    let (l, r) = ([desc(&p.mine, 0, 64)], [desc(&p.theirs, 0, 64)]);
    let make = || {
        let (l, r) = ((MemKind::Dram, &l[..]), (MemKind::Dram, &r[..]));
        p.a.create_transfer(Op::Read, l, r, p.b.name(), TransferOptions::default())
            .unwrap()
    };
    script(&p.a, "hold", "1");
    script(&p.a, "stubborn", "1");
    let t = make();
    assert_eq!(t.post(None).unwrap(), TransferState::InProgress);
    assert_eq!(status(t.post(None)), Status::RepostActive);
    assert_eq!(status(t.settle()), Status::Busy);
    assert_eq!(t.state().unwrap(), TransferState::InProgress);
    script(&p.a, "hold", "0");
    assert_eq!(status(t.state()), Status::Canceled);
    t.settle().unwrap();

    script(&p.a, "stubborn", "0");
    script(&p.a, "hold", "1");
    let t = make();
    t.post(None).unwrap();
    t.settle().unwrap();
    assert_eq!(status(t.state()), Status::Canceled);
}

#[test]
fn a_waiter_takes_its_message_and_leaves_the_others() {
    let p = pair("waiter");
    for text in ["x 1", "y 1", "x 2"] {
        p.b.notify(p.a.name(), text.as_bytes(), None).unwrap();
    }
    let wait = |prefix: &'static str, from| {
        let filter = NotificationFilter {
            from,
            prefix: prefix.as_bytes(),
        };
        p.a.wait_notification(filter, Duration::ZERO)
            .map(|n| String::from_utf8(n.payload).unwrap())
    };
    assert_eq!(wait("y", None).unwrap(), "y 1");
    assert_eq!(status(wait("y", None)), Status::Timeout);
    assert_eq!(status(wait("x", Some("somebody else"))), Status::Timeout);
    assert_eq!(wait("x", Some(p.b.name())).unwrap(), "x 1");
    p.b.notify(p.a.name(), b"z", None).unwrap();
    let rest: Vec<_> =
        p.a.notifications(&[])
            .unwrap()
            .into_iter()
            .map(|n| n.payload)
            .collect();
    assert_eq!(rest, [b"x 2".to_vec(), b"z".to_vec()]);
}

#[test]
fn a_waiter_wakes_up_and_notices_the_end() {
    let p = pair("wakes");
    let a = Arc::new(p.a);
    let waiter = |prefix: &'static [u8]| {
        let a = a.clone();
        std::thread::spawn(move || {
            a.wait_notification(
                NotificationFilter { from: None, prefix },
                Duration::from_secs(60),
            )
        })
    };
    let (hello, never) = (waiter(b"hello"), waiter(b"never"));
    p.b.notify(a.name(), b"hello", None).unwrap();
    assert_eq!(hello.join().unwrap().unwrap().payload, b"hello");
    a.close().unwrap();
    assert_eq!(status(never.join().unwrap()), Status::InvalidState);
    a.close().unwrap();
    assert_eq!(status(a.metadata()), Status::InvalidState);
}

#[test]
fn large_messages_are_refused() {
    let p = pair("large");
    let payload = vec![0u8; (16 << 20) + 1];
    assert_eq!(
        status(p.a.notify(p.b.name(), &payload, None)),
        Status::InvalidArgument
    );
}
