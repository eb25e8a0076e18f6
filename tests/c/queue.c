/* The queue from end to end, by content: two prefill ranks feed one decode rank, and a prefill rank
 * pushes. argv[1]: transport. */
#include "queue_fixture.h"

static const char* transport;
static rank prefill[2], decode;
static const char* const names[] = {"prefill-0", "prefill-1"};

static void set_up(void) {
  for (uint32_t i = 0; i < 2; i++) {
    prefill[i] = rank_new(transport, names[i], i, 2);
    rank_fill(&prefill[i], 5);
  }
  decode = rank_new(transport, "decode", 0, 1);
  for (uint32_t i = 0; i < 2; i++) {
    introduce(prefill[i].agent, decode.agent);
    introduce(decode.agent, prefill[i].agent);
  }
}

static kvf_submission submission_of(kvf_plan plan, const kvf_group_blocks* group) {
  kvf_submission s = kvf_submission_default();
  s.plan = plan;
  s.agents = names;
  s.agents_len = 2;
  s.groups = group;
  s.groups_len = 1;
  return s;
}

/* One request that reads both ranks, with what the completion and the peers are told. */
static void one_request(kvf_queue queue, kvf_plan plan) {
  const uint32_t local[] = {9, 3, 4, 63, 0}, remote[] = {20, 21, 22, 0, 63};
  kvf_group_blocks group = blocks(local, LEN(local), remote, LEN(remote));
  kvf_submission s = submission_of(plan, &group);
  s.notification = (const uint8_t*)"all in";
  s.notification_len = 6;
  kvf_expand_stats stats;
  CHECK_OK(kvf_plan_expand(plan, &group, 1, 0, NULL, &stats, NULL));
  /* 5 blocks of both layers. */
  CHECK_EQ(stats.bytes, 5 * LAYERS * page_of(&decode));

  uint64_t ticket = 0;
  CHECK_OK(kvf_queue_submit(queue, &s, &ticket));
  CHECK(ticket != 0);
  kvf_completion c = next_completion(queue);
  CHECK_EQ(c.ticket, ticket);
  if (c.status != KVF_OK) FAIL("status %d: %s", c.status, c.message);
  CHECK(c.message[0] == '\0' && c.not_notified == 0);
  CHECK(strlen(c.backend) > 0);
  CHECK_EQ(c.bytes, stats.bytes);
  CHECK_EQ(c.total_bytes, stats.bytes);
  CHECK_EQ(c.descriptors, stats.ranges);
  CHECK_EQ(c.descriptors_before, stats.ranges_before);
  CHECK(c.slices >= 2); /* a post has one peer */
  CHECK(c.submitted_ns > 0 && c.planned_ns > 0 && c.posted_ns > 0);
  CHECK(c.planned_ns <= c.posted_ns && c.posted_ns <= c.finished_ns);
  CHECK((double)(c.submitted_ns + c.finished_ns) * 1e-9 <= now_s());

  int32_t from[BLOCKS];
  pair_up(from, local, remote, LEN(local));
  rank_expect(&decode, 5, from, 0, HEADS);
  for (size_t i = 0; i < 2; i++) expect_notification(prefill[i].agent, "decode", "all in");
}

/* Many at once: each completes once, and the event fd says when. */
static void many_requests(kvf_queue queue, kvf_plan plan) {
  rank_clear(&decode);
  int fd = -1;
  CHECK_OK(kvf_queue_event_fd(queue, &fd));
  CHECK(fd >= 0);
  CHECK(!fd_is_readable(fd, 0));
  uint64_t tickets[BLOCKS];
  int32_t from[BLOCKS];
  for (uint32_t i = 0; i < BLOCKS; i++) {
    uint32_t to = i, source = (i * 37 + 11) % BLOCKS;
    from[to] = (int32_t)source;
    kvf_group_blocks group = blocks(&to, 1, &source, 1);
    kvf_submission s = submission_of(plan, &group);
    CHECK_OK(kvf_queue_submit(queue, &s, &tickets[i]));
    /* The ids are copied: what is theirs may change at once. */
    to = source = UINT32_MAX;
    for (uint32_t k = 0; k < i; k++) CHECK(tickets[k] != tickets[i]);
  }
  size_t done = 0;
  while (done < BLOCKS) {
    if (!fd_is_readable(fd, (int)(DEADLINE_S * 1000))) FAIL("%zu of %d completions", done, BLOCKS);
    kvf_completion c[7];
    size_t len = 77;
    CHECK_OK(kvf_queue_poll(queue, c, LEN(c), &len));
    CHECK(len > 0 && len <= LEN(c));
    for (size_t i = 0; i < len; i++) {
      if (c[i].status != KVF_OK) FAIL("status %d: %s", c[i].status, c[i].message);
      size_t at = 0;
      while (at < BLOCKS && tickets[at] != c[i].ticket) at++;
      CHECK(at < BLOCKS);
      tickets[at] = 0; /* a second time would not be found */
      CHECK_EQ(c[i].bytes, LAYERS * page_of(&decode));
    }
    done += len;
  }
  CHECK(!fd_is_readable(fd, 0));
  rank_expect(&decode, 5, from, 0, HEADS);
}

/* Nothing is wanted: it completes, and the peers hear of it. */
static void nothing(kvf_queue queue, kvf_plan plan) {
  const uint32_t remote[] = {1, 2};
  kvf_group_blocks group = blocks(NULL, 0, remote, 2);
  kvf_submission s = submission_of(plan, &group);
  s.notification = (const uint8_t*)"keep it";
  s.notification_len = 7;
  uint64_t ticket = 0;
  CHECK_OK(kvf_queue_submit(queue, &s, &ticket));
  kvf_completion c = next_completion(queue);
  CHECK_EQ(c.status, KVF_OK);
  CHECK(c.ticket == ticket && c.total_bytes == 0 && c.slices == 0 && c.posted_ns == 0);
  CHECK(c.backend[0] == '\0');
  for (size_t i = 0; i < 2; i++) expect_notification(prefill[i].agent, "decode", "keep it");
  /* An empty notification is one if asked for. */
  s.notification_len = 0;
  s.has_notification = 1;
  CHECK_OK(kvf_queue_submit(queue, &s, &ticket));
  CHECK_EQ(next_completion(queue).status, KVF_OK);
  for (size_t i = 0; i < 2; i++) expect_notification(prefill[i].agent, "decode", "");
}

/* What is wrong with block ids, or with an agent's name, shows in the completion, and other
 * requests are none the worse. */
static void wrong_requests(kvf_queue queue, kvf_plan plan) {
  rank_clear(&decode);
  const uint32_t far[] = {BLOCKS}, near_id[] = {7};
  kvf_group_blocks group = blocks(far, 1, near_id, 1);
  kvf_submission s = submission_of(plan, &group);
  uint64_t bad = 0, stranger = 0, good = 0;
  CHECK_OK(kvf_queue_submit(queue, &s, &bad));
  group = blocks(near_id, 1, near_id, 1);
  const char* const others[] = {"prefill-0", "nobody"};
  s.agents = others;
  CHECK_OK(kvf_queue_submit(queue, &s, &stranger));
  s.agents = names;
  CHECK_OK(kvf_queue_submit(queue, &s, &good));
  for (int i = 0; i < 3; i++) {
    kvf_completion c = next_completion(queue);
    if (c.ticket == bad) {
      CHECK_EQ(c.status, KVF_ERR_INVALID_ARGUMENT);
      CHECK(strstr(c.message, "64") != NULL);
    } else if (c.ticket == stranger) {
      CHECK_EQ(c.status, KVF_ERR_NOT_FOUND);
      CHECK(strstr(c.message, "nobody") != NULL);
    } else {
      CHECK_EQ(c.ticket, good);
      CHECK_EQ(c.status, KVF_OK);
      CHECK_EQ(c.bytes, LAYERS * page_of(&decode));
    }
  }
  int32_t from[BLOCKS];
  pair_up(from, near_id, near_id, 1);
  rank_expect(&decode, 5, from, 0, HEADS);
}

/* The prefill rank writes, its own two heads only. */
static void push(void) {
  rank_clear(&decode);
  kvf_plan plan = plan_between(&prefill[1], &decode, 1, KVF_DIRECTION_PUSH);
  kvf_queue queue = queue_of(prefill[1].agent, NULL);
  const uint32_t local[] = {8, 9, 10}, remote[] = {30, 2, 3};
  const char* const target[] = {"decode"};
  kvf_group_blocks group = blocks(local, 3, remote, 3);
  kvf_submission s = submission_of(plan, &group);
  s.agents = target;
  s.agents_len = 1;
  s.notification = (const uint8_t*)"pushed";
  s.notification_len = 6;
  uint64_t ticket = 0;
  CHECK_OK(kvf_queue_submit(queue, &s, &ticket));
  kvf_completion c = next_completion(queue);
  if (c.status != KVF_OK) FAIL("status %d: %s", c.status, c.message);
  expect_notification(decode.agent, "prefill-1", "pushed");
  int32_t from[BLOCKS];
  pair_up(from, remote, local, 3);
  rank_expect(&decode, 5, from, 2, 4);
  CHECK_OK(kvf_queue_destroy(queue, 1000));
  CHECK_OK(kvf_plan_destroy(plan));
}

int main(int argc, char** argv) {
  transport = transport_of(argc, argv);
  set_up();
  kvf_plan plan = plan_between(&decode, prefill, 2, KVF_DIRECTION_PULL);
  /* Small slices, so that a request is several posts. */
  kvf_queue_options options = kvf_queue_options_default();
  options.slice_descriptors = 3;
  kvf_queue queue = queue_of(decode.agent, &options);
  one_request(queue, plan);
  many_requests(queue, plan);
  nothing(queue, plan);
  wrong_requests(queue, plan);

  kvf_queue_stats stats;
  CHECK_OK(kvf_queue_stats_get(queue, &stats));
  CHECK_EQ(stats.submitted, 1 + BLOCKS + 2 + 3);
  CHECK_EQ(stats.succeeded, 1 + BLOCKS + 2 + 1);
  CHECK_EQ(stats.failed, 2);
  CHECK(stats.refused == 0 && stats.running == 0 && stats.unpolled == 0);
  /* The first and the last that went well; the failed one may have moved a part. */
  CHECK(stats.bytes >= (5 + BLOCKS + 1) * LAYERS * page_of(&decode));
  CHECK(stats.descriptors > 0 && stats.descriptors_before >= stats.descriptors && stats.slices > 0);
  CHECK(stats.thread_cpu_ns > 0);

  /* A request goes on when its plan is destroyed, and a queue is drained when it is. */
  rank_clear(&decode);
  const uint32_t ids[] = {5, 6, 7};
  kvf_group_blocks group = blocks(ids, 3, ids, 3);
  kvf_submission s = submission_of(plan, &group);
  uint64_t ticket = 0;
  CHECK_OK(kvf_queue_submit(queue, &s, &ticket));
  CHECK_OK(kvf_plan_destroy(plan));
  CHECK_BAD(KVF_ERR_INVALID_HANDLE, "plan", kvf_queue_submit(queue, &s, &ticket));
  CHECK_OK(kvf_queue_destroy(queue, 30000));
  int32_t from[BLOCKS];
  pair_up(from, ids, ids, 3);
  rank_expect(&decode, 5, from, 0, HEADS);
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_queue_destroy(queue, 0));
  CHECK_BAD(KVF_ERR_INVALID_HANDLE, "queue", kvf_queue_cancel(queue, ticket));

  push();
  for (size_t i = 0; i < 2; i++) rank_free(&prefill[i]);
  rank_free(&decode);
  return 0;
}
