//! The kinds of failure, named by what the caller must do. Each crate has its
//! own detailed error; where one crosses a service it carries one of these.

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The caller sent something wrong: change the request.
    Invalid,
    /// Another transaction got in the way: retry the transaction.
    Conflict,
    /// No quorum, starting or stopping: nothing was done, try again later.
    Unavailable,
    /// It may or may not have happened.
    Unknown,
    /// A configured limit was hit.
    Limit,
    /// Data on disk is damaged.
    Corrupt,
    /// A bug, or a fault with no better name.
    Internal,
}

/// An error of this crate: a kind and a sentence that says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What the caller can do about it.
    pub kind: ErrorKind,
    /// For people.
    pub message: String,
}

impl Error {
    /// An error of a kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error {
            kind,
            message: message.into(),
        }
    }

    /// The caller sent something wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// Bytes that do not decode.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
