/* The queue when things go wrong or take their time: back-pressure, cancel, deadline, refused
 * posts, failed transfers, lost peers, and ends with work in flight. Uses the transport for tests,
 * which delays, fails and reorders on command. */
#include "queue_fixture.h"

static rank prefill[2], decode;
static kvf_plan plan;
static const char* const names[] = {"prefill-0", "prefill-1"};
static kvf_queue queue;

/* Changes the script of the decode rank's transport. */
static void script(const char* key, const char* value) {
  kvf_param param = {key, value};
  kvf_backend backend = {"test", &param, 1};
  CHECK_OK(kvf_agent_create_backend(decode.agent, &backend));
}

/* Reads block `id` of both ranks into block `id`. */
static kvf_status submit(uint32_t id, uint64_t deadline_ms, uint64_t* ticket) {
  kvf_group_blocks group = blocks(&id, 1, &id, 1);
  kvf_submission s = kvf_submission_default();
  s.plan = plan;
  s.agents = names;
  s.agents_len = 2;
  s.groups = &group;
  s.groups_len = 1;
  s.deadline_ms = deadline_ms;
  s.notification = (const uint8_t*)"done";
  s.notification_len = 4;
  return kvf_queue_submit(queue, &s, ticket);
}

static uint64_t submitted(uint32_t id, uint64_t deadline_ms) {
  uint64_t ticket = 0;
  CHECK_OK(submit(id, deadline_ms, &ticket));
  CHECK(ticket != 0);
  return ticket;
}

static kvf_queue_stats stats_of(kvf_queue q) {
  kvf_queue_stats stats;
  CHECK_OK(kvf_queue_stats_get(q, &stats));
  return stats;
}

/* What has been submitted so far has been posted: requests take turns, so the ones before have had
 * theirs when a later one, which fails at once, is through. */
static void let_it_post(void) {
  uint64_t ticket = submitted(BLOCKS, 0);
  kvf_completion c = next_completion(queue);
  CHECK_EQ(c.ticket, ticket);
  CHECK_EQ(c.status, KVF_ERR_INVALID_ARGUMENT);
}

/* The next completion is this ticket's, with this status. */
static kvf_completion expect_completion(uint64_t ticket, kvf_status status) {
  kvf_completion c = next_completion(queue);
  CHECK_EQ(c.ticket, ticket);
  if (c.status != status)
    FAIL("status %d (%s), expected %d: %s", c.status, kvf_status_name(c.status), status, c.message);
  return c;
}

static void expect_blocks(const uint32_t* ids, size_t len) {
  int32_t from[BLOCKS];
  pair_up(from, ids, ids, len);
  rank_expect(&decode, 8, from, 0, HEADS);
}

/* No message has come to either producer. */
static void expect_silence(void) {
  for (size_t i = 0; i < 2; i++) {
    kvf_notification_list got = {0};
    CHECK_OK(kvf_agent_notifications(prefill[i].agent, NULL, 0, &got));
    CHECK_EQ(got.len, 0);
  }
}

static void take_notifications(size_t times) {
  for (size_t k = 0; k < times; k++)
    for (size_t i = 0; i < 2; i++) expect_notification(prefill[i].agent, "decode", "done");
}

/* Two may be outstanding: the third is refused until a completion has been polled. */
static void back_pressure(void) {
  kvf_queue_options o = kvf_queue_options_default();
  o.capacity = 2;
  queue = queue_of(decode.agent, &o);
  script("hold", "1");
  uint64_t a = submitted(1, 0), b = submitted(2, 0), c = 77;
  CHECK_BAD(KVF_ERR_BUSY, "2 requests are outstanding", submit(3, 0, &c));
  CHECK_EQ(c, 77);
  uint8_t ready = 77;
  CHECK_OK(kvf_queue_wait(queue, 0, &ready));
  CHECK_EQ(ready, 0);
  script("hold", "0");
  /* Both are through, but not polled. */
  WAIT_FOR(stats_of(queue).unpolled == 2);
  CHECK_STATUS(KVF_ERR_BUSY, submit(3, 0, &c));
  kvf_completion got[3];
  size_t len = 77;
  CHECK_OK(kvf_queue_poll(queue, got, 1, &len));
  CHECK_EQ(len, 1);
  uint64_t d = submitted(3, 0);
  CHECK(d != a && d != b);
  CHECK_STATUS(KVF_ERR_BUSY, submit(4, 0, &c));
  WAIT_FOR(stats_of(queue).unpolled == 2);
  CHECK_OK(kvf_queue_poll(queue, got + 1, 2, &len));
  CHECK_EQ(len, 2);
  for (size_t i = 0; i < 3; i++) {
    CHECK_EQ(got[i].status, KVF_OK);
    CHECK(got[i].ticket == a || got[i].ticket == b || got[i].ticket == d);
  }
  CHECK(got[0].ticket != got[1].ticket && got[1].ticket != got[2].ticket);
  CHECK_OK(kvf_queue_poll(queue, got, 0, &len));
  CHECK_EQ(len, 0);
  kvf_queue_stats stats = stats_of(queue);
  CHECK_EQ(stats.refused, 3);
  CHECK_EQ(stats.submitted, 3);
  expect_blocks(IDS(1, 2, 3));
  take_notifications(3);
  CHECK_OK(kvf_queue_destroy(queue, 0));
}

static void cancelled(void) {
  rank_clear(&decode);
  script("hold", "1");
  uint64_t a = submitted(1, 0), b = submitted(2, 0);
  CHECK_OK(kvf_queue_cancel(queue, a));
  kvf_completion c = expect_completion(a, KVF_ERR_CANCELED);
  CHECK(strstr(c.message, "cancelled") != NULL);
  CHECK_EQ(c.bytes, 0);
  CHECK_OK(kvf_queue_cancel(queue, a)); /* over: harmless */
  CHECK_STATUS(KVF_ERR_NOT_FOUND, kvf_queue_cancel(queue, 0));
  CHECK_STATUS(KVF_ERR_NOT_FOUND, kvf_queue_cancel(queue, b + 1));
  expect_silence();
  script("hold", "0");
  expect_completion(b, KVF_OK);
  expect_blocks(IDS(2));
  take_notifications(1);

  /* A transport that cannot stop, as NIXL: the completion waits until the bytes are through. */
  rank_clear(&decode);
  script("stubborn", "1");
  script("hold", "1");
  a = submitted(1, 0);
  let_it_post();
  CHECK_OK(kvf_queue_cancel(queue, a));
  uint8_t ready = 77;
  CHECK_OK(kvf_queue_wait(queue, 30, &ready));
  CHECK_EQ(ready, 0);
  script("hold", "0");
  expect_completion(a, KVF_ERR_CANCELED);
  script("stubborn", "0");
  expect_silence();
}

static void deadline(void) {
  rank_clear(&decode);
  script("hold", "1");
  double start = now_s();
  uint64_t a = submitted(1, 40), b = submitted(2, 0);
  kvf_completion c = expect_completion(a, KVF_ERR_TIMEOUT);
  CHECK(now_s() - start >= 0.040);
  CHECK(strstr(c.message, "40 ms") != NULL && strstr(c.message, "0 of ") != NULL);
  CHECK(c.finished_ns >= 40000000);
  script("hold", "0");
  expect_completion(b, KVF_OK);
  expect_blocks(IDS(2));
  take_notifications(1);
  expect_silence();
}

/* One fails, before or after its post; the ones before and after it do not. */
static void failures(void) {
  const char* const commands[] = {"fail_post", "fail_transfer"};
  for (size_t i = 0; i < LEN(commands); i++) {
    rank_clear(&decode);
    uint64_t a = submitted(1, 0);
    expect_completion(a, KVF_OK);
    take_notifications(1);
    script(commands[i], "1");
    uint64_t b = submitted(2, 0);
    kvf_completion c = expect_completion(b, KVF_ERR_BACKEND);
    CHECK(c.message[0] != '\0' && c.bytes < c.total_bytes);
    uint64_t d = submitted(3, 0);
    expect_completion(d, KVF_OK);
    take_notifications(1);
    expect_silence();
    for (size_t k = 0; k < 2; k++) {
      rank check = decode;
      CHECK(*byte_at(&check, k, 1, 0, 0, 0, 0) == value_of(8, k, 1, 0, 0, 0, 0));
      CHECK(*byte_at(&check, k, 3, 1, 3, 3, 15) == value_of(8, k, 3, 1, 3, 3, 15));
    }
  }
}

/* A peer is gone: its requests fail, and go again when it is back. */
static void lost_peer(void) {
  rank_clear(&decode);
  script("lose", "prefill-1");
  uint64_t a = submitted(1, 0);
  kvf_completion c = expect_completion(a, KVF_ERR_PEER_LOST);
  CHECK(strstr(c.message, "prefill-1") != NULL);
  expect_silence();
  script("find", "prefill-1");
  a = submitted(2, 0);
  expect_completion(a, KVF_OK);
  take_notifications(1);

  /* Gone when it is to be told: the bytes are in, and the completion says who was not. */
  script("hold", "1");
  a = submitted(3, 0);
  let_it_post();
  uint32_t none = 4;
  kvf_group_blocks group = blocks(NULL, 0, &none, 1);
  kvf_submission s = kvf_submission_default();
  s.plan = plan;
  s.agents = names;
  s.agents_len = 2;
  s.groups = &group;
  s.groups_len = 1;
  s.notification = (const uint8_t*)"done";
  s.notification_len = 4;
  script("lose", "prefill-0");
  uint64_t b = 0;
  CHECK_OK(kvf_queue_submit(queue, &s, &b));
  c = expect_completion(b, KVF_OK);
  CHECK_EQ(c.not_notified, 1);
  CHECK(strstr(c.message, "prefill-0") != NULL);
  expect_notification(prefill[1].agent, "decode", "done");
  script("find", "prefill-0");
  script("hold", "0");
  expect_completion(a, KVF_OK);
  take_notifications(1);
  expect_silence();
}

/* In a random order, a hundred requests over and over the same blocks: each completes once. */
static void reordered(void) {
  rank_clear(&decode);
  script("reorder", "7");
  script("delay_us", "300");
  enum { N = 100 };
  uint64_t tickets[N];
  for (uint32_t i = 0; i < N; i++) tickets[i] = submitted(i % 10, 0);
  for (size_t done = 0; done < N; done++) {
    kvf_completion c = next_completion(queue);
    CHECK_EQ(c.status, KVF_OK);
    size_t at = 0;
    while (at < N && tickets[at] != c.ticket) at++;
    CHECK(at < N);
    tickets[at] = 0;
  }
  expect_blocks(IDS(0, 1, 2, 3, 4, 5, 6, 7, 8, 9));
  take_notifications(N);
  script("reorder", "0");
  script("delay_us", "0");
}

/* Destroyed with work in flight: stopped and at rest when it can be, else said so. */
static void destroyed(void) {
  rank_clear(&decode);
  script("hold", "1");
  submitted(1, 0);
  submitted(2, 0);
  CHECK_OK(kvf_queue_destroy(queue, 0));
  script("hold", "0");
  expect_blocks(NULL, 0);
  expect_silence();
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_queue_destroy(queue, 0));

  /* A transfer that does not stop: the queue gives up after its time and says so. */
  queue = queue_of(decode.agent, NULL);
  script("stubborn", "1");
  script("hold", "1");
  submitted(3, 0);
  let_it_post();
  double start = now_s();
  CHECK_STATUS(KVF_ERR_TIMEOUT, kvf_queue_destroy(queue, 20));
  CHECK(now_s() - start < DEADLINE_S / 2);
  script("hold", "0");
  script("stubborn", "0");

  /* Without its agent, requests fail and the queue still ends. */
  rank lone = rank_new("test", "lone", 0, 1);
  kvf_plan to_itself = plan_between(&lone, &lone, 1, KVF_DIRECTION_PULL);
  queue = queue_of(lone.agent, NULL);
  CHECK_OK(kvf_agent_destroy(lone.agent));
  const char* const self[] = {"lone"};
  kvf_group_blocks group = blocks(IDS(1), IDS(2));
  kvf_submission s = kvf_submission_default();
  s.plan = to_itself;
  s.agents = self;
  s.agents_len = 1;
  s.groups = &group;
  s.groups_len = 1;
  uint64_t ticket = 0;
  CHECK_OK(kvf_queue_submit(queue, &s, &ticket));
  CHECK_EQ(next_completion(queue).status, KVF_ERR_INVALID_STATE);
  CHECK_OK(kvf_queue_destroy(queue, 1000));
  CHECK_BAD(KVF_ERR_INVALID_HANDLE, "agent", kvf_queue_create(lone.agent, NULL, &queue));
  CHECK_OK(kvf_plan_destroy(to_itself));
  CHECK_OK(kvf_layout_destroy(lone.layout));
  pool_free(&lone.memory);
}

#define REFUSED(text, change)                                       \
  do {                                                              \
    s = good;                                                       \
    change;                                                         \
    CHECK_BAD(INVALID, text, kvf_queue_submit(queue, &s, &ticket)); \
    CHECK_EQ(ticket, 77);                                           \
  } while (0)

static void bad_input(void) {
  const uint32_t id = 1;
  kvf_group_blocks group = blocks(&id, 1, &id, 1), wrong = group, two[2] = {group, group};
  kvf_submission good = kvf_submission_default(), s;
  good.plan = plan;
  good.agents = names;
  good.agents_len = 2;
  good.groups = &group;
  good.groups_len = 1;
  uint64_t ticket = 77;
  const char *const empty[] = {"prefill-0", ""}, *const null[] = {"prefill-0", NULL};
  CHECK_BAD(INVALID, "submission is NULL", kvf_queue_submit(queue, NULL, &ticket));
  CHECK_BAD(INVALID, "ticket is NULL", kvf_queue_submit(queue, &good, NULL));
  CHECK_BAD(KVF_ERR_INVALID_HANDLE, "queue", kvf_queue_submit((kvf_queue){0}, &good, &ticket));
  REFUSED("struct_size is 0", s.struct_size = 0);
  REFUSED("submission.reserved", s.reserved[1] = 1);
  REFUSED("has_notification is 2", s.has_notification = 2);
  REFUSED("submission.agents is NULL", s.agents = NULL);
  REFUSED("submission.agents is NULL", s.agents = null);
  REFUSED("1 agents for a plan with 2 peers", s.agents_len = 1);
  REFUSED("peer 1 is not idle and has no agent", s.agents = empty);
  REFUSED("submission.groups is NULL", s.groups = NULL);
  REFUSED("block ids for 2 groups", (s.groups = two, s.groups_len = 2));
  REFUSED("block ids for 0 groups", s.groups_len = 0);
  REFUSED("submission.groups[0]: local is NULL", (wrong.local = NULL, s.groups = &wrong));
  REFUSED("submission.notification is NULL", s.notification_len = 3);
  REFUSED("16777217", (s.notification = decode.memory.bytes, s.notification_len = (16 << 20) + 1));
  s = good;
  s.plan.id = 0;
  CHECK_BAD(KVF_ERR_INVALID_HANDLE, "plan", kvf_queue_submit(queue, &s, &ticket));
  CHECK_EQ(ticket, 77);

  kvf_queue_options o = kvf_queue_options_default();
  kvf_queue made = {0};
  o.struct_size = 4;
  CHECK_BAD(INVALID, "struct_size is 4", kvf_queue_create(decode.agent, &o, &made));
  CHECK_BAD(INVALID, "queue is NULL", kvf_queue_create(decode.agent, NULL, NULL));
  CHECK_BAD(KVF_ERR_INVALID_HANDLE, "agent", kvf_queue_create((kvf_agent){0}, NULL, &made));
  CHECK_EQ(made.id, 0);

  kvf_completion c;
  size_t len = 77;
  int fd = 77;
  uint8_t ready = 77;
  kvf_queue_stats stats;
  CHECK_BAD(INVALID, "completions is NULL", kvf_queue_poll(queue, NULL, 1, &len));
  CHECK_BAD(INVALID, "len is NULL", kvf_queue_poll(queue, &c, 1, NULL));
  CHECK_BAD(INVALID, "ready is NULL", kvf_queue_wait(queue, 0, NULL));
  CHECK_BAD(INVALID, "fd is NULL", kvf_queue_event_fd(queue, NULL));
  CHECK_BAD(INVALID, "stats is NULL", kvf_queue_stats_get(queue, NULL));
  kvf_queue none = {0};
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_queue_poll(none, &c, 1, &len));
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_queue_wait(none, 0, &ready));
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_queue_event_fd(none, &fd));
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_queue_stats_get(none, &stats));
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_queue_destroy(none, 0));
  CHECK(len == 77 && fd == 77 && ready == 77);
  CHECK_EQ(stats_of(queue).submitted, 0);
}

int main(void) {
  for (uint32_t i = 0; i < 2; i++) {
    prefill[i] = rank_new("test", names[i], i, 2);
    rank_fill(&prefill[i], 8);
  }
  decode = rank_new("test", "decode", 0, 1);
  for (uint32_t i = 0; i < 2; i++) introduce(prefill[i].agent, decode.agent);
  plan = plan_between(&decode, prefill, 2, KVF_DIRECTION_PULL);

  back_pressure();
  queue = queue_of(decode.agent, NULL);
  bad_input();
  cancelled();
  deadline();
  failures();
  lost_peer();
  reordered();
  destroyed();

  CHECK_OK(kvf_plan_destroy(plan));
  for (size_t i = 0; i < 2; i++) rank_free(&prefill[i]);
  rank_free(&decode);
  return 0;
}
