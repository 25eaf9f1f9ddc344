//! Virtual tables as DataFusion sees them: one batch, made when it is read.

use super::context::{QueryContext, VirtualTable};
use super::errors::carry;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use std::fmt;
use std::sync::Arc;

/// A virtual table within one statement.
pub struct VirtualProvider {
    table: Arc<dyn VirtualTable>,
    context: QueryContext,
    schema: SchemaRef,
}

impl VirtualProvider {
    /// A table for a statement.
    pub fn new(table: Arc<dyn VirtualTable>, context: QueryContext) -> Self {
        let schema = table.schema();
        Self {
            table,
            context,
            schema,
        }
    }
}

impl fmt::Debug for VirtualProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualProvider").finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for VirtualProvider {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let batch = self.table.rows(&self.context).await.map_err(carry)?;
        let plan = MemorySourceConfig::try_new_exec(
            &[vec![batch]],
            self.schema.clone(),
            projection.cloned(),
        )?;
        Ok(plan)
    }
}
