//! [`RealVfs`]: the file system of the operating system.
//!
//! Syncs are `fdatasync`, which also covers the length of the file; names are made durable by syncing the folder.
//! The folder lock is an advisory lock on the open lock file, so it ends with the process however that ends.

use super::fault::Mapped;
use super::{DirLock, LockError, ReadableFile, Vfs, WritableFile};
use bytes::Bytes;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// The real file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealVfs;

struct AppendFile {
    file: File,
    /// False if the system appends at the end of the file, wherever that is, and nothing is known about it here.
    is_new: bool,
    /// Bytes appended.
    end: u64,
    /// Of these the system was asked to write so many, or they are synced.
    begun: u64,
}

impl WritableFile for AppendFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.begun = self.end;
        Ok(())
    }

    fn begin_writeback(&mut self) -> io::Result<()> {
        // Whole pages: the last one is going to change.
        let end = self.end & !0xfff;
        if !self.is_new || end <= self.begun {
            return Ok(());
        }
        #[cfg(target_os = "linux")]
        if let (Ok(begun), Ok(length)) = (self.begun.try_into(), (end - self.begun).try_into()) {
            use std::os::fd::AsRawFd;
            let (file, flags) = (self.file.as_raw_fd(), libc::SYNC_FILE_RANGE_WRITE);
            // SAFETY: an open file and three numbers.
            if unsafe { libc::sync_file_range(file, begun, length, flags) } != 0 {
                let error = io::Error::last_os_error();
                if let Some(libc::EIO | libc::ENOSPC | libc::EDQUOT) = error.raw_os_error() {
                    return Err(error);
                }
                // It does not do that here: then the sync does all of it.
            }
        }
        self.begun = end;
        Ok(())
    }

    fn reserve(&mut self, bytes: u64) {
        let is_shorter = { self.file.metadata() }.is_ok_and(|metadata| metadata.len() < bytes);
        if self.is_new && is_shorter {
            // What fails here costs time and nothing else.
            let _ = self.file.set_len(bytes);
        }
    }
}

struct ReadFile(File);

impl ReadableFile for ReadFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

/// The open lock file; closing it gives the lock back.
struct FileLock(
    #[expect(
        dead_code,
        reason = "held for its effect: the lock lives as long as the file"
    )]
    File,
);

impl DirLock for FileLock {}

impl Vfs for RealVfs {
    fn create(&self, path: &Path) -> io::Result<Box<dyn WritableFile>> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        Ok(Box::new(AppendFile {
            file,
            is_new: true,
            end: 0,
            begun: 0,
        }))
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn WritableFile>> {
        let file = OpenOptions::new().append(true).open(path)?;
        Ok(Box::new(AppendFile {
            file,
            is_new: false,
            end: 0,
            begun: 0,
        }))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn ReadableFile>> {
        Ok(Arc::new(ReadFile(File::open(path)?)))
    }

    fn map(&self, path: &Path) -> io::Result<Bytes> {
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Bytes::new());
        }
        // SAFETY: the map is read-only and private. Its contents stay what they are because the files the engine
        // maps are written once: tables are mapped after their last write, logs are mapped before anything else
        // of this process opens them, none is truncated while mapped, and the folder lock keeps other
        // processes of the engine out. What is left is a read error of the disk, which arrives as SIGBUS and not
        // as wrong bytes (rule D4).
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Bytes::from_owner(Mapped::new(map, path)))
    }

    fn will_need(&self, part: &[u8]) {
        // SAFETY: asks for a number, touches no memory.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let Ok(page) = usize::try_from(page) else {
            return;
        };
        let first = part.as_ptr() as usize;
        let start = first - first % page;
        // SAFETY: this advice changes neither contents nor protection of memory, whatever lies there; `part` is
        // borrowed, so what is asked for is mapped. What it answers does not matter: the pages come with the first
        // read if not before.
        unsafe {
            libc::madvise(
                start as *mut libc::c_void,
                first - start + part.len(),
                libc::MADV_WILLNEED,
            )
        };
    }

    fn truncate(&self, path: &Path, length: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        if file.metadata()?.len() > length {
            file.set_len(length)?;
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        match fs::hard_link(from, to) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::CrossesDevices | io::ErrorKind::Unsupported
                ) =>
            {
                let mut copy = OpenOptions::new().write(true).create_new(true).open(to)?;
                io::copy(&mut File::open(from)?, &mut copy)?;
                copy.sync_all()
            }
            result => result,
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn DirLock>, LockError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(LockError::Io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let read = file.read_to_string(&mut text);
                return Err(LockError::Held(
                    read.ok().and_then(|_| text.trim().parse().ok()),
                ));
            }
            Err(TryLockError::Error(error)) => return Err(LockError::Io(error)),
        }
        file.set_len(0).map_err(LockError::Io)?;
        writeln!(file, "{}", std::process::id()).map_err(LockError::Io)?;
        Ok(Box::new(FileLock(file)))
    }
}
