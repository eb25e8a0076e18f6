//! Agents: creation, registration, metadata, remote agents, notifications.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Duration;

use once_cell::sync::Lazy;

use super::guard::guard;
use super::handle::Table;
use super::input::{
    MAX_NAMES, Plain, bounded, flag, nonzero, opt_out, opt_text, options, out, slice, text, texts,
};
use super::logging;
use super::memory::{kvf_mem_desc, kvf_reg_desc, mem_descs, reg_descs};
use super::output::{
    self, kvf_buffer, kvf_notification_list, kvf_param, kvf_param_list, kvf_query_list,
    kvf_string_list,
};
use super::status::kvf_status;
use super::transfer;
use crate::agent::{Agent, MAX_METADATA, MAX_NOTIFICATION, NotificationFilter};
use crate::error::{Error, Result};
use crate::memory::MemKind;
use crate::transport::{AgentOptions, BackendInfo, MetadataStore, Params, Progress, SyncMode};

/// A thread that sleeps until a peer wants something: the default.
pub const KVF_PROGRESS_THREAD: u32 = 0;
/// No thread: peers are answered only during calls, above all `kvf_agent_notifications()`.
pub const KVF_PROGRESS_CALLER: u32 = 1;
/// `nixl`: a thread that never sleeps. Lowest latency; costs one core.
pub const KVF_PROGRESS_SPIN: u32 = 2;

/// The transport's choice, which is `KVF_SYNC_RW`.
pub const KVF_SYNC_DEFAULT: u32 = 0;
/// NIXL does not lock; kvferry holds a lock of its own around each call instead.
pub const KVF_SYNC_NONE: u32 = 1;
/// NIXL lets one call in at a time.
pub const KVF_SYNC_STRICT: u32 = 2;
/// NIXL lets posting and polling run side by side, and changes one at a time.
pub const KVF_SYNC_RW: u32 = 3;

/// One rank's endpoint. All zero is the null handle.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct kvf_agent {
    /// Opaque. Zero is null.
    pub id: u64,
}

/// A backend to create, with its parameters.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_backend {
    /// Name of the plugin, for example `"UCX"`.
    pub name: *const c_char,
    /// Parameters that differ from the plugin's defaults.
    pub params: *const kvf_param,
    /// Their number.
    pub params_len: usize,
}

/// What an agent is created with. Start from `kvf_agent_options_default()`, or zero the struct
/// and set `struct_size`; zero is the default of every field. Set at least `name` and
/// `transport`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_agent_options {
    /// `sizeof(kvf_agent_options)`.
    pub struct_size: u32,
    /// One of `KVF_PROGRESS_…`: who answers peers while the program is busy elsewhere.
    pub progress: u32,
    /// Name by which peers know this agent, unique among them; 1 to 1024 bytes.
    pub name: *const c_char,
    /// `"nixl"` or `"local"`. There is no default, and nothing falls back in silence.
    pub transport: *const c_char,
    /// `nixl`: path of `libnixl_capi.so`. NULL searches: the environment variable
    /// `KVF_NIXL_LIBRARY`, a NIXL that is already in the process, the Python wheels nixl-cu12 and
    /// nixl-cu13 next to the running interpreter, the system's loader path. One process has one
    /// NIXL: the first agent decides.
    pub nixl_library: *const c_char,
    /// `nixl`: folder of the backend plugins; NULL is the one beside the library. It is passed on
    /// in the process's environment: create the first such agent before other threads read that.
    pub nixl_plugin_dir: *const c_char,
    /// Backends to create at once. With `backends_len` 0 that is the transport's default (`UCX`
    /// for `nixl`), unless `no_default_backend` is 1.
    pub backends: *const kvf_backend,
    /// Their number.
    pub backends_len: usize,
    /// How long the progress thread sleeps at most, in microseconds; 0 is the transport's choice
    /// (2 ms for `nixl`; `local` needs none).
    pub progress_delay_us: u64,
    /// One of `KVF_SYNC_…`. In every mode the agent may be used from many threads at once.
    pub sync_mode: u32,
    /// `nixl`: worker threads of backends that can have several; 0 is the backend's default.
    pub worker_threads: u32,
    /// `local`: threads that copy, the caller's included; 0 is 1.
    pub copy_threads: u32,
    /// How long `kvf_agent_destroy()` waits for transfers under way, in milliseconds; 0 is 5,000.
    pub drain_timeout_ms: u32,
    /// `nixl`: port of NIXL's own metadata listener, if `listen` is 1.
    pub listen_port: u16,
    /// `nixl`: 1 starts NIXL's own metadata listener.
    pub listen: u8,
    /// 1 records telemetry of each transfer.
    pub telemetry: u8,
    /// 1 creates no backend by default.
    pub no_default_backend: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

// SAFETY: integers and raw pointers only.
unsafe impl Plain for kvf_agent_options {
    const FIRST_SIZE: usize = 88;
}

pub(super) static AGENTS: Lazy<Table<Agent>> = Lazy::new(|| Table::new(1, "agent"));

/// Creates an agent. With `nixl` the first call in a process loads NIXL, which takes some 0.5 s.
/// Any thread.
///
/// @param options  Borrowed; not NULL.
/// @param agent    Receives the handle. End it with `kvf_agent_destroy()`.
/// @return `KVF_ERR_NO_BACKEND` if the transport library is not found: the message says where was
///         looked and how to install it. `KVF_ERR_INVALID_ARGUMENT` for options that make no
///         sense.
///
/// # Safety
/// Pointers are valid as the header's conventions say; this holds for all functions below.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_create(
    options: *const kvf_agent_options,
    agent: *mut kvf_agent,
) -> kvf_status {
    guard(|| {
        logging::init();
        // SAFETY: the caller's contract, here and in every block below of this file.
        let agent = unsafe { out(agent, "agent") }?;
        if options.is_null() {
            return Err(Error::invalid("options is NULL"));
        }
        // SAFETY: as above.
        let options = unsafe { agent_options(options) }?;
        let created = Arc::new(Agent::create(&options)?);
        agent.write(kvf_agent {
            id: AGENTS.insert(created)?,
        });
        Ok(())
    })
}

/// Ends an agent. Its lists and transfers end with it; all their handles are stale afterwards.
///
/// Transfers under way are stopped, or waited for where they cannot be stopped, for at most
/// `drain_timeout_ms`. After `KVF_OK` none of them touches memory any more. After
/// `KVF_ERR_TIMEOUT` some still may: keep their buffers. The handle is stale either way.
///
/// Any thread. Calls that other threads are in at that time come to their own end; those that can
/// no longer do their work fail with `KVF_ERR_INVALID_STATE`.
///
/// @return `KVF_ERR_INVALID_HANDLE` if it was destroyed before, which is harmless.
#[unsafe(no_mangle)]
pub extern "C" fn kvf_agent_destroy(agent: kvf_agent) -> kvf_status {
    guard(|| {
        let removed = AGENTS.remove(agent.id)?;
        let result = removed.close();
        transfer::release_all_of(agent.id);
        result
    })
}

/// The agent's name. Any thread.
///
/// @param name  Receives text; free with `kvf_buffer_free()`.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_name(agent: kvf_agent, name: *mut kvf_buffer) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let name = unsafe { out(name, "name") }?;
        name.write(output::buffer(AGENTS.get(agent.id)?.name()));
        Ok(())
    })
}

/// Names of the plugins that could become backends. Any thread.
///
/// @param plugins  Free with `kvf_string_list_free()`.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_plugins(
    agent: kvf_agent,
    plugins: *mut kvf_string_list,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let plugins = unsafe { out(plugins, "plugins") }?;
        plugins.write(output::strings(AGENTS.get(agent.id)?.plugins()?));
        Ok(())
    })
}

/// What a plugin offers before it becomes a backend. Any thread.
///
/// @param params     Parameters with their defaults; free with `kvf_param_list_free()`. May be
///                   NULL.
/// @param mem_kinds  Bit `1 << KVF_MEM_…` for each kind that it serves. May be NULL.
/// @return `KVF_ERR_NOT_FOUND` for an unknown plugin.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_plugin_info(
    agent: kvf_agent,
    plugin: *const c_char,
    params: *mut kvf_param_list,
    mem_kinds: *mut u32,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (plugin, params, mem_kinds) = unsafe {
            (
                text(plugin, "plugin")?,
                opt_out(params, "params")?,
                opt_out(mem_kinds, "mem_kinds")?,
            )
        };
        write_info(
            AGENTS.get(agent.id)?.plugin_info(plugin)?,
            params,
            mem_kinds,
        );
        Ok(())
    })
}

/// Makes a backend of a plugin. Any thread.
///
/// @return `KVF_ERR_NOT_FOUND` for an unknown plugin, `KVF_ERR_NOT_ALLOWED` if there is one
///         already.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_create_backend(
    agent: kvf_agent,
    backend: *const kvf_backend,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let backends = unsafe { slice(backend, 1, "backend") }?;
        // SAFETY: the caller's contract; `slice` gave the one element that was asked for.
        let (name, params) = unsafe { backend_config(&backends[0]) }?;
        AGENTS.get(agent.id)?.create_backend(&name, &params)
    })
}

/// Names of the backends that exist, in the order of their creation. Any thread.
///
/// @param backends  Free with `kvf_string_list_free()`.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_backends(
    agent: kvf_agent,
    backends: *mut kvf_string_list,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let backends = unsafe { out(backends, "backends") }?;
        backends.write(output::strings(AGENTS.get(agent.id)?.backends()?));
        Ok(())
    })
}

/// What a backend offers, now that it exists. Outputs as for `kvf_agent_plugin_info()`. Any
/// thread.
///
/// @return `KVF_ERR_NOT_FOUND` for an unknown backend.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_backend_info(
    agent: kvf_agent,
    backend: *const c_char,
    params: *mut kvf_param_list,
    mem_kinds: *mut u32,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (backend, params, mem_kinds) = unsafe {
            (
                text(backend, "backend")?,
                opt_out(params, "params")?,
                opt_out(mem_kinds, "mem_kinds")?,
            )
        };
        write_info(
            AGENTS.get(agent.id)?.backend_info(backend)?,
            params,
            mem_kinds,
        );
        Ok(())
    })
}

/// Registers memory: makes ranges available for transfers by this agent and, through its
/// metadata, to its peers. All or none. The memory stays the caller's and must stay mapped until
/// it is deregistered or the agent is destroyed. Any thread.
///
/// @param mem_kind  One of `KVF_MEM_…`, for all ranges.
/// @param descs     The ranges; at least one.
/// @param backends  Names of the backends to register with; 0 of them is all that serve the kind.
/// @return `KVF_ERR_INVALID_ARGUMENT` for a range that is empty, wraps around, or (host memory)
///         is not mapped; `KVF_ERR_NO_BACKEND` if no backend serves the kind.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_register(
    agent: kvf_agent,
    mem_kind: u32,
    descs: *const kvf_reg_desc,
    descs_len: usize,
    backends: *const *const c_char,
    backends_len: usize,
) -> kvf_status {
    guard(|| {
        let kind = MemKind::from_code(mem_kind)?;
        // SAFETY: the caller's contract.
        let (descs, backends) = unsafe {
            (
                reg_descs(descs, descs_len)?,
                texts(backends, backends_len, "backends")?,
            )
        };
        AGENTS.get(agent.id)?.register(kind, &descs, &backends)
    })
}

/// Takes registered ranges back; arguments as they were for `kvf_agent_register()`. Peers that
/// hold older metadata are not told: see to it that they are done. Any thread.
///
/// @return `KVF_ERR_NOT_FOUND` or `KVF_ERR_NOT_REGISTERED` for a range that is not registered;
///         `KVF_ERR_BUSY` if transfers of this agent in these ranges have not come to rest within
///         the drain timeout: they are still registered then, call again.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_deregister(
    agent: kvf_agent,
    mem_kind: u32,
    descs: *const kvf_reg_desc,
    descs_len: usize,
    backends: *const *const c_char,
    backends_len: usize,
) -> kvf_status {
    guard(|| {
        let kind = MemKind::from_code(mem_kind)?;
        // SAFETY: the caller's contract.
        let (descs, backends) = unsafe {
            (
                reg_descs(descs, descs_len)?,
                texts(backends, backends_len, "backends")?,
            )
        };
        AGENTS.get(agent.id)?.deregister(kind, &descs, &backends)
    })
}

/// Asks a backend what it knows about ranges that need not be registered (the size of a file,
/// say). Any thread.
///
/// @param results  One for each range; free with `kvf_query_list_free()`.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_query_memory(
    agent: kvf_agent,
    mem_kind: u32,
    descs: *const kvf_reg_desc,
    descs_len: usize,
    backend: *const c_char,
    results: *mut kvf_query_list,
) -> kvf_status {
    guard(|| {
        let kind = MemKind::from_code(mem_kind)?;
        // SAFETY: the caller's contract.
        let (descs, backend, results) = unsafe {
            (
                reg_descs(descs, descs_len)?,
                text(backend, "backend")?,
                out(results, "results")?,
            )
        };
        let found = AGENTS.get(agent.id)?.query_memory(kind, &descs, backend)?;
        results.write(output::query_results(found));
        Ok(())
    })
}

/// This agent's metadata: all that a peer needs to reach it and the memory registered so far.
/// Send it to peers by any way (`kvf_side_channel_…` is one); they pass it to
/// `kvf_agent_add_remote()`. Any thread.
///
/// @param metadata  Bytes, not text; free with `kvf_buffer_free()`.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_metadata(
    agent: kvf_agent,
    metadata: *mut kvf_buffer,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let metadata = unsafe { out(metadata, "metadata") }?;
        metadata.write(output::buffer(AGENTS.get(agent.id)?.metadata()?));
        Ok(())
    })
}

/// Metadata of some registered ranges only. With `connection_info` 1 it says how to connect, too;
/// then there may be 0 ranges. Peers add it to what they know. Any thread.
///
/// @param metadata  Bytes, not text; free with `kvf_buffer_free()`.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_partial_metadata(
    agent: kvf_agent,
    mem_kind: u32,
    descs: *const kvf_reg_desc,
    descs_len: usize,
    connection_info: u8,
    backends: *const *const c_char,
    backends_len: usize,
    metadata: *mut kvf_buffer,
) -> kvf_status {
    guard(|| {
        let kind = MemKind::from_code(mem_kind)?;
        let connection_info = flag(connection_info, "connection_info")?;
        // SAFETY: the caller's contract.
        let (descs, backends, metadata) = unsafe {
            (
                reg_descs(descs, descs_len)?,
                texts(backends, backends_len, "backends")?,
                out(metadata, "metadata")?,
            )
        };
        let agent = AGENTS.get(agent.id)?;
        let bytes = agent.partial_metadata(kind, &descs, connection_info, &backends)?;
        metadata.write(output::buffer(bytes));
        Ok(())
    })
}

/// Loads a peer's metadata. From here on transfers and notifications can go to that peer. Any
/// thread.
///
/// @param metadata  As the peer got it from `kvf_agent_metadata()`; borrowed.
/// @param name      Receives the peer's name; free with `kvf_buffer_free()`. May be NULL.
/// @return `KVF_ERR_PEER_INCOMPATIBLE` for bytes that are not such metadata, truncated ones, or a
///         peer that this transport cannot reach. `KVF_ERR_INVALID_STATE` (`nixl`) if a peer of
///         this name is known and this is another: call `kvf_agent_remove_remote()` first.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_add_remote(
    agent: kvf_agent,
    metadata: *const u8,
    metadata_len: usize,
    name: *mut kvf_buffer,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (metadata, name) = unsafe {
            (
                bounded(metadata, metadata_len, MAX_METADATA, "metadata")?,
                opt_out(name, "name")?,
            )
        };
        let added = AGENTS.get(agent.id)?.add_remote(metadata)?;
        if let Some(name) = name {
            name.write(output::buffer(added));
        }
        Ok(())
    })
}

/// Forgets a peer and disconnects from it. Transfers with it fail. Any thread.
///
/// @return `KVF_ERR_NOT_FOUND` for an unknown peer; `KVF_ERR_BUSY` if its transfers have not come
///         to rest within the drain timeout: it is still known then, call again.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_remove_remote(
    agent: kvf_agent,
    remote: *const c_char,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let remote = unsafe { text(remote, "remote") }?;
        AGENTS.get(agent.id)?.remove_remote(remote)
    })
}

/// Whether metadata of a peer is loaded and covers the ranges (with 0 ranges: is loaded). Any
/// thread.
///
/// @param ready  Receives 1 or 0.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_check_remote(
    agent: kvf_agent,
    remote: *const c_char,
    mem_kind: u32,
    descs: *const kvf_mem_desc,
    descs_len: usize,
    ready: *mut u8,
) -> kvf_status {
    guard(|| {
        let kind = MemKind::from_code(mem_kind)?;
        // SAFETY: the caller's contract.
        let (remote, descs, ready) = unsafe {
            (
                text(remote, "remote")?,
                mem_descs(descs, descs_len, "descs")?,
                out(ready, "ready")?,
            )
        };
        let known = AGENTS.get(agent.id)?.check_remote(remote, kind, descs)?;
        ready.write(known.into());
        Ok(())
    })
}

/// Connects to a peer now, so that the first transfer does not have to. Any thread.
///
/// @param backends  Backends to connect; 0 of them is all that reach the peer.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_connect(
    agent: kvf_agent,
    remote: *const c_char,
    backends: *const *const c_char,
    backends_len: usize,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (remote, backends) = unsafe {
            (
                text(remote, "remote")?,
                texts(backends, backends_len, "backends")?,
            )
        };
        AGENTS.get(agent.id)?.connect(remote, &backends)
    })
}

/// Sends this agent's metadata to the listener of a peer (`nixl`: one created with `listen`), or,
/// with `host` NULL, to the central store that NIXL is configured for. Any thread.
///
/// @return `KVF_ERR_NOT_SUPPORTED` by `local`: use a side channel.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_send_metadata(
    agent: kvf_agent,
    host: *const c_char,
    port: u16,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let to = unsafe { store(host, port) }?;
        AGENTS.get(agent.id)?.send_metadata(to)
    })
}

/// Sends part of this agent's metadata: as `kvf_agent_partial_metadata()` makes it, to where
/// `kvf_agent_send_metadata()` sends it. Any thread.
///
/// @param label  Name of the part in a central store, or NULL.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_send_partial_metadata(
    agent: kvf_agent,
    mem_kind: u32,
    descs: *const kvf_reg_desc,
    descs_len: usize,
    connection_info: u8,
    backends: *const *const c_char,
    backends_len: usize,
    host: *const c_char,
    port: u16,
    label: *const c_char,
) -> kvf_status {
    guard(|| {
        let kind = MemKind::from_code(mem_kind)?;
        let connection_info = flag(connection_info, "connection_info")?;
        // SAFETY: the caller's contract.
        let (descs, backends, to, label) = unsafe {
            (
                reg_descs(descs, descs_len)?,
                texts(backends, backends_len, "backends")?,
                store(host, port)?,
                opt_text(label, "label")?,
            )
        };
        let agent = AGENTS.get(agent.id)?;
        agent.send_partial_metadata(kind, &descs, connection_info, &backends, to, label)
    })
}

/// Asks for a peer's metadata, from its listener or, with `host` NULL, from the central store. It
/// is loaded when it arrives: ask `kvf_agent_check_remote()`. Any thread.
///
/// @param label  Name of the part in a central store, or NULL.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_fetch_metadata(
    agent: kvf_agent,
    remote: *const c_char,
    host: *const c_char,
    port: u16,
    label: *const c_char,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (remote, from, label) = unsafe {
            (
                text(remote, "remote")?,
                store(host, port)?,
                opt_text(label, "label")?,
            )
        };
        AGENTS.get(agent.id)?.fetch_metadata(remote, from, label)
    })
}

/// Tells a peer's listener or, with `host` NULL, the central store that this agent's metadata is
/// void. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_invalidate_metadata(
    agent: kvf_agent,
    host: *const c_char,
    port: u16,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let at = unsafe { store(host, port) }?;
        AGENTS.get(agent.id)?.invalidate_metadata(at)
    })
}

/// Sends a message to a peer, not bound to a transfer. Any thread; messages of one thread to one
/// peer arrive in order.
///
/// @param payload  Any bytes, at most 16 MiB; borrowed.
/// @param backend  Backend that carries it; NULL is any that can.
/// @return `KVF_ERR_NOT_FOUND` for an unknown peer, `KVF_ERR_PEER_LOST` for one that is gone.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_notify(
    agent: kvf_agent,
    remote: *const c_char,
    payload: *const u8,
    payload_len: usize,
    backend: *const c_char,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (remote, payload, backend) = unsafe {
            (
                text(remote, "remote")?,
                bounded(payload, payload_len, MAX_NOTIFICATION, "payload")?,
                opt_text(backend, "backend")?,
            )
        };
        AGENTS.get(agent.id)?.notify(remote, payload, backend)
    })
}

/// Takes all messages that have arrived. Never blocks. With `KVF_PROGRESS_CALLER` this is also
/// what answers peers: call it often. Any thread.
///
/// @param backends       Backends to look at; 0 of them is all.
/// @param notifications  Free with `kvf_notification_list_free()` (not needed when `len` is 0).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_notifications(
    agent: kvf_agent,
    backends: *const *const c_char,
    backends_len: usize,
    notifications: *mut kvf_notification_list,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (backends, notifications) = unsafe {
            (
                texts(backends, backends_len, "backends")?,
                out(notifications, "notifications")?,
            )
        };
        let all = AGENTS.get(agent.id)?.notifications(&backends)?;
        notifications.write(output::notifications(all));
        Ok(())
    })
}

/// How many messages wait to be taken. Never blocks, and answers peers as
/// `kvf_agent_notifications()` does: the cheaper call for a loop that mostly finds none. Any
/// thread.
///
/// @param count  Receives their number.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_notification_count(
    agent: kvf_agent,
    count: *mut usize,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let count = unsafe { out(count, "count") }?;
        count.write(AGENTS.get(agent.id)?.notification_count()?);
        Ok(())
    })
}

/// Takes one message, the first from `from` (NULL: from anybody) that begins with `prefix`; waits
/// for it if need be. All others stay for later calls. Any thread.
///
/// @param timeout_ms     How long to wait; 0 only looks.
/// @param notifications  Receives a list of one; free with `kvf_notification_list_free()`.
/// @return `KVF_ERR_TIMEOUT` if there is none in time.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_agent_wait_notification(
    agent: kvf_agent,
    from: *const c_char,
    prefix: *const u8,
    prefix_len: usize,
    timeout_ms: u64,
    notifications: *mut kvf_notification_list,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (from, prefix, notifications) = unsafe {
            (
                opt_text(from, "from")?,
                bounded(prefix, prefix_len, MAX_NOTIFICATION, "prefix")?,
                out(notifications, "notifications")?,
            )
        };
        let filter = NotificationFilter { from, prefix };
        let agent = AGENTS.get(agent.id)?;
        let found = agent.wait_notification(filter, Duration::from_millis(timeout_ms))?;
        notifications.write(output::notifications(vec![found]));
        Ok(())
    })
}

/// # Safety
/// `options` is not null; it and what it points to are valid.
unsafe fn agent_options(ptr: *const kvf_agent_options) -> Result<AgentOptions> {
    // SAFETY: by contract, here and below.
    let o = unsafe { options(ptr, "options") }?;
    if o.reserved != [0; 3] {
        return Err(Error::invalid("options.reserved is not zero"));
    }
    // SAFETY: by contract.
    let (name, transport, nixl_library, nixl_plugin_dir, list) = unsafe {
        (
            text(o.name, "options.name")?,
            text(o.transport, "options.transport (\"nixl\" or \"local\")")?,
            opt_text(o.nixl_library, "options.nixl_library")?,
            opt_text(o.nixl_plugin_dir, "options.nixl_plugin_dir")?,
            bounded(o.backends, o.backends_len, MAX_NAMES, "options.backends")?,
        )
    };
    let backends = list
        .iter()
        // SAFETY: by contract.
        .map(|b| unsafe { backend_config(b) })
        .collect::<Result<Vec<_>>>()?;
    let no_default = flag(o.no_default_backend, "options.no_default_backend")?;
    Ok(AgentOptions {
        name: name.to_owned(),
        transport: transport.to_owned(),
        nixl_library: nixl_library.map(str::to_owned),
        nixl_plugin_dir: nixl_plugin_dir.map(str::to_owned),
        backends: (no_default || !backends.is_empty()).then_some(backends),
        progress: progress(o.progress)?,
        progress_delay: nonzero(o.progress_delay_us).map(Duration::from_micros),
        listen_port: flag(o.listen, "options.listen")?.then_some(o.listen_port),
        worker_threads: o.worker_threads,
        sync_mode: sync_mode(o.sync_mode)?,
        telemetry: flag(o.telemetry, "options.telemetry")?,
        copy_threads: o.copy_threads,
        drain_timeout: nonzero(o.drain_timeout_ms).map(|ms| Duration::from_millis(ms.into())),
    })
}

fn progress(code: u32) -> Result<Progress> {
    match code {
        KVF_PROGRESS_THREAD => Ok(Progress::Thread),
        KVF_PROGRESS_CALLER => Ok(Progress::Caller),
        KVF_PROGRESS_SPIN => Ok(Progress::Spin),
        _ => Err(Error::invalid(format!(
            "options.progress {code} is not a KVF_PROGRESS_ value"
        ))),
    }
}

fn sync_mode(code: u32) -> Result<SyncMode> {
    match code {
        KVF_SYNC_DEFAULT => Ok(SyncMode::Default),
        KVF_SYNC_NONE => Ok(SyncMode::None),
        KVF_SYNC_STRICT => Ok(SyncMode::Strict),
        KVF_SYNC_RW => Ok(SyncMode::ReadWrite),
        _ => Err(Error::invalid(format!(
            "options.sync_mode {code} is not a KVF_SYNC_ value"
        ))),
    }
}

/// # Safety
/// The pointers in it are valid.
unsafe fn backend_config(b: &kvf_backend) -> Result<(String, Params)> {
    // SAFETY: by contract, here and below.
    let (name, pairs) = unsafe {
        (
            text(b.name, "backend.name")?,
            bounded(b.params, b.params_len, MAX_NAMES, "backend.params")?,
        )
    };
    let params = pairs
        .iter()
        .map(|p| {
            // SAFETY: by contract.
            let (key, value) =
                unsafe { (text(p.key, "param.key")?, text(p.value, "param.value")?) };
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect::<Result<Params>>()?;
    Ok((name.to_owned(), params))
}

/// # Safety
/// As for [`text`].
unsafe fn store<'a>(host: *const c_char, port: u16) -> Result<MetadataStore<'a>> {
    // SAFETY: by contract.
    Ok(match unsafe { opt_text(host, "host") }? {
        Some(host) => MetadataStore::Address { host, port },
        None => MetadataStore::Central,
    })
}

fn write_info(
    info: BackendInfo,
    params: Option<&mut MaybeUninit<kvf_param_list>>,
    mem_kinds: Option<&mut MaybeUninit<u32>>,
) {
    if let Some(mem_kinds) = mem_kinds {
        mem_kinds.write(info.kinds.iter().fold(0, |mask, &k| mask | 1 << k as u32));
    }
    if let Some(params) = params {
        params.write(output::params(info.params));
    }
}
