//! The node that holds data: shards of the key space, each replicated by a
//! Raft group, all of them over one storage engine and one raft log.
//!
//! Reading order, from the bottom: [`raft_log`] keeps what consensus must not
//! forget, [`consensus`] runs the groups and applies what they decide to the
//! storage engine, [`transport`] carries their messages, [`snapshot`] rebuilds
//! a replica that is too far behind. Above them stand versions, transactions
//! and the services of the node.

pub mod command;
pub mod consensus;
pub mod error;
pub mod kv_service;
pub mod mvcc;
pub mod node;
pub mod query;
pub mod raft_log;
pub mod rules;
pub mod service;
pub mod snapshot;
pub mod transport;
pub mod txn;

pub use error::{Error, Result};
