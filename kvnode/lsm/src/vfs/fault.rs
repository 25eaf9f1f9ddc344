//! Read errors of mapped files (rule D4).
//!
//! A disk that cannot read a page of a mapped file, or a file cut short under its map, does not answer a read with an
//! error: the thread that touches the page gets SIGBUS, wherever it stands. There is no way to go on from there, and
//! serving without the page would be guessing. So the process says which file it was and ends at once; what it had
//! acknowledged is in the log and on the other replicas.
//!
//! The handler may only do what is safe inside a signal: it reads a table of atomics, writes to standard error and
//! exits. Maps enter the table when they are made ([`Mapped`]) and leave it before they go.

use memmap2::Mmap;
use std::ffi::CString;
use std::path::Path;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// The exit code of a process that met a read error in a map.
pub const FAULT_EXIT_CODE: i32 = 74;
/// Maps known by name at once; faults in others are reported without one.
const SLOTS: usize = 16 * 1024;

struct Slot {
    /// First address; 0: free, 1: being filled.
    start: AtomicUsize,
    end: AtomicUsize,
    name: AtomicPtr<libc::c_char>,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        name: AtomicPtr::new(std::ptr::null_mut()),
    }
}; SLOTS];

/// Where the next search for a free slot begins.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A map whose faults are reported with the name of its file.
pub(super) struct Mapped {
    map: Mmap,
    slot: Option<&'static Slot>,
    /// Read by the handler through the slot.
    _name: Option<CString>,
}

impl Mapped {
    pub(super) fn new(map: Mmap, path: &Path) -> Self {
        let name = CString::new(path.to_string_lossy().as_bytes()).ok();
        let slot = name.as_ref().and_then(|name| enter(&map, name));
        Mapped {
            map,
            slot,
            _name: name,
        }
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // Before the map and the name go.
        if let Some(slot) = self.slot {
            slot.start.store(0, Ordering::Release);
        }
    }
}

fn enter(map: &Mmap, name: &CString) -> Option<&'static Slot> {
    let from = NEXT.fetch_add(1, Ordering::Relaxed);
    let slot = (0..SLOTS)
        .map(|at| &TABLE[from.wrapping_add(at) % SLOTS])
        .find(|slot| {
            let free = slot.start.load(Ordering::Relaxed) == 0;
            free && (slot.start)
                .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        })?;
    let start = map.as_ptr() as usize;
    slot.end.store(start + map.len(), Ordering::Relaxed);
    slot.name.store(name.as_ptr().cast_mut(), Ordering::Relaxed);
    slot.start.store(start, Ordering::Release);
    Some(slot)
}

/// From now on a read error in a mapped file ends the process with
/// [`FAULT_EXIT_CODE`] and a line on standard error that names the file. For the `main` of a service.
pub fn exit_on_map_faults() {
    // SAFETY: `on_fault` has the signature that SA_SIGINFO asks for and does only what is safe inside a signal;
    // an all-zero `sigaction` is valid, with an empty mask.
    let installed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_fault;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut())
    };
    if installed != 0 {
        tracing::warn!("faults in mapped files will not be named");
    }
}

extern "C" fn on_fault(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel hands a valid `siginfo_t` of a SIGBUS to a SA_SIGINFO handler.
    let address = unsafe { (*info).si_addr() } as usize;
    say(b"a mapped file cannot be read: ");
    let hit = TABLE.iter().find(|slot| {
        let start = slot.start.load(Ordering::Acquire);
        start > 1 && start <= address && address < slot.end.load(Ordering::Relaxed)
    });
    match hit {
        // SAFETY: the thread that faulted holds the map, so the map has not been dropped, and with it its name is
        // still there.
        Some(slot) => {
            say(unsafe { std::ffi::CStr::from_ptr(slot.name.load(Ordering::Relaxed)) }.to_bytes())
        }
        None => say(b"an unknown one"),
    }
    say(b"; the disk failed or the file was cut. This process stops: restart it, or replace the disk\n");
    // SAFETY: `_exit` may be called in a signal handler.
    unsafe { libc::_exit(FAULT_EXIT_CODE) }
}

fn say(text: &[u8]) {
    // SAFETY: the pointer and the length are those of `text`; `write` may be called in a signal handler. Nothing
    // can be done when it fails.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::{RealVfs, Vfs};
    use std::process::Command;

    const FILE: &str = "LSM_TEST_FAULTY_FILE";

    /// Does nothing on its own: it is what the test below runs in another process.
    #[test]
    fn child_touches_a_map_of_a_file_that_was_cut() {
        let Some(path) = std::env::var_os(FILE) else {
            return;
        };
        exit_on_map_faults();
        let path = Path::new(&path);
        let bytes = RealVfs.map(path).unwrap();
        std::fs::File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(0)
            .unwrap();
        std::hint::black_box(bytes[5000]);
    }

    #[test]
    fn d4_a_fault_in_a_map_names_the_file_and_ends_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("000042.sst");
        std::fs::write(&path, vec![7; 20_000]).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("vfs::fault::tests::child_touches_a_map_of_a_file_that_was_cut")
            .env(FILE, &path)
            .output()
            .unwrap();
        assert_eq!(child.status.code(), Some(FAULT_EXIT_CODE));
        let said = String::from_utf8_lossy(&child.stderr);
        assert!(said.contains("000042.sst"), "{said}");
    }
}
