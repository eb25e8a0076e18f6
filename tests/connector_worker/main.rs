//! The connector's worker half: engines that hand requests over, judged by content, and by what is left
//! when it is over.

#[path = "../common/mod.rs"]
mod common;
#[path = "../nixl_support/mod.rs"]
mod nixl_support;

mod cancel;
mod closing;
mod hostile;
mod leases;
mod peers;
mod processes;
mod push;
mod receives;
mod support;
