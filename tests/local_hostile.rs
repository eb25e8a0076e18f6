//! Callers and owners that do not keep to the protocol of the local transport. The sockets here are
//! plain ones; the bytes follow the tables in `frame.rs` and `metadata.rs`.

mod local_support;

use std::io::{ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kvferry::error::Status;
use kvferry::transport::{Op, Transport};
use local_support::puppet::{self, Puppet};
use local_support::*;

#[test]
fn puppet_main() {
    puppet::main();
}

/// What metadata says of its agent, by the documented layout.
struct Told {
    address: SocketAddr,
    knock: [u8; 16],
    answer: [u8; 16],
}

fn told(metadata: &[u8]) -> Told {
    let name = u16::from_le_bytes([metadata[12], metadata[13]]) as usize;
    let instance = 14 + name + 16 + 8 + 8;
    let token = |i: usize| -> [u8; 16] { metadata[instance + 16 * i..][..16].try_into().unwrap() };
    let name = format!("kvferry/local/{}", puppet::hex(&token(0)));
    Told {
        address: SocketAddr::from_abstract_name(name).unwrap(),
        knock: token(1),
        answer: token(2),
    }
}

fn call(address: &SocketAddr) -> UnixStream {
    let stream = UnixStream::connect_addr(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = body.len() as u32 + 1;
    [&len.to_le_bytes()[..], &[kind], body].concat()
}

fn hello(version: u16, knock: &[u8; 16], name: &str) -> Vec<u8> {
    let len = name.len() as u16;
    let parts = [
        &version.to_le_bytes()[..],
        knock,
        &len.to_le_bytes(),
        name.as_bytes(),
    ];
    frame(1, &parts.concat())
}

/// Reads a whole frame: kind and body.
fn read_frame(stream: &mut UnixStream) -> (u8, Vec<u8>) {
    let mut len = [0; 4];
    stream.read_exact(&mut len).unwrap();
    let mut body = vec![0; u32::from_le_bytes(len) as usize];
    stream.read_exact(&mut body).unwrap();
    (body[0], body[1..].to_vec())
}

/// The other end lets go; what it says before does not matter.
fn is_dropped(stream: &mut UnixStream) {
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return,
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return,
            Err(e) => panic!("the connection is still there: {e}"),
        }
    }
}

/// An introduced caller.
fn introduced(told: &Told, name: &str) -> UnixStream {
    let mut stream = call(&told.address);
    stream.write_all(&hello(1, &told.knock, name)).unwrap();
    let (kind, body) = read_frame(&mut stream);
    assert_eq!((kind, &body[..16]), (2, &told.answer[..]));
    stream
}

fn victim() -> (Arc<dyn Transport>, Told, Vec<u8>) {
    let agent = agent("victim");
    let metadata = agent.metadata().unwrap();
    let told = told(&metadata);
    (agent, told, metadata)
}

#[test]
fn nonsense_ends_the_connection_and_disturbs_nobody() {
    let (agent, told, metadata) = victim();
    let mut friend = Puppet::start("friend", 4096);
    let metadata = puppet::hex(&metadata);
    assert_eq!(friend.tell(&format!("add {metadata}")), "victim");
    assert_eq!(friend.tell("connect victim"), "ok");
    let mut random = Random(0xbad);
    for round in 0..300u32 {
        let mut stream = match round % 3 {
            0 => introduced(&told, "wild"),
            _ => call(&told.address),
        };
        // Ends in a length that no frame may have, so that every round must end in a drop.
        let mut bytes: Vec<u8> = match round % 2 {
            0 => (0..random.below(300))
                .map(|_| random.next() as u8)
                .collect(),
            _ => frame(
                random.below(7) as u8,
                &vec![random.next() as u8; random.below(60)],
            ),
        };
        bytes.extend_from_slice(&[0; 4096]);
        // It may be dropped before it has written everything.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        is_dropped(&mut stream);
        if round % 50 == 0 {
            assert_eq!(friend.tell(&format!("notify victim {round:08x}")), "ok");
        }
    }
    let messages = wait_for(&*agent, |from| from == "friend", 6);
    let rounds = (0..6u32).map(|i| (i * 50).to_be_bytes().to_vec());
    assert_eq!(messages, rounds.collect::<Vec<_>>());
    friend.end();
}

/// Messages from some senders only, until there are enough.
fn wait_for(agent: &dyn Transport, wanted: impl Fn(&str) -> bool, count: usize) -> Vec<Vec<u8>> {
    let deadline = Instant::now() + LIMIT;
    let mut messages = Vec::new();
    while messages.len() < count {
        assert!(
            Instant::now() < deadline,
            "{} of {count} came",
            messages.len()
        );
        agent.wait_for_notification(Duration::from_secs(1)).unwrap();
        let new = agent.notifications(&[]).unwrap();
        messages.extend(
            new.into_iter()
                .filter(|m| wanted(&m.from))
                .map(|m| m.payload),
        );
    }
    messages
}

#[test]
fn every_breach_of_the_protocol_ends_the_connection() {
    let (agent, told, _) = victim();
    let refused = |bytes: &[u8], part: &str| {
        let mut stream = call(&told.address);
        stream.write_all(bytes).unwrap();
        let (kind, body) = read_frame(&mut stream);
        let status = i32::from_le_bytes(body[..4].try_into().unwrap());
        assert_eq!((kind, status), (3, Status::PeerIncompatible as i32));
        let text = String::from_utf8(body[4..].to_vec()).unwrap();
        assert!(text.contains(part), "{text}");
        is_dropped(&mut stream);
    };
    refused(&hello(1, &[7; 16], "stranger"), "metadata");
    refused(&hello(9, &told.knock, "stranger"), "version 9");
    let dropped = |mut stream: UnixStream, bytes: &[u8]| {
        let _ = stream.write_all(bytes);
        is_dropped(&mut stream);
    };
    let fresh = || call(&told.address);
    let known = || introduced(&told, "caller");
    dropped(fresh(), &frame(4, b"a message from nobody"));
    dropped(fresh(), &2049u32.to_le_bytes());
    dropped(fresh(), &hello(1, &told.knock, ""));
    dropped(fresh(), &hello(1, &told.knock, "nul\0"));
    dropped(fresh(), &hello(1, &told.knock, &"x".repeat(1025)));
    dropped(known(), &hello(1, &told.knock, "again"));
    dropped(known(), &frame(2, &[0; 24]));
    dropped(known(), &frame(9, b""));
    dropped(known(), &0u32.to_le_bytes());
    // Refused by its length alone: not a byte of it has to come.
    dropped(known(), &((16u32 << 20) + 2).to_le_bytes());
    // A good message before a bad frame counts; half a message at the end does not.
    let mut stream = known();
    stream.write_all(&frame(4, b"good")).unwrap();
    stream.write_all(&frame(4, b"half")[..7]).unwrap();
    drop(stream);
    let mut stream = known();
    stream
        .write_all(&[frame(4, b"first"), frame(8, b"bad"), frame(4, b"late")].concat())
        .unwrap();
    is_dropped(&mut stream);
    let mut came = wait_for(&*agent, |_| true, 2);
    came.sort();
    assert_eq!(came, [&b"first"[..], b"good"]);
    let mut slow = fresh();
    for byte in hello(1, &told.knock, "slow") {
        slow.write_all(&[byte]).unwrap();
    }
    assert_eq!(read_frame(&mut slow).0, 2);
    for byte in frame(4, b"slow but right") {
        slow.write_all(&[byte]).unwrap();
    }
    assert_eq!(
        wait_for(&*agent, |from| from == "slow", 1),
        [b"slow but right"]
    );
}

/// Callers that say nothing are dropped in time, and before that they keep nobody out.
#[test]
fn silent_callers_keep_nobody_out() {
    let (agent, told, _) = victim();
    let start = Instant::now();
    let mut silent: Vec<UnixStream> = (0..150).map(|_| call(&told.address)).collect();
    let mut halfway = call(&told.address);
    halfway
        .write_all(&hello(1, &told.knock, "x")[..10])
        .unwrap();
    let mut busy = introduced(&told, "busy");
    busy.write_all(&frame(4, b"here")).unwrap();
    assert_eq!(take(&*agent, 1)[0].payload, b"here");
    silent.iter_mut().for_each(is_dropped);
    is_dropped(&mut halfway);
    assert!(
        start.elapsed() >= Duration::from_secs(5),
        "dropped too early"
    );
    busy.write_all(&frame(4, b"still")).unwrap();
    assert_eq!(take(&*agent, 1)[0].payload, b"still");
}

/// A sender that never stops is held up by a receiver that does not take, and loses nothing.
#[test]
fn an_inbox_that_nobody_empties_is_bounded() {
    let (agent, told, _) = victim();
    let written = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = introduced(&told, "talker");
            let mut body = vec![0u8; 1 << 20];
            for i in 0..100u8 {
                body[0] = i;
                stream.write_all(&frame(4, &body)).unwrap();
                written.fetch_add(1, Ordering::Release);
            }
        });
        eventually("the inbox fills", || written.load(Ordering::Acquire) >= 62);
        // However long one waits: 64 in the inbox, one under way, less than one in the socket.
        assert!(written.load(Ordering::Acquire) <= 67);
        // Another caller is still welcomed.
        let mut other = introduced(&told, "other");
        other.write_all(&frame(4, b"me too")).unwrap();
        let messages = wait_for(&*agent, |from| from == "talker", 100);
        let numbers: Vec<u8> = messages.iter().map(|m| m[0]).collect();
        assert_eq!(numbers, (0..100).collect::<Vec<u8>>());
        assert!(messages.iter().all(|m| m.len() == 1 << 20));
    });
}

/// Somebody else listens where an agent was, and knows what its metadata says.
#[test]
fn an_impostor_is_not_believed() {
    let memory = Buffer::filled(4096, 9);
    let target = Buffer::new(4096);
    let reader = agent("reader");
    register(&*reader, &[target.whole()]);
    let lure = |play: &dyn Fn(&Told) -> Vec<u8>| {
        let owner = agent("owner");
        register(&*owner, &[memory.whole()]);
        let metadata = owner.metadata().unwrap();
        let told = told(&metadata);
        owner.close().unwrap();
        let listener = UnixListener::bind_addr(&told.address).unwrap();
        reader.add_remote(&metadata).unwrap();
        let (local, remote) = ([target.whole()], [memory.whole()]);
        let read = transfer(&*reader, Op::Read, &local, &remote, "owner").unwrap();
        let bytes = play(&told);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                let _ = read_frame(&mut stream);
                let _ = stream.write_all(&bytes);
                is_dropped(&mut stream);
            });
            read.post(None)
        })
    };
    let welcome =
        |answer: &[u8; 16], address: u64| frame(2, &[&answer[..], &address.to_le_bytes()].concat());
    use Status::*;
    fails(
        lure(&|_| welcome(&[1; 16], 4096)),
        PeerIncompatible,
        &["not the one"],
    );
    // It knows the answer, but the memory of its process is not the agent's.
    let own = &memory;
    fails(
        lure(&|t| welcome(&t.answer, own.addr())),
        PeerIncompatible,
        &["memory"],
    );
    fails(
        lure(&|t| welcome(&t.answer, 4096)),
        NotRegistered,
        &["0x1000"],
    );
    fails(
        lure(&|t| welcome(&t.answer, u64::MAX - 3)),
        PeerIncompatible,
        &["address"],
    );
    fails(
        lure(&|_| frame(7, b"?")),
        PeerIncompatible,
        &["unknown kind 7"],
    );
    fails(
        lure(&|_| frame(4, b"early")),
        PeerIncompatible,
        &["handshake"],
    );
    fails(
        lure(&|_| u32::MAX.to_le_bytes().to_vec()),
        PeerIncompatible,
        &["4294967295"],
    );
    let refusal = |status: Status| frame(3, &[&(status as i32).to_le_bytes()[..], b"no"].concat());
    fails(
        lure(&|_| refusal(PermissionDenied)),
        PermissionDenied,
        &["refuses: no"],
    );
    fails(lure(&|_| refusal(Ok)), PeerIncompatible, &["refuses: no"]);
    assert!(
        target.bytes().iter().all(|&b| b == 0),
        "somebody was believed"
    );
}
