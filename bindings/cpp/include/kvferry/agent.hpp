// One rank's endpoint. Part of kvferry.hpp.
#ifndef KVFERRY_AGENT_HPP
#define KVFERRY_AGENT_HPP

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvferry/result.hpp"
#include "kvferry/transfer.hpp"
#include "kvferry/views.hpp"

namespace kvferry {

// Who answers peers while the program is busy elsewhere.
enum class progress : std::uint32_t {
  thread = KVF_PROGRESS_THREAD,
  caller = KVF_PROGRESS_CALLER,
  spin = KVF_PROGRESS_SPIN,
};

enum class sync_mode : std::uint32_t {
  standard = KVF_SYNC_DEFAULT,
  none = KVF_SYNC_NONE,
  strict = KVF_SYNC_STRICT,
  read_write = KVF_SYNC_RW,
};

// A backend to create.
struct backend {
  std::string name;
  kvferry::params params;
};

// What an agent is created with; see kvf_agent_options. Set name and transport; what is left at its
// default is the library's default.
struct agent_options {
  std::string name;
  std::string transport;  // "nixl" or "local"
  std::string nixl_library;
  std::string nixl_plugin_dir;
  std::vector<backend> backends;
  bool no_default_backend = false;
  kvferry::progress progress = kvferry::progress::thread;
  std::chrono::microseconds progress_delay{0};
  kvferry::sync_mode sync_mode = kvferry::sync_mode::standard;
  std::uint32_t worker_threads = 0;
  std::uint32_t copy_threads = 0;
  std::chrono::milliseconds drain_timeout{0};
  std::optional<std::uint16_t> listen_port;
  bool telemetry = false;
};

// A message from a remote agent.
struct notification {
  std::string from;
  bytes payload;
  // The payload as text.
  std::string_view text() const noexcept {
    return {reinterpret_cast<const char*>(payload.data()), payload.size()};
  }
};

// A backend or plugin: its parameters, and a bit 1 << kind for each memory kind it serves.
struct capabilities {
  kvferry::params params;
  std::uint32_t mem_kinds = 0;
  bool serves(mem kind) const noexcept {
    return (mem_kinds >> static_cast<std::uint32_t>(kind) & 1u) != 0;
  }
};

namespace detail {

inline void end_agent(kvf_agent agent) { (void)kvf_agent_destroy(agent); }

inline std::vector<kvf_param> c_params(const params& all) {
  std::vector<kvf_param> out;
  out.reserve(all.size());
  for (const auto& [key, value] : all) out.push_back({key.c_str(), value.c_str()});
  return out;
}

inline std::vector<reg_desc> to_regs(span<const mem_desc> ranges) {
  std::vector<reg_desc> out;
  out.reserve(ranges.size());
  for (const auto& r : ranges) out.push_back({r.addr, r.len, r.device, nullptr, 0});
  return out;
}

inline std::vector<notification> to_notifications(const kvf_notification_list& list) {
  std::vector<notification> out;
  out.reserve(list.len);
  for (std::size_t i = 0; i < list.len; i++) {
    const auto& n = list.items[i];
    out.push_back(
        {n.from, n.payload_len == 0 ? bytes() : bytes(n.payload, n.payload + n.payload_len)});
  }
  return out;
}

// Metadata goes to a listener, or with no host to the central store.
inline const char* host_or_null(const std::optional<std::string>& host) noexcept {
  return host ? host->c_str() : nullptr;
}

}  // namespace detail

// One rank's endpoint. Destroying it ends its lists and transfers, waiting for what is under way at
// most `drain_timeout`; close() does the same and says how it went.
class agent {
 public:
  agent() noexcept = default;
  // Takes over a handle of C.
  explicit agent(kvf_agent handle) noexcept : handle_(handle) {}

  static result<agent> try_create(const agent_options& options) {
    std::vector<std::vector<kvf_param>> pairs;
    std::vector<kvf_backend> backends;
    for (const auto& b : options.backends) {
      pairs.push_back(detail::c_params(b.params));
      backends.push_back({b.name.c_str(), pairs.back().data(), pairs.back().size()});
    }
    kvf_agent_options o = kvf_agent_options_default();
    o.name = options.name.c_str();
    o.transport = options.transport.c_str();
    o.nixl_library = detail::or_null(options.nixl_library);
    o.nixl_plugin_dir = detail::or_null(options.nixl_plugin_dir);
    o.backends = backends.data();
    o.backends_len = backends.size();
    o.no_default_backend = options.no_default_backend ? 1 : 0;
    o.progress = static_cast<std::uint32_t>(options.progress);
    o.progress_delay_us = detail::ticks<std::uint64_t>(options.progress_delay);
    o.sync_mode = static_cast<std::uint32_t>(options.sync_mode);
    o.worker_threads = options.worker_threads;
    o.copy_threads = options.copy_threads;
    o.drain_timeout_ms = detail::ticks<std::uint32_t>(options.drain_timeout);
    o.listen = options.listen_port ? 1 : 0;
    o.listen_port = options.listen_port.value_or(0);
    o.telemetry = options.telemetry ? 1 : 0;
    kvf_agent handle{0};
    const kvf_status s = kvf_agent_create(&o, &handle);
    if (s != KVF_OK) return detail::last(s);
    return agent(handle);
  }

  kvf_agent handle() const noexcept { return handle_.get(); }

  // Ends the agent. Status timeout if transfers may still touch memory. Empty afterwards.
  result<void> try_close() { return detail::done(kvf_agent_destroy(handle_.take())); }

  result<std::string> try_name() const {
    detail::buffer b;
    const kvf_status s = kvf_agent_name(handle(), &b);
    if (s != KVF_OK) return detail::last(s);
    return detail::to_string(b);
  }

  // --- Plugins and backends

  result<names> try_plugins() const {
    detail::string_list list;
    const kvf_status s = kvf_agent_plugins(handle(), &list);
    if (s != KVF_OK) return detail::last(s);
    return detail::to_names(list);
  }
  result<names> try_backends() const {
    detail::string_list list;
    const kvf_status s = kvf_agent_backends(handle(), &list);
    if (s != KVF_OK) return detail::last(s);
    return detail::to_names(list);
  }
  result<capabilities> try_plugin_info(const std::string& plugin) const {
    return info(kvf_agent_plugin_info, plugin);
  }
  result<capabilities> try_backend_info(const std::string& backend) const {
    return info(kvf_agent_backend_info, backend);
  }
  result<void> try_create_backend(const backend& b) {
    const auto pairs = detail::c_params(b.params);
    const kvf_backend c{b.name.c_str(), pairs.data(), pairs.size()};
    return detail::done(kvf_agent_create_backend(handle(), &c));
  }

  // --- Memory. Ranges with metadata for the backend (paths, keys) are reg_desc.

  result<void> try_register_memory(mem kind, span<const mem_desc> ranges,
                                   const names& backends = {}) {
    return try_register_memory(kind, span<const reg_desc>(detail::to_regs(ranges)), backends);
  }
  result<void> try_register_memory(mem kind, span<const reg_desc> ranges,
                                   const names& backends = {}) {
    const detail::c_names b(backends);
    return detail::done(kvf_agent_register(handle(), static_cast<std::uint32_t>(kind),
                                           ranges.data(), ranges.size(), b.data(), b.size()));
  }
  result<void> try_deregister_memory(mem kind, span<const mem_desc> ranges,
                                     const names& backends = {}) {
    return try_deregister_memory(kind, span<const reg_desc>(detail::to_regs(ranges)), backends);
  }
  result<void> try_deregister_memory(mem kind, span<const reg_desc> ranges,
                                     const names& backends = {}) {
    const detail::c_names b(backends);
    return detail::done(kvf_agent_deregister(handle(), static_cast<std::uint32_t>(kind),
                                             ranges.data(), ranges.size(), b.data(), b.size()));
  }
  result<void> try_register_memory(mem kind, const mem_desc& range, const names& backends = {}) {
    return try_register_memory(kind, span<const mem_desc>(&range, 1), backends);
  }
  result<void> try_deregister_memory(mem kind, const mem_desc& range, const names& backends = {}) {
    return try_deregister_memory(kind, span<const mem_desc>(&range, 1), backends);
  }
  // What a backend knows about each range; nothing where it knows nothing.
  result<std::vector<std::optional<params>>> try_query_memory(mem kind, span<const reg_desc> ranges,
                                                              const std::string& backend) const {
    detail::query_list list;
    const kvf_status s =
        kvf_agent_query_memory(handle(), static_cast<std::uint32_t>(kind), ranges.data(),
                               ranges.size(), backend.c_str(), &list);
    if (s != KVF_OK) return detail::last(s);
    std::vector<std::optional<params>> out;
    out.reserve(list.len);
    for (std::size_t i = 0; i < list.len; i++) {
      const auto& one = list.items[i];
      out.push_back(one.found != 0 ? std::optional(detail::to_params(one.params)) : std::nullopt);
    }
    return out;
  }

  // --- Metadata and remote agents

  result<bytes> try_metadata() const {
    detail::buffer b;
    const kvf_status s = kvf_agent_metadata(handle(), &b);
    if (s != KVF_OK) return detail::last(s);
    return detail::to_bytes(b);
  }
  result<bytes> try_partial_metadata(mem kind, span<const reg_desc> ranges, bool connection_info,
                                     const names& backends = {}) const {
    const detail::c_names b(backends);
    detail::buffer out;
    const kvf_status s = kvf_agent_partial_metadata(
        handle(), static_cast<std::uint32_t>(kind), ranges.data(), ranges.size(),
        connection_info ? 1 : 0, b.data(), b.size(), &out);
    if (s != KVF_OK) return detail::last(s);
    return detail::to_bytes(out);
  }
  // Loads a peer's metadata; gives the peer's name.
  result<std::string> try_add_remote(byte_view metadata) {
    detail::buffer b;
    const kvf_status s = kvf_agent_add_remote(handle(), metadata.data(), metadata.size(), &b);
    if (s != KVF_OK) return detail::last(s);
    return detail::to_string(b);
  }
  result<void> try_remove_remote(const std::string& remote) {
    return detail::done(kvf_agent_remove_remote(handle(), remote.c_str()));
  }
  // Whether metadata of a peer is loaded and covers the ranges.
  result<bool> try_check_remote(const std::string& remote, mem kind = mem::dram,
                                span<const mem_desc> ranges = {}) const {
    std::uint8_t ready = 0;
    const kvf_status s =
        kvf_agent_check_remote(handle(), remote.c_str(), static_cast<std::uint32_t>(kind),
                               ranges.data(), ranges.size(), &ready);
    if (s != KVF_OK) return detail::last(s);
    return ready != 0;
  }
  result<void> try_connect(const std::string& remote, const names& backends = {}) {
    const detail::c_names b(backends);
    return detail::done(kvf_agent_connect(handle(), remote.c_str(), b.data(), b.size()));
  }
  // To a peer's listener or, with no host, to the central store: these four.
  result<void> try_send_metadata(const std::optional<std::string>& host, std::uint16_t port) const {
    return detail::done(kvf_agent_send_metadata(handle(), detail::host_or_null(host), port));
  }
  result<void> try_send_partial_metadata(mem kind, span<const reg_desc> ranges,
                                         bool connection_info,
                                         const std::optional<std::string>& host, std::uint16_t port,
                                         const std::string& label = {},
                                         const names& backends = {}) const {
    const detail::c_names b(backends);
    return detail::done(
        kvf_agent_send_partial_metadata(handle(), static_cast<std::uint32_t>(kind), ranges.data(),
                                        ranges.size(), connection_info ? 1 : 0, b.data(), b.size(),
                                        detail::host_or_null(host), port, detail::or_null(label)));
  }
  result<void> try_fetch_metadata(const std::string& remote, const std::optional<std::string>& host,
                                  std::uint16_t port, const std::string& label = {}) {
    return detail::done(kvf_agent_fetch_metadata(
        handle(), remote.c_str(), detail::host_or_null(host), port, detail::or_null(label)));
  }
  result<void> try_invalidate_metadata(const std::optional<std::string>& host, std::uint16_t port) {
    return detail::done(kvf_agent_invalidate_metadata(handle(), detail::host_or_null(host), port));
  }

  // --- Notifications

  result<void> try_notify(const std::string& remote, byte_view payload,
                          const std::string& backend = {}) {
    return detail::done(kvf_agent_notify(handle(), remote.c_str(), payload.data(), payload.size(),
                                         detail::or_null(backend)));
  }
  // All that have arrived.
  result<std::vector<notification>> try_notifications(const names& backends = {}) {
    const detail::c_names b(backends);
    detail::notification_list list;
    const kvf_status s = kvf_agent_notifications(handle(), b.data(), b.size(), &list);
    if (s != KVF_OK) return detail::last(s);
    return detail::to_notifications(list);
  }
  // The first from `from` (empty: anybody) that begins with `prefix`; nothing if none comes in
  // time.
  result<std::optional<notification>> try_wait_notification(std::chrono::milliseconds limit,
                                                            const std::string& from = {},
                                                            byte_view prefix = {}) {
    detail::notification_list list;
    const kvf_status s =
        kvf_agent_wait_notification(handle(), detail::or_null(from), prefix.data(), prefix.size(),
                                    detail::ticks<std::uint64_t>(limit), &list);
    if (s == KVF_ERR_TIMEOUT) return std::optional<notification>();
    if (s != KVF_OK) return detail::last(s);
    return std::optional(std::move(detail::to_notifications(list).front()));
  }

  // --- Lists and transfers. For transfers within one agent the remote is its own name.

  result<desc_list> try_prepare_local(mem kind, span<const mem_desc> ranges,
                                      const names& backends = {}) {
    return prepare(kvf_desc_list_prepare, nullptr, kind, ranges, backends);
  }
  result<desc_list> try_prepare_local(mem kind, span<const strided_desc> rows,
                                      const names& backends = {}) {
    return prepare(kvf_desc_list_prepare_strided, nullptr, kind, rows, backends);
  }
  result<desc_list> try_prepare_remote(const std::string& remote, mem kind,
                                       span<const mem_desc> ranges, const names& backends = {}) {
    return prepare(kvf_desc_list_prepare, remote.c_str(), kind, ranges, backends);
  }
  result<desc_list> try_prepare_remote(const std::string& remote, mem kind,
                                       span<const strided_desc> rows, const names& backends = {}) {
    return prepare(kvf_desc_list_prepare_strided, remote.c_str(), kind, rows, backends);
  }
  // One row.
  result<desc_list> try_prepare_local(mem kind, const strided_desc& row,
                                      const names& backends = {}) {
    return try_prepare_local(kind, span<const strided_desc>(&row, 1), backends);
  }
  result<desc_list> try_prepare_remote(const std::string& remote, mem kind, const strided_desc& row,
                                       const names& backends = {}) {
    return try_prepare_remote(remote, kind, span<const strided_desc>(&row, 1), backends);
  }
  // local[local_indices[i]] and remote[remote_indices[i]] for every i.
  result<transfer> try_make_transfer(op direction, const desc_list& local,
                                     span<const std::int32_t> local_indices,
                                     const desc_list& remote,
                                     span<const std::int32_t> remote_indices,
                                     const transfer_options& options = {}) {
    const detail::c_transfer_options o(options);
    kvf_transfer t{0};
    const kvf_status s =
        kvf_transfer_make(handle(), static_cast<std::uint32_t>(direction), local.handle(),
                          local_indices.data(), local_indices.size(), remote.handle(),
                          remote_indices.data(), remote_indices.size(), o.get(), &t);
    if (s != KVF_OK) return detail::last(s);
    return transfer(t);
  }
  // The i-th range of one side with the i-th of the other.
  result<transfer> try_create_transfer(op direction, mem local_kind, span<const mem_desc> local,
                                       mem remote_kind, span<const mem_desc> remote,
                                       const std::string& remote_agent,
                                       const transfer_options& options = {}) {
    const detail::c_transfer_options o(options);
    kvf_transfer t{0};
    const kvf_status s = kvf_transfer_create(
        handle(), static_cast<std::uint32_t>(direction), static_cast<std::uint32_t>(local_kind),
        local.data(), local.size(), static_cast<std::uint32_t>(remote_kind), remote.data(),
        remote.size(), remote_agent.c_str(), o.get(), &t);
    if (s != KVF_OK) return detail::last(s);
    return transfer(t);
  }

#if KVFERRY_EXCEPTIONS
  // --- The same, throwing

  explicit agent(const agent_options& options) : agent(try_create(options).value()) {}
  void close() { try_close().value(); }
  std::string name() const { return try_name().value(); }
  names plugins() const { return try_plugins().value(); }
  names backends() const { return try_backends().value(); }
  capabilities plugin_info(const std::string& plugin) const {
    return try_plugin_info(plugin).value();
  }
  capabilities backend_info(const std::string& b) const { return try_backend_info(b).value(); }
  void create_backend(const backend& b) { try_create_backend(b).value(); }

  void register_memory(mem kind, span<const mem_desc> ranges, const names& backends = {}) {
    try_register_memory(kind, ranges, backends).value();
  }
  void register_memory(mem kind, span<const reg_desc> ranges, const names& backends = {}) {
    try_register_memory(kind, ranges, backends).value();
  }
  void register_memory(mem kind, const mem_desc& range, const names& backends = {}) {
    try_register_memory(kind, range, backends).value();
  }
  void deregister_memory(mem kind, span<const mem_desc> ranges, const names& backends = {}) {
    try_deregister_memory(kind, ranges, backends).value();
  }
  void deregister_memory(mem kind, span<const reg_desc> ranges, const names& backends = {}) {
    try_deregister_memory(kind, ranges, backends).value();
  }
  void deregister_memory(mem kind, const mem_desc& range, const names& backends = {}) {
    try_deregister_memory(kind, range, backends).value();
  }
  std::vector<std::optional<params>> query_memory(mem kind, span<const reg_desc> ranges,
                                                  const std::string& backend) const {
    return try_query_memory(kind, ranges, backend).value();
  }

  bytes metadata() const { return try_metadata().value(); }
  bytes partial_metadata(mem kind, span<const reg_desc> ranges, bool connection_info,
                         const names& backends = {}) const {
    return try_partial_metadata(kind, ranges, connection_info, backends).value();
  }
  std::string add_remote(byte_view metadata) { return try_add_remote(metadata).value(); }
  void remove_remote(const std::string& remote) { try_remove_remote(remote).value(); }
  bool check_remote(const std::string& remote, mem kind = mem::dram,
                    span<const mem_desc> ranges = {}) const {
    return try_check_remote(remote, kind, ranges).value();
  }
  void connect(const std::string& remote, const names& backends = {}) {
    try_connect(remote, backends).value();
  }
  void send_metadata(const std::optional<std::string>& host, std::uint16_t port) const {
    try_send_metadata(host, port).value();
  }
  void send_partial_metadata(mem kind, span<const reg_desc> ranges, bool connection_info,
                             const std::optional<std::string>& host, std::uint16_t port,
                             const std::string& label = {}, const names& backends = {}) const {
    try_send_partial_metadata(kind, ranges, connection_info, host, port, label, backends).value();
  }
  void fetch_metadata(const std::string& remote, const std::optional<std::string>& host,
                      std::uint16_t port, const std::string& label = {}) {
    try_fetch_metadata(remote, host, port, label).value();
  }
  void invalidate_metadata(const std::optional<std::string>& host, std::uint16_t port) {
    try_invalidate_metadata(host, port).value();
  }

  void notify(const std::string& remote, byte_view payload, const std::string& backend = {}) {
    try_notify(remote, payload, backend).value();
  }
  std::vector<notification> notifications(const names& backends = {}) {
    return try_notifications(backends).value();
  }
  std::optional<notification> wait_notification(std::chrono::milliseconds limit,
                                                const std::string& from = {},
                                                byte_view prefix = {}) {
    return try_wait_notification(limit, from, prefix).value();
  }

  // Ranges, or rows of ranges; many or one.
  template <class Descs>
  desc_list prepare_local(mem kind, const Descs& descs, const names& backends = {}) {
    return try_prepare_local(kind, descs, backends).value();
  }
  template <class Descs>
  desc_list prepare_remote(const std::string& remote, mem kind, const Descs& descs,
                           const names& backends = {}) {
    return try_prepare_remote(remote, kind, descs, backends).value();
  }
  transfer make_transfer(op direction, const desc_list& local,
                         span<const std::int32_t> local_indices, const desc_list& remote,
                         span<const std::int32_t> remote_indices,
                         const transfer_options& options = {}) {
    return try_make_transfer(direction, local, local_indices, remote, remote_indices, options)
        .value();
  }
  transfer create_transfer(op direction, mem local_kind, span<const mem_desc> local,
                           mem remote_kind, span<const mem_desc> remote,
                           const std::string& remote_agent, const transfer_options& options = {}) {
    return try_create_transfer(direction, local_kind, local, remote_kind, remote, remote_agent,
                               options)
        .value();
  }
#endif

 private:
  result<capabilities> info(kvf_status (*ask)(kvf_agent, const char*, kvf_param_list*,
                                              std::uint32_t*),
                            const std::string& of) const {
    detail::param_list list;
    std::uint32_t kinds = 0;
    const kvf_status s = ask(handle(), of.c_str(), &list, &kinds);
    if (s != KVF_OK) return detail::last(s);
    return capabilities{detail::to_params(list), kinds};
  }

  template <class Desc>
  result<desc_list> prepare(kvf_status (*make)(kvf_agent, const char*, std::uint32_t, const Desc*,
                                               std::size_t, const char* const*, std::size_t,
                                               kvf_desc_list*),
                            const char* remote, mem kind, span<const Desc> descs,
                            const names& backends) {
    const detail::c_names b(backends);
    kvf_desc_list list{0};
    const kvf_status s = make(handle(), remote, static_cast<std::uint32_t>(kind), descs.data(),
                              descs.size(), b.data(), b.size(), &list);
    if (s != KVF_OK) return detail::last(s);
    return desc_list(list);
  }

  detail::owner<kvf_agent, detail::end_agent> handle_;
};

}  // namespace kvferry

#endif
