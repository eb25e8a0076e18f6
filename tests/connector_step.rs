//! The bytes that a scheduler half gives to its workers.

use kvferry::connector::step::{Heartbeat, Hold, Push, Receive, Step, codec};
use kvferry::connector::{LEASE_SLOTS, LeaseRef, MAX_REQUEST_ID, PeerAddress};
use kvferry::error::Status;
use proptest::prelude::*;

fn peer() -> PeerAddress {
    PeerAddress {
        engine_id: "E".into(),
        host: "h".into(),
        port: 5600,
        tp_size: 2,
        pp_size: 1,
        dcp_size: 1,
    }
}

fn receive() -> Receive {
    Receive {
        request_id: "d".into(),
        peer: peer(),
        remote_request_id: "p".into(),
        local: vec![vec![7, 8, 3]],
        local_first: vec![2],
        remote: vec![vec![0, 1, 300]],
        tokens: 5,
        awaited: true,
        expiry: Some(1.5),
        lease: Some(LeaseRef {
            slot: 9,
            generation: 4,
        }),
        registration: 6,
        waited_ns: 200,
    }
}

#[test]
fn an_idle_step_is_a_few_bytes() {
    assert_eq!(Step::default().encode(), [codec::VERSION, 0, 0]);
    let step = Step {
        clock_ns: 1 << 50,
        ..Step::default()
    };
    assert_eq!(step.encode().len(), 10);
    assert_eq!(Step::decode(&step.encode()).unwrap(), step);
}

/// Worked out by hand from the form in the module's text.
#[test]
fn the_form_is_what_it_is_said_to_be() {
    let step = Step {
        clock_ns: 300,
        receives: vec![receive()],
        holds: vec![
            Hold {
                request_id: "a".into(),
                remaining_ns: 128,
                lease: None,
            },
            Hold {
                request_id: "b".into(),
                remaining_ns: 1,
                lease: Some(LeaseRef {
                    slot: 0,
                    generation: 1,
                }),
            },
        ],
        in_batch: vec!["xy".into()],
        forget: vec!["f".into()],
        cancel: vec!["c".into()],
        heartbeats: vec![Heartbeat {
            peer: peer(),
            remote_request_ids: vec!["r1".into(), "r2".into()],
        }],
        registrations: vec![],
        pushes: vec![Push {
            request_id: "q".into(),
            blocks: vec![vec![], vec![2]],
            tokens: 1,
        }],
    };
    // engine_id, host, port 5600, tp 2, pp 1, dcp 1
    let peer = [1, b'E', 1, b'h', 0xe0, 0x2b, 2, 1, 1];
    let mut expected = vec![1, 0b1011_1111, 0xac, 0x02];
    // receives: one; awaited | expiry | lease | waited
    expected.extend([1, 1, b'd', 15]);
    expected.extend(peer);
    expected.extend([1, b'p']);
    // local: one group, first 2; 3 blocks: 7 from 0 is +7, 8 is expected, 3 from 9 is -6
    expected.extend([1, 2, 3, 14, 0, 11]);
    // remote: one group; 0 and 1 are expected, 300 from 2 is +298, coded 596
    expected.extend([1, 3, 0, 0, 0xd4, 0x04]);
    // tokens, registration, 1.5, lease, 200
    expected.extend([5, 6, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 9, 4, 0xc8, 0x01]);
    // holds
    expected.extend([2, 1, b'a', 0, 0x80, 1, 1, b'b', 4, 1, 0, 1]);
    // in_batch, forget, cancel
    expected.extend([1, 2, b'x', b'y', 1, 1, b'f', 1, 1, b'c']);
    // heartbeats
    expected.push(1);
    expected.extend(peer);
    expected.extend([2, 2, b'r', b'1', 2, b'r', b'2']);
    // pushes
    expected.extend([1, 1, b'q', 1, 2, 0, 1, 4]);
    assert_eq!(step.encode(), expected);
    assert_eq!(Step::decode(&expected).unwrap(), step);
}

fn refused(bytes: &[u8], part: &str) {
    let e = Step::decode(bytes).unwrap_err();
    assert_eq!(e.status(), Status::PeerIncompatible, "{e}");
    assert!(e.message().contains(part), "{e}, expected {part:?}");
}

#[test]
fn what_is_not_a_step_is_refused() {
    refused(&[], "0 bytes are too few");
    refused(&[2, 0, 0], "version 2; this library reads 1");
    refused(&[1, 0, 0, 9], "1 bytes after the end");
    refused(
        &[1, 1 << 2, 0, 0],
        "in_batch is said to be there and is empty",
    );
    refused(
        &[1, 1 << 2, 0, 100, 1, b'a'],
        "100 in_batch, where at most 1 can follow",
    );
    refused(&[1, 1 << 2, 0, 1, 0, 0], "request id at byte 4 has 0 bytes");
    refused(&[1, 1 << 2, 0, 1, 1, 0xff], "is not UTF-8");
    refused(
        &[1, 1 << 2, 0, 1, 3, b'a', 0, b'b'],
        r#"request id "a\0b" contains a NUL"#,
    );
    let whole = Step {
        receives: vec![receive()],
        pushes: vec![Push {
            request_id: "q".into(),
            blocks: vec![vec![1, 2]],
            tokens: 1,
        }],
        ..Step::default()
    }
    .encode();
    for len in 0..whole.len() {
        refused(&whole[..len], "");
    }
    let mut long = vec![1, 1 << 2, 0, 1, 0x81, 0x08];
    long.resize(6 + MAX_REQUEST_ID + 1, b'x');
    refused(&long, "has 1025 bytes; 1 to 1024 are allowed");
}

/// One field of a receive set to what the decoder must not let through.
#[test]
fn fields_out_of_bounds_are_refused() {
    type Case = (&'static str, fn(&mut Receive));
    let cases: [Case; 11] = [
        ("tp_size 0; it is 1 to 4096", |r| r.peer.tp_size = 0),
        ("pp_size 5000; it is 1 to 4096", |r| r.peer.pp_size = 5000),
        ("dcp_size 0", |r| r.peer.dcp_size = 0),
        ("request id", |r| r.remote_request_id.clear()),
        ("expiry is NaN", |r| r.expiry = Some(f64::NAN)),
        ("lease slot 65536 of 65536", |r| {
            r.lease = Some(LeaseRef {
                slot: LEASE_SLOTS,
                generation: 1,
            })
        }),
        ("generation 0", |r| {
            r.lease = Some(LeaseRef {
                slot: 1,
                generation: 0,
            })
        }),
        (r#"engine_id "E\0" contains a NUL"#, |r| {
            r.peer.engine_id = "E\0".into()
        }),
        (r#"host "\0" contains a NUL"#, |r| r.peer.host = "\0".into()),
        (r#"request id "\0p" contains"#, |r| {
            r.remote_request_id = "\0p".into()
        }),
        ("65 remote", |r| r.remote = vec![vec![1; 3]; 65]),
    ];
    for (part, change) in cases {
        let mut r = receive();
        change(&mut r);
        let step = Step {
            receives: vec![r],
            ..Step::default()
        };
        refused(&step.encode(), part);
    }
    // No time, said to be there: the last number of a receive.
    let mut r = receive();
    r.waited_ns = 1;
    let mut bytes = Step {
        receives: vec![r],
        ..Step::default()
    }
    .encode();
    *bytes.last_mut().unwrap() = 0;
    refused(&bytes, "waited_ns is said to be there and is 0");
    // A block below zero: one group, first 0, one block, -1.
    let mut bytes = Step {
        pushes: vec![Push {
            request_id: "q".into(),
            blocks: vec![vec![0]],
            tokens: 1,
        }],
        ..Step::default()
    }
    .encode();
    *bytes.last_mut().unwrap() = 1;
    refused(&bytes, "blocks[0] is 0 + -1");
}

fn id() -> impl Strategy<Value = String> {
    "[a-z0-9:,é-]{1,24}"
}

fn blocks() -> impl Strategy<Value = Vec<u32>> {
    let run = (any::<u32>(), 0usize..20)
        .prop_map(|(first, n)| (0..n as u32).map(|i| first.wrapping_add(i)).collect());
    prop_oneof![run, prop::collection::vec(any::<u32>(), 0..12)]
}

fn lease() -> impl Strategy<Value = Option<LeaseRef>> {
    prop::option::of(
        (0..LEASE_SLOTS, 1..u64::MAX / 2)
            .prop_map(|(slot, generation)| LeaseRef { slot, generation }),
    )
}

fn any_peer() -> impl Strategy<Value = PeerAddress> {
    (
        id(),
        id(),
        any::<u16>(),
        1u32..=4096,
        1u32..=4096,
        1u32..=4096,
    )
        .prop_map(
            |(engine_id, host, port, tp_size, pp_size, dcp_size)| PeerAddress {
                engine_id,
                host,
                port,
                tp_size,
                pp_size,
                dcp_size,
            },
        )
}

fn any_receive() -> impl Strategy<Value = Receive> {
    let local = prop::collection::vec((any::<u32>(), blocks()), 0..4);
    let remote = prop::collection::vec(blocks(), 0..4);
    let numbers = (
        any::<u64>(),
        any::<u64>(),
        prop_oneof![Just(0), any::<u64>()],
        any::<bool>(),
        prop::option::of(-1e12f64..1e12),
    );
    (id(), id(), any_peer(), local, remote, numbers, lease()).prop_map(
        |(request_id, remote_request_id, peer, local, remote, numbers, lease)| {
            let (tokens, registration, waited_ns, awaited, expiry) = numbers;
            let (local_first, local) = local.into_iter().unzip();
            Receive {
                request_id,
                peer,
                remote_request_id,
                local,
                local_first,
                remote,
                tokens,
                awaited,
                expiry,
                lease,
                registration,
                waited_ns,
            }
        },
    )
}

fn any_step() -> impl Strategy<Value = Step> {
    let ids = || prop::collection::vec(id(), 0..3);
    let hold = (id(), any::<u64>(), lease()).prop_map(|(request_id, remaining_ns, lease)| Hold {
        request_id,
        remaining_ns,
        lease,
    });
    let beat = (any_peer(), ids()).prop_map(|(peer, remote_request_ids)| Heartbeat {
        peer,
        remote_request_ids,
    });
    let push = (id(), prop::collection::vec(blocks(), 0..3), any::<u64>()).prop_map(
        |(request_id, blocks, tokens)| Push {
            request_id,
            blocks,
            tokens,
        },
    );
    let receives = || prop::collection::vec(any_receive(), 0..3);
    (
        any::<u64>(),
        receives(),
        prop::collection::vec(hold, 0..3),
        (ids(), ids(), ids()),
        prop::collection::vec(beat, 0..3),
        receives(),
        prop::collection::vec(push, 0..3),
    )
        .prop_map(
            |(
                clock_ns,
                receives,
                holds,
                (in_batch, forget, cancel),
                heartbeats,
                registrations,
                pushes,
            )| {
                Step {
                    clock_ns,
                    receives,
                    holds,
                    in_batch,
                    forget,
                    cancel,
                    heartbeats,
                    registrations,
                    pushes,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_step_comes_back(step in any_step()) {
        prop_assert_eq!(Step::decode(&step.encode()).unwrap(), step);
    }

    /// Whatever is accepted has that one encoding.
    #[test]
    fn there_is_one_encoding(step in any_step(), at in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = step.encode();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(other) = Step::decode(&bytes) {
            prop_assert_eq!(other.encode(), bytes);
        }
    }
}
