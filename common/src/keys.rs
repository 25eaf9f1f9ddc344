//! The one ordered key space and who owns which part of it.
//!
//! | prefix | owner |
//! |---|---|
//! | `c` | the SQL catalog |
//! | `i` | outcome records of idempotency keys |
//! | `k` | the public KV API |
//! | `t` | SQL tables: table id, index id, key columns (memcomparable) |
//!
//! Shards are half-open ranges of this space. Nothing else is an address: what
//! a shard keeps beside its rows (schema versions, transaction records) moves
//! with the range.

use crate::ids::TableId;
use bytes::{BufMut, Bytes, BytesMut};

/// First byte of catalog keys.
pub const CATALOG: u8 = b'c';
/// First byte of outcome records of idempotency keys.
pub const IDEMPOTENCY: u8 = b'i';
/// First byte of keys of the KV API.
pub const KV: u8 = b'k';
/// First byte of SQL rows and index entries.
pub const TABLE: u8 = b't';

/// The ranges with which a new cluster starts: system, KV API, tables.
pub fn bootstrap_ranges() -> [(Bytes, Bytes); 3] {
    let at = |b: u8| Bytes::copy_from_slice(&[b]);
    [
        (Bytes::new(), at(KV)),
        (at(KV), at(TABLE)),
        (at(TABLE), Bytes::new()),
    ]
}

/// The key of the KV API's `user_key`.
pub fn kv_key(user_key: &[u8]) -> Bytes {
    let mut key = BytesMut::with_capacity(1 + user_key.len());
    key.put_u8(KV);
    key.put_slice(user_key);
    key.freeze()
}

/// Where the outcome of an idempotency key of a user is kept (PROTOCOLS X2).
/// `hash` is a digest of the key.
pub fn idempotency_key(user: &str, hash: &[u8]) -> Bytes {
    let mut key = BytesMut::with_capacity(2 + user.len() + hash.len());
    key.put_u8(IDEMPOTENCY);
    key.put_slice(user.as_bytes());
    key.put_u8(0);
    key.put_slice(hash);
    key.freeze()
}

/// Prefix of all keys of a table.
pub fn table_prefix(table: TableId) -> Bytes {
    let mut key = BytesMut::with_capacity(9);
    key.put_u8(TABLE);
    key.put_u64(table.0);
    key.freeze()
}

/// Prefix of the keys of one index of a table; the primary index is 1.
pub fn index_prefix(table: TableId, index: u32) -> BytesMut {
    let mut key = BytesMut::with_capacity(32);
    key.put_u8(TABLE);
    key.put_u64(table.0);
    key.put_u32(index);
    key
}

/// The smallest key above every key that starts with `prefix`; empty when there
/// is none (the end of the key space).
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return Bytes::from(end);
        }
    }
    Bytes::new()
}

/// The smallest key above `key`.
pub fn key_after(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// True when `key` lies in `[start, end)`; an empty `end` has no bound.
pub fn in_span(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    key >= start && (end.is_empty() || key < end)
}

/// True when two half-open spans share a key; empty ends have no bound.
pub fn spans_overlap(a_start: &[u8], a_end: &[u8], b_start: &[u8], b_end: &[u8]) -> bool {
    (b_end.is_empty() || a_start < b_end) && (a_end.is_empty() || b_start < a_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_end_carries_over_ff() {
        assert_eq!(prefix_end(b"a"), Bytes::from_static(b"b"));
        assert_eq!(prefix_end(&[1, 0xff]), Bytes::from_static(&[2]));
        assert_eq!(prefix_end(&[0xff, 0xff]), Bytes::new());
    }

    #[test]
    fn spans_with_open_ends_overlap() {
        assert!(spans_overlap(b"a", b"", b"z", b""));
        assert!(!spans_overlap(b"a", b"b", b"b", b""));
        assert!(spans_overlap(b"a", b"c", b"b", b""));
    }
}
