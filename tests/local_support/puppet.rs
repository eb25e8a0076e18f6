//! An agent in another process. The test binary starts itself with `KVF_PUPPET` set, and the test
//! `puppet_main`, which every binary that uses puppets has, becomes the puppet: it reads a command per
//! line and answers each with a line that begins with `@`.

use super::*;

pub struct Puppet {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    pub name: String,
    pub metadata: Vec<u8>,
    /// Its registered memory.
    pub memory: MemDesc,
}

impl Puppet {
    /// Starts an agent with `len` registered bytes of the pattern of seed 1.
    pub fn start(name: &str, len: usize) -> Puppet {
        Puppet::start_as(name, len, |_| {})
    }

    pub fn start_as(name: &str, len: usize, change: impl FnOnce(&mut Command)) -> Puppet {
        let mut command = Command::new(std::env::current_exe().unwrap());
        change(&mut command);
        Puppet::start_with(command, name, len)
    }

    /// With a command for a copy of this test binary.
    pub fn start_with(mut command: Command, name: &str, len: usize) -> Puppet {
        command
            .args(["--exact", "puppet_main", "--nocapture", "--test-threads=1"])
            .env("KVF_PUPPET", name)
            .env("KVF_PUPPET_LEN", len.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut puppet = Puppet {
            input: child.stdin.take(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
            name: name.to_string(),
            metadata: Vec::new(),
            memory: MemDesc::default(),
        };
        let hello = puppet.answer();
        let words: Vec<&str> = hello.split(' ').collect();
        puppet.metadata = unhex(words[0]);
        puppet.memory = range(words[1].parse().unwrap(), len as u64);
        puppet
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Gives a command and returns the answer.
    pub fn tell(&mut self, command: &str) -> String {
        self.hint(command);
        self.answer()
    }

    /// Gives a command whose answer is fetched later.
    pub fn hint(&mut self, command: &str) {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{command}").unwrap();
        input.flush().unwrap();
    }

    pub fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            let n = self.output.read_line(&mut line).unwrap();
            assert!(n > 0, "puppet {} has ended", self.name);
            // The test harness of the puppet prints its own lines, the first without an end.
            if let Some((_, answer)) = line.split_once('@') {
                return answer.trim_end().to_string();
            }
        }
    }

    pub fn part(&self, offset: usize, len: usize) -> MemDesc {
        assert!(offset + len <= self.memory.len as usize);
        range(self.memory.addr + offset as u64, len as u64)
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: kill takes integers only; the child has not been waited for, so the number is its.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Lets it end by itself, and checks that it ended well.
    pub fn end(mut self) {
        self.input.take();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
        .collect()
}

/// Changes options to NIXL over these UCX transports; empty is UCX's choice.
pub fn over_nixl(options: &mut AgentOptions, tls: &str) {
    let params = match tls {
        "" => Vec::new(),
        tls => vec![("engine_config".to_string(), format!("TLS={tls}"))],
    };
    options.transport = "nixl".into();
    options.backends = Some(vec![("UCX".into(), params)]);
    options.nixl_library = std::env::var("KVF_TEST_NIXL")
        .ok()
        .filter(|v| !v.is_empty());
}

/// What `puppet_main` of a test binary does; returns at once in the test process itself.
pub fn main() {
    let Ok(name) = std::env::var("KVF_PUPPET") else {
        return;
    };
    let len = std::env::var("KVF_PUPPET_LEN").unwrap().parse().unwrap();
    let mut options = options(&name);
    if std::env::var("KVF_PUPPET_CALLER").is_ok() {
        options.progress = Progress::Caller;
    }
    if let Ok(tls) = std::env::var("KVF_PUPPET_NIXL") {
        over_nixl(&mut options, &tls);
    }
    let agent = transport::create(&options).unwrap();
    let mut buffer = Buffer::filled(len, 1);
    register(&*agent, &[buffer.whole()]);
    let metadata = hex(&agent.metadata().unwrap());
    say(&format!("{metadata} {}", buffer.addr()));
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let answer = obey(&agent, &mut buffer, &words);
        say(&answer);
    }
    agent.close().unwrap();
}

fn say(answer: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "@{answer}").unwrap();
    out.flush().unwrap();
}

fn obey(agent: &Arc<dyn Transport>, buffer: &mut Buffer, words: &[&str]) -> String {
    let number = |i: usize| words[i].parse::<u64>().unwrap();
    match words[0] {
        "add" => show(agent.add_remote(&unhex(words[1]))),
        "connect" => show(agent.connect(words[1], &[]).map(|()| "ok".to_string())),
        "notify" => show(
            agent
                .notify(words[1], &unhex(words[2]), None)
                .map(|()| "ok".to_string()),
        ),
        // Messages as sender:bytes, in order.
        "take" => take(&**agent, number(1) as usize)
            .iter()
            .map(|m| format!("{}:{}", m.from, hex(&m.payload)))
            .collect::<Vec<_>>()
            .join(" "),
        // Reads from a peer into the own memory, for ever; answers with the error that ends it.
        "read_on" => {
            let local = [range(buffer.addr(), number(3))];
            let remote = [range(number(2), number(3))];
            let made = transfer(&**agent, Op::Read, &local, &remote, words[1]);
            let ended = made.and_then(|transfer| {
                loop {
                    transfer.post(None)?;
                }
            });
            show(ended)
        }
        "fill" => {
            buffer.fill(number(1));
            "ok".to_string()
        }
        // Whether the memory from an offset on is the pattern of a seed from another offset on.
        "holds" => {
            let (offset, len, seed, from) = (number(1), number(2), number(3), number(4));
            let mut bytes = buffer.bytes()[offset as usize..][..len as usize]
                .iter()
                .enumerate();
            let good = bytes.all(|(i, &b)| b == pattern(seed, from as usize + i));
            good.to_string()
        }
        // Unmaps a page of the registered memory behind the agent's back.
        "unmap" => {
            // SAFETY: the page lies inside the buffer, which is not looked at again.
            let rc = unsafe { libc::munmap(number(1) as *mut libc::c_void, 4096) };
            rc.to_string()
        }
        // Leaves a child behind that holds every descriptor open.
        "linger" => {
            // SAFETY: the child calls nothing but functions that are safe after a fork.
            match unsafe { libc::fork() } {
                0 => loop {
                    // SAFETY: integers only. The test kills the child; the alarm does it otherwise.
                    unsafe {
                        libc::alarm(LIMIT.as_secs() as u32);
                        libc::pause();
                    }
                },
                pid => pid.to_string(),
            }
        }
        "fork" => fork(agent, buffer).to_string(),
        "close" => show(agent.close().map(|()| "ok".to_string())),
        other => panic!("puppets do not know {other:?}"),
    }
}

fn show(result: kvferry::error::Result<String>) -> String {
    result.unwrap_or_else(|e| format!("{:?}", e.status()))
}

/// What a forked child can do: not use the agent, but drop it, and have an agent of its own that
/// reads from the parent's. Answers with the child's exit code.
fn fork(agent: &Arc<dyn Transport>, buffer: &Buffer) -> i32 {
    let metadata = agent.metadata().unwrap();
    let list = agent
        .prepare(
            Side::Local,
            MemKind::Dram,
            Descs::Flat(&[buffer.whole()]),
            &[],
        )
        .unwrap();
    // SAFETY: the child is single-threaded from here; the allocator is usable after a fork.
    match unsafe { libc::fork() } {
        0 => {
            let check = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                fails(
                    agent.metadata(),
                    Status::InvalidState,
                    &["created in process"],
                );
                fails(agent.notifications(&[]), Status::InvalidState, &["fork"]);
                drop(list);
                let child = super::agent("forked");
                let peer = child.add_remote(&metadata).unwrap();
                let target = Buffer::new(buffer.bytes().len());
                register(&*child, &[target.whole()]);
                copy(
                    &*child,
                    Op::Read,
                    &[target.whole()],
                    &[buffer.whole()],
                    &peer,
                );
                assert_eq!(target.bytes(), buffer.bytes());
                child.close().unwrap();
                // The last references of this process: nothing may hang or crash.
                // SAFETY: the caller's reference is never used again in this process.
                drop(unsafe { std::ptr::read(agent) });
            }));
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(if check.is_ok() { 0 } else { 1 }) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: `pid` is our child and `status` a live int.
            unsafe { libc::waitpid(pid, &raw mut status, 0) };
            if libc::WIFEXITED(status) {
                libc::WEXITSTATUS(status)
            } else {
                -status
            }
        }
    }
}
