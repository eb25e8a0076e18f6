//! Owners of the objects of NIXL's C API. Each frees what it holds exactly once.

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr;

use super::ffi;
use crate::error::{Error, Result, Status, bail};
use crate::memory::{MemDesc, MemKind, RegDesc};
use crate::transport::Params;

/// The error for a helper call that has no reason to fail but lack of memory.
fn exhausted(doing: &str, code: ffi::Code) -> Error {
    Error::new(
        Status::ResourceExhausted,
        format!("NIXL could not {doing} (code {code})"),
    )
}

/// A string for C; `what` names it in the error about a NUL.
pub fn c_string(what: &str, text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| {
        Error::invalid(format!(
            "{what} {text:?} has a NUL, which NIXL cannot carry"
        ))
    })
}

/// Declares an owner: a pointer, how it is made and how it is freed.
macro_rules! owner {
    ($(#[$doc:meta])* $name:ident($raw:ident), $destroy:ident) => {
        $(#[$doc])*
        pub struct $name(ffi::$raw);

        // SAFETY: the object is plain heap data of the C side without ties to a thread; `&self`
        // methods only read it, so it may move between threads and be read from several.
        unsafe impl Send for $name {}
        // SAFETY: as above.
        unsafe impl Sync for $name {}

        impl $name {
            /// The pointer, for calls; valid as long as the owner lives.
            #[allow(dead_code, reason = "not every owner is passed to calls of other files")]
            pub fn raw(&self) -> ffi::$raw {
                self.0
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: the pointer came from the matching create call, is freed only here, and
                // the library stays loaded for the life of the process.
                unsafe { ffi::$destroy(self.0) };
            }
        }
    };
    ($(#[$doc:meta])* $name:ident($raw:ident), $create:ident, $destroy:ident, $doing:literal) => {
        owner!($(#[$doc])* $name($raw), $destroy);

        impl $name {
            /// A new, empty one.
            pub fn new() -> Result<Self> {
                let mut raw = ptr::null_mut();
                // SAFETY: the call writes a fresh pointer on success and keeps no reference.
                let code = unsafe { ffi::$create(&mut raw) };
                if code != ffi::SUCCESS || raw.is_null() {
                    return Err(exhausted($doing, code));
                }
                Ok(Self(raw))
            }
        }
    };
}

owner!(
    /// Options of a call. Only made when a call has any.
    OptArgs(OptArgs), nixl_capi_create_opt_args, nixl_capi_destroy_opt_args, "make options"
);
owner!(
    /// Parameters of a backend or plugin.
    ParamMap(Params), nixl_capi_create_params, nixl_capi_destroy_params, "make parameters"
);
owner!(
    /// Received notifications.
    NotifMap(NotifMap), nixl_capi_create_notif_map, nixl_capi_destroy_notif_map, "make a notification map"
);
owner!(
    /// Answers of a memory query.
    QueryResponses(QueryRespList), nixl_capi_create_query_resp_list, nixl_capi_destroy_query_resp_list,
    "make a response list"
);
owner!(
    /// Ranges of a transfer.
    XferDlist(XferDlist), nixl_capi_destroy_xfer_dlist
);
owner!(
    /// Ranges of a registration.
    RegDlist(RegDlist), nixl_capi_destroy_reg_dlist
);
owner!(
    /// Memory kinds of a backend or plugin.
    MemList(MemList), nixl_capi_destroy_mem_list
);
owner!(
    /// Plugin names.
    StringList(StringList), nixl_capi_destroy_string_list
);
owner!(
    /// The C side's wrapper round a backend. Freeing it leaves the backend itself, which belongs to
    /// the agent, alone.
    Backend(Backend), nixl_capi_destroy_backend
);

impl OptArgs {
    /// Restricts the call to this backend, too.
    pub fn add_backend(&self, backend: &Backend) -> Result<()> {
        // SAFETY: both objects are alive; the call copies the pointer inside `backend`, which the
        // agent owns and which outlives these options.
        match unsafe { ffi::nixl_capi_opt_args_add_backend(self.0, backend.raw()) } {
            ffi::SUCCESS => Ok(()),
            code => Err(exhausted("add a backend to options", code)),
        }
    }

    /// Sends these bytes when the transfer is complete.
    pub fn set_notification(&self, payload: &[u8]) -> Result<()> {
        // SAFETY: the pointer is valid for the length and the bytes are copied. The message counts
        // only once has_notif is set after it.
        let code = unsafe {
            match ffi::nixl_capi_opt_args_set_notif_msg(
                self.0,
                payload.as_ptr().cast(),
                payload.len(),
            ) {
                ffi::SUCCESS => ffi::nixl_capi_opt_args_set_has_notif(self.0, true),
                code => code,
            }
        };
        if code != ffi::SUCCESS {
            return Err(exhausted("hold a notification", code));
        }
        Ok(())
    }

    /// Leaves adjacent descriptors as they are.
    pub fn set_skip_merge(&self) {
        // SAFETY: the object is alive; the call sets a flag and cannot fail.
        unsafe { ffi::nixl_capi_opt_args_set_skip_desc_merge(self.0, true) };
    }

    /// The peer's listener.
    pub fn set_address(&self, ip: &CStr, port: u16) -> Result<()> {
        // SAFETY: the object is alive and the string is copied.
        let code = unsafe {
            ffi::nixl_capi_opt_args_set_port(self.0, port);
            ffi::nixl_capi_opt_args_set_ip_addr(self.0, ip.as_ptr())
        };
        match code {
            ffi::SUCCESS => Ok(()),
            code => Err(exhausted("hold an address", code)),
        }
    }
}

/// The pointer of optional options: null when there are none.
pub fn opt(args: &Option<OptArgs>) -> ffi::OptArgs {
    args.as_ref().map_or(ptr::null_mut(), OptArgs::raw)
}

impl ParamMap {
    /// A map with these entries.
    pub fn from_pairs(pairs: &[(String, String)]) -> Result<Self> {
        let map = Self::new()?;
        for (key, value) in pairs {
            let (k, v) = (
                c_string("parameter", key)?,
                c_string("parameter value", value)?,
            );
            // SAFETY: the map is alive and both strings are copied.
            let code = unsafe { ffi::nixl_capi_params_add(map.0, k.as_ptr(), v.as_ptr()) };
            if code != ffi::SUCCESS {
                return Err(exhausted("hold a parameter", code));
            }
        }
        Ok(map)
    }

    /// Takes over a map that a call gave away.
    ///
    /// # Safety
    /// `raw` is a parameter map that nobody else frees.
    pub unsafe fn from_raw(raw: ffi::Params) -> Self {
        Self(raw)
    }

    /// The entries, sorted by name: the C++ side keeps them in no order.
    pub fn to_pairs(&self) -> Result<Params> {
        let mut out = Params::new();
        let mut empty = true;
        // SAFETY: the map is alive.
        unsafe { ffi::nixl_capi_params_is_empty(self.0, &mut empty) };
        // The iterator cannot tell an exhausted map from its last entry, so ask before.
        let mut more = !empty;
        let mut iter = ptr::null_mut();
        // SAFETY: the map is alive and is not changed while the iterator exists.
        let code = unsafe { ffi::nixl_capi_params_create_iterator(self.0, &mut iter) };
        if code != ffi::SUCCESS {
            return Err(exhausted("read parameters", code));
        }
        while more {
            let (mut key, mut value) = (ptr::null(), ptr::null());
            // SAFETY: the iterator is alive; the strings stay valid until the next step and are
            // copied before it.
            let code = unsafe {
                ffi::nixl_capi_params_iterator_next(iter, &mut key, &mut value, &mut more)
            };
            if code != ffi::SUCCESS {
                break;
            }
            // SAFETY: as above; a successful step sets both.
            unsafe { out.push((lossy(key), lossy(value))) };
        }
        // SAFETY: made above and freed only here.
        unsafe { ffi::nixl_capi_params_destroy_iterator(iter) };
        out.sort();
        Ok(out)
    }
}

impl MemList {
    /// Takes over a list that a call gave away.
    ///
    /// # Safety
    /// `raw` is a memory list that nobody else frees.
    pub unsafe fn from_raw(raw: ffi::MemList) -> Self {
        Self(raw)
    }

    /// The kinds that kvferry knows.
    pub fn to_kinds(&self) -> Vec<MemKind> {
        let mut size = 0;
        // SAFETY: the list is alive.
        unsafe { ffi::nixl_capi_mem_list_size(self.0, &mut size) };
        (0..size)
            .filter_map(|i| {
                let mut kind = -1;
                // SAFETY: the list is alive; the call checks the index.
                let code = unsafe { ffi::nixl_capi_mem_list_get(self.0, i, &mut kind) };
                (code == ffi::SUCCESS).then_some(kind)
            })
            .filter_map(|kind| MemKind::from_code(u32::try_from(kind).ok()?).ok())
            .collect()
    }
}

impl StringList {
    /// Takes over a list that a call gave away.
    ///
    /// # Safety
    /// `raw` is a string list that nobody else frees.
    pub unsafe fn from_raw(raw: ffi::StringList) -> Self {
        Self(raw)
    }

    /// The strings.
    pub fn to_strings(&self) -> Vec<String> {
        let mut size = 0;
        // SAFETY: the list is alive.
        unsafe { ffi::nixl_capi_string_list_size(self.0, &mut size) };
        (0..size)
            .filter_map(|i| {
                let mut text = ptr::null();
                // SAFETY: the list is alive and not changed, so the string lives as long as it;
                // the call checks the index.
                unsafe {
                    let code = ffi::nixl_capi_string_list_get(self.0, i, &mut text);
                    (code == ffi::SUCCESS).then(|| lossy(text))
                }
            })
            .collect()
    }
}

impl Backend {
    /// Takes over a wrapper that a call gave away.
    ///
    /// # Safety
    /// `raw` is a backend wrapper that nobody else frees.
    pub unsafe fn from_raw(raw: ffi::Backend) -> Self {
        Self(raw)
    }

    /// Which backend is meant: equal for two wrappers of the same one.
    ///
    /// The C API cannot compare backends. `struct nixl_capi_backend_s` holds a single pointer, to
    /// the agent's one handle of that backend, in every release since the type exists.
    pub fn identity(&self) -> usize {
        // SAFETY: the wrapper is alive, and its first and only member is a pointer.
        unsafe { *self.0.cast::<usize>() }
    }
}

impl XferDlist {
    /// Ranges of one kind. The caller has checked that none wraps around.
    pub fn from_descs(
        kind: MemKind,
        descs: impl ExactSizeIterator<Item = MemDesc>,
    ) -> Result<XferDlist> {
        check_count(descs.len())?;
        let mut raw = ptr::null_mut();
        // SAFETY: the call writes a fresh pointer on success.
        let code = unsafe { ffi::nixl_capi_create_xfer_dlist(kind as i32, &mut raw) };
        if code != ffi::SUCCESS {
            return Err(exhausted("make a descriptor list", code));
        }
        let list = XferDlist(raw);
        for d in descs {
            // SAFETY: the list is alive; the numbers are stored, not followed.
            let code = unsafe {
                ffi::nixl_capi_xfer_dlist_add_desc(raw, d.addr as usize, d.len as usize, d.device)
            };
            if code != ffi::SUCCESS {
                return Err(exhausted("hold a descriptor", code));
            }
        }
        Ok(list)
    }
}

impl RegDlist {
    /// Ranges of one kind with their metadata strings.
    pub fn from_descs<'a>(
        kind: MemKind,
        descs: impl ExactSizeIterator<Item = &'a RegDesc>,
    ) -> Result<RegDlist> {
        check_count(descs.len())?;
        let mut raw = ptr::null_mut();
        // SAFETY: the call writes a fresh pointer on success.
        let code = unsafe { ffi::nixl_capi_create_reg_dlist(kind as i32, &mut raw) };
        if code != ffi::SUCCESS {
            return Err(exhausted("make a registration list", code));
        }
        let list = RegDlist(raw);
        for d in descs {
            // SAFETY: the list is alive, the metadata is copied, the numbers are stored.
            let code = unsafe {
                ffi::nixl_capi_reg_dlist_add_desc(
                    raw,
                    d.range.addr as usize,
                    d.range.len as usize,
                    d.range.device,
                    d.meta.as_ptr().cast(),
                    d.meta.len(),
                )
            };
            if code != ffi::SUCCESS {
                return Err(exhausted("hold a registration", code));
            }
        }
        Ok(list)
    }
}

/// NIXL counts descriptors in a C int.
fn check_count(count: usize) -> Result<()> {
    if i32::try_from(count).is_err() {
        bail!(
            Status::InvalidArgument,
            "{count} ranges are more than the {} of NIXL",
            i32::MAX
        );
    }
    Ok(())
}

/// Copies and frees bytes that a call allocated with `malloc`.
///
/// # Safety
/// `data` is null or a `malloc`ed block of at least `len` bytes that nobody else frees.
pub unsafe fn take_blob(data: *mut c_void, len: usize) -> Vec<u8> {
    if data.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller's promise.
    unsafe {
        let out = std::slice::from_raw_parts(data.cast::<u8>(), len).to_vec();
        libc::free(data);
        out
    }
}

/// A copy of a C string with anything that is not UTF-8 replaced; null is empty.
///
/// # Safety
/// `text` is null or a NUL-terminated string.
pub unsafe fn lossy(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}
