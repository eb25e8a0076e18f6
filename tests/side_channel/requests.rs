//! The client, against servers that misbehave.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use kvferry::error::{Error, Status};
use kvferry::side_channel::{self, ListenOptions, RequestOptions};

use crate::support::*;

#[track_caller]
fn assert_says(e: &Error, status: Status, words: &[&str]) {
    assert_eq!(e.status(), status, "{e}");
    for word in words {
        assert!(e.message().contains(word), "{e} lacks {word:?}");
    }
}

fn within(timeout: Duration, max_message: usize) -> RequestOptions {
    RequestOptions {
        timeout,
        max_message,
        ..Default::default()
    }
}

#[test]
fn an_end_before_the_end_names_both_numbers() {
    for (bytes, progress) in [
        (&b""[..], "0 of 4 length bytes"),
        (b"\0\0", "2 of 4 length bytes"),
        (b"\0\0\0\x64", "0 of 100 bytes"),
        (b"\0\0\0\x640123456789", "10 of 100 bytes"),
    ] {
        let server = server_of(bytes);
        let e = request(server).unwrap_err();
        assert_says(&e, Status::PeerLost, &[progress, &server.to_string()]);
    }
}

#[test]
fn a_reset_is_a_lost_peer() {
    let (server, thread) = fake_server(|mut stream| {
        stream.write_all(b"\0\0\0\x64abc").unwrap();
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        // SAFETY: the option is read from a live struct of the size that is given.
        let rc = unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                (&raw const linger).cast(),
                size_of_val(&linger) as u32,
            )
        };
        assert_eq!(rc, 0);
    });
    let e = request(server).unwrap_err();
    thread.join().unwrap();
    // The reset may overtake all that was sent before it, and the connection itself.
    assert_says(&e, Status::PeerLost, &[&server.to_string(), "reset"]);
}

#[test]
fn the_length_is_checked_before_memory_is_taken() {
    let server = server_of(b"\xff\xff\xff\xff");
    let e = request(server).unwrap_err();
    let words = ["4294967295", "67108864", &server.to_string()];
    assert_says(&e, Status::PeerIncompatible, &words);

    for (max, accepted) in [(4, false), (5, true)] {
        let port = server_of(b"\0\0\0\x05hello").port();
        let answer = side_channel::request("tcp", "127.0.0.1", port, &within(PATIENCE, max));
        match answer {
            Ok(answer) => {
                assert!(accepted && answer.metadata == b"hello" && answer.clock.is_none())
            }
            Err(e) => {
                assert!(!accepted);
                assert_says(&e, Status::PeerIncompatible, &["5 bytes", "4 are allowed"]);
            }
        }
    }
}

#[test]
fn what_follows_the_message_is_ignored() {
    assert_eq!(request(server_of(b"\0\0\0\x02hithere")).unwrap(), b"hi");
}

/// The whole message counts, not the end of the stream.
#[test]
fn a_server_that_does_not_close_is_not_waited_for() {
    let (server, thread) = fake_server(|mut stream| {
        stream.write_all(b"\0\0\0\x02hi").unwrap();
        count_to_end(&stream)
    });
    assert_eq!(request(server).unwrap(), b"hi");
    assert_eq!(thread.join().unwrap(), 0, "a client sends nothing");
}

/// Neither silence, nor a trickle in the length or in the payload, nor a queue that nobody takes
/// from outlasts the deadline.
#[test]
fn one_deadline_for_everything() {
    fn drip(mut stream: TcpStream, first: &[u8]) {
        let _ = stream.write_all(first);
        while stream.write_all(b"\0").is_ok() {
            thread::sleep(Duration::from_millis(5));
        }
    }
    fn silent(stream: TcpStream, _: &[u8]) {
        count_to_end(&stream);
    }
    let not_accepting = TcpListener::bind("127.0.0.1:0").unwrap();
    let (dripping, drip_thread) = fake_server(|s| drip(s, b"\0\x10\0\0"));
    let (silent, silent_thread) = fake_server(|s| silent(s, b""));
    for (server, progress) in [
        (dripping, "of 1048576 bytes"),
        (silent, "0 of 4 length bytes"),
        (not_accepting.local_addr().unwrap(), "0 of 4 length bytes"),
    ] {
        let allowed = Duration::from_millis(200);
        let start = Instant::now();
        let e = side_channel::request("tcp", "127.0.0.1", server.port(), &within(allowed, 1 << 20))
            .unwrap_err();
        let took = start.elapsed();
        let words = [&server.to_string(), "200ms", progress];
        assert_says(&e, Status::Timeout, &words);
        // The upper bound only tells a deadline from none: a trickle of a mebibyte takes an hour.
        assert!(took >= allowed && took < PATIENCE, "{took:?}");
    }
    drip_thread.join().unwrap();
    silent_thread.join().unwrap();
}

#[test]
fn a_connection_that_is_never_made_times_out() {
    // A queue of one that is full: the kernel ignores further connections.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // SAFETY: takes no pointers; the descriptor is open.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let address = listener.local_addr().unwrap();
    let _fill: Vec<_> = (0..4)
        .map_while(|_| TcpStream::connect_timeout(&address, Duration::from_millis(100)).ok())
        .collect();
    let options = within(Duration::from_millis(100), 1);
    let e = side_channel::request("tcp", "127.0.0.1", address.port(), &options).unwrap_err();
    assert_says(&e, Status::Timeout, &[&address.to_string(), "100ms"]);
}

#[test]
fn nobody_there() {
    let address = TcpListener::bind("127.0.7.4:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let e = request(address).unwrap_err();
    assert_says(&e, Status::PeerLost, &[&address.to_string(), "refused"]);
}

#[test]
fn hosts_that_do_not_exist() {
    let options = within(PATIENCE, 1);
    let e = side_channel::request("tcp", "no-such-host.invalid", 5, &options).unwrap_err();
    assert_says(&e, Status::NotFound, &["no-such-host.invalid"]);
    let listen = ListenOptions {
        host: "no-such-host.invalid".into(),
        ..patient()
    };
    let e = side_channel::listen("tcp", &listen, Vec::new())
        .err()
        .unwrap();
    assert_says(&e, Status::NotFound, &["no-such-host.invalid"]);
}

#[test]
fn bad_arguments_of_a_request() {
    let fine = RequestOptions::default();
    let long = "x".repeat(256);
    let day = side_channel::MAX_TIMEOUT;
    for (kind, host, port, options, word) in [
        ("udp", "127.0.0.1", 5, fine.clone(), "\"udp\""),
        ("", "127.0.0.1", 5, fine.clone(), "\"\""),
        ("tcp", "", 5, fine.clone(), "\"\""),
        ("tcp", "a\0b", 5, fine.clone(), "a\\0b"),
        ("tcp", &long, 5, fine.clone(), "256 bytes"),
        ("tcp", "127.0.0.1", 0, fine.clone(), "port 0"),
        ("tcp", "127.0.0.1", 5, within(Duration::ZERO, 1), "0ns"),
        (
            "tcp",
            "127.0.0.1",
            5,
            within(day + Duration::from_nanos(1), 1),
            "86400s",
        ),
        (
            "tcp",
            "127.0.0.1",
            5,
            within(Duration::MAX, 1),
            "18446744073709551615",
        ),
    ] {
        let e = side_channel::request(kind, host, port, &options).unwrap_err();
        assert_says(&e, Status::InvalidArgument, &[word]);
    }
}
