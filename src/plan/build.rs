//! Two engines' layouts into lanes.
//!
//! `join` finds the pieces that a part of a consumer has in common with a part of a producer; here each
//! becomes the strided copy that moves it. For a pull the consumer is the local rank; for a push each
//! remote rank is one in turn, and of its pieces those from the local rank are kept.

use super::fold::Draft;
use super::group::pools;
use super::join::{Join, Piece, Producers, Rank};
use super::select::facing;
use super::*;
use crate::layout::{GroupKind, Layout, Part};

impl Plan {
    /// Plans transfers between a local rank and the ranks of a remote engine.
    ///
    /// `remotes` are the layouts of the engine's ranks; those that this rank has nothing to do with
    /// may be left out, and the error says which one is needed if too many are. Their order is the
    /// order of [`Plan::peers`].
    ///
    /// # Errors
    /// `InvalidArgument` for a layout that is not sound; `Mismatch`, naming the field and both
    /// values, where the two sides cannot mean the same content.
    pub fn build(local: &Layout, remotes: &[Layout], options: &PlanOptions) -> Result<Plan> {
        local.validate().map_err(|e| e.context("local layout"))?;
        for (i, r) in remotes.iter().enumerate() {
            r.validate()
                .map_err(|e| e.context(format_args!("remotes[{i}]")))?;
        }
        let remote = check_engine(remotes)?;
        check_group_order(local, remotes)?;
        let mut out = PlanBuilder::new(options.direction);
        (out.local, out.remote) = (local.parallel, remote.parallel);
        for geometry in match_groups(local, remotes, options)? {
            out.group(geometry);
        }
        for r in remotes {
            out.peer(Peer {
                tp_rank: r.parallel.tp_rank,
                pp_rank: r.parallel.pp_rank,
                role: PeerRole::Idle,
                notifiers: 0,
            });
        }
        let mut drafts = Vec::new();
        let local = Rank::new(local);
        let remotes: Vec<Rank> = remotes.iter().map(Rank::new).collect();
        match options.direction {
            Direction::Pull => pull(&local, &remotes, &mut out, &mut drafts)?,
            Direction::Push => push(&local, &remotes, &mut out, &mut drafts)?,
        }
        out.lanes_before = drafts.len();
        for lane in fold(drafts, options.merge_lanes) {
            out.lane(lane);
        }
        out.finish()
    }
}

/// Checks that the layouts are of different ranks of one engine; returns the first.
fn check_engine(remotes: &[Layout]) -> Result<&Layout> {
    let Some(first) = remotes.first() else {
        bail!(Status::InvalidArgument, "no remote layouts");
    };
    for (i, r) in remotes.iter().enumerate() {
        let (a, b) = (&first.parallel, &r.parallel);
        for (name, x, y) in [
            ("tp_size", a.tp_size, b.tp_size),
            ("pp_size", a.pp_size, b.pp_size),
            ("dcp_size", a.dcp_size, b.dcp_size),
            ("dcp_interleave", a.dcp_interleave, b.dcp_interleave),
        ] {
            if x != y {
                bail!(
                    Status::Mismatch,
                    "remotes[{i}]: {name} {y}, and {x} in remotes[0]"
                );
            }
        }
        if r.groups != first.groups {
            bail!(
                Status::Mismatch,
                "remotes[{i}]: groups differ from those of remotes[0]"
            );
        }
        let same = |q: &&Layout| (q.parallel.tp_rank, q.parallel.pp_rank) == (b.tp_rank, b.pp_rank);
        if remotes[..i].iter().any(|q| same(&q)) {
            bail!(
                Status::InvalidArgument,
                "remotes[{i}]: tp_rank {} and pp_rank {} are given twice",
                b.tp_rank,
                b.pp_rank
            );
        }
    }
    Ok(first)
}

/// Refuses engines that number their groups differently, which [`match_groups`] and the join would
/// only report as kinds or layers that differ.
///
/// They are not paired by content instead: the block lists of a request come in the order of each
/// engine's groups, and lists of the wrong group are ids like any others.
fn check_group_order(local: &Layout, remotes: &[Layout]) -> Result<()> {
    for (i, group) in local.groups.iter().enumerate() {
        let Some(part) = local.parts.iter().find(|p| p.group as usize == i) else {
            continue;
        };
        let remote = || remotes.iter().flat_map(|r| &r.parts);
        let same = |p: &&Part| (p.layer, p.role) == (part.layer, part.role);
        if remote().any(|p| same(&p) && p.group == part.group) {
            continue;
        }
        if let Some(other) = remote().find(same) {
            let theirs = &remotes[0].groups[other.group as usize];
            bail!(
                Status::Mismatch,
                "layer {}, {} is in group {i} ({}) of the local engine and in group {} ({}) of the \
                 remote one: list the groups of both in the same order",
                part.layer,
                part.role.name(),
                group.kind.name(),
                other.group,
                theirs.kind.name()
            );
        }
    }
    Ok(())
}

/// Pairs the groups by index.
fn match_groups(
    local: &Layout,
    remotes: &[Layout],
    options: &PlanOptions,
) -> Result<Vec<GroupGeometry>> {
    let remote = &remotes[0];
    if local.groups.len() != remote.groups.len() {
        bail!(
            Status::Mismatch,
            "number of groups: local {}, remote {}",
            local.groups.len(),
            remote.groups.len()
        );
    }
    let (local_pools, remote_pools) = (pools(local), pools(remote));
    let mut out = Vec::with_capacity(local.groups.len());
    for (i, (l, r)) in local.groups.iter().zip(&remote.groups).enumerate() {
        if l.kind != r.kind {
            bail!(
                Status::Mismatch,
                "group {i}: kind: local {}, remote {}",
                l.kind.name(),
                r.kind.name()
            );
        }
        for (name, a, b) in [
            ("window", l.window, r.window),
            ("format", l.format, r.format),
        ] {
            if a != b {
                bail!(Status::Mismatch, "group {i}: {name}: local {a}, remote {b}");
            }
        }
        let ours = SideGeometry::of(local, i, l, local_pools[i]);
        let mut theirs = SideGeometry::of(remote, i, r, remote_pools[i]);
        for other in &remotes[1..] {
            theirs.block_count = theirs.block_count.min(other.block_count(i));
        }
        out.push(
            GroupGeometry::new(l.kind, l.window, ours, theirs, options.uneven_blocks)
                .map_err(|e| e.context(format_args!("group {i}")))?,
        );
    }
    Ok(out)
}

/// The local rank takes what it wants from the remote ranks.
fn pull<'a>(
    local: &'a Rank<'a>,
    remotes: &'a [Rank<'a>],
    out: &mut PlanBuilder,
    drafts: &mut Vec<Draft>,
) -> Result<()> {
    let producers = Producers::new(remotes.iter().collect());
    let mut join = Join::new(local, &producers, &out.groups, true);
    let pieces = join.run()?;
    for piece in &pieces {
        let group = &out.groups[piece.mine.group as usize];
        let peer = piece.producer as u32;
        let sides = [
            (local, piece.mine),
            (&remotes[piece.producer], piece.theirs),
        ];
        drafts.push(draft(group, peer, sides, piece));
    }
    out.shares = join.shares(|producer| producer);

    let mine = &local.layout.parallel;
    let readers = join.readers();
    for (i, peer) in out.peers.iter_mut().enumerate() {
        let reads_it = pieces.iter().any(|p| p.producer == i);
        let read_by = readers.as_ref().map_or(usize::from(reads_it), |r| r[i]);
        // A rank that nobody reads hears from the one consumer that it faces.
        let in_charge = facing(peer.tp_rank, out.remote.tp_size, mine.tp_size) == mine.tp_rank;
        peer.role = match (reads_it, read_by) {
            (true, _) => PeerRole::Transfer,
            (false, 0) if in_charge => PeerRole::NotifyOnly,
            _ => PeerRole::Idle,
        };
        peer.notifiers = readers.as_ref().map_or(0, |_| read_by.max(1) as u32);
    }
    Ok(())
}

/// Each remote rank takes what it wants from the local engine; the local rank's lanes are kept.
fn push<'a>(
    local: &'a Rank<'a>,
    remotes: &'a [Rank<'a>],
    out: &mut PlanBuilder,
    drafts: &mut Vec<Draft>,
) -> Result<()> {
    let producers = Producers::new(vec![local]);
    for (i, consumer) in remotes.iter().enumerate() {
        let mut join = Join::new(consumer, &producers, &out.groups, false);
        let pieces = join
            .run()
            .map_err(|e| e.context(format_args!("remotes[{i}]")))?;
        for piece in &pieces {
            let group = &out.groups[piece.mine.group as usize];
            let sides = [(local, piece.theirs), (consumer, piece.mine)];
            drafts.push(draft(group, i as u32, sides, piece));
        }
        out.shares.extend(join.shares(|_| i));
        let writers = join.writers();
        let peer = &mut out.peers[i];
        if !pieces.is_empty() {
            peer.role = PeerRole::Transfer;
        }
        peer.notifiers = writers.unwrap_or(0);
    }
    Ok(())
}

/// The strided copy that moves a piece: `sides` are the local and the remote rank and part.
fn draft(group: &GroupGeometry, peer: u32, sides: [(&Rank, &Part); 2], piece: &Piece) -> Draft {
    let regions = sides.map(|(rank, part)| &rank.layout.regions[part.region as usize]);
    let state = group.kind == GroupKind::State;
    // Rows that one atom has: all of a state, none to choose from in a page that moves whole.
    let whole = sides[0].1.rows == 1;
    let rows = match (state, whole) {
        (true, _) => sides[0].1.rows,
        (false, true) => 1,
        (false, false) => group.atom_tokens(),
    };
    let side = |i: usize| {
        let (region, part) = (regions[i], sides[i].1);
        let atoms = if i == 0 {
            group.local_atoms()
        } else {
            group.remote_atoms()
        };
        LaneSide {
            base: region.base
                + part.offset
                + u64::from(piece.first - part.head_first) * part.head_stride,
            stride: region.page_stride,
            sub_stride: if atoms > 1 {
                u64::from(rows) * part.row_stride
            } else {
                0
            },
            mem: region.mem,
            device: region.device,
        }
    };
    let shard =
        |i: usize, geometry: &SideGeometry| match geometry.dcp_size > 1 && !group.dcp_cancels() {
            true => sides[i].0.layout.parallel.dcp_rank,
            false => 0,
        };
    let repeat = |count: u32, stride: fn(&Part) -> u64| Inner {
        count,
        local_stride: stride(sides[0].1),
        remote_stride: stride(sides[1].1),
    };
    Draft {
        lane: Lane {
            peer,
            group: piece.mine.group,
            local_shard: shard(0, &group.local),
            remote_shard: shard(1, &group.remote),
            local: side(0),
            remote: side(1),
            len: piece.mine.cell_bytes.into(),
            inner: [
                repeat(piece.count, |p| p.head_stride),
                repeat(rows, |p| p.row_stride),
            ],
        },
        regions: (sides[0].1.region, sides[1].1.region),
        single_page: (regions[0].page_count == 1, regions[1].page_count == 1),
    }
}
