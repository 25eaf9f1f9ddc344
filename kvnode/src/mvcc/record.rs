//! What becomes of a transaction, at its anchor.
//!
//! ```text
//!  none --Prewrite with the anchor--> STAGING --all declared writes have landed--> (committed)
//!    |                                   |                                           |
//!    |                                   +--recovery finds one missing--> ABORTED    |
//!    +--recovery--> ABORTED              +--CommitRecord, or recovery-----------> COMMITTED
//!    +--CommitRecord--> COMMITTED
//! ```
//!
//! A transaction in state STAGING is committed from the moment on in which its
//! last declared write lands, whoever knows of it; COMMITTED says so to those
//! who do not want to look (PROTOCOLS X3).

use super::Result;
use super::codec::{Fields, put_slice};
use bytes::{BufMut, Bytes, BytesMut};
use lineradb_common::{TableId, Timestamp};

const FORMAT: u8 = 1;
const COMMITTED: u8 = 1;
const ABORTED: u8 = 2;
const STAGING: u8 = 3;

/// The fate of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Its writes are versions at this timestamp, or become them.
    Committed(Timestamp),
    /// Its writes never were.
    Aborted,
    /// Committed at this timestamp if all keys that the record declares hold an
    /// intent of it at or below.
    Staging(Timestamp),
}

/// A schema version that a transaction writes on all shards of a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaSpan {
    /// The table.
    pub table: TableId,
    /// Start of the span.
    pub start: Bytes,
    /// End of the span; empty: the end of the key space.
    pub end: Bytes,
    /// The new version.
    pub version: u64,
}

/// The record of a transaction's fate. COMMITTED and ABORTED never change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnRecord {
    /// The fate.
    pub status: Status,
    /// The commit attempt's own timestamp.
    pub attempt_ts: Timestamp,
    /// STAGING: all keys that it writes. COMMITTED: keys that may still hold
    /// intents, which is enough to finish a dead coordinator's work, and not
    /// needed for correctness.
    pub intent_keys: Vec<Bytes>,
    /// Schema versions that may still hold intents.
    pub intent_schemas: Vec<SchemaSpan>,
}

impl TxnRecord {
    /// The record of an aborted transaction.
    pub fn aborted(attempt_ts: Timestamp) -> Self {
        TxnRecord {
            status: Status::Aborted,
            attempt_ts,
            intent_keys: Vec::new(),
            intent_schemas: Vec::new(),
        }
    }

    /// The bytes that are stored.
    pub fn encode(&self) -> Bytes {
        let keys: usize = self.intent_keys.iter().map(|k| k.len() + 4).sum();
        let mut out = BytesMut::with_capacity(32 + keys);
        out.put_u8(FORMAT);
        let (status, timestamp) = match self.status {
            Status::Committed(timestamp) => (COMMITTED, timestamp),
            Status::Aborted => (ABORTED, Timestamp::ZERO),
            Status::Staging(timestamp) => (STAGING, timestamp),
        };
        out.put_u8(status);
        out.put_u64(timestamp.raw());
        out.put_u64(self.attempt_ts.raw());
        out.put_u32(self.intent_keys.len() as u32);
        for key in &self.intent_keys {
            put_slice(&mut out, key);
        }
        out.put_u32(self.intent_schemas.len() as u32);
        for schema in &self.intent_schemas {
            out.put_u64(schema.table.0);
            out.put_u64(schema.version);
            put_slice(&mut out, &schema.start);
            put_slice(&mut out, &schema.end);
        }
        out.freeze()
    }

    /// The fate alone: what a reader that meets an intent asks for.
    ///
    /// # Errors
    /// When the bytes are not a record.
    pub fn decode_status(bytes: Bytes) -> Result<Status> {
        TxnRecord::take_status(&mut Fields::new(bytes, "a transaction record"))
    }

    fn take_status(fields: &mut Fields) -> Result<Status> {
        if fields.u8()? != FORMAT {
            return fields.unknown();
        }
        let status = fields.u8()?;
        let timestamp = fields.timestamp()?;
        match status {
            COMMITTED => Ok(Status::Committed(timestamp)),
            ABORTED => Ok(Status::Aborted),
            STAGING => Ok(Status::Staging(timestamp)),
            _ => fields.unknown(),
        }
    }

    /// Reads a stored record.
    ///
    /// # Errors
    /// When the bytes are not a record.
    pub fn decode(bytes: Bytes) -> Result<TxnRecord> {
        let mut fields = Fields::new(bytes, "a transaction record");
        let status = TxnRecord::take_status(&mut fields)?;
        let attempt_ts = fields.timestamp()?;
        let count = fields.count()?;
        let intent_keys = (0..count).map(|_| fields.slice()).collect::<Result<_>>()?;
        let count = fields.count()?;
        let mut intent_schemas = Vec::with_capacity(count);
        for _ in 0..count {
            intent_schemas.push(SchemaSpan {
                table: TableId(fields.u64()?),
                version: fields.u64()?,
                start: fields.slice()?,
                end: fields.slice()?,
            });
        }
        Ok(TxnRecord {
            status,
            attempt_ts,
            intent_keys,
            intent_schemas,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_come_back(commit: Option<u64>, staging: bool, a: u64, keys: Vec<Vec<u8>>, tables: Vec<u64>) {
            let record = TxnRecord {
                status: match (commit.map(Timestamp::from_raw), staging) {
                    (Some(at), true) => Status::Staging(at),
                    (Some(at), false) => Status::Committed(at),
                    (None, _) => Status::Aborted,
                },
                attempt_ts: Timestamp::from_raw(a),
                intent_keys: keys.into_iter().map(Bytes::from).collect(),
                intent_schemas: tables.into_iter().map(|t| SchemaSpan {
                    table: TableId(t), start: Bytes::from_static(b"s"), end: Bytes::new(), version: t,
                }).collect(),
            };
            prop_assert_eq!(TxnRecord::decode(record.encode()).unwrap(), record);
        }

        #[test]
        fn any_bytes_decode_or_fail(bytes: Vec<u8>) {
            let _ = TxnRecord::decode(bytes.into());
        }
    }
}
