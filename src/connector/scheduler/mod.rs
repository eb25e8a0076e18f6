//! The half that lives with the engine's scheduler.
//!
//! It keeps the books of a request while the engine decides about it: what the router said
//! ([`super::params`]), whether its KV is to be fetched or kept, whether that has been arranged. It moves
//! no bytes and never waits; what it wants done goes to the ranks' workers as one byte string per engine
//! step ([`super::step`]).
//!
//! ```text
//!                    as consumer (decode)                    as producer (prefill)
//!  add               heartbeats begin                        trailing tokens to leave out
//!  match_tokens      prompt - cached tokens                  0 (turn 2: what the decoder still has)
//!  allocated         a receive is staged, once               "in batch"
//!  build_step        receives, heartbeats                    in batch, holds
//!  received          heartbeats end
//!  finished          nothing to keep                         a hold with a lease, parameters for the consumer
//!  sent                                                      the hold has ended
//! ```
//!
//! Every call is O(1) in the number of live requests, and so is a step, but for one in `heartbeat`, which
//! names every request that is waiting for its KV.
//!
//! # In files
//!
//! [`options`] is what can be chosen, `state` the books and the life of a request, `load` what is fetched for it
//! and `hold` what is kept, `pull` and `push` where the modes differ, `clip` which blocks are exchanged,
//! `leases` and `heartbeats` those tables, `serve` the listener that gives the ranks' handshake payloads away.

mod clip;
mod heartbeats;
mod hold;
mod leases;
mod load;
mod options;
mod pull;
mod push;
mod serve;
mod state;

use std::sync::{Arc, Mutex};

pub use options::{SchedulerOptions, TransferGroup};

use crate::error::{Result, Status, bail};
use crate::side_channel::Rank;
use crate::sync::lock;
use serve::Listener;
use state::State;

/// Blocks of a request in one group: part of its block table.
#[derive(Clone, Copy, Debug)]
pub struct RequestBlocks<'a> {
    /// Their ids.
    pub ids: &'a [u32],
    /// How many blocks of the table come before the first of them.
    pub first: u32,
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Finish {
    /// It has as many tokens as it may have.
    Length = 0,
    /// A stop token or string.
    Stop = 1,
    /// The client is gone.
    Abort = 2,
    /// It failed.
    Error = 3,
}

/// What has to become of a finished request's blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Keep {
    /// They can be freed now.
    #[default]
    No = 0,
    /// They are kept for a reader until the request is reported as sent.
    UntilSent = 1,
    /// They are being written to until the request is reported as received.
    UntilReceived = 2,
}

/// What [`Scheduler::finished`] answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finished {
    /// What has to become of the blocks.
    pub keep: Keep,
    /// Parameters for the other side, as JSON; `None`: none.
    pub params: Option<String>,
}

/// Sizes of the tables, to see that nothing is left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Requests that were added with parameters and are not finished.
    pub requests: u64,
    /// Requests whose KV is awaited, those that have ended meanwhile too.
    pub receiving: u64,
    /// Finished requests whose blocks are kept.
    pub holds: u64,
    /// Lease words in use.
    pub leases: u64,
    /// Requests whose leases on other engines are extended.
    pub heartbeats: u64,
    /// Engines that keep them.
    pub peers: u64,
}

/// The books of one engine. All methods may be called from any thread; one lock is held for the few
/// microseconds that each takes.
pub struct Scheduler {
    state: Mutex<State>,
    listener: Mutex<Listener>,
    clock: Clock,
}

/// Tells the time: nanoseconds of CLOCK_MONOTONIC, except in tests.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

impl Scheduler {
    /// An error if the options make no sense.
    pub fn create(options: SchedulerOptions) -> Result<Scheduler> {
        Self::with_clock(options, Arc::new(crate::clock::monotonic_ns))
    }

    /// With another clock.
    pub fn with_clock(options: SchedulerOptions, clock: Clock) -> Result<Scheduler> {
        options.check()?;
        Ok(Scheduler {
            listener: Mutex::new(Listener::new(&options)),
            state: Mutex::new(State::new(options)),
            clock,
        })
    }

    /// A request has entered the engine. `params` is its `kv_transfer_params` as JSON; what cannot be
    /// read is logged, and the request is a local one. Returns how many trailing prompt tokens the engine
    /// must drop from it, since the consumer computes them itself.
    ///
    /// # Errors
    /// `InvalidState` for an id under which something is still to be reported; `InvalidArgument` for one
    /// with a NUL in it. Nothing has changed then.
    pub fn add(
        &self,
        id: &str,
        params: &[u8],
        prompt_tokens: u64,
        reads_cache: bool,
    ) -> Result<u64> {
        if id.contains('\0') {
            bail!(Status::InvalidArgument, "request_id {id:?} contains a NUL");
        }
        let Some(params) = state::readable(id, params) else {
            return Ok(0);
        };
        let now = (self.clock)();
        lock(&self.state).add(id, params, prompt_tokens, reads_cache, now)
    }

    /// How many of the prompt's tokens can be loaded from another engine beyond the first
    /// `computed_tokens`. Changes nothing.
    pub fn match_tokens(&self, id: &str, prompt_tokens: u64, computed_tokens: u64) -> u64 {
        lock(&self.state).match_tokens(id, prompt_tokens, computed_tokens)
    }

    /// The request has blocks. `groups` are those that the prefix cache did not have, of each transfer
    /// group; `external_tokens` is what [`Scheduler::match_tokens`] said if the engine will wait for them,
    /// else 0. Returns whether the engine should note in the request's parameters that its transfer is
    /// arranged.
    ///
    /// # Errors
    /// As [`Scheduler::finished`].
    pub fn allocated(
        &self,
        id: &str,
        groups: &[RequestBlocks<'_>],
        external_tokens: u64,
    ) -> Result<bool> {
        let now = (self.clock)();
        lock(&self.state).allocated(id, groups, external_tokens, now)
    }

    /// What the workers have to do in this engine step, as bytes for each of them. What is too much for
    /// one step comes with the next.
    pub fn build_step(&self) -> Vec<u8> {
        let now = (self.clock)();
        lock(&self.state).build_step(now)
    }

    /// Every rank has reported these requests as received or failed.
    pub fn received<'a>(&self, ids: impl IntoIterator<Item = &'a str>) {
        let mut state = lock(&self.state);
        ids.into_iter().for_each(|id| state.received(id));
    }

    /// Every rank has reported these requests as sent (or their leases as over).
    pub fn sent<'a>(&self, ids: impl IntoIterator<Item = &'a str>) {
        let mut state = lock(&self.state);
        ids.into_iter().for_each(|id| state.sent(id));
    }

    /// A request has ended, in whatever way, and its blocks are about to be freed. `groups` are its
    /// blocks, all of them up to `computed_tokens`.
    ///
    /// # Errors
    /// `InvalidArgument` for a wrong number of groups or more blocks than parameters can name. Nothing has
    /// changed then.
    pub fn finished(
        &self,
        id: &str,
        how: Finish,
        groups: &[RequestBlocks<'_>],
        computed_tokens: u64,
    ) -> Result<Finished> {
        let now = (self.clock)();
        lock(&self.state).finished(id, how, groups, computed_tokens, now)
    }

    /// Whether the engine has to go on stepping although it has no request to run.
    pub fn has_pending(&self) -> bool {
        lock(&self.state).has_pending()
    }

    /// Starts the listener that gives the ranks' handshake payloads to other engines, or replaces what it
    /// gives away.
    pub fn serve(&self, ranks: Vec<(Rank, Vec<u8>)>) -> Result<()> {
        // Not under the lock of the books: a name look-up may take its time.
        let served = lock(&self.listener).serve(ranks)?;
        lock(&self.state).served(served);
        Ok(())
    }

    /// Host and port that other engines are told.
    pub fn address(&self) -> (String, u16) {
        let state = lock(&self.state);
        (state.options.host.clone(), state.port)
    }

    /// Sizes of the tables.
    pub fn stats(&self) -> SchedulerStats {
        lock(&self.state).stats()
    }
}
