//! The machine's raw counter, and what a test does to it: the counter of a
//! machine that was moved to another one, whose crystal is bad, or that stood
//! still without anybody knowing. It never goes back.

use parking_lot::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The rate of a sound counter, in parts per million of itself.
pub const SOUND_PPM: u64 = 1_000_000;

/// Microseconds on the machine's raw monotonic counter.
pub fn monotonic_raw_us() -> u64 {
    let real = read_counter(libc::CLOCK_MONOTONIC_RAW);
    match IS_BROKEN.load(Ordering::Acquire) {
        true => COUNTER.read().at(real),
        false => real,
    }
}

/// From now on the raw counter of this process runs at another rate: at 0 it
/// stands still.
pub fn run_counter_at(ppm: u64) {
    break_counter(|counter| counter.ppm = ppm);
}

/// The raw counter of this process jumps ahead.
pub fn jump_counter(by: Duration) {
    let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
    break_counter(|counter| counter.shown = counter.shown.saturating_add(micros));
}

static IS_BROKEN: AtomicBool = AtomicBool::new(false);
static COUNTER: RwLock<Broken> = RwLock::new(Broken {
    real: 0,
    shown: 0,
    ppm: SOUND_PPM,
});

fn break_counter(how: impl FnOnce(&mut Broken)) {
    let mut counter = COUNTER.write();
    // Read with the lock taken: what is shown from here on is not before anything shown yet.
    let real = read_counter(libc::CLOCK_MONOTONIC_RAW);
    *counter = counter.moved_to(real);
    how(&mut counter);
    IS_BROKEN.store(true, Ordering::Release);
}

/// A counter that showed `shown` when a sound one was at `real`, and runs at a rate of its own since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Broken {
    real: u64,
    shown: u64,
    ppm: u64,
}

impl Broken {
    fn at(self, real: u64) -> u64 {
        // A reading may be of a moment before the last change.
        let passed = u128::from(real.saturating_sub(self.real));
        let passed = passed * u128::from(self.ppm) / u128::from(SOUND_PPM);
        let passed = u64::try_from(passed).unwrap_or(u64::MAX);
        self.shown.saturating_add(passed)
    }

    fn moved_to(self, real: u64) -> Broken {
        Broken {
            real,
            shown: self.at(real),
            ..self
        }
    }
}

pub(super) fn read_counter(clock: libc::clockid_t) -> u64 {
    let mut ts = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `ts` is a valid, writable timespec for the length of the call.
    let rc = unsafe { libc::clock_gettime(clock, &mut ts) };
    assert_eq!(rc, 0, "these counters exist on every supported kernel");
    ts.tv_sec as u64 * 1_000_000 + ts.tv_nsec as u64 / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The process's own counter is left alone: other tests read it.
    #[test]
    fn a_broken_counter_goes_on_from_where_it_was() {
        let sound = Broken {
            real: 0,
            shown: 0,
            ppm: SOUND_PPM,
        };
        assert_eq!(sound.at(5_000), 5_000);
        let mut still = sound.moved_to(10_000);
        still.ppm = 0;
        assert_eq!((still.at(10_000), still.at(90_000)), (10_000, 10_000));
        let mut fast = still.moved_to(20_000);
        fast.ppm = 1_500_000;
        assert_eq!((fast.at(19_000), fast.at(22_000)), (10_000, 13_000));
        let mut ahead = fast.moved_to(22_000);
        (ahead.shown, ahead.ppm) = (ahead.shown + 7_000, SOUND_PPM);
        assert_eq!(ahead.at(23_000), 21_000);
    }
}
