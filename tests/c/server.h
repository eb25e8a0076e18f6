/* A kv_cache_server for a test: KVF_SERVER is its path. It goes with this process. */
#ifndef KVF_TESTS_SERVER_H
#define KVF_TESTS_SERVER_H

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct server {
  pid_t pid;
  char address[128];
  int input; /* it ends when this is closed */
} server;

/* Ends the test when a system call fails. */
static inline void server_must(int worked, const char* what) {
  if (worked) return;
  perror(what);
  exit(1);
}

static inline server server_start(const char* blocks, const char* caching) {
  server made;
  int in[2], out[2];
  memset(&made, 0, sizeof made);
  snprintf(made.address, sizeof made.address, "ipc:///tmp/kvf-c-%ld.sock", (long)getpid());
  server_must(pipe(in) == 0 && pipe(out) == 0, "pipe");
  made.pid = fork();
  server_must(made.pid >= 0, "fork");
  if (made.pid == 0) {
    dup2(in[0], 0);
    dup2(out[1], 1);
    close(in[0]), close(in[1]), close(out[0]), close(out[1]);
    execl(KVF_SERVER, KVF_SERVER, blocks, "--enable-caching", caching, "--socket-path",
          made.address, "--exit-with-stdin", (char*)NULL);
    perror(KVF_SERVER);
    _exit(127);
  }
  close(in[0]), close(out[1]);
  made.input = in[1];
  /* Until it says that it is ready. */
  char said[512];
  size_t len = 0;
  said[0] = 0;
  while (strstr(said, "ready\n") == NULL) {
    ssize_t n = read(out[0], said + len, sizeof said - 1 - len);
    server_must(n > 0, "the server has ended");
    len += (size_t)n;
    said[len] = 0;
  }
  close(out[0]);
  return made;
}

/* Its exit status. It has been told to end, or is told so now. */
static inline int server_end(server* s) {
  int status = -1;
  close(s->input);
  server_must(waitpid(s->pid, &status, 0) == s->pid, "waitpid");
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

#endif
