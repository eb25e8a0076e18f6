//! What this agent has registered, as far as kvferry must know it.
//!
//! NIXL keeps raw pointers into its registrations in prepared lists and in requests, and follows
//! them when a request is posted. Deregistering memory frees what they point to. So every list and
//! transfer remembers the regions that it lies in, and is refused once one of them is gone.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::error::{Result, Status, bail};
use crate::memory::{MemDesc, MemKind};
use crate::sync::lock;

/// One registered range. Alive until the first deregistration of that range.
#[derive(Debug)]
pub struct Region {
    kind: MemKind,
    range: MemDesc,
    live: AtomicBool,
}

/// The regions that the ranges of a list lie in.
#[derive(Debug, Default)]
pub struct Coverage {
    regions: Vec<Arc<Region>>,
    /// The registry's epoch when they were last seen to be all alive.
    checked: AtomicU64,
}

/// A range that is registered, and the backends that it is registered with, one entry each time.
#[derive(Debug)]
struct Entry {
    region: Arc<Region>,
    backends: Vec<String>,
}

/// Kind, device, address, length.
type Key = (u32, u64, u64, u64);

fn key(kind: MemKind, range: &MemDesc) -> Key {
    (kind as u32, range.device, range.addr, range.len)
}

/// All that is registered.
#[derive(Debug, Default)]
pub struct Registry {
    entries: Mutex<BTreeMap<Key, Entry>>,
    /// Counts deregistrations, so that lists need to look again only after one.
    epoch: AtomicU64,
}

impl Registry {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<Key, Entry>> {
        lock(&self.entries)
    }

    /// Notes a registration.
    pub fn add(&self, kind: MemKind, range: &MemDesc, backends: &[String]) {
        let mut entries = self.entries();
        let entry = entries.entry(key(kind, range)).or_insert_with(|| Entry {
            region: Arc::new(Region {
                kind,
                range: *range,
                live: AtomicBool::new(true),
            }),
            backends: Vec::new(),
        });
        entry.backends.extend_from_slice(backends);
    }

    /// The backends that a deregistration of this range goes to: those named, or each that has it.
    /// `times` is how often the range stands in the call.
    pub fn backends_of(
        &self,
        kind: MemKind,
        range: &MemDesc,
        named: &[&str],
        times: usize,
    ) -> Result<Vec<String>> {
        let entries = self.entries();
        let Some(entry) = entries.get(&key(kind, range)) else {
            bail!(
                Status::NotRegistered,
                "{} is not registered",
                describe(kind, range)
            );
        };
        let mut wanted: Vec<String> = match named {
            [] => entry.backends.clone(),
            named => named.iter().map(|n| n.to_string()).collect(),
        };
        wanted.sort();
        wanted.dedup();
        for backend in &wanted {
            let have = entry.backends.iter().filter(|b| *b == backend).count();
            if have < times {
                bail!(
                    Status::NotRegistered,
                    "{} is registered {have} time(s) with {backend}, and is to be deregistered \
                     {times} time(s)",
                    describe(kind, range)
                );
            }
        }
        Ok(wanted)
    }

    /// The region that a range is registered as.
    pub fn region(&self, kind: MemKind, range: &MemDesc) -> Option<Arc<Region>> {
        self.entries()
            .get(&key(kind, range))
            .map(|e| e.region.clone())
    }

    /// Notes that one registration of a range with a backend is going away. Lists that lie in the
    /// range are void from here on, even if it is registered otherwise too: they may point to
    /// either.
    pub fn remove(&self, kind: MemKind, range: &MemDesc, backend: &str) {
        let mut entries = self.entries();
        let key = key(kind, range);
        if let Some(entry) = entries.get_mut(&key) {
            entry.region.live.store(false, Ordering::Release);
            if let Some(at) = entry.backends.iter().position(|b| b == backend) {
                entry.backends.swap_remove(at);
            }
            if entry.backends.is_empty() {
                entries.remove(&key);
            } else {
                entry.region = Arc::new(Region {
                    kind,
                    range: *range,
                    live: AtomicBool::new(true),
                });
            }
        }
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// The regions that ranges lie in; an error names the first that lies in none.
    pub fn cover(
        &self,
        kind: MemKind,
        ranges: impl Iterator<Item = MemDesc>,
    ) -> Result<Arc<Coverage>> {
        let entries = self.entries();
        let mut regions: Vec<Arc<Region>> = Vec::new();
        let mut seen = HashSet::new();
        let mut last: Option<Arc<Region>> = None;
        for (i, range) in ranges.enumerate() {
            range.end()?;
            if last.as_ref().is_some_and(|r| r.range.contains(&range)) {
                continue;
            }
            let from = (kind as u32, range.device, 0, 0);
            let to = (kind as u32, range.device, range.addr, u64::MAX);
            let found = entries
                .range(from..=to)
                .rev()
                .find(|(_, e)| e.region.range.contains(&range));
            let Some((_, entry)) = found else {
                bail!(
                    Status::NotRegistered,
                    "{} (number {i}) lies in no memory that this agent has registered",
                    describe(kind, &range)
                );
            };
            if seen.insert(Arc::as_ptr(&entry.region)) {
                regions.push(entry.region.clone());
            }
            last = Some(entry.region.clone());
        }
        let checked = AtomicU64::new(self.epoch.load(Ordering::Acquire));
        Ok(Arc::new(Coverage { regions, checked }))
    }

    /// An error once any of these regions has been deregistered.
    pub fn validate(&self, coverage: &Coverage) -> Result<()> {
        let epoch = self.epoch.load(Ordering::Acquire);
        if coverage.checked.load(Ordering::Relaxed) == epoch {
            return Ok(());
        }
        for region in &coverage.regions {
            if !region.live.load(Ordering::Acquire) {
                bail!(
                    Status::NotRegistered,
                    "{} has been deregistered since the descriptors in it were prepared",
                    describe(region.kind, &region.range)
                );
            }
        }
        coverage.checked.store(epoch, Ordering::Relaxed);
        Ok(())
    }
}

impl Coverage {
    /// Whether it has any of these regions.
    pub fn touches(&self, regions: &[Arc<Region>]) -> bool {
        self.regions
            .iter()
            .any(|r| regions.iter().any(|other| Arc::ptr_eq(r, other)))
    }
}

/// A range for messages.
pub fn describe(kind: MemKind, range: &MemDesc) -> String {
    format!(
        "{} {:#x} of {} bytes on device {}",
        kind.name(),
        range.addr,
        range.len,
        range.device
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(addr: u64, len: u64) -> MemDesc {
        MemDesc {
            addr,
            len,
            device: 0,
        }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| n.to_string()).collect()
    }

    fn cover(r: &Registry, addr: u64, len: u64) -> Result<Arc<Coverage>> {
        r.cover(MemKind::Dram, [range(addr, len)].into_iter())
    }

    #[test]
    fn ranges_must_lie_in_one_region_of_their_kind_and_device() {
        let r = Registry::default();
        r.add(MemKind::Dram, &range(1000, 100), &names(&["UCX"]));
        r.add(MemKind::Dram, &range(1100, 100), &names(&["UCX"]));
        // A small region that begins inside a large one must not hide it.
        r.add(MemKind::Dram, &range(1010, 5), &names(&["UCX"]));
        assert!(cover(&r, 1000, 100).is_ok());
        assert!(cover(&r, 1011, 50).is_ok());
        assert!(cover(&r, 1199, 1).is_ok());
        for (addr, len) in [(999, 1), (1050, 100), (1199, 2), (1200, 1), (0, u64::MAX)] {
            let e = cover(&r, addr, len).expect_err("outside");
            assert_eq!(e.status(), Status::NotRegistered, "{addr} {len}");
        }
        assert!(
            r.cover(MemKind::Vram, [range(1000, 1)].into_iter())
                .is_err()
        );
        assert!(
            r.cover(
                MemKind::Dram,
                [MemDesc {
                    device: 1,
                    ..range(1000, 1)
                }]
                .into_iter()
            )
            .is_err()
        );
        let e = cover(&r, u64::MAX, 2).expect_err("wraps");
        assert_eq!(e.status(), Status::InvalidArgument);
    }

    #[test]
    fn deregistering_voids_the_lists_in_the_range_and_no_other() {
        let r = Registry::default();
        r.add(MemKind::Dram, &range(1000, 100), &names(&["UCX"]));
        r.add(MemKind::Dram, &range(2000, 100), &names(&["UCX"]));
        let (first, second) = (
            cover(&r, 1000, 10).expect("ok"),
            cover(&r, 2000, 10).expect("ok"),
        );
        let gone = r.region(MemKind::Dram, &range(1000, 100)).expect("there");
        r.remove(MemKind::Dram, &range(1000, 100), "UCX");
        assert!(first.touches(std::slice::from_ref(&gone)) && !second.touches(&[gone]));
        assert_eq!(
            r.validate(&first).expect_err("void").status(),
            Status::NotRegistered
        );
        r.validate(&second).expect("untouched");
        // Registered again, the range is another region.
        r.add(MemKind::Dram, &range(1000, 100), &names(&["UCX"]));
        assert!(r.validate(&first).is_err());
        r.validate(&cover(&r, 1000, 10).expect("ok")).expect("new");
    }

    #[test]
    fn a_range_registered_twice_stays_registered_after_one_deregistration() {
        let r = Registry::default();
        let it = range(1000, 100);
        r.add(MemKind::Dram, &it, &names(&["UCX", "POSIX"]));
        r.add(MemKind::Dram, &it, &names(&["UCX"]));
        assert_eq!(
            r.backends_of(MemKind::Dram, &it, &[], 1).expect("both"),
            ["POSIX", "UCX"]
        );
        assert!(r.backends_of(MemKind::Dram, &it, &["UCX"], 2).is_ok());
        let e = r
            .backends_of(MemKind::Dram, &it, &["UCX"], 3)
            .expect_err("three");
        assert_eq!(e.status(), Status::NotRegistered);
        assert!(r.backends_of(MemKind::Dram, &it, &["GDS"], 1).is_err());
        let old = cover(&r, 1000, 1).expect("ok");
        r.remove(MemKind::Dram, &it, "UCX");
        assert!(r.validate(&old).is_err());
        assert!(cover(&r, 1000, 1).is_ok());
        r.remove(MemKind::Dram, &it, "UCX");
        r.remove(MemKind::Dram, &it, "POSIX");
        assert!(cover(&r, 1000, 1).is_err());
        assert!(r.backends_of(MemKind::Dram, &it, &[], 1).is_err());
    }
}
