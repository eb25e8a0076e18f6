//! Names: of layers, in the order of the model, and of physical arrangements.

use std::cmp::Ordering;

use crate::error::{Result, Status, bail};

/// Order of layers (L), blocks (B), heads (H), tokens (N) and a cell's content (C) in memory, outermost
/// first, by the names that vLLM gives them. One allocation holds all layers of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PhysicalOrder {
    /// A layer's blocks follow each other; head-major. What most engines have.
    Lbhnc,
    /// A layer's blocks follow each other; token-major.
    Lbnhc,
    /// A layer's heads follow each other, each with all blocks.
    Lhbnc,
    /// Each block is a row of all layers' pages; head-major.
    Blhnc,
    /// Each block is a row of all layers' pages; token-major.
    Blnhc,
    /// Each block is a row of heads, each of which holds all layers.
    Bhlnc,
}

impl PhysicalOrder {
    const NAMES: [(&'static str, PhysicalOrder); 6] = [
        ("LBHNC", PhysicalOrder::Lbhnc),
        ("LBNHC", PhysicalOrder::Lbnhc),
        ("LHBNC", PhysicalOrder::Lhbnc),
        ("BLHNC", PhysicalOrder::Blhnc),
        ("BLNHC", PhysicalOrder::Blnhc),
        ("BHLNC", PhysicalOrder::Bhlnc),
    ];

    /// The order with this name.
    pub fn from_name(name: &str) -> Result<Self> {
        match Self::NAMES.iter().find(|(n, _)| *n == name) {
            Some((_, order)) => Ok(*order),
            None => bail!(
                Status::NotSupported,
                "kv_cache_layout {name:?} is none of {:?}",
                Self::NAMES.map(|(n, _)| n)
            ),
        }
    }

    /// Tokens lie outside heads.
    pub(super) fn is_token_major(self) -> bool {
        matches!(self, PhysicalOrder::Lbnhc | PhysicalOrder::Blnhc)
    }

    /// Each head has a region of its own.
    pub(super) fn is_by_head(self) -> bool {
        self == PhysicalOrder::Lhbnc
    }

    /// A block is a row of all layers.
    pub(super) fn is_block_outermost(self) -> bool {
        matches!(
            self,
            PhysicalOrder::Blhnc | PhysicalOrder::Blnhc | PhysicalOrder::Bhlnc
        )
    }
}

/// Compares names as people count: `layers.2` before `layers.10`.
pub fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let ((text_a, rest_a), (text_b, rest_b)) = (split(a, false), split(b, false));
        let ((digits_a, rest_a), (digits_b, rest_b)) = (split(rest_a, true), split(rest_b, true));
        let order = text_a.cmp(text_b).then_with(|| number(digits_a, digits_b));
        if order != Ordering::Equal || (rest_a.is_empty() && rest_b.is_empty()) {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

/// The leading characters that are digits, or that are not, and what follows.
fn split(s: &str, digits: bool) -> (&str, &str) {
    let end = s
        .find(|c: char| c.is_ascii_digit() != digits)
        .unwrap_or(s.len());
    s.split_at(end)
}

/// Compares runs of digits as numbers, however long; no digits are less than any.
fn number(a: &str, b: &str) -> Ordering {
    let value = |s: &str| s.trim_start_matches('0').to_owned();
    let (x, y) = (value(a), value(b));
    a.is_empty()
        .cmp(&b.is_empty())
        .reverse()
        .then(x.len().cmp(&y.len()))
        .then_with(|| x.cmp(&y))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_counted() {
        let mut names = vec![
            "model.layers.10.attn",
            "model.layers.2.attn",
            "model.layers.2.attn.k2",
            "model.layers.2.attn.k10",
            "draft.layers.0",
            "model.layers.02.attn.b",
            "model",
            "model.layers",
            "model.layers.2",
        ];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(
            names,
            [
                "draft.layers.0",
                "model",
                "model.layers",
                "model.layers.2",
                "model.layers.2.attn",
                "model.layers.02.attn.b",
                "model.layers.2.attn.k2",
                "model.layers.2.attn.k10",
                "model.layers.10.attn",
            ]
        );
        let huge = "9".repeat(40);
        assert_eq!(natural(&format!("l{huge}"), "l10"), Ordering::Greater);
        assert_eq!(natural("l1", "l01"), Ordering::Equal);
    }

    #[test]
    fn orders_have_names() {
        assert_eq!(
            PhysicalOrder::from_name("LHBNC").unwrap(),
            PhysicalOrder::Lhbnc
        );
        let e = PhysicalOrder::from_name("NHD").unwrap_err();
        assert_eq!(e.status(), Status::NotSupported);
        assert!(e.message().contains("\"NHD\""), "{e}");
    }
}
