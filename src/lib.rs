//! kvferry moves the KV cache of large language models between inference engines.
//!
//! | room | what it is |
//! |---|---|
//! | [`error`] | statuses and messages |
//! | [`memory`] | memory kinds and descriptors: the words that all rooms share |
//! | [`transport`] | moving bytes: the trait, NIXL, and the built-in one for a single host |

pub mod error;
pub mod memory;
pub mod transport;
