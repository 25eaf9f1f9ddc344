//! The write path.
//!
//! Writers that arrive together form a *commit group*: the first one leads, takes along whoever waits, and does the
//! work for all: one log record, one sync if somebody asks for it, then the memtable, then one step of the visible
//! sequence number. (The first sync of a log takes those before it along: `sealed.rs`.)
//! While it syncs, the next group gathers behind it. (Group commit, as in LevelDB's writer queue.) Only the memtable is
//! filled by several at once, where their batches are large (as RocksDB does).
//!
//! Before a group is written there must be room. A full memtable is put aside for the flush and a new one, with a
//! new log, begins. If the flush or the compaction lags behind, the leader first slows down (`pace.rs`), then waits.

use super::Inner;
use super::queue::{Pending, fill, fills_itself, share_out};
use super::replay::{NOTE_TAG, Note};
use super::view::View;
use crate::batch::WriteBatch;
use crate::clock::{Stopwatch, sleep_micros};
use crate::error::{Error, Result};
use crate::files::FileName;
use crate::log::{LogKind, LogWriter};
use crate::memtable::MemtableSet;
use crate::options::WriteOptions;
use crate::pace::{Backpressure, pressure};
use crate::types::SeqNo;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A log is made at most so long when it begins: recovery looks through what is left of it.
const WAL_RESERVED_BYTES_MAX: u64 = 64 << 20;

/// What the leader of a commit group owns while it leads.
pub(super) struct CommitState {
    pub last_seqno: SeqNo,
    pub wal: Option<LogWriter>,
    pub backpressure: Backpressure,
}

impl Inner {
    pub(super) fn write(&self, batch: WriteBatch, options: WriteOptions) -> Result<SeqNo> {
        batch.validate(self.keyspaces.len())?;
        let result = match self.queue.enter(batch, options.sync) {
            Ok(batch) => self.lead(&batch, options.sync),
            Err(pending) => match pending.wait() {
                Some(result) => result,
                None => self.lead(&pending.batch, pending.sync),
            },
        };
        if self.runs_inline() && !self.view.load().immutable.is_empty() {
            // The write has happened; should a job fail, that is the failure of the database.
            let _ = self.run_jobs_inline();
        }
        result
    }

    /// Leads one group and hands over.
    fn lead(&self, batch: &WriteBatch, sync: bool) -> Result<SeqNo> {
        let mut commit = self.commit.lock();
        let mut followers = Vec::new();
        let room = self.make_room(&mut commit, batch.byte_len());
        let result = room.and_then(|()| {
            followers = self.queue.take_group(batch.byte_len());
            let along = followers.iter().map(|pending| pending.batch.byte_len());
            commit.backpressure.came_along(along.sum());
            self.commit_group(&mut commit, batch, sync, &followers)
        });
        drop(commit);
        self.queue.hand_over();
        let mut seqnos = result
            .as_ref()
            .map(|seqnos| seqnos.iter().copied())
            .map_err(Error::clone);
        let mut next = || match &mut seqnos {
            Ok(seqnos) => Ok(seqnos.next().unwrap_or(self.visible_seqno())),
            Err(error) => Err(error.clone()),
        };
        let own = next();
        for follower in &followers {
            follower.finish(next());
        }
        own
    }

    /// Writes the batches of a group, the leader's first; returns the last sequence number of each.
    pub(super) fn commit_group(
        &self,
        commit: &mut CommitState,
        batch: &WriteBatch,
        sync: bool,
        followers: &[Arc<Pending>],
    ) -> Result<Vec<SeqNo>> {
        let along = followers.iter().map(|pending| &pending.batch);
        let sync = sync || followers.iter().any(|pending| pending.sync);
        self.append_to_log(commit, std::iter::once(batch).chain(along), sync)
            .map_err(|error| self.fail(error))?;
        let view = self.view.load();
        let mut last = commit.last_seqno + batch.len() as u64;
        let shares = share_out(followers, &view.active, last);
        fill(&view.active, batch, commit.last_seqno + 1);
        let mut seqnos = vec![last];
        for follower in followers {
            if !fills_itself(follower) {
                fill(&view.active, &follower.batch, last + 1);
            }
            last += follower.batch.len() as u64;
            seqnos.push(last);
        }
        if let Some(shares) = shares {
            shares.wait();
        }
        let bytes = followers.iter().map(|pending| pending.batch.byte_len());
        let bytes = batch.byte_len() + bytes.sum::<usize>();
        self.counters.user_bytes_written.add(bytes as u64);
        commit.last_seqno = last;
        self.visible.store(last, Ordering::Release);
        self.counters.batches_written.add(seqnos.len() as u64);
        self.counters.commit_groups.add(1);
        Ok(seqnos)
    }

    fn append_to_log<'a>(
        &self,
        commit: &mut CommitState,
        group: impl Iterator<Item = &'a WriteBatch>,
        sync: bool,
    ) -> Result<()> {
        let Some(wal) = &mut commit.wal else {
            return Ok(());
        };
        let is_first_sync = sync && !wal.was_synced();
        if is_first_sync {
            // Before the record and not with it: so it is itself the proof that the logs before were synced.
            let sealed = self.sealed.sync()?;
            wal.sync()?;
            self.counters.wal_syncs.add(sealed + 1);
        }
        let parts: Vec<&[u8]> = group.map(WriteBatch::encoded).collect();
        // Proof may be all that there is to write.
        if is_first_sync || parts.iter().any(|part| !part.is_empty()) {
            self.counters
                .wal_bytes_written
                .add(wal.append(commit.last_seqno + 1, &parts)?);
        }
        if sync && !wal.is_synced() {
            wal.sync()?;
            self.counters.wal_syncs.add(1);
        }
        Ok(())
    }

    /// Returns when the active memtable may take a group whose leader has `bytes`.
    fn make_room(&self, commit: &mut CommitState, bytes: usize) -> Result<()> {
        let mut slowed_down = self.runs_inline();
        loop {
            let seen = self.signal.generation();
            self.check_writable()?;
            let view = self.view.load();
            let is_full = view.active.is_full(self.options.memtable_bytes);
            if !self.runs_inline() {
                let level0_tables = view.level0_tables_max;
                let flush_lags =
                    is_full && view.immutable.len() >= self.options.immutable_memtables_max;
                if flush_lags || level0_tables >= self.options.level0_stall_tables {
                    self.counters.stalls.add(1);
                    let stopwatch = Stopwatch::start();
                    self.signal.wait(seen);
                    self.counters.stall_micros.add(stopwatch.elapsed_micros());
                    continue;
                }
                if !std::mem::replace(&mut slowed_down, true) {
                    let (waiting, filled) = (view.immutable.len(), view.active.bytes());
                    let pressure = pressure(&self.options, level0_tables, waiting, filled);
                    let pause = commit.backpressure.charge(bytes, pressure);
                    if pause > 0 {
                        sleep_micros(pause);
                        self.counters.stall_micros.add(pause);
                        self.counters.slowdown_micros.add(pause);
                        continue;
                    }
                }
            }
            return if is_full { self.rotate(commit) } else { Ok(()) };
        }
    }

    /// Puts the active memtable aside for the flush, if it has entries.
    pub(super) fn rotate_if_used(&self, commit: &mut CommitState) -> Result<()> {
        if self.view.load().active.is_empty() {
            Ok(())
        } else {
            self.rotate(commit)
        }
    }

    /// Begins a new memtable, with a log of its own. The old log is cut to its records before the new one exists, and
    /// synced when a write next asks for a sync, if it is still there by then.
    pub(super) fn rotate(&self, commit: &mut CommitState) -> Result<()> {
        let wal_number = match &mut commit.wal {
            Some(wal) => {
                let sealed = wal.seal(&*self.vfs);
                let number = self.allocate_file_number();
                let created = sealed.and_then(|()| self.create_wal(number, Some(wal)));
                let new = created.map_err(|error| self.fail(error))?;
                self.sealed.push(std::mem::replace(wal, new));
                number
            }
            None => 0,
        };
        self.replace_active(commit.last_seqno, wal_number);
        Ok(())
    }

    pub(super) fn replace_active(&self, last_seqno: SeqNo, wal_number: u64) {
        let active = Arc::new(MemtableSet::new(
            self.keyspaces.len(),
            wal_number,
            last_seqno,
            &self.chunks,
        ));
        self.publish_view(|view| {
            let mut immutable = Vec::with_capacity(view.immutable.len() + 1);
            if !view.active.is_empty() {
                immutable.push(Arc::clone(&view.active));
            }
            immutable.extend(view.immutable.iter().cloned());
            View {
                active,
                immutable,
                ..view.clone()
            }
        });
    }

    /// Creates a log whose name is durable; it says first how far the one before was synced, if it was.
    pub(super) fn create_wal(&self, number: u64, before: Option<&LogWriter>) -> Result<LogWriter> {
        let mut wal = LogWriter::create(
            &*self.vfs,
            &FileName::Wal(number).path(&self.dir),
            LogKind::Wal,
            number,
            (self.options.memtable_bytes as u64).min(WAL_RESERVED_BYTES_MAX),
        )?;
        if self.options.log_compression_bytes_min > 0 {
            wal.compress_from(self.options.log_compression_bytes_min);
        }
        self.vfs
            .sync_dir(&self.dir)
            .map_err(|error| Error::io("sync", &self.dir, error))?;
        if let Some(before) = before.filter(|before| before.was_synced()) {
            let note = Note {
                number: before.number(),
                synced: before.synced(),
            };
            wal.append(NOTE_TAG, &[&note.encoded()])?;
            wal.expect_sync();
        }
        Ok(wal)
    }
}
