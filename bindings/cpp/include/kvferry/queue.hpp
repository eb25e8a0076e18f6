// Transfers in the background: plans and block ids in, completions out. Part of kvferry.hpp.
#ifndef KVFERRY_QUEUE_HPP
#define KVFERRY_QUEUE_HPP

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "kvferry/agent.hpp"
#include "kvferry/plan.hpp"
#include "kvferry/result.hpp"
#include "kvferry/views.hpp"

namespace kvferry {

// How a queue works; see kvf_queue_options. Zero is the library's default.
struct queue_options {
  std::uint32_t capacity = 0;
  std::uint64_t slice_bytes = 0;
  std::uint32_t slice_descriptors = 0;
  std::uint32_t slices_in_flight = 0;
};

// A request to hand over; see kvf_submission. What it points to is borrowed for the call.
struct submission {
  // For each peer of the plan the name of its agent; empty will do for peers that are idle.
  names agents;
  // Block ids, one entry for each group of the plan.
  std::vector<group_blocks> groups;
  // Tokens of the request that the producer holds; 0 is "not stated".
  std::uint64_t tokens = 0;
  // Sent to each peer that is not idle when all bytes are in; may be empty bytes.
  std::optional<std::string> notification = std::nullopt;
  // After which the request fails; 0 is no limit.
  std::chrono::milliseconds deadline{0};
};

// What became of a request: the fields of kvf_completion, and the failure if it is one. Either way
// the request's blocks are the caller's again.
struct completion : kvf_completion {
  // Whether every byte is in place.
  bool ok() const noexcept { return status == KVF_OK; }
  // How it ended, if it did not end well.
  failure error() const { return {static_cast<kvferry::status>(status), message}; }
};

using queue_stats = kvf_queue_stats;

namespace detail {
// What is under way is cancelled, and waited for briefly.
inline void end_queue(kvf_queue queue) { (void)kvf_queue_destroy(queue, 0); }
}  // namespace detail

// A background thread that runs transfers of one agent; destroy it before the agent. Its destructor
// cancels what is still under way; close() can carry it out.
class queue {
 public:
  queue() noexcept = default;
  // Takes over a handle of C.
  explicit queue(kvf_queue handle) noexcept : handle_(handle) {}

  static result<queue> try_create(const agent& agent, const queue_options& options = {}) {
    kvf_queue_options o = kvf_queue_options_default();
    o.capacity = options.capacity;
    o.slice_bytes = options.slice_bytes;
    o.slice_descriptors = options.slice_descriptors;
    o.slices_in_flight = options.slices_in_flight;
    kvf_queue handle{0};
    const kvf_status s = kvf_queue_create(agent.handle(), &o, &handle);
    if (s != KVF_OK) return detail::last(s);
    return queue(handle);
  }

  kvf_queue handle() const noexcept { return handle_.get(); }

  // Hands a request over and returns its ticket at once. Status busy: poll, then repeat.
  result<std::uint64_t> try_submit(const plan& plan, const submission& request) {
    const detail::c_names agents(request.agents);
    const auto groups = detail::c_groups(request.groups);
    kvf_submission c = kvf_submission_default();
    c.plan = plan.handle();
    c.agents = agents.data();
    c.agents_len = agents.size();
    c.groups = groups.data();
    c.groups_len = groups.size();
    c.tokens = request.tokens;
    if (request.notification) {
      const byte_view n = *request.notification;
      c.has_notification = 1;
      c.notification = n.data();
      c.notification_len = n.size();
    }
    c.deadline_ms = detail::ticks<std::uint64_t>(request.deadline);
    std::uint64_t ticket = 0;
    const kvf_status s = kvf_queue_submit(handle(), &c, &ticket);
    if (s != KVF_OK) return detail::last(s);
    return ticket;
  }

  // Takes up to `max` completions, oldest first. Never blocks.
  result<std::vector<completion>> try_poll(std::size_t max = 64) {
    std::vector<completion> taken;
    kvf_completion room[16];
    while (taken.size() < max) {
      const std::size_t wanted = std::min(max - taken.size(), std::size(room));
      std::size_t n = 0;
      const kvf_status s = kvf_queue_poll(handle(), room, wanted, &n);
      if (s != KVF_OK) return detail::last(s);
      for (std::size_t i = 0; i < n; i++) taken.push_back(completion{room[i]});
      if (n < wanted) break;
    }
    return taken;
  }

  // Blocks until there is a completion to poll: true; false when the time is over.
  result<bool> try_wait(std::chrono::milliseconds limit) const {
    std::uint8_t ready = 0;
    const kvf_status s = kvf_queue_wait(handle(), detail::ticks<std::uint64_t>(limit), &ready);
    if (s != KVF_OK) return detail::last(s);
    return ready != 0;
  }

  // Asks a request to stop; it completes when it has come to rest.
  result<void> try_cancel(std::uint64_t ticket) {
    return detail::done(kvf_queue_cancel(handle(), ticket));
  }

  result<queue_stats> try_stats() const {
    queue_stats stats{};
    const kvf_status s = kvf_queue_stats_get(handle(), &stats);
    if (s != KVF_OK) return detail::last(s);
    return stats;
  }

  // Readable while there are completions to poll. It belongs to the queue.
  result<int> try_event_fd() const {
    int fd = -1;
    const kvf_status s = kvf_queue_event_fd(handle(), &fd);
    if (s != KVF_OK) return detail::last(s);
    return fd;
  }

  // Ends it now: carries requests out for up to `drain`, then cancels what is left. Status timeout
  // if something was still moving at the end.
  result<void> try_close(std::chrono::milliseconds drain = std::chrono::milliseconds(0)) {
    return detail::done(kvf_queue_destroy(handle_.take(), detail::ticks<std::uint64_t>(drain)));
  }

#if KVFERRY_EXCEPTIONS
  explicit queue(const agent& agent, const queue_options& options = {})
      : queue(try_create(agent, options).value()) {}
  std::uint64_t submit(const plan& plan, const submission& request) {
    return try_submit(plan, request).value();
  }
  std::vector<completion> poll(std::size_t max = 64) { return try_poll(max).value(); }
  bool wait(std::chrono::milliseconds limit) const { return try_wait(limit).value(); }
  void cancel(std::uint64_t ticket) { try_cancel(ticket).value(); }
  queue_stats stats() const { return try_stats().value(); }
  int event_fd() const { return try_event_fd().value(); }
  void close(std::chrono::milliseconds drain = std::chrono::milliseconds(0)) {
    try_close(drain).value();
  }
#endif

 private:
  detail::owner<kvf_queue, detail::end_queue> handle_;
};

}  // namespace kvferry

#endif
