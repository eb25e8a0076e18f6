// What an engine knows about its KV cache, as data: what worker::register_kv() takes. Part of
// kvferry.hpp.
#ifndef KVFERRY_KV_CACHE_HPP
#define KVFERRY_KV_CACHE_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "kvferry/layout.hpp"
#include "kvferry/result.hpp"
#include "kvferry/views.hpp"

namespace kvferry {

// What a layer's cache holds; see KVF_CONTENT_....
enum class kv_content : std::uint32_t {
  heads = KVF_CONTENT_HEADS,
  latent = KVF_CONTENT_LATENT,
  state = KVF_CONTENT_STATE,
};

// Order of K and V inside one head of a block; see KVF_SLAB_....
enum class slab_order : std::uint32_t {
  cells = KVF_SLAB_CELLS,
  halves = KVF_SLAB_HALVES,
  opaque = KVF_SLAB_OPAQUE,
};

// How the channels of a convolution state fall into sub-projections; see KVF_STATE_....
enum class state_kind : std::uint32_t {
  stated = KVF_STATE_STATED,
  mamba1 = KVF_STATE_MAMBA1,
  mamba2 = KVF_STATE_MAMBA2,
  gdn = KVF_STATE_GDN,
};

// Recurrent state of one layer on this rank; see kvf_kv_state.
struct kv_state {
  state_kind kind = state_kind::stated;
  std::uint32_t conv_channels_total = 0;
  std::uint32_t conv_rows = 0;
  std::uint32_t conv_elem_bytes = 0;
  std::vector<std::uint32_t> ssm_shape;  // heads first
  std::uint32_t ssm_elem_bytes = 0;
  std::vector<std::uint32_t> conv_channels;  // with state_kind::stated
};

// One layer's cache; see kvf_kv_tensor. Zero is the library's default.
struct kv_tensor {
  std::string layer;  // the same in every engine that serves the model
  std::uint32_t group = 0;
  kv_content content = kv_content::heads;
  std::uint64_t address = 0;  // of block 0
  std::uint32_t elem_bytes = 0;
  std::uint32_t k_head_size = 0;
  std::uint32_t v_head_size = 0;
  std::uint32_t kv_heads = 0;
  // None: blocks that follow each other, each arranged as `layout` of the cache says.
  std::vector<std::uint64_t> shape;
  std::vector<std::uint64_t> strides;  // in bytes
  std::uint64_t page_bytes = 0;
  std::uint64_t num_blocks = 0;
  std::uint64_t storage_address = 0;
  std::uint64_t storage_bytes = 0;
  mem mem_kind = mem::dram;
  std::uint64_t device = 0;
  std::optional<kv_state> state;
};

// The KV cache of one rank; see kvf_kv_cache. Set tensors, groups, num_blocks, block_tokens and
// kv_heads.
struct kv_cache {
  std::vector<kv_tensor> tensors;
  // Block tables, in the order in which the engine lists its block ids. Their kernel_blocks need not
  // be set: blocks_per_logical says it for all.
  std::vector<group> groups;
  std::uint64_t num_blocks = 0;
  std::uint32_t block_tokens = 0;
  std::uint32_t kv_heads = 0;  // of the model, not of the rank
  std::uint32_t blocks_per_logical = 0;
  std::string layout;  // empty is "LBHNC"
  std::string attn_backend;
  kvferry::slab_order slab_order = kvferry::slab_order::cells;
  std::uint32_t pcp_size = 0;
  bool mla = false;
  bool hybrid = false;
};

namespace detail {

// As C takes it. Borrows from the cache that it was made of.
class c_kv_cache {
 public:
  explicit c_kv_cache(const kv_cache& from) {
    states_.reserve(from.tensors.size());  // tensors point into it
    for (const auto& t : from.tensors) tensors_.push_back(tensor(t));
    for (const auto& g : from.groups) {
      groups_.push_back(c_group(g));
      if (g.kernel_blocks == 1) groups_.back().kernel_blocks = 0;
    }
    c_.tensors = tensors_.data();
    c_.tensors_len = tensors_.size();
    c_.groups = groups_.data();
    c_.groups_len = groups_.size();
    c_.num_blocks = from.num_blocks;
    c_.blocks_per_logical = from.blocks_per_logical;
    c_.block_tokens = from.block_tokens;
    c_.kv_heads = from.kv_heads;
    c_.layout = from.layout.empty() ? nullptr : from.layout.c_str();
    c_.attn_backend = from.attn_backend.c_str();
    c_.slab_order = static_cast<std::uint32_t>(from.slab_order);
    c_.pcp_size = from.pcp_size;
    c_.mla = from.mla ? 1 : 0;
    c_.hybrid = from.hybrid ? 1 : 0;
  }
  c_kv_cache(const c_kv_cache&) = delete;
  c_kv_cache& operator=(const c_kv_cache&) = delete;

  // What cannot be said in C: as many dimensions in `shape` as in `strides`.
  static result<void> check(const kv_cache& cache) {
    for (const auto& t : cache.tensors)
      if (t.shape.size() != t.strides.size())
        return failure{status::invalid_argument,
                       t.layer + ": " + std::to_string(t.shape.size()) + " dimensions with " +
                           std::to_string(t.strides.size()) + " strides"};
    return {};
  }

  const kvf_kv_cache* get() const noexcept { return &c_; }

 private:
  kvf_kv_tensor tensor(const kv_tensor& from) {
    kvf_kv_tensor to{};
    to.layer = from.layer.c_str();
    to.group = from.group;
    to.content = static_cast<std::uint32_t>(from.content);
    to.address = from.address;
    to.storage_address = from.storage_address;
    to.storage_bytes = from.storage_bytes;
    to.page_bytes = from.page_bytes;
    to.num_blocks = from.num_blocks;
    to.device = from.device;
    to.mem_kind = static_cast<std::uint32_t>(from.mem_kind);
    to.elem_bytes = from.elem_bytes;
    to.dims = put(from.shape, to.shape);
    put(from.strides, to.strides);
    to.k_head_size = from.k_head_size;
    to.v_head_size = from.v_head_size;
    to.kv_heads = from.kv_heads;
    if (from.state) to.state = &states_.emplace_back(state(*from.state));
    return to;
  }

  static kvf_kv_state state(const kv_state& from) {
    kvf_kv_state to{};
    to.kind = static_cast<std::uint32_t>(from.kind);
    to.conv_channels_total = from.conv_channels_total;
    to.conv_rows = from.conv_rows;
    to.conv_elem_bytes = from.conv_elem_bytes;
    to.ssm_dims = put(from.ssm_shape, to.ssm_shape);
    to.ssm_elem_bytes = from.ssm_elem_bytes;
    to.conv_channels = from.conv_channels.data();
    to.conv_channels_len = from.conv_channels.size();
    return to;
  }

  // How many there are; the library refuses more than there is room for.
  template <class T, std::size_t N>
  static std::uint32_t put(const std::vector<T>& from, T (&to)[N]) {
    std::copy_n(from.begin(), std::min(from.size(), N), std::begin(to));
    return static_cast<std::uint32_t>(from.size());
  }

  std::vector<kvf_kv_state> states_;
  std::vector<kvf_kv_tensor> tensors_;
  std::vector<kvf_group> groups_;
  kvf_kv_cache c_ = kvf_kv_cache_default();
};

}  // namespace detail

}  // namespace kvferry

#endif
