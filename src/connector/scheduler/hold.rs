//! Finished requests whose blocks are kept for the other side.

use super::state::{State, nanoseconds};
use super::{Finished, Keep};
use crate::clock;
use crate::connector::params::Params;
use crate::connector::step::Hold;
use crate::connector::{LEASE_SLOTS, LeaseRef};

impl State {
    /// Keeps a finished request's blocks for the other side and says how to get them.
    pub(super) fn hold(
        &mut self,
        id: &str,
        producer: bool,
        blocks: Vec<Vec<u32>>,
        computed_tokens: u64,
        now: u64,
    ) -> Finished {
        let mut params = self.own_params(id, producer);
        let keep = match blocks.iter().all(Vec::is_empty) {
            true => Keep::No,
            false => {
                let lease = self.take_lease();
                let time = match producer {
                    true => self.options.lease,
                    false => self.options.pin,
                };
                let deadline = now.saturating_add(nanoseconds(time));
                if !producer {
                    params.remote_blocks_expiry_time = Some(deadline as f64 / 1e9);
                }
                params.remote_num_tokens = computed_tokens;
                params.kvferry_lease = lease;
                self.record_hold(id, deadline, lease);
                self.offer(id, &blocks, computed_tokens);
                Keep::UntilSent
            }
        };
        params.remote_block_ids = blocks;
        Finished {
            keep,
            params: Some(params.to_json(self.options.mode)),
        }
    }

    fn record_hold(&mut self, id: &str, deadline: u64, lease: Option<LeaseRef>) {
        self.step.holds.push(Hold {
            request_id: id.to_owned(),
            remaining_ns: deadline,
            lease,
        });
        self.holds.insert(id.to_owned(), lease);
    }

    pub(super) fn sent(&mut self, id: &str) {
        if let Some(Some(lease)) = self.holds.remove(id) {
            self.leases.give_back(lease);
        }
    }

    fn take_lease(&mut self) -> Option<LeaseRef> {
        let lease = self.leases.take(clock::realtime_us());
        if lease.is_none() {
            log::warn!(
                "all {LEASE_SLOTS} lease words are in use: blocks are kept, but their reader cannot make \
                 sure of it"
            );
        }
        lease
    }

    /// Parameters that name this engine.
    fn own_params(&self, id: &str, producer: bool) -> Params {
        let o = &self.options;
        Params {
            do_remote_prefill: producer,
            do_remote_decode: !producer,
            remote_engine_id: Some(o.engine_id.clone()),
            remote_request_id: Some(id.to_owned()),
            remote_host: Some(o.host.clone()),
            remote_port: Some(self.port),
            tp_size: Some(o.tp_size),
            dcp_size: Some(o.dcp_size),
            pp_size: Some(o.pp_size),
            transfer_mode: Some(o.mode.name().to_owned()),
            remote_registration_generation: match o.state_registrations {
                true => self.published,
                false => 0,
            },
            ..Params::default()
        }
    }
}
