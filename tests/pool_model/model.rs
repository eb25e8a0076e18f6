//! A block pool as plainly as it can be written: lists that are searched from the front. It is the
//! specification that the real one is compared with.

use std::collections::BTreeSet;

use kvferry::block_pool::Policy;
use kvferry::error::Status;

pub type Key = (Vec<u8>, u32);

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Stored {
        hashes: Vec<Vec<u8>>,
        parent: Vec<u8>,
        tokens: Vec<u32>,
        block_size: u32,
        group: u32,
        tag: u64,
    },
    Removed(Key),
    Cleared,
}

#[derive(Clone)]
pub struct Model {
    policy: Policy,
    caching: bool,
    pub tolerate_null: bool,
    pub refs: Vec<u32>,
    pub queue: Vec<u32>,
    /// Keys of each block, the primary one first, and the tokens of that.
    pub keys: Vec<Vec<Key>>,
    pub tokens: Vec<u32>,
    /// Blocks of each key in the order in which they got it.
    pub map: Vec<(Key, Vec<u32>)>,
    pub events: Vec<Event>,
    pub watched: BTreeSet<u32>,
    pub reused: Vec<u32>,
    /// How many of the queue an elastic window has.
    window: usize,
}

/// A full-block caching call.
#[derive(Clone, Debug)]
pub struct Full {
    pub blocks: Vec<u32>,
    pub hashes: Vec<Vec<u8>>,
    pub group: u32,
    pub first: u32,
    pub block_size: u32,
    pub mask: Vec<u8>,
    pub parent: Vec<u8>,
    pub tokens: Vec<u32>,
    pub tag: u64,
}

impl Model {
    pub fn new(blocks: u32, caching: bool, policy: Policy, tolerate_null: bool) -> Self {
        let n = blocks as usize;
        let mut refs = vec![0; n];
        refs[0] = 1;
        let mut model = Model {
            policy,
            caching,
            tolerate_null,
            refs,
            queue: (1..blocks).collect(),
            keys: vec![Vec::new(); n],
            tokens: vec![0; n],
            map: Vec::new(),
            events: Vec::new(),
            watched: BTreeSet::new(),
            reused: Vec::new(),
            window: 0,
        };
        model.settle();
        model
    }

    fn known(&self, id: u32) -> Result<(), Status> {
        if (id as usize) < self.refs.len() {
            Ok(())
        } else {
            Err(Status::InvalidArgument)
        }
    }

    fn countable(&self, id: u32) -> Result<(), Status> {
        if id == 0 {
            Err(Status::InvalidArgument)
        } else {
            self.known(id)
        }
    }

    fn limit(&self) -> usize {
        let share = match self.policy {
            Policy::Lru => 0.0,
            Policy::Windowed { fraction: f } | Policy::Elastic { limit: f } => f,
        };
        // The tests use fractions that are exact in binary.
        (self.queue.len() as f64 * share).ceil() as usize
    }

    fn settle(&mut self) {
        match self.policy {
            Policy::Elastic { .. } => self.window = self.window.min(self.limit()),
            _ => self.window = self.limit(),
        }
    }

    /// Takes `got`, which the real pool has handed out, if it is what the policy allows.
    pub fn allocate(&mut self, n: usize, after: Option<u32>, got: Result<&[u32], Status>) {
        if let Some(id) = after
            && self.known(id).is_err()
        {
            assert_eq!(got, Err(Status::InvalidArgument));
            return;
        }
        if n > self.queue.len() {
            assert_eq!(got, Err(Status::ResourceExhausted));
            return;
        }
        let got = got.expect("there are enough");
        assert_eq!(got.len(), n);
        if n == 0 {
            return;
        }
        if self.policy == Policy::Lru {
            assert_eq!(got, &self.queue[..n]);
            self.queue.drain(..n);
        } else {
            self.check_windowed(n, after, got);
        }
        for &id in got {
            assert_eq!(self.refs[id as usize], 0);
            self.refs[id as usize] = 1;
            if self.watched.remove(&id) {
                self.reused.push(id);
            }
            self.drop_keys(id);
        }
        if matches!(self.policy, Policy::Elastic { .. }) {
            self.window = self.window.saturating_sub(n / 16);
        }
        self.settle();
    }

    fn take(&mut self, ids: &[u32]) {
        for id in ids {
            let at = self
                .queue
                .iter()
                .position(|q| q == id)
                .expect("it was free");
            assert!(
                at < self.window,
                "block {id} is at {at} and the window {}",
                self.window
            );
            self.queue.remove(at);
            self.window -= 1;
        }
    }

    /// Maximal runs of the window: first block and length.
    fn runs(&self) -> Vec<(u32, u32)> {
        runs(
            &self.queue[..self.window]
                .iter()
                .copied()
                .collect::<BTreeSet<_>>(),
        )
    }

    fn check_windowed(&mut self, n: usize, after: Option<u32>, got: &[u32]) {
        let mut rest = got;
        if let Some(id) = after
            && let Some(&(start, len)) = self.runs().iter().find(|r| r.0 == id + 1)
        {
            let extension: Vec<u32> = (start..start + len.min(n as u32)).collect();
            assert_eq!(got[..extension.len()], extension, "goes on after {id}");
            self.take(&extension);
            rest = &got[extension.len()..];
        }
        let missing = rest.len();
        if matches!(self.policy, Policy::Elastic { .. }) {
            let limit = self.limit();
            while self.window < limit && !self.runs().iter().any(|r| r.1 as usize >= missing) {
                self.window = limit.min(self.window + (missing / 4).max(8));
            }
        }
        self.window = self.window.max(missing);
        // What is to be taken: from a run of which length, and how much of it.
        let runs_before = self.runs();
        let mut lengths: Vec<u32> = runs_before.iter().map(|r| r.1).collect();
        let mut expected = Vec::new();
        let mut left = missing as u32;
        while left > 0 {
            let fits = lengths.iter().copied().filter(|&l| l >= left).min();
            let len = fits
                .or(lengths.iter().copied().max())
                .expect("the window is long enough");
            lengths.remove(lengths.iter().position(|&l| l == len).unwrap());
            expected.push((len, len.min(left)));
            left -= len.min(left);
        }
        let mut picked: Vec<(u32, u32)> = Vec::new();
        for (start, len) in runs(&rest.iter().copied().collect()) {
            let from = runs_before
                .iter()
                .find(|r| r.0 <= start && start < r.0 + r.1);
            let from = from.expect("from the window");
            assert_eq!(from.0 + from.1, start + len, "the end of a run");
            picked.push((from.1, len));
        }
        expected.sort();
        picked.sort();
        assert_eq!(picked, expected, "runs {runs_before:?}, got {got:?}");
        assert!(rest.is_sorted(), "{rest:?}");
        self.take(rest);
    }

    pub fn free(&mut self, ids: &[u32], unpin: bool) -> Result<(), Status> {
        let mut counts = self.refs.clone();
        for &id in ids {
            if id == 0 && self.tolerate_null {
                continue;
            }
            self.countable(id)?;
            let count = &mut counts[id as usize];
            *count = count.checked_sub(1).ok_or(Status::InvalidState)?;
        }
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for &id in ids.iter().filter(|&&id| id != 0) {
            self.refs[id as usize] -= 1;
            if unpin {
                self.watched.insert(id);
            }
            if self.refs[id as usize] == 0 {
                let hashed = !self.keys[id as usize].is_empty();
                if unpin || hashed {
                    last.push(id)
                } else {
                    first.push(id)
                }
            }
        }
        self.window += first.len();
        self.queue.splice(0..0, first);
        self.queue.extend(last);
        self.settle();
        Ok(())
    }

    pub fn touch(&mut self, ids: &[u32]) -> Result<(), Status> {
        for &id in ids {
            if !(id == 0 && self.tolerate_null) {
                self.countable(id)?;
            }
        }
        for &id in ids.iter().filter(|&&id| id != 0) {
            self.refs[id as usize] += 1;
            if self.refs[id as usize] == 1 {
                let at = self.queue.iter().position(|&q| q == id).unwrap();
                self.queue.remove(at);
                if at < self.window {
                    self.window -= 1;
                }
            }
        }
        self.settle();
        Ok(())
    }

    pub fn find(&self, key: &Key) -> Option<u32> {
        self.map
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, blocks)| blocks[0])
    }

    pub fn chain(&self, hashes: &[Vec<u8>], groups: &[u32]) -> Vec<u32> {
        let mut out = Vec::new();
        for hash in hashes {
            let found: Option<Vec<u32>> = groups
                .iter()
                .map(|&g| self.find(&(hash.clone(), g)))
                .collect();
            match found {
                Some(blocks) => out.extend(blocks),
                None => break,
            }
        }
        out
    }

    fn drop_keys(&mut self, id: u32) {
        for key in std::mem::take(&mut self.keys[id as usize]) {
            let at = self.map.iter().position(|(k, _)| *k == key).unwrap();
            self.map[at].1.retain(|&b| b != id);
            if self.map[at].1.is_empty() {
                self.map.remove(at);
            }
            self.events.push(Event::Removed(key));
        }
    }

    fn add_key(&mut self, id: u32, key: Key, tokens: u32) {
        if self.keys[id as usize].is_empty() {
            self.tokens[id as usize] = tokens;
        }
        self.keys[id as usize].push(key.clone());
        match self.map.iter_mut().find(|(k, _)| *k == key) {
            Some((_, blocks)) => blocks.push(id),
            None => self.map.push((key, vec![id])),
        }
    }

    pub fn cache_full(&mut self, what: &Full) -> Result<(), Status> {
        if !self.caching {
            return Err(Status::InvalidState);
        }
        if what.tokens.len() != what.blocks.len() * what.block_size as usize
            && !what.tokens.is_empty()
        {
            return Err(Status::Mismatch);
        }
        let tokens = |i: usize| (what.first + i as u32 + 1) * what.block_size;
        let chosen = |i: usize| what.blocks[i] != 0 && (what.mask.is_empty() || what.mask[i] != 0);
        for (i, &id) in what.blocks.iter().enumerate() {
            self.known(id)?;
            if chosen(i)
                && !self.keys[id as usize].is_empty()
                && self.tokens[id as usize] >= tokens(i)
            {
                return Err(Status::InvalidState);
            }
        }
        if what.blocks.is_empty() {
            return Ok(());
        }
        let mut stored = Vec::new();
        for (i, &id) in what.blocks.iter().enumerate().filter(|&(i, _)| chosen(i)) {
            self.drop_keys(id);
            self.add_key(id, (what.hashes[i].clone(), what.group), tokens(i));
            stored.push(what.hashes[i].clone());
        }
        self.events.push(Event::Stored {
            hashes: stored,
            parent: what.parent.clone(),
            tokens: what.tokens.clone(),
            block_size: what.block_size,
            group: what.group,
            tag: what.tag,
        });
        Ok(())
    }

    pub fn cache_partial(
        &mut self,
        id: u32,
        key: Key,
        tokens: u32,
        replace: bool,
    ) -> Result<(), Status> {
        self.known(id)?;
        if !self.caching {
            return Err(Status::InvalidState);
        }
        let keys = &self.keys[id as usize];
        if id == 0 || (keys.contains(&key) && !replace) {
            return Ok(());
        }
        if replace || (!keys.is_empty() && self.tokens[id as usize] < tokens) {
            self.drop_keys(id);
        }
        self.add_key(id, key.clone(), tokens);
        self.events.push(Event::Stored {
            hashes: vec![key.0],
            parent: Vec::new(),
            tokens: Vec::new(),
            block_size: 4,
            group: key.1,
            tag: 0,
        });
        Ok(())
    }

    pub fn move_keys(&mut self, from: u32, to: u32) -> Result<(), Status> {
        self.countable(from)?;
        self.countable(to)?;
        if !self.caching || !self.keys[to as usize].is_empty() {
            return Err(Status::InvalidState);
        }
        let keys = self.keys[from as usize].clone();
        let events = self.events.len();
        self.drop_keys(from);
        self.events.truncate(events);
        for key in keys {
            self.add_key(to, key, self.tokens[from as usize]);
        }
        Ok(())
    }

    pub fn evict(&mut self, ids: &[u32]) -> Result<(), Status> {
        ids.iter().try_for_each(|&id| self.known(id))?;
        ids.iter().for_each(|&id| self.drop_keys(id));
        Ok(())
    }

    pub fn reset(&mut self) -> bool {
        if self.queue.len() + 1 != self.refs.len() {
            return false;
        }
        self.keys.iter_mut().for_each(Vec::clear);
        self.map.clear();
        self.reused.extend(std::mem::take(&mut self.watched));
        self.events.push(Event::Cleared);
        true
    }
}

fn runs(members: &BTreeSet<u32>) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &id in members {
        match runs.last_mut() {
            Some(r) if r.0 + r.1 == id => r.1 += 1,
            _ => runs.push((id, 1)),
        }
    }
    runs
}
