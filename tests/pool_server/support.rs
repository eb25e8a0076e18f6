//! A server for a test, and ways to talk to it.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// No wait of a test is longer.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A socket file of the test's own; removed with this.
pub struct Place(pub PathBuf);

impl Place {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("kvf-server-{}-{n}.sock", std::process::id());
        Place(std::env::temp_dir().join(name))
    }

    pub fn address(&self) -> String {
        format!("ipc://{}", self.0.display())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A server process; killed with this if it has not ended.
pub struct Server {
    pub child: Child,
    /// "listening", "events" or "metrics", and where.
    lines: Vec<(String, String)>,
    _place: Option<Place>,
}

impl Server {
    /// One on a socket file of its own.
    pub fn start(args: &[&str]) -> Self {
        let place = Place::new();
        let mut server = Server::start_at(&place.address(), args).expect("the server starts");
        server._place = Some(place);
        server
    }

    /// One at this address; or how it ended, and what it said.
    pub fn start_at(address: &str, args: &[&str]) -> Result<Self, (ExitStatus, String)> {
        let mut child = command(args)
            .args(["--socket-path", address])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server can be run");
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut lines = Vec::new();
        for line in out.lines().map_while(Result::ok) {
            if line == "ready" {
                // What it has to say from here on is shown when a test fails.
                let mut err = child.stderr.take().unwrap();
                std::thread::spawn(move || {
                    let mut text = String::new();
                    let _ = err.read_to_string(&mut text);
                    eprint!("{text}");
                });
                return Ok(Server {
                    child,
                    lines,
                    _place: None,
                });
            }
            let (what, address) = line.split_once(' ').expect("two words");
            lines.push((what.to_owned(), address.to_owned()));
        }
        let mut said = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        Err((child.wait().unwrap(), said))
    }

    /// Where it does this.
    pub fn address(&self, what: &str) -> String {
        let line = self.lines.iter().find(|(name, _)| name == what);
        line.unwrap_or_else(|| panic!("{what} in {:?}", self.lines))
            .1
            .clone()
    }

    pub fn listening(&self) -> String {
        self.address("listening")
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: plain numbers; the child has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Waits for it to end by itself.
    pub fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("the server ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program, without what the environment of the tests may say.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kv_cache_server"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("KV_CACHE_")) {
        command.env_remove(name);
    }
    command.args(args);
    command
}

/// Waits for a condition.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
