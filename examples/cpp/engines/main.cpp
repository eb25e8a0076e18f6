// A prefill engine and a decode engine, each a process, hand requests over: what it takes to put
// kvferry into an inference server.
//
//   engines [--transport local|nixl] [--prefill-tp N] [--decode-tp N] [--requests N] [--seed N] ...
//
// Clients come at random, some have beginnings in common, and some go away: before anything is done
// for them, during prefill, between the engines, while their cache is fetched, while they are
// answered. The models are make-believe, their caches are not: every byte that a real one would
// have computed is computed, paged, fetched and compared. At the end both engines must have all
// their blocks back.
//
// Where to look:
//   engine.cpp   the scheduler loop: each call of kvferry::scheduler and kvferry::block_pool
//   rank.hpp     kvferry::worker in a rank's step; what has to outlive what
//   model.hpp    how a paged cache is described to the connector
//   report.cpp   what has to be zero when everything is over
//   router.cpp   carries kv_transfer_params from one engine to the other
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <initializer_list>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>

#include "engine.hpp"
#include "router.hpp"

namespace {

using engines::channel;
using engines::options;

options parse(int argc, char** argv) {
  options o;
  const std::map<std::string, unsigned*> numbers = {{"--prefill-tp", &o.prefill_tp},
                                                    {"--decode-tp", &o.decode_tp},
                                                    {"--layers", &o.layers},
                                                    {"--kv-heads", &o.kv_heads},
                                                    {"--head-size", &o.head_size},
                                                    {"--block-tokens", &o.block_tokens},
                                                    {"--blocks", &o.blocks},
                                                    {"--step-tokens", &o.step_tokens},
                                                    {"--requests", &o.requests},
                                                    {"--per-second", &o.per_second},
                                                    {"--abort-percent", &o.abort_percent},
                                                    {"--seconds-limit", &o.seconds_limit}};
  for (int i = 1; i < argc; i++) {
    const std::string name = argv[i];
    if (name == "--flip-a-byte") {
      o.flip_a_byte = true;
      continue;
    }
    if (i + 1 == argc) throw std::invalid_argument(name + " is not known, or has no value");
    const std::string value = argv[++i];
    if (name == "--transport")
      o.transport = value;
    else if (name == "--seed")
      o.seed = std::stoull(value);
    else if (name == "--lease-ms")
      o.lease = std::chrono::milliseconds(std::stoul(value));
    else if (const auto it = numbers.find(name); it != numbers.end())
      *it->second = static_cast<unsigned>(std::stoul(value));
    else
      throw std::invalid_argument(name + " is not known");
  }
  for (const unsigned tp : {o.prefill_tp, o.decode_tp})
    if (tp == 0 || o.kv_heads % tp != 0)
      throw std::invalid_argument(std::to_string(tp) + " ranks for " + std::to_string(o.kv_heads) +
                                  " heads");
  if (o.head_bytes() % sizeof(std::uint64_t) != 0)
    throw std::invalid_argument("a head has to have whole words");
  return o;
}

int serve(const options& o, const std::string& name, channel router) {
  const bool prefills = name == "prefill";
  try {
    engines::engine engine(o, name, prefills ? o.prefill_tp : o.decode_tp,
                           prefills ? o.decode_tp : o.prefill_tp, std::move(router));
    if (engine.run()) return 0;
    std::cerr << name << ": something was wrong, or left behind\n";
  } catch (const std::exception& e) {
    std::cerr << name << ": " << e.what() << '\n';
  }
  return 1;
}

// Starts an engine. It is forked before anything of kvferry exists here: its objects have threads,
// and do not survive a fork.
pid_t start(const options& o, const std::string& name, channel router,
            std::initializer_list<const channel*> of_the_router) {
  const pid_t pid = ::fork();
  if (pid < 0) throw std::runtime_error("no more processes");
  if (pid != 0) return pid;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::alarm(o.seconds_limit);
  for (const auto* end : of_the_router) ::close(end->fd());
  const int status = serve(o, name, std::move(router));
  ::_exit(status);
}

bool ends_well(pid_t pid) {
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

int run(const options& o) {
  ::alarm(o.seconds_limit);  // whatever hangs, hangs no longer than that
  auto [to_prefill, prefill] = channel::pair();
  const auto prefill_pid = start(o, "prefill", std::move(prefill), {&to_prefill});
  auto [to_decode, decode] = channel::pair();
  const auto decode_pid = start(o, "decode", std::move(decode), {&to_prefill, &to_decode});
  bool well = engines::router(o, std::move(to_prefill), std::move(to_decode)).run();
  well = ends_well(prefill_pid) && well;
  well = ends_well(decode_pid) && well;
  std::cout << (well ? "every byte was right, and nothing was left behind\n" : "FAILED\n");
  return well ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(parse(argc, argv));
  } catch (const std::invalid_argument& e) {
    std::cerr << "engines: " << e.what() << '\n';
    return 2;
  } catch (const std::exception& e) {
    std::cerr << "engines: " << e.what() << '\n';
    return 1;
  }
}
