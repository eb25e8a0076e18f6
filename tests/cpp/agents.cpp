// kvferry.hpp in the style that throws: two agents, everything that moves between them, and what
// becomes of the objects. argv[1]: transport.
#include <algorithm>
#include <array>
#include <chrono>
#include <numeric>
#include <type_traits>

#include "check.hpp"

using namespace std::chrono_literals;

static_assert(!std::is_copy_constructible_v<kvferry::agent>);
static_assert(!std::is_copy_constructible_v<kvferry::transfer>);
static_assert(std::is_nothrow_move_constructible_v<kvferry::desc_list>);
static_assert(std::is_nothrow_move_assignable_v<kvferry::side_channel>);

namespace {

constexpr std::size_t block = 4096, count = 32;

struct pool {
  kvferry::bytes data = kvferry::bytes(block * count);
  void fill(std::size_t seed) {
    for (std::size_t i = 0; i < data.size(); i++) data[i] = known(seed, i);
  }
  kvferry::mem_desc all() const { return kvferry::range(data.data(), data.size()); }
  kvferry::strided_desc blocks() const {
    return {kvferry::range(data.data(), 1).addr, block, 0, block, count};
  }
  bool holds(std::size_t mine, std::size_t seed, std::size_t theirs) const {
    for (std::size_t i = 0; i < block; i++)
      if (data[mine * block + i] != known(seed, theirs * block + i)) return false;
    return true;
  }
};

template <class F>
kvferry::failure thrown(F&& f) {
  try {
    f();
  } catch (const kvferry::error& e) {
    CHECK(std::strlen(e.what()) > 0);
    return {e.status(), e.what()};
  }
  return {kvferry::status::ok, ""};
}

void moves_blocks(kvferry::agent& reader, kvferry::agent& owner, pool& mine, pool& theirs) {
  theirs.fill(1);
  auto local = reader.prepare_local(kvferry::mem::dram, mine.blocks());
  // The same ranges one by one.
  std::vector<kvferry::mem_desc> one_by_one;
  for (std::size_t i = 0; i < count; i++)
    one_by_one.push_back(kvferry::range(&theirs.data[i * block], block));
  auto remote = reader.prepare_remote("owner", kvferry::mem::dram, one_by_one);
  CHECK(local.size() == count && remote.size() == count);

  const std::vector<std::int32_t> to{3, 1, 4, 15, 9};
  const std::array<std::int32_t, 5> from{{26, 5, 3, 5, 8}};
  kvferry::transfer_options options;
  options.notification = "moved";
  auto t = reader.make_transfer(kvferry::op::read, local, to, remote, from, options);
  CHECK(thrown([&] { t.state(); }).status == kvferry::status::not_posted);
  t.post();
  CHECK(t.wait(30s));
  CHECK(t.state() == kvferry::transfer_state::done);
  CHECK(!t.backend().empty());
  for (std::size_t i = 0; i < to.size(); i++)
    CHECK(mine.holds(static_cast<std::size_t>(to[i]), 1, static_cast<std::size_t>(from[i])));
  auto got = owner.wait_notification(30s, "reader");
  CHECK(got && got->from == "reader" && got->text() == "moved");
  CHECK(!owner.wait_notification(0ms));
  // Posted again, with another notification.
  t.post("moved again");
  CHECK(t.wait(30s));
  got = owner.wait_notification(30s, {}, "moved a");
  CHECK(got && got->text() == "moved again");
  t.release();
  CHECK(thrown([&] { t.release(); }).status == kvferry::status::invalid_handle);

  // Written, without lists.
  mine.fill(2);
  const kvferry::mem_desc near_descs[] = {kvferry::range(&mine.data[0], 100)};
  const kvferry::mem_desc far_descs[] = {kvferry::range(&theirs.data[5 * block], 100)};
  auto w = reader.create_transfer(kvferry::op::write, kvferry::mem::dram, near_descs,
                                  kvferry::mem::dram, far_descs, "owner");
  w.post();
  CHECK(w.wait(30s));
  for (std::size_t i = 0; i < 100; i++) CHECK(theirs.data[5 * block + i] == known(2, i));
  CHECK(theirs.data[5 * block + 100] == known(1, 5 * block + 100));
}

void messages(kvferry::agent& reader, kvferry::agent& owner) {
  const kvferry::bytes binary{0, 255, 0, 7};
  reader.notify("owner", binary);
  reader.notify("owner", "");
  reader.notify("owner", std::string("text"));
  std::vector<kvferry::notification> all;
  const auto until = std::chrono::steady_clock::now() + 30s;
  while (all.size() < 3 && std::chrono::steady_clock::now() < until)
    for (auto& n : owner.notifications()) all.push_back(std::move(n));
  CHECK(all.size() == 3);
  CHECK(all[0].payload == binary && all[1].payload.empty() && all[2].text() == "text");
}

void ownership(const std::string& transport) {
  // Empty objects answer, and moved-from ones are empty.
  kvferry::agent none;
  CHECK(thrown([&] { none.metadata(); }).status == kvferry::status::invalid_handle);
  kvferry::agent a(options_for(transport, "first"));
  kvferry::agent b(std::move(a));
  CHECK(a.handle().id == 0 && b.name() == "first");
  a = kvferry::agent(options_for(transport, "second"));
  const kvf_agent old = b.handle();
  b = std::move(a);
  CHECK(b.name() == "second");
  // Assigning has ended the agent that was there.
  kvf_buffer name{};
  CHECK(kvf_agent_name(old, &name) == KVF_ERR_INVALID_HANDLE);

  // Lists and transfers may outlive their agent.
  pool p;
  b.register_memory(kvferry::mem::dram, p.all());
  auto local = b.prepare_local(kvferry::mem::dram, p.blocks());
  auto remote = b.prepare_remote("second", kvferry::mem::dram, p.blocks());
  const std::int32_t to[] = {0}, from[] = {1};
  auto t = b.make_transfer(kvferry::op::read, local, to, remote, from);
  auto detached = b.make_transfer(kvferry::op::read, local, to, remote, from);
  const kvf_transfer raw = detached.detach();
  CHECK(detached.handle().id == 0);
  kvferry::transfer again(raw);
  again.post();
  CHECK(again.wait(30s));
  b.close();
  CHECK(b.handle().id == 0);
  CHECK(thrown([&] { t.post(); }).status == kvferry::status::invalid_handle);
  CHECK(thrown([&] { local.size(); }).status == kvferry::status::invalid_handle);
}

void errors(kvferry::agent& agent) {
  const auto f = thrown([&] { agent.add_remote("these are not metadata"); });
  CHECK(f.status == kvferry::status::peer_incompatible);
  CHECK(std::string(kvferry::name(f.status)) == "peer incompatible");
  CHECK(f.message.find("peer incompatible: ") == 0);
  CHECK(thrown([&] { agent.connect("stranger"); }).status == kvferry::status::not_found);
  CHECK(thrown([&] { agent.backend_info("pigeon"); }).status == kvferry::status::not_found);
  kvferry::agent_options bad;
  bad.name = "bad";
  CHECK(thrown([&] { kvferry::agent made(bad); }).status == kvferry::status::invalid_argument);
  const auto r = kvferry::agent::try_create(bad);
  CHECK(!r && r.status() == kvferry::status::invalid_argument);
}

void side_channel(kvferry::agent& reader, kvferry::agent& owner) {
  auto channel = kvferry::side_channel::listen(owner.metadata());
  CHECK(channel.is_running() && channel.host() == "127.0.0.1" && channel.port() != 0);
  const auto metadata = kvferry::request_metadata(channel.host(), channel.port());
  CHECK(!reader.check_remote("owner"));
  CHECK(reader.add_remote(metadata) == "owner");
  CHECK(reader.check_remote("owner"));
  channel.set_metadata("other");
  const auto other = kvferry::request_metadata("127.0.0.1", channel.port());
  CHECK(std::string(other.begin(), other.end()) == "other");
  const auto port = channel.port();
  channel.shutdown();
  const auto lost = thrown([&] { kvferry::request_metadata("127.0.0.1", port); });
  CHECK(lost.status == kvferry::status::peer_lost);
}

void ranks() {
  kvferry::side_channel_options options;
  options.kind = "zmq";
  auto channel = kvferry::side_channel::listen("first", options);
  channel.set_rank_metadata({1, 2}, "other");
  const auto said = [&](kvferry::engine_rank rank) {
    const auto answer = kvferry::request_rank("127.0.0.1", channel.port(), rank);
    CHECK(answer.clock.rtt_s >= 0 && answer.clock.rtt_s < 60);
    return std::string(answer.metadata.begin(), answer.metadata.end());
  };
  CHECK(said({0, 0}) == "first" && said({1, 2}) == "other");
  channel.replace_ranks({{{0, 0}, "a"}, {{0, 1}, "b"}});
  CHECK(said({0, 0}) == "a" && said({0, 1}) == "b");
  const auto none = kvferry::try_request_rank("127.0.0.1", channel.port(), {1, 2});
  CHECK(!none && none.status() == kvferry::status::not_found);
}

void logs() {
  int records = 0;
  std::weak_ptr<int> alive;
  {
    auto token = std::make_shared<int>(0);
    alive = token;
    kvferry::set_log_function(
        [&records, token](kvferry::log_level, std::string_view target, std::string_view message) {
          CHECK(target.substr(0, 7) == "kvferry" && !message.empty());
          records++;
          throw 1;  // Dropped.
        });
  }
  kvferry::set_log_level(kvferry::log_level::debug);
  (void)kvf_agent_destroy(kvf_agent{0});
  kvferry::set_log_level(kvferry::log_level::error);
  CHECK(records == 1 && !alive.expired());
  kvferry::set_log_function({});
  CHECK(alive.expired());
}

}  // namespace

int main(int argc, char** argv) {
  const std::string transport = transport_of(argc, argv);
  CHECK(kvferry::abi_version() == KVF_ABI_VERSION && std::strlen(kvferry::version()) > 0);
  pool mine, theirs;
  auto options = options_for(transport, "reader");
  options.telemetry = true;
  options.drain_timeout = 3s;
  kvferry::agent reader(options);
  kvferry::agent owner(options_for(transport, "owner"));
  CHECK(!reader.plugins().empty());
  const auto backends = reader.backends();
  CHECK(!backends.empty() && reader.backend_info(backends[0]).serves(kvferry::mem::dram));
  reader.register_memory(kvferry::mem::dram, mine.all());
  const std::vector<kvferry::mem_desc> ranges{theirs.all()};
  owner.register_memory(kvferry::mem::dram, ranges);

  side_channel(reader, owner);
  ranks();
  moves_blocks(reader, owner, mine, theirs);
  messages(reader, owner);
  if (transport != "test") errors(reader);
  ownership(transport);
  logs();
  reader.remove_remote("owner");
  owner.deregister_memory(kvferry::mem::dram, ranges);
  return 0;
}
