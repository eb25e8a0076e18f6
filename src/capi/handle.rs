//! Typed generational handles.
//!
//! A handle is 64 bits: the generation of its slot in the upper half (never zero for a live one),
//! its kind in the next 8 bits, the slot in the lower 24. A stale handle misses by generation, one
//! of another kind by kind, an invented one by either: all are a status, none is a crash.

use std::sync::{Arc, RwLock};

use slotmap::{DefaultKey, Key, KeyData, SlotMap};

use crate::error::{Error, Result, Status, bail};
use crate::sync::{read, write};

const KIND_SHIFT: u32 = 24;
const MAX_SLOTS: usize = 1 << KIND_SHIFT;

/// Live objects of one kind.
pub(super) struct Table<T> {
    /// Distinguishes the tables inside a handle; not zero.
    kind: u8,
    /// For messages.
    noun: &'static str,
    slots: RwLock<SlotMap<DefaultKey, Arc<T>>>,
}

impl<T> Table<T> {
    pub(super) fn new(kind: u8, noun: &'static str) -> Self {
        Table {
            kind,
            noun,
            slots: RwLock::default(),
        }
    }

    /// Adds an object and returns its handle.
    pub(super) fn insert(&self, object: Arc<T>) -> Result<u64> {
        let mut slots = write(&self.slots);
        if slots.len() + 1 >= MAX_SLOTS {
            bail!(
                Status::ResourceExhausted,
                "{MAX_SLOTS} {}s are alive",
                self.noun
            );
        }
        Ok(slots.insert(object).data().as_ffi() | (u64::from(self.kind) << KIND_SHIFT))
    }

    /// The object behind a handle.
    pub(super) fn get(&self, id: u64) -> Result<Arc<T>> {
        let key = self.key(id)?;
        read(&self.slots)
            .get(key)
            .cloned()
            .ok_or_else(|| self.dead(id))
    }

    /// Takes the object out; the handle is stale from here on.
    pub(super) fn remove(&self, id: u64) -> Result<Arc<T>> {
        let key = self.key(id)?;
        // Not dropped under the lock: destructors may take their time.
        write(&self.slots).remove(key).ok_or_else(|| self.dead(id))
    }

    /// Takes out all objects that `which` picks.
    pub(super) fn remove_where(&self, which: impl Fn(&T) -> bool) -> Vec<Arc<T>> {
        let mut slots = write(&self.slots);
        let keys: Vec<_> = slots
            .iter()
            .filter(|(_, o)| which(o))
            .map(|(k, _)| k)
            .collect();
        keys.into_iter().filter_map(|k| slots.remove(k)).collect()
    }

    fn key(&self, id: u64) -> Result<DefaultKey> {
        if id == 0 {
            bail!(Status::InvalidHandle, "the {} handle is null", self.noun);
        }
        if (id >> KIND_SHIFT) as u8 != self.kind {
            bail!(
                Status::InvalidHandle,
                "{id:#x} is not the handle of a {}",
                self.noun
            );
        }
        let bits = id & !(0xff << KIND_SHIFT);
        let data = KeyData::from_ffi(bits);
        // slotmap mends generations that it would never give out; we do not know such handles.
        if data.as_ffi() != bits {
            return Err(self.dead(id));
        }
        Ok(data.into())
    }

    fn dead(&self, id: u64) -> Error {
        Error::new(
            Status::InvalidHandle,
            format!(
                "the {} with handle {id:#x} has been destroyed or never was",
                self.noun
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status<T>(r: Result<T>) -> Status {
        r.err().map_or(Status::Ok, |e| e.status())
    }

    #[test]
    fn stale_foreign_and_invented_handles_miss() {
        let (a, b) = (Table::new(1, "ant"), Table::new(2, "bee"));
        let id = a.insert(Arc::new(7)).unwrap();
        b.insert(Arc::new(8)).unwrap();
        assert_eq!(*a.get(id).unwrap(), 7);
        assert_eq!(status(b.get(id)), Status::InvalidHandle);
        assert_eq!(status(a.get(0)), Status::InvalidHandle);
        for bit in 0..64 {
            assert_eq!(
                status(a.get(id ^ (1 << bit))),
                Status::InvalidHandle,
                "bit {bit}"
            );
        }
        assert_eq!(*a.remove(id).unwrap(), 7);
        assert_eq!(status(a.remove(id)), Status::InvalidHandle);
        let next = a.insert(Arc::new(9)).unwrap();
        assert_ne!(next, id, "the slot is used again under another generation");
        assert_eq!(status(a.get(id)), Status::InvalidHandle);
        assert_eq!(*a.get(next).unwrap(), 9);
    }

    #[test]
    fn owned_objects_go_together() {
        let t = Table::new(1, "ant");
        let ids: Vec<_> = (0..10)
            .map(|n| t.insert(Arc::new(n % 2)).unwrap())
            .collect();
        assert_eq!(t.remove_where(|&n| n == 1).len(), 5);
        for (i, id) in ids.into_iter().enumerate() {
            assert_eq!(t.get(id).is_ok(), i % 2 == 0);
        }
    }
}
