/* Bad input to layouts, plans and expand: each is a status whose message names the value, and
 * nothing is written to the outputs. */
#include "plan_fixture.h"

/* --- Layouts
 * -------------------------------------------------------------------------------------- */

static kvf_group group;
static kvf_region regions[4];
static kvf_dense_layers dense;
static kvf_latent_layers latent;
static kvf_state_layers state;
static kvf_sub_projection conv;
static kvf_part part;
static kvf_layout_options good;

/* A layout with layers of each kind, and a part of its own. */
static void fill(void) {
  static kvf_group groups[2];
  group = group_of(KVF_GROUP_FULL, 16);
  groups[0] = group;
  groups[1] = group_of(KVF_GROUP_STATE, 0);
  for (size_t i = 0; i < 4; i++) regions[i] = pages_at(0x10000 * (i + 1), 8);
  regions[3].page_len = 64;
  dense = dense_of(8, 4, KVF_ORDER_NHD, KVF_KV_PLANES);
  dense.regions = &regions[0];
  dense.regions_len = 1;
  memset(&latent, 0, sizeof latent);
  latent.size = 4;
  latent.elem_bytes = 2;
  latent.first_layer = 1;
  latent.regions = &regions[1];
  latent.regions_len = 1;
  memset(&state, 0, sizeof state);
  conv = (kvf_sub_projection){8, 1};
  state.group = 1;
  state.conv = &conv;
  state.conv_len = 1;
  state.conv_rows = 3;
  state.conv_elem_bytes = 2;
  state.ssm_heads = 4;
  state.ssm_head_bytes = 8;
  state.ssm_elem_bytes = 4;
  state.first_layer = 2;
  state.regions = &regions[2];
  state.regions_len = 1;
  memset(&part, 0, sizeof part);
  part.layer = 9;
  part.role = KVF_ROLE_OTHER;
  part.heads_total = part.head_count = 1;
  part.rows = 16;
  part.row_stride = 4;
  part.cell_bytes = part.elem_bytes = 4;
  good = options_of(1, 4, groups, 2);
  good.dense = &dense;
  good.dense_len = 1;
  good.latent = &latent;
  good.latent_len = 1;
  good.state = &state;
  good.state_len = 1;
  good.regions = &regions[3];
  good.regions_len = 1;
  good.parts = &part;
  good.parts_len = 1;
}

static kvf_status create(kvf_layout_options o) {
  kvf_layout layout = {0};
  kvf_status status = kvf_layout_create(&o, &layout);
  CHECK((status == KVF_OK) == (layout.id != 0));
  if (status == KVF_OK) CHECK_OK(kvf_layout_destroy(layout));
  return status;
}

/* With one thing changed, it is refused, and the message names it. */
#define REFUSED(text, change)            \
  do {                                   \
    fill();                              \
    kvf_layout_options o = good;         \
    change;                              \
    CHECK_BAD(INVALID, text, create(o)); \
  } while (0)

static void layouts(void) {
  fill();
  CHECK_OK(create(good));
  kvf_layout out = {0};
  CHECK_BAD(INVALID, "options is NULL", kvf_layout_create(NULL, &out));
  CHECK_BAD(INVALID, "layout is NULL", kvf_layout_create(&good, NULL));
  CHECK_BAD(INVALID, "not aligned", kvf_layout_create(&good, (kvf_layout*)((char*)&out + 1)));

  REFUSED("struct_size is 0", o.struct_size = 0);
  REFUSED("struct_size is 128", o.struct_size = 128);
  REFUSED("options.reserved is 1", o.reserved = 1);
  REFUSED("tp_rank 4 is not below tp_size 4", o.parallel.tp_rank = 4);
  REFUSED("tp_rank 1 is not below tp_size 1", o.parallel.tp_size = 0);
  REFUSED("tp_size 70000", o.parallel.tp_size = 70000);
  REFUSED("pp_rank 1 is not below pp_size 1", o.parallel.pp_rank = 1);
  REFUSED("dcp_rank 2 is not below dcp_size 2", (o.parallel.dcp_size = 2, o.parallel.dcp_rank = 2));
  REFUSED("dcp_interleave 3", (o.parallel.dcp_size = 2, o.parallel.dcp_interleave = 3));
  REFUSED("options.parallel.reserved is 9", o.parallel.reserved = 9);
  REFUSED("options.groups is NULL but its length is 2", o.groups = NULL);
  REFUSED("options.groups has length", o.groups_len = SIZE_MAX);
  REFUSED("options.dense is NULL but its length is 1", o.dense = NULL);
  REFUSED("options.parts has length", o.parts_len = (size_t)1 << 40);
  REFUSED("not aligned", o.parts = (const kvf_part*)((const char*)&part + 1));

  kvf_group bad[2];
#define GROUP(text, change)               \
  REFUSED(text, {                         \
    memcpy(bad, good.groups, sizeof bad); \
    change;                               \
    o.groups = bad;                       \
  })
  GROUP("options.groups[0]: group kind 5", bad[0].kind = 5);
  GROUP("options.groups[1]: reserved is 7", bad[1].reserved = 7);
  GROUP("groups[0]: tokens_per_block is 0", bad[0].tokens_per_block = 0);
  GROUP("kernel_blocks 3 does not divide tokens_per_block 16", bad[0].kernel_blocks = 3);
  GROUP("window 5", bad[0].window = 5);
  GROUP("tokens_per_block 2", bad[1].tokens_per_block = 2);

  REFUSED("options.dense[0]: kv_heads is 0", dense.kv_heads = 0);
  REFUSED("options.dense[0]: k_head_size is 0", dense.k_head_size = 0);
  REFUSED("options.dense[0]: elem_bytes is 0", dense.elem_bytes = 0);
  REFUSED("options.dense[0]: order 2", dense.order = 2);
  REFUSED("options.dense[0]: kv 5", dense.kv = 5);
  REFUSED("options.dense[0]: group 2 of 2 groups", dense.group = 2);
  REFUSED("heads 6 and tp_size 4", dense.kv_heads = 6);
  REFUSED("K cell", (dense.k_head_size = UINT32_MAX, dense.elem_bytes = UINT32_MAX));
  REFUSED("regions_len is 0", dense.regions_len = 0);
  REFUSED("regions_len is 1, and each layer has 2", dense.kv = KVF_KV_REGIONS);
  REFUSED("regions is NULL", dense.regions = NULL);
  REFUSED("layers is NULL but its length is 1", dense.layers_len = 1);
  const uint32_t numbers[] = {4, 5};
  REFUSED("layers_len 2", (dense.layers = numbers, dense.layers_len = 2));
  REFUSED("first_layer 3 and layers",
          (dense.layers = numbers, dense.layers_len = 1, dense.first_layer = 3));
  kvf_region two[2] = {pages_at(0x90000, 8), pages_at(0xa0000, 8)};
  REFUSED("first_layer 4294967295",
          (dense.first_layer = UINT32_MAX, dense.regions = two, dense.regions_len = 2));
  const uint32_t twice[] = {4, 4};
  REFUSED("is also in parts",
          (dense.layers = twice, dense.layers_len = 2, dense.regions = two, dense.regions_len = 2));
  /* Rank 1 of 4: 2 heads of 16 tokens of 4 bytes, twice. */
  REFUSED("page_len 255, and what its layer has in a page is 256", regions[0].page_len = 255);
  fill();
  regions[0].page_len = 256;
  CHECK_OK(create(good));
  REFUSED("options.dense[0]: regions[0]: memory kind 5", regions[0].mem_kind = 5);
  REFUSED("options.dense[0]: regions[0]: reserved is 1", regions[0].reserved = 1);
  REFUSED("page_count 0", regions[0].page_count = 0);
  REFUSED("page_count 4294967296", regions[0].page_count = (uint64_t)1 << 32);
  REFUSED("page_stride 100 is smaller than page_len 256", regions[0].page_stride = 100);
  REFUSED("wraps around", regions[0].base = UINT64_MAX - 100);

  REFUSED("options.latent[0]: size is 0", latent.size = 0);
  REFUSED("options.latent[0]: elem_bytes is 0", latent.elem_bytes = 0);
  REFUSED("options.latent[0]: reserved is 3", latent.reserved = 3);
  REFUSED("options.state[0]: ssm_heads is 0", state.ssm_heads = 0);
  REFUSED("options.state[0]: ssm_head_bytes is 0", state.ssm_head_bytes = 0);
  REFUSED("options.state[0]: conv_rows is 0", state.conv_rows = 0);
  REFUSED("options.state[0]: conv_elem_bytes is 0", state.conv_elem_bytes = 0);
  REFUSED("options.state[0]: conv_order 2", state.conv_order = 2);
  REFUSED("heads 0", conv.units = 0);
  REFUSED("channels", (conv.units = 1u << 20, conv.channels_per_unit = 1u << 20));

  REFUSED("parts[0]: group 7 of 2 groups", part.group = 7);
  REFUSED("parts[0]: region 9", part.region = 9);
  REFUSED("head_count", part.head_count = 0);
  REFUSED("head_first 1 and head_count 1 exceed heads_total 1", part.head_first = 1);
  REFUSED("head_first 4294967295", part.head_first = UINT32_MAX);
  REFUSED("rows 5", part.rows = 5);
  REFUSED("rows is 0", part.rows = 0);
  REFUSED("elem_bytes 3 does not divide cell_bytes 4", part.elem_bytes = 3);
  REFUSED("make cells of 4 bytes overlap", part.row_stride = 3);
  REFUSED("offset 1 and 64 bytes exceed page_len 64", part.offset = 1);
  REFUSED("page_len is 0", regions[3].page_len = 0);
  kvf_part parts[2];
  REFUSED("lies on top of",
          (parts[0] = parts[1] = part, parts[1].layer = 10, o.parts = parts, o.parts_len = 2));

  kvf_layout bad_handle = {0};
  kvf_buffer bytes = {0};
  kvf_layout_tables tables;
  CHECK_BAD(KVF_ERR_INVALID_HANDLE, "layout handle is null", kvf_layout_encode(bad_handle, &bytes));
  CHECK_BAD(KVF_ERR_INVALID_HANDLE, "null", kvf_layout_tables_get(bad_handle, &tables));
  CHECK_BAD(INVALID, "bytes is NULL", kvf_layout_decode(NULL, 9, &out));
  CHECK_BAD(KVF_ERR_PEER_INCOMPATIBLE, "KVFL", kvf_layout_decode(NULL, 0, &out));
  CHECK_EQ(out.id, 0);
  kvf_layout_tables_free(NULL);
}

/* --- Plans
 * ---------------------------------------------------------------------------------------- */

static kvf_layout rank_of(uint32_t rank, uint32_t tp, uint32_t heads, uint32_t size,
                          uint32_t tokens, uint32_t kind, uint32_t format) {
  kvf_group g = group_of(kind, tokens);
  g.format = format;
  kvf_region region = pages_at(0x1000000 * (rank + 1), 16);
  kvf_dense_layers layers = dense_of(heads, size, KVF_ORDER_NHD, KVF_KV_PLANES);
  layers.regions = &region;
  layers.regions_len = 1;
  kvf_layout_options o = options_of(rank, tp, &g, 1);
  o.dense = &layers;
  o.dense_len = 1;
  return made(o);
}

static kvf_layout plain(uint32_t rank, uint32_t tp) {
  return rank_of(rank, tp, 8, 4, 16, KVF_GROUP_FULL, 0);
}

static void build(kvf_status status, const char* text, kvf_layout local, const kvf_layout* remotes,
                  size_t len) {
  kvf_plan plan = {0};
  CHECK_BAD(status, text, kvf_plan_build(local, remotes, len, NULL, &plan));
  CHECK_EQ(plan.id, 0);
}

static void plans(void) {
  kvf_layout local = plain(0, 2), r[2] = {plain(0, 2), plain(1, 2)};
  kvf_plan plan = {0};
  CHECK_BAD(INVALID, "plan is NULL", kvf_plan_build(local, r, 2, NULL, NULL));
  build(INVALID, "remotes is NULL but its length is 2", local, NULL, 2);
  build(INVALID, "remotes has length", local, r, SIZE_MAX);
  build(INVALID, "no remote layouts", local, NULL, 0);
  build(KVF_ERR_INVALID_HANDLE, "local: the layout handle is null", (kvf_layout){0}, r, 2);
  kvf_layout with_null[2] = {r[0], {0}};
  build(KVF_ERR_INVALID_HANDLE, "remotes[1]: the layout handle is null", local, with_null, 2);
  kvf_layout again[2] = {r[0], r[0]};
  build(INVALID, "given twice", local, again, 2);
  kvf_layout four = plain(0, 4), mixed[2] = {r[0], four};
  build(KVF_ERR_MISMATCH, "tp_size 4, and 2", local, mixed, 2);
  /* Rank 0 needs the heads of rank 0. */
  build(KVF_ERR_MISMATCH, "", local, &r[1], 1);

  const struct {
    const char* text;
    kvf_layout other;
  } cases[] = {
      {"heads: local 8, remote 4", rank_of(0, 1, 4, 4, 16, KVF_GROUP_FULL, 0)},
      {"head size: local 4, remote 8", rank_of(0, 1, 8, 8, 16, KVF_GROUP_FULL, 0)},
      {"kind: local full attention, remote chunked local",
       rank_of(0, 1, 8, 4, 16, KVF_GROUP_CHUNKED_LOCAL, 0)},
      {"format: local 0, remote 5", rank_of(0, 1, 8, 4, 16, KVF_GROUP_FULL, 5)},
      {"neither divides the other", rank_of(0, 1, 8, 4, 24, KVF_GROUP_FULL, 0)},
  };
  for (size_t i = 0; i < LEN(cases); i++) {
    build(KVF_ERR_MISMATCH, cases[i].text, local, &cases[i].other, 1);
    CHECK_OK(kvf_layout_destroy(cases[i].other));
  }

  kvf_plan_options o = kvf_plan_options_default();
#define PLAN(text, change)                                            \
  do {                                                                \
    o = kvf_plan_options_default();                                   \
    change;                                                           \
    CHECK_BAD(INVALID, text, kvf_plan_build(local, r, 2, &o, &plan)); \
  } while (0)
  PLAN("struct_size is 8", o.struct_size = 8);
  PLAN("options.direction 2", o.direction = 2);
  PLAN("options.keep_lanes is 2", o.keep_lanes = 2);
  PLAN("options.uneven_blocks is 9", o.uneven_blocks = 9);
  PLAN("options.reserved", o.reserved[5] = 1);
  CHECK_EQ(plan.id, 0);

  kvf_group_geometry g;
  kvf_peer peer;
  kvf_lane lane;
  kvf_plan_custom custom;
  CHECK_BAD(INVALID, "custom is NULL", kvf_plan_create(NULL, &plan));
#define CUSTOM(text, change)                                     \
  do {                                                           \
    memset(&g, 0, sizeof g);                                     \
    g.local.tokens_per_block = g.remote.tokens_per_block = 16;   \
    g.local.block_count = g.remote.block_count = 4;              \
    peer = (kvf_peer){0, 0, KVF_PEER_TRANSFER, 0};               \
    memset(&lane, 0, sizeof lane);                               \
    lane.len = 8;                                                \
    lane.local.stride = lane.remote.stride = 8;                  \
    custom = kvf_plan_custom_default();                          \
    custom.groups = &g;                                          \
    custom.peers = &peer;                                        \
    custom.lanes = &lane;                                        \
    custom.groups_len = custom.peers_len = custom.lanes_len = 1; \
    change;                                                      \
    CHECK_BAD(INVALID, text, kvf_plan_create(&custom, &plan));   \
    CHECK_EQ(plan.id, 0);                                        \
  } while (0)
  CUSTOM("struct_size is 12", custom.struct_size = 12);
  CUSTOM("custom.direction 3", custom.direction = 3);
  CUSTOM("custom.uneven_blocks is 2", custom.uneven_blocks = 2);
  CUSTOM("custom.reserved", custom.reserved[0] = 1);
  CUSTOM("custom.lanes is NULL", custom.lanes = NULL);
  CUSTOM("custom.lanes has length", custom.lanes_len = SIZE_MAX);
  CUSTOM("custom.groups[0]: group kind 9", g.kind = 9);
  CUSTOM("kernel_blocks 5 does not divide", g.local.kernel_blocks = 5);
  CUSTOM("local.reserved is 1", g.local.reserved = 1);
  CUSTOM("custom.peers[0]: role 3", peer.role = 3);
  CUSTOM("group 1 of 1 groups", lane.group = 1);
  CUSTOM("peer 1 of 1 peers", lane.peer = 1);
  CUSTOM("len is 0", lane.len = 0);
  CUSTOM("local_shard 1", lane.local_shard = 1);
  CUSTOM("custom.lanes[0]: memory kind 6", lane.remote.mem_kind = 6);
  CUSTOM("inner.reserved is 1", lane.inner[1].reserved = 1);
  CUSTOM("beyond the address space", lane.remote.base = UINT64_MAX - 8);
  CUSTOM("beyond the address space", lane.local.stride = UINT64_MAX / 2);
  CUSTOM("beyond the address space",
         (lane.inner[0].count = 3, lane.inner[0].local_stride = UINT64_MAX));
#undef CUSTOM

  kvf_plan_tables tables;
  CHECK_BAD(KVF_ERR_INVALID_HANDLE, "plan handle is null", kvf_plan_tables_get(plan, &tables));
  plan.id = local.id;
  CHECK_BAD(KVF_ERR_INVALID_HANDLE, "not the handle of a plan", kvf_plan_tables_get(plan, &tables));
  CHECK_OK(kvf_layout_destroy(local));
  CHECK_OK(kvf_layout_destroy(r[0]));
  CHECK_OK(kvf_layout_destroy(r[1]));
  CHECK_OK(kvf_layout_destroy(four));
  kvf_plan_tables_free(NULL);
  kvf_range_list_free(NULL);
}

/* --- Expand
 * --------------------------------------------------------------------------------------- */

static kvf_plan plan;

static void expand(kvf_status status, const char* text, kvf_group_blocks blocks, uint64_t tokens) {
  kvf_range_list ranges = {0};
  kvf_expand_stats stats;
  memset(&stats, 0x55, sizeof stats);
  CHECK_BAD(status, text, kvf_plan_expand(plan, &blocks, 1, tokens, NULL, &stats, &ranges));
  CHECK(ranges.items == NULL && ranges.len == 0);
  CHECK_EQ(stats.bytes, 0x5555555555555555);
}

static void block_ids(void) {
  kvf_layout local = plain(0, 1), remote = plain(0, 1);
  CHECK_OK(kvf_plan_build(local, &remote, 1, NULL, &plan));
  CHECK_OK(kvf_layout_destroy(local));
  CHECK_OK(kvf_layout_destroy(remote));
  kvf_range_list ranges = {0};
  kvf_group_blocks one = blocks(IDS(1), IDS(2)), two[2] = {one, one};
  CHECK_BAD(INVALID, "groups is NULL but its length is 1",
            kvf_plan_expand(plan, NULL, 1, 0, NULL, NULL, &ranges));
  CHECK_BAD(INVALID, "groups has length",
            kvf_plan_expand(plan, two, SIZE_MAX, 0, NULL, NULL, &ranges));
  CHECK_BAD(INVALID, "2 groups", kvf_plan_expand(plan, two, 2, 0, NULL, NULL, &ranges));
  CHECK_BAD(INVALID, "0 groups", kvf_plan_expand(plan, NULL, 0, 0, NULL, NULL, &ranges));
  CHECK_OK(kvf_plan_expand(plan, &one, 1, 0, NULL, NULL, NULL));

  /* 16 blocks on both sides. */
  expand(INVALID, "16", blocks(IDS(16), IDS(2)), 0);
  expand(INVALID, "4294967295", blocks(IDS(1), IDS(UINT32_MAX)), 0);
  expand(INVALID, "twice", blocks(IDS(1, 2, 1), IDS(3, 4, 5)), 0);
  expand(KVF_ERR_MISMATCH, "3 local blocks", blocks(IDS(1, 2, 3), IDS(3, 4)), 0);
  expand(KVF_ERR_MISMATCH, "33 tokens are 3 blocks", blocks(IDS(1, 2, 3, 4), IDS(3, 4, 5)), 33);
  kvf_group_blocks g = blocks(NULL, 1, IDS(3));
  expand(INVALID, "groups[0]: local is NULL but its length is 1", g, 0);
  g = blocks(IDS(1), NULL, 7);
  expand(INVALID, "groups[0]: remote is NULL but its length is 7", g, 0);
  g = blocks(one.local, SIZE_MAX, IDS(3));
  expand(INVALID, "groups[0]: local has length", g, 0);
  g = one;
  g.reserved[0] = 1;
  expand(INVALID, "groups[0]: reserved", g, 0);
  g = one;
  g.has_local_first = 2;
  expand(INVALID, "has_local_first is 2", g, 0);
  g = one;
  g.remote_first = 3;
  expand(INVALID, "remote_first is 3, but has_remote_first is 0", g, 0);
  g = one;
  g.has_local_first = 1;
  g.local_first = UINT32_MAX;
  expand(KVF_ERR_MISMATCH, "", g, 0);
  CHECK_OK(kvf_plan_destroy(plan));
  CHECK_BAD(KVF_ERR_INVALID_HANDLE, "plan", kvf_plan_expand(plan, &one, 1, 0, NULL, NULL, &ranges));
}

int main(void) {
  layouts();
  plans();
  block_ids();
  return 0;
}
