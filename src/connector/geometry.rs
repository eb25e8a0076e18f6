//! From an engine's tensors to regions, and from a rank's regions to a [`Layout`](crate::layout::Layout).
