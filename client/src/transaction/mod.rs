//! A transaction as its user sees it: reads at one timestamp, writes into a
//! buffer, and at the end one commit (DESIGN section 6).
//!
//! | file | what |
//! |---|---|
//! | `buffer` | the buffered writes, savepoints |
//! | `spans` | the set of what was read |
//! | `read`, `scan`, `fragment` | reads, merged with the buffered writes |
//! | `locking` | locking reads; moving the read timestamp |
//! | `refresh` | proving that what was read still holds later (X0) |
//! | `isolation` | what each isolation level has to prove, and when |
//! | `plan`, `items` | what is to be committed |
//! | `commit` | how: in one round or in two |
//! | `settle` | unknown outcomes, and what a failed commit leaves (X1, X3) |
//! | `idempotency` | the outcome record of a keyed request (X2) |
//!
//! Reads of several tasks run side by side. Moving the read timestamp, and
//! commit, first wait until none is under way (the *gate*).

pub mod buffer;
mod commit;
mod fragment;
mod idempotency;
mod isolation;
pub mod items;
mod locking;
mod plan;
mod read;
mod refresh;
mod scan;
mod settle;
pub mod spans;

pub use fragment::FragmentPartition;

use crate::background::{Alive, Job};
use crate::client::Shared;
use crate::contention::Contention;
use crate::metrics::COMMIT_WAIT_SECONDS;
use crate::protection::Open;
use crate::receipt::Receipt;
use crate::router::Context;
use crate::types::{
    Commit, EarlierOutcome, FragmentRequest, Isolation, LockOptions, ScanOptions, Span,
    TableVersion, Timing, TransactionOptions, WriteOptions,
};
use crate::{Error, Result};
use buffer::{LockedVersion, SchemaEntry, WriteBuffer};
use bytes::Bytes;
use futures::stream::BoxStream;
use lineradb_common::clock::{Stopwatch, deadline_after, wait_past};
use lineradb_common::{TableId, Timestamp, TxnId, random};
use lineradb_proto::shard::v1 as pb;
use parking_lot::Mutex;
use refresh::ReadSet;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{RwLock, RwLockReadGuard};
use tokio::time::Instant;

/// A transaction. Clones are handles on the same one; all methods take `&self`
/// and may be called from several tasks at once. The last handle dropped
/// without commit rolls back in the background.
#[derive(Clone)]
pub struct Transaction(pub(crate) Arc<Inner>, pub(crate) View);

/// How a handle reads.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct View {
    /// The snapshot of the statement that it is for; READ COMMITTED alone has one
    /// per statement.
    pub(crate) snapshot: Option<Timestamp>,
    /// What it reads need not hold at commit.
    pub(crate) untracked: bool,
}

/// A point in a transaction to which its writes can be rolled back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Savepoint(usize);

pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: TxnId,
    /// When it began: of several in a deadlock the youngest gives way.
    pub(crate) started: Timestamp,
    /// Of the clock that has said when to read.
    clock_generation: u64,
    pub(crate) options: TransactionOptions,
    pub(crate) receipt: Receipt,
    /// Held shared by every read under way, alone by whoever moves the read
    /// timestamp or commits.
    pub(crate) gate: RwLock<()>,
    pub(crate) state: Mutex<State>,
    /// What it reads is kept (X5).
    _open: Open,
}

pub(crate) struct State {
    pub(crate) ended: bool,
    pub(crate) read_ts: Timestamp,
    pub(crate) buffer: WriteBuffer,
    /// The level at which what comes now is read.
    pub(crate) isolation: Isolation,
    /// What was read, by table, so that each part names its schema version.
    pub(crate) reads: ReadSet,
    /// What was read at a timestamp or a level before those of now: its schema
    /// versions must hold at commit, its rows need not.
    pub(crate) earlier: ReadSet,
    /// The schema version in force of every table touched (S1).
    pub(crate) versions: BTreeMap<TableId, u64>,
    pub(crate) locked: BTreeMap<Bytes, Locked>,
    /// One key in each place that must hear that the transaction lives while
    /// it commits.
    pub(crate) committing: Vec<Bytes>,
    pub(crate) deadline: Option<Instant>,
    /// See [`TransactionOptions::default_deadline`].
    pub(crate) default_deadline: bool,
    pub(crate) lock_timeout: Option<Duration>,
    pub(crate) summary: Bytes,
    /// What the idempotency key stands for, when that was not known at the
    /// beginning.
    pub(crate) request_hash: Option<Bytes>,
}

/// A key under this transaction's lock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Locked {
    /// `None` until the leader has answered.
    pub(crate) found: Option<LockedVersion>,
    pub(crate) shared: bool,
    pub(crate) table: Option<TableId>,
    /// Locked outside of SERIALIZABLE: when the first read under the lock took
    /// place, and the version that it found. The lock may be lost, so the commit
    /// proves that the key has not changed since (X4).
    pub(crate) since: Option<(Timestamp, u64)>,
}

impl Transaction {
    pub(crate) fn new(
        shared: Arc<Shared>,
        options: TransactionOptions,
        read_ts: Timestamp,
        clock_generation: u64,
    ) -> Self {
        let state = State {
            ended: false,
            read_ts,
            buffer: WriteBuffer::default(),
            isolation: options.isolation,
            reads: ReadSet::new(),
            earlier: ReadSet::new(),
            versions: BTreeMap::new(),
            locked: BTreeMap::new(),
            committing: Vec::new(),
            deadline: options.deadline,
            default_deadline: options.default_deadline,
            lock_timeout: options.lock_timeout,
            summary: Bytes::new(),
            request_hash: None,
        };
        let id = random::txn_id();
        let inner = Inner {
            _open: shared.open.open(id, read_ts),
            shared,
            id,
            started: options.started.unwrap_or(read_ts),
            clock_generation,
            options,
            receipt: Receipt::default(),
            gate: RwLock::new(()),
            state: Mutex::new(state),
        };
        Transaction(Arc::new(inner), View::default())
    }

    /// Its id; a retry is a new transaction with a new one.
    pub fn id(&self) -> TxnId {
        self.0.id
    }

    /// When it began, or its first attempt did.
    pub fn started(&self) -> Timestamp {
        self.0.started
    }

    /// The timestamp at which it reads; locking reads may move it up.
    pub fn read_timestamp(&self) -> Timestamp {
        self.1.snapshot.unwrap_or_else(|| self.0.read_ts())
    }

    /// READ COMMITTED: a statement begins, which sees what is committed now. The
    /// handle answered reads there for good, also once further statements have
    /// begun (a cursor that is read to its end later). At the other levels
    /// nothing changes.
    ///
    /// # Errors
    /// `Unavailable` without a clock; `Invalid` when the transaction is over.
    pub async fn begin_statement(&self) -> Result<Transaction> {
        let view = View {
            snapshot: self.0.begin_statement().await?,
            untracked: false,
        };
        Ok(Transaction(self.0.clone(), view))
    }

    /// A handle whose reads need not hold at commit, at whatever level: for what is
    /// looked at in order to choose and locked before it counts (SKIP LOCKED).
    pub fn untracked(&self) -> Transaction {
        let view = View {
            untracked: true,
            ..self.1
        };
        Transaction(self.0.clone(), view)
    }

    /// A handle for what follows, which is SERIALIZABLE whatever the level was so
    /// far: a change of the schema builds on what it reads.
    pub async fn serialize(&self) -> Transaction {
        self.0.serialize().await;
        Transaction(self.0.clone(), View::default())
    }

    /// The largest commit timestamp that it has examined (T5).
    pub fn observed(&self) -> Timestamp {
        self.0.receipt.observed()
    }

    /// Where its time went so far.
    pub fn timing(&self) -> Timing {
        self.0.receipt.timing()
    }

    /// True when something is buffered.
    pub fn has_writes(&self) -> bool {
        !self.0.state.lock().buffer.is_empty()
    }

    /// Changes when all of it must be over, doubts included.
    pub fn set_deadline(&self, deadline: Option<Instant>) {
        let mut state = self.0.state.lock();
        state.deadline = deadline;
        state.default_deadline = false;
    }

    /// Changes how long a lock may be waited for.
    pub fn set_lock_timeout(&self, timeout: Option<Duration>) {
        self.0.state.lock().lock_timeout = timeout;
    }

    /// A value, own buffered writes included.
    ///
    /// # Errors
    /// As every read: `SchemaChanged`, `Conflict`, `Unavailable`.
    pub async fn get(&self, key: &[u8], table: Option<TableVersion>) -> Result<Option<Bytes>> {
        let keys = [Bytes::copy_from_slice(key)];
        let mut values = self.0.multi_get(&keys, table, self.1).await?;
        Ok(values.pop().flatten().map(|found| found.value))
    }

    /// Values in the order of `keys`.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn multi_get(
        &self,
        keys: &[Bytes],
        table: Option<TableVersion>,
    ) -> Result<Vec<Option<Bytes>>> {
        let found = self.0.multi_get(keys, table, self.1).await?;
        Ok(found.into_iter().map(|f| f.map(|f| f.value)).collect())
    }

    /// Values with the timestamps of their versions; the timestamp is zero for
    /// an own buffered write.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn versioned_get(
        &self,
        keys: &[Bytes],
        table: Option<TableVersion>,
    ) -> Result<Vec<Option<(Bytes, Timestamp)>>> {
        let found = self.0.multi_get(keys, table, self.1).await?;
        Ok(found
            .into_iter()
            .map(|f| f.map(|f| (f.value, Timestamp::from_raw(f.version))))
            .collect())
    }

    /// Locks the keys and returns their newest values; the read timestamp
    /// moves up when one of them is younger than it, but not below SERIALIZABLE.
    ///
    /// # Errors
    /// Besides those of [`Transaction::get`]: `LockTimeout`, `Deadlock`, and
    /// `Conflict` when what was read before no longer holds, or, below
    /// SERIALIZABLE, a key is younger; the locks stay.
    pub async fn locking_get(
        &self,
        keys: &[Bytes],
        table: Option<TableVersion>,
        options: LockOptions,
    ) -> Result<Vec<Option<Bytes>>> {
        self.0.locking_get(keys, table, options).await
    }

    /// True when a locking read has got this key.
    pub fn holds(&self, key: &[u8]) -> bool {
        let state = self.0.state.lock();
        state.locked.get(key).is_some_and(|l| l.found.is_some())
    }

    /// What was read of a key under its lock need not hold at commit. The lock
    /// stays, but counts for nothing: whoever locks the key again asks for it.
    pub fn disregard(&self, key: &[u8]) {
        if let Some(locked) = self.0.state.lock().locked.get_mut(key) {
            locked.since = None;
            locked.found = None;
        }
    }

    /// All pairs of a span, own writes merged.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn scan(
        &self,
        span: Span,
        options: ScanOptions,
        table: Option<TableVersion>,
    ) -> Result<Vec<(Bytes, Bytes)>> {
        let mut scan = scan::Scan::new(self.clone(), span, options, table);
        let mut pairs = Vec::new();
        while let Some(page) = scan.next_page().await? {
            pairs.extend(page.into_iter().map(|(key, found)| (key, found.value)));
        }
        Ok(pairs)
    }

    /// The same by pages. Own writes are those buffered when it is called.
    pub fn scan_stream(
        &self,
        span: Span,
        options: ScanOptions,
        table: Option<TableVersion>,
    ) -> BoxStream<'static, Result<Vec<(Bytes, Bytes)>>> {
        scan::Scan::new(self.clone(), span, options, table).stream(|key, found| (key, found.value))
    }

    /// The same with the timestamps of the versions found.
    pub fn versioned_scan(
        &self,
        span: Span,
        options: ScanOptions,
        table: Option<TableVersion>,
    ) -> BoxStream<'static, Result<Vec<(Bytes, Bytes, Timestamp)>>> {
        scan::Scan::new(self.clone(), span, options, table)
            .stream(|key, found| (key, found.value, Timestamp::from_raw(found.version)))
    }

    /// One partition per shard that the span overlaps, in key order (reversed
    /// when asked). Own writes are those buffered when it is called.
    pub fn fragment(&self, request: FragmentRequest) -> Vec<FragmentPartition> {
        fragment::cut(self, request)
    }

    /// Buffers a write.
    ///
    /// # Errors
    /// `ConditionFailed` when the transaction already knows that the condition
    /// does not hold; `Limit`; `Invalid` in a read-only transaction.
    pub fn put(&self, key: Bytes, value: Bytes, options: WriteOptions) -> Result<()> {
        self.0.write(key, Some(value), options)
    }

    /// Buffers a delete.
    ///
    /// # Errors
    /// As [`Transaction::put`].
    pub fn delete(&self, key: Bytes, options: WriteOptions) -> Result<()> {
        self.0.write(key, None, options)
    }

    /// Buffers a new schema version of a table over its range (S2). Requests
    /// of this transaction may name the new version from then on; the leaders
    /// are told the one in force.
    ///
    /// # Errors
    /// `Invalid` in a read-only transaction.
    pub fn write_schema(
        &self,
        table: TableId,
        span: Span,
        version: u64,
        replaces: u64,
    ) -> Result<()> {
        let mut state = self.0.writable()?;
        let entry = SchemaEntry {
            span,
            version,
            replaces,
        };
        state.buffer.write_schema(table, entry);
        Ok(())
    }

    /// Marks the present state of the buffered writes.
    pub fn savepoint(&self) -> Savepoint {
        Savepoint(self.0.state.lock().buffer.savepoint())
    }

    /// Undoes the writes buffered since. Locks and the read set stay.
    pub fn rollback_to(&self, savepoint: &Savepoint) {
        self.0.state.lock().buffer.rollback_to(savepoint.0);
    }

    /// Kept with the idempotency outcome.
    pub fn set_result_summary(&self, summary: Bytes) {
        self.0.state.lock().summary = summary;
    }

    /// Binds the idempotency key to this request instead of the one named at the
    /// beginning: a transaction of several statements is known when it commits.
    pub fn set_request_hash(&self, hash: Bytes) {
        self.0.state.lock().request_hash = Some(hash);
    }

    /// The outcome of an earlier request under the same idempotency key; to be
    /// asked before the work is done again. `None` without a key.
    ///
    /// # Errors
    /// `IdempotencyMismatch` when that was another request; those of a read.
    pub async fn earlier_outcome(&self) -> Result<Option<EarlierOutcome>> {
        self.0.earlier_outcome().await
    }

    /// Commits; returns when the commit is visible to everyone (T5). The
    /// transaction is over, whatever the answer.
    ///
    /// # Errors
    /// `Conflict` and its kin: certainly not committed, retry. `Unknown`: not
    /// known.
    pub async fn commit(&self) -> Result<Commit> {
        self.0.commit().await
    }

    /// Gives up everything; returns when what was seen is certain (T5), so
    /// that an error may be answered after it.
    pub async fn rollback(&self) {
        self.0.end();
        self.0.wait_until_certain(Timestamp::ZERO).await.ok();
    }
}

impl Inner {
    fn writable(&self) -> Result<parking_lot::MutexGuard<'_, State>> {
        if self.options.read_only {
            return Err(Error::invalid("the transaction is read only"));
        }
        let state = self.state.lock();
        if state.ended {
            return Err(over());
        }
        Ok(state)
    }

    fn write(&self, key: Bytes, value: Option<Bytes>, options: WriteOptions) -> Result<()> {
        let mut state = self.writable()?;
        let table = state.name_table(options.table)?;
        let locked = state.locked.get(&key).and_then(|l| l.found);
        state
            .buffer
            .write(key, value, options.condition, locked, table)
    }

    /// Lets a read begin.
    pub(crate) async fn enter(&self) -> Result<RwLockReadGuard<'_, ()>> {
        let gate = self.gate.read().await;
        if self.state.lock().ended {
            return Err(over());
        }
        Ok(gate)
    }

    /// How the next operation is to be carried out.
    pub(crate) fn context(&self) -> Context<'_> {
        let own = self.state.lock().deadline;
        let usual = deadline_after(self.shared.operation_timeout);
        Context {
            deadline: own.map_or(usual, |own| own.min(usual)),
            receipt: &self.receipt,
            contention: Contention::PATIENT,
            past: self.options.read_at.is_some(),
        }
    }

    pub(crate) fn read_ts(&self) -> Timestamp {
        self.state.lock().read_ts
    }

    /// Adds to the read set; a read-only transaction needs none, its reads
    /// hold at its timestamp for ever.
    pub(crate) fn note_read(&self, table: Option<TableId>, span: &Span, view: View) {
        if self.options.read_only {
            return;
        }
        let mut state = self.state.lock();
        let behind = view.snapshot.is_some_and(|at| at < state.read_ts);
        let reads = match view.untracked || behind {
            false => &mut state.reads,
            // S1: the schema holds all the same.
            true => &mut state.earlier,
        };
        reads.entry(table).or_default().insert(span);
    }

    /// The schema versions to send along.
    pub(crate) fn schema_of(&self, table: Option<TableId>) -> Vec<pb::SchemaVersion> {
        let state = self.state.lock();
        schema(&state.versions, table)
    }

    /// Ends the transaction: no more reads or writes, locks go back.
    fn end(&self) {
        let locked = {
            let mut state = self.state.lock();
            state.ended = true;
            state.buffer.take();
            state.committing.clear();
            std::mem::take(&mut state.locked)
        };
        self.shared.janitor.forget(self.id);
        if !locked.is_empty() {
            self.shared.clean(Job::Release {
                txn: self.id,
                keys: locked.into_keys().collect(),
            });
        }
    }

    /// T1: what was read by a clock that is found wrong since may be older than what
    /// others were told before this transaction began.
    pub(crate) fn check_clock(&self) -> Result<()> {
        if self.shared.clock.generation() == self.clock_generation {
            return Ok(());
        }
        Err(Error::conflict(
            "the clock by which the transaction has read was wrong; begin it again",
            Bytes::new(),
        ))
    }

    /// Commit wait (T5): until the clock has certainly passed what was written
    /// and what was seen.
    async fn wait_until_certain(&self, written: Timestamp) -> Result<()> {
        let watch = Stopwatch::start();
        let result = wait_past(&*self.shared.clock, written.max(self.receipt.observed())).await;
        COMMIT_WAIT_SECONDS.observe(watch.elapsed().as_secs_f64());
        self.receipt
            .add(|t| t.commit_wait_us += u64::from(watch.elapsed_us()));
        Ok(result?)
    }

    /// Makes the heartbeat speak for this transaction.
    pub(crate) fn keep_alive(self: &Arc<Self>) {
        let alive: Weak<Inner> = Arc::downgrade(self);
        self.shared.janitor.keep_alive(self.id, alive);
    }
}

impl State {
    /// Notes the version of a table that a request names, and answers the
    /// table. A table whose schema this transaction itself changes is named to
    /// the leaders by the version still in force.
    pub(crate) fn name_table(&mut self, table: Option<TableVersion>) -> Result<Option<TableId>> {
        let Some(TableVersion { table, version }) = table else {
            return Ok(None);
        };
        let own = self.buffer.schemas().get(&table);
        let version = own.map_or(version, |own| own.replaces);
        let known = *self.versions.entry(table).or_insert(version);
        if known != version {
            return Err(Error::SchemaChanged {
                table,
                current: known,
            });
        }
        Ok(Some(table))
    }
}

/// The versions to send along for a table; a table that does not exist yet has
/// none.
pub(crate) fn schema(
    versions: &BTreeMap<TableId, u64>,
    tables: impl IntoIterator<Item = TableId>,
) -> Vec<pb::SchemaVersion> {
    let mut tables: Vec<TableId> = tables.into_iter().collect();
    tables.sort_unstable();
    tables.dedup();
    tables
        .into_iter()
        .filter_map(|table| {
            let version = *versions.get(&table)?;
            (version != 0).then_some(pb::SchemaVersion {
                table_id: table.0,
                version,
            })
        })
        .collect()
}

fn over() -> Error {
    Error::invalid("the transaction is over")
}

impl Alive for Inner {
    fn keys(&self) -> Vec<Bytes> {
        let state = self.state.lock();
        let locked = state.locked.keys().cloned();
        locked.chain(state.committing.iter().cloned()).collect()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.end();
    }
}
