//! A NIXL transfer request and where it stands.
//!
//! NIXL lets a request be used by one thread at a time, so each has a lock, and because a post can
//! take hundreds of milliseconds the state is kept beside the lock: asking for it never waits.
//!
//! Cancelling never releases a request that is under way. NIXL's release of an active request asks
//! UCX to cancel it and forgets it, while the network may go on writing into the buffers. A
//! cancelled request is polled to its end like any other, and answers `Canceled` then.

use std::ffi::CString;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use super::endpoint::Endpoint;
use super::ffi;
use super::objects::{Backend, OptArgs, XferDlist};
use super::regions::{Coverage, Region};
use crate::error::{Error, Result, Status, bail};
use crate::memory::{MemDesc, MemKind};
use crate::sync::lock;
use crate::transport::{Cost, Telemetry, TransferState};

const NOT_POSTED: u8 = 0;
const POSTING: u8 = 1;
const UNDER_WAY: u8 = 2;
const DONE: u8 = 3;
const FAILED: u8 = 4;

/// One request. Belongs to an endpoint, which every call is given.
pub struct Request {
    inner: Mutex<Inner>,
    phase: AtomicU8,
    cancel: AtomicBool,
    orphan: AtomicBool,
    tracked: AtomicBool,
    remote: Arc<CString>,
    /// Kind and range of one descriptor of either side, for asking about the connection.
    sample: [(MemKind, MemDesc); 2],
    /// The registered regions of the local side, and of the remote side when that is this agent.
    coverage: [Option<Arc<Coverage>>; 2],
}

struct Inner {
    /// Null once released.
    raw: ffi::XferReq,
    /// Why the last post failed, when it did.
    error: Option<Error>,
}

// SAFETY: the pointer is only used under the lock; NIXL ties requests to no thread.
unsafe impl Send for Inner {}

impl Request {
    /// Takes over a request that was just made.
    pub fn new(
        raw: ffi::XferReq,
        remote: Arc<CString>,
        sample: [(MemKind, MemDesc); 2],
        coverage: [Option<Arc<Coverage>>; 2],
    ) -> Request {
        Request {
            inner: Mutex::new(Inner { raw, error: None }),
            phase: AtomicU8::new(NOT_POSTED),
            cancel: AtomicBool::new(false),
            orphan: AtomicBool::new(false),
            tracked: AtomicBool::new(false),
            remote,
            sample,
            coverage,
        }
    }

    /// Whether bytes may be moving.
    pub fn may_be_under_way(&self) -> bool {
        matches!(self.phase.load(Ordering::Acquire), POSTING | UNDER_WAY)
    }

    /// Whether its handle is gone.
    pub fn is_orphan(&self) -> bool {
        self.orphan.load(Ordering::Acquire)
    }

    /// Notes that its handle is gone.
    pub fn set_orphan(&self) {
        self.orphan.store(true, Ordering::Release);
    }

    /// Notes that the endpoint holds it in its list, or no longer does; returns what was before.
    /// Called under the lock of that list.
    pub fn set_tracked(&self, tracked: bool) -> bool {
        self.tracked.swap(tracked, Ordering::AcqRel)
    }

    /// Whether it moves bytes from or to the peer of this name.
    pub fn is_with(&self, remote: &CString) -> bool {
        *self.remote == *remote
    }

    /// Whether it moves bytes in one of these regions.
    pub fn touches(&self, regions: &[Arc<Region>]) -> bool {
        self.coverage.iter().flatten().any(|c| c.touches(regions))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, Inner>> {
        match self.inner.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(e)) => Some(e.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn set_phase(&self, phase: u8) {
        self.phase.store(phase, Ordering::Release);
    }

    /// The name of the peer, for messages.
    fn remote_name(&self) -> std::borrow::Cow<'_, str> {
        self.remote.to_string_lossy()
    }

    /// Starts it.
    pub fn post(
        self: &Arc<Self>,
        endpoint: &Endpoint,
        notification: Option<&[u8]>,
    ) -> Result<TransferState> {
        endpoint.check_open()?;
        let options = match notification {
            Some(payload) => {
                let options = OptArgs::new()?;
                options.set_notification(payload)?;
                Some(options)
            }
            None => None,
        };
        let pinned = endpoint.pin();
        self.check_memory(endpoint)?;
        let mut inner = self.lock_for_post(endpoint)?;
        self.cancel.store(false, Ordering::Release);
        inner.error = None;
        self.set_phase(POSTING);
        let args = super::objects::opt(&options);
        // SAFETY: the request is alive and locked, the agent outlives it, the options are alive or
        // null, and `pin` keeps what the request points to in place.
        let code =
            endpoint.call(|agent| unsafe { ffi::nixl_capi_post_xfer_req(agent, inner.raw, args) });
        if code == ffi::IN_PROG {
            // In this order: whoever shuts the gate finds it both tracked and under way.
            self.set_phase(UNDER_WAY);
            endpoint.track(self);
            return Ok(TransferState::InProgress);
        }
        drop(pinned);
        self.settle(endpoint, &mut inner, code, "posting")
    }

    /// An error if memory that it uses was deregistered.
    fn check_memory(&self, endpoint: &Endpoint) -> Result<()> {
        self.coverage
            .iter()
            .flatten()
            .try_for_each(|c| endpoint.registry.validate(c))
    }

    /// The lock, once the request is at rest.
    fn lock_for_post(&self, endpoint: &Endpoint) -> Result<MutexGuard<'_, Inner>> {
        let active = || {
            Err(Error::new(
                Status::RepostActive,
                format!(
                    "the transfer with {:?} is still under way",
                    self.remote_name()
                ),
            ))
        };
        if self.phase.load(Ordering::Acquire) == POSTING {
            return active();
        }
        // Only then: in the other phases asking makes an error, with its text, for nobody.
        if self.phase.load(Ordering::Acquire) == UNDER_WAY
            && matches!(self.state(endpoint), Ok(TransferState::InProgress))
        {
            return active();
        }
        // Whoever has the lock now is in a short call, or is posting and will have set the phase.
        let inner = self.lock();
        if self.may_be_under_way() {
            return active();
        }
        Ok(inner)
    }

    /// Where it stands.
    pub fn state(&self, endpoint: &Endpoint) -> Result<TransferState> {
        match self.phase.load(Ordering::Acquire) {
            NOT_POSTED => bail!(
                Status::NotPosted,
                "the transfer with {:?} has not been posted",
                self.remote_name()
            ),
            POSTING => Ok(TransferState::InProgress),
            DONE => Ok(TransferState::Done),
            UNDER_WAY => {
                let Some(mut inner) = self.try_lock() else {
                    return Ok(TransferState::InProgress);
                };
                self.poll(endpoint, &mut inner)
            }
            _ => {
                let Some(inner) = self.try_lock() else {
                    return Ok(TransferState::InProgress);
                };
                self.outcome(&inner)
            }
        }
    }

    /// Asks NIXL, with the lock held.
    fn poll(&self, endpoint: &Endpoint, inner: &mut Inner) -> Result<TransferState> {
        if self.phase.load(Ordering::Acquire) != UNDER_WAY {
            return self.outcome(inner);
        }
        // SAFETY: the request is alive and locked and the agent outlives it.
        let code =
            endpoint.try_call(|agent| unsafe { ffi::nixl_capi_get_xfer_status(agent, inner.raw) });
        match code {
            Some(code) => self.settle(endpoint, inner, code, "moving bytes"),
            None => Ok(TransferState::InProgress),
        }
    }

    /// What is known without asking NIXL.
    fn outcome(&self, inner: &Inner) -> Result<TransferState> {
        match self.phase.load(Ordering::Acquire) {
            DONE => Ok(TransferState::Done),
            FAILED => Err(inner.error.clone().unwrap_or_else(|| {
                Error::new(Status::Internal, "a failed transfer has lost its error")
            })),
            _ => Ok(TransferState::InProgress),
        }
    }

    /// Notes what NIXL answered.
    fn settle(
        &self,
        endpoint: &Endpoint,
        inner: &mut Inner,
        code: ffi::Code,
        doing: &str,
    ) -> Result<TransferState> {
        if code == ffi::IN_PROG {
            self.set_phase(UNDER_WAY);
            return Ok(TransferState::InProgress);
        }
        let error = if self.cancel.load(Ordering::Acquire) {
            Some(Error::new(
                Status::Canceled,
                format!("the transfer with {:?} was cancelled", self.remote_name()),
            ))
        } else if code == ffi::SUCCESS {
            None
        } else {
            Some(self.failure(endpoint, code, doing))
        };
        match error {
            Some(error) => {
                inner.error = Some(error.clone());
                self.set_phase(FAILED);
                Err(error)
            }
            None => {
                self.set_phase(DONE);
                Ok(TransferState::Done)
            }
        }
    }

    /// Why posting or polling failed. NIXL's C API has one code for most failures, so ask further.
    fn failure(&self, endpoint: &Endpoint, code: ffi::Code, doing: &str) -> Error {
        let remote = self.remote_name();
        if code == ffi::NOT_FOUND || !endpoint.knows(&self.remote) {
            return Error::new(
                Status::PeerLost,
                format!(
                    "{doing}: {remote:?} was removed after the transfer was made; load its \
                     metadata again and make the transfer anew"
                ),
            );
        }
        if self.connection_is_broken(endpoint) {
            return Error::new(
                Status::PeerLost,
                format!(
                    "{doing}: the connection to {remote:?} is broken (code {code}); remove it, and \
                     load its metadata again when it is back"
                ),
            );
        }
        Error::new(
            Status::Backend,
            format!("{doing}: the backend failed on the transfer with {remote:?} (code {code})"),
        )
    }

    /// Whether the backend refuses even to move no bytes: what it does once a connection has
    /// failed, which it then stays until the peer is removed.
    fn connection_is_broken(&self, endpoint: &Endpoint) -> bool {
        let _pinned = endpoint.pin();
        if self.check_memory(endpoint).is_err() {
            return false;
        }
        let [local, remote] = self.sample.map(|(kind, desc)| {
            XferDlist::from_descs(kind, [MemDesc { len: 0, ..desc }].into_iter())
        });
        let (Ok(local), Ok(remote)) = (local, remote) else {
            return false;
        };
        let mut raw = ptr::null_mut();
        // SAFETY: the lists are alive for the call, and `pin` keeps the memory registered until the
        // request is gone; it moves no bytes, so it may be released at any time.
        unsafe {
            let made = endpoint.call(|agent| {
                ffi::nixl_capi_create_xfer_req(
                    agent,
                    crate::transport::Op::Read as i32,
                    local.raw(),
                    remote.raw(),
                    self.remote.as_ptr(),
                    &mut raw,
                    ptr::null_mut(),
                )
            });
            if made != ffi::SUCCESS || raw.is_null() {
                return false;
            }
            endpoint.call(|agent| {
                let code = ffi::nixl_capi_post_xfer_req(agent, raw, ptr::null_mut());
                ffi::nixl_capi_release_xfer_req(agent, raw);
                ffi::nixl_capi_destroy_xfer_req(raw);
                code != ffi::SUCCESS && code != ffi::IN_PROG
            })
        }
    }

    /// Asks it to stop: it is polled to its end, and answers `Canceled` then.
    pub fn cancel(&self) -> Result<()> {
        match self.phase.load(Ordering::Acquire) {
            NOT_POSTED => bail!(
                Status::NotPosted,
                "the transfer with {:?} has not been posted",
                self.remote_name()
            ),
            POSTING | UNDER_WAY => self.cancel.store(true, Ordering::Release),
            _ => {}
        }
        Ok(())
    }

    /// Figures of the last post.
    pub fn telemetry(&self, endpoint: &Endpoint) -> Result<Telemetry> {
        let none = |why: &str| {
            Error::new(
                Status::NoTelemetry,
                format!(
                    "no telemetry of the transfer with {:?}: {why}",
                    self.remote_name()
                ),
            )
        };
        if self.phase.load(Ordering::Acquire) == UNDER_WAY {
            // Completion is noticed by polling only.
            let _ = self.state(endpoint);
        }
        match self.phase.load(Ordering::Acquire) {
            NOT_POSTED => return Err(none("it has not been posted")),
            POSTING | UNDER_WAY => return Err(none("it is still under way")),
            FAILED => return Err(none("it failed or was cancelled")),
            _ => {}
        }
        let inner = self.lock();
        let mut t = ffi::XferTelemetry::default();
        // SAFETY: the request is alive and locked; the structure has the layout of the header.
        let code = endpoint
            .call(|agent| unsafe { ffi::nixl_capi_get_xfer_telemetry(agent, inner.raw, &mut t) });
        match code {
            ffi::SUCCESS => Ok(Telemetry {
                start_time_us: t.start_time_us,
                post_duration_us: t.post_duration_us,
                transfer_duration_us: t.xfer_duration_us,
                total_bytes: t.total_bytes,
                descriptors: t.desc_count,
            }),
            ffi::NO_TELEMETRY => Err(none("it was not enabled when the agent was made")),
            code => Err(none(&format!("NIXL has none (code {code})"))),
        }
    }

    /// An estimate of its duration.
    pub fn cost(&self, endpoint: &Endpoint) -> Result<Cost> {
        let _pinned = endpoint.pin();
        self.check_memory(endpoint)?;
        let inner = self.lock_at_rest()?;
        let (mut duration_us, mut error_margin_us, mut method) = (0, 0, 0);
        // SAFETY: the request is alive and locked, and `pin` keeps what it points to in place.
        let code = endpoint.call(|agent| unsafe {
            ffi::nixl_capi_estimate_xfer_cost(
                agent,
                inner.raw,
                ptr::null_mut(),
                &mut duration_us,
                &mut error_margin_us,
                &mut method,
            )
        });
        match code {
            ffi::SUCCESS => Ok(Cost {
                duration_us,
                error_margin_us,
                method: u32::try_from(method).unwrap_or(u32::MAX),
            }),
            ffi::NOT_FOUND => Err(self.failure(endpoint, code, "estimating")),
            code => bail!(
                Status::NotSupported,
                "the backend cannot estimate the cost of the transfer with {:?} (code {code})",
                self.remote_name()
            ),
        }
    }

    /// The backend that carries it.
    pub fn backend(&self, endpoint: &Endpoint) -> Result<String> {
        let inner = self.lock_at_rest()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the request is alive and locked.
        let code = endpoint
            .call(|agent| unsafe { ffi::nixl_capi_query_xfer_backend(agent, inner.raw, &mut raw) });
        if code != ffi::SUCCESS || raw.is_null() {
            bail!(
                Status::Backend,
                "NIXL cannot tell the backend of the transfer (code {code})"
            );
        }
        // SAFETY: the call succeeded and gave the wrapper away.
        let wrapper = unsafe { Backend::from_raw(raw) };
        endpoint.backends.name_of(&wrapper).ok_or_else(|| {
            Error::new(
                Status::Internal,
                "the transfer's backend was not created by this agent",
            )
        })
    }

    /// The lock, unless a post has it: that may take long.
    fn lock_at_rest(&self) -> Result<MutexGuard<'_, Inner>> {
        if self.phase.load(Ordering::Acquire) == POSTING {
            bail!(
                Status::Busy,
                "the transfer with {:?} is being posted by another thread",
                self.remote_name()
            );
        }
        Ok(self.lock())
    }

    /// What happens when the handle is dropped: released at once if at rest, else left to the
    /// endpoint.
    pub fn abandon(self: &Arc<Self>, endpoint: &Endpoint) {
        if matches!(self.state(endpoint), Ok(TransferState::InProgress)) {
            endpoint.adopt(self);
        } else {
            self.release(endpoint);
        }
    }

    /// Frees the request; it is at rest, or its peer is lost.
    pub fn release(&self, endpoint: &Endpoint) {
        let mut inner = self.lock();
        let raw = std::mem::replace(&mut inner.raw, ptr::null_mut());
        if raw.is_null() {
            return;
        }
        // SAFETY: the request is alive, locked, and forgotten by the line above; the agent outlives
        // it. The second call frees the C side's wrapper and does so only after the first has
        // freed what is in it.
        let (released, freed) = endpoint.call(|agent| unsafe {
            (
                ffi::nixl_capi_release_xfer_req(agent, raw),
                ffi::nixl_capi_destroy_xfer_req(raw),
            )
        });
        if released != ffi::SUCCESS || freed != ffi::SUCCESS {
            log::warn!(
                "NIXL did not release a transfer with {:?} (codes {released}, {freed}); it leaks",
                self.remote_name()
            );
        }
    }
}
