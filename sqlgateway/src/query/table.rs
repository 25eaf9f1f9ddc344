//! A table as DataFusion sees it: its columns, its key, and the choice of the
//! index that a condition is looked up in.

use super::errors::carry;
use super::lookup::IndexLookup;
use super::scan::{Binding, ShardScan, Source};
use super::spans::{Constraint as KeyConstraint, KeyColumn, constrain};
use crate::catalog::{IndexDescriptor, TableDescriptor};
use crate::error::Result as SqlResult;
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Constraint, Constraints};
use datafusion::datasource::TableType;
use datafusion::error::Result;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use lineradb_client::{FragmentRequest, Span};
use lineradb_common::sql::RowLayout;
use lineradb_functions::nullable::ORIGIN_METADATA_KEY;
use lineradb_functions::plan::PLAN_FORMAT_VERSION;
use std::fmt;
use std::sync::Arc;

/// Partitions that many small spans are dealt to.
const SPAN_PARTITIONS: usize = 4;

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
