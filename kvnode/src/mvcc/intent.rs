//! A provisional write: what a transaction over several shards leaves on a key
//! until its fate is known. There is at most one per key.

use super::codec::{Fields, put_slice};
use super::{Result, Version};
use bytes::{BufMut, Bytes, BytesMut};
use lineradb_common::{Timestamp, TxnId};
use lineradb_proto::shard::v1 as proto;

const FORMAT: u8 = 1;

/// What is written when the transaction commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IntentWrite {
    /// A value.
    Put(Bytes),
    /// A tombstone.
    Delete,
}

/// A provisional write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// The transaction.
    pub txn: TxnId,
    /// Where its record stands.
    pub anchor: Bytes,
    /// The commit attempt's own timestamp: its age decides whether the
    /// coordinator is taken for dead.
    pub attempt_ts: Timestamp,
    /// The commit timestamp will not be below this.
    pub timestamp: Timestamp,
    /// The newest committed version when it was laid; 0: none.
    pub replaced: Timestamp,
    /// What it writes.
    pub write: IntentWrite,
}

impl Intent {
    /// The bytes that are stored.
    pub fn encode(&self) -> Bytes {
        let value: &[u8] = match &self.write {
            IntentWrite::Put(value) => value,
            IntentWrite::Delete => &[],
        };
        let mut out = BytesMut::with_capacity(46 + self.anchor.len() + value.len());
        out.put_u8(FORMAT);
        out.put_u8(matches!(self.write, IntentWrite::Delete) as u8);
        out.put_slice(&self.txn.0);
        out.put_u64(self.attempt_ts.raw());
        out.put_u64(self.timestamp.raw());
        out.put_u64(self.replaced.raw());
        put_slice(&mut out, &self.anchor);
        out.put_slice(value);
        out.freeze()
    }

    /// Reads a stored intent; its value is a slice of `bytes`.
    ///
    /// # Errors
    /// When the bytes are not an intent.
    pub fn decode(bytes: Bytes) -> Result<Intent> {
        let mut fields = Fields::new(bytes, "an intent");
        if fields.u8()? != FORMAT {
            return fields.unknown();
        }
        let deletes = match fields.u8()? {
            0 => false,
            1 => true,
            _ => return fields.unknown(),
        };
        Ok(Intent {
            txn: fields.txn_id()?,
            attempt_ts: fields.timestamp()?,
            timestamp: fields.timestamp()?,
            replaced: fields.timestamp()?,
            anchor: fields.slice()?,
            write: if deletes {
                IntentWrite::Delete
            } else {
                IntentWrite::Put(fields.rest())
            },
        })
    }

    /// The version that it becomes on `key` when it commits. The anchor's
    /// version carries the transaction's id (PROTOCOLS X1).
    pub fn committed(&self, key: &[u8]) -> Version {
        Version {
            value: self.value(),
            txn: (key == self.anchor).then_some(self.txn),
        }
    }

    /// The provisional value; `None`: deleted.
    pub fn value(&self) -> Option<Bytes> {
        match &self.write {
            IntentWrite::Put(value) => Some(value.clone()),
            IntentWrite::Delete => None,
        }
    }

    /// How it is named to whoever must get it out of the way. `key` is empty
    /// for the intent on a schema version.
    pub fn to_lock(&self, key: Bytes, schema_table: u64) -> proto::Lock {
        proto::Lock {
            key,
            schema_table,
            txn_id: Bytes::copy_from_slice(&self.txn.0),
            anchor: self.anchor.clone(),
            attempt_ts: self.attempt_ts.raw(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn intents_come_back(
            txn: [u8; 16], anchor: Vec<u8>, a: u64, t: u64, r: u64, value: Option<Vec<u8>>
        ) {
            let intent = Intent {
                txn: TxnId(txn),
                anchor: anchor.into(),
                attempt_ts: Timestamp::from_raw(a),
                timestamp: Timestamp::from_raw(t),
                replaced: Timestamp::from_raw(r),
                write: value.map_or(IntentWrite::Delete, |v| IntentWrite::Put(v.into())),
            };
            prop_assert_eq!(Intent::decode(intent.encode()).unwrap(), intent);
        }

        #[test]
        fn any_bytes_decode_or_fail(bytes: Vec<u8>) {
            let _ = Intent::decode(bytes.into());
        }
    }
}
