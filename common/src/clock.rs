//! The seam for time.
//!
//! [`Clock::now`] answers an interval that contains the cluster's reference
//! time (DESIGN section 3). Until the self-disciplined clock exists, every
//! process of a cluster runs on one machine and reads the same raw monotonic
//! counter, which no time daemon slews or steps: `T = offset +
//! CLOCK_MONOTONIC_RAW`. The offset is chosen once per boot of the machine by
//! the metaservice (never below the ceiling that it has persisted, PROTOCOLS
//! T3) and handed to every process, so that their readings are readings of one
//! clock and the error is 0. A process on another boot or another machine is
//! refused: its counter would be a different clock.
//!
//! [`Stopwatch`] measures durations for metrics; durations never decide
//! anything that must be safe.
#![allow(clippy::disallowed_methods)] // the one place that may read clocks

use crate::{Error, Result, Timestamp};
use parking_lot::RwLock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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
}

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

/// The clock of a cluster that lives on one machine.
#[derive(Debug, Default)]
pub struct MachineClock {
    base: RwLock<Option<Base>>,
    last_us: AtomicU64,
}

/// What makes the raw counter of a boot the cluster's time.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Base {
    /// The boot of the machine for which `offset_us` holds.
    pub boot_id: String,
    /// Added to the raw monotonic counter, in microseconds.
    pub offset_us: i64,
}

impl MachineClock {
    /// A clock that answers errors until it is given a base.
    pub fn unsynchronised() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Takes over the cluster's base.
    ///
    /// # Errors
    /// When the base belongs to another machine or boot.
    pub fn set_base(&self, base: Base) -> Result<()> {
        let here = boot_id();
        if base.boot_id != here {
            return Err(Error::new(
                crate::ErrorKind::Unavailable,
                format!(
                    "the cluster's clock runs on boot {}, this process on boot {here}: \
                     all processes of a cluster must run on one machine for now",
                    base.boot_id
                ),
            ));
        }
        *self.base.write() = Some(base);
        Ok(())
    }

    /// The base in use.
    pub fn base(&self) -> Option<Base> {
        self.base.read().clone()
    }

    /// A base for this boot whose time starts at the wall clock, or at
    /// `ceiling` if that is later.
    pub fn fresh_base(ceiling: Timestamp) -> Base {
        let start = wall_clock_us().max(ceiling.micros());
        Base {
            boot_id: boot_id(),
            offset_us: start as i64 - monotonic_raw_us() as i64,
        }
    }
}

impl Clock for MachineClock {
    fn now(&self) -> Result<Interval> {
        let offset = match &*self.base.read() {
            Some(base) => base.offset_us,
            None => {
                return Err(Error::new(
                    crate::ErrorKind::Unavailable,
                    "the clock is not synchronised yet: the metaservice has not been reached",
                ));
            }
        };
        let us = (monotonic_raw_us() as i64 + offset).max(0) as u64;
        // The raw counter never goes back; the maximum also covers a base that
        // is replaced while the process runs.
        let us = self.last_us.fetch_max(us, Ordering::AcqRel).max(us);
        let now = Timestamp::from_micros(us);
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

/// Microseconds on the machine's raw monotonic counter.
pub fn monotonic_raw_us() -> u64 {
    let mut ts = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `ts` is a valid, writable timespec for the length of the call.
    let rc = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_RAW, &mut ts) };
    assert_eq!(
        rc, 0,
        "CLOCK_MONOTONIC_RAW exists on every supported kernel"
    );
    ts.tv_sec as u64 * 1_000_000 + ts.tv_nsec as u64 / 1_000
}

/// Identifies the boot of this machine.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| "unknown-boot".to_owned(), |s| s.trim().to_owned())
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
    fn an_unsynchronised_clock_answers_an_error() {
        let clock = MachineClock::unsynchronised();
        assert!(clock.now().is_err());
        clock
            .set_base(MachineClock::fresh_base(Timestamp::ZERO))
            .unwrap();
        let a = clock.now().unwrap();
        let b = clock.now().unwrap();
        assert!(b.earliest >= a.latest);
    }

    #[test]
    fn time_never_starts_below_the_ceiling() {
        let ceiling = Timestamp::from_micros(wall_clock_us() + 3_600_000_000);
        let clock = MachineClock::unsynchronised();
        clock.set_base(MachineClock::fresh_base(ceiling)).unwrap();
        assert!(clock.now().unwrap().earliest >= ceiling);
    }

    #[test]
    fn a_base_of_another_boot_is_refused() {
        let clock = MachineClock::unsynchronised();
        let base = Base {
            boot_id: "elsewhere".into(),
            offset_us: 0,
        };
        assert!(clock.set_base(base).is_err());
    }
}
