//! Messages between agents.

use std::ptr;
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use super::endpoint::Endpoint;
use super::ffi;
use super::objects::{NotifMap, c_string, lossy, opt};
use crate::error::{Result, Status, bail};
use crate::sync::lock;
use crate::transport::Notification;

/// How long a wait sleeps between two looks: it begins short and doubles. NIXL's C API cannot wake
/// a waiter.
const FIRST_NAP: Duration = Duration::from_micros(20);
const LONGEST_NAP: Duration = Duration::from_millis(1);

/// Messages that a wait has taken from NIXL and nobody has fetched yet, and the map for fetching
/// more, which is kept because making one costs more than an empty look.
#[derive(Default)]
pub struct Inbox {
    map: Option<NotifMap>,
    waiting: Vec<Notification>,
}

impl Endpoint {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        lock(&self.inbox)
    }

    /// Sends a message.
    pub fn notify(&self, remote: &str, payload: &[u8], backend: Option<&str>) -> Result<()> {
        self.check_open()?;
        let peer = c_string("agent name", remote)?;
        let args = self.backends.options(backend.as_slice())?;
        let code = self.backends.hold(|| {
            // SAFETY: all objects are alive for the call and the payload is copied.
            self.call(|agent| unsafe {
                ffi::nixl_capi_gen_notif(
                    agent,
                    peer.as_ptr(),
                    payload.as_ptr().cast(),
                    payload.len(),
                    opt(&args),
                )
            })
        });
        if code == ffi::SUCCESS || code == ffi::IN_PROG {
            return Ok(());
        }
        if remote != self.name && !self.knows(&peer) {
            bail!(
                Status::NotFound,
                "no metadata of {remote:?} is loaded, so it cannot be notified"
            );
        }
        match code {
            ffi::NOT_FOUND => bail!(
                Status::NoBackend,
                "no backend {}can send a message to {remote:?}",
                backend.map(|b| format!("of {b:?} ")).unwrap_or_default()
            ),
            // A backend refuses a message to a peer that it knows when the connection is broken.
            code => bail!(
                Status::PeerLost,
                "a message of {} bytes to {remote:?} could not be sent: the connection is broken \
                 (code {code}); remove the peer, and load its metadata again when it is back",
                payload.len()
            ),
        }
    }

    /// Takes all messages that have arrived.
    pub fn notifications(&self, backends: &[&str]) -> Result<Vec<Notification>> {
        self.check_open()?;
        self.backends.check(backends)?;
        self.reap();
        let mut inbox = self.inbox();
        self.fetch(&mut inbox, backends)?;
        Ok(std::mem::take(&mut inbox.waiting))
    }

    /// Waits until a message may have arrived.
    pub fn wait_for_notification(&self, limit: Duration) -> Result<()> {
        let begin = Instant::now();
        let mut nap = FIRST_NAP;
        loop {
            self.check_open()?;
            self.reap();
            {
                let mut inbox = self.inbox();
                if inbox.waiting.is_empty() {
                    self.fetch(&mut inbox, &[])?;
                }
                if !inbox.waiting.is_empty() {
                    return Ok(());
                }
            }
            let Some(left) = limit
                .checked_sub(begin.elapsed())
                .filter(|left| !left.is_zero())
            else {
                return Ok(());
            };
            std::thread::sleep(nap.min(left));
            nap = (nap * 2).min(LONGEST_NAP);
        }
    }

    /// Moves what NIXL has received to the inbox.
    fn fetch(&self, inbox: &mut Inbox, backends: &[&str]) -> Result<()> {
        let args = self.backends.options(backends)?;
        if inbox.map.is_none() {
            inbox.map = Some(NotifMap::new()?);
        }
        let Some(map) = inbox.map.as_ref().map(NotifMap::raw) else {
            return Ok(());
        };
        // SAFETY: the agent, the map and the options are alive; the inbox lock keeps the map ours.
        let code = self.call(|agent| unsafe { ffi::nixl_capi_get_notifs(agent, map, opt(&args)) });
        let mut agents = 0;
        // SAFETY: as above. After an error there may still be messages, of the other backends.
        unsafe { ffi::nixl_capi_notif_map_size(map, &mut agents) };
        for i in 0..agents {
            // SAFETY: the map is alive and not changed during the loop.
            unsafe { read_agent(map, i, &mut inbox.waiting) };
        }
        if agents > 0 {
            // SAFETY: as above; everything was copied.
            unsafe { ffi::nixl_capi_notif_map_clear(map) };
        }
        match code {
            ffi::SUCCESS => Ok(()),
            _ if agents > 0 => Ok(()),
            _ if self.backends.names().is_empty() => {
                bail!(
                    Status::NoBackend,
                    "the agent {:?} has no backend to receive with",
                    self.name
                )
            }
            code => bail!(
                Status::Backend,
                "NIXL could not receive messages (code {code})"
            ),
        }
    }
}

/// Copies the messages of one sender.
///
/// # Safety
/// The map is alive and is not changed meanwhile.
unsafe fn read_agent(map: ffi::NotifMap, index: usize, out: &mut Vec<Notification>) {
    // SAFETY: the caller's promise; names and messages live as long as the map is not changed.
    unsafe {
        let mut name = ptr::null();
        if ffi::nixl_capi_notif_map_get_agent_at(map, index, &mut name) != ffi::SUCCESS {
            return;
        }
        let mut count = 0;
        if ffi::nixl_capi_notif_map_get_notifs_size(map, name, &mut count) != ffi::SUCCESS {
            // Only a name with a NUL in it is not found under its own C string.
            log::warn!("messages of an agent whose name has a NUL in it were dropped");
            return;
        }
        let from = lossy(name);
        for i in 0..count {
            let (mut data, mut len) = (ptr::null(), 0);
            if ffi::nixl_capi_notif_map_get_notif(map, name, i, &mut data, &mut len) != ffi::SUCCESS
            {
                continue;
            }
            let payload = match len {
                0 => Vec::new(),
                len => std::slice::from_raw_parts(data.cast::<u8>(), len).to_vec(),
            };
            out.push(Notification {
                from: from.clone(),
                payload,
            });
        }
    }
}
