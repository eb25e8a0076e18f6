//! The listener that gives the ranks' handshake payloads to other engines.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::options::SchedulerOptions;
use crate::error::Result;
use crate::side_channel::{self, ListenOptions, Rank, SideChannel};

/// What the books have to know about it.
pub(super) struct Served {
    pub(super) port: u16,
    /// Payloads that were new or have changed.
    pub(super) changed: u64,
}

pub(super) struct Listener {
    options: ListenOptions,
    channel: Option<Arc<dyn SideChannel>>,
    published: BTreeMap<Rank, Vec<u8>>,
}

impl Listener {
    pub(super) fn new(options: &SchedulerOptions) -> Self {
        Listener {
            options: ListenOptions {
                host: options.host.clone(),
                port: options.port,
                ..ListenOptions::default()
            },
            channel: None,
            published: BTreeMap::new(),
        }
    }

    pub(super) fn serve(&mut self, payloads: Vec<(Rank, Vec<u8>)>) -> Result<Served> {
        let channel = match &self.channel {
            Some(channel) => channel.clone(),
            None => {
                let first = payloads.iter().find(|p| p.0 == Rank::default());
                let metadata = first.map(|p| p.1.clone()).unwrap_or_default();
                side_channel::listen("zmq", &self.options, metadata)?
            }
        };
        channel.replace_ranks(payloads.clone())?;
        let before = std::mem::replace(&mut self.published, payloads.into_iter().collect());
        let is_new = |(rank, data): &(&Rank, &Vec<u8>)| before.get(rank) != Some(*data);
        let served = Served {
            port: channel.local_addr().port(),
            changed: self.published.iter().filter(is_new).count() as u64,
        };
        self.channel = Some(channel);
        Ok(served)
    }
}
