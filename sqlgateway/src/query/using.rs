//! Joins with `USING` and `NATURAL`, written out as PostgreSQL reads them
//! (`transformFromClauseItem`): the condition becomes an `ON`, `*` the list of its
//! columns with the merged ones first, and a bare name of a merged column what it
//! stands for: the left column of an inner or a left join, the right one of a right
//! join, the first that is there of a full join, and of any join whose two columns
//! differ in type: its type is the common one, its value the same. The engine has a notion of `USING`
//! of its own, in which the merged column is always the left one and `*` has
//! another order, so none of it may be left when the engine reads the query.
//!
//! It works on the syntax, from the innermost FROM outwards, since that is where
//! names are still names. [`super::scope`] says which columns there are.

use super::names::{output_name, repeated};
use super::planner::Names;
use super::rewrite::{call, finish, parse_query};
use super::scope::{Around, Column, Named, Scope, quoted};
use crate::error::{Result, SqlError};
use crate::statement::ident;
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, JoinConstraint, JoinOperator, OrderByKind, Query, Select, SelectItem,
    SelectItemQualifiedWildcardKind, SetExpr, TableAlias, TableFactor, TableWithJoins, Value,
    Visit, VisitMut, Visitor, VisitorMut,
};
use std::collections::HashMap;
use std::ops::ControlFlow;

/// Writes out all such joins of a query.
///
/// # Errors
/// 42703 and 42702 for columns that are not there once on each side; 42P01;
/// 0A000 where the columns of one side are not known.
pub fn write_out_joins(query: &mut Query, names: &Names<'_>) -> Result<()> {
    if !has_merging_join(query) {
        return Ok(());
    }
    Writer { names }.query(query, &Around::default())?;
    match has_merging_join(query) {
        true => Err(SqlError::unsupported("JOIN USING or NATURAL JOIN here")),
        false => Ok(()),
    }
}

fn has_merging_join(query: &Query) -> bool {
    struct Find;
    impl Visitor for Find {
        type Break = ();
        fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
            match select.from.iter().any(merges) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        }
    }
    Visit::visit(query, &mut Find).is_break()
}

fn merges(from: &TableWithJoins) -> bool {
    let nested = |factor: &TableFactor| match factor {
        TableFactor::NestedJoin {
            table_with_joins, ..
        } => merges(table_with_joins),
        _ => false,
    };
    nested(&from.relation)
        || from.joins.iter().any(|join| {
            nested(&join.relation)
                || matches!(
                    constraint(&join.join_operator),
                    Some((_, JoinConstraint::Using(_) | JoinConstraint::Natural))
                )
        })
}

/// Whose value a merged column has.
#[derive(Clone, Copy, PartialEq)]
enum Keeps {
    Left,
    Right,
    Either,
}

fn constraint(join: &JoinOperator) -> Option<(Keeps, &JoinConstraint)> {
    Some(match join {
        JoinOperator::Join(c)
        | JoinOperator::Inner(c)
        | JoinOperator::Left(c)
        | JoinOperator::LeftOuter(c) => (Keeps::Left, c),
        JoinOperator::Right(c) | JoinOperator::RightOuter(c) => (Keeps::Right, c),
        JoinOperator::FullOuter(c) => (Keeps::Either, c),
        _ => return None,
    })
}

fn constraint_mut(join: &mut JoinOperator) -> Option<&mut JoinConstraint> {
    match join {
        JoinOperator::Join(c)
        | JoinOperator::Inner(c)
        | JoinOperator::Left(c)
        | JoinOperator::LeftOuter(c)
        | JoinOperator::Right(c)
        | JoinOperator::RightOuter(c)
        | JoinOperator::FullOuter(c) => Some(c),
        _ => None,
    }
}

struct Writer<'a> {
    names: &'a Names<'a>,
}

impl Writer<'_> {
    /// Writes a query out; answers the names of its columns, if they are known.
    fn query(&self, query: &mut Query, around: &Around) -> Result<Option<Vec<Named>>> {
        let mut around = around.clone();
        if let Some(with) = &mut query.with {
            for cte in &mut with.cte_tables {
                let mut inside = around.clone();
                if with.recursive {
                    // Its own name stands for what its first part returns.
                    let mut first = cte.query.clone();
                    first.order_by = None;
                    while let SetExpr::SetOperation { left, .. } = *first.body {
                        first.body = left;
                    }
                    let columns = self.query(&mut first, &around)?;
                    inside.define(&cte.alias, columns);
                }
                let columns = self.query(&mut cte.query, &inside)?;
                around.define(&cte.alias, columns);
            }
        }
        let (columns, scope) = self.body(&mut query.body, &around)?;
        if let (Some(scope), Some(order)) = (scope, &mut query.order_by)
            && let OrderByKind::Expressions(by) = &mut order.kind
        {
            let around = around.within(scope);
            for by in by {
                // A name alone is a column of the result, when there is one.
                let output = matches!(&by.expr, Expr::Identifier(name)
                    if columns.as_ref().is_none_or(|c| c.iter().any(|c| c.name == ident(name))));
                if !output {
                    self.write(&mut by.expr, &around)?;
                }
            }
        }
        Ok(columns)
    }

    fn body(
        &self,
        body: &mut SetExpr,
        around: &Around,
    ) -> Result<(Option<Vec<Named>>, Option<Scope>)> {
        match body {
            SetExpr::Select(select) => {
                let (columns, scope) = self.select(select, around)?;
                Ok((columns, Some(scope)))
            }
            SetExpr::Query(query) => Ok((self.query(query, around)?, None)),
            SetExpr::SetOperation { left, right, .. } => {
                let (mut columns, _) = self.body(left, around)?;
                let (others, _) = self.body(right, around)?;
                let others = others.unwrap_or_default();
                for (at, column) in columns.iter_mut().flatten().enumerate() {
                    // Of two types comes a third.
                    if others.get(at).and_then(|other| other.sql_type) != column.sql_type {
                        column.sql_type = None;
                    }
                }
                Ok((columns, None))
            }
            SetExpr::Values(values) => {
                let width = values.rows.first().map_or(0, |row| row.len());
                self.write(values, around)?;
                let columns = (1..=width).map(|at| Named {
                    name: format!("column{at}"),
                    sql_type: None,
                });
                Ok((Some(columns.collect()), None))
            }
            _ => Ok((None, None)),
        }
    }

    fn select(&self, select: &mut Select, around: &Around) -> Result<(Option<Vec<Named>>, Scope)> {
        let mut scope = Scope::default();
        for from in &mut select.from {
            let joined = self.joined(from, around, &scope)?;
            scope.append(joined);
        }
        let inside = around.within(scope.clone());
        let from = std::mem::take(&mut select.from);
        for item in &mut select.projection {
            keep_name(item, &inside);
        }
        let written = self.write(select, &inside);
        select.from = from;
        written?;
        if scope.has_merged() || scope.repeats() {
            expand(&mut select.projection, &scope)?;
        }
        let columns = outputs(&select.projection, &scope, &inside);
        Ok((columns, scope))
    }

    /// Writes a table and what is joined to it; answers their columns. `before`:
    /// those of the tables to the left, for LATERAL.
    fn joined(&self, from: &mut TableWithJoins, around: &Around, before: &Scope) -> Result<Scope> {
        let mut left = self.factor(&mut from.relation, around, before)?;
        for join in &mut from.joins {
            let mut seen = before.clone();
            seen.append(left.clone());
            let right = self.factor(&mut join.relation, around, &seen)?;
            let how = constraint(&join.join_operator).map(|(keeps, c)| (keeps, c.clone()));
            let common = match &how {
                Some((keeps, JoinConstraint::Using(columns))) => {
                    let names = columns.iter().filter_map(|c| c.0.last()?.as_ident());
                    Some((*keeps, names.map(ident).collect::<Vec<_>>()))
                }
                Some((keeps, JoinConstraint::Natural)) => Some((*keeps, left.common(&right)?)),
                _ => None,
            };
            left = match common {
                Some((keeps, names)) => {
                    let (scope, condition) = merge(keeps, &names, left, right)?;
                    if let Some(constraint) = constraint_mut(&mut join.join_operator) {
                        *constraint = JoinConstraint::On(condition);
                    }
                    scope
                }
                None => {
                    left.append(right);
                    left
                }
            };
            if matches!(how, Some((_, JoinConstraint::On(_))))
                && let Some(JoinConstraint::On(condition)) = constraint_mut(&mut join.join_operator)
            {
                let mut here = before.clone();
                here.append(left.clone());
                self.write(condition, &around.within(here))?;
            }
        }
        Ok(left)
    }

    fn factor(&self, factor: &mut TableFactor, around: &Around, before: &Scope) -> Result<Scope> {
        match factor {
            TableFactor::Table {
                name,
                alias,
                args: None,
                ..
            } => {
                let columns = match around.defined(name) {
                    Some(columns) => columns.clone(),
                    None => Some(self.names.columns_of(name)?),
                };
                let called = name.0.last().and_then(|part| part.as_ident());
                Ok(Scope::of_table(called, alias.as_ref(), columns))
            }
            TableFactor::Derived {
                lateral,
                subquery,
                alias,
                ..
            } => {
                let columns = match lateral {
                    true => self.query(subquery, &around.within(before.clone()))?,
                    false => self.query(subquery, around)?,
                };
                Ok(Scope::of_table(None, alias.as_ref(), columns))
            }
            TableFactor::NestedJoin {
                table_with_joins,
                alias: None,
            } => self.joined(table_with_joins, around, before),
            TableFactor::NestedJoin {
                table_with_joins,
                alias: Some(alias),
            } => {
                let alias = alias.clone();
                let scope = self.joined(table_with_joins, around, before)?;
                let (subquery, columns) = nested(table_with_joins, &scope, &alias, around)?;
                *factor = subquery;
                Ok(Scope::of_table(None, Some(&alias), columns))
            }
            other => {
                self.write(other, &around.within(before.clone()))?;
                let (called, alias) = match other {
                    TableFactor::Table { name, alias, .. }
                    | TableFactor::Function { name, alias, .. } => {
                        (name.0.last().and_then(|p| p.as_ident()), alias.as_ref())
                    }
                    TableFactor::UNNEST { alias, .. } => (None, alias.as_ref()),
                    _ => (None, None),
                };
                Ok(Scope::of_table(called, alias, None))
            }
        }
    }

    /// Replaces the bare names of merged columns in expressions, and writes out
    /// the queries inside of them.
    fn write<T: VisitMut>(&self, part: &mut T, around: &Around) -> Result<()> {
        struct Visiting<'a> {
            writer: &'a Writer<'a>,
            around: &'a Around,
            depth: usize,
        }
        impl VisitorMut for Visiting<'_> {
            type Break = SqlError;
            fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<SqlError> {
                self.depth += 1;
                if self.depth == 1
                    && let Err(error) = self.writer.query(query, self.around)
                {
                    return ControlFlow::Break(error);
                }
                ControlFlow::Continue(())
            }
            fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<SqlError> {
                self.depth -= 1;
                ControlFlow::Continue(())
            }
            fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<SqlError> {
                if self.depth == 0
                    && let Expr::Identifier(name) = expr
                    && let Some(value) = self.around.merged(&ident(name))
                {
                    *expr = value.clone();
                }
                ControlFlow::Continue(())
            }
        }
        finish(VisitMut::visit(
            part,
            &mut Visiting {
                writer: self,
                around,
                depth: 0,
            },
        ))
    }
}

/// The columns of a join whose common ones become one, and its condition.
fn merge(keeps: Keeps, names: &[String], left: Scope, right: Scope) -> Result<(Scope, Expr)> {
    // Both would be named in the same way.
    if let Some(table) = left.same_table(&right) {
        return Err(SqlError::unsupported(format!(
            "JOIN USING of two tables that are both called \"{table}\": give one an alias"
        )));
    }
    let mut merged = Vec::with_capacity(names.len());
    let mut condition: Option<Expr> = None;
    for name in names {
        let (l, r) = (
            left.common_column(name, "left")?,
            right.common_column(name, "right")?,
        );
        let equal = binary(l.value.clone(), BinaryOperator::Eq, r.value.clone());
        condition = Some(match condition {
            Some(before) => binary(before, BinaryOperator::And, equal),
            None => equal,
        });
        let one_type = l.has_type_of(r);
        // Where the kept one is NULL, the other is: only the type is another.
        let either =
            |a: &Column, b: &Column| call("coalesce", vec![a.value.clone(), b.value.clone()]);
        merged.push(Column {
            name: name.clone(),
            sql_type: l.sql_type.filter(|_| one_type),
            value: match (keeps, one_type) {
                (Keeps::Left, true) => l.value.clone(),
                (Keeps::Right, true) => r.value.clone(),
                (Keeps::Right, false) => either(r, l),
                (Keeps::Left, false) | (Keeps::Either, _) => either(l, r),
            },
            merged: true,
        });
    }
    let condition = condition.unwrap_or_else(|| Expr::value(Value::Boolean(true)));
    Ok((left.merged_with(right, merged), condition))
}

fn binary(left: Expr, op: BinaryOperator, right: Expr) -> Expr {
    Expr::BinaryOp {
        left: Box::new(left),
        op,
        right: Box::new(right),
    }
}

/// A merged column in a select list is called as it was written.
fn keep_name(item: &mut SelectItem, around: &Around) {
    if let SelectItem::UnnamedExpr(Expr::Identifier(name)) = item
        && let Some(value) = around.merged(&ident(name))
    {
        *item = named(&ident(name), value);
    }
}

fn named(name: &str, value: &Expr) -> SelectItem {
    match value {
        // A column has the name already, and its table's in front.
        Expr::CompoundIdentifier(_) => SelectItem::UnnamedExpr(value.clone()),
        value => SelectItem::ExprWithAlias {
            expr: value.clone(),
            alias: quoted(name),
        },
    }
}

/// The columns of `*`. A name that was there already gets a suffix that is not
/// shown: by its name alone nobody can mean it.
fn list(scope: &Scope) -> Result<Vec<SelectItem>> {
    if scope.is_open() {
        return Err(SqlError::unsupported(
            "* over JOIN USING and a function whose columns are not named",
        ));
    }
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let items = scope.columns().iter().map(|column| {
        let times = seen.entry(&column.name).or_default();
        *times += 1;
        match *times {
            1 => named(&column.name, &column.value),
            times => SelectItem::ExprWithAlias {
                expr: column.value.clone(),
                alias: quoted(&repeated(&column.name, times)),
            },
        }
    });
    Ok(items.collect())
}

/// Writes `*` as the list of its columns.
fn expand(projection: &mut Vec<SelectItem>, scope: &Scope) -> Result<()> {
    for item in std::mem::take(projection) {
        match item {
            SelectItem::Wildcard(_) => projection.extend(list(scope)?),
            other => projection.push(other),
        }
    }
    Ok(())
}

/// The columns of a select list; `None`: not all are known.
fn outputs(projection: &[SelectItem], scope: &Scope, inside: &Around) -> Option<Vec<Named>> {
    let mut columns = Vec::with_capacity(projection.len());
    for item in projection {
        match item {
            SelectItem::Wildcard(_) if scope.is_open() => return None,
            SelectItem::Wildcard(_) => columns.extend(scope.named()),
            SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
                let table = name.0.last().and_then(|part| part.as_ident()).map(ident)?;
                columns.extend(scope.of(&table)?.iter().cloned());
            }
            other => columns.push(Named {
                name: output_name(other)?,
                sql_type: match other {
                    SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => {
                        inside.type_of(expr)
                    }
                    _ => None,
                },
            }),
        }
    }
    Some(columns)
}

/// A join in brackets with a name of its own, as a subquery, and its columns.
fn nested(
    from: &mut TableWithJoins,
    scope: &Scope,
    alias: &TableAlias,
    around: &Around,
) -> Result<(TableFactor, Option<Vec<Named>>)> {
    let items = list(scope)?;
    let columns = outputs(&items, scope, &around.within(scope.clone()));
    let mut subquery = parse_query("SELECT 1")?;
    if let SetExpr::Select(select) = subquery.body.as_mut() {
        select.projection = items;
        select.from = vec![from.clone()];
    }
    let factor = TableFactor::Derived {
        lateral: false,
        subquery: Box::new(subquery),
        alias: Some(alias.clone()),
        sample: None,
    };
    Ok((factor, columns))
}
