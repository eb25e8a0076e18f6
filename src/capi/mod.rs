//! The C boundary: the only room with `extern "C"`, raw pointers and the panic guard.
//!
//! No logic lives here. Each function checks its arguments, calls one room, and translates the
//! result. One file per section of the header; the header itself is generated from these files
//! (`build.rs`), so their documentation is the manual that C programmers read.

// C names. Safety is stated once for all functions, at the top of the header; a C signature has the
// arguments that it needs.
#![allow(
    non_camel_case_types,
    clippy::missing_safety_doc,
    clippy::too_many_arguments
)]

pub mod agent;
pub mod block_cache;
pub mod block_pool;
pub mod doctor;
pub mod layout;
pub mod library;
pub mod logging;
pub mod memory;
pub mod output;
pub mod plan;
pub mod pool_client;
pub mod queue;
pub mod side_channel;
pub mod status;
pub mod transfer;

mod guard;
mod handle;
mod input;

// Addresses, lengths and counts are 64 bits wide on both sides of the boundary.
const _: () = assert!(usize::BITS == 64, "kvferry is for 64-bit systems");
