//! Result streams: cancellable, bounded by the statement's deadline, and the
//! first part of them held back until the transaction's fate is known where that
//! is cheap.

use crate::error::{Result, SqlError};
use crate::query::errors::{carry, sql_error};
use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use lineradb_client::Transaction;
use lineradb_common::sql::{Datum, SqlType, batch_from_rows};
use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::types::ResultColumn;

/// Results up to this size are held back until their transaction has committed,
/// so that a conflict is retried unseen.
const HELD_BACK_BYTES: usize = 1 << 20;
/// And this many rows.
const HELD_BACK_ROWS: usize = 8192;

/// What ends a statement early.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Cancelled from elsewhere.
    pub token: CancellationToken,
    /// `statement_timeout`.
    pub deadline: Option<Instant>,
}

impl Limits {
    /// None at all.
    pub fn none() -> Self {
        Limits {
            token: CancellationToken::new(),
            deadline: None,
        }
    }

    /// Runs `work`, unless the limits end it.
    ///
    /// # Errors
    /// 57014, and those of the work.
    pub async fn run<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let timeout = async {
            match self.deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.token.cancelled() => Err(cancelled()),
            // Before the work: work that never waits uses up the budget that
            // the timer needs as well.
            () = timeout => Err(timed_out()),
            done = work => done,
        }
    }
}

fn cancelled() -> SqlError {
    SqlError::new("57014", "canceling statement due to user request")
}

/// 57014 for `statement_timeout`.
pub fn timed_out() -> SqlError {
    SqlError::new("57014", "canceling statement due to statement timeout")
}

/// The Arrow schema of result columns.
pub fn schema_of(columns: &[ResultColumn]) -> SchemaRef {
    Arc::new(Schema::new(
        columns
            .iter()
            .map(|c| c.sql_type.field(&c.name, true))
            .collect::<Vec<_>>(),
    ))
}

/// A stream of rows that are at hand.
///
/// # Errors
/// 42804 for a value of another type than its column.
pub fn of_rows(columns: &[ResultColumn], rows: &[Vec<Datum>]) -> Result<SendableRecordBatchStream> {
    let schema = schema_of(columns);
    let types: Vec<SqlType> = columns.iter().map(|c| c.sql_type).collect();
    let batches = if rows.is_empty() {
        Vec::new()
    } else {
        vec![batch_from_rows(&schema, &types, rows)?]
    };
    Ok(of_batches(schema, batches))
}

/// A stream of batches that are at hand.
pub fn of_batches(schema: SchemaRef, batches: Vec<RecordBatch>) -> SendableRecordBatchStream {
    Box::pin(RecordBatchStreamAdapter::new(
        schema,
        futures::stream::iter(batches.into_iter().map(Ok)),
    ))
}

/// A stream whose first part has been read.
pub struct Held {
    schema: SchemaRef,
    first: VecDeque<RecordBatch>,
    rest: Option<SendableRecordBatchStream>,
}

/// Reads the first part of a stream: all of it when it is small.
///
/// # Errors
/// Those of the stream.
pub async fn hold(mut stream: SendableRecordBatchStream) -> Result<Held> {
    let schema = stream.schema();
    let mut first = VecDeque::new();
    let (mut bytes, mut rows) = (0, 0);
    while bytes < HELD_BACK_BYTES && rows < HELD_BACK_ROWS {
        match stream.next().await {
            None => {
                return Ok(Held {
                    schema,
                    first,
                    rest: None,
                });
            }
            Some(batch) => {
                let batch = batch.map_err(sql_error)?;
                bytes += batch.get_array_memory_size();
                rows += batch.num_rows();
                first.push_back(batch);
            }
        }
    }
    Ok(Held {
        schema,
        first,
        rest: Some(stream),
    })
}

impl Held {
    /// True when everything has been read.
    pub fn is_complete(&self) -> bool {
        self.rest.is_none()
    }

    /// The stream. `commit`: the transaction that ends with it. An error sets
    /// `failed`.
    pub fn into_stream(
        self,
        limits: Limits,
        commit: Option<Transaction>,
        failed: Arc<AtomicBool>,
    ) -> SendableRecordBatchStream {
        let schema = Arc::clone(&self.schema);
        let live = Live {
            held: self,
            limits,
            commit,
            failed,
            over: false,
        };
        let stream = futures::stream::unfold(live, |mut live| async move {
            let item = live.next().await?;
            Some((item.map_err(carry), live))
        });
        Box::pin(RecordBatchStreamAdapter::new(schema, stream))
    }
}

struct Live {
    held: Held,
    limits: Limits,
    commit: Option<Transaction>,
    failed: Arc<AtomicBool>,
    over: bool,
}

impl Live {
    async fn next(&mut self) -> Option<Result<RecordBatch>> {
        if self.over {
            return None;
        }
        if let Some(batch) = self.held.first.pop_front() {
            return Some(Ok(batch));
        }
        let next = match &mut self.held.rest {
            None => Ok(None),
            Some(rest) => {
                let read = async {
                    match rest.next().await {
                        Some(batch) => batch.map(Some).map_err(sql_error),
                        None => Ok(None),
                    }
                };
                self.limits.run(read).await
            }
        };
        match next {
            Ok(Some(batch)) => Some(Ok(batch)),
            Ok(None) => {
                self.over = true;
                // Errors of a read-only commit still belong to the statement.
                let txn = self.commit.take()?;
                match txn.commit().await {
                    Ok(_) => None,
                    Err(e) => {
                        self.failed.store(true, Ordering::Release);
                        Some(Err(e.into()))
                    }
                }
            }
            Err(e) => {
                self.over = true;
                self.failed.store(true, Ordering::Release);
                if let Some(txn) = self.commit.take() {
                    txn.rollback().await;
                }
                Some(Err(e))
            }
        }
    }
}
