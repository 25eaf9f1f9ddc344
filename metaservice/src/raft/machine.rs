//! The state machine on the storage engine: applies entries, keeps the records
//! that changed, and makes and takes snapshots.
//!
//! | key | value |
//! |---|---|
//! | `a` | id of the last applied entry |
//! | `m` | membership |
//! | `h` | header |
//! | `n` + id | node |
//! | `s` + id | shard |
//!
//! Everything that an entry changed is written in one batch with its id.

use super::{Entry, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, codec};
use crate::error::Result;
use crate::state::codec::{decode, decode_state, encode, encode_state};
use crate::state::{Changed, Reply, State};
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use lineradb_lsm::{Db, KeyspaceId, WriteBatch, WriteOptions};
use lineradb_proto::raft::v1 as pb;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use parking_lot::RwLock;
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use tokio::sync::watch;

/// The keyspace of the state.
pub const KEYSPACE: &str = "state";

const APPLIED: &[u8] = b"a";
const MEMBERSHIP: &[u8] = b"m";
const HEADER: &[u8] = b"h";

/// What others in this process see of the applied state.
#[derive(Debug)]
pub struct Shared {
    state: RwLock<Arc<State>>,
    applied: watch::Sender<u64>,
}

impl Shared {
    /// The state as applied here.
    pub fn state(&self) -> Arc<State> {
        self.state.read().clone()
    }

    /// Index of the last applied entry, and news of the next ones.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }
}

/// The state machine of this member.
pub struct Machine {
    db: Db,
    keyspace: KeyspaceId,
    last: Option<LogId>,
    membership: StoredMembership,
    shared: Arc<Shared>,
}

fn record_key(kind: u8, id: u64) -> [u8; 9] {
    let mut key = [kind; 9];
    key[1..].copy_from_slice(&id.to_be_bytes());
    key
}

impl Machine {
    /// Reads the state in `db`.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn open(db: Db) -> Result<Self> {
        let keyspace = db.keyspace(KEYSPACE)?;
        let last: Option<pb::LogId> = match db.get(keyspace, APPLIED)? {
            Some(bytes) => Some(decode("applied mark", &bytes)?),
            None => None,
        };
        let membership = match db.get(keyspace, MEMBERSHIP)? {
            Some(bytes) => codec::decode_membership(&bytes)?,
            None => StoredMembership::default(),
        };
        let state = read_state(&db, keyspace)?;
        let last = last.as_ref().map(codec::log_id_from);
        let (applied, _) = watch::channel(last.map_or(0, |id| id.index));
        Ok(Machine {
            db,
            keyspace,
            last,
            membership,
            shared: Arc::new(Shared {
                state: RwLock::new(Arc::new(state)),
                applied,
            }),
        })
    }

    /// What others see.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Applies one entry to `state` and adds what changed to `batch`.
    fn apply_entry(&mut self, entry: &Entry, state: &mut State, changed: &mut Changed) -> Reply {
        self.last = Some(entry.log_id);
        match &entry.payload {
            EntryPayload::Blank => Reply::Done,
            EntryPayload::Normal(command) => {
                let outcome = state.apply(command);
                changed.merge(outcome.changed);
                outcome.reply
            }
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                Reply::Done
            }
        }
    }

    fn write_records(&self, batch: &mut WriteBatch, state: &State, changed: &Changed) {
        if changed.header {
            batch.put(self.keyspace, HEADER, &encode(&state.header));
        }
        for id in &changed.nodes {
            if let Some(node) = state.nodes.get(id) {
                batch.put(self.keyspace, &record_key(b'n', *id), &encode(node));
            }
        }
        for id in &changed.shards {
            if let Some(shard) = state.shards.get(id) {
                batch.put(self.keyspace, &record_key(b's', *id), &encode(shard));
            }
        }
    }

    fn commit(&self, mut batch: WriteBatch, state: State) -> Result<()> {
        if let Some(last) = &self.last {
            batch.put(self.keyspace, APPLIED, &encode(&codec::log_id_to(last)));
        }
        let membership = codec::encode_membership(&self.membership);
        batch.put(self.keyspace, MEMBERSHIP, &membership);
        self.db.write(batch, WriteOptions::NO_SYNC)?;
        *self.shared.state.write() = Arc::new(state);
        { &self.shared.applied }.send_replace(self.last.map_or(0, |id| id.index));
        Ok(())
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: self.last,
            last_membership: self.membership.clone(),
        }
    }
}

fn read_state(db: &Db, keyspace: KeyspaceId) -> Result<State> {
    let mut state = State::default();
    let snapshot = db.snapshot();
    let mut iter = snapshot.iter(keyspace, Bound::Unbounded, Bound::Unbounded);
    iter.seek_to_first()?;
    while iter.valid() {
        match iter.key().first() {
            Some(b'h') => state.header = decode("header", iter.value())?,
            Some(b'n') => {
                let node: crate::state::NodeRecord = decode("node record", iter.value())?;
                state.nodes.insert(node.node_id, node);
            }
            Some(b's') => {
                let shard: crate::state::ShardRecord = decode("shard record", iter.value())?;
                state.shards.insert(shard.descriptor.shard_id, shard);
            }
            _ => {}
        }
        iter.next()?;
    }
    Ok(state)
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut state = State::clone(&self.shared.state());
        let mut changed = Changed::default();
        let mut answers = Vec::new();
        while let Some((entry, responder)) = entries.try_next().await? {
            let reply = self.apply_entry(&entry, &mut state, &mut changed);
            answers.extend(responder.map(|r| (r, reply)));
        }
        let mut batch = WriteBatch::new();
        self.write_records(&mut batch, &state, &changed);
        self.commit(batch, state)?;
        for (responder, reply) in answers {
            responder.send(reply);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            meta: self.meta(),
            state: self.shared.state(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, data: Bytes) -> io::Result<()> {
        let state = decode_state(&data)?;
        let old = self.shared.state();
        let mut batch = WriteBatch::new();
        for id in old.nodes.keys() {
            batch.delete(self.keyspace, &record_key(b'n', *id));
        }
        for id in old.shards.keys() {
            batch.delete(self.keyspace, &record_key(b's', *id));
        }
        let all = Changed {
            header: true,
            nodes: state.nodes.keys().copied().collect(),
            shards: state.shards.keys().copied().collect(),
        };
        self.write_records(&mut batch, &state, &all);
        self.last = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.commit(batch, state)?;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        // The state itself is the snapshot: small, and always at hand.
        if self.last.is_none() {
            return Ok(None);
        }
        let mut builder = self.get_snapshot_builder().await;
        builder.build_snapshot().await.map(Some)
    }
}

/// Encodes the state as it was when the builder was made.
pub struct Builder {
    meta: SnapshotMeta,
    state: Arc<State>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        Ok(openraft::storage::Snapshot {
            meta: self.meta.clone(),
            snapshot: encode_state(&self.state),
        })
    }
}
