//! [`FaultyVfs`]: the file system of the operating system, with a disk that can be made slow or full while the process
//! runs. For tests of whole processes, whose files outlive them; tests of one engine have [`super::SimVfs`].

use super::{DirLock, LockError, ReadableFile, RealVfs, Vfs, WritableFile};
use bytes::Bytes;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What is wrong with a disk now.
#[derive(Debug, Default)]
pub struct DiskFaults {
    sync_delay_us: AtomicU64,
    is_full: AtomicBool,
}

impl DiskFaults {
    /// From now on a sync takes so much longer than it would.
    pub fn delay_syncs(&self, delay: Duration) {
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.sync_delay_us.store(micros, Ordering::Relaxed);
    }

    /// From now on there is no room for another byte or file; or there is again.
    pub fn fill(&self, is_full: bool) {
        self.is_full.store(is_full, Ordering::Relaxed);
    }

    fn before_sync(&self) {
        let micros = self.sync_delay_us.load(Ordering::Relaxed);
        if micros > 0 {
            std::thread::sleep(Duration::from_micros(micros));
        }
    }

    fn before_growth(&self) -> io::Result<()> {
        match self.is_full.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

/// [`RealVfs`] on a disk with faults.
#[derive(Debug, Clone, Default)]
pub struct FaultyVfs {
    real: RealVfs,
    faults: Arc<DiskFaults>,
}

impl FaultyVfs {
    /// A disk with these faults.
    pub fn new(faults: Arc<DiskFaults>) -> Self {
        FaultyVfs {
            real: RealVfs,
            faults,
        }
    }

    fn wrap(&self, file: Box<dyn WritableFile>) -> Box<dyn WritableFile> {
        let faults = Arc::clone(&self.faults);
        Box::new(FaultyFile { file, faults })
    }
}

struct FaultyFile {
    file: Box<dyn WritableFile>,
    faults: Arc<DiskFaults>,
}

impl WritableFile for FaultyFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.faults.before_growth()?;
        self.file.append(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.faults.before_sync();
        self.file.sync()
    }

    fn begin_writeback(&mut self) -> io::Result<()> {
        self.file.begin_writeback()
    }

    fn reserve(&mut self, bytes: u64) {
        self.file.reserve(bytes);
    }
}

impl Vfs for FaultyVfs {
    fn create(&self, path: &Path) -> io::Result<Box<dyn WritableFile>> {
        self.faults.before_growth()?;
        Ok(self.wrap(self.real.create(path)?))
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn WritableFile>> {
        Ok(self.wrap(self.real.open_append(path)?))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn ReadableFile>> {
        self.real.open_read(path)
    }

    fn map(&self, path: &Path) -> io::Result<Bytes> {
        self.real.map(path)
    }

    fn will_need(&self, part: &[u8]) {
        self.real.will_need(part);
    }

    fn truncate(&self, path: &Path, length: u64) -> io::Result<()> {
        self.real.truncate(path, length)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.real.rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.faults.before_growth()?;
        self.real.link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.real.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.real.list(dir)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.real.exists(path)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.real.create_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.faults.before_sync();
        self.real.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn DirLock>, LockError> {
        self.real.lock(path)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_full_disk_takes_nothing_until_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let faults = Arc::new(DiskFaults::default());
        let vfs = FaultyVfs::new(Arc::clone(&faults));
        let path = dir.path().join("file");
        let mut file = vfs.create(&path).unwrap();
        file.append(b"one").unwrap();
        faults.fill(true);
        let full = |done: io::Result<()>| {
            assert_eq!(done.unwrap_err().kind(), io::ErrorKind::StorageFull);
        };
        full(file.append(b"two"));
        full(vfs.create(&dir.path().join("other")).map(drop));
        full(vfs.link(&path, &dir.path().join("linked")));
        // What is there stays, and can go.
        file.sync().unwrap();
        assert_eq!(vfs.map(&path).unwrap(), b"one".as_slice());
        faults.fill(false);
        file.append(b"two").unwrap();
        assert_eq!(vfs.map(&path).unwrap(), b"onetwo".as_slice());
    }
}
