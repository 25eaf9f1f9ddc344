//! Names in ORDER BY, as PostgreSQL looks them up (`findTargetlistEntrySQL92`): a
//! name that stands alone is a column of the result, if there is one of that name;
//! within an expression, or behind a table's name, it is a column of FROM. The engine
//! would look into the result first for all of them, so `SELECT -x AS x ... ORDER BY
//! x + 0` would be sorted by the wrong `x`. Where such an expression names what a
//! column of the result is called too, that column gets a name that nobody can write;
//! [`super::names::plain`] shows the old one again.

use super::names::{hidden, is_hidden, output_name, plain};
use super::scope::quoted;
use crate::error::{Result, SqlError};
use crate::statement::ident;
use datafusion::sql::sqlparser::ast::{
    Distinct, Expr, OrderByKind, Query, SelectItem, SetExpr, TableAlias, TableAliasColumnDef,
    TableFactor, Value, Visit, VisitMut, Visitor, VisitorMut,
};
use std::collections::HashSet;
use std::ops::ControlFlow;

/// Makes the ORDER BYs of a query mean what PostgreSQL reads in them.
///
/// # Errors
/// 42703 and 0A000 for what the result of a UNION cannot be sorted by; 0A000 for a subquery of FROM whose columns would have to be named for it and are
/// not listed.
pub fn look_up_order_names(query: &mut Query) -> Result<()> {
    struct Queries;
    impl VisitorMut for Queries {
        type Break = SqlError;
        fn post_visit_query(&mut self, query: &mut Query) -> ControlFlow<SqlError> {
            hide_results(query);
            if let Err(error) = order_of_set(query) {
                return ControlFlow::Break(error);
            }
            let ctes = query.with.iter_mut().flat_map(|with| &mut with.cte_tables);
            for cte in ctes {
                if let Err(error) = name_again(&cte.query, &mut cte.alias) {
                    return ControlFlow::Break(error);
                }
            }
            ControlFlow::Continue(())
        }
        fn post_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<SqlError> {
            match factor {
                TableFactor::Derived {
                    subquery,
                    alias: Some(alias),
                    ..
                } => match name_again(subquery, alias) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => ControlFlow::Break(error),
                },
                _ => ControlFlow::Continue(()),
            }
        }
    }
    super::rewrite::finish(query.visit(&mut Queries))
}

/// Brackets around a whole item of ORDER BY mean nothing.
pub fn bare_order(query: &mut Query) {
    if let Some(order) = &mut query.order_by
        && let OrderByKind::Expressions(by) = &mut order.kind
    {
        for by in by {
            while let Expr::Nested(inner) = &mut by.expr {
                by.expr = super::rewrite::take(inner);
            }
        }
    }
}

/// Hides the names of results that an expression of ORDER BY means otherwise.
fn hide_results(query: &mut Query) {
    let (SetExpr::Select(select), Some(order)) = (query.body.as_mut(), &mut query.order_by) else {
        return;
    };
    let OrderByKind::Expressions(by) = &mut order.kind else {
        return;
    };
    if matches!(select.distinct, Some(Distinct::Distinct)) {
        let listed = select.projection.iter();
        let listed: Vec<&Expr> = listed.map_while(expression).collect();
        for by in by.iter_mut() {
            // It is one of the columns that are told apart.
            if let Some(at) = listed.iter().position(|e| **e == by.expr)
                && !matches!(by.expr, Expr::Identifier(_) | Expr::Value(_))
            {
                by.expr = ordinal(at);
            }
        }
    }
    let mut named = Mentioned::default();
    for by in by
        .iter()
        .filter(|by| !matches!(by.expr, Expr::Identifier(_)))
    {
        let _ = by.expr.visit(&mut named);
    }
    let mut changed = HashSet::new();
    for item in &mut select.projection {
        if let SelectItem::ExprWithAlias { alias, .. } = item
            && named.names.contains(&ident(alias))
        {
            changed.insert(ident(alias));
            *alias = quoted(&hidden(&ident(alias)));
        }
    }
    for by in by {
        if let Expr::Identifier(name) = &mut by.expr
            && changed.contains(&ident(name))
        {
            *name = quoted(&hidden(&ident(name)));
        }
    }
}

/// The expression of an item that is one column.
fn expression(item: &SelectItem) -> Option<&Expr> {
    match item {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Some(expr),
        _ => None,
    }
}

/// The column of the result at a place, counted from 0.
fn ordinal(at: usize) -> Expr {
    Expr::value(Value::Number((at + 1).to_string(), false))
}

/// A UNION, INTERSECT or EXCEPT is sorted by columns of its result alone: there is no
/// FROM behind it that an expression could look into.
fn order_of_set(query: &mut Query) -> Result<()> {
    let (SetExpr::SetOperation { .. }, Some(order)) = (query.body.as_ref(), &mut query.order_by)
    else {
        return Ok(());
    };
    let items = first_select(&query.body);
    let names: Vec<String> = items.iter().map_while(output_name).collect();
    let OrderByKind::Expressions(by) = &mut order.kind else {
        return Ok(());
    };
    for by in by {
        match &by.expr {
            Expr::Identifier(name) => {
                let name = ident(name);
                let of_this_name = |n: &String| *n == name || *n == hidden(&name);
                match names.iter().position(of_this_name) {
                    Some(at) => by.expr = ordinal(at),
                    // Of a list with `*` the engine knows the rest.
                    None if names.len() < items.len() || items.is_empty() => {}
                    None => {
                        return Err(SqlError::new(
                            "42703",
                            format!("column \"{name}\" does not exist"),
                        ));
                    }
                }
            }
            Expr::CompoundIdentifier(parts) if parts.len() > 1 => {
                let table = parts.first().map(ident).unwrap_or_default();
                return Err(SqlError::new(
                    "42P01",
                    format!("missing FROM-clause entry for table \"{table}\""),
                ));
            }
            Expr::Value(_) => {}
            _ => {
                let refused = SqlError::unsupported(
                    "ORDER BY of a UNION, INTERSECT or EXCEPT by an expression",
                );
                return Err(refused.with_hint(
                    "Only names of result columns can be used: add the expression to every \
                     SELECT, or move the UNION into a FROM clause.",
                ));
            }
        }
    }
    Ok(())
}

/// The names of columns in an expression. A bare name in a subquery is, as a rule,
/// one of its own.
#[derive(Default)]
struct Mentioned {
    names: HashSet<String>,
    depth: usize,
}

impl Visitor for Mentioned {
    type Break = ();
    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }
    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Identifier(name) if self.depth == 0 => _ = self.names.insert(ident(name)),
            Expr::CompoundIdentifier(parts) => self.names.extend(parts.last().map(ident)),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// A subquery in FROM gets the names of its columns back.
fn name_again(query: &Query, alias: &mut TableAlias) -> Result<()> {
    let items = first_select(&query.body);
    let is_changed = |item: &SelectItem| match item {
        SelectItem::ExprWithAlias { alias, .. } => is_hidden(&alias.value),
        _ => false,
    };
    if !items.iter().any(is_changed) {
        return Ok(());
    }
    for item in &items[alias.columns.len().min(items.len())..] {
        let Some(name) = output_name(item) else {
            return Err(SqlError::unsupported(
                "* in a subquery whose ORDER BY names a column that a column of its \
                 result hides",
            ));
        };
        let name = match is_hidden(&name) {
            true => plain(&name),
            false => &name,
        };
        alias.columns.push(TableAliasColumnDef {
            name: quoted(name),
            data_type: None,
        });
    }
    Ok(())
}

/// The select list that names the columns of a query.
fn first_select(body: &SetExpr) -> &[SelectItem] {
    match body {
        SetExpr::Select(select) => &select.projection,
        SetExpr::Query(query) => first_select(&query.body),
        SetExpr::SetOperation { left, .. } => first_select(left),
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::super::names::name_outputs;
    use super::super::rewrite::parse_query;
    use super::*;

    fn read(sql: &str) -> String {
        let mut query = parse_query(sql).expect(sql);
        name_outputs(&mut query);
        look_up_order_names(&mut query).expect(sql);
        query.to_string().replace('\u{1}', "^")
    }

    #[test]
    fn names_are_hidden_where_an_expression_means_another_column() {
        for (sql, expected) in [
            (
                "SELECT -x AS x FROM t ORDER BY x",
                "SELECT -x AS x FROM t ORDER BY x",
            ),
            (
                "SELECT -x AS x FROM t ORDER BY X, x + 0",
                "SELECT -x AS \"x^\" FROM t ORDER BY \"x^\", x + 0",
            ),
            (
                "SELECT max(id) AS id, n FROM t GROUP BY n ORDER BY max(id), n",
                "SELECT max(id) AS \"id^\", n FROM t GROUP BY n ORDER BY max(id), n",
            ),
            (
                "SELECT DISTINCT -x AS x, y FROM t ORDER BY y, -x",
                "SELECT DISTINCT -x AS x, y FROM t ORDER BY y, 1",
            ),
            (
                "SELECT f(x) AS x FROM t ORDER BY (SELECT x FROM u)",
                "SELECT f(x) AS x FROM t ORDER BY (SELECT x FROM u)",
            ),
            (
                "SELECT f(x) AS x FROM t ORDER BY (SELECT y FROM u WHERE u.y = t.x)",
                "SELECT f(x) AS \"x^\" FROM t ORDER BY (SELECT y FROM u WHERE u.y = t.x)",
            ),
            (
                "(SELECT -x AS x FROM t ORDER BY t.x LIMIT 1) UNION SELECT 1 ORDER BY x DESC",
                "(SELECT -x AS \"x^\" FROM t ORDER BY t.x LIMIT 1) UNION SELECT 1 AS \"?column?\" ORDER BY 1 DESC",
            ),
            (
                "SELECT x FROM (SELECT -x AS x, y FROM t ORDER BY t.x LIMIT 1) AS s",
                "SELECT x FROM (SELECT -x AS \"x^\", y FROM t ORDER BY t.x LIMIT 1) AS s (\"x\", \"y\")",
            ),
            (
                "WITH s (a) AS (SELECT 1 AS k, -x AS x FROM t ORDER BY -x LIMIT 1) SELECT x FROM s",
                "WITH s (a, \"x\") AS (SELECT 1 AS k, -x AS \"x^\" FROM t ORDER BY -x LIMIT 1) SELECT x FROM s",
            ),
        ] {
            assert_eq!(read(sql), expected);
        }
    }

    #[test]
    fn a_union_is_sorted_by_what_it_returns() {
        for (sql, state) in [
            ("SELECT x FROM t UNION SELECT x FROM t ORDER BY y", "42703"),
            ("SELECT x FROM t UNION SELECT x FROM t ORDER BY -x", "0A000"),
            (
                "SELECT x FROM t UNION SELECT x FROM t ORDER BY t.x",
                "42P01",
            ),
        ] {
            let mut query = parse_query(sql).expect(sql);
            let error = look_up_order_names(&mut query).expect_err(sql);
            assert_eq!(error.sqlstate, state, "{sql}");
        }
    }
}
