// Assertions for the C++ test programs, and agents of the transport under test (argv[1]).
#ifndef KVF_TESTS_CHECK_HPP
#define KVF_TESTS_CHECK_HPP

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "kvferry.hpp"

#define CHECK(...)                                                                      \
  do {                                                                                  \
    if (!(__VA_ARGS__)) {                                                               \
      std::fprintf(stderr, "%s:%d: not so: %s\n  last error: %s\n", __FILE__, __LINE__, \
                   #__VA_ARGS__, kvf_last_error_message());                             \
      std::exit(1);                                                                     \
    }                                                                                   \
  } while (0)

inline std::string transport_of(int argc, char** argv) {
  CHECK(argc == 2);
  if (std::string(argv[1]) == "nixl" && std::getenv("KVF_TEST_NIXL") == nullptr) {
    const char* without = std::getenv("KVF_TEST_NO_NIXL");
    if (without != nullptr && std::strcmp(without, "1") == 0) std::exit(77);
    std::fprintf(stderr,
                 "this test needs NIXL: set KVF_TEST_NIXL to the path of libnixl_capi.so, "
                 "or KVF_TEST_NO_NIXL=1 to do without\n");
    std::exit(1);
  }
  return argv[1];
}

inline kvferry::agent_options options_for(const std::string& transport, const std::string& name) {
  kvferry::agent_options options;
  options.name = name;
  options.transport = transport;
  const char* nixl = std::getenv("KVF_TEST_NIXL");
  if (nixl != nullptr) options.nixl_library = nixl;
  return options;
}

// One byte of a content that is different everywhere.
inline std::uint8_t known(std::size_t seed, std::size_t i) {
  return static_cast<std::uint8_t>((((i + 1) * 0x9e3779b97f4a7c15u) ^ (seed << 40)) >> 51);
}

#endif
