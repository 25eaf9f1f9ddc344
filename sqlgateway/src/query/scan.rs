//! Reading tables: one partition per shard, in key order, at the transaction's
//! timestamp and merged with its own writes (the client does both).
//!
//! A scan knows the spans of keys that its filters leave over ([`spans`]). The
//! filters themselves stay above it in the plan until [`pushdown`] ships them
//! to the nodes. Statistics are never exact: DataFusion would answer `count(*)`
//! from them.

use super::errors::carry;
use crate::catalog::{IndexDescriptor, TableDescriptor};
use crate::error::SqlError;
use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::compute::SortOptions;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use datafusion::common::Statistics;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::execution_plan::{
    Boundedness, EmissionType, ReplaceChildrenOptions, SchedulingType,
};
use datafusion::physical_plan::metrics::{
    BaselineMetrics, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet,
};
use datafusion::physical_plan::sort_pushdown::SortOrderPushdownResult;
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
};
use futures::{StreamExt, TryStreamExt};
use lineradb_client::{FragmentRequest, Span, Transaction};
use lineradb_common::sql::RowLayout;
use lineradb_functions::plan::{FragmentInput, PLAN_FORMAT_VERSION, encode};
use std::fmt;
use std::sync::Arc;

/// What a plan is executed with, as an extension of the session configuration.
pub struct Binding {
    /// The transaction that reads.
    pub transaction: Transaction,
}

/// An index of a table, as scans read it.
#[derive(Debug)]
pub struct Source {
    /// The table.
    pub descriptor: Arc<TableDescriptor>,
    /// The index.
    pub index: IndexDescriptor,
    /// How its entries decode.
    pub layout: Arc<RowLayout>,
    /// The same, encoded.
    pub layout_bytes: Bytes,
}

/// A piece of the plan that runs at the nodes.
#[derive(Clone, Debug)]
pub struct Shipped {
    /// The encoded plan.
    pub plan: Bytes,
    /// For EXPLAIN, top first.
    pub display: Vec<String>,
    /// Output rows after which nothing more is needed.
    pub limit: Option<usize>,
}

/// A scan of an index, partitioned by shards.
#[derive(Debug, Clone)]
pub struct ShardScan {
    source: Arc<Source>,
    /// Columns read, as positions in the layout.
    columns: Vec<usize>,
    input_schema: SchemaRef,
    partitions: Arc<Vec<Vec<Span>>>,
    reverse: bool,
    fetch: Option<usize>,
    shipped: Option<Shipped>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl ShardScan {
    pub(super) fn new(
        source: Arc<Source>,
        columns: Vec<usize>,
        schema: SchemaRef,
        partitions: Vec<Vec<Span>>,
    ) -> Self {
        let properties = scan_properties(&source, &columns, &schema, partitions.len(), false);
        Self {
            source,
            columns,
            input_schema: schema,
            partitions: Arc::new(partitions),
            reverse: false,
            fetch: None,
            shipped: None,
            properties,
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }

    /// True while nothing was shipped with it.
    pub fn is_bare(&self) -> bool {
        self.shipped.is_none()
    }

    /// The leaf that stands for it at the node.
    pub fn leaf(&self) -> FragmentInput {
        FragmentInput::new(self.columns.clone(), self.input_schema.clone())
    }

    /// The scan with a plan that runs at the nodes; its output is described by
    /// `properties` up to the partitioning.
    pub fn with_shipped(&self, shipped: Shipped, equivalences: EquivalenceProperties) -> Self {
        Self {
            shipped: Some(shipped),
            properties: Arc::new(
                PlanProperties::new(
                    equivalences,
                    Partitioning::UnknownPartitioning(self.partitions.len()),
                    EmissionType::Incremental,
                    Boundedness::Bounded,
                )
                .with_scheduling_type(SchedulingType::Cooperative),
            ),
            metrics: ExecutionPlanMetricsSet::new(),
            ..self.clone()
        }
    }

    fn request(&self, span: Span, plan: Bytes) -> FragmentRequest {
        let limit = self.shipped.as_ref().and_then(|s| s.limit).or(self.fetch);
        FragmentRequest {
            span,
            layout: self.source.layout_bytes.clone(),
            plan_format_version: PLAN_FORMAT_VERSION,
            plan,
            reverse: self.reverse,
            limit: limit.map_or(0, |l| l as u64),
            table: Some(self.source.descriptor.table_version()),
        }
    }
}

fn scan_properties(
    source: &Source,
    columns: &[usize],
    schema: &SchemaRef,
    partitions: usize,
    reverse: bool,
) -> Arc<PlanProperties> {
    let mut equivalences = EquivalenceProperties::new(schema.clone());
    let ordering = key_ordering(source, columns, schema, reverse);
    if !ordering.is_empty() {
        equivalences.add_ordering(ordering);
    }
    Arc::new(
        PlanProperties::new(
            equivalences,
            Partitioning::UnknownPartitioning(partitions.max(1)),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        .with_scheduling_type(SchedulingType::Cooperative),
    )
}

/// The order of the rows within a partition: the leading key columns that are
/// read.
fn key_ordering(
    source: &Source,
    columns: &[usize],
    schema: &SchemaRef,
    reverse: bool,
) -> Vec<PhysicalSortExpr> {
    let mut out = Vec::new();
    for id in &source.index.columns {
        let found = columns
            .iter()
            .position(|p| source.layout.columns.get(*p).is_some_and(|c| c.id == *id));
        let Some(position) = found else { break };
        out.push(PhysicalSortExpr::new(
            Arc::new(Column::new(schema.field(position).name(), position)),
            SortOptions {
                descending: reverse,
                nulls_first: reverse,
            },
        ));
    }
    out
}

impl DisplayAs for ShardScan {
    fn fmt_as(&self, t: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let descriptor = &self.source.descriptor;
        write!(f, "ShardScan: {}.{}", descriptor.schema, descriptor.name)?;
        if self.source.index.id != descriptor.primary.id {
            write!(f, " using {}", self.source.index.name)?;
        }
        let names: Vec<&str> = self
            .input_schema
            .fields()
            .iter()
            .map(|f| f.name().as_str())
            .collect();
        let spans: usize = self.partitions.iter().map(Vec::len).sum();
        write!(
            f,
            ", columns=[{}], partitions={}, spans={spans}",
            names.join(", "),
            self.partitions.len()
        )?;
        if self.reverse {
            write!(f, ", reverse")?;
        }
        if let Some(fetch) = self.fetch {
            write!(f, ", fetch={fetch}")?;
        }
        if let Some(shipped) = &self.shipped {
            write!(f, ", at the nodes=[{}]", shipped.display.join(" <- "))?;
            if let Some(limit) = shipped.limit {
                write!(f, ", limit={limit}")?;
            }
        }
        if matches!(t, DisplayFormatType::Verbose) {
            for span in self.partitions.iter().flatten().take(8) {
                write!(
                    f,
                    " [{}, {})",
                    hex::encode(&span.start),
                    hex::encode(&span.end)
                )?;
            }
        }
        Ok(())
    }
}

impl ExecutionPlan for ShardScan {
    fn name(&self) -> &str {
        "ShardScan"
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
        let plan = match &self.shipped {
            Some(shipped) => shipped.plan.clone(),
            None => encode(Arc::new(self.leaf()))?,
        };
        let mut spans = self.partitions.get(partition).cloned().unwrap_or_default();
        if self.reverse {
            spans.reverse();
        }
        let requests: Vec<FragmentRequest> = spans
            .into_iter()
            .map(|span| self.request(span, plan.clone()))
            .collect();
        let schema = self.schema();
        let out_schema = schema.clone();
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let pages = MetricBuilder::new(&self.metrics).counter("pages", partition);
        let limit = self.shipped.as_ref().and_then(|s| s.limit).or(self.fetch);
        let transaction = binding.transaction.clone();
        let stream = futures::stream::iter(requests)
            .flat_map(move |request| futures::stream::iter(transaction.fragment(request)))
            .flat_map(|part| part.stream())
            .map(move |page| {
                let page = page.map_err(|e| carry(SqlError::from(e)))?;
                pages.add(1);
                metrics.record_output(page.num_rows());
                conform(page, &schema)
            });
        let stream = match limit {
            None => stream.boxed(),
            Some(limit) => limited(stream.boxed(), limit).boxed(),
        };
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

    // `supports_limit_pushdown` stays false: it means that a limit passes through
    // to children, and on a leaf the limit would be lost.
    fn with_fetch(&self, limit: Option<usize>) -> Option<Arc<dyn ExecutionPlan>> {
        if self.shipped.is_some() {
            return None;
        }
        Some(Arc::new(Self {
            fetch: limit,
            ..self.clone()
        }))
    }

    fn fetch(&self) -> Option<usize> {
        self.fetch
    }

    fn try_pushdown_sort(
        &self,
        order: &[PhysicalSortExpr],
    ) -> Result<SortOrderPushdownResult<Arc<dyn ExecutionPlan>>> {
        if self.shipped.is_some() || self.fetch.is_some() || order.is_empty() {
            return Ok(SortOrderPushdownResult::Unsupported);
        }
        let ours = key_ordering(
            &self.source,
            &self.columns,
            &self.input_schema,
            !self.reverse,
        );
        let matches = order.len() <= ours.len()
            && order
                .iter()
                .zip(&ours)
                .all(|(a, b)| a.expr.eq(&b.expr) && a.options == b.options);
        if !matches {
            return Ok(SortOrderPushdownResult::Unsupported);
        }
        let inner = Self {
            reverse: !self.reverse,
            properties: scan_properties(
                &self.source,
                &self.columns,
                &self.input_schema,
                self.partitions.len(),
                !self.reverse,
            ),
            ..self.clone()
        };
        Ok(SortOrderPushdownResult::Exact {
            inner: Arc::new(inner),
        })
    }
}

/// The same columns under the schema that the plan was made with.
pub(super) fn conform(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(
        schema.clone(),
        batch.columns().to_vec(),
        &options,
    )?)
}

/// Ends a stream after a number of rows.
fn limited(
    stream: futures::stream::BoxStream<'static, Result<RecordBatch>>,
    limit: usize,
) -> impl futures::Stream<Item = Result<RecordBatch>> + Send {
    futures::stream::try_unfold((stream, limit), |(mut stream, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        match stream.try_next().await? {
            None => Ok(None),
            Some(batch) => {
                let batch = if batch.num_rows() > left {
                    batch.slice(0, left)
                } else {
                    batch
                };
                let left = left - batch.num_rows();
                Ok(Some((batch, (stream, left))))
            }
        }
    })
}
