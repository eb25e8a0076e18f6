//! What is compared with the model: the pool through each of its interfaces.

use kvferry::block_pool::{BlockPool, CacheFull, CachePartial, Event as PoolEvent, Options, Stats};
use kvferry::error::{Result, Status};

use super::model::{Event, Full, Key};

/// The operations that the test draws, and what it looks at after each.
pub trait Subject {
    fn make(options: &Options) -> Self;
    fn allocate(&mut self, n: usize, after: Option<u32>) -> std::result::Result<Vec<u32>, Status>;
    fn free(&mut self, ids: &[u32]) -> std::result::Result<(), Status>;
    fn unpin(&mut self, ids: &[u32]) -> std::result::Result<(), Status>;
    fn touch(&mut self, ids: &[u32]) -> std::result::Result<(), Status>;
    fn chain(&mut self, hashes: &[Vec<u8>], groups: &[u32], touch: bool) -> Vec<u32>;
    fn cache_full(&mut self, what: &Full) -> std::result::Result<(), Status>;
    fn cache_partial(
        &mut self,
        id: u32,
        key: &Key,
        tokens: u32,
        replace: bool,
    ) -> std::result::Result<(), Status>;
    fn move_keys(&mut self, from: u32, to: u32) -> std::result::Result<(), Status>;
    fn evict(&mut self, ids: &[u32]) -> std::result::Result<(), Status>;
    fn reset(&mut self) -> bool;
    fn events(&mut self) -> Vec<Event>;
    fn reused(&mut self) -> Vec<u32>;
    fn free_blocks(&self) -> Vec<u32>;
    fn refs(&self, id: u32) -> u32;
    fn keys(&self, id: u32) -> Vec<Key>;
    fn cached_tokens(&self, id: u32) -> Option<u32>;
    fn writable(&self, id: u32) -> bool;
    fn usage(&self) -> f64;
    fn stats(&self) -> Stats;
}

fn status<T>(r: Result<T>) -> std::result::Result<T, Status> {
    r.map_err(|e| e.status())
}

/// The Rust interface.
impl Subject for BlockPool {
    fn make(options: &Options) -> Self {
        BlockPool::new(options).unwrap()
    }

    fn allocate(&mut self, n: usize, after: Option<u32>) -> std::result::Result<Vec<u32>, Status> {
        // What may not be written on failure is given a value that no block has.
        let mut out = vec![u32::MAX; n];
        let result = status(BlockPool::allocate(self, after, &mut out));
        if result.is_err() {
            assert!(out.iter().all(|&id| id == u32::MAX));
        }
        result.map(|()| out)
    }

    fn free(&mut self, ids: &[u32]) -> std::result::Result<(), Status> {
        status(BlockPool::free(self, ids))
    }

    fn unpin(&mut self, ids: &[u32]) -> std::result::Result<(), Status> {
        status(BlockPool::unpin(self, ids))
    }

    fn touch(&mut self, ids: &[u32]) -> std::result::Result<(), Status> {
        status(BlockPool::touch(self, ids))
    }

    fn chain(&mut self, hashes: &[Vec<u8>], groups: &[u32], touch: bool) -> Vec<u32> {
        let mut out = vec![u32::MAX; hashes.len() * groups.len()];
        let len = hashes.first().map_or(0, Vec::len);
        let flat = hashes.concat();
        let hits = if touch {
            self.acquire_chain(&flat, len, groups, &mut out)
        } else if hashes.len() == 1 {
            self.lookup(&flat, groups, &mut out).map(usize::from)
        } else {
            self.lookup_chain(&flat, len, groups, &mut out)
        };
        out.truncate(hits.unwrap() * groups.len());
        out
    }

    fn cache_full(&mut self, what: &Full) -> std::result::Result<(), Status> {
        status(BlockPool::cache_full(
            self,
            &CacheFull {
                blocks: &what.blocks,
                hashes: &what.hashes.concat(),
                hash_len: what.hashes.first().map_or(0, Vec::len),
                group: what.group,
                first: what.first,
                block_size: what.block_size,
                mask: &what.mask,
                parent: &what.parent,
                tokens: &what.tokens,
                tag: what.tag,
            },
        ))
    }

    fn cache_partial(
        &mut self,
        block: u32,
        key: &Key,
        tokens: u32,
        replace: bool,
    ) -> std::result::Result<(), Status> {
        status(BlockPool::cache_partial(
            self,
            &CachePartial {
                block,
                hash: &key.0,
                group: key.1,
                num_tokens: tokens,
                replace,
                block_size: 4,
                ..CachePartial::default()
            },
        ))
    }

    fn move_keys(&mut self, from: u32, to: u32) -> std::result::Result<(), Status> {
        status(BlockPool::move_keys(self, from, to))
    }

    fn evict(&mut self, ids: &[u32]) -> std::result::Result<(), Status> {
        status(BlockPool::evict(self, ids))
    }

    fn reset(&mut self) -> bool {
        BlockPool::reset(self)
    }

    fn events(&mut self) -> Vec<Event> {
        let own = |e: PoolEvent<'_>| match e {
            PoolEvent::Stored(s) => Event::Stored {
                hashes: s.each_hash().map(<[u8]>::to_vec).collect(),
                parent: s.parent.to_vec(),
                tokens: s.tokens.to_vec(),
                block_size: s.block_size,
                group: s.group,
                tag: s.tag,
            },
            PoolEvent::Removed { hash, group } => Event::Removed((hash.to_vec(), group)),
            PoolEvent::Cleared => Event::Cleared,
        };
        self.take_events().iter().map(own).collect()
    }

    fn reused(&mut self) -> Vec<u32> {
        self.take_reused()
    }

    fn free_blocks(&self) -> Vec<u32> {
        BlockPool::free_blocks(self).collect()
    }

    fn refs(&self, id: u32) -> u32 {
        self.ref_count(id).unwrap()
    }

    fn keys(&self, id: u32) -> Vec<Key> {
        BlockPool::keys(self, id).unwrap()
    }

    fn cached_tokens(&self, id: u32) -> Option<u32> {
        BlockPool::cached_tokens(self, id).unwrap()
    }

    fn writable(&self, id: u32) -> bool {
        self.is_writable(id).unwrap()
    }

    fn usage(&self) -> f64 {
        BlockPool::usage(self)
    }

    fn stats(&self) -> Stats {
        BlockPool::stats(self)
    }
}
