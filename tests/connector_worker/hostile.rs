//! Strangers who send nonsense, and peers who lie.

use std::sync::Arc;

use kvferry::agent::Agent;
use kvferry::connector::step::{Receive, Step};
use kvferry::connector::wire::{AgentMetadata, Payload};
use kvferry::memory::MemKind;
use kvferry::side_channel::Rank;

use super::support::*;

fn metadata(e: &Engine) -> AgentMetadata {
    let payload = e.worker().payload().unwrap();
    Payload::decode(&payload).unwrap().metadata().unwrap()
}

fn stranger(to: &Engine) -> (Arc<Agent>, String) {
    let stranger = agent("local", "stranger");
    let name = stranger.add_remote(&metadata(to).agent_metadata).unwrap();
    (stranger, name)
}

#[test]
fn nonsense_is_dropped_and_others_go_on() {
    let (mut p, d) = Engine::pair("local");
    let (stranger, name) = stranger(&p);
    p.keep("held", &lists(&[20], &[20], 0), lease(60_000, 1), LEASE);
    let long = "x".repeat(100_000);
    let many = format!("HB:{}", vec!["x"; 100_000].join(","));
    let messages: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"\xff\xfe:1".to_vec(),
        b"no colon".to_vec(),
        b":1".to_vec(),
        b"held:".to_vec(),
        b"held:0".to_vec(),
        b"held:-1".to_vec(),
        b"held:99999999999999999999".to_vec(),
        b"held:1 ".to_vec(),
        format!("{long}:1").into_bytes(),
        b"HB:".to_vec(),
        b"HB:,,,".to_vec(),
        many.into_bytes(),
        b"PUSH_REG:".to_vec(),
        b"PUSH_REG:\xdf\xff\xff\xff\xff".to_vec(),
        vec![0; 1 << 20],
    ];
    for message in &messages {
        stranger.notify(&name, message, None).unwrap();
    }
    // Well-formed, and about nobody.
    stranger.notify(&name, b"unknown:1", None).unwrap();
    round_trip(&mut p, &d, 1, &lists(&[3, 4], &[7, 8], 0), 0);
    let mut late = 0;
    eventually("the last of them", || {
        late += p.stat(0, "num_notifications_after_expiry");
        late == 1
    });
    assert_eq!(p.worker().state().holds, 1, "only nonsense was said of it");
}

#[test]
fn readers_that_disagree_are_waited_for_by_the_largest_number() {
    let (mut p, _d) = Engine::pair("local");
    let (stranger, name) = stranger(&p);
    p.keep("a:b", &lists(&[20], &[20], 0), lease(1, 1), LEASE);
    stranger.notify(&name, b"a:b:2", None).unwrap();
    stranger.notify(&name, b"a:b:1", None).unwrap();
    p.sent("a:b");
    p.keep(
        "c",
        &lists(&[20], &[20], 0),
        lease(1, 2),
        std::time::Duration::from_secs(1),
    );
    stranger.notify(&name, b"c:4294967295", None).unwrap();
    stranger.notify(&name, b"c:1", None).unwrap();
    p.sent("c");
    assert_eq!(p.stat(0, "num_kv_expired_reqs"), 1, "its lease frees it");
}

/// What a liar changes, and what the reader says about it.
type Lie = (&'static str, fn(&mut AgentMetadata), &'static str);

const LIES: [Lie; 9] = [
    (
        "another engine",
        |m| m.engine_id.push('x'),
        "the router has named",
    ),
    ("fewer regions", |m| m.base_addrs.truncate(1), ""),
    ("longer blocks", |m| m.block_lens[0] *= 2, ""),
    ("stride below length", |m| m.block_strides[0] = 1, ""),
    ("no blocks", |m| m.num_blocks = 0, ""),
    (
        "other names",
        |m| m.region_names.as_mut().unwrap()[0].push('x'),
        "",
    ),
    (
        "not an agent",
        |m| m.agent_metadata = b"nonsense".to_vec(),
        "",
    ),
    (
        "addresses",
        |m| m.base_addrs.iter_mut().for_each(|a| *a += 1 << 40),
        "",
    ),
    ("lease words", |m| m.lease_table = Some((8, 1 << 20)), ""),
];

#[test]
fn peers_that_lie_fail_their_own_requests() {
    let (mut p, d) = Engine::pair("local");
    let good = p.worker().payload().unwrap();
    let name = p.agent().name().to_owned();
    let three = lists(&[3, 4, 9], &[7, 8, 2], 0);
    p.keep("P", &three, lease(1, 1), LEASE);
    let mut n = 0;
    let mut refused = |payload: Vec<u8>, what: &str, says: &str| {
        p.listener
            .set_rank_metadata(Rank::default(), payload)
            .unwrap();
        let mut why = String::from("is left alone");
        // A peer that was lost twice is not met again at once.
        while why.contains("is left alone") {
            n += 1;
            let id = format!("D{n}");
            let mut receive = d.receive_of(&id, &p, "P", &three);
            receive.lease = lease(1, 1);
            d.receive(receive);
            why = d.failed(&id).remove(0);
        }
        assert!(why.contains(says), "{what}: {why}");
        eventually("the agent to be unloaded, or the peer to be lost", || {
            let state = d.worker().state();
            (state.receives, state.handshakes) == (0, 0)
        });
    };
    let hash = Payload::decode(&good).unwrap().compatibility_hash;
    for (what, change, says) in LIES {
        let mut lie = metadata(&p);
        change(&mut lie);
        let payload = Payload::new(hash.clone(), &lie).unwrap().encode().unwrap();
        refused(payload, what, says);
        if !matches!(what, "addresses" | "lease words") {
            let loaded = d.agent().check_remote(&name, MemKind::Dram, &[]);
            assert!(!matches!(loaded, Ok(true)), "{what}: nothing stays loaded");
        }
    }
    let other = Payload::new("0".repeat(64), &metadata(&p)).unwrap();
    refused(other.encode().unwrap(), "hash", "compatibility hash");
    let garbled = Payload {
        compatibility_hash: hash,
        agent_metadata_bytes: b"\x81".to_vec(),
    };
    refused(garbled.encode().unwrap(), "inner map", "agent metadata");
    for cut in [0, 1, good.len() / 2, good.len() - 1] {
        refused(good[..cut].to_vec(), "cut", "handshake");
    }
    p.listener.set_rank_metadata(Rank::default(), good).unwrap();
    let mut receive = d.receive_of("again", &p, "P", &three);
    receive.lease = lease(1, 1);
    eventually("to be trusted again", || {
        d.receive(receive.clone());
        next(d.worker()).failed.is_empty()
    });
    p.sent("P");
}

#[test]
fn an_engine_cannot_take_the_agent_of_another() {
    let (mut p, d) = Engine::pair("test");
    round_trip(&mut p, &d, 1, &lists(&[3, 4], &[7, 8], 0), 0);
    // A liar at another address, with p's metadata, and with those of an agent that has p's name.
    let liar = listen(0);
    let options = kvferry::transport::AgentOptions {
        name: p.agent().name().to_owned(),
        transport: "test".into(),
        ..Default::default()
    };
    let namesake = Agent::create(&options).unwrap();
    let mut lie = metadata(&p);
    lie.engine_id = "liar".into();
    let hash = Payload::decode(&p.worker().payload().unwrap())
        .unwrap()
        .compatibility_hash;
    let both = [lie.agent_metadata.clone(), namesake.metadata().unwrap()];
    for (n, agent_metadata) in (2..).zip(both) {
        lie.agent_metadata = agent_metadata;
        let payload = Payload::new(hash.clone(), &lie).unwrap().encode().unwrap();
        liar.set_rank_metadata(Rank::default(), payload).unwrap();
        let mut receive = d.receive_of("D", &p, "P", &lists(&[3], &[7], 0));
        receive.peer.engine_id = "liar".into();
        receive.peer.port = liar.local_addr().port();
        d.receive(receive);
        let why = d.failed("D");
        assert!(why[0].contains("is that of engine"), "{why:?}");
        // Over the link that there is.
        round_trip(&mut p, &d, n, &lists(&[5, 6], &[9, 10], 0), 0);
    }
    assert_eq!(d.stat(0, "num_failed_handshakes"), 2);
    d.at_rest(1);
}

#[test]
fn requests_that_cannot_be_are_failed_one_by_one() {
    type Change = fn(&mut Receive);
    let (mut p, d) = Engine::pair("local");
    round_trip(&mut p, &d, 1, &lists(&[3, 4], &[7, 8], 0), 0);
    let changes: [(&str, Change); 7] = [
        ("a block that is not there", |r| r.local[0][0] = 1_000_000),
        ("a remote block that is not there", |r| {
            r.remote[0][0] = 1_000_000
        }),
        ("a block twice", |r| r.local[0][1] = r.local[0][0]),
        ("no remote blocks", |r| r.remote[0].clear()),
        ("no remote groups", |r| r.remote.clear()),
        ("two groups", |r| {
            r.local.push(vec![1]);
            r.local_first.push(0);
        }),
        ("tokens that do not fit", |r| r.tokens = 1),
    ];
    for (what, change) in changes {
        let mut receive = d.receive_of(what, &p, "P", &lists(&[3, 4], &[7, 8], 0));
        change(&mut receive);
        d.receive(receive);
        d.failed(what);
    }
    // Bytes that are no step are refused at once.
    for bytes in [&b""[..], b"nonsense", &[0xff; 64]] {
        assert!(d.worker().step(bytes).is_err());
    }
    d.worker().take_step(Step::default()).unwrap();
    round_trip(&mut p, &d, 2, &lists(&[5, 6], &[9, 10], 0), 0);
    d.at_rest(1);
}
