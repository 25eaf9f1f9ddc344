//! Building an index in steps, outside of a transaction block (PROTOCOLS S5):
//!
//! 1. the index is committed as *write-only*: from then on every writer maintains
//!    it, because requests planned before are answered SchemaChanged;
//! 2. the rows that existed are indexed in batches, each a serializable
//!    transaction of its own that checks uniqueness against what it finds;
//! 3. the index becomes public.
//!
//! A build that fails takes the index back. A new primary key is built the same
//! way, as an index that holds whole rows, and then put in the old one's place.

use super::DdlEnv;
use super::alter::with_primary_key;
use super::index::{IndexWish, add_index, exists, wish};
use super::rewrite::duplicated;
use crate::catalog::{IndexState, TableDescriptor};
use crate::dml::codec::{IndexCodec, TableCodec};
use crate::error::{Result, SqlError};
use crate::gateway::Gateway;
use crate::point::access::primary_key_of;
use crate::session::{DdlRunner, DdlWork, Limits};
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::sql::sqlparser::ast::{self, AlterTableOperation, TableConstraint};
use lineradb_client::{ScanOptions, Span, TransactionOptions, WriteOptions};
use lineradb_common::keys;
use std::sync::Arc;

/// Rows indexed by one transaction.
const BATCH: u64 = 2000;

/// What is built.
enum Wish {
    Index(IndexWish, bool),
    PrimaryKey(IndexWish),
}

/// A statement that builds one index, and its table; `None`: another statement.
fn read(statement: &ast::Statement) -> Result<Option<(ast::ObjectName, Wish, &'static str)>> {
    match statement {
        ast::Statement::CreateIndex(create) => Ok(Some((
            create.table_name.clone(),
            Wish::Index(wish(create)?, create.if_not_exists),
            "CREATE INDEX",
        ))),
        ast::Statement::AlterTable(alter) if !alter.if_exists => {
            let [AlterTableOperation::AddConstraint { constraint, .. }] = &alter.operations[..]
            else {
                return Ok(None);
            };
            let wish = match constraint {
                TableConstraint::PrimaryKey(p) => Wish::PrimaryKey(IndexWish::constraint(
                    p.name.as_ref().map(crate::statement::ident),
                    super::index::index_columns(&p.columns)?,
                )),
                TableConstraint::Unique(u) => {
                    super::index::refuse_unique_options(u)?;
                    Wish::Index(
                        IndexWish::constraint(
                            u.name.as_ref().map(crate::statement::ident),
                            super::index::index_columns(&u.columns)?,
                        ),
                        false,
                    )
                }
                _ => return Ok(None),
            };
            Ok(Some((alter.name.clone(), wish, "ALTER TABLE")))
        }
        _ => Ok(None),
    }
}

/// Runs a statement that builds an index, in steps; `None`: it is another
/// statement, or one that has to be done at once.
///
/// # Errors
/// 23505, 23502 and those of the statement and the transaction layer.
pub async fn run(
    runner: &mut DdlRunner<'_>,
    statement: &ast::Statement,
    limits: &Limits,
) -> Result<Option<String>> {
    let Some((name, wish, tag)) = read(statement)? else {
        return Ok(None);
    };
    // Step 1.
    let mut start = Start {
        statement,
        name: &name,
        wish: &wish,
        found: None,
    };
    runner.step(limits, &mut start).await?;
    let found = start.found;
    let Some((table, index)) = found else {
        return Ok(Some(tag.to_owned()));
    };
    // Step 2.
    let filled = fill(runner.gateway(), table, index, limits).await;
    // Step 3, or taking it back. Neither is bounded by the statement's time.
    let unbounded = Limits::none();
    let mut end = End {
        table,
        index,
        publish: filled.is_ok(),
    };
    let ended = runner.step(&unbounded, &mut end).await;
    filled?;
    ended?;
    Ok(Some(tag.to_owned()))
}

/// Step 1: the index becomes write-only.
struct Start<'a> {
    statement: &'a ast::Statement,
    name: &'a ast::ObjectName,
    wish: &'a Wish,
    /// The table and the index; `None`: nothing is left to do.
    found: Option<(u32, u32)>,
}

#[async_trait]
impl DdlWork for Start<'_> {
    async fn run(&mut self, env: &mut DdlEnv<'_>) -> Result<()> {
        self.found = None;
        let table = env.table(self.name)?;
        match self.wish {
            Wish::Index(wish, if_not_exists) => {
                if exists(env, &table, wish, *if_not_exists)? {
                    return Ok(());
                }
                let mut changed = (*table).clone();
                let id = add_index(env, &mut changed, wish.clone(), IndexState::WriteOnly).await?;
                env.change.change_table(changed)?;
                self.found = Some((table.id, id));
            }
            Wish::PrimaryKey(wish) => {
                if !table.indexes.is_empty() || table.pending_primary.is_some() {
                    // The other indexes lead to rows by the old key: all of them
                    // change together.
                    return super::alter_statement(env, self.statement).await;
                }
                let target = with_primary_key(env, &table, wish).await?;
                let mut changed = (*table).clone();
                let mut pending = target.primary;
                pending.id = changed.next_index_id;
                changed.next_index_id += 1;
                pending.state = IndexState::WriteOnly;
                self.found = Some((table.id, pending.id));
                changed.pending_primary = Some(pending);
                env.change.change_table(changed)?;
            }
        }
        Ok(())
    }
}

/// Step 3: the index becomes public, or is taken back.
struct End {
    table: u32,
    index: u32,
    publish: bool,
}

#[async_trait]
impl DdlWork for End {
    async fn run(&mut self, env: &mut DdlEnv<'_>) -> Result<()> {
        finish(env, self.table, self.index, self.publish)
    }
}

/// Makes the index public, or takes it back.
fn finish(env: &mut DdlEnv<'_>, table: u32, index: u32, publish: bool) -> Result<()> {
    let Some(table) = env.catalog().table_by_id(table).cloned() else {
        return match publish {
            true => Err(SqlError::new("42P01", "the table was dropped meanwhile")),
            false => Ok(()),
        };
    };
    let mut changed = (*table).clone();
    if let Some(pending) = changed.pending_primary.take_if(|p| p.id == index) {
        if publish {
            let old = std::mem::replace(&mut changed.primary, pending);
            changed.primary.state = IndexState::Public;
            changed.columns.retain(|c| !c.hidden);
            for c in &mut changed.columns {
                if changed.primary.columns.contains(&c.id) {
                    c.nullable = false;
                }
            }
            env.change.change_table(changed)?;
            return env.change.leave_garbage(&table.index_span(old.id));
        }
        env.change.change_table(changed)?;
        return env.change.leave_garbage(&table.index_span(index));
    }
    let Some(at) = changed.indexes.iter().position(|i| i.id == index) else {
        return match publish {
            true => Err(SqlError::new("42704", "the index was dropped meanwhile")),
            false => Ok(()),
        };
    };
    if publish {
        changed.indexes[at].state = IndexState::Public;
        env.change.change_table(changed)?;
        return Ok(());
    }
    changed.indexes.remove(at);
    env.change.change_table(changed)?;
    env.change.leave_garbage(&table.index_span(index))
}

/// Indexes the rows that exist.
async fn fill(gateway: &Arc<Gateway>, table: u32, index: u32, limits: &Limits) -> Result<()> {
    let mut from: Option<Bytes> = None;
    let mut retry = crate::session::Retry::new(limits);
    loop {
        let snapshot = gateway.catalog().snapshot();
        let Some(descriptor) = snapshot.table_by_id(table) else {
            return Err(SqlError::new("42P01", "the table was dropped meanwhile"));
        };
        match limits
            .run(fill_batch(gateway, descriptor, index, from.clone()))
            .await
        {
            Ok(None) => return Ok(()),
            Ok(next) => {
                from = next;
                retry = crate::session::Retry::new(limits);
            }
            Err(e) => {
                if e.is_schema_changed() {
                    gateway.catalog().refresh().await?;
                }
                retry.after(e).await?;
            }
        }
    }
}

/// One transaction's worth; answers where the next one begins.
async fn fill_batch(
    gateway: &Arc<Gateway>,
    table: &Arc<TableDescriptor>,
    index: u32,
    from: Option<Bytes>,
) -> Result<Option<Bytes>> {
    let codec = TableCodec::new(table)?;
    let Some(new) = codec.indexes.iter().find(|i| i.index.id == index) else {
        return Err(SqlError::new("42704", "the index was dropped meanwhile"));
    };
    let whole = table.index_span(table.primary.id);
    let span = Span::new(from.unwrap_or(whole.start), whole.end);
    let txn = gateway.client().begin(TransactionOptions::default())?;
    let version = Some(table.table_version());
    let options = ScanOptions {
        reverse: false,
        limit: BATCH,
    };
    let rows = txn.scan(span, options, version).await?;
    let mut entries = Vec::with_capacity(rows.len());
    for (key, value) in &rows {
        let row = codec.decode(key, value)?;
        let entry = new.entry(table, &row).map_err(|e| {
            if e.sqlstate == "23502" {
                let column = new
                    .key_positions()
                    .iter()
                    .find(|at| row[**at].is_null())
                    .map_or("", |at| table.columns[*at].name.as_str());
                SqlError::new(
                    "23502",
                    format!(
                        "column \"{column}\" of relation \"{}\" contains null values",
                        table.name
                    ),
                )
            } else {
                e
            }
        })?;
        entries.push((key, entry));
    }
    let keys: Vec<Bytes> = entries.iter().map(|(_, e)| e.key.clone()).collect();
    let found = txn.multi_get(&keys, version).await?;
    let mut seen = std::collections::HashSet::new();
    for ((row_key, entry), found) in entries.into_iter().zip(found) {
        if entry.unique && !seen.insert(entry.key.clone()) {
            return Err(duplicated(codec.duplicate(&entry.key)));
        }
        match found {
            // Put by a writer since step 1, for this row or for another.
            Some(value) if entry.unique => {
                if !leads_to(&codec, new, &entry.key, &value, row_key)? {
                    return Err(duplicated(codec.duplicate(&entry.key)));
                }
            }
            Some(_) => {}
            None => txn.put(
                entry.key,
                entry.value,
                WriteOptions {
                    table: version,
                    ..WriteOptions::default()
                },
            )?,
        }
    }
    txn.commit().await?;
    Ok(match rows.last() {
        Some((last, _)) if rows.len() as u64 >= BATCH => Some(keys::key_after(last)),
        _ => None,
    })
}

/// True when an entry that exists belongs to the row.
fn leads_to(
    codec: &TableCodec,
    index: &IndexCodec,
    key: &[u8],
    value: &[u8],
    row_key: &Bytes,
) -> Result<bool> {
    if codec.table.pending_primary.as_ref().map(|p| p.id) == Some(index.index.id) {
        // The new primary index holds the old row id, too.
        let layout = codec.table.pending_layout()?;
        let columns = layout.decode_row(key, value)?;
        return Ok(primary_key_of(codec, &layout, &columns)? == *row_key);
    }
    let layout = codec.table.index_layout(&index.index)?;
    let columns = layout.decode_row(key, value)?;
    Ok(primary_key_of(codec, &layout, &columns)? == *row_key)
}
