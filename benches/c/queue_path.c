/* What a request costs an engine's thread that calls kvferry from C: kvf_queue_submit() and one
 * kvf_queue_poll() each millisecond until it is through, as in benches/stock_path.py, which runs
 * this program beside its other sides.
 *
 *   queue_path TRANSPORT     and on its input one line: ADDRESS METADATA LAYOUT (hex) of the source
 *
 * Prints the times as JSON: seconds of each submit, of all polls of each request, the number of
 * polls, and the time from submit to the last byte. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "kvferry.h"

/* As in stock_path.py. */
enum { REGIONS = 160, PAGES = 40960, PAGE = 8192, WINDOW = 256 << 20, MOST = 2048, SHAPES = 3 };
static const uint64_t ROW = (uint64_t)PAGES * PAGE;
static const uint32_t sizes[SHAPES] = {118, 512, 2048};
static const int repeats[SHAPES] = {5, 3, 2};

static void must(kvf_status status) {
  if (status == KVF_OK) return;
  fprintf(stderr, "queue_path: %s\n", kvf_last_error_message());
  exit(1);
}

static void need(int fine, const char* what) {
  if (fine) return;
  perror(what);
  exit(1);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The engine's thread has other things to do. */
static void pause_ms(void) {
  const struct timespec t = {0, 1000000};
  nanosleep(&t, NULL);
}

/* Address space for all regions, backed by one window. */
static uint64_t map_memory(void) {
  size_t size = REGIONS * ROW;
  int fd = memfd_create("queue-path", 0);
  need(fd >= 0 && ftruncate(fd, WINDOW) == 0, "memfd");
  char* base = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  need(base != MAP_FAILED, "mmap");
  for (size_t at = 0; at < size; at += WINDOW) {
    size_t len = size - at < WINDOW ? size - at : WINDOW;
    void* got = mmap(base + at, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    need(got == base + at, "mmap");
  }
  memset(base, 0, WINDOW);
  close(fd);
  return (uint64_t)(uintptr_t)base;
}

static kvf_layout layout_at(uint64_t base) {
  static kvf_region regions[REGIONS];
  for (uint64_t i = 0; i < REGIONS; i++) {
    regions[i].base = base + i * ROW;
    regions[i].page_count = PAGES;
  }
  kvf_group group = {.kind = KVF_GROUP_FULL, .tokens_per_block = 16};
  kvf_dense_layers layers = {.kv_heads = 4,
                             .k_head_size = 64,
                             .elem_bytes = 2,
                             .order = KVF_ORDER_HND,
                             .kv = KVF_KV_REGIONS,
                             .regions = regions,
                             .regions_len = REGIONS};
  kvf_layout_options options = kvf_layout_options_default();
  options.groups = &group;
  options.groups_len = 1;
  options.dense = &layers;
  options.dense_len = 1;
  kvf_layout layout;
  must(kvf_layout_create(&options, &layout));
  return layout;
}

typedef struct bytes {
  uint8_t* data;
  size_t len;
} bytes;

static bytes unhex(const char* text) {
  bytes out = {malloc(strlen(text) / 2 + 1), strlen(text) / 2};
  for (size_t i = 0; i < out.len; i++) {
    unsigned value;
    need(sscanf(text + 2 * i, "%2x", &value) == 1, "hex");
    out.data[i] = (uint8_t)value;
  }
  return out;
}

/* Submits, and polls until it is through; the times of it. */
static void request(kvf_queue queue, const kvf_submission* submission, double took[3],
                    int* polls) {
  kvf_completion done[16];
  size_t len = 0;
  uint64_t ticket;
  double begin = now();
  must(kvf_queue_submit(queue, submission, &ticket));
  took[0] = now() - begin;
  took[1] = 0;
  for (*polls = 1;; ++*polls) {
    double at = now();
    must(kvf_queue_poll(queue, done, 16, &len));
    took[1] += now() - at;
    if (len > 0) break;
    pause_ms();
  }
  took[2] = now() - begin;
  need(done[0].ticket == ticket && done[0].status == KVF_OK, done[0].message);
}

static void list(const char* name, const double* values, int len, int last) {
  printf("\"%s\": [", name);
  for (int i = 0; i < len; i++) printf("%s%.9f", i ? ", " : "", values[i]);
  printf("]%s", last ? "}" : ", ");
}

static void shape(kvf_queue queue, kvf_submission* submission, kvf_group_blocks* blocks, int size,
                  int scattered) {
  static uint32_t local[MOST], remote[MOST];
  for (uint32_t i = 0; i < sizes[size]; i++) {
    /* Steps without a factor in common with the number of pages: no two neighbours. */
    local[i] = scattered ? (uint32_t)((uint64_t)i * 12373 % PAGES) : i;
    remote[i] = scattered ? (uint32_t)((uint64_t)i * 28019 % PAGES) : i + 7;
  }
  blocks->local = local, blocks->remote = remote;
  blocks->local_len = blocks->remote_len = sizes[size];
  double took[3], columns[4][16];
  int polls;
  /* The first one is not counted. */
  for (int i = -1; i < repeats[size]; i++) {
    pause_ms(), pause_ms(); /* the queue's thread sleeps again: waking it is counted */
    request(queue, submission, took, &polls);
    if (i < 0) continue;
    for (int k = 0; k < 3; k++) columns[k][i] = took[k];
    columns[3][i] = polls;
  }
  printf("{");
  list("submit", columns[0], repeats[size], 0);
  list("polling", columns[1], repeats[size], 0);
  list("total", columns[2], repeats[size], 0);
  list("polls", columns[3], repeats[size], 1);
}

int main(int argc, char** argv) {
  need(argc == 2, "usage: queue_path TRANSPORT");
  char* line = NULL;
  size_t room = 0;
  need(getline(&line, &room, stdin) > 0, "input");
  strtok(line, " \n"); /* the address: the layout says it, too */
  const char* metadata_hex = strtok(NULL, " \n");
  const char* layout_hex = strtok(NULL, " \n");
  need(metadata_hex != NULL && layout_hex != NULL, "input");
  bytes metadata = unhex(metadata_hex), theirs = unhex(layout_hex);

  kvf_agent_options options = kvf_agent_options_default();
  options.name = "queue-path";
  options.transport = argv[1];
  options.worker_threads = strcmp(argv[1], "nixl") == 0 ? 4 : 0;
  kvf_agent agent;
  must(kvf_agent_create(&options, &agent));
  uint64_t base = map_memory();
  kvf_reg_desc cache = {base, REGIONS * ROW, 0, NULL, 0};
  must(kvf_agent_register(agent, KVF_MEM_DRAM, &cache, 1, NULL, 0));
  kvf_buffer name;
  must(kvf_agent_add_remote(agent, metadata.data, metadata.len, &name));
  kvf_layout local = layout_at(base), remote;
  must(kvf_layout_decode(theirs.data, theirs.len, &remote));
  kvf_plan plan;
  must(kvf_plan_build(local, &remote, 1, NULL, &plan));
  kvf_queue queue;
  must(kvf_queue_create(agent, NULL, &queue));

  char* peer = strndup((const char*)name.data, name.len);
  const char* agents[] = {peer};
  kvf_group_blocks blocks = {0};
  kvf_submission submission = kvf_submission_default();
  submission.plan = plan;
  submission.agents = agents;
  submission.agents_len = 1;
  submission.groups = &blocks;
  submission.groups_len = 1;
  submission.notification = (const uint8_t*)"request-0123456789:1";
  submission.notification_len = 20;
  printf("{\"shapes\": [");
  for (int size = 0; size < SHAPES; size++)
    for (int scattered = 0; scattered < 2; scattered++) {
      if (size + scattered > 0) printf(", ");
      shape(queue, &submission, &blocks, size, scattered);
    }
  printf("]}\n");
  fflush(stdout);
  /* As the Python sides do: what is left of agents is not part of this. */
  _exit(0);
}
