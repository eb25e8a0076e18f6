//! Whether a process of this host is still there.

use std::io::ErrorKind;

/// A process, told from a later one with the same id by when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its id.
    pub(crate) pid: u32,
    /// When it started, in clock ticks since boot.
    pub(crate) start: u64,
}

impl Process {
    /// The process that asks.
    pub(crate) fn own() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let (_, start) = state_and_start(&stat)?;
        let pid = std::process::id();
        Some(Process { pid, start })
    }

    /// Whether it can be seen from here and has not ended. One that has ended and that nobody has
    /// waited for yet does nothing any more.
    pub(crate) fn is_seen(self) -> bool {
        self.look().is_ok_and(|alive| alive)
    }

    /// Whether it has ended for certain. A look that fails for want of something of ours (descriptors,
    /// memory) says nothing about it.
    pub(crate) fn has_ended(self) -> bool {
        match self.look() {
            Ok(alive) => !alive,
            Err(e) => e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH),
        }
    }

    fn look(self) -> std::io::Result<bool> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        let (state, start) = state_and_start(&stat).ok_or(ErrorKind::InvalidData)?;
        Ok(start == self.start && !matches!(state, 'Z' | 'X'))
    }
}

fn state_and_start(text: &str) -> Option<(char, u64)> {
    // The name, in parentheses, may hold anything; behind the last one are fields 3 and on.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_told_apart() {
        let own = Process::own().unwrap();
        assert!(own.is_seen() && !own.has_ended());
        let later = Process {
            start: own.start + 1,
            ..own
        };
        assert!(!later.is_seen() && later.has_ended());
        // Ids end at 2^22.
        let nobody = Process {
            pid: u32::MAX,
            ..own
        };
        assert!(!nobody.is_seen() && nobody.has_ended());
    }

    #[test]
    fn a_process_that_has_ended_is_not_alive_even_if_nobody_has_waited_for_it() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let path = format!("/proc/{}/stat", child.id());
        let (_, start) = state_and_start(&std::fs::read_to_string(path).unwrap()).unwrap();
        let process = Process {
            pid: child.id(),
            start,
        };
        assert!(process.is_seen() && !process.has_ended());
        drop(child.stdin.take());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !process.has_ended() {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(process.has_ended());
    }
}
