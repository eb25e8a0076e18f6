//! Engines in processes of their own.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use kvferry::connector::PeerAddress;
use kvferry::connector::step::Receive;

use super::support::*;

const CHILD: &str = "KVF_TEST_WORKER_CHILD";
/// Requests that a child keeps.
const REQUESTS: u32 = 20;

fn list_of(n: u32) -> Vec<Lists> {
    lists(&[n + 1, 40 + n], &[60 - n, n + 1], 0)
}

fn recipe(transport: &'static str, id: &str) -> Recipe {
    let model = dense(2);
    Recipe::new(transport, id, &model, style(&model, 1, 64, 4))
}

/// A producer: what the parent says by environment and standard input.
#[test]
fn child_main() {
    let Ok(arguments) = std::env::var(CHILD) else {
        return;
    };
    let words: Vec<&str> = arguments.split(' ').collect();
    let transport = if words[0] == "nixl" { "nixl" } else { "local" };
    let mut recipe = recipe(transport, "p");
    recipe.port = words[1].parse().unwrap();
    let mut engine = recipe.start();
    for n in 0..REQUESTS {
        engine.keep(&format!("P{n}"), &list_of(n), lease(n, 1), LEASE);
    }
    let port = engine.listener.local_addr().port();
    println!("\n@{} {port}", engine.id);
    let mut sent = 0;
    for _ in std::io::stdin().lock().lines() {
        // Each line asks for one more request to have been read.
        sent += 1;
        let mut left = sent;
        eventually("readers", || {
            left -= engine.worker().poll().sent.len().min(left);
            left == 0
        });
        sent = 0;
        println!("\n@sent");
    }
}

struct Producer {
    child: Child,
    output: BufReader<ChildStdout>,
    input: ChildStdin,
    address: PeerAddress,
}

impl Producer {
    fn start(transport: &str, port: u16) -> Producer {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["processes::child_main", "--exact", "--nocapture"])
            .env(CHILD, format!("{transport} {port}"))
            .env(LEASES_SINCE, leases_since().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let mut producer = Producer {
            child,
            output: BufReader::new(output.unwrap()),
            input: input.unwrap(),
            address: PeerAddress {
                engine_id: String::new(),
                host: "127.0.0.1".into(),
                port: 0,
                tp_size: 1,
                pp_size: 1,
                dcp_size: 1,
            },
        };
        let line = producer.line();
        let (id, port) = line.split_once(' ').expect("an id and a port");
        producer.address.engine_id = id.into();
        producer.address.port = port.parse().unwrap();
        producer
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let n = self.output.read_line(&mut line).unwrap();
            assert!(n > 0, "the child has ended");
            if let Some(said) = line.trim().strip_prefix('@') {
                return said.to_owned();
            }
        }
    }

    /// One more request has been reported as sent.
    fn sent(&mut self) {
        self.input.write_all(b"\n").unwrap();
        assert_eq!(self.line(), "sent");
    }

    fn receive(&self, d: &Engine, n: u32) -> Receive {
        Receive {
            peer: self.address.clone(),
            lease: lease(n, 1),
            ..d.receive_of(&format!("D{n}"), d, &format!("P{n}"), &list_of(n))
        }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The content of request `n`, as the child has it.
fn source(n: u32) -> Sim {
    let model = dense(2);
    let mut sim = Sim::new(&model, &style(&model, 1, 64, 4), 0);
    sim.fill(0, &list_of(n)[0].p, 0);
    sim
}

fn wanted(d: &Engine, n: u32) -> Vec<Vec<u8>> {
    let mut now = Sim::new(&d.sim.model, &d.sim.style, 0);
    now.ranks[0].memory.copy_from_slice(&d.memories()[0]);
    expected(&source(n), &now, &list_of(n)).0
}

fn from_process_to_process(transport: &'static str) {
    let d = recipe(transport, "d").start();
    let mut p = Producer::start(transport, 0);
    for n in 0..3 {
        let want = wanted(&d, n);
        d.receive(p.receive(&d, n));
        d.received(&format!("D{n}"));
        check(&d, &want);
        p.sent();
    }
    d.at_rest(1);
}

#[test]
fn from_process_to_process_over_the_built_in_transport() {
    from_process_to_process("local");
}

#[test]
fn from_process_to_process_over_nixl() {
    if crate::nixl_support::have_nixl() {
        from_process_to_process("nixl");
    }
}

#[test]
fn a_producer_that_is_killed_in_the_middle_and_restarted_on_its_port() {
    let d = recipe("local", "d").start();
    let p = Producer::start("local", 0);
    let port = p.address.port;
    for n in 0..REQUESTS {
        d.receive(p.receive(&d, n));
    }
    p.kill();
    let (mut received, mut failed) = (Vec::new(), Vec::new());
    eventually("an answer for each", || {
        let results = d.worker().poll();
        received.extend(results.received);
        failed.extend(results.failed);
        received.len() == REQUESTS as usize
    });
    // What was received before that is right.
    for n in 0..REQUESTS {
        if !failed.contains(&format!("D{n}")) {
            check_request(&d, n);
        }
    }
    let mut p = Producer::start("local", port);
    let want = wanted(&d, 5);
    d.receive(p.receive(&d, 5));
    d.received("D5");
    check(&d, &want);
    p.sent();
    eventually("rest", || {
        let s = d.worker().state();
        (s.receives, s.handshakes) == (0, 0)
    });
}

/// The blocks of request `n` hold what they should.
fn check_request(d: &Engine, n: u32) {
    let (have, want) = (&d.memories()[0], &wanted(d, n)[0]);
    assert!(have == want, "request {n}");
}
