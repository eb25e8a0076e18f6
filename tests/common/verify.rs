//! Runs a request through the library between two simulated engines and compares every byte.

#![allow(dead_code)] // Each test uses its part.

use super::sim::*;
use kvferry::layout::GroupKind;
use kvferry::plan::*;

/// The block ids of one group.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    /// Producer's and consumer's ids.
    pub p: Vec<u32>,
    pub d: Vec<u32>,
    /// Blocks of the request before the first of the list.
    pub p_first: u64,
    pub d_first: u64,
}

/// What of a request's positions the test tells the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nothing: the positions follow from the lists.
    Nothing,
    /// The number of tokens.
    Tokens(u64),
    /// Where the lists begin.
    Firsts,
}

/// The requests of all groups as the library takes them.
pub fn request<'a>(lists: &'a [Lists], told: Told, pull: bool) -> Vec<GroupBlocks<'a>> {
    lists
        .iter()
        .map(|l| {
            let state = |x: u64| (told == Told::Firsts).then_some(x as u32);
            let (d, p) = ((&l.d[..], state(l.d_first)), (&l.p[..], state(l.p_first)));
            let (local, remote) = if pull { (d, p) } else { (p, d) };
            GroupBlocks {
                local: local.0,
                remote: remote.0,
                local_first: local.1,
                remote_first: remote.1,
            }
        })
        .collect()
}

/// Checks that the ways to get ranges agree, and returns them.
fn ranges_of(runs: &Runs) -> Vec<Range> {
    let ranges = runs.expand().expect("expand");
    let stats = runs.stats();
    assert_eq!(ranges.len() as u64, stats.ranges, "ranges counted");
    assert_eq!(
        ranges.iter().map(|r| r.len).sum::<u64>(),
        stats.bytes,
        "bytes counted"
    );
    assert!(
        stats.ranges <= stats.ranges_before,
        "merging never adds ranges"
    );
    // The queue's way: slices of a few ranges each.
    let (mut local, mut remote) = (Vec::new(), Vec::new());
    for batch in runs.plan().batches() {
        let mut cursor = Cursor::default();
        let mut slice = 1;
        while runs.fill(batch, &mut cursor, slice, &mut local, &mut remote) > 0 {
            slice = slice % 7 + 1;
        }
    }
    let flat: Vec<(u64, u64, u64)> = local
        .iter()
        .zip(&remote)
        .map(|(l, r)| (l.addr, r.addr, l.len))
        .collect();
    let expanded: Vec<(u64, u64, u64)> =
        ranges.iter().map(|r| (r.local, r.remote, r.len)).collect();
    assert_eq!(flat, expanded, "fill and expand agree");
    ranges
}

/// What the consumer's ranks must look like afterwards, and how many bytes that changes.
pub fn expected(p: &Engine, d: &Engine, lists: &[Lists]) -> (Vec<Vec<u8>>, u64) {
    let mut memories: Vec<Vec<u8>> = d.ranks.iter().map(|r| r.memory.clone()).collect();
    let mut bytes = 0;
    for (g, list) in lists.iter().enumerate() {
        // The producer has the positions of its blocks.
        let span = p.span(g);
        let has = list.p_first * span..(list.p_first + list.p.len() as u64) * span;
        for (rank, memory) in memories.iter_mut().enumerate() {
            d.bytes_of(
                rank,
                g,
                &list.d,
                list.d_first,
                |t| has.contains(&t),
                |at, v| {
                    memory[at] = v;
                    bytes += 1;
                },
            );
        }
    }
    (memories, bytes)
}

/// Compares memories, and says where they first differ.
pub fn same(what: &str, rank: usize, got: &[u8], want: &[u8]) -> Result<(), String> {
    match got.iter().zip(want).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => {
            let wrong = got.iter().zip(want).filter(|(a, b)| a != b).count();
            Err(format!(
                "{what}: consumer rank {rank}: byte {at} is {}, not {}; {wrong} of {} differ",
                got[at],
                want[at],
                want.len()
            ))
        }
    }
}

/// Fills the producer, lets every consumer rank pull, and compares; then the same by push.
pub fn check(
    model: &[GroupModel],
    p_style: &EngineStyle,
    d_style: &EngineStyle,
    lists: &[Lists],
    told: Told,
    options: PlanOptions,
) -> Result<RunStats, String> {
    check_with(model, p_style, d_style, lists, told, options, |_, _, _| {
        Ok(())
    })
}

/// The same with layouts that come from elsewhere: `describe` replaces those of the producer and of the
/// consumer.
pub fn check_with(
    model: &[GroupModel],
    p_style: &EngineStyle,
    d_style: &EngineStyle,
    lists: &[Lists],
    told: Told,
    options: PlanOptions,
    describe: impl Fn(Direction, &mut Engine, &mut Engine) -> Result<(), String>,
) -> Result<RunStats, String> {
    let mut p = Engine::new(model, p_style, 1000);
    for (g, list) in lists.iter().enumerate() {
        p.fill(g, &list.p, list.p_first);
    }
    let before: Vec<Vec<u8>> = p.ranks.iter().map(|r| r.memory.clone()).collect();

    let mut total = RunStats::default();
    for direction in [Direction::Pull, Direction::Push] {
        let mut d = Engine::new(model, d_style, 2000);
        describe(direction, &mut p, &mut d)?;
        let (want, bytes) = expected(&p, &d, lists);
        let options = PlanOptions {
            direction,
            ..options
        };
        let mut moved = 0;
        let pull = direction == Direction::Pull;
        let blocks = request(lists, told, pull);
        let tokens = if let Told::Tokens(n) = told {
            Some(n)
        } else {
            None
        };
        let request = Request {
            groups: &blocks,
            tokens,
        };
        let (mut heard, mut notifiers) = (vec![0; p.ranks.len()], vec![None; p.ranks.len()]);
        let what = format!("{direction:?}");
        if pull {
            for i in 0..d.ranks.len() {
                let plan = Plan::build(&d.ranks[i].layout, &p.layouts(), &options)
                    .map_err(|e| format!("{what}: plan of rank {i}: {e}"))?;
                let runs = plan
                    .runs(&request)
                    .map_err(|e| format!("{what}: runs of rank {i}: {e}"))?;
                for r in ranges_of(&runs) {
                    copy(
                        &p.ranks[r.peer as usize],
                        r.remote,
                        &mut d.ranks[i],
                        r.local,
                        r.len,
                    );
                }
                moved += runs.stats().bytes;
                total.ranges += runs.stats().ranges;
                total.ranges_before += runs.stats().ranges_before;
                for (j, peer) in plan.peers().iter().enumerate() {
                    heard[j] += u32::from(peer.role != PeerRole::Idle);
                    let said = notifiers[j].get_or_insert(peer.notifiers);
                    if *said != peer.notifiers {
                        return Err(format!("{what}: rank {i} and others disagree on peer {j}"));
                    }
                }
            }
        } else if p_style.pp == 1 {
            for i in 0..p.ranks.len() {
                let plan = Plan::build(&p.ranks[i].layout, &d.layouts(), &options)
                    .map_err(|e| format!("{what}: plan of rank {i}: {e}"))?;
                let runs = plan
                    .runs(&request)
                    .map_err(|e| format!("{what}: runs of rank {i}: {e}"))?;
                for r in ranges_of(&runs) {
                    copy(
                        &p.ranks[i],
                        r.local,
                        &mut d.ranks[r.peer as usize],
                        r.remote,
                        r.len,
                    );
                }
                moved += runs.stats().bytes;
            }
        } else {
            for i in 0..p.ranks.len() {
                let plan = Plan::build(&p.ranks[i].layout, &d.layouts(), &options)
                    .map_err(|e| format!("{what}: plan of stage {i}: {e}"))?;
                let runs = plan.runs(&request).map_err(|e| format!("{what}: {e}"))?;
                for r in ranges_of(&runs) {
                    copy(
                        &p.ranks[i],
                        r.local,
                        &mut d.ranks[r.peer as usize],
                        r.remote,
                        r.len,
                    );
                }
                moved += runs.stats().bytes;
            }
        }
        for (i, want) in want.iter().enumerate() {
            same(&what, i, &d.ranks[i].memory, want)?;
        }
        if moved != bytes {
            return Err(format!(
                "{what}: {moved} bytes moved where {bytes} were wanted"
            ));
        }
        if pull {
            total.bytes = moved;
            for (j, (heard, said)) in heard.iter().zip(notifiers).enumerate() {
                let said = said.unwrap_or(0);
                if *heard == 0 || said != 0 && said != *heard {
                    return Err(format!(
                        "producer rank {j} hears from {heard} ranks, and the plan says {said}"
                    ));
                }
            }
        }
    }
    for (rank, before) in p.ranks.iter().zip(before) {
        if rank.memory != before {
            return Err("the producer's memory changed".into());
        }
    }
    Ok(total)
}

/// Ids `first..first + n`, in an order that has both runs and jumps.
pub fn ids(pool: u32, n: u32, salt: u32) -> Vec<u32> {
    let mut all: Vec<u32> = (0..pool).collect();
    // Deal in chunks of three, the chunks in a scattered order.
    let mut chunks: Vec<&[u32]> = all.chunks(3).collect();
    chunks.sort_by_key(|c| value(salt, kvferry::layout::Role(7), c[0], 0, 0, 0));
    all = chunks.concat();
    all.truncate(n as usize);
    assert_eq!(
        all.len(),
        n as usize,
        "pool of {pool} blocks is too small for {n}"
    );
    all
}

/// Lists for `tokens` tokens of which the consumer already has `cached`; a windowed group keeps the
/// end only. A state group moves `states` states.
pub fn lists(
    model: &[GroupModel],
    p: &EngineStyle,
    d: &EngineStyle,
    tokens: u64,
    cached: u64,
    states: u32,
) -> Vec<Lists> {
    let mut taken: Vec<(u32, u32)> = vec![(0, 0); model.len()];
    let mut out = Vec::new();
    for (g, m) in model.iter().enumerate() {
        let span = |e: &EngineStyle| {
            let s = &e.groups[g];
            u64::from(s.tokens_per_page * s.pages_per_block * e.dcp)
        };
        let (p_all, d_all) = (tokens.div_ceil(span(p)), tokens.div_ceil(span(d)));
        let (mut p_first, mut d_first) = (0, cached / span(d));
        let (mut p_n, mut d_n) = (p_all, d_all.saturating_sub(d_first));
        if m.kind == GroupKind::State {
            (p_first, d_first, p_n, d_n) = (0, 0, states.into(), states.into());
        } else if m.window > 0 {
            // The last blocks that the window can touch, and one more, as engines do.
            let clip = |e: &EngineStyle| u64::from(m.window).div_ceil(span(e)) + 1;
            p_first = p_all.saturating_sub(clip(p));
            p_n = p_all - p_first;
            d_first = d_first.max(d_all.saturating_sub(clip(d)));
            d_n = d_all - d_first.min(d_all);
        }
        // Groups laid over each other draw from one pool.
        let pool = m.over.unwrap_or(g);
        let (p_skip, d_skip) = taken[pool];
        let pick = |e: &EngineStyle, skip: u32, n: u64, salt: u32| {
            ids(e.blocks, skip + n as u32, salt + pool as u32)[skip as usize..].to_vec()
        };
        out.push(Lists {
            p: pick(p, p_skip, p_n, 11),
            d: pick(d, d_skip, d_n, 77),
            p_first,
            d_first,
        });
        taken[pool] = (p_skip + p_n as u32, d_skip + d_n as u32);
    }
    out
}
