/* Two prefill ranks and one decode rank of a small model with real memory: 4 heads of 16 bytes,
 * blocks of 4 tokens, 2 layers, pages [K, V][heads][tokens][16]. What a byte holds is known from
 * its name. */
#ifndef KVF_TESTS_QUEUE_FIXTURE_H
#define KVF_TESTS_QUEUE_FIXTURE_H

#include <poll.h>

#include "fixture.h"
#include "plan_fixture.h"

enum { HEADS = 4, TOKENS = 4, CELL = 16, LAYERS = 2, BLOCKS = 64 };

/* A rank: an agent, and its memory, the layers one after the other. */
typedef struct rank {
  kvf_agent agent;
  const char* name;
  uint32_t heads, first_head;
  pool memory;
  kvf_layout layout;
} rank;

static inline size_t page_of(const rank* r) { return (size_t)2 * r->heads * TOKENS * CELL; }

/* A byte by its place in a rank's memory. */
static inline uint8_t* byte_at(const rank* r, size_t layer, size_t block, size_t kv, size_t head,
                               size_t token, size_t byte) {
  size_t page = layer * BLOCKS + block;
  size_t cell = (kv * r->heads + head - r->first_head) * TOKENS + token;
  return r->memory.bytes + page * page_of(r) + cell * CELL + byte;
}

/* What the producer's blocks hold there: never 0xee, which marks what nobody has written. */
static inline uint8_t value_of(uint32_t seed, size_t layer, size_t block, size_t kv, size_t head,
                               size_t token, size_t byte) {
  size_t name =
      ((((layer * BLOCKS + block) * 2 + kv) * HEADS + head) * TOKENS + token) * CELL + byte;
  uint8_t value = known(seed, name);
  return value == 0xee ? 0x11 : value;
}

static inline rank rank_new(const char* transport, const char* name, uint32_t tp_rank,
                            uint32_t tp) {
  rank r;
  memset(&r, 0, sizeof r);
  r.name = name;
  r.heads = HEADS / tp;
  r.first_head = tp_rank * r.heads;
  r.memory = pool_new(page_of(&r), LAYERS * BLOCKS);
  memset(r.memory.bytes, 0xee, page_of(&r) * LAYERS * BLOCKS);
  r.agent = make_agent(transport, name);
  pool_register(r.agent, &r.memory);
  kvf_region regions[LAYERS];
  for (size_t i = 0; i < LAYERS; i++)
    regions[i] = pages_at(address(r.memory.bytes) + i * BLOCKS * page_of(&r), BLOCKS);
  r.layout = dense_rank(tp_rank, tp, TOKENS, dense_of(HEADS, CELL, KVF_ORDER_HND, KVF_KV_PLANES),
                        regions, LAYERS);
  return r;
}

static inline void rank_free(rank* r) {
  CHECK_OK(kvf_agent_destroy(r->agent));
  CHECK_OK(kvf_layout_destroy(r->layout));
  pool_free(&r->memory);
}

static inline void rank_fill(rank* r, uint32_t seed) {
  for (size_t layer = 0; layer < LAYERS; layer++)
    for (size_t block = 0; block < BLOCKS; block++)
      for (size_t kv = 0; kv < 2; kv++)
        for (size_t head = r->first_head; head < r->first_head + r->heads; head++)
          for (size_t token = 0; token < TOKENS; token++)
            for (size_t byte = 0; byte < CELL; byte++)
              *byte_at(r, layer, block, kv, head, token, byte) =
                  value_of(seed, layer, block, kv, head, token, byte);
}

static inline void rank_clear(rank* r) {
  memset(r->memory.bytes, 0xee, page_of(r) * LAYERS * BLOCKS);
}

/* Every byte of the rank: block `b` holds the producer's block `from[b]`, for the heads from
 * `first` to before `end`; everything else, and every block whose `from` is -1, is as it was. */
static inline void rank_expect(const rank* r, uint32_t seed, const int32_t from[BLOCKS],
                               size_t first, size_t end) {
  for (size_t layer = 0; layer < LAYERS; layer++)
    for (size_t block = 0; block < BLOCKS; block++)
      for (size_t kv = 0; kv < 2; kv++)
        for (size_t head = r->first_head; head < r->first_head + r->heads; head++)
          for (size_t token = 0; token < TOKENS; token++)
            for (size_t byte = 0; byte < CELL; byte++) {
              bool moved = from[block] >= 0 && head >= first && head < end;
              uint8_t wanted =
                  moved ? value_of(seed, layer, (size_t)from[block], kv, head, token, byte) : 0xee;
              uint8_t got = *byte_at(r, layer, block, kv, head, token, byte);
              if (got != wanted)
                FAIL(
                    "%s: layer %zu, block %zu, %s, head %zu, token %zu, byte %zu is %#x, expected "
                    "%#x",
                    r->name, layer, block, kv ? "V" : "K", head, token, byte, got, wanted);
            }
}

/* `from` of rank_expect, from lists of block ids. */
static inline void pair_up(int32_t from[BLOCKS], const uint32_t* local, const uint32_t* remote,
                           size_t len) {
  for (size_t i = 0; i < BLOCKS; i++) from[i] = -1;
  for (size_t i = 0; i < len; i++) from[local[i]] = (int32_t)remote[i];
}

static inline kvf_plan plan_between(const rank* local, const rank* remotes, size_t len,
                                    uint32_t direction) {
  kvf_layout layouts[4];
  CHECK(len <= 4);
  for (size_t i = 0; i < len; i++) layouts[i] = remotes[i].layout;
  kvf_plan_options options = kvf_plan_options_default();
  options.direction = direction;
  kvf_plan plan = {0};
  CHECK_OK(kvf_plan_build(local->layout, layouts, len, &options, &plan));
  return plan;
}

static inline kvf_queue queue_of(kvf_agent agent, const kvf_queue_options* options) {
  kvf_queue queue = {0};
  CHECK_OK(kvf_queue_create(agent, options, &queue));
  CHECK(queue.id != 0);
  return queue;
}

/* Takes exactly one completion, waiting for it. */
static inline kvf_completion next_completion(kvf_queue queue) {
  uint8_t ready = 77;
  CHECK_OK(kvf_queue_wait(queue, (uint64_t)(DEADLINE_S * 1000), &ready));
  if (ready != 1) FAIL("no completion within %g s", DEADLINE_S);
  kvf_completion completion;
  size_t len = 77;
  CHECK_OK(kvf_queue_poll(queue, &completion, 1, &len));
  CHECK_EQ(len, 1);
  return completion;
}

static inline bool fd_is_readable(int fd, int timeout_ms) {
  struct pollfd p = {fd, POLLIN, 0};
  int n = poll(&p, 1, timeout_ms);
  CHECK(n >= 0);
  return n == 1 && (p.revents & POLLIN) != 0;
}

#endif
