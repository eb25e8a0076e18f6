//! What planning costs as the work grows: `cargo bench --bench plan`.
//!
//! The model has 80 layers with K and V in regions of their own: 160 regions of 8 KiB pages on each
//! rank (16 tokens, 2 heads of 128 elements of 2 bytes).

#![allow(missing_docs)] // criterion_group makes a public function

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kvferry::layout::*;
use kvferry::plan::*;

fn rank(layers: u32, pages: u64, kv_heads: u32, parallel: Parallel) -> Layout {
    let mut b = LayoutBuilder::new(parallel);
    let g = b.attention(GroupKind::Full, 16, 1);
    let shape = DenseShape {
        kv_heads,
        k_head_size: 128,
        v_head_size: 128,
        elem_bytes: 2,
        order: PageOrder::Hnd,
        kv: KvPlacement::Regions,
    };
    for layer in 0..layers {
        let at = |i: u64| Span::host((u64::from(layer) * 2 + i) << 36, pages);
        b.dense(g, layer, shape, &[at(0), at(1)]).expect("sound");
    }
    b.finish().expect("sound")
}

/// One decode rank against a prefill engine of `tp` ranks; pages are 8 KiB on the larger side.
fn engines(layers: u32, pages: u64, tp: u32) -> (Layout, Vec<Layout>) {
    let heads = 2 * tp;
    let remotes = (0..tp)
        .map(|r| rank(layers, pages, heads, Parallel::tp(r, tp)))
        .collect();
    (rank(layers, pages, heads, Parallel::default()), remotes)
}

fn plan_of(layers: u32, tp: u32) -> Plan {
    let (local, remotes) = engines(layers, 40_960, tp);
    Plan::build(&local, &remotes, &PlanOptions::default()).expect("fits")
}

/// Block ids as after long churn: no two neighbours follow each other.
fn scattered(n: u32, seed: u64) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..n).map(|i| i * 17 + 3).collect();
    let mut x = seed;
    for i in (1..ids.len()).rev() {
        x = x
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ids.swap(i, (x >> 33) as usize % (i + 1));
    }
    ids
}

fn build(c: &mut Criterion) {
    let mut group = c.benchmark_group("build");
    for (layers, pages, tp) in [
        (10, 40_960, 1),
        (80, 1_024, 1),
        (80, 40_960, 1),
        (320, 40_960, 1),
        (80, 40_960, 2),
        (80, 40_960, 8),
    ] {
        let (local, remotes) = engines(layers, pages, tp);
        let id = format!("{} regions x {pages} pages, {tp} source ranks", layers * 2);
        group.bench_function(id, |b| {
            b.iter(|| {
                Plan::build(black_box(&local), &remotes, &PlanOptions::default()).expect("fits")
            })
        });
    }
    group.finish();
}

fn runs(c: &mut Criterion) {
    let plan = plan_of(80, 1);
    let mut group = c.benchmark_group("runs, 160 regions");
    for n in [118u32, 512, 2_048, 8_192] {
        let row: Vec<u32> = (0..n).collect();
        let n = n.min(2_400);
        let (local, remote) = (scattered(n, 1), scattered(n, 2));
        for (name, local, remote) in [("contiguous", &row, &row), ("scattered", &local, &remote)] {
            group.throughput(Throughput::Elements(local.len() as u64));
            group.bench_function(BenchmarkId::new(name, local.len()), |b| {
                let groups = [GroupBlocks::new(local, remote)];
                b.iter(|| {
                    plan.runs(black_box(&Request {
                        groups: &groups,
                        tokens: None,
                    }))
                    .expect("fit")
                })
            });
        }
    }
    group.finish();
}

fn expand(c: &mut Criterion) {
    let mut group = c.benchmark_group("runs and expand");
    for (tp, n) in [(1, 118u32), (1, 512), (1, 2_048), (2, 2_048)] {
        let plan = plan_of(80, tp);
        let row: Vec<u32> = (0..n).collect();
        let (local, remote) = (scattered(n, 1), scattered(n, 2));
        for (name, local, remote) in [("contiguous", &row, &row), ("scattered", &local, &remote)] {
            let groups = [GroupBlocks::new(local, remote)];
            let request = Request {
                groups: &groups,
                tokens: None,
            };
            let count = plan.runs(&request).expect("fit").stats().ranges;
            group.throughput(Throughput::Elements(count));
            let id = format!("{n} {name} blocks, {tp} source ranks, {count} ranges");
            group.bench_function(id, |b| {
                let mut out = Vec::new();
                b.iter(|| {
                    let runs = plan.runs(black_box(&request)).expect("fit");
                    runs.expand_into(&mut out).expect("few enough");
                    out.len()
                })
            });
        }
    }
    group.finish();
}

fn form(c: &mut Criterion) {
    let layout = rank(80, 40_960, 8, Parallel::default());
    let bytes = layout.encode().expect("sound");
    let mut group = c.benchmark_group(format!("serialised layout, {} bytes", bytes.len()));
    group.bench_function("encode", |b| {
        b.iter(|| black_box(&layout).encode().expect("sound"))
    });
    group.bench_function("decode", |b| {
        b.iter(|| Layout::decode(black_box(&bytes)).expect("sound"))
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1))
        .sample_size(20)
        .without_plots();
    targets = build, runs, expand, form
}
criterion_main!(benches);
