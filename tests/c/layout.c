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
HANDLE(kvf_side_channel);

LIST(kvf_string_list);
LIST(kvf_param_list);
LIST(kvf_notification_list);
LIST(kvf_query_list);

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

SIZE(kvf_side_channel_options, 48, 8);
FIELD(kvf_side_channel_options, struct_size, 0);
FIELD(kvf_side_channel_options, max_connections, 4);
FIELD(kvf_side_channel_options, kind, 8);
FIELD(kvf_side_channel_options, host, 16);
FIELD(kvf_side_channel_options, max_message_bytes, 24);
FIELD(kvf_side_channel_options, timeout_ms, 32);
FIELD(kvf_side_channel_options, port, 40);
FIELD(kvf_side_channel_options, reserved, 42);

int main(void) { return 0; }
