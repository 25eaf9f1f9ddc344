//! INSERT.

use super::codec::{TableCodec, not_null};
use super::conflict::ConflictPlan;
use super::exprs::{Compiler, Exprs, RowShape, hint_placeholder};
use super::rows;
use super::writer::RowWriter;
use super::{Changed, DmlContext, Returning, resolve_table};
use crate::error::{Result, SqlError};
use crate::point::compile::compile;
use crate::point::scalar::{Scalar, Scope, Values};
use crate::query::Planned;
use crate::statement::{ident, object_name, parse_expr};
use datafusion::sql::sqlparser::ast::{self, Expr, OnInsert, Query, SetExpr, TableObject, Value};
use lineradb_common::sql::{Datum, SqlType};
use std::sync::Arc;

/// An INSERT, ready to run.
#[derive(Debug)]
pub struct InsertPlan {
    pub(super) codec: Arc<TableCodec>,
    /// Positions of the columns that the source fills, in its order.
    targets: Vec<usize>,
    source: Source,
    /// Positions of the other columns with a DEFAULT, and their expressions.
    defaults: Defaults,
    conflict: Option<ConflictPlan>,
    pub(super) returning: Option<Returning>,
}

/// Defaults of columns.
#[derive(Debug)]
pub(crate) struct Defaults {
    positions: Vec<usize>,
    exprs: Exprs,
}

#[derive(Debug)]
enum Source {
    /// Rows of simple expressions; `None`: DEFAULT.
    Values(Vec<Vec<Option<Scalar>>>),
    /// A query.
    Query(Box<Planned>),
}

impl Defaults {
    /// For the columns at `positions` that have one.
    pub(crate) fn compile(
        compiler: &mut Compiler<'_>,
        codec: &TableCodec,
        positions: impl Iterator<Item = usize>,
    ) -> Result<Self> {
        let mut with = Vec::new();
        let mut exprs = Vec::new();
        let mut hints = Vec::new();
        for at in positions {
            let c = &codec.table.columns[at];
            if let Some(text) = &c.default {
                with.push(at);
                exprs.push(parse_expr(text)?);
                hints.push(Some(c.sql_type));
            }
        }
        let exprs = compiler.expressions(&exprs, &hints, &RowShape::empty())?;
        Ok(Defaults {
            positions: with,
            exprs,
        })
    }

    /// Fills them in, row by row.
    pub(crate) fn fill(&self, ctx: &DmlContext<'_>, rows: &mut [Vec<Datum>]) -> Result<()> {
        if self.positions.is_empty() {
            return Ok(());
        }
        let none = vec![Vec::new(); rows.len()];
        let values = self
            .exprs
            .evaluate(ctx.query, &RowShape::empty(), &none, ctx.parameters)?;
        for (row, values) in rows.iter_mut().zip(values) {
            for (at, v) in self.positions.iter().zip(values) {
                row[*at] = v;
            }
        }
        Ok(())
    }
}

impl InsertPlan {
    /// Plans an INSERT. `with` stood before it.
    ///
    /// # Errors
    /// Those of planning.
    pub async fn plan(
        compiler: &mut Compiler<'_>,
        insert: &ast::Insert,
        with: Option<&ast::With>,
    ) -> Result<Self> {
        refuse_foreign_syntax(insert)?;
        let TableObject::TableName(name) = &insert.table else {
            return Err(SqlError::syntax("INSERT needs a table"));
        };
        let (schema, table_name) = object_name(name)?;
        let codec = resolve_table(compiler.context, schema.as_deref(), &table_name)?;
        let alias = insert
            .table_alias
            .as_ref()
            .map_or(table_name, |a| ident(&a.alias));
        let mut targets = target_columns(&codec, &insert.columns)?;
        let named = !insert.columns.is_empty();

        let mut used_defaults = false;
        let source = match &insert.source {
            None => {
                targets.clear();
                Source::Values(vec![Vec::new()])
            }
            Some(query) => {
                let mut query = (**query).clone();
                if let Some(with) = with {
                    if query.with.is_some() {
                        return Err(SqlError::unsupported("WITH before and inside INSERT"));
                    }
                    query.with = Some(with.clone());
                }
                plan_source(
                    compiler,
                    &codec,
                    &mut targets,
                    named,
                    query,
                    &mut used_defaults,
                )
                .await?
            }
        };
        // DEFAULT inside VALUES needs the defaults of target columns as well.
        let wants_default: Vec<usize> = (0..codec.table.columns.len())
            .filter(|at| used_defaults || !targets.contains(at))
            .collect();
        let defaults = Defaults::compile(compiler, &codec, wants_default.into_iter())?;
        let conflict = match &insert.on {
            None => None,
            Some(OnInsert::OnConflict(on)) => {
                Some(ConflictPlan::plan(compiler, &codec, &alias, on)?)
            }
            Some(_) => return Err(SqlError::syntax("syntax error at or near \"DUPLICATE\"")),
        };
        let returning = Returning::plan(compiler, &codec, &alias, insert.returning.as_deref())?;
        Ok(InsertPlan {
            codec,
            targets,
            source,
            defaults,
            conflict,
            returning,
        })
    }

    /// True when nothing of the clock or the settings was folded in.
    pub fn is_cacheable(&self) -> bool {
        let source = match &self.source {
            Source::Values(_) => true,
            Source::Query(p) => p.cacheable,
        };
        source
            && self.defaults.exprs.is_cacheable()
            && self.returning.as_ref().is_none_or(Returning::is_cacheable)
            && self
                .conflict
                .as_ref()
                .is_none_or(ConflictPlan::is_cacheable)
    }

    /// Runs it.
    ///
    /// # Errors
    /// 23502, 23505, 22001, 22003 and those of the source and the transaction
    /// layer.
    pub async fn run(&self, ctx: &DmlContext<'_>) -> Result<Changed> {
        let rows = self.rows(ctx).await?;
        let (count, rows) = match &self.conflict {
            Some(conflict) => {
                let written = conflict.insert(ctx, &self.codec, rows).await?;
                (written.len() as u64, written)
            }
            None => {
                let writer = RowWriter {
                    codec: &self.codec,
                    txn: ctx.txn,
                    checks: ctx.checks,
                };
                writer.insert(&rows).await?;
                (rows.len() as u64, rows)
            }
        };
        Changed::with_returning(ctx, &self.codec, self.returning.as_ref(), count, rows)
    }

    /// The complete rows to insert.
    async fn rows(&self, ctx: &DmlContext<'_>) -> Result<Vec<Vec<Datum>>> {
        let width = self.codec.table.columns.len();
        let mut rows: Vec<Vec<Datum>>;
        match &self.source {
            Source::Values(cells) => {
                rows = vec![vec![Datum::Null; width]; cells.len()];
                self.defaults.fill(ctx, &mut rows)?;
                let values = Values {
                    parameters: ctx.parameters,
                    row: &[],
                    settings: &ctx.query.settings,
                };
                for (row, cells) in rows.iter_mut().zip(cells) {
                    for (at, cell) in self.targets.iter().zip(cells) {
                        if let Some(cell) = cell {
                            row[*at] = cell.evaluate(&values)?;
                        }
                    }
                }
            }
            Source::Query(planned) => {
                let stream = planned.execute(ctx.query, ctx.txn, ctx.parameters).await?;
                let source = rows::collect(stream, &planned.columns).await?;
                rows = vec![vec![Datum::Null; width]; source.len()];
                self.defaults.fill(ctx, &mut rows)?;
                for (row, values) in rows.iter_mut().zip(source) {
                    for (at, v) in self.targets.iter().zip(values) {
                        row[*at] = v;
                    }
                }
            }
        }
        finish_rows(ctx, &self.codec, &mut rows).await?;
        Ok(rows)
    }

    /// What EXPLAIN shows.
    pub fn explain(&self) -> String {
        let source = match &self.source {
            Source::Values(rows) => format!("Values ({} rows)", rows.len()),
            Source::Query(_) => "Query".to_owned(),
        };
        format!(
            "Insert on {}\n  ->  {source}",
            self.codec.table.display_name()
        )
    }

    /// The query that gives the rows, when there is one.
    pub fn source_query(&self) -> Option<&Planned> {
        match &self.source {
            Source::Query(p) => Some(p),
            Source::Values(_) => None,
        }
    }
}

/// Casts values to their columns' types, gives row ids, checks NOT NULL.
pub(crate) async fn finish_rows(
    ctx: &DmlContext<'_>,
    codec: &TableCodec,
    rows: &mut [Vec<Datum>],
) -> Result<()> {
    let row_id = codec.table.columns.iter().position(|c| c.hidden);
    if let Some(at) = row_id {
        let first = ctx.catalog.row_ids.take(rows.len() as u64).await?;
        for (i, row) in rows.iter_mut().enumerate() {
            row[at] = Datum::Int8((first + i as u64) as i64);
        }
    }
    for row in rows.iter_mut() {
        fit_row(ctx, codec, row)?;
    }
    Ok(())
}

/// Casts a row's values to their columns' types and checks NOT NULL.
pub(crate) fn fit_row(ctx: &DmlContext<'_>, codec: &TableCodec, row: &mut [Datum]) -> Result<()> {
    for (at, c) in codec.table.columns.iter().enumerate() {
        let value = std::mem::replace(&mut row[at], Datum::Null);
        row[at] = assign(value, c.sql_type, &c.name, ctx)?;
    }
    for (at, c) in codec.table.columns.iter().enumerate() {
        if row[at].is_null() && !c.nullable {
            return Err(not_null(&codec.table, at, row));
        }
    }
    Ok(())
}

/// Converts a value to the type of the column that it is assigned to.
pub(crate) fn assign(
    value: Datum,
    target: SqlType,
    column: &str,
    ctx: &DmlContext<'_>,
) -> Result<Datum> {
    value
        .assign(target, &ctx.query.settings.time_zone)
        .map_err(|e| {
            let mut e = SqlError::from(e);
            if e.sqlstate == "42804" {
                e.message = format!(
                    "column \"{column}\"{}",
                    e.message.trim_start_matches("column")
                );
            }
            e
        })
}

fn refuse_foreign_syntax(insert: &ast::Insert) -> Result<()> {
    let foreign = insert.or.is_some()
        || insert.ignore
        || insert.overwrite
        || !insert.assignments.is_empty()
        || insert.partitioned.is_some()
        || !insert.after_columns.is_empty()
        || insert.output.is_some()
        || insert.replace_into
        || insert.priority.is_some()
        || insert.insert_alias.is_some()
        || insert.settings.is_some()
        || insert.format_clause.is_some()
        || insert.multi_table_insert_type.is_some();
    if foreign || !insert.into {
        return Err(SqlError::syntax("this form of INSERT is not PostgreSQL's"));
    }
    Ok(())
}

/// Positions of the columns named, or of all visible ones.
pub(crate) fn target_columns(codec: &TableCodec, names: &[ast::ObjectName]) -> Result<Vec<usize>> {
    if names.is_empty() {
        return Ok(codec.table.visible_positions());
    }
    let mut out = Vec::with_capacity(names.len());
    for name in names {
        let (_, column) = object_name(name)?;
        let at = codec
            .table
            .columns
            .iter()
            .position(|c| !c.hidden && c.name == column)
            .ok_or_else(|| {
                SqlError::new(
                    "42703",
                    format!(
                        "column \"{column}\" of relation \"{}\" does not exist",
                        codec.table.name
                    ),
                )
            })?;
        if out.contains(&at) {
            return Err(SqlError::new(
                "42701",
                format!("column \"{column}\" specified more than once"),
            ));
        }
        out.push(at);
    }
    Ok(out)
}

fn check_width(targets: &mut Vec<usize>, named: bool, width: usize) -> Result<()> {
    if width > targets.len() {
        return Err(SqlError::syntax(
            "INSERT has more expressions than target columns",
        ));
    }
    if width < targets.len() {
        if named {
            return Err(SqlError::syntax(
                "INSERT has more target columns than expressions",
            ));
        }
        targets.truncate(width);
    }
    Ok(())
}

async fn plan_source(
    compiler: &mut Compiler<'_>,
    codec: &TableCodec,
    targets: &mut Vec<usize>,
    named: bool,
    mut query: Query,
    used_defaults: &mut bool,
) -> Result<Source> {
    let plain = query.with.is_none() && query.order_by.is_none() && query.limit_clause.is_none();
    if let SetExpr::Values(values) = &mut *query.body {
        let width = values.rows.first().map_or(0, |r| r.content.len());
        check_width(targets, named, width)?;
        if values.rows.iter().any(|r| r.content.len() != width) {
            return Err(SqlError::syntax("VALUES lists must all be the same length"));
        }
        if plain && let Some(cells) = simple_values(compiler, codec, targets, values, used_defaults)
        {
            return Ok(Source::Values(cells));
        }
        for row in &mut values.rows {
            for (at, cell) in targets.iter().zip(&mut row.content) {
                let c = &codec.table.columns[*at];
                if is_default(cell) {
                    *cell = match &c.default {
                        Some(text) => parse_expr(text)?,
                        None => Expr::Value(Value::Null.into()),
                    };
                }
                hint_placeholder(cell, Some(c.sql_type), &mut compiler.parameters);
            }
        }
    } else if let SetExpr::Select(select) = &*query.body {
        // `INSERT .. SELECT $1, $2`: parameters take the columns' types.
        for (at, item) in targets.iter().zip(&select.projection) {
            if let ast::SelectItem::UnnamedExpr(e) = item {
                let t = codec.table.columns[*at].sql_type;
                hint_placeholder(e, Some(t), &mut compiler.parameters);
            }
        }
    }
    let planned = compiler
        .engine
        .plan(compiler.context, &query, &compiler.parameters.types)
        .await?;
    compiler.parameters.merge(&planned.parameter_types);
    check_width(targets, named, planned.columns.len())?;
    check_types(codec, targets, &planned)?;
    Ok(Source::Query(Box::new(planned)))
}

/// 42804 before anything runs, where no cast exists at all.
fn check_types(codec: &TableCodec, targets: &[usize], planned: &Planned) -> Result<()> {
    for (at, from) in targets.iter().zip(planned.columns.iter()) {
        let c = &codec.table.columns[*at];
        let (to, from) = (c.sql_type, from.sql_type);
        let time = |t: SqlType| {
            matches!(
                t,
                SqlType::Date | SqlType::Timestamp | SqlType::TimestampTz | SqlType::Time
            )
        };
        let family =
            |a: SqlType, b: SqlType| a.is_number() && b.is_number() || time(a) && time(b) || a == b;
        if !(to.is_text() || from.is_text() || family(to, from)) {
            return Err(SqlError::new(
                "42804",
                format!(
                    "column \"{}\" is of type {} but expression is of type {}",
                    c.name,
                    to.name(),
                    from.name()
                ),
            )
            .with_hint("You will need to rewrite or cast the expression."));
        }
    }
    Ok(())
}

fn is_default(expr: &Expr) -> bool {
    matches!(expr, Expr::Identifier(i) if i.quote_style.is_none() && i.value.eq_ignore_ascii_case("default"))
}

fn simple_values(
    compiler: &mut Compiler<'_>,
    codec: &TableCodec,
    targets: &[usize],
    values: &ast::Values,
    used_defaults: &mut bool,
) -> Option<Vec<Vec<Option<Scalar>>>> {
    let mut parameters = compiler.parameters.clone();
    let mut any_default = false;
    let rows = values
        .rows
        .iter()
        .map(|row| {
            targets
                .iter()
                .zip(&row.content)
                .map(|(at, cell)| {
                    if is_default(cell) {
                        any_default = true;
                        return Some(None);
                    }
                    let hint = codec.table.columns[*at].sql_type;
                    let typed = compile(cell, &Scope::default(), &mut parameters, Some(hint))?;
                    Some(Some(typed.expr))
                })
                .collect::<Option<Vec<_>>>()
        })
        .collect::<Option<Vec<_>>>()?;
    compiler.parameters = parameters;
    *used_defaults = any_default;
    Some(rows)
}
