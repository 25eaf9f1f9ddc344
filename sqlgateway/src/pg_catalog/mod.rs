//! `pg_catalog` and `information_schema`: what psql, drivers and ORMs ask before
//! they ask anything else.
//!
//! Everything is derived from the immutable [`CatalogSnapshot`]: tables and
//! indexes have the OIDs that the catalog gave them, so every gateway answers
//! the same. What depends on a snapshot alone is built once per snapshot and
//! relation. The columns are PostgreSQL 15's; relations that we have nothing
//! for exist and are empty. What shows the present (`lineradb_internal`,
//! `pg_stat_activity`) is asked for each time it is read.

mod cluster;
mod expand;
mod fixed;
mod function_list;
mod functions;
mod information_schema;
mod objects;
mod relations;
mod rewrite;
mod session;
mod tables;
mod types;

pub use cluster::Cluster;
pub use relations::is_system_schema;
pub use rewrite::rewrite_query;

use crate::catalog::CatalogSnapshot;
use crate::query::{QueryContext, VirtualTable, VirtualTables};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::logical_expr::ScalarUDF;
use functions::Lookup;
use lineradb_common::sql::ValueResult;
use objects::Objects;
use parking_lot::Mutex;
use relations::SystemRelation;
use std::sync::Arc;

/// The system relations of a gateway.
#[derive(Clone, Default)]
pub struct PgCatalog {
    /// Derived from the snapshot that was asked for last.
    last: Arc<Mutex<Option<Arc<Objects>>>>,
    /// Without one, nothing goes on.
    cluster: Option<Cluster>,
}

impl PgCatalog {
    /// Nothing is derived yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same for a cluster that shows what it is doing.
    pub fn of_cluster(cluster: Cluster) -> Self {
        PgCatalog {
            cluster: Some(cluster),
            ..Self::default()
        }
    }

    fn objects(&self, catalog: &Arc<CatalogSnapshot>) -> Arc<Objects> {
        let mut last = self.last.lock();
        match &*last {
            // By identity: a snapshot with uncommitted DDL shares its version
            // with others.
            Some(objects) if Arc::ptr_eq(&objects.catalog, catalog) => Arc::clone(objects),
            _ => {
                let objects = Arc::new(Objects::new(Arc::clone(catalog)));
                *last = Some(Arc::clone(&objects));
                objects
            }
        }
    }
}

impl VirtualTables for PgCatalog {
    fn table(&self, schema: &str, name: &str) -> Option<Arc<dyn VirtualTable>> {
        let relation = relations::find(schema, name)?;
        Some(Arc::new(Table {
            relation,
            catalog: self.clone(),
        }))
    }

    fn functions(&self, context: &QueryContext) -> Vec<Arc<ScalarUDF>> {
        functions::bind(&Arc::new(Lookup {
            objects: self.objects(&context.catalog),
            settings: Arc::clone(&context.settings),
            set_requests: Arc::clone(&context.set_requests),
        }))
    }

    fn relation_oid(&self, context: &QueryContext, name: &str) -> Option<u32> {
        self.objects(&context.catalog)
            .relation_oid(name, &context.settings.search_path)
    }

    fn relation_name(&self, context: &QueryContext, oid: u32) -> Option<String> {
        self.objects(&context.catalog)
            .relation_name(oid, &context.settings.search_path)
    }
}

struct Table {
    relation: &'static SystemRelation,
    catalog: PgCatalog,
}

#[async_trait]
impl VirtualTable for Table {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.relation.arrow)
    }

    async fn rows(&self, context: &QueryContext) -> ValueResult<RecordBatch> {
        if let Some(cluster) = &self.catalog.cluster
            && let Some(rows) = cluster.rows(self.relation, context).await
        {
            return rows;
        }
        if self.relation.schema == "pg_catalog"
            && let Some(rows) = session::session_rows(self.relation, context)
        {
            return rows;
        }
        let objects = self.catalog.objects(&context.catalog);
        let key = self.relation.name;
        if let Some(batch) = objects.batches.lock().get(key) {
            return Ok(batch.clone());
        }
        let batch = match self.relation.schema {
            "pg_catalog" => tables::rows(self.relation, &objects)?,
            "information_schema" => information_schema::rows(self.relation, &objects)?,
            _ => tables::Rows::new(self.relation).finish()?,
        };
        objects.batches.lock().insert(key, batch.clone());
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{ColumnDescriptor, IndexDescriptor, IndexState, TableDescriptor};
    use crate::settings::Settings;
    use arrow::util::pretty::pretty_format_batches;
    use lineradb_common::sql::SqlType;

    fn context() -> QueryContext {
        let column = |id: u32, name: &str, sql_type, default: Option<&str>| ColumnDescriptor {
            id,
            name: name.to_owned(),
            sql_type,
            nullable: id != 1,
            default: default.map(str::to_owned),
            missing: None,
            hidden: false,
        };
        let index = |id: u32, oid: u32, constraint_oid: u32, name: &str, unique| IndexDescriptor {
            id,
            oid,
            constraint_oid,
            name: name.to_owned(),
            unique,
            columns: vec![id],
            state: IndexState::Public,
        };
        let table = TableDescriptor {
            format: 1,
            id: 16_400,
            schema: "public".to_owned(),
            name: "t".to_owned(),
            version: 1,
            columns: vec![
                column(1, "id", SqlType::Int8, None),
                column(2, "name", SqlType::Varchar(Some(20)), Some("'x'")),
            ],
            next_column_id: 3,
            primary: index(1, 16_401, 16_402, "t_pkey", true),
            indexes: vec![index(2, 16_403, 0, "t_name", false)],
            next_index_id: 3,
            pending_primary: None,
        };
        QueryContext {
            catalog: Arc::new(CatalogSnapshot::new(1, [], [Arc::new(table)])),
            virtual_tables: Arc::new(PgCatalog::new()),
            settings: Arc::new(Settings::default()),
            prepared: Arc::default(),
            set_requests: Arc::default(),
            row_ids: false,
        }
    }

    #[tokio::test]
    async fn every_relation_builds() {
        let context = context();
        for relation in relations::all() {
            let table = context.virtual_tables.table(relation.schema, relation.name);
            let table = table.unwrap();
            let batch = table
                .rows(&context)
                .await
                .unwrap_or_else(|error| panic!("{}: {error}", relation.name));
            assert_eq!(batch.schema(), table.schema());
            if relations::is_always_empty(relation.name) {
                assert_eq!(batch.num_rows(), 0, "{}", relation.name);
            }
        }
    }

    #[tokio::test]
    async fn an_index_is_described_as_it_was_made() {
        let context = context();
        let table = context.virtual_tables.table("pg_catalog", "pg_indexes");
        let batch = table.unwrap().rows(&context).await.unwrap();
        let text = pretty_format_batches(&[batch]).unwrap().to_string();
        for definition in [
            "CREATE UNIQUE INDEX t_pkey ON public.t USING btree (id)",
            "CREATE INDEX t_name ON public.t USING btree (name)",
        ] {
            assert!(text.contains(definition), "{text}");
        }
    }

    #[test]
    fn names_and_oids_of_relations() {
        let context = context();
        let tables = &context.virtual_tables;
        assert_eq!(tables.relation_oid(&context, "t"), Some(16_400));
        assert_eq!(tables.relation_oid(&context, "public.t_pkey"), Some(16_401));
        assert_eq!(tables.relation_oid(&context, "nope"), None);
        assert_eq!(tables.relation_name(&context, 16_400).as_deref(), Some("t"));
        assert_eq!(tables.relation_name(&context, 1), None);
    }

    #[test]
    fn a_thousand_tables_are_derived_once() {
        let context = context();
        let catalog = PgCatalog::new();
        let first = catalog.objects(&context.catalog);
        assert!(Arc::ptr_eq(&first, &catalog.objects(&context.catalog)));
        let other = Arc::new(CatalogSnapshot::default());
        assert!(!Arc::ptr_eq(&first, &catalog.objects(&other)));
    }
}
