//! Connector, scheduler half: one engine's books of what is fetched from whom and kept for whom.

use std::ffi::c_char;
use std::sync::Arc;
use std::time::Duration;

use once_cell::sync::Lazy;

use super::guard::guard;
use super::handle::Table;
use super::input::{
    Plain, bounded, flag, nonzero, opt_out, options, out, slice, text, texts_up_to,
};
use super::logging;
use super::output::{self, kvf_buffer};
use super::side_channel::{kvf_rank_payload, rank_payloads};
use super::status::kvf_status;
use crate::connector::Mode;
use crate::connector::params::MAX_JSON;
use crate::connector::scheduler::{
    Finish, RequestBlocks, Scheduler, SchedulerOptions, TransferGroup,
};
use crate::error::{Error, Result};
use crate::layout::{GroupKind, MAX_GROUPS};

/// The consumer reads from the producer.
pub const KVF_MODE_PULL: u32 = 0;
/// The producer writes to the consumer.
pub const KVF_MODE_PUSH: u32 = 1;

/// The request has as many tokens as it may have.
pub const KVF_FINISH_LENGTH: u32 = 0;
/// A stop token or string has ended it.
pub const KVF_FINISH_STOP: u32 = 1;
/// Its client is gone.
pub const KVF_FINISH_ABORT: u32 = 2;
/// It failed.
pub const KVF_FINISH_ERROR: u32 = 3;

/// The blocks can be freed now.
pub const KVF_KEEP_NO: u32 = 0;
/// The blocks are kept for a reader until the request is reported as sent.
pub const KVF_KEEP_UNTIL_SENT: u32 = 1;
/// The blocks may be written to until the request is reported as received.
pub const KVF_KEEP_UNTIL_RECEIVED: u32 = 2;

/// The request does not read the prefix cache (it asks for prompt log-probabilities, for one): its
/// consumer will compute the whole prompt, so that the producer leaves nothing out.
pub const KVF_ADD_NO_PREFIX_CACHE: u32 = 1;

/// The scheduler half of a connector. All zero is the null handle.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct kvf_scheduler {
    /// Opaque. Zero is null.
    pub id: u64,
}

/// A group of layers with a block table of its own, whose blocks are exchanged.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct kvf_transfer_group {
    /// A KVF_GROUP_... value.
    pub kind: u32,
    /// Tokens of one block; may be 0 for state groups.
    pub tokens_per_block: u32,
    /// `KVF_GROUP_SLIDING_WINDOW`: tokens that the window reaches back.
    pub window: u32,
    /// `KVF_GROUP_STATE`: slots at the end of a request's list that only hold drafts.
    pub scratch_blocks: u32,
}

/// How a scheduler half works. Start from `kvf_scheduler_options_default()` and set `engine_id`,
/// `host` and `groups`; zero is the default of every other field. The defaults are those of vLLM.
/// Both sides of a transfer should have the same `lease_ms`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_scheduler_options {
    /// `sizeof(kvf_scheduler_options)`.
    pub struct_size: u32,
    /// A KVF_MODE_... value.
    pub mode: u32,
    /// Names this engine to others; the same in all of its ranks, best another one after a restart:
    /// stock readers tell an engine's lives apart by it.
    pub engine_id: *const c_char,
    /// Host or address under which other engines reach this one's listener, and on which it
    /// listens.
    pub host: *const c_char,
    /// The groups, in the order in which block lists are given.
    pub groups: *const kvf_transfer_group,
    /// Their number: 1 to 64.
    pub groups_len: usize,
    /// Transfer ranks: the larger of the tensor-parallel and the decode-context-parallel size. 0
    /// is 1.
    pub tp_size: u32,
    /// Pipeline stages. 0 is 1.
    pub pp_size: u32,
    /// Decode-context-parallel size. 0 is 1.
    pub dcp_size: u32,
    /// Trailing prompt tokens that a producer leaves out and the consumer computes: 1 for state
    /// models.
    pub backoff_tokens: u32,
    /// How long a producer keeps blocks for a consumer that sends no heartbeat. 0 is 30,000.
    pub lease_ms: u64,
    /// Between heartbeats. 0 is a sixth of `lease_ms`.
    pub heartbeat_ms: u64,
    /// How long a consumer keeps blocks for the next turn. 0 is 480,000.
    pub pin_ms: u64,
    /// Push: how long a consumer waits for its blocks to be written before the request fails. 0
    /// is `pin_ms`.
    pub registration_timeout_ms: u64,
    /// The least number of tokens that a next turn fetches instead of computing them. 0 is 64; 1
    /// fetches any.
    pub recompute_threshold: u64,
    /// Port of the listener; 0 lets the system choose (`kvf_scheduler_address()` tells).
    pub port: u16,
    /// 1: consumers keep finished requests' blocks, and producers fetch from them in the next
    /// turn of a conversation. Pull only.
    pub bidirectional: u8,
    /// 1: of sliding-window and state groups only the blocks that a decoder needs are exchanged.
    /// Both sides must agree; vLLM does so when its hybrid cache manager is on.
    pub clip: u8,
    /// 1: parameters state how often handshake payloads were published, as from vLLM 0.33 on.
    pub state_registrations: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

// SAFETY: integers and raw pointers only.
unsafe impl Plain for kvf_scheduler_options {
    const FIRST_SIZE: usize = 104;
}

/// Blocks of a request in one group.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_request_blocks {
    /// Block ids in the order of the request's block table.
    pub ids: *const u32,
    /// Their number.
    pub len: usize,
    /// How many blocks of the table come before the first of them.
    pub first: u32,
    /// Zero.
    pub reserved: u32,
}

/// Sizes of a scheduler half's tables. All are 0 when every request has finished and every id has
/// been reported.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct kvf_scheduler_stats {
    /// Requests that were added with parameters and have not finished.
    pub requests: u64,
    /// Requests whose KV the engine waits for, those that have ended meanwhile too.
    pub receiving: u64,
    /// Finished requests whose blocks are kept.
    pub holds: u64,
    /// Lease words in use, of 65,536.
    pub leases: u64,
    /// Requests whose leases on other engines are being extended.
    pub heartbeats: u64,
    /// Those engines.
    pub peers: u64,
    /// Zero.
    pub reserved: [u64; 2],
}

static SCHEDULERS: Lazy<Table<Scheduler>> = Lazy::new(|| Table::new(12, "scheduler"));

/// Most requests that one call reports.
const MAX_REPORTED: usize = 1 << 24;

/// Creates the scheduler half of a connector: one for each engine, in the process that schedules.
///
/// None of its functions waits for another engine or moves a byte: they keep books, and
/// `kvf_scheduler_build_step()` writes down what the workers have to do. One lock is held for the
/// few microseconds that a call takes. An id that was not added with parameters is not the
/// connector's business: its calls succeed and say that there is nothing to do.
///
/// @param scheduler  Receives the handle; end it with `kvf_scheduler_destroy()`. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_scheduler_create(
    options: *const kvf_scheduler_options,
    scheduler: *mut kvf_scheduler,
) -> kvf_status {
    guard(|| {
        logging::init();
        // SAFETY: the caller's contract, here and in every block below of this file.
        let (options, scheduler) =
            unsafe { (scheduler_options(options)?, out(scheduler, "scheduler")?) };
        let created = Scheduler::create(options)?;
        scheduler.write(kvf_scheduler {
            id: SCHEDULERS.insert(Arc::new(created))?,
        });
        Ok(())
    })
}

/// A request has entered the engine. From here on its blocks on the other engine are kept alive by
/// heartbeats, which steps carry.
///
/// @param request_id     This engine's id of it, 1 to 1,024 bytes; not one of a request that is
///                       still to be reported as received or sent.
/// @param params         Its `kv_transfer_params` as JSON, or nothing: a local request. So is one
///                       whose parameters cannot be read or lack what is needed, with a line in
///                       the log: a router's mistake costs a request its shortcut, nothing else.
/// @param prompt_tokens  Length of its prompt.
/// @param flags          0 or `KVF_ADD_NO_PREFIX_CACHE`.
/// @param drop_tokens    Receives how many trailing prompt tokens the engine has to take off the
///                       request: its consumer computes them. 0 except on producers with
///                       `backoff_tokens`. Any thread.
/// @return `KVF_ERR_INVALID_STATE` for an id that is still to be reported. Nothing has changed then.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_scheduler_add(
    scheduler: kvf_scheduler,
    request_id: *const c_char,
    params: *const u8,
    params_len: usize,
    prompt_tokens: u64,
    flags: u32,
    drop_tokens: *mut u64,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (id, params, drop_tokens) = unsafe {
            (
                text(request_id, "request_id")?,
                bounded(params, params_len, MAX_JSON, "params")?,
                out(drop_tokens, "drop_tokens")?,
            )
        };
        if flags & !KVF_ADD_NO_PREFIX_CACHE != 0 {
            return Err(Error::invalid(format!("flags {flags:#x} are not known")));
        }
        let reads_cache = flags & KVF_ADD_NO_PREFIX_CACHE == 0;
        let scheduler = SCHEDULERS.get(scheduler.id)?;
        drop_tokens.write(scheduler.add(id, params, prompt_tokens, reads_cache)?);
        Ok(())
    })
}

/// How much of a request's prompt can be loaded from another engine. May be asked any number of
/// times and changes nothing.
///
/// @param prompt_tokens    Length of its prompt.
/// @param computed_tokens  Tokens from its beginning that this engine's prefix cache has.
/// @param tokens           Receives the number of tokens after those that can be loaded. If it is
///                         not 0, the engine allocates blocks for them, calls
///                         `kvf_scheduler_allocated()`, and sets the request aside until its id is
///                         reported as received or failed. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_scheduler_match(
    scheduler: kvf_scheduler,
    request_id: *const c_char,
    prompt_tokens: u64,
    computed_tokens: u64,
    tokens: *mut u64,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (id, tokens) = unsafe { (text(request_id, "request_id")?, out(tokens, "tokens")?) };
        let scheduler = SCHEDULERS.get(scheduler.id)?;
        tokens.write(scheduler.match_tokens(id, prompt_tokens, computed_tokens));
        Ok(())
    })
}

/// A request has been given blocks. The transfer is put into the next step, once: later calls, when
/// the request is scheduled again, find it arranged. If the engine waits for nothing, because its
/// cache has the whole prompt, the producer is told that it can free its blocks.
///
/// @param groups           For each group the blocks that the prefix cache did not have, without
///                         null blocks; may be empty if `external_tokens` is 0. Of all groups
///                         together at most 1,048,576, in `kvf_scheduler_finished()` too.
/// @param external_tokens  What `kvf_scheduler_match()` said, if the engine sets the request
///                         aside; else 0.
/// @param staged           Receives 1 if the request's transfer is arranged from now on. An engine
///                         that keeps the parameters sets `do_remote_prefill` to false in them, and
///                         `_remote_blocks_processed` to true. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_scheduler_allocated(
    scheduler: kvf_scheduler,
    request_id: *const c_char,
    groups: *const kvf_request_blocks,
    groups_len: usize,
    external_tokens: u64,
    staged: *mut u8,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (id, groups, staged) = unsafe {
            (
                text(request_id, "request_id")?,
                request_blocks(groups, groups_len)?,
                out(staged, "staged")?,
            )
        };
        let scheduler = SCHEDULERS.get(scheduler.id)?;
        staged.write(scheduler.allocated(id, &groups, external_tokens)?.into());
        Ok(())
    })
}

/// Takes what the workers have to do since the last call, and gives it to none of them: hand the
/// bytes to the worker half of every rank, in this order. Call it in every engine step, also when
/// nothing runs; a step in which nothing happens has about ten bytes. None has more than 64 MiB:
/// what does not fit comes with the next.
///
/// @param step  Receives the bytes; free with `kvf_buffer_free()`. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_scheduler_build_step(
    scheduler: kvf_scheduler,
    step: *mut kvf_buffer,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let step = unsafe { out(step, "step") }?;
        let bytes = SCHEDULERS.get(scheduler.id)?.build_step();
        step.write(output::buffer(bytes));
        Ok(())
    })
}

/// Every rank has reported these requests as received, or one of them as failed and all as at rest.
/// Call it before the engine acts on the report. Unknown ids are passed over. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_scheduler_received(
    scheduler: kvf_scheduler,
    request_ids: *const *const c_char,
    request_ids_len: usize,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let ids = unsafe { reported(request_ids, request_ids_len) }?;
        SCHEDULERS.get(scheduler.id)?.received(ids);
        Ok(())
    })
}

/// Every rank has reported these requests as sent: read by their consumers, or their leases are
/// over. Their blocks can be freed. Unknown ids are passed over. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_scheduler_sent(
    scheduler: kvf_scheduler,
    request_ids: *const *const c_char,
    request_ids_len: usize,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let ids = unsafe { reported(request_ids, request_ids_len) }?;
        SCHEDULERS.get(scheduler.id)?.sent(ids);
        Ok(())
    })
}

/// A request has ended, in whatever way and at whatever stage. Call it once for each, before its
/// blocks are freed.
///
/// A producer's request that ended by itself is kept: its blocks stay as they are until every rank
/// has reported it as sent. One that is ended while its KV is being received is stopped; its blocks
/// are the engine's again when it is reported as received (failed, too). One that ends before it was
/// given blocks lets its producer go.
///
/// @param how              A KVF_FINISH_... value.
/// @param groups           All blocks of the request, for each group, that hold its first
///                         `computed_tokens` tokens, the last of them perhaps in part; may be empty
///                         for a request that has none.
/// @param computed_tokens  Tokens whose KV is in them.
/// @param keep             Receives a KVF_KEEP_... value: until when the blocks must not be freed.
/// @param params           Receives what the router has to give to the other side, as JSON; empty if
///                         nothing. Free with `kvf_buffer_free()`. May be NULL. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_scheduler_finished(
    scheduler: kvf_scheduler,
    request_id: *const c_char,
    how: u32,
    groups: *const kvf_request_blocks,
    groups_len: usize,
    computed_tokens: u64,
    keep: *mut u32,
    params: *mut kvf_buffer,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (id, groups, keep, params) = unsafe {
            (
                text(request_id, "request_id")?,
                request_blocks(groups, groups_len)?,
                out(keep, "keep")?,
                opt_out(params, "params")?,
            )
        };
        let how = finish(how)?;
        let scheduler = SCHEDULERS.get(scheduler.id)?;
        let finished = scheduler.finished(id, how, &groups, computed_tokens)?;
        keep.write(finished.keep as u32);
        if let Some(params) = params {
            params.write(output::buffer(finished.params.unwrap_or_default()));
        }
        Ok(())
    })
}

/// Starts the listener at which other engines get this engine's handshake payloads, on the options'
/// host and port, or replaces the payloads if it runs. It has a thread of its own, which tells this
/// process's clock with each answer.
///
/// @param ranks  One for each rank that takes part: its handshake payload, as the worker half gives
///               it. Copied.
/// @return `KVF_ERR_BUSY` if the port is taken. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_scheduler_serve(
    scheduler: kvf_scheduler,
    ranks: *const kvf_rank_payload,
    ranks_len: usize,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let ranks = unsafe { rank_payloads(ranks, ranks_len, "ranks") }?;
        SCHEDULERS.get(scheduler.id)?.serve(ranks)
    })
}

/// What other engines are told about where the listener is. Any thread.
///
/// @param host  Receives the host as text; free with `kvf_buffer_free()`. May be NULL.
/// @param port  Receives the port: the options', or, where that is 0, the one that the system gave
///              when the listener was started, and 0 before. May be NULL.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_scheduler_address(
    scheduler: kvf_scheduler,
    host: *mut kvf_buffer,
    port: *mut u16,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (host, port) = unsafe { (opt_out(host, "host")?, opt_out(port, "port")?) };
        let (its_host, its_port) = SCHEDULERS.get(scheduler.id)?.address();
        if let Some(host) = host {
            host.write(output::buffer(its_host));
        }
        if let Some(port) = port {
            port.write(its_port);
        }
        Ok(())
    })
}

/// Whether the engine has to go on stepping although it has no request to run: in push mode, while
/// blocks wait to be written or a registration waits to be sent. In pull mode an engine steps while
/// it keeps blocks, anyway, to hear of their end.
///
/// @param pending  Receives 1 or 0. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_scheduler_has_pending(
    scheduler: kvf_scheduler,
    pending: *mut u8,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let pending = unsafe { out(pending, "pending") }?;
        pending.write(SCHEDULERS.get(scheduler.id)?.has_pending().into());
        Ok(())
    })
}

/// Sizes of the tables. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_scheduler_stats_get(
    scheduler: kvf_scheduler,
    stats: *mut kvf_scheduler_stats,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let stats = unsafe { out(stats, "stats") }?;
        let s = SCHEDULERS.get(scheduler.id)?.stats();
        stats.write(kvf_scheduler_stats {
            requests: s.requests,
            receiving: s.receiving,
            holds: s.holds,
            leases: s.leases,
            heartbeats: s.heartbeats,
            peers: s.peers,
            reserved: [0; 2],
        });
        Ok(())
    })
}

/// Ends a scheduler half and its listener. What the workers were told goes on. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn kvf_scheduler_destroy(scheduler: kvf_scheduler) -> kvf_status {
    guard(|| {
        SCHEDULERS.remove(scheduler.id)?;
        Ok(())
    })
}

fn mode(code: u32) -> Result<Mode> {
    match code {
        KVF_MODE_PULL => Ok(Mode::Pull),
        KVF_MODE_PUSH => Ok(Mode::Push),
        _ => Err(Error::invalid(format!("options.mode {code} is not known"))),
    }
}

fn finish(code: u32) -> Result<Finish> {
    match code {
        KVF_FINISH_LENGTH => Ok(Finish::Length),
        KVF_FINISH_STOP => Ok(Finish::Stop),
        KVF_FINISH_ABORT => Ok(Finish::Abort),
        KVF_FINISH_ERROR => Ok(Finish::Error),
        _ => Err(Error::invalid(format!("how {code} is not known"))),
    }
}

/// # Safety
/// As for [`texts_up_to`].
unsafe fn reported<'a>(ids: *const *const c_char, len: usize) -> Result<Vec<&'a str>> {
    // SAFETY: by contract.
    unsafe { texts_up_to(ids, len, MAX_REPORTED, "request_ids") }
}

/// # Safety
/// As for [`bounded`], and the pointers in the elements are valid.
unsafe fn request_blocks<'a>(
    ptr: *const kvf_request_blocks,
    len: usize,
) -> Result<Vec<RequestBlocks<'a>>> {
    // SAFETY: by contract.
    let groups = unsafe { bounded(ptr, len, MAX_GROUPS, "groups") }?;
    let mut lists = Vec::with_capacity(groups.len());
    for (i, g) in groups.iter().enumerate() {
        if g.reserved != 0 {
            return Err(Error::invalid(format!("groups[{i}].reserved is not zero")));
        }
        // SAFETY: by contract.
        let ids = unsafe { slice(g.ids, g.len, "ids") };
        lists.push(RequestBlocks {
            ids: ids.map_err(|e| e.context(format_args!("groups[{i}]")))?,
            first: g.first,
        });
    }
    Ok(lists)
}

/// # Safety
/// `ptr` is null, or it and what it points to are valid.
unsafe fn scheduler_options(ptr: *const kvf_scheduler_options) -> Result<SchedulerOptions> {
    // SAFETY: by contract, here and below.
    let o = unsafe { options(ptr, "options") }?;
    if o.reserved != [0; 3] {
        return Err(Error::invalid("options.reserved is not zero"));
    }
    // SAFETY: by contract.
    let (engine_id, host, groups) = unsafe {
        (
            text(o.engine_id, "options.engine_id")?,
            text(o.host, "options.host")?,
            bounded(o.groups, o.groups_len, MAX_GROUPS, "options.groups")?,
        )
    };
    let defaults = SchedulerOptions::default();
    let time = |ms: u64, default: Duration| nonzero(ms).map_or(default, Duration::from_millis);
    let count = |n: u32| nonzero(n).unwrap_or(1);
    let lease = time(o.lease_ms, defaults.lease);
    let pin = time(o.pin_ms, defaults.pin);
    Ok(SchedulerOptions {
        mode: mode(o.mode)?,
        engine_id: engine_id.to_owned(),
        host: host.to_owned(),
        port: o.port,
        tp_size: count(o.tp_size),
        pp_size: count(o.pp_size),
        dcp_size: count(o.dcp_size),
        groups: groups.iter().map(group).collect::<Result<_>>()?,
        clip: flag(o.clip, "options.clip")?,
        lease,
        heartbeat: time(o.heartbeat_ms, lease / 6),
        backoff_tokens: o.backoff_tokens.into(),
        bidirectional: flag(o.bidirectional, "options.bidirectional")?,
        recompute_threshold: nonzero(o.recompute_threshold).unwrap_or(defaults.recompute_threshold),
        pin,
        registration_timeout: time(o.registration_timeout_ms, pin),
        state_registrations: flag(o.state_registrations, "options.state_registrations")?,
    })
}

fn group(g: &kvf_transfer_group) -> Result<TransferGroup> {
    Ok(TransferGroup {
        kind: GroupKind::from_code(g.kind)?,
        tokens_per_block: g.tokens_per_block,
        window: g.window,
        scratch_blocks: g.scratch_blocks,
    })
}
