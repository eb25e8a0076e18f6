//! `kv_transfer_params` as JSON.

use kvferry::connector::params::Params;
use kvferry::connector::{LeaseRef, Mode};
use proptest::prelude::*;
use serde_json::{Value, json};

fn read(json: &str) -> Params {
    Params::from_json(json.as_bytes()).unwrap()
}

#[test]
fn what_python_writes_is_read() {
    let p = read(
        r#"{"do_remote_prefill": true, "remote_block_ids": [[1, 2], [], [4294967295]], "tp_size": null,
            "remote_engine_id": "\u00e9-1_dp0", "remote_port": "5600", "remote_host": "::1",
            "remote_num_tokens": null, "remote_blocks_expiry_time": 12, "unknown": {"a": [1, {"b": null}]},
            "remote_host": "later", "_p_side_truncated": true, "kvferry_lease": [65535, 1]}"#,
    );
    assert!(p.do_remote_prefill && !p.do_remote_decode && p.p_side_truncated);
    assert_eq!(p.remote_block_ids, [vec![1, 2], vec![], vec![u32::MAX]]);
    assert_eq!(p.remote_engine_id.as_deref(), Some("é-1_dp0"));
    assert_eq!(
        (p.remote_port, p.tp_size, p.remote_num_tokens),
        (Some(5600), None, 0)
    );
    assert_eq!(
        (p.remote_host.as_deref(), p.remote_blocks_expiry_time),
        (Some("later"), Some(12.0))
    );
    assert_eq!(
        p.kvferry_lease,
        Some(LeaseRef {
            slot: 65535,
            generation: 1
        })
    );
    assert_eq!(p.clone().take_remote(), None, "no request id");
    assert_eq!(read(r#"{"\u0074p_size": 2}"#).tp_size, Some(2));
}

/// vLLM's older form, and that of its tests: one group without brackets of its own.
#[test]
fn a_flat_list_is_the_only_group() {
    assert_eq!(
        read(r#"{"remote_block_ids": [3, 4, 5]}"#).remote_block_ids,
        [[3, 4, 5]]
    );
}

#[test]
fn errors_name_the_key() {
    for (json, part) in [
        (r#"{"remote_port": 70000}"#, "remote_port: port 70000"),
        (
            r#"{"remote_port": "70000"}"#,
            "remote_port: a text that is no port",
        ),
        (
            r#"{"remote_block_ids": [[1], [-1]]}"#,
            "remote_block_ids: invalid value: integer `-1`",
        ),
        (
            r#"{"remote_block_ids": [4294967296]}"#,
            "remote_block_ids: a block id",
        ),
        (
            r#"{"tp_size": 1.0}"#,
            "tp_size: invalid type: floating point `1.0`",
        ),
        (r#"{"kvferry_lease": [1, 0]}"#, "generation 0"),
        (r#"{"kvferry_lease": [1, 2, 3]}"#, "kvferry_lease"),
        (
            r#"{"remote_request_id": "a\u0000b"}"#,
            "remote_request_id: a text with a NUL in it",
        ),
        (
            r#"{"remote_engine_id": "\u0000"}"#,
            "remote_engine_id: a text with a NUL in it",
        ),
        (r#"{"a": NaN}"#, "expected value"),
        (r#"{} {}"#, "trailing characters"),
        (r#"7"#, "expected an object"),
    ] {
        let e = Params::from_json(json.as_bytes()).unwrap_err();
        assert!(e.message().contains(part), "{json}: {e}");
    }
    let deep = format!("{{\"a\": {}1{}}}", "[".repeat(1000), "]".repeat(1000));
    assert_eq!(
        read(&deep),
        Params::default(),
        "what is not known is passed over, however deep"
    );
    let text = format!(r#"{{"remote_host": "{}"}}"#, "h".repeat(1025));
    let e = Params::from_json(text.as_bytes()).unwrap_err();
    assert!(
        e.message()
            .contains("remote_host: a text of 1025 bytes, more than 1024"),
        "{e}"
    );
}

fn any_params() -> impl Strategy<Value = Params> {
    let text = || prop::option::of("[a-zA-Z0-9\"\\\\ é:/-]{1,20}");
    let blocks = prop::collection::vec(prop::collection::vec(any::<u32>(), 0..9), 0..4);
    let size = || prop::option::of(1u32..=4096);
    let lease = prop::option::of((0..65536u32, 1..u64::MAX / 2));
    (
        (any::<bool>(), any::<bool>(), blocks, text(), text(), text()),
        (
            prop::option::of(any::<u16>()),
            size(),
            size(),
            size(),
            any::<u64>(),
        ),
        // A quarter of a second is exact in either form.
        (
            prop::option::of(0u32..u32::MAX),
            text(),
            any::<u64>(),
            lease,
        ),
    )
        .prop_map(|(a, b, c)| Params {
            do_remote_prefill: a.0,
            do_remote_decode: a.1,
            remote_block_ids: a.2,
            remote_engine_id: a.3,
            remote_request_id: a.4,
            remote_host: a.5,
            remote_port: b.0,
            tp_size: b.1,
            dcp_size: b.2,
            pp_size: b.3,
            remote_num_tokens: b.4,
            remote_blocks_expiry_time: c.0.map(|quarters| f64::from(quarters) / 4.0),
            transfer_mode: c.1,
            remote_registration_generation: c.2,
            kvferry_lease: c.3.map(|(slot, generation)| LeaseRef { slot, generation }),
            ..Params::default()
        })
}

proptest! {
    #[test]
    fn what_is_written_is_read(params in any_params()) {
        let json = params.to_json(Mode::Pull);
        prop_assert_eq!(&read(&json), &params);
        // Another reader agrees about what stands there.
        let value: Value = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(&value["remote_block_ids"], &json!(params.remote_block_ids));
        prop_assert_eq!(&value["remote_host"], &json!(params.remote_host));
    }

    #[test]
    fn noise_is_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Params::from_json(&bytes);
    }
}
