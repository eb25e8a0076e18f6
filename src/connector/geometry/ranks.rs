//! Which ranks of a peer engine a rank has to do with.

use crate::error::{Result, Status, bail};
use crate::layout::{MAX_RANKS, Parallel};

/// See [`super::peer_ranks`].
pub(super) fn peer_ranks(mine: &Parallel, tp_size: u32, dcp_size: u32) -> Result<Vec<u32>> {
    for (name, value) in [("tp_size", tp_size), ("dcp_size", dcp_size)] {
        if value == 0 || value > MAX_RANKS {
            bail!(
                Status::PeerIncompatible,
                "{name} {value} is not within 1 and {MAX_RANKS}"
            );
        }
    }
    if dcp_size > 1 {
        return shares(mine, tp_size, dcp_size);
    }
    ratio(mine.tp_size, tp_size)?;
    if mine.tp_size >= tp_size {
        return Ok(vec![mine.tp_rank / (mine.tp_size / tp_size)]);
    }
    let each = tp_size / mine.tp_size;
    Ok((mine.tp_rank * each..(mine.tp_rank + 1) * each).collect())
}

/// The peer spreads tokens over its ranks: those whose tokens this rank keeps too.
fn shares(mine: &Parallel, tp_size: u32, dcp_size: u32) -> Result<Vec<u32>> {
    let (own, rank) = (mine.dcp_size, mine.dcp_rank);
    if own % dcp_size != 0 && dcp_size % own != 0 {
        bail!(
            Status::PeerIncompatible,
            "dcp_size: {own} here, {dcp_size} there; one has to divide the other"
        );
    }
    Ok(if own <= dcp_size {
        (0..tp_size).filter(|r| r % own == rank).collect()
    } else {
        vec![rank % dcp_size]
    })
}

/// Refuses tensor-parallel sizes of which neither divides the other.
pub(super) fn ratio(mine: u32, theirs: u32) -> Result<()> {
    if mine == 0 || theirs == 0 || (mine % theirs != 0 && theirs % mine != 0) {
        bail!(
            Status::PeerIncompatible,
            "tp_size: {mine} here, {theirs} there; one has to divide the other"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(rank: u32, size: u32, tp: u32, dcp: (u32, u32)) -> Vec<u32> {
        peer_ranks(&Parallel::tp(rank, size).with_dcp(dcp.0, 0), tp, dcp.1).unwrap()
    }

    #[test]
    fn tensor_parallel_ranks() {
        assert_eq!(asked(3, 4, 4, (1, 1)), [3]);
        assert_eq!(asked(3, 4, 2, (1, 1)), [1]);
        assert_eq!(asked(1, 2, 8, (1, 1)), [4, 5, 6, 7]);
        let e = peer_ranks(&Parallel::tp(0, 2), 3, 1).unwrap_err();
        assert_eq!(e.status(), Status::PeerIncompatible);
        assert!(e.message().contains("2 here, 3 there"), "{e}");
        assert!(peer_ranks(&Parallel::tp(0, 2), 0, 1).is_err());
        assert!(peer_ranks(&Parallel::tp(0, 2), u32::MAX, u32::MAX).is_err());
    }

    #[test]
    fn context_parallel_ranks() {
        // Not spread here: every share is needed.
        assert_eq!(asked(0, 1, 2, (1, 2)), [0, 1]);
        // Spread wider there: every share of what is ours.
        assert_eq!(asked(1, 2, 4, (2, 4)), [1, 3]);
        // Spread wider here: one share has all of ours.
        assert_eq!(asked(3, 4, 2, (4, 2)), [1]);
        // Not spread there: by tensor-parallel rank.
        assert_eq!(asked(1, 2, 1, (2, 1)), [0]);
    }
}
