//! ALTER TABLE and ALTER INDEX.

use super::column::{add_column, alter_column, drop_column};
use super::index::{IndexWish, build_at_once, index_columns, refuse_unique_options};
use super::rewrite::{renumber_indexes, rewrite_table};
use super::table::{row_id_column, row_id_index};
use super::{DdlEnv, check_storage_parameters};
use crate::catalog::{IndexDescriptor, IndexState, TableDescriptor};
use crate::error::{Result, SqlError};
use crate::statement::{ident, object_name};
use datafusion::sql::sqlparser::ast::{
    AlterIndexOperation, AlterTable, AlterTableOperation as Op, ObjectName, RenameTableNameKind,
    TableConstraint,
};
use lineradb_common::sql::Datum;
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

pub(super) fn position(table: &TableDescriptor, name: &str) -> Result<usize> {
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

/// The table as the statement has changed it so far.
pub(super) fn current(env: &DdlEnv<'_>, table: &TableDescriptor) -> Result<Arc<TableDescriptor>> {
    env.catalog()
        .table_by_id(table.id)
        .cloned()
        .ok_or_else(|| SqlError::internal("the table vanished"))
}

/// 23502 for a column that is to be NOT NULL.
pub(super) fn contains_nulls(column: &str, table: &str) -> SqlError {
    SqlError::new(
        "23502",
        format!("column \"{column}\" of relation \"{table}\" contains null values"),
    )
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

pub(super) async fn add_primary_key(
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
