//! What the library gives away, and how it is freed.

use std::ffi::{CString, c_char};

use super::guard::{c_string, guard_or};
use crate::transport::{Notification, Params};

/// Bytes that the library has allocated. Free with `kvf_buffer_free()`.
///
/// `data` is NULL when `len` is 0. Where the content is text it is UTF-8, `len` does not count
/// the terminating NUL, and there is one.
#[repr(C)]
#[derive(Debug)]
pub struct kvf_buffer {
    /// The bytes, or NULL.
    pub data: *mut u8,
    /// Their number.
    pub len: usize,
}

/// Strings that the library has allocated. Free with `kvf_string_list_free()`.
#[repr(C)]
#[derive(Debug)]
pub struct kvf_string_list {
    /// `len` NUL-terminated UTF-8 strings, or NULL.
    pub items: *mut *mut c_char,
    /// Their number.
    pub len: usize,
}

/// A name and a value, both NUL-terminated UTF-8.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_param {
    /// The name.
    pub key: *const c_char,
    /// The value.
    pub value: *const c_char,
}

/// Names and values that the library has allocated. Free with `kvf_param_list_free()`.
#[repr(C)]
#[derive(Debug)]
pub struct kvf_param_list {
    /// `len` pairs, or NULL.
    pub items: *mut kvf_param,
    /// Their number.
    pub len: usize,
}

/// A message from a remote agent.
#[repr(C)]
#[derive(Debug)]
pub struct kvf_notification {
    /// Name of the agent that sent it, as that agent gives it; NUL-terminated UTF-8. Whoever
    /// holds this agent's metadata can send under any name.
    pub from: *const c_char,
    /// Its bytes; any bytes, not terminated. NULL when `payload_len` is 0.
    pub payload: *const u8,
    /// Number of bytes.
    pub payload_len: usize,
}

/// Messages, oldest first per sender. Free with `kvf_notification_list_free()`.
#[repr(C)]
#[derive(Debug)]
pub struct kvf_notification_list {
    /// `len` messages, or NULL.
    pub items: *mut kvf_notification,
    /// Their number.
    pub len: usize,
}

/// What a backend knows about one range.
#[repr(C)]
#[derive(Debug)]
pub struct kvf_query_result {
    /// 1 if the backend knows the range, 0 if not.
    pub found: u8,
    /// What it knows; empty if `found` is 0.
    pub params: kvf_param_list,
}

/// One result for each range asked about, in their order. Free with `kvf_query_list_free()`.
#[repr(C)]
#[derive(Debug)]
pub struct kvf_query_list {
    /// `len` results, or NULL.
    pub items: *mut kvf_query_result,
    /// Their number.
    pub len: usize,
}

/// The items behind a pointer that C gets; NULL for none.
pub(super) fn pointer<T>(items: &[T]) -> *const T {
    if items.is_empty() {
        std::ptr::null()
    } else {
        items.as_ptr()
    }
}

/// Frees the bytes and zeroes the struct. NULL, and a struct that is all zero, are ignored, so
/// freeing twice is harmless. Any thread, but one at a time for the same struct.
///
/// # Safety
/// `buffer` is NULL or was filled by this library and not changed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_buffer_free(buffer: *mut kvf_buffer) {
    guard_or((), || {
        // SAFETY: NULL or valid by contract.
        let Some(b) = (unsafe { buffer.as_mut() }) else {
            return;
        };
        // One more byte than `len`: see `buffer`.
        if !b.data.is_null() {
            // SAFETY: made by `buffer` with `len + 1` bytes, by contract not changed.
            drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(b.data, b.len + 1)) });
        }
        *b = kvf_buffer {
            data: std::ptr::null_mut(),
            len: 0,
        };
    });
}

/// Frees the strings and zeroes the struct; otherwise, also for threads, as `kvf_buffer_free()`.
///
/// # Safety
/// As for `kvf_buffer_free()`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_string_list_free(list: *mut kvf_string_list) {
    guard_or((), || {
        // SAFETY: NULL or valid by contract.
        let Some(l) = (unsafe { list.as_mut() }) else {
            return;
        };
        // SAFETY: made by `strings`, by contract not changed.
        for item in unsafe { take(&mut l.items, &mut l.len) } {
            // SAFETY: each item was made by `CString::into_raw`.
            drop(unsafe { CString::from_raw(item) });
        }
    });
}

/// Frees the pairs and zeroes the struct; otherwise, also for threads, as `kvf_buffer_free()`.
///
/// # Safety
/// As for `kvf_buffer_free()`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_param_list_free(list: *mut kvf_param_list) {
    guard_or((), || {
        // SAFETY: NULL or valid by contract.
        let Some(l) = (unsafe { list.as_mut() }) else {
            return;
        };
        // SAFETY: made by `params`, by contract not changed.
        unsafe { free_params(l) };
    });
}

/// Frees the messages and zeroes the struct; otherwise, also for threads, as `kvf_buffer_free()`.
///
/// # Safety
/// As for `kvf_buffer_free()`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_notification_list_free(list: *mut kvf_notification_list) {
    guard_or((), || {
        // SAFETY: NULL or valid by contract.
        let Some(l) = (unsafe { list.as_mut() }) else {
            return;
        };
        // SAFETY: made by `notifications`, by contract not changed.
        for n in unsafe { take(&mut l.items, &mut l.len) } {
            // SAFETY: `from` was made by `CString::into_raw`.
            drop(unsafe { CString::from_raw(n.from.cast_mut()) });
            if !n.payload.is_null() {
                let bytes = std::ptr::slice_from_raw_parts_mut(n.payload.cast_mut(), n.payload_len);
                // SAFETY: `payload` was made by `Box::into_raw` with this length.
                drop(unsafe { Box::from_raw(bytes) });
            }
        }
    });
}

/// Frees the results and zeroes the struct; otherwise, also for threads, as `kvf_buffer_free()`.
///
/// # Safety
/// As for `kvf_buffer_free()`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_query_list_free(list: *mut kvf_query_list) {
    guard_or((), || {
        // SAFETY: NULL or valid by contract.
        let Some(l) = (unsafe { list.as_mut() }) else {
            return;
        };
        // SAFETY: made by `query_results`, by contract not changed.
        for mut result in unsafe { take(&mut l.items, &mut l.len) } {
            // SAFETY: made by `params`.
            unsafe { free_params(&mut result.params) };
        }
    });
}

/// # Safety
/// The list was made by `params`.
unsafe fn free_params(list: &mut kvf_param_list) {
    // SAFETY: by contract.
    for p in unsafe { take(&mut list.items, &mut list.len) } {
        // SAFETY: both were made by `CString::into_raw`.
        unsafe {
            drop(CString::from_raw(p.key.cast_mut()));
            drop(CString::from_raw(p.value.cast_mut()));
        }
    }
}

/// Takes an array back and zeroes the two fields.
///
/// # Safety
/// The fields were filled by `give`.
pub(super) unsafe fn take<T>(items: &mut *mut T, len: &mut usize) -> Vec<T> {
    let (ptr, n) = (
        std::mem::replace(items, std::ptr::null_mut()),
        std::mem::take(len),
    );
    if ptr.is_null() {
        return Vec::new();
    }
    // SAFETY: by contract, `Box::into_raw` of a boxed slice of `n` values.
    unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(ptr, n)) }.into_vec()
}

/// Gives an array away; NULL when it is empty.
pub(super) fn give<T>(items: Vec<T>) -> (*mut T, usize) {
    if items.is_empty() {
        return (std::ptr::null_mut(), 0);
    }
    let len = items.len();
    (Box::into_raw(items.into_boxed_slice()).cast::<T>(), len)
}

/// Bytes for C, with a NUL behind them that is not counted.
pub(super) fn buffer(bytes: impl Into<Vec<u8>>) -> kvf_buffer {
    let mut bytes = bytes.into();
    let len = bytes.len();
    if len == 0 {
        return kvf_buffer {
            data: std::ptr::null_mut(),
            len: 0,
        };
    }
    bytes.reserve_exact(1);
    bytes.push(0);
    kvf_buffer {
        data: Box::into_raw(bytes.into_boxed_slice()).cast::<u8>(),
        len,
    }
}

pub(super) fn strings(items: Vec<String>) -> kvf_string_list {
    let (items, len) = give(items.into_iter().map(|s| c_string(s).into_raw()).collect());
    kvf_string_list { items, len }
}

pub(super) fn params(params: Params) -> kvf_param_list {
    let pair = |(k, v): (String, String)| kvf_param {
        key: c_string(k).into_raw(),
        value: c_string(v).into_raw(),
    };
    let (items, len) = give(params.into_iter().map(pair).collect());
    kvf_param_list { items, len }
}

pub(super) fn notification(n: Notification) -> kvf_notification {
    let payload_len = n.payload.len();
    let payload = match payload_len {
        0 => std::ptr::null(),
        _ => Box::into_raw(n.payload.into_boxed_slice())
            .cast::<u8>()
            .cast_const(),
    };
    kvf_notification {
        from: c_string(n.from).into_raw(),
        payload,
        payload_len,
    }
}

pub(super) fn notifications(all: Vec<Notification>) -> kvf_notification_list {
    let (items, len) = give(all.into_iter().map(notification).collect());
    kvf_notification_list { items, len }
}

pub(super) fn query_results(all: Vec<Option<Params>>) -> kvf_query_list {
    let result = |r: Option<Params>| kvf_query_result {
        found: r.is_some().into(),
        params: params(r.unwrap_or_default()),
    };
    let (items, len) = give(all.into_iter().map(result).collect());
    kvf_query_list { items, len }
}
