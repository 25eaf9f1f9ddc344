//! Hybrid logical clock timestamps (Kulkarni et al., "Logical Physical Clocks",
//! 2014): one `u64`, microseconds in the upper 52 bits and a logical counter in
//! the lower 12. Readings of a clock have a logical part of 0; only a push that
//! must land *just above* another timestamp uses the counter (PROTOCOLS T5).

use std::fmt;

const LOGICAL_BITS: u32 = 12;

/// A point on the cluster's time line. `Timestamp::ZERO` means "none".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Before everything; also "none".
    pub const ZERO: Timestamp = Timestamp(0);
    /// After everything.
    pub const MAX: Timestamp = Timestamp(u64::MAX);

    /// The timestamp with this raw value, as it stands in messages and on disk.
    pub const fn from_raw(raw: u64) -> Self {
        Timestamp(raw)
    }

    /// The raw value.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// A clock reading: whole microseconds, logical part 0.
    pub const fn from_micros(micros: u64) -> Self {
        Timestamp(micros << LOGICAL_BITS)
    }

    /// Microseconds since the epoch, rounded down.
    pub const fn micros(self) -> u64 {
        self.0 >> LOGICAL_BITS
    }

    /// The logical counter.
    pub const fn logical(self) -> u64 {
        self.0 & ((1 << LOGICAL_BITS) - 1)
    }

    /// The next timestamp: what a push takes to be just above this one.
    pub const fn next(self) -> Self {
        Timestamp(self.0.saturating_add(1))
    }

    /// The previous timestamp.
    pub const fn previous(self) -> Self {
        Timestamp(self.0.saturating_sub(1))
    }

    /// This timestamp moved forward by some microseconds.
    pub const fn plus_micros(self, micros: u64) -> Self {
        Timestamp(self.0.saturating_add(micros << LOGICAL_BITS))
    }

    /// True for `ZERO`.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.micros(), self.logical())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_timestamp_is_above_and_keeps_the_microsecond() {
        let t = Timestamp::from_micros(17);
        assert!(t.next() > t);
        assert_eq!(t.next().micros(), 17);
        assert_eq!(t.next().previous(), t);
    }
}
