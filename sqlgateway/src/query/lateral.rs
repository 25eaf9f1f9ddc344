//! LATERAL subqueries that only compute: `CROSS JOIN LATERAL (SELECT a.x + 1)`
//! is a projection of its left side. DataFusion takes outer columns in a
//! subquery's WHERE only.

use datafusion::common::DFSchema;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::logical_expr::{
    Expr, Filter, Join, JoinType, LogicalPlan, LogicalPlanBuilder, Projection, SubqueryAlias,
};
use std::collections::HashMap;

/// Replaces such joins everywhere in a plan.
pub fn inline_laterals(plan: LogicalPlan) -> Result<LogicalPlan> {
    let inlined = plan.transform_up_with_subqueries(|plan| match &plan {
        LogicalPlan::Join(join) => Ok(match inlined(join)? {
            Some(projection) => Transformed::yes(projection),
            None => Transformed::no(plan),
        }),
        _ => Ok(Transformed::no(plan)),
    })?;
    Ok(inlined.data)
}

/// What a subquery without FROM computes, and on which condition.
struct Computed {
    expressions: Vec<Expr>,
    condition: Option<Expr>,
}

fn inlined(join: &Join) -> Result<Option<LogicalPlan>> {
    let LogicalPlan::Subquery(subquery) = below_alias(&join.right) else {
        return Ok(None);
    };
    let Some(computed) = computed(&subquery.subquery, join.left.schema())? else {
        return Ok(None);
    };
    let always = |e: &Expr| matches!(e, Expr::Literal(v, _) if *v == true.into());
    if !join.on.is_empty() || !join.filter.as_ref().is_none_or(always) {
        return Ok(None);
    }
    let mut builder = LogicalPlanBuilder::from(join.left.as_ref().clone());
    match (join.join_type, computed.condition) {
        (JoinType::Inner, Some(condition)) => builder = builder.filter(condition)?,
        (JoinType::Inner | JoinType::Left, None) => {}
        _ => return Ok(None),
    }
    let mut expressions: Vec<Expr> = join
        .left
        .schema()
        .columns()
        .into_iter()
        .map(Expr::Column)
        .collect();
    for (expr, (qualifier, field)) in computed
        .expressions
        .into_iter()
        .zip(join.right.schema().iter())
    {
        expressions.push(expr.alias_qualified(qualifier.cloned(), field.name()));
    }
    Ok(Some(builder.project(expressions)?.build()?))
}

fn below_alias(plan: &LogicalPlan) -> &LogicalPlan {
    match plan {
        LogicalPlan::SubqueryAlias(SubqueryAlias { input, .. }) => input,
        other => other,
    }
}

/// The expressions of projections over no table, over the columns of `left`.
fn computed(plan: &LogicalPlan, left: &DFSchema) -> Result<Option<Computed>> {
    match plan {
        LogicalPlan::Projection(Projection { expr, input, .. }) => {
            let Some(below) = computed(input, left)? else {
                return Ok(None);
            };
            let named: HashMap<_, _> = input
                .schema()
                .columns()
                .into_iter()
                .zip(below.expressions)
                .collect();
            let expressions = expr
                .iter()
                .map(|e| over_left(e.clone(), &named, left))
                .collect::<Result<_>>()?;
            Ok(Some(Computed {
                expressions,
                condition: below.condition,
            }))
        }
        LogicalPlan::Filter(Filter {
            predicate, input, ..
        }) => {
            let Some(below) = computed(input, left)? else {
                return Ok(None);
            };
            if below.condition.is_some() || !below.expressions.is_empty() {
                return Ok(None);
            }
            let condition = over_left(predicate.clone(), &HashMap::new(), left)?;
            Ok(Some(Computed {
                condition: Some(condition),
                ..below
            }))
        }
        LogicalPlan::EmptyRelation(empty) if empty.produce_one_row => Ok(Some(Computed {
            expressions: Vec::new(),
            condition: None,
        })),
        _ => Ok(None),
    }
}

/// An expression with the columns below it replaced by what they are, and outer
/// columns by those of the left side.
fn over_left(
    expr: Expr,
    named: &HashMap<datafusion::common::Column, Expr>,
    left: &DFSchema,
) -> Result<Expr> {
    let replaced = expr.transform_up(|e| {
        Ok(match e {
            Expr::Column(column) => match named.get(&column) {
                Some(below) => Transformed::yes(below.clone().unalias()),
                None => Transformed::no(Expr::Column(column)),
            },
            Expr::OuterReferenceColumn(_, column) if left.has_column(&column) => {
                Transformed::yes(Expr::Column(column))
            }
            other => Transformed::no(other),
        })
    })?;
    Ok(replaced.data)
}
