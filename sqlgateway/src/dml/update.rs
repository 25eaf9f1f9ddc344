//! UPDATE and DELETE.
//!
//! By full key: one locking read, then buffered writes. Otherwise the rows come
//! from a SELECT that DataFusion plans (all columns of the target, then the new
//! values), are locked, and written by our own operator: DataFusion's update and
//! delete hooks lose conditions and are never used.

use super::codec::TableCodec;
use super::exprs::{Compiler, Exprs, RowShape, has_subquery, hint_placeholder};
use super::insert::fit_row;
use super::rows;
use super::writer::{LOCK_BATCH, RowWriter};
use super::{Changed, DmlContext, Returning, resolve_table};
use crate::error::{Result, SqlError};
use crate::point::access::{PointAccess, table_scope};
use crate::point::scalar::Values;
use crate::point::single_table;
use crate::query::{Planned, QueryContext};
use crate::statement::{object_name, parse_expr};
use bytes::Bytes;
use datafusion::sql::sqlparser::ast::{
    self, AssignmentTarget, Expr, FromTable, SelectItem, TableWithJoins, UpdateTableFromKind, Value,
};
use lineradb_client::LockOptions;
use lineradb_common::sql::{Datum, SqlType};
use std::collections::HashSet;
use std::sync::Arc;

/// `SET column = expression, ...`
#[derive(Debug)]
pub struct Assignments {
    /// Positions of the columns.
    pub positions: Vec<usize>,
    /// Their new values.
    pub exprs: Exprs,
}

/// An UPDATE or DELETE, ready to run.
#[derive(Debug)]
pub struct ModifyPlan {
    pub(super) codec: Arc<TableCodec>,
    access: Access,
    action: Action,
    pub(super) returning: Option<Returning>,
}

#[derive(Debug)]
enum Access {
    /// One row by key.
    Point(Box<(PointAccess, RowShape)>),
    /// A query that gives all columns of the target, then the new values.
    Scan(Box<Planned>),
}

#[derive(Debug)]
enum Action {
    Delete,
    /// Positions of the columns set; by key with the expressions.
    Update(Vec<usize>, Option<Exprs>),
}

/// Columns and expressions of a SET list: tuples taken apart, DEFAULT put in.
fn set_list(codec: &TableCodec, list: &[ast::Assignment]) -> Result<(Vec<usize>, Vec<Expr>)> {
    let mut positions = Vec::new();
    let mut exprs = Vec::new();
    for a in list {
        let pairs: Vec<(&ast::ObjectName, Expr)> = match (&a.target, &a.value) {
            (AssignmentTarget::ColumnName(name), value) => vec![(name, value.clone())],
            (AssignmentTarget::Tuple(names), Expr::Tuple(values)) => {
                if names.len() != values.len() {
                    return Err(SqlError::syntax(
                        "number of columns does not match number of values",
                    ));
                }
                names.iter().zip(values.iter().cloned()).collect()
            }
            (AssignmentTarget::Tuple(names), Expr::Nested(value)) if names.len() == 1 => {
                vec![(&names[0], (**value).clone())]
            }
            (AssignmentTarget::Tuple(_), _) => {
                return Err(SqlError::unsupported("SET (columns) = (subquery)"));
            }
        };
        for (name, value) in pairs {
            // A qualifier would be a field of a composite in PostgreSQL.
            let (qualifier, column) = object_name(name)?;
            let shown = qualifier.unwrap_or_else(|| column.clone());
            let at = codec
                .table
                .columns
                .iter()
                .position(|c| !c.hidden && c.name == shown)
                .ok_or_else(|| {
                    SqlError::new(
                        "42703",
                        format!(
                            "column \"{shown}\" of relation \"{}\" does not exist",
                            codec.table.name
                        ),
                    )
                })?;
            if positions.contains(&at) {
                return Err(SqlError::new(
                    "42601",
                    format!("multiple assignments to same column \"{shown}\""),
                ));
            }
            positions.push(at);
            exprs.push(match (&value, &codec.table.columns[at].default) {
                (Expr::Identifier(i), default)
                    if i.quote_style.is_none() && i.value.eq_ignore_ascii_case("default") =>
                {
                    match default {
                        Some(text) => parse_expr(text)?,
                        None => Expr::Value(Value::Null.into()),
                    }
                }
                _ => value,
            });
        }
    }
    Ok((positions, exprs))
}

impl Assignments {
    /// For ON CONFLICT DO UPDATE.
    ///
    /// # Errors
    /// Those of planning.
    pub(super) fn plan_upsert(
        compiler: &mut Compiler<'_>,
        codec: &TableCodec,
        list: &[ast::Assignment],
        shape: &RowShape,
    ) -> Result<Self> {
        let (positions, exprs) = set_list(codec, list)?;
        let exprs = compiler.expressions(&exprs, &hints(codec, &positions), shape)?;
        Ok(Assignments { positions, exprs })
    }

    /// See [`Exprs::is_cacheable`].
    pub(super) fn is_cacheable(&self) -> bool {
        self.exprs.is_cacheable()
    }
}

fn hints(codec: &TableCodec, positions: &[usize]) -> Vec<Option<SqlType>> {
    positions
        .iter()
        .map(|at| Some(codec.table.columns[*at].sql_type))
        .collect()
}

/// Target, extra tables and conditions of a statement that changes rows.
struct Shape<'a> {
    target: &'a TableWithJoins,
    others: &'a [TableWithJoins],
    condition: Option<&'a Expr>,
    with: Option<&'a ast::With>,
}

impl ModifyPlan {
    /// Plans an UPDATE. `with` stood before it.
    ///
    /// # Errors
    /// Those of planning.
    pub async fn plan_update(
        compiler: &mut Compiler<'_>,
        update: &ast::Update,
        with: Option<&ast::With>,
    ) -> Result<Self> {
        if update.or.is_some()
            || update.output.is_some()
            || !update.order_by.is_empty()
            || update.limit.is_some()
        {
            return Err(SqlError::syntax("this form of UPDATE is not PostgreSQL's"));
        }
        let others = match &update.from {
            None => &[][..],
            Some(UpdateTableFromKind::AfterSet(tables)) => tables,
            Some(UpdateTableFromKind::BeforeSet(_)) => {
                return Err(SqlError::syntax("FROM must follow SET"));
            }
        };
        let shape = Shape {
            target: &update.table,
            others,
            condition: update.selection.as_ref(),
            with,
        };
        let (codec, alias) = target(compiler, shape.target)?;
        let (positions, exprs) = set_list(&codec, &update.assignments)?;
        let hints = hints(&codec, &positions);
        let returning = update.returning.as_deref();
        // Subqueries need the query engine.
        let computed = !exprs.iter().any(has_subquery);
        if computed && let Some(access) = point(compiler, &codec, &alias, &shape) {
            let row = RowShape::of_table(&codec.table, &[&alias]);
            let exprs = compiler.expressions(&exprs, &hints, &row)?;
            return Ok(ModifyPlan {
                access: Access::Point(Box::new((access, row))),
                action: Action::Update(positions, Some(exprs)),
                returning: Returning::plan(compiler, &codec, &alias, returning)?,
                codec,
            });
        }
        for (e, hint) in exprs.iter().zip(&hints) {
            hint_placeholder(e, *hint, &mut compiler.parameters);
        }
        let items = exprs
            .into_iter()
            .enumerate()
            .map(|(i, expr)| SelectItem::ExprWithAlias {
                expr,
                alias: ast::Ident::with_quote('"', format!("\u{1}set{i}")),
            });
        let planned = scan(compiler, &codec, &alias, &shape, items.collect()).await?;
        Ok(ModifyPlan {
            access: Access::Scan(Box::new(planned)),
            action: Action::Update(positions, None),
            returning: Returning::plan_joined(compiler, &codec, &alias, returning, others)?,
            codec,
        })
    }

    /// Plans a DELETE. `with` stood before it.
    ///
    /// # Errors
    /// Those of planning.
    pub async fn plan_delete(
        compiler: &mut Compiler<'_>,
        delete: &ast::Delete,
        with: Option<&ast::With>,
    ) -> Result<Self> {
        if !delete.tables.is_empty()
            || delete.output.is_some()
            || !delete.order_by.is_empty()
            || delete.limit.is_some()
        {
            return Err(SqlError::syntax("this form of DELETE is not PostgreSQL's"));
        }
        let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
        let [table] = &from[..] else {
            return Err(SqlError::syntax("DELETE needs one table"));
        };
        let others = delete.using.as_deref().unwrap_or(&[]);
        let shape = Shape {
            target: table,
            others,
            condition: delete.selection.as_ref(),
            with,
        };
        let (codec, alias) = target(compiler, shape.target)?;
        let returning = delete.returning.as_deref();
        let access = match point(compiler, &codec, &alias, &shape) {
            Some(access) => Access::Point(Box::new((
                access,
                RowShape::of_table(&codec.table, &[&alias]),
            ))),
            None => Access::Scan(Box::new(
                scan(compiler, &codec, &alias, &shape, Vec::new()).await?,
            )),
        };
        Ok(ModifyPlan {
            access,
            action: Action::Delete,
            returning: Returning::plan_joined(compiler, &codec, &alias, returning, others)?,
            codec,
        })
    }

    /// True when nothing of the clock or the settings was folded in.
    pub fn is_cacheable(&self) -> bool {
        let access = match &self.access {
            Access::Point(..) => true,
            Access::Scan(p) => p.cacheable,
        };
        let action = match &self.action {
            Action::Update(_, Some(exprs)) => exprs.is_cacheable(),
            _ => true,
        };
        access && action && self.returning.as_ref().is_none_or(Returning::is_cacheable)
    }

    /// Runs it.
    ///
    /// # Errors
    /// Those of the expressions, the constraints and the transaction layer.
    pub async fn run(&self, ctx: &DmlContext<'_>) -> Result<Changed> {
        // (row as it is, new values)
        let rows: Vec<(Vec<Datum>, Vec<Datum>)> = match &self.access {
            Access::Point(point) => self.point_rows(ctx, &point.0, &point.1).await?,
            Access::Scan(planned) => self.scanned_rows(ctx, planned).await?,
        };
        let writer = RowWriter {
            codec: &self.codec,
            txn: ctx.txn,
            checks: ctx.checks,
        };
        let count = rows.len() as u64;
        let changed: Vec<Vec<Datum>> = match &self.action {
            Action::Delete => {
                let old: Vec<Vec<Datum>> = rows.into_iter().map(|(row, _)| row).collect();
                writer.delete(&old).await?;
                old
            }
            Action::Update(positions, _) => {
                let mut changes = Vec::with_capacity(rows.len());
                for (old, values) in rows {
                    let mut new = old.clone();
                    for (at, v) in positions.iter().zip(values) {
                        new[*at] = v;
                    }
                    fit_row(ctx, &self.codec, &mut new)?;
                    changes.push((old, new));
                }
                writer.update(&changes).await?;
                changes.into_iter().map(|(_, new)| new).collect()
            }
        };
        Changed::with_returning(ctx, &self.codec, self.returning.as_ref(), count, changed)
    }

    async fn point_rows(
        &self,
        ctx: &DmlContext<'_>,
        access: &PointAccess,
        shape: &RowShape,
    ) -> Result<Vec<(Vec<Datum>, Vec<Datum>)>> {
        let values = Values {
            parameters: ctx.parameters,
            row: &[],
            settings: &ctx.query.settings,
        };
        let found = access
            .find(&self.codec, ctx.txn, &values, Some(LockOptions::default()))
            .await?;
        let Some(found) = found else {
            return Ok(Vec::new());
        };
        let new = match &self.action {
            Action::Update(_, Some(exprs)) => exprs
                .evaluate(
                    ctx.query,
                    shape,
                    std::slice::from_ref(&found.row),
                    ctx.parameters,
                )?
                .pop()
                .unwrap_or_default(),
            _ => Vec::new(),
        };
        Ok(vec![(found.row, new)])
    }

    /// The rows of the query, each target row once, locked.
    async fn scanned_rows(
        &self,
        ctx: &DmlContext<'_>,
        planned: &Planned,
    ) -> Result<Vec<(Vec<Datum>, Vec<Datum>)>> {
        let stream = planned.execute(ctx.query, ctx.txn, ctx.parameters).await?;
        let width = self.codec.table.columns.len();
        let mut seen: HashSet<Bytes> = HashSet::new();
        let mut keys = Vec::new();
        let mut out = Vec::new();
        for mut row in rows::collect(stream, &planned.columns).await? {
            let new = row.split_off(width);
            let key = self.codec.primary().entry(&self.codec.table, &row)?.key;
            // A join may find a row several times; it is changed once.
            if seen.insert(key.clone()) {
                keys.push(key);
                out.push((row, new));
            }
        }
        let table = Some(self.codec.table.table_version());
        let mut at = 0;
        for chunk in keys.chunks(LOCK_BATCH) {
            let newest = ctx
                .txn
                .locking_get(chunk, table, LockOptions::default())
                .await?;
            for (key, value) in chunk.iter().zip(newest) {
                // The transaction layer refreshed what was read when it moved its
                // timestamp, so a row that differs here was not refreshed: retry.
                let same = match value {
                    Some(value) => {
                        self.has_unstable_columns() || self.codec.decode(key, &value)? == out[at].0
                    }
                    None => false,
                };
                if !same {
                    return Err(lineradb_client::Error::conflict(
                        "a row changed between reading and locking it",
                        key.clone(),
                    )
                    .into());
                }
                at += 1;
            }
        }
        Ok(out)
    }

    /// Columns whose value may look different through Arrow (NaN is not equal to
    /// itself): then the refresh of the transaction layer has to do.
    fn has_unstable_columns(&self) -> bool {
        self.codec
            .table
            .columns
            .iter()
            .any(|c| matches!(c.sql_type, SqlType::Float4 | SqlType::Float8))
    }

    /// What EXPLAIN shows.
    pub fn explain(&self) -> String {
        let verb = match self.action {
            Action::Delete => "Delete",
            Action::Update(..) => "Update",
        };
        match &self.access {
            Access::Point(point) => {
                let access = &point.0;
                format!("{verb} {}", access.describe(&self.codec))
                    + &format!(
                        "\n  ->  Point Lookup {} (locking)",
                        access.describe(&self.codec)
                    )
            }
            Access::Scan(_) => format!("{verb} on {}", self.codec.table.display_name()),
        }
    }

    /// True for UPDATE.
    pub fn is_update(&self) -> bool {
        matches!(self.action, Action::Update(..))
    }

    /// The query that gives the rows, when there is one.
    pub fn source_query(&self) -> Option<&Planned> {
        match &self.access {
            Access::Scan(p) => Some(p),
            Access::Point(..) => None,
        }
    }
}

fn target(compiler: &Compiler<'_>, table: &TableWithJoins) -> Result<(Arc<TableCodec>, String)> {
    if !table.joins.is_empty() {
        return Err(SqlError::syntax("the target must be one table"));
    }
    let (schema, name, alias) = single_table(&table.relation)
        .ok_or_else(|| SqlError::syntax("the target must be a table"))?;
    Ok((
        resolve_table(compiler.context, schema.as_deref(), &name)?,
        alias,
    ))
}

fn point(
    compiler: &mut Compiler<'_>,
    codec: &TableCodec,
    alias: &str,
    shape: &Shape<'_>,
) -> Option<PointAccess> {
    if !shape.others.is_empty() || shape.with.is_some() {
        return None;
    }
    let mut parameters = compiler.parameters.clone();
    let scope = table_scope(&codec.table, alias);
    let access = PointAccess::compile(codec, &scope, shape.condition?, &mut parameters)?;
    compiler.parameters = parameters;
    Some(access)
}

async fn scan(
    compiler: &mut Compiler<'_>,
    codec: &TableCodec,
    alias: &str,
    shape: &Shape<'_>,
    extra: Vec<SelectItem>,
) -> Result<Planned> {
    let mut items: Vec<SelectItem> = codec
        .table
        .columns
        .iter()
        .map(|c| rows::column_item(alias, &c.name))
        .collect();
    items.extend(extra);
    let mut from = vec![shape.target.clone()];
    from.extend(shape.others.iter().cloned());
    let query = rows::select(items, from, shape.condition.cloned(), shape.with.cloned())?;
    let context = QueryContext {
        row_ids: true,
        ..compiler.context.clone()
    };
    let planned = compiler
        .engine
        .plan(&context, &query, &compiler.parameters.types)
        .await?;
    compiler.parameters.merge(&planned.parameter_types);
    Ok(planned)
}
