//! What a leader keeps in memory while it leads one term (PROTOCOLS C1): the
//! timestamp cache, latches, memory locks, schema versions. A new term starts
//! with an empty cache above the low-water mark (L3).

use super::coordinators::Coordinators;
use super::engine::Collection;
use super::latches::{LatchGuard, Latches};
use super::lock_table::LockTable;
use super::schema::SchemaTable;
use super::timestamp_cache::TimestampCache;
use super::wait_graph::WaitGraph;
use crate::rules::Rules;
use bytes::Bytes;
use lineradb_common::{TableId, Timestamp, TxnId};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const STRIPES: usize = 64;

/// The memory of one leadership.
pub struct Leading {
    /// The term.
    pub term: u64,
    /// Of the clock that has set the cache's floor.
    clock_generation: AtomicU64,
    /// What was read.
    pub cache: TimestampCache,
    /// What is being written.
    pub latches: Arc<Latches>,
    /// Who waits for whom.
    pub locks: LockTable,
    /// Whose commits are under way.
    pub coordinators: Coordinators,
    /// Schema versions.
    pub schema: SchemaTable,
    /// Nothing is read below (X5).
    threshold: AtomicU64,
    collection: Mutex<Collection>,
    lost: Mutex<CancellationToken>,
    resolved: [Notify; STRIPES],
    /// Latches of proposals whose fate will not be known in this term: no
    /// other write may be evaluated on their keys before the term is over.
    undecided: Mutex<Vec<LatchGuard>>,
}

/// What becomes visible when a proposal is applied.
#[derive(Debug, Default)]
pub struct Effects {
    /// Tables whose schema version was written.
    pub tables: Vec<TableId>,
    /// Where intents were removed.
    pub resolved: Vec<Bytes>,
    /// Whose memory locks are not needed any more.
    pub release: Option<TxnId>,
}

impl Leading {
    /// The empty memory of a new leadership.
    pub fn new(
        term: u64,
        mark: Timestamp,
        now: Timestamp,
        clock_generation: u64,
        graph: Arc<WaitGraph>,
        rules: Rules,
    ) -> Self {
        Leading {
            term,
            clock_generation: AtomicU64::new(clock_generation),
            cache: TimestampCache::new(mark, rules),
            latches: Arc::default(),
            locks: LockTable::new(graph),
            coordinators: Coordinators::new(now),
            schema: SchemaTable::default(),
            threshold: AtomicU64::new(0),
            collection: Mutex::default(),
            lost: Mutex::default(),
            resolved: std::array::from_fn(|_| Notify::new()),
            undecided: Mutex::default(),
        }
    }

    /// Of the clock that has set the cache's floor.
    pub fn clock_generation(&self) -> u64 {
        self.clock_generation.load(Ordering::Acquire)
    }

    /// T1, L3: a clock that was found wrong since this one began has set its floor too
    /// low, perhaps. `floor` is asked for one of now.
    ///
    /// # Errors
    /// Those of `floor`.
    pub fn trust<E>(
        &self,
        clock_generation: u64,
        floor: impl FnOnce() -> Result<Timestamp, E>,
    ) -> Result<(), E> {
        if self.clock_generation.load(Ordering::Acquire) != clock_generation {
            self.cache.raise_floor(floor()?);
            self.clock_generation
                .store(clock_generation, Ordering::Release);
        }
        Ok(())
    }

    /// Nothing is read below (X5).
    pub fn threshold(&self) -> Timestamp {
        Timestamp::from_raw(self.threshold.load(Ordering::SeqCst))
    }

    /// Raises it; never lowers it.
    pub fn raise_threshold(&self, to: Timestamp) {
        self.threshold.fetch_max(to.raw(), Ordering::SeqCst);
    }

    /// Where the collection of history stands.
    pub fn collection(&self) -> Collection {
        *self.collection.lock()
    }

    /// It stands elsewhere now.
    pub fn set_collection(&self, collection: Collection) {
        *self.collection.lock() = collection;
    }

    /// Cancelled when the leadership is lost.
    pub fn lost(&self) -> CancellationToken {
        self.lost.lock().clone()
    }

    /// The leadership of this very term is there (again): its memory is still
    /// good, since nobody else can have led the term.
    pub fn hold_on(&self) {
        let mut lost = self.lost.lock();
        if lost.is_cancelled() {
            *lost = CancellationToken::new();
        }
    }

    /// Told when an intent at this place was resolved.
    pub fn resolved_at(&self, addressable: &[u8]) -> &Notify {
        let hash = xxhash_rust::xxh3::xxh3_64(addressable);
        &self.resolved[hash as usize % STRIPES]
    }

    /// A proposal was applied. Comes before its latches are released.
    pub fn applied(&self, effects: &Effects) {
        for table in &effects.tables {
            self.schema.forget(*table);
        }
        for place in &effects.resolved {
            self.resolved_at(place).notify_waiters();
        }
        if let Some(txn) = effects.release {
            self.locks.release(txn);
        }
    }

    /// A proposal may be applied yet: its latches stay for the rest of the
    /// term.
    pub fn keep_until_lost(&self, guard: LatchGuard) {
        self.undecided.lock().push(guard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    /// T1, L3: nobody writes below what the leader before has served, also where this
    /// one's clock was behind when it began.
    #[test]
    fn a_floor_set_by_a_wrong_clock_is_raised() {
        let at = Timestamp::from_micros;
        let leading = Leading::new(1, at(10), at(10), 7, Arc::default(), Rules::default());
        let unasked = || -> Result<Timestamp, ()> { panic!("the clock was right") };
        assert_eq!(leading.trust(7, unasked), Ok(()));
        assert_eq!(leading.cache.floor(), at(10));
        // It has no time yet: nothing is evaluated.
        assert_eq!(leading.trust(8, || Err(())), Err(()));
        assert_eq!(leading.trust(8, || Ok::<_, ()>(at(50))), Ok(()));
        assert_eq!(leading.cache.floor(), at(50));
        assert_eq!(leading.trust(8, unasked), Ok(()));
    }
}
