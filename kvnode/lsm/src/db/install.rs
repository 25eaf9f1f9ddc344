//! The one place that changes the set of tables.
//!
//! The order, which everything about recovery rests on:
//! 1. the new tables are written and synced (their writers did that), then their names are;
//! 2. the edit is synced in the manifest: this is the moment it happens;
//! 3. readers get the new view;
//! 4. what the edit dropped may be removed, once the last reader lets go.
//!
//! Any error on the way is final (rule D3).

use super::Inner;
use super::view::View;
use crate::error::{Error, Result};
use crate::memtable::MemtableSet;
use crate::table::Table;
use crate::version::VersionEdit;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Inner {
    /// Makes an edit durable and visible. `tables` holds every table that the edit adds; `flushed` is the memtable
    /// that the edit turns into tables.
    pub(super) fn install(
        &self,
        edit: VersionEdit,
        tables: &BTreeMap<u64, Arc<Table>>,
        flushed: Option<&Arc<MemtableSet>>,
    ) -> Result<()> {
        self.try_install(edit, tables, flushed)
            .map_err(|error| self.fail(error))
    }

    fn try_install(
        &self,
        mut edit: VersionEdit,
        tables: &BTreeMap<u64, Arc<Table>>,
        flushed: Option<&Arc<MemtableSet>>,
    ) -> Result<()> {
        if !edit.added.is_empty() {
            self.vfs
                .sync_dir(&self.dir)
                .map_err(|error| Error::io("sync", &self.dir, error))?;
        }
        let mut manifest = self.manifest.lock();
        self.check_failure()?;
        edit.next_file_number = Some(self.next_file_number.load(Ordering::Relaxed));
        let old = Arc::clone(&self.view.load().version);
        let new = old.apply(&edit, tables);
        let new =
            Arc::new(new.map_err(|what| Error::corruption(&self.dir, "version edit", 0, what))?);
        let new_blobs: BTreeSet<u64> = new.blobs.keys().copied().collect();
        manifest.commit(&edit)?;
        manifest.roll_if_long(|| self.allocate_file_number())?;
        self.publish_view(|view| {
            let is_flushed =
                |set: &Arc<MemtableSet>| flushed.is_some_and(|flushed| Arc::ptr_eq(flushed, set));
            let immutable = view
                .immutable
                .iter()
                .filter(|set| !is_flushed(set))
                .cloned()
                .collect();
            View::new(Arc::clone(&view.active), immutable, new)
        });
        if let Some(seqno) = edit.flushed_seqno {
            self.flushed.store(seqno, Ordering::Release);
        }
        drop(manifest);
        self.signal.notify();
        for (keyspace, level, number) in &edit.removed {
            let level = old
                .trees
                .get(*keyspace as usize)
                .and_then(|tree| tree.levels.get(*level));
            let dropped = level.into_iter().flat_map(|tables| tables.iter());
            for table in
                dropped.filter(|table| table.meta.number == *number && !tables.contains_key(number))
            {
                table.mark_obsolete();
            }
        }
        let gone = |number: &u64| !new_blobs.contains(number);
        for (_, share) in old.blobs.iter().filter(|(number, _)| gone(number)) {
            share.file.mark_obsolete();
        }
        Ok(())
    }
}
