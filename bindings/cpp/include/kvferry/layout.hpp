// How one rank's KV cache lies in memory, as data. Part of kvferry.hpp.
#ifndef KVFERRY_LAYOUT_HPP
#define KVFERRY_LAYOUT_HPP

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kvferry/result.hpp"
#include "kvferry/views.hpp"

namespace kvferry {

// What the blocks of a group hold; see KVF_GROUP_....
enum class group_kind : std::uint32_t {
  full = KVF_GROUP_FULL,
  sliding_window = KVF_GROUP_SLIDING_WINDOW,
  chunked_local = KVF_GROUP_CHUNKED_LOCAL,
  mla = KVF_GROUP_MLA,
  state = KVF_GROUP_STATE,
};

// Which of tokens and heads lies outside in a page.
enum class page_order : std::uint32_t { nhd = KVF_ORDER_NHD, hnd = KVF_ORDER_HND };

// Where K and V of a layer are in relation to each other; see KVF_KV_....
enum class kv_placement : std::uint32_t {
  regions = KVF_KV_REGIONS,
  planes = KVF_KV_PLANES,
  halves = KVF_KV_HALVES,
  cells = KVF_KV_CELLS,
  slabs = KVF_KV_SLABS,
};

enum class conv_order : std::uint32_t {
  channels_first = KVF_CONV_CHANNELS_FIRST,
  rows_first = KVF_CONV_ROWS_FIRST,
};

enum class describe_as : std::uint32_t { text = KVF_DESCRIBE_TEXT, json = KVF_DESCRIBE_JSON };

// The structs of C where these are plain data: make them with {}, zero is every default.
using parallel = kvf_parallel;
using region = kvf_region;
using part = kvf_part;
using sub_projection = kvf_sub_projection;

// A row of pages in memory of this process, or of a device. With layers, a page_len of 0 is what
// the layer needs, and a page_stride of 0 is page_len.
inline region pages(const void* base, std::uint64_t page_count, std::uint64_t page_stride = 0,
                    std::uint64_t page_len = 0, mem kind = mem::dram,
                    std::uint64_t device = 0) noexcept {
  region r{};
  r.base = range(base, 0).addr;
  r.page_count = page_count;
  r.page_stride = page_stride;
  r.page_len = page_len;
  r.mem_kind = static_cast<std::uint32_t>(kind);
  r.device = device;
  return r;
}

// Layers that share a block table; see kvf_group.
struct group {
  group_kind kind = group_kind::full;
  std::uint32_t tokens_per_block = 0;
  std::uint32_t kernel_blocks = 1;
  std::uint32_t window = 0;
  std::uint32_t format = 0;
};

// Attention layers with heads; see kvf_dense_layers. `layers` empty counts up from first_layer.
struct dense_layers {
  std::uint32_t kv_heads = 0;
  std::uint32_t k_head_size = 0;
  std::uint32_t elem_bytes = 0;
  std::vector<region> regions;
  page_order order = page_order::nhd;
  kv_placement kv = kv_placement::regions;
  std::uint32_t v_head_size = 0;  // 0 is k_head_size
  std::uint32_t group = 0;
  std::uint32_t first_layer = 0;
  std::vector<std::uint32_t> layers;
};

// Layers with one vector per token, the same on every rank; see kvf_latent_layers.
struct latent_layers {
  std::uint32_t size = 0;
  std::uint32_t elem_bytes = 0;
  std::vector<region> regions;
  std::uint32_t role = KVF_ROLE_LATENT;
  std::uint32_t group = 0;
  std::uint32_t first_layer = 0;
  std::vector<std::uint32_t> layers;
};

// Layers with recurrent state; see kvf_state_layers.
struct state_layers {
  std::uint32_t ssm_heads = 0;
  std::uint32_t ssm_head_bytes = 0;
  std::uint32_t ssm_elem_bytes = 0;
  std::vector<region> regions;
  std::vector<sub_projection> conv;
  std::uint32_t conv_rows = 0;
  std::uint32_t conv_elem_bytes = 0;
  kvferry::conv_order conv_order = kvferry::conv_order::channels_first;
  std::uint32_t group = 0;
  std::uint32_t first_layer = 0;
  std::vector<std::uint32_t> layers;
};

// Everything a layout says, with all defaults filled in.
struct layout_tables {
  kvferry::parallel parallel{};
  std::vector<region> regions;
  std::vector<group> groups;
  std::vector<part> parts;
};

// Consecutive heads of a model.
struct heads {
  std::uint32_t first = 0;
  std::uint32_t count = 0;
};

namespace detail {

inline void end_layout(kvf_layout layout) { (void)kvf_layout_destroy(layout); }

using c_layout_tables = given<kvf_layout_tables, kvf_layout_tables_free>;

template <class H>
result<std::string> describe(kvf_status (*function)(H, std::uint32_t, kvf_buffer*), H handle,
                             describe_as format) {
  buffer b;
  const kvf_status s = function(handle, static_cast<std::uint32_t>(format), &b);
  if (s != KVF_OK) return last(s);
  return to_string(b);
}

inline kvf_group c_group(const group& from) noexcept {
  kvf_group to{};
  to.kind = static_cast<std::uint32_t>(from.kind);
  to.tokens_per_block = from.tokens_per_block;
  to.kernel_blocks = from.kernel_blocks;
  to.window = from.window;
  to.format = from.format;
  return to;
}

// What the three kinds of layers have in common, in a struct of C.
template <class C, class Layers>
C c_layers(const Layers& from) {
  C to{};
  to.group = from.group;
  to.first_layer = from.first_layer;
  to.layers = from.layers.data();
  to.layers_len = from.layers.size();
  to.regions = from.regions.data();
  to.regions_len = from.regions.size();
  return to;
}

}  // namespace detail

// One rank's KV cache. Keeps no pointer to the memory's content, only its geometry.
class layout {
 public:
  layout() noexcept = default;
  // Takes over a handle of C.
  explicit layout(kvf_layout handle) noexcept : handle_(handle) {}

  // From the bytes of encode(), which need not be trusted.
  static result<layout> try_decode(byte_view encoded) {
    kvf_layout made{0};
    const kvf_status s = kvf_layout_decode(encoded.data(), encoded.size(), &made);
    if (s != KVF_OK) return detail::last(s);
    return layout(made);
  }
  // For exchange between ranks; the same bytes for the same layout.
  result<bytes> try_encode() const {
    detail::buffer b;
    const kvf_status s = kvf_layout_encode(handle(), &b);
    if (s != KVF_OK) return detail::last(s);
    return detail::to_bytes(b);
  }
  result<std::string> try_describe(describe_as format = describe_as::text) const {
    return detail::describe(kvf_layout_describe, handle(), format);
  }
  result<layout_tables> try_tables() const {
    detail::c_layout_tables t;
    const kvf_status s = kvf_layout_tables_get(handle(), &t);
    if (s != KVF_OK) return detail::last(s);
    layout_tables all{t.parallel, detail::to_vector(t.regions, t.regions_len), {},
                      detail::to_vector(t.parts, t.parts_len)};
    for (const auto& g : detail::to_vector(t.groups, t.groups_len))
      all.groups.push_back({static_cast<group_kind>(g.kind), g.tokens_per_block, g.kernel_blocks,
                            g.window, g.format});
    return all;
  }

  kvf_layout handle() const noexcept { return handle_.get(); }

#if KVFERRY_EXCEPTIONS
  static layout decode(byte_view encoded) { return try_decode(encoded).value(); }
  bytes encode() const { return try_encode().value(); }
  std::string describe(describe_as format = describe_as::text) const {
    return try_describe(format).value();
  }
  layout_tables tables() const { return try_tables().value(); }
#endif

 private:
  detail::owner<kvf_layout, detail::end_layout> handle_;
};

// Collects what a layout is made of; what is wrong with it shows when it is built. A builder can be
// copied, and built from again.
class layout_builder {
 public:
  // Which rank of which engine the layout is for.
  explicit layout_builder(const kvferry::parallel& place = {}) : parallel_(place) {}
  layout_builder(std::uint32_t tp_rank, std::uint32_t tp_size) {
    parallel_.tp_rank = tp_rank;
    parallel_.tp_size = tp_size;
  }

  // The next block table. The order is that in which block ids are given, and layers refer to it.
  layout_builder& add(const group& g) {
    return keep(groups_, detail::c_group(g));
  }
  layout_builder& add(dense_layers layers) { return keep(dense_, std::move(layers)); }
  layout_builder& add(latent_layers layers) { return keep(latent_, std::move(layers)); }
  layout_builder& add(state_layers layers) { return keep(state_, std::move(layers)); }
  // For an arrangement of one's own: regions, and parts that refer to them.
  layout_builder& add(const region& r) { return keep(regions_, r); }
  layout_builder& add(const part& p) { return keep(parts_, p); }

  result<layout> try_build() const {
    std::vector<kvf_dense_layers> dense;
    for (const auto& from : dense_) {
      dense.push_back(detail::c_layers<kvf_dense_layers>(from));
      auto& to = dense.back();
      to.kv_heads = from.kv_heads;
      to.k_head_size = from.k_head_size;
      to.v_head_size = from.v_head_size;
      to.elem_bytes = from.elem_bytes;
      to.order = static_cast<std::uint32_t>(from.order);
      to.kv = static_cast<std::uint32_t>(from.kv);
    }
    std::vector<kvf_latent_layers> latent;
    for (const auto& from : latent_) {
      latent.push_back(detail::c_layers<kvf_latent_layers>(from));
      auto& to = latent.back();
      to.size = from.size;
      to.elem_bytes = from.elem_bytes;
      to.role = from.role;
    }
    std::vector<kvf_state_layers> state;
    for (const auto& from : state_) {
      state.push_back(detail::c_layers<kvf_state_layers>(from));
      auto& to = state.back();
      to.conv_rows = from.conv_rows;
      to.conv_elem_bytes = from.conv_elem_bytes;
      to.conv_order = static_cast<std::uint32_t>(from.conv_order);
      to.ssm_heads = from.ssm_heads;
      to.ssm_head_bytes = from.ssm_head_bytes;
      to.ssm_elem_bytes = from.ssm_elem_bytes;
      to.conv = from.conv.data();
      to.conv_len = from.conv.size();
    }
    kvf_layout_options o = kvf_layout_options_default();
    o.parallel = parallel_;
    o.groups = groups_.data();
    o.groups_len = groups_.size();
    o.dense = dense.data();
    o.dense_len = dense.size();
    o.latent = latent.data();
    o.latent_len = latent.size();
    o.state = state.data();
    o.state_len = state.size();
    o.regions = regions_.data();
    o.regions_len = regions_.size();
    o.parts = parts_.data();
    o.parts_len = parts_.size();
    kvf_layout made{0};
    const kvf_status s = kvf_layout_create(&o, &made);
    if (s != KVF_OK) return detail::last(s);
    return layout(made);
  }

#if KVFERRY_EXCEPTIONS
  layout build() const { return try_build().value(); }
#endif

 private:
  template <class T>
  layout_builder& keep(std::vector<T>& all, T one) {
    all.push_back(std::move(one));
    return *this;
  }

  kvferry::parallel parallel_{};
  std::vector<kvf_group> groups_;
  std::vector<dense_layers> dense_;
  std::vector<latent_layers> latent_;
  std::vector<state_layers> state_;
  std::vector<region> regions_;
  std::vector<part> parts_;
};

// The heads that one rank holds, as dense_layers deals them out.
inline result<heads> try_shard(std::uint32_t heads_total, std::uint32_t tp_size,
                               std::uint32_t tp_rank) {
  heads h;
  const kvf_status s = kvf_layout_shard(heads_total, tp_size, tp_rank, &h.first, &h.count);
  if (s != KVF_OK) return detail::last(s);
  return h;
}

#if KVFERRY_EXCEPTIONS
inline heads shard(std::uint32_t heads_total, std::uint32_t tp_size, std::uint32_t tp_rank) {
  return try_shard(heads_total, tp_size, tp_rank).value();
}
#endif

}  // namespace kvferry

#endif
