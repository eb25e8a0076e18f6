//! Requests to kv_cache_server: the decoder, and everything that is done with what it reads.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/pool_server/oracle.rs"]
mod oracle;

fuzz_target!(|script: &[u8]| oracle::check(script));
