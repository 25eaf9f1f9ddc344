//! Scalar expressions outside of queries: DEFAULT, SET, RETURNING, conditions
//! of DML. They go through the same rewrites and checks as those in a SELECT.

use super::context::QueryContext;
use super::engine::{QueryEngine, by_name, parser_options, planner_context, result_column};
use super::errors::sql_error;
use super::names::name_items;
use super::placeholders::Known;
use super::planner::Names;
use super::rewrite::rewrite_expression;
use super::semantics::{implicit_casts, operators};
use crate::error::{Result, SqlError};
use crate::session::ResultColumn;
use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Field, FieldRef, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, TableReference};
use datafusion::execution::SessionState;
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, ExprSchemable};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::sql::planner::SqlToRel;
use datafusion::sql::sqlparser::ast::{SelectItem, SelectItemQualifiedWildcardKind};
use lineradb_common::sql::{Datum, SqlType};
use std::ops::Range;
use std::sync::Arc;

/// What expressions may refer to: the fields of a batch, by qualifier.
#[derive(Clone, Debug)]
pub struct ExpressionScope {
    /// The batch.
    pub schema: SchemaRef,
    /// Which fields belong to which name: `("t", 0..3), ("excluded", 3..6)`.
    /// `*` means the fields of the first one.
    pub qualifiers: Vec<(String, Range<usize>)>,
}

impl ExpressionScope {
    /// No fields at all: DEFAULT.
    pub fn empty() -> Self {
        Self {
            schema: Arc::new(Schema::empty()),
            qualifiers: Vec::new(),
        }
    }

    fn df_schema(&self) -> Result<DFSchema> {
        let mut fields: Vec<(Option<TableReference>, Arc<Field>)> = self
            .schema
            .fields()
            .iter()
            .map(|f| (None, f.clone()))
            .collect();
        for (name, range) in &self.qualifiers {
            for i in range.clone() {
                if let Some(field) = fields.get_mut(i) {
                    field.0 = Some(TableReference::bare(name.as_str()));
                }
            }
        }
        DFSchema::new_with_metadata(fields, Default::default()).map_err(sql_error)
    }
}

/// Expressions ready to run over batches of their scope.
pub struct Compiled {
    /// What they return.
    pub columns: Vec<ResultColumn>,
    /// Types of `$1`, `$2`, ... that they use; those that they do not use have
    /// the type that was given, or text.
    pub parameter_types: Vec<SqlType>,
    /// False when the clock or the session was folded in.
    pub cacheable: bool,
    expressions: Vec<Expr>,
    physical: Option<Vec<Arc<dyn PhysicalExpr>>>,
    df_schema: Arc<DFSchema>,
    state: Arc<SessionState>,
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiled")
            .field("columns", &self.columns)
            .finish_non_exhaustive()
    }
}

impl QueryEngine {
    /// Compiles a select list over a batch.
    ///
    /// # Errors
    /// As the analysis of a SELECT; 0A000 for subqueries, 42803 for aggregates.
    pub fn compile(
        &self,
        context: &QueryContext,
        scope: &ExpressionScope,
        items: &[SelectItem],
        parameter_types: &[Option<SqlType>],
    ) -> Result<Compiled> {
        let state = self.state();
        let df_schema = scope.df_schema()?;
        let mut items = items.to_vec();
        name_items(&mut items);
        let names = Names::new(state, context);
        let relations = SqlToRel::new_with_options(&names, parser_options());
        let mut planner = planner_context(parameter_types);
        let simplifier = ExprSimplifier::new(
            SimplifyContext::builder()
                .with_schema(Arc::new(df_schema.clone()))
                .build(),
        );
        let mut expressions = Vec::new();
        let mut columns = Vec::new();
        let mut known = Known::declared(parameter_types);
        for item in items {
            let (mut sql, name) = match item {
                SelectItem::UnnamedExpr(expr) => (expr, None),
                SelectItem::ExprWithAlias { expr, alias } => (expr, Some(alias.value)),
                SelectItem::Wildcard(_) => {
                    let range = scope
                        .qualifiers
                        .first()
                        .map_or(0..scope.schema.fields().len(), |q| q.1.clone());
                    wildcard(scope, &df_schema, range, &mut expressions, &mut columns);
                    continue;
                }
                SelectItem::QualifiedWildcard(
                    SelectItemQualifiedWildcardKind::ObjectName(table),
                    _,
                ) => {
                    let wanted = table.to_string().to_lowercase();
                    let found = scope.qualifiers.iter().find(|q| q.0 == wanted);
                    let Some((_, range)) = found else {
                        return Err(SqlError::new(
                            "42P01",
                            format!("missing FROM-clause entry for table \"{wanted}\""),
                        ));
                    };
                    wildcard(
                        scope,
                        &df_schema,
                        range.clone(),
                        &mut expressions,
                        &mut columns,
                    );
                    continue;
                }
                other => return Err(SqlError::unsupported(other)),
            };
            rewrite_expression(&mut sql)?;
            let (expr, _) = relations
                .sql_to_expr(sql, &df_schema, &mut planner)
                .and_then(|e| e.infer_placeholder_types(&df_schema))
                .map_err(sql_error)?;
            known.learn(&expr, &df_schema).map_err(sql_error)?;
            columns.push(ResultColumn::new(
                name.unwrap_or_default(),
                SqlType::Unknown,
            ));
            expressions.push(expr);
        }
        drop(relations);
        // A parameter has one type in all of them.
        let text: FieldRef = Arc::new(SqlType::Text.field("", true));
        for (expr, column) in expressions.iter_mut().zip(&mut columns) {
            // Of `*`: it is known already.
            if column.sql_type != SqlType::Unknown {
                continue;
            }
            let bare = known.apply(std::mem::take(expr), &text);
            let bare = bare.map_err(sql_error)?.data;
            check_scalar(&bare)?;
            *expr = operators(bare, &df_schema, &context.settings)
                .and_then(|e| simplifier.coerce(e, &df_schema))
                .and_then(|e| implicit_casts(e, &df_schema, &context.settings))
                .and_then(|e| simplifier.simplify(e))
                .map_err(sql_error)?;
            let (_, field) = expr.to_field(&df_schema).map_err(sql_error)?;
            let name = super::names::plain(&column.name).to_owned();
            *column = result_column(&field);
            if !name.is_empty() {
                column.name = name;
            }
        }
        let notes = names.into_notes();
        let parameter_types = parameter_types_of(&expressions, parameter_types)?;
        let mut compiled = Compiled {
            columns,
            parameter_types,
            cacheable: !notes.bound_to_statement,
            expressions,
            physical: None,
            df_schema: Arc::new(df_schema),
            state: state.clone(),
        };
        if !compiled.expressions.iter().any(has_placeholder) {
            compiled.physical = Some(compiled.physical(&compiled.expressions)?);
        }
        Ok(compiled)
    }
}

fn wildcard(
    scope: &ExpressionScope,
    df_schema: &DFSchema,
    range: Range<usize>,
    expressions: &mut Vec<Expr>,
    columns: &mut Vec<ResultColumn>,
) {
    for i in range {
        if i >= scope.schema.fields().len() {
            continue;
        }
        let (qualifier, field) = df_schema.qualified_field(i);
        expressions.push(Expr::Column(datafusion::common::Column::from((
            qualifier, field,
        ))));
        columns.push(result_column(field));
    }
}

fn check_scalar(expr: &Expr) -> Result<()> {
    let mut error = None;
    let _ = expr.apply(|e| {
        match e {
            Expr::AggregateFunction(_) => {
                error = Some(SqlError::new(
                    "42803",
                    "aggregate functions are not allowed here",
                ));
            }
            Expr::WindowFunction(_) => {
                error = Some(SqlError::new(
                    "42P20",
                    "window functions are not allowed here",
                ));
            }
            Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_) => {
                error = Some(SqlError::unsupported("a subquery in this place"));
            }
            _ => {}
        }
        Ok(match error {
            Some(_) => TreeNodeRecursion::Stop,
            None => TreeNodeRecursion::Continue,
        })
    });
    match error {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn has_placeholder(expr: &Expr) -> bool {
    expr.exists(|e| Ok(matches!(e, Expr::Placeholder(_))))
        .unwrap_or(true)
}

fn parameter_types_of(expressions: &[Expr], given: &[Option<SqlType>]) -> Result<Vec<SqlType>> {
    let mut types: Vec<SqlType> = given.iter().map(|t| t.unwrap_or(SqlType::Text)).collect();
    for expr in expressions {
        expr.apply(|e| {
            if let Expr::Placeholder(Placeholder { id, field }) = e {
                let number: usize = id.trim_start_matches('$').parse().unwrap_or(0);
                if (1..=65_535).contains(&number) {
                    if types.len() < number {
                        types.resize(number, SqlType::Text);
                    }
                    let unknown = given.get(number - 1).copied().flatten().is_none();
                    if let (true, Some(field)) = (unknown, field) {
                        types[number - 1] = SqlType::from_field(field);
                    }
                }
            }
            Ok(TreeNodeRecursion::Continue)
        })
        .map_err(sql_error)?;
    }
    Ok(types)
}

impl Compiled {
    fn physical(&self, expressions: &[Expr]) -> Result<Vec<Arc<dyn PhysicalExpr>>> {
        expressions
            .iter()
            .map(|e| {
                self.state
                    .create_physical_expr(e.clone(), &self.df_schema)
                    .map_err(sql_error)
            })
            .collect()
    }

    /// Evaluates over a batch of the scope's schema: one array per expression,
    /// as long as the batch.
    ///
    /// # Errors
    /// As the expressions fail.
    pub fn evaluate(
        &self,
        _context: &QueryContext,
        batch: &RecordBatch,
        parameters: &[Datum],
    ) -> Result<Vec<ArrayRef>> {
        let bound;
        let physical = match &self.physical {
            Some(physical) => physical,
            None => {
                let values = by_name(&self.parameter_types, parameters)?;
                let expressions = self
                    .expressions
                    .iter()
                    .map(|e| {
                        e.clone()
                            .transform_up(|e| match e {
                                Expr::Placeholder(p) => match values.get(&p.id) {
                                    Some(v) => Ok(Transformed::yes(Expr::Literal(v.clone(), None))),
                                    None => Ok(Transformed::no(Expr::Placeholder(p))),
                                },
                                other => Ok(Transformed::no(other)),
                            })
                            .map(|t| t.data)
                            .map_err(sql_error)
                    })
                    .collect::<Result<Vec<_>>>()?;
                bound = self.physical(&expressions)?;
                &bound
            }
        };
        physical
            .iter()
            .map(|e| {
                e.evaluate(batch)
                    .and_then(|v| v.into_array(batch.num_rows()))
                    .map_err(sql_error)
            })
            .collect()
    }
}
