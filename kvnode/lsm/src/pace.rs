//! How fast writers and compactions may go.
//!
//! **Back-pressure.** A writer that runs into a full level 0 or a full row of memtables stands still until a job is
//! done, which everyone behind it feels. So writers are slowed down before: the closer the limit, the lower the rate
//! at which groups may write, from [`RATE_MAX`] down to [`RATE_MIN`], by the square of the distance. What a group
//! owes is summed up, and slept off in pieces worth a sleep.
//!
//! **Rate limit.** Compactions share a budget of bytes per second, so that they leave the disk to others. Who has
//! written pays by waiting until the budget has caught up, at most [`NAP_MICROS`] at a time, between which it looks
//! whether it should stop or hurry.

use crate::clock::{Moment, sleep_micros};
use crate::options::Options;
use parking_lot::Mutex;

/// Bytes per second at which slowing down begins.
const RATE_MAX: u64 = 64 << 20;
/// Bytes per second right before writers stand still.
const RATE_MIN: u64 = 1 << 20;
/// A sleep shorter than this is not worth it.
const SLEEP_MICROS_MIN: u64 = 500;
/// A group pauses no longer than this at once.
const SLEEP_MICROS_MAX: u64 = 20_000;
/// The longest uninterrupted pause of a compaction.
const NAP_MICROS: u64 = 20_000;

/// How close to standing still writers are: 0 far, 1000 there.
pub(crate) fn pressure(
    options: &Options,
    level0_tables: usize,
    immutable_memtables: usize,
    active_bytes: usize,
) -> u64 {
    let share = |value: usize, from: usize, to: usize| match (value, to.saturating_sub(from)) {
        (value, _) if value < from => 0,
        (_, 0) => 1000,
        (value, span) => (1000 * (value - from + 1) / (span + 1)).min(1000) as u64,
    };
    let level0 = share(
        level0_tables,
        options.level0_slowdown_tables,
        options.level0_stall_tables.saturating_sub(1),
    );
    // With all but the last place taken, the second half of the active memtable is filled more and more slowly.
    let memtables = match immutable_memtables + 1 > options.immutable_memtables_max {
        true => share(
            active_bytes,
            options.memtable_bytes / 2,
            options.memtable_bytes,
        ),
        false => 0,
    };
    level0.max(memtables)
}

/// Microseconds that `bytes` may take under a pressure.
fn micros_for(bytes: usize, pressure: u64) -> u64 {
    if pressure == 0 {
        return 0;
    }
    let distance = 1000 - pressure.min(1000);
    let rate = (RATE_MAX * distance * distance / 1_000_000).max(RATE_MIN);
    bytes as u64 * 1_000_000 / rate
}

/// What the writers owe.
#[derive(Debug, Default)]
pub(crate) struct Backpressure {
    owed_micros: u64,
    /// Written, not charged yet.
    unpaid: usize,
}

impl Backpressure {
    /// Notes what came along with a leader that had paid for itself: the next one pays for it, since followers are
    /// only known when the leader has waited.
    pub fn came_along(&mut self, bytes: usize) {
        self.unpaid = self.unpaid.saturating_add(bytes);
    }

    /// Adds what a leader, and whoever came along since the last charge, cost under a pressure, and gives the pause
    /// that is due now.
    pub fn charge(&mut self, bytes: usize, pressure: u64) -> u64 {
        let bytes = bytes.saturating_add(std::mem::take(&mut self.unpaid));
        if pressure == 0 {
            self.owed_micros = 0;
            return 0;
        }
        self.owed_micros += micros_for(bytes, pressure);
        if self.owed_micros < SLEEP_MICROS_MIN {
            return 0;
        }
        let pause = self.owed_micros.min(SLEEP_MICROS_MAX);
        self.owed_micros -= pause;
        pause
    }
}

/// The budget of the compactions.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    bytes_per_second: u64,
    /// When everything paid for so far will have been written at the rate.
    free_at: Mutex<Option<Moment>>,
}

impl RateLimiter {
    pub fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            free_at: Mutex::new(None),
        }
    }

    /// When bytes written `now` will be paid for, after all those before.
    fn reserve(&self, bytes: u64, now: Moment) -> Moment {
        let mut free_at = self.free_at.lock();
        let from = free_at.filter(|moment| *moment > now).unwrap_or(now);
        let micros = bytes.saturating_mul(1_000_000) / self.bytes_per_second.max(1);
        *free_at.insert(from.after_micros(micros))
    }

    /// Pays for bytes written, by waiting; returns how long, in microseconds. `hurry` ends the waiting.
    pub fn pay(&self, bytes: u64, hurry: impl Fn() -> bool) -> u64 {
        if self.bytes_per_second == 0 || bytes == 0 {
            return 0;
        }
        let until = self.reserve(bytes, Moment::now());
        let mut waited = 0;
        loop {
            let left = until.micros_from_now();
            if left == 0 {
                return waited;
            }
            if hurry() {
                // What is written in a hurry is not made up for later.
                *self.free_at.lock() = None;
                return waited;
            }
            let nap = left.min(NAP_MICROS);
            sleep_micros(nap);
            waited += nap;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pressure_rises_towards_the_limits() {
        let options = Options {
            memtable_bytes: 1000,
            ..Options::default()
        };
        let of = |level0, immutable, active| pressure(&options, level0, immutable, active);
        assert_eq!(of(19, 1, 999), 0);
        let rising: Vec<u64> = (20..36).map(|level0| of(level0, 0, 0)).collect();
        assert!(
            rising.is_sorted() && rising[0] > 0 && rising[15] == 1000,
            "{rising:?}"
        );
        assert_eq!(of(0, 2, 499), 0);
        assert!((1..10).contains(&of(0, 2, 500)));
        assert_eq!(of(0, 2, 1000), 1000);
        assert_eq!(of(40, 2, 1000), 1000);
    }

    #[test]
    fn writers_pay_in_pieces_worth_a_sleep() {
        let mut backpressure = Backpressure::default();
        assert_eq!(backpressure.charge(1 << 30, 0), 0);
        // 100 bytes at the lowest rate are 95 microseconds.
        let pauses: Vec<u64> = (0..12).map(|_| backpressure.charge(100, 1000)).collect();
        assert_eq!(
            pauses.iter().filter(|pause| **pause >= 500).count(),
            2,
            "{pauses:?}"
        );
        assert_eq!(backpressure.charge(1 << 30, 1000), SLEEP_MICROS_MAX);
        // What the past owes is forgotten once there is room.
        assert_eq!(backpressure.charge(0, 0), 0);
        assert_eq!(backpressure.charge(1, 1), 0);
    }

    #[test]
    fn who_comes_along_is_paid_for_by_the_next() {
        let mut backpressure = Backpressure::default();
        assert_eq!(backpressure.charge(1, 1000), 0);
        backpressure.came_along(1 << 20);
        assert_eq!(backpressure.charge(1, 1000), SLEEP_MICROS_MAX);
        // Once, and not at all when there is room again.
        let mut other = Backpressure::default();
        other.came_along(1 << 20);
        assert_eq!(other.charge(1, 0), 0);
        assert_eq!(other.charge(1, 1000), 0);
    }

    #[test]
    fn a_limit_makes_wait_and_hurry_ends_it() {
        let limiter = RateLimiter::new(1 << 20);
        let now = Moment::now();
        assert_eq!(limiter.reserve(1 << 20, now), now.after_micros(1_000_000));
        assert_eq!(limiter.reserve(1 << 19, now), now.after_micros(1_500_000));
        let later = now.after_micros(9_000_000);
        let paid = later.after_micros(1_000_000);
        assert_eq!(limiter.reserve(1 << 20, later), paid);
        // Who is in a hurry does not wait, and nobody makes up for it.
        assert_eq!(limiter.pay(1 << 40, || true), 0);
        assert_eq!(limiter.reserve(1 << 20, now), now.after_micros(1_000_000));
        assert_eq!(RateLimiter::new(0).pay(1 << 40, || false), 0);
    }
}
