//! A peer that dies in the middle of a transfer, as the queue's caller sees it: real processes, killed
//! with SIGKILL, over the real transports.
//!
//! Two other processes hold memory. Three requests read from them: one from both, one from the one
//! that is killed, one from the other. The first two must fail, once each and saying why, the third
//! goes through, and blocks are not reported free while bytes may still land in them.

mod local_support;
#[path = "nixl_support/mod.rs"]
mod nixl_support;
#[path = "queue/support.rs"]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvferry::agent::Agent;
use kvferry::error::Status;
use kvferry::memory::{MemDesc, MemKind};
use kvferry::plan::*;
use kvferry::queue::*;
use kvferry::transport::AgentOptions;
use local_support::puppet::{self, Puppet};
use support::*;

#[test]
fn puppet_main() {
    puppet::main();
}

/// Small pages, one to a slice: a request takes long enough to be caught in the middle.
const PAGE: usize = 512;
const BLOCKS: u32 = 16_384;
const ROW: usize = BLOCKS as usize * PAGE;

/// `local`, or NIXL over these UCX transports.
#[derive(Clone, Copy)]
enum Over {
    Local,
    Nixl(&'static str),
}

impl Over {
    fn options(self, name: &str) -> AgentOptions {
        let mut options = local_support::options(name);
        if let Over::Nixl(tls) = self {
            puppet::over_nixl(&mut options, tls);
        }
        options
    }

    fn puppet(self, name: &str) -> Puppet {
        Puppet::start_as(&unique(name), ROW, |command| {
            if let Over::Nixl(tls) = self {
                command.env("KVF_PUPPET_NIXL", tls);
            }
        })
    }
}

/// A reading rank in this process and two peers in others. The upper half of its memory is for blocks
/// of the survivor, the lower one for those of the victim; block `i` there goes to block `i` here.
struct Scene {
    queue: Queue,
    sink: Arc<Agent>,
    mine: Memory,
    victim: Puppet,
    survivor: Puppet,
}

const VICTIM: usize = 0;
const SURVIVOR: usize = 1;

impl Scene {
    fn new(over: Over) -> Scene {
        let sink = Agent::create(&over.options(&unique("sink"))).expect("an agent");
        let sink = Arc::new(sink);
        let mine = Memory::new(2 * ROW, 2);
        register(&sink, MemKind::Dram, &mine);
        let (victim, survivor) = (over.puppet("victim"), over.puppet("survivor"));
        for peer in [&victim, &survivor] {
            assert_eq!(sink.add_remote(&peer.metadata).unwrap(), peer.name);
        }
        let options = QueueOptions {
            slice_descriptors: 1,
            ..QueueOptions::default()
        };
        let queue = Queue::create(sink.clone(), options).expect("a queue");
        Scene {
            queue,
            sink,
            mine,
            victim,
            survivor,
        }
    }

    fn peer(&self, which: usize) -> &Puppet {
        [&self.victim, &self.survivor][which]
    }

    /// Reads these blocks of these peers, and tells them.
    fn send(&self, peers: &[usize], ids: &[u32], deadline: Option<Duration>) -> Ticket {
        let mut builder = PlanBuilder::new(Direction::Pull);
        let group = builder.group(geometry(BLOCKS as usize));
        for which in peers {
            let index = builder.peer(peer(PeerRole::Transfer));
            let local = self.mine.addr() + (which * ROW) as u64;
            let remote = self.peer(*which).memory.addr;
            builder.lane(lane(index, group, PAGE, local, remote, MemKind::Dram));
        }
        let agents: Vec<&str> = peers.iter().map(|p| &*self.peer(*p).name).collect();
        let groups = [GroupBlocks::new(ids, ids)];
        let submission = Submission {
            plan: &builder.finish().unwrap(),
            agents: &agents,
            request: Request {
                groups: &groups,
                tokens: None,
            },
            guards: &[],
            notification: Some(if peers == [SURVIVOR] {
                b"read"
            } else {
                b"doomed"
            }),
            deadline,
        };
        self.queue.submit(&submission).expect("a ticket")
    }

    /// Reads a block of each peer: connections are made with the first transfer.
    fn meet(&self) {
        let ticket = self.send(&[VICTIM, SURVIVOR], &[BLOCKS - 1], None);
        let done = next(&self.queue);
        assert_eq!((done.ticket, status(&done)), (ticket, Status::Ok));
    }

    /// Whether the first byte of a block of the victim's half has come.
    fn has_come(&self, block: u32) -> bool {
        let at = block as usize * PAGE;
        // SAFETY: inside the memory; a transfer may write it meanwhile.
        let byte = unsafe { std::ptr::read_volatile((self.mine.addr() as *const u8).add(at)) };
        byte != pattern(2, at)
    }

    /// The survivor's half has these blocks of the survivor.
    #[track_caller]
    fn holds(&self, memory: &[u8], ids: &[u32]) {
        for id in ids {
            let at = *id as usize * PAGE;
            let want: Vec<u8> = (at..at + PAGE).map(|i| pattern(1, i)).collect();
            same(
                "a block of the survivor",
                &memory[ROW + at..][..PAGE],
                &want,
            );
        }
    }

    /// The reported blocks are the caller's again: overwrites all memory, lets the survivor move
    /// something once more, and looks whether anything else has moved. That the memory can be
    /// deregistered says the same: the agent refuses it while a transfer may touch it.
    #[track_caller]
    fn nothing_lands_any_more(&self) {
        self.mine.fill(|i| pattern(77, i));
        let last = [BLOCKS - 1];
        let ticket = self.send(&[SURVIVOR], &last, None);
        let done = next(&self.queue);
        assert_eq!((done.ticket, status(&done)), (ticket, Status::Ok));
        let memory = self.mine.read();
        self.holds(&memory, &last);
        let at = ROW + last[0] as usize * PAGE;
        let moved = |i: &usize| memory[*i] != pattern(77, *i) && !(at..at + PAGE).contains(i);
        assert_eq!(
            (0..2 * ROW).find(moved),
            None,
            "a byte after the completion"
        );
        let desc = self.mine.desc();
        self.sink
            .deregister(MemKind::Dram, &[desc.into()], &[])
            .expect("nothing moves in it");
        assert!(self.queue.poll(10).is_empty(), "completed twice");
    }

    /// The survivor has heard of its own requests, and of nothing else.
    #[track_caller]
    fn survivor_heard(&mut self, count: usize) {
        let (name, text) = (self.sink.name(), puppet::hex(b"read"));
        let want = vec![format!("{name}:{text}"); count].join(" ");
        // The first one told it that both had been met.
        let first = format!("{name}:{}", puppet::hex(b"doomed"));
        let heard = self.survivor.tell(&format!("take {}", count + 1));
        assert_eq!(heard, format!("{first} {want}"));
    }
}

/// Every other block, so that nothing merges, from the first or the second one on.
fn every_other(first: u32) -> Vec<u32> {
    (first..BLOCKS - 2).step_by(2).collect()
}

#[track_caller]
fn lost(scene: &Scene, done: Completion) {
    failed(done, Status::PeerLost, &[&scene.victim.name]);
}

/// Kills the victim while its bytes come in. The survivor's request may end before or after.
fn killed_in_the_middle(over: Over) {
    for _ in 0..10 {
        let mut scene = Scene::new(over);
        scene.meet();
        let (even, odd) = (every_other(0), every_other(1));
        let both = scene.send(&[VICTIM, SURVIVOR], &even, None);
        let one = scene.send(&[VICTIM], &odd, None);
        let other = scene.send(&[SURVIVOR], &odd, None);
        eventually("the first block", || scene.has_come(0));
        scene.victim.kill();
        let mut done: Vec<Completion> = (0..3).map(|_| next(&scene.queue)).collect();
        done.sort_by_key(|d| d.ticket);
        let tickets: Vec<Ticket> = done.iter().map(|d| d.ticket).collect();
        assert_eq!(tickets, [both, one, other], "one completion each");
        if done[..2].iter().any(|d| d.result.is_ok()) {
            // So busy a machine that one was over before the signal came.
            continue;
        }
        assert!(done[0].record.bytes < done[0].record.total_bytes);
        let survived = done.remove(2);
        assert_eq!(status(&survived), Status::Ok, "{:?}", survived.result);
        scene.holds(&scene.mine.read(), &odd);
        done.into_iter().for_each(|d| lost(&scene, d));
        // A request to the dead fails, too.
        scene.send(&[VICTIM], &[3], None);
        lost(&scene, next(&scene.queue));
        scene.nothing_lands_any_more();
        scene.survivor_heard(2);
        return;
    }
    panic!("the victim was never caught in the middle");
}

#[test]
fn a_peer_killed_in_the_middle_over_local() {
    killed_in_the_middle(Over::Local);
}

#[test]
fn a_peer_killed_in_the_middle_over_nixl() {
    if nixl_support::have_nixl() {
        killed_in_the_middle(Over::Nixl(""));
    }
}

/// Over TCP the peer has to take part, so that stopping it first holds its transfers for certain: what
/// is under way then is what the kill, or a deadline, meets.
#[test]
fn a_peer_stopped_and_then_killed_over_nixl_and_tcp() {
    if !nixl_support::have_nixl() {
        return;
    }
    let mut scene = Scene::new(Over::Nixl("tcp"));
    scene.meet();
    scene.victim.signal(libc::SIGSTOP);
    let (even, odd) = (every_other(0), every_other(1));
    let both = scene.send(&[VICTIM, SURVIVOR], &even, None);
    let limit = Duration::from_millis(50);
    let begin = Instant::now();
    let late = scene.send(&[VICTIM], &odd, Some(limit));
    let other = scene.send(&[SURVIVOR], &odd, None);
    let done = next(&scene.queue);
    assert_eq!((done.ticket, status(&done)), (other, Status::Ok));
    // The deadline passes, and the thread gives everybody a turn after that: still no completion, for
    // a read that was posted may write when the peer goes on.
    std::thread::sleep(limit.saturating_sub(begin.elapsed()));
    let after = scene.send(&[SURVIVOR], &[BLOCKS - 1], None);
    let done = next(&scene.queue);
    assert_eq!((done.ticket, status(&done)), (after, Status::Ok));
    assert!(scene.queue.poll(10).is_empty());
    let mine: MemDesc = scene.mine.desc();
    let busy = scene.sink.deregister(MemKind::Dram, &[mine.into()], &[]);
    assert_eq!(busy.unwrap_err().status(), Status::Busy);

    scene.victim.kill();
    let begin = Instant::now();
    let mut done = [next(&scene.queue), next(&scene.queue)];
    eprintln!("noticed {:?} after the death", begin.elapsed());
    done.sort_by_key(|d| d.ticket);
    let [first, second] = done;
    assert_eq!((first.ticket, second.ticket), (both, late));
    assert!(first.record.bytes < first.record.total_bytes);
    lost(&scene, first);
    failed(second, Status::Timeout, &["50 ms"]);
    scene.holds(&scene.mine.read(), &odd);
    scene.nothing_lands_any_more();
    scene.survivor_heard(3);
}
