//! The `zmq` side channel with libzmq at the other end, as in stock vLLM, and with peers that follow no
//! rules.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use kvferry::error::{Error, Status};
use kvferry::side_channel::zmq::Session;
use kvferry::side_channel::zmq::message::Request;
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

/// A client by hand: no libzmq, no code of ours. The bytes are those of ZMTP's specification.
struct ByHand(TcpStream);

impl ByHand {
    fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        ByHand(stream)
    }

    /// Greets and says READY, as a socket of this type.
    fn ready(to: SocketAddr, socket_type: &str) -> Self {
        let mut client = Self::connect(to);
        client.send(&hello(b"NULL", socket_type));
        let mut theirs = [0; 64 + 2];
        client.0.read_exact(&mut theirs).unwrap();
        assert_eq!((theirs[0], theirs[9], theirs[10]), (0xff, 0x7f, 3));
        assert_eq!((&theirs[12..16], theirs[64]), (b"NULL".as_slice(), 4));
        let mut ready = vec![0; theirs[65].into()];
        client.0.read_exact(&mut ready).unwrap();
        assert!(ready.starts_with(b"\x05READY\x0bSocket-Type\0\0\0\x06ROUTER"));
        client
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// The frames of one message, all of them short.
    fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        loop {
            let mut head = [0; 2];
            self.0.read_exact(&mut head).unwrap();
            let mut body = vec![0; head[1].into()];
            self.0.read_exact(&mut body).unwrap();
            frames.push(body);
            if head[0] == 0 {
                return frames;
            }
            assert_eq!(head[0], 1);
        }
    }

    /// Waits until the listener has ended the connection.
    fn ends(mut self) {
        let mut rest = Vec::new();
        if let Err(e) = self.0.read_to_end(&mut rest) {
            assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset);
        }
    }
}

fn hello(mechanism: &[u8], socket_type: &str) -> Vec<u8> {
    let mut bytes = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 1];
    bytes.extend_from_slice(mechanism);
    bytes.resize(64, 0);
    let mut body = b"\x05READY\x0bSocket-Type".to_vec();
    body.extend_from_slice(&(socket_type.len() as u32).to_be_bytes());
    body.extend_from_slice(socket_type.as_bytes());
    bytes.extend_from_slice(&[4, body.len() as u8]);
    bytes.extend_from_slice(&body);
    bytes
}

/// One message of short frames.
fn frames(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        bytes.extend_from_slice(&[u8::from(i + 1 < parts.len()), part.len() as u8]);
        bytes.extend_from_slice(part);
    }
    bytes
}

#[test]
fn the_wire_of_zmq() {
    let channel = listen(b"hello");
    let mut client = ByHand::ready(channel.local_addr(), "REQ");
    client.send(&frames(&[b"", &question(0, 0)]));
    let answer = client.receive();
    assert_eq!(answer[..2], [b"".to_vec(), b"hello".to_vec()]);
    clock_of(&answer[2]);
    // Byte by byte; and what libzmq sends to hear whether somebody is there.
    for byte in frames(&[b"", &question(0, 0)]) {
        client.send(&[byte]);
    }
    assert_eq!(client.receive()[1], b"hello");
    client.send(b"\x04\x0b\x04PING\x00\x0acode");
    let mut pong = [0; 11];
    client.0.read_exact(&mut pong).unwrap();
    assert_eq!(pong, *b"\x04\x09\x04PONGcode");
    client.send(b"\x04\x05\x04WHAT");
    client.send(&frames(&[b"", &question(0, 0)]));
    assert_eq!(client.receive()[1], b"hello");
}

/// What kills stock vLLM's listener: answered with nothing at once, or dropped, and the connection goes
/// on.
#[test]
fn questions_that_stock_s_listener_does_not_survive() {
    let channel = listen(b"hello");
    let mut client = ByHand::ready(channel.local_addr(), "DEALER");
    for bad in [
        question(0, 1),
        question(1, 0),
        b"\x92\xc4\x0cget_meta_msg\x00".to_vec(),
        b"\x93\xc4\x0cget_meta_msg\x00\xa10".to_vec(),
        b"\x93\xc4\x0cget_meta_msg\xff\xff".to_vec(),
        b"\xc1".to_vec(),
        b"".to_vec(),
        vec![0x91; 200],
    ] {
        client.send(&frames(&[b"", &bad]));
        let answer = client.receive();
        assert_eq!(answer[..2], [b"".to_vec(), b"".to_vec()], "{bad:x?}");
        clock_of(&answer[2]);
    }
    client.send(&frames(&[b"", &question(0, 0), b"more"]));
    assert_eq!(client.receive()[1], b"");
    // Nobody knows where an answer to these would have to begin.
    client.send(&frames(&[&question(0, 0)]));
    client.send(&frames(&[b"envelope", b"", &question(0, 0)]));
    client.send(&frames(&[b"", b"\x93\xacget_meta_msg\x00\x00"]));
    assert_eq!(
        client.receive()[1],
        b"hello",
        "another word is answered, as by stock"
    );
}

#[test]
fn who_breaks_the_protocol_is_cut_off() {
    let channel = listen(b"hello");
    let to = channel.local_addr();
    let ready = |socket_type| hello(b"NULL", socket_type);
    let mut old = ready("REQ");
    old[10] = 2;
    let long_frame = [1, 255].as_slice();
    let endless = frames(&[b"".as_slice(); 9]);
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 64],
        vec![0; 64],
        old,
        hello(b"CURVE", "REQ"),
        hello(b"NULLX", "REQ"),
        ready("SUB"),
        ready("PUSH"),
        [&ready("REQ")[..64], b"\x04\x06\x05READY"].concat(),
        [&ready("REQ")[..64], b"\x04\x07\x05READY\xff"].concat(),
        [&ready("REQ")[..64], b"\x04\x00"].concat(),
        [&ready("REQ")[..64], b"\x04\x08\x05ERROR\x01x"].concat(),
        [&ready("REQ")[..64], b"\x00\x01x"].concat(), // a message before READY
        [&ready("REQ"), b"\x08".as_slice()].concat(), // a flag that there is not
        [&ready("REQ"), b"\x05".as_slice()].concat(), // a command with "more"
        [
            &ready("REQ"),
            b"\x02\xff\xff\xff\xff\xff\xff\xff\xff".as_slice(),
        ]
        .concat(),
        [&ready("REQ"), b"\x02\0\0\0\x01\0\0\0\0".as_slice()].concat(),
        [&ready("REQ"), b"\x06\0\0\0\0\0\0\x10\x01".as_slice()].concat(),
        [&ready("REQ"), long_frame, &[0; 255], &[0, 255]].concat(),
        [ready("REQ"), endless].concat(),
    ] {
        let mut client = ByHand::connect(to);
        client.send(&bytes);
        client.ends();
        assert_eq!(
            ask(to, FIRST).unwrap().metadata,
            b"hello",
            "after {bytes:x?}"
        );
    }
}

/// Silent clients, some in the middle of something, hold no place against others for long.
#[test]
fn a_flood_of_silent_clients_does_not_shut_out_a_question() {
    let options = kvferry::side_channel::ListenOptions {
        max_connections: 8,
        ..patient()
    };
    let channel = side_channel::listen("zmq", &options, pattern(4 << 20).to_vec()).unwrap();
    let to = channel.local_addr();
    let _silent: Vec<_> = (0..30)
        .map(|i| {
            let mut client = ByHand::connect(to);
            match i % 3 {
                0 => {}
                1 => client.send(&hello(b"NULL", "REQ")[..i]),
                // It asks, and takes nothing of the answer.
                _ => {
                    let asks = [hello(b"NULL", "REQ"), frames(&[b"", &question(0, 0)])].concat();
                    client.send(&asks);
                }
            }
            client
        })
        .collect();
    let socket = stock(zmq::REQ, to);
    socket.send(question(0, 0), 0).unwrap();
    assert!(socket.recv_multipart(0).unwrap()[0] == pattern(4 << 20));
    assert!(ask(to, FIRST).unwrap().metadata == pattern(4 << 20));
}

/// The time is for a question, not for a connection: a client may be silent between questions.
#[test]
fn a_started_question_has_to_be_finished() {
    let options = kvferry::side_channel::ListenOptions {
        timeout: Duration::from_millis(200),
        ..patient()
    };
    let channel = side_channel::listen("zmq", &options, b"hello".to_vec()).unwrap();
    let to = channel.local_addr();
    let mut idle = ByHand::ready(to, "REQ");
    ByHand::connect(to).ends();
    let mut started = ByHand::ready(to, "REQ");
    started.send(&frames(&[b"", &question(0, 0)])[..5]);
    started.ends();
    // By now the silent client has been connected for longer than the others were.
    idle.send(&frames(&[b"", &question(0, 0)]));
    assert_eq!(idle.receive()[1], b"hello");
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
    let small = kvferry::side_channel::ListenOptions {
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

/// A listener that answers with these bytes, whatever it is asked, and then does nothing or hangs up.
fn server_of(bytes: Vec<u8>, hold: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // The client's greeting and READY; a reset would follow if they stayed unread.
        let _ = stream.read_exact(&mut [0; 64 + 8]);
        let _ = stream.write_all(&bytes);
        if hold {
            let _ = stream.read_to_end(&mut Vec::new());
        } else {
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    address
}

#[test]
fn listeners_that_are_none() {
    use Status::{PeerIncompatible, PeerLost, Timeout};
    let router = |rest: &[u8]| [&hello(b"NULL", "ROUTER"), rest].concat();
    let clock = [b"\xcb".as_slice(), &1f64.to_be_bytes()].concat();
    for (bytes, hold, status, word) in [
        (vec![], false, PeerLost, "closed"),
        (vec![], true, Timeout, "within 200ms"),
        (
            b"HTTP/1.1 400 Bad\r\n".to_vec(),
            true,
            PeerIncompatible,
            "does not speak ZeroMQ",
        ),
        (hello(b"PLAIN", "ROUTER"), true, PeerIncompatible, "PLAIN"),
        (hello(b"NULL", "PUB"), true, PeerIncompatible, "PUB"),
        (
            [&hello(b"NULL", "")[..64], b"\x04\x0b\x05ERROR\x04nope"].concat(),
            true,
            PeerIncompatible,
            "nope",
        ),
        (router(b""), false, PeerLost, "closed"),
        (router(b""), true, Timeout, "rank (pp 0, tp 0)"),
        (router(b"\x01\x00\x01\x09half"), false, PeerLost, "closed"),
        (router(b"\x01\x00\x01\x09half"), true, Timeout, "200ms"),
        (
            router(&frames(&[b"", b"data"])),
            true,
            PeerIncompatible,
            "2 frames",
        ),
        (
            router(&frames(&[b"", b"data", &clock, b"x"])),
            true,
            PeerIncompatible,
            "frames",
        ),
        (
            router(&frames(&[b"?", b"data", &clock])),
            true,
            PeerIncompatible,
            "empty frame",
        ),
        (
            router(&frames(&[b"", b"data", b"noon"])),
            true,
            PeerIncompatible,
            "clock",
        ),
        (
            router(b"\x01\x00\x03\x7f\xff\xff\xff\xff\xff\xff\xff"),
            true,
            PeerIncompatible,
            "accepted",
        ),
        (
            router(&frames(&[b"", b"", &clock])),
            true,
            Status::NotFound,
            "nothing for it",
        ),
    ] {
        let to = server_of(bytes.clone(), hold);
        let short = RequestOptions {
            timeout: if status == Timeout {
                Duration::from_millis(200)
            } else {
                PATIENCE
            },
            ..Default::default()
        };
        let e = side_channel::request("zmq", "127.0.0.1", to.port(), &short).unwrap_err();
        assert_eq!(e.status(), status, "{e} after {bytes:x?}");
        assert!(
            e.message().contains(word) && e.message().contains(&to.to_string()),
            "{e}"
        );
    }
}

#[test]
fn a_session_ends_with_its_first_failure() {
    let clock = [b"\xcb".as_slice(), &1f64.to_be_bytes()].concat();
    let answers = [
        hello(b"NULL", "ROUTER"),
        frames(&[b"", b"", &clock]),
        frames(&[b"", b"data"]),
        frames(&[b"", b"data", &clock]),
    ];
    let to = server_of(answers.concat(), true);
    let mut session = Session::connect("127.0.0.1", to.port(), &options(FIRST)).unwrap();
    let mut status = || session.ask(FIRST).unwrap_err().status();
    assert_eq!(status(), Status::NotFound);
    assert_eq!(status(), Status::PeerIncompatible);
    assert_eq!(status(), Status::InvalidState);
}

#[test]
fn addresses_ports_and_ends() {
    for host in &["127.0.7.9", "::1"][..if has_ipv6() { 2 } else { 1 }] {
        let mut options = at(host);
        for round in 1..=5u8 {
            let channel = side_channel::listen("zmq", &options, vec![round]).unwrap();
            options.port = channel.local_addr().port();
            let socket = stock(zmq::REQ, channel.local_addr());
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
