//! INSERT, UPDATE, DELETE, COPY and SELECT FOR UPDATE: row sources, and our own
//! operators over them.
//!
//! ```text
//!  insert / update      plan: a row source (simple values, one key, or a SELECT
//!      |                planned by the query engine) and expressions
//!      v
//!  exprs                SET, DEFAULT, RETURNING, ON CONFLICT over rows of values
//!      v
//!  writer -> codec      constraints, index entries, buffered writes
//! ```

pub mod codec;
pub mod conflict;
pub mod copy_format;
pub mod copy_in;
pub mod copy_out;
pub mod exprs;
pub mod insert;
pub mod locked;
pub mod rows;
pub mod update;
pub mod writer;

use crate::catalog::CatalogStore;
use crate::error::{Result, SqlError};
use crate::pg_catalog::is_system_schema;
use crate::query::QueryContext;
use crate::session::ResultColumn;
use codec::TableCodec;
use datafusion::sql::sqlparser::ast::{SelectItem, TableWithJoins};
use exprs::{Compiler, Exprs, RowShape};
use lineradb_client::Transaction;
use lineradb_common::sql::Datum;
use std::sync::Arc;
use writer::Checks;

/// What a DML statement runs in.
pub struct DmlContext<'a> {
    /// Catalog, settings.
    pub query: &'a QueryContext,
    /// Row ids.
    pub catalog: &'a CatalogStore,
    /// The transaction.
    pub txn: &'a Transaction,
    /// `$1`, `$2`, ...
    pub parameters: &'a [Datum],
    /// When uniqueness is checked.
    pub checks: Checks,
}

/// A RETURNING clause.
#[derive(Debug)]
pub struct Returning {
    exprs: Exprs,
    shape: RowShape,
    /// What it returns.
    pub columns: Arc<[ResultColumn]>,
}

impl Returning {
    fn plan(
        compiler: &mut Compiler<'_>,
        codec: &TableCodec,
        alias: &str,
        items: Option<&[SelectItem]>,
    ) -> Result<Option<Self>> {
        let Some(items) = items else { return Ok(None) };
        let shape = RowShape::of_table(&codec.table, &[alias]);
        let (exprs, columns) = compiler.select_list(items, &shape)?;
        Ok(Some(Returning {
            exprs,
            shape,
            columns: columns.into(),
        }))
    }

    /// With further tables in FROM or USING: their columns are not kept.
    fn plan_joined(
        compiler: &mut Compiler<'_>,
        codec: &TableCodec,
        alias: &str,
        items: Option<&[SelectItem]>,
        others: &[TableWithJoins],
    ) -> Result<Option<Self>> {
        let wildcard = items
            .unwrap_or_default()
            .iter()
            .any(|i| matches!(i, SelectItem::Wildcard(_)));
        if !others.is_empty() && wildcard {
            return Err(SqlError::unsupported(
                "RETURNING * together with FROM or USING",
            ));
        }
        Self::plan(compiler, codec, alias, items).map_err(|mut e| {
            if !others.is_empty() && matches!(e.sqlstate.as_str(), "42703" | "42P01") {
                e = SqlError::unsupported("RETURNING columns of tables in FROM or USING");
            }
            e
        })
    }

    /// See [`Exprs::is_cacheable`].
    fn is_cacheable(&self) -> bool {
        self.exprs.is_cacheable()
    }
}

/// Columns and rows of RETURNING.
pub type Returned = (Arc<[ResultColumn]>, Vec<Vec<Datum>>);

/// What a DML statement did.
#[derive(Debug)]
pub struct Changed {
    /// Rows inserted, updated, deleted.
    pub count: u64,
    /// Rows of RETURNING and their columns.
    pub returned: Option<Returned>,
}

impl Changed {
    fn with_returning(
        ctx: &DmlContext<'_>,
        _codec: &TableCodec,
        returning: Option<&Returning>,
        count: u64,
        rows: Vec<Vec<Datum>>,
    ) -> Result<Self> {
        let returned = match returning {
            None => None,
            Some(r) => {
                let rows = r
                    .exprs
                    .evaluate(ctx.query, &r.shape, &rows, ctx.parameters)?;
                Some((Arc::clone(&r.columns), rows))
            }
        };
        Ok(Changed { count, returned })
    }
}

/// A plan that changes rows.
#[derive(Debug)]
pub enum DmlPlan {
    /// INSERT
    Insert(Box<insert::InsertPlan>),
    /// UPDATE, DELETE
    Modify(Box<update::ModifyPlan>),
    /// SELECT FOR UPDATE, FOR SHARE
    Lock(Box<locked::LockingSelect>),
}

impl DmlPlan {
    /// Runs it.
    ///
    /// # Errors
    /// Those of the statement.
    pub async fn run(&self, ctx: &DmlContext<'_>) -> Result<Changed> {
        match self {
            DmlPlan::Insert(p) => p.run(ctx).await,
            DmlPlan::Modify(p) => p.run(ctx).await,
            DmlPlan::Lock(p) => p.run(ctx).await,
        }
    }

    /// What it returns: RETURNING, or the select list.
    pub fn columns(&self) -> Option<Arc<[ResultColumn]>> {
        let returning = match self {
            DmlPlan::Insert(p) => &p.returning,
            DmlPlan::Modify(p) => &p.returning,
            DmlPlan::Lock(p) => return Some(Arc::clone(p.columns())),
        };
        returning.as_ref().map(|r| Arc::clone(&r.columns))
    }

    /// The table.
    pub fn codec(&self) -> &Arc<TableCodec> {
        match self {
            DmlPlan::Insert(p) => &p.codec,
            DmlPlan::Modify(p) => &p.codec,
            DmlPlan::Lock(p) => &p.codec,
        }
    }

    /// True when nothing of the clock or the settings was folded in.
    pub fn is_cacheable(&self) -> bool {
        match self {
            DmlPlan::Insert(p) => p.is_cacheable(),
            DmlPlan::Modify(p) => p.is_cacheable(),
            DmlPlan::Lock(p) => p.is_cacheable(),
        }
    }

    /// The command tag without the count.
    pub fn tag(&self) -> &'static str {
        match self {
            DmlPlan::Insert(_) => "INSERT 0",
            DmlPlan::Modify(p) if p.is_update() => "UPDATE",
            DmlPlan::Modify(_) => "DELETE",
            DmlPlan::Lock(_) => "SELECT",
        }
    }

    /// What EXPLAIN shows, and the query below it.
    pub fn explain(&self) -> (String, Option<&crate::query::Planned>) {
        match self {
            DmlPlan::Insert(p) => (p.explain(), p.source_query()),
            DmlPlan::Modify(p) => (p.explain(), p.source_query()),
            DmlPlan::Lock(p) => (p.explain(), Some(p.source_query())),
        }
    }
}

/// A table by name, with its codec.
///
/// # Errors
/// 42P01 when there is none, 42809 for an index, 42501 for a catalog table.
pub fn resolve_table(
    context: &QueryContext,
    schema: Option<&str>,
    name: &str,
) -> Result<Arc<TableCodec>> {
    let settings = &context.settings;
    match context.catalog.resolve(schema, name, &settings.search_path) {
        Some(table) => Ok(Arc::new(TableCodec::new(table)?)),
        None => {
            if schema.is_some_and(is_system_schema) {
                return Err(SqlError::new(
                    "42501",
                    format!("permission denied for table {name}"),
                ));
            }
            let shown = match schema {
                Some(s) => format!("{s}.{name}"),
                None => name.to_owned(),
            };
            Err(SqlError::undefined_table(shown))
        }
    }
}
