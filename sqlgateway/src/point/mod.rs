//! Point plans: statements by full key, compiled once per text and schema, run in
//! a few microseconds plus the round trip, without DataFusion (which needs
//! 250-350 us to plan one).
//!
//! SELECT is here; INSERT, UPDATE and DELETE use [`access`] and [`scalar`] from
//! `dml`.

pub mod access;
pub mod compile;
pub mod scalar;

use crate::dml::codec::TableCodec;
use crate::error::Result;
use crate::session::ResultColumn;
use crate::statement::{ident, object_name};
use access::{PointAccess, table_scope};
use compile::compile;
use datafusion::sql::sqlparser::ast::{
    Expr, GroupByExpr, LockType, NonBlock, Query, Select, SelectFlavor, SelectItem, SetExpr,
    TableFactor, WildcardAdditionalOptions,
};
use lineradb_client::{LockOptions, Transaction};
use lineradb_common::sql::Datum;
use scalar::{ParameterTypes, Scalar, Values};
use std::sync::Arc;

/// A SELECT of one row by its key.
#[derive(Debug)]
pub struct PointSelect {
    /// The table.
    pub codec: Arc<TableCodec>,
    access: PointAccess,
    projection: Vec<Scalar>,
    /// What it returns.
    pub columns: Arc<[ResultColumn]>,
    lock: Option<LockOptions>,
}

/// The one table of a FROM clause: schema, name, alias. `None`: it is more.
pub fn single_table(factor: &TableFactor) -> Option<(Option<String>, String, String)> {
    let TableFactor::Table {
        name,
        alias,
        args: None,
        with_hints,
        version: None,
        with_ordinality: false,
        partitions,
        json_path: None,
        sample: None,
        index_hints,
    } = factor
    else {
        return None;
    };
    if !with_hints.is_empty() || !partitions.is_empty() || !index_hints.is_empty() {
        return None;
    }
    let (schema, name) = object_name(name).ok()?;
    let alias = match alias {
        Some(a) if a.columns.is_empty() => ident(&a.name),
        Some(_) => return None,
        None => name.clone(),
    };
    Some((schema, name, alias))
}

/// The parts of a plain `SELECT .. FROM one table WHERE ..`.
pub fn plain_select(query: &Query) -> Option<(&Select, &TableFactor)> {
    let plain = query.with.is_none()
        && query.order_by.is_none()
        && query.limit_clause.is_none()
        && query.fetch.is_none()
        && query.for_clause.is_none()
        && query.settings.is_none()
        && query.format_clause.is_none()
        && query.pipe_operators.is_empty();
    let SetExpr::Select(select) = &*query.body else {
        return None;
    };
    let s = &**select;
    let bare = s.distinct.is_none()
        && s.select_modifiers.is_none()
        && s.top.is_none()
        && s.exclude.is_none()
        && s.into.is_none()
        && s.lateral_views.is_empty()
        && s.prewhere.is_none()
        && s.connect_by.is_empty()
        && matches!(&s.group_by, GroupByExpr::Expressions(e, m) if e.is_empty() && m.is_empty())
        && s.cluster_by.is_empty()
        && s.distribute_by.is_empty()
        && s.sort_by.is_empty()
        && s.having.is_none()
        && s.named_window.is_empty()
        && s.qualify.is_none()
        && s.value_table_mode.is_none()
        && s.flavor == SelectFlavor::Standard;
    match &s.from[..] {
        [one] if plain && bare && one.joins.is_empty() => Some((s, &one.relation)),
        _ => None,
    }
}

impl PointSelect {
    /// Understands a SELECT by full key. `None`: it is something else.
    pub fn compile(
        codec: &Arc<TableCodec>,
        alias: &str,
        query: &Query,
        parameters: &mut ParameterTypes,
    ) -> Option<Self> {
        let (select, _) = plain_select(query)?;
        let lock = match &query.locks[..] {
            [] => None,
            [l] if l.of.is_none() => Some(LockOptions {
                shared: l.lock_type == LockType::Share,
                wait: match l.nonblock {
                    None => true,
                    Some(NonBlock::Nowait) => false,
                    Some(NonBlock::SkipLocked) => return None,
                },
            }),
            _ => return None,
        };
        let scope = table_scope(&codec.table, alias);
        let access = PointAccess::compile(codec, &scope, select.selection.as_ref()?, parameters)?;
        let mut projection = Vec::new();
        let mut columns = Vec::new();
        for item in &select.projection {
            let (expr, label) = match item {
                SelectItem::UnnamedExpr(e) => (e, None),
                SelectItem::ExprWithAlias { expr, alias } => (expr, Some(ident(alias))),
                SelectItem::Wildcard(options) if is_plain_wildcard(options) => {
                    for c in &scope.columns {
                        projection.push(Scalar::Column(c.position));
                        columns.push(table_column(codec, c.position, None));
                    }
                    continue;
                }
                _ => return None,
            };
            let typed = compile(expr, &scope, parameters, None)?;
            if typed.may_need_more_digits() {
                return None;
            }
            columns.push(match (&typed.expr, expr) {
                (Scalar::Column(at), Expr::Identifier(_) | Expr::CompoundIdentifier(_)) => {
                    table_column(codec, *at, label)
                }
                // Labels of expressions are the engine's business, unless given.
                _ => ResultColumn::new(label?, typed.sql_type),
            });
            projection.push(typed.expr);
        }
        Some(PointSelect {
            codec: Arc::clone(codec),
            access,
            projection,
            columns: columns.into(),
            lock,
        })
    }

    /// The row, if there is one.
    ///
    /// # Errors
    /// Those of the transaction layer and of the values.
    pub async fn run(&self, txn: &Transaction, values: &Values<'_>) -> Result<Option<Vec<Datum>>> {
        let found = self
            .access
            .find(&self.codec, txn, values, self.lock)
            .await?;
        let Some(found) = found else {
            return Ok(None);
        };
        let on_row = Values {
            row: &found.row,
            ..*values
        };
        let row = self
            .projection
            .iter()
            .map(|e| e.evaluate(&on_row))
            .collect::<Result<_>>()?;
        Ok(Some(row))
    }

    /// True for FOR UPDATE and FOR SHARE.
    pub fn locks(&self) -> bool {
        self.lock.is_some()
    }

    /// What EXPLAIN shows.
    pub fn explain(&self) -> String {
        format!("Point Lookup {}", self.access.describe(&self.codec))
    }
}

/// True for a bare `*`.
pub fn is_plain_wildcard(o: &WildcardAdditionalOptions) -> bool {
    o.opt_ilike.is_none()
        && o.opt_exclude.is_none()
        && o.opt_except.is_none()
        && o.opt_replace.is_none()
        && o.opt_rename.is_none()
        && o.opt_alias.is_none()
}

/// A result column that is a table's column.
pub fn table_column(codec: &TableCodec, position: usize, label: Option<String>) -> ResultColumn {
    let c = &codec.table.columns[position];
    ResultColumn {
        name: label.unwrap_or_else(|| c.name.clone()),
        sql_type: c.sql_type,
        table_oid: codec.table.id,
        column_number: c.id as i16,
    }
}
