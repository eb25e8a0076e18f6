//! The outer map of the handshake: the hash first, so that what follows it is only read when the two
//! engines are of a kind.

use super::map::{fits, read_map, require};
use super::{AgentMetadata, MAX_NAME, MAX_PAYLOAD};
use crate::error::{Result, Status, bail};
use crate::msgpack::Writer;

const KEYS: [&str; 2] = ["compatibility_hash", "agent_metadata_bytes"];

/// What the side channel hands out for a rank: vLLM calls it `NixlHandshakePayload`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// See [`CompatFactors::hash`](super::CompatFactors::hash). As the peer sent it: equal or not is all
    /// that it can be.
    pub compatibility_hash: String,
    /// An encoded [`AgentMetadata`]; [`Payload::metadata`] decodes it.
    pub agent_metadata_bytes: Vec<u8>,
}

impl Payload {
    /// The payload of a rank.
    ///
    /// # Errors
    /// As [`AgentMetadata::encode`].
    pub fn new(compatibility_hash: impl Into<String>, metadata: &AgentMetadata) -> Result<Self> {
        Ok(Payload {
            compatibility_hash: compatibility_hash.into(),
            agent_metadata_bytes: metadata.encode()?,
        })
    }

    /// The map as stock vLLM writes it.
    ///
    /// # Errors
    /// `InvalidArgument` for what [`Payload::decode`] would refuse for its size.
    pub fn encode(&self) -> Result<Vec<u8>> {
        fits(
            "compatibility_hash",
            self.compatibility_hash.len(),
            MAX_NAME,
        )?;
        fits(
            "agent_metadata_bytes",
            self.agent_metadata_bytes.len(),
            MAX_PAYLOAD,
        )?;
        let mut w = Writer::default();
        w.map(2);
        w.str(KEYS[0]);
        w.str(&self.compatibility_hash);
        w.str(KEYS[1]);
        w.bin(&self.agent_metadata_bytes);
        let bytes = w.into_bytes();
        fits("handshake payload", bytes.len(), MAX_PAYLOAD)?;
        Ok(bytes)
    }

    /// Reads the map, but not what is in `agent_metadata_bytes`.
    ///
    /// # Errors
    /// `PeerIncompatible`, with the key and what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Self::read(bytes).map_err(|e| e.context("handshake payload"))
    }

    fn read(bytes: &[u8]) -> Result<Self> {
        let mut found = Payload {
            compatibility_hash: String::new(),
            agent_metadata_bytes: Vec::new(),
        };
        let seen = read_map(bytes, MAX_PAYLOAD, &KEYS, |r, key| {
            match key {
                "compatibility_hash" => found.compatibility_hash = r.str(MAX_NAME)?.to_owned(),
                _ => found.agent_metadata_bytes = r.bin(MAX_PAYLOAD)?.to_vec(),
            }
            Ok(())
        })?;
        require(&KEYS, &seen)?;
        Ok(found)
    }

    /// Decodes what the rank says about itself, once the hash has been compared.
    ///
    /// # Errors
    /// As [`AgentMetadata::decode`].
    pub fn metadata(&self) -> Result<AgentMetadata> {
        AgentMetadata::decode(&self.agent_metadata_bytes)
    }

    /// Makes sure that the peer is of our kind.
    ///
    /// # Errors
    /// `PeerIncompatible`, with both hashes.
    pub fn check_hash(&self, ours: &str) -> Result<()> {
        if self.compatibility_hash != ours {
            bail!(
                Status::PeerIncompatible,
                "compatibility hash {:?} of the peer is not ours, {ours:?}: another vLLM version, model, \
                 dtype, attention backend, cache dtype, speculator or transfer mode",
                self.compatibility_hash
            );
        }
        Ok(())
    }
}
