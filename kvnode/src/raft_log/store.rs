//! One group's log as openraft sees it.

use super::{GroupLog, LogId, Vote};
use crate::consensus::types::{
    Entry, RaftLogId, RaftVote, TypeConfig, entry_from, entry_payload, log_id_from, raft_log_id,
    raft_vote, vote_from,
};
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

/// Bytes of entries in one append to a follower (at least one entry goes).
const READ_BYTES_MAX: u64 = 1 << 20;

/// The log of one group, for openraft. Cheap to clone.
#[derive(Clone)]
pub struct LogStore {
    log: GroupLog,
}

impl LogStore {
    /// The log of a replica whose life has begun ([`GroupLog::begin`]).
    pub fn new(log: GroupLog) -> Self {
        LogStore { log }
    }

    fn entries(&self, start: u64, end: u64, bytes_max: u64) -> io::Result<Vec<Entry>> {
        self.log
            .read(start, end, bytes_max)?
            .into_iter()
            .map(|(id, payload)| entry_from(id, payload).map_err(io::Error::other))
            .collect()
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = bounds(&range);
        self.entries(start, end, u64::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVote>, io::Error> {
        Ok(self.log.vote().map(raft_vote))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.entries(start, end, READ_BYTES_MAX)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        Ok(LogState {
            last_purged_log_id: self.log.purged().map(raft_log_id),
            last_log_id: self.log.last().map(raft_log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> Result<(), io::Error> {
        let vote: Vote = vote_from(vote);
        self.log.save_vote(vote).await
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
        let entries: Vec<(LogId, bytes::Bytes)> = entries
            .into_iter()
            .map(|entry| (log_id_from(&entry.log_id), entry_payload(&entry.payload)))
            .collect();
        let callback = super::Callback::new(move |result| callback.io_completed(result));
        self.log.append(entries, callback).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<RaftLogId>) -> Result<(), io::Error> {
        self.log.truncate_after(last_log_id.map(|id| id.index));
        Ok(())
    }

    async fn purge(&mut self, log_id: RaftLogId) -> Result<(), io::Error> {
        self.log.purge(log_id_from(&log_id));
        Ok(())
    }
}
