//! Faults that a test does to the disk and the clock of a running process.
//!
//! What only a process itself can break it breaks on command: started with the
//! hidden flag `--faults`, it reads its standard input, a line for each
//! [`Fault`]. So nobody but who started the process can do it, and a process
//! that starts again is sound. `chaos/` is who writes the lines; what comes
//! from outside of a process (kills, pauses, the network) it does itself.

use crate::clock::{SOUND_PPM, jump_counter, run_counter_at};
use std::io::BufRead;
use std::str::FromStr;
use std::time::Duration;

/// One fault, or the end of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Syncs of files take so much longer; zero: as long as they take.
    SyncDelay(Duration),
    /// There is no room on the disk; `false`: there is again.
    DiskFull(bool),
    /// The raw counter runs at this rate, in parts per million of a sound one.
    ClockRate(u64),
    /// The raw counter jumps ahead, and stays there.
    ClockJump(Duration),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::SyncDelay(delay) => write!(f, "sync-delay-us {}", delay.as_micros()),
            Fault::DiskFull(is_full) => write!(f, "disk-full {is_full}"),
            Fault::ClockRate(ppm) => write!(f, "clock-rate-ppm {ppm}"),
            Fault::ClockJump(by) => write!(f, "clock-jump-us {}", by.as_micros()),
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let wrong = || format!("{line:?} is no fault");
        let (name, value) = line.trim().split_once(' ').ok_or_else(wrong)?;
        let number = || value.parse::<u64>().map_err(|_| wrong());
        Ok(match name {
            "sync-delay-us" => Fault::SyncDelay(Duration::from_micros(number()?)),
            "disk-full" => Fault::DiskFull(value.parse().map_err(|_| wrong())?),
            "clock-rate-ppm" => Fault::ClockRate(number()?),
            "clock-jump-us" => Fault::ClockJump(Duration::from_micros(number()?)),
            _ => return Err(wrong()),
        })
    }
}

/// Obeys what comes on standard input, until that ends: faults of the clock
/// here, those of the disk by `disk`.
///
/// # Errors
/// When the operating system refuses a thread.
pub fn obey_stdin(disk: impl Fn(Fault) + Send + 'static) -> std::io::Result<()> {
    let obey = move || {
        for line in std::io::stdin().lock().lines() {
            // Who sends them is gone.
            let Ok(line) = line else { return };
            match line.parse() {
                Ok(fault) => {
                    tracing::warn!(%fault, "told to break");
                    break_clock(fault);
                    disk(fault);
                }
                Err(error) => tracing::error!(error, "told what is not understood"),
            }
        }
    };
    crate::spawn::thread("faults", obey).map(drop)
}

fn break_clock(fault: Fault) {
    match fault {
        Fault::ClockRate(ppm) => run_counter_at(ppm),
        Fault::ClockJump(by) => jump_counter(by),
        Fault::SyncDelay(_) | Fault::DiskFull(_) => {}
    }
}

impl Fault {
    /// What ends it. A clock that has jumped stays where it is: counters do not go back.
    #[must_use]
    pub fn end(self) -> Option<Fault> {
        match self {
            Fault::SyncDelay(_) => Some(Fault::SyncDelay(Duration::ZERO)),
            Fault::DiskFull(_) => Some(Fault::DiskFull(false)),
            Fault::ClockRate(_) => Some(Fault::ClockRate(SOUND_PPM)),
            Fault::ClockJump(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_fault() {
        for fault in [
            Fault::SyncDelay(Duration::from_millis(3)),
            Fault::DiskFull(true),
            Fault::ClockRate(0),
            Fault::ClockJump(Duration::from_micros(7)),
        ] {
            assert_eq!(format!("{fault}\n").parse(), Ok(fault));
        }
        for wrong in [
            "",
            "disk-full",
            "disk-full 1",
            "clock-rate-ppm -1",
            "sync 3",
        ] {
            assert!(wrong.parse::<Fault>().is_err(), "{wrong}");
        }
    }
}
