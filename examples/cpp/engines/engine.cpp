#include "engine.hpp"

#include <poll.h>

#include <algorithm>
#include <iostream>

namespace engines {
namespace {

using namespace std::chrono_literals;

constexpr std::uint32_t all_layers[] = {0};  // one group: every layer has the same block table

std::size_t blocks_for(std::size_t tokens, const options& o) {
  return (tokens + o.block_tokens - 1) / o.block_tokens;
}

double microseconds(steady::duration d) {
  return std::chrono::duration<double, std::micro>(d).count();
}

// It is there: whatever ranks report, this engine has asked for.
requests::iterator find(requests& in, const std::string& id) {
  return std::find_if(in.begin(), in.end(), [&](const request& r) { return r.id == id; });
}

// The connector takes the block table of each group, and there is one. `first`: where in the
// request's table the ids begin.
struct table {
  kvferry::request_blocks blocks;
  operator kvferry::span<const kvferry::request_blocks>() const { return {&blocks, 1}; }
};

kvferry::scheduler make_connector(const options& o, const std::string& engine_id, unsigned ranks) {
  kvferry::scheduler_options s;
  s.engine_id = engine_id;
  s.host = "127.0.0.1";  // under which the other engine reaches this one
  kvferry::transfer_group attention;
  attention.tokens_per_block = o.block_tokens;
  s.groups = {attention};
  s.tp_size = ranks;
  s.lease = o.lease;
  return kvferry::scheduler(s);
}

kvferry::block_pool make_pool(const options& o) {
  kvferry::block_pool_options p;
  p.blocks = o.blocks;
  p.caching = true;
  return kvferry::block_pool(p);
}

}  // namespace

engine::engine(const options& o, const std::string& name, unsigned ranks, unsigned peer_ranks,
               channel router)
    : o_(o),
      name_(name),
      peer_ranks_(peer_ranks),
      router_(std::move(router)),
      pool_(make_pool(o)),
      sent_(ranks),
      received_(ranks) {
  // An engine that comes back is another engine: what was known of the old one's memory is void.
  const std::string engine_id = name + "-" + std::to_string(::getpid());
  for (unsigned i = 0; i < ranks; i++)
    ranks_.push_back(std::make_unique<rank>(o, engine_id, i, ranks));
  connector_ = make_connector(o, engine_id, ranks);

  // From now on other engines can ask for what they need to reach these ranks. The port is in the
  // parameters that go with each request, so nobody has to configure it.
  std::vector<kvferry::bytes> payloads;
  std::vector<kvferry::rank_payload> all;
  for (const auto& r : ranks_) payloads.push_back(r->payload());
  for (unsigned i = 0; i < ranks; i++) all.push_back({{0, i}, payloads[i]});
  connector_.serve(all);
}

bool engine::run() {
  router_.send(answer_message{"ready", name_, ""}.text());
  // Also with nothing to run: while blocks are kept or awaited, there is news of that only in steps.
  while (!router_.ended() || is_busy() || !receiving_.empty() || !kept_.empty()) {
    take_messages();
    step();
  }
  const bool rests = rest_within(10s);
  count_records();
  router_.send(answer_message{"summary", name_, summary()}.text());
  return rests && figures_.wrong_bytes == 0;
}

void engine::take_messages() {
  if (is_idle()) sleep();
  while (auto message = router_.receive(0ms)) take(request_message::of(*message));
}

// Whether the next step would do nothing that this one has not done.
bool engine::is_idle() const {
  const auto leaves = [this](const request& r) { return reached(r) >= r.leaves; };
  return running_.empty() && !has_news_ &&
         std::none_of(receiving_.begin(), receiving_.end(), leaves);
}

// Until a client wants something, or a rank has heard of a transfer. Not for longer than until the
// next heartbeat may be due: heartbeats go out in steps.
void engine::sleep() const {
  std::vector<pollfd> news;
  for (const auto& r : ranks_) news.push_back({r->event_fd(), POLLIN, 0});
  if (!router_.ended()) news.push_back({router_.fd(), POLLIN, 0});
  (void)::poll(news.data(), news.size(), static_cast<int>((o_.lease / 12).count()));
}

void engine::take(const request_message& message) {
  request r;
  r.id = message.id;
  append_tokens(r.tokens, message.prefix_seed, message.prefix_tokens);
  append_tokens(r.tokens, message.seed, message.own_tokens);
  r.prompt = r.tokens.size();
  r.answer = message.answer_tokens;
  r.leaves = message.leaves;
  r.flip_a_byte = message.flip_a_byte;
  // At once, not when it is the request's turn: from now on its blocks in the other engine are kept
  // alive, however long it waits here.
  connector_.add(r.id, message.kv_transfer_params, r.prompt);
  waiting_.push_back(std::move(r));
  figures_.requests++;
}

void engine::step() {
  lose_clients();
  admit();
  compute(plan_work());
}

// --- Scheduling

stage engine::reached(const request& r) const {
  if (r.receiving) return stage::receiving;
  if (r.blocks.empty()) return stage::waiting;
  return r.answered() == 0 ? stage::computing : stage::decoding;
}

void engine::lose_clients() {
  const auto leaves = [this](request& r) {
    const bool is_gone = reached(r) >= r.leaves;
    if (is_gone) abort(r);
    return is_gone;
  };
  for (auto* all : {&waiting_, &receiving_, &running_}) all->remove_if(leaves);
}

void engine::admit() {
  while (!waiting_.empty() && running_.size() + receiving_.size() < o_.most_running) {
    request& r = waiting_.front();
    if (!admit(r)) return;
    if (r.leaves == stage::staged) {
      // Between its blocks and the step that would have fetched them.
      abort(r);
      waiting_.pop_front();
      continue;
    }
    auto& where = r.receiving ? receiving_ : running_;
    where.splice(where.end(), waiting_, waiting_.begin());
  }
}

// Gives a request its blocks; false if there are not enough of them now.
bool engine::admit(request& r) {
  // What the pool still has of an earlier request with the same beginning. At least one token is
  // computed here: what comes after the prompt follows from the output of its last token.
  const auto hashes = block_hashes(r, 0, (r.prompt - 1) / o_.block_tokens);
  kvferry::prefix known;
  if (hashes.size() != 0) known = pool_.acquire(hashes, sizeof(context), all_layers);
  const std::size_t known_tokens = known.hashes * o_.block_tokens;

  // What the other engine has beyond that: for a request without parameters, nothing.
  const auto load = connector_.match(r.id, r.prompt, known_tokens);

  // Nobody is let in whose answer would not find room: this engine cannot throw a request out
  // again.
  const std::size_t missing = blocks_for(r.prompt, o_) - known.hashes;
  if (pool_.num_free() < promised() + still_needs(r) - known.hashes) {
    give_back(std::move(known.blocks));
    return false;
  }
  r.blocks = std::move(known.blocks);
  r.blocks.resize(known.hashes + missing);
  pool_.allocate({r.blocks.data() + known.hashes, missing});
  r.known = known.hashes;
  r.computed = known_tokens;

  // Those that have to be filled, whoever does it.
  const table fresh{
      {{r.blocks.data() + known.hashes, missing}, static_cast<std::uint32_t>(known.hashes)}};
  connector_.allocated(r.id, fresh, load);
  r.receiving = load > 0;
  figures_.prompt_tokens += r.prompt;
  figures_.known_tokens += known_tokens;
  return true;
}

// Blocks that a request will take before it is over.
std::size_t engine::still_needs(const request& r) const {
  return blocks_for(r.prompt + r.answer - 1, o_) - r.blocks.size();
}

// Blocks that are free, but will be wanted by those who were let in.
std::size_t engine::promised() const {
  std::size_t n = 0;
  for (const auto* all : {&receiving_, &running_})
    for (const auto& r : *all) n += still_needs(r);
  return n;
}

std::vector<work> engine::plan_work() {
  std::vector<work> todo;
  std::size_t budget = o_.step_tokens;
  for (auto& r : running_) {
    if (budget == 0) break;
    const std::size_t to = std::min(r.computed + budget, r.tokens.size());
    // A block that a request grows by is taken behind its last one, if that is free: two blocks
    // side by side are one range in a transfer.
    if (const auto need = blocks_for(to, o_); need > r.blocks.size()) {
      const auto had = r.blocks.size();
      const auto last = r.blocks.back();
      r.blocks.resize(need);
      pool_.allocate_after(last, {r.blocks.data() + had, need - had});
    }
    work w{&r.id, &r.blocks, &r.tokens, r.verify, r.computed, to};
    // With its last token a request looks at all that came before, as attention does: blocks that
    // somebody else has written to meanwhile do not go unnoticed.
    if (to == r.tokens.size() && r.answered() + 1 == r.answer) w.verify = r.computed;
    budget -= to - r.computed;
    todo.push_back(w);
  }
  return todo;
}

// --- A step on the ranks

void engine::compute(const std::vector<work>& todo) {
  const auto begin = steady::now();
  const auto step = connector_.build_step();
  auto connector = steady::now() - begin;

  std::vector<std::future<rank_output>> answers;
  for (auto& r : ranks_) answers.push_back(r->run(step, todo));
  std::vector<rank_output> outputs;
  for (auto& answer : answers) outputs.push_back(answer.get());

  steady::duration slowest{};
  for (const auto& out : outputs) {
    slowest = std::max(slowest, out.connector);
    for (std::size_t i = 0; i < todo.size(); i++) {
      if (out.wrong_bytes[i] == 0) continue;
      figures_.wrong_bytes += out.wrong_bytes[i];
      std::cerr << name_ << ": request " << *todo[i].id << " has " << out.wrong_bytes[i]
                << " wrong bytes in its cache\n";
    }
  }
  for (const auto& w : todo) advance(w);

  const auto end = steady::now();
  take_results(outputs);
  connector += steady::now() - end + slowest;
  if (!todo.empty()) figures_.step_us.push_back(microseconds(connector));
}

// The model has done this work.
void engine::advance(const work& done) {
  const auto it = find(running_, *done.id);
  request& r = *it;
  r.computed = done.to;
  r.verify = 0;
  remember_prefix(r);
  if (r.computed < r.tokens.size()) return;  // of the prompt
  append_tokens(r.tokens, r.tokens.back(), 1);
  if (r.answered() == 1 && r.answer > 1) router_.send(answer_message{"first", r.id, ""}.text());
  if (r.answered() < r.answer) return;
  finish(r);
  running_.erase(it);
}

// What the ranks have heard of transfers.
void engine::take_results(const std::vector<rank_output>& outputs) {
  std::vector<std::string> sent, received_by_all;
  has_news_ = false;
  for (const auto& out : outputs) {
    has_news_ = has_news_ || !out.results.empty();
    sent_.add(out.results.sent, sent);
    received_.add(out.results.received, received_by_all);
    failed_.insert(out.results.failed.begin(), out.results.failed.end());
  }
  if (!sent.empty()) connector_.sent(sent);
  for (const auto& id : sent) {
    give_back(std::move(kept_.at(id)));
    kept_.erase(id);
  }
  if (!received_by_all.empty()) connector_.received(received_by_all);
  for (const auto& id : received_by_all) received(id);
}

// Nothing writes into the request's blocks any more.
void engine::received(const std::string& id) {
  const bool failed = failed_.erase(id) != 0;
  if (const auto kept = kept_.find(id); kept != kept_.end()) {  // aborted meanwhile
    give_back(std::move(kept->second));
    kept_.erase(kept);
    return;
  }
  const auto it = find(receiving_, id);
  request& r = *it;
  r.receiving = false;
  if (failed) {
    // What has arrived is not to be used, nor said to be known. The engine could also fail the
    // request; this one computes what it did not get.
    figures_.recomputed++;
  } else {
    figures_.loaded++;
    r.computed = r.prompt - 1;  // the last one is run again, for its output
    r.verify = r.prompt;
  }
  running_.splice(running_.end(), receiving_, it);
}

// --- Ends

void engine::finish(request& r) {
  if (r.flip_a_byte) ranks_[0]->flip_a_byte(r.blocks, r.prompt - 1);
  const auto blocks = blocks_for(r.computed, o_);
  const auto end = connector_.finished(r.id, kvferry::finish::length,
                                       table{{{r.blocks.data(), blocks}, 0}}, r.computed);
  // The parameters go to the client with the answer, that is, to the router.
  router_.send(answer_message{"done", r.id, end.params}.text());
  if (end.keep == kvferry::keep::no)
    give_back(std::move(r.blocks));
  else
    kept_.emplace(r.id, std::move(r.blocks));  // until the ranks report it as sent
}

void engine::abort(request& r) {
  figures_.aborted[r.leaves == stage::staged ? stage::staged : reached(r)]++;
  // Said first, and before the blocks are given back: they may be being written to.
  const auto blocks = blocks_for(r.computed, o_);
  const auto end = connector_.finished(r.id, kvferry::finish::abort,
                                       table{{{r.blocks.data(), blocks}, 0}}, r.computed);
  router_.send(answer_message{"aborted", r.id, ""}.text());
  if (end.keep == kvferry::keep::no)
    give_back(std::move(r.blocks));
  else
    kept_.emplace(r.id, std::move(r.blocks));  // until they report it as received
}

// Full blocks can be used by others from now on.
void engine::remember_prefix(request& r) {
  const auto full = r.computed / o_.block_tokens;
  if (full <= r.known) return;
  kvferry::cached_blocks fresh;
  fresh.blocks = {r.blocks.data() + r.known, full - r.known};
  fresh.hashes = block_hashes(r, r.known, full - r.known);
  fresh.hash_len = sizeof(context);
  fresh.block_size = o_.block_tokens;
  fresh.first = static_cast<std::uint32_t>(r.known);
  pool_.cache(fresh);
  r.known = full;
}

// The end first: the beginning of a prompt is what the next request is most likely to have too.
void engine::give_back(block_table blocks) {
  std::reverse(blocks.begin(), blocks.end());
  pool_.free(blocks);
}

kvferry::byte_view engine::block_hashes(const request& r, std::size_t first, std::size_t count) {
  hashes_.clear();
  for (std::size_t i = first; i < first + count; i++)
    hashes_.push_back(r.tokens[(i + 1) * o_.block_tokens - 1]);
  return {hashes_.data(), hashes_.size() * sizeof(context)};
}

}  // namespace engines
