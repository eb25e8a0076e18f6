//! The `zmq` side channel with peers made by hand: what they send to the byte, and what follows no rules.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use kvferry::error::Status;
use kvferry::side_channel::zmq::Session;
use kvferry::side_channel::{self, ListenOptions, RequestOptions};

use crate::support::{PATIENCE, patient, pattern};
use crate::zmq::{FIRST, ask, clock_of, listen, options, question, stock};

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
    let options = ListenOptions {
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
    let socket = stock(::zmq::REQ, to);
    socket.send(question(0, 0), 0).unwrap();
    assert!(socket.recv_multipart(0).unwrap()[0] == pattern(4 << 20));
    assert!(ask(to, FIRST).unwrap().metadata == pattern(4 << 20));
}

/// The time is for a question, not for a connection: a client may be silent between questions.
#[test]
fn a_started_question_has_to_be_finished() {
    let options = ListenOptions {
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
