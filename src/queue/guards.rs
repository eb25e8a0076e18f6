//! Words in other agents' memory that say whether what was read may be used.
//!
//! A producer that may take its blocks back at a time of its own choosing keeps a 64-bit word for them
//! and raises it *before* the blocks are used again. A consumer that reads the word *after* the last
//! of its bytes came in, and finds it still low, knows that the blocks were the request's all that
//! time. Both orders are kept by what the two threads wait for: the producer stores the word before
//! anybody is told that the blocks are free; here a transfer is posted only once all others have been
//! seen to be at rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::agent::{Agent, Transfer};
use crate::error::{Error, Result, Status, bail};
use crate::memory::{MemDesc, MemKind};
use crate::transport::{Op, TransferOptions};

/// Most guards of one submission.
pub const MAX_GUARDS: usize = 1024;

/// Words that the queue has for reading into. As many as the largest submission needs, a few times.
const WORDS: usize = 4 * MAX_GUARDS;

/// A condition on a peer's memory that must hold after all bytes of a request are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Index of the peer in [`Plan::peers`](crate::plan::Plan::peers).
    pub peer: u32,
    /// Where in that peer's host memory the 64-bit word is, in its machine's byte order.
    pub addr: u64,
    /// The word must be below this; otherwise the request fails with [`Status::Expired`].
    pub limit: u64,
}

/// A word of this queue that a guard is being read into.
pub(super) struct Word {
    index: usize,
    limit: u64,
}

/// The memory that guards are read into, registered when the first one is.
pub(super) struct Words {
    agent: Arc<Agent>,
    words: Vec<AtomicU64>,
    free: Vec<usize>,
}

impl Words {
    pub(super) fn new(agent: Arc<Agent>) -> Self {
        Words {
            agent,
            words: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Whether so many words are free; registers them all when none has been needed before.
    pub(super) fn has(&mut self, n: usize) -> Result<bool> {
        if self.words.is_empty() {
            let words: Vec<AtomicU64> = std::iter::repeat_with(AtomicU64::default)
                .take(WORDS)
                .collect();
            let range = span(&words);
            self.agent
                .register(MemKind::Dram, &[range.into()], &[])
                .map_err(|e| e.context("registering memory for guards"))?;
            self.words = words;
            self.free = (0..WORDS).collect();
        }
        Ok(n <= self.free.len())
    }

    /// Makes the transfer that reads a guard of the agent `name`. The word is to be given back by
    /// [`Words::verdict`] or [`Words::give_back`] once the transfer is at rest.
    pub(super) fn read(&mut self, guard: &Guard, name: &str) -> Result<(Transfer, Word)> {
        let Some(index) = self.free.pop() else {
            bail!(Status::Busy, "all {WORDS} words for guards are in use");
        };
        let word = &self.words[index];
        // Not a value that a guard could let pass, should a transport claim to have read it.
        word.store(u64::MAX, Ordering::Release);
        let desc = |addr| MemDesc {
            addr,
            len: size_of::<u64>() as u64,
            device: 0,
        };
        let made = self.agent.create_transfer(
            Op::Read,
            (MemKind::Dram, &[desc(word.as_ptr().addr() as u64)]),
            (MemKind::Dram, &[desc(guard.addr)]),
            name,
            TransferOptions::default(),
        );
        match made {
            Ok(transfer) => Ok((
                transfer,
                Word {
                    index,
                    limit: guard.limit,
                },
            )),
            Err(e) => {
                self.free.push(index);
                Err(e)
            }
        }
    }

    /// What the word says, which has been read.
    pub(super) fn verdict(&mut self, word: &Word) -> Result<()> {
        let value = self.words[word.index].load(Ordering::Acquire);
        self.give_back(word);
        if value < word.limit {
            return Ok(());
        }
        Err(Error::new(
            Status::Expired,
            format!(
                "the lease ended before all bytes were in: its word is {value}, and should be below {}",
                word.limit
            ),
        ))
    }

    /// Gives a word back whose transfer failed.
    pub(super) fn give_back(&mut self, word: &Word) {
        self.free.push(word.index);
    }

    /// Takes the registration back. If something is still being read, the memory is left to it.
    pub(super) fn end(mut self) {
        let words = std::mem::take(&mut self.words);
        if words.is_empty() {
            return;
        }
        if self.free.len() < words.len() {
            std::mem::forget(words);
            return;
        }
        // The agent may have been closed before.
        let _ = self
            .agent
            .deregister(MemKind::Dram, &[span(&words).into()], &[]);
    }
}

fn span(words: &[AtomicU64]) -> MemDesc {
    MemDesc {
        addr: words.as_ptr().addr() as u64,
        len: size_of_val(words) as u64,
        device: 0,
    }
}
