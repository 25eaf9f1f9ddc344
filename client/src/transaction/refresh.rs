//! Proving that what a transaction has read still holds at a later timestamp
//! (X0): the leaders look for versions in between and note the read at the
//! later timestamp, so that nothing can slip under it afterwards (L3). The
//! schema versions go along: they are reads like any other (S1).

use super::read::nonsense;
use super::spans::SpanSet;
use super::{Inner, schema};
use crate::background::id_bytes;
use crate::failure::{Effect, Failure};
use crate::router::{Context, Routed, to_proto};
use crate::types::Span;
use crate::{Error, Result};
use bytes::Bytes;
use lineradb_common::{TableId, Timestamp};
use lineradb_proto::shard::v1 as pb;
use lineradb_proto::shard::v1::{ShardDescriptor, reply, request};
use std::collections::BTreeMap;

/// Bytes of spans in one Refresh.
const REFRESH_BYTES_MAX: usize = 256 * 1024;

/// Something to prove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReadPart {
    pub(crate) table: Option<TableId>,
    pub(crate) span: Span,
    /// Only the table's schema version in the shard of `span`, not the rows.
    pub(crate) schema_only: bool,
}

impl Routed for ReadPart {
    fn start(&self) -> &Bytes {
        &self.span.start
    }
    fn cut(self, end: &Bytes) -> (Self, Option<Self>) {
        let (head, tail) = self.span.cut(end);
        let part = |span| ReadPart {
            table: self.table,
            span,
            schema_only: self.schema_only,
        };
        (part(head), tail.map(part))
    }
    fn weight(&self) -> usize {
        self.span.weight()
    }
}

/// What was read, by table.
pub(crate) type ReadSet = BTreeMap<Option<TableId>, SpanSet>;

/// Everything in a read set.
pub(crate) fn rows_of(reads: &ReadSet) -> Vec<ReadPart> {
    parts_of(reads, false)
}

/// The schema versions alone of what is in a read set.
pub(crate) fn schemas_of(reads: &ReadSet) -> Vec<ReadPart> {
    let mut parts = parts_of(reads, true);
    parts.retain(|part| part.table.is_some());
    parts
}

fn parts_of(reads: &ReadSet, schema_only: bool) -> Vec<ReadPart> {
    let parts = reads.iter().flat_map(|(table, spans)| {
        spans.iter().map(move |span| ReadPart {
            table: *table,
            span,
            schema_only,
        })
    });
    parts.collect()
}

impl Inner {
    /// Proves that the parts did not change in `(from, to]`.
    pub(crate) async fn refresh(
        &self,
        parts: Vec<ReadPart>,
        versions: &BTreeMap<TableId, u64>,
        from: Timestamp,
        to: Timestamp,
        context: &Context<'_>,
    ) -> Result<()> {
        if parts.is_empty() || from >= to {
            return Ok(());
        }
        context.receipt.add(|t| t.refreshes += 1);
        let make = |_: &ShardDescriptor, parts: &[ReadPart]| {
            let spans = parts.iter().filter(|p| !p.schema_only);
            let refresh = pb::Refresh {
                spans: spans.map(|p| to_proto(&p.span)).collect(),
                from_ts: from.raw(),
                to_ts: to.raw(),
                txn_id: id_bytes(self.id),
            };
            let tables = parts.iter().filter_map(|p| p.table);
            (request::Body::Refresh(refresh), schema(versions, tables))
        };
        let answers = self
            .shared
            .router
            .scatter(parts, make, Effect::Repeatable, REFRESH_BYTES_MAX, context)
            .await
            .map_err(Failure::into_error)?;
        for (_, reply) in answers {
            match reply.body {
                Some(reply::Body::Refresh(reply)) if reply.ok => {}
                Some(reply::Body::Refresh(reply)) => {
                    return Err(Error::conflict(
                        "something that it read has changed since",
                        reply.key,
                    ));
                }
                _ => return Err(nonsense("a Refresh")),
            }
        }
        Ok(())
    }
}
