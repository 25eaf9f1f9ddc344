//! The write operator: rows in, index entries out.
//!
//! Uniqueness is checked in one of two ways. A statement that is its own
//! transaction attaches the condition *absent* to its writes, so that checking
//! and writing are one consensus round. Inside a transaction block the keys are
//! locked and read at once, so that the error comes with the statement that
//! caused it.
//!
//! Rows that are updated or deleted must have been locked by the caller.

use super::codec::{Entry, TableCodec};
use crate::error::{Result, SqlError};
use bytes::Bytes;
use lineradb_client::{Condition, Error as ClientError, LockOptions, Transaction, WriteOptions};
use lineradb_common::sql::Datum;
use std::collections::HashSet;

/// Keys locked with one call.
pub const LOCK_BATCH: usize = 1024;

/// When uniqueness is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checks {
    /// By conditions at commit.
    AtCommit,
    /// At once, by locking.
    Now,
}

/// Writes rows of one table.
pub struct RowWriter<'a> {
    /// How rows are encoded.
    pub codec: &'a TableCodec,
    /// Where they go.
    pub txn: &'a Transaction,
    /// When uniqueness is checked.
    pub checks: Checks,
}

impl RowWriter<'_> {
    /// Inserts rows.
    ///
    /// # Errors
    /// 23505, 23502, and those of the transaction layer.
    pub async fn insert(&self, rows: &[Vec<Datum>]) -> Result<()> {
        let entries = rows
            .iter()
            .map(|row| self.codec.entries(row))
            .collect::<Result<Vec<_>>>()?;
        self.put_new(&entries, &HashSet::new()).await
    }

    /// Replaces rows: (old, new).
    ///
    /// # Errors
    /// 23505, 23502, and those of the transaction layer.
    pub async fn update(&self, changes: &[(Vec<Datum>, Vec<Datum>)]) -> Result<()> {
        let mut old = Vec::with_capacity(changes.len());
        let mut new = Vec::with_capacity(changes.len());
        for (before, after) in changes {
            old.push(self.codec.entries(before)?);
            new.push(self.codec.entries(after)?);
        }
        let theirs = self.of_others(old.iter().flatten()).await?;
        // What leaves makes room for what comes, also in other rows.
        let mut removed = HashSet::new();
        for (before, after) in old.iter().zip(&new) {
            for (b, a) in before.iter().zip(after) {
                if b.key != a.key && !theirs.contains(&b.key) {
                    removed.insert(b.key.clone());
                }
            }
        }
        for key in &removed {
            self.txn
                .delete(key.clone(), self.options(Condition::None))?;
        }
        let mut moved = Vec::new();
        for (before, after) in old.iter().zip(new) {
            let mut comes = Vec::new();
            for (b, a) in before.iter().zip(after) {
                if b.key != a.key {
                    comes.push(a);
                } else if b.value != a.value && theirs.contains(&b.key) {
                    return Err(self.codec.duplicate(&b.key));
                } else if b.value != a.value {
                    self.txn
                        .put(a.key, a.value, self.options(Condition::None))?;
                }
            }
            moved.push(comes);
        }
        self.put_new(&moved, &removed).await
    }

    /// Deletes rows.
    ///
    /// # Errors
    /// Those of the transaction layer.
    pub async fn delete(&self, rows: &[Vec<Datum>]) -> Result<()> {
        let entries = rows
            .iter()
            .map(|row| self.codec.entries(row))
            .collect::<Result<Vec<_>>>()?;
        let theirs = self.of_others(entries.iter().flatten()).await?;
        for entry in entries.into_iter().flatten() {
            if !theirs.contains(&entry.key) {
                self.txn.delete(entry.key, self.options(Condition::None))?;
            }
        }
        Ok(())
    }

    /// S5: while a unique index is being built, a row that stood before it need
    /// not have its entry yet, and another row may have taken the key: such
    /// entries are not this row's to remove. Answers their keys.
    async fn of_others(&self, entries: impl Iterator<Item = &Entry>) -> Result<HashSet<Bytes>> {
        let building = self.codec.building_prefixes();
        let mut theirs = HashSet::new();
        if building.is_empty() {
            return Ok(theirs);
        }
        let doubtful: Vec<&Entry> = entries
            .filter(|e| e.unique && building.iter().any(|prefix| e.key.starts_with(prefix)))
            .collect();
        let table = Some(self.codec.table.table_version());
        for part in doubtful.chunks(LOCK_BATCH) {
            let keys: Vec<Bytes> = part.iter().map(|e| e.key.clone()).collect();
            let options = LockOptions::default();
            let found = self.txn.locking_get(&keys, table, options).await?;
            for (entry, found) in part.iter().zip(found) {
                if found.is_some_and(|value| value != entry.value) {
                    theirs.insert(entry.key.clone());
                }
            }
        }
        Ok(theirs)
    }

    fn options(&self, condition: Condition) -> WriteOptions {
        WriteOptions {
            table: Some(self.codec.table.table_version()),
            condition,
        }
    }

    /// True for entries whose key another row may already have. The row ids of a
    /// table without a primary key are new by construction.
    fn must_check(&self, entry: &Entry) -> bool {
        entry.unique
            && (self.codec.table.has_primary_key()
                || !entry
                    .key
                    .starts_with(&self.codec.table.index_prefix(self.codec.table.primary.id)))
    }

    async fn put_new(&self, rows: &[Vec<Entry>], removed: &HashSet<Bytes>) -> Result<()> {
        let mut seen = HashSet::new();
        let mut check = Vec::new();
        for entry in rows.iter().flatten().filter(|e| self.must_check(e)) {
            if !seen.insert(entry.key.clone()) {
                return Err(self.codec.duplicate(&entry.key));
            }
            if !removed.contains(&entry.key) {
                check.push(entry.key.clone());
            }
        }
        if self.checks == Checks::Now {
            for keys in check.chunks(LOCK_BATCH) {
                let found = self
                    .txn
                    .locking_get(
                        keys,
                        Some(self.codec.table.table_version()),
                        LockOptions::default(),
                    )
                    .await?;
                if let Some(at) = found.iter().position(Option::is_some) {
                    return Err(self.codec.duplicate(&keys[at]));
                }
            }
        }
        for entry in rows.iter().flatten() {
            let absent = self.checks == Checks::AtCommit
                && self.must_check(entry)
                && !removed.contains(&entry.key);
            let condition = if absent {
                Condition::Absent
            } else {
                Condition::None
            };
            self.txn
                .put(
                    entry.key.clone(),
                    entry.value.clone(),
                    self.options(condition),
                )
                .map_err(|e| self.explain(e))?;
        }
        Ok(())
    }

    fn explain(&self, error: ClientError) -> SqlError {
        match &error {
            ClientError::ConditionFailed { key } => self.codec.duplicate(key),
            _ => error.into(),
        }
    }
}
