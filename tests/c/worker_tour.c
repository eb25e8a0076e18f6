/* The snippets of docs/connector.md about the worker half and about steps, in one program: tests/docs.rs
 * holds the two together. A prefill and a decode engine of one rank each in one process, both halves of
 * both. argv[1]: transport. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvferry.h"

enum { LAYERS = 2, HEADS = 4, HEAD_SIZE = 8, TOKENS = 16, BLOCKS = 80 };
enum { BLOCK = HEADS * TOKENS * 2 * HEAD_SIZE, LAYER = BLOCKS * BLOCK };

static void must(kvf_status status) {
  if (status == KVF_OK) return;
  fprintf(stderr, "%s\n", kvf_last_error_message());
  exit(1);
}

static void expect(int holds, const char* what) {
  if (holds) return;
  fprintf(stderr, "not so: %s\n", what);
  exit(1);
}

typedef struct engine {
  uint8_t* cache;
  kvf_agent agent;
  kvf_scheduler scheduler;
  kvf_worker worker;
} engine;

static void start_worker(engine* e, const char* engine_id) {
  kvf_worker_options options = kvf_worker_options_default();
  options.agent = e->agent;
  options.engine_id = engine_id; /* as its scheduler half has it */
  must(kvf_worker_create(&options, &e->worker));

  const char* names[LAYERS] = {"layers.0", "layers.1"};
  kvf_kv_tensor tensors[LAYERS];
  memset(tensors, 0, sizeof tensors);
  for (size_t i = 0; i < LAYERS; i++) {
    tensors[i].layer = names[i]; /* the same in every engine that serves the model */
    tensors[i].address = (uintptr_t)e->cache + i * LAYER;
    tensors[i].elem_bytes = 1;
    tensors[i].k_head_size = HEAD_SIZE;
  }
  kvf_group group = {.kind = KVF_GROUP_FULL, .tokens_per_block = TOKENS};
  kvf_kv_cache cache = kvf_kv_cache_default();
  cache.tensors = tensors;
  cache.tensors_len = LAYERS;
  cache.groups = &group;
  cache.groups_len = 1;
  cache.num_blocks = BLOCKS;
  cache.block_tokens = TOKENS;
  cache.kv_heads = HEADS;
  must(kvf_worker_register_kv(e->worker, &cache));
}

static void serve(engine* e) {
  kvf_buffer payload;
  must(kvf_worker_payload(e->worker, &payload));
  /* ... to the process of the scheduler half, which serves all of its ranks ... */
  kvf_rank_payload rank = {.data = payload.data, .len = payload.len}; /* of pp 0, tp 0 */
  must(kvf_scheduler_serve(e->scheduler, &rank, 1));
  kvf_buffer_free(&payload);
}

static engine engine_of(const char* transport, const char* engine_id) {
  engine e;
  e.cache = malloc(LAYERS * LAYER);
  expect(e.cache != NULL, "there is memory");
  memset(e.cache, 0xee, LAYERS * LAYER);
  kvf_agent_options agent = kvf_agent_options_default();
  agent.name = engine_id;
  agent.transport = transport;
  must(kvf_agent_create(&agent, &e.agent));
  kvf_transfer_group group = {KVF_GROUP_FULL, TOKENS, 0, 0};
  kvf_scheduler_options scheduler = kvf_scheduler_options_default();
  scheduler.engine_id = engine_id;
  scheduler.host = "127.0.0.1";
  scheduler.groups = &group;
  scheduler.groups_len = 1;
  must(kvf_scheduler_create(&scheduler, &e.scheduler));
  start_worker(&e, engine_id);
  serve(&e);
  return e;
}

/* One step of an engine; whether a request of this id was reported. */
static int step(engine* e, const char* id) {
  kvf_buffer bytes;
  must(kvf_scheduler_build_step(e->scheduler, &bytes));
  must(kvf_worker_step(e->worker, bytes.data, bytes.len)); /* of every rank */
  kvf_buffer_free(&bytes);

  /* ... the model runs ... */

  kvf_worker_results results;
  must(kvf_worker_poll(e->worker, &results));
  must(kvf_scheduler_sent(e->scheduler, results.sent, results.sent_len));
  must(kvf_scheduler_received(e->scheduler, results.received, results.received_len));
  int seen = 0;
  for (size_t i = 0; i < results.sent_len; i++) seen |= strcmp(results.sent[i], id) == 0;
  for (size_t i = 0; i < results.received_len; i++) seen |= strcmp(results.received[i], id) == 0;
  expect(results.failed_len == 0, "nothing fails");
  kvf_worker_results_free(&results);
  return seen;
}

static void step_until(engine* e, const char* id) {
  while (!step(e, id)) {
    uint8_t ready;
    must(kvf_worker_wait(e->worker, 30000, &ready));
    expect(ready, "a result within half a minute");
  }
}

int main(int argc, char** argv) {
  const char* transport = argc > 1 ? argv[1] : "local";
  engine prefill = engine_of(transport, "prefill-1"), decode = engine_of(transport, "decode-1");

  const uint32_t computed[] = {4, 5, 9};
  kvf_request_blocks blocks = {computed, 3, 0, 0};
  for (size_t layer = 0; layer < LAYERS; layer++)
    for (size_t b = 0; b < 3; b++)
      for (size_t i = 0; i < BLOCK; i++)
        prefill.cache[layer * LAYER + computed[b] * BLOCK + i] =
            (uint8_t)(7 * layer + 31 * b + i * i / 3);

  const char* todo = "{\"do_remote_decode\": true}";
  uint64_t n;
  uint8_t staged;
  uint32_t keep;
  kvf_buffer params;
  must(kvf_scheduler_add(prefill.scheduler, "p-17", (const uint8_t*)todo, strlen(todo), 48, 0, &n));
  must(kvf_scheduler_allocated(prefill.scheduler, "p-17", &blocks, 1, 0, &staged));
  step(&prefill, "");
  must(kvf_scheduler_finished(prefill.scheduler, "p-17", KVF_FINISH_LENGTH, &blocks, 1, 48, &keep,
                              &params));
  step(&prefill, "");

  must(kvf_scheduler_add(decode.scheduler, "d-3", params.data, params.len, 48, 0, &n));
  must(kvf_scheduler_match(decode.scheduler, "d-3", 48, 16, &n));
  expect(n == 32, "two blocks can be loaded");
  const uint32_t fresh[] = {71, 72};
  kvf_request_blocks missing = {fresh, 2, 1, 0};
  must(kvf_scheduler_allocated(decode.scheduler, "d-3", &missing, 1, n, &staged));
  step_until(&decode, "d-3");
  step_until(&prefill, "p-17");

  for (size_t layer = 0; layer < LAYERS; layer++)
    for (size_t b = 0; b < 2; b++)
      expect(memcmp(decode.cache + layer * LAYER + fresh[b] * BLOCK,
                    prefill.cache + layer * LAYER + computed[b + 1] * BLOCK, BLOCK) == 0,
             "the blocks have arrived");

  kvf_buffer stats;
  must(kvf_worker_take_stats(decode.worker, &stats));
  expect(strstr((const char*)stats.data, "\"bytes_transferred\":[4096]") != NULL, "bytes are counted");
  kvf_buffer_free(&stats);
  kvf_worker_state state;
  must(kvf_worker_state_get(prefill.worker, &state));
  expect(state.holds == 0 && state.receives == 0, "nothing is left behind");

  kvf_buffer_free(&params);
  engine* all[] = {&decode, &prefill};
  for (size_t i = 0; i < 2; i++) {
    must(kvf_worker_destroy(all[i]->worker, 1000)); /* before its agent */
    must(kvf_scheduler_destroy(all[i]->scheduler));
    must(kvf_agent_destroy(all[i]->agent));
    free(all[i]->cache);
  }
  return 0;
}
