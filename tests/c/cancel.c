/* Transfers that take their time: states, busy, cancel, and agents destroyed in the middle. Uses
 * the transport for tests, which can hold transfers back. */
#include "fixture.h"

static kvf_agent agent;
static pool p;
static kvf_desc_list local, remote;

/* Changes the script of the transport. */
static void script(const char* key, const char* value) {
  kvf_param param = {key, value};
  kvf_backend backend = {"test", &param, 1};
  CHECK_OK(kvf_agent_create_backend(agent, &backend));
}

static kvf_transfer make(int32_t to, int32_t from) {
  kvf_transfer transfer = {0};
  CHECK_OK(kvf_transfer_make(agent, KVF_OP_READ, local, &to, 1, remote, &from, 1, NULL, &transfer));
  return transfer;
}

static void set_up(void) {
  agent = make_agent("test", "late");
  p = pool_new(512, 8);
  pool_fill(&p, 3);
  memset(p.bytes, 0, 4 * p.block);
  pool_register(agent, &p);
  local = blocks_of(agent, NULL, &p);
  remote = blocks_of(agent, "late", &p);
}

int main(void) {
  int32_t state = 77;
  set_up();

  kvf_transfer t = make(0, 4);
  CHECK_STATUS(KVF_ERR_NOT_POSTED, kvf_transfer_state(t, &state));
  CHECK_OK(kvf_transfer_cancel(t));
  CHECK_STATUS(KVF_ERR_NOT_POSTED, kvf_transfer_state(t, &state));

  /* Under way: cannot be posted again; then done, and can. */
  script("hold", "1");
  CHECK_OK(kvf_transfer_post(t, NULL, 0, &state));
  CHECK_EQ(state, KVF_TRANSFER_IN_PROGRESS);
  CHECK_STATUS(KVF_ERR_REPOST_ACTIVE, kvf_transfer_post(t, NULL, 0, &state));
  CHECK(untouched(&p, 0));
  script("hold", "0");
  wait_done(t);
  CHECK(holds(&p, 0, 3, 4));
  post_and_wait(t);

  /* Many at once: done, not posted, under way, gone. */
  script("hold", "1");
  kvf_transfer many[4] = {t, make(1, 5), make(1, 5), {0}};
  CHECK_OK(kvf_transfer_post(many[2], NULL, 0, NULL));
  int32_t states[4];
  CHECK_OK(kvf_transfer_states(many, 4, states));
  CHECK_EQ(states[0], KVF_TRANSFER_DONE);
  CHECK_EQ(states[1], KVF_ERR_NOT_POSTED);
  CHECK_EQ(states[2], KVF_TRANSFER_IN_PROGRESS);
  CHECK_EQ(states[3], KVF_ERR_INVALID_HANDLE);

  /* A backend that cannot stop early: busy until the bytes are through. */
  script("stubborn", "1");
  CHECK_BAD(KVF_ERR_BUSY, "still moving bytes", kvf_transfer_release(many[2]));
  CHECK_STATUS(KVF_ERR_BUSY, kvf_transfer_release(many[2]));
  script("hold", "0");
  WAIT_FOR(kvf_transfer_release(many[2]) == KVF_OK);
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_transfer_release(many[2]));
  script("stubborn", "0");

  /* One that can stop: cancelled at once, nothing moved, and it can be posted again. */
  script("hold", "1");
  t = make(2, 6);
  CHECK_OK(kvf_transfer_post(t, NULL, 0, NULL));
  CHECK_OK(kvf_transfer_cancel(t));
  CHECK_STATUS(KVF_ERR_CANCELED, kvf_transfer_state(t, &state));
  script("hold", "0");
  CHECK(untouched(&p, 2));
  post_and_wait(t);
  CHECK(holds(&p, 2, 3, 6));

  /* One that fails on its way. */
  script("hold", "1");
  script("fail_transfer", "1");
  t = make(3, 7);
  CHECK_OK(kvf_transfer_post(t, NULL, 0, NULL));
  script("hold", "0");
  WAIT_FOR(kvf_transfer_state(t, &state) != KVF_OK);
  CHECK(strlen(kvf_last_error_message()) > 0);
  CHECK(untouched(&p, 3));
  CHECK_OK(kvf_transfer_release(t));

  /* The agent goes while a transfer is under way: it is stopped. */
  script("hold", "1");
  t = make(3, 7);
  CHECK_OK(kvf_transfer_post(t, NULL, 0, NULL));
  CHECK_OK(kvf_agent_destroy(agent));
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_transfer_state(t, &state));
  CHECK(untouched(&p, 3));
  pool_free(&p);
  return 0;
}
