//! Ingestion: tables written elsewhere become part of the database, together with a batch, in one edit.
//!
//! Rule D1 wants that one edit makes one sequence number durable for all trees. So an ingestion
//! 1. holds up the writers and flushes every batch below, of all trees;
//! 2. writes the batch into tables of its own, which no memtable and no log ever hold;
//! 3. links the files of the ingested tables into the folder; each gets one sequence number for all its entries;
//! 4. installs all of it with one edit that moves `flushed_seqno` to the last of these numbers.
//!
//! A crash keeps all of it or nothing. A replica that replaces a shard puts the range deletes of all trees, the
//! applied id and the membership into the batch and the rows into the tables.
//!
//! Where a table of the ingestion overlaps nothing it goes as deep as that allows, unless a compaction runs, which
//! may be about to write there; else it goes to level 0.

use super::Inner;
use crate::batch::{WriteBatch, operations};
use crate::error::{Error, Result};
use crate::files::FileName;
use crate::memtable::MemtableSet;
use crate::table::{Table, TableMeta, external_meta};
use crate::types::{KeyspaceId, SeqNo};
use crate::version::{LEVELS, VersionEdit};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What [`Db::ingest`](crate::Db::ingest) is to take in: a batch and, newer than all of it, tables.
#[derive(Debug, Clone, Default)]
pub struct Ingestion {
    batch: WriteBatch,
    tables: Vec<(KeyspaceId, PathBuf)>,
}

impl Ingestion {
    /// Begins with a batch; it may be empty. Its range deletes do not touch the tables.
    pub fn new(batch: WriteBatch) -> Self {
        let tables = Vec::new();
        Self { batch, tables }
    }

    /// Adds a table that a [`TableWriter`](crate::TableWriter) has finished. Where tables hold the same key, the one
    /// added last counts. The file stays where it is and must not be changed.
    pub fn table(&mut self, keyspace: KeyspaceId, path: &Path) {
        self.tables.push((keyspace, path.to_owned()));
    }
}

/// An ingested table before it has a place.
struct External<'a> {
    keyspace: KeyspaceId,
    path: &'a Path,
    meta: TableMeta,
}

impl Inner {
    pub(super) fn ingest(&self, ingestion: &Ingestion) -> Result<SeqNo> {
        ingestion.batch.validate(self.keyspaces.len())?;
        let mut externals = Vec::new();
        for (keyspace, path) in &ingestion.tables {
            if keyspace.index() >= self.keyspaces.len() {
                let name = format!("#{}", keyspace.index());
                return Err(Error::UnknownKeyspace { name });
            }
            externals.push(External {
                keyspace: *keyspace,
                path,
                meta: external_meta(&*self.vfs, path)?,
            });
        }
        let mut commit = self.commit.lock();
        self.check_writable()?;
        self.rotate_if_used(&mut commit)?;
        if self.runs_inline() {
            while self.flush_next()? {}
        } else {
            self.wait_for_flush(commit.last_seqno)?;
        }
        if ingestion.batch.is_empty() && externals.is_empty() {
            return Ok(commit.last_seqno);
        }
        let flush = self.flush_lock.lock();
        let last = self.install_ingestion(commit.last_seqno, &ingestion.batch, externals)?;
        commit.last_seqno = last;
        self.visible.store(last, Ordering::Release);
        self.counters.ingestions.add(1);
        drop((flush, commit));
        self.call_back();
        if self.runs_inline() {
            // The ingestion has happened; should a job fail, that is the failure of the database.
            let _ = self.run_jobs_inline();
        }
        Ok(last)
    }

    /// Steps 2 to 4. Returns the last sequence number used.
    fn install_ingestion(
        &self,
        mut seqno: SeqNo,
        batch: &WriteBatch,
        externals: Vec<External<'_>>,
    ) -> Result<SeqNo> {
        let mut edit = VersionEdit::default();
        let mut tables = BTreeMap::new();
        let set = MemtableSet::new(self.keyspaces.len(), 0, seqno, &self.chunks);
        for operation in operations(batch.encoded()).flatten() {
            seqno += 1;
            // The batch was validated: its keyspaces are there.
            let _ = set.insert(&operation, seqno);
        }
        let stripes = self.snapshots.stripes(&self.visible);
        self.write_memtables(&set, &stripes, &mut edit, &mut tables)
            .map_err(|error| self.fail_job(error))?;
        // Held until the edit is in: a compaction must not write where the tables go.
        let no_compaction = self.compaction_lock.try_write();
        for external in externals {
            seqno += 1;
            let deep = no_compaction.is_some();
            let added = self.link_external(external, seqno, deep, &mut edit, &mut tables);
            if let Err(error) = added {
                // Nothing has happened yet: what was written is nobody's.
                for table in tables.values() {
                    table.mark_obsolete();
                    table.blobs.iter().for_each(|blob| blob.mark_obsolete());
                }
                return Err(error);
            }
        }
        edit.flushed_seqno = Some(seqno);
        self.install(edit, &tables, None)?;
        Ok(seqno)
    }

    fn link_external(
        &self,
        external: External<'_>,
        seqno: SeqNo,
        deep: bool,
        edit: &mut VersionEdit,
        tables: &mut BTreeMap<u64, Arc<Table>>,
    ) -> Result<()> {
        let keyspace = external.keyspace.0;
        let meta = TableMeta {
            number: self.allocate_file_number(),
            smallest_seqno: seqno,
            largest_seqno: seqno,
            assigned_seqno: seqno,
            ..external.meta
        };
        let path = FileName::Table(meta.number).path(&self.dir);
        self.vfs
            .link(external.path, &path)
            .map_err(|error| Error::io("link", external.path, error))?;
        let level = if deep {
            self.deepest_level(keyspace, &meta, edit)
        } else {
            0
        };
        self.counters.ingested_bytes.add(meta.bytes);
        let added = self.add_table(keyspace, level, meta, edit, tables);
        if added.is_err() {
            // What cannot be removed now is an orphan that the next open removes.
            let _ = self.vfs.remove(&path);
        }
        added
    }

    /// The deepest level to which a table can go so that all it overlaps is below.
    fn deepest_level(&self, keyspace: u32, meta: &TableMeta, edit: &VersionEdit) -> usize {
        let overlaps = |other: &TableMeta| other.overlaps(&meta.smallest_key, &meta.largest_key);
        let mut added = edit.added.iter();
        if added.any(|(tree, _, other)| *tree == keyspace && overlaps(other)) {
            return 0;
        }
        let view = self.view.load();
        let Some(tree) = view.version.trees.get(keyspace as usize) else {
            return 0;
        };
        let mut levels = tree.levels.iter();
        let first = levels.position(|level| level.iter().any(|table| overlaps(&table.meta)));
        first.unwrap_or(LEVELS).saturating_sub(1)
    }
}
