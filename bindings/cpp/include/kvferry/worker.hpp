// Connector, worker half: one rank's transfers, leases and peers. Part of kvferry.hpp.
#ifndef KVFERRY_WORKER_HPP
#define KVFERRY_WORKER_HPP

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvferry/agent.hpp"
#include "kvferry/kv_cache.hpp"
#include "kvferry/queue.hpp"
#include "kvferry/result.hpp"
#include "kvferry/scheduler.hpp"
#include "kvferry/views.hpp"

namespace kvferry {

// See kvf_worker_options; zero, and an empty string, is the library's default.
struct worker_options {
  transfer_mode mode = transfer_mode::pull;
  std::string engine_id;
  std::string compat_hash;
  bool ignore_compat = false;
  std::string host;
  std::uint16_t port = 0;
  std::uint32_t tp_rank = 0;
  std::uint32_t tp_size = 0;
  std::uint32_t pp_rank = 0;
  std::uint32_t pp_size = 0;
  std::uint32_t dcp_size = 0;
  std::uint32_t dcp_interleave = 0;
  std::chrono::milliseconds lease{0};
  std::chrono::milliseconds handshake_timeout{0};
  // Peers that nobody has wanted for so long are forgotten; none: never.
  std::optional<std::chrono::milliseconds> engine_ttl = std::chrono::milliseconds{0};
  std::chrono::milliseconds registration_timeout{0};
  std::chrono::milliseconds transfer_timeout{0};
  queue_options queue;
};

// What has become of requests; each is reported once. See kvf_worker_results.
struct worker_results {
  std::vector<std::string> sent;
  std::vector<std::string> received;
  // Those of `received` that failed.
  std::vector<std::string> failed;
  std::vector<std::uint32_t> failed_blocks;
  // Whether there are figures to take.
  bool has_stats = false;

  bool empty() const noexcept { return sent.empty() && received.empty(); }
};

// Which way a request went.
enum class record_kind : std::uint32_t {
  receive = KVF_RECORD_RECEIVE,
  push = KVF_RECORD_PUSH,
};

// What became of one request; see kvf_worker_record.
struct worker_record {
  std::string request_id;
  std::string engine_id;
  record_kind kind = record_kind::receive;
  kvferry::status status = kvferry::status::ok;
  std::string message;
  std::uint64_t arrived_ns = 0;
  std::uint64_t queued_ns = 0;
  std::uint64_t planned_ns = 0;
  std::uint64_t posted_ns = 0;
  std::uint64_t finished_ns = 0;
  std::uint64_t bytes = 0;
  std::uint64_t descriptors = 0;
};

using worker_state = kvf_worker_state;

namespace detail {
inline void end_worker(kvf_worker worker) { (void)kvf_worker_destroy(worker, 0); }

using worker_record_list = given<kvf_worker_record_list, kvf_worker_record_list_free>;

inline worker_record record_of(const kvf_worker_record& r) {
  return {r.request_id,
          r.engine_id,
          static_cast<record_kind>(r.kind),
          static_cast<status>(r.status),
          r.message,
          r.arrived_ns,
          r.queued_ns,
          r.planned_ns,
          r.posted_ns,
          r.finished_ns,
          r.bytes,
          r.descriptors};
}

inline result<std::string> text_of(kvf_status status, kvf_buffer& taken) {
  if (status != KVF_OK) return last(status);
  std::string text;
  if (taken.len != 0) text.assign(reinterpret_cast<const char*>(taken.data), taken.len);
  kvf_buffer_free(&taken);
  return text;
}
}  // namespace detail

// One rank's half of the connector. step() and poll() never block.
//
// Its destructor cancels what is under way and waits for it, a tenth of a second at most; close()
// gives it time, and says whether that was enough. Destroy the worker before its agent: declared
// after it, that is so.
class worker {
 public:
  worker() noexcept = default;
  // Takes over a handle of C.
  explicit worker(kvf_worker handle) noexcept : handle_(handle) {}

  static result<worker> try_create(const agent& owner, const worker_options& options) {
    kvf_queue_options transfers = kvf_queue_options_default();
    transfers.capacity = options.queue.capacity;
    transfers.slice_bytes = options.queue.slice_bytes;
    transfers.slice_descriptors = options.queue.slice_descriptors;
    transfers.slices_in_flight = options.queue.slices_in_flight;
    const auto text = [](const std::string& s) { return s.empty() ? nullptr : s.c_str(); };
    const auto ms = [](std::chrono::milliseconds t) { return detail::ticks<std::uint64_t>(t); };
    kvf_worker_options o = kvf_worker_options_default();
    o.mode = static_cast<std::uint32_t>(options.mode);
    o.agent = owner.handle();
    o.engine_id = options.engine_id.c_str();
    o.compat_hash = text(options.compat_hash);
    o.host = text(options.host);
    o.queue = &transfers;
    o.tp_rank = options.tp_rank;
    o.tp_size = options.tp_size;
    o.pp_rank = options.pp_rank;
    o.pp_size = options.pp_size;
    o.dcp_size = options.dcp_size;
    o.dcp_interleave = options.dcp_interleave;
    o.lease_ms = ms(options.lease);
    o.handshake_timeout_ms = ms(options.handshake_timeout);
    o.engine_ttl_ms = options.engine_ttl ? ms(*options.engine_ttl) : UINT64_MAX;
    o.registration_timeout_ms = ms(options.registration_timeout);
    o.transfer_timeout_ms = ms(options.transfer_timeout);
    o.port = options.port;
    o.ignore_compat = options.ignore_compat ? 1 : 0;
    kvf_worker made{0};
    const kvf_status s = kvf_worker_create(&o, &made);
    if (s != KVF_OK) return detail::last(s);
    return worker(made);
  }

  kvf_worker handle() const noexcept { return handle_.get(); }

  // Registers the rank's KV cache. Once, before anything else.
  result<void> try_register_kv(const kv_cache& cache) {
    const auto sound = detail::c_kv_cache::check(cache);
    if (!sound) return sound.error();
    return try_register_kv(*detail::c_kv_cache(cache).get());
  }
  // The same with the struct of C.
  result<void> try_register_kv(const kvf_kv_cache& cache) {
    return detail::done(kvf_worker_register_kv(handle(), &cache));
  }
  // What this rank answers to handshakes, for scheduler::serve().
  result<bytes> try_payload() const {
    kvf_buffer taken{nullptr, 0};
    const kvf_status s = kvf_worker_payload(handle(), &taken);
    if (s != KVF_OK) return detail::last(s);
    bytes out(taken.data, taken.data + taken.len);
    kvf_buffer_free(&taken);
    return out;
  }
  // Takes the bytes of an engine step.
  result<void> try_step(byte_view step) {
    return detail::done(kvf_worker_step(handle(), step.data(), step.size()));
  }
  // What has become of requests since the last call.
  result<worker_results> try_poll() {
    kvf_worker_results taken{};
    const kvf_status s = kvf_worker_poll(handle(), &taken);
    if (s != KVF_OK) return detail::last(s);
    worker_results out;
    if (taken.sent_len != 0) out.sent.assign(taken.sent, taken.sent + taken.sent_len);
    if (taken.received_len != 0)
      out.received.assign(taken.received, taken.received + taken.received_len);
    if (taken.failed_len != 0) out.failed.assign(taken.failed, taken.failed + taken.failed_len);
    if (taken.failed_blocks_len != 0)
      out.failed_blocks.assign(taken.failed_blocks,
                               taken.failed_blocks + taken.failed_blocks_len);
    out.has_stats = taken.has_stats != 0;
    kvf_worker_results_free(&taken);
    return out;
  }
  // Blocks until there is something to poll, or the time is over; whether there is something.
  result<bool> try_wait(std::chrono::milliseconds limit) {
    std::uint8_t ready = 0;
    const kvf_status s =
        kvf_worker_wait(handle(), detail::ticks<std::uint64_t>(limit), &ready);
    if (s != KVF_OK) return detail::last(s);
    return ready != 0;
  }
  // Readable while there is something to poll. Belongs to the worker: do not read or close it.
  result<int> try_event_fd() const {
    int fd = -1;
    const kvf_status s = kvf_worker_event_fd(handle(), &fd);
    if (s != KVF_OK) return detail::last(s);
    return fd;
  }
  // Figures since the last call as JSON: lists by the names of vLLM's statistics.
  result<std::string> try_take_stats() {
    kvf_buffer taken{nullptr, 0};
    return detail::text_of(kvf_worker_take_stats(handle(), &taken), taken);
  }
  // Records of the requests that are over since the last call.
  result<std::vector<worker_record>> try_take_record_list() {
    detail::worker_record_list taken;
    const kvf_status s = kvf_worker_take_record_list(handle(), &taken);
    if (s != KVF_OK) return detail::last(s);
    std::vector<worker_record> out;
    out.reserve(taken.len);
    for (std::size_t i = 0; i < taken.len; i++) out.push_back(detail::record_of(taken.items[i]));
    return out;
  }
  // The same as JSON objects, one per line.
  result<std::string> try_take_records() {
    kvf_buffer taken{nullptr, 0};
    return detail::text_of(kvf_worker_take_records(handle(), &taken), taken);
  }
  result<worker_state> try_state() const {
    worker_state state{};
    const kvf_status s = kvf_worker_state_get(handle(), &state);
    if (s != KVF_OK) return detail::last(s);
    return state;
  }
  // Ends it now, in either case. Transfers are carried out for up to `drain`, then cancelled. Status
  // timeout if something was still moving after that: the memory must stay until the agent has ended.
  result<void> try_close(std::chrono::milliseconds drain = {}) {
    return detail::done(
        kvf_worker_destroy(handle_.take(), detail::ticks<std::uint64_t>(drain)));
  }

#if KVFERRY_EXCEPTIONS
  worker(const agent& owner, const worker_options& options)
      : worker(try_create(owner, options).value()) {}
  void register_kv(const kv_cache& cache) { try_register_kv(cache).value(); }
  void register_kv(const kvf_kv_cache& cache) { try_register_kv(cache).value(); }
  bytes payload() const { return try_payload().value(); }
  void step(byte_view bytes_of_step) { try_step(bytes_of_step).value(); }
  worker_results poll() { return try_poll().value(); }
  bool wait(std::chrono::milliseconds limit) { return try_wait(limit).value(); }
  int event_fd() const { return try_event_fd().value(); }
  std::string take_stats() { return try_take_stats().value(); }
  std::vector<worker_record> take_record_list() { return try_take_record_list().value(); }
  std::string take_records() { return try_take_records().value(); }
  worker_state state() const { return try_state().value(); }
  void close(std::chrono::milliseconds drain = {}) { try_close(drain).value(); }
#endif

 private:
  detail::owner<kvf_worker, detail::end_worker> handle_;
};

}  // namespace kvferry

#endif
