//! Which word of the ranks' lease tables stands for which hold.

use crate::connector::{LEASE_SLOTS, LeaseRef};

/// Slots are given out again last in, first out, so that the words in use stay few; each use of a slot
/// has a generation of its own, which is what keeps an old reader from taking it for its own.
#[derive(Debug, Default)]
pub(super) struct Leases {
    /// Uses of each slot so far.
    generations: Vec<u64>,
    free: Vec<u32>,
}

impl Leases {
    /// A word for a new hold; `None` when all are in use.
    pub(super) fn take(&mut self) -> Option<LeaseRef> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.generations.len() < LEASE_SLOTS as usize => {
                self.generations.push(0);
                self.generations.len() as u32 - 1
            }
            None => return None,
        };
        let generation = self.generations.get_mut(slot as usize)?;
        *generation += 1;
        Some(LeaseRef {
            slot,
            generation: *generation,
        })
    }

    /// The hold has ended on every rank.
    pub(super) fn give_back(&mut self, lease: LeaseRef) {
        self.free.push(lease.slot);
    }

    pub(super) fn in_use(&self) -> usize {
        self.generations.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_has_a_new_generation_each_time() {
        let mut leases = Leases::default();
        let first = leases.take().unwrap();
        assert_eq!((first.slot, first.generation), (0, 1));
        assert_eq!(leases.take().unwrap().slot, 1);
        leases.give_back(first);
        let again = leases.take().unwrap();
        assert_eq!((again.slot, again.generation), (0, 2));
        assert_eq!(leases.in_use(), 2);
    }

    #[test]
    fn there_is_an_end() {
        let mut leases = Leases::default();
        let all: Vec<_> = std::iter::from_fn(|| leases.take()).collect();
        assert_eq!(all.len(), LEASE_SLOTS as usize);
        leases.give_back(all[77]);
        assert_eq!(leases.take().unwrap().slot, 77);
    }
}
