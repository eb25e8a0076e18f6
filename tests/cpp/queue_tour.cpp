// The C++ snippets of docs/queue.md, in one program: tests/docs.rs holds the two together.
// argv[1]: transport.
#include <cstring>
#include <iostream>

#include "kvferry.hpp"

using namespace std::chrono_literals;

namespace {

constexpr std::size_t layers = 4, blocks = 32, page = 2 * 8 * 16 * 64 * 2;

kvferry::layout_options shape_of(const std::vector<std::uint8_t>& cache) {
  kvferry::dense_layers dense;
  dense.kv_heads = 8;
  dense.k_head_size = 64;
  dense.elem_bytes = 2;
  dense.order = kvferry::page_order::hnd;
  dense.kv = kvferry::kv_placement::planes;
  for (std::size_t i = 0; i < layers; i++)
    dense.regions.push_back(kvferry::pages(cache.data() + i * blocks * page, blocks));
  kvferry::layout_options options;
  options.groups = {{kvferry::group_kind::full, 16}};
  options.dense = {dense};
  return options;
}

kvferry::agent agent_of(const std::string& transport, const std::string& name,
                        std::vector<std::uint8_t>& cache) {
  kvferry::agent_options options;
  options.name = name;
  options.transport = transport;
  kvferry::agent agent(options);
  agent.register_memory(kvferry::mem::dram, kvferry::range(cache.data(), cache.size()));
  return agent;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string transport = argc > 1 ? argv[1] : "local";
  std::vector<std::uint8_t> theirs(layers * blocks * page), mine(theirs.size());
  for (std::size_t i = 0; i < theirs.size(); i++)
    theirs[i] = static_cast<std::uint8_t>(i * 31 + i / page);
  auto prefill = agent_of(transport, "prefill-0", theirs);
  auto decode = agent_of(transport, "decode-0", mine);
  decode.add_remote(prefill.metadata());
  const auto received = kvferry::layout(shape_of(theirs)).encode();

  kvferry::layout local(shape_of(mine));
  std::vector<kvferry::layout> remotes;
  remotes.push_back(kvferry::layout::decode(received));  // one for each remote rank
  kvferry::plan plan(local, remotes);
  kvferry::queue queue(decode);

  std::vector<std::uint32_t> to{7, 8, 2}, from{4, 5, 19};
  kvferry::submission request;
  request.agents = {"prefill-0"};
  request.groups = {{to, from}};
  request.notification = "req-1";
  request.deadline = 10s;
  const auto ticket = queue.submit(plan, request);
  if (queue.wait(10s))
    for (const auto& done : queue.poll())
      std::cout << done.ticket << ": " << (done.ok() ? "done" : done.error().message) << '\n';

  if (queue.stats().succeeded != 1 || ticket == 0) return 1;
  for (std::size_t layer = 0; layer < layers; layer++)
    for (std::size_t i = 0; i < to.size(); i++)
      if (std::memcmp(mine.data() + (layer * blocks + to[i]) * page,
                      theirs.data() + (layer * blocks + from[i]) * page, page) != 0)
        return 1;
  return 0;
}
