//! DROP, TRUNCATE, and schemas.

use super::rewrite::renumber_indexes;
use super::{DdlEnv, refuse_system_schema};
use crate::catalog::SchemaDescriptor;
use crate::error::{Result, SqlError};
use crate::pg_catalog::is_system_schema;
use crate::statement::{ident, object_name};
use datafusion::sql::sqlparser::ast::{ObjectName, ObjectType, SchemaName, Truncate};
use std::sync::Arc;

/// DROP TABLE, INDEX, SCHEMA.
///
/// # Errors
/// 42P01, 42704, 3F000, 2BP01 and those of the transaction layer.
pub fn drop(
    env: &mut DdlEnv<'_>,
    kind: ObjectType,
    if_exists: bool,
    names: &[ObjectName],
    cascade: bool,
) -> Result<String> {
    for name in names {
        match kind {
            ObjectType::Table => drop_table(env, name, if_exists)?,
            ObjectType::Index => drop_index(env, name, if_exists)?,
            ObjectType::Schema => drop_schema(env, name, if_exists, cascade)?,
            // There are none of these yet, so there is nothing to drop.
            other if if_exists => {
                let kind = other.to_string().to_lowercase();
                env.notice(
                    "00000",
                    format!("{kind} \"{name}\" does not exist, skipping"),
                );
            }
            other => return Err(SqlError::unsupported(format!("DROP {other}"))),
        }
    }
    Ok(format!("DROP {kind}"))
}

fn drop_table(env: &mut DdlEnv<'_>, name: &ObjectName, if_exists: bool) -> Result<()> {
    match env.table(name) {
        Ok(table) => env.change.drop_table(&table),
        Err(e) if if_exists && matches!(e.sqlstate.as_str(), "42P01" | "3F000") => {
            let (_, shown) = object_name(name)?;
            env.notice(
                "00000",
                format!("table \"{shown}\" does not exist, skipping"),
            );
            Ok(())
        }
        Err(mut e) => {
            if e.sqlstate == "42P01" {
                let (_, shown) = object_name(name)?;
                e.message = format!("table \"{shown}\" does not exist");
            }
            Err(e)
        }
    }
}

fn drop_index(env: &mut DdlEnv<'_>, name: &ObjectName, if_exists: bool) -> Result<()> {
    let (schema, name) = object_name(name)?;
    let schemas = match &schema {
        Some(s) => vec![s.clone()],
        None => env.settings().search_path.clone(),
    };
    let found = schemas.iter().find_map(|s| {
        env.catalog()
            .index(s, &name)
            .map(|(t, i)| (Arc::clone(t), i.clone()))
    });
    let Some((table, index)) = found else {
        if env
            .catalog()
            .resolve(schema.as_deref(), &name, &env.context.settings.search_path)
            .is_some()
        {
            return Err(SqlError::new(
                "42809",
                format!("\"{name}\" is not an index"),
            ));
        }
        if if_exists {
            env.notice(
                "00000",
                format!("index \"{name}\" does not exist, skipping"),
            );
            return Ok(());
        }
        return Err(SqlError::new(
            "42704",
            format!("index \"{name}\" does not exist"),
        ));
    };
    if index.constraint_oid != 0 {
        return Err(SqlError::new(
            "2BP01",
            format!(
                "cannot drop index {name} because constraint {name} on table {} requires it",
                table.name
            ),
        )
        .with_hint(format!(
            "You can drop constraint {name} on table {} instead.",
            table.name
        )));
    }
    let mut changed = (*table).clone();
    changed.indexes.retain(|i| i.id != index.id);
    env.change.change_table(changed)?;
    env.change.leave_garbage(&table.index_span(index.id))
}

fn drop_schema(
    env: &mut DdlEnv<'_>,
    name: &ObjectName,
    if_exists: bool,
    cascade: bool,
) -> Result<()> {
    let (_, name) = object_name(name)?;
    refuse_system_schema(&name)?;
    if env.catalog().schema(&name).is_none() {
        if if_exists {
            env.notice(
                "00000",
                format!("schema \"{name}\" does not exist, skipping"),
            );
            return Ok(());
        }
        return Err(SqlError::new(
            "3F000",
            format!("schema \"{name}\" does not exist"),
        ));
    }
    let inside: Vec<_> = env
        .catalog()
        .tables()
        .filter(|t| t.schema == name)
        .cloned()
        .collect();
    if let Some(first) = inside.first()
        && !cascade
    {
        return Err(SqlError::new(
            "2BP01",
            format!("cannot drop schema {name} because other objects depend on it"),
        )
        .with_detail(format!(
            "table {name}.{} depends on schema {name}",
            first.name
        ))
        .with_hint("Use DROP ... CASCADE to drop the dependent objects too."));
    }
    for table in inside {
        env.change.drop_table(&table)?;
    }
    env.change.drop_schema(&name)
}

/// CREATE SCHEMA.
///
/// # Errors
/// 42P06, 42939 and those of the transaction layer.
pub async fn create_schema(
    env: &mut DdlEnv<'_>,
    name: &SchemaName,
    if_not_exists: bool,
) -> Result<String> {
    let name = match name {
        SchemaName::Simple(name) | SchemaName::NamedAuthorization(name, _) => object_name(name)?.1,
        SchemaName::UnnamedAuthorization(role) => ident(role),
    };
    if name.starts_with("pg_") || is_system_schema(&name) {
        return Err(
            SqlError::new("42939", format!("unacceptable schema name \"{name}\""))
                .with_detail("The prefix \"pg_\" is reserved for system schemas."),
        );
    }
    if env.catalog().schema(&name).is_some() {
        let message = format!("schema \"{name}\" already exists");
        if !if_not_exists {
            return Err(SqlError::new("42P06", message));
        }
        env.notice("42P06", format!("{message}, skipping"));
    } else {
        let oid = env.oid().await?;
        env.change.create_schema(SchemaDescriptor { oid, name })?;
    }
    Ok("CREATE SCHEMA".into())
}

/// TRUNCATE: new index ids, so that the rows are no longer part of the table; the
/// cleaner deletes them.
///
/// # Errors
/// 42P01 and those of the transaction layer.
pub fn truncate(env: &mut DdlEnv<'_>, truncate: &Truncate) -> Result<String> {
    if truncate.partitions.is_some() || truncate.on_cluster.is_some() || truncate.if_exists {
        return Err(SqlError::syntax(
            "this form of TRUNCATE is not PostgreSQL's",
        ));
    }
    for target in &truncate.table_names {
        let table = env.table(&target.name)?;
        if table.pending_primary.is_some()
            || table
                .indexes
                .iter()
                .any(|i| i.state != crate::catalog::IndexState::Public)
        {
            return Err(SqlError::new(
                "55006",
                format!("an index of \"{}\" is being built", table.name),
            ));
        }
        let mut changed = (*table).clone();
        renumber_indexes(&mut changed);
        // Nothing is left that was written before these columns were added.
        for c in &mut changed.columns {
            c.missing = None;
        }
        env.change.change_table(changed)?;
        env.change
            .leave_garbage(&table.index_span(table.primary.id))?;
        for index in &table.indexes {
            env.change.leave_garbage(&table.index_span(index.id))?;
        }
    }
    Ok("TRUNCATE TABLE".into())
}
