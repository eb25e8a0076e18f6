//! Laying the two block lists of a request over each other, by token position.

use super::group::{GroupGeometry, SideGeometry};
use super::{Direction, Plan};
use crate::error::{Result, Status, bail};
use crate::layout::GroupKind;

/// The block ids of one group of a request.
///
/// Ids are logical blocks, in the order of their tokens. A list may begin later than the request: the
/// consumer lists only what it does not have yet, and windowed groups only what is still in the
/// window. Where it begins is [`GroupBlocks::local_first`], or follows from [`Request::tokens`], or is
/// inferred: see [`Plan::runs`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupBlocks<'a> {
    /// Block ids on the local rank.
    pub local: &'a [u32],
    /// Block ids on the remote ranks; the same on each of them.
    pub remote: &'a [u32],
    /// How many blocks of the request come before the first of `local`.
    pub local_first: Option<u32>,
    /// How many blocks of the request come before the first of `remote`.
    pub remote_first: Option<u32>,
}

impl<'a> GroupBlocks<'a> {
    /// Lists whose positions are to be inferred.
    pub fn new(local: &'a [u32], remote: &'a [u32]) -> Self {
        GroupBlocks {
            local,
            remote,
            local_first: None,
            remote_first: None,
        }
    }
}

/// What a request wants moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// One entry per group of the plan.
    pub groups: &'a [GroupBlocks<'a>],
    /// Tokens whose cells the producer holds, from the first token of the request. If given, lists
    /// without a stated position end with the block of the last of these tokens.
    pub tokens: Option<u64>,
}

/// What of a group's destination blocks a request fills. Positions count tokens of the request; in
/// state groups, blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Coverage {
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

/// An atom on both sides: page in the upper, atom within the page in the lower 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pair {
    pub local: u64,
    pub remote: u64,
}

/// Most atom pairs of one group in one request.
const MAX_PAIRS: u64 = 1 << 28;

impl Plan {
    /// Refuses a request whose lists cannot belong to this plan: wrong number of groups, ids out of
    /// range, ids that occur twice on the side that is written.
    pub(super) fn check_request(&self, request: &Request) -> Result<()> {
        if request.groups.len() != self.groups().len() {
            bail!(
                Status::InvalidArgument,
                "block ids for {} groups, and the plan has {}",
                request.groups.len(),
                self.groups().len()
            );
        }
        for (i, (blocks, g)) in request.groups.iter().zip(self.groups()).enumerate() {
            check_ids(i, "local", blocks.local, &g.local)?;
            check_ids(i, "remote", blocks.remote, &g.remote)?;
        }
        self.check_distinct(request)
    }

    /// No destination block twice, in all groups that share a pool.
    fn check_distinct(&self, request: &Request) -> Result<()> {
        let pull = self.direction() == Direction::Pull;
        let name = if pull { "local" } else { "remote" };
        let pool = |i: usize| {
            let g: &GroupGeometry = &self.groups()[i];
            if pull { g.local.pool } else { g.remote.pool }
        };
        let ids = |i: usize| {
            if pull {
                request.groups[i].local
            } else {
                request.groups[i].remote
            }
        };
        for i in 0..request.groups.len() {
            let same_pool = |j: &usize| pool(*j) == pool(i);
            if (0..i).any(|j| same_pool(&j)) {
                continue;
            }
            let mine: Vec<usize> = (i..request.groups.len()).filter(same_pool).collect();
            let all = || mine.iter().flat_map(|j| ids(*j).iter().copied());
            let count: usize = mine.iter().map(|j| ids(*j).len()).sum();
            if let Some(twice) = first_repeated(all(), count) {
                let whose: Vec<String> = mine
                    .iter()
                    .filter(|j| ids(**j).contains(&twice))
                    .map(|j| j.to_string())
                    .collect();
                bail!(
                    Status::InvalidArgument,
                    "{name} block {twice} occurs twice (group {})",
                    whose.join(", ")
                );
            }
        }
        Ok(())
    }
}

/// An id that occurs more than once.
fn first_repeated(ids: impl Iterator<Item = u32> + Clone, count: usize) -> Option<u32> {
    let max = ids.clone().max()? as usize;
    if max / 64 <= count {
        // A bit for each id that is possible costs less than sorting.
        let mut seen = vec![0u64; max / 64 + 1];
        let mut ids = ids;
        return ids.find(|id| {
            let (word, bit) = (&mut seen[*id as usize / 64], 1u64 << (id % 64));
            let before = *word;
            *word |= bit;
            before & bit != 0
        });
    }
    let mut sorted: Vec<u32> = ids.collect();
    sorted.sort_unstable();
    sorted.windows(2).find(|w| w[0] == w[1]).map(|w| w[0])
}

fn check_ids(group: usize, name: &str, ids: &[u32], side: &SideGeometry) -> Result<()> {
    match ids.iter().find(|id| u64::from(**id) >= side.block_count) {
        None => Ok(()),
        Some(id) => bail!(
            Status::InvalidArgument,
            "group {group}: {name} block {id} of {} blocks",
            side.block_count
        ),
    }
}

/// One side of a group's request.
#[derive(Clone, Copy)]
struct Side<'a> {
    name: &'static str,
    geometry: &'a SideGeometry,
    ids: &'a [u32],
    first: Option<u32>,
}

impl Side<'_> {
    fn len(&self) -> u64 {
        self.ids.len() as u64
    }

    /// Where the list begins, in blocks, if that is stated or follows from the number of tokens.
    fn stated_first(&self, tokens: Option<u64>) -> Result<Option<u64>> {
        let total = tokens.map(|t| t.div_ceil(self.geometry.span()));
        let first = self.first.map(u64::from);
        let Some(total) = total else { return Ok(first) };
        let first_or = first.or_else(|| total.checked_sub(self.len()));
        match first_or {
            Some(first) if first + self.len() <= total => Ok(Some(first)),
            _ => bail!(
                Status::Mismatch,
                "{} {} blocks of {} tokens from block {}, where {} tokens are {total} blocks",
                self.len(),
                self.name,
                self.geometry.span(),
                first.unwrap_or(0),
                tokens.unwrap_or(0)
            ),
        }
    }

    /// Token positions of the first and one past the last token of the list.
    fn tokens(&self, first: u64) -> Result<(u64, u64)> {
        let span = self.geometry.span();
        match (
            first.checked_mul(span),
            (first + self.len()).checked_mul(span),
        ) {
            (Some(a), Some(b)) => Ok((a, b)),
            _ => bail!(
                Status::InvalidArgument,
                "{} block position {first} is too large",
                self.name
            ),
        }
    }
}

/// Where the lists of a group begin, in blocks of their own side, and what that covers.
pub(super) struct Placement {
    pub local_first: u64,
    pub remote_first: u64,
    pub coverage: Coverage,
}

/// Places the lists of one group; `None` if there is nothing to copy.
pub(super) fn place(
    group: &GroupGeometry,
    blocks: &GroupBlocks,
    tokens: Option<u64>,
    direction: Direction,
) -> Result<Option<Placement>> {
    let local = Side {
        name: "local",
        geometry: &group.local,
        ids: blocks.local,
        first: blocks.local_first,
    };
    let remote = Side {
        name: "remote",
        geometry: &group.remote,
        ids: blocks.remote,
        first: blocks.remote_first,
    };
    let (dst, src) = match direction {
        Direction::Pull => (local, remote),
        Direction::Push => (remote, local),
    };
    if dst.ids.is_empty() {
        return Ok(None);
    }
    let (dst_first, src_first, coverage) = match group.kind {
        GroupKind::State => {
            if dst.ids.len() != src.ids.len() {
                bail!(
                    Status::Mismatch,
                    "state blocks: {} {}, {} {}; states are never trimmed",
                    dst.name,
                    dst.ids.len(),
                    src.name,
                    src.ids.len()
                );
            }
            (
                0,
                0,
                Coverage {
                    end: dst.len(),
                    ..Coverage::default()
                },
            )
        }
        _ => {
            let (d, s) = align(group, &dst, &src, tokens)?;
            (d, s, cover(group, &dst, &src, d, s, tokens)?)
        }
    };
    let (local_first, remote_first) = match direction {
        Direction::Pull => (dst_first, src_first),
        Direction::Push => (src_first, dst_first),
    };
    Ok(Some(Placement {
        local_first,
        remote_first,
        coverage,
    }))
}

/// Where both lists begin. What is not stated is inferred: the lists end together, and unless the
/// group is windowed the producer's begins with the first token.
fn align(group: &GroupGeometry, dst: &Side, src: &Side, tokens: Option<u64>) -> Result<(u64, u64)> {
    let (d_span, s_span) = (dst.geometry.span(), src.geometry.span());
    let short = |have: u64| {
        crate::error::Error::new(
            Status::Mismatch,
            format!(
                "{} {} blocks of {d_span} tokens against {} {} blocks of {s_span}, which end after \
                 {have} of the former",
                dst.len(),
                dst.name,
                src.len(),
                src.name
            ),
        )
    };
    match (dst.stated_first(tokens)?, src.stated_first(tokens)?) {
        (Some(d), Some(s)) => Ok((d, s)),
        (Some(d), None) if group.kind.is_windowed() && d_span == s_span => {
            let end = d + dst.len();
            Ok((d, end.checked_sub(src.len()).ok_or_else(|| short(end))?))
        }
        (Some(d), None) if !group.kind.is_windowed() => Ok((d, 0)),
        (None, s) if d_span == s_span || !group.kind.is_windowed() || s.is_some() => {
            let s = s.unwrap_or(0);
            if d_span % s_span != 0 {
                bail!(
                    Status::InvalidArgument,
                    "{} blocks of {s_span} tokens do not say where {} blocks of {d_span} end: state \
                     the number of tokens or the first block",
                    src.name,
                    dst.name
                );
            }
            let end = (s + src.len()).div_ceil(d_span / s_span);
            Ok((end.checked_sub(dst.len()).ok_or_else(|| short(end))?, s))
        }
        _ => bail!(
            Status::InvalidArgument,
            "{} of unequal block sizes ({} {d_span}, {} {s_span} tokens): state the number of tokens \
             or the first blocks",
            group.kind.name(),
            dst.name,
            src.name
        ),
    }
}

/// Checks that the producer has what the consumer lists, but for the unfilled end of the last block
/// and what has left the window.
fn cover(
    group: &GroupGeometry,
    dst: &Side,
    src: &Side,
    dst_first: u64,
    src_first: u64,
    tokens: Option<u64>,
) -> Result<Coverage> {
    let (d, d_end) = dst.tokens(dst_first)?;
    let (s, s_end) = src.tokens(src_first)?;
    let span = dst.geometry.span();
    let tail = d_end.saturating_sub(s_end);
    // Without a number of tokens any part of the last block may be unfilled.
    let lacks_tail = match tokens {
        Some(tokens) => d_end.min(tokens) > s_end,
        None => tail >= span,
    };
    // The earliest that the number of tokens can make it, for the window.
    let at_least = tokens.unwrap_or(s_end.saturating_sub(src.geometry.span()) + 1);
    let window = u64::from(group.window);
    let needed_from = match group.kind {
        GroupKind::SlidingWindow if window > 0 => at_least.saturating_sub(window),
        GroupKind::ChunkedLocal if window > 0 => at_least / window * window,
        _ => 0,
    };
    let lacks_head = s > d.max(needed_from);
    if lacks_head || lacks_tail {
        bail!(
            Status::Mismatch,
            "{} blocks are tokens {d}..{d_end}, {} blocks only {s}..{s_end}",
            dst.name,
            src.name
        );
    }
    Ok(Coverage {
        first: d.max(s),
        end: d_end.min(s_end).max(d.max(s)),
        missing_head: s.saturating_sub(d).min(d_end - d),
        missing_tail: tail.min(d_end - d),
    })
}

/// Calls `each` with the atoms of a group that both lists cover: phases and pages, in token order.
pub(super) fn for_each_atom(
    group: &GroupGeometry,
    blocks: &GroupBlocks,
    at: &Placement,
    mut each: impl FnMut(u32, u32, Pair),
) -> Result<()> {
    let (lp, rp) = (group.local_phases(), group.remote_phases());
    let span = |first: u64, ids: &[u32], phases: usize| {
        let n = phases as u64;
        (first * n, (first + ids.len() as u64) * n)
    };
    let (l, l_end) = span(at.local_first, blocks.local, lp.len());
    let (r, r_end) = span(at.remote_first, blocks.remote, rp.len());
    let (start, end) = (l.max(r), l_end.min(r_end));
    if end.saturating_sub(start) > MAX_PAIRS {
        bail!(
            Status::ResourceExhausted,
            "{} pieces of {} tokens, more than {MAX_PAIRS}",
            end - start,
            group.atom_tokens()
        );
    }
    let mut local = Walk::new(
        blocks.local,
        lp,
        group.local.kernel_blocks,
        start.saturating_sub(l),
    );
    let mut remote = Walk::new(
        blocks.remote,
        rp,
        group.remote.kernel_blocks,
        start.saturating_sub(r),
    );
    for _ in start..end {
        let (Some((ls, lo)), Some((rs, re))) = (local.next(), remote.next()) else {
            break;
        };
        each(
            ls,
            rs,
            Pair {
                local: lo,
                remote: re,
            },
        );
    }
    Ok(())
}

/// Steps through the atoms of a block list: share and packed position.
struct Walk<'a> {
    ids: std::slice::Iter<'a, u32>,
    phases: &'a [super::Phase],
    phase: usize,
    first_page: u64,
    kernel_blocks: u64,
}

impl<'a> Walk<'a> {
    fn new(ids: &'a [u32], phases: &'a [super::Phase], kernel_blocks: u32, skip: u64) -> Self {
        let per_block = phases.len() as u64;
        let mut ids = ids[(skip / per_block).min(ids.len() as u64) as usize..].iter();
        let kernel_blocks = u64::from(kernel_blocks);
        let first_page = ids.next().map_or(0, |id| u64::from(*id) * kernel_blocks);
        Walk {
            ids,
            phases,
            phase: (skip % per_block) as usize,
            first_page,
            kernel_blocks,
        }
    }

    #[inline]
    fn next(&mut self) -> Option<(u32, u64)> {
        if self.phase == self.phases.len() {
            self.phase = 0;
            self.first_page = u64::from(*self.ids.next()?) * self.kernel_blocks;
        }
        let p = &self.phases[self.phase];
        self.phase += 1;
        Some((
            p.shard,
            (self.first_page + u64::from(p.page)) << 32 | u64::from(p.atom),
        ))
    }
}
