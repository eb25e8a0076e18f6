// Layouts, plans and the queue through kvferry.hpp: two prefill ranks feed a decode rank, by
// content. argv[1]: transport.
#include <poll.h>

#include <type_traits>

#include "check.hpp"

using namespace std::chrono_literals;

namespace {

constexpr std::uint32_t heads = 4, tokens = 4, cell = 16, layers = 2, blocks = 32;

// A rank: pages [K, V][heads][tokens][16] of one layer after the other.
struct rank {
  kvferry::bytes memory;
  std::uint32_t first = 0, count = 0;
  kvferry::agent agent;
  kvferry::layout layout;

  rank(const std::string& transport, const std::string& name, std::uint32_t tp_rank,
       std::uint32_t tp) {
    count = heads / tp;
    first = tp_rank * count;
    memory.assign(layers * blocks * page(), 0xee);
    agent = kvferry::agent(options_for(transport, name));
    agent.register_memory(kvferry::mem::dram, kvferry::range(memory.data(), memory.size()));
    kvferry::layout_options o;
    o.parallel.tp_rank = tp_rank;
    o.parallel.tp_size = tp;
    o.groups = {{kvferry::group_kind::full, tokens}};
    kvferry::dense_layers d;
    d.kv_heads = heads;
    d.k_head_size = cell;
    d.elem_bytes = 1;
    d.order = kvferry::page_order::hnd;
    d.kv = kvferry::kv_placement::planes;
    for (std::size_t i = 0; i < layers; i++)
      d.regions.push_back(kvferry::pages(memory.data() + i * blocks * page(), blocks));
    o.dense = {d};
    layout = kvferry::layout(o);
  }

  std::size_t page() const { return std::size_t{2} * count * tokens * cell; }

  std::uint8_t& at(std::size_t layer, std::size_t block, std::size_t kv, std::size_t head,
                   std::size_t rest) {
    const std::size_t in_page = (kv * count + head - first) * tokens * cell + rest;
    return memory[(layer * blocks + block) * page() + in_page];
  }

  // Calls with each place of the rank.
  template <class F>
  void each(F f) {
    for (std::size_t l = 0; l < layers; l++)
      for (std::size_t b = 0; b < blocks; b++)
        for (std::size_t kv = 0; kv < 2; kv++)
          for (std::size_t h = first; h < first + count; h++)
            for (std::size_t i = 0; i < tokens * cell; i++) f(l, b, kv, h, i);
  }
};

std::uint8_t value(std::size_t l, std::size_t b, std::size_t kv, std::size_t h, std::size_t i) {
  const auto v = known(3, (((l * blocks + b) * 2 + kv) * heads + h) * tokens * cell + i);
  return v == 0xee ? 0x11 : v;
}

void layouts(const kvferry::layout& layout) {
  const auto same = kvferry::layout::decode(layout.encode());
  CHECK(same.encode() == layout.encode() && same.handle().id != layout.handle().id);
  CHECK(layout.regions().size() == layers && layout.regions()[1].page_len == 512);
  CHECK(layout.parts().size() == 2 * layers && layout.parts()[0].heads_total == heads);
  CHECK(layout.describe().find("rank 0 of 1") != std::string::npos);
  CHECK(layout.json().find("\"tp_size\":1") != std::string::npos);
  CHECK(kvferry::shard(8, 4, 1) == std::pair<std::uint32_t, std::uint32_t>(2, 2));
  CHECK(kvferry::try_shard(6, 4, 1).status() == kvferry::status::invalid_argument);
  CHECK(kvferry::layout::try_decode("KVFX").status() == kvferry::status::peer_incompatible);
  CHECK(kvferry::layout::try_decode(kvferry::byte_view()).status() ==
        kvferry::status::peer_incompatible);
  // Every kind of layer, and a part of its own.
  kvferry::layout_options o;
  o.parallel = {1, 2, 0, 1, 0, 1, 0};
  o.groups = {{kvferry::group_kind::mla, 16}, {kvferry::group_kind::state}};
  kvferry::latent_layers latent;
  latent.size = 576;
  latent.elem_bytes = 2;
  latent.layers = {4, 9};
  latent.regions = {kvferry::pages(nullptr, 8), kvferry::pages(nullptr, 8)};
  latent.regions[1].base = 1 << 20;
  kvferry::state_layers state;
  state.group = 1;
  state.conv = {{8, 1}, {2, 4}};
  state.conv_rows = 3;
  state.conv_elem_bytes = 2;
  state.conv_order = kvferry::conv_order::rows_first;
  state.ssm_heads = 4;
  state.ssm_head_bytes = 40;
  state.ssm_elem_bytes = 4;
  state.first_layer = 1;
  state.regions = {kvferry::pages(nullptr, 3)};
  state.regions[0].base = 2 << 20;
  o.latent = {latent};
  o.state = {state};
  kvferry::region own;
  own.base = 3 << 20;
  own.page_count = 2;
  own.page_len = 64;
  o.regions = {own};
  o.parts = {{0, 0, 7, KVF_ROLE_OTHER, 0, 1, 0, 1, 16, 4, 4, 4, 4}};
  const kvferry::layout hybrid(o);
  // The own part, two latents, two sub-projections and the state.
  CHECK(hybrid.parts().size() == 6 && hybrid.parts()[0].role == KVF_ROLE_OTHER);
  CHECK(hybrid.parts()[2].layer == 9 && hybrid.parts()[2].cell_bytes == 1152);
  CHECK(hybrid.parts()[4].head_first == 4 && hybrid.parts()[4].row_stride == 16);
  CHECK(hybrid.regions()[3].page_len == 3 * 16 + 2 * 40);
  o.latent[0].regions[0].page_len = 5;
  const auto bad = kvferry::layout::try_create(o);
  CHECK(bad.status() == kvferry::status::invalid_argument);
  CHECK(bad.error().message.find("page_len 5") != std::string::npos);
}

void plans(const kvferry::plan& plan, rank& decode, rank& source) {
  const std::vector<std::uint32_t> local{5}, remote{3};
  const std::vector<kvferry::group_blocks> groups{{local, remote}};
  const auto moved = plan.expand(groups);
  // Per rank and layer K and V, 128 bytes each: 2 heads of 4 tokens.
  CHECK(moved.ranges.size() == 2 * layers * 2 && moved.stats.bytes == 2 * layers * 2 * 128);
  CHECK(moved.coverage.size() == 1 && moved.coverage[0].end == tokens);
  bool found = false;
  for (const auto& r : moved.ranges)
    found |= r.peer == 1 && r.len == 128 &&
             r.local == kvferry::range(&decode.at(0, 5, 0, 2, 0), 1).addr &&
             r.remote == kvferry::range(&source.at(0, 3, 0, 2, 0), 1).addr;
  CHECK(found);
  CHECK(plan.peers().size() == 2 && plan.peers()[1].role == KVF_PEER_TRANSFER);
  CHECK(plan.groups().size() == 1 && plan.groups()[0].atom_tokens == tokens);
  CHECK(plan.describe().find("reads from an engine of TP 2") != std::string::npos);
  CHECK(plan.json().find("\"lanes\"") != std::string::npos);
  kvferry::custom_plan own;
  own.groups = plan.groups();
  own.peers = plan.peers();
  own.lanes = plan.lanes();
  const kvferry::plan copy(own);
  CHECK(copy.expand(groups).ranges.size() == moved.ranges.size());
  own.lanes[0].peer = 9;
  CHECK(kvferry::plan::try_create(own).status() == kvferry::status::invalid_argument);
  const std::vector<std::uint32_t> far{blocks};
  CHECK(plan.try_expand(std::vector<kvferry::group_blocks>{{far, remote}}).status() ==
        kvferry::status::invalid_argument);
  CHECK(plan.try_expand({}).status() == kvferry::status::invalid_argument);
  kvferry::group_blocks stated{local, remote, 7, 7};
  CHECK(plan.expand({&stated, 1}).ranges.size() == moved.ranges.size());
  CHECK(kvferry::plan().try_json().status() == kvferry::status::invalid_handle);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string transport = transport_of(argc, argv);
  static_assert(!std::is_copy_constructible_v<kvferry::queue>);
  static_assert(std::is_nothrow_move_constructible_v<kvferry::plan>);

  std::vector<rank> prefill;
  prefill.emplace_back(transport, "prefill-0", 0u, 2u);
  prefill.emplace_back(transport, "prefill-1", 1u, 2u);
  rank decode(transport, "decode", 0, 1);
  std::vector<kvferry::layout> remotes;
  for (auto& p : prefill) {
    p.each([&](auto... place) { p.at(place...) = value(place...); });
    decode.agent.add_remote(p.agent.metadata());
    remotes.push_back(kvferry::layout::decode(p.layout.encode()));
  }
  layouts(decode.layout);
  kvferry::plan plan(decode.layout, remotes);
  plans(plan, decode, prefill[1]);

  kvferry::queue_options options;
  options.slice_descriptors = 3;
  kvferry::queue queue(decode.agent, options);
  const std::vector<std::uint32_t> local{9, 3, 4, 31, 0}, remote{20, 21, 22, 0, 31};
  kvferry::submission request;
  request.agents = {"prefill-0", "prefill-1"};
  request.groups = {{local, remote}};
  request.notification = "all in";
  request.deadline = 30s;
  const auto ticket = queue.submit(plan, request);
  pollfd event{queue.event_fd(), POLLIN, 0};
  CHECK(::poll(&event, 1, 30000) == 1);
  auto done = queue.poll();
  CHECK(done.size() == 1 && done[0].ticket == ticket);
  if (!done[0].ok()) std::fprintf(stderr, "%s\n", done[0].error().message.c_str());
  CHECK(done[0].ok() && done[0].bytes == plan.expand(request.groups).stats.bytes);
  CHECK(std::strlen(done[0].backend) > 0);
  decode.each([&](auto l, auto b, auto kv, auto h, auto i) {
    std::uint8_t wanted = 0xee;
    for (std::size_t k = 0; k < local.size(); k++)
      if (local[k] == b) wanted = value(l, remote[k], kv, h, i);
    CHECK(decode.at(l, b, kv, h, i) == wanted);
  });
  for (auto& p : prefill)
    CHECK(p.agent.wait_notification(30s, "decode").value().text() == "all in");

  // More than one chunk of completions; one of them a failure.
  std::vector<std::uint64_t> tickets;
  request.notification.reset();
  for (std::uint32_t i = 0; i < 40; i++) {
    const std::vector<std::uint32_t> id{i == 7 ? blocks : i % blocks};
    request.groups = {{id, id}};
    tickets.push_back(queue.submit(plan, request));
  }
  std::size_t seen = 0, failed = 0;
  while (seen < tickets.size()) {
    CHECK(queue.wait(30s));
    for (const auto& c : queue.poll(17)) {
      seen++;
      if (c.ok()) continue;
      failed++;
      CHECK(c.ticket == tickets[7]);
      CHECK(c.error().status == kvferry::status::invalid_argument);
      CHECK(c.error().message.find("32") != std::string::npos);
    }
  }
  CHECK(seen == 40 && failed == 1 && queue.poll().empty());
  CHECK(queue.stats().succeeded == 40 && queue.stats().failed == 1);
  queue.cancel(ticket);
  CHECK(queue.try_cancel(1000).status() == kvferry::status::not_found);
  request.agents.pop_back();
  CHECK(queue.try_submit(plan, request).status() == kvferry::status::invalid_argument);

  auto moved = std::move(queue);
  CHECK(queue.try_poll().status() == kvferry::status::invalid_handle);
  moved.close(1s);
  CHECK(moved.try_stats().status() == kvferry::status::invalid_handle);
  return 0;
}
