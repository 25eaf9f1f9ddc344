//! Subqueries in forms that DataFusion does not know, or reads otherwise than
//! PostgreSQL, as scalar subqueries and joins that it knows: quantifiers, EXISTS
//! and IN in a select list, subqueries in VALUES.

use super::rewrite::{finish, parse_expression, parse_query};
use crate::error::{Result, SqlError};
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, GroupByExpr, LimitClause, Query, SelectItem, SetExpr, Value, Visit,
    VisitMut, Visitor, VisitorMut,
};
use std::ops::ControlFlow;

/// What a subquery is called that a rewrite made a table of.
pub const REWRITTEN: &str = "__q";

/// The query of `(SELECT ...)`.
pub fn subquery(expr: &Expr) -> Option<&Query> {
    match expr {
        Expr::Subquery(query) => Some(query),
        Expr::Nested(inner) => subquery(inner),
        _ => None,
    }
}

/// `x op ANY (query)` and `x op ALL (query)` by the smallest and largest value,
/// with PostgreSQL's answers for empty results and NULLs.
///
/// # Errors
/// 0A000 for other operators.
pub fn quantified(left: &Expr, op: &BinaryOperator, right: &Expr, all: bool) -> Result<Expr> {
    let Some(query) = subquery(right) else {
        return Err(SqlError::internal("no subquery"));
    };
    let bound = |name: &str| format!("(SELECT {name}(c) FROM ({query}) AS {REWRITTEN}(c))");
    let rows = format!("(SELECT count(*) FROM ({query}) AS {REWRITTEN}(c))");
    let nulls = format!("(SELECT count(*) - count(c) FROM ({query}) AS {REWRITTEN}(c))");
    let lowest_or_highest = |op: &BinaryOperator| -> Option<&'static str> {
        Some(match (op, all) {
            (BinaryOperator::Gt | BinaryOperator::GtEq, true) => "max",
            (BinaryOperator::Gt | BinaryOperator::GtEq, false) => "min",
            (BinaryOperator::Lt | BinaryOperator::LtEq, true) => "min",
            (BinaryOperator::Lt | BinaryOperator::LtEq, false) => "max",
            _ => return None,
        })
    };
    let sql = match (op, all) {
        (BinaryOperator::Eq, false) => {
            return Ok(Expr::InSubquery {
                expr: Box::new(left.clone()),
                subquery: Box::new(query.clone()),
                negated: false,
            });
        }
        (BinaryOperator::NotEq, true) => {
            return Ok(Expr::InSubquery {
                expr: Box::new(left.clone()),
                subquery: Box::new(query.clone()),
                negated: true,
            });
        }
        (BinaryOperator::Eq, true) => format!(
            "(({rows} = 0) OR ((({nulls} = 0) OR NULL) AND ({left}) = {} AND ({left}) = {}))",
            bound("min"),
            bound("max")
        ),
        (BinaryOperator::NotEq, false) => format!(
            "(({rows} > 0) AND ((({nulls} > 0) AND NULL) OR ({left}) <> {} OR ({left}) <> {}))",
            bound("min"),
            bound("max")
        ),
        (op, true) => match lowest_or_highest(op) {
            Some(f) => format!(
                "(({rows} = 0) OR ((({nulls} = 0) OR NULL) AND ({left}) {op} {}))",
                bound(f)
            ),
            None => return Err(SqlError::unsupported(format!("{op} ALL (subquery)"))),
        },
        (op, false) => match lowest_or_highest(op) {
            Some(f) => format!(
                "(({rows} > 0) AND ((({nulls} > 0) AND NULL) OR ({left}) {op} {}))",
                bound(f)
            ),
            None => return Err(SqlError::unsupported(format!("{op} ANY (subquery)"))),
        },
    };
    parse_expression(&sql)
}

/// EXISTS and IN in a select list, as counts; DataFusion knows them in WHERE
/// only.
///
/// # Errors
/// 0A000 for forms of EXISTS that cannot be counted.
pub fn subqueries_in_projection(expr: &mut Expr) -> Result<()> {
    struct Count(usize);
    impl VisitorMut for Count {
        type Break = SqlError;
        fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<SqlError> {
            self.0 += 1;
            ControlFlow::Continue(())
        }
        fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<SqlError> {
            self.0 -= 1;
            ControlFlow::Continue(())
        }
        fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<SqlError> {
            let counted = match expr {
                _ if self.0 > 0 => return ControlFlow::Continue(()),
                Expr::Exists { subquery, negated } => exists_as_count(subquery, *negated),
                Expr::InSubquery {
                    expr,
                    subquery,
                    negated,
                } if !matches!(**expr, Expr::Tuple(_)) => in_as_count(expr, subquery, *negated),
                _ => return ControlFlow::Continue(()),
            };
            match counted {
                Ok(counted) => {
                    *expr = counted;
                    ControlFlow::Continue(())
                }
                Err(error) => ControlFlow::Break(error),
            }
        }
    }
    finish(expr.visit(&mut Count(0)))
}

fn exists_as_count(query: &Query, negated: bool) -> Result<Expr> {
    let refuse = || SqlError::unsupported("this form of EXISTS in the select list");
    let mut query = query.clone();
    match query.limit_clause.take() {
        None => {}
        Some(LimitClause::LimitOffset {
            limit: Some(Expr::Value(v)),
            offset: None,
            ..
        }) if v.value != Value::Number("0".into(), false) => {}
        Some(_) => return Err(refuse()),
    }
    query.order_by = None;
    let SetExpr::Select(select) = query.body.as_mut() else {
        return Err(refuse());
    };
    let plain = matches!(&select.group_by, GroupByExpr::Expressions(e, _) if e.is_empty())
        && select.having.is_none()
        && query.with.is_none();
    if !plain {
        return Err(refuse());
    }
    select.distinct = None;
    select.projection = vec![SelectItem::UnnamedExpr(parse_expression("count(*)")?)];
    parse_expression(&format!(
        "(({query}) {} 0)",
        if negated { "=" } else { ">" }
    ))
}

/// `x IN (query)` by the numbers of equal rows, rows and NULLs.
fn in_as_count(value: &Expr, query: &Query, negated: bool) -> Result<Expr> {
    let count = |what: &str, condition: &str| {
        format!("(SELECT {what} FROM ({query}) AS {REWRITTEN}(__c){condition})")
    };
    let equal = count("count(*)", &format!(" WHERE __c = ({value})"));
    let (rows, nulls) = (count("count(*)", ""), count("count(*) - count(__c)", ""));
    parse_expression(&format!(
        "(CASE WHEN {equal} > 0 THEN {} WHEN {rows} = 0 THEN {negated} \
         WHEN ({value}) IS NULL OR {nulls} > 0 THEN NULL ELSE {negated} END)",
        !negated
    ))
}

/// VALUES with subqueries in it, as a UNION ALL of rows, numbered so that they
/// come in the order of the text: the engine evaluates VALUES before any subquery
/// runs.
///
/// # Errors
/// None that a parsed VALUES could have.
pub fn values_with_subqueries(query: &mut Query) -> Result<()> {
    struct Find;
    impl Visitor for Find {
        type Break = ();
        fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            ControlFlow::Break(())
        }
    }
    let SetExpr::Values(values) = query.body.as_mut() else {
        return Ok(());
    };
    if Visit::visit(&*values, &mut Find).is_continue() {
        return Ok(());
    }
    let rows: Vec<String> = values
        .rows
        .iter()
        .enumerate()
        .map(|(n, row)| {
            let columns = row.content.iter().enumerate();
            let items: Vec<String> = columns
                .map(|(i, expr)| format!("{expr} AS column{}", i + 1))
                .collect();
            format!("SELECT {}, {n} AS __row", items.join(", "))
        })
        .collect();
    let width = values.rows.first().map_or(0, |row| row.content.len());
    let columns: Vec<String> = (1..=width).map(|i| format!("__v.column{i}")).collect();
    let numbered = parse_query(&format!(
        "SELECT {} FROM ({}) AS __v ORDER BY __v.__row",
        columns.join(", "),
        rows.join(" UNION ALL ")
    ))?;
    query.body = numbered.body;
    if query.order_by.is_none() {
        query.order_by = numbered.order_by;
    }
    Ok(())
}
