//! What can stop a read of versions.

use lineradb_proto::shard::v1 as proto;

/// Result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a read could not be answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Provisional writes of other transactions stand in the way.
    #[error("undecided writes of other transactions are in the way")]
    Locked(Vec<proto::Lock>),
    /// The storage engine failed, or its bytes do not decode.
    #[error(transparent)]
    Node(#[from] crate::Error),
}

impl From<lineradb_lsm::Error> for Error {
    fn from(error: lineradb_lsm::Error) -> Self {
        Error::Node(error.into())
    }
}

impl Error {
    /// Stored bytes that do not decode.
    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Error::Node(crate::Error::Corrupt(what.into()))
    }
}

impl From<Error> for proto::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Locked(locks) => proto::Error {
                code: proto::ErrorCode::Locked.into(),
                message: "undecided writes of other transactions are in the way".into(),
                locks,
                ..Default::default()
            },
            Error::Node(error) => proto::Error {
                code: proto::ErrorCode::Internal.into(),
                message: error.to_string(),
                ..Default::default()
            },
        }
    }
}
