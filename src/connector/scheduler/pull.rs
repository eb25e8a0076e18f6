//! Pull: the consumer reads. Only here a producer can be a consumer too, in the turns of a conversation:
//! the decode engine keeps its blocks (*pins* them) and says so in its parameters, and the next turn's
//! prefill fetches from it what its own prefix cache lacks.

use super::state::{Request, State};
use crate::connector::params::Params;

impl State {
    /// Whether this is a later turn's prefill that has not fetched yet.
    pub(super) fn is_next_turn(&self, params: &Params) -> bool {
        self.options.bidirectional && params.do_remote_decode && !params.remote_blocks_processed
    }

    /// Tokens worth fetching from the decode engine of the turn before.
    pub(super) fn next_turn(&self, request: &Request, prompt: u64, computed: u64) -> u64 {
        let there = request.params.remote_num_tokens.min(prompt);
        match there.saturating_sub(computed) {
            few if few < self.options.recompute_threshold => 0,
            tokens => tokens,
        }
    }
}
