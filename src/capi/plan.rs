//! Plans: who copies which bytes from whom.

use std::sync::Arc;

use once_cell::sync::Lazy;

use super::guard::{guard, guard_or};
use super::handle::Table;
use super::input::{Plain, bounded, flag, nonzero, opt_out, options, out};
use super::layout::{LAYOUTS, is_json, kvf_layout, zero};
use super::output::{self, give, kvf_buffer, take};
use super::status::kvf_status;
use crate::error::{Error, Result};
use crate::layout::{GroupKind, Layout, MAX_GROUPS, MAX_RANKS};
use crate::memory::MemKind;
use crate::plan::{
    Coverage, Direction, GroupBlocks, GroupGeometry, Inner, Lane, LaneSide, MAX_LANES, Peer,
    PeerRole, Plan, PlanBuilder, PlanOptions, Range, Request, SideGeometry,
};

/// The local rank reads: it is the consumer.
pub const KVF_DIRECTION_PULL: u32 = 0;
/// The local rank writes: it is the producer.
pub const KVF_DIRECTION_PUSH: u32 = 1;

/// Nothing to do with it: another local rank deals with it.
pub const KVF_PEER_IDLE: u32 = 0;
/// Bytes are copied, and it is notified when they are in.
pub const KVF_PEER_TRANSFER: u32 = 1;
/// No bytes, since what it holds is had from another rank; but it keeps a request's blocks until it
/// hears that they are no longer wanted, and this local rank is the one to tell it.
pub const KVF_PEER_NOTIFY_ONLY: u32 = 2;

/// The copies between one local rank and a remote engine. All zero is the null handle.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct kvf_plan {
    /// Opaque. Zero is null.
    pub id: u64,
}

/// Choices for `kvf_plan_build()`. Start from `kvf_plan_options_default()`; zero is the default of
/// every field.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_plan_options {
    /// `sizeof(kvf_plan_options)`.
    pub struct_size: u32,
    /// One of `KVF_DIRECTION_…`: which way the bytes go, seen from the local rank.
    pub direction: u32,
    /// 1 leaves lanes that are adjacent in memory as they are, for comparison; the same bytes move.
    pub keep_lanes: u8,
    /// 1 accepts block sizes of which neither divides the other (48 and 32 tokens). They are refused
    /// otherwise, because such a pair is far more often a mistake.
    pub uneven_blocks: u8,
    /// Zero.
    pub reserved: [u8; 6],
}

// SAFETY: integers only.
unsafe impl Plain for kvf_plan_options {
    const FIRST_SIZE: usize = 16;
}

/// One side's block ids of a group.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct kvf_group_side {
    /// Tokens that a rank keeps of one block; for state groups 1.
    pub tokens_per_block: u32,
    /// Pages of one block; 0 is 1.
    pub kernel_blocks: u32,
    /// Over how many ranks a block's tokens are spread; 0 is 1, which is not at all.
    pub dcp_size: u32,
    /// Tokens that go to one rank before the next rank's turn; 0 is one whole block.
    pub dcp_interleave: u32,
    /// Groups of one side with the same number draw their block ids from one pool, so that one id in
    /// two of them is the same memory.
    pub pool: u32,
    /// Zero.
    pub reserved: u32,
    /// Number of valid block ids.
    pub block_count: u64,
}

/// A group on both sides.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct kvf_group_geometry {
    /// One of `KVF_GROUP_…`.
    pub kind: u32,
    /// Tokens of the window or chunk; 0 for other kinds, and where lists are never cut.
    pub window: u32,
    /// Tokens that a lane of the group copies at a time: the longest run that lies in one page of one
    /// rank on both sides. Follows from the rest, and is not looked at on the way in.
    pub atom_tokens: u32,
    /// Zero.
    pub reserved: u32,
    /// The local side.
    pub local: kvf_group_side,
    /// The remote side.
    pub remote: kvf_group_side,
}

/// A remote rank.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct kvf_peer {
    /// Its tensor-parallel rank.
    pub tp_rank: u32,
    /// Its pipeline stage.
    pub pp_rank: u32,
    /// One of `KVF_PEER_…`: what the local rank has to do with it.
    pub role: u32,
    /// How many ranks of the local engine notify it about one request (pull), or how many write to
    /// it (push). 0 when that cannot be told from the layouts given.
    pub notifiers: u32,
}

/// One side of a lane: atom `a` of page `p` begins at `base + p * stride + a * sub_stride`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct kvf_lane_side {
    /// Address for page 0, atom 0.
    pub base: u64,
    /// Bytes from page to page.
    pub stride: u64,
    /// Bytes from atom to atom within a page.
    pub sub_stride: u64,
    /// Device; see `KVF_MEM_…`.
    pub device: u64,
    /// One of `KVF_MEM_…`.
    pub mem_kind: u32,
    /// Zero.
    pub reserved: u32,
}

/// A repetition inside a lane.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct kvf_lane_inner {
    /// Bytes between repetitions on the local side.
    pub local_stride: u64,
    /// Bytes between repetitions on the remote side.
    pub remote_stride: u64,
    /// How many times; 0 is 1.
    pub count: u32,
    /// Zero.
    pub reserved: u32,
}

/// A strided copy, made for every pair of atoms of its group.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct kvf_lane {
    /// Index of the remote rank.
    pub peer: u32,
    /// Index of the group whose block ids apply.
    pub group: u32,
    /// Which share of the tokens the local rank keeps, if its side of the group is spread over ranks;
    /// else 0.
    pub local_shard: u32,
    /// The same for the remote rank.
    pub remote_shard: u32,
    /// Bytes of one copy.
    pub len: u64,
    /// Local addresses.
    pub local: kvf_lane_side,
    /// Remote addresses.
    pub remote: kvf_lane_side,
    /// Outer and inner repetition.
    pub inner: [kvf_lane_inner; 2],
}

/// A plan of the caller's own making, for engines that know their copies themselves. Start from
/// `kvf_plan_custom_default()`; zero is the default of every field.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_plan_custom {
    /// `sizeof(kvf_plan_custom)`.
    pub struct_size: u32,
    /// One of `KVF_DIRECTION_…`: which way the bytes go, seen from the local rank.
    pub direction: u32,
    /// Groups: what block ids mean on both sides.
    pub groups: *const kvf_group_geometry,
    /// Their number.
    pub groups_len: usize,
    /// Remote ranks.
    pub peers: *const kvf_peer,
    /// Their number.
    pub peers_len: usize,
    /// Lanes. They are checked, not merged.
    pub lanes: *const kvf_lane,
    /// Their number.
    pub lanes_len: usize,
    /// 1 accepts block sizes of which neither divides the other.
    pub uneven_blocks: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

// SAFETY: integers and raw pointers only.
unsafe impl Plain for kvf_plan_custom {
    const FIRST_SIZE: usize = 64;
}

/// The tables of a plan. Free with `kvf_plan_tables_free()`.
#[repr(C)]
#[derive(Debug)]
pub struct kvf_plan_tables {
    /// One of `KVF_DIRECTION_…`.
    pub direction: u32,
    /// Transfers of one request at least, if it moves anything: peers times kinds of memory.
    pub batches: u32,
    /// Number of lanes before those that are adjacent in memory were merged.
    pub lanes_before: u64,
    /// Groups, in the order in which block ids are given.
    pub groups: *mut kvf_group_geometry,
    /// Their number.
    pub groups_len: usize,
    /// Remote ranks, in the order in which their layouts were given.
    pub peers: *mut kvf_peer,
    /// Their number.
    pub peers_len: usize,
    /// Lanes, in the order to which `kvf_range` refers.
    pub lanes: *mut kvf_lane,
    /// Their number.
    pub lanes_len: usize,
}

/// The block ids of one group of a request.
///
/// Ids are logical blocks, in the order of their tokens; those of the side that is written must all
/// differ. A list may begin later than the request: the consumer lists only what it does not have
/// yet, and windowed groups only what is still in the window. Where a list begins is stated
/// (`local_first`), or follows from the number of tokens, or else the lists end together and the
/// producer's starts at the first token. A group whose consumer lists nothing is left out. States
/// pair one to one.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_group_blocks {
    /// Block ids on the local rank.
    pub local: *const u32,
    /// Their number.
    pub local_len: usize,
    /// Block ids on the remote ranks; the same on each of them.
    pub remote: *const u32,
    /// Their number.
    pub remote_len: usize,
    /// How many blocks of the request come before the first of `local`, if `has_local_first` is 1.
    pub local_first: u32,
    /// How many blocks of the request come before the first of `remote`, if `has_remote_first` is 1.
    pub remote_first: u32,
    /// 1 if `local_first` is stated.
    pub has_local_first: u8,
    /// 1 if `remote_first` is stated.
    pub has_remote_first: u8,
    /// Zero.
    pub reserved: [u8; 6],
}

/// One copy of a request: `len` bytes between two addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct kvf_range {
    /// Index of the remote rank.
    pub peer: u32,
    /// Index of the lane, which has the memory kinds and devices.
    pub lane: u32,
    /// Local address.
    pub local: u64,
    /// Remote address.
    pub remote: u64,
    /// Bytes.
    pub len: u64,
}

/// Copies of a request. Free with `kvf_range_list_free()`.
#[repr(C)]
#[derive(Debug)]
pub struct kvf_range_list {
    /// `len` ranges, or NULL.
    pub items: *mut kvf_range,
    /// Their number.
    pub len: usize,
}

/// What of a group's destination blocks a request fills. Positions count tokens of the request; in
/// state groups, blocks.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct kvf_coverage {
    /// First position that is copied.
    pub first: u64,
    /// One past the last position that is copied.
    pub end: u64,
    /// Positions at the beginning of the first destination block that are not copied: outside the
    /// window.
    pub missing_head: u64,
    /// Positions at the end of the last destination block that are not copied: the producer has not
    /// got them. Their bytes are what they were before.
    pub missing_tail: u64,
}

/// Figures of one request.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct kvf_expand_stats {
    /// Bytes to move.
    pub bytes: u64,
    /// Ranges if neighbouring blocks were not merged.
    pub ranges_before: u64,
    /// Ranges.
    pub ranges: u64,
    /// Zero.
    pub reserved: u64,
}

pub(super) static PLANS: Lazy<Table<Plan>> = Lazy::new(|| Table::new(6, "plan"));

/// Plans the transfers between a local rank and the ranks of a remote engine: any two layouts of one
/// model. The plan holds for every request between the two; its size depends on the model's shape,
/// not on the cache. It keeps nothing of the layouts. Any thread.
///
/// @param local    The layout of this rank.
/// @param remotes  The layouts of the engine's ranks. Those that this rank has nothing to do with
///                 may be left out; the error says which is needed if too many are. Their order is
///                 that of the plan's peers.
/// @param options  May be NULL.
/// @param plan     Receives the handle; end it with `kvf_plan_destroy()`.
/// @return `KVF_ERR_MISMATCH`, naming the field and both values, where the two sides cannot mean the
///         same content.
///
/// # Safety
/// Pointers are valid as the header's conventions say; this holds for all functions below.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_plan_build(
    local: kvf_layout,
    remotes: *const kvf_layout,
    remotes_len: usize,
    options: *const kvf_plan_options,
    plan: *mut kvf_plan,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract, here and in every block below of this file.
        let (remotes, options, plan) = unsafe {
            (
                bounded(remotes, remotes_len, MAX_RANKS as usize, "remotes")?,
                plan_options(options)?,
                out(plan, "plan")?,
            )
        };
        let local = LAYOUTS.get(local.id).map_err(|e| e.context("local"))?;
        let remotes = remotes
            .iter()
            .enumerate()
            .map(|(i, r)| {
                let layout = LAYOUTS.get(r.id);
                let layout = layout.map_err(|e| e.context(format_args!("remotes[{i}]")))?;
                Ok(Layout::clone(&layout))
            })
            .collect::<Result<Vec<Layout>>>()?;
        let made = Plan::build(&local, &remotes, &options)?;
        plan.write(kvf_plan {
            id: PLANS.insert(Arc::new(made))?,
        });
        Ok(())
    })
}

/// A plan of the caller's own lanes. Any thread.
///
/// @param custom  Borrowed; not NULL.
/// @param plan    Receives the handle; end it with `kvf_plan_destroy()`.
/// @return `KVF_ERR_INVALID_ARGUMENT`, naming the field and its value, for a lane whose group, peer
///         or share is not there, or whose last byte is beyond the address space.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_plan_create(
    custom: *const kvf_plan_custom,
    plan: *mut kvf_plan,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let plan = unsafe { out(plan, "plan") }?;
        if custom.is_null() {
            return Err(Error::invalid("custom is NULL"));
        }
        // SAFETY: as above.
        let made = unsafe { from_custom(custom) }?;
        plan.write(kvf_plan {
            id: PLANS.insert(Arc::new(made))?,
        });
        Ok(())
    })
}

/// Ends a plan. Requests that have been submitted with it go on. Any thread.
///
/// @return `KVF_ERR_INVALID_HANDLE` if it was destroyed before, which is harmless.
#[unsafe(no_mangle)]
pub extern "C" fn kvf_plan_destroy(plan: kvf_plan) -> kvf_status {
    guard(|| PLANS.remove(plan.id).map(drop))
}

/// The plan in words: who reads which heads of what from whom, in how many copies. Any thread.
///
/// @param format  One of `KVF_DESCRIBE_…`.
/// @param text    Free with `kvf_buffer_free()`.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_plan_describe(
    plan: kvf_plan,
    format: u32,
    text: *mut kvf_buffer,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let text = unsafe { out(text, "text") }?;
        let json = is_json(format)?;
        let plan = PLANS.get(plan.id)?;
        text.write(output::buffer(match json {
            true => plan.describe_json(),
            false => plan.describe(),
        }));
        Ok(())
    })
}

/// Takes the tables out: groups, peers and their roles, lanes. Any thread.
///
/// @param tables  Free with `kvf_plan_tables_free()`.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_plan_tables_get(
    plan: kvf_plan,
    tables: *mut kvf_plan_tables,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let tables = unsafe { out(tables, "tables") }?;
        tables.write(to_tables(&*PLANS.get(plan.id)?));
        Ok(())
    })
}

/// Frees the tables and zeroes the struct; otherwise, also for threads, as `kvf_buffer_free()`.
///
/// # Safety
/// As for `kvf_buffer_free()`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_plan_tables_free(tables: *mut kvf_plan_tables) {
    guard_or((), || {
        // SAFETY: NULL or valid by contract.
        let Some(t) = (unsafe { tables.as_mut() }) else {
            return;
        };
        // SAFETY: made by `to_tables`, by contract not changed.
        unsafe {
            drop(take(&mut t.groups, &mut t.groups_len));
            drop(take(&mut t.peers, &mut t.peers_len));
            drop(take(&mut t.lanes, &mut t.lanes_len));
        }
        (t.direction, t.batches, t.lanes_before) = (0, 0, 0);
    });
}

/// Turns the block ids of a request into exactly the ranges that are copied. A queue does this by
/// itself; it is here for engines that post transfers of their own, and for whoever wants to see.
/// Ranges of one peer and kind of memory are together; neighbours that follow each other on both
/// sides are one. Any thread.
///
/// @param groups    One entry for each group of the plan.
/// @param tokens    Tokens of the request that the producer holds, from the first one; 0 is "not
///                  stated".
/// @param coverage  Receives `groups_len` entries: what of the destination blocks is filled. May be
///                  NULL.
/// @param stats     Receives the figures. May be NULL.
/// @param ranges    Free with `kvf_range_list_free()`. May be NULL, for the figures alone.
/// @return `KVF_ERR_INVALID_ARGUMENT` for ids out of range, a destination block that occurs twice, a
///         position that cannot be inferred; `KVF_ERR_MISMATCH` for counts that do not fit, or a
///         consumer's block that the producer's list does not cover;
///         `KVF_ERR_RESOURCE_EXHAUSTED` for more than 16,777,216 ranges.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_plan_expand(
    plan: kvf_plan,
    groups: *const kvf_group_blocks,
    groups_len: usize,
    tokens: u64,
    coverage: *mut kvf_coverage,
    stats: *mut kvf_expand_stats,
    ranges: *mut kvf_range_list,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (groups, coverage, stats, ranges) = unsafe {
            (
                group_blocks(groups, groups_len, "groups")?,
                opt_out(coverage, "coverage")?.map(|first| first.as_mut_ptr()),
                opt_out(stats, "stats")?,
                opt_out(ranges, "ranges")?,
            )
        };
        let plan = PLANS.get(plan.id)?;
        let runs = plan.runs(&Request {
            groups: &groups,
            tokens: nonzero(tokens),
        })?;
        if let Some(ranges) = ranges {
            let (items, len) = give(runs.expand()?.iter().map(range).collect());
            ranges.write(kvf_range_list { items, len });
        }
        if let Some(first) = coverage {
            for (i, c) in runs.coverage().iter().enumerate() {
                // SAFETY: room for one entry for each group by the caller's contract, and `runs` has
                // checked that there are as many as the plan has.
                unsafe { first.add(i).write(covered(c)) };
            }
        }
        if let Some(stats) = stats {
            let s = runs.stats();
            stats.write(kvf_expand_stats {
                bytes: s.bytes,
                ranges_before: s.ranges_before,
                ranges: s.ranges,
                reserved: 0,
            });
        }
        Ok(())
    })
}

/// Frees the ranges and zeroes the struct; otherwise, also for threads, as `kvf_buffer_free()`.
///
/// # Safety
/// As for `kvf_buffer_free()`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_range_list_free(list: *mut kvf_range_list) {
    guard_or((), || {
        // SAFETY: NULL or valid by contract.
        let Some(l) = (unsafe { list.as_mut() }) else {
            return;
        };
        // SAFETY: made by `kvf_plan_expand`, by contract not changed.
        drop(unsafe { take(&mut l.items, &mut l.len) });
    });
}

/// The block ids of a request as C hands them over. On the way of every submit: text is made only
/// for errors.
///
/// # Safety
/// As for [`bounded`], and the pointers in the elements are valid.
pub(super) unsafe fn group_blocks<'a>(
    ptr: *const kvf_group_blocks,
    len: usize,
    what: &str,
) -> Result<Vec<GroupBlocks<'a>>> {
    // SAFETY: by contract, here and below.
    let groups = unsafe { bounded(ptr, len, MAX_GROUPS, what) }?;
    let mut lists = Vec::with_capacity(groups.len());
    for (i, g) in groups.iter().enumerate() {
        // SAFETY: by contract.
        let blocks = unsafe { blocks(g) };
        lists.push(blocks.map_err(|e| e.context(format_args!("{what}[{i}]")))?);
    }
    Ok(lists)
}

/// Most block ids in one list: what 32-bit page numbers can name.
const MAX_IDS: usize = u32::MAX as usize;

/// # Safety
/// The pointers in it are valid.
unsafe fn blocks<'a>(g: &kvf_group_blocks) -> Result<GroupBlocks<'a>> {
    if g.reserved != [0; 6] {
        return Err(Error::invalid("reserved is not zero"));
    }
    // SAFETY: by contract.
    let (local, remote) = unsafe {
        (
            bounded(g.local, g.local_len, MAX_IDS, "local")?,
            bounded(g.remote, g.remote_len, MAX_IDS, "remote")?,
        )
    };
    let local_first = flag(g.has_local_first, "has_local_first")?.then_some(g.local_first);
    let remote_first = flag(g.has_remote_first, "has_remote_first")?.then_some(g.remote_first);
    // A position that is filled in and not stated would otherwise be ignored in silence.
    for (stated, value, name) in [
        (local_first, g.local_first, "local_first"),
        (remote_first, g.remote_first, "remote_first"),
    ] {
        if stated.is_none() && value != 0 {
            return Err(Error::invalid(format!(
                "{name} is {value}, but has_{name} is 0"
            )));
        }
    }
    Ok(GroupBlocks {
        local,
        remote,
        local_first,
        remote_first,
    })
}

/// # Safety
/// `ptr` is null or valid.
unsafe fn plan_options(ptr: *const kvf_plan_options) -> Result<PlanOptions> {
    // SAFETY: by contract.
    let o = unsafe { options(ptr, "options") }?;
    if o.reserved != [0; 6] {
        return Err(Error::invalid("options.reserved is not zero"));
    }
    Ok(PlanOptions {
        direction: direction(o.direction, "options.direction")?,
        merge_lanes: !flag(o.keep_lanes, "options.keep_lanes")?,
        uneven_blocks: flag(o.uneven_blocks, "options.uneven_blocks")?,
    })
}

fn direction(code: u32, what: &str) -> Result<Direction> {
    match code {
        KVF_DIRECTION_PULL => Ok(Direction::Pull),
        KVF_DIRECTION_PUSH => Ok(Direction::Push),
        _ => Err(Error::invalid(format!(
            "{what} {code} is not a KVF_DIRECTION_ value"
        ))),
    }
}

/// # Safety
/// `ptr` is not null; it and what it points to are valid.
unsafe fn from_custom(ptr: *const kvf_plan_custom) -> Result<Plan> {
    // SAFETY: by contract, here and below.
    let c = unsafe { options(ptr, "custom") }?;
    if c.reserved != [0; 7] {
        return Err(Error::invalid("custom.reserved is not zero"));
    }
    // SAFETY: by contract.
    let (groups, peers, lanes) = unsafe {
        (
            bounded(c.groups, c.groups_len, MAX_GROUPS, "custom.groups")?,
            bounded(c.peers, c.peers_len, MAX_RANKS as usize, "custom.peers")?,
            bounded(c.lanes, c.lanes_len, MAX_LANES, "custom.lanes")?,
        )
    };
    let uneven = flag(c.uneven_blocks, "custom.uneven_blocks")?;
    let mut builder = PlanBuilder::new(direction(c.direction, "custom.direction")?);
    for (i, g) in groups.iter().enumerate() {
        let made = geometry(g, uneven);
        builder.group(made.map_err(|e| e.context(format_args!("custom.groups[{i}]")))?);
    }
    for (i, p) in peers.iter().enumerate() {
        builder.peer(peer(p).map_err(|e| e.context(format_args!("custom.peers[{i}]")))?);
    }
    for (i, l) in lanes.iter().enumerate() {
        builder.lane(lane(l).map_err(|e| e.context(format_args!("custom.lanes[{i}]")))?);
    }
    builder.finish().map_err(|e| e.context("custom"))
}

fn geometry(g: &kvf_group_geometry, uneven: bool) -> Result<GroupGeometry> {
    zero(g.reserved.into(), "reserved")?;
    let kind = GroupKind::from_code(g.kind)?;
    let side = |s: &kvf_group_side, name: &str| {
        zero(s.reserved.into(), name)?;
        let tokens_per_block = match kind {
            GroupKind::State => nonzero(s.tokens_per_block).unwrap_or(1),
            _ => s.tokens_per_block,
        };
        Ok(SideGeometry {
            tokens_per_block,
            kernel_blocks: nonzero(s.kernel_blocks).unwrap_or(1),
            block_count: s.block_count,
            dcp_size: nonzero(s.dcp_size).unwrap_or(1),
            dcp_interleave: nonzero(s.dcp_interleave).unwrap_or(tokens_per_block),
            pool: s.pool,
        })
    };
    let (local, remote) = (
        side(&g.local, "local.reserved")?,
        side(&g.remote, "remote.reserved")?,
    );
    GroupGeometry::new(kind, g.window, local, remote, uneven)
}

fn peer(p: &kvf_peer) -> Result<Peer> {
    Ok(Peer {
        tp_rank: p.tp_rank,
        pp_rank: p.pp_rank,
        role: match p.role {
            KVF_PEER_IDLE => PeerRole::Idle,
            KVF_PEER_TRANSFER => PeerRole::Transfer,
            KVF_PEER_NOTIFY_ONLY => PeerRole::NotifyOnly,
            n => return Err(Error::invalid(format!("role {n} is not a KVF_PEER_ value"))),
        },
        notifiers: p.notifiers,
    })
}

fn lane(l: &kvf_lane) -> Result<Lane> {
    let side = |s: &kvf_lane_side, name: &str| {
        zero(s.reserved.into(), name)?;
        Ok::<_, Error>(LaneSide {
            base: s.base,
            stride: s.stride,
            sub_stride: s.sub_stride,
            mem: MemKind::from_code(s.mem_kind)?,
            device: s.device,
        })
    };
    let inner = |i: &kvf_lane_inner| {
        zero(i.reserved.into(), "inner.reserved")?;
        Ok::<_, Error>(Inner {
            count: nonzero(i.count).unwrap_or(1),
            local_stride: i.local_stride,
            remote_stride: i.remote_stride,
        })
    };
    Ok(Lane {
        peer: l.peer,
        group: l.group,
        local_shard: l.local_shard,
        remote_shard: l.remote_shard,
        local: side(&l.local, "local.reserved")?,
        remote: side(&l.remote, "remote.reserved")?,
        len: l.len,
        inner: [inner(&l.inner[0])?, inner(&l.inner[1])?],
    })
}

fn to_tables(plan: &Plan) -> kvf_plan_tables {
    let side = |s: &SideGeometry| kvf_group_side {
        tokens_per_block: s.tokens_per_block,
        kernel_blocks: s.kernel_blocks,
        dcp_size: s.dcp_size,
        dcp_interleave: s.dcp_interleave,
        pool: s.pool,
        reserved: 0,
        block_count: s.block_count,
    };
    let groups = plan.groups().iter().map(|g| kvf_group_geometry {
        kind: g.kind as u32,
        window: g.window,
        atom_tokens: g.atom_tokens(),
        reserved: 0,
        local: side(&g.local),
        remote: side(&g.remote),
    });
    let peers = plan.peers().iter().map(|p| kvf_peer {
        tp_rank: p.tp_rank,
        pp_rank: p.pp_rank,
        role: p.role as u32,
        notifiers: p.notifiers,
    });
    let lane_side = |s: &LaneSide| kvf_lane_side {
        base: s.base,
        stride: s.stride,
        sub_stride: s.sub_stride,
        device: s.device,
        mem_kind: s.mem as u32,
        reserved: 0,
    };
    let lanes = plan.lanes().iter().map(|l| kvf_lane {
        peer: l.peer,
        group: l.group,
        local_shard: l.local_shard,
        remote_shard: l.remote_shard,
        len: l.len,
        local: lane_side(&l.local),
        remote: lane_side(&l.remote),
        inner: l.inner.map(|i| kvf_lane_inner {
            local_stride: i.local_stride,
            remote_stride: i.remote_stride,
            count: i.count,
            reserved: 0,
        }),
    });
    let (groups, groups_len) = give(groups.collect());
    let (peers, peers_len) = give(peers.collect());
    let (lanes, lanes_len) = give(lanes.collect());
    kvf_plan_tables {
        direction: plan.direction() as u32,
        batches: u32::try_from(plan.batches().len()).unwrap_or(u32::MAX),
        lanes_before: plan.lanes_before_merging() as u64,
        groups,
        groups_len,
        peers,
        peers_len,
        lanes,
        lanes_len,
    }
}

fn range(r: &Range) -> kvf_range {
    kvf_range {
        peer: r.peer,
        lane: r.lane,
        local: r.local,
        remote: r.remote,
        len: r.len,
    }
}

fn covered(c: &Coverage) -> kvf_coverage {
    kvf_coverage {
        first: c.first,
        end: c.end,
        missing_head: c.missing_head,
        missing_tail: c.missing_tail,
    }
}
