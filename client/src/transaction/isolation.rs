//! What each isolation level has to prove at commit (PROTOCOLS X0, X4, S1).
//!
//! | level | reads at | rows read | rows locked | keys written |
//! |---|---|---|---|---|
//! | SERIALIZABLE | one r, which locking reads move | hold at s | hold at s | |
//! | REPEATABLE READ | one r | | hold at s | no version in (r, s] |
//! | READ COMMITTED | an r of each statement | | hold at s | |
//!
//! At every level the schema versions of all that was read or written hold at s
//! (S1), and a key written after it was read under a lock still has the version
//! that was read (X4), which the write itself says. So nothing is lost when a
//! leader loses its locks: a key that was only locked (FOR UPDATE, FOR SHARE) is
//! looked at once more.
//!
//! Below SERIALIZABLE a locking read that finds a version above r is a conflict:
//! the locks that it got stay, and READ COMMITTED runs the statement again at a
//! newer r, where the row that it waited for is in sight.
//!
//! What was read under an earlier r is brought up to the last one before the
//! commit (`catch_up`); from there to s it goes with the rest.

use super::buffer::Guard;
use super::items::WriteItem;
use super::plan::Plan;
use super::refresh::{ReadPart, ReadSet, rows_of, schemas_of};
use super::{Inner, Locked, over};
use crate::Result;
use crate::router::Context;
use crate::types::{Isolation, Span};
use bytes::Bytes;
use lineradb_common::{TableId, Timestamp};
use lineradb_proto::shard::v1 as pb;
use std::collections::{BTreeMap, BTreeSet};

/// A key whose lock alone keeps others off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) key: Bytes,
    pub(super) table: Option<TableId>,
    /// When it was read under the lock.
    pub(super) since: Timestamp,
}

/// The keys locked outside of SERIALIZABLE, but for those whose write names the
/// version that was read first under the lock: another one says that the lock was
/// lost in between.
pub(super) fn held(locked: &BTreeMap<Bytes, Locked>, items: &[WriteItem]) -> Vec<Held> {
    let first = |key: &Bytes| locked.get(key).and_then(|locked| locked.since);
    let guarded: BTreeSet<&Bytes> = items
        .iter()
        .filter_map(|item| match item {
            WriteItem::Key { key, entry } => match (entry.guard, first(key)) {
                (Guard::Replaces(version), Some((_, read))) if version == read => Some(key),
                _ => None,
            },
            WriteItem::Schema { .. } => None,
        })
        .collect();
    let unguarded = locked.iter().filter(|(key, _)| !guarded.contains(key));
    unguarded
        .filter_map(|(key, locked)| {
            Some(Held {
                key: key.clone(),
                table: locked.table,
                since: locked.since?.0,
            })
        })
        .collect()
}

fn point(held: &Held) -> ReadPart {
    ReadPart {
        table: held.table,
        span: Span::point(&held.key),
        schema_only: false,
    }
}

impl Plan {
    /// What must hold at the commit timestamp as it did at `read_ts`.
    pub(super) fn to_prove(&self) -> Vec<ReadPart> {
        let mut parts = match self.isolation {
            Isolation::Serializable => rows_of(&self.reads),
            Isolation::RepeatableRead | Isolation::ReadCommitted => schemas_of(&self.reads),
        };
        parts.extend(schemas_of(&self.earlier));
        parts.extend(self.held.iter().map(point));
        parts
    }

    /// What must hold at `read_ts` and was read before it, by the timestamp of
    /// that read. Schema versions inside of `here` go with the commit itself.
    fn behind(&self, here: Option<&Span>) -> BTreeMap<Timestamp, Vec<ReadPart>> {
        let mut behind: BTreeMap<Timestamp, Vec<ReadPart>> = BTreeMap::new();
        for held in self.held.iter().filter(|held| held.since < self.read_ts) {
            behind.entry(held.since).or_default().push(point(held));
        }
        let mut schemas = schemas_of(&self.earlier);
        schemas.retain(|part| here.is_none_or(|here| part.span.intersect(here) != part.span));
        if !schemas.is_empty() {
            // A version is compared where the request takes effect: any earlier
            // timestamp will do as its beginning.
            behind
                .entry(self.read_ts.previous())
                .or_default()
                .extend(schemas);
        }
        behind
    }
}

impl Inner {
    /// See [`Transaction::begin_statement`](super::Transaction::begin_statement).
    pub(super) async fn begin_statement(&self) -> Result<Option<Timestamp>> {
        // No read under way may be counted to the statement that begins.
        let _gate = self.gate.write().await;
        let mut state = self.state.lock();
        if state.ended {
            return Err(over());
        }
        if state.isolation != Isolation::ReadCommitted || self.options.read_at.is_some() {
            return Ok(None);
        }
        // X0: l may fall after a better sample, and what was seen stays in sight.
        let latest = self.shared.clock.now()?.latest;
        state.read_ts = latest.max(state.read_ts).max(self.receipt.observed());
        state.put_reads_behind();
        Ok(Some(state.read_ts))
    }

    /// See [`Transaction::serialize`](super::Transaction::serialize).
    pub(super) async fn serialize(&self) {
        let _gate = self.gate.write().await;
        let mut state = self.state.lock();
        // Those of REPEATABLE READ stand at the one timestamp that it has: they
        // may as well hold from now on.
        if state.isolation == Isolation::ReadCommitted {
            state.put_reads_behind();
        }
        state.isolation = Isolation::Serializable;
    }

    /// Brings what was read before the last read timestamp up to it.
    pub(super) async fn catch_up(
        &self,
        plan: &Plan,
        here: Option<&Span>,
        context: &Context<'_>,
    ) -> Result<()> {
        for (since, parts) in plan.behind(here) {
            self.refresh(parts, &plan.versions, since, plan.read_ts, context)
                .await?;
        }
        Ok(())
    }

    /// X0: REPEATABLE READ carries r, so no key that it writes, also blindly, may
    /// have got a version since; to be proven when r moves before anything is
    /// laid: at the commit, or by a locking read behind a change of the schema.
    pub(super) fn written<'a>(
        &self,
        keys: impl Iterator<Item = (&'a Bytes, Option<TableId>)>,
    ) -> Vec<ReadPart> {
        if self.options.isolation != Isolation::RepeatableRead {
            return Vec::new();
        }
        let parts = keys.map(|(key, table)| ReadPart {
            table,
            span: Span::point(key),
            schema_only: false,
        });
        parts.collect()
    }
}

impl super::State {
    fn put_reads_behind(&mut self) {
        let reads: ReadSet = std::mem::take(&mut self.reads);
        for (table, spans) in reads.into_iter().filter(|(table, _)| table.is_some()) {
            let earlier = self.earlier.entry(table).or_default();
            spans.iter().for_each(|span| earlier.insert(&span));
        }
    }
}

impl Isolation {
    pub(crate) fn to_proto(self) -> pb::Isolation {
        match self {
            Isolation::Serializable => pb::Isolation::Serializable,
            Isolation::RepeatableRead => pb::Isolation::RepeatableRead,
            Isolation::ReadCommitted => pb::Isolation::ReadCommitted,
        }
    }
}
