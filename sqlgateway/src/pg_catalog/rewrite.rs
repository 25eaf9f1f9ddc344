//! Catalog queries of psql and drivers, said so that the planner can plan them.
//!
//! They are full of correlated sub-selects over the catalog that DataFusion
//! cannot decorrelate. Here that is not needed: most of them ask catalog tables
//! that are always empty (triggers, policies, publications, inheritance), so
//! that their answer is known without planning; the others ask for one thing
//! that a function can look up.

use super::expand;
use super::relations;
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList,
    FunctionArguments, GroupByExpr, Ident, JoinOperator, ObjectName, ObjectNamePart, OrderByKind,
    Query, Select, SelectItem, SetExpr, TableFactor, Value, VisitMut, VisitorMut,
};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use std::ops::ControlFlow;

/// Rewrites what it knows; leaves everything else as it is.
pub fn rewrite_query(query: &mut Query) {
    let mut rewriter = Rewriter::default();
    // It never breaks off.
    let _ = query.visit(&mut rewriter);
}

#[derive(Default)]
struct Rewriter {
    /// Inside a select over what `_pg_expandarray` returned.
    expanded: bool,
}

impl VisitorMut for Rewriter {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        if let SetExpr::Select(select) = query.body.as_mut()
            && reads_nothing(select)
        {
            empty_select(select);
            if let Some(order) = &mut query.order_by
                && let OrderByKind::Expressions(keys) = &order.kind
                && !keys.iter().all(|key| is_position(&key.expr))
            {
                // No rows, no order.
                query.order_by = None;
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        // The branches of a UNION.
        if reads_nothing(select) {
            empty_select(select);
        }
        self.expanded |= expand::reads_expanded(select);
        expand::expand(select);
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Some(replacement) = replacement(expr) {
            *expr = replacement;
        }
        if self.expanded
            && let Some(element) = expand::element(expr)
        {
            *expr = element;
        }
        ControlFlow::Continue(())
    }
}

/// What an expression over the catalog is, when that is known.
fn replacement(expr: &Expr) -> Option<Expr> {
    match expr {
        Expr::Subquery(query) => {
            let select = select_of(query)?;
            if let Some(call) = column_default(select) {
                return Some(call);
            }
            // Every column has its type's collation.
            let collation = reads(select, "pg_collation") && reads(select, "pg_type");
            let nothing = reads_nothing(select) && !counts(select);
            (collation || nothing).then(null)
        }
        Expr::Exists { subquery, negated } => {
            let select = select_of(subquery)?;
            (reads_nothing(select) && !counts(select))
                .then(|| Expr::Value(Value::Boolean(*negated).into()))
        }
        Expr::Case {
            operand: None,
            conditions,
            else_result,
            ..
        } => {
            let [branch] = conditions.as_slice() else {
                return None;
            };
            let otherwise = else_result.as_deref().is_none_or(is_null);
            (otherwise && wants_other_kinds(&branch.condition))
                .then(|| part_of_type(&branch.result))
                .flatten()
        }
        Expr::Function(function) => match &function.args {
            FunctionArguments::Subquery(query) if name_of(&function.name) == "array" => {
                no_rows(select_of(query)?).then(|| call("lineradb_no_names", Vec::new()))
            }
            _ => None,
        },
        // `options || ARRAY(SELECT 'toast.' || x FROM unnest(..))`: no TOAST.
        Expr::BinaryOp {
            left,
            op: BinaryOperator::StringConcat,
            right,
        } => match right.as_ref() {
            Expr::Function(function) => match &function.args {
                FunctionArguments::Subquery(query) => {
                    let text = query.to_string();
                    let toast = text.contains("'toast.'")
                        && text.contains("pg_catalog.unnest(")
                        && text.contains("reloptions");
                    toast.then(|| left.as_ref().clone())
                }
                _ => None,
            },
            _ => None,
        },
        // `x IN (SELECT pg_partition_ancestors(t) UNION ALL VALUES (t))`: t has
        // no ancestors.
        Expr::InSubquery {
            expr,
            subquery,
            negated: false,
        } => {
            let SetExpr::SetOperation { left, .. } = subquery.body.as_ref() else {
                return None;
            };
            let SetExpr::Select(select) = left.as_ref() else {
                return None;
            };
            let [SelectItem::UnnamedExpr(Expr::Function(function))] = select.projection.as_slice()
            else {
                return None;
            };
            if name_of(&function.name) != "pg_partition_ancestors" {
                return None;
            }
            Some(Expr::BinaryOp {
                left: expr.clone(),
                op: BinaryOperator::Eq,
                right: Box::new(first_argument(function)?),
            })
        }
        _ => None,
    }
}

fn select_of(query: &Query) -> Option<&Select> {
    match query.body.as_ref() {
        SetExpr::Select(select) => Some(select),
        _ => None,
    }
}

/// `(SELECT pg_get_expr(d.adbin, ..) FROM pg_attrdef d WHERE d.adrelid = R AND
/// d.adnum = N ..)` is the default of column N of R.
fn column_default(select: &Select) -> Option<Expr> {
    let [from] = select.from.as_slice() else {
        return None;
    };
    if !from.joins.is_empty() || table_name(&from.relation)? != "pg_attrdef" {
        return None;
    }
    let [SelectItem::UnnamedExpr(Expr::Function(function))] = select.projection.as_slice() else {
        return None;
    };
    if name_of(&function.name) != "pg_get_expr" {
        return None;
    }
    let mut terms = Vec::new();
    conjuncts(select.selection.as_ref()?, &mut terms);
    let compared_with = |column: &str| {
        terms.iter().find_map(|term| match term {
            Expr::BinaryOp {
                left,
                op: BinaryOperator::Eq,
                right,
            } if column_of(left) == Some(column) => Some(right.as_ref().clone()),
            Expr::BinaryOp {
                left,
                op: BinaryOperator::Eq,
                right,
            } if column_of(right) == Some(column) => Some(left.as_ref().clone()),
            _ => None,
        })
    };
    let arguments = vec![compared_with("adrelid")?, compared_with("adnum")?];
    Some(call("lineradb_column_default", arguments))
}

/// `typtype = 'c'` or `'d'`: there are no composite types and no domains.
fn wants_other_kinds(condition: &Expr) -> bool {
    let Expr::BinaryOp {
        left,
        op: BinaryOperator::Eq,
        right,
    } = condition
    else {
        return false;
    };
    let kind = right.to_string();
    column_of(left) == Some("typtype") && (kind == "'c'" || kind == "'d'")
}

/// NULL in the place of what a type of another kind consists of (asyncpg): the
/// types or the names of its attributes, or the type that a domain is made of.
fn part_of_type(result: &Expr) -> Option<Expr> {
    let Expr::Subquery(query) = result else {
        return None;
    };
    let [item] = select_of(query)?.projection.as_slice() else {
        return None;
    };
    let wanted = item.to_string();
    let data_type = match wanted.as_str() {
        "oid" => "oid",
        _ if wanted.contains("atttypid") => "oid[]",
        _ if wanted.contains("attname") => "text[]",
        _ => return None,
    };
    let text = format!("CAST(NULL AS {data_type})");
    let parser = Parser::new(&PostgreSqlDialect {});
    parser.try_with_sql(&text).ok()?.parse_expr().ok()
}

fn conjuncts<'a>(expr: &'a Expr, out: &mut Vec<&'a Expr>) {
    match expr {
        Expr::BinaryOp {
            left,
            op: BinaryOperator::And,
            right,
        } => {
            conjuncts(left, out);
            conjuncts(right, out);
        }
        Expr::Nested(inner) => conjuncts(inner, out),
        other => out.push(other),
    }
}

fn column_of(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Identifier(name) => Some(&name.value),
        Expr::CompoundIdentifier(parts) => parts.last().map(|part| part.value.as_str()),
        _ => None,
    }
}

/// True when one of the inner-joined tables of a select is always empty.
fn reads_nothing(select: &Select) -> bool {
    let empty = |factor: &TableFactor| {
        table_name(factor).is_some_and(|name| relations::is_always_empty(&name))
    };
    select.from.iter().any(|from| {
        let inner = from.joins.iter().all(|join| {
            matches!(
                join.join_operator,
                JoinOperator::Join(_)
                    | JoinOperator::Inner(_)
                    | JoinOperator::CrossJoin(_)
                    | JoinOperator::Left(_)
                    | JoinOperator::LeftOuter(_)
            )
        });
        inner
            && (empty(&from.relation)
                || from.joins.iter().any(|join| {
                    let outer = matches!(
                        join.join_operator,
                        JoinOperator::Left(_) | JoinOperator::LeftOuter(_)
                    );
                    !outer && empty(&join.relation)
                }))
    })
}

/// True when a select over the catalog has no rows: an empty table, or column
/// privileges, which nobody has set.
fn no_rows(select: &Select) -> bool {
    let column_privileges = reads(select, "pg_attribute")
        && select
            .selection
            .as_ref()
            .is_some_and(|filter| filter.to_string().contains("attacl IS NOT NULL"));
    (reads_nothing(select) || column_privileges) && !counts(select)
}

fn reads(select: &Select, table: &str) -> bool {
    select.from.iter().any(|from| {
        std::iter::once(&from.relation)
            .chain(from.joins.iter().map(|join| &join.relation))
            .any(|factor| table_name(factor).as_deref() == Some(table))
    })
}

/// An aggregate of no rows may still be a row.
fn counts(select: &Select) -> bool {
    let projection = select.projection.iter().map(ToString::to_string);
    projection
        .into_iter()
        .any(|text| text.to_lowercase().contains("count("))
}

/// The name of a table of `pg_catalog`, which needs no prefix.
fn table_name(factor: &TableFactor) -> Option<String> {
    let TableFactor::Table { name, .. } = factor else {
        return None;
    };
    let parts: Vec<&Ident> = name.0.iter().filter_map(ObjectNamePart::as_ident).collect();
    match parts.as_slice() {
        [name] if name.value.starts_with("pg_") => Some(name.value.clone()),
        [schema, name] if schema.value == "pg_catalog" => Some(name.value.clone()),
        _ => None,
    }
}

/// Makes a select over nothing easy to plan: plain columns stay, everything
/// else is NULL under its name, and no row passes.
fn empty_select(select: &mut Select) {
    if counts(select) {
        return;
    }
    let grouped = match &select.group_by {
        GroupByExpr::Expressions(keys, _) => !keys.is_empty(),
        GroupByExpr::All(_) => true,
    };
    if grouped || select.having.is_some() {
        return;
    }
    for item in &mut select.projection {
        match item {
            SelectItem::UnnamedExpr(expr) if column_of(expr).is_none() => {
                *item = match output_name(expr) {
                    Some(name) => SelectItem::ExprWithAlias {
                        expr: null(),
                        alias: Ident::with_quote('"', name),
                    },
                    None => SelectItem::UnnamedExpr(null()),
                };
            }
            SelectItem::ExprWithAlias { expr, .. } if column_of(expr).is_none() => *expr = null(),
            _ => {}
        }
    }
    select.selection = Some(Expr::Value(Value::Boolean(false).into()));
}

fn output_name(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Function(function) => Some(name_of(&function.name)),
        Expr::Cast { expr, .. } => output_name(expr).or_else(|| column_of(expr).map(str::to_owned)),
        Expr::Case { .. } => Some("case".to_owned()),
        _ => None,
    }
}

fn is_position(expr: &Expr) -> bool {
    match expr {
        Expr::Value(value) => matches!(value.value, Value::Number(..)),
        _ => false,
    }
}

fn name_of(name: &ObjectName) -> String {
    let last = name.0.last().and_then(ObjectNamePart::as_ident);
    last.map_or_else(String::new, |ident| ident.value.to_lowercase())
}

fn first_argument(function: &Function) -> Option<Expr> {
    match &function.args {
        FunctionArguments::List(list) => match list.args.first()? {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
            _ => None,
        },
        _ => None,
    }
}

fn is_null(expr: &Expr) -> bool {
    matches!(expr, Expr::Value(value) if value.value == Value::Null)
}

fn null() -> Expr {
    Expr::Value(Value::Null.into())
}

fn call(name: &str, arguments: Vec<Expr>) -> Expr {
    let arguments = arguments
        .into_iter()
        .map(|expr| FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)));
    Expr::Function(Function {
        name: ObjectName(vec![ObjectNamePart::Identifier(Ident::new(name))]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: arguments.collect(),
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::sql::sqlparser::ast::Statement;

    fn rewritten(sql: &str) -> String {
        let mut statements = Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap();
        let Some(Statement::Query(mut query)) = statements.pop() else {
            panic!("no query");
        };
        rewrite_query(&mut query);
        query.to_string()
    }

    #[test]
    fn defaults_are_looked_up() {
        assert_eq!(
            rewritten(
                "SELECT (SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid, true) \
                 FROM pg_catalog.pg_attrdef d WHERE d.adrelid = a.attrelid \
                 AND d.adnum = a.attnum AND a.atthasdef) FROM pg_catalog.pg_attribute a"
            ),
            "SELECT lineradb_column_default(a.attrelid, a.attnum) FROM pg_catalog.pg_attribute a"
        );
    }

    #[test]
    fn what_reads_an_empty_table_reads_nothing() {
        assert_eq!(
            rewritten(
                "SELECT pol.polname, CASE WHEN pol.polroles = '{0}' THEN NULL END, \
                 pg_catalog.pg_get_expr(pol.polqual, pol.polrelid) FROM pg_catalog.pg_policy pol \
                 WHERE pol.polrelid = '1' ORDER BY 1"
            ),
            "SELECT pol.polname, NULL AS \"case\", NULL AS \"pg_get_expr\" \
             FROM pg_catalog.pg_policy pol WHERE false ORDER BY 1"
        );
    }

    #[test]
    fn arrays_are_expanded_by_a_join() {
        let jdbc = "SELECT r.seq FROM (SELECT (information_schema._pg_expandarray(i.indkey)).n \
                    AS seq, information_schema._pg_expandarray(i.indkey) AS keys, a.attnum AS no \
                    FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid \
                    WHERE i.indisprimary) r WHERE r.no = (r.keys).x";
        let text = rewritten(jdbc);
        for part in [
            "lineradb_positions.n AS seq",
            "(i.indkey)[lineradb_positions.n] AS keys",
            "generate_series(1, 32) AS lineradb_positions (n)",
            "(i.indisprimary) AND lineradb_positions.n <= cardinality(i.indkey)",
            "r.no = r.keys",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn other_queries_stay_as_they_are() {
        for sql in [
            "SELECT count(*) FROM pg_catalog.pg_trigger",
            "SELECT a.x FROM t AS a WHERE a.y IN (SELECT z FROM u)",
            "SELECT c.relname FROM pg_catalog.pg_class AS c LEFT JOIN pg_catalog.pg_policy AS p ON p.polrelid = c.oid",
        ] {
            assert_eq!(rewritten(sql), sql);
        }
    }

    #[test]
    fn there_are_no_composite_types_and_no_domains() {
        let asyncpg = "SELECT (CASE WHEN t.typtype = 'd' THEN (WITH RECURSIVE b(oid, depth) AS \
                       (SELECT 1, 2) SELECT oid FROM b ORDER BY depth DESC LIMIT 1) ELSE NULL END) \
                       AS basetype, (CASE WHEN t.typtype = 'c' THEN (SELECT \
                       array_agg(ia.atttypid ORDER BY ia.attnum) FROM pg_attribute ia JOIN pg_class c \
                       ON ia.attrelid = c.oid WHERE c.reltype = t.oid) ELSE NULL END) AS types, \
                       CASE WHEN t.typtype = 'b' THEN (SELECT 1) ELSE NULL END FROM pg_type t";
        assert_eq!(
            rewritten(asyncpg),
            "SELECT (CAST(NULL AS oid)) AS basetype, (CAST(NULL AS oid[])) AS types, \
             CASE WHEN t.typtype = 'b' THEN (SELECT 1) ELSE NULL END FROM pg_type t"
        );
    }

    #[test]
    fn ancestors_and_members() {
        assert!(
            rewritten(
                "SELECT 1 FROM pg_constraint WHERE confrelid IN (SELECT \
                 pg_catalog.pg_partition_ancestors('7') UNION ALL VALUES \
                 ('7'::pg_catalog.regclass))"
            )
            .ends_with("WHERE confrelid = '7'")
        );
        assert!(
            rewritten(
                "SELECT ARRAY(SELECT b.rolname FROM pg_catalog.pg_auth_members m \
                 JOIN pg_catalog.pg_roles b ON m.roleid = b.oid WHERE m.member = r.oid) \
                 AS memberof FROM pg_catalog.pg_roles r"
            )
            .starts_with("SELECT lineradb_no_names() AS memberof")
        );
    }
}
