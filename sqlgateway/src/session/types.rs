//! What sessions hand to front ends.

use crate::dml::copy_in::CopyIn;
use crate::error::Result;
use datafusion::execution::SendableRecordBatchStream;
use lineradb_common::sql::SqlType;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// A column of a result.
#[derive(Clone, Debug, PartialEq)]
pub struct ResultColumn {
    /// Its label.
    pub name: String,
    /// Its type.
    pub sql_type: SqlType,
    /// The table that it comes from; 0: an expression.
    pub table_oid: u32,
    /// The column's number in that table; 0: an expression.
    pub column_number: i16,
}

impl ResultColumn {
    /// A column that comes from no table.
    pub fn new(name: impl Into<String>, sql_type: SqlType) -> Self {
        ResultColumn {
            name: name.into(),
            sql_type,
            table_oid: 0,
            column_number: 0,
        }
    }
}

/// Who connects.
#[derive(Clone, Debug, Default)]
pub struct SessionParams {
    /// User name; empty: `lineradb`.
    pub user: String,
    /// Database; empty: `lineradb`.
    pub database: String,
    /// `application_name`.
    pub application_name: String,
    /// Other start-up parameters, as by SET.
    pub settings: Vec<(String, String)>,
    /// The peer's address, for pg_stat_activity and logs.
    pub peer: String,
}

/// ReadyForQuery's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionStatus {
    /// No transaction block.
    Idle,
    /// In a block.
    InTransaction,
    /// In a block that failed; only its end is accepted.
    Failed,
}

/// What a statement did.
#[allow(clippy::large_enum_variant)] // one at a time, moved once
pub enum Outcome {
    /// Rows.
    Rows {
        /// Their columns.
        columns: Arc<[ResultColumn]>,
        /// The rows. An error in it ends the statement.
        stream: SendableRecordBatchStream,
        /// `SELECT`, `SHOW`, `EXPLAIN`, `INSERT 0`, `UPDATE`, `DELETE`, ...: the
        /// command tag without its row count.
        tag: &'static str,
        /// True: the tag is followed by the count of rows sent.
        count: bool,
    },
    /// No rows: the complete command tag, and how many rows were touched.
    Command {
        /// For example `INSERT 0 1`, `CREATE TABLE`.
        tag: String,
        /// Rows inserted, updated, deleted.
        rows: Option<u64>,
    },
    /// The client sends data now.
    CopyIn(CopyIn),
    /// The client receives data now.
    CopyOut(CopyOut),
    /// An empty statement.
    Empty,
}

impl Outcome {
    /// The command tag; of rows without their count, which is not known yet.
    pub fn tag(&self) -> &str {
        match self {
            Outcome::Rows { tag, .. } => tag,
            Outcome::Command { tag, .. } => tag,
            Outcome::CopyIn(_) | Outcome::CopyOut(_) => "COPY",
            Outcome::Empty => "",
        }
    }

    /// A command tag without rows.
    pub fn command(tag: impl Into<String>) -> Self {
        Outcome::Command {
            tag: tag.into(),
            rows: None,
        }
    }
}

/// Format of COPY data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyFormat {
    /// PostgreSQL's text format.
    Text,
    /// Comma separated values.
    Csv,
}

/// `COPY .. TO STDOUT` under way: pieces of text to send as they come.
pub struct CopyOut {
    /// The format of the data.
    pub format: CopyFormat,
    /// Number of columns.
    pub columns: usize,
    /// The data as they come.
    pub stream: futures::stream::BoxStream<'static, Result<CopyPiece>>,
}

/// Some lines of COPY data.
#[derive(Clone, Debug)]
pub struct CopyPiece {
    /// The lines.
    pub data: bytes::Bytes,
    /// Where each of them ends (a quoted value may have line breaks inside).
    pub ends: Vec<usize>,
    /// How many of them are rows.
    pub rows: u64,
}

/// Cancels the running statement of a session from elsewhere.
#[derive(Clone, Debug, Default)]
pub struct CancelHandle {
    token: Arc<parking_lot::Mutex<CancellationToken>>,
}

impl CancelHandle {
    /// Cancels what runs now; nothing when nothing runs.
    pub fn cancel(&self) {
        self.token.lock().cancel();
    }

    /// A fresh token for the statement that begins.
    pub(crate) fn renew(&self) -> CancellationToken {
        let token = CancellationToken::new();
        *self.token.lock() = token.clone();
        token
    }
}
