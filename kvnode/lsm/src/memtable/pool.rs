//! Memory that goes round: what a flushed memtable leaves, the next one fills.
//!
//! Memory that is new to the process is cleared by the kernel, page by page, at the first write to each: a tenth of what
//! an unsynced put costs, and for a huge page some 300 us in one writer's face. Only chunks of one size are kept, no
//! more of them than fill a memtable; so a database does not hold more memory than it had in use before.

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
    /// At least one byte, aligned to `align`, a power of two; a huge page if it has the size of one.
    pub fn new(bytes: usize, align: usize) -> Self {
        let align = match bytes {
            HUGE_PAGE_BYTES => HUGE_PAGE_BYTES,
            _ => align,
        };
        let layout = Layout::from_size_align(bytes.next_multiple_of(align).max(align), align);
        // An entry is less than 65 MiB long.
        let layout = layout.unwrap_or(Layout::new::<u64>());
        // SAFETY: the layout is not of size 0.
        let start = NonNull::new(unsafe { alloc(layout) });
        let start = start.unwrap_or_else(|| handle_alloc_error(layout));
        if layout.size() == HUGE_PAGE_BYTES {
            advise_huge_page(start);
        }
        Self { start, layout }
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

/// Memory of the size of a huge page that nobody uses now.
#[derive(Default)]
pub(crate) struct ChunkPool {
    free: Mutex<Vec<Memory>>,
    chunks_max: usize,
}

impl ChunkPool {
    /// For memtables of so many bytes.
    pub fn new(memtable_bytes: usize) -> Self {
        Self {
            free: Mutex::default(),
            chunks_max: memtable_bytes / HUGE_PAGE_BYTES,
        }
    }

    /// Memory that was given back before.
    pub(super) fn take(&self) -> Option<Memory> {
        self.free.lock().pop()
    }

    /// Keeps memory for the next who asks, if it is of the right size and there is room.
    pub(super) fn give_back(&self, memory: Memory) {
        if memory.bytes() == HUGE_PAGE_BYTES {
            let mut free = self.free.lock();
            if free.len() < self.chunks_max {
                free.push(memory);
            }
        }
    }
}
