//! Between the messages and the words of the block pool.

use super::wire;
use crate::block_pool::{
    CacheFull, CachePartial, Event, EventBatch, Options, Policy, Stats, Stored,
};
use crate::error::{Error, Result, Status};

/// Most bytes of events that a pool keeps.
const EVENT_BYTES: u64 = 64 << 20;

/// An error as a reply.
pub(crate) fn failure(e: &Error) -> wire::reply::Result {
    let code = wire::Code::try_from(-(e.status() as i32)).unwrap_or(wire::Code::Internal);
    wire::reply::Result::Error(wire::Error {
        code: code.into(),
        message: e.message().to_owned(),
    })
}

/// A reply as an error, if it is one.
pub(crate) fn error_of(e: wire::Error) -> Error {
    let status = Status::from_code(e.code.wrapping_neg()).filter(|&s| s != Status::Ok);
    Error::new(status.unwrap_or(Status::Internal), e.message)
}

/// How to make the pool that a client asks for.
pub(super) fn pool_options(o: &wire::OpenPool) -> Result<Options> {
    let Some(policy) = Policy::NAMES.get(o.policy as usize) else {
        return Err(Error::invalid(format!("policy {}: it is 0 to 3", o.policy)));
    };
    if o.event_bytes > EVENT_BYTES {
        return Err(Error::invalid(format!(
            "event_bytes is {}, more than {EVENT_BYTES}",
            o.event_bytes
        )));
    }
    let defaults = Options::new(o.num_blocks, o.enable_caching);
    Ok(Options {
        policy: Policy::named(policy, o.fraction, o.enable_caching, o.num_blocks)?,
        events: o.events() != wire::Events::Off,
        event_bytes: match o.event_bytes {
            0 => defaults.event_bytes,
            // Not more than 64 MiB.
            n => n as usize,
        },
        tolerate_null: o.tolerate_null,
        ..defaults
    })
}

/// The message for a pool with these options.
pub(crate) fn open_pool(o: &Options, events: wire::Events) -> wire::OpenPool {
    let (policy, fraction) = match o.policy {
        Policy::Lru => (wire::Policy::Lru, 0.0),
        Policy::Windowed { fraction } => (wire::Policy::Windowed, fraction),
        Policy::Elastic { limit } => (wire::Policy::Elastic, limit),
    };
    wire::OpenPool {
        num_blocks: o.blocks,
        enable_caching: o.caching,
        policy: policy.into(),
        fraction,
        events: events.into(),
        tolerate_null: o.tolerate_null,
        event_bytes: o.event_bytes as u64,
    }
}

/// Content that a block pool has reported, or is to report.
pub(crate) fn stored(c: &wire::BlockContent) -> Stored<'_> {
    Stored {
        hashes: &c.hashes,
        hash_len: c.hash_length as usize,
        parent: &c.parent,
        tokens: &c.tokens,
        block_size: c.block_size,
        group: c.group,
        tag: c.tag,
    }
}

/// The message for content.
pub(crate) fn content(s: &Stored<'_>) -> wire::BlockContent {
    wire::BlockContent {
        hashes: s.hashes.to_vec(),
        hash_length: s.hash_len as u32,
        group: s.group,
        block_size: s.block_size,
        parent: s.parent.to_vec(),
        tokens: s.tokens.to_vec(),
        tag: s.tag,
    }
}

/// Full blocks to be cached.
pub(super) fn cache_full<'a>(
    m: &'a wire::CacheFullBlocks,
    content: &'a wire::BlockContent,
) -> CacheFull<'a> {
    CacheFull {
        blocks: &m.block_ids,
        hashes: &content.hashes,
        hash_len: content.hash_length as usize,
        group: content.group,
        first: m.first,
        block_size: content.block_size,
        mask: &m.mask,
        parent: &content.parent,
        tokens: &content.tokens,
        tag: content.tag,
    }
}

/// A key for the first part of a block.
pub(super) fn cache_partial<'a>(
    m: &wire::CachePartialBlock,
    content: &'a wire::BlockContent,
) -> CachePartial<'a> {
    CachePartial {
        block: m.block_id,
        hash: &content.hashes,
        group: content.group,
        num_tokens: m.num_tokens,
        replace: m.replace,
        block_size: content.block_size,
        parent: &content.parent,
        tokens: &content.tokens,
        tag: content.tag,
    }
}

/// The message for events.
pub(super) fn events(batch: &EventBatch, pool: &str, epoch: u64) -> wire::EventBatch {
    let one = |e: Event<'_>| {
        use wire::event::Kind;
        wire::Event {
            kind: Some(match e {
                Event::Stored(s) => Kind::Stored(content(&s)),
                Event::Removed { hash, group } => Kind::Removed(wire::Key {
                    hash: hash.to_vec(),
                    group,
                }),
                Event::Cleared => Kind::Cleared(wire::Cleared {}),
            }),
        }
    };
    wire::EventBatch {
        pool: pool.to_owned(),
        epoch,
        sequence: 0,
        lost: batch.lost(),
        events: batch.iter().map(one).collect(),
    }
}

/// The events of a message. Of those that this version does not know nothing is kept.
pub(crate) fn event_batch(message: &wire::EventBatch) -> EventBatch {
    let mut batch = EventBatch::default();
    for event in message.events.iter().filter_map(|e| e.kind.as_ref()) {
        batch.add(&match event {
            wire::event::Kind::Stored(c) => Event::Stored(stored(c)),
            wire::event::Kind::Removed(key) => Event::Removed {
                hash: &key.hash,
                group: key.group,
            },
            wire::event::Kind::Cleared(_) => Event::Cleared,
        });
    }
    batch.set_lost(message.lost);
    batch
}

/// The message for a pool's numbers.
pub(super) fn stats(s: &Stats, sessions: usize, event_sequence: u64) -> wire::Stats {
    wire::Stats {
        blocks: s.blocks,
        free: s.free,
        cached_blocks: s.cached_blocks,
        cached_keys: s.cached_keys,
        allocations: s.allocations,
        refused_allocations: s.refused_allocations,
        allocated_blocks: s.allocated_blocks,
        allocated_runs: s.allocated_runs,
        freed_blocks: s.freed_blocks,
        revived_blocks: s.revived_blocks,
        lookups: s.lookups,
        hits: s.hits,
        stored_keys: s.stored_keys,
        removed_keys: s.removed_keys,
        resets: s.resets,
        lost_events: s.lost_events,
        sessions: sessions as u64,
        event_sequence,
    }
}

/// A pool's numbers.
pub(crate) fn pool_stats(s: &wire::Stats) -> Stats {
    Stats {
        blocks: s.blocks,
        free: s.free,
        cached_blocks: s.cached_blocks,
        cached_keys: s.cached_keys,
        allocations: s.allocations,
        refused_allocations: s.refused_allocations,
        allocated_blocks: s.allocated_blocks,
        allocated_runs: s.allocated_runs,
        freed_blocks: s.freed_blocks,
        revived_blocks: s.revived_blocks,
        lookups: s.lookups,
        hits: s.hits,
        stored_keys: s.stored_keys,
        removed_keys: s.removed_keys,
        resets: s.resets,
        lost_events: s.lost_events,
    }
}
