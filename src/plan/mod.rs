//! Who copies which bytes from whom, and where to: pure functions, no I/O.
//!
//! [`Plan::build`] takes the [`Layout`](crate::layout::Layout)s of a local rank and of the ranks of a
//! remote engine, and makes **lanes**: strided copies that hold for every pair of block ids.
//! [`Plan::runs`] takes the block ids of a request and makes **runs**: neighbouring pairs that one
//! copy can serve. [`Runs::expand`] multiplies the two out into byte ranges. A plan's size depends on
//! the model's shape alone, never on the size of the cache.
//!
//! # How a block id becomes addresses
//!
//! The two sides may count blocks differently: 16 tokens against 32, one page per block against
//! several, tokens spread over ranks. All of it is reduced to **atoms**: the largest runs of tokens
//! that on both sides lie in one page of one rank. A group has one table per side ([`Phase`]) that
//! says where the atoms of a block are. With local blocks of 32 tokens and remote ones of 16:
//!
//! ```text
//! tokens          0        16        32        48        64
//! local blocks    |        5         |         2         |      phases: (page 0, atom 0) (page 0, atom 1)
//! remote blocks   |   7    |   1     |    8    |    4    |      phases: (page 0, atom 0)
//! atom pairs       5.0 <- 7  5.1 <- 1  2.0 <- 8  2.1 <- 4
//! ```
//!
//! A lane turns an atom pair into addresses, `base + page * stride + atom * sub_stride` on each side,
//! and copies `len` bytes there; when the two pages are not arranged alike (head-major against
//! token-major, or a head's tokens that lie closer on one side), it repeats that over up to two inner
//! directions. So bytes go straight to their place, and nothing is re-arranged afterwards.
//!
//! # In files
//!
//! `group` has the geometry of block ids, `select` decides which rank serves which heads,
//! `join` intersects the parts of both sides, `build` turns them into lanes, `fold` makes lanes as few and as long as they can be, `pairs` lays block
//! lists over each other, `runs` merges and expands, `describe` explains.

mod build;
mod describe;
mod fold;
mod group;
mod join;
mod pairs;
mod runs;
mod select;

use std::sync::Arc;

use crate::error::{Error, Result, Status, bail};
use crate::memory::MemKind;

pub use describe::Share;
pub use group::{GroupGeometry, Phase, SideGeometry};
pub use pairs::{Coverage, GroupBlocks, Request};
pub use runs::{Cursor, MAX_EXPANDED, Range, Run, RunStats, Runs};

use fold::fold;

/// Which way the bytes go, seen from the local rank.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u32)]
pub enum Direction {
    /// The local rank reads: it is the consumer.
    #[default]
    Pull = 0,
    /// The local rank writes: it is the producer.
    Push = 1,
}

/// Choices for [`Plan::build`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// Which way the bytes go.
    pub direction: Direction,
    /// Merge lanes that are adjacent in memory on both sides. Off is for comparison; the same bytes
    /// move.
    pub merge_lanes: bool,
    /// Accept block sizes of which neither divides the other (48 and 32), cut down to their greatest
    /// common divisor. Off, because such a pair is far more often a mistake.
    pub uneven_blocks: bool,
}

impl Default for PlanOptions {
    fn default() -> Self {
        PlanOptions {
            direction: Direction::Pull,
            merge_lanes: true,
            uneven_blocks: false,
        }
    }
}

/// What the local rank has to do with a remote rank.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum PeerRole {
    /// Nothing: another local rank deals with it.
    Idle = 0,
    /// Bytes are copied, and it is notified when they are in.
    Transfer = 1,
    /// No bytes, since what it holds is had from another rank; but it keeps the request's blocks until
    /// it hears that they are no longer wanted, and this local rank is the one to tell it.
    NotifyOnly = 2,
}

impl PeerRole {
    /// `idle`, `transfer` or `notify only`.
    pub fn name(self) -> &'static str {
        match self {
            PeerRole::Idle => "idle",
            PeerRole::Transfer => "transfer",
            PeerRole::NotifyOnly => "notify only",
        }
    }
}

/// A remote rank, in the order in which the layouts were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its tensor-parallel rank.
    pub tp_rank: u32,
    /// Its pipeline stage.
    pub pp_rank: u32,
    /// What to do with it.
    pub role: PeerRole,
    /// How many ranks of the local engine notify it about one request (pull), or how many write to it
    /// (push). 0 when that cannot be told from the layouts given: unusual head ranges, pipeline
    /// stages on the side that counts.
    pub notifiers: u32,
}

/// One side of a lane: where atom `a` of page `p` begins is `base + p * stride + a * sub_stride`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneSide {
    /// Address for page 0, atom 0.
    pub base: u64,
    /// Bytes from page to page.
    pub stride: u64,
    /// Bytes from atom to atom within a page.
    pub sub_stride: u64,
    /// Kind of memory.
    pub mem: MemKind,
    /// Device.
    pub device: u64,
}

/// A repetition inside a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// How many times; 1 if this direction is not used.
    pub count: u32,
    /// Bytes between repetitions on the local side.
    pub local_stride: u64,
    /// Bytes between repetitions on the remote side.
    pub remote_stride: u64,
}

impl Inner {
    /// No repetition.
    pub const ONCE: Inner = Inner {
        count: 1,
        local_stride: 0,
        remote_stride: 0,
    };
}

/// A strided copy, for every pair of atoms of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    /// Index of the remote rank in [`Plan::peers`].
    pub peer: u32,
    /// Index of the group whose block ids apply.
    pub group: u32,
    /// Which share of the tokens the local rank keeps, if the group is spread over ranks by decode
    /// context parallelism; else 0.
    pub local_shard: u32,
    /// The same for the remote rank.
    pub remote_shard: u32,
    /// Local addresses.
    pub local: LaneSide,
    /// Remote addresses.
    pub remote: LaneSide,
    /// Bytes of one copy.
    pub len: u64,
    /// Outer and inner repetition.
    pub inner: [Inner; 2],
}

impl Lane {
    /// Copies per atom pair.
    pub fn copies(&self) -> u64 {
        u64::from(self.inner[0].count) * u64::from(self.inner[1].count)
    }
}

/// Lanes that can go into one transfer: same remote rank, same kinds of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Index of the remote rank in [`Plan::peers`].
    pub peer: u32,
    /// Kind of memory on the local side.
    pub local_mem: MemKind,
    /// Kind of memory on the remote side.
    pub remote_mem: MemKind,
    /// First of its lanes in [`Plan::lanes`].
    pub first_lane: u32,
    /// Number of its lanes.
    pub lane_count: u32,
}

/// The lanes between one local rank and a remote engine. Immutable; cloning it is cheap and clones
/// may be used from any thread.
#[derive(Clone, Debug)]
pub struct Plan(Arc<Inside>);

#[derive(Debug)]
struct Inside {
    direction: Direction,
    groups: Vec<GroupGeometry>,
    peers: Vec<Peer>,
    /// Ordered by batch, then group.
    lanes: Vec<Lane>,
    /// For each lane the index of its run list.
    lane_lists: Vec<u32>,
    lists: Vec<runs::ListKey>,
    batches: Vec<Batch>,
    lanes_before: usize,
    shares: Vec<Share>,
    local: crate::layout::Parallel,
    remote: crate::layout::Parallel,
}

impl Plan {
    /// Which way the bytes go.
    pub fn direction(&self) -> Direction {
        self.0.direction
    }

    /// Geometry of the groups, by group index.
    pub fn groups(&self) -> &[GroupGeometry] {
        &self.0.groups
    }

    /// The remote ranks, in the order in which their layouts were given.
    pub fn peers(&self) -> &[Peer] {
        &self.0.peers
    }

    /// All lanes, those of a batch together.
    pub fn lanes(&self) -> &[Lane] {
        &self.0.lanes
    }

    /// The batches.
    pub fn batches(&self) -> &[Batch] {
        &self.0.batches
    }

    /// Number of lanes before adjacent ones were merged.
    pub fn lanes_before_merging(&self) -> usize {
        self.0.lanes_before
    }

    /// Which heads of which roles come from which rank: what the lanes mean.
    pub fn shares(&self) -> &[Share] {
        &self.0.shares
    }
}

/// Collects groups, peers and lanes into a [`Plan`]: what [`Plan::build`] uses, and the way in for
/// engines that know their lanes themselves.
///
/// Lanes are taken as they are: they are checked, not merged.
#[derive(Debug)]
pub struct PlanBuilder {
    direction: Direction,
    groups: Vec<GroupGeometry>,
    peers: Vec<Peer>,
    lanes: Vec<Lane>,
    lanes_before: usize,
    shares: Vec<Share>,
    local: crate::layout::Parallel,
    remote: crate::layout::Parallel,
}

/// Most lanes in a plan.
pub const MAX_LANES: usize = 1 << 22;

impl PlanBuilder {
    /// An empty plan.
    pub fn new(direction: Direction) -> Self {
        PlanBuilder {
            direction,
            groups: Vec::new(),
            peers: Vec::new(),
            lanes: Vec::new(),
            lanes_before: 0,
            shares: Vec::new(),
            local: Default::default(),
            remote: Default::default(),
        }
    }

    /// Adds a group; returns its index. Its [`GroupGeometry::atom_tokens`] are what each copy of a
    /// lane of the group has to move.
    pub fn group(&mut self, geometry: GroupGeometry) -> u32 {
        self.groups.push(geometry);
        self.groups.len() as u32 - 1
    }

    /// Adds a remote rank; returns its index.
    pub fn peer(&mut self, peer: Peer) -> u32 {
        self.peers.push(peer);
        self.peers.len() as u32 - 1
    }

    /// Adds a lane.
    pub fn lane(&mut self, lane: Lane) -> &mut Self {
        self.lanes.push(lane);
        self
    }

    /// Checks that every lane's group and peer exist and that no address it can reach overflows, and
    /// makes the plan.
    pub fn finish(mut self) -> Result<Plan> {
        if self.lanes.len() > MAX_LANES {
            bail!(
                Status::ResourceExhausted,
                "the plan has {} lanes, more than {MAX_LANES}",
                self.lanes.len()
            );
        }
        for (i, lane) in self.lanes.iter().enumerate() {
            self.check_lane(lane)
                .map_err(|e| e.context(format_args!("lanes[{i}]")))?;
        }
        self.lanes_before = self.lanes_before.max(self.lanes.len());
        self.lanes
            .sort_by_key(|l| (l.peer, l.local.mem, l.remote.mem, l.group));
        let mut lists = Vec::new();
        let lane_lists = self
            .lanes
            .iter()
            .map(|lane| {
                let key = runs::ListKey::of(lane, &self.groups[lane.group as usize]);
                let at = lists.iter().position(|k| *k == key).unwrap_or_else(|| {
                    lists.push(key);
                    lists.len() - 1
                });
                at as u32
            })
            .collect();
        let batches = batches(&self.lanes);
        Ok(Plan(Arc::new(Inside {
            direction: self.direction,
            groups: self.groups,
            peers: self.peers,
            lanes: self.lanes,
            lane_lists,
            lists,
            batches,
            lanes_before: self.lanes_before,
            shares: self.shares,
            local: self.local,
            remote: self.remote,
        })))
    }

    fn check_lane(&self, lane: &Lane) -> Result<()> {
        let Some(group) = self.groups.get(lane.group as usize) else {
            bail!(
                Status::InvalidArgument,
                "group {} of {} groups",
                lane.group,
                self.groups.len()
            );
        };
        if lane.peer as usize >= self.peers.len() {
            bail!(
                Status::InvalidArgument,
                "peer {} of {} peers",
                lane.peer,
                self.peers.len()
            );
        }
        if lane.len == 0 {
            bail!(Status::InvalidArgument, "len is 0");
        }
        if lane.inner.iter().any(|i| i.count == 0) {
            bail!(Status::InvalidArgument, "inner count is 0");
        }
        for (name, shard, side) in [
            ("local_shard", lane.local_shard, &group.local),
            ("remote_shard", lane.remote_shard, &group.remote),
        ] {
            if shard >= side.dcp_size {
                bail!(
                    Status::InvalidArgument,
                    "{name} {shard} of {} shares",
                    side.dcp_size
                );
            }
        }
        let local = lane.inner.map(|i| (i.count, i.local_stride));
        let remote = lane.inner.map(|i| (i.count, i.remote_stride));
        reach(
            "local",
            &lane.local,
            &group.local,
            group.local_atoms(),
            local,
            lane.len,
        )?;
        reach(
            "remote",
            &lane.remote,
            &group.remote,
            group.remote_atoms(),
            remote,
            lane.len,
        )
    }
}

/// Refuses a side of a lane whose last byte is beyond the address space.
fn reach(
    name: &str,
    side: &LaneSide,
    geometry: &SideGeometry,
    atoms: u32,
    inner: [(u32, u64); 2],
    len: u64,
) -> Result<()> {
    let pages = geometry
        .block_count
        .saturating_mul(geometry.kernel_blocks.into());
    let steps = [
        (pages.saturating_sub(1).min(u32::MAX.into()), side.stride),
        (u64::from(atoms - 1), side.sub_stride),
        (u64::from(inner[0].0 - 1), inner[0].1),
        (u64::from(inner[1].0 - 1), inner[1].1),
    ];
    let end = steps
        .iter()
        .try_fold(side.base, |at, (count, stride)| {
            at.checked_add(count.checked_mul(*stride)?)
        })
        .and_then(|at| at.checked_add(len));
    match end {
        Some(_) => Ok(()),
        None => Err(Error::invalid(format!(
            "{name} base {:#x}, stride {}, sub_stride {} and len {len} reach beyond the address \
             space over {pages} pages",
            side.base, side.stride, side.sub_stride
        ))),
    }
}

/// Cuts sorted lanes into batches.
fn batches(lanes: &[Lane]) -> Vec<Batch> {
    let mut out: Vec<Batch> = Vec::new();
    for (i, lane) in lanes.iter().enumerate() {
        match out.last_mut() {
            Some(b)
                if (b.peer, b.local_mem, b.remote_mem)
                    == (lane.peer, lane.local.mem, lane.remote.mem) =>
            {
                b.lane_count += 1
            }
            _ => out.push(Batch {
                peer: lane.peer,
                local_mem: lane.local.mem,
                remote_mem: lane.remote.mem,
                first_lane: i as u32,
                lane_count: 1,
            }),
        }
    }
    out
}
