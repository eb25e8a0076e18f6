//! What there is to work with: for `python -m kvferry doctor` and its like.

use std::ffi::c_char;

use serde_json::json;

use super::guard::guard;
use super::input::{opt_text, out};
use super::output::{self, kvf_buffer};
use super::status::kvf_status;
use crate::transport::nixl;

/// Looks for NIXL as an agent would, and tells in JSON what was found and where was looked: keys
/// `path`, `found_by`, `version`, `plugin_dir` (text, or null for what is not known), `tried` (an
/// array of `place`, `path`, `outcome`) and `error` (null, or why there is no library). It opens a
/// library that it finds, as the first agent does, and that one stays in the process. Any thread.
///
/// @param library  Path of `libnixl_capi.so`; NULL searches, as `kvf_agent_options.nixl_library`
///                 says.
/// @param json     Receives text; free with `kvf_buffer_free()`.
/// @return `KVF_OK` whether or not there is a NIXL.
///
/// # Safety
/// Pointers are valid as the header's conventions say.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_nixl_probe(
    library: *const c_char,
    json: *mut kvf_buffer,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (library, json) = unsafe { (opt_text(library, "library")?, out(json, "json")?) };
        json.write(output::buffer(in_json(&nixl::probe(library)).to_string()));
        Ok(())
    })
}

fn in_json(report: &nixl::LibraryReport) -> serde_json::Value {
    let shown = |path: &std::path::PathBuf| path.display().to_string();
    let tried = report
        .tried
        .iter()
        .map(|a| json!({"place": a.place, "path": shown(&a.path), "outcome": a.outcome}));
    json!({
        "path": report.path.as_ref().map(shown),
        "found_by": report.found_by,
        "version": report.version,
        "plugin_dir": report.plugin_dir.as_ref().map(shown),
        "tried": tried.collect::<Vec<_>>(),
        "error": report.error,
    })
}
