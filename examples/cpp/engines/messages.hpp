// What the router and an engine tell each other: one packet, one message. Stands for HTTP.
#ifndef ENGINES_MESSAGES_HPP
#define ENGINES_MESSAGES_HPP

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <optional>
#include <sstream>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace engines {

// How far a request has come in an engine, in this order.
enum class stage : int { waiting, staged, receiving, computing, decoding, never };

inline const char* name(stage s) {
  const char* const names[] = {"waiting", "staged", "receiving", "computing", "decoding", "never"};
  return names[static_cast<int>(s)];
}

// A request. Instead of its tokens there are the seeds from which they come.
struct request_message {
  std::string id;
  std::uint64_t prefix_seed = 0, seed = 0;
  std::size_t prefix_tokens = 0, own_tokens = 0;
  std::size_t answer_tokens = 1;
  // Its client goes away when it has come so far. Part of the request, so that every stage has its
  // turn in every run; to the engine it comes as it always does, between two steps.
  stage leaves = stage::never;
  bool flip_a_byte = false;
  // What the engine is told about the other one: opaque to everything but the connector.
  std::string kv_transfer_params;

  std::string text() const {
    std::ostringstream out;
    out << id << ' ' << prefix_seed << ' ' << seed << ' ' << prefix_tokens << ' ' << own_tokens
        << ' ' << answer_tokens << ' ' << static_cast<int>(leaves) << ' ' << flip_a_byte << '\n'
        << kv_transfer_params;
    return out.str();
  }
  static request_message of(const std::string& text) {
    request_message m;
    int leaves = 0;
    std::istringstream in(text);
    in >> m.id >> m.prefix_seed >> m.seed >> m.prefix_tokens >> m.own_tokens >> m.answer_tokens >>
        leaves >> m.flip_a_byte;
    m.leaves = static_cast<stage>(leaves);
    m.kv_transfer_params = text.substr(text.find('\n') + 1);
    return m;
  }
};

// What an engine says: "ready", "first ID", "done ID\nPARAMS", "aborted ID", "summary\n...".
struct answer_message {
  std::string kind, id, rest;

  std::string text() const { return kind + ' ' + id + '\n' + rest; }
  static answer_message of(const std::string& text) {
    const auto space = text.find(' '), line = text.find('\n');
    return {text.substr(0, space), text.substr(space + 1, line - space - 1), text.substr(line + 1)};
  }
};

// One end of a socket that keeps messages apart.
class channel {
 public:
  explicit channel(int fd) : fd_(fd) {}
  channel(channel&& other) noexcept : fd_(std::exchange(other.fd_, -1)), ended_(other.ended_) {}
  channel& operator=(channel&& other) = delete;
  ~channel() {
    if (fd_ >= 0) ::close(fd_);
  }

  static std::pair<channel, channel> pair() {
    int fds[2];
    check(::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds));
    return {channel(fds[0]), channel(fds[1])};
  }

  void send(const std::string& message) {
    check(::send(fd_, message.data(), message.size(), MSG_NOSIGNAL));
  }
  // Nothing if none comes in this time, or ever again.
  std::optional<std::string> receive(std::chrono::milliseconds patience) {
    pollfd waiting{fd_, POLLIN, 0};
    const auto ready = ended_ ? 0 : ::poll(&waiting, 1, static_cast<int>(patience.count()));
    if (ready < 0 && errno == EINTR) return {};
    check(ready);
    if (ready == 0) return {};
    std::string message(256 * 1024, '\0');
    const auto size = ::recv(fd_, message.data(), message.size(), 0);
    if (size < 0 && errno == ECONNRESET) return ended_ = true, std::nullopt;
    check(size);
    if (size == 0) return ended_ = true, std::nullopt;
    message.resize(static_cast<std::size_t>(size));
    return message;
  }
  // The other end says nothing more.
  bool ended() const { return ended_; }
  void say_no_more() { check(::shutdown(fd_, SHUT_WR)); }
  int fd() const { return fd_; }

 private:
  static void check(long result) {
    if (result < 0) throw std::system_error(errno, std::generic_category(), "router and engine");
  }

  int fd_;
  bool ended_ = false;
};

}  // namespace engines

#endif
