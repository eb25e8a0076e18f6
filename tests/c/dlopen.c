/* The library can be opened at run time, as ctypes does, and closed while an agent's threads are in
 * it. Not linked with it, so that only dlopen() keeps it. argv[1] is its path, argv[2] a transport.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <time.h>

#include "kvferry.h"

typedef kvf_status (*create_fn)(const kvf_agent_options*, kvf_agent*);

static int fail(const char* what, const char* detail) {
  fprintf(stderr, "%s: %s\n", what, detail);
  return 1;
}

int main(int argc, char** argv) {
  if (argc != 3) return fail("usage", "dlopen libkvferry.so TRANSPORT");
  for (int round = 0; round < 3; round++) {
    void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) return fail("dlopen", dlerror());
    /* The way POSIX gives from an object pointer to a function pointer. */
    create_fn create = NULL;
    *(void**)&create = dlsym(library, "kvf_agent_create");
    if (create == NULL) return fail("dlsym", dlerror());
    kvf_agent_options options = kvf_agent_options_default();
    options.name = "opened at run time";
    options.transport = argv[2];
    kvf_agent agent;
    if (create(&options, &agent) != KVF_OK) return fail("kvf_agent_create", argv[2]);
    /* Its agent is not destroyed, on purpose. */
    if (dlclose(library) != 0) return fail("dlclose", dlerror());
  }
  /* Time for the threads of the agents to stumble, were their code gone. */
  const struct timespec pause = {0, 50 * 1000 * 1000};
  nanosleep(&pause, NULL);
  return 0;
}
