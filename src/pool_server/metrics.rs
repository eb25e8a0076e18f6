//! Numbers in the text format of Prometheus.

use std::fmt::Write;

use super::pool::Pool;
use super::service::Service;
use crate::block_pool::Stats;

/// Name, type, help, and where the value of a pool comes from.
type OfPool = (&'static str, &'static str, &'static str, fn(&Stats) -> u64);

const OF_POOLS: [OfPool; 16] = [
    ("blocks", "gauge", "Blocks, the null block included.", |s| {
        s.blocks
    }),
    (
        "free_blocks",
        "gauge",
        "Blocks that can be allocated now.",
        |s| s.free,
    ),
    (
        "cached_blocks",
        "gauge",
        "Blocks in the prefix index.",
        |s| s.cached_blocks,
    ),
    (
        "cached_keys",
        "gauge",
        "Different keys in the prefix index.",
        |s| s.cached_keys,
    ),
    (
        "allocations_total",
        "counter",
        "Allocations that succeeded.",
        |s| s.allocations,
    ),
    (
        "refused_allocations_total",
        "counter",
        "Allocations for which too few blocks were free.",
        |s| s.refused_allocations,
    ),
    (
        "allocated_blocks_total",
        "counter",
        "Blocks handed out.",
        |s| s.allocated_blocks,
    ),
    (
        "allocated_runs_total",
        "counter",
        "Runs of adjacent ids they came in.",
        |s| s.allocated_runs,
    ),
    (
        "freed_blocks_total",
        "counter",
        "Blocks that became free.",
        |s| s.freed_blocks,
    ),
    (
        "revived_blocks_total",
        "counter",
        "Free blocks that were touched.",
        |s| s.revived_blocks,
    ),
    ("lookups_total", "counter", "Hashes looked up.", |s| {
        s.lookups
    }),
    ("hits_total", "counter", "Hashes found.", |s| s.hits),
    (
        "stored_keys_total",
        "counter",
        "Keys entered into the prefix index.",
        |s| s.stored_keys,
    ),
    (
        "removed_keys_total",
        "counter",
        "Keys removed from it, except by a reset.",
        |s| s.removed_keys,
    ),
    (
        "resets_total",
        "counter",
        "Resets of the prefix index.",
        |s| s.resets,
    ),
    (
        "lost_events_total",
        "counter",
        "Events that were thrown away.",
        |s| s.lost_events,
    ),
];

/// Everything there is to say, pools in the order of their names.
pub(super) fn text(service: &Service) -> String {
    let mut out = String::new();
    let c = &service.counters;
    // The nameless session is not one of a client.
    let sessions = service.sessions.len() as u64 - 1;
    for (name, kind, help, value) in [
        (
            "requests_total",
            "counter",
            "Requests answered.",
            c.requests,
        ),
        (
            "operations_total",
            "counter",
            "Operations in them.",
            c.operations,
        ),
        ("errors_total", "counter", "Error replies.", c.errors),
        (
            "malformed_requests_total",
            "counter",
            "Requests that could not be read.",
            c.malformed,
        ),
        ("sessions", "gauge", "Sessions that are open.", sessions),
        (
            "sessions_opened_total",
            "counter",
            "Sessions opened.",
            c.sessions_opened,
        ),
        (
            "sessions_expired_total",
            "counter",
            "Sessions that ended because their client was gone.",
            c.sessions_expired,
        ),
        (
            "published_batches_total",
            "counter",
            "Batches of events published.",
            c.published,
        ),
    ] {
        head(&mut out, name, kind, help);
        let _ = writeln!(out, "{PREFIX}{name} {value}");
    }
    let mut pools: Vec<(&String, &Pool)> = service.pools.iter().collect();
    pools.sort_unstable_by_key(|(name, _)| *name);
    let pools: Vec<(String, Stats)> = pools
        .into_iter()
        .map(|(name, pool)| (label(name), pool.blocks.stats()))
        .collect();
    for (name, kind, help, value) in OF_POOLS {
        head(&mut out, &format!("pool_{name}"), kind, help);
        for (pool, stats) in &pools {
            let _ = writeln!(
                out,
                "{PREFIX}pool_{name}{{pool=\"{pool}\"}} {}",
                value(stats)
            );
        }
    }
    out
}

const PREFIX: &str = "kv_cache_server_";

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}"
    );
}

/// A name as the value of a label.
fn label(name: &str) -> String {
    name.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::label;

    #[test]
    fn names_cannot_break_out_of_a_label() {
        assert_eq!(label("a\"} 1\nb\\"), "a\\\"} 1\\nb\\\\");
    }
}
