//! Which host, which process: what decides whether two agents can reach each other at all.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::inbox::Inbox;
use super::registry::Registry;
use super::tracers::Tracers;
use crate::error::{Error, Result};
use crate::sync::lock;

/// 128 random bits.
pub(super) type Token = [u8; 16];

/// A fresh token from the kernel's random number generator.
pub(super) fn random_token() -> Result<Token> {
    let mut token = [0u8; 16];
    let mut filled = 0;
    while filled < token.len() {
        let rest = &mut token[filled..];
        // SAFETY: the pointer and length are those of a live, writable slice.
        let n = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(n) {
            Ok(n) => filled += n,
            Err(_) if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {
            }
            Err(_) => return Err(Error::os("getting random bytes")),
        }
    }
    Ok(token)
}

/// A token as text, for socket names and messages.
pub(super) fn hex(token: &Token) -> String {
    use std::fmt::Write;
    token.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Where an agent runs. A field that the system does not tell is zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct HostId {
    /// Random per boot of the kernel; equal only on the same host.
    pub boot: Token,
    /// The network namespace, within which abstract socket names are known.
    pub net_ns: u64,
    /// The PID namespace; one may be visible from another, so it only explains failures.
    pub pid_ns: u64,
}

impl HostId {
    /// That of this process.
    pub fn here() -> HostId {
        let namespace = |name: &str| {
            std::fs::metadata(format!("/proc/self/ns/{name}")).map_or(0, |entry| entry.ino())
        };
        HostId {
            boot: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .ok()
                .and_then(|text| parse_uuid(text.trim()))
                .unwrap_or_default(),
            net_ns: namespace("net"),
            pid_ns: namespace("pid"),
        }
    }
}

fn parse_uuid(text: &str) -> Option<Token> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    if digits.len() != 32 || !digits.is_ascii() {
        return None;
    }
    let mut token = [0u8; 16];
    for (i, byte) in token.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(token)
}

/// What other agents of the same process may touch of one agent.
pub(super) struct Presence {
    pub name: String,
    /// Tells instances of the same name apart, and names the socket. Not secret.
    pub instance: Token,
    /// Shown by a peer that connects, to prove that it was given this agent's metadata.
    pub knock: Token,
    /// Shown by this agent in return, and read from its memory by the peer to prove that memory and
    /// socket belong to the same process. Its address is fixed as long as the agent exists.
    pub answer: Box<Token>,
    pub registry: Arc<Registry>,
    pub inbox: Inbox,
}

/// What belongs to the process and not to one agent. After a fork the child has a fresh one: the old
/// one may have been locked by a thread that the child does not have.
pub(super) struct Process {
    pid: u32,
    agents: Mutex<HashMap<Token, Weak<Presence>>>,
    pub tracers: Mutex<Tracers>,
}

static CURRENT: AtomicPtr<Process> = AtomicPtr::new(ptr::null_mut());

impl Process {
    /// That of the calling process.
    pub fn current() -> &'static Process {
        let pid = std::process::id();
        let known = CURRENT.load(Ordering::Acquire);
        // SAFETY: CURRENT is null or was made from a box below that is never freed.
        if let Some(process) = unsafe { known.as_ref() } {
            if process.pid == pid {
                return process;
            }
        }
        let fresh = Box::into_raw(Box::new(Process {
            pid,
            agents: Mutex::default(),
            tracers: Mutex::new(Tracers::of_this_kernel()),
        }));
        match CURRENT.compare_exchange(known, fresh, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: `fresh` came from a box just now and is never freed from here on.
            Ok(_) => unsafe { &*fresh },
            Err(other) => {
                // SAFETY: `fresh` came from a box and nobody else has seen it.
                drop(unsafe { Box::from_raw(fresh) });
                // SAFETY: another thread of this process put it there, from a box never freed.
                unsafe { &*other }
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn announce(&self, presence: &Arc<Presence>) {
        lock(&self.agents).insert(presence.instance, Arc::downgrade(presence));
    }

    pub fn withdraw(&self, instance: &Token) {
        lock(&self.agents).remove(instance);
    }

    pub fn find(&self, instance: &Token) -> Option<Arc<Presence>> {
        lock(&self.agents).get(instance).and_then(Weak::upgrade)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_ids_are_read_strictly() {
        let id = parse_uuid("00112233-4455-6677-8899-aabbccddeeff").unwrap();
        assert_eq!(hex(&id), "00112233445566778899aabbccddeeff");
        assert_eq!(parse_uuid("00112233-4455"), None);
        assert_eq!(parse_uuid("zz112233-4455-6677-8899-aabbccddeeff"), None);
        assert_ne!(HostId::here().boot, [0; 16]);
    }

    #[test]
    fn tokens_differ() {
        assert_ne!(random_token().unwrap(), random_token().unwrap());
    }
}
