/* The log: levels, the callback, and its finalizer. */
#include <pthread.h>
#include <stdatomic.h>

#include "fixture.h"

typedef struct sink {
  atomic_int calls, finalized, level;
  pthread_mutex_t mutex;
  char last[256];
} sink;

static void on_record(void* env, int32_t level, const char* target, const char* message) {
  sink* s = (sink*)env;
  if (atomic_load(&s->finalized) != 0) abort();
  CHECK(target != NULL && strncmp(target, "kvferry", 7) == 0);
  pthread_mutex_lock(&s->mutex);
  snprintf(s->last, sizeof s->last, "%s", message);
  pthread_mutex_unlock(&s->mutex);
  atomic_store(&s->level, level);
  atomic_fetch_add(&s->calls, 1);
}

static void on_end(void* env) { atomic_fetch_add(&((sink*)env)->finalized, 1); }

static void* fails_often(void* stop) {
  kvf_agent null = {0};
  while (!atomic_load((atomic_int*)stop))
    CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_agent_destroy(null));
  return NULL;
}

int main(void) {
  const kvf_agent null = {0};
  static sink first = {.mutex = PTHREAD_MUTEX_INITIALIZER};
  static sink second = {.mutex = PTHREAD_MUTEX_INITIALIZER};

  const int32_t levels[] = {-1, KVF_LOG_TRACE + 1, INT32_MAX, INT32_MIN};
  for (size_t i = 0; i < 4; i++)
    CHECK_BAD(KVF_ERR_INVALID_ARGUMENT, "log level", kvf_log_set_level(levels[i]));
  CHECK_BAD(KVF_ERR_INVALID_ARGUMENT, "callback is NULL",
            kvf_log_set_callback(NULL, &first, on_end));
  CHECK_EQ(first.finalized, 0);

  /* The text of every error that is returned is logged at debug, and not below. */
  CHECK_OK(kvf_log_set_callback(on_record, &first, on_end));
  CHECK_OK(kvf_log_set_level(KVF_LOG_INFO));
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_agent_destroy(null));
  CHECK_EQ(first.calls, 0);
  CHECK_OK(kvf_log_set_level(KVF_LOG_DEBUG));
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_agent_destroy(null));
  CHECK_EQ(first.calls, 1);
  CHECK_EQ(first.level, KVF_LOG_DEBUG);
  CHECK(strstr(first.last, "the agent handle is null") != NULL);
  CHECK_OK(kvf_log_set_level(KVF_LOG_OFF));
  CHECK_STATUS(KVF_ERR_INVALID_HANDLE, kvf_agent_destroy(null));
  CHECK_EQ(first.calls, 1);

  /* Replaced while other threads log: nobody is called after the finalizer, which runs once. */
  CHECK_OK(kvf_log_set_level(KVF_LOG_DEBUG));
  atomic_int stop = 0;
  pthread_t threads[4];
  for (int i = 0; i < 4; i++) CHECK_EQ(pthread_create(&threads[i], NULL, fails_often, &stop), 0);
  WAIT_FOR(atomic_load(&first.calls) > 100);
  CHECK_OK(kvf_log_set_callback(on_record, &second, on_end));
  WAIT_FOR(atomic_load(&first.finalized) == 1);
  int calls = first.calls;
  WAIT_FOR(atomic_load(&second.calls) > 100);
  CHECK_EQ(first.calls, calls);
  atomic_store(&stop, 1);
  for (int i = 0; i < 4; i++) CHECK_EQ(pthread_join(threads[i], NULL), 0);
  CHECK_EQ(second.finalized, 0);

  CHECK_OK(kvf_log_set_level(KVF_LOG_OFF));
  CHECK_OK(kvf_log_set_callback(NULL, NULL, NULL));
  CHECK_EQ(second.finalized, 1);
  CHECK_EQ(first.finalized, 1);
  return 0;
}
