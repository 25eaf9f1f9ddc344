//! The raft log: one per node, shared by all its groups.
//!
//! Every promise that a replica makes to its peers (an entry stored, a vote
//! given) rests on a write that survived a power loss. With a log per shard a
//! node would sync as many files as it has busy shards; with one log for all,
//! one `fdatasync` serves whatever all groups have queued since the last one
//! (TiKV's raft engine and CockroachDB's raft log are the models).
//!
//! - [`record`]: the bytes. A segment is a header and batches; a batch is a
//!   header (with the offset known to be synced when it was written) and
//!   checksummed records: entries, votes, truncations, purges, tombstones.
//! - [`cell`]: what one group has in the log, in memory: its vote, where each
//!   entry lies, and the payloads of the newest entries.
//! - [`writer`], [`batch`], [`item`]: two threads that take turns: while one syncs, the other writes
//!   the next batch. Completions are reported in the order of the writes.
//! - [`recovery`]: reads the segments back. A bad record is cut off only in the
//!   torn tail, above the last offset known to be synced; below it is
//!   corruption, named with file, offset and groups (PROTOCOLS D3).
//! - [`store`]: the view of one group that openraft sees.
//!
//! Segments are deleted oldest first, when no live entry is left in them. Each
//! starts with the state of all groups (votes, purges, tombstones), so that only
//! entries keep a segment alive; the few that a quiet group leaves behind are
//! copied forward. A failed write or sync is final: the process stops (D3).

mod batch;
mod cell;
mod compact;
mod item;
mod reader;
mod record;
mod recovery;
pub mod store;
mod writer;

pub use cell::{GroupLog, GroupStats, Tombstone};
pub use item::Callback;
pub use record::{LogId, Vote};

use crate::{Error, Result};
use cell::Cell;
use lineradb_common::GroupId;
use lineradb_lsm::Vfs;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Called once when the log can no longer promise anything; must not return to
/// business: the default logs and exits.
pub type FatalHook = Arc<dyn Fn(&str) + Send + Sync>;

/// Stops the process, saying why (PROTOCOLS D3).
pub fn exit_on_fatal() -> FatalHook {
    Arc::new(|why: &str| {
        tracing::error!(why, "the raft log failed: this process stops");
        std::process::exit(1);
    })
}

/// How the log is kept.
#[derive(Clone)]
pub struct Options {
    /// A segment is closed when it has grown to this size.
    pub segment_bytes: u64,
    /// Payloads kept in memory for replication and apply, all groups together.
    pub tail_bytes: usize,
    /// Above this size of all segments, entries that keep a nearly dead segment
    /// alive are copied forward.
    pub compact_above_bytes: u64,
    /// What happens when a write or sync fails.
    pub fatal: FatalHook,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            segment_bytes: 64 << 20,
            tail_bytes: 64 << 20,
            compact_above_bytes: 256 << 20,
            fatal: exit_on_fatal(),
        }
    }
}

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub segment: u64,
    pub offset: u64,
    /// Whole record, header included.
    pub length: u32,
}

/// What is known of a segment file.
pub(crate) struct Segment {
    pub path: PathBuf,
    pub bytes: u64,
    /// Live entries in it.
    pub live: u64,
    pub live_bytes: u64,
    pub reader: Option<Arc<dyn lineradb_lsm::ReadableFile>>,
}

pub(crate) struct Shared {
    pub vfs: Arc<dyn Vfs>,
    pub dir: PathBuf,
    pub options: Options,
    pub cells: Mutex<HashMap<GroupId, Arc<Cell>>>,
    pub segments: Mutex<BTreeMap<u64, Segment>>,
    /// Bytes of payloads in memory.
    pub cached: AtomicUsize,
}

/// The log of a node. Cheap to clone.
#[derive(Clone)]
pub struct RaftLog {
    pub(crate) shared: Arc<Shared>,
    pub(crate) writer: Arc<writer::Writer>,
}

impl RaftLog {
    /// Opens the log in a folder, or makes an empty one.
    ///
    /// # Errors
    /// When a segment is damaged below what was synced, or cannot be read.
    pub fn open(vfs: Arc<dyn Vfs>, dir: &Path, options: Options) -> Result<RaftLog> {
        vfs.create_dir_all(dir)
            .map_err(|e| Error::io(format!("create {}", dir.display()), e))?;
        let recovered = recovery::recover(vfs.as_ref(), dir)?;
        let shared = Arc::new(Shared {
            vfs,
            dir: dir.to_owned(),
            options,
            cells: Mutex::new(recovered.cells),
            segments: Mutex::new(recovered.segments),
            cached: AtomicUsize::new(0),
        });
        let writer = writer::Writer::start(Arc::clone(&shared), recovered.tail)?;
        Ok(RaftLog { shared, writer })
    }

    /// The part of one group.
    pub fn group(&self, group: GroupId) -> GroupLog {
        let cell = Arc::clone(
            self.shared
                .cells
                .lock()
                .entry(group)
                .or_insert_with(|| Arc::new(Cell::new(group))),
        );
        GroupLog {
            cell,
            shared: Arc::clone(&self.shared),
            writer: Arc::clone(&self.writer),
        }
    }

    /// Groups of which the log knows anything.
    pub fn groups(&self) -> Vec<GroupId> {
        let mut groups: Vec<GroupId> = self.shared.cells.lock().keys().copied().collect();
        groups.sort();
        groups
    }

    /// Size of all segments.
    pub fn bytes(&self) -> u64 {
        self.shared.segments.lock().values().map(|s| s.bytes).sum()
    }

    /// Number of segments.
    pub fn segment_count(&self) -> usize {
        self.shared.segments.lock().len()
    }

    /// Number of syncs of data so far.
    pub fn sync_count(&self) -> u64 {
        self.writer.sync_count()
    }

    /// Bytes of payloads in memory.
    pub fn cached_bytes(&self) -> usize {
        self.shared.cached.load(Ordering::Relaxed)
    }

    /// Writes what is queued, marks everything as synced and stops the threads.
    pub fn close(&self) {
        self.writer.close();
    }
}
