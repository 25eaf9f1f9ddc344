//! Deleting the keys of dropped tables and indexes, in the background and in small
//! transactions. What is to be deleted is noted in the catalog by the DDL that
//! left it, so another gateway goes on where one stopped.

use crate::catalog::{Garbage, decode, garbage_span};
use crate::error::Result;
use crate::gateway::Gateway;
use bytes::Bytes;
use lineradb_client::{Client, ScanOptions, Span, TransactionOptions, WriteOptions};
use lineradb_common::keys::key_after;
use std::sync::Weak;
use std::time::Duration;

/// Keys deleted by one transaction.
const BATCH: u64 = 2000;
/// Pause between two of them: cleaning never hurries.
const PAUSE: Duration = Duration::from_millis(50);
/// Failures in a row after which it gives up until the next DDL.
const FAILURES_MAX: u32 = 20;

/// Spans that wait to be deleted, with the keys of their notes.
///
/// # Errors
/// Those of the transaction layer.
pub async fn list(client: &Client) -> Result<Vec<(Bytes, Garbage)>> {
    let txn = client.begin(TransactionOptions {
        read_only: true,
        ..TransactionOptions::default()
    })?;
    let pairs = txn
        .scan(garbage_span(), ScanOptions::default(), None)
        .await?;
    txn.rollback().await;
    pairs
        .into_iter()
        .map(|(key, value)| Ok((key, decode(&value)?)))
        .collect()
}

/// Where a span is cleaned up to: nobody writes to it any more, and looking at
/// what was deleted already would take longer each time.
type Progress = Option<(Bytes, Bytes)>;

/// Deletes everything that waits; ends when nothing is left.
pub async fn run(gateway: Weak<Gateway>) {
    let mut failures = 0;
    let mut progress = None;
    while failures < FAILURES_MAX {
        tokio::time::sleep(PAUSE).await;
        let Some(client) = gateway.upgrade().map(|g| g.client().clone()) else {
            return;
        };
        match step(&client, &mut progress).await {
            Ok(true) => failures = 0,
            Ok(false) => return,
            Err(error) => {
                failures += 1;
                tracing::debug!(%error, "cleaning up dropped tables failed, trying again");
                tokio::time::sleep(PAUSE * failures).await;
            }
        }
    }
}

/// Deletes a little; false when nothing was left.
async fn step(client: &Client, progress: &mut Progress) -> Result<bool> {
    let waiting = list(client).await?;
    let Some((note, garbage)) = waiting.into_iter().next() else {
        return Ok(false);
    };
    let txn = client.begin(TransactionOptions::default())?;
    let mut span = garbage.span().unwrap_or_else(Span::default);
    let from = { progress.take() }.filter(|(of, _)| *of == note);
    if let Some((_, from)) = from {
        span.start = from;
    }
    let mut next = None;
    if !span.start.is_empty() {
        let options = ScanOptions {
            reverse: false,
            limit: BATCH,
        };
        let pairs = txn.scan(span, options, None).await?;
        if pairs.len() as u64 >= BATCH {
            next = pairs.last().map(|(key, _)| key_after(key));
        }
        for (key, _) in pairs {
            txn.delete(key, WriteOptions::default())?;
        }
    }
    if next.is_none() {
        txn.delete(note.clone(), WriteOptions::default())?;
    }
    txn.commit().await?;
    *progress = next.map(|from| (note, from));
    Ok(true)
}
