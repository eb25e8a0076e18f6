// kvferry.hpp: the scheduler half of a connector, in both styles: a request on both sides.
#include <type_traits>

#include "check.hpp"

static_assert(!std::is_copy_constructible_v<kvferry::scheduler>);
static_assert(std::is_nothrow_move_assignable_v<kvferry::scheduler>);

namespace {

using ids = std::vector<std::uint32_t>;

kvferry::scheduler_options options(const char* engine_id) {
  kvferry::scheduler_options o;
  o.engine_id = engine_id;
  o.host = "127.0.0.1";
  o.groups = {{kvferry::group_kind::full, 16}, {kvferry::group_kind::sliding_window, 16, 16}};
  o.clip = true;
  return o;
}

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

bool is_empty(const kvferry::scheduler& s) {
  const kvferry::scheduler_stats left = s.stats();
  return left.requests + left.receiving + left.holds + left.leases + left.heartbeats == 0;
}

void both_sides() {
  kvferry::scheduler prefill(options("prefill")), decode(options("decode"));
  prefill.serve({{{0, 0}, "payload"}});
  const auto [host, port] = prefill.address();
  CHECK(host == "127.0.0.1" && port != 0);

  const ids full{4, 5, 9}, window{14, 15, 19};
  const std::vector<kvferry::request_blocks> all{{full}, {window}};
  CHECK(prefill.add("p", "{\"do_remote_decode\": true}", 40) == 0);
  CHECK(!prefill.allocated("p", all, 0));
  const auto end = prefill.finished("p", kvferry::finish::length, all, 40);
  CHECK(end.keep == kvferry::keep::until_sent);
  CHECK(has(end.params, "[[4, 5, 9], [15, 19]]") && has(end.params, std::to_string(port).c_str()));

  CHECK(decode.add("d", end.params, 40) == 0);
  CHECK(decode.match("d", 40, 16) == 24);
  const ids some{71, 72}, others{81, 82};
  const std::vector<kvferry::request_blocks> missing{{some, 1}, {others, 1}};
  CHECK(decode.allocated("d", missing, 24));
  CHECK(decode.build_step().size() > 40);
  CHECK(decode.build_step().size() < 16);
  decode.received({"d"});
  CHECK(decode.finished("d", kvferry::finish::stop, all, 41).keep == kvferry::keep::no);
  prefill.sent({"p"});
  CHECK(is_empty(prefill) && is_empty(decode) && !prefill.has_pending());
}

void failures() {
  auto o = options("e");
  o.groups.clear();
  const auto none = kvferry::scheduler::try_create(o);
  CHECK(!none && none.error().status == kvferry::status::invalid_argument);
  // C would see the beginning of these names.
  auto cut = options("e");
  cut.engine_id = std::string("e\0f", 3);
  CHECK(has(kvferry::scheduler::try_create(cut).error().message, "engine_id contains a NUL"));
  kvferry::scheduler whole(options("e"));
  const auto added = whole.try_add(std::string("a\0b", 3), "{\"do_remote_decode\": true}", 40);
  CHECK(added.error().status == kvferry::status::invalid_argument);
  CHECK(is_empty(whole));
  kvferry::scheduler empty;
  CHECK(empty.try_match("x", 1, 0).error().status == kvferry::status::invalid_handle);
  CHECK(!empty.try_build_step() && !empty.try_stats());
}

}  // namespace

int main() {
  both_sides();
  failures();
}
