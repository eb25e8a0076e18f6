//! An engine that does as vLLM does around a scheduler half: it drives, and it looks at the steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kvferry::connector::LeaseRef;
use kvferry::connector::scheduler::{
    Finish, Finished, RequestBlocks, Scheduler, SchedulerOptions, SchedulerStats, TransferGroup,
};
use kvferry::connector::step::Step;
use kvferry::layout::GroupKind;

pub const SECOND: u64 = 1_000_000_000;

/// Blocks of 16 tokens with full attention.
pub const FULL: TransferGroup = TransferGroup {
    kind: GroupKind::Full,
    tokens_per_block: 16,
    window: 0,
    scratch_blocks: 0,
};

pub fn window(tokens: u32) -> TransferGroup {
    TransferGroup {
        kind: GroupKind::SlidingWindow,
        window: tokens,
        ..FULL
    }
}

pub fn state(scratch_blocks: u32) -> TransferGroup {
    TransferGroup {
        kind: GroupKind::State,
        scratch_blocks,
        ..FULL
    }
}

pub fn options() -> SchedulerOptions {
    SchedulerOptions {
        engine_id: "me".into(),
        host: "my-host".into(),
        port: 5600,
        groups: vec![FULL],
        ..SchedulerOptions::default()
    }
}

pub struct Engine {
    pub half: Scheduler,
    now: Arc<AtomicU64>,
}

impl Engine {
    pub fn new(options: SchedulerOptions) -> Engine {
        let now = Arc::new(AtomicU64::new(1000 * SECOND));
        let clock = now.clone();
        let half = Scheduler::with_clock(options, Arc::new(move || clock.load(Ordering::Relaxed)))
            .unwrap();
        Engine { half, now }
    }

    pub fn pull() -> Engine {
        Engine::new(options())
    }

    pub fn wait(&self, time: Duration) {
        self.now
            .fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    pub fn add(&self, id: &str, params: &str, prompt: u64) -> u64 {
        self.half.add(id, params.as_bytes(), prompt, true).unwrap()
    }

    /// A list of blocks for each group; where each begins.
    pub fn allocated(&self, id: &str, groups: &[(&[u32], u32)], external: u64) -> bool {
        self.half.allocated(id, &blocks(groups), external).unwrap()
    }

    pub fn finished(&self, id: &str, how: Finish, groups: &[&[u32]], computed: u64) -> Finished {
        let groups: Vec<_> = groups.iter().map(|&ids| (ids, 0)).collect();
        self.half
            .finished(id, how, &blocks(&groups), computed)
            .unwrap()
    }

    pub fn step(&self) -> Step {
        Step::decode(&self.half.build_step()).unwrap()
    }

    /// Nothing is left in any table.
    pub fn is_empty(&self) -> bool {
        self.half.stats() == SchedulerStats::default()
    }
}

pub fn blocks<'a>(groups: &[(&'a [u32], u32)]) -> Vec<RequestBlocks<'a>> {
    groups
        .iter()
        .map(|&(ids, first)| RequestBlocks { ids, first })
        .collect()
}

/// What a stock producer's parameters look like when they come through a router.
pub fn from_producer(request: &str, blocks: &str, tokens: u64) -> String {
    format!(
        r#"{{"do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": {blocks},
            "remote_engine_id": "prefill", "remote_request_id": "{request}", "remote_host": "p-host",
            "remote_port": 5700, "tp_size": 2, "dcp_size": 1, "pp_size": 1,
            "remote_num_tokens": {tokens}, "remote_blocks_expiry_time": null,
            "transfer_mode": "pull", "remote_prefill_cached_tokens": 16}}"#
    )
}

pub const TO_PRODUCER: &str = r#"{"do_remote_decode": true, "do_remote_prefill": false,
    "remote_engine_id": null, "remote_block_ids": null, "remote_host": null, "remote_port": null}"#;

/// Takes the lease word out of parameters. Its generation is a time, in microseconds since 1970, not before
/// `since`.
#[track_caller]
pub fn take_lease(params: &mut serde_json::Value, since: u64) -> LeaseRef {
    let lease = params.as_object_mut().unwrap().remove("kvferry_lease");
    let (slot, generation): (u32, u64) = serde_json::from_value(lease.unwrap()).unwrap();
    assert!((since..=now_us()).contains(&generation), "{generation}");
    LeaseRef { slot, generation }
}

pub fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_micros() as u64
}

/// `step` says nothing but the time.
pub fn is_idle(step: &Step) -> bool {
    *step
        == Step {
            clock_ns: step.clock_ns,
            ..Step::default()
        }
}
