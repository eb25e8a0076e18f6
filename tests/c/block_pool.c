/* The block pool through C: blocks, cached prefixes, events, refusals, and many threads at once. */
#include <pthread.h>

#include "fixture.h"

#define INVALID KVF_ERR_INVALID_ARGUMENT

static kvf_block_pool make(uint32_t blocks, uint32_t policy) {
  kvf_block_pool_options options = kvf_block_pool_options_default();
  options.blocks = blocks;
  options.policy = policy;
  options.caching = 1;
  options.events = 1;
  kvf_block_pool pool = {0};
  CHECK_OK(kvf_block_pool_create(&options, &pool));
  return pool;
}

static uint32_t num_free(kvf_block_pool pool) {
  uint32_t n = 0;
  CHECK_OK(kvf_block_pool_num_free(pool, &n));
  return n;
}

/* Allocate, cache, free, find again, evict: what an engine does with one prompt. */
static void one_prompt(void) {
  kvf_block_pool pool = make(100, KVF_POLICY_LRU);
  uint32_t ids[4];
  CHECK_OK(kvf_block_pool_allocate(pool, ids, 4));
  for (uint32_t i = 0; i < 4; i++) CHECK_EQ(ids[i], i + 1);

  uint8_t hashes[4][32];
  uint32_t tokens[4 * 16];
  for (int i = 0; i < 4; i++) memset(hashes[i], 'a' + i, 32);
  for (uint32_t i = 0; i < 64; i++) tokens[i] = 1000 + i;
  kvf_cached_blocks blocks;
  memset(&blocks, 0, sizeof blocks);
  blocks.struct_size = (uint32_t)sizeof blocks;
  blocks.block_size = 16;
  blocks.blocks = ids;
  blocks.len = 4;
  blocks.hashes = hashes[0];
  blocks.hash_len = 32;
  blocks.tokens = tokens;
  blocks.tokens_len = 64;
  blocks.tag = 42;
  CHECK_OK(kvf_block_pool_cache(pool, &blocks));

  uint32_t back[4] = {ids[3], ids[2], ids[1], ids[0]};
  CHECK_OK(kvf_block_pool_free(pool, back, 4));
  CHECK_EQ(num_free(pool), 99);

  /* The prefix is found and held in one step; the queue has its other blocks in order. */
  uint32_t group = 0, hit[4] = {0};
  size_t found = 0;
  CHECK_OK(kvf_block_pool_lookup(pool, hashes[0], 32, 4, &group, 1, 1, hit, &found));
  CHECK_EQ(found, 4);
  CHECK(memcmp(hit, ids, sizeof ids) == 0);
  CHECK_EQ(num_free(pool), 95);
  uint32_t counts[4];
  CHECK_OK(kvf_block_pool_ref_counts(pool, ids, 4, counts));
  for (int i = 0; i < 4; i++) CHECK_EQ(counts[i], 1);
  uint32_t queue[3];
  size_t free_blocks = 0;
  CHECK_OK(kvf_block_pool_free_blocks(pool, queue, 3, &free_blocks));
  CHECK_EQ(free_blocks, 95);
  for (uint32_t i = 0; i < 3; i++) CHECK_EQ(queue[i], 5 + i);

  /* The same, read from the pool's memory. */
  const kvf_block_node *nodes = NULL;
  CHECK_OK(kvf_block_pool_nodes(pool, &nodes));
  CHECK_EQ(nodes[100].refs, 95);
  CHECK_EQ(nodes[100].next, 5);
  CHECK_EQ(nodes[5].next, 6);
  CHECK_EQ(nodes[5].prev, 100);
  CHECK_EQ(nodes[nodes[100].prev].next, 100);
  for (int i = 0; i < 4; i++) {
    CHECK_EQ(nodes[ids[i]].refs, 1);
    CHECK(nodes[ids[i]].flags & KVF_BLOCK_CACHED);
  }
  CHECK(!(nodes[5].flags & KVF_BLOCK_CACHED));

  kvf_block_key key;
  size_t keys = 0;
  uint32_t covered = 0;
  CHECK_OK(kvf_block_pool_keys(pool, ids[1], &key, 1, &keys, &covered));
  CHECK_EQ(keys, 1);
  CHECK_EQ(covered, 32);
  CHECK_EQ(key.hash_len, 32);
  CHECK(memcmp(key.hash, hashes[1], 32) == 0);

  CHECK_OK(kvf_block_pool_evict(pool, ids, 1));
  uint8_t writable = 2, done = 2;
  CHECK_OK(kvf_block_pool_is_writable(pool, ids[0], &writable));
  CHECK_EQ(writable, 1);
  CHECK_OK(kvf_block_pool_reset(pool, &done));
  CHECK_EQ(done, 0); /* blocks are held */
  CHECK_OK(kvf_block_pool_free(pool, back, 4));
  CHECK_OK(kvf_block_pool_reset(pool, &done));
  CHECK_EQ(done, 1);

  kvf_block_event_list events = {0};
  CHECK_OK(kvf_block_pool_take_events(pool, &events));
  CHECK_EQ(events.len, 3);
  CHECK_EQ(events.lost, 0);
  CHECK_EQ(events.items[0].kind, KVF_BLOCK_STORED);
  CHECK_EQ(events.items[0].count, 4);
  CHECK_EQ(events.items[0].tag, 42);
  CHECK_EQ(events.items[0].tokens_len, 64);
  CHECK(memcmp(events.items[0].tokens, tokens, sizeof tokens) == 0);
  CHECK(memcmp(events.items[0].hashes, hashes, sizeof hashes) == 0);
  CHECK(events.items[0].parent == NULL);
  CHECK_EQ(events.items[1].kind, KVF_BLOCK_REMOVED);
  CHECK(memcmp(events.items[1].hashes, hashes[0], 32) == 0);
  CHECK_EQ(events.items[2].kind, KVF_BLOCKS_CLEARED);
  kvf_block_event_list_free(&events);
  CHECK(events.items == NULL && events.storage == NULL);
  kvf_block_event_list_free(&events);
  kvf_block_event_list_free(NULL);
  CHECK_OK(kvf_block_pool_destroy(pool));
}

static void refusals(void) {
  kvf_block_pool_options options = kvf_block_pool_options_default();
  kvf_block_pool pool = {77};
  CHECK_BAD(INVALID, "0 blocks", kvf_block_pool_create(&options, &pool));
  CHECK_BAD(INVALID, "options is NULL", kvf_block_pool_create(NULL, &pool));
  options.blocks = 10;
  CHECK_BAD(INVALID, "pool is NULL", kvf_block_pool_create(&options, NULL));
  options.policy = 4;
  CHECK_BAD(INVALID, "policy is 4", kvf_block_pool_create(&options, &pool));
  options.policy = KVF_POLICY_WINDOWED;
  options.fraction = 1.5;
  CHECK_BAD(INVALID, "1.5", kvf_block_pool_create(&options, &pool));
  options.fraction = 0;
  options.caching = 2;
  CHECK_BAD(INVALID, "caching is 2", kvf_block_pool_create(&options, &pool));
  options.caching = 0;
  options.struct_size = 12;
  CHECK_BAD(INVALID, "struct_size is 12", kvf_block_pool_create(&options, &pool));
  CHECK_EQ(pool.id, 77);

  pool = make(10, KVF_POLICY_DEFAULT);
  uint32_t ids[16] = {0}, more[16] = {0};
  CHECK_OK(kvf_block_pool_allocate(pool, ids, 5));
  CHECK_BAD(KVF_ERR_RESOURCE_EXHAUSTED, "5 blocks: 4 of 9", kvf_block_pool_allocate(pool, more, 5));
  CHECK_EQ(more[0], 0);
  CHECK_OK(kvf_block_pool_allocate(pool, NULL, 0));
  CHECK_BAD(INVALID, "ids is NULL", kvf_block_pool_allocate(pool, NULL, 1));
  CHECK_BAD(INVALID, "ids has length", kvf_block_pool_allocate(pool, ids, SIZE_MAX / 8));
  CHECK_BAD(INVALID, "no block 10", kvf_block_pool_allocate_after(pool, 10, more, 1));
  uint32_t twice[2] = {ids[0], ids[0]};
  CHECK_BAD(KVF_ERR_INVALID_STATE, "free already", kvf_block_pool_free(pool, twice, 2));
  uint32_t null_block = 0;
  CHECK_BAD(INVALID, "null block", kvf_block_pool_free(pool, &null_block, 1));
  CHECK_BAD(INVALID, "null block", kvf_block_pool_touch(pool, &null_block, 1));
  CHECK_EQ(num_free(pool), 4);
  size_t found = 0;
  uint32_t group = 0;
  uint8_t hash[32] = {1};
  CHECK_BAD(INVALID, "no groups", kvf_block_pool_lookup(pool, hash, 32, 1, NULL, 0, 0, ids, &found));
  CHECK_BAD(INVALID, "touch is 2",
            kvf_block_pool_lookup(pool, hash, 32, 1, &group, 1, 2, ids, &found));
  CHECK_BAD(INVALID, "hash of 0 bytes",
            kvf_block_pool_lookup(pool, hash, 0, 1, &group, 1, 0, ids, &found));
  CHECK_BAD(INVALID, "hashes", kvf_block_pool_lookup(pool, hash, 32, SIZE_MAX, &group, 1, 0, ids, &found));
  CHECK_OK(kvf_block_pool_free(pool, ids, 5));

  /* Handles: stale, null, of another kind. */
  CHECK_OK(kvf_block_pool_destroy(pool));
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_block_pool_destroy(pool));
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_block_pool_free(pool, ids, 1));
  kvf_block_pool none = {0};
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_block_pool_free(none, ids, 1));
  kvf_agent agent = {pool.id};
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_agent_destroy(agent));
}

enum { THREADS = 8, ROUNDS = 3000, BLOCKS = 400 };

typedef struct {
  kvf_block_pool pool;
  uint32_t *owner; /* one for each block: the thread that has it, or 0 */
  uint32_t number;
} worker;

/* Takes and gives back blocks. No block may have two owners at once. */
static void *churn(void *argument) {
  const worker *w = (const worker *)argument;
  unsigned random = w->number * 7919u;
  for (int round = 0; round < ROUNDS; round++) {
    uint32_t ids[12];
    random = random * 1103515245u + 12345u;
    size_t n = 1 + (random >> 16) % 12;
    kvf_status status = kvf_block_pool_allocate(w->pool, ids, n);
    if (status == KVF_ERR_RESOURCE_EXHAUSTED) continue;
    CHECK_EQ(status, KVF_OK);
    for (size_t i = 0; i < n; i++)
      CHECK_EQ(__atomic_exchange_n(&w->owner[ids[i]], w->number, __ATOMIC_RELAXED), 0);
    CHECK_OK(kvf_block_pool_touch(w->pool, ids, n));
    CHECK_OK(kvf_block_pool_free(w->pool, ids, n));
    for (size_t i = 0; i < n; i++)
      CHECK_EQ(__atomic_exchange_n(&w->owner[ids[i]], 0, __ATOMIC_RELAXED), w->number);
    CHECK_OK(kvf_block_pool_free(w->pool, ids, n));
  }
  return NULL;
}

static void many_threads(void) {
  static uint32_t owner[BLOCKS];
  kvf_block_pool pool = make(BLOCKS, KVF_POLICY_DEFAULT);
  pthread_t threads[THREADS];
  worker workers[THREADS];
  for (uint32_t i = 0; i < THREADS; i++) {
    workers[i] = (worker){pool, owner, i + 1};
    CHECK_EQ(pthread_create(&threads[i], NULL, churn, &workers[i]), 0);
  }
  for (int i = 0; i < THREADS; i++) CHECK_EQ(pthread_join(threads[i], NULL), 0);
  CHECK_EQ(num_free(pool), BLOCKS - 1);
  kvf_block_pool_stats stats;
  CHECK_OK(kvf_block_pool_stats_get(pool, &stats));
  CHECK_EQ(stats.allocated_blocks, stats.freed_blocks);
  CHECK_OK(kvf_block_pool_destroy(pool));
}

int main(void) {
  one_prompt();
  refusals();
  many_threads();
  return 0;
}
