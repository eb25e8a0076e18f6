//! The `zmq` side channel with libzmq at the other end, as in stock vLLM, and with itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use kvferry::error::{Error, Status};
use kvferry::side_channel::zmq::Session;
use kvferry::side_channel::zmq::message::Request;
use kvferry::side_channel::{self, Answer, ListenOptions, Rank, RequestOptions, SideChannel};

use crate::support::{PATIENCE, at, has_ipv6, patient, pattern};

pub const FIRST: Rank = Rank { pp: 0, tp: 0 };

fn rank(pp: u32, tp: u32) -> Rank {
    Rank { pp, tp }
}

pub fn listen(metadata: &[u8]) -> Arc<dyn SideChannel> {
    side_channel::listen("zmq", &patient(), metadata.to_vec()).unwrap()
}

pub fn options(rank: Rank) -> RequestOptions {
    RequestOptions {
        timeout: PATIENCE,
        rank,
        ..Default::default()
    }
}

pub fn ask(to: SocketAddr, rank: Rank) -> Result<Answer, Error> {
    side_channel::request("zmq", &to.ip().to_string(), to.port(), &options(rank))
}

/// CLOCK_MONOTONIC, read without the library.
fn now() -> f64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a live struct is filled.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}

/// A socket of libzmq, connected.
pub fn stock(kind: ::zmq::SocketType, to: SocketAddr) -> ::zmq::Socket {
    let socket = ::zmq::Context::new().socket(kind).unwrap();
    socket.set_ipv6(true).unwrap();
    socket.set_linger(0).unwrap();
    socket.set_rcvtimeo(PATIENCE.as_millis() as i32).unwrap();
    socket.connect(&format!("tcp://{to}")).unwrap();
    socket
}

/// The question as stock vLLM's bytes are documented, not as our encoder makes it.
pub fn question(pp: u8, tp: u8) -> Vec<u8> {
    [b"\x93\xc4\x0cget_meta_msg".as_slice(), &[pp, tp]].concat()
}

pub fn clock_of(frame: &[u8]) -> f64 {
    assert_eq!((frame.len(), frame[0]), (9, 0xcb));
    f64::from_be_bytes(frame[1..].try_into().unwrap())
}

#[test]
fn our_client_and_our_listener() {
    for len in [1, 255, 256, 5_000_001] {
        let channel = listen(pattern(len));
        assert_eq!(channel.name(), "zmq");
        let answer = ask(channel.local_addr(), FIRST).unwrap();
        assert!(answer.metadata == pattern(len));
        let clock = answer.clock.unwrap();
        assert!(clock.rtt < PATIENCE);
        // Both clocks are the same one, read between question and answer.
        assert!(
            clock.offset.abs() <= clock.rtt.as_secs_f64() / 2.0 + 1e-6,
            "{clock:?}"
        );
    }
}

/// What stock vLLM's client does: one REQ socket, rank after rank.
#[test]
fn a_req_socket_of_libzmq_gets_every_rank() {
    let channel = listen(b"rank 0,0");
    channel
        .set_rank_metadata(rank(0, 1), pattern(300).to_vec())
        .unwrap();
    channel
        .set_rank_metadata(rank(3, 200), pattern(2 << 20).to_vec())
        .unwrap();
    let socket = stock(::zmq::REQ, channel.local_addr());
    for (body, expected) in [
        (question(0, 0), b"rank 0,0".as_slice()),
        (question(0, 1), pattern(300)),
        (Request::encode(rank(3, 200)), pattern(2 << 20)),
        (question(0, 0), b"rank 0,0"),
    ] {
        let before = now();
        socket.send(&body, 0).unwrap();
        let frames = socket.recv_multipart(0).unwrap();
        assert_eq!(frames.len(), 2);
        assert!(frames[0] == expected);
        assert!((before..=now()).contains(&clock_of(&frames[1])));
    }
}

#[test]
fn a_dealer_socket_gets_the_empty_frame_too() {
    let channel = listen(b"hello");
    let socket = stock(::zmq::DEALER, channel.local_addr());
    // Without waiting for the answers: they come one by one and in order.
    for tp in [0, 7, 0] {
        socket
            .send_multipart([b"".to_vec(), question(0, tp)], 0)
            .unwrap();
    }
    for expected in [b"hello".as_slice(), b"", b"hello"] {
        let frames = socket.recv_multipart(0).unwrap();
        assert_eq!(frames.len(), 3);
        assert_eq!(
            (frames[0].as_slice(), frames[1].as_slice()),
            (b"".as_slice(), expected)
        );
        clock_of(&frames[2]);
    }
}

/// What stock vLLM's listener does: a ROUTER socket that takes three frames apart.
fn stock_listener(
    serve: impl FnOnce(::zmq::Socket) + Send + 'static,
) -> (SocketAddr, thread::JoinHandle<()>) {
    let socket = ::zmq::Context::new().socket(::zmq::ROUTER).unwrap();
    socket.set_linger(-1).unwrap();
    socket.set_rcvtimeo(PATIENCE.as_millis() as i32).unwrap();
    socket.bind("tcp://127.0.0.1:*").unwrap();
    let endpoint = socket.get_last_endpoint().unwrap().unwrap();
    let address = endpoint.strip_prefix("tcp://").unwrap().parse().unwrap();
    (address, thread::spawn(move || serve(socket)))
}

#[test]
fn our_client_asks_a_router_of_libzmq() {
    let (address, listener) = stock_listener(|socket| {
        for tp in 0..3u8 {
            let frames = socket.recv_multipart(0).unwrap();
            let [identity, empty, body] = frames.as_slice() else {
                panic!("{frames:?}");
            };
            assert_eq!(empty, b"");
            assert_eq!(*body, question(1, tp));
            let clock = [&[0xcb], (now() + 1000.0).to_be_bytes().as_slice()].concat();
            let metadata = pattern(1000 * usize::from(tp) + 1);
            socket
                .send_multipart([identity.as_slice(), b"", metadata, &clock], 0)
                .unwrap();
        }
    });
    let mut session = Session::connect("127.0.0.1", address.port(), &options(FIRST)).unwrap();
    assert_eq!(session.best_clock(), None);
    let mut least = Duration::MAX;
    for tp in 0..3 {
        let answer = session.ask(rank(1, tp)).unwrap();
        assert!(answer.metadata == pattern(1000 * tp as usize + 1));
        let clock = answer.clock.unwrap();
        assert!((clock.offset - 1000.0).abs() <= clock.rtt.as_secs_f64() / 2.0 + 1e-6);
        least = least.min(clock.rtt);
        assert_eq!(session.best_clock().unwrap().rtt, least);
    }
    listener.join().unwrap();
}

#[test]
fn ranks_change_whole_and_at_once() {
    let channel = listen(b"old");
    let to = channel.local_addr();
    let mut session = Session::connect("127.0.0.1", to.port(), &options(FIRST)).unwrap();
    let mut said = |rank| match session.ask(rank) {
        Ok(answer) => answer.metadata,
        Err(e) => {
            assert_eq!(e.status(), Status::NotFound, "{e}");
            let words = [&rank.to_string(), &to.to_string()];
            assert!(words.iter().all(|w| e.message().contains(*w)), "{e}");
            Vec::new()
        }
    };
    assert_eq!(said(FIRST), b"old");
    assert_eq!(said(rank(0, 1)), b"");
    channel
        .set_rank_metadata(rank(0, 1), b"one".to_vec())
        .unwrap();
    channel.set_metadata(b"new".to_vec()).unwrap();
    assert_eq!(
        (said(FIRST), said(rank(0, 1))),
        (b"new".to_vec(), b"one".to_vec())
    );
    channel
        .replace_ranks(vec![
            (rank(1, 0), b"ten".to_vec()),
            (rank(0, 1), Vec::new()),
        ])
        .unwrap();
    assert_eq!(said(rank(1, 0)), b"ten");
    assert_eq!((said(FIRST), said(rank(0, 1))), (vec![], vec![]));

    let twice = vec![(FIRST, b"a".to_vec()), (FIRST, Vec::new())];
    let e = channel.replace_ranks(twice).unwrap_err();
    assert_eq!(e.status(), Status::InvalidArgument);
    assert!(e.message().contains("rank (pp 0, tp 0)"), "{e}");
    assert_eq!(said(rank(1, 0)), b"ten", "nothing has changed");

    // tcp has one.
    let tcp = side_channel::listen("tcp", &patient(), b"x".to_vec()).unwrap();
    for e in [
        tcp.set_rank_metadata(rank(0, 1), Vec::new()).unwrap_err(),
        tcp.replace_ranks(Vec::new()).unwrap_err(),
        side_channel::request(
            "tcp",
            "127.0.0.1",
            tcp.local_addr().port(),
            &options(rank(1, 0)),
        )
        .unwrap_err(),
    ] {
        assert_eq!(e.status(), Status::InvalidArgument);
    }
    tcp.replace_ranks(vec![(FIRST, b"y".to_vec())]).unwrap();
}

/// Version `v` has a length and a filling of its own, in both ranks.
#[test]
fn readers_see_no_mixture() {
    let version = |v: u8| vec![v; 700_000 + 1000 * usize::from(v)];
    let all = |v| vec![(FIRST, version(v)), (rank(0, 1), version(v))];
    let channel = listen(b"");
    channel.replace_ranks(all(1)).unwrap();
    let port = channel.local_addr().port();
    thread::scope(|scope| {
        for tp in 0..4 {
            scope.spawn(move || {
                let mut session = Session::connect("127.0.0.1", port, &options(FIRST)).unwrap();
                let mut last = 0;
                while last < 50 {
                    let got = session.ask(rank(0, tp % 2)).unwrap().metadata;
                    assert!(got == version(got[0]) && got[0] >= last);
                    last = got[0];
                }
            });
        }
        for v in 2..=50 {
            channel.replace_ranks(all(v)).unwrap();
        }
    });
}

#[test]
fn limits_of_metadata_and_answers() {
    let small = ListenOptions {
        max_message: 10,
        ..patient()
    };
    let channel = side_channel::listen("zmq", &small, vec![1; 10]).unwrap();
    for e in [
        side_channel::listen("zmq", &small, vec![1; 11])
            .err()
            .unwrap(),
        channel
            .set_rank_metadata(rank(2, 3), vec![1; 11])
            .unwrap_err(),
        channel
            .replace_ranks(vec![(rank(2, 3), vec![1; 11])])
            .unwrap_err(),
    ] {
        assert_eq!(e.status(), Status::InvalidArgument);
        assert!(
            e.message().contains("11 bytes") && e.message().contains("10"),
            "{e}"
        );
    }
    let port = channel.local_addr().port();
    let within = |max_message| RequestOptions {
        max_message,
        ..options(FIRST)
    };
    assert!(side_channel::request("zmq", "127.0.0.1", port, &within(10)).is_ok());
    let e = side_channel::request("zmq", "127.0.0.1", port, &within(9)).unwrap_err();
    assert_eq!(e.status(), Status::PeerIncompatible);
    assert!(e.message().contains("9"), "{e}");
    // One that is announced is refused before it comes.
    channel.shutdown();
    let e = channel.set_rank_metadata(FIRST, vec![]).unwrap_err();
    assert_eq!(e.status(), Status::InvalidState);
}

#[test]
fn addresses_ports_and_ends() {
    for host in &["127.0.7.9", "::1"][..if has_ipv6() { 2 } else { 1 }] {
        let mut options = at(host);
        for round in 1..=5u8 {
            let channel = side_channel::listen("zmq", &options, vec![round]).unwrap();
            options.port = channel.local_addr().port();
            let socket = stock(::zmq::REQ, channel.local_addr());
            socket.send(question(0, 0), 0).unwrap();
            assert_eq!(socket.recv_multipart(0).unwrap()[0], [round]);
            let e = side_channel::listen("zmq", &options, vec![round])
                .err()
                .unwrap();
            assert_eq!(e.status(), Status::Busy);
            let to = channel.local_addr();
            channel.shutdown();
            channel.shutdown();
            assert!(!channel.is_running());
            assert_eq!(ask(to, FIRST).unwrap_err().status(), Status::PeerLost);
        }
    }
}
