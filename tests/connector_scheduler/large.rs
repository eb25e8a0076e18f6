//! More than fits into one step.

use kvferry::connector::Mode;
use kvferry::connector::params::MAX_BLOCKS;
use kvferry::connector::scheduler::{Finish, Keep, SchedulerOptions};
use kvferry::connector::step::{Step, codec::MAX_ENCODED};

use crate::support::*;

/// As many blocks as a request may have, each of five bytes in a step.
fn scattered() -> Vec<u32> {
    (0..MAX_BLOCKS as u32)
        .map(|i| if i % 2 == 0 { i } else { u32::MAX - i })
        .collect()
}

fn ids(step: &Step) -> Vec<&str> {
    let both = step.receives.iter().chain(&step.registrations);
    both.map(|r| r.request_id.as_str()).collect()
}

#[test]
fn what_does_not_fit_comes_with_the_next_step() {
    let blocks = scattered();
    for mode in [Mode::Pull, Mode::Push] {
        let e = Engine::new(SchedulerOptions { mode, ..options() });
        let names: Vec<String> = (0..16).map(|i| format!("d{i}")).collect();
        for id in &names {
            e.add(id, &from_producer(id, "[[1]]", 16), 16);
            e.allocated(id, &[(&blocks, 0)], 16);
        }
        // Called off before anything was said: pull reads nothing, push says both at once.
        for id in ["d1", "d12"] {
            let end = e.finished(id, Finish::Abort, &[], 0);
            assert_eq!(end.keep, Keep::UntilReceived);
        }
        let bytes = e.half.build_step();
        assert!(bytes.len() <= MAX_ENCODED);
        let first = Step::decode(&bytes).unwrap();
        let told = ids(&first).len();
        assert!((11..15).contains(&told), "{told}");
        assert_eq!(ids(&first), names[..told]);
        // One that nobody has heard of yet, and one that is under way.
        e.finished("d15", Finish::Abort, &[], 0);
        e.finished("d0", Finish::Abort, &[], 0);
        e.add("late", &from_producer("late", "[[1]]", 16), 16);
        e.allocated("late", &[(&[5], 0)], 16);
        let second = e.step();
        let mut rest: Vec<&str> = names[told..].iter().map(String::as_str).collect();
        rest.push("late");
        assert_eq!(ids(&second), rest);
        let of = |step: &Step, id: &str| {
            let all = [&step.receives[..], &step.registrations].concat();
            all.into_iter().find(|r| r.request_id == id).unwrap()
        };
        assert_eq!(of(&first, "d0").local, std::slice::from_ref(&blocks));
        assert_eq!(of(&second, "late").local, [[5]]);
        match mode {
            Mode::Pull => {
                assert!(of(&first, "d1").local.is_empty());
                assert!(of(&second, "d15").local.is_empty());
                assert_eq!(
                    (first.cancel.len(), &second.cancel[..]),
                    (0, &["d0".to_owned()][..])
                );
            }
            Mode::Push => {
                // With its registration or, were it behind, not before it.
                assert!(first.cancel.contains(&"d1".to_owned()));
                let told_with = |step: &Step, id: &str| {
                    ids(step).contains(&id) && step.cancel.contains(&id.to_owned())
                };
                assert!(told_with(&first, "d12") || told_with(&second, "d12"));
                assert!(told_with(&second, "d15") && second.cancel.contains(&"d0".to_owned()));
            }
        }
        assert!(is_idle(&e.step()));
        e.half
            .received(names.iter().map(String::as_str).chain(["late"]));
        for id in names.iter().map(String::as_str).chain(["late"]) {
            e.finished(id, Finish::Stop, &[], 0);
        }
        assert!(e.is_empty());
    }
}

/// No matter what the others ask for, one that is accepted can be said.
#[test]
fn a_request_with_too_many_blocks_is_refused_where_it_comes_in() {
    let e = Engine::pull();
    let many = vec![1; MAX_BLOCKS + 1];
    e.add("d", &from_producer("p", "[[1]]", 16), 16);
    let error = e
        .half
        .allocated("d", &blocks(&[(&many, 0)]), 16)
        .unwrap_err();
    assert_eq!(
        error.message(),
        "1048577 blocks of one request are to be exchanged; at most 1048576 can be"
    );
    assert_eq!(e.half.match_tokens("d", 16, 0), 16, "nothing has changed");
    e.allocated("d", &[(&many[1..], 0)], 16);
    assert_eq!(e.step().receives.len(), 1);
    e.half.received(["d"]);
    e.finished("d", Finish::Stop, &[], 0);
    e.add("p", TO_PRODUCER, 16);
    let all = [(&many[..], 0)];
    assert!(
        e.half
            .finished("p", Finish::Stop, &blocks(&all), 16)
            .is_err()
    );
    assert_eq!(e.half.stats().requests, 1);
    assert_eq!(e.finished("p", Finish::Abort, &[], 0).keep, Keep::No);
    assert!(e.is_empty());
}
