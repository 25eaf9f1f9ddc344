//! What can go wrong, named by what the caller must do next.

use bytes::Bytes;
use lineradb_common::{ErrorKind, TableId, Timestamp};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the client library. The transaction that met it is over, save
/// for [`Error::LockTimeout`] and [`Error::Execution`], after which it may go
/// on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Another transaction got in the way: retry the whole transaction
    /// (SQLSTATE 40001).
    #[error("the transaction conflicts with another one: {message}")]
    Conflict {
        /// What happened.
        message: String,
        /// The key concerned; empty when not known.
        key: Bytes,
    },
    /// A write's condition (absent, exists) did not hold (23505 for a unique
    /// key).
    #[error("a condition on a key did not hold")]
    ConditionFailed {
        /// The key.
        key: Bytes,
    },
    /// The request was planned with another schema version than the one in
    /// force: reload the table, plan again, and retry the transaction.
    #[error("the schema of table {table} changed: version {current} is in force")]
    SchemaChanged {
        /// The table.
        table: TableId,
        /// The version in force; 0: none.
        current: u64,
    },
    /// The commit may or may not have happened (40003).
    #[error("the outcome of the transaction is unknown: {message}")]
    Unknown {
        /// Why it could not be learnt.
        message: String,
    },
    /// No quorum, no leader, no clock within the deadline; nothing was done
    /// (57P03).
    #[error("unavailable: {message}")]
    Unavailable {
        /// What was tried last.
        message: String,
    },
    /// Waiting for a lock took longer than allowed, or NOWAIT met one (55P03).
    #[error("could not obtain a lock in time")]
    LockTimeout {
        /// The key; empty when not known.
        key: Bytes,
    },
    /// Transactions waited for each other in a circle, and this one, the youngest,
    /// gave way (40P01).
    #[error("deadlock detected")]
    Deadlock {
        /// Who waited for whom, a line each.
        detail: String,
    },
    /// The transaction was aborted by somebody else's recovery: retry (40001).
    #[error("the transaction was aborted: {message}")]
    Aborted {
        /// Why.
        message: String,
    },
    /// The caller asked for something wrong.
    #[error("{message}")]
    Invalid {
        /// What.
        message: String,
    },
    /// A configured limit (54000, 53000).
    #[error("{message}")]
    Limit {
        /// Which, and how large it is.
        message: String,
    },
    /// The idempotency key was used for another request (22023).
    #[error("the idempotency key was used for a different request")]
    IdempotencyMismatch,
    /// The caller's own deadline passed while nothing had been written (57014).
    #[error("the deadline passed")]
    Timeout,
    /// The history that a read of changes needs is not kept any more (72000).
    #[error("{message}")]
    HistoryGone {
        /// It is kept from here on.
        oldest: Timestamp,
        /// For people.
        message: String,
    },
    /// A pushed-down piece of a plan failed with an SQL error.
    #[error("{message}")]
    Execution {
        /// Five characters.
        sqlstate: String,
        /// For people.
        message: String,
    },
    /// A bug, or a node that speaks nonsense.
    #[error("internal error: {message}")]
    Internal {
        /// What.
        message: String,
    },
}

impl Error {
    /// A conflict at a key.
    pub fn conflict(message: impl Into<String>, key: Bytes) -> Self {
        Error::Conflict {
            message: message.into(),
            key,
        }
    }

    /// Nothing was done.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Error::Unavailable {
            message: message.into(),
        }
    }

    /// The caller asked for something wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Error::Invalid {
            message: message.into(),
        }
    }

    /// A bug.
    pub fn internal(message: impl Into<String>) -> Self {
        Error::Internal {
            message: message.into(),
        }
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Conflict { .. }
            | Error::SchemaChanged { .. }
            | Error::LockTimeout { .. }
            | Error::Deadlock { .. }
            | Error::Aborted { .. } => ErrorKind::Conflict,
            Error::Unknown { .. } => ErrorKind::Unknown,
            Error::Unavailable { .. } | Error::Timeout => ErrorKind::Unavailable,
            Error::ConditionFailed { .. }
            | Error::Invalid { .. }
            | Error::IdempotencyMismatch
            | Error::HistoryGone { .. }
            | Error::Execution { .. } => ErrorKind::Invalid,
            Error::Limit { .. } => ErrorKind::Limit,
            Error::Internal { .. } => ErrorKind::Internal,
        }
    }

    /// True when running the same transaction again may succeed and the first
    /// run has certainly left nothing behind.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Error::Conflict { .. }
                | Error::SchemaChanged { .. }
                | Error::Deadlock { .. }
                | Error::Aborted { .. }
        )
    }
}

impl From<lineradb_common::Error> for Error {
    fn from(error: lineradb_common::Error) -> Self {
        let message = error.message;
        match error.kind {
            ErrorKind::Invalid => Error::Invalid { message },
            ErrorKind::Conflict => Error::conflict(message, Bytes::new()),
            ErrorKind::Unavailable => Error::Unavailable { message },
            ErrorKind::Unknown => Error::Unknown { message },
            ErrorKind::Limit => Error::Limit { message },
            ErrorKind::Corrupt | ErrorKind::Internal => Error::Internal { message },
        }
    }
}
