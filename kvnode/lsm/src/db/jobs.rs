//! Flush and compaction, and the two threads that run them (or the caller, with `Background::Inline`).

use super::{FlushCallback, Inner, remove_files};
use crate::background::Workers;
use crate::compaction::pick::{Pick, pick};
use crate::compaction::retain::Retention;
use crate::compaction::rewrite::{Output, rewrite};
use crate::error::{Error, Result};
use crate::files::FileName;
use crate::iter::{MergeIter, Source};
use crate::memtable::{MemtableIter, MemtableSet};
use crate::options::Compression;
use crate::ranges::RangeSet;
use crate::table::{RunIter, Table, TableMeta, TableOptions};
use crate::types::SeqNo;
use crate::version::{Tree, Version, VersionEdit};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

/// One step of a background job: false if there was nothing to do.
type Step = fn(&Inner) -> Result<bool>;

/// Starts the threads of a database.
pub(super) fn start(inner: &Arc<Inner>, workers: &Workers) -> Result<()> {
    let jobs: [(&'static str, Step); 2] = [
        ("flush", Inner::flush_next),
        ("compaction", Inner::compact_next),
    ];
    for (job, step) in jobs {
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
            // A flush makes one table per keyspace and is not interrupted.
            let output = Output {
                table_bytes: u64::MAX,
                check_stop: &|| Ok(()),
                ..self.output(0, &allocate)
            };
            for meta in rewrite(&output, &mut input, &mut retention, ranges, |_| true)? {
                self.counters.flush_bytes_written.add(meta.bytes);
                self.add_table(keyspace as u32, 0, meta, edit, tables)?;
            }
        }
        Ok(())
    }

    /// Runs the most urgent compaction; false if none is due.
    pub(super) fn compact_next(&self) -> Result<bool> {
        let _guard = self.compaction_lock.lock();
        match self.compact_most_urgent() {
            // Interrupted by the end of the database.
            Err(Error::Closed) => Ok(false),
            result => result.map_err(|error| self.fail_job(error)),
        }
    }

    fn compact_most_urgent(&self) -> Result<bool> {
        self.check_failure()?;
        let view = self.view.load_full();
        if self.prune(&view.version)? {
            return Ok(true);
        }
        let picks = view
            .version
            .trees
            .iter()
            .enumerate()
            .filter_map(|(keyspace, tree)| {
                let metas = tree
                    .levels
                    .iter()
                    .map(|level| level.iter().map(|table| &table.meta).collect());
                let metas: Vec<Vec<&TableMeta>> = metas.collect();
                Some((keyspace as u32, tree, pick(&metas, &self.options)?))
            });
        let Some((keyspace, tree, pick)) = picks.max_by_key(|(_, _, pick)| pick.score) else {
            return Ok(false);
        };
        if pick.trivial {
            self.move_tables(keyspace, tree, &pick)?;
        } else {
            self.merge_tables(keyspace, tree, &pick)?;
        }
        Ok(true)
    }

    /// Drops the tables that range deletes of newer tables hide from everybody; false if there are none. What such a
    /// table deletes itself, the newer range delete does, too.
    fn prune(&self, version: &Version) -> Result<bool> {
        let mut edit = VersionEdit::default();
        for (keyspace, tree) in version.trees.iter().enumerate() {
            if tree.with_ranges.is_empty() {
                continue;
            }
            let ranges = RangeSet::merge(tree.with_ranges.iter().map(|table| &*table.ranges));
            let retention = Retention::new(self.snapshots.stripes(&self.visible), ranges);
            for (level, tables) in tree.levels.iter().enumerate() {
                let hidden = tables
                    .iter()
                    .filter(|table| retention.hides_table(&table.meta));
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

    fn merge_tables(&self, keyspace: u32, tree: &Tree, pick: &Pick) -> Result<()> {
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
        let mut retention = Retention::new(self.snapshots.stripes(&self.visible), ranges);
        let ranges =
            retention.ranges_kept(|start, end| tree.is_range_below(pick.output_level, start, end));
        let is_needed = |table: &Arc<Table>| {
            let hidden = retention.hides_table(&table.meta);
            self.counters.tables_pruned.add(u64::from(hidden));
            !hidden
        };
        let run = |mut tables: Vec<Arc<Table>>| {
            tables.retain(is_needed);
            Source::Run(RunIter::new(Arc::new(tables)))
        };
        let mut sources: Vec<Source> = match pick.level {
            0 => inputs.into_iter().map(|table| run(vec![table])).collect(),
            _ => vec![run(inputs)],
        };
        sources.push(run(overlaps));
        let allocate = || self.allocate_file_number();
        let check_stop = || {
            if self.is_stopping() {
                Err(Error::Closed)
            } else {
                Ok(())
            }
        };
        let output = Output {
            check_stop: &check_stop,
            ..self.output(pick.output_level, &allocate)
        };
        let is_below = |key: &[u8]| tree.is_below(pick.output_level, key);
        let metas = rewrite(
            &output,
            &mut MergeIter::new(sources),
            &mut retention,
            ranges,
            is_below,
        )?;
        let mut tables = BTreeMap::new();
        for meta in metas {
            self.counters.compaction_bytes_written.add(meta.bytes);
            self.add_table(keyspace, pick.output_level, meta, &mut edit, &mut tables)?;
        }
        self.counters.compaction_bytes_read.add(bytes_read);
        self.counters.compactions.add(1);
        self.install(edit, &tables, None)
    }

    /// How tables of a level are written.
    fn output<'a>(&'a self, level: usize, allocate: &'a dyn Fn() -> u64) -> Output<'a> {
        let compressed = level >= self.options.compression_level_min;
        let options = TableOptions {
            block_bytes: self.options.block_bytes,
            bloom_bits_per_key: self.options.bloom_bits_per_key,
            compression: if compressed {
                self.options.compression
            } else {
                Compression::None
            },
        };
        let dir: &Path = &self.dir;
        let check_stop = &|| Ok(());
        Output {
            vfs: &*self.vfs,
            dir,
            options,
            table_bytes: self.options.table_bytes,
            allocate,
            check_stop,
        }
    }

    /// Opens a table just written and adds it to an edit.
    pub(super) fn add_table(
        &self,
        keyspace: u32,
        level: usize,
        meta: TableMeta,
        edit: &mut VersionEdit,
        tables: &mut BTreeMap<u64, Arc<Table>>,
    ) -> Result<()> {
        let path = FileName::Table(meta.number).path(&self.dir);
        let table = Arc::new(Table::open(&self.context, &path, meta.clone())?);
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
