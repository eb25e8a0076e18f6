//! Pull, from the step to the report, by content.

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
