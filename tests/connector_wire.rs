//! The bytes of stock vLLM: what its own encoders wrote is what ours write, and what ours read.
//!
//! `tests/vllm/data/wire.json` was written by `tests/vllm/record_wire.py` with vLLM's own classes and
//! functions.

use kvferry::connector::Mode;
use kvferry::connector::wire::*;

/// The live hash of docs/wire.md's example.
fn factors() -> CompatFactors {
    CompatFactors {
        vllm_version: "0.32.0".into(),
        connector_version: CONNECTOR_VERSION,
        model: "models/tiny".into(),
        dtype: "torch.float32".into(),
        num_kv_heads: 2,
        head_size: 64,
        num_hidden_layers: 4,
        attn_backend_name: "CPU_ATTN".into(),
        cache_dtype: "auto".into(),
        is_hma_enabled: true,
        speculative: None,
        mode: Mode::Pull,
    }
}

#[test]
fn the_hash_that_was_seen_live() {
    let hash = factors().hash();
    assert!(
        hash.starts_with("79f8e0ca2472") && hash.ends_with("04ea"),
        "{hash}"
    );
}

fn metadata() -> AgentMetadata {
    AgentMetadata {
        engine_id: "e".into(),
        agent_metadata: vec![1, 2, 3],
        base_addrs: vec![1 << 40, 2 << 40],
        num_blocks: 2048,
        block_lens: vec![131072; 2],
        block_strides: vec![131072; 2],
        kv_cache_layout: "LBHNC".into(),
        block_size: 128,
        attn_backend_name: "CPU_ATTN".into(),
        blocks_per_logical: 1,
        dcp_size: 1,
        pcp_size: 1,
        lease_table: Some((4096, 8)),
        ..Default::default()
    }
}

#[test]
fn what_is_written_is_read() {
    let payload = Payload::new(factors().hash(), &metadata()).unwrap();
    let read = Payload::decode(&payload.encode().unwrap()).unwrap();
    assert_eq!(read, payload);
    assert_eq!(read.metadata().unwrap(), metadata());
    for n in [
        Notification::done("a:b:c", 4),
        Notification::Heartbeat(vec!["a".into(), "b".into()]),
    ] {
        assert_eq!(Notification::parse(&n.encode().unwrap()).unwrap(), n);
    }
}
