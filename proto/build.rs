//! Compiles the contracts with `protox`, so that no `protoc` is needed.

use std::path::PathBuf;

const FILES: [&str; 4] = [
    "lineradb/kv/v1/kv.proto",
    "lineradb/shard/v1/shard.proto",
    "lineradb/raft/v1/raft.proto",
    "lineradb/meta/v1/meta.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=lineradb");
    let descriptors = protox::compile(FILES, ["."])?;
    let path = PathBuf::from(std::env::var("OUT_DIR")?).join("lineradb_descriptor.bin");
    std::fs::write(&path, prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
