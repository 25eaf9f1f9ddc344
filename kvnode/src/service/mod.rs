//! The data path of a node: requests in, replies out, in process or over gRPC.

mod grpc;
mod node;
mod waits;

pub use grpc::ShardGrpc;
pub use node::{ShardNode, ShardNodeOptions};
