//! The one error type of the crate. What crosses a service becomes one of the
//! contract's codes there; here stands what an operator needs to know.

use lineradb_common::ErrorKind;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The storage engine refused.
    #[error("storage: {0}")]
    Storage(#[from] lineradb_lsm::Error),
    /// A file or socket operation failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// Bytes on disk or on the wire do not decode.
    #[error("corrupt: {0}")]
    Corrupt(String),
    /// The request cannot be carried out, now or ever; the text says why.
    #[error("refused: {0}")]
    Refused(String),
    /// Not now: no quorum, no leader, starting or stopping.
    #[error("unavailable: {0}")]
    Unavailable(String),
}

impl Error {
    /// An I/O error with what was being done.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Error::Io {
            what: what.into(),
            source,
        }
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Storage(error) if error.is_corruption() => ErrorKind::Corrupt,
            Error::Storage(_) | Error::Io { .. } => ErrorKind::Internal,
            Error::Corrupt(_) => ErrorKind::Corrupt,
            Error::Refused(_) => ErrorKind::Invalid,
            Error::Unavailable(_) => ErrorKind::Unavailable,
        }
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        std::io::Error::other(error)
    }
}
