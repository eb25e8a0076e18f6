//! Bounds and strictness of the payload and the question; sizes that are none.

use kvferry::connector::wire::*;
use kvferry::error::Status;
use kvferry::side_channel::Rank;

use crate::support::*;

/// kvferry's own key stands at the end, and only when it has something to say.
#[test]
fn the_lease_table_is_added_at_the_end() {
    let without = sample(2);
    let with = AgentMetadata {
        lease_table: Some((0x7f00_0000_1000, 512)),
        ..sample(2)
    };
    let (plain, ours) = (without.encode().unwrap(), with.encode().unwrap());
    assert_eq!(plain[..3], *b"\xde\x00\x15");
    assert_eq!(ours[..3], *b"\xde\x00\x16");
    let added = b"\xb3kvferry_lease_table\x92\xcf\x00\x00\x7f\x00\x00\x00\x10\x00\xcd\x02\x00";
    assert_eq!(ours[3..], [&plain[3..], added].concat());
    assert_eq!(AgentMetadata::decode(&ours).unwrap(), with);

    // What no table can be.
    let unaligned = AgentMetadata {
        lease_table: Some((9, 1)),
        ..sample(2)
    };
    refused(
        unaligned.encode(),
        Status::InvalidArgument,
        "kvferry_lease_table",
    );
    let table = |bytes: &[u8]| {
        let keyed = [b"\xb3kvferry_lease_table".as_slice(), bytes].concat();
        AgentMetadata::decode(&[b"\xde\x00\x16", &plain[3..], &keyed].concat())
    };
    assert_eq!(table(b"\xc0").unwrap(), without);
    assert!(table(b"\x92\x08\x01").is_ok());
    for bad in [
        b"\x92\x09\x01".as_slice(),                      // not aligned
        b"\x92\x08\xce\x01\x00\x00\x01",                 // too long
        b"\x92\xcf\xff\xff\xff\xff\xff\xff\xff\xf8\x01", // beyond the end of memory
        b"\x91\x08",
        b"\x08",
    ] {
        let e = table(bad).unwrap_err();
        assert_eq!(e.status(), Status::PeerIncompatible);
        assert!(e.message().contains("kvferry_lease_table"), "{e}");
    }
}

/// `plain` with the value that follows `key` replaced.
fn with_value(plain: &[u8], key: &str, old: usize, new: &[u8]) -> Vec<u8> {
    let at = plain
        .windows(key.len())
        .position(|w| w == key.as_bytes())
        .unwrap()
        + key.len();
    [&plain[..at], new, &plain[at + old..]].concat()
}

#[test]
fn sizes_have_limits_in_both_directions() {
    let most = sample(MAX_REGIONS);
    assert_eq!(
        AgentMetadata::decode(&most.encode().unwrap()).unwrap(),
        most
    );
    let plain = sample(0).encode().unwrap();

    let too_many = [b"\xdd\x00\x01\x00\x01".as_slice(), &[0; MAX_REGIONS + 1]].concat();
    for key in ["kv_caches_base_addr", "block_lens", "block_strides"] {
        let mut bad = sample(0);
        match key {
            "block_lens" => bad.block_lens = vec![0; MAX_REGIONS + 1],
            "block_strides" => bad.block_strides = vec![0; MAX_REGIONS + 1],
            _ => bad.base_addrs = vec![0; MAX_REGIONS + 1],
        }
        let by_hand = with_value(&plain, key, 1, &too_many);
        refused_both(bad.encode(), AgentMetadata::decode, &by_hand, "65536");
        refused(
            AgentMetadata::decode(&by_hand),
            Status::PeerIncompatible,
            key,
        );
    }

    let long = "x".repeat(MAX_NAME + 1);
    let long_str = [b"\xda\x04\x01".as_slice(), long.as_bytes()].concat();
    for (key, old) in [
        ("engine_id", 7),
        ("kv_cache_layout", 6),
        ("attn_backend_name", 9),
    ] {
        let mut bad = sample(0);
        match key {
            "engine_id" => bad.engine_id = long.clone(),
            "kv_cache_layout" => bad.kv_cache_layout = long.clone(),
            _ => bad.attn_backend_name = long.clone(),
        }
        refused_both(
            bad.encode(),
            AgentMetadata::decode,
            &with_value(&plain, key, old, &long_str),
            "1024",
        );
    }

    // Layers are counted over all regions: two lists that are each short enough.
    let half = vec![String::new(); MAX_LAYERS / 2 + 1];
    let bad = AgentMetadata {
        region_members: vec![half.clone(), half],
        ..sample(0)
    };
    let list = [b"\xdc\x80\x01".as_slice(), &[0xa0; MAX_LAYERS / 2 + 1]].concat();
    let lists = [b"\x92".as_slice(), &list, &list].concat();
    let by_hand = with_value(&plain, "region_members", 1, &lists);
    refused_both(bad.encode(), AgentMetadata::decode, &by_hand, "");
    refused(
        AgentMetadata::decode(&by_hand),
        Status::PeerIncompatible,
        "region_members: [1]",
    );

    let bad = AgentMetadata {
        agent_metadata: vec![0; MAX_PAYLOAD],
        ..sample(0)
    };
    refused(bad.encode(), Status::InvalidArgument, "67108864");
    let huge = vec![0x80; MAX_PAYLOAD + 1];
    refused(
        AgentMetadata::decode(&huge),
        Status::PeerIncompatible,
        "67108864",
    );
    refused(Payload::decode(&huge), Status::PeerIncompatible, "67108864");
}

#[test]
fn maps_are_read_strictly() {
    let plain = sample(1).encode().unwrap();
    let doubled = [b"\xde\x00\x16", &plain[3..], b"\xa8dcp_size\x01"].concat();
    refused(
        AgentMetadata::decode(&doubled),
        Status::PeerIncompatible,
        "dcp_size is there twice",
    );
    let behind = [plain.as_slice(), b"\xc0"].concat();
    refused(
        AgentMetadata::decode(&behind),
        Status::PeerIncompatible,
        "1 bytes follow",
    );
    let mut many = b"\xde\x01\x01".to_vec();
    (0..257).for_each(|_| many.extend_from_slice(b"\xa1x\xc0"));
    refused(
        AgentMetadata::decode(&many),
        Status::PeerIncompatible,
        "256",
    );
    refused(
        Payload::decode(b"\x81\xb2compatibility_hash\xa1x"),
        Status::PeerIncompatible,
        "missing: agent_metadata_bytes",
    );
    // The other way round and with company, as in the inner map.
    let odd = b"\x83\xb4agent_metadata_bytes\xc4\x01z\xa1?\x91\xc0\xb2compatibility_hash\xa1h";
    let payload = Payload::decode(odd).unwrap();
    assert_eq!(
        (
            payload.compatibility_hash.as_str(),
            payload.agent_metadata_bytes.as_slice()
        ),
        ("h", b"z".as_slice())
    );
    payload.check_hash("h").unwrap();
    refused(
        payload.check_hash("k"),
        Status::PeerIncompatible,
        "\"h\" of the peer is not ours, \"k\"",
    );
}

/// Pull side: 6.3's table; push: what a consumer rank waits for.
#[test]
fn counts() {
    let of = |d, p| consumer_count(Sizes::tp(d), Sizes::tp(p)).unwrap();
    assert_eq!(
        [of(1, 1), of(2, 1), of(4, 1), of(4, 2), of(1, 2), of(2, 4)],
        [1, 2, 4, 2, 1, 1]
    );
    let waits = push_done_count;
    assert_eq!(waits(1, 1, 1), 1);
    assert_eq!(waits(1, 2, 1), 2);
    assert_eq!(waits(2, 1, 1), 1);
    assert_eq!(waits(2, 4, 3), 6);
    assert_eq!(waits(0, u32::MAX, u32::MAX), u32::MAX);
    for (local, rank, word) in [
        (Sizes::tp(0), 0, "TP 0"),
        (Sizes { tp: 2, dcp: 4 }, 0, "DCP 4"),
        (Sizes::tp(2), 2, "rank 2"),
        (Sizes::tp(MAX_RANKS + 1), 0, "TP 65537"),
    ] {
        let ranks = handshake_ranks(local, rank, Sizes::tp(1));
        refused(ranks, Status::InvalidArgument, word);
    }
}

#[test]
fn questions_that_are_none() {
    for (bytes, word) in [
        (b"".as_slice(), "end"),
        (b"\x93", "end"),
        (b"hello", "expected an array"),
        (b"\x92\xc4\x0cget_meta_msg\x00", "an array of 2"),
        (b"\x94\xc4\x0cget_meta_msg\x00\x00\x00", "longer than 3"),
        (
            b"\x93\xc4\x0cget_meta_msg\x00\xa11",
            "tensor-parallel rank: expected an integer",
        ),
        (b"\x93\xc4\x0cget_meta_msg\xff\x00", "pipeline rank: -1"),
        (b"\x93\xc4\x0cget_meta_msg\x00\x00\x00", "1 bytes follow"),
        (&[0x93; 300], "256"),
    ] {
        refused(Request::decode(bytes), Status::PeerIncompatible, word);
    }
    // Stock answers these too.
    for bytes in [
        b"\x93\xacget_meta_msg\x00\x01".as_slice(),
        b"\x93\xc4\x05bogus\x00\x01",
    ] {
        let read = Request::decode(bytes).unwrap();
        assert_eq!((read.magic, read.rank), (false, Rank { pp: 0, tp: 1 }));
    }
    assert_eq!(Clock::decode(b"\x07").unwrap(), Clock(7.0));
    for bad in [
        b"".as_slice(),
        b"\xa11",
        b"\xcb\x7f\xf0\0\0\0\0\0\0",
        b"\x07\x07",
    ] {
        refused(Clock::decode(bad), Status::PeerIncompatible, "clock");
    }
}

/// Every byte of a real payload changed in a few ways, and every beginning of it: an error or a value
/// that can be written and read again, never a panic.
#[test]
fn damaged_payloads() {
    let inner = unhex(&recorded("payloads")[3]["inner"]);
    for at in 0..inner.len() {
        assert!(AgentMetadata::decode(&inner[..at]).is_err());
        for change in [0x01, 0x80, 0xff, 0x20] {
            let mut bytes = inner.clone();
            bytes[at] ^= change;
            if let Ok(read) = AgentMetadata::decode(&bytes) {
                let again = AgentMetadata::decode(&read.encode().unwrap());
                assert_eq!(again.unwrap(), read);
            }
        }
    }
}
