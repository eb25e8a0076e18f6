//! Who talks to whom: which ranks a rank shakes hands with, and how many messages end a request. Pure
//! arithmetic on the sizes of the two engines; both sides have to come to the same figures.

use crate::error::{Result, Status, bail};

/// How many ranks an engine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Tensor-parallel (transfer) ranks.
    pub tp: u32,
    /// Decode-context-parallel size: 1, or `tp` when the cache is sharded by position.
    pub dcp: u32,
}

impl Sizes {
    /// An engine whose ranks each hold all positions.
    pub fn tp(tp: u32) -> Self {
        Sizes { tp, dcp: 1 }
    }
}

/// The tensor-parallel ranks of `remote` that rank `rank` of `local` asks for their metadata, in the
/// order in which it asks; for a remote with pipeline stages, of each stage.
///
/// They are those it reads from and those it only has to tell that it is done.
///
/// # Errors
/// `PeerIncompatible` when neither size is a multiple of the other; `InvalidArgument` for a rank or
/// sizes that are none.
pub fn handshake_ranks(local: Sizes, rank: u32, remote: Sizes) -> Result<Vec<u32>> {
    check(local, remote)?;
    if rank >= local.tp {
        bail!(
            Status::InvalidArgument,
            "rank {rank} is not below the TP size {}",
            local.tp
        );
    }
    if remote.dcp > 1 {
        // Shard r of the remote holds the positions r modulo its size.
        let ours = rank % local.dcp;
        if local.dcp > remote.dcp {
            return Ok(vec![ours % remote.dcp]);
        }
        return Ok((0..remote.tp).filter(|r| r % local.dcp == ours).collect());
    }
    if local.tp >= remote.tp {
        return Ok(vec![rank / (local.tp / remote.tp)]);
    }
    let n = remote.tp / local.tp;
    Ok((rank * n..(rank + 1) * n).collect())
}

/// How many ranks of the consumer tell each rank of the producer that they are done with a request: the
/// number in a read-done notification.
///
/// # Errors
/// As [`handshake_ranks`].
pub fn consumer_count(consumer: Sizes, producer: Sizes) -> Result<u32> {
    check(consumer, producer)?;
    if producer.dcp > 1 {
        return Ok(if consumer.dcp == 1 {
            consumer.tp
        } else {
            (consumer.dcp / producer.dcp).max(1)
        });
    }
    Ok((consumer.tp / producer.tp).max(1))
}

/// How many push-done notifications a rank of the consumer gets for a request: one of each rank of the
/// producer that writes to it.
pub fn push_done_count(consumer_tp: u32, producer_tp: u32, producer_pp: u32) -> u32 {
    let ranks = producer_tp.checked_div(consumer_tp).unwrap_or(1).max(1);
    producer_pp.max(1).saturating_mul(ranks)
}

fn check(a: Sizes, b: Sizes) -> Result<()> {
    for s in [a, b] {
        if s.tp == 0 || s.dcp == 0 || s.tp > super::MAX_RANKS || s.dcp > s.tp {
            bail!(
                Status::InvalidArgument,
                "TP {} and DCP {} are no sizes of an engine",
                s.tp,
                s.dcp
            );
        }
    }
    if b.dcp > 1 {
        if a.dcp % b.dcp != 0 && b.dcp % a.dcp != 0 {
            bail!(
                Status::PeerIncompatible,
                "DCP sizes {} and {} do not divide one another",
                a.dcp,
                b.dcp
            );
        }
        return Ok(());
    }
    if a.tp % b.tp != 0 && b.tp % a.tp != 0 {
        bail!(
            Status::PeerIncompatible,
            "TP sizes {} and {} do not divide one another",
            a.tp,
            b.tp
        );
    }
    Ok(())
}
