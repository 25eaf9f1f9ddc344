//! Multi-version storage on top of the ordered trees: which bytes stand where,
//! and what a reader at a timestamp sees.
//!
//! ```text
//! data    addressable key ++ !timestamp   -> version   (newest first)
//! intent  addressable key                 -> intent    (at most one)
//! txn     addressable anchor ++ kind ++ id -> record of a transaction's fate
//!         threshold key of the shard       -> nothing is read below it (X5)
//! ```
//!
//! Everything here is plain code over a [`Reader`] (a snapshot of the storage
//! engine, or a map in tests): no clock, no locks, no consensus. The layout is
//! that of Bigtable-like stores with Percolator's separate lock column; keys
//! are escaped so that versions of one key never interleave with another's.

pub mod changes;
mod codec;
pub mod collect;
mod error;
mod intent;
pub mod keys;
mod lsm;
#[cfg(test)]
pub mod memory;
mod point;
mod reader;
mod record;
mod scan;
mod version;

pub use error::{Error, Result};
pub use intent::{Intent, IntentWrite};
pub use lsm::{LsmCursor, LsmStore};
pub use point::{
    PointRead, Visible, changed_in, find_version_of, newest_version, read_intent, read_point,
    versions_of,
};
pub use reader::{Cursor, Reader, Store};
pub use record::{SchemaSpan, Status, TxnRecord};
pub use scan::{Row, RowSource, ScanOptions, VersionScan};
pub use version::Version;
