//! Clocks compared (rule T1, ADR 0009): every frame between a coordinator and a node
//! carries the sender's earliest time. It was sent before it arrived, so that must not
//! lie above the receiver's latest. If it does, one of the two clocks is wrong, whatever
//! their samples said: a counter that stood still with its machine, a time master that
//! answered what it should not.
//!
//! ```text
//!   receiver's interval      [e ... l]
//!   sender's                              [e' ... l']     e' > l: cannot both be right
//!   the time master, asked now, less what has passed      [E ........ L]
//!        e' >  L: the sender is wrong: the stream is closed
//!        e' <= L: we are wrong: drop all, ask anew; the frame counts
//!        no answer: nobody knows: the stream is closed
//! ```
//!
//! The rule says: drop all. Done at sight, one process whose clock is ahead takes
//! the time from every process that it talks to, and that is what T4 forbids (a clock's
//! fault must not spread). So the time master is asked first, at once, while the frame
//! waits. A process that gives in has another [generation](super::Clock::generation):
//! transactions that began before are not committed, since what they read may be older
//! than what others were told. A process that is behind notices in the first frame that
//! it receives, be it request or reply: so only the earliest time is carried.

use super::Clock;
use crate::Timestamp;

/// Whose clock is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Culprit {
    /// Our own: it has dropped what it knew, and has another generation.
    We,
    /// The other one.
    They,
    /// The time master does not say.
    Unknown,
}

/// A frame has arrived that left when the sender's earliest time was `theirs` (0: it had
/// none). Returns when it may be used.
///
/// # Errors
/// Why it must not be, and the stream with it.
pub async fn meet(clock: &dyn Clock, theirs: Timestamp) -> Result<(), &'static str> {
    let Some(comparing) = clock.compare(theirs) else {
        return Ok(());
    };
    match comparing.await {
        Culprit::We => Ok(()),
        Culprit::They => Err("the clock of the other process is ahead of the cluster's time"),
        Culprit::Unknown => {
            Err("the clocks of the two processes disagree, and the time master does not answer")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ClusterClock;
    use super::super::discipline::{Bounds, Raw, Sample};
    use super::*;
    use crate::spawn;
    use std::sync::Arc;

    const SECOND: u64 = 1_000_000;

    /// The master says that it is `time`, give or take a millisecond.
    fn tells(time: u64) -> Sample {
        let now = Raw::now();
        Sample {
            epoch: 1,
            sent: now,
            received: now,
            at_master: Bounds {
                earliest: time - 1_000,
                latest: time + 1_000,
            },
            shared: None,
        }
    }

    /// A clock that was told `told`, while the time is `truth`: asked anew, the master
    /// says that.
    fn clock(told: u64, truth: u64) -> Arc<ClusterClock> {
        let clock = ClusterClock::unsynchronised();
        clock.observe(tells(told));
        let start = Raw::now();
        let asked = Arc::downgrade(&clock);
        spawn::task("time-master", async move {
            while let Some(clock) = asked.upgrade() {
                clock.doubted().await;
                clock.observe(tells(truth + Raw::now().since(start)));
            }
        });
        clock
    }

    fn at(micros: u64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    #[tokio::test]
    async fn what_fits_costs_nothing() {
        let clock = clock(100 * SECOND, 100 * SECOND);
        let before = clock.generation();
        for theirs in [0, 50 * SECOND, 100 * SECOND, 100 * SECOND + 900] {
            assert!(clock.compare(at(theirs)).is_none());
            assert_eq!(meet(&*clock, at(theirs)).await, Ok(()));
        }
        assert_eq!(clock.generation(), before);
        // Whoever has no time has nothing to compare.
        let none = ClusterClock::unsynchronised();
        assert!(none.compare(at(SECOND)).is_none());
    }

    /// One bad clock does not take the time from the others.
    #[tokio::test]
    async fn a_peer_that_is_ahead_is_found_out() {
        let clock = clock(100 * SECOND, 100 * SECOND);
        let before = clock.generation();
        for _ in 0..3 {
            assert!(meet(&*clock, at(130 * SECOND)).await.is_err());
        }
        assert_eq!(clock.generation(), before);
        assert!(clock.now().is_ok());
    }

    /// It reads what is old and does not know it, until somebody talks to it.
    #[tokio::test]
    async fn who_is_behind_drops_what_it_knows() {
        let clock = clock(100 * SECOND, 130 * SECOND);
        let before = clock.generation();
        assert_eq!(meet(&*clock, at(130 * SECOND)).await, Ok(()));
        assert!(clock.generation() > before);
        // Asked once more, it knows the time.
        while clock.now().is_err() {
            tokio::task::yield_now().await;
        }
        assert!(clock.now().unwrap().earliest >= at(130 * SECOND - 1_000));
        let after = clock.generation();
        assert_eq!(meet(&*clock, at(130 * SECOND)).await, Ok(()));
        assert_eq!(clock.generation(), after);
    }

    /// What the master cannot tell apart: we give in once, not with every frame.
    #[tokio::test]
    async fn nobody_gives_in_again_and_again() {
        let clock = ClusterClock::unsynchronised();
        let start = Raw::now();
        let now = || 100 * SECOND + Raw::now().since(start);
        clock.observe(tells(now()));
        // Every answer to a doubt is as vague as the way to the master is long.
        let vague = || {
            let time = now();
            let at_master = Bounds {
                earliest: time - SECOND / 4,
                latest: time + SECOND / 8,
            };
            clock.observe(Sample {
                at_master,
                ..tells(time)
            });
        };
        let mut verdicts = Vec::new();
        for _ in 0..3 {
            let theirs = at(now() + SECOND / 10);
            let comparing = clock.compare(theirs).unwrap();
            let master = async {
                clock.doubted().await;
                vague();
            };
            let (verdict, ()) = tokio::join!(comparing, master);
            verdicts.push(verdict);
            // Asked again, it knows the time.
            while clock.now().is_err() {
                clock.observe(tells(now()));
            }
        }
        let once = [Culprit::We, Culprit::They, Culprit::They];
        assert_eq!(verdicts, once);
    }
}
