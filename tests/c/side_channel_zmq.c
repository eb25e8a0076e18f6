/* The zmq side channel through C: ranks, replacement, the clock, bad input. */
#include "fixture.h"

#define INVALID KVF_ERR_INVALID_ARGUMENT

static uint16_t port;

static kvf_status ask(uint32_t pp, uint32_t tp, kvf_buffer* got, kvf_clock_sample* clock) {
  return kvf_side_channel_request_rank("zmq", "127.0.0.1", port, pp, tp, 0, 0, got, clock);
}

static void expect(uint32_t pp, uint32_t tp, const char* text) {
  kvf_buffer got = {0};
  kvf_clock_sample clock = {0, -7};
  CHECK_OK(ask(pp, tp, &got, &clock));
  CHECK_EQ(got.len, strlen(text));
  CHECK(memcmp(got.data, text, got.len) == 0);
  CHECK(clock.rtt_s >= 0 && clock.rtt_s < 60);
  /* One host, one clock. */
  CHECK(clock.offset_s >= -clock.rtt_s - 1e-6 && clock.offset_s <= clock.rtt_s + 1e-6);
  kvf_buffer_free(&got);
}

static void expect_none(uint32_t pp, uint32_t tp) {
  kvf_buffer got = {0};
  CHECK_STATUS(KVF_ERR_NOT_FOUND, ask(pp, tp, &got, NULL));
  CHECK(got.data == NULL);
}

int main(void) {
  kvf_side_channel channel = {0};
  kvf_side_channel_options o = kvf_side_channel_options_default();
  o.kind = "zmq";
  CHECK_OK(kvf_side_channel_listen(&o, NULL, 0, &channel));
  CHECK_OK(kvf_side_channel_address(channel, NULL, &port));
  expect_none(0, 0);
  CHECK_OK(kvf_side_channel_set_metadata(channel, (const uint8_t*)"first", 5));
  CHECK_OK(kvf_side_channel_set_rank_metadata(channel, 1, 7, (const uint8_t*)"other", 5));
  expect(0, 0, "first");
  expect(1, 7, "other");
  expect_none(7, 1);

  kvf_rank_payload ranks[3] = {
      {0, 1, (const uint8_t*)"b", 1}, {0, 0, (const uint8_t*)"a", 1}, {1, 7, NULL, 0}};
  CHECK_OK(kvf_side_channel_replace_ranks(channel, ranks, 3));
  expect(0, 0, "a");
  expect(0, 1, "b");
  expect_none(1, 7);
  /* Refused as a whole. */
  ranks[0].data = (const uint8_t*)"c";
  ranks[2].tp_rank = ranks[2].pp_rank = 0;
  CHECK_BAD(INVALID, "twice", kvf_side_channel_replace_ranks(channel, ranks, 3));
  ranks[2].tp_rank = 5;
  ranks[2].len = 1;
  CHECK_BAD(INVALID, "ranks[2].data is NULL", kvf_side_channel_replace_ranks(channel, ranks, 3));
  CHECK_BAD(INVALID, "ranks is NULL", kvf_side_channel_replace_ranks(channel, NULL, 1));
  CHECK_BAD(INVALID, "ranks has length",
            kvf_side_channel_replace_ranks(channel, ranks, (size_t)1 << 40));
  CHECK_BAD(INVALID, "metadata is NULL",
            kvf_side_channel_set_rank_metadata(channel, 0, 0, NULL, 1));
  expect(0, 1, "b");
  CHECK_OK(kvf_side_channel_replace_ranks(channel, NULL, 0));
  expect_none(0, 0);

  /* Without a rank it is rank (0, 0). */
  kvf_buffer got = {0};
  CHECK_OK(kvf_side_channel_set_metadata(channel, (const uint8_t*)"first", 5));
  CHECK_OK(kvf_side_channel_request("zmq", "127.0.0.1", port, 0, 0, &got));
  CHECK_EQ(got.len, 5);
  kvf_buffer_free(&got);
  /* Who speaks something else is told so. */
  CHECK_STATUS(KVF_ERR_PEER_INCOMPATIBLE,
               kvf_side_channel_request("tcp", "127.0.0.1", port, 0, 0, &got));
  CHECK_BAD(INVALID, "metadata is NULL", ask(0, 0, NULL, NULL));
  CHECK_BAD(INVALID, "pigeon", kvf_side_channel_request_rank("pigeon", "127.0.0.1", port, 0, 0, 0,
                                                             0, &got, NULL));

  /* tcp has one rank and no clock. */
  kvf_side_channel tcp = {0};
  kvf_clock_sample clock = {0, 0};
  uint16_t zmq_port = port;
  CHECK_OK(kvf_side_channel_listen(NULL, (const uint8_t*)"one", 3, &tcp));
  CHECK_OK(kvf_side_channel_address(tcp, NULL, &port));
  CHECK_BAD(INVALID, "one rank", kvf_side_channel_set_rank_metadata(tcp, 0, 1, NULL, 0));
  CHECK_BAD(INVALID, "one", kvf_side_channel_replace_ranks(tcp, NULL, 0));
  CHECK_BAD(INVALID, "one rank", kvf_side_channel_request_rank(NULL, "127.0.0.1", port, 0, 1, 0, 0,
                                                               &got, &clock));
  CHECK_OK(kvf_side_channel_request_rank(NULL, "127.0.0.1", port, 0, 0, 0, 0, &got, &clock));
  CHECK_EQ(got.len, 3);
  CHECK(clock.rtt_s < 0);
  kvf_buffer_free(&got);
  CHECK_OK(kvf_side_channel_shutdown(tcp));

  port = zmq_port;
  CHECK_OK(kvf_side_channel_shutdown(channel));
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_side_channel_replace_ranks(channel, NULL, 0));
  CHECK_STATUS(KVF_ERR_PEER_LOST, ask(0, 0, &got, NULL));
  return 0;
}
