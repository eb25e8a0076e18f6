//! The pool through `kvferry.h`.

use std::ptr::{null, null_mut};

use kvferry::block_pool::{Options, Policy, Stats};
use kvferry::capi::block_cache::*;
use kvferry::capi::block_pool::*;
use kvferry::error::Status;

use super::model::{Event, Full, Key};
use super::subject::Subject;

/// A handle; the pool ends with it.
pub struct CPool {
    handle: kvf_block_pool,
}

impl Drop for CPool {
    fn drop(&mut self) {
        assert_eq!(kvf_block_pool_destroy(self.handle), 0);
    }
}

pub fn outcome(code: i32) -> Result<(), Status> {
    match Status::from_code(code) {
        Some(Status::Ok) => Ok(()),
        Some(status) => Err(status),
        None => panic!("{code} is no status"),
    }
}

/// Pointers to these values for a call; NULL for none.
pub fn pointer<T>(values: &[T]) -> *const T {
    if values.is_empty() {
        null()
    } else {
        values.as_ptr()
    }
}

/// The values behind a pointer that the library gave, which outlive the call.
fn values<T: Clone>(ptr: *const T, len: usize) -> Vec<T> {
    if len == 0 {
        assert!(ptr.is_null());
        return Vec::new();
    }
    // SAFETY: as the header says.
    unsafe { std::slice::from_raw_parts(ptr, len) }.to_vec()
}

/// These options as C has them.
pub fn given_options(options: &Options) -> kvf_block_pool_options {
    let (policy, fraction) = match options.policy {
        Policy::Lru => (KVF_POLICY_LRU, 0.0),
        Policy::Windowed { fraction } => (KVF_POLICY_WINDOWED, fraction),
        Policy::Elastic { limit } => (KVF_POLICY_ELASTIC, limit),
    };
    kvf_block_pool_options {
        struct_size: size_of::<kvf_block_pool_options>() as u32,
        blocks: options.blocks,
        policy,
        caching: options.caching.into(),
        events: options.events.into(),
        tolerate_null: options.tolerate_null.into(),
        reserved: 0,
        fraction,
        event_bytes: options.event_bytes as u64,
    }
}

/// A caching call as C has it. It borrows both.
pub fn given_blocks(what: &Full, hashes: &[u8]) -> kvf_cached_blocks {
    kvf_cached_blocks {
        struct_size: size_of::<kvf_cached_blocks>() as u32,
        group: what.group,
        first: what.first,
        block_size: what.block_size,
        blocks: pointer(&what.blocks),
        len: what.blocks.len(),
        hashes: pointer(hashes),
        hash_len: what.hashes.first().map_or(0, Vec::len),
        mask: pointer(&what.mask),
        parent: pointer(&what.parent),
        parent_len: what.parent.len(),
        tokens: pointer(&what.tokens),
        tokens_len: what.tokens.len(),
        tag: what.tag,
    }
}

/// A key of a part as C has it. It borrows the key.
pub fn given_part(block: u32, key: &Key, tokens: u32, replace: bool) -> kvf_cached_part {
    kvf_cached_part {
        struct_size: size_of::<kvf_cached_part>() as u32,
        block,
        group: key.1,
        num_tokens: tokens,
        block_size: 4,
        replace: replace.into(),
        reserved: [0; 3],
        hash: key.0.as_ptr(),
        hash_len: key.0.len(),
        parent: null(),
        parent_len: 0,
        tokens: null(),
        tokens_len: 0,
        tag: 0,
    }
}

/// The events of a list, which is freed.
pub fn owned_events(mut list: kvf_block_event_list) -> Vec<Event> {
    let own = |e: kvf_block_event| {
        let hashes = values(e.hashes, e.count * e.hash_len);
        match e.kind {
            KVF_BLOCK_STORED => Event::Stored {
                hashes: hashes
                    .chunks(e.hash_len.max(1))
                    .map(<[u8]>::to_vec)
                    .collect(),
                parent: values(e.parent, e.parent_len),
                tokens: values(e.tokens, e.tokens_len),
                block_size: e.block_size,
                group: e.group,
                tag: e.tag,
            },
            KVF_BLOCK_REMOVED => Event::Removed((hashes, e.group)),
            KVF_BLOCKS_CLEARED => Event::Cleared,
            other => panic!("event {other}"),
        }
    };
    let events = values(list.items.cast_const(), list.len)
        .into_iter()
        .map(own)
        .collect();
    // SAFETY: filled by the library; the second call finds it zeroed.
    unsafe {
        kvf_block_event_list_free(&mut list);
        kvf_block_event_list_free(&mut list);
    }
    events
}

/// Numbers as Rust has them.
pub fn owned_stats(s: &kvf_block_pool_stats) -> Stats {
    Stats {
        blocks: s.blocks,
        free: s.free,
        cached_blocks: s.cached_blocks,
        cached_keys: s.cached_keys,
        allocations: s.allocations,
        refused_allocations: s.refused_allocations,
        allocated_blocks: s.allocated_blocks,
        allocated_runs: s.allocated_runs,
        freed_blocks: s.freed_blocks,
        revived_blocks: s.revived_blocks,
        lookups: s.lookups,
        hits: s.hits,
        stored_keys: s.stored_keys,
        removed_keys: s.removed_keys,
        resets: s.resets,
        lost_events: s.lost_events,
    }
}

impl Subject for CPool {
    fn make(options: &Options) -> Self {
        let given = given_options(options);
        let mut handle = kvf_block_pool { id: 0 };
        // SAFETY: both are valid.
        outcome(unsafe { kvf_block_pool_create(&given, &mut handle) }).unwrap();
        CPool { handle }
    }

    fn allocate(&mut self, n: usize, after: Option<u32>) -> Result<Vec<u32>, Status> {
        let mut ids = vec![u32::MAX; n];
        let out = if n == 0 { null_mut() } else { ids.as_mut_ptr() };
        // SAFETY: `ids` has `n` elements.
        let code = unsafe {
            match after {
                None => kvf_block_pool_allocate(self.handle, out, n),
                Some(id) => kvf_block_pool_allocate_after(self.handle, id, out, n),
            }
        };
        let result = outcome(code);
        if result.is_err() {
            assert!(ids.iter().all(|&id| id == u32::MAX));
        }
        result.map(|()| ids)
    }

    fn free(&mut self, ids: &[u32]) -> Result<(), Status> {
        // SAFETY: the array is valid, here and below.
        outcome(unsafe { kvf_block_pool_free(self.handle, pointer(ids), ids.len()) })
    }

    fn unpin(&mut self, ids: &[u32]) -> Result<(), Status> {
        // SAFETY: as above.
        outcome(unsafe { kvf_block_pool_unpin(self.handle, pointer(ids), ids.len()) })
    }

    fn touch(&mut self, ids: &[u32]) -> Result<(), Status> {
        // SAFETY: as above.
        outcome(unsafe { kvf_block_pool_touch(self.handle, pointer(ids), ids.len()) })
    }

    fn chain(&mut self, hashes: &[Vec<u8>], groups: &[u32], touch: bool) -> Vec<u32> {
        let len = hashes.first().map_or(0, Vec::len);
        let flat = hashes.concat();
        let mut ids = vec![u32::MAX; hashes.len() * groups.len()];
        let out = if ids.is_empty() {
            null_mut()
        } else {
            ids.as_mut_ptr()
        };
        let mut found = usize::MAX;
        // SAFETY: the arrays are as long as is said.
        outcome(unsafe {
            kvf_block_pool_lookup(
                self.handle,
                pointer(&flat),
                len,
                hashes.len(),
                groups.as_ptr(),
                groups.len(),
                touch.into(),
                out,
                &mut found,
            )
        })
        .unwrap();
        ids.truncate(found * groups.len());
        ids
    }

    fn cache_full(&mut self, what: &Full) -> Result<(), Status> {
        let hashes = what.hashes.concat();
        let given = given_blocks(what, &hashes);
        // SAFETY: all of it is valid.
        outcome(unsafe { kvf_block_pool_cache(self.handle, &given) })
    }

    fn cache_partial(
        &mut self,
        block: u32,
        key: &Key,
        tokens: u32,
        replace: bool,
    ) -> Result<(), Status> {
        let given = given_part(block, key, tokens, replace);
        // SAFETY: all of it is valid.
        outcome(unsafe { kvf_block_pool_cache_partial(self.handle, &given) })
    }

    fn move_keys(&mut self, from: u32, to: u32) -> Result<(), Status> {
        outcome(kvf_block_pool_move_keys(self.handle, from, to))
    }

    fn evict(&mut self, ids: &[u32]) -> Result<(), Status> {
        // SAFETY: the array is valid.
        outcome(unsafe { kvf_block_pool_evict(self.handle, pointer(ids), ids.len()) })
    }

    fn reset(&mut self) -> bool {
        let mut done = 7;
        // SAFETY: `done` may be written, here and below.
        outcome(unsafe { kvf_block_pool_reset(self.handle, &mut done) }).unwrap();
        done == 1
    }

    fn events(&mut self) -> Vec<Event> {
        // SAFETY: all zero is a value of the struct.
        let mut list: kvf_block_event_list = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        outcome(unsafe { kvf_block_pool_take_events(self.handle, &mut list) }).unwrap();
        owned_events(list)
    }

    fn reused(&mut self) -> Vec<u32> {
        let mut all = Vec::new();
        loop {
            // So few that it takes several calls.
            let mut ids = [0; 3];
            let mut taken = 0;
            // SAFETY: `ids` has three elements.
            outcome(unsafe {
                kvf_block_pool_take_reused(self.handle, ids.as_mut_ptr(), 3, &mut taken)
            })
            .unwrap();
            all.extend(&ids[..taken]);
            if taken < 3 {
                return all;
            }
        }
    }

    fn free_blocks(&self) -> Vec<u32> {
        let (mut len, mut again) = (0, 0);
        // SAFETY: no room, and room for as many as there are.
        unsafe {
            outcome(kvf_block_pool_free_blocks(
                self.handle,
                null_mut(),
                0,
                &mut len,
            ))
            .unwrap();
            let mut ids = vec![0; len + 1];
            let out = ids.as_mut_ptr();
            outcome(kvf_block_pool_free_blocks(
                self.handle,
                out,
                len + 1,
                &mut again,
            ))
            .unwrap();
            assert_eq!(again, len);
            ids.truncate(len);
            ids
        }
    }

    fn refs(&self, id: u32) -> u32 {
        let mut count = u32::MAX;
        // SAFETY: one id, one count.
        outcome(unsafe { kvf_block_pool_ref_counts(self.handle, &id, 1, &mut count) }).unwrap();
        count
    }

    fn keys(&self, id: u32) -> Vec<Key> {
        self.keys_and_tokens(id).0
    }

    fn cached_tokens(&self, id: u32) -> Option<u32> {
        let (keys, tokens) = self.keys_and_tokens(id);
        assert!(tokens == 0 || !keys.is_empty());
        (!keys.is_empty()).then_some(tokens)
    }

    fn writable(&self, id: u32) -> bool {
        let mut writable = 7;
        // SAFETY: it may be written.
        outcome(unsafe { kvf_block_pool_is_writable(self.handle, id, &mut writable) }).unwrap();
        writable == 1
    }

    fn usage(&self) -> f64 {
        let stats = self.stats();
        match stats.blocks - 1 {
            0 => 0.0,
            usable => 1.0 - stats.free as f64 / usable as f64,
        }
    }

    fn stats(&self) -> Stats {
        // SAFETY: all zero is a value of the struct.
        let mut s: kvf_block_pool_stats = unsafe { std::mem::zeroed() };
        let mut free = u32::MAX;
        // SAFETY: both may be written.
        unsafe {
            outcome(kvf_block_pool_stats_get(self.handle, &mut s)).unwrap();
            outcome(kvf_block_pool_num_free(self.handle, &mut free)).unwrap();
        }
        assert_eq!(s.free, u64::from(free));
        owned_stats(&s)
    }
}

impl CPool {
    fn keys_and_tokens(&self, id: u32) -> (Vec<Key>, u32) {
        // SAFETY: all zero is a value of the struct.
        let mut keys = vec![unsafe { std::mem::zeroed::<kvf_block_key>() }; 64];
        let (mut len, mut tokens) = (0, 0);
        // SAFETY: `keys` has as many elements as is said.
        outcome(unsafe {
            kvf_block_pool_keys(
                self.handle,
                id,
                keys.as_mut_ptr(),
                keys.len(),
                &mut len,
                &mut tokens,
            )
        })
        .unwrap();
        assert!(len <= keys.len());
        keys.truncate(len);
        (
            keys.iter()
                .map(|k| (k.hash[..k.hash_len.into()].to_vec(), k.group))
                .collect(),
            tokens,
        )
    }
}
