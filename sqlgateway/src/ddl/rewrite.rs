//! Writing index entries or all rows of a table anew, inside one transaction (and
//! so within its limits).

use super::DdlEnv;
use crate::catalog::TableDescriptor;
use crate::dml::codec::TableCodec;
use crate::dml::writer::{Checks, RowWriter};
use crate::error::{Result, SqlError};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use lineradb_client::{
    Condition, Error as ClientError, ScanOptions, Span, Transaction, WriteOptions,
};
use lineradb_common::sql::Datum;
use std::sync::Arc;

/// The rows of a table, page by page.
pub struct Pages<'a> {
    codec: &'a TableCodec,
    pages: BoxStream<'static, Result<Vec<(Bytes, Bytes)>, ClientError>>,
}

impl<'a> Pages<'a> {
    /// All rows as `codec` decodes them.
    pub fn of(txn: &Transaction, codec: &'a TableCodec) -> Self {
        let span: Span = codec.table.index_span(codec.table.primary.id);
        let version = Some(codec.table.table_version());
        Pages {
            codec,
            pages: txn.scan_stream(span, ScanOptions::default(), version),
        }
    }

    /// The next rows; `None`: that was all.
    ///
    /// # Errors
    /// Those of the transaction layer; XX001 for rows that do not decode.
    pub async fn next(&mut self) -> Result<Option<Vec<Vec<Datum>>>> {
        match self.pages.next().await {
            None => Ok(None),
            Some(page) => page?
                .iter()
                .map(|(k, v)| self.codec.decode(k, v))
                .collect::<Result<Vec<_>>>()
                .map(Some),
        }
    }
}

/// Writes the entries of a new index.
///
/// # Errors
/// 23505, and those of the transaction layer.
pub async fn fill_index(env: &DdlEnv<'_>, table: &Arc<TableDescriptor>, index: u32) -> Result<()> {
    let codec = TableCodec::new(table)?;
    let new = codec
        .indexes
        .iter()
        .find(|i| i.index.id == index)
        .ok_or_else(|| SqlError::internal("the new index is missing"))?;
    let txn = env.change.transaction();
    let mut pages = Pages::of(txn, &codec);
    while let Some(rows) = pages.next().await? {
        for row in rows {
            let entry = new.entry(table, &row)?;
            // The span is new, so a key that exists was put by this statement.
            let condition = if entry.unique {
                Condition::Absent
            } else {
                Condition::None
            };
            let options = WriteOptions {
                table: Some(table.table_version()),
                condition,
            };
            let key = entry.key.clone();
            txn.put(entry.key, entry.value, options)
                .map_err(|e| could_not_create(&codec, &key, e))?;
        }
    }
    Ok(())
}

fn could_not_create(codec: &TableCodec, key: &[u8], error: ClientError) -> SqlError {
    match error {
        ClientError::ConditionFailed { .. } => duplicated(codec.duplicate(key)),
        other => other.into(),
    }
}

/// 23505 as PostgreSQL words it for an index build.
pub fn duplicated(error: SqlError) -> SqlError {
    let name = error
        .message
        .split('"')
        .nth(1)
        .unwrap_or_default()
        .to_owned();
    SqlError {
        message: format!("could not create unique index \"{name}\""),
        detail: error
            .detail
            .map(|d| d.replace("already exists", "is duplicated")),
        ..error
    }
}

/// Where the values of a rewritten row come from.
pub type RowMap<'a> = dyn Fn(Vec<Datum>) -> Result<Vec<Datum>> + Sync + Send + 'a;

/// Writes all rows of `old` as rows of `new`, whose indexes must all have new
/// ids. The old spans are left to the cleaner.
///
/// # Errors
/// 23505, 23502, and those of the transaction layer and of the map.
pub async fn rewrite_table(
    env: &mut DdlEnv<'_>,
    old: &Arc<TableDescriptor>,
    new: TableDescriptor,
    map: &RowMap<'_>,
) -> Result<Arc<TableDescriptor>> {
    let new = env.change.change_table(new)?;
    let new_codec = TableCodec::new(&new)?;
    // The transaction names the version that it is about to write.
    let mut source = (**old).clone();
    source.version = new.version;
    let old_codec = TableCodec::new(&Arc::new(source))?;
    let txn = env.change.transaction().clone();
    let row_id = new
        .columns
        .iter()
        .position(|c| c.hidden)
        .filter(|_| old.has_primary_key());
    let mut pages = Pages::of(&txn, &old_codec);
    while let Some(rows) = pages.next().await? {
        let count = rows.len() as u64;
        let mut mapped = rows.into_iter().map(map).collect::<Result<Vec<_>>>()?;
        if let Some(at) = row_id {
            let first = env.gateway.catalog.row_ids.take(count).await?;
            for (i, row) in mapped.iter_mut().enumerate() {
                row[at] = Datum::Int8((first + i as u64) as i64);
            }
        }
        RowWriter {
            codec: &new_codec,
            txn: &txn,
            checks: Checks::AtCommit,
        }
        .insert(&mapped)
        .await
        .map_err(|e| {
            if e.sqlstate == "23505" {
                duplicated(e)
            } else {
                e
            }
        })?;
    }
    env.change.leave_garbage(&old.index_span(old.primary.id))?;
    for index in &old.indexes {
        env.change.leave_garbage(&old.index_span(index.id))?;
    }
    Ok(new)
}

/// Gives every index of a descriptor a new id: its old entries are no longer
/// part of the table.
pub fn renumber_indexes(table: &mut TableDescriptor) {
    let mut next = table.next_index_id;
    let mut take = || {
        next += 1;
        next - 1
    };
    table.primary.id = take();
    for index in &mut table.indexes {
        index.id = take();
    }
    table.next_index_id = next;
}

/// True when the table has no rows.
///
/// # Errors
/// Those of the transaction layer.
pub async fn is_empty(txn: &Transaction, table: &TableDescriptor) -> Result<bool> {
    let options = ScanOptions {
        reverse: false,
        limit: 1,
    };
    let span = table.index_span(table.primary.id);
    let found = txn.scan(span, options, Some(table.table_version())).await?;
    Ok(found.is_empty())
}
