/* Null, stale, foreign and invented handles of every kind are a status in every function that takes
 * one; destroying twice is harmless. argv[1]: transport. */
#include "fixture.h"

/* Every function that takes a handle, with arguments that are fine otherwise. */
static void agent_is(kvf_status expected, kvf_agent agent) {
  uint8_t byte = 0;
  kvf_buffer buffer = {0};
  kvf_string_list strings = {0};
  kvf_notification_list notifications = {0};
  kvf_query_list results = {0};
  kvf_desc_list list = {0};
  kvf_transfer transfer = {0};
  kvf_backend backend = {"UCX", NULL, 0};
  kvf_reg_desc reg = {address(&byte), 1, 0, NULL, 0};
  kvf_mem_desc mem = {address(&byte), 1, 0};
  kvf_strided_desc row = {address(&byte), 1, 0, 1, 1};
  int32_t index = 0;
  CHECK_STATUS(expected, kvf_agent_name(agent, &buffer));
  CHECK_STATUS(expected, kvf_agent_plugins(agent, &strings));
  CHECK_STATUS(expected, kvf_agent_plugin_info(agent, "UCX", NULL, NULL));
  CHECK_STATUS(expected, kvf_agent_create_backend(agent, &backend));
  CHECK_STATUS(expected, kvf_agent_backends(agent, &strings));
  CHECK_STATUS(expected, kvf_agent_backend_info(agent, "UCX", NULL, NULL));
  CHECK_STATUS(expected, kvf_agent_register(agent, KVF_MEM_DRAM, &reg, 1, NULL, 0));
  CHECK_STATUS(expected, kvf_agent_deregister(agent, KVF_MEM_DRAM, &reg, 1, NULL, 0));
  CHECK_STATUS(expected, kvf_agent_query_memory(agent, KVF_MEM_DRAM, &reg, 1, "UCX", &results));
  CHECK_STATUS(expected, kvf_agent_metadata(agent, &buffer));
  CHECK_STATUS(expected, kvf_agent_partial_metadata(agent, 0, &reg, 1, 1, NULL, 0, &buffer));
  CHECK_STATUS(expected, kvf_agent_add_remote(agent, &byte, 1, NULL));
  CHECK_STATUS(expected, kvf_agent_remove_remote(agent, "peer"));
  CHECK_STATUS(expected, kvf_agent_check_remote(agent, "peer", KVF_MEM_DRAM, NULL, 0, &byte));
  CHECK_STATUS(expected, kvf_agent_connect(agent, "peer", NULL, 0));
  CHECK_STATUS(expected, kvf_agent_send_metadata(agent, "127.0.0.1", 1));
  CHECK_STATUS(expected, kvf_agent_send_partial_metadata(agent, 0, &reg, 1, 1, NULL, 0, "127.0.0.1",
                                                         1, NULL));
  CHECK_STATUS(expected, kvf_agent_fetch_metadata(agent, "peer", "127.0.0.1", 1, NULL));
  CHECK_STATUS(expected, kvf_agent_invalidate_metadata(agent, "127.0.0.1", 1));
  CHECK_STATUS(expected, kvf_agent_notify(agent, "peer", NULL, 0, NULL));
  CHECK_STATUS(expected, kvf_agent_notifications(agent, NULL, 0, &notifications));
  CHECK_STATUS(expected, kvf_agent_wait_notification(agent, NULL, NULL, 0, 0, &notifications));
  CHECK_STATUS(expected, kvf_desc_list_prepare(agent, NULL, 0, &mem, 1, NULL, 0, &list));
  CHECK_STATUS(expected, kvf_desc_list_prepare_strided(agent, NULL, 0, &row, 1, NULL, 0, &list));
  CHECK_STATUS(expected, kvf_transfer_make(agent, KVF_OP_READ, list, &index, 1, list, &index, 1,
                                           NULL, &transfer));
  CHECK_STATUS(expected, kvf_transfer_create(agent, KVF_OP_READ, 0, &mem, 1, 0, &mem, 1, "peer",
                                             NULL, &transfer));
  CHECK_STATUS(expected, kvf_agent_destroy(agent));
  /* Outputs are written only on success. */
  CHECK(buffer.data == NULL && strings.items == NULL && notifications.items == NULL);
  CHECK(results.items == NULL && list.id == 0 && transfer.id == 0);
}

static void list_is(kvf_status expected, kvf_agent agent, kvf_desc_list good, kvf_desc_list list) {
  size_t len = 77;
  int32_t index = 0;
  kvf_transfer transfer = {0};
  CHECK_STATUS(expected, kvf_desc_list_len(list, &len));
  CHECK_STATUS(expected, kvf_transfer_make(agent, KVF_OP_READ, list, &index, 1, good, &index, 1,
                                           NULL, &transfer));
  CHECK_STATUS(expected, kvf_transfer_make(agent, KVF_OP_READ, good, &index, 1, list, &index, 1,
                                           NULL, &transfer));
  CHECK_STATUS(expected, kvf_desc_list_release(list));
  CHECK(len == 77 && transfer.id == 0);
}

static void transfer_is(kvf_status expected, kvf_transfer transfer) {
  int32_t state = 77;
  kvf_transfer_telemetry telemetry = {0};
  kvf_transfer_cost cost = {0};
  kvf_buffer backend = {0};
  CHECK_STATUS(expected, kvf_transfer_post(transfer, NULL, 0, &state));
  CHECK_STATUS(expected, kvf_transfer_state(transfer, &state));
  CHECK_STATUS(expected, kvf_transfer_cancel(transfer));
  CHECK_STATUS(expected, kvf_transfer_telemetry_get(transfer, &telemetry));
  CHECK_STATUS(expected, kvf_transfer_cost_estimate(transfer, &cost));
  CHECK_STATUS(expected, kvf_transfer_backend(transfer, &backend));
  CHECK_STATUS(expected, kvf_transfer_release(transfer));
  CHECK(state == 77 && backend.data == NULL);
  CHECK_OK(kvf_transfer_states(&transfer, 1, &state));
  CHECK_EQ(state, expected);
}

static void channel_is(kvf_status expected, kvf_side_channel channel) {
  kvf_buffer host = {0};
  uint16_t port = 77;
  uint8_t running = 77;
  CHECK_STATUS(expected, kvf_side_channel_set_metadata(channel, NULL, 0));
  CHECK_STATUS(expected, kvf_side_channel_address(channel, &host, &port));
  CHECK_STATUS(expected, kvf_side_channel_is_running(channel, &running));
  CHECK_STATUS(expected, kvf_side_channel_shutdown(channel));
  CHECK(host.data == NULL && port == 77 && running == 77);
}

#define AS(type, handle) ((type){(handle).id})

int main(int argc, char** argv) {
  const char* transport = transport_of(argc, argv);
  const kvf_status bad = KVF_ERR_INVALID_HANDLE;

  kvf_agent agent = make_agent(transport, "handles");
  pool p = pool_new(64, 4);
  pool_register(agent, &p);
  kvf_desc_list local = blocks_of(agent, NULL, &p);
  kvf_desc_list remote = blocks_of(agent, "handles", &p);
  int32_t from = 0, to = 1;
  kvf_transfer transfer;
  CHECK_OK(kvf_transfer_make(agent, KVF_OP_READ, local, &to, 1, remote, &from, 1, NULL, &transfer));
  kvf_side_channel channel;
  CHECK_OK(kvf_side_channel_listen(NULL, NULL, 0, &channel));

  /* Null. */
  agent_is(bad, (kvf_agent){0});
  list_is(bad, agent, local, (kvf_desc_list){0});
  transfer_is(bad, (kvf_transfer){0});
  channel_is(bad, (kvf_side_channel){0});

  /* Of another kind. */
  agent_is(bad, AS(kvf_agent, transfer));
  agent_is(bad, AS(kvf_agent, channel));
  list_is(bad, agent, local, AS(kvf_desc_list, agent));
  transfer_is(bad, AS(kvf_transfer, local));
  transfer_is(bad, AS(kvf_transfer, agent));
  channel_is(bad, AS(kvf_side_channel, agent));

  /* Invented: every bit of a good one flipped, one at a time. */
  for (int bit = 0; bit < 64; bit++) {
    const uint64_t flip = (uint64_t)1 << bit;
    agent_is(bad, (kvf_agent){agent.id ^ flip});
    kvf_desc_list invented = {local.id ^ flip};
    if (invented.id != remote.id) list_is(bad, agent, local, invented);
    transfer_is(bad, (kvf_transfer){transfer.id ^ flip});
    channel_is(bad, (kvf_side_channel){channel.id ^ flip});
  }

  /* After all that the real ones work. */
  pool_fill(&p, 1);
  memset(pool_at(&p, 1), 0, p.block);
  post_and_wait(transfer);
  CHECK(holds(&p, 1, 1, 0));

  /* Stale, also when the slot is used again. */
  CHECK_OK(kvf_transfer_release(transfer));
  transfer_is(bad, transfer);
  kvf_transfer next;
  CHECK_OK(kvf_transfer_make(agent, KVF_OP_READ, local, &to, 1, remote, &from, 1, NULL, &next));
  CHECK(next.id != transfer.id);
  transfer_is(bad, transfer);
  CHECK_OK(kvf_desc_list_release(remote));
  list_is(bad, agent, local, remote);
  /* A transfer goes on without the lists it was made from. */
  memset(pool_at(&p, 1), 0, p.block);
  post_and_wait(next);
  CHECK(holds(&p, 1, 1, 0));
  CHECK_OK(kvf_side_channel_shutdown(channel));
  channel_is(bad, channel);

  /* What belongs to an agent ends with it; what belongs to another does not. */
  kvf_agent other = make_agent(transport, "other");
  pool_register(other, &p);
  kvf_desc_list others = blocks_of(other, NULL, &p);
  kvf_transfer mixed = {0};
  CHECK_BAD(KVF_ERR_INVALID_ARGUMENT, "belongs to another agent",
            kvf_transfer_make(agent, KVF_OP_READ, others, &to, 1, local, &from, 1, NULL, &mixed));
  CHECK_OK(kvf_agent_destroy(agent));
  agent_is(bad, agent);
  transfer_is(bad, next);
  list_is(bad, other, others, local);
  size_t len = 0;
  CHECK_OK(kvf_desc_list_len(others, &len));
  CHECK_EQ(len, p.count);
  CHECK_OK(kvf_agent_destroy(other));

  pool_free(&p);
  return 0;
}
