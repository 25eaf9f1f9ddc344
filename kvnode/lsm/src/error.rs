//! The one error type of the crate.
//!
//! Every variant says what was tried and on which file, because the reader of the message is usually a person
//! with a broken disk. The type is `Clone`: one failed write of a commit group answers several writers, and a
//! failed database (rule D3) repeats the first cause to everyone who comes later.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in the storage engine.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on a file or folder.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb ("write", "sync", "open").
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: Arc<io::Error>,
    },
    /// The disk (or the quota) is full.
    #[error("disk full: cannot {operation} {}", path.display())]
    NoSpace {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
    },
    /// Bytes on disk are not what was written there. Nothing of the damaged part was served.
    #[error("corruption in {} ({part} at offset {offset}): {what}", file.display())]
    Corruption {
        /// The damaged file.
        file: PathBuf,
        /// Which part of the file: "data block", "footer", "log record" and so on.
        part: &'static str,
        /// Where the damaged part begins.
        offset: u64,
        /// What did not hold.
        what: String,
    },
    /// The file was written by a format version that this build does not know.
    #[error("{} has format version {found}, this build reads version {supported}", file.display())]
    UnsupportedFormat {
        /// The file.
        file: PathBuf,
        /// The version found in its header.
        found: u32,
        /// The version this build knows.
        supported: u32,
    },
    /// Another process (or another `Db` of this one) has the folder open.
    #[error("{} is in use by {}", dir.display(), holder(*pid))]
    Locked {
        /// The folder.
        dir: PathBuf,
        /// The process that holds the lock, when its id could be read.
        pid: Option<u32>,
    },
    /// An earlier write, sync or background job failed for good (rule D3); no write is taken any more.
    #[error("the database failed and takes no more writes: {cause}")]
    Failed {
        /// The first failure.
        cause: Arc<Error>,
    },
    /// A background job panicked: a bug. The database takes no more writes.
    #[error("the {job} job panicked")]
    JobPanicked {
        /// Which job.
        job: &'static str,
    },
    /// The database was closed.
    #[error("the database is closed")]
    Closed,
    /// No keyspace of this name is declared in the options or on disk.
    #[error("there is no keyspace named {name:?}")]
    UnknownKeyspace {
        /// The name asked for.
        name: String,
    },
    /// A key, value or batch is beyond the limits of the format.
    #[error("{what} of {bytes} bytes is larger than the limit of {bytes_max}")]
    TooLarge {
        /// "key", "value" or "batch".
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// A table file that cannot be ingested, or keys that cannot make one.
    #[error("table {}: {what}", path.display())]
    InvalidTable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The options contradict themselves or the folder.
    #[error("invalid options: {what}")]
    InvalidOptions {
        /// What is wrong.
        what: String,
    },
}

fn holder(pid: Option<u32>) -> String {
    match pid {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}

impl Error {
    /// Wraps an I/O error with what was tried on which path. A full disk gets its own variant.
    pub fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace {
                operation,
                path: path.to_owned(),
            },
            _ => Self::Io {
                operation,
                path: path.to_owned(),
                source: Arc::new(source),
            },
        }
    }

    /// Names a damaged part of a file.
    pub fn corruption(
        file: &Path,
        part: &'static str,
        offset: u64,
        what: impl Into<String>,
    ) -> Self {
        Self::Corruption {
            file: file.to_owned(),
            part,
            offset,
            what: what.into(),
        }
    }

    /// True if the error, or the failure behind it, says that stored bytes are damaged.
    pub fn is_corruption(&self) -> bool {
        match self {
            Self::Corruption { .. } | Self::UnsupportedFormat { .. } => true,
            Self::Failed { cause } => cause.is_corruption(),
            _ => false,
        }
    }

    /// True if the error, or the failure behind it, is a full disk.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::NoSpace { .. } => true,
            Self::Failed { cause } => cause.is_no_space(),
            _ => false,
        }
    }
}
