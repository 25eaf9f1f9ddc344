//! The contracts between LineraDB's processes: generated code from the
//! `.proto` files beside this crate, and nothing else. What a message means,
//! which errors it may be answered with and whether it may be repeated stands
//! in the comments of the `.proto` files.
//!
//! Byte fields are [`bytes::Bytes`](https://docs.rs/bytes): decoding a frame
//! shares its buffer instead of copying keys and values.
#![allow(missing_docs, clippy::all)]

/// The public key-value API.
pub mod kv {
    /// `lineradb.kv.v1`
    pub mod v1 {
        tonic::include_proto!("lineradb.kv.v1");
    }
}

/// The internal data path.
pub mod shard {
    /// `lineradb.shard.v1`
    pub mod v1 {
        tonic::include_proto!("lineradb.shard.v1");
    }
}

/// Consensus traffic.
pub mod raft {
    /// `lineradb.raft.v1`
    pub mod v1 {
        tonic::include_proto!("lineradb.raft.v1");
    }
}

/// The metaservice.
pub mod meta {
    /// `lineradb.meta.v1`
    pub mod v1 {
        tonic::include_proto!("lineradb.meta.v1");
    }
}

/// All file descriptors, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/lineradb_descriptor.bin"));
