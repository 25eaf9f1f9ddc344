//! The only place of the crate that looks at a clock or sleeps: to measure how long writers were held up, and to
//! slow them and compactions down. A database that runs inline never comes here.

use std::time::{Duration, Instant};

/// Measures how long something takes.
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    #[allow(clippy::disallowed_methods)]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn elapsed_micros(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(Instant);

impl Moment {
    #[allow(clippy::disallowed_methods)]
    pub fn now() -> Self {
        Self(Instant::now())
    }

    pub fn after_micros(self, micros: u64) -> Self {
        let later = self.0.checked_add(Duration::from_micros(micros));
        Self(later.unwrap_or(self.0))
    }

    /// How long it takes to get there; 0 if it is over.
    pub fn micros_from_now(self) -> u64 {
        let left = self.0.saturating_duration_since(Self::now().0);
        u64::try_from(left.as_micros()).unwrap_or(u64::MAX)
    }
}

/// Pauses the calling thread.
#[allow(clippy::disallowed_methods)]
pub(crate) fn sleep_micros(micros: u64) {
    std::thread::sleep(Duration::from_micros(micros));
}
