// The blocks of a KV cache: who holds them, and where known prefixes are. Part of kvferry.hpp.
#ifndef KVFERRY_BLOCK_POOL_HPP
#define KVFERRY_BLOCK_POOL_HPP

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kvferry/result.hpp"
#include "kvferry/views.hpp"

namespace kvferry {

// Which free blocks an allocation gets; see KVF_POLICY_....
enum class pool_policy : std::uint32_t {
  best_known = KVF_POLICY_DEFAULT,
  lru = KVF_POLICY_LRU,
  windowed = KVF_POLICY_WINDOWED,
  elastic = KVF_POLICY_ELASTIC,
};

// Stands for "no block" in block tables; never allocated.
inline constexpr std::uint32_t null_block = 0;

// See kvf_block_pool_options. Set blocks; what is left at its default is the library's default.
struct block_pool_options {
  std::uint32_t blocks = 0;  // the null block included
  bool caching = false;
  pool_policy policy = pool_policy::best_known;
  double fraction = 0;
  bool events = false;
  std::uint64_t event_bytes = 0;
  bool tolerate_null = false;
};

// Full blocks of one request, with the hashes of their content; see kvf_cached_blocks. What is
// viewed is borrowed for the call.
struct cached_blocks {
  span<const std::uint32_t> blocks;
  byte_view hashes;  // one after the other
  std::size_t hash_len = 0;
  std::uint32_t block_size = 0;
  std::uint32_t group = 0;
  std::uint32_t first = 0;
  span<const std::uint8_t> mask;  // empty, or one for each block: 0 passes over it
  // For the event:
  byte_view parent;
  span<const std::uint32_t> tokens;
  std::uint64_t tag = 0;
};

// A key for the first part of a block's content; see kvf_cached_part.
struct cached_part {
  std::uint32_t block = 0;
  byte_view hash;
  std::uint32_t num_tokens = 0;
  std::uint32_t group = 0;
  bool replace = false;
  // For the event:
  std::uint32_t block_size = 0;
  byte_view parent;
  span<const std::uint32_t> tokens;
  std::uint64_t tag = 0;
};

// The longest known prefix: how many hashes have a block in every group, and these blocks, those of
// the first hash first, in the order of the groups.
struct prefix {
  std::size_t hashes = 0;
  std::vector<std::uint32_t> blocks;
};

struct block_key {
  bytes hash;
  std::uint32_t group = 0;
};

// The keys of a block, the primary one first, and the tokens of the prefix of that.
struct block_keys {
  std::vector<block_key> keys;
  std::uint32_t tokens = 0;
};

enum class block_change : std::uint32_t {
  stored = KVF_BLOCK_STORED,
  removed = KVF_BLOCK_REMOVED,
  cleared = KVF_BLOCKS_CLEARED,
};

// One change of the prefix index; see kvf_block_event. A newer library may have other changes:
// pass over what you do not know.
struct block_event {
  block_change change = block_change::cleared;
  std::vector<bytes> hashes;
  bytes parent;
  std::vector<std::uint32_t> tokens;
  std::uint32_t block_size = 0;
  std::uint32_t group = 0;
  std::uint64_t tag = 0;
};

struct block_events {
  std::vector<block_event> events;
  // How many before these were thrown away because nobody took them in time.
  std::uint64_t lost = 0;
};

using block_pool_stats = kvf_block_pool_stats;
using block_node = kvf_block_node;

namespace detail {

inline void end_block_pool(kvf_block_pool pool) { (void)kvf_block_pool_destroy(pool); }

using block_event_list = given<kvf_block_event_list, kvf_block_event_list_free>;

inline block_event to_event(const kvf_block_event& from) {
  block_event to;
  to.change = static_cast<block_change>(from.kind);
  to.hashes.reserve(from.count);
  for (std::size_t i = 0; i < from.count; i++)
    to.hashes.push_back(to_vector(from.hashes + i * from.hash_len, from.hash_len));
  to.parent = to_vector(from.parent, from.parent_len);
  to.tokens = to_vector(from.tokens, from.tokens_len);
  to.block_size = from.block_size;
  to.group = from.group;
  to.tag = from.tag;
  return to;
}

// NULL for nothing: how C says that there is no parent and no mask.
template <class T>
const T* data_or_null(const T* data, std::size_t size) noexcept {
  return size == 0 ? nullptr : data;
}

// What cached blocks and a cached part have in common, in a struct of C.
template <class C, class From>
C c_cached(const From& from) {
  C to{};
  to.struct_size = static_cast<std::uint32_t>(sizeof to);
  to.group = from.group;
  to.block_size = from.block_size;
  to.parent = data_or_null(from.parent.data(), from.parent.size());
  to.parent_len = from.parent.size();
  to.tokens = from.tokens.data();
  to.tokens_len = from.tokens.size();
  to.tag = from.tag;
  return to;
}

}  // namespace detail

// A fixed number of blocks, with reference counts, a free queue in eviction order, and an index of
// cached prefixes. What fails has changed nothing.
class block_pool {
 public:
  block_pool() noexcept = default;
  // Takes over a handle of C.
  explicit block_pool(kvf_block_pool handle) noexcept : handle_(handle) {}

  static result<block_pool> try_create(const block_pool_options& options) {
    kvf_block_pool_options o = kvf_block_pool_options_default();
    o.blocks = options.blocks;
    o.policy = static_cast<std::uint32_t>(options.policy);
    o.caching = options.caching ? 1 : 0;
    o.events = options.events ? 1 : 0;
    o.tolerate_null = options.tolerate_null ? 1 : 0;
    o.fraction = options.fraction;
    o.event_bytes = options.event_bytes;
    kvf_block_pool made{0};
    const kvf_status s = kvf_block_pool_create(&o, &made);
    if (s != KVF_OK) return detail::last(s);
    return block_pool(made);
  }

  kvf_block_pool handle() const noexcept { return handle_.get(); }

  // Ends the pool. Empty afterwards.
  result<void> try_close() { return detail::done(kvf_block_pool_destroy(handle_.take())); }

  // --- Blocks

  // Takes as many free blocks as there is room for. Allocates no memory.
  result<void> try_allocate(span<std::uint32_t> ids) {
    return detail::done(kvf_block_pool_allocate(handle(), ids.data(), ids.size()));
  }
  // For a request that grows: first what follows its last block without a gap.
  result<void> try_allocate_after(std::uint32_t last, span<std::uint32_t> ids) {
    return detail::done(kvf_block_pool_allocate_after(handle(), last, ids.data(), ids.size()));
  }
  result<std::vector<std::uint32_t>> try_allocate(std::size_t n) {
    std::vector<std::uint32_t> ids(n);
    const kvf_status s = kvf_block_pool_allocate(handle(), ids.data(), n);
    if (s != KVF_OK) return detail::last(s);
    return ids;
  }
  // Gives back one reference of each block; the last block of a prompt first.
  result<void> try_free(span<const std::uint32_t> ids) {
    return detail::done(kvf_block_pool_free(handle(), ids.data(), ids.size()));
  }
  // The same for blocks that somebody still reads until they are handed out again.
  result<void> try_unpin(span<const std::uint32_t> ids) {
    return detail::done(kvf_block_pool_unpin(handle(), ids.data(), ids.size()));
  }
  // Unpinned blocks that were handed out since.
  result<std::vector<std::uint32_t>> try_take_reused() {
    std::vector<std::uint32_t> all;
    std::uint32_t room[64];
    std::size_t n = 64;
    while (n == 64) {
      const kvf_status s = kvf_block_pool_take_reused(handle(), room, 64, &n);
      if (s != KVF_OK) return detail::last(s);
      all.insert(all.end(), room, room + n);
    }
    return all;
  }
  // Holds each block once more; free ones leave the queue.
  result<void> try_touch(span<const std::uint32_t> ids) {
    return detail::done(kvf_block_pool_touch(handle(), ids.data(), ids.size()));
  }
  result<std::vector<std::uint32_t>> try_ref_counts(span<const std::uint32_t> ids) const {
    std::vector<std::uint32_t> counts(ids.size());
    const kvf_status s =
        kvf_block_pool_ref_counts(handle(), ids.data(), ids.size(), counts.data());
    if (s != KVF_OK) return detail::last(s);
    return counts;
  }
  // Whether a holder may write to it: held once, and nothing of it is cached.
  result<bool> try_is_writable(std::uint32_t id) const {
    std::uint8_t writable = 0;
    const kvf_status s = kvf_block_pool_is_writable(handle(), id, &writable);
    if (s != KVF_OK) return detail::last(s);
    return writable != 0;
  }
  result<std::uint32_t> try_num_free() const {
    std::uint32_t n = 0;
    const kvf_status s = kvf_block_pool_num_free(handle(), &n);
    if (s != KVF_OK) return detail::last(s);
    return n;
  }
  // The free blocks in eviction order.
  result<std::vector<std::uint32_t>> try_free_blocks() const {
    std::vector<std::uint32_t> ids;
    std::size_t n = 0;
    do {
      ids.resize(n);
      const kvf_status s = kvf_block_pool_free_blocks(handle(), ids.data(), ids.size(), &n);
      if (s != KVF_OK) return detail::last(s);
    } while (n > ids.size());
    ids.resize(n);
    return ids;
  }

  // The blocks where they stand in memory, and one more node through which the free queue is
  // circular; see kvf_block_pool_nodes(). Read it while no call is under way.
  result<const block_node*> try_nodes() const {
    const block_node* nodes = nullptr;
    const kvf_status s = kvf_block_pool_nodes(handle(), &nodes);
    if (s != KVF_OK) return detail::last(s);
    return nodes;
  }

  // --- Cached prefixes

  // The longest known prefix of a chain of hashes, each of `hash_len` bytes.
  result<prefix> try_lookup(byte_view hashes, std::size_t hash_len,
                            span<const std::uint32_t> groups) const {
    return lookup(hashes, hash_len, groups, 0);
  }
  // The same, and touched in the same step: nobody can allocate it in between.
  result<prefix> try_acquire(byte_view hashes, std::size_t hash_len,
                             span<const std::uint32_t> groups) {
    return lookup(hashes, hash_len, groups, 1);
  }
  result<void> try_cache(const cached_blocks& what) {
    const auto c = c_blocks(what);
    if (!c) return c.error();
    return detail::done(kvf_block_pool_cache(handle(), &*c));
  }
  // Only the event, for blocks that are cached already and were used again.
  result<void> try_announce(const cached_blocks& what) {
    const auto c = c_blocks(what);
    if (!c) return c.error();
    return detail::done(kvf_block_pool_announce(handle(), &*c));
  }
  result<void> try_cache_partial(const cached_part& what) {
    auto c = detail::c_cached<kvf_cached_part>(what);
    c.block = what.block;
    c.num_tokens = what.num_tokens;
    c.replace = what.replace ? 1 : 0;
    c.hash = what.hash.data();
    c.hash_len = what.hash.size();
    return detail::done(kvf_block_pool_cache_partial(handle(), &c));
  }
  // Gives all keys of a block to another, which has none. No events.
  result<void> try_move_keys(std::uint32_t from, std::uint32_t to) {
    return detail::done(kvf_block_pool_move_keys(handle(), from, to));
  }
  // Takes all keys from these blocks, held or not.
  result<void> try_evict(span<const std::uint32_t> ids) {
    return detail::done(kvf_block_pool_evict(handle(), ids.data(), ids.size()));
  }
  // Empties the prefix index, if no block is held; whether it was done.
  result<bool> try_reset() {
    std::uint8_t done = 0;
    const kvf_status s = kvf_block_pool_reset(handle(), &done);
    if (s != KVF_OK) return detail::last(s);
    return done != 0;
  }
  result<block_keys> try_keys(std::uint32_t id) const {
    std::vector<kvf_block_key> room(2);
    block_keys found;
    std::size_t n = 0;
    while (true) {
      const kvf_status s =
          kvf_block_pool_keys(handle(), id, room.data(), room.size(), &n, &found.tokens);
      if (s != KVF_OK) return detail::last(s);
      if (n <= room.size()) break;
      room.resize(n);
    }
    for (std::size_t i = 0; i < n; i++)
      found.keys.push_back({detail::to_vector(room[i].hash, room[i].hash_len), room[i].group});
    return found;
  }

  // --- Events and numbers

  // The events since the last call; none if the pool does not record them.
  result<block_events> try_take_events() {
    detail::block_event_list list;
    const kvf_status s = kvf_block_pool_take_events(handle(), &list);
    if (s != KVF_OK) return detail::last(s);
    block_events taken;
    taken.events.reserve(list.len);
    for (std::size_t i = 0; i < list.len; i++)
      taken.events.push_back(detail::to_event(list.items[i]));
    taken.lost = list.lost;
    return taken;
  }
  result<block_pool_stats> try_stats() const {
    block_pool_stats stats{};
    const kvf_status s = kvf_block_pool_stats_get(handle(), &stats);
    if (s != KVF_OK) return detail::last(s);
    return stats;
  }

#if KVFERRY_EXCEPTIONS
  explicit block_pool(const block_pool_options& options)
      : block_pool(try_create(options).value()) {}
  void close() { try_close().value(); }
  void allocate(span<std::uint32_t> ids) { try_allocate(ids).value(); }
  void allocate_after(std::uint32_t last, span<std::uint32_t> ids) {
    try_allocate_after(last, ids).value();
  }
  std::vector<std::uint32_t> allocate(std::size_t n) { return try_allocate(n).value(); }
  void free(span<const std::uint32_t> ids) { try_free(ids).value(); }
  void unpin(span<const std::uint32_t> ids) { try_unpin(ids).value(); }
  std::vector<std::uint32_t> take_reused() { return try_take_reused().value(); }
  void touch(span<const std::uint32_t> ids) { try_touch(ids).value(); }
  std::vector<std::uint32_t> ref_counts(span<const std::uint32_t> ids) const {
    return try_ref_counts(ids).value();
  }
  bool is_writable(std::uint32_t id) const { return try_is_writable(id).value(); }
  std::uint32_t num_free() const { return try_num_free().value(); }
  std::vector<std::uint32_t> free_blocks() const { return try_free_blocks().value(); }
  const block_node* nodes() const { return try_nodes().value(); }
  prefix lookup(byte_view hashes, std::size_t hash_len,
                span<const std::uint32_t> groups) const {
    return try_lookup(hashes, hash_len, groups).value();
  }
  prefix acquire(byte_view hashes, std::size_t hash_len, span<const std::uint32_t> groups) {
    return try_acquire(hashes, hash_len, groups).value();
  }
  void cache(const cached_blocks& what) { try_cache(what).value(); }
  void announce(const cached_blocks& what) { try_announce(what).value(); }
  void cache_partial(const cached_part& what) { try_cache_partial(what).value(); }
  void move_keys(std::uint32_t from, std::uint32_t to) { try_move_keys(from, to).value(); }
  void evict(span<const std::uint32_t> ids) { try_evict(ids).value(); }
  bool reset() { return try_reset().value(); }
  block_keys keys(std::uint32_t id) const { return try_keys(id).value(); }
  block_events take_events() { return try_take_events().value(); }
  block_pool_stats stats() const { return try_stats().value(); }
#endif

 private:
  result<prefix> lookup(byte_view hashes, std::size_t hash_len, span<const std::uint32_t> groups,
                        std::uint8_t touch) const {
    const auto count = split(hashes, hash_len);
    if (!count) return count.error();
    prefix found;
    found.blocks.resize(*count * groups.size());
    const kvf_status s =
        kvf_block_pool_lookup(handle(), hashes.data(), hash_len, *count, groups.data(),
                              groups.size(), touch, found.blocks.data(), &found.hashes);
    if (s != KVF_OK) return detail::last(s);
    found.blocks.resize(found.hashes * groups.size());
    return found;
  }

  // C is given the number of blocks only, and takes the other lengths from it.
  static result<kvf_cached_blocks> c_blocks(const cached_blocks& from) {
    const auto count = split(from.hashes, from.hash_len);
    if (!count) return count.error();
    if (!from.blocks.empty() && *count != from.blocks.size())
      return mismatch(from.blocks.size(), "blocks", *count, "hashes");
    if (!from.mask.empty() && from.mask.size() != *count)
      return mismatch(*count, "hashes", from.mask.size(), "bytes of mask");
    auto to = detail::c_cached<kvf_cached_blocks>(from);
    to.first = from.first;
    to.blocks = detail::data_or_null(from.blocks.data(), from.blocks.size());
    to.len = *count;
    to.hashes = from.hashes.data();
    to.hash_len = from.hash_len;
    to.mask = detail::data_or_null(from.mask.data(), from.mask.size());
    return to;
  }

  static result<std::size_t> split(byte_view hashes, std::size_t hash_len) {
    if (hashes.size() == 0) return std::size_t{0};
    if (hash_len == 0 || hashes.size() % hash_len != 0)
      return mismatch(hashes.size(), "bytes", hash_len, "for each hash");
    return hashes.size() / hash_len;
  }

  static failure mismatch(std::size_t a, const char* what, std::size_t b, const char* other) {
    return {status::mismatch,
            std::to_string(a) + " " + what + ", but " + std::to_string(b) + " " + other};
  }

  detail::owner<kvf_block_pool, detail::end_block_pool> handle_;
};

}  // namespace kvferry

#endif
