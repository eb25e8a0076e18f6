//! What the prefix index is asked for: the hash of a block's content and prefix, and the group.

use std::hash::{BuildHasher, RandomState};

/// Longest hash that is stored inside an entry; longer ones have their rest elsewhere.
pub(super) const INLINE: usize = 32;

/// A key, borrowed from the caller. Two keys are equal if hash and group are.
#[derive(Clone, Copy)]
pub(super) struct Key<'a> {
    pub(super) hash: &'a [u8],
    /// The first [`INLINE`] bytes of the hash, zero behind its end.
    pub(super) head: [u8; INLINE],
    pub(super) group: u32,
}

impl<'a> Key<'a> {
    pub(super) fn new(hash: &'a [u8], group: u32) -> Self {
        let mut head = [0; INLINE];
        if let Some(bytes) = hash.first_chunk::<INLINE>() {
            head = *bytes;
        } else {
            head[..hash.len()].copy_from_slice(hash);
        }
        Key { hash, head, group }
    }

    /// What does not fit into the entry.
    pub(super) fn tail(&self) -> &'a [u8] {
        self.hash.get(INLINE..).unwrap_or_default()
    }
}

/// Random multipliers, so that nobody who can choose hashes (prompts, when the hash is not
/// cryptographic) can aim at one place of the table.
pub(super) struct Mixer([u64; 6]);

impl Mixer {
    pub(super) fn new() -> Self {
        let state = RandomState::new();
        Mixer(std::array::from_fn(|i| state.hash_one(i)))
    }

    /// 32 bits that say where a key belongs and, with the rest, which key it may be.
    pub(super) fn mix(&self, key: &Key<'_>) -> u32 {
        let seed = &self.0;
        let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|j| key.head[i * 8 + j]));
        let mut sum = fold(word(0) ^ seed[0], word(1) ^ seed[1]);
        if key.hash.len() > 16 {
            sum ^= fold(word(2) ^ seed[2], word(3) ^ seed[3]);
        }
        for part in key.tail().chunks(8) {
            let mut bytes = [0; 8];
            bytes[..part.len()].copy_from_slice(part);
            sum = fold(sum ^ seed[2], u64::from_le_bytes(bytes) ^ seed[3]);
        }
        let rest = u64::from(key.group) << 32 | key.hash.len() as u64;
        (fold(sum ^ seed[4], rest ^ seed[5]) >> 32) as u32
    }
}

/// Both halves of a product, added without carry: every bit of either factor reaches every bit.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}
