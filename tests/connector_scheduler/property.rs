//! Random lives of random requests: each awaited transfer is staged once, aborted ones are stopped, and
//! nothing is left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kvferry::connector::Mode;
use kvferry::connector::scheduler::{Finish, Keep, SchedulerOptions};
use kvferry::connector::step::Step;
use proptest::prelude::*;

use crate::support::*;

#[derive(Clone, Copy, Debug)]
enum Event {
    /// Of this kind, with so many tokens cached.
    Add(u8, u64),
    /// Allocate for one that waits.
    Schedule(usize),
    Step,
    /// The workers report one that they receive.
    Received(usize),
    /// ... one that they keep.
    Sent(usize),
    Finish(usize, u8),
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let which = any::<usize>;
    prop_oneof![
        3 => (0u8..4, 0u64..48).prop_map(|(kind, cached)| Event::Add(kind, cached / 16 * 16)),
        4 => which().prop_map(Event::Schedule),
        4 => Just(Event::Step),
        3 => which().prop_map(Event::Received),
        2 => which().prop_map(Event::Sent),
        3 => (which(), 0u8..4).prop_map(|(i, how)| Event::Finish(i, how)),
        1 => (0u64..40).prop_map(Event::Wait),
    ]
}

/// The engine's view, kept without looking into the scheduler half.
struct World {
    engine: Engine,
    mode: Mode,
    made: usize,
    /// Waiting for blocks, with the tokens that are cached.
    waiting: BTreeMap<String, u64>,
    /// Allocated and waiting for their KV; whether they have ended meanwhile.
    parked: BTreeMap<String, bool>,
    running: BTreeSet<String>,
    /// Ended and kept.
    kept: BTreeSet<String>,
    /// What the workers have been told.
    told: BTreeSet<String>,
    ever_told: BTreeSet<String>,
    cancelled: BTreeSet<String>,
    armed: BTreeMap<String, Option<(u32, u64)>>,
}

const PROMPT: u64 = 48;

impl World {
    fn new(mode: Mode, bidirectional: bool) -> World {
        World {
            engine: Engine::new(SchedulerOptions {
                mode,
                bidirectional,
                recompute_threshold: 0,
                registration_timeout: Duration::from_secs(60),
                ..options()
            }),
            mode,
            made: 0,
            waiting: BTreeMap::new(),
            parked: BTreeMap::new(),
            running: BTreeSet::new(),
            kept: BTreeSet::new(),
            told: BTreeSet::new(),
            ever_told: BTreeSet::new(),
            cancelled: BTreeSet::new(),
            armed: BTreeMap::new(),
        }
    }

    fn run(&mut self, event: Event) {
        match event {
            Event::Add(kind, cached) => self.add(kind, cached),
            Event::Schedule(i) => {
                if let Some(id) = pick(self.waiting.keys(), i) {
                    self.schedule(&id);
                }
            }
            Event::Step => self.step(),
            Event::Received(i) => {
                if let Some(id) = pick(&self.told, i) {
                    self.received(&id);
                }
            }
            Event::Sent(i) => {
                if let Some(id) = pick(self.armed.keys(), i) {
                    self.sent(&id);
                }
            }
            Event::Finish(i, how) => {
                let parked = self.parked.iter().filter(|(_, ended)| !**ended);
                let all: Vec<_> = self
                    .waiting
                    .keys()
                    .chain(&self.running)
                    .chain(parked.map(|p| p.0))
                    .collect();
                if let Some(id) = pick(all, i) {
                    self.finish(&id, how);
                }
            }
            Event::Wait(seconds) => self.engine.wait(Duration::from_secs(seconds)),
        }
    }

    fn add(&mut self, kind: u8, cached: u64) {
        self.made += 1;
        let id = format!("r{}", self.made);
        let there = format!("there-{id}");
        let params = match kind {
            0 => TO_PRODUCER.to_owned(),
            1 => "null".to_owned(),
            2 => from_producer(&there, "[[1, 2, 3]]", PROMPT),
            // A next turn's prefill.
            _ => from_producer(&there, "[[1, 2, 3]]", PROMPT)
                .replace("prefill\": true", "prefill\": false")
                .replace("decode\": false", "decode\": true"),
        };
        self.engine.add(&id, &params, PROMPT);
        self.waiting.insert(id, cached);
    }

    fn schedule(&mut self, id: &str) {
        let cached = self.waiting.remove(id).unwrap();
        let tokens = self.engine.half.match_tokens(id, PROMPT, cached);
        let blocks: Vec<u32> = (cached as u32 / 16..3).collect();
        self.engine
            .allocated(id, &[(&blocks, cached as u32 / 16)], tokens);
        match tokens {
            0 => drop(self.running.insert(id.to_owned())),
            _ => drop(self.parked.insert(id.to_owned(), false)),
        }
    }

    fn step(&mut self) {
        let step: Step = self.engine.step();
        let awaited = step
            .receives
            .iter()
            .chain(&step.registrations)
            .filter(|r| r.awaited);
        for r in awaited {
            assert!(
                self.parked.contains_key(&r.request_id),
                "nobody waits for {}",
                r.request_id
            );
            assert!(
                self.ever_told.insert(r.request_id.clone()),
                "{} twice",
                r.request_id
            );
            self.told.insert(r.request_id.clone());
            if self.mode == Mode::Pull && self.parked[&r.request_id] {
                assert!(r.local.is_empty(), "{} has ended", r.request_id);
                self.cancelled.insert(r.request_id.clone());
            }
        }
        for id in step.cancel {
            assert!(
                self.ever_told.contains(&id),
                "{id} is not known to the workers"
            );
            assert!(self.cancelled.insert(id.clone()), "{id} is cancelled twice");
        }
        for h in step.holds {
            assert!(self.kept.contains(&h.request_id));
            let lease = h.lease.map(|l| (l.slot, l.generation));
            assert!(!self.armed.values().any(|l| *l == lease), "a word for two");
            self.armed.insert(h.request_id, lease);
        }
        for (id, ended) in &self.parked {
            let stopped = self.cancelled.contains(id);
            assert!(!ended || stopped, "{id} has ended and is still received");
        }
    }

    fn received(&mut self, id: &str) {
        self.told.remove(id);
        self.engine.half.received([id]);
        if !self.parked.remove(id).unwrap() {
            self.running.insert(id.to_owned());
            // Scheduled now, with nothing to load.
            assert_eq!(self.engine.half.match_tokens(id, PROMPT, 0), 0);
            self.engine.allocated(id, &[(&[1, 2, 3], 0)], 0);
        }
    }

    fn sent(&mut self, id: &str) {
        self.armed.remove(id);
        assert!(self.kept.remove(id));
        self.engine.half.sent([id]);
    }

    fn finish(&mut self, id: &str, how: u8) {
        let how = [Finish::Length, Finish::Stop, Finish::Abort, Finish::Error][usize::from(how)];
        let unscheduled = self.waiting.remove(id).is_some();
        let was_parked = self.parked.contains_key(id);
        // What waits does not end by itself.
        let how = if unscheduled || was_parked {
            Finish::Abort
        } else {
            how
        };
        let blocks: &[&[u32]] = if unscheduled { &[] } else { &[&[1, 2, 3]] };
        let end = self.engine.finished(id, how, blocks, PROMPT);
        if was_parked {
            assert_eq!(end.keep, Keep::UntilReceived);
            self.parked.insert(id.to_owned(), true);
        } else {
            assert!(end.keep != Keep::UntilReceived);
        }
        if end.keep == Keep::UntilSent {
            assert!(matches!(how, Finish::Length | Finish::Stop) && end.params.is_some());
            self.kept.insert(id.to_owned());
        }
        self.running.remove(id);
    }

    fn wind_up(&mut self) {
        for id in self.waiting.clone().into_keys().chain(self.running.clone()) {
            self.finish(&id, 2);
        }
        let parked: Vec<_> = self
            .parked
            .iter()
            .filter(|p| !p.1)
            .map(|p| p.0.clone())
            .collect();
        for id in parked {
            self.finish(&id, 2);
        }
        self.step();
        for id in self.told.clone() {
            self.received(&id);
        }
        for id in self.armed.clone().into_keys() {
            self.sent(&id);
        }
        assert!(self.parked.is_empty() && self.kept.is_empty());
        assert!(self.engine.is_empty(), "{:?}", self.engine.half.stats());
        assert!(!self.engine.half.has_pending());
        assert!(is_idle(&self.engine.step()));
    }
}

fn pick<'a>(ids: impl IntoIterator<Item = &'a String>, i: usize) -> Option<String> {
    let ids: Vec<_> = ids.into_iter().collect();
    (!ids.is_empty()).then(|| ids[i % ids.len()].clone())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_is_left_behind(
        push: bool,
        turns: bool,
        events in prop::collection::vec(event(), 0..200),
    ) {
        let mode = if push { Mode::Push } else { Mode::Pull };
        let mut world = World::new(mode, turns && !push);
        for event in events {
            world.run(event);
        }
        world.wind_up();
    }
}
