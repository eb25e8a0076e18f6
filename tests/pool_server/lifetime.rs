//! How a server starts and ends, and what it leaves.

use std::fs;
use std::path::Path;

use kvferry::pool_server::wire::{Shutdown, operation::Kind, reply::Result as Answer};

use super::support::{DEADLINE, Place, Server, command, until};
use super::{allocate, connect, requests, stats};

#[test]
fn a_socket_file_that_was_left_over_is_taken_over() {
    let place = Place::new();
    let mut first = Server::start_at(&place.address(), &[]).unwrap();
    first.signal(libc::SIGKILL);
    first.ended();
    assert!(place.0.exists(), "this is what it is about");
    let second = Server::start_at(&place.address(), &["70"]).unwrap();
    assert_eq!(stats(&connect(&second.listening())).blocks, 70);
}

#[test]
fn a_live_server_keeps_its_socket() {
    let place = Place::new();
    let first = Server::start_at(&place.address(), &["60"]).unwrap();
    let client = connect(&first.listening());
    let (status, said) = Server::start_at(&place.address(), &["70"]).err().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("a live server listens on"), "{said}");
    assert!(said.contains(&place.0.display().to_string()), "{said}");
    // By another way to the same file, too.
    let dir = place.0.parent().unwrap().join(".");
    let other = format!("ipc://{}", dir.join(place.0.file_name().unwrap()).display());
    assert!(Server::start_at(&other, &[]).is_err());
    assert_eq!(stats(&client).blocks, 60);
    assert_eq!(stats(&connect(&first.listening())).blocks, 60);
}

#[test]
fn somebody_elses_listener_and_files_are_left_alone() {
    let place = Place::new();
    let listener = std::os::unix::net::UnixListener::bind(&place.0).unwrap();
    let (status, said) = Server::start_at(&place.address(), &[]).err().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("a live server listens on"), "{said}");
    drop(listener);
    fs::remove_file(&place.0).unwrap();
    fs::write(&place.0, "precious").unwrap();
    let (_, said) = Server::start_at(&place.address(), &[]).err().unwrap();
    assert!(said.contains("is no socket"), "{said}");
    assert_eq!(fs::read_to_string(&place.0).unwrap(), "precious");
}

#[test]
fn only_its_user_may_connect_unless_told_otherwise() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let place = Place::new();
    let server = Server::start_at(&place.address(), &[]).unwrap();
    assert_eq!(mode(&place.0), 0o600);
    drop(server);
    let _server = Server::start_at(&place.address(), &["--socket-mode", "660"]).unwrap();
    assert_eq!(mode(&place.0), 0o660);
}

#[test]
fn a_signal_ends_it_after_what_is_in_flight() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let place = Place::new();
        let mut server = Server::start_at(&place.address(), &["1000"]).unwrap();
        let socket = zmq::Context::new().socket(zmq::DEALER).unwrap();
        socket.set_rcvtimeo(DEADLINE.as_millis() as i32).unwrap();
        socket.connect(&server.listening()).unwrap();
        let n = 300;
        for _ in 0..n {
            socket
                .send_multipart([vec![], requests::request(allocate(1))], 0)
                .unwrap();
        }
        // The first answer shows that they are on their way; most of the others are not there yet.
        socket.recv_multipart(0).unwrap();
        server.signal(signal);
        for _ in 1..n {
            socket
                .recv_multipart(0)
                .expect("what is in flight is answered");
        }
        assert_eq!(server.ended().code(), Some(0));
        assert!(!place.0.exists(), "the socket file goes with the server");
    }
}

#[test]
fn a_client_can_end_it() {
    let place = Place::new();
    let mut server = Server::start_at(&place.address(), &[]).unwrap();
    let client = connect(&server.listening());
    let answer = client.call(Kind::Shutdown(Shutdown {})).unwrap();
    assert!(matches!(answer, Answer::Done(_)));
    assert_eq!(server.ended().code(), Some(0));
    assert!(!place.0.exists());
}

#[test]
fn it_listens_on_loopback_unless_told_otherwise() {
    let server = Server::start_at("tcp://127.0.0.1:*", &["30"]).unwrap();
    let address = server.listening();
    assert!(address.starts_with("tcp://127.0.0.1:") && !address.ends_with('*'));
    assert_eq!(stats(&connect(&address)).blocks, 30);
    let (status, said) = Server::start_at("tcp://0.0.0.0:*", &[]).err().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("--allow-remote"), "{said}");
    Server::start_at("tcp://0.0.0.0:*", &["--allow-remote"]).unwrap();
    let both = Place::new();
    let both = format!("{},tcp://127.0.0.1:*", both.address());
    let server = Server::start_at(&both, &["40"]).unwrap();
    assert_eq!(stats(&connect(&server.listening())).blocks, 40);
}

#[test]
fn the_environment_configures_it() {
    let place = Place::new();
    let mut child = command(&[])
        .env("KV_CACHE_NUM_GPU_BLOCKS", "77")
        .env("KV_CACHE_SOCKET_PATH", &place.0)
        .spawn()
        .unwrap();
    until("the socket file appears", || place.0.exists());
    assert_eq!(stats(&connect(&place.address())).blocks, 77);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_command_line_is_checked_before_anything_is_done() {
    let run = |args: &[&str]| command(args).output().unwrap();
    let help = run(&["--help"]);
    assert!(help.status.success());
    assert!(String::from_utf8_lossy(&help.stdout).contains("KV_CACHE_NUM_GPU_BLOCKS"));
    let version = run(&["--version"]);
    let expected = format!("kv_cache_server {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&version.stdout), expected);
    let wrong = run(&["--colour"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("there is no option --colour"));
    let place = Place::new();
    let (status, said) = Server::start_at(&place.address(), &["0"]).err().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("a pool of 0 blocks"), "{said}");
    assert!(!place.0.exists());
}
