/*
 * kvferry.h - move the KV caches of large language models between inference engines.
 *
 * Licensed under the Apache License, Version 2.0.
 *
 * Generated from the Rust sources by cbindgen; do not edit. `make header` writes it again.
 *
 * ---------------------------------------------------------------------------------------------
 * CONVENTIONS (they hold everywhere; the functions say only what is special)
 *
 * Names      kvf_<noun>_<verb>, types kvf_<noun>, constants KVF_...
 *
 * Results    A function that can fail returns kvf_status: KVF_OK (0) or a negative KVF_ERR_...
 *            Outputs come last and are written only on success. What went wrong, with the value at
 *            fault, is in kvf_last_error_message() of the same thread. No call aborts, exits or
 *            throws; a panic inside the library is caught and becomes KVF_ERR_INTERNAL.
 *
 * Handles    Structs with one 64-bit id, passed by value; a type for each kind of object. All zero
 *            is the null handle. A null, stale, destroyed or foreign handle is
 *            KVF_ERR_INVALID_HANDLE, never a crash, and destroying twice is harmless.
 *
 * Inputs     Borrowed for the call; the library copies what it keeps. Arrays and bytes are a
 *            pointer and a number of elements; NULL is allowed only with 0. Names are
 *            NUL-terminated UTF-8. Flags are one byte, 0 or 1. Choices are fixed-width integers and
 *            are checked. What cannot be checked is the caller's word: that a pointer that is not
 *            NULL points to as much as is said, and that registered memory stays mapped, with its
 *            permissions, until it is deregistered or its agent is destroyed.
 *
 * Options    Structs that begin with struct_size. Start from the ..._options_default() function, or
 *            zero the struct and set struct_size to its sizeof. Zero is the default of every field.
 *            Structs grow at the end; programs built against an older header go on working.
 *
 * Outputs    What the library allocates it also frees: each type has its ..._free function, which
 *            zeroes the struct and ignores one that is all zero. Do not use free() on any of it.
 *            Documentation says "may be NULL" for outputs that can be left out.
 *
 * Threads    "Any thread" means: from any thread at any time, also while other threads are in calls
 *            with the same handle. All functions are like that. No thread is started when the
 *            library is loaded; threads belong to objects and end with them. Objects do not survive
 *            fork() into the child: create them after it.
 *
 * Versions   kvf_abi_version() is the number in the SONAME. Within one ABI version functions,
 *            constants and fields are only added.
 * ---------------------------------------------------------------------------------------------
 */

#ifndef KVFERRY_H
#define KVFERRY_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A status that is not looked at is a mistake; compilers are asked to say so. */
#if defined(__cplusplus) && __cplusplus >= 201703L
#define KVF_MUST_USE [[nodiscard]]
#elif defined(__GNUC__)
#define KVF_MUST_USE __attribute__((warn_unused_result))
#else
#define KVF_MUST_USE
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ==== Status and errors ======================================================================= */

/**
 * Outcome of a call: `KVF_OK`, or one of the negative `KVF_ERR_...` values.
 *
 * The values are never reused for another meaning. A program must accept values it does not know
 * (a newer library) as errors. `kvf_status_name()` gives a name, `kvf_last_error_message()` the
 * details.
 */
typedef int32_t kvf_status;

/** Success. */
#define KVF_OK 0

/** An argument is not acceptable; the message names it and its value. Nothing was done. */
#define KVF_ERR_INVALID_ARGUMENT (-1)
/** A handle is null, stale, destroyed, or of another kind. Nothing was done. */
#define KVF_ERR_INVALID_HANDLE (-2)
/** The object is not in a state in which the call makes sense. */
#define KVF_ERR_INVALID_STATE (-3)
/** A named thing (remote agent, backend, plugin) is not known. */
#define KVF_ERR_NOT_FOUND (-4)
/** The transport or one of its backends failed; the message has what it said. */
#define KVF_ERR_BACKEND (-5)
/**
 * No transport library was found, or no backend can serve the request; the message says where
 * was looked and what to install.
 */
#define KVF_ERR_NO_BACKEND (-6)
/** The time allowed is over. The call may be repeated. */
#define KVF_ERR_TIMEOUT (-7)
/** The peer is gone. Load its metadata again before using it. */
#define KVF_ERR_PEER_LOST (-8)
/** The peer, or the bytes it sent, cannot be worked with: wrong format, version or content. */
#define KVF_ERR_PEER_INCOMPATIBLE (-9)
/** A memory range lies outside what its owner has registered. */
#define KVF_ERR_NOT_REGISTERED (-10)
/** The operating system refused; the message says what to change. */
#define KVF_ERR_PERMISSION_DENIED (-11)
/** The object is in use; repeat the call later. */
#define KVF_ERR_BUSY (-12)
/** This transport or backend does not offer the operation. */
#define KVF_ERR_NOT_SUPPORTED (-13)
/** The transfer was cancelled and has come to rest. */
#define KVF_ERR_CANCELED (-14)
/** Two things that must agree do not: counts, lengths, memory kinds. */
#define KVF_ERR_MISMATCH (-15)
/** The transfer has not been posted yet. */
#define KVF_ERR_NOT_POSTED (-16)
/** The transfer is still under way and cannot be posted again. */
#define KVF_ERR_REPOST_ACTIVE (-17)
/** Telemetry was not enabled when the agent was created, or there is none yet. */
#define KVF_ERR_NO_TELEMETRY (-18)
/** The operation is not allowed on this object. */
#define KVF_ERR_NOT_ALLOWED (-19)
/** An input or output error of the operating system. */
#define KVF_ERR_IO (-20)
/** Out of memory, descriptors, threads, or another limit. */
#define KVF_ERR_RESOURCE_EXHAUSTED (-21)
/**
 * A fault inside kvferry, among them a panic that was caught. The process is not harmed; the
 * object concerned should be destroyed. Please report it.
 */
#define KVF_ERR_INTERNAL (-22)
/**
 * A lease ended before the bytes were in: they may come from blocks that were used again, and
 * must not be taken for the request's.
 */
#define KVF_ERR_EXPIRED (-23)

/**
 * A short name such as `"peer lost"`. Never NULL; valid for ever; `"unknown status"` for a
 * number that this library does not know. Any thread.
 */
KVF_MUST_USE
const char *kvf_status_name(kvf_status status);

/**
 * What went wrong in the calling thread's last call that failed: the status name, a colon, and
 * the details. Never NULL; empty when no call has failed yet. The text stays valid until the
 * next failing call of the same thread, or its end; successful calls leave it alone. Any thread,
 * each with its own message.
 */
KVF_MUST_USE
const char *kvf_last_error_message(void);

/* ==== The library ============================================================================= */

/** The version of the binary interface that this header describes. */
#define KVF_ABI_VERSION 0

/** Version of this library, for example `"0.1.0"`. Never NULL; valid for ever. Any thread. */
KVF_MUST_USE
const char *kvf_version(void);

/**
 * Version of the binary interface of this library, the number in its SONAME (`libkvferry.so.0`).
 * Compare with `KVF_ABI_VERSION` where the library is opened at run time. Any thread.
 */
KVF_MUST_USE
uint32_t kvf_abi_version(void);

/**
 * For tests only: panics inside the library with this text, to show that a panic comes back as
 * `KVF_ERR_INTERNAL` with its text in `kvf_last_error_message()`, and the process lives. Any
 * thread.
 */
KVF_MUST_USE
kvf_status kvf_debug_panic(const char *message);

/* ==== Logging ================================================================================= */

/** Nothing is logged. */
#define KVF_LOG_OFF 0
/** Failures that nobody else reports. */
#define KVF_LOG_ERROR 1
/** What an operator should look at. */
#define KVF_LOG_WARN 2
/** What happens once per object: which library was loaded, who connected. */
#define KVF_LOG_INFO 3
/** What happens once per request, and the text of every error that is returned. */
#define KVF_LOG_DEBUG 4
/** Everything. */
#define KVF_LOG_TRACE 5

/**
 * Receives one log record. `level` is one of `KVF_LOG_ERROR` to `KVF_LOG_TRACE`; `target` says
 * which part of the library speaks. Both texts are valid during the call only. It is called from
 * any thread, also several at once. It must return (no exception, no longjmp) and must not call
 * back into the library.
 */
typedef void (*kvf_log_fn)(void *env,
                           int32_t level,
                           const char *target,
                           const char *message);

/** Frees what a callback was given. */
typedef void (*kvf_free_fn)(void *env);

/**
 * Sets how much is logged. Until it is called the environment variable `KVF_LOG` decides (`off`,
 * `error`, `warn`, `info`, `debug`, `trace`; `warn` if unset). Any thread.
 */
kvf_status kvf_log_set_level(int32_t level);

/**
 * Sends the log to a function instead of standard error; NULL goes back to standard error. Any
 * thread.
 *
 * @param callback   Called for each record; see `kvf_log_fn`.
 * @param env        Handed to every call of `callback`.
 * @param finalizer  If not NULL, called with `env` once: when the callback has been replaced and
 *                   the last call of it has returned. Not called if this function fails.
 * @return `KVF_ERR_NOT_ALLOWED` in a Rust program that has a logger of its own.
 */
kvf_status kvf_log_set_callback(kvf_log_fn callback,
                                void *env,
                                kvf_free_fn finalizer);

/* ==== What the library gives away, and how it is freed ======================================== */

/**
 * Bytes that the library has allocated. Free with `kvf_buffer_free()`.
 *
 * `data` is NULL when `len` is 0. Where the content is text it is UTF-8, `len` does not count
 * the terminating NUL, and there is one.
 */
typedef struct kvf_buffer {
  /** The bytes, or NULL. */
  uint8_t *data;
  /** Their number. */
  size_t len;
} kvf_buffer;

/** Strings that the library has allocated. Free with `kvf_string_list_free()`. */
typedef struct kvf_string_list {
  /** `len` NUL-terminated UTF-8 strings, or NULL. */
  char **items;
  /** Their number. */
  size_t len;
} kvf_string_list;

/** A name and a value, both NUL-terminated UTF-8. */
typedef struct kvf_param {
  /** The name. */
  const char *key;
  /** The value. */
  const char *value;
} kvf_param;

/** Names and values that the library has allocated. Free with `kvf_param_list_free()`. */
typedef struct kvf_param_list {
  /** `len` pairs, or NULL. */
  kvf_param *items;
  /** Their number. */
  size_t len;
} kvf_param_list;

/** A message from a remote agent. */
typedef struct kvf_notification {
  /**
   * Name of the agent that sent it, as that agent gives it; NUL-terminated UTF-8. Whoever
   * holds this agent's metadata can send under any name.
   */
  const char *from;
  /** Its bytes; any bytes, not terminated. NULL when `payload_len` is 0. */
  const uint8_t *payload;
  /** Number of bytes. */
  size_t payload_len;
} kvf_notification;

/** Messages, oldest first per sender. Free with `kvf_notification_list_free()`. */
typedef struct kvf_notification_list {
  /** `len` messages, or NULL. */
  kvf_notification *items;
  /** Their number. */
  size_t len;
} kvf_notification_list;

/** What a backend knows about one range. */
typedef struct kvf_query_result {
  /** 1 if the backend knows the range, 0 if not. */
  uint8_t found;
  /** What it knows; empty if `found` is 0. */
  kvf_param_list params;
} kvf_query_result;

/** One result for each range asked about, in their order. Free with `kvf_query_list_free()`. */
typedef struct kvf_query_list {
  /** `len` results, or NULL. */
  kvf_query_result *items;
  /** Their number. */
  size_t len;
} kvf_query_list;

/**
 * Frees the bytes and zeroes the struct. NULL, and a struct that is all zero, are ignored, so
 * freeing twice is harmless. Any thread, but one at a time for the same struct.
 */
void kvf_buffer_free(kvf_buffer *buffer);

/** Frees the strings and zeroes the struct; otherwise, also for threads, as `kvf_buffer_free()`. */
void kvf_string_list_free(kvf_string_list *list);

/** Frees the pairs and zeroes the struct; otherwise, also for threads, as `kvf_buffer_free()`. */
void kvf_param_list_free(kvf_param_list *list);

/**
 * Frees the messages and zeroes the struct; otherwise, also for threads, as `kvf_buffer_free()`.
 */
void kvf_notification_list_free(kvf_notification_list *list);

/** Frees the results and zeroes the struct; otherwise, also for threads, as `kvf_buffer_free()`. */
void kvf_query_list_free(kvf_query_list *list);

/* ==== Memory and descriptors ================================================================== */

/** Host memory. `addr` is a virtual address; `device` is 0. */
#define KVF_MEM_DRAM 0
/** GPU memory. `addr` is a device address; `device` the CUDA ordinal. */
#define KVF_MEM_VRAM 1
/** A block device. `addr` is an offset; `device` an identifier that the backend defines. */
#define KVF_MEM_BLOCK 2
/** An object store. `addr` is an offset; the metadata of the registration is the key. */
#define KVF_MEM_OBJECT 3
/** A file. `addr` is an offset; `device` the file descriptor. */
#define KVF_MEM_FILE 4

/** A range of memory: a row of an Nx3 array of 64-bit integers. */
typedef struct kvf_mem_desc {
  /** Address, or offset for memory that is not addressed; see `KVF_MEM_...`. */
  uint64_t addr;
  /** Length in bytes. */
  uint64_t len;
  /** Device; see `KVF_MEM_...`. */
  uint64_t device;
} kvf_mem_desc;

/** `count` ranges of `len` bytes, `stride` bytes from start to start: a row of an Nx5 array. */
typedef struct kvf_strided_desc {
  /** Address of the first range. */
  uint64_t addr;
  /** Length of each range in bytes. */
  uint64_t len;
  /** Device; see `KVF_MEM_...`. */
  uint64_t device;
  /** Distance from the start of one range to the start of the next, in bytes. */
  uint64_t stride;
  /** Number of ranges, at least 1. */
  uint64_t count;
} kvf_strided_desc;

/** A range to register. */
typedef struct kvf_reg_desc {
  /** Address, or offset; see `KVF_MEM_...`. */
  uint64_t addr;
  /** Length in bytes. */
  uint64_t len;
  /** Device; see `KVF_MEM_...`. */
  uint64_t device;
  /** What the backend wants to know (a path, an object key); usually NULL. */
  const uint8_t *meta;
  /** Its length in bytes. */
  size_t meta_len;
} kvf_reg_desc;

/* ==== Agents ================================================================================== */

/** A thread that sleeps until a peer wants something: the default. */
#define KVF_PROGRESS_THREAD 0
/** No thread: peers are answered only during calls, above all `kvf_agent_notifications()`. */
#define KVF_PROGRESS_CALLER 1
/** `nixl`: a thread that never sleeps. Lowest latency; costs one core. */
#define KVF_PROGRESS_SPIN 2

/** The transport's choice, which is `KVF_SYNC_RW`. */
#define KVF_SYNC_DEFAULT 0
/** NIXL does not lock; kvferry holds a lock of its own around each call instead. */
#define KVF_SYNC_NONE 1
/** NIXL lets one call in at a time. */
#define KVF_SYNC_STRICT 2
/** NIXL lets posting and polling run side by side, and changes one at a time. */
#define KVF_SYNC_RW 3

/** A backend to create, with its parameters. */
typedef struct kvf_backend {
  /** Name of the plugin, for example `"UCX"`. */
  const char *name;
  /** Parameters that differ from the plugin's defaults. */
  const kvf_param *params;
  /** Their number. */
  size_t params_len;
} kvf_backend;

/**
 * What an agent is created with. Start from `kvf_agent_options_default()`, or zero the struct
 * and set `struct_size`; zero is the default of every field. Set at least `name` and
 * `transport`.
 */
typedef struct kvf_agent_options {
  /** `sizeof(kvf_agent_options)`. */
  uint32_t struct_size;
  /** One of `KVF_PROGRESS_...`: who answers peers while the program is busy elsewhere. */
  uint32_t progress;
  /** Name by which peers know this agent, unique among them; 1 to 1024 bytes. */
  const char *name;
  /** `"nixl"` or `"local"`. There is no default, and nothing falls back in silence. */
  const char *transport;
  /**
   * `nixl`: path of `libnixl_capi.so`. NULL searches: the environment variable
   * `KVF_NIXL_LIBRARY`, a NIXL that is already in the process, the Python wheels nixl-cu12 and
   * nixl-cu13 next to the running interpreter, the system's loader path. One process has one
   * NIXL: the first agent decides.
   */
  const char *nixl_library;
  /**
   * `nixl`: folder of the backend plugins; NULL is the one beside the library. It is passed on
   * in the process's environment: create the first such agent before other threads read that.
   */
  const char *nixl_plugin_dir;
  /**
   * Backends to create at once. With `backends_len` 0 that is the transport's default (`UCX`
   * for `nixl`), unless `no_default_backend` is 1.
   */
  const kvf_backend *backends;
  /** Their number. */
  size_t backends_len;
  /**
   * How long the progress thread sleeps at most, in microseconds; 0 is the transport's choice
   * (2 ms for `nixl`; `local` needs none).
   */
  uint64_t progress_delay_us;
  /** One of `KVF_SYNC_...`. In every mode the agent may be used from many threads at once. */
  uint32_t sync_mode;
  /** `nixl`: worker threads of backends that can have several; 0 is the backend's default. */
  uint32_t worker_threads;
  /** `local`: threads that copy, the caller's included; 0 is 1. */
  uint32_t copy_threads;
  /** How long `kvf_agent_destroy()` waits for transfers under way, in milliseconds; 0 is 5,000. */
  uint32_t drain_timeout_ms;
  /** `nixl`: port of NIXL's own metadata listener, if `listen` is 1. */
  uint16_t listen_port;
  /** `nixl`: 1 starts NIXL's own metadata listener. */
  uint8_t listen;
  /** 1 records telemetry of each transfer. */
  uint8_t telemetry;
  /** 1 creates no backend by default. */
  uint8_t no_default_backend;
  /** Zero. */
  uint8_t reserved[3];
} kvf_agent_options;

/** One rank's endpoint. All zero is the null handle. */
typedef struct kvf_agent {
  /** Opaque. Zero is null. */
  uint64_t id;
} kvf_agent;

/**
 * Creates an agent. With `nixl` the first call in a process loads NIXL, which takes some 0.5 s.
 * Any thread.
 *
 * @param options  Borrowed; not NULL.
 * @param agent    Receives the handle. End it with `kvf_agent_destroy()`.
 * @return `KVF_ERR_NO_BACKEND` if the transport library is not found: the message says where was
 *         looked and how to install it. `KVF_ERR_INVALID_ARGUMENT` for options that make no
 *         sense.
 */
KVF_MUST_USE
kvf_status kvf_agent_create(const kvf_agent_options *options,
                            kvf_agent *agent);

/**
 * Ends an agent. Its lists and transfers end with it; all their handles are stale afterwards.
 *
 * Transfers under way are stopped, or waited for where they cannot be stopped, for at most
 * `drain_timeout_ms`. After `KVF_OK` none of them touches memory any more. After
 * `KVF_ERR_TIMEOUT` some still may: keep their buffers. The handle is stale either way.
 *
 * Any thread. Calls that other threads are in at that time come to their own end; those that can
 * no longer do their work fail with `KVF_ERR_INVALID_STATE`.
 *
 * @return `KVF_ERR_INVALID_HANDLE` if it was destroyed before, which is harmless.
 */
kvf_status kvf_agent_destroy(kvf_agent agent);

/**
 * The agent's name. Any thread.
 *
 * @param name  Receives text; free with `kvf_buffer_free()`.
 */
KVF_MUST_USE
kvf_status kvf_agent_name(kvf_agent agent,
                          kvf_buffer *name);

/**
 * Names of the plugins that could become backends. Any thread.
 *
 * @param plugins  Free with `kvf_string_list_free()`.
 */
KVF_MUST_USE
kvf_status kvf_agent_plugins(kvf_agent agent,
                             kvf_string_list *plugins);

/**
 * What a plugin offers before it becomes a backend. Any thread.
 *
 * @param params     Parameters with their defaults; free with `kvf_param_list_free()`. May be
 *                   NULL.
 * @param mem_kinds  Bit `1 << KVF_MEM_...` for each kind that it serves. May be NULL.
 * @return `KVF_ERR_NOT_FOUND` for an unknown plugin.
 */
KVF_MUST_USE
kvf_status kvf_agent_plugin_info(kvf_agent agent,
                                 const char *plugin,
                                 kvf_param_list *params,
                                 uint32_t *mem_kinds);

/**
 * Makes a backend of a plugin. Any thread.
 *
 * @return `KVF_ERR_NOT_FOUND` for an unknown plugin, `KVF_ERR_NOT_ALLOWED` if there is one
 *         already.
 */
KVF_MUST_USE
kvf_status kvf_agent_create_backend(kvf_agent agent,
                                    const kvf_backend *backend);

/**
 * Names of the backends that exist, in the order of their creation. Any thread.
 *
 * @param backends  Free with `kvf_string_list_free()`.
 */
KVF_MUST_USE
kvf_status kvf_agent_backends(kvf_agent agent,
                              kvf_string_list *backends);

/**
 * What a backend offers, now that it exists. Outputs as for `kvf_agent_plugin_info()`. Any
 * thread.
 *
 * @return `KVF_ERR_NOT_FOUND` for an unknown backend.
 */
KVF_MUST_USE
kvf_status kvf_agent_backend_info(kvf_agent agent,
                                  const char *backend,
                                  kvf_param_list *params,
                                  uint32_t *mem_kinds);

/**
 * Registers memory: makes ranges available for transfers by this agent and, through its
 * metadata, to its peers. All or none. The memory stays the caller's and must stay mapped until
 * it is deregistered or the agent is destroyed. Any thread.
 *
 * @param mem_kind  One of `KVF_MEM_...`, for all ranges.
 * @param descs     The ranges; at least one.
 * @param backends  Names of the backends to register with; 0 of them is all that serve the kind.
 * @return `KVF_ERR_INVALID_ARGUMENT` for a range that is empty, wraps around, or (host memory)
 *         is not mapped; `KVF_ERR_NO_BACKEND` if no backend serves the kind.
 */
KVF_MUST_USE
kvf_status kvf_agent_register(kvf_agent agent,
                              uint32_t mem_kind,
                              const kvf_reg_desc *descs,
                              size_t descs_len,
                              const char *const *backends,
                              size_t backends_len);

/**
 * Takes registered ranges back; arguments as they were for `kvf_agent_register()`. Peers that
 * hold older metadata are not told: see to it that they are done. Any thread.
 *
 * @return `KVF_ERR_NOT_FOUND` or `KVF_ERR_NOT_REGISTERED` for a range that is not registered;
 *         `KVF_ERR_BUSY` if transfers of this agent in these ranges have not come to rest within
 *         the drain timeout: they are still registered then, call again.
 */
KVF_MUST_USE
kvf_status kvf_agent_deregister(kvf_agent agent,
                                uint32_t mem_kind,
                                const kvf_reg_desc *descs,
                                size_t descs_len,
                                const char *const *backends,
                                size_t backends_len);

/**
 * Asks a backend what it knows about ranges that need not be registered (the size of a file,
 * say). Any thread.
 *
 * @param results  One for each range; free with `kvf_query_list_free()`.
 */
KVF_MUST_USE
kvf_status kvf_agent_query_memory(kvf_agent agent,
                                  uint32_t mem_kind,
                                  const kvf_reg_desc *descs,
                                  size_t descs_len,
                                  const char *backend,
                                  kvf_query_list *results);

/**
 * This agent's metadata: all that a peer needs to reach it and the memory registered so far.
 * Send it to peers by any way (`kvf_side_channel_...` is one); they pass it to
 * `kvf_agent_add_remote()`. Any thread.
 *
 * @param metadata  Bytes, not text; free with `kvf_buffer_free()`.
 */
KVF_MUST_USE
kvf_status kvf_agent_metadata(kvf_agent agent,
                              kvf_buffer *metadata);

/**
 * Metadata of some registered ranges only. With `connection_info` 1 it says how to connect, too;
 * then there may be 0 ranges. Peers add it to what they know. Any thread.
 *
 * @param metadata  Bytes, not text; free with `kvf_buffer_free()`.
 */
KVF_MUST_USE
kvf_status kvf_agent_partial_metadata(kvf_agent agent,
                                      uint32_t mem_kind,
                                      const kvf_reg_desc *descs,
                                      size_t descs_len,
                                      uint8_t connection_info,
                                      const char *const *backends,
                                      size_t backends_len,
                                      kvf_buffer *metadata);

/**
 * Loads a peer's metadata. From here on transfers and notifications can go to that peer. Any
 * thread.
 *
 * @param metadata  As the peer got it from `kvf_agent_metadata()`; borrowed.
 * @param name      Receives the peer's name; free with `kvf_buffer_free()`. May be NULL.
 * @return `KVF_ERR_PEER_INCOMPATIBLE` for bytes that are not such metadata, truncated ones, or a
 *         peer that this transport cannot reach. `KVF_ERR_INVALID_STATE` (`nixl`) if a peer of
 *         this name is known and this is another: call `kvf_agent_remove_remote()` first.
 */
KVF_MUST_USE
kvf_status kvf_agent_add_remote(kvf_agent agent,
                                const uint8_t *metadata,
                                size_t metadata_len,
                                kvf_buffer *name);

/**
 * Forgets a peer and disconnects from it. Transfers with it fail. Any thread.
 *
 * @return `KVF_ERR_NOT_FOUND` for an unknown peer; `KVF_ERR_BUSY` if its transfers have not come
 *         to rest within the drain timeout: it is still known then, call again.
 */
KVF_MUST_USE
kvf_status kvf_agent_remove_remote(kvf_agent agent,
                                   const char *remote);

/**
 * Whether metadata of a peer is loaded and covers the ranges (with 0 ranges: is loaded). Any
 * thread.
 *
 * @param ready  Receives 1 or 0.
 */
KVF_MUST_USE
kvf_status kvf_agent_check_remote(kvf_agent agent,
                                  const char *remote,
                                  uint32_t mem_kind,
                                  const kvf_mem_desc *descs,
                                  size_t descs_len,
                                  uint8_t *ready);

/**
 * Connects to a peer now, so that the first transfer does not have to. Any thread.
 *
 * @param backends  Backends to connect; 0 of them is all that reach the peer.
 */
KVF_MUST_USE
kvf_status kvf_agent_connect(kvf_agent agent,
                             const char *remote,
                             const char *const *backends,
                             size_t backends_len);

/**
 * Sends this agent's metadata to the listener of a peer (`nixl`: one created with `listen`), or,
 * with `host` NULL, to the central store that NIXL is configured for. Any thread.
 *
 * @return `KVF_ERR_NOT_SUPPORTED` by `local`: use a side channel.
 */
KVF_MUST_USE
kvf_status kvf_agent_send_metadata(kvf_agent agent,
                                   const char *host,
                                   uint16_t port);

/**
 * Sends part of this agent's metadata: as `kvf_agent_partial_metadata()` makes it, to where
 * `kvf_agent_send_metadata()` sends it. Any thread.
 *
 * @param label  Name of the part in a central store, or NULL.
 */
KVF_MUST_USE
kvf_status kvf_agent_send_partial_metadata(kvf_agent agent,
                                           uint32_t mem_kind,
                                           const kvf_reg_desc *descs,
                                           size_t descs_len,
                                           uint8_t connection_info,
                                           const char *const *backends,
                                           size_t backends_len,
                                           const char *host,
                                           uint16_t port,
                                           const char *label);

/**
 * Asks for a peer's metadata, from its listener or, with `host` NULL, from the central store. It
 * is loaded when it arrives: ask `kvf_agent_check_remote()`. Any thread.
 *
 * @param label  Name of the part in a central store, or NULL.
 */
KVF_MUST_USE
kvf_status kvf_agent_fetch_metadata(kvf_agent agent,
                                    const char *remote,
                                    const char *host,
                                    uint16_t port,
                                    const char *label);

/**
 * Tells a peer's listener or, with `host` NULL, the central store that this agent's metadata is
 * void. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_agent_invalidate_metadata(kvf_agent agent,
                                         const char *host,
                                         uint16_t port);

/**
 * Sends a message to a peer, not bound to a transfer. Any thread; messages of one thread to one
 * peer arrive in order.
 *
 * @param payload  Any bytes, at most 16 MiB; borrowed.
 * @param backend  Backend that carries it; NULL is any that can.
 * @return `KVF_ERR_NOT_FOUND` for an unknown peer, `KVF_ERR_PEER_LOST` for one that is gone.
 */
KVF_MUST_USE
kvf_status kvf_agent_notify(kvf_agent agent,
                            const char *remote,
                            const uint8_t *payload,
                            size_t payload_len,
                            const char *backend);

/**
 * Takes all messages that have arrived. Never blocks. With `KVF_PROGRESS_CALLER` this is also
 * what answers peers: call it often. Any thread.
 *
 * @param backends       Backends to look at; 0 of them is all.
 * @param notifications  Free with `kvf_notification_list_free()` (not needed when `len` is 0).
 */
KVF_MUST_USE
kvf_status kvf_agent_notifications(kvf_agent agent,
                                   const char *const *backends,
                                   size_t backends_len,
                                   kvf_notification_list *notifications);

/**
 * How many messages wait to be taken. Never blocks, and answers peers as
 * `kvf_agent_notifications()` does: the cheaper call for a loop that mostly finds none. Any
 * thread.
 *
 * @param count  Receives their number.
 */
KVF_MUST_USE
kvf_status kvf_agent_notification_count(kvf_agent agent,
                                        size_t *count);

/**
 * Takes one message, the first from `from` (NULL: from anybody) that begins with `prefix`; waits
 * for it if need be. All others stay for later calls. Any thread.
 *
 * @param timeout_ms     How long to wait; 0 only looks.
 * @param notifications  Receives a list of one; free with `kvf_notification_list_free()`.
 * @return `KVF_ERR_TIMEOUT` if there is none in time.
 */
KVF_MUST_USE
kvf_status kvf_agent_wait_notification(kvf_agent agent,
                                       const char *from,
                                       const uint8_t *prefix,
                                       size_t prefix_len,
                                       uint64_t timeout_ms,
                                       kvf_notification_list *notifications);

/* ==== Direct transfers ======================================================================== */

/** Remote to local. */
#define KVF_OP_READ 0
/** Local to remote. */
#define KVF_OP_WRITE 1

/** All bytes are where they belong. */
#define KVF_TRANSFER_DONE 0
/** Posted and under way. */
#define KVF_TRANSFER_IN_PROGRESS 1

/** Ranges prepared for picking by index. All zero is the null handle. */
typedef struct kvf_desc_list {
  /** Opaque. Zero is null. */
  uint64_t id;
} kvf_desc_list;

/**
 * Choices for making a transfer. Start from `kvf_transfer_options_default()`; zero is the
 * default of every field.
 */
typedef struct kvf_transfer_options {
  /** `sizeof(kvf_transfer_options)`. */
  uint32_t struct_size;
  /** `nixl`: 1 leaves adjacent ranges as they are instead of merging them. */
  uint8_t skip_merge;
  /** 1 sends a notification even if `notification_len` is 0. */
  uint8_t has_notification;
  /** Zero. */
  uint8_t reserved[2];
  /** Sent to the remote agent when all bytes have arrived. Any bytes, at most 16 MiB. */
  const uint8_t *notification;
  /** Its length; 0 sends none, unless `has_notification` is 1. */
  size_t notification_len;
  /** Names of the backends that may carry the transfer; 0 of them is any. */
  const char *const *backends;
  /** Their number. */
  size_t backends_len;
} kvf_transfer_options;

/** A transfer. All zero is the null handle. */
typedef struct kvf_transfer {
  /** Opaque. Zero is null. */
  uint64_t id;
} kvf_transfer;

/** Figures of one transfer; see `kvf_transfer_telemetry_get()`. */
typedef struct kvf_transfer_telemetry {
  /** When it was posted, in microseconds of the monotonic clock. */
  uint64_t start_time_us;
  /** Time spent inside post, in microseconds. */
  uint64_t post_duration_us;
  /** From post to completion, in microseconds. */
  uint64_t transfer_duration_us;
  /** Bytes moved. */
  uint64_t total_bytes;
  /** Descriptors, after merging. */
  uint64_t descriptors;
} kvf_transfer_telemetry;

/** An estimate of how long a transfer takes; see `kvf_transfer_cost_estimate()`. */
typedef struct kvf_transfer_cost {
  /** Expected duration in microseconds. */
  int64_t duration_us;
  /** How far off that may be, in microseconds. */
  int64_t error_margin_us;
  /** How it was arrived at; 0 is the backend's analytical model. */
  uint32_t method;
  /** Zero. */
  uint32_t reserved;
} kvf_transfer_cost;

/**
 * Prepares ranges so that transfers can pick from them by index. Do it once for memory that many
 * transfers use: all checks and look-ups happen here. Any thread.
 *
 * @param remote    Whose memory: NULL for this agent's own as the local side of transfers; the
 *                  name of a remote agent; or this agent's own name for the remote side of
 *                  transfers within the agent (loopback).
 * @param descs     The ranges, inside registered memory; at least one. Borrowed.
 * @param backends  Backends to prepare for; 0 of them is all that can.
 * @param list      Receives the handle; end it with `kvf_desc_list_release()`.
 * @return `KVF_ERR_NOT_FOUND` for an unknown agent; `KVF_ERR_NOT_FOUND` (`nixl`) or
 *         `KVF_ERR_NOT_REGISTERED` (`local`) for a range outside registered memory.
 */
KVF_MUST_USE
kvf_status kvf_desc_list_prepare(kvf_agent agent,
                                 const char *remote,
                                 uint32_t mem_kind,
                                 const kvf_mem_desc *descs,
                                 size_t descs_len,
                                 const char *const *backends,
                                 size_t backends_len,
                                 kvf_desc_list *list);

/**
 * As `kvf_desc_list_prepare()`, from rows of equal ranges. They are numbered row by row. Any
 * thread.
 */
KVF_MUST_USE
kvf_status kvf_desc_list_prepare_strided(kvf_agent agent,
                                         const char *remote,
                                         uint32_t mem_kind,
                                         const kvf_strided_desc *descs,
                                         size_t descs_len,
                                         const char *const *backends,
                                         size_t backends_len,
                                         kvf_desc_list *list);

/** Number of ranges in a list. Any thread. */
KVF_MUST_USE
kvf_status kvf_desc_list_len(kvf_desc_list list,
                             size_t *len);

/** Ends a list. Transfers made from it go on. Any thread. */
kvf_status kvf_desc_list_release(kvf_desc_list list);

/**
 * Makes a transfer between ranges picked from two lists: `local[local_indices[i]]` and
 * `remote[remote_indices[i]]` for every i. Nothing moves before it is posted. Any thread.
 *
 * @param op       `KVF_OP_READ` (remote to local) or `KVF_OP_WRITE` (local to remote).
 * @param local    A list prepared with `remote` NULL.
 * @param remote   A list prepared for the other agent.
 * @param options  May be NULL.
 * @param transfer Receives the handle; end it with `kvf_transfer_release()`.
 * @return `KVF_ERR_INVALID_ARGUMENT` for an index outside its list or no index at all,
 *         `KVF_ERR_MISMATCH` for unequal counts or lengths.
 */
KVF_MUST_USE
kvf_status kvf_transfer_make(kvf_agent agent,
                             uint32_t op,
                             kvf_desc_list local,
                             const int32_t *local_indices,
                             size_t local_indices_len,
                             kvf_desc_list remote,
                             const int32_t *remote_indices,
                             size_t remote_indices_len,
                             const kvf_transfer_options *options,
                             kvf_transfer *transfer);

/**
 * Makes a transfer between two arrays of ranges, the i-th of one with the i-th of the other, in
 * one go. For memory that many transfers use, prepared lists are faster. Otherwise as
 * `kvf_transfer_make()`. Any thread.
 *
 * @param remote_agent  Name of the remote agent, or this agent's own for a loopback.
 */
KVF_MUST_USE
kvf_status kvf_transfer_create(kvf_agent agent,
                               uint32_t op,
                               uint32_t local_kind,
                               const kvf_mem_desc *local,
                               size_t local_len,
                               uint32_t remote_kind,
                               const kvf_mem_desc *remote,
                               size_t remote_len,
                               const char *remote_agent,
                               const kvf_transfer_options *options,
                               kvf_transfer *transfer);

/**
 * Starts a transfer, or starts it again after it has finished.
 *
 * Small transfers may be done when it returns; on one host the whole copy can run inside the
 * call. Any thread.
 *
 * @param notification      Replaces the notification given when the transfer was made, from this
 *                          post on; NULL with length 0 leaves that one in place. Borrowed.
 * @param state             Receives `KVF_TRANSFER_DONE` or `KVF_TRANSFER_IN_PROGRESS`. May be
 *                          NULL.
 * @return `KVF_ERR_REPOST_ACTIVE` while it is under way, `KVF_ERR_PEER_LOST` if the peer is
 *         gone, `KVF_ERR_BACKEND` otherwise.
 */
KVF_MUST_USE
kvf_status kvf_transfer_post(kvf_transfer transfer,
                             const uint8_t *notification,
                             size_t notification_len,
                             int32_t *state);

/**
 * Where a transfer stands. Never blocks, not even on a post that another thread is in. Any
 * thread.
 *
 * @param state  Receives `KVF_TRANSFER_DONE` or `KVF_TRANSFER_IN_PROGRESS`.
 * @return `KVF_ERR_NOT_POSTED` before the first post. Any other error is how the transfer ended;
 *         no byte of it moves any more. `KVF_ERR_CANCELED` after a cancel.
 */
KVF_MUST_USE
kvf_status kvf_transfer_state(kvf_transfer transfer,
                              int32_t *state);

/**
 * Asks for many transfers in one call. It succeeds whatever became of them;
 * `kvf_last_error_message()` is then about the last one with a negative status. Any thread.
 *
 * @param transfers  `len` handles.
 * @param states     Receives `len` values: `KVF_TRANSFER_...`, or the negative status that
 *                   `kvf_transfer_state()` would return for that one.
 */
KVF_MUST_USE
kvf_status kvf_transfer_states(const kvf_transfer *transfers,
                               size_t len,
                               int32_t *states);

/**
 * Asks a transfer to stop. It has come to rest, and its memory may be used for something else,
 * when `kvf_transfer_state()` no longer answers `KVF_TRANSFER_IN_PROGRESS`: then it is either
 * done or `KVF_ERR_CANCELED`. Where a backend cannot stop early, that takes until the bytes are
 * through. Harmless on a transfer that is not under way. Any thread.
 */
kvf_status kvf_transfer_cancel(kvf_transfer transfer);

/**
 * Ends a transfer. One that is under way is asked to stop instead. Any thread.
 *
 * @return `KVF_ERR_BUSY` while bytes may still move: the handle stays valid, call again later.
 */
kvf_status kvf_transfer_release(kvf_transfer transfer);

/**
 * Figures of a transfer's last post. The agent must have been created with `telemetry` 1. Any
 * thread.
 *
 * @return `KVF_ERR_NO_TELEMETRY` if it was not.
 */
KVF_MUST_USE
kvf_status kvf_transfer_telemetry_get(kvf_transfer transfer,
                                      kvf_transfer_telemetry *telemetry);

/**
 * An estimate of how long a transfer will take, before it is posted. Any thread.
 *
 * @return `KVF_ERR_NOT_SUPPORTED` if the backend has no model.
 */
KVF_MUST_USE
kvf_status kvf_transfer_cost_estimate(kvf_transfer transfer,
                                      kvf_transfer_cost *cost);

/**
 * Name of the backend that carries a transfer. Any thread.
 *
 * @param backend  Receives text; free with `kvf_buffer_free()`.
 */
KVF_MUST_USE
kvf_status kvf_transfer_backend(kvf_transfer transfer,
                                kvf_buffer *backend);

/* ==== Layouts ================================================================================= */

/** Attention over all tokens. */
#define KVF_GROUP_FULL 0
/** Attention over the last `window` tokens; block lists may be cut to their end. */
#define KVF_GROUP_SLIDING_WINDOW 1
/** Attention inside chunks of `window` tokens; block lists may be cut to their end. */
#define KVF_GROUP_CHUNKED_LOCAL 2
/** Multi-head latent attention. */
#define KVF_GROUP_MLA 3
/** Recurrent state (Mamba, SSM, linear attention): a block id is a state, not a range of tokens. */
#define KVF_GROUP_STATE 4

/** Keys. */
#define KVF_ROLE_K 0
/** Values. */
#define KVF_ROLE_V 1
/** Keys and values of a head in an order that only the attention backend knows. */
#define KVF_ROLE_KV 2
/** The latent of MLA, with its rotary part. */
#define KVF_ROLE_LATENT 3
/** Recurrent state of an SSM. */
#define KVF_ROLE_SSM 4
/**
 * The first of the convolution sub-projections; the others have the numbers that follow, to 255.
 */
#define KVF_ROLE_CONV 16
/** First number that is free for the caller: indexer caches, scales, draft heads. */
#define KVF_ROLE_OTHER 256

/** `[tokens][heads][head size]`: token-major. */
#define KVF_ORDER_NHD 0
/** `[heads][tokens][head size]`: head-major. */
#define KVF_ORDER_HND 1

/** Two regions for each layer: first K's, then V's. */
#define KVF_KV_REGIONS 0
/** One page, all of K before all of V: `[2][heads][tokens]` or `[2][tokens][heads]`. */
#define KVF_KV_PLANES 1
/**
 * One page, K before V within the outer of heads and tokens: `[heads][2][tokens]` or
 * `[tokens][2][heads]`.
 */
#define KVF_KV_HALVES 2
/** One page, V right behind K in each cell: `[heads][tokens][2]` or `[tokens][heads][2]`. */
#define KVF_KV_CELLS 3
/**
 * One page of `[heads]` slabs, each with K and V of all its tokens in an order known only to the
 * attention backend. Can be split by head and never by token.
 */
#define KVF_KV_SLABS 4

/** `[channels][rows]`: each sub-projection is contiguous. */
#define KVF_CONV_CHANNELS_FIRST 0
/** `[rows][channels]`: each row holds a piece of every sub-projection. */
#define KVF_CONV_ROWS_FIRST 1

/** Text for people. It may change from version to version. */
#define KVF_DESCRIBE_TEXT 0
/** JSON for programs. Keys are added, never changed or taken away. */
#define KVF_DESCRIBE_JSON 1

/** A rank's place in its engine. */
typedef struct kvf_parallel {
  /** Tensor-parallel rank. */
  uint32_t tp_rank;
  /** Tensor-parallel size; 0 is 1. */
  uint32_t tp_size;
  /** Pipeline stage. A stage holds some of the layers. */
  uint32_t pp_rank;
  /** Number of pipeline stages; 0 is 1. */
  uint32_t pp_size;
  /** Which share of the tokens this rank keeps in its attention groups. */
  uint32_t dcp_rank;
  /**
   * Decode-context-parallel size; 0 is 1. When it is c, a block id stands for c times
   * `tokens_per_block` tokens, of which each of c ranks keeps `tokens_per_block`.
   */
  uint32_t dcp_size;
  /**
   * Consecutive tokens that go to one rank before the next rank's turn; divides
   * `tokens_per_block`. 0 is one whole block.
   */
  uint32_t dcp_interleave;
  /** Zero. */
  uint32_t reserved;
} kvf_parallel;

/** Layers that share a block table. */
typedef struct kvf_group {
  /** One of `KVF_GROUP_...`. */
  uint32_t kind;
  /**
   * Tokens of one block on this rank: what block ids name. For state groups 1, which 0 means
   * too.
   */
  uint32_t tokens_per_block;
  /**
   * Pages that one block id stands for in each region: block `b` is pages `b * kernel_blocks`
   * and following. Divides `tokens_per_block`; 0 is 1.
   */
  uint32_t kernel_blocks;
  /** Tokens of the window or chunk; 0 for other kinds, and where lists are never cut. */
  uint32_t window;
  /**
   * A number of the caller's choice for what the cells mean (element type, quantisation). Both
   * sides must state the same.
   */
  uint32_t format;
  /** Zero. */
  uint32_t reserved;
} kvf_group;

/** A row of equal pages: page `p` is the `page_len` bytes at `base + p * page_stride`. */
typedef struct kvf_region {
  /** Address of page 0; see `KVF_MEM_...`. */
  uint64_t base;
  /** Bytes from the start of one page to the start of the next; 0 is `page_len`. */
  uint64_t page_stride;
  /**
   * Bytes of a page. For `kvf_dense_layers` and its like 0 is what the layer needs; anything
   * else is checked to be just that.
   */
  uint64_t page_len;
  /** Number of pages. */
  uint64_t page_count;
  /** Device; see `KVF_MEM_...`. */
  uint64_t device;
  /** One of `KVF_MEM_...`. */
  uint32_t mem_kind;
  /** Zero. */
  uint32_t reserved;
} kvf_region;

/**
 * Attention layers with heads, of one shape. Their numbers are `layers`, or else count up from
 * `first_layer`. This rank's share of the heads follows from `kvf_parallel`; with fewer heads
 * than ranks, neighbouring ranks hold the same.
 */
typedef struct kvf_dense_layers {
  /** Index of their group. */
  uint32_t group;
  /** KV heads of the model, before tensor parallelism. */
  uint32_t kv_heads;
  /** Elements of a K head. */
  uint32_t k_head_size;
  /** Elements of a V head; 0 is `k_head_size`. */
  uint32_t v_head_size;
  /** Bytes of an element. */
  uint32_t elem_bytes;
  /** One of `KVF_ORDER_...`: which of heads and tokens lies outside. */
  uint32_t order;
  /** One of `KVF_KV_...`: where K and V of a layer are in relation to each other. */
  uint32_t kv;
  /** Number of the first layer, if `layers_len` is 0. */
  uint32_t first_layer;
  /** Numbers of the layers. */
  const uint32_t *layers;
  /** How many there are; 0 is as many as the regions are for. */
  size_t layers_len;
  /** Their memory, one region for each layer, or two with `KVF_KV_REGIONS`. */
  const kvf_region *regions;
  /** Number of regions. */
  size_t regions_len;
} kvf_dense_layers;

/**
 * Layers with one vector per token, the same on every rank: MLA, indexer caches. Their numbers
 * are `layers`, or else count up from `first_layer`.
 */
typedef struct kvf_latent_layers {
  /** Index of their group. */
  uint32_t group;
  /** Elements per token. */
  uint32_t size;
  /** Bytes of an element. */
  uint32_t elem_bytes;
  /** What it is: 0 is `KVF_ROLE_LATENT`, or a number from `KVF_ROLE_OTHER` on. */
  uint32_t role;
  /** Number of the first layer, if `layers_len` is 0. */
  uint32_t first_layer;
  /** Zero. */
  uint32_t reserved;
  /** Numbers of the layers. */
  const uint32_t *layers;
  /** How many there are; 0 is as many as there are regions. */
  size_t layers_len;
  /** Their memory, one region for each layer. */
  const kvf_region *regions;
  /** Number of regions. */
  size_t regions_len;
} kvf_latent_layers;

/**
 * One sub-projection of a convolution state: x, B or C of Mamba 2, Q, K or V of linear
 * attention.
 */
typedef struct kvf_sub_projection {
  /**
   * What tensor parallelism deals out: channels, or groups of channels when there may be fewer
   * groups than ranks.
   */
  uint32_t units;
  /** Channels of each unit; 0 is 1. */
  uint32_t channels_per_unit;
} kvf_sub_projection;

/**
 * Layers with recurrent state: a page is one state, the convolution sub-projections one after
 * the other and then the SSM state. Their numbers are `layers`, or else count up from
 * `first_layer`.
 */
typedef struct kvf_state_layers {
  /** Index of their group. */
  uint32_t group;
  /** Rows of the convolution state: the kernel's width less one. */
  uint32_t conv_rows;
  /** Bytes of an element of the convolution state. */
  uint32_t conv_elem_bytes;
  /** One of `KVF_CONV_...`. */
  uint32_t conv_order;
  /** Heads of the SSM state in the model. */
  uint32_t ssm_heads;
  /** Bytes of the SSM state of one head. */
  uint32_t ssm_head_bytes;
  /** Bytes of an element of the SSM state. */
  uint32_t ssm_elem_bytes;
  /** Number of the first layer, if `layers_len` is 0. */
  uint32_t first_layer;
  /** The convolution sub-projections, in their order in memory. */
  const kvf_sub_projection *conv;
  /** Their number; 0 is no convolution. */
  size_t conv_len;
  /** Numbers of the layers. */
  const uint32_t *layers;
  /** How many there are; 0 is as many as there are regions. */
  size_t layers_len;
  /**
   * Their memory, one region for each layer. `page_stride` is the distance between the states
   * of consecutive block ids.
   */
  const kvf_region *regions;
  /** Number of regions. */
  size_t regions_len;
} kvf_state_layers;

/**
 * One role of one layer, or some heads of it, inside the pages of one region. The cell of a head
 * and a row is the `cell_bytes` bytes at `offset + (head - head_first) * head_stride +
 * row * row_stride` of its page.
 */
typedef struct kvf_part {
  /** Index of the group whose block ids select the pages. */
  uint32_t group;
  /** Index of the region that has the pages. */
  uint32_t region;
  /** Layer number in the model: the same on every rank and engine. */
  uint32_t layer;
  /** One of `KVF_ROLE_...`, or a number from `KVF_ROLE_OTHER` on. */
  uint32_t role;
  /** Byte offset of its first cell in the page. */
  uint64_t offset;
  /** Heads of this role in the model; 1 for what every rank has whole; channels for state. */
  uint32_t heads_total;
  /** First head held here. */
  uint32_t head_first;
  /** Number of heads held here, at least 1. */
  uint32_t head_count;
  /**
   * Rows in a page: the page's tokens, or 1 if the page may not be split by token. For state:
   * any number, the same on both sides.
   */
  uint32_t rows;
  /** Bytes from one head to the next. */
  uint64_t head_stride;
  /** Bytes from one row to the next. */
  uint64_t row_stride;
  /** Bytes of one cell: one head of one row. */
  uint32_t cell_bytes;
  /** Bytes of one element; divides `cell_bytes`. */
  uint32_t elem_bytes;
} kvf_part;

/**
 * What a layout is made of. Start from `kvf_layout_options_default()`; zero is the default of
 * every field. Common models need `parallel`, `groups`, and `dense`, `latent` or `state`;
 * anything else can be said with `regions` and `parts`, alone or besides.
 */
typedef struct kvf_layout_options {
  /** `sizeof(kvf_layout_options)`. */
  uint32_t struct_size;
  /** Zero. */
  uint32_t reserved;
  /** Which rank of which engine this is. */
  kvf_parallel parallel;
  /** Block tables, in the order in which the engine lists its block ids. */
  const kvf_group *groups;
  /** Their number. */
  size_t groups_len;
  /** Attention layers with heads. */
  const kvf_dense_layers *dense;
  /** Number of sets of them. */
  size_t dense_len;
  /** Layers with one vector per token. */
  const kvf_latent_layers *latent;
  /** Number of sets of them. */
  size_t latent_len;
  /** Layers with recurrent state. */
  const kvf_state_layers *state;
  /** Number of sets of them. */
  size_t state_len;
  /**
   * Regions for `parts`: the first ones of the layout. Those of the layers follow in the order
   * of `dense`, `latent` and `state`.
   */
  const kvf_region *regions;
  /** Their number. */
  size_t regions_len;
  /** Parts in the caller's own arrangement. */
  const kvf_part *parts;
  /** Their number. */
  size_t parts_len;
} kvf_layout_options;

/** Geometry of one rank's KV cache. All zero is the null handle. */
typedef struct kvf_layout {
  /** Opaque. Zero is null. */
  uint64_t id;
} kvf_layout;

/** The tables of a layout. Free with `kvf_layout_tables_free()`. */
typedef struct kvf_layout_tables {
  /** Which rank of which engine it is. */
  kvf_parallel parallel;
  /** Memory: rows of pages. */
  kvf_region *regions;
  /** Their number. */
  size_t regions_len;
  /** Block tables. */
  kvf_group *groups;
  /** Their number. */
  size_t groups_len;
  /** What the pages hold. */
  kvf_part *parts;
  /** Their number. */
  size_t parts_len;
} kvf_layout_tables;

/**
 * Describes one rank's KV cache. The layout keeps no pointer to the memory's content: only its
 * geometry. Any thread.
 *
 * @param options  Borrowed; not NULL.
 * @param layout   Receives the handle; end it with `kvf_layout_destroy()`.
 * @return `KVF_ERR_INVALID_ARGUMENT`, naming the field and its value, for a layout that cannot
 *         be: cells outside their page or on top of each other, sizes that do not divide,
 *         addresses that wrap around.
 */
KVF_MUST_USE
kvf_status kvf_layout_create(const kvf_layout_options *options,
                             kvf_layout *layout);

/**
 * Ends a layout. Plans made of it go on. Any thread.
 *
 * @return `KVF_ERR_INVALID_HANDLE` if it was destroyed before, which is harmless.
 */
kvf_status kvf_layout_destroy(kvf_layout layout);

/**
 * The layout as bytes, in the form in which ranks exchange theirs: versioned, compact (some KB),
 * and the same bytes for the same layout. Any thread.
 *
 * @param bytes  Free with `kvf_buffer_free()`.
 */
KVF_MUST_USE
kvf_status kvf_layout_encode(kvf_layout layout,
                             kvf_buffer *bytes);

/**
 * A layout from the bytes that `kvf_layout_encode()` gave, in this or another process. They need
 * not be trusted: what is returned has passed every check of `kvf_layout_create()`. Any thread.
 *
 * @param layout  Receives the handle; end it with `kvf_layout_destroy()`.
 * @return `KVF_ERR_PEER_INCOMPATIBLE` for bytes that are not a sound layout: the message says at
 *         which byte, or which field.
 */
KVF_MUST_USE
kvf_status kvf_layout_decode(const uint8_t *bytes,
                             size_t bytes_len,
                             kvf_layout *layout);

/**
 * The layout in words. Any thread.
 *
 * @param format  One of `KVF_DESCRIBE_...`.
 * @param text    Free with `kvf_buffer_free()`.
 */
KVF_MUST_USE
kvf_status kvf_layout_describe(kvf_layout layout,
                               uint32_t format,
                               kvf_buffer *text);

/**
 * Takes the tables out, with every default filled in: what the builders made of the layers, say,
 * or what a peer has sent. Any thread.
 *
 * @param tables  Free with `kvf_layout_tables_free()`.
 */
KVF_MUST_USE
kvf_status kvf_layout_tables_get(kvf_layout layout,
                                 kvf_layout_tables *tables);

/** Frees the tables and zeroes the struct; otherwise, also for threads, as `kvf_buffer_free()`. */
void kvf_layout_tables_free(kvf_layout_tables *tables);

/**
 * The heads that one rank holds, as `kvf_dense_layers` deals them out. Heads go to ranks in
 * order; with fewer heads than ranks each rank holds one, and neighbouring ranks hold the same.
 * Any thread.
 *
 * @param first  Receives the first head.
 * @param count  Receives their number.
 * @return `KVF_ERR_INVALID_ARGUMENT` if neither of `heads_total` and `tp_size` divides the
 *         other.
 */
KVF_MUST_USE
kvf_status kvf_layout_shard(uint32_t heads_total,
                            uint32_t tp_size,
                            uint32_t tp_rank,
                            uint32_t *first,
                            uint32_t *count);

/* ==== Plans =================================================================================== */

/** The local rank reads: it is the consumer. */
#define KVF_DIRECTION_PULL 0
/** The local rank writes: it is the producer. */
#define KVF_DIRECTION_PUSH 1

/** Nothing to do with it: another local rank deals with it. */
#define KVF_PEER_IDLE 0
/** Bytes are copied, and it is notified when they are in. */
#define KVF_PEER_TRANSFER 1
/**
 * No bytes, since what it holds is had from another rank; but it keeps a request's blocks until
 * it hears that they are no longer wanted, and this local rank is the one to tell it.
 */
#define KVF_PEER_NOTIFY_ONLY 2

/**
 * Choices for `kvf_plan_build()`. Start from `kvf_plan_options_default()`; zero is the default
 * of every field.
 */
typedef struct kvf_plan_options {
  /** `sizeof(kvf_plan_options)`. */
  uint32_t struct_size;
  /** One of `KVF_DIRECTION_...`: which way the bytes go, seen from the local rank. */
  uint32_t direction;
  /**
   * 1 leaves lanes that are adjacent in memory as they are, for comparison; the same bytes
   * move.
   */
  uint8_t keep_lanes;
  /**
   * 1 accepts block sizes of which neither divides the other (48 and 32 tokens). They are
   * refused otherwise, because such a pair is far more often a mistake.
   */
  uint8_t uneven_blocks;
  /** Zero. */
  uint8_t reserved[6];
} kvf_plan_options;

/** The copies between one local rank and a remote engine. All zero is the null handle. */
typedef struct kvf_plan {
  /** Opaque. Zero is null. */
  uint64_t id;
} kvf_plan;

/** One side's block ids of a group. */
typedef struct kvf_group_side {
  /** Tokens that a rank keeps of one block; for state groups 1. */
  uint32_t tokens_per_block;
  /** Pages of one block; 0 is 1. */
  uint32_t kernel_blocks;
  /** Over how many ranks a block's tokens are spread; 0 is 1, which is not at all. */
  uint32_t dcp_size;
  /** Tokens that go to one rank before the next rank's turn; 0 is one whole block. */
  uint32_t dcp_interleave;
  /**
   * Groups of one side with the same number draw their block ids from one pool, so that one id
   * in two of them is the same memory.
   */
  uint32_t pool;
  /** Zero. */
  uint32_t reserved;
  /** Number of valid block ids. */
  uint64_t block_count;
} kvf_group_side;

/** A group on both sides. */
typedef struct kvf_group_geometry {
  /** One of `KVF_GROUP_...`. */
  uint32_t kind;
  /** Tokens of the window or chunk; 0 for other kinds, and where lists are never cut. */
  uint32_t window;
  /**
   * Tokens that a lane of the group copies at a time: the longest run that lies in one page of
   * one rank on both sides. Follows from the rest, and is not looked at on the way in.
   */
  uint32_t atom_tokens;
  /** Zero. */
  uint32_t reserved;
  /** The local side. */
  kvf_group_side local;
  /** The remote side. */
  kvf_group_side remote;
} kvf_group_geometry;

/** A remote rank. */
typedef struct kvf_peer {
  /** Its tensor-parallel rank. */
  uint32_t tp_rank;
  /** Its pipeline stage. */
  uint32_t pp_rank;
  /** One of `KVF_PEER_...`: what the local rank has to do with it. */
  uint32_t role;
  /**
   * How many ranks of the local engine notify it about one request (pull), or how many write
   * to it (push). 0 when that cannot be told from the layouts given.
   */
  uint32_t notifiers;
} kvf_peer;

/** One side of a lane: atom `a` of page `p` begins at `base + p * stride + a * sub_stride`. */
typedef struct kvf_lane_side {
  /** Address for page 0, atom 0. */
  uint64_t base;
  /** Bytes from page to page. */
  uint64_t stride;
  /** Bytes from atom to atom within a page. */
  uint64_t sub_stride;
  /** Device; see `KVF_MEM_...`. */
  uint64_t device;
  /** One of `KVF_MEM_...`. */
  uint32_t mem_kind;
  /** Zero. */
  uint32_t reserved;
} kvf_lane_side;

/** A repetition inside a lane. */
typedef struct kvf_lane_inner {
  /** Bytes between repetitions on the local side. */
  uint64_t local_stride;
  /** Bytes between repetitions on the remote side. */
  uint64_t remote_stride;
  /** How many times; 0 is 1. */
  uint32_t count;
  /** Zero. */
  uint32_t reserved;
} kvf_lane_inner;

/** A strided copy, made for every pair of atoms of its group. */
typedef struct kvf_lane {
  /** Index of the remote rank. */
  uint32_t peer;
  /** Index of the group whose block ids apply. */
  uint32_t group;
  /**
   * Which share of the tokens the local rank keeps, if its side of the group is spread over
   * ranks; else 0.
   */
  uint32_t local_shard;
  /** The same for the remote rank. */
  uint32_t remote_shard;
  /** Bytes of one copy. */
  uint64_t len;
  /** Local addresses. */
  kvf_lane_side local;
  /** Remote addresses. */
  kvf_lane_side remote;
  /** Outer and inner repetition. */
  kvf_lane_inner inner[2];
} kvf_lane;

/**
 * A plan of the caller's own making, for engines that know their copies themselves. Start from
 * `kvf_plan_custom_default()`; zero is the default of every field.
 */
typedef struct kvf_plan_custom {
  /** `sizeof(kvf_plan_custom)`. */
  uint32_t struct_size;
  /** One of `KVF_DIRECTION_...`: which way the bytes go, seen from the local rank. */
  uint32_t direction;
  /** Groups: what block ids mean on both sides. */
  const kvf_group_geometry *groups;
  /** Their number. */
  size_t groups_len;
  /** Remote ranks. */
  const kvf_peer *peers;
  /** Their number. */
  size_t peers_len;
  /** Lanes. They are checked, not merged. */
  const kvf_lane *lanes;
  /** Their number. */
  size_t lanes_len;
  /** 1 accepts block sizes of which neither divides the other. */
  uint8_t uneven_blocks;
  /** Zero. */
  uint8_t reserved[7];
} kvf_plan_custom;

/** The tables of a plan. Free with `kvf_plan_tables_free()`. */
typedef struct kvf_plan_tables {
  /** One of `KVF_DIRECTION_...`. */
  uint32_t direction;
  /** Transfers of one request at least, if it moves anything: peers times kinds of memory. */
  uint32_t batches;
  /** Number of lanes before those that are adjacent in memory were merged. */
  uint64_t lanes_before;
  /** Groups, in the order in which block ids are given. */
  kvf_group_geometry *groups;
  /** Their number. */
  size_t groups_len;
  /** Remote ranks, in the order in which their layouts were given. */
  kvf_peer *peers;
  /** Their number. */
  size_t peers_len;
  /** Lanes, in the order to which `kvf_range` refers. */
  kvf_lane *lanes;
  /** Their number. */
  size_t lanes_len;
} kvf_plan_tables;

/**
 * The block ids of one group of a request.
 *
 * Ids are logical blocks, in the order of their tokens; those of the side that is written must
 * all differ. A list may begin later than the request: the consumer lists only what it does not
 * have yet, and windowed groups only what is still in the window. Where a list begins is stated
 * (`local_first`), or follows from the number of tokens, or else the lists end together and the
 * producer's starts at the first token. A group whose consumer lists nothing is left out. States
 * pair one to one.
 */
typedef struct kvf_group_blocks {
  /** Block ids on the local rank. */
  const uint32_t *local;
  /** Their number. */
  size_t local_len;
  /** Block ids on the remote ranks; the same on each of them. */
  const uint32_t *remote;
  /** Their number. */
  size_t remote_len;
  /**
   * How many blocks of the request come before the first of `local`, if `has_local_first` is
   * 1.
   */
  uint32_t local_first;
  /**
   * How many blocks of the request come before the first of `remote`, if `has_remote_first` is
   * 1.
   */
  uint32_t remote_first;
  /** 1 if `local_first` is stated. */
  uint8_t has_local_first;
  /** 1 if `remote_first` is stated. */
  uint8_t has_remote_first;
  /** Zero. */
  uint8_t reserved[6];
} kvf_group_blocks;

/**
 * What of a group's destination blocks a request fills. Positions count tokens of the request;
 * in state groups, blocks.
 */
typedef struct kvf_coverage {
  /** First position that is copied. */
  uint64_t first;
  /** One past the last position that is copied. */
  uint64_t end;
  /**
   * Positions at the beginning of the first destination block that are not copied: outside the
   * window.
   */
  uint64_t missing_head;
  /**
   * Positions at the end of the last destination block that are not copied: the producer has
   * not got them. Their bytes are what they were before.
   */
  uint64_t missing_tail;
} kvf_coverage;

/** Figures of one request. */
typedef struct kvf_expand_stats {
  /** Bytes to move. */
  uint64_t bytes;
  /** Ranges if neighbouring blocks were not merged. */
  uint64_t ranges_before;
  /** Ranges. */
  uint64_t ranges;
  /** Zero. */
  uint64_t reserved;
} kvf_expand_stats;

/** One copy of a request: `len` bytes between two addresses. */
typedef struct kvf_range {
  /** Index of the remote rank. */
  uint32_t peer;
  /** Index of the lane, which has the memory kinds and devices. */
  uint32_t lane;
  /** Local address. */
  uint64_t local;
  /** Remote address. */
  uint64_t remote;
  /** Bytes. */
  uint64_t len;
} kvf_range;

/** Copies of a request. Free with `kvf_range_list_free()`. */
typedef struct kvf_range_list {
  /** `len` ranges, or NULL. */
  kvf_range *items;
  /** Their number. */
  size_t len;
} kvf_range_list;

/**
 * Plans the transfers between a local rank and the ranks of a remote engine: any two layouts of
 * one model. The plan holds for every request between the two; its size depends on the model's
 * shape, not on the cache. It keeps nothing of the layouts. Any thread.
 *
 * @param local    The layout of this rank.
 * @param remotes  The layouts of the engine's ranks. Those that this rank has nothing to do with
 *                 may be left out; the error says which is needed if too many are. Their order
 *                 is that of the plan's peers.
 * @param options  May be NULL.
 * @param plan     Receives the handle; end it with `kvf_plan_destroy()`.
 * @return `KVF_ERR_MISMATCH`, naming the field and both values, where the two sides cannot mean
 *         the same content.
 */
KVF_MUST_USE
kvf_status kvf_plan_build(kvf_layout local,
                          const kvf_layout *remotes,
                          size_t remotes_len,
                          const kvf_plan_options *options,
                          kvf_plan *plan);

/**
 * A plan of the caller's own lanes. Any thread.
 *
 * @param custom  Borrowed; not NULL.
 * @param plan    Receives the handle; end it with `kvf_plan_destroy()`.
 * @return `KVF_ERR_INVALID_ARGUMENT`, naming the field and its value, for a lane whose group,
 *         peer or share is not there, or whose last byte is beyond the address space.
 */
KVF_MUST_USE
kvf_status kvf_plan_create(const kvf_plan_custom *custom,
                           kvf_plan *plan);

/**
 * Ends a plan. Requests that have been submitted with it go on. Any thread.
 *
 * @return `KVF_ERR_INVALID_HANDLE` if it was destroyed before, which is harmless.
 */
kvf_status kvf_plan_destroy(kvf_plan plan);

/**
 * The plan in words: who reads which heads of what from whom, in how many copies. Any thread.
 *
 * @param format  One of `KVF_DESCRIBE_...`.
 * @param text    Free with `kvf_buffer_free()`.
 */
KVF_MUST_USE
kvf_status kvf_plan_describe(kvf_plan plan,
                             uint32_t format,
                             kvf_buffer *text);

/**
 * Takes the tables out: groups, peers and their roles, lanes. Any thread.
 *
 * @param tables  Free with `kvf_plan_tables_free()`.
 */
KVF_MUST_USE
kvf_status kvf_plan_tables_get(kvf_plan plan,
                               kvf_plan_tables *tables);

/** Frees the tables and zeroes the struct; otherwise, also for threads, as `kvf_buffer_free()`. */
void kvf_plan_tables_free(kvf_plan_tables *tables);

/**
 * Turns the block ids of a request into exactly the ranges that are copied. A queue does this by
 * itself; it is here for engines that post transfers of their own, and for whoever wants to see.
 * Ranges of one peer and kind of memory are together; neighbours that follow each other on both
 * sides are one. Any thread.
 *
 * @param groups    One entry for each group of the plan.
 * @param tokens    Tokens of the request that the producer holds, from the first one; 0 is "not
 *                  stated".
 * @param coverage  Receives `groups_len` entries: what of the destination blocks is filled. May
 *                  be NULL.
 * @param stats     Receives the figures. May be NULL.
 * @param ranges    Free with `kvf_range_list_free()`. May be NULL, for the figures alone.
 * @return `KVF_ERR_INVALID_ARGUMENT` for ids out of range, a destination block that occurs
 *         twice, a position that cannot be inferred; `KVF_ERR_MISMATCH` for counts that do not
 *         fit, or a consumer's block that the producer's list does not cover;
 *         `KVF_ERR_RESOURCE_EXHAUSTED` for more than 16,777,216 ranges.
 */
KVF_MUST_USE
kvf_status kvf_plan_expand(kvf_plan plan,
                           const kvf_group_blocks *groups,
                           size_t groups_len,
                           uint64_t tokens,
                           kvf_coverage *coverage,
                           kvf_expand_stats *stats,
                           kvf_range_list *ranges);

/** Frees the ranges and zeroes the struct; otherwise, also for threads, as `kvf_buffer_free()`. */
void kvf_range_list_free(kvf_range_list *list);

/* ==== Queues ================================================================================== */

/** Length of the text fields of `kvf_completion`, the terminating NUL included. */
#define KVF_COMPLETION_TEXT 256

/**
 * How a queue works. Start from `kvf_queue_options_default()`; zero is the default of every
 * field.
 */
typedef struct kvf_queue_options {
  /** `sizeof(kvf_queue_options)`. */
  uint32_t struct_size;
  /**
   * Requests that may be outstanding: submitted, and their completions not yet polled. 0 is
   * 4,096.
   */
  uint32_t capacity;
  /**
   * Bytes that one post moves at most. Smaller slices let requests take turns more often,
   * larger ones cost fewer posts. 0 is 8 MiB, and up to 64 MiB for a request that is alone in
   * the queue, while the transport takes posts quickly.
   */
  uint64_t slice_bytes;
  /** Descriptors that one post has at most. 0 is 1,024, and up to 8,192 in the same case. */
  uint32_t slice_descriptors;
  /** Slices of one request that may be under way at the same time. 0 is 4. */
  uint32_t slices_in_flight;
} kvf_queue_options;

/** A background thread that runs transfers of one agent. All zero is the null handle. */
typedef struct kvf_queue {
  /** Opaque. Zero is null. */
  uint64_t id;
} kvf_queue;

/**
 * A condition on a peer's memory: the 64-bit word at `addr` is below `limit`, in that machine's
 * byte order. It is read after all bytes of a request are in. A producer that raises its word
 * before it uses blocks again lets its readers know by this that they have not read too late.
 */
typedef struct kvf_guard {
  /** Index of the peer in the plan. */
  uint32_t peer;
  /** Zero. */
  uint32_t reserved;
  /** Address in that peer's registered host memory. */
  uint64_t addr;
  /** What the word must be below. */
  uint64_t limit;
} kvf_guard;

/**
 * A request to hand over. Start from `kvf_submission_default()`. All of it is copied by the
 * call.
 */
typedef struct kvf_submission {
  /** `sizeof(kvf_submission)`. */
  uint32_t struct_size;
  /** 1 sends a notification even if `notification_len` is 0. */
  uint8_t has_notification;
  /** Zero. */
  uint8_t reserved[3];
  /** What goes where. */
  kvf_plan plan;
  /**
   * For each peer of the plan the name of its agent, as `kvf_agent_add_remote()` gave it; an
   * empty string will do for peers that are idle.
   */
  const char *const *agents;
  /** Their number: that of the plan's peers. */
  size_t agents_len;
  /** Block ids, one entry for each group of the plan. */
  const kvf_group_blocks *groups;
  /** Their number. */
  size_t groups_len;
  /** Tokens of the request that the producer holds, from the first one; 0 is "not stated". */
  uint64_t tokens;
  /** Sent to each peer that is not idle when all bytes are in. Any bytes, at most 16 MiB. */
  const uint8_t *notification;
  /** Its length; 0 sends none, unless `has_notification` is 1. */
  size_t notification_len;
  /**
   * The request fails with `KVF_ERR_TIMEOUT` if it is not through after so many milliseconds;
   * 0 is no limit.
   */
  uint64_t deadline_ms;
  /**
   * Conditions that must hold after all bytes are in; without them the request fails with
   * `KVF_ERR_EXPIRED` and nobody is notified.
   */
  const kvf_guard *guards;
  /** Their number, at most 1,024. */
  size_t guards_len;
} kvf_submission;

/**
 * What became of a request.
 *
 * With status `KVF_OK` every byte is in place; with an error any part of the destination blocks
 * may have been written. Either way nothing will be written any more: the blocks are the
 * caller's again. Times are in nanoseconds since the request was submitted; 0 is "did not get
 * there".
 */
typedef struct kvf_completion {
  /** The ticket that `kvf_queue_submit()` gave. */
  uint64_t ticket;
  /** How it ended. */
  kvf_status status;
  /** Number of peers that could not be notified although all bytes are in; `message` names one. */
  uint32_t not_notified;
  /** When it was submitted, in nanoseconds of the monotonic clock. */
  uint64_t submitted_ns;
  /** When its ranges were known. */
  uint64_t planned_ns;
  /** When its first slice was posted. */
  uint64_t posted_ns;
  /** When its last transfer had come to rest and its peers were notified. */
  uint64_t finished_ns;
  /** Bytes that arrived. */
  uint64_t bytes;
  /** Bytes that were asked for. */
  uint64_t total_bytes;
  /** Ranges before neighbouring blocks were merged. */
  uint64_t descriptors_before;
  /** Ranges after merging. */
  uint64_t descriptors;
  /** Posts. */
  uint64_t slices;
  /** Zero. */
  uint64_t reserved[4];
  /** What went wrong, NUL-terminated UTF-8, cut to fit; empty if nothing did. */
  char message[KVF_COMPLETION_TEXT];
  /** The backend of the first post, NUL-terminated UTF-8; empty if there was none. */
  char backend[32];
} kvf_completion;

/** Figures of a queue since it was created. */
typedef struct kvf_queue_stats {
  /** Requests accepted. */
  uint64_t submitted;
  /** Requests that ended well. */
  uint64_t succeeded;
  /** Requests that ended with an error, cancelled ones included. */
  uint64_t failed;
  /** Requests that were refused because the queue was full. */
  uint64_t refused;
  /** Requests that are accepted and not through. */
  uint64_t running;
  /** Completions that wait to be polled. */
  uint64_t unpolled;
  /** Bytes that arrived. */
  uint64_t bytes;
  /** Ranges before merging. */
  uint64_t descriptors_before;
  /** Ranges after merging. */
  uint64_t descriptors;
  /** Posts. */
  uint64_t slices;
  /** CPU time of the queue's thread in nanoseconds. */
  uint64_t thread_cpu_ns;
  /** Zero. */
  uint64_t reserved[5];
} kvf_queue_stats;

/**
 * Starts a queue on an agent. It has one thread, which sleeps while there is nothing to do.
 *
 * The queue keeps the agent's memory alive, but requests fail once the agent has been destroyed:
 * destroy the queue first.
 *
 * @param options  May be NULL.
 * @param queue    Receives the handle; end it with `kvf_queue_destroy()`. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_queue_create(kvf_agent agent,
                            const kvf_queue_options *options,
                            kvf_queue *queue);

/**
 * Hands a request over and returns at once; the work is done on the queue's thread. What is
 * wrong with the block ids shows in the completion, and only what can be seen at a glance is
 * refused here.
 *
 * @param ticket  Receives the request's name: never 0, never used twice by one queue.
 * @return `KVF_ERR_BUSY` if as many requests as the queue holds are outstanding: poll, then
 *         repeat. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_queue_submit(kvf_queue queue,
                            const kvf_submission *submission,
                            uint64_t *ticket);

/**
 * Takes completions, oldest first. Never blocks.
 *
 * @param completions  Room for `max` of them.
 * @param len          Receives how many were written. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_queue_poll(kvf_queue queue,
                          kvf_completion *completions,
                          size_t max,
                          size_t *len);

/**
 * Blocks until there is a completion to poll, the queue has ended, or the time is over.
 *
 * @param ready  Receives 1 if there is one, 0 if not. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_queue_wait(kvf_queue queue,
                          uint64_t timeout_ms,
                          uint8_t *ready);

/**
 * Asks a request to stop. It completes with `KVF_ERR_CANCELED` once it has come to rest, or as
 * it would have if it was through already. Harmless on one that has completed.
 *
 * @return `KVF_ERR_NOT_FOUND` for a ticket that this queue has not given out. Any thread.
 */
kvf_status kvf_queue_cancel(kvf_queue queue,
                            uint64_t ticket);

/** Figures since the queue was created. Any thread. */
KVF_MUST_USE
kvf_status kvf_queue_stats_get(kvf_queue queue,
                               kvf_queue_stats *stats);

/**
 * A file descriptor that is readable while there are completions to poll, for event loops. It
 * belongs to the queue and is closed with it: wait on it, do not read or close it. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_queue_event_fd(kvf_queue queue,
                              int *fd);

/**
 * Ends a queue. Requests that it has accepted are carried out for up to `drain_ms`; then what is
 * left is cancelled and waited for, for as long again but at least 100 ms. Completions that have
 * not been polled are lost.
 *
 * @return `KVF_ERR_TIMEOUT` if something was still moving at the end of that: its blocks must
 *         not be used before `kvf_agent_destroy()` has returned `KVF_OK`. Any thread.
 */
kvf_status kvf_queue_destroy(kvf_queue queue,
                             uint64_t drain_ms);

/* ==== Side channel ============================================================================ */

/**
 * How to listen. Start from `kvf_side_channel_options_default()`; zero is the default of every
 * field.
 */
typedef struct kvf_side_channel_options {
  /** `sizeof(kvf_side_channel_options)`. */
  uint32_t struct_size;
  /** Clients served at once; 0 is 256. */
  uint32_t max_connections;
  /**
   * `"tcp"`, which NULL means too: one message, a 4-byte big-endian length and the payload, to
   * each client that connects. `"zmq"`: the handshake of vLLM's NIXL connector, with metadata for
   * each rank and a clock.
   */
  const char *kind;
  /**
   * Address or host name to listen on; NULL is `127.0.0.1`. Anything that other hosts can
   * reach must be asked for: metadata is not authenticated.
   */
  const char *host;
  /** Longest metadata in bytes; 0 is 64 MiB. */
  uint64_t max_message_bytes;
  /** How long one client may take, in milliseconds; 0 is 5,000. */
  uint64_t timeout_ms;
  /** Port; 0 lets the system choose (`kvf_side_channel_address()` tells). */
  uint16_t port;
  /** Zero. */
  uint8_t reserved[6];
} kvf_side_channel_options;

/** A listener that gives metadata to whoever asks. All zero is the null handle. */
typedef struct kvf_side_channel {
  /** Opaque. Zero is null. */
  uint64_t id;
} kvf_side_channel;

/** The metadata of one rank of an engine. */
typedef struct kvf_rank_payload {
  /** Pipeline stage. */
  uint32_t pp_rank;
  /** Tensor-parallel rank in it. */
  uint32_t tp_rank;
  /** Any bytes. */
  const uint8_t *data;
  /** How many. */
  size_t len;
} kvf_rank_payload;

/**
 * How the monotonic clock of a listener stands to ours. CLOCK_MONOTONIC is the same for all
 * processes of a host.
 */
typedef struct kvf_clock_sample {
  /** Theirs less ours, in seconds. */
  double offset_s;
  /**
   * From the question to the answer, in seconds; negative where the protocol tells no clock. Of
   * several samples the one with the least is the best.
   */
  double rtt_s;
} kvf_clock_sample;

/**
 * Starts a listener that hands out `metadata`; `"zmq"`: as that of rank (0, 0). It has a thread of
 * its own; a slow, silent or hostile client costs the others nothing. Any thread.
 *
 * @param options   May be NULL.
 * @param metadata  Any bytes, also none; copied.
 * @param channel   Receives the handle; end it with `kvf_side_channel_shutdown()`.
 * @return `KVF_ERR_BUSY` if the port is taken.
 */
KVF_MUST_USE
kvf_status kvf_side_channel_listen(const kvf_side_channel_options *options,
                                   const uint8_t *metadata,
                                   size_t metadata_len,
                                   kvf_side_channel *channel);

/**
 * Replaces the metadata. Clients that connect from now on get the new bytes; none gets a
 * mixture. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_side_channel_set_metadata(kvf_side_channel channel,
                                         const uint8_t *metadata,
                                         size_t metadata_len);

/**
 * Replaces the metadata of one rank. Clients that ask from now on get the new bytes; none gets a
 * mixture. Any thread.
 *
 * @param metadata  `"zmq"`: none takes the rank away. `"tcp"` knows rank (0, 0) only.
 */
KVF_MUST_USE
kvf_status kvf_side_channel_set_rank_metadata(kvf_side_channel channel,
                                              uint32_t pp_rank,
                                              uint32_t tp_rank,
                                              const uint8_t *metadata,
                                              size_t metadata_len);

/**
 * Replaces the metadata of all ranks at once: those that are not listed have none from now on. Any
 * thread.
 *
 * @param ranks  Each once.
 */
KVF_MUST_USE
kvf_status kvf_side_channel_replace_ranks(kvf_side_channel channel,
                                          const kvf_rank_payload *ranks,
                                          size_t ranks_len);

/**
 * Where it listens. Any thread.
 *
 * @param host  Receives the address as text; free with `kvf_buffer_free()`. May be NULL.
 * @param port  Receives the port. May be NULL.
 */
KVF_MUST_USE
kvf_status kvf_side_channel_address(kvf_side_channel channel,
                                    kvf_buffer *host,
                                    uint16_t *port);

/**
 * Whether clients are being served. Any thread.
 *
 * @param running  Receives 1 or 0.
 */
KVF_MUST_USE
kvf_status kvf_side_channel_is_running(kvf_side_channel channel,
                                       uint8_t *running);

/** Stops the listener, cuts its clients, frees the port, and ends the handle. Any thread. */
kvf_status kvf_side_channel_shutdown(kvf_side_channel channel);

/**
 * Asks a listener for its metadata. It tries once. Any thread.
 *
 * @param kind        `"tcp"`, which NULL means too.
 * @param host        Address or host name.
 * @param timeout_ms  For everything: look-up, connection, every byte; 0 is 5,000.
 * @param max_bytes   Longest answer that is accepted; 0 is 64 MiB.
 * @param metadata    Free with `kvf_buffer_free()`.
 * @return `KVF_ERR_TIMEOUT`; `KVF_ERR_PEER_LOST` if nobody listens or the answer breaks off;
 *         `KVF_ERR_PEER_INCOMPATIBLE` if it is too long.
 */
KVF_MUST_USE
kvf_status kvf_side_channel_request(const char *kind,
                                    const char *host,
                                    uint16_t port,
                                    uint64_t timeout_ms,
                                    uint64_t max_bytes,
                                    kvf_buffer *metadata);

/**
 * Asks a listener for the metadata of one rank, and for its clock. It tries once. Any thread.
 *
 * @param kind        `"zmq"`; `"tcp"`, which NULL means too, knows rank (0, 0) only and no clock.
 * @param host        Address or host name.
 * @param timeout_ms  For everything: look-up, connection, every byte; 0 is 5,000.
 * @param max_bytes   Longest metadata that is accepted; 0 is 64 MiB.
 * @param metadata    Free with `kvf_buffer_free()`.
 * @param clock       May be NULL.
 * @return `KVF_ERR_NOT_FOUND` if the listener has nothing for this rank; else as
 *         `kvf_side_channel_request()`.
 */
KVF_MUST_USE
kvf_status kvf_side_channel_request_rank(const char *kind,
                                         const char *host,
                                         uint16_t port,
                                         uint32_t pp_rank,
                                         uint32_t tp_rank,
                                         uint64_t timeout_ms,
                                         uint64_t max_bytes,
                                         kvf_buffer *metadata,
                                         kvf_clock_sample *clock);

/* ==== Connector: the half in the scheduler ==================================================== */

/** The consumer reads from the producer. */
#define KVF_MODE_PULL 0
/** The producer writes to the consumer. */
#define KVF_MODE_PUSH 1

/** The request has as many tokens as it may have. */
#define KVF_FINISH_LENGTH 0
/** A stop token or string has ended it. */
#define KVF_FINISH_STOP 1
/** Its client is gone. */
#define KVF_FINISH_ABORT 2
/** It failed. */
#define KVF_FINISH_ERROR 3

/** The blocks can be freed now. */
#define KVF_KEEP_NO 0
/** The blocks are kept for a reader until the request is reported as sent. */
#define KVF_KEEP_UNTIL_SENT 1
/** The blocks may be written to until the request is reported as received. */
#define KVF_KEEP_UNTIL_RECEIVED 2

/**
 * The request does not read the prefix cache (it asks for prompt log-probabilities, for one): its
 * consumer will compute the whole prompt, so that the producer leaves nothing out.
 */
#define KVF_ADD_NO_PREFIX_CACHE 1

/** A group of layers with a block table of its own, whose blocks are exchanged. */
typedef struct kvf_transfer_group {
  /** A KVF_GROUP_... value. */
  uint32_t kind;
  /** Tokens of one block; may be 0 for state groups. */
  uint32_t tokens_per_block;
  /** `KVF_GROUP_SLIDING_WINDOW`: tokens that the window reaches back. */
  uint32_t window;
  /** `KVF_GROUP_STATE`: slots at the end of a request's list that only hold drafts. */
  uint32_t scratch_blocks;
} kvf_transfer_group;

/**
 * How a scheduler half works. Start from `kvf_scheduler_options_default()` and set `engine_id`,
 * `host` and `groups`; zero is the default of every other field. The defaults are those of vLLM.
 * Both sides of a transfer should have the same `lease_ms`.
 */
typedef struct kvf_scheduler_options {
  /** `sizeof(kvf_scheduler_options)`. */
  uint32_t struct_size;
  /** A KVF_MODE_... value. */
  uint32_t mode;
  /**
   * Names this engine to others; the same in all of its ranks, best another one after a restart:
   * stock readers tell an engine's lives apart by it.
   */
  const char *engine_id;
  /**
   * Host or address under which other engines reach this one's listener, and on which it
   * listens.
   */
  const char *host;
  /** The groups, in the order in which block lists are given. */
  const kvf_transfer_group *groups;
  /** Their number: 1 to 64. */
  size_t groups_len;
  /**
   * Transfer ranks: the larger of the tensor-parallel and the decode-context-parallel size. 0
   * is 1.
   */
  uint32_t tp_size;
  /** Pipeline stages. 0 is 1. */
  uint32_t pp_size;
  /** Decode-context-parallel size. 0 is 1. */
  uint32_t dcp_size;
  /**
   * Trailing prompt tokens that a producer leaves out and the consumer computes: 1 for state
   * models.
   */
  uint32_t backoff_tokens;
  /** How long a producer keeps blocks for a consumer that sends no heartbeat. 0 is 30,000. */
  uint64_t lease_ms;
  /** Between heartbeats. 0 is a sixth of `lease_ms`. */
  uint64_t heartbeat_ms;
  /** How long a consumer keeps blocks for the next turn. 0 is 480,000. */
  uint64_t pin_ms;
  /**
   * Push: how long a consumer waits for its blocks to be written before the request fails. 0
   * is `pin_ms`.
   */
  uint64_t registration_timeout_ms;
  /**
   * The least number of tokens that a next turn fetches instead of computing them. 0 is 64; 1
   * fetches any.
   */
  uint64_t recompute_threshold;
  /** Port of the listener; 0 lets the system choose (`kvf_scheduler_address()` tells). */
  uint16_t port;
  /**
   * 1: consumers keep finished requests' blocks, and producers fetch from them in the next
   * turn of a conversation. Pull only.
   */
  uint8_t bidirectional;
  /**
   * 1: of sliding-window and state groups only the blocks that a decoder needs are exchanged.
   * Both sides must agree; vLLM does so when its hybrid cache manager is on.
   */
  uint8_t clip;
  /** 1: parameters state how often handshake payloads were published, as from vLLM 0.33 on. */
  uint8_t state_registrations;
  /** Zero. */
  uint8_t reserved[3];
} kvf_scheduler_options;

/** The scheduler half of a connector. All zero is the null handle. */
typedef struct kvf_scheduler {
  /** Opaque. Zero is null. */
  uint64_t id;
} kvf_scheduler;

/** Blocks of a request in one group. */
typedef struct kvf_request_blocks {
  /** Block ids in the order of the request's block table. */
  const uint32_t *ids;
  /** Their number. */
  size_t len;
  /** How many blocks of the table come before the first of them. */
  uint32_t first;
  /** Zero. */
  uint32_t reserved;
} kvf_request_blocks;

/**
 * Sizes of a scheduler half's tables. All are 0 when every request has finished and every id has
 * been reported.
 */
typedef struct kvf_scheduler_stats {
  /** Requests that were added with parameters and have not finished. */
  uint64_t requests;
  /** Requests whose KV the engine waits for, those that have ended meanwhile too. */
  uint64_t receiving;
  /** Finished requests whose blocks are kept. */
  uint64_t holds;
  /** Lease words in use, of 65,536. */
  uint64_t leases;
  /** Requests whose leases on other engines are being extended. */
  uint64_t heartbeats;
  /** Those engines. */
  uint64_t peers;
  /** Zero. */
  uint64_t reserved[2];
} kvf_scheduler_stats;

/**
 * Creates the scheduler half of a connector: one for each engine, in the process that schedules.
 *
 * None of its functions waits for another engine or moves a byte: they keep books, and
 * `kvf_scheduler_build_step()` writes down what the workers have to do. One lock is held for the
 * few microseconds that a call takes. An id that was not added with parameters is not the
 * connector's business: its calls succeed and say that there is nothing to do.
 *
 * @param scheduler  Receives the handle; end it with `kvf_scheduler_destroy()`. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_scheduler_create(const kvf_scheduler_options *options,
                                kvf_scheduler *scheduler);

/**
 * A request has entered the engine. From here on its blocks on the other engine are kept alive by
 * heartbeats, which steps carry.
 *
 * @param request_id     This engine's id of it, 1 to 1,024 bytes; not one of a request that is
 *                       still to be reported as received or sent.
 * @param params         Its `kv_transfer_params` as JSON, or nothing: a local request. So is one
 *                       whose parameters cannot be read or lack what is needed, with a line in
 *                       the log: a router's mistake costs a request its shortcut, nothing else.
 * @param prompt_tokens  Length of its prompt.
 * @param flags          0 or `KVF_ADD_NO_PREFIX_CACHE`.
 * @param drop_tokens    Receives how many trailing prompt tokens the engine has to take off the
 *                       request: its consumer computes them. 0 except on producers with
 *                       `backoff_tokens`. Any thread.
 * @return `KVF_ERR_INVALID_STATE` for an id that is still to be reported. Nothing has changed then.
 */
KVF_MUST_USE
kvf_status kvf_scheduler_add(kvf_scheduler scheduler,
                             const char *request_id,
                             const uint8_t *params,
                             size_t params_len,
                             uint64_t prompt_tokens,
                             uint32_t flags,
                             uint64_t *drop_tokens);

/**
 * How much of a request's prompt can be loaded from another engine. May be asked any number of
 * times and changes nothing.
 *
 * @param prompt_tokens    Length of its prompt.
 * @param computed_tokens  Tokens from its beginning that this engine's prefix cache has.
 * @param tokens           Receives the number of tokens after those that can be loaded. If it is
 *                         not 0, the engine allocates blocks for them, calls
 *                         `kvf_scheduler_allocated()`, and sets the request aside until its id is
 *                         reported as received or failed. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_scheduler_match(kvf_scheduler scheduler,
                               const char *request_id,
                               uint64_t prompt_tokens,
                               uint64_t computed_tokens,
                               uint64_t *tokens);

/**
 * A request has been given blocks. The transfer is put into the next step, once: later calls, when
 * the request is scheduled again, find it arranged. If the engine waits for nothing, because its
 * cache has the whole prompt, the producer is told that it can free its blocks.
 *
 * @param groups           For each group the blocks that the prefix cache did not have, without
 *                         null blocks; may be empty if `external_tokens` is 0. Of all groups
 *                         together at most 1,048,576, in `kvf_scheduler_finished()` too.
 * @param external_tokens  What `kvf_scheduler_match()` said, if the engine sets the request
 *                         aside; else 0.
 * @param staged           Receives 1 if the request's transfer is arranged from now on. An engine
 *                         that keeps the parameters sets `do_remote_prefill` to false in them, and
 *                         `_remote_blocks_processed` to true. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_scheduler_allocated(kvf_scheduler scheduler,
                                   const char *request_id,
                                   const kvf_request_blocks *groups,
                                   size_t groups_len,
                                   uint64_t external_tokens,
                                   uint8_t *staged);

/**
 * Takes what the workers have to do since the last call, and gives it to none of them: hand the
 * bytes to the worker half of every rank, in this order. Call it in every engine step, also when
 * nothing runs; a step in which nothing happens has about ten bytes. None has more than 64 MiB:
 * what does not fit comes with the next.
 *
 * @param step  Receives the bytes; free with `kvf_buffer_free()`. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_scheduler_build_step(kvf_scheduler scheduler,
                                    kvf_buffer *step);

/**
 * Every rank has reported these requests as received, or one of them as failed and all as at rest.
 * Call it before the engine acts on the report. Unknown ids are passed over. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_scheduler_received(kvf_scheduler scheduler,
                                  const char *const *request_ids,
                                  size_t request_ids_len);

/**
 * Every rank has reported these requests as sent: read by their consumers, or their leases are
 * over. Their blocks can be freed. Unknown ids are passed over. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_scheduler_sent(kvf_scheduler scheduler,
                              const char *const *request_ids,
                              size_t request_ids_len);

/**
 * A request has ended, in whatever way and at whatever stage. Call it once for each, before its
 * blocks are freed.
 *
 * A producer's request that ended by itself is kept: its blocks stay as they are until every rank
 * has reported it as sent. One that is ended while its KV is being received is stopped; its blocks
 * are the engine's again when it is reported as received (failed, too). One that ends before it was
 * given blocks lets its producer go.
 *
 * @param how              A KVF_FINISH_... value.
 * @param groups           All blocks of the request, for each group, that hold its first
 *                         `computed_tokens` tokens, the last of them perhaps in part; may be empty
 *                         for a request that has none.
 * @param computed_tokens  Tokens whose KV is in them.
 * @param keep             Receives a KVF_KEEP_... value: until when the blocks must not be freed.
 * @param params           Receives what the router has to give to the other side, as JSON; empty if
 *                         nothing. Free with `kvf_buffer_free()`. May be NULL. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_scheduler_finished(kvf_scheduler scheduler,
                                  const char *request_id,
                                  uint32_t how,
                                  const kvf_request_blocks *groups,
                                  size_t groups_len,
                                  uint64_t computed_tokens,
                                  uint32_t *keep,
                                  kvf_buffer *params);

/**
 * Starts the listener at which other engines get this engine's handshake payloads, on the options'
 * host and port, or replaces the payloads if it runs. It has a thread of its own, which tells this
 * process's clock with each answer.
 *
 * @param ranks  One for each rank that takes part: its handshake payload, as the worker half gives
 *               it. Copied.
 * @return `KVF_ERR_BUSY` if the port is taken. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_scheduler_serve(kvf_scheduler scheduler,
                               const kvf_rank_payload *ranks,
                               size_t ranks_len);

/**
 * What other engines are told about where the listener is. Any thread.
 *
 * @param host  Receives the host as text; free with `kvf_buffer_free()`. May be NULL.
 * @param port  Receives the port: the options', or, where that is 0, the one that the system gave
 *              when the listener was started, and 0 before. May be NULL.
 */
KVF_MUST_USE
kvf_status kvf_scheduler_address(kvf_scheduler scheduler,
                                 kvf_buffer *host,
                                 uint16_t *port);

/**
 * Whether the engine has to go on stepping although it has no request to run: in push mode, while
 * blocks wait to be written or a registration waits to be sent. In pull mode an engine steps while
 * it keeps blocks, anyway, to hear of their end.
 *
 * @param pending  Receives 1 or 0. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_scheduler_has_pending(kvf_scheduler scheduler,
                                     uint8_t *pending);

/** Sizes of the tables. Any thread. */
KVF_MUST_USE
kvf_status kvf_scheduler_stats_get(kvf_scheduler scheduler,
                                   kvf_scheduler_stats *stats);

/** Ends a scheduler half and its listener. What the workers were told goes on. Any thread. */
kvf_status kvf_scheduler_destroy(kvf_scheduler scheduler);

/* ==== Connector: the KV cache ================================================================= */

/** K and V of this rank's share of the heads. */
#define KVF_CONTENT_HEADS 0
/** One vector per token, whole on every rank: MLA, indexer caches. */
#define KVF_CONTENT_LATENT 1
/** Recurrent state of a Mamba or linear attention layer. */
#define KVF_CONTENT_STATE 2

/** In one head of a block each token's K is followed by its V: most attention backends. */
#define KVF_SLAB_CELLS 0
/** In one head of a block all tokens' K come before all tokens' V: vLLM's CPU backend. */
#define KVF_SLAB_HALVES 1
/**
 * The order inside one head of a block is not known; it is moved whole, and only between engines
 * with blocks of one size.
 */
#define KVF_SLAB_OPAQUE 2

/** The sub-projections of the convolution are stated in `conv_channels`. */
#define KVF_STATE_STATED 0
/** Mamba 1: x. */
#define KVF_STATE_MAMBA1 1
/** Mamba 2: x, B, C. */
#define KVF_STATE_MAMBA2 2
/** Gated linear attention: Q, K, V. */
#define KVF_STATE_GDN 3

/**
 * Recurrent state of one layer on this rank: convolution state `[channels][rows]`, then recurrent
 * state `[heads][...]`. Tensor parallelism cuts every piece into equal shares.
 */
typedef struct kvf_kv_state {
  /** One of `KVF_STATE_...`: how the channels fall into sub-projections. */
  uint32_t kind;
  /** Channels of the convolution state. */
  uint32_t conv_channels_total;
  /** Rows of the convolution state: the kernel's width less one. */
  uint32_t conv_rows;
  /** Bytes of an element of the convolution state. */
  uint32_t conv_elem_bytes;
  /** Shape of the recurrent state, heads first. */
  uint32_t ssm_shape[4];
  /** Number of its dimensions. */
  uint32_t ssm_dims;
  /** Bytes of an element of the recurrent state. */
  uint32_t ssm_elem_bytes;
  /** With `KVF_STATE_STATED`: channels of each sub-projection, in their order in memory. */
  const uint32_t *conv_channels;
  /** How many there are. */
  size_t conv_channels_len;
} kvf_kv_state;

/** One layer's cache. */
typedef struct kvf_kv_tensor {
  /** The layer's name: the same in every engine that serves the model. */
  const char *layer;
  /** Index of its group. */
  uint32_t group;
  /** One of `KVF_CONTENT_...`. */
  uint32_t content;
  /** Address of its block 0. */
  uint64_t address;
  /** Where the allocation begins that it is a view of; 0 is `address`. */
  uint64_t storage_address;
  /** Bytes of that allocation. It is registered as a whole, once. 0 is what the blocks take up. */
  uint64_t storage_bytes;
  /** Bytes of one logical block of this layer, padding included. 0 is what its content needs. */
  uint64_t page_bytes;
  /** Logical blocks, if this layer has a pool of its own; 0 is `num_blocks` of the cache. */
  uint64_t num_blocks;
  /** Device; see `KVF_MEM_...`. */
  uint64_t device;
  /** One of `KVF_MEM_...`. */
  uint32_t mem_kind;
  /** Bytes of an element. */
  uint32_t elem_bytes;
  /**
   * Length of each dimension: `[blocks, heads, tokens, cell]`, or without heads `[blocks, tokens,
   * cell]`, blocks being kernel blocks; of a state `[blocks, ...]`.
   */
  uint64_t shape[5];
  /** Bytes from one index of each dimension to the next. */
  uint64_t strides[5];
  /**
   * Number of dimensions. 1 is a flat view of bytes. 0: blocks follow each other, each arranged as
   * `layout` of the cache says.
   */
  uint32_t dims;
  /** Elements of a K head. Of a latent its elements per token, needed if `dims` is 0 or 1. */
  uint32_t k_head_size;
  /** Elements of a V head; 0 is `k_head_size`. */
  uint32_t v_head_size;
  /** KV heads of this layer in the model, if they are not those of the cache; else 0. */
  uint32_t kv_heads;
  /** With `KVF_CONTENT_STATE`, its sizes; else NULL. */
  const kvf_kv_state *state;
} kvf_kv_tensor;

/**
 * The KV cache of one rank. Zero it, or start from `kvf_kv_cache_default()`, and set `tensors`,
 * `groups`, `num_blocks`, `block_tokens` and `kv_heads`.
 */
typedef struct kvf_kv_cache {
  /** `sizeof(kvf_kv_cache)`. */
  uint32_t struct_size;
  /** KV heads of the model, before tensor parallelism; 1 with `mla`. */
  uint32_t kv_heads;
  /** The layers, in any order. Layers that use another layer's cache are left out. */
  const kvf_kv_tensor *tensors;
  /** Their number. */
  size_t tensors_len;
  /**
   * Block tables, in the order in which the engine lists its block ids. `kernel_blocks` is 0 or
   * `blocks_per_logical`.
   */
  const kvf_group *groups;
  /** Their number. */
  size_t groups_len;
  /** Logical blocks in the pool. */
  uint64_t num_blocks;
  /** Kernel blocks of one logical block; 0 is 1. */
  uint32_t blocks_per_logical;
  /** Tokens of one kernel block. */
  uint32_t block_tokens;
  /**
   * Physical order: "LBHNC" (also for NULL), "LBNHC", "LHBNC", "BLHNC", "BLNHC" or "BHLNC", where L
   * is layers, B blocks, H heads, N tokens, C a cell; outermost first.
   */
  const char *layout;
  /** Name of the attention backend; NULL is "". Peers are told. */
  const char *attn_backend;
  /** One of `KVF_SLAB_...`: order of K and V inside one head of a block. */
  uint32_t slab_order;
  /** Prefill-context-parallel size; 0 is 1. */
  uint32_t pcp_size;
  /** Whether the model as a whole uses multi-head latent attention. */
  uint8_t mla;
  /**
   * Whether groups that are not full attention have block tables of their own (vLLM: the hybrid
   * manager is on). Decides what peers are told in push mode, nothing else.
   */
  uint8_t hybrid;
  /** Zero. */
  uint8_t reserved[6];
} kvf_kv_cache;

/* ==== Connector: the half in each rank ======================================================== */

/** A record of a request that was received here. */
#define KVF_RECORD_RECEIVE 0
/** A record of a request that was written to another engine. */
#define KVF_RECORD_PUSH 1

/**
 * How a worker half works. Start from `kvf_worker_options_default()` and set `agent` and
 * `engine_id`; zero is the default of every other field. The defaults are those of vLLM.
 */
typedef struct kvf_worker_options {
  /** `sizeof(kvf_worker_options)`. */
  uint32_t struct_size;
  /** A KVF_MODE_... value. */
  uint32_t mode;
  /** The rank's agent. The worker takes all its messages, and registers memory with it. */
  kvf_agent agent;
  /** The engine's id, the same on all its ranks and in its scheduler half. */
  const char *engine_id;
  /**
   * 64 lowercase hexadecimal digits by which two engines tell that they are of a kind. NULL: made
   * of what the KV cache says about the model, for engines that are not vLLM.
   */
  const char *compat_hash;
  /** Push: host or address of this engine's side channel, for producers to find it. */
  const char *host;
  /** Of the transfers; may be NULL. */
  const kvf_queue_options *queue;
  /** Transfer rank in its pipeline stage. */
  uint32_t tp_rank;
  /**
   * Transfer ranks: the larger of the tensor-parallel and the decode-context-parallel size. 0 is
   * 1.
   */
  uint32_t tp_size;
  /** Pipeline stage. */
  uint32_t pp_rank;
  /** Pipeline stages. 0 is 1. */
  uint32_t pp_size;
  /** Decode-context-parallel size. 0 is 1. */
  uint32_t dcp_size;
  /** Tokens that go to one rank before the next rank's turn; 0 is a block. */
  uint32_t dcp_interleave;
  /**
   * How long producers keep a request; 0 is 30,000. Both sides of a transfer should have the
   * same.
   */
  uint64_t lease_ms;
  /** How long one question of a handshake may take; 0 is 5,000. */
  uint64_t handshake_timeout_ms;
  /** Peers that nobody has wanted for so long are forgotten; 0 is 3,600,000, `UINT64_MAX` never. */
  uint64_t engine_ttl_ms;
  /** Push: how long a consumer waits for its producer; 0 is 480,000. */
  uint64_t registration_timeout_ms;
  /** How long one transfer may take; 0 is 480,000. */
  uint64_t transfer_timeout_ms;
  /** Push: port of this engine's side channel. */
  uint16_t port;
  /** 1: peers with another compatibility hash are not refused for that. */
  uint8_t ignore_compat;
  /** Zero. */
  uint8_t reserved[5];
} kvf_worker_options;

/** The worker half of a connector. All zero is the null handle. */
typedef struct kvf_worker {
  /** Opaque. Zero is null. */
  uint64_t id;
} kvf_worker;

/**
 * What has become of requests. Free with `kvf_worker_results_free()`. Each request is reported
 * once.
 */
typedef struct kvf_worker_results {
  /** Requests whose kept blocks are free: all readers are through, or the lease has ended. */
  const char *const *sent;
  /** Their number. */
  size_t sent_len;
  /** Requests whose receive is over, well or not. Their blocks are the engine's again. */
  const char *const *received;
  /** Their number. */
  size_t received_len;
  /** Those of `received` that failed: nothing in their blocks may be used. */
  const char *const *failed;
  /** Their number. */
  size_t failed_len;
  /**
   * Local block ids of failed requests, if the model has one group, in which an id says which
   * block is meant.
   */
  const uint32_t *failed_blocks;
  /** Their number. */
  size_t failed_blocks_len;
  /** What all of this points to; NULL if there is nothing. Leave it alone. */
  void *storage;
  /** 1 if `kvf_worker_take_stats()` has something to give. */
  uint8_t has_stats;
  /** Zero. */
  uint8_t reserved[7];
} kvf_worker_results;

/**
 * What became of one request, with its times. All but `arrived_ns` count from then; 0 is "did not
 * get there".
 */
typedef struct kvf_worker_record {
  /** This engine's id of the request. */
  const char *request_id;
  /** The other engine; empty if it was never known. */
  const char *engine_id;
  /** What went wrong; empty if nothing did. */
  const char *message;
  /** One of `KVF_RECORD_...`. */
  uint32_t kind;
  /** How it ended. */
  kvf_status status;
  /** When the worker heard of it, in nanoseconds of the monotonic clock. */
  uint64_t arrived_ns;
  /** When it went to the queue. */
  uint64_t queued_ns;
  /** When its ranges were known. */
  uint64_t planned_ns;
  /** When its first bytes were asked for. */
  uint64_t posted_ns;
  /** When it was over. */
  uint64_t finished_ns;
  /** Bytes that arrived. */
  uint64_t bytes;
  /** Ranges after merging. */
  uint64_t descriptors;
  /** Zero. */
  uint64_t reserved[4];
} kvf_worker_record;

/** Records, oldest first. Free with `kvf_worker_record_list_free()`. */
typedef struct kvf_worker_record_list {
  /** `len` records, or NULL. */
  const kvf_worker_record *items;
  /** Their number. */
  size_t len;
  /** What the records point to. Leave it alone. */
  void *storage;
} kvf_worker_record_list;

/**
 * How much there is of everything, as the worker's thread last saw it. All but `peers` are 0 when
 * nothing is under way.
 */
typedef struct kvf_worker_state {
  /** Receives that are not over. */
  uint64_t receives;
  /** Requests that are kept. */
  uint64_t holds;
  /** Requests that wait to be written, or are being written. */
  uint64_t pushes;
  /** Peer engines that are known. */
  uint64_t peers;
  /** Handshakes under way. */
  uint64_t handshakes;
  /** Zero. */
  uint64_t reserved[3];
} kvf_worker_state;

/**
 * Creates the worker half of a connector: one for each rank. It has a thread of its own, and one
 * more for its transfers; neither does anything while there is nothing to do.
 *
 * @param worker  Receives the handle; end it with `kvf_worker_destroy()`, before its agent.
 * @return `KVF_ERR_NOT_SUPPORTED` for a combination that is not offered; the message has the way
 *         out. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_worker_create(const kvf_worker_options *options,
                             kvf_worker *worker);

/**
 * Ends a worker. Transfers are carried out for up to `drain_ms`, then cancelled and waited for, for
 * as long again but at least 100 ms. All leases end, peers are forgotten, memory is deregistered.
 *
 * @return `KVF_ERR_TIMEOUT` if something was still moving at the end of that: its blocks must not
 *         be used before `kvf_agent_destroy()` has returned `KVF_OK`, and the memory stays
 *         registered until then. Any thread.
 */
kvf_status kvf_worker_destroy(kvf_worker worker,
                              uint64_t drain_ms);

/**
 * Registers the rank's KV cache: works out its regions and registers their memory with the agent.
 * Once, before anything else.
 *
 * @return `KVF_ERR_INVALID_ARGUMENT`, naming the layer and the field, for tensors that cannot be
 *         what they are said to be; `KVF_ERR_NOT_SUPPORTED` for arrangements that are not known.
 *         Any thread.
 */
KVF_MUST_USE
kvf_status kvf_worker_register_kv(kvf_worker worker,
                                  const kvf_kv_cache *cache);

/**
 * What this rank answers to handshakes; for `kvf_scheduler_serve()`, or a side channel of kind
 * "zmq".
 *
 * @param payload  Receives the bytes; free with `kvf_buffer_free()`. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_worker_payload(kvf_worker worker,
                              kvf_buffer *payload);

/**
 * Takes the bytes of an engine step, as `kvf_scheduler_build_step()` made them, and returns at
 * once. What is wrong with a request shows in the results.
 *
 * @return `KVF_ERR_PEER_INCOMPATIBLE` for bytes that are no step. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_worker_step(kvf_worker worker,
                           const uint8_t *step,
                           size_t len);

/**
 * What has become of requests since the last call. Never blocks; allocates nothing if there is
 * nothing.
 *
 * @param results  Receives them; free with `kvf_worker_results_free()`. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_worker_poll(kvf_worker worker,
                           kvf_worker_results *results);

/**
 * Frees results and zeroes the struct. NULL, and a struct that is all zero, are ignored, so freeing
 * twice is harmless. Any thread, but one at a time for the same struct.
 */
void kvf_worker_results_free(kvf_worker_results *results);

/**
 * Blocks until there is something to poll, or the time is over: for engines that have nothing else
 * to do.
 *
 * @param ready  Receives 1 if there is something, 0 if not. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_worker_wait(kvf_worker worker,
                           uint64_t timeout_ms,
                           uint8_t *ready);

/**
 * A file descriptor that is readable while there is something to poll, for event loops. It belongs
 * to the worker and is closed with it: wait on it, do not read or close it.
 *
 * An engine that has nothing to compute may sleep on it, beside whatever else it waits for, but not
 * for long while its scheduler half keeps or awaits blocks: heartbeats go out in steps. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_worker_event_fd(kvf_worker worker,
                               int *fd);

/**
 * Figures since the last call: a JSON object of lists by the names of vLLM's statistics, such as
 * `{"transfer_duration": [0.012], ...}`; `{}` if there are none.
 *
 * @param json  Receives the text; free with `kvf_buffer_free()`. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_worker_take_stats(kvf_worker worker,
                                 kvf_buffer *json);

/**
 * Records of the requests that are over since the last call, the last few thousand at most: JSON
 * objects, one per line.
 *
 * @param lines  Receives the text; free with `kvf_buffer_free()`. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_worker_take_records(kvf_worker worker,
                                   kvf_buffer *lines);

/**
 * The same records as structs: what one of the two calls has given the other does not give again.
 *
 * @param records  Receives them; free with `kvf_worker_record_list_free()`. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_worker_take_record_list(kvf_worker worker,
                                       kvf_worker_record_list *records);

/**
 * Frees the records and zeroes the struct. NULL, and a struct that is all zero, are ignored. Any
 * thread, but one at a time for the same struct.
 */
void kvf_worker_record_list_free(kvf_worker_record_list *records);

/** How much there is of everything. Any thread. */
KVF_MUST_USE
kvf_status kvf_worker_state_get(kvf_worker worker,
                                kvf_worker_state *state);

/* ==== Block pool ============================================================================== */

/**
 * The best that is known: `KVF_POLICY_ELASTIC` where there is a prefix cache to be careful of,
 * `KVF_POLICY_WINDOWED` over the whole queue where there is none.
 */
#define KVF_POLICY_DEFAULT 0
/** An allocation gets the first blocks of the free queue, as in vLLM. */
#define KVF_POLICY_LRU 1
/**
 * It gets, of a fixed part of the queue, the smallest run of adjacent ids that fits, or else
 * the longest ones; in the order of their ids. Few, long runs make few byte ranges of a
 * transfer.
 */
#define KVF_POLICY_WINDOWED 2
/** The same, of the oldest part of the queue that has proved long enough, up to a limit. */
#define KVF_POLICY_ELASTIC 3

/** Most ids in one call. A longer array is taken for a mistake. */
#define KVF_BLOCK_POOL_MAX_IDS 67108864
/** Something of the block is in the prefix index. */
#define KVF_BLOCK_CACHED 1

/** How to make a pool. Start from `kvf_block_pool_options_default()` and set `blocks`. */
typedef struct kvf_block_pool_options {
  /** `sizeof(kvf_block_pool_options)`. */
  uint32_t struct_size;
  /**
   * Number of blocks, 1 to 16,777,216. Their ids are 0 to `blocks - 1`. Block 0 is the null
   * block: it stands for "no block" in block tables and is never allocated.
   */
  uint32_t blocks;
  /** `KVF_POLICY_...`. */
  uint32_t policy;
  /** 1: there is an index of cached prefixes. */
  uint8_t caching;
  /** 1: events are recorded. */
  uint8_t events;
  /** 1: frees and touches pass over the null block instead of refusing it. */
  uint8_t tolerate_null;
  /** Zero. */
  uint8_t reserved;
  /**
   * The part of the free queue that the policy chooses from, greater than 0 and at most 1;
   * 0 is a good one: without caching 1; with it 0.1 (windowed), or 1,100 of `blocks`, but not
   * less than 0.02 and not more than 0.12 (elastic).
   */
  double fraction;
  /**
   * Bytes of events that are kept until they are taken; 0 is 64 MiB. When more would be
   * needed all are thrown away, and the next list says how many those were.
   */
  uint64_t event_bytes;
} kvf_block_pool_options;

/**
 * A fixed number of KV-cache blocks, with reference counts, a free queue in eviction order,
 * and an index of cached prefixes. All zero is the null handle.
 */
typedef struct kvf_block_pool {
  /** Opaque. Zero is null. */
  uint64_t id;
} kvf_block_pool;

/** A block as it stands in the memory of its pool; see `kvf_block_pool_nodes()`. */
typedef struct kvf_block_node {
  /** The block before it in the free queue. Means nothing while the block is held. */
  uint32_t prev;
  /** The block behind it. */
  uint32_t next;
  /** How many times it is held. */
  uint32_t refs;
  /** `KVF_BLOCK_CACHED`, and bits that mean nothing outside. */
  uint32_t flags;
} kvf_block_node;

/** What a pool has done since it was made, and what it holds. Counters only grow. */
typedef struct kvf_block_pool_stats {
  /** Blocks, the null block included. */
  uint64_t blocks;
  /** Blocks that can be allocated now. */
  uint64_t free;
  /** Blocks with an entry in the prefix index. */
  uint64_t cached_blocks;
  /** Different keys (hash and group) in the prefix index. */
  uint64_t cached_keys;
  /** Allocations that succeeded, those of no blocks excepted. */
  uint64_t allocations;
  /** Allocations that were refused because too few blocks were free. */
  uint64_t refused_allocations;
  /** Blocks handed out. */
  uint64_t allocated_blocks;
  /** Runs of adjacent ids they came in. */
  uint64_t allocated_runs;
  /** Blocks that went back to the queue. */
  uint64_t freed_blocks;
  /** Blocks of the queue that were taken out of it by a touch. */
  uint64_t revived_blocks;
  /** Hashes looked up; a chain counts up to and including the first that misses. */
  uint64_t lookups;
  /** Those that were found in every group asked for. */
  uint64_t hits;
  /** Keys entered into the prefix index. */
  uint64_t stored_keys;
  /** Keys removed from it, except by a reset. */
  uint64_t removed_keys;
  /** Successful resets. */
  uint64_t resets;
  /** Events thrown away because nobody took them. */
  uint64_t lost_events;
} kvf_block_pool_stats;

/**
 * Makes a pool whose blocks are all free. A pool of 100,000 blocks takes 3 MB, with caching
 * 12 MB.
 *
 * @param options  Not NULL: a pool has no default size.
 * @param pool     Receives the handle; end it with `kvf_block_pool_destroy()`. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_create(const kvf_block_pool_options *options,
                                 kvf_block_pool *pool);

/** Ends a pool. Calls under way in other threads come to their end first. Any thread. */
kvf_status kvf_block_pool_destroy(kvf_block_pool pool);

/**
 * Takes `len` free blocks, each then held once, and forgets what they had cached.
 *
 * @param ids  Receives `len` ids: with `KVF_POLICY_LRU` in eviction order, else ascending.
 * @return `KVF_ERR_RESOURCE_EXHAUSTED` if fewer are free: nothing is changed. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_allocate(kvf_block_pool pool,
                                   uint32_t *ids,
                                   size_t len);

/**
 * The same for a request that grows: if the policy allows, first the blocks that follow its
 * last one without a gap.
 *
 * @param after  The request's last block. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_allocate_after(kvf_block_pool pool,
                                         uint32_t after,
                                         uint32_t *ids,
                                         size_t len);

/**
 * Gives back one reference of each block; one may appear several times. Those that nobody
 * holds any more become free, in this order: in front of the queue without cached content, at
 * its end with it. Give the last block of a prompt first, so that prefixes are evicted from
 * their ends.
 *
 * @return `KVF_ERR_INVALID_STATE` for a block that is free already (or appears more often than
 *         it is held), `KVF_ERR_INVALID_ARGUMENT` for an unknown one or the null block:
 *         nothing is changed. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_free(kvf_block_pool pool,
                               const uint32_t *ids,
                               size_t len);

/**
 * Like `kvf_block_pool_free()`, for blocks that somebody still reads, without holding them,
 * until they are handed out again: all go to the end of the queue, and
 * `kvf_block_pool_take_reused()` tells when they were. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_unpin(kvf_block_pool pool,
                                const uint32_t *ids,
                                size_t len);

/**
 * Holds each block once more; one may appear several times. Free ones leave the queue.
 *
 * @return `KVF_ERR_INVALID_ARGUMENT` for an unknown block or the null block: nothing is
 *         changed. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_touch(kvf_block_pool pool,
                                const uint32_t *ids,
                                size_t len);

/**
 * How many times each block is held.
 *
 * @param counts  Receives `len` numbers.
 * @return `KVF_ERR_INVALID_ARGUMENT` for an unknown block or the null block. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_ref_counts(kvf_block_pool pool,
                                     const uint32_t *ids,
                                     size_t len,
                                     uint32_t *counts);

/**
 * Whether a holder may write to a block: it is held once, and nothing of it is cached.
 *
 * @param writable  Receives 1 or 0. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_is_writable(kvf_block_pool pool,
                                      uint32_t id,
                                      uint8_t *writable);

/**
 * Number of blocks that can be allocated.
 *
 * @param free  Receives it. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_num_free(kvf_block_pool pool,
                                   uint32_t *free);

/**
 * The free blocks in eviction order.
 *
 * @param ids       Receives the first `capacity` of them, or fewer if there are fewer.
 * @param num_free  Receives how many there are. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_free_blocks(kvf_block_pool pool,
                                      uint32_t *ids,
                                      size_t capacity,
                                      size_t *num_free);

/**
 * Where the blocks of a pool are in memory, for a program that asks about them more often than
 * it calls. `blocks` nodes, that of the null block first, and behind them one more: its `next`
 * is the first free block, its `prev` the last, its `refs` how many there are; the queue is
 * circular through it.
 *
 * Never write to them. Read them while no call on this pool is under way, and not after it
 * was destroyed.
 *
 * @param nodes  Receives the address. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_nodes(kvf_block_pool pool,
                                const kvf_block_node **nodes);

/**
 * Blocks given to `kvf_block_pool_unpin()` that have been handed out since, or lost their
 * content to a reset; in that order, each once.
 *
 * @param ids    Receives up to `capacity` of them.
 * @param taken  Receives how many were written; call again while it is `capacity`. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_take_reused(kvf_block_pool pool,
                                      uint32_t *ids,
                                      size_t capacity,
                                      size_t *taken);

/**
 * Counters and current numbers.
 *
 * @param stats  Receives them. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_stats_get(kvf_block_pool pool,
                                    kvf_block_pool_stats *stats);

/* ==== Block pool: cached prefixes and events ================================================== */

/** Content was cached, or announced again. */
#define KVF_BLOCK_STORED 1
/** A block lost a key: `hashes` is the one hash. */
#define KVF_BLOCK_REMOVED 2

/** Every block lost its keys. */
#define KVF_BLOCKS_CLEARED 3

/**
 * Full blocks of one request, with the hashes of their content, for `kvf_block_pool_cache()`.
 * Zero the struct and set `struct_size`.
 */
typedef struct kvf_cached_blocks {
  /** `sizeof(kvf_cached_blocks)`. */
  uint32_t struct_size;
  /** Group of layers that share a block table. */
  uint32_t group;
  /** Position of the first of `blocks` in the request's block table. */
  uint32_t first;
  /** Tokens per block. */
  uint32_t block_size;
  /** `len` adjacent blocks of the block table. Null blocks are passed over. */
  const uint32_t *blocks;
  /** Their number. */
  size_t len;
  /** Their hashes, one after the other, `hash_len` bytes each. */
  const uint8_t *hashes;
  /** Length of one hash in bytes, 1 to 255. */
  size_t hash_len;
  /** NULL, or a byte for each block: those with 0 are passed over. */
  const uint8_t *mask;
  /** For the event: the hash of the block before the first. NULL if there is none. */
  const uint8_t *parent;
  /** Its length in bytes. */
  size_t parent_len;
  /** For the event: the tokens of all the blocks, `len * block_size`. NULL to leave them out. */
  const uint32_t *tokens;
  /** Their number. */
  size_t tokens_len;
  /** For the event: anything. */
  uint64_t tag;
} kvf_cached_blocks;

/**
 * A key for the first part of a block's content, for `kvf_block_pool_cache_partial()`. Zero the
 * struct and set `struct_size`.
 */
typedef struct kvf_cached_part {
  /** `sizeof(kvf_cached_part)`. */
  uint32_t struct_size;
  /** The block. For the null block nothing is done. */
  uint32_t block;
  /** Group of layers that share a block table. */
  uint32_t group;
  /** Tokens of the prefix, from the start of the request. */
  uint32_t num_tokens;
  /** For the event: tokens that this hash adds to its parent's. */
  uint32_t block_size;
  /** 1: the content was replaced, and the keys that the block has are removed first. */
  uint8_t replace;
  /** Zero. */
  uint8_t reserved[3];
  /** The hash of the prefix. */
  const uint8_t *hash;
  /** Its length in bytes, 1 to 255. */
  size_t hash_len;
  /** For the event: the hash before this one. NULL if there is none. */
  const uint8_t *parent;
  /** Its length in bytes. */
  size_t parent_len;
  /** For the event: those `block_size` tokens. NULL to leave them out. */
  const uint32_t *tokens;
  /** Their number. */
  size_t tokens_len;
  /** For the event: anything. */
  uint64_t tag;
} kvf_cached_part;

/** One key of a block. */
typedef struct kvf_block_key {
  /** The hash. */
  uint8_t hash[255];
  /** Its length in bytes. */
  uint8_t hash_len;
  /** Group of layers that share a block table. */
  uint32_t group;
} kvf_block_key;

/** One change of the prefix index. */
typedef struct kvf_block_event {
  /** `KVF_BLOCK_...`. Accept, and pass over, values that you do not know. */
  uint32_t kind;
  /** Group of layers that share a block table. */
  uint32_t group;
  /** Tokens per block. */
  uint32_t block_size;
  /** Zero. */
  uint32_t reserved;
  /** `count` hashes, one after the other, `hash_len` bytes each. */
  const uint8_t *hashes;
  /** Length of one hash in bytes. */
  size_t hash_len;
  /** Number of hashes. */
  size_t count;
  /** The hash before the first of them; NULL at the start of a prompt. */
  const uint8_t *parent;
  /** Its length in bytes. */
  size_t parent_len;
  /**
   * The tokens of the whole range, blocks that were passed over included; NULL if none were
   * given.
   */
  const uint32_t *tokens;
  /** Their number. */
  size_t tokens_len;
  /** What was passed along. */
  uint64_t tag;
} kvf_block_event;

/** Events in the order in which they happened. Free with `kvf_block_event_list_free()`. */
typedef struct kvf_block_event_list {
  /** `len` events, or NULL. */
  kvf_block_event *items;
  /** Their number. */
  size_t len;
  /**
   * How many before these were thrown away because nobody took them in time. Not zero means
   * that a listener has to forget what it knew.
   */
  uint64_t lost;
  /** What the events point to. Leave it alone. */
  void *storage;
} kvf_block_event_list;

/**
 * The longest known prefix: how many of `count` hashes, from the first, have a block in every
 * group; of several in a group the one that was cached first.
 *
 * @param hashes  `count` hashes, one after the other, `hash_len` bytes each.
 * @param groups  The groups; at least one.
 * @param touch   1: what is found is also touched, in the same step: nobody can allocate it in
 *                between.
 * @param ids     Receives up to `count * groups_len` blocks, those of the first hash first, in
 *                the order of `groups`. What is behind those found means nothing.
 * @param found   Receives the number of hashes found. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_lookup(kvf_block_pool pool,
                                 const uint8_t *hashes,
                                 size_t hash_len,
                                 size_t count,
                                 const uint32_t *groups,
                                 size_t groups_len,
                                 uint8_t touch,
                                 uint32_t *ids,
                                 size_t *found);

/**
 * Enters full blocks into the prefix index. One that is there already with the key of a
 * shorter prefix loses its keys first. Records one event for the call.
 *
 * @return `KVF_ERR_INVALID_STATE` if the pool does not cache, or a block has a key for as many
 *         tokens or more; `KVF_ERR_MISMATCH` if arrays do not agree. Nothing is changed. Any
 *         thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_cache(kvf_block_pool pool,
                                const kvf_cached_blocks *blocks);

/**
 * Records an event for blocks that are cached already and were used again. Changes nothing
 * else; `blocks`, `first` and `mask` are not looked at. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_announce(kvf_block_pool pool,
                                   const kvf_cached_blocks *blocks);

/**
 * Enters a key for the first part of a block, next to those it has. A block whose primary key
 * is for a shorter prefix loses its keys first. Records one event, unless the block has the
 * key already.
 *
 * @return As `kvf_block_pool_cache()`, except that any number of tokens is allowed. Any
 *         thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_cache_partial(kvf_block_pool pool,
                                        const kvf_cached_part *part);

/**
 * Gives all keys of block `from` to block `to`, which has none. No events: the content is still
 * there.
 *
 * @return `KVF_ERR_INVALID_STATE` if the pool does not cache or `to` has keys. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_move_keys(kvf_block_pool pool,
                                    uint32_t from,
                                    uint32_t to);

/**
 * Takes all keys from these blocks, held or not. Their place in the free queue stays as it is.
 *
 * @return `KVF_ERR_INVALID_ARGUMENT` for an unknown block: nothing is changed. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_evict(kvf_block_pool pool,
                                const uint32_t *ids,
                                size_t len);

/**
 * Empties the prefix index, if no block is held; the order of the free queue stays as it is.
 *
 * @param done  Receives 1, or 0 if a block is held and nothing was changed. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_reset(kvf_block_pool pool,
                                uint8_t *done);

/**
 * The keys of a block, the primary one first.
 *
 * @param keys      Receives the first `capacity` of them, or fewer if there are fewer.
 * @param num_keys  Receives how many there are.
 * @param tokens    Receives the tokens of the prefix of the primary key; 0 if there is none.
 *                  Any thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_keys(kvf_block_pool pool,
                               uint32_t id,
                               kvf_block_key *keys,
                               size_t capacity,
                               size_t *num_keys,
                               uint32_t *tokens);

/**
 * The events since the last call; none if the pool does not record them.
 *
 * @param events  Free with `kvf_block_event_list_free()`. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_block_pool_take_events(kvf_block_pool pool,
                                      kvf_block_event_list *events);

/**
 * Frees the events and zeroes the struct. NULL, and a struct that is all zero, are ignored. Any
 * thread, one at a time per struct.
 */
void kvf_block_event_list_free(kvf_block_event_list *events);

/* ==== Block pool in a server ================================================================== */

/** Nothing; `value` receives a number that differs between two runs of the server. */
#define KVF_POOL_OP_PING 1
/**
 * Allocates `count` blocks (with `after`, if it is not 0) into `out`, for `request` if there is
 * one: then 0 is the last block of that.
 */
#define KVF_POOL_OP_ALLOCATE 2
/** The same; `count` is how many `request` is to have, with those that it has. */
#define KVF_POOL_OP_ALLOCATE_UP_TO 3
/** Gives back all blocks of `request`, the last one first; `value` receives their number. */
#define KVF_POOL_OP_FREE_REQUEST 4
/** As `kvf_block_pool_free()`: `ids`, which belong to no request. */
#define KVF_POOL_OP_FREE 5
/** As `kvf_block_pool_unpin()`. */
#define KVF_POOL_OP_UNPIN 6
/** As `kvf_block_pool_touch()`, for `request` if there is one. */
#define KVF_POOL_OP_TOUCH 7
/**
 * As `kvf_block_pool_lookup()`: `hash_count` hashes in `groups`. `out` receives the blocks,
 * `value` the number of hashes found.
 */
#define KVF_POOL_OP_LOOKUP 8
/** The same, and what is found is touched, for `request` if there is one. */
#define KVF_POOL_OP_ACQUIRE 9
/** As `kvf_block_pool_cache()`: `cached`. */
#define KVF_POOL_OP_CACHE 10
/** As `kvf_block_pool_cache_partial()`: `part`. */
#define KVF_POOL_OP_CACHE_PARTIAL 11
/** As `kvf_block_pool_announce()`: `cached`. */
#define KVF_POOL_OP_ANNOUNCE 12
/** As `kvf_block_pool_move_keys()`: from `ids[0]` to `ids[1]`. */
#define KVF_POOL_OP_MOVE_KEYS 13
/** As `kvf_block_pool_evict()`: `ids`. */
#define KVF_POOL_OP_EVICT 14
/** As `kvf_block_pool_reset()`; `value` receives 1, or 0 if a block is held by anybody. */
#define KVF_POOL_OP_RESET 15
/** How many times each of `ids` is held, by whomever, into `out`. */
#define KVF_POOL_OP_REF_COUNTS 16
/** As `kvf_block_pool_is_writable()`, of each of `ids`: 1 or 0 into `out`. */
#define KVF_POOL_OP_WRITABLE 17
/** `value` receives the number of free blocks. */
#define KVF_POOL_OP_NUM_FREE 18
/**
 * As `kvf_block_pool_free_blocks()`: `out`, as many as it has room for; `value` receives how many
 * there are.
 */
#define KVF_POOL_OP_FREE_BLOCKS 19
/** As `kvf_block_pool_take_reused()`: `out`, as many as it has room for. */
#define KVF_POOL_OP_TAKE_REUSED 20
/**
 * The keys of `ids[0]`: the first `keys_capacity` into `keys`, their number into `value`, the
 * tokens of the primary one into `tokens`.
 */
#define KVF_POOL_OP_KEYS 21
/** As `kvf_block_pool_stats_get()`: `stats`. */
#define KVF_POOL_OP_STATS 22
/** As `kvf_block_pool_take_events()`: `events`, of a pool whose events are not published. */
#define KVF_POOL_OP_TAKE_EVENTS 23

/**
 * How to connect. Start from `kvf_pool_client_options_default()`; zero is the default of every
 * field.
 */
typedef struct kvf_pool_client_options {
  /** `sizeof(kvf_pool_client_options)`. */
  uint32_t struct_size;
  /**
   * 1: the events of the pool that is made are published by the server, not kept for
   * `KVF_POOL_OP_TAKE_EVENTS`.
   */
  uint8_t publish;
  /** Zero. */
  uint8_t reserved[3];
  /** `ipc://FILE` or `tcp://HOST:PORT`; NULL is `ipc:///tmp/kv_cache.sock`. */
  const char *address;
  /** The pool's name; NULL is the one that the server was started with. */
  const char *pool;
  /**
   * The session's name; NULL is one that nobody else has. Whoever gives the name of a session
   * that is alive goes on with it, and with what it holds.
   */
  const char *session;
  /**
   * The pool to make if there is none of that name (one with other options is
   * `KVF_ERR_MISMATCH`); it ends with the last session that has opened it. NULL: it must be
   * there.
   */
  const kvf_block_pool_options *create;
  /** How long a call may take, in milliseconds; 0 is 10,000. */
  uint64_t timeout_ms;
  /**
   * How long the server keeps what a silent client holds, in milliseconds; 0 is the server's
   * default. A client is not silent while its process runs: a thread of its own sees to that.
   */
  uint64_t session_timeout_ms;
} kvf_pool_client_options;

/** A connection to a `kv_cache_server`, and a session there. All zero is the null handle. */
typedef struct kvf_pool_client {
  /** Opaque. Zero is null. */
  uint64_t id;
} kvf_pool_client;

/**
 * One operation and its outcome, for `kvf_pool_client_run()`. Zero the struct, and set `kind` and
 * what the kind needs; `KVF_POOL_OP_...` says which fields those are. Pointers that it does not
 * need are not looked at.
 */
typedef struct kvf_pool_op {
  /** `KVF_POOL_OP_...`. */
  uint32_t kind;
  /** Receives the outcome. `KVF_ERR_CANCELED`: not carried out, because one before it failed. */
  int32_t status;
  /** The engine's request that the blocks are for, a name of up to 256 bytes; NULL for none. */
  const char *request;
  /** How many blocks. */
  uint32_t count;
  /** The last block of a request that grows, or 0. */
  uint32_t after;
  /** Blocks to work on. */
  const uint32_t *ids;
  /** Their number. */
  size_t ids_len;
  /** Hashes, one after the other. */
  const uint8_t *hashes;
  /** Length of one in bytes. */
  size_t hash_len;
  /** Their number. */
  size_t hash_count;
  /** Groups to look in. */
  const uint32_t *groups;
  /** Their number. */
  size_t groups_len;
  /** Blocks to be cached or announced. */
  const kvf_cached_blocks *cached;
  /** A part to be cached. */
  const kvf_cached_part *part;
  /** Receives block ids, or other numbers of 32 bits. */
  uint32_t *out;
  /** How many fit there. */
  size_t out_capacity;
  /** Receives how many were written. */
  size_t out_len;
  /** Receives a number. */
  uint64_t value;
  /** Receives keys. */
  kvf_block_key *keys;
  /** How many fit there. */
  size_t keys_capacity;
  /** Receives the pool's numbers. */
  kvf_block_pool_stats *stats;
  /** Receives events; free them with `kvf_block_event_list_free()`. */
  kvf_block_event_list *events;
  /** Receives the tokens of the primary key; 0 if there is none. */
  uint32_t tokens;
  /** Zero. */
  uint32_t reserved;
  /** Receives what was wrong, cut to fit and NUL-terminated; empty if nothing was. */
  char message[160];
} kvf_pool_op;

/**
 * Connects to a server, opens a session, and makes or joins a pool. Any thread.
 *
 * @param options  May be NULL.
 * @param client   Receives the handle; end it with `kvf_pool_client_close()`.
 * @return `KVF_ERR_TIMEOUT` if nobody answers, `KVF_ERR_PEER_LOST` if the server ends meanwhile;
 *         `KVF_ERR_NOT_FOUND` if there is no such pool, and none to make.
 */
KVF_MUST_USE
kvf_status kvf_pool_client_connect(const kvf_pool_client_options *options,
                                   kvf_pool_client *client);

/**
 * Ends the session, with which everything that it holds goes back, and the handle. Any thread.
 *
 * @return `KVF_ERR_TIMEOUT` or `KVF_ERR_PEER_LOST` if the server does not answer; the handle has
 *         ended all the same, and the server takes everything back by itself.
 */
kvf_status kvf_pool_client_close(kvf_pool_client client);

/**
 * Carries out operations, in their order and in one round trip, with nobody else's between them.
 * Each is all or nothing by itself; one that fails does not undo those before it.
 *
 * @param ops            `len` operations, at most 4,096. Their outcomes are written into them.
 * @param stop_on_error  1: those behind one that failed are not carried out.
 * @return The status of the first operation that failed. `KVF_ERR_TIMEOUT` if there was no answer,
 *         `KVF_ERR_PEER_LOST` if there will be none: then no outcome is known, and the client is of
 *         no use any more. `KVF_ERR_NOT_FOUND` also if the session has ended: nothing that it held
 *         is its own any more. Any thread.
 */
KVF_MUST_USE
kvf_status kvf_pool_client_run(kvf_pool_client client,
                               kvf_pool_op *ops,
                               size_t len,
                               uint8_t stop_on_error);

/**
 * The numbers of the server and of all its pools, as text for Prometheus. Any thread.
 *
 * @param text  Free with `kvf_buffer_free()`.
 */
KVF_MUST_USE
kvf_status kvf_pool_client_metrics(kvf_pool_client client,
                                   kvf_buffer *text);

/** Tells the server to answer what is in flight and to end. Any thread. */
KVF_MUST_USE
kvf_status kvf_pool_client_shutdown_server(kvf_pool_client client);

/* ==== What there is to work with ============================================================== */

/**
 * Looks for NIXL as an agent would, and tells in JSON what was found and where was looked: keys
 * `path`, `found_by`, `version`, `plugin_dir` (text, or null for what is not known), `tried` (an
 * array of `place`, `path`, `outcome`) and `error` (null, or why there is no library). It opens
 * a library that it finds, as the first agent does, and that one stays in the process. Any
 * thread.
 *
 * @param library  Path of `libnixl_capi.so`; NULL searches, as `kvf_agent_options.nixl_library`
 *                 says.
 * @param json     Receives text; free with `kvf_buffer_free()`.
 * @return `KVF_OK` whether or not there is a NIXL.
 */
KVF_MUST_USE
kvf_status kvf_nixl_probe(const char *library,
                          kvf_buffer *json);

/* ==== Defaults of the option structs ========================================================== */

/** Options for kvf_agent_create(): all defaults. Set `name` and `transport`. Any thread. */
static inline kvf_agent_options kvf_agent_options_default(void) {
  kvf_agent_options options;
  memset(&options, 0, sizeof options);
  options.struct_size = (uint32_t)sizeof options;
  return options;
}

/** Options for kvf_transfer_make() and kvf_transfer_create(): all defaults. Any thread. */
static inline kvf_transfer_options kvf_transfer_options_default(void) {
  kvf_transfer_options options;
  memset(&options, 0, sizeof options);
  options.struct_size = (uint32_t)sizeof options;
  return options;
}

/** Options for kvf_layout_create(): all defaults. Set `parallel`, groups and layers. Any thread. */
static inline kvf_layout_options kvf_layout_options_default(void) {
  kvf_layout_options options;
  memset(&options, 0, sizeof options);
  options.struct_size = (uint32_t)sizeof options;
  return options;
}

/** Options for kvf_plan_build(): all defaults. Any thread. */
static inline kvf_plan_options kvf_plan_options_default(void) {
  kvf_plan_options options;
  memset(&options, 0, sizeof options);
  options.struct_size = (uint32_t)sizeof options;
  return options;
}

/** For kvf_plan_create(): nothing yet. Any thread. */
static inline kvf_plan_custom kvf_plan_custom_default(void) {
  kvf_plan_custom custom;
  memset(&custom, 0, sizeof custom);
  custom.struct_size = (uint32_t)sizeof custom;
  return custom;
}

/** Options for kvf_queue_create(): all defaults. Any thread. */
static inline kvf_queue_options kvf_queue_options_default(void) {
  kvf_queue_options options;
  memset(&options, 0, sizeof options);
  options.struct_size = (uint32_t)sizeof options;
  return options;
}

/** For kvf_queue_submit(): nothing yet. Set `plan`, `agents` and `groups`. Any thread. */
static inline kvf_submission kvf_submission_default(void) {
  kvf_submission submission;
  memset(&submission, 0, sizeof submission);
  submission.struct_size = (uint32_t)sizeof submission;
  return submission;
}

/** Options for kvf_scheduler_create(): all defaults. Set `engine_id`, `host` and `groups`. Any
 *  thread. */
static inline kvf_scheduler_options kvf_scheduler_options_default(void) {
  kvf_scheduler_options options;
  memset(&options, 0, sizeof options);
  options.struct_size = (uint32_t)sizeof options;
  return options;
}

/** Options for kvf_side_channel_listen(): all defaults. Any thread. */
static inline kvf_side_channel_options kvf_side_channel_options_default(void) {
  kvf_side_channel_options options;
  memset(&options, 0, sizeof options);
  options.struct_size = (uint32_t)sizeof options;
  return options;
}

/** A KV cache for the connector: nothing yet. Any thread. */
static inline kvf_kv_cache kvf_kv_cache_default(void) {
  kvf_kv_cache cache;
  memset(&cache, 0, sizeof cache);
  cache.struct_size = (uint32_t)sizeof cache;
  return cache;
}

/** Options for kvf_worker_create(): all defaults. Set `agent` and `engine_id`. Any thread. */
static inline kvf_worker_options kvf_worker_options_default(void) {
  kvf_worker_options options;
  memset(&options, 0, sizeof options);
  options.struct_size = (uint32_t)sizeof options;
  return options;
}

/** Options for kvf_block_pool_create(): all defaults. Set `blocks`. Any thread. */
static inline kvf_block_pool_options kvf_block_pool_options_default(void) {
  kvf_block_pool_options options;
  memset(&options, 0, sizeof options);
  options.struct_size = (uint32_t)sizeof options;
  return options;
}

/** Options for kvf_pool_client_connect(): all defaults. Any thread. */
static inline kvf_pool_client_options kvf_pool_client_options_default(void) {
  kvf_pool_client_options options;
  memset(&options, 0, sizeof options);
  options.struct_size = (uint32_t)sizeof options;
  return options;
}

#ifdef __cplusplus
}
#endif

#endif /* KVFERRY_H */
