//! Output names as PostgreSQL gives them.
//!
//! DataFusion labels an expression with its text and refuses equal names;
//! PostgreSQL labels it with its function (`count`), its type (`int4`) or
//! `?column?`, and lets names repeat. So every unnamed expression gets an alias
//! here, and one that repeats gets a suffix that no user can type and that is
//! removed from results ([`plain`]).

use datafusion::sql::sqlparser::ast::{
    Expr, Ident, Query, Select, SelectItem, SetExpr, VisitMut, VisitorMut,
};
use std::collections::HashMap;
use std::ops::ControlFlow;

const MARK: char = '\u{1}';

/// The name that the user sees.
pub fn plain(name: &str) -> &str {
    name.split(MARK).next().unwrap_or(name)
}

/// The name of a column that has the name of one before it.
pub fn repeated(name: &str, times: usize) -> String {
    format!("{name}{MARK}{times}")
}

/// A name instead of this one that nobody can mean.
pub fn hidden(name: &str) -> String {
    format!("{name}{MARK}")
}

/// True for what [`hidden`] made.
pub fn is_hidden(name: &str) -> bool {
    name.ends_with(MARK)
}

/// Names the outputs of every SELECT in a query.
pub fn name_outputs(query: &mut Query) {
    struct Names;
    impl VisitorMut for Names {
        type Break = ();
        fn post_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
            name_items(&mut select.projection);
            ControlFlow::Continue(())
        }
    }
    let _ = query.visit(&mut Names);
}

/// Names the items of one select list.
pub fn name_items(items: &mut [SelectItem]) {
    let wildcard = items.iter().any(|i| {
        matches!(
            i,
            SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..)
        )
    });
    let mut seen: HashMap<String, usize> = HashMap::new();
    for item in items.iter() {
        if let Some(name) = output_name(item) {
            *seen.entry(name).or_default() += 1;
        }
    }
    let mut used: HashMap<String, usize> = HashMap::new();
    for item in items.iter_mut() {
        let Some(name) = output_name(item) else {
            continue;
        };
        let n = used.entry(name.clone()).or_default();
        *n += 1;
        let again = seen.get(&name).copied().unwrap_or(0) > 1;
        let is_column = matches!(
            item,
            SelectItem::UnnamedExpr(Expr::Identifier(_) | Expr::CompoundIdentifier(_))
        ) && !matches!(item, SelectItem::UnnamedExpr(e) if bare_function(e).is_some());
        let is_alias = matches!(item, SelectItem::ExprWithAlias { .. });
        // A column next to `*` is there twice.
        let hide = (again && *n > 1) || (wildcard && is_column);
        if !hide && (is_column || is_alias) {
            continue;
        }
        let alias = if hide { repeated(&name, *n) } else { name };
        let expr = match item {
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => expr.clone(),
            _ => continue,
        };
        *item = SelectItem::ExprWithAlias {
            expr,
            alias: Ident::with_quote('"', alias),
        };
    }
}

/// The function that a bare word calls.
pub fn bare_function(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Identifier(word) if word.quote_style.is_none() => {
            let word = word.value.to_lowercase();
            let known = ["current_schema", "current_catalog", "current_role"];
            known.contains(&word.as_str()).then_some(word)
        }
        _ => None,
    }
}

fn fold(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

/// The name of one item of a select list; `None`: it is many.
pub fn output_name(item: &SelectItem) -> Option<String> {
    match item {
        SelectItem::UnnamedExpr(expr) => {
            Some(expression_name(expr).unwrap_or_else(|| "?column?".to_owned()))
        }
        SelectItem::ExprWithAlias { alias, .. } => Some(fold(alias)),
        _ => None,
    }
}

/// PostgreSQL's `FigureColname`: a name that a cast or a CASE around it does not
/// replace.
fn expression_name(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Cast { data_type, .. } => own_name(expr).or_else(|| type_label(data_type)),
        Expr::Case { .. } => own_name(expr).or_else(|| Some("case".into())),
        Expr::TypedString(typed) => type_label(&typed.data_type),
        Expr::Interval(_) => Some("interval".into()),
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => expression_name(inner),
        other => own_name(other),
    }
}

/// The name of a column or a function in an expression.
fn own_name(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Identifier(ident) => Some(fold(ident)),
        Expr::CompoundIdentifier(parts) => parts.last().map(fold),
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => own_name(inner),
        Expr::Function(function) => {
            let name = function.name.0.last()?.as_ident().map(fold)?;
            Some(public_name(&name).to_owned())
        }
        Expr::Cast { expr, .. } => own_name(expr),
        Expr::Case { else_result, .. } => else_result.as_ref().and_then(|e| own_name(e)),
        Expr::CompoundFieldAccess { root, .. } => own_name(root),
        Expr::Exists { .. } => Some("exists".into()),
        Expr::Array(_) => Some("array".into()),
        Expr::Tuple(_) => Some("row".into()),
        Expr::Extract { .. } => Some("extract".into()),
        Expr::Substring { shorthand, .. } => {
            Some(if *shorthand { "substr" } else { "substring" }.into())
        }
        Expr::Position { .. } => Some("position".into()),
        Expr::Trim { trim_where, .. } => Some(
            match trim_where.map(|w| w.to_string()).as_deref() {
                Some("LEADING") => "ltrim",
                Some("TRAILING") => "rtrim",
                _ => "btrim",
            }
            .into(),
        ),
        Expr::Overlay { .. } => Some("overlay".into()),
        Expr::Ceil { .. } => Some("ceil".into()),
        Expr::Floor { .. } => Some("floor".into()),
        Expr::AtTimeZone { .. } => Some("timezone".into()),
        Expr::Subquery(query) => subquery_name(query),
        _ => None,
    }
}

fn subquery_name(query: &Query) -> Option<String> {
    let SetExpr::Select(select) = query.body.as_ref() else {
        return None;
    };
    match select.projection.first()? {
        SelectItem::UnnamedExpr(expr) => expression_name(expr),
        SelectItem::ExprWithAlias { alias, .. } => Some(plain(&fold(alias)).to_owned()),
        _ => None,
    }
}

fn type_label(data_type: &datafusion::sql::sqlparser::ast::DataType) -> Option<String> {
    use datafusion::sql::sqlparser::ast::DataType as Sql;
    Some(match data_type {
        Sql::Regclass => "regclass".to_owned(),
        Sql::Custom(name, _) => name.0.last()?.as_ident().map(fold)?,
        other => super::types::sql_type_of(other)
            .ok()?
            .short_name()
            .trim_start_matches('_')
            .to_owned(),
    })
}

/// The name that the user wrote for a function that a rewrite put in.
fn public_name(name: &str) -> &str {
    match name {
        "pg_regclass_out" => "regclass",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::sql::sqlparser::ast::Statement;
    use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
    use datafusion::sql::sqlparser::parser::Parser;

    fn names(sql: &str) -> Vec<String> {
        let mut statements =
            Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap_or_else(|e| panic!("{e}"));
        let Some(Statement::Query(mut query)) = statements.pop() else {
            panic!("no query");
        };
        name_outputs(&mut query);
        let SetExpr::Select(select) = *query.body else {
            panic!("no select");
        };
        select.projection.iter().filter_map(output_name).collect()
    }

    #[test]
    fn names_are_postgresqls() {
        assert_eq!(
            names(
                "SELECT a, t.b, count(*), 1+1 AS x, sum(a), a+1, 'x'::text, CASE WHEN true THEN 1 END"
            ),
            ["a", "b", "count", "x", "sum", "?column?", "text", "case"]
        );
    }

    #[test]
    fn casts_and_cases_give_their_name_where_nothing_else_does() {
        assert_eq!(
            names(
                "SELECT 2.5::float8::int, '{1}'::text[], substr('a', 1), substring('a' from 1), \
                 a::text, CASE WHEN true THEN 1 ELSE upper(a) END"
            ),
            ["int4", "text", "substr", "substring", "a", "upper"]
        );
    }

    #[test]
    fn repeated_names_are_told_apart_inside_only() {
        let all = names("SELECT 1, 2, a, a");
        assert_eq!(
            all.iter().map(|n| plain(n)).collect::<Vec<_>>(),
            ["?column?", "?column?", "a", "a"]
        );
        assert_eq!(
            all.iter().collect::<std::collections::HashSet<_>>().len(),
            4
        );
    }
}
