//! Memory that transfers may touch, and the moment at which they must stop touching it.
//!
//! Ranges are checked when a transfer is made, not when its bytes move. What may have happened in
//! between is that ranges were taken away, so a [`Registry`] counts removals, a [`Claim`] remembers
//! the count at which its ranges were found registered, and every batch of a copy enters the registry
//! with its claim: as long as the count is the same nothing has to be looked at, and otherwise the
//! ranges of the batch are checked again. A batch that has entered is waited for by whoever takes
//! ranges away. So when deregistering returns, no copy of this process touches those ranges any more.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use super::ranges::{RangeSet, Span};
use crate::error::{Error, Result, Status, bail};
use crate::sync::lock;

/// What a transfer does to a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Touch {
    Reads,
    Writes,
}

/// The registered ranges of one agent: its own, or those that it knows of a peer.
pub(super) struct Registry {
    /// Whose memory this is, for messages.
    owner: String,
    inner: Mutex<Inner>,
    /// Told when the last batch of some age has left.
    left: Condvar,
}

#[derive(Default)]
struct Inner {
    set: RangeSet,
    /// How often ranges have been taken away.
    removals: u64,
    /// Batches under way, by the count of removals at which they entered. Hardly ever more than one
    /// or two entries.
    running: Vec<(u64, usize)>,
    /// Why nothing may be touched any more.
    closed: Option<Error>,
}

/// A batch under way; leaves when dropped.
pub(super) struct Pass<'a> {
    registry: &'a Registry,
    entered: u64,
}

/// The ranges of one side of a transfer were registered at some moment.
#[derive(Clone)]
pub(super) struct Claim {
    registry: Arc<Registry>,
    touch: Touch,
    /// Whether all of them could be written as well.
    writable: bool,
    /// The count of removals when they were checked.
    checked: u64,
}

impl Registry {
    pub fn new(owner: String) -> Registry {
        Registry {
            owner,
            inner: Mutex::default(),
            left: Condvar::new(),
        }
    }

    /// Adds ranges; `true` marks a writable one.
    pub fn add(&self, spans: &[(Span, bool)]) -> Result<()> {
        let mut inner = lock(&self.inner);
        if let Some(why) = &inner.closed {
            return Err(why.clone());
        }
        for &(span, writable) in spans {
            inner.set.insert(span, writable);
        }
        Ok(())
    }

    /// Takes ranges away and waits until no copy touches them, or restores them at the deadline.
    pub fn remove(&self, spans: &[Span], deadline: Instant) -> Result<()> {
        let mut inner = lock(&self.inner);
        let mut removed = Vec::with_capacity(spans.len());
        let mut missing = None;
        for &span in spans {
            match inner.set.remove(span) {
                Some(writable) => removed.push((span, writable)),
                None => {
                    missing = Some(span);
                    break;
                }
            }
        }
        if let Some(span) = missing {
            restore(&mut inner.set, &removed);
            bail!(
                Status::NotRegistered,
                "{} bytes at {:#x} are not a registration of {}",
                span.len(),
                span.start,
                self.owner
            );
        }
        inner.removals += 1;
        let now = inner.removals;
        let (mut inner, quiet) = self.wait_until_quiet(inner, now, deadline);
        if !quiet {
            restore(&mut inner.set, &removed);
            bail!(
                Status::Timeout,
                "a copy still touches memory of {} that was to be deregistered; nothing was \
                 deregistered",
                self.owner
            );
        }
        Ok(())
    }

    /// Replaces all ranges. Does not wait: this is what is known of a peer, not own memory.
    pub fn replace(&self, spans: &[Span]) {
        let mut inner = lock(&self.inner);
        inner.set.clear();
        for &span in spans {
            inner.set.insert(span, true);
        }
        inner.removals += 1;
    }

    /// Takes everything away for good and waits until no copy touches it.
    pub fn close(&self, why: Error, deadline: Instant) -> Result<()> {
        let mut inner = lock(&self.inner);
        inner.set.clear();
        inner.removals += 1;
        inner.closed.get_or_insert(why);
        let now = inner.removals;
        if !self.wait_until_quiet(inner, now, deadline).1 {
            bail!(
                Status::Timeout,
                "a copy still touches memory of {}",
                self.owner
            );
        }
        Ok(())
    }

    /// The registered spans, merged and in ascending order.
    pub fn merged(&self) -> Vec<Span> {
        let mut inner = lock(&self.inner);
        inner.set.settle();
        inner.set.merged().to_vec()
    }

    /// Whether every byte of every span is registered.
    pub fn covers(&self, spans: &[Span]) -> bool {
        let mut inner = lock(&self.inner);
        inner.set.settle();
        let mut hint = 0;
        spans.iter().all(|&span| inner.set.covers(span, &mut hint))
    }

    /// Checks ranges and remembers that, or says which one is not registered.
    pub fn claim(
        self: &Arc<Self>,
        touch: Touch,
        spans: impl Iterator<Item = Span>,
    ) -> Result<Claim> {
        let mut inner = lock(&self.inner);
        let writable = self.check(&mut inner, touch, spans)?;
        Ok(Claim {
            registry: self.clone(),
            touch,
            writable,
            checked: inner.removals,
        })
    }

    /// Returns whether all of the ranges may be written.
    fn check(
        &self,
        inner: &mut Inner,
        touch: Touch,
        spans: impl Iterator<Item = Span>,
    ) -> Result<bool> {
        if let Some(why) = &inner.closed {
            return Err(why.clone());
        }
        inner.set.settle();
        let (mut hint, mut writable) = (0, true);
        for span in spans {
            if !inner.set.covers(span, &mut hint) {
                bail!(
                    Status::NotRegistered,
                    "{} bytes at {:#x} are not memory that {} has registered",
                    span.len(),
                    span.start,
                    self.owner
                );
            }
            writable &= !inner.set.touches_read_only(span);
            if touch == Touch::Writes && !writable {
                bail!(
                    Status::NotAllowed,
                    "{} bytes at {:#x} of {} are mapped read-only and cannot be written",
                    span.len(),
                    span.start,
                    self.owner
                );
            }
        }
        Ok(writable)
    }

    fn wait_until_quiet<'a>(
        &self,
        mut inner: std::sync::MutexGuard<'a, Inner>,
        before: u64,
        deadline: Instant,
    ) -> (std::sync::MutexGuard<'a, Inner>, bool) {
        loop {
            if inner.running.iter().all(|&(entered, _)| entered >= before) {
                return (inner, true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return (inner, false);
            }
            inner = match self.left.wait_timeout(inner, left) {
                Ok((inner, _)) => inner,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

fn restore(set: &mut RangeSet, removed: &[(Span, bool)]) {
    for &(span, writable) in removed {
        set.insert(span, writable);
    }
}

impl Claim {
    /// The claim for a transfer that touches `spans`, which are among the ranges of this one. They
    /// are looked at again only when ranges have been taken away since, or when some of them can not
    /// be written.
    pub fn narrowed(&self, touch: Touch, spans: impl Iterator<Item = Span>) -> Result<Claim> {
        let stale = lock(&self.registry.inner).removals != self.checked;
        if stale || (touch == Touch::Writes && !self.writable) {
            return self.registry.claim(touch, spans);
        }
        Ok(Claim {
            touch,
            ..self.clone()
        })
    }

    /// The same claim, checked again if ranges have been taken away since.
    pub fn renewed(&self, spans: impl Iterator<Item = Span>) -> Result<Claim> {
        self.narrowed(self.touch, spans)
    }

    /// Whether this is about the memory that `registry` describes.
    pub fn is_of(&self, registry: &Arc<Registry>) -> bool {
        Arc::ptr_eq(&self.registry, registry)
    }

    /// Lets a batch in. `spans` are its ranges, looked at only when some have been taken away since.
    pub fn enter(&self, spans: impl Iterator<Item = Span>) -> Result<Pass<'_>> {
        let mut inner = lock(&self.registry.inner);
        if inner.removals != self.checked {
            self.registry.check(&mut inner, self.touch, spans)?;
        }
        let entered = inner.removals;
        match inner.running.iter_mut().find(|(age, _)| *age == entered) {
            Some((_, batches)) => *batches += 1,
            None => inner.running.push((entered, 1)),
        }
        Ok(Pass {
            registry: &self.registry,
            entered,
        })
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut inner = lock(&self.registry.inner);
        let at = inner
            .running
            .iter()
            .position(|&(age, _)| age == self.entered);
        if let Some(at) = at {
            inner.running[at].1 -= 1;
            if inner.running[at].1 == 0 {
                inner.running.swap_remove(at);
                self.registry.left.notify_all();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn span(start: u64, end: u64) -> Span {
        Span { start, end }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn registry() -> Arc<Registry> {
        let registry = Registry::new("agent \"a\"".to_string());
        registry
            .add(&[(span(0x1000, 0x2000), true), (span(0x4000, 0x5000), true)])
            .unwrap();
        Arc::new(registry)
    }

    #[test]
    fn a_batch_is_refused_once_its_ranges_are_gone() {
        let registry = registry();
        let ranges = [span(0x1000, 0x1800)];
        let claim = registry
            .claim(Touch::Writes, ranges.iter().copied())
            .unwrap();
        drop(claim.enter(ranges.iter().copied()).unwrap());
        registry.remove(&[span(0x4000, 0x5000)], soon()).unwrap();
        drop(claim.enter(ranges.iter().copied()).unwrap());
        registry.remove(&[span(0x1000, 0x2000)], soon()).unwrap();
        let error = claim.enter(ranges.iter().copied()).err().unwrap();
        assert_eq!(error.status(), Status::NotRegistered);
        assert!(error.message().contains("0x1000"), "{error}");
    }

    #[test]
    fn removal_waits_for_the_batch_that_is_inside() {
        let registry = registry();
        let ranges = [span(0x1000, 0x1800)];
        let claim = registry
            .claim(Touch::Reads, ranges.iter().copied())
            .unwrap();
        let pass = claim.enter(ranges.iter().copied()).unwrap();
        let error = registry
            .remove(&[span(0x1000, 0x2000)], Instant::now())
            .unwrap_err();
        assert_eq!(error.status(), Status::Timeout);
        assert!(
            registry.covers(&ranges),
            "a removal that failed changed something"
        );
        std::thread::scope(|scope| {
            let removal = scope.spawn(|| registry.remove(&[span(0x1000, 0x2000)], soon()));
            while registry.covers(&ranges) {
                std::thread::yield_now();
            }
            assert!(!removal.is_finished());
            drop(pass);
            removal.join().unwrap().unwrap();
        });
    }

    #[test]
    fn removing_what_is_not_there_removes_nothing() {
        let registry = registry();
        let error = registry
            .remove(&[span(0x1000, 0x2000), span(0x3000, 0x3001)], soon())
            .unwrap_err();
        assert_eq!(error.status(), Status::NotRegistered);
        assert!(error.message().contains("0x3000"), "{error}");
        assert!(registry.covers(&[span(0x1000, 0x2000)]));
    }

    #[test]
    fn read_only_memory_is_not_written() {
        let registry = Arc::new(Registry::new("agent \"a\"".to_string()));
        registry.add(&[(span(0x1000, 0x2000), false)]).unwrap();
        let ranges = || [span(0x1000, 0x1001)].into_iter();
        assert!(registry.claim(Touch::Reads, ranges()).is_ok());
        let error = registry.claim(Touch::Writes, ranges()).err().unwrap();
        assert_eq!(error.status(), Status::NotAllowed);
    }

    #[test]
    fn nothing_enters_after_close() {
        let registry = registry();
        let ranges = [span(0x1000, 0x1800)];
        let claim = registry
            .claim(Touch::Reads, ranges.iter().copied())
            .unwrap();
        registry
            .close(Error::new(Status::PeerLost, "closed"), soon())
            .unwrap();
        assert!(claim.renewed(ranges.iter().copied()).is_err());
        let error = claim.enter(ranges.iter().copied()).err().unwrap();
        assert_eq!(error.status(), Status::PeerLost);
        assert!(registry.add(&[(span(1, 2), true)]).is_err());
    }
}
