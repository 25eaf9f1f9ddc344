//! The seam between the engine and the file system.
//!
//! The engine touches files only through [`Vfs`]. [`RealVfs`] is the operating system; [`SimVfs`] keeps files in
//! memory, loses what was not synced, tears writes and fails on command, so that a test can crash the engine at
//! every single write and sync; [`FaultyVfs`] is the operating system's with a disk that becomes slow or full. What the
//! engine may rely on is what POSIX promises and nothing more:
//!
//! - bytes appended are visible to readers at once, and durable after [`WritableFile::sync`];
//! - a name created, renamed or removed is durable after [`Vfs::sync_dir`] of its folder;
//! - a rename replaces the target atomically;
//! - after a failed sync, nothing is known about the file any more (rule D3).

mod disk;
mod fault;
mod faulty;
mod real;
mod sim;

pub use fault::{FAULT_EXIT_CODE, exit_on_map_faults};
pub use faulty::{DiskFaults, FaultyVfs};
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
    /// Asks the system to begin writing what was appended, without waiting, so that the sync finds little to do. For a file
    /// that was created.
    ///
    /// # Errors
    /// When it cannot be written: the system says so here and may not say it again, so what is in the file is not known
    /// any more.
    fn begin_writeback(&mut self) -> io::Result<()> {
        Ok(())
    }
    /// Makes the file `bytes` long if it is shorter; what is not appended yet reads as zeros, and takes no space. Syncs
    /// are faster as long as the length stays what it is. No more than advice, and only for a file that was created.
    fn reserve(&mut self, _bytes: u64) {}
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
pub trait Vfs: std::fmt::Debug + Send + Sync {
    /// Creates a file, or empties the one of this name, for appending.
    fn create(&self, path: &Path) -> io::Result<Box<dyn WritableFile>>;
    /// Opens an existing file for appending at its end.
    fn open_append(&self, path: &Path) -> io::Result<Box<dyn WritableFile>>;
    /// Opens an existing file for reading.
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn ReadableFile>>;
    /// The whole file as it is now, mapped into memory. The file must not be truncated while the bytes live.
    fn map(&self, path: &Path) -> io::Result<Bytes>;
    /// Says that a part of a map will be read soon, so that it may be fetched by then. No more than advice.
    fn will_need(&self, _part: &[u8]) {}
    /// Cuts (never extends) a file to `length` bytes; durable after the next sync of the file.
    fn truncate(&self, path: &Path, length: u64) -> io::Result<()>;
    /// Renames a file, replacing the target.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file that is never written again a second name: a hard link where the file system has them, else a
    /// synced copy. The name must not be taken; it is durable after a sync of its folder.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.exists(to)? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut file = self.create(to)?;
        file.append(&self.map(from)?)?;
        file.sync()
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Both file systems keep the same promises while nothing crashes.
    fn conforms(vfs: &dyn Vfs, dir: &Path) {
        let (path, other) = (dir.join("a"), dir.join("b"));
        vfs.create_dir_all(dir).unwrap();
        let mut file = vfs.create(&path).unwrap();
        file.append(b"hello ").unwrap();
        file.append(b"world").unwrap();
        file.sync().unwrap();
        vfs.sync_dir(dir).unwrap();
        assert_eq!(vfs.map(&path).unwrap(), &b"hello world"[..]);
        let reader = vfs.open_read(&path).unwrap();
        let mut buffer = [0; 5];
        reader.read_exact_at(&mut buffer, 6).unwrap();
        assert_eq!((&buffer, reader.len().unwrap()), (b"world", 11));
        assert!(reader.read_exact_at(&mut buffer, 7).is_err());
        vfs.truncate(&path, 5).unwrap();
        vfs.truncate(&path, 50).unwrap();
        let mut file = vfs.open_append(&path).unwrap();
        file.append(b"!").unwrap();
        file.sync().unwrap();
        assert_eq!(vfs.map(&path).unwrap(), &b"hello!"[..]);
        vfs.create(&other).unwrap();
        assert!(
            vfs.open_read(&other).unwrap().is_empty().unwrap()
                && vfs.map(&other).unwrap().is_empty()
        );
        vfs.rename(&path, &other).unwrap();
        assert!(!vfs.exists(&path).unwrap() && vfs.exists(&other).unwrap());
        assert_eq!(vfs.list(dir).unwrap(), ["b"]);
        vfs.link(&other, &path).unwrap();
        assert!(vfs.link(&other, &path).is_err(), "the name is taken");
        vfs.remove(&other).unwrap();
        assert_eq!(vfs.map(&path).unwrap(), &b"hello!"[..]);
        vfs.rename(&path, &other).unwrap();
        let mut file = vfs.create(&path).unwrap();
        file.append(b"one").unwrap();
        file.reserve(6);
        file.append(b"two").unwrap();
        assert_eq!(vfs.map(&path).unwrap(), &b"onetwo"[..]);
        file.reserve(8);
        assert_eq!(vfs.map(&path).unwrap(), &b"onetwo\0\0"[..]);
        file.append(b"3").unwrap();
        vfs.truncate(&path, 7).unwrap();
        file.sync().unwrap();
        assert_eq!(vfs.map(&path).unwrap(), &b"onetwo3"[..]);
        vfs.remove(&path).unwrap();
        let lock = vfs.lock(&dir.join("c")).unwrap();
        let held = vfs.lock(&dir.join("c"));
        assert!(matches!(held, Err(LockError::Held(Some(pid))) if pid == std::process::id()));
        drop(lock);
        drop(vfs.lock(&dir.join("c")).unwrap());
        vfs.remove(&other).unwrap();
        assert!(vfs.open_append(&other).is_err() && vfs.map(&other).is_err());
    }

    #[test]
    fn both_file_systems_conform() {
        conforms(&SimVfs::new(), Path::new("/sim/db"));
        let folder = tempfile::tempdir().unwrap();
        conforms(&RealVfs, &folder.path().join("db"));
    }

    #[test]
    fn a_crash_loses_what_was_not_synced() {
        let (vfs, dir) = (SimVfs::new(), Path::new("/d"));
        let write = |name: &str, sync: bool| {
            let mut file = vfs.create(&dir.join(name)).unwrap();
            file.append(b"old").unwrap();
            file.sync().unwrap();
            file.append(b"new").unwrap();
            if sync {
                file.sync().unwrap();
            }
            file
        };
        let (mut synced, _unsynced) = (write("synced", true), write("unsynced", false));
        vfs.sync_dir(dir).unwrap();
        let _nameless = write("nameless", true);
        vfs.crash(CrashLoss::Everything);
        assert_eq!(vfs.list(dir).unwrap(), ["synced", "unsynced"]);
        assert_eq!(vfs.read(&dir.join("synced")).unwrap(), b"oldnew");
        assert_eq!(vfs.read(&dir.join("unsynced")).unwrap(), b"old");
        assert!(
            synced.append(b"x").is_err(),
            "files opened before the crash are dead"
        );
    }

    #[test]
    fn a_failed_sync_is_never_made_good() {
        let (vfs, path) = (SimVfs::new(), Path::new("/d/f"));
        let mut file = vfs.create(path).unwrap();
        vfs.sync_dir(Path::new("/d")).unwrap();
        file.append(b"lost").unwrap();
        vfs.fail_at(vfs.operations() + 1, Fault::Io);
        assert!(file.sync().is_err());
        assert!(file.sync().is_ok());
        vfs.crash(CrashLoss::Everything);
        assert!(vfs.read(path).unwrap().is_empty());
    }
}
