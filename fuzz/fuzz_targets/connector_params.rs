//! kv_transfer_params from a router: whatever is accepted survives being written and read again.
#![no_main]

use kvferry::connector::Mode;
use kvferry::connector::params::Params;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut params) = Params::from_json(bytes) else {
        return;
    };
    let mut again = Params::from_json(params.to_json(Mode::Pull).as_bytes()).expect("we wrote it");
    assert_eq!(again.remote_block_ids, params.remote_block_ids);
    assert_eq!(again.kvferry_lease, params.kvferry_lease);
    assert_eq!(again.remote_num_tokens, params.remote_num_tokens);
    assert_eq!(again.take_remote(), params.take_remote());
});
