//! The state of a simulated disk: what running processes see, what is durable, and what a crash makes of the two.

use super::sim::{CrashLoss, Fault};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};

/// How many operations the trace remembers.
const TRACE_LINES: usize = 64;
/// What a disk writes as a whole.
const SECTOR_BYTES: usize = 512;

#[derive(Debug, Clone, Default)]
pub(super) struct Inode {
    pub current: Vec<u8>,
    pub durable: Vec<u8>,
    /// The file is so long, if that is more than `current`; the rest are zeros.
    pub reserved: usize,
    /// The same as of the last sync.
    pub durable_reserved: usize,
    /// The longest it was reserved for since then.
    pub reserved_max: usize,
    /// `durable` is not a prefix of `current` (the file was cut since its last sync).
    pub rewritten: bool,
    /// A sync failed: later syncs of this file claim success and keep nothing.
    pub poisoned: bool,
}

#[derive(Debug, Clone)]
pub(super) enum NameChange {
    Link(PathBuf, u64),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, u64),
}

#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub inodes: BTreeMap<u64, Inode>,
    pub next_inode: u64,
    pub names: BTreeMap<PathBuf, u64>,
    pub durable_names: BTreeMap<PathBuf, u64>,
    pub pending_names: Vec<NameChange>,
    pub dirs: BTreeSet<PathBuf>,
    pub locks: BTreeSet<PathBuf>,
    /// Counts crashes; files opened before the last one are dead.
    pub epoch: u64,
    pub operations: u64,
    pub crash_at: Option<u64>,
    pub crashed: bool,
    pub faults: BTreeMap<u64, Fault>,
    /// Counts reads; those of these numbers fail.
    pub reads: u64,
    pub read_faults: BTreeSet<u64>,
    pub capacity: Option<u64>,
    pub trace: VecDeque<String>,
}

/// What is to happen with an operation.
pub(super) enum Verdict {
    Proceed,
    /// The world stops here; the operation may leave this share (of 256) of its effect behind.
    Crash(u64),
}

pub(super) fn dead() -> io::Error {
    io::Error::other("simulated crash: the machine is off")
}

pub(super) fn not_found(path: &Path) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("{}: no such simulated file", path.display()),
    )
}

/// One step of splitmix64: enough chance for a disk.
fn next_random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Inode {
    /// What readers see.
    pub fn contents(&self) -> Vec<u8> {
        let mut contents = self.current.clone();
        contents.resize(self.current.len().max(self.reserved), 0);
        contents
    }
}

impl State {
    /// Counts one changing operation and decides its fate.
    pub fn step(&mut self, what: &str, path: &Path) -> io::Result<Verdict> {
        if self.crashed {
            return Err(dead());
        }
        self.operations += 1;
        if self.trace.len() == TRACE_LINES {
            self.trace.pop_front();
        }
        self.trace
            .push_back(format!("{} {what} {}", self.operations, path.display()));
        if self.crash_at == Some(self.operations) {
            self.crashed = true;
            let mut seed = self.operations;
            return Ok(Verdict::Crash(next_random(&mut seed) % 257));
        }
        match self.faults.remove(&self.operations) {
            None => Ok(Verdict::Proceed),
            Some(Fault::Io) => Err(io::Error::other("simulated I/O error")),
            Some(Fault::NoSpace) => Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "simulated full disk",
            )),
        }
    }

    /// Counts one read and decides its fate.
    pub fn step_read(&mut self) -> io::Result<()> {
        if self.crashed {
            return Err(dead());
        }
        self.reads += 1;
        match self.read_faults.remove(&self.reads) {
            true => Err(io::Error::other("simulated I/O error")),
            false => Ok(()),
        }
    }

    pub fn used(&self) -> u64 {
        let named: BTreeSet<&u64> = self.names.values().collect();
        named
            .into_iter()
            .filter_map(|id| self.inodes.get(id))
            .map(|file| file.current.len() as u64)
            .sum()
    }

    pub fn inode(&self, path: &Path) -> io::Result<u64> {
        self.names.get(path).copied().ok_or_else(|| not_found(path))
    }

    pub fn change_name(&mut self, change: NameChange) {
        apply(&mut self.names, &change);
        self.pending_names.push(change);
    }

    pub fn crash(&mut self, loss: CrashLoss) {
        let mut seed = match loss {
            CrashLoss::Torn(seed) | CrashLoss::Reordered(seed) => seed,
            CrashLoss::Everything | CrashLoss::Nothing => 0,
        };
        let mut keep = |_: &NameChange| match loss {
            CrashLoss::Everything => false,
            CrashLoss::Nothing => true,
            CrashLoss::Torn(_) | CrashLoss::Reordered(_) => next_random(&mut seed) & 1 == 1,
        };
        for change in std::mem::take(&mut self.pending_names) {
            if keep(&change) {
                apply(&mut self.durable_names, &change);
            }
        }
        for inode in self.inodes.values_mut() {
            match loss {
                CrashLoss::Everything => {}
                CrashLoss::Nothing => inode.durable.clone_from(&inode.current),
                CrashLoss::Torn(_) | CrashLoss::Reordered(_) if inode.rewritten => {
                    if next_random(&mut seed) & 1 == 1 {
                        inode.durable.clone_from(&inode.current);
                    }
                }
                CrashLoss::Torn(_) => tear(inode, &mut seed),
                CrashLoss::Reordered(_) => reorder(inode, &mut seed),
            }
            inode.current.clone_from(&inode.durable);
            if loss != CrashLoss::Nothing && next_random(&mut seed) & 1 == 1 {
                // The length may have been written without a sync, at any time since the last.
                inode.reserved = match next_random(&mut seed) & 1 {
                    0 => inode.durable_reserved,
                    _ => inode.reserved_max,
                };
            }
            inode.durable_reserved = inode.reserved;
            inode.reserved_max = inode.reserved;
            inode.rewritten = false;
            inode.poisoned = false;
        }
        self.names.clone_from(&self.durable_names);
        let live: BTreeSet<u64> = self.names.values().copied().collect();
        self.inodes.retain(|id, _| live.contains(id));
        self.locks.clear();
        self.faults.clear();
        self.read_faults.clear();
        self.crash_at = None;
        self.crashed = false;
        self.epoch += 1;
    }
}

/// Keeps a prefix of the unsynced tail, sometimes with garbage after it.
fn tear(inode: &mut Inode, seed: &mut u64) {
    let synced = inode.durable.len();
    let unsynced = inode.current.len() - synced;
    if unsynced == 0 {
        return;
    }
    let kept = (next_random(seed) % (unsynced as u64 + 1)) as usize;
    inode
        .durable
        .extend_from_slice(&inode.current[synced..synced + kept]);
    let garbage = match next_random(seed) % 3 {
        0 => (unsynced - kept).min(64),
        _ => 0,
    };
    for _ in 0..garbage {
        inode.durable.push(next_random(seed) as u8);
    }
}

/// Keeps some sectors of the unsynced tail; the others hold zeros or garbage.
fn reorder(inode: &mut Inode, seed: &mut u64) {
    let synced = inode.durable.len();
    let unsynced = inode.current.len() - synced;
    let length = synced + (next_random(seed) % (unsynced as u64 + 1)) as usize;
    while inode.durable.len() < length {
        let start = inode.durable.len();
        let end = length.min((start / SECTOR_BYTES + 1) * SECTOR_BYTES);
        match next_random(seed) % 4 {
            0 | 1 => inode.durable.extend_from_slice(&inode.current[start..end]),
            2 => inode.durable.resize(end, 0),
            _ => {
                let garbage = (start..end).map(|_| next_random(seed) as u8);
                inode.durable.extend(garbage);
            }
        }
    }
}

pub(super) fn apply(names: &mut BTreeMap<PathBuf, u64>, change: &NameChange) {
    match change {
        NameChange::Link(path, inode) => {
            names.insert(path.clone(), *inode);
        }
        NameChange::Unlink(path) => {
            names.remove(path);
        }
        NameChange::Rename(from, to, inode) => {
            names.remove(from);
            names.insert(to.clone(), *inode);
        }
    }
}
