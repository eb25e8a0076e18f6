// kvferry.hpp in the style that throws: both halves of the connector, in two engines of one process.
// argv[1]: transport.
#include <poll.h>

#include <algorithm>
#include <chrono>
#include <type_traits>

#include "check.hpp"

using namespace std::chrono_literals;

static_assert(!std::is_copy_constructible_v<kvferry::worker>);
static_assert(std::is_nothrow_move_constructible_v<kvferry::worker>);

namespace {

constexpr std::uint32_t layers = 2, heads = 4, cell = 8, tokens = 16, blocks = 80;
constexpr std::size_t block_bytes = heads * tokens * 2 * cell, layer_bytes = blocks * block_bytes;

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
    kvferry::kv_cache all;
    for (std::size_t i = 0; i < layers; i++) {
      kvferry::kv_tensor t;
      t.layer = "layers." + std::to_string(i);
      t.address = kvferry::range(cache.data() + i * layer_bytes, 0).addr;
      t.elem_bytes = 1;
      t.k_head_size = cell;
      all.tensors.push_back(t);
    }
    kvferry::group group;
    group.tokens_per_block = tokens;
    all.groups = {group};
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
      pollfd ready{worker.event_fd(), POLLIN, 0};
      CHECK(::poll(&ready, 1, 30000) == 1 && worker.wait(0ms));
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
  const auto records = decode.worker.take_record_list();
  CHECK(records.size() == 1 && decode.worker.take_record_list().empty());
  const kvferry::worker_record& r = records[0];
  CHECK(r.request_id == "d" && r.engine_id == "prefill" && r.message.empty());
  CHECK(r.kind == kvferry::record_kind::receive && r.status == kvferry::status::ok);
  CHECK(r.bytes == 4096 && r.descriptors != 0 && r.arrived_ns != 0);
  CHECK(r.queued_ns != 0 && r.queued_ns <= r.planned_ns && r.planned_ns <= r.posted_ns);
  CHECK(r.posted_ns <= r.finished_ns);
  CHECK(decode.worker.take_records().empty());
  // A request that nobody has, in the other form.
  kvferry::scheduler& again = decode.scheduler;
  again.add("e", end.params, 48);
  CHECK(again.match("e", 48, 16) == 32);
  again.allocated("e", one(missing), 32);
  CHECK(decode.next().failed == std::vector<std::string>{"e"});
  CHECK(decode.worker.take_records().find("\"status\":\"expired\"") != std::string::npos);
  CHECK(decode.worker.take_record_list().empty());
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
  pollfd quiet{worker.event_fd(), POLLIN, 0};
  CHECK(::poll(&quiet, 1, 0) == 0);
}

// Each field of a description arrives in the struct of C, and what cannot be is refused.
void descriptions(const std::string& transport) {
  kvferry::kv_cache all;
  kvferry::kv_tensor t;
  t.layer = "layers.7";
  t.group = 1;
  t.content = kvferry::kv_content::state;
  t.address = 2;
  t.elem_bytes = 3;
  t.k_head_size = 4;
  t.v_head_size = 5;
  t.kv_heads = 6;
  t.shape = {7, 8, 9};
  t.strides = {10, 11, 12};
  t.page_bytes = 13;
  t.num_blocks = 14;
  t.storage_address = 15;
  t.storage_bytes = 16;
  t.mem_kind = kvferry::mem::vram;
  t.device = 17;
  kvferry::kv_state s;
  s.kind = kvferry::state_kind::gdn;
  s.conv_channels_total = 18;
  s.conv_rows = 19;
  s.conv_elem_bytes = 20;
  s.ssm_shape = {21, 22};
  s.ssm_elem_bytes = 23;
  s.conv_channels = {24, 25, 26};
  t.state = s;
  all.tensors = {{}, t};
  kvferry::group full, state;
  full.tokens_per_block = 27;
  state.kind = kvferry::group_kind::state;
  state.kernel_blocks = 28;
  all.groups = {full, state};
  all.num_blocks = 29;
  all.block_tokens = 30;
  all.kv_heads = 31;
  all.blocks_per_logical = 32;
  all.layout = "LBNHC";
  all.attn_backend = "FLASH";
  all.slab_order = kvferry::slab_order::halves;
  all.pcp_size = 33;
  all.mla = true;
  const kvferry::detail::c_kv_cache made(all);
  const kvf_kv_cache& c = *made.get();
  CHECK(c.struct_size == sizeof c && c.num_blocks == 29 && c.block_tokens == 30);
  CHECK(c.kv_heads == 31 && c.blocks_per_logical == 32 && c.pcp_size == 33);
  CHECK(std::string(c.layout) == "LBNHC" && std::string(c.attn_backend) == "FLASH");
  CHECK(c.slab_order == KVF_SLAB_HALVES && c.mla == 1 && c.hybrid == 0);
  CHECK(c.groups_len == 2 && c.groups[0].tokens_per_block == 27);
  // Left alone it is blocks_per_logical.
  CHECK(c.groups[0].kernel_blocks == 0 && c.groups[1].kernel_blocks == 28);
  CHECK(c.groups[1].kind == KVF_GROUP_STATE);
  CHECK(c.tensors_len == 2 && c.tensors[0].state == nullptr && c.tensors[0].dims == 0);
  const kvf_kv_tensor& u = c.tensors[1];
  CHECK(std::string(u.layer) == "layers.7" && u.group == 1 && u.content == KVF_CONTENT_STATE);
  CHECK(u.address == 2 && u.elem_bytes == 3 && u.k_head_size == 4 && u.v_head_size == 5);
  CHECK(u.kv_heads == 6 && u.dims == 3 && u.shape[2] == 9 && u.shape[3] == 0);
  CHECK(u.strides[0] == 10 && u.strides[2] == 12 && u.page_bytes == 13 && u.num_blocks == 14);
  CHECK(u.storage_address == 15 && u.storage_bytes == 16);
  CHECK(u.mem_kind == KVF_MEM_VRAM && u.device == 17);
  const kvf_kv_state& v = *u.state;
  CHECK(v.kind == KVF_STATE_GDN && v.conv_channels_total == 18 && v.conv_rows == 19);
  CHECK(v.conv_elem_bytes == 20 && v.ssm_dims == 2 && v.ssm_shape[1] == 22);
  CHECK(v.ssm_elem_bytes == 23 && v.conv_channels_len == 3 && v.conv_channels[2] == 26);

  kvferry::agent agent(options_for(transport, "descriptions"));
  kvferry::worker worker(agent, engine::worker_options("e"));
  const auto refused = [&](const char* why) {
    const auto result = worker.try_register_kv(all);
    CHECK(!result && result.error().status == kvferry::status::invalid_argument);
    CHECK(result.error().message.find(why) != std::string::npos);
  };
  all.tensors[1].strides.pop_back();
  refused("3 dimensions with 2 strides");
  all.tensors[1].shape = all.tensors[1].strides = std::vector<std::uint64_t>(9, 1);
  all.tensors[0].layer = "layers.6";
  refused("dims is 9");
  all.groups[0].kernel_blocks = 5;
  refused("kernel_blocks 5");
}

}  // namespace

int main(int argc, char** argv) {
  const std::string transport = transport_of(argc, argv);
  a_request(transport);
  refusals(transport);
  descriptions(transport);
  return 0;
}
