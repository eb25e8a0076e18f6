// The C++ snippets of docs/c-api.md, in one program: tests/docs.rs holds the two together. It moves
// blocks within one process, from one agent to another. argv[1]: transport.
#include <chrono>
#include <cstdint>
#include <iostream>
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
    return moves_a_block(argc > 1 ? argv[1] : "local") && without_exceptions() ? 0 : 1;
  } catch (const kvferry::error& e) {
    std::cerr << kvferry::name(e.status()) << "; " << e.what() << '\n';
    return 1;
  }
}
