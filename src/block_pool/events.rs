//! What routers and other caches want to know: which content came and which went.
//!
//! Events are kept in three flat arrays (records, bytes, tokens) and are handed over together, so
//! that recording one costs a copy and no allocation of its own.

use super::stats::Stats;

/// One change of the prefix index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Content was cached, or announced again.
    Stored(Stored<'a>),
    /// A block lost this key.
    Removed {
        /// The hash.
        hash: &'a [u8],
        /// The group.
        group: u32,
    },
    /// Every block lost its keys.
    Cleared,
}

/// Content that was cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored<'a> {
    /// The hashes of the blocks, one after the other, each [`Stored::hash_len`] bytes.
    pub hashes: &'a [u8],
    /// Length of one hash in bytes.
    pub hash_len: usize,
    /// The hash of the block before the first of them; empty at the start of a prompt.
    pub parent: &'a [u8],
    /// The tokens of the whole range, skipped blocks included; empty if the caller gave none.
    pub tokens: &'a [u32],
    /// Tokens per block.
    pub block_size: u32,
    /// The group.
    pub group: u32,
    /// What the caller passed along.
    pub tag: u64,
}

impl<'a> Stored<'a> {
    /// The hashes, one by one.
    pub fn each_hash(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        self.hashes.chunks_exact(self.hash_len.max(1))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Stored,
    Removed,
    Cleared,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    kind: Kind,
    hash_len: u8,
    parent_len: u8,
    group: u32,
    block_size: u32,
    tag: u64,
    /// Ends of this event's part of the two other arrays; it begins where the one before ends.
    bytes_end: usize,
    tokens_end: usize,
}

/// Events in the order in which they happened.
#[derive(Debug, Default)]
pub struct EventBatch {
    records: Vec<Record>,
    /// The parent's hash, if any, and the hashes of each event.
    bytes: Vec<u8>,
    tokens: Vec<u32>,
    lost: u64,
}

impl EventBatch {
    /// Number of events.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// How many events before these were thrown away because nobody took them in time. Not zero
    /// means that a listener has to forget what it knew.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The events.
    pub fn iter(&self) -> impl Iterator<Item = Event<'_>> + '_ {
        let mut ends = (0, 0);
        self.records.iter().map(move |r| {
            let bytes = &self.bytes[ends.0..r.bytes_end];
            let tokens = &self.tokens[ends.1..r.tokens_end];
            ends = (r.bytes_end, r.tokens_end);
            r.event(bytes, tokens)
        })
    }

    /// Adds an event that was recorded elsewhere.
    pub(crate) fn add(&mut self, event: &Event<'_>) {
        match event {
            Event::Stored(stored) => self.stored(stored, stored.each_hash()),
            Event::Removed { hash, group } => self.removed(hash, *group),
            Event::Cleared => self.cleared(),
        }
    }

    /// Says that so many events before these were thrown away.
    pub(crate) fn set_lost(&mut self, lost: u64) {
        self.lost = lost;
    }

    /// Records that content was stored: what `event` says, but with these hashes.
    pub(super) fn stored<'h>(
        &mut self,
        event: &Stored<'_>,
        hashes: impl Iterator<Item = &'h [u8]>,
    ) {
        self.bytes.extend_from_slice(event.parent);
        for hash in hashes {
            self.bytes.extend_from_slice(hash);
        }
        self.tokens.extend_from_slice(event.tokens);
        self.push(Record {
            hash_len: event.hash_len as u8,
            parent_len: event.parent.len() as u8,
            group: event.group,
            block_size: event.block_size,
            tag: event.tag,
            ..self.record(Kind::Stored)
        });
    }

    pub(super) fn removed(&mut self, hash: &[u8], group: u32) {
        self.bytes.extend_from_slice(hash);
        self.push(Record {
            hash_len: hash.len() as u8,
            group,
            ..self.record(Kind::Removed)
        });
    }

    pub(super) fn cleared(&mut self) {
        self.push(self.record(Kind::Cleared));
    }

    /// Throws everything away, and remembers how much it was, if this many bytes are in use.
    pub(super) fn make_room(&mut self, limit: usize, stats: &mut Stats) {
        let size =
            size_of_val(&self.records[..]) + self.bytes.len() + size_of_val(&self.tokens[..]);
        if size >= limit && !self.is_empty() {
            let lost = self.records.len() as u64;
            stats.lost_events += lost;
            let before = self.lost;
            self.reset();
            self.lost = before + lost;
        }
    }

    /// Empties the batch so that it can be filled again.
    pub(super) fn reset(&mut self) {
        self.records.clear();
        self.bytes.clear();
        self.tokens.clear();
        self.lost = 0;
    }

    fn push(&mut self, record: Record) {
        self.records.push(record);
    }

    fn record(&self, kind: Kind) -> Record {
        Record {
            kind,
            hash_len: 0,
            parent_len: 0,
            group: 0,
            block_size: 0,
            tag: 0,
            bytes_end: self.bytes.len(),
            tokens_end: self.tokens.len(),
        }
    }
}

impl Record {
    fn event<'a>(&self, bytes: &'a [u8], tokens: &'a [u32]) -> Event<'a> {
        match self.kind {
            Kind::Cleared => Event::Cleared,
            Kind::Removed => Event::Removed {
                hash: bytes,
                group: self.group,
            },
            Kind::Stored => {
                let (parent, hashes) = bytes.split_at(self.parent_len.into());
                Event::Stored(Stored {
                    hashes,
                    hash_len: self.hash_len.into(),
                    parent,
                    tokens,
                    block_size: self.block_size,
                    group: self.group,
                    tag: self.tag,
                })
            }
        }
    }
}
