// Blocks of a KV cache move from one process to another.
//
//   move_block prefill [local|nixl] [PORT]      in one terminal: owns the blocks
//   move_block decode  [local|nixl] [PORT]      in another: reads some of them
//
// The same program is in examples/c, examples/python and examples/rust; they speak one format.
#include <chrono>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "kvferry.hpp"

namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t block_bytes = 64 * 1024, blocks = 32;
constexpr auto patience = 60s;

// What the decoder has to know besides the agent's metadata: where the blocks are.
struct announcement {
  std::uint64_t address, block_bytes, blocks;
};

// The byte that prefill puts at a place of a block, so that decode can check it.
std::uint8_t content(std::uint64_t block, std::uint64_t i) {
  return static_cast<std::uint8_t>(block * 31 + i * 7 + i / 256);
}

// 1. An agent is one process's endpoint; the transport is chosen by name.
kvferry::agent create_agent(const std::string& name, const std::string& transport) {
  kvferry::agent_options options;
  options.name = name;
  options.transport = transport;
  return kvferry::agent(options);
}

// 2. Memory that takes part in transfers is registered.
std::vector<std::uint8_t> create_cache(kvferry::agent& agent) {
  std::vector<std::uint8_t> cache(blocks * block_bytes);
  agent.register_memory(kvferry::mem::dram, kvferry::range(cache.data(), cache.size()));
  return cache;
}

void prefill(const std::string& transport, std::uint16_t port) {
  auto agent = create_agent("prefill", transport);
  auto cache = create_cache(agent);
  for (std::uint64_t block = 0; block < blocks; block++)
    for (std::uint64_t i = 0; i < block_bytes; i++)
      cache[block * block_bytes + i] = content(block, i);

  // 3. The side channel hands where the blocks are, and the agent's metadata, to whoever asks.
  const announcement where{kvferry::range(cache.data(), 1).addr, block_bytes, blocks};
  kvferry::bytes message(sizeof where);
  std::memcpy(message.data(), &where, sizeof where);
  const auto metadata = agent.metadata();
  message.insert(message.end(), metadata.begin(), metadata.end());
  kvferry::side_channel_options listen;
  listen.port = port;
  const auto channel = kvferry::side_channel::listen(message, listen);
  std::cout << "prefill: " << blocks << " blocks of " << block_bytes << " bytes, metadata on port "
            << channel.port() << std::endl;

  // 7. The reader's notification says that its blocks may be used again.
  const auto done = agent.wait_notification(patience, "decode");
  if (!done) throw std::runtime_error("nobody has read the blocks");
  std::cout << "prefill: " << done->from << " says \"" << done->text() << "\"\n";
}

void decode(const std::string& transport, std::uint16_t port) {
  auto agent = create_agent("decode", transport);
  auto cache = create_cache(agent);

  // 3. Ask for the metadata, and load it.
  const auto message = kvferry::request_metadata("127.0.0.1", port);
  announcement where;
  if (message.size() < sizeof where) throw std::runtime_error("the announcement is too short");
  std::memcpy(&where, message.data(), sizeof where);
  const auto peer =
      agent.add_remote({message.data() + sizeof where, message.size() - sizeof where});

  // 4. Prepare both sides once: every block by its index.
  const auto local_address = kvferry::range(cache.data(), 1).addr;
  const kvferry::strided_desc mine{local_address, block_bytes, 0, block_bytes, blocks};
  const kvferry::strided_desc theirs{where.address, where.block_bytes, 0, where.block_bytes,
                                     where.blocks};
  const auto local = agent.prepare_local(kvferry::mem::dram, mine);
  const auto remote = agent.prepare_remote(peer, kvferry::mem::dram, theirs);

  // 5. Read scattered blocks into scattered places, and tell the owner when they are here.
  const std::vector<std::int32_t> from{7, 3, 21, 12}, to{0, 9, 4, 30};
  kvferry::transfer_options options;
  options.notification = "blocks 7 3 21 12 are here";
  auto transfer = agent.make_transfer(kvferry::op::read, local, to, remote, from, options);
  transfer.post();
  if (!transfer.wait(patience)) throw std::runtime_error("the transfer takes too long");

  // 6. Every byte is where it belongs.
  for (std::size_t n = 0; n < from.size(); n++)
    for (std::uint64_t i = 0; i < block_bytes; i++)
      if (cache[static_cast<std::uint64_t>(to[n]) * block_bytes + i] !=
          content(static_cast<std::uint64_t>(from[n]), i))
        throw std::runtime_error("block " + std::to_string(from[n]) + " is wrong");
  std::cout << "decode: " << from.size() << " blocks of " << block_bytes << " bytes from " << peer
            << " are here and correct\n";
}

}  // namespace

int main(int argc, char** argv) {
  const std::string role = argc > 1 ? argv[1] : "";
  const std::string transport = argc > 2 ? argv[2] : "local";
  const auto port = static_cast<std::uint16_t>(argc > 3 ? std::stoi(argv[3]) : 7070);
  try {
    if (role == "prefill") return prefill(transport, port), 0;
    if (role == "decode") return decode(transport, port), 0;
  } catch (const std::exception& e) {
    std::cerr << "move_block: " << e.what() << '\n';
    return 1;
  }
  std::cerr << "usage: " << argv[0] << " prefill|decode [local|nixl] [PORT]\n";
  return 2;
}
