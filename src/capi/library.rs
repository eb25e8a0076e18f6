//! The library itself: its versions, and the way to see its panic guard at work.

use std::ffi::c_char;

use super::guard::guard;
use super::input::text;
use super::status::kvf_status;

/// The version of the binary interface that this header describes.
pub const KVF_ABI_VERSION: u32 = 0;

/// Version of this library, for example `"0.1.0"`. Never NULL; valid for ever. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn kvf_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0")
        .as_ptr()
        .cast::<c_char>()
}

/// Version of the binary interface of this library, the number in its SONAME (`libkvferry.so.0`).
/// Compare with `KVF_ABI_VERSION` where the library is opened at run time. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn kvf_abi_version() -> u32 {
    KVF_ABI_VERSION
}

/// For tests only: panics inside the library with this text, to show that a panic comes back as
/// `KVF_ERR_INTERNAL` with its text in `kvf_last_error_message()`, and the process lives. Any
/// thread.
///
/// # Safety
/// `message` is NULL or a NUL-terminated string.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_debug_panic(message: *const c_char) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let message = unsafe { text(message, "message") }?;
        std::panic::panic_any(message.to_string())
    })
}
