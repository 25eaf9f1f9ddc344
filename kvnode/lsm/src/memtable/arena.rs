//! Memory for entries, cut from large chunks.
//!
//! Several writers take pieces at once: a piece is one atomic addition, only a new chunk takes a lock. Nothing is given
//! back before all of it: a chunk lives as long as its arena or as any [`Pinned`] that points into it. Its memory goes
//! to the [`pool`](super::pool), for the next memtable.
//!
//! The chunks of a large arena are huge pages where the system has them: a search through a skiplist jumps about in all
//! of the arena, and with pages of 4 KiB half of what it waits for is address translation.

use super::pool::{ChunkPool, HUGE_PAGE_BYTES, Memory};
use parking_lot::Mutex;
use std::mem::ManuallyDrop;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// Size of the first chunk; each next one is twice as large, up to [`CHUNK_BYTES_MAX`].
const CHUNK_BYTES_MIN: usize = 4 << 10;
const CHUNK_BYTES_MAX: usize = HUGE_PAGE_BYTES;
/// Pieces from this size on have a chunk of their own.
const LARGE_PIECE_BYTES: usize = 64 << 10;
/// All pieces begin at a multiple of this.
const ALIGN: usize = 8;

/// A piece of memory that entries are cut from.
pub(crate) struct Chunk {
    memory: ManuallyDrop<Memory>,
    /// Bytes given out; more than there are once the chunk is full.
    used: AtomicUsize,
    /// Where the memory goes when nobody points into it any more.
    pool: Weak<ChunkPool>,
}

impl Chunk {
    fn new(bytes: usize, pool: &Weak<ChunkPool>) -> Self {
        let bytes = bytes.next_multiple_of(ALIGN).max(ALIGN);
        let memory = match pool.upgrade() {
            Some(pool) => pool.take(bytes, ALIGN),
            None => Memory::new(bytes, ALIGN),
        };
        Self {
            memory: ManuallyDrop::new(memory),
            used: AtomicUsize::new(0),
            pool: Weak::clone(pool),
        }
    }

    /// So many bytes that are nobody else's, aligned; `None` if there are not so many left.
    fn take(&self, bytes: usize) -> Option<NonNull<u8>> {
        let bytes = bytes.next_multiple_of(ALIGN);
        if self.used.load(Ordering::Relaxed) > self.memory.bytes() {
            return None;
        }
        let at = self.used.fetch_add(bytes, Ordering::Relaxed);
        let fits = at + bytes <= self.memory.bytes();
        // SAFETY: the piece ends within the memory.
        fits.then(|| unsafe { self.memory.start().add(at) })
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: taken once, as the chunk is dropped once; its last owner says that nobody points into it any more.
        let memory = unsafe { ManuallyDrop::take(&mut self.memory) };
        if let Some(pool) = self.pool.upgrade() {
            pool.give_back(memory);
        }
    }
}

/// Where the entries of a memtable set lie.
pub(crate) struct Arena {
    /// The chunk that pieces are cut from; null before the first.
    current: AtomicPtr<Chunk>,
    /// All chunks, each from `Arc::into_raw`.
    chunks: Mutex<Vec<NonNull<Chunk>>>,
    pool: Weak<ChunkPool>,
}

// SAFETY: the pointers are owned references to chunks, which may be used and dropped anywhere.
unsafe impl Send for Arena {}
// SAFETY: as above; the list is behind a lock.
unsafe impl Sync for Arena {}

impl Arena {
    /// Takes memory from the pool, and gives it back to it as long as it lives.
    pub fn new(pool: Weak<ChunkPool>) -> Self {
        Self {
            current: AtomicPtr::new(null_mut()),
            chunks: Mutex::new(Vec::new()),
            pool,
        }
    }

    /// So many bytes, aligned to 8 and not initialised, and the chunk that they lie in. Both live as long as the arena.
    pub fn allocate(&self, bytes: usize) -> (NonNull<u8>, NonNull<Chunk>) {
        loop {
            let current = NonNull::new(self.current.load(Ordering::Acquire));
            // SAFETY: chunks live as long as the arena.
            if let Some(chunk) = current
                && let Some(piece) = unsafe { chunk.as_ref() }.take(bytes)
            {
                return (piece, chunk);
            }
            let mut chunks = self.chunks.lock();
            if bytes >= LARGE_PIECE_BYTES {
                // A chunk of its own: what is left of the current one is not given up for it.
                let chunk = self.add(&mut chunks, bytes);
                // SAFETY: as above.
                if let Some(piece) = unsafe { chunk.as_ref() }.take(bytes) {
                    return (piece, chunk);
                }
            } else if NonNull::new(self.current.load(Ordering::Relaxed)) == current {
                let doubled = CHUNK_BYTES_MIN << chunks.len().min(9);
                let chunk = self.add(&mut chunks, doubled.clamp(bytes, CHUNK_BYTES_MAX));
                self.current.store(chunk.as_ptr(), Ordering::Release);
            }
        }
    }

    fn add(&self, chunks: &mut Vec<NonNull<Chunk>>, bytes: usize) -> NonNull<Chunk> {
        let chunk = Arc::into_raw(Arc::new(Chunk::new(bytes, &self.pool))).cast_mut();
        // SAFETY: an `Arc` never points to null.
        let chunk = unsafe { NonNull::new_unchecked(chunk) };
        chunks.push(chunk);
        chunk
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        for chunk in self.chunks.get_mut() {
            // SAFETY: from `Arc::into_raw`, and given back once.
            drop(unsafe { Arc::from_raw(chunk.as_ptr()) });
        }
    }
}

/// Bytes in a chunk, which they keep alive.
#[derive(Clone)]
pub(crate) struct Pinned {
    start: NonNull<u8>,
    length: usize,
    _chunk: Arc<Chunk>,
}

// SAFETY: these bytes are not written any more, and the chunk may be dropped anywhere.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// # Safety
    /// `chunk` is from [`Arena::allocate`] of an arena that lives, and so many bytes from `start` on lie in it, are
    /// initialised, and are never written again.
    pub unsafe fn new(start: NonNull<u8>, length: usize, chunk: NonNull<Chunk>) -> Self {
        // SAFETY: the pointer is from `Arc::into_raw`, and the arena holds a count of it.
        let chunk = unsafe {
            Arc::increment_strong_count(chunk.as_ptr());
            Arc::from_raw(chunk.as_ptr())
        };
        Self {
            start,
            length,
            _chunk: chunk,
        }
    }
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: as promised to `new`; the chunk is held.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_aligned_and_apart() {
        let arena = Arena::new(Weak::new());
        let sizes = [1, 7, 8, 9, 4000, 70_000, 3, 900_000, 2 << 20, 100, 1];
        let pieces: Vec<_> = std::thread::scope(|scope| {
            let take = || sizes.map(|size| (arena.allocate(size).0.as_ptr() as usize, size));
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            let pieces = threads.into_iter().filter_map(|thread| thread.join().ok());
            pieces.flatten().collect()
        });
        assert_eq!(pieces.len(), 44);
        for (at, (start, size)) in pieces.iter().enumerate() {
            assert_eq!(start % ALIGN, 0);
            for (other, other_size) in &pieces[at + 1..] {
                assert!(start + size <= *other || other + other_size <= *start);
            }
        }
    }

    #[test]
    fn memory_comes_back_when_nobody_points_into_it_and_not_before() {
        let pool = Arc::new(ChunkPool::new(CHUNK_BYTES_MAX));
        let arena = Arena::new(Arc::downgrade(&pool));
        // The first piece of the first huge page.
        let (start, chunk) = loop {
            let (start, chunk) = arena.allocate(60_000);
            // SAFETY: chunks live as long as the arena.
            if unsafe { chunk.as_ref() }.memory.bytes() == CHUNK_BYTES_MAX {
                break (start, chunk);
            }
        };
        // SAFETY: the piece has three bytes, written here and never again.
        let pinned = unsafe {
            start.as_ptr().copy_from(b"abc".as_ptr(), 3);
            Pinned::new(start, 3, chunk)
        };
        drop(arena);
        assert_eq!(pool.bytes(), 0);
        assert_eq!(pinned.as_ref(), b"abc");
        drop(pinned);
        assert_eq!(pool.bytes(), CHUNK_BYTES_MAX);
        // The next one writes over it, and outlives the pool.
        let again = pool.take(CHUNK_BYTES_MAX, ALIGN);
        assert_eq!(again.start(), start);
        drop(pool);
        // SAFETY: as above; the memory is `again`'s.
        unsafe { again.start().as_ptr().write_bytes(7, CHUNK_BYTES_MAX) };
    }

    #[test]
    fn pinned_bytes_outlive_their_arena() {
        let arena = Arena::new(Weak::new());
        let (start, chunk) = arena.allocate(3);
        // SAFETY: the piece has three bytes, written here and never again.
        let pinned = unsafe {
            start.as_ptr().copy_from(b"abc".as_ptr(), 3);
            Pinned::new(start, 3, chunk)
        };
        drop(arena);
        assert_eq!(pinned.clone().as_ref(), b"abc");
    }
}
