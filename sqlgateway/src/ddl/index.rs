//! CREATE INDEX, and the constraints that are indexes.

use super::rewrite;
use super::{DdlEnv, check_storage_parameters};
use crate::catalog::{ColumnDescriptor, IndexDescriptor, IndexState, TableDescriptor};
use crate::error::{Result, SqlError};
use crate::statement::{ident, object_name};
use datafusion::sql::sqlparser::ast::{
    self, CreateIndex, Expr, IndexColumn, IndexType, NullsDistinctOption, SqlOption,
    UniqueConstraint,
};

/// An index to be made.
#[derive(Clone, Debug)]
pub struct IndexWish {
    /// Its name; none: one is made up.
    pub name: Option<String>,
    /// Names of its columns.
    pub columns: Vec<String>,
    /// Refuses equal keys.
    pub unique: bool,
    /// It is a constraint.
    pub constraint: bool,
}

impl IndexWish {
    /// A UNIQUE or PRIMARY KEY constraint.
    pub fn constraint(name: Option<String>, columns: Vec<String>) -> Self {
        IndexWish {
            name,
            columns,
            unique: true,
            constraint: true,
        }
    }

    /// Ids of its columns.
    ///
    /// # Errors
    /// 42703, 42701, 0A000 for types that cannot be indexed.
    pub fn resolve(&self, columns: &[ColumnDescriptor], table: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(self.columns.len());
        for name in &self.columns {
            let c = columns
                .iter()
                .find(|c| !c.hidden && c.name == *name)
                .ok_or_else(|| {
                    let what = if self.constraint {
                        format!("column \"{name}\" named in key does not exist")
                    } else {
                        format!("column \"{name}\" of relation \"{table}\" does not exist")
                    };
                    SqlError::new("42703", what)
                })?;
            if ids.contains(&c.id) {
                return Err(SqlError::new(
                    "42701",
                    format!("column \"{name}\" appears twice in an index or key"),
                ));
            }
            if !c.sql_type.is_indexable() {
                return Err(SqlError::unsupported(format!(
                    "an index or key over a column of type {}",
                    c.sql_type.name()
                )));
            }
            ids.push(c.id);
        }
        if ids.len() > 32 {
            return Err(SqlError::new(
                "54011",
                "cannot use more than 32 columns in an index",
            ));
        }
        Ok(ids)
    }
}

/// Names of the columns of an index.
///
/// # Errors
/// 0A000 for expressions and operator classes.
pub fn index_columns(columns: &[IndexColumn]) -> Result<Vec<String>> {
    columns
        .iter()
        .map(|c| {
            if c.operator_class.is_some() {
                return Err(SqlError::unsupported("operator class in an index"));
            }
            // ASC, DESC and the place of NULLs do not matter: indexes are read in
            // both directions, and order is never promised without ORDER BY.
            match &c.column.expr {
                Expr::Identifier(name) => Ok(ident(name)),
                Expr::Nested(_) | Expr::Function(_) | Expr::BinaryOp { .. } => {
                    Err(SqlError::unsupported("index over an expression"))
                }
                other => Err(SqlError::syntax(format!(
                    "{other} is no column of an index"
                ))),
            }
        })
        .collect()
}

/// 0A000 for options of UNIQUE that change what it means.
///
/// # Errors
/// See above.
pub fn refuse_unique_options(u: &UniqueConstraint) -> Result<()> {
    if matches!(u.nulls_distinct, NullsDistinctOption::NotDistinct) {
        return Err(SqlError::unsupported("UNIQUE NULLS NOT DISTINCT"));
    }
    if u.characteristics
        .as_ref()
        .is_some_and(|c| c.deferrable == Some(true))
    {
        return Err(SqlError::unsupported("DEFERRABLE constraint"));
    }
    Ok(())
}

/// Adds an index to a descriptor.
///
/// # Errors
/// 42P07 for a name that is taken, and those of the columns.
pub async fn add_index(
    env: &DdlEnv<'_>,
    table: &mut TableDescriptor,
    wish: IndexWish,
    state: IndexState,
) -> Result<u32> {
    let columns = wish.resolve(&table.columns, &table.name)?;
    let own: Vec<String> = table
        .indexes
        .iter()
        .map(|i| i.name.clone())
        .chain([table.name.clone(), table.primary.name.clone()])
        .collect();
    let name = match wish.name {
        Some(name) => {
            if env.catalog().relation(&table.schema, &name).is_some() || own.contains(&name) {
                return Err(SqlError::new(
                    "42P07",
                    format!("relation \"{name}\" already exists"),
                ));
            }
            name
        }
        None => {
            let kind = if wish.constraint { "key" } else { "idx" };
            let base = format!("{}_{}_{kind}", table.name, wish.columns.join("_"));
            env.free_name(&table.schema, &base, &own)
        }
    };
    let id = table.next_index_id;
    table.next_index_id += 1;
    table.indexes.push(IndexDescriptor {
        id,
        oid: env.oid().await?,
        constraint_oid: if wish.constraint { env.oid().await? } else { 0 },
        name,
        unique: wish.unique,
        columns,
        state,
    });
    Ok(id)
}

/// What a CREATE INDEX statement wishes for.
///
/// # Errors
/// 0A000 for what is not supported.
pub fn wish(create: &CreateIndex) -> Result<IndexWish> {
    if !matches!(create.using, None | Some(IndexType::BTree)) {
        return Err(SqlError::unsupported("an index type other than btree"));
    }
    if create.predicate.is_some() {
        return Err(SqlError::unsupported("partial index (WHERE)"));
    }
    if !create.include.is_empty() {
        return Err(SqlError::unsupported("INCLUDE in an index"));
    }
    if create.nulls_distinct == Some(false) {
        return Err(SqlError::unsupported("NULLS NOT DISTINCT"));
    }
    if !create.index_options.is_empty() || !create.alter_options.is_empty() {
        return Err(SqlError::syntax(
            "this form of CREATE INDEX is not PostgreSQL's",
        ));
    }
    let options: Vec<SqlOption> = create
        .with
        .iter()
        .map(|e| match e {
            Expr::BinaryOp { left, right, .. } => match &**left {
                Expr::Identifier(key) => SqlOption::KeyValue {
                    key: key.clone(),
                    value: (**right).clone(),
                },
                _ => SqlOption::Ident(ast::Ident::new(e.to_string())),
            },
            other => SqlOption::Ident(ast::Ident::new(other.to_string())),
        })
        .collect();
    check_storage_parameters(&options)?;
    let name = match &create.name {
        Some(name) => Some(object_name(name)?.1),
        None => None,
    };
    Ok(IndexWish {
        name,
        columns: index_columns(&create.columns)?,
        unique: create.unique,
        constraint: false,
    })
}

/// True when the index exists and IF NOT EXISTS was said; an error when it exists.
///
/// # Errors
/// 42P07.
pub fn exists(
    env: &mut DdlEnv<'_>,
    table: &TableDescriptor,
    wish: &IndexWish,
    if_not_exists: bool,
) -> Result<bool> {
    let Some(name) = &wish.name else {
        return Ok(false);
    };
    if env.catalog().relation(&table.schema, name).is_none() {
        return Ok(false);
    }
    let message = format!("relation \"{name}\" already exists");
    if if_not_exists {
        env.notice("42P07", format!("{message}, skipping"));
        return Ok(true);
    }
    Err(SqlError::new("42P07", message))
}

/// CREATE INDEX inside a transaction: built at once.
///
/// # Errors
/// 23505, 42P07, 0A000 and those of the transaction layer.
pub async fn create(env: &mut DdlEnv<'_>, create: &CreateIndex) -> Result<String> {
    let table = env.table(&create.table_name)?;
    let wish = wish(create)?;
    if !exists(env, &table, &wish, create.if_not_exists)? {
        build_at_once(env, &table, wish).await?;
    }
    Ok("CREATE INDEX".into())
}

/// Adds an index and its entries in the statement's transaction.
///
/// # Errors
/// 23505, and those of the transaction layer.
pub async fn build_at_once(
    env: &mut DdlEnv<'_>,
    table: &TableDescriptor,
    wish: IndexWish,
) -> Result<()> {
    let mut changed = table.clone();
    let id = add_index(env, &mut changed, wish, IndexState::Public).await?;
    let changed = env.change.change_table(changed)?;
    rewrite::fill_index(env, &changed, id).await
}
