//! The pool in a `kv_cache_server` process, over a Unix socket and through `kvferry.h`.

use std::cell::{OnceCell, RefCell};
use std::ffi::CString;
use std::ptr::{null, null_mut};

use kvferry::block_pool::{Options, Stats};
use kvferry::capi::block_cache::*;
use kvferry::capi::block_pool::*;
use kvferry::capi::pool_client::*;
use kvferry::error::Status;

use super::capi::{
    given_blocks, given_options, given_part, outcome, owned_events, owned_stats, pointer,
};
use super::model::{Event, Full, Key};
use super::process::Server;
use super::subject::Subject;

/// A server of its own, a client, and what is known of the blocks until something changes.
pub struct ServedPool {
    client: kvf_pool_client,
    blocks: u32,
    seen: RefCell<OnceCell<Vec<State>>>,
    // Last: the client says goodbye to it.
    _server: Server,
}

struct State {
    keys: Vec<Key>,
    tokens: u32,
    refs: u32,
    writable: bool,
}

impl Drop for ServedPool {
    fn drop(&mut self) {
        assert_eq!(kvf_pool_client_close(self.client), 0);
    }
}

fn op(kind: u32) -> kvf_pool_op {
    // SAFETY: all zero is a value of the struct.
    let mut op: kvf_pool_op = unsafe { std::mem::zeroed() };
    op.kind = kind;
    op
}

impl ServedPool {
    fn run(&self, op: &mut kvf_pool_op) -> Result<(), Status> {
        self.seen.borrow_mut().take();
        // SAFETY: one operation, whose pointers are valid.
        let result = outcome(unsafe { kvf_pool_client_run(self.client, op, 1, 0) });
        assert_eq!(outcome(op.status), result);
        assert_eq!(op.message[0] == 0, result.is_ok());
        result
    }

    fn on(&self, kind: u32, ids: &[u32]) -> Result<kvf_pool_op, Status> {
        let mut op = op(kind);
        (op.ids, op.ids_len) = (pointer(ids), ids.len());
        self.run(&mut op).map(|()| op)
    }

    /// Everything about every block, in one round trip.
    fn states<T>(&self, read: impl FnOnce(&[State]) -> T) -> T {
        let seen = self.seen.borrow();
        read(seen.get_or_init(|| self.fetch()))
    }

    fn fetch(&self) -> Vec<State> {
        let ids: Vec<u32> = (0..self.blocks).collect();
        let n = ids.len();
        // SAFETY: all zero is a value of the struct.
        let mut keys = vec![unsafe { std::mem::zeroed::<kvf_block_key>() }; n * 64];
        let (mut refs, mut writable) = (vec![u32::MAX; n], vec![u32::MAX; n]);
        let mut ops: Vec<kvf_pool_op> = Vec::new();
        for (id, room) in ids.iter().zip(keys.chunks_mut(64)) {
            let mut op = op(KVF_POOL_OP_KEYS);
            (op.ids, op.ids_len) = (id, 1);
            (op.keys, op.keys_capacity) = (room.as_mut_ptr(), room.len());
            ops.push(op);
        }
        for (kind, from, out) in [
            (KVF_POOL_OP_REF_COUNTS, 1, &mut refs),
            (KVF_POOL_OP_WRITABLE, 0, &mut writable),
        ] {
            let mut op = op(kind);
            (op.ids, op.ids_len) = (pointer(&ids[from..]), n - from);
            (op.out, op.out_capacity) = (out[from..].as_mut_ptr(), n - from);
            if n - from == 0 {
                op.out = null_mut();
            }
            ops.push(op);
        }
        // SAFETY: as many as there are, all valid.
        outcome(unsafe { kvf_pool_client_run(self.client, ops.as_mut_ptr(), ops.len(), 1) })
            .unwrap();
        let state = |i: usize| State {
            keys: keys[i * 64..][..ops[i].value as usize]
                .iter()
                .map(|k| (k.hash[..k.hash_len.into()].to_vec(), k.group))
                .collect(),
            tokens: ops[i].tokens,
            refs: refs[i],
            writable: writable[i] == 1,
        };
        (0..n).map(state).collect()
    }
}

impl Subject for ServedPool {
    fn make(options: &Options) -> Self {
        let server = Server::start(&[]);
        let address = CString::new(server.listening()).unwrap();
        let create = given_options(options);
        let given = kvf_pool_client_options {
            struct_size: size_of::<kvf_pool_client_options>() as u32,
            publish: 0,
            reserved: [0; 3],
            address: address.as_ptr(),
            pool: c"a pool of its own".as_ptr(),
            session: null(),
            create: &create,
            timeout_ms: 60_000,
            session_timeout_ms: 0,
        };
        let mut client = kvf_pool_client { id: 0 };
        // SAFETY: all of it is valid.
        outcome(unsafe { kvf_pool_client_connect(&given, &mut client) }).unwrap();
        ServedPool {
            client,
            blocks: options.blocks,
            seen: RefCell::default(),
            _server: server,
        }
    }

    fn allocate(&mut self, n: usize, after: Option<u32>) -> Result<Vec<u32>, Status> {
        // What may not be written on failure is given a value that no block has.
        let mut ids = vec![u32::MAX; n];
        let mut op = op(KVF_POOL_OP_ALLOCATE);
        (op.count, op.after) = (n as u32, after.unwrap_or(0));
        (op.out, op.out_capacity) = (pointer(&ids).cast_mut(), n);
        let result = self.run(&mut op);
        if result.is_err() {
            assert!(ids.iter().all(|&id| id == u32::MAX));
        }
        ids.truncate(op.out_len);
        result.map(|()| ids)
    }

    fn free(&mut self, ids: &[u32]) -> Result<(), Status> {
        self.on(KVF_POOL_OP_FREE, ids).map(drop)
    }

    fn unpin(&mut self, ids: &[u32]) -> Result<(), Status> {
        self.on(KVF_POOL_OP_UNPIN, ids).map(drop)
    }

    fn touch(&mut self, ids: &[u32]) -> Result<(), Status> {
        self.on(KVF_POOL_OP_TOUCH, ids).map(drop)
    }

    fn chain(&mut self, hashes: &[Vec<u8>], groups: &[u32], touch: bool) -> Vec<u32> {
        let flat = hashes.concat();
        let mut ids = vec![u32::MAX; hashes.len() * groups.len()];
        let mut op = op(match touch {
            true => KVF_POOL_OP_ACQUIRE,
            false => KVF_POOL_OP_LOOKUP,
        });
        (op.hashes, op.hash_count) = (pointer(&flat), hashes.len());
        op.hash_len = hashes.first().map_or(0, Vec::len);
        (op.groups, op.groups_len) = (groups.as_ptr(), groups.len());
        (op.out, op.out_capacity) = (pointer(&ids).cast_mut(), ids.len());
        self.run(&mut op).unwrap();
        assert_eq!(op.out_len, op.value as usize * groups.len());
        ids.truncate(op.out_len);
        ids
    }

    fn cache_full(&mut self, what: &Full) -> Result<(), Status> {
        let hashes = what.hashes.concat();
        let given = given_blocks(what, &hashes);
        let mut op = op(KVF_POOL_OP_CACHE);
        op.cached = &given;
        self.run(&mut op)
    }

    fn cache_partial(
        &mut self,
        block: u32,
        key: &Key,
        tokens: u32,
        replace: bool,
    ) -> Result<(), Status> {
        let given = given_part(block, key, tokens, replace);
        let mut op = op(KVF_POOL_OP_CACHE_PARTIAL);
        op.part = &given;
        self.run(&mut op)
    }

    fn move_keys(&mut self, from: u32, to: u32) -> Result<(), Status> {
        self.on(KVF_POOL_OP_MOVE_KEYS, &[from, to]).map(drop)
    }

    fn evict(&mut self, ids: &[u32]) -> Result<(), Status> {
        self.on(KVF_POOL_OP_EVICT, ids).map(drop)
    }

    fn reset(&mut self) -> bool {
        self.on(KVF_POOL_OP_RESET, &[]).unwrap().value == 1
    }

    fn events(&mut self) -> Vec<Event> {
        // SAFETY: all zero is a value of the struct.
        let mut list: kvf_block_event_list = unsafe { std::mem::zeroed() };
        let mut op = op(KVF_POOL_OP_TAKE_EVENTS);
        op.events = &mut list;
        self.run(&mut op).unwrap();
        owned_events(list)
    }

    fn reused(&mut self) -> Vec<u32> {
        let mut all = Vec::new();
        loop {
            // So few that it takes several calls.
            let mut ids = [0; 3];
            let mut op = op(KVF_POOL_OP_TAKE_REUSED);
            (op.out, op.out_capacity) = (ids.as_mut_ptr(), 3);
            self.run(&mut op).unwrap();
            all.extend(&ids[..op.out_len]);
            if op.out_len < 3 {
                return all;
            }
        }
    }

    fn free_blocks(&self) -> Vec<u32> {
        let mut ids = vec![0; self.blocks as usize];
        let mut op = op(KVF_POOL_OP_FREE_BLOCKS);
        self.run(&mut op).unwrap();
        let there_are = op.value as usize;
        (op.out, op.out_capacity) = (ids.as_mut_ptr(), ids.len());
        self.run(&mut op).unwrap();
        assert_eq!((op.out_len, op.value as usize), (there_are, there_are));
        ids.truncate(there_are);
        ids
    }

    fn refs(&self, id: u32) -> u32 {
        self.states(|s| s[id as usize].refs)
    }

    fn keys(&self, id: u32) -> Vec<Key> {
        self.states(|s| s[id as usize].keys.clone())
    }

    fn cached_tokens(&self, id: u32) -> Option<u32> {
        self.states(|s| {
            let state = &s[id as usize];
            (!state.keys.is_empty()).then_some(state.tokens)
        })
    }

    fn writable(&self, id: u32) -> bool {
        self.states(|s| s[id as usize].writable)
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
        let mut stats: kvf_block_pool_stats = unsafe { std::mem::zeroed() };
        let mut op = op(KVF_POOL_OP_STATS);
        op.stats = &mut stats;
        self.run(&mut op).unwrap();
        assert_eq!(
            self.on(KVF_POOL_OP_NUM_FREE, &[]).unwrap().value,
            stats.free
        );
        owned_stats(&stats)
    }
}
