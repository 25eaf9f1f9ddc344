//! The only place of the crate that looks at a clock or sleeps: to measure how long writers were held up, and to
//! slow them down. A database that runs inline never comes here.

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

/// Pauses the calling thread.
#[allow(clippy::disallowed_methods)]
pub(crate) fn sleep_micros(micros: u64) {
    std::thread::sleep(Duration::from_micros(micros));
}
