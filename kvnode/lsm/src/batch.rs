//! [`WriteBatch`]: operations that take effect together or not at all, over any keyspaces of one database.
//!
//! The batch is kept in the very bytes that go to the log, one operation after the other:
//!
//! ```text
//! kind u8 | keyspace varint | key length varint | value length varint (not of a delete) | key | value
//! ```
//!
//! The value of a range delete is the key at which it ends.

use crate::coding::{put_varint, take_bytes, take_length, take_varint};
use crate::error::{Error, Result};
use crate::types::{BATCH_BYTES_MAX, KEY_BYTES_MAX, KeyspaceId, Kind, VALUE_BYTES_MAX};

/// Operations to be written atomically by [`Db::write`](crate::Db::write). A later operation on a key shadows an
/// earlier one of the same batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteBatch {
    bytes: Vec<u8>,
    count: u32,
    /// One more than the largest keyspace index used.
    keyspaces_end: usize,
    /// The first key, value or batch that was too large; reported when the batch is written.
    oversize: Option<(&'static str, usize)>,
}

impl WriteBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty batch with room for `bytes` bytes of encoded operations.
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            ..Self::default()
        }
    }

    /// Sets `key` to `value`.
    pub fn put(&mut self, keyspace: KeyspaceId, key: &[u8], value: &[u8]) {
        if value.len() > VALUE_BYTES_MAX {
            self.oversize.get_or_insert(("value", value.len()));
            return;
        }
        if self.begin(Kind::Put, keyspace, key, value) {
            put_varint(&mut self.bytes, value.len() as u64);
            self.bytes.extend_from_slice(key);
            self.bytes.extend_from_slice(value);
        }
    }

    /// Removes `key`; removing what is not there is fine.
    pub fn delete(&mut self, keyspace: KeyspaceId, key: &[u8]) {
        if self.begin(Kind::Delete, keyspace, key, b"") {
            self.bytes.extend_from_slice(key);
        }
    }

    /// Removes all keys from `start` up to, and not including, `end`: one entry, however many keys there are. An
    /// empty range removes nothing.
    pub fn delete_range(&mut self, keyspace: KeyspaceId, start: &[u8], end: &[u8]) {
        if start >= end {
            return;
        }
        if end.len() > KEY_BYTES_MAX {
            self.oversize.get_or_insert(("key", end.len()));
            return;
        }
        if self.begin(Kind::DeleteRange, keyspace, start, end) {
            put_varint(&mut self.bytes, end.len() as u64);
            self.bytes.extend_from_slice(start);
            self.bytes.extend_from_slice(end);
        }
    }

    /// Encodes an operation up to its key, with room for what follows: a batch of one is one allocation.
    fn begin(&mut self, kind: Kind, keyspace: KeyspaceId, key: &[u8], value: &[u8]) -> bool {
        /// Kind, and three varints of 32 bits.
        const HEAD_BYTES: usize = 16;

        if key.len() > KEY_BYTES_MAX {
            self.oversize.get_or_insert(("key", key.len()));
            return false;
        }
        self.count += 1;
        self.keyspaces_end = self.keyspaces_end.max(keyspace.index() + 1);
        self.bytes.reserve(HEAD_BYTES + key.len() + value.len());
        self.bytes.push(kind as u8);
        put_varint(&mut self.bytes, u64::from(keyspace.0));
        put_varint(&mut self.bytes, key.len() as u64);
        true
    }

    /// Number of operations.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// True if there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Size of the encoded operations: what the batch costs in the log, if that does not compress it.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// Forgets all operations and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
        self.keyspaces_end = 0;
        self.oversize = None;
    }

    /// Appends the operations of `other` after those of this batch.
    pub fn append(&mut self, other: &WriteBatch) {
        self.bytes.extend_from_slice(&other.bytes);
        self.count += other.count;
        self.keyspaces_end = self.keyspaces_end.max(other.keyspaces_end);
        self.oversize = self.oversize.or(other.oversize);
    }

    /// The encoded operations.
    pub(crate) fn encoded(&self) -> &[u8] {
        &self.bytes
    }

    /// Refuses what the format cannot hold, and keyspaces that the database does not have.
    pub(crate) fn validate(&self, keyspace_count: usize) -> Result<()> {
        if let Some((what, bytes)) = self.oversize {
            let bytes_max = if what == "key" {
                KEY_BYTES_MAX
            } else {
                VALUE_BYTES_MAX
            };
            return Err(Error::TooLarge {
                what,
                bytes: bytes as u64,
                bytes_max: bytes_max as u64,
            });
        }
        if self.bytes.len() > BATCH_BYTES_MAX {
            let (bytes, bytes_max) = (self.bytes.len() as u64, BATCH_BYTES_MAX as u64);
            return Err(Error::TooLarge {
                what: "batch",
                bytes,
                bytes_max,
            });
        }
        if self.keyspaces_end > keyspace_count {
            let name = format!("#{}", self.keyspaces_end - 1);
            return Err(Error::UnknownKeyspace { name });
        }
        Ok(())
    }
}

/// One decoded operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Operation<'a> {
    pub kind: Kind,
    pub keyspace: usize,
    pub key: &'a [u8],
    /// Of a range delete: where it ends.
    pub value: &'a [u8],
}

/// The bytes are not a sequence of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MalformedBatch;

/// Decodes operations one by one; stops after the first malformed one.
pub(crate) fn operations(bytes: &[u8]) -> Operations<'_> {
    Operations { rest: bytes }
}

pub(crate) struct Operations<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Operations<'a> {
    type Item = Result<Operation<'a>, MalformedBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let operation = take_operation(&mut self.rest).ok_or(MalformedBatch);
        if operation.is_err() {
            self.rest = &[];
        }
        Some(operation)
    }
}

fn take_operation<'a>(input: &mut &'a [u8]) -> Option<Operation<'a>> {
    let (kind, value_bytes_max) = match take_bytes(input, 1)? {
        [0] => (Kind::Delete, None),
        [1] => (Kind::Put, Some(usize::MAX)),
        [2] => (Kind::DeleteRange, Some(KEY_BYTES_MAX)),
        _ => return None,
    };
    let keyspace = usize::try_from(take_varint(input)?).ok()?;
    let key_length = take_length(input).filter(|length| *length <= KEY_BYTES_MAX)?;
    let value_length = match value_bytes_max {
        None => 0,
        Some(bytes_max) => take_length(input).filter(|length| *length <= bytes_max)?,
    };
    let key = take_bytes(input, key_length)?;
    let value = take_bytes(input, value_length)?;
    Some(Operation {
        kind,
        keyspace,
        key,
        value,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn operations_come_back_in_order() {
        let (one, two) = (KeyspaceId(0), KeyspaceId(1));
        let mut batch = WriteBatch::new();
        batch.put(one, b"a", b"1");
        batch.delete(two, b"");
        batch.put(two, b"a", b"");
        batch.delete_range(one, b"b", b"b");
        batch.delete_range(one, b"b", b"cc");
        assert_eq!(batch.len(), 4);
        let decoded: Vec<_> = operations(batch.encoded()).map(Result::unwrap).collect();
        assert_eq!(
            decoded[0],
            Operation {
                kind: Kind::Put,
                keyspace: 0,
                key: b"a",
                value: b"1"
            }
        );
        assert_eq!(
            decoded[1],
            Operation {
                kind: Kind::Delete,
                keyspace: 1,
                key: b"",
                value: b""
            }
        );
        assert_eq!(
            decoded[2],
            Operation {
                kind: Kind::Put,
                keyspace: 1,
                key: b"a",
                value: b""
            }
        );
        assert_eq!(
            decoded[3],
            Operation {
                kind: Kind::DeleteRange,
                keyspace: 0,
                key: b"b",
                value: b"cc"
            }
        );
        assert!(batch.validate(2).is_ok());
        assert!(matches!(
            batch.validate(1),
            Err(Error::UnknownKeyspace { .. })
        ));
    }

    #[test]
    fn an_oversize_key_is_refused_at_the_write() {
        let mut batch = WriteBatch::new();
        batch.put(KeyspaceId(0), &vec![0; KEY_BYTES_MAX + 1], b"");
        assert!(matches!(
            batch.validate(1),
            Err(Error::TooLarge { what: "key", .. })
        ));
        batch.clear();
        batch.put(KeyspaceId(0), &vec![0; KEY_BYTES_MAX], b"");
        assert!(batch.validate(1).is_ok());
    }

    proptest! {
        #[test]
        fn decoding_any_bytes_ends(bytes: Vec<u8>) {
            prop_assert!(operations(&bytes).count() <= bytes.len() + 1);
        }
    }
}
