//! The gateway's background work on the catalog: deleting the keys of dropped
//! tables and indexes, and index builds whose gateway is gone ([`builds`]).
//!
//! What is to be done is noted in the catalog by the DDL that left it, so any
//! gateway goes on where another one stopped. Keys are deleted in small
//! transactions. While the catalog's version stays the same and nothing is left,
//! a round costs one read.

use super::builds::Watch;
use crate::catalog::{Garbage, decode, garbage_span};
use crate::error::Result;
use crate::gateway::Gateway;
use bytes::Bytes;
use lineradb_client::{Client, ScanOptions, Span, TransactionOptions, WriteOptions};
use lineradb_common::keys::key_after;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;

/// Keys deleted by one transaction.
const BATCH: u64 = 2000;
/// Pause between two of them: cleaning never hurries.
const PAUSE: Duration = Duration::from_millis(50);

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

/// Works until the gateway is gone; `wake` begins the next round at once.
pub async fn run(gateway: Weak<Gateway>, wake: Arc<Notify>, every: Duration) {
    let mut watch = Watch::default();
    let mut clean_at = 0;
    loop {
        let Some(gateway) = gateway.upgrade() else {
            return;
        };
        if let Err(error) = round(&gateway, &mut watch, &mut clean_at).await {
            tracing::debug!(%error, "cleaning up the catalog failed, trying again");
        }
        drop(gateway);
        tokio::select! {
            () = wake.notified() => {}
            () = tokio::time::sleep(every) => {}
        }
    }
}

/// Does what there is to do. `clean_at` is the version of the catalog at which
/// nothing was left.
async fn round(gateway: &Arc<Gateway>, watch: &mut Watch, clean_at: &mut u64) -> Result<()> {
    let version = gateway.catalog().refresh().await?.version();
    if version == *clean_at && !watch.is_busy() {
        return Ok(());
    }
    watch.look(gateway).await?;
    let mut progress = None;
    while step(gateway.client(), &mut progress).await? {
        tokio::time::sleep(PAUSE).await;
    }
    *clean_at = version;
    Ok(())
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
