//! How a worker works.

use std::time::Duration;

use crate::connector::{MAX_ENGINE_ID, Mode};
use crate::error::{Error, Result, Status, bail};
use crate::layout::Parallel;
use crate::queue::QueueOptions;

/// How a worker works.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Which side moves the bytes.
    pub mode: Mode,
    /// The engine's id, the same on all its ranks.
    pub engine_id: String,
    /// Which rank this is.
    pub parallel: Parallel,
    /// By which two engines tell that they are of a kind: 64 hexadecimal digits. `None`: made of what
    /// the KV cache says about the model, for engines that are not vLLM.
    pub compat_hash: Option<String>,
    /// Whether a peer with another hash is refused.
    pub enforce_compat: bool,
    /// How long producers keep a request; heartbeats extend it to two thirds of that.
    pub lease: Duration,
    /// How long one question of a handshake may take.
    pub handshake_timeout: Duration,
    /// Peers that nobody has wanted for so long are forgotten; `None` is never.
    pub engine_ttl: Option<Duration>,
    /// How long a consumer waits for a producer that writes.
    pub registration_timeout: Duration,
    /// How long one transfer may take.
    pub transfer_timeout: Duration,
    /// Host and port of this engine's side channel, for producers that write to find it. Not needed
    /// in pull mode.
    pub side_channel: (String, u16),
    /// Of the transfers.
    pub queue: QueueOptions,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        WorkerOptions {
            mode: Mode::Pull,
            engine_id: String::new(),
            parallel: Parallel::default(),
            compat_hash: None,
            enforce_compat: true,
            lease: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(5),
            engine_ttl: Some(Duration::from_secs(3600)),
            registration_timeout: Duration::from_secs(480),
            transfer_timeout: Duration::from_secs(480),
            side_channel: (String::new(), 0),
            queue: QueueOptions::default(),
        }
    }
}

impl WorkerOptions {
    pub(super) fn check(&self) -> Result<()> {
        if self.engine_id.is_empty() || self.engine_id.len() > MAX_ENGINE_ID {
            return Err(Error::invalid(format!(
                "engine_id has {} bytes; 1 to {MAX_ENGINE_ID} make one",
                self.engine_id.len()
            )));
        }
        if let Some(hash) = &self.compat_hash {
            let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            if hash.len() != 64 || !hash.bytes().all(hex) {
                return Err(Error::invalid(format!(
                    "compat_hash {hash:?} is not 64 lowercase hexadecimal digits"
                )));
            }
        }
        if self.mode == Mode::Push && self.parallel.pp_size > 1 {
            bail!(
                Status::NotSupported,
                "pp_size {} in push mode: a producer of several pipeline stages cannot write yet; use \
                 pull mode, or one stage",
                self.parallel.pp_size
            );
        }
        for (name, time) in [
            ("lease", self.lease),
            ("registration_timeout", self.registration_timeout),
            ("transfer_timeout", self.transfer_timeout),
        ] {
            if time.is_zero() || time > LONGEST {
                return Err(Error::invalid(format!(
                    "{name} {time:?} is not more than zero and at most {LONGEST:?}"
                )));
            }
        }
        let most = crate::side_channel::MAX_TIMEOUT;
        if self.handshake_timeout.is_zero() || self.handshake_timeout > most {
            return Err(Error::invalid(format!(
                "handshake_timeout {:?} is not more than zero and at most {most:?}",
                self.handshake_timeout
            )));
        }
        Ok(())
    }
}

/// The longest time that anything may be given: longer is a wrong unit.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);
