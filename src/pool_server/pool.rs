//! One pool of the server.

use super::convert;
use super::wire;
use crate::block_pool::{BlockPool, EventBatch, Options};
use crate::error::{Result, Status, bail};

/// What becomes of a pool's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publishing {
    /// They are not recorded.
    Off,
    /// They are kept until a client takes them.
    Take,
    /// They are given out by [`super::Service::take_published`] after each request.
    Publish,
}

/// A pool, and what the server knows about it beyond its blocks.
pub(super) struct Pool {
    pub(super) blocks: BlockPool,
    options: Options,
    pub(super) publishing: Publishing,
    /// Sessions that have opened it; `None` for a pool of the server's own, which stays.
    openers: Option<usize>,
    /// Of the last batch that was published.
    pub(super) sequence: u64,
    /// Events on their way out; kept for its memory.
    batch: EventBatch,
}

impl Pool {
    pub(super) fn new(options: &Options, publishing: Publishing, stays: bool) -> Result<Self> {
        Ok(Pool {
            blocks: BlockPool::new(options)?,
            options: options.clone(),
            publishing,
            openers: (!stays).then_some(0),
            sequence: 0,
            batch: EventBatch::default(),
        })
    }

    /// Refuses to take another pool for this one.
    pub(super) fn check_same(
        &self,
        name: &str,
        options: &Options,
        publishing: Publishing,
    ) -> Result<()> {
        if self.options != *options {
            bail!(
                Status::Mismatch,
                "pool {name:?} is there already, with {:?}, and not {options:?}",
                self.options
            );
        }
        if self.publishing != publishing {
            bail!(
                Status::Mismatch,
                "pool {name:?} is there already, with events {:?}, and not {publishing:?}",
                self.publishing
            );
        }
        Ok(())
    }

    /// Whether it ends with the last session that has opened it.
    pub(super) fn can_end(&self) -> bool {
        self.openers.is_some()
    }

    /// One more session has opened it.
    pub(super) fn opened(&mut self) {
        self.openers = self.openers.map(|n| n + 1);
    }

    /// One of these has ended. Returns whether the pool ends too.
    pub(super) fn left(&mut self) -> bool {
        self.openers = self.openers.map(|n| n.saturating_sub(1));
        self.openers == Some(0)
    }

    /// What has happened since the last call, if it is to be published and is anything.
    pub(super) fn publish(&mut self, name: &str, epoch: u64) -> Option<wire::EventBatch> {
        if self.publishing != Publishing::Publish {
            return None;
        }
        self.blocks.swap_events(&mut self.batch);
        if self.batch.is_empty() && self.batch.lost() == 0 {
            return None;
        }
        self.sequence += 1;
        Some(wire::EventBatch {
            sequence: self.sequence,
            ..convert::events(&self.batch, name, epoch)
        })
    }

    /// The last batch of a pool that ends: its content is gone.
    pub(super) fn publish_end(mut self, name: &str, epoch: u64) -> Option<wire::EventBatch> {
        if self.publishing != Publishing::Publish {
            return None;
        }
        let mut last = self.publish(name, epoch).unwrap_or(wire::EventBatch {
            pool: name.to_owned(),
            epoch,
            sequence: self.sequence + 1,
            ..wire::EventBatch::default()
        });
        last.events.push(wire::Event {
            kind: Some(wire::event::Kind::Cleared(wire::Cleared {})),
        });
        Some(last)
    }
}
