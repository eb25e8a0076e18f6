// kvferry.hpp in the style that throws: both halves of the connector, in two engines of one process.
// argv[1]: transport.
#include <algorithm>
#include <chrono>
#include <type_traits>

#include "check.hpp"

using namespace std::chrono_literals;

static_assert(!std::is_copy_constructible_v<kvferry::worker>);
static_assert(std::is_nothrow_move_constructible_v<kvferry::worker>);

namespace {

constexpr std::size_t layers = 2, heads = 4, cell = 8, tokens = 16, blocks = 80;
constexpr std::size_t block_bytes = heads * tokens * 2 * cell, layer_bytes = blocks * block_bytes;
constexpr auto limit = 30s;

struct engine {
  kvferry::bytes cache;
  kvferry::agent agent;
  kvferry::scheduler scheduler;
  kvferry::worker worker;

  engine(const std::string& transport, const std::string& id)
      : cache(layers * layer_bytes, 0xee),
        agent(options_for(transport, id)),
        scheduler(scheduler_options(id)),
        worker(agent, worker_options(id)) {
    std::vector<std::string> names;
    for (std::size_t i = 0; i < layers; i++) names.push_back("layers." + std::to_string(i));
    std::vector<kvf_kv_tensor> tensors(layers);
    for (std::size_t i = 0; i < layers; i++) {
      tensors[i].layer = names[i].c_str();
      tensors[i].address = reinterpret_cast<std::uintptr_t>(cache.data()) + i * layer_bytes;
      tensors[i].elem_bytes = 1;
      tensors[i].k_head_size = cell;
    }
    kvf_group group{};
    group.kind = KVF_GROUP_FULL;
    group.tokens_per_block = tokens;
    kvf_kv_cache all = kvf_kv_cache_default();
    all.tensors = tensors.data();
    all.tensors_len = tensors.size();
    all.groups = &group;
    all.groups_len = 1;
    all.num_blocks = blocks;
    all.block_tokens = tokens;
    all.kv_heads = heads;
    worker.register_kv(all);
    const kvferry::bytes payload = worker.payload();
    const kvferry::rank_payload rank{{0, 0}, payload};
    scheduler.serve({rank});
  }

  static kvferry::scheduler_options scheduler_options(const std::string& id) {
    kvferry::scheduler_options o;
    o.engine_id = id;
    o.host = "127.0.0.1";
    kvferry::transfer_group group;
    group.tokens_per_block = tokens;
    o.groups = {group};
    return o;
  }
  static kvferry::worker_options worker_options(const std::string& id) {
    kvferry::worker_options o;
    o.engine_id = id;
    return o;
  }

  std::uint8_t* block(std::size_t layer, std::uint32_t id) {
    return cache.data() + layer * layer_bytes + id * block_bytes;
  }

  kvferry::worker_results step() {
    worker.step(scheduler.build_step());
    kvferry::worker_results results = worker.poll();
    scheduler.sent(results.sent);
    scheduler.received(results.received);
    return results;
  }
  kvferry::worker_results next() {
    for (;;) {
      kvferry::worker_results results = step();
      if (!results.empty()) return results;
      CHECK(worker.wait(limit));
    }
  }
};

using ids = std::vector<std::uint32_t>;

void a_request(const std::string& transport) {
  engine prefill(transport, "prefill"), decode(transport, "decode");
  const ids from{4, 5, 9}, to{71, 72};
  for (std::size_t layer = 0; layer < layers; layer++)
    for (std::size_t b = 0; b < from.size(); b++)
      for (std::size_t i = 0; i < block_bytes; i++)
        prefill.block(layer, from[b])[i] = static_cast<std::uint8_t>(7 * layer + 31 * b + i * i / 3);
  const kvferry::request_blocks computed{from, 0}, missing{to, 1};
  const auto one = [](const kvferry::request_blocks& b) {
    return kvferry::span<const kvferry::request_blocks>(&b, 1);
  };
  prefill.scheduler.add("p", std::string("{\"do_remote_decode\": true}"), 48);
  prefill.scheduler.allocated("p", one(computed), 0);
  prefill.step();
  const auto end = prefill.scheduler.finished("p", kvferry::finish::stop, one(computed), 48);
  prefill.step();
  decode.scheduler.add("d", end.params, 48);
  CHECK(decode.scheduler.match("d", 48, 16) == 32);
  decode.scheduler.allocated("d", one(missing), 32);
  const auto received = decode.next();
  CHECK(received.received == std::vector<std::string>{"d"} && received.failed.empty());
  CHECK(prefill.next().sent == std::vector<std::string>{"p"});
  for (std::size_t layer = 0; layer < layers; layer++)
    for (std::size_t b = 0; b < to.size(); b++)
      CHECK(std::equal(decode.block(layer, to[b]), decode.block(layer, to[b]) + block_bytes,
                       prefill.block(layer, from[b + 1])));
  CHECK(decode.worker.take_stats().find("\"bytes_transferred\":[4096]") != std::string::npos);
  CHECK(decode.worker.take_records().find("\"status\":\"ok\"") != std::string::npos);
  const auto state = decode.worker.state();
  CHECK(state.receives == 0 && state.peers == 1);
  decode.worker.close(1s);
  CHECK(!decode.worker.try_poll());
}

void refusals(const std::string& transport) {
  kvferry::agent agent(options_for(transport, "refusals"));
  kvferry::worker_options options;
  const auto nameless = kvferry::worker::try_create(agent, options);
  CHECK(!nameless && nameless.error().status == kvferry::status::invalid_argument);
  options.engine_id = "e";
  options.engine_ttl.reset();
  kvferry::worker worker(agent, options);
  const auto early = worker.try_payload();
  CHECK(!early && early.error().status == kvferry::status::invalid_state);
  CHECK(!worker.try_step(std::string("nonsense")));
  CHECK(worker.poll().empty() && !worker.wait(0ms));
}

}  // namespace

int main(int argc, char** argv) {
  const std::string transport = transport_of(argc, argv);
  a_request(transport);
  refusals(transport);
  return 0;
}
