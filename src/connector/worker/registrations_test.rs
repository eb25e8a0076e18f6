use super::*;

const AGE: Duration = Duration::from_secs(10);

fn registration(engine: &str, id: &str, blocks: usize) -> PushRegistration {
    PushRegistration {
        request_id: id.into(),
        decode_engine_id: engine.into(),
        decode_host: "127.0.0.1".into(),
        decode_port: 1,
        decode_tp_size: 1,
        local_block_ids: vec![vec![7; blocks]],
        remote_engine_id: String::new(),
        remote_host: String::new(),
        remote_port: 0,
        remote_tp_size: 1,
        remote_pp_size: 1,
    }
}

fn keep(all: &mut Registrations, from: &str, engine: &str, id: &str) -> bool {
    all.keep(from, registration(engine, id, 3), Instant::now())
        .is_ok()
}

fn take(all: &mut Registrations, id: &str) -> Option<String> {
    all.take(id, Instant::now()).map(|r| r.request_id)
}

#[test]
fn the_same_id_goes_before_one_with_another_ending() {
    let mut all = Registrations::default();
    keep(&mut all, "a", "d", "r-00000001");
    keep(&mut all, "a", "d", "r-00000002");
    keep(&mut all, "a", "d", "r");
    keep(&mut all, "a", "d", "s-0000000g");
    assert_eq!(take(&mut all, "r-00000002").unwrap(), "r-00000002");
    assert_eq!(take(&mut all, "r-00000003").unwrap(), "r-00000001");
    assert_eq!(take(&mut all, "r-00000003").unwrap(), "r");
    assert_eq!(take(&mut all, "r-00000003"), None);
    assert_eq!(take(&mut all, "s"), None);
    assert_eq!(take(&mut all, "s-0000000g").unwrap(), "s-0000000g");
    assert_eq!(all.usage(), Usage::default());
    assert!(all.used.is_empty() && all.waiting.is_empty());
}

#[test]
fn one_sender_cannot_take_the_room_of_others() {
    let mut all = Registrations::default();
    let mut n = 0;
    let refused = loop {
        let one = registration("d", &format!("r{n}"), 3);
        match all.keep("greedy", one, Instant::now()) {
            Ok(()) => n += 1,
            Err(usage) => break usage,
        }
    };
    assert_eq!((n, refused.count), (OF_ONE.count, OF_ONE.count));
    assert!(keep(&mut all, "modest", "d", "other"));
    // What is given back can be used again.
    assert!(take(&mut all, "r7").is_some());
    assert!(keep(&mut all, "greedy", "d", "again"));
    assert!(!keep(&mut all, "greedy", "d", "and again"));
    // In bytes.
    let large = || registration("d", "large", OF_ONE.bytes / 4);
    let refused = all.keep("large", large(), Instant::now()).unwrap_err();
    assert_eq!(refused, Usage::default());
    let half = OF_ONE.bytes / 4 / 2;
    let one = registration("d", "one", half);
    assert!(all.keep("large", one, Instant::now()).is_ok());
    let two = registration("d", "two", half);
    assert_eq!(all.keep("large", two, Instant::now()).unwrap_err().count, 1);
}

#[test]
fn all_senders_together_have_a_limit_too() {
    let mut all = Registrations::default();
    let mut kept = 0;
    for sender in 0..OF_ALL.count / OF_ONE.count + 1 {
        let from = format!("agent {sender}");
        for n in 0..OF_ONE.count {
            kept += usize::from(keep(&mut all, &from, "d", &format!("{sender}/{n}")));
        }
    }
    assert_eq!(kept, OF_ALL.count);
    let now = Instant::now();
    all.forget_older_than(AGE, now + AGE);
    assert_eq!(all.usage(), Usage::default());
    assert!(all.used.is_empty() && all.waiting.is_empty());
}

#[test]
fn all_ranks_of_a_consumer_are_one() {
    let mut all = Registrations::default();
    for rank in ["d.0", "d.1", "d.2"] {
        assert!(keep(&mut all, rank, "d", "r-00000001"));
    }
    // Another consumer with the same id is another one.
    assert!(keep(&mut all, "e.0", "e", "r-00000001"));
    assert_eq!(all.usage().count, 2);
    assert_eq!(take(&mut all, "r-99999999").unwrap(), "r-00000001");
    // The fourth rank of the first is late, and is not taken for a request of its own.
    let late = registration("d", "r-00000001", 3);
    assert!(all.is_repeated("d.3", &late));
    assert!(all.is_repeated("e.1", &late), "whoever says it");
    let other = registration("e", "r-00000001", 3);
    assert!(!all.is_repeated("e.1", &other));
    // A rank that has said it before means another request under the same id.
    assert!(!all.is_repeated("d.0", &late));
    assert!(keep(&mut all, "d.0", "d", "r-00000001"));
    assert_eq!(all.usage().count, 2);
}

#[test]
fn a_rank_that_says_it_again_means_it_anew() {
    let mut all = Registrations::default();
    let now = Instant::now();
    all.keep("d", registration("d", "r", 3), now).unwrap();
    all.keep("d", registration("d", "r", 5), now).unwrap();
    assert_eq!(all.usage().count, 1);
    assert_eq!(all.take("r", now).unwrap().local_block_ids[0].len(), 5);
}

#[test]
fn what_was_matched_at_once_is_remembered_for_a_while() {
    let mut all = Registrations::default();
    let now = Instant::now();
    let one = registration("d", "r", 3);
    assert!(!all.is_repeated("d.0", &one));
    all.matched("d.0", &one, now);
    assert!(all.is_repeated("d.1", &one));
    all.forget_older_than(AGE, now + AGE);
    assert!(!all.is_repeated("d.2", &one));
    for n in 0..MATCHED + 5 {
        all.matched("d.0", &registration("d", &format!("r{n}"), 3), now);
    }
    assert_eq!(all.matched.len(), MATCHED);
    assert_eq!(all.matched_order.len(), MATCHED);
    assert!(!all.is_repeated("d.1", &registration("d", "r0", 3)));
}
