//! Which columns the tables of a FROM have, as far as the syntax and the catalog
//! tell, and how an expression names each of them.

use crate::error::{Result, SqlError};
use crate::statement::ident;
use datafusion::sql::sqlparser::ast::{Expr, Ident, ObjectName, TableAlias};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A column of a FROM.
#[derive(Clone, Debug)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// What names it beyond doubt.
    pub value: Expr,
    /// One of two that `USING` made one.
    pub merged: bool,
}

/// The columns of a FROM, or of a part of it, in the order of `*`.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    columns: Vec<Column>,
    /// Names of tables and of their columns, if these are known.
    tables: Vec<(String, Option<Vec<String>>)>,
    /// There are columns whose names are not known.
    open: bool,
}

/// A name in quotes.
pub fn quoted(name: &str) -> Ident {
    Ident::with_quote('"', name)
}

impl Scope {
    /// Of one table. `columns`: `None` when only its alias tells.
    pub fn of_table(
        called: Option<&Ident>,
        alias: Option<&TableAlias>,
        columns: Option<Vec<String>>,
    ) -> Self {
        let table = alias.map(|a| &a.name).or(called).map(ident);
        let known = columns.is_some();
        let names = renamed(columns.unwrap_or_default(), alias);
        let open = !known && names.is_empty();
        let columns = names.iter().map(|name| Column {
            name: name.clone(),
            value: match &table {
                Some(table) => Expr::CompoundIdentifier(vec![quoted(table), quoted(name)]),
                None => Expr::Identifier(quoted(name)),
            },
            merged: false,
        });
        Scope {
            columns: columns.collect(),
            tables: table
                .map(|table| (table, (!open).then(|| names.clone())))
                .into_iter()
                .collect(),
            open,
        }
    }

    /// Its columns.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Their names.
    pub fn names(&self) -> Vec<String> {
        self.columns.iter().map(|c| c.name.clone()).collect()
    }

    /// The names of one table's columns, if they are known.
    pub fn of(&self, table: &str) -> Option<&[String]> {
        let (_, columns) = self.tables.iter().find(|(name, _)| name == table)?;
        columns.as_deref()
    }

    /// There are columns whose names are not known.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Two columns have the same name.
    pub fn repeats(&self) -> bool {
        let mut seen = HashSet::new();
        !self.columns.iter().all(|c| seen.insert(&c.name))
    }

    /// A table's name that another part has as well.
    pub fn same_table(&self, other: &Scope) -> Option<&str> {
        let mut names = self.tables.iter().map(|(name, _)| name.as_str());
        names.find(|name| other.tables.iter().any(|(n, _)| n == name))
    }

    /// Whether two columns have become one somewhere.
    pub fn has_merged(&self) -> bool {
        self.columns.iter().any(|c| c.merged)
    }

    /// Adds those of another part.
    pub fn append(&mut self, other: Scope) {
        self.columns.extend(other.columns);
        self.tables.extend(other.tables);
        self.open |= other.open;
    }

    /// Joined with another part by columns that became one.
    pub fn merged_with(mut self, right: Scope, merged: Vec<Column>) -> Scope {
        let rest = std::mem::take(&mut self.columns);
        self.append(Scope {
            columns: Vec::new(),
            ..right
        });
        let rest = rest.into_iter().chain(right.columns);
        let rest: Vec<Column> = rest
            .filter(|c| merged.iter().all(|m| m.name != c.name))
            .collect();
        self.columns = merged;
        self.columns.extend(rest);
        self
    }

    /// The names that both parts have: what NATURAL joins by.
    ///
    /// # Errors
    /// 0A000 when not all names are known.
    pub fn common(&self, right: &Scope) -> Result<Vec<String>> {
        if self.open || right.open {
            return Err(SqlError::unsupported(
                "NATURAL JOIN with a function whose columns are not named",
            ));
        }
        let mut names = self.names();
        names.retain(|name| right.columns.iter().any(|c| c.name == *name));
        names.dedup();
        Ok(names)
    }

    /// The column that `USING` names.
    ///
    /// # Errors
    /// 42703 when there is none, 42702 when there are several; 0A000 when not all
    /// names are known.
    pub fn common_column(&self, name: &str, side: &str) -> Result<&Expr> {
        let mut found = self.columns.iter().filter(|c| c.name == name);
        match (found.next(), found.next()) {
            (Some(column), None) => Ok(&column.value),
            (Some(_), Some(_)) => Err(SqlError::new(
                "42702",
                format!("common column name \"{name}\" appears more than once in {side} table"),
            )),
            (None, _) if self.open => Err(SqlError::unsupported(
                "JOIN USING with a function whose columns are not named",
            )),
            (None, _) => Err(SqlError::new(
                "42703",
                format!(
                    "column \"{name}\" specified in USING clause does not exist in {side} table"
                ),
            )),
        }
    }
}

/// The first names replaced by those of an alias.
fn renamed(mut columns: Vec<String>, alias: Option<&TableAlias>) -> Vec<String> {
    let given = alias.map_or(&[][..], |alias| &alias.columns);
    for (at, column) in given.iter().enumerate() {
        let name = ident(&column.name);
        match columns.get_mut(at) {
            Some(old) => *old = name,
            None => columns.push(name),
        }
    }
    columns
}

/// What surrounds a part of a query: the FROMs that it may name columns of, and
/// the queries that WITH gives names to.
#[derive(Clone, Debug, Default)]
pub struct Around {
    scopes: Vec<Arc<Scope>>,
    queries: HashMap<String, Option<Vec<String>>>,
}

impl Around {
    /// One FROM further in.
    pub fn within(&self, scope: Scope) -> Self {
        let mut inner = self.clone();
        inner.scopes.push(Arc::new(scope));
        inner
    }

    /// A query that WITH names, and its columns, if they are known.
    pub fn define(&mut self, alias: &TableAlias, columns: Option<Vec<String>>) {
        let columns = columns.map(|columns| renamed(columns, Some(alias)));
        self.queries.insert(ident(&alias.name), columns);
    }

    /// The columns of a query that WITH names; the inner `None`: not known.
    pub fn defined(&self, name: &ObjectName) -> Option<&Option<Vec<String>>> {
        match &name.0[..] {
            [name] => self.queries.get(&ident(name.as_ident()?)),
            _ => None,
        }
    }

    /// What a bare name stands for, when that is a merged column.
    pub fn merged(&self, name: &str) -> Option<&Expr> {
        for scope in self.scopes.iter().rev() {
            let mut found = scope.columns.iter().filter(|c| c.name == name);
            match (found.next(), found.next()) {
                (Some(column), None) => return column.merged.then_some(&column.value),
                (Some(_), Some(_)) => return None,
                (None, _) if scope.open => return None,
                (None, _) => {}
            }
        }
        None
    }
}
