//! A committed version of a key.
//!
//! ```text
//! format and flags u8 | transaction id 16 bytes (flag ID) | value
//! ```
//!
//! The version of a transaction's first write carries the transaction's id
//! (PROTOCOLS X1): whoever must learn what became of a commit attempt whose
//! reply was lost finds it there.

use super::Result;
use super::codec::Fields;
use bytes::{BufMut, Bytes, BytesMut};
use lineradb_common::TxnId;

const FORMAT: u8 = 0x10;
const TOMBSTONE: u8 = 0x01;
const ID: u8 = 0x02;

/// A committed version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// `None`: the key was deleted.
    pub value: Option<Bytes>,
    /// The transaction, on its first write.
    pub txn: Option<TxnId>,
}

impl Version {
    /// The bytes that are stored.
    pub fn encode(&self) -> Bytes {
        let value = self.value.as_deref().unwrap_or_default();
        let mut out = BytesMut::with_capacity(17 + value.len());
        let tombstone = if self.value.is_none() { TOMBSTONE } else { 0 };
        let id = if self.txn.is_some() { ID } else { 0 };
        out.put_u8(FORMAT | tombstone | id);
        if let Some(id) = self.txn {
            out.put_slice(&id.0);
        }
        out.put_slice(value);
        out.freeze()
    }

    /// Reads a stored version; the value is a slice of `bytes`.
    ///
    /// # Errors
    /// When the bytes are not a version.
    pub fn decode(bytes: Bytes) -> Result<Version> {
        let mut fields = Fields::new(bytes, "a version");
        let head = fields.u8()?;
        if head & !(TOMBSTONE | ID) != FORMAT {
            return fields.unknown();
        }
        let txn = match head & ID {
            0 => None,
            _ => Some(fields.txn_id()?),
        };
        let value = match head & TOMBSTONE {
            0 => Some(fields.rest()),
            _ => None,
        };
        Ok(Version { value, txn })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn versions_come_back(value: Option<Vec<u8>>, txn: Option<[u8; 16]>) {
            let version = Version { value: value.map(Bytes::from), txn: txn.map(TxnId) };
            prop_assert_eq!(Version::decode(version.encode()).unwrap(), version);
        }

        #[test]
        fn any_bytes_decode_or_fail(bytes: Vec<u8>) {
            let _ = Version::decode(bytes.into());
        }
    }
}
