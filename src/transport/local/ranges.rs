//! A set of address ranges that answers "is all of this registered?" quickly.
//!
//! Registrations are kept as they were made, because they are taken back the same way; questions are
//! answered from the merged, sorted spans by binary search. Neighbouring registrations count as one
//! piece of memory: a range may straddle two of them. The device number of host memory is a NUMA
//! hint and is not compared.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::memory::MemDesc;

/// Addresses from `start` up to but not including `end`; never empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    pub start: u64,
    pub end: u64,
}

impl Span {
    /// The addresses of a range; a length of zero or one that wraps around is refused.
    pub fn of(range: &MemDesc) -> Result<Span> {
        let end = range.end()?;
        if range.len == 0 {
            return Err(Error::invalid(format!(
                "range at {:#x} has a length of 0",
                range.addr
            )));
        }
        Ok(Span {
            start: range.addr,
            end,
        })
    }

    pub fn len(&self) -> u64 {
        self.end - self.start
    }
}

/// How often one range is registered, and whether it may be written.
#[derive(Clone, Copy)]
struct Entry {
    count: u64,
    writable: bool,
}

/// Registered ranges.
#[derive(Default)]
pub(super) struct RangeSet {
    registered: BTreeMap<(u64, u64), Entry>,
    merged: Vec<Span>,
    read_only: Vec<Span>,
    stale: bool,
}

impl RangeSet {
    /// Adds one registration; the same range may be registered several times.
    pub fn insert(&mut self, span: Span, writable: bool) {
        let entry = self
            .registered
            .entry((span.start, span.end))
            .or_insert(Entry { count: 0, writable });
        entry.count += 1;
        entry.writable &= writable;
        self.stale = true;
    }

    /// Takes one registration back and says whether it was writable; `None` when there is no such
    /// registration.
    pub fn remove(&mut self, span: Span) -> Option<bool> {
        let entry = self.registered.get_mut(&(span.start, span.end))?;
        let writable = entry.writable;
        entry.count -= 1;
        if entry.count == 0 {
            self.registered.remove(&(span.start, span.end));
        }
        self.stale = true;
        Some(writable)
    }

    pub fn clear(&mut self) {
        *self = RangeSet::default();
    }

    /// Brings the merged spans up to date. Called before questions are asked, so that registering
    /// range by range costs no more than registering all at once.
    pub fn settle(&mut self) {
        if !self.stale {
            return;
        }
        let all = self.registered.iter();
        self.merged = merge(all.clone().map(|(&(start, end), _)| Span { start, end }));
        self.read_only = merge(
            all.filter(|(_, entry)| !entry.writable)
                .map(|(&(start, end), _)| Span { start, end }),
        );
        self.stale = false;
    }

    /// The merged spans in ascending order. The set must be settled.
    pub fn merged(&self) -> &[Span] {
        debug_assert!(!self.stale);
        &self.merged
    }

    /// Whether every byte of `span` is registered. `hint` remembers the span that answered last:
    /// ranges of one list mostly lie in the same one. The set must be settled.
    pub fn covers(&self, span: Span, hint: &mut usize) -> bool {
        debug_assert!(!self.stale);
        let inside = |s: &Span| s.start <= span.start && span.end <= s.end;
        if self.merged.get(*hint).is_some_and(inside) {
            return true;
        }
        let after = self.merged.partition_point(|s| s.start <= span.start);
        match after.checked_sub(1) {
            Some(i) if inside(&self.merged[i]) => {
                *hint = i;
                true
            }
            _ => false,
        }
    }

    /// Whether some byte of `span` was registered without the right to write it.
    pub fn touches_read_only(&self, span: Span) -> bool {
        debug_assert!(!self.stale);
        let after = self.read_only.partition_point(|s| s.end <= span.start);
        self.read_only
            .get(after)
            .is_some_and(|s| s.start < span.end)
    }
}

/// Joins spans that overlap or touch. They come sorted by start.
fn merge(spans: impl Iterator<Item = Span>) -> Vec<Span> {
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
            _ => merged.push(span),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u64, end: u64) -> Span {
        Span { start, end }
    }

    fn covers(set: &mut RangeSet, start: u64, end: u64) -> bool {
        set.settle();
        set.covers(span(start, end), &mut 0)
    }

    #[test]
    fn neighbours_become_one_piece_and_fall_apart_again() {
        let mut set = RangeSet::default();
        set.insert(span(100, 200), true);
        set.insert(span(200, 300), true);
        set.insert(span(400, 500), true);
        assert!(covers(&mut set, 150, 250));
        assert!(covers(&mut set, 400, 500));
        assert!(!covers(&mut set, 250, 450));
        assert!(!covers(&mut set, 99, 101));
        assert!(!covers(&mut set, 499, 501));
        assert_eq!(set.remove(span(100, 300)), None);
        assert_eq!(set.remove(span(200, 300)), Some(true));
        assert!(!covers(&mut set, 150, 250));
        assert!(covers(&mut set, 100, 200));
    }

    #[test]
    fn a_range_registered_twice_goes_with_the_second_removal() {
        let mut set = RangeSet::default();
        set.insert(span(0, 8), true);
        set.insert(span(0, 8), true);
        assert!(set.remove(span(0, 8)).is_some());
        assert!(covers(&mut set, 0, 8));
        assert!(set.remove(span(0, 8)).is_some());
        assert!(!covers(&mut set, 0, 8));
        assert!(set.remove(span(0, 8)).is_none());
    }

    #[test]
    fn read_only_spans_are_known_to_the_byte() {
        let mut set = RangeSet::default();
        set.insert(span(100, 200), true);
        set.insert(span(200, 300), false);
        set.settle();
        assert!(!set.touches_read_only(span(100, 200)));
        assert!(set.touches_read_only(span(199, 201)));
        assert!(set.touches_read_only(span(299, 300)));
        assert!(!set.touches_read_only(span(300, 301)));
    }

    #[test]
    fn answers_agree_with_a_bitmap() {
        // A small world of 64 addresses, in which every question can be asked.
        let mut seed = 0x1234_5678_9abc_def1u64;
        let mut next = move |n: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % n
        };
        for _ in 0..200 {
            let mut set = RangeSet::default();
            let mut map = [false; 64];
            for _ in 0..next(6) {
                let start = next(60);
                let end = start + 1 + next(64 - start - 1).min(15);
                set.insert(span(start, end), true);
                map[start as usize..end as usize].fill(true);
            }
            set.settle();
            let mut hint = 0;
            for start in 0..63usize {
                for end in start + 1..64 {
                    let expected = map[start..end].iter().all(|&b| b);
                    let answer = set.covers(span(start as u64, end as u64), &mut hint);
                    assert_eq!(answer, expected, "{start}..{end} in {map:?}");
                }
            }
        }
    }

    #[test]
    fn spans_refuse_nothing_and_wrapping() {
        let range = |addr, len| MemDesc {
            addr,
            len,
            device: 0,
        };
        assert!(Span::of(&range(16, 0)).is_err());
        assert!(Span::of(&range(u64::MAX, 2)).is_err());
        assert_eq!(Span::of(&range(16, 4)).unwrap(), span(16, 20));
    }
}
