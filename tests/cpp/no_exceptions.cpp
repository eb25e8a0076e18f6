// kvferry.hpp without exceptions: every operation as a result. Compiled with -fno-exceptions and
// -fno-rtti. argv[1]: transport.
#include <algorithm>
#include <optional>

#include "check.hpp"

static_assert(KVFERRY_EXCEPTIONS == 0);

// Blocks 2 and 3 of its own cache to 0 and 1, through layout, plan and queue.
static void queued(kvferry::agent& agent, kvferry::bytes& data) {
  kvferry::group group;
  group.tokens_per_block = 10;
  kvferry::latent_layers layers;
  layers.size = 50;
  layers.elem_bytes = 1;
  layers.regions = {kvferry::pages(data.data(), 4)};
  kvferry::layout_builder builder;
  const auto without_group = builder.add(layers).try_build();
  CHECK(without_group.status() == kvferry::status::invalid_argument);
  auto layout = builder.add(group).try_build();
  CHECK(layout && layout->try_encode() && layout->try_describe() && layout->try_tables());
  const auto same = kvferry::layout::try_decode(*layout->try_encode());
  CHECK(same && *same->try_encode() == *layout->try_encode());
  auto plan = kvferry::plan::try_build(*layout, *layout);
  CHECK(plan && plan->try_describe() && plan->try_tables()->lanes.size() == 1);
  CHECK(!kvferry::plan::try_build(*layout, kvferry::layout()));
  CHECK(kvferry::try_shard(8, 4, 3)->first == 6 && !kvferry::try_shard(8, 3, 0));
  auto queue = kvferry::queue::try_create(agent);
  CHECK(queue);
  const std::uint32_t to[] = {0, 1}, from[] = {2, 3};
  const kvferry::group_blocks request[] = {{to, from, {}, {}}};
  CHECK(plan->try_stats(request)->ranges == 1 && plan->try_expand(request)->ranges[0].len == 1000);
  const auto ticket = queue->try_submit(*plan, {"alone"}, request);
  CHECK(ticket && *queue->try_wait(std::chrono::seconds(30)));
  const auto done = queue->try_poll();
  CHECK(done && *done && (*done)->ticket == *ticket && kvferry::outcome(**done));
  for (std::size_t i = 0; i < 1000; i++) CHECK(data[i] == known(7, 1000 + i));
  CHECK(*queue->try_poll() == std::nullopt && queue->try_event_fd() && queue->try_cancel(*ticket));
  CHECK(queue->try_stats()->succeeded == 1 && queue->try_close());
  CHECK(queue->try_close().status() == kvferry::status::invalid_handle);
}

static void pooled() {
  kvferry::block_pool_options options;
  CHECK(!kvferry::block_pool::try_create(options));
  options.blocks = 8;
  options.caching = true;
  options.events = true;
  auto pool = kvferry::block_pool::try_create(options);
  CHECK(pool && *pool->try_num_free() == 7);
  const auto ids = pool->try_allocate(2);
  CHECK(ids && ids->size() == 2 && (*ids)[1] == (*ids)[0] + 1);
  CHECK(pool->try_allocate(6).status() == kvferry::status::resource_exhausted);
  kvferry::cached_blocks what;
  what.blocks = *ids;
  what.hashes = "abcd";
  what.hash_len = 2;
  what.block_size = 4;
  const std::uint32_t groups[] = {0};
  CHECK(pool->try_cache(what) && pool->try_lookup("abcd", 2, groups)->blocks == *ids);
  CHECK(pool->try_keys((*ids)[0])->tokens == 4 && !*pool->try_is_writable((*ids)[0]));
  CHECK(pool->try_free(*ids) && *pool->try_reset() && pool->try_take_events()->events.size() == 2);
  CHECK(pool->try_close() && pool->try_stats().status() == kvferry::status::invalid_handle);
}

int main(int argc, char** argv) {
  pooled();
  const std::string transport = transport_of(argc, argv);
  auto created = kvferry::agent::try_create(options_for(transport, "alone"));
  CHECK(created.ok() && created.status() == kvferry::status::ok);
  kvferry::agent agent = *std::move(created);

  kvferry::bytes data(2 * 1000);
  for (std::size_t i = 1000; i < 2000; i++) data[i] = known(7, i);
  CHECK(agent.try_register_memory(kvferry::mem::dram, kvferry::range(data.data(), data.size())));
  const kvferry::strided_desc halves{kvferry::range(data.data(), 1).addr, 1000, 0, 1000, 2};
  auto local = agent.try_prepare_local(kvferry::mem::dram, halves);
  auto remote = agent.try_prepare_remote("alone", kvferry::mem::dram, halves);
  CHECK(local && remote && *local->try_size() == 2);
  const std::int32_t to[] = {0}, from[] = {1}, beyond[] = {2};
  const auto bad = agent.try_make_transfer(kvferry::op::read, *local, to, *remote, beyond);
  CHECK(!bad && bad.status() == kvferry::status::invalid_argument);
  CHECK(bad.error().message.find("remote index 2") != std::string::npos);
  auto transfer = agent.try_make_transfer(kvferry::op::read, *local, to, *remote, from);
  CHECK(transfer && transfer->try_post());
  const auto done = transfer->try_wait(std::chrono::seconds(30));
  CHECK(done && *done);
  for (std::size_t i = 0; i < 1000; i++) CHECK(data[i] == known(7, 1000 + i));
  std::fill(data.begin(), data.begin() + 1000, std::uint8_t{0});
  queued(agent, data);
  CHECK(transfer->try_release() && agent.try_close());
  CHECK(agent.try_close().status() == kvferry::status::invalid_handle);
  return 0;
}
