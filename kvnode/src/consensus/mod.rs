//! The Raft groups of a node: openraft over the shared log and the storage
//! engine, behind a handle that says no more than the layers above need.
//!
//! - [`api`]: what they see; [`group`]: one replica; [`groups`]: all of a node.
//! - [`types`]: openraft's types and our bytes for them.
//! - [`state_machine`]: apply, with [`verdict`] (may this command still be
//!   carried out?) and [`split`] (what a split comes to) as plain functions.
//! - [`local`]: what a node keeps for each replica; [`bounds`]: which bytes of
//!   the trees are a shard's; [`storage`]: the trees; [`tail`]: what was written
//!   into them lately.
//! - [`life`]: orders to make, replace and destroy replicas; [`birth`]: replicas
//!   made by asking; [`retention`]: what may leave the log.
//!
//! Rules held here: C1 (no leadership is restored but a live split's), C2 (a
//! command counts in its own term only), C3 (tombstones), C4 (births), D1 and
//! D2 (nothing is purged that a crash would need). The idea of many groups over
//! one log and one engine is CockroachDB's and TiKV's.

mod api;
mod birth;
pub(crate) mod bounds;
mod group;
mod groups;
mod life;
pub(crate) mod local;
pub(crate) mod metrics;
pub(crate) mod replica;
mod retention;
mod split;
mod state_machine;
pub(crate) mod storage;
mod tail;
pub mod types;
mod verdict;

#[cfg(test)]
mod crash_tests;

pub use api::*;
pub use group::Group;
pub use groups::{Groups, GroupsCore};
pub use state_machine::{Checkpoint, StateMachine};
pub use tail::{Mark, Tail};
