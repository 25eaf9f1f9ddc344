//! Point reads at the read timestamp.

use super::{Inner, View};
use crate::failure::{Effect, Failure};
use crate::types::{Span, TableVersion};
use crate::{Error, Result};
use bytes::Bytes;
use lineradb_proto::shard::v1 as pb;
use lineradb_proto::shard::v1::{ShardDescriptor, reply, request};
use std::collections::{BTreeMap, BTreeSet};

/// Keys in one message at most, by their bytes: values come back, and those
/// are larger.
const GET_BYTES_MAX: usize = 64 * 1024;

/// A value that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) value: Bytes,
    /// Commit timestamp; 0: an own buffered write.
    pub(crate) version: u64,
}

impl Inner {
    pub(super) async fn multi_get(
        &self,
        keys: &[Bytes],
        table: Option<TableVersion>,
        view: View,
    ) -> Result<Vec<Option<Found>>> {
        let _gate = self.enter().await?;
        let mut own: BTreeMap<Bytes, Option<Found>> = BTreeMap::new();
        let mut missing = BTreeSet::new();
        let table = {
            let mut state = self.state.lock();
            for key in keys {
                match state.buffer.get(key) {
                    Some(value) => {
                        let found = value.map(|value| Found { value, version: 0 });
                        own.insert(key.clone(), found);
                    }
                    None => {
                        missing.insert(key.clone());
                    }
                }
            }
            state.name_table(table)?
        };
        if !missing.is_empty() {
            // Before it is asked: what is on its way counts as read.
            for key in &missing {
                self.note_read(table, &Span::point(key), view);
            }
            let schema = self.schema_of(table);
            let read_ts = view.snapshot.unwrap_or_else(|| self.read_ts()).raw();
            let make = |_: &ShardDescriptor, keys: &[Bytes]| {
                let get = pb::Get {
                    keys: keys.to_vec(),
                    read_ts,
                    txn_id: crate::background::id_bytes(self.id),
                };
                (request::Body::Get(get), schema.clone())
            };
            let context = self.context();
            let mut missing: Vec<Bytes> = missing.into_iter().collect();
            while !missing.is_empty() {
                let parts = self
                    .shared
                    .router
                    .scatter(
                        std::mem::take(&mut missing),
                        &make,
                        Effect::Repeatable,
                        GET_BYTES_MAX,
                        &context,
                    )
                    .await
                    .map_err(Failure::into_error)?;
                for (mut keys, reply) in parts {
                    let values = match reply.body {
                        Some(reply::Body::Get(get)) => get.values,
                        _ => return Err(nonsense("a Get")),
                    };
                    if values.len() > keys.len() || values.is_empty() {
                        return Err(nonsense("a Get"));
                    }
                    missing.extend(keys.split_off(values.len()));
                    for (key, value) in keys.into_iter().zip(values) {
                        let found = value.present.then_some(Found {
                            value: value.value,
                            version: value.version_ts,
                        });
                        own.insert(key, found);
                    }
                }
            }
        }
        Ok(keys
            .iter()
            .map(|key| own.get(key).cloned().flatten())
            .collect())
    }
}

/// A node that does not keep to the contract.
pub(super) fn nonsense(what: &str) -> Error {
    Error::internal(format!("{what} was answered with something else"))
}
