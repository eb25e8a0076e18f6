// How one rank's KV cache lies in memory; plan.hpp makes plans of it. Part of kvferry.hpp.
#ifndef KVFERRY_LAYOUT_HPP
#define KVFERRY_LAYOUT_HPP

#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "kvferry/result.hpp"
#include "kvferry/views.hpp"

namespace kvferry {

// What the blocks of a group hold.
enum class group_kind : std::uint32_t {
  full = KVF_GROUP_FULL,
  sliding_window = KVF_GROUP_SLIDING_WINDOW,
  chunked_local = KVF_GROUP_CHUNKED_LOCAL,
  mla = KVF_GROUP_MLA,
  state = KVF_GROUP_STATE,
};

// Which of tokens and heads lies outside in a page.
enum class page_order : std::uint32_t { nhd = KVF_ORDER_NHD, hnd = KVF_ORDER_HND };

// Where K and V of a layer are in relation to each other.
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

// A rank's place in its engine.
struct parallel {
  std::uint32_t tp_rank = 0;
  std::uint32_t tp_size = 1;
  std::uint32_t pp_rank = 0;
  std::uint32_t pp_size = 1;
  std::uint32_t dcp_rank = 0;
  std::uint32_t dcp_size = 1;
  std::uint32_t dcp_interleave = 0;
};

// A row of equal pages. With layers, a page length of 0 is what the layer needs.
struct region {
  std::uint64_t base = 0;
  std::uint64_t page_count = 0;
  std::uint64_t page_stride = 0;
  std::uint64_t page_len = 0;
  mem kind = mem::dram;
  std::uint64_t device = 0;
};

// The region of `page_count` pages at an address of this process, or of a device.
inline region pages(const void* data, std::uint64_t page_count, mem kind = mem::dram,
                    std::uint64_t device = 0) noexcept {
  region r;
  r.base = static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(data));
  r.page_count = page_count;
  r.kind = kind;
  r.device = device;
  return r;
}

// Layers that share a block table.
struct group {
  group_kind kind = group_kind::full;
  std::uint32_t tokens_per_block = 0;
  std::uint32_t kernel_blocks = 1;
  std::uint32_t window = 0;
  std::uint32_t format = 0;
};

using part = kvf_part;
using sub_projection = kvf_sub_projection;

// Attention layers with heads, of one shape; one region each, or two with kv_placement::regions.
// Their numbers are `layers`, or count up from `first_layer`. See kvf_dense_layers.
struct dense_layers {
  std::uint32_t group = 0;
  std::uint32_t kv_heads = 0;
  std::uint32_t k_head_size = 0;
  std::uint32_t v_head_size = 0;  // 0 is k_head_size
  std::uint32_t elem_bytes = 0;
  page_order order = page_order::nhd;
  kv_placement kv = kv_placement::regions;
  std::vector<region> regions;
  std::vector<std::uint32_t> layers;
  std::uint32_t first_layer = 0;
};

// Layers with one vector per token, the same on every rank. See kvf_latent_layers.
struct latent_layers {
  std::uint32_t group = 0;
  std::uint32_t size = 0;
  std::uint32_t elem_bytes = 0;
  std::uint32_t role = KVF_ROLE_LATENT;
  std::vector<region> regions;
  std::vector<std::uint32_t> layers;
  std::uint32_t first_layer = 0;
};

// Layers with recurrent state. See kvf_state_layers.
struct state_layers {
  std::uint32_t group = 0;
  std::vector<sub_projection> conv;
  std::uint32_t conv_rows = 0;
  std::uint32_t conv_elem_bytes = 0;
  kvferry::conv_order conv_order = kvferry::conv_order::channels_first;
  std::uint32_t ssm_heads = 0;
  std::uint32_t ssm_head_bytes = 0;
  std::uint32_t ssm_elem_bytes = 0;
  std::vector<region> regions;
  std::vector<std::uint32_t> layers;
  std::uint32_t first_layer = 0;
};

// What a layout is made of; see kvf_layout_options. Regions and parts are for arrangements of the
// engine's own.
struct layout_options {
  kvferry::parallel parallel;
  std::vector<group> groups;
  std::vector<dense_layers> dense;
  std::vector<latent_layers> latent;
  std::vector<state_layers> state;
  std::vector<region> regions;
  std::vector<part> parts;
};

namespace detail {

inline void end_layout(kvf_layout layout) { (void)kvf_layout_destroy(layout); }

using layout_tables = given<kvf_layout_tables, kvf_layout_tables_free>;

inline kvf_region c_region(const region& r) noexcept {
  return {
      r.base, r.page_stride, r.page_len, r.page_count, r.device, static_cast<std::uint32_t>(r.kind),
      0};
}

// A kvf_layout_options that borrows from layout_options.
class c_layout_options {
 public:
  explicit c_layout_options(const layout_options& o) : options_(kvf_layout_options_default()) {
    const auto& p = o.parallel;
    options_.parallel = {p.tp_rank,  p.tp_size,  p.pp_rank,        p.pp_size,
                         p.dcp_rank, p.dcp_size, p.dcp_interleave, 0};
    for (const auto& g : o.groups)
      groups_.push_back({static_cast<std::uint32_t>(g.kind), g.tokens_per_block, g.kernel_blocks,
                         g.window, g.format, 0});
    for (const auto& d : o.dense) dense_.push_back(c_dense(d));
    for (const auto& l : o.latent) latent_.push_back(c_latent(l));
    for (const auto& s : o.state) state_.push_back(c_state(s));
    options_.groups = groups_.data();
    options_.groups_len = groups_.size();
    options_.dense = dense_.data();
    options_.dense_len = dense_.size();
    options_.latent = latent_.data();
    options_.latent_len = latent_.size();
    options_.state = state_.data();
    options_.state_len = state_.size();
    options_.regions = keep(o.regions);
    options_.regions_len = o.regions.size();
    options_.parts = o.parts.data();
    options_.parts_len = o.parts.size();
  }
  c_layout_options(const c_layout_options&) = delete;
  c_layout_options& operator=(const c_layout_options&) = delete;
  const kvf_layout_options* get() const noexcept { return &options_; }

 private:
  const kvf_region* keep(const std::vector<region>& all) {
    std::vector<kvf_region>& kept = regions_.emplace_back();
    kept.reserve(all.size());
    for (const auto& r : all) kept.push_back(c_region(r));
    return kept.data();
  }

  // Numbers and memory of a set of layers.
  template <class C, class L>
  void place(C& c, const L& l) {
    c.group = l.group;
    c.first_layer = l.first_layer;
    c.layers = l.layers.data();
    c.layers_len = l.layers.size();
    c.regions = keep(l.regions);
    c.regions_len = l.regions.size();
  }

  kvf_dense_layers c_dense(const dense_layers& d) {
    kvf_dense_layers c{};
    place(c, d);
    c.kv_heads = d.kv_heads;
    c.k_head_size = d.k_head_size;
    c.v_head_size = d.v_head_size;
    c.elem_bytes = d.elem_bytes;
    c.order = static_cast<std::uint32_t>(d.order);
    c.kv = static_cast<std::uint32_t>(d.kv);
    return c;
  }

  kvf_latent_layers c_latent(const latent_layers& l) {
    kvf_latent_layers c{};
    place(c, l);
    c.size = l.size;
    c.elem_bytes = l.elem_bytes;
    c.role = l.role;
    return c;
  }

  kvf_state_layers c_state(const state_layers& s) {
    kvf_state_layers c{};
    place(c, s);
    c.conv = s.conv.data();
    c.conv_len = s.conv.size();
    c.conv_rows = s.conv_rows;
    c.conv_elem_bytes = s.conv_elem_bytes;
    c.conv_order = static_cast<std::uint32_t>(s.conv_order);
    c.ssm_heads = s.ssm_heads;
    c.ssm_head_bytes = s.ssm_head_bytes;
    c.ssm_elem_bytes = s.ssm_elem_bytes;
    return c;
  }

  kvf_layout_options options_;
  std::vector<kvf_group> groups_;
  std::vector<kvf_dense_layers> dense_;
  std::vector<kvf_latent_layers> latent_;
  std::vector<kvf_state_layers> state_;
  std::deque<std::vector<kvf_region>> regions_;  // pointers into it stay valid as it grows
};

// A description by the library, as text or JSON.
template <class H>
result<std::string> described(kvf_status (*describe)(H, std::uint32_t, kvf_buffer*), H handle,
                              std::uint32_t format) {
  buffer text;
  const kvf_status s = describe(handle, format, &text);
  if (s != KVF_OK) return last(s);
  return to_string(text);
}

}  // namespace detail

// One rank's KV cache. Plans made of it go on without it.
class layout {
 public:
  layout() noexcept = default;
  // Takes over a handle of C.
  explicit layout(kvf_layout handle) noexcept : handle_(handle) {}

  static result<layout> try_create(const layout_options& options) {
    const detail::c_layout_options o(options);
    kvf_layout handle{0};
    const kvf_status s = kvf_layout_create(o.get(), &handle);
    if (s != KVF_OK) return detail::last(s);
    return layout(handle);
  }

  // From the bytes of encode(), which need not be trusted.
  static result<layout> try_decode(byte_view encoded) {
    kvf_layout handle{0};
    const kvf_status s = kvf_layout_decode(encoded.data(), encoded.size(), &handle);
    if (s != KVF_OK) return detail::last(s);
    return layout(handle);
  }

  kvf_layout handle() const noexcept { return handle_.get(); }

  // The layout as bytes, for exchange between ranks.
  result<bytes> try_encode() const {
    detail::buffer encoded;
    const kvf_status s = kvf_layout_encode(handle(), &encoded);
    if (s != KVF_OK) return detail::last(s);
    return detail::to_bytes(encoded);
  }

  // In words, for people.
  result<std::string> try_describe() const {
    return detail::described(kvf_layout_describe, handle(), KVF_DESCRIBE_TEXT);
  }
  // For programs.
  result<std::string> try_json() const {
    return detail::described(kvf_layout_describe, handle(), KVF_DESCRIBE_JSON);
  }

  // The regions, with every default filled in.
  result<std::vector<region>> try_regions() const {
    detail::layout_tables t;
    const kvf_status s = kvf_layout_tables_get(handle(), &t);
    if (s != KVF_OK) return detail::last(s);
    std::vector<region> all;
    all.reserve(t.regions_len);
    for (std::size_t i = 0; i < t.regions_len; i++) {
      const auto& r = t.regions[i];
      all.push_back({r.base, r.page_count, r.page_stride, r.page_len, static_cast<mem>(r.mem_kind),
                     r.device});
    }
    return all;
  }

  // What the pages hold.
  result<std::vector<part>> try_parts() const {
    detail::layout_tables t;
    const kvf_status s = kvf_layout_tables_get(handle(), &t);
    if (s != KVF_OK) return detail::last(s);
    return t.parts_len == 0 ? std::vector<part>()
                            : std::vector<part>(t.parts, t.parts + t.parts_len);
  }

#if KVFERRY_EXCEPTIONS
  explicit layout(const layout_options& options) : layout(try_create(options).value()) {}
  static layout decode(byte_view encoded) { return try_decode(encoded).value(); }
  bytes encode() const { return try_encode().value(); }
  std::string describe() const { return try_describe().value(); }
  std::string json() const { return try_json().value(); }
  std::vector<region> regions() const { return try_regions().value(); }
  std::vector<part> parts() const { return try_parts().value(); }
#endif

 private:
  detail::owner<kvf_layout, detail::end_layout> handle_;
};

// The heads that one rank holds, as dense_layers deals them out: the first, and their number.
inline result<std::pair<std::uint32_t, std::uint32_t>> try_shard(std::uint32_t heads_total,
                                                                 std::uint32_t tp_size,
                                                                 std::uint32_t tp_rank) {
  std::uint32_t first = 0, count = 0;
  const kvf_status s = kvf_layout_shard(heads_total, tp_size, tp_rank, &first, &count);
  if (s != KVF_OK) return detail::last(s);
  return std::pair<std::uint32_t, std::uint32_t>(first, count);
}

#if KVFERRY_EXCEPTIONS
inline std::pair<std::uint32_t, std::uint32_t> shard(std::uint32_t heads_total,
                                                     std::uint32_t tp_size, std::uint32_t tp_rank) {
  return try_shard(heads_total, tp_size, tp_rank).value();
}
#endif

}  // namespace kvferry

#endif
