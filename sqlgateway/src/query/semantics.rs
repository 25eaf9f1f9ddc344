//! PostgreSQL's operators and casts in place of DataFusion's.
//!
//! Two passes around DataFusion's type coercion. Before it, where the user's
//! own types are still visible: integer literals get PostgreSQL's type,
//! arithmetic becomes checked functions, untyped literals take the type of what
//! they meet, explicit casts become `pg_cast`. After it: what coercion inserted
//! and Arrow would do differently.

use super::averages::share_sums;
use super::casts::implicit_cast;
use super::chains::flatten;
use super::common_type;
use super::equality::{refuse_equal_intervals, sorted};
use super::errors::carry;
use super::lateral::inline_laterals;
use super::lists::{settle_expr, settle_plan};
use super::operators::operator;
use super::outer::refresh_outer_columns;
use crate::error::SqlError;
use crate::settings::Settings;
use arrow::datatypes::DataType;
use datafusion::common::metadata::FieldMetadata;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column as DfColumn, DFSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::expr::{Cast, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, RecursiveQuery,
};
use lineradb_common::sql::{SqlType, TimeZone};
use std::sync::Arc;

/// The pass before type coercion.
pub fn before_coercion(plan: LogicalPlan, settings: &Settings) -> Result<LogicalPlan> {
    let plan = share_sums(inline_laterals(plan)?)?;
    refresh_outer_columns(rewrite(plan, settings, operator)?)
}

/// The pass after type coercion.
pub fn after_coercion(plan: LogicalPlan, settings: &Settings) -> Result<LogicalPlan> {
    settle_plan(rewrite(plan, settings, implicit_cast)?)
}

type Rule = fn(Expr, &DFSchema, &Settings) -> Result<Transformed<Expr>>;

fn rewrite(plan: LogicalPlan, settings: &Settings, rule: Rule) -> Result<LogicalPlan> {
    let rewritten = plan.transform_up_with_subqueries(|plan| {
        // LIMIT counts rows; its literals stay as the engine wants them.
        if matches!(plan, LogicalPlan::Limit(_) | LogicalPlan::TableScan(_)) {
            return Ok(Transformed::no(plan));
        }
        let plan = match plan {
            LogicalPlan::Union(union) => common_type::of_union(union, settings)?.data,
            LogicalPlan::Join(join) => common_type::of_join(join, settings)?.data,
            other => other,
        };
        let mut schema = merge_schema(&plan.inputs());
        schema.merge(plan.schema());
        if let LogicalPlan::Values(values) = plan {
            let mut rows = values
                .values
                .into_iter()
                .map(|row| {
                    row.into_iter()
                        .map(|e| apply(common_type::undo_cast(e)?, &schema, settings, rule))
                        .collect::<Result<Vec<_>>>()
                })
                .collect::<Result<Vec<_>>>()?;
            common_type::of_values(&mut rows, settings)?;
            same_types(&mut rows)?;
            return Ok(Transformed::yes(LogicalPlanBuilder::values(rows)?.build()?));
        }
        if let LogicalPlan::RecursiveQuery(recursive) = plan {
            return Ok(Transformed::yes(LogicalPlan::RecursiveQuery(
                as_work_table(recursive)?,
            )));
        }
        refuse_equal_intervals(&plan)?;
        let plan = sorted(plan)?;
        let names = NamePreserver::new(&plan);
        let rewritten = plan.map_expressions(|expr| {
            let name = names.save(&expr);
            let before = expr.clone();
            let after = apply(flatten(expr, &schema)?, &schema, settings, rule)?;
            if after == before {
                Ok(Transformed::no(after))
            } else {
                Ok(Transformed::yes(name.restore(after)))
            }
        })?;
        rewritten.map_data(LogicalPlan::recompute_schema)
    })?;
    Ok(rewritten.data)
}

/// Gives the values of a column one SQL type: DataFusion wants equal metadata.
fn same_types(rows: &mut [Vec<Expr>]) -> Result<()> {
    let width = rows.first().map_or(0, Vec::len);
    let empty = DFSchema::empty();
    for column in 0..width {
        let mut fields = Vec::with_capacity(rows.len());
        for row in rows.iter() {
            if let Some(value) = row.get(column) {
                fields.push(value.to_field(&empty)?.1);
            }
        }
        if fields.iter().all(|f| f.metadata().is_empty()) {
            continue;
        }
        let first = fields.iter().find(|f| !f.data_type().is_null());
        let sql_type = first.map_or(SqlType::Text, |f| SqlType::from_field(f));
        let equal = fields
            .iter()
            .all(|f| f.data_type().is_null() || SqlType::from_field(f) == sql_type);
        let sql_type = match (equal, first) {
            (false, Some(field)) => SqlType::from_arrow(field.data_type()),
            _ => sql_type,
        };
        let metadata = FieldMetadata::from(sql_type.metadata());
        for row in rows.iter_mut() {
            if let Some(value) = row.get_mut(column) {
                let bare = std::mem::replace(value, Expr::Literal(ScalarValue::Null, None));
                *value = bare.alias_with_metadata("", Some(metadata.clone()));
            }
        }
    }
    Ok(())
}

/// Both terms of a recursive query return what its work table was made with.
fn as_work_table(mut recursive: RecursiveQuery) -> Result<RecursiveQuery> {
    let mut schema = None;
    recursive.recursive_term.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && scan.table_name.table() == recursive.name
        {
            schema = Some(scan.source.schema());
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    let Some(schema) = schema else {
        return Ok(recursive);
    };
    let convert = |term: &Arc<LogicalPlan>| -> Result<Arc<LogicalPlan>> {
        let expressions = term
            .schema()
            .iter()
            .zip(schema.fields())
            .map(|((qualifier, from), to)| {
                let column = Expr::Column(DfColumn::from((qualifier, from)));
                if from.data_type() == to.data_type() {
                    column
                } else {
                    Expr::Cast(Cast::new(Box::new(column), to.data_type().clone()))
                        .alias_qualified(qualifier.cloned(), from.name())
                }
            })
            .collect::<Vec<_>>();
        Ok(Arc::new(
            LogicalPlanBuilder::from(term.as_ref().clone())
                .project(expressions)?
                .build()?,
        ))
    };
    recursive.static_term = convert(&recursive.static_term)?;
    recursive.recursive_term = convert(&recursive.recursive_term)?;
    Ok(recursive)
}

fn apply(expr: Expr, schema: &DFSchema, settings: &Settings, rule: Rule) -> Result<Expr> {
    Ok(expr.transform_up(|e| rule(e, schema, settings))?.data)
}

/// The first pass over one expression, for expressions that stand alone.
pub fn operators(expr: Expr, schema: &DFSchema, settings: &Settings) -> Result<Expr> {
    apply(flatten(expr, schema)?, schema, settings, operator)
}

/// The second pass over one expression.
pub fn implicit_casts(expr: Expr, schema: &DFSchema, settings: &Settings) -> Result<Expr> {
    settle_expr(apply(expr, schema, settings, implicit_cast)?)
}

pub(super) fn call(name: &str, args: Vec<Expr>) -> Result<Expr> {
    match lineradb_functions::by_name(name) {
        Some(f) => Ok(Expr::ScalarFunction(ScalarFunction::new_udf(f, args))),
        None => Err(carry(SqlError::internal(format!("no function {name}")))),
    }
}

pub(super) fn literal(text: impl Into<String>) -> Expr {
    Expr::Literal(ScalarValue::Utf8(Some(text.into())), None)
}

pub(super) fn is_utc(settings: &Settings) -> bool {
    settings.time_zone == TimeZone::UTC
}

pub(super) fn type_of(expr: &Expr, schema: &DFSchema) -> Result<DataType> {
    expr.get_type(schema)
}

pub(super) fn sql_type_of(expr: &Expr, schema: &DFSchema) -> Result<SqlType> {
    let (_, field) = expr.to_field(schema)?;
    Ok(SqlType::from_field(&field))
}

pub(super) fn is_text(t: &DataType) -> bool {
    matches!(t, DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8)
}

/// A literal that PostgreSQL would call `unknown`.
pub(super) fn is_untyped(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(value, None) => value.is_null() || is_text(&value.data_type()),
        Expr::Alias(alias) => is_untyped(&alias.expr),
        _ => false,
    }
}

pub(super) fn is_interval(t: &DataType) -> bool {
    matches!(t, DataType::Interval(_))
}
