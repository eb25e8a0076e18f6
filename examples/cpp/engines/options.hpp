// What the example can be told on its command line.
#ifndef ENGINES_OPTIONS_HPP
#define ENGINES_OPTIONS_HPP

#include <chrono>
#include <cstdint>
#include <string>

namespace engines {

struct options {
  std::string transport = "local";  // or "nixl"
  // Tensor parallelism of the two engines: one divides the other.
  unsigned prefill_tp = 1;
  unsigned decode_tp = 1;

  // The model: by default with the cache of Llama-3.1-8B, 128 KiB for each token.
  unsigned layers = 32;
  unsigned kv_heads = 8;
  unsigned head_size = 128;
  unsigned elem_bytes = 2;
  // The cache of each engine, cut into blocks.
  unsigned block_tokens = 16;
  unsigned blocks = 512;
  // What an engine does in one step, and how many requests it has in work at once.
  unsigned step_tokens = 256;
  unsigned most_running = 16;

  // The requests.
  unsigned requests = 64;
  unsigned per_second = 50;
  std::uint64_t seed = 1;
  // Of 100 requests so many lose their client on the way.
  unsigned abort_percent = 25;

  // Short, because some clients go away between the two engines, and then the lease's end is what
  // frees the blocks: the run waits for it.
  std::chrono::milliseconds lease{5000};
  unsigned seconds_limit = 120;
  // Spoils a byte, to show that the check would notice.
  bool flip_a_byte = false;

  std::size_t head_bytes() const { return std::size_t{head_size} * elem_bytes; }
};

}  // namespace engines

#endif
