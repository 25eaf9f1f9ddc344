//! Ordered scans: page by page, shard by shard, merged with the transaction's
//! own buffered writes.
//!
//! A page is answered by one shard for one stretch of keys, the *examined*
//! span. Own writes are merged into exactly that stretch, and it is what joins
//! the read set, so that a scan stopped by a limit has read no further than it
//! went (L5).

use super::Transaction;
use super::read::{Found, nonsense};
use crate::failure::{Effect, Failure};
use crate::router::{At, to_proto};
use crate::shard_map::span_of;
use crate::types::{ScanOptions, Span, TableVersion};
use crate::{Result, background};
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use lineradb_common::TableId;
use lineradb_proto::shard::v1 as pb;
use lineradb_proto::shard::v1::{ShardDescriptor, reply, request};
use std::ops::Range;
use std::sync::Arc;

/// Own writes inside a span, in key order, as they were at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Overlay(Arc<[(Bytes, Option<Bytes>)]>);

impl Overlay {
    pub(super) fn of(transaction: &Transaction, span: &Span) -> Self {
        let state = transaction.0.state.lock();
        let writes = state.buffer.range(span);
        Overlay(
            writes
                .map(|(key, entry)| (key.clone(), entry.value.clone()))
                .collect(),
        )
    }

    fn positions(&self, span: &Span) -> Range<usize> {
        let start = self.0.partition_point(|(key, _)| *key < span.start);
        let end = if span.end.is_empty() {
            self.0.len()
        } else {
            self.0.partition_point(|(key, _)| *key < span.end)
        };
        start..end.max(start)
    }

    pub(super) fn within(&self, span: &Span) -> &[(Bytes, Option<Bytes>)] {
        &self.0[self.positions(span)]
    }

    /// Shortens a span, seen from where the scan begins, so that it holds at
    /// most `count` own writes.
    pub(super) fn shorten(&self, span: Span, reverse: bool, count: usize) -> Span {
        let range = self.positions(&span);
        if range.len() <= count {
            return span;
        }
        if reverse {
            let first = self.0[range.end - count].0.clone();
            Span::new(first, span.end)
        } else {
            let beyond = self.0[range.start + count].0.clone();
            Span::new(span.start, beyond)
        }
    }
}

/// What is left of a walk over a span.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    /// `None`: the end is reached.
    rest: Option<Span>,
    reverse: bool,
}

impl Walk {
    pub(super) fn new(span: Span, reverse: bool) -> Self {
        Walk {
            rest: (!span.is_empty()).then_some(span),
            reverse,
        }
    }

    pub(super) fn rest(&self) -> Option<&Span> {
        self.rest.as_ref()
    }

    pub(super) fn at(rest: &Span, reverse: bool) -> At {
        if reverse {
            At::Before(rest.end.clone())
        } else {
            At::Key(rest.start.clone())
        }
    }

    /// Moves past what a page covered; returns the span examined. `asked` is
    /// what the page was asked for, `resume` where it stopped short.
    pub(super) fn advance(&mut self, asked: &Span, resume: Option<Bytes>) -> Span {
        let Some(rest) = self.rest.take() else {
            return Span::new(asked.start.clone(), asked.start.clone());
        };
        if self.reverse {
            let start = resume.unwrap_or_else(|| asked.start.clone());
            if start > rest.start {
                self.rest = Some(Span::new(rest.start, start.clone()));
            }
            Span::new(start, asked.end.clone())
        } else {
            let end = resume.unwrap_or_else(|| asked.end.clone());
            let open = !end.is_empty() && (rest.end.is_empty() || end < rest.end);
            if open {
                self.rest = Some(Span::new(end.clone(), rest.end));
            }
            Span::new(asked.start.clone(), end)
        }
    }
}

/// A scan under way.
pub(super) struct Scan {
    transaction: Transaction,
    table: Option<TableVersion>,
    overlay: Overlay,
    walk: Walk,
    /// Pairs still wanted; `None`: all.
    left: Option<u64>,
}

impl Scan {
    pub(super) fn new(
        transaction: Transaction,
        span: Span,
        options: ScanOptions,
        table: Option<TableVersion>,
    ) -> Self {
        Scan {
            overlay: Overlay::of(&transaction, &span),
            walk: Walk::new(span, options.reverse),
            left: (options.limit > 0).then_some(options.limit),
            transaction,
            table,
        }
    }

    pub(super) fn stream<T, F>(self, convert: F) -> BoxStream<'static, Result<Vec<T>>>
    where
        T: Send + 'static,
        F: Fn(Bytes, Found) -> T + Send + Sync + Copy + 'static,
    {
        stream::unfold(Some(self), move |scan| async move {
            let mut scan = scan?;
            match scan.next_page().await {
                Ok(Some(page)) => {
                    let page = page.into_iter().map(|(k, f)| convert(k, f)).collect();
                    Some((Ok(page), Some(scan)))
                }
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }

    /// The next pairs (perhaps none), or `None` at the end.
    pub(super) async fn next_page(&mut self) -> Result<Option<Vec<(Bytes, Found)>>> {
        let Some(rest) = self.walk.rest().cloned() else {
            return Ok(None);
        };
        if self.left == Some(0) {
            return Ok(None);
        }
        let inner = &self.transaction.0;
        let _gate = inner.enter().await?;
        let table: Option<TableId> = inner.state.lock().name_table(self.table)?;
        let schema = inner.schema_of(table);
        let read_ts = self.transaction.read_timestamp().raw();
        let reverse = self.walk.reverse;
        let asked_of = |shard: &ShardDescriptor| rest.intersect(&span_of(shard));
        let make = |shard: &ShardDescriptor| {
            let span = asked_of(shard);
            // Own deletes may hide pairs that were found.
            let hidden = self.overlay.within(&span).len() as u64;
            let scan = pb::Scan {
                span: Some(to_proto(&span)),
                reverse,
                limit: self.left.map_or(0, |left| left + hidden),
                read_ts,
                txn_id: background::id_bytes(inner.id),
            };
            (request::Body::Scan(scan), schema.clone())
        };
        let context = inner.context();
        let (shard, reply) = inner
            .shared
            .router
            .call_at(Walk::at(&rest, reverse), make, Effect::Repeatable, &context)
            .await
            .map_err(Failure::into_error)?;
        let Some(reply::Body::Scan(page)) = reply.body else {
            return Err(nonsense("a Scan"));
        };
        let asked = asked_of(&shard);
        let resume = page.more.then_some(page.resume);
        let mut examined = self.walk.advance(&asked, resume);
        let mut pairs = merge(page.pairs, self.overlay.within(&examined), reverse);
        if let Some(left) = &mut self.left {
            if pairs.len() as u64 >= *left {
                pairs.truncate(*left as usize);
                // Nothing beyond the last pair was looked at by anybody.
                if let Some((last, _)) = pairs.last() {
                    examined = if reverse {
                        Span::new(last.clone(), examined.end)
                    } else {
                        Span::new(examined.start, lineradb_common::keys::key_after(last))
                    };
                }
            }
            *left -= pairs.len() as u64;
        }
        inner.note_read(table, &examined, self.transaction.1);
        Ok(Some(pairs))
    }
}

/// Stored pairs and own writes of the same stretch, in scan order.
fn merge(
    stored: Vec<pb::KeyValue>,
    own: &[(Bytes, Option<Bytes>)],
    reverse: bool,
) -> Vec<(Bytes, Found)> {
    let stored = stored.into_iter().map(|pair| {
        let found = Found {
            value: pair.value,
            version: pair.version_ts,
        };
        (pair.key, found)
    });
    if own.is_empty() {
        return stored.collect();
    }
    let mut out = Vec::new();
    let mut stored = stored.peekable();
    let mut take_own = |out: &mut Vec<(Bytes, Found)>, (key, value): &(Bytes, Option<Bytes>)| {
        while let Some(pair) = stored.next_if(|(k, _)| if reverse { k > key } else { k < key }) {
            out.push(pair);
        }
        stored.next_if(|(k, _)| k == key);
        if let Some(value) = value {
            let found = Found {
                value: value.clone(),
                version: 0,
            };
            out.push((key.clone(), found));
        }
    };
    if reverse {
        own.iter().rev().for_each(|write| take_own(&mut out, write));
    } else {
        own.iter().for_each(|write| take_own(&mut out, write));
    }
    out.extend(stored);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn merging_equals_applying_the_writes(
            stored in prop::collection::btree_map(any::<u8>(), any::<u8>(), 0..20),
            own in prop::collection::btree_map(any::<u8>(), prop::option::of(any::<u8>()), 0..20),
            reverse in any::<bool>(),
        ) {
            let b = |v: u8| Bytes::from(vec![v]);
            let mut pairs: Vec<pb::KeyValue> = stored
                .iter()
                .map(|(k, v)| pb::KeyValue { key: b(*k), value: b(*v), version_ts: 5 })
                .collect();
            if reverse {
                pairs.reverse();
            }
            let writes: Vec<_> = own.iter().map(|(k, v)| (b(*k), v.map(b))).collect();
            let mut model: BTreeMap<u8, u8> = stored.clone();
            for (k, v) in &own {
                match v {
                    Some(v) => model.insert(*k, *v),
                    None => model.remove(k),
                };
            }
            let mut expected: Vec<_> = model.into_iter().map(|(k, v)| (b(k), b(v))).collect();
            if reverse {
                expected.reverse();
            }
            let got: Vec<_> = merge(pairs, &writes, reverse)
                .into_iter()
                .map(|(k, f)| (k, f.value))
                .collect();
            prop_assert_eq!(got, expected);
        }

        /// Whatever pages come back, the examined stretches follow each other
        /// without gap or overlap and cover the span.
        #[test]
        fn a_walk_covers_its_span_once(
            borders in prop::collection::btree_set(1..=255u8, 0..6),
            stops in prop::collection::vec(prop::option::of(any::<u8>()), 0..40),
            start in prop::option::of(any::<u8>()),
            end in prop::option::of(any::<u8>()),
            reverse in any::<bool>(),
        ) {
            let b = |v: Option<u8>| v.map_or_else(Bytes::new, |v| Bytes::from(vec![v]));
            let span = Span::new(b(start), b(end));
            let mut edges: Vec<Bytes> = vec![Bytes::new()];
            edges.extend(borders.iter().map(|v| b(Some(*v))));
            let shards: Vec<Span> = edges
                .iter()
                .enumerate()
                .map(|(i, s)| Span::new(s.clone(), edges.get(i + 1).cloned().unwrap_or_default()))
                .collect();
            let mut walk = Walk::new(span.clone(), reverse);
            let mut covered = vec![0u8; 256];
            let mut stops = stops.into_iter();
            let mut steps = 0;
            while let Some(rest) = walk.rest().cloned() {
                steps += 1;
                prop_assert!(steps < 200);
                let shard = match Walk::at(&rest, reverse) {
                    At::Key(k) => shards.iter().find(|s| s.contains(&k)),
                    At::Before(e) => shards.iter().rev().find(|s| e.is_empty() || s.start < e),
                }.unwrap();
                let asked = rest.intersect(shard);
                prop_assert!(!asked.is_empty());
                let stop = stops.next().flatten().map(|v| b(Some(v)));
                let resume = stop.filter(|s| asked.contains(s) && *s > asked.start);
                let examined = walk.advance(&asked, resume);
                for v in 0..=255u8 {
                    covered[usize::from(v)] += u8::from(examined.contains(&[v]));
                }
            }
            for v in 0..=255u8 {
                let inside = u8::from(!span.is_empty() && span.contains(&[v]));
                prop_assert_eq!(covered[usize::from(v)], inside, "key {}", v);
            }
        }
    }
}
