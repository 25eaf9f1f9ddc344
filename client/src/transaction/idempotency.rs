//! The outcome of a keyed request, kept as a value at the key derived from the
//! idempotency key (PROTOCOLS X2).
//!
//! The coordinator writes it in the transaction itself, as its first write,
//! under the condition that nothing is there: so it is committed with the
//! request's effects or not at all, it anchors the transaction record at the
//! same key, and two requests under one key meet there. A repeat reads it
//! before it does any work (an INSERT run twice would fail on its own rows).
//!
//! Format: version byte 1, length of the request hash (u32, big endian), the
//! hash, the result summary.

use super::{Inner, View};
use crate::types::{EarlierOutcome, IdempotencyRequest};
use crate::{Error, Result, Transaction, TransactionOptions};
use bytes::{BufMut, Bytes, BytesMut};
use lineradb_common::{Timestamp, keys};
use sha2::{Digest, Sha256};

const FORMAT: u8 = 1;

/// Where the outcome of a keyed request is kept.
pub fn key_of(request: &IdempotencyRequest) -> Bytes {
    keys::idempotency_key(&request.user, &Sha256::digest(request.key.as_bytes()))
}

/// The value of an outcome record.
pub fn encode(request_hash: &[u8], result_summary: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + request_hash.len() + result_summary.len());
    out.put_u8(FORMAT);
    out.put_u32(request_hash.len() as u32);
    out.put_slice(request_hash);
    out.put_slice(result_summary);
    out.freeze()
}

/// The result summary of a record, for the request that wrote it.
///
/// # Errors
/// `IdempotencyMismatch` when it was written by another request; `Internal`
/// when it does not decode.
pub fn decode(value: &Bytes, request_hash: &[u8]) -> Result<Bytes> {
    let damaged = || Error::internal("an idempotency record does not decode");
    if value.first() != Some(&FORMAT) {
        return Err(damaged());
    }
    let length = value.get(1..5).ok_or_else(damaged)?;
    let length = u32::from_be_bytes(length.try_into().map_err(|_| damaged())?) as usize;
    let hash = value.get(5..5 + length).ok_or_else(damaged)?;
    if hash != request_hash {
        return Err(Error::IdempotencyMismatch);
    }
    Ok(value.slice(5 + length..))
}

impl Inner {
    /// The request as it is known now.
    fn request(&self) -> Option<IdempotencyRequest> {
        let mut request = self.options.idempotency.clone()?;
        if let Some(hash) = &self.state.lock().request_hash {
            request.request_hash = hash.clone();
        }
        Some(request)
    }

    /// What an earlier request under this one's key came to.
    pub(super) async fn earlier_outcome(&self) -> Result<Option<EarlierOutcome>> {
        let Some(request) = self.request() else {
            return Ok(None);
        };
        let keys = [key_of(&request)];
        let found = self
            .multi_get(&keys, None, View::default())
            .await?
            .pop()
            .flatten();
        let Some(found) = found else {
            return Ok(None);
        };
        Ok(Some(EarlierOutcome {
            timestamp: Timestamp::from_raw(found.version),
            result_summary: decode(&found.value, &request.request_hash)?,
        }))
    }

    /// Our own commit was refused because the key is taken: by whom is read in
    /// a transaction of its own, at the present.
    pub(super) async fn first_outcome(&self) -> Result<EarlierOutcome> {
        let generation = self.shared.clock.generation();
        let now = self.shared.clock.now()?.latest;
        let options = TransactionOptions {
            read_only: true,
            idempotency: self.request(),
            deadline: self.state.lock().deadline,
            ..TransactionOptions::default()
        };
        let reader = Transaction::new(self.shared.clone(), options, now, generation);
        let earlier = reader.0.earlier_outcome().await?;
        self.receipt.observe(reader.observed().raw());
        match earlier {
            Some(earlier) => Ok(earlier),
            None => Err(Error::conflict(
                "the idempotency key was taken and freed meanwhile",
                Bytes::new(),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_answers_its_own_request_only() {
        let value = encode(b"hash", b"summary");
        assert_eq!(decode(&value, b"hash").unwrap(), &b"summary"[..]);
        assert!(matches!(
            decode(&value, b"other"),
            Err(Error::IdempotencyMismatch)
        ));
        for cut in 0..9 {
            assert!(matches!(
                decode(&value.slice(..cut), b"hash"),
                Err(Error::Internal { .. })
            ));
        }
    }

    #[test]
    fn keys_and_users_do_not_share_records() {
        let at = |user: &str, key: &str| {
            key_of(&IdempotencyRequest {
                user: user.into(),
                key: key.into(),
                request_hash: Bytes::new(),
            })
        };
        assert_ne!(at("a", "k"), at("b", "k"));
        assert_ne!(at("a", "k1"), at("a", "k2"));
        assert_eq!(at("a", "k"), at("a", "k"));
    }
}
