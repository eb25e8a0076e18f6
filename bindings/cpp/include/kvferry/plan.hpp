// Who copies which bytes from whom; queue.hpp runs it. Part of kvferry.hpp.
#ifndef KVFERRY_PLAN_HPP
#define KVFERRY_PLAN_HPP

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvferry/layout.hpp"
#include "kvferry/result.hpp"
#include "kvferry/views.hpp"

namespace kvferry {

// Which way the bytes go, seen from the local rank.
enum class direction : std::uint32_t { pull = KVF_DIRECTION_PULL, push = KVF_DIRECTION_PUSH };

// What the local rank has to do with a remote rank: kvf_peer.role.
enum class peer_role : std::uint32_t {
  idle = KVF_PEER_IDLE,
  transfer = KVF_PEER_TRANSFER,
  notify_only = KVF_PEER_NOTIFY_ONLY,
};

struct plan_options {
  kvferry::direction direction = kvferry::direction::pull;
  // Leave lanes that are adjacent in memory as they are.
  bool keep_lanes = false;
  // Accept block sizes of which neither divides the other.
  bool uneven_blocks = false;
};

using peer = kvf_peer;
using group_geometry = kvf_group_geometry;
using lane = kvf_lane;
using coverage = kvf_coverage;
using expand_stats = kvf_expand_stats;
// One copy of a request.
using plan_range = kvf_range;

// A plan of an engine's own lanes; see kvf_plan_custom.
struct custom_plan {
  kvferry::direction direction = kvferry::direction::pull;
  std::vector<group_geometry> groups;
  std::vector<peer> peers;
  std::vector<lane> lanes;
  bool uneven_blocks = false;
};

// The block ids of one group of a request; see kvf_group_blocks. Borrowed for the call.
struct group_blocks {
  span<const std::uint32_t> local;
  span<const std::uint32_t> remote;
  // How many blocks of the request come before the first of each list, if that is to be stated.
  std::optional<std::uint32_t> local_first = std::nullopt;
  std::optional<std::uint32_t> remote_first = std::nullopt;
};

// What a request moves.
struct expansion {
  std::vector<plan_range> ranges;
  std::vector<kvferry::coverage> coverage;
  expand_stats stats{};
};

namespace detail {

inline void end_plan(kvf_plan plan) { (void)kvf_plan_destroy(plan); }

using plan_tables = given<kvf_plan_tables, kvf_plan_tables_free>;
using range_list = given<kvf_range_list, kvf_range_list_free>;

inline std::vector<kvf_group_blocks> c_groups(span<const group_blocks> groups) {
  std::vector<kvf_group_blocks> all;
  all.reserve(groups.size());
  for (const auto& g : groups) {
    kvf_group_blocks c{};
    c.local = g.local.data();
    c.local_len = g.local.size();
    c.remote = g.remote.data();
    c.remote_len = g.remote.size();
    c.local_first = g.local_first.value_or(0);
    c.remote_first = g.remote_first.value_or(0);
    c.has_local_first = g.local_first ? 1 : 0;
    c.has_remote_first = g.remote_first ? 1 : 0;
    all.push_back(c);
  }
  return all;
}

}  // namespace detail

// The copies between a local rank and the ranks of a remote engine. It holds for every request
// between the two, and keeps nothing of the layouts.
class plan {
 public:
  plan() noexcept = default;
  // Takes over a handle of C.
  explicit plan(kvf_plan handle) noexcept : handle_(handle) {}

  // The order of `remotes` is that of peers().
  static result<plan> try_create(const layout& local, span<const layout> remotes,
                                 const plan_options& options = {}) {
    std::vector<kvf_layout> handles;
    handles.reserve(remotes.size());
    for (const auto& r : remotes) handles.push_back(r.handle());
    kvf_plan_options o = kvf_plan_options_default();
    o.direction = static_cast<std::uint32_t>(options.direction);
    o.keep_lanes = options.keep_lanes ? 1 : 0;
    o.uneven_blocks = options.uneven_blocks ? 1 : 0;
    kvf_plan handle{0};
    const kvf_status s =
        kvf_plan_build(local.handle(), handles.data(), handles.size(), &o, &handle);
    if (s != KVF_OK) return detail::last(s);
    return plan(handle);
  }

  static result<plan> try_create(const custom_plan& custom) {
    kvf_plan_custom c = kvf_plan_custom_default();
    c.direction = static_cast<std::uint32_t>(custom.direction);
    c.groups = custom.groups.data();
    c.groups_len = custom.groups.size();
    c.peers = custom.peers.data();
    c.peers_len = custom.peers.size();
    c.lanes = custom.lanes.data();
    c.lanes_len = custom.lanes.size();
    c.uneven_blocks = custom.uneven_blocks ? 1 : 0;
    kvf_plan handle{0};
    const kvf_status s = kvf_plan_create(&c, &handle);
    if (s != KVF_OK) return detail::last(s);
    return plan(handle);
  }

  kvf_plan handle() const noexcept { return handle_.get(); }

  // In words, for people.
  result<std::string> try_describe() const {
    return detail::described(kvf_plan_describe, handle(), KVF_DESCRIBE_TEXT);
  }
  // For programs.
  result<std::string> try_json() const {
    return detail::described(kvf_plan_describe, handle(), KVF_DESCRIBE_JSON);
  }

  result<std::vector<peer>> try_peers() const {
    return table<peer>(
        [](const kvf_plan_tables& t) { return span<const peer>(t.peers, t.peers_len); });
  }
  result<std::vector<group_geometry>> try_groups() const {
    return table<group_geometry>([](const kvf_plan_tables& t) {
      return span<const group_geometry>(t.groups, t.groups_len);
    });
  }
  result<std::vector<lane>> try_lanes() const {
    return table<lane>(
        [](const kvf_plan_tables& t) { return span<const lane>(t.lanes, t.lanes_len); });
  }

  // The exact ranges of a request; `tokens` of it are with the producer, 0 is "not stated".
  result<expansion> try_expand(span<const group_blocks> groups, std::uint64_t tokens = 0) const {
    const auto all = detail::c_groups(groups);
    expansion out;
    out.coverage.resize(all.size());
    detail::range_list ranges;
    const kvf_status s = kvf_plan_expand(handle(), all.data(), all.size(), tokens,
                                         out.coverage.data(), &out.stats, &ranges);
    if (s != KVF_OK) return detail::last(s);
    if (ranges.len != 0) out.ranges.assign(ranges.items, ranges.items + ranges.len);
    return out;
  }

#if KVFERRY_EXCEPTIONS
  plan(const layout& local, span<const layout> remotes, const plan_options& options = {})
      : plan(try_create(local, remotes, options).value()) {}
  explicit plan(const custom_plan& custom) : plan(try_create(custom).value()) {}
  std::string describe() const { return try_describe().value(); }
  std::string json() const { return try_json().value(); }
  std::vector<peer> peers() const { return try_peers().value(); }
  std::vector<group_geometry> groups() const { return try_groups().value(); }
  std::vector<lane> lanes() const { return try_lanes().value(); }
  expansion expand(span<const group_blocks> groups, std::uint64_t tokens = 0) const {
    return try_expand(groups, tokens).value();
  }
#endif

 private:
  template <class T, class Pick>
  result<std::vector<T>> table(Pick pick) const {
    detail::plan_tables t;
    const kvf_status s = kvf_plan_tables_get(handle(), &t);
    if (s != KVF_OK) return detail::last(s);
    const span<const T> rows = pick(t);
    return std::vector<T>(rows.begin(), rows.end());
  }

  detail::owner<kvf_plan, detail::end_plan> handle_;
};

}  // namespace kvferry

#endif
