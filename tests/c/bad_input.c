/* Bad input: each is a status whose message names the value, nothing is written to the outputs, and
 * the library works as before. argv[1]: transport. */
#include "fixture.h"

static const char* transport;
static kvf_agent agent, peer;
static pool p, q;
static kvf_desc_list local, remote;

#define INVALID KVF_ERR_INVALID_ARGUMENT
#define NAME "bad input"
#define PEER "its peer"

static kvf_status created(kvf_agent_options options) {
  kvf_agent made = {0};
  kvf_status status = kvf_agent_create(&options, &made);
  CHECK((status == KVF_OK) == (made.id != 0));
  if (status == KVF_OK) CHECK_OK(kvf_agent_destroy(made));
  return status;
}

#define OPTION(status, part, assignment)                       \
  do {                                                         \
    kvf_agent_options o = agent_options(transport, "options"); \
    assignment;                                                \
    CHECK_BAD(status, part, created(o));                       \
  } while (0)

static void agent_options_are_checked(void) {
  kvf_agent out = {0};
  kvf_agent_options good = agent_options(transport, "options");
  CHECK_BAD(INVALID, "options is NULL", kvf_agent_create(NULL, &out));
  CHECK_BAD(INVALID, "agent is NULL", kvf_agent_create(&good, NULL));

  /* Sizes that no version of the struct had: nothing; not even the size field; in the middle of a
   * pointer; less than the first version; not a multiple of the alignment; absurd. */
  const uint32_t sizes[] = {0, 1, 4, 8, 12, 80, 87, 89, 4096, UINT32_MAX};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    char part[32];
    snprintf(part, sizeof part, "struct_size is %" PRIu32, sizes[i]);
    OPTION(INVALID, part, o.struct_size = sizes[i]);
  }
  /* A newer program's struct: fine while what we do not know is zero. */
  struct {
    kvf_agent_options known;
    uint64_t added[2];
  } newer;
  memset(&newer, 0, sizeof newer);
  newer.known = good;
  newer.known.struct_size = sizeof newer;
  CHECK_OK(kvf_agent_create(&newer.known, &out));
  CHECK_OK(kvf_agent_destroy(out));
  newer.added[1] = 1;
  CHECK_BAD(INVALID, "byte 96 is set", kvf_agent_create(&newer.known, &out));

  static char long_name[1026];
  memset(long_name, 'n', sizeof long_name - 1);
  kvf_backend nameless = {NULL, NULL, 0};
  kvf_backend no_params = {"UCX", NULL, 3};
  kvf_param keyless = {NULL, "value"};
  kvf_backend no_key = {"UCX", &keyless, 1};
  OPTION(INVALID, "options.name is NULL", o.name = NULL);
  OPTION(INVALID, "agent name is empty", o.name = "");
  OPTION(INVALID, "has 1025 bytes", o.name = long_name);
  OPTION(INVALID, "options.name is not UTF-8", o.name = "\xc3(");
  OPTION(INVALID, "options.transport", o.transport = NULL);
  OPTION(INVALID, "transport \"pigeon\" is not known", o.transport = "pigeon");
  OPTION(INVALID, "transport \"\" is not known", o.transport = "");
  OPTION(INVALID, "options.progress 3", o.progress = 3);
  OPTION(INVALID, "options.progress 4294967295", o.progress = UINT32_MAX);
  OPTION(INVALID, "options.sync_mode 4", o.sync_mode = 4);
  OPTION(INVALID, "options.listen is 2", o.listen = 2);
  OPTION(INVALID, "options.telemetry is 255", o.telemetry = 255);
  OPTION(INVALID, "options.no_default_backend is 2", o.no_default_backend = 2);
  OPTION(INVALID, "reserved", o.reserved[2] = 1);
  OPTION(INVALID, "options.backends is NULL but its length is 2", o.backends_len = 2);
  OPTION(INVALID, "options.backends has length",
         (o.backends = &nameless, o.backends_len = SIZE_MAX));
  OPTION(INVALID, "backend.name is NULL", (o.backends = &nameless, o.backends_len = 1));
  OPTION(INVALID, "backend.params is NULL", (o.backends = &no_params, o.backends_len = 1));
  OPTION(INVALID, "param.key is NULL", (o.backends = &no_key, o.backends_len = 1));
}

static kvf_status reg(uint32_t kind, uint64_t addr, uint64_t len) {
  kvf_reg_desc desc = {addr, len, 0, NULL, 0};
  return kvf_agent_register(agent, kind, &desc, 1, NULL, 0);
}

static void registrations_are_checked(void) {
  kvf_reg_desc good = pool_reg(&p);
  kvf_reg_desc meta = good;
  meta.meta_len = 4;
  CHECK_BAD(INVALID, "descs is NULL but its length is 1",
            kvf_agent_register(agent, KVF_MEM_DRAM, NULL, 1, NULL, 0));
  CHECK_BAD(INVALID, "empty", kvf_agent_register(agent, KVF_MEM_DRAM, NULL, 0, NULL, 0));
  CHECK_BAD(INVALID, "empty", kvf_agent_register(agent, KVF_MEM_DRAM, &good, 0, NULL, 0));
  CHECK_BAD(INVALID, "descs has length",
            kvf_agent_register(agent, KVF_MEM_DRAM, &good, SIZE_MAX, NULL, 0));
  CHECK_BAD(INVALID, "descs has length 1099511627776",
            kvf_agent_register(agent, KVF_MEM_DRAM, &good, (size_t)1 << 40, NULL, 0));
  CHECK_BAD(INVALID, "not aligned",
            kvf_agent_register(agent, KVF_MEM_DRAM, (void*)((char*)&good + 1), 1, NULL, 0));
  CHECK_BAD(INVALID, "desc.meta is NULL but its length is 4",
            kvf_agent_register(agent, KVF_MEM_DRAM, &meta, 1, NULL, 0));
  meta.meta = p.bytes;
  meta.meta_len = SIZE_MAX;
  CHECK_BAD(INVALID, "desc.meta has length",
            kvf_agent_register(agent, KVF_MEM_DRAM, &meta, 1, NULL, 0));
  CHECK_BAD(INVALID, "memory kind 5", reg(5, good.addr, 16));
  CHECK_BAD(INVALID, "memory kind 4294967295", reg(UINT32_MAX, good.addr, 16));
  CHECK_BAD(INVALID, "length 0", reg(KVF_MEM_DRAM, good.addr, 0));
  CHECK_BAD(INVALID, "wraps around", reg(KVF_MEM_DRAM, good.addr, UINT64_MAX));
  CHECK_BAD(INVALID, "not mapped", reg(KVF_MEM_DRAM, 0, 16));
  CHECK_BAD(INVALID, "not mapped", reg(KVF_MEM_DRAM, 4096, 16));
  CHECK_BAD(INVALID, "not mapped", reg(KVF_MEM_DRAM, good.addr, (uint64_t)1 << 46));
  CHECK_BAD(INVALID, "not mapped", reg(KVF_MEM_DRAM, UINT64_MAX - 4096, 16));
  const char* none[] = {NULL};
  const char* unknown[] = {"pigeon"};
  CHECK_BAD(INVALID, "backends is NULL", kvf_agent_register(agent, 0, &good, 1, NULL, 1));
  CHECK_BAD(INVALID, "backends is NULL", kvf_agent_register(agent, 0, &good, 1, none, 1));
  CHECK_BAD(INVALID, "backends has length",
            kvf_agent_register(agent, 0, &good, 1, unknown, 1 << 20));
  CHECK_BAD(KVF_ERR_NOT_FOUND, "pigeon", kvf_agent_register(agent, 0, &good, 1, unknown, 1));
  /* All or none: the good one of the two is not registered, so it can be afterwards. */
  pool fresh = pool_new(4096, 1);
  kvf_reg_desc two[2] = {pool_reg(&fresh), {8, 16, 0, NULL, 0}};
  CHECK_BAD(INVALID, "range 1 at 0x8", kvf_agent_register(agent, KVF_MEM_DRAM, two, 2, NULL, 0));
  kvf_status status = kvf_agent_deregister(agent, KVF_MEM_DRAM, two, 1, NULL, 0);
  CHECK(status == KVF_ERR_NOT_FOUND || status == KVF_ERR_NOT_REGISTERED);
  pool_register(agent, &fresh);
  pool_deregister(agent, &fresh);
  status = kvf_agent_deregister(agent, KVF_MEM_DRAM, two, 1, NULL, 0);
  CHECK(status == KVF_ERR_NOT_FOUND || status == KVF_ERR_NOT_REGISTERED);
  pool_free(&fresh);
}

static void names_are_checked(void) {
  kvf_buffer buffer = {0};
  kvf_string_list strings = {0};
  kvf_query_list results = {0};
  kvf_reg_desc range = pool_reg(&p);
  kvf_backend backend = {"pigeon", NULL, 0};
  uint8_t ready = 77;
  CHECK_BAD(INVALID, "name is NULL", kvf_agent_name(agent, NULL));
  CHECK_BAD(INVALID, "plugins is NULL", kvf_agent_plugins(agent, NULL));
  CHECK_BAD(INVALID, "backends is NULL", kvf_agent_backends(agent, NULL));
  CHECK_BAD(INVALID, "plugin is NULL", kvf_agent_plugin_info(agent, NULL, NULL, NULL));
  CHECK_BAD(KVF_ERR_NOT_FOUND, "pigeon", kvf_agent_plugin_info(agent, "pigeon", NULL, NULL));
  CHECK_BAD(INVALID, "backend is NULL", kvf_agent_backend_info(agent, NULL, NULL, NULL));
  CHECK_BAD(KVF_ERR_NOT_FOUND, "pigeon", kvf_agent_backend_info(agent, "pigeon", NULL, NULL));
  CHECK_BAD(INVALID, "backend is NULL", kvf_agent_create_backend(agent, NULL));
  CHECK_BAD(KVF_ERR_NOT_FOUND, "pigeon", kvf_agent_create_backend(agent, &backend));
  CHECK_BAD(INVALID, "backend is NULL",
            kvf_agent_query_memory(agent, KVF_MEM_DRAM, &range, 1, NULL, &results));
  CHECK_BAD(KVF_ERR_NOT_FOUND, "pigeon",
            kvf_agent_query_memory(agent, KVF_MEM_DRAM, &range, 1, "pigeon", &results));
  CHECK_BAD(INVALID, "results is NULL",
            kvf_agent_query_memory(agent, KVF_MEM_DRAM, &range, 1, "pigeon", NULL));
  CHECK_BAD(INVALID, "remote is NULL", kvf_agent_remove_remote(agent, NULL));
  CHECK_BAD(KVF_ERR_NOT_FOUND, "stranger", kvf_agent_remove_remote(agent, "stranger"));
  CHECK_BAD(INVALID, "remote is NULL", kvf_agent_connect(agent, NULL, NULL, 0));
  CHECK_BAD(KVF_ERR_NOT_FOUND, "stranger", kvf_agent_connect(agent, "stranger", NULL, 0));
  CHECK_BAD(INVALID, "ready is NULL", kvf_agent_check_remote(agent, PEER, 0, NULL, 0, NULL));
  CHECK_BAD(INVALID, "remote is NULL", kvf_agent_check_remote(agent, NULL, 0, NULL, 0, &ready));
  CHECK_BAD(INVALID, "memory kind 9", kvf_agent_check_remote(agent, PEER, 9, NULL, 0, &ready));
  CHECK_EQ(ready, 77);
  CHECK_OK(kvf_agent_check_remote(agent, "stranger", KVF_MEM_DRAM, NULL, 0, &ready));
  CHECK_EQ(ready, 0);
  CHECK_BAD(INVALID, "remote is NULL", kvf_agent_notify(agent, NULL, NULL, 0, NULL));
  CHECK_BAD(KVF_ERR_NOT_FOUND, "stranger", kvf_agent_notify(agent, "stranger", NULL, 0, NULL));
  CHECK_BAD(INVALID, "payload is NULL", kvf_agent_notify(agent, PEER, NULL, 3, NULL));
  CHECK_BAD(INVALID, "payload has length 1073741824",
            kvf_agent_notify(agent, PEER, p.bytes, (size_t)1 << 30, NULL));
  CHECK_BAD(KVF_ERR_NOT_FOUND, "pigeon", kvf_agent_notify(agent, PEER, NULL, 0, "pigeon"));
  CHECK_BAD(INVALID, "notifications is NULL", kvf_agent_notifications(agent, NULL, 0, NULL));
  CHECK_BAD(INVALID, "notifications is NULL",
            kvf_agent_wait_notification(agent, NULL, NULL, 0, 0, NULL));
  CHECK_BAD(INVALID, "metadata is NULL", kvf_agent_metadata(agent, NULL));
  CHECK_BAD(INVALID, "connection_info is 2",
            kvf_agent_partial_metadata(agent, 0, &range, 1, 2, NULL, 0, &buffer));
  CHECK(buffer.data == NULL && strings.items == NULL && results.items == NULL);
}

/* Foreign bytes: never a crash, never the name of a peer. */
static void metadata_is_checked(void) {
  kvf_buffer good = {0}, name = {0};
  kvf_agent unmet = make_agent(transport, "unmet");
  pool_register(unmet, &q);
  CHECK_OK(kvf_agent_metadata(unmet, &good));
  CHECK_BAD(INVALID, "metadata is empty", kvf_agent_add_remote(agent, NULL, 0, &name));
  CHECK_BAD(INVALID, "metadata is NULL", kvf_agent_add_remote(agent, NULL, 5, &name));
  CHECK_BAD(INVALID, "metadata has length",
            kvf_agent_add_remote(agent, good.data, SIZE_MAX / 4, &name));

  /* Cut off anywhere, in memory of exactly that size so that reading on is noticed. */
  for (size_t len = 1; len < good.len; len += 1 + good.len / 97) {
    uint8_t* cut = malloc(len);
    CHECK(cut != NULL);
    memcpy(cut, good.data, len);
    CHECK_STATUS(KVF_ERR_PEER_INCOMPATIBLE, kvf_agent_add_remote(agent, cut, len, &name));
    free(cut);
  }
  /* Random bytes, and zeros, and ones. */
  uint8_t* noise = malloc(4096);
  CHECK(noise != NULL);
  for (uint32_t seed = 0; seed < 300; seed++) {
    size_t len = 1 + known(seed, 0) * 16u;
    for (size_t i = 0; i < len; i++) noise[i] = seed == 0 ? 0 : seed == 1 ? 0xff : known(seed, i);
    CHECK_STATUS(KVF_ERR_PEER_INCOMPATIBLE, kvf_agent_add_remote(agent, noise, len, &name));
  }
  free(noise);
  CHECK(name.data == NULL);
  uint8_t ready = 77;
  CHECK_OK(kvf_agent_check_remote(agent, "unmet", KVF_MEM_DRAM, NULL, 0, &ready));
  CHECK_EQ(ready, 0);
  CHECK_OK(kvf_agent_add_remote(agent, good.data, good.len, &name));
  CHECK(strcmp((const char*)name.data, "unmet") == 0);
  kvf_buffer_free(&name);
  kvf_buffer_free(&good);
  CHECK_OK(kvf_agent_destroy(unmet));
}

static void lists_are_checked(void) {
  kvf_desc_list out = {0};
  kvf_mem_desc good = {address(p.bytes), 64, 0};
  kvf_strided_desc row = {address(p.bytes), 64, 0, 64, 4};
#define PREPARE(remote_name, kind, descs, len) \
  kvf_desc_list_prepare(agent, remote_name, kind, descs, len, NULL, 0, &out)
#define PREPARE_ROW(...)                  \
  (row = (kvf_strided_desc){__VA_ARGS__}, \
   kvf_desc_list_prepare_strided(agent, NULL, KVF_MEM_DRAM, &row, 1, NULL, 0, &out))
  CHECK_BAD(INVALID, "list is NULL",
            kvf_desc_list_prepare(agent, NULL, 0, &good, 1, NULL, 0, NULL));
  CHECK_BAD(INVALID, "descs is NULL", PREPARE(NULL, KVF_MEM_DRAM, NULL, 2));
  CHECK_BAD(INVALID, "empty", PREPARE(NULL, KVF_MEM_DRAM, NULL, 0));
  CHECK_BAD(INVALID, "descs has length", PREPARE(NULL, KVF_MEM_DRAM, &good, SIZE_MAX / 24));
  CHECK_BAD(INVALID, "memory kind 77", PREPARE(NULL, 77, &good, 1));
  CHECK_BAD(INVALID, "remote is not UTF-8", PREPARE("\x80", KVF_MEM_DRAM, &good, 1));
  CHECK_BAD(KVF_ERR_NOT_FOUND, "stranger", PREPARE("stranger", KVF_MEM_DRAM, &good, 1));
  good.len = 0;
  CHECK_BAD(INVALID, "length 0", PREPARE(NULL, KVF_MEM_DRAM, &good, 1));
  good.len = UINT64_MAX;
  CHECK_BAD(INVALID, "wraps around", PREPARE(NULL, KVF_MEM_DRAM, &good, 1));
  uint64_t at = address(p.bytes);
  CHECK_BAD(INVALID, "descs is NULL",
            kvf_desc_list_prepare_strided(agent, NULL, 0, NULL, 1, NULL, 0, &out));
  CHECK_BAD(INVALID, "count 0", PREPARE_ROW(at, 64, 0, 64, 0));
  CHECK_BAD(INVALID, "wraps around", PREPARE_ROW(at, 64, 0, UINT64_MAX, 3));
  CHECK_BAD(INVALID, "wraps around", PREPARE_ROW(at, 64, 0, 64, UINT64_MAX));
  CHECK_BAD(INVALID, "more than an index can count", PREPARE_ROW(at, 1, 0, 0, (uint64_t)1 << 32));
  CHECK_EQ(out.id, 0);
  CHECK_BAD(INVALID, "len is NULL", kvf_desc_list_len(local, NULL));

  /* One byte outside registered memory, on either side. */
  kvf_mem_desc outside[] = {{address(p.bytes) - 1, 64, 0},
                            {address(p.bytes) + p.block * p.count - 63, 64, 0},
                            {address(q.bytes), 64, 0}};
  for (size_t i = 0; i < 3; i++) {
    kvf_status status = PREPARE(NULL, KVF_MEM_DRAM, &outside[i], 1);
    if (status != KVF_ERR_NOT_REGISTERED && status != KVF_ERR_NOT_FOUND)
      FAIL("local range %zu outside: %s", i, kvf_status_name(status));
  }
  outside[0].addr = address(q.bytes) - 1;
  outside[1].addr = address(q.bytes) + q.block * q.count - 63;
  outside[2].addr = address(p.bytes);
  for (size_t i = 0; i < 3; i++) {
    kvf_status status = PREPARE(PEER, KVF_MEM_DRAM, &outside[i], 1);
    if (status != KVF_ERR_NOT_REGISTERED && status != KVF_ERR_NOT_FOUND)
      FAIL("remote range %zu outside: %s", i, kvf_status_name(status));
  }
  CHECK_EQ(out.id, 0);
}

static kvf_status make(uint32_t op, const int32_t* mine, size_t mine_len, const int32_t* theirs,
                       size_t theirs_len, const kvf_transfer_options* options) {
  kvf_transfer out = {0};
  kvf_status status = kvf_transfer_make(agent, op, local, mine, mine_len, remote, theirs,
                                        theirs_len, options, &out);
  CHECK((status == KVF_OK) == (out.id != 0));
  if (status == KVF_OK) CHECK_OK(kvf_transfer_release(out));
  return status;
}

static void transfers_are_checked(void) {
  const int32_t good[] = {0, 1, 2};
  const int32_t negative[] = {0, -1, 2};
  const int32_t beyond[] = {0, 1, 16};
  const int32_t extreme[] = {INT32_MIN, 0, INT32_MAX};
  CHECK_OK(make(KVF_OP_READ, good, 3, good, 3, NULL));
  CHECK_BAD(INVALID, "op 2", make(2, good, 3, good, 3, NULL));
  CHECK_BAD(INVALID, "op 4294967295", make(UINT32_MAX, good, 3, good, 3, NULL));
  CHECK_BAD(INVALID, "local_indices is NULL", make(KVF_OP_READ, NULL, 3, good, 3, NULL));
  CHECK_BAD(INVALID, "remote_indices is NULL", make(KVF_OP_READ, good, 3, NULL, 3, NULL));
  CHECK_BAD(INVALID, "local_indices has length", make(KVF_OP_READ, good, SIZE_MAX, good, 3, NULL));
  CHECK_BAD(INVALID, "remote_indices has length", make(KVF_OP_READ, good, 3, good, SIZE_MAX, NULL));
  CHECK_BAD(INVALID, "not aligned",
            make(KVF_OP_READ, (const void*)((const char*)good + 1), 2, good, 2, NULL));
  CHECK_BAD(INVALID, "local indices is empty", make(KVF_OP_READ, NULL, 0, good, 3, NULL));
  CHECK_BAD(INVALID, "remote indices is empty", make(KVF_OP_READ, good, 3, good, 0, NULL));
  CHECK_BAD(INVALID, "local index -1 (at position 1)",
            make(KVF_OP_READ, negative, 3, good, 3, NULL));
  CHECK_BAD(INVALID, "remote index 16 (at position 2)",
            make(KVF_OP_READ, good, 3, beyond, 3, NULL));
  CHECK_BAD(INVALID, "local index -2147483648", make(KVF_OP_READ, extreme, 3, good, 3, NULL));
  CHECK_BAD(KVF_ERR_MISMATCH, "3 local indices against 2",
            make(KVF_OP_READ, good, 3, good, 2, NULL));
  kvf_transfer out = {0};
  CHECK_BAD(INVALID, "transfer is NULL",
            kvf_transfer_make(agent, KVF_OP_READ, local, good, 1, remote, good, 1, NULL, NULL));

  kvf_transfer_options o = kvf_transfer_options_default();
  const char* unknown[] = {"pigeon"};
  CHECK_OK(make(KVF_OP_READ, good, 3, good, 3, &o));
  o.struct_size = 20;
  CHECK_BAD(INVALID, "struct_size is 20", make(KVF_OP_READ, good, 3, good, 3, &o));
  o = kvf_transfer_options_default();
  o.notification_len = 1;
  CHECK_BAD(INVALID, "options.notification is NULL", make(KVF_OP_READ, good, 3, good, 3, &o));
  o.notification = p.bytes;
  o.notification_len = (16 << 20) + 1;
  CHECK_BAD(INVALID, "options.notification has length 16777217",
            make(KVF_OP_READ, good, 3, good, 3, &o));
  o = kvf_transfer_options_default();
  o.has_notification = 7;
  CHECK_BAD(INVALID, "options.has_notification is 7", make(KVF_OP_READ, good, 3, good, 3, &o));
  o = kvf_transfer_options_default();
  o.skip_merge = 2;
  CHECK_BAD(INVALID, "options.skip_merge is 2", make(KVF_OP_READ, good, 3, good, 3, &o));
  o = kvf_transfer_options_default();
  o.backends = unknown;
  o.backends_len = 1;
  CHECK_BAD(KVF_ERR_NOT_FOUND, "pigeon", make(KVF_OP_READ, good, 3, good, 3, &o));

  kvf_mem_desc mine[] = {{address(p.bytes), 64, 0}, {address(p.bytes) + 64, 64, 0}};
  kvf_mem_desc theirs[] = {{address(q.bytes), 64, 0}, {address(q.bytes) + 64, 65, 0}};
#define CREATE(kind, a, a_len, b, b_len, name) \
  kvf_transfer_create(agent, KVF_OP_READ, kind, a, a_len, KVF_MEM_DRAM, b, b_len, name, NULL, &out)
  CHECK_BAD(KVF_ERR_MISMATCH, "2 local ranges against 1", CREATE(0, mine, 2, theirs, 1, PEER));
  CHECK_BAD(KVF_ERR_MISMATCH, "pair 1: 64 bytes locally against 65",
            CREATE(0, mine, 2, theirs, 2, PEER));
  CHECK_BAD(INVALID, "local is NULL", CREATE(0, NULL, 1, theirs, 1, PEER));
  CHECK_BAD(INVALID, "remote has length", CREATE(0, mine, 1, theirs, SIZE_MAX, PEER));
  CHECK_BAD(INVALID, "empty", CREATE(0, mine, 0, theirs, 0, PEER));
  CHECK_BAD(INVALID, "memory kind 8", CREATE(8, mine, 1, theirs, 1, PEER));
  CHECK_BAD(INVALID, "remote_agent is NULL", CREATE(0, mine, 1, theirs, 1, NULL));
  CHECK_BAD(KVF_ERR_NOT_FOUND, "stranger", CREATE(0, mine, 1, theirs, 1, "stranger"));
  theirs[0].addr -= 1;
  kvf_status status = CREATE(0, mine, 1, theirs, 1, PEER);
  CHECK(status == KVF_ERR_NOT_REGISTERED || status == KVF_ERR_NOT_FOUND);
  CHECK_EQ(out.id, 0);

  CHECK_OK(kvf_transfer_make(agent, KVF_OP_READ, local, good, 1, remote, good, 1, NULL, &out));
  CHECK_BAD(INVALID, "notification is NULL", kvf_transfer_post(out, NULL, 1, NULL));
  CHECK_BAD(INVALID, "notification has length 16777217",
            kvf_transfer_post(out, p.bytes, (16 << 20) + 1, NULL));
  CHECK_BAD(INVALID, "state is NULL", kvf_transfer_state(out, NULL));
  CHECK_BAD(INVALID, "telemetry is NULL", kvf_transfer_telemetry_get(out, NULL));
  CHECK_BAD(INVALID, "cost is NULL", kvf_transfer_cost_estimate(out, NULL));
  CHECK_BAD(INVALID, "backend is NULL", kvf_transfer_backend(out, NULL));
  int32_t state = 77;
  CHECK_STATUS(KVF_ERR_NOT_POSTED, kvf_transfer_state(out, &state));
  CHECK_EQ(state, 77);
  CHECK_BAD(INVALID, "states is NULL", kvf_transfer_states(&out, 1, NULL));
  CHECK_BAD(INVALID, "transfers is NULL", kvf_transfer_states(NULL, 1, &state));
  CHECK_BAD(INVALID, "transfers has length", kvf_transfer_states(&out, SIZE_MAX, &state));
  CHECK_OK(kvf_transfer_states(NULL, 0, NULL));
  CHECK_OK(kvf_transfer_release(out));
}

static void it_still_works(void) {
  const int32_t mine[] = {3}, theirs[] = {9};
  kvf_transfer t;
  pool_fill(&q, 5);
  CHECK_OK(kvf_transfer_make(agent, KVF_OP_READ, local, mine, 1, remote, theirs, 1, NULL, &t));
  post_and_wait(t);
  CHECK(holds(&p, 3, 5, 9));
  CHECK_OK(kvf_transfer_release(t));
}

int main(int argc, char** argv) {
  transport = transport_of(argc, argv);
  agent_options_are_checked();
  agent = make_agent(transport, NAME);
  peer = make_agent(transport, PEER);
  p = pool_new(4096, 16);
  q = pool_new(4096, 16);
  pool_register(agent, &p);
  pool_register(peer, &q);
  introduce(peer, agent);
  local = blocks_of(agent, NULL, &p);
  remote = blocks_of(agent, PEER, &q);
  registrations_are_checked();
  names_are_checked();
  metadata_is_checked();
  lists_are_checked();
  transfers_are_checked();
  it_still_works();
  CHECK_OK(kvf_agent_destroy(agent));
  CHECK_OK(kvf_agent_destroy(peer));
  pool_free(&p);
  pool_free(&q);
  return 0;
}
