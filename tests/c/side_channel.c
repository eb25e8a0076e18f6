/* The side channel through C: content, replacement, limits, options, and clients that misbehave. */
#include <arpa/inet.h>
#include <pthread.h>
#include <sys/socket.h>

#include "fixture.h"

#define INVALID KVF_ERR_INVALID_ARGUMENT

static uint16_t port_of(kvf_side_channel channel) {
  kvf_buffer host = {0};
  uint16_t port = 0;
  CHECK_OK(kvf_side_channel_address(channel, &host, &port));
  CHECK(strcmp((const char*)host.data, "127.0.0.1") == 0);
  CHECK(port != 0);
  kvf_buffer_free(&host);
  return port;
}

static void expect(uint16_t port, const void* bytes, size_t len) {
  kvf_buffer got = {0};
  CHECK_OK(kvf_side_channel_request(NULL, "127.0.0.1", port, 0, 0, &got));
  CHECK_EQ(got.len, len);
  CHECK(len == 0 || memcmp(got.data, bytes, len) == 0);
  kvf_buffer_free(&got);
}

static int plain_client(uint16_t port) {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(fd >= 0);
  CHECK_EQ(connect(fd, (struct sockaddr*)&to, sizeof to), 0);
  return fd;
}

static void* asks(void* port) {
  for (int i = 0; i < 20; i++) expect(*(const uint16_t*)port, "second", 6);
  return NULL;
}

int main(void) {
  kvf_side_channel channel = {0};
  CHECK_OK(kvf_side_channel_listen(NULL, (const uint8_t*)"first", 5, &channel));
  uint16_t port = port_of(channel);
  uint8_t running = 0;
  CHECK_OK(kvf_side_channel_is_running(channel, &running));
  CHECK_EQ(running, 1);
  expect(port, "first", 5);
  CHECK_OK(kvf_side_channel_set_metadata(channel, NULL, 0));
  expect(port, NULL, 0);
  CHECK_OK(kvf_side_channel_set_metadata(channel, (const uint8_t*)"second", 6));

  /* The wire, as documented: four bytes of length, big-endian, then the payload. */
  int fd = plain_client(port);
  uint8_t frame[10];
  CHECK_EQ(recv(fd, frame, sizeof frame, MSG_WAITALL), 10);
  CHECK(memcmp(frame, "\0\0\0\6second", 10) == 0);
  close(fd);

  /* Silent clients stay connected; others are served at once, from many threads. */
  int silent[16];
  for (int i = 0; i < 16; i++) silent[i] = plain_client(port);
  pthread_t threads[8];
  for (int i = 0; i < 8; i++) CHECK_EQ(pthread_create(&threads[i], NULL, asks, &port), 0);
  for (int i = 0; i < 8; i++) CHECK_EQ(pthread_join(threads[i], NULL), 0);
  for (int i = 0; i < 16; i++) close(silent[i]);

  /* A big one, and a reader that will not take it. */
  pool big = pool_new(1 << 20, 8);
  pool_fill(&big, 9);
  CHECK_OK(kvf_side_channel_set_metadata(channel, big.bytes, big.block * big.count));
  expect(port, big.bytes, big.block * big.count);
  kvf_buffer got = {0};
  CHECK_STATUS(KVF_ERR_PEER_INCOMPATIBLE,
               kvf_side_channel_request("tcp", "127.0.0.1", port, 0, 1 << 20, &got));

  /* Options. */
  kvf_side_channel other = {0};
  kvf_side_channel_options o = kvf_side_channel_options_default();
  o.port = port;
  CHECK_STATUS(KVF_ERR_BUSY, kvf_side_channel_listen(&o, NULL, 0, &other));
  o = kvf_side_channel_options_default();
  o.max_message_bytes = 4;
  CHECK_STATUS(INVALID, kvf_side_channel_listen(&o, (const uint8_t*)"12345", 5, &other));
  CHECK_OK(kvf_side_channel_listen(&o, (const uint8_t*)"1234", 4, &other));
  CHECK_STATUS(INVALID, kvf_side_channel_set_metadata(other, (const uint8_t*)"12345", 5));
  expect(port_of(other), "1234", 4);
  CHECK_OK(kvf_side_channel_shutdown(other));
  other.id = 0;
  o = kvf_side_channel_options_default();
  o.struct_size = 44;
  CHECK_BAD(INVALID, "struct_size is 44", kvf_side_channel_listen(&o, NULL, 0, &other));
  o = kvf_side_channel_options_default();
  o.reserved[5] = 1;
  CHECK_BAD(INVALID, "reserved", kvf_side_channel_listen(&o, NULL, 0, &other));
  o = kvf_side_channel_options_default();
  o.kind = "pigeon";
  CHECK_BAD(INVALID, "pigeon", kvf_side_channel_listen(&o, NULL, 0, &other));
  o = kvf_side_channel_options_default();
  o.max_connections = UINT32_MAX;
  CHECK_BAD(INVALID, "4294967295", kvf_side_channel_listen(&o, NULL, 0, &other));
  CHECK_BAD(INVALID, "metadata is NULL", kvf_side_channel_listen(NULL, NULL, 1, &other));
  CHECK_BAD(INVALID, "metadata has length",
            kvf_side_channel_listen(NULL, big.bytes, SIZE_MAX / 2, &other));
  CHECK_BAD(INVALID, "metadata has length",
            kvf_side_channel_set_metadata(channel, big.bytes, (size_t)1 << 50));
  CHECK_BAD(INVALID, "channel is NULL", kvf_side_channel_listen(NULL, NULL, 0, NULL));
  CHECK_EQ(other.id, 0);

  /* Requests. */
  CHECK_BAD(INVALID, "host is NULL", kvf_side_channel_request(NULL, NULL, port, 0, 0, &got));
  CHECK_BAD(INVALID, "metadata is NULL",
            kvf_side_channel_request(NULL, "127.0.0.1", port, 0, 0, NULL));
  CHECK_BAD(INVALID, "pigeon", kvf_side_channel_request("pigeon", "127.0.0.1", port, 0, 0, &got));
  CHECK_STATUS(INVALID, kvf_side_channel_request(NULL, "127.0.0.1", 0, 0, 0, &got));
  CHECK_STATUS(INVALID, kvf_side_channel_request(NULL, "127.0.0.1", port, UINT64_MAX, 0, &got));

  /* Gone. */
  CHECK_OK(kvf_side_channel_shutdown(channel));
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_side_channel_shutdown(channel));
  CHECK_STATUS(KVF_ERR_PEER_LOST, kvf_side_channel_request(NULL, "127.0.0.1", port, 0, 0, &got));
  CHECK(got.data == NULL);

  /* A listener that never answers. */
  int mute = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in at = {.sin_family = AF_INET};
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t at_len = sizeof at;
  CHECK_EQ(bind(mute, (struct sockaddr*)&at, sizeof at), 0);
  CHECK_EQ(listen(mute, 4), 0);
  CHECK_EQ(getsockname(mute, (struct sockaddr*)&at, &at_len), 0);
  double start = now_s();
  CHECK_STATUS(KVF_ERR_TIMEOUT,
               kvf_side_channel_request(NULL, "127.0.0.1", ntohs(at.sin_port), 200, 0, &got));
  CHECK(now_s() - start >= 0.2);
  close(mute);
  pool_free(&big);
  return 0;
}
