//! LineraDB's storage engine: a log-structured merge tree. SKELETON of the API, the engine follows in minutes.
#![allow(dead_code)]
mod batch;
mod coding;
mod error;
mod options;
mod skel;
mod slice;
mod statistics;
mod types;
mod vfs;

pub use batch::WriteBatch;
pub use error::{Error, Result};
pub use options::{Background, Compression, Options, WriteOptions};
pub use skel::{Db, Iter, Snapshot};
pub use slice::Slice;
pub use statistics::Statistics;
pub use types::{BATCH_BYTES_MAX, KEY_BYTES_MAX, KeyspaceId, SeqNo, VALUE_BYTES_MAX};
pub use vfs::{
    CrashLoss, DirLock, Fault, LockError, ReadableFile, RealVfs, SimVfs, Vfs, WritableFile,
};
