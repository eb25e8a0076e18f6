//! Which word of the ranks' lease tables stands for which hold.

use crate::connector::{LEASE_SLOTS, LeaseRef};

/// Slots are given out again last in, first out, so that the words in use stay few. Each lease has a
/// generation of its own, above all before it, which is what keeps an old reader from taking it for its
/// own.
///
/// A generation is the time at which the lease was given, in microseconds since 1970, or one more than
/// the last where that is not later. So it is above those of an earlier life of this engine as well,
/// unless the clock was set back by more than the restart took.
#[derive(Debug, Default)]
pub(super) struct Leases {
    /// The last generation that was given out.
    last: u64,
    /// Slots that were ever given out: the first so many.
    slots: u32,
    free: Vec<u32>,
}

impl Leases {
    /// A word for a new hold; `None` when all are in use.
    pub(super) fn take(&mut self, now_us: u64) -> Option<LeaseRef> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots < LEASE_SLOTS => {
                self.slots += 1;
                self.slots - 1
            }
            None => return None,
        };
        self.last = now_us.max(self.last + 1);
        Some(LeaseRef {
            slot,
            generation: self.last,
        })
    }

    /// The hold has ended on every rank.
    pub(super) fn give_back(&mut self, lease: LeaseRef) {
        self.free.push(lease.slot);
    }

    pub(super) fn in_use(&self) -> usize {
        self.slots as usize - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(leases: &mut Leases, now_us: u64) -> (u32, u64) {
        let lease = leases.take(now_us).unwrap();
        (lease.slot, lease.generation)
    }

    #[test]
    fn each_lease_has_a_new_generation() {
        let mut leases = Leases::default();
        let first = leases.take(1000).unwrap();
        assert_eq!((first.slot, first.generation), (0, 1000));
        // In the same microsecond, and with a clock that has been set back.
        assert_eq!(taken(&mut leases, 1000), (1, 1001));
        leases.give_back(first);
        assert_eq!(taken(&mut leases, 7), (0, 1002));
        assert_eq!(taken(&mut leases, 5000), (2, 5000));
        assert_eq!(leases.in_use(), 3);
    }

    #[test]
    fn a_restarted_engine_begins_above_its_former_life() {
        let mut before = Leases::default();
        let old: Vec<_> = (0..100).map(|_| before.take(70_000).unwrap()).collect();
        let mut after = Leases::default();
        let new = after.take(71_000).unwrap();
        assert!(old.iter().all(|l| l.generation < new.generation));
    }

    #[test]
    fn there_is_an_end() {
        let mut leases = Leases::default();
        let all: Vec<_> = std::iter::from_fn(|| leases.take(1)).collect();
        assert_eq!(all.len(), LEASE_SLOTS as usize);
        leases.give_back(all[77]);
        assert_eq!(leases.take(1).unwrap().slot, 77);
    }
}
