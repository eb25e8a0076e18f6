//! What one session holds of one pool.

use std::collections::HashMap;

use super::{MAX_HOLDS, MAX_REQUESTS};
use crate::error::{Result, Status, bail};

/// Holds, each of a request or of none.
#[derive(Default)]
pub(super) struct Holdings {
    /// How often each block is held outside any request; as long as the largest id needs.
    loose: Vec<u32>,
    /// The blocks of each request, in the order in which it got them.
    requests: HashMap<String, Vec<u32>>,
    /// All holds.
    total: usize,
}

impl Holdings {
    /// Whether nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// The blocks of a request.
    pub(super) fn of_request(&self, id: &str) -> &[u32] {
        self.requests.get(id).map_or(&[], Vec::as_slice)
    }

    /// Refuses more holds than a session can have. To be asked before the pool is.
    pub(super) fn check_room(&self, more: usize, request: &str) -> Result<()> {
        if self.total.saturating_add(more) > MAX_HOLDS {
            bail!(
                Status::ResourceExhausted,
                "{more} more holds: the session has {}, and can have {MAX_HOLDS}",
                self.total
            );
        }
        if !request.is_empty()
            && self.requests.len() >= MAX_REQUESTS
            && !self.requests.contains_key(request)
        {
            bail!(
                Status::ResourceExhausted,
                "request {request:?} is one more than the {MAX_REQUESTS} that a session can have"
            );
        }
        Ok(())
    }

    /// The pool has given these blocks, for a request or (empty) for none.
    pub(super) fn add(&mut self, ids: &[u32], request: &str) {
        if ids.is_empty() {
            return;
        }
        self.total += ids.len();
        if !request.is_empty() {
            if let Some(blocks) = self.requests.get_mut(request) {
                blocks.extend_from_slice(ids);
            } else {
                self.requests.insert(request.to_owned(), ids.to_vec());
            }
            return;
        }
        for &id in ids {
            let id = id as usize;
            if id >= self.loose.len() {
                self.loose.resize(id + 1, 0);
            }
            self.loose[id] += 1;
        }
    }

    /// Forgets one hold of each of these, outside any request; or none of them, and gives the position
    /// of the first that is not held so.
    pub(super) fn remove(&mut self, ids: &[u32]) -> std::result::Result<(), usize> {
        for (i, &id) in ids.iter().enumerate() {
            match self.loose.get_mut(id as usize) {
                Some(count) if *count > 0 => *count -= 1,
                _ => {
                    for &id in &ids[..i] {
                        self.loose[id as usize] += 1;
                    }
                    return Err(i);
                }
            }
        }
        self.total -= ids.len();
        Ok(())
    }

    /// Forgets a request, and gives its blocks, the last one first.
    pub(super) fn end_request(&mut self, id: &str) -> Option<Vec<u32>> {
        let mut blocks = self.requests.remove(id)?;
        self.total -= blocks.len();
        blocks.reverse();
        Some(blocks)
    }

    /// Everything, in lists that can be given back one after the other; the last blocks first.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Vec<u32>> + use<> {
        let all = std::mem::take(self);
        let requests = all.requests.into_values().map(|mut blocks| {
            blocks.reverse();
            blocks
        });
        let loose = all.loose.into_iter().enumerate().rev();
        // One list a block would be many; one for all could be 64 MiB, once, at the end of a session.
        let loose = loose.flat_map(|(id, n)| std::iter::repeat_n(id as u32, n as usize));
        requests.chain(std::iter::once(loose.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_removal_changes_nothing() {
        let mut held = Holdings::default();
        held.add(&[3, 3, 5], "");
        held.add(&[5, 7], "r");
        assert_eq!(held.remove(&[3, 5, 5]), Err(2));
        assert_eq!(held.remove(&[3, 7]), Err(1));
        assert_eq!(held.remove(&[3, 9]), Err(1));
        assert_eq!(held.remove(&[3, 5, 3]), Ok(()));
        assert_eq!(held.remove(&[3]), Err(0));
        assert_eq!(held.end_request("r"), Some(vec![7, 5]));
        assert_eq!(held.end_request("r"), None);
        assert!(held.is_empty());
    }

    #[test]
    fn all_that_is_held_comes_back_once() {
        let mut held = Holdings::default();
        held.add(&[2, 4, 2], "");
        held.add(&[4, 6], "a");
        held.add(&[8], "a");
        let lists: Vec<_> = held.take_all().collect();
        assert!(lists.contains(&vec![8, 6, 4]), "{lists:?}");
        let mut all = lists.concat();
        all.sort_unstable();
        assert_eq!(all, [2, 2, 4, 4, 6, 8]);
        assert!(held.is_empty());
    }

    #[test]
    fn holds_are_bounded() {
        let mut held = Holdings::default();
        held.add(&[1, 2], "");
        assert!(held.check_room(MAX_HOLDS - 2, "").is_ok());
        for more in [MAX_HOLDS - 1, usize::MAX] {
            let e = held.check_room(more, "").unwrap_err();
            assert_eq!(e.status(), Status::ResourceExhausted);
        }
        for i in 0..MAX_REQUESTS {
            held.add(&[1], &i.to_string());
        }
        assert!(held.check_room(1, "7").is_ok());
        assert!(held.check_room(1, "one more").is_err());
    }
}
