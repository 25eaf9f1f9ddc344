//! Rows found through a secondary index that does not hold all their columns.

use super::errors::carry;
use super::scan::{Binding, Source, conform};
use crate::error::{Result as SqlResult, SqlError};
use arrow::compute::SortOptions;
use arrow::datatypes::SchemaRef;
use bytes::{Bytes, BytesMut};
use datafusion::common::Statistics;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::execution_plan::{
    Boundedness, EmissionType, ReplaceChildrenOptions, SchedulingType,
};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
};
use futures::{StreamExt, TryStreamExt};
use lineradb_client::{ScanOptions, Span};
use lineradb_common::sql::{RowBatchBuilder, RowLayout, datum_at, encode_key_datum};
use std::fmt;
use std::sync::Arc;

/// Rows fetched by key at once.
const LOOKUP_ROWS: usize = 1024;

/// Rows found through a secondary index that does not hold all their columns:
/// its entries give primary keys, and the rows are fetched by those.
#[derive(Debug)]
pub struct IndexLookup {
    source: Arc<Source>,
    primary: Arc<RowLayout>,
    columns: Vec<usize>,
    spans: Vec<Span>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl IndexLookup {
    pub(super) fn new(
        source: Arc<Source>,
        primary: Arc<RowLayout>,
        columns: Vec<usize>,
        schema: SchemaRef,
        spans: Vec<Span>,
    ) -> Self {
        // In the order of the index: its columns, if they are read.
        let mut equivalences = EquivalenceProperties::new(schema.clone());
        let mut ordering = Vec::new();
        for id in &source.index.columns {
            let found = columns
                .iter()
                .position(|p| primary.columns.get(*p).is_some_and(|c| c.id == *id));
            let Some(position) = found else { break };
            ordering.push(PhysicalSortExpr::new(
                Arc::new(Column::new(schema.field(position).name(), position)),
                SortOptions {
                    descending: false,
                    nulls_first: false,
                },
            ));
        }
        if !ordering.is_empty() {
            equivalences.add_ordering(ordering);
        }
        let properties = PlanProperties::new(
            equivalences,
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        Self {
            source,
            primary,
            columns,
            spans,
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }
}

impl DisplayAs for IndexLookup {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let descriptor = &self.source.descriptor;
        write!(
            f,
            "IndexLookup: {}.{} using {}, spans={}",
            descriptor.schema,
            descriptor.name,
            self.source.index.name,
            self.spans.len()
        )
    }
}

impl ExecutionPlan for IndexLookup {
    fn name(&self) -> &str {
        "IndexLookup"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let Some(binding) = context.session_config().get_extension::<Binding>() else {
            return Err(carry(SqlError::internal("a scan outside of a transaction")));
        };
        let schema = self.schema();
        let out_schema = schema.clone();
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let transaction = binding.transaction.clone();
        let (source, primary, columns) = (
            self.source.clone(),
            self.primary.clone(),
            self.columns.clone(),
        );
        let scan = transaction.clone();
        let version = source.descriptor.table_version();
        let entries = futures::stream::iter(self.spans.clone()).flat_map(move |span| {
            scan.scan_stream(
                span,
                ScanOptions {
                    reverse: false,
                    limit: 0,
                },
                Some(version),
            )
        });
        let stream = entries
            .map_err(|e| carry(SqlError::from(e)))
            .then(move |page| {
                let (transaction, source, primary) =
                    (transaction.clone(), source.clone(), primary.clone());
                let (columns, schema, metrics) = (columns.clone(), schema.clone(), metrics.clone());
                async move {
                    let page = page?;
                    let keys = primary_keys(&source, &page).map_err(carry)?;
                    let mut builder = RowBatchBuilder::new(primary, Some(&columns));
                    for chunk in keys.chunks(LOOKUP_ROWS) {
                        let rows = transaction
                            .multi_get(chunk, Some(version))
                            .await
                            .map_err(|e| carry(SqlError::from(e)))?;
                        for (key, row) in chunk.iter().zip(rows) {
                            let Some(row) = row else {
                                return Err(carry(SqlError::new(
                                    "XX001",
                                    format!(
                                        "index \"{}\" has an entry without a row",
                                        source.index.name
                                    ),
                                )));
                            };
                            builder.push(key, &row).map_err(carry)?;
                        }
                    }
                    let batch = builder.finish().map_err(carry)?;
                    metrics.record_output(batch.num_rows());
                    conform(batch, &schema)
                }
            });
        Ok(Box::pin(RecordBatchStreamAdapter::new(out_schema, stream)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn statistics_from_inputs(
        &self,
        _: &[Arc<Statistics>],
        _: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        Ok(Arc::new(Statistics::new_unknown(&self.schema())))
    }
}

/// The primary keys that entries of an index point to, in their order.
fn primary_keys(source: &Source, entries: &[(Bytes, Bytes)]) -> SqlResult<Vec<Bytes>> {
    let descriptor = &source.descriptor;
    let mut columns = Vec::with_capacity(descriptor.primary.columns.len());
    let mut types = Vec::with_capacity(columns.capacity());
    for id in &descriptor.primary.columns {
        let found = source.layout.columns.iter().position(|c| c.id == *id);
        let Some(position) = found else {
            return Err(SqlError::new(
                "XX001",
                "an index entry without its primary key",
            ));
        };
        columns.push(position);
        types.push(source.layout.columns[position].sql_type);
    }
    let mut builder = RowBatchBuilder::new(source.layout.clone(), Some(&columns));
    for (key, value) in entries {
        builder.push(key, value)?;
    }
    let batch = builder.finish()?;
    let prefix = descriptor.index_prefix(descriptor.primary.id);
    let mut out = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let mut key = BytesMut::from(prefix.as_ref());
        for (i, sql_type) in types.iter().enumerate() {
            let value = datum_at(batch.column(i).as_ref(), row, *sql_type)?;
            encode_key_datum(&value, &mut key)?;
        }
        out.push(key.freeze());
    }
    Ok(out)
}
