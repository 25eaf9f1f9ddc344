//! CREATE TABLE and CREATE TABLE AS.

use super::index::{IndexWish, add_index, index_columns};
use super::{DdlEnv, ROW_ID, check_storage_parameters};
use crate::catalog::{
    ColumnDescriptor, DESCRIPTOR_FORMAT, IndexDescriptor, IndexState, TableDescriptor,
};
use crate::dml::DmlContext;
use crate::dml::codec::TableCodec;
use crate::dml::exprs::{Compiler, RowShape};
use crate::dml::insert::finish_rows;
use crate::dml::rows;
use crate::dml::writer::{Checks, RowWriter};
use crate::error::{Result, SqlError};
use crate::point::scalar::ParameterTypes;
use crate::statement::{ident, sql_type};
use datafusion::sql::sqlparser::ast::{
    ColumnDef, ColumnOption, CreateTable, CreateTableOptions, DataType, Expr, TableConstraint,
};
use lineradb_common::sql::{Datum, SqlType};

/// A column definition taken apart.
pub(super) struct ColumnWish {
    pub column: ColumnDescriptor,
    pub default: Option<Expr>,
    pub primary_key: Option<Option<String>>,
    pub unique: Option<Option<String>>,
}

/// Reads a column definition.
///
/// # Errors
/// 0A000 for what is not supported, 42601 for contradictions.
pub(super) fn column(id: u32, def: &ColumnDef) -> Result<ColumnWish> {
    let name = ident(&def.name);
    if name == ROW_ID || system_column(&name) {
        return Err(SqlError::new(
            "42701",
            format!("column name \"{name}\" conflicts with a system column name"),
        ));
    }
    let t = sql_type(&def.data_type)?;
    if !t.is_storable() {
        return Err(SqlError::unsupported(format!(
            "a column of type {}",
            t.name()
        )));
    }
    let mut wish = ColumnWish {
        column: ColumnDescriptor {
            id,
            name,
            sql_type: t,
            nullable: true,
            default: None,
            missing: None,
            hidden: false,
        },
        default: None,
        primary_key: None,
        unique: None,
    };
    let mut explicit_null = false;
    for option in &def.options {
        let constraint = option.name.as_ref().map(ident);
        match &option.option {
            ColumnOption::Null => explicit_null = true,
            ColumnOption::NotNull => wish.column.nullable = false,
            ColumnOption::Default(expr) => wish.default = Some(expr.clone()),
            ColumnOption::PrimaryKey(_) => {
                wish.primary_key = Some(constraint);
                wish.column.nullable = false;
            }
            ColumnOption::Unique(u) => {
                super::index::refuse_unique_options(u)?;
                wish.unique = Some(constraint);
            }
            ColumnOption::Check(_) => return Err(SqlError::unsupported("CHECK constraint")),
            ColumnOption::ForeignKey(_) => {
                return Err(SqlError::unsupported("FOREIGN KEY constraint"));
            }
            ColumnOption::Generated { .. } | ColumnOption::Identity(_) => {
                return Err(SqlError::unsupported("GENERATED column"));
            }
            ColumnOption::Collation(c) => {
                let name = c.to_string().to_lowercase();
                if !matches!(
                    name.trim_matches('"'),
                    "c" | "posix" | "default" | "ucs_basic"
                ) {
                    return Err(SqlError::unsupported(format!("COLLATE {c}")));
                }
            }
            other => return Err(SqlError::unsupported(format!("column option {other}"))),
        }
    }
    if explicit_null && !wish.column.nullable {
        return Err(SqlError::syntax(format!(
            "conflicting NULL/NOT NULL declarations for column \"{}\"",
            wish.column.name
        )));
    }
    Ok(wish)
}

fn system_column(name: &str) -> bool {
    matches!(
        name,
        "tableoid" | "xmin" | "cmin" | "xmax" | "cmax" | "ctid"
    )
}

/// Checks a DEFAULT and puts it into the column, as text.
///
/// # Errors
/// Those of planning; 42804 and the like when the value cannot be assigned.
pub(super) fn set_default(
    env: &DdlEnv<'_>,
    column: &mut ColumnDescriptor,
    expr: &Expr,
) -> Result<()> {
    if matches!(expr, Expr::Value(v) if v.value == datafusion::sql::sqlparser::ast::Value::Null) {
        column.default = None;
        return Ok(());
    }
    // Evaluated once, so that a default that can never be assigned is refused now.
    evaluate_default(env, column, expr)?;
    column.default = Some(expr.to_string());
    Ok(())
}

/// The value of a DEFAULT now, as a value of its column.
///
/// # Errors
/// Those of the expression and the assignment.
pub(super) fn evaluate_default(
    env: &DdlEnv<'_>,
    column: &ColumnDescriptor,
    expr: &Expr,
) -> Result<Datum> {
    let mut compiler = Compiler {
        engine: &env.gateway.engine,
        context: &env.context,
        parameters: ParameterTypes::default(),
    };
    let exprs = compiler
        .expressions(
            std::slice::from_ref(expr),
            &[Some(column.sql_type)],
            &RowShape::empty(),
        )
        .map_err(|e| match e.sqlstate.as_str() {
            "42703" => SqlError::new("0A000", "cannot use column reference in DEFAULT expression"),
            _ => e,
        })?;
    if !compiler.parameters.types.is_empty() {
        return Err(SqlError::new("42P02", "there is no parameter $1"));
    }
    let value = exprs
        .evaluate(&env.context, &RowShape::empty(), &[Vec::new()], &[])?
        .pop()
        .and_then(|mut row| row.pop())
        .unwrap_or(Datum::Null);
    value
        .assign(column.sql_type, &env.settings().time_zone)
        .map_err(|e| {
            let mut e = SqlError::from(e);
            if e.sqlstate == "42804" {
                e.message = format!(
                    "column \"{}\" {}",
                    column.name,
                    e.message
                        .trim_start_matches("column ")
                        .replace("expression is", "default expression is")
                );
            }
            e
        })
}

/// CREATE TABLE.
///
/// # Errors
/// 42P07, 42P16, 42701, 42703, 0A000 and those of the transaction layer.
pub async fn create(env: &mut DdlEnv<'_>, create: &CreateTable) -> Result<String> {
    refuse_options(create)?;
    let (schema, name) = env.new_name(&create.name)?;
    if env.catalog().relation(&schema, &name).is_some() {
        let message = format!("relation \"{name}\" already exists");
        if create.if_not_exists {
            env.notice("42P07", format!("{message}, skipping"));
            return Ok("CREATE TABLE".into());
        }
        return Err(SqlError::new("42P07", message));
    }
    if let Some(query) = &create.query {
        return create_as(env, create, query, schema, name).await;
    }
    let mut wishes = Vec::new();
    for (i, def) in create.columns.iter().enumerate() {
        let mut wish = column(i as u32 + 1, def)?;
        if let Some(expr) = wish.default.take() {
            set_default(env, &mut wish.column, &expr)?;
        }
        wishes.push(wish);
    }
    let mut indexes = Vec::new();
    let mut primary: Option<IndexWish> = None;
    let mut set_primary = |wish: IndexWish| match primary.replace(wish) {
        None => Ok(()),
        Some(_) => Err(SqlError::new(
            "42P16",
            format!("multiple primary keys for table \"{name}\" are not allowed"),
        )),
    };
    for wish in &wishes {
        let own = || vec![wish.column.name.clone()];
        if let Some(constraint) = &wish.primary_key {
            set_primary(IndexWish::constraint(constraint.clone(), own()))?;
        }
        if let Some(constraint) = &wish.unique {
            indexes.push(IndexWish::constraint(constraint.clone(), own()));
        }
    }
    for constraint in &create.constraints {
        match constraint {
            TableConstraint::PrimaryKey(p) => set_primary(IndexWish::constraint(
                p.name.as_ref().map(ident),
                index_columns(&p.columns)?,
            ))?,
            TableConstraint::Unique(u) => {
                super::index::refuse_unique_options(u)?;
                indexes.push(IndexWish::constraint(
                    u.name.as_ref().map(ident),
                    index_columns(&u.columns)?,
                ));
            }
            TableConstraint::Check(_) => return Err(SqlError::unsupported("CHECK constraint")),
            TableConstraint::ForeignKey(_) => {
                return Err(SqlError::unsupported("FOREIGN KEY constraint"));
            }
            other => return Err(SqlError::unsupported(format!("table constraint {other}"))),
        }
    }
    let columns = wishes.into_iter().map(|w| w.column).collect();
    let mut table = new_table(env, schema, name, columns, primary).await?;
    for wish in indexes {
        add_index(env, &mut table, wish, IndexState::Public).await?;
    }
    env.change.create_table(table)?;
    Ok("CREATE TABLE".into())
}

/// A descriptor with its columns and primary index.
async fn new_table(
    env: &DdlEnv<'_>,
    schema: String,
    name: String,
    mut columns: Vec<ColumnDescriptor>,
    primary: Option<IndexWish>,
) -> Result<TableDescriptor> {
    for (i, c) in columns.iter().enumerate() {
        if columns[..i].iter().any(|other| other.name == c.name) {
            return Err(SqlError::new(
                "42701",
                format!("column \"{}\" specified more than once", c.name),
            ));
        }
    }
    if columns.len() > 1600 {
        return Err(SqlError::new(
            "54011",
            "tables can have at most 1600 columns",
        ));
    }
    let mut next_column_id = columns.len() as u32 + 1;
    let id = env.oid().await?;
    let primary = match primary {
        Some(wish) => {
            let ids = wish.resolve(&columns, &name)?;
            for c in &mut columns {
                if ids.contains(&c.id) {
                    c.nullable = false;
                }
            }
            IndexDescriptor {
                id: 1,
                oid: env.oid().await?,
                constraint_oid: env.oid().await?,
                name: match wish.name {
                    Some(n) => {
                        if env.catalog().relation(&schema, &n).is_some() {
                            return Err(SqlError::new(
                                "42P07",
                                format!("relation \"{n}\" already exists"),
                            ));
                        }
                        n
                    }
                    None => env.free_name(&schema, &format!("{name}_pkey"), &[]),
                },
                unique: true,
                columns: ids,
                state: IndexState::Public,
            }
        }
        None => {
            columns.push(row_id_column(next_column_id));
            next_column_id += 1;
            row_id_index(1, next_column_id - 1)
        }
    };
    Ok(TableDescriptor {
        format: DESCRIPTOR_FORMAT,
        id,
        schema,
        name,
        version: 1,
        columns,
        next_column_id,
        primary,
        pending_primary: None,
        indexes: Vec::new(),
        next_index_id: 2,
    })
}

/// The hidden column of a table without a primary key.
pub(super) fn row_id_column(id: u32) -> ColumnDescriptor {
    ColumnDescriptor {
        id,
        name: ROW_ID.into(),
        sql_type: SqlType::Int8,
        nullable: false,
        default: None,
        missing: None,
        hidden: true,
    }
}

/// Its index.
pub(super) fn row_id_index(id: u32, column: u32) -> IndexDescriptor {
    IndexDescriptor {
        id,
        oid: 0,
        constraint_oid: 0,
        name: ROW_ID.into(),
        unique: true,
        columns: vec![column],
        state: IndexState::Public,
    }
}

async fn create_as(
    env: &mut DdlEnv<'_>,
    create: &CreateTable,
    query: &datafusion::sql::sqlparser::ast::Query,
    schema: String,
    name: String,
) -> Result<String> {
    let context = env.current_context();
    let planned = env.gateway.engine.plan(&context, query, &[]).await?;
    let mut columns = Vec::new();
    for (i, c) in planned.columns.iter().enumerate() {
        let sql_type = match c.sql_type {
            SqlType::Name | SqlType::InternalChar | SqlType::Unknown => SqlType::Text,
            SqlType::Oid => SqlType::Int8,
            t if t.is_storable() => t,
            t => {
                return Err(SqlError::unsupported(format!(
                    "a column of type {}",
                    t.name()
                )));
            }
        };
        columns.push(ColumnDescriptor {
            id: i as u32 + 1,
            name: c.name.clone(),
            sql_type,
            nullable: true,
            default: None,
            missing: None,
            hidden: false,
        });
    }
    if create.columns.len() > columns.len() {
        return Err(SqlError::syntax("too many column names were specified"));
    }
    for (c, def) in columns.iter_mut().zip(&create.columns) {
        if def.data_type != DataType::Unspecified {
            return Err(SqlError::syntax(
                "column types do not go with CREATE TABLE AS",
            ));
        }
        c.name = ident(&def.name);
    }
    let table = new_table(env, schema, name, columns, None).await?;
    let table = env.change.create_table(table)?;
    let codec = TableCodec::new(&table)?;
    let txn = env.change.transaction().clone();
    let stream = planned.execute(&context, &txn, &[]).await?;
    let mut new_rows = rows::collect(stream, &planned.columns).await?;
    for row in &mut new_rows {
        row.push(Datum::Null);
    }
    let ctx = DmlContext {
        query: &context,
        catalog: &env.gateway.catalog,
        txn: &txn,
        parameters: &[],
        checks: Checks::AtCommit,
    };
    finish_rows(&ctx, &codec, &mut new_rows).await?;
    RowWriter {
        codec: &codec,
        txn: &txn,
        checks: Checks::AtCommit,
    }
    .insert(&new_rows)
    .await?;
    Ok(format!("SELECT {}", new_rows.len()))
}

fn refuse_options(create: &CreateTable) -> Result<()> {
    let refuse = |present: bool, what: &str| {
        if present {
            Err(SqlError::unsupported(what))
        } else {
            Ok(())
        }
    };
    refuse(create.temporary, "TEMPORARY table")?;
    refuse(create.like.is_some(), "CREATE TABLE .. LIKE")?;
    refuse(create.partition_by.is_some(), "PARTITION BY")?;
    refuse(create.partition_of.is_some(), "PARTITION OF")?;
    refuse(create.inherits.is_some(), "INHERITS")?;
    refuse(create.on_commit.is_some(), "ON COMMIT")?;
    let foreign = create.or_replace
        || create.external
        || create.dynamic
        || create.transient
        || create.volatile
        || create.iceberg
        || create.clone.is_some()
        || create.location.is_some()
        || create.file_format.is_some()
        || create.comment.is_some()
        || create.primary_key.is_some()
        || create.order_by.is_some()
        || create.cluster_by.is_some()
        || create.without_rowid
        || create.strict;
    if foreign {
        return Err(SqlError::syntax(
            "this form of CREATE TABLE is not PostgreSQL's",
        ));
    }
    match &create.table_options {
        CreateTableOptions::None => Ok(()),
        CreateTableOptions::With(options) => check_storage_parameters(options),
        other => Err(SqlError::syntax(format!(
            "unrecognized table options {other}"
        ))),
    }
}
