//! Pull, from the step to the report, by content.

use std::time::Duration;

use super::support::*;

fn over(transport: &'static str) {
    for (model, p_tp, d_tp) in [
        (dense(4), 1, 1),
        (dense(4), 2, 2),
        (dense(4), 2, 1),
        (dense(4), 1, 2),
        (mla(), 1, 1),
        (mla(), 2, 1),
        (mla(), 1, 2),
        (dense(1), 1, 2),
    ] {
        let mut p = Recipe::new(transport, "p", &model, style(&model, p_tp, 24, 4)).start();
        let d = Recipe::new(transport, "d", &model, style(&model, d_tp, 32, 4)).start();
        round_trip(&mut p, &d, 1, &lists(&[3, 4, 9, 1], &[7, 8, 2, 30], 0), 0);
        // A prefix hit, with the number of tokens stated: the last block is not full.
        round_trip(&mut p, &d, 2, &lists(&[10, 11, 12, 13], &[21, 20], 2), 15);
        // All of it is there already: only the producer hears.
        round_trip(&mut p, &d, 3, &lists(&[14, 15], &[], 2), 8);
        p.at_rest(0);
        d.at_rest(1);
        for rank in 0..d.ranks.len() {
            assert_eq!(d.stat(rank, "transfer_duration"), 2);
        }
    }
}

#[test]
fn all_pairs_of_sizes_over_the_built_in_transport() {
    over("local");
}

#[test]
fn all_pairs_of_sizes_over_the_transport_for_tests() {
    over("test");
}

#[test]
fn all_pairs_of_sizes_over_nixl() {
    if crate::nixl_support::have_nixl() {
        over("nixl");
    }
}

#[test]
fn the_descriptor_is_readable_exactly_while_there_is_something_to_poll() {
    let (mut p, d) = Engine::pair("local");
    let (there, here) = (p.worker().event_fd(), d.worker().event_fd());
    let now = Duration::ZERO;
    for n in 0..10u32 {
        assert!(!readable(there, now) && !readable(here, now), "round {n}");
        // Two of each, so that a report comes while another is there.
        for i in [2 * n, 2 * n + 1] {
            let (p_id, d_id) = (format!("P{i}"), format!("D{i}"));
            let list = lists(&[i + 1], &[i + 1], 0);
            p.keep(&p_id, &list, lease(i, 1), LEASE);
            let mut receive = d.receive_of(&d_id, &p, &p_id, &list);
            receive.lease = lease(i, 1);
            d.receive(receive);
        }
        let (mut received, mut sent) = (0, 0);
        while received < 2 {
            assert!(
                readable(here, LIMIT) && readable(here, now),
                "level, not edge"
            );
            let some = d.worker().poll().received.len();
            assert!(some > 0, "readable for nothing");
            received += some;
        }
        while sent < 2 {
            assert!(readable(there, LIMIT));
            sent += p.worker().poll().sent.len();
        }
        assert!(d.worker().poll().is_empty() && p.worker().poll().is_empty());
    }
}

#[test]
fn blocks_of_different_sizes() {
    for (p_tokens, d_tokens) in [(4, 8), (8, 4)] {
        let model = dense(4);
        let mut p = Recipe::new("local", "p", &model, style(&model, 1, 24, p_tokens)).start();
        let d = Recipe::new("local", "d", &model, style(&model, 1, 32, d_tokens)).start();
        let (p_list, d_list): (&[u32], &[u32]) = match p_tokens {
            4 => (&[1, 2, 4, 9], &[3, 5]),
            _ => (&[3, 5], &[1, 2, 4, 9]),
        };
        round_trip(&mut p, &d, 1, &lists(p_list, d_list, 0), 0);
        // With a prefix hit, where stock vLLM pairs the wrong blocks.
        let (p_list, d_list): (&[u32], &[u32]) = match p_tokens {
            4 => (&[11, 12, 14], &[7]),
            _ => (&[11, 12], &[7]),
        };
        let first = if p_tokens == 4 { 1 } else { 2 };
        round_trip(&mut p, &d, 2, &lists(p_list, d_list, first), 12);
        p.at_rest(0);
    }
}

#[test]
fn groups_with_block_tables_of_their_own() {
    let model = two_groups(4);
    for (p_tp, d_tp) in [(1, 1), (2, 1), (1, 2)] {
        let mut p = Recipe::new("local", "p", &model, style(&model, p_tp, 24, 4)).start();
        let d = Recipe::new("local", "d", &model, style(&model, d_tp, 32, 4)).start();
        let all = [
            Lists {
                p: vec![3, 4, 5, 6],
                d: vec![7, 8, 9, 10],
                ..Lists::default()
            },
            Lists {
                p: vec![1, 2, 3],
                d: vec![5, 6, 7],
                p_first: 1,
                d_first: 1,
            },
        ];
        round_trip(&mut p, &d, 1, &all, 16);
        p.at_rest(0);
    }
}
