//! What arrives on the socket, whatever it is.

use kvferry::pool_server::wire::reply::Result as Answer;
use kvferry::pool_server::wire::{
    Code, GetAllFreeBlocks, Operation, Ping, Reply, Request, operation::Kind,
};
use kvferry::zmtp;
use prost::Message;

use super::support::{DEADLINE, Place, Raw, Server, command, lower_open_files};
use super::{Random, allocate, blocks, connect, stats};

/// A socket that sends what it is told, several requests without waiting for replies.
fn dealer(address: &str) -> zmq::Socket {
    let socket = zmq::Context::new().socket(zmq::DEALER).unwrap();
    socket.set_linger(0).unwrap();
    socket.set_rcvtimeo(DEADLINE.as_millis() as i32).unwrap();
    socket.connect(address).unwrap();
    socket
}

fn reply(socket: &zmq::Socket) -> Answer {
    let frames = socket.recv_multipart(0).expect("every message is answered");
    assert_eq!((frames.len(), &frames[0][..]), (2, &b""[..]));
    Reply::decode(&frames[1][..]).unwrap().result.unwrap()
}

fn code(answer: &Answer) -> Code {
    match answer {
        Answer::Error(e) => e.code(),
        other => panic!("{other:?}"),
    }
}

pub fn request(kind: Kind) -> Vec<u8> {
    Request {
        operation: Some(Operation { kind: Some(kind) }),
        ..Request::default()
    }
    .encode_to_vec()
}

#[test]
fn messages_of_any_shape_are_answered() {
    let server = Server::start(&["50"]);
    let socket = dealer(&server.listening());
    let ping = request(Kind::Ping(Ping::default()));
    for frames in [
        vec![&b""[..]],
        vec![&b"no delimiter"[..]],
        vec![b"", b"one", b"too many"],
        vec![b"", b"a", b"b", b"c", b"d", b"e"],
        vec![b"", b"no protobuf"],
        vec![b"not empty", &ping],
        vec![b"", b""],
    ] {
        socket.send_multipart(&frames, 0).unwrap();
        assert_eq!(code(&reply(&socket)), Code::InvalidArgument, "{frames:?}");
    }
    socket.send_multipart([&b""[..], &ping], 0).unwrap();
    assert!(matches!(reply(&socket), Answer::Pong(_)));
}

#[test]
fn random_bytes_are_answered_and_change_nothing() {
    let server = Server::start(&["50"]);
    let socket = dealer(&server.listening());
    let mut random = Random(0x5eed);
    // Half of them begin as something valid does.
    let valid = request(allocate(3));
    // Fewer at a time than the sockets keep for somebody who does not read.
    for _ in 0..20 {
        for _ in 0..100 {
            let mut bytes: Vec<u8> = (0..random.below(60))
                .map(|_| random.below(256) as u8)
                .collect();
            if random.below(2) == 0 {
                let keep = random.below(valid.len());
                bytes.splice(..0, valid[..keep].iter().copied());
            }
            socket.send_multipart([vec![], bytes], 0).unwrap();
        }
        // An allocation may have been among them; there is an answer to each.
        for _ in 0..100 {
            reply(&socket);
        }
    }
    assert_eq!(stats(&connect(&server.listening())).blocks, 50);
}

#[test]
fn random_scripts_are_answered_and_leave_nothing_behind() {
    let mut random = Random(0xf00d);
    for _ in 0..3000 {
        let script: Vec<u8> = (0..random.below(600))
            .map(|_| random.below(256) as u8)
            .collect();
        super::oracle::check(&script);
    }
}

#[test]
fn a_request_that_is_too_long_costs_its_sender_the_connection_and_nobody_else_anything() {
    let server = Server::start(&["50", "--max-message", "1000"]);
    let client = connect(&server.listening());
    let long = dealer(&server.listening());
    long.set_rcvtimeo(1).unwrap();
    long.send_multipart([vec![], vec![0; 1001]], 0).unwrap();
    // Its next message comes over a new connection.
    long.set_rcvtimeo(DEADLINE.as_millis() as i32).unwrap();
    let ping = request(Kind::Ping(Ping::default()));
    super::support::until("the connection is made again", || {
        long.send_multipart([&b""[..], &ping], 0).unwrap();
        long.poll(zmq::POLLIN, 50).unwrap() > 0
    });
    assert!(matches!(reply(&long), Answer::Pong(_)));
    assert_eq!(blocks(client.call(allocate(2)).unwrap()).len(), 2);
    // The library's client knows the limit, and does not even try.
    let many = Kind::EvictBlocks(kvferry::pool_server::wire::EvictBlocks {
        block_ids: vec![1; 300],
    });
    let e = client.call(many).unwrap_err();
    assert!(e.message().contains("the server takes 1000"), "{e}");
    assert_eq!(stats(&client).free, 47);
}

#[test]
fn whoever_does_not_read_waits_for_nobody_but_itself_and_loses_nothing() {
    const N: u32 = 30;
    let server = Server::start(&["200000"]);
    let mut slow = Raw::connect(&server.listening(), "DEALER");
    // 800 kB each, far more than the sockets hold.
    let all = request(Kind::GetAllFreeBlocks(GetAllFreeBlocks { limit: 0 }));
    for _ in 0..N {
        slow.send(&zmtp::message(&[b"", &all]));
    }
    let client = connect(&server.listening());
    for _ in 0..100 {
        client.call(allocate(1)).unwrap();
    }
    for _ in 0..N {
        let frames = slow.message();
        let Answer::Blocks(blocks) = Reply::decode(&frames[1][..]).unwrap().result.unwrap() else {
            panic!()
        };
        assert!(blocks.total >= 199_899 && blocks.block_ids.len() == blocks.total as usize);
    }
}

#[test]
fn strangers_are_sent_away() {
    let server = Server::start(&["50"]);
    let mut http = Raw::connect(&server.listening(), "");
    http.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(http.is_closed());
    for socket_type in ["PUB", "SUB", "REP", "PULL", "PAIR"] {
        assert!(Raw::connect(&server.listening(), socket_type).is_closed());
    }
    let mut many = Raw::connect(&server.listening(), "DEALER");
    many.send(&zmtp::message(&[&b"x"[..]; 100]));
    assert!(many.is_closed());
    assert_eq!(stats(&connect(&server.listening())).free, 49);
}

#[test]
fn more_connections_than_descriptors_are_survived() {
    let place = Place::new();
    let mut program = command(&["50", "--socket-path", &place.address()]);
    lower_open_files(&mut program, 100);
    let server = Server::start_command(&mut program).unwrap();
    let client = connect(&server.listening());
    let mut strangers = Vec::new();
    for _ in 0..50 {
        // Those that are not let in wait in the kernel's queue, or are turned away.
        strangers.push(Raw::connect(&server.listening(), "REQ"));
        client.call(allocate(0)).unwrap();
    }
    assert_eq!(stats(&client).free, 49);
    strangers.clear();
    assert_eq!(stats(&connect(&server.listening())).free, 49);
    // More sessions than that could serve are refused from the start.
    let mut program = command(&[
        "50",
        "--max-sessions",
        "50",
        "--socket-path",
        &place.address(),
    ]);
    lower_open_files(&mut program, 100);
    let (status, said) = Server::start_command(&mut program).err().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("--max-sessions 50"), "{said}");
}

#[test]
fn metrics_are_served_over_http() {
    use std::io::{Read, Write};
    let server = Server::start(&["50", "--metrics-address", "127.0.0.1:0"]);
    let url = server.address("metrics");
    let address = url
        .strip_prefix("http://")
        .unwrap()
        .strip_suffix("/metrics")
        .unwrap();
    let ask = |request: &str| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let client = connect(&server.listening());
    client.call(allocate(7)).unwrap();
    let text = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())));
    assert!(
        body.contains("\nkv_cache_server_pool_free_blocks{pool=\"default\"} 42\n"),
        "{body}"
    );
    assert!(body.contains("\nkv_cache_server_sessions 1\n"));
    assert!(ask("GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    assert!(ask("POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    assert!(ask("\r\n\r\n").starts_with("HTTP/1.1 405 "));
    assert_eq!(stats(&client).free, 42);
}
