//! What was recorded, how it is read, and samples.

use std::sync::LazyLock;

use kvferry::connector::wire::*;
use kvferry::error::{Result, Status};
use serde_json::Value;

pub static RECORDED: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../vllm/data/wire.json")).unwrap());

pub fn recorded(section: &str) -> &'static [Value] {
    let cases = RECORDED[section].as_array().unwrap();
    assert!(!cases.is_empty());
    cases
}

pub fn unhex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    let digits = |i| u8::from_str_radix(&text[i..i + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

pub fn uint(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

pub fn list<T>(value: &Value, each: impl Fn(&Value) -> T) -> Vec<T> {
    value.as_array().unwrap().iter().map(each).collect()
}

pub fn opt<T>(value: &Value, some: impl Fn(&Value) -> T) -> Option<T> {
    (!value.is_null()).then(|| some(value))
}

pub fn pair(value: &Value) -> (u64, u64) {
    (uint(&value[0]), uint(&value[1]))
}

pub fn metadata(fields: &Value) -> AgentMetadata {
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

/// A rank with so many regions.
pub fn sample(regions: usize) -> AgentMetadata {
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

#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T>, status: Status, word: &str) {
    let e = result.unwrap_err();
    assert_eq!(e.status(), status, "{e}");
    assert!(e.message().contains(word), "{e}");
}

pub fn refused_both<T: std::fmt::Debug>(
    encoded: Result<Vec<u8>>,
    decode: impl Fn(&[u8]) -> Result<T>,
    by_hand: &[u8],
    word: &str,
) {
    refused(encoded, Status::InvalidArgument, word);
    refused(decode(by_hand), Status::PeerIncompatible, word);
}
