//! Replaying the logs: what they hold and the tables do not comes back, and is flushed.
//!
//! The logs are read as one. Where one ends in something else than a record, or the first operations of the next one do
//! not follow, an end is missing. Either a crash took it. Then it was never synced, nor was anything of the later logs (the
//! invariant of [`super::sealed`]), and these are given up. Or it is damaged, which is an error. It is damage if
//!
//! - a record of a later log says that something of its own file had been synced, or
//! - the next log begins with a [`Note`] that this one had been synced further than it goes.

use super::Inner;
use super::write::CommitState;
use crate::batch::operations;
use crate::coding::{put_varint, take_varint};
use crate::error::{Error, Result};
use crate::files::FileName;
use crate::log::{LogKind, LogReader};
use crate::types::{SEQNO_MAX, SeqNo};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// The tag of a record that holds a [`Note`]: sequence numbers begin at 1.
pub(super) const NOTE_TAG: u64 = 0;

/// What a log says first: how far the one before it was synced when it was full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Note {
    /// Of the log before.
    pub number: u64,
    /// So many bytes of it were synced.
    pub synced: u64,
}

impl Note {
    pub fn encoded(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, self.number);
        put_varint(&mut bytes, self.synced);
        bytes
    }

    fn decode(mut bytes: &[u8]) -> Option<Note> {
        let number = take_varint(&mut bytes)?;
        let synced = take_varint(&mut bytes)?;
        bytes.is_empty().then_some(Note { number, synced })
    }

    /// An error if the log before ends earlier than that.
    fn check(self, before: &End) -> Result<()> {
        let Note { number, synced } = self;
        if number != before.number || synced <= before.offset {
            return Ok(());
        }
        Err(before.damaged(&format!(
            "the log is cut short, though it had been synced up to {synced}"
        )))
    }
}

/// Where a log ends, by what was read of it.
struct End {
    number: u64,
    path: PathBuf,
    offset: u64,
}

impl End {
    fn damaged(&self, what: &str) -> Error {
        Error::corruption(&self.path, "log record", self.offset, what)
    }
}

impl Inner {
    /// Brings back what the logs of these numbers hold and the tables do not, and flushes it.
    pub(super) fn replay_logs(&self, numbers: &[u64]) -> Result<()> {
        let mut commit = self.commit.lock();
        let mut before: Option<End> = None;
        for (index, number) in numbers.iter().enumerate() {
            let (path, mut reader) = self.open_log(*number)?;
            let follows = self.replay_log(&mut commit, &path, &mut reader, before.as_ref())?;
            if let (false, Some(before)) = (follows, &before) {
                self.give_up(before, numbers.get(index..).unwrap_or_default())?;
                break;
            }
            let end = End {
                number: *number,
                path,
                offset: reader.offset(),
            };
            if reader.is_torn() {
                self.give_up(&end, numbers.get(index + 1..).unwrap_or_default())?;
                break;
            }
            before = Some(end);
        }
        if !self.view.load().active.is_empty() {
            self.replace_active(commit.last_seqno, 0);
            self.flush_next()?;
        }
        Ok(())
    }

    fn open_log(&self, number: u64) -> Result<(PathBuf, LogReader)> {
        let path = FileName::Wal(number).path(&self.dir);
        let reader = LogReader::open(&*self.vfs, &path, LogKind::Wal, number)?;
        Ok((path, reader))
    }

    /// Replays one log. False if its first operations do not follow: then the end is missing of the log before, cut off
    /// between two records.
    fn replay_log(
        &self,
        commit: &mut CommitState,
        path: &Path,
        reader: &mut LogReader,
        before: Option<&End>,
    ) -> Result<bool> {
        let mut is_first = true;
        while let Some(record) = reader.next()? {
            let wrong = |what| Error::corruption(path, "log record", record.offset, what);
            if record.payload.is_empty() {
                // It is there for what its header says of syncs.
                continue;
            }
            if record.tag == NOTE_TAG {
                let note = Note::decode(record.payload);
                let note = note.ok_or_else(|| wrong("a malformed note".to_owned()))?;
                before.map_or(Ok(()), |before| note.check(before))?;
                continue;
            }
            if is_first && before.is_some() && record.tag > commit.last_seqno + 1 {
                return Ok(false);
            }
            is_first = false;
            self.replay_record(commit, record.tag, record.payload)
                .map_err(wrong)?;
            if self.view.load().active.is_full(self.options.memtable_bytes) {
                self.replace_active(commit.last_seqno, 0);
                self.flush_next()?;
            }
        }
        Ok(true)
    }

    /// Gives up the later logs, as nothing can follow where this one ends; unless they prove that its end is damaged.
    fn give_up(&self, end: &End, later: &[u64]) -> Result<()> {
        for number in later {
            let (path, mut reader) = self.open_log(*number)?;
            if reader.synced_past(0).is_some() {
                let path = path.display();
                return Err(end.damaged(&format!(
                    "the log is cut short or one after it is missing, though they were synced before {path} was"
                )));
            }
            if let Some(first) = reader.next()?
                && first.tag == NOTE_TAG
                && let Some(note) = Note::decode(first.payload)
            {
                note.check(end)?;
            }
        }
        let (path, offset, given_up) = (end.path.display(), end.offset, later.len());
        if given_up > 0 {
            tracing::warn!(%path, offset, given_up, "the log lost its end, which was not synced; newer logs are given up");
        } else {
            tracing::info!(%path, offset, "the log ends before its file does");
        }
        Ok(())
    }

    fn replay_record(
        &self,
        commit: &mut CommitState,
        first: SeqNo,
        payload: &[u8],
    ) -> Result<(), String> {
        let count = operations(payload).count() as u64;
        if count == 0 {
            return Err("the record has no operations".to_owned());
        }
        let last = first.checked_add(count - 1);
        let last = last.filter(|last| *last <= SEQNO_MAX);
        if last.ok_or("sequence numbers end at 2^62")? <= self.flushed_seqno() {
            return Ok(());
        }
        if first != commit.last_seqno + 1 {
            return Err(format!(
                "sequence number {first} does not follow {}",
                commit.last_seqno
            ));
        }
        let view = self.view.load();
        let (mut seqno, mut cost) = (commit.last_seqno, 0);
        for operation in operations(payload) {
            let operation = operation.map_err(|_| "the record holds a malformed operation")?;
            seqno += 1;
            let inserted = view.active.insert(&operation, seqno);
            cost += inserted.ok_or("unknown keyspace")?;
        }
        view.active.finish_batch(seqno, cost);
        commit.last_seqno = seqno;
        self.visible.store(seqno, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::log::LogWriter;
    use crate::options::{Background, Options};
    use crate::types::KeyspaceId;
    use crate::vfs::{SimVfs, Vfs};
    use crate::{Db, WriteBatch};
    use std::sync::Arc;

    #[test]
    fn a_forged_sequence_number_is_damage() {
        let (vfs, dir) = (Arc::new(SimVfs::new()), Path::new("/db"));
        let open = || {
            let options = Options {
                background: Background::Inline,
                ..Options::default()
            };
            Db::open(Arc::clone(&vfs) as Arc<dyn Vfs>, dir, options)
        };
        drop(open().unwrap());
        let names = vfs.list(dir).unwrap();
        let number = names.iter().find_map(|name| match FileName::parse(name) {
            Some(FileName::Wal(number)) => Some(number),
            _ => None,
        });
        let (number, path) = (number.unwrap(), FileName::Wal(number.unwrap()).path(dir));
        let mut batch = WriteBatch::new();
        batch.delete(KeyspaceId(0), b"one");
        batch.delete(KeyspaceId(0), b"two");
        for forged in [u64::MAX, SEQNO_MAX] {
            vfs.remove(&path).unwrap();
            let mut log = LogWriter::create(&*vfs, &path, LogKind::Wal, number, 0).unwrap();
            log.append(forged, &[batch.encoded()]).unwrap();
            let error = open().map(drop).unwrap_err();
            assert!(error.is_corruption(), "{error}");
        }
    }
}
