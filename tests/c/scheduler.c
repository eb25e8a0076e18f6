/* The scheduler half of the connector through C: options, arguments, outputs; that threads do not disturb
 * each other; what is served. */
#include <pthread.h>

#include "check.h"

#define INVALID KVF_ERR_INVALID_ARGUMENT

static const kvf_transfer_group full = {KVF_GROUP_FULL, 16, 0, 0};
static const char* const to_producer = "{\"do_remote_decode\": true}";

static kvf_scheduler_options plain(void) {
  kvf_scheduler_options options = kvf_scheduler_options_default();
  options.engine_id = "me";
  options.host = "127.0.0.1";
  options.groups = &full;
  options.groups_len = 1;
  return options;
}

static kvf_scheduler made(const kvf_scheduler_options* options) {
  kvf_scheduler scheduler = {0};
  CHECK_OK(kvf_scheduler_create(options, &scheduler));
  CHECK(scheduler.id != 0);
  return scheduler;
}

static uint64_t add(kvf_scheduler s, const char* id, const char* params, uint32_t flags) {
  uint64_t drop = 77;
  CHECK_OK(kvf_scheduler_add(s, id, (const uint8_t*)params, strlen(params), 40, flags, &drop));
  return drop;
}

static void bad_options(void) {
  kvf_scheduler s = {0};
  kvf_scheduler_options o;
  CHECK_BAD(INVALID, "engine_id is NULL", kvf_scheduler_create(NULL, &s));
  o = plain();
  CHECK_BAD(INVALID, "scheduler is NULL", kvf_scheduler_create(&o, NULL));
#define REFUSED(change, status, part)                      \
  o = plain();                                             \
  change;                                                  \
  CHECK_BAD(status, part, kvf_scheduler_create(&o, &s))
  REFUSED(o.host = NULL, INVALID, "host is NULL");
  REFUSED(o.host = "", INVALID, "host has 0 bytes");
  REFUSED(o.engine_id = "\xff", INVALID, "engine_id is not UTF-8");
  REFUSED(o.groups_len = 0, INVALID, "0 transfer groups");
  REFUSED(o.groups_len = 65, INVALID, "65");
  REFUSED(o.groups = NULL, INVALID, "groups is NULL");
  REFUSED(o.mode = 2, INVALID, "mode 2");
  REFUSED(o.tp_size = 4097, INVALID, "tp_size 4097");
  REFUSED(o.clip = 2, INVALID, "clip is 2");
  REFUSED(o.reserved[2] = 1, INVALID, "reserved");
  REFUSED(o.lease_ms = UINT64_MAX, INVALID, "lease is");
  REFUSED(o.struct_size = 8, INVALID, "struct_size is 8");
  REFUSED((o.mode = KVF_MODE_PUSH, o.bidirectional = 1), KVF_ERR_NOT_SUPPORTED, "pull only");
  kvf_transfer_group odd = {9, 16, 0, 0};
  REFUSED(o.groups = &odd, INVALID, "group kind 9");
  odd.kind = KVF_GROUP_SLIDING_WINDOW;
  REFUSED(o.groups = &odd, INVALID, "window of 0 tokens");
  CHECK_EQ(s.id, 0);
}

static void bad_arguments(void) {
  kvf_scheduler_options o = plain();
  kvf_scheduler s = made(&o);
  const uint32_t ids[] = {1, 2, 3};
  kvf_request_blocks blocks = {ids, 3, 0, 0}, two[] = {blocks, blocks}, odd = {ids, 3, 0, 1},
                     none = {NULL, 3, 0, 0};
  uint64_t n = 0;
  uint32_t keep = 0;
  uint8_t flag = 0;
  CHECK_EQ(add(s, "p", to_producer, 0), 0);
  CHECK_BAD(INVALID, "request_id is NULL", kvf_scheduler_add(s, NULL, NULL, 0, 1, 0, &n));
  CHECK_BAD(INVALID, "params is NULL", kvf_scheduler_add(s, "x", NULL, 5, 1, 0, &n));
  CHECK_BAD(INVALID, "flags 0x2", kvf_scheduler_add(s, "x", NULL, 0, 1, 2, &n));
  CHECK_BAD(INVALID, "drop_tokens is NULL", kvf_scheduler_add(s, "x", NULL, 0, 1, 0, NULL));
  CHECK_BAD(INVALID, "tokens is NULL", kvf_scheduler_match(s, "p", 1, 0, NULL));
  CHECK_BAD(INVALID, "groups[0].reserved", kvf_scheduler_allocated(s, "p", &odd, 1, 5, &flag));
  CHECK_BAD(INVALID, "groups[0]: ids is NULL", kvf_scheduler_allocated(s, "p", &none, 1, 5, &flag));
  CHECK_BAD(INVALID, "2 groups", kvf_scheduler_finished(s, "p", 0, two, 2, 40, &keep, NULL));
  CHECK_BAD(INVALID, "how 4", kvf_scheduler_finished(s, "p", 4, &blocks, 1, 40, &keep, NULL));
  CHECK_BAD(INVALID, "keep is NULL", kvf_scheduler_finished(s, "p", 0, &blocks, 1, 40, NULL, NULL));
  CHECK_BAD(INVALID, "request_ids is NULL", kvf_scheduler_sent(s, NULL, 1));
  CHECK_BAD(INVALID, "step is NULL", kvf_scheduler_build_step(s, NULL));
  kvf_rank_payload rank = {0, 0, NULL, 5};
  CHECK_BAD(INVALID, "ranks[0].data is NULL", kvf_scheduler_serve(s, &rank, 1));
  /* None of it has changed anything. */
  CHECK_OK(kvf_scheduler_finished(s, "p", KVF_FINISH_STOP, &blocks, 1, 40, &keep, NULL));
  CHECK_EQ(keep, KVF_KEEP_UNTIL_SENT);
  CHECK_OK(kvf_scheduler_destroy(s));
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_scheduler_destroy(s));
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_scheduler_match(s, "p", 1, 0, &n));
}

/* Ids that nobody has added are somebody else's. */
static void unknown_ids(void) {
  kvf_scheduler_options o = plain();
  kvf_scheduler s = made(&o);
  uint64_t n = 5;
  uint32_t keep = 5;
  uint8_t staged = 5;
  kvf_buffer params = {(uint8_t*)1, 5};
  const char* ids[] = {"x"};
  CHECK_OK(kvf_scheduler_match(s, "x", 40, 0, &n));
  CHECK_OK(kvf_scheduler_allocated(s, "x", NULL, 0, 0, &staged));
  CHECK_OK(kvf_scheduler_finished(s, "x", KVF_FINISH_LENGTH, NULL, 0, 0, &keep, &params));
  CHECK_OK(kvf_scheduler_received(s, ids, 1));
  CHECK_OK(kvf_scheduler_sent(s, ids, 1));
  CHECK(n == 0 && staged == 0 && keep == KVF_KEEP_NO && params.data == NULL && params.len == 0);
  CHECK_OK(kvf_scheduler_destroy(s));
}

/* A NUL ends a C string; one that comes by JSON would cut a name short. The router's mistake makes the request a
 * local one, as others of its kind do. */
static void names_with_a_nul(void) {
  static const char* const bad[] = {
      "\"remote_request_id\": \"p\\u0000q\", \"remote_engine_id\": \"e\", \"remote_host\": \"h\"",
      "\"remote_request_id\": \"p\", \"remote_engine_id\": \"e\\u0000\", \"remote_host\": \"h\"",
      "\"remote_request_id\": \"p\", \"remote_engine_id\": \"e\", \"remote_host\": \"\\u0000h\"",
      "\"remote_request_id\": \"p\", \"remote_engine_id\": \"e\", \"remote_host\": \"h\"",
  };
  kvf_scheduler_options o = plain();
  kvf_scheduler s = made(&o);
  for (int i = 0; i < 4; i++) {
    char params[300], id[] = {'d', (char)('0' + i), 0};
    snprintf(params, sizeof params,
             "{\"do_remote_prefill\": true, \"remote_block_ids\": [[1]], \"remote_port\": 1, %s}", bad[i]);
    uint64_t tokens = 5;
    add(s, id, params, 0);
    CHECK_OK(kvf_scheduler_match(s, id, 40, 0, &tokens));
    CHECK_EQ(tokens, i < 3 ? 0 : 40);
  }
  CHECK_OK(kvf_scheduler_destroy(s));
}

/* An id is in use until it was reported. */
static void ids_that_are_in_use(void) {
  kvf_scheduler_options o = plain();
  kvf_scheduler s = made(&o);
  const uint32_t ids[] = {1, 2, 3};
  kvf_request_blocks blocks = {ids, 3, 0, 0};
  const char* sent[] = {"p"};
  uint64_t drop = 0;
  uint32_t keep;
  add(s, "p", to_producer, 0);
  CHECK_OK(kvf_scheduler_finished(s, "p", KVF_FINISH_STOP, &blocks, 1, 40, &keep, NULL));
  CHECK_EQ(keep, KVF_KEEP_UNTIL_SENT);
  CHECK_BAD(KVF_ERR_INVALID_STATE, "still kept",
            kvf_scheduler_add(s, "p", (const uint8_t*)to_producer, strlen(to_producer), 40, 0, &drop));
  CHECK_OK(kvf_scheduler_sent(s, sent, 1));
  add(s, "p", to_producer, 0);
  CHECK_OK(kvf_scheduler_destroy(s));
}

static void options_count(void) {
  kvf_scheduler_options o = plain();
  o.backoff_tokens = 3;
  o.mode = KVF_MODE_PUSH;
  kvf_scheduler s = made(&o);
  CHECK_EQ(add(s, "p", to_producer, 0), 3);
  CHECK_EQ(add(s, "q", to_producer, KVF_ADD_NO_PREFIX_CACHE), 0);
  const uint32_t ids[] = {1, 2, 3};
  kvf_request_blocks blocks = {ids, 3, 0, 0};
  uint32_t keep;
  uint8_t pending;
  CHECK_OK(kvf_scheduler_has_pending(s, &pending));
  CHECK_EQ(pending, 0);
  kvf_buffer params;
  CHECK_OK(kvf_scheduler_finished(s, "p", KVF_FINISH_STOP, &blocks, 1, 37, &keep, &params));
  CHECK(strstr((const char*)params.data, "\"remote_block_ids\": [[1, 2, 3]]") != NULL);
  CHECK(strstr((const char*)params.data, "\"transfer_mode\": \"push\"") != NULL);
  CHECK_EQ(strlen((const char*)params.data), params.len);
  kvf_buffer_free(&params);
  CHECK_OK(kvf_scheduler_has_pending(s, &pending));
  CHECK_EQ(pending, 1);
  CHECK_OK(kvf_scheduler_destroy(s));
}

static void serves(void) {
  kvf_scheduler_options o = plain();
  kvf_scheduler s = made(&o);
  kvf_rank_payload ranks[] = {{0, 0, (const uint8_t*)"zero", 4}, {0, 1, (const uint8_t*)"one", 3}};
  CHECK_OK(kvf_scheduler_serve(s, ranks, 2));
  kvf_buffer host;
  uint16_t port = 0;
  CHECK_OK(kvf_scheduler_address(s, &host, &port));
  CHECK(strcmp((const char*)host.data, "127.0.0.1") == 0 && port != 0);
  kvf_buffer_free(&host);
  kvf_buffer got;
  CHECK_OK(kvf_side_channel_request("zmq", "127.0.0.1", port, 0, 0, &got));
  CHECK(got.len == 4 && memcmp(got.data, "zero", 4) == 0);
  kvf_buffer_free(&got);
  o.port = port;
  kvf_scheduler other = made(&o);
  CHECK_STATUS(KVF_ERR_BUSY, kvf_scheduler_serve(other, ranks, 1));
  CHECK_OK(kvf_scheduler_destroy(s));
  CHECK_OK(kvf_scheduler_serve(other, ranks, 1));
  CHECK_OK(kvf_scheduler_destroy(other));
}

static kvf_scheduler shared;

/* A producer's requests from beginning to end, among those of the other threads. */
static void* lives(void* name) {
  const uint32_t ids[] = {1, 2, 3};
  kvf_request_blocks blocks = {ids, 3, 0, 0};
  for (int i = 0; i < 300; i++) {
    char id[32];
    snprintf(id, sizeof id, "%s-%d", (const char*)name, i);
    const char* reported[] = {id};
    uint8_t staged;
    uint32_t keep;
    kvf_buffer step;
    CHECK_EQ(add(shared, id, to_producer, 0), 0);
    CHECK_OK(kvf_scheduler_allocated(shared, id, &blocks, 1, 0, &staged));
    CHECK_OK(kvf_scheduler_build_step(shared, &step));
    CHECK(step.len > 2);
    kvf_buffer_free(&step);
    CHECK_OK(kvf_scheduler_finished(shared, id, KVF_FINISH_LENGTH, &blocks, 1, 40, &keep, NULL));
    CHECK_EQ(keep, KVF_KEEP_UNTIL_SENT);
    CHECK_OK(kvf_scheduler_sent(shared, reported, 1));
  }
  return NULL;
}

static void threads(void) {
  static char names[4][2] = {"a", "b", "c", "d"};
  kvf_scheduler_options o = plain();
  shared = made(&o);
  pthread_t running[4];
  for (int i = 0; i < 4; i++) CHECK_EQ(pthread_create(&running[i], NULL, lives, names[i]), 0);
  for (int i = 0; i < 4; i++) CHECK_EQ(pthread_join(running[i], NULL), 0);
  kvf_scheduler_stats stats, nothing = {0};
  CHECK_OK(kvf_scheduler_stats_get(shared, &stats));
  CHECK(memcmp(&stats, &nothing, sizeof stats) == 0);
  CHECK_OK(kvf_scheduler_destroy(shared));
}

int main(void) {
  bad_options();
  bad_arguments();
  unknown_ids();
  names_with_a_nul();
  ids_that_are_in_use();
  options_count();
  serves();
  threads();
  return 0;
}
