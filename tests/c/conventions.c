/* Versions, status names, messages per thread, freeing, and that loading the library starts
 * nothing. Uses no transport. */
#include <dirent.h>
#include <pthread.h>

#include "check.h"

static int entries(const char* folder) {
  DIR* dir = opendir(folder);
  CHECK(dir != NULL);
  int n = 0;
  while (readdir(dir) != NULL) n++;
  closedir(dir);
  return n - 2; /* . and .. */
}

static void versions(void) {
  CHECK(strcmp(kvf_version(), KVF_EXPECTED_VERSION) == 0);
  CHECK_EQ(kvf_abi_version(), KVF_ABI_VERSION);
}

static void status_names(void) {
  for (kvf_status a = KVF_OK; a >= KVF_ERR_EXPIRED; a--) {
    CHECK(strlen(kvf_status_name(a)) > 0);
    CHECK(strcmp(kvf_status_name(a), "unknown status") != 0);
    for (kvf_status b = KVF_OK; b > a; b--)
      CHECK(strcmp(kvf_status_name(a), kvf_status_name(b)) != 0);
  }
  const kvf_status unknown[] = {1, KVF_ERR_EXPIRED - 1, INT32_MAX, INT32_MIN};
  for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
    CHECK(strcmp(kvf_status_name(unknown[i]), "unknown status") == 0);
}

static void* other_thread(void* unused) {
  (void)unused;
  CHECK(strcmp(kvf_last_error_message(), "") == 0);
  CHECK_STATUS(KVF_ERR_INTERNAL, kvf_debug_panic("the other thread's"));
  CHECK_MESSAGE("the other thread's");
  return NULL;
}

static void messages(void) {
  CHECK(strcmp(kvf_last_error_message(), "") == 0);
  const kvf_agent null = {0};
  CHECK_BAD(KVF_ERR_INVALID_HANDLE, "invalid handle: the agent handle is null",
            kvf_agent_destroy(null));
  /* A call that succeeds leaves it alone, and so do other threads. */
  CHECK_OK(kvf_log_set_level(KVF_LOG_WARN));
  CHECK_MESSAGE("the agent handle is null");
  pthread_t thread;
  CHECK_EQ(pthread_create(&thread, NULL, other_thread, NULL), 0);
  CHECK_EQ(pthread_join(thread, NULL), 0);
  CHECK_MESSAGE("the agent handle is null");
}

static void freeing_nothing(void) {
  kvf_buffer buffer = {0};
  kvf_string_list strings = {0};
  kvf_param_list params = {0};
  kvf_notification_list notifications = {0};
  kvf_query_list results = {0};
  for (int twice = 0; twice < 2; twice++) {
    kvf_buffer_free(&buffer);
    kvf_string_list_free(&strings);
    kvf_param_list_free(&params);
    kvf_notification_list_free(&notifications);
    kvf_query_list_free(&results);
  }
  kvf_buffer_free(NULL);
  kvf_string_list_free(NULL);
  kvf_param_list_free(NULL);
  kvf_notification_list_free(NULL);
  kvf_query_list_free(NULL);
}

static void defaults(void) {
  kvf_agent_options agent = kvf_agent_options_default();
  kvf_agent_options zero;
  memset(&zero, 0, sizeof zero);
  zero.struct_size = sizeof zero;
  CHECK(memcmp(&agent, &zero, sizeof zero) == 0);
}

int main(void) {
  /* No thread yet, and no descriptor but the standard three and the one that counts. */
  CHECK_EQ(entries("/proc/self/task"), 1);
  int descriptors = entries("/proc/self/fd");
  versions();
  status_names();
  messages();
  freeing_nothing();
  defaults();
  CHECK_EQ(entries("/proc/self/task"), 1);
  CHECK_EQ(entries("/proc/self/fd"), descriptors);
  return 0;
}
