//! Memory that goes round: what a flushed memtable leaves, the next one fills.
//!
//! Memory that is new to the process is cleared by the kernel, page by page, at the first write to each: a tenth of what
//! an unsynced put costs, and for a huge page some 300 us in one writer's face. Only huge pages are kept, no more of them
//! than fill a memtable, and each byte that a memtable takes elsewhere gives one of them back to the system: so memtables
//! and pool together hold no more than memtables alone have held before.

use parking_lot::Mutex;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// A huge page: the size of most chunks, and of all that are kept.
pub(super) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Allocated bytes, not initialised.
pub(super) struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns the bytes, and does nothing with them.
unsafe impl Send for Memory {}
// SAFETY: as above; what is done with the bytes is up to those who ask for their address.
unsafe impl Sync for Memory {}

impl Memory {
    /// So many bytes, a multiple of `align`, which is a power of two; a huge page if they are the size of one.
    pub fn new(bytes: usize, align: usize) -> Self {
        debug_assert!(bytes > 0 && bytes.is_multiple_of(align));
        let align = match bytes {
            HUGE_PAGE_BYTES => HUGE_PAGE_BYTES,
            _ => align,
        };
        // An entry is less than 65 MiB long.
        let layout = Layout::from_size_align(bytes, align).unwrap_or(Layout::new::<u64>());
        // SAFETY: the layout is not of size 0.
        let start = NonNull::new(unsafe { alloc(layout) });
        let start = start.unwrap_or_else(|| handle_alloc_error(layout));
        let memory = Self { start, layout };
        if memory.is_huge_page() {
            advise_huge_page(start);
        }
        memory
    }

    fn is_huge_page(&self) -> bool {
        self.layout.align() == HUGE_PAGE_BYTES
    }

    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub fn bytes(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and given back once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// Asks for the [`HUGE_PAGE_BYTES`] from here on to be one page. Where that cannot be, they are many.
fn advise_huge_page(memory: NonNull<u8>) {
    #[cfg(all(target_os = "linux", not(miri)))]
    // SAFETY: whole pages of one allocation, aligned to their size; the advice changes nothing about what is in them.
    unsafe {
        libc::madvise(memory.as_ptr().cast(), HUGE_PAGE_BYTES, libc::MADV_HUGEPAGE);
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = memory;
}

/// Huge pages that nobody uses now.
#[derive(Default)]
pub(crate) struct ChunkPool(Mutex<Free>);

#[derive(Default)]
struct Free {
    chunks: Vec<Memory>,
    chunks_max: usize,
    /// Bytes taken elsewhere that have displaced nothing yet: less than a huge page.
    displacing: usize,
}

impl ChunkPool {
    /// For memtables of so many bytes.
    pub fn new(memtable_bytes: usize) -> Self {
        Self(Mutex::new(Free {
            chunks_max: memtable_bytes / HUGE_PAGE_BYTES,
            ..Free::default()
        }))
    }

    /// Memory for a chunk of this size: a huge page that was given back, if it is to be one.
    pub(super) fn take(&self, bytes: usize, align: usize) -> Memory {
        let mut displaced = Vec::new();
        if bytes == HUGE_PAGE_BYTES {
            if let Some(memory) = self.0.lock().chunks.pop() {
                return memory;
            }
        } else {
            let mut free = self.0.lock();
            free.displacing += bytes;
            let count = (free.displacing / HUGE_PAGE_BYTES).min(free.chunks.len());
            free.displacing %= HUGE_PAGE_BYTES;
            let kept = free.chunks.len() - count;
            displaced = free.chunks.split_off(kept);
        }
        drop(displaced);
        Memory::new(bytes, align)
    }

    /// Keeps a huge page for the next who asks, if there is room.
    pub(super) fn give_back(&self, memory: Memory) {
        if memory.is_huge_page() {
            let mut free = self.0.lock();
            if free.chunks.len() < free.chunks_max {
                free.chunks.push(memory);
            }
        }
    }

    /// Nothing is written any more: gives everything back to the system, and keeps nothing.
    pub fn close(&self) {
        let mut free = self.0.lock();
        free.chunks_max = 0;
        let chunks = std::mem::take(&mut free.chunks);
        drop(free);
        drop(chunks);
    }

    /// Bytes that are kept now.
    pub fn bytes(&self) -> usize {
        self.0.lock().chunks.len() * HUGE_PAGE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_go_round_and_whatever_else_is_taken_displaces_them() {
        let pool = ChunkPool::new(2 * HUGE_PAGE_BYTES);
        let pages: Vec<Memory> = (0..3).map(|_| pool.take(HUGE_PAGE_BYTES, 8)).collect();
        let starts: Vec<_> = pages.iter().map(Memory::start).collect();
        assert!(
            starts
                .iter()
                .all(|start| (start.as_ptr() as usize).is_multiple_of(HUGE_PAGE_BYTES))
        );
        pages.into_iter().for_each(|page| pool.give_back(page));
        assert_eq!(pool.bytes(), 2 * HUGE_PAGE_BYTES);
        let page = pool.take(HUGE_PAGE_BYTES, 8);
        assert!(starts.contains(&page.start()));
        pool.give_back(page);
        // As large as a huge page in all, and not one.
        let pieces: Vec<Memory> = (0..4).map(|_| pool.take(HUGE_PAGE_BYTES / 4, 8)).collect();
        assert_eq!(pool.bytes(), HUGE_PAGE_BYTES);
        pieces.into_iter().for_each(|piece| pool.give_back(piece));
        assert_eq!(pool.bytes(), HUGE_PAGE_BYTES);
        drop(pool.take(9 * HUGE_PAGE_BYTES, 8));
        assert_eq!(pool.bytes(), 0);
        let page = pool.take(HUGE_PAGE_BYTES, 8);
        pool.close();
        pool.give_back(page);
        assert_eq!(pool.bytes(), 0);
    }
}
