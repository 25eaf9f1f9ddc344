//! `information_schema._pg_expandarray(x)`: JDBC asks with it for primary keys and
//! indexes. It returns a row (x, n) per element of an array; here the select gets a
//! join with the positions, and the parts of the row are what they are:
//!
//! ```text
//!  SELECT (f(i.indkey)).n, f(i.indkey) AS keys FROM pg_index i
//!  SELECT k.n, i.indkey[k.n] AS keys
//!      FROM pg_index i, generate_series(1, 32) AS k(n) WHERE k.n <= cardinality(i.indkey)
//! ```
//!
//! Around it, `(r.keys).x` is `r.keys`: of the row only the element is left.

use crate::statement::{parse_expr, parse_sql};
use datafusion::sql::sqlparser::ast::{
    AccessExpr, BinaryOperator, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Select,
    SelectItem, SetExpr, Statement, TableFactor,
};

const FUNCTION: &str = "_pg_expandarray";
/// The positions; an index has at most 32 columns.
const POSITIONS: &str = "SELECT 1 FROM generate_series(1, 32) AS lineradb_positions(n)";
const POSITION: &str = "lineradb_positions.n";

/// Rewrites a select that calls the function in its list.
pub fn expand(select: &mut Select) {
    let mut array = None;
    for item in &mut select.projection {
        let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = item else {
            continue;
        };
        let part = match &*expr {
            Expr::CompoundFieldAccess { root, access_chain } => match &access_chain[..] {
                [AccessExpr::Dot(Expr::Identifier(part))] => {
                    argument(root).map(|a| (a, part.value.to_lowercase()))
                }
                _ => None,
            },
            other => argument(other).map(|a| (a, "x".to_owned())),
        };
        let Some((of, part)) = part else { continue };
        let text = match part.as_str() {
            "n" => POSITION.to_owned(),
            _ => format!("({of})[{POSITION}]"),
        };
        if let Ok(replacement) = parse_expr(&text) {
            *expr = replacement;
            array = Some(of);
        }
    }
    let Some(array) = array else {
        return;
    };
    if let (Ok(Statement::Query(query)), Ok(within)) = (
        parse_sql(POSITIONS),
        parse_expr(&format!("{POSITION} <= cardinality({array})")),
    ) && let SetExpr::Select(positions) = *query.body
    {
        select.from.extend(positions.from);
        select.selection = Some(match select.selection.take() {
            None => within,
            Some(before) => Expr::BinaryOp {
                left: Box::new(Expr::Nested(Box::new(before))),
                op: BinaryOperator::And,
                right: Box::new(within),
            },
        });
    }
}

/// True for a select that reads from one that [`expand`] rewrites.
pub fn reads_expanded(select: &Select) -> bool {
    select.from.iter().any(|from| match &from.relation {
        TableFactor::Derived { subquery, .. } => match subquery.body.as_ref() {
            SetExpr::Select(inner) => inner.projection.iter().any(|item| {
                let text = item.to_string();
                text.contains(FUNCTION)
            }),
            _ => false,
        },
        _ => false,
    })
}

/// `(r.keys).x` is `r.keys`.
pub fn element(expr: &Expr) -> Option<Expr> {
    let Expr::CompoundFieldAccess { root, access_chain } = expr else {
        return None;
    };
    match (&**root, &access_chain[..]) {
        (Expr::Nested(inner), [AccessExpr::Dot(Expr::Identifier(part))])
            if part.value.eq_ignore_ascii_case("x")
                && matches!(**inner, Expr::CompoundIdentifier(_)) =>
        {
            Some((**inner).clone())
        }
        _ => None,
    }
}

/// The argument of a call of the function, as text.
fn argument(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Nested(inner) => argument(inner),
        Expr::Function(function) => {
            let name = function.name.to_string().to_lowercase();
            if !name.ends_with(FUNCTION) {
                return None;
            }
            let FunctionArguments::List(list) = &function.args else {
                return None;
            };
            match &list.args[..] {
                [FunctionArg::Unnamed(FunctionArgExpr::Expr(of))] => Some(of.to_string()),
                _ => None,
            }
        }
        _ => None,
    }
}
