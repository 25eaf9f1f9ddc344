//! Reading tables: one partition per shard, in key order, at the transaction's
//! timestamp and merged with its own writes (the client does both).
//!
//! A scan knows the spans of keys that its filters leave over ([`spans`]). The
//! filters themselves stay above it in the plan until [`pushdown`] ships them
//! to the nodes. Statistics are never exact: DataFusion would answer `count(*)`
//! from them.

use super::errors::carry;
use super::spans::{Constraint as KeyConstraint, KeyColumn, constrain};
use crate::catalog::{IndexDescriptor, TableDescriptor};
use crate::error::{Result as SqlResult, SqlError};
use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::compute::SortOptions;
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Constraint, Constraints, Statistics};
use datafusion::datasource::TableType;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::empty::EmptyExec;
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
use lineradb_client::{FragmentRequest, ScanOptions, Span, Transaction};
use lineradb_common::sql::{RowBatchBuilder, RowLayout, datum_at, encode_key_datum};
use lineradb_functions::plan::{FragmentInput, PLAN_FORMAT_VERSION, encode};
use std::fmt;
use std::sync::Arc;

/// Partitions that many small spans are dealt to.
const SPAN_PARTITIONS: usize = 4;
/// Rows fetched by key at once.
const LOOKUP_ROWS: usize = 1024;

/// What a plan is executed with, as an extension of the session configuration.
pub struct Binding {
    /// The transaction that reads.
    pub transaction: Transaction,
}

/// A table of the catalog.
pub struct ShardTable {
    descriptor: Arc<TableDescriptor>,
    layout: Arc<RowLayout>,
    /// Positions of the visible columns in the layout.
    visible: Vec<usize>,
    schema: SchemaRef,
    /// The primary key: `GROUP BY` it, and the other columns are known.
    constraints: Constraints,
}

impl fmt::Debug for ShardTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardTable")
            .field("name", &self.descriptor.name)
            .finish_non_exhaustive()
    }
}

/// Key of the field metadata that says where a column comes from.
pub const ORIGIN_METADATA_KEY: &str = "lineradb.origin";

impl ShardTable {
    /// A table as a snapshot describes it; with its hidden row id or without.
    ///
    /// # Errors
    /// XX001 when the descriptor contradicts itself.
    pub fn new(descriptor: Arc<TableDescriptor>, row_ids: bool) -> SqlResult<Self> {
        let layout = Arc::new(descriptor.primary_layout()?);
        let mut visible = Vec::new();
        let mut fields = Vec::new();
        let schema = layout.schema();
        for (i, column) in descriptor.columns.iter().enumerate() {
            if column.hidden && !row_ids {
                continue;
            }
            visible.push(i);
            let field = schema.field(i).clone();
            let mut metadata = field.metadata().clone();
            metadata.insert(
                ORIGIN_METADATA_KEY.to_owned(),
                format!("{}:{}", descriptor.id, column.id),
            );
            fields.push(field.with_metadata(metadata));
        }
        let key: Option<Vec<usize>> = descriptor
            .primary
            .columns
            .iter()
            .map(|id| {
                visible
                    .iter()
                    .position(|at| descriptor.columns[*at].id == *id)
            })
            .collect();
        let constraints = match key {
            Some(key) if descriptor.has_primary_key() => {
                Constraints::new_unverified(vec![Constraint::PrimaryKey(key)])
            }
            _ => Constraints::default(),
        };
        Ok(Self {
            descriptor,
            layout,
            visible,
            schema: Arc::new(Schema::new(fields)),
            constraints,
        })
    }

    fn key_columns(&self, index: &IndexDescriptor) -> Vec<KeyColumn> {
        index
            .columns
            .iter()
            .filter_map(|id| self.descriptor.column_by_id(*id))
            .map(|c| KeyColumn {
                name: c.name.clone(),
                sql_type: c.sql_type,
            })
            .collect()
    }

    /// The index to read, with the spans of its keys.
    fn choose(&self, filters: &[Expr]) -> (IndexDescriptor, KeyConstraint) {
        let of = |index: &IndexDescriptor| {
            constrain(
                &self.descriptor.index_prefix(index.id),
                &self.key_columns(index),
                filters,
            )
        };
        let primary = of(&self.descriptor.primary);
        let score = |c: &KeyConstraint| (c.fixed, u8::from(c.bounds.0) + u8::from(c.bounds.1));
        let mut best = (self.descriptor.primary.clone(), primary);
        if best.1.fixed > 0 {
            return best;
        }
        for index in self.descriptor.public_indexes().skip(1) {
            let constraint = of(index);
            // Fetching rows one by one pays when few are expected: equality, or
            // a range with both ends.
            let pays = constraint.fixed > 0 || constraint.bounds == (true, true);
            if pays && score(&constraint) > score(&best.1) {
                best = (index.clone(), constraint);
            }
        }
        best
    }
}

#[async_trait]
impl TableProvider for ShardTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn constraints(&self) -> Option<&Constraints> {
        Some(&self.constraints)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let simplifier = ExprSimplifier::new(SimplifyContext::default());
        let filters: Vec<Expr> = filters
            .iter()
            .map(|f| simplifier.simplify(f.clone()).unwrap_or_else(|_| f.clone()))
            .collect();
        let projection: Vec<usize> = match projection {
            Some(p) => p.clone(),
            None => (0..self.schema.fields().len()).collect(),
        };
        let schema: SchemaRef = Arc::new(self.schema.project(&projection)?);
        let (index, constraint) = self.choose(&filters);
        if constraint.spans.is_empty() {
            return Ok(Arc::new(EmptyExec::new(schema)));
        }
        let wanted: Vec<usize> = projection
            .iter()
            .filter_map(|p| self.visible.get(*p).copied())
            .collect();
        let binding = state.config().get_extension::<Binding>();
        let primary = index.id == self.descriptor.primary.id;
        let (layout, columns) = if primary {
            (self.layout.clone(), Some(wanted.clone()))
        } else {
            let layout = self.descriptor.index_layout(&index).map_err(carry)?;
            let covered: Option<Vec<usize>> = wanted
                .iter()
                .map(|p| {
                    let id = self.layout.columns[*p].id;
                    layout.columns.iter().position(|c| c.id == id)
                })
                .collect();
            (Arc::new(layout), covered)
        };
        let source = Arc::new(Source {
            descriptor: self.descriptor.clone(),
            index: index.clone(),
            layout_bytes: layout.encode(),
            layout,
        });
        let spans = constraint.spans;
        match columns {
            Some(columns) => Ok(Arc::new(ShardScan::new(
                source,
                columns,
                schema,
                partitions(binding.as_deref(), spans),
            ))),
            None => Ok(Arc::new(IndexLookup::new(
                source,
                self.layout.clone(),
                wanted,
                schema,
                spans,
            ))),
        }
    }
}

/// One partition per shard for a single span; many spans are dealt out in order.
fn partitions(binding: Option<&Binding>, spans: Vec<Span>) -> Vec<Vec<Span>> {
    let Some(binding) = binding else {
        return vec![spans];
    };
    if spans.len() > 1 {
        let size = spans.len().div_ceil(SPAN_PARTITIONS);
        return spans.chunks(size).map(<[Span]>::to_vec).collect();
    }
    let mut out = Vec::new();
    for span in spans {
        let request = FragmentRequest {
            span,
            layout: Bytes::new(),
            plan_format_version: PLAN_FORMAT_VERSION,
            plan: Bytes::new(),
            reverse: false,
            limit: 0,
            table: None,
        };
        for part in binding.transaction.fragment(request) {
            out.push(vec![part.span().clone()]);
        }
    }
    out
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
    fn new(
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
fn conform(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
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
    fn new(
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
