//! From a folder to a database.
//!
//! 1. lock the folder;
//! 2. read the manifest: keyspaces, tables, what is flushed, which logs are needed;
//! 3. open every table, which verifies all but the data blocks;
//! 4. write a new manifest and switch to it (from here on files may be removed);
//! 5. remove what the manifest does not know: tables half written, logs already flushed, old manifests;
//! 6. replay the logs into memtables and flush them; what was flushed before is skipped by its sequence number;
//! 7. drop the old logs, begin a new one, start the threads.
//!
//! A crash at any point leaves a folder from which all this can be done again.

use super::queue::CommitQueue;
use super::sealed::SealedLogs;
use super::snapshot::SnapshotList;
use super::view::View;
use super::write::CommitState;
use super::{Handle, Inner, jobs, remove_files};
use crate::background::{Signal, Workers};
use crate::cache::BlockCache;
use crate::error::{Error, Result};
use crate::files::FileName;
use crate::manifest::{self, Manifest, ManifestState};
use crate::memtable::{ChunkPool, MemtableSet};
use crate::options::{Background, Options};
use crate::pace::{Backpressure, RateLimiter};
use crate::statistics::Counters;
use crate::table::blob::BlobFile;
use crate::table::{Table, TableContext};
use crate::version::{Version, VersionEdit};
use crate::vfs::{DirLock, LockError, Vfs};
use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

pub(super) fn open(vfs: Arc<dyn Vfs>, dir: &Path, options: Options) -> Result<Handle> {
    options.validate()?;
    vfs.create_dir_all(dir)
        .map_err(|error| Error::io("create", dir, error))?;
    let lock = take_lock(&*vfs, dir)?;
    let files = list_files(&*vfs, dir)?;
    let mut state = match manifest::recover(&*vfs, dir)? {
        Some(state) => state,
        None => new_state(&*vfs, dir, &files)?,
    };
    for name in &options.keyspaces {
        if !state.keyspaces.contains(name) {
            state.keyspaces.push(name.clone());
        }
    }
    let numbers_used = files
        .iter()
        .filter_map(|file| file.number())
        .max()
        .unwrap_or(0);
    state.next_file_number = state.next_file_number.max(numbers_used + 1);
    let logs = files.iter().filter_map(|file| match file {
        FileName::Wal(number) if *number >= state.log_number => Some(*number),
        _ => None,
    });
    let mut logs: Vec<u64> = logs.collect();
    logs.sort_unstable();

    let counters = Arc::new(Counters::default());
    let context = Arc::new(TableContext {
        vfs: Arc::clone(&vfs),
        cache: BlockCache::new(options.block_cache_bytes),
        counters: Arc::clone(&counters),
        removals_allowed: AtomicBool::new(true),
    });
    let version = open_tables(&context, dir, &state)?;
    let manifest = Manifest::create(Arc::clone(&vfs), dir, state)?;
    let state = manifest.state().clone();
    remove_orphans(&*vfs, dir, &files, &state, manifest.number());

    let keyspace_count = state.keyspaces.len();
    let limiter = RateLimiter::new(options.compaction_bytes_per_second);
    let flushed = state.flushed_seqno;
    let chunks = Arc::new(ChunkPool::new(options.memtable_bytes));
    let active = Arc::new(MemtableSet::new(keyspace_count, 0, flushed, &chunks));
    let inner = Arc::new(Inner {
        options,
        vfs,
        dir: dir.to_owned(),
        keyspaces: state.keyspaces,
        counters,
        context,
        chunks,
        view: ArcSwap::from_pointee(View::new(active, Vec::new(), Arc::new(version))),
        publish: Mutex::new(()),
        visible: AtomicU64::new(flushed),
        flushed: AtomicU64::new(flushed),
        next_file_number: AtomicU64::new(state.next_file_number),
        queue: CommitQueue::default(),
        commit: Mutex::new(CommitState {
            last_seqno: flushed,
            wal: None,
            backpressure: Backpressure::default(),
        }),
        sealed: SealedLogs::default(),
        manifest: Mutex::new(manifest),
        flush_lock: Mutex::new(()),
        compaction_lock: RwLock::new(()),
        busy: Mutex::default(),
        snapshots: SnapshotList::default(),
        callbacks: Mutex::new(Vec::new()),
        signal: Signal::default(),
        limiter,
        failure: OnceLock::new(),
        closing: AtomicBool::new(false),
        stopping: AtomicBool::new(false),
    });
    inner.replay_logs(&logs)?;
    inner.begin_log(&logs)?;
    let handle = Handle {
        inner,
        workers: Workers::default(),
        lock: Mutex::new(Some(lock)),
    };
    if handle.inner.options.background == Background::Threads {
        jobs::start(&handle.inner, &handle.workers)?;
    }
    Ok(handle)
}

fn take_lock(vfs: &dyn Vfs, dir: &Path) -> Result<Box<dyn DirLock>> {
    let path = FileName::Lock.path(dir);
    vfs.lock(&path).map_err(|error| match error {
        LockError::Held(pid) => Error::Locked {
            dir: dir.to_owned(),
            pid,
        },
        LockError::Io(error) => Error::io("lock", &path, error),
    })
}

fn list_files(vfs: &dyn Vfs, dir: &Path) -> Result<Vec<FileName>> {
    let names = vfs
        .list(dir)
        .map_err(|error| Error::io("list", dir, error))?;
    Ok(names
        .iter()
        .filter_map(|name| FileName::parse(name))
        .collect())
}

/// A database that is not there yet. Tables or logs without a `CURRENT` are one that lost it.
fn new_state(vfs: &dyn Vfs, dir: &Path, files: &[FileName]) -> Result<ManifestState> {
    if files.iter().any(|file| {
        matches!(
            file,
            FileName::Table(_) | FileName::Blob(_) | FileName::Wal(_)
        )
    }) {
        let current = FileName::Current.path(dir);
        return Err(Error::corruption(
            &current,
            "file",
            0,
            "the file is missing, but there are tables or logs",
        ));
    }
    // The name of the folder itself must be durable, too.
    let parent = dir
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    vfs.sync_dir(parent)
        .map_err(|error| Error::io("sync", parent, error))?;
    Ok(ManifestState {
        next_file_number: 1,
        ..ManifestState::default()
    })
}

fn open_tables(context: &Arc<TableContext>, dir: &Path, state: &ManifestState) -> Result<Version> {
    let mut edit = VersionEdit::default();
    let (mut tables, mut files) = (BTreeMap::new(), BTreeMap::new());
    for ((keyspace, level, number), meta) in &state.tables {
        let path = FileName::Table(*number).path(dir);
        let blobs = { meta.blobs.iter() }.map(|blob| match files.entry(blob.file) {
            Entry::Occupied(open) => Ok(Arc::clone(open.get())),
            Entry::Vacant(vacant) => {
                let path = FileName::Blob(blob.file).path(dir);
                let file = Arc::new(BlobFile::open(context, &path, blob.file)?);
                Ok(Arc::clone(vacant.insert(file)))
            }
        });
        let blobs = blobs.collect::<Result<_>>()?;
        let table = Table::open(context, &path, meta.clone(), blobs)?;
        tables.insert(*number, Arc::new(table));
        edit.added.push((*keyspace, *level, meta.clone()));
    }
    let version = Version::new(state.keyspaces.len()).apply(&edit, &tables);
    version
        .map_err(|what| Error::corruption(&FileName::Current.path(dir), "set of tables", 0, what))
}

/// Removes what the manifest does not know: left over from a crash.
fn remove_orphans(
    vfs: &dyn Vfs,
    dir: &Path,
    files: &[FileName],
    state: &ManifestState,
    manifest: u64,
) {
    let is_live = |number: u64| state.tables.keys().any(|(_, _, live)| *live == number);
    let blobs = state.blobs();
    let orphans = files.iter().copied().filter(|file| match file {
        FileName::Table(number) => !is_live(*number),
        FileName::Blob(number) => !blobs.contains(number),
        FileName::Wal(number) => *number < state.log_number,
        FileName::Manifest(number) => *number != manifest,
        FileName::Temporary => true,
        FileName::Lock | FileName::Current => false,
    });
    remove_files(vfs, dir, orphans);
}

impl Inner {
    /// Drops the old logs, of which all that counts is flushed, and begins a new one if there is to be one. In this
    /// order: what was given up of them must not be met again behind newer records.
    fn begin_log(&self, old: &[u64]) -> Result<()> {
        let number = self.allocate_file_number();
        if !old.is_empty() {
            let edit = VersionEdit {
                log_number: Some(number),
                ..VersionEdit::default()
            };
            self.install(edit, &BTreeMap::new(), None)?;
            remove_files(
                &*self.vfs,
                &self.dir,
                old.iter().map(|number| FileName::Wal(*number)),
            );
        }
        if self.options.wal {
            let mut commit = self.commit.lock();
            commit.wal = Some(self.create_wal(number, None)?);
            self.replace_active(commit.last_seqno, number);
        }
        Ok(())
    }
}
