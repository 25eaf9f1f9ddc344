//! What one statement is planned against: a catalog snapshot, the virtual
//! tables, and the settings of the session as they are when it starts.

use crate::catalog::CatalogSnapshot;
use crate::session::PreparedStatements;
use crate::settings::{SetRequests, Settings};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::logical_expr::ScalarUDF;
use lineradb_common::sql::ValueResult;
use std::fmt;
use std::sync::Arc;

/// Everything that planning looks at.
#[derive(Clone)]
pub struct QueryContext {
    /// The schema at the transaction's timestamp.
    pub catalog: Arc<CatalogSnapshot>,
    /// `pg_catalog`, `information_schema`, `lineradb_internal`.
    pub virtual_tables: Arc<dyn VirtualTables>,
    /// The session's settings, with the wall times of this statement.
    pub settings: Arc<Settings>,
    /// The session's prepared statements.
    pub prepared: Arc<PreparedStatements>,
    /// Where `set_config()` leaves what it is asked for.
    pub set_requests: Arc<SetRequests>,
    /// Hidden row ids can be named: for the row sources of UPDATE and DELETE.
    pub row_ids: bool,
}

impl fmt::Debug for QueryContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryContext").finish_non_exhaustive()
    }
}

/// A table made when a query reads it, from the catalog snapshot or from what the
/// cluster is doing.
#[async_trait]
pub trait VirtualTable: Send + Sync {
    /// Its columns; build the fields with `SqlType::field`, so that OIDs and
    /// names keep their types.
    fn schema(&self) -> SchemaRef;
    /// Its rows.
    ///
    /// # Errors
    /// When the rows cannot be built.
    async fn rows(&self, context: &QueryContext) -> ValueResult<RecordBatch>;
}

/// The tables of the system schemas, and the functions that need the catalog.
pub trait VirtualTables: Send + Sync {
    /// The table of that name (both parts in lower case); `schema` is
    /// `pg_catalog`, `information_schema` or `lineradb_internal`.
    fn table(&self, schema: &str, name: &str) -> Option<Arc<dyn VirtualTable>>;

    /// Functions over the catalog for one statement (`pg_get_expr`,
    /// `format_type`, ...). They win over functions of the same name.
    /// Called once per statement that is planned: keep it cheap.
    fn functions(&self, context: &QueryContext) -> Vec<Arc<ScalarUDF>> {
        let _ = context;
        Vec::new()
    }

    /// OID of a relation by name, for `'t'::regclass`.
    fn relation_oid(&self, context: &QueryContext, name: &str) -> Option<u32> {
        let _ = (context, name);
        None
    }

    /// Name of the relation with an OID, for `oid::regclass::text`.
    fn relation_name(&self, context: &QueryContext, oid: u32) -> Option<String> {
        let _ = (context, oid);
        None
    }
}

/// No virtual tables.
#[derive(Debug, Default)]
pub struct NoVirtualTables;

impl VirtualTables for NoVirtualTables {
    fn table(&self, _schema: &str, _name: &str) -> Option<Arc<dyn VirtualTable>> {
        None
    }
}
