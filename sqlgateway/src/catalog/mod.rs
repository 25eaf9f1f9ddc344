//! The SQL catalog: what tables exist, as data in the KV tier.
//!
//! Descriptors live under the key prefix `c`. Every DDL raises the catalog
//! version and the version of each table that it touches; the latter is checked
//! by the shard leaders with every request (PROTOCOLS S1, S2), so a gateway may
//! use a cached [`CatalogSnapshot`] without asking anybody: a stale one is
//! found out. What does not exist is read again before that is said (S4).

mod change;
mod descriptor;
mod ids;
mod snapshot;
mod store;

pub use change::{CatalogChange, PendingDdl};
pub use descriptor::{
    ColumnDescriptor, DESCRIPTOR_FORMAT, IndexDescriptor, IndexState, SchemaDescriptor,
    TableDescriptor,
};
pub use ids::IdBlock;
pub use snapshot::{CatalogSnapshot, Relation};
pub use store::{BuildKey, CatalogStore, Garbage, IndexBuild, PUBLIC_OID};
pub(crate) use store::{build_key, build_of, build_span, decode, encode, garbage_span};
