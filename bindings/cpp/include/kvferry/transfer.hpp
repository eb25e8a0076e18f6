// Prepared lists and transfers; agent.hpp makes them. Part of kvferry.hpp.
#ifndef KVFERRY_TRANSFER_HPP
#define KVFERRY_TRANSFER_HPP

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <thread>

#include "kvferry/result.hpp"
#include "kvferry/views.hpp"

namespace kvferry {

// Direction, seen from the agent that posts.
enum class op : std::uint32_t { read = KVF_OP_READ, write = KVF_OP_WRITE };

enum class transfer_state : std::int32_t {
  done = KVF_TRANSFER_DONE,
  in_progress = KVF_TRANSFER_IN_PROGRESS,
};

struct transfer_options {
  // Sent to the remote agent when all bytes have arrived; may be empty bytes.
  std::optional<std::string> notification;
  // Backends that may carry the transfer; none is any.
  names backends;
  // nixl: leave adjacent ranges as they are.
  bool skip_merge = false;
};

using transfer_telemetry = kvf_transfer_telemetry;
using transfer_cost = kvf_transfer_cost;

// How long the destructor of a transfer that is under way waits for it to come to rest.
inline constexpr std::chrono::milliseconds settle_limit{5000};

namespace detail {

// Waits between two looks at something: at first it only gives the processor away, then it sleeps,
// longer each time, up to a millisecond. `left` is never overslept.
class back_off {
 public:
  void pause(std::chrono::steady_clock::duration left) {
    if (looks_ < 64) {
      looks_++;
      std::this_thread::yield();
      return;
    }
    std::this_thread::sleep_for(std::min<std::chrono::steady_clock::duration>(sleep_, left));
    sleep_ = std::min(sleep_ * 2, std::chrono::microseconds(1000));
  }

 private:
  int looks_ = 0;
  std::chrono::microseconds sleep_{2};
};

inline std::chrono::steady_clock::time_point deadline(std::chrono::milliseconds limit) noexcept {
  using clock = std::chrono::steady_clock;
  const auto now = clock::now();
  const auto most =
      std::chrono::duration_cast<std::chrono::milliseconds>(clock::time_point::max() - now);
  return limit >= most ? clock::time_point::max() : now + limit;
}

inline void end_list(kvf_desc_list list) { (void)kvf_desc_list_release(list); }

// Releases, waiting while it is busy. One that does not come to rest stays with its agent, which
// waits for it again when it is destroyed.
inline void end_transfer(kvf_transfer transfer) {
  const auto until = deadline(settle_limit);
  back_off wait;
  while (kvf_transfer_release(transfer) == KVF_ERR_BUSY) {
    const auto left = until - std::chrono::steady_clock::now();
    if (left <= left.zero()) return;
    wait.pause(left);
  }
}

// A kvf_transfer_options that borrows from transfer_options.
class c_transfer_options {
 public:
  explicit c_transfer_options(const transfer_options& o)
      : names_(o.backends), options_(kvf_transfer_options_default()) {
    if (o.notification) {
      options_.has_notification = 1;
      options_.notification = reinterpret_cast<const std::uint8_t*>(o.notification->data());
      options_.notification_len = o.notification->size();
    }
    options_.backends = names_.data();
    options_.backends_len = names_.size();
    options_.skip_merge = o.skip_merge ? 1 : 0;
  }
  c_transfer_options(const c_transfer_options&) = delete;
  c_transfer_options& operator=(const c_transfer_options&) = delete;
  const kvf_transfer_options* get() const noexcept { return &options_; }

 private:
  c_names names_;
  kvf_transfer_options options_;
};

}  // namespace detail

// Ranges prepared for picking by index. Transfers made from a list go on without it.
class desc_list {
 public:
  desc_list() noexcept = default;
  // Takes over a handle of C.
  explicit desc_list(kvf_desc_list handle) noexcept : handle_(handle) {}

  kvf_desc_list handle() const noexcept { return handle_.get(); }

  result<std::size_t> try_size() const {
    std::size_t n = 0;
    const kvf_status s = kvf_desc_list_len(handle(), &n);
    if (s != KVF_OK) return detail::last(s);
    return n;
  }
#if KVFERRY_EXCEPTIONS
  std::size_t size() const { return try_size().value(); }
#endif

 private:
  detail::owner<kvf_desc_list, detail::end_list> handle_;
};

// One transfer.
//
// Its destructor may run while bytes move: it asks the transfer to stop and waits until it has come
// to rest, at most `settle_limit`, so that buffers declared before it can go after it. Where that
// is not enough (a backend that cannot stop, a huge transfer) the agent keeps the transfer and
// waits for it when it is destroyed itself.
class transfer {
 public:
  transfer() noexcept = default;
  // Takes over a handle of C.
  explicit transfer(kvf_transfer handle) noexcept : handle_(handle) {}

  kvf_transfer handle() const noexcept { return handle_.get(); }
  // Leaves the transfer to its agent: it runs to its end, and ends with the agent.
  kvf_transfer detach() noexcept { return handle_.take(); }

  // Starts it, or starts it again. A notification that is not empty replaces the one given when it
  // was made.
  result<transfer_state> try_post(byte_view notification = {}) {
    std::int32_t state = 0;
    const kvf_status s =
        kvf_transfer_post(handle(), notification.data(), notification.size(), &state);
    if (s != KVF_OK) return detail::last(s);
    return static_cast<transfer_state>(state);
  }

  // Where it stands. A failure is how it ended.
  result<transfer_state> try_state() const {
    std::int32_t state = 0;
    const kvf_status s = kvf_transfer_state(handle(), &state);
    if (s != KVF_OK) return detail::last(s);
    return static_cast<transfer_state>(state);
  }

  // Waits until it has ended: true when all bytes are in place, false when the time is over and it
  // is still under way. A failure is how it ended. Polls, with growing pauses up to a millisecond.
  result<bool> try_wait(std::chrono::milliseconds limit) const {
    const auto until = detail::deadline(limit);
    detail::back_off wait;
    for (;;) {
      const auto state = try_state();
      if (!state) return state.error();
      if (*state == transfer_state::done) return true;
      const auto left = until - std::chrono::steady_clock::now();
      if (left <= left.zero()) return false;
      wait.pause(left);
    }
  }

  // Asks it to stop; it has come to rest when its state is no longer in_progress.
  result<void> try_cancel() { return detail::done(kvf_transfer_cancel(handle())); }

  // Ends it now. Status busy while bytes may still move; the object then keeps it.
  result<void> try_release() {
    const kvf_status s = kvf_transfer_release(handle());
    if (s != KVF_OK) return detail::last(s);
    (void)handle_.take();
    return {};
  }

  result<transfer_telemetry> try_telemetry() const {
    transfer_telemetry t{};
    const kvf_status s = kvf_transfer_telemetry_get(handle(), &t);
    if (s != KVF_OK) return detail::last(s);
    return t;
  }

  result<transfer_cost> try_cost() const {
    transfer_cost c{};
    const kvf_status s = kvf_transfer_cost_estimate(handle(), &c);
    if (s != KVF_OK) return detail::last(s);
    return c;
  }

  // Name of the backend that carries it.
  result<std::string> try_backend() const {
    detail::buffer b;
    const kvf_status s = kvf_transfer_backend(handle(), &b);
    if (s != KVF_OK) return detail::last(s);
    return detail::to_string(b);
  }

#if KVFERRY_EXCEPTIONS
  transfer_state post(byte_view notification = {}) { return try_post(notification).value(); }
  transfer_state state() const { return try_state().value(); }
  bool wait(std::chrono::milliseconds limit) const { return try_wait(limit).value(); }
  void cancel() { try_cancel().value(); }
  void release() { try_release().value(); }
  transfer_telemetry telemetry() const { return try_telemetry().value(); }
  transfer_cost cost() const { return try_cost().value(); }
  std::string backend() const { return try_backend().value(); }
#endif

 private:
  detail::owner<kvf_transfer, detail::end_transfer> handle_;
};

}  // namespace kvferry

#endif
