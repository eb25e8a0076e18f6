//! The library itself: version, errors.

use std::ffi::c_char;

use super::guard::{guard, guard_or, last_message};
use super::input::text;
use super::status::kvf_status;
use crate::error::Status;

/// Version of this library, for example `"0.1.0"`. Never NULL; valid for ever. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn kvf_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0")
        .as_ptr()
        .cast::<c_char>()
}

/// Version of the binary interface, the number in the SONAME (`libkvferry.so.0`). Within one ABI
/// version functions and fields are only added. Compare with `KVF_ABI_VERSION`. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn kvf_abi_version() -> u32 {
    KVF_ABI_VERSION
}

/// The ABI version that this header describes.
pub const KVF_ABI_VERSION: u32 = 0;

/// A short name such as `"peer lost"`. Never NULL; valid for ever; `"unknown status"` for a number
/// that this library does not know. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn kvf_status_name(status: kvf_status) -> *const c_char {
    /// The names with a NUL behind each, made once.
    static NAMES: once_cell::sync::Lazy<Vec<std::ffi::CString>> =
        once_cell::sync::Lazy::new(|| {
            Status::ALL
                .iter()
                .map(|s| super::guard::c_string(s.name()))
                .collect()
        });
    guard_or(c"unknown status".as_ptr(), || {
        let index = Status::ALL.iter().position(|s| *s as i32 == status);
        index.map_or(c"unknown status".as_ptr(), |i| NAMES[i].as_ptr())
    })
}

/// What went wrong in the calling thread's last call that failed: the status name, a colon, and
/// the details. Never NULL; empty when no call has failed yet. The text stays valid until the next
/// failing call of the same thread, or its end; successful calls leave it alone.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn kvf_last_error_message() -> *const c_char {
    last_message()
}

/// For tests only: panics inside the library with this text, to show that a panic comes back as
/// `KVF_ERR_INTERNAL` with its text in `kvf_last_error_message()`, and the process lives.
///
/// # Safety
/// `message` is NULL or a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_debug_panic(message: *const c_char) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let message = unsafe { text(message, "message") }?;
        std::panic::panic_any(message.to_string())
    })
}
