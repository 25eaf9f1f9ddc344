//! Rows in comparisons, `(a, b) = (c, d)`, as comparisons of their columns.
//! DataFusion reads such rows as structs, whose NULLs compare otherwise.

use crate::error::{Result, SqlError};
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, FunctionArg, FunctionArgExpr, FunctionArguments,
};

fn compare(left: Expr, op: BinaryOperator, right: Expr) -> Expr {
    Expr::Nested(Box::new(Expr::BinaryOp {
        left: Box::new(left),
        op,
        right: Box::new(right),
    }))
}

/// The comparison of two rows; `None` for operators that compare no rows.
///
/// # Errors
/// 42601 for rows of different lengths.
pub fn compare_rows(left: &[Expr], op: &BinaryOperator, right: &[Expr]) -> Result<Option<Expr>> {
    use BinaryOperator as B;
    if left.len() != right.len() {
        return Err(SqlError::syntax(
            "unequal number of entries in row expressions",
        ));
    }
    let pairs = || left.iter().cloned().zip(right.iter().cloned());
    Ok(match op {
        B::Eq => pairs()
            .map(|(l, r)| compare(l, B::Eq, r))
            .reduce(|a, b| compare(a, B::And, b)),
        B::NotEq => pairs()
            .map(|(l, r)| compare(l, B::NotEq, r))
            .reduce(|a, b| compare(a, B::Or, b)),
        // The first column that differs decides.
        B::Lt | B::LtEq | B::Gt | B::GtEq => {
            let strict = match op {
                B::Lt | B::LtEq => B::Lt,
                _ => B::Gt,
            };
            let mut columns = pairs().rev();
            let last = columns.next().map(|(l, r)| compare(l, op.clone(), r));
            columns.fold(last, |rest, (l, r)| {
                let differs = compare(l.clone(), strict.clone(), r.clone());
                let equal = compare(l, B::Eq, r);
                rest.map(|rest| compare(differs, B::Or, compare(equal, B::And, rest)))
            })
        }
        _ => None,
    })
}

/// `(a, b) IS NULL`: all fields are; `IS NOT NULL`: none is. `None`: it is no row.
pub fn row_is_null(row: &Expr, negated: bool) -> Option<Expr> {
    let fields: Vec<Expr> = match row {
        Expr::Nested(inner) => return row_is_null(inner, negated),
        Expr::Tuple(fields) => fields.clone(),
        Expr::Function(f) if f.over.is_none() && f.name.to_string().eq_ignore_ascii_case("row") => {
            let FunctionArguments::List(list) = &f.args else {
                return None;
            };
            let fields = list.args.iter().map(|arg| match arg {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(field)) => Some(field.clone()),
                _ => None,
            });
            fields.collect::<Option<_>>()?
        }
        _ => return None,
    };
    let test = |field| match negated {
        true => Expr::IsNotNull(Box::new(field)),
        false => Expr::IsNull(Box::new(field)),
    };
    let tests = fields.into_iter().map(test);
    tests.reduce(|a, b| compare(a, BinaryOperator::And, b))
}

/// `(a, b) IN ((1, 2), (3, 4))` as a choice of equal rows; `None` when the list
/// has something else than rows.
///
/// # Errors
/// 42601 for rows of different lengths.
pub fn row_in_list(row: &[Expr], list: &[Expr], negated: bool) -> Result<Option<Expr>> {
    let (op, joined) = match negated {
        false => (BinaryOperator::Eq, BinaryOperator::Or),
        true => (BinaryOperator::NotEq, BinaryOperator::And),
    };
    let mut choice: Option<Expr> = None;
    for item in list {
        let Expr::Tuple(item) = item else {
            return Ok(None);
        };
        let Some(one) = compare_rows(row, &op, item)? else {
            return Ok(None);
        };
        choice = Some(match choice {
            Some(others) => compare(others, joined.clone(), one),
            None => one,
        });
    }
    Ok(choice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::sql::sqlparser::ast::Ident;

    fn row(names: [&str; 2]) -> Vec<Expr> {
        names
            .iter()
            .map(|n| Expr::Identifier(Ident::new(*n)))
            .collect()
    }

    #[test]
    fn columns_are_compared_in_order() {
        let text = |op| {
            compare_rows(&row(["a", "b"]), &op, &row(["c", "d"]))
                .ok()
                .flatten()
                .map(|e| e.to_string())
                .unwrap_or_default()
        };
        assert_eq!(text(BinaryOperator::Eq), "((a = c) AND (b = d))");
        assert_eq!(text(BinaryOperator::NotEq), "((a <> c) OR (b <> d))");
        assert_eq!(
            text(BinaryOperator::LtEq),
            "((a < c) OR ((a = c) AND (b <= d)))"
        );
        assert_eq!(text(BinaryOperator::Plus), "");
        let short = compare_rows(&row(["a", "b"]), &BinaryOperator::Eq, &[]);
        assert_eq!(short.unwrap_err().sqlstate, "42601");
    }
}
