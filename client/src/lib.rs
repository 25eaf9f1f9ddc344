//! The library that ties the services together: the shard map cache, routing
//! with retries, and the transaction coordinator (DESIGN sections 6 and 7).
//!
//! ```text
//!   gateway, KV front end
//!        | begin / get / scan / put / commit
//!        v
//!   transaction   buffered writes, read set, locks, commit protocol   (X0-X4, S1, T5)
//!        | one request to the leader of a key or a span
//!        v
//!   router        finds the leader, hides elections, splits and lost links
//!        | ShardService: one node, in process or behind one stream
//!        v
//!   connection / local nodes          shard map <- metaservice watch
//! ```
//!
//! What it promises: an acknowledged commit is committed, a reported abort is
//! aborted, and what could not be learnt is said to be *unknown*; no call
//! hangs beyond its deadline; queues are bounded.

mod background;
pub mod backoff;
mod changes;
mod client;
pub mod connection;
mod contention;
pub mod error;
mod failure;
mod history;
mod locks;
pub mod meta;
mod metrics;
mod protection;
mod receipt;
mod router;
mod second_opinion;
pub mod service;
pub mod shard_map;
mod single;
pub mod transaction;
pub mod types;

#[cfg(test)]
mod tests;

pub use changes::{Change, ChangesOptions, ChangesPage, Stretch};
pub use client::{Client, ClientOptions, Ran};
pub use error::{Error, Result};
pub use locks::{LockMode, LockState};
pub use meta::MetaClient;
pub use service::{LocalNodes, ShardService, TransportError};
pub use shard_map::ShardMap;
pub use single::SingleRead;
pub use transaction::{FragmentPartition, Savepoint, Transaction};
pub use types::{
    Commit, Condition, EarlierOutcome, FragmentRequest, IdempotencyRequest, Isolation, LockOptions,
    ScanOptions, Span, TableVersion, Timing, TransactionOptions, WriteOptions,
};
