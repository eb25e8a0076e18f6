//! The queue: requests in, completions out, whatever happens in between.

mod closing;
mod faults;
mod guards;
mod requests;
mod support;
mod turns;
