/* A panic inside the library comes back as a status with its text, from any number of threads at
 * once, and the library works as before. */
#include <pthread.h>

#include "check.h"

static void* panics(void* number) {
  char text[64];
  for (int i = 0; i < 20; i++) {
    snprintf(text, sizeof text, "thread %d, panic %d: caf\xc3\xa9", *(const int*)number, i);
    CHECK_BAD(KVF_ERR_INTERNAL, text, kvf_debug_panic(text));
    CHECK_MESSAGE("internal error: panic: ");
  }
  return NULL;
}

int main(void) {
  CHECK_BAD(KVF_ERR_INTERNAL, "internal error: panic: on purpose", kvf_debug_panic("on purpose"));
  CHECK_BAD(KVF_ERR_INTERNAL, "panic: ", kvf_debug_panic(""));
  CHECK_BAD(KVF_ERR_INVALID_ARGUMENT, "message is NULL", kvf_debug_panic(NULL));
  CHECK_BAD(KVF_ERR_INVALID_ARGUMENT, "not UTF-8", kvf_debug_panic("\xff"));

  enum { THREADS = 8 };
  pthread_t threads[THREADS];
  int numbers[THREADS];
  for (int i = 0; i < THREADS; i++) {
    numbers[i] = i;
    CHECK_EQ(pthread_create(&threads[i], NULL, panics, &numbers[i]), 0);
  }
  for (int i = 0; i < THREADS; i++) CHECK_EQ(pthread_join(threads[i], NULL), 0);

  kvf_agent_options options = kvf_agent_options_default();
  options.name = "after";
  options.transport = "test";
  kvf_agent agent;
  CHECK_OK(kvf_agent_create(&options, &agent));
  CHECK_OK(kvf_agent_destroy(agent));
  return 0;
}
