//! The catalog as of one catalog version: immutable, with hash look-ups.

use super::{IndexDescriptor, SchemaDescriptor, TableDescriptor};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The catalog as of one catalog version.
#[derive(Clone, Debug, Default)]
pub struct CatalogSnapshot {
    version: u64,
    schemas: BTreeMap<String, SchemaDescriptor>,
    tables: BTreeMap<u32, Arc<TableDescriptor>>,
    names: HashMap<(String, String), u32>,
}

/// A relation found by name.
#[derive(Clone, Debug)]
pub enum Relation {
    /// A table.
    Table(Arc<TableDescriptor>),
    /// An index, with its table.
    Index(Arc<TableDescriptor>, IndexDescriptor),
}

impl CatalogSnapshot {
    /// From its parts.
    pub fn new(
        version: u64,
        schemas: impl IntoIterator<Item = SchemaDescriptor>,
        tables: impl IntoIterator<Item = Arc<TableDescriptor>>,
    ) -> Self {
        let mut snapshot = CatalogSnapshot {
            version,
            schemas: schemas.into_iter().map(|s| (s.name.clone(), s)).collect(),
            ..Self::default()
        };
        for table in tables {
            snapshot.put_table(table);
        }
        snapshot
    }

    /// Raised by every DDL. Snapshots that hold uncommitted DDL of a session
    /// carry the version that they will have.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// All schemas by name.
    pub fn schemas(&self) -> impl Iterator<Item = &SchemaDescriptor> {
        self.schemas.values()
    }

    /// A schema by name.
    pub fn schema(&self, name: &str) -> Option<&SchemaDescriptor> {
        self.schemas.get(name)
    }

    /// All tables in order of their OIDs.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<TableDescriptor>> {
        self.tables.values()
    }

    /// A table by OID.
    pub fn table_by_id(&self, id: u32) -> Option<&Arc<TableDescriptor>> {
        self.tables.get(&id)
    }

    /// A table by schema and name.
    pub fn table(&self, schema: &str, name: &str) -> Option<&Arc<TableDescriptor>> {
        match self.relation(schema, name)? {
            id if self.tables.contains_key(&id) => self.tables.get(&id),
            _ => None,
        }
    }

    /// A table by name: in `schema` when given, else in the first schema of
    /// `search_path` that has it.
    pub fn resolve(
        &self,
        schema: Option<&str>,
        name: &str,
        search_path: &[String],
    ) -> Option<&Arc<TableDescriptor>> {
        match schema {
            Some(schema) => self.table(schema, name),
            None => search_path.iter().find_map(|s| self.table(s, name)),
        }
    }

    /// An index by schema and name, with its table.
    pub fn index(
        &self,
        schema: &str,
        name: &str,
    ) -> Option<(&Arc<TableDescriptor>, &IndexDescriptor)> {
        let oid = self.relation(schema, name)?;
        self.tables.values().find_map(|t| {
            t.indexes
                .iter()
                .chain(std::iter::once(&t.primary))
                .find(|i| i.oid == oid && t.schema == schema)
                .map(|i| (t, i))
        })
    }

    /// The OID of the table or index that has a name; they share one space.
    pub fn relation(&self, schema: &str, name: &str) -> Option<u32> {
        self.names
            .get(&(schema.to_owned(), name.to_owned()))
            .copied()
    }

    /// Adds or replaces a table, and the names of its indexes.
    pub fn put_table(&mut self, table: Arc<TableDescriptor>) {
        self.remove_table(table.id);
        let key = |name: &str| (table.schema.clone(), name.to_owned());
        self.names.insert(key(&table.name), table.id);
        if table.has_primary_key() {
            self.names
                .insert(key(&table.primary.name), table.primary.oid);
        }
        for index in &table.indexes {
            self.names.insert(key(&index.name), index.oid);
        }
        self.tables.insert(table.id, table);
    }

    /// Removes a table.
    pub fn remove_table(&mut self, id: u32) {
        if let Some(old) = self.tables.remove(&id) {
            self.names.retain(|_, oid| {
                *oid != id && *oid != old.primary.oid && old.indexes.iter().all(|i| i.oid != *oid)
            });
        }
    }

    /// Adds a schema.
    pub fn put_schema(&mut self, schema: SchemaDescriptor) {
        self.schemas.insert(schema.name.clone(), schema);
    }

    /// Removes a schema.
    pub fn remove_schema(&mut self, name: &str) {
        self.schemas.remove(name);
    }

    /// Says which version it is.
    pub fn set_version(&mut self, version: u64) {
        self.version = version;
    }
}
