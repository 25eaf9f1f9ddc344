//! Types of outer columns. A correlated subquery notes the type of each outer
//! column that it names when it is read; our passes change types afterwards
//! (an integer literal is int4), so the notes are brought up to date.

use datafusion::common::DFSchema;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::expr::{Exists, InSubquery};
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Expr, LogicalPlan, Subquery};
use std::sync::Arc;

/// Gives outer columns the types that they have now.
pub fn refresh_outer_columns(plan: LogicalPlan) -> Result<LogicalPlan> {
    let mut correlated = false;
    plan.apply_with_subqueries(|node| {
        correlated |= node.contains_outer_reference();
        Ok(match correlated {
            true => TreeNodeRecursion::Stop,
            false => TreeNodeRecursion::Continue,
        })
    })?;
    match correlated {
        true => refresh(plan, &[]),
        false => Ok(plan),
    }
}

/// An outer column with the type that it has now.
fn current(expr: Expr, outer: &[DFSchema]) -> Expr {
    let Expr::OuterReferenceColumn(field, column) = expr else {
        return expr;
    };
    let found = outer
        .iter()
        .rev()
        .find_map(|s| s.qualified_field_from_column(&column).ok());
    let field = found.map_or(field, |(_, now)| Arc::clone(now));
    Expr::OuterReferenceColumn(field, column)
}

/// `outer`: what the queries around this plan read, the innermost last.
fn refresh(plan: LogicalPlan, outer: &[DFSchema]) -> Result<LogicalPlan> {
    let plan = plan.map_children(|child| Ok(Transformed::yes(refresh(child, outer)?)))?;
    let mut around = outer.to_vec();
    around.push(merge_schema(&plan.data.inputs()));
    let inner = |subquery: &Subquery| -> Result<Subquery> {
        let plan = refresh(subquery.subquery.as_ref().clone(), &around)?;
        let named = subquery.outer_ref_columns.iter().cloned();
        Ok(Subquery {
            outer_ref_columns: named.map(|e| current(e, &around)).collect(),
            ..subquery.with_plan(Arc::new(plan))
        })
    };
    let plan = plan.data.map_expressions(|expr| {
        expr.transform_up(|e| {
            let new = match e {
                e @ Expr::OuterReferenceColumn(..) => current(e, outer),
                Expr::ScalarSubquery(subquery) => Expr::ScalarSubquery(inner(&subquery)?),
                Expr::Exists(Exists { subquery, negated }) => Expr::Exists(Exists {
                    subquery: inner(&subquery)?,
                    negated,
                }),
                Expr::InSubquery(InSubquery {
                    expr,
                    subquery,
                    negated,
                }) => Expr::InSubquery(InSubquery {
                    expr,
                    subquery: inner(&subquery)?,
                    negated,
                }),
                other => return Ok(Transformed::no(other)),
            };
            Ok(Transformed::yes(new))
        })
    })?;
    plan.data.recompute_schema()
}
