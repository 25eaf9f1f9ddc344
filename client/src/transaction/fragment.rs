//! Pieces of SQL plans that run next to the data (DESIGN section 8).
//!
//! A fragment is cut into one partition per shard as known now; each partition
//! is walked page by page at the transaction's read timestamp. A page is a
//! message of its own, routed anew: a shard that splits or moves under a
//! running query costs a retry, not the query. Own buffered writes go along
//! and are merged at the node, under the plan.

use super::Transaction;
use super::read::nonsense;
use super::scan::{Overlay, Walk};
use crate::background::id_bytes;
use crate::failure::Effect;
use crate::router::to_proto;
use crate::shard_map::span_of;
use crate::types::{FragmentRequest, Span};
use crate::{Error, Result};
use arrow::buffer::Buffer;
use arrow::ipc::reader::StreamDecoder;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use lineradb_common::ShardId;
use lineradb_proto::shard::v1 as pb;
use lineradb_proto::shard::v1::{ShardDescriptor, reply, request};
use std::collections::VecDeque;
use std::sync::Arc;

/// Own writes sent along with one page at most.
const OVERLAY_WRITES_MAX: usize = 4096;

/// The part of a fragment that one shard answers.
pub struct FragmentPartition {
    transaction: Transaction,
    request: Arc<FragmentRequest>,
    span: Span,
    shard: ShardId,
    overlay: Overlay,
}

/// Cuts a fragment at the shard borders known now. Parts in unknown territory
/// are partitions too: the walk finds out.
pub(super) fn cut(transaction: &Transaction, request: FragmentRequest) -> Vec<FragmentPartition> {
    let map = transaction.0.shared.router.map();
    let overlay = Overlay::of(transaction, &request.span);
    let mut parts = map.split_span(&request.span);
    if request.reverse {
        parts.reverse();
    }
    let request = Arc::new(request);
    parts
        .into_iter()
        .map(|(span, shard)| FragmentPartition {
            transaction: transaction.clone(),
            request: request.clone(),
            span,
            shard: ShardId(shard.map_or(0, |s| s.shard_id)),
            overlay: overlay.clone(),
        })
        .collect()
}

impl FragmentPartition {
    /// Keys of this part.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// The shard that held them when the fragment was cut (for EXPLAIN); 0:
    /// not known.
    pub fn shard_id(&self) -> ShardId {
        self.shard
    }

    /// The rows. May be called again: it starts over.
    pub fn stream(&self) -> BoxStream<'static, Result<RecordBatch>> {
        let pages = Pages {
            transaction: self.transaction.clone(),
            request: self.request.clone(),
            overlay: self.overlay.clone(),
            walk: Walk::new(self.span.clone(), self.request.reverse),
            left: (self.request.limit > 0).then_some(self.request.limit),
            ready: VecDeque::new(),
        };
        stream::unfold(Some(pages), |pages| async move {
            let mut pages = pages?;
            match pages.next().await {
                Ok(Some(batch)) => Some((Ok(batch), Some(pages))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }
}

struct Pages {
    transaction: Transaction,
    request: Arc<FragmentRequest>,
    overlay: Overlay,
    walk: Walk,
    /// Rows still wanted; `None`: all.
    left: Option<u64>,
    ready: VecDeque<RecordBatch>,
}

impl Pages {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(Some(batch));
            }
            let Some(rest) = self.walk.rest().cloned() else {
                return Ok(None);
            };
            if self.left == Some(0) {
                return Ok(None);
            }
            let mut batches = self.page(&rest).await?;
            if let Some(left) = &mut self.left {
                for batch in &mut batches {
                    let take = (batch.num_rows() as u64).min(*left);
                    *batch = batch.slice(0, take as usize);
                    *left -= take;
                }
            }
            self.ready
                .extend(batches.into_iter().filter(|b| b.num_rows() > 0));
        }
    }

    async fn page(&mut self, rest: &Span) -> Result<Vec<RecordBatch>> {
        let inner = &self.transaction.0;
        let _gate = inner.enter().await?;
        let table = inner.state.lock().name_table(self.request.table)?;
        let schema = inner.schema_of(table);
        let read_ts = self.transaction.read_timestamp().raw();
        let request = &self.request;
        let asked_of = |shard: &ShardDescriptor| {
            let span = rest.intersect(&span_of(shard));
            self.overlay
                .shorten(span, request.reverse, OVERLAY_WRITES_MAX)
        };
        let make = |shard: &ShardDescriptor| {
            let span = asked_of(shard);
            let overlay = self.overlay.within(&span).iter();
            let fragment = pb::Fragment {
                overlay: overlay
                    .map(|(key, value)| pb::BufferedWrite {
                        key: key.clone(),
                        value: value.clone(),
                    })
                    .collect(),
                span: Some(to_proto(&span)),
                read_ts,
                txn_id: id_bytes(inner.id),
                plan_format_version: request.plan_format_version,
                plan: request.plan.clone(),
                layout: request.layout.clone(),
                page_rows: 0,
                reverse: request.reverse,
                limit: self.left.unwrap_or(0),
            };
            (request::Body::Fragment(fragment), schema.clone())
        };
        let context = inner.context();
        let (shard, reply) = inner
            .shared
            .router
            .call_at(
                Walk::at(rest, request.reverse),
                make,
                Effect::Repeatable,
                &context,
            )
            .await
            .map_err(|failure| {
                // An error tells about the rows as well (a division by zero),
                // and the transaction may go on from a savepoint.
                inner.note_read(table, rest, self.transaction.1);
                failure.into_error()
            })?;
        let Some(reply::Body::Fragment(page)) = reply.body else {
            return Err(nonsense("a Fragment"));
        };
        let asked = asked_of(&shard);
        let resume = page.more.then_some(page.resume);
        let examined = self.walk.advance(&asked, resume);
        inner.note_read(table, &examined, self.transaction.1);
        decode(page.arrow_ipc)
    }
}

/// Record batches from the Arrow IPC stream format, without copying.
fn decode(ipc: Bytes) -> Result<Vec<RecordBatch>> {
    if ipc.is_empty() {
        return Ok(Vec::new());
    }
    let mut buffer = Buffer::from(ipc);
    let mut decoder = StreamDecoder::new();
    let mut batches = Vec::new();
    while !buffer.is_empty() {
        match decoder.decode(&mut buffer) {
            Ok(Some(batch)) => batches.push(batch),
            Ok(None) => break,
            Err(error) => {
                return Err(Error::internal(format!(
                    "a fragment's rows do not decode: {error}"
                )));
            }
        }
    }
    Ok(batches)
}
