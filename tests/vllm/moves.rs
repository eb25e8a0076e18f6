//! Byte ranges that two engines move, in a form in which equal sets of bytes are equal.

use kvferry::plan::{Plan, Range};

/// (prefill rank, local address, remote address, bytes)
pub type Move = [u64; 4];

/// Sorted, and those joined that continue each other on both sides: equal for equal sets of bytes.
pub fn normal(mut moves: Vec<Move>) -> Vec<Move> {
    moves.sort_unstable();
    let mut out: Vec<Move> = Vec::new();
    for m in moves {
        if let Some(last) = out.last_mut() {
            let [rank, local, remote, len] = *last;
            if rank == m[0] && local + len == m[1] && remote + len == m[2] {
                last[3] += m[3];
                continue;
            }
            // A byte that is written twice would make the comparison meaningless.
            assert!(rank != m[0] || local + len <= m[1], "{last:?} and {m:?}");
        }
        out.push(m);
    }
    out
}

/// What ranges of a plan move.
pub fn of_ranges(plan: &Plan, ranges: &[Range]) -> Vec<Move> {
    let rank = |r: &Range| u64::from(plan.peers()[r.peer as usize].tp_rank);
    normal(
        ranges
            .iter()
            .map(|r| [rank(r), r.local, r.remote, r.len])
            .collect(),
    )
}
