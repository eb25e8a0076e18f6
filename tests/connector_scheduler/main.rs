//! The scheduler half of the connector: what it says for what happens.

mod heartbeats;
mod params;
mod property;
mod pull;
mod push;
mod serve;
mod support;
mod turns;
