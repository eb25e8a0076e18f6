// An inference engine: it schedules requests, hands their steps to its ranks, and exchanges KV
// caches with another engine. Whether it prefills or decodes is not its business: each request says
// what is wanted, and an engine that cannot get a cache computes it.
#ifndef ENGINES_ENGINE_HPP
#define ENGINES_ENGINE_HPP

#include <list>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "kvferry.hpp"
#include "messages.hpp"
#include "model.hpp"
#include "options.hpp"
#include "rank.hpp"

namespace engines {

struct request {
  std::string id;
  std::size_t prompt = 0;  // tokens
  std::size_t answer = 1;  // tokens that are wanted
  bool has_params = false;
  stage leaves = stage::never;
  bool flip_a_byte = false;

  contexts tokens;           // of the prompt, and of the answer so far
  block_table blocks;        // held by this request
  std::size_t computed = 0;  // tokens whose K and V are in the blocks
  std::size_t verify = 0;    // tokens to be looked at in the next step
  std::size_t known = 0;     // leading blocks that the prefix index has
  bool receiving = false;    // the blocks are being written to

  std::size_t answered() const { return tokens.size() - prompt; }
};

// In a list requests stay where they are in memory, also when they change lists.
using requests = std::list<request>;

// Ids that some ranks have reported, until all have.
class tally {
 public:
  explicit tally(std::size_t ranks) : ranks_(ranks) {}
  // Adds one rank's report; `complete` receives what it completes.
  void add(const std::vector<std::string>& reported, std::vector<std::string>& complete) {
    for (const auto& id : reported)
      if (++seen_[id] == ranks_) {
        seen_.erase(id);
        complete.push_back(id);
      }
  }

 private:
  std::size_t ranks_;
  std::map<std::string, std::size_t> seen_;
};

class engine {
 public:
  // `peer_ranks`: the other engine's, for the figures only.
  engine(const options& o, const std::string& name, unsigned ranks, unsigned peer_ranks,
         channel router);

  // Serves until the router says that nothing more comes and everything has come to rest. Whether
  // every byte was right, and nothing was left behind.
  bool run();

 private:
  bool is_idle() const;
  void sleep() const;
  void take_messages();
  void take(const request_message& message);

  // One step, in the order in which this happens.
  void step();
  void lose_clients();
  void admit();
  bool admit(request& r);
  std::size_t still_needs(const request& r) const;
  std::size_t promised() const;
  std::vector<work> plan_work();
  void compute(const std::vector<work>& todo);
  void take_results(const std::vector<rank_output>& outputs);
  void advance(const work& done);

  void received(const std::string& id);
  void finish(request& r);
  void abort(request& r);
  void remember_prefix(request& r);
  void give_back(block_table blocks);
  stage reached(const request& r) const;
  kvferry::byte_view block_hashes(const request& r, std::size_t first, std::size_t count);

  bool is_busy() const { return !waiting_.empty() || !running_.empty(); }
  // In report.cpp.
  bool is_at_rest() const;
  bool rest_within(std::chrono::seconds patience) const;
  std::string summary() const;
  void count_records();

  const options& o_;
  std::string name_;
  unsigned peer_ranks_;
  channel router_;

  std::vector<std::unique_ptr<rank>> ranks_;
  kvferry::scheduler connector_;
  kvferry::block_pool pool_;

  // Every request is in one of these, first come first served.
  requests waiting_, receiving_, running_;
  // Blocks of requests that are over, which are still read, or still written to.
  std::map<std::string, block_table> kept_;

  tally sent_, received_;
  std::set<std::string> failed_;
  bool has_news_ = false;  // of the ranks, in the last step
  std::vector<context> hashes_;  // scratch

  struct figures {
    std::size_t requests = 0, loaded = 0, recomputed = 0, wrong_bytes = 0;
    std::size_t prompt_tokens = 0, known_tokens = 0;
    std::uint64_t bytes = 0, ranges = 0, ranges_unmerged = 0;
    std::map<stage, std::size_t> aborted;
    std::vector<double> step_us;  // the connector's part of each step that had work
  } figures_;
};

}  // namespace engines

#endif
