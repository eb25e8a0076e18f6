//! What vLLM's own encoders wrote is what ours write, and what ours read.

use kvferry::connector::Mode;
use kvferry::connector::wire::*;
use kvferry::error::Status;
use kvferry::side_channel::Rank;
use serde_json::Value;

use crate::support::*;

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

/// The bytes of an example of docs/wire.md.
fn example(name: &str) -> Vec<u8> {
    let page = include_str!("../../docs/wire.md");
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
