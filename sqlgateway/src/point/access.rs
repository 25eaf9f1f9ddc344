//! Finding one row by the equality of all columns of its primary key or of a
//! unique index.

use super::compile::compile;
use super::scalar::{ParameterTypes, Scalar, Scope, ScopeColumn, Values};
use crate::catalog::{IndexState, TableDescriptor};
use crate::dml::codec::TableCodec;
use crate::error::{Result, SqlError};
use bytes::Bytes;
use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr};
use lineradb_client::{LockOptions, Transaction};
use lineradb_common::sql::{Datum, RowLayout, SqlType};

/// A row found by its key.
#[derive(Debug)]
pub struct PointAccess {
    /// Position in the codec's indexes; 0: the primary one.
    index: usize,
    /// The values of the index's columns, in order.
    key: Vec<Scalar>,
    /// All conditions: (column, value).
    conditions: Vec<(usize, Scalar)>,
    /// How entries of the index lead to the row, for a secondary index.
    layout: Option<RowLayout>,
}

/// A row and its primary key.
#[derive(Debug)]
pub struct Found {
    /// The key of its primary entry.
    pub key: Bytes,
    /// The row, in the order of the table's columns.
    pub row: Vec<Datum>,
}

/// The columns of a table, as names.
pub fn table_scope(table: &TableDescriptor, qualifier: &str) -> Scope {
    Scope {
        columns: table
            .columns
            .iter()
            .enumerate()
            .filter(|(_, c)| !c.hidden)
            .map(|(position, c)| ScopeColumn {
                qualifier: qualifier.to_owned(),
                name: c.name.clone(),
                sql_type: c.sql_type,
                position,
            })
            .collect(),
    }
}

impl PointAccess {
    /// Understands a condition that is a conjunction of `column = value` and
    /// covers a unique key. `None`: it is something else.
    pub fn compile(
        codec: &TableCodec,
        scope: &Scope,
        condition: &Expr,
        parameters: &mut ParameterTypes,
    ) -> Option<Self> {
        let mut conditions = Vec::new();
        conjuncts(condition, scope, parameters, &mut conditions)?;
        let covered = |positions: &[usize]| -> Option<Vec<Scalar>> {
            positions
                .iter()
                .map(|at| {
                    conditions
                        .iter()
                        .find(|(c, _)| c == at)
                        .map(|(_, v)| v.clone())
                })
                .collect()
        };
        for (at, index) in codec.indexes.iter().enumerate() {
            let usable = if at == 0 {
                codec.table.has_primary_key()
            } else {
                index.index.unique
                    && index.index.state == IndexState::Public
                    && codec.table.indexes.iter().any(|i| i.id == index.index.id)
            };
            if !usable {
                continue;
            }
            if let Some(key) = covered(index.key_positions()) {
                let layout = match at {
                    0 => None,
                    _ => Some(codec.table.index_layout(&index.index).ok()?),
                };
                return Some(PointAccess {
                    index: at,
                    key,
                    conditions,
                    layout,
                });
            }
        }
        None
    }

    /// What EXPLAIN shows.
    pub fn describe(&self, codec: &TableCodec) -> String {
        format!(
            "on {} using {}",
            codec.table.display_name(),
            codec.indexes[self.index].index.name
        )
    }

    /// The row, if there is one; `lock` locks it and reads its newest version.
    ///
    /// # Errors
    /// Those of the transaction layer and of the values.
    pub async fn find(
        &self,
        codec: &TableCodec,
        txn: &Transaction,
        values: &Values<'_>,
        lock: Option<LockOptions>,
    ) -> Result<Option<Found>> {
        let table = Some(codec.table.table_version());
        let index = &codec.indexes[self.index];
        let mut key_values = Vec::with_capacity(self.key.len());
        for (scalar, at) in self.key.iter().zip(index.key_positions()) {
            let value = scalar.evaluate(values)?;
            match comparable_value(value, codec.table.columns[*at].sql_type) {
                Some(v) => key_values.push(v),
                None => return Ok(None),
            }
        }
        let Some(mut key) = index.key_of(&key_values)? else {
            return Ok(None);
        };
        if let Some(layout) = &self.layout {
            let Some(entry) = txn.get(&key, table).await? else {
                return Ok(None);
            };
            let columns = layout.decode_row(&key, &entry)?;
            key = primary_key_of(codec, layout, &columns)?;
        }
        let value = match lock {
            Some(options) => txn
                .locking_get(std::slice::from_ref(&key), table, options)
                .await?
                .pop()
                .flatten(),
            None => txn.get(&key, table).await?,
        };
        let Some(value) = value else {
            return Ok(None);
        };
        let row = codec.decode(&key, &value)?;
        // Further conditions, and those of the index against the row as it is now.
        for (at, scalar) in &self.conditions {
            let wanted = scalar.evaluate(values)?;
            if wanted.is_null() || row[*at].is_null() {
                return Ok(None);
            }
            let wanted = match comparable_value(wanted, codec.table.columns[*at].sql_type) {
                Some(v) => v,
                None => return Ok(None),
            };
            if row[*at].compare(&wanted)?.is_ne() {
                return Ok(None);
            }
        }
        Ok(Some(Found { key, row }))
    }
}

/// The primary key of the row that an index entry belongs to.
///
/// # Errors
/// XX001 when the entry lacks a column.
pub fn primary_key_of(codec: &TableCodec, layout: &RowLayout, columns: &[Datum]) -> Result<Bytes> {
    let values = codec
        .table
        .primary
        .columns
        .iter()
        .map(|id| {
            layout
                .columns
                .iter()
                .position(|c| c.id == *id)
                .map(|at| columns[at].clone())
                .ok_or_else(|| SqlError::new("XX001", "an index entry lacks its row's key"))
        })
        .collect::<Result<Vec<_>>>()?;
    codec
        .primary()
        .key_of(&values)?
        .ok_or_else(|| SqlError::new("XX001", "an index entry has a NULL in its row's key"))
}

fn conjuncts(
    expr: &Expr,
    scope: &Scope,
    parameters: &mut ParameterTypes,
    out: &mut Vec<(usize, Scalar)>,
) -> Option<()> {
    match expr {
        Expr::Nested(inner) => conjuncts(inner, scope, parameters, out),
        Expr::BinaryOp {
            left,
            op: BinaryOperator::And,
            right,
        } => {
            conjuncts(left, scope, parameters, out)?;
            conjuncts(right, scope, parameters, out)
        }
        Expr::BinaryOp {
            left,
            op: BinaryOperator::Eq,
            right,
        } => {
            let column = |e: &Expr, parameters: &mut ParameterTypes| {
                let typed = compile(e, scope, parameters, None)?;
                match typed.expr {
                    Scalar::Column(at) => Some((at, typed.sql_type)),
                    _ => None,
                }
            };
            let (at, t, value) = match column(left, parameters) {
                Some((at, t)) => (at, t, right),
                None => {
                    let (at, t) = column(right, parameters)?;
                    (at, t, left)
                }
            };
            // The value must not depend on the row.
            let value = compile(value, &Scope::default(), parameters, Some(t))?;
            if !comparable(t, value.sql_type) {
                return None;
            }
            out.push((at, value.expr));
            Some(())
        }
        _ => None,
    }
}

/// True when `column = value` means equality of keys.
fn comparable(column: SqlType, value: SqlType) -> bool {
    let exact = |t: SqlType| t.is_integer() || matches!(t, SqlType::Numeric(_));
    match column {
        c if exact(c) => exact(value),
        SqlType::Float4 | SqlType::Float8 => value.is_number(),
        c if c.is_text() => value.is_text(),
        c => c == value,
    }
}

/// The value as one of the column's type; `None`: no value of the column equals
/// it (NULL, a fraction for an integer column, ...).
fn comparable_value(value: Datum, column: SqlType) -> Option<Datum> {
    match (column, value) {
        (_, Datum::Null) => None,
        (c, v) if c.is_integer() => match v {
            Datum::Numeric(n) => {
                let n = n.normalized();
                (n.scale() == 0)
                    .then(|| i64::try_from(n.mantissa()).ok())
                    .flatten()
                    .map(Datum::Int8)
            }
            other => Some(other),
        },
        (SqlType::Numeric(_), v) => v.as_exact().map(Datum::Numeric),
        (SqlType::Float4 | SqlType::Float8, v) => v.as_f64().map(Datum::Float8),
        (SqlType::Char(_), Datum::Text(s)) => Some(Datum::Text(s.trim_end_matches(' ').to_owned())),
        (_, v) => Some(v),
    }
}
