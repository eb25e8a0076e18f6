//! Shared by the integration tests of layout and plan.

pub mod cases;
pub mod sim;
pub mod verify;
