//! Where a received snapshot waits for its installation: a file of its own.
//!
//! A snapshot may be larger than memory, and installing it takes many batches.
//! So its chunks go to a file as they arrive, and the file is synced before the
//! replica gives up anything that it holds: an installation that a crash
//! interrupts is done again from the file (see [`super::install`]). A file that
//! no replica is waiting for is removed at the next start.
//!
//! A file is a sequence of frames: length (u32, little endian) and a chunk of
//! rows, which carries its own checksum.

use super::Row;
use super::chunks::checksum;
use crate::command::Tree;
use crate::{Error, Result};
use bytes::Bytes;
use lineradb_lsm::{ReadableFile, Vfs, WritableFile};
use lineradb_proto::raft::v1 as proto;
use prost::Message;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What the files' names end with.
const SUFFIX: &str = ".snapshot";
/// After so many bytes the system is asked to write them, so that the sync at the end is short.
const WRITEBACK_BYTES: usize = 4 << 20;

/// The folder of the snapshots that are being received or installed.
pub struct Spool {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    next: AtomicU64,
}

impl Spool {
    /// Opens the folder, or makes it.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn open(vfs: Arc<dyn Vfs>, dir: &Path) -> Result<Arc<Spool>> {
        let failed = |error| Error::io(format!("open {}", dir.display()), error);
        vfs.create_dir_all(dir).map_err(failed)?;
        let names = vfs.list(dir).map_err(failed)?;
        let last = { names.iter() }
            .filter_map(|name| u64::from_str_radix(name.strip_suffix(SUFFIX)?, 16).ok())
            .max();
        Ok(Arc::new(Spool {
            vfs,
            dir: dir.to_owned(),
            next: AtomicU64::new(last.map_or(0, |last| last + 1)),
        }))
    }

    /// Removes the snapshots that nobody waits for. One that cannot be removed
    /// is in nobody's way: the node starts all the same.
    pub(crate) fn sweep(&self, wanted: &BTreeSet<String>) {
        let names = self.vfs.list(&self.dir).unwrap_or_else(|error| {
            tracing::warn!(dir = %self.dir.display(), %error, "left-over snapshots stay");
            Vec::new()
        });
        for name in names {
            if !name.ends_with(SUFFIX) || wanted.contains(&name) {
                continue;
            }
            let path = self.dir.join(&name);
            if let Err(error) = self.vfs.remove(&path) {
                tracing::warn!(path = %path.display(), %error, "a left-over snapshot stays");
            }
        }
    }

    /// Begins a file.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(crate) fn create(self: &Arc<Self>) -> Result<Writer> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("{number:016x}{SUFFIX}");
        let path = self.dir.join(&name);
        let file = { self.vfs.create(&path) }
            .map_err(|error| Error::io(format!("create {}", path.display()), error))?;
        Ok(Writer {
            file,
            behind: 0,
            spooled: Spooled::new(self, name, 0),
        })
    }

    /// The file of an installation that a crash interrupted.
    pub(crate) fn find(self: &Arc<Self>, name: &str, rows: u64) -> Spooled {
        let found = Spooled::new(self, name.to_owned(), rows);
        found.keep();
        found
    }
}

/// A file that grows. Dropped before it is sealed, it is removed.
pub(crate) struct Writer {
    file: Box<dyn WritableFile>,
    /// Bytes that the system was not asked to write yet.
    behind: usize,
    spooled: Spooled,
}

impl Writer {
    /// Appends a chunk.
    pub(crate) fn put(&mut self, rows: &proto::SnapshotRows) -> Result<()> {
        let mut frame = Vec::with_capacity(4 + rows.encoded_len());
        frame.extend_from_slice(&(rows.encoded_len() as u32).to_le_bytes());
        rows.encode(&mut frame)
            .map_err(|error| self.spooled.failed("write", io::Error::other(error)))?;
        self.file
            .append(&frame)
            .map_err(|error| self.spooled.failed("write", error))?;
        self.behind += frame.len();
        if self.behind >= WRITEBACK_BYTES {
            self.behind = 0;
            let asked = self.file.begin_writeback();
            asked.map_err(|error| self.spooled.failed("write", error))?;
        }
        self.spooled.rows += rows.keys.len() as u64;
        Ok(())
    }

    /// Rows so far.
    pub(crate) fn rows(&self) -> u64 {
        self.spooled.rows
    }

    /// Makes the file and its name durable.
    pub(crate) fn seal(mut self) -> Result<Spooled> {
        let spool = &self.spooled.spool;
        let synced = self.file.sync();
        synced
            .and_then(|()| spool.vfs.sync_dir(&spool.dir))
            .map_err(|error| self.spooled.failed("sync", error))?;
        Ok(self.spooled)
    }
}

/// A complete file. Dropped, it is removed, unless an installation has begun.
pub(crate) struct Spooled {
    spool: Arc<Spool>,
    name: String,
    rows: u64,
    keep: AtomicBool,
}

impl Spooled {
    fn new(spool: &Arc<Spool>, name: String, rows: u64) -> Self {
        Spooled {
            spool: Arc::clone(spool),
            name,
            rows,
            keep: AtomicBool::new(false),
        }
    }

    fn path(&self) -> PathBuf {
        self.spool.dir.join(&self.name)
    }

    fn failed(&self, what: &str, error: io::Error) -> Error {
        Error::io(format!("{what} {}", self.path().display()), error)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// From now on a crash, or a failure, needs the file.
    pub(crate) fn keep(&self) {
        self.keep.store(true, Ordering::Release);
    }

    /// It is not needed any more. A file that stays behind is removed at the
    /// next start.
    pub(crate) fn done(self) {
        self.keep.store(false, Ordering::Release);
    }

    /// Visits every row in order; at most one chunk is in memory.
    ///
    /// # Errors
    /// When the file cannot be read, is not what was written, or `visit` fails.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(Row) -> Result<()>) -> Result<()> {
        let damaged = |what: &str| Error::Corrupt(format!("{what} in {}", self.path().display()));
        let file = { self.spool.vfs.open_read(&self.path()) }
            .map_err(|error| self.failed("open", error))?;
        let end = file.len().map_err(|error| self.failed("read", error))?;
        let (mut at, mut rows) = (0, 0);
        while at < end {
            let mut length = [0; 4];
            self.read(file.as_ref(), &mut length, at)?;
            let length = u64::from(u32::from_le_bytes(length));
            if length > end - at {
                return Err(damaged("a torn frame"));
            }
            let mut frame = vec![0; length as usize];
            self.read(file.as_ref(), &mut frame, at + 4)?;
            at += 4 + length;
            let chunk = proto::SnapshotRows::decode(Bytes::from(frame))
                .map_err(|_| damaged("a malformed frame"))?;
            if chunk.keys.len() != chunk.values.len() || checksum(&chunk) != chunk.checksum {
                return Err(damaged("a wrong checksum"));
            }
            let tree = tree_of(chunk.keyspace).ok_or_else(|| damaged("an unknown tree"))?;
            for (key, value) in chunk.keys.into_iter().zip(chunk.values) {
                rows += 1;
                visit(Row { tree, key, value })?;
            }
        }
        if rows == self.rows {
            Ok(())
        } else {
            Err(damaged("missing rows"))
        }
    }

    fn read(&self, file: &dyn ReadableFile, buffer: &mut [u8], at: u64) -> Result<()> {
        file.read_exact_at(buffer, at)
            .map_err(|error| self.failed("read", error))
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        if !self.keep.load(Ordering::Acquire)
            && let Err(error) = self.spool.vfs.remove(&self.path())
        {
            tracing::debug!(path = %self.path().display(), %error, "left for the next start");
        }
    }
}

/// The replicated tree of a number.
pub(super) fn tree_of(keyspace: u32) -> Option<Tree> {
    u8::try_from(keyspace)
        .ok()
        .and_then(Tree::from_number)
        .filter(|tree| *tree != Tree::Local)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lineradb_lsm::SimVfs;

    fn chunk(key: &'static [u8]) -> proto::SnapshotRows {
        let mut rows = proto::SnapshotRows {
            keyspace: 0,
            keys: vec![Bytes::from_static(key)],
            values: vec![Bytes::from_static(b"value")],
            checksum: 0,
        };
        rows.checksum = checksum(&rows);
        rows
    }

    fn keys(spooled: &Spooled) -> Result<Vec<Bytes>> {
        let mut keys = Vec::new();
        spooled.for_each(|row| {
            keys.push(row.key);
            Ok(())
        })?;
        Ok(keys)
    }

    #[test]
    fn a_sealed_file_survives_and_others_go() {
        let disk = SimVfs::new();
        let dir = Path::new("/snapshots");
        let spool = Spool::open(Arc::new(disk.clone()), dir).unwrap();
        let mut writer = spool.create().unwrap();
        writer.put(&chunk(b"a")).unwrap();
        writer.put(&chunk(b"b")).unwrap();
        let spooled = writer.seal().unwrap();
        spooled.keep();
        let name = spooled.name().to_owned();
        drop(spooled);
        // Not sealed: gone when it is dropped, or swept out.
        drop(spool.create().unwrap());
        let lingering = spool.create().unwrap().seal().unwrap();
        lingering.keep();
        drop(lingering);
        disk.crash(lineradb_lsm::CrashLoss::Everything);
        let spool = Spool::open(Arc::new(disk.clone()), dir).unwrap();
        let foreign = dir.join("lost+found");
        let mut file = disk.create(&foreign).unwrap();
        file.sync().unwrap();
        drop(file);
        spool.sweep(&BTreeSet::from([name.clone()]));
        // What is not a snapshot is not ours to remove.
        let mut left = disk.list(dir).unwrap();
        left.sort();
        assert_eq!(left, [name.as_str(), "lost+found"]);
        disk.remove(&foreign).unwrap();
        let found = spool.find(&name, 2);
        assert_eq!(keys(&found).unwrap(), [&b"a"[..], b"b"]);
        // A file of its own again, not the one that waits.
        assert_ne!(spool.create().unwrap().spooled.name(), name);
        assert!(keys(&spool.find(&name, 3)).is_err());
        disk.corrupt(&dir.join(&name), 12, 1).unwrap();
        assert!(keys(&found).is_err());
        found.done();
        assert!(disk.list(dir).unwrap().is_empty());
    }
}
