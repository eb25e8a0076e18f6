// kvferry::pool_client against a server: a step in one round trip, and what failures look like.
#include "../c/server.h"
#include "check.hpp"

using kvferry::status;

namespace {

kvferry::pool_client_options at(const server& s) {
  kvferry::pool_client_options options;
  options.address = s.address;
  return options;
}

void a_step(kvferry::pool_client& client) {
  kvferry::pool_batch step;
  const auto first = step.allocate(2, 0, "first");
  client.run(step);
  const auto blocks = step.ids(first).value();
  CHECK(blocks.size() == 2);

  kvf_cached_blocks cached{};
  cached.struct_size = sizeof cached;
  cached.block_size = 16;
  cached.blocks = blocks.data();
  cached.len = 2;
  cached.hashes = reinterpret_cast<const std::uint8_t*>("onetwo");
  cached.hash_len = 3;
  step.clear();
  step.cache(cached);
  const auto freed = step.free("first");
  const auto found = step.acquire("onetwosix", 3, {}, "second");
  const auto rest = step.allocate_up_to("second", 4);
  const auto counts = step.ref_counts(blocks);
  const auto numbers = step.stats();
  client.run(step);
  CHECK(step.value(freed).value() == 2);
  CHECK(step.value(found).value() == 2);
  CHECK(step.ids(found).value() == blocks);
  CHECK(step.ids(rest).value().size() == 2);
  CHECK(step.ids(counts).value() == std::vector<std::uint32_t>{1, 1});
  CHECK(step.stats(numbers).value().free == 45);
  step.clear();
  step.free("second");
  client.run(step);
}

void failures(kvferry::pool_client& client) {
  CHECK(client.try_allocate(100).status() == status::resource_exhausted);
  kvferry::pool_batch step;
  const std::uint32_t free_one[] = {9};
  const auto bad = step.free(free_one);
  const auto good = step.num_free();
  const auto failed = client.try_run(step);
  CHECK(failed.status() == status::invalid_state);
  CHECK(step.outcome(bad).status() == status::invalid_state);
  CHECK(step.outcome(bad).error().message.find("block 9") != std::string::npos);
  CHECK(step.value(good).value() == 49);
  CHECK(!client.try_run(step, true));
  CHECK(step.outcome(good).status() == status::canceled);
  try {
    client.free(free_one);
    CHECK(false);
  } catch (const kvferry::error& e) {
    CHECK(e.status() == status::invalid_state);
  }
  CHECK(kvferry::pool_client().try_num_free().status() == status::invalid_handle);
}

}  // namespace

int main() {
  server s = server_start("50", "true");
  {
    kvferry::pool_client client(at(s));
    a_step(client);
    failures(client);
    auto options = at(s);
    options.pool = "own";
    options.create = kvf_block_pool_options_default();
    options.create->blocks = 20;
    kvferry::pool_client own(options);
    const auto ids = own.allocate(3);
    CHECK(own.num_free() == 16);
    own.free(ids);
    own.close();
    CHECK(client.metrics().find("kv_cache_server_sessions 1\n") != std::string::npos);
    client.allocate(4);
    client = kvferry::pool_client(at(s));
    CHECK(client.num_free() == 49);
    client.shutdown_server();
    CHECK(server_end(&s) == 0);
  }
  return 0;
}
