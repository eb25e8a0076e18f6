// One rank of an engine: its share of the cache, its end of the transport, its half of the
// connector, and its thread.
#ifndef ENGINES_RANK_HPP
#define ENGINES_RANK_HPP

#include <chrono>
#include <condition_variable>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kvferry.hpp"
#include "model.hpp"
#include "options.hpp"

namespace engines {

using steady = std::chrono::steady_clock;

// What the model has to do for one request in a step. The scheduler leaves the request alone until
// all ranks have answered, so that nothing has to be copied.
struct work {
  const std::string* id;
  const block_table* blocks;
  const contexts* tokens;
  // First the first so many tokens are looked at, as attention does, and compared.
  std::size_t verify = 0;
  // Then these are computed.
  std::size_t from = 0, to = 0;
};

// What a rank answers.
struct rank_output {
  kvferry::worker_results results;
  // Of each piece of work.
  std::vector<std::size_t> wrong_bytes;
  // How long the connector has kept the rank's thread.
  steady::duration connector{};
};

// Does one thing after the other on a thread of its own. (In an engine with a process for each
// rank, this is the process and its pipe.)
class thread_of_rank {
 public:
  thread_of_rank() : thread_([this] { run(); }) {}
  ~thread_of_rank() {
    post([this] { stop_ = true; });
    thread_.join();
  }

  void post(std::function<void()> job) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      jobs_.push_back(std::move(job));
    }
    there_is_one_.notify_one();
  }

 private:
  void run() {
    while (!stop_) {
      std::vector<std::function<void()>> jobs;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        there_is_one_.wait(lock, [this] { return !jobs_.empty(); });
        jobs.swap(jobs_);
      }
      for (auto& job : jobs) job();
    }
  }

  std::mutex mutex_;
  std::condition_variable there_is_one_;
  std::vector<std::function<void()>> jobs_;
  bool stop_ = false;   // of the thread
  std::thread thread_;  // last: it uses the others
};

class rank {
 public:
  rank(const options& o, const std::string& engine_id, unsigned index, unsigned ranks)
      : memory_(o, index, ranks),
        agent_(agent_options(o, engine_id, index)),
        worker_(agent_, worker_options(o, engine_id, index, ranks)) {
    memory_.register_with(worker_);
  }

  // What other engines' ranks have to know of this one; the scheduler's side serves it.
  kvferry::bytes payload() const { return worker_.payload(); }
  // Readable when run() will find that a transfer has ended.
  int event_fd() const { return worker_.event_fd(); }
  kvferry::worker_state state() const { return worker_.state(); }
  std::vector<kvferry::worker_record> take_records() { return worker_.take_record_list(); }
  std::size_t block_bytes() const { return memory_.block_bytes(); }

  // One step. The transfers that it asks for run beside the model, on the worker's threads: neither
  // of the connector's two calls waits for anything.
  std::future<rank_output> run(const kvferry::bytes& step, const std::vector<work>& todo) {
    auto task = std::make_shared<std::packaged_task<rank_output()>>([&] {
      rank_output out;
      const auto begin = steady::now();
      worker_.step(step);
      out.connector = steady::now() - begin;

      for (const auto& w : todo) {
        out.wrong_bytes.push_back(memory_.wrong_bytes(*w.blocks, *w.tokens, w.verify));
        memory_.compute(*w.blocks, *w.tokens, w.from, w.to);
      }

      const auto end = steady::now();
      out.results = worker_.poll();
      out.connector += steady::now() - end;
      return out;
    });
    auto answer = task->get_future();
    thread_.post([task] { (*task)(); });
    return answer;
  }

  void flip_a_byte(const block_table& blocks, std::size_t token) {
    memory_.flip_a_byte(blocks, token);
  }

 private:
  static kvferry::agent_options agent_options(const options& o, const std::string& engine_id,
                                              unsigned index) {
    kvferry::agent_options a;
    a.name = engine_id + "." + std::to_string(index);  // no two agents that may meet share one
    a.transport = o.transport;
    return a;
  }
  static kvferry::worker_options worker_options(const options& o, const std::string& engine_id,
                                                unsigned index, unsigned ranks) {
    kvferry::worker_options w;
    w.engine_id = engine_id;
    w.tp_rank = index;
    w.tp_size = ranks;
    w.lease = o.lease;  // the same as the scheduler half's, in both engines
    return w;
  }

  // In this order: the memory outlives what may write to it, and the agent its worker; the thread,
  // which uses all of them, ends first.
  kv_memory memory_;
  kvferry::agent agent_;
  kvferry::worker worker_;
  thread_of_rank thread_;
};

}  // namespace engines

#endif
