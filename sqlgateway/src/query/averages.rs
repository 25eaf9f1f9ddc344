//! `avg` is planned as a sum over a count. Its sum is the one that a query asks
//! for beside it, except over reals, where `sum` adds in single precision and
//! `avg` in double: after types are known, equal sums become one.

use arrow::datatypes::DataType;
use datafusion::common::Column;
use datafusion::common::tree_node::Transformed;
use datafusion::error::Result;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::{Aggregate, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder};
use lineradb_functions::sum::{AVG_SUM, sum};
use std::sync::Arc;

/// Makes one sum out of equal ones, everywhere in a plan.
pub fn share_sums(plan: LogicalPlan) -> Result<LogicalPlan> {
    let shared = plan.transform_up_with_subqueries(|plan| match plan {
        LogicalPlan::Aggregate(aggregate) => shared(aggregate),
        other => Ok(Transformed::no(other)),
    })?;
    Ok(shared.data)
}

fn shared(aggregate: Aggregate) -> Result<Transformed<LogicalPlan>> {
    let mut kept: Vec<Expr> = Vec::with_capacity(aggregate.aggr_expr.len());
    let mut places = Vec::with_capacity(aggregate.aggr_expr.len());
    let mut changed = false;
    for expr in &aggregate.aggr_expr {
        let mut expr = expr.clone();
        if let Expr::AggregateFunction(AggregateFunction { func, params }) = &mut expr
            && func.name() == AVG_SUM
            && let [argument] = params.args.as_slice()
            && !matches!(
                argument.get_type(aggregate.input.schema()),
                Ok(DataType::Float32)
            )
        {
            *func = sum();
            changed = true;
        }
        places.push(match kept.iter().position(|k| *k == expr) {
            Some(place) => place,
            None => {
                kept.push(expr);
                kept.len() - 1
            }
        });
    }
    if !changed {
        return Ok(Transformed::no(LogicalPlan::Aggregate(aggregate)));
    }
    let groups = aggregate.schema.fields().len() - aggregate.aggr_expr.len();
    let names = Arc::clone(&aggregate.schema);
    let plan = LogicalPlan::Aggregate(Aggregate::try_new(
        aggregate.input,
        aggregate.group_expr,
        kept,
    )?);
    let new = Arc::clone(plan.schema());
    let column = |at: usize| Expr::Column(Column::from(new.qualified_field(at)));
    let expressions = (0..names.fields().len()).map(|at| match at.checked_sub(groups) {
        None => column(at),
        Some(n) => {
            let (qualifier, field) = names.qualified_field(at);
            column(groups + places[n]).alias_qualified(qualifier.cloned(), field.name())
        }
    });
    let plan = LogicalPlanBuilder::from(plan).project(expressions)?;
    Ok(Transformed::yes(plan.build()?))
}
