//! Flush and compaction, and the threads that run them (or the caller, with `Background::Inline`): one flushes, the
//! others compact, each what no other works on.

use super::{FlushCallback, Inner, remove_files};
use crate::background::Workers;
use crate::compaction::garbage::{self, Share};
use crate::compaction::pick::{Busy, Pick, is_due, pick};
use crate::compaction::retain::Retention;
use crate::compaction::rewrite::{BLOB_TABLES_MOVED, Output, rewrite};
use crate::error::{Error, Result};
use crate::files::FileName;
use crate::iter::{MergeIter, Source};
use crate::memtable::{MemtableIter, MemtableSet};
use crate::pace::pressure;
use crate::ranges::RangeSet;
use crate::table::blob::BlobFile;
use crate::table::{RunIter, Table, TableMeta, TableOptions};
use crate::types::{KeyspaceId, SeqNo};
use crate::version::{Tree, Version, VersionEdit};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

/// A blob file of less than this part of a table's size is small.
const SMALL_BLOB_FILE_PART: u64 = 16;

/// One step of a background job: false if there was nothing to do.
type Step = fn(&Inner) -> Result<bool>;

/// Starts the threads of a database.
pub(super) fn start(inner: &Arc<Inner>, workers: &Workers) -> Result<()> {
    let flush: (&'static str, Step) = ("flush", Inner::flush_next);
    let compaction: (&'static str, Step) = ("compaction", Inner::compact_next);
    let compactions = std::iter::repeat_n(compaction, inner.options.compaction_threads);
    for (job, step) in std::iter::once(flush).chain(compactions) {
        let shared = Arc::clone(inner);
        let spawned = workers.spawn(&format!("lsm-{job}"), move || shared.run_job(job, step));
        spawned.map_err(|error| Error::io("start threads for", &inner.dir, error))?;
    }
    Ok(())
}

impl Inner {
    /// Body of a thread: does `step` while there is something to do, else waits for a change.
    fn run_job(&self, job: &'static str, step: Step) {
        loop {
            let seen = self.signal.generation();
            if self.is_stopping() {
                return;
            }
            // What a panicking job leaves behind is never used again: the database fails.
            match catch_unwind(AssertUnwindSafe(|| step(self))) {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => self.signal.wait(seen),
                // A job records its failure itself.
                Ok(Err(_)) => return,
                Err(_) => {
                    self.fail(Error::JobPanicked { job });
                    return;
                }
            }
        }
    }

    /// Does all there is to do, on the calling thread.
    pub(super) fn run_jobs_inline(&self) -> Result<()> {
        while self.flush_next()? {}
        while self.compact_next()? {}
        Ok(())
    }

    /// Flushes the oldest full memtable; false if there is none.
    pub(super) fn flush_next(&self) -> Result<bool> {
        let guard = self.flush_lock.lock();
        let flushed = self.flush_oldest().map_err(|error| self.fail_job(error))?;
        drop(guard);
        if !flushed {
            return Ok(false);
        }
        self.call_back();
        Ok(true)
    }

    /// Tells who asked for it what is flushed now.
    pub(super) fn call_back(&self) {
        let callbacks: Vec<FlushCallback> = self.callbacks.lock().clone();
        for callback in callbacks {
            callback(self.flushed_seqno());
        }
    }

    fn flush_oldest(&self) -> Result<bool> {
        self.check_failure()?;
        let view = self.view.load_full();
        let Some(set) = view.immutable.last() else {
            return Ok(false);
        };
        // After the view: everything in the memtable is visible by then.
        let stripes = self.snapshots.stripes(&self.visible);
        let mut edit = VersionEdit {
            flushed_seqno: Some(set.last_seqno()),
            ..VersionEdit::default()
        };
        let mut tables = BTreeMap::new();
        self.write_memtables(set, &stripes, &mut edit, &mut tables)?;
        // The logs from that of the next memtable on are still needed.
        let next = view.immutable.iter().rev().nth(1).unwrap_or(&view.active);
        edit.log_number = Some(next.wal_number).filter(|number| *number > 0);
        let log_number = edit.log_number.unwrap_or(0);
        self.install(edit, &tables, Some(set))?;
        self.counters.flushes.add(1);
        if set.wal_number > 0 && set.wal_number < log_number {
            self.sealed.drop_below(log_number);
            remove_files(&*self.vfs, &self.dir, [FileName::Wal(set.wal_number)]);
        }
        Ok(true)
    }

    /// Writes one table for each keyspace that a memtable set says something about, and adds them to an edit.
    pub(super) fn write_memtables(
        &self,
        set: &MemtableSet,
        stripes: &[SeqNo],
        edit: &mut VersionEdit,
        tables: &mut BTreeMap<u64, Arc<Table>>,
    ) -> Result<()> {
        debug_assert!(
            edit.added.is_empty(),
            "older tables of this edit would be overlooked"
        );
        let version = Arc::clone(&self.view.load().version);
        for keyspace in 0..self.keyspaces.len() {
            let Some(memtable) = set
                .keyspace(keyspace)
                .filter(|memtable| !memtable.is_empty())
            else {
                continue;
            };
            let mut input = MemtableIter::new(Arc::clone(memtable));
            let ranges = memtable.ranges().unwrap_or_default();
            let mut retention = Retention::new(stripes.to_vec(), RangeSet::clone(&ranges));
            let ranges = retention.ranges_kept(|_, _| true);
            let allocate = || self.allocate_file_number();
            // A flush makes one table per keyspace and is neither slowed down nor interrupted.
            let output = Output {
                table_bytes: u64::MAX,
                progress: &|_| Ok(()),
                ..self.output(keyspace as u32, 0, &allocate)
            };
            // What is older lies in the tables there are. Compactions that run beside this one make no other keys of
            // them, and what is ingested meanwhile is newer.
            let tree = version.trees.get(keyspace);
            let is_below = |key: &[u8]| tree.is_none_or(|tree| tree.covers(key));
            let written = rewrite(&output, &mut input, &mut retention, ranges, is_below)?;
            self.counters.flush_bytes_written.add(written.bytes());
            for meta in written.tables {
                self.add_table(keyspace as u32, 0, meta, edit, tables)?;
            }
        }
        Ok(())
    }

    /// Runs the most urgent compaction that no other thread is at; false if none is due.
    pub(super) fn compact_next(&self) -> Result<bool> {
        let _guard = self.compaction_lock.read();
        match self.compact_most_urgent() {
            // Interrupted by the end of the database.
            Err(Error::Closed) => Ok(false),
            result => result.map_err(|error| self.fail_job(error)),
        }
    }

    fn compact_most_urgent(&self) -> Result<bool> {
        self.check_failure()?;
        // The view is loaded under this lock, which a finished compaction takes after its edit: a table that is
        // neither busy nor gone is in the view as it is.
        let mut busy = self.busy.lock();
        // Not the whole view: its memtables would live as long as the compaction.
        let version = Arc::clone(&self.view.load().version);
        if self.prune(&version, &busy)? {
            return Ok(true);
        }
        let trees = version.trees.iter().enumerate();
        let picks = trees.filter_map(|(keyspace, tree)| {
            let pick = pick(&tree.metas(), &busy, &self.options)?;
            Some((keyspace as u32, tree, pick))
        });
        let most_urgent = picks.max_by_key(|(_, _, pick)| pick.score);
        let picked = most_urgent.or_else(|| self.pick_garbage(&version, &busy));
        let Some((keyspace, tree, pick)) = picked else {
            return Ok(false);
        };
        busy.begin(&pick);
        drop(busy);
        let compaction = Compaction { inner: self, pick };
        if compaction.pick.trivial {
            self.move_tables(keyspace, tree, &compaction.pick)?;
        } else {
            self.merge_tables(keyspace, &version, &compaction.pick)?;
        }
        Ok(true)
    }

    /// The table to rewrite for the sake of the blob files that it points to, if nothing else is due.
    fn pick_garbage<'a>(&self, version: &'a Version, busy: &Busy) -> Option<(u32, &'a Tree, Pick)> {
        let victims = self.blob_victims(version);
        if victims.is_empty() {
            return None;
        }
        let mut trees = version.trees.iter();
        if trees.any(|tree| is_due(&tree.metas(), busy, &self.options)) {
            return None;
        }
        let trees = version.trees.iter().enumerate();
        let picks = trees.filter_map(|(keyspace, tree)| {
            let pick = garbage::pick(&tree.metas(), busy, &victims)?;
            Some((keyspace as u32, tree, pick))
        });
        picks.max_by_key(|(_, _, pick)| pick.score)
    }

    /// The blob files to empty.
    fn blob_victims(&self, version: &Version) -> BTreeSet<u64> {
        if version.blobs.is_empty() {
            return BTreeSet::new();
        }
        let shares = version.blobs.values().map(|share| Share {
            file: share.file.number,
            bytes: share.file.record_bytes(),
            used_bytes: share.used_bytes,
        });
        let levels = version.trees.iter().flat_map(|tree| &tree.levels);
        let tables = levels.flat_map(|level| level.iter());
        let table_bytes = tables.map(|table| table.meta.bytes).sum();
        garbage::victims(
            shares,
            table_bytes,
            BLOB_TABLES_MOVED.saturating_mul(self.options.table_bytes),
        )
    }

    /// Drops the tables that range deletes of newer tables hide from everybody; false if there are none. What such a
    /// table deletes itself, the newer range delete does, too.
    fn prune(&self, version: &Version, busy: &Busy) -> Result<bool> {
        let mut edit = VersionEdit::default();
        for (keyspace, tree) in version.trees.iter().enumerate() {
            if tree.with_ranges.is_empty() {
                continue;
            }
            let ranges = RangeSet::merge(tree.with_ranges.iter().map(|table| &*table.ranges));
            let retention = Retention::new(self.snapshots.stripes(&self.visible), ranges);
            for (level, tables) in tree.levels.iter().enumerate() {
                let idle = tables.iter().filter(|table| !busy.contains(&table.meta));
                let hidden = idle.filter(|table| retention.hides_table(&table.meta));
                let dropped = hidden.map(|table| (keyspace as u32, level, table.meta.number));
                edit.removed.extend(dropped);
            }
        }
        if edit.removed.is_empty() {
            return Ok(false);
        }
        self.counters.tables_pruned.add(edit.removed.len() as u64);
        self.install(edit, &BTreeMap::new(), None)?;
        Ok(true)
    }

    fn move_tables(&self, keyspace: u32, tree: &Tree, pick: &Pick) -> Result<()> {
        let mut edit = VersionEdit::default();
        let mut tables = BTreeMap::new();
        for table in chosen(tree, pick.level, &pick.inputs) {
            let number = table.meta.number;
            edit.removed.push((keyspace, pick.level, number));
            edit.added
                .push((keyspace, pick.output_level, table.meta.clone()));
            tables.insert(number, table);
        }
        self.counters.trivial_moves.add(1);
        self.install(edit, &tables, None)
    }

    fn merge_tables(&self, keyspace: u32, version: &Version, pick: &Pick) -> Result<()> {
        let Some(tree) = version.trees.get(keyspace as usize) else {
            return Ok(());
        };
        let inputs = chosen(tree, pick.level, &pick.inputs);
        let overlaps = chosen(tree, pick.output_level, &pick.overlaps);
        let bytes_read = inputs
            .iter()
            .chain(&overlaps)
            .map(|table| table.meta.bytes)
            .sum();
        let mut edit = VersionEdit::default();
        edit.removed.extend(
            inputs
                .iter()
                .map(|table| (keyspace, pick.level, table.meta.number)),
        );
        edit.removed.extend(
            overlaps
                .iter()
                .map(|table| (keyspace, pick.output_level, table.meta.number)),
        );
        let ranges = RangeSet::merge(inputs.iter().chain(&overlaps).map(|table| &*table.ranges));
        // After the view: everything in its tables is visible by then.
        let retention = Retention::new(self.snapshots.stripes(&self.visible), ranges);
        let ranges =
            retention.ranges_kept(|start, end| tree.is_range_below(pick.output_level, start, end));
        let filter = self.options.compaction_filter.as_ref();
        let filter = filter.and_then(|factory| factory.begin(KeyspaceId(keyspace)));
        let is_needed = |table: &Arc<Table>| {
            let hidden = retention.hides_table(&table.meta);
            self.counters.tables_pruned.add(u64::from(hidden));
            !hidden
        };
        let run = |mut tables: Vec<Arc<Table>>| {
            tables.retain(is_needed);
            Source::Run(RunIter::new_uncached(Arc::new(tables)))
        };
        let mut sources: Vec<Source> = match pick.level {
            0 => inputs.into_iter().map(|table| run(vec![table])).collect(),
            _ => vec![run(inputs)],
        };
        sources.push(run(overlaps));
        let allocate = || self.allocate_file_number();
        let progress = |bytes| {
            if !self.runs_inline() {
                let waited = self.limiter.pay(bytes, || self.must_hurry());
                self.counters.rate_limit_micros.add(waited);
            }
            match self.is_stopping() {
                true => Err(Error::Closed),
                false => Ok(()),
            }
        };
        // What is in small files is merged as tables are, or there would be ever more of them; but a compaction that
        // is made for garbage must leave less of it behind.
        let (victims, is_for_garbage) =
            (self.blob_victims(version), pick.level == pick.output_level);
        let small_bytes = self.options.table_bytes / SMALL_BLOB_FILE_PART;
        let stale = |number| {
            let share = version.blobs.get(&number)?;
            let is_small = !is_for_garbage && share.file.bytes() < small_bytes;
            (is_small || victims.contains(&number)).then_some(&*share.file)
        };
        let output = Output {
            progress: &progress,
            stale_blob: &stale,
            ..self.output(keyspace, pick.output_level, &allocate)
        };
        let is_below = |key: &[u8]| tree.is_below(pick.output_level, key);
        let mut retention = retention.with_filter(filter);
        let written = rewrite(
            &output,
            &mut MergeIter::new(sources),
            &mut retention,
            ranges,
            is_below,
        )?;
        let mut tables = BTreeMap::new();
        self.counters.compaction_bytes_written.add(written.bytes());
        self.counters.blob_bytes_moved.add(written.blob_bytes_moved);
        for meta in written.tables {
            self.add_table(keyspace, pick.output_level, meta, &mut edit, &mut tables)?;
        }
        self.counters.compaction_bytes_read.add(bytes_read);
        self.counters.compactions.add(1);
        self.counters.values_filtered.add(retention.filtered());
        self.install(edit, &tables, None)
    }

    /// True if a compaction should not keep to its rate: writers are held up, or everything ends.
    fn must_hurry(&self) -> bool {
        let view = self.view.load();
        let (level0, waiting) = (view.level0_tables_max, view.immutable.len());
        let pressed = pressure(&self.options, level0, waiting, view.active.bytes()) > 0;
        pressed || self.is_stopping() || self.failure.get().is_some()
    }

    /// How tables of a level of a keyspace are written.
    fn output<'a>(
        &'a self,
        keyspace: u32,
        level: usize,
        allocate: &'a dyn Fn() -> u64,
    ) -> Output<'a> {
        let options = TableOptions {
            block_bytes: self.options.block_bytes,
            bloom_bits_per_key: self.options.bloom_bits_per_key_at(level),
            version_bytes: { self.keyspaces.get(keyspace as usize) }
                .map_or(0, |name| self.options.version_bytes_of(name)),
            compression: self.options.compression_at(level),
            compression_later: self.options.compression,
        };
        let dir: &Path = &self.dir;
        Output {
            vfs: &*self.vfs,
            dir,
            options,
            table_bytes: self.options.table_bytes,
            blob_value_bytes_min: self.options.blob_value_bytes_min,
            allocate,
            progress: &|_| Ok(()),
            stale_blob: &|_| None,
        }
    }

    /// Opens a table just written, and the blob files written with it, and adds it to an edit.
    pub(super) fn add_table(
        &self,
        keyspace: u32,
        level: usize,
        meta: TableMeta,
        edit: &mut VersionEdit,
        tables: &mut BTreeMap<u64, Arc<Table>>,
    ) -> Result<()> {
        let path = FileName::Table(meta.number).path(&self.dir);
        let version = Arc::clone(&self.view.load().version);
        let blobs = { meta.blobs.iter() }.map(|blob| {
            if let Some(share) = version.blobs.get(&blob.file) {
                return Ok(Arc::clone(&share.file));
            }
            let mut added = tables.values().flat_map(|table| &table.blobs);
            if let Some(file) = added.find(|file| file.number == blob.file) {
                return Ok(Arc::clone(file));
            }
            let path = FileName::Blob(blob.file).path(&self.dir);
            BlobFile::open(&self.context, &path, blob.file).map(Arc::new)
        });
        let blobs = blobs.collect::<Result<_>>()?;
        let table = Arc::new(Table::open(&self.context, &path, meta.clone(), blobs)?);
        tables.insert(meta.number, table);
        edit.added.push((keyspace, level, meta));
        Ok(())
    }

    /// A job's error is the failure of the database, unless that is where it comes from.
    pub(super) fn fail_job(&self, error: Error) -> Error {
        match error {
            Error::Failed { .. } => error,
            _ if self.failure.get().is_some() => error,
            _ => self.fail(error),
        }
    }
}

/// A running compaction: its tables are busy as long as this lives.
struct Compaction<'a> {
    inner: &'a Inner,
    pick: Pick,
}

impl Drop for Compaction<'_> {
    fn drop(&mut self) {
        self.inner.busy.lock().end(&self.pick);
        // Others may go on with what these tables held up.
        self.inner.signal.notify();
    }
}

/// The tables of these numbers, in the order of the level.
fn chosen(tree: &Tree, level: usize, numbers: &[u64]) -> Vec<Arc<Table>> {
    let tables = tree
        .levels
        .get(level)
        .into_iter()
        .flat_map(|level| level.iter());
    tables
        .filter(|table| numbers.contains(&table.meta.number))
        .cloned()
        .collect()
}
