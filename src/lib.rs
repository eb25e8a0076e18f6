//! kvferry moves the KV cache of large language models between inference engines.
//!
//! | room | what it is |
//! |---|---|
//! | [`error`] | statuses and messages |
//! | [`memory`] | memory kinds and descriptors: the words that all rooms share |
//! | [`layout`] | geometry of one rank's KV cache: regions, groups, parts |
//! | [`plan`] | who copies which bytes from whom: two layouts into lanes, block ids into ranges |
//! | [`transport`] | moving bytes: the trait, NIXL, and the built-in one for a single host |

pub mod error;
pub mod layout;
pub mod memory;
pub mod plan;
pub mod transport;
