"""The declarations of ``kvferry.h`` for ctypes, and nothing else.

``tests/python/test_header.py`` compares every constant, struct field and function here with the
header, so that neither can change without the other.

Handles (``kvf_agent`` and the others) are structs with one 64-bit integer, passed by value. On
x86-64 (System V) and AArch64 (AAPCS64) such a struct travels in one integer register, exactly like
a ``uint64_t``, so they are declared as ``c_uint64`` here, which ctypes converts several times faster
than a struct. Pointers to arrays are declared as ``c_void_p``: that takes an address as an int,
bytes, ``byref(...)`` or None, which is what lets numpy arrays cross without a copy.

A call through ctypes releases the GIL.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char_p,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
)

from . import _library

# ---------------------------------------------------------------------------- constants

CONSTANTS: dict[str, int] = {
    "KVF_ABI_VERSION": _library.ABI_VERSION,
    "KVF_LOG_OFF": 0,
    "KVF_LOG_ERROR": 1,
    "KVF_LOG_WARN": 2,
    "KVF_LOG_INFO": 3,
    "KVF_LOG_DEBUG": 4,
    "KVF_LOG_TRACE": 5,
    "KVF_MEM_DRAM": 0,
    "KVF_MEM_VRAM": 1,
    "KVF_MEM_BLOCK": 2,
    "KVF_MEM_OBJECT": 3,
    "KVF_MEM_FILE": 4,
    "KVF_PROGRESS_THREAD": 0,
    "KVF_PROGRESS_CALLER": 1,
    "KVF_PROGRESS_SPIN": 2,
    "KVF_SYNC_DEFAULT": 0,
    "KVF_SYNC_NONE": 1,
    "KVF_SYNC_STRICT": 2,
    "KVF_SYNC_RW": 3,
    "KVF_OP_READ": 0,
    "KVF_OP_WRITE": 1,
    "KVF_TRANSFER_DONE": 0,
    "KVF_TRANSFER_IN_PROGRESS": 1,
    "KVF_OK": 0,
    "KVF_ERR_INVALID_ARGUMENT": -1,
    "KVF_ERR_INVALID_HANDLE": -2,
    "KVF_ERR_INVALID_STATE": -3,
    "KVF_ERR_NOT_FOUND": -4,
    "KVF_ERR_BACKEND": -5,
    "KVF_ERR_NO_BACKEND": -6,
    "KVF_ERR_TIMEOUT": -7,
    "KVF_ERR_PEER_LOST": -8,
    "KVF_ERR_PEER_INCOMPATIBLE": -9,
    "KVF_ERR_NOT_REGISTERED": -10,
    "KVF_ERR_PERMISSION_DENIED": -11,
    "KVF_ERR_BUSY": -12,
    "KVF_ERR_NOT_SUPPORTED": -13,
    "KVF_ERR_CANCELED": -14,
    "KVF_ERR_MISMATCH": -15,
    "KVF_ERR_NOT_POSTED": -16,
    "KVF_ERR_REPOST_ACTIVE": -17,
    "KVF_ERR_NO_TELEMETRY": -18,
    "KVF_ERR_NOT_ALLOWED": -19,
    "KVF_ERR_IO": -20,
    "KVF_ERR_RESOURCE_EXHAUSTED": -21,
    "KVF_ERR_INTERNAL": -22,
}

# ---------------------------------------------------------------------------- structs


class kvf_buffer(Structure):
    _fields_ = [("data", c_void_p), ("len", c_size_t)]


class kvf_string_list(Structure):
    _fields_ = [("items", POINTER(c_char_p)), ("len", c_size_t)]


class kvf_param(Structure):
    _fields_ = [("key", c_char_p), ("value", c_char_p)]


class kvf_param_list(Structure):
    _fields_ = [("items", POINTER(kvf_param)), ("len", c_size_t)]


class kvf_notification(Structure):
    # `from` is a Python keyword: read it with getattr(), or by `sender`.
    _fields_ = [("from", c_char_p), ("payload", c_void_p), ("payload_len", c_size_t)]


class kvf_notification_list(Structure):
    _fields_ = [("items", POINTER(kvf_notification)), ("len", c_size_t)]


class kvf_query_result(Structure):
    _fields_ = [("found", c_uint8), ("params", kvf_param_list)]


class kvf_query_list(Structure):
    _fields_ = [("items", POINTER(kvf_query_result)), ("len", c_size_t)]


class kvf_backend(Structure):
    _fields_ = [("name", c_char_p), ("params", POINTER(kvf_param)), ("params_len", c_size_t)]


class kvf_agent_options(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("progress", c_uint32),
        ("name", c_char_p),
        ("transport", c_char_p),
        ("nixl_library", c_char_p),
        ("nixl_plugin_dir", c_char_p),
        ("backends", POINTER(kvf_backend)),
        ("backends_len", c_size_t),
        ("progress_delay_us", c_uint64),
        ("sync_mode", c_uint32),
        ("worker_threads", c_uint32),
        ("copy_threads", c_uint32),
        ("drain_timeout_ms", c_uint32),
        ("listen_port", c_uint16),
        ("listen", c_uint8),
        ("telemetry", c_uint8),
        ("no_default_backend", c_uint8),
        ("reserved", c_uint8 * 3),
    ]


class kvf_reg_desc(Structure):
    _fields_ = [
        ("addr", c_uint64),
        ("len", c_uint64),
        ("device", c_uint64),
        ("meta", c_void_p),
        ("meta_len", c_size_t),
    ]


class kvf_mem_desc(Structure):
    _fields_ = [("addr", c_uint64), ("len", c_uint64), ("device", c_uint64)]


class kvf_strided_desc(Structure):
    _fields_ = [
        ("addr", c_uint64),
        ("len", c_uint64),
        ("device", c_uint64),
        ("stride", c_uint64),
        ("count", c_uint64),
    ]


class kvf_transfer_options(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("skip_merge", c_uint8),
        ("has_notification", c_uint8),
        ("reserved", c_uint8 * 2),
        # c_char_p instead of a pointer to bytes: it keeps the Python object alive.
        ("notification", c_char_p),
        ("notification_len", c_size_t),
        ("backends", POINTER(c_char_p)),
        ("backends_len", c_size_t),
    ]


class kvf_transfer_telemetry(Structure):
    _fields_ = [
        ("start_time_us", c_uint64),
        ("post_duration_us", c_uint64),
        ("transfer_duration_us", c_uint64),
        ("total_bytes", c_uint64),
        ("descriptors", c_uint64),
    ]


class kvf_transfer_cost(Structure):
    _fields_ = [
        ("duration_us", c_int64),
        ("error_margin_us", c_int64),
        ("method", c_uint32),
        ("reserved", c_uint32),
    ]


class kvf_side_channel_options(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("max_connections", c_uint32),
        ("kind", c_char_p),
        ("host", c_char_p),
        ("max_message_bytes", c_uint64),
        ("timeout_ms", c_uint64),
        ("port", c_uint16),
        ("reserved", c_uint8 * 6),
    ]


#: Handles: one 64-bit integer each, see the top of this file.
HANDLES = ("kvf_agent", "kvf_desc_list", "kvf_transfer", "kvf_side_channel")

kvf_log_fn = CFUNCTYPE(None, c_void_p, c_int32, c_char_p, c_char_p)
kvf_free_fn = CFUNCTYPE(None, c_void_p)

# ---------------------------------------------------------------------------- functions

_HANDLE = c_uint64
_ARRAY = c_void_p  # pointer to the first of several; the next argument is their number
_BYTES = c_void_p  # pointer to bytes; the next argument is their number
_NAMES = POINTER(c_char_p)  # array of strings; the next argument is their number

#: name → (result type, argument types)
FUNCTIONS: dict[str, tuple[object, tuple[object, ...]]] = {
    "kvf_version": (c_char_p, ()),
    "kvf_abi_version": (c_uint32, ()),
    "kvf_status_name": (c_char_p, (c_int32,)),
    "kvf_last_error_message": (c_char_p, ()),
    "kvf_debug_panic": (c_int32, (c_char_p,)),
    "kvf_log_set_level": (c_int32, (c_int32,)),
    "kvf_log_set_callback": (c_int32, (kvf_log_fn, c_void_p, kvf_free_fn)),
    "kvf_buffer_free": (None, (POINTER(kvf_buffer),)),
    "kvf_string_list_free": (None, (POINTER(kvf_string_list),)),
    "kvf_param_list_free": (None, (POINTER(kvf_param_list),)),
    "kvf_notification_list_free": (None, (POINTER(kvf_notification_list),)),
    "kvf_query_list_free": (None, (POINTER(kvf_query_list),)),
    "kvf_agent_create": (c_int32, (POINTER(kvf_agent_options), POINTER(_HANDLE))),
    "kvf_agent_destroy": (c_int32, (_HANDLE,)),
    "kvf_agent_name": (c_int32, (_HANDLE, POINTER(kvf_buffer))),
    "kvf_agent_plugins": (c_int32, (_HANDLE, POINTER(kvf_string_list))),
    "kvf_agent_plugin_info": (
        c_int32,
        (_HANDLE, c_char_p, POINTER(kvf_param_list), POINTER(c_uint32)),
    ),
    "kvf_agent_create_backend": (c_int32, (_HANDLE, POINTER(kvf_backend))),
    "kvf_agent_backends": (c_int32, (_HANDLE, POINTER(kvf_string_list))),
    "kvf_agent_backend_info": (
        c_int32,
        (_HANDLE, c_char_p, POINTER(kvf_param_list), POINTER(c_uint32)),
    ),
    "kvf_agent_register": (c_int32, (_HANDLE, c_uint32, _ARRAY, c_size_t, _NAMES, c_size_t)),
    "kvf_agent_deregister": (c_int32, (_HANDLE, c_uint32, _ARRAY, c_size_t, _NAMES, c_size_t)),
    "kvf_agent_query_memory": (
        c_int32,
        (_HANDLE, c_uint32, _ARRAY, c_size_t, c_char_p, POINTER(kvf_query_list)),
    ),
    "kvf_agent_metadata": (c_int32, (_HANDLE, POINTER(kvf_buffer))),
    "kvf_agent_partial_metadata": (
        c_int32,
        (_HANDLE, c_uint32, _ARRAY, c_size_t, c_uint8, _NAMES, c_size_t, POINTER(kvf_buffer)),
    ),
    "kvf_agent_add_remote": (c_int32, (_HANDLE, _BYTES, c_size_t, POINTER(kvf_buffer))),
    "kvf_agent_remove_remote": (c_int32, (_HANDLE, c_char_p)),
    "kvf_agent_check_remote": (
        c_int32,
        (_HANDLE, c_char_p, c_uint32, _ARRAY, c_size_t, POINTER(c_uint8)),
    ),
    "kvf_agent_connect": (c_int32, (_HANDLE, c_char_p, _NAMES, c_size_t)),
    "kvf_agent_send_metadata": (c_int32, (_HANDLE, c_char_p, c_uint16)),
    "kvf_agent_send_partial_metadata": (
        c_int32,
        (
            _HANDLE, c_uint32, _ARRAY, c_size_t, c_uint8, _NAMES, c_size_t,
            c_char_p, c_uint16, c_char_p,
        ),
    ),
    "kvf_agent_fetch_metadata": (c_int32, (_HANDLE, c_char_p, c_char_p, c_uint16, c_char_p)),
    "kvf_agent_invalidate_metadata": (c_int32, (_HANDLE, c_char_p, c_uint16)),
    "kvf_agent_notify": (c_int32, (_HANDLE, c_char_p, _BYTES, c_size_t, c_char_p)),
    "kvf_agent_notifications": (
        c_int32,
        (_HANDLE, _NAMES, c_size_t, POINTER(kvf_notification_list)),
    ),
    "kvf_agent_wait_notification": (
        c_int32,
        (_HANDLE, c_char_p, _BYTES, c_size_t, c_uint64, POINTER(kvf_notification_list)),
    ),
    "kvf_desc_list_prepare": (
        c_int32,
        (_HANDLE, c_char_p, c_uint32, _ARRAY, c_size_t, _NAMES, c_size_t, POINTER(_HANDLE)),
    ),
    "kvf_desc_list_prepare_strided": (
        c_int32,
        (_HANDLE, c_char_p, c_uint32, _ARRAY, c_size_t, _NAMES, c_size_t, POINTER(_HANDLE)),
    ),
    "kvf_desc_list_len": (c_int32, (_HANDLE, POINTER(c_size_t))),
    "kvf_desc_list_release": (c_int32, (_HANDLE,)),
    "kvf_transfer_make": (
        c_int32,
        (
            _HANDLE, c_uint32, _HANDLE, _ARRAY, c_size_t, _HANDLE, _ARRAY, c_size_t,
            POINTER(kvf_transfer_options), POINTER(_HANDLE),
        ),
    ),
    "kvf_transfer_create": (
        c_int32,
        (
            _HANDLE, c_uint32, c_uint32, _ARRAY, c_size_t, c_uint32, _ARRAY, c_size_t,
            c_char_p, POINTER(kvf_transfer_options), POINTER(_HANDLE),
        ),
    ),
    "kvf_transfer_post": (c_int32, (_HANDLE, _BYTES, c_size_t, POINTER(c_int32))),
    "kvf_transfer_state": (c_int32, (_HANDLE, POINTER(c_int32))),
    "kvf_transfer_states": (c_int32, (_ARRAY, c_size_t, _ARRAY)),
    "kvf_transfer_cancel": (c_int32, (_HANDLE,)),
    "kvf_transfer_release": (c_int32, (_HANDLE,)),
    "kvf_transfer_telemetry_get": (c_int32, (_HANDLE, POINTER(kvf_transfer_telemetry))),
    "kvf_transfer_cost_estimate": (c_int32, (_HANDLE, POINTER(kvf_transfer_cost))),
    "kvf_transfer_backend": (c_int32, (_HANDLE, POINTER(kvf_buffer))),
    "kvf_side_channel_listen": (
        c_int32,
        (POINTER(kvf_side_channel_options), _BYTES, c_size_t, POINTER(_HANDLE)),
    ),
    "kvf_side_channel_set_metadata": (c_int32, (_HANDLE, _BYTES, c_size_t)),
    "kvf_side_channel_address": (c_int32, (_HANDLE, POINTER(kvf_buffer), POINTER(c_uint16))),
    "kvf_side_channel_is_running": (c_int32, (_HANDLE, POINTER(c_uint8))),
    "kvf_side_channel_shutdown": (c_int32, (_HANDLE,)),
    "kvf_side_channel_request": (
        c_int32,
        (c_char_p, c_char_p, c_uint16, c_uint64, c_uint64, POINTER(kvf_buffer)),
    ),
}


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, (result, arguments) in FUNCTIONS.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise _library.LibraryError(
                f"{library._name} lacks {name}: it is older than this Python package"
            ) from None
        function.restype = result
        function.argtypes = arguments
    return library


lib = _declare(_library.load())
