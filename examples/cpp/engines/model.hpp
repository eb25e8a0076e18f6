// A model, as far as a KV cache is concerned, and one rank's share of its cache.
#ifndef ENGINES_MODEL_HPP
#define ENGINES_MODEL_HPP

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kvferry.hpp"
#include "options.hpp"

namespace engines {

// Spreads the bits of a number over all of it.
inline std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// What a model knows after some tokens. K and V of a position follow from all tokens up to it, so
// this one number stands for both: it says what the cache has to hold there, and two requests may
// share a block exactly if it is the same at the end of the block. (An engine that serves strangers
// takes a cryptographic hash.)
using context = std::uint64_t;
// contexts[i] is the one after token i.
using contexts = std::vector<context>;

inline context after(context before, std::uint64_t token) {
  return mix(before * 0x9e3779b97f4a7c15u + token + 1);
}

inline void append_tokens(contexts& to, std::uint64_t seed, std::size_t count) {
  for (std::size_t i = 0; i < count; i++)
    to.push_back(after(to.empty() ? 0 : to.back(), mix(seed + i) % 128'000));
}

using block_table = std::vector<std::uint32_t>;

// The paged cache of one rank: for each layer a row of blocks, in each block this rank's heads, for
// each head its tokens, for each token K and then V. To kvferry that is the layout "LBHNC" with
// slabs of cells.
class kv_memory {
 public:
  kv_memory(const options& o, unsigned rank, unsigned ranks)
      : o_(o),
        heads_(o.kv_heads / ranks),
        first_head_(rank * heads_),
        block_bytes_(std::size_t{heads_} * o.block_tokens * 2 * o.head_bytes()),
        layer_bytes_(o.blocks * block_bytes_),
        // Not written to here: a real cache is too large to be.
        bytes_(new std::uint8_t[o.layers * layer_bytes_]),
        row_(o.head_bytes() / sizeof(std::uint64_t)) {}

  std::size_t block_bytes() const { return block_bytes_; }

  // "Runs the model": K and V of the tokens `from` to `to` go to where the block table says.
  void compute(const block_table& blocks, const contexts& tokens, std::size_t from,
               std::size_t to) {
    each_row(blocks, from, to, [&](std::uint8_t* at, std::size_t token, std::uint64_t place) {
      std::memcpy(at, content(tokens[token], place), o_.head_bytes());
    });
  }

  // Bytes of the first `count` tokens that are not what this model would have computed.
  std::size_t wrong_bytes(const block_table& blocks, const contexts& tokens, std::size_t count) {
    std::size_t wrong = 0;
    each_row(blocks, 0, count, [&](std::uint8_t* at, std::size_t token, std::uint64_t place) {
      const void* expected = content(tokens[token], place);
      if (std::memcmp(at, expected, o_.head_bytes()) == 0) return;
      for (std::size_t i = 0; i < o_.head_bytes(); i++)
        wrong += at[i] != static_cast<const std::uint8_t*>(expected)[i];
    });
    return wrong;
  }

  void flip_a_byte(const block_table& blocks, std::size_t token) {
    std::size_t rows = 0;
    each_row(blocks, token, token + 1, [&](std::uint8_t* at, std::size_t, std::uint64_t) {
      if (rows++ == 0) at[o_.head_bytes() / 2] ^= 1;
    });
  }

  // Tells the connector what is where. Block tables, names and sizes are all it needs: what goes to
  // which rank of an engine of another shape follows from them.
  void register_with(kvferry::worker& worker) const {
    kvferry::kv_cache cache;
    for (unsigned layer = 0; layer < o_.layers; layer++) {
      kvferry::kv_tensor t;
      // The same in every engine with this model.
      t.layer = "model.layers." + std::to_string(layer) + ".attn";
      t.address = kvferry::range(bytes_.get() + layer * layer_bytes_, 0).addr;
      t.elem_bytes = o_.elem_bytes;
      t.k_head_size = o_.head_size;
      cache.tensors.push_back(t);
    }
    kvferry::group attention;
    attention.tokens_per_block = o_.block_tokens;
    cache.groups = {attention};
    cache.num_blocks = o_.blocks;
    cache.block_tokens = o_.block_tokens;
    cache.kv_heads = o_.kv_heads;  // of the model, not of the rank
    worker.register_kv(cache);
  }

 private:
  // Calls `visit` for K and V of every head that this rank has, in all layers, of these tokens.
  // `place` says which: it has the same value on every rank that has the same head.
  template <class F>
  void each_row(const block_table& blocks, std::size_t from, std::size_t to, F visit) {
    for (std::size_t token = from; token < to; token++) {
      const std::uint32_t block = blocks.at(token / o_.block_tokens);
      for (unsigned layer = 0; layer < o_.layers; layer++)
        for (unsigned head = 0; head < heads_; head++)
          for (unsigned kv = 0; kv < 2; kv++) {
            const std::size_t row =
                (std::size_t{head} * o_.block_tokens + token % o_.block_tokens) * 2 + kv;
            visit(
                bytes_.get() + layer * layer_bytes_ + block * block_bytes_ + row * o_.head_bytes(),
                token, (std::uint64_t{layer} * o_.kv_heads + first_head_ + head) * 2 + kv);
          }
    }
  }

  const std::uint64_t* content(context here, std::uint64_t place) {
    const std::uint64_t start = mix(here + mix(place));
    for (std::size_t i = 0; i < row_.size(); i++) row_[i] = mix(start + i * 0x9e3779b97f4a7c15u);
    return row_.data();
  }

  const options& o_;
  unsigned heads_, first_head_;
  std::size_t block_bytes_, layer_bytes_;
  std::unique_ptr<std::uint8_t[]> bytes_;
  std::vector<std::uint64_t> row_;
};

}  // namespace engines

#endif
