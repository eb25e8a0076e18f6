// A block pool in a kv_cache_server, many operations to a round trip. Part of kvferry.hpp.
#ifndef KVFERRY_POOL_CLIENT_HPP
#define KVFERRY_POOL_CLIENT_HPP

#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "kvferry/result.hpp"
#include "kvferry/views.hpp"

namespace kvferry {

// How to connect; see kvf_pool_client_options. What is left at its default is the library's default.
struct pool_client_options {
  std::string address;  // ipc:///tmp/kv_cache.sock
  std::string pool;     // the one that the server was started with
  std::string session;  // a name that nobody else has
  // The pool to make if there is none of that name; without, it must be there.
  std::optional<kvf_block_pool_options> create;
  bool publish = false;
  std::chrono::milliseconds timeout{0};
  std::chrono::milliseconds session_timeout{0};
};

// Operations that travel together, and afterwards what they came to. Each of the methods that add one
// returns its number, by which the results are asked for. Inputs are copied.
class pool_batch {
 public:
  pool_batch() = default;
  // The operations point into what is kept here, which stays where it is when a batch is moved. A copy's
  // would point into the original.
  pool_batch(const pool_batch&) = delete;
  pool_batch& operator=(const pool_batch&) = delete;
  pool_batch(pool_batch&&) = default;
  pool_batch& operator=(pool_batch&&) = default;

  // What kind it is, and whatever else it needs: for what has no method of its own. Its inputs are
  // borrowed until the batch has been run.
  std::size_t add(const kvf_pool_op& op) {
    kept_.emplace_back();
    ops_.push_back(op);
    return ops_.size() - 1;
  }
  std::size_t add(std::uint32_t kind) {
    kvf_pool_op op{};
    op.kind = kind;
    return add(op);
  }

  std::size_t allocate(std::uint32_t count, std::uint32_t after = 0,
                       const std::string& request = {}) {
    return taking(KVF_POOL_OP_ALLOCATE, count, after, request);
  }
  // As many as the request lacks to have `count` of them.
  std::size_t allocate_up_to(const std::string& request, std::uint32_t count,
                             std::uint32_t after = 0) {
    return taking(KVF_POOL_OP_ALLOCATE_UP_TO, count, after, request);
  }
  std::size_t free(span<const std::uint32_t> ids) { return on(KVF_POOL_OP_FREE, ids); }
  // All blocks of a request.
  std::size_t free(const std::string& request) { return named(add(KVF_POOL_OP_FREE_REQUEST), request); }
  std::size_t unpin(span<const std::uint32_t> ids) { return on(KVF_POOL_OP_UNPIN, ids); }
  std::size_t touch(span<const std::uint32_t> ids, const std::string& request = {}) {
    return named(on(KVF_POOL_OP_TOUCH, ids), request);
  }
  // The longest known prefix of these hashes, each of `hash_len` bytes; found() tells how many.
  std::size_t lookup(byte_view hashes, std::size_t hash_len,
                     span<const std::uint32_t> groups = {}) {
    return looking(KVF_POOL_OP_LOOKUP, hashes, hash_len, groups);
  }
  // The same, and what is found is touched.
  std::size_t acquire(byte_view hashes, std::size_t hash_len,
                      span<const std::uint32_t> groups = {}, const std::string& request = {}) {
    return named(looking(KVF_POOL_OP_ACQUIRE, hashes, hash_len, groups), request);
  }
  // `what`, and all that it points to, is borrowed until the batch has been run.
  std::size_t cache(const kvf_cached_blocks& what) {
    const std::size_t i = add(KVF_POOL_OP_CACHE);
    ops_[i].cached = &what;
    return i;
  }
  std::size_t evict(span<const std::uint32_t> ids) { return on(KVF_POOL_OP_EVICT, ids); }
  std::size_t reset() { return add(KVF_POOL_OP_RESET); }
  std::size_t num_free() { return add(KVF_POOL_OP_NUM_FREE); }
  std::size_t ref_counts(span<const std::uint32_t> ids) {
    return room(on(KVF_POOL_OP_REF_COUNTS, ids), ids.size());
  }
  std::size_t stats() {
    const std::size_t i = add(KVF_POOL_OP_STATS);
    ops_[i].stats = &kept_[i].stats;
    return i;
  }

  std::size_t size() const noexcept { return ops_.size(); }
  // Makes it empty again.
  void clear() {
    ops_.clear();
    kept_.clear();
  }

  // How an operation ended.
  result<void> outcome(std::size_t i) const {
    const kvf_pool_op& op = ops_[i];
    if (op.status == KVF_OK) return {};
    return failure{static_cast<kvferry::status>(op.status), op.message};
  }
  // The blocks (or numbers) that it gave.
  result<std::vector<std::uint32_t>> ids(std::size_t i) const {
    if (auto done = outcome(i); !done) return done.error();
    const auto& out = kept_[i].out;
    return std::vector<std::uint32_t>(out.data(), out.data() + ops_[i].out_len);
  }
  // The number that it gave: hashes found, blocks given back, free blocks, 1 for a reset that was
  // done.
  result<std::uint64_t> value(std::size_t i) const {
    if (auto done = outcome(i); !done) return done.error();
    return ops_[i].value;
  }
  result<kvf_block_pool_stats> stats(std::size_t i) const {
    if (auto done = outcome(i); !done) return done.error();
    return kept_[i].stats;
  }

 private:
  friend class pool_client;

  // What an operation points to; a deque, so that it stays where it is.
  struct kept {
    std::string request;
    std::vector<std::uint32_t> ids, groups, out;
    bytes hashes;
    kvf_block_pool_stats stats{};
  };

  std::size_t named(std::size_t i, const std::string& request) {
    kept_[i].request = request;
    ops_[i].request = detail::or_null(kept_[i].request);
    return i;
  }
  std::size_t room(std::size_t i, std::size_t size) {
    kept_[i].out.resize(size);
    ops_[i].out = size == 0 ? nullptr : kept_[i].out.data();
    ops_[i].out_capacity = size;
    return i;
  }
  std::size_t on(std::uint32_t kind, span<const std::uint32_t> ids) {
    const std::size_t i = add(kind);
    kept_[i].ids.assign(ids.begin(), ids.end());
    ops_[i].ids = kept_[i].ids.data();
    ops_[i].ids_len = ids.size();
    return i;
  }
  std::size_t taking(std::uint32_t kind, std::uint32_t count, std::uint32_t after,
                     const std::string& request) {
    const std::size_t i = room(named(add(kind), request), count);
    ops_[i].count = count;
    ops_[i].after = after;
    return i;
  }
  std::size_t looking(std::uint32_t kind, byte_view hashes, std::size_t hash_len,
                      span<const std::uint32_t> groups) {
    const std::size_t i = add(kind);
    kept& k = kept_[i];
    k.hashes.assign(hashes.data(), hashes.data() + hashes.size());
    k.groups.assign(groups.begin(), groups.end());
    if (k.groups.empty()) k.groups.push_back(0);
    ops_[i].hashes = k.hashes.data();
    ops_[i].hash_len = hash_len;
    ops_[i].hash_count = hash_len == 0 ? 0 : hashes.size() / hash_len;
    ops_[i].groups = k.groups.data();
    ops_[i].groups_len = k.groups.size();
    return room(i, ops_[i].hash_count * k.groups.size());
  }

  std::vector<kvf_pool_op> ops_;
  std::deque<kept> kept_;
};

namespace detail {
inline void end_pool_client(kvf_pool_client client) { (void)kvf_pool_client_close(client); }
}  // namespace detail

// A connection to a server, with a session that ends with it.
class pool_client {
 public:
  pool_client() noexcept = default;
  // Takes over a handle of C.
  explicit pool_client(kvf_pool_client handle) noexcept : handle_(handle) {}

  static result<pool_client> try_connect(const pool_client_options& options = {}) {
    kvf_pool_client_options o = kvf_pool_client_options_default();
    o.address = detail::or_null(options.address);
    o.pool = detail::or_null(options.pool);
    o.session = detail::or_null(options.session);
    o.create = options.create ? &*options.create : nullptr;
    o.publish = options.publish ? 1 : 0;
    o.timeout_ms = detail::ticks<std::uint64_t>(options.timeout);
    o.session_timeout_ms = detail::ticks<std::uint64_t>(options.session_timeout);
    kvf_pool_client made{0};
    const kvf_status s = kvf_pool_client_connect(&o, &made);
    if (s != KVF_OK) return detail::last(s);
    return pool_client(made);
  }

  kvf_pool_client handle() const noexcept { return handle_.get(); }

  // Carries out a batch in one round trip. A failure is the first operation's that has one, or that
  // of the call, after which all operations count as canceled.
  result<void> try_run(pool_batch& batch, bool stop_on_error = false) {
    for (kvf_pool_op& op : batch.ops_) {
      op.status = KVF_ERR_CANCELED;
      op.out_len = 0;
      op.message[0] = '\0';
    }
    return detail::done(kvf_pool_client_run(handle(), batch.ops_.data(), batch.ops_.size(),
                                            stop_on_error ? 1 : 0));
  }

  // One operation each.
  result<std::vector<std::uint32_t>> try_allocate(std::uint32_t count, std::uint32_t after = 0) {
    pool_batch one;
    one.allocate(count, after);
    if (auto done = try_run(one); !done) return done.error();
    return one.ids(0);
  }
  result<void> try_free(span<const std::uint32_t> ids) {
    pool_batch one;
    one.free(ids);
    return try_run(one);
  }
  result<std::uint64_t> try_num_free() {
    pool_batch one;
    one.num_free();
    if (auto done = try_run(one); !done) return done.error();
    return one.value(0);
  }

  // The numbers of the server and of all its pools, as text for Prometheus.
  result<std::string> try_metrics() {
    detail::buffer text;
    const kvf_status s = kvf_pool_client_metrics(handle(), &text);
    if (s != KVF_OK) return detail::last(s);
    return detail::to_string(text);
  }
  // Tells the server to answer what is in flight and to end.
  result<void> try_shutdown_server() {
    return detail::done(kvf_pool_client_shutdown_server(handle()));
  }
  // Ends the session now: what it holds goes back.
  result<void> try_close() { return detail::done(kvf_pool_client_close(handle_.take())); }

#if KVFERRY_EXCEPTIONS
  explicit pool_client(const pool_client_options& options)
      : pool_client(try_connect(options).value()) {}
  void run(pool_batch& batch, bool stop_on_error = false) {
    try_run(batch, stop_on_error).value();
  }
  std::vector<std::uint32_t> allocate(std::uint32_t count, std::uint32_t after = 0) {
    return try_allocate(count, after).value();
  }
  void free(span<const std::uint32_t> ids) { try_free(ids).value(); }
  std::uint64_t num_free() { return try_num_free().value(); }
  std::string metrics() { return try_metrics().value(); }
  void shutdown_server() { try_shutdown_server().value(); }
  void close() { try_close().value(); }
#endif

 private:
  detail::owner<kvf_pool_client, detail::end_pool_client> handle_;
};

}  // namespace kvferry

#endif
