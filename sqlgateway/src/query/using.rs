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
use datafusion::common::tree_node::Transformed;
use datafusion::error::Result;
use datafusion::functions::expr_fn::coalesce;
use datafusion::logical_expr::{
    Expr, Join, JoinConstraint, JoinType, LogicalPlan, LogicalPlanBuilder,
};
use datafusion::sql::sqlparser::ast::{
    self, Ident, Query, Select, SelectItem, SelectItemQualifiedWildcardKind, Visit, Visitor,
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
        let _ = query.visit(&mut spelling);
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

/// Gives merged columns their values, in every outer join of a plan.
pub fn merge_columns(plan: LogicalPlan, spelling: &Spelling) -> Result<LogicalPlan> {
    let merged = plan.transform_up_with_subqueries(|plan| match plan {
        LogicalPlan::Join(join) if join.join_constraint == JoinConstraint::Using => {
            merged(join, spelling)
        }
        other => Ok(Transformed::no(other)),
    })?;
    Ok(merged.data)
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
