//! The Raft groups of a node. SKELETON of the API; the machinery follows.

mod api;

pub use api::*;
