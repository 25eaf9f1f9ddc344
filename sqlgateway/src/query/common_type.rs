//! One type for expressions that meet, where DataFusion picks another than
//! PostgreSQL: numeric beside a float is double precision, DataFusion makes the
//! float a decimal of 15 fraction digits.

use arrow::datatypes::DataType;
use datafusion::common::DFSchema;
use datafusion::common::tree_node::Transformed;
use datafusion::error::Result;
use datafusion::logical_expr::expr::{Case, Cast, InSubquery, ScalarFunction};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Union};
use lineradb_common::sql::SqlType;
use std::sync::Arc;

/// The cast that makes a numeric a double.
type ToFloat<'a> = &'a dyn Fn(Expr) -> Result<Expr>;

fn mixed(types: &[DataType]) -> bool {
    types.iter().any(DataType::is_decimal) && types.iter().any(DataType::is_floating)
}

/// Expressions that get one type: numerics among floats become doubles.
pub fn as_floats(exprs: &mut [&mut Expr], schema: &DFSchema, to_float: ToFloat) -> Result<bool> {
    let types = exprs
        .iter()
        .map(|e| e.get_type(schema))
        .collect::<Result<Vec<_>>>()?;
    if !mixed(&types) {
        return Ok(false);
    }
    for (expr, data_type) in exprs.iter_mut().zip(types) {
        if data_type.is_decimal() {
            let bare = std::mem::take(*expr);
            **expr = to_float(bare)?;
        }
    }
    Ok(true)
}

/// The results of a CASE, and what it compares.
pub fn of_case(mut case: Case, schema: &DFSchema, to_float: ToFloat) -> Result<Transformed<Expr>> {
    let mut results: Vec<&mut Expr> = case
        .when_then_expr
        .iter_mut()
        .map(|(_, then)| then.as_mut())
        .chain(case.else_expr.as_deref_mut())
        .collect();
    let mut changed = as_floats(&mut results, schema, to_float)?;
    if let Some(compared) = case.expr.as_deref_mut() {
        let mut compared: Vec<&mut Expr> = std::iter::once(compared)
            .chain(
                case.when_then_expr
                    .iter_mut()
                    .map(|(when, _)| when.as_mut()),
            )
            .collect();
        changed |= as_floats(&mut compared, schema, to_float)?;
    }
    let case = Expr::Case(case);
    Ok(if changed {
        Transformed::yes(case)
    } else {
        Transformed::no(case)
    })
}

/// The arguments of functions that return one of them.
pub fn of_function(
    function: &mut ScalarFunction,
    schema: &DFSchema,
    to_float: ToFloat,
) -> Result<bool> {
    if !matches!(
        function.name(),
        "coalesce" | "greatest" | "least" | "nullif"
    ) {
        return Ok(false);
    }
    let mut args: Vec<&mut Expr> = function.args.iter_mut().collect();
    as_floats(&mut args, schema, to_float)
}

/// `x IN (SELECT y)`.
pub fn of_in_subquery(
    mut compared: InSubquery,
    schema: &DFSchema,
    to_float: ToFloat,
) -> Result<Transformed<Expr>> {
    let query = &compared.subquery.subquery;
    let [column] = &query.schema().columns()[..] else {
        return Ok(Transformed::no(Expr::InSubquery(compared)));
    };
    let mut column = Expr::Column(column.clone());
    let rows = query.schema().as_ref().clone();
    let types = [compared.expr.get_type(schema)?, column.get_type(&rows)?];
    if !mixed(&types) {
        return Ok(Transformed::no(Expr::InSubquery(compared)));
    }
    if types[0].is_decimal() {
        compared.expr = Box::new(to_float(*compared.expr)?);
    } else {
        column = to_float(column)?.alias("value");
        let plan = LogicalPlanBuilder::from(query.as_ref().clone()).project([column])?;
        compared.subquery = compared.subquery.with_plan(Arc::new(plan.build()?));
    }
    Ok(Transformed::yes(Expr::InSubquery(compared)))
}

/// The values of each column of VALUES.
pub fn of_values(rows: &mut [Vec<Expr>], to_float: ToFloat) -> Result<()> {
    let empty = DFSchema::empty();
    let width = rows.first().map_or(0, Vec::len);
    for column in 0..width {
        let mut values: Vec<&mut Expr> =
            rows.iter_mut().filter_map(|r| r.get_mut(column)).collect();
        as_floats(&mut values, &empty, to_float)?;
    }
    Ok(())
}

/// Takes off the cast to a decimal that DataFusion put around a float while it
/// read VALUES. A cast of the user's to a numeric with digits has metadata, and
/// one to a bare numeric the digits of that.
pub fn undo_decimal(expr: Expr) -> Result<Expr> {
    let bare = SqlType::Numeric(None).arrow_type();
    match expr {
        Expr::Cast(Cast { expr, field })
            if field.data_type().is_decimal()
                && *field.data_type() != bare
                && field.metadata().is_empty()
                && expr.get_type(&DFSchema::empty())?.is_floating() =>
        {
            Ok(*expr)
        }
        other => Ok(other),
    }
}

/// The columns of a UNION.
pub fn of_union(union: Union, to_float: ToFloat) -> Result<Transformed<LogicalPlan>> {
    let width = union.schema.fields().len();
    let type_at = |input: &Arc<LogicalPlan>, i: usize| input.schema().field(i).data_type().clone();
    let mixed: Vec<bool> = (0..width)
        .map(|i| {
            let types: Vec<DataType> = union.inputs.iter().map(|p| type_at(p, i)).collect();
            mixed(&types)
        })
        .collect();
    if !mixed.contains(&true) {
        return Ok(Transformed::no(LogicalPlan::Union(union)));
    }
    let inputs = union
        .inputs
        .iter()
        .map(|input| {
            let expressions = input
                .schema()
                .iter()
                .enumerate()
                .map(|(i, (qualifier, field))| {
                    let column = Expr::Column((qualifier, field).into());
                    if mixed[i] && field.data_type().is_decimal() {
                        Ok(to_float(column)?.alias_qualified(qualifier.cloned(), field.name()))
                    } else {
                        Ok(column)
                    }
                })
                .collect::<Result<Vec<_>>>()?;
            let plan = LogicalPlanBuilder::from(input.as_ref().clone())
                .project(expressions)?
                .build()?;
            Ok(Arc::new(plan))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Transformed::yes(LogicalPlan::Union(
        Union::try_new_with_loose_types(inputs)?,
    )))
}
