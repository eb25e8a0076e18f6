//! Notifications: what is understood, what is refused, what is not sent.

use kvferry::connector::wire::*;
use kvferry::error::Status;

use crate::support::*;

#[test]
fn ends_of_requests() {
    for (bytes, id, count) in [
        ("req:1", "req", 1),
        ("cmpl-a:b:c-0123abcd:16", "cmpl-a:b:c-0123abcd", 16),
        ("::7", ":", 7),
        ("HB:1", "", 0), // a heartbeat
        (
            "id with blanks, and commas:4294967295",
            "id with blanks, and commas",
            u32::MAX,
        ),
    ] {
        let expected = match count {
            0 => Notification::Heartbeat(vec!["1".into()]),
            _ => Notification::done(id, count),
        };
        assert_eq!(Notification::parse(bytes.as_bytes()).unwrap(), expected);
        assert_eq!(expected.encode().unwrap(), bytes.as_bytes());
    }
    // Leading zeros are digits, to Python too.
    assert_eq!(
        Notification::parse(b"r:007").unwrap(),
        Notification::done("r", 7)
    );
}

#[test]
fn heartbeats() {
    let ids = |text: &[u8]| match Notification::parse(text).unwrap() {
        Notification::Heartbeat(ids) => ids,
        other => panic!("{other:?}"),
    };
    assert_eq!(ids(b"HB:a,b:c,d"), ["a", "b:c", "d"]);
    assert_eq!(ids(b"HB:,a,,"), ["a"]);
    assert_eq!(ids(b"HB:").len(), 0);
    let beat = Notification::Heartbeat(vec!["a".into(), "b:c".into()]);
    assert_eq!(beat.encode().unwrap(), b"HB:a,b:c");
}

#[test]
fn notifications_that_are_none() {
    let long_id = [b"x".repeat(1025).as_slice(), b":1"].concat();
    let many = [b"HB:".as_slice(), &b"a,".repeat(MAX_HEARTBEAT + 1)].concat();
    let huge = vec![b'a'; MAX_NOTIFICATION + 1];
    let cases: [(&[u8], &str); 16] = [
        (b"", "no colon"),
        (b"request", "no colon"),
        (b":1", "0 bytes"),
        (b"r:", "not a decimal"),
        (b"r:x", "not a decimal"),
        (b"r:-1", "not a decimal"),
        (b"r:+1", "not a decimal"),
        (b"r: 1", "not a decimal"),
        (b"r:1_0", "not a decimal"),
        (b"r:4294967296", "not a decimal"),
        ("r:\u{661}".as_bytes(), "not a decimal"),
        (b"r:0", "never be reached"),
        (b"\xff\xfe:1", "UTF-8"),
        (&long_id, "1025"),
        (&many, "65536"),
        (&huge, "8388608"),
    ];
    for (bytes, word) in cases {
        refused(Notification::parse(bytes), Status::PeerIncompatible, word);
    }
    // The log shows what came, but not all of it.
    let e = Notification::parse(&huge).unwrap_err();
    assert!(
        e.message().len() < 300 && e.message().contains("aaaa"),
        "{e}"
    );

    let long = "x".repeat(1025);
    for (unsendable, word) in [
        (Notification::done("r", 0), "would not be understood"),
        (Notification::done("HB:r", 1), "would not be understood"),
        (
            Notification::done("PUSH_REG:r", 1),
            "would not be understood",
        ),
        (Notification::done("", 1), "empty"),
        (Notification::done(long.as_str(), 1), "1024"),
        (Notification::Heartbeat(vec![]), "no request"),
        (Notification::Heartbeat(vec![String::new()]), "empty"),
        (Notification::Heartbeat(vec![long.clone()]), "1024"),
        (
            Notification::Heartbeat(vec!["a".into(); MAX_HEARTBEAT + 1]),
            "65536",
        ),
    ] {
        refused(unsendable.encode(), Status::InvalidArgument, word);
    }
}

fn registration() -> PushRegistration {
    PushRegistration {
        request_id: "cmpl-1-0123abcd".into(),
        decode_engine_id: "d".into(),
        decode_host: "10.0.0.2".into(),
        decode_port: 5601,
        decode_tp_size: 2,
        local_block_ids: vec![vec![1, 2], vec![3]],
        remote_engine_id: "p".into(),
        remote_host: "10.0.0.1".into(),
        remote_port: 5600,
        remote_tp_size: 1,
        remote_pp_size: 1,
    }
}

#[test]
fn push_registrations_are_read_strictly() {
    let whole = Notification::PushRegistration(Box::new(registration()))
        .encode()
        .unwrap();
    for end in 0..whole.len() {
        assert!(Notification::parse(&whole[..end]).is_err(), "{end}");
    }
    // What only the consumer needs may be missing.
    let short = b"PUSH_REG:\x86\xaarequest_id\xa1r\xb0decode_engine_id\xa1d\xabdecode_host\xa1h\
        \xabdecode_port\x07\xaedecode_tp_size\x02\xaflocal_block_ids\x91\x92\x05\x06";
    let Notification::PushRegistration(read) = Notification::parse(short).unwrap() else {
        panic!();
    };
    assert_eq!((read.decode_port, read.decode_tp_size), (7, 2));
    assert_eq!(read.local_block_ids, [[5, 6]]);
    assert_eq!(
        (read.remote_port, read.remote_tp_size, read.remote_pp_size),
        (0, 1, 1)
    );
    let replaced = |old: &[u8], new: &[u8]| {
        let at = short.windows(old.len()).position(|w| w == old).unwrap();
        Notification::parse(&[&short[..at], new, &short[at + old.len()..]].concat())
    };
    for (old, new, word) in [
        (
            b"\xa1r\xb0".as_slice(),
            b"\x05\xb0".as_slice(),
            "request_id: expected a string",
        ),
        (b"\xa1r\xb0", b"\xa0\xb0", "request_id"),
        (
            b"_port\x07",
            b"_port\xce\x00\x01\x00\x00",
            "65536 is not in 0 to 65535",
        ),
        (b"_size\x02", b"_size\x00", "decode_tp_size: 0 ranks"),
        (
            b"\x91\x92\x05\x06",
            b"\x92\x05\x06",
            "local_block_ids: [0]: expected an array",
        ),
        (
            b"\x91\x92\x05\x06",
            b"\x91\x92\x05\xff",
            "local_block_ids: [0]: [1]: -1",
        ),
        (
            b"\xabdecode_host\xa1h",
            b"\xabdecode_hurz\xa1h",
            "missing: decode_host",
        ),
    ] {
        refused(replaced(old, new), Status::PeerIncompatible, word);
    }

    let mut bad = registration();
    bad.remote_pp_size = 0;
    refused(
        Notification::PushRegistration(Box::new(bad)).encode(),
        Status::InvalidArgument,
        "remote_pp_size: 0",
    );
    let mut bad = registration();
    bad.local_block_ids = vec![vec![0; MAX_BLOCKS / 2 + 1]; 2];
    let blocks = Notification::PushRegistration(Box::new(bad)).encode();
    refused(blocks, Status::InvalidArgument, "1048576");
    let mut bad = registration();
    bad.local_block_ids = vec![vec![]; MAX_GROUPS + 1];
    refused(
        Notification::PushRegistration(Box::new(bad)).encode(),
        Status::InvalidArgument,
        "1024",
    );
    let groups = [b"\xdc\x04\x01".as_slice(), &[0x90; MAX_GROUPS + 1]].concat();
    refused(
        replaced(b"\x91\x92\x05\x06", &groups),
        Status::PeerIncompatible,
        "1024",
    );
    let half = [b"\xdd\x00\x08\x00\x01".as_slice(), &[0; MAX_BLOCKS / 2 + 1]].concat();
    let both = [b"\x92".as_slice(), &half, &half].concat();
    refused(
        replaced(b"\x91\x92\x05\x06", &both),
        Status::PeerIncompatible,
        "local_block_ids: [1]",
    );
}

/// By the exact id, else by both ids without the dash and eight hexadecimal digits that engines add.
#[test]
fn whom_a_registration_is_for() {
    let r = registration();
    for (id, is) in [
        ("cmpl-1-0123abcd", true),
        ("cmpl-1-FFFFFFFF", true),
        ("cmpl-1", true),
        ("cmpl-2-0123abcd", false),
        ("cmpl-1-0123abcg", false),
        ("cmpl-1-0123abc", false),
        ("cmpl", false),
        ("", false),
    ] {
        assert_eq!(r.is_for(id), is, "{id}");
    }
}
