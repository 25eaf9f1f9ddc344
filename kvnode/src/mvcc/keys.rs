//! Where things stand in the trees.
//!
//! An *addressable* key is what latches, intents and versions are kept under:
//! `0x01 ++ escaped key` for keys of the shared key space, or
//! `0x00 ++ shard ++ 'v' ++ table` for the schema version of a table inside one
//! shard (PROTOCOLS S2). Escaping ends each key with `00 01`, so that the
//! versions of a key never interleave with keys that continue it.

use super::{Error, Result};
use bytes::{BufMut, Bytes, BytesMut};
use lineradb_common::{ShardId, TableId, Timestamp, TxnId};

const LOCAL: u8 = 0x00;
const RANGE: u8 = 0x01;
/// Above every addressable key.
const END: u8 = 0x02;
const SCHEMA: u8 = b'v';
const RECORD: u8 = b'r';
const THRESHOLD: u8 = b'g';
/// Bytes of a version at the end of its key.
pub const TIMESTAMP_BYTES: usize = 8;

/// The addressable form of a key of the shared key space.
pub fn addressable(key: &[u8]) -> Bytes {
    addressable_with_room(key, TIMESTAMP_BYTES).freeze()
}

fn addressable_with_room(key: &[u8], room: usize) -> BytesMut {
    // Every zero byte takes one more; SQL keys hold a few in their table ids.
    let zeros = key.iter().filter(|b| **b == 0).count();
    let mut out = BytesMut::with_capacity(key.len() + zeros + 3 + room);
    out.put_u8(RANGE);
    // The escape of `common::encoding::put_bytes`, run by run instead of byte
    // by byte: this is on the path of every point read.
    let mut rest = key;
    if zeros > 0 {
        while let Some(at) = rest.iter().position(|b| *b == 0) {
            out.put_slice(&rest[..=at]);
            out.put_u8(0xff);
            rest = &rest[at + 1..];
        }
    }
    out.put_slice(rest);
    out.put_slice(&[0, 1]);
    out
}

/// The addressable form of the end of a span; an empty end is the end of the
/// key space.
pub fn addressable_end(end: &[u8]) -> Bytes {
    if end.is_empty() {
        Bytes::from_static(&[END])
    } else {
        addressable(end)
    }
}

/// The addressable key of a table's schema version inside a shard.
pub fn schema_key(shard: ShardId, table: TableId) -> Bytes {
    let mut out = BytesMut::with_capacity(18);
    out.put_u8(LOCAL);
    out.put_u64(shard.0);
    out.put_u8(SCHEMA);
    out.put_u64(table.0);
    out.freeze()
}

/// The half-open range of all schema keys of a shard.
pub fn schema_range(shard: ShardId) -> (Bytes, Bytes) {
    let bound = |last: u8| {
        let mut out = BytesMut::with_capacity(10);
        out.put_u8(LOCAL);
        out.put_u64(shard.0);
        out.put_u8(last);
        out.freeze()
    };
    (bound(SCHEMA), bound(SCHEMA + 1))
}

/// The table of a schema key.
pub fn schema_table(addressable: &[u8]) -> Option<TableId> {
    let rest = addressable.strip_prefix(&[LOCAL])?;
    let (_, rest) = rest.split_first_chunk::<8>()?;
    let table = rest.strip_prefix(&[SCHEMA])?;
    Some(TableId(u64::from_be_bytes(table.try_into().ok()?)))
}

/// The key of the shared key space that an addressable key stands for.
///
/// # Errors
/// When it is a schema key or malformed.
pub fn user_key(addressable: &[u8]) -> Result<Bytes> {
    let malformed = || Error::corrupt("malformed key of the shared key space");
    let mut rest = addressable.strip_prefix(&[RANGE]).ok_or_else(malformed)?;
    let mut out = BytesMut::with_capacity(rest.len());
    while let Some(at) = rest.iter().position(|b| *b == 0) {
        match rest.get(at + 1) {
            Some(0xff) => out.put_slice(&rest[..=at]),
            Some(1) if rest.len() == at + 2 => {
                out.put_slice(&rest[..at]);
                return Ok(out.freeze());
            }
            _ => return Err(malformed()),
        }
        rest = &rest[at + 2..];
    }
    Err(malformed())
}

/// Where the version of an addressable key at a timestamp stands: newer ones
/// sort first.
pub fn version_key(addressable: &[u8], timestamp: Timestamp) -> Bytes {
    let mut out = BytesMut::with_capacity(addressable.len() + TIMESTAMP_BYTES);
    out.put_slice(addressable);
    out.put_slice(&version(timestamp));
    out.freeze()
}

/// How a timestamp ends a version's key: the newest first.
pub fn version(timestamp: Timestamp) -> [u8; TIMESTAMP_BYTES] {
    (!timestamp.raw()).to_be_bytes()
}

/// Above every version of an addressable key and below every other key.
pub fn versions_end(addressable: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(addressable.len() + TIMESTAMP_BYTES + 1);
    out.put_slice(addressable);
    out.put_slice(&[0xff; TIMESTAMP_BYTES + 1]);
    out.freeze()
}

/// Takes a version's key apart.
///
/// # Errors
/// When it is too short.
pub fn split_version_key(key: &[u8]) -> Result<(&[u8], Timestamp)> {
    let (addressable, suffix) = key
        .split_last_chunk::<TIMESTAMP_BYTES>()
        .ok_or_else(|| Error::corrupt("a version's key has no timestamp"))?;
    Ok((
        addressable,
        Timestamp::from_raw(!u64::from_be_bytes(*suffix)),
    ))
}

/// Where the collection's threshold of a shard stands, in the tree of records:
/// a local key, so that snapshots carry it (PROTOCOLS X5).
pub fn threshold_key(shard: ShardId) -> Bytes {
    let mut out = BytesMut::with_capacity(10);
    out.put_u8(LOCAL);
    out.put_u64(shard.0);
    out.put_u8(THRESHOLD);
    out.freeze()
}

/// Whether an addressable key holds the outcome of an idempotency key.
pub fn is_outcome(addressable: &[u8]) -> bool {
    addressable.starts_with(&[RANGE, lineradb_common::keys::IDEMPOTENCY])
}

/// Whether a key of the tree of records is a transaction's record.
pub fn is_record(key: &[u8]) -> bool {
    // Only the end of an addressable key is a zero and a one, so what follows
    // it says which kind this is, whatever bytes the id has.
    let at = key.len().checked_sub(17);
    at.is_some_and(|at| key[at] == RECORD && key[..at].ends_with(&[0, 1]))
}

/// Where the record of a transaction stands.
pub fn record_key(anchor: &[u8], id: TxnId) -> Bytes {
    let mut out = addressable_with_room(anchor, 17);
    out.put_u8(RECORD);
    out.put_slice(&id.0);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_a_key_never_interleave_with_longer_keys() {
        let ts = |n| Timestamp::from_raw(n);
        let keys: [&[u8]; 5] = [
            b"",
            b"\0",
            b"a",
            b"a\0",
            b"a\xff\xff\xff\xff\xff\xff\xff\xff",
        ];
        for pair in keys.windows(2) {
            let (low, high) = (addressable(pair[0]), addressable(pair[1]));
            assert!(version_key(&low, ts(0)) < version_key(&high, Timestamp::MAX));
            assert!(versions_end(&low) < version_key(&high, Timestamp::MAX));
            assert!(version_key(&low, ts(5)) < version_key(&low, ts(4)));
            assert!(versions_end(&low) > version_key(&low, ts(0)));
        }
    }

    #[test]
    fn keys_come_back() {
        for key in [&b""[..], b"abc", b"a\0b", b"\0", b"a\xff"] {
            let a = addressable(key);
            assert_eq!(user_key(&a).unwrap(), key);
            let mut reference = BytesMut::from(&[RANGE][..]);
            lineradb_common::encoding::put_bytes(&mut reference, key);
            assert_eq!(a, reference);
            let v = version_key(&a, Timestamp::from_raw(77));
            let (back, ts) = split_version_key(&v).unwrap();
            assert_eq!((back, ts.raw()), (&a[..], 77));
        }
        let schema = schema_key(ShardId(3), TableId(9));
        assert_eq!(schema_table(&schema), Some(TableId(9)));
        assert_eq!(schema_table(&addressable(b"v")), None);
        let (low, high) = schema_range(ShardId(3));
        assert!(low <= schema && schema < high);
        assert!(user_key(&schema).is_err());
        assert!(user_key(b"\x01abc").is_err());
    }

    #[test]
    fn records_lie_in_the_range_of_their_anchor() {
        let record = record_key(b"m", TxnId([7; 16]));
        assert!(record >= addressable(b"m") && record < addressable_end(b"n"));
        assert!(record < addressable_end(b""));
        assert!(is_record(&record) && is_record(&record_key(b"\0", TxnId([b'o'; 16]))));
        assert!(!is_record(&threshold_key(ShardId(0x0001_0001))));
        assert!(is_outcome(&addressable(b"i\0x")) && !is_outcome(&addressable(b"k")));
    }
}
