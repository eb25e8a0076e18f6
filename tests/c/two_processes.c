/* Two processes: one owns blocks and tells where they are, the other reads and writes them; then
 * the owner is killed in the middle and the reader gets a status. argv[1]: transport. The second
 * process is this program again: agents do not survive a fork(). */
#include <signal.h>
#include <sys/wait.h>

#include "fixture.h"

enum { BLOCK = 16384, COUNT = 128, PICKED = 50 };

/* What the owner sends through the pipe before its metadata. */
typedef struct announcement {
  uint64_t base;
  uint64_t metadata_len;
} announcement;

static void write_all(int fd, const void* bytes, size_t len) {
  for (size_t done = 0; done < len;) {
    ssize_t n = write(fd, (const char*)bytes + done, len - done);
    CHECK(n > 0);
    done += (size_t)n;
  }
}

static void read_all(int fd, void* bytes, size_t len) {
  for (size_t done = 0; done < len;) {
    ssize_t n = read(fd, (char*)bytes + done, len - done);
    if (n <= 0) FAIL("the owner has ended after %zu of %zu bytes", done, len);
    done += (size_t)n;
  }
}

/* The owner: announces its blocks on descriptor 3, then checks what was written to it. */
static int own(const char* transport) {
  kvf_agent agent = make_agent(transport, "owner");
  pool blocks = pool_new(BLOCK, COUNT);
  pool_fill(&blocks, 1);
  pool_register(agent, &blocks);
  kvf_buffer metadata = {0};
  CHECK_OK(kvf_agent_metadata(agent, &metadata));
  announcement a = {address(blocks.bytes), metadata.len};
  write_all(3, &a, sizeof a);
  write_all(3, metadata.data, metadata.len);
  kvf_buffer_free(&metadata);

  expect_notification(agent, "reader", "have read");
  expect_notification(agent, "reader", "have written");
  for (size_t i = 0; i < COUNT; i++) CHECK(holds(&blocks, i, 2, i));
  /* One byte tells the reader that all is well; then this process waits to be killed. */
  write_all(3, "!", 1);
  for (;;) pause();
}

static void reads_and_writes(kvf_agent agent, pool* mine, uint64_t base) {
  kvf_desc_list local = blocks_of(agent, NULL, mine);
  kvf_desc_list remote = blocks_at(agent, "owner", base, BLOCK, COUNT);
  int32_t to[PICKED], from[PICKED];
  for (int32_t i = 0; i < PICKED; i++) {
    to[i] = (i * 41 + 3) % COUNT;
    from[i] = (i * 29 + 7) % COUNT;
  }
  kvf_transfer_options o = kvf_transfer_options_default();
  o.notification = (const uint8_t*)"have read";
  o.notification_len = strlen("have read");
  kvf_transfer t;
  CHECK_OK(kvf_transfer_make(agent, KVF_OP_READ, local, to, PICKED, remote, from, PICKED, &o, &t));
  post_and_wait(t);
  bool written[COUNT] = {false};
  for (size_t i = 0; i < PICKED; i++) {
    CHECK(holds(mine, (size_t)to[i], 1, (size_t)from[i]));
    written[to[i]] = true;
  }
  for (size_t i = 0; i < COUNT; i++)
    if (!written[i]) CHECK(untouched(mine, i));
  CHECK_OK(kvf_transfer_release(t));

  pool_fill(mine, 2);
  int32_t all[COUNT];
  for (int32_t i = 0; i < COUNT; i++) all[i] = i;
  o.notification = (const uint8_t*)"have written";
  o.notification_len = strlen("have written");
  CHECK_OK(kvf_transfer_make(agent, KVF_OP_WRITE, local, all, COUNT, remote, all, COUNT, &o, &t));
  post_and_wait(t);
  CHECK_OK(kvf_transfer_release(t));
}

/* With the owner dead, transfers fail with a status that says so. */
static void owner_is_lost(kvf_agent agent, pool* mine, uint64_t base) {
  kvf_mem_desc near_desc = {address(mine->bytes), BLOCK, 0}, far_desc = {base, BLOCK, 0};
  kvf_status status = KVF_OK;
  double until = now_s() + DEADLINE_S;
  while (status == KVF_OK) {
    if (now_s() > until) FAIL("the owner is dead and transfers succeed");
    kvf_transfer t;
    status = kvf_transfer_create(agent, KVF_OP_READ, KVF_MEM_DRAM, &near_desc, 1, KVF_MEM_DRAM,
                                 &far_desc, 1, "owner", NULL, &t);
    if (status != KVF_OK) break;
    int32_t state = -1;
    status = kvf_transfer_post(t, NULL, 0, &state);
    while (status == KVF_OK && state == KVF_TRANSFER_IN_PROGRESS && now_s() < until)
      status = kvf_transfer_state(t, &state);
    kvf_transfer_release(t);
  }
  if (status != KVF_ERR_PEER_LOST && status != KVF_ERR_BACKEND)
    FAIL("a dead owner gives %s", kvf_status_name(status));
  CHECK(strlen(kvf_last_error_message()) > 0);
}

int main(int argc, char** argv) {
  const char* transport = transport_of(argc, argv);
  if (argc == 3) return own(transport);

  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  pid_t owner = fork();
  CHECK(owner >= 0);
  if (owner == 0) {
    close(ends[0]);
    dup2(ends[1], 3);
    if (ends[1] != 3) close(ends[1]);
    execl("/proc/self/exe", argv[0], transport, "own", (char*)NULL);
    _exit(127);
  }
  close(ends[1]);

  kvf_agent agent = make_agent(transport, "reader");
  pool mine = pool_new(BLOCK, COUNT);
  pool_register(agent, &mine);
  announcement a;
  read_all(ends[0], &a, sizeof a);
  uint8_t* metadata = malloc(a.metadata_len);
  CHECK(metadata != NULL);
  read_all(ends[0], metadata, a.metadata_len);
  kvf_buffer name = {0};
  CHECK_OK(kvf_agent_add_remote(agent, metadata, a.metadata_len, &name));
  CHECK(strcmp((const char*)name.data, "owner") == 0);
  kvf_buffer_free(&name);
  free(metadata);

  reads_and_writes(agent, &mine, a.base);
  char verdict = 0;
  read_all(ends[0], &verdict, 1);
  CHECK_EQ(verdict, '!');

  CHECK_EQ(kill(owner, SIGKILL), 0);
  CHECK_EQ(waitpid(owner, NULL, 0), owner);
  owner_is_lost(agent, &mine, a.base);
  CHECK_OK(kvf_agent_destroy(agent));
  pool_free(&mine);
  return 0;
}
