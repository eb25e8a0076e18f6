//! What can be chosen.

use std::time::Duration;

use crate::connector::{MAX_ENGINE_ID, Mode, PeerAddress, check_ranks};
use crate::error::{Error, Result, Status, bail};
use crate::layout::{GroupKind, MAX_GROUPS};

/// A group of layers that takes part in transfers, as the scheduler sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferGroup {
    /// What it keeps.
    pub kind: GroupKind,
    /// Tokens of one logical block.
    pub tokens_per_block: u32,
    /// Tokens that a sliding window reaches back.
    pub window: u32,
    /// State groups: slots at the end of a request's list that only hold drafts.
    pub scratch_blocks: u32,
}

/// How a scheduler half works.
#[derive(Clone, Debug)]
pub struct SchedulerOptions {
    /// Which side moves the bytes.
    pub mode: Mode,
    /// This engine's id, the same for all of its ranks.
    pub engine_id: String,
    /// The host under which other engines reach this one's side channel.
    pub host: String,
    /// Its port; 0: the system chooses when [`super::Scheduler::serve`] is called.
    pub port: u16,
    /// Transfer ranks: the larger of the tensor-parallel and the decode-context-parallel size.
    pub tp_size: u32,
    /// Pipeline stages.
    pub pp_size: u32,
    /// Decode-context-parallel size.
    pub dcp_size: u32,
    /// The groups whose blocks are exchanged.
    pub groups: Vec<TransferGroup>,
    /// Whether sliding-window and state groups exchange only the blocks that a decoder needs.
    pub clip: bool,
    /// How long blocks are kept for a reader that sends no heartbeat.
    pub lease: Duration,
    /// Between heartbeats.
    pub heartbeat: Duration,
    /// Trailing prompt tokens that a producer leaves out and the consumer computes.
    pub backoff_tokens: u64,
    /// Multi-turn: a consumer keeps its blocks for the producer's next turn.
    pub bidirectional: bool,
    /// The least number of tokens worth fetching in a next turn; 0: any.
    pub recompute_threshold: u64,
    /// How long a consumer keeps its blocks for that.
    pub pin: Duration,
    /// Push: how long a consumer waits for its blocks to be written.
    pub registration_timeout: Duration,
    /// Whether parameters state how often ranks have published a payload (vLLM 0.33).
    pub state_registrations: bool,
}

impl Default for SchedulerOptions {
    /// vLLM's numbers; the engine's id and host have to be filled in.
    fn default() -> Self {
        let lease = Duration::from_secs(30);
        let pin = Duration::from_secs(480);
        SchedulerOptions {
            mode: Mode::Pull,
            engine_id: String::new(),
            host: String::new(),
            port: 0,
            tp_size: 1,
            pp_size: 1,
            dcp_size: 1,
            groups: Vec::new(),
            clip: false,
            lease,
            heartbeat: lease / 6,
            backoff_tokens: 0,
            bidirectional: false,
            recompute_threshold: 64,
            pin,
            registration_timeout: pin,
            state_registrations: false,
        }
    }
}

/// Longest of the times: ten years, so that no sum of a time and a clock overflows.
const MAX_TIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl SchedulerOptions {
    pub(super) fn check(&self) -> Result<()> {
        for (name, text) in [("engine_id", &self.engine_id), ("host", &self.host)] {
            if !(1..=MAX_ENGINE_ID).contains(&text.len()) {
                return Err(Error::invalid(format!(
                    "{name} has {} bytes; 1 to {MAX_ENGINE_ID} are allowed",
                    text.len()
                )));
            }
            if text.contains('\0') {
                return Err(Error::invalid(format!("{name} {text:?} contains a NUL")));
            }
        }
        check_ranks(&self.address(self.port)).map_err(|e| Error::invalid(e.message()))?;
        self.check_groups()?;
        for (name, time) in [
            ("lease", self.lease),
            ("heartbeat", self.heartbeat),
            ("pin", self.pin),
            ("registration_timeout", self.registration_timeout),
        ] {
            if time > MAX_TIME {
                return Err(Error::invalid(format!(
                    "{name} is {time:?}, longer than {MAX_TIME:?}"
                )));
            }
        }
        if self.mode == Mode::Push && self.bidirectional {
            bail!(
                Status::NotSupported,
                "bidirectional transfers are made by pull only, and mode is push"
            );
        }
        Ok(())
    }

    fn check_groups(&self) -> Result<()> {
        if !(1..=MAX_GROUPS).contains(&self.groups.len()) {
            return Err(Error::invalid(format!(
                "{} transfer groups; 1 to {MAX_GROUPS} are allowed",
                self.groups.len()
            )));
        }
        for (i, g) in self.groups.iter().enumerate() {
            let windowed = g.kind == GroupKind::SlidingWindow;
            if windowed && (g.window == 0 || g.tokens_per_block == 0) {
                return Err(Error::invalid(format!(
                    "groups[{i}]: a sliding window of {} tokens with {} tokens in a block",
                    g.window, g.tokens_per_block
                )));
            }
        }
        Ok(())
    }

    /// What other engines are told about this one.
    pub(super) fn address(&self, port: u16) -> PeerAddress {
        PeerAddress {
            engine_id: self.engine_id.clone(),
            host: self.host.clone(),
            port,
            tp_size: self.tp_size,
            pp_size: self.pp_size,
            dcp_size: self.dcp_size,
        }
    }
}
