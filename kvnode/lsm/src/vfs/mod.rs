//! The seam between the engine and the file system.
//!
//! The engine touches files only through [`Vfs`]. [`RealVfs`] is the operating system; [`SimVfs`] keeps files in
//! memory, loses what was not synced, tears writes and fails on command, so that a test can crash the engine at
//! every single write and sync. What the engine may rely on is what POSIX promises and nothing more:
//!
//! - bytes appended are visible to readers at once, and durable after [`WritableFile::sync`];
//! - a name created, renamed or removed is durable after [`Vfs::sync_dir`] of its folder;
//! - a rename replaces the target atomically;
//! - after a failed sync, nothing is known about the file any more (rule D3).

mod real;
mod sim;

pub use real::RealVfs;
pub use sim::{CrashLoss, Fault, SimVfs};

use bytes::Bytes;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// A file open for appending.
pub trait WritableFile: Send {
    /// Appends all of `bytes`.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes everything appended so far durable (contents and length).
    fn sync(&mut self) -> io::Result<()>;
}

/// A file open for reading at any offset.
pub trait ReadableFile: Send + Sync {
    /// Fills `buffer` from `offset`; fails with `UnexpectedEof` if the file ends before.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Present length of the file.
    fn len(&self) -> io::Result<u64>;
    /// True if the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// Held while a folder is open; dropping it lets the next process in.
pub trait DirLock: Send + Sync {}

/// Why a lock was not given.
#[derive(Debug)]
pub enum LockError {
    /// Someone else has it; the process id if the lock file names one.
    Held(Option<u32>),
    /// The lock file could not be made or locked.
    Io(io::Error),
}

/// A file system.
pub trait Vfs: Send + Sync {
    /// Creates a file, or empties the one of this name, for appending.
    fn create(&self, path: &Path) -> io::Result<Box<dyn WritableFile>>;
    /// Opens an existing file for appending at its end.
    fn open_append(&self, path: &Path) -> io::Result<Box<dyn WritableFile>>;
    /// Opens an existing file for reading.
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn ReadableFile>>;
    /// The whole file as it is now, mapped into memory. The file must not be truncated while the bytes live.
    fn map(&self, path: &Path) -> io::Result<Bytes>;
    /// Cuts (never extends) a file to `length` bytes; durable after the next sync of the file.
    fn truncate(&self, path: &Path, length: u64) -> io::Result<()>;
    /// Renames a file, replacing the target.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Names of the entries of a folder, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Whether a file or folder of this name exists.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Creates a folder and its parents.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the exclusive lock of a folder by the lock file `path` and writes the own process id into it.
    fn lock(&self, path: &Path) -> Result<Box<dyn DirLock>, LockError>;
}
