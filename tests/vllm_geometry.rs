//! The regions that stock vLLM makes of tensors are those that we make, and what it moves between two
//! ranks that know each other by their metadata is what we move.
//!
//! `tests/vllm/data/geometry.json` has tensors, metadata and movements as recorded from vLLM's own code;
//! `tests/vllm/record_geometry.py`, which wrote it, says what was driven.

use kvferry::connector::Mode;
use kvferry::connector::geometry::*;
use kvferry::connector::wire::{AgentMetadata, Sizes, handshake_ranks};
use kvferry::layout::{Group, GroupKind, Parallel};
use kvferry::memory::{MemDesc, MemKind};
use kvferry::plan::{GroupBlocks, Plan, PlanOptions, Request};
use moves::{normal, of_ranges};
use serde_json::Value;

#[path = "vllm/moves.rs"]
mod moves;

fn number(value: &Value, key: &str) -> u64 {
    value[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} in {value}"))
}

fn list<T>(value: &Value, each: impl Fn(&Value) -> T) -> Vec<T> {
    let list = value.as_array().unwrap_or_else(|| panic!("{value}"));
    list.iter().map(each).collect()
}

fn numbers(value: &Value) -> Vec<u64> {
    list(value, |v| v.as_u64().unwrap())
}

fn ids(value: &Value) -> Vec<u32> {
    list(value, |v| v.as_u64().unwrap() as u32)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    list(value, text)
}

/// What the recorded worker's metadata was.
fn metadata(m: &Value) -> AgentMetadata {
    let sizes = numbers(&m["ssm_sizes"]);
    let mut packed: Vec<(String, (u64, u64))> = m["packed_member_layouts"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, place)| (name.clone(), (numbers(place)[0], numbers(place)[1])))
        .collect();
    packed.sort();
    AgentMetadata {
        base_addrs: numbers(&m["kv_caches_base_addr"]),
        device_id: number(m, "device_id"),
        num_blocks: number(m, "num_blocks"),
        block_lens: numbers(&m["block_lens"]),
        block_strides: numbers(&m["block_strides"]),
        kv_cache_layout: text(&m["kv_cache_layout"]),
        block_size: number(m, "block_size") as u32,
        ssm_sizes: (sizes[0], sizes[1]),
        attn_backend_name: text(&m["attn_backend_name"]),
        blocks_per_logical: number(m, "physical_blocks_per_logical_kv_block") as u32,
        region_num_blocks: Some(numbers(&m["region_num_blocks"])),
        region_group_ids: Some(list(&m["region_group_ids"], |v| v.as_i64().unwrap())),
        region_names: Some(texts(&m["region_names"])),
        region_mem_types: Some(texts(&m["region_mem_types"])),
        dcp_size: number(m, "dcp_size") as u32,
        pcp_size: number(m, "pcp_size") as u32,
        region_members: list(&m["region_members"], texts),
        packed_member_layouts: packed,
        ..AgentMetadata::default()
    }
}

fn tensor(t: &Value) -> KvTensor {
    let storage = numbers(&t["storage"]);
    let head = || number(t, "head") as u32;
    KvTensor {
        layer: text(&t["layer"]),
        group: number(t, "group") as u32,
        content: match t["content"].as_str().unwrap() {
            "latent" => Content::Latent(head()),
            "heads" => Content::Heads(HeadShape {
                k_size: head(),
                v_size: head(),
                total: 0,
            }),
            _ => {
                let (shapes, elems) = (list(&t["state"], ids), ids(&t["state_elems"]));
                let conv = [shapes[0][0], shapes[0][1]];
                Content::State(
                    StateSizes::of(StateKind::Mamba2, conv, elems[0], &shapes[1], elems[1])
                        .unwrap(),
                )
            }
        },
        address: number(t, "address"),
        storage: MemDesc {
            addr: storage[0],
            len: storage[1],
            device: 0,
        },
        mem: MemKind::Dram,
        dims: list(&t["dims"], |d| (numbers(d)[0], numbers(d)[1])),
        elem_bytes: number(t, "elem") as u32,
        page_bytes: number(t, "page"),
        num_blocks: 0,
    }
}

/// What an engine would hand to `local()`.
fn cache(case: &Value, side: &Value, rank: usize) -> KvCache {
    let mla = text(&case["kind"]).starts_with("mla");
    let ppl = number(side, "ppl") as u32;
    let group = |g: &Value| Group {
        kind: match g[0].as_str().unwrap() {
            "SlidingWindowSpec" | "SlidingWindowMLASpec" => GroupKind::SlidingWindow,
            "MambaSpec" => GroupKind::State,
            _ => GroupKind::Full,
        },
        tokens_per_block: g[1].as_u64().unwrap() as u32,
        kernel_blocks: 0,
        window: g[2].as_u64().unwrap_or(0) as u32,
        format: 0,
    };
    KvCache {
        tensors: list(&side["ranks"][rank]["tensors"], tensor),
        groups: list(&side["groups"], group),
        num_blocks: number(side, "pages"),
        blocks_per_logical: ppl,
        block_tokens: number(side, "block") as u32 / ppl,
        layout: text(&case["layout"]),
        attn_backend: "RECORDED".into(),
        kv_heads: if mla { 1 } else { number(case, "heads") as u32 },
        mla,
        slab: SlabOrder::Cells,
        mode: match case["mode"].as_str() {
            Some("push") => Mode::Push,
            _ => Mode::Pull,
        },
        hybrid: true,
        pcp_size: 1,
    }
}

fn parallel(side: &Value, rank: usize) -> Parallel {
    Parallel::tp(rank as u32, number(side, "tp") as u32)
}

fn all_cases(each: impl Fn(&str, &Value) -> u64) -> u64 {
    let data: Value = serde_json::from_str(include_str!("vllm/data/geometry.json")).unwrap();
    let cases = data["cases"].as_array().unwrap();
    cases
        .iter()
        .map(|case| each(case["name"].as_str().unwrap(), case))
        .sum()
}

#[test]
fn the_same_regions_are_told_as_by_stock_vllm() {
    let regions = all_cases(|name, case| {
        let mut seen = 0;
        for side in [&case["prefill"], &case["decode"]] {
            for rank in 0..number(side, "tp") as usize {
                let made = local(&cache(case, side, rank), parallel(side, rank));
                let mut told = made.unwrap_or_else(|e| panic!("{name}: {e}")).metadata;
                told.packed_member_layouts.sort();
                assert_eq!(told, metadata(&side["ranks"][rank]["metadata"]), "{name}");
                seen += told.base_addrs.len() as u64;
            }
        }
        seen
    });
    assert!(regions > 300, "{regions} regions compared");
}

#[test]
fn every_allocation_is_registered_once() {
    all_cases(|name, case| {
        let made = local(
            &cache(case, &case["prefill"], 0),
            parallel(&case["prefill"], 0),
        )
        .unwrap();
        let storage = numbers(&case["prefill"]["ranks"][0]["tensors"][0]["storage"]);
        let registered: Vec<_> = made
            .memory
            .iter()
            .map(|m| (m.range.addr, m.range.len))
            .collect();
        assert_eq!(registered, [(storage[0], storage[1])], "{name}");
        0
    });
}

#[test]
fn the_same_bytes_move_as_in_stock_vllm() {
    let bytes = all_cases(|name, case| {
        let (prefill, decode) = (&case["prefill"], &case["decode"]);
        let mut bytes = 0;
        for rank in 0..number(decode, "tp") as usize {
            let at = parallel(decode, rank);
            let mine = local(&cache(case, decode, rank), at).unwrap();
            // Those that stock would ask, and no others.
            let (ours, theirs) = (
                Sizes::tp(at.tp_size),
                Sizes::tp(number(prefill, "tp") as u32),
            );
            let peers: Vec<Peer> = handshake_ranks(ours, at.tp_rank, theirs)
                .unwrap()
                .into_iter()
                .map(|r| {
                    let told = metadata(&prefill["ranks"][r as usize]["metadata"]);
                    peer(&mine, &told, parallel(prefill, r as usize))
                        .unwrap_or_else(|e| panic!("{name}: {e}"))
                })
                .collect();
            let layouts: Vec<_> = peers.iter().map(|p| p.layout.clone()).collect();
            let plan = Plan::build(&mine.layout, &layouts, &PlanOptions::default())
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            for (n, request) in case["requests"].as_array().unwrap().iter().enumerate() {
                let theirs = normal(list(&request["ranks"][rank], |m| {
                    <[u64; 4]>::try_from(numbers(m)).unwrap()
                }));
                let ours = planned(&plan, request, &peers[0].groups);
                assert_eq!(ours, theirs, "{name}, decode rank {rank}, request {n}");
                bytes += ours.iter().map(|m| m[3]).sum::<u64>();
            }
        }
        bytes
    });
    // The table was read, and it is not one of empty requests.
    assert!(bytes > 1 << 20, "{bytes} bytes compared");
}

fn planned(plan: &Plan, request: &Value, groups: &[u32]) -> Vec<moves::Move> {
    let (local, remote) = (list(&request["local"], ids), list(&request["remote"], ids));
    let first = ids(&request["first"]);
    let lists: Vec<GroupBlocks> = local
        .iter()
        .zip(groups)
        .zip(first)
        .map(|((local, theirs), first)| GroupBlocks {
            local_first: Some(first),
            ..GroupBlocks::new(local, &remote[*theirs as usize])
        })
        .collect();
    let request = Request {
        groups: &lists,
        tokens: Some(number(request, "tokens")),
    };
    of_ranges(plan, &plan.runs(&request).unwrap().expand().unwrap())
}
