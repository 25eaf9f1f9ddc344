//! The one column that `USING` and `NATURAL` make of two: that of the left side in
//! a left join, of the right side in a right join, and the one that is there in a
//! full join. DataFusion takes the left one for a bare name, and for `*` the one
//! whose table comes first in the alphabet, whatever the join.
//!
//! Both names of the two columns stay in the plan; the one that a bare name or
//! `*` was read as gets the merged value. Where the text names that column with
//! its table as well, it would have to be two things: that is refused.

use super::errors::carry;
use crate::error::SqlError;
use datafusion::common::Column;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::functions::expr_fn::coalesce;
use datafusion::logical_expr::utils::expand_wildcard;
use datafusion::logical_expr::{
    Distinct, Expr, Join, JoinConstraint, JoinType, LogicalPlan, LogicalPlanBuilder, Projection,
};
use datafusion::sql::sqlparser::ast::{
    self, Ident, JoinConstraint as JoinConstraintSql, JoinOperator, OrderByKind, Query, Select,
    SelectItem, SelectItemQualifiedWildcardKind, TableFactor, Value, Visit, VisitMut, Visitor,
    VisitorMut,
};
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

/// How a query names columns.
#[derive(Debug, Default)]
pub struct Spelling {
    bare: HashSet<String>,
    qualified: HashSet<(String, String)>,
    tables: HashSet<String>,
    star: bool,
    /// The outermost ORDER BY counts columns.
    ordinal: bool,
}

fn folded(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

impl Spelling {
    /// Of a query and all queries inside of it.
    pub fn of(query: &Query) -> Self {
        let mut spelling = Self::default();
        let _ = Visit::visit(query, &mut spelling);
        if let Some(order) = &query.order_by
            && let OrderByKind::Expressions(by) = &order.kind
        {
            let number = |e: &ast::Expr| matches!(e, ast::Expr::Value(v) if matches!(v.value, Value::Number(..)));
            spelling.ordinal = by.iter().any(|by| number(&by.expr));
        }
        spelling
    }

    fn names(&self, column: &Column) -> bool {
        let table = column.relation.as_ref().map_or("", |r| r.table());
        self.tables.contains(table)
            || self
                .qualified
                .contains(&(table.to_owned(), column.name.clone()))
    }
}

impl Visitor for Spelling {
    type Break = ();

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        for item in &select.projection {
            match item {
                SelectItem::Wildcard(_) => self.star = true,
                SelectItem::QualifiedWildcard(
                    SelectItemQualifiedWildcardKind::ObjectName(name),
                    _,
                ) => {
                    let last = name.0.last().and_then(|p| p.as_ident());
                    self.tables.extend(last.map(folded));
                }
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &ast::Expr) -> ControlFlow<()> {
        match expr {
            ast::Expr::Identifier(name) => {
                self.bare.insert(folded(name));
            }
            ast::Expr::CompoundIdentifier(parts) => {
                if let [.., table, column] = parts.as_slice() {
                    self.qualified.insert((folded(table), folded(column)));
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// Writes a column of `USING` that is named without a table with that of the left
/// side: the engine takes it for ambiguous in WHERE, and after several joins. Which
/// of the two has the merged value is [`merge_columns`]' business.
pub fn qualify(query: &mut Query) {
    struct Qualify;
    impl VisitorMut for Qualify {
        type Break = ();
        fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
            let mut tables: HashMap<String, Ident> = HashMap::new();
            for from in &select.from {
                let Some(left) = name_of(&from.relation) else {
                    continue;
                };
                for (at, join) in from.joins.iter().enumerate() {
                    for column in using_columns(&join.join_operator) {
                        if at == 0 || tables.contains_key(&column) {
                            tables.insert(column, left.clone());
                        }
                    }
                }
            }
            if tables.is_empty() {
                return ControlFlow::Continue(());
            }
            let mut name = Name(&tables, 0);
            for item in &mut select.projection {
                let _ = VisitMut::visit(item, &mut name);
            }
            if let Some(condition) = &mut select.selection {
                let _ = VisitMut::visit(condition, &mut name);
            }
            if let Some(condition) = &mut select.having {
                let _ = VisitMut::visit(condition, &mut name);
            }
            let _ = VisitMut::visit(&mut select.group_by, &mut name);
            ControlFlow::Continue(())
        }
    }
    struct Name<'a>(&'a HashMap<String, Ident>, usize);
    impl VisitorMut for Name<'_> {
        type Break = ();
        fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
            self.1 += 1;
            ControlFlow::Continue(())
        }
        fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
            self.1 -= 1;
            ControlFlow::Continue(())
        }
        fn post_visit_expr(&mut self, expr: &mut ast::Expr) -> ControlFlow<()> {
            if self.1 == 0
                && let ast::Expr::Identifier(column) = expr
                && let Some(table) = self.0.get(&folded(column))
            {
                *expr = ast::Expr::CompoundIdentifier(vec![table.clone(), column.clone()]);
            }
            ControlFlow::Continue(())
        }
    }
    let _ = VisitMut::visit(query, &mut Qualify);
}

/// The name that columns of a table have in front.
fn name_of(table: &TableFactor) -> Option<Ident> {
    match table {
        TableFactor::Table { name, alias, .. } => match alias {
            Some(alias) => Some(alias.name.clone()),
            None => name.0.last()?.as_ident().cloned(),
        },
        TableFactor::Derived {
            alias: Some(alias), ..
        } => Some(alias.name.clone()),
        _ => None,
    }
}

fn using_columns(join: &JoinOperator) -> Vec<String> {
    let constraint = match join {
        JoinOperator::Join(c)
        | JoinOperator::Inner(c)
        | JoinOperator::Left(c)
        | JoinOperator::LeftOuter(c)
        | JoinOperator::Right(c)
        | JoinOperator::RightOuter(c)
        | JoinOperator::FullOuter(c) => c,
        _ => return Vec::new(),
    };
    match constraint {
        JoinConstraintSql::Using(columns) => columns
            .iter()
            .filter_map(|c| c.0.last()?.as_ident().map(folded))
            .collect(),
        _ => Vec::new(),
    }
}

/// Puts the columns of `*` over joins with `USING` into PostgreSQL's order, the
/// merged ones first, where it is the outermost select list.
pub fn order_star(plan: LogicalPlan, spelling: &Spelling) -> Result<LogicalPlan> {
    if !spelling.star {
        return Ok(plan);
    }
    match plan {
        LogicalPlan::Projection(projection) => ordered(projection, spelling),
        LogicalPlan::Sort(_) | LogicalPlan::Limit(_) | LogicalPlan::Distinct(Distinct::All(_)) => {
            plan.map_children(|child| Ok(Transformed::yes(order_star(child, spelling)?)))?
                .data
                .recompute_schema()
        }
        other => Ok(other),
    }
}

fn ordered(projection: Projection, spelling: &Spelling) -> Result<LogicalPlan> {
    let input = &projection.input;
    let read: Vec<Column> = expand_wildcard(input.schema(), input, None)?
        .into_iter()
        .filter_map(|e| match e {
            Expr::Column(column) => Some(column),
            _ => None,
        })
        .collect();
    let wanted = star_columns(input, &read);
    let sorted = |columns: &[Column]| {
        let mut columns = columns.to_vec();
        columns.sort();
        columns
    };
    let width = read.len();
    let run: Vec<Expr> = read.iter().cloned().map(Expr::Column).collect();
    let start = (0..(projection.expr.len() + 1).saturating_sub(width))
        .find(|at| projection.expr[*at..*at + width] == run[..]);
    let (Some(start), true) = (start, width > 0 && sorted(&wanted) == sorted(&read)) else {
        return Ok(LogicalPlan::Projection(projection));
    };
    if wanted == read {
        return Ok(LogicalPlan::Projection(projection));
    }
    if spelling.ordinal {
        // The position was read in the order that changes here.
        return Err(carry(SqlError::unsupported(
            "ORDER BY a position beside * over a join with USING",
        )));
    }
    let mut expressions = projection.expr;
    for (place, column) in expressions[start..start + width].iter_mut().zip(wanted) {
        *place = Expr::Column(column);
    }
    Ok(LogicalPlan::Projection(Projection::try_new(
        expressions,
        projection.input,
    )?))
}

/// The columns of `*` in PostgreSQL's order, out of those that are read.
fn star_columns(plan: &LogicalPlan, read: &[Column]) -> Vec<Column> {
    match plan {
        LogicalPlan::Join(join) if join.join_constraint == JoinConstraint::Using => {
            let (left, right) = (
                star_columns(&join.left, read),
                star_columns(&join.right, read),
            );
            let mut columns = Vec::with_capacity(read.len());
            for (l, r) in &join.on {
                if let (Expr::Column(l), Expr::Column(r)) = (l, r) {
                    let kept = [l, r].into_iter().find(|c| read.contains(c));
                    columns.extend(kept.cloned());
                }
            }
            for column in left.into_iter().chain(right) {
                if !columns.contains(&column) {
                    columns.push(column);
                }
            }
            columns
        }
        LogicalPlan::Join(join) => {
            let mut columns = star_columns(&join.left, read);
            columns.extend(star_columns(&join.right, read));
            columns
        }
        LogicalPlan::Filter(filter) => star_columns(&filter.input, read),
        other => {
            let columns = other.schema().columns();
            columns.into_iter().filter(|c| read.contains(c)).collect()
        }
    }
}

/// Gives merged columns their values, in every outer join of a plan.
pub fn merge_columns(plan: LogicalPlan, spelling: &Spelling) -> Result<LogicalPlan> {
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Join(join) = node
            && join.join_constraint == JoinConstraint::Using
        {
            refuse_second_merge(join)?;
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    let merged = plan.transform_up_with_subqueries(|plan| match plan {
        LogicalPlan::Join(join) if join.join_constraint == JoinConstraint::Using => {
            merged(join, spelling)
        }
        other => Ok(Transformed::no(other)),
    })?;
    Ok(merged.data)
}

/// A later USING compares the merged column, of which the plan knows only the two
/// that it is made of: refused where they differ.
fn refuse_second_merge(join: &Join) -> Result<()> {
    for (left, right) in &join.on {
        for (side, key) in [(&join.left, left), (&join.right, right)] {
            if let Expr::Column(column) = key
                && merges(side, &column.name)
            {
                return Err(carry(SqlError::unsupported(format!(
                    "USING (\"{0}\") or NATURAL JOIN after a RIGHT or FULL JOIN that merges \"{0}\"",
                    column.name
                ))));
            }
        }
    }
    Ok(())
}

/// Whether a RIGHT or FULL JOIN among these joins merges a column of this name.
fn merges(plan: &LogicalPlan, name: &str) -> bool {
    let LogicalPlan::Join(join) = plan else {
        return false;
    };
    let here = join.join_constraint == JoinConstraint::Using
        && matches!(join.join_type, JoinType::Right | JoinType::Full)
        && { join.on.iter() }.any(|(l, _)| matches!(l, Expr::Column(c) if c.name == name));
    here || merges(&join.left, name) || merges(&join.right, name)
}

fn merged(join: Join, spelling: &Spelling) -> Result<Transformed<LogicalPlan>> {
    let mut values: HashMap<Column, Expr> = HashMap::new();
    for (left, right) in &join.on {
        let (Expr::Column(left), Expr::Column(right)) = (left, right) else {
            continue;
        };
        let (l, r) = (Expr::Column(left.clone()), Expr::Column(right.clone()));
        let value = match join.join_type {
            JoinType::Left => l,
            JoinType::Right => r,
            JoinType::Full => coalesce(vec![l, r]),
            _ => continue,
        };
        let mut read_as = Vec::new();
        if spelling.bare.contains(&left.name) {
            read_as.push(left);
        }
        if spelling.star {
            read_as.push(left.min(right));
        }
        for column in read_as {
            if value == Expr::Column(column.clone()) {
                continue;
            }
            if spelling.names(column) {
                return Err(carry(SqlError::unsupported(format!(
                    "the merged column \"{}\" of an outer join beside that of one table",
                    column.name
                ))));
            }
            values.insert(column.clone(), value.clone());
        }
    }
    if values.is_empty() {
        return Ok(Transformed::no(LogicalPlan::Join(join)));
    }
    let columns = join.schema.columns();
    let expressions = columns
        .into_iter()
        .map(|column| match values.remove(&column) {
            Some(value) => value.alias_qualified(column.relation, column.name),
            None => Expr::Column(column),
        });
    let expressions: Vec<Expr> = expressions.collect();
    let plan = LogicalPlanBuilder::from(LogicalPlan::Join(join)).project(expressions)?;
    Ok(Transformed::yes(plan.build()?))
}
