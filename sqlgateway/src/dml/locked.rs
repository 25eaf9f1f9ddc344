//! SELECT .. FOR UPDATE and FOR SHARE of rows that a query finds (one row by its key
//! is `point`'s).
//!
//! The query is planned with all columns of the table whose rows are to be locked
//! behind its own. Its rows are locked in the order in which they come and checked
//! against what is there: the transaction layer proves the rest, or the statement
//! starts over. SKIP LOCKED takes rows one by one, without waiting, until it has as
//! many as were asked for; what it has looked at is not part of what the transaction
//! has read, but for the rows that it took, so that workers on one queue do not conflict
//! over each other's rows. So it may look at nothing but that one table.

use super::codec::TableCodec;
use super::exprs::Compiler;
use super::writer::LOCK_BATCH;
use super::{Changed, DmlContext, resolve_table, rows};
use crate::error::{Result, SqlError};
use crate::point::compile::compile;
use crate::point::scalar::{Scalar, Scope, Values};
use crate::point::single_table;
use crate::query::{Planned, QueryContext};
use crate::session::ResultColumn;
use crate::statement::{ident, object_name};
use bytes::Bytes;
use datafusion::sql::sqlparser::ast::{
    GroupByExpr, Ident, JoinOperator, LimitClause, LockClause, LockType, NonBlock, Query, Select,
    SelectItem, SetExpr, TableFactor, Visit, Visitor, With,
};
use futures::StreamExt;
use lineradb_client::{Error as ClientError, LockOptions};
use lineradb_common::sql::{Datum, SqlType, datum_at};
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

/// A locking SELECT, ready to run.
#[derive(Debug)]
pub struct LockingSelect {
    pub(super) codec: Arc<TableCodec>,
    source: Planned,
    columns: Arc<[ResultColumn]>,
    shared: bool,
    wait: Wait,
}

#[derive(Debug)]
enum Wait {
    /// For as long as it takes.
    Yes,
    /// NOWAIT
    No,
    /// SKIP LOCKED, until so many rows are locked.
    Skip(Option<Scalar>),
}

/// 0A000 in PostgreSQL's words.
fn not_allowed(what: &str) -> SqlError {
    SqlError::new("0A000", format!("FOR UPDATE is not allowed with {what}"))
}

impl LockingSelect {
    /// Plans a query that ends with FOR UPDATE or FOR SHARE.
    ///
    /// # Errors
    /// 0A000 where it is not clear which rows are meant; those of planning.
    pub async fn plan(compiler: &mut Compiler<'_>, query: &Query) -> Result<Self> {
        let mut query = query.clone();
        let [lock] = &std::mem::take(&mut query.locks)[..] else {
            return Err(SqlError::unsupported("several FOR UPDATE or FOR SHARE"));
        };
        let SetExpr::Select(select) = &mut *query.body else {
            return Err(not_allowed("UNION, INTERSECT, EXCEPT or VALUES"));
        };
        check_shape(select)?;
        if lock.nonblock == Some(NonBlock::SkipLocked) {
            check_queue(select, query.with.as_ref())?;
        }
        let (codec, alias) = target(compiler, select, lock, query.with.as_ref())?;
        let own = expand_wildcard(select, &codec, &alias)?;
        let width = codec.table.columns.len();
        let all = codec.table.columns.iter().enumerate();
        // By names of their own: ORDER BY may name what the query returns.
        let all = all.map(|(at, column)| {
            let name = Ident::with_quote('"', format!("\u{1}row{at}"));
            match rows::column_item(&alias, &column.name) {
                SelectItem::UnnamedExpr(expr) => SelectItem::ExprWithAlias { expr, alias: name },
                other => other,
            }
        });
        select.projection = own.into_iter().chain(all).collect();
        let wait = match lock.nonblock {
            None => Wait::Yes,
            Some(NonBlock::Nowait) => Wait::No,
            Some(NonBlock::SkipLocked) => Wait::Skip(take_limit(compiler, &mut query)?),
        };
        let context = QueryContext {
            row_ids: !codec.table.has_primary_key(),
            ..compiler.context.clone()
        };
        let types = &compiler.parameters.types;
        let source = compiler.engine.plan(&context, &query, types).await?;
        compiler.parameters.merge(&source.parameter_types);
        Ok(LockingSelect {
            codec,
            columns: source.columns[..source.columns.len().saturating_sub(width)].into(),
            source,
            shared: lock.lock_type == LockType::Share,
            wait,
        })
    }

    /// What it returns.
    pub fn columns(&self) -> &Arc<[ResultColumn]> {
        &self.columns
    }

    /// The query below it.
    pub fn source_query(&self) -> &Planned {
        &self.source
    }

    /// What EXPLAIN shows.
    pub fn explain(&self) -> String {
        format!("Lock Rows of {}", self.codec.table.display_name())
    }

    /// True when nothing of the clock or the settings was folded in.
    pub fn is_cacheable(&self) -> bool {
        self.source.cacheable
    }

    /// Runs it.
    ///
    /// # Errors
    /// 55P03 for a row that is locked under NOWAIT; those of the query and of the
    /// transaction layer.
    pub async fn run(&self, ctx: &DmlContext<'_>) -> Result<Changed> {
        let rows = match &self.wait {
            Wait::Skip(limit) => self.free_rows(ctx, limit.as_ref()).await?,
            Wait::Yes | Wait::No => self.all_rows(ctx).await?,
        };
        Ok(Changed {
            count: rows.len() as u64,
            returned: Some((Arc::clone(&self.columns), rows)),
        })
    }

    fn options(&self) -> LockOptions {
        LockOptions {
            wait: matches!(self.wait, Wait::Yes),
            shared: self.shared,
        }
    }

    /// A row of the source as (key, row of the table, what is returned).
    fn take_apart(&self, mut own: Vec<Datum>) -> Result<(Bytes, Vec<Datum>, Vec<Datum>)> {
        let row = own.split_off(self.columns.len());
        let key = self.codec.primary().entry(&self.codec.table, &row)?.key;
        Ok((key, row, own))
    }

    async fn all_rows(&self, ctx: &DmlContext<'_>) -> Result<Vec<Vec<Datum>>> {
        let source = { self.source.execute(ctx.query, ctx.txn, ctx.parameters) }.await?;
        let mut found = Vec::new();
        for row in rows::collect(source, &self.source.columns).await? {
            found.push(self.take_apart(row)?);
        }
        let table = Some(self.codec.table.table_version());
        for part in found.chunks(LOCK_BATCH) {
            let keys: Vec<Bytes> = part.iter().map(|(key, ..)| key.clone()).collect();
            let newest = ctx.txn.locking_get(&keys, table, self.options()).await?;
            for ((key, row, _), value) in part.iter().zip(newest) {
                if !self.is_same(key, row, value)? {
                    let message = "a row changed between reading and locking it";
                    return Err(ClientError::conflict(message, key.clone()).into());
                }
            }
        }
        Ok(found.into_iter().map(|(_, _, own)| own).collect())
    }

    /// SKIP LOCKED.
    async fn free_rows(
        &self,
        ctx: &DmlContext<'_>,
        limit: Option<&Scalar>,
    ) -> Result<Vec<Vec<Datum>>> {
        let limit = self.limit(ctx, limit)?;
        let looks = ctx.txn.untracked();
        let mut source = { self.source.execute(ctx.query, &looks, ctx.parameters) }.await?;
        let table = Some(self.codec.table.table_version());
        let mut taken = Vec::new();
        let mut passed: HashSet<Bytes> = HashSet::new();
        while (taken.len() as u64) < limit {
            let Some(batch) = source.next().await else {
                break;
            };
            let batch = batch.map_err(crate::query::sql_error)?;
            for at in 0..batch.num_rows() {
                let columns = batch.columns().iter().zip(&*self.source.columns);
                let row = columns.map(|(a, c)| datum_at(a.as_ref(), at, c.sql_type));
                let (key, row, own) = self.take_apart(row.collect::<Result<_, _>>()?)?;
                if taken.len() as u64 >= limit || passed.contains(&key) {
                    continue;
                }
                let keys = std::slice::from_ref(&key);
                // What an earlier statement locked must hold, whatever becomes
                // of the row here (X4).
                let held = ctx.txn.holds(&key);
                let free = match ctx.txn.locking_get(keys, table, self.options()).await {
                    Ok(mut newest) => self.is_same(&key, &row, newest.pop().flatten())?,
                    // Somebody has it.
                    Err(ClientError::LockTimeout { .. }) => false,
                    // Somebody has changed it since.
                    Err(ClientError::Conflict { key: at, .. }) if at == key => false,
                    Err(error) => return Err(error.into()),
                };
                if free {
                    taken.push(own);
                } else {
                    if !held {
                        ctx.txn.disregard(&key);
                    }
                    passed.insert(key);
                }
            }
        }
        Ok(taken)
    }

    fn limit(&self, ctx: &DmlContext<'_>, limit: Option<&Scalar>) -> Result<u64> {
        let values = Values {
            parameters: ctx.parameters,
            row: &[],
            settings: &ctx.query.settings,
        };
        match limit.map(|limit| limit.evaluate(&values)).transpose()? {
            None | Some(Datum::Null) => Ok(u64::MAX),
            Some(Datum::Int8(rows)) => u64::try_from(rows)
                .map_err(|_| SqlError::new("2201W", "LIMIT must not be negative")),
            Some(_) => Err(SqlError::internal("LIMIT is no number")),
        }
    }

    /// Whether the newest value of a row is what the query has found.
    fn is_same(&self, key: &Bytes, row: &[Datum], newest: Option<Bytes>) -> Result<bool> {
        let Some(value) = newest else {
            return Ok(false);
        };
        let newest = self.codec.decode(key, &value)?;
        Ok(newest.len() == row.len() && newest.iter().zip(row).all(|(a, b)| is_same(a, b)))
    }
}

/// Equal, where NaN is equal to itself.
fn is_same(one: &Datum, other: &Datum) -> bool {
    match (one, other) {
        (Datum::Float4(a), Datum::Float4(b)) => a == b || a.is_nan() && b.is_nan(),
        (Datum::Float8(a), Datum::Float8(b)) => a == b || a.is_nan() && b.is_nan(),
        (one, other) => one == other,
    }
}

/// What SKIP LOCKED looks at is not proven later.
fn check_queue(select: &Select, with: Option<&With>) -> Result<()> {
    struct Queries;
    impl Visitor for Queries {
        type Break = ();
        fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            ControlFlow::Break(())
        }
    }
    let one = select.from.len() == 1 && select.from.iter().all(|from| from.joins.is_empty());
    if with.is_some() || !one || select.visit(&mut Queries).is_break() {
        return Err(SqlError::unsupported(
            "SKIP LOCKED in a query of more than one table, or with a subquery",
        ));
    }
    Ok(())
}

fn check_shape(select: &Select) -> Result<()> {
    let grouped = match &select.group_by {
        GroupByExpr::Expressions(exprs, modifiers) => !exprs.is_empty() || !modifiers.is_empty(),
        GroupByExpr::All(_) => true,
    };
    if select.distinct.is_some() {
        return Err(not_allowed("DISTINCT clause"));
    }
    if grouped {
        return Err(not_allowed("GROUP BY clause"));
    }
    if select.having.is_some() {
        return Err(not_allowed("HAVING clause"));
    }
    let outer = |join: &JoinOperator| {
        !matches!(
            join,
            JoinOperator::Join(_) | JoinOperator::Inner(_) | JoinOperator::CrossJoin(_)
        )
    };
    let mut joins = select.from.iter().flat_map(|from| &from.joins);
    if joins.any(|join| outer(&join.join_operator)) {
        return Err(SqlError::unsupported("FOR UPDATE with an outer join"));
    }
    Ok(())
}

/// The table whose rows are locked, and its name in the query.
fn target(
    compiler: &Compiler<'_>,
    select: &Select,
    lock: &LockClause,
    with: Option<&With>,
) -> Result<(Arc<TableCodec>, String)> {
    let joined = |from: &datafusion::sql::sqlparser::ast::TableWithJoins| -> Vec<TableFactor> {
        let joins = from.joins.iter().map(|join| join.relation.clone());
        std::iter::once(from.relation.clone())
            .chain(joins)
            .collect()
    };
    let factors: Vec<TableFactor> = select.from.iter().flat_map(joined).collect();
    let tables: Vec<_> = factors.iter().map(single_table).collect();
    let chosen = match &lock.of {
        Some(name) => {
            let (_, wanted) = object_name(name)?;
            let named = tables
                .iter()
                .flatten()
                .find(|(_, _, alias)| *alias == wanted);
            named.ok_or_else(|| {
                SqlError::new(
                    "42P01",
                    format!("relation \"{wanted}\" in FOR UPDATE clause not found in FROM clause"),
                )
            })?
        }
        None => match &tables[..] {
            [Some(one)] => one,
            _ => {
                return Err(SqlError::unsupported(
                    "FOR UPDATE of several tables (name one with FOR UPDATE OF)",
                ));
            }
        },
    };
    let (schema, name, alias) = chosen;
    let mut named = with.iter().flat_map(|with| &with.cte_tables);
    if schema.is_none() && named.any(|cte| ident(&cte.alias.name) == *name) {
        return Err(not_allowed("a WITH query"));
    }
    let codec = resolve_table(compiler.context, schema.as_deref(), name)?;
    Ok((codec, alias.clone()))
}

/// The select list. The `*` of a table with hidden columns is written out: they can
/// be named in such a query, and would be among its columns.
fn expand_wildcard(
    select: &mut Select,
    codec: &TableCodec,
    alias: &str,
) -> Result<Vec<SelectItem>> {
    let items = std::mem::take(&mut select.projection);
    if codec.table.has_primary_key() {
        return Ok(items);
    }
    let alone = select.from.len() == 1 && select.from[0].joins.is_empty();
    let mut out = Vec::new();
    for item in items {
        match item {
            SelectItem::Wildcard(_) if alone => {
                let visible = codec.table.columns.iter().filter(|column| !column.hidden);
                out.extend(visible.map(|column| rows::column_item(alias, &column.name)));
            }
            SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..) => {
                return Err(SqlError::unsupported(
                    "* in a FOR UPDATE of a table without a primary key (name the columns)",
                ));
            }
            item => out.push(item),
        }
    }
    Ok(out)
}

/// Takes the LIMIT off: rows that are passed by do not count.
fn take_limit(compiler: &mut Compiler<'_>, query: &mut Query) -> Result<Option<Scalar>> {
    if query.fetch.is_some() {
        return Err(SqlError::unsupported(
            "FETCH FIRST with SKIP LOCKED (use LIMIT)",
        ));
    }
    let limit = match query.limit_clause.take() {
        None => return Ok(None),
        Some(LimitClause::LimitOffset {
            limit,
            offset: None,
            limit_by,
        }) if limit_by.is_empty() => limit,
        Some(_) => return Err(SqlError::unsupported("OFFSET with SKIP LOCKED")),
    };
    let Some(limit) = limit else {
        return Ok(None);
    };
    let scope = Scope {
        columns: Vec::new(),
    };
    let typed = compile(
        &limit,
        &scope,
        &mut compiler.parameters,
        Some(SqlType::Int8),
    );
    let typed = typed.ok_or_else(|| {
        SqlError::unsupported("a LIMIT with SKIP LOCKED that is neither a number nor a parameter")
    })?;
    Ok(Some(Scalar::Cast(Box::new(typed.expr), SqlType::Int8)))
}
