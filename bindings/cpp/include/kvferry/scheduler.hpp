// Connector, scheduler half: what is fetched from whom, and kept for whom. Part of kvferry.hpp.
#ifndef KVFERRY_SCHEDULER_HPP
#define KVFERRY_SCHEDULER_HPP

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kvferry/layout.hpp"
#include "kvferry/result.hpp"
#include "kvferry/side_channel.hpp"
#include "kvferry/views.hpp"

namespace kvferry {

// Which side moves the bytes.
enum class transfer_mode : std::uint32_t {
  pull = KVF_MODE_PULL,
  push = KVF_MODE_PUSH,
};

// How a request ended.
enum class finish : std::uint32_t {
  length = KVF_FINISH_LENGTH,
  stop = KVF_FINISH_STOP,
  abort = KVF_FINISH_ABORT,
  error = KVF_FINISH_ERROR,
};

// Until when the blocks of a finished request must not be freed.
enum class keep : std::uint32_t {
  no = KVF_KEEP_NO,
  until_sent = KVF_KEEP_UNTIL_SENT,
  until_received = KVF_KEEP_UNTIL_RECEIVED,
};

// A group of layers with a block table of its own, whose blocks are exchanged.
struct transfer_group {
  group_kind kind = group_kind::full;
  std::uint32_t tokens_per_block = 0;
  std::uint32_t window = 0;
  std::uint32_t scratch_blocks = 0;
};

// See kvf_scheduler_options; zero is the library's default.
struct scheduler_options {
  transfer_mode mode = transfer_mode::pull;
  std::string engine_id;
  std::string host;
  std::uint16_t port = 0;
  std::vector<transfer_group> groups;
  std::uint32_t tp_size = 0;
  std::uint32_t pp_size = 0;
  std::uint32_t dcp_size = 0;
  std::uint32_t backoff_tokens = 0;
  std::chrono::milliseconds lease{0};
  std::chrono::milliseconds heartbeat{0};
  std::chrono::milliseconds pin{0};
  std::chrono::milliseconds registration_timeout{0};
  std::uint64_t recompute_threshold = 0;
  bool bidirectional = false;
  bool clip = false;
  bool state_registrations = false;
};

// Blocks of a request in one group: part of its block table.
struct request_blocks {
  span<const std::uint32_t> ids;
  // How many blocks of the table come before the first of them.
  std::uint32_t first = 0;
};

// What has to become of a finished request.
struct finished_request {
  kvferry::keep keep = kvferry::keep::no;
  // What the router has to give to the other side, as JSON; empty: nothing.
  std::string params;
};

using scheduler_stats = kvf_scheduler_stats;

namespace detail {
inline void end_scheduler(kvf_scheduler scheduler) { (void)kvf_scheduler_destroy(scheduler); }

inline std::vector<kvf_request_blocks> c_blocks(span<const request_blocks> all) {
  std::vector<kvf_request_blocks> out;
  out.reserve(all.size());
  for (const auto& from : all) out.push_back({from.ids.data(), from.ids.size(), from.first, 0});
  return out;
}
}  // namespace detail

// The books of one engine. No operation waits for another engine or moves a byte. Ids that were not
// added with parameters are not the connector's business: there is nothing to do for them.
class scheduler {
 public:
  scheduler() noexcept = default;
  // Takes over a handle of C.
  explicit scheduler(kvf_scheduler handle) noexcept : handle_(handle) {}

  static result<scheduler> try_create(const scheduler_options& options) {
    if (auto bad = detail::nul_in(options.engine_id, "engine_id")) return *std::move(bad);
    if (auto bad = detail::nul_in(options.host, "host")) return *std::move(bad);
    std::vector<kvf_transfer_group> groups;
    groups.reserve(options.groups.size());
    for (const auto& g : options.groups)
      groups.push_back({static_cast<std::uint32_t>(g.kind), g.tokens_per_block, g.window,
                        g.scratch_blocks});
    kvf_scheduler_options o = kvf_scheduler_options_default();
    o.mode = static_cast<std::uint32_t>(options.mode);
    o.engine_id = options.engine_id.c_str();
    o.host = options.host.c_str();
    o.port = options.port;
    o.groups = groups.data();
    o.groups_len = groups.size();
    o.tp_size = options.tp_size;
    o.pp_size = options.pp_size;
    o.dcp_size = options.dcp_size;
    o.backoff_tokens = options.backoff_tokens;
    o.lease_ms = detail::ticks<std::uint64_t>(options.lease);
    o.heartbeat_ms = detail::ticks<std::uint64_t>(options.heartbeat);
    o.pin_ms = detail::ticks<std::uint64_t>(options.pin);
    o.registration_timeout_ms = detail::ticks<std::uint64_t>(options.registration_timeout);
    o.recompute_threshold = options.recompute_threshold;
    o.bidirectional = options.bidirectional ? 1 : 0;
    o.clip = options.clip ? 1 : 0;
    o.state_registrations = options.state_registrations ? 1 : 0;
    kvf_scheduler made{0};
    const kvf_status s = kvf_scheduler_create(&o, &made);
    if (s != KVF_OK) return detail::last(s);
    return scheduler(made);
  }

  kvf_scheduler handle() const noexcept { return handle_.get(); }

  // A request has entered the engine, with its kv_transfer_params as JSON, or none. How many
  // trailing prompt tokens the engine has to take off it. `flags`: KVF_ADD_...
  result<std::uint64_t> try_add(const std::string& id, byte_view json,
                                std::uint64_t prompt_tokens, std::uint32_t flags = 0) {
    if (auto bad = detail::nul_in(id, "request_id")) return *std::move(bad);
    std::uint64_t drop = 0;
    const kvf_status s = kvf_scheduler_add(handle(), id.c_str(), json.data(), json.size(),
                                           prompt_tokens, flags, &drop);
    if (s != KVF_OK) return detail::last(s);
    return drop;
  }
  // How many tokens after the first `computed_tokens` can be loaded from another engine.
  result<std::uint64_t> try_match(const std::string& id, std::uint64_t prompt_tokens,
                                  std::uint64_t computed_tokens) const {
    std::uint64_t tokens = 0;
    const kvf_status s =
        kvf_scheduler_match(handle(), id.c_str(), prompt_tokens, computed_tokens, &tokens);
    if (s != KVF_OK) return detail::last(s);
    return tokens;
  }
  // A request has been given blocks; whether its transfer is arranged from now on.
  result<bool> try_allocated(const std::string& id, span<const request_blocks> missing,
                             std::uint64_t external_tokens) {
    const auto groups = detail::c_blocks(missing);
    std::uint8_t staged = 0;
    const kvf_status s = kvf_scheduler_allocated(handle(), id.c_str(), groups.data(),
                                                 groups.size(), external_tokens, &staged);
    if (s != KVF_OK) return detail::last(s);
    return staged != 0;
  }
  // What the workers have to do since the last call: for each rank's worker, in this order.
  result<bytes> try_build_step() {
    kvf_buffer step{nullptr, 0};
    const kvf_status s = kvf_scheduler_build_step(handle(), &step);
    if (s != KVF_OK) return detail::last(s);
    bytes out(step.data, step.data + step.len);
    kvf_buffer_free(&step);
    return out;
  }
  // Every rank has reported these as received, or one as failed and all as at rest.
  result<void> try_received(const names& ids) {
    const detail::c_names list(ids);
    return detail::done(kvf_scheduler_received(handle(), list.data(), list.size()));
  }
  // Every rank has reported these as sent, or their leases as over.
  result<void> try_sent(const names& ids) {
    const detail::c_names list(ids);
    return detail::done(kvf_scheduler_sent(handle(), list.data(), list.size()));
  }
  // A request has ended; `all` are its blocks that hold the first `computed_tokens` tokens.
  result<finished_request> try_finished(const std::string& id, finish how,
                                span<const request_blocks> all, std::uint64_t computed_tokens) {
    const auto groups = detail::c_blocks(all);
    std::uint32_t kept = 0;
    kvf_buffer json{nullptr, 0};
    const kvf_status s = kvf_scheduler_finished(handle(), id.c_str(),
                                                static_cast<std::uint32_t>(how), groups.data(),
                                                groups.size(), computed_tokens, &kept, &json);
    if (s != KVF_OK) return detail::last(s);
    finished_request out;
    out.keep = static_cast<kvferry::keep>(kept);
    if (json.len != 0) out.params.assign(reinterpret_cast<const char*>(json.data), json.len);
    kvf_buffer_free(&json);
    return out;
  }
  // Starts the listener that gives the ranks' payloads to other engines, or replaces them.
  result<void> try_serve(const std::vector<rank_payload>& ranks) {
    const auto all = detail::c_ranks(ranks);
    return detail::done(kvf_scheduler_serve(handle(), all.data(), all.size()));
  }
  // Host and port that other engines are told.
  result<std::pair<std::string, std::uint16_t>> try_address() const {
    kvf_buffer host{nullptr, 0};
    std::uint16_t port = 0;
    const kvf_status s = kvf_scheduler_address(handle(), &host, &port);
    if (s != KVF_OK) return detail::last(s);
    std::string text(reinterpret_cast<const char*>(host.data), host.len);
    kvf_buffer_free(&host);
    return std::pair(std::move(text), port);
  }
  // Push: whether the engine has to go on stepping although it has nothing to run.
  result<bool> try_has_pending() const {
    std::uint8_t pending = 0;
    const kvf_status s = kvf_scheduler_has_pending(handle(), &pending);
    if (s != KVF_OK) return detail::last(s);
    return pending != 0;
  }
  result<scheduler_stats> try_stats() const {
    scheduler_stats stats{};
    const kvf_status s = kvf_scheduler_stats_get(handle(), &stats);
    if (s != KVF_OK) return detail::last(s);
    return stats;
  }

#if KVFERRY_EXCEPTIONS
  explicit scheduler(const scheduler_options& options) : scheduler(try_create(options).value()) {}
  std::uint64_t add(const std::string& id, byte_view json, std::uint64_t prompt_tokens,
                    std::uint32_t flags = 0) {
    return try_add(id, json, prompt_tokens, flags).value();
  }
  std::uint64_t match(const std::string& id, std::uint64_t prompt_tokens,
                      std::uint64_t computed_tokens) const {
    return try_match(id, prompt_tokens, computed_tokens).value();
  }
  bool allocated(const std::string& id, span<const request_blocks> missing,
                 std::uint64_t external_tokens) {
    return try_allocated(id, missing, external_tokens).value();
  }
  bytes build_step() { return try_build_step().value(); }
  void received(const names& ids) { try_received(ids).value(); }
  void sent(const names& ids) { try_sent(ids).value(); }
  finished_request finished(const std::string& id, finish how, span<const request_blocks> all,
                             std::uint64_t computed_tokens) {
    return try_finished(id, how, all, computed_tokens).value();
  }
  void serve(const std::vector<rank_payload>& ranks) { try_serve(ranks).value(); }
  std::pair<std::string, std::uint16_t> address() const { return try_address().value(); }
  bool has_pending() const { return try_has_pending().value(); }
  scheduler_stats stats() const { return try_stats().value(); }
#endif

 private:
  detail::owner<kvf_scheduler, detail::end_scheduler> handle_;
};

}  // namespace kvferry

#endif
