//! The seam for time.
//!
//! [`Clock::now`] answers an interval that contains the cluster's reference
//! time (DESIGN section 3). [`ClusterClock`] is a process's own: it asks the
//! metaservice's leader four times a second and knows its error. `discipline.rs`
//! is what it makes of the answers, `master.rs` what the leader answers; both
//! are pure, and `simulation.rs` lets them meet drifting counters, slow
//! messages and changing leaders.
//!
//! [`Stopwatch`] measures durations for metrics; durations never decide
//! anything that must be safe.
#![allow(clippy::disallowed_methods)] // the one place that may read clocks

mod cluster;
mod compare;
mod counter;
pub mod discipline;
pub mod master;
#[cfg(test)]
mod simulation;

pub use cluster::ClusterClock;
pub use compare::{Culprit, meet};
use counter::read_counter;
pub use counter::{SOUND_PPM, jump_counter, monotonic_raw_us, run_counter_at};

use crate::{Result, Timestamp};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A process whose error is larger starts no transactions.
pub const MAX_CLOCK_ERROR: Duration = Duration::from_millis(500);

/// How often a process asks the time master (T2).
pub const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// The reference time lies in `[earliest, latest]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// Not after the reference time.
    pub earliest: Timestamp,
    /// Not before the reference time.
    pub latest: Timestamp,
}

/// Where time comes from.
pub trait Clock: Send + Sync + std::fmt::Debug + 'static {
    /// An interval that contains the cluster's reference time.
    ///
    /// # Errors
    /// When the clock is not synchronised: the process must not start
    /// transactions (SQLSTATE 57P03).
    fn now(&self) -> Result<Interval>;

    /// Changes when what the clock has said may have been wrong: nothing that was read
    /// at a time of before may be answered (T1).
    fn generation(&self) -> u64 {
        0
    }

    /// T1: a message has arrived whose sender's earliest time was `theirs`. `None`
    /// when that fits; else one of the two clocks is wrong, and the answer says which,
    /// when the time master has been asked. (`compare.rs` says more.)
    fn compare(&self, theirs: Timestamp) -> Option<Comparing<'_>> {
        let _ = theirs;
        None
    }
}

/// Asks the time master whose clock is wrong.
pub type Comparing<'a> = Pin<Box<dyn Future<Output = Culprit> + Send + 'a>>;

/// A shared clock.
pub type SharedClock = Arc<dyn Clock>;

/// Returns when `earliest` has passed `timestamp`: commit wait (PROTOCOLS T5).
///
/// # Errors
/// When the clock loses synchronisation meanwhile.
pub async fn wait_past(clock: &dyn Clock, timestamp: Timestamp) -> Result<()> {
    loop {
        let now = clock.now()?.earliest;
        if now.micros() > timestamp.micros() {
            return Ok(());
        }
        let missing = timestamp.micros() - now.micros() + 1;
        if missing < 50 {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(Duration::from_micros(missing)).await;
        }
    }
}

/// The clock of a process that is alone with its cluster, as tests are: it
/// starts at the wall clock, and has no error.
#[derive(Debug)]
pub struct LoneClock {
    /// The time when the raw counter stood at 0.
    offset_us: u64,
}

impl LoneClock {
    /// A clock that starts now.
    pub fn start() -> Arc<Self> {
        Arc::new(LoneClock {
            offset_us: wall_clock_us().saturating_sub(monotonic_raw_us()),
        })
    }
}

impl Clock for LoneClock {
    fn now(&self) -> Result<Interval> {
        let now = Timestamp::from_micros(self.offset_us + monotonic_raw_us());
        Ok(Interval {
            earliest: now,
            latest: now,
        })
    }
}

/// A clock that tests move by hand.
#[derive(Debug)]
pub struct ManualClock {
    us: AtomicU64,
}

impl ManualClock {
    /// A clock that stands at `micros`.
    pub fn at(micros: u64) -> Arc<Self> {
        Arc::new(ManualClock {
            us: AtomicU64::new(micros),
        })
    }

    /// Moves it forward.
    pub fn advance(&self, micros: u64) {
        self.us.fetch_add(micros, Ordering::AcqRel);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Result<Interval> {
        let now = Timestamp::from_micros(self.us.load(Ordering::Acquire));
        Ok(Interval {
            earliest: now,
            latest: now,
        })
    }
}

/// The wall clock in microseconds since 1970: for people (`now()`, logs), never
/// for ordering.
pub fn wall_clock_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_micros() as u64)
}

/// How long this machine has slept since its boot, in microseconds: what its
/// monotonic counters have missed.
pub fn suspended_us() -> u64 {
    loop {
        let before = read_counter(libc::CLOCK_MONOTONIC);
        let boot = read_counter(libc::CLOCK_BOOTTIME);
        // Unless this thread was not running in between.
        if read_counter(libc::CLOCK_MONOTONIC) - before < 1_000 {
            return boot.saturating_sub(before);
        }
    }
}

/// Sleeps of the machine shorter than this cannot be told from the time that
/// two readings take.
const SUSPENDED_US_MIN: u64 = 5_000;

/// Tells whether the machine has slept (rule T1): then its raw counter stood
/// still while the time went on.
#[derive(Debug)]
pub struct SleepWatch(AtomicU64);

impl SleepWatch {
    /// Watches from now on.
    pub fn start() -> Self {
        SleepWatch(AtomicU64::new(suspended_us()))
    }

    /// True if the machine has slept since the last [`SleepWatch::awake`].
    pub fn has_slept(&self) -> bool {
        suspended_us() > self.0.load(Ordering::Relaxed) + SUSPENDED_US_MIN
    }

    /// What followed from that is done.
    pub fn awake(&self) {
        self.0.store(suspended_us(), Ordering::Relaxed);
    }
}

/// Identifies the raw counter that this process reads: the boot of its machine,
/// and its time namespace; `None` where the system does not say.
pub fn counter_id() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/time").unwrap_or_default();
    Some(format!("{} {}", boot.trim(), namespace.display()))
}

/// Measures how long something took.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    pub fn start() -> Self {
        Stopwatch(Instant::now())
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    /// Microseconds since the start, at most `u32::MAX`.
    pub fn elapsed_us(&self) -> u32 {
        self.0.elapsed().as_micros().min(u32::MAX as u128) as u32
    }
}

/// A deadline for tokio's timers.
pub fn deadline_after(duration: Duration) -> tokio::time::Instant {
    tokio::time::Instant::now() + duration
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_clock_starts_at_the_wall_clock() {
        let clock = LoneClock::start();
        let (now, wall) = (clock.now().unwrap().latest, wall_clock_us());
        assert!(now.micros().abs_diff(wall) < 10_000_000, "{now} {wall}");
        assert!(clock.now().unwrap().earliest >= now);
    }

    #[test]
    fn an_awake_machine_has_slept_as_long_as_before() {
        let before = suspended_us();
        assert!(suspended_us().abs_diff(before) < 5_000);
    }
}
