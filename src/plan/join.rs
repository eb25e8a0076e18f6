//! What a consumer rank takes from which producer ranks: the intersection of two engines' parts.

use std::ops::Range;

use super::describe::Share;
use super::group::{GroupGeometry, SideGeometry};
use super::select::{Holder, Take, by_rule, choose, facing, head_ranges};
use crate::error::{Error, Result, Status, bail};
use crate::layout::{GroupKind, Layout, Part, Role};

/// What names content, up to head and token.
type Key = (u32, u32, Role);

fn key(p: &Part) -> Key {
    (p.group, p.layer, p.role)
}

fn place(k: Key) -> String {
    format!("group {}, layer {}, {}", k.0, k.1, k.2.name())
}

/// A layout with its parts in order of (group, layer, role, head).
pub(super) struct Rank<'a> {
    pub layout: &'a Layout,
    order: Vec<u32>,
}

impl<'a> Rank<'a> {
    pub fn new(layout: &'a Layout) -> Self {
        let mut order: Vec<u32> = (0..layout.parts.len() as u32).collect();
        order.sort_unstable_by_key(|i| {
            let p = &layout.parts[*i as usize];
            (key(p), p.head_first)
        });
        Rank { layout, order }
    }

    fn part(&self, at: usize) -> &'a Part {
        &self.layout.parts[self.order[at] as usize]
    }

    fn parts(&self, at: Range<usize>) -> impl Iterator<Item = &'a Part> + Clone + '_ {
        at.map(|i| self.part(i))
    }

    /// Where the parts of the key that begins at `start` are.
    fn run(&self, start: usize) -> Range<usize> {
        let wanted = key(self.part(start));
        let len = (start..self.order.len())
            .take_while(|i| key(self.part(*i)) == wanted)
            .count();
        start..start + len
    }

    /// Where the parts of a key are; `hint` is where they probably begin, since ranks hold mostly the
    /// same keys and walk through them together.
    fn find(&self, wanted: Key, hint: usize) -> Range<usize> {
        let is = |i: usize| i < self.order.len() && key(self.part(i)) == wanted;
        let start = match is(hint) && (hint == 0 || !is(hint - 1)) {
            true => hint,
            false => self
                .order
                .partition_point(|i| key(&self.layout.parts[*i as usize]) < wanted),
        };
        if is(start) {
            self.run(start)
        } else {
            start..start
        }
    }
}

/// The producing engine: the ranks whose layouts are given.
pub(super) struct Producers<'a> {
    ranks: Vec<&'a Rank<'a>>,
    tp_size: u32,
    pp_size: u32,
    dcp_size: u32,
}

impl<'a> Producers<'a> {
    /// `ranks` is not empty.
    pub fn new(ranks: Vec<&'a Rank<'a>>) -> Self {
        let p = ranks[0].layout.parallel;
        Producers {
            tp_size: p.tp_size,
            pp_size: p.pp_size,
            dcp_size: p.dcp_size,
            ranks,
        }
    }

    /// A group in which these ranks have a role of a layer.
    fn group_of(&self, layer: u32, role: Role) -> Option<u32> {
        let mut parts = self.ranks.iter().flat_map(|rank| &rank.layout.parts);
        let found = parts.find(|p| (p.layer, p.role) == (layer, role));
        found.map(|p| p.group)
    }

    /// Adds the ranks whose layouts were not given, where the given ones hold their heads by the
    /// usual rule. Without that a choice between several holders would depend on who was given.
    fn complete(&self, holders: &mut Vec<Holder>, heads_total: u32) {
        let Some(model) = holders.first().copied() else {
            return;
        };
        let heads = |rank| {
            by_rule(
                (model.first, model.count),
                heads_total,
                model.tp_rank,
                self.tp_size,
                rank,
            )
        };
        if holders
            .iter()
            .any(|h| heads(h.tp_rank) != Some((h.first, h.count)))
        {
            return;
        }
        let mut given = vec![false; self.tp_size as usize];
        holders
            .iter()
            .for_each(|h| given[h.tp_rank as usize] = true);
        for tp_rank in (0..self.tp_size).filter(|r| !given[*r as usize]) {
            if let Some((first, count)) = heads(tp_rank) {
                let shard = tp_rank % self.dcp_size;
                holders.push(Holder {
                    given: None,
                    tp_rank,
                    shard,
                    first,
                    count,
                });
            }
        }
    }
}

/// A choice of holders. All layers of a model share a few of these.
struct Class {
    group: u32,
    heads_total: u32,
    want: Vec<(u32, u32)>,
    /// The first `given` are those whose layouts were given.
    holders: Vec<Holder>,
    given: usize,
    takes: Vec<Take>,
    /// Role and number of layers that use this class.
    layers: Vec<(Role, u32)>,
}

/// Most classes, and most comparisons of a wanted head with a holder, that one join may take. Real
/// models have a few classes and some thousand comparisons; a hostile layout must not cost us minutes.
const MAX_CLASSES: usize = 1 << 10;
const MAX_EFFORT: u64 = 1 << 26;

/// A head that nobody holds, for this share of the tokens.
struct Unheld {
    head: u32,
    shard: Option<u32>,
}

/// Heads that a part of the consumer takes from a part of a producer.
pub(super) struct Piece<'a> {
    /// The consumer's part.
    pub mine: &'a Part,
    /// Index of the producer among those given.
    pub producer: usize,
    /// The producer's part.
    pub theirs: &'a Part,
    /// First head.
    pub first: u32,
    /// Number of heads.
    pub count: u32,
}

/// One consumer rank against the producers.
pub(super) struct Join<'a> {
    consumer: &'a Rank<'a>,
    producers: &'a Producers<'a>,
    groups: &'a [GroupGeometry],
    consumer_is_local: bool,
    classes: Vec<Class>,
    effort: u64,
}

impl<'a> Join<'a> {
    pub fn new(
        consumer: &'a Rank<'a>,
        producers: &'a Producers<'a>,
        groups: &'a [GroupGeometry],
        consumer_is_local: bool,
    ) -> Self {
        Join {
            consumer,
            producers,
            groups,
            consumer_is_local,
            classes: Vec::new(),
            effort: 0,
        }
    }

    /// Walks all keys of the consumer.
    pub fn run(&mut self) -> Result<Vec<Piece<'a>>> {
        let (consumer, producers) = (self.consumer, self.producers);
        let mut found: Vec<Range<usize>> = vec![0..0; producers.ranks.len()];
        let mut seen = vec![0; producers.ranks.len()];
        let mut pieces = Vec::with_capacity(consumer.order.len());
        let mut start = 0;
        while start < consumer.order.len() {
            let at = consumer.run(start);
            let k = key(consumer.part(start));
            for (i, rank) in producers.ranks.iter().enumerate() {
                found[i] = rank.find(k, found[i].end);
                seen[i] += found[i].len();
            }
            let holders = self.holders(k, consumer.part(start), &found)?;
            start = at.end;
            if holders.is_empty() {
                let elsewhere = producers.group_of(k.1, k.2);
                // A stage of the local engine pushes its own layers only.
                if !self.consumer_is_local && producers.pp_size > 1 && elsewhere.is_none() {
                    continue;
                }
                let name = if self.consumer_is_local {
                    "local"
                } else {
                    "remote"
                };
                let elsewhere = elsewhere.map_or(String::new(), |group| {
                    format!(", which has that layer in group {group}")
                });
                bail!(
                    Status::Mismatch,
                    "layer counts: {} is on the {name} consumer and on no rank given of the \
                     producer{elsewhere}",
                    place(k)
                );
            }
            let class = self.class(k, at.clone(), holders)?;
            self.pieces(&self.classes[class], at, &found, &mut pieces);
        }
        self.refuse_surplus(&seen)?;
        Ok(pieces)
    }

    /// Adds what the parts of a key have in common.
    fn pieces(
        &self,
        class: &Class,
        at: Range<usize>,
        found: &[Range<usize>],
        out: &mut Vec<Piece<'a>>,
    ) {
        for take in &class.takes {
            let Some(producer) = class.holders[take.holder].given.map(|g| g as usize) else {
                continue;
            };
            for mine in self.consumer.parts(at.clone()) {
                for theirs in self.producers.ranks[producer].parts(found[producer].clone()) {
                    let first = take.first.max(mine.head_first).max(theirs.head_first);
                    let end = (take.first + take.count)
                        .min(mine.head_first + mine.head_count)
                        .min(theirs.head_first + theirs.head_count);
                    if first < end {
                        out.push(Piece {
                            mine,
                            producer,
                            theirs,
                            first,
                            count: end - first,
                        });
                    }
                }
            }
        }
    }

    /// A whole consumer that lacks layers of the producer is of another model.
    fn refuse_surplus(&self, seen: &[usize]) -> Result<()> {
        if self.consumer.layout.parallel.pp_size > 1 {
            return Ok(());
        }
        for (rank, seen) in self.producers.ranks.iter().zip(seen) {
            if *seen == rank.order.len() {
                continue;
            }
            let surplus = (0..rank.order.len())
                .map(|i| key(rank.part(i)))
                .find(|k| self.consumer.find(*k, 0).is_empty());
            let (consumer, producer) = match self.consumer_is_local {
                true => ("local", "remote"),
                false => ("remote", "local"),
            };
            bail!(
                Status::Mismatch,
                "layer counts: {} is on the {producer} producer and not on the {consumer} consumer",
                surplus.map(place).unwrap_or_default()
            );
        }
        Ok(())
    }

    /// The holders of a key among those given, their parts checked against the consumer's.
    fn holders(&self, k: Key, model: &Part, found: &[Range<usize>]) -> Result<Vec<Holder>> {
        let geometry = &self.groups[k.0 as usize];
        let mut out = Vec::with_capacity(found.len());
        for (i, rank) in self.producers.ranks.iter().enumerate() {
            if found[i].is_empty() {
                continue;
            }
            let theirs = rank.part(found[i].start);
            let (l, r) = if self.consumer_is_local {
                (model, theirs)
            } else {
                (theirs, model)
            };
            agree(l, r, geometry).map_err(|e| e.context(place(k)))?;
            let p = &rank.layout.parallel;
            for (first, count) in head_ranges(rank.parts(found[i].clone())) {
                let given = Some(i as u32);
                out.push(Holder {
                    given,
                    tp_rank: p.tp_rank,
                    shard: p.dcp_rank,
                    first,
                    count,
                });
            }
        }
        Ok(out)
    }

    /// The class of a key, found or made.
    fn class(&mut self, k: Key, at: Range<usize>, holders: Vec<Holder>) -> Result<usize> {
        let want = head_ranges(self.consumer.parts(at.clone()));
        let heads_total = self.consumer.part(at.start).heads_total;
        let same = |c: &Class| {
            (c.group, c.heads_total) == (k.0, heads_total)
                && c.want == want
                && c.holders[..c.given] == holders
        };
        let index = match self.classes.iter().rposition(same) {
            Some(index) => index,
            None => {
                let class = self.new_class(k, want, heads_total, holders)?;
                self.classes.push(class);
                self.classes.len() - 1
            }
        };
        let layers = &mut self.classes[index].layers;
        match layers.iter_mut().find(|l| l.0 == k.2) {
            Some(l) => l.1 += 1,
            None => layers.push((k.2, 1)),
        }
        Ok(index)
    }

    fn new_class(
        &mut self,
        k: Key,
        want: Vec<(u32, u32)>,
        heads_total: u32,
        mut holders: Vec<Holder>,
    ) -> Result<Class> {
        let given = holders.len();
        self.producers.complete(&mut holders, heads_total);
        if !self.consumer_is_local && holders.len() < self.producers.tp_size as usize {
            bail!(
                Status::Mismatch,
                "{}: heads {}..{} of {heads_total} are not the usual share of tp_rank {} of {}, so it \
                 cannot be known which of them the other local ranks push",
                place(k),
                holders[0].first,
                holders[0].first + holders[0].count,
                holders[0].tp_rank,
                self.producers.tp_size
            );
        }
        let p = &self.consumer.layout.parallel;
        self.effort += self.effort_of(k.0, &want, &holders, p.dcp_rank);
        if self.classes.len() >= MAX_CLASSES || self.effort > MAX_EFFORT {
            bail!(
                Status::ResourceExhausted,
                "{}: too many different shares of heads over {} ranks",
                place(k),
                self.producers.tp_size
            );
        }
        let unheld = |u: Unheld| {
            let share = u
                .shard
                .map_or(String::new(), |s| format!(" for share {s} of the tokens"));
            let message = format!("{}: no rank given holds head {}{share}", place(k), u.head);
            Error::new(Status::Mismatch, message)
        };
        let takes = self
            .takes(k.0, &want, &holders, p.tp_rank, p.dcp_rank)
            .map_err(unheld)?;
        let absent = takes
            .iter()
            .map(|t| &holders[t.holder])
            .find(|h| h.given.is_none());
        if let (true, Some(h)) = (self.consumer_is_local, absent) {
            bail!(
                Status::Mismatch,
                "{}: heads {}..{} are to come from tp_rank {} of the remote engine, whose layout is \
                 not among those given",
                place(k),
                h.first,
                h.first + h.count,
                h.tp_rank
            );
        }
        let (group, layers) = (k.0, Vec::new());
        Ok(Class {
            group,
            heads_total,
            want,
            holders,
            given,
            takes,
            layers,
        })
    }

    /// Chooses the holders for rank `tp_rank` of the consumer's engine.
    fn takes(
        &self,
        group: u32,
        want: &[(u32, u32)],
        holders: &[Holder],
        tp_rank: u32,
        dcp_rank: u32,
    ) -> std::result::Result<Vec<Take>, Unheld> {
        let size = self.producers.tp_size;
        let faced = facing(tp_rank, self.consumer.layout.parallel.tp_size, size);
        let mut takes = Vec::new();
        for shard in self.shards(group, dcp_rank) {
            for range in want {
                choose(*range, holders, shard, faced, size, &mut takes)
                    .map_err(|head| Unheld { head, shard })?;
            }
        }
        Ok(takes)
    }

    /// Comparisons that [`Join::takes`] makes; a range may be cut at every holder.
    fn effort_of(&self, group: u32, want: &[(u32, u32)], holders: &[Holder], dcp_rank: u32) -> u64 {
        let ranges = want
            .len()
            .max(holders.len().min(want.iter().map(|w| w.1 as usize).sum()));
        let shards = self.shards(group, dcp_rank).len() as u64;
        self.groups[group as usize].matching_steps() + shards * (ranges * holders.len()) as u64
    }

    /// The producers' shares of the tokens that consumers of share `dcp_rank` need; `None` is any
    /// rank, because tokens are not spread.
    fn shards(&self, group: u32, dcp_rank: u32) -> Vec<Option<u32>> {
        let g = &self.groups[group as usize];
        let (mine, theirs): (&SideGeometry, &SideGeometry) = match self.consumer_is_local {
            true => (&g.local, &g.remote),
            false => (&g.remote, &g.local),
        };
        if theirs.dcp_size == 1 {
            vec![None]
        } else if g.dcp_cancels() {
            vec![Some(dcp_rank)]
        } else {
            let share = if mine.dcp_size > 1 { dcp_rank } else { 0 };
            g.matching_shards(share, self.consumer_is_local)
                .into_iter()
                .map(Some)
                .collect()
        }
    }

    /// For each producer given, how many ranks of the consumer's engine take something from it; `None`
    /// if that cannot be known.
    pub fn readers(&self) -> Option<Vec<usize>> {
        let p = &self.consumer.layout.parallel;
        if p.pp_size > 1 || p.dcp_rank != p.tp_rank % p.dcp_size {
            return None;
        }
        if self.effort.saturating_mul(p.tp_size.into()) > MAX_EFFORT {
            return None;
        }
        let mut count = vec![0; self.producers.ranks.len()];
        let mut reads = vec![false; count.len()];
        for rank in 0..p.tp_size {
            reads.fill(false);
            for class in &self.classes {
                let [own] = class.want[..] else { return None };
                let want = by_rule(own, class.heads_total, p.tp_rank, p.tp_size, rank)?;
                let dcp_rank = rank % p.dcp_size;
                let takes = self
                    .takes(class.group, &[want], &class.holders, rank, dcp_rank)
                    .ok()?;
                for take in takes {
                    if let Some(given) = class.holders[take.holder].given {
                        reads[given as usize] = true;
                    }
                }
            }
            reads
                .iter()
                .zip(&mut count)
                .for_each(|(r, n)| *n += usize::from(*r));
        }
        Some(count)
    }

    /// How many ranks of the producing engine the consumer takes something from; `None` if that
    /// cannot be known.
    pub fn writers(&self) -> Option<u32> {
        if self.producers.pp_size > 1 {
            return None;
        }
        let mut ranks: Vec<u32> = self
            .classes
            .iter()
            .flat_map(|c| c.takes.iter().map(|t| c.holders[t.holder].tp_rank))
            .collect();
        ranks.sort_unstable();
        ranks.dedup();
        Some(ranks.len() as u32)
    }

    /// What was chosen, for people; `peer` names the remote rank for a producer.
    pub fn shares(&self, peer: impl Fn(usize) -> usize) -> Vec<Share> {
        let mut out = Vec::new();
        for class in &self.classes {
            for take in &class.takes {
                let holder = &class.holders[take.holder];
                let Some(given) = holder.given else { continue };
                for (role, layers) in &class.layers {
                    out.push(Share {
                        peer: peer(given as usize) as u32,
                        group: class.group,
                        role: *role,
                        layers: *layers,
                        heads_total: class.heads_total,
                        head_first: take.first,
                        head_count: take.count,
                    });
                }
            }
        }
        out
    }
}

/// Checks that two parts of one role mean the same cells.
fn agree(local: &Part, remote: &Part, group: &GroupGeometry) -> Result<()> {
    let fields = [
        ("element size in bytes", local.elem_bytes, remote.elem_bytes),
        ("number of heads", local.heads_total, remote.heads_total),
    ];
    let differs = |fields: &[(&str, u32, u32)]| match fields.iter().find(|f| f.1 != f.2) {
        Some((name, l, r)) => bail!(Status::Mismatch, "{name}: local {l}, remote {r}"),
        None => Ok(()),
    };
    differs(&fields)?;
    if group.kind == GroupKind::State {
        differs(&[("rows of state", local.rows, remote.rows)])?;
    } else {
        check_rows(local, remote, group)?;
    }
    let size = |p: &Part| p.cell_bytes / p.elem_bytes;
    differs(&[("head size", size(local), size(remote))])
}

/// Pages whose inner order is not stated can only be exchanged for pages of the same size that do
/// not state it either.
fn check_rows(local: &Part, remote: &Part, group: &GroupGeometry) -> Result<()> {
    let tokens = |side: &SideGeometry| side.tokens_per_block / side.kernel_blocks;
    let whole = |p: &Part, side| p.rows == 1 && tokens(side) > 1;
    let (l, r) = (whole(local, &group.local), whole(remote, &group.remote));
    if l != r {
        let say = |whole| {
            if whole {
                "moves pages whole"
            } else {
                "states where each token is"
            }
        };
        bail!(
            Status::Mismatch,
            "rows: the local layout {} and the remote one {}, so there is no byte-exact mapping",
            say(l),
            say(r)
        );
    }
    if l && (group.local_atoms(), group.remote_atoms()) != (1, 1) {
        bail!(
            Status::Mismatch,
            "tokens per kernel block: local {}, remote {}, in pieces of {}; both layouts move pages \
             whole (rows 1), so there is no byte-exact mapping",
            tokens(&group.local),
            tokens(&group.remote),
            group.atom_tokens()
        );
    }
    Ok(())
}
