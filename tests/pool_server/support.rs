//! A server for a test, and ways to talk to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kvferry::zmtp::{self, Decoder, Event, Limits};

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
        Server::start_command(command(args).args(["--socket-path", address]))
    }

    /// The same of a whole command.
    pub fn start_command(command: &mut Command) -> Result<Self, (ExitStatus, String)> {
        let mut child = command
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

/// A connection by hand, which reads only when it is told to.
pub struct Raw {
    stream: UnixStream,
    decoder: Decoder,
}

impl Raw {
    /// Connects, and greets as a socket of this type.
    pub fn connect(address: &str, socket_type: &str) -> Self {
        let stream = UnixStream::connect(address.trim_start_matches("ipc://")).unwrap();
        Raw::new(stream, socket_type)
    }

    /// Greets over this one.
    pub fn new(stream: UnixStream, socket_type: &str) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let limits = Limits {
            bytes: 1 << 30,
            frames: 2,
        };
        let mut raw = Raw {
            stream,
            decoder: Decoder::new(limits),
        };
        raw.send(&[zmtp::greeting(), zmtp::ready(socket_type)].concat());
        raw
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next message.
    pub fn message(&mut self) -> Vec<Vec<u8>> {
        loop {
            if let Event::Message(frames) = self.event() {
                return frames;
            }
        }
    }

    /// What the other end says next.
    pub fn event(&mut self) -> Event {
        let mut bytes = [0; 4096];
        loop {
            let want = self.decoder.missing().min(bytes.len());
            let n = self
                .stream
                .read(&mut bytes[..want])
                .expect("it says something");
            assert!(n > 0, "the connection has been closed");
            if let Some(event) = self.decoder.push(&bytes[..n]).unwrap() {
                return event;
            }
        }
    }

    /// Whether something has come that was not read yet.
    pub fn has_more(&self) -> bool {
        let mut byte = 0u8;
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: one byte, which lives for the call; the descriptor is open.
        let n = unsafe { libc::recv(self.stream.as_raw_fd(), (&raw mut byte).cast(), 1, flags) };
        n > 0
    }

    /// Whether the other end closes the connection, whatever it says before.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
        }
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

/// A program that can have so many open files and no more.
pub fn lower_open_files(command: &mut Command, n: u64) {
    let lower = move || {
        let limit = libc::rlimit {
            rlim_cur: n,
            rlim_max: n,
        };
        // SAFETY: the struct lives for the call.
        match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: setrlimit(2) and errno may be used between fork and exec.
    unsafe { command.pre_exec(lower) };
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
