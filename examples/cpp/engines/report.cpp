// What an engine finds at the end of a run: whether everything is back, and what it has seen.
#include <algorithm>
#include <ios>
#include <sstream>
#include <thread>

#include "engine.hpp"

namespace engines {
namespace {

using namespace std::chrono_literals;

}  // namespace

bool engine::is_at_rest() const {
  const auto books = connector_.stats();
  std::uint64_t left =
      books.requests + books.receiving + books.holds + books.leases + books.heartbeats;
  for (const auto& r : ranks_) {
    const auto state = r->state();
    left += state.receives + state.holds + state.pushes;
  }
  return left == 0 && pool_.num_free() == o_.blocks - 1;  // all but the null block
}

// What the ranks' threads say of themselves may be a moment old.
bool engine::rest_within(std::chrono::seconds patience) const {
  const auto deadline = steady::now() + patience;
  while (!is_at_rest()) {
    if (steady::now() > deadline) return false;
    std::this_thread::sleep_for(1ms);
  }
  return true;
}

void engine::count_records() {
  // One range for each block, layer and rank that it comes from: what there was to move.
  const auto sources = std::max<std::size_t>(1, peer_ranks_ / ranks_.size());
  for (const auto& r : ranks_) {
    for (const auto& record : r->take_records()) {
      figures_.bytes += record.bytes;
      figures_.ranges += record.descriptors;
      figures_.ranges_unmerged += record.bytes * sources / r->block_bytes();
    }
  }
}

std::string engine::summary() const {
  const auto& f = figures_;
  auto steps = f.step_us;
  std::sort(steps.begin(), steps.end());
  const auto part = [&](double p) {
    return steps.empty()
               ? 0
               : steps[static_cast<std::size_t>(p * static_cast<double>(steps.size() - 1))];
  };
  std::size_t holds = connector_.stats().holds, receives = connector_.stats().receiving;
  for (const auto& r : ranks_) {
    holds += r->state().holds;
    receives += r->state().receives;
  }
  std::ostringstream out;
  out.setf(std::ios::fixed);
  out.precision(1);
  out << "  requests       " << f.requests << ", aborted";
  for (const auto& [when, n] : f.aborted) out << " " << n << " while " << name(when) << ",";
  if (f.aborted.empty()) out << " none,";
  out << " loaded " << f.loaded << ", failed to load " << f.recomputed << "\n"
      << "  prompt tokens  " << f.prompt_tokens << ", known already " << f.known_tokens << "\n"
      << "  bytes loaded   " << f.bytes << " in " << f.ranges << " ranges, merged from "
      << f.ranges_unmerged << "\n"
      << "  steps          " << steps.size() << ", of each the connector took " << part(0.5)
      << " us (median), " << part(0.99) << " us (p99)\n"
      << "  left behind    " << o_.blocks - 1 - pool_.num_free() << " blocks, " << holds
      << " holds, " << receives << " receives\n"
      << "  wrong bytes    " << f.wrong_bytes << "\n";
  return out.str();
}

}  // namespace engines
