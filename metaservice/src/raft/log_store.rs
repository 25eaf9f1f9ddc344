//! The Raft log on the storage engine.
//!
//! | key | value |
//! |---|---|
//! | `e` + index (big endian) | entry |
//! | `v` | vote |
//! | `p` | id of the last purged entry |
//!
//! Appends, votes and truncations are synced before they are answered, off the
//! I/O workers. The group's core waits for that: the metaservice writes a few
//! entries a second, and a simple order is worth more here than overlap.
//! C1: `enable_leader_restore` is off, so a restarted leader starts as a
//! follower.

use super::{Entry, LogId, TypeConfig, Vote, codec};
use crate::error::{Error, Result};
use crate::state::codec::{decode, encode};
use lineradb_common::spawn;
use lineradb_lsm::{Db, KeyspaceId, WriteBatch, WriteOptions};
use lineradb_proto::raft::v1 as pb;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

/// The keyspace of the log.
pub const KEYSPACE: &str = "raft";

const VOTE: &[u8] = b"v";
const PURGED: &[u8] = b"p";

/// The log of this member. Cheap to clone: readers are clones.
#[derive(Clone)]
pub struct LogStore {
    db: Db,
    keyspace: KeyspaceId,
}

fn entry_key(index: u64) -> [u8; 9] {
    let mut key = [b'e'; 9];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

impl LogStore {
    /// The log in `db`.
    ///
    /// # Errors
    /// When the database has no keyspace for it.
    pub fn open(db: Db) -> Result<Self> {
        let keyspace = db.keyspace(KEYSPACE)?;
        Ok(LogStore { db, keyspace })
    }

    fn read<M: prost::Message + Default>(&self, what: &str, key: &[u8]) -> Result<Option<M>> {
        match self.db.get(self.keyspace, key)? {
            Some(bytes) => Ok(Some(decode(what, &bytes)?)),
            None => Ok(None),
        }
    }

    fn entries(&self, from: u64, to: Bound<u64>) -> Result<Vec<Entry>> {
        let lower = entry_key(from);
        let upper = match to {
            Bound::Included(i) => Bound::Included(entry_key(i)),
            Bound::Excluded(i) => Bound::Excluded(entry_key(i)),
            Bound::Unbounded => Bound::Included(entry_key(u64::MAX)),
        };
        let upper = match &upper {
            Bound::Included(k) => Bound::Included(&k[..]),
            Bound::Excluded(k) => Bound::Excluded(&k[..]),
            Bound::Unbounded => Bound::Unbounded,
        };
        let snapshot = self.db.snapshot();
        let mut iter = snapshot.iter(self.keyspace, Bound::Included(&lower[..]), upper);
        let mut out = Vec::new();
        iter.seek_to_first()?;
        while iter.valid() {
            let entry: pb::Entry = decode("log entry", iter.value())?;
            out.push(codec::entry_from(&entry)?);
            iter.next()?;
        }
        Ok(out)
    }

    fn last_entry(&self) -> Result<Option<LogId>> {
        let (lower, upper) = (entry_key(0), entry_key(u64::MAX));
        let snapshot = self.db.snapshot();
        let mut iter = snapshot.iter(
            self.keyspace,
            Bound::Included(&lower[..]),
            Bound::Included(&upper[..]),
        );
        iter.seek_to_last()?;
        if !iter.valid() {
            return Ok(None);
        }
        let entry: pb::Entry = decode("log entry", iter.value())?;
        Ok(entry.id.as_ref().map(codec::log_id_from))
    }

    /// Deletes the entries of a range, as one batch with whatever `also` adds.
    fn delete_range(
        &self,
        from: u64,
        to: Bound<u64>,
        also: impl FnOnce(&mut WriteBatch),
    ) -> Result<WriteBatch> {
        let mut batch = WriteBatch::new();
        for entry in self.entries(from, to)? {
            batch.delete(self.keyspace, &entry_key(entry.log_id.index));
        }
        also(&mut batch);
        Ok(batch)
    }

    async fn write(&self, batch: WriteBatch) -> io::Result<()> {
        let db = self.db.clone();
        spawn::blocking(move || db.write(batch, WriteOptions::SYNC))
            .await
            .map_err(io::Error::other)?
            .map(|_| ())
            .map_err(|e| Error::from(e).into())
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let from = match range.start_bound() {
            Bound::Included(i) => *i,
            Bound::Excluded(i) => *i + 1,
            Bound::Unbounded => 0,
        };
        Ok(self.entries(from, range.end_bound().cloned())?)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        let vote: Option<pb::Vote> = self.read("vote", VOTE)?;
        Ok(vote.as_ref().map(codec::vote_from))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let purged: Option<pb::LogId> = self.read("purge mark", PURGED)?;
        let purged = purged.as_ref().map(codec::log_id_from);
        Ok(LogState {
            last_purged_log_id: purged,
            last_log_id: self.last_entry()?.or(purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let mut batch = WriteBatch::new();
        batch.put(self.keyspace, VOTE, &encode(&codec::vote_to(vote)));
        self.write(batch).await
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = WriteBatch::new();
        for entry in entries {
            let key = entry_key(entry.log_id.index);
            batch.put(self.keyspace, &key, &encode(&codec::entry_to(&entry)));
        }
        self.write(batch).await?;
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.map_or(0, |id| id.index + 1);
        let batch = self.delete_range(from, Bound::Unbounded, |_| {})?;
        self.write(batch).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let mark = encode(&codec::log_id_to(&upto));
        let batch = self.delete_range(0, Bound::Included(upto.index), |batch| {
            batch.put(self.keyspace, PURGED, &mark);
        })?;
        self.write(batch).await
    }
}
