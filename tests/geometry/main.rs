//! Tensors to regions, regions to layouts, layouts to plans.

#[path = "../common/mod.rs"]
mod common;
mod examples;
mod fixture;
mod oracle;
mod refusals;
