/* Bytes arrive: within an agent and between two, read and written, by index, strided, ranged and
 * direct, again and again, with notifications. argv[1]: transport. */
#include "fixture.h"

enum { BLOCK = 8192, COUNT = 64, PICKED = 24 };

static const char* transport;
static kvf_agent reader, owner;
static pool mine, theirs;

/* Distinct indices in a scattered order. */
static void scatter(int32_t* indices, size_t n, int32_t step, int32_t first) {
  for (size_t i = 0; i < n; i++) indices[i] = (int32_t)((first + (int64_t)i * step) % COUNT);
}

static void clear(pool* p) { memset(p->bytes, 0, p->block * p->count); }

/* Blocks `to[i]` of `dst` hold blocks `from[i]` of the pool filled with `seed`; no other is
 * touched. */
static void expect_blocks(const pool* dst, const int32_t* to, const int32_t* from, uint32_t seed) {
  bool written[COUNT] = {false};
  for (size_t i = 0; i < PICKED; i++) {
    CHECK(holds(dst, (size_t)to[i], seed, (size_t)from[i]));
    written[to[i]] = true;
  }
  for (size_t i = 0; i < COUNT; i++)
    if (!written[i]) CHECK(untouched(dst, i));
}

static void by_index(const char* remote_name, pool* far, bool write) {
  int32_t near_indices[PICKED], far_indices[PICKED];
  scatter(near_indices, PICKED, 37, 5);
  scatter(far_indices, PICKED, 27, 11);
  pool *source = write ? &mine : far, *target = write ? far : &mine;
  clear(target);
  pool_fill(source, 21);

  kvf_desc_list local = blocks_of(reader, NULL, &mine);
  kvf_desc_list remote = blocks_of(reader, remote_name, far);
  kvf_transfer t;
  CHECK_OK(kvf_transfer_make(reader, write ? KVF_OP_WRITE : KVF_OP_READ, local, near_indices,
                             PICKED, remote, far_indices, PICKED, NULL, &t));
  kvf_buffer backend = {0};
  CHECK_OK(kvf_transfer_backend(t, &backend));
  CHECK(backend.len > 0);
  CHECK_EQ(strlen((const char*)backend.data), backend.len);
  kvf_buffer_free(&backend);
  /* Nothing moves before the post. */
  for (size_t i = 0; i < COUNT; i++) CHECK(untouched(target, i));
  post_and_wait(t);
  expect_blocks(target, write ? far_indices : near_indices, write ? near_indices : far_indices, 21);

  /* The same transfer, other content. */
  for (uint32_t seed = 22; seed < 25; seed++) {
    clear(target);
    pool_fill(source, seed);
    post_and_wait(t);
    expect_blocks(target, write ? far_indices : near_indices, write ? near_indices : far_indices,
                  seed);
  }
  CHECK_OK(kvf_transfer_release(t));
  CHECK_OK(kvf_desc_list_release(local));
  CHECK_OK(kvf_desc_list_release(remote));
}

/* Ranges of all sorts of lengths at odd addresses, without lists. */
static void direct(bool write) {
  const uint64_t lengths[] = {1, 3, 4095, 4097, 8192, 100000, 7, 65536};
  enum { N = sizeof lengths / sizeof *lengths };
  kvf_mem_desc near_descs[N], far_descs[N];
  uint64_t near_at = 1, far_at = 13;
  for (size_t i = 0; i < N; i++) {
    near_descs[i] = (kvf_mem_desc){address(mine.bytes) + near_at, lengths[i], 0};
    far_descs[N - 1 - i] = (kvf_mem_desc){0, 0, 0};
    near_at += lengths[i] + 5;
  }
  for (size_t k = N; k-- > 0;) {
    far_descs[k] = (kvf_mem_desc){address(theirs.bytes) + far_at, lengths[k], 0};
    far_at += lengths[k] + 11;
  }
  CHECK(near_at < BLOCK * COUNT && far_at < BLOCK * COUNT);
  pool *source = write ? &mine : &theirs, *target = write ? &theirs : &mine;
  clear(target);
  pool_fill(source, 31);
  kvf_transfer t;
  CHECK_OK(kvf_transfer_create(reader, write ? KVF_OP_WRITE : KVF_OP_READ, KVF_MEM_DRAM, near_descs,
                               N, KVF_MEM_DRAM, far_descs, N, "owner", NULL, &t));
  post_and_wait(t);
  size_t expected = 0, total = 0;
  for (size_t i = 0; i < N; i++) {
    uint64_t from = write ? near_descs[i].addr : far_descs[i].addr;
    uint64_t to = write ? far_descs[i].addr : near_descs[i].addr;
    for (size_t k = 0; k < lengths[i]; k++)
      CHECK(target->bytes[to - address(target->bytes) + k] ==
            known(31, from - address(source->bytes) + k));
    expected += lengths[i];
  }
  /* And nothing else: as many bytes are not zero as non-zero ones were sent. */
  size_t sent = 0;
  for (size_t i = 0; i < N; i++) {
    uint64_t from = (write ? near_descs[i].addr : far_descs[i].addr) - address(source->bytes);
    for (size_t k = 0; k < lengths[i]; k++) sent += known(31, from + k) != 0;
  }
  for (size_t i = 0; i < BLOCK * COUNT; i++) total += target->bytes[i] != 0;
  CHECK_EQ(total, sent);
  CHECK(expected > sent / 2);
  CHECK_OK(kvf_transfer_release(t));
}

static void with_notifications(void) {
  int32_t index = 0;
  kvf_desc_list local = blocks_of(reader, NULL, &mine);
  kvf_desc_list remote = blocks_of(reader, "owner", &theirs);
  kvf_transfer_options o = kvf_transfer_options_default();
  o.notification = (const uint8_t*)"block read";
  o.notification_len = 10;
  kvf_transfer t;
  CHECK_OK(kvf_transfer_make(reader, KVF_OP_READ, local, &index, 1, remote, &index, 1, &o, &t));
  post_and_wait(t);
  expect_notification(owner, "reader", "block read");
  /* Replaced with a post, and from then on. */
  CHECK_OK(kvf_transfer_post(t, (const uint8_t*)"again", 5, NULL));
  wait_done(t);
  expect_notification(owner, "reader", "again");
  CHECK_OK(kvf_transfer_release(t));

  /* Without a transfer; some bytes are not text. */
  CHECK_OK(kvf_agent_notify(reader, "owner", (const uint8_t*)"a\0b\xff", 4, NULL));
  kvf_notification_list got = {0};
  CHECK_OK(kvf_agent_wait_notification(owner, NULL, (const uint8_t*)"a\0", 2, 30000, &got));
  CHECK(got.len == 1 && got.items[0].payload_len == 4);
  CHECK(memcmp(got.items[0].payload, "a\0b\xff", 4) == 0);
  kvf_notification_list_free(&got);
  CHECK(got.items == NULL && got.len == 0);
  kvf_notification_list_free(&got);

  /* Waiting for one leaves the others, in their order. */
  const char* messages[] = {"one", "two", "three", "end"};
  for (size_t i = 0; i < 4; i++)
    CHECK_OK(
        kvf_agent_notify(reader, "owner", (const uint8_t*)messages[i], strlen(messages[i]), NULL));
  CHECK_OK(kvf_agent_wait_notification(owner, "reader", (const uint8_t*)"end", 3, 30000, &got));
  kvf_notification_list_free(&got);
  CHECK_OK(kvf_agent_notifications(owner, NULL, 0, &got));
  CHECK_EQ(got.len, 3);
  for (size_t i = 0; i < 3; i++) {
    CHECK_EQ(got.items[i].payload_len, strlen(messages[i]));
    CHECK(memcmp(got.items[i].payload, messages[i], strlen(messages[i])) == 0);
  }
  kvf_notification_list_free(&got);
  double start = now_s();
  CHECK_STATUS(KVF_ERR_TIMEOUT, kvf_agent_wait_notification(owner, NULL, NULL, 0, 100, &got));
  CHECK(now_s() - start >= 0.1);
  CHECK_STATUS(KVF_ERR_TIMEOUT, kvf_agent_wait_notification(owner, NULL, NULL, 0, 0, &got));
  CHECK_OK(kvf_desc_list_release(local));
  CHECK_OK(kvf_desc_list_release(remote));
}

static void what_it_says_about_itself(void) {
  kvf_buffer name = {0};
  CHECK_OK(kvf_agent_name(owner, &name));
  CHECK(name.len == 5 && strcmp((const char*)name.data, "owner") == 0);
  kvf_buffer_free(&name);

  kvf_string_list backends = {0}, plugins = {0};
  CHECK_OK(kvf_agent_backends(reader, &backends));
  CHECK_OK(kvf_agent_plugins(reader, &plugins));
  CHECK(backends.len >= 1 && plugins.len >= 1);
  for (size_t i = 0; i < backends.len; i++) {
    uint32_t kinds = 0;
    kvf_param_list params = {0};
    CHECK_OK(kvf_agent_backend_info(reader, backends.items[i], &params, &kinds));
    CHECK(kinds & (1u << KVF_MEM_DRAM));
    for (size_t k = 0; k < params.len; k++)
      CHECK(params.items[k].key != NULL && params.items[k].value != NULL);
    kvf_param_list_free(&params);
    CHECK_OK(kvf_agent_plugin_info(reader, backends.items[i], NULL, NULL));
  }
  kvf_string_list_free(&backends);
  kvf_string_list_free(&plugins);
  CHECK(backends.items == NULL && backends.len == 0);
}

static void remote_agents_come_and_go(void) {
  uint8_t ready = 77;
  kvf_mem_desc inside = {address(theirs.bytes), 64, 0};
  kvf_mem_desc outside = {address(theirs.bytes) - 64, 64, 0};
  CHECK_OK(kvf_agent_check_remote(reader, "owner", KVF_MEM_DRAM, NULL, 0, &ready));
  CHECK_EQ(ready, 1);
  CHECK_OK(kvf_agent_check_remote(reader, "owner", KVF_MEM_DRAM, &inside, 1, &ready));
  CHECK_EQ(ready, 1);
  CHECK_OK(kvf_agent_check_remote(reader, "owner", KVF_MEM_DRAM, &outside, 1, &ready));
  CHECK_EQ(ready, 0);
  CHECK_OK(kvf_agent_connect(reader, "owner", NULL, 0));
  CHECK_OK(kvf_agent_remove_remote(reader, "owner"));
  CHECK_OK(kvf_agent_check_remote(reader, "owner", KVF_MEM_DRAM, NULL, 0, &ready));
  CHECK_EQ(ready, 0);
  CHECK_STATUS(KVF_ERR_NOT_FOUND, kvf_agent_remove_remote(reader, "owner"));
  introduce(owner, reader);
  by_index("owner", &theirs, false);
}

int main(int argc, char** argv) {
  transport = transport_of(argc, argv);
  mine = pool_new(BLOCK, COUNT);
  theirs = pool_new(BLOCK, COUNT);
  pool own = pool_new(BLOCK, COUNT);
  kvf_agent_options options = agent_options(transport, "reader");
  options.telemetry = 1;
  CHECK_OK(kvf_agent_create(&options, &reader));
  owner = make_agent(transport, "owner");
  pool_register(reader, &mine);
  pool_register(reader, &own);
  pool_register(owner, &theirs);
  introduce(owner, reader);

  what_it_says_about_itself();
  by_index("reader", &own, false);
  by_index("reader", &own, true);
  by_index("owner", &theirs, false);
  by_index("owner", &theirs, true);
  direct(false);
  direct(true);
  with_notifications();
  remote_agents_come_and_go();

  pool_deregister(reader, &own);
  CHECK_OK(kvf_agent_destroy(reader));
  CHECK_OK(kvf_agent_destroy(owner));
  pool_free(&mine);
  pool_free(&theirs);
  pool_free(&own);
  return 0;
}
