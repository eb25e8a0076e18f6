//! Plugins and backends by name.

use std::ptr;
use std::sync::{PoisonError, RwLock};

use super::endpoint::Endpoint;
use super::ffi;
use super::objects::{Backend, MemList, OptArgs, ParamMap, StringList, c_string};
use crate::error::{Result, Status, bail};
use crate::memory::MemKind;
use crate::transport::{BackendInfo, Params};

struct Entry {
    name: String,
    handle: Backend,
    kinds: Vec<MemKind>,
}

/// The backends of an agent in the order of their creation.
#[derive(Default)]
pub struct BackendTable(RwLock<Vec<Entry>>);

impl BackendTable {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<Entry>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees the wrappers; for the end of the endpoint.
    pub fn clear(&self) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// Names in the order of creation.
    pub fn names(&self) -> Vec<String> {
        self.read().iter().map(|e| e.name.clone()).collect()
    }

    /// Those that serve a kind of memory.
    pub fn serving(&self, kind: MemKind) -> Vec<String> {
        self.read()
            .iter()
            .filter(|e| e.kinds.contains(&kind))
            .map(|e| e.name.clone())
            .collect()
    }

    /// Options that restrict a call to the named backends; none when no backend is named.
    pub fn options(&self, names: &[&str]) -> Result<Option<OptArgs>> {
        if names.is_empty() {
            return Ok(None);
        }
        let args = OptArgs::new()?;
        self.add_to(&args, names)?;
        Ok(Some(args))
    }

    /// Restricts options to the named backends.
    pub fn add_to(&self, args: &OptArgs, names: &[&str]) -> Result<()> {
        let entries = self.read();
        for name in names {
            args.add_backend(&find(&entries, name)?.handle)?;
        }
        Ok(())
    }

    /// Runs a call while no backend can be created: NIXL reads its list of backends in some calls
    /// before it locks.
    pub fn hold<R>(&self, f: impl FnOnce() -> R) -> R {
        let _entries = self.read();
        f()
    }

    /// The kinds of memory that a backend serves.
    pub fn kinds(&self, name: &str) -> Result<Vec<MemKind>> {
        Ok(find(&self.read(), name)?.kinds.clone())
    }

    /// The name of the backend that a wrapper from NIXL stands for.
    pub fn name_of(&self, wrapper: &Backend) -> Option<String> {
        let entries = self.read();
        entries
            .iter()
            .find(|e| e.handle.identity() == wrapper.identity())
            .map(|e| e.name.clone())
    }

    /// An error if one of the names is not a backend.
    pub fn check(&self, names: &[&str]) -> Result<()> {
        let entries = self.read();
        names
            .iter()
            .try_for_each(|name| find(&entries, name).map(|_| ()))
    }
}

fn find<'a>(entries: &'a [Entry], name: &str) -> Result<&'a Entry> {
    match entries.iter().find(|e| e.name == name) {
        Some(entry) => Ok(entry),
        None => bail!(
            Status::NotFound,
            "there is no backend {name:?}; created are: {}",
            entries
                .iter()
                .map(|e| e.name.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}

impl Endpoint {
    /// Backends that could be created.
    pub fn plugins(&self) -> Result<Vec<String>> {
        let mut raw = ptr::null_mut();
        // SAFETY: the agent is alive; on success `raw` is a list that we own.
        let list = unsafe {
            let code = self.call(|agent| ffi::nixl_capi_get_available_plugins(agent, &mut raw));
            if code != ffi::SUCCESS || raw.is_null() {
                bail!(
                    Status::Backend,
                    "NIXL could not list its plugins (code {code})"
                );
            }
            StringList::from_raw(raw)
        };
        let mut names = list.to_strings();
        names.sort();
        Ok(names)
    }

    /// Parameters and memory kinds of a plugin.
    pub fn plugin_info(&self, plugin: &str) -> Result<BackendInfo> {
        let name = self.known_plugin(plugin)?;
        let (mut mems, mut params) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the agent is alive and the name a C string.
        let code = self.call(|agent| unsafe {
            ffi::nixl_capi_get_plugin_params(agent, name.as_ptr(), &mut mems, &mut params)
        });
        if code != ffi::SUCCESS {
            bail!(
                Status::Backend,
                "NIXL could not load the plugin {plugin:?} (code {code})"
            );
        }
        // SAFETY: the call succeeded and gave both away.
        unsafe { info(mems, params) }
    }

    /// Makes a backend.
    pub fn create_backend(&self, plugin: &str, params: &[(String, String)]) -> Result<()> {
        self.check_open()?;
        let name = self.known_plugin(plugin)?;
        let mut params: Params = params.to_vec();
        if let Some(key) = thread_parameter(plugin).filter(|_| self.worker_threads > 0) {
            if !params.iter().any(|(k, _)| k == key) {
                params.push((key.to_string(), self.worker_threads.to_string()));
            }
        }
        let map = ParamMap::from_pairs(&params)?;
        let mut entries = self
            .backends
            .0
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if entries.iter().any(|e| e.name == plugin) {
            bail!(
                Status::InvalidArgument,
                "the backend {plugin:?} has been created already"
            );
        }
        let mut raw = ptr::null_mut();
        // SAFETY: the agent and the parameters are alive and the name is a C string.
        let code = self.call(|agent| unsafe {
            ffi::nixl_capi_create_backend(agent, name.as_ptr(), map.raw(), &mut raw)
        });
        if code != ffi::SUCCESS || raw.is_null() {
            bail!(
                Status::Backend,
                "NIXL could not create the backend {plugin:?} with {params:?}; NIXL_LOG_LEVEL=INFO \
                 makes it say why (code {code})"
            );
        }
        // SAFETY: the call succeeded and gave the wrapper away.
        let handle = unsafe { Backend::from_raw(raw) };
        let kinds = self.backend_params(&handle)?.kinds;
        entries.push(Entry {
            name: plugin.to_string(),
            handle,
            kinds,
        });
        Ok(())
    }

    /// Parameters and memory kinds of a backend.
    pub fn backend_info(&self, backend: &str) -> Result<BackendInfo> {
        let entries = self.backends.read();
        self.backend_params(&find(&entries, backend)?.handle)
    }

    fn backend_params(&self, handle: &Backend) -> Result<BackendInfo> {
        let (mut mems, mut params) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the agent and the wrapper are alive.
        let code = self.call(|agent| unsafe {
            ffi::nixl_capi_get_backend_params(agent, handle.raw(), &mut mems, &mut params)
        });
        if code != ffi::SUCCESS {
            bail!(
                Status::Backend,
                "NIXL could not describe the backend (code {code})"
            );
        }
        // SAFETY: the call succeeded and gave both away.
        unsafe { info(mems, params) }
    }

    fn known_plugin(&self, plugin: &str) -> Result<std::ffi::CString> {
        let name = c_string("plugin", plugin)?;
        let plugins = self.plugins()?;
        if !plugins.iter().any(|p| p == plugin) {
            bail!(
                Status::NotFound,
                "NIXL has no plugin {plugin:?}; it has: {}",
                plugins.join(", ")
            );
        }
        Ok(name)
    }
}

/// The parameter by which a plugin takes its number of worker threads, as in NIXL's Python API.
fn thread_parameter(plugin: &str) -> Option<&'static str> {
    match plugin {
        "UCX" | "OBJ" | "LIBFABRIC" => Some("num_threads"),
        "GDS_MT" => Some("thread_count"),
        "UCCL" => Some("num_cpus"),
        _ => None,
    }
}

/// Reads and frees what a describing call gave away.
///
/// # Safety
/// Both are objects that nobody else frees.
unsafe fn info(mems: ffi::MemList, params: ffi::Params) -> Result<BackendInfo> {
    // SAFETY: the caller's promise.
    let (mems, params) = unsafe { (MemList::from_raw(mems), ParamMap::from_raw(params)) };
    Ok(BackendInfo {
        params: params.to_pairs()?,
        kinds: mems.to_kinds(),
    })
}
