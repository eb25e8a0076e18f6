//! Block pool: cached prefixes and events.

use std::ffi::c_void;

use super::block_pool::{inputs, kvf_block_pool, outputs, with};
use super::guard::{guard, guard_or};
use super::input::{Plain, bounded, flag, options, out, slice};
use super::status::kvf_status;
use crate::block_pool::{CacheFull, CachePartial, Event, EventBatch, MAX_HASH, Stored};
use crate::error::{Error, Result};

/// Full blocks of one request, with the hashes of their content, for `kvf_block_pool_cache()`.
/// Zero the struct and set `struct_size`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_cached_blocks {
    /// `sizeof(kvf_cached_blocks)`.
    pub struct_size: u32,
    /// Group of layers that share a block table.
    pub group: u32,
    /// Position of the first of `blocks` in the request's block table.
    pub first: u32,
    /// Tokens per block.
    pub block_size: u32,
    /// `len` adjacent blocks of the block table. Null blocks are passed over.
    pub blocks: *const u32,
    /// Their number.
    pub len: usize,
    /// Their hashes, one after the other, `hash_len` bytes each.
    pub hashes: *const u8,
    /// Length of one hash in bytes, 1 to 255.
    pub hash_len: usize,
    /// NULL, or a byte for each block: those with 0 are passed over.
    pub mask: *const u8,
    /// For the event: the hash of the block before the first. NULL if there is none.
    pub parent: *const u8,
    /// Its length in bytes.
    pub parent_len: usize,
    /// For the event: the tokens of all the blocks, `len * block_size`. NULL to leave them out.
    pub tokens: *const u32,
    /// Their number.
    pub tokens_len: usize,
    /// For the event: anything.
    pub tag: u64,
}

// SAFETY: integers and raw pointers only.
unsafe impl Plain for kvf_cached_blocks {
    const FIRST_SIZE: usize = 96;
}

/// A key for the first part of a block's content, for `kvf_block_pool_cache_partial()`. Zero the
/// struct and set `struct_size`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_cached_part {
    /// `sizeof(kvf_cached_part)`.
    pub struct_size: u32,
    /// The block. For the null block nothing is done.
    pub block: u32,
    /// Group of layers that share a block table.
    pub group: u32,
    /// Tokens of the prefix, from the start of the request.
    pub num_tokens: u32,
    /// For the event: tokens that this hash adds to its parent's.
    pub block_size: u32,
    /// 1: the content was replaced, and the keys that the block has are removed first.
    pub replace: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// The hash of the prefix.
    pub hash: *const u8,
    /// Its length in bytes, 1 to 255.
    pub hash_len: usize,
    /// For the event: the hash before this one. NULL if there is none.
    pub parent: *const u8,
    /// Its length in bytes.
    pub parent_len: usize,
    /// For the event: those `block_size` tokens. NULL to leave them out.
    pub tokens: *const u32,
    /// Their number.
    pub tokens_len: usize,
    /// For the event: anything.
    pub tag: u64,
}

// SAFETY: integers and raw pointers only.
unsafe impl Plain for kvf_cached_part {
    const FIRST_SIZE: usize = 80;
}

/// Content was cached, or announced again.
pub const KVF_BLOCK_STORED: u32 = 1;
/// A block lost a key: `hashes` is the one hash.
pub const KVF_BLOCK_REMOVED: u32 = 2;
/// Every block lost its keys.
pub const KVF_BLOCKS_CLEARED: u32 = 3;

/// One change of the prefix index.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_block_event {
    /// `KVF_BLOCK_…`. Accept, and pass over, values that you do not know.
    pub kind: u32,
    /// Group of layers that share a block table.
    pub group: u32,
    /// Tokens per block.
    pub block_size: u32,
    /// Zero.
    pub reserved: u32,
    /// `count` hashes, one after the other, `hash_len` bytes each.
    pub hashes: *const u8,
    /// Length of one hash in bytes.
    pub hash_len: usize,
    /// Number of hashes.
    pub count: usize,
    /// The hash before the first of them; NULL at the start of a prompt.
    pub parent: *const u8,
    /// Its length in bytes.
    pub parent_len: usize,
    /// The tokens of the whole range, blocks that were passed over included; NULL if none were
    /// given.
    pub tokens: *const u32,
    /// Their number.
    pub tokens_len: usize,
    /// What was passed along.
    pub tag: u64,
}

/// Events in the order in which they happened. Free with `kvf_block_event_list_free()`.
#[repr(C)]
#[derive(Debug)]
pub struct kvf_block_event_list {
    /// `len` events, or NULL.
    pub items: *mut kvf_block_event,
    /// Their number.
    pub len: usize,
    /// How many before these were thrown away because nobody took them in time. Not zero means
    /// that a listener has to forget what it knew.
    pub lost: u64,
    /// What the events point to. Leave it alone.
    pub storage: *mut c_void,
}

/// One key of a block.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_block_key {
    /// The hash.
    pub hash: [u8; 255],
    /// Its length in bytes.
    pub hash_len: u8,
    /// Group of layers that share a block table.
    pub group: u32,
}

const _: () = assert!(MAX_HASH == 255);

/// The longest known prefix: how many of `count` hashes, from the first, have a block in every
/// group; of several in a group the one that was cached first.
///
/// @param hashes  `count` hashes, one after the other, `hash_len` bytes each.
/// @param groups  The groups; at least one.
/// @param touch   1: what is found is also touched, in the same step: nobody can allocate it in
///                between.
/// @param ids     Receives up to `count * groups_len` blocks, those of the first hash first, in
///                the order of `groups`. What is behind those found means nothing.
/// @param found   Receives the number of hashes found. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_block_pool_lookup(
    pool: kvf_block_pool,
    hashes: *const u8,
    hash_len: usize,
    count: usize,
    groups: *const u32,
    groups_len: usize,
    touch: u8,
    ids: *mut u32,
    found: *mut usize,
) -> kvf_status {
    guard(|| {
        let touch = flag(touch, "touch")?;
        let room = count
            .checked_mul(groups_len)
            .ok_or_else(|| Error::invalid(format!("{count} hashes in {groups_len} groups")))?;
        // SAFETY: the caller's contract, here and in every block below of this file.
        let (hashes, groups, ids, found) = unsafe {
            (
                hash_bytes(hashes, hash_len, count)?,
                inputs(groups, groups_len, "groups")?,
                outputs(ids, room, "ids")?,
                out(found, "found")?,
            )
        };
        found.write(with(pool, |p| match touch {
            true => p.acquire_chain(hashes, hash_len, groups, ids),
            false => p.lookup_chain(hashes, hash_len, groups, ids),
        })?);
        Ok(())
    })
}

/// Enters full blocks into the prefix index. One that is there already with the key of a
/// shorter prefix loses its keys first. Records one event for the call.
///
/// @return `KVF_ERR_INVALID_STATE` if the pool does not cache, or a block has a key for as many
///         tokens or more; `KVF_ERR_MISMATCH` if arrays do not agree. Nothing is changed. Any
///         thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_block_pool_cache(
    pool: kvf_block_pool,
    blocks: *const kvf_cached_blocks,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let what = unsafe { cached_blocks(blocks) }?;
        // SAFETY: as above.
        let ids = unsafe { inputs(what.0.blocks, what.0.len, "blocks->blocks") }?;
        with(pool, |p| {
            p.cache_full(&CacheFull {
                blocks: ids,
                ..what.1
            })
        })
    })
}

/// Records an event for blocks that are cached already and were used again. Changes nothing
/// else; `blocks`, `first` and `mask` are not looked at. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_block_pool_announce(
    pool: kvf_block_pool,
    blocks: *const kvf_cached_blocks,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let what = unsafe { cached_blocks(blocks) }?.1;
        with(pool, |p| {
            p.announce(&Stored {
                hashes: what.hashes,
                hash_len: what.hash_len,
                parent: what.parent,
                tokens: what.tokens,
                block_size: what.block_size,
                group: what.group,
                tag: what.tag,
            })
        })
    })
}

/// Enters a key for the first part of a block, next to those it has. A block whose primary key
/// is for a shorter prefix loses its keys first. Records one event, unless the block has the
/// key already.
///
/// @return As `kvf_block_pool_cache()`, except that any number of tokens is allowed. Any
///         thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_block_pool_cache_partial(
    pool: kvf_block_pool,
    part: *const kvf_cached_part,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let what = unsafe { cached_part(part) }?;
        with(pool, |p| p.cache_partial(&what))
    })
}

/// Gives all keys of block `from` to block `to`, which has none. No events: the content is still
/// there.
///
/// @return `KVF_ERR_INVALID_STATE` if the pool does not cache or `to` has keys. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn kvf_block_pool_move_keys(pool: kvf_block_pool, from: u32, to: u32) -> kvf_status {
    guard(|| with(pool, |p| p.move_keys(from, to)))
}

/// Takes all keys from these blocks, held or not. Their place in the free queue stays as it is.
///
/// @return `KVF_ERR_INVALID_ARGUMENT` for an unknown block: nothing is changed. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_block_pool_evict(
    pool: kvf_block_pool,
    ids: *const u32,
    len: usize,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let ids = unsafe { inputs(ids, len, "ids") }?;
        with(pool, |p| p.evict(ids))
    })
}

/// Empties the prefix index, if no block is held; the order of the free queue stays as it is.
///
/// @param done  Receives 1, or 0 if a block is held and nothing was changed. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_block_pool_reset(pool: kvf_block_pool, done: *mut u8) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let done = unsafe { out(done, "done") }?;
        done.write(with(pool, |p| Ok(p.reset()))?.into());
        Ok(())
    })
}

/// The keys of a block, the primary one first.
///
/// @param keys      Receives the first `capacity` of them, or fewer if there are fewer.
/// @param num_keys  Receives how many there are.
/// @param tokens    Receives the tokens of the prefix of the primary key; 0 if there is none.
///                  Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_block_pool_keys(
    pool: kvf_block_pool,
    id: u32,
    keys: *mut kvf_block_key,
    capacity: usize,
    num_keys: *mut usize,
    tokens: *mut u32,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract; the slice is for its checks.
        let (_, num_keys, tokens) = unsafe {
            (
                slice(keys.cast_const(), capacity, "keys")?,
                out(num_keys, "num_keys")?,
                out(tokens, "tokens")?,
            )
        };
        let (found, covered) = with(pool, |p| Ok((p.keys(id)?, p.cached_tokens(id)?)))?;
        let each = found.iter().map(|(hash, group)| (&hash[..], *group));
        // SAFETY: checked above, and writable by contract.
        unsafe { write_keys(keys, capacity, each) };
        num_keys.write(found.len());
        tokens.write(covered.unwrap_or(0));
        Ok(())
    })
}

/// The events since the last call; none if the pool does not record them.
///
/// @param events  Free with `kvf_block_event_list_free()`. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_block_pool_take_events(
    pool: kvf_block_pool,
    events: *mut kvf_block_event_list,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let events = unsafe { out(events, "events") }?;
        events.write(event_list(with(pool, |p| Ok(p.take_events()))?));
        Ok(())
    })
}

/// Frees the events and zeroes the struct. NULL, and a struct that is all zero, are ignored. Any
/// thread, one at a time per struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_block_event_list_free(events: *mut kvf_block_event_list) {
    guard_or((), || {
        // SAFETY: NULL or valid by contract.
        let Some(list) = (unsafe { events.as_mut() }) else {
            return;
        };
        if !list.items.is_null() {
            let items = std::ptr::slice_from_raw_parts_mut(list.items, list.len);
            // SAFETY: made by `event_list`, by contract not changed.
            drop(unsafe { Box::from_raw(items) });
        }
        if !list.storage.is_null() {
            // SAFETY: as above.
            drop(unsafe { Box::from_raw(list.storage.cast::<EventBatch>()) });
        }
        *list = EMPTY;
    });
}

const EMPTY: kvf_block_event_list = kvf_block_event_list {
    items: std::ptr::null_mut(),
    len: 0,
    lost: 0,
    storage: std::ptr::null_mut(),
};

/// Events that point into the batch, and the batch.
pub(super) fn event_list(batch: EventBatch) -> kvf_block_event_list {
    let lost = batch.lost();
    if batch.is_empty() {
        return kvf_block_event_list { lost, ..EMPTY };
    }
    // In its place before anything points to it.
    let batch = Box::new(batch);
    let items: Box<[kvf_block_event]> = batch.iter().map(event).collect();
    let len = items.len();
    kvf_block_event_list {
        items: Box::into_raw(items).cast(),
        len,
        lost,
        storage: Box::into_raw(batch).cast(),
    }
}

fn event(event: Event<'_>) -> kvf_block_event {
    let stored = match event {
        Event::Stored(stored) => stored,
        Event::Removed { hash, group } => Stored {
            hashes: hash,
            hash_len: hash.len(),
            group,
            ..Stored::default()
        },
        Event::Cleared => Stored::default(),
    };
    kvf_block_event {
        kind: match event {
            Event::Stored(_) => KVF_BLOCK_STORED,
            Event::Removed { .. } => KVF_BLOCK_REMOVED,
            Event::Cleared => KVF_BLOCKS_CLEARED,
        },
        group: stored.group,
        block_size: stored.block_size,
        reserved: 0,
        hashes: pointer(stored.hashes),
        hash_len: stored.hash_len,
        count: stored.each_hash().len(),
        parent: pointer(stored.parent),
        parent_len: stored.parent.len(),
        tokens: pointer(stored.tokens),
        tokens_len: stored.tokens.len(),
        tag: stored.tag,
    }
}

/// Writes the first `capacity` of these keys.
///
/// # Safety
/// `out` may be written to as far as that.
pub(super) unsafe fn write_keys<'a>(
    out: *mut kvf_block_key,
    capacity: usize,
    keys: impl Iterator<Item = (&'a [u8], u32)>,
) {
    for (i, (hash, group)) in keys.take(capacity).enumerate() {
        // No pool has a longer one; a server might say so.
        let hash = &hash[..hash.len().min(MAX_HASH)];
        let mut key = kvf_block_key {
            hash: [0; MAX_HASH],
            hash_len: hash.len() as u8,
            group,
        };
        key.hash[..hash.len()].copy_from_slice(hash);
        // SAFETY: `i < capacity`.
        unsafe { out.add(i).write(key) };
    }
}

/// NULL for nothing.
fn pointer<T>(items: &[T]) -> *const T {
    if items.is_empty() {
        std::ptr::null()
    } else {
        items.as_ptr()
    }
}

/// Longest array of hashes or tokens that is believed.
const MAX_ARRAY: usize = 1 << 34;

/// # Safety
/// As for [`bounded`], with `len * count` bytes.
pub(super) unsafe fn hash_bytes<'a>(ptr: *const u8, len: usize, count: usize) -> Result<&'a [u8]> {
    if count > 0 && !(1..=MAX_HASH).contains(&len) {
        return Err(Error::invalid(format!(
            "a hash of {len} bytes: it has 1 to {MAX_HASH}"
        )));
    }
    let bytes = len.saturating_mul(count);
    // SAFETY: the same contract.
    unsafe { bounded(ptr, bytes, MAX_ARRAY, "hashes") }
}

/// The struct, and what it says, without the blocks.
///
/// # Safety
/// A non-null `ptr` and what it points to are valid.
pub(super) unsafe fn cached_blocks<'a>(
    ptr: *const kvf_cached_blocks,
) -> Result<(kvf_cached_blocks, CacheFull<'a>)> {
    // SAFETY: by contract, here and below.
    let o = unsafe { options(ptr, "blocks") }?;
    let mask_len = if o.mask.is_null() { 0 } else { o.len };
    // SAFETY: by contract.
    let what = unsafe {
        CacheFull {
            blocks: &[],
            hashes: hash_bytes(o.hashes, o.hash_len, o.len)?,
            hash_len: o.hash_len,
            group: o.group,
            first: o.first,
            block_size: o.block_size,
            mask: bounded(o.mask, mask_len, MAX_ARRAY, "blocks->mask")?,
            parent: bounded(o.parent, o.parent_len, MAX_HASH, "blocks->parent")?,
            tokens: bounded(o.tokens, o.tokens_len, MAX_ARRAY, "blocks->tokens")?,
            tag: o.tag,
        }
    };
    Ok((o, what))
}

/// # Safety
/// A non-null `ptr` and what it points to are valid.
pub(super) unsafe fn cached_part<'a>(ptr: *const kvf_cached_part) -> Result<CachePartial<'a>> {
    // SAFETY: by contract, here and below.
    let o = unsafe { options(ptr, "part") }?;
    if o.reserved != [0; 3] {
        return Err(Error::invalid("part->reserved is not zero"));
    }
    // SAFETY: by contract.
    let (hash, parent, tokens) = unsafe {
        (
            bounded(o.hash, o.hash_len, MAX_HASH, "part->hash")?,
            bounded(o.parent, o.parent_len, MAX_HASH, "part->parent")?,
            bounded(o.tokens, o.tokens_len, MAX_ARRAY, "part->tokens")?,
        )
    };
    Ok(CachePartial {
        block: o.block,
        hash,
        group: o.group,
        num_tokens: o.num_tokens,
        replace: flag(o.replace, "part->replace")?,
        block_size: o.block_size,
        parent,
        tokens,
        tag: o.tag,
    })
}
