//! Letting peers in under Yama.
//!
//! Where `kernel.yama.ptrace_scope` is 1 (Ubuntu's default), a process may read another one's memory
//! only when it is an ancestor or when the other one has named it with `PR_SET_PTRACER`. The owner of
//! memory therefore names the peers that have connected and shown that they hold its metadata.
//!
//! The kernel keeps a single name per process. With one peer process that process is named and
//! nobody else; with several at a time only `PR_SET_PTRACER_ANY` is left, which is what processes of
//! the same user may do on a kernel without Yama. The usual checks (same user, dumpable) stay in
//! force in either case. When the last peer is gone the permission is withdrawn. In the other scopes
//! (0: not needed, 2 and 3: of no use) nothing is done.

use std::collections::BTreeMap;

/// `PR_SET_PTRACER` of linux/prctl.h; the libc crate has it under the same name and value.
const PR_SET_PTRACER: libc::c_int = libc::PR_SET_PTRACER;

/// What the kernel is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Permission {
    Nobody,
    Only(u32),
    Anybody,
}

/// The peer processes that may read this process's memory.
pub(super) struct Tracers {
    wanted: bool,
    connections: BTreeMap<u32, usize>,
    told: Permission,
}

/// Value of `kernel.yama.ptrace_scope`; `None` without Yama.
pub(super) fn ptrace_scope() -> Option<u32> {
    let text = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok()?;
    text.trim().parse().ok()
}

impl Tracers {
    pub fn of_this_kernel() -> Tracers {
        Tracers::new(ptrace_scope() == Some(1))
    }

    fn new(wanted: bool) -> Tracers {
        Tracers {
            wanted,
            connections: BTreeMap::new(),
            told: Permission::Nobody,
        }
    }

    /// A peer of this process id has proved itself on one more connection.
    pub fn admit(&mut self, pid: u32) {
        *self.connections.entry(pid).or_default() += 1;
        self.tell(tell_kernel);
    }

    /// One of its connections is gone.
    pub fn dismiss(&mut self, pid: u32) {
        if let Some(count) = self.connections.get_mut(&pid) {
            *count -= 1;
            if *count == 0 {
                self.connections.remove(&pid);
            }
        }
        self.tell(tell_kernel);
    }

    fn permission(&self) -> Permission {
        match (self.connections.len(), self.connections.first_key_value()) {
            (1, Some((&pid, _))) => Permission::Only(pid),
            (0, _) => Permission::Nobody,
            _ => Permission::Anybody,
        }
    }

    fn tell(&mut self, tell: impl FnOnce(Permission)) {
        let permission = self.permission();
        if self.wanted && permission != self.told {
            self.told = permission;
            tell(permission);
        }
    }
}

fn tell_kernel(permission: Permission) {
    let value: libc::c_ulong = match permission {
        Permission::Nobody => 0,
        Permission::Only(pid) => libc::c_ulong::from(pid),
        Permission::Anybody => libc::c_ulong::MAX,
    };
    // SAFETY: PR_SET_PTRACER takes one integer and touches no memory of ours.
    let rc = unsafe { libc::prctl(PR_SET_PTRACER, value, 0, 0, 0) };
    if rc != 0 {
        let e = std::io::Error::last_os_error();
        log::warn!("local transport: letting a peer read this process's memory: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `steps` (process id, admitted or dismissed) and returns what the kernel is told.
    fn told(wanted: bool, steps: &[(u32, bool)]) -> Vec<Permission> {
        let mut tracers = Tracers::new(wanted);
        let mut told = Vec::new();
        for &(pid, admitted) in steps {
            // As `admit` and `dismiss` do, with a kernel that takes notes.
            let count = tracers.connections.entry(pid).or_default();
            *count = if admitted { *count + 1 } else { *count - 1 };
            tracers.connections.retain(|_, count| *count > 0);
            tracers.tell(|permission| told.push(permission));
        }
        told
    }

    #[test]
    fn one_peer_is_named_and_several_are_anybody() {
        use Permission::*;
        assert_eq!(
            told(
                true,
                &[
                    (7, true),
                    (7, true),
                    (9, true),
                    (7, false),
                    (7, false),
                    (9, false)
                ]
            ),
            [Only(7), Anybody, Only(9), Nobody]
        );
    }

    #[test]
    fn nothing_is_said_where_yama_does_not_ask() {
        assert_eq!(told(false, &[(7, true), (9, true), (7, false)]), []);
    }
}
