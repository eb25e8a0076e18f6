/* Nothing stays behind: descriptors, threads and heap after many rounds of everything, with and
 * without errors, are what they were after a few. argv[1]: transport. */
#include <dirent.h>
#include <malloc.h>

#include "fixture.h"

static long entries(const char* folder) {
  DIR* dir = opendir(folder);
  CHECK(dir != NULL);
  long n = 0;
  while (readdir(dir) != NULL) n++;
  closedir(dir);
  return n;
}

static long heap_in_use(void) { return (long)mallinfo2().uordblks; }

static pool p, q;

static void one_round(const char* transport) {
  kvf_agent a = make_agent(transport, "a"), b = make_agent(transport, "b");
  pool_register(a, &p);
  pool_register(b, &q);
  introduce(b, a);
  kvf_desc_list local = blocks_of(a, NULL, &p), remote = blocks_of(a, "b", &q);
  const int32_t to[] = {0, 2}, from[] = {3, 1};
  kvf_transfer_options o = kvf_transfer_options_default();
  o.notification = (const uint8_t*)"done";
  o.notification_len = 4;
  for (int i = 0; i < 10; i++) {
    kvf_transfer t;
    CHECK_OK(kvf_transfer_make(a, KVF_OP_READ, local, to, 2, remote, from, 2, &o, &t));
    post_and_wait(t);
    expect_notification(b, "a", "done");
    if (i % 2 == 0) CHECK_OK(kvf_transfer_release(t)); /* The others go with the agent. */
    CHECK_STATUS(KVF_ERR_INVALID_ARGUMENT,
                 kvf_transfer_make(a, 7, local, to, 2, remote, from, 2, &o, &t));
    CHECK_STATUS(KVF_ERR_INTERNAL, kvf_debug_panic("does not leak"));
    CHECK_STATUS(KVF_ERR_PEER_INCOMPATIBLE, kvf_agent_add_remote(a, p.bytes, 64, NULL));
  }
  /* Messages that nobody takes. */
  CHECK_OK(kvf_agent_notify(a, "b", (const uint8_t*)"unread", 6, NULL));
  kvf_side_channel channel;
  CHECK_OK(kvf_side_channel_listen(NULL, q.bytes, 64, &channel));
  uint16_t port;
  CHECK_OK(kvf_side_channel_address(channel, NULL, &port));
  kvf_buffer got = {0};
  CHECK_OK(kvf_side_channel_request(NULL, "127.0.0.1", port, 0, 0, &got));
  kvf_buffer_free(&got);
  CHECK_OK(kvf_side_channel_shutdown(channel));
  CHECK_OK(kvf_agent_destroy(b));
  CHECK_OK(kvf_agent_destroy(a));
}

int main(int argc, char** argv) {
  const char* transport = transport_of(argc, argv);
  const int rounds = is_transport(transport, "nixl") ? 4 : 400;
  p = pool_new(4096, 4);
  q = pool_new(4096, 4);
  /* Tables have found their sizes after these. */
  for (int i = 0; i < rounds / 2; i++) one_round(transport);
  long descriptors = entries("/proc/self/fd"), threads = entries("/proc/self/task");
  long heap = heap_in_use();
  for (int i = 0; i < rounds; i++) one_round(transport);
  /* A thread that was joined is gone from /proc at once, a socket when it is closed; what a peer
   * closes may take a moment. */
  WAIT_FOR(entries("/proc/self/fd") <= descriptors);
  WAIT_FOR(entries("/proc/self/task") <= threads);
  /* NIXL keeps some memory of its own per agent (UCX's registration caches). */
  if (!is_transport(transport, "nixl")) {
    long grown = heap_in_use() - heap;
    /* The smallest leak of one allocation a round would be 32 bytes a round. */
    if (grown > 24 * rounds) FAIL("%ld bytes more after %d rounds", grown, rounds);
  }
  pool_free(&p);
  pool_free(&q);
  return 0;
}
