//! One operation of one session on one pool.

use super::convert;
use super::holdings::Holdings;
use super::pool::{Pool, Publishing};
use super::wire::operation::Kind;
use super::wire::reply::Result as Reply;
use super::wire::{self, Blocks, CachedBlocks, Done, Freed};
use super::{MAX_KEYS, MAX_REQUEST_ID, MAX_REUSED};
use crate::error::{Error, Result, Status, bail};

/// What an operation works on.
pub(super) struct Context<'a> {
    pub(super) pool: &'a mut Pool,
    pub(super) held: &'a mut Holdings,
    /// The pool's name.
    pub(super) name: &'a str,
    pub(super) epoch: u64,
    /// How many sessions use the pool; counted where it is asked for.
    pub(super) sessions: usize,
    /// Block ids that the reply may still have.
    pub(super) room: &'a mut usize,
}

impl Context<'_> {
    /// Carries out an operation on a pool. Those on the server are not its business.
    pub(super) fn run(&mut self, kind: &Kind) -> Result<Reply> {
        match kind {
            Kind::Allocate(m) => self.allocate(m),
            Kind::Free(m) => self.free_request(&m.request_id),
            Kind::FreeBlocksById(m) => self.free(&m.block_ids, m.unpin),
            Kind::Touch(m) => self.touch(&m.block_ids, &m.request_id),
            Kind::GetCachedBlock(m) => self.lookup(m),
            Kind::CacheFullBlocks(m) => {
                let content = required(m.content.as_ref())?;
                done(
                    self.pool
                        .blocks
                        .cache_full(&convert::cache_full(m, content)),
                )
            }
            Kind::CachePartialBlock(m) => self.cache_partial(m),
            Kind::AnnounceBlocks(m) => {
                let content = required(m.content.as_ref())?;
                done(self.pool.blocks.announce(&convert::stored(content)))
            }
            Kind::MoveBlockHashes(m) => done(self.pool.blocks.move_keys(m.from, m.to)),
            Kind::EvictBlocks(m) => done(self.pool.blocks.evict(&m.block_ids)),
            Kind::ResetPrefixCache(_) => Ok(Reply::Reset(wire::Reset {
                done: self.pool.blocks.reset(),
            })),
            Kind::GetStats(_) => Ok(Reply::Stats(Box::new(convert::stats(
                &self.pool.blocks.stats(),
                self.sessions,
                self.pool.sequence,
            )))),
            Kind::GetAllFreeBlocks(m) => self.free_blocks(m.limit),
            Kind::GetBlocks(m) => self.states(m),
            Kind::TakeReused(m) => self.take_reused(m.limit),
            Kind::TakeEvents(_) => self.take_events(),
            Kind::Ping(_)
            | Kind::OpenPool(_)
            | Kind::CloseSession(_)
            | Kind::GetMetrics(_)
            | Kind::Shutdown(_)
            | Kind::Batch(_) => Err(Error::new(
                Status::Internal,
                "this is no operation on a pool",
            )),
        }
    }

    fn allocate(&mut self, m: &wire::Allocate) -> Result<Reply> {
        check_request(&m.request_id)?;
        let has = self.held.of_request(&m.request_id);
        let after = match m.after {
            0 => has.last().copied(),
            id => Some(id),
        };
        let mut n = m.num_blocks as usize;
        if m.up_to {
            n = n.saturating_sub(has.len());
        }
        self.take_room(n)?;
        self.held.check_room(n, &m.request_id)?;
        let mut ids = vec![0; n];
        self.pool.blocks.allocate(after, &mut ids)?;
        self.held.add(&ids, &m.request_id);
        Ok(blocks(ids))
    }

    fn free_request(&mut self, id: &str) -> Result<Reply> {
        check_request(id)?;
        let Some(ids) = self.held.end_request(id) else {
            bail!(
                Status::NotFound,
                "no block is held for request {id:?} of this session"
            );
        };
        self.pool.blocks.free(&ids)?;
        Ok(freed(ids.len()))
    }

    fn free(&mut self, ids: &[u32], unpin: bool) -> Result<Reply> {
        // The null block is nobody's: whether it is passed over is the pool's to say.
        let real: Vec<u32>;
        let owned = if ids.contains(&0) {
            real = ids.iter().copied().filter(|&id| id != 0).collect();
            &real
        } else {
            ids
        };
        if unpin && self.pool.blocks.num_reused() > MAX_REUSED {
            bail!(
                Status::ResourceExhausted,
                "{} reused blocks wait to be taken (TakeReused)",
                self.pool.blocks.num_reused()
            );
        }
        let missing = self.held.remove(owned).err();
        if let Some(i) = missing {
            // Given back too often, or never there: the pool will say so. But what others hold it
            // would let go.
            let id = owned[i];
            let times = owned[..i].iter().filter(|&&other| other == id).count();
            let refs = self.pool.blocks.ref_count(id).unwrap_or(0);
            if refs as usize > times {
                bail!(
                    Status::NotAllowed,
                    "block {id} is held, but not by this session outside its requests"
                );
            }
        }
        let blocks = &mut self.pool.blocks;
        let result = if unpin {
            blocks.unpin(ids)
        } else {
            blocks.free(ids)
        };
        if result.is_err() && missing.is_none() {
            self.held.add(owned, "");
        }
        done(result)
    }

    fn touch(&mut self, ids: &[u32], request: &str) -> Result<Reply> {
        self.check_holds(ids.len(), request)?;
        self.pool.blocks.touch(ids)?;
        self.hold(ids, request);
        Ok(Reply::Done(Done {}))
    }

    fn lookup(&mut self, m: &wire::GetCachedBlock) -> Result<Reply> {
        let groups: &[u32] = if m.groups.is_empty() { &[0] } else { &m.groups };
        let len = m.hash_length as usize;
        // Whether the length fits is the pool's to say.
        let room = (m.hashes.len() / len.max(1)).saturating_mul(groups.len());
        self.take_room(room)?;
        let mut ids = vec![0; room];
        let blocks = &mut self.pool.blocks;
        let found = blocks.lookup_chain(&m.hashes, len, groups, &mut ids)?;
        ids.truncate(found * groups.len());
        if m.touch {
            self.touch(&ids, &m.request_id)?;
        }
        Ok(Reply::CachedBlocks(CachedBlocks {
            num_hashes: found as u32,
            block_ids: ids,
        }))
    }

    fn cache_partial(&mut self, m: &wire::CachePartialBlock) -> Result<Reply> {
        let content = required(m.content.as_ref())?;
        let blocks = &mut self.pool.blocks;
        let keys = blocks.keys(m.block_id)?.len();
        if keys >= MAX_KEYS {
            bail!(
                Status::ResourceExhausted,
                "block {} has {keys} keys, and can have {MAX_KEYS}",
                m.block_id
            );
        }
        done(blocks.cache_partial(&convert::cache_partial(m, content)))
    }

    fn free_blocks(&mut self, limit: u32) -> Result<Reply> {
        let total = self.pool.blocks.num_free();
        let n = self.limited(limit, total as usize)?;
        Ok(Reply::Blocks(Blocks {
            block_ids: self.pool.blocks.free_blocks().take(n).collect(),
            total,
        }))
    }

    fn take_reused(&mut self, limit: u32) -> Result<Reply> {
        let n = self.limited(limit, self.pool.blocks.num_reused())?;
        let mut ids = vec![0; n];
        let taken = self.pool.blocks.drain_reused(&mut ids);
        ids.truncate(taken);
        Ok(blocks(ids))
    }

    fn take_events(&mut self) -> Result<Reply> {
        if self.pool.publishing != Publishing::Take {
            bail!(
                Status::NotSupported,
                "the events of pool {:?} cannot be taken: they are {:?}",
                self.name,
                self.pool.publishing
            );
        }
        let batch = self.pool.blocks.take_events();
        Ok(Reply::Events(convert::events(
            &batch, self.name, self.epoch,
        )))
    }

    fn states(&mut self, m: &wire::GetBlocks) -> Result<Reply> {
        self.take_room(m.block_ids.len())?;
        let mut states = Vec::new();
        for &id in &m.block_ids {
            let blocks = &self.pool.blocks;
            let mut state = wire::BlockState {
                // Nobody counts the null block.
                ref_count: if id == 0 { 0 } else { blocks.ref_count(id)? },
                writable: blocks.is_writable(id)?,
                keys: Vec::new(),
                cached_tokens: blocks.cached_tokens(id)?,
            };
            if m.keys {
                let keys = blocks.keys(id)?;
                self.take_room(keys.iter().map(|(hash, _)| 4 + hash.len() / 4).sum())?;
                let key = |(hash, group)| wire::Key { hash, group };
                state.keys = keys.into_iter().map(key).collect();
            }
            states.push(state);
        }
        Ok(Reply::BlockStates(wire::BlockStates { blocks: states }))
    }

    /// How many ids to give of so many; the reply has room for them.
    fn limited(&mut self, limit: u32, there_are: usize) -> Result<usize> {
        let mut n = there_are.min(*self.room);
        if limit != 0 {
            n = n.min(limit as usize);
        }
        self.take_room(n)?;
        Ok(n)
    }

    fn take_room(&mut self, ids: usize) -> Result<()> {
        take_room(self.room, ids)
    }

    fn check_holds(&self, n: usize, request: &str) -> Result<()> {
        check_request(request)?;
        self.held.check_room(n, request)
    }

    /// The pool has counted these up; the null block it has passed over.
    fn hold(&mut self, ids: &[u32], request: &str) {
        if ids.contains(&0) {
            let real: Vec<u32> = ids.iter().copied().filter(|&id| id != 0).collect();
            self.held.add(&real, request);
        } else {
            self.held.add(ids, request);
        }
    }
}

/// Takes room in the reply, or refuses.
pub(super) fn take_room(room: &mut usize, ids: usize) -> Result<()> {
    match room.checked_sub(ids) {
        Some(left) => {
            *room = left;
            Ok(())
        }
        None => bail!(
            Status::ResourceExhausted,
            "the answer would have {ids} block ids; there is room for {room}"
        ),
    }
}

fn check_request(id: &str) -> Result<()> {
    if id.len() > MAX_REQUEST_ID {
        return Err(Error::invalid(format!(
            "a request id of {} bytes: it can have {MAX_REQUEST_ID}",
            id.len()
        )));
    }
    Ok(())
}

fn required(content: Option<&wire::BlockContent>) -> Result<&wire::BlockContent> {
    content.ok_or_else(|| Error::invalid("the operation has no content"))
}

fn done(result: Result<()>) -> Result<Reply> {
    result.map(|()| Reply::Done(Done {}))
}

fn blocks(block_ids: Vec<u32>) -> Reply {
    Reply::Blocks(Blocks {
        block_ids,
        total: 0,
    })
}

/// The reply that says how many holds were given back.
pub(super) fn freed(holds: usize) -> Reply {
    Reply::Freed(Freed {
        num_blocks: holds as u64,
    })
}
