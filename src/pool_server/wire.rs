//! The messages of proto/kv_cache.proto, as prost writes them (build/proto.rs). The comments are those
//! of that file.

#![allow(missing_docs, clippy::doc_lazy_continuation)]

include!(concat!(env!("OUT_DIR"), "/kvferry.kv_cache.v1.rs"));
