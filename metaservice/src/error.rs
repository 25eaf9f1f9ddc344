//! What can go wrong in the metaservice, and what a caller is told.

use lineradb_common::ErrorKind;

/// An error of the metaservice.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration or a request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// Bytes on disk or on the wire do not decode.
    #[error("{0}")]
    Corrupt(String),
    /// The store refused.
    #[error(transparent)]
    Storage(#[from] lineradb_lsm::Error),
    /// No leader, no quorum, starting or stopping.
    #[error("{0}")]
    Unavailable(String),
    /// A proposal whose fate is not known.
    #[error("{0}")]
    Unknown(String),
    /// An address could not be bound.
    #[error("cannot listen on {address} ({flag}): {source}")]
    Listen {
        /// The address.
        address: String,
        /// The flag that changes it.
        flag: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// Anything else.
    #[error("{0}")]
    Internal(String),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Invalid(_) | Error::Listen { .. } => ErrorKind::Invalid,
            Error::Corrupt(_) => ErrorKind::Corrupt,
            Error::Storage(e) if e.is_corruption() => ErrorKind::Corrupt,
            Error::Storage(_) | Error::Internal(_) => ErrorKind::Internal,
            Error::Unavailable(_) => ErrorKind::Unavailable,
            Error::Unknown(_) => ErrorKind::Unknown,
        }
    }
}

impl From<lineradb_common::Error> for Error {
    fn from(error: lineradb_common::Error) -> Self {
        match error.kind {
            ErrorKind::Invalid => Error::Invalid(error.message),
            ErrorKind::Corrupt => Error::Corrupt(error.message),
            ErrorKind::Unavailable => Error::Unavailable(error.message),
            ErrorKind::Unknown => Error::Unknown(error.message),
            _ => Error::Internal(error.message),
        }
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error.kind() {
            ErrorKind::Invalid => tonic::Status::invalid_argument(message),
            ErrorKind::Unavailable => tonic::Status::unavailable(message),
            ErrorKind::Unknown => tonic::Status::deadline_exceeded(message),
            ErrorKind::Corrupt => tonic::Status::data_loss(message),
            _ => tonic::Status::internal(message),
        }
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        std::io::Error::other(error.to_string())
    }
}
