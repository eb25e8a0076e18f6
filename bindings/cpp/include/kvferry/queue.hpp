// Transfers in the background: plans and block ids in, completions out. Part of kvferry.hpp.
#ifndef KVFERRY_QUEUE_HPP
#define KVFERRY_QUEUE_HPP

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvferry/agent.hpp"
#include "kvferry/plan.hpp"
#include "kvferry/result.hpp"
#include "kvferry/views.hpp"

namespace kvferry {

// See kvf_queue_options; zero is the library's default.
struct queue_options {
  std::uint32_t capacity = 0;
  std::uint64_t slice_bytes = 0;
  std::uint32_t slice_descriptors = 0;
  std::uint32_t slices_in_flight = 0;
};

struct submit_options {
  // Tokens of the request that the producer holds, from the first one; 0 is "not stated".
  std::uint64_t tokens = 0;
  // Sent to each peer that is not idle when all bytes are in; may be empty bytes.
  std::optional<std::string> notification;
  // Conditions that must hold after all bytes are in; see kvf_guard. Without them the request fails
  // with status expired.
  std::vector<kvf_guard> guards;
  // How long the request may take.
  std::optional<std::chrono::milliseconds> deadline;
};

// What became of a request, with its figures; see kvf_completion. Its blocks are the caller's
// again.
using completion = kvf_completion;
using queue_stats = kvf_queue_stats;

// How a request ended: success, or the failure.
inline result<void> outcome(const completion& c) {
  if (c.status == KVF_OK) return {};
  return failure{static_cast<status>(c.status), c.message};
}

namespace detail {
inline void end_queue(kvf_queue queue) { (void)kvf_queue_destroy(queue, 0); }
}  // namespace detail

// A background thread that runs transfers of one agent. submit() and poll() never block.
//
// Its destructor cancels what is under way and waits for it, a tenth of a second at most; close()
// gives it time, and says whether that was enough. Destroy the queue before its agent: declared
// after it, that is so.
class queue {
 public:
  queue() noexcept = default;
  // Takes over a handle of C.
  explicit queue(kvf_queue handle) noexcept : handle_(handle) {}

  static result<queue> try_create(const agent& owner, const queue_options& options = {}) {
    kvf_queue_options o = kvf_queue_options_default();
    o.capacity = options.capacity;
    o.slice_bytes = options.slice_bytes;
    o.slice_descriptors = options.slice_descriptors;
    o.slices_in_flight = options.slices_in_flight;
    kvf_queue made{0};
    const kvf_status s = kvf_queue_create(owner.handle(), &o, &made);
    if (s != KVF_OK) return detail::last(s);
    return queue(made);
  }

  kvf_queue handle() const noexcept { return handle_.get(); }

  // Hands a request over and returns its ticket. `agents` are the names of the plan's peers, as
  // add_remote() gave them. Status busy if the queue is full: poll, then repeat.
  result<std::uint64_t> try_submit(const plan& what, const names& agents,
                                   span<const group_blocks> blocks,
                                   const submit_options& options = {}) {
    const detail::c_names peers(agents);
    const auto groups = detail::c_blocks(blocks);
    kvf_submission s = kvf_submission_default();
    s.plan = what.handle();
    s.agents = peers.data();
    s.agents_len = peers.size();
    s.groups = groups.data();
    s.groups_len = groups.size();
    s.tokens = options.tokens;
    if (options.notification) {
      s.has_notification = 1;
      s.notification = reinterpret_cast<const std::uint8_t*>(options.notification->data());
      s.notification_len = options.notification->size();
    }
    s.guards = options.guards.data();
    s.guards_len = options.guards.size();
    // To C, 0 is no limit; here it is one that is over.
    if (options.deadline)
      s.deadline_ms =
          std::max<std::uint64_t>(detail::ticks<std::uint64_t>(*options.deadline), 1);
    std::uint64_t ticket = 0;
    const kvf_status status = kvf_queue_submit(handle(), &s, &ticket);
    if (status != KVF_OK) return detail::last(status);
    return ticket;
  }

  // Takes completions, oldest first, into `room`; how many. Allocates nothing.
  result<std::size_t> try_poll(span<completion> room) {
    std::size_t len = 0;
    const kvf_status s = kvf_queue_poll(handle(), room.data(), room.size(), &len);
    if (s != KVF_OK) return detail::last(s);
    return len;
  }
  // Takes one completion, if there is one.
  result<std::optional<completion>> try_poll() {
    completion one{};
    const auto taken = try_poll(span<completion>(&one, 1));
    if (!taken) return taken.error();
    return *taken == 1 ? std::optional(one) : std::nullopt;
  }
  // Blocks until there is a completion to poll, or the time is over; whether there is one.
  result<bool> try_wait(std::chrono::milliseconds limit) {
    std::uint8_t ready = 0;
    const kvf_status s =
        kvf_queue_wait(handle(), detail::ticks<std::uint64_t>(limit), &ready);
    if (s != KVF_OK) return detail::last(s);
    return ready != 0;
  }
  // Asks a request to stop; it completes once it has come to rest.
  result<void> try_cancel(std::uint64_t ticket) {
    return detail::done(kvf_queue_cancel(handle(), ticket));
  }
  result<queue_stats> try_stats() const {
    queue_stats stats{};
    const kvf_status s = kvf_queue_stats_get(handle(), &stats);
    if (s != KVF_OK) return detail::last(s);
    return stats;
  }
  // Readable while there are completions to poll. Belongs to the queue: do not read or close it.
  result<int> try_event_fd() const {
    int fd = -1;
    const kvf_status s = kvf_queue_event_fd(handle(), &fd);
    if (s != KVF_OK) return detail::last(s);
    return fd;
  }
  // Ends it now, in either case. What it has accepted is carried out for up to `drain`, then
  // cancelled. Status timeout if something was still moving after that: the memory must stay until
  // the agent has ended.
  result<void> try_close(std::chrono::milliseconds drain = {}) {
    return detail::done(
        kvf_queue_destroy(handle_.take(), detail::ticks<std::uint64_t>(drain)));
  }

#if KVFERRY_EXCEPTIONS
  explicit queue(const agent& owner, const queue_options& options = {})
      : queue(try_create(owner, options).value()) {}
  std::uint64_t submit(const plan& what, const names& agents, span<const group_blocks> blocks,
                       const submit_options& options = {}) {
    return try_submit(what, agents, blocks, options).value();
  }
  std::size_t poll(span<completion> room) { return try_poll(room).value(); }
  std::optional<completion> poll() { return try_poll().value(); }
  bool wait(std::chrono::milliseconds limit) { return try_wait(limit).value(); }
  void cancel(std::uint64_t ticket) { try_cancel(ticket).value(); }
  queue_stats stats() const { return try_stats().value(); }
  int event_fd() const { return try_event_fd().value(); }
  void close(std::chrono::milliseconds drain = {}) { try_close(drain).value(); }
#endif

 private:
  detail::owner<kvf_queue, detail::end_queue> handle_;
};

}  // namespace kvferry

#endif
