//! Statuses and the message of the last error. The numbers are those of [`crate::error::Status`]; a
//! test holds the two together.

use std::ffi::{CString, c_char};

use once_cell::sync::Lazy;

use super::guard::{c_string, guard_or, last_message};
use crate::error::Status;

/// Outcome of a call: `KVF_OK`, or one of the negative `KVF_ERR_…` values.
///
/// The values are never reused for another meaning. A program must accept values it does not know
/// (a newer library) as errors. `kvf_status_name()` gives a name, `kvf_last_error_message()` the
/// details.
pub type kvf_status = i32;

/// Success.
pub const KVF_OK: kvf_status = 0;
/// An argument is not acceptable; the message names it and its value. Nothing was done.
pub const KVF_ERR_INVALID_ARGUMENT: kvf_status = -1;
/// A handle is null, stale, destroyed, or of another kind. Nothing was done.
pub const KVF_ERR_INVALID_HANDLE: kvf_status = -2;
/// The object is not in a state in which the call makes sense.
pub const KVF_ERR_INVALID_STATE: kvf_status = -3;
/// A named thing (remote agent, backend, plugin) is not known.
pub const KVF_ERR_NOT_FOUND: kvf_status = -4;
/// The transport or one of its backends failed; the message has what it said.
pub const KVF_ERR_BACKEND: kvf_status = -5;
/// No transport library was found, or no backend can serve the request; the message says where
/// was looked and what to install.
pub const KVF_ERR_NO_BACKEND: kvf_status = -6;
/// The time allowed is over. The call may be repeated.
pub const KVF_ERR_TIMEOUT: kvf_status = -7;
/// The peer is gone. Load its metadata again before using it.
pub const KVF_ERR_PEER_LOST: kvf_status = -8;
/// The peer, or the bytes it sent, cannot be worked with: wrong format, version or content.
pub const KVF_ERR_PEER_INCOMPATIBLE: kvf_status = -9;
/// A memory range lies outside what its owner has registered.
pub const KVF_ERR_NOT_REGISTERED: kvf_status = -10;
/// The operating system refused; the message says what to change.
pub const KVF_ERR_PERMISSION_DENIED: kvf_status = -11;
/// The object is in use; repeat the call later.
pub const KVF_ERR_BUSY: kvf_status = -12;
/// This transport or backend does not offer the operation.
pub const KVF_ERR_NOT_SUPPORTED: kvf_status = -13;
/// The transfer was cancelled and has come to rest.
pub const KVF_ERR_CANCELED: kvf_status = -14;
/// Two things that must agree do not: counts, lengths, memory kinds.
pub const KVF_ERR_MISMATCH: kvf_status = -15;
/// The transfer has not been posted yet.
pub const KVF_ERR_NOT_POSTED: kvf_status = -16;
/// The transfer is still under way and cannot be posted again.
pub const KVF_ERR_REPOST_ACTIVE: kvf_status = -17;
/// Telemetry was not enabled when the agent was created, or there is none yet.
pub const KVF_ERR_NO_TELEMETRY: kvf_status = -18;
/// The operation is not allowed on this object.
pub const KVF_ERR_NOT_ALLOWED: kvf_status = -19;
/// An input or output error of the operating system.
pub const KVF_ERR_IO: kvf_status = -20;
/// Out of memory, descriptors, threads, or another limit.
pub const KVF_ERR_RESOURCE_EXHAUSTED: kvf_status = -21;
/// A fault inside kvferry, among them a panic that was caught. The process is not harmed; the
/// object concerned should be destroyed. Please report it.
pub const KVF_ERR_INTERNAL: kvf_status = -22;
/// A lease ended before the bytes were in: they may come from blocks that were used again, and
/// must not be taken for the request's.
pub const KVF_ERR_EXPIRED: kvf_status = -23;

/// A short name such as `"peer lost"`. Never NULL; valid for ever; `"unknown status"` for a
/// number that this library does not know. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn kvf_status_name(status: kvf_status) -> *const c_char {
    /// The names with a NUL behind each, made once.
    static NAMES: Lazy<Vec<CString>> =
        Lazy::new(|| Status::ALL.iter().map(|s| c_string(s.name())).collect());
    guard_or(c"unknown status".as_ptr(), || {
        let index = Status::ALL.iter().position(|s| *s as i32 == status);
        index.map_or(c"unknown status".as_ptr(), |i| NAMES[i].as_ptr())
    })
}

/// What went wrong in the calling thread's last call that failed: the status name, a colon, and
/// the details. Never NULL; empty when no call has failed yet. The text stays valid until the
/// next failing call of the same thread, or its end; successful calls leave it alone. Any thread,
/// each with its own message.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn kvf_last_error_message() -> *const c_char {
    last_message()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_status_enum() {
        let pairs = [
            (KVF_OK, Status::Ok),
            (KVF_ERR_INVALID_ARGUMENT, Status::InvalidArgument),
            (KVF_ERR_INVALID_HANDLE, Status::InvalidHandle),
            (KVF_ERR_INVALID_STATE, Status::InvalidState),
            (KVF_ERR_NOT_FOUND, Status::NotFound),
            (KVF_ERR_BACKEND, Status::Backend),
            (KVF_ERR_NO_BACKEND, Status::NoBackend),
            (KVF_ERR_TIMEOUT, Status::Timeout),
            (KVF_ERR_PEER_LOST, Status::PeerLost),
            (KVF_ERR_PEER_INCOMPATIBLE, Status::PeerIncompatible),
            (KVF_ERR_NOT_REGISTERED, Status::NotRegistered),
            (KVF_ERR_PERMISSION_DENIED, Status::PermissionDenied),
            (KVF_ERR_BUSY, Status::Busy),
            (KVF_ERR_NOT_SUPPORTED, Status::NotSupported),
            (KVF_ERR_CANCELED, Status::Canceled),
            (KVF_ERR_MISMATCH, Status::Mismatch),
            (KVF_ERR_NOT_POSTED, Status::NotPosted),
            (KVF_ERR_REPOST_ACTIVE, Status::RepostActive),
            (KVF_ERR_NO_TELEMETRY, Status::NoTelemetry),
            (KVF_ERR_NOT_ALLOWED, Status::NotAllowed),
            (KVF_ERR_IO, Status::Io),
            (KVF_ERR_RESOURCE_EXHAUSTED, Status::ResourceExhausted),
            (KVF_ERR_INTERNAL, Status::Internal),
            (KVF_ERR_EXPIRED, Status::Expired),
        ];
        assert_eq!(pairs.len(), Status::ALL.len());
        for (code, status) in pairs {
            assert_eq!(code, status as i32, "{status}");
        }
    }
}
