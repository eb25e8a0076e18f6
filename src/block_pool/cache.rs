//! The prefix cache of the pool: looking up, caching and evicting content.

use super::events::Stored;
use super::index::{AHEAD, Index};
use super::key::Key;
use super::pool::{BlockPool, MAX_HASH, NULL_BLOCK};
use super::queue::{HASHED, WATCHED};
use crate::error::{Error, Result, Status, bail};

/// Full blocks of one request to be cached; see [`BlockPool::cache_full`].
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheFull<'a> {
    /// Adjacent blocks of the request's block table. Null blocks are passed over.
    pub blocks: &'a [u32],
    /// Their hashes, one after the other.
    pub hashes: &'a [u8],
    /// Length of one hash in bytes, 1 to [`MAX_HASH`].
    pub hash_len: usize,
    /// The group.
    pub group: u32,
    /// Position of the first of `blocks` in the block table.
    pub first: u32,
    /// Tokens per block.
    pub block_size: u32,
    /// Empty, or a byte for each block: those with 0 are passed over.
    pub mask: &'a [u8],
    /// For the event: the hash of the block before the first; empty if there is none.
    pub parent: &'a [u8],
    /// For the event: the tokens of all blocks, or nothing.
    pub tokens: &'a [u32],
    /// For the event: anything.
    pub tag: u64,
}

/// A key for the first part of a block's content; see [`BlockPool::cache_partial`].
#[derive(Clone, Copy, Debug, Default)]
pub struct CachePartial<'a> {
    /// The block. For the null block nothing is done.
    pub block: u32,
    /// The hash of the prefix.
    pub hash: &'a [u8],
    /// The group.
    pub group: u32,
    /// Tokens of the prefix.
    pub num_tokens: u32,
    /// The content was replaced: the keys that the block has are removed first.
    pub replace: bool,
    /// For the event: tokens of the part that the hash adds to its parent.
    pub block_size: u32,
    /// For the event: the hash before this one; empty if there is none.
    pub parent: &'a [u8],
    /// For the event: those tokens, or nothing.
    pub tokens: &'a [u32],
    /// For the event: anything.
    pub tag: u64,
}

impl BlockPool {
    /// The blocks that hold the content of this hash, one for each group, if there is one in all of
    /// them; of several in a group the one that was cached first. They are not touched.
    ///
    /// Returns whether there is one; if not, what `out` has means nothing.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] if the hash has an impossible length or there are no groups,
    /// [`Status::Mismatch`] if `out` has another length than `groups`.
    pub fn lookup(&mut self, hash: &[u8], groups: &[u32], out: &mut [u32]) -> Result<bool> {
        Ok(self.lookup_chain(hash, hash.len(), groups, out)? == 1)
    }

    /// The longest known prefix: how many of the hashes, from the first, have a block in every
    /// group. `out` gets the blocks, those of the first hash first, in the order of `groups`; it has
    /// room for all of them, and what is behind those found means nothing. They are not touched.
    ///
    /// # Errors
    /// As for [`BlockPool::lookup`].
    pub fn lookup_chain(
        &mut self,
        hashes: &[u8],
        hash_len: usize,
        groups: &[u32],
        out: &mut [u32],
    ) -> Result<usize> {
        let count = check_hashes(hashes, hash_len)?;
        if groups.is_empty() {
            return Err(Error::invalid("no groups to look in"));
        }
        if out.len() != count * groups.len() {
            bail!(
                Status::Mismatch,
                "room for {} blocks, but {count} hashes in {} groups",
                out.len(),
                groups.len()
            );
        }
        let Some(index) = &self.index else {
            return Ok(0);
        };
        let width = groups.len();
        let key = |i: usize| {
            Key::new(
                &hashes[i / width * hash_len..][..hash_len],
                groups[i % width],
            )
        };
        // A hash with a block in some of its groups only is not a hit.
        let hits = index.get_while(key, out) / width;
        self.stats.lookups += (hits + usize::from(hits < count)) as u64;
        self.stats.hits += hits as u64;
        Ok(hits)
    }

    /// [`BlockPool::lookup_chain`], and [`BlockPool::touch`] of what was found.
    ///
    /// # Errors
    /// As for both.
    pub fn acquire_chain(
        &mut self,
        hashes: &[u8],
        hash_len: usize,
        groups: &[u32],
        out: &mut [u32],
    ) -> Result<usize> {
        let hits = self.lookup_chain(hashes, hash_len, groups, out)?;
        self.touch(&out[..hits * groups.len()])?;
        Ok(hits)
    }

    /// Enters full blocks into the prefix index. One that is there already with the key of a shorter
    /// prefix loses its keys first. Records one event for the call.
    ///
    /// # Errors
    /// [`Status::InvalidState`] if the pool does not cache, or a block has a key for as many tokens
    /// or more; [`Status::InvalidArgument`] for an unknown block or an impossible length;
    /// [`Status::Mismatch`] if arrays do not agree. Nothing is changed.
    pub fn cache_full(&mut self, what: &CacheFull<'_>) -> Result<()> {
        self.check_full(what)?;
        let Some(index) = &mut self.index else {
            return Ok(());
        };
        if what.blocks.is_empty() {
            return Ok(());
        }
        index.reserve(what.blocks.len())?;
        self.cache_in_groups(what)?;
        if let Some(events) = self.event_log() {
            events.stored(&what.event(), what.chosen().map(|(_, hash)| hash));
        }
        Ok(())
    }

    /// Enters a key for the first part of a block, next to those it has. A block whose primary key
    /// is for a shorter prefix loses its keys first. Records one event, unless the block has the key
    /// already.
    ///
    /// # Errors
    /// As for [`BlockPool::cache_full`], except that any number of tokens is allowed.
    pub fn cache_partial(&mut self, what: &CachePartial<'_>) -> Result<()> {
        self.known(what.block)?;
        check_hash_len(what.hash.len())?;
        check_hash_len(what.parent.len().max(1))?;
        check_tokens(what.tokens.len(), what.block_size.into())?;
        let index = self.index_mut()?;
        if what.block == NULL_BLOCK {
            return Ok(());
        }
        let key = Key::new(what.hash, what.group);
        let mixed = index.mix(&key);
        let known = index.has(what.block, &key);
        let outgrown = index
            .tokens(what.block)
            .is_some_and(|t| t < what.num_tokens);
        index.reserve(1)?;
        if known && !what.replace {
            return Ok(());
        }
        if what.replace || outgrown {
            self.drop_keys(what.block);
        }
        self.add_key(what.block, &key, mixed, what.num_tokens)?;
        if let Some(events) = self.event_log() {
            events.stored(&what.event(), std::iter::once(what.hash));
        }
        Ok(())
    }

    /// Gives all keys of `from` to `to`, which has none. No events: the content is still there.
    ///
    /// # Errors
    /// [`Status::InvalidState`] if the pool does not cache or `to` has keys;
    /// [`Status::InvalidArgument`] for an unknown block or the null block. Nothing is changed.
    pub fn move_keys(&mut self, from: u32, to: u32) -> Result<()> {
        self.countable(from)?;
        self.countable(to)?;
        let index = self.index_mut()?;
        if let Some(tokens) = index.tokens(to) {
            bail!(
                Status::InvalidState,
                "block {to} is cached already, for {tokens} tokens"
            );
        }
        let Some(tokens) = index.tokens(from) else {
            return Ok(());
        };
        let keys = index.keys(from);
        // Their room in the table, and their entries, are those that become free here.
        index.remove(from, |_, _| {});
        for (hash, group) in &keys {
            let key = Key::new(hash, *group);
            index.insert(to, &key, index.mix(&key), tokens)?;
        }
        self.queue.nodes[from as usize].flags &= !HASHED;
        self.queue.nodes[to as usize].flags |= HASHED;
        Ok(())
    }

    /// Takes all keys from these blocks, held or not. Their place in the queue stays as it is.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] for an unknown block: nothing is changed.
    pub fn evict(&mut self, ids: &[u32]) -> Result<()> {
        for &id in ids {
            self.known(id)?;
        }
        for &id in ids {
            if self.queue.nodes[id as usize].flags & HASHED != 0 {
                self.drop_keys(id);
            }
        }
        Ok(())
    }

    /// Empties the prefix index, if no block is held; the order of the queue stays as it is.
    ///
    /// Returns whether it was done.
    pub fn reset(&mut self) -> bool {
        if self.num_free() != self.num_blocks() - 1 {
            return false;
        }
        if let Some(index) = &mut self.index {
            index.clear();
        }
        for (id, node) in self.queue.nodes.iter_mut().enumerate() {
            if node.flags & WATCHED != 0 {
                self.reused.push(id as u32);
            }
            node.flags &= !(HASHED | WATCHED);
        }
        self.stats.resets += 1;
        if let Some(events) = self.event_log() {
            events.cleared();
        }
        true
    }

    /// Records an event for content that is cached already and was used again. Changes nothing else.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] for an impossible length, [`Status::Mismatch`] if arrays do not
    /// agree.
    pub fn announce(&mut self, event: &Stored<'_>) -> Result<()> {
        let count = check_hashes(event.hashes, event.hash_len)?;
        check_hash_len(event.parent.len().max(1))?;
        check_tokens(
            event.tokens.len(),
            count as u64 * u64::from(event.block_size),
        )?;
        if count > 0
            && let Some(events) = self.event_log()
        {
            events.stored(event, event.each_hash());
        }
        Ok(())
    }

    /// The keys of a block, hash and group, the primary one first; none if nothing of it is cached.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] for an unknown block.
    pub fn keys(&self, id: u32) -> Result<Vec<(Vec<u8>, u32)>> {
        self.known(id)?;
        Ok(self.index.as_ref().map(|i| i.keys(id)).unwrap_or_default())
    }

    /// Tokens of the prefix whose end is this block's primary key.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] for an unknown block.
    pub fn cached_tokens(&self, id: u32) -> Result<Option<u32>> {
        self.known(id)?;
        Ok(self.index.as_ref().and_then(|i| i.tokens(id)))
    }

    /// Takes all keys from a block, with events.
    pub(super) fn drop_keys(&mut self, id: u32) {
        let Some(index) = &mut self.index else { return };
        let stats = &mut self.stats;
        self.queue.nodes[id as usize].flags &= !HASHED;
        match &mut self.events {
            None => index.remove(id, |_, _| stats.removed_keys += 1),
            Some(events) => {
                events.make_room(self.event_bytes, stats);
                index.remove(id, |hash, group| {
                    stats.removed_keys += 1;
                    events.removed(hash, group);
                });
            }
        }
    }

    /// Enters the chosen blocks, some at a time, so that what they wait for in memory is fetched
    /// together.
    fn cache_in_groups(&mut self, what: &CacheFull<'_>) -> Result<()> {
        let mut chosen = what.chosen();
        let mut group = [(0, &what.hashes[..0], 0); AHEAD];
        loop {
            let mut len = 0;
            let index = self.index_mut()?;
            for (slot, (i, hash)) in group.iter_mut().zip(chosen.by_ref()) {
                let mixed = index.mix(&Key::new(hash, what.group));
                index.prefetch_insert(what.blocks[i], mixed);
                *slot = (i, hash, mixed);
                len += 1;
            }
            for &(i, hash, mixed) in &group[..len] {
                let block = what.blocks[i];
                if self.queue.nodes[block as usize].flags & HASHED != 0 {
                    self.drop_keys(block);
                }
                self.add_key(block, &Key::new(hash, what.group), mixed, what.tokens_at(i))?;
            }
            if len < AHEAD {
                return Ok(());
            }
        }
    }

    fn add_key(&mut self, block: u32, key: &Key<'_>, mixed: u32, tokens: u32) -> Result<()> {
        self.index_mut()?.insert(block, key, mixed, tokens)?;
        self.queue.nodes[block as usize].flags |= HASHED;
        self.stats.stored_keys += 1;
        Ok(())
    }

    fn index_mut(&mut self) -> Result<&mut Index> {
        self.index.as_mut().ok_or_else(no_cache)
    }

    fn check_full(&self, what: &CacheFull<'_>) -> Result<()> {
        let Some(index) = &self.index else {
            return Err(no_cache());
        };
        let count = check_hashes(what.hashes, what.hash_len)?;
        if count != what.blocks.len() {
            bail!(
                Status::Mismatch,
                "{} blocks but {count} hashes",
                what.blocks.len()
            );
        }
        if !what.mask.is_empty() && what.mask.len() != count {
            bail!(
                Status::Mismatch,
                "{count} blocks but a mask of {}",
                what.mask.len()
            );
        }
        check_hash_len(what.parent.len().max(1))?;
        let end = (u64::from(what.first) + count as u64).checked_mul(what.block_size.into());
        if end.is_none_or(|end| end > u32::MAX.into()) {
            return Err(Error::invalid(format!(
                "a prefix of {} and {count} blocks of {} tokens: too long to be counted",
                what.first, what.block_size
            )));
        }
        check_tokens(what.tokens.len(), count as u64 * u64::from(what.block_size))?;
        for (i, &block) in what.blocks.iter().enumerate() {
            self.known(block)?;
            if what.is_chosen(i)
                && self.queue.nodes[block as usize].flags & HASHED != 0
                && let Some(tokens) = index.tokens(block).filter(|&t| t >= what.tokens_at(i))
            {
                bail!(
                    Status::InvalidState,
                    "block {block} is cached for {tokens} tokens already and cannot be for {}",
                    what.tokens_at(i)
                );
            }
        }
        Ok(())
    }
}

impl<'a> CacheFull<'a> {
    fn is_chosen(&self, i: usize) -> bool {
        self.blocks[i] != NULL_BLOCK && self.mask.get(i).is_none_or(|&m| m != 0)
    }

    /// The blocks to be cached, by position, with their hashes.
    fn chosen(&self) -> impl Iterator<Item = (usize, &'a [u8])> + '_ {
        self.hashes
            .chunks_exact(self.hash_len.max(1))
            .enumerate()
            .filter(|&(i, _)| self.is_chosen(i))
    }

    /// Tokens of the prefix that ends with block `i`; checked to be 32 bits.
    fn tokens_at(&self, i: usize) -> u32 {
        (self.first + i as u32 + 1) * self.block_size
    }

    fn event(&self) -> Stored<'a> {
        Stored {
            hashes: self.hashes,
            hash_len: self.hash_len,
            parent: self.parent,
            tokens: self.tokens,
            block_size: self.block_size,
            group: self.group,
            tag: self.tag,
        }
    }
}

impl<'a> CachePartial<'a> {
    fn event(&self) -> Stored<'a> {
        Stored {
            hashes: self.hash,
            hash_len: self.hash.len(),
            parent: self.parent,
            tokens: self.tokens,
            block_size: self.block_size,
            group: self.group,
            tag: self.tag,
        }
    }
}

fn no_cache() -> Error {
    Error::new(
        Status::InvalidState,
        "the pool was made without a prefix cache",
    )
}

fn check_hash_len(len: usize) -> Result<()> {
    if !(1..=MAX_HASH).contains(&len) {
        return Err(Error::invalid(format!(
            "a hash of {len} bytes: it has 1 to {MAX_HASH}"
        )));
    }
    Ok(())
}

/// How many hashes there are.
fn check_hashes(hashes: &[u8], len: usize) -> Result<usize> {
    if hashes.is_empty() {
        return Ok(0);
    }
    check_hash_len(len)?;
    if hashes.len() % len != 0 {
        bail!(
            Status::Mismatch,
            "{} bytes are not a number of {len}-byte hashes",
            hashes.len()
        );
    }
    Ok(hashes.len() / len)
}

fn check_tokens(tokens: usize, expected: u64) -> Result<()> {
    if tokens != 0 && tokens as u64 != expected {
        bail!(Status::Mismatch, "{tokens} tokens for blocks of {expected}");
    }
    Ok(())
}
