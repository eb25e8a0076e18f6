// kvferry.hpp - kvferry for C++17: header only, on top of kvferry.h and the standard library.
//
// Licensed under the Apache License, Version 2.0.
//
//   kvferry::agent         one rank's endpoint                       kvferry/agent.hpp
//   kvferry::desc_list     ranges prepared for picking by index      kvferry/transfer.hpp
//   kvferry::transfer      one transfer: post, wait, cancel          kvferry/transfer.hpp
//   kvferry::layout        one rank's KV cache as data               kvferry/layout.hpp
//   kvferry::plan          which bytes of which rank go where        kvferry/plan.hpp
//   kvferry::queue         moves them in the background              kvferry/queue.hpp
//   kvferry::scheduler     connector: what is fetched and kept       kvferry/scheduler.hpp
//   kvferry::worker        connector: one rank's transfers, leases   kvferry/worker.hpp
//   kvferry::kv_cache      describes a rank's cache to its worker    kvferry/kv_cache.hpp
//   kvferry::pool_client   a block pool in a server                  kvferry/pool_client.hpp
//   kvferry::side_channel  hands metadata to peers                   kvferry/side_channel.hpp
//   kvferry::block_pool    blocks, and where known prefixes are      kvferry/block_pool.hpp
//
// OWNERSHIP  Each object owns one handle, can be moved and not copied, and ends what it owns in its
//            destructor. A default-made or moved-from object is empty; using it is an error of
//            status invalid_handle, not undefined. An agent ends its lists and transfers: their
//            objects may outlive it, and then are stale.
//
// ERRORS     Every operation comes twice. `x()` returns what it gives and throws kvferry::error,
//            which has a status and the library's message. `try_x()` does not throw: it returns a
//            kvferry::result, which holds a value or a kvferry::failure. With -fno-exceptions only
//            the second kind is declared. (Running out of memory is std::bad_alloc in both.)
//
// INPUTS     Arrays are kvferry::span, which is std::span where there is one and else a small class
//            like it; vectors, arrays and C arrays convert. Bytes are kvferry::byte_view, which
//            takes strings and vectors. All are borrowed for the call.
//
// THREADS    As in C: any object may be used from any thread at any time. What C++ adds is that
//            moving from, assigning to and destroying an object must not happen while another thread
//            uses it. (layout_builder is plain data: one thread at a time.)
#ifndef KVFERRY_HPP
#define KVFERRY_HPP

#include "kvferry/agent.hpp"
#include "kvferry/block_pool.hpp"
#include "kvferry/kv_cache.hpp"
#include "kvferry/layout.hpp"
#include "kvferry/library.hpp"
#include "kvferry/plan.hpp"
#include "kvferry/pool_client.hpp"
#include "kvferry/queue.hpp"
#include "kvferry/result.hpp"
#include "kvferry/scheduler.hpp"
#include "kvferry/side_channel.hpp"
#include "kvferry/transfer.hpp"
#include "kvferry/views.hpp"
#include "kvferry/worker.hpp"

#endif
