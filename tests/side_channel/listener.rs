//! The listener, with clients that behave and clients that do not.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use kvferry::error::Status;
use kvferry::side_channel::{self, ListenOptions, RequestOptions};

use crate::support::*;

#[test]
fn round_trip() {
    for len in [0, 1, 4096, 5_000_001] {
        let channel = listen(pattern(len));
        assert_eq!(channel.name(), "tcp");
        assert!(channel.is_running());
        assert!(channel.local_addr().ip().is_loopback());
        assert_ne!(channel.local_addr().port(), 0);
        assert_eq!(request(channel.local_addr()).unwrap(), pattern(len));
        assert_eq!(request(channel.local_addr()).unwrap(), pattern(len));
    }
}

#[test]
fn addresses_and_names() {
    let hosts = ["127.0.0.1", "localhost", "::1", "[::1]"];
    for host in &hosts[..if has_ipv6() { 4 } else { 2 }] {
        let options = ListenOptions {
            host: host.to_string(),
            ..patient()
        };
        let channel = listen_with(&options, host.as_bytes());
        let address = channel.local_addr();
        assert!(address.ip().is_loopback(), "{host}");
        assert!(address.is_ipv6() || !host.contains(':'), "{host}");
        let fine = RequestOptions::default();
        let answer = side_channel::request("tcp", host, address.port(), &fine);
        assert_eq!(answer.unwrap().metadata, host.as_bytes());
    }
}

/// To the byte, with the end of the stream behind it, and to a client that never sends.
#[test]
fn the_wire() {
    let channel = listen(b"hello");
    let mut all = Vec::new();
    connect(channel.local_addr()).read_to_end(&mut all).unwrap();
    assert_eq!(all, b"\0\0\0\x05hello");
}

/// What a client sends, and when it half-closes, changes nothing about what it gets.
#[test]
fn clients_that_send() {
    let channel = listen(pattern(LARGE));
    for (garbage, half_close) in [(0, true), (1, false), (1 << 16, true), (1 << 16, false)] {
        let mut stream = connect(channel.local_addr());
        stream.write_all(&vec![b'?'; garbage]).unwrap();
        if half_close {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        let message = read_message(&stream);
        assert!(message == pattern(LARGE));
        assert_eq!(count_to_end(&stream), 0);
    }
}

#[test]
fn a_client_that_never_stops_sending_is_cut_off() {
    // Longer than the client's patience: it is not the deadline that cuts it.
    let options = ListenOptions {
        timeout: 2 * PATIENCE,
        ..Default::default()
    };
    let channel = listen_with(&options, b"hello");
    let mut stream = connect(channel.local_addr());
    let mut sent = 0usize;
    let e = loop {
        match stream.write(&[b'?'; 1 << 16]) {
            Ok(n) => sent += n,
            Err(e) => break e,
        }
        assert!(sent < 1 << 30, "{sent} bytes were taken");
    };
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    assert!(matches!(e.kind(), BrokenPipe | ConnectionReset), "{e}");
    assert_eq!(request(channel.local_addr()).unwrap(), b"hello");
}

/// 200 clients at once, while 50 others are silent, crawl, or send what nobody asked for. All 250
/// get every byte.
#[test]
fn many_clients_among_hostile_ones() {
    const METADATA: usize = 3 << 20;
    let channel = listen(pattern(METADATA));
    let address = channel.local_addr();
    let hostile: Vec<TcpStream> = (0..50)
        .map(|i| {
            let mut stream = connect(address);
            match i % 3 {
                0 => {}
                1 => stream.write_all(&vec![0xff; 1 << 15]).unwrap(),
                _ => stream.read_exact(&mut [0; 2]).unwrap(),
            }
            stream
        })
        .collect();
    let clients: Vec<_> = (0..200)
        .map(|_| thread::spawn(move || request(address).map(|got| got == pattern(METADATA))))
        .collect();
    for client in clients {
        assert_eq!(client.join().unwrap(), Ok(true));
    }
    for (i, mut stream) in hostile.into_iter().enumerate() {
        let mut left = Vec::new();
        stream.read_to_end(&mut left).unwrap();
        let skipped = if i % 3 == 2 { 2 } else { 0 };
        assert!(left[4 - skipped..] == *pattern(METADATA), "client {i}");
    }
}

/// Small metadata: every client has its bytes before its place goes to another.
#[test]
fn the_cap_costs_small_metadata_nothing() {
    let options = ListenOptions {
        max_connections: 4,
        ..patient()
    };
    let channel = listen_with(&options, pattern(1000));
    let lingering: Vec<_> = (0..40).map(|_| connect(channel.local_addr())).collect();
    assert_eq!(request(channel.local_addr()).unwrap(), pattern(1000));
    for stream in lingering {
        assert_eq!(read_message(&stream), pattern(1000));
        assert_eq!(count_to_end(&stream), 0);
    }
}

/// Large metadata, every place taken by a client that does not read: a newcomer displaces the one
/// that gets on worst, and one that gets on stays.
#[test]
fn at_the_cap_the_slowest_makes_room() {
    let options = ListenOptions {
        max_connections: 3,
        ..patient()
    };
    let channel = listen_with(&options, pattern(LARGE));
    let address = channel.local_addr();
    // The oldest, and by no means fast: neither costs it its place. It has taken more than any buffers
    // before the newcomer comes, and is not through: otherwise it would depend on the machine's load how
    // the three compare.
    let mut reader = connect(address);
    let mut message = vec![0; 4 + LARGE];
    reader.read_exact(&mut message[..4]).unwrap();
    let silent = [connect(address), connect(address)];
    let (some, rest) = message[4..].split_at_mut(LARGE / 2);
    for part in some.chunks_mut(16 << 10) {
        reader.read_exact(part).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    assert!(request(address).unwrap() == pattern(LARGE));
    reader.read_exact(rest).unwrap();
    assert!(message[4..] == *pattern(LARGE));
    let cut = silent.iter().filter(|s| count_to_end(s) < 4 + LARGE);
    assert_eq!(cut.count(), 1);
    // All the places are free again.
    assert!(request(address).unwrap() == pattern(LARGE));
}

/// A client that has everything and does not close loses its place before one that still reads.
#[test]
fn at_the_cap_a_client_that_lingers_makes_room_first() {
    let options = ListenOptions {
        max_connections: 2,
        ..patient()
    };
    let channel = listen_with(&options, pattern(LARGE));
    let address = channel.local_addr();
    let mut reader = connect(address);
    let mut message = vec![0; 4 + LARGE];
    let (start, rest) = message.split_at_mut(4);
    reader.read_exact(start).unwrap();
    let lingering = connect(address);
    assert!(read_message(&lingering) == pattern(LARGE));
    assert!(request(address).unwrap() == pattern(LARGE));
    // It was given the only other place, and has left it.
    reader.read_exact(rest).unwrap();
    assert!(message[4..] == *pattern(LARGE));
}

/// Places are handed on without end: more silent clients than places, and one that reads.
#[test]
fn a_flood_of_silent_clients_does_not_shut_out_a_reader() {
    let options = ListenOptions {
        max_connections: 8,
        ..patient()
    };
    let channel = listen_with(&options, pattern(LARGE));
    let flood: Vec<_> = (0..24).map(|_| connect(channel.local_addr())).collect();
    assert!(request(channel.local_addr()).unwrap() == pattern(LARGE));
    drop(flood);
    assert!(request(channel.local_addr()).unwrap() == pattern(LARGE));
}

#[test]
fn a_single_place_serves_everyone_in_turn() {
    let options = ListenOptions {
        max_connections: 1,
        ..patient()
    };
    let channel = listen_with(&options, pattern(1000));
    let address = channel.local_addr();
    let clients: Vec<_> = (0..20)
        .map(|_| thread::spawn(move || request(address)))
        .collect();
    for client in clients {
        assert_eq!(client.join().unwrap().unwrap(), pattern(1000));
    }
}

/// Version `v` has a length and a filling of its own, so that a mixture shows.
fn version(v: u8) -> Vec<u8> {
    vec![v; 700_000 + 1000 * usize::from(v)]
}

#[test]
fn metadata_changes_whole() {
    let channel = listen(&version(0));
    let address = channel.local_addr();
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let done = done.clone();
            thread::spawn(move || {
                let mut last = 0;
                while !done.load(Ordering::Relaxed) {
                    let got = request(address).unwrap();
                    assert!(got == version(got[0]), "version {}", got[0]);
                    assert!(got[0] >= last, "{} after {last}", got[0]);
                    last = got[0];
                }
            })
        })
        .collect();
    for v in 1..=100 {
        channel.set_metadata(version(v)).unwrap();
        // Whoever connects after the change has been made sees it.
        assert!(request(address).unwrap() == version(v));
    }
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
}

#[test]
fn a_client_being_served_keeps_the_metadata_it_began_with() {
    let channel = listen(pattern(LARGE));
    let stream = connect(channel.local_addr());
    let mut header = [0; 4];
    (&stream).read_exact(&mut header).unwrap();
    channel.set_metadata(b"new".to_vec()).unwrap();
    assert_eq!(request(channel.local_addr()).unwrap(), b"new");
    let mut payload = vec![0; u32::from_be_bytes(header) as usize];
    (&stream).read_exact(&mut payload).unwrap();
    assert!(payload == pattern(LARGE));
    channel.set_metadata(Vec::new()).unwrap();
    assert_eq!(request(channel.local_addr()).unwrap(), b"");
}

#[test]
fn metadata_has_a_limit() {
    let options = ListenOptions {
        max_message: 10,
        ..patient()
    };
    let channel = listen_with(&options, &[1; 10]);
    for e in [
        channel.set_metadata(vec![2; 11]).unwrap_err(),
        side_channel::listen("tcp", &options, vec![2; 11])
            .err()
            .unwrap(),
    ] {
        assert_eq!(e.status(), Status::InvalidArgument);
        assert!(e.message().contains("11 bytes") && e.message().contains("10"));
    }
    assert_eq!(request(channel.local_addr()).unwrap(), [1; 10]);
}

#[test]
fn a_taken_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for _ in 0..2 {
        let options = ListenOptions {
            port: address.port(),
            ..patient()
        };
        let e = side_channel::listen("tcp", &options, Vec::new())
            .err()
            .unwrap();
        assert_eq!(e.status(), Status::Busy, "{e}");
        assert!(e.message().contains(&address.to_string()), "{e}");
    }
}

#[test]
fn bad_arguments_of_a_listener() {
    let with = |change: fn(&mut ListenOptions)| {
        let mut options = patient();
        change(&mut options);
        options
    };
    for (kind, options, word) in [
        ("udp", patient(), "\"udp\""),
        ("tcp", with(|o| o.host = "".into()), "\"\""),
        ("tcp", with(|o| o.host = "a\0".into()), "a\\0"),
        // TEST-NET-1 is no machine's address.
        ("tcp", with(|o| o.host = "192.0.2.7".into()), "192.0.2.7:0"),
        ("tcp", with(|o| o.max_connections = 0), "max_connections 0"),
        ("tcp", with(|o| o.max_connections = 65_537), "65537"),
        ("tcp", with(|o| o.timeout = Duration::ZERO), "0ns"),
        ("tcp", with(|o| o.timeout = Duration::MAX), "86400s"),
    ] {
        let e = side_channel::listen(kind, &options, Vec::new())
            .err()
            .unwrap();
        assert_eq!(e.status(), Status::InvalidArgument, "{e}");
        assert!(e.message().contains(word), "{e} lacks {word:?}");
    }
}

/// The port is free the moment shutdown returns, however many connections are left behind on it.
#[test]
fn restart_on_the_same_port() {
    let mut options = at("127.0.7.1");
    let mut left_behind = Vec::new();
    for round in 0..20u8 {
        let channel = listen_with(&options, &[round]);
        options.port = channel.local_addr().port();
        left_behind.push(connect(channel.local_addr()));
        assert_eq!(request(channel.local_addr()).unwrap(), [round]);
        channel.shutdown();
    }
}

#[test]
fn shutdown_with_clients_connected() {
    let channel = listen_with(&at("127.0.7.2"), pattern(LARGE));
    let address = channel.local_addr();
    let clients: Vec<_> = (0..10).map(|_| connect(address)).collect();
    for client in &clients {
        let mut header = [0; 4];
        { client }.read_exact(&mut header).unwrap();
    }
    let others: Vec<_> = (0..4)
        .map(|_| {
            let channel = channel.clone();
            thread::spawn(move || {
                channel.shutdown();
                assert!(!channel.is_running());
                // Whichever of the calls did the work, it is done now.
                assert!(request(channel.local_addr()).is_err());
            })
        })
        .collect();
    for other in others {
        other.join().unwrap();
    }
    channel.shutdown();
    for client in &clients {
        assert!(count_to_end(client) < LARGE);
    }
    assert_eq!(request(address).unwrap_err().status(), Status::PeerLost);
    let e = channel.set_metadata(Vec::new()).unwrap_err();
    assert_eq!(e.status(), Status::InvalidState);
    assert!(e.message().contains(&address.to_string()));
    assert_eq!(channel.local_addr(), address);
}

#[test]
fn the_last_reference_shuts_down() {
    let channel = listen_with(&at("127.0.7.3"), b"");
    let address = channel.local_addr();
    let other = channel.clone();
    drop(channel);
    assert!(request(address).is_ok());
    drop(other);
    assert_eq!(request(address).unwrap_err().status(), Status::PeerLost);
}
