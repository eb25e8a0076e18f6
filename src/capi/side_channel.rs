//! Side channel: exchanging metadata before any transport connects two agents.

use std::ffi::c_char;
use std::sync::Arc;
use std::time::Duration;

use once_cell::sync::Lazy;

use super::guard::guard;
use super::handle::Table;
use super::input::{Plain, bounded, nonzero, opt_out, opt_text, options, out, text};
use super::logging;
use super::output::{self, kvf_buffer};
use super::status::kvf_status;
use crate::error::Result;
use crate::side_channel::zmq::MAX_RANKS;
use crate::side_channel::{self, ListenOptions, Rank, RequestOptions, SideChannel};

/// A listener that gives metadata to whoever asks. All zero is the null handle.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct kvf_side_channel {
    /// Opaque. Zero is null.
    pub id: u64,
}

/// How to listen. Start from `kvf_side_channel_options_default()`; zero is the default of every
/// field.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_side_channel_options {
    /// `sizeof(kvf_side_channel_options)`.
    pub struct_size: u32,
    /// Clients served at once; 0 is 256.
    pub max_connections: u32,
    /// `"tcp"`, which NULL means too: one message, a 4-byte big-endian length and the payload, to
    /// each client that connects. `"zmq"`: the handshake of vLLM's NIXL connector, with metadata for
    /// each rank and a clock.
    pub kind: *const c_char,
    /// Address or host name to listen on; NULL is `127.0.0.1`. Anything that other hosts can
    /// reach must be asked for: metadata is not authenticated.
    pub host: *const c_char,
    /// Longest metadata in bytes; 0 is 64 MiB.
    pub max_message_bytes: u64,
    /// How long one client may take, in milliseconds; 0 is 5,000.
    pub timeout_ms: u64,
    /// Port; 0 lets the system choose (`kvf_side_channel_address()` tells).
    pub port: u16,
    /// Zero.
    pub reserved: [u8; 6],
}

// SAFETY: integers and raw pointers only.
unsafe impl Plain for kvf_side_channel_options {
    const FIRST_SIZE: usize = 48;
}

/// The metadata of one rank of an engine.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_rank_payload {
    /// Pipeline stage.
    pub pp_rank: u32,
    /// Tensor-parallel rank in it.
    pub tp_rank: u32,
    /// Any bytes.
    pub data: *const u8,
    /// How many.
    pub len: usize,
}

/// How the monotonic clock of a listener stands to ours. CLOCK_MONOTONIC is the same for all
/// processes of a host.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct kvf_clock_sample {
    /// Theirs less ours, in seconds.
    pub offset_s: f64,
    /// From the question to the answer, in seconds; negative where the protocol tells no clock. Of
    /// several samples the one with the least is the best.
    pub rtt_s: f64,
}

static CHANNELS: Lazy<Table<Arc<dyn SideChannel>>> = Lazy::new(|| Table::new(4, "side channel"));

/// Starts a listener that hands out `metadata`; `"zmq"`: as that of rank (0, 0). It has a thread of
/// its own; a slow, silent or hostile client costs the others nothing. Any thread.
///
/// @param options   May be NULL.
/// @param metadata  Any bytes, also none; copied.
/// @param channel   Receives the handle; end it with `kvf_side_channel_shutdown()`.
/// @return `KVF_ERR_BUSY` if the port is taken.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_side_channel_listen(
    options: *const kvf_side_channel_options,
    metadata: *const u8,
    metadata_len: usize,
    channel: *mut kvf_side_channel,
) -> kvf_status {
    guard(|| {
        logging::init();
        // SAFETY: the caller's contract, here and in every block below of this file.
        let channel = unsafe { out(channel, "channel") }?;
        // SAFETY: as above.
        let (kind, options) = unsafe { listen_options(options) }?;
        let max = options.max_message;
        // SAFETY: as above. Bounded, since it is copied before the listener looks at it.
        let metadata = unsafe { bounded(metadata, metadata_len, max, "metadata") }?;
        let listener = side_channel::listen(kind, &options, metadata.to_vec())?;
        channel.write(kvf_side_channel {
            id: CHANNELS.insert(Arc::new(listener))?,
        });
        Ok(())
    })
}

/// Replaces the metadata. Clients that connect from now on get the new bytes; none gets a
/// mixture. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_side_channel_set_metadata(
    channel: kvf_side_channel,
    metadata: *const u8,
    metadata_len: usize,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract. Bounded by what the longest length prefix can say, since it
        // is copied before the listener, which knows its own limit, looks at it.
        let metadata = unsafe { bounded(metadata, metadata_len, u32::MAX as usize, "metadata") }?;
        CHANNELS.get(channel.id)?.set_metadata(metadata.to_vec())
    })
}

/// Replaces the metadata of one rank. Clients that ask from now on get the new bytes; none gets a
/// mixture. Any thread.
///
/// @param metadata  `"zmq"`: none takes the rank away. `"tcp"` knows rank (0, 0) only.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_side_channel_set_rank_metadata(
    channel: kvf_side_channel,
    pp_rank: u32,
    tp_rank: u32,
    metadata: *const u8,
    metadata_len: usize,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract. Bounded as above.
        let metadata = unsafe { bounded(metadata, metadata_len, u32::MAX as usize, "metadata") }?;
        let rank = Rank {
            pp: pp_rank,
            tp: tp_rank,
        };
        CHANNELS
            .get(channel.id)?
            .set_rank_metadata(rank, metadata.to_vec())
    })
}

/// Replaces the metadata of all ranks at once: those that are not listed have none from now on. Any
/// thread.
///
/// @param ranks  Each once.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_side_channel_replace_ranks(
    channel: kvf_side_channel,
    ranks: *const kvf_rank_payload,
    ranks_len: usize,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let ranks = unsafe { rank_payloads(ranks, ranks_len, "ranks") }?;
        CHANNELS.get(channel.id)?.replace_ranks(ranks)
    })
}

/// Where it listens. Any thread.
///
/// @param host  Receives the address as text; free with `kvf_buffer_free()`. May be NULL.
/// @param port  Receives the port. May be NULL.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_side_channel_address(
    channel: kvf_side_channel,
    host: *mut kvf_buffer,
    port: *mut u16,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (host, port) = unsafe { (opt_out(host, "host")?, opt_out(port, "port")?) };
        let addr = CHANNELS.get(channel.id)?.local_addr();
        if let Some(host) = host {
            host.write(output::buffer(addr.ip().to_string()));
        }
        if let Some(port) = port {
            port.write(addr.port());
        }
        Ok(())
    })
}

/// Whether clients are being served. Any thread.
///
/// @param running  Receives 1 or 0.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_side_channel_is_running(
    channel: kvf_side_channel,
    running: *mut u8,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let running = unsafe { out(running, "running") }?;
        running.write(CHANNELS.get(channel.id)?.is_running().into());
        Ok(())
    })
}

/// Stops the listener, cuts its clients, frees the port, and ends the handle. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn kvf_side_channel_shutdown(channel: kvf_side_channel) -> kvf_status {
    guard(|| {
        CHANNELS.remove(channel.id)?.shutdown();
        Ok(())
    })
}

/// Asks a listener for its metadata. It tries once. Any thread.
///
/// @param kind        `"tcp"`, which NULL means too.
/// @param host        Address or host name.
/// @param timeout_ms  For everything: look-up, connection, every byte; 0 is 5,000.
/// @param max_bytes   Longest answer that is accepted; 0 is 64 MiB.
/// @param metadata    Free with `kvf_buffer_free()`.
/// @return `KVF_ERR_TIMEOUT`; `KVF_ERR_PEER_LOST` if nobody listens or the answer breaks off;
///         `KVF_ERR_PEER_INCOMPATIBLE` if it is too long.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_side_channel_request(
    kind: *const c_char,
    host: *const c_char,
    port: u16,
    timeout_ms: u64,
    max_bytes: u64,
    metadata: *mut kvf_buffer,
) -> kvf_status {
    guard(|| {
        logging::init();
        // SAFETY: the caller's contract.
        let (kind, host, metadata) = unsafe {
            (
                opt_text(kind, "kind")?,
                text(host, "host")?,
                out(metadata, "metadata")?,
            )
        };
        let options = request_options(Rank::default(), timeout_ms, max_bytes);
        let answer = side_channel::request(kind.unwrap_or(DEFAULT_KIND), host, port, &options)?;
        metadata.write(output::buffer(answer.metadata));
        Ok(())
    })
}

/// Asks a listener for the metadata of one rank, and for its clock. It tries once. Any thread.
///
/// @param kind        `"zmq"`; `"tcp"`, which NULL means too, knows rank (0, 0) only and no clock.
/// @param host        Address or host name.
/// @param timeout_ms  For everything: look-up, connection, every byte; 0 is 5,000.
/// @param max_bytes   Longest metadata that is accepted; 0 is 64 MiB.
/// @param metadata    Free with `kvf_buffer_free()`.
/// @param clock       May be NULL.
/// @return `KVF_ERR_NOT_FOUND` if the listener has nothing for this rank; else as
///         `kvf_side_channel_request()`.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_side_channel_request_rank(
    kind: *const c_char,
    host: *const c_char,
    port: u16,
    pp_rank: u32,
    tp_rank: u32,
    timeout_ms: u64,
    max_bytes: u64,
    metadata: *mut kvf_buffer,
    clock: *mut kvf_clock_sample,
) -> kvf_status {
    guard(|| {
        logging::init();
        // SAFETY: the caller's contract.
        let (kind, host, metadata, clock) = unsafe {
            (
                opt_text(kind, "kind")?,
                text(host, "host")?,
                out(metadata, "metadata")?,
                opt_out(clock, "clock")?,
            )
        };
        let rank = Rank {
            pp: pp_rank,
            tp: tp_rank,
        };
        let options = request_options(rank, timeout_ms, max_bytes);
        let answer = side_channel::request(kind.unwrap_or(DEFAULT_KIND), host, port, &options)?;
        if let Some(clock) = clock {
            clock.write(kvf_clock_sample {
                offset_s: answer.clock.map_or(0.0, |c| c.offset),
                rtt_s: answer.clock.map_or(-1.0, |c| c.rtt.as_secs_f64()),
            });
        }
        metadata.write(output::buffer(answer.metadata));
        Ok(())
    })
}

const DEFAULT_KIND: &str = "tcp";

fn request_options(rank: Rank, timeout_ms: u64, max_bytes: u64) -> RequestOptions {
    let defaults = RequestOptions::default();
    RequestOptions {
        timeout: nonzero(timeout_ms).map_or(defaults.timeout, Duration::from_millis),
        max_message: nonzero(max_bytes).map_or(defaults.max_message, size),
        rank,
    }
}

/// The ranks of an array, copied.
///
/// # Safety
/// A non-null `ptr` points to `len` structs, and they to what they say.
pub(super) unsafe fn rank_payloads(
    ptr: *const kvf_rank_payload,
    len: usize,
    what: &str,
) -> Result<Vec<(Rank, Vec<u8>)>> {
    // SAFETY: by contract, here and below.
    let ranks = unsafe { bounded(ptr, len, MAX_RANKS, what) }?;
    ranks
        .iter()
        .enumerate()
        .map(|(i, r)| {
            let what = format!("{what}[{i}].data");
            // SAFETY: by contract. Bounded, since it is copied before the listener looks at it.
            let data = unsafe { bounded(r.data, r.len, u32::MAX as usize, &what) }?;
            let rank = Rank {
                pp: r.pp_rank,
                tp: r.tp_rank,
            };
            Ok((rank, data.to_vec()))
        })
        .collect()
}

/// A size from C. What does not fit is larger than anything anyway.
fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// # Safety
/// `ptr` is null, or it and what it points to are valid.
unsafe fn listen_options<'a>(
    ptr: *const kvf_side_channel_options,
) -> Result<(&'a str, ListenOptions)> {
    // SAFETY: by contract, here and below.
    let o = unsafe { options(ptr, "options") }?;
    if o.reserved != [0; 6] {
        return Err(crate::error::Error::invalid("options.reserved is not zero"));
    }
    // SAFETY: by contract.
    let (kind, host) = unsafe {
        (
            opt_text(o.kind, "options.kind")?,
            opt_text(o.host, "options.host")?,
        )
    };
    let defaults = ListenOptions::default();
    let options = ListenOptions {
        host: host.map_or(defaults.host, str::to_owned),
        port: o.port,
        max_message: nonzero(o.max_message_bytes).map_or(defaults.max_message, size),
        max_connections: nonzero(o.max_connections)
            .map_or(defaults.max_connections, |n| size(n.into())),
        timeout: nonzero(o.timeout_ms).map_or(defaults.timeout, Duration::from_millis),
    };
    Ok((kind.unwrap_or(DEFAULT_KIND), options))
}
