//! Subqueries that look at the row around them, in EXISTS and IN. The engine makes
//! joins of them, and some mean something else as a join: those are refused, or said in
//! another way.

use super::errors::carry;
use crate::error::SqlError;
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::logical_expr::expr::{Exists, InSubquery};
use datafusion::logical_expr::{Expr, FetchType, LogicalPlan, SkipType, Subquery};

/// What is at the top of a subquery.
#[derive(Default)]
struct Top {
    /// An aggregate over everything: it has a row where nothing is found.
    has_aggregate: bool,
    /// A condition over that row: HAVING.
    has_condition: bool,
    /// LIMIT or OFFSET that may leave out a row that is there.
    has_limit: bool,
}

impl Top {
    fn of(plan: &LogicalPlan) -> Result<Top> {
        let mut top = Top::default();
        let (mut plan, mut has_filter) = (plan, false);
        loop {
            plan = match plan {
                LogicalPlan::Projection(p) => &p.input,
                LogicalPlan::SubqueryAlias(a) => &a.input,
                LogicalPlan::Sort(s) => &s.input,
                LogicalPlan::Filter(f) => {
                    has_filter = true;
                    &f.input
                }
                LogicalPlan::Limit(limit) => {
                    let all = matches!(limit.get_skip_type()?, SkipType::Literal(0))
                        && match limit.get_fetch_type()? {
                            FetchType::Literal(fetch) => fetch.is_none_or(|rows| rows > 0),
                            FetchType::UnsupportedExpr => false,
                        };
                    top.has_limit |= !all;
                    &limit.input
                }
                LogicalPlan::Aggregate(a) if a.group_expr.is_empty() => {
                    top.has_aggregate = true;
                    top.has_condition = has_filter;
                    return Ok(top);
                }
                _ => return Ok(top),
            }
        }
    }
}

fn is_correlated(subquery: &Subquery) -> bool {
    !subquery.outer_ref_columns.is_empty()
}

fn refused(what: &str, hint: &str) -> datafusion::error::DataFusionError {
    carry(SqlError::unsupported(what).with_hint(hint))
}

/// `EXISTS (...)`.
///
/// # Errors
/// 0A000 for what a join would not say.
pub fn of_exists(exists: Exists) -> Result<Expr> {
    let top = Top::of(&exists.subquery.subquery)?;
    if top.has_aggregate && !top.has_condition && !top.has_limit {
        // It has one row.
        let found = ScalarValue::Boolean(Some(!exists.negated));
        return Ok(Expr::Literal(found, None));
    }
    if is_correlated(&exists.subquery) && (top.has_limit || top.has_aggregate) {
        return Err(refused(
            "EXISTS over a correlated subquery with OFFSET or HAVING without GROUP BY",
            "Compare a scalar subquery: (SELECT count(*) ...) > n.",
        ));
    }
    Ok(Expr::Exists(exists))
}

/// `x IN (SELECT ...)`.
///
/// # Errors
/// 0A000 for what a join would not say.
pub fn check_in(compared: &InSubquery) -> Result<()> {
    if !is_correlated(&compared.subquery) {
        return Ok(());
    }
    let top = Top::of(&compared.subquery.subquery)?;
    if top.has_aggregate {
        return Err(refused(
            "IN over a correlated subquery that returns an aggregate",
            "Compare with =: x = (SELECT count(*) ...).",
        ));
    }
    if top.has_limit {
        return Err(refused(
            "IN over a correlated subquery with LIMIT or OFFSET",
            "Say it with a join.",
        ));
    }
    if compared.negated {
        return Err(refused(
            "NOT IN over a correlated subquery",
            "Use NOT EXISTS (SELECT ... WHERE y = x), which says the same where neither is NULL.",
        ));
    }
    Ok(())
}
