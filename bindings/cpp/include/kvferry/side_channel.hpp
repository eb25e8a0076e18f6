// Metadata exchange before any transport connects two agents. Part of kvferry.hpp.
#ifndef KVFERRY_SIDE_CHANNEL_HPP
#define KVFERRY_SIDE_CHANNEL_HPP

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "kvferry/result.hpp"
#include "kvferry/views.hpp"

namespace kvferry {

// How to listen; see kvf_side_channel_options. What is left at its default is the library's
// default.
struct side_channel_options {
  std::string kind;  // "tcp", which is the default, or "zmq"
  std::string host;  // 127.0.0.1
  std::uint16_t port = 0;
  std::uint32_t max_connections = 0;
  std::uint64_t max_message_bytes = 0;
  std::chrono::milliseconds timeout{0};
};

// How to ask.
struct request_options {
  std::string kind;
  std::chrono::milliseconds timeout{0};
  std::uint64_t max_bytes = 0;
};

// A rank of an engine: its pipeline stage, and its tensor-parallel rank in it.
struct engine_rank {
  std::uint32_t pp = 0;
  std::uint32_t tp = 0;
};

// The metadata of one rank; the bytes are the caller's.
struct rank_payload {
  engine_rank rank;
  byte_view metadata;
};

// What a listener says about one rank. The clock is known where rtt_s is not negative: it is the
// listener's monotonic clock less ours, and how long the question took.
struct rank_answer {
  bytes metadata;
  kvf_clock_sample clock{0.0, -1.0};
};

namespace detail {
inline void end_channel(kvf_side_channel channel) { (void)kvf_side_channel_shutdown(channel); }

inline std::vector<kvf_rank_payload> c_ranks(const std::vector<rank_payload>& ranks) {
  std::vector<kvf_rank_payload> all;
  all.reserve(ranks.size());
  for (const auto& r : ranks)
    all.push_back({r.rank.pp, r.rank.tp, r.metadata.data(), r.metadata.size()});
  return all;
}
}  // namespace detail

// A listener that hands metadata to whoever asks, until it is destroyed.
class side_channel {
 public:
  side_channel() noexcept = default;
  // Takes over a handle of C.
  explicit side_channel(kvf_side_channel handle) noexcept : handle_(handle) {}

  static result<side_channel> try_listen(byte_view metadata,
                                         const side_channel_options& options = {}) {
    kvf_side_channel_options o = kvf_side_channel_options_default();
    o.kind = detail::or_null(options.kind);
    o.host = detail::or_null(options.host);
    o.port = options.port;
    o.max_connections = options.max_connections;
    o.max_message_bytes = options.max_message_bytes;
    o.timeout_ms = detail::ticks<std::uint64_t>(options.timeout);
    kvf_side_channel handle{0};
    const kvf_status s = kvf_side_channel_listen(&o, metadata.data(), metadata.size(), &handle);
    if (s != KVF_OK) return detail::last(s);
    return side_channel(handle);
  }

  kvf_side_channel handle() const noexcept { return handle_.get(); }

  // Clients that connect from now on get these.
  result<void> try_set_metadata(byte_view metadata) {
    return detail::done(kvf_side_channel_set_metadata(handle(), metadata.data(), metadata.size()));
  }

  // The metadata of one rank. With "tcp" there is only the first.
  result<void> try_set_rank_metadata(engine_rank rank, byte_view metadata) {
    return detail::done(kvf_side_channel_set_rank_metadata(handle(), rank.pp, rank.tp,
                                                           metadata.data(), metadata.size()));
  }

  // The metadata of all ranks at once; those that are not among them have none.
  result<void> try_replace_ranks(const std::vector<rank_payload>& ranks) {
    const auto all = detail::c_ranks(ranks);
    return detail::done(kvf_side_channel_replace_ranks(handle(), all.data(), all.size()));
  }

  result<std::uint16_t> try_port() const {
    std::uint16_t port = 0;
    const kvf_status s = kvf_side_channel_address(handle(), nullptr, &port);
    if (s != KVF_OK) return detail::last(s);
    return port;
  }

  result<std::string> try_host() const {
    detail::buffer host;
    const kvf_status s = kvf_side_channel_address(handle(), &host, nullptr);
    if (s != KVF_OK) return detail::last(s);
    return detail::to_string(host);
  }

  result<bool> try_is_running() const {
    std::uint8_t running = 0;
    const kvf_status s = kvf_side_channel_is_running(handle(), &running);
    if (s != KVF_OK) return detail::last(s);
    return running != 0;
  }

  // Stops it now.
  result<void> try_shutdown() { return detail::done(kvf_side_channel_shutdown(handle_.take())); }

#if KVFERRY_EXCEPTIONS
  static side_channel listen(byte_view metadata, const side_channel_options& options = {}) {
    return try_listen(metadata, options).value();
  }
  void set_metadata(byte_view metadata) { try_set_metadata(metadata).value(); }
  void set_rank_metadata(engine_rank rank, byte_view metadata) {
    try_set_rank_metadata(rank, metadata).value();
  }
  void replace_ranks(const std::vector<rank_payload>& ranks) { try_replace_ranks(ranks).value(); }
  std::uint16_t port() const { return try_port().value(); }
  std::string host() const { return try_host().value(); }
  bool is_running() const { return try_is_running().value(); }
  void shutdown() { try_shutdown().value(); }
#endif

 private:
  detail::owner<kvf_side_channel, detail::end_channel> handle_;
};

// Asks a listener for its metadata, once.
inline result<bytes> try_request_metadata(const std::string& host, std::uint16_t port,
                                          const request_options& options = {}) {
  detail::buffer metadata;
  const kvf_status s = kvf_side_channel_request(detail::or_null(options.kind), host.c_str(), port,
                                                detail::ticks<std::uint64_t>(options.timeout),
                                                options.max_bytes, &metadata);
  if (s != KVF_OK) return detail::last(s);
  return detail::to_bytes(metadata);
}

// Asks a listener for the metadata of one rank, and for its clock, once. The kind is "zmq" unless the
// options name another.
inline result<rank_answer> try_request_rank(const std::string& host, std::uint16_t port,
                                            engine_rank rank, const request_options& options = {}) {
  detail::buffer metadata;
  rank_answer answer;
  const kvf_status s = kvf_side_channel_request_rank(
      options.kind.empty() ? "zmq" : options.kind.c_str(), host.c_str(), port, rank.pp, rank.tp,
      detail::ticks<std::uint64_t>(options.timeout), options.max_bytes, &metadata, &answer.clock);
  if (s != KVF_OK) return detail::last(s);
  answer.metadata = detail::to_bytes(metadata);
  return answer;
}

#if KVFERRY_EXCEPTIONS
inline rank_answer request_rank(const std::string& host, std::uint16_t port, engine_rank rank,
                                const request_options& options = {}) {
  return try_request_rank(host, port, rank, options).value();
}

inline bytes request_metadata(const std::string& host, std::uint16_t port,
                              const request_options& options = {}) {
  return try_request_metadata(host, port, options).value();
}
#endif

}  // namespace kvferry

#endif
