// kvferry.hpp without exceptions: every operation as a result. Compiled with -fno-exceptions and
// -fno-rtti. argv[1]: transport.
#include "check.hpp"

static_assert(KVFERRY_EXCEPTIONS == 0);

int main(int argc, char** argv) {
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
  CHECK(transfer->try_release() && agent.try_close());
  CHECK(agent.try_close().status() == kvferry::status::invalid_handle);
  return 0;
}
