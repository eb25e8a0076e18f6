//! Prepared lists, and transfers made from them or directly.

use std::any::Any;
use std::ffi::CString;
use std::ptr;
use std::sync::Arc;

use super::endpoint::Endpoint;
use super::ffi;
use super::objects::{OptArgs, XferDlist, c_string, opt};
use super::regions::{Coverage, describe};
use super::request::Request;
use crate::error::{Error, Result, Status, bail};
use crate::memory::{MemDesc, MemKind, StridedDesc};
use crate::transport::{
    Cost, Descs, Op, PreparedList, Side, Telemetry, Transfer, TransferOptions, TransferState,
};

/// Lengths of a list's ranges, for saying which pair does not fit.
enum Lengths {
    Uniform(u64),
    Each(Vec<u64>),
}

impl Lengths {
    fn of(descs: &[MemDesc]) -> Lengths {
        match descs.first() {
            Some(first) if descs.iter().any(|d| d.len != first.len) => {
                Lengths::Each(descs.iter().map(|d| d.len).collect())
            }
            first => Lengths::Uniform(first.map_or(0, |d| d.len)),
        }
    }

    fn get(&self, index: usize) -> u64 {
        match self {
            Lengths::Uniform(len) => *len,
            Lengths::Each(lens) => lens.get(index).copied().unwrap_or(0),
        }
    }
}

/// A list that NIXL has prepared.
pub struct NixlList {
    endpoint: Arc<Endpoint>,
    raw: ffi::DlistHandle,
    len: usize,
    lengths: Lengths,
    /// Kind and range of the first descriptor.
    first: (MemKind, MemDesc),
    /// The peer, or this agent itself; `None` for a local side.
    remote: Option<Arc<CString>>,
    /// The regions of this agent that the ranges lie in; `None` for those of a peer.
    coverage: Option<Arc<Coverage>>,
}

// SAFETY: the handle is an opaque pointer that NIXL ties to no thread and does not change after
// making it.
unsafe impl Send for NixlList {}
// SAFETY: as above.
unsafe impl Sync for NixlList {}

impl Drop for NixlList {
    fn drop(&mut self) {
        // SAFETY: made by `prepare`, released only here; the agent outlives it by the `Arc`.
        // Requests made from a list hold copies of its descriptors.
        let code = self
            .endpoint
            .call(|agent| unsafe { ffi::nixl_capi_release_xfer_dlist_handle(agent, self.raw) });
        if code != ffi::SUCCESS {
            log::warn!("NIXL failed to release a prepared list (code {code})");
        }
    }
}

impl PreparedList for NixlList {
    fn len(&self) -> usize {
        self.len
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A transfer: a request and the endpoint that it needs.
pub struct NixlTransfer {
    endpoint: Arc<Endpoint>,
    request: Arc<Request>,
}

impl Drop for NixlTransfer {
    fn drop(&mut self) {
        self.request.abandon(&self.endpoint);
    }
}

impl Transfer for NixlTransfer {
    fn post(&self, notification: Option<&[u8]>) -> Result<TransferState> {
        self.request.post(&self.endpoint, notification)
    }
    fn state(&self) -> Result<TransferState> {
        self.request.state(&self.endpoint)
    }
    fn cancel(&self) -> Result<()> {
        self.request.cancel()
    }
    fn telemetry(&self) -> Result<Telemetry> {
        self.request.telemetry(&self.endpoint)
    }
    fn cost(&self) -> Result<Cost> {
        self.request.cost(&self.endpoint)
    }
    fn backend(&self) -> Result<String> {
        self.request.backend(&self.endpoint)
    }
}

/// The single ranges that rows stand for.
pub fn expand(rows: &[StridedDesc]) -> Result<Vec<MemDesc>> {
    let total = rows
        .iter()
        .try_fold(0u64, |sum, row| sum.checked_add(row.count));
    let total = match total {
        Some(total) if total <= i32::MAX as u64 => total as usize,
        _ => bail!(
            Status::InvalidArgument,
            "the rows hold more than {} ranges",
            i32::MAX
        ),
    };
    let mut out = Vec::with_capacity(total);
    for (i, row) in rows.iter().enumerate() {
        // If the last range does not wrap around, none does.
        let last = row
            .stride
            .checked_mul(row.count.saturating_sub(1))
            .and_then(|way| way.checked_add(row.addr))
            .and_then(|addr| addr.checked_add(row.len));
        if last.is_none() {
            bail!(
                Status::InvalidArgument,
                "row {i} at {:#x} of {} ranges {} bytes apart wraps around",
                row.addr,
                row.count,
                row.stride
            );
        }
        out.extend((0..row.count).map(|n| MemDesc {
            addr: row.addr + n * row.stride,
            len: row.len,
            device: row.device,
        }));
    }
    Ok(out)
}

impl Endpoint {
    /// Prepares ranges to be picked from.
    pub fn prepare(
        self: &Arc<Self>,
        side: Side<'_>,
        kind: MemKind,
        descs: Descs<'_>,
        backends: &[&str],
    ) -> Result<NixlList> {
        self.check_open()?;
        let expanded;
        let descs = match descs {
            Descs::Flat(descs) => descs,
            Descs::Strided(rows) => {
                expanded = expand(rows)?;
                &expanded
            }
        };
        check_ranges(descs)?;
        let (remote, own) = match side {
            Side::Local => (None, true),
            Side::Remote("") => bail!(Status::InvalidArgument, "the remote agent's name is empty"),
            Side::Remote(name) => (
                Some(Arc::new(c_string("agent name", name)?)),
                name == self.name,
            ),
        };
        let list = XferDlist::from_descs(kind, descs.iter().copied())?;
        let args = self.backends.options(backends)?;
        let _pinned = self.pin();
        let coverage = match own {
            true => Some(self.registry.cover(kind, descs.iter().copied())?),
            false => None,
        };
        let agent_name = remote.as_ref().map_or(c"", |name| name.as_c_str());
        let mut raw = ptr::null_mut();
        // SAFETY: all objects are alive for the call, which copies the ranges; `pin` keeps the
        // registrations that it points to in place.
        let code = self.call(|agent| unsafe {
            ffi::nixl_capi_prep_xfer_dlist(
                agent,
                agent_name.as_ptr(),
                list.raw(),
                &mut raw,
                opt(&args),
            )
        });
        if code != ffi::SUCCESS || raw.is_null() {
            return Err(match (&remote, own) {
                (Some(name), false) => self.explain_remote(name, kind, descs, code),
                _ => self.explain_own(kind, code),
            });
        }
        Ok(NixlList {
            endpoint: self.clone(),
            raw,
            len: descs.len(),
            lengths: Lengths::of(descs),
            first: (kind, descs[0]),
            remote,
            coverage,
        })
    }

    /// Makes a transfer of picked ranges.
    pub fn make_transfer(
        self: &Arc<Self>,
        op: Op,
        (local, local_indices): (&dyn PreparedList, &[i32]),
        (remote, remote_indices): (&dyn PreparedList, &[i32]),
        options: TransferOptions<'_>,
    ) -> Result<NixlTransfer> {
        self.check_open()?;
        self.reap();
        let (local, remote) = (
            self.own_list(local, "local")?,
            self.own_list(remote, "remote")?,
        );
        let Some(peer) = &remote.remote else {
            bail!(
                Status::InvalidArgument,
                "the remote list was prepared as a local side"
            );
        };
        if local.remote.is_some() {
            bail!(
                Status::InvalidArgument,
                "the local list was prepared as a remote side"
            );
        }
        if local_indices.len() != remote_indices.len() {
            bail!(
                Status::Mismatch,
                "{} local indices against {} remote ones",
                local_indices.len(),
                remote_indices.len()
            );
        }
        check_indices("local", local_indices, local.len)?;
        check_indices("remote", remote_indices, remote.len)?;
        let args = self.transfer_options(options)?;
        let _pinned = self.pin();
        for coverage in [&local.coverage, &remote.coverage].into_iter().flatten() {
            self.registry.validate(coverage)?;
        }
        let mut raw = ptr::null_mut();
        // SAFETY: both lists belong to this agent and are alive, the indices are valid for their
        // count and within the lists, and the call copies what it needs.
        let code = self.call(|agent| unsafe {
            ffi::nixl_capi_make_xfer_req(
                agent,
                op as i32,
                local.raw,
                local_indices.as_ptr(),
                local_indices.len(),
                remote.raw,
                remote_indices.as_ptr(),
                remote_indices.len(),
                &mut raw,
                opt(&args),
            )
        });
        if code != ffi::SUCCESS || raw.is_null() {
            let pairs = local_indices.iter().zip(remote_indices).map(|(l, r)| {
                (
                    local.lengths.get(*l as usize),
                    remote.lengths.get(*r as usize),
                )
            });
            return Err(self.explain_make(peer, pairs, code));
        }
        let coverage = [local.coverage.clone(), remote.coverage.clone()];
        Ok(self.wrap(raw, peer.clone(), [local.first, remote.first], coverage))
    }

    /// Makes a transfer of two arrays of equal shape.
    pub fn create_transfer(
        self: &Arc<Self>,
        op: Op,
        (local_kind, local): (MemKind, &[MemDesc]),
        (remote_kind, remote): (MemKind, &[MemDesc]),
        remote_agent: &str,
        options: TransferOptions<'_>,
    ) -> Result<NixlTransfer> {
        self.check_open()?;
        self.reap();
        if local.len() != remote.len() {
            bail!(
                Status::Mismatch,
                "{} local ranges against {} remote ones",
                local.len(),
                remote.len()
            );
        }
        check_ranges(local)?;
        check_ranges(remote)?;
        let lengths = local.iter().zip(remote).map(|(l, r)| (l.len, r.len));
        if let Some(e) = unequal_pair(lengths) {
            return Err(e);
        }
        let peer = Arc::new(c_string("agent name", remote_agent)?);
        let (l, r) = (
            XferDlist::from_descs(local_kind, local.iter().copied())?,
            XferDlist::from_descs(remote_kind, remote.iter().copied())?,
        );
        let args = self.transfer_options(options)?;
        let own = remote_agent == self.name;
        let _pinned = self.pin();
        let coverage = [
            Some(self.registry.cover(local_kind, local.iter().copied())?),
            match own {
                true => Some(self.registry.cover(remote_kind, remote.iter().copied())?),
                false => None,
            },
        ];
        let mut raw = ptr::null_mut();
        // SAFETY: all objects are alive for the call, which copies the ranges; `pin` keeps the
        // registrations that it points to in place.
        let code = self.call(|agent| unsafe {
            ffi::nixl_capi_create_xfer_req(
                agent,
                op as i32,
                l.raw(),
                r.raw(),
                peer.as_ptr(),
                &mut raw,
                opt(&args),
            )
        });
        if code != ffi::SUCCESS || raw.is_null() {
            return Err(match own {
                true => self.explain_own(local_kind, code),
                false => self.explain_remote(&peer, remote_kind, remote, code),
            });
        }
        let sample = [(local_kind, local[0]), (remote_kind, remote[0])];
        Ok(self.wrap(raw, peer, sample, coverage))
    }

    fn wrap(
        self: &Arc<Self>,
        raw: ffi::XferReq,
        peer: Arc<CString>,
        sample: [(MemKind, MemDesc); 2],
        coverage: [Option<Arc<Coverage>>; 2],
    ) -> NixlTransfer {
        let request = Arc::new(Request::new(raw, peer, sample, coverage));
        NixlTransfer {
            endpoint: self.clone(),
            request,
        }
    }

    /// Options of a transfer; none when there is nothing to say, which is the common case.
    fn transfer_options(&self, options: TransferOptions<'_>) -> Result<Option<OptArgs>> {
        if options.notification.is_none() && options.backends.is_empty() && !options.skip_merge {
            return Ok(None);
        }
        let args = OptArgs::new()?;
        if let Some(payload) = options.notification {
            args.set_notification(payload)?;
        }
        self.backends.add_to(&args, options.backends)?;
        if options.skip_merge {
            args.set_skip_merge();
        }
        Ok(Some(args))
    }

    /// The list, if it is one of this endpoint.
    fn own_list<'a>(&self, list: &'a dyn PreparedList, side: &str) -> Result<&'a NixlList> {
        match list.as_any().downcast_ref::<NixlList>() {
            Some(list) if ptr::eq(Arc::as_ptr(&list.endpoint), self) => Ok(list),
            _ => bail!(
                Status::InvalidArgument,
                "the {side} list was prepared by another agent than {:?}",
                self.name
            ),
        }
    }

    /// Why making a transfer from lists failed.
    fn explain_make(
        &self,
        peer: &CString,
        pairs: impl Iterator<Item = (u64, u64)>,
        code: ffi::Code,
    ) -> Error {
        let name = peer.to_string_lossy();
        if code == ffi::NOT_FOUND || !self.knows(peer) {
            return Error::new(
                Status::PeerLost,
                format!(
                    "{name:?} was disconnected after its list was prepared; load its metadata and \
                     prepare the list again"
                ),
            );
        }
        if let Some(e) = unequal_pair(pairs) {
            return e;
        }
        if code == ffi::INVALID_PARAM {
            return Error::new(
                Status::NoBackend,
                format!(
                    "the two lists have no backend in common that may carry the transfer with {name:?}"
                ),
            );
        }
        Error::new(
            Status::Backend,
            format!("no backend took the transfer with {name:?} (code {code})"),
        )
    }

    /// Why NIXL refused ranges of a peer.
    fn explain_remote(
        &self,
        peer: &CString,
        kind: MemKind,
        descs: &[MemDesc],
        code: ffi::Code,
    ) -> Error {
        let name = peer.to_string_lossy();
        if !self.knows(peer) {
            return Error::new(
                Status::NotFound,
                format!("no metadata of {name:?} is loaded; load it before making transfers"),
            );
        }
        if let Some(i) = self.first_uncovered(peer, kind, descs) {
            return Error::new(
                Status::NotRegistered,
                format!(
                    "{} (number {i}) lies in no memory that {name:?} has registered, as far as its \
                     metadata says",
                    describe(kind, &descs[i])
                ),
            );
        }
        Error::new(
            Status::NoBackend,
            format!(
                "no backend that may be used serves {} memory of both {:?} and {name:?} (code {code})",
                kind.name(),
                self.name
            ),
        )
    }

    /// Why NIXL refused ranges that this agent has registered.
    fn explain_own(&self, kind: MemKind, code: ffi::Code) -> Error {
        Error::new(
            Status::NoBackend,
            format!(
                "none of the backends that may be used has the {} ranges registered, or it cannot \
                 move bytes within {:?} (code {code})",
                kind.name(),
                self.name
            ),
        )
    }

    /// The first range that a peer's metadata does not cover: its prefixes are covered up to it.
    fn first_uncovered(&self, peer: &CString, kind: MemKind, descs: &[MemDesc]) -> Option<usize> {
        let covered = |n: usize| self.peer_covers(peer, kind, &descs[..n]).unwrap_or(true);
        if covered(descs.len()) {
            return None;
        }
        let (mut good, mut bad) = (0, descs.len());
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            if covered(middle) {
                good = middle
            } else {
                bad = middle
            }
        }
        Some(bad - 1)
    }
}

/// Refuses what NIXL would compute nonsense from: no ranges, and ranges that wrap around.
fn check_ranges(descs: &[MemDesc]) -> Result<()> {
    if descs.is_empty() {
        bail!(Status::InvalidArgument, "there are no ranges");
    }
    descs.iter().try_for_each(|d| d.end().map(|_| ()))
}

fn check_indices(side: &str, indices: &[i32], len: usize) -> Result<()> {
    if indices.is_empty() {
        bail!(Status::InvalidArgument, "there are no {side} indices");
    }
    // As unsigned numbers, negative indices are larger than any list.
    let largest = indices.iter().fold(0, |max, i| max.max(*i as u32));
    if largest as usize >= len {
        let at = indices
            .iter()
            .position(|i| *i as u32 == largest)
            .unwrap_or(0);
        bail!(
            Status::InvalidArgument,
            "{side} index {} (number {at}) is outside the list of {len} ranges",
            indices[at]
        );
    }
    Ok(())
}

/// The error about the first pair of unequal lengths.
fn unequal_pair(pairs: impl Iterator<Item = (u64, u64)>) -> Option<Error> {
    let (i, (local, remote)) = pairs.enumerate().find(|(_, (l, r))| l != r)?;
    Some(Error::new(
        Status::Mismatch,
        format!("pair {i}: {local} local bytes against {remote} remote ones"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_expand_in_order() {
        let rows = [
            StridedDesc {
                addr: 1000,
                len: 8,
                device: 3,
                stride: 100,
                count: 3,
            },
            StridedDesc {
                addr: 5000,
                len: 16,
                device: 4,
                stride: 0,
                count: 1,
            },
            StridedDesc {
                addr: 1,
                len: 1,
                device: 0,
                stride: 1,
                count: 0,
            },
        ];
        let d = |addr, len, device| MemDesc { addr, len, device };
        let expected = [d(1000, 8, 3), d(1100, 8, 3), d(1200, 8, 3), d(5000, 16, 4)];
        assert_eq!(expand(&rows).expect("fine"), expected);
    }

    #[test]
    fn rows_that_wrap_or_are_too_many_are_refused() {
        let row = StridedDesc {
            addr: 0,
            len: 8,
            device: 0,
            stride: 8,
            count: 2,
        };
        for bad in [
            StridedDesc {
                count: u64::MAX,
                ..row
            },
            StridedDesc {
                count: 1 << 31,
                ..row
            },
            StridedDesc {
                addr: u64::MAX - 8,
                ..row
            },
            StridedDesc {
                stride: u64::MAX,
                ..row
            },
            StridedDesc {
                len: u64::MAX,
                stride: 1,
                ..row
            },
        ] {
            let e = expand(&[bad]).expect_err("refused");
            assert_eq!(e.status(), Status::InvalidArgument, "{bad:?}");
        }
        assert!(
            expand(&[
                row,
                StridedDesc {
                    count: u64::MAX,
                    ..row
                }
            ])
            .is_err()
        );
    }

    #[test]
    fn indices_must_lie_in_the_list() {
        assert!(check_indices("local", &[0, 4, 2], 5).is_ok());
        for (indices, named) in [
            (&[0, 5][..], "5"),
            (&[-1], "-1"),
            (&[i32::MIN, 9], "-2147483648"),
        ] {
            let e = check_indices("local", indices, 5).expect_err("outside");
            assert!(
                e.message().contains(named) && e.message().contains("5 ranges"),
                "{e}"
            );
        }
        assert!(check_indices("local", &[], 5).is_err());
    }
}
