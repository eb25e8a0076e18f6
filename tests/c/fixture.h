/* What the test programs share: agents of the transport under test, memory with a known content,
 * and waiting with a deadline. The transport is argv[1]: test, local or nixl. */
#ifndef KVF_TESTS_FIXTURE_H
#define KVF_TESTS_FIXTURE_H

#include <sched.h>
#include <stdbool.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

/* CTest's SKIP_RETURN_CODE. */
#define SKIPPED 77
/* No wait of a test is longer. */
#define DEADLINE_S 30.0

static inline double now_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Evaluates a condition until it holds; fails after the deadline. */
#define WAIT_FOR(condition)                                                             \
  do {                                                                                  \
    double wait_until = now_s() + DEADLINE_S;                                           \
    while (!(condition)) {                                                              \
      if (now_s() > wait_until) FAIL("not so within %g s: %s", DEADLINE_S, #condition); \
      sched_yield();                                                                    \
    }                                                                                   \
  } while (0)

static inline bool is_transport(const char* transport, const char* name) {
  return strcmp(transport, name) == 0;
}

static inline const char* transport_of(int argc, char** argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: %s test|local|nixl\n", argv[0]);
    exit(2);
  }
  if (is_transport(argv[1], "nixl") && getenv("KVF_TEST_NIXL") == NULL) {
    const char* without = getenv("KVF_TEST_NO_NIXL");
    if (without != NULL && strcmp(without, "1") == 0) exit(SKIPPED);
    fprintf(stderr,
            "this test needs NIXL: set KVF_TEST_NIXL to the path of libnixl_capi.so (in the wheel "
            "nixl-cu12: site-packages/.nixl_cu12.mesonpy.libs/), or KVF_TEST_NO_NIXL=1 to do "
            "without\n");
    exit(1);
  }
  return argv[1];
}

static inline kvf_agent_options agent_options(const char* transport, const char* name) {
  kvf_agent_options options = kvf_agent_options_default();
  options.name = name;
  options.transport = transport;
  if (is_transport(transport, "nixl")) options.nixl_library = getenv("KVF_TEST_NIXL");
  return options;
}

static inline kvf_agent make_agent(const char* transport, const char* name) {
  kvf_agent_options options = agent_options(transport, name);
  kvf_agent agent = {0};
  CHECK_OK(kvf_agent_create(&options, &agent));
  CHECK(agent.id != 0);
  return agent;
}

/* `reader` learns of `owner`. */
static inline void introduce(kvf_agent owner, kvf_agent reader) {
  kvf_buffer metadata = {0};
  CHECK_OK(kvf_agent_metadata(owner, &metadata));
  CHECK(metadata.len > 0);
  CHECK_OK(kvf_agent_add_remote(reader, metadata.data, metadata.len, NULL));
  kvf_buffer_free(&metadata);
}

/* Memory of `count` blocks. */
typedef struct pool {
  uint8_t* bytes;
  size_t block;
  size_t count;
} pool;

static inline pool pool_new(size_t block, size_t count) {
  void* bytes = NULL;
  CHECK_EQ(posix_memalign(&bytes, 4096, block * count), 0);
  memset(bytes, 0, block * count);
  return (pool){(uint8_t*)bytes, block, count};
}

static inline void pool_free(pool* p) {
  free(p->bytes);
  p->bytes = NULL;
}

static inline uint8_t* pool_at(const pool* p, size_t i) { return p->bytes + i * p->block; }

static inline uint64_t address(const void* p) { return (uint64_t)(uintptr_t)p; }

/* One byte of a content that is different everywhere: neighbours, blocks and seeds all differ. */
static inline uint8_t known(uint32_t seed, size_t i) {
  uint64_t x = (i + 1) * 0x9e3779b97f4a7c15u ^ ((uint64_t)seed << 32);
  return (uint8_t)((x ^ (x >> 29)) * 0xbf58476d1ce4e5b9u >> 56);
}

static inline void pool_fill(pool* p, uint32_t seed) {
  for (size_t i = 0; i < p->block * p->count; i++) p->bytes[i] = known(seed, i);
}

/* Block `mine` of `p` holds block `theirs` of a pool that was filled with this seed. */
static inline bool holds(const pool* p, size_t mine, uint32_t seed, size_t theirs) {
  for (size_t i = 0; i < p->block; i++)
    if (pool_at(p, mine)[i] != known(seed, theirs * p->block + i)) return false;
  return true;
}

/* Block `i` of `p` has only zeros. */
static inline bool untouched(const pool* p, size_t i) {
  for (size_t k = 0; k < p->block; k++)
    if (pool_at(p, i)[k] != 0) return false;
  return true;
}

static inline kvf_reg_desc pool_reg(const pool* p) {
  return (kvf_reg_desc){address(p->bytes), p->block * p->count, 0, NULL, 0};
}

static inline void pool_register(kvf_agent agent, const pool* p) {
  kvf_reg_desc desc = pool_reg(p);
  CHECK_OK(kvf_agent_register(agent, KVF_MEM_DRAM, &desc, 1, NULL, 0));
}

static inline void pool_deregister(kvf_agent agent, const pool* p) {
  kvf_reg_desc desc = pool_reg(p);
  CHECK_OK(kvf_agent_deregister(agent, KVF_MEM_DRAM, &desc, 1, NULL, 0));
}

/* Every block of a pool, at `base`, which may be an address in another process. */
static inline kvf_desc_list blocks_at(kvf_agent agent, const char* remote, uint64_t base,
                                      size_t block, size_t count) {
  kvf_strided_desc row = {base, block, 0, block, count};
  kvf_desc_list list = {0};
  CHECK_OK(kvf_desc_list_prepare_strided(agent, remote, KVF_MEM_DRAM, &row, 1, NULL, 0, &list));
  size_t len = 0;
  CHECK_OK(kvf_desc_list_len(list, &len));
  CHECK_EQ(len, count);
  return list;
}

static inline kvf_desc_list blocks_of(kvf_agent agent, const char* remote, const pool* p) {
  return blocks_at(agent, remote, address(p->bytes), p->block, p->count);
}

static inline bool is_done(kvf_transfer transfer) {
  int32_t state = -1;
  CHECK_OK(kvf_transfer_state(transfer, &state));
  return state == KVF_TRANSFER_DONE;
}

/* Waits until a posted transfer is done; fails if it fails. */
static inline void wait_done(kvf_transfer transfer) { WAIT_FOR(is_done(transfer)); }

static inline void post_and_wait(kvf_transfer transfer) {
  CHECK_OK(kvf_transfer_post(transfer, NULL, 0, NULL));
  wait_done(transfer);
}

/* Takes one notification from `from`, which must have this payload. */
static inline void expect_notification(kvf_agent agent, const char* from, const char* payload) {
  kvf_notification_list got = {0};
  CHECK_OK(kvf_agent_wait_notification(agent, from, NULL, 0, (uint64_t)(DEADLINE_S * 1000), &got));
  CHECK_EQ(got.len, 1);
  CHECK(strcmp(got.items[0].from, from) == 0);
  CHECK_EQ(got.items[0].payload_len, strlen(payload));
  /* NULL when it is empty. */
  CHECK(*payload == '\0' || memcmp(got.items[0].payload, payload, strlen(payload)) == 0);
  kvf_notification_list_free(&got);
}

#endif
