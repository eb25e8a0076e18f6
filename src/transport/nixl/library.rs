//! Finds and opens `libnixl_capi.so` before any function of [`super::ffi`] is called.
//!
//! The stubs of nixl-sys open the library by its bare name on their first call and abort the
//! process when that fails. A library with that SONAME which is already open satisfies them, so
//! kvferry opens the right file first, by its path, and checks every symbol that it will use. The
//! library stays open for the life of the process, and there can be only one: NIXL's plugin manager
//! and UCX are process-wide.

use std::ffi::{CStr, CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use super::ffi;
use super::search::{self, ENV_LIBRARY, LIBRARY, Source};
use crate::error::{Result, Status, bail};
use crate::sync::lock;

/// What the environment variable of NIXL is called that names the folder of its plugins.
const ENV_PLUGINS: &str = "NIXL_PLUGIN_DIR";

/// One place that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The rule that led there, as a phrase.
    pub place: &'static str,
    /// The file, or the folders that were searched.
    pub path: PathBuf,
    /// What came of it.
    pub outcome: String,
}

/// What is known about the NIXL library of this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LibraryReport {
    /// The library in use; `None` when there is none.
    pub path: Option<PathBuf>,
    /// The rule by which it was found, as a phrase.
    pub found_by: Option<&'static str>,
    /// Version of the wheel that it belongs to, where that can be told.
    pub version: Option<String>,
    /// The folder from which NIXL takes its plugins.
    pub plugin_dir: Option<PathBuf>,
    /// Every place looked at, in order.
    pub tried: Vec<Attempt>,
    /// Why there is no library.
    pub error: Option<String>,
}

struct Loaded {
    report: LibraryReport,
    /// The plugin folder that the first agent fixed; the plugin manager reads it once.
    plugins: Option<PathBuf>,
}

static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

fn loaded() -> MutexGuard<'static, Option<Loaded>> {
    lock(&LOADED)
}

/// Opens the library if that has not happened yet, and says where it was found.
///
/// `explicit` is tried first and alone: when it cannot be used, nothing else is.
pub fn load(explicit: Option<&str>) -> Result<LibraryReport> {
    let mut slot = loaded();
    if let Some(present) = slot.as_ref() {
        check_same(present, explicit)?;
        return Ok(present.report.clone());
    }
    let report = open_first(explicit);
    if let Some(why) = report.error {
        bail!(Status::NoBackend, "{why}");
    }
    log::info!(
        "NIXL is {} ({}), found through {}",
        report
            .path
            .as_deref()
            .unwrap_or(Path::new(LIBRARY))
            .display(),
        report.version.as_deref().unwrap_or("version unknown"),
        report.found_by.unwrap_or("?"),
    );
    *slot = Some(Loaded {
        report: report.clone(),
        plugins: None,
    });
    Ok(report)
}

/// Looks for the library as an agent with this option would, opens it if it is there, and tells
/// what was found. Never fails: [`LibraryReport::error`] says why there is none.
pub fn probe(explicit: Option<&str>) -> LibraryReport {
    let mut slot = loaded();
    if let Some(present) = slot.as_ref() {
        let mut report = present.report.clone();
        report.error = check_same(present, explicit)
            .err()
            .map(|e| e.message().to_string());
        return report;
    }
    let report = open_first(explicit);
    if report.error.is_none() {
        *slot = Some(Loaded {
            report: report.clone(),
            plugins: None,
        });
    }
    report
}

/// Whether the open library is the one that the caller names.
fn check_same(present: &Loaded, explicit: Option<&str>) -> Result<()> {
    let (Some(wanted), Some(have)) = (explicit, &present.report.path) else {
        return Ok(());
    };
    if !same_file(Path::new(wanted), have) {
        bail!(
            Status::InvalidState,
            "NIXL is already open from {}; a process can have only one, so {wanted:?} cannot be \
             opened as well",
            have.display()
        );
    }
    Ok(())
}

/// Candidates in order, and notes about the rules that gave none.
fn candidates(explicit: Option<&str>) -> (Vec<(Source, PathBuf)>, Vec<Attempt>) {
    if let Some(path) = explicit {
        return (vec![(Source::Option, PathBuf::from(path))], Vec::new());
    }
    if let Some(path) = std::env::var_os(ENV_LIBRARY).filter(|v| !v.is_empty()) {
        return (vec![(Source::Environment, PathBuf::from(path))], Vec::new());
    }
    let mapped = search::mapped_files();
    let beside = search::beside_mapped(&mapped);
    if !beside.is_empty() {
        // The NIXL in the process decides: another would bind to its symbols and crash.
        return (
            beside.into_iter().map(|p| (Source::Mapped, p)).collect(),
            Vec::new(),
        );
    }
    let note = |source: Source, path: &str, outcome: &str| Attempt {
        place: source.describe(),
        path: PathBuf::from(path),
        outcome: outcome.into(),
    };
    let mut notes = vec![
        note(Source::Environment, ENV_LIBRARY, "is not set"),
        note(Source::Mapped, "/proc/self/maps", "shows none"),
    ];
    let (wheels, folders) = search::in_wheels(&mapped);
    if folders.is_empty() {
        let why = "no Python runs here, and VIRTUAL_ENV and CONDA_PREFIX lead to no packages";
        notes.push(note(Source::Wheel, "site-packages", why));
    }
    for folder in folders
        .iter()
        .filter(|f| !wheels.iter().any(|w| w.starts_with(f)))
    {
        notes.push(note(
            Source::Wheel,
            &folder.to_string_lossy(),
            "has no NIXL wheel",
        ));
    }
    let mut out: Vec<_> = wheels.into_iter().map(|p| (Source::Wheel, p)).collect();
    out.push((Source::System, PathBuf::from(LIBRARY)));
    (out, notes)
}

/// Opens the first candidate that can be used; the report's error says that there was none.
fn open_first(explicit: Option<&str>) -> LibraryReport {
    let (candidates, tried) = candidates(explicit);
    let mut report = LibraryReport {
        tried,
        ..LibraryReport::default()
    };
    for (source, path) in candidates {
        let place = source.describe();
        match open(&path) {
            Ok(real) => {
                report.tried.push(Attempt {
                    place,
                    path,
                    outcome: "opened".into(),
                });
                report.version = search::wheel_version(&real);
                report.plugin_dir = real.parent().map(|dir| dir.join("plugins"));
                report.path = Some(real);
                report.found_by = Some(place);
                return report;
            }
            Err(outcome) => report.tried.push(Attempt {
                place,
                path,
                outcome,
            }),
        }
    }
    let mut message = String::from("no NIXL library could be opened. Looked at:");
    for a in &report.tried {
        message.push_str(&format!(
            "\n  {} ({}): {}",
            a.path.display(),
            a.place,
            a.outcome
        ));
    }
    message.push_str(
        "\nNIXL 1.5.0 or newer is needed. Install it with `pip install --no-deps nixl-cu12` (no \
         torch and no CUDA needed), or name libnixl_capi.so in the agent's options or in \
         KVF_NIXL_LIBRARY",
    );
    report.error = Some(message);
    report
}

/// Opens one file, checks it, and returns the path of what is now in the process.
fn open(path: &Path) -> std::result::Result<PathBuf, String> {
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| "the path has a NUL in it".to_string())?;
    let handle = dlopen(&name, libc::RTLD_NOW | libc::RTLD_LOCAL)?;
    let refuse = |why: String| {
        // SAFETY: the handle came from dlopen above and nothing from it is in use.
        unsafe { libc::dlclose(handle) };
        Err(why)
    };
    let missing: Vec<String> = ffi::SYMBOLS
        .iter()
        .filter(|symbol| find(handle, symbol).is_null())
        .map(|symbol| symbol.to_string_lossy().into_owned())
        .collect();
    if !missing.is_empty() {
        return refuse(format!(
            "lacks {} function(s) that NIXL 1.5.0 and newer have: {}",
            missing.len(),
            missing.join(", ")
        ));
    }
    // The stubs will ask for the bare name. That must lead to this very library.
    let bare = CString::new(LIBRARY).unwrap_or_default();
    match dlopen(&bare, libc::RTLD_NOW | libc::RTLD_LOCAL | libc::RTLD_NOLOAD) {
        // A reference is kept by each of the two, on purpose: the library is never closed.
        Ok(found) if found == handle => {}
        Ok(_) => return refuse(format!("another {LIBRARY} is already in the process")),
        Err(_) => return refuse(format!("its SONAME is not {LIBRARY}")),
    }
    Ok(path_of(handle).unwrap_or_else(|| path.to_path_buf()))
}

fn dlopen(name: &CStr, flags: i32) -> std::result::Result<*mut c_void, String> {
    // SAFETY: the name is a C string. Opening runs the library's constructors, which is what the
    // caller asks for by naming it.
    let handle = unsafe { libc::dlopen(name.as_ptr(), flags) };
    if !handle.is_null() {
        return Ok(handle);
    }
    // SAFETY: dlerror returns null or a string that is valid until this thread's next dl call.
    let why = unsafe { super::objects::lossy(libc::dlerror()) };
    Err(if why.is_empty() {
        "is not in the process".into()
    } else {
        why
    })
}

fn find(handle: *mut c_void, symbol: &CStr) -> *mut c_void {
    // SAFETY: the handle is open and the symbol is a C string; the address is only compared.
    unsafe { libc::dlsym(handle, symbol.as_ptr()) }
}

/// The file that a symbol of the library lives in.
fn path_of(handle: *mut c_void) -> Option<PathBuf> {
    let symbol = find(handle, ffi::SYMBOLS[0]);
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: the address belongs to an open library and `info` has room for the answer, which is
    // zeroed (all fields may be zero) and read only on success; the name lives as long as the
    // library, which is for ever.
    unsafe {
        if libc::dladdr(symbol, info.as_mut_ptr()) == 0 {
            return None;
        }
        let name = info.assume_init().dli_fname;
        if name.is_null() {
            return None;
        }
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(CStr::from_ptr(name).to_bytes()));
        path.is_absolute().then_some(path)
    }
}

/// Tells NIXL where its plugins are, before its plugin manager comes to be with the first agent.
/// Called for every agent after [`load`]; the first one decides.
pub fn settle_plugin_dir(wanted: Option<&str>) -> Result<()> {
    let mut slot = loaded();
    let Some(present) = slot.as_mut() else {
        bail!(
            Status::Internal,
            "the plugin folder was set before NIXL was opened"
        );
    };
    let wanted = wanted.map(PathBuf::from);
    if let Some(have) = &present.plugins {
        match wanted {
            Some(wanted) if !same_file(&wanted, have) => bail!(
                Status::InvalidState,
                "NIXL already takes its plugins from {}; they cannot be taken from {} as well",
                have.display(),
                wanted.display()
            ),
            _ => return Ok(()),
        }
    }
    let from_env = std::env::var_os(ENV_PLUGINS)
        .filter(|v| !v.is_empty())
        .map(PathBuf::from);
    if let Some(dir) = &wanted {
        if !dir.is_dir() {
            bail!(
                Status::NotFound,
                "the plugin folder {} is not there",
                dir.display()
            );
        }
        if from_env.as_ref() != Some(dir) {
            // SAFETY: NIXL reads the variable from C when its first agent is made, so it has to be
            // in the environment. Rust's own reads are synchronised with this; a C thread that
            // reads the environment at this moment could not be, which is why it is done at most
            // once, and only when the caller asked for a folder that is not set already.
            unsafe { std::env::set_var(ENV_PLUGINS, dir) };
        }
    }
    let dir = wanted
        .or(from_env)
        .or_else(|| present.report.plugin_dir.clone());
    present.report.plugin_dir = dir.clone();
    present.plugins = dir;
    Ok(())
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}
