//! Long sums and products become one call each (`pg_chain`), so that planning
//! them stays linear: DataFusion types a nested expression anew at every level,
//! and writes its whole name each time.

use super::errors::carry;
use crate::error::SqlError;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::expr::{BinaryExpr, ScalarFunction};
use datafusion::logical_expr::{Expr, ExprSchemable, Operator};
use lineradb_functions::arith::is_number;
use lineradb_functions::chain;

/// Operators from which a chain is long.
const LONG: usize = 8;

fn symbol(op: Operator) -> Option<char> {
    Some(match op {
        Operator::Plus => '+',
        Operator::Minus => '-',
        Operator::Multiply => '*',
        Operator::Divide => '/',
        Operator::Modulo => '%',
        _ => return None,
    })
}

/// Replaces the long chains of an expression.
pub fn flatten(expr: Expr, schema: &DFSchema) -> Result<Expr> {
    let flat = expr.transform_down(|e| {
        let Some(operators) = long(&e, schema)? else {
            return Ok(Transformed::no(e));
        };
        let mut operands = Vec::with_capacity(operators.len() + 1);
        let mut rest = e;
        while operands.len() < operators.len()
            && let Expr::BinaryExpr(BinaryExpr { left, right, .. }) = rest
        {
            operands.push(*right);
            rest = *left;
        }
        operands.push(rest);
        let mut args = vec![Expr::Literal(ScalarValue::Utf8(Some(operators)), None)];
        args.extend(operands.into_iter().rev());
        let Some(function) = lineradb_functions::by_name(chain::NAME) else {
            return Err(carry(SqlError::internal("no function for chains")));
        };
        Ok(Transformed::yes(Expr::ScalarFunction(
            ScalarFunction::new_udf(function, args),
        )))
    })?;
    Ok(flat.data)
}

/// The operators of a long chain of numbers, in the order of the text.
fn long(expr: &Expr, schema: &DFSchema) -> Result<Option<String>> {
    let mut operators = Vec::new();
    let mut operands = Vec::new();
    let mut rest = expr;
    while let Expr::BinaryExpr(BinaryExpr { left, op, right }) = rest
        && let Some(symbol) = symbol(*op)
    {
        operators.push(symbol);
        operands.push(right.as_ref());
        rest = left;
    }
    if operators.len() < LONG {
        return Ok(None);
    }
    operands.push(rest);
    for operand in operands {
        // What has no type of its own takes that of its neighbour.
        match operand.get_type(schema) {
            Ok(t) if is_number(&t) => {}
            _ => return Ok(None),
        }
    }
    Ok(Some(operators.iter().rev().collect()))
}
