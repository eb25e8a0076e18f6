/* Assertions for the test programs. The first that fails prints what was expected, and the
 * library's last message, and ends the program. */
#ifndef KVF_TESTS_CHECK_H
#define KVF_TESTS_CHECK_H

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvferry.h"

#define FAIL(...)                                                      \
  do {                                                                 \
    fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                    \
    fprintf(stderr, __VA_ARGS__);                                      \
    fprintf(stderr, "\n  last error: %s\n", kvf_last_error_message()); \
    exit(1);                                                           \
  } while (0)

/* The condition holds. */
#define CHECK(condition)                              \
  do {                                                \
    if (!(condition)) FAIL("not so: %s", #condition); \
  } while (0)

/* Two integers are equal. */
#define CHECK_EQ(a, b)                                                                        \
  do {                                                                                        \
    long long check_a = (long long)(a), check_b = (long long)(b);                             \
    if (check_a != check_b) FAIL("%s is %lld, expected %lld (%s)", #a, check_a, check_b, #b); \
  } while (0)

/* The call returns this status. */
#define CHECK_STATUS(expected, call)                                                            \
  do {                                                                                          \
    kvf_status check_got = (call);                                                              \
    if (check_got != (expected))                                                                \
      FAIL("%s\n  returned %d (%s), expected %s", #call, check_got, kvf_status_name(check_got), \
           #expected);                                                                          \
  } while (0)

#define CHECK_OK(call) CHECK_STATUS(KVF_OK, call)

/* The message of the last error contains this text. */
#define CHECK_MESSAGE(part)                               \
  do {                                                    \
    if (strstr(kvf_last_error_message(), (part)) == NULL) \
      FAIL("no \"%s\" in the message", (part));           \
  } while (0)

/* The call fails with this status, and the message names what was wrong. */
#define CHECK_BAD(expected, part, call) \
  do {                                  \
    CHECK_STATUS(expected, call);       \
    CHECK_MESSAGE(part);                \
  } while (0)

#endif
