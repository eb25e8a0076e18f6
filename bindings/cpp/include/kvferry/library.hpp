// Versions and the log. Part of kvferry.hpp.
#ifndef KVFERRY_LIBRARY_HPP
#define KVFERRY_LIBRARY_HPP

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <utility>

#include "kvferry/result.hpp"

namespace kvferry {

// Version of the library that runs, for example "0.1.0".
inline const char* version() noexcept { return kvf_version(); }
// The number in its SONAME; this header was written for KVF_ABI_VERSION.
inline std::uint32_t abi_version() noexcept { return kvf_abi_version(); }

enum class log_level : std::int32_t {
  off = KVF_LOG_OFF,
  error = KVF_LOG_ERROR,
  warn = KVF_LOG_WARN,
  info = KVF_LOG_INFO,
  debug = KVF_LOG_DEBUG,
  trace = KVF_LOG_TRACE,
};

// Receives log records: from any thread, also several at once. What it throws is dropped.
using log_function =
    std::function<void(log_level level, std::string_view target, std::string_view message)>;

namespace detail {

inline void call_log(void* env, std::int32_t level, const char* target, const char* message) {
#if KVFERRY_EXCEPTIONS
  try {
    (*static_cast<log_function*>(env))(static_cast<log_level>(level), target, message);
  } catch (...) {
  }
#else
  (*static_cast<log_function*>(env))(static_cast<log_level>(level), target, message);
#endif
}

inline void free_log(void* env) { delete static_cast<log_function*>(env); }

}  // namespace detail

inline result<void> try_set_log_level(log_level level) {
  return detail::done(kvf_log_set_level(static_cast<std::int32_t>(level)));
}

// Sends the log to a function; an empty one sends it back to standard error. The function lives
// until the last call of it has returned.
inline result<void> try_set_log_function(log_function function) {
  if (!function) return detail::done(kvf_log_set_callback(nullptr, nullptr, nullptr));
  auto kept = std::make_unique<log_function>(std::move(function));
  const kvf_status s = kvf_log_set_callback(detail::call_log, kept.get(), detail::free_log);
  if (s != KVF_OK) return detail::last(s);
  (void)kept.release();
  return {};
}

#if KVFERRY_EXCEPTIONS
inline void set_log_level(log_level level) { try_set_log_level(level).value(); }
inline void set_log_function(log_function function) {
  try_set_log_function(std::move(function)).value();
}
#endif

}  // namespace kvferry

#endif
