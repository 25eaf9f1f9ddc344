//! The coordinator against a cluster in memory, with what can go wrong planted
//! on purpose.

mod changes;
mod commit;
mod evaluate;
mod fake;
mod isolation;
mod reads;
mod routing;
mod stress;

use crate::{Client, Span, Transaction, TransactionOptions, WriteOptions};
use bytes::Bytes;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(20);

fn b(s: &str) -> Bytes {
    Bytes::copy_from_slice(s.as_bytes())
}

fn begin(client: &Client) -> Transaction {
    client.begin(TransactionOptions::default()).unwrap()
}

fn put(txn: &Transaction, key: &str, value: &str) {
    txn.put(b(key), b(value), WriteOptions::default()).unwrap();
}

async fn set(client: &Client, pairs: &[(&str, &str)]) {
    let txn = begin(client);
    for (key, value) in pairs {
        put(&txn, key, value);
    }
    txn.commit().await.unwrap();
}

async fn value(client: &Client, key: &str) -> Option<Bytes> {
    begin(client).get(key.as_bytes(), None).await.unwrap()
}

/// Waits for what the background does.
async fn eventually(what: &str, done: impl Fn() -> bool) {
    let deadline = lineradb_common::clock::deadline_after(LONG);
    let mut pause = crate::backoff::Backoff::routing();
    while !done() {
        assert!(pause.pause(deadline).await, "never happened: {what}");
    }
}

fn all() -> Span {
    Span::default()
}
