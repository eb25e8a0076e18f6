// The C++ snippets of docs/c-api.md, in one program: tests/docs.rs holds the two together. It moves
// blocks within one process, from one agent to another. argv[1]: transport.
#include <chrono>
#include <cstdint>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "kvferry.hpp"

using namespace std::chrono_literals;

static bool moves_a_block(const std::string& transport) {
  constexpr std::size_t block = 4096, blocks = 16;
  std::vector<std::uint8_t> mine(blocks * block), theirs(blocks * block, 0xab);

  kvferry::agent_options options;
  options.name = "reader";
  options.transport = transport;
  kvferry::agent reader(options);
  options.name = "owner";
  kvferry::agent owner(options);

  reader.register_memory(kvferry::mem::dram, kvferry::range(mine.data(), mine.size()));
  owner.register_memory(kvferry::mem::dram, kvferry::range(theirs.data(), theirs.size()));

  auto channel = kvferry::side_channel::listen(owner.metadata());
  auto peer = reader.add_remote(kvferry::request_metadata("127.0.0.1", channel.port()));

  kvferry::strided_desc row{kvferry::range(mine.data(), 1).addr, block, 0, block, blocks};
  kvferry::strided_desc other_row{kvferry::range(theirs.data(), 1).addr, block, 0, block, blocks};
  auto local = reader.prepare_local(kvferry::mem::dram, row);
  auto remote = reader.prepare_remote(peer, kvferry::mem::dram, other_row);

  std::vector<std::int32_t> to{0, 1}, from{5, 9};
  auto transfer = reader.make_transfer(kvferry::op::read, local, to, remote, from);
  transfer.post("read");
  if (!transfer.wait(5s)) std::cerr << "still under way\n";
  auto done = owner.wait_notification(5s, "reader");

  return done && done->text() == "read" && mine[0] == 0xab && mine[2 * block] == 0;
}

// One rank's cache of a small model: 2 layers of 8 KV heads of 128 numbers of 2 bytes, shared by
// `tp` ranks; each layer is a tensor [block][head][K, V][token][number].
static kvferry::layout describe(std::uint32_t rank, std::uint32_t tp,
                                const std::vector<std::uint8_t>& layer0,
                                const std::vector<std::uint8_t>& layer1, std::size_t blocks) {
  kvferry::group attention;
  attention.tokens_per_block = 16;
  kvferry::dense_layers layers;
  layers.kv_heads = 8;  // of the model; this rank's follow from rank and tp
  layers.k_head_size = 128;
  layers.elem_bytes = 2;
  layers.order = kvferry::page_order::hnd;
  layers.kv = kvferry::kv_placement::halves;
  layers.regions = {kvferry::pages(layer0.data(), blocks), kvferry::pages(layer1.data(), blocks)};
  return kvferry::layout_builder(rank, tp).add(attention).add(layers).build();
}

static bool moves_a_request(const std::string& transport) {
  constexpr std::size_t head = 2 * 16 * 128 * 2, blocks = 8;
  using layer = std::vector<std::uint8_t>;
  layer theirs[2][2] = {{layer(blocks * 4 * head, 1), layer(blocks * 4 * head, 2)},
                        {layer(blocks * 4 * head, 3), layer(blocks * 4 * head, 4)}};
  layer mine[2] = {layer(blocks * 8 * head), layer(blocks * 8 * head)};

  kvferry::agent_options options;
  options.transport = transport;
  options.name = "decode";
  kvferry::agent decode(options);
  for (auto& one : mine)
    decode.register_memory(kvferry::mem::dram, kvferry::range(one.data(), one.size()));
  std::vector<kvferry::agent> prefill;
  std::vector<kvferry::bytes> received;
  kvferry::names peers;
  for (std::uint32_t rank = 0; rank < 2; rank++) {
    options.name = "prefill-" + std::to_string(rank);
    prefill.emplace_back(options);
    for (auto& one : theirs[rank])
      prefill[rank].register_memory(kvferry::mem::dram, kvferry::range(one.data(), one.size()));
    peers.push_back(decode.add_remote(prefill[rank].metadata()));
    received.push_back(describe(rank, 2, theirs[rank][0], theirs[rank][1], blocks).encode());
  }

  std::vector<kvferry::layout> ranks;
  for (const auto& bytes : received) ranks.push_back(kvferry::layout::decode(bytes));
  kvferry::plan plan(describe(0, 1, mine[0], mine[1], blocks), ranks);

  kvferry::queue queue(decode);
  const std::vector<std::uint32_t> to{0, 1, 2}, from{5, 6, 2};
  const kvferry::group_blocks request[] = {{to, from, {}, {}}};
  kvferry::submit_options how;
  how.notification = "request 7 is read";
  how.deadline = 30s;
  auto ticket = queue.submit(plan, peers, request, how);

  std::optional<kvferry::completion> done;
  while (!done) {
    queue.wait(1s);
    done = queue.poll();
  }
  if (auto ended = kvferry::outcome(*done); !ended) std::cerr << ended.error().message << '\n';
  if (done->ticket == ticket) std::cout << done->descriptors << " ranges\n";

  // Heads 0 to 3 are of one rank, 4 to 7 of the other.
  bool right = true;
  for (std::size_t i = 0; i < blocks * 8 * head; i++) {
    const bool asked = i < 3 * 8 * head, upper = i / head % 8 >= 4;
    for (std::size_t layer = 0; layer < 2; layer++)
      right = right && mine[layer][i] == (asked ? 1 + layer + (upper ? 2 : 0) : 0);
  }
  for (auto& one : prefill) {
    auto told = one.wait_notification(5s, "decode");
    right = right && told && told->text() == "request 7 is read";
  }
  return right;
}

// What an engine does with two prompts that begin in the same way.
static bool finds_a_prefix() {
  const std::string hashes = "hash of block 1hash of block 2hash of block 3";
  constexpr std::size_t hash_len = 15;

  kvferry::block_pool_options options;
  options.blocks = 1000;
  options.caching = true;
  kvferry::block_pool pool(options);

  auto blocks = pool.allocate(3);
  kvferry::cached_blocks prompt;
  prompt.blocks = blocks;
  prompt.hashes = hashes;
  prompt.hash_len = hash_len;
  prompt.block_size = 16;
  pool.cache(prompt);
  pool.free(std::vector<std::uint32_t>(blocks.rbegin(), blocks.rend()));

  const std::uint32_t groups[] = {0};
  auto known = pool.acquire(hashes.substr(0, 2 * hash_len), hash_len, groups);
  std::cout << known.hashes << " blocks need not be computed\n";
  std::vector<std::uint32_t> rest(4);
  pool.allocate_after(known.blocks.back(), rest);

  return known.hashes == 2 && known.blocks[1] == blocks[1] && pool.num_free() == 993;
}

static bool without_exceptions() {
  kvferry::agent_options options;
  options.name = "reader";
  options.transport = "pigeon";
  auto agent = kvferry::agent::try_create(options);
  if (!agent) std::cout << kvferry::name(agent.status()) << "; " << agent.error().message << '\n';
  return !agent;
}

int main(int argc, char** argv) {
  try {
    const std::string transport = argc > 1 ? argv[1] : "local";
    return moves_a_block(transport) && moves_a_request(transport) && finds_a_prefix() &&
                   without_exceptions()
               ? 0
               : 1;
  } catch (const kvferry::error& e) {
    std::cerr << kvferry::name(e.status()) << "; " << e.what() << '\n';
    return 1;
  }
}
