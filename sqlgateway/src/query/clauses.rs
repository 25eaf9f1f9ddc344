//! Clauses of a query: FETCH FIRST, functions in FROM and in the select list, set
//! operations.

use super::rewrite::name_of;
use crate::error::{Result, SqlError};
use datafusion::sql::sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, Ident, LimitClause,
    ObjectName, ObjectNamePart, Query, Select, SetExpr, SetOperator, SetQuantifier, TableAlias,
    TableAliasColumnDef, TableFactor, TableWithJoins, Value, Visit, VisitMut, Visitor, VisitorMut,
};
use std::ops::ControlFlow;

pub(super) fn fetch_first(query: &mut Query) -> Result<()> {
    if let Some(fetch) = query.fetch.take() {
        if fetch.with_ties || fetch.percent {
            return Err(SqlError::unsupported("FETCH FIRST WITH TIES or PERCENT"));
        }
        let quantity = fetch
            .quantity
            .unwrap_or_else(|| Expr::value(Value::Number("1".into(), false)));
        match &mut query.limit_clause {
            None => {
                query.limit_clause = Some(LimitClause::LimitOffset {
                    limit: Some(quantity),
                    offset: None,
                    limit_by: vec![],
                });
            }
            Some(LimitClause::LimitOffset { limit, .. }) if limit.is_none() => {
                *limit = Some(quantity);
            }
            Some(_) => return Err(SqlError::syntax("multiple LIMIT clauses not allowed")),
        }
    }
    Ok(())
}

/// Functions in FROM: the column of a function that returns one value is named
/// as the function or its alias.
pub(super) fn table_factor(factor: &mut TableFactor) -> Result<()> {
    match factor {
        TableFactor::Table {
            name,
            alias,
            args: Some(_),
            with_ordinality,
            ..
        } => {
            if *with_ordinality {
                return Err(SqlError::unsupported("WITH ORDINALITY"));
            }
            let base = name_of(name);
            if let [schema, _] = name.0.as_slice()
                && schema.to_string().eq_ignore_ascii_case("pg_catalog")
            {
                name.0.remove(0);
            }
            if base == "generate_series" {
                let label = alias
                    .as_ref()
                    .map_or_else(|| Ident::with_quote('"', base.clone()), |a| a.name.clone());
                let alias = alias.get_or_insert_with(|| alias_of(label.clone(), vec![]));
                if alias.columns.is_empty() {
                    alias.columns = vec![TableAliasColumnDef {
                        name: label,
                        data_type: None,
                    }];
                }
            }
            Ok(())
        }
        TableFactor::Table {
            with_ordinality: true,
            ..
        }
        | TableFactor::UNNEST {
            with_ordinality: true,
            ..
        }
        | TableFactor::Function {
            with_ordinality: true,
            ..
        } => Err(SqlError::unsupported("WITH ORDINALITY")),
        TableFactor::Table {
            sample: Some(_), ..
        } => Err(SqlError::unsupported("TABLESAMPLE")),
        _ => Ok(()),
    }
}

fn alias_of(name: Ident, columns: Vec<&str>) -> TableAlias {
    TableAlias {
        explicit: true,
        name,
        columns: columns
            .into_iter()
            .map(|c| TableAliasColumnDef {
                name: Ident::with_quote('"', c),
                data_type: None,
            })
            .collect(),
        at: None,
    }
}

const SET_RETURNING: [&str; 6] = [
    "generate_series",
    "regexp_matches",
    "regexp_split_to_table",
    "string_to_table",
    "json_array_elements",
    "generate_subscripts",
];

/// `SELECT generate_series(1, 3)` moves the series into FROM, where it means
/// the same; anything more involved is refused.
pub(super) fn set_returning(select: &mut Select) -> Result<()> {
    struct Find(Vec<Expr>, usize);
    impl Visitor for Find {
        type Break = ();
        fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.1 += 1;
            ControlFlow::Continue(())
        }
        fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.1 -= 1;
            ControlFlow::Continue(())
        }
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            if self.1 == 0
                && let Expr::Function(f) = expr
                && SET_RETURNING.contains(&name_of(&f.name).as_str())
            {
                self.0.push(expr.clone());
            }
            ControlFlow::Continue(())
        }
    }
    let mut find = Find(Vec::new(), 0);
    for item in &select.projection {
        let _ = item.visit(&mut find);
    }
    let found = find.0;
    if found.is_empty() {
        return Ok(());
    }
    let refuse = || SqlError::unsupported("a set-returning function in the select list");
    let grouped = !matches!(&select.group_by, GroupByExpr::Expressions(e, _) if e.is_empty())
        || select.having.is_some();
    let [Expr::Function(function)] = found.as_slice() else {
        return Err(refuse());
    };
    let FunctionArguments::List(list) = &function.args else {
        return Err(refuse());
    };
    let constant = list.args.iter().all(|a| {
        matches!(
            a,
            FunctionArg::Unnamed(FunctionArgExpr::Expr(
                Expr::Value(_)
                    | Expr::UnaryOp { .. }
                    | Expr::TypedString(_)
                    | Expr::Interval(_)
                    | Expr::Cast { .. }
            ))
        )
    });
    if name_of(&function.name) != "generate_series"
        || grouped
        || !(select.from.is_empty() || constant)
    {
        return Err(refuse());
    }
    let table = TableFactor::Table {
        name: ObjectName(vec![ObjectNamePart::Identifier(Ident::new(
            "generate_series",
        ))]),
        alias: Some(alias_of(Ident::new("__series"), vec!["__series_value"])),
        args: Some(datafusion::sql::sqlparser::ast::TableFunctionArgs {
            args: list.args.clone(),
            settings: None,
        }),
        with_hints: vec![],
        version: None,
        with_ordinality: false,
        partitions: vec![],
        json_path: None,
        sample: None,
        index_hints: vec![],
    };
    select.from.push(TableWithJoins {
        relation: table,
        joins: vec![],
    });
    struct Replace;
    impl VisitorMut for Replace {
        type Break = ();
        fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if let Expr::Function(f) = expr
                && name_of(&f.name) == "generate_series"
            {
                *expr = Expr::Identifier(Ident::new("__series_value"));
            }
            ControlFlow::Continue(())
        }
    }
    for item in &mut select.projection {
        let _ = item.visit(&mut Replace);
    }
    Ok(())
}

/// EXCEPT ALL and INTERSECT ALL count duplicates; the engine's joins do not.
pub(super) fn set_operations(body: &SetExpr) -> Result<()> {
    let SetExpr::SetOperation {
        op,
        set_quantifier,
        left,
        right,
    } = body
    else {
        return Ok(());
    };
    if *op != SetOperator::Union && *set_quantifier == SetQuantifier::All {
        return Err(SqlError::unsupported(format!("{op} ALL")));
    }
    set_operations(left)?;
    set_operations(right)
}
