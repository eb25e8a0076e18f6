//! Connector, worker half: one rank's transfers, leases and peers.

use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::Arc;
use std::time::Duration;

use once_cell::sync::Lazy;

use super::agent::{AGENTS, kvf_agent};
use super::guard::{c_string, guard, guard_or};
use super::handle::Table;
use super::input::{Plain, bounded, flag, nonzero, opt_text, options, out, text};
use super::kv_cache::{kv_cache, kvf_kv_cache};
use super::logging;
use super::output::{self, kvf_buffer, pointer};
use super::queue::{kvf_queue_options, queue_options};
use super::scheduler::{KVF_MODE_PULL, KVF_MODE_PUSH};
use super::status::kvf_status;
use crate::connector::Mode;
use crate::connector::step::codec::MAX_ENCODED;
use crate::connector::worker::{RequestRecord, Results, Worker, WorkerOptions};
use crate::error::{Error, Result};
use crate::layout::Parallel;

/// The worker half of a connector. All zero is the null handle.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct kvf_worker {
    /// Opaque. Zero is null.
    pub id: u64,
}

/// How a worker half works. Start from `kvf_worker_options_default()` and set `agent` and
/// `engine_id`; zero is the default of every other field. The defaults are those of vLLM.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_worker_options {
    /// `sizeof(kvf_worker_options)`.
    pub struct_size: u32,
    /// A KVF_MODE_... value.
    pub mode: u32,
    /// The rank's agent. The worker takes all its messages, and registers memory with it.
    pub agent: kvf_agent,
    /// The engine's id, the same on all its ranks and in its scheduler half.
    pub engine_id: *const c_char,
    /// 64 lowercase hexadecimal digits by which two engines tell that they are of a kind. NULL: made
    /// of what the KV cache says about the model, for engines that are not vLLM.
    pub compat_hash: *const c_char,
    /// Push: host or address of this engine's side channel, for producers to find it.
    pub host: *const c_char,
    /// Of the transfers; may be NULL.
    pub queue: *const kvf_queue_options,
    /// Transfer rank in its pipeline stage.
    pub tp_rank: u32,
    /// Transfer ranks: the larger of the tensor-parallel and the decode-context-parallel size. 0 is
    /// 1.
    pub tp_size: u32,
    /// Pipeline stage.
    pub pp_rank: u32,
    /// Pipeline stages. 0 is 1.
    pub pp_size: u32,
    /// Decode-context-parallel size. 0 is 1.
    pub dcp_size: u32,
    /// Tokens that go to one rank before the next rank's turn; 0 is a block.
    pub dcp_interleave: u32,
    /// How long producers keep a request; 0 is 30,000. Both sides of a transfer should have the
    /// same.
    pub lease_ms: u64,
    /// How long one question of a handshake may take; 0 is 5,000.
    pub handshake_timeout_ms: u64,
    /// Peers that nobody has wanted for so long are forgotten; 0 is 3,600,000, `UINT64_MAX` never.
    pub engine_ttl_ms: u64,
    /// Push: how long a consumer waits for its producer; 0 is 480,000.
    pub registration_timeout_ms: u64,
    /// How long one transfer may take; 0 is 480,000.
    pub transfer_timeout_ms: u64,
    /// Push: port of this engine's side channel.
    pub port: u16,
    /// 1: peers with another compatibility hash are not refused for that.
    pub ignore_compat: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

// SAFETY: integers and raw pointers only.
unsafe impl Plain for kvf_worker_options {
    const FIRST_SIZE: usize = 120;
}

/// What has become of requests. Free with `kvf_worker_results_free()`. Each request is reported
/// once.
#[repr(C)]
#[derive(Debug)]
pub struct kvf_worker_results {
    /// Requests whose kept blocks are free: all readers are through, or the lease has ended.
    pub sent: *const *const c_char,
    /// Their number.
    pub sent_len: usize,
    /// Requests whose receive is over, well or not. Their blocks are the engine's again.
    pub received: *const *const c_char,
    /// Their number.
    pub received_len: usize,
    /// Those of `received` that failed: nothing in their blocks may be used.
    pub failed: *const *const c_char,
    /// Their number.
    pub failed_len: usize,
    /// Local block ids of failed requests, if the model has one group, in which an id says which
    /// block is meant.
    pub failed_blocks: *const u32,
    /// Their number.
    pub failed_blocks_len: usize,
    /// What all of this points to; NULL if there is nothing. Leave it alone.
    pub storage: *mut c_void,
    /// 1 if `kvf_worker_take_stats()` has something to give.
    pub has_stats: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

/// A record of a request that was received here.
pub const KVF_RECORD_RECEIVE: u32 = 0;
/// A record of a request that was written to another engine.
pub const KVF_RECORD_PUSH: u32 = 1;

/// What became of one request, with its times. All but `arrived_ns` count from then; 0 is "did not
/// get there".
#[repr(C)]
#[derive(Debug)]
pub struct kvf_worker_record {
    /// This engine's id of the request.
    pub request_id: *const c_char,
    /// The other engine; empty if it was never known.
    pub engine_id: *const c_char,
    /// What went wrong; empty if nothing did.
    pub message: *const c_char,
    /// One of `KVF_RECORD_...`.
    pub kind: u32,
    /// How it ended.
    pub status: kvf_status,
    /// When the worker heard of it, in nanoseconds of the monotonic clock.
    pub arrived_ns: u64,
    /// When it went to the queue.
    pub queued_ns: u64,
    /// When its ranges were known.
    pub planned_ns: u64,
    /// When its first bytes were asked for.
    pub posted_ns: u64,
    /// When it was over.
    pub finished_ns: u64,
    /// Bytes that arrived.
    pub bytes: u64,
    /// Ranges after merging.
    pub descriptors: u64,
    /// Zero.
    pub reserved: [u64; 4],
}

/// Records, oldest first. Free with `kvf_worker_record_list_free()`.
#[repr(C)]
#[derive(Debug)]
pub struct kvf_worker_record_list {
    /// `len` records, or NULL.
    pub items: *const kvf_worker_record,
    /// Their number.
    pub len: usize,
    /// What the records point to. Leave it alone.
    pub storage: *mut c_void,
}

/// How much there is of everything, as the worker's thread last saw it. All but `peers` are 0 when
/// nothing is under way.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct kvf_worker_state {
    /// Receives that are not over.
    pub receives: u64,
    /// Requests that are kept.
    pub holds: u64,
    /// Requests that wait to be written, or are being written.
    pub pushes: u64,
    /// Peer engines that are known.
    pub peers: u64,
    /// Handshakes under way.
    pub handshakes: u64,
    /// Zero.
    pub reserved: [u64; 3],
}

static WORKERS: Lazy<Table<Worker>> = Lazy::new(|| Table::new(13, "worker"));

/// Creates the worker half of a connector: one for each rank. It has a thread of its own, and one
/// more for its transfers; neither does anything while there is nothing to do.
///
/// @param worker  Receives the handle; end it with `kvf_worker_destroy()`, before its agent.
/// @return `KVF_ERR_NOT_SUPPORTED` for a combination that is not offered; the message has the way
///         out. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_worker_create(
    options: *const kvf_worker_options,
    worker: *mut kvf_worker,
) -> kvf_status {
    guard(|| {
        logging::init();
        // SAFETY: the caller's contract, here and in every block below of this file.
        let ((agent, options), worker) =
            unsafe { (worker_options(options)?, out(worker, "worker")?) };
        let created = Worker::create(AGENTS.get(agent.id)?, options)?;
        worker.write(kvf_worker {
            id: WORKERS.insert(Arc::new(created))?,
        });
        Ok(())
    })
}

/// Ends a worker. Transfers are carried out for up to `drain_ms`, then cancelled and waited for, for
/// as long again but at least 100 ms. All leases end, peers are forgotten, memory is deregistered.
///
/// @return `KVF_ERR_TIMEOUT` if something was still moving at the end of that: its blocks must not
///         be used before `kvf_agent_destroy()` has returned `KVF_OK`, and the memory stays
///         registered until then. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn kvf_worker_destroy(worker: kvf_worker, drain_ms: u64) -> kvf_status {
    guard(|| {
        WORKERS
            .remove(worker.id)?
            .close(Duration::from_millis(drain_ms))
    })
}

/// Registers the rank's KV cache: works out its regions and registers their memory with the agent.
/// Once, before anything else.
///
/// @return `KVF_ERR_INVALID_ARGUMENT`, naming the layer and the field, for tensors that cannot be
///         what they are said to be; `KVF_ERR_NOT_SUPPORTED` for arrangements that are not known.
///         Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_worker_register_kv(
    worker: kvf_worker,
    cache: *const kvf_kv_cache,
) -> kvf_status {
    guard(|| {
        let worker = WORKERS.get(worker.id)?;
        // SAFETY: the caller's contract.
        let cache = unsafe { kv_cache(cache, worker.mode()) }?;
        worker.register_kv(&cache)
    })
}

/// What this rank answers to handshakes; for `kvf_scheduler_serve()`, or a side channel of kind
/// "zmq".
///
/// @param payload  Receives the bytes; free with `kvf_buffer_free()`. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_worker_payload(
    worker: kvf_worker,
    payload: *mut kvf_buffer,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let payload = unsafe { out(payload, "payload") }?;
        payload.write(output::buffer(WORKERS.get(worker.id)?.payload()?));
        Ok(())
    })
}

/// Takes the bytes of an engine step, as `kvf_scheduler_build_step()` made them, and returns at
/// once. What is wrong with a request shows in the results.
///
/// @return `KVF_ERR_PEER_INCOMPATIBLE` for bytes that are no step. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_worker_step(
    worker: kvf_worker,
    step: *const u8,
    len: usize,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let step = unsafe { bounded(step, len, MAX_ENCODED, "step") }?;
        WORKERS.get(worker.id)?.step(step)
    })
}

/// What has become of requests since the last call. Never blocks; allocates nothing if there is
/// nothing.
///
/// @param results  Receives them; free with `kvf_worker_results_free()`. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_worker_poll(
    worker: kvf_worker,
    results: *mut kvf_worker_results,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let results = unsafe { out(results, "results") }?;
        let taken = WORKERS.get(worker.id)?.poll();
        results.write(give(taken));
        Ok(())
    })
}

/// Frees results and zeroes the struct. NULL, and a struct that is all zero, are ignored, so freeing
/// twice is harmless. Any thread, but one at a time for the same struct.
///
/// # Safety
/// `results` is NULL or was filled by this library and not changed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_worker_results_free(results: *mut kvf_worker_results) {
    guard_or((), || {
        // SAFETY: NULL or valid by contract.
        let Some(results) = (unsafe { results.as_mut() }) else {
            return;
        };
        if !results.storage.is_null() {
            // SAFETY: made by `give`, by contract not changed.
            drop(unsafe { Box::from_raw(results.storage.cast::<Storage>()) });
        }
        *results = EMPTY;
    });
}

/// Blocks until there is something to poll, or the time is over: for engines that have nothing else
/// to do.
///
/// @param ready  Receives 1 if there is something, 0 if not. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_worker_wait(
    worker: kvf_worker,
    timeout_ms: u64,
    ready: *mut u8,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let ready = unsafe { out(ready, "ready") }?;
        let there = WORKERS
            .get(worker.id)?
            .wait(Duration::from_millis(timeout_ms));
        ready.write(there.into());
        Ok(())
    })
}

/// A file descriptor that is readable while there is something to poll, for event loops. It belongs
/// to the worker and is closed with it: wait on it, do not read or close it.
///
/// An engine that has nothing to compute may sleep on it, beside whatever else it waits for, but not
/// for long while its scheduler half keeps or awaits blocks: heartbeats go out in steps. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_worker_event_fd(worker: kvf_worker, fd: *mut c_int) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let fd = unsafe { out(fd, "fd") }?;
        fd.write(WORKERS.get(worker.id)?.event_fd());
        Ok(())
    })
}

/// Figures since the last call: a JSON object of lists by the names of vLLM's statistics, such as
/// `{"transfer_duration": [0.012], ...}`; `{}` if there are none.
///
/// @param json  Receives the text; free with `kvf_buffer_free()`. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_worker_take_stats(
    worker: kvf_worker,
    json: *mut kvf_buffer,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let json = unsafe { out(json, "json") }?;
        json.write(output::buffer(WORKERS.get(worker.id)?.take_stats()));
        Ok(())
    })
}

/// Records of the requests that are over since the last call, the last few thousand at most: JSON
/// objects, one per line.
///
/// @param lines  Receives the text; free with `kvf_buffer_free()`. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_worker_take_records(
    worker: kvf_worker,
    lines: *mut kvf_buffer,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let lines = unsafe { out(lines, "lines") }?;
        lines.write(output::buffer(WORKERS.get(worker.id)?.take_records_json()));
        Ok(())
    })
}

/// The same records as structs: what one of the two calls has given the other does not give again.
///
/// @param records  Receives them; free with `kvf_worker_record_list_free()`. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_worker_take_record_list(
    worker: kvf_worker,
    records: *mut kvf_worker_record_list,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let records = unsafe { out(records, "records") }?;
        records.write(record_list(WORKERS.get(worker.id)?.take_records()));
        Ok(())
    })
}

/// Frees the records and zeroes the struct. NULL, and a struct that is all zero, are ignored. Any
/// thread, but one at a time for the same struct.
///
/// # Safety
/// `records` is NULL or was filled by this library and not changed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_worker_record_list_free(records: *mut kvf_worker_record_list) {
    guard_or((), || {
        // SAFETY: NULL or valid by contract.
        let Some(records) = (unsafe { records.as_mut() }) else {
            return;
        };
        if !records.storage.is_null() {
            // SAFETY: made by `record_list`, by contract not changed.
            drop(unsafe { Box::from_raw(records.storage.cast::<RecordStorage>()) });
        }
        *records = NO_RECORDS;
    });
}

/// How much there is of everything. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_worker_state_get(
    worker: kvf_worker,
    state: *mut kvf_worker_state,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let state = unsafe { out(state, "state") }?;
        let s = WORKERS.get(worker.id)?.state();
        state.write(kvf_worker_state {
            receives: s.receives as u64,
            holds: s.holds as u64,
            pushes: s.pushes as u64,
            peers: s.peers as u64,
            handshakes: s.handshakes as u64,
            reserved: [0; 3],
        });
        Ok(())
    })
}

/// # Safety
/// `ptr` is null or valid, and so is what it points to.
unsafe fn worker_options(ptr: *const kvf_worker_options) -> Result<(kvf_agent, WorkerOptions)> {
    if ptr.is_null() {
        return Err(Error::invalid("options is NULL"));
    }
    // SAFETY: by contract, here and below.
    let o = unsafe { options(ptr, "options") }?;
    if o.reserved != [0; 5] {
        return Err(Error::invalid("options.reserved must be zero"));
    }
    let ms = |value: u64, default: Duration| nonzero(value).map_or(default, Duration::from_millis);
    let default = WorkerOptions::default();
    // SAFETY: by contract.
    let (engine_id, compat_hash, host) = unsafe {
        (
            text(o.engine_id, "options.engine_id")?,
            opt_text(o.compat_hash, "options.compat_hash")?,
            opt_text(o.host, "options.host")?,
        )
    };
    let parallel = Parallel {
        pp_rank: o.pp_rank,
        pp_size: nonzero(o.pp_size).unwrap_or(1),
        ..Parallel::tp(o.tp_rank, nonzero(o.tp_size).unwrap_or(1))
    }
    .with_dcp(nonzero(o.dcp_size).unwrap_or(1), o.dcp_interleave);
    let worker = WorkerOptions {
        mode: mode(o.mode)?,
        engine_id: engine_id.to_owned(),
        parallel,
        compat_hash: compat_hash.map(str::to_owned),
        enforce_compat: !flag(o.ignore_compat, "options.ignore_compat")?,
        lease: ms(o.lease_ms, default.lease),
        handshake_timeout: ms(o.handshake_timeout_ms, default.handshake_timeout),
        engine_ttl: match o.engine_ttl_ms {
            u64::MAX => None,
            0 => default.engine_ttl,
            n => Some(Duration::from_millis(n)),
        },
        registration_timeout: ms(o.registration_timeout_ms, default.registration_timeout),
        transfer_timeout: ms(o.transfer_timeout_ms, default.transfer_timeout),
        side_channel: (host.unwrap_or_default().to_owned(), o.port),
        // SAFETY: by contract.
        queue: unsafe { queue_options(o.queue) }.map_err(|e| e.context("options.queue"))?,
    };
    Ok((o.agent, worker))
}

fn mode(code: u32) -> Result<Mode> {
    match code {
        KVF_MODE_PULL => Ok(Mode::Pull),
        KVF_MODE_PUSH => Ok(Mode::Push),
        n => Err(Error::invalid(format!("options.mode {n} is not known"))),
    }
}

/// What the struct that C gets points to.
struct Storage {
    /// Behind the pointers.
    _texts: Vec<CString>,
    pointers: Vec<*const c_char>,
    blocks: Vec<u32>,
}

const EMPTY: kvf_worker_results = kvf_worker_results {
    sent: std::ptr::null(),
    sent_len: 0,
    received: std::ptr::null(),
    received_len: 0,
    failed: std::ptr::null(),
    failed_len: 0,
    failed_blocks: std::ptr::null(),
    failed_blocks_len: 0,
    storage: std::ptr::null_mut(),
    has_stats: 0,
    reserved: [0; 7],
};

/// What a list of records points to.
struct RecordStorage {
    /// Behind the pointers.
    _texts: Vec<CString>,
    records: Vec<kvf_worker_record>,
}

const NO_RECORDS: kvf_worker_record_list = kvf_worker_record_list {
    items: std::ptr::null(),
    len: 0,
    storage: std::ptr::null_mut(),
};

fn record_list(records: Vec<RequestRecord>) -> kvf_worker_record_list {
    if records.is_empty() {
        return NO_RECORDS;
    }
    let mut texts = Vec::with_capacity(3 * records.len());
    // A C string stays where it is when the vector grows or moves.
    let mut text = |text: String| {
        let text = c_string(text);
        let at = text.as_ptr();
        texts.push(text);
        at
    };
    let records = records.into_iter().map(|r| kvf_worker_record {
        request_id: text(r.request_id),
        engine_id: text(r.engine_id),
        message: text(r.message),
        kind: r.kind as u32,
        status: r.status as kvf_status,
        arrived_ns: r.arrived_ns,
        queued_ns: r.queued_ns,
        planned_ns: r.planned_ns,
        posted_ns: r.posted_ns,
        finished_ns: r.finished_ns,
        bytes: r.bytes,
        descriptors: r.descriptors,
        reserved: [0; 4],
    });
    let records = records.collect();
    let storage = Box::new(RecordStorage {
        _texts: texts,
        records,
    });
    kvf_worker_record_list {
        items: pointer(&storage.records),
        len: storage.records.len(),
        storage: Box::into_raw(storage).cast(),
    }
}

fn give(results: Results) -> kvf_worker_results {
    let has_stats = results.has_stats.into();
    if results.is_empty() {
        return kvf_worker_results { has_stats, ..EMPTY };
    }
    let (sent_len, received_len) = (results.sent.len(), results.received.len());
    let failed_len = results.failed.len();
    let all = results.sent.into_iter();
    let all = all.chain(results.received).chain(results.failed);
    let texts: Vec<CString> = all.map(c_string).collect();
    let storage = Box::new(Storage {
        pointers: texts.iter().map(|t| t.as_ptr()).collect(),
        _texts: texts,
        blocks: results.failed_blocks,
    });
    let (sent, rest) = storage.pointers.split_at(sent_len);
    let (received, failed) = rest.split_at(received_len);
    kvf_worker_results {
        sent: pointer(sent),
        sent_len,
        received: pointer(received),
        received_len,
        failed: pointer(failed),
        failed_len,
        failed_blocks: pointer(&storage.blocks),
        failed_blocks_len: storage.blocks.len(),
        has_stats,
        // A box stays where it is.
        storage: Box::into_raw(storage).cast(),
        ..EMPTY
    }
}
