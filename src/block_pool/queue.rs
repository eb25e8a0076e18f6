//! The blocks and the free queue that runs through them.
//!
//! A block is 16 bytes: its neighbours in the queue, its reference count and its flags, four blocks
//! to a cache line. The queue is circular through one more node, the sentinel, so that linking and
//! unlinking have no special cases. Its order is the eviction order: what is first goes first.

use super::memory::filled;
use crate::error::Result;

/// The block has an entry in the prefix index.
pub const HASHED: u32 = 1;
/// The block is free and among the candidates of the windowed policy.
pub(super) const IN_WINDOW: u32 = 2;
/// Somebody wants to know when the block is handed out again.
pub(super) const WATCHED: u32 = 4;

/// One block, or the sentinel.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub struct Node {
    /// The block before it in the queue; means something only while `refs` is zero.
    pub prev: u32,
    /// The block behind it.
    pub next: u32,
    /// How many hold the block; it is in the queue when nobody does. Of the sentinel: the number of
    /// blocks in the queue.
    pub refs: u32,
    /// [`HASHED`], and what only the pool understands.
    pub flags: u32,
}

/// All blocks, and the order in which free ones are evicted.
pub(super) struct Queue {
    /// One node for each block, and the sentinel.
    pub(super) nodes: Vec<Node>,
}

/// Blocks linked with each other but not yet with the queue.
#[derive(Clone, Copy)]
pub(super) struct Chain {
    pub(super) first: u32,
    pub(super) last: u32,
    pub(super) len: u32,
}

impl Chain {
    pub(super) const EMPTY: Chain = Chain {
        first: 0,
        last: 0,
        len: 0,
    };

    /// Adds a block behind the last one.
    pub(super) fn push(&mut self, nodes: &mut [Node], id: u32) {
        if self.len == 0 {
            self.first = id;
        } else {
            nodes[self.last as usize].next = id;
            nodes[id as usize].prev = self.last;
        }
        self.last = id;
        self.len += 1;
    }
}

impl Queue {
    /// `blocks` blocks, all free, in the order of their ids, except block 0, which is in use for ever.
    pub(super) fn new(blocks: u32) -> Result<Self> {
        let count = blocks as usize;
        let blank = Node {
            prev: 0,
            next: 0,
            refs: 0,
            flags: 0,
        };
        let mut nodes = filled(count + 1, blank, "the blocks")?;
        for (i, node) in nodes.iter_mut().enumerate() {
            let i = i as u32;
            // The sentinel follows the last block and comes before block 1.
            node.prev = if i == 1 { blocks } else { i.wrapping_sub(1) };
            node.next = i + 1;
        }
        nodes[count].next = 1;
        nodes[count].refs = blocks - 1;
        nodes[0].refs = 1;
        Ok(Queue { nodes })
    }

    /// The index of the sentinel, which is also the number of blocks.
    pub(super) fn sentinel(&self) -> u32 {
        (self.nodes.len() - 1) as u32
    }

    /// Number of blocks in the queue.
    pub(super) fn free(&self) -> u32 {
        self.nodes[self.nodes.len() - 1].refs
    }

    fn free_mut(&mut self) -> &mut u32 {
        let sentinel = self.nodes.len() - 1;
        &mut self.nodes[sentinel].refs
    }

    pub(super) fn next(&self, id: u32) -> u32 {
        self.nodes[id as usize].next
    }

    pub(super) fn prev(&self, id: u32) -> u32 {
        self.nodes[id as usize].prev
    }

    /// Takes a free block out of the queue.
    pub(super) fn unlink(&mut self, id: u32) {
        let Node { prev, next, .. } = self.nodes[id as usize];
        self.nodes[prev as usize].next = next;
        self.nodes[next as usize].prev = prev;
        *self.free_mut() -= 1;
    }

    /// Gives each block a reference; free ones leave the queue. Null is passed over.
    pub(super) fn touch(&mut self, ids: &[u32]) {
        for &id in ids {
            let node = &mut self.nodes[id as usize];
            node.refs += 1;
            if node.refs == 1 {
                self.unlink(id);
            }
        }
    }

    /// Takes the first `out.len()` blocks, which must be there, gives each one reference, and
    /// returns the union of their flags.
    pub(super) fn pop_front(&mut self, out: &mut [u32]) -> u32 {
        let sentinel = self.sentinel();
        let mut id = self.next(sentinel);
        let mut flags = 0;
        for slot in out.iter_mut() {
            *slot = id;
            let node = &mut self.nodes[id as usize];
            node.refs = 1;
            flags |= node.flags;
            id = node.next;
        }
        self.nodes[sentinel as usize].next = id;
        self.nodes[id as usize].prev = sentinel;
        *self.free_mut() -= out.len() as u32;
        flags
    }

    /// Puts a chain in front: evicted first, in its order.
    pub(super) fn prepend(&mut self, chain: Chain) {
        let sentinel = self.sentinel();
        self.splice(sentinel, chain, self.next(sentinel));
    }

    /// Puts a chain at the end: evicted last.
    pub(super) fn append(&mut self, chain: Chain) {
        let sentinel = self.sentinel();
        self.splice(self.prev(sentinel), chain, sentinel);
    }

    fn splice(&mut self, before: u32, chain: Chain, after: u32) {
        if chain.len == 0 {
            return;
        }
        self.nodes[before as usize].next = chain.first;
        self.nodes[chain.first as usize].prev = before;
        self.nodes[chain.last as usize].next = after;
        self.nodes[after as usize].prev = chain.last;
        *self.free_mut() += chain.len;
    }

    /// The free blocks in eviction order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let sentinel = self.sentinel();
        std::iter::successors(Some(self.next(sentinel)), |&id| Some(self.next(id)))
            .take_while(move |&id| id != sentinel)
    }
}
