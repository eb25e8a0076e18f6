//! A plan in words: for people as text, for programs as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use super::*;
use crate::layout::{Parallel, Role};

/// Heads that one rank takes from another, in some layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Index of the remote rank in [`Plan::peers`].
    pub peer: u32,
    /// Group.
    pub group: u32,
    /// What is taken.
    pub role: Role,
    /// In how many layers.
    pub layers: u32,
    /// Heads of the model.
    pub heads_total: u32,
    /// First head taken.
    pub head_first: u32,
    /// Number of heads taken.
    pub head_count: u32,
}

/// Figures of the lanes of one peer in one group.
#[derive(Clone, Copy, Default)]
struct Cost {
    lanes: u64,
    copies: u64,
    bytes: u64,
}

impl Plan {
    fn cost(&self, peer: u32, group: u32) -> Cost {
        self.lanes()
            .iter()
            .filter(|l| (l.peer, l.group) == (peer, group))
            .fold(Cost::default(), |c, l| Cost {
                lanes: c.lanes + 1,
                copies: c.copies.saturating_add(l.copies()),
                bytes: c.bytes.saturating_add(l.copies().saturating_mul(l.len)),
            })
    }

    fn verb(&self) -> &'static str {
        match self.direction() {
            Direction::Pull => "reads from",
            Direction::Push => "writes to",
        }
    }

    /// A description for people. The format may change; programs use [`Plan::describe_json`].
    pub fn describe(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_text(&mut out);
        out
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        let (l, r) = (&self.0.local, &self.0.remote);
        writeln!(
            out,
            "rank {} {} an engine of {}",
            rank(l),
            self.verb(),
            size(r)
        )?;
        writeln!(
            out,
            "{} lanes ({} before merging), {} batches",
            self.lanes().len(),
            self.lanes_before_merging(),
            self.batches().len()
        )?;
        for (i, g) in self.groups().iter().enumerate() {
            write!(out, "group {i}: {}", g.kind.name())?;
            if g.kind == crate::layout::GroupKind::State {
                writeln!(out, ", a state per block id")?;
                continue;
            }
            let side = |s: &SideGeometry| {
                let mut t = format!("{} tokens in {} pages", s.tokens_per_block, s.kernel_blocks);
                if s.dcp_size > 1 {
                    let _ = write!(t, " on each of {} ranks", s.dcp_size);
                }
                t
            };
            writeln!(
                out,
                ", a local block is {}, a remote one {}; copied {} tokens at a time",
                side(&g.local),
                side(&g.remote),
                g.atom_tokens()
            )?;
        }
        for (i, p) in self.peers().iter().enumerate() {
            write!(out, "peer {i} (tp_rank {}", p.tp_rank)?;
            if self.0.remote.pp_size > 1 {
                write!(out, ", pp_rank {}", p.pp_rank)?;
            }
            write!(out, "): {}", p.role.name())?;
            match p.notifiers {
                0 => writeln!(out)?,
                n => writeln!(out, ", heard from by {n} local ranks")?,
            }
            for s in self.shares().iter().filter(|s| s.peer == i as u32) {
                let heads = match s.heads_total {
                    1 => "whole".to_string(),
                    n => format!(
                        "heads {}..{} of {n}",
                        s.head_first,
                        s.head_first + s.head_count
                    ),
                };
                writeln!(
                    out,
                    "  group {}: {} of {} layers, {heads}",
                    s.group,
                    s.role.name(),
                    s.layers
                )?;
            }
            for g in 0..self.groups().len() {
                let c = self.cost(i as u32, g as u32);
                if c.lanes > 0 {
                    writeln!(
                        out,
                        "  group {g}: {} lanes; a pair is {} copies, {} bytes",
                        c.lanes, c.copies, c.bytes
                    )?;
                }
            }
        }
        Ok(())
    }

    /// A description for programs. Keys are added, never changed or taken away.
    pub fn describe_json(&self) -> String {
        self.to_json().to_string()
    }

    fn to_json(&self) -> Value {
        let side = |s: &SideGeometry| {
            json!({
                "tokens_per_block": s.tokens_per_block,
                "kernel_blocks": s.kernel_blocks,
                "block_count": s.block_count,
                "dcp_size": s.dcp_size,
                "dcp_interleave": s.dcp_interleave,
                "pool": s.pool,
            })
        };
        let groups: Vec<Value> = self
            .groups()
            .iter()
            .map(|g| {
                json!({
                    "kind": g.kind.name(),
                    "window": g.window,
                    "local": side(&g.local),
                    "remote": side(&g.remote),
                    "atom_tokens": g.atom_tokens(),
                })
            })
            .collect();
        let peers: Vec<Value> = self
            .peers()
            .iter()
            .enumerate()
            .map(|(i, p)| {
                let shares = self
                    .shares()
                    .iter()
                    .filter(|s| s.peer == i as u32)
                    .map(|s| {
                        json!({
                            "group": s.group,
                            "role": s.role.name(),
                            "layers": s.layers,
                            "heads_total": s.heads_total,
                            "head_first": s.head_first,
                            "head_count": s.head_count,
                        })
                    });
                json!({
                    "tp_rank": p.tp_rank,
                    "pp_rank": p.pp_rank,
                    "role": p.role.name(),
                    "notifiers": p.notifiers,
                    "shares": shares.collect::<Vec<_>>(),
                })
            })
            .collect();
        let lane_side = |s: &LaneSide| {
            json!({
                "base": s.base,
                "stride": s.stride,
                "sub_stride": s.sub_stride,
                "mem": s.mem.name(),
                "device": s.device,
            })
        };
        let lanes: Vec<Value> = self
            .lanes()
            .iter()
            .map(|l| {
                let inner = l.inner.map(|i| {
                    json!({
                        "count": i.count,
                        "local_stride": i.local_stride,
                        "remote_stride": i.remote_stride,
                    })
                });
                json!({
                    "peer": l.peer,
                    "group": l.group,
                    "local_shard": l.local_shard,
                    "remote_shard": l.remote_shard,
                    "len": l.len,
                    "inner": inner,
                    "local": lane_side(&l.local),
                    "remote": lane_side(&l.remote),
                })
            })
            .collect();
        json!({
            "direction": match self.direction() {
                Direction::Pull => "pull",
                Direction::Push => "push",
            },
            "local": engine(&self.0.local),
            "remote": engine(&self.0.remote),
            "groups": groups,
            "peers": peers,
            "lanes": lanes,
            "lanes_before_merging": self.lanes_before_merging(),
        })
    }
}

fn engine(p: &Parallel) -> Value {
    json!({
        "tp_rank": p.tp_rank, "tp_size": p.tp_size,
        "pp_rank": p.pp_rank, "pp_size": p.pp_size,
        "dcp_rank": p.dcp_rank, "dcp_size": p.dcp_size,
    })
}

fn rank(p: &Parallel) -> String {
    match p.pp_size {
        1 => format!("{} of {}", p.tp_rank, p.tp_size),
        n => format!("{} of {}, stage {} of {n}", p.tp_rank, p.tp_size, p.pp_rank),
    }
}

fn size(p: &Parallel) -> String {
    let mut out = format!("TP {}", p.tp_size);
    if p.pp_size > 1 {
        let _ = write!(out, ", PP {}", p.pp_size);
    }
    if p.dcp_size > 1 {
        let _ = write!(out, ", DCP {}", p.dcp_size);
    }
    out
}
