//! Rewrites on the AST, before DataFusion reads it: syntax that it reads
//! otherwise than PostgreSQL, or not at all, becomes syntax that means the
//! same to both. What cannot be said becomes 0A000 here.

use super::clauses::{fetch_first, set_operations, set_returning, table_factor};
use super::literals::{custom_operator, interval_with_field, object_identifier, plain_number};
use super::names::bare_function;
use super::order_by::bare_order;
use super::quantified::with_array;
use super::rows::{compare_rows, row_in_list, row_is_null};
use super::spellings::respell;
use super::subqueries::{quantified, subqueries_in_projection, subquery, values_with_subqueries};
use crate::error::{Result, SqlError};
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, CastKind, DataType, Expr, Function, FunctionArg, FunctionArgExpr,
    FunctionArgumentList, FunctionArguments, Ident, ObjectName, ObjectNamePart, Query, Select,
    SelectItem, SetExpr, Statement, TableFactor, TypedString, UnaryOperator, Value, ValueWithSpan,
    Visit, VisitMut, Visitor, VisitorMut,
};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use std::ops::ControlFlow;

/// Refuses FOR UPDATE and FOR SHARE inside of a query; at its end they are the
/// caller's business.
///
/// # Errors
/// 0A000.
pub fn refuse_locking(query: &Query) -> Result<()> {
    struct Locks;
    impl Visitor for Locks {
        type Break = ();
        fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
            match query.locks.is_empty() {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        }
    }
    match Visit::visit(query, &mut Locks).is_break() {
        true => Err(SqlError::unsupported("FOR UPDATE in a subquery")),
        false => Ok(()),
    }
}

/// Rewrites a whole query.
///
/// # Errors
/// 0A000 for what would silently mean something else.
pub fn rewrite_query(query: &mut Query) -> Result<()> {
    finish(query.visit(&mut Rewriter))
}

/// Rewrites one expression.
///
/// # Errors
/// 0A000 for what would silently mean something else.
pub fn rewrite_expression(expr: &mut Expr) -> Result<()> {
    finish(expr.visit(&mut Rewriter))
}

pub(super) fn finish(flow: ControlFlow<SqlError>) -> Result<()> {
    match flow {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(()),
    }
}

struct Rewriter;

impl VisitorMut for Rewriter {
    type Break = SqlError;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<SqlError> {
        flow(set_operations(&query.body))?;
        bare_order(query);
        flow(values_with_subqueries(query))?;
        flow(fetch_first(query))
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<SqlError> {
        flow(set_returning(select))
    }

    fn post_visit_select(&mut self, select: &mut Select) -> ControlFlow<SqlError> {
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
                flow(subqueries_in_projection(expr))?;
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<SqlError> {
        flow(table_factor(factor))
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<SqlError> {
        flow(expression(expr))
    }
}

fn flow(result: Result<()>) -> ControlFlow<SqlError> {
    match result {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => ControlFlow::Break(error),
    }
}

/// A call of a function by name.
pub fn call(name: &str, args: Vec<Expr>) -> Expr {
    Expr::Function(Function {
        name: ObjectName(vec![ObjectNamePart::Identifier(Ident::new(name))]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: args
                .into_iter()
                .map(|e| FunctionArg::Unnamed(FunctionArgExpr::Expr(e)))
                .collect(),
            clauses: vec![],
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: vec![],
    })
}

pub(super) fn take(expr: &mut Expr) -> Expr {
    std::mem::replace(expr, Expr::value(Value::Null))
}

pub(super) fn literal(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Value(ValueWithSpan {
            value: Value::SingleQuotedString(s) | Value::EscapedStringLiteral(s),
            ..
        }) => Some(s),
        Expr::Nested(inner) => literal(inner),
        _ => None,
    }
}

/// A query from text that a rewrite made.
pub(super) fn parse_query(sql: &str) -> Result<Query> {
    let statements = Parser::parse_sql(&PostgreSqlDialect {}, sql)
        .map_err(|e| SqlError::internal(format!("rewrite: {e}")))?;
    match statements.into_iter().next() {
        Some(Statement::Query(query)) => Ok(*query),
        _ => Err(SqlError::internal("rewrite: no query")),
    }
}

/// An expression from text that a rewrite made.
pub(super) fn parse_expression(sql: &str) -> Result<Expr> {
    if let SetExpr::Select(select) = *parse_query(&format!("SELECT {sql}"))?.body
        && let Some(SelectItem::UnnamedExpr(expr)) = select.projection.into_iter().next()
    {
        return Ok(expr);
    }
    Err(SqlError::internal("rewrite: no expression"))
}

pub(super) fn name_of(name: &ObjectName) -> String {
    name.0
        .last()
        .and_then(|p| p.as_ident())
        .map(|i| match i.quote_style {
            Some(_) => i.value.clone(),
            None => i.value.to_lowercase(),
        })
        .unwrap_or_default()
}

fn expression(expr: &mut Expr) -> Result<()> {
    if let Some(name) = bare_function(expr) {
        *expr = call(&name, vec![]);
        return Ok(());
    }
    match expr {
        Expr::SimilarTo {
            negated,
            expr: value,
            pattern,
            escape_char,
        } => {
            let mut args = vec![take(pattern)];
            if let Some(escape) = escape_char {
                args.push(Expr::Value(escape.clone()));
            }
            let op = if *negated {
                BinaryOperator::PGRegexNotMatch
            } else {
                BinaryOperator::PGRegexMatch
            };
            *expr = Expr::Nested(Box::new(Expr::BinaryOp {
                left: Box::new(take(value)),
                op,
                right: Box::new(call("pg_similar_pattern", args)),
            }));
        }
        Expr::Like {
            pattern,
            escape_char,
            any,
            ..
        }
        | Expr::ILike {
            pattern,
            escape_char,
            any,
            ..
        } => {
            if *any {
                return Err(SqlError::unsupported("LIKE ANY"));
            }
            if let Some(escape) = escape_char.take()
                && escape.value != Value::SingleQuotedString("\\".into())
            {
                let inner = take(pattern);
                **pattern = call("pg_like_escape", vec![inner, Expr::Value(escape)]);
            }
        }
        Expr::BinaryOp { left, op, right } => {
            if let BinaryOperator::PGCustomBinaryOperator(parts) = op {
                *op = custom_operator(parts)?;
            }
            if let (Expr::Tuple(left), Expr::Tuple(right)) = (left.as_ref(), right.as_ref())
                && let Some(compared) = compare_rows(left, op, right)?
            {
                *expr = compared;
                return Ok(());
            }
            match op {
                BinaryOperator::PGRegexMatch
                | BinaryOperator::PGRegexIMatch
                | BinaryOperator::PGRegexNotMatch
                | BinaryOperator::PGRegexNotIMatch => {
                    let translated = matches!(right.as_ref(), Expr::Function(f)
                        if matches!(name_of(&f.name).as_str(), "pg_similar_pattern" | "pg_regex_pattern"));
                    if !translated {
                        let inner = take(right);
                        **right = call("pg_regex_pattern", vec![inner]);
                    }
                }
                BinaryOperator::PGExp => {
                    let args = vec![take(left), take(right)];
                    *expr = call("power", args);
                }
                _ => {}
            }
        }
        Expr::InList {
            expr: row,
            list,
            negated,
        } => {
            if let Expr::Tuple(row) = row.as_ref()
                && let Some(choice) = row_in_list(row, list, *negated)?
            {
                *expr = choice;
            }
        }
        Expr::IsNull(row) => {
            if let Some(tests) = row_is_null(row, false) {
                *expr = tests;
            }
        }
        Expr::IsNotNull(row) => {
            if let Some(tests) = row_is_null(row, true) {
                *expr = tests;
            }
        }
        Expr::UnaryOp { op, expr: inner } => match op {
            UnaryOperator::PGAbs => *expr = call("abs", vec![take(inner)]),
            UnaryOperator::PGSquareRoot => *expr = call("sqrt", vec![take(inner)]),
            UnaryOperator::PGCubeRoot => *expr = call("cbrt", vec![take(inner)]),
            UnaryOperator::BitwiseNot => *expr = call("pg_bit_not", vec![take(inner)]),
            _ => {}
        },
        Expr::Collate {
            expr: inner,
            collation,
        } => {
            let name = name_of(collation);
            if !matches!(
                name.as_str(),
                "C" | "c" | "POSIX" | "posix" | "default" | "ucs_basic" | "C.UTF-8" | "c.utf-8"
            ) {
                return Err(SqlError::unsupported(format!("collation {collation}")));
            }
            *expr = match take(inner) {
                // Still an expression, not a name: see `order_by`.
                name @ Expr::Identifier(_) => Expr::Nested(Box::new(name)),
                other => other,
            };
        }
        Expr::Interval(interval) => {
            let value = match (literal(&interval.value), &interval.value) {
                (Some(text), _) => text.to_owned(),
                (None, inner) => {
                    return Err(SqlError::unsupported(format!("INTERVAL {inner}")));
                }
            };
            if interval.last_field.is_some()
                || interval.leading_precision.is_some()
                || interval.fractional_seconds_precision.is_some()
            {
                return Err(SqlError::unsupported("an interval with several fields"));
            }
            let value = match &interval.leading_field {
                None => value,
                Some(field) => interval_with_field(&value, field)?,
            };
            *expr = Expr::TypedString(TypedString {
                data_type: DataType::Interval {
                    fields: None,
                    precision: None,
                },
                value: Value::SingleQuotedString(value).into(),
                uses_odbc_syntax: false,
            });
        }
        Expr::AtTimeZone {
            timestamp,
            time_zone,
        } => {
            let args = vec![take(time_zone), take(timestamp)];
            *expr = call("timezone", args);
        }
        Expr::Value(ValueWithSpan { value, .. }) => match value {
            Value::Number(digits, _) if digits.contains(['e', 'E']) => {
                *expr = plain_number(digits);
            }
            Value::HexStringLiteral(_) | Value::SingleQuotedByteStringLiteral(_) => {
                return Err(SqlError::unsupported("a bit string"));
            }
            Value::NationalStringLiteral(s) => *value = Value::SingleQuotedString(s.clone()),
            Value::EscapedStringLiteral(s) => *value = Value::SingleQuotedString(s.clone()),
            Value::UnicodeStringLiteral(s) => *value = Value::SingleQuotedString(s.clone()),
            Value::DollarQuotedString(s) => {
                *value = Value::SingleQuotedString(s.value.clone());
            }
            _ => {}
        },
        Expr::Function(function) => {
            if let [schema, _] = function.name.0.as_slice()
                && schema.to_string().eq_ignore_ascii_case("pg_catalog")
            {
                function.name.0.remove(0);
            }
            // sqlparser reads CURRENT_DATE and the like as calls without list.
            if matches!(function.args, FunctionArguments::None) {
                function.args = FunctionArguments::List(FunctionArgumentList {
                    duplicate_treatment: None,
                    args: vec![],
                    clauses: vec![],
                });
            }
        }
        Expr::Cast {
            kind,
            expr: inner,
            data_type,
            ..
        } => {
            if matches!(kind, CastKind::TryCast | CastKind::SafeCast) {
                return Err(SqlError::syntax("TRY_CAST is not PostgreSQL"));
            }
            if let Some(replaced) = object_identifier(inner, data_type)? {
                *expr = replaced;
            }
        }
        Expr::AnyOp {
            left,
            compare_op,
            right,
            ..
        } if subquery(right).is_some() => {
            *expr = quantified(left, compare_op, right, false)?;
        }
        Expr::AllOp {
            left,
            compare_op,
            right,
        } if subquery(right).is_some() => {
            *expr = quantified(left, compare_op, right, true)?;
        }
        Expr::AnyOp {
            left,
            compare_op,
            right,
            ..
        } => *expr = with_array(left, compare_op, right, false)?,
        Expr::AllOp {
            left,
            compare_op,
            right,
        } => *expr = with_array(left, compare_op, right, true)?,
        _ => {}
    }
    respell(expr)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(sql: &str) -> Result<String> {
        let statement = Parser::parse_sql(&PostgreSqlDialect {}, sql)
            .map_err(|e| SqlError::syntax(e.to_string()))?
            .remove(0);
        let Statement::Query(mut query) = statement else {
            return Err(SqlError::internal("no query"));
        };
        rewrite_query(&mut query)?;
        Ok(query.to_string())
    }

    fn state(sql: &str) -> String {
        rewritten(sql).err().map_or(String::new(), |e| e.sqlstate)
    }

    #[test]
    fn patterns_are_translated() {
        let sql = rewritten("SELECT a SIMILAR TO 'x%' FROM t").unwrap_or_default();
        assert!(sql.contains("a ~ pg_similar_pattern('x%')"), "{sql}");
        let sql =
            rewritten("SELECT a OPERATOR(pg_catalog.~) 'x' COLLATE pg_catalog.default FROM t")
                .unwrap_or_default();
        assert!(sql.contains("a ~ pg_regex_pattern('x')"), "{sql}");
        let sql = rewritten("SELECT a LIKE 'x!%' ESCAPE '!' FROM t").unwrap_or_default();
        assert!(sql.contains("pg_like_escape('x!%', '!')"), "{sql}");
    }

    #[test]
    fn what_would_differ_is_refused() {
        assert_eq!(state("SELECT x'41'"), "0A000");
        assert_eq!(
            state("SELECT a FROM t ORDER BY a COLLATE \"de_DE\""),
            "0A000"
        );
        assert_eq!(state("SELECT generate_series(1, a) FROM t"), "0A000");
        assert_eq!(state("SELECT generate_series(1, 3)"), "");
    }

    #[test]
    fn series_in_from_name_their_column() {
        let sql = rewritten("SELECT g FROM generate_series(1, 3) AS g").unwrap_or_default();
        assert!(sql.contains("AS g (g)"), "{sql}");
    }

    #[test]
    fn quantifiers_become_bounds() {
        let sql =
            rewritten("SELECT * FROM d WHERE id > ANY (SELECT id FROM d)").unwrap_or_default();
        assert!(sql.contains("min(c)"), "{sql}");
        let sql =
            rewritten("SELECT * FROM d WHERE id = ANY (SELECT id FROM d)").unwrap_or_default();
        assert!(sql.contains("id IN (SELECT"), "{sql}");
    }

    #[test]
    fn locking_clauses_are_refused() {
        for (sql, refused) in [
            ("SELECT * FROM t", false),
            ("SELECT * FROM t FOR SHARE", true),
            ("SELECT * FROM (SELECT * FROM t FOR UPDATE) x", true),
        ] {
            let mut statements = Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap();
            let Some(Statement::Query(query)) = statements.pop() else {
                panic!("no query");
            };
            assert_eq!(refuse_locking(&query).is_err(), refused, "{sql}");
        }
    }
}
