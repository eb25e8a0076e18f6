//! Direct transfers: prepared lists, make, post, state, release.

use std::ffi::c_char;
use std::sync::Arc;

use once_cell::sync::Lazy;

use super::agent::{AGENTS, kvf_agent};
use super::guard::guard;
use super::handle::Table;
use super::input::{
    MAX_RANGES, Plain, bounded, flag, opt_out, opt_text, options, out, text, texts,
};
use super::memory::{kvf_mem_desc, kvf_strided_desc, mem_descs, strided_descs};
use super::output::{self, kvf_buffer};
use super::status::{KVF_OK, kvf_status};
use crate::agent::{List, MAX_NOTIFICATION, Transfer};
use crate::error::{Error, Result};
use crate::memory::MemKind;
use crate::transport::{Descs, Op, Side, TransferOptions};

/// Remote to local.
pub const KVF_OP_READ: u32 = 0;
/// Local to remote.
pub const KVF_OP_WRITE: u32 = 1;

/// All bytes are where they belong.
pub const KVF_TRANSFER_DONE: i32 = 0;
/// Posted and under way.
pub const KVF_TRANSFER_IN_PROGRESS: i32 = 1;

/// Ranges prepared for picking by index. All zero is the null handle.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct kvf_desc_list {
    /// Opaque. Zero is null.
    pub id: u64,
}

/// A transfer. All zero is the null handle.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct kvf_transfer {
    /// Opaque. Zero is null.
    pub id: u64,
}

/// Choices for making a transfer. Start from `kvf_transfer_options_default()`; zero is the
/// default of every field.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_transfer_options {
    /// `sizeof(kvf_transfer_options)`.
    pub struct_size: u32,
    /// `nixl`: 1 leaves adjacent ranges as they are instead of merging them.
    pub skip_merge: u8,
    /// 1 sends a notification even if `notification_len` is 0.
    pub has_notification: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// Sent to the remote agent when all bytes have arrived. Any bytes, at most 16 MiB.
    pub notification: *const u8,
    /// Its length; 0 sends none, unless `has_notification` is 1.
    pub notification_len: usize,
    /// Names of the backends that may carry the transfer; 0 of them is any.
    pub backends: *const *const c_char,
    /// Their number.
    pub backends_len: usize,
}

// SAFETY: integers and raw pointers only.
unsafe impl Plain for kvf_transfer_options {
    const FIRST_SIZE: usize = 40;
}

/// Figures of one transfer; see `kvf_transfer_telemetry_get()`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct kvf_transfer_telemetry {
    /// When it was posted, in microseconds of the monotonic clock.
    pub start_time_us: u64,
    /// Time spent inside post, in microseconds.
    pub post_duration_us: u64,
    /// From post to completion, in microseconds.
    pub transfer_duration_us: u64,
    /// Bytes moved.
    pub total_bytes: u64,
    /// Descriptors, after merging.
    pub descriptors: u64,
}

/// An estimate of how long a transfer takes; see `kvf_transfer_cost_estimate()`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct kvf_transfer_cost {
    /// Expected duration in microseconds.
    pub duration_us: i64,
    /// How far off that may be, in microseconds.
    pub error_margin_us: i64,
    /// How it was arrived at; 0 is the backend's analytical model.
    pub method: u32,
    /// Zero.
    pub reserved: u32,
}

/// An object and the agent that it ends with.
struct Owned<T> {
    object: T,
    agent: u64,
}

static LISTS: Lazy<Table<Owned<List>>> = Lazy::new(|| Table::new(2, "descriptor list"));
static TRANSFERS: Lazy<Table<Owned<Transfer>>> = Lazy::new(|| Table::new(3, "transfer"));

/// What belongs to an agent goes with it.
pub(super) fn release_all_of(agent: u64) {
    drop(TRANSFERS.remove_where(|t| t.agent == agent));
    drop(LISTS.remove_where(|l| l.agent == agent));
}

/// Prepares ranges so that transfers can pick from them by index. Do it once for memory that many
/// transfers use: all checks and look-ups happen here. Any thread.
///
/// @param remote    Whose memory: NULL for this agent's own as the local side of transfers; the
///                  name of a remote agent; or this agent's own name for the remote side of
///                  transfers within the agent (loopback).
/// @param descs     The ranges, inside registered memory; at least one. Borrowed.
/// @param backends  Backends to prepare for; 0 of them is all that can.
/// @param list      Receives the handle; end it with `kvf_desc_list_release()`.
/// @return `KVF_ERR_NOT_FOUND` for an unknown agent; `KVF_ERR_NOT_FOUND` (`nixl`) or
///         `KVF_ERR_NOT_REGISTERED` (`local`) for a range outside registered memory.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_desc_list_prepare(
    agent: kvf_agent,
    remote: *const c_char,
    mem_kind: u32,
    descs: *const kvf_mem_desc,
    descs_len: usize,
    backends: *const *const c_char,
    backends_len: usize,
    list: *mut kvf_desc_list,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract, here and in every block below of this file.
        let (descs, list) = unsafe { (mem_descs(descs, descs_len, "descs")?, out(list, "list")?) };
        // SAFETY: as above.
        let (side, backends) =
            unsafe { (side(remote)?, texts(backends, backends_len, "backends")?) };
        list.write(prepare(
            agent,
            side,
            mem_kind,
            Descs::Flat(descs),
            &backends,
        )?);
        Ok(())
    })
}

/// As `kvf_desc_list_prepare()`, from rows of equal ranges. They are numbered row by row. Any
/// thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_desc_list_prepare_strided(
    agent: kvf_agent,
    remote: *const c_char,
    mem_kind: u32,
    descs: *const kvf_strided_desc,
    descs_len: usize,
    backends: *const *const c_char,
    backends_len: usize,
    list: *mut kvf_desc_list,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (descs, list) = unsafe { (strided_descs(descs, descs_len)?, out(list, "list")?) };
        // SAFETY: the caller's contract.
        let (side, backends) =
            unsafe { (side(remote)?, texts(backends, backends_len, "backends")?) };
        list.write(prepare(
            agent,
            side,
            mem_kind,
            Descs::Strided(descs),
            &backends,
        )?);
        Ok(())
    })
}

/// Number of ranges in a list. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_desc_list_len(list: kvf_desc_list, len: *mut usize) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let len = unsafe { out(len, "len") }?;
        len.write(LISTS.get(list.id)?.object.len());
        Ok(())
    })
}

/// Ends a list. Transfers made from it go on. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn kvf_desc_list_release(list: kvf_desc_list) -> kvf_status {
    guard(|| LISTS.remove(list.id).map(drop))
}

/// Makes a transfer between ranges picked from two lists: `local[local_indices[i]]` and
/// `remote[remote_indices[i]]` for every i. Nothing moves before it is posted. Any thread.
///
/// @param op       `KVF_OP_READ` (remote to local) or `KVF_OP_WRITE` (local to remote).
/// @param local    A list prepared with `remote` NULL.
/// @param remote   A list prepared for the other agent.
/// @param options  May be NULL.
/// @param transfer Receives the handle; end it with `kvf_transfer_release()`.
/// @return `KVF_ERR_INVALID_ARGUMENT` for an index outside its list or no index at all,
///         `KVF_ERR_MISMATCH` for unequal counts or lengths.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_transfer_make(
    agent: kvf_agent,
    op: u32,
    local: kvf_desc_list,
    local_indices: *const i32,
    local_indices_len: usize,
    remote: kvf_desc_list,
    remote_indices: *const i32,
    remote_indices_len: usize,
    options: *const kvf_transfer_options,
    transfer: *mut kvf_transfer,
) -> kvf_status {
    guard(|| {
        let op = direction(op)?;
        // SAFETY: the caller's contract.
        let (local_indices, remote_indices, options, transfer) = unsafe {
            (
                bounded(
                    local_indices,
                    local_indices_len,
                    MAX_RANGES,
                    "local_indices",
                )?,
                bounded(
                    remote_indices,
                    remote_indices_len,
                    MAX_RANGES,
                    "remote_indices",
                )?,
                transfer_options(options)?,
                out(transfer, "transfer")?,
            )
        };
        let owner = AGENTS.get(agent.id)?;
        let (local, remote) = (LISTS.get(local.id)?, LISTS.get(remote.id)?);
        let made = owner.make_transfer(
            op,
            (&local.object, local_indices),
            (&remote.object, remote_indices),
            options.borrow(),
        )?;
        transfer.write(insert(agent, made)?);
        Ok(())
    })
}

/// Makes a transfer between two arrays of ranges, the i-th of one with the i-th of the other, in
/// one go. For memory that many transfers use, prepared lists are faster. Otherwise as
/// `kvf_transfer_make()`. Any thread.
///
/// @param remote_agent  Name of the remote agent, or this agent's own for a loopback.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_transfer_create(
    agent: kvf_agent,
    op: u32,
    local_kind: u32,
    local: *const kvf_mem_desc,
    local_len: usize,
    remote_kind: u32,
    remote: *const kvf_mem_desc,
    remote_len: usize,
    remote_agent: *const c_char,
    options: *const kvf_transfer_options,
    transfer: *mut kvf_transfer,
) -> kvf_status {
    guard(|| {
        let op = direction(op)?;
        let local_kind = MemKind::from_code(local_kind)?;
        let remote_kind = MemKind::from_code(remote_kind)?;
        // SAFETY: the caller's contract.
        let (local, remote, remote_agent, options, transfer) = unsafe {
            (
                mem_descs(local, local_len, "local")?,
                mem_descs(remote, remote_len, "remote")?,
                text(remote_agent, "remote_agent")?,
                transfer_options(options)?,
                out(transfer, "transfer")?,
            )
        };
        let made = AGENTS.get(agent.id)?.create_transfer(
            op,
            (local_kind, local),
            (remote_kind, remote),
            remote_agent,
            options.borrow(),
        )?;
        transfer.write(insert(agent, made)?);
        Ok(())
    })
}

/// Starts a transfer, or starts it again after it has finished.
///
/// Small transfers may be done when it returns; on one host the whole copy can run inside the
/// call. Any thread.
///
/// @param notification      Replaces the notification given when the transfer was made, from this
///                          post on; NULL with length 0 leaves that one in place. Borrowed.
/// @param state             Receives `KVF_TRANSFER_DONE` or `KVF_TRANSFER_IN_PROGRESS`. May be
///                          NULL.
/// @return `KVF_ERR_REPOST_ACTIVE` while it is under way, `KVF_ERR_PEER_LOST` if the peer is
///         gone, `KVF_ERR_BACKEND` otherwise.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_transfer_post(
    transfer: kvf_transfer,
    notification: *const u8,
    notification_len: usize,
    state: *mut i32,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (notification, state) = unsafe {
            (
                bounded(
                    notification,
                    notification_len,
                    MAX_NOTIFICATION,
                    "notification",
                )?,
                opt_out(state, "state")?,
            )
        };
        let given = (!notification.is_empty()).then_some(notification);
        let now = TRANSFERS.get(transfer.id)?.object.post(given)?;
        if let Some(state) = state {
            state.write(now as i32);
        }
        Ok(())
    })
}

/// Where a transfer stands. Never blocks, not even on a post that another thread is in. Any
/// thread.
///
/// @param state  Receives `KVF_TRANSFER_DONE` or `KVF_TRANSFER_IN_PROGRESS`.
/// @return `KVF_ERR_NOT_POSTED` before the first post. Any other error is how the transfer ended;
///         no byte of it moves any more. `KVF_ERR_CANCELED` after a cancel.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_transfer_state(transfer: kvf_transfer, state: *mut i32) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let state = unsafe { out(state, "state") }?;
        state.write(TRANSFERS.get(transfer.id)?.object.state()? as i32);
        Ok(())
    })
}

/// Asks for many transfers in one call. It succeeds whatever became of them;
/// `kvf_last_error_message()` is then about the last one with a negative status. Any thread.
///
/// @param transfers  `len` handles.
/// @param states     Receives `len` values: `KVF_TRANSFER_…`, or the negative status that
///                   `kvf_transfer_state()` would return for that one.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_transfer_states(
    transfers: *const kvf_transfer,
    len: usize,
    states: *mut i32,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let transfers = unsafe { bounded(transfers, len, MAX_RANGES, "transfers") }?;
        if len > 0 {
            // SAFETY: the caller's contract; checks for NULL and alignment.
            unsafe { out(states, "states") }?;
        }
        for (i, t) in transfers.iter().enumerate() {
            let mut value = KVF_OK;
            let status = guard(|| {
                value = TRANSFERS.get(t.id)?.object.state()? as i32;
                Ok(())
            });
            // SAFETY: `states` has `len` elements by the caller's contract.
            unsafe {
                states
                    .add(i)
                    .write(if status == KVF_OK { value } else { status })
            };
        }
        Ok(())
    })
}

/// Asks a transfer to stop. It has come to rest, and its memory may be used for something else,
/// when `kvf_transfer_state()` no longer answers `KVF_TRANSFER_IN_PROGRESS`: then it is either
/// done or `KVF_ERR_CANCELED`. Where a backend cannot stop early, that takes until the bytes are
/// through. Harmless on a transfer that is not under way. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn kvf_transfer_cancel(transfer: kvf_transfer) -> kvf_status {
    guard(|| TRANSFERS.get(transfer.id)?.object.cancel())
}

/// Ends a transfer. One that is under way is asked to stop instead. Any thread.
///
/// @return `KVF_ERR_BUSY` while bytes may still move: the handle stays valid, call again later.
#[unsafe(no_mangle)]
pub extern "C" fn kvf_transfer_release(transfer: kvf_transfer) -> kvf_status {
    guard(|| {
        TRANSFERS.get(transfer.id)?.object.settle()?;
        TRANSFERS.remove(transfer.id).map(drop)
    })
}

/// Figures of a transfer's last post. The agent must have been created with `telemetry` 1. Any
/// thread.
///
/// @return `KVF_ERR_NO_TELEMETRY` if it was not.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_transfer_telemetry_get(
    transfer: kvf_transfer,
    telemetry: *mut kvf_transfer_telemetry,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let telemetry = unsafe { out(telemetry, "telemetry") }?;
        let t = TRANSFERS.get(transfer.id)?.object.telemetry()?;
        telemetry.write(kvf_transfer_telemetry {
            start_time_us: t.start_time_us,
            post_duration_us: t.post_duration_us,
            transfer_duration_us: t.transfer_duration_us,
            total_bytes: t.total_bytes,
            descriptors: t.descriptors,
        });
        Ok(())
    })
}

/// An estimate of how long a transfer will take, before it is posted. Any thread.
///
/// @return `KVF_ERR_NOT_SUPPORTED` if the backend has no model.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_transfer_cost_estimate(
    transfer: kvf_transfer,
    cost: *mut kvf_transfer_cost,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let cost = unsafe { out(cost, "cost") }?;
        let c = TRANSFERS.get(transfer.id)?.object.cost()?;
        cost.write(kvf_transfer_cost {
            duration_us: c.duration_us,
            error_margin_us: c.error_margin_us,
            method: c.method,
            reserved: 0,
        });
        Ok(())
    })
}

/// Name of the backend that carries a transfer. Any thread.
///
/// @param backend  Receives text; free with `kvf_buffer_free()`.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_transfer_backend(
    transfer: kvf_transfer,
    backend: *mut kvf_buffer,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let backend = unsafe { out(backend, "backend") }?;
        backend.write(output::buffer(
            TRANSFERS.get(transfer.id)?.object.backend()?,
        ));
        Ok(())
    })
}

fn insert(agent: kvf_agent, object: Transfer) -> Result<kvf_transfer> {
    Ok(kvf_transfer {
        id: keep(&TRANSFERS, agent, object)?,
    })
}

fn prepare(
    agent: kvf_agent,
    side: Side<'_>,
    mem_kind: u32,
    descs: Descs<'_>,
    backends: &[&str],
) -> Result<kvf_desc_list> {
    let kind = MemKind::from_code(mem_kind)?;
    let object = AGENTS.get(agent.id)?.prepare(side, kind, descs, backends)?;
    Ok(kvf_desc_list {
        id: keep(&LISTS, agent, object)?,
    })
}

/// Puts an object of an agent into its table, unless the agent is destroyed meanwhile.
fn keep<T>(table: &Table<Owned<T>>, agent: kvf_agent, object: T) -> Result<u64> {
    let id = table.insert(Arc::new(Owned {
        object,
        agent: agent.id,
    }))?;
    // kvf_agent_destroy() takes the agent out of its table first, and what belongs to it second:
    // either it finds this object, or we find the agent gone.
    if let Err(gone) = AGENTS.get(agent.id) {
        drop(table.remove(id));
        return Err(gone);
    }
    Ok(id)
}

/// # Safety
/// As for [`text`].
unsafe fn side<'a>(remote: *const c_char) -> Result<Side<'a>> {
    // SAFETY: by contract.
    Ok(match unsafe { opt_text(remote, "remote") }? {
        Some(name) => Side::Remote(name),
        None => Side::Local,
    })
}

fn direction(code: u32) -> Result<Op> {
    match code {
        KVF_OP_READ => Ok(Op::Read),
        KVF_OP_WRITE => Ok(Op::Write),
        _ => Err(Error::invalid(format!(
            "op {code} is neither KVF_OP_READ nor KVF_OP_WRITE"
        ))),
    }
}

/// Options with the list of backends that they borrow from.
struct CheckedOptions<'a> {
    notification: Option<&'a [u8]>,
    skip_merge: bool,
    backends: Vec<&'a str>,
}

impl CheckedOptions<'_> {
    fn borrow(&self) -> TransferOptions<'_> {
        TransferOptions {
            notification: self.notification,
            backends: &self.backends,
            skip_merge: self.skip_merge,
        }
    }
}

/// # Safety
/// `ptr` is null, or it and what it points to are valid.
unsafe fn transfer_options<'a>(ptr: *const kvf_transfer_options) -> Result<CheckedOptions<'a>> {
    // SAFETY: by contract.
    let o = unsafe { options(ptr, "options") }?;
    if o.reserved != [0; 2] {
        return Err(Error::invalid("options.reserved is not zero"));
    }
    // SAFETY: by contract.
    let (notification, backends) = unsafe {
        (
            bounded(
                o.notification,
                o.notification_len,
                MAX_NOTIFICATION,
                "options.notification",
            )?,
            texts(o.backends, o.backends_len, "options.backends")?,
        )
    };
    let forced = flag(o.has_notification, "options.has_notification")?;
    Ok(CheckedOptions {
        notification: (forced || !notification.is_empty()).then_some(notification),
        skip_merge: flag(o.skip_merge, "options.skip_merge")?,
        backends,
    })
}
