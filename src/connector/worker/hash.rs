//! The compatibility hash of engines that are not vLLM: what their KV caches say about the model.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::connector::Mode;
use crate::connector::geometry::{Content, KvCache};

/// 64 lowercase hexadecimal digits. Two engines have the same if they keep the same layers of the same
/// model in the same groups; how many ranks they have, how large their blocks are and where they lie is
/// compared when they meet.
pub(super) fn of(cache: &KvCache, mode: Mode) -> String {
    let digest = Sha256::digest(text(cache, mode).as_bytes());
    digest
        .iter()
        .fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}

fn text(cache: &KvCache, mode: Mode) -> String {
    let mut text = format!(
        "kvferry 1 {} heads {} mla {}\n",
        mode.name(),
        cache.kv_heads,
        cache.mla
    );
    for group in &cache.groups {
        let _ = writeln!(
            text,
            "group {} window {} format {}",
            group.kind as u32, group.window, group.format
        );
    }
    let mut layers: Vec<String> = cache
        .tensors
        .iter()
        .map(|t| {
            let content = match &t.content {
                Content::Heads(h) => format!("heads {} {} {}", h.k_size, h.v_size, h.total),
                Content::Latent(size) => format!("latent {size}"),
                // Its sizes are those of a rank.
                Content::State(_) => "state".to_owned(),
            };
            format!(
                "{:?} group {} {content} x {}\n",
                t.layer, t.group, t.elem_bytes
            )
        })
        .collect();
    layers.sort();
    text.extend(layers);
    text
}
