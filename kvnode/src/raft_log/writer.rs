//! Writing: group commit with two writes in flight.
//!
//! Two threads run the same loop. One takes everything that is queued, writes
//! it as one batch and lets the other go on before it syncs: while one batch is
//! being synced, the next is written behind it. Completions are reported in the
//! order of the writes, whoever's sync returns first.

use super::batch::{Batch, Located, Written};
use super::cell::{Cell, closed};
use super::item::{Item, Released};
use super::record::{BATCH_HEADER_BYTES, BatchHeader, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::recovery::Tail;
use super::{Segment, Shared, compact};
use crate::consensus::metrics;
use crate::{Error, Result};
use lineradb_common::clock::Stopwatch;
use lineradb_common::spawn;
use lineradb_lsm::WritableFile;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that may be queued; above, appends wait.
const QUEUE_BYTES_MAX: usize = 256 << 20;
/// Granularity of the queue's budget.
const PERMIT_BYTES: usize = 1 << 10;
/// One batch takes at most about this many bytes from the queue.
const BATCH_BYTES_MAX: usize = 16 << 20;

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    stopping: bool,
}

/// Queued places of entries in memory at which the first sweep happens.
const SWEEP_MIN: usize = 1 << 16;

/// The end of the log; whoever holds the lock writes.
struct End {
    segment: u64,
    offset: u64,
    sequence: u64,
    ticket: u64,
    /// Entries in the order of their writing, for eviction from memory.
    recent: VecDeque<(Arc<Cell>, u64, u64)>,
    /// The length of `recent` at which those that are gone are swept out.
    sweep_at: usize,
}

#[derive(Default)]
struct Done {
    next: u64,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    queue: Mutex<Queue>,
    wake: Condvar,
    budget: Arc<Semaphore>,
    end: Mutex<End>,
    done: Mutex<Done>,
    done_changed: Condvar,
    /// Synced up to here in the segment of this number.
    synced: Mutex<(u64, u64)>,
    failed: AtomicBool,
    syncs: AtomicU64,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

/// A thread's own handle on the segment that it wrote to last.
type Handle = Option<(u64, Box<dyn WritableFile>)>;

impl Writer {
    pub(crate) fn start(shared: Arc<Shared>, tail: Tail) -> Result<Arc<Writer>> {
        let writer = Arc::new(Writer {
            shared,
            queue: Mutex::default(),
            wake: Condvar::new(),
            budget: Arc::new(Semaphore::new(QUEUE_BYTES_MAX / PERMIT_BYTES)),
            end: Mutex::new(End {
                segment: tail.last_segment,
                offset: tail.last_length,
                sequence: tail.next_sequence,
                ticket: 0,
                recent: VecDeque::new(),
                sweep_at: SWEEP_MIN,
            }),
            done: Mutex::default(),
            done_changed: Condvar::new(),
            synced: Mutex::new((0, 0)),
            failed: AtomicBool::new(false),
            syncs: AtomicU64::new(0),
            threads: Mutex::default(),
        });
        // Every life of the process begins a segment: what was recovered stays
        // as it was found.
        writer
            .rotate(&mut writer.end.lock(), &mut None)
            .map_err(|e| Error::io("begin a segment of the raft log", e))?;
        let mut threads = Vec::new();
        for number in 0..2 {
            let writer = Arc::clone(&writer);
            let thread = spawn::thread(&format!("raft-log-{number}"), move || writer.run())
                .map_err(|e| Error::io("start a thread of the raft log", e))?;
            threads.push(thread);
        }
        *writer.threads.lock() = threads;
        Ok(writer)
    }

    pub(crate) fn sync_count(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Waits for room in the queue.
    pub(crate) async fn admit(&self, bytes: usize) -> io::Result<OwnedSemaphorePermit> {
        let permits = (bytes / PERMIT_BYTES).clamp(1, QUEUE_BYTES_MAX / PERMIT_BYTES);
        Arc::clone(&self.budget)
            .acquire_many_owned(permits as u32)
            .await
            .map_err(|_| closed())
    }

    pub(crate) fn submit(&self, item: Item) {
        let mut queue = self.queue.lock();
        if queue.stopping || self.failed.load(Ordering::Acquire) {
            drop(queue);
            item.refuse(closed());
            return;
        }
        queue.items.push_back(item);
        drop(queue);
        self.wake.notify_one();
    }

    pub(crate) fn close(&self) {
        self.queue.lock().stopping = true;
        self.wake.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the raft log panicked");
            }
        }
        self.budget.close();
    }

    fn run(&self) {
        let mut handle: Handle = None;
        loop {
            let written = {
                let mut end = self.end.lock();
                let Some(items) = self.take() else {
                    // The last one out marks everything as synced.
                    let marked = self.mark_clean(&mut end, &mut handle);
                    if let Err(error) = marked {
                        self.fail(&error);
                    }
                    return;
                };
                match self.write(&mut end, &mut handle, items) {
                    Ok(written) => written,
                    Err(error) => return self.fail(&error),
                }
            };
            let watch = Stopwatch::start();
            let synced = match &mut handle {
                Some((_, file)) => file.sync(),
                None => Err(closed()),
            };
            if let Err(error) = synced {
                return self.fail(&error);
            }
            self.syncs.fetch_add(1, Ordering::Relaxed);
            metrics::get()
                .log_fsync_seconds
                .observe(watch.elapsed().as_secs_f64());
            if let Err(error) = self.complete(written) {
                return self.fail(&error);
            }
        }
    }

    /// Everything queued, up to the size of a batch; waits for something.
    fn take(&self) -> Option<Vec<Item>> {
        let mut queue = self.queue.lock();
        loop {
            if self.failed.load(Ordering::Acquire) {
                return None;
            }
            if !queue.items.is_empty() {
                break;
            }
            if queue.stopping {
                return None;
            }
            self.wake.wait(&mut queue);
        }
        let mut bytes = 0;
        let mut items = Vec::with_capacity(queue.items.len());
        while bytes < BATCH_BYTES_MAX {
            let Some(item) = queue.items.pop_front() else {
                break;
            };
            if let Item::Append { entries, .. } = &item {
                bytes += entries.iter().map(|(_, _, p)| p.len()).sum::<usize>();
            }
            items.push(item);
        }
        Some(items)
    }

    fn write(&self, end: &mut End, handle: &mut Handle, items: Vec<Item>) -> io::Result<Written> {
        if end.offset > self.shared.options.segment_bytes {
            self.rotate(end, handle)?;
        }
        let mut batch = Batch::new(end.segment, end.offset);
        let mut written = Written {
            ticket: end.ticket,
            segment: end.segment,
            end: 0,
            callbacks: Vec::new(),
            released: Vec::new(),
            permits: Vec::new(),
        };
        for item in items {
            batch.put(item, &mut written);
        }
        compact::copy_stragglers(&self.shared, &mut batch)?;
        let located = self.append_batch(end, handle, batch)?;
        written.end = end.offset;
        end.ticket += 1;
        written.released.push(self.locate(end, located));
        self.evict(end);
        Ok(written)
    }

    /// Closes the batch and writes it at the end of the segment.
    fn append_batch(
        &self,
        end: &mut End,
        handle: &mut Handle,
        mut batch: Batch,
    ) -> io::Result<Vec<Located>> {
        let synced = {
            let synced = self.synced.lock();
            if synced.0 == end.segment { synced.1 } else { 0 }
        };
        let header = BatchHeader {
            bytes: (batch.bytes.len() - BATCH_HEADER_BYTES) as u32,
            records: batch.records,
            sequence: end.sequence,
            synced,
        };
        header.encode_into(&mut batch.bytes[..BATCH_HEADER_BYTES]);
        self.open(end.segment, handle)?.append(&batch.bytes)?;
        end.sequence += 1;
        end.offset += batch.bytes.len() as u64;
        metrics::get()
            .log_bytes_total
            .inc_by(batch.bytes.len() as u64);
        if let Some(segment) = self.shared.segments.lock().get_mut(&end.segment) {
            segment.bytes = end.offset;
        }
        Ok(batch.located)
    }

    /// This thread's handle on a segment.
    fn open<'a>(
        &self,
        segment: u64,
        handle: &'a mut Handle,
    ) -> io::Result<&'a mut Box<dyn WritableFile>> {
        if handle.as_ref().is_none_or(|(number, _)| *number != segment) {
            let path = segment_path(&self.shared.dir, segment);
            *handle = Some((segment, self.shared.vfs.open_append(&path)?));
        }
        match handle {
            Some((_, file)) => Ok(file),
            None => Err(closed()),
        }
    }

    /// Begins the next segment: everything before it is synced first, and it
    /// begins with the state of all groups.
    fn rotate(&self, end: &mut End, handle: &mut Handle) -> io::Result<()> {
        let vfs = &self.shared.vfs;
        let begun = self.shared.segments.lock().contains_key(&end.segment);
        if begun {
            self.open(end.segment, handle)?.sync()?;
        }
        let number = end.segment + 1;
        let path = segment_path(&self.shared.dir, number);
        let header = SegmentHeader {
            number,
            previous_length: end.offset,
        };
        {
            let mut file = vfs.create(&path)?;
            file.append(&header.encode())?;
        }
        *handle = None;
        end.segment = number;
        end.offset = SEGMENT_HEADER_BYTES as u64;
        self.shared.segments.lock().insert(
            number,
            Segment {
                path,
                bytes: end.offset,
                live: 0,
                live_bytes: 0,
                reader: None,
            },
        );
        let mut batch = Batch::new(number, end.offset);
        let cells: Vec<Arc<Cell>> = self.shared.cells.lock().values().cloned().collect();
        for cell in cells {
            batch.put_state(&cell);
        }
        self.append_batch(end, handle, batch)?;
        self.open(number, handle)?.sync()?;
        vfs.sync_dir(&self.shared.dir)?;
        *self.synced.lock() = (number, end.offset);
        Ok(())
    }

    /// Tells the entries where they lie now; returns the places that copied
    /// ones have left. An entry purged since it was copied has given up its old
    /// place already: counted twice, a segment would go that others still need.
    fn locate(&self, end: &mut End, located: Vec<Located>) -> Released {
        let (mut live, mut live_bytes) = (0, 0);
        let mut left = Released::default();
        for entry in located {
            let in_memory = {
                let mut state = entry.cell.state.lock();
                match state.slot_mut(entry.index) {
                    // Serials are never reused in a cell, so this is the entry.
                    Some(slot) if slot.serial == entry.serial => {
                        slot.location = Some(entry.location);
                        slot.payload.is_some()
                    }
                    // Truncated or purged since it was queued.
                    _ => continue,
                }
            };
            live += 1;
            live_bytes += u64::from(entry.location.length);
            if let Some(before) = entry.copied_from {
                left.add(before);
            }
            if in_memory {
                end.recent
                    .push_back((entry.cell, entry.index, entry.serial));
            }
        }
        if let Some(segment) = self.shared.segments.lock().get_mut(&end.segment) {
            segment.live += live;
            segment.live_bytes += live_bytes;
        }
        left
    }

    /// Lets the oldest payloads go while the tail is above its budget.
    fn evict(&self, end: &mut End) {
        let budget = self.shared.options.tail_bytes;
        while self.shared.cached.load(Ordering::Relaxed) > budget {
            let Some((cell, index, serial)) = end.recent.pop_front() else {
                return;
            };
            let mut state = cell.state.lock();
            if let Some(slot) = state.slot_mut(index)
                && slot.serial == serial
                && slot.location.is_some()
                && let Some(payload) = slot.payload.take()
            {
                self.shared
                    .cached
                    .fetch_sub(payload.len(), Ordering::Relaxed);
            }
        }
        // Entries that were purged leave their place in the queue behind. Twice
        // the living ones make the next sweep, or each batch would pay for one.
        if end.recent.len() > end.sweep_at {
            end.recent.retain(|(cell, index, serial)| {
                cell.state
                    .lock()
                    .slot_mut(*index)
                    .is_some_and(|slot| slot.serial == *serial && slot.payload.is_some())
            });
            end.sweep_at = SWEEP_MIN.max(2 * end.recent.len());
        }
    }

    /// In the order of the writes: what was written is durable.
    fn complete(&self, written: Written) -> io::Result<()> {
        let mut done = self.done.lock();
        while done.next != written.ticket {
            if self.failed.load(Ordering::Acquire) {
                return Err(closed());
            }
            self.done_changed.wait(&mut done);
        }
        {
            let mut synced = self.synced.lock();
            if synced.0 == written.segment {
                synced.1 = synced.1.max(written.end);
            }
        }
        for callback in written.callbacks {
            callback.call(Ok(()));
        }
        drop(written.permits);
        // In order too: a gap among the files is a damaged log.
        let dead = self.release(written.released);
        for path in &dead {
            self.shared.vfs.remove(path)?;
        }
        if !dead.is_empty() {
            self.shared.vfs.sync_dir(&self.shared.dir)?;
        }
        done.next += 1;
        drop(done);
        self.done_changed.notify_all();
        Ok(())
    }

    /// Counts entries out of their segments; returns the files of the oldest
    /// segments that are left with none.
    fn release(&self, released: Vec<Released>) -> Vec<std::path::PathBuf> {
        let mut segments = self.shared.segments.lock();
        for (number, (entries, bytes)) in released.into_iter().flat_map(|r| r.0) {
            if let Some(segment) = segments.get_mut(&number) {
                segment.live = segment.live.saturating_sub(entries);
                segment.live_bytes = segment.live_bytes.saturating_sub(bytes);
            }
        }
        let mut dead = Vec::new();
        while segments.len() > 1 {
            match segments.first_entry() {
                Some(oldest) if oldest.get().live == 0 => dead.push(oldest.remove().path),
                _ => break,
            }
        }
        dead
    }

    /// An empty batch whose header says that everything before it is synced.
    fn mark_clean(&self, end: &mut End, handle: &mut Handle) -> io::Result<()> {
        if self.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let all_done = {
            let mut done = self.done.lock();
            while done.next != end.ticket && !self.failed.load(Ordering::Acquire) {
                self.done_changed.wait(&mut done);
            }
            done.next == end.ticket
        };
        let marked = *self.synced.lock() == (end.segment, end.offset);
        if !all_done || !marked {
            return Ok(());
        }
        let batch = Batch::new(end.segment, end.offset);
        self.append_batch(end, handle, batch)?;
        self.open(end.segment, handle)?.sync()
    }

    /// D3: nothing is known about the log any more.
    fn fail(&self, error: &io::Error) {
        if self.failed.swap(true, Ordering::AcqRel) {
            return;
        }
        let dir = self.shared.dir.display();
        (self.shared.options.fatal)(&match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => format!(
                "disk full: cannot write in {dir}: make room there, then start this process again"
            ),
            _ => format!("write or sync in {dir}: {error}"),
        });
        // Only a test's hook returns.
        self.budget.close();
        let items = std::mem::take(&mut self.queue.lock().items);
        for item in items {
            item.refuse(closed());
        }
        self.wake.notify_all();
        // Under the lock, or a thread between its check and its wait misses it.
        drop(self.done.lock());
        self.done_changed.notify_all();
    }
}

/// The file of a segment.
pub(crate) fn segment_path(dir: &std::path::Path, number: u64) -> std::path::PathBuf {
    dir.join(format!("{number:016}.raftlog"))
}
