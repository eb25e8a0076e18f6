/* The block pool in a server through C: a scheduler's step in one round trip, refusals, sessions. */
#include "check.h"
#include "server.h"

#define INVALID KVF_ERR_INVALID_ARGUMENT

static kvf_pool_client dial(const server* s) {
  kvf_pool_client_options options = kvf_pool_client_options_default();
  options.address = s->address;
  kvf_pool_client client = {0};
  CHECK_OK(kvf_pool_client_connect(&options, &client));
  return client;
}

static kvf_pool_op op(uint32_t kind) {
  kvf_pool_op made;
  memset(&made, 0, sizeof made);
  made.kind = kind;
  return made;
}

static uint64_t num_free(kvf_pool_client client) {
  kvf_pool_op asked = op(KVF_POOL_OP_NUM_FREE);
  CHECK_OK(kvf_pool_client_run(client, &asked, 1, 0));
  return asked.value;
}

/* Allocate and cache for one request; find it and take the rest for another. */
static void two_steps(kvf_pool_client client) {
  uint32_t first[2], found[3], rest[4], group = 0;
  kvf_pool_op allocate = op(KVF_POOL_OP_ALLOCATE);
  allocate.request = "first";
  allocate.count = 2;
  allocate.out = first;
  allocate.out_capacity = 2;
  CHECK_OK(kvf_pool_client_run(client, &allocate, 1, 0));
  CHECK_EQ(allocate.out_len, 2);

  kvf_cached_blocks cached;
  memset(&cached, 0, sizeof cached);
  cached.struct_size = (uint32_t)sizeof cached;
  cached.block_size = 16;
  cached.blocks = first;
  cached.len = 2;
  cached.hashes = (const uint8_t*)"onetwo";
  cached.hash_len = 3;

  kvf_pool_op step[5] = {op(KVF_POOL_OP_CACHE), op(KVF_POOL_OP_FREE_REQUEST),
                         op(KVF_POOL_OP_ACQUIRE), op(KVF_POOL_OP_ALLOCATE_UP_TO),
                         op(KVF_POOL_OP_STATS)};
  step[0].cached = &cached;
  step[1].request = "first";
  step[2].request = step[3].request = "second";
  step[2].hashes = (const uint8_t*)"onetwosix";
  step[2].hash_len = step[2].hash_count = 3;
  step[2].groups = &group;
  step[2].groups_len = 1;
  step[2].out = found;
  step[2].out_capacity = 3;
  step[3].count = step[3].out_capacity = 4;
  step[3].out = rest;
  kvf_block_pool_stats stats;
  step[4].stats = &stats;
  CHECK_OK(kvf_pool_client_run(client, step, 5, 1));
  for (int i = 0; i < 5; i++) CHECK(step[i].status == KVF_OK && step[i].message[0] == 0);
  CHECK_EQ(step[1].value, 2);
  CHECK_EQ(step[2].value, 2);
  CHECK_EQ(step[2].out_len, 2);
  CHECK(memcmp(found, first, sizeof first) == 0);
  /* Two of the four were found. */
  CHECK_EQ(step[3].out_len, 2);
  CHECK_EQ(stats.free, 45);
  CHECK_EQ(stats.hits, 2);

  kvf_block_key key;
  kvf_pool_op keys = op(KVF_POOL_OP_KEYS);
  keys.ids = first;
  keys.ids_len = 1;
  keys.keys = &key;
  keys.keys_capacity = 1;
  CHECK_OK(kvf_pool_client_run(client, &keys, 1, 0));
  CHECK(keys.value == 1 && keys.tokens == 16 && key.hash_len == 3);
  CHECK(memcmp(key.hash, "one", 3) == 0);

  kvf_pool_op done = op(KVF_POOL_OP_FREE_REQUEST);
  done.request = "second";
  CHECK_OK(kvf_pool_client_run(client, &done, 1, 0));
  CHECK_EQ(done.value, 4);
  CHECK_EQ(num_free(client), 49);
}

static void failures(kvf_pool_client client) {
  uint32_t out[64], id = 7;
  kvf_pool_op ops[3] = {op(KVF_POOL_OP_ALLOCATE), op(KVF_POOL_OP_FREE), op(KVF_POOL_OP_PING)};
  ops[0].count = ops[0].out_capacity = 64;
  ops[0].out = out;
  ops[1].ids = &id;
  ops[1].ids_len = 1;
  CHECK_BAD(KVF_ERR_RESOURCE_EXHAUSTED, "49 of 49", kvf_pool_client_run(client, ops, 3, 0));
  CHECK_EQ(ops[0].status, KVF_ERR_RESOURCE_EXHAUSTED);
  CHECK(strstr(ops[0].message, "49 of 49") != NULL);
  CHECK_EQ(ops[1].status, KVF_ERR_INVALID_STATE);
  CHECK_EQ(ops[2].status, KVF_OK);
  CHECK(kvf_pool_client_run(client, ops, 3, 1) == KVF_ERR_RESOURCE_EXHAUSTED);
  CHECK_EQ(ops[2].status, KVF_ERR_CANCELED);

  /* Nothing of it is sent: the first would have worked. */
  ops[0].count = 1;
  ops[1].ids = NULL;
  CHECK_BAD(INVALID, "ops[1]", kvf_pool_client_run(client, ops, 3, 0));
  ops[1] = op(99);
  CHECK_BAD(INVALID, "kind is 99", kvf_pool_client_run(client, ops, 2, 0));
  ops[1] = op(KVF_POOL_OP_ALLOCATE);
  ops[1].count = 3;
  ops[1].out = out;
  ops[1].out_capacity = 2;
  CHECK_BAD(INVALID, "room for 2", kvf_pool_client_run(client, ops, 2, 0));
  ops[1] = op(KVF_POOL_OP_STATS);
  CHECK_BAD(INVALID, "stats is NULL", kvf_pool_client_run(client, ops, 2, 0));
  ops[1] = op(KVF_POOL_OP_KEYS);
  CHECK_BAD(INVALID, "ids has 0", kvf_pool_client_run(client, ops, 2, 0));
  ops[1] = op(KVF_POOL_OP_PING);
  ops[1].reserved = 1;
  CHECK_BAD(INVALID, "reserved", kvf_pool_client_run(client, ops, 2, 0));
  CHECK_BAD(INVALID, "ops is NULL", kvf_pool_client_run(client, NULL, 1, 0));
  CHECK_BAD(INVALID, "4097", kvf_pool_client_run(client, ops, 4097, 0));
  CHECK_OK(kvf_pool_client_run(client, NULL, 0, 0));
  CHECK_EQ(num_free(client), 49);

  kvf_block_event_list events;
  memset(&events, 0, sizeof events);
  kvf_pool_op take = op(KVF_POOL_OP_TAKE_EVENTS);
  take.events = &events;
  CHECK_BAD(KVF_ERR_NOT_SUPPORTED, "events", kvf_pool_client_run(client, &take, 1, 0));
}

static void connecting(const server* s) {
  kvf_pool_client_options options = kvf_pool_client_options_default();
  kvf_pool_client client = {0};
  CHECK_BAD(INVALID, "client is NULL", kvf_pool_client_connect(&options, NULL));
  options.address = "smoke://signals";
  CHECK_BAD(INVALID, "smoke", kvf_pool_client_connect(&options, &client));
  options.address = "ipc:///nonexistent/socket";
  options.timeout_ms = 20;
  CHECK_BAD(KVF_ERR_TIMEOUT, "/nonexistent", kvf_pool_client_connect(&options, &client));
  options.address = s->address;
  options.timeout_ms = 0;
  options.pool = "nowhere";
  CHECK_BAD(KVF_ERR_NOT_FOUND, "nowhere", kvf_pool_client_connect(&options, &client));

  kvf_block_pool_options pool = kvf_block_pool_options_default();
  pool.blocks = 10;
  pool.events = pool.caching = 1;
  options.create = &pool;
  CHECK_OK(kvf_pool_client_connect(&options, &client));
  CHECK_EQ(num_free(client), 9);
  kvf_block_event_list events;
  kvf_pool_op ops[2] = {op(KVF_POOL_OP_RESET), op(KVF_POOL_OP_TAKE_EVENTS)};
  ops[1].events = &events;
  CHECK_OK(kvf_pool_client_run(client, ops, 2, 0));
  CHECK_EQ(ops[0].value, 1);
  CHECK(events.len == 1 && events.items[0].kind == KVF_BLOCKS_CLEARED);
  kvf_block_event_list_free(&events);
  pool.blocks = 11;
  kvf_pool_client other = {0};
  CHECK_BAD(KVF_ERR_MISMATCH, "nowhere", kvf_pool_client_connect(&options, &other));
  CHECK_OK(kvf_pool_client_close(client));
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_pool_client_close(client));
}

int main(void) {
  server s = server_start("50", "true");
  kvf_pool_client client = dial(&s), other = dial(&s);
  two_steps(client);
  failures(client);
  connecting(&s);

  uint32_t out[5];
  kvf_pool_op take = op(KVF_POOL_OP_ALLOCATE);
  take.count = take.out_capacity = 5;
  take.out = out;
  CHECK_OK(kvf_pool_client_run(client, &take, 1, 0));
  CHECK_EQ(num_free(other), 44);
  CHECK_OK(kvf_pool_client_close(client));
  CHECK_EQ(num_free(other), 49);
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_pool_client_run(client, &take, 1, 0));

  kvf_buffer text = {0};
  CHECK_OK(kvf_pool_client_metrics(other, &text));
  CHECK(strstr((const char*)text.data, "kv_cache_server_sessions 1\n") != NULL);
  kvf_buffer_free(&text);
  CHECK_OK(kvf_pool_client_shutdown_server(other));
  CHECK_EQ(server_end(&s), 0);
  (void)kvf_pool_client_close(other);
  return 0;
}
