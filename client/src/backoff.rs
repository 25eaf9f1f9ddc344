//! Pauses between attempts: doubling, jittered (so that those who failed
//! together do not come back together), capped.

use lineradb_common::random;
use std::time::Duration;
use tokio::time::Instant;

/// The next pause.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// Starts at `first`, doubles up to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Backoff {
            next: first,
            longest,
        }
    }

    /// For an election or a split: from 2 ms to 100 ms.
    pub fn routing() -> Self {
        Self::new(Duration::from_millis(2), Duration::from_millis(100))
    }

    /// For a transaction in the way: from 1 ms to 50 ms.
    pub fn contention() -> Self {
        Self::new(Duration::from_millis(1), Duration::from_millis(50))
    }

    /// How long to pause now: between half and all of the present step.
    pub fn step(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.longest);
        step.mul_f64(0.5 + random::unit() / 2.0)
    }

    /// Pauses; `false` when the deadline comes first (it then has passed).
    pub async fn pause(&mut self, deadline: Instant) -> bool {
        tokio::time::timeout_at(deadline, tokio::time::sleep(self.step()))
            .await
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_double_up_to_the_cap() {
        let mut backoff = Backoff::new(Duration::from_millis(4), Duration::from_millis(10));
        for bound in [4, 8, 10, 10] {
            let step = backoff.step();
            assert!(
                step <= Duration::from_millis(bound) && step * 2 >= Duration::from_millis(bound)
            );
        }
    }
}
