//! What a transaction is to commit: taken out of it once, before the first
//! message of its commit is sent.

use super::buffer::{Entry, Guard};
use super::isolation::{Held, held};
use super::items::WriteItem;
use super::refresh::ReadSet;
use super::{Inner, idempotency, over};
use crate::Result;
use crate::router::Routed;
use crate::types::Isolation;
use bytes::Bytes;
use lineradb_common::{TableId, Timestamp};
use lineradb_proto::shard::v1 as pb;
use lineradb_proto::shard::v1::write;
use std::collections::BTreeMap;

/// Bytes of keys that a transaction record lists for its resolution. A larger
/// transaction lists none: its intents are resolved by its coordinator, or by
/// whoever meets one.
const RECORD_BYTES_MAX: usize = 16 << 10;

/// Everything that a commit needs, taken out of the transaction.
pub(super) struct Plan {
    pub(super) items: Vec<WriteItem>,
    pub(super) anchor: Bytes,
    /// The level of `reads`.
    pub(super) isolation: Isolation,
    pub(super) reads: ReadSet,
    /// See [`State::earlier`](super::State).
    pub(super) earlier: ReadSet,
    /// Keys read under locks outside of SERIALIZABLE and not written: each must
    /// be unchanged since.
    pub(super) held: Vec<Held>,
    pub(super) versions: BTreeMap<TableId, u64>,
    pub(super) read_ts: Timestamp,
    /// Where the outcome of a keyed request goes: the anchor (X2).
    pub(super) keyed: Option<Bytes>,
}

impl Plan {
    /// All keys that it writes, if a record may say STAGING with them; else none.
    pub(super) fn declared(&self) -> Vec<Bytes> {
        let schemas = self
            .items
            .iter()
            .any(|item| matches!(item, WriteItem::Schema { .. }));
        match schemas {
            true => Vec::new(),
            false => self.keys_of_record(),
        }
    }

    /// All keys that it writes, if a record holds so many; else none.
    fn keys_of_record(&self) -> Vec<Bytes> {
        let keys = self.items.iter().filter_map(|item| match item {
            WriteItem::Key { key, .. } => Some(key),
            WriteItem::Schema { .. } => None,
        });
        let bytes: usize = keys.clone().map(|key| key.len() + 4).sum();
        match bytes <= RECORD_BYTES_MAX {
            true => keys.cloned().collect(),
            false => Vec::new(),
        }
    }

    pub(super) fn commit_record(
        &self,
        meta: &pb::TxnMeta,
        commit_ts: Timestamp,
    ) -> pb::CommitRecord {
        let schemas = self
            .items
            .iter()
            .filter_map(|item| match item.to_proto().target {
                Some(write::Target::Schema(schema)) => Some(schema),
                _ => None,
            });
        pb::CommitRecord {
            txn: Some(meta.clone()),
            commit_ts: commit_ts.raw(),
            intent_keys: self.keys_of_record(),
            intent_schemas: schemas.collect(),
        }
    }
}

impl Inner {
    /// Takes everything out; no read or write comes after this.
    pub(super) fn plan(&self) -> Result<Plan> {
        let mut state = self.state.lock();
        if state.ended {
            return Err(over());
        }
        state.ended = true;
        let (mut entries, schemas) = state.buffer.take();
        let keyed = match &self.options.idempotency {
            // A request that writes nothing may simply be run again.
            Some(request) if !(entries.is_empty() && schemas.is_empty()) => {
                let key = idempotency::key_of(request);
                let summary = state.summary.clone();
                let known = state.request_hash.clone();
                let request_hash = known.unwrap_or_else(|| request.request_hash.clone());
                let value = idempotency::encode(&request_hash, &summary);
                let entry = Entry {
                    value: Some(value),
                    guard: Guard::Absent,
                    table: None,
                };
                entries.insert(key.clone(), entry);
                Some(key)
            }
            _ => None,
        };
        // The anchor goes first: its version carries the transaction's id (X1).
        let anchor = match &keyed {
            Some(key) => Some(key.clone()),
            None => entries.keys().next().cloned(),
        };
        let first = anchor.as_ref().and_then(|key| entries.remove_entry(key));
        let items: Vec<WriteItem> = first
            .into_iter()
            .chain(entries)
            .map(|(key, entry)| WriteItem::Key { key, entry })
            .chain(schemas.into_iter().map(|(table, s)| WriteItem::Schema {
                table,
                span: s.span,
                version: s.version,
                replaces: s.replaces,
            }))
            .collect();
        let anchor = anchor
            .or_else(|| items.first().map(|item| item.start().clone()))
            .unwrap_or_default();
        // A table whose version is written is checked at its old version.
        for item in &items {
            if let WriteItem::Schema {
                table, replaces, ..
            } = item
            {
                state.versions.entry(*table).or_insert(*replaces);
            }
        }
        let held = held(&state.locked, &items);
        Ok(Plan {
            items,
            anchor,
            isolation: state.isolation,
            reads: std::mem::take(&mut state.reads),
            earlier: std::mem::take(&mut state.earlier),
            held,
            versions: std::mem::take(&mut state.versions),
            read_ts: state.read_ts,
            keyed,
        })
    }
}
