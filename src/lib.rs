//! kvferry moves the KV cache of large language models between inference engines.
//!
//! | room | what it is |
//! |---|---|
//! | [`error`] | statuses and messages |
//! | [`memory`] | memory kinds and descriptors: the words that all rooms share |
//! | [`layout`] | geometry of one rank's KV cache: regions, groups, parts |
//! | [`plan`] | who copies which bytes from whom: two layouts into lanes, block ids into ranges |
//! | [`transport`] | moving bytes: the trait, NIXL, and the built-in one for a single host |
//! | [`agent`] | one rank's endpoint: registrations, remote agents, notifications, direct transfers |
//! | [`queue`] | the background thread: plan and block ids in, completions out |
//! | [`connector`] | the request-level protocol between prefill and decode engines: scheduler half, worker half |
//! | [`side_channel`] | metadata exchange before any transport connects two agents |
//! | [`block_pool`] | blocks, reference counts, eviction order, prefix index; stands alone |
//! | [`pool_server`] | what `kv_cache_server` does with a message: sessions, requests, events, numbers |
//! | [`pool_client`] | the other end: a pool in a server as if it were in the process |
//! | [`capi`] | the C boundary; everything in `kvferry.h` |
//!
//! Arrows go one way: `capi` to `connector` to `queue` to `agent` to `transport`, `queue` to the pure rooms
//! `plan` and `layout`, `connector` to `side_channel`, `capi` to `pool_client` to `pool_server` to
//! `block_pool`, and from all of them to the words.

pub mod agent;
pub mod block_pool;
pub mod capi;
mod checksum;
mod clock;
pub mod connector;
pub mod error;
mod event;
pub mod layout;
mod mapped;
pub mod memory;
mod msgpack;
pub mod plan;
pub mod pool_client;
pub mod pool_server;
pub mod queue;
pub mod side_channel;
mod sync;
mod threads;
pub mod transport;
mod varint;
