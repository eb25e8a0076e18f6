//! An open-addressing table from 32 mixed bits to entry numbers.
//!
//! A slot is 8 bytes, eight to a cache line: the mixed bits and the entry. Probing is linear and the
//! table at most half full, so most look-ups read one line; what the slot says is compared in full
//! by the caller, who has the entries. Removal moves later slots back and leaves no tombstones.

use super::NONE;
use super::memory::{filled, prefetch};
use crate::error::Result;

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Slot {
    mixed: u32,
    entry: u32,
}

const EMPTY: Slot = Slot {
    mixed: 0,
    entry: NONE,
};

/// Mixed bits to entries, each pair at most once.
pub(super) struct Table {
    slots: Vec<Slot>,
    mask: usize,
    len: usize,
}

impl Table {
    /// A table for so many entries; it grows when there are more.
    pub(super) fn new(entries: usize) -> Result<Self> {
        let size = (entries.max(4) * 2).next_power_of_two();
        Ok(Table {
            slots: filled(size, EMPTY, "the prefix index")?,
            mask: size - 1,
            len: 0,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Makes room for so many more entries.
    pub(super) fn reserve(&mut self, more: usize) -> Result<()> {
        let needed = self.len + more;
        if needed * 2 <= self.slots.len() {
            return Ok(());
        }
        let mut larger = Table::new(needed)?;
        for slot in self.slots.iter().filter(|s| s.entry != NONE) {
            larger.insert(slot.mixed, slot.entry);
        }
        *self = larger;
        Ok(())
    }

    /// Fetches the place of these bits into the cache.
    pub(super) fn prefetch(&self, mixed: u32) {
        prefetch(&self.slots, mixed as usize & self.mask);
    }

    /// The first entry with these bits: nearly always the one that [`Table::find`] will give.
    pub(super) fn guess(&self, mixed: u32) -> Option<u32> {
        self.find(mixed, |_| true)
    }

    /// Adds a pair that is not there. The caller has reserved the room.
    pub(super) fn insert(&mut self, mixed: u32, entry: u32) {
        debug_assert!(self.len < self.mask, "the caller reserves");
        let mut i = mixed as usize & self.mask;
        while self.slots[i].entry != NONE {
            i = (i + 1) & self.mask;
        }
        self.slots[i] = Slot { mixed, entry };
        self.len += 1;
    }

    /// The entry with these bits that `is_it` accepts.
    pub(super) fn find(&self, mixed: u32, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let mut i = mixed as usize & self.mask;
        loop {
            let slot = self.slots[i];
            if slot.entry == NONE {
                return None;
            }
            if slot.mixed == mixed && is_it(slot.entry) {
                return Some(slot.entry);
            }
            i = (i + 1) & self.mask;
        }
    }

    /// Puts another entry in the place of one that is there.
    pub(super) fn replace(&mut self, mixed: u32, entry: u32, by: u32) {
        if let Some(i) = self.position(mixed, entry) {
            self.slots[i].entry = by;
        }
    }

    /// Removes a pair.
    pub(super) fn remove(&mut self, mixed: u32, entry: u32) {
        let Some(mut hole) = self.position(mixed, entry) else {
            return;
        };
        let mut i = hole;
        loop {
            i = (i + 1) & self.mask;
            let slot = self.slots[i];
            if slot.entry == NONE {
                break;
            }
            // It may move into the hole unless its place lies behind the hole.
            let home = slot.mixed as usize & self.mask;
            if (i.wrapping_sub(home) & self.mask) >= (i.wrapping_sub(hole) & self.mask) {
                self.slots[hole] = slot;
                hole = i;
            }
        }
        self.slots[hole] = EMPTY;
        self.len -= 1;
    }

    /// Removes everything.
    pub(super) fn clear(&mut self) {
        self.slots.fill(EMPTY);
        self.len = 0;
    }

    fn position(&self, mixed: u32, entry: u32) -> Option<usize> {
        let mut i = mixed as usize & self.mask;
        loop {
            let slot = self.slots[i];
            if slot == (Slot { mixed, entry }) {
                return Some(i);
            }
            if slot.entry == NONE {
                debug_assert!(false, "entry {entry} is not in the table");
                return None;
            }
            i = (i + 1) & self.mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn agrees_with_a_set_when_places_collide() {
        let mut table = Table::new(4).unwrap();
        let mut model = BTreeSet::new();
        let mut x = 7u64;
        let mut random = |n: u64| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            ((x >> 20) % n) as u32
        };
        for _ in 0..20_000 {
            // Few different values, most of them at the end of the table so that probes wrap.
            let mixed = u32::MAX - random(6);
            let entry = random(40);
            if model.remove(&(mixed, entry)) {
                table.remove(mixed, entry);
            } else if random(3) > 0 {
                table.reserve(1).unwrap();
                table.insert(mixed, entry);
                model.insert((mixed, entry));
            }
            assert_eq!(table.len(), model.len());
            let q = (u32::MAX - random(8), random(40));
            assert_eq!(
                table.find(q.0, |e| e == q.1).is_some(),
                model.contains(&q),
                "{q:?} in {model:?}"
            );
        }
    }
}
