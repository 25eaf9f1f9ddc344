//! The limits that users meet; `docs/LIMITS.md` publishes them.

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
/// Longest SQL text, in bytes.
pub const SQL_BYTES_MAX: usize = 16 * 1024 * 1024;
