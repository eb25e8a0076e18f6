// Memory kinds, descriptors, and the views that operations take. Part of kvferry.hpp.
#ifndef KVFERRY_VIEWS_HPP
#define KVFERRY_VIEWS_HPP

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#if __cplusplus >= 202002L
#include <span>
#endif

#include "kvferry.h"
#include "kvferry/result.hpp"

namespace kvferry {

#if defined(__cpp_lib_span)
template <class T>
using span = std::span<T>;
#else
// A view of a row of values, as far as this header needs one of std::span.
template <class T>
class span {
 public:
  constexpr span() noexcept = default;
  constexpr span(T* data, std::size_t size) noexcept : data_(data), size_(size) {}
  template <std::size_t N>
  constexpr span(T (&array)[N]) noexcept : data_(array), size_(N) {}
  // std::vector, std::array and whatever else has data() and size() of this type.
  template <class C,
            class = std::enable_if_t<std::is_convertible_v<
                std::remove_pointer_t<decltype(std::declval<C&>().data())> (*)[], T (*)[]>>,
            class = decltype(std::declval<C&>().size())>
  constexpr span(C&& container) noexcept : data_(container.data()), size_(container.size()) {}

  constexpr T* data() const noexcept { return data_; }
  constexpr std::size_t size() const noexcept { return size_; }
  constexpr bool empty() const noexcept { return size_ == 0; }
  constexpr T& operator[](std::size_t i) const noexcept { return data_[i]; }
  constexpr T* begin() const noexcept { return data_; }
  constexpr T* end() const noexcept { return data_ + size_; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};
#endif

using bytes = std::vector<std::uint8_t>;

// Bytes to read, of a string, a vector, or wherever they are.
class byte_view {
 public:
  constexpr byte_view() noexcept = default;
  byte_view(const void* data, std::size_t size) noexcept
      : data_(static_cast<const std::uint8_t*>(data)), size_(size) {}
  byte_view(const bytes& b) noexcept : byte_view(b.data(), b.size()) {}
  byte_view(std::string_view text) noexcept : byte_view(text.data(), text.size()) {}
  byte_view(const std::string& text) noexcept : byte_view(text.data(), text.size()) {}
  // Up to the terminating NUL.
  byte_view(const char* text) noexcept : byte_view(std::string_view(text)) {}

  const std::uint8_t* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }

 private:
  const std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
};

// Where memory lives.
enum class mem : std::uint32_t {
  dram = KVF_MEM_DRAM,
  vram = KVF_MEM_VRAM,
  block = KVF_MEM_BLOCK,
  object = KVF_MEM_OBJECT,
  file = KVF_MEM_FILE,
};

using mem_desc = kvf_mem_desc;
using strided_desc = kvf_strided_desc;
using reg_desc = kvf_reg_desc;

// The range at an address of this process, or of a device.
inline mem_desc range(const void* data, std::size_t size, std::uint64_t device = 0) noexcept {
  return {static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(data)), size, device};
}

// Names and values.
using params = std::vector<std::pair<std::string, std::string>>;
// Names of backends; none means any.
using names = std::vector<std::string>;

namespace detail {

// An array of C strings that borrows from strings.
class c_names {
 public:
  explicit c_names(const names& all) {
    pointers_.reserve(all.size());
    for (const auto& one : all) pointers_.push_back(one.c_str());
  }
  const char* const* data() const noexcept {
    return pointers_.empty() ? nullptr : pointers_.data();
  }
  std::size_t size() const noexcept { return pointers_.size(); }

 private:
  std::vector<const char*> pointers_;
};

// NULL for an empty string: "the default".
inline const char* or_null(const std::string& text) noexcept {
  return text.empty() ? nullptr : text.c_str();
}

// A duration as C takes it; negative ones are zero, longer ones than fit are the longest.
template <class To, class Duration>
To ticks(Duration d) noexcept {
  if (d.count() < 0) return 0;
  const auto n = static_cast<std::uint64_t>(d.count());
  return n > std::numeric_limits<To>::max() ? std::numeric_limits<To>::max() : static_cast<To>(n);
}

// Frees what the library gave, at the end of the scope.
template <class C, void (*Free)(C*)>
struct given : C {
  given() noexcept : C{} {}
  ~given() { Free(this); }
  given(const given&) = delete;
  given& operator=(const given&) = delete;
};

using buffer = given<kvf_buffer, kvf_buffer_free>;
using string_list = given<kvf_string_list, kvf_string_list_free>;
using param_list = given<kvf_param_list, kvf_param_list_free>;
using notification_list = given<kvf_notification_list, kvf_notification_list_free>;
using query_list = given<kvf_query_list, kvf_query_list_free>;

// An array that the library gave.
template <class T>
std::vector<T> to_vector(const T* items, std::size_t len) {
  return len == 0 ? std::vector<T>() : std::vector<T>(items, items + len);
}

inline bytes to_bytes(const kvf_buffer& b) { return to_vector(b.data, b.len); }

inline std::string to_string(const kvf_buffer& b) {
  return b.len == 0 ? std::string() : std::string(reinterpret_cast<const char*>(b.data), b.len);
}

inline names to_names(const kvf_string_list& list) {
  return list.len == 0 ? names() : names(list.items, list.items + list.len);
}

inline params to_params(const kvf_param_list& list) {
  params all;
  all.reserve(list.len);
  for (std::size_t i = 0; i < list.len; i++)
    all.emplace_back(list.items[i].key, list.items[i].value);
  return all;
}

}  // namespace detail
}  // namespace kvferry

#endif
