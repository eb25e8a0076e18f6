use super::*;
use crate::transport::AgentOptions;

fn leases(lease: Duration) -> (Leases, Arc<LeaseTable>) {
    let table = Arc::new(LeaseTable::since(test_agent("leases"), 0).unwrap());
    (Leases::new(table.clone(), lease), table)
}

fn hold(id: &str, seconds: u64, slot: u32, generation: u64) -> Hold {
    Hold {
        request_id: id.into(),
        remaining_ns: seconds * 1_000_000_000,
        lease: Some(LeaseRef { slot, generation }),
    }
}

fn word(table: &LeaseTable, slot: usize) -> u64 {
    table.words[slot].load(Ordering::Acquire)
}

const LEASE: Duration = Duration::from_secs(30);

#[test]
fn a_lease_ends_when_all_readers_are_through() {
    let (mut l, table) = leases(LEASE);
    let now = Instant::now();
    l.in_batch("a".into());
    assert_eq!(word(&table, 3), 0);
    l.arm(hold("a", 30, 3, 5), now);
    assert_eq!(word(&table, 3), 9);
    assert_eq!(l.read_done("a", 2), ReadDone::Counted);
    assert_eq!(word(&table, 3), 9);
    assert_eq!(l.read_done("a", 2), ReadDone::Complete);
    assert_eq!(word(&table, 3), 10);
    assert_eq!(l.read_done("a", 2), ReadDone::Unknown);
    assert_eq!((l.held(), l.known()), (0, 0));
    // Its time comes and finds nothing.
    assert!(l.expire(now + LEASE * 2).is_empty());
}

#[test]
fn readers_that_disagree_are_waited_for_by_the_largest_number() {
    let (mut l, _) = leases(LEASE);
    let now = Instant::now();
    for (numbers, done) in [
        (vec![2, 1], true),
        (vec![1], true),
        (vec![3, 1, 1], true),
        (vec![4_000_000_000, 1, 1], false),
    ] {
        l.in_batch("a".into());
        l.arm(hold("a", 30, 0, 1), now);
        let mut last = ReadDone::Unknown;
        for (i, n) in numbers.iter().enumerate() {
            last = l.read_done("a", *n);
            assert_eq!(last == ReadDone::Complete, done && i + 1 == numbers.len());
        }
        assert_eq!(last == ReadDone::Complete, done);
    }
    let over = l.expire(now + LEASE);
    assert_eq!(over.len(), 1);
    assert_eq!((&over[0].request_id[..], over[0].readers), ("a", 3));
}

#[test]
fn a_reader_may_be_through_before_the_lease_comes() {
    let (mut l, table) = leases(LEASE);
    let now = Instant::now();
    l.in_batch("a".into());
    assert_eq!(l.read_done("a", 1), ReadDone::Counted, "it may be running");
    assert!(l.arm(hold("a", 30, 1, 1), now), "over at once");
    assert_eq!(word(&table, 1), 2, "ended");
    assert_eq!(l.held(), 0);
    // The same id again is a new request.
    l.in_batch("a".into());
    l.arm(hold("a", 30, 1, 2), now);
    assert_eq!((l.held(), word(&table, 1)), (1, 3));
    // One of two before, one after.
    l.in_batch("b".into());
    assert_eq!(l.read_done("b", 2), ReadDone::Counted);
    l.arm(hold("b", 30, 2, 1), now);
    assert_eq!(l.read_done("b", 2), ReadDone::Complete);
}

#[test]
fn a_forgotten_request_has_no_readers() {
    let (mut l, _) = leases(LEASE);
    l.in_batch("a".into());
    assert_eq!(l.read_done("a", 2), ReadDone::Counted);
    l.forget("a");
    assert_eq!(l.read_done("a", 2), ReadDone::Unknown);
    assert_eq!(l.known(), 0);
    assert!(l.readers.is_empty() && l.early.is_empty());
}

#[test]
fn heartbeats_extend_and_never_shorten() {
    let (mut l, table) = leases(LEASE);
    let now = Instant::now();
    let at = |s: u64| now + Duration::from_secs(s);
    for (id, slot) in [("a", 0), ("b", 1), ("long", 2)] {
        l.in_batch(id.into());
        l.arm(hold(id, if id == "long" { 480 } else { 30 }, slot, 1), now);
    }
    l.heartbeat(&["a".into(), "unknown".into(), "long".into()], at(5));
    l.heartbeat(&["a".into()], at(20));
    let ids = |e: Vec<Expired>| e.into_iter().map(|e| e.request_id).collect::<Vec<_>>();
    assert!(ids(l.expire(at(29))).is_empty());
    assert_eq!(ids(l.expire(at(30))), ["b"]);
    assert!(ids(l.expire(at(39))).is_empty());
    assert_eq!(ids(l.expire(at(40))), ["a"]);
    assert_eq!(
        (word(&table, 0), word(&table, 1), word(&table, 2)),
        (2, 2, 1)
    );
    assert!(ids(l.expire(at(479))).is_empty());
    assert_eq!(ids(l.expire(at(480))), ["long"]);
    assert_eq!(l.next_due(), None);
}

#[test]
fn what_is_being_sent_is_kept_until_that_is_over() {
    let (mut l, table) = leases(LEASE);
    let now = Instant::now();
    assert!(!l.seize("a"));
    l.in_batch("a".into());
    l.arm(hold("a", 30, 0, 1), now);
    assert!(l.seize("a"));
    let over = l.expire(now + LEASE);
    assert!(over.len() == 1 && over[0].busy);
    assert_eq!((l.held(), word(&table, 0)), (1, 1));
    l.release("a");
    let over = l.expire(now + LEASE);
    assert!(over.len() == 1 && !over[0].busy);
    assert_eq!(word(&table, 0), 2);
}

#[test]
fn words_never_fall_and_all_end_with_the_table() {
    let (mut l, table) = leases(LEASE);
    let now = Instant::now();
    l.arm(hold("a", 30, 0, 7), now);
    l.arm(hold("b", 30, 0, 3), now);
    assert_eq!(word(&table, 0), 13);
    l.complete("b");
    assert_eq!(word(&table, 0), 13);
    l.end();
    assert_eq!(word(&table, 0), 14);
}

#[test]
fn an_id_that_is_used_again_gives_up_its_first_lease() {
    let (mut l, table) = leases(LEASE);
    let now = Instant::now();
    l.arm(hold("a", 30, 1, 1), now);
    assert_eq!(l.read_done("a", 2), ReadDone::Counted);
    assert!(!l.arm(hold("a", 30, 2, 1), now));
    assert_eq!((word(&table, 1), word(&table, 2)), (2, 1));
    // The reader of the first use does not count for the second.
    assert_eq!(l.read_done("a", 2), ReadDone::Counted);
    assert_eq!(l.read_done("a", 2), ReadDone::Complete);
}

fn test_agent(name: &str) -> Arc<Agent> {
    let options = AgentOptions {
        name: name.into(),
        transport: "test".into(),
        ..AgentOptions::default()
    };
    Arc::new(Agent::create(&options).unwrap())
}

/// What a reader of the former life wants to see is a word below twice its generation.
#[test]
fn a_new_table_has_ended_all_that_was_given_before() {
    let before = clock::realtime_us();
    let table = Arc::new(LeaseTable::new(test_agent("reborn")).unwrap());
    assert!(
        table
            .words
            .iter()
            .all(|w| w.load(Ordering::Acquire) >= 2 * before)
    );
    // What is given from now on is kept.
    let mut l = Leases::new(table.clone(), LEASE);
    let generation = clock::realtime_us() + 1;
    l.arm(hold("a", 30, 3, generation), Instant::now());
    assert_eq!(word(&table, 3), 2 * generation - 1);
    assert!(!l.warned);
}

/// A scheduler whose clock is behind: the blocks are kept, and no reader takes the word for its lease.
#[test]
fn a_lease_from_before_the_table_is_over_for_its_readers() {
    let table = Arc::new(LeaseTable::since(test_agent("skewed"), 1000).unwrap());
    let mut l = Leases::new(table.clone(), LEASE);
    l.arm(hold("a", 30, 3, 1000), Instant::now());
    assert_eq!((word(&table, 3), l.held(), l.warned), (2000, 1, true));
    assert_eq!(l.read_done("a", 1), ReadDone::Complete);
    assert_eq!(word(&table, 3), 2000);
    l.arm(hold("b", 30, 3, 1001), Instant::now());
    assert_eq!(word(&table, 3), 2001);
}
