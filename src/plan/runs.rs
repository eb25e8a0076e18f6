//! Block ids into runs, and runs times lanes into byte ranges.
//!
//! The order of copies means nothing, so the atom pairs of a group are sorted, and neighbours that
//! follow each other on both sides become one run. Whether following is enough depends on the lane:
//! the bytes must also be contiguous, within a page and from page to page, on each side. That gives a
//! few kinds of lanes; the runs of each kind are made once and stamped out for all its lanes.

use super::pairs::{Coverage, Pair, Request, for_each_atom, place};
use super::*;

/// Most ranges that [`Runs::expand`] returns. [`Runs::fill`] has no limit.
pub const MAX_EXPANDED: u64 = 1 << 24;

/// Which pairs a list has, and what separates two of its runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ListKey {
    group: u32,
    shards: (u32, u32),
    local: Contiguity,
    remote: Contiguity,
}

/// When the bytes of one atom end where those of the next begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Contiguity {
    within_page: bool,
    across_pages: bool,
}

impl Contiguity {
    fn of(side: &LaneSide, len: u64, atoms: u32) -> Self {
        let last = u64::from(atoms - 1) * side.sub_stride;
        let across_pages = side.stride.checked_sub(last) == Some(len);
        // With one atom per page the first question never arises; the answer keeps lists few.
        let within_page = if atoms == 1 {
            across_pages
        } else {
            side.sub_stride == len
        };
        Contiguity {
            within_page,
            across_pages,
        }
    }

    /// Whether the atom after `at` may join a run, and where it is.
    #[inline]
    fn next(self, at: u64, atoms: u32) -> Option<u64> {
        if (at as u32) + 1 < atoms {
            self.within_page.then_some(at + 1)
        } else {
            self.across_pages.then_some(((at >> 32) + 1) << 32)
        }
    }
}

impl ListKey {
    pub fn of(lane: &Lane, group: &GroupGeometry) -> Self {
        ListKey {
            group: lane.group,
            shards: (lane.local_shard, lane.remote_shard),
            local: Contiguity::of(&lane.local, lane.len, group.local_atoms()),
            remote: Contiguity::of(&lane.remote, lane.len, group.remote_atoms()),
        }
    }
}

/// Consecutive atom pairs that one copy serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Page of the first atom on the local side.
    pub local_page: u32,
    /// Atom within that page.
    pub local_atom: u32,
    /// Page of the first atom on the remote side.
    pub remote_page: u32,
    /// Atom within that page.
    pub remote_atom: u32,
    /// Number of pairs.
    pub count: u32,
}

/// One copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Range {
    /// Index of the remote rank in [`Plan::peers`].
    pub peer: u32,
    /// Index of the lane in [`Plan::lanes`], which has the memory kinds and devices.
    pub lane: u32,
    /// Local address.
    pub local: u64,
    /// Remote address.
    pub remote: u64,
    /// Bytes.
    pub len: u64,
}

/// Figures of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunStats {
    /// Bytes to move.
    pub bytes: u64,
    /// Ranges if neighbouring blocks were not merged: lanes times pairs times copies per pair.
    pub ranges_before: u64,
    /// Ranges.
    pub ranges: u64,
}

/// What a request moves: a plan's lanes with the runs of its block ids. May be used from any thread.
#[derive(Clone, Debug)]
pub struct Runs {
    plan: Plan,
    runs: Vec<Run>,
    /// For each list of the plan, the end of its runs in `runs`; they begin where the list before
    /// ends.
    ends: Vec<usize>,
    coverage: Vec<Coverage>,
    batch_stats: Vec<RunStats>,
}

/// How far [`Runs::fill`] has come in a batch. Starts as `Cursor::default()`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    lane: u32,
    run: usize,
    copy: u64,
}

impl Plan {
    /// Turns the block ids of a request into runs.
    ///
    /// The lists of each group are laid over each other by token position. A list's position is what
    /// [`GroupBlocks`] states, or such that it ends with the last of [`Request::tokens`]; or else the
    /// lists end together, with the producer's starting at the first token. So a consumer that lists
    /// fewer blocks gets the tail. A group whose consumer lists nothing is left out. States pair one
    /// to one.
    ///
    /// # Errors
    /// `InvalidArgument`: ids out of range, a destination block that occurs twice (also in two groups
    /// that share memory), a position that cannot be inferred. `Mismatch`: counts that do not fit, or
    /// a consumer's block that the producer's list does not cover.
    pub fn runs(&self, request: &Request) -> Result<Runs> {
        self.check_request(request)?;
        let mut out = Runs {
            plan: self.clone(),
            runs: Vec::new(),
            ends: Vec::with_capacity(self.0.lists.len()),
            coverage: Vec::with_capacity(self.0.groups.len()),
            batch_stats: Vec::with_capacity(self.0.batches.len()),
        };
        let mut buckets = Vec::new();
        for (i, blocks) in request.groups.iter().enumerate() {
            let coverage = self
                .sort_pairs(i, blocks, request.tokens, &mut buckets)
                .map_err(|e| e.context(format_args!("group {i}")))?;
            out.coverage.push(coverage);
        }
        // Number of pairs and of runs of each list.
        let mut counts = Vec::with_capacity(self.0.lists.len());
        for key in &self.0.lists {
            let bucket = buckets.iter().find(|b| b.serves(key));
            let pairs = bucket.map_or(&[][..], |b| &b.pairs);
            let before = out.runs.len();
            let group = &self.0.groups[key.group as usize];
            merge(key, group, pairs, &mut out.runs);
            out.ends.push(out.runs.len());
            counts.push((pairs.len() as u64, (out.runs.len() - before) as u64));
        }
        for batch in &self.0.batches {
            let mut stats = RunStats::default();
            for lane in batch.lanes() {
                let (pairs, runs) = counts[self.0.lane_lists[lane] as usize];
                let copies = self.0.lanes[lane].copies();
                stats.bytes += pairs * copies * self.0.lanes[lane].len;
                stats.ranges_before += pairs * copies;
                stats.ranges += runs * copies;
            }
            out.batch_stats.push(stats);
        }
        Ok(out)
    }

    /// Adds the sorted pairs of a group, a bucket for each pair of shares that its lanes have.
    fn sort_pairs(
        &self,
        group: usize,
        blocks: &GroupBlocks,
        tokens: Option<u64>,
        buckets: &mut Vec<Bucket>,
    ) -> Result<Coverage> {
        let geometry = &self.0.groups[group];
        let Some(at) = place(geometry, blocks, tokens, self.0.direction)? else {
            return Ok(Coverage::default());
        };
        let first = buckets.len();
        for key in self.0.lists.iter().filter(|k| k.group as usize == group) {
            if !buckets[first..].iter().any(|b| b.serves(key)) {
                let (group, shards) = (key.group, key.shards);
                buckets.push(Bucket {
                    group,
                    shards,
                    pairs: Vec::new(),
                });
            }
        }
        let own = &mut buckets[first..];
        for_each_atom(geometry, blocks, &at, |local_shard, remote_shard, pair| {
            let shards = (local_shard, remote_shard);
            if let Some(bucket) = own.iter_mut().find(|b| b.shards == shards) {
                bucket.pairs.push(pair);
            }
        })?;
        for bucket in own {
            // Whatever follows a pair on the local side comes next; the remote side is compared when
            // merging.
            bucket.pairs.sort_unstable_by_key(|p| p.local);
        }
        Ok(at.coverage)
    }
}

/// The pairs of a group between two shares of its tokens. Lists that differ in contiguity only have
/// the same ones.
struct Bucket {
    group: u32,
    shards: (u32, u32),
    pairs: Vec<Pair>,
}

impl Bucket {
    fn serves(&self, key: &ListKey) -> bool {
        (self.group, self.shards) == (key.group, key.shards)
    }
}

impl Batch {
    /// Indices of its lanes.
    pub fn lanes(&self) -> std::ops::Range<usize> {
        self.first_lane as usize..(self.first_lane + self.lane_count) as usize
    }
}

/// Appends the runs of sorted pairs.
fn merge(key: &ListKey, group: &GroupGeometry, pairs: &[Pair], out: &mut Vec<Run>) {
    let (local_atoms, remote_atoms) = (group.local_atoms(), group.remote_atoms());
    let mut expected = (None, None);
    for pair in pairs {
        if let (true, Some(run)) = (
            expected == (Some(pair.local), Some(pair.remote)),
            out.last_mut(),
        ) {
            run.count += 1;
        } else {
            out.push(Run {
                local_page: (pair.local >> 32) as u32,
                local_atom: pair.local as u32,
                remote_page: (pair.remote >> 32) as u32,
                remote_atom: pair.remote as u32,
                count: 1,
            });
        }
        expected = (
            key.local.next(pair.local, local_atoms),
            key.remote.next(pair.remote, remote_atoms),
        );
    }
}

impl LaneSide {
    fn at(&self, page: u32, atom: u32) -> u64 {
        self.base + u64::from(page) * self.stride + u64::from(atom) * self.sub_stride
    }
}

impl Runs {
    /// The plan that the runs belong to.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What of each group's destination blocks is filled.
    pub fn coverage(&self) -> &[Coverage] {
        &self.coverage
    }

    /// Figures of a batch of the plan, by its index.
    pub fn batch_stats(&self, batch: usize) -> RunStats {
        self.batch_stats.get(batch).copied().unwrap_or_default()
    }

    /// Figures of all batches together.
    pub fn stats(&self) -> RunStats {
        self.batch_stats
            .iter()
            .fold(RunStats::default(), |a, b| RunStats {
                bytes: a.bytes + b.bytes,
                ranges_before: a.ranges_before + b.ranges_before,
                ranges: a.ranges + b.ranges,
            })
    }

    /// Whether a remote rank has anything to send or receive for this request. If not, it is only
    /// notified, whatever its [`PeerRole`] says.
    pub fn moves_bytes(&self, peer: u32) -> bool {
        let batches = self.plan.batches().iter().zip(&self.batch_stats);
        batches
            .into_iter()
            .any(|(b, s)| b.peer == peer && s.ranges > 0)
    }

    /// The runs that apply to a lane.
    pub fn of_lane(&self, lane: usize) -> &[Run] {
        let Some(&list) = self.plan.0.lane_lists.get(lane) else {
            return &[];
        };
        let list = list as usize;
        let start = if list == 0 { 0 } else { self.ends[list - 1] };
        &self.runs[start..self.ends[list]]
    }

    /// Appends up to `max` ranges of a batch to two arrays of equal length, in the form in which
    /// transports take them, and moves `cursor` on. Returns how many; 0 when the batch is done.
    pub fn fill(
        &self,
        batch: &Batch,
        cursor: &mut Cursor,
        max: usize,
        local: &mut Vec<crate::memory::MemDesc>,
        remote: &mut Vec<crate::memory::MemDesc>,
    ) -> usize {
        use crate::memory::MemDesc;
        let lanes = self.plan.lanes();
        self.walk(batch, cursor, max, |lane, l, r, len| {
            let lane = &lanes[lane];
            local.push(MemDesc {
                addr: l,
                len,
                device: lane.local.device,
            });
            remote.push(MemDesc {
                addr: r,
                len,
                device: lane.remote.device,
            });
        })
    }

    /// All ranges, those of a batch together, in ascending order of blocks within a lane.
    ///
    /// # Errors
    /// `ResourceExhausted` if there are more than [`MAX_EXPANDED`].
    pub fn expand(&self) -> Result<Vec<Range>> {
        let mut out = Vec::new();
        self.expand_into(&mut out)?;
        Ok(out)
    }

    /// Like [`Runs::expand`], into an array whose memory is used again.
    pub fn expand_into(&self, out: &mut Vec<Range>) -> Result<()> {
        let total = self.stats().ranges;
        if total > MAX_EXPANDED {
            bail!(
                Status::ResourceExhausted,
                "{total} ranges, more than {MAX_EXPANDED}"
            );
        }
        out.clear();
        out.reserve(total as usize);
        for batch in self.plan.batches() {
            let peer = batch.peer;
            self.walk(
                batch,
                &mut Cursor::default(),
                usize::MAX,
                |lane, local, remote, len| {
                    out.push(Range {
                        peer,
                        lane: lane as u32,
                        local,
                        remote,
                        len,
                    })
                },
            );
        }
        Ok(())
    }

    /// Calls `each` with lane, local address, remote address and length of up to `max` ranges.
    #[inline]
    fn walk(
        &self,
        batch: &Batch,
        cursor: &mut Cursor,
        max: usize,
        mut each: impl FnMut(usize, u64, u64, u64),
    ) -> usize {
        let mut left = max;
        while cursor.lane < batch.lane_count {
            let index = (batch.first_lane + cursor.lane) as usize;
            let Some(lane) = self.plan.lanes().get(index) else {
                break;
            };
            let runs = self.of_lane(index);
            let copies = lane.copies();
            while let Some(run) = runs.get(cursor.run) {
                let local = lane.local.at(run.local_page, run.local_atom);
                let remote = lane.remote.at(run.remote_page, run.remote_atom);
                let len = lane.len * u64::from(run.count);
                let until = copies.min(cursor.copy.saturating_add(left as u64));
                left -= (until - cursor.copy) as usize;
                if copies == 1 {
                    if cursor.copy < until {
                        each(index, local, remote, len);
                    }
                } else {
                    let [outer, inner] = lane.inner;
                    for copy in cursor.copy..until {
                        let (o, i) = (copy / u64::from(inner.count), copy % u64::from(inner.count));
                        each(
                            index,
                            local + o * outer.local_stride + i * inner.local_stride,
                            remote + o * outer.remote_stride + i * inner.remote_stride,
                            len,
                        );
                    }
                }
                cursor.copy = until;
                if until < copies {
                    return max;
                }
                (cursor.run, cursor.copy) = (cursor.run + 1, 0);
            }
            *cursor = Cursor {
                lane: cursor.lane + 1,
                run: 0,
                copy: 0,
            };
        }
        max - left
    }
}
