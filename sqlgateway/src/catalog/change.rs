//! Changing the catalog inside a transaction.
//!
//! A DDL statement locks the catalog, edits a copy of the snapshot, and buffers
//! the descriptors together with new schema versions of the tables (PROTOCOLS
//! S2), all in the transaction of the statement. The copy is what the session
//! plans with until the transaction ends; others see it when it commits.

use super::store::{
    CatalogStore, Garbage, encode, garbage_key, schema_key, table_key, version_key, version_value,
};
use super::{CatalogSnapshot, SchemaDescriptor, TableDescriptor};
use crate::error::Result;
use lineradb_client::{Span, Transaction, WriteOptions};
use lineradb_common::random;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What a transaction has changed in the catalog so far.
#[derive(Clone, Debug)]
pub struct PendingDdl {
    /// The catalog as the transaction sees it.
    pub snapshot: Arc<CatalogSnapshot>,
    /// Tables whose version was raised; once per transaction is enough, nobody
    /// else sees the steps between.
    raised: BTreeSet<u32>,
}

/// A DDL statement at work.
pub struct CatalogChange<'a> {
    txn: &'a Transaction,
    snapshot: CatalogSnapshot,
    raised: BTreeSet<u32>,
}

impl<'a> CatalogChange<'a> {
    /// Locks the catalog, or goes on where an earlier statement of the
    /// transaction stopped.
    ///
    /// # Errors
    /// Those of the transaction layer.
    pub async fn begin(
        store: &CatalogStore,
        txn: &'a Transaction,
        pending: Option<&PendingDdl>,
    ) -> Result<Self> {
        Ok(match pending {
            Some(p) => CatalogChange {
                txn,
                snapshot: (*p.snapshot).clone(),
                raised: p.raised.clone(),
            },
            None => {
                let mut snapshot = store.load_for_change(txn).await?;
                snapshot.set_version(snapshot.version() + 1);
                CatalogChange {
                    txn,
                    snapshot,
                    raised: BTreeSet::new(),
                }
            }
        })
    }

    /// The catalog with the changes so far.
    pub fn snapshot(&self) -> &CatalogSnapshot {
        &self.snapshot
    }

    /// The transaction.
    pub fn transaction(&self) -> &Transaction {
        self.txn
    }

    /// Adds a table; its version is set to 1.
    ///
    /// # Errors
    /// Those of the transaction layer.
    pub fn create_table(&mut self, mut table: TableDescriptor) -> Result<Arc<TableDescriptor>> {
        table.version = 1;
        self.txn
            .write_schema(table.table_id(), table.span(), 1, 0)?;
        self.raised.insert(table.id);
        self.put(table)
    }

    /// Replaces a table by its changed form and raises its version.
    ///
    /// # Errors
    /// Those of the transaction layer.
    pub fn change_table(&mut self, mut table: TableDescriptor) -> Result<Arc<TableDescriptor>> {
        if self.raised.insert(table.id) {
            let replaces = table.version;
            table.version += 1;
            self.txn
                .write_schema(table.table_id(), table.span(), table.version, replaces)?;
        }
        self.put(table)
    }

    fn put(&mut self, table: TableDescriptor) -> Result<Arc<TableDescriptor>> {
        let table = Arc::new(table);
        self.txn.put(
            table_key(table.id),
            encode(&*table)?,
            WriteOptions::default(),
        )?;
        self.snapshot.put_table(Arc::clone(&table));
        Ok(table)
    }

    /// Removes a table; its version is raised, so that nobody's plan for it
    /// still runs, and its keys are left to the cleaner.
    ///
    /// # Errors
    /// Those of the transaction layer.
    pub fn drop_table(&mut self, table: &TableDescriptor) -> Result<()> {
        if self.raised.insert(table.id) {
            self.txn.write_schema(
                table.table_id(),
                table.span(),
                table.version + 1,
                table.version,
            )?;
        }
        self.txn
            .delete(table_key(table.id), WriteOptions::default())?;
        self.snapshot.remove_table(table.id);
        self.leave_garbage(&table.span())
    }

    /// Notes a span whose keys nobody uses after this transaction.
    ///
    /// # Errors
    /// Those of the transaction layer.
    pub fn leave_garbage(&mut self, span: &Span) -> Result<()> {
        self.txn.put(
            garbage_key(random::below(u64::MAX)),
            encode(&Garbage::of(span))?,
            WriteOptions::default(),
        )?;
        Ok(())
    }

    /// Adds a schema.
    ///
    /// # Errors
    /// Those of the transaction layer.
    pub fn create_schema(&mut self, schema: SchemaDescriptor) -> Result<()> {
        self.txn.put(
            schema_key(&schema.name),
            encode(&schema)?,
            WriteOptions::default(),
        )?;
        self.snapshot.put_schema(schema);
        Ok(())
    }

    /// Removes a schema.
    ///
    /// # Errors
    /// Those of the transaction layer.
    pub fn drop_schema(&mut self, name: &str) -> Result<()> {
        self.txn.delete(schema_key(name), WriteOptions::default())?;
        self.snapshot.remove_schema(name);
        Ok(())
    }

    /// Ends the statement: what the session plans with from now on.
    ///
    /// # Errors
    /// Those of the transaction layer.
    pub fn finish(self) -> Result<PendingDdl> {
        self.txn.put(
            version_key(),
            version_value(self.snapshot.version()),
            WriteOptions::default(),
        )?;
        Ok(PendingDdl {
            snapshot: Arc::new(self.snapshot),
            raised: self.raised,
        })
    }
}
