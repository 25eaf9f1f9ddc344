//! Transactions at the leader of a shard.
//!
//! Reading order: [`crate::rules`] names what must hold; [`latches`] order the writes
//! of one moment, [`timestamp_cache`] keeps them above what was read,
//! [`lock_table`] lets contended transactions wait in line, [`wait_graph`] ends
//! their deadlocks, [`schema`] compares schema versions; [`placement`] chooses commit timestamps and [`fate`]
//! decides transactions (both plain code); [`engine`] puts them in order
//! against time and consensus.
//!
//! The scheme is serializable multi-version timestamp ordering with intents,
//! the family of CockroachDB, plus commit wait.

pub mod coordinators;
pub mod engine;
pub mod fate;
pub mod latches;
pub mod leading;
pub mod lock_table;
pub(crate) mod metrics;
pub mod placement;
pub mod refusal;
pub mod schema;
pub mod seam;
pub mod timestamp_cache;
pub mod wait_graph;

pub use engine::{Engine, Inheritance, Protected};
pub use refusal::Refusal;
pub use seam::Consensus;
pub use wait_graph::WaitGraph;
