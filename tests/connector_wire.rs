//! The bytes of stock vLLM: what its own encoders wrote is what ours write, and what ours read.
//!
//! `tests/vllm/data/wire.json` was written by `tests/vllm/record_wire.py` with vLLM's own classes and
//! functions; what it holds is described there.

use std::sync::LazyLock;

use kvferry::connector::Mode;
use kvferry::connector::wire::*;
use kvferry::error::Status;
use kvferry::side_channel::Rank;
use serde_json::Value;

static RECORDED: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("vllm/data/wire.json")).unwrap());

fn recorded(section: &str) -> &'static [Value] {
    let cases = RECORDED[section].as_array().unwrap();
    assert!(!cases.is_empty());
    cases
}

fn unhex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    let digits = |i| u8::from_str_radix(&text[i..i + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn uint(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

fn list<T>(value: &Value, each: impl Fn(&Value) -> T) -> Vec<T> {
    value.as_array().unwrap().iter().map(each).collect()
}

fn opt<T>(value: &Value, some: impl Fn(&Value) -> T) -> Option<T> {
    (!value.is_null()).then(|| some(value))
}

fn pair(value: &Value) -> (u64, u64) {
    (uint(&value[0]), uint(&value[1]))
}

fn metadata(fields: &Value) -> AgentMetadata {
    let uints = |value: &Value| list(value, uint);
    let texts = |value: &Value| list(value, text);
    AgentMetadata {
        engine_id: text(&fields["engine_id"]),
        agent_metadata: unhex(&fields["agent_metadata"]),
        base_addrs: uints(&fields["kv_caches_base_addr"]),
        device_id: uint(&fields["device_id"]),
        num_blocks: uint(&fields["num_blocks"]),
        block_lens: uints(&fields["block_lens"]),
        block_strides: uints(&fields["block_strides"]),
        kv_cache_layout: text(&fields["kv_cache_layout"]),
        block_size: uint(&fields["block_size"]) as u32,
        ssm_sizes: pair(&fields["ssm_sizes"]),
        attn_backend_name: text(&fields["attn_backend_name"]),
        blocks_per_logical: uint(&fields["physical_blocks_per_logical_kv_block"]) as u32,
        region_num_blocks: opt(&fields["region_num_blocks"], uints),
        region_group_ids: opt(&fields["region_group_ids"], |v| {
            list(v, |id| id.as_i64().unwrap())
        }),
        region_names: opt(&fields["region_names"], texts),
        region_mem_types: opt(&fields["region_mem_types"], texts),
        dcp_size: uint(&fields["dcp_size"]) as u32,
        pcp_size: uint(&fields["pcp_size"]) as u32,
        ple_block_len: opt(&fields["ple_block_len"], uint),
        region_members: list(&fields["region_members"], texts),
        packed_member_layouts: list(&fields["packed_member_layouts"], |v| {
            (text(&v[0]), pair(&v[1]))
        }),
        lease_table: None,
    }
}

#[test]
fn payloads_are_stock_s_byte_for_byte() {
    for case in recorded("payloads") {
        let ours = metadata(&case["fields"]);
        let inner = unhex(&case["inner"]);
        assert!(ours.encode().unwrap() == inner, "{case}");
        assert_eq!(AgentMetadata::decode(&inner).unwrap(), ours);

        let outer = [unhex(&case["outer_head"]), inner].concat();
        let payload = Payload::new("5d".repeat(32), &ours).unwrap();
        assert!(payload.encode().unwrap() == outer, "{case}");
        let read = Payload::decode(&outer).unwrap();
        assert_eq!(read.compatibility_hash, "5d".repeat(32));
        assert_eq!(read.metadata().unwrap(), ours);
    }
}

/// Of every map that vLLM's decoder was asked to judge, ours says the same.
#[test]
fn what_stock_refuses_is_refused_and_what_it_takes_is_taken() {
    let (mut taken, mut refused) = (0, 0);
    let first = unhex(&recorded("judged")[0]["middle"]);
    for case in recorded("judged") {
        let (begin, end) = (uint(&case["begin"]) as usize, uint(&case["end"]) as usize);
        let middle = unhex(&case["middle"]);
        let bytes = [&first[..begin], &middle, &first[first.len() - end..]].concat();
        let ours = AgentMetadata::decode(&bytes);
        assert_eq!(
            ours.is_ok(),
            case["taken"].as_bool().unwrap(),
            "{}: {ours:?}",
            case["name"]
        );
        match ours {
            Ok(_) => taken += 1,
            Err(e) => {
                refused += 1;
                assert_eq!(e.status(), Status::PeerIncompatible);
                // "KEY = VALUE" and "without KEY" name the key.
                let name = text(&case["name"]);
                let key = name
                    .strip_prefix("without ")
                    .or(name.split(" = ").next())
                    .unwrap();
                assert!(
                    !key.contains('_') || e.message().contains(key),
                    "{name}: {e}"
                );
            }
        }
    }
    assert!(
        taken > 30 && refused > 300,
        "{taken} taken, {refused} refused"
    );
}

#[test]
fn hashes_are_stock_s() {
    for case in recorded("hashes") {
        let factors = CompatFactors {
            vllm_version: text(&RECORDED["vllm"]),
            connector_version: uint(&RECORDED["connector_version"]) as u32,
            model: text(&case["model"]),
            dtype: text(&case["dtype"]),
            num_kv_heads: uint(&case["num_kv_heads"]),
            head_size: uint(&case["head_size"]),
            num_hidden_layers: uint(&case["num_hidden_layers"]),
            attn_backend_name: text(&case["attn_backend_name"]),
            cache_dtype: text(&case["cache_dtype"]),
            is_hma_enabled: case["is_hma_enabled"].as_bool().unwrap(),
            speculative: opt(&case["speculative"], |s| SpeculativeFactors {
                method: opt(&s["method"], text),
                model: text(&s["model"]),
                revision: opt(&s["revision"], text),
                code_revision: opt(&s["code_revision"], text),
                parallel_drafting: s["parallel_drafting"].as_bool().unwrap(),
                kv_cache_dtype: text(&s["kv_cache_dtype"]),
                auxiliary_layer_ids: opt(&s["auxiliary_layer_ids"], |ids| {
                    list(ids, |id| id.as_i64().unwrap())
                }),
            }),
            mode: match case["transfer_mode"].as_str().unwrap() {
                "pull" => Mode::Pull,
                _ => Mode::Push,
            },
        };
        assert_eq!(factors.connector_version, CONNECTOR_VERSION);
        assert_eq!(factors.hash(), text(&case["hash"]), "{}", factors.json());
    }
}

#[test]
fn questions_are_stock_s() {
    for case in recorded("requests") {
        let (pp, tp) = (uint(&case["pp"]) as u32, uint(&case["tp"]) as u32);
        let rank = Rank { pp, tp };
        let bytes = unhex(&case["bytes"]);
        assert_eq!(Request::encode(rank), bytes);
        assert_eq!(
            Request::decode(&bytes).unwrap(),
            Request { rank, magic: true }
        );
    }
}

#[test]
fn clocks_are_stock_s() {
    for case in recorded("clocks") {
        let seconds = case["seconds"].as_f64().unwrap();
        assert_eq!(Clock(seconds).encode(), unhex(&case["bytes"]));
        assert_eq!(
            Clock::decode(&unhex(&case["bytes"])).unwrap(),
            Clock(seconds)
        );
    }
}

#[test]
fn push_registrations_are_stock_s() {
    for case in recorded("registrations") {
        let body = &case["body"];
        let registration = PushRegistration {
            request_id: text(&body["request_id"]),
            decode_engine_id: text(&body["decode_engine_id"]),
            decode_host: text(&body["decode_host"]),
            decode_port: uint(&body["decode_port"]) as u16,
            decode_tp_size: uint(&body["decode_tp_size"]) as u32,
            local_block_ids: list(&body["local_block_ids"], |ids| {
                list(ids, |id| uint(id) as u32)
            }),
            remote_engine_id: text(&body["remote_engine_id"]),
            remote_host: text(&body["remote_host"]),
            remote_port: uint(&body["remote_port"]) as u16,
            remote_tp_size: uint(&body["remote_tp_size"]) as u32,
            remote_pp_size: uint(&body["remote_pp_size"]) as u32,
        };
        let notification = Notification::PushRegistration(Box::new(registration));
        assert_eq!(notification.encode().unwrap(), unhex(&case["bytes"]));
        assert_eq!(
            Notification::parse(&unhex(&case["bytes"])).unwrap(),
            notification
        );
    }
}

#[test]
fn ranks_and_counts_are_stock_s() {
    let sizes = |value: &Value| Sizes {
        tp: uint(&value[0]) as u32,
        dcp: uint(&value[1]) as u32,
    };
    let mut refused = 0;
    for case in recorded("topology") {
        let (local, remote) = (sizes(&case["local"]), sizes(&case["remote"]));
        if case["count"].is_null() {
            refused += 1;
            for e in [
                handshake_ranks(local, 0, remote).unwrap_err(),
                consumer_count(local, remote).unwrap_err(),
            ] {
                assert_eq!(e.status(), Status::PeerIncompatible, "{case}");
            }
            continue;
        }
        assert_eq!(
            u64::from(consumer_count(local, remote).unwrap()),
            uint(&case["count"]),
            "{case}"
        );
        for (rank, expected) in case["ranks"].as_array().unwrap().iter().enumerate() {
            let ranks = handshake_ranks(local, rank as u32, remote).unwrap();
            assert_eq!(
                ranks,
                list(expected, |r| uint(r) as u32),
                "rank {rank} of {case}"
            );
        }
    }
    assert!(refused > 0);
}

/// A rank with so many regions.
fn sample(regions: usize) -> AgentMetadata {
    AgentMetadata {
        engine_id: "engine".into(),
        agent_metadata: b"blob".to_vec(),
        base_addrs: vec![4096; regions],
        num_blocks: 10,
        block_lens: vec![16; regions],
        block_strides: vec![16; regions],
        kv_cache_layout: "LBHNC".into(),
        block_size: 16,
        attn_backend_name: "CPU_ATTN".into(),
        blocks_per_logical: 1,
        dcp_size: 1,
        pcp_size: 1,
        ..Default::default()
    }
}

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

#[track_caller]
fn refused<T: std::fmt::Debug>(result: kvferry::error::Result<T>, status: Status, word: &str) {
    let e = result.unwrap_err();
    assert_eq!(e.status(), status, "{e}");
    assert!(e.message().contains(word), "{e}");
}

fn refused_both<T: std::fmt::Debug>(
    encoded: kvferry::error::Result<Vec<u8>>,
    decode: impl Fn(&[u8]) -> kvferry::error::Result<T>,
    by_hand: &[u8],
    word: &str,
) {
    refused(encoded, Status::InvalidArgument, word);
    refused(decode(by_hand), Status::PeerIncompatible, word);
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

/// The bytes of an example of docs/wire.md.
fn example(name: &str) -> Vec<u8> {
    let page = include_str!("../docs/wire.md");
    let fence = format!("<!-- bytes: {name} -->\n```text\n");
    let (_, block) = page.split_once(&fence).unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let digits: String = block
        .lines()
        .flat_map(|line| line.split("  #").next().unwrap().chars())
        .filter(|c| !c.is_whitespace())
        .collect();
    unhex(&Value::String(digits))
}

/// What docs/wire.md shows is what is sent. `tests/vllm/test_wire.py` has vLLM's classes read it.
#[test]
fn the_examples_of_the_documentation() {
    let rank = Rank { pp: 0, tp: 1 };
    assert_eq!(Request::encode(rank), example("question"));
    assert_eq!(Clock(1234.5).encode(), example("clock"));

    let mut metadata = AgentMetadata {
        engine_id: "prefill-0".into(),
        agent_metadata: b"nixl".to_vec(),
        base_addrs: vec![0x7f00_0000_0000, 0x7f00_1000_0000],
        num_blocks: 2048,
        block_lens: vec![131_072; 2],
        block_strides: vec![131_072; 2],
        kv_cache_layout: "LBHNC".into(),
        block_size: 128,
        attn_backend_name: "CPU_ATTN".into(),
        blocks_per_logical: 1,
        region_group_ids: Some(vec![0, 0]),
        region_names: Some(vec![
            "model.layers.0.self_attn.attn".into(),
            "model.layers.1.self_attn.attn".into(),
        ]),
        region_mem_types: Some(vec!["DRAM".into(); 2]),
        dcp_size: 1,
        pcp_size: 1,
        ..Default::default()
    };
    assert_eq!(metadata.encode().unwrap(), example("metadata"));
    let payload = Payload::new("5d".repeat(32), &metadata).unwrap();
    assert_eq!(payload.encode().unwrap(), example("payload"));
    metadata.lease_table = Some((0x7f00_2000_0000, 512));
    let leased = example("metadata with a lease table");
    assert_eq!(metadata.encode().unwrap(), leased);

    let registration = PushRegistration {
        request_id: "cmpl-7-0123abcd".into(),
        decode_engine_id: "decode-0".into(),
        decode_host: "10.0.0.2".into(),
        decode_port: 5600,
        decode_tp_size: 1,
        local_block_ids: vec![vec![5, 6, 7]],
        remote_engine_id: "prefill-0".into(),
        remote_host: "10.0.0.1".into(),
        remote_port: 5600,
        remote_tp_size: 2,
        remote_pp_size: 1,
    };
    let push = Notification::PushRegistration(Box::new(registration));
    assert_eq!(push.encode().unwrap(), example("push registration"));
}
