//! Integration tests of the node, one binary; a module for each area.
#![allow(clippy::unwrap_used)]

mod births;
mod cluster;
mod conformance;
mod deadlocks;
mod grpc;
mod history;
mod log_recovery;
mod node;
mod raft_rules;
mod replication;
mod transactions;
mod watch;
