//! The local transport between two real processes.

mod local_support;

use local_support::puppet::Puppet;
use local_support::*;

use kvferry::transport::{self, Op};

#[test]
fn puppet_main() {
    puppet::main();
}

/// Scattered pages in both directions, by content, with one and with two copying threads.
#[test]
fn scattered_pages_arrive_where_they_belong() {
    const PAGE: usize = 8192;
    const PAGES: usize = 2000;
    let mut puppet = Puppet::start("owner", PAGE * PAGES);
    for threads in [1, 2] {
        let mut options = options("reader");
        options.copy_threads = threads;
        let agent = transport::create(&options).unwrap();
        assert_eq!(agent.add_remote(&puppet.metadata).unwrap(), "owner");
        let target = Buffer::new(PAGE * PAGES);
        register(&*agent, &[target.whole()]);
        let mut random = Random(7 + u64::from(threads));
        let (to, from) = (random.shuffled(PAGES), random.shuffled(PAGES));
        let local: Vec<_> = to
            .iter()
            .map(|&i| target.part(i as usize * PAGE, PAGE))
            .collect();
        let remote: Vec<_> = from
            .iter()
            .map(|&i| puppet.part(i as usize * PAGE, PAGE))
            .collect();
        copy(&*agent, Op::Read, &local, &remote, "owner");
        for (&l, &r) in to.iter().zip(&from) {
            let (l, r) = (l as usize * PAGE, r as usize * PAGE);
            let expected: Vec<u8> = (0..PAGE).map(|i| pattern(1, r + i)).collect();
            assert_eq!(&target.bytes()[l..l + PAGE], expected, "page at {l}");
        }
        // And back to other places: the owner must see every byte.
        let seed = 40 + u64::from(threads);
        let source = Buffer::filled(PAGE * PAGES, seed);
        register(&*agent, &[source.whole()]);
        let local: Vec<_> = (0..PAGES).map(|i| source.part(i * PAGE, PAGE)).collect();
        copy(&*agent, Op::Write, &local, &remote, "owner");
        for (i, &r) in from.iter().enumerate() {
            let question = format!("holds {} {PAGE} {seed} {}", r as usize * PAGE, i * PAGE);
            assert_eq!(puppet.tell(&question), "true");
        }
        agent.close().unwrap();
        assert_eq!(puppet.tell("fill 1"), "ok");
    }
    puppet.end();
}
