//! Engines made of tensors, and what moves between them.

use kvferry::connector::Mode;
use kvferry::connector::geometry::*;
use kvferry::connector::wire::{AgentMetadata, Sizes, handshake_ranks};
use kvferry::layout::{Group, GroupKind, Parallel};
use kvferry::memory::{MemDesc, MemKind};
use kvferry::plan::{Direction, GroupBlocks, PeerRole, Plan, PlanOptions, Request};

/// Allocation `n` of every rank begins here, times `n + 1`.
pub const ALLOCATION: u64 = 1 << 32;

/// One engine: what a rank of it knows, and its shape.
#[derive(Clone)]
pub struct Engine {
    pub tp: u32,
    pub dcp: u32,
    pub pp: u32,
    /// The cache of a rank of this tensor-parallel size and pipeline stage.
    pub cache: fn(&Engine, u32) -> KvCache,
    pub heads: u32,
    pub tokens: u32,
    pub blocks: u64,
    pub layout: &'static str,
    pub mode: Mode,
}

/// Two layers of `heads` heads, as common to most of the examples.
pub fn dense(tp: u32, heads: u32, blocks: u64) -> Engine {
    Engine {
        tp,
        dcp: 1,
        pp: 1,
        cache: |e, _| e.of(&[Group0::Full], 2),
        heads,
        tokens: 16,
        blocks,
        layout: "LBHNC",
        mode: Mode::Pull,
    }
}

/// Two layers of latents.
pub fn mla(tp: u32, dcp: u32, blocks: u64) -> Engine {
    Engine {
        dcp,
        cache: |e, _| e.of(&[Group0::Latent], 2),
        ..dense(tp, 1, blocks)
    }
}

/// Kinds of groups of the examples.
#[derive(Clone, Copy, PartialEq)]
pub enum Group0 {
    Full,
    Window,
    Latent,
    State,
}

impl Engine {
    pub fn parallel(&self, tp_rank: u32, pp_rank: u32) -> Parallel {
        Parallel {
            pp_rank,
            pp_size: self.pp,
            ..Parallel::tp(tp_rank, self.tp).with_dcp(self.dcp, 0)
        }
    }

    pub fn local(&self, tp_rank: u32, pp_rank: u32) -> Local {
        local(
            &(self.cache)(self, pp_rank),
            self.parallel(tp_rank, pp_rank),
        )
        .unwrap()
    }

    pub fn metadata(&self, tp_rank: u32, pp_rank: u32) -> AgentMetadata {
        self.local(tp_rank, pp_rank).metadata
    }

    /// A layer of a kind: head size 16 for K and V, latents of 64, elements of two bytes.
    pub fn tensor(&self, name: &str, group: u32, kind: Group0, allocation: u64) -> KvTensor {
        let address = (allocation + 1) * ALLOCATION;
        let tp = self.tp;
        KvTensor {
            layer: name.to_owned(),
            group,
            content: match kind {
                Group0::Full | Group0::Window => Content::Heads(HeadShape {
                    k_size: 16,
                    v_size: 16,
                    total: 0,
                }),
                Group0::Latent => Content::Latent(64),
                // x of 32 channels, B and C of 8, three rows; 512 bytes of recurrent state.
                Group0::State => Content::State(
                    StateSizes::of(StateKind::Mamba2, [48 / tp, 3], 2, &[4 / tp, 8, 8], 2).unwrap(),
                ),
            },
            address,
            storage: MemDesc {
                addr: address,
                len: 0,
                device: 0,
            },
            mem: MemKind::Dram,
            dims: Vec::new(),
            elem_bytes: 2,
            page_bytes: match kind {
                Group0::State => self.page(),
                _ => 0,
            },
            num_blocks: 0,
        }
    }

    /// Bytes of a block of heads.
    pub fn page(&self) -> u64 {
        u64::from((self.heads / self.tp).max(1) * self.tokens * 64)
    }

    /// `layers` layers dealt out to groups in turn; layer n of each group lies over that of the others.
    pub fn of(&self, kinds: &[Group0], layers: u32) -> KvCache {
        let turns = kinds.len() as u32;
        let tensors = (0..layers).map(|n| {
            let group = n % turns;
            let kind = kinds[group as usize];
            self.tensor(&format!("layers.{n}"), group, kind, (n / turns).into())
        });
        self.cache(kinds, tensors.collect())
    }

    pub fn cache(&self, kinds: &[Group0], tensors: Vec<KvTensor>) -> KvCache {
        let group = |kind: &Group0| Group {
            kind: match kind {
                Group0::Full => GroupKind::Full,
                Group0::Latent => GroupKind::Mla,
                Group0::Window => GroupKind::SlidingWindow,
                Group0::State => GroupKind::State,
            },
            tokens_per_block: self.tokens,
            kernel_blocks: 0,
            window: if *kind == Group0::Window { 32 } else { 0 },
            format: 0,
        };
        KvCache {
            tensors,
            groups: kinds.iter().map(group).collect(),
            num_blocks: self.blocks,
            blocks_per_logical: 1,
            block_tokens: self.tokens,
            layout: self.layout.into(),
            attn_backend: "TEST".into(),
            kv_heads: self.heads,
            mla: kinds == [Group0::Latent],
            slab: SlabOrder::Cells,
            mode: self.mode,
            hybrid: kinds.len() > 1,
            pcp_size: 1,
        }
    }
}

/// Lists of a request: local, remote, blocks before the local list.
pub type Lists<'a> = (&'a [u32], &'a [u32], u32);

/// A plan of one rank against the ranks that it would ask, and the ranks.
pub fn plan(us: &Engine, rank: u32, them: &Engine) -> (Plan, Vec<Peer>) {
    let mine = us.local(rank, 0);
    let sizes = |e: &Engine| Sizes {
        tp: e.tp,
        dcp: e.dcp,
    };
    let peers: Vec<Peer> = handshake_ranks(sizes(us), rank, sizes(them))
        .unwrap()
        .into_iter()
        .map(|r| peer(&mine, &them.metadata(r, 0), them.parallel(r, 0)).unwrap())
        .collect();
    let layouts: Vec<_> = peers.iter().map(|p| p.layout.clone()).collect();
    let direction = match us.mode {
        Mode::Pull => Direction::Pull,
        Mode::Push => Direction::Push,
    };
    let options = PlanOptions {
        direction,
        ..PlanOptions::default()
    };
    (
        Plan::build(&mine.layout, &layouts, &options).unwrap(),
        peers,
    )
}

/// What moves, as (peer, region there, offset there, region here, offset here, bytes): sorted by place here,
/// in pieces that are as long as they can be.
pub fn moved(plan: &Plan, lists: &[Lists], tokens: u64) -> Vec<[u64; 6]> {
    let pull = plan.direction() == Direction::Pull;
    let groups: Vec<GroupBlocks> = lists
        .iter()
        .map(|(local, remote, first)| {
            let state = |x: u32, when: bool| when.then_some(x);
            GroupBlocks {
                local,
                remote,
                local_first: state(*first, pull),
                remote_first: state(*first, !pull),
            }
        })
        .collect();
    let request = Request {
        groups: &groups,
        tokens: Some(tokens),
    };
    let split = |address: u64| (address / ALLOCATION - 1, address % ALLOCATION);
    let mut out: Vec<[u64; 6]> = Vec::new();
    let mut ranges = plan.runs(&request).unwrap().expand().unwrap();
    ranges.sort_unstable_by_key(|r| (r.local, r.peer));
    for r in ranges {
        let (here, there) = (split(r.local), split(r.remote));
        let rank = plan.peers()[r.peer as usize].tp_rank.into();
        match out.last_mut() {
            Some(l)
                if (l[0], l[1], l[3]) == (rank, there.0, here.0)
                    && (l[2] + l[5], l[4] + l[5]) == (there.1, here.1) =>
            {
                l[5] += r.len
            }
            _ => out.push([rank, there.0, there.1, here.0, here.1, r.len]),
        }
    }
    out
}

/// What moves in region 0, and the same must move in region 1: (peer, offset there, offset here, bytes).
pub fn in_each_region(plan: &Plan, lists: &[Lists], tokens: u64) -> Vec<[u64; 4]> {
    let all = moved(plan, lists, tokens);
    let region = |n: u64| -> Vec<[u64; 4]> {
        let of = |m: &&[u64; 6]| (m[1], m[3]) == (n, n);
        all.iter()
            .filter(of)
            .map(|m| [m[0], m[2], m[4], m[5]])
            .collect()
    };
    let (first, second) = (region(0), region(1));
    assert_eq!(first, second, "both regions");
    assert_eq!(first.len() * 2, all.len(), "and no others");
    first
}

/// (peer, role, how many ranks it hears from)
pub fn heard(plan: &Plan) -> Vec<(u32, PeerRole, u32)> {
    plan.peers()
        .iter()
        .map(|p| (p.tp_rank, p.role, p.notifiers))
        .collect()
}
