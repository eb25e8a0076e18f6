// What an operation returns: a value, or why there is none. Part of kvferry.hpp.
#ifndef KVFERRY_RESULT_HPP
#define KVFERRY_RESULT_HPP

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>

#include "kvferry.h"

// 1 where exceptions are enabled, and with them the operations that throw.
#if defined(__cpp_exceptions) || defined(__EXCEPTIONS)
#define KVFERRY_EXCEPTIONS 1
#else
#define KVFERRY_EXCEPTIONS 0
#endif

namespace kvferry {

// The statuses of kvferry.h, where each is explained. A newer library may give others.
enum class status : kvf_status {
  ok = KVF_OK,
  invalid_argument = KVF_ERR_INVALID_ARGUMENT,
  invalid_handle = KVF_ERR_INVALID_HANDLE,
  invalid_state = KVF_ERR_INVALID_STATE,
  not_found = KVF_ERR_NOT_FOUND,
  backend = KVF_ERR_BACKEND,
  no_backend = KVF_ERR_NO_BACKEND,
  timeout = KVF_ERR_TIMEOUT,
  peer_lost = KVF_ERR_PEER_LOST,
  peer_incompatible = KVF_ERR_PEER_INCOMPATIBLE,
  not_registered = KVF_ERR_NOT_REGISTERED,
  permission_denied = KVF_ERR_PERMISSION_DENIED,
  busy = KVF_ERR_BUSY,
  not_supported = KVF_ERR_NOT_SUPPORTED,
  canceled = KVF_ERR_CANCELED,
  mismatch = KVF_ERR_MISMATCH,
  not_posted = KVF_ERR_NOT_POSTED,
  repost_active = KVF_ERR_REPOST_ACTIVE,
  no_telemetry = KVF_ERR_NO_TELEMETRY,
  not_allowed = KVF_ERR_NOT_ALLOWED,
  io = KVF_ERR_IO,
  resource_exhausted = KVF_ERR_RESOURCE_EXHAUSTED,
  internal = KVF_ERR_INTERNAL,
  expired = KVF_ERR_EXPIRED,
};

// A short name such as "peer lost".
inline const char* name(status s) noexcept { return kvf_status_name(static_cast<kvf_status>(s)); }

// Why an operation failed: what a program can decide by, and what a person can read.
struct failure {
  kvferry::status status = kvferry::status::internal;
  std::string message;
};

#if KVFERRY_EXCEPTIONS
// What the operations throw. what() is the library's message.
class error : public std::runtime_error {
 public:
  explicit error(const failure& f) : std::runtime_error(f.message), status_(f.status) {}
  kvferry::status status() const noexcept { return status_; }

 private:
  kvferry::status status_;
};
#endif

// A T, or a failure. Test it before use: `if (auto r = agent::try_create(o)) use(*r);`
template <class T>
class [[nodiscard]] result {
 public:
  result(T value) : content_(std::move(value)) {}
  result(failure f) : content_(std::move(f)) {}

  bool ok() const noexcept { return content_.index() == 0; }
  explicit operator bool() const noexcept { return ok(); }

  // The value. There must be one.
  T& operator*() & noexcept { return *std::get_if<0>(&content_); }
  const T& operator*() const& noexcept { return *std::get_if<0>(&content_); }
  T&& operator*() && noexcept { return std::move(*std::get_if<0>(&content_)); }
  T* operator->() noexcept { return std::get_if<0>(&content_); }
  const T* operator->() const noexcept { return std::get_if<0>(&content_); }

  // The failure. There must be one.
  const failure& error() const noexcept { return *std::get_if<1>(&content_); }
  kvferry::status status() const noexcept { return ok() ? kvferry::status::ok : error().status; }

#if KVFERRY_EXCEPTIONS
  // The value; throws kvferry::error if there is none.
  T value() && {
    if (!ok()) throw kvferry::error(error());
    return std::move(**this);
  }
#endif

 private:
  std::variant<T, failure> content_;
};

// Success, or a failure.
template <>
class [[nodiscard]] result<void> {
 public:
  result() noexcept = default;
  result(failure f) : failure_(std::move(f)) {}

  bool ok() const noexcept { return !failure_; }
  explicit operator bool() const noexcept { return ok(); }
  const failure& error() const noexcept { return *failure_; }
  kvferry::status status() const noexcept { return ok() ? kvferry::status::ok : failure_->status; }

#if KVFERRY_EXCEPTIONS
  // Throws kvferry::error if it failed.
  void value() const {
    if (!ok()) throw kvferry::error(*failure_);
  }
#endif

 private:
  std::optional<failure> failure_;
};

namespace detail {

// The failure of the call of this thread that has just returned `s`.
inline failure last(kvf_status s) { return {static_cast<status>(s), kvf_last_error_message()}; }

inline result<void> done(kvf_status s) {
  if (s == KVF_OK) return {};
  return last(s);
}

// What is wrong with a name that C would see the beginning of only.
inline std::optional<failure> nul_in(const std::string& name, const char* what) {
  if (name.find('\0') == std::string::npos) return std::nullopt;
  return failure{status::invalid_argument, std::string(what) + " contains a NUL"};
}

// Owns a handle of type H, which `End` ends.
template <class H, void (*End)(H)>
class owner {
 public:
  owner() noexcept = default;
  explicit owner(H handle) noexcept : handle_(handle) {}
  owner(owner&& other) noexcept : handle_(other.take()) {}
  owner& operator=(owner&& other) noexcept {
    if (this != &other) {
      end();
      handle_ = other.take();
    }
    return *this;
  }
  owner(const owner&) = delete;
  owner& operator=(const owner&) = delete;
  ~owner() { end(); }

  H get() const noexcept { return handle_; }
  // Gives the handle away without ending it.
  H take() noexcept { return std::exchange(handle_, H{0}); }

 private:
  void end() noexcept {
    if (handle_.id != 0) End(take());
  }

  H handle_{0};
};

}  // namespace detail
}  // namespace kvferry

#endif
