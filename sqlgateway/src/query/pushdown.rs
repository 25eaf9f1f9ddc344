//! Shipping work to the nodes: the largest chain of filters, projections,
//! partial aggregates and limits above a scan becomes part of the scan.
//!
//! A node runs the chain over one page of rows at a time and knows nothing of
//! other pages, so only what composes is shipped: a limit never below a filter
//! or an aggregate, an aggregate only as partial states that a final one
//! merges, nothing that depends on the order of input. Expressions must be
//! ones that both sides have; anything else stays here.

use super::scan::{ShardScan, Shipped};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::physical_expr::expressions::{
    BinaryExpr, CaseExpr, CastExpr, Column, InListExpr, IsNotNullExpr, IsNullExpr, LikeExpr,
    Literal, NegativeExpr, NotExpr,
};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::displayable;
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::limit::LocalLimitExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::{ExecutionPlan, InputOrderMode, Partitioning};
use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

/// The rule; it runs last.
#[derive(Debug)]
pub struct ShipFragments;

impl PhysicalOptimizerRule for ShipFragments {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = plan.transform_up(split_single)?.data;
        Ok(plan
            .transform_down(|node| match ship(&node)? {
                Some(shipped) => Ok(Transformed::new(shipped, true, TreeNodeRecursion::Jump)),
                None => Ok(Transformed::no(node)),
            })?
            .data)
    }

    fn name(&self) -> &str {
        "ship_fragments"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// An aggregate in one step over a scan becomes a partial one, which can be
/// shipped, and a final one.
fn split_single(node: Arc<dyn ExecutionPlan>) -> Result<Transformed<Arc<dyn ExecutionPlan>>> {
    let Some(aggregate) = node.downcast_ref::<AggregateExec>() else {
        return Ok(Transformed::no(node));
    };
    let single = matches!(
        aggregate.mode(),
        AggregateMode::Single | AggregateMode::SinglePartitioned
    );
    let one = aggregate
        .input()
        .properties()
        .output_partitioning()
        .partition_count()
        == 1;
    if !single || !one || !shippable_aggregate(aggregate) || !reaches_scan(aggregate.input()) {
        return Ok(Transformed::no(node));
    }
    let partial = AggregateExec::try_new(
        AggregateMode::Partial,
        aggregate.group_expr().clone(),
        aggregate.aggr_expr().to_vec(),
        aggregate.filter_expr().to_vec(),
        aggregate.input().clone(),
        aggregate.input_schema(),
    )?;
    let last = AggregateExec::try_new(
        AggregateMode::Final,
        aggregate.group_expr().as_final(),
        aggregate.aggr_expr().to_vec(),
        vec![None; aggregate.aggr_expr().len()],
        Arc::new(partial),
        aggregate.input_schema(),
    )?;
    Ok(Transformed::yes(Arc::new(last)))
}

fn reaches_scan(node: &Arc<dyn ExecutionPlan>) -> bool {
    let mut node = node.clone();
    loop {
        if node.is::<ShardScan>() {
            return true;
        }
        let next = match transparent(&node) {
            Some(next) => next,
            None if node.is::<FilterExec>() || node.is::<ProjectionExec>() => {
                Arc::clone(node.children()[0])
            }
            None => return false,
        };
        node = next;
    }
}

/// Operators that only spread rows over threads here: not needed at a node.
fn transparent(node: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn ExecutionPlan>> {
    if node.is::<CooperativeExec>() {
        return node.children().first().map(|c| Arc::clone(c));
    }
    if let Some(repartition) = node.downcast_ref::<RepartitionExec>()
        && matches!(repartition.partitioning(), Partitioning::RoundRobinBatch(_))
        && !repartition.preserve_order()
    {
        return Some(repartition.input().clone());
    }
    None
}

fn shippable_aggregate(aggregate: &AggregateExec) -> bool {
    *aggregate.input_order_mode() == InputOrderMode::Linear
        && aggregate.limit_options().is_none()
        && aggregate.group_expr().is_single()
        && aggregate
            .aggr_expr()
            .iter()
            .all(|a| a.order_bys().is_empty() && AGGREGATES.contains(&a.fun().name()))
}

/// Aggregates whose states do not depend on how rows are dealt into pages.
const AGGREGATES: &[&str] = &[
    "sum",
    "pg_avg_sum",
    "count",
    "min",
    "max",
    "bool_and",
    "bool_or",
    "bit_and",
    "bit_or",
    "bit_xor",
    "stddev",
    "stddev_pop",
    "var",
    "var_pop",
];

/// The chain that starts at `top`, inside a scan; `None` when it cannot be.
fn ship(top: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let mut chain: Vec<Arc<dyn ExecutionPlan>> = Vec::new();
    let mut node = top.clone();
    // Filters and aggregates change how many rows there are: a limit below one
    // holds for the whole table, not for each page.
    let mut counts_change = false;
    let mut aggregated = false;
    let mut limit: Option<usize> = None;
    let scan = loop {
        if let Some(scan) = node.downcast_ref::<ShardScan>() {
            if !scan.is_bare() || (scan.fetch().is_some() && counts_change) {
                return Ok(None);
            }
            limit = smaller(limit, scan.fetch());
            break scan;
        }
        if let Some(next) = transparent(&node) {
            if chain.is_empty() {
                return Ok(None);
            }
            node = next;
            continue;
        }
        if let Some(filter) = node.downcast_ref::<FilterExec>() {
            if !known(filter.predicate())? {
                return Ok(None);
            }
            if filter.fetch().is_some() {
                if counts_change {
                    return Ok(None);
                }
                limit = smaller(limit, filter.fetch());
            }
            counts_change = true;
        } else if let Some(projection) = node.downcast_ref::<ProjectionExec>() {
            for expr in projection.expr() {
                if !known(&expr.expr)? {
                    return Ok(None);
                }
            }
        } else if let Some(local) = node.downcast_ref::<LocalLimitExec>() {
            if counts_change {
                return Ok(None);
            }
            limit = smaller(limit, Some(local.fetch()));
        } else if let Some(aggregate) = node.downcast_ref::<AggregateExec>() {
            let fits = *aggregate.mode() == AggregateMode::Partial
                && chain.is_empty()
                && shippable_aggregate(aggregate)
                && known_aggregate(aggregate)?;
            if !fits {
                return Ok(None);
            }
            counts_change = true;
            aggregated = true;
        } else {
            return Ok(None);
        }
        chain.push(node.clone());
        let next = match node.children().as_slice() {
            [one] => Arc::clone(*one),
            _ => return Ok(None),
        };
        node = next;
    };
    if chain.is_empty() {
        return Ok(None);
    }
    let mut remote: Arc<dyn ExecutionPlan> = Arc::new(scan.leaf());
    let mut display = Vec::with_capacity(chain.len());
    for operator in chain.iter().rev() {
        display.push(
            displayable(operator.as_ref())
                .one_line()
                .to_string()
                .trim()
                .to_owned(),
        );
        remote = operator.clone().replace_children(
            vec![remote],
            ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute),
        )?;
    }
    display.reverse();
    let Ok(plan) = lineradb_functions::plan::encode(remote.clone()) else {
        return Ok(None);
    };
    let equivalences = if aggregated {
        EquivalenceProperties::new(top.schema())
    } else {
        top.properties().equivalence_properties().clone()
    };
    let shipped = Shipped {
        plan,
        display,
        limit,
    };
    Ok(Some(Arc::new(scan.with_shipped(shipped, equivalences))))
}

fn smaller(a: Option<usize>, b: Option<usize>) -> Option<usize> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn known_aggregate(aggregate: &AggregateExec) -> Result<bool> {
    for (expr, _) in aggregate.group_expr().expr() {
        if !known(expr)? {
            return Ok(false);
        }
    }
    for function in aggregate.aggr_expr() {
        for expr in function.expressions() {
            if !known(&expr)? {
                return Ok(false);
            }
        }
    }
    for filter in aggregate.filter_expr().iter().flatten() {
        if !known(filter)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Levels of an expression that travel: the format stops reading at a hundred
/// nested messages, and a level has up to three.
const MAX_DEPTH: usize = 24;

fn deeper_than(expr: &Arc<dyn PhysicalExpr>, levels: usize) -> bool {
    levels == 0 || expr.children().iter().any(|e| deeper_than(e, levels - 1))
}

/// True when a node can evaluate the expression.
fn known(expr: &Arc<dyn PhysicalExpr>) -> Result<bool> {
    static FUNCTIONS: LazyLock<HashSet<String>> = LazyLock::new(|| {
        use datafusion::execution::FunctionRegistry;
        lineradb_functions::registry()
            .map(|r| r.udfs())
            .unwrap_or_default()
            .into_iter()
            .filter(|name| !STAYS_HERE.contains(&name.as_str()))
            .collect()
    });
    if deeper_than(expr, MAX_DEPTH) {
        return Ok(false);
    }
    let mut all = true;
    expr.apply(|e| {
        let simple = e.is::<Column>()
            || e.is::<Literal>()
            || e.is::<BinaryExpr>()
            || e.is::<CastExpr>()
            || e.is::<NotExpr>()
            || e.is::<IsNullExpr>()
            || e.is::<IsNotNullExpr>()
            || e.is::<NegativeExpr>()
            || e.is::<InListExpr>()
            || e.is::<LikeExpr>()
            || e.is::<CaseExpr>();
        let function = e
            .downcast_ref::<ScalarFunctionExpr>()
            .is_some_and(|f| FUNCTIONS.contains(f.name()) && FUNCTIONS.contains(f.fun().name()));
        all &= simple || function;
        Ok(if all {
            TreeNodeRecursion::Continue
        } else {
            TreeNodeRecursion::Stop
        })
    })?;
    Ok(all)
}

/// Functions whose answer depends on where they run.
const STAYS_HERE: &[&str] = &[
    "now",
    "current_date",
    "current_time",
    "today",
    "version",
    "random",
    "uuid",
    "arrow_typeof",
];
