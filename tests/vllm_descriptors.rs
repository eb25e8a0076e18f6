//! The bytes that stock vLLM moves are the bytes that our plans move.
//!
//! `tests/vllm/data/descriptors.json` has what vLLM's own connector posted for a table of topologies
//! and random requests; `tests/vllm/record_descriptors.py`, which wrote it, says what was driven. Here
//! the same ranks are described with `LayoutBuilder`, and the ranges of the plan are compared with the
//! recorded ones, as sets of (prefill rank, local byte, remote byte): how they are cut is of no account.

use kvferry::layout::*;
use kvferry::plan::*;
use moves::{Move, normal, of_ranges};
use serde_json::Value;

#[path = "vllm/moves.rs"]
mod moves;

/// Region `r` of every rank begins here; pages of a rank's region are far below its length.
const REGION: u64 = 1 << 32;

fn number(value: &Value, key: &str) -> u64 {
    value[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} in {value}"))
}

fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().unwrap();
    list.iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn span(region: u64, side: &Value) -> Span {
    Span::host((region + 1) * REGION, number(side, "pages"))
}

/// What vLLM's rank `rank` of an engine has, in our terms. Layers that share memory are given the same
/// region, as vLLM does.
fn layout(case: &Value, shape: &Value, side: &Value, rank: u32) -> Layout {
    let parallel =
        Parallel::tp(rank, number(side, "tp") as u32).with_dcp(number(side, "dcp") as u32, 0);
    let block = number(side, "block") as u32;
    let mut b = LayoutBuilder::new(parallel);
    let full = b.attention(GroupKind::Full, block, 1);
    let elem_bytes = number(shape, "elem") as u32;
    let head = number(shape, "head") as u32;
    let dense = DenseShape {
        kv_heads: number(case, "heads") as u32,
        k_head_size: head,
        v_head_size: head,
        elem_bytes,
        order: match case["order"].as_str() {
            Some("HND") => PageOrder::Hnd,
            _ => PageOrder::Nhd,
        },
        kv: KvPlacement::Cells,
    };
    match case["kind"].as_str().unwrap() {
        "mla" => {
            let latent = LatentShape {
                size: number(shape, "latent") as u32,
                elem_bytes,
                role: Role::LATENT,
            };
            for layer in 0..2 {
                b.latent(full, layer, latent, span(layer.into(), side))
                    .unwrap();
            }
        }
        "dense" => {
            for layer in 0..2 {
                b.dense(full, layer, dense, &[span(layer.into(), side)])
                    .unwrap();
            }
        }
        "window" => {
            let window = b.group(Group {
                kind: GroupKind::SlidingWindow,
                tokens_per_block: block,
                kernel_blocks: 1,
                window: 2 * block,
                format: 0,
            });
            for layer in 0..4 {
                let group = [full, window][layer as usize % 2];
                b.dense(group, layer, dense, &[span(u64::from(layer) / 2, side)])
                    .unwrap();
            }
        }
        "mamba" => {
            b.dense(full, 0, dense, &[span(0, side)]).unwrap();
            let sub = |channels| SubProjection {
                units: channels,
                channels_per_unit: 1,
            };
            let state = StateShape {
                conv: vec![sub(32), sub(8), sub(8)],
                conv_rows: 3,
                conv_elem_bytes: elem_bytes,
                conv_order: ConvOrder::ChannelsFirst,
                ssm_heads: 4,
                ssm_head_bytes: 8 * 8 * elem_bytes,
                ssm_elem_bytes: elem_bytes,
            };
            let group = b.state_group();
            // The state lies over the pages of the attention layer and keeps their distance.
            let heads = (dense.kv_heads / parallel.tp_size).max(1);
            let mut states = span(0, side);
            states.page_stride = u64::from(heads * block * 2 * head * elem_bytes);
            b.state(group, 1, &state, states).unwrap();
        }
        kind => panic!("kind {kind}"),
    }
    b.finish().unwrap()
}

fn recorded(moves: &Value) -> Vec<Move> {
    let one = |m: &Value| {
        let m = m.as_array().unwrap();
        let [rank, region, local, remote, len] = [0, 1, 2, 3, 4].map(|i| m[i].as_u64().unwrap());
        let base = (region + 1) * REGION;
        [rank, base + local, base + remote, len]
    };
    normal(moves.as_array().unwrap().iter().map(one).collect())
}

fn planned(plan: &Plan, request: &Value) -> Vec<Move> {
    let lists =
        |key: &str| -> Vec<Vec<u32>> { request[key].as_array().unwrap().iter().map(ids).collect() };
    let (local, remote) = (lists("local"), lists("remote"));
    let groups: Vec<GroupBlocks> = local
        .iter()
        .zip(&remote)
        .enumerate()
        .map(|(g, (local, remote))| GroupBlocks {
            // Only for the first group is it known where the list begins; the others are positioned by
            // where they end, or are state.
            local_first: (g == 0).then(|| ids(&request["first"])[0]),
            remote_first: (g == 0).then_some(0),
            ..GroupBlocks::new(local, remote)
        })
        .collect();
    let runs = plan.runs(&Request {
        groups: &groups,
        tokens: Some(number(request, "tokens")),
    });
    let ranges = runs.unwrap().expand().unwrap();
    of_ranges(plan, &ranges)
}

#[test]
fn the_same_bytes_move_as_in_stock_vllm() {
    let data: Value = serde_json::from_str(include_str!("vllm/data/descriptors.json")).unwrap();
    let mut bytes = 0;
    for case in data["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let ranks = |side: &str| -> Vec<Layout> {
            let side = &case[side];
            (0..number(side, "tp") as u32)
                .map(|rank| layout(case, &data["shape"], side, rank))
                .collect()
        };
        let prefill = ranks("prefill");
        for (rank, decode) in ranks("decode").iter().enumerate() {
            let plan = Plan::build(decode, &prefill, &PlanOptions::default())
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            for (number, request) in case["requests"].as_array().unwrap().iter().enumerate() {
                let theirs = recorded(&request["ranks"][rank]);
                let ours = planned(&plan, request);
                assert_eq!(ours, theirs, "{name}, decode rank {rank}, request {number}");
                bytes += ours.iter().map(|m| m[3]).sum::<u64>();
            }
        }
    }
    // The table was read, and it is not one of empty requests.
    assert!(bytes > 1 << 20, "{bytes} bytes compared");
}
