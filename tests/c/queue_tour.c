/* The snippets of docs/queue.md, in one program: tests/docs.rs holds the two together. One prefill
 * rank and one decode rank in one process. argv[1]: transport. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvferry.h"

enum { LAYERS = 4, HEADS = 8, HEAD_SIZE = 64, TOKENS = 16, BLOCKS = 32 };
enum { PAGE = 2 * HEADS * TOKENS * HEAD_SIZE * 2 };

static void must(kvf_status status) {
  if (status == KVF_OK) return;
  fprintf(stderr, "%s\n", kvf_last_error_message());
  exit(1);
}

/* The layout of a rank whose layers are at `cache`, `layer_bytes` apart. */
static kvf_layout describe(uint8_t* cache, size_t layer_bytes, uint32_t tp_rank, uint32_t tp_size) {
  kvf_region regions[LAYERS];
  memset(regions, 0, sizeof regions);
  for (size_t i = 0; i < LAYERS; i++) {
    regions[i].base = (uintptr_t)cache + i * layer_bytes;
    regions[i].page_count = BLOCKS;
  }
  kvf_group group = {.kind = KVF_GROUP_FULL, .tokens_per_block = TOKENS};
  kvf_dense_layers layers = {
      .kv_heads = HEADS, /* of the model, not of the rank */
      .k_head_size = HEAD_SIZE,
      .elem_bytes = 2,
      .order = KVF_ORDER_HND,
      .kv = KVF_KV_PLANES,
      .regions = regions,
      .regions_len = LAYERS,
  };
  kvf_layout_options options = kvf_layout_options_default();
  options.parallel.tp_rank = tp_rank;
  options.parallel.tp_size = tp_size;
  options.groups = &group;
  options.groups_len = 1;
  options.dense = &layers;
  options.dense_len = 1;
  kvf_layout layout;
  must(kvf_layout_create(&options, &layout));
  return layout;
}

static kvf_agent agent_of(const char* transport, const char* name, uint8_t* cache, size_t bytes) {
  kvf_agent_options options = kvf_agent_options_default();
  options.name = name;
  options.transport = transport;
  kvf_agent agent;
  must(kvf_agent_create(&options, &agent));
  kvf_reg_desc range = {(uintptr_t)cache, bytes, 0, NULL, 0};
  must(kvf_agent_register(agent, KVF_MEM_DRAM, &range, 1, NULL, 0));
  return agent;
}

int main(int argc, char** argv) {
  const char* transport = argc > 1 ? argv[1] : "local";
  size_t bytes = (size_t)LAYERS * BLOCKS * PAGE;
  uint8_t *theirs = malloc(bytes), *mine = calloc(1, bytes);
  if (theirs == NULL || mine == NULL) return 1;
  for (size_t i = 0; i < bytes; i++) theirs[i] = (uint8_t)(i * 31 + i / PAGE);
  kvf_agent prefill = agent_of(transport, "prefill-0", theirs, bytes);
  kvf_agent decode = agent_of(transport, "decode-0", mine, bytes);
  kvf_buffer metadata;
  must(kvf_agent_metadata(prefill, &metadata));
  must(kvf_agent_add_remote(decode, metadata.data, metadata.len, NULL));
  kvf_buffer_free(&metadata);

  kvf_layout far_layout = describe(theirs, bytes / LAYERS, 0, 1);
  kvf_buffer encoded;
  must(kvf_layout_encode(far_layout, &encoded));
  /* ... sent to the other engine, with the agent's metadata ... */
  kvf_layout remote;
  must(kvf_layout_decode(encoded.data, encoded.len, &remote));
  kvf_buffer_free(&encoded);

  kvf_layout local = describe(mine, bytes / LAYERS, 0, 1);
  kvf_plan plan;
  must(kvf_plan_build(local, &remote, 1, NULL, &plan)); /* one layout for each remote rank */

  kvf_queue queue;
  must(kvf_queue_create(decode, NULL, &queue));

  const uint32_t to[] = {7, 8, 2}, from[] = {4, 5, 19};
  const char* agents[] = {"prefill-0"};
  kvf_group_blocks blocks = {.local = to, .local_len = 3, .remote = from, .remote_len = 3};
  kvf_submission request = kvf_submission_default();
  request.plan = plan;
  request.agents = agents; /* one for each peer of the plan */
  request.agents_len = 1;
  request.groups = &blocks; /* one for each group of the plan */
  request.groups_len = 1;
  request.notification = (const uint8_t*)"req-1";
  request.notification_len = 5;
  request.deadline_ms = 10000;
  uint64_t ticket;
  must(kvf_queue_submit(queue, &request, &ticket));

  int fd;
  must(kvf_queue_event_fd(queue, &fd)); /* or kvf_queue_wait(), or just poll now and then */
  struct pollfd event = {fd, POLLIN, 0};
  if (poll(&event, 1, 10000) != 1) return 1;

  kvf_completion done[16];
  size_t len;
  must(kvf_queue_poll(queue, done, 16, &len));
  for (size_t i = 0; i < len; i++) {
    if (done[i].status == KVF_OK)
      printf("request %llu: %llu bytes in %llu us, %llu ranges instead of %llu\n",
             (unsigned long long)done[i].ticket, (unsigned long long)done[i].bytes,
             (unsigned long long)done[i].finished_ns / 1000,
             (unsigned long long)done[i].descriptors,
             (unsigned long long)done[i].descriptors_before);
    else
      printf("request %llu: %s\n", (unsigned long long)done[i].ticket, done[i].message);
  }
  if (len != 1 || done[0].ticket != ticket || done[0].status != KVF_OK) return 1;
  for (size_t layer = 0; layer < LAYERS; layer++)
    for (size_t i = 0; i < 3; i++)
      if (memcmp(mine + (layer * BLOCKS + to[i]) * PAGE, theirs + (layer * BLOCKS + from[i]) * PAGE,
                 PAGE) != 0)
        return 1;

  kvf_range_list ranges;
  must(kvf_plan_expand(plan, &blocks, 1, 0, NULL, NULL, &ranges));
  for (size_t i = 0; i < ranges.len; i++)
    printf("peer %u: %#llx <- %#llx, %llu bytes\n", ranges.items[i].peer,
           (unsigned long long)ranges.items[i].local, (unsigned long long)ranges.items[i].remote,
           (unsigned long long)ranges.items[i].len);
  kvf_range_list_free(&ranges);

  must(kvf_queue_destroy(queue, 1000)); /* carries out what there is, for up to a second */
  must(kvf_plan_destroy(plan));
  must(kvf_layout_destroy(local));
  must(kvf_layout_destroy(remote));
  must(kvf_layout_destroy(far_layout));
  must(kvf_agent_destroy(decode));
  must(kvf_agent_destroy(prefill));
  free(mine);
  free(theirs);
  return 0;
}
