//! The binary interface: what the shared library is called and exports, and where the fields of the
//! structs are. tests/c/layout.c asserts the same figures on the C side.

use std::collections::BTreeSet;
use std::mem::{align_of, offset_of, size_of};
use std::path::{Path, PathBuf};

use kvferry::capi::agent::*;
use kvferry::capi::block_cache::*;
use kvferry::capi::block_pool::*;
use kvferry::capi::kv_cache::*;
use kvferry::capi::layout::*;
use kvferry::capi::library::*;
use kvferry::capi::memory::*;
use kvferry::capi::output::*;
use kvferry::capi::plan::*;
use kvferry::capi::pool_client::*;
use kvferry::capi::queue::*;
use kvferry::capi::scheduler::*;
use kvferry::capi::side_channel::*;
use kvferry::capi::transfer::*;
use kvferry::capi::worker::*;
use object::read::elf::{Dyn, ElfFile64, FileHeader, SectionHeader};
use object::{Object, ObjectSymbol, elf};

/// The shared library: the one that is to be shipped if `KVF_LIBRARY` names it, as under `make test`,
/// or else what `cargo build` made beside this test.
fn library() -> PathBuf {
    if let Some(named) = std::env::var_os("KVF_LIBRARY") {
        return named.into();
    }
    let test = std::env::current_exe().expect("a test has a path");
    let folder = test
        .ancestors()
        .nth(2)
        .expect("target/<profile>/deps/<test>");
    let library = folder.join("libkvferry.so");
    assert!(
        library.is_file(),
        "{} is not there: `cargo build` first, or set KVF_LIBRARY",
        library.display()
    );
    library
}

#[test]
fn exports_are_the_functions_of_the_header() {
    let data = std::fs::read(library()).expect("readable");
    let file = ElfFile64::<object::Endianness>::parse(&*data).expect("an ELF file");
    let exported: BTreeSet<String> = file
        .dynamic_symbols()
        .filter(|s| s.is_definition())
        .map(|s| s.name().expect("UTF-8").to_owned())
        .collect();
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/kvferry.h");
    let header = std::fs::read_to_string(header).expect("committed");
    // Declarations that are not `static inline`, which is C that programs compile for themselves.
    let declared: BTreeSet<String> = header
        .lines()
        .filter(|l| l.starts_with(|c: char| c.is_ascii_lowercase()) && l.contains('('))
        .filter(|l| !l.starts_with("static ") && !l.starts_with("typedef "))
        .filter_map(|l| {
            l.split('(')
                .next()?
                .split([' ', '*'])
                .next_back()
                .map(str::to_owned)
        })
        .collect();
    assert!(declared.len() > 50, "{declared:?}");
    assert_eq!(exported, declared);
}

#[test]
fn soname_carries_the_abi_version() {
    let data = std::fs::read(library()).expect("readable");
    let header = elf::FileHeader64::<object::Endianness>::parse(&*data).expect("an ELF file");
    let endian = header.endian().expect("known");
    let sections = header.sections(endian, &*data).expect("sections");
    let (dynamic, link) = sections
        .dynamic(endian, &*data)
        .expect("valid")
        .expect("shared library");
    let strings = sections.strings(endian, &*data, link).expect("strings");
    let find = |tag: u32| dynamic.iter().find(|d| d.tag32(endian) == Some(tag));
    let soname = find(elf::DT_SONAME)
        .expect("a SONAME")
        .string(endian, strings)
        .expect("a string");
    let expected = format!("libkvferry.so.{KVF_ABI_VERSION}");
    assert_eq!(std::str::from_utf8(soname), Ok(expected.as_str()));
    // Threads of the library may be running when a program calls dlclose().
    let flags = find(elf::DT_FLAGS_1).map_or(0, |d| d.val32(endian).unwrap_or(0));
    assert_ne!(flags & elf::DF_1_NODELETE, 0, "not linked with -z nodelete");
    let text = sections
        .iter()
        .find(|s| sections.section_name(endian, s) == Ok(b".text"));
    assert_ne!(text.expect("code").sh_size(endian), 0);
}

/// A struct that nobody looks at can change without notice.
#[test]
fn every_struct_of_the_header_stands_here() {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/kvferry.h");
    let header = std::fs::read_to_string(header).expect("committed");
    let structs = header.lines().filter_map(|line| {
        let name = line.strip_prefix("typedef struct ")?.strip_suffix(" {")?;
        Some(name.to_owned())
    });
    let structs: BTreeSet<String> = structs.collect();
    assert!(structs.len() > 50, "{structs:?}");
    let here = |name: &&String| include_str!("abi.rs").contains(&format!("layout!({name}, "));
    let missing: Vec<&String> = structs.iter().filter(|name| !here(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// `layout!(type, size, align; field offset, ...)`
macro_rules! layout {
    ($t:ty, $size:expr, $align:expr; $($field:ident $offset:expr),+) => {
        const _: () = {
            assert!(size_of::<$t>() == $size && align_of::<$t>() == $align);
            $(assert!(offset_of!($t, $field) == $offset);)+
        };
    };
}

layout!(kvf_agent, 8, 8; id 0);
layout!(kvf_desc_list, 8, 8; id 0);
layout!(kvf_transfer, 8, 8; id 0);
layout!(kvf_side_channel, 8, 8; id 0);
layout!(kvf_buffer, 16, 8; data 0, len 8);
layout!(kvf_string_list, 16, 8; items 0, len 8);
layout!(kvf_param, 16, 8; key 0, value 8);
layout!(kvf_param_list, 16, 8; items 0, len 8);
layout!(kvf_notification, 24, 8; from 0, payload 8, payload_len 16);
layout!(kvf_notification_list, 16, 8; items 0, len 8);
layout!(kvf_query_result, 24, 8; found 0, params 8);
layout!(kvf_query_list, 16, 8; items 0, len 8);
layout!(kvf_mem_desc, 24, 8; addr 0, len 8, device 16);
layout!(kvf_strided_desc, 40, 8; addr 0, len 8, device 16, stride 24, count 32);
layout!(kvf_reg_desc, 40, 8; addr 0, len 8, device 16, meta 24, meta_len 32);
layout!(kvf_backend, 24, 8; name 0, params 8, params_len 16);
layout!(kvf_agent_options, 88, 8;
    struct_size 0, progress 4, name 8, transport 16, nixl_library 24, nixl_plugin_dir 32,
    backends 40, backends_len 48, progress_delay_us 56, sync_mode 64, worker_threads 68,
    copy_threads 72, drain_timeout_ms 76, listen_port 80, listen 82, telemetry 83,
    no_default_backend 84, reserved 85);
layout!(kvf_transfer_options, 40, 8;
    struct_size 0, skip_merge 4, has_notification 5, reserved 6, notification 8,
    notification_len 16, backends 24, backends_len 32);
layout!(kvf_transfer_telemetry, 40, 8;
    start_time_us 0, post_duration_us 8, transfer_duration_us 16, total_bytes 24, descriptors 32);
layout!(kvf_transfer_cost, 24, 8; duration_us 0, error_margin_us 8, method 16, reserved 20);
layout!(kvf_parallel, 32, 4;
    tp_rank 0, tp_size 4, pp_rank 8, pp_size 12, dcp_rank 16, dcp_size 20, dcp_interleave 24,
    reserved 28);
layout!(kvf_group, 24, 4;
    kind 0, tokens_per_block 4, kernel_blocks 8, window 12, format 16, reserved 20);
layout!(kvf_region, 48, 8;
    base 0, page_stride 8, page_len 16, page_count 24, device 32, mem_kind 40, reserved 44);
layout!(kvf_dense_layers, 64, 8;
    group 0, kv_heads 4, k_head_size 8, v_head_size 12, elem_bytes 16, order 20, kv 24,
    first_layer 28, layers 32, layers_len 40, regions 48, regions_len 56);
layout!(kvf_latent_layers, 56, 8;
    group 0, size 4, elem_bytes 8, role 12, first_layer 16, reserved 20, layers 24, layers_len 32,
    regions 40, regions_len 48);
layout!(kvf_sub_projection, 8, 4; units 0, channels_per_unit 4);
layout!(kvf_state_layers, 80, 8;
    group 0, conv_rows 4, conv_elem_bytes 8, conv_order 12, ssm_heads 16, ssm_head_bytes 20,
    ssm_elem_bytes 24, first_layer 28, conv 32, conv_len 40, layers 48, layers_len 56, regions 64,
    regions_len 72);
layout!(kvf_part, 64, 8;
    group 0, region 4, layer 8, role 12, offset 16, heads_total 24, head_first 28, head_count 32,
    rows 36, head_stride 40, row_stride 48, cell_bytes 56, elem_bytes 60);
layout!(kvf_layout_options, 136, 8;
    struct_size 0, reserved 4, parallel 8, groups 40, groups_len 48, dense 56, dense_len 64,
    latent 72, latent_len 80, state 88, state_len 96, regions 104, regions_len 112, parts 120,
    parts_len 128);
layout!(kvf_layout, 8, 8; id 0);
layout!(kvf_layout_tables, 80, 8;
    parallel 0, regions 32, regions_len 40, groups 48, groups_len 56, parts 64, parts_len 72);
layout!(kvf_plan_options, 16, 4;
    struct_size 0, direction 4, keep_lanes 8, uneven_blocks 9, reserved 10);
layout!(kvf_plan, 8, 8; id 0);
layout!(kvf_group_side, 32, 8;
    tokens_per_block 0, kernel_blocks 4, dcp_size 8, dcp_interleave 12, pool 16, reserved 20,
    block_count 24);
layout!(kvf_group_geometry, 80, 8;
    kind 0, window 4, atom_tokens 8, reserved 12, local 16, remote 48);
layout!(kvf_peer, 16, 4; tp_rank 0, pp_rank 4, role 8, notifiers 12);
layout!(kvf_lane_side, 40, 8; base 0, stride 8, sub_stride 16, device 24, mem_kind 32, reserved 36);
layout!(kvf_lane_inner, 24, 8; local_stride 0, remote_stride 8, count 16, reserved 20);
layout!(kvf_lane, 152, 8;
    peer 0, group 4, local_shard 8, remote_shard 12, len 16, local 24, remote 64, inner 104);
layout!(kvf_plan_custom, 64, 8;
    struct_size 0, direction 4, groups 8, groups_len 16, peers 24, peers_len 32, lanes 40,
    lanes_len 48, uneven_blocks 56, reserved 57);
layout!(kvf_plan_tables, 64, 8;
    direction 0, batches 4, lanes_before 8, groups 16, groups_len 24, peers 32, peers_len 40,
    lanes 48, lanes_len 56);
layout!(kvf_group_blocks, 48, 8;
    local 0, local_len 8, remote 16, remote_len 24, local_first 32, remote_first 36,
    has_local_first 40, has_remote_first 41, reserved 42);
layout!(kvf_coverage, 32, 8; first 0, end 8, missing_head 16, missing_tail 24);
layout!(kvf_expand_stats, 32, 8; bytes 0, ranges_before 8, ranges 16, reserved 24);
layout!(kvf_range, 32, 8; peer 0, lane 4, local 8, remote 16, len 24);
layout!(kvf_range_list, 16, 8; items 0, len 8);
layout!(kvf_queue_options, 24, 8;
    struct_size 0, capacity 4, slice_bytes 8, slice_descriptors 16, slices_in_flight 20);
layout!(kvf_queue, 8, 8; id 0);
layout!(kvf_guard, 24, 8; peer 0, reserved 4, addr 8, limit 16);
layout!(kvf_submission, 96, 8;
    struct_size 0, has_notification 4, reserved 5, plan 8, agents 16, agents_len 24, groups 32,
    groups_len 40, tokens 48, notification 56, notification_len 64, deadline_ms 72,
    guards 80, guards_len 88);
layout!(kvf_completion, 408, 8;
    ticket 0, status 8, not_notified 12, submitted_ns 16, planned_ns 24, posted_ns 32,
    finished_ns 40, bytes 48, total_bytes 56, descriptors_before 64, descriptors 72, slices 80,
    reserved 88, message 120, backend 376);
layout!(kvf_queue_stats, 128, 8;
    submitted 0, succeeded 8, failed 16, refused 24, running 32, unpolled 40, bytes 48,
    descriptors_before 56, descriptors 64, slices 72, thread_cpu_ns 80, reserved 88);
layout!(kvf_side_channel_options, 48, 8;
    struct_size 0, max_connections 4, kind 8, host 16, max_message_bytes 24, timeout_ms 32,
    port 40, reserved 42);
layout!(kvf_scheduler, 8, 8; id 0);
layout!(kvf_transfer_group, 16, 4; kind 0, tokens_per_block 4, window 8, scratch_blocks 12);
layout!(kvf_scheduler_options, 104, 8;
    struct_size 0, mode 4, engine_id 8, host 16, groups 24, groups_len 32, tp_size 40, pp_size 44,
    dcp_size 48, backoff_tokens 52, lease_ms 56, heartbeat_ms 64, pin_ms 72,
    registration_timeout_ms 80, recompute_threshold 88, port 96, bidirectional 98, clip 99,
    state_registrations 100, reserved 101);
layout!(kvf_request_blocks, 24, 8; ids 0, len 8, first 16, reserved 20);
layout!(kvf_rank_payload, 24, 8; pp_rank 0, tp_rank 4, data 8, len 16);
layout!(kvf_scheduler_stats, 64, 8;
    requests 0, receiving 8, holds 16, leases 24, heartbeats 32, peers 40, reserved 48);
layout!(kvf_worker, 8, 8; id 0);
layout!(kvf_worker_options, 120, 8;
    struct_size 0, mode 4, agent 8, engine_id 16, compat_hash 24, host 32, queue 40, tp_rank 48,
    tp_size 52, pp_rank 56, pp_size 60, dcp_size 64, dcp_interleave 68, lease_ms 72,
    handshake_timeout_ms 80, engine_ttl_ms 88, registration_timeout_ms 96, transfer_timeout_ms 104,
    port 112, ignore_compat 114, reserved 115);
layout!(kvf_worker_results, 80, 8;
    sent 0, sent_len 8, received 16, received_len 24, failed 32, failed_len 40, failed_blocks 48,
    failed_blocks_len 56, storage 64, has_stats 72, reserved 73);
layout!(kvf_worker_record, 120, 8;
    request_id 0, engine_id 8, message 16, kind 24, status 28, arrived_ns 32, queued_ns 40,
    planned_ns 48, posted_ns 56, finished_ns 64, bytes 72, descriptors 80, reserved 88);
layout!(kvf_worker_record_list, 24, 8; items 0, len 8, storage 16);
layout!(kvf_worker_state, 64, 8;
    receives 0, holds 8, pushes 16, peers 24, handshakes 32, reserved 40);
layout!(kvf_block_pool, 8, 8; id 0);
layout!(kvf_block_pool_options, 32, 8; struct_size 0, blocks 4, policy 8, caching 12, events 13, tolerate_null 14, reserved 15, fraction 16, event_bytes 24);
layout!(kvf_block_node, 16, 4; prev 0, next 4, refs 8, flags 12);
layout!(kvf_block_pool_stats, 128, 8; blocks 0, free 8, cached_blocks 16, cached_keys 24, allocations 32, refused_allocations 40, allocated_blocks 48, allocated_runs 56, freed_blocks 64, revived_blocks 72, lookups 80, hits 88, stored_keys 96, removed_keys 104, resets 112, lost_events 120);
layout!(kvf_cached_blocks, 96, 8; struct_size 0, group 4, first 8, block_size 12, blocks 16, len 24, hashes 32, hash_len 40, mask 48, parent 56, parent_len 64, tokens 72, tokens_len 80, tag 88);
layout!(kvf_cached_part, 80, 8; struct_size 0, block 4, group 8, num_tokens 12, block_size 16, replace 20, reserved 21, hash 24, hash_len 32, parent 40, parent_len 48, tokens 56, tokens_len 64, tag 72);
layout!(kvf_block_event, 80, 8; kind 0, group 4, block_size 8, reserved 12, hashes 16, hash_len 24, count 32, parent 40, parent_len 48, tokens 56, tokens_len 64, tag 72);
layout!(kvf_block_event_list, 32, 8; items 0, len 8, lost 16, storage 24);
layout!(kvf_block_key, 260, 4; hash 0, hash_len 255, group 256);
layout!(kvf_clock_sample, 16, 8; offset_s 0, rtt_s 8);
layout!(kvf_kv_state, 56, 8;
    kind 0, conv_channels_total 4, conv_rows 8, conv_elem_bytes 12, ssm_shape 16, ssm_dims 32,
    ssm_elem_bytes 36, conv_channels 40, conv_channels_len 48);
layout!(kvf_kv_tensor, 176, 8;
    layer 0, group 8, content 12, address 16, storage_address 24, storage_bytes 32, page_bytes
    40, num_blocks 48, device 56, mem_kind 64, elem_bytes 68, shape 72, strides 112, dims 152,
    k_head_size 156, v_head_size 160, kv_heads 164, state 168);
layout!(kvf_kv_cache, 88, 8;
    struct_size 0, kv_heads 4, tensors 8, tensors_len 16, groups 24, groups_len 32, num_blocks
    40, blocks_per_logical 48, block_tokens 52, layout 56, attn_backend 64, slab_order 72,
    pcp_size 76, mla 80, hybrid 81, reserved 82);
layout!(kvf_pool_client, 8, 8; id 0);
layout!(kvf_pool_client_options, 56, 8;
    struct_size 0, publish 4, reserved 5, address 8, pool 16, session 24, create 32, timeout_ms
    40, session_timeout_ms 48);
layout!(kvf_pool_op, 328, 8;
    kind 0, status 4, request 8, count 16, after 20, ids 24, ids_len 32, hashes 40, hash_len 48,
    hash_count 56, groups 64, groups_len 72, cached 80, part 88, out 96, out_capacity 104,
    out_len 112, value 120, keys 128, keys_capacity 136, stats 144, events 152, tokens 160,
    reserved 164, message 168);
