/* Layouts: what the builders make of common shapes, the engine's own tables, and the bytes in which
 * ranks exchange them. The expected figures are worked out beside them. */
#include "plan_fixture.h"

static kvf_layout_tables tables_of(kvf_layout layout) {
  kvf_layout_tables tables;
  memset(&tables, 0, sizeof tables);
  CHECK_OK(kvf_layout_tables_get(layout, &tables));
  return tables;
}

static const kvf_part* part_of(const kvf_layout_tables* t, uint32_t layer, uint32_t role) {
  for (size_t i = 0; i < t->parts_len; i++)
    if (t->parts[i].layer == layer && t->parts[i].role == role) return &t->parts[i];
  FAIL("layer %u has no role %u", layer, role);
}

/* Rank 1 of 4, 8 heads of 4 elements of 2 bytes, blocks of 16 tokens: 2 heads of 16 tokens of 8
 * bytes, 256 bytes for K and as many for V. */
static void dense_arrangements(void) {
  const struct {
    uint32_t order, kv;
    uint64_t page_len, k_head, k_row, v_offset;
    size_t regions;
  } cases[] = {
      /* [tokens][heads]: a head is 8 bytes on, a token 2 heads. */
      {KVF_ORDER_NHD, KVF_KV_REGIONS, 256, 8, 16, 0, 2},
      /* [heads][tokens]: a token is 8 bytes on, a head 16 tokens. */
      {KVF_ORDER_HND, KVF_KV_REGIONS, 256, 128, 8, 0, 2},
      {KVF_ORDER_NHD, KVF_KV_PLANES, 512, 8, 16, 256, 1},
      {KVF_ORDER_HND, KVF_KV_PLANES, 512, 128, 8, 256, 1},
      /* [tokens][2][heads]: K of a token's heads, then their V. */
      {KVF_ORDER_NHD, KVF_KV_HALVES, 512, 8, 32, 16, 1},
      /* [heads][2][tokens]: K of a head's tokens, then their V. */
      {KVF_ORDER_HND, KVF_KV_HALVES, 512, 256, 8, 128, 1},
      {KVF_ORDER_NHD, KVF_KV_CELLS, 512, 16, 32, 8, 1},
      {KVF_ORDER_HND, KVF_KV_CELLS, 512, 256, 16, 8, 1},
  };
  for (size_t i = 0; i < LEN(cases); i++) {
    kvf_region regions[4];
    for (size_t r = 0; r < 4; r++) regions[r] = pages_at(0x100000 * (r + 1), 64);
    kvf_dense_layers layers = dense_of(8, 4, cases[i].order, cases[i].kv);
    layers.elem_bytes = 2;
    kvf_layout layout = dense_rank(1, 4, 16, layers, regions, 2 * cases[i].regions);
    kvf_layout_tables t = tables_of(layout);
    CHECK_EQ(t.parallel.tp_rank, 1);
    CHECK_EQ(t.parallel.tp_size, 4);
    CHECK_EQ(t.parallel.pp_size, 1);
    CHECK_EQ(t.groups_len, 1);
    CHECK_EQ(t.groups[0].tokens_per_block, 16);
    CHECK_EQ(t.groups[0].kernel_blocks, 1);
    CHECK_EQ(t.regions_len, 2 * cases[i].regions);
    CHECK_EQ(t.parts_len, 4);
    for (size_t r = 0; r < t.regions_len; r++) {
      CHECK_EQ(t.regions[r].base, 0x100000 * (r + 1));
      CHECK_EQ(t.regions[r].page_len, cases[i].page_len);
      CHECK_EQ(t.regions[r].page_stride, cases[i].page_len);
    }
    for (uint32_t layer = 0; layer < 2; layer++) {
      const kvf_part *k = part_of(&t, layer, KVF_ROLE_K), *v = part_of(&t, layer, KVF_ROLE_V);
      CHECK_EQ(k->region, layer * cases[i].regions);
      CHECK_EQ(v->region, layer * cases[i].regions + cases[i].regions - 1);
      CHECK_EQ(k->heads_total, 8);
      CHECK_EQ(k->head_first, 2);
      CHECK_EQ(k->head_count, 2);
      CHECK_EQ(k->rows, 16);
      CHECK_EQ(k->cell_bytes, 8);
      CHECK_EQ(k->elem_bytes, 2);
      CHECK_EQ(k->offset, 0);
      CHECK_EQ(k->head_stride, cases[i].k_head);
      CHECK_EQ(k->row_stride, cases[i].k_row);
      CHECK_EQ(v->offset, cases[i].v_offset);
      CHECK_EQ(v->head_stride, cases[i].k_head);
      CHECK_EQ(v->row_stride, cases[i].k_row);
    }
    kvf_layout_tables_free(&t);
    CHECK(t.parts == NULL && t.parts_len == 0 && t.regions == NULL && t.groups == NULL);
    kvf_layout_tables_free(&t);
    CHECK_OK(kvf_layout_destroy(layout));
  }
}

/* A slab per head: 16 tokens of K and V of 4 elements of 2 bytes are 256 bytes that stay together.
 */
static void slabs(void) {
  kvf_region region = pages_at(0x1000, 9);
  kvf_dense_layers layers = dense_of(8, 4, KVF_ORDER_NHD, KVF_KV_SLABS);
  layers.elem_bytes = 2;
  kvf_layout layout = dense_rank(3, 4, 16, layers, &region, 1);
  kvf_layout_tables t = tables_of(layout);
  CHECK_EQ(t.parts_len, 1);
  CHECK_EQ(t.parts[0].role, KVF_ROLE_KV);
  CHECK_EQ(t.parts[0].cell_bytes, 256);
  CHECK_EQ(t.parts[0].head_first, 6);
  CHECK_EQ(t.parts[0].rows, 1);
  CHECK_EQ(t.regions[0].page_len, 512);
  kvf_layout_tables_free(&t);
  CHECK_OK(kvf_layout_destroy(layout));
}

/* A hybrid: dense layers 0 and 3, latent layer 1, Mamba layer 2, on rank 1 of 2. */
static void hybrid(void) {
  kvf_group groups[3] = {group_of(KVF_GROUP_FULL, 32), group_of(KVF_GROUP_MLA, 16),
                         group_of(KVF_GROUP_STATE, 0)};
  groups[0].kernel_blocks = 2;
  kvf_region dense_regions[2] = {pages_at(0x10000, 8), pages_at(0x20000, 8)};
  kvf_region latent_region = pages_at(0x30000, 5), state_region = pages_at(0x40000, 7);
  latent_region.page_stride = 20000;
  const uint32_t numbers[] = {0, 3};
  kvf_dense_layers dense = dense_of(4, 8, KVF_ORDER_HND, KVF_KV_PLANES);
  dense.v_head_size = 6;
  dense.layers = numbers;
  dense.layers_len = 2;
  dense.regions = dense_regions;
  dense.regions_len = 2;
  kvf_latent_layers latent;
  memset(&latent, 0, sizeof latent);
  latent.group = 1;
  latent.size = 576;
  latent.elem_bytes = 2;
  latent.first_layer = 1;
  latent.regions = &latent_region;
  latent.regions_len = 1;
  /* x has 8 channels, B and C have 2 groups of 4; 3 rows of 2 bytes. */
  const kvf_sub_projection conv[] = {{8, 0}, {2, 4}, {2, 4}};
  kvf_state_layers state;
  memset(&state, 0, sizeof state);
  state.group = 2;
  state.conv = conv;
  state.conv_len = 3;
  state.conv_rows = 3;
  state.conv_elem_bytes = 2;
  state.conv_order = KVF_CONV_ROWS_FIRST;
  state.ssm_heads = 4;
  state.ssm_head_bytes = 40;
  state.ssm_elem_bytes = 4;
  state.first_layer = 2;
  state.regions = &state_region;
  state.regions_len = 1;
  kvf_layout_options o = options_of(1, 2, groups, 3);
  o.dense = &dense;
  o.dense_len = 1;
  o.latent = &latent;
  o.latent_len = 1;
  o.state = &state;
  o.state_len = 1;
  kvf_layout layout = made(o);
  kvf_layout_tables t = tables_of(layout);

  CHECK_EQ(t.regions_len, 4);
  /* 2 heads of 16 tokens (a block of 32 is two pages) of 8 and of 6 bytes. */
  CHECK_EQ(t.regions[0].page_len, 2 * 16 * (8 + 6));
  CHECK_EQ(part_of(&t, 3, KVF_ROLE_V)->offset, 2 * 16 * 8);
  CHECK_EQ(part_of(&t, 3, KVF_ROLE_V)->cell_bytes, 6);
  CHECK_EQ(part_of(&t, 3, KVF_ROLE_K)->head_first, 2);
  CHECK_EQ(part_of(&t, 3, KVF_ROLE_K)->region, 1);
  CHECK_EQ(part_of(&t, 3, KVF_ROLE_K)->rows, 16);

  const kvf_part* l = part_of(&t, 1, KVF_ROLE_LATENT);
  CHECK_EQ(l->heads_total, 1);
  CHECK_EQ(l->cell_bytes, 1152);
  CHECK_EQ(l->row_stride, 1152);
  CHECK_EQ(t.regions[l->region].page_len, 16 * 1152);
  CHECK_EQ(t.regions[l->region].page_stride, 20000);

  /* This rank's half: 4 channels of x, 4 of B, 4 of C. A row is 12 channels of 2 bytes. */
  const uint64_t offsets[] = {0, 8, 16};
  const uint32_t firsts[] = {4, 4, 4};
  for (uint32_t i = 0; i < 3; i++) {
    const kvf_part* c = part_of(&t, 2, KVF_ROLE_CONV + i);
    CHECK_EQ(c->heads_total, 8);
    CHECK_EQ(c->head_first, firsts[i]);
    CHECK_EQ(c->head_count, 4);
    CHECK_EQ(c->rows, 3);
    CHECK_EQ(c->offset, offsets[i]);
    CHECK_EQ(c->head_stride, 2);
    CHECK_EQ(c->row_stride, 24);
  }
  const kvf_part* s = part_of(&t, 2, KVF_ROLE_SSM);
  CHECK_EQ(s->offset, 3 * 24);
  CHECK_EQ(s->head_first, 2);
  CHECK_EQ(s->head_count, 2);
  CHECK_EQ(s->cell_bytes, 40);
  CHECK_EQ(t.regions[s->region].page_len, 72 + 80);
  CHECK_EQ(t.groups[2].tokens_per_block, 1);

  /* The same said with tables is the same layout. */
  kvf_layout_options own = options_of(1, 2, t.groups, t.groups_len);
  own.regions = t.regions;
  own.regions_len = t.regions_len;
  own.parts = t.parts;
  own.parts_len = t.parts_len;
  kvf_layout again = made(own);
  kvf_buffer a = {0}, b = {0};
  CHECK_OK(kvf_layout_encode(layout, &a));
  CHECK_OK(kvf_layout_encode(again, &b));
  CHECK(a.len == b.len && memcmp(a.data, b.data, a.len) == 0);
  kvf_buffer_free(&a);
  kvf_buffer_free(&b);
  kvf_layout_tables_free(&t);

  /* A layout beside tables: its own regions come first. */
  kvf_region raw = pages_at(0x90000, 4);
  raw.page_len = 64;
  kvf_part part;
  memset(&part, 0, sizeof part);
  part.layer = 9;
  part.role = KVF_ROLE_OTHER;
  part.heads_total = part.head_count = 1;
  part.rows = 16;
  part.head_stride = 64;
  part.row_stride = 4;
  part.cell_bytes = part.elem_bytes = 4;
  o.regions = &raw;
  o.regions_len = 1;
  o.parts = &part;
  o.parts_len = 1;
  kvf_layout both = made(o);
  t = tables_of(both);
  CHECK_EQ(t.regions_len, 5);
  CHECK_EQ(t.regions[0].base, 0x90000);
  CHECK_EQ(t.regions[0].page_stride, 64);
  CHECK_EQ(part_of(&t, 9, KVF_ROLE_OTHER)->region, 0);
  CHECK_EQ(part_of(&t, 0, KVF_ROLE_K)->region, 1);
  kvf_layout_tables_free(&t);
  CHECK_OK(kvf_layout_destroy(both));
  CHECK_OK(kvf_layout_destroy(again));
  CHECK_OK(kvf_layout_destroy(layout));
}

static void shards(void) {
  uint32_t first = 77, count = 77;
  CHECK_OK(kvf_layout_shard(8, 4, 3, &first, &count));
  CHECK(first == 6 && count == 2);
  CHECK_OK(kvf_layout_shard(2, 8, 5, &first, &count));
  CHECK(first == 1 && count == 1);
  first = count = 77;
  CHECK_BAD(INVALID, "neither divides", kvf_layout_shard(6, 4, 0, &first, &count));
  CHECK_BAD(INVALID, "tp_rank 4", kvf_layout_shard(8, 4, 4, &first, &count));
  CHECK_BAD(INVALID, "heads 0", kvf_layout_shard(0, 4, 0, &first, &count));
  CHECK_BAD(INVALID, "tp_size 0", kvf_layout_shard(8, 0, 0, &first, &count));
  CHECK_BAD(INVALID, "first is NULL", kvf_layout_shard(8, 4, 0, NULL, &count));
  CHECK_BAD(INVALID, "count is NULL", kvf_layout_shard(8, 4, 0, &first, NULL));
  CHECK(first == 77 && count == 77);
}

/* Bytes travel; damaged ones are refused or, where they happen to be a layout, are that layout. */
static void serialised(void) {
  kvf_region regions[2] = {pages_at(0x7f0000001000, 100), pages_at(0x7f0000801000, 100)};
  regions[1].device = 3;
  regions[1].mem_kind = KVF_MEM_VRAM;
  kvf_dense_layers layers = dense_of(8, 64, KVF_ORDER_HND, KVF_KV_CELLS);
  kvf_layout layout = dense_rank(0, 2, 16, layers, regions, 2);
  kvf_buffer a = {0}, b = {0};
  CHECK_OK(kvf_layout_encode(layout, &a));
  CHECK(a.len > 4 && a.len < 200 && memcmp(a.data, "KVFL", 4) == 0);
  kvf_layout other = {0};
  CHECK_OK(kvf_layout_decode(a.data, a.len, &other));
  CHECK_OK(kvf_layout_encode(other, &b));
  CHECK(a.len == b.len && memcmp(a.data, b.data, a.len) == 0);
  kvf_buffer_free(&b);
  CHECK_OK(kvf_layout_destroy(other));

  other = (kvf_layout){0};
  for (size_t len = 0; len < a.len; len++) {
    /* A copy of its own, so that a sanitizer sees a byte read too many. */
    uint8_t* cut = malloc(len + 1);
    CHECK(cut != NULL);
    uint8_t* start = cut + 1;
    memcpy(start, a.data, len);
    CHECK_STATUS(KVF_ERR_PEER_INCOMPATIBLE, kvf_layout_decode(len ? start : NULL, len, &other));
    free(cut);
  }
  CHECK_EQ(other.id, 0);
  size_t refused = 0;
  for (size_t i = 0; i < a.len * 8; i++) {
    a.data[i / 8] ^= (uint8_t)(1 << i % 8);
    kvf_status status = kvf_layout_decode(a.data, a.len, &other);
    if (status == KVF_OK) {
      CHECK_OK(kvf_layout_encode(other, &b));
      CHECK(a.len == b.len && memcmp(a.data, b.data, a.len) == 0);
      kvf_buffer_free(&b);
      CHECK_OK(kvf_layout_destroy(other));
    } else {
      CHECK_EQ(status, KVF_ERR_PEER_INCOMPATIBLE);
      refused++;
    }
    a.data[i / 8] ^= (uint8_t)(1 << i % 8);
  }
  CHECK(refused > a.len);
  CHECK_OK(kvf_layout_decode(a.data, a.len, &other));
  CHECK_OK(kvf_layout_destroy(other));
  kvf_buffer_free(&a);
  CHECK_OK(kvf_layout_destroy(layout));
}

static bool says(const kvf_buffer* text, const char* part) {
  return strstr((const char*)text->data, part) != NULL;
}

static void in_words(void) {
  kvf_region region = pages_at(0x1000, 9);
  kvf_layout layout =
      dense_rank(1, 2, 16, dense_of(8, 64, KVF_ORDER_HND, KVF_KV_CELLS), &region, 1);
  kvf_buffer text = {0};
  CHECK_OK(kvf_layout_describe(layout, KVF_DESCRIBE_TEXT, &text));
  CHECK_EQ(strlen((const char*)text.data), text.len);
  CHECK(says(&text, "rank 1 of 2") && says(&text, "heads 4..8 of 8") && says(&text, "9 blocks"));
  kvf_buffer_free(&text);
  CHECK_OK(kvf_layout_describe(layout, KVF_DESCRIBE_JSON, &text));
  CHECK(says(&text, "\"tp_rank\":1") && says(&text, "\"head_first\":4"));
  kvf_buffer_free(&text);
  CHECK_BAD(INVALID, "format 2", kvf_layout_describe(layout, 2, &text));
  CHECK_BAD(INVALID, "text is NULL", kvf_layout_describe(layout, KVF_DESCRIBE_TEXT, NULL));
  CHECK(text.data == NULL);
  CHECK_OK(kvf_layout_destroy(layout));
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_layout_destroy(layout));
  CHECK_BAD(KVF_ERR_INVALID_HANDLE, "destroyed", kvf_layout_describe(layout, 0, &text));
}

int main(void) {
  dense_arrangements();
  slabs();
  hybrid();
  shards();
  serialised();
  in_words();
  return 0;
}
