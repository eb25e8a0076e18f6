//! The compatibility hash: SHA-256 of what two engines have to have in common, written as the JSON that
//! Python's `json.dumps(…, sort_keys=True)` writes.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::connector::Mode;

/// vLLM's number for the protocol and its formats: 14 in 0.32, 15 in 0.33.
pub const CONNECTOR_VERSION: u32 = 14;

/// What two engines have to have in common. Sizes, layouts and numbers of blocks are not among it: they
/// are compared when the peer's metadata is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompatFactors {
    /// `vllm.__version__`.
    pub vllm_version: String,
    /// [`CONNECTOR_VERSION`] of that version.
    pub connector_version: u32,
    /// The model as it is configured: a path is not the name of a hub.
    pub model: String,
    /// Such as `torch.bfloat16`.
    pub dtype: String,
    /// KV heads of the model, over all ranks.
    pub num_kv_heads: u64,
    /// Elements of a head.
    pub head_size: u64,
    /// Layers of the model, over all pipeline stages.
    pub num_hidden_layers: u64,
    /// The first attention backend; in push mode with block-outermost layouts all of them, sorted and
    /// joined by commas.
    pub attn_backend_name: String,
    /// As configured, such as `auto` or `fp8`.
    pub cache_dtype: String,
    /// Whether the hybrid KV cache manager is on.
    pub is_hma_enabled: bool,
    /// Of a speculator that uses the target's hidden states; else `None`.
    pub speculative: Option<SpeculativeFactors>,
    /// Who moves the bytes.
    pub mode: Mode,
}

/// What a speculator of the EAGLE and MTP kinds adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpeculativeFactors {
    /// Such as `eagle3`.
    pub method: Option<String>,
    /// The draft model as configured.
    pub model: String,
    /// Its revision.
    pub revision: Option<String>,
    /// The revision of its code.
    pub code_revision: Option<String>,
    /// Whether all drafts are made at once.
    pub parallel_drafting: bool,
    /// The cache dtype of the draft model, the target's where it has none of its own.
    pub kv_cache_dtype: String,
    /// Layers whose hidden states it takes, where the draft model says.
    pub auxiliary_layer_ids: Option<Vec<i64>>,
}

impl CompatFactors {
    /// The hash: 64 lowercase hexadecimal digits.
    pub fn hash(&self) -> String {
        let digest = Sha256::digest(self.json().as_bytes());
        digest
            .iter()
            .fold(String::with_capacity(64), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            })
    }

    /// What is hashed.
    pub fn json(&self) -> String {
        // In the order of the keys, as Python sorts them.
        object(&[
            ("attn_backend_name", string(&self.attn_backend_name)),
            ("cache_dtype", string(&self.cache_dtype)),
            ("dtype", string(&self.dtype)),
            ("head_size", self.head_size.to_string()),
            ("is_hma_enabled", self.is_hma_enabled.to_string()),
            ("model", string(&self.model)),
            ("nixl_connector_version", self.connector_version.to_string()),
            ("num_hidden_layers", self.num_hidden_layers.to_string()),
            ("num_kv_heads", self.num_kv_heads.to_string()),
            (
                "speculative_config",
                opt(&self.speculative, SpeculativeFactors::json),
            ),
            ("transfer_mode", string(self.mode.name())),
            ("vllm_version", string(&self.vllm_version)),
        ])
    }
}

impl SpeculativeFactors {
    fn json(&self) -> String {
        let layers = |ids: &Vec<i64>| {
            let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
            format!("[{}]", ids.join(", "))
        };
        object(&[
            (
                "auxiliary_layer_ids",
                opt(&self.auxiliary_layer_ids, layers),
            ),
            ("code_revision", opt(&self.code_revision, |s| string(s))),
            ("kv_cache_dtype", string(&self.kv_cache_dtype)),
            ("method", opt(&self.method, |s| string(s))),
            ("model", string(&self.model)),
            ("parallel_drafting", self.parallel_drafting.to_string()),
            ("revision", opt(&self.revision, |s| string(s))),
        ])
    }
}

fn object(entries: &[(&str, String)]) -> String {
    debug_assert!(entries.is_sorted_by_key(|(key, _)| *key));
    let entries: Vec<String> = entries
        .iter()
        .map(|(k, v)| format!("\"{k}\": {v}"))
        .collect();
    format!("{{{}}}", entries.join(", "))
}

fn opt<T>(value: &Option<T>, json: impl FnOnce(&T) -> String) -> String {
    value.as_ref().map_or_else(|| "null".to_owned(), json)
}

/// A string of printable ASCII: everything else is escaped, beyond the basic plane as a pair of
/// surrogates.
fn string(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
    out
}
