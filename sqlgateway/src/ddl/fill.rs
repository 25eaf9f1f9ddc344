//! Step 2 of an index build: the rows that existed before the index was maintained
//! get their entries, in batches, each a serializable transaction of its own.

use super::builds::{self, BuildId};
use super::rewrite::duplicated;
use crate::catalog::{IndexBuild, TableDescriptor};
use crate::dml::codec::{IndexCodec, TableCodec};
use crate::error::{Result, SqlError};
use crate::gateway::Gateway;
use crate::point::access::primary_key_of;
use crate::session::Limits;
use bytes::Bytes;
use lineradb_client::{ScanOptions, Span, TransactionOptions, WriteOptions};
use lineradb_common::clock::Stopwatch;
use lineradb_common::keys;
use std::sync::Arc;

/// Rows indexed by one transaction.
const BATCH: u64 = 2000;

/// Indexes the rows that exist; false: another one drives the build now.
pub(super) async fn fill(
    gateway: &Arc<Gateway>,
    id: BuildId,
    build: &IndexBuild,
    limits: &Limits,
) -> Result<bool> {
    let from = build
        .from
        .as_deref()
        .and_then(|from| hex::decode(from).ok());
    let mut from: Option<Bytes> = from.map(Bytes::from);
    let mut retry = crate::session::Retry::new(limits);
    let mut since_beat = Stopwatch::start();
    loop {
        let snapshot = gateway.catalog().snapshot();
        let Some(descriptor) = snapshot.table_by_id(id.table) else {
            return Err(SqlError::new("42P01", "the table was dropped meanwhile"));
        };
        let batch = async {
            if let Some(from) = &from
                && since_beat.elapsed() >= gateway.takeover / 5
            {
                if !builds::beat(gateway, id, &build.driver, from).await? {
                    return Ok(Batch::Lost);
                }
                since_beat = Stopwatch::start();
            }
            fill_batch(gateway, descriptor, id, &build.driver, from.clone()).await
        };
        match limits.run(batch).await {
            Ok(Batch::Last) => return Ok(true),
            Ok(Batch::Lost) => return Ok(false),
            Ok(Batch::Until(next)) => {
                from = Some(next);
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

/// What became of a batch.
enum Batch {
    /// Done; the next one begins here.
    Until(Bytes),
    /// Done, and no row is left.
    Last,
    /// Not done: another one drives the build.
    Lost,
}

/// One transaction's worth.
async fn fill_batch(
    gateway: &Arc<Gateway>,
    table: &Arc<TableDescriptor>,
    id: BuildId,
    driver: &str,
    from: Option<Bytes>,
) -> Result<Batch> {
    let index = id.index;
    let codec = TableCodec::new(table)?;
    let Some(new) = codec.indexes.iter().find(|i| i.index.id == index) else {
        return Err(SqlError::new("42704", "the index was dropped meanwhile"));
    };
    let whole = table.index_span(table.primary.id);
    let span = Span::new(from.unwrap_or(whole.start), whole.end);
    let txn = gateway.client().begin(TransactionOptions::default())?;
    // In the read set: a batch commits only while the record names its driver.
    if builds::read(&txn, id)
        .await?
        .is_none_or(|b| b.driver != driver)
    {
        txn.rollback().await;
        return Ok(Batch::Lost);
    }
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
        Some((last, _)) if rows.len() as u64 >= BATCH => Batch::Until(keys::key_after(last)),
        _ => Batch::Last,
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
