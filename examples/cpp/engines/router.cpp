#include "router.hpp"

#include <algorithm>
#include <iostream>
#include <stdexcept>

namespace engines {

using namespace std::chrono_literals;

router::router(const options& o, channel prefill, channel decode)
    : o_(o), prefill_(std::move(prefill)), decode_(std::move(decode)), random_(o.seed) {
  make_clients();
}

void router::make_clients() {
  const auto up_to = [this](std::uint64_t n) { return random_() % n; };
  steady::duration at{};
  bool flip = o_.flip_a_byte;
  for (unsigned i = 0; i < o_.requests; i++) {
    client c;
    c.prefill.id = "p-" + std::to_string(i);
    c.prefill.seed = 1000 + i;
    // Many conversations begin with one of a few system prompts.
    if (up_to(100) < 60) {
      c.prefill.prefix_seed = 1 + up_to(3);
      c.prefill.prefix_tokens = 40 * c.prefill.prefix_seed;
    }
    c.prefill.own_tokens = 10 + up_to(300);
    c.prefill.kv_transfer_params = "{\"do_remote_decode\": true}";
    c.decode = c.prefill;
    c.decode.id = "d-" + std::to_string(i);
    c.decode.answer_tokens = 2 + up_to(40);
    if (up_to(100) < o_.abort_percent) {
      switch (up_to(7)) {
        case 0:
          c.prefill.leaves = stage::waiting;
          break;
        case 1:
          c.prefill.leaves = stage::computing;
          break;
        case 2:
          c.drops = true;
          break;
        case 3:
          c.decode.leaves = stage::waiting;
          break;
        case 4:
          c.decode.leaves = stage::staged;
          break;
        case 5:
          c.decode.leaves = stage::receiving;
          break;
        default:
          c.decode.leaves = stage::decoding;
          break;
      }
    } else if (flip) {
      c.prefill.flip_a_byte = true;
      flip = false;
    }
    // Independent clients: the times between them are exponential.
    at += std::chrono::duration_cast<steady::duration>(std::chrono::duration<double>(
        std::exponential_distribution<double>(o_.per_second)(random_)));
    arrivals_.push_back(at);
    clients_.push_back(std::move(c));
  }
}

bool router::run() {
  while (ready_ < 2) {
    hear(prefill_, 10ms);
    hear(decode_, 10ms);
  }
  const auto start = steady::now();
  std::size_t next = 0;
  while (over_ < clients_.size()) {
    for (; next < clients_.size() && steady::now() - start >= arrivals_[next]; next++) {
      clients_[next].sent = steady::now();
      prefill_.send(clients_[next].prefill.text());
    }
    hear(prefill_, 1ms);
    hear(decode_, 0ms);
  }
  // First the producer: what it still keeps, the consumer may have to tell it about.
  close(prefill_);
  close(decode_);
  report();
  return true;
}

void router::hear(channel& from, std::chrono::milliseconds patience) {
  while (const auto message = from.receive(patience)) {
    hear(answer_message::of(*message));
    patience = 0ms;
  }
  if (from.ended()) throw std::runtime_error("an engine has ended before its time");
}

void router::hear(const answer_message& answer) {
  if (answer.kind == "ready") {
    ready_++;
    return;
  }
  if (answer.kind == "summary") {
    summaries_[answer.id] = answer.rest;
    return;
  }
  client& c = clients_.at(std::stoul(answer.id.substr(2)));
  const bool from_prefill = answer.id[0] == 'p';
  if (answer.kind == "first") {
    first_token_ms_.push_back(
        std::chrono::duration<double, std::milli>(steady::now() - c.sent).count());
    return;
  }
  if (answer.kind == "done" && from_prefill && !c.drops) {
    // What the prefill engine says to the decode engine, word for word.
    c.decode.kv_transfer_params = answer.rest;
    // A client that wanted to leave during prefill and came too late leaves now.
    if (c.prefill.leaves != stage::never) c.decode.leaves = stage::waiting;
    decode_.send(c.decode.text());
    return;
  }
  if (c.over) throw std::runtime_error("request " + answer.id + " is answered twice");
  c.over = true;
  over_++;
  dropped_ += answer.kind == "done" && from_prefill;
  answered_ += answer.kind == "done" && !from_prefill;
}

void router::close(channel& engine) {
  engine.say_no_more();
  while (!engine.ended())
    if (const auto message = engine.receive(1s)) hear(answer_message::of(*message));
}

void router::report() const {
  auto times = first_token_ms_;
  std::sort(times.begin(), times.end());
  const auto part = [&](double p) {
    return times.empty()
               ? 0
               : times[static_cast<std::size_t>(p * static_cast<double>(times.size() - 1))];
  };
  std::cout.setf(std::ios::fixed);
  std::cout.precision(1);
  std::cout << o_.requests << " requests over " << o_.transport << ", TP " << o_.prefill_tp
            << " to " << o_.decode_tp << ": " << answered_ << " answered, "
            << o_.requests - answered_ << " aborted (" << dropped_
            << " of them between the engines)\n"
            << "time to first token: " << part(0.5) << " ms (median), " << part(0.9)
            << " ms (p90), " << part(0.99) << " ms (p99)\n";
  for (const auto* name : {"prefill", "decode"})
    if (const auto it = summaries_.find(name); it != summaries_.end())
      std::cout << name << '\n' << it->second;
}

}  // namespace engines
