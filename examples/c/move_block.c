/* Blocks of a KV cache move from one process to another.
 *
 *   move_block prefill [local|nixl] [PORT]      in one terminal: owns the blocks
 *   move_block decode  [local|nixl] [PORT]      in another: reads some of them
 *
 * The same program is in examples/cpp, examples/python and examples/rust; they speak one format. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvferry.h"

enum { BLOCK_BYTES = 64 * 1024, BLOCKS = 32, PICKED = 4, PATIENCE_MS = 60000 };

/* What the decoder has to know besides the agent's metadata: where the blocks are. */
typedef struct announcement {
  uint64_t address, block_bytes, blocks;
} announcement;

/* Every call returns a status; the message says what went wrong. */
static void must(kvf_status status) {
  if (status == KVF_OK) return;
  fprintf(stderr, "move_block: %s\n", kvf_last_error_message());
  exit(1);
}

/* The byte that prefill puts at a place of a block, so that decode can check it. */
static uint8_t content(uint64_t block, uint64_t i) {
  return (uint8_t)(block * 31 + i * 7 + i / 256);
}

/* 1. An agent is one process's endpoint; the transport is chosen by name. */
static kvf_agent create_agent(const char* name, const char* transport) {
  kvf_agent_options options = kvf_agent_options_default();
  options.name = name;
  options.transport = transport;
  kvf_agent agent;
  must(kvf_agent_create(&options, &agent));
  return agent;
}

/* 2. Memory that takes part in transfers is registered. */
static uint8_t* create_cache(kvf_agent agent) {
  uint8_t* cache = calloc(BLOCKS, BLOCK_BYTES);
  if (cache == NULL) abort();
  kvf_reg_desc range = {(uintptr_t)cache, (uint64_t)BLOCKS * BLOCK_BYTES, 0, NULL, 0};
  must(kvf_agent_register(agent, KVF_MEM_DRAM, &range, 1, NULL, 0));
  return cache;
}

static int prefill(const char* transport, uint16_t port) {
  kvf_agent agent = create_agent("prefill", transport);
  uint8_t* cache = create_cache(agent);
  for (uint64_t block = 0; block < BLOCKS; block++)
    for (uint64_t i = 0; i < BLOCK_BYTES; i++) cache[block * BLOCK_BYTES + i] = content(block, i);

  /* 3. The side channel hands where the blocks are, and the agent's metadata, to whoever asks. */
  announcement where = {(uintptr_t)cache, BLOCK_BYTES, BLOCKS};
  kvf_buffer metadata;
  must(kvf_agent_metadata(agent, &metadata));
  size_t message_len = sizeof where + metadata.len;
  uint8_t* message = malloc(message_len);
  if (message == NULL) abort();
  memcpy(message, &where, sizeof where);
  memcpy(message + sizeof where, metadata.data, metadata.len);
  kvf_side_channel_options listen = kvf_side_channel_options_default();
  listen.port = port;
  kvf_side_channel channel;
  must(kvf_side_channel_listen(&listen, message, message_len, &channel));
  must(kvf_side_channel_address(channel, NULL, &port));
  printf("prefill: %d blocks of %d bytes, metadata on port %d\n", BLOCKS, BLOCK_BYTES, port);
  fflush(stdout);

  /* 7. The reader's notification says that its blocks may be used again. */
  kvf_notification_list done;
  must(kvf_agent_wait_notification(agent, "decode", NULL, 0, PATIENCE_MS, &done));
  printf("prefill: %s says \"%.*s\"\n", done.items[0].from, (int)done.items[0].payload_len,
         (const char*)done.items[0].payload);

  kvf_notification_list_free(&done);
  kvf_buffer_free(&metadata);
  must(kvf_side_channel_shutdown(channel));
  must(kvf_agent_destroy(agent));
  free(message);
  free(cache);
  return 0;
}

static int decode(const char* transport, uint16_t port) {
  kvf_agent agent = create_agent("decode", transport);
  uint8_t* cache = create_cache(agent);

  /* 3. Ask for the metadata, and load it. */
  kvf_buffer message, peer;
  announcement where;
  must(kvf_side_channel_request(NULL, "127.0.0.1", port, 0, 0, &message));
  if (message.len < sizeof where) return 1;
  memcpy(&where, message.data, sizeof where);
  must(kvf_agent_add_remote(agent, message.data + sizeof where, message.len - sizeof where, &peer));

  /* 4. Prepare both sides once: every block by its index. */
  kvf_strided_desc mine = {(uintptr_t)cache, BLOCK_BYTES, 0, BLOCK_BYTES, BLOCKS};
  kvf_strided_desc theirs = {where.address, where.block_bytes, 0, where.block_bytes, where.blocks};
  kvf_desc_list local, remote;
  must(kvf_desc_list_prepare_strided(agent, NULL, KVF_MEM_DRAM, &mine, 1, NULL, 0, &local));
  must(kvf_desc_list_prepare_strided(agent, (const char*)peer.data, KVF_MEM_DRAM, &theirs, 1, NULL,
                                     0, &remote));

  /* 5. Read scattered blocks into scattered places, and tell the owner when they are here. */
  const int32_t from[PICKED] = {7, 3, 21, 12}, to[PICKED] = {0, 9, 4, 30};
  const char* thanks = "blocks 7 3 21 12 are here";
  kvf_transfer_options options = kvf_transfer_options_default();
  options.notification = (const uint8_t*)thanks;
  options.notification_len = strlen(thanks);
  kvf_transfer transfer;
  must(kvf_transfer_make(agent, KVF_OP_READ, local, to, PICKED, remote, from, PICKED, &options,
                         &transfer));
  int32_t state;
  must(kvf_transfer_post(transfer, NULL, 0, &state));
  while (state == KVF_TRANSFER_IN_PROGRESS) must(kvf_transfer_state(transfer, &state));

  /* 6. Every byte is where it belongs. */
  for (int n = 0; n < PICKED; n++)
    for (uint64_t i = 0; i < BLOCK_BYTES; i++)
      if (cache[(uint64_t)to[n] * BLOCK_BYTES + i] != content((uint64_t)from[n], i)) {
        fprintf(stderr, "move_block: block %d is wrong at byte %d\n", from[n], (int)i);
        return 1;
      }
  printf("decode: %d blocks of %d bytes from %s are here and correct\n", PICKED, BLOCK_BYTES,
         (const char*)peer.data);

  must(kvf_transfer_release(transfer));
  kvf_buffer_free(&message);
  kvf_buffer_free(&peer);
  /* The lists end with their agent. */
  must(kvf_agent_destroy(agent));
  free(cache);
  return 0;
}

int main(int argc, char** argv) {
  const char* role = argc > 1 ? argv[1] : "";
  const char* transport = argc > 2 ? argv[2] : "local";
  uint16_t port = (uint16_t)(argc > 3 ? atoi(argv[3]) : 7070);
  if (strcmp(role, "prefill") == 0) return prefill(transport, port);
  if (strcmp(role, "decode") == 0) return decode(transport, port);
  fprintf(stderr, "usage: %s prefill|decode [local|nixl] [PORT]\n", argv[0]);
  return 2;
}
