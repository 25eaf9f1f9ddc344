//! INSERT .. ON CONFLICT.

use super::DmlContext;
use super::codec::{Entry, TableCodec};
use super::exprs::{Compiler, Exprs, RowShape};
use super::insert::fit_row;
use super::update::Assignments;
use super::writer::{Checks, LOCK_BATCH, RowWriter};
use crate::catalog::IndexState;
use crate::error::{Result, SqlError};
use crate::point::access::primary_key_of;
use crate::statement::{ident, object_name};
use bytes::Bytes;
use datafusion::sql::sqlparser::ast::{ConflictTarget, OnConflict, OnConflictAction, SelectItem};
use lineradb_client::LockOptions;
use lineradb_common::sql::Datum;
use std::collections::{HashMap, HashSet};

/// What to do about rows that exist.
#[derive(Debug)]
pub struct ConflictPlan {
    /// Positions of the indexes whose keys decide (in the codec's list).
    arbiters: Vec<usize>,
    update: Option<UpdateAction>,
}

#[derive(Debug)]
struct UpdateAction {
    assignments: Assignments,
    condition: Option<Exprs>,
    /// The existing row, then the one that was to be inserted (`excluded`).
    shape: RowShape,
}

impl ConflictPlan {
    /// Plans an ON CONFLICT clause.
    ///
    /// # Errors
    /// 42P10 when no unique index fits the target, and those of planning.
    pub fn plan(
        compiler: &mut Compiler<'_>,
        codec: &TableCodec,
        alias: &str,
        on: &OnConflict,
    ) -> Result<Self> {
        let unique = |at: &usize| {
            let i = &codec.indexes[*at].index;
            i.unique && i.state == IndexState::Public && (*at > 0 || codec.table.has_primary_key())
        };
        let all: Vec<usize> = (0..codec.indexes.len()).filter(unique).collect();
        let arbiters = match &on.conflict_target {
            None => all,
            Some(ConflictTarget::Columns(columns)) => {
                let mut wanted = Vec::new();
                for c in columns {
                    let name = ident(c);
                    let column = codec
                        .table
                        .column(&name)
                        .ok_or_else(|| SqlError::undefined_column(&name))?;
                    wanted.push(column.id);
                }
                wanted.sort_unstable();
                wanted.dedup();
                let found: Vec<usize> = all
                    .into_iter()
                    .filter(|at| {
                        let mut have = codec.indexes[*at].index.columns.clone();
                        have.sort_unstable();
                        have == wanted
                    })
                    .collect();
                if found.is_empty() {
                    return Err(SqlError::new(
                        "42P10",
                        "there is no unique or exclusion constraint matching the ON CONFLICT specification",
                    ));
                }
                found
            }
            Some(ConflictTarget::OnConstraint(name)) => {
                let (_, name) = object_name(name)?;
                let found: Vec<usize> = all
                    .into_iter()
                    .filter(|at| codec.indexes[*at].index.name == name)
                    .collect();
                if found.is_empty() {
                    return Err(SqlError::new(
                        "42704",
                        format!(
                            "constraint \"{name}\" for table \"{}\" does not exist",
                            codec.table.name
                        ),
                    ));
                }
                found
            }
        };
        let update = match &on.action {
            OnConflictAction::DoNothing => None,
            OnConflictAction::DoUpdate(update) => {
                if on.conflict_target.is_none() {
                    return Err(SqlError::syntax(
                        "ON CONFLICT DO UPDATE requires inference specification or constraint name",
                    ));
                }
                let shape = RowShape::of_table(&codec.table, &[alias, "excluded"]);
                let assignments =
                    Assignments::plan_upsert(compiler, codec, &update.assignments, &shape)?;
                let condition = match &update.selection {
                    None => None,
                    Some(expr) => Some(
                        compiler
                            .select_list(&[SelectItem::UnnamedExpr(expr.clone())], &shape)?
                            .0,
                    ),
                };
                Some(UpdateAction {
                    assignments,
                    condition,
                    shape,
                })
            }
        };
        Ok(ConflictPlan { arbiters, update })
    }

    /// See [`Exprs::is_cacheable`].
    pub fn is_cacheable(&self) -> bool {
        self.update.as_ref().is_none_or(|u| {
            u.assignments.is_cacheable() && u.condition.as_ref().is_none_or(Exprs::is_cacheable)
        })
    }

    /// Inserts the rows that are new and treats the others; answers the rows
    /// inserted or updated, in the order of `rows`.
    pub(super) async fn insert(
        &self,
        ctx: &DmlContext<'_>,
        codec: &TableCodec,
        rows: Vec<Vec<Datum>>,
    ) -> Result<Vec<Vec<Datum>>> {
        let entries = rows
            .iter()
            .map(|r| codec.entries(r))
            .collect::<Result<Vec<_>>>()?;
        let existing = self.existing(ctx, codec, &entries).await?;
        let mut new_keys: HashSet<Bytes> = HashSet::new();
        let mut updated_keys: HashSet<Bytes> = HashSet::new();
        let mut inserts = Vec::new();
        let mut conflicts = Vec::new();
        for (at, (row, entries)) in rows.into_iter().zip(&entries).enumerate() {
            let mine = || {
                self.arbiters
                    .iter()
                    .map(|at| &entries[*at])
                    .filter(|e| e.unique)
            };
            if mine().any(|e| new_keys.contains(&e.key)) {
                if self.update.is_some() {
                    return Err(second_time());
                }
                continue;
            }
            match mine().find_map(|e| existing.get(&e.key)) {
                None => {
                    new_keys.extend(mine().map(|e| e.key.clone()));
                    inserts.push((at, row));
                }
                Some(found) => {
                    if self.update.is_some() {
                        if !updated_keys.insert(found.clone()) {
                            return Err(second_time());
                        }
                        conflicts.push((at, found.clone(), row));
                    }
                }
            }
        }
        let writer = RowWriter {
            codec,
            txn: ctx.txn,
            checks: Checks::Now,
        };
        let mut written = Vec::new();
        if let Some(action) = &self.update {
            written = action.run(ctx, codec, &writer, conflicts).await?;
        }
        let (places, inserts): (Vec<usize>, Vec<Vec<Datum>>) = inserts.into_iter().unzip();
        writer.insert(&inserts).await?;
        written.extend(places.into_iter().zip(inserts));
        // RETURNING gives them in the order of the source.
        written.sort_by_key(|(at, _)| *at);
        Ok(written.into_iter().map(|(_, row)| row).collect())
    }

    /// Locks the keys that decide; answers the primary key of the row for those
    /// that exist.
    async fn existing(
        &self,
        ctx: &DmlContext<'_>,
        codec: &TableCodec,
        entries: &[Vec<Entry>],
    ) -> Result<HashMap<Bytes, Bytes>> {
        let mut out = HashMap::new();
        for at in &self.arbiters {
            let keys: Vec<Bytes> = entries
                .iter()
                .map(|e| &e[*at])
                .filter(|e| e.unique)
                .map(|e| e.key.clone())
                .collect::<HashSet<_>>()
                .into_iter()
                .collect();
            let layout = match at {
                0 => None,
                _ => Some(codec.table.index_layout(&codec.indexes[*at].index)?),
            };
            for chunk in keys.chunks(LOCK_BATCH) {
                let found = ctx
                    .txn
                    .locking_get(
                        chunk,
                        Some(codec.table.table_version()),
                        LockOptions::default(),
                    )
                    .await?;
                for (key, value) in chunk.iter().zip(found) {
                    let Some(value) = value else { continue };
                    let primary = match &layout {
                        None => key.clone(),
                        Some(layout) => {
                            let columns = layout.decode_row(key, &value)?;
                            primary_key_of(codec, layout, &columns)?
                        }
                    };
                    out.insert(key.clone(), primary);
                }
            }
        }
        Ok(out)
    }
}

fn second_time() -> SqlError {
    SqlError::new(
        "21000",
        "ON CONFLICT DO UPDATE command cannot affect row a second time",
    )
    .with_hint("Ensure that no rows proposed for insertion within the same command have duplicate constrained values.")
}

impl UpdateAction {
    /// Updates the rows that exist: the place of each proposed row in the source,
    /// the key of the row that it meets, and its values. Answers the new rows
    /// with their places.
    async fn run(
        &self,
        ctx: &DmlContext<'_>,
        codec: &TableCodec,
        writer: &RowWriter<'_>,
        conflicts: Vec<(usize, Bytes, Vec<Datum>)>,
    ) -> Result<Vec<(usize, Vec<Datum>)>> {
        let mut places: Vec<usize> = conflicts.iter().map(|(at, ..)| *at).collect();
        let keys: Vec<Bytes> = conflicts.iter().map(|(_, k, _)| k.clone()).collect();
        let mut both = Vec::with_capacity(conflicts.len());
        let mut at = 0;
        for chunk in keys.chunks(LOCK_BATCH) {
            let values = ctx
                .txn
                .locking_get(
                    chunk,
                    Some(codec.table.table_version()),
                    LockOptions::default(),
                )
                .await?;
            for (key, value) in chunk.iter().zip(values) {
                let value = value.ok_or_else(|| {
                    SqlError::from(lineradb_client::Error::conflict(
                        "a row vanished while it was looked up",
                        key.clone(),
                    ))
                })?;
                let mut row = codec.decode(key, &value)?;
                row.extend(conflicts[at].2.iter().cloned());
                both.push(row);
                at += 1;
            }
        }
        if let Some(condition) = &self.condition {
            let verdicts = condition.evaluate(ctx.query, &self.shape, &both, ctx.parameters)?;
            let keep: Vec<bool> = verdicts.iter().map(|v| v[0] == Datum::Bool(true)).collect();
            let mut kept = keep.iter();
            both.retain(|_| kept.next().copied().unwrap_or(false));
            let mut kept = keep.iter();
            places.retain(|_| kept.next().copied().unwrap_or(false));
        }
        let values =
            self.assignments
                .exprs
                .evaluate(ctx.query, &self.shape, &both, ctx.parameters)?;
        let width = codec.table.columns.len();
        let mut changes = Vec::with_capacity(both.len());
        for (mut row, values) in both.into_iter().zip(values) {
            row.truncate(width);
            let mut new = row.clone();
            for (at, v) in self.assignments.positions.iter().zip(values) {
                new[*at] = v;
            }
            fit_row(ctx, codec, &mut new)?;
            changes.push((row, new));
        }
        writer.update(&changes).await?;
        let rows = changes.into_iter().map(|(_, new)| new);
        Ok(places.into_iter().zip(rows).collect())
    }
}
