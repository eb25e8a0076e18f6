// The router: makes up clients, sends each request to the prefill engine and then, with what that
// answers, to the decode engine.
#ifndef ENGINES_ROUTER_HPP
#define ENGINES_ROUTER_HPP

#include <chrono>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "messages.hpp"
#include "options.hpp"
#include "rank.hpp"

namespace engines {

class router {
 public:
  router(const options& o, channel prefill, channel decode);

  // Runs until every request has been answered and both engines are at rest. False if a request got
  // lost.
  bool run();

 private:
  // One client's request.
  struct client {
    request_message prefill, decode;
    bool drops = false;  // goes away between the two engines
    steady::time_point sent{};
    bool over = false;
  };

  void make_clients();
  void hear(channel& from, std::chrono::milliseconds patience);
  void hear(const answer_message& answer);
  void close(channel& engine);
  void report() const;

  const options& o_;
  channel prefill_, decode_;
  std::mt19937_64 random_;
  std::vector<client> clients_;
  std::vector<steady::duration> arrivals_;
  std::map<std::string, std::string> summaries_;
  std::vector<double> first_token_ms_;
  std::size_t ready_ = 0, over_ = 0, dropped_ = 0, answered_ = 0;
};

}  // namespace engines

#endif
