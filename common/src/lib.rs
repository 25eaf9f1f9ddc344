//! What every LineraDB process shares: time, identifiers, key encoding, SQL
//! types and row formats, configuration, TLS, telemetry, and the seams behind
//! which time, chance and spawning hide.
//!
//! Layers look down only: this crate knows the contracts (`lineradb-proto`)
//! and nothing above them.

pub mod clock;
pub mod config;
pub mod encoding;
pub mod error;
pub mod faults;
pub mod ids;
pub mod keys;
pub mod limits;
pub mod locality;
pub mod position;
pub mod random;
pub mod spawn;
pub mod sql;
pub mod telemetry;
pub mod timestamp;

pub use error::{Error, ErrorKind, Result};
pub use ids::{GroupId, NodeId, ReplicaId, ShardId, TableId, TxnId};
pub use position::Position;
pub use timestamp::Timestamp;
