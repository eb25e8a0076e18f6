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
    c_char,
    c_char_p,
    c_int,
    c_double,
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
    "KVF_GROUP_FULL": 0,
    "KVF_GROUP_SLIDING_WINDOW": 1,
    "KVF_GROUP_CHUNKED_LOCAL": 2,
    "KVF_GROUP_MLA": 3,
    "KVF_GROUP_STATE": 4,
    "KVF_ROLE_K": 0,
    "KVF_ROLE_V": 1,
    "KVF_ROLE_KV": 2,
    "KVF_ROLE_LATENT": 3,
    "KVF_ROLE_SSM": 4,
    "KVF_ROLE_CONV": 16,
    "KVF_ROLE_OTHER": 256,
    "KVF_ORDER_NHD": 0,
    "KVF_ORDER_HND": 1,
    "KVF_KV_REGIONS": 0,
    "KVF_KV_PLANES": 1,
    "KVF_KV_HALVES": 2,
    "KVF_KV_CELLS": 3,
    "KVF_KV_SLABS": 4,
    "KVF_CONV_CHANNELS_FIRST": 0,
    "KVF_CONV_ROWS_FIRST": 1,
    "KVF_CONTENT_HEADS": 0,
    "KVF_CONTENT_LATENT": 1,
    "KVF_CONTENT_STATE": 2,
    "KVF_SLAB_CELLS": 0,
    "KVF_SLAB_HALVES": 1,
    "KVF_SLAB_OPAQUE": 2,
    "KVF_STATE_STATED": 0,
    "KVF_STATE_MAMBA1": 1,
    "KVF_STATE_MAMBA2": 2,
    "KVF_STATE_GDN": 3,
    "KVF_DESCRIBE_TEXT": 0,
    "KVF_DESCRIBE_JSON": 1,
    "KVF_DIRECTION_PULL": 0,
    "KVF_DIRECTION_PUSH": 1,
    "KVF_PEER_IDLE": 0,
    "KVF_PEER_TRANSFER": 1,
    "KVF_PEER_NOTIFY_ONLY": 2,
    "KVF_COMPLETION_TEXT": 256,
    "KVF_MODE_PULL": 0,
    "KVF_MODE_PUSH": 1,
    "KVF_FINISH_LENGTH": 0,
    "KVF_FINISH_STOP": 1,
    "KVF_FINISH_ABORT": 2,
    "KVF_FINISH_ERROR": 3,
    "KVF_KEEP_NO": 0,
    "KVF_KEEP_UNTIL_SENT": 1,
    "KVF_KEEP_UNTIL_RECEIVED": 2,
    "KVF_ADD_NO_PREFIX_CACHE": 1,
    "KVF_RECORD_RECEIVE": 0,
    "KVF_RECORD_PUSH": 1,
    "KVF_POLICY_DEFAULT": 0,
    "KVF_POLICY_LRU": 1,
    "KVF_POLICY_WINDOWED": 2,
    "KVF_POLICY_ELASTIC": 3,
    "KVF_BLOCK_POOL_MAX_IDS": 67108864,
    "KVF_BLOCK_CACHED": 1,
    "KVF_BLOCK_STORED": 1,
    "KVF_BLOCK_REMOVED": 2,
    "KVF_BLOCKS_CLEARED": 3,
    "KVF_POOL_OP_PING": 1,
    "KVF_POOL_OP_ALLOCATE": 2,
    "KVF_POOL_OP_ALLOCATE_UP_TO": 3,
    "KVF_POOL_OP_FREE_REQUEST": 4,
    "KVF_POOL_OP_FREE": 5,
    "KVF_POOL_OP_UNPIN": 6,
    "KVF_POOL_OP_TOUCH": 7,
    "KVF_POOL_OP_LOOKUP": 8,
    "KVF_POOL_OP_ACQUIRE": 9,
    "KVF_POOL_OP_CACHE": 10,
    "KVF_POOL_OP_CACHE_PARTIAL": 11,
    "KVF_POOL_OP_ANNOUNCE": 12,
    "KVF_POOL_OP_MOVE_KEYS": 13,
    "KVF_POOL_OP_EVICT": 14,
    "KVF_POOL_OP_RESET": 15,
    "KVF_POOL_OP_REF_COUNTS": 16,
    "KVF_POOL_OP_WRITABLE": 17,
    "KVF_POOL_OP_NUM_FREE": 18,
    "KVF_POOL_OP_FREE_BLOCKS": 19,
    "KVF_POOL_OP_TAKE_REUSED": 20,
    "KVF_POOL_OP_KEYS": 21,
    "KVF_POOL_OP_STATS": 22,
    "KVF_POOL_OP_TAKE_EVENTS": 23,
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
    "KVF_ERR_EXPIRED": -23,
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


class kvf_rank_payload(Structure):
    _fields_ = [
        ("pp_rank", c_uint32),
        ("tp_rank", c_uint32),
        ("data", c_void_p),
        ("len", c_size_t),
    ]


class kvf_clock_sample(Structure):
    _fields_ = [
        ("offset_s", c_double),
        ("rtt_s", c_double),
    ]


class kvf_parallel(Structure):
    _fields_ = [
        ("tp_rank", c_uint32),
        ("tp_size", c_uint32),
        ("pp_rank", c_uint32),
        ("pp_size", c_uint32),
        ("dcp_rank", c_uint32),
        ("dcp_size", c_uint32),
        ("dcp_interleave", c_uint32),
        ("reserved", c_uint32),
    ]


class kvf_group(Structure):
    _fields_ = [
        ("kind", c_uint32),
        ("tokens_per_block", c_uint32),
        ("kernel_blocks", c_uint32),
        ("window", c_uint32),
        ("format", c_uint32),
        ("reserved", c_uint32),
    ]


class kvf_region(Structure):
    _fields_ = [
        ("base", c_uint64),
        ("page_stride", c_uint64),
        ("page_len", c_uint64),
        ("page_count", c_uint64),
        ("device", c_uint64),
        ("mem_kind", c_uint32),
        ("reserved", c_uint32),
    ]


class kvf_dense_layers(Structure):
    _fields_ = [
        ("group", c_uint32),
        ("kv_heads", c_uint32),
        ("k_head_size", c_uint32),
        ("v_head_size", c_uint32),
        ("elem_bytes", c_uint32),
        ("order", c_uint32),
        ("kv", c_uint32),
        ("first_layer", c_uint32),
        ("layers", c_void_p),
        ("layers_len", c_size_t),
        ("regions", c_void_p),
        ("regions_len", c_size_t),
    ]


class kvf_latent_layers(Structure):
    _fields_ = [
        ("group", c_uint32),
        ("size", c_uint32),
        ("elem_bytes", c_uint32),
        ("role", c_uint32),
        ("first_layer", c_uint32),
        ("reserved", c_uint32),
        ("layers", c_void_p),
        ("layers_len", c_size_t),
        ("regions", c_void_p),
        ("regions_len", c_size_t),
    ]


class kvf_sub_projection(Structure):
    _fields_ = [("units", c_uint32), ("channels_per_unit", c_uint32)]


class kvf_state_layers(Structure):
    _fields_ = [
        ("group", c_uint32),
        ("conv_rows", c_uint32),
        ("conv_elem_bytes", c_uint32),
        ("conv_order", c_uint32),
        ("ssm_heads", c_uint32),
        ("ssm_head_bytes", c_uint32),
        ("ssm_elem_bytes", c_uint32),
        ("first_layer", c_uint32),
        ("conv", c_void_p),
        ("conv_len", c_size_t),
        ("layers", c_void_p),
        ("layers_len", c_size_t),
        ("regions", c_void_p),
        ("regions_len", c_size_t),
    ]


class kvf_part(Structure):
    _fields_ = [
        ("group", c_uint32),
        ("region", c_uint32),
        ("layer", c_uint32),
        ("role", c_uint32),
        ("offset", c_uint64),
        ("heads_total", c_uint32),
        ("head_first", c_uint32),
        ("head_count", c_uint32),
        ("rows", c_uint32),
        ("head_stride", c_uint64),
        ("row_stride", c_uint64),
        ("cell_bytes", c_uint32),
        ("elem_bytes", c_uint32),
    ]


class kvf_layout_options(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("parallel", kvf_parallel),
        ("groups", c_void_p),
        ("groups_len", c_size_t),
        ("dense", c_void_p),
        ("dense_len", c_size_t),
        ("latent", c_void_p),
        ("latent_len", c_size_t),
        ("state", c_void_p),
        ("state_len", c_size_t),
        ("regions", c_void_p),
        ("regions_len", c_size_t),
        ("parts", c_void_p),
        ("parts_len", c_size_t),
    ]


class kvf_kv_state(Structure):
    _fields_ = [
        ("kind", c_uint32),
        ("conv_channels_total", c_uint32),
        ("conv_rows", c_uint32),
        ("conv_elem_bytes", c_uint32),
        ("ssm_shape", c_uint32 * 4),
        ("ssm_dims", c_uint32),
        ("ssm_elem_bytes", c_uint32),
        ("conv_channels", c_void_p),
        ("conv_channels_len", c_size_t),
    ]


class kvf_kv_tensor(Structure):
    _fields_ = [
        ("layer", c_char_p),
        ("group", c_uint32),
        ("content", c_uint32),
        ("address", c_uint64),
        ("storage_address", c_uint64),
        ("storage_bytes", c_uint64),
        ("page_bytes", c_uint64),
        ("num_blocks", c_uint64),
        ("device", c_uint64),
        ("mem_kind", c_uint32),
        ("elem_bytes", c_uint32),
        ("shape", c_uint64 * 5),
        ("strides", c_uint64 * 5),
        ("dims", c_uint32),
        ("k_head_size", c_uint32),
        ("v_head_size", c_uint32),
        ("kv_heads", c_uint32),
        ("state", POINTER(kvf_kv_state)),
    ]


class kvf_kv_cache(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("kv_heads", c_uint32),
        ("tensors", c_void_p),
        ("tensors_len", c_size_t),
        ("groups", c_void_p),
        ("groups_len", c_size_t),
        ("num_blocks", c_uint64),
        ("blocks_per_logical", c_uint32),
        ("block_tokens", c_uint32),
        ("layout", c_char_p),
        ("attn_backend", c_char_p),
        ("slab_order", c_uint32),
        ("pcp_size", c_uint32),
        ("mla", c_uint8),
        ("hybrid", c_uint8),
        ("reserved", c_uint8 * 6),
    ]


class kvf_layout_tables(Structure):
    _fields_ = [
        ("parallel", kvf_parallel),
        ("regions", c_void_p),
        ("regions_len", c_size_t),
        ("groups", c_void_p),
        ("groups_len", c_size_t),
        ("parts", c_void_p),
        ("parts_len", c_size_t),
    ]


class kvf_plan_options(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("direction", c_uint32),
        ("keep_lanes", c_uint8),
        ("uneven_blocks", c_uint8),
        ("reserved", c_uint8 * 6),
    ]


class kvf_group_side(Structure):
    _fields_ = [
        ("tokens_per_block", c_uint32),
        ("kernel_blocks", c_uint32),
        ("dcp_size", c_uint32),
        ("dcp_interleave", c_uint32),
        ("pool", c_uint32),
        ("reserved", c_uint32),
        ("block_count", c_uint64),
    ]


class kvf_group_geometry(Structure):
    _fields_ = [
        ("kind", c_uint32),
        ("window", c_uint32),
        ("atom_tokens", c_uint32),
        ("reserved", c_uint32),
        ("local", kvf_group_side),
        ("remote", kvf_group_side),
    ]


class kvf_peer(Structure):
    _fields_ = [
        ("tp_rank", c_uint32),
        ("pp_rank", c_uint32),
        ("role", c_uint32),
        ("notifiers", c_uint32),
    ]


class kvf_lane_side(Structure):
    _fields_ = [
        ("base", c_uint64),
        ("stride", c_uint64),
        ("sub_stride", c_uint64),
        ("device", c_uint64),
        ("mem_kind", c_uint32),
        ("reserved", c_uint32),
    ]


class kvf_lane_inner(Structure):
    _fields_ = [
        ("local_stride", c_uint64),
        ("remote_stride", c_uint64),
        ("count", c_uint32),
        ("reserved", c_uint32),
    ]


class kvf_lane(Structure):
    _fields_ = [
        ("peer", c_uint32),
        ("group", c_uint32),
        ("local_shard", c_uint32),
        ("remote_shard", c_uint32),
        ("len", c_uint64),
        ("local", kvf_lane_side),
        ("remote", kvf_lane_side),
        ("inner", kvf_lane_inner * 2),
    ]


class kvf_plan_custom(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("direction", c_uint32),
        ("groups", c_void_p),
        ("groups_len", c_size_t),
        ("peers", c_void_p),
        ("peers_len", c_size_t),
        ("lanes", c_void_p),
        ("lanes_len", c_size_t),
        ("uneven_blocks", c_uint8),
        ("reserved", c_uint8 * 7),
    ]


class kvf_plan_tables(Structure):
    _fields_ = [
        ("direction", c_uint32),
        ("batches", c_uint32),
        ("lanes_before", c_uint64),
        ("groups", c_void_p),
        ("groups_len", c_size_t),
        ("peers", c_void_p),
        ("peers_len", c_size_t),
        ("lanes", c_void_p),
        ("lanes_len", c_size_t),
    ]


class kvf_group_blocks(Structure):
    _fields_ = [
        ("local", c_void_p),
        ("local_len", c_size_t),
        ("remote", c_void_p),
        ("remote_len", c_size_t),
        ("local_first", c_uint32),
        ("remote_first", c_uint32),
        ("has_local_first", c_uint8),
        ("has_remote_first", c_uint8),
        ("reserved", c_uint8 * 6),
    ]


class kvf_coverage(Structure):
    _fields_ = [
        ("first", c_uint64),
        ("end", c_uint64),
        ("missing_head", c_uint64),
        ("missing_tail", c_uint64),
    ]


class kvf_expand_stats(Structure):
    _fields_ = [
        ("bytes", c_uint64),
        ("ranges_before", c_uint64),
        ("ranges", c_uint64),
        ("reserved", c_uint64),
    ]


class kvf_range(Structure):
    _fields_ = [
        ("peer", c_uint32),
        ("lane", c_uint32),
        ("local", c_uint64),
        ("remote", c_uint64),
        ("len", c_uint64),
    ]


class kvf_range_list(Structure):
    _fields_ = [("items", c_void_p), ("len", c_size_t)]


class kvf_queue_options(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("capacity", c_uint32),
        ("slice_bytes", c_uint64),
        ("slice_descriptors", c_uint32),
        ("slices_in_flight", c_uint32),
    ]


class kvf_guard(Structure):
    _fields_ = [
        ("peer", c_uint32),
        ("reserved", c_uint32),
        ("addr", c_uint64),
        ("limit", c_uint64),
    ]


class kvf_submission(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("has_notification", c_uint8),
        ("reserved", c_uint8 * 3),
        ("plan", c_uint64),
        ("agents", POINTER(c_char_p)),
        ("agents_len", c_size_t),
        ("groups", c_void_p),
        ("groups_len", c_size_t),
        ("tokens", c_uint64),
        ("notification", c_void_p),
        ("notification_len", c_size_t),
        ("deadline_ms", c_uint64),
        ("guards", POINTER(kvf_guard)),
        ("guards_len", c_size_t),
    ]


class kvf_completion(Structure):
    _fields_ = [
        ("ticket", c_uint64),
        ("status", c_int32),
        ("not_notified", c_uint32),
        ("submitted_ns", c_uint64),
        ("planned_ns", c_uint64),
        ("posted_ns", c_uint64),
        ("finished_ns", c_uint64),
        ("bytes", c_uint64),
        ("total_bytes", c_uint64),
        ("descriptors_before", c_uint64),
        ("descriptors", c_uint64),
        ("slices", c_uint64),
        ("reserved", c_uint64 * 4),
        ("message", c_char * 256),
        ("backend", c_char * 32),
    ]


class kvf_queue_stats(Structure):
    _fields_ = [
        ("submitted", c_uint64),
        ("succeeded", c_uint64),
        ("failed", c_uint64),
        ("refused", c_uint64),
        ("running", c_uint64),
        ("unpolled", c_uint64),
        ("bytes", c_uint64),
        ("descriptors_before", c_uint64),
        ("descriptors", c_uint64),
        ("slices", c_uint64),
        ("thread_cpu_ns", c_uint64),
        ("reserved", c_uint64 * 5),
    ]


class kvf_block_pool_options(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("blocks", c_uint32),
        ("policy", c_uint32),
        ("caching", c_uint8),
        ("events", c_uint8),
        ("tolerate_null", c_uint8),
        ("reserved", c_uint8),
        ("fraction", c_double),
        ("event_bytes", c_uint64),
    ]


class kvf_block_node(Structure):
    _fields_ = [("prev", c_uint32), ("next", c_uint32), ("refs", c_uint32), ("flags", c_uint32)]


class kvf_block_pool_stats(Structure):
    _fields_ = [
        ("blocks", c_uint64),
        ("free", c_uint64),
        ("cached_blocks", c_uint64),
        ("cached_keys", c_uint64),
        ("allocations", c_uint64),
        ("refused_allocations", c_uint64),
        ("allocated_blocks", c_uint64),
        ("allocated_runs", c_uint64),
        ("freed_blocks", c_uint64),
        ("revived_blocks", c_uint64),
        ("lookups", c_uint64),
        ("hits", c_uint64),
        ("stored_keys", c_uint64),
        ("removed_keys", c_uint64),
        ("resets", c_uint64),
        ("lost_events", c_uint64),
    ]


class kvf_transfer_group(Structure):
    _fields_ = [
        ("kind", c_uint32),
        ("tokens_per_block", c_uint32),
        ("window", c_uint32),
        ("scratch_blocks", c_uint32),
    ]


class kvf_scheduler_options(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("mode", c_uint32),
        ("engine_id", c_char_p),
        ("host", c_char_p),
        ("groups", POINTER(kvf_transfer_group)),
        ("groups_len", c_size_t),
        ("tp_size", c_uint32),
        ("pp_size", c_uint32),
        ("dcp_size", c_uint32),
        ("backoff_tokens", c_uint32),
        ("lease_ms", c_uint64),
        ("heartbeat_ms", c_uint64),
        ("pin_ms", c_uint64),
        ("registration_timeout_ms", c_uint64),
        ("recompute_threshold", c_uint64),
        ("port", c_uint16),
        ("bidirectional", c_uint8),
        ("clip", c_uint8),
        ("state_registrations", c_uint8),
        ("reserved", c_uint8 * 3),
    ]


class kvf_request_blocks(Structure):
    _fields_ = [
        ("ids", c_void_p),
        ("len", c_size_t),
        ("first", c_uint32),
        ("reserved", c_uint32),
    ]


class kvf_scheduler_stats(Structure):
    _fields_ = [
        ("requests", c_uint64),
        ("receiving", c_uint64),
        ("holds", c_uint64),
        ("leases", c_uint64),
        ("heartbeats", c_uint64),
        ("peers", c_uint64),
        ("reserved", c_uint64 * 2),
    ]


class kvf_worker_options(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("mode", c_uint32),
        ("agent", c_uint64),
        ("engine_id", c_char_p),
        ("compat_hash", c_char_p),
        ("host", c_char_p),
        ("queue", POINTER(kvf_queue_options)),
        ("tp_rank", c_uint32),
        ("tp_size", c_uint32),
        ("pp_rank", c_uint32),
        ("pp_size", c_uint32),
        ("dcp_size", c_uint32),
        ("dcp_interleave", c_uint32),
        ("lease_ms", c_uint64),
        ("handshake_timeout_ms", c_uint64),
        ("engine_ttl_ms", c_uint64),
        ("registration_timeout_ms", c_uint64),
        ("transfer_timeout_ms", c_uint64),
        ("port", c_uint16),
        ("ignore_compat", c_uint8),
        ("reserved", c_uint8 * 5),
    ]


class kvf_worker_results(Structure):
    _fields_ = [
        ("sent", POINTER(c_char_p)),
        ("sent_len", c_size_t),
        ("received", POINTER(c_char_p)),
        ("received_len", c_size_t),
        ("failed", POINTER(c_char_p)),
        ("failed_len", c_size_t),
        ("failed_blocks", POINTER(c_uint32)),
        ("failed_blocks_len", c_size_t),
        ("storage", c_void_p),
        ("has_stats", c_uint8),
        ("reserved", c_uint8 * 7),
    ]


class kvf_worker_record(Structure):
    _fields_ = [
        ("request_id", c_char_p),
        ("engine_id", c_char_p),
        ("message", c_char_p),
        ("kind", c_uint32),
        ("status", c_int32),
        ("arrived_ns", c_uint64),
        ("queued_ns", c_uint64),
        ("planned_ns", c_uint64),
        ("posted_ns", c_uint64),
        ("finished_ns", c_uint64),
        ("bytes", c_uint64),
        ("descriptors", c_uint64),
        ("reserved", c_uint64 * 4),
    ]


class kvf_worker_record_list(Structure):
    _fields_ = [
        ("items", POINTER(kvf_worker_record)),
        ("len", c_size_t),
        ("storage", c_void_p),
    ]


class kvf_worker_state(Structure):
    _fields_ = [
        ("receives", c_uint64),
        ("holds", c_uint64),
        ("pushes", c_uint64),
        ("peers", c_uint64),
        ("handshakes", c_uint64),
        ("reserved", c_uint64 * 3),
    ]


class kvf_cached_blocks(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("group", c_uint32),
        ("first", c_uint32),
        ("block_size", c_uint32),
        ("blocks", c_void_p),
        ("len", c_size_t),
        ("hashes", c_void_p),
        ("hash_len", c_size_t),
        ("mask", c_void_p),
        ("parent", c_void_p),
        ("parent_len", c_size_t),
        ("tokens", c_void_p),
        ("tokens_len", c_size_t),
        ("tag", c_uint64),
    ]


class kvf_cached_part(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("block", c_uint32),
        ("group", c_uint32),
        ("num_tokens", c_uint32),
        ("block_size", c_uint32),
        ("replace", c_uint8),
        ("reserved", c_uint8 * 3),
        ("hash", c_void_p),
        ("hash_len", c_size_t),
        ("parent", c_void_p),
        ("parent_len", c_size_t),
        ("tokens", c_void_p),
        ("tokens_len", c_size_t),
        ("tag", c_uint64),
    ]


class kvf_block_event(Structure):
    _fields_ = [
        ("kind", c_uint32),
        ("group", c_uint32),
        ("block_size", c_uint32),
        ("reserved", c_uint32),
        ("hashes", c_void_p),
        ("hash_len", c_size_t),
        ("count", c_size_t),
        ("parent", c_void_p),
        ("parent_len", c_size_t),
        ("tokens", c_void_p),
        ("tokens_len", c_size_t),
        ("tag", c_uint64),
    ]


class kvf_block_event_list(Structure):
    _fields_ = [
        ("items", POINTER(kvf_block_event)),
        ("len", c_size_t),
        ("lost", c_uint64),
        ("storage", c_void_p),
    ]


class kvf_block_key(Structure):
    _fields_ = [("hash", c_uint8 * 255), ("hash_len", c_uint8), ("group", c_uint32)]


class kvf_pool_client_options(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("publish", c_uint8),
        ("reserved", c_uint8 * 3),
        ("address", c_char_p),
        ("pool", c_char_p),
        ("session", c_char_p),
        ("create", c_void_p),
        ("timeout_ms", c_uint64),
        ("session_timeout_ms", c_uint64),
    ]


class kvf_pool_op(Structure):
    _fields_ = [
        ("kind", c_uint32),
        ("status", c_int32),
        ("request", c_char_p),
        ("count", c_uint32),
        ("after", c_uint32),
        ("ids", c_void_p),
        ("ids_len", c_size_t),
        ("hashes", c_void_p),
        ("hash_len", c_size_t),
        ("hash_count", c_size_t),
        ("groups", c_void_p),
        ("groups_len", c_size_t),
        ("cached", c_void_p),
        ("part", c_void_p),
        ("out", c_void_p),
        ("out_capacity", c_size_t),
        ("out_len", c_size_t),
        ("value", c_uint64),
        ("keys", c_void_p),
        ("keys_capacity", c_size_t),
        ("stats", c_void_p),
        ("events", c_void_p),
        ("tokens", c_uint32),
        ("reserved", c_uint32),
        ("message", c_char * 160),
    ]


#: Handles: one 64-bit integer each, see the top of this file.
HANDLES = (
    "kvf_agent",
    "kvf_desc_list",
    "kvf_transfer",
    "kvf_side_channel",
    "kvf_layout",
    "kvf_plan",
    "kvf_queue",
    "kvf_scheduler",
    "kvf_worker",
    "kvf_block_pool",
    "kvf_pool_client",
)

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
    "kvf_agent_notification_count": (c_int32, (_HANDLE, POINTER(c_size_t))),
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
    "kvf_layout_create": (c_int32, (POINTER(kvf_layout_options), POINTER(_HANDLE))),
    "kvf_layout_destroy": (c_int32, (_HANDLE,)),
    "kvf_layout_encode": (c_int32, (_HANDLE, POINTER(kvf_buffer))),
    "kvf_layout_decode": (c_int32, (_BYTES, c_size_t, POINTER(_HANDLE))),
    "kvf_layout_describe": (c_int32, (_HANDLE, c_uint32, POINTER(kvf_buffer))),
    "kvf_layout_tables_get": (c_int32, (_HANDLE, POINTER(kvf_layout_tables))),
    "kvf_layout_tables_free": (None, (POINTER(kvf_layout_tables),)),
    "kvf_layout_shard": (
        c_int32,
        (c_uint32, c_uint32, c_uint32, POINTER(c_uint32), POINTER(c_uint32)),
    ),
    "kvf_plan_build": (
        c_int32,
        (_HANDLE, _ARRAY, c_size_t, POINTER(kvf_plan_options), POINTER(_HANDLE)),
    ),
    "kvf_plan_create": (c_int32, (POINTER(kvf_plan_custom), POINTER(_HANDLE))),
    "kvf_plan_destroy": (c_int32, (_HANDLE,)),
    "kvf_plan_describe": (c_int32, (_HANDLE, c_uint32, POINTER(kvf_buffer))),
    "kvf_plan_tables_get": (c_int32, (_HANDLE, POINTER(kvf_plan_tables))),
    "kvf_plan_tables_free": (None, (POINTER(kvf_plan_tables),)),
    "kvf_plan_expand": (
        c_int32,
        (
            _HANDLE, _ARRAY, c_size_t, c_uint64, _ARRAY, POINTER(kvf_expand_stats),
            POINTER(kvf_range_list),
        ),
    ),
    "kvf_range_list_free": (None, (POINTER(kvf_range_list),)),
    "kvf_queue_create": (c_int32, (_HANDLE, POINTER(kvf_queue_options), POINTER(_HANDLE))),
    # By address: made by hand, see kvferry/queue.py.
    "kvf_queue_submit": (c_int32, (_HANDLE, c_void_p, POINTER(c_uint64))),
    "kvf_queue_poll": (c_int32, (_HANDLE, _ARRAY, c_size_t, POINTER(c_size_t))),
    "kvf_queue_wait": (c_int32, (_HANDLE, c_uint64, POINTER(c_uint8))),
    "kvf_queue_cancel": (c_int32, (_HANDLE, c_uint64)),
    "kvf_queue_stats_get": (c_int32, (_HANDLE, POINTER(kvf_queue_stats))),
    "kvf_queue_event_fd": (c_int32, (_HANDLE, POINTER(c_int))),
    "kvf_queue_destroy": (c_int32, (_HANDLE, c_uint64)),
    "kvf_side_channel_listen": (
        c_int32,
        (POINTER(kvf_side_channel_options), _BYTES, c_size_t, POINTER(_HANDLE)),
    ),
    "kvf_side_channel_set_metadata": (c_int32, (_HANDLE, _BYTES, c_size_t)),
    "kvf_side_channel_set_rank_metadata": (
        c_int32,
        (_HANDLE, c_uint32, c_uint32, _BYTES, c_size_t),
    ),
    "kvf_side_channel_replace_ranks": (c_int32, (_HANDLE, POINTER(kvf_rank_payload), c_size_t)),
    "kvf_side_channel_address": (c_int32, (_HANDLE, POINTER(kvf_buffer), POINTER(c_uint16))),
    "kvf_side_channel_is_running": (c_int32, (_HANDLE, POINTER(c_uint8))),
    "kvf_side_channel_shutdown": (c_int32, (_HANDLE,)),
    "kvf_side_channel_request": (
        c_int32,
        (c_char_p, c_char_p, c_uint16, c_uint64, c_uint64, POINTER(kvf_buffer)),
    ),
    "kvf_side_channel_request_rank": (
        c_int32,
        (
            c_char_p, c_char_p, c_uint16, c_uint32, c_uint32, c_uint64, c_uint64,
            POINTER(kvf_buffer), POINTER(kvf_clock_sample),
        ),
    ),
    "kvf_nixl_probe": (c_int32, (c_char_p, POINTER(kvf_buffer))),
    "kvf_scheduler_create": (c_int32, (POINTER(kvf_scheduler_options), POINTER(_HANDLE))),
    "kvf_scheduler_add": (
        c_int32,
        (_HANDLE, c_char_p, _BYTES, c_size_t, c_uint64, c_uint32, POINTER(c_uint64)),
    ),
    "kvf_scheduler_match": (c_int32, (_HANDLE, c_char_p, c_uint64, c_uint64, POINTER(c_uint64))),
    "kvf_scheduler_allocated": (
        c_int32,
        (_HANDLE, c_char_p, _ARRAY, c_size_t, c_uint64, POINTER(c_uint8)),
    ),
    "kvf_scheduler_build_step": (c_int32, (_HANDLE, POINTER(kvf_buffer))),
    "kvf_scheduler_received": (c_int32, (_HANDLE, POINTER(c_char_p), c_size_t)),
    "kvf_scheduler_sent": (c_int32, (_HANDLE, POINTER(c_char_p), c_size_t)),
    "kvf_scheduler_finished": (
        c_int32,
        (
            _HANDLE, c_char_p, c_uint32, _ARRAY, c_size_t, c_uint64, POINTER(c_uint32),
            POINTER(kvf_buffer),
        ),
    ),
    "kvf_scheduler_serve": (c_int32, (_HANDLE, POINTER(kvf_rank_payload), c_size_t)),
    "kvf_scheduler_address": (c_int32, (_HANDLE, POINTER(kvf_buffer), POINTER(c_uint16))),
    "kvf_scheduler_has_pending": (c_int32, (_HANDLE, POINTER(c_uint8))),
    "kvf_scheduler_stats_get": (c_int32, (_HANDLE, POINTER(kvf_scheduler_stats))),
    "kvf_scheduler_destroy": (c_int32, (_HANDLE,)),
    "kvf_worker_create": (c_int32, (POINTER(kvf_worker_options), POINTER(_HANDLE))),
    "kvf_worker_destroy": (c_int32, (_HANDLE, c_uint64)),
    "kvf_worker_register_kv": (c_int32, (_HANDLE, POINTER(kvf_kv_cache))),
    "kvf_worker_payload": (c_int32, (_HANDLE, POINTER(kvf_buffer))),
    "kvf_worker_step": (c_int32, (_HANDLE, _BYTES, c_size_t)),
    "kvf_worker_poll": (c_int32, (_HANDLE, POINTER(kvf_worker_results))),
    "kvf_worker_results_free": (None, (POINTER(kvf_worker_results),)),
    "kvf_worker_wait": (c_int32, (_HANDLE, c_uint64, POINTER(c_uint8))),
    "kvf_worker_event_fd": (c_int32, (_HANDLE, POINTER(c_int))),
    "kvf_worker_take_stats": (c_int32, (_HANDLE, POINTER(kvf_buffer))),
    "kvf_worker_take_records": (c_int32, (_HANDLE, POINTER(kvf_buffer))),
    "kvf_worker_take_record_list": (c_int32, (_HANDLE, POINTER(kvf_worker_record_list))),
    "kvf_worker_record_list_free": (None, (POINTER(kvf_worker_record_list),)),
    "kvf_worker_state_get": (c_int32, (_HANDLE, POINTER(kvf_worker_state))),
    "kvf_block_pool_create": (c_int32, (POINTER(kvf_block_pool_options), POINTER(_HANDLE))),
    "kvf_block_pool_destroy": (c_int32, (_HANDLE,)),
    "kvf_block_pool_allocate": (c_int32, (_HANDLE, _ARRAY, c_size_t)),
    "kvf_block_pool_allocate_after": (c_int32, (_HANDLE, c_uint32, _ARRAY, c_size_t)),
    "kvf_block_pool_free": (c_int32, (_HANDLE, _ARRAY, c_size_t)),
    "kvf_block_pool_unpin": (c_int32, (_HANDLE, _ARRAY, c_size_t)),
    "kvf_block_pool_touch": (c_int32, (_HANDLE, _ARRAY, c_size_t)),
    "kvf_block_pool_ref_counts": (c_int32, (_HANDLE, _ARRAY, c_size_t, _ARRAY)),
    "kvf_block_pool_is_writable": (c_int32, (_HANDLE, c_uint32, POINTER(c_uint8))),
    "kvf_block_pool_num_free": (c_int32, (_HANDLE, POINTER(c_uint32))),
    "kvf_block_pool_free_blocks": (c_int32, (_HANDLE, _ARRAY, c_size_t, POINTER(c_size_t))),
    "kvf_block_pool_nodes": (c_int32, (_HANDLE, POINTER(POINTER(kvf_block_node)))),
    "kvf_block_pool_take_reused": (c_int32, (_HANDLE, _ARRAY, c_size_t, POINTER(c_size_t))),
    "kvf_block_pool_stats_get": (c_int32, (_HANDLE, POINTER(kvf_block_pool_stats))),
    "kvf_block_pool_lookup": (
        c_int32,
        (
            _HANDLE, _BYTES, c_size_t, c_size_t, _ARRAY, c_size_t, c_uint8, _ARRAY,
            POINTER(c_size_t),
        ),
    ),
    "kvf_block_pool_cache": (c_int32, (_HANDLE, POINTER(kvf_cached_blocks))),
    "kvf_block_pool_announce": (c_int32, (_HANDLE, POINTER(kvf_cached_blocks))),
    "kvf_block_pool_cache_partial": (c_int32, (_HANDLE, POINTER(kvf_cached_part))),
    "kvf_block_pool_move_keys": (c_int32, (_HANDLE, c_uint32, c_uint32)),
    "kvf_block_pool_evict": (c_int32, (_HANDLE, _ARRAY, c_size_t)),
    "kvf_block_pool_reset": (c_int32, (_HANDLE, POINTER(c_uint8))),
    "kvf_block_pool_keys": (
        c_int32,
        (_HANDLE, c_uint32, _ARRAY, c_size_t, POINTER(c_size_t), POINTER(c_uint32)),
    ),
    "kvf_block_pool_take_events": (c_int32, (_HANDLE, POINTER(kvf_block_event_list))),
    "kvf_block_event_list_free": (None, (POINTER(kvf_block_event_list),)),
    "kvf_pool_client_connect": (c_int32, (POINTER(kvf_pool_client_options), POINTER(_HANDLE))),
    "kvf_pool_client_close": (c_int32, (_HANDLE,)),
    "kvf_pool_client_run": (c_int32, (_HANDLE, _ARRAY, c_size_t, c_uint8)),
    "kvf_pool_client_metrics": (c_int32, (_HANDLE, POINTER(kvf_buffer))),
    "kvf_pool_client_shutdown_server": (c_int32, (_HANDLE,)),
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
