// Who copies which bytes from whom, between one rank and a remote engine. Part of kvferry.hpp.
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

// What the local rank has to do with a remote rank; see KVF_PEER_....
enum class peer_role : std::uint32_t {
  idle = KVF_PEER_IDLE,
  transfer = KVF_PEER_TRANSFER,
  notify_only = KVF_PEER_NOTIFY_ONLY,
};

// The structs of C where these are plain data: make them with {}, zero is every default.
using peer = kvf_peer;
using group_side = kvf_group_side;
using group_geometry = kvf_group_geometry;
using lane = kvf_lane;
using copy_range = kvf_range;
using coverage = kvf_coverage;
using expand_stats = kvf_expand_stats;

inline peer_role role_of(const peer& p) noexcept { return static_cast<peer_role>(p.role); }

struct plan_options {
  kvferry::direction direction = kvferry::direction::pull;
  bool keep_lanes = false;
  bool uneven_blocks = false;
};

// A plan of the caller's own lanes, which are checked and not merged.
struct custom_plan {
  std::vector<group_geometry> groups;
  std::vector<peer> peers;
  std::vector<lane> lanes;
  kvferry::direction direction = kvferry::direction::pull;
  bool uneven_blocks = false;
};

// The block ids of one group of a request; see kvf_group_blocks. Views: the ids must stay for the
// call that takes them.
struct group_blocks {
  span<const std::uint32_t> local;
  span<const std::uint32_t> remote;
  // How many blocks of the request come before the first of the list, where that is stated.
  std::optional<std::uint32_t> local_first;
  std::optional<std::uint32_t> remote_first;
};

// What a request moves.
struct expansion {
  std::vector<copy_range> ranges;
  std::vector<kvferry::coverage> coverage;  // one for each group
  expand_stats stats{};
};

// Everything a plan says.
struct plan_tables {
  kvferry::direction direction = kvferry::direction::pull;
  std::uint32_t batches = 0;
  std::uint64_t lanes_before = 0;
  std::vector<group_geometry> groups;
  std::vector<peer> peers;
  std::vector<lane> lanes;
};

namespace detail {

inline void end_plan(kvf_plan plan) { (void)kvf_plan_destroy(plan); }

using c_plan_tables = given<kvf_plan_tables, kvf_plan_tables_free>;
using range_list = given<kvf_range_list, kvf_range_list_free>;

inline std::vector<kvf_group_blocks> c_blocks(span<const group_blocks> all) {
  std::vector<kvf_group_blocks> out;
  out.reserve(all.size());
  for (const auto& from : all) {
    kvf_group_blocks to{};
    to.local = from.local.data();
    to.local_len = from.local.size();
    to.remote = from.remote.data();
    to.remote_len = from.remote.size();
    to.has_local_first = from.local_first ? 1 : 0;
    to.local_first = from.local_first.value_or(0);
    to.has_remote_first = from.remote_first ? 1 : 0;
    to.remote_first = from.remote_first.value_or(0);
    out.push_back(to);
  }
  return out;
}

}  // namespace detail

// The copies between one local rank and a remote engine; holds for every request between the two,
// and keeps nothing of the layouts.
class plan {
 public:
  plan() noexcept = default;
  // Takes over a handle of C.
  explicit plan(kvf_plan handle) noexcept : handle_(handle) {}

  // The order of `remotes` is that of the plan's peers.
  static result<plan> try_build(const layout& local, span<const layout> remotes,
                                const plan_options& options = {}) {
    std::vector<kvf_layout> handles;
    handles.reserve(remotes.size());
    for (const auto& one : remotes) handles.push_back(one.handle());
    kvf_plan_options o = kvf_plan_options_default();
    o.direction = static_cast<std::uint32_t>(options.direction);
    o.keep_lanes = options.keep_lanes ? 1 : 0;
    o.uneven_blocks = options.uneven_blocks ? 1 : 0;
    kvf_plan made{0};
    const kvf_status s =
        kvf_plan_build(local.handle(), handles.data(), handles.size(), &o, &made);
    if (s != KVF_OK) return detail::last(s);
    return plan(made);
  }
  // One remote rank.
  static result<plan> try_build(const layout& local, const layout& remote,
                                const plan_options& options = {}) {
    return try_build(local, span<const layout>(&remote, 1), options);
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
    kvf_plan made{0};
    const kvf_status s = kvf_plan_create(&c, &made);
    if (s != KVF_OK) return detail::last(s);
    return plan(made);
  }

  kvf_plan handle() const noexcept { return handle_.get(); }

  result<std::string> try_describe(describe_as format = describe_as::text) const {
    return detail::describe(kvf_plan_describe, handle(), format);
  }
  result<plan_tables> try_tables() const {
    detail::c_plan_tables t;
    const kvf_status s = kvf_plan_tables_get(handle(), &t);
    if (s != KVF_OK) return detail::last(s);
    return plan_tables{static_cast<kvferry::direction>(t.direction),
                       t.batches,
                       t.lanes_before,
                       detail::to_vector(t.groups, t.groups_len),
                       detail::to_vector(t.peers, t.peers_len),
                       detail::to_vector(t.lanes, t.lanes_len)};
  }
  // The exact ranges of a request. `tokens` are those that the producer holds, from the first one;
  // 0 is "not stated".
  result<expansion> try_expand(span<const group_blocks> blocks, std::uint64_t tokens = 0) const {
    const auto groups = detail::c_blocks(blocks);
    expansion all;
    all.coverage.resize(groups.size());
    detail::range_list ranges;
    const kvf_status s = kvf_plan_expand(handle(), groups.data(), groups.size(), tokens,
                                         all.coverage.data(), &all.stats, &ranges);
    if (s != KVF_OK) return detail::last(s);
    all.ranges = detail::to_vector(ranges.items, ranges.len);
    return all;
  }
  // The figures of a request alone.
  result<expand_stats> try_stats(span<const group_blocks> blocks, std::uint64_t tokens = 0) const {
    const auto groups = detail::c_blocks(blocks);
    expand_stats stats{};
    const kvf_status s = kvf_plan_expand(handle(), groups.data(), groups.size(), tokens, nullptr,
                                         &stats, nullptr);
    if (s != KVF_OK) return detail::last(s);
    return stats;
  }

#if KVFERRY_EXCEPTIONS
  plan(const layout& local, span<const layout> remotes, const plan_options& options = {})
      : plan(try_build(local, remotes, options).value()) {}
  plan(const layout& local, const layout& remote, const plan_options& options = {})
      : plan(try_build(local, remote, options).value()) {}
  explicit plan(const custom_plan& custom) : plan(try_create(custom).value()) {}
  std::string describe(describe_as format = describe_as::text) const {
    return try_describe(format).value();
  }
  plan_tables tables() const { return try_tables().value(); }
  expansion expand(span<const group_blocks> blocks, std::uint64_t tokens = 0) const {
    return try_expand(blocks, tokens).value();
  }
  expand_stats stats(span<const group_blocks> blocks, std::uint64_t tokens = 0) const {
    return try_stats(blocks, tokens).value();
  }
#endif

 private:
  detail::owner<kvf_plan, detail::end_plan> handle_;
};

}  // namespace kvferry

#endif
