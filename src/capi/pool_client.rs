//! Block pool in a server: the operations of a pool as structs, many to a round trip.

use std::ffi::c_char;
use std::sync::Arc;
use std::time::Duration;

use once_cell::sync::Lazy;

use super::block_cache::{
    cached_blocks, cached_part, event_list, hash_bytes, kvf_block_event_list, kvf_block_key,
    kvf_cached_blocks, kvf_cached_part, write_keys,
};
use super::block_pool::{
    inputs, kvf_block_pool_options, kvf_block_pool_stats, outputs, pool_options,
};
use super::guard::guard;
use super::handle::Table;
use super::input::{Plain, bounded, flag, nonzero, opt_text, options, out, slice};
use super::logging;
use super::output::{self, kvf_buffer};
use super::status::{KVF_OK, kvf_status};
use crate::block_pool::{CacheFull, Stored};
use crate::error::{Error, Result, Status, bail};
use crate::pool_client::{ClientOptions, PoolClient, unexpected};
use crate::pool_server::wire;
use crate::pool_server::wire::operation::Kind;
use crate::pool_server::wire::reply::Result as Answer;
use crate::pool_server::{content, event_batch, pool_stats};

/// A connection to a `kv_cache_server`, and a session there. All zero is the null handle.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct kvf_pool_client {
    /// Opaque. Zero is null.
    pub id: u64,
}

/// How to connect. Start from `kvf_pool_client_options_default()`; zero is the default of every
/// field.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_pool_client_options {
    /// `sizeof(kvf_pool_client_options)`.
    pub struct_size: u32,
    /// 1: the events of the pool that is made are published by the server, not kept for
    /// `KVF_POOL_OP_TAKE_EVENTS`.
    pub publish: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// `ipc://FILE` or `tcp://HOST:PORT`; NULL is `ipc:///tmp/kv_cache.sock`.
    pub address: *const c_char,
    /// The pool's name; NULL is the one that the server was started with.
    pub pool: *const c_char,
    /// The session's name; NULL is one that nobody else has. Whoever gives the name of a session
    /// that is alive goes on with it, and with what it holds.
    pub session: *const c_char,
    /// The pool to make if there is none of that name (one with other options is
    /// `KVF_ERR_MISMATCH`); it ends with the last session that has opened it. NULL: it must be
    /// there.
    pub create: *const kvf_block_pool_options,
    /// How long a call may take, in milliseconds; 0 is 10,000.
    pub timeout_ms: u64,
    /// How long the server keeps what a silent client holds, in milliseconds; 0 is the server's
    /// default. A client is not silent while its process runs: a thread of its own sees to that.
    pub session_timeout_ms: u64,
}

// SAFETY: integers and raw pointers only.
unsafe impl Plain for kvf_pool_client_options {
    const FIRST_SIZE: usize = 56;
}

/// Nothing; `value` receives a number that differs between two runs of the server.
pub const KVF_POOL_OP_PING: u32 = 1;
/// Allocates `count` blocks (with `after`, if it is not 0) into `out`, for `request` if there is
/// one: then 0 is the last block of that.
pub const KVF_POOL_OP_ALLOCATE: u32 = 2;
/// The same; `count` is how many `request` is to have, with those that it has.
pub const KVF_POOL_OP_ALLOCATE_UP_TO: u32 = 3;
/// Gives back all blocks of `request`, the last one first; `value` receives their number.
pub const KVF_POOL_OP_FREE_REQUEST: u32 = 4;
/// As `kvf_block_pool_free()`: `ids`, which belong to no request.
pub const KVF_POOL_OP_FREE: u32 = 5;
/// As `kvf_block_pool_unpin()`.
pub const KVF_POOL_OP_UNPIN: u32 = 6;
/// As `kvf_block_pool_touch()`, for `request` if there is one.
pub const KVF_POOL_OP_TOUCH: u32 = 7;
/// As `kvf_block_pool_lookup()`: `hash_count` hashes in `groups`. `out` receives the blocks,
/// `value` the number of hashes found.
pub const KVF_POOL_OP_LOOKUP: u32 = 8;
/// The same, and what is found is touched, for `request` if there is one.
pub const KVF_POOL_OP_ACQUIRE: u32 = 9;
/// As `kvf_block_pool_cache()`: `cached`.
pub const KVF_POOL_OP_CACHE: u32 = 10;
/// As `kvf_block_pool_cache_partial()`: `part`.
pub const KVF_POOL_OP_CACHE_PARTIAL: u32 = 11;
/// As `kvf_block_pool_announce()`: `cached`.
pub const KVF_POOL_OP_ANNOUNCE: u32 = 12;
/// As `kvf_block_pool_move_keys()`: from `ids[0]` to `ids[1]`.
pub const KVF_POOL_OP_MOVE_KEYS: u32 = 13;
/// As `kvf_block_pool_evict()`: `ids`.
pub const KVF_POOL_OP_EVICT: u32 = 14;
/// As `kvf_block_pool_reset()`; `value` receives 1, or 0 if a block is held by anybody.
pub const KVF_POOL_OP_RESET: u32 = 15;
/// How many times each of `ids` is held, by whomever, into `out`.
pub const KVF_POOL_OP_REF_COUNTS: u32 = 16;
/// As `kvf_block_pool_is_writable()`, of each of `ids`: 1 or 0 into `out`.
pub const KVF_POOL_OP_WRITABLE: u32 = 17;
/// `value` receives the number of free blocks.
pub const KVF_POOL_OP_NUM_FREE: u32 = 18;
/// As `kvf_block_pool_free_blocks()`: `out`, as many as it has room for; `value` receives how many
/// there are.
pub const KVF_POOL_OP_FREE_BLOCKS: u32 = 19;
/// As `kvf_block_pool_take_reused()`: `out`, as many as it has room for.
pub const KVF_POOL_OP_TAKE_REUSED: u32 = 20;
/// The keys of `ids[0]`: the first `keys_capacity` into `keys`, their number into `value`, the
/// tokens of the primary one into `tokens`.
pub const KVF_POOL_OP_KEYS: u32 = 21;
/// As `kvf_block_pool_stats_get()`: `stats`.
pub const KVF_POOL_OP_STATS: u32 = 22;
/// As `kvf_block_pool_take_events()`: `events`, of a pool whose events are not published.
pub const KVF_POOL_OP_TAKE_EVENTS: u32 = 23;

/// One operation and its outcome, for `kvf_pool_client_run()`. Zero the struct, and set `kind` and
/// what the kind needs; `KVF_POOL_OP_…` says which fields those are. Pointers that it does not
/// need are not looked at.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_pool_op {
    /// `KVF_POOL_OP_…`.
    pub kind: u32,
    /// Receives the outcome. `KVF_ERR_CANCELED`: not carried out, because one before it failed.
    pub status: i32,
    /// The engine's request that the blocks are for, a name of up to 256 bytes; NULL for none.
    pub request: *const c_char,
    /// How many blocks.
    pub count: u32,
    /// The last block of a request that grows, or 0.
    pub after: u32,
    /// Blocks to work on.
    pub ids: *const u32,
    /// Their number.
    pub ids_len: usize,
    /// Hashes, one after the other.
    pub hashes: *const u8,
    /// Length of one in bytes.
    pub hash_len: usize,
    /// Their number.
    pub hash_count: usize,
    /// Groups to look in.
    pub groups: *const u32,
    /// Their number.
    pub groups_len: usize,
    /// Blocks to be cached or announced.
    pub cached: *const kvf_cached_blocks,
    /// A part to be cached.
    pub part: *const kvf_cached_part,
    /// Receives block ids, or other numbers of 32 bits.
    pub out: *mut u32,
    /// How many fit there.
    pub out_capacity: usize,
    /// Receives how many were written.
    pub out_len: usize,
    /// Receives a number.
    pub value: u64,
    /// Receives keys.
    pub keys: *mut kvf_block_key,
    /// How many fit there.
    pub keys_capacity: usize,
    /// Receives the pool's numbers.
    pub stats: *mut kvf_block_pool_stats,
    /// Receives events; free them with `kvf_block_event_list_free()`.
    pub events: *mut kvf_block_event_list,
    /// Receives the tokens of the primary key; 0 if there is none.
    pub tokens: u32,
    /// Zero.
    pub reserved: u32,
    /// Receives what was wrong, cut to fit and NUL-terminated; empty if nothing was.
    pub message: [c_char; 160],
}

static CLIENTS: Lazy<Table<PoolClient>> = Lazy::new(|| Table::new(10, "pool client"));

/// Connects to a server, opens a session, and makes or joins a pool. Any thread.
///
/// @param options  May be NULL.
/// @param client   Receives the handle; end it with `kvf_pool_client_close()`.
/// @return `KVF_ERR_TIMEOUT` if nobody answers, `KVF_ERR_PEER_LOST` if the server ends meanwhile;
///         `KVF_ERR_NOT_FOUND` if there is no such pool, and none to make.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_pool_client_connect(
    options: *const kvf_pool_client_options,
    client: *mut kvf_pool_client,
) -> kvf_status {
    guard(|| {
        logging::init();
        // SAFETY: the caller's contract, here and in every block below of this file.
        let (options, client) = unsafe { (client_options(options)?, out(client, "client")?) };
        let made = Arc::new(PoolClient::connect(&options)?);
        client.write(kvf_pool_client {
            id: CLIENTS.insert(made)?,
        });
        Ok(())
    })
}

/// Ends the session, with which everything that it holds goes back, and the handle. Any thread.
///
/// @return `KVF_ERR_TIMEOUT` or `KVF_ERR_PEER_LOST` if the server does not answer; the handle has
///         ended all the same, and the server takes everything back by itself.
#[unsafe(no_mangle)]
pub extern "C" fn kvf_pool_client_close(client: kvf_pool_client) -> kvf_status {
    guard(|| CLIENTS.remove(client.id)?.close())
}

/// Carries out operations, in their order and in one round trip, with nobody else's between them.
/// Each is all or nothing by itself; one that fails does not undo those before it.
///
/// @param ops            `len` operations, at most 4,096. Their outcomes are written into them.
/// @param stop_on_error  1: those behind one that failed are not carried out.
/// @return The status of the first operation that failed. `KVF_ERR_TIMEOUT` if there was no answer,
///         `KVF_ERR_PEER_LOST` if there will be none: then no outcome is known, and the client is of
///         no use any more. `KVF_ERR_NOT_FOUND` also if the session has ended: nothing that it held
///         is its own any more. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_pool_client_run(
    client: kvf_pool_client,
    ops: *mut kvf_pool_op,
    len: usize,
    stop_on_error: u8,
) -> kvf_status {
    guard(|| {
        let stop = flag(stop_on_error, "stop_on_error")?;
        let client = CLIENTS.get(client.id)?;
        // SAFETY: the caller's contract; the first slice is for its checks.
        let ops = unsafe {
            if bounded(ops.cast_const(), len, MAX_OPS, "ops")?.is_empty() {
                return Ok(());
            }
            std::slice::from_raw_parts_mut(ops, len)
        };
        let mut kinds = Vec::with_capacity(len);
        for (i, op) in ops.iter().enumerate() {
            // SAFETY: the caller's contract.
            let kind = unsafe { request(op) };
            kinds.push(kind.map_err(|e| e.context(format_args!("ops[{i}]")))?);
        }
        let outcomes = client.batch(kinds, stop)?;
        let mut first = Ok(());
        for (op, outcome) in ops.iter_mut().zip(outcomes) {
            // SAFETY: the caller's contract.
            let outcome = outcome.and_then(|answer| unsafe { deliver(op, answer) });
            op.status = outcome
                .as_ref()
                .err()
                .map_or(KVF_OK, |e| e.status() as kvf_status);
            set_message(op, outcome.as_ref().err().map_or("", Error::message));
            if first.is_ok() {
                first = outcome;
            }
        }
        first
    })
}

/// The numbers of the server and of all its pools, as text for Prometheus. Any thread.
///
/// @param text  Free with `kvf_buffer_free()`.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_pool_client_metrics(
    client: kvf_pool_client,
    text: *mut kvf_buffer,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let text = unsafe { out(text, "text") }?;
        let asked = Kind::GetMetrics(wire::GetMetrics {});
        let Answer::Metrics(metrics) = CLIENTS.get(client.id)?.call(asked)? else {
            return Err(unexpected());
        };
        text.write(output::buffer(metrics.text));
        Ok(())
    })
}

/// Tells the server to answer what is in flight and to end. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn kvf_pool_client_shutdown_server(client: kvf_pool_client) -> kvf_status {
    guard(|| {
        let asked = Kind::Shutdown(wire::Shutdown {});
        CLIENTS.get(client.id)?.call(asked).map(drop)
    })
}

/// As many as a batch can have.
const MAX_OPS: usize = crate::pool_server::MAX_BATCH;

/// # Safety
/// As for [`options`], and what it points to is valid.
unsafe fn client_options(ptr: *const kvf_pool_client_options) -> Result<ClientOptions> {
    // SAFETY: by contract, here and below.
    let o = unsafe { options(ptr, "options") }?;
    if o.reserved != [0; 3] {
        return Err(Error::invalid("options.reserved is not zero"));
    }
    let defaults = ClientOptions::default();
    let text = |ptr, what, default| {
        // SAFETY: by contract.
        let text = unsafe { opt_text(ptr, what) }?;
        Ok::<_, Error>(text.map_or(default, str::to_owned))
    };
    let create = match o.create.is_null() {
        true => None,
        // SAFETY: by contract.
        false => Some(unsafe { pool_options(o.create) }?),
    };
    Ok(ClientOptions {
        address: text(o.address, "options.address", defaults.address)?,
        pool: text(o.pool, "options.pool", String::new())?,
        session: text(o.session, "options.session", String::new())?,
        create,
        publish: flag(o.publish, "options.publish")?,
        timeout: nonzero(o.timeout_ms).map_or(defaults.timeout, Duration::from_millis),
        session_timeout: Duration::from_millis(o.session_timeout_ms),
    })
}

/// What to send for an operation. Where its results go is checked too, so that nothing is carried out
/// that could not be delivered.
///
/// # Safety
/// All that the kind needs is valid.
unsafe fn request(op: &kvf_pool_op) -> Result<Kind> {
    if op.reserved != 0 {
        return Err(Error::invalid("reserved is not zero"));
    }
    // SAFETY: by contract, here and below.
    let ids = || unsafe { inputs(op.ids, op.ids_len, "ids") }.map(<[u32]>::to_vec);
    let request = || {
        // SAFETY: by contract.
        let text = unsafe { opt_text(op.request, "request") }?;
        Ok::<_, Error>(text.unwrap_or_default().to_owned())
    };
    let room = |needed: usize| {
        // SAFETY: by contract.
        unsafe { outputs(op.out, op.out_capacity, "out") }?;
        if op.out_capacity < needed {
            bail!(
                Status::InvalidArgument,
                "out has room for {}, and may get {needed}",
                op.out_capacity
            );
        }
        Ok(())
    };
    Ok(match op.kind {
        KVF_POOL_OP_PING => Kind::Ping(wire::Ping::default()),
        KVF_POOL_OP_ALLOCATE | KVF_POOL_OP_ALLOCATE_UP_TO => {
            room(op.count as usize)?;
            Kind::Allocate(wire::Allocate {
                request_id: request()?,
                num_blocks: op.count,
                after: op.after,
                up_to: op.kind == KVF_POOL_OP_ALLOCATE_UP_TO,
            })
        }
        KVF_POOL_OP_FREE_REQUEST => Kind::Free(wire::Free {
            request_id: request()?,
        }),
        KVF_POOL_OP_FREE | KVF_POOL_OP_UNPIN => Kind::FreeBlocksById(wire::FreeBlocksById {
            block_ids: ids()?,
            unpin: op.kind == KVF_POOL_OP_UNPIN,
        }),
        KVF_POOL_OP_TOUCH => Kind::Touch(wire::Touch {
            block_ids: ids()?,
            request_id: request()?,
        }),
        KVF_POOL_OP_LOOKUP | KVF_POOL_OP_ACQUIRE => {
            room(op.hash_count.saturating_mul(op.groups_len))?;
            // SAFETY: by contract.
            let (hashes, groups) = unsafe {
                (
                    hash_bytes(op.hashes, op.hash_len, op.hash_count)?,
                    inputs(op.groups, op.groups_len, "groups")?,
                )
            };
            if groups.is_empty() {
                // On the wire, none means group 0.
                return Err(Error::invalid("no groups to look in"));
            }
            Kind::GetCachedBlock(Box::new(wire::GetCachedBlock {
                hashes: hashes.to_vec(),
                hash_length: op.hash_len as u32,
                groups: groups.to_vec(),
                touch: op.kind == KVF_POOL_OP_ACQUIRE,
                request_id: request()?,
            }))
        }
        KVF_POOL_OP_CACHE => {
            // SAFETY: by contract.
            let (o, what) = unsafe { cached_blocks(op.cached) }?;
            // SAFETY: by contract.
            let blocks = unsafe { inputs(o.blocks, o.len, "cached->blocks") }?;
            Kind::CacheFullBlocks(Box::new(wire::CacheFullBlocks {
                block_ids: blocks.to_vec(),
                content: Some(content(&described(&what))),
                first: what.first,
                mask: what.mask.to_vec(),
            }))
        }
        KVF_POOL_OP_CACHE_PARTIAL => {
            // SAFETY: by contract.
            let what = unsafe { cached_part(op.part) }?;
            Kind::CachePartialBlock(Box::new(wire::CachePartialBlock {
                block_id: what.block,
                content: Some(content(&Stored {
                    hashes: what.hash,
                    hash_len: what.hash.len(),
                    parent: what.parent,
                    tokens: what.tokens,
                    block_size: what.block_size,
                    group: what.group,
                    tag: what.tag,
                })),
                num_tokens: what.num_tokens,
                replace: what.replace,
            }))
        }
        KVF_POOL_OP_ANNOUNCE => {
            // SAFETY: by contract.
            let (_, what) = unsafe { cached_blocks(op.cached) }?;
            Kind::AnnounceBlocks(Box::new(wire::AnnounceBlocks {
                content: Some(content(&described(&what))),
            }))
        }
        KVF_POOL_OP_MOVE_KEYS => match ids()?[..] {
            [from, to] => Kind::MoveBlockHashes(wire::MoveBlockHashes { from, to }),
            _ => {
                return Err(Error::invalid(format!(
                    "ids has {} blocks; from and to are two",
                    op.ids_len
                )));
            }
        },
        KVF_POOL_OP_EVICT => Kind::EvictBlocks(wire::EvictBlocks { block_ids: ids()? }),
        KVF_POOL_OP_RESET => Kind::ResetPrefixCache(wire::ResetPrefixCache {}),
        KVF_POOL_OP_REF_COUNTS | KVF_POOL_OP_WRITABLE => {
            room(op.ids_len)?;
            let ids = ids()?;
            if op.kind == KVF_POOL_OP_REF_COUNTS && ids.contains(&0) {
                return Err(Error::invalid(
                    "block 0 is the null block, which nobody holds",
                ));
            }
            Kind::GetBlocks(wire::GetBlocks {
                block_ids: ids,
                keys: false,
            })
        }
        KVF_POOL_OP_NUM_FREE => Kind::GetStats(wire::GetStats {}),
        KVF_POOL_OP_FREE_BLOCKS => {
            room(0)?;
            // Without room it asks for the number only; 0 would be all.
            Kind::GetAllFreeBlocks(wire::GetAllFreeBlocks {
                limit: limit(op.out_capacity).max(1),
            })
        }
        KVF_POOL_OP_TAKE_REUSED => {
            // With no room, all would be taken and none delivered.
            room(1)?;
            Kind::TakeReused(wire::TakeReused {
                limit: limit(op.out_capacity),
            })
        }
        KVF_POOL_OP_KEYS => {
            let block_ids = ids()?;
            if block_ids.len() != 1 {
                return Err(Error::invalid(format!(
                    "ids has {} blocks; the keys of one can be had",
                    op.ids_len
                )));
            }
            // SAFETY: by contract; the slice is for its checks.
            unsafe { slice(op.keys.cast_const(), op.keys_capacity, "keys") }?;
            Kind::GetBlocks(wire::GetBlocks {
                block_ids,
                keys: true,
            })
        }
        KVF_POOL_OP_STATS => {
            // SAFETY: by contract.
            unsafe { out(op.stats, "stats") }?;
            Kind::GetStats(wire::GetStats {})
        }
        KVF_POOL_OP_TAKE_EVENTS => {
            // SAFETY: by contract.
            unsafe { out(op.events, "events") }?;
            Kind::TakeEvents(wire::TakeEvents {})
        }
        other => {
            return Err(Error::invalid(format!("kind is {other}; it is 1 to 23")));
        }
    })
}

/// Writes what came back to where it belongs.
///
/// # Safety
/// `op` has passed [`request`].
unsafe fn deliver(op: &mut kvf_pool_op, answer: Answer) -> Result<()> {
    match answer {
        Answer::Done(_) => {}
        Answer::Pong(pong) => op.value = pong.epoch,
        Answer::Freed(freed) => op.value = freed.num_blocks,
        Answer::Reset(reset) => op.value = reset.done.into(),
        Answer::Blocks(blocks) => {
            op.value = blocks.total.into();
            let mut ids = blocks.block_ids;
            if op.kind == KVF_POOL_OP_FREE_BLOCKS {
                ids.truncate(op.out_capacity);
            }
            // SAFETY: by contract.
            unsafe { deliver_ids(op, &ids) }?;
        }
        Answer::CachedBlocks(found) => {
            op.value = found.num_hashes.into();
            // SAFETY: by contract.
            unsafe { deliver_ids(op, &found.block_ids) }?;
        }
        // SAFETY: by contract.
        Answer::BlockStates(states) => unsafe { deliver_states(op, states.blocks) }?,
        Answer::Stats(stats) if op.kind == KVF_POOL_OP_NUM_FREE => op.value = stats.free,
        Answer::Stats(stats) if op.kind == KVF_POOL_OP_STATS => {
            // SAFETY: by contract.
            unsafe { out(op.stats, "stats") }?.write(pool_stats(&stats).into());
        }
        Answer::Events(events) if op.kind == KVF_POOL_OP_TAKE_EVENTS => {
            // SAFETY: by contract.
            unsafe { out(op.events, "events") }?.write(event_list(event_batch(&events)));
        }
        _ => return Err(unexpected()),
    }
    Ok(())
}

/// # Safety
/// `op` has passed [`request`].
unsafe fn deliver_ids(op: &mut kvf_pool_op, ids: &[u32]) -> Result<()> {
    // SAFETY: by contract.
    let out = unsafe { outputs(op.out, op.out_capacity, "out") }?;
    let Some(out) = out.get_mut(..ids.len()) else {
        bail!(
            Status::PeerIncompatible,
            "the server sent {} blocks where {} were asked for",
            ids.len(),
            op.out_capacity
        );
    };
    out.copy_from_slice(ids);
    op.out_len = ids.len();
    Ok(())
}

/// # Safety
/// `op` has passed [`request`].
unsafe fn deliver_states(op: &mut kvf_pool_op, states: Vec<wire::BlockState>) -> Result<()> {
    if states.len() != op.ids_len {
        return Err(unexpected());
    }
    if op.kind != KVF_POOL_OP_KEYS {
        let count = |s: &wire::BlockState| match op.kind {
            KVF_POOL_OP_WRITABLE => s.writable.into(),
            _ => s.ref_count,
        };
        let counts: Vec<u32> = states.iter().map(count).collect();
        // SAFETY: by contract.
        return unsafe { deliver_ids(op, &counts) };
    }
    let Some(state) = states.into_iter().next() else {
        return Err(unexpected());
    };
    op.value = state.keys.len() as u64;
    op.tokens = state.cached_tokens.unwrap_or(0);
    let keys = state.keys.iter().map(|k| (&k.hash[..], k.group));
    // SAFETY: by contract.
    unsafe { write_keys(op.keys, op.keys_capacity, keys) };
    Ok(())
}

/// The part of a caching call that an event has, too.
fn described<'a>(what: &CacheFull<'a>) -> Stored<'a> {
    Stored {
        hashes: what.hashes,
        hash_len: what.hash_len,
        parent: what.parent,
        tokens: what.tokens,
        block_size: what.block_size,
        group: what.group,
        tag: what.tag,
    }
}

/// A number of blocks for the wire; more than there can be is as good as all.
fn limit(capacity: usize) -> u32 {
    u32::try_from(capacity).unwrap_or(u32::MAX)
}

/// Text into the operation, cut between two characters if it is long.
fn set_message(op: &mut kvf_pool_op, text: &str) {
    let mut end = text.len().min(op.message.len() - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    op.message = [0; 160];
    for (slot, byte) in op.message.iter_mut().zip(text[..end].bytes()) {
        *slot = byte as c_char;
    }
}
