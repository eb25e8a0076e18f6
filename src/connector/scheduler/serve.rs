//! The listener that gives the ranks' handshake payloads to other engines.

use super::options::SchedulerOptions;
use crate::error::{Result, Status, bail};

/// What one rank of this engine tells those of others.
#[derive(Clone, Copy, Debug)]
pub struct RankPayload<'a> {
    /// Pipeline stage.
    pub pp_rank: u32,
    /// Transfer rank in it.
    pub tp_rank: u32,
    /// Its handshake payload.
    pub data: &'a [u8],
}

/// What the books have to know about it.
pub(super) struct Served {
    pub(super) port: u16,
    /// Payloads that were new or have changed.
    pub(super) changed: u64,
}

pub(super) struct Listener {}

impl Listener {
    pub(super) fn new(_options: &SchedulerOptions) -> Self {
        Listener {}
    }

    pub(super) fn serve(&mut self, _ranks: &[RankPayload<'_>]) -> Result<Served> {
        bail!(
            Status::NotSupported,
            "the ZeroMQ side channel is not here yet"
        )
    }
}
