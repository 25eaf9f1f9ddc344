//! The metaservice as a running thing, in process: one member and three,
//! restarts from disk, loss of the leader, deadlocks, protected history, and the life of shards as fake
//! nodes report it.
#![allow(clippy::unwrap_used)]

mod cluster;
mod deadlocks;
mod lifecycle;
mod members;
mod protections;
