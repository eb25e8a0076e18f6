//! The prefix index: from a key to the blocks that hold its content.
//!
//! An entry says that one block holds the content of one key, in one cache line. The first
//! (*primary*) entry of block `b` is entry `b`, so a block with one key, which is nearly every block,
//! needs no look-up to find its key and no allocation. Further (*secondary*) entries come behind the
//! primary ones and are used again when they become free.
//!
//! Several blocks may have the same key. Their entries hang in a circular list, oldest first, and
//! the table has the oldest, which is the one a look-up gives.

use std::collections::HashMap;

use super::NONE;
use super::key::{INLINE, Key, Mixer};
use super::memory::{filled, prefetch};
use super::table::Table;
use crate::error::{Result, Status, bail};

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Entry {
    hash: [u8; INLINE],
    group: u32,
    /// [`Mixer::mix`] of the key.
    mixed: u32,
    block: u32,
    /// Neighbours in the circular list of entries with the same key.
    newer: u32,
    older: u32,
    /// The block's next secondary entry, or the next unused one.
    sibling: u32,
    /// Tokens of the prefix that the key stands for; of a primary entry.
    tokens: u32,
    hash_len: u8,
    used: bool,
    /// The oldest with its key: the table has it.
    oldest: bool,
}

const _: () = assert!(size_of::<Entry>() == 64);

const UNUSED: Entry = Entry {
    hash: [0; INLINE],
    group: 0,
    mixed: 0,
    block: 0,
    newer: NONE,
    older: NONE,
    sibling: NONE,
    tokens: 0,
    hash_len: 0,
    used: false,
    oldest: false,
};

/// How many look-ups wait for memory together.
pub(super) const AHEAD: usize = 16;

/// Keys and the blocks that have them.
pub(super) struct Index {
    entries: Vec<Entry>,
    table: Table,
    mixer: Mixer,
    /// What is behind the first [`INLINE`] bytes of long hashes.
    tails: HashMap<u32, Box<[u8]>>,
    /// First unused secondary entry.
    spare: u32,
    blocks: u32,
    cached_blocks: u32,
}

impl Index {
    pub(super) fn new(blocks: u32) -> Result<Self> {
        Ok(Index {
            entries: filled(blocks as usize, UNUSED, "the prefix index")?,
            table: Table::new(blocks as usize)?,
            mixer: Mixer::new(),
            tails: HashMap::new(),
            spare: NONE,
            blocks,
            cached_blocks: 0,
        })
    }

    /// Number of blocks with a key.
    pub(super) fn cached_blocks(&self) -> u32 {
        self.cached_blocks
    }

    /// Number of different keys.
    pub(super) fn cached_keys(&self) -> usize {
        self.table.len()
    }

    /// [`Mixer::mix`].
    pub(super) fn mix(&self, key: &Key<'_>) -> u32 {
        self.mixer.mix(key)
    }

    /// Looks up keys 0 to `out.len() - 1` until one is not there, and writes for each the block that
    /// has had it for longest. Returns how many were found.
    ///
    /// Each look-up waits for memory twice, for the slot of the table and for the entry. They are
    /// done in groups, the slots first and then the entries, so that the waits of a group overlap.
    pub(super) fn get_while<'a>(&self, key: impl Fn(usize) -> Key<'a>, out: &mut [u32]) -> usize {
        // The first alone: most chains that are not known fail there.
        let Some(first) = out.first_mut() else {
            return 0;
        };
        match self.find(self.mix(&key(0)), &key(0)) {
            Some(entry) => *first = self.entries[entry as usize].block,
            None => return 0,
        }
        let mut mixed = [0; AHEAD];
        let mut found = 1;
        while found < out.len() {
            let mixed = &mut mixed[..AHEAD.min(out.len() - found)];
            for (i, slot) in mixed.iter_mut().enumerate() {
                *slot = self.mix(&key(found + i));
                self.table.prefetch(*slot);
            }
            for &mixed in mixed.iter() {
                if let Some(entry) = self.table.guess(mixed) {
                    prefetch(&self.entries, entry as usize);
                }
            }
            for &mut mixed in mixed {
                let Some(entry) = self.find(mixed, &key(found)) else {
                    return found;
                };
                out[found] = self.entries[entry as usize].block;
                found += 1;
            }
        }
        found
    }

    /// Fetches what [`Index::insert`] will need for a block and a key.
    pub(super) fn prefetch_insert(&self, block: u32, mixed: u32) {
        prefetch(&self.entries, block as usize);
        self.table.prefetch(mixed);
    }

    /// Fetches the primary entry of a block.
    pub(super) fn prefetch_entry(&self, block: u32) {
        prefetch(&self.entries, block as usize);
    }

    /// Fetches the slot that the primary entry of a block names.
    pub(super) fn prefetch_slot(&self, block: u32) {
        self.table.prefetch(self.entries[block as usize].mixed);
    }

    /// Whether the block has this key.
    pub(super) fn has(&self, block: u32, key: &Key<'_>) -> bool {
        self.entries_of(block).any(|e| self.is(e, key))
    }

    /// Tokens of the prefix of the block's primary key.
    pub(super) fn tokens(&self, block: u32) -> Option<u32> {
        let entry = &self.entries[block as usize];
        entry.used.then_some(entry.tokens)
    }

    /// Makes sure that the next `more` insertions find room.
    pub(super) fn reserve(&mut self, more: usize) -> Result<()> {
        self.table.reserve(more)
    }

    /// Gives a block a key that it does not have; `mixed` is that of the key. The first becomes its
    /// primary one; `tokens` is kept for that only. Room in the table has been reserved.
    pub(super) fn insert(
        &mut self,
        block: u32,
        key: &Key<'_>,
        mixed: u32,
        tokens: u32,
    ) -> Result<()> {
        let number = if self.entries[block as usize].used {
            self.secondary(block)?
        } else {
            block
        };
        let first = self.find(mixed, key);
        let (newer, older) = match first {
            None => (number, number),
            Some(first) => {
                let last = self.entries[first as usize].older;
                self.entries[last as usize].newer = number;
                self.entries[first as usize].older = number;
                (first, last)
            }
        };
        self.entries[number as usize] = Entry {
            hash: key.head,
            group: key.group,
            mixed,
            block,
            newer,
            older,
            // It is the last of its block's entries.
            sibling: NONE,
            tokens,
            hash_len: key.hash.len() as u8,
            used: true,
            oldest: first.is_none(),
        };
        if !key.tail().is_empty() {
            self.tails.insert(number, key.tail().into());
        }
        if first.is_none() {
            self.table.insert(mixed, number);
        }
        self.cached_blocks += u32::from(number == block);
        Ok(())
    }

    /// Takes all keys from a block, and gives each to `removed`: the primary one first, the others
    /// in the order in which they came.
    pub(super) fn remove(&mut self, block: u32, mut removed: impl FnMut(&[u8], u32)) {
        if !self.entries[block as usize].used {
            return;
        }
        let mut number = block;
        while number != NONE {
            let entry = self.entries[number as usize];
            if usize::from(entry.hash_len) <= INLINE {
                removed(&entry.hash[..entry.hash_len.into()], entry.group);
            } else {
                removed(&self.hash_of(number), entry.group);
                self.tails.remove(&number);
            }
            self.detach(number, &entry);
            self.entries[number as usize].used = false;
            if number != block {
                self.entries[number as usize].sibling = self.spare;
                self.spare = number;
            }
            number = entry.sibling;
        }
        self.cached_blocks -= 1;
    }

    /// All keys of a block, the primary one first.
    pub(super) fn keys(&self, block: u32) -> Vec<(Vec<u8>, u32)> {
        self.entries_of(block)
            .map(|e| (self.hash_of(e), self.entries[e as usize].group))
            .collect()
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.entries.truncate(self.blocks as usize);
        self.entries.fill(UNUSED);
        self.table.clear();
        self.tails.clear();
        self.spare = NONE;
        self.cached_blocks = 0;
    }

    /// Takes an entry out of the list of its key, and its key out of the table if it was the last.
    fn detach(&mut self, number: u32, entry: &Entry) {
        if entry.newer == number {
            self.table.remove(entry.mixed, number);
            return;
        }
        self.entries[entry.newer as usize].older = entry.older;
        self.entries[entry.older as usize].newer = entry.newer;
        if entry.oldest {
            self.entries[entry.newer as usize].oldest = true;
            self.table.replace(entry.mixed, number, entry.newer);
        }
    }

    /// A secondary entry for a block, behind those it has.
    fn secondary(&mut self, block: u32) -> Result<u32> {
        let number = if self.spare != NONE {
            let number = self.spare;
            self.spare = self.entries[number as usize].sibling;
            number
        } else {
            if self.entries.len() >= NONE as usize || self.entries.try_reserve(1).is_err() {
                bail!(
                    Status::ResourceExhausted,
                    "no room for another key of block {block}"
                );
            }
            self.entries.push(UNUSED);
            (self.entries.len() - 1) as u32
        };
        let mut last = block;
        while self.entries[last as usize].sibling != NONE {
            last = self.entries[last as usize].sibling;
        }
        self.entries[last as usize].sibling = number;
        Ok(number)
    }

    fn find(&self, mixed: u32, key: &Key<'_>) -> Option<u32> {
        self.table.find(mixed, |e| self.is(e, key))
    }

    fn is(&self, number: u32, key: &Key<'_>) -> bool {
        let entry = &self.entries[number as usize];
        entry.hash == key.head
            && entry.group == key.group
            && usize::from(entry.hash_len) == key.hash.len()
            && (key.tail().is_empty()
                || self.tails.get(&number).is_some_and(|t| **t == *key.tail()))
    }

    fn entries_of(&self, block: u32) -> impl Iterator<Item = u32> + '_ {
        let first = self.entries[block as usize].used.then_some(block);
        std::iter::successors(first, |&e| {
            let next = self.entries[e as usize].sibling;
            (next != NONE).then_some(next)
        })
    }

    fn hash_of(&self, number: u32) -> Vec<u8> {
        let entry = &self.entries[number as usize];
        let inline = usize::from(entry.hash_len).min(INLINE);
        let mut hash = entry.hash[..inline].to_vec();
        if let Some(tail) = self.tails.get(&number) {
            hash.extend_from_slice(tail);
        }
        hash
    }
}
