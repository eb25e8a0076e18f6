//! The scheduler half of the connector: what it says for what happens.

mod heartbeats;
mod ids;
mod large;
mod params;
mod property;
mod pull;
mod push;
mod serve;
mod support;
mod turns;
