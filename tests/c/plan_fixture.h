/* What the tests of layouts, plans and queues share: layouts of small models in a line or two. */
#ifndef KVF_TESTS_PLAN_FIXTURE_H
#define KVF_TESTS_PLAN_FIXTURE_H

#include <stdbool.h>

#include "check.h"

#define INVALID KVF_ERR_INVALID_ARGUMENT

/* An attention layer's shape: `heads` heads of `size` bytes, for K and for V. */
static inline kvf_dense_layers dense_of(uint32_t heads, uint32_t size, uint32_t order,
                                        uint32_t kv) {
  kvf_dense_layers layers;
  memset(&layers, 0, sizeof layers);
  layers.kv_heads = heads;
  layers.k_head_size = size;
  layers.elem_bytes = 1;
  layers.order = order;
  layers.kv = kv;
  return layers;
}

static inline kvf_group group_of(uint32_t kind, uint32_t tokens_per_block) {
  kvf_group group;
  memset(&group, 0, sizeof group);
  group.kind = kind;
  group.tokens_per_block = tokens_per_block;
  return group;
}

static inline kvf_region pages_at(uint64_t base, uint64_t count) {
  kvf_region region;
  memset(&region, 0, sizeof region);
  region.base = base;
  region.page_count = count;
  return region;
}

static inline kvf_layout_options options_of(uint32_t tp_rank, uint32_t tp_size,
                                            const kvf_group* groups, size_t groups_len) {
  kvf_layout_options options = kvf_layout_options_default();
  options.parallel.tp_rank = tp_rank;
  options.parallel.tp_size = tp_size;
  options.groups = groups;
  options.groups_len = groups_len;
  return options;
}

static inline kvf_layout made(kvf_layout_options options) {
  kvf_layout layout = {0};
  CHECK_OK(kvf_layout_create(&options, &layout));
  CHECK(layout.id != 0);
  return layout;
}

/* One rank with one group of full attention. */
static inline kvf_layout dense_rank(uint32_t tp_rank, uint32_t tp_size, uint32_t tokens_per_block,
                                    kvf_dense_layers layers, const kvf_region* regions,
                                    size_t len) {
  kvf_group group = group_of(KVF_GROUP_FULL, tokens_per_block);
  kvf_layout_options options = options_of(tp_rank, tp_size, &group, 1);
  layers.regions = regions;
  layers.regions_len = len;
  options.dense = &layers;
  options.dense_len = 1;
  return made(options);
}

static inline kvf_group_blocks blocks(const uint32_t* local, size_t local_len,
                                      const uint32_t* remote, size_t remote_len) {
  kvf_group_blocks group;
  memset(&group, 0, sizeof group);
  group.local = local;
  group.local_len = local_len;
  group.remote = remote;
  group.remote_len = remote_len;
  return group;
}

#define LEN(array) (sizeof(array) / sizeof *(array))
#define IDS(...) ((const uint32_t[]){__VA_ARGS__}), LEN(((const uint32_t[]){__VA_ARGS__}))

#endif
