//! The `zmq` side channel with libzmq at the other end, as in stock vLLM, and with peers that follow no
//! rules.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use kvferry::error::{Error, Status};
use kvferry::side_channel::zmq::{Session, message::Clock, message::Request, zmtp};
use kvferry::side_channel::{self, Answer, Rank, RequestOptions, SideChannel};

use crate::support::{PATIENCE, at, has_ipv6, patient, pattern};

const FIRST: Rank = Rank { pp: 0, tp: 0 };

fn rank(pp: u32, tp: u32) -> Rank {
    Rank { pp, tp }
}

fn listen(metadata: &[u8]) -> Arc<dyn SideChannel> {
    side_channel::listen("zmq", &patient(), metadata.to_vec()).unwrap()
}

fn options(rank: Rank) -> RequestOptions {
    RequestOptions {
        timeout: PATIENCE,
        rank,
        ..Default::default()
    }
}

fn ask(to: SocketAddr, rank: Rank) -> Result<Answer, Error> {
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
fn stock(kind: zmq::SocketType, to: SocketAddr) -> zmq::Socket {
    let socket = zmq::Context::new().socket(kind).unwrap();
    socket.set_ipv6(true).unwrap();
    socket.set_linger(0).unwrap();
    socket.set_rcvtimeo(PATIENCE.as_millis() as i32).unwrap();
    socket.connect(&format!("tcp://{to}")).unwrap();
    socket
}

/// The question as stock vLLM's bytes are documented, not as our encoder makes it.
fn question(pp: u8, tp: u8) -> Vec<u8> {
    [b"\x93\xc4\x0cget_meta_msg".as_slice(), &[pp, tp]].concat()
}

fn clock_of(frame: &[u8]) -> f64 {
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
    let socket = stock(zmq::REQ, channel.local_addr());
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
    let socket = stock(zmq::DEALER, channel.local_addr());
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
    serve: impl FnOnce(zmq::Socket) + Send + 'static,
) -> (SocketAddr, thread::JoinHandle<()>) {
    let socket = zmq::Context::new().socket(zmq::ROUTER).unwrap();
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
