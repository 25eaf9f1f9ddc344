//! `x op ANY (array)` and `x op ALL (array)` on the AST: a list where the elements
//! stand in the text, else a function of the array.

use super::rewrite::call;
use crate::error::{Result, SqlError};
use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, BinaryOperator, CastKind, DataType, Expr, Value,
};
use lineradb_functions::quantified::{ALL, ANY};

/// What PostgreSQL means by a comparison with an array.
///
/// # Errors
/// 0A000 for operators that compare otherwise.
pub fn with_array(left: &Expr, op: &BinaryOperator, right: &Expr, all: bool) -> Result<Expr> {
    let symbol = match op {
        BinaryOperator::Eq => "=",
        BinaryOperator::NotEq => "<>",
        BinaryOperator::Lt => "<",
        BinaryOperator::LtEq => "<=",
        BinaryOperator::Gt => ">",
        BinaryOperator::GtEq => ">=",
        other => {
            let word = if all { "ALL" } else { "ANY" };
            return Err(SqlError::unsupported(format!("{other} {word} (array)")));
        }
    };
    let listed = matches!((symbol, all), ("=", false) | ("<>", true));
    if let (true, Some(list)) = (listed, elements(right)) {
        return Ok(match list.is_empty() {
            true => Expr::value(Value::Boolean(all)),
            false => Expr::InList {
                expr: Box::new(left.clone()),
                list,
                negated: all,
            },
        });
    }
    let name = if all { ALL } else { ANY };
    let symbol = Expr::value(Value::SingleQuotedString(symbol.to_owned()));
    Ok(call(name, vec![left.clone(), right.clone(), symbol]))
}

/// The elements of `ARRAY[...]`, with the element type of a cast around it.
fn elements(array: &Expr) -> Option<Vec<Expr>> {
    match array {
        Expr::Nested(inner) => elements(inner),
        Expr::Array(array) if !array.elem.iter().any(|e| matches!(e, Expr::Array(_))) => {
            Some(array.elem.clone())
        }
        Expr::Cast {
            kind: CastKind::Cast | CastKind::DoubleColon,
            expr,
            data_type:
                DataType::Array(
                    ArrayElemTypeDef::SquareBracket(element, _)
                    | ArrayElemTypeDef::AngleBracket(element)
                    | ArrayElemTypeDef::Parenthesis(element),
                ),
            ..
        } => {
            let cast = |e: Expr| Expr::Cast {
                kind: CastKind::Cast,
                expr: Box::new(e),
                data_type: element.as_ref().clone(),
                array: false,
                format: None,
            };
            Some(elements(expr)?.into_iter().map(cast).collect())
        }
        _ => None,
    }
}
