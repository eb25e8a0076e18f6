use super::*;

const LIMIT: Duration = Duration::from_secs(5);

fn key() -> Key {
    Key {
        purpose: Purpose::Transfer,
        engine_id: "p".into(),
    }
}

fn address() -> PeerAddress {
    PeerAddress {
        engine_id: "p".into(),
        host: "127.0.0.1".into(),
        port: 5600,
        tp_size: 1,
        pp_size: 1,
        dcp_size: 1,
    }
}

fn link(registration: u64) -> Arc<Link> {
    Arc::new(Link {
        address: address(),
        ranks: Vec::new(),
        plan: None,
        groups: Vec::new(),
        clock_offset: 0.0,
        consumers: 1,
        registration,
    })
}

fn receive(id: &str) -> Waiting {
    Waiting::Receive(id.into())
}

/// A peer over whose first link something moves.
struct Rig {
    peers: Peers,
    now: Instant,
    unload: Vec<Arc<Link>>,
}

impl Rig {
    fn new() -> Rig {
        let mut rig = Rig {
            peers: Peers::default(),
            now: Instant::now(),
            unload: Vec::new(),
        };
        let Wanted::Later(Some(task)) = rig.want(0, Some("first")) else {
            panic!("no handshake");
        };
        let waiting = rig.peers.linked(&task, link(0), rig.now);
        assert_eq!(waiting, Some(vec![receive("first")]));
        rig.peers.begin(&key());
        rig
    }

    fn want(&mut self, registration: u64, id: Option<&str>) -> Wanted {
        let waiting = id.map(receive);
        let (now, unload) = (self.now, &mut self.unload);
        self.peers
            .want(&key(), &address(), registration, waiting, now, unload)
    }

    fn waits(&mut self, registration: u64, id: &str) {
        let wanted = self.want(registration, Some(id));
        assert!(matches!(wanted, Wanted::Later(None)), "{id}");
    }

    fn renew(&mut self) -> Option<Task> {
        self.peers.renew(&key(), &mut self.unload)
    }
}

#[test]
fn who_wants_a_newer_link_waits_until_the_old_one_is_at_rest() {
    let mut rig = Rig::new();
    rig.waits(1, "a");
    // Also those who would do with the old one: it comes to rest.
    rig.waits(0, "b");
    rig.waits(3, "c");
    // But not a heartbeat.
    assert!(matches!(rig.want(0, None), Wanted::Link(_)));
    assert!(rig.peers.link(&key()).is_some());
    assert!(rig.renew().is_none() && rig.unload.is_empty());
    rig.peers.end(&key(), rig.now);
    let task = rig.renew().expect("a handshake");
    assert_eq!((task.registration, rig.unload.len()), (3, 1));
    assert!(rig.renew().is_none());
    let told = rig.peers.linked(&task, link(3), rig.now).unwrap();
    assert_eq!(told, ["a", "b", "c"].map(receive));
    assert!(matches!(rig.want(3, Some("d")), Wanted::Link(_)));
}

#[test]
fn they_do_not_wait_for_ever() {
    let mut rig = Rig::new();
    rig.waits(1, "a");
    let late = rig.now + LIMIT + Duration::from_millis(1);
    assert_eq!(rig.peers.waited_too_long(LIMIT, rig.now + LIMIT), []);
    let told = rig.peers.waited_too_long(LIMIT, late);
    assert_eq!(told, [(key(), vec![receive("a")])]);
    assert!(matches!(rig.want(1, Some("b")), Wanted::Refused(_)));
    rig.peers.end(&key(), rig.now);
    assert!(rig.renew().is_none());
    assert!(matches!(rig.want(1, Some("b")), Wanted::Later(Some(_))));
    assert_eq!(rig.unload.len(), 1);
}

#[test]
fn a_peer_that_is_lost_meanwhile_is_met_all_the_same() {
    let mut rig = Rig::new();
    rig.waits(1, "a");
    rig.peers.lost(&key(), rig.now);
    // Not even a heartbeat goes over that link.
    assert!(matches!(rig.want(0, None), Wanted::Later(None)));
    rig.waits(1, "b");
    rig.peers.end(&key(), rig.now);
    let task = rig.renew().expect("a handshake");
    assert_eq!(rig.peers.failed(&task, rig.now), ["a", "b"].map(receive));
}

#[test]
fn nothing_is_left_of_one_that_is_renewing_at_the_end() {
    let mut rig = Rig::new();
    rig.waits(1, "a");
    assert!(
        rig.peers
            .evict(Some(Duration::ZERO), |_| false, rig.now + LIMIT)
            .is_empty()
    );
    assert_eq!(rig.peers.drain().len(), 1);
}
