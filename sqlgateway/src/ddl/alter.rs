//! ALTER TABLE and ALTER INDEX.

use super::index::{IndexWish, build_at_once, index_columns, refuse_unique_options};
use super::rewrite::{self, renumber_indexes, rewrite_table};
use super::table::{column, evaluate_default, row_id_column, row_id_index, set_default};
use super::{DdlEnv, check_storage_parameters};
use crate::catalog::{IndexDescriptor, IndexState, TableDescriptor};
use crate::dml::codec::TableCodec;
use crate::error::{Result, SqlError};
use crate::statement::{ident, object_name, sql_type};
use datafusion::sql::sqlparser::ast::{
    AlterColumnOperation, AlterIndexOperation, AlterTable, AlterTableOperation as Op, ColumnDef,
    Expr, ObjectName, RenameTableNameKind, TableConstraint,
};
use lineradb_common::sql::{Datum, SqlType, TimeZone};
use std::sync::Arc;

/// ALTER TABLE.
///
/// # Errors
/// Those of its operations; 0A000 for what is not supported.
pub async fn table(env: &mut DdlEnv<'_>, alter: &AlterTable) -> Result<String> {
    if alter.location.is_some() || alter.on_cluster.is_some() || alter.table_type.is_some() {
        return Err(SqlError::syntax(
            "this form of ALTER TABLE is not PostgreSQL's",
        ));
    }
    let mut table = match env.table(&alter.name) {
        Ok(table) => table,
        Err(e) if alter.if_exists && e.sqlstate == "42P01" => {
            let (_, name) = object_name(&alter.name)?;
            env.notice(
                "00000",
                format!("relation \"{name}\" does not exist, skipping"),
            );
            return Ok("ALTER TABLE".into());
        }
        Err(e) => return Err(e),
    };
    for operation in &alter.operations {
        apply(env, &table, operation).await?;
        table = env
            .catalog()
            .table_by_id(table.id)
            .cloned()
            .ok_or_else(|| SqlError::internal("the table vanished"))?;
    }
    Ok("ALTER TABLE".into())
}

async fn apply(env: &mut DdlEnv<'_>, table: &Arc<TableDescriptor>, op: &Op) -> Result<()> {
    if table.pending_primary.is_some() {
        return Err(SqlError::new(
            "55006",
            format!("a primary key of \"{}\" is being built", table.name),
        ));
    }
    match op {
        Op::AddColumn {
            if_not_exists,
            column_def,
            column_position: None,
            ..
        } => add_column(env, table, column_def, *if_not_exists).await,
        Op::DropColumn {
            column_names,
            if_exists,
            ..
        } => {
            let mut table = Arc::clone(table);
            for name in column_names {
                drop_column(env, &table, &ident(name), *if_exists)?;
                table = env
                    .catalog()
                    .table_by_id(table.id)
                    .cloned()
                    .unwrap_or(table);
            }
            Ok(())
        }
        Op::AddConstraint { constraint, .. } => match constraint {
            TableConstraint::PrimaryKey(p) => {
                let wish =
                    IndexWish::constraint(p.name.as_ref().map(ident), index_columns(&p.columns)?);
                add_primary_key(env, table, wish).await
            }
            TableConstraint::Unique(u) => {
                refuse_unique_options(u)?;
                let wish =
                    IndexWish::constraint(u.name.as_ref().map(ident), index_columns(&u.columns)?);
                build_at_once(env, table, wish).await
            }
            TableConstraint::Check(_) => Err(SqlError::unsupported("CHECK constraint")),
            TableConstraint::ForeignKey(_) => Err(SqlError::unsupported("FOREIGN KEY constraint")),
            other => Err(SqlError::unsupported(format!("table constraint {other}"))),
        },
        Op::DropConstraint {
            if_exists, name, ..
        } => drop_constraint(env, table, &ident(name), *if_exists).await,
        Op::RenameColumn {
            old_column_name,
            new_column_name,
        } => rename_column(env, table, &ident(old_column_name), &ident(new_column_name)),
        Op::RenameTable {
            table_name: RenameTableNameKind::To(name) | RenameTableNameKind::As(name),
        } => {
            let (_, new) = object_name(name)?;
            refuse_taken(env, &table.schema, &new)?;
            let mut changed = (**table).clone();
            changed.name = new;
            env.change.change_table(changed).map(|_| ())
        }
        Op::RenameConstraint { old_name, new_name } => {
            rename_index(env, table, &ident(old_name), &ident(new_name), "constraint")
        }
        Op::AlterColumn { column_name, op } => {
            alter_column(env, table, &ident(column_name), op).await
        }
        // There is one owner, and storage parameters have no effect.
        Op::OwnerTo { .. } => Ok(()),
        Op::SetOptionsParens { options } => check_storage_parameters(options),
        other => Err(SqlError::unsupported(format!("ALTER TABLE {other}"))),
    }
}

fn position(table: &TableDescriptor, name: &str) -> Result<usize> {
    table
        .columns
        .iter()
        .position(|c| !c.hidden && c.name == name)
        .ok_or_else(|| {
            SqlError::new(
                "42703",
                format!(
                    "column \"{name}\" of relation \"{}\" does not exist",
                    table.name
                ),
            )
        })
}

fn refuse_taken(env: &DdlEnv<'_>, schema: &str, name: &str) -> Result<()> {
    match env.catalog().relation(schema, name) {
        Some(_) => Err(SqlError::new(
            "42P07",
            format!("relation \"{name}\" already exists"),
        )),
        None => Ok(()),
    }
}

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

async fn add_column(
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

fn current(env: &DdlEnv<'_>, table: &TableDescriptor) -> Result<Arc<TableDescriptor>> {
    env.catalog()
        .table_by_id(table.id)
        .cloned()
        .ok_or_else(|| SqlError::internal("the table vanished"))
}

fn contains_nulls(column: &str, table: &str) -> SqlError {
    SqlError::new(
        "23502",
        format!("column \"{column}\" of relation \"{table}\" contains null values"),
    )
}

fn drop_column(
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

/// The descriptor that a table gets with a primary key; its indexes are
/// renumbered.
///
/// # Errors
/// 42P16 when there is one, 42P07, 42703.
pub(super) async fn with_primary_key(
    env: &DdlEnv<'_>,
    table: &TableDescriptor,
    wish: &IndexWish,
) -> Result<TableDescriptor> {
    if table.has_primary_key() {
        return Err(SqlError::new(
            "42P16",
            format!(
                "multiple primary keys for table \"{}\" are not allowed",
                table.name
            ),
        ));
    }
    let ids = wish.resolve(&table.columns, &table.name)?;
    let name = match &wish.name {
        Some(name) => {
            refuse_taken(env, &table.schema, name)?;
            name.clone()
        }
        None => env.free_name(&table.schema, &format!("{}_pkey", table.name), &[]),
    };
    let mut changed = table.clone();
    changed.columns.retain(|c| !c.hidden);
    for c in &mut changed.columns {
        if ids.contains(&c.id) {
            c.nullable = false;
        }
    }
    changed.primary = IndexDescriptor {
        id: 0,
        oid: env.oid().await?,
        constraint_oid: env.oid().await?,
        name,
        unique: true,
        columns: ids,
        state: IndexState::Public,
    };
    renumber_indexes(&mut changed);
    Ok(changed)
}

async fn add_primary_key(
    env: &mut DdlEnv<'_>,
    table: &Arc<TableDescriptor>,
    wish: IndexWish,
) -> Result<()> {
    let changed = with_primary_key(env, table, &wish).await?;
    let hidden: Vec<bool> = table.columns.iter().map(|c| c.hidden).collect();
    let (keys, name) = (changed.primary.columns.clone(), table.name.clone());
    let columns: Vec<(u32, String)> = changed
        .columns
        .iter()
        .map(|c| (c.id, c.name.clone()))
        .collect();
    let map = move |row: Vec<Datum>| {
        let row: Vec<Datum> = row
            .into_iter()
            .zip(&hidden)
            .filter(|(_, hidden)| !**hidden)
            .map(|(v, _)| v)
            .collect();
        for (v, (id, column)) in row.iter().zip(&columns) {
            if v.is_null() && keys.contains(id) {
                return Err(contains_nulls(column, &name));
            }
        }
        Ok(row)
    };
    rewrite_table(env, table, changed, &map).await.map(|_| ())
}

async fn drop_constraint(
    env: &mut DdlEnv<'_>,
    table: &Arc<TableDescriptor>,
    name: &str,
    if_exists: bool,
) -> Result<()> {
    let mut changed = (**table).clone();
    if table.has_primary_key() && table.primary.name == name {
        // The rows go back under a hidden row id.
        let id = changed.next_column_id;
        changed.next_column_id += 1;
        changed.columns.push(row_id_column(id));
        changed.primary = row_id_index(0, id);
        renumber_indexes(&mut changed);
        let map = |mut row: Vec<Datum>| {
            row.push(Datum::Null);
            Ok(row)
        };
        return rewrite_table(env, table, changed, &map).await.map(|_| ());
    }
    let found = table
        .indexes
        .iter()
        .find(|i| i.constraint_oid != 0 && i.name == name);
    let Some(index) = found else {
        let message = format!(
            "constraint \"{name}\" of relation \"{}\" does not exist",
            table.name
        );
        if if_exists {
            env.notice("00000", format!("{message}, skipping"));
            return Ok(());
        }
        return Err(SqlError::new("42704", message));
    };
    changed.indexes.retain(|i| i.id != index.id);
    env.change.change_table(changed)?;
    env.change.leave_garbage(&table.index_span(index.id))
}

fn rename_column(
    env: &mut DdlEnv<'_>,
    table: &Arc<TableDescriptor>,
    old: &str,
    new: &str,
) -> Result<()> {
    let at = position(table, old)?;
    if table.columns.iter().any(|c| c.name == new) {
        return Err(SqlError::new(
            "42701",
            format!(
                "column \"{new}\" of relation \"{}\" already exists",
                table.name
            ),
        ));
    }
    let mut changed = (**table).clone();
    changed.columns[at].name = new.to_owned();
    env.change.change_table(changed).map(|_| ())
}

fn rename_index(
    env: &mut DdlEnv<'_>,
    table: &Arc<TableDescriptor>,
    old: &str,
    new: &str,
    what: &str,
) -> Result<()> {
    refuse_taken(env, &table.schema, new)?;
    let mut changed = (**table).clone();
    let own = std::iter::once(&mut changed.primary)
        .chain(&mut changed.indexes)
        .find(|i| i.name == old && (what == "index" || i.constraint_oid != 0));
    match own {
        Some(index) => index.name = new.to_owned(),
        None => {
            return Err(SqlError::new(
                "42704",
                format!(
                    "{what} \"{old}\" of relation \"{}\" does not exist",
                    table.name
                ),
            ));
        }
    }
    env.change.change_table(changed).map(|_| ())
}

/// ALTER INDEX .. RENAME.
///
/// # Errors
/// 42704, 42P07, 0A000.
pub fn index(env: &mut DdlEnv<'_>, name: &ObjectName, op: &AlterIndexOperation) -> Result<String> {
    let AlterIndexOperation::RenameIndex { index_name } = op;
    let (schema, old) = object_name(name)?;
    let (_, new) = object_name(index_name)?;
    let schemas = match schema {
        Some(s) => vec![s],
        None => env.settings().search_path.clone(),
    };
    let found = schemas
        .iter()
        .find_map(|s| env.catalog().index(s, &old).map(|(t, _)| Arc::clone(t)));
    let Some(table) = found else {
        return Err(SqlError::new(
            "42P01",
            format!("relation \"{old}\" does not exist"),
        ));
    };
    rename_index(env, &table, &old, &new, "index")?;
    Ok("ALTER INDEX".into())
}

async fn alter_column(
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
