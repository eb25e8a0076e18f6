// Transfers that are under way when their objects go: the destructor stops them and waits, wait()
// ends with its time. Uses the transport for tests, which can hold transfers back.
#include <chrono>
#include <thread>

#include "check.hpp"

using namespace std::chrono_literals;
using clock_type = std::chrono::steady_clock;

int main() {
  kvferry::agent agent(options_for("test", "late"));
  const auto script = [&](const char* key, const char* value) {
    agent.create_backend({"test", {{key, value}}});
  };
  kvferry::bytes data(2000, 1);
  std::fill(data.begin(), data.begin() + 1000, std::uint8_t{0});
  agent.register_memory(kvferry::mem::dram, kvferry::range(data.data(), data.size()));
  const kvferry::strided_desc halves{kvferry::range(data.data(), 1).addr, 1000, 0, 1000, 2};
  auto local = agent.prepare_local(kvferry::mem::dram, halves);
  auto remote = agent.prepare_remote("late", kvferry::mem::dram, halves);
  const std::int32_t to[] = {0}, from[] = {1};
  const auto make = [&] { return agent.make_transfer(kvferry::op::read, local, to, remote, from); };

  script("hold", "1");
  {
    auto t = make();
    CHECK(t.post() == kvferry::transfer_state::in_progress);
    const auto start = clock_type::now();
    CHECK(!t.wait(50ms));
    CHECK(clock_type::now() - start >= 50ms);
    CHECK(!t.wait(0ms));
    // Gone here: stopped at once, nothing was written.
  }
  script("hold", "0");
  CHECK(data[0] == 0);

  // One that cannot be stopped is waited for.
  script("hold", "1");
  script("stubborn", "1");
  std::thread later([&] {
    std::this_thread::sleep_for(30ms);
    script("hold", "0");
  });
  kvf_transfer raw;
  {
    auto t = make();
    t.post();
    raw = t.handle();
    CHECK(t.try_release().status() == kvferry::status::busy);
  }
  later.join();
  CHECK(data[0] == 1);
  std::int32_t state = 0;
  CHECK(kvf_transfer_state(raw, &state) == KVF_ERR_INVALID_HANDLE);

  // Cancelled: the wait ends with that.
  script("stubborn", "0");
  script("hold", "1");
  auto t = make();
  t.post();
  t.cancel();
  CHECK(t.try_wait(30s).status() == kvferry::status::canceled);
  return 0;
}
