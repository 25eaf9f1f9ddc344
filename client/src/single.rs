//! A read of one key outside any transaction: the leader takes the timestamp
//! from its own clock and does the waiting itself (T5), so that a far or badly
//! synchronised process delays nobody.

use crate::client::Client;
use crate::contention::Contention;
use crate::failure::{Effect, Failure};
use crate::receipt::Receipt;
use crate::router::{At, Context};
use crate::types::Timing;
use crate::{Error, Result};
use bytes::Bytes;
use lineradb_common::Timestamp;
use lineradb_common::clock::{deadline_after, wait_past};
use lineradb_proto::shard::v1 as pb;
use lineradb_proto::shard::v1::{ShardDescriptor, reply, request};
use tokio::time::Instant;

/// What a single read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SingleRead {
    /// The value and when it was written.
    pub found: Option<(Bytes, Timestamp)>,
    /// When the read took place.
    pub timestamp: Timestamp,
    /// Where its time went.
    pub timing: Timing,
}

impl Client {
    /// The value of one key, now. Linearizable.
    ///
    /// # Errors
    /// `Unavailable` when the shard does not answer in time.
    pub async fn read_now(&self, key: Bytes, deadline: Option<Instant>) -> Result<SingleRead> {
        let receipt = Receipt::default();
        let usual = deadline_after(self.0.operation_timeout);
        let context = Context {
            deadline: deadline.map_or(usual, |d| d.min(usual)),
            receipt: &receipt,
            contention: Contention::PATIENT,
            past: false,
        };
        let make = |_: &ShardDescriptor| {
            let get = pb::Get {
                keys: vec![key.clone()],
                read_ts: 0,
                txn_id: Bytes::new(),
            };
            (request::Body::Get(get), Vec::new())
        };
        let (_, reply) = self
            .0
            .router
            .call_at(At::Key(key.clone()), make, Effect::Repeatable, &context)
            .await
            .map_err(Failure::into_error)?;
        let Some(reply::Body::Get(mut get)) = reply.body else {
            return Err(Error::internal("a Get was answered with something else"));
        };
        let value = get.values.pop().filter(|value| value.present);
        wait_past(&*self.0.clock, receipt.observed()).await?;
        Ok(SingleRead {
            found: value.map(|v| (v.value, Timestamp::from_raw(v.version_ts))),
            timestamp: Timestamp::from_raw(get.read_ts),
            timing: receipt.timing(),
        })
    }
}
