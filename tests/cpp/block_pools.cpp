// kvferry.hpp in the style that throws: the block pool. What is expected follows from the rules of
// docs/block-pool.md.
#include <algorithm>
#include <numeric>
#include <type_traits>

#include "check.hpp"

using ids = std::vector<std::uint32_t>;
using kvferry::status;

static_assert(!std::is_copy_constructible_v<kvferry::block_pool>);
static_assert(std::is_nothrow_move_constructible_v<kvferry::block_pool>);
static_assert(std::is_nothrow_move_assignable_v<kvferry::block_pool>);

namespace {

template <class F>
kvferry::failure thrown(F&& f) {
  try {
    f();
  } catch (const kvferry::error& e) {
    return {e.status(), e.what()};
  }
  return {status::ok, ""};
}

kvferry::block_pool_options options_with(std::uint32_t blocks, kvferry::pool_policy policy) {
  kvferry::block_pool_options options;
  options.blocks = blocks;
  options.caching = true;
  options.policy = policy;
  options.events = true;
  return options;
}

kvferry::block_pool lru(std::uint32_t blocks) {
  return kvferry::block_pool(options_with(blocks, kvferry::pool_policy::lru));
}

// The hashes 'a', 'b', ... of 20 bytes each.
std::string hashes(char from, std::size_t n) {
  std::string all;
  for (std::size_t i = 0; i < n; i++) all.append(20, static_cast<char>(from + static_cast<char>(i)));
  return all;
}

kvferry::cached_blocks described(const ids& blocks, const std::string& hashes) {
  kvferry::cached_blocks what;
  what.blocks = blocks;
  what.hashes = hashes;
  what.hash_len = 20;
  what.block_size = 4;
  return what;
}

constexpr std::uint32_t one_group[] = {0};

void blocks() {
  auto pool = lru(10);
  CHECK(pool.num_free() == 9);
  CHECK(pool.allocate(3) == ids({1, 2, 3}));
  std::uint32_t room[2];
  pool.allocate(room);
  CHECK(room[0] == 4 && room[1] == 5);
  pool.touch(ids{2, 2});
  CHECK(pool.ref_counts(ids{1, 2, 6}) == ids({1, 3, 0}));
  CHECK(pool.is_writable(1) && !pool.is_writable(2) && !pool.is_writable(kvferry::null_block));
  pool.free(ids{3, 2, 1});
  CHECK(pool.free_blocks() == ids({3, 1, 6, 7, 8, 9}));
  CHECK(pool.nodes()[2].refs == 2 && pool.nodes()[10].refs == 6 && pool.nodes()[10].next == 3);
  pool.unpin(ids{5});
  CHECK(pool.take_reused().empty() && pool.free_blocks().back() == 5);
  CHECK(pool.allocate(7).back() == 5 && pool.take_reused() == ids({5}));
  const auto stats = pool.stats();
  CHECK(stats.blocks == 10 && stats.free == 0 && stats.allocated_blocks == 12);
}

void many_reused() {
  auto pool = lru(201);
  const auto all = pool.allocate(200);
  pool.unpin(all);
  pool.allocate(200);
  CHECK(pool.take_reused() == all);
}

// A growing request gets what follows its last block, and allocations get runs.
void adjacent() {
  kvferry::block_pool_options options;
  options.blocks = 40;
  kvferry::block_pool pool(options);
  ids all(39);
  pool.allocate(all);
  pool.free(ids{30, 5, 20, 7, 6, 31, 21, 22, 8});
  CHECK(pool.allocate(3) == ids({20, 21, 22}));
  std::uint32_t next[2];
  pool.allocate_after(4, next);
  CHECK(next[0] == 5 && next[1] == 6);
}

void prefixes() {
  auto pool = lru(20);
  const auto mine = pool.allocate(4);
  const std::string abcd = hashes('a', 4);
  auto what = described(mine, abcd);
  std::vector<std::uint32_t> tokens(16);
  std::iota(tokens.begin(), tokens.end(), 100u);
  what.tokens = tokens;
  what.parent = "before";
  what.first = 2;
  what.tag = 42;
  pool.cache(what);

  CHECK(pool.lookup(abcd + hashes('x', 3), 20, one_group).blocks == mine);
  CHECK(pool.lookup(hashes('x', 1) + abcd, 20, one_group).hashes == 0);
  const std::uint32_t both[] = {0, 1};
  CHECK(pool.lookup(abcd, 20, both).hashes == 0);
  CHECK(pool.lookup("", 20, one_group).hashes == 0);
  pool.free(ids(mine.rbegin(), mine.rend()));
  const auto held = pool.acquire(hashes('a', 2) + hashes('z', 1), 20, one_group);
  CHECK(held.hashes == 2 && held.blocks == ids({mine[0], mine[1]}));
  CHECK(pool.ref_counts(mine) == ids({1, 1, 0, 0}));

  const auto keys = pool.keys(mine[1]);
  CHECK(keys.tokens == 4 * (2 + 2) && keys.keys.size() == 1 && keys.keys[0].group == 0);
  CHECK(keys.keys[0].hash == kvferry::bytes(20, 'b'));
  pool.move_keys(mine[1], 9);
  CHECK(pool.keys(mine[1]).keys.empty() && pool.keys(9).tokens == 16);
  pool.evict(ids{9});
  CHECK(!pool.reset());
  pool.free(held.blocks);
  CHECK(pool.reset() && pool.lookup(abcd, 20, one_group).hashes == 0);

  const auto taken = pool.take_events();
  CHECK(taken.lost == 0 && taken.events.size() == 3);
  const auto& stored = taken.events[0];
  CHECK(stored.change == kvferry::block_change::stored && stored.hashes.size() == 4);
  for (std::size_t i = 0; i < 4; i++)
    CHECK(stored.hashes[i] == kvferry::bytes(20, static_cast<std::uint8_t>('a' + i)));
  CHECK(stored.tokens == tokens && stored.tag == 42 && stored.block_size == 4);
  CHECK(std::string(stored.parent.begin(), stored.parent.end()) == "before");
  CHECK(taken.events[1].change == kvferry::block_change::removed);
  CHECK(taken.events[1].hashes == std::vector<kvferry::bytes>{kvferry::bytes(20, 'b')});
  CHECK(taken.events[2].change == kvferry::block_change::cleared);
  CHECK(pool.take_events().events.empty());
}

// Masks, parts of blocks with several keys, and events without blocks.
void parts() {
  auto pool = lru(20);
  const auto mine = pool.allocate(3);
  const std::string abc = hashes('a', 3);
  auto what = described(mine, abc);
  const std::uint8_t mask[] = {1, 0, 1};
  what.mask = mask;
  what.group = 7;
  pool.cache(what);
  CHECK(pool.keys(mine[1]).keys.empty() && pool.keys(mine[2]).keys[0].group == 7);
  for (std::uint32_t i = 0; i < 4; i++) {
    const std::string hash = hashes(static_cast<char>('p' + i), 1);
    kvferry::cached_part part;
    part.block = mine[1];
    part.hash = hash;
    part.num_tokens = 5;
    pool.cache_partial(part);
  }
  CHECK(pool.keys(mine[1]).keys.size() == 4 && pool.keys(mine[1]).tokens == 5);
  kvferry::cached_part replacing;
  const std::string hash = hashes('w', 1);
  replacing.block = mine[1];
  replacing.hash = hash;
  replacing.num_tokens = 3;
  replacing.replace = true;
  pool.cache_partial(replacing);
  CHECK(pool.keys(mine[1]).keys.size() == 1 && pool.keys(mine[1]).tokens == 3);
  pool.take_events();
  what.blocks = {};
  what.mask = {};
  pool.announce(what);
  CHECK(pool.take_events().events[0].hashes.size() == 3);
}

void refusals() {
  CHECK(thrown([] { kvferry::block_pool pool(kvferry::block_pool_options{}); }).status ==
        status::invalid_argument);
  auto pool = lru(10);
  const auto mine = pool.allocate(5);
  const auto many = thrown([&] { pool.allocate(5); });
  CHECK(many.status == status::resource_exhausted);
  CHECK(many.message.find("4 of 9") != std::string::npos);
  CHECK(thrown([&] { pool.free(ids{mine[0], mine[0]}); }).status == status::invalid_state);
  CHECK(thrown([&] { pool.touch(ids{0}); }).status == status::invalid_argument);
  CHECK(pool.ref_counts(mine) == ids(5, 1));
  const std::string abc = hashes('a', 3);
  auto what = described(mine, abc);
  const auto uneven = thrown([&] { pool.cache(what); });
  CHECK(uneven.status == status::mismatch && uneven.message == "5 blocks, but 3 hashes");
  what.blocks = {};
  CHECK(thrown([&] { pool.cache(what); }).status == status::invalid_argument);
  const std::uint8_t mask[] = {1};
  what.blocks = kvferry::span<const std::uint32_t>(mine.data(), 3);
  what.mask = mask;
  CHECK(thrown([&] { pool.cache(what); }).status == status::mismatch);
  CHECK(thrown([&] { pool.lookup("abc", 2, one_group); }).status == status::mismatch);
  CHECK(thrown([&] { pool.lookup(abc, 20, {}); }).status == status::invalid_argument);

  kvferry::block_pool moved(std::move(pool));
  CHECK(moved.num_free() == 4);
  CHECK(thrown([&] { pool.num_free(); }).status == status::invalid_handle);
  moved.close();
  CHECK(thrown([&] { moved.close(); }).status == status::invalid_handle);
}

}  // namespace

int main() {
  blocks();
  many_reused();
  adjacent();
  prefixes();
  parts();
  refusals();
  return 0;
}
