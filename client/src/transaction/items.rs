//! The writes of a commit, as they are cut by shard and sent.

use super::buffer::{Entry, Guard};
use crate::router::{Routed, to_proto};
use crate::types::Span;
use bytes::Bytes;
use lineradb_common::TableId;
use lineradb_proto::shard::v1 as pb;
use lineradb_proto::shard::v1::write;

/// One write of a commit.
#[derive(Clone, Debug)]
pub enum WriteItem {
    /// Of a key.
    Key {
        /// The key.
        key: Bytes,
        /// What is written.
        entry: Entry,
    },
    /// Of a table's schema version, over a part of its range.
    Schema {
        /// The table.
        table: TableId,
        /// The part.
        span: Span,
        /// The new version.
        version: u64,
        /// The version in force.
        replaces: u64,
    },
}

impl Routed for WriteItem {
    fn start(&self) -> &Bytes {
        match self {
            WriteItem::Key { key, .. } => key,
            WriteItem::Schema { span, .. } => &span.start,
        }
    }

    fn cut(self, end: &Bytes) -> (Self, Option<Self>) {
        match self {
            WriteItem::Key { .. } => (self, None),
            WriteItem::Schema {
                table,
                span,
                version,
                replaces,
            } => {
                let (head, tail) = span.cut(end);
                let item = |span| WriteItem::Schema {
                    table,
                    span,
                    version,
                    replaces,
                };
                (item(head), tail.map(item))
            }
        }
    }

    fn weight(&self) -> usize {
        match self {
            WriteItem::Key { key, entry } => {
                key.len() + entry.value.as_ref().map_or(0, Bytes::len) + 32
            }
            WriteItem::Schema { span, .. } => span.weight() + 64,
        }
    }
}

impl WriteItem {
    /// The same without its value: what resolution needs.
    pub fn without_value(self) -> Self {
        match self {
            WriteItem::Key { key, entry } => WriteItem::Key {
                key,
                entry: Entry {
                    value: None,
                    ..entry
                },
            },
            schema @ WriteItem::Schema { .. } => schema,
        }
    }

    /// Whose schema version it goes with.
    pub fn table(&self) -> Option<TableId> {
        match self {
            WriteItem::Key { entry, .. } => entry.table,
            WriteItem::Schema { table, .. } => Some(*table),
        }
    }

    /// As it stands in messages.
    pub fn to_proto(&self) -> pb::Write {
        match self {
            WriteItem::Key { key, entry } => pb::Write {
                target: Some(write::Target::Key(key.clone())),
                value: entry.value.clone(),
                condition: match entry.guard {
                    Guard::None => None,
                    Guard::Absent => Some(write::Condition::Absent(true)),
                    Guard::Exists => Some(write::Condition::Exists(true)),
                    Guard::Replaces(version) => Some(write::Condition::Replaces(version)),
                },
            },
            WriteItem::Schema {
                table,
                span,
                version,
                replaces,
            } => pb::Write {
                target: Some(write::Target::Schema(pb::SchemaWrite {
                    table_id: table.0,
                    span: Some(to_proto(span)),
                    version: *version,
                    replaces: *replaces,
                })),
                value: None,
                condition: None,
            },
        }
    }
}
