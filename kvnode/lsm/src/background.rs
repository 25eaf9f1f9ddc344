//! The threads of a database, and how they are told about work.
//!
//! [`Signal`] is a counter that moves whenever something may have changed: a memtable got full, a flush ended, the
//! database closes. Whoever waits reads the counter, then looks at the condition, then waits for the counter to
//! move on; so no change is ever missed. [`Workers`] holds the threads; each runs its job until told to stop.

use parking_lot::{Condvar, Mutex};
use std::thread::JoinHandle;

/// Wakes everyone who waits for a change.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    generation: Mutex<u64>,
    changed: Condvar,
}

impl Signal {
    /// To be read before looking at the condition.
    pub fn generation(&self) -> u64 {
        *self.generation.lock()
    }

    /// Says that something changed.
    pub fn notify(&self) {
        *self.generation.lock() += 1;
        self.changed.notify_all();
    }

    /// Waits until something changed after `seen` was read.
    pub fn wait(&self, seen: u64) {
        let mut generation = self.generation.lock();
        while *generation == seen {
            self.changed.wait(&mut generation);
        }
    }
}

/// Running threads.
#[derive(Default)]
pub(crate) struct Workers {
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Workers {
    /// Starts a thread.
    #[allow(clippy::disallowed_methods)]
    pub fn spawn(&self, name: &str, job: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let handle = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(job)?;
        self.handles.lock().push(handle);
        Ok(())
    }

    /// Waits for all threads to end; called after they were told to. A worker that calls this (its callback dropped
    /// the last handle) does not wait for itself.
    pub fn join(&self) {
        let handles = std::mem::take(&mut *self.handles.lock());
        for handle in handles {
            if handle.thread().id() != std::thread::current().id() && handle.join().is_err() {
                tracing::error!("a background thread of the database panicked");
            }
        }
    }
}
