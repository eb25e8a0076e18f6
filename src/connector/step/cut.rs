//! Cutting a step that is too long in two.

use std::collections::HashSet;

use super::codec::{write_heartbeat, write_hold, write_id, write_push, write_receive};
use super::{Receive, Step};
use crate::varint::Writer;

/// The most that version, sections, clock and the sections' counts take.
const FRAME: usize = 2 + 9 * 10;

impl Step {
    /// Keeps what fits into `most` bytes and returns the rest. Workers that are given both, one after the
    /// other, do the same things in the same order as with the whole: so all that comes behind the first
    /// thing that does not fit is in the rest. There is always something that is kept, even if it alone is
    /// too long.
    pub(crate) fn cut(&mut self, most: usize) -> Step {
        let mut room = Room {
            left: most.saturating_sub(FRAME),
            used: false,
            full: false,
            scratch: Writer(Vec::new()),
        };
        let mut rest = Step {
            // In the order in which workers take them.
            forget: room.behind(&mut self.forget, write_id),
            in_batch: room.behind(&mut self.in_batch, write_id),
            holds: room.behind(&mut self.holds, write_hold),
            pushes: room.behind(&mut self.pushes, write_push),
            receives: room.behind(&mut self.receives, write_receive),
            registrations: room.behind(&mut self.registrations, write_with_cancellation),
            clock_ns: self.clock_ns,
            ..Step::default()
        };
        let mut others = self.take_other_cancellations();
        rest.cancel = room.behind(&mut others, write_id);
        self.cancel.extend(others);
        rest.heartbeats = room.behind(&mut self.heartbeats, write_heartbeat);
        rest
    }

    /// All but those of the registrations that are kept: where one is called off that must be said with it, or
    /// its producer would be told where to write.
    fn take_other_cancellations(&mut self) -> Vec<String> {
        let kept: HashSet<&str> = self
            .registrations
            .iter()
            .map(|r| r.request_id.as_str())
            .collect();
        let all = std::mem::take(&mut self.cancel);
        let (theirs, others) = all.into_iter().partition(|id| kept.contains(id.as_str()));
        self.cancel = theirs;
        others
    }
}

fn write_with_cancellation(w: &mut Writer, r: &Receive) {
    write_receive(w, r);
    write_id(w, &r.request_id);
}

/// What is left of a step's bytes.
struct Room {
    left: usize,
    used: bool,
    full: bool,
    scratch: Writer,
}

impl Room {
    /// Takes off a section what does not fit any more.
    fn behind<T>(&mut self, items: &mut Vec<T>, write: fn(&mut Writer, &T)) -> Vec<T> {
        let mut fit = 0;
        while fit < items.len() && !self.full {
            self.scratch.0.clear();
            write(&mut self.scratch, &items[fit]);
            let bytes = self.scratch.0.len();
            self.full = self.used && bytes > self.left;
            if !self.full {
                self.left = self.left.saturating_sub(bytes);
                self.used = true;
                fit += 1;
            }
        }
        items.split_off(fit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::PeerAddress;
    use crate::connector::step::{Heartbeat, Hold, Push};

    fn receive(id: &str, blocks: u32) -> Receive {
        Receive {
            request_id: id.into(),
            peer: PeerAddress {
                engine_id: "E".into(),
                host: "h".into(),
                port: 1,
                tp_size: 1,
                pp_size: 1,
                dcp_size: 1,
            },
            remote_request_id: id.into(),
            local: vec![(0..blocks).map(|i| i * 1000).collect()],
            remote: vec![vec![7; blocks as usize]],
            local_first: vec![0],
            tokens: 1,
            awaited: true,
            expiry: None,
            lease: None,
            registration: 0,
            waited_ns: 0,
        }
    }

    fn whole() -> Step {
        let ids = |name: &str, n: usize| (0..n).map(|i| format!("{name}{i}")).collect::<Vec<_>>();
        Step {
            clock_ns: u64::MAX,
            receives: (0..9).map(|i| receive(&format!("r{i}"), i * 17)).collect(),
            holds: (0..5)
                .map(|i| Hold {
                    request_id: format!("h{i}"),
                    remaining_ns: 1 << 40,
                    lease: None,
                })
                .collect(),
            in_batch: ids("b", 7),
            forget: ids("f", 6),
            cancel: vec!["g1".into(), "r3".into(), "g4".into()],
            heartbeats: (0..4)
                .map(|i| Heartbeat {
                    peer: receive("x", 0).peer,
                    remote_request_ids: ids("p", i),
                })
                .collect(),
            registrations: (0..6).map(|i| receive(&format!("g{i}"), 5)).collect(),
            pushes: (0..3)
                .map(|i| Push {
                    request_id: format!("q{i}"),
                    blocks: vec![vec![i; 40]],
                    tokens: 1,
                })
                .collect(),
        }
    }

    /// The pieces of a step.
    fn pieces(mut rest: Step, most: usize) -> Vec<Step> {
        let mut pieces = Vec::new();
        while rest.encode().len() > most {
            let behind = rest.cut(most);
            pieces.push(std::mem::replace(&mut rest, behind));
        }
        pieces.push(rest);
        pieces
    }

    /// What workers do with steps, in their order: of each thing its name and what it is.
    fn deeds(steps: &[Step]) -> Vec<(&'static str, String)> {
        let mut out = Vec::new();
        for s in steps {
            let mut add = |deed, ids: Vec<&String>| {
                out.extend(ids.into_iter().map(|id| (deed, id.clone())));
            };
            let names = |list: &'_ [Receive]| -> Vec<String> {
                list.iter().map(|r| r.request_id.clone()).collect()
            };
            add("forget", s.forget.iter().collect());
            add("in batch", s.in_batch.iter().collect());
            add("hold", s.holds.iter().map(|h| &h.request_id).collect());
            add("push", s.pushes.iter().map(|p| &p.request_id).collect());
            add("receive", names(&s.receives).iter().collect());
            add("register", names(&s.registrations).iter().collect());
            add("cancel", s.cancel.iter().collect());
            let beats = s.heartbeats.iter().flat_map(|h| &h.remote_request_ids);
            add("beat", beats.collect());
        }
        out
    }

    #[test]
    fn pieces_are_short_and_say_the_same_in_the_same_order() {
        let step = whole();
        let all = step.encode().len();
        for most in [560, 561, 600, 777, 1000, 1500, all - 1] {
            let pieces = pieces(step.clone(), most);
            assert!(pieces.len() > 1);
            for piece in &pieces {
                assert!(piece.encode().len() <= most, "{most}");
                assert_eq!(Step::decode(&piece.encode()).unwrap(), *piece);
                for r in &piece.registrations {
                    let doomed = ["g1", "g4"].contains(&r.request_id.as_str());
                    assert_eq!(piece.cancel.contains(&r.request_id), doomed, "{most}");
                }
            }
            // Cancellations of registrations may come sooner, with these; nothing else changes places.
            let apart = |steps: &[Step]| -> (Vec<_>, Vec<_>) {
                let all = deeds(steps).into_iter();
                all.partition(|deed| deed.0 == "cancel")
            };
            let (cancelled, cut) = apart(&pieces);
            let (_, whole) = apart(std::slice::from_ref(&step));
            assert_eq!(cancelled.len(), step.cancel.len());
            assert_eq!(whole, cut, "{most}");
        }
        assert_eq!(pieces(step.clone(), all), [step]);
    }

    /// Nothing is lost and nothing goes on for ever, whatever the limit.
    #[test]
    fn what_is_too_long_alone_goes_alone() {
        let mut step = whole();
        let mut rounds = 0;
        let mut names = deeds(&[whole()]).len();
        while !deeds(std::slice::from_ref(&step)).is_empty() {
            let rest = step.cut(1);
            names -= deeds(std::slice::from_ref(&step)).len();
            step = rest;
            rounds += 1;
            assert!(rounds < 100);
        }
        assert_eq!(names, 0);
    }
}
