//! `kv_transfer_params`: what travels with a request through the router, as JSON.
