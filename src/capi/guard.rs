//! The guard around every entry point: no panic and no error leaves the library except as a status
//! with a message kept for the calling thread.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::status::{KVF_OK, kvf_status};
use crate::error::{Error, Result, Status};

thread_local! {
    /// The message of this thread's last failed call. `None` until there was one, so that threads
    /// that never fail allocate nothing.
    static LAST: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// Runs the body of an entry point and turns its outcome into a status.
pub(super) fn guard(body: impl FnOnce() -> Result<()>) -> kvf_status {
    // Unwind safety: what a body touches is behind handles whose locks are taken over after a
    // panic (`crate::sync`), and outputs are written last.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => KVF_OK,
        Ok(Err(e)) => fail(&e),
        Err(payload) => {
            let text = panic_text(&*payload);
            // A payload whose own destructor panics must not escape either, nor what that throws.
            if let Err(worse) = catch_unwind(AssertUnwindSafe(move || drop(payload))) {
                std::mem::forget(worse);
            }
            fail(&Error::new(Status::Internal, format!("panic: {text}")))
        }
    }
}

/// Runs a body that cannot fail but could, by a fault of ours, panic.
pub(super) fn guard_or<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    let mut out = fallback;
    guard(|| {
        out = body();
        Ok(())
    });
    out
}

fn fail(e: &Error) -> kvf_status {
    // The logger may be the host program's own (a Rust program's), and it may panic.
    let _ = catch_unwind(AssertUnwindSafe(|| log::debug!("{e}")));
    let text = c_string(format!("{}: {}", e.status(), e.message()));
    // At thread exit the slot may be gone already; the status alone then has to do.
    let _ = LAST.try_with(|last| *last.borrow_mut() = Some(text));
    e.status() as kvf_status
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    if let Some(s) = payload.downcast_ref::<&str>() {
        (*s).to_string()
    } else if let Some(s) = payload.downcast_ref::<String>() {
        s.clone()
    } else {
        "(no message)".to_string()
    }
}

/// Text as C sees it: it ends at the first NUL.
pub(super) fn c_string(text: impl Into<Vec<u8>>) -> CString {
    let mut bytes = text.into();
    if let Some(nul) = bytes.iter().position(|&b| b == 0) {
        bytes.truncate(nul);
    }
    CString::new(bytes).unwrap_or_default()
}

/// The calling thread's message, or an empty one.
pub(super) fn last_message() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ref().map(|m| m.as_ptr()))
        .ok()
        .flatten()
        .unwrap_or(c"".as_ptr())
}
