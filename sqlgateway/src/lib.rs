//! The SQL gateway: statements in, rows out; stateless but for its caches.
//!
//! ```text
//!  pgwire, http          front ends: decode requests, encode results
//!      v
//!  session               transactions, settings, retries, cancel, prepared statements
//!      v
//!  statement             text -> classified statement (sqlparser's tree)
//!      |-- point         statements by full key, compiled once, no DataFusion
//!      |-- query         SELECT: DataFusion plans, shard scans, fragments
//!      |-- dml           INSERT/UPDATE/DELETE/COPY over a row source
//!      `-- ddl           tables, indexes, schemas
//!      v
//!  catalog               descriptors in the KV tier, cached snapshots
//! ```

pub mod activity;
pub mod catalog;
pub mod config;
pub mod ddl;
pub mod dml;
pub mod encode;
pub mod error;
pub mod gateway;
pub mod http;
pub mod metrics;
pub mod pg_catalog;
pub mod pgwire;
pub mod point;
pub mod query;
pub mod server;
pub mod session;
pub mod settings;
pub mod statement;
pub mod tls;

pub use error::{Result, SqlError};
pub use session::{
    CancelHandle, CopyFormat, CopyIn, CopyOut, Gateway, GatewayOptions, Outcome, Prepared,
    ResultColumn, Session, SessionParams, SimpleQuery, TransactionStatus,
};
