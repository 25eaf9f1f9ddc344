//! Operators bind as PostgreSQL's grammar says (manual, section 4.1.6), where the
//! parser's tree says otherwise. Brackets are nodes of the tree, so what binds too
//! loosely or too tightly can be told from what the user grouped:
//!
//! * `x IS DISTINCT FROM a AND b` is `(x IS DISTINCT FROM a) AND b`; the parser takes
//!   the rest of the expression for the right operand;
//! * `-2 ^ 2` is `(-2) ^ 2`;
//! * `~1 + 1` is `~(1 + 1)`, and so with `@`, `|/` and `||/`: operators that the manual
//!   does not name bind less than arithmetic.

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Statement, UnaryOperator, Value, VisitMut, VisitorMut,
};
use std::ops::ControlFlow;

/// Makes the tree of a statement that of PostgreSQL's grammar.
pub(super) fn regroup_statement(statement: &mut Statement) {
    let _ = statement.visit(&mut Regroup);
}

/// The same for an expression alone.
pub(super) fn regroup_expr(expr: &mut Expr) {
    let _ = expr.visit(&mut Regroup);
}

struct Regroup;

impl VisitorMut for Regroup {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        regroup(expr);
        ControlFlow::Continue(())
    }
}

fn take(expr: &mut Expr) -> Expr {
    std::mem::replace(expr, Expr::value(Value::Null))
}

/// One node, whose operands are in order.
fn regroup(expr: &mut Expr) {
    match expr {
        Expr::IsDistinctFrom(_, right) | Expr::IsNotDistinctFrom(_, right)
            if is_logical(right, false) =>
        {
            let mut rest = take(right);
            let first = leftmost(&mut rest, |e| is_logical(e, false));
            let operand = take(first);
            **operand_of(expr) = operand;
            *first = take(expr);
            *expr = rest;
        }
        // Below AND there is no bare OR, and below NOT neither, but where the rule above
        // has put one.
        Expr::BinaryOp {
            op: BinaryOperator::And,
            right,
            ..
        } if is_logical(right, true) => {
            let mut rest = take(right);
            let first = leftmost(&mut rest, |e| is_logical(e, true));
            let operand = take(first);
            **operand_of(expr) = operand;
            *first = take(expr);
            *expr = rest;
        }
        Expr::UnaryOp {
            op: UnaryOperator::Not,
            expr: operand,
        } if is_logical(operand, false) => {
            let mut rest = take(operand);
            let first = leftmost(&mut rest, |e| is_logical(e, false));
            let inner = take(first);
            **operand_of(expr) = inner;
            *first = take(expr);
            *expr = rest;
        }
        Expr::UnaryOp {
            op: UnaryOperator::Minus | UnaryOperator::Plus,
            expr: operand,
        } if is_power(operand) => {
            let mut rest = take(operand);
            let first = leftmost(&mut rest, is_power);
            let inner = take(first);
            **operand_of(expr) = inner;
            *first = take(expr);
            *expr = rest;
        }
        Expr::BinaryOp { left, op, .. } if is_arithmetic(op) && is_prefix(left) => {
            let mut prefix = take(left);
            **left = take(operand_of(&mut prefix));
            **operand_of(&mut prefix) = take(expr);
            *expr = prefix;
        }
        _ => {}
    }
}

/// The operand that an operator binds too much of: the right one, or the only one.
///
/// # Panics
/// Never: only for the operators of [`regroup`].
fn operand_of(expr: &mut Expr) -> &mut Box<Expr> {
    match expr {
        Expr::IsDistinctFrom(_, operand)
        | Expr::IsNotDistinctFrom(_, operand)
        | Expr::BinaryOp { right: operand, .. }
        | Expr::UnaryOp { expr: operand, .. } => operand,
        _ => unreachable!("no operator that is regrouped"),
    }
}

/// The first operand of a chain of operators.
fn leftmost(expr: &mut Expr, in_chain: impl Fn(&Expr) -> bool + Copy) -> &mut Expr {
    if !in_chain(expr) {
        return expr;
    }
    match expr {
        Expr::BinaryOp { left, .. } => leftmost(left, in_chain),
        other => other,
    }
}

/// A bare AND or OR, or only OR.
fn is_logical(expr: &Expr, only_or: bool) -> bool {
    match expr {
        Expr::BinaryOp { op, .. } => {
            *op == BinaryOperator::Or || (!only_or && *op == BinaryOperator::And)
        }
        _ => false,
    }
}

fn is_power(expr: &Expr) -> bool {
    matches!(
        expr,
        Expr::BinaryOp {
            op: BinaryOperator::PGExp,
            ..
        }
    )
}

fn is_prefix(expr: &Expr) -> bool {
    matches!(
        expr,
        Expr::UnaryOp {
            op: UnaryOperator::BitwiseNot
                | UnaryOperator::PGAbs
                | UnaryOperator::PGSquareRoot
                | UnaryOperator::PGCubeRoot,
            ..
        }
    )
}

fn is_arithmetic(op: &BinaryOperator) -> bool {
    matches!(
        op,
        BinaryOperator::Plus
            | BinaryOperator::Minus
            | BinaryOperator::Multiply
            | BinaryOperator::Divide
            | BinaryOperator::Modulo
            | BinaryOperator::PGExp
    )
}

#[cfg(test)]
mod tests {
    use super::super::parse_expr;
    use super::*;

    /// With brackets around every operator.
    fn grouped(expr: &Expr) -> String {
        match expr {
            Expr::BinaryOp { left, op, right } => {
                format!("({} {op} {})", grouped(left), grouped(right))
            }
            Expr::UnaryOp { op, expr } => format!("({op} {})", grouped(expr)),
            Expr::IsDistinctFrom(left, right) => {
                format!("({} IS DISTINCT FROM {})", grouped(left), grouped(right))
            }
            Expr::IsNotDistinctFrom(left, right) => {
                format!(
                    "({} IS NOT DISTINCT FROM {})",
                    grouped(left),
                    grouped(right)
                )
            }
            Expr::Nested(inner) => grouped(inner),
            other => other.to_string(),
        }
    }

    #[test]
    fn operators_bind_as_the_manual_says() {
        for (sql, expected) in [
            (
                "a is distinct from b and c",
                "((a IS DISTINCT FROM b) AND c)",
            ),
            (
                "p and a is not distinct from b or c and d",
                "((p AND (a IS NOT DISTINCT FROM b)) OR (c AND d))",
            ),
            (
                "p or a is distinct from b and c or d",
                "(p OR (((a IS DISTINCT FROM b) AND c) OR d))",
            ),
            (
                "not a is distinct from b and c or d",
                "(((NOT (a IS DISTINCT FROM b)) AND c) OR d)",
            ),
            (
                "a is distinct from b and c is distinct from d or e",
                "(((a IS DISTINCT FROM b) AND (c IS DISTINCT FROM d)) OR e)",
            ),
            (
                "a is distinct from (b and c)",
                "(a IS DISTINCT FROM (b AND c))",
            ),
            ("a is distinct from b + 1", "(a IS DISTINCT FROM (b + 1))"),
            ("not (a or b)", "(NOT (a OR b))"),
            ("a and (b or c)", "(a AND (b OR c))"),
            ("-2 ^ 2", "((- 2) ^ 2)"),
            ("-a ^ 2 ^ 3", "(((- a) ^ 2) ^ 3)"),
            ("5 - -3 ^ 2", "(5 - ((- 3) ^ 2))"),
            ("-(2 ^ 2)", "(- (2 ^ 2))"),
            ("~1 + 1", "(~ (1 + 1))"),
            ("~1 * 2 + 3", "(~ ((1 * 2) + 3))"),
            ("(~1) + 1", "((~ 1) + 1)"),
            ("@ -5 + 3", "(@ ((- 5) + 3))"),
            ("|/ 16 + 9", "(|/ (16 + 9))"),
        ] {
            let expr = parse_expr(sql).expect(sql);
            assert_eq!(grouped(&expr), expected, "{sql}");
        }
    }
}
