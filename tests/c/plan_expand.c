/* Plans between two small engines, and the ranges of requests. Every expected address is worked out
 * in the comment beside it. */
#include "plan_fixture.h"

enum { MAX_RANKS = 8 };

/* K and V of one layer in two regions, head-major, heads of 8 bytes: addresses of rank r of an
 * engine are apart by `step`. */
typedef struct engine {
  uint32_t tp, tokens;
  uint64_t base, step;
  kvf_layout ranks[MAX_RANKS];
} engine;

static engine engine_of(uint32_t heads, uint32_t tp, uint32_t tokens, uint64_t base) {
  engine e = {tp, tokens, base, 0x100000, {{0}}};
  for (uint32_t r = 0; r < tp; r++) {
    kvf_region regions[2] = {pages_at(base + r * e.step, 32),
                             pages_at(base + r * e.step + 0x10000, 32)};
    e.ranks[r] =
        dense_rank(r, tp, tokens, dense_of(heads, 8, KVF_ORDER_HND, KVF_KV_REGIONS), regions, 2);
  }
  return e;
}

static void engine_free(engine* e) {
  for (uint32_t r = 0; r < e->tp; r++) CHECK_OK(kvf_layout_destroy(e->ranks[r]));
}

static kvf_plan plan_of(kvf_layout local, const engine* remote, const kvf_plan_options* options) {
  kvf_plan plan = {0};
  CHECK_OK(kvf_plan_build(local, remote->ranks, remote->tp, options, &plan));
  CHECK(plan.id != 0);
  return plan;
}

static kvf_range_list expanded(kvf_plan plan, kvf_group_blocks group) {
  kvf_range_list ranges = {0};
  CHECK_OK(kvf_plan_expand(plan, &group, 1, 0, NULL, NULL, &ranges));
  return ranges;
}

/* The ranges are just these, in any order. */
static void expect(const kvf_range_list* got, const kvf_range* wanted, size_t len) {
  CHECK_EQ(got->len, len);
  for (size_t i = 0; i < len; i++) {
    size_t found = 0;
    for (size_t k = 0; k < got->len; k++)
      found += got->items[k].peer == wanted[i].peer && got->items[k].local == wanted[i].local &&
               got->items[k].remote == wanted[i].remote && got->items[k].len == wanted[i].len;
    if (found != 1)
      FAIL("%zu times: peer %u, %#llx <- %#llx, %llu bytes", found, wanted[i].peer,
           (unsigned long long)wanted[i].local, (unsigned long long)wanted[i].remote,
           (unsigned long long)wanted[i].len);
  }
}

static uint32_t role_of(kvf_plan plan, uint32_t peer, uint32_t* notifiers) {
  kvf_plan_tables t;
  CHECK_OK(kvf_plan_tables_get(plan, &t));
  CHECK(peer < t.peers_len);
  uint32_t role = t.peers[peer].role;
  if (notifiers != NULL) *notifiers = t.peers[peer].notifiers;
  kvf_plan_tables_free(&t);
  CHECK(t.lanes == NULL && t.lanes_len == 0 && t.lanes_before == 0);
  return role;
}

/* Eight heads. Prefill rank r holds heads 2r and 2r+1, a page of 2 heads of 2 tokens of 8 bytes: 32
 * bytes. Decode rank 0 holds heads 0 to 3, pages of 64 bytes. So it reads ranks 0 and 1, whole
 * pages: rank 0's into the first half of its page, rank 1's into the second. */
static void four_to_two(void) {
  engine prefill = engine_of(8, 4, 2, 0x10000000), decode = engine_of(8, 2, 2, 0x20000000);
  kvf_plan plan = plan_of(decode.ranks[0], &prefill, NULL);
  kvf_range_list ranges = expanded(plan, blocks(IDS(5, 6), IDS(3, 9)));
  kvf_range wanted[8];
  size_t n = 0;
  for (uint32_t r = 0; r < 2; r++) {
    for (uint64_t kv = 0; kv <= 0x10000; kv += 0x10000) {
      uint64_t local = 0x20000000 + kv + r * 32, remote = 0x10000000 + r * 0x100000 + kv;
      wanted[n++] = (kvf_range){r, 0, local + 5 * 64, remote + 3 * 32, 32};
      wanted[n++] = (kvf_range){r, 0, local + 6 * 64, remote + 9 * 32, 32};
    }
  }
  expect(&ranges, wanted, n);
  kvf_range_list_free(&ranges);
  CHECK(ranges.items == NULL && ranges.len == 0);
  kvf_range_list_free(&ranges);

  uint32_t notifiers = 77;
  CHECK_EQ(role_of(plan, 0, &notifiers), KVF_PEER_TRANSFER);
  CHECK_EQ(notifiers, 1);
  CHECK_EQ(role_of(plan, 1, NULL), KVF_PEER_TRANSFER);
  CHECK_EQ(role_of(plan, 2, &notifiers), KVF_PEER_IDLE);
  CHECK_EQ(notifiers, 1); /* decode rank 1 reads it */

  /* The figures alone. 2 blocks of 2 tokens of 4 heads of 8 bytes, K and V. */
  kvf_group_blocks group = blocks(IDS(5, 6), IDS(3, 9));
  kvf_expand_stats stats;
  kvf_coverage coverage;
  CHECK_OK(kvf_plan_expand(plan, &group, 1, 0, &coverage, &stats, NULL));
  CHECK_EQ(stats.bytes, 2 * 2 * 4 * 8 * 2);
  CHECK_EQ(stats.ranges, 8);
  CHECK_EQ(coverage.first, 0);
  CHECK_EQ(coverage.end, 4);
  CHECK(coverage.missing_head == 0 && coverage.missing_tail == 0);

  /* Three tokens: two blocks on either side, and blocks are copied whole. */
  CHECK_OK(kvf_plan_expand(plan, &group, 1, 3, &coverage, NULL, NULL));
  CHECK(coverage.first == 0 && coverage.end == 4 && coverage.missing_tail == 0);
  CHECK_OK(kvf_plan_destroy(plan));
  engine_free(&prefill);
  engine_free(&decode);
}

/* The other way round: a decode rank of four takes its two heads out of a page of four. */
static void two_to_four(void) {
  engine prefill = engine_of(8, 2, 2, 0x10000000), decode = engine_of(8, 4, 2, 0x20000000);
  kvf_plan plan = plan_of(decode.ranks[3], &prefill, NULL);
  kvf_range_list ranges = expanded(plan, blocks(IDS(4), IDS(7)));
  /* Heads 6 and 7 are the second half of the page of rank 1. */
  uint64_t local = 0x20300000 + 4 * 32, remote = 0x10100000 + 7 * 64 + 32;
  const kvf_range wanted[] = {{1, 0, local, remote, 32},
                              {1, 0, local + 0x10000, remote + 0x10000, 32}};
  expect(&ranges, wanted, 2);
  kvf_range_list_free(&ranges);
  uint32_t notifiers = 77;
  CHECK_EQ(role_of(plan, 0, NULL), KVF_PEER_IDLE);
  CHECK_EQ(role_of(plan, 1, &notifiers), KVF_PEER_TRANSFER);
  CHECK_EQ(notifiers, 2);
  CHECK_OK(kvf_plan_destroy(plan));
  engine_free(&prefill);
  engine_free(&decode);
}

/* Equal ranks, whole pages of 128 bytes: neighbours on both sides are one range, in whatever order
 * they are listed. */
static void merging(void) {
  engine prefill = engine_of(8, 1, 2, 0x10000000), decode = engine_of(8, 1, 2, 0x20000000);
  kvf_plan plan = plan_of(decode.ranks[0], &prefill, NULL);
  /* Pairs 5-13, 4-12, 6-20, 7-21, 9-22: 4 to 5 from 12, 6 to 7 from 20, 9 from 22. */
  kvf_range_list ranges = expanded(plan, blocks(IDS(5, 4, 6, 7, 9), IDS(13, 12, 20, 21, 22)));
  kvf_range wanted[6];
  for (size_t i = 0; i < 2; i++) {
    uint64_t l = 0x20000000 + i * 0x10000, r = 0x10000000 + i * 0x10000;
    wanted[3 * i] = (kvf_range){0, 0, l + 4 * 128, r + 12 * 128, 256};
    wanted[3 * i + 1] = (kvf_range){0, 0, l + 6 * 128, r + 20 * 128, 256};
    wanted[3 * i + 2] = (kvf_range){0, 0, l + 9 * 128, r + 22 * 128, 128};
  }
  expect(&ranges, wanted, 6);
  kvf_range_list_free(&ranges);
  kvf_expand_stats stats;
  kvf_group_blocks group = blocks(IDS(5, 4, 6, 7, 9), IDS(13, 12, 20, 21, 22));
  CHECK_OK(kvf_plan_expand(plan, &group, 1, 0, NULL, &stats, NULL));
  CHECK_EQ(stats.ranges_before, 10);
  CHECK_EQ(stats.ranges, 6);
  CHECK_EQ(stats.bytes, 10 * 128);

  /* A prefix is there already: only the tail is asked for. The lists end together. */
  ranges = expanded(plan, blocks(IDS(8), IDS(3, 4, 5)));
  const kvf_range tail[] = {{0, 0, 0x20000000 + 8 * 128, 0x10000000 + 5 * 128, 128},
                            {0, 0, 0x20010000 + 8 * 128, 0x10010000 + 5 * 128, 128}};
  expect(&ranges, tail, 2);
  kvf_range_list_free(&ranges);
  /* Stated: the one block is the second of the request. */
  group = blocks(IDS(8), IDS(3, 4, 5));
  group.local_first = 1;
  group.has_local_first = 1;
  ranges = expanded(plan, group);
  CHECK_EQ(ranges.len, 2);
  CHECK_EQ(ranges.items[0].remote - ranges.items[1].remote, 0 - 0x10000);
  CHECK_EQ(ranges.items[0].remote, 0x10000000 + 4 * 128);
  kvf_range_list_free(&ranges);
  /* Nothing is asked for. */
  ranges = expanded(plan, blocks(NULL, 0, IDS(3, 4, 5)));
  CHECK(ranges.items == NULL && ranges.len == 0);
  CHECK_OK(kvf_plan_destroy(plan));
  engine_free(&prefill);
  engine_free(&decode);
}

/* Local blocks of 4 tokens, remote ones of 2, token-major with one head of 8 bytes: block 1 takes
 * remote 7 for its first half and 3 for its second. */
static void block_sizes(void) {
  kvf_region p[2] = {pages_at(0x10000, 16), pages_at(0x20000, 16)};
  kvf_region d[2] = {pages_at(0x30000, 16), pages_at(0x40000, 16)};
  kvf_dense_layers shape = dense_of(1, 8, KVF_ORDER_NHD, KVF_KV_REGIONS);
  kvf_layout prefill = dense_rank(0, 1, 2, shape, p, 2), decode = dense_rank(0, 1, 4, shape, d, 2);
  kvf_plan plan = {0};
  CHECK_OK(kvf_plan_build(decode, &prefill, 1, NULL, &plan));
  kvf_range_list ranges = expanded(plan, blocks(IDS(1), IDS(7, 3)));
  const kvf_range wanted[] = {{0, 0, 0x30000 + 32, 0x10000 + 7 * 16, 16},
                              {0, 0, 0x30000 + 48, 0x10000 + 3 * 16, 16},
                              {0, 0, 0x40000 + 32, 0x20000 + 7 * 16, 16},
                              {0, 0, 0x40000 + 48, 0x20000 + 3 * 16, 16}};
  expect(&ranges, wanted, 4);
  kvf_range_list_free(&ranges);
  /* The producer has one block of 2 tokens: the second half of the local block stays as it was. */
  kvf_group_blocks half = blocks(IDS(1), IDS(7));
  kvf_coverage coverage;
  CHECK_OK(kvf_plan_expand(plan, &half, 1, 2, &coverage, NULL, &ranges));
  CHECK(coverage.first == 0 && coverage.end == 2);
  CHECK(coverage.missing_head == 0 && coverage.missing_tail == 2);
  const kvf_range first_half[] = {wanted[0], wanted[2]};
  expect(&ranges, first_half, 2);
  kvf_range_list_free(&ranges);
  CHECK_OK(kvf_plan_destroy(plan));

  /* 4 and 3 tokens: refused, unless it is meant. */
  kvf_layout odd = dense_rank(0, 1, 3, shape, p, 2);
  kvf_plan_options o = kvf_plan_options_default();
  CHECK_BAD(KVF_ERR_MISMATCH, "neither divides", kvf_plan_build(decode, &odd, 1, &o, &plan));
  o.uneven_blocks = 1;
  CHECK_OK(kvf_plan_build(decode, &odd, 1, &o, &plan));
  /* 12 tokens: 3 local blocks, 4 remote ones. */
  half = blocks(IDS(0, 1, 2), IDS(0, 1, 2, 3));
  CHECK_OK(kvf_plan_expand(plan, &half, 1, 12, NULL, NULL, &ranges));
  uint64_t bytes = 0;
  for (size_t i = 0; i < ranges.len; i++) bytes += ranges.items[i].len;
  CHECK_EQ(bytes, 12 * 8 * 2);
  kvf_range_list_free(&ranges);
  CHECK_OK(kvf_plan_destroy(plan));
  CHECK_OK(kvf_layout_destroy(odd));
  CHECK_OK(kvf_layout_destroy(prefill));
  CHECK_OK(kvf_layout_destroy(decode));
}

static kvf_layout latent_rank(uint32_t rank, uint32_t tp, uint64_t base) {
  kvf_group group = group_of(KVF_GROUP_MLA, 2);
  kvf_region region = pages_at(base, 16);
  kvf_latent_layers latent;
  memset(&latent, 0, sizeof latent);
  latent.size = 10;
  latent.elem_bytes = 2;
  latent.regions = &region;
  latent.regions_len = 1;
  kvf_layout_options o = options_of(rank, tp, &group, 1);
  o.latent = &latent;
  o.latent_len = 1;
  return made(o);
}

/* MLA, four prefill ranks and two decode ranks, the latent on each: every decode rank reads one
 * rank, whole pages of 2 tokens of 20 bytes, and every prefill rank hears from as many as it is
 * told. */
static void mla(void) {
  kvf_layout p[4], d[2];
  uint32_t heard[4] = {0}, told[2][4];
  for (uint32_t r = 0; r < 4; r++) p[r] = latent_rank(r, 4, 0x10000 * (r + 1));
  for (uint32_t r = 0; r < 2; r++) {
    d[r] = latent_rank(r, 2, 0x90000 + 0x10000 * r);
    kvf_plan plan = {0};
    CHECK_OK(kvf_plan_build(d[r], p, 4, NULL, &plan));
    uint32_t source = 77, transfers = 0;
    for (uint32_t i = 0; i < 4; i++) {
      uint32_t role = role_of(plan, i, &told[r][i]);
      heard[i] += role != KVF_PEER_IDLE;
      if (role == KVF_PEER_TRANSFER) source = i, transfers++;
    }
    CHECK_EQ(transfers, 1);
    kvf_range_list ranges = expanded(plan, blocks(IDS(1, 2), IDS(8, 9)));
    const kvf_range wanted[] = {
        {source, 0, 0x90000 + 0x10000 * r + 40, 0x10000 * (source + 1) + 8 * 40, 80}};
    expect(&ranges, wanted, 1);
    kvf_range_list_free(&ranges);
    CHECK_OK(kvf_plan_destroy(plan));
  }
  for (uint32_t i = 0; i < 4; i++) {
    CHECK(heard[i] > 0);
    CHECK_EQ(told[0][i], heard[i]);
    CHECK_EQ(told[1][i], heard[i]);
    CHECK_OK(kvf_layout_destroy(p[i]));
  }
  for (uint32_t r = 0; r < 2; r++) CHECK_OK(kvf_layout_destroy(d[r]));
}

/* Push: the prefill rank's own plan has the same ranges, seen from the other side. */
static void push(void) {
  engine prefill = engine_of(8, 4, 2, 0x10000000), decode = engine_of(8, 2, 2, 0x20000000);
  kvf_plan_options o = kvf_plan_options_default();
  o.direction = KVF_DIRECTION_PUSH;
  kvf_plan plan = plan_of(prefill.ranks[1], &decode, &o);
  kvf_range_list ranges = expanded(plan, blocks(IDS(3), IDS(5)));
  uint64_t local = 0x10100000 + 3 * 32, remote = 0x20000000 + 5 * 64 + 32;
  const kvf_range wanted[] = {{0, 0, local, remote, 32},
                              {0, 0, local + 0x10000, remote + 0x10000, 32}};
  expect(&ranges, wanted, 2);
  kvf_range_list_free(&ranges);
  kvf_plan_tables t;
  CHECK_OK(kvf_plan_tables_get(plan, &t));
  CHECK_EQ(t.direction, KVF_DIRECTION_PUSH);
  CHECK_EQ(t.peers[0].role, KVF_PEER_TRANSFER);
  CHECK_EQ(t.peers[0].notifiers, 2); /* prefill ranks 0 and 1 write to it */
  CHECK_EQ(t.peers[1].role, KVF_PEER_IDLE);
  kvf_plan_tables_free(&t);
  CHECK_OK(kvf_plan_destroy(plan));
  engine_free(&prefill);
  engine_free(&decode);
}

/* K and V one behind the other in a page: one lane, and two when they are kept apart; the same
 * bytes. */
static void kept_lanes(void) {
  kvf_region p = pages_at(0x10000, 16), d = pages_at(0x20000, 16);
  kvf_dense_layers shape = dense_of(4, 8, KVF_ORDER_HND, KVF_KV_PLANES);
  kvf_layout prefill = dense_rank(0, 1, 2, shape, &p, 1),
             decode = dense_rank(0, 1, 2, shape, &d, 1);
  kvf_plan merged = {0}, kept = {0};
  kvf_plan_options o = kvf_plan_options_default();
  CHECK_OK(kvf_plan_build(decode, &prefill, 1, &o, &merged));
  o.keep_lanes = 1;
  CHECK_OK(kvf_plan_build(decode, &prefill, 1, &o, &kept));
  kvf_plan_tables a, b;
  CHECK_OK(kvf_plan_tables_get(merged, &a));
  CHECK_OK(kvf_plan_tables_get(kept, &b));
  CHECK_EQ(a.lanes_len, 1);
  CHECK_EQ(a.lanes[0].len, 2 * 4 * 2 * 8);
  CHECK(a.lanes_before > 1);
  CHECK(b.lanes_len > 1);
  kvf_plan_tables_free(&a);
  kvf_plan_tables_free(&b);
  kvf_range_list whole = expanded(merged, blocks(IDS(1), IDS(2)));
  const kvf_range wanted[] = {{0, 0, 0x20000 + 128, 0x10000 + 256, 128}};
  expect(&whole, wanted, 1);
  kvf_range_list_free(&whole);
  kvf_range_list parts = expanded(kept, blocks(IDS(1), IDS(2)));
  bool covered[128] = {false};
  for (size_t i = 0; i < parts.len; i++) {
    CHECK_EQ(parts.items[i].remote - parts.items[i].local, 0x10000 + 256 - 0x20000 - 128);
    for (uint64_t k = 0; k < parts.items[i].len; k++) {
      size_t at = (size_t)(parts.items[i].local - 0x20000 - 128 + k);
      CHECK(at < 128 && !covered[at]);
      covered[at] = true;
    }
  }
  for (size_t i = 0; i < 128; i++) CHECK(covered[i]);
  kvf_range_list_free(&parts);
  CHECK_OK(kvf_plan_destroy(merged));
  CHECK_OK(kvf_plan_destroy(kept));
  CHECK_OK(kvf_layout_destroy(prefill));
  CHECK_OK(kvf_layout_destroy(decode));
}

/* An engine's own lanes: 24 bytes of each page of 100, at 10 here and at 20 there, twice. */
static void own_lanes(void) {
  kvf_group_geometry group;
  memset(&group, 0, sizeof group);
  group.local.tokens_per_block = group.remote.tokens_per_block = 16;
  group.local.block_count = 10;
  group.remote.block_count = 20;
  kvf_peer peer = {3, 0, KVF_PEER_TRANSFER, 1};
  kvf_lane lane;
  memset(&lane, 0, sizeof lane);
  lane.len = 24;
  lane.local.base = 0x1000 + 10;
  lane.local.stride = 100;
  lane.remote.base = 0x2000 + 20;
  lane.remote.stride = 100;
  lane.inner[1].count = 2;
  lane.inner[1].local_stride = 30;
  lane.inner[1].remote_stride = 40;
  kvf_plan_custom custom = kvf_plan_custom_default();
  custom.groups = &group;
  custom.groups_len = 1;
  custom.peers = &peer;
  custom.peers_len = 1;
  custom.lanes = &lane;
  custom.lanes_len = 1;
  kvf_plan plan = {0};
  CHECK_OK(kvf_plan_create(&custom, &plan));
  kvf_range_list ranges = expanded(plan, blocks(IDS(2), IDS(19)));
  const kvf_range wanted[] = {{0, 0, 0x1000 + 10 + 200, 0x2000 + 20 + 1900, 24},
                              {0, 0, 0x1000 + 40 + 200, 0x2000 + 60 + 1900, 24}};
  expect(&ranges, wanted, 2);
  kvf_range_list_free(&ranges);
  kvf_group_blocks far = blocks(IDS(2), IDS(20));
  CHECK_BAD(INVALID, "20", kvf_plan_expand(plan, &far, 1, 0, NULL, NULL, &ranges));
  CHECK_OK(kvf_plan_destroy(plan));

  /* A built plan taken apart and put together again gives the same ranges. */
  engine prefill = engine_of(8, 4, 2, 0x10000000), decode = engine_of(8, 2, 4, 0x20000000);
  plan = plan_of(decode.ranks[1], &prefill, NULL);
  kvf_plan_tables t;
  CHECK_OK(kvf_plan_tables_get(plan, &t));
  CHECK_EQ(t.groups[0].atom_tokens, 2);
  custom.groups = t.groups;
  custom.groups_len = t.groups_len;
  custom.peers = t.peers;
  custom.peers_len = t.peers_len;
  custom.lanes = t.lanes;
  custom.lanes_len = t.lanes_len;
  kvf_plan copy = {0};
  CHECK_OK(kvf_plan_create(&custom, &copy));
  kvf_plan_tables_free(&t);
  kvf_group_blocks group_blocks = blocks(IDS(5, 1), IDS(3, 9, 10, 2));
  kvf_range_list a = expanded(plan, group_blocks), b = expanded(copy, group_blocks);
  CHECK(a.len > 0);
  expect(&b, a.items, a.len);
  kvf_range_list_free(&a);
  kvf_range_list_free(&b);
  CHECK_OK(kvf_plan_destroy(plan));
  CHECK_OK(kvf_plan_destroy(copy));
  engine_free(&prefill);
  engine_free(&decode);
}

static bool says(const kvf_buffer* text, const char* part) {
  return strstr((const char*)text->data, part) != NULL;
}

static void in_words(void) {
  engine prefill = engine_of(8, 4, 2, 0x10000000), decode = engine_of(8, 2, 2, 0x20000000);
  kvf_plan plan = plan_of(decode.ranks[1], &prefill, NULL);
  /* The plan keeps nothing of the layouts. */
  engine_free(&prefill);
  engine_free(&decode);
  kvf_buffer text = {0};
  CHECK_OK(kvf_plan_describe(plan, KVF_DESCRIBE_TEXT, &text));
  CHECK(says(&text, "rank 1 of 2 reads from an engine of TP 4"));
  CHECK(says(&text, "peer 2 (tp_rank 2): transfer") && says(&text, "heads 4..6 of 8"));
  kvf_buffer_free(&text);
  CHECK_OK(kvf_plan_describe(plan, KVF_DESCRIBE_JSON, &text));
  CHECK(says(&text, "\"direction\":\"pull\"") && says(&text, "\"role\":\"notify only\"") == false);
  CHECK(says(&text, "\"head_first\":6"));
  kvf_buffer_free(&text);
  CHECK_OK(kvf_plan_destroy(plan));
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_plan_destroy(plan));
}

int main(void) {
  four_to_two();
  two_to_four();
  merging();
  block_sizes();
  mla();
  push();
  kept_lanes();
  own_lanes();
  in_words();
  return 0;
}
