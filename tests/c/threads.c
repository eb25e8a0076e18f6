/* Many threads on the same handles: transfers made, posted and released side by side, while others
 * poll, notify, register, read metadata and throw bad handles in; then the agent goes while they
 * are at it. argv[1]: transport. */
#include <pthread.h>
#include <stdatomic.h>

#include "fixture.h"

enum { BLOCK = 4096, PER_THREAD = 8, MOVERS = 6, ROUNDS = 200 };

static kvf_agent agent, owner;
static pool mine, theirs;
static kvf_desc_list local, remote;
static atomic_int stop, sent, received;

/* Moves its own blocks, over and over, and checks each. */
static void* moves(void* number) {
  const int32_t first = *(const int32_t*)number * PER_THREAD;
  for (int round = 0; round < ROUNDS; round++) {
    int32_t to[PER_THREAD], from[PER_THREAD];
    for (int32_t i = 0; i < PER_THREAD; i++) {
      to[i] = first + (i + round) % PER_THREAD;
      from[i] = first + i;
    }
    memset(pool_at(&mine, (size_t)first), 0, BLOCK * PER_THREAD);
    kvf_transfer t;
    CHECK_OK(kvf_transfer_make(agent, KVF_OP_READ, local, to, PER_THREAD, remote, from, PER_THREAD,
                               NULL, &t));
    post_and_wait(t);
    for (int i = 0; i < PER_THREAD; i++) CHECK(holds(&mine, (size_t)to[i], 4, (size_t)from[i]));
    CHECK_OK(kvf_transfer_release(t));
    if (round % 10 == 0) {
      CHECK_OK(kvf_agent_notify(agent, "owner", (const uint8_t*)"moved", 5, NULL));
      atomic_fetch_add(&sent, 1);
    }
  }
  return NULL;
}

static void* receives(void* unused) {
  (void)unused;
  while (!atomic_load(&stop)) {
    kvf_notification_list got = {0};
    CHECK_OK(kvf_agent_notifications(owner, NULL, 0, &got));
    atomic_fetch_add(&received, (int)got.len);
    kvf_notification_list_free(&got);
    sched_yield();
  }
  return NULL;
}

/* Changes the agent under the movers' feet: registrations, lists, metadata. */
static void* changes(void* unused) {
  (void)unused;
  pool extra = pool_new(BLOCK, 4);
  while (!atomic_load(&stop)) {
    pool_register(agent, &extra);
    kvf_desc_list list = blocks_of(agent, NULL, &extra);
    kvf_buffer metadata = {0};
    CHECK_OK(kvf_agent_metadata(agent, &metadata));
    kvf_buffer_free(&metadata);
    CHECK_OK(kvf_desc_list_release(list));
    pool_deregister(agent, &extra);
  }
  pool_free(&extra);
  return NULL;
}

static void* errs(void* unused) {
  (void)unused;
  for (uint64_t i = 1; !atomic_load(&stop); i++) {
    int32_t state;
    kvf_transfer invented = {i * 0x9e3779b97f4a7c15u};
    CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_transfer_state(invented, &state));
    if (i % 64 == 0) CHECK_STATUS(KVF_ERR_INTERNAL, kvf_debug_panic("now and then"));
  }
  return NULL;
}

/* Works until its handles are stale; nothing else may go wrong. */
static void* until_gone(void* number) {
  const int32_t index = *(const int32_t*)number;
  for (;;) {
    kvf_transfer t = {0};
    int32_t state = -1;
    kvf_status status =
        kvf_transfer_make(agent, KVF_OP_READ, local, &index, 1, remote, &index, 1, NULL, &t);
    if (status == KVF_OK) status = kvf_transfer_post(t, NULL, 0, &state);
    while (status == KVF_OK && state == KVF_TRANSFER_IN_PROGRESS)
      status = kvf_transfer_state(t, &state);
    if (status == KVF_OK) status = kvf_transfer_release(t);
    if (status == KVF_OK) continue;
    if (status != KVF_ERR_INVALID_HANDLE && status != KVF_ERR_INVALID_STATE &&
        status != KVF_ERR_CANCELED && status != KVF_ERR_BUSY)
      FAIL("while the agent goes: %d (%s)", status, kvf_status_name(status));
    return NULL;
  }
}

int main(int argc, char** argv) {
  const char* transport = transport_of(argc, argv);
  agent = make_agent(transport, "agent");
  owner = make_agent(transport, "owner");
  mine = pool_new(BLOCK, MOVERS * PER_THREAD);
  theirs = pool_new(BLOCK, MOVERS * PER_THREAD);
  pool_fill(&theirs, 4);
  pool_register(agent, &mine);
  pool_register(owner, &theirs);
  introduce(owner, agent);
  local = blocks_of(agent, NULL, &mine);
  remote = blocks_of(agent, "owner", &theirs);

  pthread_t movers[MOVERS], others[3];
  int32_t numbers[MOVERS];
  void* (*roles[3])(void*) = {receives, changes, errs};
  for (int i = 0; i < 3; i++) CHECK_EQ(pthread_create(&others[i], NULL, roles[i], NULL), 0);
  for (int i = 0; i < MOVERS; i++) {
    numbers[i] = i;
    CHECK_EQ(pthread_create(&movers[i], NULL, moves, &numbers[i]), 0);
  }
  for (int i = 0; i < MOVERS; i++) CHECK_EQ(pthread_join(movers[i], NULL), 0);
  WAIT_FOR(atomic_load(&received) == atomic_load(&sent));
  CHECK_EQ(sent, MOVERS * ROUNDS / 10);
  atomic_store(&stop, 1);
  for (int i = 0; i < 3; i++) CHECK_EQ(pthread_join(others[i], NULL), 0);

  for (int i = 0; i < MOVERS; i++)
    CHECK_EQ(pthread_create(&movers[i], NULL, until_gone, &numbers[i]), 0);
  double until = now_s() + 0.1;
  while (now_s() < until) sched_yield();
  CHECK_OK(kvf_agent_destroy(agent));
  for (int i = 0; i < MOVERS; i++) CHECK_EQ(pthread_join(movers[i], NULL), 0);
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_agent_destroy(agent));
  CHECK_OK(kvf_agent_destroy(owner));
  pool_free(&mine);
  pool_free(&theirs);
  return 0;
}
