//! The database: what its parts share, and the public handle.
//!
//! - [`open`]: from a folder to a database, recovery included;
//! - [`replay`]: what the logs bring back;
//! - [`write`]: commit groups, log, memtable, back-pressure;
//! - [`sealed`]: full logs that are not synced yet;
//! - [`view`]: what readers see, and the point read;
//! - [`install`]: the one place that changes the set of tables;
//! - [`jobs`]: flush and compaction, and the threads that run them;
//! - [`snapshot`]: snapshots and who holds them;
//! - [`ingest`], [`checkpoint`]: tables from outside, and copies of the whole by hard link.
//!
//! **Locks**, in the order in which they may be taken: leadership of the commit queue, `commit`, then
//! `flush_lock`, `compaction_lock`, `busy`, `manifest`, `publish`; last that of `sealed`. Readers take none of them.
//!
//! **Invariants.**
//! - Everything with a sequence number up to `visible` is in the view that a reader loads *before* it loads
//!   `visible`, or in a newer one.
//! - The tables hold exactly the batches up to `flushed`, as the manifest says (rule D1).
//! - After the first failure of a write, sync or job nothing is written any more (rule D3).

mod checkpoint;
mod ingest;
mod install;
mod jobs;
mod open;
mod queue;
mod replay;
mod sealed;
mod snapshot;
mod view;
mod write;

pub use ingest::Ingestion;
pub use snapshot::Snapshot;

use crate::background::{Signal, Workers};
use crate::batch::WriteBatch;
use crate::compaction::pick::{Busy, debt};
use crate::error::{Error, Result};
use crate::files::FileName;
use crate::manifest::Manifest;
use crate::memtable::ChunkPool;
use crate::options::{Background, Options, WriteOptions};
use crate::pace::RateLimiter;
use crate::slice::Slice;
use crate::statistics::{Counters, Statistics};
use crate::table::TableContext;
use crate::types::{KeyspaceId, SeqNo, Trailer};
use crate::version::LEVELS;
use crate::vfs::{DirLock, Vfs};
use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use queue::CommitQueue;
use sealed::SealedLogs;
use snapshot::SnapshotList;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use view::View;
use write::CommitState;

type FlushCallback = Arc<dyn Fn(SeqNo) + Send + Sync>;

/// What the handle, the threads and the snapshots of one database share.
struct Inner {
    options: Options,
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    keyspaces: Vec<String>,
    counters: Arc<Counters>,
    context: Arc<TableContext>,
    /// Memory of memtables.
    chunks: Arc<ChunkPool>,
    /// What readers see now.
    view: ArcSwap<View>,
    /// Taken to replace the view.
    publish: Mutex<()>,
    /// Last sequence number that readers may see.
    visible: AtomicU64,
    /// Last sequence number that the tables hold durably.
    flushed: AtomicU64,
    next_file_number: AtomicU64,
    queue: CommitQueue,
    commit: Mutex<CommitState>,
    sealed: SealedLogs,
    manifest: Mutex<Manifest>,
    flush_lock: Mutex<()>,
    /// Read while compacting; written by who needs that nobody does.
    compaction_lock: RwLock<()>,
    /// What running compactions work on.
    busy: Mutex<Busy>,
    snapshots: SnapshotList,
    callbacks: Mutex<Vec<FlushCallback>>,
    signal: Signal,
    limiter: RateLimiter,
    /// The first failure, after which nothing is written any more.
    failure: OnceLock<Arc<Error>>,
    /// No more writes are taken.
    closing: AtomicBool,
    /// Threads must end.
    stopping: AtomicBool,
}

impl Inner {
    fn allocate_file_number(&self) -> u64 {
        self.next_file_number.fetch_add(1, Ordering::Relaxed)
    }

    fn visible_seqno(&self) -> SeqNo {
        self.visible.load(Ordering::Acquire)
    }

    fn flushed_seqno(&self) -> SeqNo {
        self.flushed.load(Ordering::Acquire)
    }

    fn runs_inline(&self) -> bool {
        self.options.background == Background::Inline
    }

    /// Records a failure that makes the database useless for writing (rule D3), and hands the error on.
    fn fail(&self, error: Error) -> Error {
        if self.failure.set(Arc::new(error.clone())).is_ok() {
            tracing::error!(dir = %self.dir.display(), %error, "the database failed and takes no more writes");
        }
        self.signal.notify();
        error
    }

    fn check_failure(&self) -> Result<()> {
        match self.failure.get() {
            Some(cause) => Err(Error::Failed {
                cause: Arc::clone(cause),
            }),
            None => Ok(()),
        }
    }

    fn check_writable(&self) -> Result<()> {
        self.check_failure()?;
        if self.closing.load(Ordering::Acquire) {
            Err(Error::Closed)
        } else {
            Ok(())
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Waits until all written up to `target` is in tables. Only where threads do the flushing.
    fn wait_for_flush(&self, target: SeqNo) -> Result<()> {
        loop {
            let seen = self.signal.generation();
            if self.flushed_seqno() >= target {
                return Ok(());
            }
            self.check_failure()?;
            if self.is_stopping() {
                return Err(Error::Closed);
            }
            self.signal.wait(seen);
        }
    }
}

/// The handle proper: when the last [`Db`] goes, the threads end and the folder is free again.
struct Handle {
    inner: Arc<Inner>,
    workers: Workers,
    lock: Mutex<Option<Box<dyn DirLock>>>,
}

impl Handle {
    fn stop(&self) {
        self.inner.closing.store(true, Ordering::Release);
        self.inner.stopping.store(true, Ordering::Release);
        self.inner.signal.notify();
        self.workers.join();
        self.inner.chunks.close();
        self.inner
            .context
            .removals_allowed
            .store(false, Ordering::Release);
        *self.lock.lock() = None;
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An open database. Clones share it. When the last clone is dropped without [`Db::close`], threads end and nothing
/// is flushed: what a crash would keep is what stays.
#[derive(Clone)]
pub struct Db {
    handle: Arc<Handle>,
}

impl Db {
    /// Opens the database in a folder, or makes one there, and recovers what a crash has left.
    pub fn open(vfs: Arc<dyn Vfs>, dir: &Path, options: Options) -> Result<Db> {
        Ok(Db {
            handle: Arc::new(open::open(vfs, dir, options)?),
        })
    }

    fn inner(&self) -> &Arc<Inner> {
        &self.handle.inner
    }

    /// The keyspace of this name: declared in [`Options::keyspaces`], or there from earlier.
    pub fn keyspace(&self, name: &str) -> Result<KeyspaceId> {
        let index = self
            .inner()
            .keyspaces
            .iter()
            .position(|known| known == name);
        let index = index.and_then(|index| u32::try_from(index).ok());
        index.map(KeyspaceId).ok_or_else(|| Error::UnknownKeyspace {
            name: name.to_owned(),
        })
    }

    /// Names of all keyspaces, in the order of their ids.
    pub fn keyspaces(&self) -> &[String] {
        &self.inner().keyspaces
    }

    /// Writes a batch: all of it or nothing. When this returns, readers see it; with [`WriteOptions::sync`] it is
    /// durable as well. Returns the sequence number of its last operation. After an error of the file system it is
    /// unknown whether the batch survives, and the database takes no more writes.
    pub fn write(&self, batch: WriteBatch, options: WriteOptions) -> Result<SeqNo> {
        self.inner().write(batch, options)
    }

    /// The present value of a key.
    pub fn get(&self, keyspace: KeyspaceId, key: &[u8]) -> Result<Option<Slice>> {
        let inner = self.inner();
        // The view first, then the sequence number: see the invariants above.
        let view = inner.view.load();
        let trailer = Trailer::at(inner.visible_seqno());
        view.get(keyspace, key, trailer, &inner.counters.reads)
    }

    /// The present values of several keys, in their order, all read at one moment.
    pub fn multi_get<K: AsRef<[u8]>>(
        &self,
        keyspace: KeyspaceId,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Option<Slice>>> {
        let inner = self.inner();
        let view = inner.view.load();
        let trailer = Trailer::at(inner.visible_seqno());
        view.multi_get(keyspace, keys, trailer, &inner.counters.reads)
    }

    /// A consistent view of everything written so far, for as long as it is held.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.inner())
    }

    /// Writes the memtables into tables. Everything written before the call is durable when it returns. Returns the
    /// new [`Db::flushed_seqno`].
    pub fn flush(&self) -> Result<SeqNo> {
        let inner = self.inner();
        let target = {
            let mut commit = inner.commit.lock();
            inner.check_writable()?;
            inner.rotate_if_used(&mut commit)?;
            inner.visible_seqno()
        };
        self.flush_up_to(target)
    }

    /// Takes in tables written by a [`TableWriter`](crate::TableWriter), together with a batch: all of it or nothing,
    /// in one edit with everything written before (rule D1). It is durable when this returns; readers see it from
    /// then on. Writers wait meanwhile. Returns the new [`Db::last_seqno`]. A table that is damaged or cannot be
    /// linked is refused, and nothing has happened.
    pub fn ingest(&self, ingestion: &Ingestion) -> Result<SeqNo> {
        self.inner().ingest(ingestion)
    }

    /// Flushes, and makes a database with the same contents in another folder (new or empty), of hard links where
    /// the file system has them. It holds at least everything written before the call, and is durable when this
    /// returns; a folder without `CURRENT` is a checkpoint that did not get to its end.
    pub fn checkpoint(&self, target: &Path) -> Result<()> {
        self.flush()?;
        self.inner().checkpoint(target)
    }

    fn flush_up_to(&self, target: SeqNo) -> Result<SeqNo> {
        let inner = self.inner();
        if inner.runs_inline() {
            inner.run_jobs_inline()?;
        } else {
            inner.wait_for_flush(target)?;
        }
        Ok(inner.flushed_seqno())
    }

    /// Everything up to here is in tables; without a log this is exactly what a crash keeps (rule D1).
    pub fn flushed_seqno(&self) -> SeqNo {
        self.inner().flushed_seqno()
    }

    /// Sequence number of the last operation that readers see.
    pub fn last_seqno(&self) -> SeqNo {
        self.inner().visible_seqno()
    }

    /// Calls `callback` after each flush with the new [`Db::flushed_seqno`], once its edit is durable; on the thread
    /// that flushed. The callback must not hold a `Db` (which would never be dropped) and should be short.
    pub fn on_flush(&self, callback: impl Fn(SeqNo) + Send + Sync + 'static) {
        self.inner().callbacks.lock().push(Arc::new(callback));
    }

    /// The error that has put the database out of service for writing, if one has.
    pub fn failure(&self) -> Option<Error> {
        self.inner().failure.get().map(|cause| Error::clone(cause))
    }

    /// Counters and sizes, for metrics.
    pub fn statistics(&self) -> Statistics {
        let inner = self.inner();
        let view = inner.view.load();
        let mut statistics = inner.counters.read();
        statistics.cache_bytes = inner.context.cache.bytes();
        statistics.memtable_bytes = view.memtable_bytes();
        statistics.memtable_spare_bytes = inner.chunks.bytes() as u64;
        statistics.immutable_memtables = view.immutable.len() as u64;
        statistics.snapshots = inner.snapshots.len();
        (statistics.level_bytes, statistics.level_tables) = (vec![0; LEVELS], vec![0; LEVELS]);
        for tree in &view.version.trees {
            statistics.compaction_debt_bytes += debt(&tree.metas(), &inner.options);
            for (level, tables) in tree.levels.iter().enumerate() {
                statistics.level_tables[level] += tables.len() as u64;
                statistics.level_bytes[level] +=
                    tables.iter().map(|table| table.meta.bytes).sum::<u64>();
            }
        }
        statistics.tables = statistics.level_tables.iter().sum();
        statistics.table_bytes = statistics.level_bytes.iter().sum();
        let blobs = &view.version.blobs;
        statistics.blob_files = blobs.len() as u64;
        statistics.blob_bytes = blobs.values().map(|share| share.file.bytes()).sum();
        statistics.blob_used_bytes = blobs.values().map(|share| share.used_bytes).sum();
        statistics
    }

    /// Estimated bytes that the keys in `start..end` take in tables once these are compressed: what lies in memtables
    /// or on levels without compression counts as what it will become. Overwritten entries count until a compaction
    /// drops them.
    pub fn approximate_size(&self, keyspace: KeyspaceId, start: &[u8], end: &[u8]) -> u64 {
        if start >= end {
            0
        } else {
            self.inner()
                .view
                .load()
                .approximate_size(keyspace, start, end)
        }
    }

    /// Flushes, stops the threads and gives the folder free. Reads by handles, snapshots and iterators still alive
    /// go on; writes answer [`Error::Closed`]. Closing again does nothing.
    pub fn close(&self) -> Result<()> {
        let inner = self.inner();
        let target = {
            let mut commit = inner.commit.lock();
            if inner.closing.swap(true, Ordering::AcqRel) {
                return Ok(());
            }
            match inner.check_failure() {
                Ok(()) => inner
                    .rotate_if_used(&mut commit)
                    .map(|()| inner.visible_seqno()),
                Err(error) => Err(error),
            }
        };
        let flushed = target.and_then(|target| self.flush_up_to(target));
        self.handle.stop();
        flushed.map(drop)
    }
}

/// Removes files by name; what cannot be removed stays an orphan for the next open.
fn remove_files(vfs: &dyn Vfs, dir: &Path, files: impl IntoIterator<Item = FileName>) {
    for file in files {
        let path = file.path(dir);
        if let Err(error) = vfs.remove(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove a file that is not needed any more");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_cross_threads() {
        fn shared<T: Send + Sync + Clone + 'static>() {}
        fn sent<T: Send + 'static>() {}
        shared::<Db>();
        shared::<Snapshot>();
        shared::<Slice>();
        sent::<crate::Iter>();
    }
}
