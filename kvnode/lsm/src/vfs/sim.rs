//! [`SimVfs`]: a file system in memory with the manners of a bad disk.
//!
//! Two worlds are kept: what a running process sees, and what is durable. A sync moves a file's bytes from the
//! first to the second, a folder sync moves names. [`SimVfs::crash`] throws the first world away and continues
//! with the second plus, as [`CrashLoss`] says, some of what was never synced: the tail of a file torn at any
//! byte or with sectors missing in the middle, any subset of the unsynced renames and removals. All choices come
//! from one seed.
//!
//! Every operation that changes something has a number, counted from 1. [`SimVfs::fail_at`] makes one of them
//! fail; [`SimVfs::crash_at`] stops the world at one: it takes partial effect and everything after it fails,
//! until `crash()` is called. [`SimVfs::set_capacity`] fills the disk. [`SimVfs::corrupt`] flips bits.
//!
//! Reads are counted apart, and [`SimVfs::fail_read_at`] makes one of them fail.
//!
//! Not modelled: folders that get lost themselves.

use super::disk::{Inode, NameChange, State, Verdict, apply, dead, not_found};
use super::{DirLock, LockError, ReadableFile, Vfs, WritableFile};
use bytes::Bytes;
use parking_lot::Mutex;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a crash does to data that was never synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashLoss {
    /// All of it is gone.
    Everything,
    /// Nothing is lost: what a killed process leaves behind.
    Nothing,
    /// Some of it survives, chosen by this seed; the tail of a file may be torn or end in garbage.
    Torn(u64),
    /// The disk wrote in an order of its own: of the sectors that were never synced some survive, chosen by this
    /// seed, and the others hold zeros or garbage.
    Reordered(u64),
}

/// A failure to inject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The device answers with an I/O error. A sync that fails this way leaves the file never durable again.
    Io,
    /// The disk is full.
    NoSpace,
}

/// A simulated file system; clones share it.
#[derive(Debug, Clone, Default)]
pub struct SimVfs {
    state: Arc<Mutex<State>>,
}

impl SimVfs {
    /// An empty disk without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// An independent copy of the disk as it is now, without the locks.
    pub fn fork(&self) -> Self {
        let mut state = self.state.lock().clone();
        state.locks.clear();
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Number of changing operations so far.
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// The latest changing operations, oldest first, one line each: number, verb, path.
    pub fn trace(&self) -> Vec<String> {
        self.state.lock().trace.iter().cloned().collect()
    }

    /// Stops the world at the changing operation of this number (counted from the creation of the file system).
    pub fn crash_at(&self, operation: u64) {
        self.state.lock().crash_at = Some(operation);
    }

    /// Makes the changing operation of this number fail.
    pub fn fail_at(&self, operation: u64, fault: Fault) {
        self.state.lock().faults.insert(operation, fault);
    }

    /// Number of reads so far: opening for reading, mapping, reading, listing a folder, looking for a name.
    pub fn reads(&self) -> u64 {
        self.state.lock().reads
    }

    /// Makes the read of this number fail with an I/O error.
    pub fn fail_read_at(&self, read: u64) {
        self.state.lock().read_faults.insert(read);
    }

    /// Limits the bytes of all files together; `None` lifts the limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity = bytes;
    }

    /// Bytes of all files together.
    pub fn used(&self) -> u64 {
        self.state.lock().used()
    }

    /// Power off and on: unsynced data is treated as `loss` says, open files are dead, locks are free, and
    /// pending faults are forgotten.
    pub fn crash(&self, loss: CrashLoss) {
        self.state.lock().crash(loss);
    }

    /// Flips bits of one byte of a file, on the disk and for everyone who opens the file from now on.
    pub fn corrupt(&self, path: &Path, offset: u64, mask: u8) -> io::Result<()> {
        let mut state = self.state.lock();
        let id = state.inode(path)?;
        let inode = state.inodes.get_mut(&id).ok_or_else(|| not_found(path))?;
        for bytes in [&mut inode.current, &mut inode.durable] {
            if let Some(byte) = usize::try_from(offset)
                .ok()
                .and_then(|offset| bytes.get_mut(offset))
            {
                *byte ^= mask;
            }
        }
        Ok(())
    }

    /// The present contents of a file.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.state.lock();
        let id = state.inode(path)?;
        state
            .inodes
            .get(&id)
            .map(Inode::contents)
            .ok_or_else(|| not_found(path))
    }

    fn handle(&self, path: &Path, inode: u64, epoch: u64) -> SimFile {
        SimFile {
            state: Arc::clone(&self.state),
            path: path.to_owned(),
            inode,
            epoch,
        }
    }
}

struct SimFile {
    state: Arc<Mutex<State>>,
    path: PathBuf,
    inode: u64,
    epoch: u64,
}

impl WritableFile for SimFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let state = &mut *self.state.lock();
        if state.epoch != self.epoch {
            return Err(dead());
        }
        let verdict = state.step("append", &self.path)?;
        let (mut bytes, mut result) = (bytes, Ok(()));
        if let Verdict::Crash(share) = verdict {
            bytes = &bytes[..bytes.len() * share as usize / 256];
            result = Err(dead());
        }
        if let Some(capacity) = state.capacity {
            let free = capacity.saturating_sub(state.used());
            if (bytes.len() as u64) > free {
                bytes = &bytes[..free as usize];
                result = Err(io::Error::new(
                    io::ErrorKind::StorageFull,
                    "simulated full disk",
                ));
            }
        }
        if let Some(inode) = state.inodes.get_mut(&self.inode) {
            inode.current.extend_from_slice(bytes);
        }
        result
    }

    fn sync(&mut self) -> io::Result<()> {
        let state = &mut *self.state.lock();
        if state.epoch != self.epoch {
            return Err(dead());
        }
        let verdict = state.step("sync", &self.path);
        let Some(inode) = state.inodes.get_mut(&self.inode) else {
            return Err(not_found(&self.path));
        };
        match verdict {
            Ok(Verdict::Proceed) => {
                if !inode.poisoned {
                    inode.durable_reserved = inode.reserved;
                    inode.reserved_max = inode.reserved;
                }
                if inode.rewritten && !inode.poisoned {
                    inode.durable.clone_from(&inode.current);
                    inode.rewritten = false;
                } else if !inode.poisoned {
                    let synced = inode.durable.len();
                    inode.durable.extend_from_slice(&inode.current[synced..]);
                }
                Ok(())
            }
            // Whether an interrupted sync reached the disk is decided like the fate of any unsynced data.
            Ok(Verdict::Crash(_)) => Err(dead()),
            Err(error) => {
                inode.poisoned = true;
                Err(error)
            }
        }
    }

    fn reserve(&mut self, bytes: u64) {
        let state = &mut *self.state.lock();
        if let Some(inode) = state.inodes.get_mut(&self.inode)
            && state.epoch == self.epoch
        {
            inode.reserved = inode.reserved.max(usize::try_from(bytes).unwrap_or(0));
            inode.reserved_max = inode.reserved_max.max(inode.reserved);
        }
    }
}

impl ReadableFile for SimFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.epoch != self.epoch {
            return Err(dead());
        }
        state.step_read()?;
        let inode = state
            .inodes
            .get(&self.inode)
            .ok_or_else(|| not_found(&self.path))?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let contents = inode.contents();
        let bytes = contents
            .get(start..)
            .and_then(|rest| rest.get(..buffer.len()))
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.state.lock();
        let inode = state
            .inodes
            .get(&self.inode)
            .ok_or_else(|| not_found(&self.path))?;
        Ok(inode.current.len().max(inode.reserved) as u64)
    }
}

struct SimLock {
    state: Arc<Mutex<State>>,
    path: PathBuf,
    epoch: u64,
}

impl DirLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if state.epoch == self.epoch {
            state.locks.remove(&self.path);
        }
    }
}

impl Vfs for SimVfs {
    fn create(&self, path: &Path) -> io::Result<Box<dyn WritableFile>> {
        let mut state = self.state.lock();
        if let Verdict::Crash(share) = state.step("create", path)?
            && share < 128
        {
            return Err(dead());
        }
        let inode = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(inode, Default::default());
        state.change_name(NameChange::Link(path.to_owned(), inode));
        if state.crashed {
            return Err(dead());
        }
        Ok(Box::new(self.handle(path, inode, state.epoch)))
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn WritableFile>> {
        let state = self.state.lock();
        if state.crashed {
            return Err(dead());
        }
        Ok(Box::new(self.handle(path, state.inode(path)?, state.epoch)))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn ReadableFile>> {
        let mut state = self.state.lock();
        state.step_read()?;
        Ok(Arc::new(self.handle(path, state.inode(path)?, state.epoch)))
    }

    fn map(&self, path: &Path) -> io::Result<Bytes> {
        self.state.lock().step_read()?;
        self.read(path).map(Bytes::from)
    }

    fn truncate(&self, path: &Path, length: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        if let Verdict::Crash(_) = state.step("truncate", path)? {
            return Err(dead());
        }
        let id = state.inode(path)?;
        let inode = state.inodes.get_mut(&id).ok_or_else(|| not_found(path))?;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        inode.current.truncate(length);
        inode.reserved = inode.reserved.min(length);
        inode.rewritten |= length < inode.durable.len();
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        if let Verdict::Crash(share) = state.step("rename", from)?
            && share < 128
        {
            return Err(dead());
        }
        let inode = state.inode(from)?;
        state.change_name(NameChange::Rename(from.to_owned(), to.to_owned(), inode));
        if state.crashed { Err(dead()) } else { Ok(()) }
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        if let Verdict::Crash(share) = state.step("link", to)?
            && share < 128
        {
            return Err(dead());
        }
        if state.names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.inode(from)?;
        state.change_name(NameChange::Link(to.to_owned(), inode));
        if state.crashed { Err(dead()) } else { Ok(()) }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        if let Verdict::Crash(share) = state.step("remove", path)?
            && share < 128
        {
            return Err(dead());
        }
        state.inode(path)?;
        state.change_name(NameChange::Unlink(path.to_owned()));
        if state.crashed { Err(dead()) } else { Ok(()) }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut state = self.state.lock();
        state.step_read()?;
        let children = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(children
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let mut state = self.state.lock();
        state.step_read()?;
        Ok(state.names.contains_key(path) || state.dirs.contains(path))
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.crashed {
            return Err(dead());
        }
        let ancestors: Vec<PathBuf> = dir.ancestors().map(Path::to_owned).collect();
        state.dirs.extend(ancestors);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let state = &mut *self.state.lock();
        if let Verdict::Crash(_) = state.step("sync_dir", dir)? {
            return Err(dead());
        }
        let belongs = |path: &Path| path.parent() == Some(dir);
        let pending = std::mem::take(&mut state.pending_names);
        for change in pending {
            let here = match &change {
                NameChange::Link(path, _) | NameChange::Unlink(path) => belongs(path),
                NameChange::Rename(from, to, _) => belongs(from) || belongs(to),
            };
            if here {
                apply(&mut state.durable_names, &change);
            } else {
                state.pending_names.push(change);
            }
        }
        Ok(())
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn DirLock>, LockError> {
        let mut state = self.state.lock();
        if state.crashed {
            return Err(LockError::Io(dead()));
        }
        if !state.locks.insert(path.to_owned()) {
            return Err(LockError::Held(Some(std::process::id())));
        }
        Ok(Box::new(SimLock {
            state: Arc::clone(&self.state),
            path: path.to_owned(),
            epoch: state.epoch,
        }))
    }
}
