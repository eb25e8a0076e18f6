/* The snippets of docs/connector.md about the scheduler half, in one program: tests/docs.rs holds the two
 * together. A prefill and a decode engine in one process, as far as their schedulers go. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvferry.h"

static void must(kvf_status status) {
  if (status == KVF_OK) return;
  fprintf(stderr, "%s\n", kvf_last_error_message());
  exit(1);
}

static void expect(int holds, const char* what) {
  if (holds) return;
  fprintf(stderr, "not so: %s\n", what);
  exit(1);
}

static kvf_scheduler scheduler_of(const char* engine_id) {
  kvf_transfer_group group = {KVF_GROUP_FULL, 16, 0, 0};
  kvf_scheduler_options options = kvf_scheduler_options_default();
  options.engine_id = engine_id; /* best another one after each start */
  options.host = "127.0.0.1";    /* under which the other engines reach this one */
  options.groups = &group;
  options.groups_len = 1;
  kvf_scheduler scheduler;
  must(kvf_scheduler_create(&options, &scheduler));
  return scheduler;
}

/* Stands for the engine's way to its workers. */
static size_t given;
static void give_to_each_worker(const uint8_t* step, size_t len) {
  (void)step;
  given += len;
}

static void step(kvf_scheduler scheduler) {
  kvf_buffer bytes;
  must(kvf_scheduler_build_step(scheduler, &bytes));
  give_to_each_worker(bytes.data, bytes.len);
  kvf_buffer_free(&bytes);
}

int main(void) {
  kvf_scheduler prefill = scheduler_of("prefill-1"), decode = scheduler_of("decode-1");

  const uint8_t payload[] = "what rank 0 of the prefill engine tells others";
  kvf_rank_payload rank = {0, 0, payload, sizeof payload};
  must(kvf_scheduler_serve(prefill, &rank, 1));

  /* --- The prefill engine. */
  const char* todo = "{\"do_remote_decode\": true}";
  uint64_t drop;
  must(kvf_scheduler_add(prefill, "p-17", (const uint8_t*)todo, strlen(todo), 40, 0, &drop));
  expect(drop == 0, "nothing is left to the decoder");

  const uint32_t computed[] = {4, 5, 9}; /* 40 tokens in blocks of 16 */
  kvf_request_blocks blocks = {computed, 3, 0, 0};
  uint8_t staged;
  must(kvf_scheduler_allocated(prefill, "p-17", &blocks, 1, 0, &staged));
  step(prefill);

  uint32_t keep;
  kvf_buffer params; /* JSON, for the answer to the router */
  must(kvf_scheduler_finished(prefill, "p-17", KVF_FINISH_LENGTH, &blocks, 1, 40, &keep, &params));
  if (keep == KVF_KEEP_NO) {
    /* free the blocks now; else when the request is reported */
  }
  expect(keep == KVF_KEEP_UNTIL_SENT, "the blocks are kept");

  /* --- The decode engine, with what the router passed on. */
  must(kvf_scheduler_add(decode, "d-3", params.data, params.len, 40, 0, &drop));

  uint64_t load;
  uint64_t cached = 16; /* one block of the prompt is in the prefix cache */
  must(kvf_scheduler_match(decode, "d-3", 40, cached, &load));
  expect(load == 24, "the rest can be loaded");

  const uint32_t fresh[] = {71, 72};
  kvf_request_blocks missing = {fresh, 2, 1, 0}; /* behind the one that is cached */
  must(kvf_scheduler_allocated(decode, "d-3", &missing, 1, load, &staged));
  /* set the request aside: its blocks are being written to */
  step(decode);

  /* --- Later: every rank of the decode engine has reported d-3 as received. */
  const char* arrived[] = {"d-3"};
  must(kvf_scheduler_received(decode, arrived, 1));
  /* the request runs: its 40 tokens are computed */

  /* --- ... and every rank of the prefill engine p-17 as sent. */
  const char* read[] = {"p-17"};
  must(kvf_scheduler_sent(prefill, read, 1));
  /* free the blocks 4, 5 and 9 */

  const uint32_t all[] = {70, 71, 72};
  kvf_request_blocks ended = {all, 3, 0, 0};
  must(kvf_scheduler_finished(decode, "d-3", KVF_FINISH_STOP, &ended, 1, 47, &keep, NULL));
  expect(keep == KVF_KEEP_NO, "a decoder keeps nothing");

  kvf_scheduler_stats left;
  must(kvf_scheduler_stats_get(prefill, &left));
  expect(left.requests + left.holds + left.leases == 0, "nothing is left behind");
  must(kvf_scheduler_stats_get(decode, &left));
  expect(left.requests + left.receiving + left.heartbeats == 0, "nothing is left behind");
  expect(given > 100, "the workers have been told");
  kvf_buffer_free(&params);
  must(kvf_scheduler_destroy(decode));
  must(kvf_scheduler_destroy(prefill));
  return 0;
}
