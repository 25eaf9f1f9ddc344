//! Where in its text a statement names what does not exist.

use super::{Command, Statement, ident, location};
use crate::error::SqlError;
use datafusion::sql::sqlparser::ast::{
    self, AssignmentTarget, Expr, Ident, ObjectName, Visit, Visitor,
};
use std::ops::ControlFlow;

/// Gives 42P01 and 42703 the place of the name that they are about.
pub fn placed(error: SqlError, statement: &Statement) -> SqlError {
    let Command::Sql(tree) = statement.command() else {
        return error;
    };
    if error.position.is_some() || !matches!(error.sqlstate.as_str(), "42P01" | "42703") {
        return error;
    }
    let Some(path) = missing(&error.message) else {
        return error;
    };
    let mut find = Find {
        tables: error.sqlstate == "42P01",
        path: &path,
    };
    let found = match targets(tree)
        .into_iter()
        .find(|i| find.is(std::slice::from_ref(i)))
    {
        Some(column) => Some(column),
        None => match tree.visit(&mut find) {
            ControlFlow::Break(name) => Some(name),
            ControlFlow::Continue(()) => None,
        },
    };
    let at = found.and_then(|name| place(statement.text(), &name));
    error.at(at)
}

/// The name in a message: `"s.t"`, or `t.c` without quotes.
fn missing(message: &str) -> Option<Vec<String>> {
    let name = match message.split('"').nth(1) {
        Some(name) => name,
        None => message.strip_prefix("column ")?.split(' ').next()?,
    };
    Some(name.split('.').map(str::to_owned).collect())
}

/// The columns that an INSERT or UPDATE writes: they are no expressions.
fn targets(tree: &ast::Statement) -> Vec<Ident> {
    let last = |name: &ObjectName| name.0.last().and_then(|p| p.as_ident()).cloned();
    match tree {
        ast::Statement::Insert(insert) => insert.columns.iter().filter_map(last).collect(),
        ast::Statement::Update(update) => update
            .assignments
            .iter()
            .flat_map(|a| match &a.target {
                AssignmentTarget::ColumnName(name) => last(name).into_iter().collect(),
                AssignmentTarget::Tuple(names) => names.iter().filter_map(last).collect::<Vec<_>>(),
            })
            .collect(),
        _ => Vec::new(),
    }
}

struct Find<'a> {
    /// A table is missing, not a column.
    tables: bool,
    path: &'a [String],
}

impl Find<'_> {
    fn is(&self, names: &[Ident]) -> bool {
        let names: Vec<String> = names.iter().map(ident).collect();
        names.ends_with(self.path)
    }
}

impl Visitor for Find<'_> {
    type Break = Ident;

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<Ident> {
        let names: Vec<Ident> = relation
            .0
            .iter()
            .filter_map(|p| p.as_ident().cloned())
            .collect();
        match names.first() {
            Some(first) if self.tables && self.is(&names) => ControlFlow::Break(first.clone()),
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Ident> {
        let found = match expr {
            Expr::Identifier(name) if !self.tables => {
                self.is(std::slice::from_ref(name)).then_some(name)
            }
            // `t.c` without a `t`, or without a `c`.
            Expr::CompoundIdentifier(names) => {
                let (qualifier, all) = (&names[..names.len().saturating_sub(1)], &names[..]);
                let part = if self.tables { qualifier } else { all };
                names.first().filter(|_| self.is(part))
            }
            _ => None,
        };
        match found {
            Some(name) => ControlFlow::Break(name.clone()),
            None => ControlFlow::Continue(()),
        }
    }
}

/// The number of the character at which a name stands, if it does: a tree may
/// have been made from another text.
fn place(text: &str, name: &Ident) -> Option<usize> {
    let at = location(text, name.span.start.line, name.span.start.column)?;
    let rest: String = text
        .chars()
        .skip(at.checked_sub(1)?)
        .take(name.value.chars().count())
        .collect();
    (rest == name.value || rest.starts_with('"')).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statement::parse;

    fn at(sql: &str, error: SqlError) -> Option<usize> {
        let statements = parse(sql).unwrap_or_else(|e| panic!("{e}"));
        placed(error, &statements[0]).position
    }

    #[test]
    fn names_are_found_where_they_stand() {
        let column = |sql, name| at(sql, SqlError::undefined_column(name));
        assert_eq!(column("SELECT 1 AS x,\n x FROM t", "x"), Some(17));
        assert_eq!(column("SELECT ü, \"X\" FROM t", "X"), Some(11));
        assert_eq!(column("UPDATE t SET a = 1, b = 2", "b"), Some(21));
        assert_eq!(column("INSERT INTO t (a, b) VALUES (1, 2)", "b"), Some(19));
        assert_eq!(column("SELECT 1", "x"), None);
        let table = |sql, name| at(sql, SqlError::undefined_table(name));
        assert_eq!(table("SELECT t FROM a, s.t", "s.t"), Some(18));
        assert_eq!(table("DELETE FROM t", "t"), Some(13));
        let other = SqlError::new("42P01", "missing FROM-clause entry for table \"z\"");
        assert_eq!(at("SELECT z, z.a FROM t", other), Some(11));
        let other = SqlError::new("42703", "column t.x does not exist");
        assert_eq!(at("SELECT x, t.x FROM t", other), Some(11));
    }
}
