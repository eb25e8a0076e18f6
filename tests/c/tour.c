/* The snippets of docs/c-api.md, in one program: tests/docs.rs holds the two together. It moves
 * blocks within one process, from one agent to another. argv[1]: transport. */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvferry.h"

/* Every call returns a status. What went wrong, with the value at fault, is in the thread's
 * message. */
static void must(kvf_status status) {
  if (status == KVF_OK) return;
  fprintf(stderr, "%s\n", kvf_last_error_message());
  exit(1);
}

static void create(const char* transport, const char* name, kvf_agent* agent) {
  kvf_agent_options options = kvf_agent_options_default();
  options.name = name;           /* by which peers know this agent */
  options.transport = transport; /* "nixl" or "local" */
  must(kvf_agent_create(&options, agent));
}

static void errors(void) {
  kvf_agent agent = {0};
  kvf_status status = kvf_agent_destroy(agent);
  if (status == KVF_ERR_INVALID_HANDLE)
    printf("%s; %s\n", kvf_status_name(status), kvf_last_error_message());
}

int main(int argc, char** argv) {
  const char* transport = argc > 1 ? argv[1] : "local";
  enum { BLOCK = 4096, BLOCKS = 16 };
  kvf_agent reader, owner;
  create(transport, "reader", &reader);
  create(transport, "owner", &owner);
  uint8_t *mine = calloc(BLOCKS, BLOCK), *theirs = calloc(BLOCKS, BLOCK);
  if (mine == NULL || theirs == NULL) return 1;
  memset(theirs + 5 * BLOCK, 0xab, BLOCK);

  kvf_reg_desc range = {(uintptr_t)mine, BLOCKS * BLOCK, 0, NULL, 0};
  must(kvf_agent_register(reader, KVF_MEM_DRAM, &range, 1, NULL, 0));
  kvf_reg_desc other_range = {(uintptr_t)theirs, BLOCKS * BLOCK, 0, NULL, 0};
  must(kvf_agent_register(owner, KVF_MEM_DRAM, &other_range, 1, NULL, 0));

  kvf_buffer metadata;
  must(kvf_agent_metadata(owner, &metadata));
  kvf_side_channel channel;
  must(kvf_side_channel_listen(NULL, metadata.data, metadata.len, &channel));
  kvf_buffer_free(&metadata);
  uint16_t port;
  must(kvf_side_channel_address(channel, NULL, &port));

  kvf_buffer received;
  must(kvf_side_channel_request(NULL, "127.0.0.1", port, 0, 0, &received));
  must(kvf_agent_add_remote(reader, received.data, received.len, NULL));
  kvf_buffer_free(&received);

  kvf_strided_desc row = {(uintptr_t)mine, BLOCK, 0, BLOCK, BLOCKS};
  kvf_strided_desc other_row = {(uintptr_t)theirs, BLOCK, 0, BLOCK, BLOCKS};
  kvf_desc_list local, remote;
  must(kvf_desc_list_prepare_strided(reader, NULL, KVF_MEM_DRAM, &row, 1, NULL, 0, &local));
  must(kvf_desc_list_prepare_strided(reader, "owner", KVF_MEM_DRAM, &other_row, 1, NULL, 0,
                                     &remote));

  const int32_t to[] = {0, 1}, from[] = {5, 9};
  kvf_transfer_options options = kvf_transfer_options_default();
  options.notification = (const uint8_t*)"read";
  options.notification_len = 4;
  kvf_transfer transfer;
  must(kvf_transfer_make(reader, KVF_OP_READ, local, to, 2, remote, from, 2, &options, &transfer));

  int32_t state;
  must(kvf_transfer_post(transfer, NULL, 0, &state));
  while (state == KVF_TRANSFER_IN_PROGRESS) {
    sched_yield();
    must(kvf_transfer_state(transfer, &state));
  }

  kvf_notification_list done;
  must(kvf_agent_wait_notification(owner, "reader", NULL, 0, 5000, &done));
  kvf_notification_list_free(&done);

  while (kvf_transfer_release(transfer) == KVF_ERR_BUSY) sched_yield();
  must(kvf_side_channel_shutdown(channel));
  must(kvf_agent_destroy(reader)); /* its lists end with it */
  must(kvf_agent_destroy(owner));

  int wrong = memcmp(mine, theirs + 5 * BLOCK, BLOCK) != 0 || mine[BLOCK] != 0;
  free(mine);
  free(theirs);
  errors();
  return wrong;
}
