//! DDL, from the syntax tree (DataFusion's plans drop most of it).
//!
//! Every statement runs inside a transaction through [`CatalogChange`]: catalog
//! and schema versions change together with whatever rows have to be rewritten,
//! or not at all. What would rewrite or index a whole table outside of a
//! transaction block is done in steps instead ([`online`], PROTOCOLS S5), so that
//! it blocks nobody for long and is not bounded by the size of a transaction.
//!
//! | file | what |
//! |---|---|
//! | `table` | CREATE TABLE, CREATE TABLE AS, column definitions |
//! | `index` | CREATE INDEX, constraints that are indexes |
//! | `alter`, `column` | ALTER TABLE |
//! | `drop` | DROP, TRUNCATE, schemas |
//! | `rewrite` | writing all rows of a table anew inside one transaction |
//! | `online` | index builds in steps |
//! | `fill` | their second step: entries for the rows that exist |
//! | `builds` | who drives a build, and what becomes of it without its gateway |
//! | `cleaner` | background work: keys that no table uses, builds without a driver |

pub mod alter;
pub mod builds;
pub mod cleaner;
pub mod column;
pub mod drop;
mod fill;
pub mod index;
pub mod online;
pub mod rewrite;
pub mod table;

use crate::catalog::{CatalogChange, CatalogSnapshot, TableDescriptor};
use crate::error::{Result, SqlError};
use crate::gateway::Gateway;
use crate::pg_catalog::is_system_schema;
use crate::query::QueryContext;
use crate::settings::Settings;
use crate::statement::object_name;
use datafusion::sql::sqlparser::ast::{self, ObjectName, SqlOption};
use std::sync::Arc;

/// Name of the hidden row id column of tables without a primary key.
pub const ROW_ID: &str = "__lineradb_rowid";

/// What a DDL statement runs in.
pub struct DdlEnv<'a> {
    /// Ids, the query engine.
    pub gateway: &'a Gateway,
    /// The catalog being changed, and the transaction.
    pub change: CatalogChange<'a>,
    /// Search path and clocks; its catalog is the one before the statement.
    pub context: QueryContext,
    /// Notices for the client.
    pub notices: Vec<SqlError>,
}

impl DdlEnv<'_> {
    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.context.settings
    }

    /// The catalog with the changes so far.
    pub fn catalog(&self) -> &CatalogSnapshot {
        self.change.snapshot()
    }

    /// The context with the changes so far.
    pub fn current_context(&self) -> QueryContext {
        QueryContext {
            catalog: Arc::new(self.change.snapshot().clone()),
            ..self.context.clone()
        }
    }

    /// A notice for the client.
    pub fn notice(&mut self, sqlstate: &str, message: impl Into<String>) {
        self.notices.push(SqlError::new(sqlstate, message));
    }

    /// A new OID.
    ///
    /// # Errors
    /// 57P03 when the metaservice cannot be reached.
    pub async fn oid(&self) -> Result<u32> {
        self.gateway.catalog.oids.take_oid().await
    }

    /// A table by name.
    ///
    /// # Errors
    /// 42P01, 42809 for something else of that name.
    pub fn table(&self, name: &ObjectName) -> Result<Arc<TableDescriptor>> {
        let (schema, name) = object_name(name)?;
        find_table(self.catalog(), self.settings(), schema.as_deref(), &name)
    }

    /// The schema in which a new object of that name is made, and its name.
    ///
    /// # Errors
    /// 3F000 when there is none, 42501 for a system schema.
    pub fn new_name(&self, name: &ObjectName) -> Result<(String, String)> {
        let (schema, name) = object_name(name)?;
        let schema = match schema {
            Some(s) => {
                refuse_system_schema(&s)?;
                if self.catalog().schema(&s).is_none() {
                    return Err(SqlError::new(
                        "3F000",
                        format!("schema \"{s}\" does not exist"),
                    ));
                }
                s
            }
            None => self
                .settings()
                .search_path
                .iter()
                .find(|s| self.catalog().schema(s).is_some())
                .cloned()
                .ok_or_else(|| {
                    SqlError::new("3F000", "no schema has been selected to create in")
                })?,
        };
        Ok((schema, name))
    }

    /// A name that is free in the schema: `base`, `base1`, `base2`, ...
    pub fn free_name(&self, schema: &str, base: &str, also_taken: &[String]) -> String {
        let taken = |name: &String| {
            self.catalog().relation(schema, name).is_some() || also_taken.contains(name)
        };
        let base = cut(base, 63);
        let mut name = base.clone();
        let mut n = 0;
        while taken(&name) {
            n += 1;
            let suffix = n.to_string();
            name = cut(&base, 63 - suffix.len()) + &suffix;
        }
        name
    }
}

fn cut(name: &str, bytes: usize) -> String {
    let mut end = name.len().min(bytes);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].to_owned()
}

/// 42501 for schemas that are ours.
pub fn refuse_system_schema(schema: &str) -> Result<()> {
    if is_system_schema(schema) || schema.starts_with("pg_") {
        return Err(SqlError::new(
            "42501",
            format!("permission denied for schema {schema}"),
        ));
    }
    Ok(())
}

/// A table by name.
///
/// # Errors
/// 42P01, 42809 for an index of that name.
pub fn find_table(
    catalog: &CatalogSnapshot,
    settings: &Settings,
    schema: Option<&str>,
    name: &str,
) -> Result<Arc<TableDescriptor>> {
    if let Some(table) = catalog.resolve(schema, name, &settings.search_path) {
        return Ok(Arc::clone(table));
    }
    if let Some(s) = schema {
        refuse_system_schema(s)?;
        if catalog.schema(s).is_none() {
            return Err(SqlError::new(
                "3F000",
                format!("schema \"{s}\" does not exist"),
            ));
        }
    }
    let is_index = match schema {
        Some(s) => catalog.index(s, name).is_some(),
        None => settings
            .search_path
            .iter()
            .any(|s| catalog.index(s, name).is_some()),
    };
    if is_index {
        return Err(SqlError::new("42809", format!("\"{name}\" is not a table")));
    }
    Err(SqlError::undefined_table(name))
}

/// Checks the storage parameters of `WITH (..)`: PostgreSQL's are accepted and
/// have no effect here.
///
/// # Errors
/// 22023 for unknown ones, 0A000 for ours that are still to come.
pub fn check_storage_parameters(options: &[SqlOption]) -> Result<()> {
    for option in options {
        let name = match option {
            SqlOption::KeyValue { key, .. } => key.value.to_lowercase(),
            SqlOption::Ident(name) => name.value.to_lowercase(),
            other => {
                return Err(SqlError::syntax(format!("unrecognized option {other}")));
            }
        };
        let known = matches!(
            name.as_str(),
            "fillfactor"
                | "parallel_workers"
                | "user_catalog_table"
                | "vacuum_truncate"
                | "deduplicate_items"
                | "oids"
        ) || name.starts_with("autovacuum_")
            || name.starts_with("toast");
        if matches!(name.as_str(), "sharding" | "buckets") {
            return Err(SqlError::unsupported(format!("table option {name}")));
        }
        if !known {
            return Err(SqlError::new(
                "22023",
                format!("unrecognized parameter \"{name}\""),
            ));
        }
    }
    Ok(())
}

/// Runs a DDL statement; answers its command tag.
///
/// # Errors
/// Those of the statement; 0A000 for what is not supported.
pub async fn run(env: &mut DdlEnv<'_>, statement: &ast::Statement) -> Result<String> {
    use ast::Statement as S;
    match statement {
        S::CreateTable(create) => table::create(env, create).await,
        S::CreateIndex(create) => index::create(env, create).await,
        S::AlterTable(alter) => alter::table(env, alter).await,
        S::AlterIndex { name, operation } => alter::index(env, name, operation),
        S::Drop {
            object_type,
            if_exists,
            names,
            cascade,
            ..
        } => drop::drop(env, *object_type, *if_exists, names, *cascade),
        S::Truncate(truncate) => drop::truncate(env, truncate),
        S::CreateSchema {
            schema_name,
            if_not_exists,
            ..
        } => drop::create_schema(env, schema_name, *if_not_exists).await,
        other => Err(SqlError::unsupported(what(other))),
    }
}

/// An ALTER TABLE at once, as a step of an online build that cannot be one.
///
/// # Errors
/// Those of the statement.
pub async fn alter_statement(env: &mut DdlEnv<'_>, statement: &ast::Statement) -> Result<()> {
    match statement {
        ast::Statement::AlterTable(alter) => alter::table(env, alter).await.map(|_| ()),
        other => Err(SqlError::unsupported(what(other))),
    }
}

/// The first words of a statement, for an error.
pub fn what(statement: &ast::Statement) -> String {
    let text = statement.to_string();
    let words: Vec<&str> = text
        .split_whitespace()
        .take_while(|w| w.chars().all(|c| c.is_ascii_uppercase()))
        .take(3)
        .collect();
    if words.is_empty() {
        "this statement".to_owned()
    } else {
        words.join(" ")
    }
}
