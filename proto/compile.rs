//! Compiles proto/kv_cache.proto into OUT_DIR, where src/pool_server/wire.rs includes it. protox reads
//! the file, so that no protoc is needed.

/// Where the definition is, below the crate.
const FILE: &str = "proto/kv_cache.proto";

/// Writes the Rust code of the messages.
pub fn compile() {
    println!("cargo:rerun-if-changed={FILE}");
    let definition = protox::compile([FILE], ["proto"]).unwrap_or_else(|e| panic!("{FILE}: {e}"));
    prost_build::Config::new()
        // The large ones behind a pointer: a batch of many empty operations must stay small.
        .boxed(".kvferry.kv_cache.v1.Operation.kind.get_cached_block")
        .boxed(".kvferry.kv_cache.v1.Operation.kind.cache_full_blocks")
        .boxed(".kvferry.kv_cache.v1.Operation.kind.cache_partial_block")
        .boxed(".kvferry.kv_cache.v1.Operation.kind.announce_blocks")
        .boxed(".kvferry.kv_cache.v1.Reply.result.stats")
        .compile_fds(definition)
        .unwrap_or_else(|e| panic!("{FILE}: {e}"));
}
