//! The library's client against a server that misbehaves.

use std::os::unix::net::UnixListener;
use std::time::Duration;

use kvferry::block_pool::Options;
use kvferry::error::Status;
use kvferry::pool_client::{ClientOptions, PoolClient};
use kvferry::pool_server::wire::{self, operation::Kind};

use super::support::{DEADLINE, Place, Raw, Server, lower_open_files, until};
use super::{allocate, blocks, connect, stats};

fn options(address: &str) -> ClientOptions {
    ClientOptions {
        address: address.to_owned(),
        timeout: DEADLINE,
        ..ClientOptions::default()
    }
}

#[test]
fn a_call_without_an_answer_ends_the_client() {
    let server = Server::start(&["50"]);
    let client = PoolClient::connect(&ClientOptions {
        // Long enough to connect on a busy machine.
        timeout: Duration::from_secs(2),
        ..options(&server.listening())
    })
    .unwrap();
    blocks(client.call(allocate(5)).unwrap());
    server.signal(libc::SIGSTOP);
    let e = client.call(allocate(5)).unwrap_err();
    assert_eq!(e.status(), Status::Timeout);
    let e = client.call(allocate(5)).unwrap_err();
    assert_eq!(e.status(), Status::InvalidState);
    assert!(e.message().contains("connect again"), "{e}");
    server.signal(libc::SIGCONT);
    // What it held, and what it does not know it holds, goes with its session.
    let other = connect(&server.listening());
    until("the lost call is carried out", || stats(&other).free == 39);
    assert_eq!(
        client.call(allocate(1)).unwrap_err().status(),
        Status::InvalidState
    );
    client.close().unwrap();
    assert_eq!(stats(&other).free, 49);
}

#[test]
fn a_server_that_dies_in_the_middle_of_a_call_is_told_at_once() {
    let place = Place::new();
    let listener = UnixListener::bind(&place.0).unwrap();
    let server = std::thread::spawn(move || {
        let mut raw = Raw::new(listener.accept().unwrap().0, "ROUTER");
        raw.message()
    });
    let e = PoolClient::connect(&options(&place.address()))
        .err()
        .unwrap();
    assert_eq!(e.status(), Status::PeerLost, "{e}");
    let request = server.join().unwrap();
    assert_eq!((request.len(), &request[0][..]), (2, &b""[..]));
}

const ENV_HOST: &str = "KVF_TEST_HOST_ADDRESS";

/// Not a test by itself: a host program that handles no SIGPIPE and runs out of descriptors.
#[test]
fn host() {
    let Ok(address) = std::env::var(ENV_HOST) else {
        return;
    };
    // SAFETY: this process is here for this test alone.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let whole = PoolClient::connect(&ClientOptions {
        // As long as it waits for a server that has gone.
        timeout: Duration::from_secs(5),
        ..options(&address)
    })
    .unwrap();
    let mut refused = 0;
    // With room for no descriptor, for one, and so on.
    for room in 0..8 {
        let mut taken: Vec<std::fs::File> = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            taken.push(file);
            assert!(
                taken.len() < 100_000,
                "the limit is lowered by whoever started this"
            );
        }
        taken.truncate(taken.len() - room);
        match PoolClient::connect(&options(&address)) {
            Ok(client) => assert!(client.call(allocate(1)).is_ok()),
            Err(e) => {
                refused += 1;
                assert_eq!(e.status(), Status::ResourceExhausted, "{e}");
            }
        }
        assert!(whole.call(allocate(1)).is_ok());
    }
    assert!((1..8).contains(&refused), "{refused}");
    // The server goes while there is something to be sent.
    whole.call(Kind::Shutdown(wire::Shutdown {})).unwrap();
    let short = ClientOptions {
        timeout: Duration::from_millis(200),
        ..options(&address)
    };
    // While it is asked it answers, for some seconds.
    until("the server has gone", || whole.call(allocate(0)).is_err());
    for _ in 0..3 {
        assert!(whole.call(allocate(1)).is_err());
        assert!(PoolClient::connect(&short).is_err());
    }
    std::process::exit(77);
}

#[test]
fn a_host_without_descriptors_or_without_a_server_survives() {
    let server = Server::start(&["500"]);
    let mut host = std::process::Command::new(std::env::current_exe().unwrap());
    host.args(["--exact", "client::host", "--nocapture"])
        .env(ENV_HOST, server.listening());
    lower_open_files(&mut host, 64);
    let out = host.output().unwrap();
    assert_eq!(
        out.status.code(),
        Some(77),
        "{:?}: {}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
}

#[test]
fn nobody_there_is_a_timeout_and_leaves_nothing() {
    let place = Place::new();
    let nobody = ClientOptions {
        timeout: Duration::from_millis(50),
        ..options(&place.address())
    };
    let e = PoolClient::connect(&nobody).err().unwrap();
    assert_eq!(e.status(), Status::Timeout);
    assert!(e.message().contains(&place.address()), "{e}");
    for address in ["http://x", "ipc://", ""] {
        let e = PoolClient::connect(&options(address)).err().unwrap();
        assert_eq!(e.status(), Status::InvalidArgument, "{address:?}: {e}");
    }
}

#[test]
fn a_client_that_closes_gives_back_what_it_held() {
    let server = Server::start(&["50"]);
    let (a, b) = (connect(&server.listening()), connect(&server.listening()));
    blocks(a.call(allocate(5)).unwrap());
    assert_eq!(stats(&b).free, 44);
    a.close().unwrap();
    assert_eq!(stats(&b).free, 49);
    a.close().unwrap();
    assert_eq!(
        a.call(allocate(1)).unwrap_err().status(),
        Status::InvalidState
    );
    blocks(b.call(allocate(5)).unwrap());
    drop(b);
    assert_eq!(stats(&connect(&server.listening())).free, 49);
}

#[test]
fn a_server_that_was_started_again_knows_nobody() {
    let place = Place::new();
    let first = Server::start_at(&place.address(), &["50"]).unwrap();
    let client = connect(&place.address());
    blocks(client.call(allocate(5)).unwrap());
    drop(first);
    let _second = Server::start_at(&place.address(), &["50"]).unwrap();
    let e = client.call(allocate(1)).unwrap_err();
    assert_eq!(e.status(), Status::NotFound);
    let again = connect(&place.address());
    assert_ne!(again.epoch(), client.epoch());
    assert_eq!(stats(&again).free, 49);
}

#[test]
fn a_client_with_nothing_to_do_stays_alive() {
    let server = Server::start(&["50"]);
    let client = PoolClient::connect(&ClientOptions {
        session_timeout: Duration::from_secs(2),
        ..options(&server.listening())
    })
    .unwrap();
    blocks(client.call(allocate(5)).unwrap());
    // Somebody else looks, and counts the signs of life.
    let other = connect(&server.listening());
    let requests = || {
        let metrics = other.call(Kind::GetMetrics(wire::GetMetrics {})).unwrap();
        let wire::reply::Result::Metrics(metrics) = metrics else {
            panic!("{metrics:?}")
        };
        let line = metrics
            .text
            .lines()
            .find(|l| l.starts_with("kv_cache_server_requests_total"));
        line.unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let (mut asked, before) = (0, requests());
    until(
        "five signs of life, longer than the session's patience",
        || {
            asked += 1;
            requests() - before - asked >= 5
        },
    );
    assert_eq!(stats(&other).free, 44);
    blocks(client.call(allocate(1)).unwrap());
}

#[test]
fn two_clients_share_a_pool_or_have_one_each() {
    let server = Server::start(&["50"]);
    let pool = |name: &str, n| ClientOptions {
        pool: name.to_owned(),
        create: Some(Options::new(n, true)),
        ..options(&server.listening())
    };
    let a = PoolClient::connect(&pool("shared", 20)).unwrap();
    let b = PoolClient::connect(&pool("shared", 20)).unwrap();
    let c = PoolClient::connect(&pool("own", 20)).unwrap();
    let e = PoolClient::connect(&pool("shared", 21)).err().unwrap();
    assert_eq!(e.status(), Status::Mismatch);
    let of_a = blocks(a.call(allocate(9)).unwrap());
    let of_b = blocks(b.call(allocate(10)).unwrap());
    let mut all = [&of_a[..], &of_b].concat();
    all.sort_unstable();
    assert_eq!(all, (1..20).collect::<Vec<_>>());
    assert_eq!(
        b.call(allocate(1)).unwrap_err().status(),
        Status::ResourceExhausted
    );
    assert_eq!(stats(&c).free, 19);
    // What one of them has cached the other finds.
    let cache = Kind::CacheFullBlocks(Box::new(wire::CacheFullBlocks {
        block_ids: of_a[..1].to_vec(),
        content: Some(wire::BlockContent {
            hashes: b"x".to_vec(),
            hash_length: 1,
            block_size: 4,
            ..Default::default()
        }),
        ..Default::default()
    }));
    a.call(cache).unwrap();
    let find = || {
        Kind::GetCachedBlock(Box::new(wire::GetCachedBlock {
            hashes: b"x".to_vec(),
            hash_length: 1,
            touch: true,
            ..Default::default()
        }))
    };
    let wire::reply::Result::CachedBlocks(found) = b.call(find()).unwrap() else {
        panic!()
    };
    assert_eq!(found.block_ids, of_a[..1]);
    // It stays held while one of them holds it.
    drop(a);
    assert_eq!(stats(&b).free, 8);
    drop(b);
    assert_eq!(
        PoolClient::connect(&pool("shared", 21)).map(|d| stats(&d).free),
        Ok(20)
    );
}
