//! The limits that users meet; `docs/LIMITS.md` publishes them.

use std::time::Duration;

/// Longest key of the KV API, in bytes.
pub const KV_KEY_BYTES_MAX: usize = 16 * 1024;
/// Watches of the KV API that one node serves at a time.
pub const KV_WATCHES_MAX: usize = 1024;
/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Longest encoded key of any kind (a SQL index key may escape bytes).
pub const ENCODED_KEY_BYTES_MAX: usize = 32 * 1024;
/// Buffered writes of one transaction, in bytes.
pub const TXN_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Writes of one transaction.
pub const TXN_WRITES_MAX: usize = 2_000_000;
/// Bytes of writes in one Raft proposal; a larger part of a transaction is
/// laid in several.
pub const PROPOSAL_BYTES_MAX: usize = 16 * 1024 * 1024;
/// History that is readable at least, whatever a node is told.
pub const HISTORY_MIN: Duration = Duration::from_secs(10 * 60);
/// How far back a timestamp may lie that is to be protected from collection
/// (PROTOCOLS X5): what lies further back may be unreadable already.
pub const PROTECTED_AGE_MAX: Duration = Duration::from_secs(9 * 60);
/// Protections of a cluster: one for each process with long reads, and backups.
pub const PROTECTIONS_MAX: usize = 4096;
/// Longest SQL text, in bytes.
pub const SQL_BYTES_MAX: usize = 16 * 1024 * 1024;
