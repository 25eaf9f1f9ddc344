//! A result under way: pulls batches from the plan and sends them as the
//! client takes them. Never more than one batch is held.

use super::link::Link;
use super::output::FLUSH_AT;
use crate::encode::{Format, RowEncoder};
use crate::error::SqlError;
use crate::query::errors::sql_error;
use crate::session::ResultColumn;
use arrow::array::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use lineradb_common::sql::TimeZone;
use std::io;

/// Rows encoded between two looks at the output buffer.
const STEP: usize = 64;

/// A result whose rows are being sent.
pub struct Rows {
    stream: SendableRecordBatchStream,
    encoder: RowEncoder,
    batch: Option<(RecordBatch, usize)>,
}

/// How far sending came.
pub enum Progress {
    /// All rows are sent; how many in this portion, as PostgreSQL counts.
    Done(u64),
    /// The client's row limit was reached.
    Suspended,
}

/// Sending failed: the statement, or the connection.
pub enum SendError {
    /// The statement failed; the connection goes on.
    Sql(SqlError),
    /// The connection broke.
    Io(io::Error),
}

impl From<SqlError> for SendError {
    fn from(error: SqlError) -> Self {
        SendError::Sql(error)
    }
}

impl From<io::Error> for SendError {
    fn from(error: io::Error) -> Self {
        SendError::Io(error)
    }
}

impl Rows {
    /// A result in the formats of its columns.
    pub fn new(
        stream: SendableRecordBatchStream,
        columns: &[ResultColumn],
        formats: &[Format],
        zone: TimeZone,
    ) -> Self {
        let types = columns.iter().map(|column| column.sql_type);
        Rows {
            stream,
            encoder: RowEncoder::new(types.zip(formats.iter().copied()), zone),
            batch: None,
        }
    }

    /// Sends up to `limit` rows (0: all), waiting for the client whenever the
    /// output buffer is full.
    ///
    /// # Errors
    /// The statement's own, or the connection's.
    pub async fn send(&mut self, link: &mut Link, limit: usize) -> Result<Progress, SendError> {
        let mut left = if limit == 0 { usize::MAX } else { limit };
        let mut sent = 0;
        loop {
            let (batch, from) = match self.batch.take() {
                Some(pending) => pending,
                None => match self.stream.next().await {
                    Some(Ok(batch)) => (batch, 0),
                    Some(Err(error)) => return Err(sql_error(error).into()),
                    None => return Ok(Progress::Done(sent)),
                },
            };
            let to = batch.num_rows().min(from + STEP.min(left));
            self.encoder
                .rows(&batch, from, to, &mut link.output.buffer)
                .map_err(SqlError::from)?;
            sent += (to - from) as u64;
            left -= to - from;
            if to < batch.num_rows() {
                self.batch = Some((batch, to));
            }
            if link.output.buffer.len() >= FLUSH_AT {
                link.flush().await?;
            }
            // As PostgreSQL: a portal whose last row was just sent is suspended
            // too; the next Execute finds nothing more.
            if left == 0 {
                return Ok(Progress::Suspended);
            }
        }
    }
}
