//! What a replica's state machine, its group handle and its keeper share.

use super::api::{GroupObserver, SplitApplied};
use super::bounds::Bounds;
use super::local::ReplicaRecord;
use super::storage::Storage;
use super::tail::Tail;
use super::types::StoredMembership;
use crate::raft_log::LogId;
use crate::snapshot::Spool;
use crate::{Error, Result};
use bytes::Bytes;
use lineradb_common::clock::Stopwatch;
use lineradb_common::{NodeId, ReplicaId, ShardId, spawn};
use lineradb_lsm::WriteBatch;
use lineradb_proto::shard::v1::ShardDescriptor;
use parking_lot::{Mutex, RwLock};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Applied positions remembered until they are durable.
const POINTS_MAX: usize = 512;

/// What is applied, as readers outside of apply see it.
pub(crate) struct Visible {
    pub descriptor: Arc<ShardDescriptor>,
    pub bounds: Arc<Bounds>,
    pub applied: Option<LogId>,
    pub membership: StoredMembership,
    /// See [`ReplicaRecord::shed`].
    pub shed: Vec<(Bytes, Bytes)>,
}

/// Which applied position is durable (D1): positions with the storage
/// engine's sequence number of the batch that holds them.
#[derive(Debug, Default)]
struct Durable {
    points: VecDeque<(u64, LogId)>,
    reached: Option<LogId>,
}

impl Durable {
    fn add(&mut self, seqno: u64, applied: LogId) {
        if self.points.len() >= POINTS_MAX {
            // Every other one goes, never the newest: coarser, not wrong.
            let mut keep = false;
            self.points.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.points.push_back((seqno, applied));
    }

    fn reach(&mut self, flushed: u64) -> Option<LogId> {
        while let Some((seqno, applied)) = self.points.front().copied() {
            if seqno > flushed {
                break;
            }
            self.reached = Some(applied);
            self.points.pop_front();
        }
        self.reached
    }
}

/// The size of a shard is counted anew after this.
const SIZE_AGE: Duration = Duration::from_secs(2);
/// ... and after so many times what the last counting took.
const SIZE_SHARE: u32 = 100;

/// The size of a shard, counted some time ago.
#[derive(Default)]
struct Size {
    bytes: u64,
    taken: Option<Taken>,
}

struct Taken {
    since: Stopwatch,
    took: Duration,
    /// The range counted: after a split it is another one.
    bounds: Arc<Bounds>,
}

/// One replica on this node.
pub(crate) struct ReplicaState {
    pub shard: ShardId,
    pub replica: ReplicaId,
    pub storage: Storage,
    pub spool: Arc<Spool>,
    pub visible: RwLock<Visible>,
    durable: Mutex<Durable>,
    pub leadership: LeadershipCell,
    /// What apply has put into the engine lately.
    pub tail: Tail,
    size: Mutex<Size>,
    /// Held while something is written to the engine; true when the replica was
    /// destroyed: nothing is written any more.
    closed: Mutex<bool>,
    /// Odd while the content is being replaced by a snapshot's, and from the
    /// replica's destruction on.
    replacing: AtomicU64,
    /// Set when the replica stopped on a fault.
    pub failed: Mutex<Option<String>>,
}

impl ReplicaState {
    pub(crate) fn new(storage: Storage, spool: Arc<Spool>, record: ReplicaRecord) -> Self {
        let bounds = Arc::new(Bounds::of(&record.descriptor));
        ReplicaState {
            shard: ShardId(record.descriptor.shard_id),
            replica: record.replica,
            storage,
            spool,
            visible: RwLock::new(Visible {
                descriptor: Arc::new(record.descriptor),
                bounds,
                applied: record.applied,
                membership: record.membership,
                shed: record.shed,
            }),
            durable: Mutex::new(Durable {
                points: VecDeque::new(),
                // What was read at start is what a crash keeps. A record that
                // was just written is not yet, but its log is empty.
                reached: record.applied,
            }),
            leadership: LeadershipCell::default(),
            tail: Tail::default(),
            size: Mutex::default(),
            closed: Mutex::new(false),
            replacing: AtomicU64::new(0),
            failed: Mutex::default(),
        }
    }

    /// Writes a batch unless the replica was destroyed meanwhile; returns its
    /// sequence number.
    pub(crate) fn write(&self, batch: WriteBatch) -> Result<u64> {
        let closed = self.closed.lock();
        if *closed {
            return Err(Error::Unavailable("the replica was destroyed".into()));
        }
        self.storage.write(batch)
    }

    /// The replica is destroyed; returns when no write is under way.
    pub(crate) fn close(&self) {
        let mut closed = self.closed.lock();
        self.replace_content();
        *closed = true;
    }

    /// From here on the content is neither the old nor the new one.
    pub(crate) fn replace_content(&self) {
        self.replacing.fetch_or(1, Ordering::SeqCst);
    }

    /// The content is whole again.
    pub(crate) fn content_replaced(&self) {
        let closed = self.closed.lock();
        if !*closed {
            self.replacing.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// What `take` sees when everything up to an entry is applied; `None` if it is
    /// not yet, or the content is being replaced.
    pub(crate) fn as_of<T>(&self, index: u64, take: impl FnOnce() -> T) -> Option<T> {
        let before = self.replacing.load(Ordering::SeqCst);
        let whole = before.is_multiple_of(2) && self.failed.lock().is_none();
        if !whole || self.applied().is_none_or(|applied| applied.index < index) {
            return None;
        }
        let taken = take();
        (self.replacing.load(Ordering::SeqCst) == before).then_some(taken)
    }

    pub(crate) fn descriptor(&self) -> Arc<ShardDescriptor> {
        Arc::clone(&self.visible.read().descriptor)
    }

    pub(crate) fn bounds(&self) -> Arc<Bounds> {
        Arc::clone(&self.visible.read().bounds)
    }

    pub(crate) fn applied(&self) -> Option<LogId> {
        self.visible.read().applied
    }

    pub(crate) fn note_written(&self, seqno: u64, applied: LogId) {
        self.durable.lock().add(seqno, applied);
    }

    /// About how many bytes the shard takes, as of a few seconds ago: the estimate
    /// asks every table, so it gets a fixed share of a core.
    pub(crate) fn size(&self) -> u64 {
        let bounds = self.bounds();
        let mut size = self.size.lock();
        let due = size.taken.as_ref().is_none_or(|taken| {
            taken.since.elapsed() > SIZE_AGE.max(SIZE_SHARE * taken.took)
                || !Arc::ptr_eq(&taken.bounds, &bounds)
        });
        if due {
            let watch = Stopwatch::start();
            size.bytes = spawn::stalling(|| self.storage.size(&bounds));
            size.taken = Some(Taken {
                took: watch.elapsed(),
                since: Stopwatch::start(),
                bounds,
            });
        }
        size.bytes
    }

    /// The last applied position that a crash keeps.
    pub(crate) fn durable_applied(&self) -> Option<LogId> {
        let flushed = self.storage.db.flushed_seqno();
        self.durable.lock().reach(flushed)
    }
}

/// Who leads, with the observer told in order.
#[derive(Default)]
pub(crate) struct LeadershipCell {
    /// The term that this replica leads; 0: none. Set after the observer was
    /// told of the beginning, cleared before it is told of the end.
    term: AtomicU64,
    leader: AtomicU64,
    observer: Mutex<Observed>,
}

#[derive(Default)]
struct Observed {
    observer: Option<Arc<dyn GroupObserver>>,
}

impl LeadershipCell {
    pub(crate) fn term(&self) -> Option<u64> {
        Some(self.term.load(Ordering::Acquire)).filter(|term| *term != 0)
    }

    pub(crate) fn leader_node(&self) -> Option<NodeId> {
        let replica = self.leader.load(Ordering::Acquire);
        (replica != 0).then(|| ReplicaId(replica).node())
    }

    pub(crate) fn set_leader(&self, replica: Option<u64>) {
        self.leader.store(replica.unwrap_or(0), Ordering::Release);
    }

    pub(crate) fn begin(&self, term: u64) {
        let observed = self.observer.lock();
        if let Some(observer) = &observed.observer {
            observer.on_leader(term);
        }
        self.term.store(term, Ordering::Release);
    }

    pub(crate) fn end(&self) {
        let observed = self.observer.lock();
        if self.term.swap(0, Ordering::AcqRel) != 0
            && let Some(observer) = &observed.observer
        {
            observer.on_lost_leadership();
        }
    }

    pub(crate) fn split(&self, split: &SplitApplied) {
        let observed = self.observer.lock();
        if let Some(observer) = &observed.observer {
            observer.on_split(split);
        }
    }

    pub(crate) fn observe(&self, observer: Arc<dyn GroupObserver>) {
        let mut observed = self.observer.lock();
        if let Some(term) = self.term() {
            observer.on_leader(term);
        }
        observed.observer = Some(observer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_flushed_positions_are_durable() {
        let mut durable = Durable::default();
        let at = |index| LogId { term: 1, index };
        for index in 1..=10 {
            durable.add(index * 10, at(index));
        }
        assert_eq!(durable.reach(9), None);
        assert_eq!(durable.reach(55), Some(at(5)));
        assert_eq!(durable.reach(55), Some(at(5)));
        for index in 11..5000 {
            durable.add(index * 10, at(index));
        }
        assert!(durable.points.len() <= POINTS_MAX);
        let reached = durable.reach(30_000).unwrap();
        assert!(reached.index <= 3000);
        assert_eq!(durable.reach(49_990), Some(at(4999)));
    }
}
