//! The error of SQL statements: PostgreSQL's fields, and whether to retry.

use lineradb_client::Error as ClientError;
use lineradb_common::sql::ValueError;

/// Result of this crate.
pub type Result<T, E = SqlError> = std::result::Result<T, E>;

/// Why a statement failed, as PostgreSQL reports it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct SqlError {
    /// Five characters of PostgreSQL's appendix A.
    pub sqlstate: String,
    /// For people.
    pub message: String,
    /// More of it.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<Box<str>>,
    /// Character of the statement's text, counted from 1.
    pub position: Option<usize>,
    /// Running the same transaction again may succeed, and nothing of it
    /// happened.
    pub retryable: bool,
    /// What the transaction layer said, where it was the cause: decides about
    /// retries inside the gateway and about "already exists".
    pub cause: Option<Box<ClientError>>,
}

impl SqlError {
    /// An error with a code.
    pub fn new(sqlstate: impl Into<String>, message: impl Into<String>) -> Self {
        SqlError {
            sqlstate: sqlstate.into(),
            message: message.into(),
            detail: None,
            hint: None,
            position: None,
            retryable: false,
            cause: None,
        }
    }

    /// 0A000: PostgreSQL has it, we do not yet.
    pub fn unsupported(feature: impl std::fmt::Display) -> Self {
        Self::new("0A000", format!("{feature} is not supported yet"))
    }

    /// 42601: wrong syntax.
    pub fn syntax(message: impl Into<String>) -> Self {
        Self::new("42601", message)
    }

    /// 42P01: no such table.
    pub fn undefined_table(name: impl std::fmt::Display) -> Self {
        Self::new("42P01", format!("relation \"{name}\" does not exist"))
    }

    /// 42703: no such column.
    pub fn undefined_column(name: impl std::fmt::Display) -> Self {
        Self::new("42703", format!("column \"{name}\" does not exist"))
    }

    /// XX000: a bug.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new("XX000", message)
    }

    /// With a detail.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// With a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into().into_boxed_str());
        self
    }

    /// With a position in the statement's text (characters, from 1).
    #[must_use]
    pub fn at(mut self, position: Option<usize>) -> Self {
        self.position = self.position.or(position);
        self
    }

    /// True when the schema that the statement was planned with is no longer in
    /// force: reload the catalog, plan again.
    pub fn is_schema_changed(&self) -> bool {
        matches!(
            self.cause.as_deref(),
            Some(ClientError::SchemaChanged { .. })
        )
    }
}

impl From<ClientError> for SqlError {
    fn from(error: ClientError) -> Self {
        let sqlstate = match &error {
            ClientError::Conflict { .. }
            | ClientError::SchemaChanged { .. }
            | ClientError::Aborted { .. } => "40001",
            ClientError::ConditionFailed { .. } => "23505",
            ClientError::Unknown { .. } => "40003",
            ClientError::Unavailable { .. } => "57P03",
            ClientError::LockTimeout { .. } => "55P03",
            ClientError::Deadlock { .. } => "40P01",
            ClientError::Invalid { .. } => "22023",
            ClientError::Limit { .. } => "54000",
            ClientError::IdempotencyMismatch => "22023",
            ClientError::Timeout => "57014",
            ClientError::HistoryGone { .. } => "72000",
            ClientError::Execution { sqlstate, .. } => sqlstate,
            ClientError::Internal { .. } => "XX000",
        };
        let message = match &error {
            ClientError::Conflict { message, .. } | ClientError::Aborted { message } => {
                format!("could not serialize access: {message}")
            }
            ClientError::LockTimeout { .. } => {
                "could not obtain a lock in time (lock_timeout)".to_owned()
            }
            ClientError::Timeout => "canceling statement due to statement timeout".to_owned(),
            other => other.to_string(),
        };
        let mut sql = SqlError::new(sqlstate, message);
        if sql.sqlstate == "40001" {
            sql.hint = Some("The transaction might succeed if retried.".into());
        }
        if let ClientError::Deadlock { detail } = &error {
            sql.detail = Some(detail.clone());
        }
        sql.retryable = error.is_retryable();
        sql.cause = Some(Box::new(error));
        sql
    }
}

impl From<ValueError> for SqlError {
    fn from(error: ValueError) -> Self {
        SqlError::new(error.sqlstate, error.message)
    }
}
