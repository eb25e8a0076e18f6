/* Where the fields of the structs are, as a C compiler sees it. tests/abi.rs asserts the same
 * figures on the Rust side. Nothing to run: it compiles or it does not. */
#include <stddef.h>

#include "kvferry.h"

#ifdef __cplusplus
#define ASSERT static_assert
#define ALIGN alignof
#else
#define ASSERT _Static_assert
#define ALIGN _Alignof
#endif

#define SIZE(type, size, align) \
  ASSERT(sizeof(type) == (size) && ALIGN(type) == (align), "size of " #type)
#define FIELD(type, field, offset) \
  ASSERT(offsetof(type, field) == (offset), "offset of " #type "." #field)

#define HANDLE(type) \
  SIZE(type, 8, 8);  \
  FIELD(type, id, 0)
#define LIST(type)       \
  SIZE(type, 16, 8);     \
  FIELD(type, items, 0); \
  FIELD(type, len, 8)

HANDLE(kvf_agent);
HANDLE(kvf_desc_list);
HANDLE(kvf_transfer);
HANDLE(kvf_layout);
HANDLE(kvf_plan);
HANDLE(kvf_queue);
HANDLE(kvf_scheduler);
HANDLE(kvf_side_channel);
HANDLE(kvf_block_pool);

LIST(kvf_string_list);
LIST(kvf_param_list);
LIST(kvf_notification_list);
LIST(kvf_query_list);
LIST(kvf_range_list);

ASSERT(sizeof(kvf_status) == 4, "kvf_status is 32 bits wide");

SIZE(kvf_buffer, 16, 8);
FIELD(kvf_buffer, data, 0);
FIELD(kvf_buffer, len, 8);

SIZE(kvf_param, 16, 8);
FIELD(kvf_param, key, 0);
FIELD(kvf_param, value, 8);

SIZE(kvf_notification, 24, 8);
FIELD(kvf_notification, from, 0);
FIELD(kvf_notification, payload, 8);
FIELD(kvf_notification, payload_len, 16);

SIZE(kvf_query_result, 24, 8);
FIELD(kvf_query_result, found, 0);
FIELD(kvf_query_result, params, 8);

SIZE(kvf_mem_desc, 24, 8);
FIELD(kvf_mem_desc, addr, 0);
FIELD(kvf_mem_desc, len, 8);
FIELD(kvf_mem_desc, device, 16);

SIZE(kvf_strided_desc, 40, 8);
FIELD(kvf_strided_desc, addr, 0);
FIELD(kvf_strided_desc, len, 8);
FIELD(kvf_strided_desc, device, 16);
FIELD(kvf_strided_desc, stride, 24);
FIELD(kvf_strided_desc, count, 32);

SIZE(kvf_reg_desc, 40, 8);
FIELD(kvf_reg_desc, addr, 0);
FIELD(kvf_reg_desc, len, 8);
FIELD(kvf_reg_desc, device, 16);
FIELD(kvf_reg_desc, meta, 24);
FIELD(kvf_reg_desc, meta_len, 32);

SIZE(kvf_backend, 24, 8);
FIELD(kvf_backend, name, 0);
FIELD(kvf_backend, params, 8);
FIELD(kvf_backend, params_len, 16);

SIZE(kvf_agent_options, 88, 8);
FIELD(kvf_agent_options, struct_size, 0);
FIELD(kvf_agent_options, progress, 4);
FIELD(kvf_agent_options, name, 8);
FIELD(kvf_agent_options, transport, 16);
FIELD(kvf_agent_options, nixl_library, 24);
FIELD(kvf_agent_options, nixl_plugin_dir, 32);
FIELD(kvf_agent_options, backends, 40);
FIELD(kvf_agent_options, backends_len, 48);
FIELD(kvf_agent_options, progress_delay_us, 56);
FIELD(kvf_agent_options, sync_mode, 64);
FIELD(kvf_agent_options, worker_threads, 68);
FIELD(kvf_agent_options, copy_threads, 72);
FIELD(kvf_agent_options, drain_timeout_ms, 76);
FIELD(kvf_agent_options, listen_port, 80);
FIELD(kvf_agent_options, listen, 82);
FIELD(kvf_agent_options, telemetry, 83);
FIELD(kvf_agent_options, no_default_backend, 84);
FIELD(kvf_agent_options, reserved, 85);

SIZE(kvf_transfer_options, 40, 8);
FIELD(kvf_transfer_options, struct_size, 0);
FIELD(kvf_transfer_options, skip_merge, 4);
FIELD(kvf_transfer_options, has_notification, 5);
FIELD(kvf_transfer_options, reserved, 6);
FIELD(kvf_transfer_options, notification, 8);
FIELD(kvf_transfer_options, notification_len, 16);
FIELD(kvf_transfer_options, backends, 24);
FIELD(kvf_transfer_options, backends_len, 32);

SIZE(kvf_transfer_telemetry, 40, 8);
FIELD(kvf_transfer_telemetry, start_time_us, 0);
FIELD(kvf_transfer_telemetry, post_duration_us, 8);
FIELD(kvf_transfer_telemetry, transfer_duration_us, 16);
FIELD(kvf_transfer_telemetry, total_bytes, 24);
FIELD(kvf_transfer_telemetry, descriptors, 32);

SIZE(kvf_transfer_cost, 24, 8);
FIELD(kvf_transfer_cost, duration_us, 0);
FIELD(kvf_transfer_cost, error_margin_us, 8);
FIELD(kvf_transfer_cost, method, 16);
FIELD(kvf_transfer_cost, reserved, 20);

SIZE(kvf_parallel, 32, 4);
FIELD(kvf_parallel, tp_rank, 0);
FIELD(kvf_parallel, tp_size, 4);
FIELD(kvf_parallel, pp_rank, 8);
FIELD(kvf_parallel, pp_size, 12);
FIELD(kvf_parallel, dcp_rank, 16);
FIELD(kvf_parallel, dcp_size, 20);
FIELD(kvf_parallel, dcp_interleave, 24);
FIELD(kvf_parallel, reserved, 28);

SIZE(kvf_group, 24, 4);
FIELD(kvf_group, kind, 0);
FIELD(kvf_group, tokens_per_block, 4);
FIELD(kvf_group, kernel_blocks, 8);
FIELD(kvf_group, window, 12);
FIELD(kvf_group, format, 16);
FIELD(kvf_group, reserved, 20);

SIZE(kvf_region, 48, 8);
FIELD(kvf_region, base, 0);
FIELD(kvf_region, page_stride, 8);
FIELD(kvf_region, page_len, 16);
FIELD(kvf_region, page_count, 24);
FIELD(kvf_region, device, 32);
FIELD(kvf_region, mem_kind, 40);
FIELD(kvf_region, reserved, 44);

SIZE(kvf_dense_layers, 64, 8);
FIELD(kvf_dense_layers, group, 0);
FIELD(kvf_dense_layers, kv_heads, 4);
FIELD(kvf_dense_layers, k_head_size, 8);
FIELD(kvf_dense_layers, v_head_size, 12);
FIELD(kvf_dense_layers, elem_bytes, 16);
FIELD(kvf_dense_layers, order, 20);
FIELD(kvf_dense_layers, kv, 24);
FIELD(kvf_dense_layers, first_layer, 28);
FIELD(kvf_dense_layers, layers, 32);
FIELD(kvf_dense_layers, layers_len, 40);
FIELD(kvf_dense_layers, regions, 48);
FIELD(kvf_dense_layers, regions_len, 56);

SIZE(kvf_latent_layers, 56, 8);
FIELD(kvf_latent_layers, group, 0);
FIELD(kvf_latent_layers, size, 4);
FIELD(kvf_latent_layers, elem_bytes, 8);
FIELD(kvf_latent_layers, role, 12);
FIELD(kvf_latent_layers, first_layer, 16);
FIELD(kvf_latent_layers, reserved, 20);
FIELD(kvf_latent_layers, layers, 24);
FIELD(kvf_latent_layers, layers_len, 32);
FIELD(kvf_latent_layers, regions, 40);
FIELD(kvf_latent_layers, regions_len, 48);

SIZE(kvf_sub_projection, 8, 4);
FIELD(kvf_sub_projection, units, 0);
FIELD(kvf_sub_projection, channels_per_unit, 4);

SIZE(kvf_state_layers, 80, 8);
FIELD(kvf_state_layers, group, 0);
FIELD(kvf_state_layers, conv_rows, 4);
FIELD(kvf_state_layers, conv_elem_bytes, 8);
FIELD(kvf_state_layers, conv_order, 12);
FIELD(kvf_state_layers, ssm_heads, 16);
FIELD(kvf_state_layers, ssm_head_bytes, 20);
FIELD(kvf_state_layers, ssm_elem_bytes, 24);
FIELD(kvf_state_layers, first_layer, 28);
FIELD(kvf_state_layers, conv, 32);
FIELD(kvf_state_layers, conv_len, 40);
FIELD(kvf_state_layers, layers, 48);
FIELD(kvf_state_layers, layers_len, 56);
FIELD(kvf_state_layers, regions, 64);
FIELD(kvf_state_layers, regions_len, 72);

SIZE(kvf_part, 64, 8);
FIELD(kvf_part, group, 0);
FIELD(kvf_part, region, 4);
FIELD(kvf_part, layer, 8);
FIELD(kvf_part, role, 12);
FIELD(kvf_part, offset, 16);
FIELD(kvf_part, heads_total, 24);
FIELD(kvf_part, head_first, 28);
FIELD(kvf_part, head_count, 32);
FIELD(kvf_part, rows, 36);
FIELD(kvf_part, head_stride, 40);
FIELD(kvf_part, row_stride, 48);
FIELD(kvf_part, cell_bytes, 56);
FIELD(kvf_part, elem_bytes, 60);

SIZE(kvf_layout_options, 136, 8);
FIELD(kvf_layout_options, struct_size, 0);
FIELD(kvf_layout_options, reserved, 4);
FIELD(kvf_layout_options, parallel, 8);
FIELD(kvf_layout_options, groups, 40);
FIELD(kvf_layout_options, groups_len, 48);
FIELD(kvf_layout_options, dense, 56);
FIELD(kvf_layout_options, dense_len, 64);
FIELD(kvf_layout_options, latent, 72);
FIELD(kvf_layout_options, latent_len, 80);
FIELD(kvf_layout_options, state, 88);
FIELD(kvf_layout_options, state_len, 96);
FIELD(kvf_layout_options, regions, 104);
FIELD(kvf_layout_options, regions_len, 112);
FIELD(kvf_layout_options, parts, 120);
FIELD(kvf_layout_options, parts_len, 128);

SIZE(kvf_layout_tables, 80, 8);
FIELD(kvf_layout_tables, parallel, 0);
FIELD(kvf_layout_tables, regions, 32);
FIELD(kvf_layout_tables, regions_len, 40);
FIELD(kvf_layout_tables, groups, 48);
FIELD(kvf_layout_tables, groups_len, 56);
FIELD(kvf_layout_tables, parts, 64);
FIELD(kvf_layout_tables, parts_len, 72);

SIZE(kvf_plan_options, 16, 4);
FIELD(kvf_plan_options, struct_size, 0);
FIELD(kvf_plan_options, direction, 4);
FIELD(kvf_plan_options, keep_lanes, 8);
FIELD(kvf_plan_options, uneven_blocks, 9);
FIELD(kvf_plan_options, reserved, 10);

SIZE(kvf_group_side, 32, 8);
FIELD(kvf_group_side, tokens_per_block, 0);
FIELD(kvf_group_side, kernel_blocks, 4);
FIELD(kvf_group_side, dcp_size, 8);
FIELD(kvf_group_side, dcp_interleave, 12);
FIELD(kvf_group_side, pool, 16);
FIELD(kvf_group_side, reserved, 20);
FIELD(kvf_group_side, block_count, 24);

SIZE(kvf_group_geometry, 80, 8);
FIELD(kvf_group_geometry, kind, 0);
FIELD(kvf_group_geometry, window, 4);
FIELD(kvf_group_geometry, atom_tokens, 8);
FIELD(kvf_group_geometry, reserved, 12);
FIELD(kvf_group_geometry, local, 16);
FIELD(kvf_group_geometry, remote, 48);

SIZE(kvf_peer, 16, 4);
FIELD(kvf_peer, tp_rank, 0);
FIELD(kvf_peer, pp_rank, 4);
FIELD(kvf_peer, role, 8);
FIELD(kvf_peer, notifiers, 12);

SIZE(kvf_lane_side, 40, 8);
FIELD(kvf_lane_side, base, 0);
FIELD(kvf_lane_side, stride, 8);
FIELD(kvf_lane_side, sub_stride, 16);
FIELD(kvf_lane_side, device, 24);
FIELD(kvf_lane_side, mem_kind, 32);
FIELD(kvf_lane_side, reserved, 36);

SIZE(kvf_lane_inner, 24, 8);
FIELD(kvf_lane_inner, local_stride, 0);
FIELD(kvf_lane_inner, remote_stride, 8);
FIELD(kvf_lane_inner, count, 16);
FIELD(kvf_lane_inner, reserved, 20);

SIZE(kvf_lane, 152, 8);
FIELD(kvf_lane, peer, 0);
FIELD(kvf_lane, group, 4);
FIELD(kvf_lane, local_shard, 8);
FIELD(kvf_lane, remote_shard, 12);
FIELD(kvf_lane, len, 16);
FIELD(kvf_lane, local, 24);
FIELD(kvf_lane, remote, 64);
FIELD(kvf_lane, inner, 104);

SIZE(kvf_plan_custom, 64, 8);
FIELD(kvf_plan_custom, struct_size, 0);
FIELD(kvf_plan_custom, direction, 4);
FIELD(kvf_plan_custom, groups, 8);
FIELD(kvf_plan_custom, groups_len, 16);
FIELD(kvf_plan_custom, peers, 24);
FIELD(kvf_plan_custom, peers_len, 32);
FIELD(kvf_plan_custom, lanes, 40);
FIELD(kvf_plan_custom, lanes_len, 48);
FIELD(kvf_plan_custom, uneven_blocks, 56);
FIELD(kvf_plan_custom, reserved, 57);

SIZE(kvf_plan_tables, 64, 8);
FIELD(kvf_plan_tables, direction, 0);
FIELD(kvf_plan_tables, batches, 4);
FIELD(kvf_plan_tables, lanes_before, 8);
FIELD(kvf_plan_tables, groups, 16);
FIELD(kvf_plan_tables, groups_len, 24);
FIELD(kvf_plan_tables, peers, 32);
FIELD(kvf_plan_tables, peers_len, 40);
FIELD(kvf_plan_tables, lanes, 48);
FIELD(kvf_plan_tables, lanes_len, 56);

SIZE(kvf_group_blocks, 48, 8);
FIELD(kvf_group_blocks, local, 0);
FIELD(kvf_group_blocks, local_len, 8);
FIELD(kvf_group_blocks, remote, 16);
FIELD(kvf_group_blocks, remote_len, 24);
FIELD(kvf_group_blocks, local_first, 32);
FIELD(kvf_group_blocks, remote_first, 36);
FIELD(kvf_group_blocks, has_local_first, 40);
FIELD(kvf_group_blocks, has_remote_first, 41);
FIELD(kvf_group_blocks, reserved, 42);

SIZE(kvf_coverage, 32, 8);
FIELD(kvf_coverage, first, 0);
FIELD(kvf_coverage, end, 8);
FIELD(kvf_coverage, missing_head, 16);
FIELD(kvf_coverage, missing_tail, 24);

SIZE(kvf_expand_stats, 32, 8);
FIELD(kvf_expand_stats, bytes, 0);
FIELD(kvf_expand_stats, ranges_before, 8);
FIELD(kvf_expand_stats, ranges, 16);
FIELD(kvf_expand_stats, reserved, 24);

SIZE(kvf_range, 32, 8);
FIELD(kvf_range, peer, 0);
FIELD(kvf_range, lane, 4);
FIELD(kvf_range, local, 8);
FIELD(kvf_range, remote, 16);
FIELD(kvf_range, len, 24);

SIZE(kvf_queue_options, 24, 8);
FIELD(kvf_queue_options, struct_size, 0);
FIELD(kvf_queue_options, capacity, 4);
FIELD(kvf_queue_options, slice_bytes, 8);
FIELD(kvf_queue_options, slice_descriptors, 16);
FIELD(kvf_queue_options, slices_in_flight, 20);

SIZE(kvf_guard, 24, 8);
FIELD(kvf_guard, peer, 0);
FIELD(kvf_guard, reserved, 4);
FIELD(kvf_guard, addr, 8);
FIELD(kvf_guard, limit, 16);
SIZE(kvf_submission, 96, 8);
FIELD(kvf_submission, struct_size, 0);
FIELD(kvf_submission, has_notification, 4);
FIELD(kvf_submission, reserved, 5);
FIELD(kvf_submission, plan, 8);
FIELD(kvf_submission, agents, 16);
FIELD(kvf_submission, agents_len, 24);
FIELD(kvf_submission, groups, 32);
FIELD(kvf_submission, groups_len, 40);
FIELD(kvf_submission, tokens, 48);
FIELD(kvf_submission, notification, 56);
FIELD(kvf_submission, notification_len, 64);
FIELD(kvf_submission, deadline_ms, 72);
FIELD(kvf_submission, guards, 80);
FIELD(kvf_submission, guards_len, 88);

SIZE(kvf_completion, 408, 8);
FIELD(kvf_completion, ticket, 0);
FIELD(kvf_completion, status, 8);
FIELD(kvf_completion, not_notified, 12);
FIELD(kvf_completion, submitted_ns, 16);
FIELD(kvf_completion, planned_ns, 24);
FIELD(kvf_completion, posted_ns, 32);
FIELD(kvf_completion, finished_ns, 40);
FIELD(kvf_completion, bytes, 48);
FIELD(kvf_completion, total_bytes, 56);
FIELD(kvf_completion, descriptors_before, 64);
FIELD(kvf_completion, descriptors, 72);
FIELD(kvf_completion, slices, 80);
FIELD(kvf_completion, reserved, 88);
FIELD(kvf_completion, message, 120);
FIELD(kvf_completion, backend, 376);

SIZE(kvf_queue_stats, 128, 8);
FIELD(kvf_queue_stats, submitted, 0);
FIELD(kvf_queue_stats, succeeded, 8);
FIELD(kvf_queue_stats, failed, 16);
FIELD(kvf_queue_stats, refused, 24);
FIELD(kvf_queue_stats, running, 32);
FIELD(kvf_queue_stats, unpolled, 40);
FIELD(kvf_queue_stats, bytes, 48);
FIELD(kvf_queue_stats, descriptors_before, 56);
FIELD(kvf_queue_stats, descriptors, 64);
FIELD(kvf_queue_stats, slices, 72);
FIELD(kvf_queue_stats, thread_cpu_ns, 80);
FIELD(kvf_queue_stats, reserved, 88);

SIZE(kvf_transfer_group, 16, 4);
FIELD(kvf_transfer_group, kind, 0);
FIELD(kvf_transfer_group, tokens_per_block, 4);
FIELD(kvf_transfer_group, window, 8);
FIELD(kvf_transfer_group, scratch_blocks, 12);

SIZE(kvf_scheduler_options, 104, 8);
FIELD(kvf_scheduler_options, struct_size, 0);
FIELD(kvf_scheduler_options, mode, 4);
FIELD(kvf_scheduler_options, engine_id, 8);
FIELD(kvf_scheduler_options, host, 16);
FIELD(kvf_scheduler_options, groups, 24);
FIELD(kvf_scheduler_options, groups_len, 32);
FIELD(kvf_scheduler_options, tp_size, 40);
FIELD(kvf_scheduler_options, pp_size, 44);
FIELD(kvf_scheduler_options, dcp_size, 48);
FIELD(kvf_scheduler_options, backoff_tokens, 52);
FIELD(kvf_scheduler_options, lease_ms, 56);
FIELD(kvf_scheduler_options, heartbeat_ms, 64);
FIELD(kvf_scheduler_options, pin_ms, 72);
FIELD(kvf_scheduler_options, registration_timeout_ms, 80);
FIELD(kvf_scheduler_options, recompute_threshold, 88);
FIELD(kvf_scheduler_options, port, 96);
FIELD(kvf_scheduler_options, bidirectional, 98);
FIELD(kvf_scheduler_options, clip, 99);
FIELD(kvf_scheduler_options, state_registrations, 100);
FIELD(kvf_scheduler_options, reserved, 101);

SIZE(kvf_request_blocks, 24, 8);
FIELD(kvf_request_blocks, ids, 0);
FIELD(kvf_request_blocks, len, 8);
FIELD(kvf_request_blocks, first, 16);
FIELD(kvf_request_blocks, reserved, 20);

SIZE(kvf_rank_payload, 24, 8);
FIELD(kvf_rank_payload, pp_rank, 0);
FIELD(kvf_rank_payload, tp_rank, 4);
FIELD(kvf_rank_payload, data, 8);
FIELD(kvf_rank_payload, len, 16);

SIZE(kvf_scheduler_stats, 64, 8);
FIELD(kvf_scheduler_stats, requests, 0);
FIELD(kvf_scheduler_stats, receiving, 8);
FIELD(kvf_scheduler_stats, holds, 16);
FIELD(kvf_scheduler_stats, leases, 24);
FIELD(kvf_scheduler_stats, heartbeats, 32);
FIELD(kvf_scheduler_stats, peers, 40);
FIELD(kvf_scheduler_stats, reserved, 48);

SIZE(kvf_side_channel_options, 48, 8);
FIELD(kvf_side_channel_options, struct_size, 0);
FIELD(kvf_side_channel_options, max_connections, 4);
FIELD(kvf_side_channel_options, kind, 8);
FIELD(kvf_side_channel_options, host, 16);
FIELD(kvf_side_channel_options, max_message_bytes, 24);
FIELD(kvf_side_channel_options, timeout_ms, 32);
FIELD(kvf_side_channel_options, port, 40);
FIELD(kvf_side_channel_options, reserved, 42);

SIZE(kvf_block_pool_options, 32, 8);
FIELD(kvf_block_pool_options, struct_size, 0);
FIELD(kvf_block_pool_options, blocks, 4);
FIELD(kvf_block_pool_options, policy, 8);
FIELD(kvf_block_pool_options, caching, 12);
FIELD(kvf_block_pool_options, events, 13);
FIELD(kvf_block_pool_options, tolerate_null, 14);
FIELD(kvf_block_pool_options, reserved, 15);
FIELD(kvf_block_pool_options, fraction, 16);
FIELD(kvf_block_pool_options, event_bytes, 24);

SIZE(kvf_block_pool_stats, 128, 8);
FIELD(kvf_block_pool_stats, blocks, 0);
FIELD(kvf_block_pool_stats, free, 8);
FIELD(kvf_block_pool_stats, cached_blocks, 16);
FIELD(kvf_block_pool_stats, cached_keys, 24);
FIELD(kvf_block_pool_stats, allocations, 32);
FIELD(kvf_block_pool_stats, refused_allocations, 40);
FIELD(kvf_block_pool_stats, allocated_blocks, 48);
FIELD(kvf_block_pool_stats, allocated_runs, 56);
FIELD(kvf_block_pool_stats, freed_blocks, 64);
FIELD(kvf_block_pool_stats, revived_blocks, 72);
FIELD(kvf_block_pool_stats, lookups, 80);
FIELD(kvf_block_pool_stats, hits, 88);
FIELD(kvf_block_pool_stats, stored_keys, 96);
FIELD(kvf_block_pool_stats, removed_keys, 104);
FIELD(kvf_block_pool_stats, resets, 112);
FIELD(kvf_block_pool_stats, lost_events, 120);

SIZE(kvf_cached_blocks, 96, 8);
FIELD(kvf_cached_blocks, struct_size, 0);
FIELD(kvf_cached_blocks, group, 4);
FIELD(kvf_cached_blocks, first, 8);
FIELD(kvf_cached_blocks, block_size, 12);
FIELD(kvf_cached_blocks, blocks, 16);
FIELD(kvf_cached_blocks, len, 24);
FIELD(kvf_cached_blocks, hashes, 32);
FIELD(kvf_cached_blocks, hash_len, 40);
FIELD(kvf_cached_blocks, mask, 48);
FIELD(kvf_cached_blocks, parent, 56);
FIELD(kvf_cached_blocks, parent_len, 64);
FIELD(kvf_cached_blocks, tokens, 72);
FIELD(kvf_cached_blocks, tokens_len, 80);
FIELD(kvf_cached_blocks, tag, 88);

SIZE(kvf_cached_part, 80, 8);
FIELD(kvf_cached_part, struct_size, 0);
FIELD(kvf_cached_part, block, 4);
FIELD(kvf_cached_part, group, 8);
FIELD(kvf_cached_part, num_tokens, 12);
FIELD(kvf_cached_part, block_size, 16);
FIELD(kvf_cached_part, replace, 20);
FIELD(kvf_cached_part, reserved, 21);
FIELD(kvf_cached_part, hash, 24);
FIELD(kvf_cached_part, hash_len, 32);
FIELD(kvf_cached_part, parent, 40);
FIELD(kvf_cached_part, parent_len, 48);
FIELD(kvf_cached_part, tokens, 56);
FIELD(kvf_cached_part, tokens_len, 64);
FIELD(kvf_cached_part, tag, 72);

SIZE(kvf_block_event, 80, 8);
FIELD(kvf_block_event, kind, 0);
FIELD(kvf_block_event, group, 4);
FIELD(kvf_block_event, block_size, 8);
FIELD(kvf_block_event, reserved, 12);
FIELD(kvf_block_event, hashes, 16);
FIELD(kvf_block_event, hash_len, 24);
FIELD(kvf_block_event, count, 32);
FIELD(kvf_block_event, parent, 40);
FIELD(kvf_block_event, parent_len, 48);
FIELD(kvf_block_event, tokens, 56);
FIELD(kvf_block_event, tokens_len, 64);
FIELD(kvf_block_event, tag, 72);

SIZE(kvf_block_event_list, 32, 8);
FIELD(kvf_block_event_list, items, 0);
FIELD(kvf_block_event_list, len, 8);
FIELD(kvf_block_event_list, lost, 16);
FIELD(kvf_block_event_list, storage, 24);

SIZE(kvf_block_key, 260, 4);
FIELD(kvf_block_key, hash, 0);
FIELD(kvf_block_key, hash_len, 255);
FIELD(kvf_block_key, group, 256);

SIZE(kvf_clock_sample, 16, 8);
FIELD(kvf_clock_sample, offset_s, 0);
FIELD(kvf_clock_sample, rtt_s, 8);

SIZE(kvf_kv_state, 56, 8);
FIELD(kvf_kv_state, kind, 0);
FIELD(kvf_kv_state, conv_channels_total, 4);
FIELD(kvf_kv_state, conv_rows, 8);
FIELD(kvf_kv_state, conv_elem_bytes, 12);
FIELD(kvf_kv_state, ssm_shape, 16);
FIELD(kvf_kv_state, ssm_dims, 32);
FIELD(kvf_kv_state, ssm_elem_bytes, 36);
FIELD(kvf_kv_state, conv_channels, 40);
FIELD(kvf_kv_state, conv_channels_len, 48);

SIZE(kvf_kv_tensor, 176, 8);
FIELD(kvf_kv_tensor, layer, 0);
FIELD(kvf_kv_tensor, group, 8);
FIELD(kvf_kv_tensor, content, 12);
FIELD(kvf_kv_tensor, address, 16);
FIELD(kvf_kv_tensor, storage_address, 24);
FIELD(kvf_kv_tensor, storage_bytes, 32);
FIELD(kvf_kv_tensor, page_bytes, 40);
FIELD(kvf_kv_tensor, num_blocks, 48);
FIELD(kvf_kv_tensor, device, 56);
FIELD(kvf_kv_tensor, mem_kind, 64);
FIELD(kvf_kv_tensor, elem_bytes, 68);
FIELD(kvf_kv_tensor, shape, 72);
FIELD(kvf_kv_tensor, strides, 112);
FIELD(kvf_kv_tensor, dims, 152);
FIELD(kvf_kv_tensor, k_head_size, 156);
FIELD(kvf_kv_tensor, v_head_size, 160);
FIELD(kvf_kv_tensor, kv_heads, 164);
FIELD(kvf_kv_tensor, state, 168);

SIZE(kvf_kv_cache, 88, 8);
FIELD(kvf_kv_cache, struct_size, 0);
FIELD(kvf_kv_cache, kv_heads, 4);
FIELD(kvf_kv_cache, tensors, 8);
FIELD(kvf_kv_cache, tensors_len, 16);
FIELD(kvf_kv_cache, groups, 24);
FIELD(kvf_kv_cache, groups_len, 32);
FIELD(kvf_kv_cache, num_blocks, 40);
FIELD(kvf_kv_cache, blocks_per_logical, 48);
FIELD(kvf_kv_cache, block_tokens, 52);
FIELD(kvf_kv_cache, layout, 56);
FIELD(kvf_kv_cache, attn_backend, 64);
FIELD(kvf_kv_cache, slab_order, 72);
FIELD(kvf_kv_cache, pcp_size, 76);
FIELD(kvf_kv_cache, mla, 80);
FIELD(kvf_kv_cache, hybrid, 81);
FIELD(kvf_kv_cache, reserved, 82);

SIZE(kvf_worker_options, 120, 8);
FIELD(kvf_worker_options, struct_size, 0);
FIELD(kvf_worker_options, mode, 4);
FIELD(kvf_worker_options, agent, 8);
FIELD(kvf_worker_options, engine_id, 16);
FIELD(kvf_worker_options, compat_hash, 24);
FIELD(kvf_worker_options, host, 32);
FIELD(kvf_worker_options, queue, 40);
FIELD(kvf_worker_options, tp_rank, 48);
FIELD(kvf_worker_options, tp_size, 52);
FIELD(kvf_worker_options, pp_rank, 56);
FIELD(kvf_worker_options, pp_size, 60);
FIELD(kvf_worker_options, dcp_size, 64);
FIELD(kvf_worker_options, dcp_interleave, 68);
FIELD(kvf_worker_options, lease_ms, 72);
FIELD(kvf_worker_options, handshake_timeout_ms, 80);
FIELD(kvf_worker_options, engine_ttl_ms, 88);
FIELD(kvf_worker_options, registration_timeout_ms, 96);
FIELD(kvf_worker_options, transfer_timeout_ms, 104);
FIELD(kvf_worker_options, port, 112);
FIELD(kvf_worker_options, ignore_compat, 114);
FIELD(kvf_worker_options, reserved, 115);

SIZE(kvf_worker_results, 80, 8);
FIELD(kvf_worker_results, sent, 0);
FIELD(kvf_worker_results, sent_len, 8);
FIELD(kvf_worker_results, received, 16);
FIELD(kvf_worker_results, received_len, 24);
FIELD(kvf_worker_results, failed, 32);
FIELD(kvf_worker_results, failed_len, 40);
FIELD(kvf_worker_results, failed_blocks, 48);
FIELD(kvf_worker_results, failed_blocks_len, 56);
FIELD(kvf_worker_results, storage, 64);
FIELD(kvf_worker_results, has_stats, 72);
FIELD(kvf_worker_results, reserved, 73);

SIZE(kvf_worker_record, 120, 8);
FIELD(kvf_worker_record, request_id, 0);
FIELD(kvf_worker_record, engine_id, 8);
FIELD(kvf_worker_record, message, 16);
FIELD(kvf_worker_record, kind, 24);
FIELD(kvf_worker_record, status, 28);
FIELD(kvf_worker_record, arrived_ns, 32);
FIELD(kvf_worker_record, queued_ns, 40);
FIELD(kvf_worker_record, planned_ns, 48);
FIELD(kvf_worker_record, posted_ns, 56);
FIELD(kvf_worker_record, finished_ns, 64);
FIELD(kvf_worker_record, bytes, 72);
FIELD(kvf_worker_record, descriptors, 80);
FIELD(kvf_worker_record, reserved, 88);

SIZE(kvf_worker_record_list, 24, 8);
FIELD(kvf_worker_record_list, items, 0);
FIELD(kvf_worker_record_list, len, 8);
FIELD(kvf_worker_record_list, storage, 16);

SIZE(kvf_worker_state, 64, 8);
FIELD(kvf_worker_state, receives, 0);
FIELD(kvf_worker_state, holds, 8);
FIELD(kvf_worker_state, pushes, 16);
FIELD(kvf_worker_state, peers, 24);
FIELD(kvf_worker_state, handshakes, 32);
FIELD(kvf_worker_state, reserved, 40);

int main(void) { return 0; }
