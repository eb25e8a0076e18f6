// kvferry.hpp in the style that throws: layouts, plans and queues. Two prefill ranks feed one
// decode rank, and one pushes; what every byte holds is known from its name. argv[1]: transport.
#include <poll.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <map>
#include <type_traits>

#include "check.hpp"

using namespace std::chrono_literals;

static_assert(!std::is_copy_constructible_v<kvferry::layout>);
static_assert(!std::is_copy_constructible_v<kvferry::plan>);
static_assert(std::is_nothrow_move_constructible_v<kvferry::plan>);
static_assert(std::is_nothrow_move_assignable_v<kvferry::queue>);
static_assert(std::is_copy_constructible_v<kvferry::layout_builder>);

namespace {

// 4 heads of 16 bytes, blocks of 4 tokens, 2 layers; pages [K, V][heads][tokens][16].
constexpr std::uint32_t all_heads = 4, tokens = 4, cell = 16, layers = 2, blocks = 64;
constexpr std::uint8_t nobody = 0xee;
constexpr auto limit = 30s;
using ids = std::vector<std::uint32_t>;

kvferry::group full() {
  kvferry::group g;
  g.tokens_per_block = tokens;
  return g;
}

kvferry::dense_layers dense(std::vector<kvferry::region> regions) {
  kvferry::dense_layers d;
  d.kv_heads = all_heads;
  d.k_head_size = cell;
  d.elem_bytes = 1;
  d.order = kvferry::page_order::hnd;
  d.kv = kvferry::kv_placement::planes;
  d.regions = std::move(regions);
  return d;
}

struct rank {
  std::string name;
  kvferry::heads mine;
  std::size_t page;
  kvferry::bytes memory;
  kvferry::agent agent;

  rank(const std::string& transport, const std::string& called, std::uint32_t tp_rank,
       std::uint32_t tp)
      : name(called),
        mine(kvferry::shard(all_heads, tp, tp_rank)),
        page(std::size_t{2} * mine.count * tokens * cell),
        memory(layers * blocks * page, nobody),
        agent(options_for(transport, called)),
        place_{tp_rank, tp} {
    agent.register_memory(kvferry::mem::dram, kvferry::range(memory.data(), memory.size()));
  }

  kvferry::layout layout() const {
    std::vector<kvferry::region> regions;
    for (std::size_t i = 0; i < layers; i++)
      regions.push_back(kvferry::pages(&memory[i * blocks * page], blocks));
    return kvferry::layout_builder(place_[0], place_[1])
        .add(full())
        .add(dense(std::move(regions)))
        .build();
  }

  // Calls visit(byte, layer, block, head, value that a producer has there) for each byte.
  template <class F>
  void each(F visit) {
    std::size_t at = 0;
    for (std::size_t layer = 0; layer < layers; layer++)
      for (std::size_t block = 0; block < blocks; block++)
        for (std::size_t kv = 0; kv < 2; kv++)
          for (std::size_t head = mine.first; head < mine.first + mine.count; head++)
            for (std::size_t i = 0; i < tokens * cell; i++)
              visit(memory[at++], layer, block, head,
                    [=](std::size_t from) { return value(layer, from, kv, head, i); });
  }

  void fill() {
    each([](std::uint8_t& byte, std::size_t, std::size_t block, std::size_t, auto value) {
      byte = value(block);
    });
  }
  void clear() { std::fill(memory.begin(), memory.end(), nobody); }

  // Block `local[i]` has the producer's `remote[i]` in heads of `moved`; all else is as it was.
  void expect(const ids& local, const ids& remote, kvferry::heads moved = {0, all_heads}) {
    std::map<std::size_t, std::size_t> from;
    for (std::size_t i = 0; i < local.size(); i++) from[local[i]] = remote[i];
    each([&](std::uint8_t& byte, std::size_t, std::size_t block, std::size_t head, auto value) {
      const auto source = from.find(block);
      const bool here =
          source != from.end() && head >= moved.first && head - moved.first < moved.count;
      CHECK(byte == (here ? value(source->second) : nobody));
    });
  }

 private:
  static std::uint8_t value(std::size_t layer, std::size_t block, std::size_t kv, std::size_t head,
                            std::size_t i) {
    const auto slab = ((layer * blocks + block) * 2 + kv) * all_heads + head;
    const auto v = known(3, slab * tokens * cell + i);
    return v == nobody ? std::uint8_t{0x11} : v;
  }

  std::array<std::uint32_t, 2> place_;
};

template <class F>
kvferry::failure thrown(F&& f) {
  try {
    f();
  } catch (const kvferry::error& e) {
    return {e.status(), e.what()};
  }
  return {kvferry::status::ok, ""};
}

kvferry::completion next(kvferry::queue& queue) {
  CHECK(queue.wait(limit));
  const auto done = queue.poll();
  CHECK(done.has_value());
  return *done;
}

const kvferry::names sources{"prefill-0", "prefill-1"};

void one_request(kvferry::queue& queue, const kvferry::plan& plan, rank& decode, rank* prefill) {
  const ids local{9, 3, 4, 63, 0}, remote{20, 21, 22, 0, 63};
  const kvferry::group_blocks request[] = {{local, remote, {}, {}}};
  const auto stats = plan.stats(request);
  CHECK(stats.bytes == 5 * layers * decode.page);
  kvferry::submit_options options;
  options.notification = "all in";
  options.deadline = limit;
  const auto ticket = queue.submit(plan, sources, request, options);
  const auto done = next(queue);
  CHECK(done.ticket == ticket && kvferry::outcome(done).ok());
  CHECK(done.bytes == stats.bytes && done.descriptors == stats.ranges);
  CHECK(done.descriptors_before == stats.ranges_before && std::strlen(done.backend) > 0);
  decode.expect(local, remote);
  for (int i = 0; i < 2; i++) {
    const auto told = prefill[i].agent.wait_notification(limit, "decode");
    CHECK(told && told->text() == "all in");
  }
}

// Many at once, waited for by their event fd, and one of them is wrong.
void many_requests(kvferry::queue& queue, const kvferry::plan& plan, rank& decode) {
  decode.clear();
  ids local, remote;
  std::map<std::uint64_t, bool> running;
  for (std::uint32_t i = 0; i < blocks; i++) {
    local.push_back(i);
    remote.push_back((i * 37 + 11) % blocks);
    const kvferry::group_blocks request[] = {{{&local.back(), 1}, {&remote.back(), 1}, {}, {}}};
    CHECK(running.emplace(queue.submit(plan, sources, request), true).second);
  }
  const ids beyond{blocks};
  const kvferry::group_blocks wrong[] = {{beyond, beyond, {}, {}}};
  const auto bad = queue.submit(plan, sources, wrong);
  running.emplace(bad, false);
  while (!running.empty()) {
    pollfd fd{queue.event_fd(), POLLIN, 0};
    CHECK(::poll(&fd, 1, 30000) == 1);
    std::array<kvferry::completion, 7> room;
    const auto n = queue.poll(room);
    CHECK(n > 0 && n <= room.size());
    for (std::size_t i = 0; i < n; i++) {
      const auto found = running.find(room[i].ticket);
      CHECK(found != running.end());
      const auto ended = kvferry::outcome(room[i]);
      CHECK(ended.ok() == found->second);
      if (!ended) {
        CHECK(ended.status() == kvferry::status::invalid_argument);
        CHECK(ended.error().message.find("64") != std::string::npos);
        CHECK(thrown([&] { ended.value(); }).status == kvferry::status::invalid_argument);
      }
      running.erase(found);
    }
  }
  CHECK(!queue.poll() && !queue.wait(0ms));
  decode.expect(local, remote);
  CHECK(thrown([&] { queue.cancel(bad + 1000); }).status == kvferry::status::not_found);
  queue.cancel(bad);
  const auto stats = queue.stats();
  CHECK(stats.submitted == blocks + 2 && stats.succeeded == blocks + 1 && stats.failed == 1);
}

// A queue of one is full with one, until its completion has been taken; closing drains.
void full_and_closing(const kvferry::plan& plan, rank& decode) {
  decode.clear();
  kvferry::queue_options options;
  options.capacity = 1;
  kvferry::queue queue(decode.agent, options);
  const ids local{5, 6, 7}, remote{1, 2, 40};
  const kvferry::group_blocks request[] = {{local, remote, {}, {}}};
  queue.submit(plan, sources, request);
  CHECK(thrown([&] { queue.submit(plan, sources, request); }).status == kvferry::status::busy);
  CHECK(kvferry::outcome(next(queue)).ok());
  decode.expect(local, remote);
  decode.clear();
  queue.submit(plan, sources, request);
  kvferry::queue moved(std::move(queue));
  CHECK(queue.handle().id == 0);
  moved.close(limit);
  decode.expect(local, remote);
  CHECK(moved.handle().id == 0);
  CHECK(thrown([&] { moved.poll(); }).status == kvferry::status::invalid_handle);
  CHECK(thrown([&] { moved.close(); }).status == kvferry::status::invalid_handle);
  // Destroyed while it has work: what was asked for is at rest when the destructor is through.
  kvferry::queue brief(decode.agent);
  brief.submit(plan, sources, request);
}

void push(rank& producer, rank& decode) {
  decode.clear();
  kvferry::plan_options options;
  options.direction = kvferry::direction::push;
  const kvferry::plan plan(producer.layout(), decode.layout(), options);
  kvferry::queue queue(producer.agent);
  const ids local{8, 9, 10}, remote{30, 2, 3};
  const kvferry::group_blocks request[] = {{local, remote, {}, {}}};
  queue.submit(plan, {"decode"}, request);
  CHECK(kvferry::outcome(next(queue)).ok());
  decode.expect(remote, local, producer.mine);
}

// The same copies as a plan of one's own lanes.
void own_lanes(const kvferry::plan& plan, rank& decode) {
  decode.clear();
  const auto tables = plan.tables();
  kvferry::custom_plan custom;
  custom.groups = tables.groups;
  custom.peers = tables.peers;
  custom.lanes = tables.lanes;
  const kvferry::plan own(custom);
  CHECK(own.tables().lanes.size() == tables.lanes.size());
  kvferry::queue queue(decode.agent);
  const ids local{1, 2}, remote{60, 61};
  const kvferry::group_blocks request[] = {{local, remote, {}, {}}};
  queue.submit(own, sources, request);
  CHECK(kvferry::outcome(next(queue)).ok());
  decode.expect(local, remote);
  custom.lanes[0].peer = 2;
  const auto f = thrown([&] { kvferry::plan p(custom); });
  CHECK(f.status == kvferry::status::invalid_argument && f.message.find("2") != std::string::npos);
}

void plans(const kvferry::plan& plan, const rank& decode, const rank* prefill) {
  const auto tables = plan.tables();
  CHECK(tables.direction == kvferry::direction::pull && tables.peers.size() == 2);
  for (std::uint32_t i = 0; i < 2; i++) {
    CHECK(tables.peers[i].tp_rank == i && tables.peers[i].notifiers == 1);
    CHECK(kvferry::role_of(tables.peers[i]) == kvferry::peer_role::transfer);
  }
  CHECK(plan.describe().find("reads from an engine of TP 2") != std::string::npos);
  CHECK(plan.describe(kvferry::describe_as::json).front() == '{');
  // Block 3 from block 20: for both layers, K and V, from both ranks, two heads.
  const ids local{3}, remote{20};
  const kvferry::group_blocks request[] = {{local, remote, {}, {}}};
  const auto found = plan.expand(request);
  CHECK(found.ranges.size() == 8 && found.stats.ranges == 8 && found.coverage.size() == 1);
  const auto base = kvferry::range(decode.memory.data(), 0).addr;
  for (const auto& r : found.ranges) {
    CHECK(r.len == 2 * tokens * cell && r.peer < 2);
    const auto& source = prefill[r.peer];
    const auto from = r.remote - kvferry::range(source.memory.data(), 0).addr;
    const auto to = r.local - base;
    // Layer, block and K or V of both ends, from where they are.
    CHECK(to / decode.page % blocks == 3 && from / source.page % blocks == 20);
    CHECK(to / decode.page / blocks == from / source.page / blocks);
    CHECK(to % decode.page / (decode.page / 2) == from % source.page / (source.page / 2));
    CHECK(to % (decode.page / 2) == r.peer * r.len && from % (source.page / 2) == 0);
  }
  // A list that begins later, stated and inferred from the number of tokens.
  const ids three{4, 5, 6}, tail{9, 8};
  CHECK(plan.stats(std::vector<kvferry::group_blocks>{{tail, three, 1, 0}}).bytes ==
        2 * layers * decode.page);
  CHECK(plan.expand(std::vector<kvferry::group_blocks>{{tail, three, {}, {}}}, 12)
            .coverage[0]
            .first == 4);
  const auto f = thrown([&] { kvferry::plan(decode.layout(), prefill[0].layout()); });
  CHECK(f.status != kvferry::status::ok && !f.message.empty());
}

void layouts(const rank& decode) {
  const auto made = decode.layout();
  const auto again = kvferry::layout::decode(made.encode());
  CHECK(again.encode() == made.encode() && again.describe() == made.describe());
  const auto tables = again.tables();
  CHECK(tables.parallel.tp_size == 1 && tables.groups.size() == 1);
  CHECK(tables.groups[0].kind == kvferry::group_kind::full);
  CHECK(tables.groups[0].tokens_per_block == tokens);
  CHECK(tables.regions.size() == layers && tables.regions[1].page_len == decode.page);
  CHECK(tables.parts.size() == 2 * layers);
  // The parts, said one by one, are the same layout.
  kvferry::layout_builder own(tables.parallel);
  own.add(tables.groups[0]);
  for (const auto& region : tables.regions) own.add(region);
  for (const auto& part : tables.parts) own.add(part);
  CHECK(own.build().encode() == made.encode());

  // The other kinds of layers, with layer numbers of their own.
  const auto at = [](std::uintptr_t address) { return reinterpret_cast<const void*>(address); };
  kvferry::group mla = full(), state;
  mla.kind = kvferry::group_kind::mla;
  state.kind = kvferry::group_kind::state;
  kvferry::latent_layers latent;
  latent.size = 576;
  latent.elem_bytes = 2;
  latent.layers = {7};
  latent.regions = {kvferry::pages(at(1 << 20), 8)};
  kvferry::state_layers ssm;
  ssm.group = 1;
  ssm.ssm_heads = 4;
  ssm.ssm_head_bytes = 128;
  ssm.ssm_elem_bytes = 2;
  ssm.conv = {{32, 1}, {8, 1}, {8, 1}};
  ssm.conv_rows = 3;
  ssm.conv_elem_bytes = 2;
  ssm.first_layer = 11;
  ssm.regions = {kvferry::pages(at(1 << 24), 8, 4096, 0, kvferry::mem::vram, 3)};
  const auto hybrid = kvferry::layout_builder().add(mla).add(state).add(latent).add(ssm).build();
  const auto parts = hybrid.tables().parts;
  CHECK(parts.size() == 1 + 3 + 1);  // the latent; x, B and C; the state
  CHECK(parts[0].layer == 7 && parts[0].cell_bytes == 576 * 2);
  CHECK(std::all_of(parts.begin() + 1, parts.end(), [](auto& p) { return p.layer == 11; }));
  const auto regions = hybrid.tables().regions;
  CHECK(regions[1].page_len == (32 + 8 + 8) * 3 * 2 + 4 * 128 && regions[1].page_stride == 4096);
  CHECK(regions[1].mem_kind == KVF_MEM_VRAM && regions[1].device == 3);

  const auto bad =
      thrown([&] { kvferry::layout_builder(0, 3).add(full()).add(dense({})).build(); });
  CHECK(bad.status == kvferry::status::invalid_argument);
  CHECK(thrown([] { kvferry::layout::decode("nothing of the kind"); }).status ==
        kvferry::status::peer_incompatible);
  CHECK(kvferry::shard(8, 4, 3).first == 6 && kvferry::shard(2, 4, 3).first == 1);
  CHECK(thrown([] { kvferry::shard(8, 3, 0); }).status == kvferry::status::invalid_argument);
  CHECK(thrown([] { kvferry::layout().encode(); }).status == kvferry::status::invalid_handle);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string transport = transport_of(argc, argv);
  rank prefill[] = {{transport, "prefill-0", 0, 2}, {transport, "prefill-1", 1, 2}};
  rank decode(transport, "decode", 0, 1);
  for (auto& p : prefill) {
    p.fill();
    CHECK(decode.agent.add_remote(p.agent.metadata()) == p.name);
    CHECK(p.agent.add_remote(decode.agent.metadata()) == "decode");
  }
  layouts(decode);
  const kvferry::layout theirs[] = {prefill[0].layout(), prefill[1].layout()};
  const kvferry::plan plan(decode.layout(), theirs);
  plans(plan, decode, prefill);
  {
    kvferry::queue_options options;
    options.slice_descriptors = 3;  // so that a request is several posts
    kvferry::queue queue(decode.agent, options);
    one_request(queue, plan, decode, prefill);
    many_requests(queue, plan, decode);
  }
  own_lanes(plan, decode);
  push(prefill[1], decode);
  full_and_closing(plan, decode);
  return 0;
}
