//! The bytes between two engines: as stock vLLM's, and strict with what is not.
//!
//! `tests/vllm/data/wire.json` was written by `tests/vllm/record_wire.py` with vLLM's own classes and
//! functions; what it holds is described there.

mod notifications;
mod stock;
mod strict;
mod support;
