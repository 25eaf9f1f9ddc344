//! Locking reads (SELECT FOR UPDATE, UPDATE, DELETE, INSERT).
//!
//! A lock is taken at the leader, in its memory; it makes others wait and
//! proves nothing (X4): each later write of the key names the version that was
//! read under the lock. The read answers the *newest* version. When that is
//! younger than the read timestamp, the transaction moves there: everything
//! read so far is proven to hold at the new timestamp, which then becomes the
//! read timestamp of all that follows (X0). Below SERIALIZABLE nothing moves: a
//! younger version is a conflict, after which READ COMMITTED runs the statement
//! again and REPEATABLE READ ends.

use super::buffer::LockedVersion;
use super::read::nonsense;
use super::refresh::{ReadPart, rows_of};
use super::{Inner, Locked, State, View};
use crate::background::id_bytes;
use crate::failure::{Effect, Failure};
use crate::types::{Isolation, LockOptions, Span, TableVersion};
use crate::{Error, Result};
use bytes::Bytes;
use lineradb_common::{TableId, Timestamp};
use lineradb_proto::shard::v1 as pb;
use lineradb_proto::shard::v1::{ShardDescriptor, reply, request};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Bytes of keys in one message.
const LOCK_BYTES_MAX: usize = 64 * 1024;

/// The keys of one message and the timestamp at which their read holds.
struct Part {
    keys: Vec<Bytes>,
    read_ts: Timestamp,
}

impl Inner {
    pub(super) async fn locking_get(
        self: &Arc<Self>,
        keys: &[Bytes],
        table: Option<TableVersion>,
        options: LockOptions,
    ) -> Result<Vec<Option<Bytes>>> {
        if self.options.read_only {
            return Err(Error::invalid("the transaction is read only"));
        }
        let (unlocked, table_id) = {
            let mut state = self.state.lock();
            let table_id = state.name_table(table)?;
            let unlocked: BTreeSet<Bytes> = keys
                .iter()
                .filter(|key| match state.locked.get(*key) {
                    Some(locked) => locked.found.is_none() || (locked.shared && !options.shared),
                    None => true,
                })
                .cloned()
                .collect();
            (unlocked, table_id)
        };
        let mut found: BTreeMap<Bytes, Option<Bytes>> = BTreeMap::new();
        if !unlocked.is_empty() {
            let parts = self
                .lock(
                    unlocked.into_iter().collect(),
                    table_id,
                    options,
                    &mut found,
                )
                .await?;
            self.move_up(parts, table_id).await?;
        }
        // Keys locked before: nobody has changed them, a plain read answers.
        let rest: Vec<Bytes> = {
            let state = self.state.lock();
            let mut rest = BTreeSet::new();
            for key in keys {
                match state.buffer.get(key) {
                    Some(own) => {
                        found.insert(key.clone(), own);
                    }
                    None if !found.contains_key(key) => {
                        rest.insert(key.clone());
                    }
                    None => {}
                }
            }
            rest.into_iter().collect()
        };
        if !rest.is_empty() {
            let values = self.multi_get(&rest, table, View::default()).await?;
            for (key, value) in rest.into_iter().zip(values) {
                found.insert(key, value.map(|v| v.value));
            }
        }
        Ok(keys
            .iter()
            .map(|key| found.get(key).cloned().flatten())
            .collect())
    }

    /// Takes locks; reads go on beside it.
    async fn lock(
        self: &Arc<Self>,
        keys: Vec<Bytes>,
        table: Option<TableId>,
        options: LockOptions,
        found: &mut BTreeMap<Bytes, Option<Bytes>>,
    ) -> Result<Vec<Part>> {
        let (read_ts, lock_timeout, first, serializable) = {
            let state = self.state.lock();
            if state.ended {
                return Err(super::over());
            }
            let serializable = state.isolation == Isolation::Serializable;
            let first = state.locked.is_empty();
            (state.read_ts, state.lock_timeout, first, serializable)
        };
        if first {
            self.keep_alive();
        }
        let schema = self.schema_of(table);
        let attempt_ts = self.shared.clock.now()?.latest;
        let make = |_: &ShardDescriptor, keys: &[Bytes]| {
            let read = pb::LockingRead {
                txn: Some(pb::TxnMeta {
                    id: id_bytes(self.id),
                    anchor: Bytes::new(),
                    attempt_ts: attempt_ts.raw(),
                    isolation: self.options.isolation.to_proto() as i32,
                    start_ts: self.started.raw(),
                }),
                keys: keys.to_vec(),
                read_ts: read_ts.raw(),
                wait: options.wait,
                shared: options.shared,
                lock_timeout_ms: lock_timeout.map_or(0, |t| t.as_millis().max(1) as u32),
            };
            (request::Body::LockingRead(read), schema.clone())
        };
        let mut context = self.context();
        context.contention.wait = options.wait;
        // Noted before it is asked: what may be held must be released.
        {
            let mut state = self.state.lock();
            for key in &keys {
                state.locked.entry(key.clone()).or_insert(Locked {
                    found: None,
                    shared: options.shared,
                    table,
                    since: None,
                });
            }
        }
        let mut parts = Vec::new();
        let mut asked = keys;
        while !asked.is_empty() {
            let answers = self
                .shared
                .router
                .scatter(
                    std::mem::take(&mut asked),
                    &make,
                    Effect::Repeatable,
                    LOCK_BYTES_MAX,
                    &context,
                )
                .await
                .map_err(Failure::into_error)?;
            let mut state = self.state.lock();
            for (mut keys, reply) in answers {
                let Some(reply::Body::LockingRead(read)) = reply.body else {
                    return Err(nonsense("a LockingRead"));
                };
                if read.values.len() > keys.len() || read.values.is_empty() {
                    return Err(nonsense("a LockingRead"));
                }
                asked.extend(keys.split_off(read.values.len()));
                let at = Timestamp::from_raw(read.read_ts).max(read_ts);
                for (key, value) in keys.iter().zip(read.values) {
                    let before = state.locked.get(key).and_then(|before| before.since);
                    let locked = Locked {
                        found: Some(LockedVersion {
                            version: value.version_ts,
                            present: value.present,
                        }),
                        shared: options.shared,
                        table,
                        since: before.or((!serializable).then_some((at, value.version_ts))),
                    };
                    state.locked.insert(key.clone(), locked);
                    found.insert(key.clone(), value.present.then_some(value.value));
                }
                parts.push(Part { keys, read_ts: at });
            }
        }
        Ok(parts)
    }

    /// Makes what was just locked part of the read set, at one read timestamp.
    async fn move_up(&self, parts: Vec<Part>, table: Option<TableId>) -> Result<()> {
        let points = |keys: &[Bytes]| -> Vec<ReadPart> {
            keys.iter()
                .map(|key| ReadPart {
                    table,
                    span: Span::point(key),
                    schema_only: false,
                })
                .collect()
        };
        // No read under way may keep the old timestamp and escape the proof.
        let _gate = self.gate.write().await;
        let (old, before, versions) = {
            let state = self.state.lock();
            if state.ended {
                return Err(super::over());
            }
            if state.isolation != Isolation::Serializable {
                return state.unmoved(&parts);
            }
            let mut before = rows_of(&state.reads);
            let all = Span::default();
            let written = state.buffer.range(&all);
            before.extend(self.written(written.map(|(key, entry)| (key, entry.table))));
            (state.read_ts, before, state.versions.clone())
        };
        let new = parts
            .iter()
            .map(|p| p.read_ts)
            .max()
            .unwrap_or(old)
            .max(old);
        let context = self.context();
        self.refresh(before, &versions, old, new, &context).await?;
        for part in &parts {
            // Locked keys of other shards were read at their own timestamps.
            self.refresh(points(&part.keys), &versions, part.read_ts, new, &context)
                .await?;
        }
        let mut state = self.state.lock();
        state.read_ts = new;
        let reads = state.reads.entry(table).or_default();
        for part in &parts {
            for key in &part.keys {
                reads.insert(&Span::point(key));
            }
        }
        Ok(())
    }
}

impl State {
    /// Outside of SERIALIZABLE the read timestamp stays where it is.
    fn unmoved(&self, parts: &[Part]) -> Result<()> {
        let moved = parts.iter().filter(|part| part.read_ts > self.read_ts);
        let mut keys = moved.flat_map(|part| &part.keys);
        let younger = keys.find(|key| {
            let found = self.locked.get(*key).and_then(|locked| locked.found);
            found.is_some_and(|found| found.version > self.read_ts.raw())
        });
        match younger {
            Some(key) => Err(Error::conflict(
                "a row was changed by another transaction after it was read",
                key.clone(),
            )),
            None => Ok(()),
        }
    }
}
