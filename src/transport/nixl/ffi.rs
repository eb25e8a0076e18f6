//! The functions of NIXL's C API that kvferry calls: declarations only.
//!
//! The symbols come from the crate `nixl-sys`, whose stubs open `libnixl_capi.so` at run time, and
//! its `wrapper.h` is the contract. Neither of the crate's own layers can be used: its raw bindings
//! are private, and its safe layer lets a prepared list outlive its agent, takes a write lock round
//! posts and polls alike, makes agent names and the metadata of registrations unreachable, and
//! panics on names with a NUL. A test below holds every declaration, layout and constant of this
//! file against `wrapper.h`.
//!
//! A stub aborts the process when the library or the symbol is missing, so nothing here may be
//! called before [`super::library::load`] has found all of [`SYMBOLS`].
//!
//! The C side copies what it is given before it returns and catches C++ exceptions. What it hands
//! out as `void **` or `char **` comes from `malloc` and is freed with `free`.

use std::ffi::{c_char, c_int, c_uint, c_void};

// Keeps the crate, and with it the stubs, in the link.
extern crate nixl_sys as _;

/// What a call returns; the constants below.
pub type Code = c_int;

pub const SUCCESS: Code = 0;
pub const IN_PROG: Code = 1;
pub const INVALID_PARAM: Code = -1;
pub const NO_TELEMETRY: Code = -5;
pub const NOT_FOUND: Code = -6;

pub const SYNC_NONE: c_int = 0;
pub const SYNC_STRICT: c_int = 1;
pub const SYNC_RW: c_int = 2;

/// `nixl_capi_agent_config_t`.
#[repr(C)]
pub struct AgentConfig {
    pub enable_prog_thread: bool,
    pub enable_listen_thread: bool,
    pub listen_port: c_int,
    pub thread_sync: c_int,
    pub num_workers: c_uint,
    pub pthr_delay_us: u64,
    pub lthr_delay_us: u64,
    pub capture_telemetry: bool,
}

/// `struct nixl_capi_xfer_telemetry_s`.
#[repr(C)]
#[derive(Default)]
pub struct XferTelemetry {
    pub start_time_us: u64,
    pub post_duration_us: u64,
    pub xfer_duration_us: u64,
    pub total_bytes: u64,
    pub desc_count: u64,
}

/// One opaque type per object of the C API, so that they cannot be mixed up.
macro_rules! opaque {
    ($($name:ident = $target:ident),* $(,)?) => {
        $(
            #[repr(C)]
            pub struct $target { _private: [u8; 0] }
            pub type $name = *mut $target;
        )*
    };
}

opaque! {
    Agent = AgentObject,
    Params = ParamsObject,
    ParamIter = ParamIterObject,
    MemList = MemListObject,
    StringList = StringListObject,
    Backend = BackendObject,
    OptArgs = OptArgsObject,
    XferDlist = XferDlistObject,
    RegDlist = RegDlistObject,
    DlistHandle = DlistHandleObject,
    XferReq = XferReqObject,
    NotifMap = NotifMapObject,
    QueryRespList = QueryRespListObject,
}

/// Declares the functions, and lists them for the check at load time and for the test.
macro_rules! functions {
    ($(fn $name:ident($($arg:ident: $ty:ty),* $(,)?);)*) => {
        unsafe extern "C" {
            $(pub fn $name($($arg: $ty),*) -> Code;)*
        }
        /// Every symbol that is called.
        pub const SYMBOLS: &[&std::ffi::CStr] = &[
            // SAFETY: the literal ends with the only NUL in it; an identifier has none.
            $(unsafe {
                std::ffi::CStr::from_bytes_with_nul_unchecked(
                    concat!(stringify!($name), "\0").as_bytes(),
                )
            }),*
        ];
        #[cfg(test)]
        const SIGNATURES: &[(&str, &[&str])] =
            &[$((stringify!($name), &[$(stringify!($ty)),*])),*];
    };
}

functions! {
    fn nixl_capi_create_configured_agent(name: *const c_char, cfg: *const AgentConfig, agent: *mut Agent);
    fn nixl_capi_destroy_agent(agent: Agent);

    fn nixl_capi_get_available_plugins(agent: Agent, plugins: *mut StringList);
    fn nixl_capi_destroy_string_list(list: StringList);
    fn nixl_capi_string_list_size(list: StringList, size: *mut usize);
    fn nixl_capi_string_list_get(list: StringList, index: usize, string: *mut *const c_char);
    fn nixl_capi_get_plugin_params(agent: Agent, plugin: *const c_char, mems: *mut MemList, params: *mut Params);
    fn nixl_capi_create_backend(agent: Agent, plugin: *const c_char, params: Params, backend: *mut Backend);
    fn nixl_capi_destroy_backend(backend: Backend);
    fn nixl_capi_get_backend_params(agent: Agent, backend: Backend, mems: *mut MemList, params: *mut Params);

    fn nixl_capi_create_params(params: *mut Params);
    fn nixl_capi_params_add(params: Params, key: *const c_char, value: *const c_char);
    fn nixl_capi_params_is_empty(params: Params, is_empty: *mut bool);
    fn nixl_capi_destroy_params(params: Params);
    fn nixl_capi_params_create_iterator(params: Params, iter: *mut ParamIter);
    fn nixl_capi_params_iterator_next(iter: ParamIter, key: *mut *const c_char, value: *mut *const c_char, has_next: *mut bool);
    fn nixl_capi_params_destroy_iterator(iter: ParamIter);

    fn nixl_capi_mem_list_size(list: MemList, size: *mut usize);
    fn nixl_capi_mem_list_get(list: MemList, index: usize, kind: *mut c_int);
    fn nixl_capi_destroy_mem_list(list: MemList);

    fn nixl_capi_create_opt_args(args: *mut OptArgs);
    fn nixl_capi_destroy_opt_args(args: OptArgs);
    fn nixl_capi_opt_args_add_backend(args: OptArgs, backend: Backend);
    fn nixl_capi_opt_args_set_notif_msg(args: OptArgs, data: *const c_void, len: usize);
    fn nixl_capi_opt_args_set_has_notif(args: OptArgs, has_notif: bool);
    fn nixl_capi_opt_args_set_skip_desc_merge(args: OptArgs, skip: bool);
    fn nixl_capi_opt_args_set_ip_addr(args: OptArgs, ip: *const c_char);
    fn nixl_capi_opt_args_set_port(args: OptArgs, port: u16);

    fn nixl_capi_create_reg_dlist(kind: c_int, list: *mut RegDlist);
    fn nixl_capi_destroy_reg_dlist(list: RegDlist);
    fn nixl_capi_reg_dlist_add_desc(list: RegDlist, addr: usize, len: usize, device: u64, meta: *const c_void, meta_len: usize);
    fn nixl_capi_register_mem(agent: Agent, list: RegDlist, args: OptArgs);
    fn nixl_capi_deregister_mem(agent: Agent, list: RegDlist, args: OptArgs);

    fn nixl_capi_create_query_resp_list(list: *mut QueryRespList);
    fn nixl_capi_destroy_query_resp_list(list: QueryRespList);
    fn nixl_capi_query_resp_list_size(list: QueryRespList, size: *mut usize);
    fn nixl_capi_query_resp_list_has_value(list: QueryRespList, index: usize, has_value: *mut bool);
    fn nixl_capi_query_resp_list_get_params(list: QueryRespList, index: usize, params: *mut Params);
    fn nixl_capi_query_mem(agent: Agent, descs: RegDlist, responses: QueryRespList, args: OptArgs);

    fn nixl_capi_get_local_md(agent: Agent, data: *mut *mut c_void, len: *mut usize);
    fn nixl_capi_get_local_partial_md(agent: Agent, descs: RegDlist, data: *mut *mut c_void, len: *mut usize, args: OptArgs);
    fn nixl_capi_load_remote_md(agent: Agent, data: *const c_void, len: usize, name: *mut *mut c_char);
    fn nixl_capi_invalidate_remote_md(agent: Agent, remote: *const c_char);
    fn nixl_capi_check_remote_md(agent: Agent, remote: *const c_char, descs: XferDlist);
    fn nixl_capi_agent_make_connection(agent: Agent, remote: *const c_char, args: OptArgs);
    fn nixl_capi_send_local_md(agent: Agent, args: OptArgs);
    fn nixl_capi_send_local_partial_md(agent: Agent, descs: RegDlist, args: OptArgs);
    fn nixl_capi_fetch_remote_md(agent: Agent, remote: *const c_char, args: OptArgs);
    fn nixl_capi_invalidate_local_md(agent: Agent, args: OptArgs);

    fn nixl_capi_create_xfer_dlist(kind: c_int, list: *mut XferDlist);
    fn nixl_capi_destroy_xfer_dlist(list: XferDlist);
    fn nixl_capi_xfer_dlist_add_desc(list: XferDlist, addr: usize, len: usize, device: u64);
    fn nixl_capi_prep_xfer_dlist(agent: Agent, agent_name: *const c_char, descs: XferDlist, handle: *mut DlistHandle, args: OptArgs);
    fn nixl_capi_release_xfer_dlist_handle(agent: Agent, handle: DlistHandle);

    fn nixl_capi_make_xfer_req(
        agent: Agent, op: c_int,
        local: DlistHandle, local_indices: *const c_int, local_count: usize,
        remote: DlistHandle, remote_indices: *const c_int, remote_count: usize,
        req: *mut XferReq, args: OptArgs,
    );
    fn nixl_capi_create_xfer_req(agent: Agent, op: c_int, local: XferDlist, remote: XferDlist, remote_agent: *const c_char, req: *mut XferReq, args: OptArgs);
    fn nixl_capi_post_xfer_req(agent: Agent, req: XferReq, args: OptArgs);
    fn nixl_capi_get_xfer_status(agent: Agent, req: XferReq);
    fn nixl_capi_release_xfer_req(agent: Agent, req: XferReq);
    fn nixl_capi_destroy_xfer_req(req: XferReq);
    fn nixl_capi_query_xfer_backend(agent: Agent, req: XferReq, backend: *mut Backend);
    fn nixl_capi_estimate_xfer_cost(agent: Agent, req: XferReq, args: OptArgs, duration_us: *mut i64, margin_us: *mut i64, method: *mut c_int);
    fn nixl_capi_get_xfer_telemetry(agent: Agent, req: XferReq, telemetry: *mut XferTelemetry);

    fn nixl_capi_gen_notif(agent: Agent, remote: *const c_char, data: *const c_void, len: usize, args: OptArgs);
    fn nixl_capi_get_notifs(agent: Agent, map: NotifMap, args: OptArgs);
    fn nixl_capi_create_notif_map(map: *mut NotifMap);
    fn nixl_capi_destroy_notif_map(map: NotifMap);
    fn nixl_capi_notif_map_size(map: NotifMap, size: *mut usize);
    fn nixl_capi_notif_map_get_agent_at(map: NotifMap, index: usize, name: *mut *const c_char);
    fn nixl_capi_notif_map_get_notifs_size(map: NotifMap, name: *const c_char, size: *mut usize);
    fn nixl_capi_notif_map_get_notif(map: NotifMap, name: *const c_char, index: usize, data: *mut *const c_void, len: *mut usize);
    fn nixl_capi_notif_map_clear(map: NotifMap);
}

#[cfg(test)]
#[path = "ffi_test.rs"]
mod contract;
