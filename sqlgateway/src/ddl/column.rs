//! ALTER TABLE .. ADD, DROP and ALTER COLUMN.

use super::DdlEnv;
use super::alter::{add_primary_key, contains_nulls, current, position};
use super::index::{IndexWish, build_at_once};
use super::rewrite::{self, renumber_indexes, rewrite_table};
use super::table::{column, evaluate_default, set_default};
use crate::catalog::TableDescriptor;
use crate::dml::codec::TableCodec;
use crate::error::{Result, SqlError};
use crate::statement::sql_type;
use datafusion::sql::sqlparser::ast::{AlterColumnOperation, ColumnDef, Expr};
use lineradb_common::sql::{Datum, SqlType, TimeZone};
use std::sync::Arc;

/// Functions whose value differs from row to row: rows have to be rewritten.
fn is_volatile(expr: &Expr) -> bool {
    let text = expr.to_string().to_lowercase();
    [
        "random(",
        "gen_random_uuid(",
        "clock_timestamp(",
        "timeofday(",
        "uuid(",
    ]
    .iter()
    .any(|f| text.contains(f))
}

pub(super) async fn add_column(
    env: &mut DdlEnv<'_>,
    table: &Arc<TableDescriptor>,
    def: &ColumnDef,
    if_not_exists: bool,
) -> Result<()> {
    let mut wish = column(table.next_column_id, def)?;
    if table.column(&wish.column.name).is_some() {
        let message = format!(
            "column \"{}\" of relation \"{}\" already exists",
            wish.column.name, table.name
        );
        if if_not_exists {
            env.notice("42701", format!("{message}, skipping"));
            return Ok(());
        }
        return Err(SqlError::new("42701", message));
    }
    let mut value = Datum::Null;
    let mut volatile = false;
    if let Some(expr) = wish.default.take() {
        volatile = is_volatile(&expr);
        value = evaluate_default(env, &wish.column, &expr)?;
        set_default(env, &mut wish.column, &expr)?;
    }
    if value.is_null()
        && !wish.column.nullable
        && !rewrite::is_empty(env.change.transaction(), table).await?
    {
        return Err(contains_nulls(&wish.column.name, &table.name));
    }
    let mut changed = (**table).clone();
    changed.next_column_id += 1;
    let name = wish.column.name.clone();
    // Before a hidden column, so that users' columns stay together.
    let at = changed.columns.iter().position(|c| c.hidden);
    let at = at.unwrap_or(changed.columns.len());
    if volatile {
        let default = wish.column.default.clone();
        changed.columns.insert(at, wish.column.clone());
        renumber_indexes(&mut changed);
        let expr = crate::statement::parse_expr(&default.unwrap_or_else(|| "NULL".into()))?;
        let context = env.context.clone();
        let gateway = env.gateway;
        let column = wish.column.clone();
        let each = move |mut row: Vec<Datum>| {
            row.insert(at, one_default(gateway, &context, &column, &expr)?);
            Ok(row)
        };
        rewrite_table(env, table, changed, &each).await?;
    } else {
        wish.column.missing = value.format(wish.column.sql_type, &TimeZone::UTC);
        changed.columns.insert(at, wish.column);
        env.change.change_table(changed)?;
    }
    for (constraint, primary) in [(wish.unique, false), (wish.primary_key, true)] {
        let Some(constraint) = constraint else {
            continue;
        };
        let current = current(env, table)?;
        let wish = IndexWish::constraint(constraint, vec![name.clone()]);
        if primary {
            add_primary_key(env, &current, wish).await?;
        } else {
            build_at_once(env, &current, wish).await?;
        }
    }
    Ok(())
}

pub(super) fn drop_column(
    env: &mut DdlEnv<'_>,
    table: &Arc<TableDescriptor>,
    name: &str,
    if_exists: bool,
) -> Result<()> {
    let at = match position(table, name) {
        Ok(at) => at,
        Err(e) if if_exists => {
            env.notice("42703", format!("{}, skipping", e.message));
            return Ok(());
        }
        Err(e) => return Err(e),
    };
    let id = table.columns[at].id;
    if table.primary.columns.contains(&id) {
        return Err(
            SqlError::unsupported("dropping a column of the primary key")
                .with_hint("Drop the primary key constraint first."),
        );
    }
    let mut changed = (**table).clone();
    changed.columns.remove(at);
    // Indexes over the column go with it, as in PostgreSQL.
    let (gone, stay): (Vec<_>, Vec<_>) = changed
        .indexes
        .into_iter()
        .partition(|i| i.columns.contains(&id));
    changed.indexes = stay;
    env.change.change_table(changed)?;
    for index in gone {
        env.change.leave_garbage(&table.index_span(index.id))?;
    }
    Ok(())
}

pub(super) async fn alter_column(
    env: &mut DdlEnv<'_>,
    table: &Arc<TableDescriptor>,
    name: &str,
    op: &AlterColumnOperation,
) -> Result<()> {
    let at = position(table, name)?;
    let mut changed = (**table).clone();
    match op {
        AlterColumnOperation::SetNotNull => {
            changed.columns[at].nullable = false;
            let codec = TableCodec::new(table)?;
            let mut pages = rewrite::Pages::of(env.change.transaction(), &codec);
            while let Some(rows) = pages.next().await? {
                if rows.iter().any(|row| row[at].is_null()) {
                    return Err(contains_nulls(name, &table.name));
                }
            }
        }
        AlterColumnOperation::DropNotNull => {
            if table.primary.columns.contains(&table.columns[at].id) {
                return Err(SqlError::new(
                    "42P16",
                    format!("column \"{name}\" is in a primary key"),
                ));
            }
            changed.columns[at].nullable = true;
        }
        AlterColumnOperation::SetDefault { value } => {
            set_default(env, &mut changed.columns[at], value)?;
        }
        AlterColumnOperation::DropDefault => changed.columns[at].default = None,
        AlterColumnOperation::SetDataType {
            data_type, using, ..
        } => {
            if using.is_some() {
                return Err(SqlError::unsupported("ALTER COLUMN TYPE .. USING"));
            }
            return set_type(env, table, at, sql_type(data_type)?).await;
        }
        AlterColumnOperation::AddGenerated { .. } => {
            return Err(SqlError::unsupported("GENERATED column"));
        }
    }
    env.change.change_table(changed).map(|_| ())
}

async fn set_type(
    env: &mut DdlEnv<'_>,
    table: &Arc<TableDescriptor>,
    at: usize,
    new: SqlType,
) -> Result<()> {
    if !new.is_storable() {
        return Err(SqlError::unsupported(format!(
            "a column of type {}",
            new.name()
        )));
    }
    let old = table.columns[at].sql_type;
    let in_key = std::iter::once(&table.primary)
        .chain(&table.indexes)
        .any(|i| i.columns.contains(&table.columns[at].id));
    if in_key && !new.is_indexable() {
        return Err(SqlError::unsupported(format!(
            "an index or key over a column of type {}",
            new.name()
        )));
    }
    let mut changed = (**table).clone();
    changed.columns[at].sql_type = new;
    let zone = env.settings().time_zone.clone();
    if let Some(text) = changed.columns[at].default.clone() {
        let expr = crate::statement::parse_expr(&text)?;
        set_default(env, &mut changed.columns[at], &expr)?;
    }
    if stored_alike(old, new) {
        return env.change.change_table(changed).map(|_| ());
    }
    changed.columns[at].missing = None;
    renumber_indexes(&mut changed);
    let name = table.columns[at].name.clone();
    let map = move |mut row: Vec<Datum>| {
        let value = std::mem::replace(&mut row[at], Datum::Null);
        row[at] = value.assign(new, &zone).map_err(|e| {
            let mut e = SqlError::from(e);
            if e.sqlstate == "42804" {
                e.message = format!(
                    "column \"{name}\" cannot be cast automatically to type {}",
                    new.name()
                );
            }
            e
        })?;
        Ok(row)
    };
    rewrite_table(env, table, changed, &map).await.map(|_| ())
}

/// True when every stored value of `old` reads as the same value of `new`.
fn stored_alike(old: SqlType, new: SqlType) -> bool {
    use SqlType::*;
    match (old, new) {
        (a, b) if a == b => true,
        (Int2, Int4 | Int8) | (Int4, Int8) => true,
        (Varchar(_), Text | Varchar(None)) | (Text, Varchar(None)) => true,
        (Varchar(Some(a)), Varchar(Some(b))) => a <= b,
        _ => false,
    }
}

/// The value of a volatile default, for one row.
fn one_default(
    gateway: &crate::gateway::Gateway,
    context: &crate::query::QueryContext,
    column: &crate::catalog::ColumnDescriptor,
    expr: &Expr,
) -> Result<Datum> {
    use crate::dml::exprs::{Compiler, RowShape};
    let mut compiler = Compiler {
        engine: &gateway.engine,
        context,
        parameters: crate::point::scalar::ParameterTypes::default(),
    };
    let exprs = compiler.expressions(
        std::slice::from_ref(expr),
        &[Some(column.sql_type)],
        &RowShape::empty(),
    )?;
    let value = exprs
        .evaluate(context, &RowShape::empty(), &[Vec::new()], &[])?
        .pop()
        .and_then(|mut row| row.pop())
        .unwrap_or(Datum::Null);
    Ok(value.assign(column.sql_type, &context.settings.time_zone)?)
}
