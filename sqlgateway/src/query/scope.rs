//! Which columns the tables of a FROM have, as far as the syntax and the catalog
//! tell, of which types, and how an expression names each of them.

use super::types::sql_type_of;
use crate::error::{Result, SqlError};
use crate::statement::ident;
use datafusion::sql::sqlparser::ast::{Expr, Ident, ObjectName, TableAlias};
use lineradb_common::sql::SqlType;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A column of a table, or of what a query returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Its type, where that is known before the query is planned.
    pub sql_type: Option<SqlType>,
}

/// A column of a FROM.
#[derive(Clone, Debug)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type, where that is known.
    pub sql_type: Option<SqlType>,
    /// What names it beyond doubt.
    pub value: Expr,
    /// One of two that `USING` made one.
    pub merged: bool,
}

impl Column {
    /// Both types are known and are one, whatever their lengths: values keep theirs. Of
    /// texts PostgreSQL takes the left one's type.
    pub fn has_type_of(&self, other: &Column) -> bool {
        let plain = |sql_type| match sql_type {
            SqlType::Numeric(_) => SqlType::Numeric(None),
            text if text.is_text() => SqlType::Text,
            other => other,
        };
        self.sql_type.is_some() && self.sql_type.map(plain) == other.sql_type.map(plain)
    }
}

/// The columns of a FROM, or of a part of it, in the order of `*`.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    columns: Vec<Column>,
    /// Names of tables, and their columns, if these are known.
    tables: Vec<(String, Option<Vec<Named>>)>,
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
        columns: Option<Vec<Named>>,
    ) -> Self {
        let table = alias.map(|a| &a.name).or(called).map(ident);
        let known = columns.is_some();
        let named = renamed(columns.unwrap_or_default(), alias);
        let open = !known && named.is_empty();
        let columns = named.iter().map(|column| Column {
            name: column.name.clone(),
            sql_type: column.sql_type,
            value: match &table {
                Some(table) => Expr::CompoundIdentifier(vec![quoted(table), quoted(&column.name)]),
                None => Expr::Identifier(quoted(&column.name)),
            },
            merged: false,
        });
        Scope {
            columns: columns.collect(),
            tables: table
                .map(|table| (table, (!open).then(|| named.clone())))
                .into_iter()
                .collect(),
            open,
        }
    }

    /// Its columns.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Their names and types.
    pub fn named(&self) -> Vec<Named> {
        let named = self.columns.iter().map(|c| Named {
            name: c.name.clone(),
            sql_type: c.sql_type,
        });
        named.collect()
    }

    /// One table's columns, if they are known.
    pub fn of(&self, table: &str) -> Option<&[Named]> {
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
        let mut names: Vec<String> = self.columns.iter().map(|c| c.name.clone()).collect();
        names.retain(|name| right.columns.iter().any(|c| c.name == *name));
        names.dedup();
        Ok(names)
    }

    /// The column that `USING` names.
    ///
    /// # Errors
    /// 42703 when there is none, 42702 when there are several; 0A000 when not all
    /// names are known.
    pub fn common_column(&self, name: &str, side: &str) -> Result<&Column> {
        let mut found = self.columns.iter().filter(|c| c.name == name);
        match (found.next(), found.next()) {
            (Some(column), None) => Ok(column),
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
fn renamed(mut columns: Vec<Named>, alias: Option<&TableAlias>) -> Vec<Named> {
    let given = alias.map_or(&[][..], |alias| &alias.columns);
    for (at, column) in given.iter().enumerate() {
        let name = ident(&column.name);
        match columns.get_mut(at) {
            Some(old) => old.name = name,
            None => columns.push(Named {
                name,
                sql_type: None,
            }),
        }
    }
    columns
}

/// What surrounds a part of a query: the FROMs that it may name columns of, and
/// the queries that WITH gives names to.
#[derive(Clone, Debug, Default)]
pub struct Around {
    scopes: Vec<Arc<Scope>>,
    queries: HashMap<String, Option<Vec<Named>>>,
}

impl Around {
    /// One FROM further in.
    pub fn within(&self, scope: Scope) -> Self {
        let mut inner = self.clone();
        inner.scopes.push(Arc::new(scope));
        inner
    }

    /// A query that WITH names, and its columns, if they are known.
    pub fn define(&mut self, alias: &TableAlias, columns: Option<Vec<Named>>) {
        let columns = columns.map(|columns| renamed(columns, Some(alias)));
        self.queries.insert(ident(&alias.name), columns);
    }

    /// The columns of a query that WITH names; the inner `None`: not known.
    pub fn defined(&self, name: &ObjectName) -> Option<&Option<Vec<Named>>> {
        match &name.0[..] {
            [name] => self.queries.get(&ident(name.as_ident()?)),
            _ => None,
        }
    }

    /// What a bare name stands for, when that is a merged column.
    pub fn merged(&self, name: &str) -> Option<&Expr> {
        let column = self.column(name)?;
        column.merged.then_some(&column.value)
    }

    /// The column that a bare name stands for, if that is known.
    fn column(&self, name: &str) -> Option<&Column> {
        for scope in self.scopes.iter().rev() {
            let mut found = scope.columns.iter().filter(|c| c.name == name);
            match (found.next(), found.next()) {
                (Some(column), None) => return Some(column),
                (Some(_), Some(_)) => return None,
                (None, _) if scope.open => return None,
                (None, _) => {}
            }
        }
        None
    }

    /// The type of an expression that is a column or a cast.
    pub fn type_of(&self, expr: &Expr) -> Option<SqlType> {
        match expr {
            Expr::Nested(inner) => self.type_of(inner),
            Expr::Identifier(name) => self.column(&ident(name))?.sql_type,
            Expr::CompoundIdentifier(parts) => {
                let [table, name] = &parts[..] else {
                    return None;
                };
                let (table, name) = (ident(table), ident(name));
                let columns = self.scopes.iter().rev().find_map(|s| s.of(&table))?;
                columns.iter().find(|c| c.name == name)?.sql_type
            }
            Expr::Cast { data_type, .. } => sql_type_of(data_type).ok(),
            _ => None,
        }
    }
}
