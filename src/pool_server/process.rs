//! Whether a process of this host is still there.

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
        let (_, start) = state_and_start("/proc/self/stat")?;
        let pid = std::process::id();
        Some(Process { pid, start })
    }

    /// Whether it can be seen from here and has not ended. One that has ended and that nobody has
    /// waited for yet does nothing any more.
    pub(crate) fn is_alive(self) -> bool {
        state_and_start(&format!("/proc/{}/stat", self.pid))
            .is_some_and(|(state, start)| start == self.start && !matches!(state, 'Z' | 'X'))
    }
}

fn state_and_start(path: &str) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(path).ok()?;
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
        assert!(own.is_alive());
        let later = Process {
            start: own.start + 1,
            ..own
        };
        assert!(!later.is_alive());
        // Ids end at 2^22.
        let nobody = Process {
            pid: u32::MAX,
            ..own
        };
        assert!(!nobody.is_alive());
    }

    #[test]
    fn a_process_that_has_ended_is_not_alive_even_if_nobody_has_waited_for_it() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let path = format!("/proc/{}/stat", child.id());
        let (_, start) = state_and_start(&path).unwrap();
        let process = Process {
            pid: child.id(),
            start,
        };
        assert!(process.is_alive());
        drop(child.stdin.take());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while process.is_alive() {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!process.is_alive());
    }
}
