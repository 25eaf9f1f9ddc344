//! The queue of writers, which makes commit groups of those that arrive together (`write.rs` says what a group does).
//!
//! A writer is called up to three times: to put its own batch into the memtable beside the others, if it is large
//! enough to be worth waking it; to lead the next group; and to take its result. Who is not the leader only waits.

use crate::batch::{WriteBatch, operations};
use crate::error::Result;
use crate::memtable::MemtableSet;
use crate::types::SeqNo;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;

/// A leader takes no more followers beyond this many bytes.
const GROUP_BYTES_MAX: usize = 1 << 20;

/// A follower with a batch of so many bytes puts it into the memtable itself: for less, the leader is done sooner than
/// the follower is awake.
const OWN_FILL_BYTES_MIN: usize = 16 << 10;

/// Writers waiting for their turn.
#[derive(Default)]
pub(super) struct CommitQueue {
    state: Mutex<QueueState>,
}

#[derive(Default)]
struct QueueState {
    has_leader: bool,
    waiting: VecDeque<Arc<Pending>>,
}

/// A writer in the queue.
pub(super) struct Pending {
    pub batch: WriteBatch,
    pub sync: bool,
    turn: Mutex<Turn>,
    changed: Condvar,
}

enum Turn {
    Waiting,
    /// It is the leader now.
    Lead,
    /// Its group is in the log: it puts its batch into the memtables itself.
    Fill(Share),
    /// A leader has written its batch, or failed to.
    Done(Result<SeqNo>),
}

impl Pending {
    fn give(&self, turn: Turn) {
        *self.turn.lock() = turn;
        self.changed.notify_one();
    }

    /// Hands it the result of its write.
    pub fn finish(&self, result: Result<SeqNo>) {
        self.give(Turn::Done(result));
    }

    /// Makes it put its batch into the memtables.
    pub fn fill(&self, share: Share) {
        self.give(Turn::Fill(share));
    }

    /// Waits for its turn; `None` means to lead.
    pub fn wait(&self) -> Option<Result<SeqNo>> {
        let mut turn = self.turn.lock();
        loop {
            match std::mem::replace(&mut *turn, Turn::Waiting) {
                Turn::Waiting => self.changed.wait(&mut turn),
                Turn::Lead => return None,
                Turn::Fill(share) => MutexGuard::unlocked(&mut turn, || share.fill(&self.batch)),
                Turn::Done(result) => return Some(result),
            }
        }
    }
}

/// A part of the work of a group: one batch, to be put into the memtables by whoever wrote it.
pub(super) struct Share {
    pub memtables: Arc<MemtableSet>,
    /// Sequence number of the first operation.
    pub first: SeqNo,
    pub others: Arc<Shares>,
}

impl Share {
    fn fill(self, batch: &WriteBatch) {
        fill(&self.memtables, batch, self.first);
        self.others.finish_one();
    }
}

/// Puts a batch into the memtables; nobody sees it before its sequence numbers are visible.
pub(super) fn fill(memtables: &MemtableSet, batch: &WriteBatch, first: SeqNo) {
    let (mut seqno, mut cost) = (first, 0);
    for operation in operations(batch.encoded()).flatten() {
        cost += memtables.insert(&operation, seqno).unwrap_or(0);
        seqno += 1;
    }
    debug_assert_eq!(seqno, first + batch.len() as u64);
    memtables.finish_batch(seqno - 1, cost);
}

/// True if a follower's batch is large enough for [`share_out`].
pub(super) fn fills_itself(follower: &Pending) -> bool {
    follower.batch.byte_len() >= OWN_FILL_BYTES_MIN
}

/// Sets those to work that fill the memtables themselves; the first follower's operations come after `last`.
pub(super) fn share_out(
    followers: &[Arc<Pending>],
    memtables: &Arc<MemtableSet>,
    mut last: SeqNo,
) -> Option<Arc<Shares>> {
    let mut shares = None;
    for follower in followers {
        if fills_itself(follower) {
            let shares = shares.get_or_insert_with(Arc::<Shares>::default);
            shares.add_one();
            follower.fill(Share {
                memtables: Arc::clone(memtables),
                first: last + 1,
                others: Arc::clone(shares),
            });
        }
        last += follower.batch.len() as u64;
    }
    shares
}

/// How many shares of a group are not done yet.
#[derive(Default)]
pub(super) struct Shares {
    open: Mutex<usize>,
    done: Condvar,
}

impl Shares {
    pub fn add_one(&self) {
        *self.open.lock() += 1;
    }

    fn finish_one(&self) {
        let mut open = self.open.lock();
        *open -= 1;
        if *open == 0 {
            self.done.notify_one();
        }
    }

    /// Waits until all are done.
    pub fn wait(&self) {
        let mut open = self.open.lock();
        while *open > 0 {
            self.done.wait(&mut open);
        }
    }
}

impl CommitQueue {
    /// Enters the queue. Gives the batch back to who leads at once.
    pub fn enter(&self, batch: WriteBatch, sync: bool) -> Result<WriteBatch, Arc<Pending>> {
        let mut state = self.state.lock();
        if !state.has_leader {
            state.has_leader = true;
            return Ok(batch);
        }
        let (turn, changed) = (Mutex::new(Turn::Waiting), Condvar::new());
        let pending = Arc::new(Pending {
            batch,
            sync,
            turn,
            changed,
        });
        state.waiting.push_back(Arc::clone(&pending));
        Err(pending)
    }

    /// Takes the writers that come along with a leader whose batch has `bytes`.
    pub fn take_group(&self, mut bytes: usize) -> Vec<Arc<Pending>> {
        let mut group = Vec::new();
        let mut state = self.state.lock();
        while let Some(next) = state.waiting.front() {
            bytes += next.batch.byte_len();
            if bytes > GROUP_BYTES_MAX {
                break;
            }
            group.extend(state.waiting.pop_front());
        }
        group
    }

    /// Ends the leadership: the first in the queue leads next.
    pub fn hand_over(&self) {
        let mut state = self.state.lock();
        match state.waiting.pop_front() {
            Some(next) => next.give(Turn::Lead),
            None => state.has_leader = false,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::types::{KeyspaceId, Trailer};

    #[test]
    fn followers_fill_the_memtables_beside_their_leader() {
        const FOLLOWERS: u8 = 3;
        const KEYS: u32 = 2_000;
        let batch = |writer: u8| {
            let mut batch = WriteBatch::new();
            for key in 0..KEYS {
                batch.put(KeyspaceId(0), &key.to_be_bytes(), &[writer]);
            }
            batch
        };
        let queue = CommitQueue::default();
        let leader = queue.enter(batch(0), false).unwrap_or_default();
        let memtables = Arc::new(MemtableSet::new(1, 0, 0, &Arc::default()));
        std::thread::scope(|scope| {
            for writer in 1..=FOLLOWERS {
                let queue = &queue;
                scope.spawn(move || {
                    let pending = queue.enter(batch(writer), false).unwrap_err();
                    assert_eq!(pending.wait().unwrap().unwrap(), u64::from(writer));
                });
            }
            let mut group = Vec::new();
            while group.len() < usize::from(FOLLOWERS) {
                group.extend(queue.take_group(0));
                std::thread::yield_now();
            }
            let shares = share_out(&group, &memtables, u64::from(KEYS));
            fill(&memtables, &leader, 1);
            shares.unwrap().wait();
            for follower in &group {
                let mut entries = operations(follower.batch.encoded()).flatten();
                let writer = entries.next().unwrap().value[0];
                follower.finish(Ok(u64::from(writer)));
            }
            // The last of the group wrote the newest value of every key.
            let last = operations(group[2].batch.encoded()).flatten().next();
            let newest = last.unwrap().value.to_vec();
            let memtable = memtables.keyspace(0).unwrap();
            for key in 0..KEYS {
                let (trailer, value) = memtable.get(&key.to_be_bytes(), Trailer::NEWEST).unwrap();
                assert_eq!(trailer.seqno(), 1 + 3 * u64::from(KEYS) + u64::from(key));
                assert_eq!(value.as_ref(), newest);
            }
            assert_eq!(memtables.last_seqno(), 4 * u64::from(KEYS));
        });
        queue.hand_over();
        assert!(
            queue.enter(batch(0), false).is_ok(),
            "nobody leads any more"
        );
    }
}
